//! The host's side of `wasi:nn`: checks everything a guest hands over, then gives tensors to the executor.
//!
//! Differences from the reference host, each for a reason: graphs are found by the package's own names only; all seven
//! element types work; a tensor's length must match its shape; `compute` parks the guest instead of blocking a thread;
//! what a request holds in tensors is limited.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};

use super::bindings::tessera::endpoint::compute;
use super::bindings::wasi::nn::{errors, graph, inference, tensor};
use super::guest::{GuestState, Phase};
use super::slots;
use crate::nn::{Begun, Compute, Graph, NnError, NnErrorKind, Outputs, Sequence, Tensor, TensorType};

/// A guest's handle on a graph.
pub struct LoadedGraph {
    graph: Arc<dyn Graph>,
}

/// A guest's handle on an execution context.
pub enum ExecutionContext {
    /// Of a graph that runs at once: it has no state of its own, because inputs come with `compute`.
    Run(Arc<dyn Graph>),
    /// Of a language model. Dropping it ends the sequence.
    Sequence(Box<dyn Sequence>),
}

/// An error as a guest can ask about it.
#[derive(Debug)]
pub struct GuestError {
    code: errors::ErrorCode,
    message: String,
}

/// Longest error text that a guest gets to see.
const ERROR_BYTES_MAX: usize = 4 << 10;

impl From<NnError> for GuestError {
    fn from(error: NnError) -> GuestError {
        use errors::ErrorCode;
        let code = match error.kind() {
            NnErrorKind::InvalidArgument => ErrorCode::InvalidArgument,
            NnErrorKind::InvalidEncoding => ErrorCode::InvalidEncoding,
            NnErrorKind::Timeout => ErrorCode::Timeout,
            NnErrorKind::RuntimeError => ErrorCode::RuntimeError,
            NnErrorKind::UnsupportedOperation => ErrorCode::UnsupportedOperation,
            NnErrorKind::TooLarge => ErrorCode::TooLarge,
            NnErrorKind::NotFound => ErrorCode::NotFound,
            NnErrorKind::Security => ErrorCode::Security,
            // wasi:nn has no word for a full queue; the guest cannot do anything about it either.
            NnErrorKind::Overloaded => ErrorCode::Unknown,
        };
        let mut message = error.to_string();
        message.truncate(message.floor_char_boundary(ERROR_BYTES_MAX));
        GuestError { code, message }
    }
}

impl GuestState {
    fn note_overload(&mut self, error: &NnError) {
        if error.kind() == NnErrorKind::Overloaded {
            self.overloaded = true;
            self.log.line("warn", "the backend's queue is full");
        }
    }

    fn error(&mut self, error: NnError) -> wasmtime::Result<Resource<GuestError>> {
        self.note_overload(&error);
        Ok(self.table.push(GuestError::from(error))?)
    }

    /// Counts a new tensor against the request's budget.
    fn charge(&mut self, bytes: usize) -> Result<(), NnError> {
        let total = self.tensor_bytes.saturating_add(bytes as u64);
        if total > self.limits.tensor_bytes {
            return Err(NnError::new(
                NnErrorKind::TooLarge,
                format!(
                    "the request's tensors hold {total} bytes; the limit is {} (tensor_bytes)",
                    self.limits.tensor_bytes
                ),
            ));
        }
        self.tensor_bytes = total;
        Ok(())
    }

    fn push_tensor(&mut self, tensor: Tensor) -> wasmtime::Result<Result<Resource<Tensor>, NnError>> {
        match self.charge(tensor.data().len()) {
            Ok(()) => Ok(Ok(self.table.push(tensor)?)),
            Err(error) => Ok(Err(error)),
        }
    }

    fn take_tensor(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<Tensor> {
        let tensor = self.table.delete(tensor)?;
        self.tensor_bytes = self.tensor_bytes.saturating_sub(tensor.data().len() as u64);
        Ok(tensor)
    }

    /// The tensors behind a guest's handles, which it gives away with them.
    fn take_inputs(&mut self, inputs: Vec<(String, Resource<Tensor>)>) -> wasmtime::Result<Vec<(String, Tensor)>> {
        inputs.into_iter().map(|(name, tensor)| Ok((name, self.take_tensor(tensor)?))).collect()
    }

    /// A graph of the package by its name.
    fn graph(&self, name: &str) -> Result<Arc<dyn Graph>, NnError> {
        let Phase::Handle(request) = &self.phase else {
            let refusal = "graphs can be loaded only during handle: handles do not outlive init";
            return Err(NnError::new(NnErrorKind::UnsupportedOperation, refusal));
        };
        let found = request.graphs.iter().find(|(known, _)| known == name).map(|(_, graph)| Arc::clone(graph));
        found.ok_or_else(|| {
            let known = request.graphs.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
            let message = format!("the package has no graph '{name}'; its manifest lists: [{known}]");
            NnError::new(NnErrorKind::NotFound, message)
        })
    }

    async fn run(
        &mut self,
        graph: Arc<dyn Graph>,
        inputs: Vec<(String, Tensor)>,
    ) -> Result<Vec<(String, Tensor)>, NnError> {
        let Phase::Handle(request) = &mut self.phase else {
            return Err(NnError::new(NnErrorKind::UnsupportedOperation, "graphs can be used only during handle"));
        };
        if graph.sequences().is_some() {
            let refusal =
                "the graph is a language model, which answers step by step: use an execution context of wasi:nn";
            return Err(NnError::new(NnErrorKind::UnsupportedOperation, refusal));
        }
        let (executor, tenant, deadline) = (&request.executor, request.tenant, request.deadline);
        let begun = executor.begin(Compute { tenant, graph, inputs, deadline }, slots::is_alone());
        match slots::within_turn(begun).await? {
            Begun::Done(outputs) => Ok(outputs),
            Begun::OnThread(wait) => wait.outputs().await,
        }
    }
}

/// The next part of a sequence's answer.
async fn advance(
    phase: &mut Phase,
    sequence: &mut dyn Sequence,
    inputs: Vec<(String, Tensor)>,
) -> Result<Outputs, NnError> {
    let Phase::Handle(request) = phase else {
        return Err(NnError::new(NnErrorKind::UnsupportedOperation, "graphs can be used only during handle"));
    };
    sequence.compute(inputs, request.deadline).await
}

impl tensor::Host for GuestState {}
impl errors::Host for GuestState {}
impl inference::Host for GuestState {}

impl tensor::HostTensor for GuestState {
    fn new(&mut self, dims: Vec<u32>, ty: tensor::TensorType, data: Vec<u8>) -> wasmtime::Result<Resource<Tensor>> {
        // The interface's constructor cannot fail, so a wrong tensor is a trap; its text reaches the caller.
        let tensor = Tensor::new(from_wit(ty), dims, Bytes::from(data))
            .map_err(|error| wasmtime::Error::new(GuestMistake(error.to_string())))?;
        self.push_tensor(tensor)?.map_err(|error| wasmtime::Error::new(GuestMistake(error.to_string())))
    }

    fn dimensions(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<Vec<u32>> {
        Ok(self.table.get(&tensor)?.dims().to_vec())
    }

    fn ty(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<tensor::TensorType> {
        Ok(to_wit(self.table.get(&tensor)?.ty()))
    }

    fn data(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<Vec<u8>> {
        // Shadowed by `link_tensor_data`, which copies once instead of twice.
        Ok(self.table.get(&tensor)?.data().to_vec())
    }

    fn drop(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<()> {
        self.take_tensor(tensor)?;
        Ok(())
    }
}

/// Replaces `tensor.data` with a form that lowers the tensor's bytes straight into the guest: the generated one would
/// copy them into a vector first.
pub(super) fn link_tensor_data(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker.instance("wasi:nn/tensor@0.2.0-rc-2024-10-28")?.func_wrap(
        "[method]tensor.data",
        |store: StoreContextMut<'_, GuestState>, (tensor,): (Resource<Tensor>,)| {
            Ok((store.data().table.get(&tensor)?.data().clone(),))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

impl graph::Host for GuestState {
    fn load(
        &mut self,
        _: Vec<Vec<u8>>,
        _: graph::GraphEncoding,
        _: graph::ExecutionTarget,
    ) -> wasmtime::Result<Result<Resource<LoadedGraph>, Resource<GuestError>>> {
        let refusal = "graphs from bytes are not accepted: put the model in the package and use load-by-name";
        Ok(Err(self.error(NnError::new(NnErrorKind::Security, refusal))?))
    }

    fn load_by_name(&mut self, name: String) -> wasmtime::Result<Result<Resource<LoadedGraph>, Resource<GuestError>>> {
        match self.graph(&name) {
            Ok(graph) => Ok(Ok(self.table.push(LoadedGraph { graph })?)),
            Err(error) => Ok(Err(self.error(error)?)),
        }
    }
}

impl graph::HostGraph for GuestState {
    fn init_execution_context(
        &mut self,
        graph: Resource<LoadedGraph>,
    ) -> wasmtime::Result<Result<Resource<ExecutionContext>, Resource<GuestError>>> {
        let graph = Arc::clone(&self.table.get(&graph)?.graph);
        let Phase::Handle(request) = &self.phase else {
            let refusal = "graphs can be used only during handle";
            return Ok(Err(self.error(NnError::new(NnErrorKind::UnsupportedOperation, refusal))?));
        };
        let context = match graph.sequences() {
            Some(sequences) => ExecutionContext::Sequence(sequences.open(request.tenant)),
            None => ExecutionContext::Run(graph),
        };
        Ok(Ok(self.table.push(context)?))
    }

    fn drop(&mut self, graph: Resource<LoadedGraph>) -> wasmtime::Result<()> {
        self.table.delete(graph)?;
        Ok(())
    }
}

impl inference::HostGraphExecutionContext for GuestState {
    async fn compute(
        &mut self,
        context: Resource<ExecutionContext>,
        inputs: Vec<(String, Resource<Tensor>)>,
    ) -> wasmtime::Result<Result<Vec<(String, Resource<Tensor>)>, Resource<GuestError>>> {
        let inputs = self.take_inputs(inputs)?;
        let outputs = match self.table.get_mut(&context)? {
            ExecutionContext::Run(graph) => {
                let graph = Arc::clone(graph);
                self.run(graph, inputs).await
            }
            ExecutionContext::Sequence(sequence) => advance(&mut self.phase, &mut **sequence, inputs).await,
        };
        let outputs = match outputs {
            Ok(outputs) => outputs,
            Err(error) => return Ok(Err(self.error(error)?)),
        };
        let mut handles = Vec::with_capacity(outputs.len());
        for (name, tensor) in outputs {
            match self.push_tensor(tensor)? {
                Ok(handle) => handles.push((name, handle)),
                Err(error) => return Ok(Err(self.error(error)?)),
            }
        }
        Ok(Ok(handles))
    }

    fn drop(&mut self, context: Resource<ExecutionContext>) -> wasmtime::Result<()> {
        self.table.delete(context)?;
        Ok(())
    }
}

impl compute::Host for GuestState {
    async fn run(
        &mut self,
        graph: String,
        inputs: Vec<compute::Input>,
    ) -> wasmtime::Result<Result<compute::Outputs, compute::ComputeError>> {
        let outputs = self.run_values(&graph, inputs).await;
        Ok(outputs.map_err(|error| {
            self.note_overload(&error);
            let GuestError { code, message } = GuestError::from(error);
            compute::ComputeError { code, message }
        }))
    }
}

impl GuestState {
    async fn run_values(&mut self, graph: &str, inputs: Vec<compute::Input>) -> Result<compute::Outputs, NnError> {
        let graph = self.graph(graph)?;
        // Bounded like tensors that stay on this side, though these come straight from the guest and go there.
        self.check_fits(inputs.iter().map(|input| input.data.len()).sum())?;
        let inputs = inputs.into_iter().map(from_input).collect::<Result<_, _>>()?;
        let outputs = GuestState::run(self, graph, inputs).await?;
        self.check_fits(outputs.iter().map(|(_, tensor)| tensor.data().len()).sum())?;
        Ok(to_outputs(outputs))
    }

    fn check_fits(&mut self, bytes: usize) -> Result<(), NnError> {
        self.charge(bytes)?;
        self.tensor_bytes -= bytes as u64;
        Ok(())
    }
}

fn from_input(input: compute::Input) -> Result<(String, Tensor), NnError> {
    Ok((input.name, Tensor::new(from_wit(input.ty), input.dimensions, input.data)?))
}

/// Where values begin in what [`to_outputs`] packs: at multiples of this, so that they can be read where they lie.
const OUTPUT_ALIGN: usize = 16;

/// As `wit/endpoint.wit` packs them. Sizes fit: the budget of a request for tensors is at most 2 GiB, and so are names.
fn to_outputs(outputs: Vec<(String, Tensor)>) -> compute::Outputs {
    let head_len = |(name, tensor): &(String, Tensor)| 4 + tensor.dims().len() + name.len().div_ceil(4);
    let mut heads = Vec::with_capacity(outputs.iter().map(head_len).sum());
    for (name, tensor) in &outputs {
        heads.extend([to_wit(tensor.ty()) as u32, tensor.data().len() as u32, tensor.dims().len() as u32]);
        heads.extend_from_slice(tensor.dims());
        heads.push(name.len() as u32);
        let (numbers, rest) = name.as_bytes().as_chunks();
        heads.extend(numbers.iter().map(|bytes| u32::from_le_bytes(*bytes)));
        if !rest.is_empty() {
            heads.push(rest.iter().rev().fold(0, |number, byte| (number << 8) | u32::from(*byte)));
        }
    }
    compute::Outputs { heads, data: packed(outputs.into_iter().map(|(_, tensor)| tensor.into_data()).collect()) }
}

/// The values one behind the other. Those of a single output are not copied.
fn packed(mut values: Vec<Bytes>) -> Vec<u8> {
    if values.len() == 1
        && let Some(only) = values.pop()
    {
        return only.into();
    }
    let mut data = Vec::with_capacity(values.iter().map(|values| values.len().next_multiple_of(OUTPUT_ALIGN)).sum());
    for values in values {
        data.resize(data.len().next_multiple_of(OUTPUT_ALIGN), 0);
        data.extend_from_slice(&values);
    }
    data
}

impl errors::HostError for GuestState {
    fn code(&mut self, error: Resource<GuestError>) -> wasmtime::Result<errors::ErrorCode> {
        Ok(self.table.get(&error)?.code)
    }

    fn data(&mut self, error: Resource<GuestError>) -> wasmtime::Result<String> {
        Ok(self.table.get(&error)?.message.clone())
    }

    fn drop(&mut self, error: Resource<GuestError>) -> wasmtime::Result<()> {
        self.table.delete(error)?;
        Ok(())
    }
}

/// A misuse of an interface that has no error result: ends the instance with a text for the caller.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct GuestMistake(pub(super) String);

fn from_wit(ty: tensor::TensorType) -> TensorType {
    match ty {
        tensor::TensorType::Fp16 => TensorType::Fp16,
        tensor::TensorType::Fp32 => TensorType::Fp32,
        tensor::TensorType::Fp64 => TensorType::Fp64,
        tensor::TensorType::Bf16 => TensorType::Bf16,
        tensor::TensorType::U8 => TensorType::U8,
        tensor::TensorType::I32 => TensorType::I32,
        tensor::TensorType::I64 => TensorType::I64,
    }
}

fn to_wit(ty: TensorType) -> tensor::TensorType {
    match ty {
        TensorType::Fp16 => tensor::TensorType::Fp16,
        TensorType::Fp32 => tensor::TensorType::Fp32,
        TensorType::Fp64 => tensor::TensorType::Fp64,
        TensorType::Bf16 => tensor::TensorType::Bf16,
        TensorType::U8 => tensor::TensorType::U8,
        TensorType::I32 => tensor::TensorType::I32,
        TensorType::I64 => tensor::TensorType::I64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(name: &str, ty: TensorType, dims: &[u32], values: &[u8]) -> (String, Tensor) {
        (name.to_owned(), Tensor::new(ty, dims.to_vec(), values.to_vec()).unwrap())
    }

    #[test]
    fn outputs_are_packed_as_the_contract_says() {
        let outputs = to_outputs(vec![
            output("label", TensorType::I64, &[1], &[7, 0, 0, 0, 0, 0, 0, 0]),
            output("none", TensorType::Fp32, &[0, 384], &[]),
            output("", TensorType::U8, &[], &[9]),
        ]);
        let label = [6, 8, 1, 1, 5, u32::from_le_bytes(*b"labe"), u32::from(b'l')];
        let none = [1, 0, 2, 0, 384, 4, u32::from_le_bytes(*b"none")];
        assert_eq!(outputs.heads, [label.as_slice(), &none, &[4, 1, 0, 0]].concat());
        let mut data = [0; 17];
        (data[0], data[16]) = (7, 9);
        assert_eq!(outputs.data, data);
    }

    #[test]
    fn a_graph_without_outputs_gives_nothing() {
        let outputs = to_outputs(vec![]);
        assert!(outputs.heads.is_empty() && outputs.data.is_empty());
    }

    #[test]
    fn the_values_of_a_single_output_are_not_copied() {
        let output = output("y", TensorType::U8, &[3], b"abc");
        let values = output.1.data().as_ptr();
        assert_eq!(to_outputs(vec![output]).data.as_ptr(), values);
    }
}
