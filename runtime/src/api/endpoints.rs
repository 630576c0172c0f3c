//! Serving endpoints: create, list, get, give another config, stop, start, delete.

use std::sync::Arc;

use hyper::Method;
use hyper::header::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Serialize;

use super::routes::{Access, Route, handler};
use super::wire::config::{ConfigInput, CreateEndpoint, CreatePtEndpoint, UpdatePtConfig};
use super::wire::endpoint::{ServingEndpoint, detailed, in_list};
use super::{Answer, Call, done, json, json_text};
use crate::access::{Level, Object, Principal, level_of};
use crate::catalog::{Endpoint, EndpointRecord, EndpointSettings};
use crate::control::NewEndpoint;
use crate::error::ApiError;

const PATH: &str = "/api/2.0/serving-endpoints";
const ONE: &str = "/api/2.0/serving-endpoints/{name}";
const CONFIG: &str = "/api/2.0/serving-endpoints/{name}/config";
const STOP: &str = "/api/2.0/serving-endpoints/{name}/config:stop";
const START: &str = "/api/2.0/serving-endpoints/{name}/config:start";
const PT: &str = "/api/2.0/serving-endpoints/pt";
const PT_CONFIG: &str = "/api/2.0/serving-endpoints/pt/{name}/config";

const VIEW: Access = Access::Endpoint(Level::View);
const MANAGE: Access = Access::Endpoint(Level::Manage);
const ANYONE: Access = Access::Principal;

/// Names what of an endpoint's settings is kept but not done.
const NOT_ENFORCED: HeaderName = HeaderName::from_static("x-tessera-not-enforced");

pub(super) const ROUTES: &[Route] = &[
    Route::get("endpoints.list", PATH, ANYONE, "List the endpoints", handler!(list)).answers::<ServingEndpoints>(),
    Route::change("endpoints.create", Method::POST, PATH, ANYONE, "Create an endpoint", handler!(create))
        .answers::<ServingEndpoint>()
        .body::<CreateEndpoint>(),
    Route::change(
        "endpoints.create_pt",
        Method::POST,
        PT,
        ANYONE,
        "Create an endpoint with provisioned throughput",
        handler!(create_pt),
    )
    .answers::<ServingEndpoint>()
    .body::<CreatePtEndpoint>(),
    Route::get("endpoints.get", ONE, VIEW, "Get an endpoint", handler!(get)).answers::<ServingEndpoint>(),
    Route::change("endpoints.delete", Method::DELETE, ONE, MANAGE, "Delete an endpoint", handler!(delete)),
    Route::change(
        "endpoints.update_config",
        Method::PUT,
        CONFIG,
        MANAGE,
        "Serve another config",
        handler!(update_config),
    )
    .answers::<ServingEndpoint>()
    .body::<ConfigInput>(),
    Route::change(
        "endpoints.update_pt_config",
        Method::PUT,
        PT_CONFIG,
        MANAGE,
        "Serve another config with provisioned throughput",
        handler!(update_pt_config),
    )
    .answers::<ServingEndpoint>()
    .body::<UpdatePtConfig>(),
    Route::change("endpoints.stop", Method::POST, STOP, MANAGE, "Serve nothing until it is started", handler!(stop))
        .answers::<ServingEndpoint>(),
    Route::change("endpoints.start", Method::POST, START, MANAGE, "Serve again", handler!(start))
        .answers::<ServingEndpoint>(),
];

async fn create(call: &mut Call) -> Result<Answer, ApiError> {
    let (_, principal, input) = call.json::<CreateEndpoint>().await?;
    let (name, config, settings) = input.into_parts();
    let config = config
        .ok_or_else(|| ApiError::invalid("config is required: name the model versions to serve in served_entities"))?;
    create_endpoint(call, &principal, name, config, settings).await
}

async fn create_pt(call: &mut Call) -> Result<Answer, ApiError> {
    let (_, principal, input) = call.json::<CreatePtEndpoint>().await?;
    let (name, config, settings) = input.into_parts()?;
    create_endpoint(call, &principal, name, config, settings).await
}

async fn create_endpoint(
    call: &Call,
    principal: &Principal,
    name: String,
    config: ConfigInput,
    settings: EndpointSettings,
) -> Result<Answer, ApiError> {
    let config = config.into_config(&principal.name, None)?;
    let endpoint = call.app.control.create(principal, NewEndpoint { name, settings, config }).await?;
    managed(call, &endpoint)
}

/// Never in memory as a whole.
#[derive(Serialize, JsonSchema)]
struct ServingEndpoints {
    endpoints: Vec<ServingEndpoint>,
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
            serde_json::to_writer(&mut text, &in_list(record, awake, level))
                .map_err(|error| ApiError::internal("write a list", &error))
        })?;
        text.extend_from_slice(b"]}");
        Ok(text)
    });
    let text = written.await.map_err(|error| ApiError::internal("list the endpoints", &error))??;
    Ok(json_text::<ServingEndpoints>(text))
}

async fn get(call: &Call) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint().await?;
    let level = level_of(&*call.principal()?, Object::Endpoint(&endpoint.record)).unwrap_or(Level::View);
    described(call, &endpoint, level)
}

/// An endpoint, for who has just changed it.
pub(super) fn managed(call: &Call, endpoint: &Endpoint) -> Result<Answer, ApiError> {
    described(call, endpoint, Level::Manage)
}

fn described(call: &Call, endpoint: &Endpoint, level: Level) -> Result<Answer, ApiError> {
    Ok(with_not_enforced(json(&detailed(endpoint, level, &call.origin()))?, endpoint))
}

/// Says in a header what is kept of the endpoint's settings but not done.
pub(super) fn with_not_enforced(mut answer: Answer, endpoint: &Endpoint) -> Answer {
    let fields = endpoint.record.not_enforced().join(", ");
    if !fields.is_empty()
        && let Ok(fields) = HeaderValue::from_str(&fields)
    {
        answer.headers_mut().insert(NOT_ENFORCED, fields);
    }
    answer
}

async fn update_config(call: &mut Call) -> Result<Answer, ApiError> {
    let (_, principal, input) = call.json::<ConfigInput>().await?;
    update(call, &principal, input).await
}

async fn update_pt_config(call: &mut Call) -> Result<Answer, ApiError> {
    let (_, principal, input) = call.json::<UpdatePtConfig>().await?;
    update(call, &principal, input.config.into_config()?).await
}

async fn update(call: &Call, principal: &Principal, input: ConfigInput) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint().await?;
    let make = |record: &EndpointRecord| input.into_config(&principal.name, record.config.as_ref());
    managed(call, &*call.app.control.update_config(principal, &endpoint.record.name, make).await?)
}

async fn stop(call: &Call) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint().await?;
    managed(call, &*call.app.control.stop(endpoint.record.workspace, &endpoint.record.name).await?)
}

async fn start(call: &Call) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint().await?;
    managed(call, &*call.app.control.start(&*call.principal()?, &endpoint.record.name).await?)
}

async fn delete(call: &Call) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint().await?;
    call.app.control.delete(endpoint.record.workspace, &endpoint.record.name).await?;
    call.app.gate.remove(&endpoint.record.id);
    // A body, because MLflow parses one.
    done()
}
