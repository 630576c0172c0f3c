//! Tests of Tessera as a whole: the real binary over HTTP, and through clients that people use.
//!
//! One binary, because linking is what test builds spend their time on. Each test starts a server of its own on a free
//! port of the loopback interface, with its state in a temporary folder; [`harness`] does that and stops it again. What
//! else is needed (binary, guests, models, Python) comes from `make test`, and a test without it fails and says so.
//!
//! - [`access`]: every route, called by every kind of caller.
//! - [`hostile`]: guests that misbehave. The caller learns why, everybody else notices nothing.
//! - [`identities`]: users, groups, service principals, tokens, OAuth; workspaces, their quotas, and that none sees another.
//! - [`isolation`]: nothing passes from one request to another.
//! - [`http`]: bad, slow and large requests; streams; the graceful end.
//! - [`tls`]: certificates, their change while requests run, clients that must have one.
//! - [`endpoint_control`]: all else that clients do with endpoints; stop and start.
//! - [`gateway`]: rate limits, audit log, usage and payloads.
//! - [`endpoints`]: create, update, split, fail, delete, restart, scale to zero.
//! - [`density`]: many endpoints, of which few are in memory.
//! - [`described`]: components that say what they take and answer, in OpenAPI.
//! - [`crash`]: `kill -9` at any moment.
//! - [`sealed`]: nothing readable on disk, wrong keys, key rotation.
//! - [`models`]: real models, compared with the Python libraries they come from.
//! - [`examples`]: guests that take pictures, sound and texts.
//! - [`chat`]: a language model through OpenAI's and MLflow's clients, `tessera chat`, hostile chat templates.
//! - [`language_models`]: guests that drive language models.
//! - [`open_inference`]: the Open Inference Protocol with tritonclient and kserve, over REST and gRPC.
//! - [`packaging`]: models of other frameworks, by the Python package and by MLflow's deployment target.
//! - [`mlflow`]: MLflow's own client, and its scoring server as an oracle.
//! - [`registry`]: models, versions, aliases, uploads; logging models with MLflow.
//! - [`text`]: classes of texts and tokens, beside what the pipelines of transformers answered.
//! - [`languages`]: guests in Python and JavaScript.
//! - [`proxy`]: components of `wasi:http/proxy`, beside `wasmtime serve`, and the hosts that guests call.
//! - [`oci`]: packages in a registry, Debian's docker-registry.
//! - [`signing`]: servers that run only what is signed.
//! - [`cli`]: the command line.
//! - [`projects`]: models with code of their own: made, built, packed, served while they are written.
//! - [`audit`]: the audit log and the usage table, by the command line.

// Helpers of tests may panic as tests do; clippy's setting covers only the functions marked `#[test]`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod access;
mod audit;
mod chat;
mod cli;
mod crash;
mod density;
mod described;
mod endpoint_control;
mod endpoints;
mod examples;
mod gateway;
mod harness;
mod hostile;
mod http;
mod identities;
mod isolation;
mod language_models;
mod languages;
mod mlflow;
mod models;
mod oci;
mod open_inference;
mod packaging;
mod permissions;
mod projects;
mod proxy;
mod registry;
mod sealed;
mod secrets;
mod signing;
mod text;
mod tls;
