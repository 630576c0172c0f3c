//! The error that a caller sees: a stable code and a message that names the thing and the way out.
//!
//! What an operator needs beyond that is logged where it happens.

use schemars::JsonSchema;
use serde::Serialize;

use crate::catalog::InvalidConfig;
use crate::deploy::DeployError;
use crate::deploy::package::PackageError;
use crate::store::StoreError;
use crate::store::blobs::BlobError;

/// Codes of the Databricks API that this server uses. Clients derive behaviour from them, so there are no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// 400: the request cannot be understood, or the model refused it.
    BadRequest,
    /// 400: a field has a value that is not allowed.
    InvalidParameterValue,
    /// 400: the name is taken.
    ResourceAlreadyExists,
    /// 401: no valid credentials.
    Unauthenticated,
    /// 403: the caller may not do this.
    PermissionDenied,
    /// 404: no such path.
    NotFound,
    /// 404: no such thing, or not yours.
    ResourceDoesNotExist,
    /// 409: the thing is in a state that forbids this.
    ResourceConflict,
    /// 429: over a rate limit or a quota.
    RequestLimitExceeded,
    /// 429: too much at once.
    ResourceExhausted,
    /// 500: our own failure.
    InternalError,
    /// 501: known, but not built.
    NotImplemented,
    /// 503: a part of the server cannot answer now.
    TemporarilyUnavailable,
    /// 504: time ran out.
    DeadlineExceeded,
}

impl ErrorCode {
    /// The code on the wire.
    pub fn name(self) -> &'static str {
        match self {
            ErrorCode::BadRequest => "BAD_REQUEST",
            ErrorCode::InvalidParameterValue => "INVALID_PARAMETER_VALUE",
            ErrorCode::ResourceAlreadyExists => "RESOURCE_ALREADY_EXISTS",
            ErrorCode::Unauthenticated => "UNAUTHENTICATED",
            ErrorCode::PermissionDenied => "PERMISSION_DENIED",
            ErrorCode::NotFound => "NOT_FOUND",
            ErrorCode::ResourceDoesNotExist => "RESOURCE_DOES_NOT_EXIST",
            ErrorCode::ResourceConflict => "RESOURCE_CONFLICT",
            ErrorCode::RequestLimitExceeded => "REQUEST_LIMIT_EXCEEDED",
            ErrorCode::ResourceExhausted => "RESOURCE_EXHAUSTED",
            ErrorCode::InternalError => "INTERNAL_ERROR",
            ErrorCode::NotImplemented => "NOT_IMPLEMENTED",
            ErrorCode::TemporarilyUnavailable => "TEMPORARILY_UNAVAILABLE",
            ErrorCode::DeadlineExceeded => "DEADLINE_EXCEEDED",
        }
    }

    /// The HTTP status that belongs to the code.
    pub fn status(self) -> u16 {
        match self {
            ErrorCode::BadRequest | ErrorCode::InvalidParameterValue | ErrorCode::ResourceAlreadyExists => 400,
            ErrorCode::Unauthenticated => 401,
            ErrorCode::PermissionDenied => 403,
            ErrorCode::NotFound | ErrorCode::ResourceDoesNotExist => 404,
            ErrorCode::ResourceConflict => 409,
            ErrorCode::RequestLimitExceeded | ErrorCode::ResourceExhausted => 429,
            ErrorCode::InternalError => 500,
            ErrorCode::NotImplemented => 501,
            ErrorCode::TemporarilyUnavailable => 503,
            ErrorCode::DeadlineExceeded => 504,
        }
    }
}

/// An error for a caller.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Decides what clients do.
    pub code: ErrorCode,
    /// HTTP status: the code's own, except where HTTP has a finer one (413, 414, 415).
    pub status: u16,
    /// For people.
    pub message: String,
    /// Seconds after which it is worth trying again, for `Retry-After`; none for the status' usual.
    pub retry_after_s: Option<u64>,
    /// What SCIM calls it (RFC 7644, section 3.12), where a SCIM path answers with SCIM's error.
    pub scim_type: Option<&'static str>,
}

impl ApiError {
    /// An error with the code's own status.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError { code, status: code.status(), message: message.into(), retry_after_s: None, scim_type: None }
    }

    /// A field has a value that is not allowed.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(ErrorCode::InvalidParameterValue, message)
    }

    /// No such thing.
    pub fn missing(message: impl Into<String>) -> ApiError {
        ApiError::new(ErrorCode::ResourceDoesNotExist, message)
    }

    /// Our own failure; the cause goes to the log, not to the caller.
    pub fn internal(doing: &str, cause: &dyn std::error::Error) -> ApiError {
        tracing::error!(cause = %chain(cause), "failed to {doing}");
        ApiError::new(ErrorCode::InternalError, format!("the server failed to {doing}; its log says why"))
    }

    /// The same error with a time after which it is worth trying again.
    #[must_use]
    pub fn with_retry_after(mut self, seconds: u64) -> ApiError {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The same error as SCIM calls it.
    #[must_use]
    pub fn with_scim_type(mut self, scim_type: &'static str) -> ApiError {
        self.scim_type = Some(scim_type);
        self
    }

    /// The same error under a finer status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> ApiError {
        self.status = status;
        self
    }
}

/// An error with all its causes, for one line of the log.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl From<InvalidConfig> for ApiError {
    fn from(error: InvalidConfig) -> ApiError {
        ApiError::invalid(error.0)
    }
}

impl From<PackageError> for ApiError {
    fn from(error: PackageError) -> ApiError {
        ApiError::invalid(error.0)
    }
}

impl From<DeployError> for ApiError {
    fn from(error: DeployError) -> ApiError {
        match error {
            DeployError::Model(message) => ApiError::new(ErrorCode::BadRequest, message),
            DeployError::Busy(message) => ApiError::new(ErrorCode::ResourceExhausted, message),
            DeployError::Host(_) => ApiError::internal("bring a model into memory", &error),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        match error {
            StoreError::Conflict { .. } => {
                ApiError::new(ErrorCode::ResourceConflict, "the record was changed by another request; read it again")
            }
            StoreError::TooLarge { bytes, max, .. } => {
                ApiError::invalid(format!("the record has {bytes} bytes; at most {max} can be stored"))
            }
            StoreError::Unavailable(_) => {
                tracing::error!(cause = %chain(&error), "the state store refused a commit");
                ApiError::new(ErrorCode::TemporarilyUnavailable, "the state store cannot accept changes now")
            }
            StoreError::TooMany { .. } | StoreError::Corrupt { .. } => {
                ApiError::internal("use the state store", &error)
            }
        }
    }
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> ApiError {
        ApiError::internal("keep a file", &error)
    }
}
