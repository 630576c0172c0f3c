//! Serving endpoints: create, list, get, update, delete, logs.

use serde_json::{Map, json};

use super::wire::{self, ConfigInput, CreateEndpoint};
use super::{Answer, Call, json};
use crate::catalog::EndpointRecord;
use crate::control::NewEndpoint;
use crate::error::ApiError;

pub(super) async fn create(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<CreateEndpoint>().await?;
    input.refuse_unsupported()?;
    let config = input
        .config
        .ok_or_else(|| ApiError::invalid("config is required: name the model versions to serve in served_entities"))?
        .into_config(&principal.user_name, None)?;
    let new = NewEndpoint { name: input.name, description: input.description, tags: input.tags, config };
    let endpoint = app.control.create(principal.workspace, &principal.user_name, new).await?;
    json(&wire::endpoint(&endpoint))
}

pub(super) fn list(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let endpoints = call.app.control.catalog.endpoints(principal.workspace);
    let endpoints: Vec<_> = endpoints.iter().map(|endpoint| wire::endpoint_in_list(endpoint)).collect();
    json(&json!({ "endpoints": endpoints }))
}

pub(super) fn get(call: &Call, name: &str) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    json(&wire::endpoint(&*call.app.control.endpoint(principal.workspace, name)?))
}

pub(super) async fn update_config(call: &mut Call, name: &str) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<ConfigInput>().await?;
    let make = |record: &EndpointRecord| input.into_config(&principal.user_name, record.config.as_ref());
    let endpoint = app.control.update_config(principal.workspace, name, make).await?;
    json(&wire::endpoint(&endpoint))
}

pub(super) async fn delete(call: &Call, name: &str) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    call.app.control.delete(principal.workspace, name).await?;
    // A body, because MLflow parses one.
    json(&Map::new())
}

/// What a served entity's guest wrote, or what its last deploy did.
pub(super) fn logs(call: &Call, name: &str, entity: &str, what: &str) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let endpoint = call.app.control.endpoint(principal.workspace, name)?;
    let missing = || ApiError::missing(format!("Endpoint '{name}' has no served model '{entity}'."));
    let text = match what {
        "build-logs" => call.app.control.build_log(&endpoint, entity).ok_or_else(missing)?,
        _ => {
            let served = endpoint.serving.as_ref().and_then(|serving| serving.entity(entity)).ok_or_else(missing)?;
            served.log.text()
        }
    };
    json(&json!({ "logs": text }))
}
