//! What the protocol says of models, over REST and gRPC alike.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Whole, wanted};
use crate::access::{Object, level_of};
use crate::api::{Call, invocations};
use crate::catalog::{Endpoint, EndpointRecord, EntityConfig};
use crate::error::{ApiError, ErrorCode};
use crate::observe::metrics::Totals;

/// What a model takes and gives, as its guest says it.
#[derive(Debug, Deserialize)]
pub(in crate::api) struct Metadata {
    pub(in crate::api) name: String,
    #[serde(default)]
    pub(in crate::api) versions: Vec<String>,
    #[serde(default)]
    pub(in crate::api) platform: String,
    pub(in crate::api) inputs: Vec<TensorMetadata>,
    pub(in crate::api) outputs: Vec<TensorMetadata>,
}

/// An input or an output; -1 stands for an axis of any size.
#[derive(Debug, Deserialize)]
pub(in crate::api) struct TensorMetadata {
    pub(in crate::api) name: String,
    pub(in crate::api) datatype: String,
    pub(in crate::api) shape: Vec<i64>,
}

/// A model's version in the index.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "InferenceIndexed")]
pub(in crate::api) struct Indexed {
    pub(in crate::api) name: String,
    pub(in crate::api) version: String,
    pub(in crate::api) state: &'static str,
    pub(in crate::api) reason: String,
}

/// What was counted of a model's version since the server's start.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "InferenceCounts")]
pub(in crate::api) struct Statistics {
    pub(in crate::api) name: String,
    pub(in crate::api) version: String,
    pub(in crate::api) inference_count: u64,
    pub(in crate::api) execution_count: u64,
    pub(in crate::api) inference_stats: Durations,
}

/// Where the time of requests went.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "InferenceDurations")]
pub(in crate::api) struct Durations {
    pub(in crate::api) success: Duration,
    pub(in crate::api) fail: Duration,
    pub(in crate::api) queue: Duration,
    pub(in crate::api) compute_infer: Duration,
}

/// So many times, so many nanoseconds together.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "InferenceDuration")]
pub(in crate::api) struct Duration {
    pub(in crate::api) count: u64,
    pub(in crate::api) ns: u64,
}

/// Asks a model's guest what it takes and gives.
///
/// # Errors
/// 404 when there is no such model or version, and what the guest says.
pub(in crate::api) async fn metadata(call: &Call, name: &str, version: &str) -> Result<Metadata, ApiError> {
    let answer = Whole::of(invocations::ask(call, name, wanted(version), "v2").await?)?;
    serde_json::from_slice(&answer.body).map_err(|error| {
        let message =
            format!("The component of '{name}' describes itself in a form that is not the protocol's: {error}.");
        ApiError::new(ErrorCode::BadRequest, message)
    })
}

/// A datatype as model configurations call it.
pub(in crate::api) fn config_datatype(datatype: &str) -> &str {
    if datatype == "BYTES" { "STRING" } else { datatype }
}

/// Whether a model answers.
///
/// # Errors
/// 404 when there is no such model or version.
pub(in crate::api) async fn ready(call: &Call, name: &str, version: &str) -> Result<bool, ApiError> {
    let endpoint = call.endpoint_named(name).await?;
    if endpoint.serving.is_some() {
        invocations::choose(&endpoint, wanted(version))?;
    }
    Ok(endpoint.serving.is_some())
}

/// The versions that the caller may see, by name.
pub(in crate::api) async fn index(call: &Call, only_ready: bool) -> Result<Vec<Indexed>, ApiError> {
    visible(call, move |record, awake| {
        let (state, reason) = state(record, awake);
        let shown = !only_ready || state == READY;
        let indexed = move |entity: &EntityConfig| Indexed {
            name: record.name.clone(),
            version: entity.entity_version.to_string(),
            state,
            reason: reason.clone(),
        };
        entities(record).filter(|_| shown).map(indexed).collect()
    })
    .await
}

const READY: &str = "READY";

/// What the protocol calls an endpoint's state, and why it is in it.
fn state(record: &EndpointRecord, awake: Option<&Endpoint>) -> (&'static str, String) {
    // One that sleeps serves when it is called.
    let serves = awake.map_or(record.config.is_some() && !record.is_suspended(), |awake| awake.serving.is_some());
    match (&record.pending, &record.failed) {
        _ if serves => (READY, String::new()),
        _ if record.is_suspended() => ("UNAVAILABLE", "stopped".to_owned()),
        (Some(_), _) => ("LOADING", String::new()),
        (None, Some(failed)) => ("UNAVAILABLE", failed.message.clone()),
        (None, None) => ("UNAVAILABLE", String::new()),
    }
}

/// What an endpoint serves, or else is to serve.
fn entities(record: &EndpointRecord) -> impl Iterator<Item = &EntityConfig> {
    record.config.as_ref().or(record.pending.as_ref()).into_iter().flat_map(|config| &config.entities)
}

/// What was counted of a model's versions or of one of them; of all that the caller may see where `name` is empty.
///
/// # Errors
/// 404 when there is no such model or version.
pub(in crate::api) async fn statistics(call: &Call, name: &str, version: &str) -> Result<Vec<Statistics>, ApiError> {
    let metrics = Arc::clone(&call.app.metrics);
    let of = move |record: &EndpointRecord| -> Vec<Statistics> {
        let counted = |entity: &EntityConfig| {
            let totals = metrics.totals(record.workspace, &record.name, &entity.name);
            Statistics::new(&record.name, entity.entity_version, totals)
        };
        entities(record).map(counted).collect()
    };
    if name.is_empty() {
        return visible(call, move |record, _| of(record)).await;
    }
    let endpoint = call.endpoint_named(name).await?;
    let mut all = of(&endpoint.record);
    if !version.is_empty() {
        all.retain(|statistics| statistics.version == version);
        if all.is_empty() {
            return Err(ApiError::missing(format!("Endpoint '{name}' has no version '{version}'.")));
        }
    }
    Ok(all)
}

impl Statistics {
    fn new(endpoint: &str, version: u64, totals: Totals) -> Statistics {
        let all = totals.answered + totals.failed;
        Statistics {
            name: endpoint.to_owned(),
            version: version.to_string(),
            inference_count: totals.answered,
            execution_count: totals.answered,
            inference_stats: Durations {
                success: Duration { count: totals.answered, ns: totals.answered_ns },
                fail: Duration { count: totals.failed, ns: totals.failed_ns },
                queue: Duration { count: all, ns: totals.queued_ns },
                compute_infer: Duration { count: all, ns: totals.predicted_ns },
            },
        }
    }
}

/// Something of each endpoint that the caller may see. Wakes none.
async fn visible<T: Send + 'static>(
    call: &Call,
    show: impl Fn(&EndpointRecord, Option<&Endpoint>) -> Vec<T> + Send + 'static,
) -> Result<Vec<T>, ApiError> {
    let (principal, control) = (call.principal()?, Arc::clone(&call.app.control));
    let visited = tokio::task::spawn_blocking(move || {
        let mut shown = Vec::new();
        control.visit_endpoints(principal.workspace, |record, awake| {
            if level_of(&principal, Object::Endpoint(record)).is_some() {
                shown.extend(show(record, awake));
            }
            Ok::<_, ApiError>(())
        })?;
        Ok(shown)
    });
    visited.await.map_err(|error| ApiError::internal("list the models", &error))?
}
