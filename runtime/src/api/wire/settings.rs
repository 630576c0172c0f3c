//! Labels, notifications, telemetry.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::catalog::{Notifications, Tag, Telemetry, TelemetryTable};

/// A label.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(in crate::api) struct EndpointTag {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
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

/// The labels after a change.
#[derive(Serialize, JsonSchema)]
pub(in crate::api) struct EndpointTags {
    pub(in crate::api) tags: Vec<EndpointTag>,
}

/// Whom to tell of updates.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::api) struct EmailNotifications {
    #[serde(skip_serializing_if = "Option::is_none")]
    on_update_success: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_update_failure: Option<Vec<String>>,
}

/// Body of a change of them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::api) struct UpdateNotifications {
    /// All of them.
    pub(in crate::api) email_notifications: Option<EmailNotifications>,
}

/// The addresses after a change.
#[derive(Serialize, JsonSchema)]
pub(in crate::api) struct UpdatedNotifications {
    pub(in crate::api) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::api) email_notifications: Option<EmailNotifications>,
}

/// Where traces, logs and metrics shall go.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::api) struct TelemetryConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    enabled_telemetry_features: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table_names: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    telemetry_profile_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inference_table_config: Option<TelemetryTableConfig>,
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct TelemetryTableConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
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

impl From<&Tag> for EndpointTag {
    fn from(tag: &Tag) -> EndpointTag {
        EndpointTag { key: tag.key.clone(), value: tag.value.clone() }
    }
}

impl From<&Notifications> for EmailNotifications {
    fn from(kept: &Notifications) -> EmailNotifications {
        let Notifications { on_update_success, on_update_failure } = kept.clone();
        EmailNotifications { on_update_success, on_update_failure }
    }
}

impl From<&Telemetry> for TelemetryConfig {
    fn from(kept: &Telemetry) -> TelemetryConfig {
        let Telemetry { features, tables, profile_id, inference_table } = kept.clone();
        let table = |TelemetryTable { name, sampling_fraction }| TelemetryTableConfig { name, sampling_fraction };
        TelemetryConfig {
            enabled_telemetry_features: features,
            table_names: tables,
            telemetry_profile_id: profile_id,
            inference_table_config: inference_table.map(table),
        }
    }
}
