//! What was used.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::routes::{Access, Route, handler};
use super::{Answer, Call, json};
use crate::error::ApiError;
use crate::usage::summary::{By, Filter, Summary, summarise};

pub(super) const ROUTES: &[Route] =
    &[Route::get("usage", "/api/2.0/tessera/usage", Access::Principal, "What was used", handler!(usage))
        .query::<UsageQuery>()
        .answers::<Usage>()];

#[derive(Deserialize, JsonSchema)]
struct UsageQuery {
    /// Of this endpoint alone.
    endpoint: Option<String>,
    /// Of this user or service principal alone; only administrators see others than themselves.
    principal: Option<String>,
    /// From this time on, in milliseconds since 1970.
    since_ms: Option<u64>,
    /// What there is a row for.
    #[serde(default)]
    by: By,
}

#[derive(Serialize, JsonSchema)]
struct Usage {
    usage: Vec<Summary>,
}

/// Administrators see their workspace, others themselves.
async fn usage(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let asked: UsageQuery = call.query()?;
    let filter = Filter {
        workspace: Some(principal.workspace.0),
        endpoint: asked.endpoint,
        principal: if principal.admin { asked.principal } else { Some(principal.name.clone()) },
        since_ms: asked.since_ms.unwrap_or_default(),
        by: asked.by,
    };
    call.app.usage.flush().await;
    let recorder = Arc::clone(&call.app.usage);
    let usage = tokio::task::spawn_blocking(move || summarise(recorder.dir(), &filter)).await;
    let usage = usage.map_err(|error| ApiError::internal("summarise usage", &error))?;
    let usage = usage.map_err(|error| ApiError::internal("read the usage table", &error))?;
    json(&Usage { usage })
}
