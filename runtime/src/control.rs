//! The control plane: endpoints are made, changed and removed here, each by one change at a time, and deployed in the
//! background.
//!
//! Every change is first in the store, then in the catalog, then acknowledged. A config is published only when all of its
//! entities are ready; until then, and when it fails, the one before it serves.
//!
//! What is read of endpoints that sleep is read from the store: one record to wake one, all of them for a list.

mod deploys;
mod suspend;
mod upkeep;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::{MutexGuard, RwLock, RwLockReadGuard, Semaphore};

use self::deploys::{FailedDeploy, Planned, deployed_graphs};
use self::upkeep::GIVE_BACK_AGAIN;
use crate::access::authorize::no_endpoint;
use crate::access::{Action, Level, Object, Principal, Resource, Tallies, authorize, tokens};
use crate::catalog::{
    Catalog, Endpoint, EndpointConfig, EndpointRecord, EndpointSettings, EntityConfig, FailedConfig, Serving, Suspend,
    Traces, WorkspaceId, check_endpoint_name, check_entity_name,
};
use crate::clock::now_ms;
use crate::deploy::ModelHost;
use crate::error::{ApiError, ErrorCode};
use crate::home::Home;
use crate::memory;
use crate::observe::log_ring::LogRing;
use crate::observe::metrics::Metrics;
use crate::registry::{ModelRecord, Registry};
use crate::secrets::Secrets;
use crate::store::documents::{document, read_document, visit_documents};
use crate::store::{StateStore, StoreError, Transaction};
use crate::turns::Turns;
use crate::usage::Recorder;
use crate::usage::rows::{EntityRow, served_entity_id};

/// What a caller asks for.
pub struct NewEndpoint {
    /// Unique in the workspace.
    pub name: String,
    /// Description, labels, gateway.
    pub settings: EndpointSettings,
    /// What it shall serve.
    pub config: EndpointConfig,
}

/// What a control plane works with.
#[allow(missing_docs, reason = "each is described by its type")]
pub struct ControlParts {
    pub store: Arc<dyn StateStore>,
    pub registry: Arc<Registry>,
    pub host: Arc<ModelHost>,
    pub tallies: Arc<Tallies>,
    pub metrics: Arc<Metrics>,
    pub usage: Arc<Recorder>,
    pub home: Home,
    /// Runs deploys, apart from the threads that answer requests.
    pub background: Handle,
    /// Endpoints that may be in memory at once.
    pub awake_max: usize,
}

/// Makes and changes endpoints.
pub struct ControlPlane {
    store: Arc<dyn StateStore>,
    /// What is served now.
    pub catalog: Arc<Catalog>,
    /// The models that endpoints serve.
    pub registry: Arc<Registry>,
    /// What their settings may refer to.
    pub secrets: Secrets,
    /// Where they are deployed.
    pub host: Arc<ModelHost>,
    /// Counts the endpoints.
    tallies: Arc<Tallies>,
    metrics: Arc<Metrics>,
    /// Where served entities are recorded.
    usage: Arc<Recorder>,
    home: Home,
    /// Runs deploys, apart from the threads that answer requests.
    background: Handle,
    /// Shared by changes of endpoints; alone is who removes what no endpoint may serve meanwhile.
    changes: RwLock<()>,
    turns: Turns,
    /// Who copies packages, by workspace.
    laying_out: Turns,
    waking: Arc<Semaphore>,
    /// Most endpoints that are awake.
    awake_max: usize,
    /// When memory is to be given back once more.
    give_back_at: std::sync::Mutex<Option<Instant>>,
    /// Held while endpoints are put to sleep to make room.
    making_room: std::sync::Mutex<()>,
    /// Running deploys by endpoint id, so that a delete can stop its own.
    deploys: std::sync::Mutex<HashMap<String, tokio::task::AbortHandle>>,
}

/// A config as JSON: a record holds up to two of them.
const CONFIG_BYTES_MAX: usize = 24 << 10;

/// Endpoints that are read from disk at one time: each takes a thread for a moment.
const WAKING_MAX: usize = 8;

/// One endpoint's turn to change.
type Turn<'a> = (RwLockReadGuard<'a, ()>, MutexGuard<'a, ()>);

/// What was read of an endpoint: its record, and what it is to be served with; nothing where it is stopped or was never ready.
type Read = (EndpointRecord, Option<Result<Planned, FailedDeploy>>);

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
    pub fn new(parts: ControlParts) -> ControlPlane {
        ControlPlane {
            secrets: Secrets::new(Arc::clone(&parts.store)),
            store: parts.store,
            catalog: Arc::default(),
            registry: parts.registry,
            host: parts.host,
            tallies: parts.tallies,
            metrics: parts.metrics,
            usage: parts.usage,
            home: parts.home,
            background: parts.background,
            changes: RwLock::new(()),
            turns: Turns::default(),
            laying_out: Turns::default(),
            waking: Arc::new(Semaphore::new(WAKING_MAX)),
            awake_max: parts.awake_max,
            give_back_at: std::sync::Mutex::new(Some(Instant::now() + GIVE_BACK_AGAIN)),
            making_room: std::sync::Mutex::default(),
            deploys: std::sync::Mutex::default(),
        }
    }

    /// Puts every stored endpoint into the catalog, asleep, wakes those that do not scale to zero, and takes up the deploys
    /// that were running when the server stopped. Blocks; reads the records and nothing else.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn restore(self: &Arc<ControlPlane>) -> Result<usize, StoreError> {
        visit_documents(&*self.store, "endpoint/", |_, record: EndpointRecord| {
            self.catalog.put_asleep(record.workspace, &record.name);
            self.tallies.of(record.workspace).add(Resource::Endpoints, 1);
            let mut entities = record.config.iter().flat_map(|config| &config.entities);
            if !record.is_suspended() && entities.any(|entity| !entity.scale_to_zero_enabled) {
                self.warm_up(record.workspace, record.name.clone());
            }
            if record.pending.is_some() {
                self.start_deploy(record.workspace, record.name, record.id);
            }
            Ok::<_, StoreError>(())
        })?;
        memory::give_back();
        Ok(self.catalog.len())
    }

    /// Makes an endpoint and starts its first deploy.
    ///
    /// # Errors
    /// `RESOURCE_ALREADY_EXISTS`, what is wrong with the config, or that the workspace has as many as it may have.
    pub async fn create(
        self: &Arc<ControlPlane>,
        creator: &Principal,
        new: NewEndpoint,
    ) -> Result<Arc<Endpoint>, ApiError> {
        let workspace = creator.workspace;
        check_endpoint_name(&new.name)?;
        new.settings.check()?;
        new.config.check()?;
        check_size(&new.config)?;
        let _turn = self.turn(workspace, &new.name).await;
        if self.catalog.contains(workspace, &new.name) {
            let message = format!("Endpoint with name '{}' already exists.", new.name);
            return Err(ApiError::new(ErrorCode::ResourceAlreadyExists, message));
        }
        self.check_versions(creator, &new.config).await?;
        let room = self.tallies.of(workspace).reserve(Resource::Endpoints, 1)?;
        let now = now_ms();
        let record = EndpointRecord {
            id: tokens::new_id()?,
            creator: creator.name.clone(),
            owner: creator.id,
            settings: new.settings,
            creation_timestamp: now,
            last_updated_timestamp: now,
            pending: Some(new.config.after(None, 1, now)),
            ..EndpointRecord::empty(workspace, &new.name)
        };
        let endpoint = self.publish(record, None).await?;
        room.keep();
        Ok(endpoint)
    }

    /// Gives an endpoint another config. What needs no deploy, such as another split of the traffic, serves at once; else
    /// the current config serves until the other is ready. A stopped endpoint is started with it.
    ///
    /// # Errors
    /// `RESOURCE_CONFLICT` while another update runs, or what is wrong with the config.
    pub async fn update_config(
        self: &Arc<ControlPlane>,
        caller: &Principal,
        name: &str,
        make: impl FnOnce(&EndpointRecord) -> Result<EndpointConfig, ApiError>,
    ) -> Result<Arc<Endpoint>, ApiError> {
        let workspace = caller.workspace;
        let (_turn, current) = self.awake_turn(workspace, name).await?;
        let mut record = current.record.clone();
        refuse_while_updating(&record)?;
        let config = make(&record)?;
        config.check()?;
        check_size(&config)?;
        let last = record.config.as_ref();
        let before = last.and_then(|last| last.auto_capture.as_ref());
        if let (Some(before), Some(now)) = (before, &config.auto_capture) {
            before.check_change(now, "auto_capture_config")?;
        }
        self.check_versions(caller, &config).await?;
        let now = now_ms();
        let config = config.after(last, record.next_version(), now);
        record.last_updated_timestamp = now;
        // A new attempt; a record holds no third config.
        record.failed = None;
        match current.serving.as_deref().and_then(|serving| serving.with(&config)) {
            Some(serving) => {
                record.graphs = deployed_graphs(&serving, &self.host);
                record.config = Some(config);
                self.keep(record, Some(Arc::new(serving))).await
            }
            None => {
                record.pending = Some(config);
                if record.is_suspended() {
                    record.suspend = Some(Suspend::Starting);
                }
                self.publish(record, current.serving.clone()).await
            }
        }
    }

    /// Commits a record and shows it. Called in the endpoint's turn.
    async fn keep(&self, record: EndpointRecord, serving: Option<Arc<Serving>>) -> Result<Arc<Endpoint>, ApiError> {
        let key = endpoint_key(record.workspace, &record.name);
        let mut stored = record.clone();
        // That it could not be woken is not for good: the next time it is tried again.
        let serves = record.config.as_ref().map(|config| config.version);
        stored.failed.take_if(|failed| serves == Some(failed.config.version));
        self.store.commit(Transaction::new().put_document(&key, &stored)?).await?;
        self.forget_old_entities(&record);
        Ok(self.catalog.put(Endpoint { record, serving }))
    }

    /// Changes what is said of an endpoint, apart from what it serves. `id` tells it from one that was made meanwhile under
    /// the same name.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`, and those of `change`.
    pub async fn change_record(
        self: &Arc<ControlPlane>,
        workspace: WorkspaceId,
        name: &str,
        id: &str,
        change: impl FnOnce(&mut EndpointRecord) -> Result<(), ApiError>,
    ) -> Result<Arc<Endpoint>, ApiError> {
        let (_turn, current) = self.awake_turn(workspace, name).await?;
        if current.record.id != id {
            return Err(no_endpoint(name));
        }
        let mut record = current.record.clone();
        change(&mut record)?;
        record.last_updated_timestamp = now_ms();
        self.keep(record, current.serving.clone()).await
    }

    /// The name of the endpoint of a workspace that has this id. Reads the records until it is found.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn endpoint_with_id(
        self: &Arc<ControlPlane>,
        workspace: WorkspaceId,
        id: &str,
    ) -> Result<Option<String>, ApiError> {
        let (control, id) = (Arc::clone(self), id.to_owned());
        let found = self.off_the_event_loop(move || {
            let mut found = None;
            control.visit_endpoints(workspace, |record, _| {
                if record.id == id {
                    found = Some(record.name.clone());
                }
                Ok::<_, StoreError>(())
            })?;
            Ok(found)
        });
        found.await
    }

    /// Removes an endpoint. Requests that it has taken go on to their end.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`.
    pub async fn delete(&self, workspace: WorkspaceId, name: &str) -> Result<(), ApiError> {
        let _turn = self.turn(workspace, name).await;
        let key = endpoint_key(workspace, name);
        let record: Option<EndpointRecord> = read_document(&self.store, key.clone()).await?;
        let record = record.ok_or_else(|| no_endpoint(name))?;
        self.store.commit(Transaction::new().delete_document(&key)).await?;
        self.catalog.remove(workspace, name);
        self.abort_deploy(&record.id);
        self.metrics.forget(workspace, name);
        self.tallies.of(workspace).subtract(Resource::Endpoints, 1);
        self.record_entities(&record, Some(now_ms()));
        Ok(())
    }

    /// Tells the table of served entities what a config made, or what went with its endpoint.
    fn record_entities(&self, record: &EndpointRecord, deleted: Option<u64>) {
        let Some(config) = &record.config else { return };
        for entity in &config.entities {
            self.usage.record(EntityRow {
                workspace: record.workspace.0,
                served_entity_id: served_entity_id(&record.id, &entity.name),
                created_by: entity.creator.clone(),
                endpoint_name: record.name.clone(),
                endpoint_id: record.id.clone(),
                served_entity_name: entity.name.clone(),
                entity_type: "CUSTOM_MODEL".to_owned(),
                entity_name: entity.entity_name.clone(),
                entity_version: Some(entity.entity_version.to_string()),
                endpoint_config_version: config.version,
                change_time_ms: now_ms(),
                endpoint_delete_time_ms: deleted,
                ..EntityRow::default()
            });
        }
    }

    /// Drops the series of entities that an endpoint has no longer.
    fn forget_old_entities(&self, record: &EndpointRecord) {
        let entities = record.config.iter().chain(&record.pending).flat_map(|config| &config.entities);
        let names: Vec<&str> = entities.map(|entity| entity.name.as_str()).collect();
        self.metrics.forget_others(record.workspace, &record.name, &names);
    }

    async fn turn(&self, workspace: WorkspaceId, name: &str) -> Turn<'_> {
        (self.changes.read().await, self.turns.of(workspace, name).await)
    }

    /// The turn to change an endpoint that is there, and the endpoint.
    async fn awake_turn(
        self: &Arc<ControlPlane>,
        workspace: WorkspaceId,
        name: &str,
    ) -> Result<(Turn<'_>, Arc<Endpoint>), ApiError> {
        // Woken before, and kept awake: it may take minutes, in which who waits to be alone with the changes would hold up
        // those of everybody.
        let _awake = self.endpoint(workspace, name).await?;
        let turn = self.turn(workspace, name).await;
        // Another change may have come first.
        let endpoint = self.endpoint(workspace, name).await?;
        Ok((turn, endpoint))
    }

    /// Removes a model version that no endpoint serves or is about to.
    ///
    /// # Errors
    /// `RESOURCE_CONFLICT` when one does.
    pub async fn delete_version(
        self: &Arc<ControlPlane>,
        workspace: WorkspaceId,
        model: &str,
        version: u64,
    ) -> Result<(), ApiError> {
        // No endpoint can be made or changed until the version is gone.
        let _alone = self.changes.write().await;
        let in_use = self.users_of(workspace, model).await?.remove(&version);
        self.registry.delete_version(workspace, model, version, in_use).await
    }

    /// Removes a model with all its versions, none of which an endpoint serves or is about to.
    ///
    /// # Errors
    /// `RESOURCE_CONFLICT` when one does.
    pub async fn delete_model(self: &Arc<ControlPlane>, workspace: WorkspaceId, model: &str) -> Result<(), ApiError> {
        let _alone = self.changes.write().await;
        let users = self.users_of(workspace, model).await?;
        self.registry.delete_model(workspace, model, |version| users.get(&version).cloned()).await
    }

    /// Gives a model another name, none of whose versions an endpoint serves or is about to.
    ///
    /// # Errors
    /// `RESOURCE_CONFLICT` when one does, `RESOURCE_ALREADY_EXISTS`.
    pub async fn rename_model(
        self: &Arc<ControlPlane>,
        workspace: WorkspaceId,
        model: &str,
        new_name: &str,
    ) -> Result<ModelRecord, ApiError> {
        let _alone = self.changes.write().await;
        let users = self.users_of(workspace, model).await?;
        self.registry.rename_model(workspace, model, new_name, |version| users.get(&version).cloned()).await
    }

    /// An endpoint of a workspace. Without waiting when it is awake.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`, also for another workspace's.
    pub async fn endpoint(
        self: &Arc<ControlPlane>,
        workspace: WorkspaceId,
        name: &str,
    ) -> Result<Arc<Endpoint>, ApiError> {
        if let Some(awake) = self.catalog.awake(workspace, name) {
            return Ok(awake);
        }
        let woken = self.catalog.wake(workspace, name, async |traces| self.wake(workspace, name, traces).await);
        woken.await?.ok_or_else(|| no_endpoint(name))
    }

    /// An endpoint made of what is stored. One that cannot serve what it is configured to says why, as after a failed
    /// deploy; it is tried again when it has slept.
    async fn wake(
        self: &Arc<ControlPlane>,
        workspace: WorkspaceId,
        name: &str,
        traces: Traces,
    ) -> Result<Option<Endpoint>, ApiError> {
        let (control, name) = (Arc::clone(self), name.to_owned());
        let read = self.off_the_event_loop(move || control.read_endpoint(workspace, &name, &traces));
        let Some((mut record, planned)) = read.await? else { return Ok(None) };
        let serving = match planned {
            None => return Ok(Some(Endpoint { record, serving: None })),
            Some(Ok(Planned { serving, missing })) => self.lay_out(&record, missing).await.map(|()| serving),
            Some(Err(failed)) => Err(failed),
        };
        let serving = match serving {
            Ok(serving) => Some(Arc::new(serving)),
            Err(FailedDeploy { entity, message }) => {
                tracing::error!(endpoint = record.name, entity, "cannot serve: {message}");
                let failed = |config| FailedConfig { config, entity, message, canceled: false };
                record.failed = record.config.clone().map(failed);
                None
            }
        };
        Ok(Some(Endpoint { record, serving }))
    }

    /// Reads an endpoint; none where there is none. Blocks.
    fn read_endpoint(&self, workspace: WorkspaceId, name: &str, traces: &Traces) -> Result<Option<Read>, StoreError> {
        let Some(record) = document::<EndpointRecord>(&*self.store, &endpoint_key(workspace, name))? else {
            return Ok(None);
        };
        self.make_room(1);
        let config = record.config.as_ref().filter(|_| !record.is_suspended());
        let planned = config.map(|config| self.serving(&record, config, None, traces));
        Ok(Some((record, planned)))
    }

    /// Shows all endpoints of a workspace, by name: what is stored, and the endpoint where it is awake. Wakes none. Blocks.
    ///
    /// # Errors
    /// When the records cannot be read, and the visitor's first error.
    pub fn visit_endpoints<E: From<StoreError>>(
        &self,
        workspace: WorkspaceId,
        mut visit: impl FnMut(&EndpointRecord, Option<&Endpoint>) -> Result<(), E>,
    ) -> Result<(), E> {
        visit_documents(&*self.store, &endpoint_key(workspace, ""), |_, record: EndpointRecord| {
            // Made again meanwhile under the same name, it is another one.
            let awake = self.catalog.awake(workspace, &record.name).filter(|awake| awake.record.id == record.id);
            match awake {
                Some(awake) => visit(&awake.record, Some(&awake)),
                None => visit(&record, None),
            }
        })
    }

    /// The versions of a model that endpoints serve or are about to, each with the first of them. For who is alone with the
    /// changes, and so takes no turn among those that wake: all other changes would wait with it.
    async fn users_of(
        self: &Arc<ControlPlane>,
        workspace: WorkspaceId,
        model: &str,
    ) -> Result<HashMap<u64, String>, ApiError> {
        let (control, model) = (Arc::clone(self), model.to_owned());
        let users = on_another_thread(move || {
            let mut users = HashMap::new();
            control.visit_endpoints(workspace, |record, _| {
                let entities = record.config.iter().chain(&record.pending).flat_map(|config| &config.entities);
                for entity in entities.filter(|entity| entity.entity_name == model) {
                    users.entry(entity.entity_version).or_insert_with(|| record.name.clone());
                }
                Ok::<_, StoreError>(())
            })?;
            Ok(users)
        });
        users.await
    }

    /// Reads from disk on another thread, a few at a time.
    async fn off_the_event_loop<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = Arc::clone(&self.waking).acquire_owned().await;
        let turn = turn.map_err(|error| ApiError::internal("take a turn", &error))?;
        let read = on_another_thread(move || {
            // Until it has been read, also when nobody waits for it any more.
            let _turn = turn;
            read()
        });
        read.await
    }

    /// Whether changes can be kept.
    ///
    /// # Errors
    /// The store's first failure: it is for good.
    pub fn store_health(&self) -> Result<(), StoreError> {
        self.store.health()
    }

    /// What the deploy of a served entity wrote: the last one, or that of a config's version. Blocks.
    pub fn build_log(&self, record: &EndpointRecord, entity: &str, version: Option<u64>) -> Option<String> {
        let mut configs: Vec<&EndpointConfig> =
            [record.pending.as_ref(), record.failed.as_ref().map(|failed| &failed.config), record.config.as_ref()]
                .into_iter()
                .flatten()
                .filter(|config| version.is_none_or(|version| version == config.version))
                .collect();
        configs.sort_unstable_by_key(|config| std::cmp::Reverse(config.version));
        let entities = configs.iter().flat_map(|config| config.entities.iter().map(|entity| (config.version, entity)));
        // That of a kept entity was an older config's.
        let built_by = entities
            .filter(|(_, config)| config.name == entity)
            .flat_map(|(version, config)| [version, config.built_by]);
        let read = |version| self.host.files.read(&build_log_name(&record.id, version, entity)).ok().flatten();
        // The name becomes a path only where it is an entity's, or was one: names have no slashes.
        let older = version.filter(|_| check_entity_name(entity).is_ok());
        built_by.chain(older).find_map(read).map(|text| String::from_utf8_lossy(&text).into_owned())
    }

    /// What the guest of a served entity wrote; of one that serves nothing now, what was saved. Blocks.
    pub fn guest_log(&self, endpoint: &Endpoint, entity: &str) -> Option<String> {
        if let Some(served) = endpoint.serving.as_ref().and_then(|serving| serving.entity(entity)) {
            return Some(served.log.text());
        }
        let record = &endpoint.record;
        let failed = record.failed.as_ref().map(|failed| &failed.config);
        let configs = record.config.iter().chain(&record.pending).chain(failed);
        let config = configs.flat_map(|config| &config.entities).find(|config| config.name == entity)?;
        Some(LogRing::open(&self.host.files, &log_name(record, config)).text())
    }

    /// Commits a record with a pending config, shows it, and starts the deploy. Called in the endpoint's turn.
    async fn publish(
        self: &Arc<ControlPlane>,
        record: EndpointRecord,
        serving: Option<Arc<Serving>>,
    ) -> Result<Arc<Endpoint>, ApiError> {
        let (workspace, name, id) = (record.workspace, record.name.clone(), record.id.clone());
        self.store.commit(Transaction::new().put_document(&endpoint_key(workspace, &name), &record)?).await?;
        let endpoint = self.catalog.put(Endpoint { record, serving });
        if self.catalog.awake_count() > self.awake_max {
            let control = Arc::clone(self);
            self.background.spawn_blocking(move || control.make_room(0));
        }
        self.start_deploy(workspace, name, id);
        Ok(endpoint)
    }

    /// Refuses versions that cannot be served, and models and secrets that the caller may not use.
    async fn check_versions(&self, caller: &Principal, config: &EndpointConfig) -> Result<(), ApiError> {
        for entity in &config.entities {
            let model = self.registry.model(caller.workspace, &entity.entity_name).await?;
            authorize(caller, Action::Use(Level::Query), Object::Model(&model))?;
            self.registry.check_ready(caller.workspace, &entity.entity_name, entity.entity_version).await?;
        }
        self.secrets.check_references(caller, config).await
    }
}

async fn on_another_thread<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let read = tokio::task::spawn_blocking(read).await;
    Ok(read.map_err(|error| ApiError::internal("read the endpoints", &error))??)
}

/// Refuses a second update beside the one that runs.
fn refuse_while_updating(record: &EndpointRecord) -> Result<(), ApiError> {
    if record.pending.is_none() {
        return Ok(());
    }
    let name = &record.name;
    Err(ApiError::new(
        ErrorCode::ResourceConflict,
        format!("Endpoint '{name}' is currently being updated; another update cannot be made until it ends."),
    ))
}

fn endpoint_key(workspace: WorkspaceId, name: &str) -> String {
    format!("endpoint/{workspace}/{name}")
}

fn log_name(record: &EndpointRecord, entity: &EntityConfig) -> String {
    format!("logs/{}-{}.log", record.id, entity.name)
}

fn build_log_name(id: &str, version: u64, entity: &str) -> String {
    format!("build-logs/{id}-{version}-{entity}.log")
}
