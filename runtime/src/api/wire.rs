//! The JSON of the API, field for field. Domain types are converted here, by hand, and nowhere else.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::access::Level;
use crate::catalog::served::ServedEntity;
use crate::catalog::{
    DeployedGraph, Endpoint, EndpointConfig, EndpointRecord, EntityConfig, FailedConfig, Route, Serving, Tag,
    TrafficConfig,
};
use crate::clock::now_ms;
use crate::error::ApiError;

/// Body of create.
#[derive(Debug, Deserialize)]
pub(super) struct CreateEndpoint {
    pub(super) name: String,
    pub(super) config: Option<ConfigInput>,
    pub(super) description: Option<String>,
    #[serde(default)]
    pub(super) tags: Vec<Tag>,
    ai_gateway: Option<Value>,
    rate_limits: Option<Value>,
}

impl CreateEndpoint {
    /// Refuses what this version would not enforce: a limit that is taken and ignored is worse than none.
    pub(super) fn refuse_unsupported(&self) -> Result<(), ApiError> {
        for (field, value) in [("ai_gateway", &self.ai_gateway), ("rate_limits", &self.rate_limits)] {
            if value.as_ref().is_some_and(|value| !value.is_null()) {
                return Err(ApiError::invalid(format!(
                    "{field} is not supported by this version of Tessera: leave it out"
                )));
            }
        }
        Ok(())
    }
}

/// A config as clients send it: entities under their new or their old name.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ConfigInput {
    served_entities: Option<Vec<EntityInput>>,
    served_models: Option<Vec<EntityInput>>,
    traffic_config: Option<TrafficInput>,
}

#[derive(Debug, Deserialize)]
struct EntityInput {
    name: Option<String>,
    #[serde(alias = "model_name")]
    entity_name: Option<String>,
    #[serde(alias = "model_version", default, deserialize_with = "text_or_number")]
    entity_version: Option<String>,
    workload_size: Option<String>,
    workload_type: Option<String>,
    scale_to_zero_enabled: Option<bool>,
    /// Ours.
    scale_to_zero_idle_ms: Option<u64>,
    #[serde(default)]
    environment_vars: BTreeMap<String, String>,
    external_model: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct TrafficInput {
    #[serde(default)]
    routes: Vec<RouteInput>,
}

#[derive(Debug, Deserialize)]
struct RouteInput {
    #[serde(alias = "served_entity_name")]
    served_model_name: Option<String>,
    #[serde(deserialize_with = "percentage")]
    traffic_percentage: u8,
}

/// Versions arrive as text from the SDK and as numbers from hand-written requests.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Option::<Value>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => Err(serde::de::Error::custom(format!("a version is a number, not {other}"))),
    }
}

/// The official documents send `"90"`.
fn percentage<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let number = match &value {
        Value::String(text) => text.parse().ok(),
        value => value.as_u64(),
    };
    number.filter(|number| *number <= 100).map(|number| number as u8).ok_or_else(|| {
        serde::de::Error::custom(format!("traffic_percentage is a whole number from 0 to 100, not {value}"))
    })
}

impl ConfigInput {
    /// The config that the caller means, with defaults filled in. The version is given when it is stored.
    ///
    /// Without entities, those of `current` stay: clients change only the traffic so.
    pub(super) fn into_config(
        self,
        creator: &str,
        current: Option<&EndpointConfig>,
    ) -> Result<EndpointConfig, ApiError> {
        let entities: Vec<EntityConfig> = match self.served_entities.or(self.served_models) {
            Some(inputs) => inputs.into_iter().map(|input| input.into_entity(creator)).collect::<Result<_, _>>()?,
            None => current.map(|current| current.entities.clone()).unwrap_or_default(),
        };
        let mut routes = Vec::new();
        for route in self.traffic_config.map(|traffic| traffic.routes).unwrap_or_default() {
            let entity = route
                .served_model_name
                .ok_or_else(|| ApiError::invalid("every route needs a served_entity_name (or served_model_name)"))?;
            routes.push(Route { entity, percentage: route.traffic_percentage });
        }
        if entities.is_empty() {
            return Err(ApiError::invalid("served_entities is empty: name at least one model version"));
        }
        let traffic = TrafficConfig::new(routes, &entities)?;
        Ok(EndpointConfig { version: 0, start_time: now_ms(), entities, traffic })
    }
}

impl EntityInput {
    fn into_entity(self, creator: &str) -> Result<EntityConfig, ApiError> {
        if self.external_model.is_some() {
            return Err(ApiError::invalid("external_model is not supported by this version of Tessera"));
        }
        let entity_name = self.entity_name.ok_or_else(|| ApiError::invalid("a served entity needs an entity_name"))?;
        let version = self.entity_version.unwrap_or_default();
        let entity_version: u64 = version.parse().map_err(|_| {
            ApiError::invalid(format!(
                "entity_version of '{entity_name}' is '{version}'; it must be a version's number"
            ))
        })?;
        let short = entity_name.rsplit('.').next().unwrap_or(&entity_name);
        Ok(EntityConfig {
            name: self.name.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("{short}-{entity_version}")),
            entity_version,
            workload_size: self.workload_size.unwrap_or_else(|| "Small".to_owned()),
            workload_type: self.workload_type.unwrap_or_else(|| "CPU".to_owned()),
            scale_to_zero_enabled: self.scale_to_zero_enabled.unwrap_or(true),
            scale_to_zero_idle_ms: self.scale_to_zero_idle_ms,
            environment_vars: self.environment_vars,
            creator: creator.to_owned(),
            creation_timestamp: now_ms(),
            entity_name,
        })
    }
}

/// ServingEndpointDetailed.
pub(super) fn endpoint(endpoint: &Endpoint, level: Level) -> Value {
    let record = &endpoint.record;
    let mut value = base(record, endpoint.serving.is_some());
    value["permission_level"] = json!(level.name());
    if let Some(config) = &record.config {
        let deployment = match &record.failed {
            // It could not be brought back after a restart.
            Some(failed) if endpoint.serving.is_none() => Deployment::Failed(failed),
            _ => Deployment::Ready,
        };
        value["config"] = config_output(config, endpoint.serving.as_deref(), deployment);
        show_graphs(&mut value["config"], record);
    }
    if let Some(pending) = &record.pending {
        value["pending_config"] = config_output(pending, None, Deployment::Creating);
        value["pending_config"]["start_time"] = json!(pending.start_time);
    } else if let Some(failed) = &record.failed {
        value["pending_config"] = config_output(&failed.config, None, Deployment::Failed(failed));
        value["pending_config"]["start_time"] = json!(failed.config.start_time);
    }
    value
}

/// ServingEndpoint, as in a list: the config in short. Of an endpoint that sleeps there is no more than its record.
pub(super) fn endpoint_in_list(record: &EndpointRecord, awake: Option<&Endpoint>, level: Level) -> Value {
    let mut value = base(record, awake.map_or(record.config.is_some(), |awake| awake.serving.is_some()));
    value["permission_level"] = json!(level.name());
    if let Some(config) = &record.config {
        let mut full = config_output(config, None, Deployment::Ready);
        show_graphs(&mut full, record);
        // What lists show of an entity; the two last are not fields of the real service, and ignored by its clients.
        let brief = |entities: &Value, keys: &[&str]| -> Vec<Value> {
            let entities = entities.as_array().into_iter().flatten();
            entities.map(|entity| keys.iter().map(|key| ((*key).to_owned(), entity[*key].clone())).collect()).collect()
        };
        value["config"] = json!({
            "served_entities": brief(&full["served_entities"], &["name", "entity_name", "entity_version", "graphs"]),
            "served_models": brief(&full["served_models"], &["name", "model_name", "model_version"]),
            "traffic_config": full["traffic_config"],
        });
    }
    value
}

/// What runs the graphs of the config that is deployed: not a field of the real service, and ignored by its clients.
fn show_graphs(config: &mut Value, record: &EndpointRecord) {
    for entities in ["served_entities", "served_models"] {
        for entity in config[entities].as_array_mut().into_iter().flatten() {
            let graphs = record.graphs.iter().filter(|graph| entity["name"] == graph.entity.as_str());
            entity["graphs"] = graphs.map(graph_output).collect();
        }
    }
}

fn base(record: &EndpointRecord, ready: bool) -> Value {
    let mut value = json!({
        "name": record.name,
        "id": record.id,
        "creator": record.creator,
        "creation_timestamp": record.creation_timestamp,
        "last_updated_timestamp": record.last_updated_timestamp,
        "state": {
            "ready": if ready { "READY" } else { "NOT_READY" },
            "config_update": config_update(record),
        },
        "tags": record.tags,
        "route_optimized": false,
    });
    if let Some(description) = &record.description {
        value["description"] = json!(description);
    }
    value
}

fn config_update(record: &EndpointRecord) -> &'static str {
    match (&record.pending, &record.failed) {
        (Some(_), _) => "IN_PROGRESS",
        (None, Some(_)) => "UPDATE_FAILED",
        (None, None) => "NOT_UPDATING",
    }
}

/// Where the entities of a config stand.
#[derive(Clone, Copy)]
enum Deployment<'a> {
    Ready,
    Creating,
    Failed(&'a FailedConfig),
}

fn config_output(config: &EndpointConfig, serving: Option<&Serving>, deployment: Deployment<'_>) -> Value {
    let served = |entity: &EntityConfig| serving.and_then(|serving| serving.entity(&entity.name)).map(AsRef::as_ref);
    let served_entities: Vec<Value> = config
        .entities
        .iter()
        .map(|entity| entity_output(entity, "entity_name", "entity_version", served(entity), deployment))
        .collect();
    let served_models: Vec<Value> = config
        .entities
        .iter()
        .map(|entity| entity_output(entity, "model_name", "model_version", served(entity), deployment))
        .collect();
    let routes: Vec<Value> = config
        .traffic
        .routes()
        .iter()
        .map(|route| {
            json!({
                "served_model_name": route.entity,
                "served_entity_name": route.entity,
                "traffic_percentage": route.percentage,
            })
        })
        .collect();
    json!({
        "config_version": config.version,
        "served_entities": served_entities,
        "served_models": served_models,
        "traffic_config": { "routes": routes },
    })
}

fn entity_output(
    entity: &EntityConfig,
    name_key: &str,
    version_key: &str,
    served: Option<&ServedEntity>,
    deployment: Deployment<'_>,
) -> Value {
    let (state, message) = match deployment {
        Deployment::Ready => ("DEPLOYMENT_READY", served.map_or("", rung_message).to_owned()),
        Deployment::Creating => ("DEPLOYMENT_CREATING", String::new()),
        Deployment::Failed(failed) if failed.entity == entity.name => ("DEPLOYMENT_FAILED", failed.message.clone()),
        Deployment::Failed(failed) => ("DEPLOYMENT_ABORTED", format!("'{}' failed", failed.entity)),
    };
    let mut value = json!({
        "name": entity.name,
        name_key: entity.entity_name,
        version_key: entity.entity_version.to_string(),
        "workload_size": entity.workload_size,
        "workload_type": entity.workload_type,
        "scale_to_zero_enabled": entity.scale_to_zero_enabled,
        "creator": entity.creator,
        "creation_timestamp": entity.creation_timestamp,
        "state": { "deployment": state, "deployment_state_message": message },
    });
    if !entity.environment_vars.is_empty() {
        value["environment_vars"] = json!(entity.environment_vars);
    }
    if let Some(idle_ms) = entity.scale_to_zero_idle_ms {
        value["scale_to_zero_idle_ms"] = json!(idle_ms);
    }
    if let Some(served) = served {
        value["in_memory"] = json!(served.component_loaded());
        if let Some(cold) = served.last_cold_start() {
            value["last_cold_start"] = json!({
                "rung": cold.rung.name(),
                "component_us": cold.component.as_micros() as u64,
                "graphs_us": cold.graphs.as_micros() as u64,
            });
        }
    }
    value
}

fn rung_message(served: &ServedEntity) -> &'static str {
    if served.component_loaded() { "" } else { "Scaled to zero" }
}

fn graph_output(graph: &DeployedGraph) -> Value {
    let mut value = json!({
        "name": graph.name,
        "backend": graph.backend,
        "backend_version": graph.backend_version,
        "target": graph.target,
    });
    if let Some(threads) = graph.intra_op_threads {
        value["intra_op_threads"] = json!(threads);
    }
    value
}
