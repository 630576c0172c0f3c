//! Why a request, or the deploy, failed.

use std::fmt;

use crate::bindings::tessera::endpoint::types::Failure;
/// Decides the HTTP status of the error; see `failure-kind` in `wit/endpoint.wit`.
pub use crate::bindings::tessera::endpoint::types::FailureKind as ErrorKind;

/// A failure with the message that the caller is shown. From `init` it fails the deploy and is shown as its reason.
#[derive(Debug, Clone)]
pub struct Error {
    /// What the host makes the HTTP status from.
    pub kind: ErrorKind,
    /// What was wrong and how to mend it.
    pub message: String,
}

impl Error {
    /// An error of any kind; the functions below read better where the kind is known.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The caller's input is wrong: 400.
    pub fn invalid_input(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// The endpoint has no such path: 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// Input or output exceeds a limit: 413.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::TooLarge, message)
    }

    /// The content type is not understood: 415.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::UnsupportedMediaType, message)
    }

    /// The model or the guest failed on this input: 400, for repeating the call will not help.
    pub fn model(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Model, message)
    }

    /// Time ran out: 504.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Timeout, message)
    }

    /// The same call may succeed later: 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// The same error with what was attempted in front of its message.
    pub fn context(self, attempted: impl fmt::Display) -> Self {
        Self { kind: self.kind, message: format!("{attempted}: {}", self.message) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<serde_json::Error> for Error {
    /// The text of serde_json ends in the line and column, which is what the caller needs to find the mistake.
    fn from(error: serde_json::Error) -> Self {
        Self::invalid_input(format!("failed to parse the JSON body: {error}"))
    }
}

impl From<Error> for Failure {
    fn from(Error { kind, message }: Error) -> Self {
        Self { kind, message }
    }
}
