//! Logged models: what MLflow 3 makes of `log_model`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::registry::{Paging, Tag, tags_of};
use super::super::{Answer, Call, done, json};
use super::{check_name, entries_of, no_filter, put_entries};
use crate::access::level_of;
use crate::clock::now_ms;
use crate::error::ApiError;
use crate::tracking::{DEFAULT_EXPERIMENT, LoggedModel, Run, Tracked, new_id};

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "NewLoggedModel")]
pub(super) struct NewModel {
    experiment_id: Option<String>,
    name: Option<String>,
    model_type: Option<String>,
    source_run_id: Option<String>,
    #[serde(default)]
    params: Vec<Tag>,
    #[serde(default)]
    tags: Vec<Tag>,
}

/// What is to change.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "LoggedModelChange")]
pub(super) struct Change {
    status: Option<String>,
    #[serde(default)]
    tags: Vec<Tag>,
    #[serde(default)]
    params: Vec<Tag>,
}

/// As MLflow names them.
const STATUSES: [&str; 3] = ["LOGGED_MODEL_PENDING", "LOGGED_MODEL_READY", "LOGGED_MODEL_UPLOAD_FAILED"];

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "LoggedModelSearch")]
pub(super) struct Search {
    #[serde(default)]
    experiment_ids: Vec<String>,
    /// Refused: there is nothing to filter by.
    filter: Option<String>,
    #[serde(flatten)]
    paging: Paging,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OneLoggedModel")]
pub(super) struct OneModel {
    model: DescribedModel,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "LoggedModels")]
pub(super) struct Models {
    models: Vec<DescribedModel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "LoggedModel")]
struct DescribedModel {
    info: Info,
    data: Data,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "LoggedModelInfo")]
struct Info {
    model_id: String,
    experiment_id: String,
    name: String,
    creation_timestamp_ms: u64,
    last_updated_timestamp_ms: u64,
    artifact_uri: String,
    status: String,
    model_type: String,
    source_run_id: String,
    tags: Vec<Tag>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "LoggedModelData")]
struct Data {
    params: Vec<Tag>,
    /// None: metrics are the run's.
    metrics: [(); 0],
}

impl DescribedModel {
    fn of(model: &LoggedModel) -> DescribedModel {
        let info = Info {
            model_id: model.id.clone(),
            experiment_id: model.experiment.clone(),
            name: model.name.clone(),
            creation_timestamp_ms: model.creation_timestamp,
            last_updated_timestamp_ms: model.last_updated_timestamp,
            artifact_uri: format!("mlflow-artifacts:/{}/models/{}/artifacts", model.experiment, model.id),
            status: model.status.clone(),
            model_type: model.model_type.clone().unwrap_or_default(),
            source_run_id: model.run.clone().unwrap_or_default(),
            tags: tags_of(&model.tags),
        };
        DescribedModel { info, data: Data { params: tags_of(&model.params), metrics: [] } }
    }
}

fn answer(model: &LoggedModel) -> Result<Answer, ApiError> {
    json(&OneModel { model: DescribedModel::of(model) })
}

pub(super) async fn create(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<NewModel>().await?;
    let tracking = &app.control.registry.tracking;
    let experiment = input.experiment_id.as_deref().unwrap_or(DEFAULT_EXPERIMENT);
    let experiment = tracking.experiment(principal.workspace, experiment).await?;
    let run = input.source_run_id.filter(|run| !run.is_empty());
    if let Some(run) = &run {
        tracking.get::<Run>(&principal, run).await?;
    }
    let id = format!("m-{}", new_id()?);
    let name = input.name.unwrap_or_else(|| id.clone());
    check_name("a model", &name)?;
    let model_type = input.model_type.filter(|model_type| !model_type.is_empty());
    if let Some(model_type) = &model_type {
        check_name("a model's type", model_type)?;
    }
    let now = now_ms();
    let model = LoggedModel {
        workspace: principal.workspace,
        id,
        name,
        experiment: experiment.id,
        run,
        owner: principal.id,
        status: STATUSES[0].to_owned(),
        model_type,
        creation_timestamp: now,
        last_updated_timestamp: now,
        params: entries_of(&input.params)?,
        tags: entries_of(&input.tags)?,
        files: Default::default(),
    };
    tracking.add(&model).await?;
    answer(&model)
}

pub(super) async fn get(call: &Call) -> Result<Answer, ApiError> {
    let tracking = &call.app.control.registry.tracking;
    answer(&tracking.get(&*call.principal()?, call.parameter("model_id")).await?)
}

pub(super) async fn search(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<Search>().await?;
    no_filter(input.filter.as_deref())?;
    let mut models: Vec<LoggedModel> = app.control.registry.tracking.list(principal.workspace).await?;
    models.retain(|model| {
        level_of(&principal, model.object()).is_some() && input.experiment_ids.contains(&model.experiment)
    });
    let (page, next_page_token) = input.paging.page(&models)?;
    json(&Models { models: page.iter().map(DescribedModel::of).collect(), next_page_token })
}

/// Changes the model that the path names.
async fn change(
    call: &mut Call,
    make: impl FnOnce(&mut LoggedModel, &Change) -> Result<(), ApiError>,
) -> Result<LoggedModel, ApiError> {
    // Before the body is read, as where a route's level is asked for.
    let tracking = &call.app.control.registry.tracking;
    tracking.get::<LoggedModel>(&*call.principal()?, call.parameter("model_id")).await?;
    let (app, principal, input) = call.json::<Change>().await?;
    let make = |model: &mut LoggedModel| {
        model.last_updated_timestamp = now_ms();
        make(model, &input)
    };
    app.control.registry.tracking.change(&principal, call.parameter("model_id"), make).await
}

pub(super) async fn finalize(call: &mut Call) -> Result<Answer, ApiError> {
    let changed = change(call, |model, input| {
        let status = input.status.as_deref().unwrap_or_default();
        if !STATUSES.contains(&status) {
            return Err(ApiError::invalid(format!("status '{status}' is not one of {}", STATUSES.join(", "))));
        }
        status.clone_into(&mut model.status);
        Ok(())
    });
    answer(&changed.await?)
}

pub(super) async fn delete(call: &Call) -> Result<Answer, ApiError> {
    let tracking = &call.app.control.registry.tracking;
    tracking.remove::<LoggedModel>(&*call.principal()?, call.parameter("model_id")).await?;
    done()
}

pub(super) async fn set_tags(call: &mut Call) -> Result<Answer, ApiError> {
    answer(&change(call, |model, input| put_entries(&mut model.tags, &input.tags)).await?)
}

pub(super) async fn delete_tag(call: &mut Call) -> Result<Answer, ApiError> {
    let key = call.parameter("key").to_owned();
    change(call, |model, _| {
        model.tags.remove(&key);
        Ok(())
    })
    .await?;
    done()
}

pub(super) async fn log_params(call: &mut Call) -> Result<Answer, ApiError> {
    change(call, |model, input| put_entries(&mut model.params, &input.params)).await?;
    done()
}
