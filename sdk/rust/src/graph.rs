//! Compute: a graph of the package runs on the host, together with the requests of other instances.

use crate::bindings::tessera::endpoint::compute::{Input, Output, run};
use crate::bindings::wasi::nn::errors::ErrorCode;
use crate::{Error, ErrorKind, Tensor};

/// A graph of the package, by its name in the manifest.
#[derive(Debug)]
pub struct Graph<'n> {
    name: &'n str,
}

impl<'n> Graph<'n> {
    /// The graph of this name. Costs nothing: whether there is such a graph is known when it computes.
    pub fn named(name: &'n str) -> Self {
        Self { name }
    }

    /// Runs the graph on inputs given by name, in one call of the host. May be called again, with the same or other
    /// shapes. Only during `handle`.
    pub fn compute<'t>(&self, inputs: impl IntoIterator<Item = (&'t str, &'t Tensor<'t>)>) -> Result<Outputs, Error> {
        let input = |(name, tensor): (&'t str, &'t Tensor<'t>)| Input {
            name,
            dimensions: tensor.dims(),
            ty: tensor.ty(),
            data: tensor.bytes(),
        };
        let inputs: Vec<_> = inputs.into_iter().map(input).collect();
        match run(self.name, &inputs) {
            Ok(tensors) => Ok(Outputs { graph: self.name.to_owned(), tensors }),
            Err(error) => {
                let message = format!("failed to compute graph `{}`: {}", self.name, error.message);
                Err(Error::new(kind_of(error.code), message))
            }
        }
    }
}

/// What a graph gave.
#[derive(Debug)]
pub struct Outputs {
    graph: String,
    tensors: Vec<Output>,
}

impl Outputs {
    /// The output of this name.
    pub fn get(&self, name: &str) -> Result<Tensor<'_>, Error> {
        let found = self.tensors.iter().find(|output| output.name == name);
        from_host(found.ok_or_else(|| self.missing(&format!("`{name}`")))?)
    }

    /// The output at this position, counted from 0 in the order of the model file.
    pub fn at(&self, position: usize) -> Result<Tensor<'_>, Error> {
        from_host(self.tensors.get(position).ok_or_else(|| self.missing(&format!("at position {position}")))?)
    }

    /// The output of this name, taken out: it owns its values.
    pub fn take(&mut self, name: &str) -> Result<Tensor<'static>, Error> {
        let found = self.tensors.iter().position(|output| output.name == name);
        let output = self.tensors.swap_remove(found.ok_or_else(|| self.missing(&format!("`{name}`")))?);
        Tensor::from_bytes(&output.dimensions, output.ty, output.data).map_err(malformed)
    }

    /// The names of the outputs that were not taken out, in order until one was.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|output| output.name.as_str())
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

fn from_host(output: &Output) -> Result<Tensor<'_>, Error> {
    Tensor::from_bytes(&output.dimensions, output.ty, output.data.as_slice()).map_err(malformed)
}

fn malformed(error: Error) -> Error {
    Error::model(format!("the host gave a malformed output: {error}"))
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
