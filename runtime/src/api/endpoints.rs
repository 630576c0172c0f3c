//! Serving endpoints: create, list, get, update, delete, logs.

use std::sync::Arc;

use serde_json::{Map, json};

use super::wire::{self, ConfigInput, CreateEndpoint};
use super::{Answer, Call, json, respond};
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

/// All endpoints. Written as it is read: with thousands of them, one at a time is enough to have in memory.
pub(super) async fn list(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let control = Arc::clone(&call.app.control);
    let written = tokio::task::spawn_blocking(move || -> Result<Vec<u8>, ApiError> {
        let mut text = b"{\"endpoints\":[".to_vec();
        let mut separator = b"".as_slice();
        control.visit_endpoints(principal.workspace, |record, awake| {
            text.extend_from_slice(separator);
            separator = b",";
            serde_json::to_writer(&mut text, &wire::endpoint_in_list(record, awake))
                .map_err(|error| ApiError::internal("write a list", &error))
        })?;
        text.extend_from_slice(b"]}");
        Ok(text)
    });
    let text = written.await.map_err(|error| ApiError::internal("list the endpoints", &error))??;
    Ok(respond(200, "application/json", text))
}

pub(super) async fn get(call: &Call, name: &str) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    json(&wire::endpoint(&*call.app.control.endpoint(principal.workspace, name).await?))
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
pub(super) async fn logs(call: &Call, name: &str, entity: &str, what: &str) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let endpoint = call.app.control.endpoint(principal.workspace, name).await?;
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
