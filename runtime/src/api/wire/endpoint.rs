//! Endpoints as they are answered: whole, and in short in lists. What is told only of some of them is optional.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::gateway::{AiGatewayConfig, InferenceTableConfig};
use super::settings::{EmailNotifications, EndpointTag, TelemetryConfig};
use crate::access::Level;
use crate::catalog::gateway_config::InferenceTable;
use crate::catalog::served::ServedEntity;
use crate::catalog::{
    DeployedGraph, Endpoint, EndpointConfig, EndpointRecord, EntityConfig, FailedConfig, Serving, Suspend,
};

#[derive(Serialize, JsonSchema)]
pub(in crate::api) struct ServingEndpoint {
    name: String,
    id: String,
    creator: String,
    creation_timestamp: u64,
    last_updated_timestamp: u64,
    state: EndpointState,
    tags: Vec<EndpointTag>,
    route_optimized: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ai_gateway: Option<AiGatewayConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    telemetry_config: Option<TelemetryConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget_policy_id: Option<String>,
    /// The caller's.
    permission_level: Level,
    /// Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    email_notifications: Option<EmailNotifications>,
    /// Of an endpoint with a URL of its own; not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_plane_info: Option<DataPlaneInfo>,
    /// What is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<ShownConfig>,
    /// What is being deployed, or could not be; not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pending_config: Option<ShownConfig>,
}

#[derive(Serialize, JsonSchema)]
struct EndpointState {
    ready: Ready,
    config_update: ConfigUpdate,
    #[serde(skip_serializing_if = "Option::is_none")]
    suspend: Option<ShownSuspend>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[schemars(rename = "EndpointReady")]
enum Ready {
    Ready,
    NotReady,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[schemars(rename = "EndpointConfigUpdate")]
enum ConfigUpdate {
    NotUpdating,
    InProgress,
    UpdateFailed,
    UpdateCanceled,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[schemars(rename = "EndpointSuspend")]
enum ShownSuspend {
    Stopped,
    NotSuspended,
}

#[derive(Serialize, JsonSchema)]
struct DataPlaneInfo {
    query_info: QueryInfo,
}

#[derive(Serialize, JsonSchema)]
struct QueryInfo {
    endpoint_url: String,
    authorization_details: String,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "EndpointConfig")]
struct ShownConfig {
    /// Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    config_version: Option<u64>,
    /// Of what is pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<u64>,
    served_entities: Vec<ShownEntity>,
    /// The same under the older names.
    served_models: Vec<ShownEntity>,
    traffic_config: ShownTraffic,
    #[serde(skip_serializing_if = "Option::is_none")]
    auto_capture_config: Option<AutoCapture>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TrafficConfig")]
struct ShownTraffic {
    routes: Vec<ShownRoute>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TrafficRoute")]
struct ShownRoute {
    served_model_name: String,
    served_entity_name: String,
    traffic_percentage: u8,
}

/// The older form of an inference table.
#[derive(Serialize, JsonSchema)]
struct AutoCapture {
    #[serde(flatten)]
    table: InferenceTableConfig,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<AutoCaptureState>,
}

#[derive(Serialize, JsonSchema)]
struct AutoCaptureState {
    payload_table: PayloadTable,
}

/// What requests are written to.
#[derive(Serialize, JsonSchema)]
struct PayloadTable {
    name: String,
}

/// A served entity.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ServedEntity")]
struct ShownEntity {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    entity_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entity_version: Option<String>,
    /// The older name of `entity_name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    model_name: Option<String>,
    /// The older name of `entity_version`.
    #[serde(skip_serializing_if = "Option::is_none")]
    model_version: Option<String>,
    #[serde(flatten)]
    details: Option<EntityDetails>,
    /// What runs its graphs: not a field of the real service, and ignored by its clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    graphs: Option<Vec<ShownGraph>>,
}

/// What lists do not tell of an entity.
#[derive(Serialize, JsonSchema)]
struct EntityDetails {
    workload_type: String,
    scale_to_zero_enabled: bool,
    creator: String,
    creation_timestamp: u64,
    state: EntityState,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload_size: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_provisioned_concurrency: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_provisioned_concurrency: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_provisioned_throughput: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_provisioned_throughput: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provisioned_model_units: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    burst_scaling_enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    environment_vars: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale_to_zero_idle_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    in_memory: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_cold_start: Option<ShownColdStart>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ServedEntityState")]
struct EntityState {
    deployment: DeploymentState,
    deployment_state_message: String,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(clippy::enum_variant_names, reason = "the names on the wire")]
enum DeploymentState {
    DeploymentReady,
    DeploymentCreating,
    DeploymentFailed,
    DeploymentAborted,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ColdStart")]
struct ShownColdStart {
    rung: &'static str,
    component_us: u64,
    graphs_us: u64,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ServedGraph")]
struct ShownGraph {
    name: String,
    backend: String,
    backend_version: String,
    target: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    intra_op_threads: Option<u32>,
}

/// ServingEndpointDetailed. `base_url` is where the caller reached the server.
pub(in crate::api) fn detailed(endpoint: &Endpoint, level: Level, base_url: &str) -> ServingEndpoint {
    let record = &endpoint.record;
    let mut shown = base(record, endpoint.serving.is_some(), level);
    shown.email_notifications = record.settings.notifications.as_ref().map(Into::into);
    if record.settings.route_optimized {
        let url = format!("{base_url}/serving-endpoints/{}/invocations", record.name);
        let query_info = QueryInfo { endpoint_url: url.clone(), authorization_details: authorization_details(record) };
        shown.endpoint_url = Some(url);
        shown.data_plane_info = Some(DataPlaneInfo { query_info });
    }
    shown.config = record.config.as_ref().map(|config| {
        let deployment = match &record.failed {
            _ if record.is_suspended() => Deployment::Stopped,
            // It could not be brought back after a restart.
            Some(failed) if endpoint.serving.is_none() => Deployment::Failed(failed),
            _ => Deployment::Ready,
        };
        let mut shown = ShownConfig::of(record, config, endpoint.serving.as_deref(), deployment);
        for entity in shown.served_entities.iter_mut().chain(&mut shown.served_models) {
            entity.graphs = Some(graphs_of(record, &entity.name));
        }
        shown
    });
    shown.pending_config = match (&record.pending, &record.failed) {
        (Some(pending), _) => Some((pending, Deployment::Creating)),
        (None, Some(failed)) => Some((&failed.config, Deployment::Failed(failed))),
        (None, None) => None,
    }
    .map(|(config, deployment)| ShownConfig {
        start_time: Some(config.start_time),
        ..ShownConfig::of(record, config, None, deployment)
    });
    shown
}

/// ServingEndpoint, as in a list: the config in short. Of an endpoint that sleeps there is no more than its record.
pub(in crate::api) fn in_list(record: &EndpointRecord, awake: Option<&Endpoint>, level: Level) -> ServingEndpoint {
    let ready = record.config.is_some() && !record.is_suspended();
    let mut shown = base(record, awake.map_or(ready, |awake| awake.serving.is_some()), level);
    shown.config = record.config.as_ref().map(|config| ShownConfig {
        config_version: None,
        start_time: None,
        served_entities: config
            .entities
            .iter()
            .map(|entity| ShownEntity {
                graphs: Some(graphs_of(record, &entity.name)),
                ..ShownEntity::by_its_name(entity)
            })
            .collect(),
        served_models: config.entities.iter().map(ShownEntity::by_its_older_name).collect(),
        traffic_config: traffic(config),
        auto_capture_config: None,
    });
    shown
}

fn base(record: &EndpointRecord, ready: bool, permission_level: Level) -> ServingEndpoint {
    let settings = &record.settings;
    ServingEndpoint {
        name: record.name.clone(),
        id: record.id.clone(),
        creator: record.creator.clone(),
        creation_timestamp: record.creation_timestamp,
        last_updated_timestamp: record.last_updated_timestamp,
        state: EndpointState {
            ready: if ready { Ready::Ready } else { Ready::NotReady },
            config_update: config_update(record),
            suspend: record.suspend.map(|suspend| match suspend {
                Suspend::Stopped => ShownSuspend::Stopped,
                Suspend::Starting | Suspend::Started => ShownSuspend::NotSuspended,
            }),
        },
        tags: settings.tags.iter().map(Into::into).collect(),
        route_optimized: settings.route_optimized,
        description: settings.description.clone(),
        ai_gateway: settings.gateway.as_ref().map(Into::into),
        telemetry_config: settings.telemetry.as_ref().map(Into::into),
        budget_policy_id: settings.budget_policy_id.clone(),
        permission_level,
        email_notifications: None,
        endpoint_url: None,
        data_plane_info: None,
        config: None,
        pending_config: None,
    }
}

fn config_update(record: &EndpointRecord) -> ConfigUpdate {
    match (&record.pending, &record.failed) {
        (Some(_), _) => ConfigUpdate::InProgress,
        (None, Some(failed)) if failed.canceled => ConfigUpdate::UpdateCanceled,
        (None, Some(_)) => ConfigUpdate::UpdateFailed,
        (None, None) => ConfigUpdate::NotUpdating,
    }
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

/// Where the entities of a config stand.
#[derive(Clone, Copy)]
enum Deployment<'a> {
    Ready,
    Creating,
    Stopped,
    Failed(&'a FailedConfig),
}

impl ShownConfig {
    fn of(
        record: &EndpointRecord,
        config: &EndpointConfig,
        serving: Option<&Serving>,
        deployment: Deployment<'_>,
    ) -> ShownConfig {
        let details = |entity: &EntityConfig| {
            let served = serving.and_then(|serving| serving.entity(&entity.name)).map(AsRef::as_ref);
            Some(EntityDetails::of(entity, served, deployment))
        };
        let entities = |name: fn(&EntityConfig) -> ShownEntity| {
            let shown = |entity| ShownEntity { details: details(entity), ..name(entity) };
            config.entities.iter().map(shown).collect()
        };
        ShownConfig {
            config_version: Some(config.version),
            start_time: None,
            served_entities: entities(ShownEntity::by_its_name),
            served_models: entities(ShownEntity::by_its_older_name),
            traffic_config: traffic(config),
            auto_capture_config: config.auto_capture.as_ref().map(|table| auto_capture(table, &record.name)),
        }
    }
}

fn traffic(config: &EndpointConfig) -> ShownTraffic {
    let route = |route: &crate::catalog::Route| ShownRoute {
        served_model_name: route.entity.clone(),
        served_entity_name: route.entity.clone(),
        traffic_percentage: route.percentage,
    };
    ShownTraffic { routes: config.traffic.routes().iter().map(route).collect() }
}

fn auto_capture(table: &InferenceTable, endpoint: &str) -> AutoCapture {
    let payload_table = || PayloadTable { name: format!("{}_payload", table.prefix(endpoint)) };
    let state = table.is_on().then(|| AutoCaptureState { payload_table: payload_table() });
    AutoCapture { table: table.into(), state }
}

impl ShownEntity {
    fn by_its_name(entity: &EntityConfig) -> ShownEntity {
        ShownEntity {
            name: entity.name.clone(),
            entity_name: Some(entity.entity_name.clone()),
            entity_version: Some(entity.entity_version.to_string()),
            model_name: None,
            model_version: None,
            details: None,
            graphs: None,
        }
    }

    fn by_its_older_name(entity: &EntityConfig) -> ShownEntity {
        let ShownEntity { name, entity_name, entity_version, .. } = ShownEntity::by_its_name(entity);
        ShownEntity {
            name,
            entity_name: None,
            entity_version: None,
            model_name: entity_name,
            model_version: entity_version,
            details: None,
            graphs: None,
        }
    }
}

impl EntityDetails {
    fn of(entity: &EntityConfig, served: Option<&ServedEntity>, deployment: Deployment<'_>) -> EntityDetails {
        let provisioned = &entity.provisioned;
        EntityDetails {
            workload_type: entity.workload_type.clone(),
            scale_to_zero_enabled: entity.scale_to_zero_enabled,
            creator: entity.creator.clone(),
            creation_timestamp: entity.creation_timestamp,
            state: EntityState::of(entity, served, deployment),
            workload_size: entity.workload_size.clone(),
            min_provisioned_concurrency: provisioned.concurrency_min,
            max_provisioned_concurrency: provisioned.concurrency_max,
            min_provisioned_throughput: provisioned.throughput_min,
            max_provisioned_throughput: provisioned.throughput_max,
            provisioned_model_units: provisioned.model_units,
            burst_scaling_enabled: entity.burst_scaling_enabled,
            environment_vars: Some(entity.environment_vars.clone()).filter(|variables| !variables.is_empty()),
            scale_to_zero_idle_ms: entity.scale_to_zero_idle_ms,
            in_memory: served.map(ServedEntity::component_loaded),
            last_cold_start: served.and_then(ServedEntity::last_cold_start).map(|cold| ShownColdStart {
                rung: cold.rung.name(),
                component_us: cold.component.as_micros() as u64,
                graphs_us: cold.graphs.as_micros() as u64,
            }),
        }
    }
}

impl EntityState {
    fn of(entity: &EntityConfig, served: Option<&ServedEntity>, deployment: Deployment<'_>) -> EntityState {
        use DeploymentState::*;
        let asleep = served.is_some_and(|served| !served.component_loaded());
        let (deployment, message) = match deployment {
            Deployment::Ready => (DeploymentReady, if asleep { "Scaled to zero" } else { "" }.to_owned()),
            Deployment::Creating => (DeploymentCreating, String::new()),
            Deployment::Stopped => (DeploymentReady, "Stopped".to_owned()),
            Deployment::Failed(failed) if failed.canceled => (DeploymentAborted, failed.message.clone()),
            Deployment::Failed(failed) if failed.entity == entity.name => (DeploymentFailed, failed.message.clone()),
            Deployment::Failed(failed) => (DeploymentAborted, format!("'{}' failed", failed.entity)),
        };
        EntityState { deployment, deployment_state_message: message }
    }
}

/// The graphs of an entity of the config that is deployed.
fn graphs_of(record: &EndpointRecord, entity: &str) -> Vec<ShownGraph> {
    record.graphs.iter().filter(|graph| graph.entity == entity).map(ShownGraph::of).collect()
}

impl ShownGraph {
    fn of(graph: &DeployedGraph) -> ShownGraph {
        ShownGraph {
            name: graph.name.clone(),
            backend: graph.backend.clone(),
            backend_version: graph.backend_version.clone(),
            target: graph.target.clone(),
            intra_op_threads: graph.intra_op_threads,
        }
    }
}
