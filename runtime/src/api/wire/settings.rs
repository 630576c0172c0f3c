//! Labels, notifications, telemetry.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::gateway::present;
use crate::catalog::{Notifications, Tag, Telemetry, TelemetryTable};

/// A label.
#[derive(Debug, Deserialize, JsonSchema)]
pub(in crate::api) struct EndpointTag {
    key: String,
    value: Option<String>,
}

/// Body of a change of the labels.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::api) struct PatchTags {
    /// New ones, and new values of those that are there.
    pub(in crate::api) add_tags: Option<Vec<EndpointTag>>,
    /// Keys.
    pub(in crate::api) delete_tags: Option<Vec<String>>,
}

/// Whom to tell of updates.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::api) struct EmailNotifications {
    on_update_success: Option<Vec<String>>,
    on_update_failure: Option<Vec<String>>,
}

/// Body of a change of them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::api) struct UpdateNotifications {
    /// All of them.
    pub(in crate::api) email_notifications: Option<EmailNotifications>,
}

/// Where traces, logs and metrics shall go.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::api) struct TelemetryConfig {
    enabled_telemetry_features: Option<Vec<String>>,
    table_names: Option<BTreeMap<String, String>>,
    telemetry_profile_id: Option<String>,
    inference_table_config: Option<TelemetryTableConfig>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct TelemetryTableConfig {
    name: Option<String>,
    sampling_fraction: Option<f64>,
}

/// Body of a change of it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::api) struct PatchTelemetry {
    /// The whole of it; without, there is none.
    pub(in crate::api) telemetry_config: Option<TelemetryConfig>,
}

/// Body of a change of the description.
#[derive(Debug, Deserialize, JsonSchema)]
pub(in crate::api) struct PatchDescription {
    /// Free text; empty for none.
    pub(in crate::api) description: String,
}

/// Body of a change of the budget policy.
#[derive(Debug, Deserialize, JsonSchema)]
pub(in crate::api) struct PatchBudgetPolicy {
    /// Free text; empty for none.
    pub(in crate::api) budget_policy_id: String,
}

impl From<EndpointTag> for Tag {
    fn from(input: EndpointTag) -> Tag {
        Tag { key: input.key, value: input.value }
    }
}

impl From<EmailNotifications> for Notifications {
    fn from(input: EmailNotifications) -> Notifications {
        Notifications { on_update_success: input.on_update_success, on_update_failure: input.on_update_failure }
    }
}

impl From<TelemetryConfig> for Telemetry {
    fn from(input: TelemetryConfig) -> Telemetry {
        let table = |table: TelemetryTableConfig| TelemetryTable {
            name: table.name,
            sampling_fraction: table.sampling_fraction,
        };
        Telemetry {
            features: input.enabled_telemetry_features,
            tables: input.table_names,
            profile_id: input.telemetry_profile_id,
            inference_table: input.inference_table_config.map(table),
        }
    }
}

pub(in crate::api) fn tag(tag: &Tag) -> Value {
    present([("key", Some(json!(tag.key))), ("value", tag.value.as_ref().map(|value| json!(value)))])
}

pub(in crate::api) fn notifications(notifications: &Notifications) -> Value {
    present([
        ("on_update_success", notifications.on_update_success.as_ref().map(|list| json!(list))),
        ("on_update_failure", notifications.on_update_failure.as_ref().map(|list| json!(list))),
    ])
}

pub(super) fn telemetry(telemetry: &Telemetry) -> Value {
    let table = |table: &TelemetryTable| {
        present([
            ("name", table.name.as_ref().map(|name| json!(name))),
            ("sampling_fraction", table.sampling_fraction.map(|share| json!(share))),
        ])
    };
    present([
        ("enabled_telemetry_features", telemetry.features.as_ref().map(|features| json!(features))),
        ("table_names", telemetry.tables.as_ref().map(|tables| json!(tables))),
        ("telemetry_profile_id", telemetry.profile_id.as_ref().map(|id| json!(id))),
        ("inference_table_config", telemetry.inference_table.as_ref().map(table)),
    ])
}
