//! A model in ONNX Runtime's own format, optimised for this processor: what a session is made from fastest.
//!
//! A session on an ONNX file parses, optimises, copies and packs its weights: 119 ms for MiniLM (90 MB, 2 cores). From the
//! converted file, mapped, it takes 39 ms, and 20 ms when the weights stay where they are mapped. A run is then slower
//! (14 ms instead of 10), which [`Packing`] mends for graphs that are asked often.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, UncheckedAdvice};
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;

use super::packing::Packing;
use super::session::Loaded;
use super::{Library, load_error};
use crate::nn::{GraphSource, NnError};

/// Raised when [`Library::convert`] writes something else from the same model.
const FORM_VERSION: u32 = 1;

/// Largest model that is converted. The format ends at 2 GiB, and folding constants makes a model larger.
const CONVERT_BYTES_MAX: u64 = 1 << 30;

/// Up to this size weights are packed at once: that takes less than a millisecond.
const PACK_AT_ONCE_BYTES_MAX: u64 = 1 << 20;

/// Everything besides the model that decides what a conversion writes. Optimised layouts follow the vector width.
pub(super) fn form() -> String {
    format!("{FORM_VERSION}; {}; {}", ort::info(), cpu_features().join(" "))
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as detected;
    let features = [
        ("avx", detected!("avx")),
        ("avx2", detected!("avx2")),
        ("fma", detected!("fma")),
        ("f16c", detected!("f16c")),
        ("avxvnni", detected!("avxvnni")),
        ("avx512f", detected!("avx512f")),
        ("avx512bw", detected!("avx512bw")),
        ("avx512vnni", detected!("avx512vnni")),
        ("avx512bf16", detected!("avx512bf16")),
    ];
    features.into_iter().filter_map(|(name, detected)| detected.then_some(name)).collect()
}

#[cfg(target_arch = "aarch64")]
fn cpu_features() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected as detected;
    let features = [
        ("fp16", detected!("fp16")),
        ("dotprod", detected!("dotprod")),
        ("bf16", detected!("bf16")),
        ("i8mm", detected!("i8mm")),
        ("sve", detected!("sve")),
    ];
    features.into_iter().filter_map(|(name, detected)| detected.then_some(name)).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_features() -> Vec<&'static str> {
    vec![std::env::consts::ARCH]
}

/// Where a session has its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weights {
    /// Copied into the layout that kernels run fastest on.
    Packed,
    /// In the mapped file, as they are.
    InPlace,
}

/// A converted file in memory. Sessions keep it as long as themselves.
pub(super) struct MappedModel(Mmap);

impl MappedModel {
    #[allow(unsafe_code)]
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: a mapping is sound while nobody changes or shortens the file. Converted files are written aside, synced
        // and renamed into a folder that this user alone can enter; from then on they are only ever unlinked, which leaves
        // the mapped pages as they are.
        unsafe { Mmap::map(&file) }.map(Self)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    /// Gives back the memory of pages that were read. Those that are needed again come back from the file.
    #[allow(unsafe_code)]
    pub(super) fn release_pages(&self) {
        // SAFETY: dropping pages could lose what was written to them; this mapping is of a file, and read only.
        let _only_advice = unsafe { self.0.unchecked_advise(UncheckedAdvice::DontNeed) };
    }
}

impl Library {
    /// Writes the converted form of a model to `to`.
    pub(super) fn convert(&self, source: &GraphSource, to: &Path) -> Result<(), NnError> {
        let bytes = super::files_bytes(source);
        if bytes > CONVERT_BYTES_MAX {
            return Err(NnError::unsupported(format!(
                "it has {bytes} bytes, the largest model that is converted has {CONVERT_BYTES_MAX}"
            )));
        }
        let session = self.session_builder(GraphOptimizationLevel::All, 1).and_then(|builder| {
            builder
                .with_optimized_model_path(to)?
                .with_config_entry("session.save_model_format", "ORT")?
                // It warns that the file is good for this kind of machine only, which its name takes care of.
                .with_log_level(LogLevel::Error)?
                .commit_from_file(&source.path)
        });
        session.map(drop).map_err(|error| load_error(&error, &source.path))
    }

    /// A session on a converted file; with the means to pack its weights later, if they were left in place.
    pub(super) fn open_converted(
        &'static self,
        path: &Path,
        threads: u32,
    ) -> Result<(Loaded, Option<Packing>), NnError> {
        let model = MappedModel::open(path).map_err(|error| NnError::runtime(error.kind().to_string()))?;
        let model = Arc::new(model);
        if model.bytes() <= PACK_AT_ONCE_BYTES_MAX {
            return Ok((self.mapped_session(&model, Weights::Packed, threads)?, None));
        }
        let loaded = self.mapped_session(&model, Weights::InPlace, threads)?;
        Ok((loaded, Some(Packing::new(self, model, threads))))
    }

    pub(super) fn mapped_session(
        &self,
        model: &Arc<MappedModel>,
        weights: Weights,
        threads: u32,
    ) -> Result<Loaded, NnError> {
        // The graph is optimised already. ONNX Runtime checks the file's structure before it uses it.
        let session = self.session_builder(GraphOptimizationLevel::Disable, threads).and_then(|builder| {
            let mut builder = builder
                .with_prepacking(weights == Weights::Packed)?
                // The session borrows the bytes for as long as it lives: `Loaded` keeps them so.
                .with_config_entry("session.use_ort_model_bytes_directly", "1")?
                .with_config_entry("session.use_ort_model_bytes_for_initializers", "1")?;
            Ok(builder.commit_from_memory(&model.0)?.inner())
        });
        let session = session.map_err(|error| load_error(&error, Path::new("")))?;
        Ok(Loaded::mapped(session, Arc::clone(model)))
    }
}
