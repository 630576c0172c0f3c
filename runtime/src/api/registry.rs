//! The model registry, on the paths of MLflow's Unity Catalog client.

use hyper::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::routes::{Access, Route, handler};
use super::wire::{self, RegisteredModel};
use super::{Answer, Call, json};
use crate::access::{Level, Object, level_of};
use crate::error::ApiError;
use crate::registry::NewVersion;

/// Most results of a search; the default of MLflow's client.
const RESULTS_MAX: usize = 1000;

#[derive(Deserialize)]
struct ModelInput {
    name: String,
    description: Option<String>,
}

#[derive(Deserialize)]
struct VersionInput {
    name: String,
    #[serde(default)]
    source: String,
    description: Option<String>,
    run_id: Option<String>,
}

#[derive(Deserialize)]
struct VersionRef {
    name: String,
    version: Value,
}

impl VersionRef {
    fn number(&self) -> Result<u64, ApiError> {
        match &self.version {
            Value::String(text) => parse_version(text),
            other => parse_version(&other.to_string()),
        }
    }
}

const VIEW: Access = Access::Model(Level::View);
const MANAGE: Access = Access::Model(Level::Manage);

pub(super) const ROUTES: &[Route] = &[
    Route::change(
        "registry.create_model",
        Method::POST,
        "/api/2.0/mlflow/unity-catalog/registered-models/create",
        Access::Principal,
        "Register a model",
        handler!(create_model),
    ),
    Route::get(
        "registry.get_model",
        "/api/2.0/mlflow/unity-catalog/registered-models/get",
        VIEW,
        "Get a registered model",
        handler!(get_model),
    ),
    Route::get(
        "registry.search_models",
        "/api/2.0/mlflow/unity-catalog/registered-models/search",
        Access::Principal,
        "Search the registered models",
        handler!(search_models),
    ),
    Route::change(
        "registry.update_model",
        Method::PATCH,
        "/api/2.0/mlflow/unity-catalog/registered-models/update",
        MANAGE,
        "Change a registered model",
        handler!(update_model),
    ),
    Route::change(
        "registry.delete_model",
        Method::DELETE,
        "/api/2.0/mlflow/unity-catalog/registered-models/delete",
        MANAGE,
        "Delete a registered model with its versions",
        handler!(delete_model),
    ),
    Route::get(
        "registry.uploads_by_files",
        "/api/2.0/mlflow/unity-catalog/registered-models:is-databricks-sdk-models-artifact-repository-enabled",
        Access::Principal,
        "How MLflow uploads",
        handler!(uploads_by_files),
    ),
    Route::change(
        "registry.create_version",
        Method::POST,
        "/api/2.0/mlflow/unity-catalog/model-versions/create",
        MANAGE,
        "Create a model version",
        handler!(create_version),
    ),
    Route::change(
        "registry.finalize_version",
        Method::POST,
        "/api/2.0/mlflow/unity-catalog/model-versions/finalize",
        MANAGE,
        "Check a model version and make it ready",
        handler!(finalize_version),
    ),
    Route::get(
        "registry.get_version",
        "/api/2.0/mlflow/unity-catalog/model-versions/get",
        VIEW,
        "Get a model version",
        handler!(get_version),
    ),
    Route::get(
        "registry.search_versions",
        "/api/2.0/mlflow/unity-catalog/model-versions/search",
        VIEW,
        "Search the versions of a model",
        handler!(search_versions),
    ),
    Route::get(
        "registry.download_uri",
        "/api/2.0/mlflow/unity-catalog/model-versions/get-download-uri",
        VIEW,
        "Where a model version's files are",
        handler!(download_uri),
    ),
    Route::change(
        "registry.delete_version",
        Method::DELETE,
        "/api/2.0/mlflow/unity-catalog/model-versions/delete",
        MANAGE,
        "Delete a model version",
        handler!(delete_version),
    ),
    Route::change(
        "registry.emit_lineage",
        Method::POST,
        "/api/2.0/mlflow/unity-catalog/model-versions/emit-lineage",
        Access::Principal,
        "Lineage is not kept",
        handler!(emit_lineage),
    ),
];

/// Uploads come as one PUT per file, instead of through signed addresses of an object store.
async fn uploads_by_files(_call: &Call) -> Result<Answer, ApiError> {
    json(&json!({ "is_databricks_sdk_models_artifact_repository_enabled": true }))
}

/// Lineage is not kept; the client sends it along and does not look at the answer.
async fn emit_lineage(_call: &Call) -> Result<Answer, ApiError> {
    json(&Map::new())
}

async fn create_model(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<ModelInput>().await?;
    let registry = &app.control.registry;
    let model = registry.create_model(&principal, &input.name, input.description).await?;
    json(&json!({ "registered_model": RegisteredModel::from(&model) }))
}

async fn get_model(call: &Call) -> Result<Answer, ApiError> {
    let model = call.model(&call.needed("name")?).await?;
    json(&json!({ "registered_model": RegisteredModel::from(&model) }))
}

async fn search_models(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let mut models = call.app.control.registry.models(principal.workspace).await?;
    models.retain(|model| level_of(&principal, Object::Model(model)).is_some());
    let page: Vec<_> = page_of(call, &models)?.iter().map(RegisteredModel::from).collect();
    let mut answer = json!({ "registered_models": page });
    add_next_page(call, &mut answer, models.len())?;
    json(&answer)
}

async fn update_model(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<ModelInput>().await?;
    call.model(&input.name).await?;
    let model = app.control.registry.describe_model(principal.workspace, &input.name, input.description).await?;
    json(&json!({ "registered_model": RegisteredModel::from(&model) }))
}

async fn delete_model(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<ModelInput>().await?;
    call.model(&input.name).await?;
    app.control.delete_model(principal.workspace, &input.name).await?;
    json(&Map::new())
}

async fn create_version(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<VersionInput>().await?;
    call.model(&input.name).await?;
    let new = NewVersion { source: input.source, description: input.description, run_id: input.run_id };
    let registry = &app.control.registry;
    let version = registry.create_version(principal.workspace, &input.name, new, &principal.name).await?;
    json(&json!({ "model_version": wire::model_version(&version) }))
}

async fn finalize_version(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<VersionRef>().await?;
    call.model(&input.name).await?;
    let version = app.control.registry.finalize(principal.workspace, &input.name, input.number()?).await?;
    json(&json!({ "model_version": wire::model_version(&version) }))
}

async fn get_version(call: &Call) -> Result<Answer, ApiError> {
    let number = parse_version(&call.needed("version")?)?;
    let model = call.model(&call.needed("name")?).await?;
    let version = call.app.control.registry.version(model.workspace, &model.name, number).await?;
    json(&json!({ "model_version": wire::model_version(&version) }))
}

async fn search_versions(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let filter = call.query("filter").unwrap_or_default();
    let name = filter
        .trim()
        .strip_prefix("name")
        .and_then(|rest| rest.trim_start().strip_prefix('='))
        .map(|name| name.trim().trim_matches(['\'', '"']))
        .ok_or_else(|| {
            ApiError::invalid(format!("filter '{filter}' is not supported: use name='catalog.schema.model'"))
        })?;
    let versions = call.app.control.registry.versions(principal.workspace, name).await?;
    let page: Vec<_> = page_of(call, &versions)?.iter().map(wire::model_version).collect();
    let mut answer = json!({ "model_versions": page });
    add_next_page(call, &mut answer, versions.len())?;
    json(&answer)
}

async fn download_uri(call: &Call) -> Result<Answer, ApiError> {
    let number = parse_version(&call.needed("version")?)?;
    let model = call.model(&call.needed("name")?).await?;
    let version = call.app.control.registry.version(model.workspace, &model.name, number).await?;
    json(&json!({ "artifact_uri": super::files::location(&version.name, version.version) }))
}

async fn delete_version(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<VersionRef>().await?;
    call.model(&input.name).await?;
    app.control.delete_version(principal.workspace, &input.name, input.number()?).await?;
    json(&Map::new())
}

pub(super) fn parse_version(text: &str) -> Result<u64, ApiError> {
    text.parse().map_err(|_| ApiError::invalid(format!("'{text}' is not the number of a model version")))
}

/// Where a search begins: a page token is the number of results before it.
fn page_start(call: &Call) -> Result<usize, ApiError> {
    match call.query("page_token").filter(|token| !token.is_empty()) {
        None => Ok(0),
        Some(token) => token.parse().map_err(|_| ApiError::invalid(format!("page_token '{token}' is not one of ours"))),
    }
}

fn page_size(call: &Call) -> usize {
    let asked = call.query("max_results").and_then(|number| number.parse().ok()).unwrap_or(RESULTS_MAX);
    asked.clamp(1, RESULTS_MAX)
}

fn page_of<'a, T>(call: &Call, all: &'a [T]) -> Result<&'a [T], ApiError> {
    let start = page_start(call)?.min(all.len());
    Ok(&all[start..all.len().min(start.saturating_add(page_size(call)))])
}

fn add_next_page(call: &Call, answer: &mut Value, total: usize) -> Result<(), ApiError> {
    let next = page_start(call)?.saturating_add(page_size(call));
    if next < total {
        answer["next_page_token"] = json!(next.to_string());
    }
    Ok(())
}
