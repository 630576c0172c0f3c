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
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Call;
use crate::access::{Object, level_of};
use crate::error::ApiError;
use crate::registry::ModelRecord;
use crate::registry::names::{Tags, put_tag};

/// Most results of a page; the default of MLflow's client.
const RESULTS_MAX: usize = 1000;

/// A label, as MLflow sends and gets it.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(super) struct Tag {
    pub(super) key: String,
    #[serde(default)]
    pub(super) value: String,
}

/// Labels of a new thing.
fn checked_tags(sent: Vec<Tag>) -> Result<Tags, ApiError> {
    let mut tags = Tags::new();
    for Tag { key, value } in sent {
        put_tag(&mut tags, &key, &value)?;
    }
    Ok(tags)
}

pub(super) fn tags_of(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag { key: key.clone(), value: value.clone() }).collect()
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
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct Paging {
    /// Most results; 0 leaves it to the server.
    #[schemars(with = "Option<u64>")]
    pub(super) max_results: Option<Value>,
    /// What the answer before this one called `next_page_token`.
    pub(super) page_token: Option<String>,
}

impl Paging {
    /// A page of a list, and the token of the next one: the number of results before it.
    pub(super) fn page<'a, T>(&self, all: &'a [T]) -> Result<(&'a [T], Option<String>), ApiError> {
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
        let next = start.saturating_add(size);
        Ok((page, (next < all.len()).then(|| next.to_string())))
    }
}

/// Whether the path is below a prefix.
fn is_below(call: &Call, prefix: &str) -> bool {
    call.head.uri.path().starts_with(prefix)
}

/// GET and POST of one search: the filter is in the query or in the body.
pub(super) fn is_get(call: &Call) -> bool {
    call.head.method == Method::GET
}
