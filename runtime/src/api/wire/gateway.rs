//! `ai_gateway` and the older `rate_limits`.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::catalog::gateway_config::{
    GatewayConfig, Guardrail, Guardrails, InferenceTable, LimitKey, PiiBehavior, RateLimit,
};

/// The whole of it; PUT replaces all.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::api) struct AiGatewayConfig {
    fallback_config: Option<Switch>,
    guardrails: Option<GuardrailsConfig>,
    inference_table_config: Option<InferenceTableConfig>,
    rate_limits: Option<Vec<AiGatewayRateLimit>>,
    usage_tracking_config: Option<Switch>,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Switch {
    #[serde(default)]
    enabled: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct AiGatewayRateLimit {
    calls: Option<u64>,
    tokens: Option<u64>,
    key: Option<Key>,
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

/// Body and answer of the older form.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::api) struct LegacyRateLimits {
    /// All limits: PUT replaces them.
    pub(in crate::api) rate_limits: Option<Vec<LegacyRateLimit>>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
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

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum RenewalPeriod {
    Minute,
}

/// A table of requests and responses, in the gateway's form and in the older one.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::api) struct InferenceTableConfig {
    catalog_name: Option<String>,
    schema_name: Option<String>,
    table_name_prefix: Option<String>,
    enabled: Option<bool>,
    /// Share of the requests that is kept, from 0 to 1.
    sampling_fraction: Option<f64>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct GuardrailsConfig {
    input: Option<GuardrailConfig>,
    output: Option<GuardrailConfig>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct GuardrailConfig {
    safety: Option<bool>,
    pii: Option<Pii>,
    invalid_keywords: Option<Vec<String>>,
    valid_topics: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct Pii {
    behavior: Option<Behavior>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
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

/// An object of those fields that are there.
pub(super) fn present<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    fields.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))).collect()
}

/// AiGatewayConfig, as it was sent.
pub(in crate::api) fn output(gateway: &GatewayConfig) -> Value {
    let limits = |limits: &Vec<RateLimit>| limits.iter().map(rate_limit).collect::<Value>();
    let guardrails = |guardrails: &Guardrails| {
        present([
            ("input", guardrails.input.as_ref().map(guardrail)),
            ("output", guardrails.output.as_ref().map(guardrail)),
        ])
    };
    present([
        ("fallback_config", gateway.fallback.map(|enabled| json!({ "enabled": enabled }))),
        ("guardrails", gateway.guardrails.as_ref().map(guardrails)),
        ("inference_table_config", gateway.inference_table.as_ref().map(inference_table)),
        ("rate_limits", gateway.rate_limits.as_ref().map(limits)),
        ("usage_tracking_config", gateway.usage_tracking.map(|enabled| json!({ "enabled": enabled }))),
    ])
}

/// A limit in either form.
pub(in crate::api) fn rate_limit(limit: &RateLimit) -> Value {
    present([
        ("calls", limit.calls.map(|calls| json!(calls))),
        ("tokens", limit.tokens.map(|tokens| json!(tokens))),
        ("key", limit.key.map(|key| json!(key.name()))),
        ("principal", limit.principal.as_ref().map(|principal| json!(principal))),
        ("renewal_period", Some(json!("minute"))),
    ])
}

/// A table in either form.
pub(super) fn inference_table(table: &InferenceTable) -> Value {
    present([
        ("catalog_name", table.catalog.as_ref().map(|name| json!(name))),
        ("schema_name", table.schema.as_ref().map(|name| json!(name))),
        ("table_name_prefix", table.table_name_prefix.as_ref().map(|prefix| json!(prefix))),
        ("enabled", table.enabled.map(|enabled| json!(enabled))),
        ("sampling_fraction", table.sampling_fraction.map(|share| json!(share))),
    ])
}

fn guardrail(guardrail: &Guardrail) -> Value {
    present([
        ("safety", guardrail.safety.map(|safety| json!(safety))),
        ("pii", guardrail.pii.map(|pii| json!({ "behavior": pii.name() }))),
        ("invalid_keywords", guardrail.invalid_keywords.as_ref().map(|words| json!(words))),
        ("valid_topics", guardrail.valid_topics.as_ref().map(|topics| json!(topics))),
    ])
}

#[cfg(test)]
mod tests {
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
        let input: AiGatewayConfig = serde_json::from_value(sent.clone()).unwrap();
        assert_eq!(output(&input.into()), sent);
        let empty: AiGatewayConfig = serde_json::from_value(json!({})).unwrap();
        assert_eq!(output(&empty.into()), json!({}));
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
