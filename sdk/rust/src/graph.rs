//! Compute through `wasi:nn`. The host runs it, together with the requests of other instances.

use crate::bindings::wasi::nn::errors::{Error as NnError, ErrorCode};
use crate::bindings::wasi::nn::graph::load_by_name;
use crate::bindings::wasi::nn::inference::{GraphExecutionContext, NamedTensor};
use crate::bindings::wasi::nn::tensor::Tensor as HostTensor;
use crate::{Error, ErrorKind, Tensor};

/// A graph of the package, ready to compute. Loading it costs two short host calls: the host has it in memory.
#[derive(Debug)]
pub struct Graph {
    name: String,
    context: GraphExecutionContext,
}

impl Graph {
    /// The graph by its name in the manifest. Only during `handle`: a handle kept from `init` would be frozen.
    pub fn load(name: &str) -> Result<Self, Error> {
        let failed = |error| nn_error(&format!("failed to load graph `{name}`"), &error);
        let context = load_by_name(name).map_err(failed)?.init_execution_context().map_err(failed)?;
        Ok(Self { name: name.to_owned(), context })
    }

    /// Runs the graph on inputs given by name. May be called again, with the same or other shapes.
    pub fn compute<'t, N, I>(&self, inputs: I) -> Result<Outputs, Error>
    where
        N: Into<String>,
        I: IntoIterator<Item = (N, &'t Tensor<'t>)>,
    {
        let inputs: Vec<NamedTensor> = inputs
            .into_iter()
            .map(|(name, tensor)| (name.into(), HostTensor::new(tensor.dims(), tensor.ty(), tensor.bytes())))
            .collect();
        match self.context.compute(inputs) {
            Ok(tensors) => Ok(Outputs { graph: self.name.clone(), tensors }),
            Err(error) => Err(nn_error(&format!("failed to compute graph `{}`", self.name), &error)),
        }
    }
}

/// What a graph gave. An output is copied into the guest when it is read, and not before.
#[derive(Debug)]
pub struct Outputs {
    graph: String,
    tensors: Vec<NamedTensor>,
}

impl Outputs {
    /// The output of this name.
    pub fn get(&self, name: &str) -> Result<Tensor<'static>, Error> {
        let found = self.tensors.iter().find(|(given, _)| given == name);
        let (_, tensor) = found.ok_or_else(|| self.missing(&format!("`{name}`")))?;
        from_host(tensor)
    }

    /// The output at this position, counted from 0 in the order of the model file.
    pub fn at(&self, position: usize) -> Result<Tensor<'static>, Error> {
        let (_, tensor) = self.tensors.get(position).ok_or_else(|| self.missing(&format!("at position {position}")))?;
        from_host(tensor)
    }

    /// The names of the outputs, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|(name, _)| name.as_str())
    }

    /// How many outputs there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether the graph gave nothing.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    fn missing(&self, which: &str) -> Error {
        let names: Vec<_> = self.names().collect();
        Error::model(format!("graph `{}` has no output {which}; it gives: {}", self.graph, names.join(", ")))
    }
}

fn from_host(tensor: &HostTensor) -> Result<Tensor<'static>, Error> {
    Tensor::from_bytes(&tensor.dimensions(), tensor.ty(), tensor.data())
        .map_err(|error| Error::model(format!("the host gave a malformed output: {error}")))
}

fn nn_error(attempted: &str, error: &NnError) -> Error {
    Error::new(kind_of(error.code()), format!("{attempted}: {}", error.data()))
}

/// An invalid argument is a tensor the graph does not take, hence the caller's input. All but the three named here mean
/// that the model failed, which repeating the call does not mend.
fn kind_of(code: ErrorCode) -> ErrorKind {
    match code {
        ErrorCode::InvalidArgument => ErrorKind::InvalidInput,
        ErrorCode::Timeout => ErrorKind::Timeout,
        ErrorCode::TooLarge => ErrorKind::TooLarge,
        ErrorCode::InvalidEncoding
        | ErrorCode::RuntimeError
        | ErrorCode::UnsupportedOperation
        | ErrorCode::NotFound
        | ErrorCode::Security
        | ErrorCode::Unknown => ErrorKind::Model,
    }
}
