//! What clients ask before they ask for anything: is the server there, what does it speak, where are tokens.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use hyper::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use super::invocations::Wanted;
use super::{Answer, Call, ErrorBody, OpenInferenceError, invocations, json, respond};
use crate::access::Level;
use crate::error::{ApiError, ErrorCode};
use crate::observe::metrics::Observed;

use super::routes::{Access, Route, handler};

const VIEW: Access = Access::Endpoint(Level::View);

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
    Route::get("v2.server", "/v2", Access::Anyone, "Open Inference: the server", handler!(v2_server))
        .answers::<InferenceServer>(),
    Route::get("v2.live", "/v2/health/live", Access::Anyone, "Open Inference: alive", handler!(v2_live))
        .answers::<InferenceServerLive>(),
    Route::get("v2.ready", "/v2/health/ready", Access::Anyone, "Open Inference: ready", handler!(ready))
        .answers::<ServerStatus>()
        .or::<OpenInferenceError>(&[503]),
    Route::get("v2.model", "/v2/models/{name}", QUERY, "Open Inference: a model's metadata", handler!(v2_model))
        .gives_model_output(),
    Route::get(
        "v2.model_version",
        "/v2/models/{name}/versions/{version}",
        QUERY,
        "Open Inference: a version's metadata",
        handler!(v2_model),
    )
    .gives_model_output(),
    Route::get(
        "v2.model_ready",
        "/v2/models/{name}/ready",
        VIEW,
        "Open Inference: model ready",
        handler!(v2_model_ready),
    )
    .answers::<InferenceModelReady>()
    .or::<InferenceModelReady>(&[503]),
    Route::get(
        "v2.model_version_ready",
        "/v2/models/{name}/versions/{version}/ready",
        VIEW,
        "Open Inference: version ready",
        handler!(v2_model_ready),
    )
    .answers::<InferenceModelReady>()
    .or::<InferenceModelReady>(&[503]),
];

/// Metadata is answered by the guest.
const QUERY: Access = Access::Endpoint(Level::Query);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Serialize, JsonSchema)]
struct ServerStatus {
    status: &'static str,
}

/// The process is alive.
async fn health(_call: &Call) -> Result<Answer, ApiError> {
    json(&ServerStatus { status: "ok" })
}

/// New work is taken, and changes can be kept.
async fn ready(call: &Call) -> Result<Answer, ApiError> {
    let not_ready = |why: &str| Err(ApiError::new(ErrorCode::TemporarilyUnavailable, why));
    if !call.app.accepting.load(Relaxed) {
        return not_ready("The server is starting or shutting down.");
    }
    if call.app.control.store_health().is_err() {
        return not_ready("The state store has failed; the server must be restarted.");
    }
    json(&ServerStatus { status: "ready" })
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

#[derive(Serialize, JsonSchema)]
struct InferenceServer {
    name: &'static str,
    version: &'static str,
    extensions: &'static [&'static str],
}

#[derive(Serialize, JsonSchema)]
struct InferenceServerLive {
    live: bool,
}

#[derive(Serialize, JsonSchema)]
struct InferenceModelReady {
    name: String,
    ready: bool,
}

/// What this server is, to clients of the Open Inference Protocol.
async fn v2_server(_call: &Call) -> Result<Answer, ApiError> {
    json(&InferenceServer { name: "tessera", version: env!("CARGO_PKG_VERSION"), extensions: &[] })
}

async fn v2_live(_call: &Call) -> Result<Answer, ApiError> {
    json(&InferenceServerLive { live: true })
}

async fn v2_model(call: &Call) -> Result<Answer, ApiError> {
    invocations::ask(call, wanted_version(call), "v2").await
}

async fn v2_model_ready(call: &Call) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint().await?;
    let ready = endpoint.serving.is_some();
    if ready {
        invocations::choose(&endpoint, wanted_version(call))?;
    }
    let mut answer = json(&InferenceModelReady { name: endpoint.record.name.clone(), ready })?;
    if !ready {
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(answer)
}

fn wanted_version(call: &Call) -> Wanted<'_> {
    match call.parameter("version") {
        "" => Wanted::Any,
        version => Wanted::Version(version),
    }
}
