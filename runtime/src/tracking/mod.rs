//! What MLflow's clients write down while they log a model: experiments, runs, logged models and their files. Enough for
//! `mlflow.<flavour>.log_model(..., registered_model_name=...)` against this server, and no more: this is the way into the
//! registry, not a tracking server. So it is bounded: of each workspace's runs and logged models the newest
//! [`RECORDS_MAX`] are kept; versions that were made of older ones have their own claim on the files.
//!
//! Experiments are names that a workspace shares. A run or a logged model is its maker's, for its files may be a model that
//! not everybody may read.

pub mod records;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::records::{Experiment, LoggedModel, Metric, Run};
use crate::access::{Action, Level, Object, Principal, Resource, Tallies, authorize, tokens};
use crate::catalog::WorkspaceId;
use crate::clock::now_ms;
use crate::deploy::package::{FILES_MAX, PackageFile, check_path};
use crate::error::{ApiError, ErrorCode};
use crate::store::blobs::Digest;
use crate::store::documents::{read_document, scan_documents, visit_documents};
use crate::store::{StateStore, StoreError, Transaction};
use crate::turns::Turns;

/// Runs of a workspace, and logged models: a list reads all of them.
pub const RECORDS_MAX: usize = 1000;

/// Experiments of a workspace.
const EXPERIMENTS_MAX: usize = 1000;

/// The experiment that every workspace has.
pub const DEFAULT_EXPERIMENT: &str = "0";

/// A run or a logged model.
pub trait Tracked: Serialize + DeserializeOwned + Clone + Send + 'static {
    /// First part of its key in the store.
    const KIND: &'static str;

    /// Whose it is, what it is called by, and who made it.
    fn place(&self) -> (WorkspaceId, &str, u64);

    /// Its files by path.
    fn files(&mut self) -> &mut BTreeMap<String, PackageFile>;

    /// Of its files.
    fn bytes(&mut self) -> u64 {
        self.files().values().map(|file| file.bytes).sum()
    }

    /// As what permissions are asked for.
    fn object(&self) -> Object<'_> {
        let (workspace, id, owner) = self.place();
        Object::Tracked { workspace, owner, kind: Self::KIND, id }
    }
}

/// Experiments, runs and logged models of all workspaces.
pub struct Tracking {
    store: Arc<dyn StateStore>,
    turns: Turns,
    /// Counts the bytes of files.
    tallies: Arc<Tallies>,
}

impl Tracking {
    /// Those in a store. Blocks, for it counts what is there.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn open(store: Arc<dyn StateStore>, tallies: Arc<Tallies>) -> Result<Tracking, StoreError> {
        let count = |workspace, bytes| tallies.of(workspace).add(Resource::ModelBytes, bytes);
        visit_documents(&*store, "run/", |_, mut run: Run| {
            count(run.workspace, run.bytes());
            Ok::<_, StoreError>(())
        })?;
        visit_documents(&*store, "logged-model/", |_, mut model: LoggedModel| {
            count(model.workspace, model.bytes());
            Ok::<_, StoreError>(())
        })?;
        Ok(Tracking { store, turns: Turns::default(), tallies })
    }

    /// A run or a logged model that a caller may read and change.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`, `PERMISSION_DENIED`.
    pub async fn get<T: Tracked>(&self, principal: &Principal, id: &str) -> Result<T, ApiError> {
        let found: Option<T> = read_document(&self.store, key::<T>(principal.workspace, id)).await?;
        let found = found.ok_or_else(|| no_such(T::KIND, id))?;
        authorize(principal, Action::Use(Level::Manage), found.object())?;
        Ok(found)
    }

    /// Those of a workspace, newest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn list<T: Tracked>(&self, workspace: WorkspaceId) -> Result<Vec<T>, ApiError> {
        let mut found = self.scan::<T>(key::<T>(workspace, "")).await?;
        found.reverse();
        Ok(found)
    }

    /// Keeps a new one; the oldest goes when there are too many.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn add<T: Tracked>(&self, record: &T) -> Result<(), ApiError> {
        let (workspace, id, _) = record.place();
        let prefix = key::<T>(workspace, "");
        let _turn = self.turns.of(workspace, T::KIND).await;
        let mut all = self.scan::<T>(prefix).await?;
        let mut transaction = Transaction::new().put_document(&key::<T>(workspace, id), record)?;
        let too_many = all.len() >= RECORDS_MAX;
        let mut gone_bytes = 0;
        // Their ids begin with the time.
        if let Some(oldest) = all.first_mut().filter(|_| too_many) {
            transaction = transaction.delete_document(&key::<T>(workspace, oldest.place().1));
            gone_bytes = oldest.bytes();
        }
        self.store.commit(transaction).await?;
        self.tallies.of(workspace).subtract(Resource::ModelBytes, gone_bytes);
        Ok(())
    }

    /// Changes one.
    ///
    /// # Errors
    /// As [`Tracking::get`], what `change` refuses, and files over the workspace's quota: nothing is changed then.
    pub async fn change<T: Tracked>(
        &self,
        principal: &Principal,
        id: &str,
        change: impl FnOnce(&mut T) -> Result<(), ApiError>,
    ) -> Result<T, ApiError> {
        let _turn = self.turns.of(principal.workspace, id).await;
        let mut record: T = self.get(principal, id).await?;
        let before = record.bytes();
        change(&mut record)?;
        let room = self.tallies.of(principal.workspace).resize(Resource::ModelBytes, before, record.bytes())?;
        let put = Transaction::new().put_document(&key::<T>(principal.workspace, id), &record)?;
        self.store.commit(put).await?;
        room.keep();
        Ok(record)
    }

    /// Removes one.
    ///
    /// # Errors
    /// As [`Tracking::get`].
    pub async fn remove<T: Tracked>(&self, principal: &Principal, id: &str) -> Result<(), ApiError> {
        let _turn = self.turns.of(principal.workspace, id).await;
        let bytes = self.get::<T>(principal, id).await?.bytes();
        self.store.commit(Transaction::new().delete_document(&key::<T>(principal.workspace, id))).await?;
        self.tallies.of(principal.workspace).subtract(Resource::ModelBytes, bytes);
        Ok(())
    }

    /// Names a file of one.
    ///
    /// # Errors
    /// As [`Tracking::get`]; when the path is not allowed, or there are too many files.
    pub async fn add_file<T: Tracked>(
        &self,
        principal: &Principal,
        id: &str,
        path: &str,
        file: PackageFile,
    ) -> Result<(), ApiError> {
        check_path(path)?;
        let add = |record: &mut T| {
            let files = record.files();
            if files.len() >= FILES_MAX && !files.contains_key(path) {
                let what = T::KIND;
                return Err(ApiError::invalid(format!("{what} '{id}' may have at most {FILES_MAX} files")));
            }
            files.insert(path.to_owned(), file);
            Ok(())
        };
        self.change(principal, id, add).await.map(drop)
    }

    /// The experiments of a workspace, the one that all have first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn experiments(&self, workspace: WorkspaceId) -> Result<Vec<Experiment>, ApiError> {
        let mut found = vec![Experiment::default_of(workspace)];
        found.extend(self.scan::<Experiment>(experiment_key(workspace, "")).await?);
        Ok(found)
    }

    /// An experiment by its id.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`.
    pub async fn experiment(&self, workspace: WorkspaceId, id: &str) -> Result<Experiment, ApiError> {
        let found = self.experiments(workspace).await?.into_iter().find(|experiment| experiment.id == id);
        found.ok_or_else(|| no_such("experiment", id))
    }

    /// An experiment by its name.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`.
    pub async fn experiment_by_name(&self, workspace: WorkspaceId, name: &str) -> Result<Experiment, ApiError> {
        let found = self.experiments(workspace).await?.into_iter().find(|experiment| experiment.name == name);
        found.ok_or_else(|| no_such("experiment", name))
    }

    /// Makes an experiment.
    ///
    /// # Errors
    /// `RESOURCE_ALREADY_EXISTS`, or when there are too many.
    pub async fn create_experiment(&self, creator: &Principal, mut new: Experiment) -> Result<Experiment, ApiError> {
        let _turn = self.turns.of(creator.workspace, "experiment").await;
        let all = self.experiments(creator.workspace).await?;
        if all.iter().any(|experiment| experiment.name == new.name) {
            let message = format!("Experiment '{}' already exists.", new.name);
            return Err(ApiError::new(ErrorCode::ResourceAlreadyExists, message));
        }
        if all.len() >= EXPERIMENTS_MAX {
            return Err(ApiError::invalid(format!(
                "there are {EXPERIMENTS_MAX} experiments already: delete one first"
            )));
        }
        let highest = all.iter().filter_map(|experiment| experiment.id.parse::<u64>().ok()).max();
        new.id = (highest.unwrap_or(0) + 1).to_string();
        let put = Transaction::new().put_document(&experiment_key(creator.workspace, &new.id), &new)?;
        self.store.commit(put).await?;
        Ok(new)
    }

    /// Changes an experiment.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`; `PERMISSION_DENIED` for another's; and what `change` refuses.
    pub async fn change_experiment(
        &self,
        principal: &Principal,
        id: &str,
        change: impl FnOnce(&mut Experiment) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let _turn = self.turns.of(principal.workspace, "experiment").await;
        let mut experiment = self.own_experiment(principal, id).await?;
        change(&mut experiment)?;
        let put = Transaction::new().put_document(&experiment_key(principal.workspace, id), &experiment)?;
        self.store.commit(put).await?;
        Ok(())
    }

    /// Removes an experiment; its runs stay until newer ones take their place.
    ///
    /// # Errors
    /// As [`Tracking::change_experiment`].
    pub async fn delete_experiment(&self, principal: &Principal, id: &str) -> Result<(), ApiError> {
        let _turn = self.turns.of(principal.workspace, "experiment").await;
        self.own_experiment(principal, id).await?;
        self.store.commit(Transaction::new().delete_document(&experiment_key(principal.workspace, id))).await?;
        Ok(())
    }

    async fn own_experiment(&self, principal: &Principal, id: &str) -> Result<Experiment, ApiError> {
        if id == DEFAULT_EXPERIMENT {
            return Err(ApiError::invalid("the default experiment cannot be changed or deleted"));
        }
        let experiment = self.experiment(principal.workspace, id).await?;
        let (workspace, owner) = (experiment.workspace, experiment.owner);
        let object = Object::Tracked { workspace, owner, kind: "experiment", id };
        authorize(principal, Action::Use(Level::Manage), object)?;
        Ok(experiment)
    }

    /// The files that some run or logged model refers to. Blocks.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn digests(&self) -> Result<HashSet<Digest>, StoreError> {
        let mut digests = HashSet::new();
        visit_documents(&*self.store, "run/", |_, run: Run| {
            digests.extend(run.files.values().map(|file| file.digest));
            Ok::<_, StoreError>(())
        })?;
        visit_documents(&*self.store, "logged-model/", |_, model: LoggedModel| {
            digests.extend(model.files.values().map(|file| file.digest));
            Ok::<_, StoreError>(())
        })?;
        Ok(digests)
    }

    async fn scan<T: DeserializeOwned + Send + 'static>(&self, prefix: String) -> Result<Vec<T>, ApiError> {
        let store = Arc::clone(&self.store);
        let scanned = tokio::task::spawn_blocking(move || scan_documents(&*store, &prefix)).await;
        let records = scanned.map_err(|error| ApiError::internal("read what was tracked", &error))??;
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }
}

/// 32 hex digits that begin with the time, so that records lie in the order in which they were made.
///
/// # Errors
/// When there is no randomness.
pub fn new_id() -> Result<String, ApiError> {
    Ok(format!("{:011x}{}", now_ms(), &tokens::new_id()?[..21]))
}

fn no_such(kind: &str, id: &str) -> ApiError {
    ApiError::missing(format!("There is no {kind} '{id}'."))
}

fn key<T: Tracked>(workspace: WorkspaceId, id: &str) -> String {
    format!("{}/{workspace}/{id}", T::KIND)
}

fn experiment_key(workspace: WorkspaceId, id: &str) -> String {
    format!("experiment/{workspace}/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::IdentityKind;
    use crate::access::quota::tests::PLENTY;
    use crate::store::memory::MemoryStore;

    fn principal(workspace: u64, id: u64) -> Principal {
        Principal {
            workspace: WorkspaceId(workspace),
            id,
            kind: IdentityKind::User,
            name: format!("user-{id}"),
            display_name: String::new(),
            admin: false,
            server_admin: false,
            groups: Vec::new(),
        }
    }

    fn opened() -> Tracking {
        Tracking::open(Arc::new(MemoryStore::new()), Arc::new(Tallies::new(PLENTY))).unwrap()
    }

    #[tokio::test]
    async fn a_run_is_its_makers_and_does_not_exist_elsewhere() {
        let tracking = opened();
        let run = Run::new(&principal(1, 7), "0", Some("first".to_owned())).unwrap();
        tracking.add(&run).await.unwrap();
        tracking.get::<Run>(&principal(1, 7), &run.id).await.unwrap();
        assert_eq!(tracking.get::<Run>(&principal(1, 8), &run.id).await.unwrap_err().status, 403);
        assert_eq!(tracking.get::<Run>(&principal(2, 7), &run.id).await.unwrap_err().status, 404);
    }

    #[tokio::test]
    async fn the_oldest_goes_when_there_are_too_many() {
        let tracking = opened();
        let caller = principal(1, 7);
        let new = |number: usize| Run { id: format!("{number:032}"), ..Run::new(&caller, "0", None).unwrap() };
        for number in 0..=RECORDS_MAX {
            let put = Transaction::new().put_document(&key::<Run>(caller.workspace, &new(number).id), &new(number));
            tracking.store.commit(put.unwrap()).await.unwrap();
        }
        tracking.add(&new(RECORDS_MAX + 1)).await.unwrap();
        assert_eq!(tracking.get::<Run>(&caller, &new(0).id).await.unwrap_err().status, 404);
        tracking.get::<Run>(&caller, &new(1).id).await.unwrap();
    }

    #[tokio::test]
    async fn files_count_as_long_as_their_run_has_them() {
        let tracking = opened();
        let (caller, tally) = (principal(1, 7), tracking.tallies.of(WorkspaceId(1)));
        let run = Run::new(&caller, "0", None).unwrap();
        tracking.add(&run).await.unwrap();
        let file = |bytes| PackageFile { digest: Digest::of(b"x"), bytes };
        let used = || tally.used(Resource::ModelBytes);
        for (path, bytes, expected) in [("a", 10, 10), ("b", 5, 15), ("a", 3, 8)] {
            tracking.add_file::<Run>(&caller, &run.id, path, file(bytes)).await.unwrap();
            assert_eq!(used(), expected);
        }
        let refused = tracking.add_file::<Run>(&caller, &run.id, "c", file(PLENTY.model_bytes)).await.unwrap_err();
        assert!(refused.message.contains("'model_bytes'"), "{}", refused.message);
        assert_eq!(used(), 8);
        let restarted = Arc::new(Tallies::new(PLENTY));
        Tracking::open(Arc::clone(&tracking.store), Arc::clone(&restarted)).unwrap();
        assert_eq!(restarted.of(WorkspaceId(1)).used(Resource::ModelBytes), 8);
        tracking.remove::<Run>(&caller, &run.id).await.unwrap();
        assert_eq!(used(), 0);
    }

    #[tokio::test]
    async fn experiments_are_numbered_and_named_once() {
        let tracking = opened();
        let new = |name: &str| Experiment { name: name.to_owned(), ..Experiment::of(&principal(1, 7)) };
        let made = tracking.create_experiment(&principal(1, 7), new("a")).await.unwrap();
        assert_eq!(made.id, "1");
        assert_eq!(tracking.create_experiment(&principal(1, 7), new("a")).await.unwrap_err().status, 400);
        assert_eq!(tracking.create_experiment(&principal(1, 7), new("b")).await.unwrap().id, "2");
        assert_eq!(tracking.experiment_by_name(WorkspaceId(1), "Default").await.unwrap().id, "0");
        assert_eq!(tracking.experiment(WorkspaceId(2), "1").await.unwrap_err().status, 404);
        assert_eq!(tracking.delete_experiment(&principal(1, 8), "1").await.unwrap_err().status, 403);
        tracking.delete_experiment(&principal(1, 7), "1").await.unwrap();
        assert_eq!(tracking.delete_experiment(&principal(1, 7), "0").await.unwrap_err().status, 400);
    }
}
