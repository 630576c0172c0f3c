//! What the command line reads of the API's answers. Every field may be missing: a table with a gap is better than no
//! table against a server of another version.

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EndpointList {
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Endpoint {
    pub(super) name: String,
    pub(super) id: Option<String>,
    pub(super) creator: Option<String>,
    pub(super) creation_timestamp: Option<u64>,
    pub(super) last_updated_timestamp: Option<u64>,
    pub(super) state: EndpointState,
    pub(super) config: Option<EndpointConfig>,
    pub(super) pending_config: Option<EndpointConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Tags {
    pub(super) tags: Vec<Tag>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Tag {
    pub(super) key: String,
    pub(super) value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EndpointState {
    pub(super) ready: String,
    pub(super) config_update: String,
    pub(super) suspend: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EndpointConfig {
    pub(super) config_version: Option<u64>,
    pub(super) served_entities: Vec<ServedEntity>,
    pub(super) traffic_config: TrafficConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServedEntity {
    pub(super) name: String,
    pub(super) entity_name: Option<String>,
    pub(super) entity_version: Option<String>,
    pub(super) state: ServedEntityState,
    /// Ours, beside what Databricks answers: which backend runs each graph.
    pub(super) graphs: Vec<Graph>,
    /// Ours: whether its component is in memory.
    pub(super) in_memory: Option<bool>,
    /// Ours: what the last request that found it scaled to zero had to wait for.
    pub(super) last_cold_start: Option<ColdStart>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ColdStart {
    pub(super) rung: String,
    pub(super) component_us: u64,
    pub(super) graphs_us: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServedEntityState {
    pub(super) deployment: String,
    pub(super) deployment_state_message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Graph {
    pub(super) name: String,
    pub(super) backend: String,
    pub(super) backend_version: Option<String>,
    pub(super) target: Option<String>,
    pub(super) intra_op_threads: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TrafficConfig {
    pub(super) routes: Vec<Route>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Route {
    pub(super) served_entity_name: String,
    pub(super) traffic_percentage: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Logs {
    pub(super) logs: String,
}

/// One page of a search in the registry.
#[derive(Debug, Deserialize)]
pub(super) struct Page<T> {
    #[serde(default = "Vec::new", alias = "registered_models", alias = "model_versions")]
    pub(super) items: Vec<T>,
    #[serde(default)]
    pub(super) next_page_token: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RegisteredModelAnswer {
    pub(super) registered_model: RegisteredModel,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RegisteredModel {
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) last_updated_timestamp: Option<u64>,
    pub(super) aliases: Vec<Alias>,
    pub(super) tags: Vec<Tag>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Alias {
    pub(super) alias: String,
    pub(super) version: String,
}

/// Without a version we could not go on, so here it must be there.
#[derive(Debug, Deserialize)]
pub(super) struct ModelVersionAnswer {
    pub(super) model_version: ModelVersion,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct ModelVersion {
    pub(super) version: String,
    #[serde(default)]
    pub(super) status: String,
    #[serde(default)]
    pub(super) description: Option<String>,
    #[serde(default)]
    pub(super) creation_timestamp: Option<u64>,
    /// Why it was refused, or why it cannot be served.
    #[serde(default)]
    pub(super) status_message: String,
}

impl Endpoint {
    /// Whether a config is being deployed.
    pub(super) fn is_updating(&self) -> bool {
        self.state.config_update == "IN_PROGRESS"
    }

    /// What went wrong with the newest config, entity by entity; empty if nothing did.
    pub(super) fn failure(&self) -> String {
        let entities = self.pending_config.iter().chain(&self.config).flat_map(|config| &config.served_entities);
        let failed = entities.filter(|entity| matches!(entity.state.deployment.as_str(), FAILED | ABORTED));
        let text = |entity: &ServedEntity| match entity.state.deployment_state_message.as_str() {
            "" => format!("{}: {}", entity.name, entity.state.deployment),
            message => format!("{}: {message}", entity.name),
        };
        failed.map(text).collect::<Vec<_>>().join("; ")
    }
}

const FAILED: &str = "DEPLOYMENT_FAILED";
const ABORTED: &str = "DEPLOYMENT_ABORTED";

impl EndpointConfig {
    /// The share of requests that goes to an entity, if the answer carries the traffic config.
    pub(super) fn percentage(&self, entity: &ServedEntity) -> Option<u64> {
        let route = self.traffic_config.routes.iter().find(|route| route.served_entity_name == entity.name);
        route.map(|route| route.traffic_percentage)
    }
}
