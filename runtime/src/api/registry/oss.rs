//! The registry on the paths of MLflow's own server, which Databricks calls the workspace registry. A name without dots
//! stands for `workspace.default.NAME`.

use hyper::Method;
use serde::Deserialize;
use serde_json::json;

use super::super::routes::{Access, Route, handler};
use super::super::{Answer, Call, json};
use super::mlflow::Dialect;
use super::{files, is_get, mlflow, signed};
use crate::access::{Level, Object, level_of};
use crate::error::ApiError;
use crate::registry::Stage;

const VIEW: Access = Access::Model(Level::View);
const QUERY: Access = Access::Model(Level::Query);
const MANAGE: Access = Access::Model(Level::Manage);

pub(crate) const ROUTES: &[Route] = &[
    Route::change(
        "workspace_registry.create_model",
        Method::POST,
        "/api/2.0/mlflow/registered-models/create",
        Access::Principal,
        "Register a model",
        handler!(mlflow::create_model),
    ),
    Route::get(
        "workspace_registry.get_model",
        "/api/2.0/mlflow/registered-models/get",
        VIEW,
        "Get a registered model",
        handler!(mlflow::get_model),
    ),
    Route::get(
        "workspace_registry.search_models",
        "/api/2.0/mlflow/registered-models/search",
        Access::Principal,
        "Search the registered models",
        handler!(mlflow::search_models),
    ),
    Route::change(
        "workspace_registry.update_model",
        Method::PATCH,
        "/api/2.0/mlflow/registered-models/update",
        MANAGE,
        "Change a registered model",
        handler!(mlflow::update_model),
    ),
    Route::change(
        "workspace_registry.delete_model",
        Method::DELETE,
        "/api/2.0/mlflow/registered-models/delete",
        MANAGE,
        "Delete a registered model with its versions",
        handler!(mlflow::delete_model),
    ),
    Route::change(
        "workspace_registry.set_model_tag",
        Method::POST,
        "/api/2.0/mlflow/registered-models/set-tag",
        MANAGE,
        "Set a tag of a registered model",
        handler!(mlflow::set_model_tag),
    ),
    Route::change(
        "workspace_registry.delete_model_tag",
        Method::DELETE,
        "/api/2.0/mlflow/registered-models/delete-tag",
        MANAGE,
        "Delete a tag of a registered model",
        handler!(mlflow::delete_model_tag),
    ),
    Route::change(
        "workspace_registry.set_alias",
        Method::POST,
        "/api/2.0/mlflow/registered-models/alias",
        MANAGE,
        "Let an alias name a version",
        handler!(mlflow::set_alias),
    ),
    Route::change(
        "workspace_registry.delete_alias",
        Method::DELETE,
        "/api/2.0/mlflow/registered-models/alias",
        MANAGE,
        "Delete an alias",
        handler!(mlflow::delete_alias),
    ),
    Route::get(
        "workspace_registry.version_by_alias",
        "/api/2.0/mlflow/registered-models/alias",
        VIEW,
        "The version that an alias names",
        handler!(mlflow::version_by_alias),
    ),
    Route::change(
        "workspace_registry.create_version",
        Method::POST,
        "/api/2.0/mlflow/model-versions/create",
        MANAGE,
        "Create a model version",
        handler!(mlflow::create_version),
    ),
    Route::get(
        "workspace_registry.get_version",
        "/api/2.0/mlflow/model-versions/get",
        VIEW,
        "Get a model version",
        handler!(mlflow::get_version),
    ),
    Route::get(
        "workspace_registry.search_versions",
        "/api/2.0/mlflow/model-versions/search",
        Access::Principal,
        "Search the versions of models",
        handler!(mlflow::search_versions),
    ),
    Route::change(
        "workspace_registry.update_version",
        Method::PATCH,
        "/api/2.0/mlflow/model-versions/update",
        MANAGE,
        "Change a model version",
        handler!(mlflow::update_version),
    ),
    Route::change(
        "workspace_registry.delete_version",
        Method::DELETE,
        "/api/2.0/mlflow/model-versions/delete",
        MANAGE,
        "Delete a model version",
        handler!(mlflow::delete_version),
    ),
    Route::change(
        "workspace_registry.set_version_tag",
        Method::POST,
        "/api/2.0/mlflow/model-versions/set-tag",
        MANAGE,
        "Set a tag of a model version",
        handler!(mlflow::set_version_tag),
    ),
    Route::change(
        "workspace_registry.delete_version_tag",
        Method::DELETE,
        "/api/2.0/mlflow/model-versions/delete-tag",
        MANAGE,
        "Delete a tag of a model version",
        handler!(mlflow::delete_version_tag),
    ),
    Route::get(
        "workspace_registry.download_uri",
        "/api/2.0/mlflow/model-versions/get-download-uri",
        VIEW,
        "Where a model version's files are",
        handler!(download_uri),
    ),
    Route::change(
        "workspace_registry.rename_model",
        Method::POST,
        "/api/2.0/mlflow/registered-models/rename",
        MANAGE,
        "Give a registered model another name",
        handler!(mlflow::update_model),
    ),
    Route::get(
        "workspace_registry.latest_versions",
        "/api/2.0/mlflow/registered-models/get-latest-versions",
        VIEW,
        "The newest version of each stage",
        handler!(latest_versions),
    ),
    Route::get(
        "workspace_registry.find_latest_versions",
        "/api/2.0/mlflow/registered-models/get-latest-versions",
        VIEW,
        "The newest version of each stage",
        handler!(latest_versions),
    )
    .reads(Method::POST),
    Route::change(
        "workspace_registry.transition_stage",
        Method::POST,
        "/api/2.0/mlflow/model-versions/transition-stage",
        MANAGE,
        "Move a version to a stage",
        handler!(transition_stage),
    ),
    Route::get(
        "workspace_registry.list_artifacts",
        "/api/2.0/mlflow/model-versions/list-artifacts",
        QUERY,
        "List the files of a model version",
        handler!(list_artifacts),
    ),
    Route::get(
        "workspace_registry.signed_download_uri",
        "/api/2.0/mlflow/model-versions/get-signed-download-uri",
        QUERY,
        "A signed address of a file",
        handler!(signed_download_uri),
    ),
    Route::get(
        "workspace_registry.databricks_model",
        "/api/2.0/mlflow/databricks/registered-models/get",
        VIEW,
        "Get a registered model, as the Databricks SDK asks",
        handler!(databricks_model),
    ),
    Route::change(
        "workspace_registry.databricks_transition",
        Method::POST,
        "/api/2.0/mlflow/databricks/model-versions/transition-stage",
        MANAGE,
        "Move a version to a stage, as the Databricks SDK asks",
        handler!(databricks_transition),
    ),
];

/// An address that MLflow's client resolves against its tracking server: this one.
async fn download_uri(call: &Call) -> Result<Answer, ApiError> {
    let (_, _, version) = mlflow::asked_version(call).await?;
    json(&json!({ "artifact_uri": format!("mlflow-artifacts:{}", files::location(&version.name, version.version)) }))
}

#[derive(Deserialize)]
struct LatestInput {
    name: String,
    #[serde(default)]
    stages: Vec<String>,
}

async fn latest_versions(call: &mut Call) -> Result<Answer, ApiError> {
    let input = match is_get(call) {
        true => LatestInput { name: call.needed("name")?, stages: call.queries("stages") },
        false => call.json::<LatestInput>().await?.2,
    };
    let stages: Vec<Stage> = input.stages.iter().map(|stage| Stage::parse(stage)).collect::<Result<_, _>>()?;
    let model = call.model(&Dialect::Oss.full(&input.name)).await?;
    json(&json!({ "model_versions": mlflow::latest(call, &model, &stages).await? }))
}

async fn transition_stage(call: &mut Call) -> Result<Answer, ApiError> {
    mlflow::transition(call, "model_version").await
}

async fn databricks_transition(call: &mut Call) -> Result<Answer, ApiError> {
    mlflow::transition(call, "model_version_databricks").await
}

/// The Databricks SDK asks so for the id that permissions are given by.
async fn databricks_model(call: &Call) -> Result<Answer, ApiError> {
    let model = call.model(&Dialect::Oss.full(&call.needed("name")?)).await?;
    let principal = call.principal()?;
    let mut answer = Dialect::Oss.model(&model);
    answer["id"] = json!(model.id);
    answer["permission_level"] = json!(match level_of(&principal, Object::Model(&model)) {
        Some(Level::Manage) => "CAN_MANAGE",
        _ => "CAN_READ",
    });
    json(&json!({ "registered_model_databricks": answer }))
}

async fn list_artifacts(call: &Call) -> Result<Answer, ApiError> {
    let (_, _, version) = mlflow::asked_version(call).await?;
    let folder = call.query("path").unwrap_or_default();
    json(&json!({ "files": files::artifacts_in(&version.files, folder.trim_matches('/')) }))
}

async fn signed_download_uri(call: &Call) -> Result<Answer, ApiError> {
    let (_, _, version) = mlflow::asked_version(call).await?;
    let path = call.needed("path")?;
    if !version.files.contains_key(&path) {
        return Err(files::no_file(&version.name, version.version, &path));
    }
    let place = files::Place { model: version.name, version: version.version, path };
    json(&json!({ "signed_uri": signed::address(call, &place, signed::Deed::Download, None)?, "headers": [] }))
}
