//! Lines for the endpoint's log (`tessera logs`). The host bounds them per request: what is over is counted, not kept.
//!
//! ```ignore
//! log::warn(format!("{} of {} rows have no label", missing, rows));
//! ```

use crate::bindings::tessera::endpoint::logging::Level;
#[cfg(target_arch = "wasm32")]
use crate::bindings::tessera::endpoint::logging::log;
#[cfg(not(target_arch = "wasm32"))]
use crate::testing::host::log;

/// For whoever develops the endpoint.
pub fn debug(message: impl AsRef<str>) {
    log(Level::Debug, message.as_ref());
}

/// Worth knowing.
pub fn info(message: impl AsRef<str>) {
    log(Level::Info, message.as_ref());
}

/// Worth a look.
pub fn warn(message: impl AsRef<str>) {
    log(Level::Warn, message.as_ref());
}

/// Something failed.
pub fn error(message: impl AsRef<str>) {
    log(Level::Error, message.as_ref());
}
