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
