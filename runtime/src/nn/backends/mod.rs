//! Which backends this process has, and which one runs a graph.

mod cuda;
mod gguf_file;
#[cfg(feature = "llama")]
mod llama;
mod onnx_file;
mod onnxruntime;
#[cfg(test)]
mod tests;
mod tract;

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use cuda::{CudaDriver, GpuDevice};
pub use onnx_file::ReadSeek;

use self::onnxruntime::OnnxRuntime;

use super::{Backend, ExecutionTarget, GraphInfo, GraphSource, NnError, NnErrorKind};

/// A backend's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackendId {
    /// tract: pure Rust, always there.
    Tract,
    /// ONNX Runtime, a shared library found when the process starts.
    OnnxRuntime,
    /// llama.cpp, where this program was built with it.
    Llama,
}

impl BackendId {
    /// The name in settings, metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tract => "tract",
            Self::OnnxRuntime => "onnxruntime",
            Self::Llama => "llama",
        }
    }
}

/// Which backend a served entity asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BackendChoice {
    /// ONNX Runtime where it is present, since it is faster and supports more operators; else tract.
    #[default]
    Auto,
    /// tract and nothing else.
    Tract,
    /// ONNX Runtime and nothing else.
    OnnxRuntime,
    /// llama.cpp: the one that reads GGUF, and nothing else.
    Llama,
}

/// How a model file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelFormat {
    /// The ONNX project's.
    Onnx,
    /// llama.cpp's.
    Gguf,
}

impl ModelFormat {
    /// What a file is, by how it begins. What is not GGUF is read as ONNX, which has no mark of its own.
    pub fn of(model: &mut dyn ReadSeek) -> Result<ModelFormat, NnError> {
        let failed =
            |error: std::io::Error| NnError::runtime(format!("failed to read the model file: {}", error.kind()));
        let mut magic = Vec::new();
        Read::take(&mut *model, gguf_file::MAGIC.len() as u64).read_to_end(&mut magic).map_err(failed)?;
        model.rewind().map_err(failed)?;
        Ok(if magic == gguf_file::MAGIC { ModelFormat::Gguf } else { ModelFormat::Onnx })
    }
}

/// Reads a model's signature from its file, of either format, and checks that its weights are nowhere but there and in
/// `external_files` beside it.
///
/// # Errors
/// `NotFound`, `InvalidEncoding`, `Security` and what else is wrong with the file.
pub fn inspect(path: &Path, external_files: &[String]) -> Result<GraphInfo, NnError> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => NnError::new(NnErrorKind::NotFound, "the model file does not exist"),
        kind => NnError::runtime(format!("failed to read the model file: {kind}")),
    };
    let file = File::open(path).map_err(unreadable)?;
    let end = file.metadata().map_err(unreadable)?.len();
    inspect_reader(Box::new(file), end, external_files)
}

/// The same for a model that is not a plain file; `end` is its length in bytes.
///
/// # Errors
/// As for [`inspect`].
pub fn inspect_reader(model: Box<dyn ReadSeek>, end: u64, external_files: &[String]) -> Result<GraphInfo, NnError> {
    Ok(inspect_with_weights(model, end, external_files)?.0)
}

/// The same, and which of the `external_files` hold the model's weights.
///
/// # Errors
/// As for [`inspect`].
pub fn inspect_with_weights(
    mut model: Box<dyn ReadSeek>,
    end: u64,
    external_files: &[String],
) -> Result<(GraphInfo, Vec<String>), NnError> {
    match ModelFormat::of(&mut *model)? {
        ModelFormat::Gguf => Ok((gguf_file::read_from(model, end)?.info(), Vec::new())),
        ModelFormat::Onnx => onnx_file::inspect_reader(model, end, external_files),
    }
}

/// The backends of this process.
pub struct Backends {
    tract: Arc<dyn Backend>,
    /// Absent with the reason, to be shown to whoever asks for it.
    onnxruntime: Result<Arc<OnnxRuntime>, String>,
    /// Likewise.
    llama: Result<Arc<dyn Backend>, String>,
}

/// What there is for graphs on a GPU, each part or why it is missing.
pub struct GpuParts {
    /// ONNX Runtime's library for it.
    pub provider: Result<PathBuf, String>,
    /// The driver and its devices.
    pub driver: Result<&'static CudaDriver, &'static str>,
}

impl Backends {
    /// Finds what can be used: tract always, ONNX Runtime when its library is found at `onnxruntime_path`, else at
    /// `ORT_DYLIB_PATH`, else where `make setup` puts it, `~/.cache/tessera/onnxruntime/`. A place that was named is
    /// not optional: if the library there cannot be used, that is an error and not another backend.
    pub fn discover(onnxruntime_path: Option<&Path>) -> Result<Self, NnError> {
        let env = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let cache = env("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| env("HOME").map(|home| PathBuf::from(home).join(".cache")));
        let onnxruntime = match OnnxRuntimePlace::choose(onnxruntime_path, env("ORT_DYLIB_PATH"), cache) {
            OnnxRuntimePlace::Named(path) => Ok(onnxruntime::open(&path)?),
            OnnxRuntimePlace::Cache(path) if path.exists() => {
                onnxruntime::open(&path).map_err(|error| error.to_string())
            }
            OnnxRuntimePlace::Cache(path) => Err(format!("no ONNX Runtime library at {}", path.display())),
            OnnxRuntimePlace::Nowhere => Err("no ONNX Runtime path is set and there is no home directory".to_owned()),
        };
        Ok(Self { tract: Arc::new(tract::Tract), onnxruntime: onnxruntime.map(Arc::new), llama: open_llama() })
    }

    /// llama.cpp alone, for a process that needs no other.
    ///
    /// # Errors
    /// `UnsupportedOperation` with the reason when it is absent.
    pub fn llama() -> Result<Arc<dyn Backend>, NnError> {
        open_llama().map_err(|reason| llama_absent(&reason))
    }

    /// The backend for a served entity. `UnsupportedOperation` when the one it asks for is absent, or the target.
    pub fn select(&self, choice: BackendChoice, target: ExecutionTarget) -> Result<Arc<dyn Backend>, NnError> {
        let backend: Arc<dyn Backend> = match (choice, target, &self.onnxruntime) {
            (BackendChoice::Llama, ..) => self.llama.clone().map_err(|reason| llama_absent(&reason))?,
            (BackendChoice::Tract, ..) | (BackendChoice::Auto, ExecutionTarget::Cpu, Err(_)) => self.tract.clone(),
            (_, _, Ok(onnxruntime)) => onnxruntime.clone(),
            (_, _, Err(reason)) => {
                let target = target.name();
                return Err(NnError::unsupported(format!(
                    "backend onnxruntime (execution target {target}) is not available: {reason}"
                )));
            }
        };
        backend.check_target(target)?;
        Ok(backend)
    }

    /// A backend that [`Backends::select`] gave before. `UnsupportedOperation` when it is absent.
    pub fn by_id(&self, id: BackendId) -> Result<Arc<dyn Backend>, NnError> {
        let choice = match id {
            BackendId::Tract => BackendChoice::Tract,
            BackendId::OnnxRuntime => BackendChoice::OnnxRuntime,
            BackendId::Llama => BackendChoice::Llama,
        };
        self.select(choice, ExecutionTarget::Cpu)
    }

    /// The backends that are there, the preferred one first.
    pub fn available(&self) -> impl Iterator<Item = Arc<dyn Backend>> {
        let onnxruntime = self.onnxruntime.iter().map(|backend| backend.clone() as Arc<dyn Backend>);
        onnxruntime.chain([self.tract.clone()]).chain(self.llama.iter().cloned())
    }

    /// What there is for graphs on a GPU. Loads the driver.
    pub fn gpu(&self) -> GpuParts {
        let provider = match &self.onnxruntime {
            Ok(onnxruntime) => onnxruntime.cuda_provider(),
            Err(reason) => Err(reason.clone()),
        };
        GpuParts { provider, driver: cuda::driver() }
    }

    /// Why llama.cpp is absent, if it is.
    pub fn llama_absent(&self) -> Option<&str> {
        self.llama.as_ref().err().map(String::as_str)
    }

    /// Why ONNX Runtime is absent, if it is.
    pub fn onnxruntime_absent(&self) -> Option<&str> {
        self.onnxruntime.as_ref().err().map(String::as_str)
    }
}

fn llama_absent(reason: &str) -> NnError {
    NnError::unsupported(format!("backend llama, which runs GGUF models, is not available: {reason}"))
}

#[cfg(feature = "llama")]
fn open_llama() -> Result<Arc<dyn Backend>, String> {
    Ok(Arc::new(llama::open()?))
}

#[cfg(not(feature = "llama"))]
fn open_llama() -> Result<Arc<dyn Backend>, String> {
    Err("this program was built without it (cargo feature llama)".to_owned())
}

/// Where to look for ONNX Runtime's library.
#[derive(Debug, PartialEq)]
enum OnnxRuntimePlace {
    /// Someone named it, so it must be there.
    Named(PathBuf),
    /// The usual place, where it may be.
    Cache(PathBuf),
    Nowhere,
}

impl OnnxRuntimePlace {
    fn choose(explicit: Option<&Path>, env: Option<OsString>, cache: Option<PathBuf>) -> Self {
        match (explicit, env, cache) {
            (Some(path), _, _) => Self::Named(path.to_owned()),
            (None, Some(path), _) => Self::Named(path.into()),
            (None, None, Some(cache)) => Self::Cache(cache.join("tessera/onnxruntime").join(LIBRARY)),
            (None, None, None) => Self::Nowhere,
        }
    }
}

const LIBRARY: &str = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };

/// Text of a library's error with the model's path taken out: the reader may be a guest, and the path is the host's.
fn without_path(text: &str, path: &Path) -> String {
    match path.to_str().filter(|path| !path.is_empty()) {
        Some(path) => text.replace(path, "the model file"),
        None => text.to_owned(),
    }
}

/// Size of a model with its weights: what the disk says, since no library tells what it allocates.
pub fn files_bytes(source: &GraphSource) -> u64 {
    let folder = source.path.parent().unwrap_or(Path::new(""));
    let external = source.external_files.iter().map(|name| folder.join(name));
    let size = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
    size(&source.path) + external.map(|path| size(&path)).sum::<u64>()
}
