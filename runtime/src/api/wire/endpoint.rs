//! Endpoints as they are answered.

use serde_json::{Value, json};

use super::gateway;
use super::settings;
use crate::access::Level;
use crate::catalog::DeployedGraph;
use crate::catalog::gateway_config::InferenceTable;
use crate::catalog::served::ServedEntity;
use crate::catalog::{Endpoint, EndpointConfig, EndpointRecord, EntityConfig, FailedConfig, Serving, Suspend};

/// ServingEndpointDetailed. `base_url` is where the caller reached the server.
pub(in crate::api) fn detailed(endpoint: &Endpoint, level: Level, base_url: &str) -> Value {
    let record = &endpoint.record;
    let mut value = base(record, endpoint.serving.is_some());
    value["permission_level"] = json!(level.name());
    if let Some(notifications) = &record.settings.notifications {
        value["email_notifications"] = settings::notifications(notifications);
    }
    if record.settings.route_optimized {
        let url = format!("{base_url}/serving-endpoints/{}/invocations", record.name);
        value["endpoint_url"] = json!(url);
        value["data_plane_info"] = json!({
            "query_info": { "endpoint_url": url, "authorization_details": authorization_details(record) },
        });
    }
    if let Some(config) = &record.config {
        let deployment = match &record.failed {
            _ if record.is_suspended() => Deployment::Stopped,
            // It could not be brought back after a restart.
            Some(failed) if endpoint.serving.is_none() => Deployment::Failed(failed),
            _ => Deployment::Ready,
        };
        value["config"] = config_output(record, config, endpoint.serving.as_deref(), deployment);
        show_graphs(&mut value["config"], record);
    }
    if let Some(pending) = &record.pending {
        value["pending_config"] = config_output(record, pending, None, Deployment::Creating);
        value["pending_config"]["start_time"] = json!(pending.start_time);
    } else if let Some(failed) = &record.failed {
        value["pending_config"] = config_output(record, &failed.config, None, Deployment::Failed(failed));
        value["pending_config"]["start_time"] = json!(failed.config.start_time);
    }
    value
}

/// ServingEndpoint, as in a list: the config in short. Of an endpoint that sleeps there is no more than its record.
pub(in crate::api) fn in_list(record: &EndpointRecord, awake: Option<&Endpoint>, level: Level) -> Value {
    let ready = record.config.is_some() && !record.is_suspended();
    let mut value = base(record, awake.map_or(ready, |awake| awake.serving.is_some()));
    value["permission_level"] = json!(level.name());
    if let Some(config) = &record.config {
        let mut full = config_output(record, config, None, Deployment::Ready);
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

fn base(record: &EndpointRecord, ready: bool) -> Value {
    let settings = &record.settings;
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
        "tags": settings.tags.iter().map(settings::tag).collect::<Vec<_>>(),
        "route_optimized": settings.route_optimized,
    });
    if let Some(suspend) = record.suspend {
        let stopped = suspend == Suspend::Stopped;
        value["state"]["suspend"] = json!(if stopped { "STOPPED" } else { "NOT_SUSPENDED" });
    }
    let optional = [
        ("description", settings.description.as_ref().map(|text| json!(text))),
        ("ai_gateway", settings.gateway.as_ref().map(gateway::output)),
        ("telemetry_config", settings.telemetry.as_ref().map(settings::telemetry)),
        ("budget_policy_id", settings.budget_policy_id.as_ref().map(|id| json!(id))),
    ];
    for (field, present) in optional.into_iter().filter_map(|(field, present)| Some((field, present?))) {
        value[field] = present;
    }
    value
}

fn config_update(record: &EndpointRecord) -> &'static str {
    match (&record.pending, &record.failed) {
        (Some(_), _) => "IN_PROGRESS",
        (None, Some(failed)) if failed.canceled => "UPDATE_CANCELED",
        (None, Some(_)) => "UPDATE_FAILED",
        (None, None) => "NOT_UPDATING",
    }
}

/// Where the entities of a config stand.
#[derive(Clone, Copy)]
enum Deployment<'a> {
    Ready,
    Creating,
    Stopped,
    Failed(&'a FailedConfig),
}

fn config_output(
    record: &EndpointRecord,
    config: &EndpointConfig,
    serving: Option<&Serving>,
    deployment: Deployment<'_>,
) -> Value {
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
    let mut value = json!({
        "config_version": config.version,
        "served_entities": served_entities,
        "served_models": served_models,
        "traffic_config": { "routes": routes },
    });
    if let Some(table) = &config.auto_capture {
        value["auto_capture_config"] = auto_capture(table, &record.name);
    }
    value
}

/// The older form of an inference table, with the table that it is written to.
fn auto_capture(table: &InferenceTable, endpoint: &str) -> Value {
    let mut value = gateway::inference_table(table);
    if table.is_on() {
        let name = format!("{}_payload", table.prefix(endpoint));
        value["state"] = json!({ "payload_table": { "name": name } });
    }
    value
}

/// What a token for this endpoint alone would say.
fn authorization_details(record: &EndpointRecord) -> String {
    let details = json!([{
        "type": "workspace_permission",
        "object_type": "serving-endpoints",
        "object_path": format!("/serving-endpoints/{}", record.id),
        "actions": ["query_inference_endpoint"],
    }]);
    details.to_string()
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
        Deployment::Stopped => ("DEPLOYMENT_READY", "Stopped".to_owned()),
        Deployment::Failed(failed) if failed.canceled => ("DEPLOYMENT_ABORTED", failed.message.clone()),
        Deployment::Failed(failed) if failed.entity == entity.name => ("DEPLOYMENT_FAILED", failed.message.clone()),
        Deployment::Failed(failed) => ("DEPLOYMENT_ABORTED", format!("'{}' failed", failed.entity)),
    };
    let mut value = json!({
        "name": entity.name,
        name_key: entity.entity_name,
        version_key: entity.entity_version.to_string(),
        "workload_type": entity.workload_type,
        "scale_to_zero_enabled": entity.scale_to_zero_enabled,
        "creator": entity.creator,
        "creation_timestamp": entity.creation_timestamp,
        "state": { "deployment": state, "deployment_state_message": message },
    });
    let provisioned = &entity.provisioned;
    let variables = Some(&entity.environment_vars).filter(|variables| !variables.is_empty());
    let optional = [
        ("workload_size", entity.workload_size.as_ref().map(|size| json!(size))),
        ("min_provisioned_concurrency", provisioned.concurrency_min.map(|count| json!(count))),
        ("max_provisioned_concurrency", provisioned.concurrency_max.map(|count| json!(count))),
        ("min_provisioned_throughput", provisioned.throughput_min.map(|count| json!(count))),
        ("max_provisioned_throughput", provisioned.throughput_max.map(|count| json!(count))),
        ("provisioned_model_units", provisioned.model_units.map(|count| json!(count))),
        ("burst_scaling_enabled", entity.burst_scaling_enabled.map(|enabled| json!(enabled))),
        ("environment_vars", variables.map(|variables| json!(variables))),
        ("scale_to_zero_idle_ms", entity.scale_to_zero_idle_ms.map(|idle_ms| json!(idle_ms))),
    ];
    for (field, present) in optional.into_iter().filter_map(|(field, present)| Some((field, present?))) {
        value[field] = present;
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

/// What runs the graphs of the config that is deployed: not a field of the real service, and ignored by its clients.
fn show_graphs(config: &mut Value, record: &EndpointRecord) {
    for entities in ["served_entities", "served_models"] {
        for entity in config[entities].as_array_mut().into_iter().flatten() {
            let graphs = record.graphs.iter().filter(|graph| entity["name"] == graph.entity.as_str());
            entity["graphs"] = graphs.map(graph_output).collect();
        }
    }
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
