//! The Open Inference Protocol v2: the model's metadata, and inference on tensors, which come and go as JSON or as bytes
//! behind it.
//!
//! Errors are `{"error": "..."}` with 400, in the words of Triton, whose clients print them. Strict where MLflow is lossy:
//! a tensor states its type, so that a value of another one is a mistake.

mod read;

use tessera_sdk::{ElementType, Error, ErrorKind, GraphInfo, Request, Response, Tensor, TensorInfo};

use self::read::{Form, Inference};
use crate::numbers::{push_int, push_joined, push_scalar, push_text};
use crate::tensor::{Output, element_of};
use crate::{Compute, json};

/// What the metadata says the model is.
const PLATFORM: &str = "onnx";

/// What a model is called to its clients.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// The answer to `v2`: what the model takes and gives.
pub(crate) fn metadata(model: &Model, graph: &GraphInfo) -> Response {
    let mut body = Vec::with_capacity(512);
    body.extend_from_slice(b"{\"name\":");
    push_text(&mut body, &model.name);
    body.extend_from_slice(b",\"versions\":[");
    push_text(&mut body, &model.version);
    body.extend_from_slice(b"],\"platform\":");
    push_text(&mut body, PLATFORM);
    body.extend_from_slice(b",\"inputs\":[");
    push_joined(&mut body, &graph.inputs, push_tensor_metadata);
    body.extend_from_slice(b"],\"outputs\":[");
    push_joined(&mut body, &graph.outputs, push_tensor_metadata);
    body.extend_from_slice(b"]}");
    Response::bytes("application/json", body)
}

fn push_tensor_metadata(body: &mut Vec<u8>, info: &TensorInfo) {
    body.extend_from_slice(b"{\"name\":");
    push_text(body, &info.name);
    body.extend_from_slice(b",\"datatype\":");
    push_text(body, datatype(info.element));
    body.extend_from_slice(b",\"shape\":[");
    push_joined(body, &info.dimensions, |body, size| push_int(body, size.map_or(-1, i64::from)));
    body.extend_from_slice(b"]}");
}

/// The protocol's name of an element type.
pub(crate) fn datatype(element: ElementType) -> &'static str {
    match element {
        ElementType::Fp16 => "FP16",
        ElementType::Fp32 => "FP32",
        ElementType::Fp64 => "FP64",
        ElementType::Bf16 => "BF16",
        ElementType::U8 => "UINT8",
        ElementType::I32 => "INT32",
        ElementType::I64 => "INT64",
        ElementType::Bool => "BOOL",
        ElementType::Int8 => "INT8",
    }
}

/// A shape as the protocol writes it: `[-1,4]`.
pub(crate) fn shape_text(dimensions: &[Option<u32>]) -> String {
    let sizes: Vec<String> = dimensions.iter().map(|size| size.map_or("-1".into(), |size| size.to_string())).collect();
    format!("[{}]", sizes.join(","))
}

/// Answers one call of `v2/infer`.
pub(crate) fn infer(
    model: &Model,
    graph: &GraphInfo,
    request: &Request,
    compute: Compute<'_>,
) -> Result<Response, Error> {
    let refused = |message: &str| Ok(refusal(message));
    let (body, tensors) = match request.inference() {
        Ok(parts) => parts,
        Err(error) if error.kind == ErrorKind::InvalidInput => return refused(&error.message),
        Err(error) => return Err(error),
    };
    let parsed = match std::str::from_utf8(body)
        .map_err(|error| error.to_string())
        .and_then(|text| json::parse(text).map_err(|error| format!("failed to parse the request JSON buffer: {error}")))
    {
        Ok(parsed) => parsed,
        Err(message) => return refused(&message),
    };
    let inference = match Inference::read(parsed.cell(), tensors, model, graph) {
        Ok(inference) => inference,
        Err(message) => return refused(&message),
    };
    let outputs = match compute(&inference.feeds) {
        Ok(outputs) => outputs,
        Err(error) if matches!(error.kind, ErrorKind::InvalidInput | ErrorKind::Model) => {
            return refused(&error.message);
        }
        Err(error) => return Err(error),
    };
    Ok(answer(model, graph, &inference, &outputs))
}

fn refusal(message: &str) -> Response {
    let mut body = b"{\"error\":".to_vec();
    push_text(&mut body, message);
    body.push(b'}');
    Response::bytes("application/json", body).with_status(400)
}

fn answer(model: &Model, graph: &GraphInfo, inference: &Inference<'_>, outputs: &[Tensor<'static>]) -> Response {
    let mut body = Vec::with_capacity(256);
    body.extend_from_slice(b"{\"model_name\":");
    push_text(&mut body, &model.name);
    body.extend_from_slice(b",\"model_version\":");
    push_text(&mut body, &model.version);
    if let Some(id) = inference.id {
        body.extend_from_slice(b",\"id\":");
        push_text(&mut body, id);
    }
    body.extend_from_slice(b",\"outputs\":[");
    let requested = || {
        let found = inference.outputs.iter();
        found.filter_map(|(at, form)| Some((graph.outputs.get(*at)?, outputs.get(*at)?, *form)))
    };
    push_joined(&mut body, requested(), push_output);
    body.extend_from_slice(b"]}");
    let binary = requested().filter(|(_, _, form)| *form == Form::Binary);
    if binary.clone().next().is_none() {
        return Response::bytes("application/json", body);
    }
    let tensors: Vec<&[u8]> = binary.map(|(_, tensor, _)| tensor.bytes()).collect();
    Response::inference(body, &tensors.concat())
}

fn push_output(body: &mut Vec<u8>, (info, tensor, form): (&TensorInfo, &Tensor<'static>, Form)) {
    let element = element_of(info, tensor.ty());
    body.extend_from_slice(b"{\"name\":");
    push_text(body, &info.name);
    body.extend_from_slice(b",\"datatype\":");
    push_text(body, datatype(element));
    body.extend_from_slice(b",\"shape\":[");
    push_joined(body, tensor.dims(), |body, size| push_int(body, i64::from(*size)));
    match form {
        Form::Json => {
            body.extend_from_slice(b"],\"data\":[");
            push_joined(body, Output { name: &info.name, element, tensor }.scalars(), push_scalar);
            body.extend_from_slice(b"]}");
        }
        Form::Binary => {
            body.extend_from_slice(b"],\"parameters\":{\"binary_data_size\":");
            push_int(body, tensor.bytes().len() as i64);
            body.extend_from_slice(b"}}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Feed;

    fn graph() -> GraphInfo {
        let info = |name: &str, element, dimensions: &[Option<u32>]| TensorInfo {
            name: name.to_owned(),
            element,
            dimensions: dimensions.to_vec(),
        };
        GraphInfo {
            inputs: vec![
                info("x", ElementType::Fp32, &[None, Some(2)]),
                info("mask", ElementType::Bool, &[None]),
                info("ids", ElementType::I64, &[None]),
            ],
            outputs: vec![info("y", ElementType::Fp32, &[None, Some(2)]), info("kept", ElementType::Bool, &[None])],
        }
    }

    /// Echoes `x` and `mask`.
    fn call(body: &str) -> (u16, String) {
        let (status, _, body) = call_with("application/json", body.as_bytes());
        (status, String::from_utf8(body).unwrap())
    }

    fn call_with(content_type: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let model = Model { name: "m".to_owned(), version: "3".to_owned() };
        let echo = |feeds: &[Feed<'_>]| Ok(feeds.iter().take(2).map(|feed| feed.tensor.clone().into_owned()).collect());
        let response = infer(&model, &graph(), &Request::new("v2/infer", content_type, body), &echo).unwrap();
        let (status, content_type, body) = response.parts().unwrap();
        (status, content_type.to_owned(), body.to_vec())
    }

    /// JSON with tensors behind it.
    fn binary(json: &str, tensors: &[u8]) -> (u16, String, Vec<u8>) {
        let content_type = format!("application/octet-stream; inference-header-content-length={}", json.len());
        call_with(&content_type, &[json.as_bytes(), tensors].concat())
    }

    const X: &str = r#"{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1.5, 2, 3, 1e-5]}"#;
    const MASK: &str = r#"{"name": "mask", "shape": [2], "datatype": "BOOL", "data": [true, false]}"#;
    const IDS: &str = r#"{"name": "ids", "shape": [2], "datatype": "INT64", "data": [9007199254740993, -1]}"#;

    #[test]
    fn tensors_come_back_typed() {
        let body = format!(r#"{{"id": "r-1", "parameters": {{"p": 1}}, "inputs": [{X}, {MASK}, {IDS}]}}"#);
        let expected = concat!(
            r#"{"model_name":"m","model_version":"3","id":"r-1","outputs":["#,
            r#"{"name":"y","datatype":"FP32","shape":[2,2],"data":[1.5,2.0,3.0,9.999999747378752e-06]},"#,
            r#"{"name":"kept","datatype":"BOOL","shape":[2],"data":[true,false]}]}"#
        );
        assert_eq!(call(&body), (200, expected.to_owned()));
    }

    #[test]
    fn data_may_be_nested_and_outputs_selected() {
        let x = r#"{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1.5, 2], [3, NaN]]}"#;
        let body = format!(r#"{{"inputs": [{x}, {MASK}, {IDS}], "outputs": [{{"name": "y"}}]}}"#);
        let expected = concat!(
            r#"{"model_name":"m","model_version":"3","outputs":["#,
            r#"{"name":"y","datatype":"FP32","shape":[2,2],"data":[1.5,2.0,3.0,NaN]}]}"#
        );
        assert_eq!(call(&body), (200, expected.to_owned()));
    }

    #[test]
    fn whole_numbers_of_any_size_are_floats_where_the_tensor_has_floats() {
        let x =
            X.replace("[1.5, 2, 3, 1e-5]", "[100000000000000000000, -9223372036854775809, 18446744073709551615, -1]");
        let (status, answer) = call(&format!(r#"{{"inputs": [{x}, {MASK}, {IDS}]}}"#));
        let data = r#""data":[1.0000000200408773e+20,-9.223372036854776e+18,1.8446744073709552e+19,-1.0]"#;
        assert!(status == 200 && answer.contains(data), "{answer}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with_x = |x: &str| format!(r#"{{"inputs": [{x}, {MASK}, {IDS}]}}"#);
        for (body, reason) in [
            ("".to_owned(), "failed to parse the request JSON buffer"),
            ("[]".to_owned(), "must be a JSON object"),
            ("{}".to_owned(), "missing 'inputs' array"),
            (format!(r#"{{"inputs": [{X}]}}"#), "expected 3 inputs but got 1 inputs for model 'm'"),
            (format!(r#"{{"inputs": [{X}, {X}, {IDS}]}}"#), "input 'x' is given more than once"),
            (with_x(&X.replace("\"x\"", "\"z\"")), "unexpected inference input 'z' for model 'm'"),
            (with_x(&X.replace("FP32", "FP64")), "data-type is 'FP64', but model 'm' expects 'FP32'"),
            (with_x(&X.replace("FP32", "BYTES")), "data-type is 'BYTES', but model 'm' expects 'FP32'"),
            (with_x(&X.replace("\"data\"", "\"parameters\": 1, \"data\"")), "'parameters' must be a JSON object"),
            (with_x(&X.replace("[2, 2]", "[2, 3]")), "Expected [-1,2], got [2, 3]"),
            (with_x(&X.replace("[2, 2]", "[-2, 2]")), "must be a list of sizes"),
            (with_x(&X.replace("[2, 2]", "[4000000000, 2]")), "its shape takes 8000000000, got 4"),
            (with_x(&X.replace("[2, 2]", "[3, 2]")), "its shape takes 6, got 4"),
            (with_x(&X.replace("1.5", "\"a\"")), "a str is no FP32"),
            (with_x(&X.replace("1.5", &"9".repeat(400))), "an integer of 400 digits is out of range for FP32"),
            (with_x(&X.replace("[1.5, 2, 3, 1e-5]", "[[1.5, 2], [3]]")), "the nested lists do not have the shape"),
            (with_x(&X.replace("[1.5, 2, 3, 1e-5]", "null")), "neither 'data' nor the parameter 'binary_data_size'"),
            (format!(r#"{{"inputs": [{X}, {}, {IDS}]}}"#, MASK.replace("true", "2")), "2 is out of range for BOOL"),
            (format!(r#"{{"inputs": [{X}, {MASK}, {}]}}"#, IDS.replace("-1", "1.5")), "a float is no INT64"),
            (
                format!(r#"{{"inputs": [{X}, {MASK}, {IDS}], "outputs": [{{"name": "q"}}]}}"#),
                "unexpected inference output 'q'",
            ),
            (
                format!(
                    r#"{{"inputs": [{X}, {MASK}, {IDS}], "outputs": [{{"name": "y", "parameters": {{"classification": 2}}}}]}}"#
                ),
                "asks for 'classification', which this server does not have",
            ),
            (
                format!(r#"{{"inputs": [{X}, {MASK}, {IDS}], "parameters": {{"binary_data_output": 1}}}}"#),
                "'binary_data_output' must be true or false",
            ),
            (format!(r#"{{"id": 5, "inputs": [{X}, {MASK}, {IDS}]}}"#), "'id' must be a string"),
        ] {
            let (status, answer) = call(&body);
            assert!(
                status == 400 && answer.starts_with("{\"error\":\"") && answer.contains(reason),
                "{body}\n{answer}"
            );
        }
    }

    const BINARY_X: &str =
        r#"{"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}}"#;
    const BINARY_MASK: &str =
        r#"{"name": "mask", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}"#;

    fn x_bytes() -> Vec<u8> {
        [1.5f32, -2.0, f32::NAN, 1e-5].iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn binary_tensors_come_back_as_bytes_in_the_order_asked_for() {
        let json = format!(
            r#"{{"inputs": [{BINARY_MASK}, {IDS}, {BINARY_X}], "parameters": {{"binary_data_output": true}}}}"#
        );
        let (status, content_type, body) = binary(&json, &[&[1, 0], x_bytes().as_slice()].concat());
        // The echo gives the first two inputs, whatever they are called.
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        let expected = concat!(
            r#"{"model_name":"m","model_version":"3","outputs":["#,
            r#"{"name":"y","datatype":"UINT8","shape":[2],"parameters":{"binary_data_size":2}},"#,
            r#"{"name":"kept","datatype":"INT64","shape":[2],"parameters":{"binary_data_size":16}}]}"#
        );
        assert_eq!(
            content_type,
            format!("application/octet-stream; inference-header-content-length={}", expected.len())
        );
        let ids = [9007199254740993i64, -1].iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(body, [expected.as_bytes(), &[1, 0], &ids].concat());
    }

    #[test]
    fn each_output_has_the_form_that_was_asked_for() {
        let json = format!(
            r#"{{"inputs": [{BINARY_X}, {MASK}, {IDS}], "parameters": {{"binary_data_output": true}},
            "outputs": [{{"name": "kept", "parameters": {{"binary_data": false}}}}, {{"name": "y"}}]}}"#
        );
        let (status, _, body) = binary(&json, &x_bytes());
        let expected = concat!(
            r#"{"model_name":"m","model_version":"3","outputs":["#,
            r#"{"name":"kept","datatype":"BOOL","shape":[2],"data":[true,false]},"#,
            r#"{"name":"y","datatype":"FP32","shape":[2,2],"parameters":{"binary_data_size":16}}]}"#
        );
        assert_eq!((status, body), (200, [expected.as_bytes(), &x_bytes()].concat()));
    }

    #[test]
    fn binary_tensors_that_do_not_fit_are_named() {
        let with = |x: &str| format!(r#"{{"inputs": [{x}, {MASK}, {IDS}]}}"#);
        let sized = |size: &str| with(&BINARY_X.replace("16", size));
        let shaped = |shape: &str| with(&BINARY_X.replace("[2, 2]", shape));
        let x = x_bytes();
        for (json, tensors, reason) in [
            (with(BINARY_X), &x[..15], "'binary_data_size' of input 'x' is 16, but 15 bytes are left in the request"),
            (with(BINARY_X), &[&x[..], b"!"].concat(), "1 bytes are left behind"),
            (with(X), b"!", "1 bytes are left behind"),
            (sized("12"), &x[..12], "its shape takes 16, 'binary_data_size' is 12"),
            (sized("-16"), &x, "its shape takes 16, 'binary_data_size' is -16"),
            (sized("1e9"), &x, "'binary_data_size' of input 'x' must be a number"),
            (sized("18446744073709551616"), &x, "must be a number"),
            (shaped("[2147483648, 2]"), &x, "its shape takes 17179869184,"),
            (shaped("[2, 2, 1]"), &x, "Expected [-1,2], got [2, 2, 1]"),
            (
                format!(r#"{{"inputs": [{X}, {BINARY_MASK}, {IDS}]}}"#),
                b"\x01\x02",
                "input 'mask' is BOOL: each of its bytes must be 0 or 1",
            ),
        ] {
            let (status, _, answer) = binary(&json, tensors);
            let answer = String::from_utf8(answer).unwrap();
            assert!(status == 400 && answer.contains(reason), "{json}\n{answer}");
        }
    }

    /// Requests cut off and garbled anywhere, and lengths that point anywhere: each gets an answer, and what is computed
    /// was whole.
    #[test]
    fn mutilated_binary_requests_are_answered() {
        let json = format!(r#"{{"inputs": [{BINARY_X}, {BINARY_MASK}, {IDS}], "outputs": [{{"name": "y"}}]}}"#);
        let body = [json.as_bytes(), &x_bytes(), &[1, 0]].concat();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (random >> 33) as usize % below
        };
        for _ in 0..20_000 {
            let mut body = body.clone();
            let mut length = json.len();
            match next(4) {
                0 => body.truncate(next(body.len() + 1)),
                1 => length = next(body.len() + 20),
                2 => {
                    let at = next(json.len());
                    body[at] = b"0123456789-.[]{}\",: e"[next(21)];
                }
                _ => drop(body.splice(next(json.len())..json.len(), *b"9999")),
            }
            let content_type = format!("application/octet-stream; inference-header-content-length={length}");
            let (status, _, answer) = call_with(&content_type, &body);
            assert!(matches!(status, 200 | 400), "{status}");
            assert!(status == 200 || answer.starts_with(b"{\"error\":\""), "{}", String::from_utf8_lossy(&answer));
        }
    }

    #[test]
    fn metadata_says_what_the_model_takes() {
        let model = Model { name: "m".to_owned(), version: "1".to_owned() };
        let response = metadata(&model, &graph());
        let (_, _, body) = response.parts().unwrap();
        let expected = concat!(
            r#"{"name":"m","versions":["1"],"platform":"onnx","inputs":[{"name":"x","datatype":"FP32","shape":[-1,2]},"#,
            r#"{"name":"mask","datatype":"BOOL","shape":[-1]},{"name":"ids","datatype":"INT64","shape":[-1]}],"#,
            r#""outputs":[{"name":"y","datatype":"FP32","shape":[-1,2]},{"name":"kept","datatype":"BOOL","shape":[-1]}]}"#
        );
        assert_eq!(String::from_utf8_lossy(body), expected);
    }
}
