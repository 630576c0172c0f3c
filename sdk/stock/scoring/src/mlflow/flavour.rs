//! Graphs that stand for a model of another flavour: scikit-learn, XGBoost, LightGBM and the like, converted to ONNX.
//!
//! What MLflow's server answers for them differs from the ONNX flavour in three ways, each a setting of the package:
//!
//! - `predictions = "array"`: the answer is the array that the model's `predict` returns, without the output's name, and
//!   numbers of any type become what the graph takes, as numpy does it for such models;
//! - `labels`: a JSON list. The output's whole numbers are places in it: classes that are text, booleans or fractions;
//! - `categories`: a JSON object of columns, each `{"values": [text, …], "unknown": "allow" | "refuse"}`. The graph takes
//!   a text's place in `values`, and -1 for one that is not there, unless such are refused. What is no text is refused:
//!   models differ in what a gap means to them.

use std::collections::BTreeMap;

use tessera_sdk::{ElementType, GraphInfo, TensorInfo};

use super::convert::excerpt;
use crate::json::{self, Cell};
use crate::numbers::{push_nested_with, push_scalar, push_text};
use crate::tensor::{Array, Dtype, Output, Scalar, Values};

/// How a model answers and what it takes, beyond what its graph says.
#[derive(Debug, Default)]
pub(crate) struct Flavour {
    pub(crate) answer: Answer,
    /// Each label as it stands in an answer.
    labels: Option<Vec<Vec<u8>>>,
    categories: BTreeMap<String, Categories>,
}

/// What `predictions` holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Every output by its name, as MLflow's ONNX flavour answers.
    #[default]
    Outputs,
    /// The one output alone.
    Array,
}

/// The texts that a column may hold.
#[derive(Debug)]
struct Categories {
    codes: BTreeMap<String, i64>,
    unknown: Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unknown {
    Allow,
    Refuse,
}

/// The code of a text that is no category.
const UNKNOWN_CODE: i64 = -1;

impl Flavour {
    /// From the package's settings.
    pub(crate) fn parse(setting: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let answer = match setting("predictions").as_deref() {
            None => Answer::Outputs,
            Some("array") => Answer::Array,
            Some(other) => return Err(format!("setting 'predictions' is 'array' or absent, not '{}'", excerpt(other))),
        };
        let labels = setting("labels").map(|text| read("labels", &text, labels)).transpose()?;
        let categories = setting("categories").map(|text| read("categories", &text, categories)).transpose()?;
        Ok(Self { answer, labels, categories: categories.unwrap_or_default() })
    }

    /// Whether the graph takes a table as one array, as it is.
    pub(crate) fn takes_whole_tables(&self, graph: &GraphInfo) -> bool {
        matches!(graph.inputs.as_slice(), [input] if !self.has_categories(input))
    }

    pub(crate) fn has_categories(&self, input: &TensorInfo) -> bool {
        self.categories.contains_key(&input.name)
    }

    /// A column with its texts as codes, if it is one of categories.
    pub(crate) fn encoded(&self, input: &TensorInfo, column: &Array) -> Result<Array, String> {
        let Some(categories) = self.categories.get(&input.name) else { return Ok(column.clone()) };
        let Values::Texts(texts) = &column.values else {
            return Err(format!("column '{}' takes text, but the data is {}", input.name, column.dtype.name()));
        };
        let code = |text: &Option<String>| {
            let text = text.as_deref().ok_or_else(|| format!("column '{}' has a row without text", input.name))?;
            match categories.codes.get(text) {
                Some(code) => Ok(*code),
                None if categories.unknown == Unknown::Allow => Ok(UNKNOWN_CODE),
                None => Err(format!("Found unknown categories ['{}'] in column '{}'", excerpt(text), input.name)),
            }
        };
        Ok(Array::column(Dtype::Int64, Values::Ints(texts.iter().map(code).collect::<Result<_, _>>()?)))
    }

    /// Numbers as the graph takes them. The ONNX flavour passes on what it got, and the graph refuses it.
    pub(crate) fn suited(&self, input: &TensorInfo, array: Array) -> Array {
        let is_float =
            matches!(input.element, ElementType::Fp16 | ElementType::Bf16 | ElementType::Fp32 | ElementType::Fp64);
        match array.values {
            Values::Ints(_) | Values::Floats(_) if self.answer == Answer::Array && is_float => {
                let dtype = if input.element == ElementType::Fp16 { Dtype::Float16 } else { Dtype::Float64 };
                array.widen(dtype)
            }
            Values::Ints(_) if self.answer == Answer::Array && input.element == ElementType::I64 => {
                array.widen(Dtype::Int64)
            }
            _ => array,
        }
    }

    /// The output as the model's `predict` returns it.
    pub(crate) fn push_array(&self, out: &mut Vec<u8>, output: &Output<'_>) -> Result<(), String> {
        let Some(labels) = &self.labels else {
            push_nested_with(out, output, &push_scalar);
            return Ok(());
        };
        let label = |scalar| match scalar {
            Scalar::Int(place) => usize::try_from(place).ok().and_then(|place| labels.get(place)),
            Scalar::Bool(_) | Scalar::Float(_) => None,
        };
        if output.scalars().any(|scalar| label(scalar).is_none()) {
            return Err(format!("the output '{}' is no place in the {} labels", output.name, labels.len()));
        }
        push_nested_with(out, output, &|out, scalar| out.extend_from_slice(label(scalar).map_or(b"", Vec::as_slice)));
        Ok(())
    }
}

fn read<T>(name: &str, text: &str, parse: impl Fn(Cell<'_>) -> Option<T>) -> Result<T, String> {
    let failed = |reason: &str| format!("failed to read the setting '{name}': {reason}");
    let json = json::parse(text).map_err(|error| failed(&error.to_string()))?;
    parse(json.cell()).ok_or_else(|| failed("it has not the form that this component takes"))
}

fn labels(cell: Cell<'_>) -> Option<Vec<Vec<u8>>> {
    let Cell::List(list) = cell else { return None };
    let label = |cell| {
        let mut out = Vec::new();
        match cell {
            Cell::Text(text) => push_text(&mut out, text),
            Cell::Bool(value) => push_scalar(&mut out, Scalar::Bool(value)),
            Cell::Int(value) => push_scalar(&mut out, Scalar::Int(value)),
            Cell::Float(value) => push_scalar(&mut out, Scalar::Float(value)),
            _ => return None,
        }
        Some(out)
    };
    list.iter().map(label).collect()
}

fn categories(cell: Cell<'_>) -> Option<BTreeMap<String, Categories>> {
    let Cell::Object(columns) = cell else { return None };
    let column = |(name, cell): (&str, Cell<'_>)| {
        let Cell::Object(column) = cell else { return None };
        let Some(Cell::List(values)) = column.get("values") else { return None };
        let code = |(code, cell): (usize, Cell<'_>)| match cell {
            Cell::Text(text) => Some((text.to_owned(), i64::try_from(code).ok()?)),
            _ => None,
        };
        let unknown = match column.get("unknown") {
            Some(Cell::Text("allow")) => Unknown::Allow,
            Some(Cell::Text("refuse")) => Unknown::Refuse,
            _ => return None,
        };
        Some((
            name.to_owned(),
            Categories { codes: values.iter().enumerate().map(code).collect::<Option<_>>()?, unknown },
        ))
    };
    columns.iter().map(column).collect()
}

#[cfg(test)]
mod tests {
    use tessera_sdk::{Error, GraphInfo, Request, Tensor};

    use super::*;
    use crate::Scoring;
    use crate::mlflow::Signature;
    use crate::tensor::Feed;

    const SIGNATURE: &str = r#"[{"type": "string", "name": "city"}, {"type": "long", "name": "rooms"}]"#;
    const CATEGORIES: &str = r#"{"city": {"values": ["Bonn", "Köln"], "unknown": "refuse"}}"#;

    fn info(name: &str, element: ElementType) -> TensorInfo {
        TensorInfo { name: name.to_owned(), element, dimensions: vec![None, Some(1)] }
    }

    /// A graph of a text and a number, whose output is the code of the text.
    fn model(settings: &[(&str, &str)]) -> Scoring {
        let setting = |name: &str| settings.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Scoring {
            graph_name: "model".to_owned(),
            graph: GraphInfo {
                inputs: vec![info("city", ElementType::I64), info("rooms", ElementType::Fp64)],
                outputs: vec![info("label", ElementType::I64)],
            },
            signature: Signature::parse(Some(SIGNATURE), None).unwrap(),
            flavour: Flavour::parse(setting).unwrap(),
        }
    }

    fn answer(model: &Scoring, content_type: &str, body: &str) -> (u16, String) {
        let request = Request::new("invocations", content_type, body.as_bytes().to_vec());
        let compute = |feeds: &[Feed<'_>]| -> Result<Vec<Tensor<'static>>, Error> {
            let codes = feeds[0].tensor.as_slice::<i64>()?;
            assert_eq!(feeds[1].tensor.as_slice::<f64>()?.len(), codes.len());
            let dims = [codes.len() as u32];
            Ok(vec![Tensor::from_bytes(&dims, feeds[0].tensor.ty(), feeds[0].tensor.bytes().to_vec())?])
        };
        let response = model.answer(&request, &compute).unwrap();
        let (status, _, body) = response.parts().unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    const SPLIT: &str =
        r#"{"dataframe_split": {"columns": ["rooms", "city"], "data": [[2, "Köln"], [3, "Bonn"], [4, "Köln"]]}}"#;

    #[test]
    fn every_form_of_input_reaches_the_graph_as_codes_and_the_answer_is_the_label() {
        let model = model(&[("predictions", "array"), ("labels", r#"["a\"b", true]"#), ("categories", CATEGORIES)]);
        let expected = (200, r#"{"predictions":[true,"a\"b",true]}"#.to_owned());
        for body in [
            SPLIT,
            r#"{"dataframe_records": [{"city": "Köln", "rooms": 2}, {"city": "Bonn", "rooms": 3}, {"city": "Köln", "rooms": 4}]}"#,
            r#"{"instances": [{"city": "Köln", "rooms": 2}, {"city": "Bonn", "rooms": 3}, {"city": "Köln", "rooms": 4}]}"#,
            r#"{"inputs": [{"city": "Köln", "rooms": 2}, {"city": "Bonn", "rooms": 3}, {"city": "Köln", "rooms": 4}]}"#,
            r#"{"inputs": {"city": ["Köln", "Bonn", "Köln"], "rooms": [2, 3, 4]}}"#,
        ] {
            assert_eq!(answer(&model, "application/json", body), expected, "{body}");
        }
        assert_eq!(answer(&model, "text/csv", "city,rooms\nKöln,2\nBonn,3\nKöln,4\n"), expected);
    }

    #[test]
    fn a_text_that_is_no_category_is_refused_or_gets_a_code_of_its_own() {
        let body = r#"{"dataframe_split": {"columns": ["city", "rooms"], "data": [["Bonn", 1], ["Ulm", 1]]}}"#;
        let strict = model(&[("predictions", "array"), ("categories", CATEGORIES)]);
        let (status, text) = answer(&strict, "application/json", body);
        assert!(status == 400 && text.contains("unknown categories ['Ulm'] in column 'city'"), "{status} {text}");
        let lenient = CATEGORIES.replace("refuse", "allow");
        let lenient = model(&[("predictions", "array"), ("categories", &lenient)]);
        assert_eq!(answer(&lenient, "application/json", body), (200, r#"{"predictions":[0,-1]}"#.to_owned()));
        let (status, text) = answer(&lenient, "application/json", &body.replace(r#""Ulm""#, "null"));
        assert!(status == 400 && text.contains("column 'city' has a row without text"), "{status} {text}");
    }

    #[test]
    fn an_output_beyond_the_labels_is_an_error() {
        let model = model(&[("predictions", "array"), ("labels", r#"["one"]"#), ("categories", CATEGORIES)]);
        let (status, text) = answer(&model, "application/json", SPLIT);
        assert!(status == 400 && text.contains("no place in the 1 labels"), "{status} {text}");
    }

    #[test]
    fn settings_that_cannot_be_read_are_named() {
        for (name, value) in [
            ("predictions", "records"),
            ("labels", "{}"),
            ("labels", "[null]"),
            ("labels", "["),
            ("categories", r#"{"city": ["a"]}"#),
            ("categories", r#"{"city": {"values": [1], "unknown": "allow"}}"#),
            ("categories", r#"{"city": {"values": ["a"], "unknown": "maybe"}}"#),
        ] {
            let setting = |key: &str| (key == name).then(|| value.to_owned());
            let error = Flavour::parse(setting).unwrap_err();
            assert!(error.contains(&format!("'{name}'")), "{error}");
        }
    }
}
