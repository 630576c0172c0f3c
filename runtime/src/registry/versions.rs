//! Model versions.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::names::{Tags, check_description, check_reference};
use super::{Registry, conflict, model_key, no_version, version_key, versions_prefix};
use crate::access::Resource;
use crate::catalog::WorkspaceId;
use crate::clock::now_ms;
use crate::deploy::package::{Package, PackageFile};
use crate::deploy::signature::Trust;
use crate::error::ApiError;
use crate::store::Transaction;
use crate::store::blobs::{Blobs, Digest};
use crate::store::documents::{document, read_document};

/// Where a version stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionStatus {
    /// Files are being uploaded.
    Pending,
    /// It is complete and does not change any more. It can be served if it has a package.
    Ready,
    /// It was refused, with the reason.
    Failed(String),
}

/// What MLflow's older registry calls a version's stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stage {
    /// None yet.
    #[default]
    None,
    /// To be tried.
    Staging,
    /// In use.
    Production,
    /// No more in use.
    Archived,
}

impl Stage {
    /// All stages.
    pub const ALL: [Stage; 4] = [Stage::None, Stage::Staging, Stage::Production, Stage::Archived];

    /// The stage on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Stage::None => "None",
            Stage::Staging => "Staging",
            Stage::Production => "Production",
            Stage::Archived => "Archived",
        }
    }

    /// Reads a stage, in capitals or not.
    ///
    /// # Errors
    /// The stages that there are.
    pub fn parse(text: &str) -> Result<Stage, ApiError> {
        let found = Stage::ALL.into_iter().find(|stage| stage.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| {
            let known = Stage::ALL.map(Stage::name).join(", ");
            ApiError::invalid(format!("'{text}' is not a stage: there are {known}"))
        })
    }
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
    /// Logged model that it was, if the client said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// Who made it.
    pub creator: String,
    /// In ms since 1970.
    pub creation_timestamp: u64,
    /// In ms since 1970.
    pub last_updated_timestamp: u64,
    /// Files by path.
    pub files: BTreeMap<String, PackageFile>,
    /// The checked package, once ready: a file by digest. None if it cannot be served.
    pub package: Option<Digest>,
    /// Why it cannot be served although it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unservable: Option<String>,
    /// MLflow's stage.
    #[serde(default)]
    pub stage: Stage,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: Tags,
}

impl VersionRecord {
    /// Of its files.
    pub(super) fn bytes(&self) -> u64 {
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
    /// Logged model that it was.
    pub model_id: Option<String>,
    /// Labels.
    pub tags: Tags,
}

/// What a look at a version's files found.
enum Checked {
    Servable(Digest),
    Unservable(String),
}

impl Registry {
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
    ) -> Result<VersionRecord, ApiError> {
        check_description(new.description.as_deref())?;
        check_reference("source", &new.source)?;
        check_reference("run_id", new.run_id.as_deref().unwrap_or_default())?;
        check_reference("model_id", new.model_id.as_deref().unwrap_or_default())?;
        let _turn = self.turn(workspace, name).await;
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
            model_id: new.model_id,
            creator: creator.to_owned(),
            creation_timestamp: now,
            last_updated_timestamp: now,
            files: BTreeMap::new(),
            package: None,
            unservable: None,
            stage: Stage::None,
            tags: new.tags,
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

    /// Changes what may change of a version at any time: its description, tags and stage.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`, and what `change` refuses: nothing is changed then.
    pub async fn change_version(
        &self,
        workspace: WorkspaceId,
        name: &str,
        version: u64,
        change: impl FnOnce(&mut VersionRecord) -> Result<(), ApiError>,
    ) -> Result<VersionRecord, ApiError> {
        let _turn = self.turn(workspace, name).await;
        let mut record = self.version(workspace, name, version).await?;
        change(&mut record)?;
        check_description(record.description.as_deref())?;
        record.last_updated_timestamp = now_ms();
        self.keep(record).await
    }

    /// Moves a version to a stage, and archives the others that are there if `archive_others`.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`.
    pub async fn transition(
        &self,
        workspace: WorkspaceId,
        name: &str,
        version: u64,
        stage: Stage,
        archive_others: bool,
    ) -> Result<VersionRecord, ApiError> {
        let _turn = self.turn(workspace, name).await;
        let mut record = self.version(workspace, name, version).await?;
        let now = now_ms();
        if archive_others {
            for other in self.versions(workspace, name).await? {
                if other.version != version && other.stage == stage {
                    self.keep(VersionRecord { stage: Stage::Archived, last_updated_timestamp: now, ..other }).await?;
                }
            }
        }
        record.stage = stage;
        record.last_updated_timestamp = now;
        self.keep(record).await
    }

    /// Checks a version's files and makes it ready, for good. Repeating it is no error. A model of a kind that is not
    /// served is registered all the same, with the reason.
    ///
    /// # Errors
    /// What is wrong with the package; the version stays, as failed.
    pub async fn finalize(&self, workspace: WorkspaceId, name: &str, version: u64) -> Result<VersionRecord, ApiError> {
        let _turn = self.turn(workspace, name).await;
        let mut record = self.version(workspace, name, version).await?;
        if record.status == VersionStatus::Ready {
            return Ok(record);
        }
        record.last_updated_timestamp = now_ms();
        let (blobs, trust, files) = (Arc::clone(&self.blobs), Arc::clone(&self.trust), record.files.clone());
        let checked = tokio::task::spawn_blocking(move || check(files, &blobs, &trust)).await;
        match checked.map_err(|error| ApiError::internal("check a package", &error))? {
            Ok(checked) => {
                record.status = VersionStatus::Ready;
                (record.package, record.unservable) = match checked {
                    Checked::Servable(package) => (Some(package), None),
                    Checked::Unservable(reason) => (None, Some(reason)),
                };
                let record = self.keep(record).await?;
                self.end_uploads(workspace, name, version).await?;
                Ok(record)
            }
            Err(error) => {
                record.status = VersionStatus::Failed(error.message.clone());
                self.keep(record).await?;
                Err(error)
            }
        }
    }

    /// Removes a version, with the aliases that name it.
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
        let _turn = self.turn(workspace, name).await;
        let record = self.version(workspace, name, version).await?;
        refuse_if_used(name, version, in_use)?;
        let mut transaction = Transaction::new().delete_document(&version_key(workspace, name, version));
        let mut model = self.model(workspace, name).await?;
        if model.aliases_of(version).next().is_some() {
            model.aliases.retain(|_, of| *of != version);
            model.last_updated_timestamp = now_ms();
            transaction = transaction.put_document(&model_key(workspace, name), &model)?;
        }
        self.store.commit(transaction).await?;
        self.count(Some(&record), None);
        self.end_uploads(workspace, name, version).await
    }

    /// Refuses a version that cannot be served.
    ///
    /// # Errors
    /// When the version does not exist, is not ready, or is of a kind that is not served.
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

    /// Commits a changed version.
    pub(super) async fn keep(&self, record: VersionRecord) -> Result<VersionRecord, ApiError> {
        let key = version_key(record.workspace, &record.name, record.version);
        let before: Option<VersionRecord> = read_document(&self.store, key.clone()).await?;
        self.store.commit(Transaction::new().put_document(&key, &record)?).await?;
        self.count(before.as_ref(), Some(&record));
        Ok(record)
    }

    /// Counts a version as it is now instead of as it was.
    pub(super) fn count(&self, before: Option<&VersionRecord>, after: Option<&VersionRecord>) {
        let Some(workspace) = before.or(after).map(|version| version.workspace) else { return };
        let tally = self.tallies.of(workspace);
        if let Some(after) = after {
            tally.add(Resource::ModelVersions, 1);
            tally.add(Resource::ModelBytes, after.bytes());
        }
        if let Some(before) = before {
            tally.subtract(Resource::ModelVersions, 1);
            tally.subtract(Resource::ModelBytes, before.bytes());
        }
    }

    /// A version whose files may still change.
    pub(super) async fn pending_version(
        &self,
        workspace: WorkspaceId,
        name: &str,
        version: u64,
    ) -> Result<VersionRecord, ApiError> {
        let record = self.version(workspace, name, version).await?;
        if record.status == VersionStatus::Ready {
            return Err(conflict(format!(
                "Model version '{version}' of '{name}' is ready and cannot be changed: create a new version."
            )));
        }
        Ok(record)
    }
}

/// Looks at a version's files. Blocks.
fn check(files: BTreeMap<String, PackageFile>, blobs: &Blobs, trust: &Trust) -> Result<Checked, ApiError> {
    trust.check(&files, blobs).map_err(ApiError::invalid)?;
    if let Some(reason) = Package::unserved_flavour(&files, blobs)? {
        return Ok(Checked::Unservable(reason));
    }
    let package = Package::read(files, blobs)?;
    let json = serde_json::to_vec(&package).map_err(|error| ApiError::internal("describe a package", &error))?;
    Ok(Checked::Servable(blobs.put_bytes(&json)?))
}

/// What of a version is served, if it can be.
fn package_digest(record: &VersionRecord) -> Result<Digest, ApiError> {
    let VersionRecord { name, version, .. } = record;
    let refused = |why: &str| Err(ApiError::invalid(format!("Model version '{version}' of '{name}' {why}")));
    match (&record.status, &record.package, &record.unservable) {
        (VersionStatus::Ready, Some(digest), _) => Ok(*digest),
        (VersionStatus::Ready, None, Some(reason)) => {
            refused(&format!("is registered, but cannot be served: {reason}"))
        }
        (VersionStatus::Failed(reason), ..) => refused(&format!("was refused: {reason}")),
        _ => refused("is still being uploaded: finalize it first."),
    }
}

pub(super) fn refuse_if_used(name: &str, version: u64, endpoint: Option<String>) -> Result<(), ApiError> {
    match endpoint {
        None => Ok(()),
        Some(endpoint) => Err(conflict(format!(
            "Model version '{version}' of '{name}' is served by endpoint '{endpoint}': delete or update it first."
        ))),
    }
}
