//! The catalog: what is served, as one immutable snapshot that the request path reads and a deploy swaps.
//!
//! Requests load the snapshot once and keep what they found; a config that was replaced meanwhile lives on until its last
//! request ends.

mod config;
pub mod served;

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

pub use self::config::{
    ENTITIES_MAX, EndpointConfig, EndpointRecord, EntityConfig, FailedConfig, InvalidConfig, Route, Tag, TrafficConfig,
    WorkspaceId, check_endpoint_name,
};
use self::served::ServedEntity;

/// An endpoint in the catalog.
pub struct Endpoint {
    /// What is stored of it.
    pub record: EndpointRecord,
    /// What answers requests; none until the first deploy has succeeded.
    pub serving: Option<Arc<Serving>>,
}

/// A config that serves.
pub struct Serving {
    /// In the order of the config.
    pub entities: Vec<Arc<ServedEntity>>,
    /// Indexes into `entities` in the order of the traffic's routes.
    routes: Vec<usize>,
    traffic: TrafficConfig,
}

impl Serving {
    /// Entities with their traffic. `entities` are those of the config that `traffic` was checked against.
    pub fn new(entities: Vec<Arc<ServedEntity>>, traffic: TrafficConfig) -> Serving {
        let position = |name: &str| entities.iter().position(|entity| entity.config.name == name).unwrap_or(0);
        let routes = traffic.routes().iter().map(|route| position(&route.entity)).collect();
        Serving { entities, routes, traffic }
    }

    /// The entity that the next request goes to: weighted, at random.
    pub fn pick(&self) -> &Arc<ServedEntity> {
        match self.entities.as_slice() {
            [only] => only,
            entities => &entities[self.routes[self.traffic.pick(fastrand::u8(0..100))]],
        }
    }

    /// An entity by name.
    pub fn entity(&self, name: &str) -> Option<&Arc<ServedEntity>> {
        self.entities.iter().find(|entity| entity.config.name == name)
    }
}

/// All endpoints at one moment.
#[derive(Default, Clone)]
struct Snapshot {
    workspaces: HashMap<WorkspaceId, HashMap<String, Arc<Endpoint>>>,
}

/// The current snapshot.
#[derive(Default)]
pub struct Catalog {
    snapshot: ArcSwap<Snapshot>,
}

impl Catalog {
    /// An endpoint of a workspace.
    pub fn endpoint(&self, workspace: WorkspaceId, name: &str) -> Option<Arc<Endpoint>> {
        self.snapshot.load().workspaces.get(&workspace)?.get(name).cloned()
    }

    /// All endpoints of a workspace, by name.
    pub fn endpoints(&self, workspace: WorkspaceId) -> Vec<Arc<Endpoint>> {
        let snapshot = self.snapshot.load();
        let mut endpoints: Vec<_> =
            snapshot.workspaces.get(&workspace).into_iter().flat_map(HashMap::values).cloned().collect();
        endpoints.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        endpoints
    }

    /// All endpoints of all workspaces, for the server's own housekeeping.
    pub fn everything(&self) -> Vec<Arc<Endpoint>> {
        self.snapshot.load().workspaces.values().flat_map(HashMap::values).cloned().collect()
    }

    /// Publishes an endpoint in place of the one of its name. Called by the control plane alone, one change at a time.
    pub fn put(&self, endpoint: Endpoint) {
        self.change(|snapshot| {
            let workspace = snapshot.workspaces.entry(endpoint.record.workspace).or_default();
            workspace.insert(endpoint.record.name.clone(), Arc::new(endpoint));
        });
    }

    /// Publishes many endpoints in one swap.
    pub fn put_all(&self, endpoints: Vec<Endpoint>) {
        self.change(|snapshot| {
            for endpoint in endpoints {
                let workspace = snapshot.workspaces.entry(endpoint.record.workspace).or_default();
                workspace.insert(endpoint.record.name.clone(), Arc::new(endpoint));
            }
        });
    }

    /// Takes an endpoint out. Requests that have it already go on.
    pub fn remove(&self, workspace: WorkspaceId, name: &str) {
        self.change(|snapshot| {
            if let Some(endpoints) = snapshot.workspaces.get_mut(&workspace) {
                endpoints.remove(name);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = Snapshot::clone(&self.snapshot.load());
        change(&mut snapshot);
        self.snapshot.store(Arc::new(snapshot));
    }
}
