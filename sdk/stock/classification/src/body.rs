//! Texts as MLflow's scoring protocol brings them: lists, columns, records, tables.

use serde::Deserialize;
use serde_json::{Map, Value};
use tessera_sdk::{Error, Request};

/// What the second text of a pair is called, in an object or a table.
const PAIR: &str = "text_pair";
const TEXT: &str = "text";

/// A request: its texts, and what it chose.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) texts: Vec<Text>,
    pub(crate) params: Map<String, Value>,
}

/// A text to classify; or a pair of them, of which the model judges what they have to do with each other.
#[derive(Debug, PartialEq)]
pub(crate) struct Text {
    pub(crate) text: String,
    pub(crate) pair: Option<String>,
}

/// Keys that are not listed are ignored, as MLflow does.
#[derive(Debug, Deserialize)]
struct Wire {
    inputs: Option<Value>,
    instances: Option<Value>,
    dataframe_split: Option<Split>,
    dataframe_records: Option<Vec<Value>>,
    params: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
struct Split {
    columns: Option<Vec<Value>>,
    data: Vec<Vec<Value>>,
}

impl Body {
    pub(crate) fn read(request: &Request) -> Result<Self, Error> {
        let media_type = request.media_type();
        if !matches!(media_type.as_str(), "application/json" | "") {
            return Err(Error::unsupported_media_type(format!(
                "texts to classify come as application/json, not {media_type}"
            )));
        }
        let wire: Wire = request.json()?;
        let texts = match (wire.inputs, wire.instances, wire.dataframe_split, wire.dataframe_records) {
            (Some(inputs), None, None, None) | (None, Some(inputs), None, None) => of_inputs(inputs)?,
            (None, None, Some(split), None) => of_split(split)?,
            (None, None, None, Some(records)) => rows(records)?,
            _ => {
                return Err(Error::invalid_input(
                    "give the texts under one of `inputs`, `instances`, `dataframe_split` and `dataframe_records`",
                ));
            }
        };
        if texts.is_empty() {
            return Err(Error::invalid_input("there is no text; give at least one"));
        }
        Ok(Self { texts, params: wire.params.unwrap_or_default() })
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self { text, pair: None }
    }
}

/// One text, a list of them, or columns.
fn of_inputs(inputs: Value) -> Result<Vec<Text>, Error> {
    match inputs {
        Value::Array(values) => rows(values),
        Value::Object(fields) if fields.values().all(Value::is_array) => of_columns(fields),
        one => Ok(vec![row(0, one)?]),
    }
}

fn rows(values: Vec<Value>) -> Result<Vec<Text>, Error> {
    values.into_iter().enumerate().map(|(place, value)| row(place, value)).collect()
}

/// A text, a list of this one, or an object with it, or with a pair.
fn row(place: usize, value: Value) -> Result<Text, Error> {
    match value {
        Value::String(text) => Ok(Text::from(text)),
        Value::Array(values) => match <[Value; 1]>::try_from(values) {
            Ok([Value::String(text)]) => Ok(Text::from(text)),
            Ok(_) => Err(no_text(place, "a list without a text")),
            Err(values) => Err(no_text(place, &format!("a list of {}", values.len()))),
        },
        Value::Object(fields) => of_fields(place, fields),
        Value::Null => Err(no_text(place, "null")),
        _ => Err(no_text(place, "a number or a boolean")),
    }
}

fn of_fields(place: usize, mut fields: Map<String, Value>) -> Result<Text, Error> {
    let pair = match fields.remove(PAIR) {
        None | Some(Value::Null) => None,
        Some(Value::String(pair)) => Some(pair),
        Some(_) => return Err(no_text(place, "one whose `text_pair` is no text")),
    };
    let names = fields.keys().cloned().collect::<Vec<_>>().join("`, `");
    let mut values = fields.into_iter();
    match (values.next(), values.next()) {
        // The one column of a table is the text, whatever its name. Beside a pair it must be the one that is meant.
        (Some((name, Value::String(text))), None) if pair.is_none() || name == TEXT => Ok(Text { text, pair }),
        _ => Err(no_text(place, &format!("an object with `{names}`"))),
    }
}

fn of_columns(fields: Map<String, Value>) -> Result<Vec<Text>, Error> {
    let rows_len = fields.values().filter_map(Value::as_array).map(Vec::len).max().unwrap_or(0);
    let mut records = vec![Map::new(); rows_len];
    for (name, values) in fields {
        let Value::Array(values) = values else { continue };
        if values.len() != rows_len {
            return Err(Error::invalid_input(format!(
                "column `{name}` has {} values, another {rows_len}",
                values.len()
            )));
        }
        for (record, value) in records.iter_mut().zip(values) {
            // A column of the shape [-1, 1].
            let value = match value {
                Value::Array(mut values) if values.len() == 1 => values.remove(0),
                value => value,
            };
            record.insert(name.clone(), value);
        }
    }
    records.into_iter().enumerate().map(|(place, fields)| of_fields(place, fields)).collect()
}

fn of_split(Split { columns, data }: Split) -> Result<Vec<Text>, Error> {
    let Some(columns) = columns else { return rows(data.into_iter().map(Value::Array).collect()) };
    let names: Vec<String> =
        columns.iter().map(|name| name.as_str().map_or_else(|| name.to_string(), str::to_owned)).collect();
    let record = |(place, values): (usize, Vec<Value>)| {
        if values.len() != names.len() {
            let (has, columns) = (values.len(), names.len());
            return Err(Error::invalid_input(format!("row {place} of `data` has {has} values for {columns} columns")));
        }
        of_fields(place, names.iter().cloned().zip(values).collect())
    };
    data.into_iter().enumerate().map(record).collect()
}

fn no_text(place: usize, what: &str) -> Error {
    Error::invalid_input(format!(
        "row {place} is {what}; a row is a text, or has one column of text, or the columns `text` and `text_pair`"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: &Value) -> Result<Vec<Text>, Error> {
        Body::read(&Request::new("invocations", "application/json", body.to_string())).map(|body| body.texts)
    }

    #[test]
    fn texts_come_in_all_forms_of_the_scoring_protocol() {
        let expected = [Text::from("a".to_owned()), Text::from("b".to_owned())];
        for body in [
            json!({"inputs": ["a", "b"]}),
            json!({"instances": ["a", "b"], "params": {}}),
            json!({"inputs": [["a"], ["b"]]}),
            json!({"inputs": {"review": ["a", "b"]}}),
            json!({"inputs": {"review": [["a"], ["b"]]}}),
            json!({"instances": [{"text": "a"}, {"text": "b"}]}),
            json!({"dataframe_split": {"columns": ["review"], "data": [["a"], ["b"]], "index": [0, 1]}}),
            json!({"dataframe_split": {"data": [["a"], ["b"]]}}),
            json!({"dataframe_split": {"columns": [0], "data": [["a"], ["b"]]}}),
            json!({"dataframe_records": [{"review": "a"}, {"review": "b"}]}),
            json!({"inputs": {"text": ["a", "b"], "text_pair": [null, null]}}),
        ] {
            assert_eq!(read(&body).unwrap(), expected, "{body}");
        }
        assert_eq!(read(&json!({"inputs": "a"})).unwrap(), expected[..1]);
        assert_eq!(read(&json!({"inputs": {"text": "a"}})).unwrap(), expected[..1]);
    }

    #[test]
    fn pairs_come_by_name() {
        let expected = [Text { text: "a".to_owned(), pair: Some("b".to_owned()) }];
        for body in [
            json!({"inputs": {"text": "a", "text_pair": "b"}}),
            json!({"inputs": [{"text_pair": "b", "text": "a"}]}),
            json!({"inputs": {"text": ["a"], "text_pair": ["b"]}}),
            json!({"dataframe_split": {"columns": ["text_pair", "text"], "data": [["b", "a"]]}}),
        ] {
            assert_eq!(read(&body).unwrap(), expected, "{body}");
        }
    }

    #[test]
    fn what_is_no_text_is_refused_with_its_row() {
        for (body, reason) in [
            (json!({}), "under one of `inputs`"),
            (json!({"inputs": ["a"], "instances": ["a"]}), "under one of `inputs`"),
            (json!({"inputs": []}), "there is no text"),
            (json!({"inputs": {}}), "there is no text"),
            (json!({"inputs": ["a", 1]}), "row 1 is a number or a boolean"),
            (json!({"inputs": [null]}), "row 0 is null"),
            (json!({"inputs": [["a", "b"]]}), "row 0 is a list of 2"),
            (json!({"inputs": [[1]]}), "row 0 is a list without a text"),
            (json!({"inputs": [{"a": "x", "b": "y"}]}), "row 0 is an object with `a`, `b`"),
            (json!({"inputs": [{"review": "x", "text_pair": "y"}]}), "row 0 is an object with `review`"),
            (json!({"inputs": [{"text": "x", "text_pair": 1}]}), "row 0 is one whose `text_pair` is no text"),
            (json!({"inputs": {"a": ["x"], "text_pair": []}}), "column `text_pair` has 0 values, another 1"),
            (json!({"dataframe_split": {"columns": ["a"], "data": [["x", "y"]]}}), "row 0 of `data` has 2 values"),
        ] {
            let error = read(&body).unwrap_err();
            assert!(error.message.contains(reason), "{body}: {error}");
        }
        let csv = Body::read(&Request::new("invocations", "text/csv", "text\na\n")).unwrap_err();
        assert!(csv.message.contains("come as application/json, not text/csv"), "{csv}");
    }
}
