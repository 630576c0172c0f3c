//! What stands before an endpoint's models (`ai_gateway`): rate limits, usage tracking, payload logging, guardrails,
//! fallbacks. Kept with the endpoint and checked here; who enforces a part compiles it from this.

use serde::{Deserialize, Serialize};

use super::config::{InvalidConfig, invalid};

/// Most rate limits of an endpoint.
pub const RATE_LIMITS_MAX: usize = 20;

/// Most of them that are for groups.
pub const GROUP_RATE_LIMITS_MAX: usize = 5;

/// Longest name of a principal, catalog, schema or table.
const NAME_BYTES_MAX: usize = 255;

/// Most words of one list of a guardrail, and the longest of them.
const WORDS_MAX: usize = 100;
const WORD_BYTES_MAX: usize = 100;

/// The whole of it. Replaced as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GatewayConfig {
    /// How much may be asked for, by whom, in the order given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limits: Option<Vec<RateLimit>>,
    /// Whether each request leaves a row in the usage table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage_tracking: Option<bool>,
    /// Where requests and responses are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference_table: Option<InferenceTable>,
    /// Whether another entity answers when an external model fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<bool>,
    /// What may not be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guardrails: Option<Guardrails>,
}

/// So many requests or tokens a minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Whose requests are counted together; the endpoint's, where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<LimitKey>,
    /// The user, group or service principal; none for an endpoint, and for the default of all callers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Requests per minute; 0 blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
    /// Tokens per minute, of input and output; 0 blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
}

/// Whose requests a [`RateLimit`] counts together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitKey {
    /// Everybody's.
    #[default]
    Endpoint,
    /// Those of one user; without a name, of each caller.
    User,
    /// Those of all members.
    UserGroup,
    /// Those of one service principal.
    ServicePrincipal,
}

impl LimitKey {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            LimitKey::Endpoint => "endpoint",
            LimitKey::User => "user",
            LimitKey::UserGroup => "user_group",
            LimitKey::ServicePrincipal => "service_principal",
        }
    }
}

/// A table of requests and responses: `<catalog>.<schema>.<prefix>_payload`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InferenceTable {
    /// Whether it is written; not, where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// First part of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalog: Option<String>,
    /// Second part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Beginning of the third part; the endpoint's name, where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table_name_prefix: Option<String>,
    /// Share of the requests that is kept, from 0 to 1; all, where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_fraction: Option<f64>,
}

/// What is looked for in requests and in responses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guardrails {
    /// In requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Guardrail>,
    /// In responses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Guardrail>,
}

/// One direction of [`Guardrails`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guardrail {
    /// Refuse what is unsafe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safety: Option<bool>,
    /// What becomes of personal data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pii: Option<PiiBehavior>,
    /// Words that are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid_keywords: Option<Vec<String>>,
    /// The only topics that are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_topics: Option<Vec<String>>,
}

/// What becomes of personal data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PiiBehavior {
    /// Nothing.
    None,
    /// The request is refused.
    Block,
    /// It is replaced.
    Mask,
}

impl PiiBehavior {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            PiiBehavior::None => "NONE",
            PiiBehavior::Block => "BLOCK",
            PiiBehavior::Mask => "MASK",
        }
    }
}

impl GatewayConfig {
    /// Checks all parts.
    ///
    /// # Errors
    /// What is wrong, and guardrails that would do something: nothing enforces them, and a guardrail that is taken and
    /// ignored is worse than none.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        check_rate_limits(self.rate_limits.as_deref().unwrap_or_default())?;
        if let Some(table) = &self.inference_table {
            table.check("inference_table_config")?;
        }
        for (direction, guardrail) in self.guardrails.iter().flat_map(Guardrails::directions) {
            guardrail.check(direction)?;
        }
        Ok(())
    }
}

/// Checks limits that count together.
///
/// # Errors
/// What is wrong.
pub fn check_rate_limits(limits: &[RateLimit]) -> Result<(), InvalidConfig> {
    if limits.len() > RATE_LIMITS_MAX {
        return invalid(format!("{} rate_limits are more than the allowed {RATE_LIMITS_MAX}", limits.len()));
    }
    let groups = limits.iter().filter(|limit| limit.key == Some(LimitKey::UserGroup)).count();
    if groups > GROUP_RATE_LIMITS_MAX {
        return invalid(format!(
            "{groups} rate_limits of user groups are more than the allowed {GROUP_RATE_LIMITS_MAX}"
        ));
    }
    for (index, limit) in limits.iter().enumerate() {
        limit.check()?;
        // One of calls and one of tokens go together.
        let same = |other: &RateLimit| {
            let both = |of: fn(&RateLimit) -> Option<u64>| of(other).is_some() && of(limit).is_some();
            other.scope() == limit.scope() && (both(|limit| limit.calls) || both(|limit| limit.tokens))
        };
        if limits[..index].iter().any(same) {
            return invalid(format!("two rate_limits are for {}", limit.describe()));
        }
    }
    Ok(())
}

impl RateLimit {
    /// Whose requests are counted together.
    pub fn scope(&self) -> (LimitKey, Option<&str>) {
        (self.key.unwrap_or_default(), self.principal.as_deref())
    }

    fn describe(&self) -> String {
        match self.scope() {
            (key, None) => format!("key '{}'", key.name()),
            (key, Some(principal)) => format!("key '{}' and principal '{principal}'", key.name()),
        }
    }

    fn check(&self) -> Result<(), InvalidConfig> {
        if self.calls.is_none() && self.tokens.is_none() {
            return invalid(format!("the rate limit of {} has neither calls nor tokens", self.describe()));
        }
        match self.scope() {
            (LimitKey::Endpoint, Some(_)) => {
                invalid("a rate limit of key 'endpoint' counts everybody: leave out principal")
            }
            (key @ (LimitKey::UserGroup | LimitKey::ServicePrincipal), None) => {
                invalid(format!("a rate limit of key '{}' needs a principal", key.name()))
            }
            (_, Some(name)) if name.is_empty() || name.len() > NAME_BYTES_MAX => {
                invalid(format!("the principal of a rate limit has 1 to {NAME_BYTES_MAX} bytes"))
            }
            _ => Ok(()),
        }
    }
}

impl InferenceTable {
    /// Whether it is written.
    pub fn is_on(&self) -> bool {
        self.enabled == Some(true)
    }

    /// Share of the requests that is kept; see [`sampled`](crate::usage::rows::sampled).
    pub fn sampling_fraction(&self) -> f64 {
        self.sampling_fraction.unwrap_or(1.0)
    }

    /// Beginning of the table's name.
    pub fn prefix<'a>(&'a self, endpoint: &'a str) -> &'a str {
        self.table_name_prefix.as_deref().filter(|prefix| !prefix.is_empty()).unwrap_or(endpoint)
    }

    /// Checks all parts; `field` is what the caller calls it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, field: &str) -> Result<(), InvalidConfig> {
        let parts = [
            ("catalog_name", &self.catalog),
            ("schema_name", &self.schema),
            ("table_name_prefix", &self.table_name_prefix),
        ];
        for (part, name) in parts {
            let name = name.as_deref().unwrap_or_default();
            if name.len() > NAME_BYTES_MAX || name.contains(|c: char| c.is_control() || " ./".contains(c)) {
                return invalid(format!(
                    "{field}.{part} '{name}' is not a name: no spaces, '.' or '/', at most {NAME_BYTES_MAX} bytes"
                ));
            }
        }
        if !(0.0..=1.0).contains(&self.sampling_fraction()) {
            let share = self.sampling_fraction();
            return invalid(format!("{field}.sampling_fraction is {share}; it must be from 0 to 1"));
        }
        let empty = |name: &Option<String>| name.as_ref().is_none_or(String::is_empty);
        if self.is_on() && (empty(&self.catalog) || empty(&self.schema)) {
            return invalid(format!("{field} is enabled: catalog_name and schema_name say where its table is"));
        }
        Ok(())
    }

    /// Refuses to move a table that is being written.
    ///
    /// # Errors
    /// When both are on and differ in their names.
    pub fn check_change(&self, now: &InferenceTable, field: &str) -> Result<(), InvalidConfig> {
        let names =
            |table: &InferenceTable| (table.catalog.clone(), table.schema.clone(), table.table_name_prefix.clone());
        if self.is_on() && now.is_on() && names(self) != names(now) {
            return invalid(format!("{field} is enabled: disable it before its catalog, schema or prefix is changed"));
        }
        Ok(())
    }
}

impl Guardrails {
    fn directions(&self) -> impl Iterator<Item = (&'static str, &Guardrail)> {
        let input = self.input.iter().map(|guardrail| ("input", guardrail));
        input.chain(self.output.iter().map(|guardrail| ("output", guardrail)))
    }
}

impl Guardrail {
    fn check(&self, direction: &str) -> Result<(), InvalidConfig> {
        for (field, words) in [("invalid_keywords", &self.invalid_keywords), ("valid_topics", &self.valid_topics)] {
            let words = words.as_deref().unwrap_or_default();
            if words.len() > WORDS_MAX || words.iter().any(|word| word.is_empty() || word.len() > WORD_BYTES_MAX) {
                return invalid(format!(
                    "guardrails.{direction}.{field} has at most {WORDS_MAX} words of 1 to {WORD_BYTES_MAX} bytes"
                ));
            }
        }
        let listed = |words: &Option<Vec<String>>| words.as_ref().is_some_and(|words| !words.is_empty());
        let unenforced = [
            ("safety", self.safety == Some(true)),
            ("pii", self.pii.is_some_and(|pii| pii != PiiBehavior::None)),
            ("invalid_keywords", listed(&self.invalid_keywords)),
            ("valid_topics", listed(&self.valid_topics)),
        ];
        match unenforced.iter().find(|(_, asked)| *asked) {
            Some((field, _)) => invalid(format!(
                "guardrails.{direction}.{field} is not enforced by this version of Tessera, so it is refused: leave it out"
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(key: Option<LimitKey>, principal: Option<&str>, calls: Option<u64>, tokens: Option<u64>) -> RateLimit {
        RateLimit { key, principal: principal.map(str::to_owned), calls, tokens }
    }

    #[test]
    fn rate_limits_that_contradict_each_other_or_say_nothing_are_refused() {
        let user = Some(LimitKey::User);
        let check = |limits: &[RateLimit]| check_rate_limits(limits).map_err(|error| error.0);
        check(&[limit(None, None, Some(1), None), limit(None, None, None, Some(1))]).unwrap();
        check(&[limit(user, None, Some(1), None), limit(user, Some("a"), Some(1), Some(2))]).unwrap();
        for (limits, word) in [
            (vec![limit(None, None, None, None)], "neither calls nor tokens"),
            (vec![limit(None, Some("a"), Some(1), None)], "everybody"),
            (vec![limit(Some(LimitKey::UserGroup), None, Some(1), None)], "needs a principal"),
            (vec![limit(user, None, Some(1), None), limit(user, None, Some(2), None)], "two rate_limits"),
            (vec![limit(None, None, Some(1), None), limit(Some(LimitKey::Endpoint), None, Some(2), None)], "two"),
            ((0..21).map(|n| limit(user, Some(&n.to_string()), Some(1), None)).collect(), "21"),
            ((0..6).map(|n| limit(Some(LimitKey::UserGroup), Some(&n.to_string()), Some(1), None)).collect(), "6"),
        ] {
            let error = check(&limits).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn guardrails_that_would_do_something_are_refused_and_others_kept() {
        let with = |guardrail: Guardrail| GatewayConfig {
            guardrails: Some(Guardrails { input: None, output: Some(guardrail) }),
            ..GatewayConfig::default()
        };
        with(Guardrail { safety: Some(false), pii: Some(PiiBehavior::None), ..Guardrail::default() }).check().unwrap();
        let error = with(Guardrail { pii: Some(PiiBehavior::Mask), ..Guardrail::default() }).check().unwrap_err();
        assert!(error.0.contains("guardrails.output.pii"), "{error}");
    }

    #[test]
    fn a_table_that_is_written_does_not_move() {
        let table = |enabled, catalog: &str| InferenceTable {
            enabled: Some(enabled),
            catalog: Some(catalog.to_owned()),
            schema: Some("s".to_owned()),
            ..InferenceTable::default()
        };
        assert!(table(true, "").check("t").is_err() && table(true, "a.b").check("t").is_err());
        assert!(table(true, "a").check_change(&table(true, "b"), "t").is_err());
        table(true, "a").check_change(&table(false, "b"), "t").unwrap();
        assert_eq!(table(true, "a").prefix("iris"), "iris");
        // How much of it is kept may change at any time.
        for (share, allowed) in [(0.0, true), (0.25, true), (1.0, true), (-0.1, false), (1.1, false), (f64::NAN, false)]
        {
            let sampled = InferenceTable { sampling_fraction: Some(share), ..table(true, "a") };
            assert_eq!(sampled.check("t").is_ok(), allowed, "{share}");
            table(true, "a").check_change(&sampled, "t").unwrap();
        }
    }
}
