//! Stop and start: a stopped endpoint keeps its config and serves nothing; to start it is to deploy that config again.

use std::sync::Arc;

use super::{ControlPlane, refuse_while_updating};
use crate::access::Principal;
use crate::catalog::{Endpoint, FailedConfig, Suspend, WorkspaceId};
use crate::clock::now_ms;
use crate::error::{ApiError, ErrorCode};

impl ControlPlane {
    /// Stops an endpoint; a deploy that runs is cancelled. Requests that it has taken go on to their end. Nothing changes
    /// for one that is stopped.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`.
    pub async fn stop(self: &Arc<ControlPlane>, workspace: WorkspaceId, name: &str) -> Result<Arc<Endpoint>, ApiError> {
        let (_turn, current) = self.awake_turn(workspace, name).await?;
        let mut record = current.record.clone();
        if record.suspend == Some(Suspend::Stopped) {
            return Ok(current);
        }
        if let Some(config) = record.pending.take() {
            self.abort_deploy(&record.id);
            let message = "cancelled: the endpoint was stopped".to_owned();
            record.failed = Some(FailedConfig { config, entity: String::new(), message, canceled: true });
        }
        record.suspend = Some(Suspend::Stopped);
        record.last_updated_timestamp = now_ms();
        // What its guests wrote goes with the entities.
        let control = Arc::clone(self);
        let stopped = tokio::task::spawn_blocking(move || control.save_logs(&current));
        stopped.await.map_err(|error| ApiError::internal("save what the guests wrote", &error))?;
        self.keep(record, None).await
    }

    /// Starts a stopped endpoint: its config is deployed again, as a new version of it.
    ///
    /// # Errors
    /// `RESOURCE_CONFLICT` when it is not stopped.
    pub async fn start(self: &Arc<ControlPlane>, caller: &Principal, name: &str) -> Result<Arc<Endpoint>, ApiError> {
        let (_turn, endpoint) = self.awake_turn(caller.workspace, name).await?;
        let mut record = endpoint.record.clone();
        refuse_while_updating(&record)?;
        // One that was stopped in its first deploy has no other config.
        let failed = record.failed.as_ref().map(|failed| &failed.config);
        let config = record.config.as_ref().or(failed).filter(|_| record.suspend == Some(Suspend::Stopped)).cloned();
        let config = config
            .ok_or_else(|| ApiError::new(ErrorCode::ResourceConflict, format!("Endpoint '{name}' is not stopped.")))?;
        self.check_versions(caller, &config).await?;
        let now = now_ms();
        // After none, because nothing of it is in memory: it gets a build log of its own.
        record.pending = Some(config.after(None, record.next_version(), now));
        record.failed = None;
        record.suspend = Some(Suspend::Starting);
        record.last_updated_timestamp = now;
        self.publish(record, None).await
    }
}
