//! What a request to an endpoint leaves behind: a row of the usage table, its payload where that is kept, and what it
//! counts against limits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::App;
use crate::access::Principal;
use crate::catalog::{Endpoint, EntityConfig};
use crate::clock;
use crate::error::ApiError;
use crate::gateway::limits::{Admitted, monotonic_ms};
use crate::usage::rows::{PayloadRow, UsageRow, served_entity_id};

/// Where a response tells the tokens that it took: OpenAI's shapes have it at their end.
const USAGE_WITHIN_BYTES: usize = 512;

/// Status under which a request is counted whose client went away before its answer.
pub(super) const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Longest text that a row keeps of what a caller says, in bytes, and most entries of `usage_context`: thousands of rows
/// may wait in memory.
const SAID_BYTES_MAX: usize = 256;
const CONTEXT_ENTRIES_MAX: usize = 20;

/// A request on its way. Dropped before it has ended, it is recorded as one whose client went away.
pub(super) struct Account {
    app: Arc<App>,
    endpoint: Arc<Endpoint>,
    row: Option<UsageRow>,
    /// None where it is not kept.
    payload: Option<Bytes>,
    admitted: Admitted,
    started: Instant,
}

/// What callers may say of a request beside its input.
#[derive(Debug, Default, Deserialize)]
struct Said {
    client_request_id: Option<String>,
    #[serde(default)]
    usage_context: serde_json::Map<String, Value>,
}

/// What language models say of their tokens.
#[derive(Debug, Deserialize)]
struct Tokens {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    total_tokens: Option<u64>,
}

impl Account {
    /// Counts a request in the limits that it meets. `body` is its input, where it is read as a whole.
    ///
    /// # Errors
    /// `REQUEST_LIMIT_EXCEEDED`; the refusal is in the usage table too.
    pub(super) fn open(
        app: &Arc<App>,
        endpoint: &Arc<Endpoint>,
        entity: &EntityConfig,
        principal: &Principal,
        id: &str,
        body: &[u8],
    ) -> Result<Account, ApiError> {
        let record = &endpoint.record;
        let said = said(body);
        let characters = characters(body);
        let row = UsageRow {
            workspace: record.workspace.0,
            client_request_id: said.client_request_id.map(cut),
            databricks_request_id: id.to_owned(),
            requester: principal.name.clone(),
            status_code: CLIENT_CLOSED_REQUEST,
            request_time_ms: clock::now_ms(),
            input_token_count: None,
            output_token_count: None,
            input_character_count: Some(characters),
            output_character_count: None,
            usage_context: context(said.usage_context),
            request_streaming: false,
            served_entity_id: served_entity_id(&record.id, &entity.name),
            endpoint_name: record.name.clone(),
            execution_duration_us: 0,
        };
        // What the documents estimate where a model does not say.
        match app.gate.admit(principal, record, characters.div_ceil(4)) {
            Ok(admitted) => {
                let payload = record.inference_table().is_some().then(|| Bytes::copy_from_slice(body));
                let (app, endpoint) = (Arc::clone(app), Arc::clone(endpoint));
                Ok(Account { app, endpoint, row: Some(row), payload, admitted, started: Instant::now() })
            }
            Err(refusal) => {
                app.metrics.count_refusal("rate_limit");
                let error = refusal.into_error(&record.name);
                app.usage.record(UsageRow { status_code: error.status, ..row });
                Err(error)
            }
        }
    }

    /// The request has ended. `body` is the response where it was one piece.
    pub(super) fn close(&mut self, status: u16, ran: Duration, body: Option<&Bytes>, streamed: bool) {
        let Some(mut row) = self.row.take() else { return };
        row.status_code = status;
        row.request_streaming = streamed;
        row.execution_duration_us = ran.as_micros() as u64;
        if let Some(body) = body {
            row.output_character_count = Some(characters(body));
            if let Some(tokens) = tokens(body) {
                row.input_token_count = tokens.prompt_tokens;
                let rest =
                    || tokens.total_tokens.zip(tokens.prompt_tokens).map(|(all, input)| all.saturating_sub(input));
                row.output_token_count = tokens.completion_tokens.or_else(rest);
            }
        }
        let said = row.input_token_count.map(|input| input + row.output_token_count.unwrap_or(0));
        if let Some(tokens) = said {
            std::mem::take(&mut self.admitted).settle(tokens, monotonic_ms());
        }
        if let Some(request) = self.payload.take() {
            self.app.usage.record(PayloadRow {
                workspace: row.workspace,
                endpoint_name: self.endpoint.record.name.clone(),
                databricks_request_id: row.databricks_request_id.clone(),
                client_request_id: row.client_request_id.clone(),
                request_time_ms: row.request_time_ms,
                status_code: status,
                sampling_fraction: 1.0,
                execution_duration_ms: ran.as_millis() as u64,
                request,
                response: body.cloned().unwrap_or_default(),
                served_entity_id: row.served_entity_id.clone(),
                requester: row.requester.clone(),
            });
        }
        self.app.usage.record(row);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let ran = self.started.elapsed();
        self.close(CLIENT_CLOSED_REQUEST, ran, None, false);
    }
}

fn characters(text: &[u8]) -> u64 {
    // The first byte of each character of UTF-8.
    text.iter().filter(|byte| (**byte as i8) >= -0x40).count() as u64
}

/// Most requests say nothing, and are not parsed for it.
fn said(body: &[u8]) -> Said {
    let says = |what: &[u8]| memchr::memmem::find(body, what).is_some();
    if !says(b"\"client_request_id\"") && !says(b"\"usage_context\"") {
        return Said::default();
    }
    serde_json::from_slice(body).unwrap_or_default()
}

fn context(said: serde_json::Map<String, Value>) -> Vec<(String, String)> {
    let text = |value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    said.into_iter().take(CONTEXT_ENTRIES_MAX).map(|(key, value)| (cut(key), cut(text(value)))).collect()
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(SAID_BYTES_MAX));
    // What was cut off would stay in memory.
    text.shrink_to_fit();
    text
}

fn tokens(body: &[u8]) -> Option<Tokens> {
    let end = &body[body.len().saturating_sub(USAGE_WITHIN_BYTES)..];
    let found = memchr::memmem::rfind(end, b"\"usage\"")?;
    let object = end[found + b"\"usage\"".len()..].trim_ascii_start().strip_prefix(b":")?;
    serde_json::Deserializer::from_slice(object).into_iter().next()?.ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_are_read_where_a_language_model_says_them() {
        let body = br#"{"object":"list","data":[],"usage": {"prompt_tokens":3,"total_tokens":5}}"#;
        let tokens = tokens(body).unwrap();
        assert_eq!((tokens.prompt_tokens, tokens.completion_tokens, tokens.total_tokens), (Some(3), None, Some(5)));
        for none in [&b""[..], b"{}", br#"{"usage"}"#, br#"{"usage":"much"}"#, br#"{"predictions":[1]}"#] {
            assert!(super::tokens(none).is_none(), "{none:?}");
        }
    }

    #[test]
    fn what_a_caller_says_beside_the_input_is_kept() {
        let said = said(br#"{"inputs":[1],"client_request_id":"mine","usage_context":{"team":"a","n":1}}"#);
        assert_eq!(said.client_request_id.as_deref(), Some("mine"));
        assert_eq!(said.usage_context["team"], "a");
        let kept = context((0..100).map(|n| (format!("{n}"), json!("\u{20ac}".repeat(1000)))).collect());
        assert_eq!((kept.len(), kept[0].1.len()), (20, 255));
        assert!(super::said(b"not json \"usage_context\"").client_request_id.is_none());
        assert_eq!(characters("aäb€".as_bytes()), 4);
    }
}
