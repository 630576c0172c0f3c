//! The registry on the paths of MLflow's Unity Catalog client.

use hyper::Method;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::super::routes::{Access, Route, handler};
use super::super::{Answer, Call, done, json};
use super::{files, mlflow};
use crate::access::Level;
use crate::error::ApiError;

const VIEW: Access = Access::Model(Level::View);
const QUERY: Access = Access::Model(Level::Query);
const MANAGE: Access = Access::Model(Level::Manage);

pub(crate) const ROUTES: &[Route] = &[
    Route::change(
        "registry.create_model",
        Method::POST,
        "/api/2.0/mlflow/unity-catalog/registered-models/create",
        Access::Principal,
        "Register a model",
        handler!(mlflow::create_model),
    )
    .body::<mlflow::ModelInput>()
    .answers::<mlflow::OneModel>(),
    Route::get(
        "registry.get_model",
        "/api/2.0/mlflow/unity-catalog/registered-models/get",
        VIEW,
        "Get a registered model",
        handler!(mlflow::get_model),
    )
    .query::<mlflow::ModelQuery>()
    .answers::<mlflow::OneModel>(),
    Route::get(
        "registry.search_models",
        "/api/2.0/mlflow/unity-catalog/registered-models/search",
        Access::Principal,
        "Search the registered models",
        handler!(mlflow::search_models),
    )
    .query::<mlflow::SearchQuery>()
    .answers::<mlflow::Models>(),
    Route::change(
        "registry.update_model",
        Method::PATCH,
        "/api/2.0/mlflow/unity-catalog/registered-models/update",
        MANAGE,
        "Change a registered model",
        handler!(mlflow::update_model),
    )
    .body::<mlflow::ModelInput>()
    .answers::<mlflow::OneModel>(),
    Route::change(
        "registry.delete_model",
        Method::DELETE,
        "/api/2.0/mlflow/unity-catalog/registered-models/delete",
        MANAGE,
        "Delete a registered model with its versions",
        handler!(mlflow::delete_model),
    )
    .body::<mlflow::Change>(),
    Route::change(
        "registry.set_model_tag",
        Method::POST,
        "/api/2.0/mlflow/unity-catalog/registered-models/set-tag",
        MANAGE,
        "Set a tag of a registered model",
        handler!(mlflow::set_model_tag),
    )
    .body::<mlflow::Change>(),
    Route::change(
        "registry.delete_model_tag",
        Method::DELETE,
        "/api/2.0/mlflow/unity-catalog/registered-models/delete-tag",
        MANAGE,
        "Delete a tag of a registered model",
        handler!(mlflow::delete_model_tag),
    )
    .body::<mlflow::Change>(),
    Route::change(
        "registry.set_alias",
        Method::POST,
        "/api/2.0/mlflow/unity-catalog/registered-models/alias",
        MANAGE,
        "Let an alias name a version",
        handler!(mlflow::set_alias),
    )
    .body::<mlflow::Change>(),
    Route::change(
        "registry.delete_alias",
        Method::DELETE,
        "/api/2.0/mlflow/unity-catalog/registered-models/alias",
        MANAGE,
        "Delete an alias",
        handler!(mlflow::delete_alias),
    )
    .body::<mlflow::Change>(),
    Route::get(
        "registry.version_by_alias",
        "/api/2.0/mlflow/unity-catalog/registered-models/alias",
        VIEW,
        "The version that an alias names",
        handler!(mlflow::version_by_alias),
    )
    .query::<mlflow::AliasQuery>()
    .answers::<mlflow::OneVersion>(),
    Route::change(
        "registry.create_version",
        Method::POST,
        "/api/2.0/mlflow/unity-catalog/model-versions/create",
        MANAGE,
        "Create a model version",
        handler!(mlflow::create_version),
    )
    .body::<mlflow::VersionInput>()
    .answers::<mlflow::OneVersion>(),
    Route::get(
        "registry.get_version",
        "/api/2.0/mlflow/unity-catalog/model-versions/get",
        VIEW,
        "Get a model version",
        handler!(mlflow::get_version),
    )
    .query::<mlflow::VersionQuery>()
    .answers::<mlflow::OneVersion>(),
    Route::get(
        "registry.search_versions",
        "/api/2.0/mlflow/unity-catalog/model-versions/search",
        Access::Principal,
        "Search the versions of models",
        handler!(mlflow::search_versions),
    )
    .query::<mlflow::SearchQuery>()
    .answers::<mlflow::Versions>(),
    Route::change(
        "registry.update_version",
        Method::PATCH,
        "/api/2.0/mlflow/unity-catalog/model-versions/update",
        MANAGE,
        "Change a model version",
        handler!(mlflow::update_version),
    )
    .body::<mlflow::Change>()
    .answers::<mlflow::OneVersion>(),
    Route::change(
        "registry.delete_version",
        Method::DELETE,
        "/api/2.0/mlflow/unity-catalog/model-versions/delete",
        MANAGE,
        "Delete a model version",
        handler!(mlflow::delete_version),
    )
    .body::<mlflow::Change>(),
    Route::change(
        "registry.set_version_tag",
        Method::POST,
        "/api/2.0/mlflow/unity-catalog/model-versions/set-tag",
        MANAGE,
        "Set a tag of a model version",
        handler!(mlflow::set_version_tag),
    )
    .body::<mlflow::Change>(),
    Route::change(
        "registry.delete_version_tag",
        Method::DELETE,
        "/api/2.0/mlflow/unity-catalog/model-versions/delete-tag",
        MANAGE,
        "Delete a tag of a model version",
        handler!(mlflow::delete_version_tag),
    )
    .body::<mlflow::Change>(),
    Route::get(
        "registry.download_uri",
        "/api/2.0/mlflow/unity-catalog/model-versions/get-download-uri",
        VIEW,
        "Where a model version's files are",
        handler!(download_uri),
    )
    .query::<mlflow::VersionQuery>()
    .answers::<mlflow::DownloadUri>(),
    Route::get(
        "registry.uploads_by_files",
        "/api/2.0/mlflow/unity-catalog/registered-models:is-databricks-sdk-models-artifact-repository-enabled",
        Access::Principal,
        "How MLflow uploads",
        handler!(uploads_by_files),
    )
    .answers::<UploadsByFiles>(),
    Route::change(
        "registry.finalize_version",
        Method::POST,
        "/api/2.0/mlflow/unity-catalog/model-versions/finalize",
        MANAGE,
        "Check a model version and make it ready",
        handler!(mlflow::finalize_version),
    )
    .body::<mlflow::Change>()
    .answers::<mlflow::OneVersion>(),
    Route::get(
        "registry.credentials",
        "/api/2.0/mlflow/unity-catalog/model-versions/generate-temporary-credentials",
        QUERY,
        "How a version's files are reached: by signed addresses",
        handler!(credentials),
    )
    .body::<mlflow::VersionRef>()
    .answers::<Credentials>()
    .reads(Method::POST),
    Route::change(
        "registry.emit_lineage",
        Method::POST,
        "/api/2.0/mlflow/unity-catalog/model-versions/emit-lineage",
        Access::Principal,
        "Lineage is not kept",
        handler!(emit_lineage),
    )
    .body::<Value>(),
];

#[derive(Serialize, JsonSchema)]
struct UploadsByFiles {
    is_databricks_sdk_models_artifact_repository_enabled: bool,
}

#[derive(Serialize, JsonSchema)]
struct Credentials {
    credentials: super::signed::Storage,
}

/// Uploads come as one PUT per file, or in parts, instead of through the object store of a cloud.
async fn uploads_by_files(_call: &Call) -> Result<Answer, ApiError> {
    json(&UploadsByFiles { is_databricks_sdk_models_artifact_repository_enabled: true })
}

/// A client that does not use the Files API asks for credentials of an object store. It learns that this server keeps the
/// files, upon which it asks for a signed address of each.
async fn credentials(call: &mut Call) -> Result<Answer, ApiError> {
    let (_, _, named) = call.json::<mlflow::VersionRef>().await?;
    let model = call.model(&named.name).await?;
    call.app.control.registry.version(model.workspace, &model.name, named.number()?).await?;
    json(&Credentials { credentials: super::signed::storage() })
}

/// Lineage is not kept; the client sends it along and does not look at the answer.
async fn emit_lineage(_call: &Call) -> Result<Answer, ApiError> {
    done()
}

async fn download_uri(call: &Call) -> Result<Answer, ApiError> {
    let (_, _, version) = mlflow::asked_version(call, &call.query()?).await?;
    json(&mlflow::DownloadUri { artifact_uri: files::location(&version.name, version.version) })
}
