//! tract: pure Rust, in every build. Slower than ONNX Runtime and without some operators, but nothing to install.
//!
//! tract optimises for concrete shapes, so a graph keeps the parsed model and builds a plan the first time each set of
//! input shapes is seen. tract panics on some odd models instead of returning an error: everything that runs its code is
//! wrapped in `catch_unwind`, which is sound since a plan is immutable and what a failed run built is dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tract_onnx::prelude::{
    DatumType, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, TValue, TVec,
    TypedRunnableModel,
};

use super::{BackendId, files_bytes, onnx_file, without_path};
use crate::nn::error::panic_text;
use crate::nn::{
    Backend, Cancel, ElementType, Graph, GraphInfo, GraphSource, Inputs, NnError, NnErrorKind, RANK_MAX, Schedule,
    Tensor, TensorType,
};

/// Plans kept per graph, the least recently used goes first. A plan may hold its own packed copy of the weights.
const PLANS_MAX: usize = 8;

pub(super) struct Tract;

impl Backend for Tract {
    fn id(&self) -> BackendId {
        BackendId::Tract
    }

    fn version(&self) -> &str {
        VERSION
    }

    fn load(&self, source: &GraphSource) -> Result<Arc<dyn Graph>, NnError> {
        self.check_target(source.target)?;
        // tract would follow references to other files.
        let info = onnx_file::inspect(&source.path, &source.external_files)?;
        for tensor in info.inputs.iter().chain(&info.outputs) {
            datum_type(tensor.element).ok_or_else(|| {
                let (name, element) = (&tensor.name, tensor.element.name());
                NnError::unsupported(format!("{name:?} has elements of type {element}, which tract does not have"))
            })?;
        }
        let model = guarded(NnErrorKind::InvalidEncoding, || {
            // The declared shapes of inner values clash with concrete inputs ("impossible to unify").
            tract_onnx::onnx().with_ignore_value_info(true).model_for_path(&source.path)
        });
        let model =
            model.map_err(|error| NnError::new(error.kind(), without_path(&error.to_string(), &source.path)))?;
        if model.inputs.len() != info.inputs.len() || model.outputs.len() != info.outputs.len() {
            return Err(NnError::invalid_encoding(
                "tract reads other inputs or outputs from the model than it declares",
            ));
        }
        let missing: Vec<_> =
            model.nodes().iter().map(|node| node.op.name()).filter(|op| op.starts_with("Unimpl")).collect();
        if !missing.is_empty() {
            return Err(NnError::unsupported(format!("tract does not have these operators of the model: {missing:?}")));
        }
        // The parsed weights, and a plan's packed ones.
        let memory_bytes = 2 * files_bytes(source);
        Ok(Arc::new(TractGraph {
            info,
            model,
            memory_bytes,
            // tract cannot be stopped.
            schedule: Schedule::threads_only(source.batch.clone()),
            plans: Mutex::default(),
            building: Mutex::default(),
        }))
    }
}

/// The crate does not export its version; `Cargo.toml` pins this one.
const VERSION: &str = "0.23.9";

struct TractGraph {
    info: GraphInfo,
    model: InferenceModel,
    memory_bytes: u64,
    schedule: Schedule,
    /// Most recently used last.
    plans: Mutex<Vec<(Shapes, Arc<Plan>)>>,
    /// Held while a plan is built, so that a burst of requests of a new shape builds it once.
    building: Mutex<()>,
}

type Shapes = Vec<Vec<u32>>;
type Plan = TypedRunnableModel;

impl Graph for TractGraph {
    fn info(&self) -> &GraphInfo {
        &self.info
    }

    fn backend(&self) -> BackendId {
        BackendId::Tract
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// tract cannot be stopped: a cancelled run goes on to its end.
    fn run(&self, inputs: Inputs, cancel: &Cancel) -> Result<Vec<(String, Tensor)>, NnError> {
        if inputs.tensors().len() != self.info.inputs.len() {
            return Err(NnError::invalid_argument("the inputs were checked against another graph"));
        }
        let plan = self.plan(&inputs)?;
        if cancel.is_cancelled() {
            return Err(NnError::timeout("the computation was cancelled"));
        }
        let outputs = guarded(NnErrorKind::RuntimeError, || {
            let tensors = inputs.tensors().iter().zip(&self.info.inputs);
            let tensors = tensors.map(|(tensor, info)| to_tract(tensor, info.element));
            plan.run(tensors.collect::<Result<TVec<TValue>, _>>()?)
        })?;
        let outputs = outputs.into_iter().zip(&self.info.outputs);
        outputs.map(|(value, info)| Ok((info.name.clone(), from_tract(&value, &info.name)?))).collect()
    }
}

impl TractGraph {
    fn plan(&self, inputs: &Inputs) -> Result<Arc<Plan>, NnError> {
        let shapes: Shapes = inputs.tensors().iter().map(|tensor| tensor.dims().to_vec()).collect();
        if let Some(plan) = self.cached(&shapes) {
            return Ok(plan);
        }
        let _building = lock(&self.building);
        if let Some(plan) = self.cached(&shapes) {
            return Ok(plan);
        }
        let plan = guarded(NnErrorKind::RuntimeError, || {
            let mut model = self.model.clone();
            for (index, (info, dims)) in self.info.inputs.iter().zip(&shapes).enumerate() {
                let ty = datum_type(info.element).ok_or_else(|| anyhow::anyhow!("type not in tract"))?;
                let dims: TVec<usize> = dims.iter().map(|&dim| dim as usize).collect();
                model.set_input_fact(index, InferenceFact::dt_shape(ty, dims))?;
            }
            model.into_optimized()?.into_runnable()
        })?;
        let mut plans = lock(&self.plans);
        if plans.len() == PLANS_MAX {
            plans.remove(0);
        }
        plans.push((shapes, plan.clone()));
        Ok(plan)
    }

    fn cached(&self, shapes: &Shapes) -> Option<Arc<Plan>> {
        let mut plans = lock(&self.plans);
        let index = plans.iter().position(|(of, _)| of == shapes)?;
        plans[index..].rotate_left(1);
        plans.last().map(|(_, plan)| plan.clone())
    }
}

/// A lock whose holder panicked is still good: no invariant spans a call that could panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs tract's code: its errors get `kind`, its panics become errors.
fn guarded<T>(kind: NnErrorKind, run: impl FnOnce() -> anyhow::Result<T>) -> Result<T, NnError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|error| NnError::new(kind, format!("tract: {error:#}"))),
        Err(panic) => Err(NnError::runtime(format!("tract panicked: {}", panic_text(&*panic)))),
    }
}

/// `None` for brain floats, which tract does not have.
fn datum_type(element: ElementType) -> Option<DatumType> {
    Some(match element {
        ElementType::Fp16 => DatumType::F16,
        ElementType::Fp32 => DatumType::F32,
        ElementType::Fp64 => DatumType::F64,
        ElementType::U8 => DatumType::U8,
        ElementType::I32 => DatumType::I32,
        ElementType::I64 => DatumType::I64,
        ElementType::Bool => DatumType::Bool,
        ElementType::Int8 => DatumType::I8,
        ElementType::Bf16 => return None,
    })
}

fn to_tract(tensor: &Tensor, element: ElementType) -> anyhow::Result<TValue> {
    let ty = datum_type(element).ok_or_else(|| anyhow::anyhow!("type not in tract"))?;
    let dims: TVec<usize> = tensor.dims().iter().map(|&dim| dim as usize).collect();
    let mut value = tract_onnx::prelude::Tensor::zero_dt(ty, &dims)?;
    if !tensor.data().is_empty() {
        value.as_bytes_mut().copy_from_slice(tensor.data());
    }
    Ok(value.into())
}

fn from_tract(value: &TValue, name: &str) -> Result<Tensor, NnError> {
    let ty = match value.datum_type() {
        DatumType::F16 => TensorType::Fp16,
        DatumType::F32 => TensorType::Fp32,
        DatumType::F64 => TensorType::Fp64,
        DatumType::U8 | DatumType::Bool | DatumType::I8 => TensorType::U8,
        DatumType::I32 => TensorType::I32,
        // TDim is tract's integer for sizes: what operators like Shape give, and an i64 to everybody else.
        DatumType::I64 | DatumType::TDim => TensorType::I64,
        other => {
            let text = format!("output {name:?} has elements of type {other:?}, which wasi:nn does not have");
            return Err(NnError::unsupported(text));
        }
    };
    let dims = value.shape().iter().map(|&dim| u32::try_from(dim)).collect::<Result<Vec<u32>, _>>();
    let dims = dims.map_err(|_| NnError::unsupported(format!("output {name:?} has a dimension larger than 2^32")))?;
    if dims.len() > RANK_MAX {
        let rank = dims.len();
        return Err(NnError::unsupported(format!("output {name:?} has {rank} dimensions, the most is {RANK_MAX}")));
    }
    let data = guarded(NnErrorKind::RuntimeError, || match value.datum_type() {
        DatumType::TDim => Ok(value.cast_to_dt(DatumType::I64)?.as_bytes().to_vec()),
        _ => Ok(value.as_bytes().to_vec()),
    })?;
    Tensor::new(ty, dims, data)
}
