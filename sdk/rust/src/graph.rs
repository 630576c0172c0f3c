//! Compute: a graph of the package runs on the host, together with the requests of other instances.

use std::ops::Range;
use std::sync::Arc;

#[cfg(target_arch = "wasm32")]
use crate::bindings::tessera::endpoint::compute::run;
use crate::bindings::tessera::endpoint::compute::{self, Input};
use crate::bindings::wasi::nn::errors::ErrorCode;
use crate::tensor::Values;
#[cfg(not(target_arch = "wasm32"))]
use crate::testing::host::run;
use crate::{Error, ErrorKind, Tensor, TensorType};

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

    pub(crate) fn name(&self) -> &'n str {
        self.name
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
            Ok(outputs) => Outputs::unpack(self.name, outputs),
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
    /// Shapes and names of all of them.
    heads: Vec<u32>,
    /// Values of all of them. What is taken out shares it.
    data: Arc<Vec<u8>>,
}

/// Where an output lies in the heads and in the data. All ranges lie within.
#[derive(Debug)]
struct Output {
    ty: TensorType,
    dims: Range<usize>,
    /// Text as numbers, and how many bytes of it are text.
    name: Range<usize>,
    name_bytes: usize,
    values: Range<usize>,
}

/// Where values begin in the data: at multiples of this. So does the data itself, by the guest's allocator.
pub(crate) const ALIGN: usize = 16;

impl Outputs {
    /// As `wit/endpoint.wit` packs them.
    fn unpack(graph: &str, outputs: compute::Outputs) -> Result<Self, Error> {
        let compute::Outputs { heads, data } = outputs;
        let mut tensors = Vec::with_capacity(2);
        let (mut at, mut end) = (0, 0);
        while at < heads.len() {
            let output = Output::read(&heads, at, end).ok_or_else(|| malformed("its head is cut off"))?;
            if output.values.end > data.len() {
                return Err(malformed("its values are cut off"));
            }
            (at, end) = (output.name.end, output.values.end);
            tensors.push(output);
        }
        Ok(Self { graph: graph.to_owned(), tensors, heads, data: Arc::new(data) })
    }

    /// The output of this name.
    pub fn get(&self, name: &str) -> Result<Tensor<'_>, Error> {
        self.tensor(&self.tensors[self.position(name)?])
    }

    /// The output at this position, counted from 0 in the order of the model file.
    pub fn at(&self, position: usize) -> Result<Tensor<'_>, Error> {
        self.tensor(self.tensors.get(position).ok_or_else(|| self.missing(&format!("at position {position}")))?)
    }

    /// The output of this name, taken out, without a copy of its values. The outputs lie in one block of memory, which is
    /// given back when the last of them goes.
    pub fn take(&mut self, name: &str) -> Result<Tensor<'static>, Error> {
        let output = self.tensors.remove(self.position(name)?);
        self.shared(output)
    }

    /// All outputs that were not taken out before, in the order of the model file, without copies of their values.
    pub fn into_tensors(mut self) -> Result<Vec<Tensor<'static>>, Error> {
        let tensors = std::mem::take(&mut self.tensors);
        tensors.into_iter().map(|output| self.shared(output)).collect()
    }

    /// The names of the outputs that were not taken out, in the order of the model file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|output| output.name(&self.heads))
    }

    /// How many outputs there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether the graph gave nothing.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    fn position(&self, name: &str) -> Result<usize, Error> {
        let found = self.names().position(|known| known == name);
        found.ok_or_else(|| self.missing(&format!("`{name}`")))
    }

    fn tensor(&self, output: &Output) -> Result<Tensor<'_>, Error> {
        let values = &self.data[output.values.clone()];
        Tensor::from_bytes(&self.heads[output.dims.clone()], output.ty, values).map_err(malformed)
    }

    fn shared(&self, output: Output) -> Result<Tensor<'static>, Error> {
        let values = Values::Shared(Arc::clone(&self.data), output.values);
        Tensor::from_values(&self.heads[output.dims], output.ty, values).map_err(malformed)
    }

    fn missing(&self, which: &str) -> Error {
        let names: Vec<_> = self.names().collect();
        Error::model(format!("graph `{}` has no output {which}; it gives: {}", self.graph, names.join(", ")))
    }
}

impl Output {
    /// Reads the head at this place; the values before it end at `end`. None if the head is cut off, or means nothing.
    fn read(heads: &[u32], at: usize, end: usize) -> Option<Self> {
        let &[ty, value_bytes, axes] = heads.get(at..at.checked_add(3)?)? else { return None };
        let start = end.checked_next_multiple_of(ALIGN)?;
        let dims = at + 3..(at + 3).checked_add(axes as usize)?;
        let name_bytes = *heads.get(dims.end)? as usize;
        let name = dims.end + 1..(dims.end + 1).checked_add(name_bytes.div_ceil(4))?;
        std::str::from_utf8(bytemuck::cast_slice::<u32, u8>(heads.get(name.clone())?).get(..name_bytes)?).ok()?;
        Some(Self {
            ty: *TensorType::ALL.get(ty as usize)?,
            dims,
            name,
            name_bytes,
            values: start..start.checked_add(value_bytes as usize)?,
        })
    }

    fn name<'h>(&self, heads: &'h [u32]) -> &'h str {
        let bytes = bytemuck::cast_slice::<u32, u8>(&heads[self.name.clone()]);
        std::str::from_utf8(&bytes[..self.name_bytes]).unwrap_or_default()
    }
}

fn malformed(reason: impl std::fmt::Display) -> Error {
    Error::model(format!("the host gave a malformed output: {reason}"))
}

/// An invalid argument is a tensor the graph does not take, hence the caller's input. All but the three named here mean
/// that the model failed, which repeating the call does not mend.
pub(crate) fn kind_of(code: ErrorCode) -> ErrorKind {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As the host packs them: element type, shape, name, values.
    fn packed(outputs: &[(TensorType, &[u32], &'static str, &[u8])]) -> compute::Outputs {
        let tensor = |dims: &[u32], ty, values: &[u8]| Tensor::from_bytes(dims, ty, values.to_vec()).unwrap();
        let outputs = outputs.iter().map(|(ty, dims, name, values)| (*name, tensor(dims, *ty, values)));
        crate::testing::host::packed(&outputs.collect())
    }

    fn two() -> compute::Outputs {
        packed(&[(TensorType::I64, &[1], "label", &[7, 0, 0, 0, 0, 0, 0, 0]), (TensorType::U8, &[1, 3], "é", b"abc")])
    }

    fn refusal(outputs: compute::Outputs) -> String {
        Outputs::unpack("model", outputs).unwrap_err().message
    }

    #[test]
    fn outputs_are_found_by_name_and_by_position() {
        let outputs = Outputs::unpack("model", two()).unwrap();
        assert_eq!((outputs.len(), outputs.names().collect::<Vec<_>>()), (2, vec!["label", "é"]));
        assert_eq!(outputs.get("label").unwrap(), Tensor::new(&[1], &[7_i64]).unwrap());
        assert_eq!(outputs.at(1).unwrap(), Tensor::new(&[1, 3], b"abc").unwrap());
        assert_eq!(outputs.get("x").unwrap_err().message, "graph `model` has no output `x`; it gives: label, é");
        assert!(outputs.at(2).unwrap_err().message.contains("no output at position 2"));
    }

    #[test]
    fn what_is_taken_out_outlives_the_rest_and_is_not_copied() {
        let mut outputs = Outputs::unpack("model", two()).unwrap();
        let data = outputs.data.as_ptr_range();
        let text = outputs.take("é").unwrap();
        assert!(outputs.take("é").is_err());
        assert_eq!(outputs.names().collect::<Vec<_>>(), ["label"]);
        let rest = outputs.into_tensors().unwrap();
        assert_eq!(rest, [Tensor::new(&[1], &[7_i64]).unwrap()]);
        assert_eq!(text.as_slice::<u8>().unwrap().as_ref(), b"abc");
        for tensor in rest.iter().chain([&text]) {
            assert!(data.contains(&tensor.bytes().as_ptr()));
            assert!(data.contains(&tensor.clone().into_owned().bytes().as_ptr()));
        }
    }

    #[test]
    fn a_graph_may_give_nothing_and_tensors_of_no_size() {
        assert!(Outputs::unpack("model", packed(&[])).unwrap().is_empty());
        let empty: &[u32] = &[0, 384];
        let outputs = packed(&[
            (TensorType::Fp32, empty, "", &[]),
            (TensorType::U8, &[], "one", &[9]),
            (TensorType::Fp32, empty, "last", &[]),
        ]);
        let tensors = Outputs::unpack("model", outputs).unwrap().into_tensors().unwrap();
        assert!(tensors[0].is_empty() && tensors[2].is_empty());
        assert_eq!((tensors[1].dims(), tensors[1].bytes()), ([].as_slice(), [9].as_slice()));
    }

    #[test]
    fn what_is_cut_off_or_means_nothing_is_refused() {
        let whole = two();
        // The heads take 7 and 7 numbers: after the first one there is an output fewer, and nothing wrong.
        for numbers in (1..whole.heads.len()).filter(|&numbers| numbers != 7) {
            let cut = compute::Outputs { heads: whole.heads[..numbers].to_vec(), data: whole.data.clone() };
            assert!(refusal(cut).contains("its head"), "{numbers} numbers");
        }
        let cut = compute::Outputs { heads: whole.heads.clone(), data: whole.data[..18].to_vec() };
        assert!(refusal(cut).contains("its values are cut off"));
        for (at, number) in [(0, 7), (1, u32::MAX), (2, u32::MAX), (4, u32::MAX), (5, 0xff)] {
            let mut outputs = two();
            outputs.heads[at] = number;
            assert!(refusal(outputs).contains("malformed"), "{number} at {at}");
        }
    }

    #[test]
    fn values_that_do_not_fit_their_shape_are_refused() {
        let mut outputs = two();
        outputs.heads[3] = 2;
        let error = Outputs::unpack("model", outputs).unwrap().at(0).unwrap_err();
        assert!(error.message.contains("shape [2] needs 2 values"), "{}", error.message);
    }
}
