//! What can be read of an endpoint besides itself: logs, metrics, the schema of its requests.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::routes::{Access, Route, handler};
use super::{Answer, Call, json, model_schema, respond};
use crate::access::Level;
use crate::catalog::served::ServedEntity;
use crate::catalog::{Endpoint, EntityConfig};
use crate::control::ControlPlane;
use crate::error::ApiError;
use crate::observe::metrics::endpoint::EntityNow;

const LOGS: &str = "/api/2.0/serving-endpoints/{name}/served-models/{entity}/logs";
const BUILD_LOGS: &str = "/api/2.0/serving-endpoints/{name}/served-models/{entity}/build-logs";
const METRICS: &str = "/api/2.0/serving-endpoints/{name}/metrics";
const OPENAPI: &str = "/api/2.0/serving-endpoints/{name}/openapi";

const VIEW: Access = Access::Endpoint(Level::View);

pub(super) const ROUTES: &[Route] = &[
    Route::get("endpoints.logs", LOGS, VIEW, "What a served entity's guest wrote", handler!(logs))
        .answers::<ServedModelLogs>(),
    Route::get("endpoints.build_logs", BUILD_LOGS, VIEW, "What a served entity's deploy did", handler!(build_logs))
        .query::<BuildLogsQuery>()
        .answers::<ServedModelLogs>(),
    Route::get("endpoints.metrics", METRICS, VIEW, "The series of one endpoint", handler!(metrics)).gives(PROMETHEUS),
    Route::get("endpoints.openapi", OPENAPI, VIEW, "The schema of its requests", handler!(openapi)).answers::<Value>(),
];

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Serialize, JsonSchema)]
struct ServedModelLogs {
    logs: String,
}

#[derive(Deserialize, JsonSchema)]
struct BuildLogsQuery {
    /// Of the deploy of this config; without, of the last one.
    config_version: Option<u64>,
}

async fn logs(call: &Call) -> Result<Answer, ApiError> {
    let text = read(call, |control, endpoint, entity| control.guest_log(endpoint, entity)).await?;
    json(&ServedModelLogs { logs: text })
}

async fn build_logs(call: &Call) -> Result<Answer, ApiError> {
    let BuildLogsQuery { config_version: version } = call.query()?;
    let text =
        read(call, move |control, endpoint, entity| control.build_log(&endpoint.record, entity, version)).await?;
    json(&ServedModelLogs { logs: text })
}

/// A log of the entity that the path names. From disk, so on another thread.
async fn read(
    call: &Call,
    log: impl FnOnce(&ControlPlane, &Endpoint, &str) -> Option<String> + Send + 'static,
) -> Result<String, ApiError> {
    let endpoint = call.endpoint().await?;
    let (control, entity) = (Arc::clone(&call.app.control), call.parameter("entity").to_owned());
    let missing =
        ApiError::missing(format!("Endpoint '{}' has no such log of a served model '{entity}'.", endpoint.record.name));
    let read = tokio::task::spawn_blocking(move || log(&control, &endpoint, &entity)).await;
    read.map_err(|error| ApiError::internal("read a log", &error))?.ok_or(missing)
}

async fn metrics(call: &Call) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint().await?;
    let entity = |config: &EntityConfig| {
        let served = endpoint.serving.as_ref().and_then(|serving| serving.entity(&config.name));
        let in_memory = served.is_some_and(|served| served.component_loaded() || !config.scale_to_zero_enabled);
        EntityNow {
            name: config.name.clone(),
            concurrency: if in_memory { config.provisioned_concurrency() } else { 0 },
            memory_percent: served.map_or(0.0, |served| memory_percent(&call.app.control, served)),
        }
    };
    let entities = endpoint.record.config.iter().flat_map(|config| &config.entities).map(entity).collect();
    let text = call.app.metrics.endpoint_text(endpoint.record.workspace, &endpoint.record.name, entities);
    Ok(respond(200, PROMETHEUS, text))
}

/// Memory of this machine, in bytes.
static MACHINE_BYTES: LazyLock<f64> = LazyLock::new(|| {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    total.map_or(f64::INFINITY, |kilobytes: f64| kilobytes * 1024.0)
});

fn memory_percent(control: &ControlPlane, served: &ServedEntity) -> f64 {
    let bytes: u64 = served.plan.graphs.iter().map(|graph| control.host.graphs.memory_bytes(&graph.key)).sum();
    bytes as f64 / *MACHINE_BYTES * 100.0
}

async fn openapi(call: &Call) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint().await?;
    let (control, base_url) = (Arc::clone(&call.app.control), call.origin());
    let mut declared = BTreeMap::new();
    for entity in endpoint.serving.iter().flat_map(|serving| &serving.entities) {
        if let Some(schemas) = control.host.description(&entity.plan).await? {
            declared.insert(entity.config.name.clone(), schemas);
        }
    }
    let make = move || model_schema::document(&control, &endpoint, &declared, &base_url);
    let made = tokio::task::spawn_blocking(make).await;
    let document = made.map_err(|error| ApiError::internal("describe an endpoint's requests", &error))??;
    json(&document)
}
