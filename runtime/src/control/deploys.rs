//! Deploys of endpoints: the pending config is made ready in the background, and its outcome recorded.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};

use futures_util::FutureExt;

use super::{ControlPlane, build_log_name, endpoint_key, log_name};
use crate::catalog::served::{PlannedGraph, ServedEntity};
use crate::catalog::{
    DeployedGraph, Endpoint, EndpointConfig, EndpointRecord, FailedConfig, Serving, Suspend, Traces, WorkspaceId,
};
use crate::clock::now_ms;
use crate::deploy::build_log::BuildLog;
use crate::deploy::package::Package;
use crate::deploy::{DeployError, ModelHost};
use crate::error::chain;
use crate::observe::log_ring::LogRing;
use crate::store::{StoreError, Transaction};

/// Why a deploy did not succeed: which entity, and what is wrong with it.
pub(super) struct FailedDeploy {
    pub(super) entity: String,
    pub(super) message: String,
}

/// What a config is to be served with.
pub(super) struct Planned {
    pub(super) serving: Serving,
    /// Packages that must be laid out before, each with its entity's name.
    pub(super) missing: Vec<(String, Package)>,
}

/// Text of a failure that a record keeps; the build log has the rest.
const MESSAGE_BYTES_MAX: usize = 2 << 10;

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

impl ControlPlane {
    pub(super) fn start_deploy(self: &Arc<ControlPlane>, workspace: WorkspaceId, name: String, id: String) {
        let control = Arc::clone(self);
        let key = id.clone();
        // Registered before it can end, so that the end finds it.
        let mut deploys = self.deploys.lock().unwrap_or_else(PoisonError::into_inner);
        let task = self.background.spawn(async move { control.deploy(workspace, &name, &id).await });
        deploys.insert(key, task.abort_handle());
    }

    /// Deploys the pending config of an endpoint and records the outcome.
    async fn deploy(self: &Arc<ControlPlane>, workspace: WorkspaceId, name: &str, id: &str) {
        let Some(endpoint) = self.deploying(workspace, name, id).await else { return };
        let Some(config) = endpoint.record.pending.clone() else { return };
        let planned = tokio::task::block_in_place(|| {
            self.serving(&endpoint.record, &config, endpoint.serving.as_deref(), &Traces::default())
        });
        let outcome = match planned {
            Ok(Planned { serving, missing }) => match self.lay_out(&endpoint.record, missing).await {
                Ok(()) => {
                    let kept = endpoint.serving.clone();
                    self.ready_all(&endpoint.record, &config, &serving, kept.as_deref()).await.map(|()| serving)
                }
                Err(failed) => Err(failed),
            },
            Err(failed) => Err(failed),
        };

        let _turn = self.turn(workspace, name).await;
        self.deploys.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        // Deleted, or deleted and made again, while this ran: then there is nothing to record.
        let Some(endpoint) = self.deploying(workspace, name, id).await else { return };
        let mut record = endpoint.record.clone();
        record.pending = None;
        record.last_updated_timestamp = now_ms();
        let serving = match outcome {
            Ok(serving) => {
                tracing::info!(endpoint = name, config_version = config.version, "deployed");
                record.config = Some(config);
                record.failed = None;
                record.suspend = record.suspend.map(|_| Suspend::Started);
                record.graphs = deployed_graphs(&serving, &self.host);
                Some(Arc::new(serving))
            }
            Err(FailedDeploy { entity, message }) => {
                tracing::warn!(endpoint = name, entity, config_version = config.version, "deploy failed: {message}");
                record.failed = Some(FailedConfig { config, entity, message, canceled: false });
                if record.is_suspended() {
                    record.suspend = Some(Suspend::Stopped);
                }
                endpoint.serving.clone()
            }
        };
        match self.record_outcome(&record).await {
            Ok(()) => {
                if record.failed.is_none() {
                    self.record_entities(&record, None);
                }
                self.forget_old_entities(&record);
                self.catalog.put(Endpoint { record, serving });
            }
            // The record still says pending: the next start takes the deploy up again.
            Err(error) => tracing::error!(endpoint = name, cause = %chain(&error), "failed to record a deploy"),
        }
    }

    /// The endpoint of a deploy, if it is still the one that the deploy was started for.
    async fn deploying(
        self: &Arc<ControlPlane>,
        workspace: WorkspaceId,
        name: &str,
        id: &str,
    ) -> Option<Arc<Endpoint>> {
        self.endpoint(workspace, name).await.ok().filter(|endpoint| endpoint.record.id == id)
    }

    pub(super) fn abort_deploy(&self, id: &str) {
        let mut deploys = self.deploys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(deploy) = deploys.remove(id) {
            deploy.abort();
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

    /// The entities of a config with their plans. Those that `current` has with the same plan are taken over with what
    /// they have in memory; the log goes on under an entity's name. Blocks.
    pub(super) fn serving(
        &self,
        record: &EndpointRecord,
        config: &EndpointConfig,
        current: Option<&Serving>,
        traces: &Traces,
    ) -> Result<Planned, FailedDeploy> {
        let mut entities = Vec::with_capacity(config.entities.len());
        let mut missing = Vec::new();
        for entity in &config.entities {
            let failed = |message: String| FailedDeploy::new(&entity.name, message);
            let current = current.and_then(|current| current.entity(&entity.name));
            if let Some(kept) = current.filter(|current| current.config.serves_as(entity)) {
                entities.push(Arc::clone(kept));
                continue;
            }
            let package = self
                .registry
                .package(record.workspace, &entity.entity_name, entity.entity_version)
                .map_err(|error| failed(error.message))?;
            let secrets = self.secrets.resolve(record.workspace, entity).map_err(failed)?;
            let plan = self
                .host
                .plan(record, entity, &package, secrets)
                .map_err(|error| failed(deploy_message(&record.name, &error)))?;
            if !plan.is_laid_out() {
                missing.push((entity.name.clone(), package));
            }
            let metrics = self.metrics.entity(record.workspace, &record.name, &entity.name);
            let log = match current {
                Some(current) => current.log.clone(),
                None => LogRing::open(&self.host.files, &log_name(record, entity)),
            };
            let cold_start = traces.iter().find(|(name, _)| **name == *entity.name).map(|(_, cold)| *cold);
            entities.push(Arc::new(ServedEntity::new(entity.clone(), plan, log, metrics, cold_start)));
        }
        Ok(Planned { serving: Serving::new(entities, config.traffic.clone()), missing })
    }

    /// Lays packages out, which takes as long as they are large: for one endpoint of a workspace at a time, and beside
    /// endpoints that wake without it.
    pub(super) async fn lay_out(
        &self,
        record: &EndpointRecord,
        missing: Vec<(String, Package)>,
    ) -> Result<(), FailedDeploy> {
        if missing.is_empty() {
            return Ok(());
        }
        let turn = self.laying_out.owned(record.workspace, "").await;
        let host = Arc::clone(&self.host);
        let laid_out = tokio::task::spawn_blocking(move || {
            // Until all is copied, also when nobody waits for it any more.
            let _turn = turn;
            let lay_out =
                |(entity, package): (String, Package)| host.lay_out(&package).map_err(|error| (entity, error));
            missing.into_iter().try_for_each(lay_out)
        });
        let laid_out = laid_out.await.unwrap_or_else(|error| {
            let cause = format!("failed to lay out the files of a package: {}", chain(&error));
            Err((String::new(), DeployError::Host(cause)))
        });
        laid_out.map_err(|(entity, error)| FailedDeploy::new(&entity, deploy_message(&record.name, &error)))
    }

    /// Deploys the entities of a config but those that serve already.
    async fn ready_all(
        &self,
        record: &EndpointRecord,
        config: &EndpointConfig,
        serving: &Serving,
        current: Option<&Serving>,
    ) -> Result<(), FailedDeploy> {
        let serves = |entity: &&Arc<ServedEntity>| {
            current.iter().any(|current| current.entities.iter().any(|kept| Arc::ptr_eq(kept, entity)))
        };
        for entity in serving.entities.iter().filter(|entity| !serves(entity)) {
            let mut log = BuildLog::default();
            log.step(&format!(
                "deploying {} version {} as '{}', config version {}",
                entity.config.entity_name, entity.config.entity_version, entity.config.name, config.version
            ));
            for field in record.not_enforced() {
                log.step(&format!("{field} of the endpoint is kept, but this server does nothing with it"));
            }
            // A panic is our bug; without this it would leave the endpoint waiting for ever.
            let deploy = AssertUnwindSafe(self.host.deploy(entity, &mut log)).catch_unwind();
            let outcome = deploy.await.unwrap_or_else(|_| Err(DeployError::Host("the deploy panicked".to_owned())));
            let outcome = outcome.map_err(|error| deploy_message(&record.name, &error));
            if let Err(message) = &outcome {
                log.step(&format!("failed: {message}"));
            }
            let name = build_log_name(&record.id, config.version, &entity.config.name);
            // Not synced: it is a log. One that cannot be written must not fail the deploy it describes.
            if let Err(error) = self.host.files.write(&name, log.text().as_bytes()) {
                tracing::warn!("failed to keep a build log: {error}");
            }
            outcome.map_err(|message| FailedDeploy::new(&entity.config.name, message))?;
        }
        Ok(())
    }
}

/// What a config serves with, for those who look at the endpoint.
pub(super) fn deployed_graphs(serving: &Serving, host: &ModelHost) -> Vec<DeployedGraph> {
    let of_entity = |entity: &Arc<ServedEntity>| -> Vec<DeployedGraph> {
        let describe = |graph: &PlannedGraph| DeployedGraph {
            entity: entity.config.name.clone(),
            name: graph.name.clone(),
            backend: graph.key.backend.name().to_owned(),
            backend_version: graph.backend_version.clone(),
            target: graph.key.target.name().to_owned(),
            // It was loaded a moment ago.
            intra_op_threads: host.graphs.cached(&graph.key).map(|graph| graph.intra_op_threads()),
        };
        entity.plan.graphs.iter().map(describe).collect()
    };
    serving.entities.iter().flat_map(of_entity).collect()
}
