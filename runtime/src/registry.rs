//! Registered models and their versions. A version is filled file by file, then finalized: checked, and immutable from
//! then on.
//!
//! Nothing of them is kept in memory: they are read from the store where they are asked for, and no request to a model
//! that is awake asks.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::access::authorize::no_model;
use crate::access::{Grant, Principal, Resource, Tallies, tokens};
use crate::catalog::WorkspaceId;
use crate::clock::now_ms;
use crate::deploy::package::{FILES_MAX, Package, PackageFile, check_path};
use crate::error::{ApiError, ErrorCode};
use crate::store::blobs::{Blobs, Digest};
use crate::store::documents::{document, read_document, scan_documents, visit_documents};
use crate::store::{StateStore, StoreError, Transaction};
use crate::turns::Turns;

/// A registered model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Whose it is.
    pub workspace: WorkspaceId,
    /// `catalog.schema.model`.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// 32 hex digits; empty in records from before there were any.
    #[serde(default)]
    pub id: String,
    /// Who made it.
    pub creator: String,
    /// Number of the identity that made it: it may always manage it.
    #[serde(default)]
    pub owner: u64,
    /// Who else may do what with it.
    #[serde(default)]
    pub grants: Vec<Grant>,
    /// In ms since 1970.
    pub creation_timestamp: u64,
    /// In ms since 1970.
    pub last_updated_timestamp: u64,
    /// Number of the next version: a number is never used twice.
    pub next_version: u64,
}

/// Where a version stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionStatus {
    /// Files are being uploaded.
    Pending,
    /// It can be served.
    Ready,
    /// It was refused, with the reason.
    Failed(String),
}

/// A model version.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VersionRecord {
    /// Whose it is.
    pub workspace: WorkspaceId,
    /// `catalog.schema.model`.
    pub name: String,
    /// Its number.
    pub version: u64,
    /// Where it stands.
    pub status: VersionStatus,
    /// Where the client said it came from.
    pub source: String,
    /// Free text.
    pub description: Option<String>,
    /// Run that made it, if the client said so.
    pub run_id: Option<String>,
    /// Who made it.
    pub creator: String,
    /// In ms since 1970.
    pub creation_timestamp: u64,
    /// In ms since 1970.
    pub last_updated_timestamp: u64,
    /// Files by path.
    pub files: BTreeMap<String, PackageFile>,
    /// The checked package, once ready: a file by digest.
    pub package: Option<Digest>,
}

impl VersionRecord {
    /// Of its files.
    fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }
}

/// What a client says of a new version.
#[derive(Debug, Default)]
pub struct NewVersion {
    /// Where the client says it comes from.
    pub source: String,
    /// Free text.
    pub description: Option<String>,
    /// Run that made it.
    pub run_id: Option<String>,
}

/// All models of all workspaces.
pub struct Registry {
    store: Arc<dyn StateStore>,
    blobs: Arc<Blobs>,
    /// Counts versions and the bytes of their files.
    tallies: Arc<Tallies>,
    /// To change a model or one of its versions.
    turns: Turns,
}

/// `catalog.schema.model`, checked.
///
/// # Errors
/// What a name looks like.
pub fn check_model_name(name: &str) -> Result<(), ApiError> {
    let parts: Vec<&str> = name.split('.').collect();
    let good = |part: &&str| {
        !part.is_empty()
            && part.len() <= 255
            && !part.starts_with('.')
            && part.chars().all(|c| !c.is_control() && !c.is_whitespace() && !"/\\.".contains(c))
    };
    if parts.len() == 3 && parts.iter().all(good) && name.len() <= 300 {
        return Ok(());
    }
    Err(ApiError::invalid(format!("'{name}' is not a model name: it has three parts, like main.default.iris")))
}

impl Registry {
    /// The models in a store. Blocks, for it counts what is there.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn open(store: Arc<dyn StateStore>, blobs: Arc<Blobs>, tallies: Arc<Tallies>) -> Result<Registry, StoreError> {
        visit_documents(&*store, "version/", |_, version: VersionRecord| {
            let tally = tallies.of(version.workspace);
            tally.add(Resource::ModelVersions, 1);
            tally.add(Resource::ModelBytes, version.bytes());
            Ok::<_, StoreError>(())
        })?;
        Ok(Registry { store, blobs, tallies, turns: Turns::default() })
    }

    /// Makes a model.
    ///
    /// # Errors
    /// `RESOURCE_ALREADY_EXISTS`, or what is wrong with the name.
    pub async fn create_model(
        &self,
        creator: &Principal,
        name: &str,
        description: Option<String>,
    ) -> Result<ModelRecord, ApiError> {
        check_model_name(name)?;
        let workspace = creator.workspace;
        let _turn = self.turns.of(workspace, name).await;
        if read_document::<ModelRecord>(&self.store, model_key(workspace, name)).await?.is_some() {
            let message = format!("Registered model '{name}' already exists.");
            return Err(ApiError::new(ErrorCode::ResourceAlreadyExists, message));
        }
        let now = now_ms();
        let record = ModelRecord {
            workspace,
            name: name.to_owned(),
            description,
            id: tokens::new_id()?,
            creator: creator.name.clone(),
            owner: creator.id,
            grants: Vec::new(),
            creation_timestamp: now,
            last_updated_timestamp: now,
            next_version: 1,
        };
        self.store.commit(Transaction::new().put_document(&model_key(workspace, name), &record)?).await?;
        Ok(record)
    }

    /// A model.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`.
    pub async fn model(&self, workspace: WorkspaceId, name: &str) -> Result<ModelRecord, ApiError> {
        let model = read_document(&self.store, model_key(workspace, name)).await?;
        model.ok_or_else(|| no_model(name))
    }

    /// All models of a workspace, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn models(&self, workspace: WorkspaceId) -> Result<Vec<ModelRecord>, ApiError> {
        self.scan(model_key(workspace, "")).await
    }

    /// Changes a model's description.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`.
    pub async fn describe_model(
        &self,
        workspace: WorkspaceId,
        name: &str,
        description: Option<String>,
    ) -> Result<ModelRecord, ApiError> {
        let _turn = self.turns.of(workspace, name).await;
        let mut record = self.model(workspace, name).await?;
        record.description = description;
        record.last_updated_timestamp = now_ms();
        self.store.commit(Transaction::new().put_document(&model_key(workspace, name), &record)?).await?;
        Ok(record)
    }

    /// Changes who may use a model.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`, and those of `change`.
    pub async fn change_grants(
        &self,
        workspace: WorkspaceId,
        name: &str,
        change: impl FnOnce(&[Grant]) -> Result<Vec<Grant>, ApiError>,
    ) -> Result<ModelRecord, ApiError> {
        let _turn = self.turns.of(workspace, name).await;
        let mut record = self.model(workspace, name).await?;
        record.grants = change(&record.grants)?;
        record.last_updated_timestamp = now_ms();
        self.store.commit(Transaction::new().put_document(&model_key(workspace, name), &record)?).await?;
        Ok(record)
    }

    /// Removes a model with its versions. `in_use` says which versions an endpoint serves.
    ///
    /// # Errors
    /// `RESOURCE_CONFLICT` when one is in use.
    pub async fn delete_model(
        &self,
        workspace: WorkspaceId,
        name: &str,
        in_use: impl Fn(u64) -> Option<String>,
    ) -> Result<(), ApiError> {
        let _turn = self.turns.of(workspace, name).await;
        let versions = self.versions(workspace, name).await?;
        for version in &versions {
            refuse_if_used(name, version.version, in_use(version.version))?;
        }
        // Versions first and one by one: a transaction has a bound, and a model without versions is still a whole model.
        for version in &versions {
            self.remove_version(version).await?;
        }
        self.store.commit(Transaction::new().delete_document(&model_key(workspace, name))).await?;
        Ok(())
    }

    /// Makes a version that waits for its files.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST` without the model; when the workspace has as many as it may have.
    pub async fn create_version(
        &self,
        workspace: WorkspaceId,
        name: &str,
        new: NewVersion,
        creator: &str,
    ) -> Result<VersionRecord, ApiError> {
        let _turn = self.turns.of(workspace, name).await;
        let mut model = self.model(workspace, name).await?;
        let room = self.tallies.of(workspace).reserve(Resource::ModelVersions, 1)?;
        let now = now_ms();
        let version = VersionRecord {
            workspace,
            name: name.to_owned(),
            version: model.next_version,
            status: VersionStatus::Pending,
            source: new.source,
            description: new.description,
            run_id: new.run_id,
            creator: creator.to_owned(),
            creation_timestamp: now,
            last_updated_timestamp: now,
            files: BTreeMap::new(),
            package: None,
        };
        model.next_version += 1;
        model.last_updated_timestamp = now;
        let transaction = Transaction::new()
            .put_document(&model_key(workspace, name), &model)?
            .put_document(&version_key(workspace, name, version.version), &version)?;
        self.store.commit(transaction).await?;
        room.keep();
        Ok(version)
    }

    /// A version.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`.
    pub async fn version(&self, workspace: WorkspaceId, name: &str, version: u64) -> Result<VersionRecord, ApiError> {
        match read_document(&self.store, version_key(workspace, name, version)).await? {
            Some(record) => Ok(record),
            None => {
                self.model(workspace, name).await?;
                Err(no_version(name, version))
            }
        }
    }

    /// All versions of a model, newest first.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST` without the model.
    pub async fn versions(&self, workspace: WorkspaceId, name: &str) -> Result<Vec<VersionRecord>, ApiError> {
        self.model(workspace, name).await?;
        let mut versions = self.scan(versions_prefix(workspace, name)).await?;
        versions.reverse();
        Ok(versions)
    }

    /// Whether a version would take a file now.
    ///
    /// # Errors
    /// When the path is not allowed, or the version is finalized or does not exist.
    pub async fn check_upload(
        &self,
        workspace: WorkspaceId,
        name: &str,
        version: u64,
        path: &str,
    ) -> Result<(), ApiError> {
        check_path(path)?;
        self.pending_version(workspace, name, version).await.map(drop)
    }

    /// Stores one file of a version that is not finalized yet, as it arrives.
    ///
    /// # Errors
    /// When the path is not allowed, the version is finalized, the workspace has no room for it, or the upload breaks off:
    /// nothing is kept then.
    pub async fn put_file(
        &self,
        workspace: WorkspaceId,
        name: &str,
        version: u64,
        path: &str,
        mut content: mpsc::Receiver<Result<Bytes, ApiError>>,
    ) -> Result<(), ApiError> {
        self.check_upload(workspace, name, version, path).await?;
        let tally = self.tallies.of(workspace);
        let mut room = tally.reserve(Resource::ModelBytes, 0)?;
        let blobs = Arc::clone(&self.blobs);
        let written = tokio::task::spawn_blocking(move || -> Result<_, ApiError> {
            let mut writer = blobs.writer()?;
            while let Some(chunk) = content.blocking_recv() {
                let chunk = chunk?;
                room.grow(chunk.len() as u64)?;
                std::io::Write::write_all(&mut writer, &chunk)
                    .map_err(|error| ApiError::internal("keep a file", &error))?;
            }
            let (digest, bytes) = writer.finish()?;
            Ok((PackageFile { digest, bytes }, room))
        });
        let (file, room) = written.await.map_err(|error| ApiError::internal("keep a file", &error))??;

        let _turn = self.turns.of(workspace, name).await;
        let mut record = self.pending_version(workspace, name, version).await?;
        if record.files.len() >= FILES_MAX && !record.files.contains_key(path) {
            return Err(ApiError::invalid(format!("a model version may have at most {FILES_MAX} files")));
        }
        let replaced = record.files.insert(path.to_owned(), file);
        self.keep(record).await?;
        room.keep();
        tally.subtract(Resource::ModelBytes, replaced.map_or(0, |file| file.bytes));
        Ok(())
    }

    /// Checks a version's package and makes it ready, for good. Repeating it is no error.
    ///
    /// # Errors
    /// What is wrong with the package; the version stays, as failed.
    pub async fn finalize(&self, workspace: WorkspaceId, name: &str, version: u64) -> Result<VersionRecord, ApiError> {
        let _turn = self.turns.of(workspace, name).await;
        let mut record = self.version(workspace, name, version).await?;
        if record.status == VersionStatus::Ready {
            return Ok(record);
        }
        record.last_updated_timestamp = now_ms();
        let (blobs, files) = (Arc::clone(&self.blobs), record.files.clone());
        let checked = tokio::task::spawn_blocking(move || -> Result<Digest, ApiError> {
            let package = Package::read(files, &blobs)?;
            let json =
                serde_json::to_vec(&package).map_err(|error| ApiError::internal("describe a package", &error))?;
            Ok(blobs.put_bytes(&json)?)
        });
        match checked.await.map_err(|error| ApiError::internal("check a package", &error))? {
            Ok(package) => {
                record.status = VersionStatus::Ready;
                record.package = Some(package);
                self.keep(record).await
            }
            Err(error) => {
                record.status = VersionStatus::Failed(error.message.clone());
                self.keep(record).await?;
                Err(error)
            }
        }
    }

    /// Removes a version.
    ///
    /// # Errors
    /// `RESOURCE_CONFLICT` when an endpoint serves it.
    pub async fn delete_version(
        &self,
        workspace: WorkspaceId,
        name: &str,
        version: u64,
        in_use: Option<String>,
    ) -> Result<(), ApiError> {
        let _turn = self.turns.of(workspace, name).await;
        let record = self.version(workspace, name, version).await?;
        refuse_if_used(name, version, in_use)?;
        self.remove_version(&record).await
    }

    /// Refuses a version that cannot be served.
    ///
    /// # Errors
    /// When the version does not exist or is not ready.
    pub async fn check_ready(&self, workspace: WorkspaceId, name: &str, version: u64) -> Result<(), ApiError> {
        package_digest(&self.version(workspace, name, version).await?).map(drop)
    }

    /// The package of a version that is ready. Blocks: not for the request path.
    ///
    /// # Errors
    /// When the version does not exist or is not ready.
    pub fn package(&self, workspace: WorkspaceId, name: &str, version: u64) -> Result<Package, ApiError> {
        let record = document(&*self.store, &version_key(workspace, name, version))?;
        let digest = package_digest(&record.ok_or_else(|| no_version(name, version))?)?;
        let json = self.blobs.read(&digest)?;
        serde_json::from_slice(&json).map_err(|error| ApiError::internal("read a package", &error))
    }

    /// The files that some version refers to: all others may be swept. Blocks.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn digests(&self) -> Result<HashSet<Digest>, StoreError> {
        let mut digests = HashSet::new();
        visit_documents(&*self.store, "version/", |_, version: VersionRecord| {
            digests.extend(version.files.values().map(|file| file.digest).chain(version.package));
            Ok::<_, StoreError>(())
        })?;
        Ok(digests)
    }

    async fn remove_version(&self, record: &VersionRecord) -> Result<(), ApiError> {
        let key = version_key(record.workspace, &record.name, record.version);
        self.store.commit(Transaction::new().delete_document(&key)).await?;
        let tally = self.tallies.of(record.workspace);
        tally.subtract(Resource::ModelVersions, 1);
        tally.subtract(Resource::ModelBytes, record.bytes());
        Ok(())
    }

    /// Commits a changed version.
    async fn keep(&self, record: VersionRecord) -> Result<VersionRecord, ApiError> {
        let key = version_key(record.workspace, &record.name, record.version);
        self.store.commit(Transaction::new().put_document(&key, &record)?).await?;
        Ok(record)
    }

    async fn pending_version(
        &self,
        workspace: WorkspaceId,
        name: &str,
        version: u64,
    ) -> Result<VersionRecord, ApiError> {
        let record = self.version(workspace, name, version).await?;
        if record.status == VersionStatus::Ready {
            return Err(ApiError::new(
                ErrorCode::ResourceConflict,
                format!("Model version '{version}' of '{name}' is ready and cannot be changed: create a new version."),
            ));
        }
        Ok(record)
    }

    async fn scan<T: DeserializeOwned + Send + 'static>(&self, prefix: String) -> Result<Vec<T>, ApiError> {
        let store = Arc::clone(&self.store);
        let scanned = tokio::task::spawn_blocking(move || scan_documents(&*store, &prefix)).await;
        let records = scanned.map_err(|error| ApiError::internal("read the models", &error))??;
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }
}

/// What of a version is served, if it can be.
fn package_digest(record: &VersionRecord) -> Result<Digest, ApiError> {
    let VersionRecord { name, version, .. } = record;
    let refused = |why: &str| Err(ApiError::invalid(format!("Model version '{version}' of '{name}' {why}")));
    match (&record.status, &record.package) {
        (VersionStatus::Ready, Some(digest)) => Ok(*digest),
        (VersionStatus::Failed(reason), _) => refused(&format!("was refused: {reason}")),
        _ => refused("is still being uploaded: finalize it first."),
    }
}

fn no_version(name: &str, version: u64) -> ApiError {
    ApiError::missing(format!("Model version '{version}' of registered model '{name}' does not exist."))
}

fn refuse_if_used(name: &str, version: u64, endpoint: Option<String>) -> Result<(), ApiError> {
    match endpoint {
        None => Ok(()),
        Some(endpoint) => Err(ApiError::new(
            ErrorCode::ResourceConflict,
            format!(
                "Model version '{version}' of '{name}' is served by endpoint '{endpoint}': delete or update it first."
            ),
        )),
    }
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
