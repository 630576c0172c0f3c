//! The two contracts that a component may follow. What else differs between them lies in [`super::invoke`] and
//! [`super::proxy`].

use serde::{Deserialize, Serialize};

/// The interface that components of `wasi:http/proxy` export, in whichever version 0.2 they were built with.
const INCOMING_HANDLER: &str = "wasi:http/incoming-handler@0.2.";

/// Which contract a component follows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum World {
    /// `tessera:endpoint`, of `wit/`: `init` once, `handle` for each request.
    #[default]
    Endpoint,
    /// `wasi:http/proxy`, which other hosts serve too: it gets requests of HTTP as they are.
    Proxy,
}

impl World {
    /// The world that a component is made for, by the names of what it exports; none that is known here.
    pub fn of<'a>(exports: impl Iterator<Item = &'a str> + Clone) -> Option<World> {
        let has = |name: &str| exports.clone().any(|export| export == name);
        if has("init") && has("handle") {
            return Some(World::Endpoint);
        }
        exports.clone().any(|export| export.starts_with(INCOMING_HANDLER)).then_some(World::Proxy)
    }

    /// As its own WIT calls it.
    pub fn name(self) -> &'static str {
        match self {
            World::Endpoint => "tessera:endpoint/endpoint",
            World::Proxy => "wasi:http/proxy",
        }
    }
}
