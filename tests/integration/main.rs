//! Tests of Tessera as a whole: the real binary over HTTP, and through clients that people use.
//!
//! One binary, because linking is what test builds spend their time on. Each test starts a server of its own on a free
//! port of the loopback interface, with its state in a temporary folder; [`harness`] does that and stops it again. What
//! else is needed (binary, guests, models, Python) comes from `make test`, and a test without it fails and says so.
//!
//! - [`hostile`]: guests that misbehave. The caller learns why, everybody else notices nothing.
//! - [`isolation`]: nothing passes from one request to another.
//! - [`http`]: bad, slow and large requests; streams; the graceful end.
//! - [`endpoint_control`]: all else that clients do with endpoints; stop and start.
//! - [`endpoints`]: create, update, split, fail, delete, restart, scale to zero.
//! - [`density`]: many endpoints, of which few are in memory.
//! - [`crash`]: `kill -9` at any moment.
//! - [`models`]: real models, compared with the Python libraries they come from.
//! - [`mlflow`]: MLflow's own client, and its scoring server as an oracle.
//! - [`cli`]: the command line.

// Helpers of tests may panic as tests do; clippy's setting covers only the functions marked `#[test]`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod cli;
mod crash;
mod density;
mod endpoint_control;
mod endpoints;
mod harness;
mod hostile;
mod http;
mod isolation;
mod mlflow;
mod models;
mod permissions;
mod secrets;
