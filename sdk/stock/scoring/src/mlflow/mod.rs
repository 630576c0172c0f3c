//! The MLflow scoring protocol, as `mlflow models serve` speaks it for a model of the ONNX flavour.
//!
//! In request order: content type and body ([`csv`], [`crate::json`]) → the table or arrays they hold ([`frame`],
//! [`values`]) → the signature ([`columns`], [`tensors`], with the conversions of [`convert`] and the checks of
//! [`enforce`], [`nested`], [`dates`], [`params`]) → feeds for the graph and the predictions ([`feed`]), which differ for
//! graphs that stand for a model of another flavour ([`flavour`]).
//!
//! MLflow is faithful to numpy and pandas, and this to MLflow, lossy conversions included: a client must not see which of
//! the two answers. The comparison with the real server is `tests/python/mlflow_oracle.py`.

mod columns;
mod convert;
mod csv;
mod dates;
mod enforce;
mod feed;
mod flavour;
mod frame;
mod nested;
mod params;
mod schema;
mod tensors;
mod values;

use tessera_sdk::{Error, ErrorKind, GraphInfo, Response};

use self::csv::Csv;
use self::feed::{AnswerForm, ModelInput, Table};
pub(crate) use self::flavour::Flavour;
use self::frame::Frame;
pub(crate) use self::schema::Signature;
use self::schema::{Param, Schema};
use self::values::Data;
use crate::Compute;
use crate::json::{self, Cell, Object};
use crate::numbers::push_text;

const JSON: &str = "application/json";
const CSV: &str = "text/csv";

/// The fields that may hold the input: exactly one does.
const FIELDS: [&str; 4] = ["dataframe_split", "dataframe_records", "instances", "inputs"];

/// A request with one of these is meant for a language model: all of it is the input, and the answer has no wrapper.
const LANGUAGE_MODEL_FIELDS: [&str; 3] = ["messages", "prompt", "input"];

/// A request that MLflow refuses, by the error it raises.
#[derive(Debug, PartialEq)]
pub(crate) enum Refusal {
    /// 415, in plain text.
    MediaType(String),
    /// `MlflowInvalidInputException`: the body.
    Invalid(String),
    /// `BAD_REQUEST` with the message as it is.
    Bad(String),
    /// Schema enforcement failed.
    Schema(String),
    Params(String),
    /// The model does not take the input, which the signature let pass.
    Model(String),
}

/// What a call needs to know of the model.
pub(crate) struct Model<'m> {
    pub(crate) signature: &'m Signature,
    pub(crate) flavour: &'m Flavour,
    pub(crate) graph: &'m GraphInfo,
}

/// Answers one call of `invocations`.
pub(crate) fn invoke(
    model: &Model<'_>,
    content_type: &str,
    body: &[u8],
    compute: Compute<'_>,
) -> Result<Response, Error> {
    match predictions(model, content_type, body, compute) {
        Ok(body) => Ok(Response::bytes(JSON, body)),
        Err(Failure::Refused(refusal)) => Ok(refusal.response(model.signature.inputs.as_ref())),
        Err(Failure::Host(error)) => Err(error),
    }
}

enum Failure {
    Refused(Refusal),
    /// Not the request's fault: passed on, so that the host answers with the status of its kind.
    Host(Error),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.kind {
            ErrorKind::Timeout | ErrorKind::Unavailable | ErrorKind::TooLarge => Self::Host(error),
            _ => Self::Refused(Refusal::Model(error.message)),
        }
    }
}

fn predictions(model: &Model<'_>, content_type: &str, body: &[u8], compute: Compute<'_>) -> Result<Vec<u8>, Failure> {
    let media_type = check_content_type(content_type)?;
    let text = std::str::from_utf8(body).map_err(|error| not_utf8(media_type, error.valid_up_to()))?;
    if media_type == CSV {
        let csv = Csv::parse(text)?;
        let table = csv.table(model.signature.inputs.as_ref())?;
        return answer(ModelInput::Table(table), model, Wrapper::Predictions, compute);
    }
    let parsed = json::parse(text).map_err(|error| {
        let reason = format!("Ensure that input is a valid JSON formatted string. Error: 'JSONDecodeError('{error}')'");
        Refusal::Invalid(reason)
    })?;
    let Cell::Object(object) = parsed.cell() else { return Err(not_an_object(parsed.cell()).into()) };
    let wrapper = if LANGUAGE_MODEL_FIELDS.iter().any(|field| object.get(field).is_some()) {
        Wrapper::None
    } else {
        Wrapper::Predictions
    };
    let input = match wrapper {
        Wrapper::None => language_model_input(object, model.signature)?,
        Wrapper::Predictions => field_input(object, model)?,
    };
    answer(input, model, wrapper, compute)
}

/// Whether the predictions stand alone in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrapper {
    Predictions,
    None,
}

fn answer(
    input: ModelInput<'_>,
    model: &Model<'_>,
    wrapper: Wrapper,
    compute: Compute<'_>,
) -> Result<Vec<u8>, Failure> {
    let form = input.answer_form(model.flavour);
    let feeds = input.feeds(model.graph, model.flavour).map_err(Refusal::Model)?;
    let tensors = compute(&feeds)?;
    let outputs = feed::outputs(model.graph, &tensors)?;
    let mut body = Vec::with_capacity(body_bytes_hint(&outputs, form));
    if wrapper == Wrapper::Predictions {
        body.extend_from_slice(b"{\"predictions\":");
    }
    feed::push_predictions(&mut body, &outputs, form, model.flavour).map_err(Refusal::Model)?;
    if wrapper == Wrapper::Predictions {
        body.push(b'}');
    }
    Ok(body)
}

/// About what the answer takes, so that it is allocated once.
fn body_bytes_hint(outputs: &[crate::tensor::Output<'_>], form: AnswerForm) -> usize {
    const NUMBER_BYTES: usize = 24;
    let values = |output: &crate::tensor::Output<'_>| {
        let name = if form == AnswerForm::Records { output.name.len() } else { 0 };
        output.tensor.len().saturating_mul(NUMBER_BYTES + name)
    };
    outputs.iter().map(values).sum::<usize>().min(1 << 20) + 64
}

/// MLflow compares the type literally, and knows one parameter.
fn check_content_type(content_type: &str) -> Result<&str, Refusal> {
    let mut parts = content_type.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    let parameters: Vec<(&str, &str)> = parts.map(|part| part.split_once('=').unwrap_or((part, ""))).collect();
    let is_utf8 = |value: &str| value.eq_ignore_ascii_case("utf-8");
    if parameters.iter().any(|(name, value)| *name == "charset" && !is_utf8(value)) {
        return Err(Refusal::MediaType("The scoring server only supports UTF-8".to_owned()));
    }
    let unknown: Vec<&str> = parameters.iter().map(|(name, _)| *name).filter(|name| *name != "charset").collect();
    if !unknown.is_empty() {
        let unknown = unknown.join(", ");
        return Err(Refusal::MediaType(format!("Unrecognized content type parameters: {unknown}. {PROTOCOL_CHANGE}")));
    }
    if media_type == JSON || media_type == CSV {
        return Ok(media_type);
    }
    Err(Refusal::MediaType(format!(
        "This predictor only supports the following content types: Types: {SUPPORTED_TYPES}. Got '{content_type}'."
    )))
}

/// MLflow lists parquet, too; a reader of parquet would be larger than all else in this component.
const SUPPORTED_TYPES: &str = "['text/csv', 'application/json']";

/// MLflow's own words, by which clients recognise the error.
const PROTOCOL_CHANGE: &str = "IMPORTANT: The MLflow Model scoring protocol has changed in MLflow version 2.0. If you are seeing this error, you are \
     likely using an outdated scoring request format. To resolve the error, either update your request format or adjust \
     your MLflow Model's requirements file to specify an older version of MLflow (for example, change the 'mlflow' \
     requirement specifier to 'mlflow==1.30.0'). If you are making a request using the MLflow client (e.g. via \
     `mlflow.pyfunc.spark_udf()`), upgrade your MLflow client to a version >= 2.0 in order to use the new request format. \
     For more information about the updated MLflow Model scoring protocol in MLflow 2.0, see \
     https://mlflow.org/docs/latest/models.html#deploy-mlflow-models.";

fn required_format() -> String {
    let fields = FIELDS.map(|field| format!("'{field}'")).join(", ");
    format!("The input must be a JSON dictionary with exactly one of the input fields {{{fields}}}")
}

fn not_utf8(media_type: &str, offset: usize) -> Refusal {
    let expected = if media_type == CSV { "UTF-8 encoded" } else { "JSON formatted" };
    Refusal::Invalid(format!(
        "Ensure that input is a valid {expected} string. Error: 'UnicodeDecodeError: invalid byte in position {offset}'"
    ))
}

fn not_an_object(cell: Cell<'_>) -> Refusal {
    let received = match cell {
        Cell::List(_) => "Received a list.".to_owned(),
        other => format!("Received unexpected input type '<class '{}'>.", other.python_type()),
    };
    Refusal::Invalid(format!("{}. {received}", required_format()))
}

/// The input of a request with one of [`FIELDS`].
fn field_input<'j>(object: &'j Object<'j>, model: &Model<'j>) -> Result<ModelInput<'j>, Refusal> {
    let mut present = FIELDS.into_iter().filter_map(|field| Some((field, object.get(field)?)));
    let (Some((field, value)), None) = (present.next(), present.next()) else {
        // MLflow lists the fields that it knows, and leaves out all other keys.
        let given = FIELDS.iter().filter(|field| object.get(field).is_some()).map(|field| format!("'{field}'"));
        let given = given.collect::<Vec<_>>().join(", ");
        let message =
            format!("{}. Received dictionary with input fields: [{given}]. {PROTOCOL_CHANGE}", required_format());
        return Err(Refusal::Bad(message));
    };
    let schema = model.signature.inputs.as_ref();
    let input = match field {
        "dataframe_split" => from_frame(&split(value)?, model)?,
        "dataframe_records" => from_frame(&records(value)?, model)?,
        "instances" => from_data(values::instances(value, schema)?, schema)?,
        _ => from_data(values::inputs(value, schema)?, schema)?,
    };
    params::check(model.signature.params.as_deref(), object.get("params"))?;
    Ok(input)
}

fn split<'j>(value: Cell<'j>) -> Result<Frame<'j>, Refusal> {
    let Cell::Object(split) = value else {
        let kind = match value {
            Cell::List(_) => "list".to_owned(),
            other => format!("type <class '{}'>", other.python_type()),
        };
        return Err(Refusal::Invalid(format!("Dataframe split format must be a dictionary. Got {kind}.")));
    };
    let is_unknown = |key: &str| !matches!(key, "columns" | "data" | "index");
    if split.get("data").is_none() || split.keys().any(is_unknown) {
        let keys: Vec<String> = split.keys().take(20).map(|key| format!("'{}'", convert::excerpt(key))).collect();
        return Err(Refusal::Invalid(format!(
            "Dataframe split format must have 'data' field and optionally 'columns' and 'index' fields. Got {{{}}}.'",
            keys.join(", ")
        )));
    }
    Frame::from_split(split).map_err(|reason| not_a_frame("split", &reason))
}

fn records<'j>(value: Cell<'j>) -> Result<Frame<'j>, Refusal> {
    match value {
        Cell::List(rows) => Frame::from_list(rows, None).map_err(|reason| not_a_frame("records", &reason)),
        other => {
            let kind = match other {
                Cell::Object(_) => "dictionary".to_owned(),
                other => format!("type <class '{}'>", other.python_type()),
            };
            Err(Refusal::Invalid(format!("Dataframe records format must be a list of records. Got {kind}.")))
        }
    }
}

fn not_a_frame(form: &str, reason: &str) -> Refusal {
    Refusal::Invalid(format!(
        "Provided dataframe_{form} field is not a valid dataframe representation in '{form}' format. Error: '{reason}'"
    ))
}

fn from_frame<'j>(frame: &Frame<'j>, model: &Model<'j>) -> Result<ModelInput<'j>, Refusal> {
    match model.signature.inputs.as_ref() {
        Some(Schema::Columns(schema)) => {
            let rows = || columns::rows_from_frame(frame, schema);
            match model.flavour.takes_whole_tables(model.graph).then(rows).flatten() {
                Some(rows) => Ok(ModelInput::Rows(rows)),
                None => columns::from_frame(frame, schema).map(ModelInput::Table),
            }
        }
        Some(Schema::Tensors(schema)) => tensors::from_frame(frame, schema),
        None => {
            let column = |(position, label)| (label, convert::inferred(frame.column(position)));
            let columns = frame.labels.iter().copied().enumerate().map(column).collect();
            Ok(ModelInput::Table(Table { rows: frame.rows, columns }))
        }
    }
}

fn from_data<'j>(data: Data<'j>, schema: Option<&'j Schema>) -> Result<ModelInput<'j>, Refusal> {
    match schema {
        Some(Schema::Columns(schema)) => columns::from_data(data, schema).map(ModelInput::Table),
        Some(Schema::Tensors(schema)) => tensors::from_data(data, schema),
        None => Ok(without_signature(data)),
    }
}

/// Without a signature everything is passed on, and the model says whether it can use it.
fn without_signature(data: Data<'_>) -> ModelInput<'_> {
    let array = |value| match value {
        values::Value::Array(array) | values::Value::Scalar(array) => Some(array),
        values::Value::Cell(_) => None,
    };
    let input = match data {
        Data::One(value) => array(value).map(ModelInput::Array),
        Data::ByName(values) => {
            let arrays = values.into_iter().map(|(name, value)| Some((name, array(value)?)));
            arrays.collect::<Option<_>>().map(ModelInput::Arrays)
        }
        Data::Records(_) => None,
    };
    let reason = "Input should be a dictionary or a numpy array or a pandas.DataFrame, got 'list'";
    input.unwrap_or_else(|| ModelInput::Unfit(reason.to_owned()))
}

/// The whole body is the input, but for the keys that the signature knows as parameters.
fn language_model_input<'j>(object: &'j Object<'j>, signature: &'j Signature) -> Result<ModelInput<'j>, Refusal> {
    let params = signature.params.as_deref().unwrap_or_default();
    let param = |name: &str| params.iter().find(|param: &&Param| param.name == name);
    let data = values::unconverted(object.iter().filter(|(name, _)| param(name).is_none()));
    let input = from_data(data, signature.inputs.as_ref())?;
    params::check_each(object.iter().filter_map(|(name, value)| Some((param(name)?, value))))?;
    Ok(input)
}

impl Refusal {
    /// As MLflow renders the exception. It adds a stack trace to some; ours would tell nobody anything.
    fn response(self, schema: Option<&Schema>) -> Response {
        let bad_request = |message| error("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "KAM00", message);
        match self {
            Self::MediaType(message) => Response::bytes("text/plain", message).with_status(415),
            Self::Invalid(message) => bad_request(&format!("Invalid input. {message}")),
            Self::Bad(message) => bad_request(&message),
            Self::Schema(reason) => {
                let schema = schema.map(Schema::to_string).unwrap_or_default();
                // MLflow prints the data twice here. Who sent it knows it, and it may be large.
                let message = format!(
                    "Failed to predict data. \nError: Failed to enforce schema of data with schema '{schema}'. Error: {reason}"
                );
                error("INVALID_PARAMETER_VALUE", "SCHEMA_ENFORCEMENT_FAILED", "KAM01", &message)
            }
            Self::Params(reason) => {
                let message = format!("Failed to predict data. \nError: {reason}");
                error("INVALID_PARAMETER_VALUE", "INVALID_PARAMETER_VALUE", "KAM00", &message)
            }
            Self::Model(reason) => bad_request(&format!(
                "Encountered an unexpected error while evaluating the model. Verify that the serialized input Dataframe is \
                 compatible with the model for inference. Error: {reason}"
            )),
        }
    }
}

fn error(code: &str, class: &str, sqlstate: &str, message: &str) -> Response {
    let mut body = Vec::with_capacity(message.len() + 160);
    let mut push = |key: &str, value| {
        body.extend_from_slice(key.as_bytes());
        push_text(&mut body, value);
    };
    push("{\"error_code\":", code);
    push(",\"message\":", message);
    push(",\"sqlstate\":", sqlstate);
    push(",\"error_class\":", class);
    body.push(b'}');
    Response::bytes(JSON, body).with_status(400)
}
