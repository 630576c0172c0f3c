//! The Open Inference Protocol v2 in its JSON form: the model's metadata, and inference on tensors.
//!
//! Errors are `{"error": "..."}` with 400, in the words of Triton, whose clients print them. Strict where MLflow is lossy:
//! a tensor states its type, so that a value of another one is a mistake.

use tessera_sdk::{ElementType, Error, ErrorKind, GraphInfo, Response, Tensor, TensorInfo};

use crate::Compute;
use crate::json::{self, Cell, List, Object};
use crate::numbers::{push_int, push_joined, push_scalar, push_text};
use crate::tensor::{Feed, Output, Values, bytes_of, element_of, fits};

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
pub(crate) fn infer(model: &Model, graph: &GraphInfo, body: &[u8], compute: Compute<'_>) -> Result<Response, Error> {
    let refused = |message: &str| Ok(refusal(message));
    let parsed = match std::str::from_utf8(body)
        .map_err(|error| error.to_string())
        .and_then(|text| json::parse(text).map_err(|error| format!("failed to parse the request JSON buffer: {error}")))
    {
        Ok(parsed) => parsed,
        Err(message) => return refused(&message),
    };
    let request = match Request::read(parsed.cell(), model, graph) {
        Ok(request) => request,
        Err(message) => return refused(&message),
    };
    let tensors = match compute(&request.feeds) {
        Ok(tensors) => tensors,
        Err(error) if matches!(error.kind, ErrorKind::InvalidInput | ErrorKind::Model) => {
            return refused(&error.message);
        }
        Err(error) => return Err(error),
    };
    Ok(Response::bytes("application/json", answer(model, graph, &request, tensors)))
}

fn refusal(message: &str) -> Response {
    let mut body = b"{\"error\":".to_vec();
    push_text(&mut body, message);
    body.push(b'}');
    Response::bytes("application/json", body).with_status(400)
}

struct Request<'j, 'g> {
    id: Option<&'j str>,
    feeds: Vec<Feed<'g>>,
    /// Which outputs are asked for, by position in the graph.
    outputs: Vec<usize>,
}

impl<'j, 'g> Request<'j, 'g> {
    fn read(body: Cell<'j>, model: &Model, graph: &'g GraphInfo) -> Result<Self, String> {
        let Cell::Object(request) = body else { return Err("the request must be a JSON object".to_owned()) };
        let id = match request.get("id") {
            None | Some(Cell::Null) => None,
            Some(Cell::Text(id)) => Some(id),
            Some(_) => return Err("'id' must be a string".to_owned()),
        };
        let Some(Cell::List(inputs)) = request.get("inputs") else { return Err("missing 'inputs' array".to_owned()) };
        let (expected, got) = (graph.inputs.len(), inputs.len());
        if expected != got {
            return Err(format!("expected {expected} inputs but got {got} inputs for model '{}'", model.name));
        }
        let mut feeds: Vec<Feed<'g>> = Vec::with_capacity(got);
        for input in inputs.iter() {
            let feed = read_input(input, model, graph)?;
            if feeds.iter().any(|other| other.name == feed.name) {
                return Err(format!("input '{}' is given more than once", feed.name));
            }
            feeds.push(feed);
        }
        Ok(Self { id, feeds, outputs: requested_outputs(request.get("outputs"), model, graph)? })
    }
}

fn name_of<'j>(cell: Cell<'j>, role: &str) -> Result<(&'j Object<'j>, &'j str), String> {
    let Cell::Object(object) = cell else { return Err(format!("an {role} must be a JSON object")) };
    let Some(Cell::Text(name)) = object.get("name") else { return Err(format!("an {role} lacks its 'name'")) };
    Ok((object, name))
}

fn requested_outputs(field: Option<Cell<'_>>, model: &Model, graph: &GraphInfo) -> Result<Vec<usize>, String> {
    let requested = match field {
        None | Some(Cell::Null) => return Ok((0..graph.outputs.len()).collect()),
        Some(Cell::List(requested)) if requested.len() == 0 => return Ok((0..graph.outputs.len()).collect()),
        Some(Cell::List(requested)) if requested.len() <= graph.outputs.len() => requested,
        Some(_) => return Err(format!("'outputs' must name some of the {} outputs", graph.outputs.len())),
    };
    let position = |output| {
        let (_, name) = name_of(output, "output")?;
        let found = graph.outputs.iter().position(|info| info.name == name);
        found.ok_or_else(|| format!("unexpected inference output '{name}' for model '{}'", model.name))
    };
    requested.iter().map(position).collect()
}

fn read_input<'g>(input: Cell<'_>, model: &Model, graph: &'g GraphInfo) -> Result<Feed<'g>, String> {
    let (input, name) = name_of(input, "input")?;
    let info =
        graph.input(name).ok_or_else(|| format!("unexpected inference input '{name}' for model '{}'", model.name))?;
    let Some(Cell::Text(given)) = input.get("datatype") else {
        return Err(format!("input '{name}' lacks its 'datatype'"));
    };
    let expected = datatype(info.element);
    if given == "BF16" || info.element == ElementType::Bf16 {
        return Err(format!("input '{name}' is BF16, which has no JSON form"));
    }
    if given != expected {
        return Err(format!(
            "inference input '{name}' data-type is '{given}', but model '{}' expects '{expected}'",
            model.name
        ));
    }
    let shape = read_shape(input, name)?;
    if !fits(&info.dimensions, &shape) {
        return Err(format!(
            "unexpected shape for input '{name}' for model '{}'. Expected {}, got {shape:?}",
            model.name,
            shape_text(&info.dimensions)
        ));
    }
    let Some(Cell::List(data)) = input.get("data") else {
        return Err(format!("input '{name}' lacks its 'data'; binary tensor data is not supported"));
    };
    let values = read_data(data, &shape, info.element, name)?;
    let dims: Vec<u32> = shape.iter().filter_map(|size| u32::try_from(*size).ok()).collect();
    let tensor = Tensor::from_bytes(&dims, info.element.tensor_type(), bytes_of(&values, info.element));
    Ok(Feed { name: &info.name, tensor: tensor.map_err(|error| error.message)? })
}

fn read_shape(input: &Object<'_>, name: &str) -> Result<Vec<usize>, String> {
    let Some(Cell::List(shape)) = input.get("shape") else { return Err(format!("input '{name}' lacks its 'shape'")) };
    let size = |cell| match cell {
        Cell::Int(size) => u32::try_from(size).ok().map(|size| size as usize),
        _ => None,
    };
    let shape: Option<Vec<usize>> = shape.iter().map(size).collect();
    shape.ok_or_else(|| format!("the shape of input '{name}' must be a list of sizes"))
}

/// The values, flat or nested as the shape; either way in row-major order.
fn read_data(data: &List<'_>, shape: &[usize], element: ElementType, name: &str) -> Result<Values, String> {
    let mut reader = DataReader {
        element,
        values: match element {
            ElementType::Fp16 | ElementType::Fp32 | ElementType::Fp64 | ElementType::Bf16 => Values::Floats(Vec::new()),
            _ => Values::Ints(Vec::new()),
        },
    };
    let nested = matches!(data.get(0), Some(Cell::List(_)));
    let read = if nested { reader.add_nested(data, shape) } else { reader.add_flat(data) };
    read.map_err(|reason| format!("unable to parse the data of input '{name}': {reason}"))?;
    let (expected, got) = (shape.iter().try_fold(1usize, |size, axis| size.checked_mul(*axis)), reader.values.len());
    if expected != Some(got) {
        let expected = expected.map_or("more".to_owned(), |expected| expected.to_string());
        return Err(format!("unexpected number of values for input '{name}': its shape takes {expected}, got {got}"));
    }
    Ok(reader.values)
}

struct DataReader {
    element: ElementType,
    values: Values,
}

impl DataReader {
    fn add_flat(&mut self, data: &List<'_>) -> Result<(), String> {
        if let (List::Floats(floats), Values::Floats(values)) = (data, &mut self.values) {
            values.extend_from_slice(floats);
            return Ok(());
        }
        data.iter().try_for_each(|value| self.push(value))
    }

    /// Nested lists must have the shape, axis by axis; the depth is that of the shape.
    fn add_nested(&mut self, data: &List<'_>, shape: &[usize]) -> Result<(), String> {
        match shape.split_first() {
            Some((size, inner)) if data.len() == *size => match inner {
                [] => self.add_flat(data),
                inner => data.iter().try_for_each(|item| match item {
                    Cell::List(list) => self.add_nested(list, inner),
                    _ => Err("the nested lists do not have the shape".to_owned()),
                }),
            },
            _ => Err("the nested lists do not have the shape".to_owned()),
        }
    }

    fn push(&mut self, value: Cell<'_>) -> Result<(), String> {
        let range = match self.element {
            ElementType::Bool => 0..=1,
            ElementType::U8 => 0..=i64::from(u8::MAX),
            ElementType::Int8 => i64::from(i8::MIN)..=i64::from(i8::MAX),
            ElementType::I32 => i64::from(i32::MIN)..=i64::from(i32::MAX),
            _ => i64::MIN..=i64::MAX,
        };
        match (&mut self.values, value) {
            (Values::Floats(values), Cell::Float(value)) => values.push(value),
            (Values::Floats(values), Cell::Int(value)) => values.push(value as f64),
            (Values::Ints(values), Cell::Bool(value)) if self.element == ElementType::Bool => {
                values.push(i64::from(value))
            }
            (Values::Ints(values), Cell::Int(value)) if range.contains(&value) => values.push(value),
            (_, Cell::Int(value)) => return Err(format!("{value} is out of range for {}", datatype(self.element))),
            (_, other) => return Err(format!("a {} is no {}", other.python_type(), datatype(self.element))),
        }
        Ok(())
    }
}

fn answer(model: &Model, graph: &GraphInfo, request: &Request<'_, '_>, tensors: Vec<Tensor<'static>>) -> Vec<u8> {
    let mut body = Vec::with_capacity(256);
    body.extend_from_slice(b"{\"model_name\":");
    push_text(&mut body, &model.name);
    body.extend_from_slice(b",\"model_version\":");
    push_text(&mut body, &model.version);
    if let Some(id) = request.id {
        body.extend_from_slice(b",\"id\":");
        push_text(&mut body, id);
    }
    body.extend_from_slice(b",\"outputs\":[");
    let requested = request.outputs.iter().filter_map(|at| Some((graph.outputs.get(*at)?, tensors.get(*at)?)));
    push_joined(&mut body, requested, push_output);
    body.extend_from_slice(b"]}");
    body
}

fn push_output(body: &mut Vec<u8>, (info, tensor): (&TensorInfo, &Tensor<'static>)) {
    let element = element_of(info, tensor.ty());
    body.extend_from_slice(b"{\"name\":");
    push_text(body, &info.name);
    body.extend_from_slice(b",\"datatype\":");
    push_text(body, datatype(element));
    body.extend_from_slice(b",\"shape\":[");
    push_joined(body, tensor.dims(), |body, size| push_int(body, i64::from(*size)));
    body.extend_from_slice(b"],\"data\":[");
    push_joined(body, Output { name: &info.name, element, tensor }.scalars(), push_scalar);
    body.extend_from_slice(b"]}");
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let model = Model { name: "m".to_owned(), version: "3".to_owned() };
        let echo = |feeds: &[Feed<'_>]| Ok(feeds.iter().take(2).map(|feed| feed.tensor.clone()).collect());
        let response = infer(&model, &graph(), body.as_bytes(), &echo).unwrap();
        let (status, _, body) = response.parts().unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
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
            (with_x(&X.replace("FP32", "BF16")), "which has no JSON form"),
            (with_x(&X.replace("[2, 2]", "[2, 3]")), "Expected [-1,2], got [2, 3]"),
            (with_x(&X.replace("[2, 2]", "[-2, 2]")), "must be a list of sizes"),
            (with_x(&X.replace("[2, 2]", "[4000000000, 2]")), "its shape takes 8000000000, got 4"),
            (with_x(&X.replace("[2, 2]", "[3, 2]")), "its shape takes 6, got 4"),
            (with_x(&X.replace("1.5", "\"a\"")), "a str is no FP32"),
            (with_x(&X.replace("[1.5, 2, 3, 1e-5]", "[[1.5, 2], [3]]")), "the nested lists do not have the shape"),
            (with_x(&X.replace("[1.5, 2, 3, 1e-5]", "null")), "lacks its 'data'"),
            (format!(r#"{{"inputs": [{X}, {}, {IDS}]}}"#, MASK.replace("true", "2")), "2 is out of range for BOOL"),
            (format!(r#"{{"inputs": [{X}, {MASK}, {}]}}"#, IDS.replace("-1", "1.5")), "a float is no INT64"),
            (
                format!(r#"{{"inputs": [{X}, {MASK}, {IDS}], "outputs": [{{"name": "q"}}]}}"#),
                "unexpected inference output 'q'",
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
