//! What a request asks for: tensors to feed, in one of their two forms, and outputs.

use tessera_sdk::open_inference::TensorBytes;
use tessera_sdk::{ElementType, GraphInfo, Tensor, TensorInfo};

use super::{Model, datatype, shape_text};
use crate::json::{Cell, List, Object};
use crate::tensor::{Feed, Values, bytes_of, element_bytes, fits};

/// How a tensor is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Form {
    /// In the JSON, number by number.
    Json,
    /// As bytes behind the JSON.
    Binary,
}

/// A request that fits the model.
#[derive(Debug)]
pub(super) struct Inference<'a> {
    pub(super) id: Option<&'a str>,
    pub(super) feeds: Vec<Feed<'a>>,
    /// Which outputs are asked for, by position in the graph, and how they are to be sent.
    pub(super) outputs: Vec<(usize, Form)>,
}

impl<'a> Inference<'a> {
    pub(super) fn read(
        body: Cell<'a>,
        mut tensors: TensorBytes<'a>,
        model: &Model,
        graph: &'a GraphInfo,
    ) -> Result<Self, String> {
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
        let mut feeds: Vec<Feed<'a>> = Vec::with_capacity(got);
        for input in inputs.iter() {
            let feed = read_input(input, &mut tensors, model, graph)?;
            if feeds.iter().any(|other| other.name == feed.name) {
                return Err(format!("input '{}' is given more than once", feed.name));
            }
            feeds.push(feed);
        }
        if !tensors.is_empty() {
            let left = tensors.len();
            return Err(format!("{left} bytes are left behind those that the inputs' 'binary_data_size' name"));
        }
        Ok(Self { id, feeds, outputs: requested_outputs(request, model, graph)? })
    }
}

fn name_of<'j>(cell: Cell<'j>, role: &str) -> Result<(&'j Object<'j>, &'j str), String> {
    let Cell::Object(object) = cell else { return Err(format!("an {role} must be a JSON object")) };
    let Some(Cell::Text(name)) = object.get("name") else { return Err(format!("an {role} lacks its 'name'")) };
    Ok((object, name))
}

/// A parameter of the request, an input or an output.
fn parameter<'j>(object: &'j Object<'j>, name: &str) -> Result<Option<Cell<'j>>, String> {
    match object.get("parameters") {
        None | Some(Cell::Null) => Ok(None),
        Some(Cell::Object(parameters)) => Ok(parameters.get(name).filter(|value| *value != Cell::Null)),
        Some(_) => Err("'parameters' must be a JSON object".to_owned()),
    }
}

fn form(object: &Object<'_>, name: &str, usual: Form) -> Result<Form, String> {
    match parameter(object, name)? {
        None => Ok(usual),
        Some(Cell::Bool(true)) => Ok(Form::Binary),
        Some(Cell::Bool(false)) => Ok(Form::Json),
        Some(_) => Err(format!("the parameter '{name}' must be true or false")),
    }
}

fn requested_outputs(request: &Object<'_>, model: &Model, graph: &GraphInfo) -> Result<Vec<(usize, Form)>, String> {
    let usual = form(request, "binary_data_output", Form::Json)?;
    let all = || Ok((0..graph.outputs.len()).map(|at| (at, usual)).collect());
    let requested = match request.get("outputs") {
        None | Some(Cell::Null) => return all(),
        Some(Cell::List(requested)) if requested.len() == 0 => return all(),
        Some(Cell::List(requested)) if requested.len() <= graph.outputs.len() => requested,
        Some(_) => return Err(format!("'outputs' must name some of the {} outputs", graph.outputs.len())),
    };
    let read = |output| {
        let (output, name) = name_of(output, "output")?;
        for unknown in ["classification", "shared_memory_region"] {
            if parameter(output, unknown)?.is_some() {
                return Err(format!("output '{name}' asks for '{unknown}', which this server does not have"));
            }
        }
        let found = graph.outputs.iter().position(|info| info.name == name);
        let at = found.ok_or_else(|| format!("unexpected inference output '{name}' for model '{}'", model.name))?;
        Ok((at, form(output, "binary_data", usual)?))
    };
    requested.iter().map(read).collect()
}

fn read_input<'a>(
    input: Cell<'a>,
    tensors: &mut TensorBytes<'a>,
    model: &Model,
    graph: &'a GraphInfo,
) -> Result<Feed<'a>, String> {
    let (input, name) = name_of(input, "input")?;
    let info =
        graph.input(name).ok_or_else(|| format!("unexpected inference input '{name}' for model '{}'", model.name))?;
    let Some(Cell::Text(given)) = input.get("datatype") else {
        return Err(format!("input '{name}' lacks its 'datatype'"));
    };
    let expected = datatype(info.element);
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
    let dims: Vec<u32> = shape.iter().filter_map(|size| u32::try_from(*size).ok()).collect();
    let ty = info.element.tensor_type();
    let tensor = match parameter(input, "binary_data_size")? {
        Some(size) => Tensor::from_bytes(&dims, ty, read_binary(size, tensors, &shape, info)?),
        None => Tensor::from_bytes(&dims, ty, bytes_of(&read_json(input, &shape, info)?, info.element)),
    };
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

/// The number of values that a shape takes; none where it exceeds all memory.
fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |size, axis| size.checked_mul(*axis))
}

/// The bytes of an input that lies behind the JSON.
fn read_binary<'a>(
    size: Cell<'_>,
    tensors: &mut TensorBytes<'a>,
    shape: &[usize],
    info: &TensorInfo,
) -> Result<&'a [u8], String> {
    let name = &info.name;
    let Cell::Int(size) = size else { return Err(format!("'binary_data_size' of input '{name}' must be a number")) };
    let expected = elements(shape).and_then(|count| count.checked_mul(element_bytes(info.element)));
    if expected != usize::try_from(size).ok() || expected.is_none() {
        let expected = expected.map_or("more than there is".to_owned(), |expected| expected.to_string());
        return Err(format!(
            "unexpected number of bytes for input '{name}': its shape takes {expected}, 'binary_data_size' is {size}"
        ));
    }
    let left = tensors.len();
    let bytes = expected.and_then(|size| tensors.take(size)).ok_or_else(|| {
        format!("'binary_data_size' of input '{name}' is {size}, but {left} bytes are left in the request")
    })?;
    if info.element == ElementType::Bool && bytes.iter().any(|byte| *byte > 1) {
        return Err(format!("input '{name}' is BOOL: each of its bytes must be 0 or 1"));
    }
    Ok(bytes)
}

/// The values of an input that the JSON spells out.
fn read_json(input: &Object<'_>, shape: &[usize], info: &TensorInfo) -> Result<Values, String> {
    let name = &info.name;
    if info.element == ElementType::Bf16 {
        return Err(format!("input '{name}' is BF16, which has no JSON form: send it as binary data"));
    }
    let Some(Cell::List(data)) = input.get("data") else {
        return Err(format!("input '{name}' has neither 'data' nor the parameter 'binary_data_size'"));
    };
    let values = read_data(data, shape, info.element)
        .map_err(|reason| format!("unable to parse the data of input '{name}': {reason}"))?;
    let (expected, got) = (elements(shape), values.len());
    if expected != Some(got) {
        let expected = expected.map_or("more".to_owned(), |expected| expected.to_string());
        return Err(format!("unexpected number of values for input '{name}': its shape takes {expected}, got {got}"));
    }
    Ok(values)
}

/// The values, flat or nested as the shape; either way in row-major order.
fn read_data(data: &List<'_>, shape: &[usize], element: ElementType) -> Result<Values, String> {
    let mut reader = DataReader {
        element,
        values: match element {
            ElementType::Fp16 | ElementType::Fp32 | ElementType::Fp64 | ElementType::Bf16 => Values::Floats(Vec::new()),
            _ => Values::Ints(Vec::new()),
        },
    };
    let nested = matches!(data.get(0), Some(Cell::List(_)));
    if nested {
        reader.add_nested(data, shape)?
    } else {
        reader.add_flat(data)?
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
            // JavaScript writes a float of 2^63 and more, up to 1e21, as an integer.
            (Values::Floats(values), Cell::Big(integer)) => match integer.parse() {
                Ok(value) if f64::is_finite(value) => values.push(value),
                _ => {
                    let digits = integer.trim_start_matches('-').len();
                    return Err(format!(
                        "an integer of {digits} digits is out of range for {}",
                        datatype(self.element)
                    ));
                }
            },
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
