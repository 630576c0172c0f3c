//! `ai_gateway` and the older `rate_limits`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::catalog::gateway_config::{
    GatewayConfig, Guardrail, Guardrails, InferenceTable, LimitKey, PiiBehavior, RateLimit,
};

/// The whole of it; PUT replaces all.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::api) struct AiGatewayConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback_config: Option<Switch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guardrails: Option<GuardrailsConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inference_table_config: Option<InferenceTableConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limits: Option<Vec<AiGatewayRateLimit>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_tracking_config: Option<Switch>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Switch {
    #[serde(default)]
    enabled: bool,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(in crate::api) struct AiGatewayRateLimit {
    #[serde(skip_serializing_if = "Option::is_none")]
    calls: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Key>,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<String>,
    renewal_period: RenewalPeriod,
}

/// A limit of the older form.
#[derive(Debug, Deserialize, JsonSchema)]
pub(in crate::api) struct LegacyRateLimit {
    calls: u64,
    key: Option<LegacyKey>,
    renewal_period: RenewalPeriod,
}

/// Body of the older form.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::api) struct LegacyRateLimits {
    /// All limits: PUT replaces them.
    pub(in crate::api) rate_limits: Option<Vec<LegacyRateLimit>>,
}

/// All limits of the older form, after a change.
#[derive(Serialize, JsonSchema)]
pub(in crate::api) struct RateLimits {
    pub(in crate::api) rate_limits: Vec<AiGatewayRateLimit>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "RateLimitKey")]
enum Key {
    Endpoint,
    User,
    UserGroup,
    ServicePrincipal,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum LegacyKey {
    Endpoint,
    User,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum RenewalPeriod {
    Minute,
}

/// A table of requests and responses, in the gateway's form and in the older one.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::api) struct InferenceTableConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    catalog_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table_name_prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enabled: Option<bool>,
    /// Share of the requests that is kept, from 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    sampling_fraction: Option<f64>,
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct GuardrailsConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<GuardrailConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<GuardrailConfig>,
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct GuardrailConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    safety: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pii: Option<Pii>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invalid_keywords: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_topics: Option<Vec<String>>,
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Pii {
    #[serde(skip_serializing_if = "Option::is_none")]
    behavior: Option<Behavior>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
enum Behavior {
    None,
    Block,
    Mask,
}

impl From<AiGatewayConfig> for GatewayConfig {
    fn from(input: AiGatewayConfig) -> GatewayConfig {
        GatewayConfig {
            rate_limits: input.rate_limits.map(|limits| limits.into_iter().map(Into::into).collect()),
            usage_tracking: input.usage_tracking_config.map(|switch| switch.enabled),
            inference_table: input.inference_table_config.map(Into::into),
            fallback: input.fallback_config.map(|switch| switch.enabled),
            guardrails: input.guardrails.map(|guardrails| Guardrails {
                input: guardrails.input.map(Into::into),
                output: guardrails.output.map(Into::into),
            }),
        }
    }
}

impl From<AiGatewayRateLimit> for RateLimit {
    fn from(input: AiGatewayRateLimit) -> RateLimit {
        let key = input.key.map(|key| match key {
            Key::Endpoint => LimitKey::Endpoint,
            Key::User => LimitKey::User,
            Key::UserGroup => LimitKey::UserGroup,
            Key::ServicePrincipal => LimitKey::ServicePrincipal,
        });
        let RenewalPeriod::Minute = input.renewal_period;
        RateLimit { key, principal: input.principal, calls: input.calls, tokens: input.tokens }
    }
}

impl From<LegacyRateLimit> for RateLimit {
    fn from(input: LegacyRateLimit) -> RateLimit {
        let key = input.key.map(|key| match key {
            LegacyKey::Endpoint => LimitKey::Endpoint,
            LegacyKey::User => LimitKey::User,
        });
        let RenewalPeriod::Minute = input.renewal_period;
        RateLimit { key, principal: None, calls: Some(input.calls), tokens: None }
    }
}

impl From<InferenceTableConfig> for InferenceTable {
    fn from(input: InferenceTableConfig) -> InferenceTable {
        InferenceTable {
            enabled: input.enabled,
            catalog: input.catalog_name,
            schema: input.schema_name,
            table_name_prefix: input.table_name_prefix,
            sampling_fraction: input.sampling_fraction,
        }
    }
}

impl From<GuardrailConfig> for Guardrail {
    fn from(input: GuardrailConfig) -> Guardrail {
        let pii = input.pii.and_then(|pii| pii.behavior).map(|behavior| match behavior {
            Behavior::None => PiiBehavior::None,
            Behavior::Block => PiiBehavior::Block,
            Behavior::Mask => PiiBehavior::Mask,
        });
        Guardrail {
            safety: input.safety,
            pii,
            invalid_keywords: input.invalid_keywords,
            valid_topics: input.valid_topics,
        }
    }
}

impl From<&GatewayConfig> for AiGatewayConfig {
    fn from(kept: &GatewayConfig) -> AiGatewayConfig {
        let switch = |enabled| Switch { enabled };
        AiGatewayConfig {
            fallback_config: kept.fallback.map(switch),
            guardrails: kept.guardrails.as_ref().map(|guardrails| GuardrailsConfig {
                input: guardrails.input.as_ref().map(Into::into),
                output: guardrails.output.as_ref().map(Into::into),
            }),
            inference_table_config: kept.inference_table.as_ref().map(Into::into),
            rate_limits: kept.rate_limits.as_ref().map(|limits| limits.iter().map(Into::into).collect()),
            usage_tracking_config: kept.usage_tracking.map(switch),
        }
    }
}

/// A limit in either form.
impl From<&RateLimit> for AiGatewayRateLimit {
    fn from(kept: &RateLimit) -> AiGatewayRateLimit {
        let key = kept.key.map(|key| match key {
            LimitKey::Endpoint => Key::Endpoint,
            LimitKey::User => Key::User,
            LimitKey::UserGroup => Key::UserGroup,
            LimitKey::ServicePrincipal => Key::ServicePrincipal,
        });
        AiGatewayRateLimit {
            calls: kept.calls,
            tokens: kept.tokens,
            key,
            principal: kept.principal.clone(),
            renewal_period: RenewalPeriod::Minute,
        }
    }
}

/// A table in either form.
impl From<&InferenceTable> for InferenceTableConfig {
    fn from(kept: &InferenceTable) -> InferenceTableConfig {
        let InferenceTable { enabled, catalog, schema, table_name_prefix, sampling_fraction } = kept.clone();
        InferenceTableConfig {
            catalog_name: catalog,
            schema_name: schema,
            table_name_prefix,
            enabled,
            sampling_fraction,
        }
    }
}

impl From<&Guardrail> for GuardrailConfig {
    fn from(kept: &Guardrail) -> GuardrailConfig {
        let behavior = |pii: PiiBehavior| match pii {
            PiiBehavior::None => Behavior::None,
            PiiBehavior::Block => Behavior::Block,
            PiiBehavior::Mask => Behavior::Mask,
        };
        GuardrailConfig {
            safety: kept.safety,
            pii: kept.pii.map(|pii| Pii { behavior: Some(behavior(pii)) }),
            invalid_keywords: kept.invalid_keywords.clone(),
            valid_topics: kept.valid_topics.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_sent_comes_back_and_nothing_else() {
        let sent = json!({
            "fallback_config": { "enabled": true },
            "guardrails": { "input": { "safety": false, "pii": { "behavior": "NONE" } } },
            "inference_table_config": { "catalog_name": "c", "schema_name": "s", "enabled": true, "sampling_fraction": 0.5 },
            "rate_limits": [
                { "calls": 10, "renewal_period": "minute" },
                { "tokens": 5, "key": "user_group", "principal": "g", "renewal_period": "minute" },
            ],
            "usage_tracking_config": { "enabled": true },
        });
        let back = |sent: &Value| {
            let input: AiGatewayConfig = serde_json::from_value(sent.clone()).unwrap();
            serde_json::to_value(AiGatewayConfig::from(&GatewayConfig::from(input))).unwrap()
        };
        assert_eq!(back(&sent), sent);
        assert_eq!(back(&json!({})), json!({}));
        for bad in [
            json!({ "rate_limits": [{ "calls": 1 }] }),
            json!({ "rate_limits": [{ "calls": 1, "renewal_period": "hour" }] }),
            json!({ "rate_limits": [{ "calls": -1, "renewal_period": "minute" }] }),
            json!({ "rate_limits": [{ "calls": 1, "key": "everybody", "renewal_period": "minute" }] }),
            json!({ "guardrails": { "input": { "pii": { "behavior": "HIDE" } } } }),
        ] {
            serde_json::from_value::<AiGatewayConfig>(bad.clone()).expect_err(&bad.to_string());
        }
    }
}
