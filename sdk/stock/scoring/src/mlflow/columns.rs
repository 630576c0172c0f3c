//! Signatures of columns: everything becomes a table, and every column the type that the signature gives it.

use super::Refusal;
use super::convert;
use super::dates;
use super::enforce;
use super::feed::Table;
use super::frame::{Frame, Label};
use super::nested::{self, Need};
use super::schema::{Column, ScalarType, Type};
use super::values::{Data, NAMES_MAX, Value, array_column};
use crate::json::Cell;
use crate::tensor::{Array, Dtype, Values};

/// What to read on when a table has been read: columns the signature wants and the table has not, and the reverse.
pub(crate) fn missing_message(required: &[&str], given: &[Label<'_>], known: impl Fn(&str) -> bool) -> Option<String> {
    let is_given = |name: &&&str| !given.contains(&Label::Name(name));
    let missing: Vec<String> = required.iter().filter(is_given).map(|name| format!("'{name}'")).collect();
    if missing.is_empty() {
        return None;
    }
    // Enough to see the mistake; the caller knows the rest.
    const EXTRAS_SHOWN_MAX: usize = 50;
    let is_extra = |label: &&Label<'_>| !matches!(label, Label::Name(name) if known(name));
    let extra: Vec<String> = given.iter().filter(is_extra).take(EXTRAS_SHOWN_MAX).map(Label::to_string).collect();
    let mut message = format!("Model is missing inputs [{}].", missing.join(", "));
    if !extra.is_empty() {
        message.push_str(&format!(" Note that there were extra inputs: [{}].", extra.join(", ")));
    }
    Some(message)
}

/// The columns of a DataFrame in the order and types of the signature: both stages of MLflow's checks.
pub(crate) fn from_frame<'j>(frame: &Frame<'j>, columns: &'j [Column]) -> Result<Table<'j>, Refusal> {
    let named = is_named(columns);
    let mut found = Vec::with_capacity(columns.len());
    for (place, column) in columns.iter().enumerate() {
        let position = match &column.name {
            Some(name) => frame.position(name, place),
            None => Some(place).filter(|place| *place < frame.labels.len()),
        };
        if let Some(position) = position {
            let label = if let Some(name) = &column.name { Label::Name(name) } else { Label::Number(place as i64) };
            let array =
                cast(frame, position, column).map_err(|reason| failed_conversion(frame, position, column, &reason))?;
            found.push((label, position, array));
        }
    }
    if found.len() < columns.len() {
        check_presence(columns, named, &frame.labels)?;
    }
    let mut table = Table { rows: frame.rows, columns: Vec::with_capacity(found.len()) };
    for (label, position, array) in found {
        // Names are looked for twice only if the table has more columns than the signature.
        if frame.labels.len() > columns.len() && frame.is_repeated(position) {
            return Err(Refusal::Schema(format!("the input column {label} is given more than once")));
        }
        if array.dtype == Dtype::Datetime && frame.column(position).any(has_zone) {
            return Err(Refusal::Schema(
                "Please ensure that the input data of datetime column only contains timezone-naive datetime objects."
                    .to_owned(),
            ));
        }
        table.columns.push((label, array));
    }
    Ok(table)
}

/// The same table row by row, for the commonest of all: the signature has doubles alone, and the body gives floats in its
/// order. None for every other. Nothing is converted, so that no column need be made of it.
pub(crate) fn rows_from_frame(frame: &Frame<'_>, columns: &[Column]) -> Option<Array> {
    let is_in_place = |(column, label): (&Column, &Label<'_>)| {
        column.ty == Type::Scalar(ScalarType::Double)
            && column.name.as_deref().is_none_or(|name| *label == Label::Name(name))
    };
    if frame.labels.len() != columns.len() || !columns.iter().zip(&frame.labels).all(is_in_place) {
        return None;
    }
    let values = Values::Floats(frame.floats()?);
    Some(Array { dtype: Dtype::Float64, shape: vec![frame.rows, columns.len()], values })
}

pub(crate) fn is_named(columns: &[Column]) -> bool {
    columns.first().is_some_and(|column| column.name.is_some())
}

pub(crate) fn check_presence(columns: &[Column], named: bool, given: &[Label<'_>]) -> Result<(), Refusal> {
    if !named {
        if given.len() >= columns.len() {
            return Ok(());
        }
        return Err(Refusal::Schema(format!(
            "Model inference is missing inputs. The model signature declares {} inputs  but the provided value only has {} \
             inputs. Note: the inputs were not named in the signature so we can only verify their count.",
            columns.len(),
            given.len()
        )));
    }
    let required: Vec<&str> =
        columns.iter().filter(|column| column.required).filter_map(|column| column.name.as_deref()).collect();
    let known = |name: &str| columns.iter().any(|column| column.name.as_deref() == Some(name));
    missing_message(&required, given, known).map_or(Ok(()), |message| Err(Refusal::Schema(message)))
}

fn failed_conversion(frame: &Frame<'_>, position: usize, column: &Column, reason: &str) -> Refusal {
    let ty = match &column.ty {
        Type::Scalar(ScalarType::String | ScalarType::Binary) => "<class 'object'>".to_owned(),
        Type::Scalar(scalar) => scalar.dtype().name().to_owned(),
        nested => nested.to_string(),
    };
    let name = frame.labels.get(position).map_or(String::new(), |label| match label {
        Label::Name(name) => (*name).to_owned(),
        Label::Number(number) => number.to_string(),
    });
    Refusal::Invalid(conversion_message(&name, &ty, reason))
}

/// MLflow's `MlflowFailedTypeConversion`.
pub(crate) fn conversion_message(name: &str, ty: &str, reason: &str) -> String {
    format!(
        "Data is not compatible with model signature. Failed to convert column {name} to type '{ty}'. Error: '{reason}'"
    )
}

/// Stage 1: lossy, as pandas' `astype`.
fn cast(frame: &Frame<'_>, position: usize, column: &Column) -> Result<Array, String> {
    let mut cells = frame.column(position);
    let opaque = |dtype| Array::column(dtype, Values::Opaque(frame.rows));
    match &column.ty {
        Type::Scalar(ScalarType::String) => Ok(Array::column(Dtype::Text, convert::texts(cells))),
        Type::Scalar(ScalarType::Binary) => cells.try_for_each(check_base64).map(|()| opaque(Dtype::Bytes)),
        Type::Scalar(ScalarType::Datetime) => check_dates(cells).map(|()| opaque(Dtype::Datetime)),
        Type::Scalar(scalar) => convert::cast(cells, scalar.dtype()),
        Type::Any => Ok(convert::inferred(cells)),
        nested => {
            let need = Need::new(column.required);
            cells.try_for_each(|cell| nested::check(cell, nested, need)).map(|()| opaque(Dtype::Object))
        }
    }
}

/// `base64.decodebytes`: letters outside the alphabet are skipped, but the length must come out even.
fn check_base64(cell: Cell<'_>) -> Result<(), String> {
    let Cell::Text(text) = cell else { return Err("encoding without a string argument".to_owned()) };
    let (mut letters, mut padding) = (0usize, 0usize);
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => {
                letters += 1;
                padding = 0;
            }
            b'=' => {
                padding += 1;
                if letters % 4 >= 2 && letters % 4 + padding >= 4 {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
    match letters % 4 {
        0 => Ok(()),
        1 => Err(format!(
            "Invalid base64-encoded string: number of data characters ({letters}) cannot be 1 more than a multiple of 4"
        )),
        _ => Err("Incorrect padding".to_owned()),
    }
}

/// `pd.to_datetime`: all texts of a column in the form of the first.
fn check_dates<'j>(cells: impl Iterator<Item = Cell<'j>>) -> Result<(), String> {
    let mut expected = None;
    for cell in cells {
        match cell {
            Cell::Null | Cell::Missing | Cell::Int(_) | Cell::Float(_) | Cell::Text("") => {}
            Cell::Text(text) => {
                let Some(form) = dates::form(text) else {
                    let shown = convert::excerpt(text);
                    return Err(format!("Unknown datetime string format, unable to parse: {shown}"));
                };
                if *expected.get_or_insert(form) != form {
                    return Err(format!("time data \"{text}\" doesn't match the form of the dates before it"));
                }
            }
            other => return Err(format!("<class '{}'> is not convertible to datetime", other.python_type())),
        }
    }
    Ok(())
}

fn has_zone(cell: Cell<'_>) -> bool {
    matches!(cell, Cell::Text(text) if dates::form(text).is_some_and(|form| form.zone))
}

/// One column of a DataFrame that MLflow makes of something else.
enum Series<'j> {
    Array(Array),
    /// Arrays as cells: fit for no type but text.
    Arrays(usize),
    Cells(Vec<Cell<'j>>),
}

/// A DataFrame made of `inputs` or `instances`, with the signature enforced: stage 2 only.
pub(crate) fn from_data<'j>(data: Data<'j>, columns: &'j [Column]) -> Result<Table<'j>, Refusal> {
    let (rows, series) = series_of(data, columns).map_err(Refusal::Schema)?;
    let given: Vec<Label<'_>> = series.iter().map(|(label, _)| *label).collect();
    let named = is_named(columns);
    check_presence(columns, named, &given)?;
    let mut found: Vec<Option<Series<'j>>> = series.into_iter().map(|(_, series)| Some(series)).collect();
    let mut table = Table { rows, columns: Vec::with_capacity(columns.len()) };
    for (place, column) in columns.iter().enumerate() {
        let label = match &column.name {
            Some(name) => Label::Name(name),
            None => given.get(place).copied().unwrap_or(Label::Number(place as i64)),
        };
        let position = if named { given.iter().position(|other| *other == label) } else { Some(place) };
        if let Some(series) = position.and_then(|position| found.get_mut(position)).and_then(Option::take) {
            let name = column.name.clone().unwrap_or_else(|| place.to_string());
            table.columns.push((label, enforced(&name, series, column).map_err(Refusal::Schema)?));
        }
    }
    Ok(table)
}

type NamedSeries<'j> = Vec<(Label<'j>, Series<'j>)>;

fn series_of<'j>(data: Data<'j>, columns: &[Column]) -> Result<(usize, NamedSeries<'j>), String> {
    match data {
        Data::One(value) => series_of_one(value),
        Data::ByName(values) => series_of_dict(values, columns),
        Data::Records(records) => series_of_records(records, columns),
    }
}

fn series_of_one<'j>(value: Value<'j>) -> Result<(usize, NamedSeries<'j>), String> {
    let array = match value {
        Value::Scalar(array) | Value::Array(array) => array,
        Value::Cell(cell) => return Ok((1, vec![(Label::Number(0), Series::Cells(vec![cell]))])),
    };
    match array.shape.as_slice() {
        [rows] => Ok((*rows, vec![(Label::Number(0), Series::Array(array))])),
        [rows, width] => {
            let column =
                |position| (Label::Number(position as i64), Series::Array(array_column(&array, position, *width)));
            Ok((*rows, (0..*width).map(column).collect()))
        }
        shape => Err(format!("Must pass 2-d input. shape={shape:?}")),
    }
}

fn series_of_dict<'j>(
    values: Vec<(&'j str, Value<'j>)>,
    columns: &[Column],
) -> Result<(usize, NamedSeries<'j>), String> {
    let is_row = columns.iter().any(|column| matches!(column.ty, Type::Array(_) | Type::Object(_)))
        || values.iter().all(|(_, value)| is_scalar_or_texts(value));
    if is_row {
        let series = values.into_iter().map(|(name, value)| (Label::Name(name), one_cell(value)));
        return Ok((1, series.collect()));
    }
    let failed = |reason: &str| {
        format!(
            "This model contains a column-based signature, which suggests a DataFrame input. There was an error casting \
             the input data to a DataFrame: {reason}"
        )
    };
    let mut rows = None;
    for (_, value) in &values {
        let length = match value {
            Value::Array(array) => array.shape.first().copied(),
            Value::Cell(Cell::List(list)) => Some(list.len()),
            Value::Cell(Cell::Object(_)) => return Err(failed("a dictionary is no column")),
            Value::Cell(_) | Value::Scalar(_) => None,
        };
        if length.is_some_and(|length| *rows.get_or_insert(length) != length) {
            return Err(failed("All arrays must be of the same length"));
        }
    }
    let rows = rows.ok_or_else(|| failed("If using all scalar values, you must pass an index"))?;
    let series = values.into_iter().enumerate().map(|(place, (name, value))| {
        let series = if is_wanted(name, place, columns) { spread(value, rows) } else { Series::Arrays(rows) };
        (Label::Name(name), series)
    });
    Ok((rows, series.collect()))
}

/// Whether the signature has a column of this name or, without names, one at this place. All others are kept by name
/// alone: as columns, single values beside a long list, or records that share no key, would grow with the square of the
/// body.
fn is_wanted(name: &str, place: usize, columns: &[Column]) -> bool {
    if is_named(columns) {
        columns.iter().any(|column| column.name.as_deref() == Some(name))
    } else {
        place < columns.len()
    }
}

fn is_scalar_or_texts(value: &Value<'_>) -> bool {
    match value {
        Value::Scalar(_) => true,
        Value::Array(_) => false,
        Value::Cell(Cell::List(list)) => list.iter().all(|item| matches!(item, Cell::Text(_))),
        Value::Cell(cell) => !matches!(cell, Cell::Object(_)),
    }
}

/// The value as the only cell of its column.
fn one_cell(value: Value<'_>) -> Series<'_> {
    match value {
        Value::Scalar(array) => Series::Array(array),
        Value::Array(_) => Series::Arrays(1),
        Value::Cell(cell) => Series::Cells(vec![cell]),
    }
}

/// The value as a column, repeated if it is single.
fn spread(value: Value<'_>, rows: usize) -> Series<'_> {
    let single = value.is_single();
    match value {
        Value::Scalar(array) | Value::Array(array) if single => Series::Array(repeat(&array, rows)),
        Value::Array(array) | Value::Scalar(array) if array.shape.len() == 1 => Series::Array(array),
        Value::Array(_) | Value::Scalar(_) => Series::Arrays(rows),
        Value::Cell(Cell::List(list)) => Series::Cells(list.iter().collect()),
        Value::Cell(cell) => Series::Cells(vec![cell; rows]),
    }
}

fn repeat(array: &Array, rows: usize) -> Array {
    let values = match &array.values {
        Values::Ints(values) => Values::Ints(values.iter().copied().cycle().take(rows).collect()),
        Values::Floats(values) => Values::Floats(values.iter().copied().cycle().take(rows).collect()),
        Values::Texts(values) => Values::Texts(values.iter().cloned().cycle().take(rows).collect()),
        Values::Opaque(_) => Values::Opaque(rows),
    };
    Array::column(array.dtype, values)
}

fn series_of_records<'j>(
    records: Vec<Vec<(&'j str, Value<'j>)>>,
    columns: &[Column],
) -> Result<(usize, NamedSeries<'j>), String> {
    let rows = records.len();
    let mut found: Vec<(&'j str, Vec<(usize, Value<'j>)>)> = Vec::new();
    for (row, record) in records.into_iter().enumerate() {
        for (position, (name, value)) in record.into_iter().enumerate() {
            let near = found.get(position).is_some_and(|(known, _)| *known == name).then_some(position);
            let place = near.or_else(|| found.iter().position(|(known, _)| *known == name));
            if place.is_none() && found.len() == NAMES_MAX {
                return Err(format!("record {row} is over the limit of {NAMES_MAX} names"));
            }
            match place.and_then(|place| found.get_mut(place)) {
                Some((_, values)) => values.push((row, value)),
                None => found.push((name, vec![(row, value)])),
            }
        }
    }
    let series = found.into_iter().enumerate().map(|(place, (name, values))| {
        let wanted = is_wanted(name, place, columns);
        (Label::Name(name), if wanted { column_of_records(values, rows) } else { Series::Arrays(rows) })
    });
    Ok((rows, series.collect()))
}

/// One key over all records; a record without it leaves a gap, for which numbers become double precision.
fn column_of_records<'j>(values: Vec<(usize, Value<'j>)>, rows: usize) -> Series<'j> {
    let gaps = values.len() < rows;
    if values.iter().all(|(_, value)| matches!(value, Value::Cell(_))) {
        let mut cells = vec![Cell::Missing; rows];
        for (row, value) in values {
            if let (Some(cell), Value::Cell(given)) = (cells.get_mut(row), value) {
                *cell = given;
            }
        }
        return Series::Cells(cells);
    }
    let mut dtype = Dtype::Object;
    let (mut ints, mut floats) = (Vec::with_capacity(rows), vec![f64::NAN; rows]);
    let mut texts = vec![None; rows];
    for (row, value) in &values {
        let Value::Scalar(array) = value else { return Series::Arrays(rows) };
        dtype = array.dtype;
        if let (Some(place), Values::Texts(text)) = (texts.get_mut(*row), &array.values) {
            *place = text.first().cloned().flatten();
        }
        let float = match &array.values {
            Values::Ints(values) => {
                ints.extend(values);
                values.first().map(|value| *value as f64)
            }
            Values::Floats(values) => values.first().copied(),
            Values::Texts(_) | Values::Opaque(_) => None,
        };
        if let (Some(place), Some(float)) = (floats.get_mut(*row), float) {
            *place = float;
        }
    }
    Series::Array(match (dtype, gaps) {
        (Dtype::Bool, true) => Array::column(Dtype::Object, Values::Opaque(rows)),
        (dtype, true) if dtype.integer().is_some() || dtype.is_float() => {
            Array::column(Dtype::Float64, Values::Floats(floats))
        }
        (dtype, false) if dtype.is_float() => Array::column(dtype, Values::Floats(floats)),
        (dtype, false) if dtype.integer().is_some() || dtype == Dtype::Bool => Array::column(dtype, Values::Ints(ints)),
        (Dtype::Text, _) => Array::column(Dtype::Text, Values::Texts(texts)),
        (dtype, _) => Array::column(dtype, Values::Opaque(rows)),
    })
}

fn enforced(name: &str, series: Series<'_>, column: &Column) -> Result<Array, String> {
    match (&column.ty, series) {
        (Type::Scalar(ty), Series::Array(array)) => enforce::enforce_array(name, array, *ty),
        (Type::Scalar(ty), Series::Cells(cells)) => enforce::enforce_cells(name, cells.iter().copied(), *ty),
        (Type::Scalar(ScalarType::String | ScalarType::Boolean), Series::Arrays(rows)) => {
            Ok(Array::column(Dtype::Object, Values::Opaque(rows)))
        }
        (Type::Scalar(_), Series::Arrays(_)) => Err("Invalid object type at position 0".to_owned()),
        (Type::Any, Series::Array(array)) => Ok(array),
        (Type::Any, Series::Cells(cells)) => Ok(convert::inferred(cells.iter().copied())),
        (nested, Series::Cells(cells)) => {
            let need = Need::new(column.required);
            cells.iter().try_for_each(|cell| nested::check(*cell, nested, need))?;
            Ok(Array::column(Dtype::Object, Values::Opaque(cells.len())))
        }
        // Checked when they were converted.
        (_, Series::Arrays(rows)) => Ok(Array::column(Dtype::Object, Values::Opaque(rows))),
        (nested, Series::Array(_)) => Err(format!("Expected data of type {nested}, got a column of scalars")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema::{Schema, Signature};
    use super::super::values;
    use super::*;
    use crate::json;

    #[test]
    fn single_values_are_repeated_only_for_columns_of_the_signature() {
        let schema = r#"[{"type": "double", "name": "a"}, {"type": "double", "name": "b"}]"#;
        let schema = Signature::parse(Some(schema), None).unwrap().inputs.unwrap();
        let Schema::Columns(columns) = &schema else { panic!("{schema}") };
        let body = json::parse(r#"{"a": [1.5, 2.5, 3.5], "x": 1, "b": 2.5, "y": 2.5}"#).unwrap();
        let data = values::inputs(body.cell(), Some(&schema)).unwrap();
        let (rows, series) = series_of(data, columns).unwrap();
        let repeated = |series: &Series<'_>| matches!(series, Series::Array(array) if array.values.len() == rows);
        let made: Vec<(Label<'_>, bool)> = series.iter().map(|(label, series)| (*label, repeated(series))).collect();
        assert_eq!(rows, 3);
        assert_eq!(made, [("a", true), ("x", false), ("b", true), ("y", false)].map(|(a, b)| (Label::Name(a), b)));
    }
}
