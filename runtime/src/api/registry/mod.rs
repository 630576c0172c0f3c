//! The model registry on the wire, in its three shapes, and the files of versions.
//!
//! - [`mlflow`]: what MLflow's two registries share, whose routes are in [`unity`] and [`oss`].
//! - [`native`]: Unity Catalog's own REST API, as the Databricks SDK speaks it.
//! - [`files`]: files of versions, on the paths of the Databricks Files API; [`signed`]: on signed addresses.

pub(super) mod files;
mod mlflow;
pub(super) mod native;
pub(super) mod oss;
pub(super) mod signed;
pub(super) mod unity;

pub use self::signed::Signer;

use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Call;
use crate::access::{Object, level_of};
use crate::error::ApiError;
use crate::registry::ModelRecord;
use crate::registry::names::{Tags, put_tag};

/// Most results of a page; the default of MLflow's client.
const RESULTS_MAX: usize = 1000;

/// A label, as MLflow sends it.
#[derive(Deserialize)]
pub(super) struct TagInput {
    pub(super) key: String,
    #[serde(default)]
    pub(super) value: String,
}

/// Labels of a new thing.
fn tags_of(sent: Vec<TagInput>) -> Result<Tags, ApiError> {
    let mut tags = Tags::new();
    for TagInput { key, value } in sent {
        put_tag(&mut tags, &key, &value)?;
    }
    Ok(tags)
}

pub(super) fn tags_json(tags: &Tags) -> Value {
    tags.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect()
}

/// The models that the caller may see.
async fn visible_models(call: &Call) -> Result<Vec<ModelRecord>, ApiError> {
    let principal = call.principal()?;
    let mut models = call.app.control.registry.models(principal.workspace).await?;
    models.retain(|model| level_of(&principal, Object::Model(model)).is_some());
    Ok(models)
}

fn parse_version(text: &str) -> Result<u64, ApiError> {
    text.parse().map_err(|_| ApiError::invalid(format!("'{text}' is not the number of a model version")))
}

/// A version's number, which some clients send as a number and others as text.
fn version_number(value: &Value) -> Result<u64, ApiError> {
    match value {
        Value::String(text) => parse_version(text),
        other => parse_version(&other.to_string()),
    }
}

/// What a client wants to see of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Paging {
    pub(super) max_results: Option<Value>,
    pub(super) page_token: Option<String>,
}

impl Paging {
    pub(super) fn of_query(call: &Call) -> Paging {
        Paging { max_results: call.query("max_results").map(Value::String), page_token: call.query("page_token") }
    }

    /// Puts a page of a list into an answer, with the token of the next one. A token is the number of results before it.
    pub(super) fn fill<T>(
        &self,
        answer: &mut Value,
        key: &str,
        all: &[T],
        show: impl Fn(&T) -> Value,
    ) -> Result<(), ApiError> {
        let start = match self.page_token.as_deref().filter(|token| !token.is_empty()) {
            None => 0,
            Some(token) => token
                .parse::<usize>()
                .map_err(|_| ApiError::invalid(format!("page_token '{token}' is not one of ours")))?,
        };
        let asked = match &self.max_results {
            Some(Value::String(text)) => text.parse().ok(),
            Some(number) => number.as_u64(),
            None => None,
        };
        // 0 leaves it to the server, in all of these APIs.
        let size = asked.filter(|size| *size > 0).map_or(RESULTS_MAX, |size| size.min(RESULTS_MAX as u64) as usize);
        let page = &all[start.min(all.len())..all.len().min(start.saturating_add(size))];
        answer[key] = page.iter().map(show).collect();
        if start.saturating_add(size) < all.len() {
            answer["next_page_token"] = json!((start + size).to_string());
        }
        Ok(())
    }
}

/// Whether the path is below a prefix.
fn is_below(call: &Call, prefix: &str) -> bool {
    call.head.uri.path().starts_with(prefix)
}

/// GET and POST of one search: the filter is in the query or in the body.
fn is_get(call: &Call) -> bool {
    call.head.method == Method::GET
}
