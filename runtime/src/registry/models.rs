//! Registered models.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::names::{Tags, check_description, check_model_name};
use super::versions::{VersionRecord, refuse_if_used};
use super::{Registry, model_key, version_key, versions_prefix};
use crate::access::authorize::no_model;
use crate::access::{Grant, Principal, tokens};
use crate::catalog::WorkspaceId;
use crate::clock::now_ms;
use crate::error::{ApiError, ErrorCode};
use crate::store::Transaction;
use crate::store::documents::read_document;

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
    /// Other names of versions. Each names a version that exists.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<String, u64>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: Tags,
}

impl ModelRecord {
    /// The aliases of one of its versions.
    pub fn aliases_of(&self, version: u64) -> impl Iterator<Item = &str> {
        self.aliases.iter().filter(move |(_, of)| **of == version).map(|(alias, _)| alias.as_str())
    }
}

impl Registry {
    /// Makes a model.
    ///
    /// # Errors
    /// `RESOURCE_ALREADY_EXISTS`, or what is wrong with the name, the description or the tags.
    pub async fn create_model(
        &self,
        creator: &Principal,
        name: &str,
        description: Option<String>,
        tags: Tags,
    ) -> Result<ModelRecord, ApiError> {
        check_model_name(name)?;
        check_description(description.as_deref())?;
        let workspace = creator.workspace;
        let _turn = self.turn(workspace, name).await;
        self.refuse_taken(workspace, name).await?;
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
            aliases: BTreeMap::new(),
            tags,
        };
        self.clear_versions(workspace, name).await?;
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

    /// Changes a model. What makes its name, its owner and its versions' numbers is not `change`'s to touch.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`, and what `change` refuses: nothing is changed then.
    pub async fn change_model(
        &self,
        workspace: WorkspaceId,
        name: &str,
        change: impl FnOnce(&mut ModelRecord) -> Result<(), ApiError>,
    ) -> Result<ModelRecord, ApiError> {
        let _turn = self.turn(workspace, name).await;
        let mut record = self.model(workspace, name).await?;
        change(&mut record)?;
        check_description(record.description.as_deref())?;
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
        let grant = |model: &mut ModelRecord| {
            model.grants = change(&model.grants)?;
            Ok(())
        };
        self.change_model(workspace, name, grant).await
    }

    /// Lets an alias name a version, instead of the one that it named before.
    ///
    /// # Errors
    /// When there is no such version, or what is wrong with the alias.
    pub async fn set_alias(
        &self,
        workspace: WorkspaceId,
        name: &str,
        alias: &str,
        version: u64,
    ) -> Result<ModelRecord, ApiError> {
        // In the turn of the model, so that the version cannot go meanwhile.
        let _turn = self.turn(workspace, name).await;
        let mut record = self.model(workspace, name).await?;
        self.version(workspace, name, version).await?;
        super::names::put_alias(&mut record.aliases, alias, version)?;
        record.last_updated_timestamp = now_ms();
        self.store.commit(Transaction::new().put_document(&model_key(workspace, name), &record)?).await?;
        Ok(record)
    }

    /// Takes an alias away; one that is not there is no error.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST` without the model.
    pub async fn delete_alias(&self, workspace: WorkspaceId, name: &str, alias: &str) -> Result<(), ApiError> {
        let change = |model: &mut ModelRecord| {
            model.aliases.remove(alias);
            Ok(())
        };
        self.change_model(workspace, name, change).await.map(drop)
    }

    /// Gives a model another name. `in_use` says which of its versions an endpoint serves.
    ///
    /// # Errors
    /// `RESOURCE_CONFLICT` when one is in use, `RESOURCE_ALREADY_EXISTS`, or what is wrong with the name.
    pub async fn rename_model(
        &self,
        workspace: WorkspaceId,
        name: &str,
        new_name: &str,
        in_use: impl Fn(u64) -> Option<String>,
    ) -> Result<ModelRecord, ApiError> {
        check_model_name(new_name)?;
        let _alone = self.changes.write().await;
        let mut model = self.model(workspace, name).await?;
        if new_name == name {
            return Ok(model);
        }
        self.refuse_taken(workspace, new_name).await?;
        let versions = self.versions(workspace, name).await?;
        for version in &versions {
            refuse_if_used(name, version.version, in_use(version.version))?;
        }
        // A transaction has a bound, so the versions come first and one by one: without a model they do not exist. Then
        // the models change places in one step, and what is left of the old name's versions exists no more.
        self.clear_versions(workspace, new_name).await?;
        for version in versions {
            self.keep(VersionRecord { name: new_name.to_owned(), ..version }).await?;
        }
        new_name.clone_into(&mut model.name);
        model.last_updated_timestamp = now_ms();
        let exchange = Transaction::new()
            .put_document(&model_key(workspace, new_name), &model)?
            .delete_document(&model_key(workspace, name));
        self.store.commit(exchange).await?;
        self.clear_versions(workspace, name).await?;
        Ok(model)
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
        let _turn = self.turn(workspace, name).await;
        for version in self.versions(workspace, name).await? {
            refuse_if_used(name, version.version, in_use(version.version))?;
        }
        // Aliases, versions, model, each after the other: a transaction has a bound, and a model with less is still a
        // whole model.
        let mut model = self.model(workspace, name).await?;
        model.aliases.clear();
        self.store.commit(Transaction::new().put_document(&model_key(workspace, name), &model)?).await?;
        self.clear_versions(workspace, name).await?;
        self.store.commit(Transaction::new().delete_document(&model_key(workspace, name))).await?;
        Ok(())
    }

    async fn refuse_taken(&self, workspace: WorkspaceId, name: &str) -> Result<(), ApiError> {
        match read_document::<ModelRecord>(&self.store, model_key(workspace, name)).await? {
            None => Ok(()),
            Some(_) => {
                let message = format!("Registered model '{name}' already exists.");
                Err(ApiError::new(ErrorCode::ResourceAlreadyExists, message))
            }
        }
    }

    /// Removes all versions of a name: before it gets a model, those that a rename left behind when it was cut off.
    async fn clear_versions(&self, workspace: WorkspaceId, name: &str) -> Result<(), ApiError> {
        for version in self.scan::<VersionRecord>(versions_prefix(workspace, name)).await? {
            let key = version_key(workspace, name, version.version);
            self.store.commit(Transaction::new().delete_document(&key)).await?;
            self.count(Some(&version), None);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::NewVersion;
    use super::super::names::put_tag;
    use super::*;
    use crate::access::quota::tests::PLENTY;
    use crate::access::{IdentityKind, Tallies};
    use crate::seal::keyring::Keyring;
    use crate::store::blobs::Blobs;
    use crate::store::memory::MemoryStore;

    fn registry() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Arc::new(Blobs::open(dir.path(), Keyring::for_tests(dir.path())).unwrap());
        let tallies = Arc::new(Tallies::new(PLENTY));
        (dir, Registry::open(Arc::new(MemoryStore::new()), blobs, Arc::default(), tallies).unwrap())
    }

    fn of_workspace(id: u64) -> Principal {
        Principal {
            workspace: WorkspaceId(id),
            id: 7,
            kind: IdentityKind::User,
            name: "user".to_owned(),
            display_name: String::new(),
            admin: true,
            server_admin: false,
            groups: Vec::new(),
        }
    }

    const NAME: &str = "main.default.iris";

    #[tokio::test]
    async fn two_workspaces_have_models_of_one_name_and_do_not_see_each_others() {
        let (_dir, registry) = registry();
        let (one, two) = (of_workspace(1), of_workspace(2));
        registry.create_model(&one, NAME, None, Tags::new()).await.unwrap();
        assert_eq!(registry.model(two.workspace, NAME).await.unwrap_err().status, 404);
        registry.create_model(&two, NAME, None, Tags::new()).await.unwrap();
        registry.create_version(one.workspace, NAME, NewVersion::default(), "user").await.unwrap();
        registry.set_alias(one.workspace, NAME, "best", 1).await.unwrap();
        registry.change_model(one.workspace, NAME, |model| put_tag(&mut model.tags, "a", "b")).await.unwrap();
        let other = registry.model(two.workspace, NAME).await.unwrap();
        assert!(other.aliases.is_empty() && other.tags.is_empty());
        assert!(registry.versions(two.workspace, NAME).await.unwrap().is_empty());
        assert_eq!(registry.set_alias(two.workspace, NAME, "best", 1).await.unwrap_err().status, 404);
        registry.delete_model(two.workspace, NAME, |_| None).await.unwrap();
        assert_eq!(registry.model(one.workspace, NAME).await.unwrap().aliases["best"], 1);
    }

    #[tokio::test]
    async fn a_new_name_takes_versions_and_aliases_along_and_leaves_nothing() {
        let (_dir, registry) = registry();
        let caller = of_workspace(1);
        let workspace = caller.workspace;
        registry.create_model(&caller, NAME, None, Tags::new()).await.unwrap();
        for _ in 0..3 {
            registry.create_version(workspace, NAME, NewVersion::default(), "user").await.unwrap();
        }
        registry.set_alias(workspace, NAME, "best", 2).await.unwrap();
        let used = |version| (version == 2).then(|| "endpoint".to_owned());
        assert_eq!(registry.rename_model(workspace, NAME, "main.default.new", used).await.unwrap_err().status, 409);

        registry.rename_model(workspace, NAME, "main.default.new", |_| None).await.unwrap();
        assert_eq!(registry.model(workspace, "main.default.new").await.unwrap().aliases["best"], 2);
        assert_eq!(registry.versions(workspace, "main.default.new").await.unwrap().len(), 3);
        assert_eq!(registry.version(workspace, NAME, 1).await.unwrap_err().status, 404);
        registry.create_model(&caller, NAME, None, Tags::new()).await.unwrap();
        assert!(registry.versions(workspace, NAME).await.unwrap().is_empty());
        let taken = registry.rename_model(workspace, NAME, "main.default.new", |_| None).await.unwrap_err();
        assert_eq!(taken.code, ErrorCode::ResourceAlreadyExists);
    }

    #[tokio::test]
    async fn an_alias_goes_with_its_version() {
        let (_dir, registry) = registry();
        let caller = of_workspace(1);
        registry.create_model(&caller, NAME, None, Tags::new()).await.unwrap();
        for _ in 0..2 {
            registry.create_version(caller.workspace, NAME, NewVersion::default(), "user").await.unwrap();
        }
        registry.set_alias(caller.workspace, NAME, "one", 1).await.unwrap();
        registry.set_alias(caller.workspace, NAME, "two", 2).await.unwrap();
        registry.delete_version(caller.workspace, NAME, 1, None).await.unwrap();
        let left = registry.model(caller.workspace, NAME).await.unwrap().aliases;
        assert_eq!(left, BTreeMap::from([("two".to_owned(), 2)]));
    }
}
