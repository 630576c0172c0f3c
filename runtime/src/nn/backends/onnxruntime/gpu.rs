//! Graphs on an NVIDIA GPU, through ONNX Runtime's CUDA execution provider.
//!
//! Beside `libonnxruntime.so` of the `onnxruntime-gpu` wheel lie the provider's two libraries; those of CUDA 13 and cuDNN 9
//! lie in the folder `cuda` there, or where the system's loader finds them. A graph that asks for a GPU and cannot have it
//! is refused with what is missing. Operators without a CUDA kernel run on the CPU, as ONNX Runtime does everywhere, but
//! not all of a graph's.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::OnceLock;

use ort::AsPointer;
use ort::ep::{ArenaExtendStrategy, CUDA, cuda::ConvAlgorithmSearch};
use ort::session::SharedSessionInner;
use ort::session::builder::GraphOptimizationLevel;

use super::session::Loaded;
use super::{Library, check, load_error};
use crate::nn::backends::cuda;
use crate::nn::{GraphSource, NnError};

const PROVIDER: &str = "libonnxruntime_providers_cuda.so";
const PROVIDER_BRIDGE: &str = "libonnxruntime_providers_shared.so";

/// The provider's name in ONNX Runtime.
const CUDA_PROVIDER: &CStr = c"CUDAExecutionProvider";

/// Folder of CUDA's and cuDNN's libraries, beside ONNX Runtime's.
const CUDA_FOLDER: &str = "cuda";

impl Library {
    /// The library of the CUDA provider, or what is missing for it.
    pub(super) fn cuda_provider(&self) -> Result<PathBuf, String> {
        match [PROVIDER_BRIDGE, PROVIDER].iter().find(|name| !self.folder().join(name).exists()) {
            None => Ok(self.folder().join(PROVIDER)),
            Some(missing) => Err(format!("there is no {missing} beside ONNX Runtime: use onnxruntime-gpu's libraries")),
        }
    }

    /// That this machine has all that a graph on a GPU needs, as far as can be told without one.
    pub(super) fn check_gpu(&self) -> Result<(), NnError> {
        self.cuda_provider().map_err(|reason| unavailable(&reason))?;
        cuda::driver().map(drop).map_err(unavailable)
    }

    /// A session whose graph is on the first GPU.
    pub(super) fn open_on_gpu(&self, source: &GraphSource) -> Result<Loaded, NnError> {
        self.preload_cuda();
        let provider = CUDA::default()
            .with_device_id(0)
            // Many graphs share the device: none takes more than it asked for.
            .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
            // The default tries out every algorithm with each new shape, while a request waits.
            .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic);
        let builder = self.session_builder(GraphOptimizationLevel::All, 1).and_then(|builder| {
            // Without `error_on_failure` the graph would silently run on the CPU.
            let builder = builder.with_execution_providers([provider.build().error_on_failure()])?;
            Ok(builder.with_config_entry("session.record_ep_graph_assignment_info", "1")?)
        });
        // The reader may be a guest's author: this machine's folders are not for them.
        let folder = format!("{}/", self.folder().display());
        let mut builder = builder.map_err(|error| unavailable(&error.message().replace(&folder, "")))?;
        let session = builder.commit_from_file(&source.path).map_err(|error| load_error(&error, &source.path))?.inner();
        if !has_nodes_on(&session, CUDA_PROVIDER)? {
            return Err(NnError::unsupported("none of the graph's operators can run on a GPU; set its target to cpu"));
        }
        Ok(Loaded::on_gpu(session))
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// Loads CUDA's libraries from their folder, if it is there, so that the provider finds them by name.
    fn preload_cuda(&self) {
        static PRELOADED: OnceLock<()> = OnceLock::new();
        PRELOADED.get_or_init(|| {
            let files = std::fs::read_dir(self.folder().join(CUDA_FOLDER))
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path());
            let mut waiting: Vec<PathBuf> = files.filter(|path| path.to_string_lossy().contains(".so")).collect();
            // They need each other, in an order that changes between versions: those that fail are tried again while a
            // round gets further. What is left the provider reports, when it cannot be registered.
            let mut before = usize::MAX;
            while !waiting.is_empty() && waiting.len() < before {
                before = waiting.len();
                waiting.retain(|path| ort::util::preload_dylib(path).is_err());
            }
            for path in waiting {
                tracing::warn!(path = %path.display(), "a library of CUDA cannot be loaded");
            }
        });
    }
}

fn unavailable(reason: &str) -> NnError {
    NnError::unsupported(format!("execution target gpu is not available: {reason}"))
}

/// Whether any node of a session's graph was given to an execution provider. The session must record it.
#[allow(unsafe_code)]
fn has_nodes_on(session: &SharedSessionInner, provider: &CStr) -> Result<bool, NnError> {
    let api = ort::api();
    let (mut subgraphs, mut count) = (ptr::null(), 0);
    // SAFETY: the session lives as long as its reference and the out pointers are valid for the call. What comes back is
    // an array of `count` pointers that the session owns.
    check(unsafe { (api.Session_GetEpGraphAssignmentInfo)(session.ptr().cast_mut(), &mut subgraphs, &mut count) })?;
    for index in 0..count {
        let mut name = ptr::null();
        // SAFETY: `index` is below the array's length. The name is a C string of the session's.
        check(unsafe { (api.EpAssignedSubgraph_GetEpName)(*subgraphs.add(index), &mut name) })?;
        // SAFETY: as above; it is read before the session can go.
        if !name.is_null() && unsafe { CStr::from_ptr(name) } == provider {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::backends::onnxruntime::{FIRST_MODEL, tests};
    use crate::nn::test_models::{ModelFile, linear};

    #[test]
    fn without_the_provider_or_a_driver_there_is_no_session_and_none_on_the_processor() {
        let Some(library) = tests::library() else { return };
        if library.check_gpu().is_ok() {
            return eprintln!("SKIPPED: this machine has a GPU");
        }
        let file = ModelFile::new(&linear());
        let error = library.open_on_gpu(&tests::source(file.path(), None)).err().unwrap();
        assert!(error.to_string().starts_with("execution target gpu is not available: "), "{error}");
        assert!(!error.to_string().contains(library.folder().to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_session_tells_which_provider_has_its_nodes() {
        let Some(library) = tests::library() else { return };
        let session = library.session_builder(GraphOptimizationLevel::Disable, 1).and_then(|builder| {
            builder.with_config_entry("session.record_ep_graph_assignment_info", "1")?.commit_from_memory(FIRST_MODEL)
        });
        let session = session.map_err(|error| error.to_string()).unwrap().inner();
        assert!(has_nodes_on(&session, c"CPUExecutionProvider").unwrap());
        assert!(!has_nodes_on(&session, CUDA_PROVIDER).unwrap());
    }
}
