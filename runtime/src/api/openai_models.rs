//! OpenAI's list of models: its clients call an endpoint by the name of a model.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::routes::{Access, Route, handler};
use super::{Answer, Call, json, json_text};
use crate::access::{Level, Object, level_of};
use crate::catalog::EndpointRecord;
use crate::error::ApiError;

const LIST: &str = "List the endpoints as OpenAI's API lists models";

pub(super) const ROUTES: &[Route] = &[
    Route::get("endpoints.models", "/serving-endpoints/models", Access::Principal, LIST, handler!(list))
        .answers::<Models>(),
    Route::get("endpoints.v1_models", "/v1/models", Access::Principal, LIST, handler!(list)).answers::<Models>(),
    Route::get(
        "endpoints.v1_model",
        "/v1/models/{name}",
        Access::Endpoint(Level::View),
        "Get an endpoint as OpenAI's API describes a model",
        handler!(get),
    )
    .answers::<Model>(),
];

/// Never in memory as a whole.
#[derive(Serialize, JsonSchema)]
struct Models {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Serialize, JsonSchema)]
struct Model {
    /// Name of the endpoint.
    id: String,
    object: &'static str,
    /// In seconds since 1970.
    created: u64,
    owned_by: String,
}

impl Model {
    fn of(record: &EndpointRecord) -> Model {
        Model {
            id: record.name.clone(),
            object: "model",
            created: record.creation_timestamp / 1000,
            owned_by: record.creator.clone(),
        }
    }
}

/// The endpoints that the caller may see: one at a time, like the list of endpoints.
async fn list(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let control = Arc::clone(&call.app.control);
    let written = tokio::task::spawn_blocking(move || -> Result<Vec<u8>, ApiError> {
        let mut text = br#"{"object":"list","data":["#.to_vec();
        let mut separator = b"".as_slice();
        control.visit_endpoints(principal.workspace, |record, _| {
            if level_of(&principal, Object::Endpoint(record)).is_none() {
                return Ok(());
            }
            text.extend_from_slice(separator);
            separator = b",";
            let written = serde_json::to_writer(&mut text, &Model::of(record));
            written.map_err(|error| ApiError::internal("write a list", &error))
        })?;
        text.extend_from_slice(b"]}");
        Ok(text)
    });
    let text = written.await.map_err(|error| ApiError::internal("list the models", &error))??;
    Ok(json_text::<Models>(text))
}

async fn get(call: &Call) -> Result<Answer, ApiError> {
    json(&Model::of(&call.endpoint().await?.record))
}
