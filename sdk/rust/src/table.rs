//! Tables: the bodies that Databricks' and MLflow's clients send, as rows of a type, as columns, or as a tensor.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use tessera_sdk::{Error, Request, Response};
//!
//! #[derive(Deserialize)]
//! struct Flower {
//!     sepal_length: f32,
//!     /// May be missing, or null.
//!     place: Option<String>,
//! }
//!
//! #[derive(Serialize)]
//! struct Verdict {
//!     long: bool,
//! }
//!
//! fn answer(request: &Request) -> Result<Response, Error> {
//!     let flowers: Vec<Flower> = request.rows()?;
//!     Response::predictions(&flowers.iter().map(|flower| Verdict { long: flower.sepal_length > 6.0 }).collect::<Vec<_>>())
//! }
//! # fn main() -> Result<(), Error> {
//! let body = r#"{"dataframe_split": {"columns": ["place", "sepal_length"], "data": [["Gaspé", 5.1], [null, 6.3]]}}"#;
//! let response = answer(&Request::new("invocations", "application/json", body))?;
//! assert_eq!(response.parts().map(|parts| parts.2), Some(br#"{"predictions":[{"long":false},{"long":true}]}"#.as_slice()));
//!
//! let body = r#"{"dataframe_records": [{"sepal_length": 5.1}, {"sepal_length": "wide"}]}"#;
//! let error = answer(&Request::new("invocations", "application/json", body)).unwrap_err();
//! assert_eq!(error.message, "row 1, column `sepal_length`: invalid type: string \"wide\", expected f32");
//! # Ok(())
//! # }
//! ```
//!
//! Rows are counted from 0, as in the body. There is one table in a body, in one of four forms:
//!
//! | form | example |
//! |---|---|
//! | `dataframe_split` | `{"columns": ["a", "b"], "data": [[1, 2], [3, 4]]}` |
//! | `dataframe_records` | `[{"a": 1, "b": 2}, {"a": 3, "b": 4}]` |
//! | `instances` | the same, or rows without names: `[[1, 2], [3, 4]]`, `[1, 3]` |
//! | `inputs` | columns: `{"a": [1, 3], "b": [2, 4]}`; or rows without names |

mod parse;

use std::cell::Cell;

use serde::de::value::{BorrowedStrDeserializer, MapAccessDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, MapAccess};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::tensor::Element;
use crate::{Error, Request, Response, Tensor};

/// The table of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    len: usize,
    cells: Cells,
}

#[derive(Debug, Clone, PartialEq)]
enum Cells {
    Named(Vec<Column>),
    /// A list or a single value for each row.
    Unnamed(Vec<Value>),
}

#[derive(Debug, Clone, PartialEq)]
struct Column {
    name: String,
    /// None where the row does not have the column, which is not the same as null.
    cells: Vec<Option<Value>>,
}

impl Request {
    /// The rows of the table in the body: columns by name, those that `T` does not have left out. A row without names
    /// becomes what `T` makes of a list, or of a single value; a struct takes the values in the order of its fields.
    ///
    /// # Errors
    /// Invalid input: what is wrong with the body, or the row and the column that do not fit `T`.
    pub fn rows<T: DeserializeOwned>(&self) -> Result<Vec<T>, Error> {
        self.table()?.rows()
    }

    /// The table in the body.
    ///
    /// # Errors
    /// Invalid input: what is wrong with the body.
    pub fn table(&self) -> Result<Table, Error> {
        parse::table(self.bytes()?)
    }
}

impl Response {
    /// `{"predictions": …}`, with status 200: one for each row of the request, in its order. Numbers that JSON does not
    /// have (NaN, infinity) become null.
    ///
    /// # Errors
    /// When they cannot be written as JSON.
    pub fn predictions<T: Serialize + ?Sized>(predictions: &T) -> Result<Self, Error> {
        #[derive(Serialize)]
        struct Answer<'a, T: ?Sized> {
            predictions: &'a T,
        }
        Self::json(&Answer { predictions })
    }
}

impl Table {
    /// The number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The names of the columns, in the order of the body; none where the rows have no names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let columns = match &self.cells {
            Cells::Named(columns) => columns.as_slice(),
            Cells::Unnamed(_) => &[],
        };
        columns.iter().map(|column| column.name.as_str())
    }

    /// Each row as a `T`, as by [`Request::rows`]. `T` may borrow from the table.
    ///
    /// # Errors
    /// Invalid input: the row and the column that do not fit `T`.
    pub fn rows<'a, T: Deserialize<'a>>(&'a self) -> Result<Vec<T>, Error> {
        match &self.cells {
            Cells::Named(columns) => (0..self.len).map(|row| Fields::read(columns, row)).collect(),
            Cells::Unnamed(rows) => {
                let read =
                    |(row, value): (usize, &'a Value)| T::deserialize(value).map_err(|error| at(row, None, &error));
                rows.iter().enumerate().map(read).collect()
            }
        }
    }

    /// A column's values: `f32`, `String`, or with an `Option` around it where some may be missing or null.
    ///
    /// # Errors
    /// Invalid input: there is no such column, or the row whose value is no `T`.
    pub fn column<'a, T: Deserialize<'a>>(&'a self, name: &str) -> Result<Vec<T>, Error> {
        self.cells_of(name)?.iter().enumerate().map(|(row, cell)| value(cell.as_ref(), row, name)).collect()
    }

    /// Columns of numbers as a tensor of shape `[rows, names.len()]`: what most models of tables take. A number that is
    /// missing or null is NaN where `T` has one, as in pandas. Rows without names are taken to be in the order of `names`.
    ///
    /// # Errors
    /// Invalid input: the column that there is not, or the row and the column whose value is no `T`.
    pub fn tensor<T: Element + DeserializeOwned>(&self, names: &[&str]) -> Result<Tensor<'static>, Error> {
        let number = |cell: Option<&Value>, row: usize, name: &str| match T::MISSING.filter(|_| is_missing(cell)) {
            Some(missing) => Ok(missing),
            None => value(cell, row, name),
        };
        let mut values = Vec::new();
        match &self.cells {
            Cells::Named(_) => {
                let columns = names.iter().map(|name| self.cells_of(name)).collect::<Result<Vec<_>, _>>()?;
                values.reserve_exact(self.len * names.len());
                for row in 0..self.len {
                    for (name, cells) in names.iter().zip(&columns) {
                        values.push(number(cells.get(row).and_then(Option::as_ref), row, name)?);
                    }
                }
            }
            Cells::Unnamed(rows) => {
                // Room for the values only once all are known to be there: a row may be as short as `0,`.
                let rows = rows.iter().enumerate().map(|(row, cells)| positional(cells, row, names));
                let rows = rows.collect::<Result<Vec<_>, _>>()?;
                values.reserve_exact(rows.len() * names.len());
                for (row, cells) in rows.into_iter().enumerate() {
                    for (name, cell) in names.iter().zip(cells) {
                        values.push(number(Some(cell), row, name)?);
                    }
                }
            }
        }
        let size = |length: usize| u32::try_from(length).map_err(|_| Error::too_large("the table has too many rows"));
        Tensor::from_vec(&[size(self.len)?, size(names.len())?], values)
    }

    fn cells_of(&self, name: &str) -> Result<&[Option<Value>], Error> {
        let Cells::Named(columns) = &self.cells else {
            return Err(Error::invalid_input(format!(
                "the rows have no names, so that there is no column `{name}`: send `dataframe_records`, or \
                 `dataframe_split` with `columns`"
            )));
        };
        let found = columns.iter().find(|column| column.name == name);
        found.map(|column| column.cells.as_slice()).ok_or_else(|| {
            let names = self.names().collect::<Vec<_>>().join("`, `");
            let known = if names.is_empty() { "none".to_owned() } else { format!("`{names}`") };
            Error::invalid_input(format!("column `{name}` is missing; there are: {known}"))
        })
    }
}

fn is_missing(cell: Option<&Value>) -> bool {
    cell.is_none_or(Value::is_null)
}

/// A cell as a `T`. One that is missing is null to types that take that.
fn value<'a, T: Deserialize<'a>>(cell: Option<&'a Value>, row: usize, column: &str) -> Result<T, Error> {
    match cell {
        Some(value) => T::deserialize(value).map_err(|error| at(row, Some(column), &error)),
        None => T::deserialize(&Value::Null)
            .map_err(|_| Error::invalid_input(format!("row {row}: column `{column}` is missing"))),
    }
}

/// The values of a row without names, as many as there are columns.
fn positional<'a>(row: &'a Value, number: usize, names: &[&str]) -> Result<&'a [Value], Error> {
    let values = match row {
        Value::Array(values) => values.as_slice(),
        single => std::slice::from_ref(single),
    };
    if values.len() != names.len() {
        let (given, wanted) = (values.len(), names.len());
        return Err(Error::invalid_input(format!(
            "row {number} has {given} values; it must have {wanted}: {}",
            names.join(", ")
        )));
    }
    Ok(values)
}

fn at(row: usize, column: Option<&str>, error: &serde_json::Error) -> Error {
    let column = column.map(|name| format!(", column `{name}`")).unwrap_or_default();
    // serde knows no columns.
    let error = error.to_string().replacen("missing field", "missing column", 1);
    Error::invalid_input(format!("row {row}{column}: {error}"))
}

/// A row of named cells, as serde reads a struct or a map.
struct Fields<'a, 'c> {
    columns: std::slice::Iter<'a, Column>,
    row: usize,
    value: Option<&'a Value>,
    /// The column that is being read, for an error's message.
    column: &'c Cell<Option<&'a str>>,
}

impl<'a> Fields<'a, '_> {
    fn read<T: Deserialize<'a>>(columns: &'a [Column], row: usize) -> Result<T, Error> {
        let column = Cell::new(None);
        let fields = Fields { columns: columns.iter(), row, value: None, column: &column };
        T::deserialize(MapAccessDeserializer::new(fields)).map_err(|error| at(row, column.get(), &error))
    }
}

impl<'a> MapAccess<'a> for Fields<'a, '_> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'a>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        self.column.set(None);
        for column in self.columns.by_ref() {
            if let Some(Some(value)) = column.cells.get(self.row) {
                self.value = Some(value);
                let name = seed.deserialize(BorrowedStrDeserializer::new(&column.name)).map(Some)?;
                self.column.set(Some(&column.name));
                return Ok(name);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, Self::Error> {
        seed.deserialize(self.value.take().unwrap_or(&Value::Null))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{ErrorKind, TensorType};

    #[derive(Debug, PartialEq, Deserialize)]
    struct Row {
        a: i64,
        #[serde(rename = "the b")]
        b: Option<f64>,
        c: String,
    }

    fn request(body: &str) -> Request {
        Request::new("invocations", "application/json", body)
    }

    fn table(body: &str) -> Table {
        request(body).table().unwrap()
    }

    fn refused(body: &str) -> String {
        let error = request(body).rows::<Row>().unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidInput, "{error}");
        error.message
    }

    fn row(a: i64, b: Option<f64>, c: &str) -> Row {
        Row { a, b, c: c.to_owned() }
    }

    #[test]
    fn the_four_forms_give_the_same_rows() {
        let rows = [row(1, Some(0.5), "x"), row(-2, None, "ÿ\n")];
        for body in [
            r#"{"dataframe_split": {"index": [7, 8], "columns": ["c", "a", "the b", "more"],
                "data": [["x", 1, 0.5, {}], ["ÿ\n", -2, null, []]]}}"#,
            // keys come in any order, and without names the values are in that of the fields
            r#"{"dataframe_split": {"data": [["x", 1, 0.5], ["ÿ\n", -2, null]], "columns": ["c", "a", "the b"]}}"#,
            r#"{"dataframe_split": {"data": [[1, 0.5, "x"], [-2, null, "ÿ\n"]]}, "params": {"k": 1}}"#,
            r#"{"dataframe_records": [{"a": 1, "the b": 0.5, "c": "x"}, {"c": "ÿ\n", "more": [1], "a": -2}]}"#,
            r#"{"params": {}, "instances": [{"a": 1, "the b": 0.5, "c": "x"}, {"a": -2, "the b": null, "c": "ÿ\n"}]}"#,
            r#"{"instances": [[1, 0.5, "x"], [-2, null, "ÿ\n"]]}"#,
            r#"{"inputs": {"a": [1, -2], "the b": [0.5, null], "c": ["x", "ÿ\n"]}}"#,
            r#"{"inputs": [[1, 0.5, "x"], [-2, null, "ÿ\n"]]}"#,
        ] {
            assert_eq!(request(body).rows::<Row>().unwrap(), rows, "{body}");
        }
    }

    #[test]
    fn a_value_that_does_not_fit_is_named_by_row_and_column() {
        for (body, expected) in [
            (
                r#"{"dataframe_split": {"columns": ["a", "c"], "data": [[1, "x"], ["one", "x"]]}}"#,
                "row 1, column `a`: invalid type: string \"one\", expected i64",
            ),
            (
                r#"{"dataframe_records": [{"a": 1, "c": "x"}, {"a": 1, "the b": true, "c": "x"}]}"#,
                "row 1, column `the b`: invalid type: boolean `true`, expected f64",
            ),
            (r#"{"inputs": {"a": [null], "c": ["x"]}}"#, "row 0, column `a`: invalid type: null, expected i64"),
            (
                r#"{"instances": [{"a": 1.5, "c": ""}]}"#,
                "row 0, column `a`: invalid type: floating point `1.5`, expected i64",
            ),
            (r#"{"dataframe_records": [{"a": 1, "c": "x"}, {"a": 1}]}"#, "row 1: missing column `c`"),
            (r#"{"instances": [[1, null]]}"#, "row 0: invalid length 2, expected struct Row with 3 elements"),
            (r#"{"instances": [5]}"#, "row 0: invalid type: integer `5`, expected struct Row"),
        ] {
            assert_eq!(refused(body), expected, "{body}");
        }
    }

    #[test]
    fn a_body_that_is_no_table_is_refused_with_the_reason() {
        for (body, reason) in [
            ("", "the body is empty"),
            ("{", "failed to parse the JSON body: EOF"),
            ("{} x", "has none of `dataframe_split`, `dataframe_records`, `instances`, `inputs`"),
            (r#"{"inputs": []} x"#, "failed to parse the JSON body: trailing characters at line 1 column 16"),
            ("[[1]]", "invalid type: sequence, expected an object with exactly one of `dataframe_split`"),
            (r#"{"instances": [], "inputs": []}"#, "`instances` and `inputs` are both given"),
            (r#"{"dataframe_split": [1]}"#, "expected `dataframe_split` to be an object with `columns` and `data`"),
            (r#"{"dataframe_split": {"columns": ["a"]}}"#, "missing field `data`"),
            (r#"{"dataframe_split": {"data": [], "rows": 1}}"#, "unknown field `rows`"),
            (r#"{"dataframe_split": {"columns": ["a"], "data": [[1], 2]}}"#, "row 1 of `data` must be a list"),
            (r#"{"dataframe_split": {"columns": ["a"], "data": [[1], [1, 2]]}}"#, "row 1 has 2 values for 1 columns"),
            (r#"{"dataframe_split": {"columns": ["a", "a"], "data": []}}"#, "has column `a` twice"),
            (r#"{"dataframe_records": {"a": 1}}"#, "expected `dataframe_records` to be a list of rows"),
            (r#"{"dataframe_records": [{"a": 1}, [1]]}"#, "`dataframe_records`: row 1 must be an object"),
            (r#"{"dataframe_records": [{"a": 1, "a": 2}]}"#, "row 0 has column `a` twice"),
            (r#"{"instances": [{}, 1]}"#, "`instances`: row 1 must be an object"),
            (r#"{"instances": [1, {}]}"#, "row 1 is an object, but row 0 is not"),
            (r#"{"inputs": 5}"#, "expected `inputs` to be an object with a list for each column, or a list of rows"),
            (r#"{"inputs": {"a": 5}}"#, "`inputs`: `a` must be a list"),
            (r#"{"inputs": {"a": [1], "b": [1, 2]}}"#, "`a` has 1 values, but `b` has 2"),
            (r#"{"inputs": {"a": [1], "a": [2]}}"#, "has column `a` twice"),
        ] {
            let message = refused(body);
            assert!(message.contains(reason), "{body}: {message}");
        }
    }

    #[test]
    fn records_with_little_in_common_are_bounded() {
        let sparse = |rows: usize| {
            let records: Vec<String> = (0..rows).map(|row| format!(r#"{{"{row}":1}}"#)).collect();
            request(&format!(r#"{{"dataframe_records":[{}]}}"#, records.join(","))).table()
        };
        assert_eq!(sparse(1000).unwrap().names().count(), 1000);
        assert!(sparse(10_000).unwrap_err().message.contains("1024 columns in 1025 rows are too many"));
        let wide: Vec<String> = (0..2000).map(|column| format!(r#""{column}":1"#)).collect();
        let empty = format!(r#"{{"instances":[{{{}}}{}]}}"#, wide.join(","), ",{}".repeat(2000));
        assert!(request(&empty).table().unwrap_err().message.contains("2000 columns in 525 rows are too many"));
    }

    #[test]
    fn many_names_and_rows_without_cells_take_no_room() {
        let names: Vec<String> = (0..100_000).map(|name| format!("\"{name}\"")).collect();
        let rows = vec!["0"; 100_000].join(",");
        let split = format!(r#"{{"dataframe_split": {{"columns": [{}], "data": [{rows}]}}}}"#, names.join(","));
        assert!(request(&split).table().unwrap_err().message.contains("row 0 of `data` must be a list"));
    }

    #[test]
    fn a_tensor_of_short_rows_takes_no_room() {
        let rows = table(&format!(r#"{{"instances": [{}0]}}"#, "0,".repeat(999_999)));
        let names: Vec<String> = (0..100_000).map(|name| name.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let error = rows.tensor::<f64>(&names).unwrap_err();
        assert!(error.message.contains("row 0 has 1 values; it must have 100000"), "{error}");
    }

    #[test]
    fn columns_are_read_by_name() {
        let table = table(r#"{"dataframe_records": [{"a": 1, "s": "x"}, {"s": null, "a": 2.5}, {"new": true}]}"#);
        assert_eq!((table.len(), table.names().collect::<Vec<_>>()), (3, vec!["a", "s", "new"]));
        assert_eq!(table.column::<Option<f32>>("a").unwrap(), [Some(1.0), Some(2.5), None]);
        assert_eq!(table.column::<Option<&str>>("s").unwrap(), [Some("x"), None, None]);
        assert_eq!(table.column::<Option<bool>>("new").unwrap(), [None, None, Some(true)]);
        let message = |error: Error| error.message;
        assert_eq!(table.column::<f32>("a").map_err(message), Err("row 2: column `a` is missing".to_owned()));
        let expected = "row 1, column `s`: invalid type: null, expected a borrowed string";
        assert_eq!(table.column::<&str>("s").map_err(message), Err(expected.to_owned()));
        let expected = "column `b` is missing; there are: `a`, `s`, `new`";
        assert_eq!(table.column::<f32>("b").map_err(message), Err(expected.to_owned()));
        let maps = table.rows::<BTreeMap<&str, serde_json::Value>>().unwrap();
        assert_eq!(maps.iter().map(BTreeMap::len).collect::<Vec<_>>(), [2, 2, 1]);
    }

    #[test]
    fn a_tensor_has_a_row_for_each_row_and_nan_for_what_is_missing() {
        let table = table(r#"{"dataframe_split": {"columns": ["b", "n", 3], "data": [[1, 2, 3], [4, null, 6.5]]}}"#);
        let tensor = table.tensor::<f32>(&["3", "b"]).unwrap();
        assert_eq!((tensor.dims(), tensor.ty()), ([2, 2].as_slice(), TensorType::Fp32));
        assert_eq!(tensor.as_slice::<f32>().unwrap().as_ref(), [3.0, 1.0, 6.5, 4.0]);
        assert!(table.tensor::<f64>(&["n"]).unwrap().as_slice::<f64>().unwrap()[1].is_nan());
        let refused = |names: &[&str]| table.tensor::<i64>(names).unwrap_err().message;
        assert_eq!(refused(&["n"]), "row 1, column `n`: invalid type: null, expected i64");
        assert_eq!(refused(&["b", "3"]), "row 1, column `3`: invalid type: floating point `6.5`, expected i64");
        assert_eq!(refused(&["z"]), "column `z` is missing; there are: `b`, `n`, `3`");
    }

    #[test]
    fn rows_without_names_are_taken_by_place() {
        let lists = table(r#"{"inputs": [[1, 2], [3, null]]}"#);
        let tensor = lists.tensor::<f32>(&["a", "b"]).unwrap();
        assert_eq!(
            (tensor.dims(), &tensor.as_slice::<f32>().unwrap()[..3]),
            ([2, 2].as_slice(), [1.0, 2.0, 3.0].as_slice())
        );
        assert_eq!(lists.rows::<[Option<u8>; 2]>().unwrap(), [[Some(1), Some(2)], [Some(3), None]]);
        let error = lists.tensor::<f32>(&["a", "b", "c"]).unwrap_err();
        assert_eq!(error.message, "row 0 has 2 values; it must have 3: a, b, c");
        assert!(lists.column::<f32>("a").unwrap_err().message.contains("the rows have no names"));

        let values = table(r#"{"instances": [1, 2, 3]}"#);
        assert_eq!(values.rows::<u8>().unwrap(), [1, 2, 3]);
        assert_eq!(values.tensor::<i32>(&["a"]).unwrap().dims(), [3, 1]);
        let error = values.rows::<String>().unwrap_err();
        assert_eq!(error.message, "row 0: invalid type: integer `1`, expected a string");
        assert!(table(r#"{"instances": []}"#).rows::<Row>().unwrap().is_empty());
    }

    #[test]
    fn predictions_are_answered_as_clients_expect_them() {
        let response = Response::predictions(&[0.5, f32::NAN]).unwrap();
        assert_eq!(response.parts(), Some((200, "application/json", br#"{"predictions":[0.5,null]}"#.as_slice())));
    }
}
