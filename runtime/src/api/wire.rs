//! The JSON of the API, field for field. Domain types are converted here, by hand, and nowhere else.
//!
//! - [`config`]: what a caller wants to be served.
//! - [`settings`]: what an endpoint has besides: labels, notifications, telemetry.
//! - [`gateway`]: what stands before its models.
//! - [`endpoint`]: an endpoint as it is answered.

pub(super) mod config;
pub(super) mod endpoint;
pub(super) mod gateway;
pub(super) mod settings;

use serde::Serialize;
use serde_json::{Value, json};

use crate::access::Principal;
use crate::registry::{ModelRecord, VersionRecord, VersionStatus};

/// A registered model, in the shape of MLflow's Unity Catalog client.
#[derive(Serialize)]
pub(super) struct RegisteredModel<'a> {
    name: &'a str,
    creation_timestamp: u64,
    last_updated_timestamp: u64,
    user_id: &'a str,
    description: &'a str,
}

impl<'a> From<&'a ModelRecord> for RegisteredModel<'a> {
    fn from(record: &'a ModelRecord) -> RegisteredModel<'a> {
        RegisteredModel {
            name: &record.name,
            creation_timestamp: record.creation_timestamp,
            last_updated_timestamp: record.last_updated_timestamp,
            user_id: &record.creator,
            description: record.description.as_deref().unwrap_or_default(),
        }
    }
}

/// A model version, in the shape of MLflow's Unity Catalog client.
pub(super) fn model_version(record: &VersionRecord) -> Value {
    let (status, message) = match &record.status {
        VersionStatus::Pending => ("PENDING_REGISTRATION", ""),
        VersionStatus::Ready => ("READY", ""),
        VersionStatus::Failed(message) => ("FAILED_REGISTRATION", message.as_str()),
    };
    json!({
        "name": record.name,
        "version": record.version.to_string(),
        "creation_timestamp": record.creation_timestamp,
        "last_updated_timestamp": record.last_updated_timestamp,
        "user_id": record.creator,
        "description": record.description.as_deref().unwrap_or_default(),
        "source": record.source,
        "run_id": record.run_id.as_deref().unwrap_or_default(),
        "status": status,
        "status_message": message,
        "storage_location": super::files::location(&record.name, record.version),
    })
}

/// SCIM's view of a principal.
pub(super) fn me(principal: &Principal) -> Value {
    json!({
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"],
        "id": principal.id.to_string(),
        "userName": principal.name,
        "displayName": principal.name,
        "active": true,
        "name": { "givenName": principal.name },
        "emails": [{ "value": principal.name, "primary": true, "type": "work" }],
        "groups": [{ "display": if principal.admin { "admins" } else { "users" }, "value": "1" }],
        "entitlements": [{ "value": "workspace-access" }],
    })
}
