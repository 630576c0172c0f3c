//! Tessera serves models. Every endpoint is a WebAssembly component that runs in a fresh sandbox for each request; its
//! tensors are computed by host backends.
//!
//! # Map
//!
//! An invocation meets the modules in this order:
//!
//! - [`http`]: sockets, TLS, event loops, limits of connections and bodies.
//! - [`api`]: the route table, the wire's JSON and gRPC messages, errors. The only place that knows both HTTP and the
//!   domain.
//! - [`access`]: a token becomes a principal; who may do what, and how much of it.
//! - [`gateway`]: rate limits, counted without a lock.
//! - [`catalog`]: endpoint → traffic → served entity. An endpoint that nobody calls is a name here, and wakes from its
//!   record; [`catalog::served`] is the ladder from disk to memory.
//! - [`admission`]: a place for an instance, or a bounded wait for one, fair between workspaces.
//! - [`sandbox`]: a fresh instance with its limits; the host's side of the guest contract in `wit/`, and of
//!   `wasi:http/proxy`.
//! - [`outbound`]: to which other hosts guests may send requests, and the connections.
//! - [`nn`]: tensors, graphs, backends, and the executor that runs them.
//!
//! A deploy meets:
//!
//! - [`registry`]: models and their versions, uploaded file by file; [`tracking`]: runs that MLflow logs models from.
//! - [`control`]: endpoints are made, changed and woken; [`turns`] gives each one change at a time.
//! - [`secrets`]: values that settings refer to, which no artifact holds.
//! - [`deploy`]: package → capability check → compile worker → artifact → converted graphs → language
//!   models tried in a process of their own → golden request. [`fair`] says whose turn it is.
//! - [`store`]: records that survive, and files by digest. [`home`] is the folder that holds everything, [`seal`]
//!   encrypts what lies in it.
//!
//! - [`audit`]: who changed what, and who was denied, on disk before a change is acknowledged.
//! - [`usage`]: a row per request and, where asked for, its payload, as Parquet; beside the path, never on it.
//!
//! Before both, a developer has the commands `new`, `build`, `dev`, `package` and `inspect` of [`cli`]: a project becomes a
//! component, and that a package.
//!
//! Beside them: [`server`] puts the parts together, [`config`] and [`cli`] are what a person types, [`observe`] is what a
//! person sees, [`error`] is what a caller gets; [`memory`] gives back what is free.
//!
//! # Invariants
//!
//! - The invocation path, when warm, touches neither the store nor the disk; it compiles nothing.
//! - An idle endpoint costs its name and some hundred bytes; restart, list and sweep read records one after the other.
//! - An instance answers one request and is gone. What `init` left in memory is the only thing requests share.
//! - wasmtime is known to [`sandbox`] and [`deploy`] alone, ML libraries to [`nn::backends`], sled to [`store`], HTTP to
//!   [`http`] and [`api`], and to [`sandbox`] for guests that speak it.
//! - What is kept is sealed. In plain there is only what was made from it, in the cache folder, to be mapped and run; it
//!   may be deleted while the server is stopped.
//! - What is acknowledged is in the store; what is in the catalog is in the store.
//! - Guests reach what their contract offers and nothing else: no files, no sockets, no environment, and no host that the
//!   operator and the package do not both name.

pub mod access;
pub mod admission;
pub mod api;
pub mod audit;
pub mod catalog;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod deploy;
pub mod error;
pub mod fair;
pub mod gateway;
pub mod home;
pub mod http;
pub mod memory;
pub mod nn;
pub mod observe;
pub mod outbound;
pub mod registry;
pub mod sandbox;
pub mod seal;
pub mod secrets;
pub mod server;
pub mod store;
pub mod tracking;
pub mod turns;
pub mod usage;
