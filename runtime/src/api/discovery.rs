//! What clients ask before they ask for anything: is the server there, what does it speak, where are tokens.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use schemars::JsonSchema;
use serde::Serialize;

use super::{Answer, Call, ErrorBody, json, respond};
use crate::error::{ApiError, ErrorCode};
use crate::observe::metrics::Observed;

use super::routes::{Access, Route, handler};

pub(super) const ROUTES: &[Route] = &[
    Route::get("health", "/health", Access::Anyone, "Whether the process is alive", handler!(health))
        .answers::<ServerStatus>(),
    Route::get("ready", "/ready", Access::Anyone, "Whether new work is taken", handler!(ready))
        .answers::<ServerStatus>()
        .or::<ErrorBody>(&[503]),
    Route::get("metrics", "/metrics", Access::Operator, "All series of the server, in OpenMetrics", handler!(metrics))
        .gives(OPEN_METRICS),
    Route::get(
        "discovery.databricks_config",
        "/.well-known/databricks-config",
        Access::Anyone,
        "What the Databricks SDK asks a host for",
        handler!(databricks_config),
    )
    .answers::<DatabricksConfig>(),
];

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Serialize, JsonSchema)]
struct ServerStatus {
    status: &'static str,
}

/// The process is alive.
async fn health(_call: &Call) -> Result<Answer, ApiError> {
    json(&ServerStatus { status: "ok" })
}

async fn ready(call: &Call) -> Result<Answer, ApiError> {
    check_ready(call)?;
    json(&ServerStatus { status: "ready" })
}

/// New work is taken, and changes can be kept.
///
/// # Errors
/// 503 with what is in the way.
pub(super) fn check_ready(call: &Call) -> Result<(), ApiError> {
    let not_ready = |why: &str| Err(ApiError::new(ErrorCode::TemporarilyUnavailable, why));
    if !call.app.accepting.load(Relaxed) {
        return not_ready("The server is starting or shutting down.");
    }
    if call.app.control.store_health().is_err() {
        return not_ready("The state store has failed; the server must be restarted.");
    }
    Ok(())
}

/// All series. They name every endpoint of every workspace.
async fn metrics(call: &Call) -> Result<Answer, ApiError> {
    let control = &call.app.control;
    let observed = Observed {
        graphs: control.host.graphs.stats(),
        compute_queue: control.host.executor.queued().0,
        computes: Arc::clone(control.host.executor.counters()),
        sequences: Arc::clone(&control.host.sequences),
        endpoints: control.catalog.len(),
        awake_endpoints: control.catalog.awake_count(),
        components: control.host.components_loaded(),
    };
    // Off the event loop: with many endpoints it is megabytes.
    let metrics = Arc::clone(&call.app.metrics);
    let text = tokio::task::spawn_blocking(move || metrics.text(&observed)).await;
    let text = text.map_err(|error| ApiError::internal("write the metrics", &error))?;
    Ok(respond(200, OPEN_METRICS, text))
}

#[derive(Serialize, JsonSchema)]
struct DatabricksConfig {
    oidc_endpoint: String,
    cloud: &'static str,
    /// Of the only workspace, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace_id: Option<String>,
}

/// Fetched without credentials by every client that the Databricks SDK makes, so it is small and quick.
async fn databricks_config(call: &Call) -> Result<Answer, ApiError> {
    // With several, the client cannot know its own before it has sent a token.
    let workspace_id = match call.app.directory.workspaces().as_slice() {
        [only] => Some(only.id.to_string()),
        _ => None,
    };
    json(&DatabricksConfig { oidc_endpoint: format!("{}/oidc", call.origin()), cloud: "AWS", workspace_id })
}
