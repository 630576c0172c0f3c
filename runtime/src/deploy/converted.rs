//! Models in the form that their backend loads fastest, made at deploy: no request waits for one to be parsed and
//! optimised.
//!
//! A file is named by everything that decides its content, so it is never out of date, only unused. It is written aside,
//! synced and renamed, and never changed afterwards: graphs read their weights from it where it is mapped.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;

use super::artifact::ArtifactKey;
use crate::home::Home;
use crate::nn::{Backend, GraphSource};

/// The folder of converted models.
pub struct ConvertedGraphs {
    dir: PathBuf,
    /// Those that could not be made: not tried by each load again.
    failed: Mutex<HashSet<PathBuf>>,
}

impl ConvertedGraphs {
    /// The folder in this home.
    pub fn new(home: &Home) -> ConvertedGraphs {
        ConvertedGraphs { dir: home.cache("graphs"), failed: Mutex::default() }
    }

    /// Where the model with this digest is, or would be, in this form of its backend.
    pub fn path(&self, digest: &str, form: &str) -> PathBuf {
        self.dir.join(format!("{}.graph", ArtifactKey::of(&[digest.as_bytes(), form.as_bytes()])))
    }

    /// Makes a model's converted form. Gives its size; none if it is there, or its backend makes no such form. Blocks.
    ///
    /// # Errors
    /// When the backend cannot convert the model, or the file cannot be written.
    pub fn make(&self, backend: &dyn Backend, source: &GraphSource) -> anyhow::Result<Option<u64>> {
        let Some(path) = source.converted.as_ref().filter(|path| !path.exists()) else { return Ok(None) };
        // What a crash leaves is removed some time later.
        let aside = self.dir.join(super::unfinished());
        let made = backend
            .convert(source, &aside)
            .map_err(anyhow::Error::from)
            .and_then(|()| publish(&aside, path).context("failed to keep the converted form"));
        if made.is_err() {
            let _ = fs::remove_file(&aside);
        }
        made.map(Some)
    }

    /// Makes a form that is gone from the cache, for a load that would be slow without it. Once, if it fails. Blocks.
    pub fn make_again(&self, backend: &dyn Backend, source: &GraphSource) {
        let failed = || self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = source.converted.as_ref().filter(|path| !path.exists() && !failed().contains(*path)) else {
            return;
        };
        if let Err(error) = self.make(backend, source) {
            tracing::warn!("failed to convert a graph again, which loads slowly now: {error:#}");
            failed().insert(path.clone());
        }
    }
}

/// Gives a finished file its name, and its size back. After a crash the name stands for the whole file or for none.
fn publish(aside: &Path, path: &Path) -> std::io::Result<u64> {
    let file = File::open(aside)?;
    file.sync_all()?;
    fs::rename(aside, path)?;
    Ok(file.metadata()?.len())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::nn::{BackendId, ExecutionTarget, Graph, NnError};

    /// Converts by writing a word, except in the absence of a model.
    struct Fake;

    impl Backend for Fake {
        fn id(&self) -> BackendId {
            BackendId::Tract
        }
        fn version(&self) -> &str {
            "1"
        }
        fn load(&self, _: &GraphSource) -> Result<Arc<dyn Graph>, NnError> {
            unreachable!("nothing is loaded here")
        }
        fn convert(&self, source: &GraphSource, to: &Path) -> Result<(), NnError> {
            fs::write(to, "half").unwrap();
            if source.path.exists() {
                fs::write(to, "converted").unwrap();
                return Ok(());
            }
            Err(NnError::new(crate::nn::NnErrorKind::NotFound, "no model"))
        }
    }

    #[test]
    fn a_model_is_converted_once_and_a_failure_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        let graphs = ConvertedGraphs::new(&home);
        let (model, converted) = (folder.path().join("model.onnx"), graphs.path("1/abc", "form"));
        let source = GraphSource {
            path: model.clone(),
            external_files: vec![],
            target: ExecutionTarget::Cpu,
            converted: Some(converted.clone()),
            batch: crate::nn::BatchSpec::default(),
            intra_op_threads: 1,
            sequences: crate::nn::SequenceSpec::default(),
            host: crate::nn::LoadHost::default(),
        };
        let files = || fs::read_dir(home.cache("graphs")).unwrap().count();

        assert!(graphs.make(&Fake, &source).is_err());
        assert_eq!(files(), 0);
        fs::write(model, "model").unwrap();
        assert_eq!(graphs.make(&Fake, &source).unwrap(), Some(9));
        assert_eq!(fs::read_to_string(&converted).unwrap(), "converted");
        assert_eq!(graphs.make(&Fake, &source).unwrap(), None);
        assert_eq!(files(), 1);

        // Another tenant's, another library's, another processor's: another file.
        assert_ne!(graphs.path("2/abc", "form"), converted);
        assert_ne!(graphs.path("1/abc", "other form"), converted);
    }
}
