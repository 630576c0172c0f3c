//! The control plane: endpoints are made, changed and removed here, one change at a time, and deployed in the background.
//!
//! Every change is first in the store, then in the catalog, then acknowledged. A config is published only when all of its
//! entities are ready; until then, and when it fails, the one before it serves.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use crate::catalog::served::ServedEntity;
use crate::catalog::{
    Catalog, Endpoint, EndpointConfig, EndpointRecord, EntityConfig, FailedConfig, Serving, Tag, WorkspaceId,
    check_endpoint_name,
};
use crate::clock::now_ms;
use crate::deploy::build_log::BuildLog;
use crate::deploy::{DeployError, ModelHost};
use crate::error::{ApiError, ErrorCode, chain};
use crate::home::Home;
use crate::observe::log_ring::LogRing;
use crate::observe::metrics::Metrics;
use crate::registry::Registry;
use crate::store::documents::scan_documents;
use crate::store::{StateStore, StoreError, Transaction};

/// What a caller asks for.
pub struct NewEndpoint {
    /// Unique in the workspace.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Labels.
    pub tags: Vec<Tag>,
    /// What it shall serve.
    pub config: EndpointConfig,
}

/// Makes and changes endpoints.
pub struct ControlPlane {
    store: Arc<dyn StateStore>,
    /// What is served now.
    pub catalog: Arc<Catalog>,
    /// The models that endpoints serve.
    pub registry: Arc<Registry>,
    /// Where they are deployed.
    pub host: Arc<ModelHost>,
    metrics: Arc<Metrics>,
    home: Home,
    /// Runs deploys, apart from the threads that answer requests.
    background: Handle,
    writing: Mutex<()>,
    /// Running deploys by endpoint id, so that a delete can stop its own.
    deploys: std::sync::Mutex<HashMap<String, tokio::task::AbortHandle>>,
}

/// Why a deploy did not succeed: which entity, and what is wrong with it.
struct FailedDeploy {
    entity: String,
    message: String,
}

/// Text of a failure that a record keeps; the build log has the rest.
const MESSAGE_BYTES_MAX: usize = 2 << 10;

/// A config as JSON: a record holds up to two of them.
const CONFIG_BYTES_MAX: usize = 24 << 10;

/// Times that the outcome of a deploy is offered to a store whose queue is full.
const COMMIT_TRIES: u32 = 10;

impl FailedDeploy {
    fn new(entity: &str, mut message: String) -> FailedDeploy {
        if message.len() > MESSAGE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
            message.push_str("... (the build log has the rest)");
        }
        FailedDeploy { entity: entity.to_owned(), message }
    }
}

/// What an endpoint's owner gets to read of a failure; ours goes to the log.
fn deploy_message(endpoint: &str, error: &DeployError) -> String {
    match error {
        DeployError::Model(message) | DeployError::Busy(message) => message.clone(),
        DeployError::Host(cause) => {
            tracing::error!(endpoint, cause, "a deploy failed for a reason of the server's own");
            "the server failed to deploy it; its log says why".to_owned()
        }
    }
}

/// Refuses a config that its record could not hold.
fn check_size(config: &EndpointConfig) -> Result<(), ApiError> {
    let bytes = serde_json::to_vec(config).map_or(usize::MAX, |json| json.len());
    if bytes > CONFIG_BYTES_MAX {
        return Err(ApiError::invalid(format!(
            "the config has {bytes} bytes; the limit is {CONFIG_BYTES_MAX}: use fewer served entities or shorter environment_vars"
        )));
    }
    Ok(())
}

impl ControlPlane {
    /// A control plane over what is already in the catalog.
    pub fn new(
        store: Arc<dyn StateStore>,
        registry: Arc<Registry>,
        host: Arc<ModelHost>,
        metrics: Arc<Metrics>,
        home: Home,
        background: Handle,
    ) -> ControlPlane {
        ControlPlane {
            store,
            catalog: Arc::default(),
            registry,
            host,
            metrics,
            home,
            background,
            writing: Mutex::new(()),
            deploys: std::sync::Mutex::default(),
        }
    }

    /// Puts every stored endpoint into the catalog, with nothing in memory yet, and takes up the deploys that were
    /// running when the server stopped. Blocks.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn restore(self: &Arc<ControlPlane>) -> anyhow::Result<usize> {
        let mut endpoints = Vec::new();
        let mut unfinished = Vec::new();
        for (_, mut record) in scan_documents::<EndpointRecord>(&*self.store, "endpoint/")? {
            let serving = match record.config.as_ref().map(|config| self.serving(&record, config, None)) {
                None => None,
                Some(Ok(serving)) => Some(Arc::new(serving)),
                Some(Err(failed)) => {
                    tracing::error!(endpoint = record.name, entity = failed.entity, "cannot serve: {}", failed.message);
                    if let Some(config) = record.config.clone() {
                        record.failed = Some(FailedConfig { config, entity: failed.entity, message: failed.message });
                    }
                    None
                }
            };
            if record.pending.is_some() {
                unfinished.push((record.workspace, record.name.clone(), record.id.clone()));
            }
            endpoints.push(Endpoint { record, serving });
        }
        let count = endpoints.len();
        self.catalog.put_all(endpoints);
        self.sweep();
        self.warm_up();
        for (workspace, name, id) in unfinished {
            self.start_deploy(workspace, name, id);
        }
        Ok(count)
    }

    /// Brings those back into memory that do not scale to zero.
    fn warm_up(&self) {
        for endpoint in self.catalog.everything() {
            for entity in endpoint.serving.iter().flat_map(|serving| &serving.entities) {
                if entity.config.scale_to_zero_enabled {
                    continue;
                }
                let (entity, host, name) = (Arc::clone(entity), Arc::clone(&self.host), endpoint.record.name.clone());
                self.background.spawn(async move {
                    if let Err(error) = entity.ready(&host).await {
                        tracing::warn!(endpoint = name, cause = %error, "failed to bring an endpoint back into memory");
                    }
                });
            }
        }
    }

    /// Removes what deploys made for endpoints that are gone: laid-out packages, artifacts, converted graphs,
    /// build logs. All of it can be made again. Only at a start, before any deploy runs.
    fn sweep(&self) {
        let endpoints = self.catalog.everything();
        let mut kept: HashSet<String> = endpoints.iter().map(|endpoint| endpoint.record.id.clone()).collect();
        for entity in
            endpoints.iter().filter_map(|endpoint| endpoint.serving.as_ref()).flat_map(|serving| &serving.entities)
        {
            kept.insert(entity.plan.artifact.to_string());
            kept.extend(entity.plan.package_name());
            kept.extend(entity.plan.converted_names());
        }
        for folder in ["packages", "artifacts", "graphs", "build-logs"] {
            let entries = std::fs::read_dir(self.home.path(folder)).into_iter().flatten().flatten();
            for entry in entries {
                let name = entry.file_name().to_string_lossy().into_owned();
                // Names begin with what they belong to: a digest, a key, an endpoint's id.
                let owner = name.split(['.', '-']).next().unwrap_or(&name);
                if kept.contains(owner) {
                    continue;
                }
                let path = entry.path();
                let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
                if let Err(error) = removed {
                    tracing::warn!(path = %path.display(), "failed to remove a leftover: {error}");
                }
            }
        }
    }

    /// Makes an endpoint and starts its first deploy.
    ///
    /// # Errors
    /// `RESOURCE_ALREADY_EXISTS`, or what is wrong with the config.
    pub async fn create(
        self: &Arc<ControlPlane>,
        workspace: WorkspaceId,
        creator: &str,
        new: NewEndpoint,
    ) -> Result<Arc<Endpoint>, ApiError> {
        check_endpoint_name(&new.name)?;
        new.config.check()?;
        check_size(&new.config)?;
        let _alone = self.writing.lock().await;
        if self.catalog.endpoint(workspace, &new.name).is_some() {
            let message = format!("Endpoint with name '{}' already exists.", new.name);
            return Err(ApiError::new(ErrorCode::ResourceAlreadyExists, message));
        }
        self.check_versions(workspace, &new.config)?;
        let now = now_ms();
        let record = EndpointRecord {
            workspace,
            name: new.name,
            id: new_id()?,
            creator: creator.to_owned(),
            description: new.description,
            tags: new.tags,
            creation_timestamp: now,
            last_updated_timestamp: now,
            config: None,
            pending: Some(EndpointConfig { version: 1, start_time: now, ..new.config }),
            failed: None,
        };
        self.publish(record, None).await
    }

    /// Starts the deploy of another config. The current one serves until it is ready.
    ///
    /// # Errors
    /// `RESOURCE_CONFLICT` while another update runs, or what is wrong with the config.
    pub async fn update_config(
        self: &Arc<ControlPlane>,
        workspace: WorkspaceId,
        name: &str,
        make: impl FnOnce(&EndpointRecord) -> Result<EndpointConfig, ApiError>,
    ) -> Result<Arc<Endpoint>, ApiError> {
        let _alone = self.writing.lock().await;
        let current = self.endpoint(workspace, name)?;
        let mut record = current.record.clone();
        if record.pending.is_some() {
            return Err(ApiError::new(
                ErrorCode::ResourceConflict,
                format!("Endpoint '{name}' is currently being updated; another update cannot be made until it ends."),
            ));
        }
        let config = make(&record)?;
        config.check()?;
        check_size(&config)?;
        self.check_versions(workspace, &config)?;
        let now = now_ms();
        let version = record.next_version();
        record.pending = Some(EndpointConfig { version, start_time: now, ..config });
        record.last_updated_timestamp = now;
        // A new attempt; a record holds no third config.
        record.failed = None;
        self.publish(record, current.serving.clone()).await
    }

    /// Removes an endpoint. Requests that it has taken go on to their end.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`.
    pub async fn delete(&self, workspace: WorkspaceId, name: &str) -> Result<(), ApiError> {
        let _alone = self.writing.lock().await;
        let endpoint = self.endpoint(workspace, name)?;
        self.store.commit(Transaction::new().delete_document(&endpoint_key(workspace, name))).await?;
        self.catalog.remove(workspace, name);
        let mut deploys = self.deploys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(deploy) = deploys.remove(&endpoint.record.id) {
            deploy.abort();
        }
        self.metrics.forget(name);
        Ok(())
    }

    /// Removes a model version that no endpoint serves or is about to.
    ///
    /// # Errors
    /// `RESOURCE_CONFLICT` when one does.
    pub async fn delete_version(&self, workspace: WorkspaceId, model: &str, version: u64) -> Result<(), ApiError> {
        // No endpoint can be made or changed until the version is gone.
        let _alone = self.writing.lock().await;
        let in_use = self.user_of(workspace, model, version);
        self.registry.delete_version(workspace, model, version, in_use).await
    }

    /// Removes a model with all its versions, none of which an endpoint serves or is about to.
    ///
    /// # Errors
    /// `RESOURCE_CONFLICT` when one does.
    pub async fn delete_model(&self, workspace: WorkspaceId, model: &str) -> Result<(), ApiError> {
        let _alone = self.writing.lock().await;
        self.registry.delete_model(workspace, model, |version| self.user_of(workspace, model, version)).await
    }

    /// An endpoint of a workspace.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`, also for another workspace's.
    pub fn endpoint(&self, workspace: WorkspaceId, name: &str) -> Result<Arc<Endpoint>, ApiError> {
        self.catalog
            .endpoint(workspace, name)
            .ok_or_else(|| ApiError::missing(format!("Endpoint with name '{name}' does not exist.")))
    }

    /// The endpoint that serves a model version, or is about to.
    fn user_of(&self, workspace: WorkspaceId, model: &str, version: u64) -> Option<String> {
        let uses = |config: &EndpointConfig| {
            config.entities.iter().any(|entity| entity.entity_name == model && entity.entity_version == version)
        };
        let endpoints = self.catalog.endpoints(workspace);
        let user =
            endpoints.iter().find(|endpoint| endpoint.record.config.iter().chain(&endpoint.record.pending).any(uses));
        user.map(|endpoint| endpoint.record.name.clone())
    }

    /// Whether changes can be kept.
    ///
    /// # Errors
    /// The store's first failure: it is for good.
    pub fn store_health(&self) -> Result<(), StoreError> {
        self.store.health()
    }

    /// What the deploys of a served entity wrote, the last one.
    pub fn build_log(&self, endpoint: &Endpoint, entity: &str) -> Option<String> {
        let record = &endpoint.record;
        let configs = [&record.pending, &record.failed.as_ref().map(|failed| failed.config.clone()), &record.config];
        let mut versions: Vec<u64> = configs.into_iter().flatten().map(|config| config.version).collect();
        versions.sort_unstable_by(|a, b| b.cmp(a));
        let read = |version| std::fs::read_to_string(self.home.path(&build_log_name(&record.id, version, entity))).ok();
        versions.into_iter().find_map(read)
    }

    /// Commits a record with a pending config, shows it, and starts the deploy. Called under the write lock.
    async fn publish(
        self: &Arc<ControlPlane>,
        record: EndpointRecord,
        serving: Option<Arc<Serving>>,
    ) -> Result<Arc<Endpoint>, ApiError> {
        let (workspace, name, id) = (record.workspace, record.name.clone(), record.id.clone());
        self.store.commit(Transaction::new().put_document(&endpoint_key(workspace, &name), &record)?).await?;
        self.catalog.put(Endpoint { record, serving });
        self.start_deploy(workspace, name.clone(), id);
        self.endpoint(workspace, &name)
    }

    fn start_deploy(self: &Arc<ControlPlane>, workspace: WorkspaceId, name: String, id: String) {
        let control = Arc::clone(self);
        let key = id.clone();
        // Registered before it can end, so that the end finds it.
        let mut deploys = self.deploys.lock().unwrap_or_else(PoisonError::into_inner);
        let task = self.background.spawn(async move { control.deploy(workspace, &name, &id).await });
        deploys.insert(key, task.abort_handle());
    }

    /// Deploys the pending config of an endpoint and records the outcome.
    async fn deploy(&self, workspace: WorkspaceId, name: &str, id: &str) {
        let Some(endpoint) = self.catalog.endpoint(workspace, name).filter(|endpoint| endpoint.record.id == id) else {
            return;
        };
        let Some(config) = endpoint.record.pending.clone() else { return };
        let outcome = match self.serving(&endpoint.record, &config, endpoint.serving.as_deref()) {
            Ok(serving) => self.ready_all(&endpoint.record, &config, &serving).await.map(|()| serving),
            Err(failed) => Err(failed),
        };

        let _alone = self.writing.lock().await;
        self.deploys.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        // Deleted, or deleted and made again, while this ran: then there is nothing to record.
        let Some(endpoint) = self.catalog.endpoint(workspace, name).filter(|endpoint| endpoint.record.id == id) else {
            return;
        };
        let mut record = endpoint.record.clone();
        record.pending = None;
        record.last_updated_timestamp = now_ms();
        let serving = match outcome {
            Ok(serving) => {
                tracing::info!(endpoint = name, config_version = config.version, "deployed");
                record.config = Some(config);
                record.failed = None;
                Some(Arc::new(serving))
            }
            Err(FailedDeploy { entity, message }) => {
                tracing::warn!(endpoint = name, entity, config_version = config.version, "deploy failed: {message}");
                record.failed = Some(FailedConfig { config, entity, message });
                endpoint.serving.clone()
            }
        };
        match self.record_outcome(&record).await {
            Ok(()) => {
                let names: Vec<&str> =
                    record.config.iter().flat_map(|config| &config.entities).map(|e| e.name.as_str()).collect();
                self.metrics.forget_others(name, &names);
                self.catalog.put(Endpoint { record, serving });
            }
            // The record still says pending: the next start takes the deploy up again.
            Err(error) => tracing::error!(endpoint = name, cause = %chain(&error), "failed to record a deploy"),
        }
    }

    /// Commits a record. Tries again while the store's queue is full: nobody else would record this.
    async fn record_outcome(&self, record: &EndpointRecord) -> Result<(), StoreError> {
        let key = endpoint_key(record.workspace, &record.name);
        let mut tries = 0;
        loop {
            match self.store.commit(Transaction::new().put_document(&key, record)?).await {
                Err(StoreError::Unavailable(_)) if tries < COMMIT_TRIES && self.store.health().is_ok() => {
                    tries += 1;
                    tokio::time::sleep(std::time::Duration::from_millis(100 * u64::from(tries))).await;
                }
                outcome => return outcome.map(drop),
            }
        }
    }

    /// The entities of a config with their plans. Those that `current` has with the same plan are taken over, with what
    /// they have in memory and their logs.
    fn serving(
        &self,
        record: &EndpointRecord,
        config: &EndpointConfig,
        current: Option<&Serving>,
    ) -> Result<Serving, FailedDeploy> {
        let mut entities = Vec::with_capacity(config.entities.len());
        for entity in &config.entities {
            let failed = |message: String| FailedDeploy::new(&entity.name, message);
            let kept =
                current.and_then(|current| current.entity(&entity.name)).filter(|kept| same(&kept.config, entity));
            if let Some(kept) = kept {
                entities.push(Arc::clone(kept));
                continue;
            }
            let package = self
                .registry
                .package(record.workspace, &entity.entity_name, entity.entity_version)
                .map_err(|error| failed(error.message))?;
            let plan = self
                .host
                .plan(record, entity, &package)
                .map_err(|error| failed(deploy_message(&record.name, &error)))?;
            let metrics = self.metrics.entity(&record.name, &entity.name);
            entities.push(Arc::new(ServedEntity::new(entity.clone(), plan, LogRing::default(), metrics)));
        }
        Ok(Serving::new(entities, config.traffic.clone()))
    }

    async fn ready_all(
        &self,
        record: &EndpointRecord,
        config: &EndpointConfig,
        serving: &Serving,
    ) -> Result<(), FailedDeploy> {
        for entity in &serving.entities {
            let mut log = BuildLog::default();
            log.step(&format!(
                "deploying {} version {} as '{}', config version {}",
                entity.config.entity_name, entity.config.entity_version, entity.config.name, config.version
            ));
            // A panic is our bug; without this it would leave the endpoint waiting for ever.
            let deploy = AssertUnwindSafe(self.host.deploy(entity, &mut log)).catch_unwind();
            let outcome = deploy.await.unwrap_or_else(|_| Err(DeployError::Host("the deploy panicked".to_owned())));
            let outcome = outcome.map_err(|error| deploy_message(&record.name, &error));
            if let Err(message) = &outcome {
                log.step(&format!("failed: {message}"));
            }
            let name = build_log_name(&record.id, config.version, &entity.config.name);
            // A build log that cannot be written must not fail the deploy it describes.
            if let Err(error) = self.home.write(&name, log.text().as_bytes()) {
                tracing::warn!("failed to keep a build log: {error:#}");
            }
            outcome.map_err(|message| FailedDeploy::new(&entity.config.name, message))?;
        }
        Ok(())
    }

    fn check_versions(&self, workspace: WorkspaceId, config: &EndpointConfig) -> Result<(), ApiError> {
        for entity in &config.entities {
            self.registry.package(workspace, &entity.entity_name, entity.entity_version)?;
        }
        Ok(())
    }
}

/// Whether two configs of an entity need the same in memory.
fn same(a: &EntityConfig, b: &EntityConfig) -> bool {
    (&a.entity_name, a.entity_version, &a.environment_vars, a.scale_to_zero_enabled, &a.workload_type)
        == (&b.entity_name, b.entity_version, &b.environment_vars, b.scale_to_zero_enabled, &b.workload_type)
}

fn endpoint_key(workspace: WorkspaceId, name: &str) -> String {
    format!("endpoint/{workspace}/{name}")
}

fn build_log_name(id: &str, version: u64, entity: &str) -> String {
    format!("build-logs/{id}-{version}-{entity}.log")
}

/// 32 random hex digits.
fn new_id() -> Result<String, ApiError> {
    let mut id = [0u8; 16];
    getrandom::fill(&mut id)
        .map_err(|error| ApiError::new(ErrorCode::InternalError, format!("failed to draw randomness: {error}")))?;
    Ok(hex::encode(id))
}
