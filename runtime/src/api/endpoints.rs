//! Serving endpoints: create, list, get, update, delete, logs.

use std::sync::Arc;

use hyper::Method;
use serde_json::{Map, json};

use super::routes::{Access, Route, handler};
use super::wire::{self, ConfigInput, CreateEndpoint};
use super::{Answer, Call, json, respond};
use crate::access::{Level, Object, level_of};
use crate::catalog::{Endpoint, EndpointRecord};
use crate::control::NewEndpoint;
use crate::error::ApiError;

const PATH: &str = "/api/2.0/serving-endpoints";
const ONE: &str = "/api/2.0/serving-endpoints/{name}";
const CONFIG: &str = "/api/2.0/serving-endpoints/{name}/config";
const LOGS: &str = "/api/2.0/serving-endpoints/{name}/served-models/{entity}/logs";
const BUILD_LOGS: &str = "/api/2.0/serving-endpoints/{name}/served-models/{entity}/build-logs";

const VIEW: Access = Access::Endpoint(Level::View);
const MANAGE: Access = Access::Endpoint(Level::Manage);

pub(super) const ROUTES: &[Route] = &[
    Route::get("endpoints.list", PATH, Access::Principal, "List the endpoints", handler!(list)),
    Route::change("endpoints.create", Method::POST, PATH, Access::Principal, "Create an endpoint", handler!(create)),
    Route::get("endpoints.get", ONE, VIEW, "Get an endpoint", handler!(get)),
    Route::change("endpoints.delete", Method::DELETE, ONE, MANAGE, "Delete an endpoint", handler!(delete)),
    Route::change(
        "endpoints.update_config",
        Method::PUT,
        CONFIG,
        MANAGE,
        "Serve another config",
        handler!(update_config),
    ),
    Route::get("endpoints.logs", LOGS, VIEW, "What a served entity's guest wrote", handler!(logs)),
    Route::get(
        "endpoints.build_logs",
        BUILD_LOGS,
        VIEW,
        "What a served entity's last deploy did",
        handler!(build_logs),
    ),
];

async fn create(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<CreateEndpoint>().await?;
    input.refuse_unsupported()?;
    let config = input
        .config
        .ok_or_else(|| ApiError::invalid("config is required: name the model versions to serve in served_entities"))?
        .into_config(&principal.name, None)?;
    let new = NewEndpoint { name: input.name, description: input.description, tags: input.tags, config };
    let endpoint = app.control.create(&principal, new).await?;
    json(&wire::endpoint(&endpoint, Level::Manage))
}

/// The endpoints that the caller may see. Written as it is read: with thousands of them, one at a time is enough to have in memory.
async fn list(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let control = Arc::clone(&call.app.control);
    let written = tokio::task::spawn_blocking(move || -> Result<Vec<u8>, ApiError> {
        let mut text = b"{\"endpoints\":[".to_vec();
        let mut separator = b"".as_slice();
        control.visit_endpoints(principal.workspace, |record, awake| {
            let Some(level) = level_of(&principal, Object::Endpoint(record)) else { return Ok(()) };
            text.extend_from_slice(separator);
            separator = b",";
            serde_json::to_writer(&mut text, &wire::endpoint_in_list(record, awake, level))
                .map_err(|error| ApiError::internal("write a list", &error))
        })?;
        text.extend_from_slice(b"]}");
        Ok(text)
    });
    let text = written.await.map_err(|error| ApiError::internal("list the endpoints", &error))??;
    Ok(respond(200, "application/json", text))
}

async fn get(call: &Call) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint().await?;
    let level = level_of(&*call.principal()?, Object::Endpoint(&endpoint.record)).unwrap_or(Level::View);
    json(&wire::endpoint(&endpoint, level))
}

async fn update_config(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<ConfigInput>().await?;
    let endpoint = call.endpoint().await?;
    let name = &endpoint.record.name;
    let make = |record: &EndpointRecord| input.into_config(&principal.name, record.config.as_ref());
    let endpoint = app.control.update_config(&principal, name, make).await?;
    json(&wire::endpoint(&endpoint, Level::Manage))
}

async fn delete(call: &Call) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint().await?;
    call.app.control.delete(endpoint.record.workspace, &endpoint.record.name).await?;
    // A body, because MLflow parses one.
    json(&Map::new())
}

async fn logs(call: &Call) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint().await?;
    let entity = call.parameter("entity");
    let served = endpoint.serving.as_ref().and_then(|serving| serving.entity(entity));
    let served = served.ok_or_else(|| no_entity(&endpoint, entity))?;
    json(&json!({ "logs": served.log.text() }))
}

async fn build_logs(call: &Call) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint().await?;
    let entity = call.parameter("entity");
    let text = call.app.control.build_log(&endpoint, entity).ok_or_else(|| no_entity(&endpoint, entity))?;
    json(&json!({ "logs": text }))
}

fn no_entity(endpoint: &Endpoint, entity: &str) -> ApiError {
    ApiError::missing(format!("Endpoint '{}' has no served model '{entity}'.", endpoint.record.name))
}
