//! What clients ask before they ask for anything: who am I, is the server there, what does it speak.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use hyper::header::HeaderValue;
use serde_json::json;

use super::invocations::Wanted;
use super::{Answer, Call, invocations, json, respond, wire};
use crate::error::{ApiError, ErrorCode};
use crate::observe::metrics::Observed;

/// The process is alive.
pub(super) fn health() -> Result<Answer, ApiError> {
    json(&json!({ "status": "ok" }))
}

/// New work is taken, and changes can be kept.
pub(super) fn ready(call: &Call) -> Result<Answer, ApiError> {
    let not_ready = |why: &str| Err(ApiError::new(ErrorCode::TemporarilyUnavailable, why));
    if !call.app.accepting.load(Relaxed) {
        return not_ready("The server is starting or shutting down.");
    }
    if call.app.control.store_health().is_err() {
        return not_ready("The state store has failed; the server must be restarted.");
    }
    json(&json!({ "status": "ready" }))
}

/// All series, for callers on this machine and for administrators.
pub(super) async fn metrics(call: &Call) -> Result<Answer, ApiError> {
    // The series name every endpoint of every workspace. A proxy on this machine speaks for somebody else.
    let forwarded = ["forwarded", "x-forwarded-for", "via"].iter().any(|name| call.head.headers.contains_key(*name));
    if (forwarded || !call.peer.ip().is_loopback()) && !call.principal()?.admin {
        return Err(ApiError::new(ErrorCode::NotFound, "There is nothing at GET /metrics."));
    }
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
pub(super) fn databricks_config(call: &Call) -> Result<Answer, ApiError> {
    json(&json!({ "workspace_id": call.app.auth.workspace().to_string(), "cloud": "AWS" }))
}

/// The caller, as SCIM describes it.
pub(super) fn me(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let mut response = json(&wire::me(&principal))?;
    if let Ok(workspace) = HeaderValue::from_str(&principal.workspace.to_string()) {
        response.headers_mut().insert("x-databricks-org-id", workspace);
    }
    Ok(response)
}

/// The reading half of the Open Inference Protocol.
pub(super) async fn open_inference(call: &mut Call, rest: &[&str]) -> Result<Answer, ApiError> {
    match rest {
        [] | [""] => json(&json!({
            "name": "tessera",
            "version": env!("CARGO_PKG_VERSION"),
            "extensions": [],
        })),
        ["health", "live"] => json(&json!({ "live": true })),
        ["health", "ready"] => ready(call),
        ["models", name, "ready"] => model_ready(call, name, Wanted::Any).await,
        ["models", name, "versions", version, "ready"] => model_ready(call, name, Wanted::Version(version)).await,
        ["models", name] => invocations::ask(call, name, Wanted::Any, "v2").await,
        ["models", name, "versions", version] => invocations::ask(call, name, Wanted::Version(version), "v2").await,
        _ => Err(ApiError::new(ErrorCode::NotFound, format!("There is nothing at GET {}.", call.head.uri.path()))),
    }
}

async fn model_ready(call: &Call, name: &str, wanted: Wanted<'_>) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let endpoint = call.app.control.endpoint(principal.workspace, name).await?;
    let ready = endpoint.serving.is_some();
    if ready {
        invocations::choose(&endpoint, wanted)?;
    }
    let body = json!({ "name": name, "ready": ready }).to_string();
    Ok(respond(if ready { 200 } else { 503 }, "application/json", body))
}
