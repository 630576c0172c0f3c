//! Deeds against `wasi:nn`.

use serde_json::{Value, json};
use tessera_sdk::bindings::wasi::nn::graph::{ExecutionTarget, GraphEncoding, load, load_by_name};
use tessera_sdk::bindings::wasi::nn::tensor::Tensor as HostTensor;
use tessera_sdk::{Element, Error, Graph, GraphInfo, Response, Tensor, TensorInfo, TensorType};

/// What it should be, to compare with: zeros of the right shape, free axes 1.
pub(crate) fn compute(model: &GraphInfo) -> Result<Response, Error> {
    let inputs = zero_inputs(model, 1)?;
    let outputs = Graph::named("model").compute(inputs.iter().map(|(name, tensor)| (*name, tensor)))?;
    let described = outputs.names().zip(0..).map(|(name, position)| describe(name, &outputs.at(position)?));
    Response::json(&json!({ "outputs": described.collect::<Result<Vec<Value>, Error>>()? }))
}

/// The same through `wasi:nn` alone, one call after the other.
pub(crate) fn compute_by_wasi_nn(model: &GraphInfo) -> Result<Response, Error> {
    let context = load_by_name("model").and_then(|graph| graph.init_execution_context()).map_err(|e| code(&e))?;
    let host_tensor = |tensor: &Tensor<'_>| HostTensor::new(tensor.dims(), tensor.ty(), tensor.bytes());
    let inputs = zero_inputs(model, 1)?;
    let inputs = inputs.iter().map(|(name, tensor)| ((*name).to_owned(), host_tensor(tensor))).collect();
    let outputs = context.compute(inputs).map_err(|error| code(&error))?;
    let described = outputs
        .iter()
        .map(|(name, output)| describe(name, &Tensor::from_bytes(&output.dimensions(), output.ty(), output.data())?));
    Response::json(&json!({ "outputs": described.collect::<Result<Vec<Value>, Error>>()? }))
}

/// Outputs that may be large: taken out as a whole, as a guest would that goes on with them.
pub(crate) fn compute_rows(model: &GraphInfo, rows: u32) -> Result<Response, Error> {
    let inputs = zero_inputs(model, rows)?;
    let outputs = Graph::named("model").compute(inputs.iter().map(|(name, tensor)| (*name, tensor)))?;
    let tensors = outputs.into_tensors()?;
    let described = tensors.iter().map(|tensor| json!({ "dims": tensor.dims(), "bytes": tensor.bytes().len() }));
    Response::json(&json!({ "outputs": described.collect::<Vec<_>>() }))
}

/// Free axes get `free` elements.
fn zero_inputs(model: &GraphInfo, free: u32) -> Result<Vec<(&str, Tensor<'static>)>, Error> {
    let zero = |input: &TensorInfo| {
        let dims: Vec<u32> = input.dimensions.iter().map(|dimension| dimension.unwrap_or(free)).collect();
        zeros(&dims, input.element.tensor_type())
    };
    model.inputs.iter().map(|input| Ok((input.name.as_str(), zero(input)?))).collect()
}

/// A tensor of fp64, or of i64 for a graph that takes fp64.
pub(crate) fn wrong_dtype(model: &GraphInfo) -> Result<Response, Error> {
    let input = first_input(model)?;
    let dims: Vec<u32> = input.dimensions.iter().map(|dimension| dimension.unwrap_or(1)).collect();
    let ty = if input.element.tensor_type() == TensorType::Fp64 { TensorType::I64 } else { TensorType::Fp64 };
    run(&input.name, &zeros(&dims, ty)?)
}

/// Two axes too many.
pub(crate) fn wrong_shape(model: &GraphInfo) -> Result<Response, Error> {
    let input = first_input(model)?;
    let mut dims: Vec<u32> = input.dimensions.iter().map(|dimension| dimension.unwrap_or(1)).collect();
    dims.extend([3, 5]);
    run(&input.name, &zeros(&dims, input.element.tensor_type())?)
}

/// 7 bytes where the dimensions speak of 2^62 elements, then of one.
pub(crate) fn length_mismatch(model: &GraphInfo) -> Result<Response, Error> {
    let input = first_input(model)?;
    let context = load_by_name("model").and_then(|graph| graph.init_execution_context()).map_err(|e| code(&e))?;
    let mut refusals = Vec::new();
    for dims in [[1 << 31, 1 << 31].as_slice(), &[1]] {
        let tensor = HostTensor::new(dims, input.element.tensor_type(), &[0; 7]);
        refusals.push(context.compute(vec![(input.name.clone(), tensor)]).err().map(|error| code(&error).message));
    }
    Response::json(&json!({ "refusals": refusals }))
}

pub(crate) fn wrong_name(model: &GraphInfo) -> Result<Response, Error> {
    let input = first_input(model)?;
    let dims: Vec<u32> = input.dimensions.iter().map(|dimension| dimension.unwrap_or(1)).collect();
    run("no-such-input", &zeros(&dims, input.element.tensor_type())?)
}

pub(crate) fn missing_graph() -> Result<Response, Error> {
    let inputs: [(&str, &Tensor<'_>); 0] = [];
    Graph::named("no-such-graph").compute(inputs).and_then(|_| Response::json(&json!({ "loaded": true })))
}

/// The same through `wasi:nn`.
pub(crate) fn missing_graph_by_wasi_nn() -> Result<Response, Error> {
    load_by_name("no-such-graph").map_err(|e| code(&e)).and_then(|_| Response::json(&json!({ "loaded": true })))
}

/// Not through the SDK, which has no such call.
pub(crate) fn load_from_bytes() -> Result<Response, Error> {
    let loaded = load(&[b"a model of my own"], GraphEncoding::Onnx, ExecutionTarget::Cpu);
    Response::json(&json!({ "refusal": loaded.err().map(|error| code(&error).message) }))
}

/// Each tensor lives in the host; the guest itself holds 64 MiB.
pub(crate) fn tensor_bomb() -> ! {
    let data = vec![1; 64 << 20];
    let mut kept = Vec::new();
    loop {
        kept.push(HostTensor::new(&[64 << 20], TensorType::U8, &data));
    }
}

/// Tensors of one byte, and graphs where there are any.
pub(crate) fn handle_bomb() -> ! {
    let (mut tensors, mut graphs) = (Vec::new(), Vec::new());
    loop {
        tensors.push(HostTensor::new(&[1], TensorType::U8, &[0]));
        graphs.extend(load_by_name("model"));
    }
}

fn run(name: &str, tensor: &Tensor<'_>) -> Result<Response, Error> {
    let outputs = Graph::named("model").compute([(name, tensor)])?;
    Response::json(&json!({ "outputs": outputs.names().collect::<Vec<_>>() }))
}

fn first_input(model: &GraphInfo) -> Result<&TensorInfo, Error> {
    model.inputs.first().ok_or_else(|| Error::model("graph `model` has no inputs"))
}

fn zeros(dims: &[u32], ty: TensorType) -> Result<Tensor<'static>, Error> {
    let len: usize = dims.iter().map(|&dim| dim as usize).product();
    Tensor::from_bytes(dims, ty, vec![0; len * ty.element_bytes()])
}

fn code(error: &tessera_sdk::bindings::wasi::nn::errors::Error) -> Error {
    Error::model(format!("{:?}: {}", error.code(), error.data()))
}

fn describe(name: &str, tensor: &Tensor<'_>) -> Result<Value, Error> {
    let values = match tensor.ty() {
        TensorType::Fp32 => first_values::<f32>(tensor)?,
        TensorType::Fp64 => first_values::<f64>(tensor)?,
        TensorType::I64 => first_values::<i64>(tensor)?,
        TensorType::I32 => first_values::<i32>(tensor)?,
        TensorType::U8 => first_values::<u8>(tensor)?,
        TensorType::Fp16 | TensorType::Bf16 => Value::Null,
    };
    Ok(json!({ "name": name, "type": tensor.ty().name(), "dims": tensor.dims(), "values": values }))
}

fn first_values<T: Element + serde::Serialize>(tensor: &Tensor<'_>) -> Result<Value, Error> {
    let values = tensor.as_slice::<T>()?;
    Ok(json!(&values[..values.len().min(8)]))
}
