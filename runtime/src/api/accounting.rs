//! What a request to an endpoint leaves behind: a row of the usage table, its payload where that is kept, and what it
//! counts against limits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::App;
use crate::access::Principal;
use crate::catalog::Endpoint;
use crate::catalog::served::ServedEntity;
use crate::clock;
use crate::error::ApiError;
use crate::gateway::limits::{Admitted, monotonic_ms};
use crate::usage::rows::{Missing, PayloadRow, UsageRow, sampled, served_entity_id};
use crate::usage::tokens::Tokens;
use crate::usage::transcript::{self, Transcript, Wanted, characters};

/// The guest's name for the API whose answers hold tensors.
pub(super) const INFER: &str = "v2/infer";

/// Status under which a request is counted whose client went away before its answer.
pub(super) const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Longest text that a row keeps of what a caller says, in bytes, and most entries of `usage_context`: thousands of rows
/// may wait in memory.
const SAID_BYTES_MAX: usize = 256;
const CONTEXT_ENTRIES_MAX: usize = 20;

/// A request on its way. Dropped before it has ended, it is recorded as one whose client went away.
pub(super) struct Account {
    app: Arc<App>,
    row: Option<UsageRow>,
    /// None where it is not kept.
    payload: Option<Kept>,
    /// Whether the answer may tell of tokens.
    counts_tokens: bool,
    /// Hears a streamed answer, where somebody wants to know.
    transcript: Option<Transcript>,
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

/// What the inference table gets of a request before its answer.
struct Kept {
    request: Bytes,
    sampling_fraction: f64,
}

/// A request as accounts see it.
pub(super) struct Asked<'a> {
    pub(super) id: &'a str,
    /// The guest's name for the API.
    pub(super) path: &'a str,
    /// The input, where it is read as a whole.
    pub(super) body: &'a [u8],
}

/// What a guest answered, as far as accounts care.
#[derive(Clone, Copy)]
pub(super) enum Output<'a> {
    Whole {
        content_type: &'a str,
        body: &'a Bytes,
    },
    Streamed {
        /// Whether it was sent to its end.
        whole: bool,
    },
    None,
}

/// What an account reads from an output.
#[derive(Default)]
struct Answered {
    characters: Option<u64>,
    tokens: Option<Tokens>,
    payload: Bytes,
    missing: Option<Missing>,
}

impl Account {
    /// Counts a request in the limits that it meets.
    ///
    /// # Errors
    /// `REQUEST_LIMIT_EXCEEDED`; the refusal is in the usage table too.
    pub(super) fn open(
        app: &Arc<App>,
        endpoint: &Endpoint,
        entity: &ServedEntity,
        principal: &Principal,
        asked: Asked<'_>,
    ) -> Result<Account, ApiError> {
        let record = &endpoint.record;
        let said = said(asked.body);
        let characters = characters(asked.body);
        let row = UsageRow {
            workspace: record.workspace.0,
            client_request_id: said.client_request_id.map(cut),
            databricks_request_id: asked.id.to_owned(),
            requester: principal.name.clone(),
            status_code: CLIENT_CLOSED_REQUEST,
            request_time_ms: clock::now_ms(),
            input_token_count: None,
            output_token_count: None,
            input_character_count: Some(characters),
            output_character_count: None,
            usage_context: context(said.usage_context),
            request_streaming: false,
            served_entity_id: served_entity_id(&record.id, &entity.config.name),
            endpoint_name: record.name.clone(),
            execution_duration_us: 0,
        };
        let counts_tokens = entity.plan.may_count_tokens() && asked.path != INFER;
        // Tensors are no text.
        let tokens = if counts_tokens { estimate(characters).max(1) } else { 0 };
        match app.gate.admit(principal, record, tokens) {
            Ok(admitted) => {
                let sampling_fraction = record.inference_table().map_or(0.0, |table| table.sampling_fraction());
                let payload = sampled(asked.id, sampling_fraction)
                    .then(|| Kept { request: Bytes::copy_from_slice(asked.body), sampling_fraction });
                let wanted = Wanted { payload: payload.is_some(), tokens: counts_tokens };
                Ok(Account {
                    app: Arc::clone(app),
                    row: Some(row),
                    payload,
                    counts_tokens,
                    transcript: (wanted.payload || wanted.tokens).then(|| Transcript::new(wanted)),
                    admitted,
                    started: Instant::now(),
                })
            }
            Err(refusal) => {
                app.metrics.count_refusal("rate_limit");
                let error = refusal.into_error(&record.name);
                app.usage.record(UsageRow { status_code: error.status, ..row });
                Err(error)
            }
        }
    }

    /// What hears the answer if it is streamed.
    pub(super) fn transcript(&self) -> Option<Transcript> {
        self.transcript.clone()
    }

    /// The request has ended.
    pub(super) fn close(&mut self, status: u16, ran: Duration, output: Output<'_>) {
        let Some(mut row) = self.row.take() else { return };
        let answered = self.read(output);
        row.status_code = status;
        row.request_streaming = matches!(output, Output::Streamed { .. });
        row.execution_duration_us = ran.as_micros() as u64;
        row.output_character_count = answered.characters;
        row.input_token_count = answered.tokens.and_then(|tokens| tokens.input);
        row.output_token_count = answered.tokens.and_then(|tokens| tokens.of_output());
        let estimated = || {
            let characters = answered.characters.filter(|_| self.counts_tokens)?;
            Some(estimate(row.input_character_count.unwrap_or(0)) + estimate(characters))
        };
        if let Some(tokens) = answered.tokens.map(|tokens| tokens.all()).or_else(estimated) {
            std::mem::take(&mut self.admitted).settle(tokens, monotonic_ms());
        }
        if let Some(kept) = self.payload.take() {
            self.app.usage.record(PayloadRow {
                workspace: row.workspace,
                endpoint_name: row.endpoint_name.clone(),
                databricks_request_id: row.databricks_request_id.clone(),
                client_request_id: row.client_request_id.clone(),
                request_time_ms: row.request_time_ms,
                status_code: status,
                sampling_fraction: kept.sampling_fraction,
                execution_duration_ms: ran.as_millis() as u64,
                request: kept.request,
                response: answered.payload,
                missing: answered.missing,
                served_entity_id: row.served_entity_id.clone(),
                requester: row.requester.clone(),
            });
        }
        self.app.usage.record(row);
    }

    fn read(&self, output: Output<'_>) -> Answered {
        match (output, &self.transcript) {
            (Output::Whole { content_type, body }, _) => Answered {
                characters: Some(characters(body)),
                tokens: self.counts_tokens.then(|| transcript::tokens_of(content_type, body)).flatten(),
                payload: body.clone(),
                missing: None,
            },
            (Output::Streamed { whole }, Some(transcript)) => {
                let said = transcript.take();
                let missing = match (said.cut, whole) {
                    (true, _) => Some(Missing::Rest),
                    (false, false) => Some(Missing::Unsent),
                    (false, true) => None,
                };
                Answered { characters: Some(said.characters), tokens: said.tokens, payload: said.payload, missing }
            }
            (Output::Streamed { .. } | Output::None, _) => Answered::default(),
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let ran = self.started.elapsed();
        self.close(CLIENT_CLOSED_REQUEST, ran, Output::None);
    }
}

/// Tokens of a text, where no model has counted them: what the documents estimate. Limits count it; no row tells it.
fn estimate(characters: u64) -> u64 {
    characters.div_ceil(4)
}

/// Most requests say nothing, and are not parsed for it.
fn said(body: &[u8]) -> Said {
    let says = |what: &[u8]| memchr::memmem::find(body, what).is_some();
    if !says(b"\"client_request_id\"") && !says(b"\"usage_context\"") {
        return Said::default();
    }
    // Only the first value: tensors may follow as bytes.
    let said = serde_json::Deserializer::from_slice(body).into_iter().next();
    said.and_then(Result::ok).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_caller_says_beside_the_input_is_kept() {
        let said = said(br#"{"inputs":[1],"client_request_id":"mine","usage_context":{"team":"a","n":1}}"#);
        assert_eq!(said.client_request_id.as_deref(), Some("mine"));
        assert_eq!(said.usage_context["team"], "a");
        let kept = context((0..100).map(|n| (format!("{n}"), json!("\u{20ac}".repeat(1000)))).collect());
        assert_eq!((kept.len(), kept[0].1.len()), (20, 255));
        assert!(super::said(b"not json \"usage_context\"").client_request_id.is_none());
        let with_tensors = super::said(b"{\"client_request_id\":\"mine\"}\0\x01\xff");
        assert_eq!(with_tensors.client_request_id.as_deref(), Some("mine"));
    }
}
