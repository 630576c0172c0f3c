//! One loaded graph, and how it is run.

use std::ffi::{CString, c_char};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use ort::AsPointer;
use ort::session::SharedSessionInner;
use ort::sys::{OrtRunOptions, OrtValue};

use super::converted::MappedModel;
use super::packing::Packing;
use super::value::{InputValue, Value};
use super::{BackendId, Library, check};
use crate::nn::{Cancel, Graph, GraphInfo, Inputs, NnError, Schedule, Tensor, TensorInfo};

/// A session of ONNX Runtime, and the file that it reads its weights from in place, if it does.
pub(super) struct Loaded {
    /// Dropped before the mapping: fields drop in order.
    session: Arc<SharedSessionInner>,
    _mapped: Option<Arc<MappedModel>>,
    /// Held by a run where only one may go on at a time.
    alone: Option<Mutex<()>>,
}

impl Loaded {
    /// A session with all that it needs in memory of its own.
    pub(super) fn new(session: Arc<SharedSessionInner>) -> Self {
        Self { session, _mapped: None, alone: None }
    }

    /// A session that reads from `model`.
    pub(super) fn mapped(session: Arc<SharedSessionInner>, model: Arc<MappedModel>) -> Self {
        Self { session, _mapped: Some(model), alone: None }
    }

    /// A session on a GPU. Its runs would take turns on the device anyway; one at a time does not depend on how the
    /// provider shares its streams and buffers between threads.
    pub(super) fn on_gpu(session: Arc<SharedSessionInner>) -> Self {
        Self { session, _mapped: None, alone: Some(Mutex::new(())) }
    }
}

/// A loaded graph.
pub(super) struct Session {
    info: GraphInfo,
    input_names: Vec<CString>,
    output_names: Vec<CString>,
    memory_bytes: u64,
    schedule: Schedule,
    intra_op_threads: u32,
    /// Replaced once, by `packing`. A run stays with the one it took.
    pub(super) current: Arc<ArcSwap<Loaded>>,
    packing: Option<Packing>,
    library: &'static Library,
}

impl Session {
    /// `memory_bytes` holds for both forms of a converted model: each weight is either packed or read where it is mapped.
    pub(super) fn new(
        library: &'static Library,
        info: GraphInfo,
        loaded: Loaded,
        packing: Option<Packing>,
        memory_bytes: u64,
        schedule: Schedule,
    ) -> Result<Self, NnError> {
        let c_strings = |infos: &[TensorInfo]| {
            infos.iter().map(|info| CString::new(info.name.as_str())).collect::<Result<Vec<_>, _>>()
        };
        let nul = |_| NnError::invalid_encoding("a name contains a zero byte");
        Ok(Self {
            input_names: c_strings(&info.inputs).map_err(nul)?,
            output_names: c_strings(&info.outputs).map_err(nul)?,
            info,
            memory_bytes,
            schedule,
            intra_op_threads: 1,
            current: Arc::new(ArcSwap::from_pointee(loaded)),
            packing,
            library,
        })
    }

    /// Tells how many threads its runs have.
    pub(super) fn with_threads(self, intra_op_threads: u32) -> Self {
        Self { intra_op_threads: intra_op_threads.max(1), ..self }
    }
}

impl Graph for Session {
    fn info(&self) -> &GraphInfo {
        &self.info
    }

    fn backend(&self) -> BackendId {
        BackendId::OnnxRuntime
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    fn intra_op_threads(&self) -> u32 {
        self.intra_op_threads
    }

    #[allow(unsafe_code)]
    fn run(&self, inputs: Inputs, cancel: &Cancel) -> Result<Vec<(String, Tensor)>, NnError> {
        if inputs.tensors().len() != self.input_names.len() {
            return Err(NnError::invalid_argument("the inputs were checked against another graph"));
        }
        let inputs = inputs.tensors().iter().zip(&self.info.inputs);
        let inputs = inputs.map(|(tensor, info)| InputValue::new(tensor, info.element, &self.library.cpu));
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;

        let options = Arc::new(RunOptions::new()?);
        let stop = options.clone();
        let disarm = cancel.on_cancel(move || stop.terminate())?;

        let input_names: Vec<*const c_char> = self.input_names.iter().map(|name| name.as_ptr()).collect();
        let output_names: Vec<*const c_char> = self.output_names.iter().map(|name| name.as_ptr()).collect();
        let input_values: Vec<*const OrtValue> =
            inputs.iter().map(|input| input.value.0.as_ptr().cast_const()).collect();
        let mut output_values: Vec<*mut OrtValue> = vec![ptr::null_mut(); output_names.len()];
        let loaded = self.current.load_full();
        // Whoever is cancelled while it waits here has set the flag with which its run ends at once.
        let alone = loaded.alone.as_ref().map(|alone| alone.lock().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: the session lives as long as `loaded`; running it from several threads at once is allowed for the CPU
        // provider (module comment), and with any other `alone` is held. The names are C strings owned by `self`. Each
        // array has the length passed with it: inputs were counted above, outputs are made to the length of their names.
        // The input values, and the bytes they point into, live in `inputs` until the end of this function. Null outputs ask ONNX Runtime to allocate them, in the host's memory. It catches its own exceptions and returns them as a
        // status.
        let status = unsafe {
            (ort::api().Run)(
                loaded.session.ptr().cast_mut(),
                options.0.as_ptr(),
                input_names.as_ptr(),
                input_values.as_ptr(),
                input_values.len(),
                output_names.as_ptr(),
                output_names.len(),
                output_values.as_mut_ptr(),
            )
        };
        drop((alone, disarm));
        // Owned at once, whatever the status: a run that fails half way may have filled some.
        let outputs: Vec<Option<Value>> =
            output_values.into_iter().map(|value| NonNull::new(value).map(Value)).collect();
        match check(status) {
            Err(_) if cancel.is_cancelled() => return Err(NnError::timeout("the computation was cancelled")),
            result => result?,
        }
        if let Some(packing) = &self.packing {
            packing.ran(&self.current);
        }

        let outputs = outputs.into_iter().zip(&self.info.outputs).map(|(value, info)| {
            let value = value.ok_or_else(|| NnError::runtime(format!("output {:?} was not computed", info.name)))?;
            let tensor = value.into_tensor(&inputs, &loaded).map_err(|error| error.in_output(&info.name))?;
            Ok((info.name.clone(), tensor))
        });
        outputs.collect()
    }
}

impl NnError {
    fn in_output(self, name: &str) -> Self {
        Self::new(self.kind(), format!("output {name:?}: {self}"))
    }
}

/// The options of one run, of which there is only the terminate flag.
struct RunOptions(NonNull<OrtRunOptions>);

// SAFETY: `OrtRunOptions` is plain memory without ties to a thread, so it may be released by another one.
#[allow(unsafe_code)]
unsafe impl Send for RunOptions {}
// SAFETY: shared use is setting the terminate flag while a run reads it, which ONNX Runtime documents as the way to stop
// a run from another thread.
#[allow(unsafe_code)]
unsafe impl Sync for RunOptions {}

#[allow(unsafe_code)]
impl RunOptions {
    fn new() -> Result<Self, NnError> {
        let mut options = ptr::null_mut();
        // SAFETY: the out pointer is valid for the call; the value is owned by what this returns.
        check(unsafe { (ort::api().CreateRunOptions)(&mut options) })?;
        NonNull::new(options).map(Self).ok_or_else(|| NnError::runtime("ONNX Runtime returned no run options"))
    }

    fn terminate(&self) {
        // SAFETY: the pointer lives as long as self. A failure would only mean that the run goes on.
        let _ = check(unsafe { (ort::api().RunOptionsSetTerminate)(self.0.as_ptr()) });
    }
}

#[allow(unsafe_code)]
impl Drop for RunOptions {
    fn drop(&mut self) {
        // SAFETY: created by `new`, owned by self alone, released here only.
        unsafe { (ort::api().ReleaseRunOptions)(self.0.as_ptr()) }
    }
}
