//! The part of MLflow's tracking API that its clients need to log a model and register it, on the paths of `mlflow server`.
//!
//! - here: what the server can do, and experiments; [`runs`], [`logged_models`]; [`artifacts`]: their files.

mod artifacts;
mod logged_models;
mod runs;

use hyper::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::registry::{Paging, Tag, is_get, tags_of};
use super::routes::{Access, Route, handler};
use super::{Answer, Call, done, json};
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
    )
    .answers::<TrackingServer>(),
    Route::change(
        "tracking.create_experiment",
        Method::POST,
        "/api/2.0/mlflow/experiments/create",
        P,
        "Make an experiment",
        handler!(create_experiment),
    )
    .body::<ExperimentInput>()
    .answers::<ExperimentId>(),
    Route::get(
        "tracking.get_experiment",
        "/api/2.0/mlflow/experiments/get",
        P,
        "Get an experiment",
        handler!(get_experiment),
    )
    .query::<ExperimentRef>()
    .answers::<OneExperiment>(),
    Route::get(
        "tracking.get_experiment_by_name",
        "/api/2.0/mlflow/experiments/get-by-name",
        P,
        "Get an experiment by its name",
        handler!(get_experiment_by_name),
    )
    .query::<ExperimentName>()
    .answers::<OneExperiment>(),
    Route::get("tracking.list_experiments", EXPERIMENTS, P, "Search the experiments", handler!(search_experiments))
        .query::<ExperimentSearch>()
        .answers::<Experiments>(),
    Route::get("tracking.search_experiments", EXPERIMENTS, P, "Search the experiments", handler!(search_experiments))
        .reads(Method::POST)
        .body::<ExperimentSearch>()
        .answers::<Experiments>(),
    Route::change(
        "tracking.tag_experiment",
        Method::POST,
        "/api/2.0/mlflow/experiments/set-experiment-tag",
        P,
        "Set a tag of an experiment",
        handler!(tag_experiment),
    )
    .body::<ExperimentInput>(),
    Route::change(
        "tracking.delete_experiment",
        Method::POST,
        "/api/2.0/mlflow/experiments/delete",
        P,
        "Delete an experiment",
        handler!(delete_experiment),
    )
    .body::<ExperimentInput>(),
    Route::change("runs.create", Method::POST, "/api/2.0/mlflow/runs/create", P, "Begin a run", handler!(runs::create))
        .body::<runs::NewRun>()
        .answers::<runs::OneRun>(),
    Route::get("runs.get", "/api/2.0/mlflow/runs/get", P, "Get a run", handler!(runs::get))
        .query::<runs::RunRef>()
        .answers::<runs::OneRun>(),
    Route::get(
        "runs.metric_history",
        "/api/2.0/mlflow/metrics/get-history",
        P,
        "The last value of a metric",
        handler!(runs::metric_history),
    )
    .query::<runs::MetricRef>()
    .answers::<runs::Metrics>(),
    Route::get("runs.search", "/api/2.0/mlflow/runs/search", P, "The runs of experiments", handler!(runs::search))
        .reads(Method::POST)
        .body::<runs::Search>()
        .answers::<runs::Runs>(),
    Route::change(
        "runs.update",
        Method::POST,
        "/api/2.0/mlflow/runs/update",
        P,
        "Change a run",
        handler!(runs::update),
    )
    .body::<runs::Change>()
    .answers::<runs::UpdatedRun>(),
    Route::change(
        "runs.delete",
        Method::POST,
        "/api/2.0/mlflow/runs/delete",
        P,
        "Delete a run",
        handler!(runs::delete),
    )
    .body::<runs::Change>(),
    Route::change(
        "runs.log_metric",
        Method::POST,
        "/api/2.0/mlflow/runs/log-metric",
        P,
        "Set a metric of a run",
        handler!(runs::log_metric),
    )
    .body::<runs::Change>(),
    Route::change(
        "runs.log_parameter",
        Method::POST,
        "/api/2.0/mlflow/runs/log-parameter",
        P,
        "Set a parameter of a run",
        handler!(runs::log_parameter),
    )
    .body::<runs::Change>(),
    Route::change(
        "runs.set_tag",
        Method::POST,
        "/api/2.0/mlflow/runs/set-tag",
        P,
        "Tag a run",
        handler!(runs::set_tag),
    )
    .body::<runs::Change>(),
    Route::change(
        "runs.delete_tag",
        Method::POST,
        "/api/2.0/mlflow/runs/delete-tag",
        P,
        "Delete a tag of a run",
        handler!(runs::delete_tag),
    )
    .body::<runs::Change>(),
    Route::change(
        "runs.log_batch",
        Method::POST,
        "/api/2.0/mlflow/runs/log-batch",
        P,
        "Set metrics, parameters and tags of a run",
        handler!(runs::log_batch),
    )
    .body::<runs::Change>(),
    Route::change(
        "runs.log_model",
        Method::POST,
        "/api/2.0/mlflow/runs/log-model",
        P,
        "What older clients say of a model",
        handler!(runs::log_model),
    )
    .body::<runs::Change>(),
    Route::change(
        "runs.outputs",
        Method::POST,
        "/api/2.0/mlflow/runs/outputs",
        P,
        "Name the models that a run made",
        handler!(runs::outputs),
    )
    .body::<runs::Change>(),
    Route::change(
        "logged_models.create",
        Method::POST,
        "/api/2.0/mlflow/logged-models",
        P,
        "Log a model",
        handler!(logged_models::create),
    )
    .body::<logged_models::NewModel>()
    .answers::<logged_models::OneModel>(),
    Route::get(
        "logged_models.search",
        "/api/2.0/mlflow/logged-models/search",
        P,
        "The logged models of experiments",
        handler!(logged_models::search),
    )
    .reads(Method::POST)
    .body::<logged_models::Search>()
    .answers::<logged_models::Models>(),
    Route::get("logged_models.get", LOGGED_MODEL, P, "Get a logged model", handler!(logged_models::get))
        .answers::<logged_models::OneModel>(),
    Route::change(
        "logged_models.finalize",
        Method::PATCH,
        LOGGED_MODEL,
        P,
        "Say that a logged model is complete",
        handler!(logged_models::finalize),
    )
    .body::<logged_models::Change>()
    .answers::<logged_models::OneModel>(),
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
    )
    .body::<logged_models::Change>()
    .answers::<logged_models::OneModel>(),
    Route::change(
        "logged_models.delete_tag",
        Method::DELETE,
        "/api/2.0/mlflow/logged-models/{model_id}/tags/{key}",
        P,
        "Delete a tag of a logged model",
        handler!(logged_models::delete_tag),
    )
    .body::<logged_models::Change>(),
    Route::change(
        "logged_models.log_params",
        Method::POST,
        "/api/2.0/mlflow/logged-models/{model_id}/params",
        P,
        "Set parameters of a logged model",
        handler!(logged_models::log_params),
    )
    .body::<logged_models::Change>(),
    Route::get(
        "artifacts.of_run",
        "/api/2.0/mlflow/artifacts/list",
        P,
        "List the files of a run",
        handler!(artifacts::of_run),
    )
    .query::<artifacts::OfRun>()
    .answers::<artifacts::RootedFiles>(),
    Route::get(
        "artifacts.of_logged_model",
        "/api/2.0/mlflow/logged-models/{model_id}/artifacts/directories",
        P,
        "List the files of a logged model",
        handler!(artifacts::of_logged_model),
    )
    .query::<artifacts::OfLoggedModel>()
    .answers::<artifacts::RootedFiles>(),
    Route::get("artifacts.list", ARTIFACTS, P, "List files below a path", handler!(artifacts::list))
        .query::<artifacts::Below>()
        .answers::<artifacts::Files>(),
    Route::get("artifacts.download", ARTIFACT, P, "Download a file", handler!(artifacts::download)).gives_file(),
    Route::change("artifacts.upload", Method::PUT, ARTIFACT, P, "Upload a file", handler!(artifacts::upload))
        .takes_file(),
    Route::change("artifacts.delete", Method::DELETE, ARTIFACT, P, "Delete a file", handler!(artifacts::delete)),
];

const LOGGED_MODEL: &str = "/api/2.0/mlflow/logged-models/{model_id}";
const ARTIFACTS: &str = "/api/2.0/mlflow-artifacts/artifacts";
const ARTIFACT: &str = "/api/2.0/mlflow-artifacts/artifacts/{*path}";

/// Files come whole; large ones are the Files API's.
async fn server_info(_call: &Call) -> Result<Answer, ApiError> {
    json(&TrackingServer { store_type: "Tessera", workspaces_enabled: false, multipart_uploads_enabled: false })
}

/// An experiment, and what to do with it.
#[derive(Deserialize, JsonSchema)]
struct ExperimentInput {
    #[serde(default)]
    name: String,
    #[serde(default)]
    experiment_id: String,
    #[serde(default)]
    tags: Vec<Tag>,
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: String,
}

#[derive(Serialize, JsonSchema)]
struct TrackingServer {
    store_type: &'static str,
    workspaces_enabled: bool,
    multipart_uploads_enabled: bool,
}

#[derive(Deserialize, JsonSchema)]
struct ExperimentRef {
    experiment_id: String,
}

#[derive(Deserialize, JsonSchema)]
struct ExperimentName {
    experiment_name: String,
}

#[derive(Default, Deserialize, JsonSchema)]
struct ExperimentSearch {
    /// Refused: there is nothing to filter by.
    filter: Option<String>,
    #[serde(flatten)]
    paging: Paging,
}

#[derive(Serialize, JsonSchema)]
struct ExperimentId {
    experiment_id: String,
}

#[derive(Serialize, JsonSchema)]
struct OneExperiment {
    experiment: DescribedExperiment,
}

#[derive(Serialize, JsonSchema)]
struct Experiments {
    experiments: Vec<DescribedExperiment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Experiment")]
struct DescribedExperiment {
    experiment_id: String,
    name: String,
    artifact_location: String,
    lifecycle_stage: &'static str,
    creation_time: u64,
    last_update_time: u64,
    tags: Vec<Tag>,
}

impl DescribedExperiment {
    fn of(experiment: &Experiment) -> DescribedExperiment {
        DescribedExperiment {
            experiment_id: experiment.id.clone(),
            name: experiment.name.clone(),
            artifact_location: format!("mlflow-artifacts:/{}", experiment.id),
            lifecycle_stage: "active",
            creation_time: experiment.creation_timestamp,
            last_update_time: experiment.creation_timestamp,
            tags: tags_of(&experiment.tags),
        }
    }
}

/// Parameters or labels of a new thing.
fn entries_of(sent: &[Tag]) -> Result<Tags, ApiError> {
    let mut entries = Tags::new();
    put_entries(&mut entries, sent)?;
    Ok(entries)
}

fn put_entries(entries: &mut Tags, sent: &[Tag]) -> Result<(), ApiError> {
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
    json(&ExperimentId { experiment_id: made.id })
}

async fn get_experiment(call: &Call) -> Result<Answer, ApiError> {
    let workspace = call.principal()?.workspace;
    let found =
        call.app.control.registry.tracking.experiment(workspace, &call.query::<ExperimentRef>()?.experiment_id).await?;
    json(&OneExperiment { experiment: DescribedExperiment::of(&found) })
}

async fn get_experiment_by_name(call: &Call) -> Result<Answer, ApiError> {
    let (workspace, asked) = (call.principal()?.workspace, call.query::<ExperimentName>()?);
    let found = call.app.control.registry.tracking.experiment_by_name(workspace, &asked.experiment_name).await?;
    json(&OneExperiment { experiment: DescribedExperiment::of(&found) })
}

/// All experiments: filters are not understood here, so a client that sends one is told.
async fn search_experiments(call: &mut Call) -> Result<Answer, ApiError> {
    let input = match is_get(call) {
        true => call.query::<ExperimentSearch>()?,
        false => call.json::<ExperimentSearch>().await?.2,
    };
    no_filter(input.filter.as_deref())?;
    let found = call.app.control.registry.tracking.experiments(call.principal()?.workspace).await?;
    let (page, next_page_token) = input.paging.page(&found)?;
    json(&Experiments { experiments: page.iter().map(DescribedExperiment::of).collect(), next_page_token })
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
    done()
}

async fn delete_experiment(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<ExperimentInput>().await?;
    app.control.registry.tracking.delete_experiment(&principal, &input.experiment_id).await?;
    done()
}
