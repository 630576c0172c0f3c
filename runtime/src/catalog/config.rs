//! What an endpoint is configured to serve: records as they are stored, checked where they are made.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::gateway_config::InferenceTable;
use super::settings::EndpointSettings;
use crate::access::Grant;
use crate::secrets::is_reference;

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

/// An environment variable: its name, and its value.
const VARIABLE_NAME_BYTES_MAX: usize = 255;
const VARIABLE_VALUE_BYTES_MAX: usize = 16 << 10;

/// Most provisioned concurrency of a served entity.
const CONCURRENCY_MAX: u32 = 1024;

/// Provisioned concurrency comes in steps of the requests that one replica takes.
const CONCURRENCY_STEP: u32 = 4;

/// Names that would collide with the OpenAI paths below `/serving-endpoints/`, and with `pt` below the API's own.
const RESERVED_NAMES: [&str; 7] = ["chat", "completions", "embeddings", "responses", "anthropic", "gemini", "pt"];

/// A config that cannot be: a sentence for whoever sent it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidConfig(pub String);

pub(super) fn invalid<T>(message: impl Into<String>) -> Result<T, InvalidConfig> {
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

/// Checks the name of a served entity.
///
/// # Errors
/// What is wrong with it.
pub fn check_entity_name(name: &str) -> Result<(), InvalidConfig> {
    check_name("served entity name", name, true)
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
    /// `Small`, `Medium` or `Large`; none where it is sized otherwise.
    pub workload_size: Option<String>,
    /// Its size in other measures.
    #[serde(default)]
    pub provisioned: Provisioned,
    /// Whether it may take more for a moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_scaling_enabled: Option<bool>,
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
    /// Version of the config whose deploy made it ready: later configs took it over. Its build log has this number.
    #[serde(default)]
    pub built_by: u64,
}

/// A size in requests, tokens per second or units of a model, instead of a workload size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisioned {
    /// Least requests at one time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency_min: Option<u32>,
    /// Most requests at one time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency_max: Option<u32>,
    /// Least tokens per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput_min: Option<u64>,
    /// Most tokens per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput_max: Option<u64>,
    /// Units of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_units: Option<u64>,
}

/// What an entity's graphs may run on. One machine has one kind of processor and one of GPU, so all types of one kind are
/// the same here.
const WORKLOAD_TYPES: [&str; 9] = [
    "CPU",
    "CPU_MEDIUM",
    "CPU_LARGE",
    "GPU_SMALL",
    "GPU_MEDIUM",
    "GPU_LARGE",
    "GPU_XLARGE",
    "GPU_XLARGE_8",
    "MULTIGPU_MEDIUM",
];

/// Workload sizes, with the requests at one time that they stand for.
const WORKLOAD_SIZES: [(&str, u32); 3] = [("Small", 4), ("Medium", 16), ("Large", 64)];

impl Provisioned {
    fn check(&self, entity: &str) -> Result<(), InvalidConfig> {
        let concurrency = [("min", self.concurrency_min), ("max", self.concurrency_max)];
        for (end, value) in concurrency.into_iter().filter_map(|(end, value)| Some((end, value?))) {
            if value % CONCURRENCY_STEP != 0 || value > CONCURRENCY_MAX {
                return invalid(format!(
                    "{end}_provisioned_concurrency of '{entity}' is {value}; it must be a multiple of {CONCURRENCY_STEP} up to {CONCURRENCY_MAX}"
                ));
            }
        }
        if self.concurrency_max == Some(0) {
            return invalid(format!(
                "max_provisioned_concurrency of '{entity}' is 0; it must be at least {CONCURRENCY_STEP}"
            ));
        }
        let concurrency = (self.concurrency_min.map(u64::from), self.concurrency_max.map(u64::from));
        for (what, (least, most)) in
            [("concurrency", concurrency), ("throughput", (self.throughput_min, self.throughput_max))]
        {
            if let (Some(least), Some(most)) = (least, most)
                && least > most
            {
                return invalid(format!(
                    "min_provisioned_{what} of '{entity}' is {least}, more than max_provisioned_{what}, {most}"
                ));
            }
        }
        if self.model_units == Some(0) {
            return invalid(format!("provisioned_model_units of '{entity}' is 0; it must be at least 1"));
        }
        Ok(())
    }
}

impl EntityConfig {
    /// Whether its graphs shall run on a GPU, also where the package does not say so. Whether there is one, the deploy
    /// finds out.
    pub fn wants_gpu(&self) -> bool {
        !self.workload_type.starts_with("CPU")
    }

    /// Requests at one time that its size stands for.
    pub fn provisioned_concurrency(&self) -> u32 {
        let of_size = WORKLOAD_SIZES.iter().find(|(size, _)| self.workload_size.as_deref() == Some(size));
        let asked = self.provisioned.concurrency_max.or(self.provisioned.concurrency_min);
        asked.or(of_size.map(|(_, requests)| *requests)).unwrap_or(CONCURRENCY_STEP)
    }

    /// Whether two configs of an entity need the same in memory, so that one can serve as the other.
    pub fn serves_as(&self, other: &EntityConfig) -> bool {
        let idle = |entity: &EntityConfig| (entity.scale_to_zero_enabled, entity.scale_to_zero_idle_ms);
        (&self.entity_name, self.entity_version, &self.environment_vars, &self.workload_type, idle(self))
            == (&other.entity_name, other.entity_version, &other.environment_vars, &other.workload_type, idle(other))
            // A secret may have another value by now.
            && !self.environment_vars.values().any(|value| is_reference(value))
    }

    /// Takes over what its predecessor in the last config keeps: the deploy, and where nothing was changed also who added
    /// it and when.
    pub(super) fn succeed(&mut self, last: &EntityConfig) {
        if self.serves_as(last) {
            self.built_by = last.built_by;
        }
        let (creator, creation_timestamp) = (last.creator.clone(), last.creation_timestamp);
        let unchanged = EntityConfig { creator, creation_timestamp, ..self.clone() };
        if unchanged == (EntityConfig { built_by: self.built_by, ..last.clone() }) {
            *self = unchanged;
        }
    }

    /// Checks the parts that a caller chose.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        check_entity_name(&self.name)?;
        if let Some(size) = &self.workload_size
            && !WORKLOAD_SIZES.iter().any(|(known, _)| known == size)
        {
            return invalid(format!("workload_size '{size}' is not one of Small, Medium, Large"));
        }
        let provisioned = &self.provisioned;
        if self.workload_size.is_some() && (provisioned.concurrency_min, provisioned.concurrency_max) != (None, None) {
            return invalid(format!(
                "served entity '{}' has both a workload_size and a provisioned concurrency: use one",
                self.name
            ));
        }
        provisioned.check(&self.name)?;
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
        for (name, value) in &self.environment_vars {
            if name.is_empty() || name.len() > VARIABLE_NAME_BYTES_MAX || name.contains(['=', '\0']) {
                return invalid(format!(
                    "environment_vars: '{name}' is not a name: 1 to {VARIABLE_NAME_BYTES_MAX} bytes without '='"
                ));
            }
            if value.len() > VARIABLE_VALUE_BYTES_MAX {
                return invalid(format!(
                    "environment_vars.{name} has {} bytes; the limit is {VARIABLE_VALUE_BYTES_MAX}",
                    value.len()
                ));
            }
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointConfig {
    /// Counts up with every update.
    pub version: u64,
    /// When it was asked for, in ms since 1970.
    pub start_time: u64,
    /// In the order submitted.
    pub entities: Vec<EntityConfig>,
    /// Shares of the traffic.
    pub traffic: TrafficConfig,
    /// The older way to keep requests and responses, beside the gateway's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_capture: Option<InferenceTable>,
}

impl EndpointConfig {
    /// This config as the one after `last`, under its number: entities that it kept keep what they have.
    #[must_use]
    pub fn after(mut self, last: Option<&EndpointConfig>, version: u64, now_ms: u64) -> EndpointConfig {
        (self.version, self.start_time) = (version, now_ms);
        for entity in &mut self.entities {
            entity.built_by = version;
            let mut last = last.into_iter().flat_map(|last| &last.entities);
            if let Some(last) = last.find(|last| last.name == entity.name) {
                entity.succeed(last);
            }
        }
        self
    }

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
        if let Some(table) = &self.auto_capture {
            table.check("auto_capture_config")?;
        }
        Ok(())
    }
}

/// A config that could not be deployed, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailedConfig {
    /// The config.
    pub config: EndpointConfig,
    /// The entity that failed; empty where the deploy was cancelled.
    pub entity: String,
    /// The reason, for the caller.
    pub message: String,
    /// Whether somebody stopped it.
    #[serde(default)]
    pub canceled: bool,
}

/// Whether an endpoint was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suspend {
    /// It serves nothing until it is started again.
    Stopped,
    /// It was, and its config is being deployed again.
    Starting,
    /// It was, and serves again.
    Started,
}

/// An endpoint as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// What can be changed without a deploy.
    #[serde(flatten)]
    pub settings: EndpointSettings,
    /// In ms since 1970.
    pub creation_timestamp: u64,
    /// In ms since 1970.
    pub last_updated_timestamp: u64,
    /// What serves.
    pub config: Option<EndpointConfig>,
    /// What is being deployed.
    pub pending: Option<EndpointConfig>,
    /// The last update, if it failed or was cancelled.
    pub failed: Option<FailedConfig>,
    /// None for an endpoint that was never stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<Suspend>,
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
            settings: EndpointSettings::default(),
            creation_timestamp: 0,
            last_updated_timestamp: 0,
            config: None,
            pending: None,
            failed: None,
            suspend: None,
            graphs: Vec::new(),
        }
    }

    /// Whether it serves nothing because somebody stopped it.
    pub fn is_suspended(&self) -> bool {
        matches!(self.suspend, Some(Suspend::Stopped | Suspend::Starting))
    }

    /// What is kept of its settings and its config but not done.
    pub fn not_enforced(&self) -> Vec<&'static str> {
        self.settings.not_enforced()
    }

    /// The table of requests and responses, if one is written: the gateway's, or that of the older way.
    pub fn inference_table(&self) -> Option<&InferenceTable> {
        let gateway = self.settings.gateway.as_ref().and_then(|gateway| gateway.inference_table.as_ref());
        let older = self.config.as_ref().and_then(|config| config.auto_capture.as_ref());
        [gateway, older].into_iter().flatten().find(|table| table.is_on())
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
            workload_size: Some("Small".to_owned()),
            provisioned: Provisioned::default(),
            burst_scaling_enabled: None,
            workload_type: "CPU".to_owned(),
            scale_to_zero_enabled: true,
            scale_to_zero_idle_ms: None,
            environment_vars: BTreeMap::new(),
            creator: String::new(),
            creation_timestamp: 0,
            built_by: 1,
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
    fn a_kept_entity_keeps_its_deploy_and_an_equal_one_its_creator() {
        let config = |entities: Vec<EntityConfig>| {
            let traffic = TrafficConfig::new(vec![route("a", 100)], &entities).unwrap();
            EndpointConfig { version: 0, start_time: 0, entities, traffic, auto_capture: None }
        };
        let first = config(vec![entity("a")]).after(None, 1, 10);
        let again = EntityConfig { creator: "other".to_owned(), creation_timestamp: 20, ..entity("a") };
        let larger = EntityConfig { workload_size: Some("Large".to_owned()), ..again.clone() };
        let newer = EntityConfig { entity_version: 2, ..again.clone() };
        let second = |entity: EntityConfig| config(vec![entity]).after(Some(&first), 2, 20).entities.remove(0);
        assert_eq!(second(again), first.entities[0]);
        assert_eq!((second(larger.clone()).built_by, second(larger).creator.as_str()), (1, "other"));
        assert_eq!(second(newer).built_by, 2);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let with = |provisioned| EntityConfig { workload_size: None, provisioned, ..entity("a") }.check();
        let concurrency = |min, max| Provisioned { concurrency_min: min, concurrency_max: max, ..Default::default() };
        with(concurrency(Some(0), Some(1024))).unwrap();
        for (min, max) in [(Some(8), Some(4)), (None, Some(6)), (None, Some(1028)), (None, Some(0))] {
            assert!(with(concurrency(min, max)).is_err(), "{min:?} {max:?}");
        }
        assert!(with(Provisioned { throughput_min: Some(2), throughput_max: Some(1), ..Default::default() }).is_err());
        assert!(EntityConfig { provisioned: concurrency(None, Some(8)), ..entity("a") }.check().is_err());
    }

    #[test]
    fn names_that_break_clients_are_refused() {
        for bad in ["", "a b", "chat", "databricks-x", "ä", "a/b", &"x".repeat(64)] {
            assert!(check_endpoint_name(bad).is_err(), "{bad}");
        }
        check_endpoint_name("iris_2-b").unwrap();
    }
}
