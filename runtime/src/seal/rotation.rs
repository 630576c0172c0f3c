//! Key rotation while the server runs.
//!
//! A rotation of the data key: make a key and write it to `keys.json` → seal everything new with it → seal records,
//! blobs and small files anew, in the background → when a look over all of them finds nothing sealed otherwise, and
//! nobody writes with an old key any more, drop the old keys. It may be cut off anywhere: as long as `keys.json` has two
//! keys, the next start goes on. A thing that cannot be opened ends it with the thing's name, and the old key stays.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::runtime::Handle;

use super::files::SealedFiles;
use super::keyring::{KeyList, Keyring};
use crate::error::{ApiError, ErrorCode, chain};
use crate::home::Home;
use crate::store::blobs::Blobs;
use crate::store::sealed::SealedStore;

/// Pause between two looks while an upload that began with the old key goes on.
const PAUSE: Duration = Duration::from_millis(200);

/// Things that could not be sealed anew, of which the progress tells.
const FAILURES_MAX: usize = 10;

/// Where a rotation stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RotationState {
    /// None has run since the start.
    #[default]
    Idle,
    /// Things are being sealed anew.
    Running,
    /// Everything is sealed with the current key, and it is the only one.
    Done,
    /// Something could not be sealed anew; the old keys stay.
    Failed,
}

/// How far the last rotation since the start has come.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
#[schemars(rename = "Rotation")]
pub struct Progress {
    /// Where it stands.
    pub state: RotationState,
    /// Records sealed anew.
    pub records: u64,
    /// Files of packages sealed anew.
    pub blobs: u64,
    /// Logs and the like sealed anew.
    pub files: u64,
    /// What could not be, the first few.
    pub failures: Vec<String>,
}

/// What a person may know of the keys.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Keys")]
pub struct Status {
    /// The keys.
    #[serde(flatten)]
    pub keys: KeyList,
    /// The last rotation.
    pub rotation: Progress,
}

/// Rotates the keys of a home.
pub struct Rotation {
    /// What is rotated.
    pub home: Home,
    /// The keys.
    pub keys: Arc<Keyring>,
    /// Records.
    pub store: Arc<SealedStore>,
    /// Files of packages.
    pub blobs: Arc<Blobs>,
    /// Small files.
    pub files: Arc<SealedFiles>,
    /// Where it runs.
    pub background: Handle,
    /// How far it is.
    pub progress: Mutex<Progress>,
}

impl Rotation {
    /// Takes up a rotation that the end of the server cut off.
    pub fn resume(self: &Arc<Self>) {
        if self.keys.is_rotating() {
            tracing::info!("going on with the key rotation that was cut off");
            self.progress().state = RotationState::Running;
            self.spawn();
        }
    }

    /// Makes a new data key, and begins to seal everything with it. Blocks.
    ///
    /// # Errors
    /// `RESOURCE_CONFLICT` while one runs; when the key cannot be kept.
    pub fn start(self: &Arc<Self>) -> Result<Status, ApiError> {
        {
            let mut progress = self.progress();
            if progress.state == RotationState::Running {
                return Err(ApiError::new(
                    ErrorCode::ResourceConflict,
                    "a key rotation is running; `tessera key list` tells how far it is",
                ));
            }
            *progress = Progress { state: RotationState::Running, ..Progress::default() };
        }
        match self.keys.begin_rotation() {
            Ok(key_id) => tracing::info!(%key_id, "a new data key seals from now on; the rest is sealed with it next"),
            Err(error) => {
                self.fail(&error);
                return Err(ApiError::internal("make a data key", error.as_ref()));
            }
        }
        self.spawn();
        Ok(self.status())
    }

    /// Replaces the key-encryption key in its file. Blocks.
    ///
    /// # Errors
    /// `INVALID_PARAMETER_VALUE` when it is in no file; when a file cannot be written.
    pub fn replace_key_encryption_key(&self) -> Result<Status, ApiError> {
        if !self.keys.wrapping_is_in_a_file() {
            return Err(ApiError::invalid(
                "the key-encryption key comes from TESSERA_KEY, which the server cannot write: start it again with the \
                 new key there and the old one in the file that --previous-key-file names",
            ));
        }
        match self.keys.rotate_wrapping() {
            Ok(key_id) => tracing::info!(%key_id, "the data keys are wrapped with a new key-encryption key"),
            Err(error) => return Err(ApiError::internal("replace the key-encryption key", error.as_ref())),
        }
        Ok(self.status())
    }

    /// The keys, and the last rotation.
    pub fn status(&self) -> Status {
        let rotation = self.progress().clone();
        Status { keys: self.keys.list(), rotation }
    }

    fn spawn(self: &Arc<Self>) {
        let rotation = Arc::clone(self);
        self.background.spawn_blocking(move || match rotation.run() {
            Ok(()) => {
                rotation.progress().state = RotationState::Done;
                tracing::info!("the key rotation is complete: the old data keys are gone");
            }
            Err(error) => {
                tracing::error!("the key rotation failed, and the old data keys stay: {error:#}");
                rotation.fail(&error);
            }
        });
    }

    fn run(&self) -> Result<()> {
        loop {
            // Looked at before the pass: what was being written then is published by the next pass, if not by this one.
            let in_use = self.keys.old_keys_in_use();
            if self.pass()? == 0 && !in_use {
                break;
            }
            if in_use {
                std::thread::sleep(PAUSE);
            }
        }
        // Small files are not synced one by one; nothing must come back that only a dropped key opens.
        std::fs::File::open(self.home.path(""))
            .and_then(|home| rustix::fs::syncfs(home).map_err(Into::into))
            .context("failed to sync the home")?;
        self.keys.finish_rotation()
    }

    /// Looks at everything once. Gives how much was sealed anew.
    fn pass(&self) -> Result<u64> {
        let before = self.done();
        self.store
            .reseal(&self.background, |outcome| self.count(|it| &mut it.records, outcome))
            .context("failed to seal the records")?;
        self.blobs.reseal(|outcome| self.count(|it| &mut it.blobs, outcome)).context("failed to seal the files")?;
        self.files.reseal(|outcome| self.count(|it| &mut it.files, outcome)).context("failed to seal the logs")?;
        let failure = self.progress().failures.first().cloned();
        match failure {
            Some(failure) => Err(anyhow!("not everything can be sealed anew: {failure}")),
            None => Ok(self.done() - before),
        }
    }

    fn count<E: std::error::Error>(&self, of: impl Fn(&mut Progress) -> &mut u64, outcome: Result<(), E>) {
        let mut progress = self.progress();
        match outcome {
            Ok(()) => *of(&mut progress) += 1,
            Err(error) => {
                tracing::error!("failed to seal anew: {}", chain(&error));
                if progress.failures.len() < FAILURES_MAX {
                    progress.failures.push(chain(&error));
                }
            }
        }
    }

    fn done(&self) -> u64 {
        let progress = self.progress();
        progress.records + progress.blobs + progress.files
    }

    fn fail(&self, error: &anyhow::Error) {
        let mut progress = self.progress();
        progress.state = RotationState::Failed;
        if progress.failures.is_empty() {
            progress.failures.push(format!("{error:#}"));
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    //! Over a real store and real files. That the server goes on meanwhile, and kills, are shown in `tests/integration`.

    use std::fs;

    use super::super::keyring::Found;
    use super::super::source::MasterKey;
    use super::super::{stream::stream_key, value_key};
    use super::*;
    use crate::store::blobs::Digest;
    use crate::store::sealed::look;
    use crate::store::sled::SledStore;
    use crate::store::{StateStore, Transaction};

    #[test]
    fn a_home_from_before_encryption_is_read_and_sealed_by_its_first_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();

        // given a home with the longest records that there were, a file of a package and a log
        let raw = Arc::new(SledStore::open(&home.path("store")).unwrap());
        let record = vec![1; 4000];
        for number in 0..100 {
            runtime.block_on(raw.commit(Transaction::new().put(format!("r/{number}"), record.clone()))).unwrap();
        }
        let content = b"weights".repeat(100_000);
        let digest = Digest::of(&content);
        let blob = home.path(&format!("blobs/sha256/{}/{digest}", &digest.to_string()[..2]));
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, &content).unwrap();
        fs::write(home.path("logs/e.log"), "it wrote").unwrap();

        // when it is opened, then all of it is read as it is
        let master = MasterKey::create(&home.path("node.key")).unwrap();
        let found = look(&*raw).unwrap();
        assert_eq!(found, Found::Unsealed);
        let keys = Arc::new(Keyring::open(&home, &master, None, Some(master.secret), found).unwrap());
        let rotation = Arc::new(Rotation {
            store: Arc::new(SealedStore::new(raw.clone(), keys.clone())),
            blobs: Arc::new(Blobs::open(&home.path("blobs"), keys.clone()).unwrap()),
            files: Arc::new(SealedFiles::new(home.clone(), keys.clone())),
            background: runtime.handle().clone(),
            progress: Mutex::default(),
            home: home.clone(),
            keys,
        });
        let reads = || {
            assert!((0..100).all(|at| rotation.store.get(&format!("r/{at}")).unwrap().unwrap().value == record));
            assert!(rotation.blobs.read(&digest).unwrap() == content);
            assert_eq!(rotation.files.read("logs/e.log").unwrap().unwrap(), b"it wrote");
        };
        reads();

        // and the first rotation seals all of it, and nothing unsealed is accepted any more
        rotation.keys.begin_rotation().unwrap();
        rotation.run().unwrap();
        reads();
        let progress = rotation.status().rotation;
        assert_eq!((progress.records, progress.blobs, progress.files), (100, 1, 1));
        let key_id = Some(rotation.keys.current().id);
        assert!(raw.scan("", None, 1000).unwrap().iter().all(|entry| value_key(&entry.value) == key_id));
        assert_eq!(stream_key(&fs::File::open(&blob).unwrap()).unwrap(), key_id);
        assert_eq!(value_key(&fs::read(home.path("logs/e.log")).unwrap()), key_id);
        fs::write(&blob, &content).unwrap();
        assert!(rotation.blobs.read(&digest).is_err());
    }
}
