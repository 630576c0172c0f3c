//! The tables: `system.serving.endpoint_usage`, `system.serving.served_entities` and the inference tables, with the
//! columns that the Databricks ones have, as rows in memory and as Arrow.

use std::sync::Arc;

use arrow_array::builder::{ListBuilder, MapBuilder, StringBuilder};
use arrow_array::{
    ArrayRef, BooleanArray, Date32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMillisecondArray,
};
use arrow_schema::ArrowError;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Largest payload that is kept, in bytes, each way.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// One request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UsageRow {
    /// The tenant.
    pub workspace: u64,
    /// The id that the client gave.
    pub client_request_id: Option<String>,
    /// `x-request-id` of the response.
    pub databricks_request_id: String,
    /// Name of the principal.
    pub requester: String,
    /// HTTP status.
    pub status_code: u16,
    /// When it came, in milliseconds since 1970.
    pub request_time_ms: u64,
    /// Tokens of the input, if the model counts in tokens.
    pub input_token_count: Option<u64>,
    /// Tokens of the output.
    pub output_token_count: Option<u64>,
    /// Length of the input's text.
    pub input_character_count: Option<u64>,
    /// Length of the output's text.
    pub output_character_count: Option<u64>,
    /// What the client said about its own users.
    pub usage_context: Vec<(String, String)>,
    /// Whether the answer was streamed.
    pub request_streaming: bool,
    /// Refers to [`EntityRow::served_entity_id`].
    pub served_entity_id: String,
    /// Endpoint, as it was called then.
    pub endpoint_name: String,
    /// From the request's head to the response's end.
    pub execution_duration_us: u64,
}

/// A served entity as a config made or removed it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the columns are named and described by the API")]
pub struct EntityRow {
    pub workspace: u64,
    pub served_entity_id: String,
    pub created_by: String,
    pub endpoint_name: String,
    pub endpoint_id: String,
    pub served_entity_name: String,
    /// `CUSTOM_MODEL`, `EXTERNAL_MODEL`, `FOUNDATION_MODEL` or `FEATURE_SPEC`.
    pub entity_type: String,
    pub entity_name: String,
    pub entity_version: Option<String>,
    pub endpoint_config_version: u64,
    pub task: Option<String>,
    /// The config of its type, as JSON.
    pub external_model_config: Option<String>,
    pub foundation_model_config: Option<String>,
    pub custom_model_config: Option<String>,
    pub feature_spec_config: Option<String>,
    pub change_time_ms: u64,
    pub endpoint_delete_time_ms: Option<u64>,
}

/// One request and its answer, for the endpoint's inference table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PayloadRow {
    /// The tenant.
    pub workspace: u64,
    /// Whose table.
    pub endpoint_name: String,
    /// `x-request-id` of the response.
    pub databricks_request_id: String,
    /// The id that the client gave.
    pub client_request_id: Option<String>,
    /// When it came, in milliseconds since 1970.
    pub request_time_ms: u64,
    /// HTTP status.
    pub status_code: u16,
    /// Part of the requests that are kept, above 0 and at most 1; see [`sampled`].
    pub sampling_fraction: f64,
    /// Time of the model alone.
    pub execution_duration_ms: u64,
    /// Body of the request.
    pub request: Bytes,
    /// Body of the response, or what was kept of it.
    pub response: Bytes,
    /// What is missing of `response`.
    pub missing: Option<Missing>,
    /// Refers to [`EntityRow::served_entity_id`].
    pub served_entity_id: String,
    /// Name of the principal.
    pub requester: String,
}

/// What is missing of a response that was streamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// What is beyond [`PAYLOAD_BYTES_MAX`].
    Rest,
    /// What was not sent: the model failed, or the client went away.
    Unsent,
}

/// What both tables call a served entity: it stays the same while the endpoint has an entity of this name.
pub fn served_entity_id(endpoint_id: &str, entity: &str) -> String {
    format!("{endpoint_id}-{entity}")
}

/// Whether the request of this id belongs to the sample. The same id always gives the same answer.
pub fn sampled(request_id: &str, fraction: f64) -> bool {
    if fraction <= 0.0 {
        return false;
    }
    let hash = blake3::hash(request_id.as_bytes());
    let number = u32::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[i]));
    f64::from(number) < fraction * 2f64.powi(32)
}

/// A row for one of the tables.
#[derive(Debug)]
pub enum Row {
    /// For `endpoint_usage`.
    Usage(Box<UsageRow>),
    /// For `served_entities`.
    Entity(Box<EntityRow>),
    /// For an inference table.
    Payload(Box<PayloadRow>),
}

impl From<UsageRow> for Row {
    fn from(row: UsageRow) -> Row {
        Row::Usage(Box::new(row))
    }
}

impl From<EntityRow> for Row {
    fn from(row: EntityRow) -> Row {
        Row::Entity(Box::new(row))
    }
}

impl From<PayloadRow> for Row {
    fn from(row: PayloadRow) -> Row {
        Row::Payload(Box::new(row))
    }
}

impl Row {
    /// Memory of the bodies that it holds.
    pub(super) fn payload_bytes(&self) -> usize {
        match self {
            Row::Payload(row) => row.request.len() + row.response.len(),
            _ => 0,
        }
    }

    pub(super) fn into_record(self) -> Record {
        match self {
            Row::Usage(row) => Record::Usage(*row),
            Row::Entity(row) => Record::Entity(*row),
            Row::Payload(row) => Record::Payload(PayloadRecord::of(*row)),
        }
    }
}

/// A row as it is spilled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Record {
    Usage(UsageRow),
    Entity(EntityRow),
    Payload(PayloadRecord),
}

/// A payload row with text instead of bodies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PayloadRecord {
    workspace: u64,
    endpoint_name: String,
    databricks_request_id: String,
    client_request_id: Option<String>,
    request_time_ms: u64,
    status_code: u16,
    sampling_fraction: f64,
    execution_duration_ms: u64,
    request: Option<String>,
    response: Option<String>,
    logging_error_codes: Vec<String>,
    served_entity_id: String,
    requester: String,
}

impl PayloadRecord {
    fn of(row: PayloadRow) -> PayloadRecord {
        let mut codes = Vec::new();
        let mut text = |body: &Bytes, which: &str| match std::str::from_utf8(body) {
            _ if body.len() > PAYLOAD_BYTES_MAX => {
                codes.push(format!("MAX_{which}_SIZE_EXCEEDED"));
                None
            }
            Ok(text) => Some(text.to_owned()),
            Err(_) => {
                codes.push(format!("{which}_NOT_TEXT"));
                None
            }
        };
        let (request, response) = (text(&row.request, "REQUEST"), text(&row.response, "RESPONSE"));
        codes.extend(row.missing.map(|missing| match missing {
            Missing::Rest => "MAX_RESPONSE_SIZE_EXCEEDED".to_owned(),
            Missing::Unsent => "RESPONSE_BROKEN_OFF".to_owned(),
        }));
        PayloadRecord {
            workspace: row.workspace,
            endpoint_name: row.endpoint_name,
            databricks_request_id: row.databricks_request_id,
            client_request_id: row.client_request_id,
            request_time_ms: row.request_time_ms,
            status_code: row.status_code,
            sampling_fraction: row.sampling_fraction,
            execution_duration_ms: row.execution_duration_ms,
            request,
            response,
            logging_error_codes: codes,
            served_entity_id: row.served_entity_id,
            requester: row.requester,
        }
    }
}

/// A table of one workspace (and one endpoint, for payloads).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// `endpoint_usage`.
    Usage(u64),
    /// `served_entities`.
    Entities(u64),
    /// The inference table of an endpoint.
    Payload(u64, String),
}

impl Record {
    pub(super) fn table(&self) -> Table {
        match self {
            Record::Usage(row) => Table::Usage(row.workspace),
            Record::Entity(row) => Table::Entities(row.workspace),
            Record::Payload(row) => Table::Payload(row.workspace, row.endpoint_name.clone()),
        }
    }

    pub(super) fn time_ms(&self) -> u64 {
        match self {
            Record::Usage(row) => row.request_time_ms,
            Record::Entity(row) => row.change_time_ms,
            Record::Payload(row) => row.request_time_ms,
        }
    }
}

/// The rows of one table as Arrow; rows of other tables are left out.
pub(super) fn batch(table: &Table, records: &[Record], account: &str) -> Result<RecordBatch, ArrowError> {
    macro_rules! rows {
        ($kind:ident) => {
            records
                .iter()
                .filter_map(|record| if let Record::$kind(row) = record { Some(row) } else { None })
                .collect::<Vec<_>>()
        };
    }
    match table {
        Table::Usage(_) => usage_batch(&rows!(Usage), account),
        Table::Entities(_) => entity_batch(&rows!(Entity), account),
        Table::Payload(..) => payload_batch(&rows!(Payload)),
    }
}

fn usage_batch(rows: &[&UsageRow], account: &str) -> Result<RecordBatch, ArrowError> {
    let mut context = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    for row in rows {
        for (key, value) in &row.usage_context {
            context.keys().append_value(key);
            context.values().append_value(value);
        }
        context.append(true)?;
    }
    table([
        ("account_id", text(rows, |_| Some(account))),
        ("workspace_id", numbered(rows, |row| row.workspace)),
        ("client_request_id", text(rows, |row| row.client_request_id.as_deref())),
        ("databricks_request_id", text(rows, |row| Some(&row.databricks_request_id))),
        ("requester", text(rows, |row| Some(&row.requester))),
        ("status_code", Arc::new(rows.iter().map(|row| Some(i32::from(row.status_code))).collect::<Int32Array>())),
        ("request_time", time(rows, |row| Some(row.request_time_ms))),
        ("input_token_count", long(rows, |row| row.input_token_count)),
        ("output_token_count", long(rows, |row| row.output_token_count)),
        ("input_character_count", long(rows, |row| row.input_character_count)),
        ("output_character_count", long(rows, |row| row.output_character_count)),
        ("usage_context", Arc::new(context.finish())),
        ("request_streaming", Arc::new(rows.iter().map(|row| Some(row.request_streaming)).collect::<BooleanArray>())),
        ("served_entity_id", text(rows, |row| Some(&row.served_entity_id))),
        ("endpoint_name", text(rows, |row| Some(&row.endpoint_name))),
        // With a fraction, for whole milliseconds would be 0 for most.
        ("execution_duration_ms", double(rows, |row| row.execution_duration_us as f64 / 1e3)),
    ])
}

fn entity_batch(rows: &[&EntityRow], account: &str) -> Result<RecordBatch, ArrowError> {
    table([
        ("served_entity_id", text(rows, |row| Some(&row.served_entity_id))),
        ("account_id", text(rows, |_| Some(account))),
        ("workspace_id", numbered(rows, |row| row.workspace)),
        ("created_by", text(rows, |row| Some(&row.created_by))),
        ("endpoint_name", text(rows, |row| Some(&row.endpoint_name))),
        ("endpoint_id", text(rows, |row| Some(&row.endpoint_id))),
        ("served_entity_name", text(rows, |row| Some(&row.served_entity_name))),
        ("entity_type", text(rows, |row| Some(&row.entity_type))),
        ("entity_name", text(rows, |row| Some(&row.entity_name))),
        ("entity_version", text(rows, |row| row.entity_version.as_deref())),
        ("endpoint_config_version", long(rows, |row| Some(row.endpoint_config_version))),
        ("task", text(rows, |row| row.task.as_deref())),
        ("external_model_config", text(rows, |row| row.external_model_config.as_deref())),
        ("foundation_model_config", text(rows, |row| row.foundation_model_config.as_deref())),
        ("custom_model_config", text(rows, |row| row.custom_model_config.as_deref())),
        ("feature_spec_config", text(rows, |row| row.feature_spec_config.as_deref())),
        ("change_time", time(rows, |row| Some(row.change_time_ms))),
        ("endpoint_delete_time", time(rows, |row| row.endpoint_delete_time_ms)),
    ])
}

fn payload_batch(rows: &[&PayloadRecord]) -> Result<RecordBatch, ArrowError> {
    let mut codes = ListBuilder::new(StringBuilder::new());
    for row in rows {
        codes.append_value(row.logging_error_codes.iter().map(Some));
    }
    let days = rows.iter().map(|row| i32::try_from(row.request_time_ms / DAY_MS).ok());
    table([
        ("request_date", Arc::new(days.collect::<Date32Array>())),
        ("databricks_request_id", text(rows, |row| Some(&row.databricks_request_id))),
        ("client_request_id", text(rows, |row| row.client_request_id.as_deref())),
        ("request_time", time(rows, |row| Some(row.request_time_ms))),
        ("status_code", Arc::new(rows.iter().map(|row| Some(i32::from(row.status_code))).collect::<Int32Array>())),
        ("sampling_fraction", double(rows, |row| row.sampling_fraction)),
        ("execution_duration_ms", long(rows, |row| Some(row.execution_duration_ms))),
        ("request", text(rows, |row| row.request.as_deref())),
        ("response", text(rows, |row| row.response.as_deref())),
        ("logging_error_codes", Arc::new(codes.finish())),
        ("served_entity_id", text(rows, |row| Some(&row.served_entity_id))),
        ("requester", text(rows, |row| Some(&row.requester))),
    ])
}

/// Every column may be null, so that all files of a table have one schema.
fn table<const N: usize>(columns: [(&str, ArrayRef); N]) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)))
}

fn text<'a, R>(rows: &[&'a R], value: impl Fn(&'a R) -> Option<&'a str>) -> ArrayRef {
    Arc::new(rows.iter().map(|row| value(row)).collect::<StringArray>())
}

fn numbered<R>(rows: &[&R], value: impl Fn(&R) -> u64) -> ArrayRef {
    Arc::new(rows.iter().map(|row| Some(value(row).to_string())).collect::<StringArray>())
}

fn long<R>(rows: &[&R], value: impl Fn(&R) -> Option<u64>) -> ArrayRef {
    let signed = |number| i64::try_from(number).unwrap_or(i64::MAX);
    Arc::new(rows.iter().map(|row| value(row).map(signed)).collect::<Int64Array>())
}

fn double<R>(rows: &[&R], value: impl Fn(&R) -> f64) -> ArrayRef {
    Arc::new(rows.iter().map(|row| Some(value(row))).collect::<Float64Array>())
}

fn time<R>(rows: &[&R], value: impl Fn(&R) -> Option<u64>) -> ArrayRef {
    let signed = |ms| i64::try_from(ms).unwrap_or(i64::MAX);
    let times = rows.iter().map(|row| value(row).map(signed)).collect::<TimestampMillisecondArray>();
    Arc::new(times.with_timezone("UTC"))
}
