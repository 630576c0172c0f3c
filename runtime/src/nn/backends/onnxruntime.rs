//! ONNX Runtime through `ort`: fast, every operator, but a C++ library that is found when the process starts.
//!
//! Each graph is one session, shared by all threads, without a thread pool of its own: parallelism comes from running
//! many requests, not from splitting one. `ort`'s `Session::run` takes `&mut self`, since some execution providers are not
//! thread-safe; ONNX Runtime documents `OrtApi::Run` as thread-safe for the CPU provider, the only one used here, so
//! [`Session::run`] below calls it on the shared session. Another provider must not be added without a lock there.

use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use ort::AsPointer;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::SharedSessionInner;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::sys::{OrtRunOptions, OrtStatusPtr, OrtTensorTypeAndShapeInfo, OrtValue};

use super::{BackendId, files_bytes, onnx_file, without_path};
use crate::nn::error::panic_text;
use crate::nn::{
    Backend, Cancel, ElementType, Graph, GraphInfo, GraphSource, Inputs, NnError, NnErrorKind, RANK_MAX, Schedule,
    Tensor, TensorInfo, TensorType,
};

/// What a session holds beside its weights, measured on small models.
const SESSION_BYTES: u64 = 128 << 10;

/// ONNX Runtime as a backend.
pub(super) struct OnnxRuntime(&'static Library);

/// The loaded library.
struct Library {
    path: PathBuf,
    version: String,
    environment: Environment,
    cpu: MemoryInfo<'static>,
}

/// One per process and never unloaded, since `ort` and ONNX Runtime keep process-wide state.
static LIBRARY: OnceLock<Library> = OnceLock::new();

/// Loads the library at `path`. A second call gives the same one, or an error when it names another path. Never panics,
/// also when the file is some other library.
pub(super) fn open(path: &Path) -> Result<OnnxRuntime, NnError> {
    static OPENING: Mutex<()> = Mutex::new(());
    let _opening = OPENING.lock().unwrap_or_else(PoisonError::into_inner);

    let path = path.canonicalize().map_err(|error| cannot_load(path, &error.to_string()))?;
    if LIBRARY.get().is_none() {
        // `ort` asserts and expects where a library misbehaves; that must not take the server down at start.
        let library =
            catch_unwind(|| initialise(&path)).unwrap_or_else(|panic| Err(cannot_load(&path, panic_text(&*panic))))?;
        // Cannot be taken: only the holder of OPENING sets it.
        let _ = LIBRARY.set(library);
    }
    match LIBRARY.get() {
        Some(library) if library.path == path => Ok(OnnxRuntime(library)),
        Some(library) => Err(cannot_load(&path, &format!("this process already uses {}", library.path.display()))),
        None => Err(cannot_load(&path, "it did not stay loaded")),
    }
}

fn cannot_load(path: &Path, why: &str) -> NnError {
    NnError::runtime(format!("failed to load ONNX Runtime from {}: {why}", path.display()))
}

fn initialise(path: &Path) -> Result<Library, NnError> {
    // Probed first: past `init_from` the first library stays for the life of the process, wrong or not.
    let minor = ort::util::probe(path).ok_or_else(|| cannot_load(path, "it is not an ONNX Runtime 1.x library"))?;
    if minor < ort::MINOR_VERSION {
        return Err(cannot_load(
            path,
            &format!("it is version 1.{minor}, the oldest usable is 1.{}", ort::MINOR_VERSION),
        ));
    }
    let environment = ort::init_from(path)
        .map_err(|error| cannot_load(path, &error.to_string()))?
        .with_name("tessera")
        .with_telemetry(false)
        .with_logger(Arc::new(log))
        .build()
        .map_err(|error| cannot_load(path, error.message()))?;
    // With a logger of its own the environment would format every verbose message, only for it to be dropped.
    environment.set_log_level(LogLevel::Warning);
    let cpu = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)
        .map_err(|error| cannot_load(path, error.message()))?;
    Ok(Library { path: path.to_owned(), version: format!("1.{minor}"), environment, cpu })
}

fn log(level: LogLevel, _category: &str, _id: &str, location: &str, message: &str) {
    match level {
        LogLevel::Error | LogLevel::Fatal => tracing::error!(location, "onnxruntime: {message}"),
        LogLevel::Warning => tracing::warn!(location, "onnxruntime: {message}"),
        LogLevel::Verbose | LogLevel::Info => tracing::debug!(location, "onnxruntime: {message}"),
    }
}

impl Backend for OnnxRuntime {
    fn id(&self) -> BackendId {
        BackendId::OnnxRuntime
    }

    fn version(&self) -> &str {
        &self.0.version
    }

    fn load(&self, source: &GraphSource) -> Result<Arc<dyn Graph>, NnError> {
        source.target.supported()?;
        // Before the library sees the file: it would panic in `ort` on types that `wasi:nn` does not have, and follow
        // references to other files.
        let info = onnx_file::inspect(&source.path, &source.external_files)?;
        let session = catch_unwind(AssertUnwindSafe(|| self.0.session(&source.path)))
            .unwrap_or_else(|panic| Err(NnError::runtime(format!("ort panicked: {}", panic_text(&*panic)))))?;
        let c_strings = |infos: &[TensorInfo]| {
            infos.iter().map(|info| CString::new(info.name.as_str())).collect::<Result<Vec<_>, _>>()
        };
        let nul = |_| NnError::invalid_encoding("a name contains a zero byte");
        Ok(Arc::new(Session {
            input_names: c_strings(&info.inputs).map_err(nul)?,
            output_names: c_strings(&info.outputs).map_err(nul)?,
            memory_bytes: SESSION_BYTES + files_bytes(source),
            info,
            schedule: Schedule::new(source.batch.clone()),
            library: self.0,
            session,
        }))
    }
}

impl Library {
    fn session(&self, path: &Path) -> Result<Arc<SharedSessionInner>, NnError> {
        let session = self.session_builder().and_then(|mut builder| builder.commit_from_file(path));
        let session = session.map_err(|error| load_error(&error, path))?;
        Ok(session.inner())
    }

    fn session_builder(&self) -> ort::Result<SessionBuilder> {
        let builder = ort::session::Session::builder(&self.environment)?
            .with_intra_threads(1)?
            .with_inter_threads(1)?
            .with_parallel_execution(false)?
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            // Weights outside the arena, which rounds sizes up and keeps what it once had.
            .with_device_allocated_initializers()?;
        Ok(builder)
    }
}

/// A load fails for what is in the file, save where ONNX Runtime says otherwise.
fn load_error(error: &ort::Error, path: &Path) -> NnError {
    let kind = match error.code() {
        ort::ErrorCode::NotImplemented => NnErrorKind::UnsupportedOperation,
        ort::ErrorCode::NoSuchFile => NnErrorKind::NotFound,
        ort::ErrorCode::RuntimeException | ort::ErrorCode::EngineError => NnErrorKind::RuntimeError,
        _ => NnErrorKind::InvalidEncoding,
    };
    NnError::new(kind, without_path(error.message(), path))
}

/// A loaded graph.
struct Session {
    info: GraphInfo,
    input_names: Vec<CString>,
    output_names: Vec<CString>,
    memory_bytes: u64,
    schedule: Schedule,
    session: Arc<SharedSessionInner>,
    library: &'static Library,
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

    #[allow(unsafe_code)]
    fn run(&self, inputs: Inputs, cancel: &Cancel) -> Result<Vec<(String, Tensor)>, NnError> {
        if inputs.tensors().len() != self.input_names.len() {
            return Err(NnError::invalid_argument("the inputs were checked against another graph"));
        }
        let inputs = inputs.tensors().iter().zip(&self.info.inputs);
        let inputs = inputs.map(|(tensor, info)| InputValue::new(tensor, info.element, &self.library.cpu));
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;

        // Without options nothing can stop the run, and a short one is spared their cost.
        let options = cancel.is_possible().then(RunOptions::new).transpose()?.map(Arc::new);
        let stop = options.clone();
        let disarm = stop.map(|stop| cancel.on_cancel(move || stop.terminate())).transpose()?;

        let input_names: Vec<*const c_char> = self.input_names.iter().map(|name| name.as_ptr()).collect();
        let output_names: Vec<*const c_char> = self.output_names.iter().map(|name| name.as_ptr()).collect();
        let input_values: Vec<*const OrtValue> =
            inputs.iter().map(|input| input.value.0.as_ptr().cast_const()).collect();
        let mut output_values: Vec<*mut OrtValue> = vec![ptr::null_mut(); output_names.len()];
        // SAFETY: the session lives as long as `self.session`; running it from several threads at once is allowed for
        // the CPU provider (module comment). The names are C strings owned by `self`. Each array has the length passed
        // with it: inputs were counted above, outputs are made to the length of their names. The input values, and the
        // bytes they point into, live in `inputs` until the end of this function. Null options are the defaults. Null outputs ask ONNX Runtime to
        // allocate them. It catches its own exceptions and returns them as a status.
        let status = unsafe {
            (ort::api().Run)(
                self.session.ptr().cast_mut(),
                options.as_ref().map_or(ptr::null_mut(), |options| options.0.as_ptr()),
                input_names.as_ptr(),
                input_values.as_ptr(),
                input_values.len(),
                output_names.as_ptr(),
                output_names.len(),
                output_values.as_mut_ptr(),
            )
        };
        drop(disarm);
        // Owned at once, whatever the status: a run that fails half way may have filled some.
        let outputs: Vec<Option<Value>> =
            output_values.into_iter().map(|value| NonNull::new(value).map(Value)).collect();
        match check(status) {
            Err(_) if cancel.is_cancelled() => return Err(NnError::timeout("the computation was cancelled")),
            result => result?,
        }

        let outputs = outputs.into_iter().zip(&self.info.outputs).map(|(value, info)| {
            let value = value.ok_or_else(|| NnError::runtime(format!("output {:?} was not computed", info.name)))?;
            let tensor = value.into_tensor(&inputs, &self.session).map_err(|error| error.in_output(&info.name))?;
            Ok((info.name.clone(), tensor))
        });
        outputs.collect()
    }
}

/// An error of the C API, with ONNX Runtime's own message.
#[allow(unsafe_code)]
fn check(status: OrtStatusPtr) -> Result<(), NnError> {
    // SAFETY: every status comes straight from the call that returned it and is used only here, so it is released once,
    // by the error that this makes from it.
    let result = unsafe { ort::Error::<()>::result_from_status(status) };
    result.map_err(|error| {
        let kind = match error.code() {
            ort::ErrorCode::InvalidArgument => NnErrorKind::InvalidArgument,
            ort::ErrorCode::NotImplemented => NnErrorKind::UnsupportedOperation,
            _ => NnErrorKind::RuntimeError,
        };
        NnError::new(kind, error.message())
    })
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

/// An `OrtValue` that this process owns; released once, on drop.
struct Value(NonNull<OrtValue>);

// SAFETY: an `OrtValue` holds a shape and memory, with no ties to a thread. The CPU allocators, to which an output's
// memory returns on release, are thread-safe.
#[allow(unsafe_code)]
unsafe impl Send for Value {}
// SAFETY: after creation it is only read: shape and type once, then its bytes, which nobody writes any more.
#[allow(unsafe_code)]
unsafe impl Sync for Value {}

#[allow(unsafe_code)]
impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: owned by self alone, released here only.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

/// A tensor of ours as ONNX Runtime sees it: its bytes in place.
struct InputValue {
    value: Value,
    /// What `value` points into, kept as long as it.
    data: Bytes,
}

impl InputValue {
    #[allow(unsafe_code)]
    fn new(tensor: &Tensor, element: ElementType, cpu: &MemoryInfo<'static>) -> Result<Self, NnError> {
        let data = aligned(tensor);
        let mut dims = [0i64; RANK_MAX];
        for (dim, &size) in dims.iter_mut().zip(tensor.dims()) {
            *dim = i64::from(size);
        }
        let mut value = ptr::null_mut();
        // SAFETY: `data` stays at its address as long as it lives, beside the value in the struct returned. Its length
        // is passed along, and ONNX Runtime refuses a shape that needs more. It is aligned for the element type. The
        // pointer is mutable for C's sake: an input is read only, its memory is never planned for reuse by the graph.
        // The shape array holds at least `dims().len()` entries, since a tensor's rank is at most RANK_MAX.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                cpu.ptr(),
                data.as_ptr().cast_mut().cast::<c_void>(),
                data.len(),
                dims.as_ptr(),
                tensor.dims().len(),
                ort_element(element).into(),
                &mut value,
            )
        };
        check(status)?;
        let value = NonNull::new(value).ok_or_else(|| NnError::runtime("ONNX Runtime returned no input value"))?;
        Ok(Self { value: Value(value), data })
    }
}

/// The tensor's bytes where its elements may be: as they are, or copied if a guest's allocator left them askew.
fn aligned(tensor: &Tensor) -> Bytes {
    let (data, alignment) = (tensor.data(), tensor.ty().size_bytes());
    if data.as_ptr().align_offset(alignment) == 0 || data.is_empty() {
        return data.clone();
    }
    let mut copy = vec![0; data.len() + alignment];
    let start = copy.as_ptr().align_offset(alignment);
    copy[start..start + data.len()].copy_from_slice(data);
    // The vector is moved, its memory is not.
    Bytes::from(copy).slice(start..start + data.len())
}

impl Value {
    /// An output without a copy: the tensor owns this value and with it the memory.
    #[allow(unsafe_code)]
    fn into_tensor(self, inputs: &[InputValue], session: &Arc<SharedSessionInner>) -> Result<Tensor, NnError> {
        let (ty, dims) = self.signature()?;
        let length = crate::nn::tensor::size_bytes(ty, &dims).ok_or_else(|| NnError::runtime("its size overflows"))?;
        if length == 0 {
            // ONNX Runtime may give no address for nothing.
            return Tensor::new(ty, dims, Bytes::new());
        }
        let mut start = ptr::null_mut();
        // SAFETY: the value is a tensor (`signature` checked it) and the out pointer is valid for the call.
        check(unsafe { (ort::api().GetTensorMutableData)(self.0.as_ptr(), &mut start) })?;
        let start = NonNull::new(start).ok_or_else(|| NnError::runtime("it has no memory"))?.cast::<u8>();
        let output = Output { value: self, start, length, _session: session.clone() };
        // An output that is an input, passed through, shares that input's memory, which ONNX Runtime does not own and
        // which may be gone before this output is: so that one is copied.
        let (from, to) = (start.as_ptr().addr(), start.as_ptr().addr() + length);
        let borrowed = inputs.iter().any(|input| {
            let at = input.data.as_ptr().addr();
            at < to && from < at + input.data.len()
        });
        let data = if borrowed { Bytes::copy_from_slice(output.as_ref()) } else { Bytes::from_owner(output) };
        Tensor::new(ty, dims, data)
    }

    /// Type and shape, if it is a tensor that can cross `wasi:nn`.
    #[allow(unsafe_code)]
    fn signature(&self) -> Result<(TensorType, Vec<u32>), NnError> {
        let api = ort::api();
        let mut is_tensor = 0;
        // SAFETY: the value lives as long as self and the out pointer is valid for the call.
        check(unsafe { (api.IsTensor)(self.0.as_ptr(), &mut is_tensor) })?;
        if is_tensor == 0 {
            return Err(NnError::unsupported("it is not a tensor, which is all that can cross wasi:nn"));
        }
        let mut shape = ptr::null_mut();
        // SAFETY: as above; the description returned is owned by the guard made of it.
        check(unsafe { (api.GetTensorTypeAndShape)(self.0.as_ptr(), &mut shape) })?;
        let shape = Shape(NonNull::new(shape).ok_or_else(|| NnError::runtime("it has no shape"))?);

        let (mut element, mut rank, mut dims) = (0i32, 0, [0i64; RANK_MAX]);
        // SAFETY: the out pointers are valid for the calls. The element type is a C enum, an `int`: it is received as
        // one, since a newer library may write a value that the Rust enum does not have.
        check(unsafe { (api.GetTensorElementType)(shape.0.as_ptr(), (&raw mut element).cast()) })?;
        // SAFETY: as above.
        check(unsafe { (api.GetDimensionsCount)(shape.0.as_ptr(), &mut rank) })?;
        if rank > RANK_MAX {
            return Err(NnError::unsupported(format!("it has {rank} dimensions, the most is {RANK_MAX}")));
        }
        // SAFETY: `dims` has room for the `rank` entries asked for, just checked.
        check(unsafe { (api.GetDimensions)(shape.0.as_ptr(), dims.as_mut_ptr(), rank) })?;
        let dims = dims[..rank].iter().map(|&dim| u32::try_from(dim)).collect::<Result<Vec<u32>, _>>();
        let dims = dims.map_err(|_| NnError::unsupported("a dimension is larger than 2^32"))?;
        let element = onnx_file::element_type(u64::from(element.unsigned_abs()))
            .map_err(|found| NnError::unsupported(format!("it has elements of type {found}, which wasi:nn lacks")))?;
        Ok((element.travels_as(), dims))
    }
}

/// A value's shape, released on drop.
struct Shape(NonNull<OrtTensorTypeAndShapeInfo>);

#[allow(unsafe_code)]
impl Drop for Shape {
    fn drop(&mut self) {
        // SAFETY: owned by self alone, released here only.
        unsafe { (ort::api().ReleaseTensorTypeAndShapeInfo)(self.0.as_ptr()) }
    }
}

/// An output's bytes, owned: they stay where they are until this is dropped, which releases the value once, and then the
/// session, whose allocator the bytes come from (fields drop in order).
struct Output {
    value: Value,
    start: NonNull<u8>,
    length: usize,
    _session: Arc<SharedSessionInner>,
}

// SAFETY: `start` points into `value`, which may itself be sent and shared, and the bytes are only read.
#[allow(unsafe_code)]
unsafe impl Send for Output {}
// SAFETY: as for Send.
#[allow(unsafe_code)]
unsafe impl Sync for Output {}

#[allow(unsafe_code)]
impl AsRef<[u8]> for Output {
    fn as_ref(&self) -> &[u8] {
        let _owner: &Value = &self.value;
        // SAFETY: ONNX Runtime gave this address for a dense CPU tensor of `length` bytes, computed from its own shape and
        // type, all written by the run that made it. The memory is the value's, so it lives as long as self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

fn ort_element(element: ElementType) -> ort::value::TensorElementType {
    use ort::value::TensorElementType as Ort;
    match element {
        ElementType::Fp16 => Ort::Float16,
        ElementType::Fp32 => Ort::Float32,
        ElementType::Fp64 => Ort::Float64,
        ElementType::Bf16 => Ort::Bfloat16,
        ElementType::U8 => Ort::Uint8,
        ElementType::I32 => Ort::Int32,
        ElementType::I64 => Ort::Int64,
        ElementType::Bool => Ort::Bool,
        ElementType::Int8 => Ort::Int8,
    }
}
