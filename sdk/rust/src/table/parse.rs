//! From the bytes of a body to a table, in whichever form it comes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};

use super::{Cells, Column, Table};
use crate::Error;

const FORMS: [&str; 4] = ["dataframe_split", "dataframe_records", "instances", "inputs"];

/// A table of records has a cell for each of its rows and columns, also where a record leaves a column out. There may be
/// as many cells as the body has bytes, which is more than a full table can have; and these, for small bodies.
const CELLS_FREE: usize = 1 << 20;

pub(super) fn table(body: &[u8]) -> Result<Table, Error> {
    if body.is_empty() {
        return Err(Error::invalid_input("the body is empty; expected JSON"));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let table = json.deserialize_any(Body { cells_max: body.len().max(CELLS_FREE) });
    let table = table.and_then(|table| json.end().map(|()| table));
    // What is wrong with the table is no error of JSON.
    table.map_err(|error| if error.is_data() { Error::invalid_input(error.to_string()) } else { error.into() })
}

/// Makes of what follows a table.
struct Body {
    cells_max: usize,
}

impl<'de> Visitor<'de> for Body {
    type Value = Table;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with exactly one of `{}`", FORMS.join("`, `"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
        let mut found: Option<(&str, Table)> = None;
        while let Some(Name(key)) = map.next_key()? {
            let Some(form) = FORMS.into_iter().find(|form| *form == key) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if let Some((other, _)) = found {
                return Err(A::Error::custom(format!("`{other}` and `{form}` are both given; it must be one of them")));
            }
            let table = match form {
                "dataframe_split" => map.next_value_seed(SplitForm { form })?.table(form)?,
                _ => map.next_value_seed(Rows { form, cells_max: self.cells_max })?,
            };
            found = Some((form, table));
        }
        let none = || A::Error::custom(format!("the body has none of `{}`", FORMS.join("`, `")));
        found.map(|(_, table)| table).ok_or_else(none)
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// An object: serde would take a list as well.
struct SplitForm {
    form: &'static str,
}

impl<'de> DeserializeSeed<'de> for SplitForm {
    type Value = Split;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Split, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for SplitForm {
    type Value = Split;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` to be an object with `columns` and `data`", self.form)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Split, A::Error> {
        Split::deserialize(MapAccessDeserializer::new(map))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Split {
    columns: Option<Vec<Label>>,
    #[serde(rename = "index")]
    _index: Option<IgnoredAny>,
    data: Vec<Value>,
}

/// The name of a column: pandas has numbers too.
#[derive(Deserialize)]
#[serde(untagged)]
enum Label {
    Text(String),
    Number(Number),
}

impl Split {
    fn table<E: serde::de::Error>(self, form: &str) -> Result<Table, E> {
        let len = self.data.len();
        let Some(labels) = self.columns else { return Ok(Table { len, cells: Cells::Unnamed(self.data) }) };
        // Before anything is made of them: few bytes may name many columns, and as many rows that have none of them.
        for (number, row) in self.data.iter().enumerate() {
            let Value::Array(row) = row else {
                return Err(E::custom(format!("`{form}`: row {number} of `data` must be a list")));
            };
            if row.len() != labels.len() {
                let (given, wanted) = (row.len(), labels.len());
                return Err(E::custom(format!("`{form}`: row {number} has {given} values for {wanted} columns")));
            }
        }
        let column = |label| {
            let name = match label {
                Label::Text(text) => text,
                Label::Number(number) => number.to_string(),
            };
            Column { name, cells: Vec::with_capacity(len) }
        };
        let mut columns: Vec<Column> = labels.into_iter().map(column).collect();
        for row in self.data {
            let Value::Array(row) = row else { continue };
            for (column, value) in columns.iter_mut().zip(row) {
                column.cells.push(Some(value));
            }
        }
        named(form, len, columns)
    }
}

/// The table of these columns, whose names must differ.
fn named<E: serde::de::Error>(form: &str, len: usize, columns: Vec<Column>) -> Result<Table, E> {
    let mut names = BTreeSet::new();
    if let Some(twice) = columns.iter().find(|column| !names.insert(column.name.as_str())) {
        return Err(E::custom(format!("`{form}` has column `{}` twice", twice.name)));
    }
    Ok(Table { len, cells: Cells::Named(columns) })
}

/// Makes of what follows a table: a list of rows, or in `inputs` an object of columns.
struct Rows {
    form: &'static str,
    cells_max: usize,
}

impl<'de> DeserializeSeed<'de> for Rows {
    type Value = Table;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Table, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Rows {
    type Value = Table;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = self.form;
        match form {
            "inputs" => write!(f, "`{form}` to be an object with a list for each column, or a list of rows"),
            _ => write!(f, "`{form}` to be a list of rows"),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Table, A::Error> {
        let mut rows = Records::default();
        while seq.next_element_seed(Row { form: self.form, cells_max: self.cells_max, rows: &mut rows })?.is_some() {}
        Ok(rows.table())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
        let form = self.form;
        if form != "inputs" {
            return Err(A::Error::invalid_type(serde::de::Unexpected::Map, &self));
        }
        let mut columns: Vec<Column> = Vec::new();
        while let Some((name, cells)) = map.next_entry::<String, Value>()? {
            let Value::Array(cells) = cells else {
                return Err(A::Error::custom(format!("`{form}`: `{name}` must be a list with a value for each row")));
            };
            if let Some(first) = columns.first().filter(|first| first.cells.len() != cells.len()) {
                let (one, other) = (first.cells.len(), cells.len());
                return Err(A::Error::custom(format!(
                    "`{form}`: `{}` has {one} values, but `{name}` has {other}",
                    first.name
                )));
            }
            columns.push(Column { name, cells: cells.into_iter().map(Some).collect() });
        }
        named(form, columns.first().map_or(0, |column| column.cells.len()), columns)
    }
}

/// Rows, as they are read.
#[derive(Default)]
struct Records {
    len: usize,
    columns: Vec<Column>,
    /// Where the column of a name is.
    places: BTreeMap<String, usize>,
    unnamed: Vec<Value>,
}

impl Records {
    fn table(mut self) -> Table {
        if !self.unnamed.is_empty() {
            return Table { len: self.len, cells: Cells::Unnamed(self.unnamed) };
        }
        for column in &mut self.columns {
            column.cells.resize(self.len, None);
        }
        Table { len: self.len, cells: Cells::Named(self.columns) }
    }

    /// The place of a column, which is made if it is new. Records tend to have the same order: then it is `guess`.
    fn place(&mut self, name: Cow<'_, str>, guess: usize) -> usize {
        if self.columns.get(guess).is_some_and(|column| column.name == name) {
            return guess;
        }
        if let Some(place) = self.places.get(&*name) {
            return *place;
        }
        let place = self.columns.len();
        self.places.insert(name.clone().into_owned(), place);
        self.columns.push(Column { name: name.into_owned(), cells: Vec::new() });
        place
    }
}

/// Adds what follows to the rows.
struct Row<'r> {
    form: &'static str,
    cells_max: usize,
    rows: &'r mut Records,
}

impl Row<'_> {
    fn unnamed<E: serde::de::Error>(self, value: Value) -> Result<(), E> {
        let has_records = self.rows.len > self.rows.unnamed.len();
        if self.form == "dataframe_records" || has_records {
            let (form, number) = (self.form, self.rows.len);
            return Err(E::custom(format!("`{form}`: row {number} must be an object with a value for each column")));
        }
        self.rows.len += 1;
        self.rows.unnamed.push(value);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a row")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Row { form, cells_max, rows } = self;
        let check = |rows: &Records| {
            let (columns, len) = (rows.columns.len(), rows.len);
            let message = || format!("`{form}`: {columns} columns in {len} rows are too many, with so few in each");
            if columns.saturating_mul(len) > cells_max { Err(A::Error::custom(message())) } else { Ok(()) }
        };
        let number = rows.len;
        if !rows.unnamed.is_empty() {
            return Err(A::Error::custom(format!("`{form}`: row {number} is an object, but row 0 is not")));
        }
        rows.len += 1;
        check(rows)?;
        let mut guess = 0;
        while let Some(Name(name)) = map.next_key()? {
            let place = rows.place(name, guess);
            check(rows)?;
            let value = map.next_value()?;
            let Some(column) = rows.columns.get_mut(place) else { continue };
            if column.cells.len() > number {
                return Err(A::Error::custom(format!("`{form}`: row {number} has column `{}` twice", column.name)));
            }
            column.cells.resize(number, None);
            column.cells.push(Some(value));
            guess = place + 1;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        let values = Value::deserialize(SeqAccessDeserializer::new(seq))?;
        self.unnamed(values)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.unnamed(value.into())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.unnamed(value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.unnamed(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.unnamed(value.into())
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.unnamed(value.into())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.unnamed(Value::Null)
    }
}
