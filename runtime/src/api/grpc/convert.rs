//! Between gRPC's messages and the one form in which guests get and give tensors: JSON with the tensors' bytes behind it.

use std::collections::HashMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::messages::{
    Choice, InferParameter, InferTensor, InferTensorContents, ModelInferRequest, ModelInferResponse,
};
use crate::api::open_inference::json_length;
use crate::error::{ApiError, ErrorCode};

/// A request as the guest will see it.
pub(super) struct GuestRequest {
    /// Where its JSON ends.
    pub(super) json_bytes: usize,
    pub(super) body: Vec<u8>,
}

#[derive(Serialize)]
struct Inference<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    parameters: Map<String, Value>,
    inputs: Vec<Tensor<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    outputs: Vec<Requested<'a>>,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: &'a [i64],
    parameters: Map<String, Value>,
}

#[derive(Serialize)]
struct Requested<'a> {
    name: &'a str,
    parameters: Map<String, Value>,
}

/// # Errors
/// 400 when the tensors' contents are not said once.
pub(super) fn to_guest(request: &ModelInferRequest) -> Result<GuestRequest, ApiError> {
    let contents = contents(request)?;
    let inputs = request.inputs.iter().zip(&contents).map(|(input, bytes)| Tensor {
        name: &input.name,
        datatype: &input.datatype,
        shape: &input.shape,
        parameters: with(&input.parameters, "binary_data_size", json!(bytes.len())),
    });
    let outputs = request.outputs.iter().map(|output| Requested {
        name: &output.name,
        parameters: with(&output.parameters, "binary_data", json!(true)),
    });
    let inference = Inference {
        id: &request.id,
        parameters: with(&request.parameters, "binary_data_output", json!(true)),
        inputs: inputs.collect(),
        outputs: outputs.collect(),
    };
    let mut body =
        serde_json::to_vec(&inference).map_err(|error| ApiError::internal("write a request for a guest", &error))?;
    let json_bytes = body.len();
    body.reserve_exact(contents.iter().map(Bytes::len).sum());
    contents.iter().for_each(|bytes| body.extend_from_slice(bytes));
    Ok(GuestRequest { json_bytes, body })
}

/// Parameters, and one that is ours to say.
fn with(parameters: &HashMap<String, InferParameter>, name: &str, value: Value) -> Map<String, Value> {
    let json = |parameter: &InferParameter| match &parameter.choice {
        None => Value::Null,
        Some(Choice::Bool(value)) => json!(value),
        Some(Choice::Int64(value)) => json!(value),
        Some(Choice::String(value)) => json!(value),
        Some(Choice::Double(value)) => json!(value),
        Some(Choice::Uint64(value)) => json!(value),
    };
    let mut values: Map<String, Value> = parameters.iter().map(|(name, value)| (name.clone(), json(value))).collect();
    values.insert(name.to_owned(), value);
    values
}

/// The bytes of each input.
fn contents(request: &ModelInferRequest) -> Result<Vec<Bytes>, ApiError> {
    let raw = &request.raw_input_contents;
    if raw.is_empty() {
        return request.inputs.iter().map(spelled_out).collect();
    }
    if let Some(input) = request.inputs.iter().find(|input| input.contents.is_some()) {
        return Err(invalid(format!(
            "input '{}' has 'contents' beside 'raw_input_contents'; send one of them",
            input.name
        )));
    }
    if raw.len() != request.inputs.len() {
        let (raw, inputs) = (raw.len(), request.inputs.len());
        return Err(invalid(format!("there are {inputs} inputs, but {raw} 'raw_input_contents'")));
    }
    Ok(raw.clone())
}

/// Typed contents as the bytes that they stand for.
fn spelled_out(input: &InferTensor) -> Result<Bytes, ApiError> {
    let none = InferTensorContents::default();
    let contents = input.contents.as_ref().unwrap_or(&none);
    let name = &input.name;
    /// Values as a narrower type.
    fn narrow<Wide: Copy + ToString, Narrow: TryFrom<Wide>, const BYTES: usize>(
        values: &[Wide],
        datatype: &str,
        to_bytes: fn(Narrow) -> [u8; BYTES],
    ) -> Result<Vec<u8>, ApiError> {
        let convert = |value: &Wide| {
            let narrowed = Narrow::try_from(*value).map(to_bytes);
            narrowed.map_err(|_| invalid(format!("{} is out of range for {datatype}", value.to_string())))
        };
        Ok(values.iter().map(convert).collect::<Result<Vec<_>, _>>()?.concat())
    }
    let bytes = match input.datatype.as_str() {
        "BOOL" => contents.bools.iter().map(|value| u8::from(*value)).collect(),
        "INT8" => narrow(&contents.ints, "INT8", i8::to_le_bytes)?,
        "INT16" => narrow(&contents.ints, "INT16", i16::to_le_bytes)?,
        "INT32" => narrow(&contents.ints, "INT32", i32::to_le_bytes)?,
        "INT64" => narrow(&contents.int64s, "INT64", i64::to_le_bytes)?,
        "UINT8" => narrow(&contents.uints, "UINT8", u8::to_le_bytes)?,
        "UINT16" => narrow(&contents.uints, "UINT16", u16::to_le_bytes)?,
        "UINT32" => narrow(&contents.uints, "UINT32", u32::to_le_bytes)?,
        "UINT64" => narrow(&contents.uint64s, "UINT64", u64::to_le_bytes)?,
        "FP32" => narrow(&contents.fp32s, "FP32", f32::to_le_bytes)?,
        "FP64" => narrow(&contents.fp64s, "FP64", f64::to_le_bytes)?,
        "BYTES" => length_prefixed(&contents.bytes, name)?,
        other => {
            return Err(invalid(format!("input '{name}' is {other}: send it in 'raw_input_contents'")));
        }
    };
    Ok(bytes.into())
}

fn length_prefixed(elements: &[Bytes], name: &str) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::with_capacity(elements.iter().map(|element| 4 + element.len()).sum());
    for element in elements {
        let length = u32::try_from(element.len());
        let length = length.map_err(|_| invalid(format!("an element of input '{name}' is too long")))?;
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(element);
    }
    Ok(bytes)
}

/// A guest's answer, as far as gRPC has a place for it.
#[derive(Deserialize)]
struct Inferred {
    #[serde(default)]
    model_name: String,
    #[serde(default)]
    model_version: String,
    #[serde(default)]
    id: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// # Errors
/// 400 when the guest did not answer in the form that it was asked for: another call would end as this one.
pub(super) fn from_guest(content_type: &str, body: &Bytes) -> Result<ModelInferResponse, ApiError> {
    let unusable = |why: String| {
        ApiError::new(ErrorCode::BadRequest, format!("The model's component answered what gRPC cannot send: {why}."))
    };
    let length = json_length(content_type).unwrap_or(body.len());
    let (json, _) = body
        .split_at_checked(length)
        .ok_or_else(|| unusable(format!("its JSON has {length} bytes, its body {}", body.len())))?;
    let mut inferred: Inferred = serde_json::from_slice(json).map_err(|error| unusable(error.to_string()))?;
    let mut rest = body.slice(length..);
    let mut raw_output_contents = Vec::with_capacity(inferred.outputs.len());
    for output in &mut inferred.outputs {
        let size = output.parameters.remove("binary_data_size").and_then(|size| size.as_u64());
        let size = size.and_then(|size| usize::try_from(size).ok()).filter(|size| *size <= rest.len());
        let size = size.ok_or_else(|| unusable(format!("output '{}' does not lie behind the JSON", output.name)))?;
        raw_output_contents.push(rest.split_to(size));
    }
    let outputs = inferred.outputs.into_iter().map(|output| InferTensor {
        name: output.name,
        datatype: output.datatype,
        shape: output.shape,
        parameters: parameters(output.parameters),
        contents: None,
    });
    Ok(ModelInferResponse {
        model_name: inferred.model_name,
        model_version: inferred.model_version,
        id: inferred.id,
        parameters: parameters(inferred.parameters),
        outputs: outputs.collect(),
        raw_output_contents,
    })
}

fn parameters(values: Map<String, Value>) -> HashMap<String, InferParameter> {
    let choice = |value: Value| match value {
        Value::Bool(value) => Choice::Bool(value),
        Value::String(value) => Choice::String(value),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Choice::Int64(value),
            (None, Some(value)) => Choice::Uint64(value),
            (None, None) => Choice::Double(number.as_f64().unwrap_or(f64::NAN)),
        },
        other => Choice::String(other.to_string()),
    };
    values.into_iter().map(|(name, value)| (name, InferParameter { choice: Some(choice(value)) })).collect()
}

/// The text of an error that a guest answered by itself.
pub(super) fn error_text(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Failed {
        error: String,
    }
    match serde_json::from_slice::<Failed>(body) {
        Ok(failed) => failed.error,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    }
}

fn invalid(message: String) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(datatype: &str, contents: InferTensorContents) -> ModelInferRequest {
        let tensor = InferTensor {
            name: "x".to_owned(),
            datatype: datatype.to_owned(),
            shape: vec![2],
            parameters: HashMap::new(),
            contents: Some(contents),
        };
        ModelInferRequest { inputs: vec![tensor], ..ModelInferRequest::default() }
    }

    fn bytes_of(request: &ModelInferRequest) -> Vec<u8> {
        let guest = to_guest(request).unwrap();
        guest.body[guest.json_bytes..].to_vec()
    }

    #[test]
    fn typed_contents_become_bytes() {
        let none = InferTensorContents::default;
        for (datatype, contents, expected) in [
            ("BOOL", InferTensorContents { bools: vec![true, false], ..none() }, vec![1, 0]),
            ("INT8", InferTensorContents { ints: vec![-1, 2], ..none() }, vec![255, 2]),
            ("INT16", InferTensorContents { ints: vec![-2, 1], ..none() }, vec![254, 255, 1, 0]),
            ("INT32", InferTensorContents { ints: vec![1], ..none() }, vec![1, 0, 0, 0]),
            ("INT64", InferTensorContents { int64s: vec![-1], ..none() }, vec![255; 8]),
            ("UINT8", InferTensorContents { uints: vec![255], ..none() }, vec![255]),
            ("UINT16", InferTensorContents { uints: vec![256], ..none() }, vec![0, 1]),
            ("UINT32", InferTensorContents { uints: vec![u32::MAX], ..none() }, vec![255; 4]),
            ("UINT64", InferTensorContents { uint64s: vec![u64::MAX], ..none() }, vec![255; 8]),
            ("FP32", InferTensorContents { fp32s: vec![1.0], ..none() }, 1f32.to_le_bytes().to_vec()),
            ("FP64", InferTensorContents { fp64s: vec![1.0], ..none() }, 1f64.to_le_bytes().to_vec()),
            (
                "BYTES",
                InferTensorContents { bytes: vec!["ab".into(), "".into()], ..none() },
                b"\x02\0\0\0ab\0\0\0\0".to_vec(),
            ),
            // Of another type: the guest will say that they are too few.
            ("FP32", InferTensorContents { fp64s: vec![1.0], ..none() }, vec![]),
        ] {
            assert_eq!(bytes_of(&input(datatype, contents)), expected, "{datatype}");
        }
    }

    #[test]
    fn what_has_no_bytes_is_refused() {
        let contents = InferTensorContents { ints: vec![128], uints: vec![65536], ..InferTensorContents::default() };
        for (datatype, reason) in [
            ("INT8", "128 is out of range for INT8"),
            ("UINT16", "65536 is out of range for UINT16"),
            ("FP16", "input 'x' is FP16: send it in 'raw_input_contents'"),
            ("nonsense", "send it in 'raw_input_contents'"),
        ] {
            let error = to_guest(&input(datatype, contents.clone())).err().unwrap();
            assert!(error.message.contains(reason), "{error}");
        }
        let mut both = input("INT32", contents);
        both.raw_input_contents.push(Bytes::from_static(b"1234"));
        assert!(to_guest(&both).err().unwrap().message.contains("send one of them"));
        both.inputs[0].contents = None;
        both.raw_input_contents.push(Bytes::from_static(b"1234"));
        assert!(to_guest(&both).err().unwrap().message.contains("there are 1 inputs, but 2"));
    }

    #[test]
    fn a_request_is_json_with_its_tensors_behind_it() {
        let parameter = |choice| InferParameter { choice: Some(choice) };
        let mut request = input("INT32", InferTensorContents::default());
        request.inputs[0].contents = None;
        request.id = "7".to_owned();
        request.parameters =
            HashMap::from([("binary_data_output".to_owned(), parameter(Choice::String("mine".to_owned())))]);
        request.inputs[0].parameters = HashMap::from([("k".to_owned(), parameter(Choice::Int64(3)))]);
        request.outputs =
            vec![super::super::messages::RequestedOutput { name: "y".into(), parameters: HashMap::new() }];
        request.raw_input_contents = vec![Bytes::from_static(b"12345678")];
        let guest = to_guest(&request).unwrap();
        let (json, tensors) = guest.body.split_at(guest.json_bytes);
        let expected = json!({
            "id": "7",
            "parameters": { "binary_data_output": true },
            "inputs": [{
                "name": "x", "datatype": "INT32", "shape": [2], "parameters": { "k": 3, "binary_data_size": 8 },
            }],
            "outputs": [{ "name": "y", "parameters": { "binary_data": true } }],
        });
        assert_eq!(serde_json::from_slice::<Value>(json).unwrap(), expected);
        assert_eq!(tensors, b"12345678");
    }

    fn answered(json: &str, tensors: &[u8]) -> Result<ModelInferResponse, ApiError> {
        let content_type = format!("application/octet-stream; inference-header-content-length={}", json.len());
        from_guest(&content_type, &Bytes::from([json.as_bytes(), tensors].concat()))
    }

    #[test]
    fn an_answer_keeps_its_tensors_as_they_are() {
        let json = r#"{"model_name": "m", "model_version": "2", "id": "7", "parameters": {"a": 1.5}, "outputs": [
            {"name": "y", "datatype": "INT8", "shape": [1, 2], "parameters": {"binary_data_size": 2, "b": "c"}},
            {"name": "z", "datatype": "INT8", "shape": [0], "parameters": {"binary_data_size": 0}}]}"#;
        let response = answered(json, b"\x01\x02").unwrap();
        assert_eq!((&*response.model_name, &*response.model_version, &*response.id), ("m", "2", "7"));
        assert_eq!(response.raw_output_contents, [&b"\x01\x02"[..], b""]);
        assert_eq!((&*response.outputs[0].name, &response.outputs[0].shape[..]), ("y", &[1, 2][..]));
        assert_eq!(response.outputs[0].parameters.len(), 1);
        assert_eq!(response.parameters["a"].choice, Some(Choice::Double(1.5)));
    }

    #[test]
    fn an_answer_in_another_form_is_an_error() {
        for (json, reason) in [
            ("{}", "missing field `outputs`"),
            (
                r#"{"outputs": [{"name": "y", "datatype": "INT8", "shape": [1], "data": [1]}]}"#,
                "'y' does not lie behind",
            ),
            (
                r#"{"outputs": [{"name": "y", "datatype": "INT8", "shape": [1], "parameters": {"binary_data_size": 9}}]}"#,
                "'y' does not lie behind the JSON",
            ),
        ] {
            let error = answered(json, b"\x01").err().unwrap();
            assert!(error.message.contains(reason), "{error}");
        }
        let body = Bytes::from_static(b"{}");
        let error = from_guest("application/octet-stream; inference-header-content-length=9", &body).err().unwrap();
        assert!(error.message.contains("its JSON has 9 bytes, its body 2"), "{error}");
        assert_eq!(error_text(br#"{"error": "why"}"#), "why");
        assert_eq!(error_text(b"why"), "why");
    }
}
