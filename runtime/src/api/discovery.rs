//! What clients ask before they ask for anything: is the server there, what does it speak, where are tokens.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::json;

use super::{Answer, Call, json, respond};
use crate::error::{ApiError, ErrorCode};
use crate::observe::metrics::Observed;

use super::routes::{Access, Route, handler};

pub(super) const ROUTES: &[Route] = &[
    Route::get("health", "/health", Access::Anyone, "Whether the process is alive", handler!(health)),
    Route::get("ready", "/ready", Access::Anyone, "Whether new work is taken", handler!(ready)),
    Route::get("metrics", "/metrics", Access::Operator, "All series of the server, in OpenMetrics", handler!(metrics)),
    Route::get(
        "discovery.databricks_config",
        "/.well-known/databricks-config",
        Access::Anyone,
        "What the Databricks SDK asks a host for",
        handler!(databricks_config),
    ),
];

/// The process is alive.
async fn health(_call: &Call) -> Result<Answer, ApiError> {
    json(&json!({ "status": "ok" }))
}

async fn ready(call: &Call) -> Result<Answer, ApiError> {
    check_ready(call)?;
    json(&json!({ "status": "ready" }))
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
        endpoints: control.catalog.len(),
        awake_endpoints: control.catalog.awake_count(),
        components: control.host.components_loaded(),
    };
    // Off the event loop: with many endpoints it is megabytes.
    let metrics = Arc::clone(&call.app.metrics);
    let text = tokio::task::spawn_blocking(move || metrics.text(&observed)).await;
    let text = text.map_err(|error| ApiError::internal("write the metrics", &error))?;
    Ok(respond(200, "application/openmetrics-text; version=1.0.0; charset=utf-8", text))
}

/// Fetched without credentials by every client that the Databricks SDK makes, so it is small and quick.
async fn databricks_config(call: &Call) -> Result<Answer, ApiError> {
    let mut config = json!({ "oidc_endpoint": format!("{}/oidc", call.origin()), "cloud": "AWS" });
    // With several, the client cannot know its own before it has sent a token.
    if let [only] = call.app.directory.workspaces().as_slice() {
        config["workspace_id"] = json!(only.id.to_string());
    }
    json(&config)
}
