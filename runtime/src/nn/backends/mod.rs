//! Which backends this process has, and which one runs a graph.

mod cuda;
mod onnx_file;
mod onnxruntime;
#[cfg(test)]
mod tests;
mod tract;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use cuda::{CudaDriver, GpuDevice};
pub use onnx_file::{ReadSeek, inspect, inspect_reader};

use self::onnxruntime::OnnxRuntime;

use super::{Backend, ExecutionTarget, GraphSource, NnError};

/// A backend's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackendId {
    /// tract: pure Rust, always there.
    Tract,
    /// ONNX Runtime, a shared library found when the process starts.
    OnnxRuntime,
}

impl BackendId {
    /// The name in settings, metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tract => "tract",
            Self::OnnxRuntime => "onnxruntime",
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
}

/// The backends of this process.
pub struct Backends {
    tract: Arc<dyn Backend>,
    /// Absent with the reason, to be shown to whoever asks for it.
    onnxruntime: Result<Arc<OnnxRuntime>, String>,
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
        Ok(Self { tract: Arc::new(tract::Tract), onnxruntime: onnxruntime.map(Arc::new) })
    }

    /// The backend for a served entity. `UnsupportedOperation` when the one it asks for is absent, or the target.
    pub fn select(&self, choice: BackendChoice, target: ExecutionTarget) -> Result<Arc<dyn Backend>, NnError> {
        let backend: Arc<dyn Backend> = match (choice, target, &self.onnxruntime) {
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
        };
        self.select(choice, ExecutionTarget::Cpu)
    }

    /// The backends that are there, the preferred one first.
    pub fn available(&self) -> impl Iterator<Item = Arc<dyn Backend>> {
        let onnxruntime = self.onnxruntime.iter().map(|backend| backend.clone() as Arc<dyn Backend>);
        onnxruntime.chain([self.tract.clone()])
    }

    /// What there is for graphs on a GPU. Loads the driver.
    pub fn gpu(&self) -> GpuParts {
        let provider = match &self.onnxruntime {
            Ok(onnxruntime) => onnxruntime.cuda_provider(),
            Err(reason) => Err(reason.clone()),
        };
        GpuParts { provider, driver: cuda::driver() }
    }

    /// Why ONNX Runtime is absent, if it is.
    pub fn onnxruntime_absent(&self) -> Option<&str> {
        self.onnxruntime.as_ref().err().map(String::as_str)
    }
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
fn files_bytes(source: &GraphSource) -> u64 {
    let folder = source.path.parent().unwrap_or(Path::new(""));
    let external = source.external_files.iter().map(|name| folder.join(name));
    let size = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
    size(&source.path) + external.map(|path| size(&path)).sum::<u64>()
}
