//! Runs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::registry::{Paging, Tag, tags_of};
use super::super::{Answer, Call, done, json};
use super::{check_name, entries_of, no_filter, put_entries};
use crate::access::level_of;
use crate::error::ApiError;
use crate::tracking::records::{check_key, put_entry};
use crate::tracking::{DEFAULT_EXPERIMENT, Metric, Run, Tracked};

/// As MLflow names what becomes of a run.
const STATUSES: [&str; 5] = ["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"];

#[derive(Deserialize, JsonSchema)]
pub(super) struct NewRun {
    experiment_id: Option<String>,
    run_name: Option<String>,
    start_time: Option<u64>,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Deserialize, JsonSchema)]
struct MetricInput {
    key: String,
    value: Value,
    #[serde(default)]
    timestamp: i64,
    #[serde(default)]
    step: i64,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "RunOutputInput")]
struct OutputInput {
    model_id: String,
    #[serde(default)]
    step: i64,
}

/// A run, and what to do with it. Older clients say `run_uuid`.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "RunChange")]
pub(super) struct Change {
    #[serde(default)]
    run_id: String,
    #[serde(default)]
    run_uuid: String,
    status: Option<String>,
    end_time: Option<u64>,
    run_name: Option<String>,
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: Value,
    #[serde(default)]
    timestamp: i64,
    #[serde(default)]
    step: i64,
    #[serde(default)]
    metrics: Vec<MetricInput>,
    #[serde(default)]
    params: Vec<Tag>,
    #[serde(default)]
    tags: Vec<Tag>,
    #[serde(default)]
    models: Vec<OutputInput>,
}

impl Change {
    fn text(&self) -> String {
        self.value.as_str().map_or_else(|| self.value.to_string(), str::to_owned)
    }

    fn metric(&self) -> MetricInput {
        let (key, value) = (self.key.clone(), self.value.clone());
        MetricInput { key, value, timestamp: self.timestamp, step: self.step }
    }
}

#[derive(Deserialize, JsonSchema)]
pub(super) struct RunRef {
    run_id: Option<String>,
    /// The older name of the same.
    run_uuid: Option<String>,
}

impl RunRef {
    fn id(&self) -> Result<&str, ApiError> {
        let id = self.run_id.as_deref().filter(|id| !id.is_empty()).or(self.run_uuid.as_deref());
        id.ok_or_else(|| ApiError::invalid("the query parameter 'run_id' is missing"))
    }
}

#[derive(Deserialize, JsonSchema)]
pub(super) struct MetricRef {
    #[serde(flatten)]
    run: RunRef,
    metric_key: String,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "RunSearch")]
pub(super) struct Search {
    #[serde(default)]
    experiment_ids: Vec<String>,
    /// Refused: there is nothing to filter by.
    filter: Option<String>,
    #[serde(flatten)]
    paging: Paging,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneRun {
    run: DescribedRun,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct UpdatedRun {
    run_info: RunInfo,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Runs {
    runs: Vec<DescribedRun>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Metrics {
    metrics: Vec<DescribedMetric>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Run")]
struct DescribedRun {
    info: RunInfo,
    data: RunData,
    inputs: RunInputs,
    outputs: RunOutputs,
}

#[derive(Serialize, JsonSchema)]
struct RunInfo {
    run_id: String,
    /// The older name of the same.
    run_uuid: String,
    run_name: String,
    experiment_id: String,
    user_id: String,
    status: String,
    start_time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<u64>,
    artifact_uri: String,
    lifecycle_stage: &'static str,
}

#[derive(Serialize, JsonSchema)]
struct RunData {
    metrics: Vec<DescribedMetric>,
    params: Vec<Tag>,
    tags: Vec<Tag>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Metric")]
struct DescribedMetric {
    key: String,
    /// A number, or the name of one that JSON does not have: `NaN`, `Infinity`, `-Infinity`.
    value: Value,
    timestamp: i64,
    step: i64,
}

/// None are kept.
#[derive(Serialize, JsonSchema)]
struct RunInputs {}

#[derive(Serialize, JsonSchema)]
struct RunOutputs {
    model_outputs: Vec<RunOutput>,
}

#[derive(Serialize, JsonSchema)]
struct RunOutput {
    model_id: String,
    step: i64,
}

impl RunInfo {
    fn of(run: &Run) -> RunInfo {
        RunInfo {
            run_id: run.id.clone(),
            run_uuid: run.id.clone(),
            run_name: run.name.clone(),
            experiment_id: run.experiment.clone(),
            user_id: run.creator.clone(),
            status: run.status.clone(),
            start_time: run.start_time,
            end_time: run.end_time,
            artifact_uri: format!("mlflow-artifacts:/{}/{}/artifacts", run.experiment, run.id),
            lifecycle_stage: "active",
        }
    }
}

impl DescribedMetric {
    fn of(key: &str, metric: &Metric) -> DescribedMetric {
        let Metric { value, timestamp, step } = metric.clone();
        DescribedMetric { key: key.to_owned(), value, timestamp, step }
    }
}

impl DescribedRun {
    fn of(run: &Run) -> DescribedRun {
        let output = |(id, step): (&String, &i64)| RunOutput { model_id: id.clone(), step: *step };
        DescribedRun {
            info: RunInfo::of(run),
            data: RunData {
                metrics: run.metrics.iter().map(|(key, metric)| DescribedMetric::of(key, metric)).collect(),
                params: tags_of(&run.params),
                tags: tags_of(&run.tags),
            },
            inputs: RunInputs {},
            outputs: RunOutputs { model_outputs: run.outputs.iter().map(output).collect() },
        }
    }
}

pub(super) async fn create(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<NewRun>().await?;
    let tracking = &app.control.registry.tracking;
    let experiment = input.experiment_id.as_deref().filter(|id| !id.is_empty()).unwrap_or(DEFAULT_EXPERIMENT);
    let experiment = tracking.experiment(principal.workspace, experiment).await?;
    let tags = entries_of(&input.tags)?;
    let name = input.run_name.filter(|name| !name.is_empty()).or_else(|| tags.get("mlflow.runName").cloned());
    if let Some(name) = &name {
        check_name("a run", name)?;
    }
    let mut run = Run { tags, ..Run::new(&principal, &experiment.id, name)? };
    run.tags.insert("mlflow.runName".to_owned(), run.name.clone());
    run.start_time = input.start_time.unwrap_or(run.start_time);
    tracking.add(&run).await?;
    json(&OneRun { run: DescribedRun::of(&run) })
}

pub(super) async fn get(call: &Call) -> Result<Answer, ApiError> {
    let asked: RunRef = call.query()?;
    let run: Run = call.app.control.registry.tracking.get(&*call.principal()?, asked.id()?).await?;
    json(&OneRun { run: DescribedRun::of(&run) })
}

/// MLflow looks for the values that belong to a model's step. Of each metric only the last value is kept.
pub(super) async fn metric_history(call: &Call) -> Result<Answer, ApiError> {
    let MetricRef { run, metric_key: key } = call.query()?;
    let run: Run = call.app.control.registry.tracking.get(&*call.principal()?, run.id()?).await?;
    let last = run.metrics.get(&key).map(|metric| DescribedMetric::of(&key, metric));
    json(&Metrics { metrics: last.into_iter().collect() })
}

pub(super) async fn search(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<Search>().await?;
    no_filter(input.filter.as_deref())?;
    let mut runs: Vec<Run> = app.control.registry.tracking.list(principal.workspace).await?;
    runs.retain(|run| level_of(&principal, run.object()).is_some() && input.experiment_ids.contains(&run.experiment));
    let (page, next_page_token) = input.paging.page(&runs)?;
    json(&Runs { runs: page.iter().map(DescribedRun::of).collect(), next_page_token })
}

/// Changes the run that a body names.
async fn change(
    call: &mut Call,
    make: impl FnOnce(&mut Run, &Change) -> Result<(), ApiError>,
) -> Result<Run, ApiError> {
    let (app, principal, input) = call.json::<Change>().await?;
    let id = if input.run_id.is_empty() { &input.run_uuid } else { &input.run_id };
    app.control.registry.tracking.change(&principal, id, |run: &mut Run| make(run, &input)).await
}

pub(super) async fn update(call: &mut Call) -> Result<Answer, ApiError> {
    let run = change(call, |run, input| {
        if let Some(status) = &input.status {
            if !STATUSES.contains(&status.as_str()) {
                let known = STATUSES.join(", ");
                return Err(ApiError::invalid(format!("status '{status}' is not one of {known}")));
            }
            run.status.clone_from(status);
        }
        run.end_time = input.end_time.or(run.end_time);
        if let Some(name) = input.run_name.as_ref().filter(|name| !name.is_empty()) {
            check_name("a run", name)?;
            run.name.clone_from(name);
        }
        Ok(())
    });
    json(&UpdatedRun { run_info: RunInfo::of(&run.await?) })
}

pub(super) async fn delete(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<Change>().await?;
    app.control.registry.tracking.remove::<Run>(&principal, &input.run_id).await?;
    done()
}

fn log(run: &mut Run, metric: &MetricInput) -> Result<(), ApiError> {
    let MetricInput { key, value, timestamp, step } = metric;
    let named = value.as_str().is_some_and(|text| ["NaN", "Infinity", "-Infinity"].contains(&text));
    if !value.is_number() && !named {
        return Err(ApiError::invalid(format!("metric '{key}' has the value {value}, which is not a number")));
    }
    run.log_metric(key, Metric { value: value.clone(), timestamp: *timestamp, step: *step })
}

pub(super) async fn log_metric(call: &mut Call) -> Result<Answer, ApiError> {
    change(call, |run, input| log(run, &input.metric())).await?;
    done()
}

pub(super) async fn log_parameter(call: &mut Call) -> Result<Answer, ApiError> {
    change(call, |run, input| put_entry(&mut run.params, &input.key, &input.text())).await?;
    done()
}

pub(super) async fn set_tag(call: &mut Call) -> Result<Answer, ApiError> {
    change(call, |run, input| put_entry(&mut run.tags, &input.key, &input.text())).await?;
    done()
}

pub(super) async fn delete_tag(call: &mut Call) -> Result<Answer, ApiError> {
    change(call, |run, input| {
        run.tags.remove(&input.key);
        Ok(())
    })
    .await?;
    done()
}

pub(super) async fn log_batch(call: &mut Call) -> Result<Answer, ApiError> {
    change(call, |run, input| {
        input.metrics.iter().try_for_each(|metric| log(run, metric))?;
        put_entries(&mut run.params, &input.params)?;
        put_entries(&mut run.tags, &input.tags)
    })
    .await?;
    done()
}

/// The model's description is in its `MLmodel` file, which comes too.
pub(super) async fn log_model(call: &mut Call) -> Result<Answer, ApiError> {
    change(call, |_, _| Ok(())).await?;
    done()
}

pub(super) async fn outputs(call: &mut Call) -> Result<Answer, ApiError> {
    change(call, |run, input| {
        for model in &input.models {
            check_key(&model.model_id)?;
            run.outputs.insert(model.model_id.clone(), model.step);
        }
        // As many models as MLflow's own tools make in one run, and few enough for its record.
        match run.outputs.len() {
            0..=50 => Ok(()),
            _ => Err(ApiError::invalid("a run may have at most 50 logged models: begin another run")),
        }
    })
    .await?;
    done()
}
