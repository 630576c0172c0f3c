//! Tenants and what they may use.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::catalog::WorkspaceId;

/// A tenant as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workspace {
    /// Its number.
    pub id: WorkspaceId,
    /// Unique on this server.
    pub name: String,
    /// In ms since 1970.
    pub creation_timestamp: u64,
    /// What differs from the server's quotas.
    #[serde(default)]
    pub quotas: Quotas,
}

/// How much a workspace may have and do. None is the server's own number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// Endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<u64>,
    /// Model versions, of all models together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_versions: Option<u64>,
    /// Bytes of all files of all model versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_bytes: Option<u64>,
    /// Requests to endpoints in work at one time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_requests: Option<u64>,
    /// Requests to endpoints per minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
    /// Tokens of language models per minute, in and out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
}
