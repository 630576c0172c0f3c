//! The limits that stand before each endpoint and each workspace, compiled from what is configured when a request first
//! meets them, and again when that has changed. What was counted goes on counting.

use std::sync::Arc;

use super::limits::{self, Admitted, Caller, Limits, Quota, Refusal, monotonic_ms};
use crate::access::{Directory, IdentityKind, Principal, Tallies};
use crate::catalog::gateway_config::RateLimit;
use crate::catalog::{EndpointRecord, WorkspaceId};

type Map<K, V> = papaya::HashMap<K, V>;

/// All limits. Read without a lock.
pub struct Gate {
    directory: Arc<Directory>,
    tallies: Arc<Tallies>,
    /// By id.
    endpoints: Map<Box<str>, Arc<OfEndpoint>>,
    workspaces: Map<WorkspaceId, Arc<OfWorkspace>>,
}

/// An endpoint's limits, and what they were made from.
#[derive(Default)]
struct OfEndpoint {
    gateway: Vec<RateLimit>,
    older: Vec<RateLimit>,
    compiled: [Limits; 2],
}

struct OfWorkspace {
    quota: Quota,
    compiled: Limits,
}

impl Gate {
    /// The limits of a server.
    pub fn new(directory: Arc<Directory>, tallies: Arc<Tallies>) -> Gate {
        Gate { directory, tallies, endpoints: Map::new(), workspaces: Map::new() }
    }

    /// Counts a request with at most `tokens` tokens in all limits that it meets, or in none.
    ///
    /// # Errors
    /// The limit that it is over.
    pub fn admit(&self, principal: &Principal, endpoint: &EndpointRecord, tokens: u64) -> Result<Admitted, Refusal> {
        let member_of = |name: &str| {
            let is = |id: &u64| {
                let group = self.directory.identity(principal.workspace, *id);
                group.is_some_and(|group| group.name == name)
            };
            principal.groups.iter().any(is)
        };
        let caller = Caller {
            id: principal.id,
            name: &principal.name,
            service_principal: principal.kind == IdentityKind::ServicePrincipal,
            member_of: &member_of,
        };
        let workspace = self.of_workspace(principal.workspace);
        let now_ms = monotonic_ms();
        match self.of_endpoint(endpoint) {
            None => limits::admit(&[&workspace.compiled], &caller, tokens, now_ms),
            Some(endpoint) => {
                let [gateway, older] = &endpoint.compiled;
                limits::admit(&[&workspace.compiled, gateway, older], &caller, tokens, now_ms)
            }
        }
    }

    /// Forgets what nobody has asked for in the last minute. To be called from time to time.
    pub fn remove_idle(&self) {
        let now_ms = monotonic_ms();
        for endpoint in self.endpoints.pin().values() {
            endpoint.compiled.iter().for_each(|limits| limits.remove_idle(now_ms));
        }
    }

    /// Forgets an endpoint that is gone.
    pub fn remove(&self, endpoint_id: &str) {
        self.endpoints.pin().remove(endpoint_id);
    }

    fn of_endpoint(&self, record: &EndpointRecord) -> Option<Arc<OfEndpoint>> {
        let gateway = record.settings.gateway.as_ref().and_then(|gateway| gateway.rate_limits.as_deref());
        let (gateway, older) = (gateway.unwrap_or_default(), record.settings.rate_limits.as_slice());
        if gateway.is_empty() && older.is_empty() {
            return None;
        }
        let endpoints = self.endpoints.pin();
        let known = endpoints.get(record.id.as_str());
        if let Some(known) = known.filter(|known| known.gateway == gateway && known.older == older) {
            return Some(Arc::clone(known));
        }
        let made = Arc::new(OfEndpoint {
            gateway: gateway.to_vec(),
            older: older.to_vec(),
            compiled: [
                Limits::endpoint(gateway, known.map(|known| &known.compiled[0])),
                Limits::endpoint(older, known.map(|known| &known.compiled[1])),
            ],
        });
        endpoints.insert(record.id.as_str().into(), Arc::clone(&made));
        Some(made)
    }

    fn of_workspace(&self, id: WorkspaceId) -> Arc<OfWorkspace> {
        let limits = self.tallies.of(id).limits();
        let quota = Quota {
            requests_per_minute: Some(limits.requests_per_minute),
            tokens_per_minute: Some(limits.tokens_per_minute),
        };
        let workspaces = self.workspaces.pin();
        let known = workspaces.get(&id);
        if let Some(known) = known.filter(|known| known.quota == quota) {
            return Arc::clone(known);
        }
        let compiled = Limits::workspace(quota, known.map(|known| &known.compiled));
        let made = Arc::new(OfWorkspace { quota, compiled });
        workspaces.insert(id, Arc::clone(&made));
        made
    }
}
