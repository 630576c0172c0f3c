//! The one error of this module: a stable kind, which the guest gets as a `wasi:nn` error code, and a message for it.

/// What went wrong, one for one the `error-code` of `wasi:nn`, and [`Overloaded`](Self::Overloaded), which it lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NnErrorKind {
    /// The caller's tensors or names do not fit.
    InvalidArgument,
    /// The model file is not what it says it is.
    InvalidEncoding,
    /// The deadline passed, or the caller went away.
    Timeout,
    /// The backend failed while it worked.
    RuntimeError,
    /// Understood, but nothing here can do it.
    UnsupportedOperation,
    /// The graph, or a tensor, is over a limit.
    TooLarge,
    /// No such graph.
    NotFound,
    /// Not allowed.
    Security,
    /// A queue or a budget is full: the same call may succeed later.
    Overloaded,
}

/// An error of tensor compute. The message is written for the guest's author: it names inputs, types and limits, and
/// never a path of this host.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct NnError {
    kind: NnErrorKind,
    message: String,
}

impl NnError {
    /// An error of any kind.
    pub fn new(kind: NnErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// What went wrong.
    pub fn kind(&self) -> NnErrorKind {
        self.kind
    }

    pub(super) fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(NnErrorKind::InvalidArgument, message)
    }

    pub(super) fn invalid_encoding(message: impl Into<String>) -> Self {
        Self::new(NnErrorKind::InvalidEncoding, message)
    }

    pub(super) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(NnErrorKind::UnsupportedOperation, message)
    }

    pub(crate) fn runtime(message: impl Into<String>) -> Self {
        Self::new(NnErrorKind::RuntimeError, message)
    }

    pub(super) fn timeout(message: impl Into<String>) -> Self {
        Self::new(NnErrorKind::Timeout, message)
    }

    pub(super) fn overloaded(message: impl Into<String>) -> Self {
        Self::new(NnErrorKind::Overloaded, message)
    }
}

/// What a caught panic said, for the message of a `RuntimeError`.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    match panic.downcast_ref::<String>() {
        Some(text) => text,
        None => panic.downcast_ref::<&str>().copied().unwrap_or("no message"),
    }
}
