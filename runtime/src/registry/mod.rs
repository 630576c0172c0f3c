//! Registered models and their versions. A version is filled file by file, then finalized: checked, and immutable from
//! then on.
//!
//! - [`names`]: what a model, an alias, a tag may be called, and how much of it a record holds.
//! - [`models`], [`versions`]: the records and what changes them. Aliases and tags are part of them.
//! - [`uploads`]: files on their way in, whole or in parts.
//! - [`search`]: filters and orders of MLflow's search calls.
//! - [`source`]: versions made of files that are on this server already.
//!
//! Nothing of them is kept in memory: they are read from the store where they are asked for, and no request to a model
//! that is awake asks.

pub mod models;
pub mod names;
pub mod search;
pub mod source;
pub mod uploads;
pub mod versions;

use std::collections::HashSet;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use tokio::sync::{MutexGuard, RwLock, RwLockReadGuard};

pub use self::models::ModelRecord;
pub use self::names::check_model_name;
pub use self::versions::{NewVersion, Stage, VersionRecord, VersionStatus};
use crate::access::{Resource, Tallies};
use crate::catalog::WorkspaceId;
use crate::deploy::signature::Trust;
use crate::error::{ApiError, ErrorCode};
use crate::store::blobs::{Blobs, Digest};
use crate::store::documents::{scan_documents, visit_documents};
use crate::store::{StateStore, StoreError};
use crate::tracking::Tracking;
use crate::turns::Turns;

/// All models of all workspaces.
pub struct Registry {
    store: Arc<dyn StateStore>,
    blobs: Arc<Blobs>,
    /// Whose packages become versions.
    trust: Arc<Trust>,
    /// Counts versions and the bytes of files.
    tallies: Arc<Tallies>,
    /// Runs and logged models, from whose files versions are made.
    pub tracking: Tracking,
    /// Shared by changes of models; alone is who gives a model another name.
    changes: RwLock<()>,
    /// To change a model or one of its versions.
    turns: Turns,
    /// To change an upload. Who has the turn of a model may wait for one of these, but not the other way round.
    upload_turns: Turns,
}

/// One model's turn to change.
type Turn<'a> = (RwLockReadGuard<'a, ()>, MutexGuard<'a, ()>);

impl Registry {
    /// The models in a store. Blocks, for it counts what is there.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn open(
        store: Arc<dyn StateStore>,
        blobs: Arc<Blobs>,
        trust: Arc<Trust>,
        tallies: Arc<Tallies>,
    ) -> Result<Registry, StoreError> {
        visit_documents(&*store, "version/", |_, version: VersionRecord| {
            let tally = tallies.of(version.workspace);
            tally.add(Resource::ModelVersions, 1);
            tally.add(Resource::ModelBytes, version.bytes());
            Ok::<_, StoreError>(())
        })?;
        uploads::count(&*store, &tallies)?;
        let tracking = Tracking::open(Arc::clone(&store), Arc::clone(&tallies))?;
        let (turns, upload_turns) = Default::default();
        Ok(Registry { store, blobs, trust, tallies, tracking, changes: RwLock::new(()), turns, upload_turns })
    }

    /// The files that some version, run or logged model refers to: all others may be swept. Blocks.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn digests(&self) -> Result<HashSet<Digest>, StoreError> {
        let mut digests = self.tracking.digests()?;
        visit_documents(&*self.store, "version/", |_, version: VersionRecord| {
            digests.extend(version.files.values().map(|file| file.digest).chain(version.package));
            Ok::<_, StoreError>(())
        })?;
        Ok(digests)
    }

    async fn turn(&self, workspace: WorkspaceId, name: &str) -> Turn<'_> {
        (self.changes.read().await, self.turns.of(workspace, name).await)
    }

    async fn scan<T: DeserializeOwned + Send + 'static>(&self, prefix: String) -> Result<Vec<T>, ApiError> {
        let store = Arc::clone(&self.store);
        let scanned = tokio::task::spawn_blocking(move || scan_documents(&*store, &prefix)).await;
        let records = scanned.map_err(|error| ApiError::internal("read the models", &error))??;
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }
}

fn no_version(name: &str, version: u64) -> ApiError {
    ApiError::missing(format!("Model version '{version}' of registered model '{name}' does not exist."))
}

fn conflict(message: String) -> ApiError {
    ApiError::new(ErrorCode::ResourceConflict, message)
}

fn model_key(workspace: WorkspaceId, name: &str) -> String {
    format!("model/{workspace}/{name}")
}

fn version_key(workspace: WorkspaceId, name: &str, version: u64) -> String {
    format!("{}{version:010}", versions_prefix(workspace, name))
}

fn versions_prefix(workspace: WorkspaceId, name: &str) -> String {
    format!("version/{workspace}/{name}/")
}
