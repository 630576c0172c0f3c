//! The registry on the paths of MLflow's own server, which Databricks calls the workspace registry. A name without dots
//! stands for `workspace.default.NAME`.

use hyper::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    )
    .body::<mlflow::ModelInput>()
    .answers::<mlflow::OneModel>(),
    Route::get(
        "workspace_registry.get_model",
        "/api/2.0/mlflow/registered-models/get",
        VIEW,
        "Get a registered model",
        handler!(mlflow::get_model),
    )
    .query::<mlflow::ModelQuery>()
    .answers::<mlflow::OneModel>(),
    Route::get(
        "workspace_registry.search_models",
        "/api/2.0/mlflow/registered-models/search",
        Access::Principal,
        "Search the registered models",
        handler!(mlflow::search_models),
    )
    .query::<mlflow::SearchQuery>()
    .answers::<mlflow::Models>(),
    Route::change(
        "workspace_registry.update_model",
        Method::PATCH,
        "/api/2.0/mlflow/registered-models/update",
        MANAGE,
        "Change a registered model",
        handler!(mlflow::update_model),
    )
    .body::<mlflow::ModelInput>()
    .answers::<mlflow::OneModel>(),
    Route::change(
        "workspace_registry.delete_model",
        Method::DELETE,
        "/api/2.0/mlflow/registered-models/delete",
        MANAGE,
        "Delete a registered model with its versions",
        handler!(mlflow::delete_model),
    )
    .body::<mlflow::Change>(),
    Route::change(
        "workspace_registry.set_model_tag",
        Method::POST,
        "/api/2.0/mlflow/registered-models/set-tag",
        MANAGE,
        "Set a tag of a registered model",
        handler!(mlflow::set_model_tag),
    )
    .body::<mlflow::Change>(),
    Route::change(
        "workspace_registry.delete_model_tag",
        Method::DELETE,
        "/api/2.0/mlflow/registered-models/delete-tag",
        MANAGE,
        "Delete a tag of a registered model",
        handler!(mlflow::delete_model_tag),
    )
    .body::<mlflow::Change>(),
    Route::change(
        "workspace_registry.set_alias",
        Method::POST,
        "/api/2.0/mlflow/registered-models/alias",
        MANAGE,
        "Let an alias name a version",
        handler!(mlflow::set_alias),
    )
    .body::<mlflow::Change>(),
    Route::change(
        "workspace_registry.delete_alias",
        Method::DELETE,
        "/api/2.0/mlflow/registered-models/alias",
        MANAGE,
        "Delete an alias",
        handler!(mlflow::delete_alias),
    )
    .body::<mlflow::Change>(),
    Route::get(
        "workspace_registry.version_by_alias",
        "/api/2.0/mlflow/registered-models/alias",
        VIEW,
        "The version that an alias names",
        handler!(mlflow::version_by_alias),
    )
    .query::<mlflow::AliasQuery>()
    .answers::<mlflow::OneVersion>(),
    Route::change(
        "workspace_registry.create_version",
        Method::POST,
        "/api/2.0/mlflow/model-versions/create",
        MANAGE,
        "Create a model version",
        handler!(mlflow::create_version),
    )
    .body::<mlflow::VersionInput>()
    .answers::<mlflow::OneVersion>(),
    Route::get(
        "workspace_registry.get_version",
        "/api/2.0/mlflow/model-versions/get",
        VIEW,
        "Get a model version",
        handler!(mlflow::get_version),
    )
    .query::<mlflow::VersionQuery>()
    .answers::<mlflow::OneVersion>(),
    Route::get(
        "workspace_registry.search_versions",
        "/api/2.0/mlflow/model-versions/search",
        Access::Principal,
        "Search the versions of models",
        handler!(mlflow::search_versions),
    )
    .query::<mlflow::SearchQuery>()
    .answers::<mlflow::Versions>(),
    Route::change(
        "workspace_registry.update_version",
        Method::PATCH,
        "/api/2.0/mlflow/model-versions/update",
        MANAGE,
        "Change a model version",
        handler!(mlflow::update_version),
    )
    .body::<mlflow::Change>()
    .answers::<mlflow::OneVersion>(),
    Route::change(
        "workspace_registry.delete_version",
        Method::DELETE,
        "/api/2.0/mlflow/model-versions/delete",
        MANAGE,
        "Delete a model version",
        handler!(mlflow::delete_version),
    )
    .body::<mlflow::Change>(),
    Route::change(
        "workspace_registry.set_version_tag",
        Method::POST,
        "/api/2.0/mlflow/model-versions/set-tag",
        MANAGE,
        "Set a tag of a model version",
        handler!(mlflow::set_version_tag),
    )
    .body::<mlflow::Change>(),
    Route::change(
        "workspace_registry.delete_version_tag",
        Method::DELETE,
        "/api/2.0/mlflow/model-versions/delete-tag",
        MANAGE,
        "Delete a tag of a model version",
        handler!(mlflow::delete_version_tag),
    )
    .body::<mlflow::Change>(),
    Route::get(
        "workspace_registry.download_uri",
        "/api/2.0/mlflow/model-versions/get-download-uri",
        VIEW,
        "Where a model version's files are",
        handler!(download_uri),
    )
    .query::<mlflow::VersionQuery>()
    .answers::<mlflow::DownloadUri>(),
    Route::change(
        "workspace_registry.rename_model",
        Method::POST,
        "/api/2.0/mlflow/registered-models/rename",
        MANAGE,
        "Give a registered model another name",
        handler!(mlflow::update_model),
    )
    .body::<mlflow::ModelInput>()
    .answers::<mlflow::OneModel>(),
    Route::get(
        "workspace_registry.latest_versions",
        "/api/2.0/mlflow/registered-models/get-latest-versions",
        VIEW,
        "The newest version of each stage",
        handler!(latest_versions),
    )
    .query::<LatestInput>()
    .answers::<mlflow::Versions>(),
    Route::get(
        "workspace_registry.find_latest_versions",
        "/api/2.0/mlflow/registered-models/get-latest-versions",
        VIEW,
        "The newest version of each stage",
        handler!(latest_versions),
    )
    .body::<LatestInput>()
    .answers::<mlflow::Versions>()
    .reads(Method::POST),
    Route::change(
        "workspace_registry.transition_stage",
        Method::POST,
        "/api/2.0/mlflow/model-versions/transition-stage",
        MANAGE,
        "Move a version to a stage",
        handler!(transition_stage),
    )
    .body::<mlflow::Change>()
    .answers::<mlflow::OneVersion>(),
    Route::get(
        "workspace_registry.list_artifacts",
        "/api/2.0/mlflow/model-versions/list-artifacts",
        QUERY,
        "List the files of a model version",
        handler!(list_artifacts),
    )
    .query::<FilesQuery>()
    .answers::<VersionFiles>(),
    Route::get(
        "workspace_registry.signed_download_uri",
        "/api/2.0/mlflow/model-versions/get-signed-download-uri",
        QUERY,
        "A signed address of a file",
        handler!(signed_download_uri),
    )
    .query::<FileQuery>()
    .answers::<SignedUri>(),
    Route::get(
        "workspace_registry.databricks_model",
        "/api/2.0/mlflow/databricks/registered-models/get",
        VIEW,
        "Get a registered model, as the Databricks SDK asks",
        handler!(databricks_model),
    )
    .query::<mlflow::ModelQuery>()
    .answers::<DatabricksModel>(),
    Route::change(
        "workspace_registry.databricks_transition",
        Method::POST,
        "/api/2.0/mlflow/databricks/model-versions/transition-stage",
        MANAGE,
        "Move a version to a stage, as the Databricks SDK asks",
        handler!(databricks_transition),
    )
    .body::<mlflow::Change>()
    .answers::<DatabricksVersion>(),
];

/// An address that MLflow's client resolves against its tracking server: this one.
async fn download_uri(call: &Call) -> Result<Answer, ApiError> {
    let (_, _, version) = mlflow::asked_version(call, &call.query()?).await?;
    let artifact_uri = format!("mlflow-artifacts:{}", files::location(&version.name, version.version));
    json(&mlflow::DownloadUri { artifact_uri })
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "LatestVersionsOf")]
struct LatestInput {
    name: String,
    /// All, where none is named.
    #[serde(default)]
    stages: Vec<String>,
}

async fn latest_versions(call: &mut Call) -> Result<Answer, ApiError> {
    let input = match is_get(call) {
        true => call.query::<LatestInput>()?,
        false => call.json::<LatestInput>().await?.2,
    };
    let stages: Vec<Stage> = input.stages.iter().map(|stage| Stage::parse(stage)).collect::<Result<_, _>>()?;
    let model = call.model(&Dialect::Oss.full(&input.name)).await?;
    let model_versions = mlflow::latest(call, &model, &stages).await?;
    json(&mlflow::Versions { model_versions, next_page_token: None })
}

#[derive(Serialize, JsonSchema)]
struct DatabricksModel {
    registered_model_databricks: mlflow::DescribedModel,
}

#[derive(Serialize, JsonSchema)]
struct DatabricksVersion {
    model_version_databricks: mlflow::DescribedVersion,
}

/// A folder of a version.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ModelVersionFolder")]
struct FilesQuery {
    #[serde(flatten)]
    version: mlflow::VersionQuery,
    #[serde(default)]
    path: String,
}

/// A file of a version.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ModelVersionFile")]
struct FileQuery {
    #[serde(flatten)]
    version: mlflow::VersionQuery,
    path: String,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ModelVersionFiles")]
struct VersionFiles {
    files: Vec<files::Artifact>,
}

#[derive(Serialize, JsonSchema)]
struct SignedUri {
    signed_uri: String,
    /// None: the address is enough.
    headers: [(); 0],
}

async fn transition_stage(call: &mut Call) -> Result<Answer, ApiError> {
    json(&mlflow::OneVersion { model_version: mlflow::transition(call).await? })
}

async fn databricks_transition(call: &mut Call) -> Result<Answer, ApiError> {
    json(&DatabricksVersion { model_version_databricks: mlflow::transition(call).await? })
}

/// The Databricks SDK asks so for the id that permissions are given by.
async fn databricks_model(call: &Call) -> Result<Answer, ApiError> {
    let model = call.model(&Dialect::Oss.full(&call.query::<mlflow::ModelQuery>()?.name)).await?;
    let principal = call.principal()?;
    let permission_level = match level_of(&principal, Object::Model(&model)) {
        Some(Level::Manage) => "CAN_MANAGE",
        _ => "CAN_READ",
    };
    let mut described = Dialect::Oss.model(&model);
    (described.id, described.permission_level) = (Some(model.id.clone()), Some(permission_level));
    json(&DatabricksModel { registered_model_databricks: described })
}

async fn list_artifacts(call: &Call) -> Result<Answer, ApiError> {
    let asked: FilesQuery = call.query()?;
    let (_, _, version) = mlflow::asked_version(call, &asked.version).await?;
    json(&VersionFiles { files: files::artifacts_in(&version.files, asked.path.trim_matches('/')) })
}

async fn signed_download_uri(call: &Call) -> Result<Answer, ApiError> {
    let FileQuery { version, path } = call.query()?;
    let (_, _, version) = mlflow::asked_version(call, &version).await?;
    if !version.files.contains_key(&path) {
        return Err(files::no_file(&version.name, version.version, &path));
    }
    let place = files::Place { model: version.name, version: version.version, path };
    json(&SignedUri { signed_uri: signed::address(call, &place, signed::Deed::Download, None)?, headers: [] })
}
