//! Runs.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::registry::{Paging, TagInput, tags_json};
use super::super::{Answer, Call, json};
use super::{check_name, entries_of, no_filter, put_entries};
use crate::access::level_of;
use crate::error::ApiError;
use crate::tracking::records::{check_key, put_entry};
use crate::tracking::{DEFAULT_EXPERIMENT, Metric, Run, Tracked};

/// As MLflow names what becomes of a run.
const STATUSES: [&str; 5] = ["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"];

#[derive(Deserialize)]
struct NewRun {
    experiment_id: Option<String>,
    run_name: Option<String>,
    start_time: Option<u64>,
    #[serde(default)]
    tags: Vec<TagInput>,
}

#[derive(Deserialize)]
struct MetricInput {
    key: String,
    value: Value,
    #[serde(default)]
    timestamp: i64,
    #[serde(default)]
    step: i64,
}

#[derive(Deserialize)]
struct OutputInput {
    model_id: String,
    #[serde(default)]
    step: i64,
}

/// A run, and what to do with it. Older clients say `run_uuid`.
#[derive(Deserialize)]
struct Change {
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
    params: Vec<TagInput>,
    #[serde(default)]
    tags: Vec<TagInput>,
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

fn info_json(run: &Run) -> Value {
    let mut info = json!({
        "run_id": run.id,
        "run_uuid": run.id,
        "run_name": run.name,
        "experiment_id": run.experiment,
        "user_id": run.creator,
        "status": run.status,
        "start_time": run.start_time,
        "artifact_uri": format!("mlflow-artifacts:/{}/{}/artifacts", run.experiment, run.id),
        "lifecycle_stage": "active",
    });
    if let Some(end_time) = run.end_time {
        info["end_time"] = json!(end_time);
    }
    info
}

fn metric_json(key: &str, metric: &Metric) -> Value {
    json!({ "key": key, "value": metric.value, "timestamp": metric.timestamp, "step": metric.step })
}

fn run_json(run: &Run) -> Value {
    let metric = |(key, metric): (&String, &Metric)| metric_json(key, metric);
    let output = |(id, step): (&String, &i64)| json!({ "model_id": id, "step": step });
    json!({
        "info": info_json(run),
        "data": {
            "metrics": run.metrics.iter().map(metric).collect::<Value>(),
            "params": tags_json(&run.params),
            "tags": tags_json(&run.tags),
        },
        "inputs": {},
        "outputs": { "model_outputs": run.outputs.iter().map(output).collect::<Value>() },
    })
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
    json(&json!({ "run": run_json(&run) }))
}

pub(super) async fn get(call: &Call) -> Result<Answer, ApiError> {
    let id = call.query("run_id").filter(|id| !id.is_empty()).map_or_else(|| call.needed("run_uuid"), Ok)?;
    let run: Run = call.app.control.registry.tracking.get(&*call.principal()?, &id).await?;
    json(&json!({ "run": run_json(&run) }))
}

/// MLflow looks for the values that belong to a model's step. Of each metric only the last value is kept.
pub(super) async fn metric_history(call: &Call) -> Result<Answer, ApiError> {
    let id = call.query("run_id").filter(|id| !id.is_empty()).map_or_else(|| call.needed("run_uuid"), Ok)?;
    let key = call.needed("metric_key")?;
    let run: Run = call.app.control.registry.tracking.get(&*call.principal()?, &id).await?;
    let last: Vec<Value> = run.metrics.get(&key).map(|metric| metric_json(&key, metric)).into_iter().collect();
    json(&json!({ "metrics": last }))
}

pub(super) async fn search(call: &mut Call) -> Result<Answer, ApiError> {
    #[derive(Deserialize)]
    struct Input {
        #[serde(default)]
        experiment_ids: Vec<String>,
        filter: Option<String>,
        #[serde(flatten)]
        paging: Paging,
    }
    let (app, principal, input) = call.json::<Input>().await?;
    no_filter(input.filter.as_deref())?;
    let mut runs: Vec<Run> = app.control.registry.tracking.list(principal.workspace).await?;
    runs.retain(|run| level_of(&principal, run.object()).is_some() && input.experiment_ids.contains(&run.experiment));
    let mut answer = json!({});
    input.paging.fill(&mut answer, "runs", &runs, run_json)?;
    json(&answer)
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
    json(&json!({ "run_info": info_json(&run.await?) }))
}

pub(super) async fn delete(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<Change>().await?;
    app.control.registry.tracking.remove::<Run>(&principal, &input.run_id).await?;
    json(&Map::new())
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
    json(&Map::new())
}

pub(super) async fn log_parameter(call: &mut Call) -> Result<Answer, ApiError> {
    change(call, |run, input| put_entry(&mut run.params, &input.key, &input.text())).await?;
    json(&Map::new())
}

pub(super) async fn set_tag(call: &mut Call) -> Result<Answer, ApiError> {
    change(call, |run, input| put_entry(&mut run.tags, &input.key, &input.text())).await?;
    json(&Map::new())
}

pub(super) async fn delete_tag(call: &mut Call) -> Result<Answer, ApiError> {
    change(call, |run, input| {
        run.tags.remove(&input.key);
        Ok(())
    })
    .await?;
    json(&Map::new())
}

pub(super) async fn log_batch(call: &mut Call) -> Result<Answer, ApiError> {
    change(call, |run, input| {
        input.metrics.iter().try_for_each(|metric| log(run, metric))?;
        put_entries(&mut run.params, &input.params)?;
        put_entries(&mut run.tags, &input.tags)
    })
    .await?;
    json(&Map::new())
}

/// The model's description is in its `MLmodel` file, which comes too.
pub(super) async fn log_model(call: &mut Call) -> Result<Answer, ApiError> {
    change(call, |_, _| Ok(())).await?;
    json(&Map::new())
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
    json(&Map::new())
}
