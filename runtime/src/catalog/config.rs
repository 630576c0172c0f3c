//! What an endpoint is configured to serve: records as they are stored, checked where they are made.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::access::Grant;

/// The tenant: everything belongs to one, and what belongs to another does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkspaceId(pub u64);

impl fmt::Display for WorkspaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Most served entities of an endpoint: what the real service takes, though its documents say 10.
pub const ENTITIES_MAX: usize = 15;

/// Idle times that a served entity may ask for: a second to thirty days. To stay in memory it does not scale to zero.
const IDLE_MS: std::ops::RangeInclusive<u64> = 1000..=30 * 24 * 3600 * 1000;

/// Most environment variables of a served entity.
const ENVIRONMENT_VARS_MAX: usize = 30;

/// Names that would collide with the OpenAI paths below `/serving-endpoints/`.
const RESERVED_NAMES: [&str; 6] = ["chat", "completions", "embeddings", "responses", "anthropic", "gemini"];

/// A config that cannot be: a sentence for whoever sent it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidConfig(pub String);

fn invalid<T>(message: impl Into<String>) -> Result<T, InvalidConfig> {
    Err(InvalidConfig(message.into()))
}

/// Checks the name of an endpoint or served entity: letters, digits, `-`, `_` (and `.` for entities), 1 to 63.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(what: &str, name: &str, dots: bool) -> Result<(), InvalidConfig> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || (dots && c == '.');
    if name.is_empty() || name.len() > 63 || !name.chars().all(allowed) {
        return invalid(format!("{what} '{name}' is not allowed: use 1 to 63 letters, digits, '-' or '_'"));
    }
    Ok(())
}

/// Checks the name of a new endpoint.
///
/// # Errors
/// What is wrong with it.
pub fn check_endpoint_name(name: &str) -> Result<(), InvalidConfig> {
    check_name("endpoint name", name, false)?;
    if RESERVED_NAMES.contains(&name) || name.starts_with("databricks-") {
        return invalid(format!("endpoint name '{name}' is reserved"));
    }
    Ok(())
}

/// One model version behind an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntityConfig {
    /// Unique in the endpoint.
    pub name: String,
    /// `catalog.schema.model`.
    pub entity_name: String,
    /// Number of the version.
    pub entity_version: u64,
    /// `Small`, `Medium` or `Large`.
    pub workload_size: String,
    /// `CPU` or a GPU type.
    pub workload_type: String,
    /// Whether the model may leave memory when idle.
    pub scale_to_zero_enabled: bool,
    /// How long after its last request it does, in milliseconds; the server's own time where it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_to_zero_idle_ms: Option<u64>,
    /// Overrides of the package's settings.
    #[serde(default)]
    pub environment_vars: BTreeMap<String, String>,
    /// Who added it.
    pub creator: String,
    /// When, in ms since 1970.
    pub creation_timestamp: u64,
}

/// What an entity's graphs may run on. One machine has one kind of GPU, so all GPU types are the same here.
const WORKLOAD_TYPES: [&str; 5] = ["CPU", "GPU_SMALL", "GPU_MEDIUM", "GPU_LARGE", "MULTIGPU_MEDIUM"];

impl EntityConfig {
    /// Whether its graphs shall run on a GPU, also where the package does not say so. Whether there is one, the deploy
    /// finds out.
    pub fn wants_gpu(&self) -> bool {
        self.workload_type != "CPU"
    }

    /// Checks the parts that a caller chose.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        check_name("served entity name", &self.name, true)?;
        if !["Small", "Medium", "Large"].contains(&self.workload_size.as_str()) {
            return invalid(format!("workload_size '{}' is not one of Small, Medium, Large", self.workload_size));
        }
        if !WORKLOAD_TYPES.contains(&self.workload_type.as_str()) {
            let known = WORKLOAD_TYPES.join(", ");
            return invalid(format!("workload_type '{}' is not one of {known}", self.workload_type));
        }
        if let Some(idle_ms) = self.scale_to_zero_idle_ms.filter(|idle_ms| !IDLE_MS.contains(idle_ms)) {
            let (least, most) = (IDLE_MS.start(), IDLE_MS.end());
            return invalid(format!("scale_to_zero_idle_ms is {idle_ms}; {least} to {most} are allowed"));
        }
        if self.environment_vars.len() > ENVIRONMENT_VARS_MAX {
            return invalid(format!(
                "served entity '{}' has more than {ENVIRONMENT_VARS_MAX} environment_vars",
                self.name
            ));
        }
        Ok(())
    }
}

/// Percentages over served entities. Always sums to 100 and names only known entities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficConfig(Vec<Route>);

/// One share of the traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Name of the served entity.
    pub entity: String,
    /// 0 to 100.
    pub percentage: u8,
}

impl TrafficConfig {
    /// Checks routes against the endpoint's entities. Without routes, a single entity takes all.
    ///
    /// # Errors
    /// What does not fit.
    pub fn new(routes: Vec<Route>, entities: &[EntityConfig]) -> Result<TrafficConfig, InvalidConfig> {
        if routes.is_empty() {
            return match entities {
                [only] => Ok(TrafficConfig(vec![Route { entity: only.name.clone(), percentage: 100 }])),
                _ => invalid("traffic_config.routes is required when there are several served entities"),
            };
        }
        for (index, route) in routes.iter().enumerate() {
            if !entities.iter().any(|entity| entity.name == route.entity) {
                return invalid(format!("traffic_config names '{}', which is not a served entity", route.entity));
            }
            if routes[..index].iter().any(|other| other.entity == route.entity) {
                return invalid(format!("traffic_config names '{}' twice", route.entity));
            }
        }
        let sum: u32 = routes.iter().map(|route| u32::from(route.percentage)).sum();
        if sum != 100 {
            return invalid(format!("the traffic percentages sum to {sum}; they must sum to 100"));
        }
        Ok(TrafficConfig(routes))
    }

    /// The shares, in the order given.
    pub fn routes(&self) -> &[Route] {
        &self.0
    }

    /// The index of the route that a number from 0 to 99 falls on.
    pub fn pick(&self, percent: u8) -> usize {
        let mut below = 0u32;
        for (index, route) in self.0.iter().enumerate() {
            below += u32::from(route.percentage);
            if u32::from(percent) < below {
                return index;
            }
        }
        0
    }
}

/// A numbered config of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointConfig {
    /// Counts up with every update.
    pub version: u64,
    /// When it was asked for, in ms since 1970.
    pub start_time: u64,
    /// In the order submitted.
    pub entities: Vec<EntityConfig>,
    /// Shares of the traffic.
    pub traffic: TrafficConfig,
}

impl EndpointConfig {
    /// Checks entities and their names.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        if self.entities.is_empty() {
            return invalid("served_entities is empty: name at least one model version");
        }
        if self.entities.len() > ENTITIES_MAX {
            return invalid(format!(
                "{} served entities are more than the allowed {ENTITIES_MAX}",
                self.entities.len()
            ));
        }
        for (index, entity) in self.entities.iter().enumerate() {
            entity.check()?;
            if self.entities[..index].iter().any(|other| other.name == entity.name) {
                return invalid(format!("two served entities have the name '{}'", entity.name));
            }
        }
        Ok(())
    }
}

/// A config that could not be deployed, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedConfig {
    /// The config.
    pub config: EndpointConfig,
    /// The entity that failed.
    pub entity: String,
    /// The reason, for the caller.
    pub message: String,
}

/// An endpoint as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    /// Whose it is.
    pub workspace: WorkspaceId,
    /// Unique in the workspace.
    pub name: String,
    /// 32 hex digits.
    pub id: String,
    /// Who made it.
    pub creator: String,
    /// Number of the identity that made it: it may always manage it.
    #[serde(default)]
    pub owner: u64,
    /// Who else may do what with it.
    #[serde(default)]
    pub grants: Vec<Grant>,
    /// Free text.
    pub description: Option<String>,
    /// Free labels.
    #[serde(default)]
    pub tags: Vec<Tag>,
    /// In ms since 1970.
    pub creation_timestamp: u64,
    /// In ms since 1970.
    pub last_updated_timestamp: u64,
    /// What serves.
    pub config: Option<EndpointConfig>,
    /// What is being deployed.
    pub pending: Option<EndpointConfig>,
    /// The last update, if it failed.
    pub failed: Option<FailedConfig>,
    /// What runs the graphs of `config`, as its deploy found it: a list wakes nobody to ask.
    #[serde(default)]
    pub graphs: Vec<DeployedGraph>,
}

/// What runs a graph of a served entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployedGraph {
    /// The served entity's name.
    pub entity: String,
    /// The guest's name for it.
    pub name: String,
    /// Name of the backend.
    pub backend: String,
    /// Its version.
    pub backend_version: String,
    /// Name of the execution target.
    pub target: String,
    /// Threads of one run, as far as its deploy told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intra_op_threads: Option<u32>,
}

/// A label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// Name.
    pub key: String,
    /// Value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl EndpointRecord {
    /// A record that says nothing yet.
    pub fn empty(workspace: WorkspaceId, name: &str) -> EndpointRecord {
        EndpointRecord {
            workspace,
            name: name.to_owned(),
            id: String::new(),
            creator: String::new(),
            owner: 0,
            grants: Vec::new(),
            description: None,
            tags: Vec::new(),
            creation_timestamp: 0,
            last_updated_timestamp: 0,
            config: None,
            pending: None,
            failed: None,
            graphs: Vec::new(),
        }
    }

    /// The number of the next config.
    pub fn next_version(&self) -> u64 {
        let versions = [self.config.as_ref(), self.pending.as_ref(), self.failed.as_ref().map(|failed| &failed.config)];
        versions.into_iter().flatten().map(|config| config.version).max().unwrap_or(0) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entity(name: &str) -> EntityConfig {
        EntityConfig {
            name: name.to_owned(),
            entity_name: "a.b.c".to_owned(),
            entity_version: 1,
            workload_size: "Small".to_owned(),
            workload_type: "CPU".to_owned(),
            scale_to_zero_enabled: true,
            scale_to_zero_idle_ms: None,
            environment_vars: BTreeMap::new(),
            creator: String::new(),
            creation_timestamp: 0,
        }
    }

    fn route(entity: &str, percentage: u8) -> Route {
        Route { entity: entity.to_owned(), percentage }
    }

    #[test]
    fn traffic_always_sums_to_100_over_known_entities() {
        let entities = [entity("a"), entity("b")];
        assert_eq!(TrafficConfig::new(vec![], &entities[..1]).unwrap().routes(), [route("a", 100)]);
        assert!(TrafficConfig::new(vec![], &entities).is_err());
        assert!(TrafficConfig::new(vec![route("a", 60), route("b", 30)], &entities).is_err());
        assert!(TrafficConfig::new(vec![route("a", 50), route("a", 50)], &entities).is_err());
        assert!(TrafficConfig::new(vec![route("c", 100)], &entities).is_err());
        TrafficConfig::new(vec![route("a", 100), route("b", 0)], &entities).unwrap();
    }

    #[test]
    fn every_percent_falls_on_its_route() {
        let traffic = TrafficConfig::new(vec![route("b", 0), route("a", 100)], &[entity("a"), entity("b")]).unwrap();
        assert!((0..100).all(|percent| traffic.pick(percent) == 1));
        let traffic = TrafficConfig::new(vec![route("a", 10), route("b", 90)], &[entity("a"), entity("b")]).unwrap();
        assert_eq!((0..100).filter(|percent| traffic.pick(*percent) == 0).count(), 10);
    }

    #[test]
    fn names_that_break_clients_are_refused() {
        for bad in ["", "a b", "chat", "databricks-x", "ä", "a/b", &"x".repeat(64)] {
            assert!(check_endpoint_name(bad).is_err(), "{bad}");
        }
        check_endpoint_name("iris_2-b").unwrap();
    }
}
