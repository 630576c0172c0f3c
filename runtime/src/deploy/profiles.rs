//! What deploys found out about graphs, on disk, so that a graph that comes back from zero is batched at once.

use std::sync::Arc;

use anyhow::{Context, Result};

use crate::nn::{GraphKey, Profile};
use crate::seal::files::SealedFiles;

/// Folder in the home.
const DIR: &str = "profiles";

/// The profiles of all graphs.
#[derive(Clone)]
pub struct Profiles(Arc<SealedFiles>);

impl Profiles {
    /// Those of a home.
    pub fn new(files: Arc<SealedFiles>) -> Profiles {
        Profiles(files)
    }

    /// What is known of a graph. A file that cannot be read counts as none: the next deploy writes it again.
    pub fn load(&self, key: &GraphKey) -> Option<Profile> {
        serde_json::from_slice(&self.0.read(&file(key)).ok()??).ok()
    }

    /// Keeps what is known of a graph.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, key: &GraphKey, profile: &Profile) -> Result<()> {
        let json = serde_json::to_vec(profile).context("failed to write a profile as JSON")?;
        self.0.write(&file(key), &json).context("failed to write a profile")
    }
}

fn file(key: &GraphKey) -> String {
    format!("{DIR}/{}.json", name(key))
}

/// A profile's name on disk, without its ending: everything that decides how the graph behaves.
pub fn name(key: &GraphKey) -> String {
    let mut hasher = blake3::Hasher::new();
    let batch = serde_json::to_string(&key.batch).unwrap_or_default();
    let threads = key.threads.to_string();
    let sequences = format!("{:?}", key.sequences);
    let parts =
        [env!("CARGO_PKG_VERSION"), &key.digest, key.backend.name(), key.target.name(), &batch, &threads, &sequences];
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}
