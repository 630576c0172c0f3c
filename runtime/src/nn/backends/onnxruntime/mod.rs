//! ONNX Runtime through `ort`: fast, every operator, but a C++ library that is found when the process starts.
//!
//! Each graph is one session, shared by all threads. Most have no thread pool of their own: parallelism comes from running
//! many requests, not from splitting one. Where a deploy found that long runs are worth dividing ([`crate::nn::threads`]),
//! the session has threads beside the one that runs it, which sleep between runs: spinning would take them from others. `ort`'s `Session::run` takes `&mut self`, since some execution providers are not
//! thread-safe; ONNX Runtime documents `OrtApi::Run` as thread-safe for the CPU provider, so [`Session::run`] calls it on
//! the shared session. With any other provider ([`gpu`]) it takes a lock.

mod converted;
mod gpu;
mod packing;
mod session;
#[cfg(test)]
mod tests;
mod value;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::sys::OrtStatusPtr;

use self::packing::Packing;
use self::session::{Loaded, Session};
use super::{BackendId, files_bytes, onnx_file, without_path};
use crate::nn::error::panic_text;
use crate::nn::{Backend, ExecutionTarget, Graph, GraphSource, NnError, NnErrorKind, Schedule};

/// What a session holds beside its weights, measured on small models.
const SESSION_BYTES: u64 = 128 << 10;

/// A model of one node, `y = Identity(x)`.
const FIRST_MODEL: &[u8] = b"\
    \x08\x08:9\x0a\x10\x0a\x01x\x12\x01y\x22\x08Identity\x12\x01gZ\x10\x0a\x01x\x12\x0b\x0a\x09\x08\x01\
    \x12\x05\x0a\x03\x12\x01nb\x10\x0a\x01y\x12\x0b\x0a\x09\x08\x01\x12\x05\x0a\x03\x12\x01nB\x04\x0a\
    \x00\x10\x0d";

/// ONNX Runtime as a backend.
pub(super) struct OnnxRuntime(&'static Library);

impl OnnxRuntime {
    /// The library with which graphs run on a GPU, or what is missing for it.
    pub(super) fn cuda_provider(&self) -> Result<PathBuf, String> {
        self.0.cuda_provider()
    }
}

/// The loaded library.
struct Library {
    path: PathBuf,
    version: String,
    environment: Environment,
    cpu: MemoryInfo<'static>,
    /// See [`converted::form`].
    form: String,
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
    let library =
        Library { path: path.to_owned(), version: format!("1.{minor}"), environment, cpu, form: converted::form() };
    // The first session sets up what all share (milliseconds and megabytes): no request shall wait for it.
    let first = library
        .session_builder(GraphOptimizationLevel::Disable, 1)
        .and_then(|mut builder| builder.commit_from_memory(FIRST_MODEL));
    first.map_err(|error| cannot_load(path, error.message()))?;
    Ok(library)
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

    fn library(&self) -> Option<&Path> {
        Some(&self.0.path)
    }

    fn check_target(&self, target: ExecutionTarget) -> Result<(), NnError> {
        match target {
            ExecutionTarget::Cpu => Ok(()),
            ExecutionTarget::Gpu => self.0.check_gpu(),
            ExecutionTarget::Tpu => Err(target.unsupported_by(self.id())),
        }
    }

    fn divides_runs(&self, target: ExecutionTarget) -> bool {
        target == ExecutionTarget::Cpu
    }

    fn load(&self, source: &GraphSource) -> Result<Arc<dyn Graph>, NnError> {
        self.check_target(source.target)?;
        // Before the library sees the file: it would panic in `ort` on types that `wasi:nn` does not have, and follow
        // references to other files.
        let info = onnx_file::inspect(&source.path, &source.external_files)?;
        let (loaded, packing) = caught(|| match source.target {
            ExecutionTarget::Gpu => Ok((self.0.open_on_gpu(source)?, None)),
            _ => self.0.open(source),
        })?;
        let schedule = match source.target {
            ExecutionTarget::Cpu => Schedule::new(source.batch.clone()),
            _ => Schedule::threads_only(source.batch.clone()),
        };
        let session = Session::new(self.0, info, loaded, packing, SESSION_BYTES + files_bytes(source), schedule)?;
        Ok(Arc::new(session.with_threads(source.intra_op_threads)))
    }

    fn conversion(&self, target: ExecutionTarget) -> Option<&str> {
        (target == ExecutionTarget::Cpu).then_some(&self.0.form)
    }

    fn convert(&self, source: &GraphSource, to: &Path) -> Result<(), NnError> {
        onnx_file::inspect(&source.path, &source.external_files)?;
        caught(|| self.0.convert(source, to))
    }
}

impl Library {
    /// A session on the converted form of a model, else on the model itself.
    fn open(&'static self, source: &GraphSource) -> Result<(Loaded, Option<Packing>), NnError> {
        if let Some(converted) = &source.converted {
            match self.open_converted(converted, source.intra_op_threads) {
                Ok(opened) => return Ok(opened),
                Err(error) => {
                    let path = converted.display();
                    tracing::warn!(%path, "a graph loads slowly this time, for its converted form is damaged: {error}");
                    // Out of the way of the one that the next load makes.
                    let _ = std::fs::remove_file(converted);
                }
            }
        }
        let session = self
            .session_builder(GraphOptimizationLevel::All, source.intra_op_threads)
            .and_then(|mut builder| builder.commit_from_file(&source.path));
        let session = session.map_err(|error| load_error(&error, &source.path))?;
        Ok((Loaded::new(session.inner()), None))
    }

    /// Of the threads of a run, the one that asks for it is one.
    fn session_builder(&self, level: GraphOptimizationLevel, threads: u32) -> ort::Result<SessionBuilder> {
        let builder = ort::session::Session::builder(&self.environment)?
            .with_intra_threads(threads.max(1) as usize)?
            .with_inter_threads(1)?
            .with_parallel_execution(false)?
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            .with_optimization_level(level)?
            // Weights outside the arena, which rounds sizes up and keeps what it once had.
            .with_device_allocated_initializers()?;
        Ok(builder)
    }
}

/// `ort` asserts and expects where a library or a model misbehaves; that must not reach a request or the server.
fn caught<T>(what: impl FnOnce() -> Result<T, NnError>) -> Result<T, NnError> {
    catch_unwind(AssertUnwindSafe(what))
        .unwrap_or_else(|panic| Err(NnError::runtime(format!("ort panicked: {}", panic_text(&*panic)))))
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
