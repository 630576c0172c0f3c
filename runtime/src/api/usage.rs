//! What was used: `GET /api/2.0/tessera/usage?endpoint=&principal=&since_ms=&by=`.

use std::sync::Arc;

use serde_json::json;

use super::routes::{Access, Route, handler};
use super::{Answer, Call, json};
use crate::error::ApiError;
use crate::usage::summary::{By, Filter, summarise};

pub(super) const ROUTES: &[Route] =
    &[Route::get("usage", "/api/2.0/tessera/usage", Access::Principal, "What was used", handler!(usage))];

/// Administrators see their workspace, others themselves.
async fn usage(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let since_ms = match call.query("since_ms").as_deref() {
        None | Some("") => 0,
        Some(text) => text.parse().map_err(|_| {
            ApiError::invalid(format!("since_ms is '{text}': it must be milliseconds since 1970, like 1790000000000."))
        })?,
    };
    let by = match call.query("by").as_deref() {
        None | Some("" | "endpoint") => By::Endpoint,
        Some("principal") => By::Principal,
        Some("day") => By::Day,
        Some(other) => {
            return Err(ApiError::invalid(format!("by is '{other}': it must be endpoint, principal or day.")));
        }
    };
    let filter = Filter {
        workspace: Some(principal.workspace.0),
        endpoint: call.query("endpoint"),
        principal: if principal.admin { call.query("principal") } else { Some(principal.name.clone()) },
        since_ms,
        by,
    };
    call.app.usage.flush().await;
    let recorder = Arc::clone(&call.app.usage);
    let usage = tokio::task::spawn_blocking(move || summarise(recorder.dir(), &filter)).await;
    let usage = usage.map_err(|error| ApiError::internal("summarise usage", &error))?;
    let usage = usage.map_err(|error| ApiError::internal("read the usage table", &error))?;
    json(&json!({ "usage": usage }))
}
