//! Tables as CSV: `pandas.read_csv` with the types of the signature.

use std::borrow::Cow;

use super::Refusal;
use super::columns::{check_presence, is_named};
use super::convert::excerpt;
use super::feed::Table;
use super::frame::{Label, check_padding};
use super::schema::{Column, ScalarType, Schema, Type};
use crate::tensor::{Array, Dtype, Values, narrow_float};

/// What `read_csv` takes for a missing value.
const GAPS: [&str; 19] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
];

/// A table with every field as text, row by row.
pub(crate) struct Csv<'a> {
    header: Vec<Cow<'a, str>>,
    fields: Vec<Cow<'a, str>>,
    /// How many fields there are up to the end of each row, which may have fewer than the header.
    row_ends: Vec<usize>,
}

impl<'a> Csv<'a> {
    pub(crate) fn parse(text: &'a str) -> Result<Self, Refusal> {
        Self::parse_records(text.strip_prefix('\u{feff}').unwrap_or(text)).map_err(|reason| failed(&reason))
    }

    fn parse_records(text: &'a str) -> Result<Self, String> {
        let mut reader = Reader { rest: text, line: 1 };
        let header = reader.record()?.ok_or("No columns to parse from file")?;
        let width = header.len();
        let (mut fields, mut row_ends) = (Vec::new(), Vec::new());
        while let Some(mut record) = reader.record()? {
            if record.len() > width {
                let (line, saw) = (reader.line, record.len());
                return Err(format!(
                    "Error tokenizing data. C error: Expected {width} fields in line {line}, saw {saw}"
                ));
            }
            fields.append(&mut record);
            row_ends.push(fields.len());
        }
        check_padding(row_ends.len(), width, fields.len())?;
        Ok(Self { header, fields, row_ends })
    }

    /// The table with the signature enforced, or with inferred types without one.
    pub(crate) fn table<'j>(&'j self, schema: Option<&'j Schema>) -> Result<Table<'j>, Refusal> {
        let rows = self.row_ends.len();
        let labels: Vec<Label<'_>> = self.header.iter().map(|name| Label::Name(name)).collect();
        let columns = match schema {
            None => {
                labels.iter().enumerate().map(|(position, label)| (*label, inferred(self.column(position)))).collect()
            }
            Some(Schema::Tensors(_)) => {
                return Err(failed("TensorSpec only supports numpy types, use numpy_types() instead"));
            }
            Some(Schema::Columns(columns)) => self.typed(columns, &labels)?,
        };
        Ok(Table { rows, columns })
    }

    fn typed<'j>(&'j self, columns: &'j [Column], labels: &[Label<'j>]) -> Result<Vec<(Label<'j>, Array)>, Refusal> {
        if columns.iter().any(|column| !matches!(column.ty, Type::Scalar(_))) {
            return Err(failed("Failed to get pandas types as some of the inputs types are not DataType."));
        }
        let named = is_named(columns);
        let mut table = Vec::with_capacity(columns.len());
        for (place, column) in columns.iter().enumerate() {
            let position = match &column.name {
                Some(name) => labels.iter().position(|label| *label == Label::Name(name)),
                None => Some(place).filter(|place| *place < labels.len()),
            };
            let (Some(position), Type::Scalar(ty)) = (position, &column.ty) else { continue };
            let array = cast(self.column(position), *ty).map_err(|reason| failed(&reason))?;
            let label = column.name.as_deref().map_or(Label::Number(place as i64), Label::Name);
            table.push((label, array));
        }
        check_presence(columns, named, labels)?;
        Ok(table)
    }

    fn column(&self, position: usize) -> impl Iterator<Item = &str> + Clone {
        let row_starts = std::iter::once(&0).chain(&self.row_ends);
        row_starts.zip(&self.row_ends).map(move |(start, end)| {
            let row = self.fields.get(*start..*end).unwrap_or_default();
            row.get(position).map_or("", |field| field.as_ref())
        })
    }
}

fn failed(reason: &str) -> Refusal {
    Refusal::Bad(format!(
        "Failed to parse input as a Pandas DataFrame. Ensure that the input is a valid CSV-formatted Pandas DataFrame \
         produced using the `pandas.DataFrame.to_csv()` method. Error: '{reason}'"
    ))
}

fn is_gap(field: &str) -> bool {
    GAPS.contains(&field)
}

fn cast<'f>(fields: impl Iterator<Item = &'f str> + Clone, ty: ScalarType) -> Result<Array, String> {
    let dtype = ty.dtype();
    let values = match ty {
        ScalarType::Float | ScalarType::Double => {
            let number = |field| float(field).map(|value| narrow_float(value, dtype));
            let not_a_number = |field| format!("could not convert string to float: '{}'", excerpt(field));
            Values::Floats(
                fields.map(|field| number(field).ok_or_else(|| not_a_number(field))).collect::<Result<_, _>>()?,
            )
        }
        ScalarType::Integer | ScalarType::Long => {
            Values::Ints(fields.map(|field| int(field, ty)).collect::<Result<_, _>>()?)
        }
        ScalarType::Boolean => {
            let not_a_boolean = |field| format!("Bool column has NA or other values: '{}'", excerpt(field));
            Values::Ints(
                fields.map(|field| boolean(field).ok_or_else(|| not_a_boolean(field))).collect::<Result<_, _>>()?,
            )
        }
        ScalarType::String => Values::Texts(fields.map(|field| (!is_gap(field)).then(|| field.to_owned())).collect()),
        ScalarType::Binary => Values::Opaque(fields.count()),
        ScalarType::Datetime => {
            return Err(
                "the dtype datetime64[ns] is not supported for parsing, pass this column using parse_dates instead"
                    .to_owned(),
            );
        }
    };
    Ok(Array::column(dtype, values))
}

fn float(field: &str) -> Option<f64> {
    if is_gap(field) { Some(f64::NAN) } else { field.trim().parse().ok() }
}

/// Whole floats count as integers.
fn int(field: &str, ty: ScalarType) -> Result<i64, String> {
    if is_gap(field) {
        return Err("Integer column has NA values".to_owned());
    }
    let text = field.trim();
    let whole = |value: f64| (value.fract() == 0.0 && value.abs() < 9e15).then_some(value as i64);
    let value = text.parse::<i64>().ok().or_else(|| text.parse::<f64>().ok().and_then(whole));
    let value = value.ok_or_else(|| format!("invalid literal for an integer: '{}'", excerpt(field)))?;
    if ty == ScalarType::Integer && i32::try_from(value).is_err() {
        return Err(format!("Overflow: {value} does not fit into int32"));
    }
    Ok(value)
}

fn boolean(field: &str) -> Option<i64> {
    match field {
        "True" | "TRUE" | "true" | "1" => Some(1),
        "False" | "FALSE" | "false" | "0" => Some(0),
        _ => None,
    }
}

fn inferred<'f>(fields: impl Iterator<Item = &'f str> + Clone) -> Array {
    let ints: Option<Vec<i64>> = fields.clone().map(|field| field.trim().parse().ok()).collect();
    if let Some(ints) = ints {
        return Array::column(Dtype::Int64, Values::Ints(ints));
    }
    let floats: Option<Vec<f64>> = fields.clone().map(float).collect();
    if let Some(floats) = floats {
        return Array::column(Dtype::Float64, Values::Floats(floats));
    }
    let is_word = |field: &str| !matches!(field, "0" | "1");
    let bools: Option<Vec<i64>> = fields.clone().map(|field| boolean(field).filter(|_| is_word(field))).collect();
    match bools {
        Some(bools) => Array::column(Dtype::Bool, Values::Ints(bools)),
        None => Array::column(Dtype::Text, Values::Opaque(fields.count())),
    }
}

/// Takes records off the text: fields between commas, quotes where a field holds commas, quotes or line ends.
struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Reader<'a> {
    /// The next record that is no blank line.
    fn record(&mut self) -> Result<Option<Vec<Cow<'a, str>>>, String> {
        self.skip_blank_lines();
        if self.rest.is_empty() {
            return Ok(None);
        }
        let mut record = Vec::new();
        loop {
            record.push(self.field()?);
            let mut characters = self.rest.chars();
            match characters.next() {
                Some(',') => self.rest = characters.as_str(),
                _ => {
                    self.line_end();
                    return Ok(Some(record));
                }
            }
        }
    }

    fn skip_blank_lines(&mut self) {
        loop {
            let line = self.rest.trim_start_matches([' ', '\t']);
            if !line.starts_with(['\n', '\r']) {
                if line.is_empty() {
                    self.rest = line;
                }
                return;
            }
            self.rest = line;
            self.line_end();
        }
    }

    fn line_end(&mut self) {
        self.rest = self.rest.strip_prefix('\r').unwrap_or(self.rest);
        self.rest = self.rest.strip_prefix('\n').unwrap_or(self.rest);
        self.line += 1;
    }

    fn field(&mut self) -> Result<Cow<'a, str>, String> {
        let Some(mut quoted) = self.rest.strip_prefix('"') else { return Ok(Cow::Borrowed(self.plain())) };
        let mut field = Cow::Borrowed("");
        loop {
            let Some((piece, after)) = quoted.split_once('"') else {
                return Err(format!("Error tokenizing data. C error: EOF inside string starting at row {}", self.line));
            };
            field = joined(field, piece);
            quoted = after;
            // Two quotes stand for one.
            let Some(after) = quoted.strip_prefix('"') else { break };
            field = joined(field, "\"");
            quoted = after;
        }
        self.rest = quoted;
        let tail = self.plain();
        Ok(joined(field, tail))
    }

    /// Up to the next comma or line end.
    fn plain(&mut self) -> &'a str {
        let end = self.rest.find([',', '\n', '\r']).unwrap_or(self.rest.len());
        let (field, rest) = self.rest.split_at(end);
        self.rest = rest;
        field
    }
}

fn joined<'a>(field: Cow<'a, str>, piece: &'a str) -> Cow<'a, str> {
    if field.is_empty() { Cow::Borrowed(piece) } else { Cow::Owned(field.into_owned() + piece) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_commas_quotes_and_lines() {
        let csv = Csv::parse_records("a,\"b,\"\"c\"\"\"\r\n\"1\n2\",\"\"\r\n\n  \n3").unwrap();
        assert_eq!(csv.header, ["a", "b,\"c\""]);
        assert_eq!(csv.column(0).collect::<Vec<_>>(), ["1\n2", "3"]);
        assert_eq!(csv.column(1).collect::<Vec<_>>(), ["", ""]);
    }

    #[test]
    fn short_lines_below_a_wide_header_are_bounded() {
        let table = |columns: usize, rows: usize| format!("{}\n{}", ",".repeat(columns - 1), "1\n".repeat(rows));
        let reason = Csv::parse_records(&table(5_000, 5_000)).err().unwrap();
        assert!(reason.contains("5000 uneven rows of up to 5000 columns"), "{reason}");
        let small = table(3, 2);
        let csv = Csv::parse_records(&small).unwrap();
        assert_eq!(csv.column(0).collect::<Vec<_>>(), ["1", "1"]);
        assert_eq!(csv.column(2).collect::<Vec<_>>(), ["", ""]);
    }

    #[test]
    fn what_is_no_table_is_an_error() {
        for text in ["", "\n\n", "a,b\n\"1", "a\n1,2"] {
            assert!(Csv::parse_records(text).is_err(), "{text}");
        }
    }
}
