//! The part of MLflow's tracking API that its clients need to log a model and register it, on the paths of `mlflow server`.
//!
//! - here: what the server can do, and experiments; [`runs`], [`logged_models`]; [`artifacts`]: their files.

mod artifacts;
mod logged_models;
mod runs;

use hyper::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::registry::{Paging, TagInput, tags_json};
use super::routes::{Access, Route, handler};
use super::{Answer, Call, json};
use crate::error::ApiError;
use crate::registry::names::Tags;
use crate::tracking::Experiment;
use crate::tracking::records::put_entry;

/// Longest name of an experiment or run, in bytes.
const NAME_BYTES_MAX: usize = 500;

const P: Access = Access::Principal;
const EXPERIMENTS: &str = "/api/2.0/mlflow/experiments/search";

/// All of them, because a list of lists cannot be joined in a constant.
pub(super) const ROUTES: &[Route] = &[
    Route::get(
        "tracking.server_info",
        "/api/3.0/mlflow/server-info",
        P,
        "What the server can do",
        handler!(server_info),
    ),
    Route::change(
        "tracking.create_experiment",
        Method::POST,
        "/api/2.0/mlflow/experiments/create",
        P,
        "Make an experiment",
        handler!(create_experiment),
    ),
    Route::get(
        "tracking.get_experiment",
        "/api/2.0/mlflow/experiments/get",
        P,
        "Get an experiment",
        handler!(get_experiment),
    ),
    Route::get(
        "tracking.get_experiment_by_name",
        "/api/2.0/mlflow/experiments/get-by-name",
        P,
        "Get an experiment by its name",
        handler!(get_experiment_by_name),
    ),
    Route::get("tracking.list_experiments", EXPERIMENTS, P, "Search the experiments", handler!(search_experiments)),
    Route::get("tracking.search_experiments", EXPERIMENTS, P, "Search the experiments", handler!(search_experiments))
        .reads(Method::POST),
    Route::change(
        "tracking.tag_experiment",
        Method::POST,
        "/api/2.0/mlflow/experiments/set-experiment-tag",
        P,
        "Set a tag of an experiment",
        handler!(tag_experiment),
    ),
    Route::change(
        "tracking.delete_experiment",
        Method::POST,
        "/api/2.0/mlflow/experiments/delete",
        P,
        "Delete an experiment",
        handler!(delete_experiment),
    ),
    Route::change("runs.create", Method::POST, "/api/2.0/mlflow/runs/create", P, "Begin a run", handler!(runs::create)),
    Route::get("runs.get", "/api/2.0/mlflow/runs/get", P, "Get a run", handler!(runs::get)),
    Route::get(
        "runs.metric_history",
        "/api/2.0/mlflow/metrics/get-history",
        P,
        "The last value of a metric",
        handler!(runs::metric_history),
    ),
    Route::get("runs.search", "/api/2.0/mlflow/runs/search", P, "The runs of experiments", handler!(runs::search))
        .reads(Method::POST),
    Route::change(
        "runs.update",
        Method::POST,
        "/api/2.0/mlflow/runs/update",
        P,
        "Change a run",
        handler!(runs::update),
    ),
    Route::change(
        "runs.delete",
        Method::POST,
        "/api/2.0/mlflow/runs/delete",
        P,
        "Delete a run",
        handler!(runs::delete),
    ),
    Route::change(
        "runs.log_metric",
        Method::POST,
        "/api/2.0/mlflow/runs/log-metric",
        P,
        "Set a metric of a run",
        handler!(runs::log_metric),
    ),
    Route::change(
        "runs.log_parameter",
        Method::POST,
        "/api/2.0/mlflow/runs/log-parameter",
        P,
        "Set a parameter of a run",
        handler!(runs::log_parameter),
    ),
    Route::change(
        "runs.set_tag",
        Method::POST,
        "/api/2.0/mlflow/runs/set-tag",
        P,
        "Tag a run",
        handler!(runs::set_tag),
    ),
    Route::change(
        "runs.delete_tag",
        Method::POST,
        "/api/2.0/mlflow/runs/delete-tag",
        P,
        "Delete a tag of a run",
        handler!(runs::delete_tag),
    ),
    Route::change(
        "runs.log_batch",
        Method::POST,
        "/api/2.0/mlflow/runs/log-batch",
        P,
        "Set metrics, parameters and tags of a run",
        handler!(runs::log_batch),
    ),
    Route::change(
        "runs.log_model",
        Method::POST,
        "/api/2.0/mlflow/runs/log-model",
        P,
        "What older clients say of a model",
        handler!(runs::log_model),
    ),
    Route::change(
        "runs.outputs",
        Method::POST,
        "/api/2.0/mlflow/runs/outputs",
        P,
        "Name the models that a run made",
        handler!(runs::outputs),
    ),
    Route::change(
        "logged_models.create",
        Method::POST,
        "/api/2.0/mlflow/logged-models",
        P,
        "Log a model",
        handler!(logged_models::create),
    ),
    Route::get(
        "logged_models.search",
        "/api/2.0/mlflow/logged-models/search",
        P,
        "The logged models of experiments",
        handler!(logged_models::search),
    )
    .reads(Method::POST),
    Route::get("logged_models.get", LOGGED_MODEL, P, "Get a logged model", handler!(logged_models::get)),
    Route::change(
        "logged_models.finalize",
        Method::PATCH,
        LOGGED_MODEL,
        P,
        "Say that a logged model is complete",
        handler!(logged_models::finalize),
    ),
    Route::change(
        "logged_models.delete",
        Method::DELETE,
        LOGGED_MODEL,
        P,
        "Delete a logged model",
        handler!(logged_models::delete),
    ),
    Route::change(
        "logged_models.set_tags",
        Method::PATCH,
        "/api/2.0/mlflow/logged-models/{model_id}/tags",
        P,
        "Set tags of a logged model",
        handler!(logged_models::set_tags),
    ),
    Route::change(
        "logged_models.delete_tag",
        Method::DELETE,
        "/api/2.0/mlflow/logged-models/{model_id}/tags/{key}",
        P,
        "Delete a tag of a logged model",
        handler!(logged_models::delete_tag),
    ),
    Route::change(
        "logged_models.log_params",
        Method::POST,
        "/api/2.0/mlflow/logged-models/{model_id}/params",
        P,
        "Set parameters of a logged model",
        handler!(logged_models::log_params),
    ),
    Route::get(
        "artifacts.of_run",
        "/api/2.0/mlflow/artifacts/list",
        P,
        "List the files of a run",
        handler!(artifacts::of_run),
    ),
    Route::get(
        "artifacts.of_logged_model",
        "/api/2.0/mlflow/logged-models/{model_id}/artifacts/directories",
        P,
        "List the files of a logged model",
        handler!(artifacts::of_logged_model),
    ),
    Route::get("artifacts.list", ARTIFACTS, P, "List files below a path", handler!(artifacts::list)),
    Route::get("artifacts.download", ARTIFACT, P, "Download a file", handler!(artifacts::download)),
    Route::change("artifacts.upload", Method::PUT, ARTIFACT, P, "Upload a file", handler!(artifacts::upload)),
    Route::change("artifacts.delete", Method::DELETE, ARTIFACT, P, "Delete a file", handler!(artifacts::delete)),
];

const LOGGED_MODEL: &str = "/api/2.0/mlflow/logged-models/{model_id}";
const ARTIFACTS: &str = "/api/2.0/mlflow-artifacts/artifacts";
const ARTIFACT: &str = "/api/2.0/mlflow-artifacts/artifacts/{*path}";

/// Files come whole; large ones are the Files API's.
async fn server_info(_call: &Call) -> Result<Answer, ApiError> {
    json(&json!({ "store_type": "Tessera", "workspaces_enabled": false, "multipart_uploads_enabled": false }))
}

#[derive(Deserialize)]
struct ExperimentInput {
    #[serde(default)]
    name: String,
    #[serde(default)]
    experiment_id: String,
    #[serde(default)]
    tags: Vec<TagInput>,
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: String,
}

fn experiment_json(experiment: &Experiment) -> Value {
    json!({
        "experiment_id": experiment.id,
        "name": experiment.name,
        "artifact_location": format!("mlflow-artifacts:/{}", experiment.id),
        "lifecycle_stage": "active",
        "creation_time": experiment.creation_timestamp,
        "last_update_time": experiment.creation_timestamp,
        "tags": tags_json(&experiment.tags),
    })
}

/// Parameters or labels of a new thing.
fn entries_of(sent: &[TagInput]) -> Result<Tags, ApiError> {
    let mut entries = Tags::new();
    put_entries(&mut entries, sent)?;
    Ok(entries)
}

fn put_entries(entries: &mut Tags, sent: &[TagInput]) -> Result<(), ApiError> {
    sent.iter().try_for_each(|entry| put_entry(entries, &entry.key, &entry.value))
}

fn check_name(what: &str, name: &str) -> Result<(), ApiError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(ApiError::invalid(format!("'{name}' is not a name of {what}: use 1 to {NAME_BYTES_MAX} bytes")));
    }
    Ok(())
}

async fn create_experiment(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<ExperimentInput>().await?;
    check_name("an experiment", &input.name)?;
    let new = Experiment { name: input.name, tags: entries_of(&input.tags)?, ..Experiment::of(&principal) };
    let made = app.control.registry.tracking.create_experiment(&principal, new).await?;
    json(&json!({ "experiment_id": made.id }))
}

async fn get_experiment(call: &Call) -> Result<Answer, ApiError> {
    let workspace = call.principal()?.workspace;
    let found = call.app.control.registry.tracking.experiment(workspace, &call.needed("experiment_id")?).await?;
    json(&json!({ "experiment": experiment_json(&found) }))
}

async fn get_experiment_by_name(call: &Call) -> Result<Answer, ApiError> {
    let (workspace, name) = (call.principal()?.workspace, call.needed("experiment_name")?);
    let found = call.app.control.registry.tracking.experiment_by_name(workspace, &name).await?;
    json(&json!({ "experiment": experiment_json(&found) }))
}

/// All experiments: filters are not understood here, so a client that sends one is told.
async fn search_experiments(call: &mut Call) -> Result<Answer, ApiError> {
    #[derive(Default, Deserialize)]
    struct Input {
        filter: Option<String>,
        #[serde(flatten)]
        paging: Paging,
    }
    let mut input = call.json::<Input>().await?.2;
    if call.head.method == Method::GET {
        input = Input { filter: call.query("filter"), paging: Paging::of_query(call) };
    }
    no_filter(input.filter.as_deref())?;
    let found = call.app.control.registry.tracking.experiments(call.principal()?.workspace).await?;
    let mut answer = json!({});
    input.paging.fill(&mut answer, "experiments", &found, experiment_json)?;
    json(&answer)
}

fn no_filter(filter: Option<&str>) -> Result<(), ApiError> {
    match filter.map(str::trim).filter(|filter| !filter.is_empty()) {
        None => Ok(()),
        Some(filter) => Err(ApiError::invalid(format!(
            "filter '{filter}' is not supported: this server keeps runs to register models from; ask without a filter"
        ))),
    }
}

async fn tag_experiment(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<ExperimentInput>().await?;
    let set = |experiment: &mut Experiment| put_entry(&mut experiment.tags, &input.key, &input.value);
    app.control.registry.tracking.change_experiment(&principal, &input.experiment_id, set).await?;
    json(&Map::new())
}

async fn delete_experiment(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<ExperimentInput>().await?;
    app.control.registry.tracking.delete_experiment(&principal, &input.experiment_id).await?;
    json(&Map::new())
}
