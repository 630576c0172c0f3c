//! The Open Inference Protocol: texts are a tensor of type BYTES, and so is what tokenizing Triton models take.

use serde::Deserialize;
use serde_json::{Value, json};
use tessera_sdk::open_inference::{TensorBytes, bytes_elements};
use tessera_sdk::{Error, Request, Response};

/// The input of every model.
const INPUT: &str = "text";

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

/// What was asked: the texts, and which outputs are to be sent, and how.
#[derive(Debug)]
pub struct Asked {
    /// The elements of the input.
    pub texts: Vec<String>,
    id: Option<String>,
    /// By name: whether as bytes behind the JSON. All outputs, where none is named.
    requested: Vec<(String, bool)>,
}

/// A tensor of the answer.
#[derive(Debug)]
pub struct Output {
    name: &'static str,
    shape: Vec<usize>,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Fp32(Vec<f32>),
    Bytes(Vec<String>),
}

/// The model's metadata, under the name that clients know: that of the endpoint they called. An output is its name, its
/// datatype and its shape, where -1 is an axis of any length.
pub fn metadata(request: &Request, outputs: &[(&str, &str, &[i64])]) -> Result<Response, Error> {
    let output =
        |(name, datatype, shape): &(&str, &str, &[i64])| json!({ "name": name, "datatype": datatype, "shape": shape });
    Response::json(&json!({
        "name": request.endpoint(),
        "versions": [request.model_version()],
        "platform": "onnx",
        "inputs": [{ "name": INPUT, "datatype": "BYTES", "shape": [-1] }],
        "outputs": outputs.iter().map(output).collect::<Vec<Value>>(),
    }))
}

impl Asked {
    /// Reads a request for a model that gives `outputs`.
    pub fn read(request: &Request, outputs: &[&str]) -> Result<Asked, Error> {
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
        let requested: Vec<(String, bool)> = match inference.outputs.is_empty() {
            true => outputs.iter().map(|name| ((*name).to_owned(), usual)).collect(),
            false => {
                let all = inference.outputs.into_iter();
                all.map(|output| (output.name, output.parameters.binary_data.unwrap_or(usual))).collect()
            }
        };
        if let Some((name, _)) = requested.iter().find(|(name, _)| !outputs.contains(&name.as_str())) {
            let has = outputs.join("', '");
            return Err(Error::invalid_input(format!("this model gives the output '{has}', not '{name}'")));
        }
        Ok(Asked { texts, id: inference.id, requested })
    }

    /// Renders the answer: of `outputs` what was requested.
    pub fn respond(self, request: &Request, outputs: Vec<Output>) -> Result<Response, Error> {
        let mut rendered = Vec::new();
        let mut tensors = Vec::new();
        for (name, binary) in &self.requested {
            let Some(output) = outputs.iter().find(|output| output.name == name) else { continue };
            let (shape, data) = (&output.shape, &output.data);
            let mut described = json!({ "name": name, "datatype": data.datatype(), "shape": shape });
            if *binary {
                let bytes = data.bytes();
                described["parameters"] = json!({ "binary_data_size": bytes.len() });
                tensors.extend_from_slice(&bytes);
            } else {
                described["data"] = data.json();
            }
            rendered.push(described);
        }
        let names = (request.endpoint(), request.model_version());
        let mut body = json!({ "model_name": names.0, "model_version": names.1, "outputs": rendered });
        if let Some(id) = self.id {
            body["id"] = Value::from(id);
        }
        match self.requested.iter().any(|(_, binary)| *binary) {
            true => Ok(Response::inference(body.to_string().into_bytes(), &tensors)),
            false => Response::json(&body),
        }
    }
}

impl Output {
    /// A tensor of numbers.
    pub fn fp32(name: &'static str, shape: Vec<usize>, values: Vec<f32>) -> Self {
        Self { name, shape, data: Data::Fp32(values) }
    }

    /// A tensor of texts.
    pub fn bytes(name: &'static str, shape: Vec<usize>, texts: Vec<String>) -> Self {
        Self { name, shape, data: Data::Bytes(texts) }
    }
}

impl Data {
    fn datatype(&self) -> &'static str {
        match self {
            Self::Fp32(_) => "FP32",
            Self::Bytes(_) => "BYTES",
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Fp32(values) => json!(values),
            Self::Bytes(texts) => json!(texts),
        }
    }

    /// As they lie behind the JSON.
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Fp32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Bytes(texts) => {
                let element = |text: &String| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
                texts.iter().flat_map(element).collect()
            }
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
        Asked::read(&Request::new("v2/infer", content_type, body), &["label", "score"])
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
    fn tensors_go_in_both_forms() {
        let request = Request::new("v2/infer", "", "");
        let asked = |requested: &[(&str, bool)]| Asked {
            texts: vec![],
            id: Some("7".to_owned()),
            requested: requested.iter().map(|(name, binary)| ((*name).to_owned(), *binary)).collect(),
        };
        let outputs = || {
            let texts = vec!["ab".to_owned(), "€".to_owned()];
            vec![Output::bytes("label", vec![2], texts), Output::fp32("score", vec![2, 1], vec![1.0, -2.0])]
        };
        let response = asked(&[("label", false), ("score", false)]).respond(&request, outputs()).unwrap();
        let body: Value = serde_json::from_slice(response.parts().unwrap().2).unwrap();
        let label = json!({ "name": "label", "datatype": "BYTES", "shape": [2], "data": ["ab", "€"] });
        let score = json!({ "name": "score", "datatype": "FP32", "shape": [2, 1], "data": [1.0, -2.0] });
        assert_eq!(body, json!({ "model_name": "", "model_version": "", "id": "7", "outputs": [label, score] }));

        let response = asked(&[("score", true), ("label", true)]).respond(&request, outputs()).unwrap();
        let (_, content_type, body) = response.parts().unwrap();
        let request = Request::new("", content_type, body);
        let (json, mut tensors) = request.inference().unwrap();
        let body: Value = serde_json::from_slice(json).unwrap();
        assert_eq!(body["outputs"][0]["parameters"], json!({ "binary_data_size": 8 }));
        assert_eq!(tensors.take(8).unwrap(), [1f32.to_le_bytes(), (-2f32).to_le_bytes()].concat());
        assert_eq!(body["outputs"][1]["parameters"], json!({ "binary_data_size": 13 }));
        assert_eq!(tensors.take(13).unwrap(), TENSOR);
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
        assert!(binary(&other, b"").unwrap_err().message.contains("the output 'label', 'score', not 'z'"));
    }
}
