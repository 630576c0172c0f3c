//! A guest that hands the tensors it gets to its graph `model`, and the graph's outputs back, bit for bit: what a backend
//! computes through the sandbox can then be compared with what it computes by itself.
//!
//! A request is one byte for the way that the tensors take (0: calls of `wasi:nn`; 1: the SDK's one call; 2: calls of
//! `wasi:nn` up to the end of a sequence's answer), and tensors; a response is tensors, those of each call in turn. Each tensor is its name, its type (position in [`TYPES`], one byte), its number of axes (one
//! byte), its dimensions and its values; names and values have their length in bytes before them, and all these numbers
//! are four bytes, the lowest first. Without JSON there is little to compile, and it is compiled for each model anew.

use tessera_sdk::bindings::wasi::nn::errors::Error as NnError;
use tessera_sdk::bindings::wasi::nn::graph::load_by_name;
use tessera_sdk::bindings::wasi::nn::inference::GraphExecutionContext;
use tessera_sdk::bindings::wasi::nn::tensor::Tensor as HostTensor;
use tessera_sdk::{Endpoint, Error, Graph, Package, Request, Response, Tensor, TensorType};

tessera_sdk::export!(Passthrough);

const GRAPH: &str = "model";

const TYPES: [TensorType; 7] = [
    TensorType::Fp16,
    TensorType::Fp32,
    TensorType::Fp64,
    TensorType::Bf16,
    TensorType::U8,
    TensorType::I32,
    TensorType::I64,
];

struct Passthrough;

impl Endpoint for Passthrough {
    fn init(_: &Package) -> Result<Self, Error> {
        Ok(Self)
    }

    fn handle(&self, request: Request) -> Result<Response, Error> {
        let mut body = Reader(request.bytes()?);
        let by = match body.byte()? {
            0 => by_wasi_nn,
            1 => by_sdk,
            _ => by_sequence,
        };
        let mut inputs = Vec::new();
        while !body.0.is_empty() {
            inputs.push(body.tensor()?);
        }
        Ok(Response::bytes("application/octet-stream", by(inputs)?))
    }
}

fn by_sdk(inputs: Vec<(&str, Tensor<'_>)>) -> Result<Vec<u8>, Error> {
    let outputs = Graph::named(GRAPH).compute(inputs.iter().map(|(name, tensor)| (*name, tensor)))?;
    let mut answer = Vec::new();
    for (name, position) in outputs.names().zip(0..) {
        let output = outputs.at(position)?;
        push(&mut answer, name, output.ty(), output.dims(), output.bytes());
    }
    Ok(answer)
}

fn by_wasi_nn(inputs: Vec<(&str, Tensor<'_>)>) -> Result<Vec<u8>, Error> {
    let context = load_by_name(GRAPH).and_then(|graph| graph.init_execution_context()).map_err(failed)?;
    let mut answer = Vec::new();
    compute(&context, inputs, &mut answer)?;
    Ok(answer)
}

fn by_sequence(inputs: Vec<(&str, Tensor<'_>)>) -> Result<Vec<u8>, Error> {
    let context = load_by_name(GRAPH).and_then(|graph| graph.init_execution_context()).map_err(failed)?;
    let mut answer = Vec::new();
    let mut names = compute(&context, inputs, &mut answer)?;
    while names.iter().all(|name| name != "end") {
        names = compute(&context, Vec::new(), &mut answer)?;
    }
    Ok(answer)
}

/// One call: adds its outputs to the answer, and gives their names.
fn compute(
    context: &GraphExecutionContext,
    inputs: Vec<(&str, Tensor<'_>)>,
    answer: &mut Vec<u8>,
) -> Result<Vec<String>, Error> {
    let host_tensor = |(name, tensor): (&str, Tensor<'_>)| {
        (name.to_owned(), HostTensor::new(tensor.dims(), tensor.ty(), tensor.bytes()))
    };
    let outputs = context.compute(inputs.into_iter().map(host_tensor).collect()).map_err(failed)?;
    let add = |(name, output): (String, HostTensor)| {
        push(answer, &name, output.ty(), &output.dimensions(), &output.data());
        name
    };
    Ok(outputs.into_iter().map(add).collect())
}

fn failed(error: NnError) -> Error {
    Error::model(error.data())
}

fn push(answer: &mut Vec<u8>, name: &str, ty: TensorType, dims: &[u32], values: &[u8]) {
    push_sized(answer, name.as_bytes());
    let position = TYPES.iter().position(|known| *known == ty);
    answer.extend([position.map_or(u8::MAX, |position| position as u8), dims.len() as u8]);
    dims.iter().for_each(|dim| answer.extend_from_slice(&dim.to_le_bytes()));
    push_sized(answer, values);
}

fn push_sized(answer: &mut Vec<u8>, bytes: &[u8]) {
    answer.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    answer.extend_from_slice(bytes);
}

/// What is left of a request.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn tensor(&mut self) -> Result<(&'b str, Tensor<'b>), Error> {
        let name = self.sized()?;
        let name = std::str::from_utf8(name).map_err(|_| Error::invalid_input("a name is not UTF-8"))?;
        let ty = TYPES.get(usize::from(self.byte()?)).copied();
        let ty = ty.ok_or_else(|| Error::invalid_input(format!("`{name}` has a type that wasi:nn lacks")))?;
        let axes = self.byte()?;
        let dims = (0..axes).map(|_| self.number()).collect::<Result<Vec<_>, _>>()?;
        Ok((name, Tensor::from_bytes(&dims, ty, self.sized()?)?))
    }

    fn sized(&mut self) -> Result<&'b [u8], Error> {
        let len = self.number()?;
        self.take(len as usize)
    }

    fn number(&mut self) -> Result<u32, Error> {
        Ok(self.take(4)?.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    fn byte(&mut self) -> Result<u8, Error> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, len: usize) -> Result<&'b [u8], Error> {
        let (taken, rest) =
            self.0.split_at_checked(len).ok_or_else(|| Error::invalid_input("the body ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }
}
