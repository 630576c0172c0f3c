//! What a caller wants to be served: models under their new or their old names, and shares of the traffic.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::gateway::{AiGatewayConfig, InferenceTableConfig, LegacyRateLimit};
use super::settings::{EmailNotifications, EndpointTag, TelemetryConfig};
use crate::catalog::{
    EndpointConfig, EndpointSettings, EntityConfig, InvalidConfig, Provisioned, Route, TrafficConfig,
};
use crate::clock::now_ms;
use crate::error::ApiError;

/// Body of create.
#[derive(Debug, Deserialize, JsonSchema)]
pub(in crate::api) struct CreateEndpoint {
    /// Unique in the workspace.
    pub(in crate::api) name: String,
    /// What it shall serve.
    pub(in crate::api) config: Option<ConfigInput>,
    #[serde(flatten)]
    settings: SettingsInput,
}

/// Body of create with provisioned throughput.
#[derive(Debug, Deserialize, JsonSchema)]
pub(in crate::api) struct CreatePtEndpoint {
    /// Unique in the workspace.
    pub(in crate::api) name: String,
    /// What it shall serve.
    pub(in crate::api) config: PtConfigInput,
    #[serde(flatten)]
    settings: SettingsInput,
}

/// Body of an update with provisioned throughput: nested, unlike the other's.
#[derive(Debug, Deserialize, JsonSchema)]
pub(in crate::api) struct UpdatePtConfig {
    /// What it shall serve.
    pub(in crate::api) config: PtConfigInput,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct SettingsInput {
    /// Free text.
    description: Option<String>,
    /// Free labels.
    tags: Option<Vec<EndpointTag>>,
    /// What stands before the models.
    ai_gateway: Option<AiGatewayConfig>,
    /// The older way to limit requests.
    rate_limits: Option<Vec<LegacyRateLimit>>,
    /// Kept, not sent.
    email_notifications: Option<EmailNotifications>,
    /// Kept, not done.
    telemetry_config: Option<TelemetryConfig>,
    /// Who pays, as free text.
    budget_policy_id: Option<String>,
    /// Whether the endpoint has a URL of its own.
    route_optimized: Option<bool>,
}

impl SettingsInput {
    fn into_settings(self) -> EndpointSettings {
        EndpointSettings {
            description: self.description,
            tags: self.tags.unwrap_or_default().into_iter().map(Into::into).collect(),
            gateway: self.ai_gateway.map(Into::into),
            rate_limits: self.rate_limits.unwrap_or_default().into_iter().map(Into::into).collect(),
            notifications: self.email_notifications.map(Into::into),
            telemetry: self.telemetry_config.map(Into::into),
            budget_policy_id: self.budget_policy_id,
            route_optimized: self.route_optimized.unwrap_or_default(),
        }
    }
}

impl CreateEndpoint {
    /// Name, config and the rest.
    pub(in crate::api) fn into_parts(self) -> (String, Option<ConfigInput>, EndpointSettings) {
        (self.name, self.config, self.settings.into_settings())
    }
}

impl CreatePtEndpoint {
    /// Name, config and the rest.
    pub(in crate::api) fn into_parts(self) -> Result<(String, ConfigInput, EndpointSettings), ApiError> {
        Ok((self.name, self.config.into_config()?, self.settings.into_settings()))
    }
}

/// A config as clients send it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(in crate::api) struct ConfigInput {
    /// One to 15 model versions; where there are none, the current ones stay.
    served_entities: Option<Vec<EntityInput>>,
    /// The older name.
    served_models: Option<Vec<EntityInput>>,
    /// Shares of the traffic, which sum to 100.
    traffic_config: Option<TrafficInput>,
    /// The older way to keep requests and responses.
    auto_capture_config: Option<InferenceTableConfig>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
struct EntityInput {
    /// Unique in the endpoint; the model's with its version, where it is not said.
    name: Option<String>,
    /// `catalog.schema.model`.
    #[serde(alias = "model_name")]
    entity_name: Option<String>,
    /// Number of the version.
    #[serde(alias = "model_version", default, deserialize_with = "text_or_number")]
    #[schemars(with = "Option<String>")]
    entity_version: Option<String>,
    /// Small, Medium or Large.
    workload_size: Option<String>,
    /// CPU or a type of GPU.
    workload_type: Option<String>,
    scale_to_zero_enabled: Option<bool>,
    /// Not a field of Databricks': after how long without a request the model leaves memory.
    scale_to_zero_idle_ms: Option<u64>,
    /// Instead of a workload size: a multiple of 4.
    min_provisioned_concurrency: Option<u32>,
    /// Instead of a workload size: a multiple of 4.
    max_provisioned_concurrency: Option<u32>,
    /// Tokens per second.
    min_provisioned_throughput: Option<u64>,
    /// Tokens per second.
    max_provisioned_throughput: Option<u64>,
    provisioned_model_units: Option<u64>,
    burst_scaling_enabled: Option<bool>,
    /// Settings of the guest.
    environment_vars: Option<BTreeMap<String, String>>,
    /// Refused.
    instance_profile_arn: Option<String>,
    /// Refused.
    external_model: Option<Value>,
}

/// A config with provisioned throughput.
#[derive(Debug, Deserialize, JsonSchema)]
pub(in crate::api) struct PtConfigInput {
    served_entities: Vec<PtEntityInput>,
    traffic_config: Option<TrafficInput>,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct PtEntityInput {
    /// `catalog.schema.model`.
    entity_name: String,
    provisioned_model_units: u64,
    /// Number of the version.
    #[serde(default, deserialize_with = "text_or_number")]
    #[schemars(with = "Option<String>")]
    entity_version: Option<String>,
    name: Option<String>,
    burst_scaling_enabled: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct TrafficInput {
    routes: Option<Vec<RouteInput>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct RouteInput {
    /// Name of the served entity.
    served_entity_name: Option<String>,
    /// The older name of the same.
    served_model_name: Option<String>,
    /// 0 to 100, as a number or as text.
    #[serde(deserialize_with = "percentage")]
    #[schemars(range(min = 0, max = 100))]
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
    /// The config that the caller means, with defaults filled in. Version and time are given when it is stored.
    ///
    /// Without entities, those of `current` stay: clients change only the traffic so.
    pub(in crate::api) fn into_config(
        self,
        creator: &str,
        current: Option<&EndpointConfig>,
    ) -> Result<EndpointConfig, ApiError> {
        let entities: Vec<EntityConfig> = match self.served_entities.or(self.served_models) {
            Some(inputs) => inputs.into_iter().map(|input| input.into_entity(creator)).collect::<Result<_, _>>()?,
            None => current.map(|current| current.entities.clone()).unwrap_or_default(),
        };
        if entities.is_empty() {
            return Err(ApiError::invalid("served_entities is empty: name at least one model version"));
        }
        let routes = self.traffic_config.and_then(|traffic| traffic.routes).unwrap_or_default();
        let routes = routes.into_iter().map(RouteInput::into_route).collect::<Result<_, _>>()?;
        let traffic = TrafficConfig::new(routes, &entities)?;
        let kept = || current.and_then(|current| current.auto_capture.clone());
        let auto_capture = self.auto_capture_config.map(Into::into).or_else(kept);
        Ok(EndpointConfig { version: 0, start_time: 0, entities, traffic, auto_capture })
    }
}

impl RouteInput {
    fn into_route(self) -> Result<Route, InvalidConfig> {
        let missing = || InvalidConfig("every route needs a served_entity_name (or served_model_name)".to_owned());
        let entity = match (self.served_entity_name, self.served_model_name) {
            (Some(new), Some(old)) if new != old => {
                return Err(InvalidConfig(format!(
                    "a route names two entities: served_entity_name '{new}' and served_model_name '{old}'"
                )));
            }
            (new, old) => new.or(old).ok_or_else(missing)?,
        };
        Ok(Route { entity, percentage: self.traffic_percentage })
    }
}

impl PtConfigInput {
    /// The same in the form of other endpoints.
    pub(in crate::api) fn into_config(self) -> Result<ConfigInput, ApiError> {
        let entity = |input: PtEntityInput| {
            if input.entity_version.is_none() {
                return Err(ApiError::invalid(format!(
                    "'{}' has no entity_version: Tessera serves registered versions, and has no foundation models of its own",
                    input.entity_name
                )));
            }
            Ok(EntityInput {
                name: input.name,
                entity_name: Some(input.entity_name),
                entity_version: input.entity_version,
                provisioned_model_units: Some(input.provisioned_model_units),
                burst_scaling_enabled: input.burst_scaling_enabled,
                ..EntityInput::default()
            })
        };
        let entities = self.served_entities.into_iter().map(entity).collect::<Result<_, _>>()?;
        Ok(ConfigInput {
            served_entities: Some(entities),
            traffic_config: self.traffic_config,
            ..ConfigInput::default()
        })
    }
}

impl EntityInput {
    fn into_entity(self, creator: &str) -> Result<EntityConfig, ApiError> {
        self.refuse_unsupported()?;
        let provisioned = Provisioned {
            concurrency_min: self.min_provisioned_concurrency,
            concurrency_max: self.max_provisioned_concurrency,
            throughput_min: self.min_provisioned_throughput,
            throughput_max: self.max_provisioned_throughput,
            model_units: self.provisioned_model_units,
        };
        // Clients compare what they sent with what they get, so a size is made up only where there is no other.
        let made_up = (provisioned == Provisioned::default()).then(|| "Small".to_owned());
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
            workload_size: self.workload_size.or(made_up),
            provisioned,
            burst_scaling_enabled: self.burst_scaling_enabled,
            workload_type: self.workload_type.unwrap_or_else(|| "CPU".to_owned()),
            scale_to_zero_enabled: self.scale_to_zero_enabled.unwrap_or(true),
            scale_to_zero_idle_ms: self.scale_to_zero_idle_ms,
            environment_vars: self.environment_vars.unwrap_or_default(),
            creator: creator.to_owned(),
            creation_timestamp: now_ms(),
            built_by: 0,
            entity_name,
        })
    }

    /// Refuses what this version would not do: what is taken and ignored is worse than what is refused.
    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        if self.external_model.is_some() {
            return Err(ApiError::invalid("external_model is not supported by this version of Tessera"));
        }
        if self.instance_profile_arn.as_ref().is_some_and(|arn| !arn.is_empty()) {
            return Err(ApiError::invalid(
                "instance_profile_arn is not supported: guests reach no cloud account, so leave it out",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(value: Value) -> Result<EndpointConfig, String> {
        let input: ConfigInput = serde_json::from_value(value).map_err(|error| error.to_string())?;
        input.into_config("me", None).map_err(|error| error.message)
    }

    #[test]
    fn a_size_is_made_up_only_where_there_is_no_other() {
        let size = |extra: Value| {
            let mut entity = json!({ "entity_name": "a.b.c", "entity_version": 1 });
            entity.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            config(json!({ "served_entities": [entity] })).unwrap().entities[0].workload_size.clone()
        };
        assert_eq!(size(json!({})).as_deref(), Some("Small"));
        assert_eq!(size(json!({ "max_provisioned_concurrency": 8 })), None);
        assert_eq!(size(json!({ "workload_size": "Large", "provisioned_model_units": 1 })).as_deref(), Some("Large"));
    }

    #[test]
    fn routes_take_both_names_and_percentages_both_forms() {
        let entity = json!({ "entity_name": "a.b.c", "entity_version": "1" });
        let with =
            |route: Value| config(json!({ "served_entities": [entity], "traffic_config": { "routes": [route] } }));
        for route in [
            json!({ "served_entity_name": "c-1", "traffic_percentage": 100 }),
            json!({ "served_model_name": "c-1", "served_entity_name": "c-1", "traffic_percentage": "100" }),
        ] {
            with(route).unwrap();
        }
        for (route, words) in [
            (json!({ "traffic_percentage": 100 }), "served_entity_name"),
            (
                json!({ "served_model_name": "c-1", "served_entity_name": "d", "traffic_percentage": 100 }),
                "two entities",
            ),
            (json!({ "served_model_name": "c-1", "traffic_percentage": 101 }), "0 to 100"),
            (json!({ "served_model_name": "c-1", "traffic_percentage": "ten" }), "0 to 100"),
        ] {
            let error = with(route).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
