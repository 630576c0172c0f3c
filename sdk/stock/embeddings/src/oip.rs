//! The Open Inference Protocol: texts are a tensor of type BYTES, and so is what tokenizing Triton models take.

use serde::Deserialize;
use serde_json::{Value, json};
use tessera_sdk::open_inference::{TensorBytes, bytes_elements};
use tessera_sdk::{Error, Request, Response};

const INPUT: &str = "text";
const OUTPUT: &str = "embedding";

/// How clients know the model: by the endpoint they called.
#[derive(Debug)]
pub(crate) struct Name {
    pub(crate) model: String,
    pub(crate) version: String,
}

/// The JSON of a request.
#[derive(Debug, Deserialize)]
struct Inference {
    id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Vec<Requested>,
}

#[derive(Debug, Deserialize)]
struct Input {
    name: String,
    datatype: String,
    shape: Vec<u32>,
    #[serde(default)]
    parameters: Parameters,
    data: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Requested {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// Those that have a meaning here.
#[derive(Debug, Default, Deserialize)]
struct Parameters {
    binary_data_output: Option<bool>,
    binary_data: Option<bool>,
    binary_data_size: Option<usize>,
}

/// What was asked: the texts, and how their vectors are to be sent.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) texts: Vec<String>,
    id: Option<String>,
    binary: bool,
}

/// The model's metadata; `width` is none where the graph does not say how long its vectors are.
pub(crate) fn metadata(name: &Name, width: Option<u32>) -> Result<Response, Error> {
    let width = width.map_or(-1, i64::from);
    Response::json(&json!({
        "name": name.model,
        "versions": [name.version],
        "platform": "onnx",
        "inputs": [{ "name": INPUT, "datatype": "BYTES", "shape": [-1] }],
        "outputs": [{ "name": OUTPUT, "datatype": "FP32", "shape": [-1, width] }],
    }))
}

impl Asked {
    pub(crate) fn read(request: &Request) -> Result<Asked, Error> {
        let (json, mut tensors) = request.inference()?;
        let inference: Inference = serde_json::from_slice(json)?;
        let [input] = inference.inputs.as_slice() else {
            let got = inference.inputs.len();
            return Err(Error::invalid_input(format!("this model takes one input, '{INPUT}', and got {got}")));
        };
        let texts = input.texts(&mut tensors)?;
        if !tensors.is_empty() {
            let left = tensors.len();
            return Err(Error::invalid_input(format!("{left} bytes are left behind the input's 'binary_data_size'")));
        }
        let usual = inference.parameters.binary_data_output.unwrap_or(false);
        let binary = match inference.outputs.as_slice() {
            [] => usual,
            [output] if output.name == OUTPUT => output.parameters.binary_data.unwrap_or(usual),
            [output, ..] => {
                let name = &output.name;
                return Err(Error::invalid_input(format!("this model gives one output, '{OUTPUT}', not '{name}'")));
            }
        };
        Ok(Asked { texts, id: inference.id, binary })
    }

    pub(crate) fn respond(self, name: &Name, vectors: &[Vec<f32>]) -> Result<Response, Error> {
        let values = vectors.concat();
        let width = values.len() / vectors.len().max(1);
        let mut output = json!({ "name": OUTPUT, "datatype": "FP32", "shape": [vectors.len(), width] });
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        match self.binary {
            true => output["parameters"] = json!({ "binary_data_size": bytes.len() }),
            false => output["data"] = Value::from(values),
        }
        let mut body = json!({ "model_name": name.model, "model_version": name.version, "outputs": [output] });
        if let Some(id) = self.id {
            body["id"] = Value::from(id);
        }
        match self.binary {
            true => Ok(Response::inference(body.to_string().into_bytes(), &bytes)),
            false => Response::json(&body),
        }
    }
}

impl Input {
    fn texts(&self, tensors: &mut TensorBytes<'_>) -> Result<Vec<String>, Error> {
        if self.name != INPUT || self.datatype != "BYTES" {
            let (name, datatype) = (&self.name, &self.datatype);
            return Err(Error::invalid_input(format!(
                "this model takes the input '{INPUT}' of type BYTES, not '{name}' of type {datatype}"
            )));
        }
        let texts = match self.parameters.binary_data_size {
            Some(size) => {
                let left = tensors.len();
                let bytes = tensors.take(size).ok_or_else(|| {
                    Error::invalid_input(format!(
                        "'binary_data_size' of input '{INPUT}' is {size}, but {left} bytes are left in the request"
                    ))
                })?;
                let text = |bytes: &[u8]| {
                    let text = String::from_utf8(bytes.to_vec());
                    text.map_err(|_| Error::invalid_input(format!("an element of input '{INPUT}' is not UTF-8")))
                };
                bytes_elements(bytes)?.into_iter().map(text).collect::<Result<Vec<String>, Error>>()?
            }
            None => self.data.clone().ok_or_else(|| {
                Error::invalid_input(format!("input '{INPUT}' has neither 'data' nor the parameter 'binary_data_size'"))
            })?,
        };
        let expected = self.shape.iter().try_fold(1u32, |size, axis| size.checked_mul(*axis));
        if expected != u32::try_from(texts.len()).ok() {
            let (shape, got) = (&self.shape, texts.len());
            return Err(Error::invalid_input(format!("input '{INPUT}' has the shape {shape:?}, but {got} elements")));
        }
        Ok(texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENSOR: &[u8] = b"\x02\0\0\0ab\x03\0\0\0\xe2\x82\xac";

    fn asked(content_type: &str, body: &[u8]) -> Result<Asked, Error> {
        Asked::read(&Request::new("v2/infer", content_type, body))
    }

    fn binary(json: &str, tensors: &[u8]) -> Result<Asked, Error> {
        let content_type = format!("application/octet-stream; inference-header-content-length={}", json.len());
        asked(&content_type, &[json.as_bytes(), tensors].concat())
    }

    fn inputs(parameters: &str) -> String {
        format!(r#"{{"id": "7", "inputs": [{{"name": "text", "datatype": "BYTES", "shape": [2, 1], {parameters}}}]}}"#)
    }

    #[test]
    fn texts_come_in_both_forms() {
        let json = inputs(r#""data": ["ab", "€"]"#);
        assert_eq!(asked("application/json", json.as_bytes()).unwrap().texts, ["ab", "€"]);
        let json = inputs(r#""parameters": {"binary_data_size": 13}"#);
        assert_eq!(binary(&json, TENSOR).unwrap().texts, ["ab", "€"]);
    }

    #[test]
    fn vectors_go_in_both_forms() {
        let name = Name { model: "m".to_owned(), version: "1".to_owned() };
        let vectors = [vec![1.0, -2.0], vec![0.5, 0.0]];
        let asked = |binary| Asked { texts: vec![], id: Some("7".to_owned()), binary };
        let response = asked(false).respond(&name, &vectors).unwrap();
        let body: Value = serde_json::from_slice(response.parts().unwrap().2).unwrap();
        let output = json!({ "name": "embedding", "datatype": "FP32", "shape": [2, 2], "data": [1.0, -2.0, 0.5, 0.0] });
        assert_eq!(body, json!({ "model_name": "m", "model_version": "1", "id": "7", "outputs": [output] }));

        let response = asked(true).respond(&name, &vectors).unwrap();
        let (_, content_type, body) = response.parts().unwrap();
        let request = Request::new("", content_type, body);
        let (json, mut tensors) = request.inference().unwrap();
        let body: Value = serde_json::from_slice(json).unwrap();
        assert_eq!(body["outputs"][0]["parameters"], json!({ "binary_data_size": 16 }));
        assert_eq!(tensors.take(8).unwrap(), [1f32.to_le_bytes(), (-2f32).to_le_bytes()].concat());
    }

    #[test]
    fn what_is_no_tensor_of_texts_is_refused() {
        let sized = |size: &str| inputs(&format!(r#""parameters": {{"binary_data_size": {size}}}"#));
        for (json, tensors, reason) in [
            (r#"{"inputs": []}"#.to_owned(), TENSOR, "takes one input, 'text', and got 0"),
            (inputs("\"x\": 1").replace("BYTES", "FP32"), b"", "not 'text' of type FP32"),
            (inputs("\"x\": 1"), b"", "has neither 'data' nor"),
            (inputs(r#""data": ["a"]"#), b"", "has the shape [2, 1], but 1 elements"),
            (inputs(r#""data": ["a", 1]"#), b"", "invalid type: integer `1`, expected a string"),
            (inputs(r#""data": []"#).replace("[2, 1]", "[4294967295, 4294967295]"), b"", "but 0 elements"),
            (sized("14"), TENSOR, "is 14, but 13 bytes are left"),
            (sized("12"), TENSOR, "an element says it has 3 bytes, but 2 are left"),
            (sized("6").replace("[2, 1]", "[1]"), TENSOR, "7 bytes are left behind"),
            (sized("-1"), TENSOR, "invalid value: integer `-1`"),
            (sized("13"), b"\x02\0\0\0ab\x03\0\0\0\xe2\x82\xff", "is not UTF-8"),
        ] {
            let error = binary(&json, tensors).unwrap_err();
            assert!(error.message.contains(reason), "{json}: {error}");
        }
        let other = inputs(r#""data": ["a", "b"]"#).replace("]}]}", "]}], \"outputs\": [{\"name\": \"z\"}]}");
        assert!(binary(&other, b"").unwrap_err().message.contains("one output, 'embedding', not 'z'"));
    }
}
