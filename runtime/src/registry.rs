//! Registered models and their versions. A version is filled file by file, then finalized: checked, and immutable from
//! then on.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc};

use crate::catalog::WorkspaceId;
use crate::clock::now_ms;
use crate::deploy::package::{FILES_MAX, Package, PackageFile, check_path};
use crate::error::{ApiError, ErrorCode};
use crate::store::blobs::{Blobs, Digest};
use crate::store::documents::scan_documents;
use crate::store::{StateStore, Transaction};

/// A registered model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Whose it is.
    pub workspace: WorkspaceId,
    /// `catalog.schema.model`.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Who made it.
    pub creator: String,
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

type ModelKey = (WorkspaceId, String);

#[derive(Debug, Clone)]
struct Model {
    record: ModelRecord,
    versions: BTreeMap<u64, Arc<VersionRecord>>,
}

/// All models of all workspaces: in memory for reading, in the store for good.
pub struct Registry {
    store: Arc<dyn StateStore>,
    blobs: Arc<Blobs>,
    models: RwLock<BTreeMap<ModelKey, Model>>,
    /// Changes happen one at a time; what is read under it stays true until the commit.
    writing: Mutex<()>,
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
    /// Reads all records. Blocks.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn load(store: Arc<dyn StateStore>, blobs: Arc<Blobs>) -> anyhow::Result<Registry> {
        let mut models = BTreeMap::new();
        for (_, record) in scan_documents::<ModelRecord>(&*store, "model/")? {
            models.insert((record.workspace, record.name.clone()), Model { record, versions: BTreeMap::new() });
        }
        for (_, version) in scan_documents::<VersionRecord>(&*store, "version/")? {
            if let Some(model) = models.get_mut(&(version.workspace, version.name.clone())) {
                model.versions.insert(version.version, Arc::new(version));
            }
        }
        Ok(Registry { store, blobs, models: RwLock::new(models), writing: Mutex::new(()) })
    }

    /// Makes a model.
    ///
    /// # Errors
    /// `RESOURCE_ALREADY_EXISTS`, or what is wrong with the name.
    pub async fn create_model(
        &self,
        workspace: WorkspaceId,
        name: &str,
        description: Option<String>,
        creator: &str,
    ) -> Result<ModelRecord, ApiError> {
        check_model_name(name)?;
        let _alone = self.writing.lock().await;
        if self.read().contains_key(&(workspace, name.to_owned())) {
            let message = format!("Registered model '{name}' already exists.");
            return Err(ApiError::new(ErrorCode::ResourceAlreadyExists, message));
        }
        let now = now_ms();
        let record = ModelRecord {
            workspace,
            name: name.to_owned(),
            description,
            creator: creator.to_owned(),
            creation_timestamp: now,
            last_updated_timestamp: now,
            next_version: 1,
        };
        self.store.commit(Transaction::new().put_document(&model_key(workspace, name), &record)?).await?;
        let model = Model { record: record.clone(), versions: BTreeMap::new() };
        self.write().insert((workspace, name.to_owned()), model);
        Ok(record)
    }

    /// A model.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`.
    pub fn model(&self, workspace: WorkspaceId, name: &str) -> Result<ModelRecord, ApiError> {
        self.with_model(workspace, name, |model| model.record.clone())
    }

    /// All models of a workspace, by name.
    pub fn models(&self, workspace: WorkspaceId) -> Vec<ModelRecord> {
        let range = (Bound::Included((workspace, String::new())), Bound::Unbounded);
        let models = self.read();
        models.range(range).take_while(|((owner, _), _)| *owner == workspace).map(|(_, m)| m.record.clone()).collect()
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
        let _alone = self.writing.lock().await;
        let mut record = self.model(workspace, name)?;
        record.description = description;
        record.last_updated_timestamp = now_ms();
        self.store.commit(Transaction::new().put_document(&model_key(workspace, name), &record)?).await?;
        if let Some(model) = self.write().get_mut(&(workspace, name.to_owned())) {
            model.record = record.clone();
        }
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
        let _alone = self.writing.lock().await;
        let versions = self.with_model(workspace, name, |model| model.versions.keys().copied().collect::<Vec<_>>())?;
        for version in &versions {
            refuse_if_used(name, *version, in_use(*version))?;
        }
        // Versions first and one by one: a transaction has a bound, and a model without versions is still a whole model.
        for version in versions {
            self.remove_version(workspace, name, version).await?;
        }
        self.store.commit(Transaction::new().delete_document(&model_key(workspace, name))).await?;
        self.write().remove(&(workspace, name.to_owned()));
        Ok(())
    }

    /// Makes a version that waits for its files.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST` without the model.
    pub async fn create_version(
        &self,
        workspace: WorkspaceId,
        name: &str,
        new: NewVersion,
        creator: &str,
    ) -> Result<Arc<VersionRecord>, ApiError> {
        let _alone = self.writing.lock().await;
        let mut model = self.model(workspace, name)?;
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
        let version = Arc::new(version);
        if let Some(kept) = self.write().get_mut(&(workspace, name.to_owned())) {
            kept.record = model;
            kept.versions.insert(version.version, Arc::clone(&version));
        }
        Ok(version)
    }

    /// A version.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`.
    pub fn version(&self, workspace: WorkspaceId, name: &str, version: u64) -> Result<Arc<VersionRecord>, ApiError> {
        self.with_model(workspace, name, |model| model.versions.get(&version).cloned())?.ok_or_else(|| {
            ApiError::missing(format!("Model version '{version}' of registered model '{name}' does not exist."))
        })
    }

    /// All versions of a model, newest first.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST` without the model.
    pub fn versions(&self, workspace: WorkspaceId, name: &str) -> Result<Vec<Arc<VersionRecord>>, ApiError> {
        self.with_model(workspace, name, |model| model.versions.values().rev().cloned().collect())
    }

    /// Whether a version would take a file now.
    ///
    /// # Errors
    /// When the path is not allowed, or the version is finalized or does not exist.
    pub fn check_upload(&self, workspace: WorkspaceId, name: &str, version: u64, path: &str) -> Result<(), ApiError> {
        check_path(path)?;
        self.pending_version(workspace, name, version).map(drop)
    }

    /// Stores one file of a version that is not finalized yet, as it arrives.
    ///
    /// # Errors
    /// When the path is not allowed, the version is finalized, or the upload breaks off: nothing is kept then.
    pub async fn put_file(
        &self,
        workspace: WorkspaceId,
        name: &str,
        version: u64,
        path: &str,
        mut content: mpsc::Receiver<Result<Bytes, ApiError>>,
    ) -> Result<(), ApiError> {
        self.check_upload(workspace, name, version, path)?;
        let blobs = Arc::clone(&self.blobs);
        let written = tokio::task::spawn_blocking(move || -> Result<PackageFile, ApiError> {
            let mut writer = blobs.writer()?;
            while let Some(chunk) = content.blocking_recv() {
                std::io::Write::write_all(&mut writer, &chunk?)
                    .map_err(|error| ApiError::internal("keep a file", &error))?;
            }
            let (digest, bytes) = writer.finish()?;
            Ok(PackageFile { digest, bytes })
        });
        let file = written.await.map_err(|error| ApiError::internal("keep a file", &error))??;

        let _alone = self.writing.lock().await;
        let mut record = VersionRecord::clone(&*self.pending_version(workspace, name, version)?);
        if record.files.len() >= FILES_MAX && !record.files.contains_key(path) {
            return Err(ApiError::invalid(format!("a model version may have at most {FILES_MAX} files")));
        }
        record.files.insert(path.to_owned(), file);
        self.keep(record).await?;
        Ok(())
    }

    /// Checks a version's package and makes it ready, for good. Repeating it is no error.
    ///
    /// # Errors
    /// What is wrong with the package; the version stays, as failed.
    pub async fn finalize(
        &self,
        workspace: WorkspaceId,
        name: &str,
        version: u64,
    ) -> Result<Arc<VersionRecord>, ApiError> {
        let _alone = self.writing.lock().await;
        let current = self.version(workspace, name, version)?;
        if current.status == VersionStatus::Ready {
            return Ok(current);
        }
        let mut record = VersionRecord::clone(&current);
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
        let _alone = self.writing.lock().await;
        self.version(workspace, name, version)?;
        refuse_if_used(name, version, in_use)?;
        self.remove_version(workspace, name, version).await
    }

    /// The package of a version that is ready. Reads a file: not for the request path.
    ///
    /// # Errors
    /// When the version does not exist or is not ready.
    pub fn package(&self, workspace: WorkspaceId, name: &str, version: u64) -> Result<Package, ApiError> {
        let record = self.version(workspace, name, version)?;
        let refused = |why: &str| Err(ApiError::invalid(format!("Model version '{version}' of '{name}' {why}")));
        let digest = match (&record.status, &record.package) {
            (VersionStatus::Ready, Some(digest)) => digest,
            (VersionStatus::Failed(reason), _) => return refused(&format!("was refused: {reason}")),
            _ => return refused("is still being uploaded: finalize it first."),
        };
        let json = self.blobs.read(digest)?;
        serde_json::from_slice(&json).map_err(|error| ApiError::internal("read a package", &error))
    }

    /// The files that some version refers to: all others may be swept.
    pub fn digests(&self) -> HashSet<Digest> {
        let models = self.read();
        let versions = models.values().flat_map(|model| model.versions.values());
        versions.flat_map(|version| version.files.values().map(|file| file.digest).chain(version.package)).collect()
    }

    async fn remove_version(&self, workspace: WorkspaceId, name: &str, version: u64) -> Result<(), ApiError> {
        self.store.commit(Transaction::new().delete_document(&version_key(workspace, name, version))).await?;
        if let Some(model) = self.write().get_mut(&(workspace, name.to_owned())) {
            model.versions.remove(&version);
        }
        Ok(())
    }

    /// Commits a changed version and shows it.
    async fn keep(&self, record: VersionRecord) -> Result<Arc<VersionRecord>, ApiError> {
        let key = version_key(record.workspace, &record.name, record.version);
        self.store.commit(Transaction::new().put_document(&key, &record)?).await?;
        let record = Arc::new(record);
        if let Some(model) = self.write().get_mut(&(record.workspace, record.name.clone())) {
            model.versions.insert(record.version, Arc::clone(&record));
        }
        Ok(record)
    }

    fn pending_version(
        &self,
        workspace: WorkspaceId,
        name: &str,
        version: u64,
    ) -> Result<Arc<VersionRecord>, ApiError> {
        let record = self.version(workspace, name, version)?;
        if record.status == VersionStatus::Ready {
            return Err(ApiError::new(
                ErrorCode::ResourceConflict,
                format!("Model version '{version}' of '{name}' is ready and cannot be changed: create a new version."),
            ));
        }
        Ok(record)
    }

    fn with_model<T>(&self, workspace: WorkspaceId, name: &str, look: impl FnOnce(&Model) -> T) -> Result<T, ApiError> {
        let models = self.read();
        let model = models.get(&(workspace, name.to_owned()));
        model.map(look).ok_or_else(|| ApiError::missing(format!("Registered model '{name}' does not exist.")))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<ModelKey, Model>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<ModelKey, Model>> {
        self.models.write().unwrap_or_else(PoisonError::into_inner)
    }
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
    format!("version/{workspace}/{name}/{version:010}")
}
