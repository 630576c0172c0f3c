//! Tensor compute: graphs are loaded by a backend once, shared by every request, and run on the executor's threads.
//! This module knows tensors, graphs and backends; it knows nothing of guests, HTTP or the store.
//!
//! In the order of a compute: [`Backends`] says who can run a graph, [`Graphs`] holds the loaded ones under a memory
//! budget, [`GraphInfo::check`] turns what a guest sent into [`Inputs`] that fit the graph, [`Executor`] decides where
//! they run, [`batcher`] runs those of several requests together, [`threads`] says how many threads a run has,
//! [`Graph::run`] is the backend's part. A language model is not run but driven: [`Graph::sequences`].
//!
//! Invariants: ML libraries are known only below [`backends`]; whatever a model file or a tensor holds, the answer is an
//! [`NnError`], never a panic; an execution target is never changed silently.

pub mod backends;
pub mod batcher;
mod busy;
mod cancel;
mod error;
mod executor;
#[cfg(test)]
mod fake;
mod graphs;
mod sequence;
mod tensor;
#[cfg(test)]
pub(crate) mod test_models;
pub mod threads;
mod turn;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use backends::{BackendChoice, BackendId, Backends};
pub use batcher::{BatchSpec, Outputs, Profile, Schedule, Tenant};
pub use busy::BusyThreads;
pub use cancel::Cancel;
pub use error::{NnError, NnErrorKind};
pub use executor::{Begun, Compute, Executor, OnThread};
pub use graphs::{GraphKey, Graphs, GraphsStats};
pub use sequence::{Sequence, SequenceCounters, SequenceSpec, Sequences};
pub use tensor::{ElementType, RANK_MAX, Tensor, TensorType};
pub use threads::Threads;

/// Where a graph should run, as asked. Never changed silently: a target that no backend has is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExecutionTarget {
    /// The host's processors.
    Cpu,
    /// A graphics processor.
    Gpu,
    /// A tensor processor.
    Tpu,
}

impl ExecutionTarget {
    /// The name in the WIT.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
            Self::Tpu => "tpu",
        }
    }

    fn unsupported_by(self, backend: BackendId) -> NnError {
        NnError::unsupported(format!("backend {} has no execution target {}", backend.name(), self.name()))
    }
}

/// A library that can run graphs.
pub trait Backend: Send + Sync {
    /// Which one it is.
    fn id(&self) -> BackendId;

    /// The library's version, for people.
    fn version(&self) -> &str;

    /// The file it was loaded from; none when it is built in.
    fn library(&self) -> Option<&Path> {
        None
    }

    /// `UnsupportedOperation`, with what is missing, for a target on which graphs cannot run here.
    fn check_target(&self, target: ExecutionTarget) -> Result<(), NnError> {
        match target {
            ExecutionTarget::Cpu => Ok(()),
            ExecutionTarget::Gpu | ExecutionTarget::Tpu => Err(target.unsupported_by(self.id())),
        }
    }

    /// Whether a run can be divided between threads on a target; else it has one.
    fn divides_runs(&self, _target: ExecutionTarget) -> bool {
        false
    }

    /// Threads of the runs of a graph whose package does not say, out of `max`; none to measure how many pay.
    fn threads_unmeasured(&self, _max: u32) -> Option<u32> {
        None
    }

    /// Whether a model file may bring down the process that loads it: a deploy tries it in another one first.
    fn loads_at_risk(&self) -> bool {
        false
    }

    /// Loads a graph: blocks for as long as reading and optimising the model takes. `InvalidEncoding` when the file is
    /// not a good model, `UnsupportedOperation` when it asks for what this backend or `wasi:nn` does not have.
    fn load(&self, source: &GraphSource) -> Result<Arc<dyn Graph>, NnError>;

    /// Names the form into which [`Backend::convert`] brings models for a target on this machine: two of the same name
    /// are interchangeable. None when models are loaded as they are.
    fn conversion(&self, _target: ExecutionTarget) -> Option<&str> {
        None
    }

    /// Writes the form of a model that loads fastest: for [`GraphSource::converted`]. Blocks for longer than a load.
    fn convert(&self, _source: &GraphSource, _to: &Path) -> Result<(), NnError> {
        Err(NnError::unsupported("this backend loads models as they are"))
    }
}

/// What to load.
#[derive(Debug, Clone)]
pub struct GraphSource {
    /// The model file.
    pub path: PathBuf,
    /// Names of the files beside it from which it may read weights. A model that names any other file is refused.
    pub external_files: Vec<String>,
    /// Where it shall run.
    pub target: ExecutionTarget,
    /// What its package says about batching.
    pub batch: BatchSpec,
    /// Threads of one run, for a backend that divides runs.
    pub intra_op_threads: u32,
    /// Where [`Backend::convert`] wrote this model before. If nothing usable is there, the model file is loaded, and the
    /// log says so.
    pub converted: Option<PathBuf>,
    /// What its package says about sequences, if it is driven by them.
    pub sequences: SequenceSpec,
    /// What this process has for it.
    pub host: LoadHost,
}

/// What the process that loads a graph has for it.
#[derive(Debug, Clone)]
pub struct LoadHost {
    /// Most memory that it may take: a backend that knows beforehand what it will allocate refuses more with `TooLarge`.
    pub memory_bytes_max: u64,
    /// The processor's threads, for a backend that computes on threads of its own.
    pub busy: Arc<BusyThreads>,
    /// Where it counts its sequences, if it has any.
    pub sequences: Arc<SequenceCounters>,
}

impl Default for LoadHost {
    /// Memory without limit and one thread.
    fn default() -> LoadHost {
        LoadHost { memory_bytes_max: u64::MAX, busy: BusyThreads::new(1), sequences: Arc::default() }
    }
}

/// A loaded model: immutable, shared, safe to run from many threads at once.
pub trait Graph: Send + Sync {
    /// What goes in and comes out.
    fn info(&self) -> &GraphInfo;

    /// Who runs it.
    fn backend(&self) -> BackendId;

    /// An estimate of the memory it holds while loaded, in bytes.
    fn memory_bytes(&self) -> u64;

    /// What is known of its runs.
    fn schedule(&self) -> &Schedule;

    /// Threads that one run keeps busy, the one it is called on included.
    fn intra_op_threads(&self) -> u32 {
        1
    }

    /// How it is driven, for a graph that answers step by step. [`Graph::run`] is `UnsupportedOperation` then.
    fn sequences(&self) -> Option<&dyn Sequences> {
        None
    }

    /// Computes all outputs, in the model's order; blocks until done. A backend that can stop early does so when
    /// `cancel` says so, with `Timeout`.
    fn run(&self, inputs: Inputs, cancel: &Cancel) -> Result<Vec<(String, Tensor)>, NnError>;
}

/// The loaded graphs of a package, by the names that its guest knows.
pub type NamedGraphs = Arc<[(String, Arc<dyn Graph>)]>;

/// A graph's signature, as the model file declares it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GraphInfo {
    /// Required inputs, in the model's order; constants (initializers) are not among them.
    pub inputs: Vec<TensorInfo>,
    /// Outputs, in the model's order.
    pub outputs: Vec<TensorInfo>,
    /// Other facts that the model file states, by its own keys.
    pub metadata: Arc<BTreeMap<String, String>>,
}

/// One input or output of a graph. `Display` is for messages: `FP32 [batch, 4]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The model's name for it.
    pub name: String,
    /// Type of its elements.
    pub element: ElementType,
    /// Its dimensions; `None` when the model does not say even how many there are.
    pub dims: Option<Vec<Dim>>,
}

/// One dimension of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// Always this size.
    Fixed(u32),
    /// Any size, with the model's name for it if it gave one.
    Free(Option<String>),
}

/// Tensors that fit a graph's signature, in the order of [`GraphInfo::inputs`]. Only [`GraphInfo::check`] makes them.
#[derive(Debug, Clone)]
pub struct Inputs {
    tensors: Vec<Tensor>,
}

impl Inputs {
    /// The tensors, in the order of [`GraphInfo::inputs`].
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// How many rows they hold, if axis 0 is a batch: the outermost dimension of the first input, 1 for a scalar.
    pub fn rows(&self) -> u32 {
        self.tensors.first().and_then(|tensor| tensor.dims().first()).copied().unwrap_or(1)
    }
}

impl GraphInfo {
    /// Sorts a guest's named tensors into the graph's order. A name that is unknown, missing or twice there, another
    /// element type, rank or fixed dimension: `InvalidArgument`, saying input, expected and got. `[1]` passes for a
    /// scalar and a scalar for `[1]`, since the WIT tells guests to write scalars so.
    pub fn check(&self, inputs: Vec<(String, Tensor)>) -> Result<Inputs, NnError> {
        let mut slots: Vec<Option<Tensor>> = vec![None; self.inputs.len()];
        for (name, tensor) in inputs {
            let Some(index) = self.inputs.iter().position(|info| info.name == name) else {
                let known: Vec<&str> = self.inputs.iter().map(|info| info.name.as_str()).collect();
                return Err(NnError::invalid_argument(format!("unknown input {name:?}: the graph has {known:?}")));
            };
            if slots[index].is_some() {
                return Err(NnError::invalid_argument(format!("input {name:?} is given twice")));
            }
            slots[index] = Some(self.inputs[index].accept(tensor)?);
        }
        let tensors = slots.into_iter().zip(&self.inputs).map(|(slot, info)| {
            slot.ok_or_else(|| NnError::invalid_argument(format!("input {:?} is missing: expected {info}", info.name)))
        });
        Ok(Inputs { tensors: tensors.collect::<Result<_, _>>()? })
    }
}

impl TensorInfo {
    fn accept(&self, tensor: Tensor) -> Result<Tensor, NnError> {
        let wrong = |tensor: &Tensor| {
            let (ty, dims) = (tensor.ty().name(), tensor.dims());
            NnError::invalid_argument(format!("input {:?}: expected {self}, got {ty} {dims:?}", self.name))
        };
        if tensor.ty() != self.element.travels_as() {
            return Err(wrong(&tensor));
        }
        // Backends are C++ and Rust that assume a bool is 0 or 1: anything else would be undefined there.
        if self.element == ElementType::Bool && tensor.data().iter().any(|&byte| byte > 1) {
            let name = &self.name;
            return Err(NnError::invalid_argument(format!(
                "input {name:?}: a BOOL is a byte 0 or 1, got another value"
            )));
        }
        match &self.dims {
            None => Ok(tensor),
            Some(dims) if fits(dims, tensor.dims()) => Ok(tensor),
            Some(dims) if dims.is_empty() && tensor.dims() == [1] => Ok(tensor.with_scalar_dims(vec![])),
            Some(dims) if tensor.dims().is_empty() && fits(dims, &[1]) => Ok(tensor.with_scalar_dims(vec![1])),
            Some(_) => Err(wrong(&tensor)),
        }
    }
}

fn fits(expected: &[Dim], got: &[u32]) -> bool {
    expected.len() == got.len()
        && expected.iter().zip(got).all(|(expected, got)| match expected {
            Dim::Fixed(size) => size == got,
            Dim::Free(_) => true,
        })
}

impl fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.element.name())?;
        if self.element.travels_as().name() != self.element.name() {
            write!(f, " (as {})", self.element.travels_as().name())?;
        }
        let Some(dims) = &self.dims else { return f.write_str(" of any shape") };
        f.write_str(" [")?;
        for (index, dim) in dims.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            match dim {
                Dim::Fixed(size) => write!(f, "{comma}{size}")?,
                Dim::Free(Some(symbol)) => write!(f, "{comma}{symbol}")?,
                Dim::Free(None) => write!(f, "{comma}?")?,
            }
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> GraphInfo {
        let tensor =
            |name: &str, element, dims: &[Dim]| TensorInfo { name: name.into(), element, dims: Some(dims.into()) };
        GraphInfo {
            inputs: vec![
                tensor("x", ElementType::Fp32, &[Dim::Free(Some("batch".into())), Dim::Fixed(2)]),
                tensor("scale", ElementType::I64, &[]),
                tensor("mask", ElementType::Bool, &[Dim::Free(None)]),
            ],
            ..GraphInfo::default()
        }
    }

    fn good() -> Vec<(String, Tensor)> {
        vec![
            ("mask".into(), Tensor::new(TensorType::U8, vec![3], vec![0, 1, 0]).unwrap()),
            ("x".into(), Tensor::new(TensorType::Fp32, vec![5, 2], vec![0; 40]).unwrap()),
            ("scale".into(), Tensor::new(TensorType::I64, vec![1], vec![0; 8]).unwrap()),
        ]
    }

    #[test]
    fn inputs_come_out_in_the_graphs_order_and_scalars_may_be_written_as_one_element() {
        let inputs = info().check(good()).unwrap();
        assert_eq!(inputs.rows(), 5);
        let dims: Vec<&[u32]> = inputs.tensors().iter().map(Tensor::dims).collect();
        assert_eq!(dims, [&[5, 2][..], &[], &[3]]);

        let mut scalar_mask = good();
        scalar_mask[0].1 = Tensor::new(TensorType::U8, vec![], vec![1]).unwrap();
        assert_eq!(info().check(scalar_mask).unwrap().tensors()[2].dims(), [1]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_input_expected_and_got() {
        let with = |change: fn(&mut Vec<(String, Tensor)>)| {
            let mut inputs = good();
            change(&mut inputs);
            let error = info().check(inputs).unwrap_err();
            assert_eq!(error.kind(), NnErrorKind::InvalidArgument);
            error.to_string()
        };
        assert_eq!(with(|i| i[1].0 = "y".into()), r#"unknown input "y": the graph has ["x", "scale", "mask"]"#);
        assert_eq!(with(|i| drop(i.remove(1))), r#"input "x" is missing: expected FP32 [batch, 2]"#);
        assert_eq!(with(|i| i.push(i[1].clone())), r#"input "x" is given twice"#);
        assert_eq!(
            with(|i| i[1].1 = Tensor::new(TensorType::I32, vec![5, 2], vec![0; 40]).unwrap()),
            r#"input "x": expected FP32 [batch, 2], got I32 [5, 2]"#
        );
        assert_eq!(
            with(|i| i[1].1 = Tensor::new(TensorType::Fp32, vec![10], vec![0; 40]).unwrap()),
            r#"input "x": expected FP32 [batch, 2], got FP32 [10]"#
        );
        assert_eq!(
            with(|i| i[1].1 = Tensor::new(TensorType::Fp32, vec![2, 5], vec![0; 40]).unwrap()),
            r#"input "x": expected FP32 [batch, 2], got FP32 [2, 5]"#
        );
        assert_eq!(
            with(|i| i[2].1 = Tensor::new(TensorType::I64, vec![2], vec![0; 16]).unwrap()),
            r#"input "scale": expected I64 [], got I64 [2]"#
        );
        assert!(with(|i| i[0].1 = Tensor::new(TensorType::U8, vec![2], vec![1, 2]).unwrap()).contains("0 or 1"));
    }
}
