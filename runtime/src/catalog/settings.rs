//! What can be changed of an endpoint without a deploy.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::config::{InvalidConfig, invalid};
use super::gateway_config::{GatewayConfig, RateLimit, check_rate_limits};

/// Most tags of an endpoint.
const TAGS_MAX: usize = 20;
const TAG_KEY_BYTES_MAX: usize = 127;
const TAG_VALUE_BYTES_MAX: usize = 256;

/// Longest description.
const DESCRIPTION_BYTES_MAX: usize = 2000;

/// Most addresses of one list; the longest that a mail server takes.
const ADDRESSES_MAX: usize = 10;
const ADDRESS_BYTES_MAX: usize = 254;

/// All of it as JSON: a record holds it beside two configs.
const SETTINGS_BYTES_MAX: usize = 8 << 10;

/// Longest other name.
const NAME_BYTES_MAX: usize = 255;

/// Features and tables that telemetry has.
const FEATURES: [&str; 4] = [
    "TELEMETRY_FEATURE_INFERENCE_TABLE",
    "TELEMETRY_FEATURE_LOGS",
    "TELEMETRY_FEATURE_METRICS",
    "TELEMETRY_FEATURE_TRACES",
];
const TABLES: [&str; 4] = ["annotations_table", "logs_table", "metrics_table", "traces_table"];

/// Description, labels, gateway and the like.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EndpointSettings {
    /// Free text.
    #[serde(default)]
    pub description: Option<String>,
    /// Free labels, in the order given.
    #[serde(default)]
    pub tags: Vec<Tag>,
    /// What stands before the models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<GatewayConfig>,
    /// The older way to limit requests; these limits hold beside the gateway's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<RateLimit>,
    /// Whom to tell of updates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notifications: Option<Notifications>,
    /// Where traces and the like go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<Telemetry>,
    /// Who pays, as free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_policy_id: Option<String>,
    /// Whether clients shall ask under the endpoint's own URL. Chosen when it is made.
    #[serde(default)]
    pub route_optimized: bool,
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

/// Mail addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notifications {
    /// Told when an update succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_update_success: Option<Vec<String>>,
    /// Told when one failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_update_failure: Option<Vec<String>>,
}

/// Where traces, logs and metrics shall go.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    /// Which kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<String>>,
    /// Their tables, by the name on the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<BTreeMap<String, String>>,
    /// A profile that says the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile_id: Option<String>,
    /// The table of requests and responses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference_table: Option<TelemetryTable>,
}

/// A table of a share of the requests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TelemetryTable {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// From 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_fraction: Option<f64>,
}

impl EndpointSettings {
    /// Checks all parts.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        at_most("description", self.description.as_deref(), DESCRIPTION_BYTES_MAX)?;
        at_most("budget_policy_id", self.budget_policy_id.as_deref(), NAME_BYTES_MAX)?;
        check_tags(&self.tags)?;
        check_rate_limits(&self.rate_limits)?;
        self.gateway.as_ref().map_or(Ok(()), GatewayConfig::check)?;
        self.notifications.as_ref().map_or(Ok(()), Notifications::check)?;
        self.telemetry.as_ref().map_or(Ok(()), Telemetry::check)?;
        match serde_json::to_vec(self).map_or(usize::MAX, |json| json.len()) {
            ..=SETTINGS_BYTES_MAX => Ok(()),
            bytes => invalid(format!(
                "tags, limits and the like have {bytes} bytes together; the limit is {SETTINGS_BYTES_MAX}: use fewer or shorter ones"
            )),
        }
    }

    /// What is kept and returned but not done: clients and templates carry it, and no answer may hide it. Who builds one
    /// of these takes it out here.
    pub(super) fn not_enforced(&self) -> Vec<&'static str> {
        let listed = |addresses: &Option<Vec<String>>| addresses.as_ref().is_some_and(|list| !list.is_empty());
        let mails = |mails: &Notifications| listed(&mails.on_update_success) || listed(&mails.on_update_failure);
        let fields = [
            ("email_notifications", self.notifications.as_ref().is_some_and(mails)),
            ("telemetry_config", self.telemetry.as_ref().is_some_and(|telemetry| *telemetry != Telemetry::default())),
        ];
        fields.into_iter().filter(|(_, asked)| *asked).map(|(field, _)| field).collect()
    }

    /// Adds labels, or gives those that are there another value, and takes others away.
    pub fn patch_tags(&mut self, add: Vec<Tag>, delete: &[String]) {
        self.tags.retain(|tag| !delete.contains(&tag.key));
        for tag in add {
            match self.tags.iter_mut().find(|known| known.key == tag.key) {
                Some(known) => *known = tag,
                None => self.tags.push(tag),
            }
        }
    }
}

fn at_most(what: &str, text: Option<&str>, bytes_max: usize) -> Result<(), InvalidConfig> {
    match text {
        Some(text) if text.len() > bytes_max => {
            invalid(format!("{what} has {} bytes; the limit is {bytes_max}", text.len()))
        }
        _ => Ok(()),
    }
}

fn check_tags(tags: &[Tag]) -> Result<(), InvalidConfig> {
    if tags.len() > TAGS_MAX {
        return invalid(format!("{} tags are more than the allowed {TAGS_MAX}", tags.len()));
    }
    for (index, tag) in tags.iter().enumerate() {
        if tag.key.is_empty() || tag.key.len() > TAG_KEY_BYTES_MAX {
            return invalid(format!("the key of a tag has 1 to {TAG_KEY_BYTES_MAX} bytes, '{}' has not", tag.key));
        }
        at_most(&format!("the value of tag '{}'", tag.key), tag.value.as_deref(), TAG_VALUE_BYTES_MAX)?;
        if tags[..index].iter().any(|other| other.key == tag.key) {
            return invalid(format!("two tags have the key '{}'", tag.key));
        }
    }
    Ok(())
}

impl Notifications {
    fn check(&self) -> Result<(), InvalidConfig> {
        for (list, addresses) in
            [("on_update_success", &self.on_update_success), ("on_update_failure", &self.on_update_failure)]
        {
            let addresses = addresses.as_deref().unwrap_or_default();
            if addresses.len() > ADDRESSES_MAX {
                return invalid(format!("email_notifications.{list} has more than {ADDRESSES_MAX} addresses"));
            }
            let is_address = |address: &&String| address.contains('@') && address.len() <= ADDRESS_BYTES_MAX;
            if let Some(bad) = addresses.iter().find(|address| !is_address(address)) {
                return invalid(format!("email_notifications.{list}: '{bad}' is not a mail address"));
            }
        }
        Ok(())
    }
}

impl Telemetry {
    fn check(&self) -> Result<(), InvalidConfig> {
        for feature in self.features.iter().flatten() {
            if !FEATURES.contains(&feature.as_str()) {
                let known = FEATURES.join(", ");
                return invalid(format!("telemetry_config: feature '{feature}' is not one of {known}"));
            }
        }
        for (table, name) in self.tables.iter().flatten() {
            if !TABLES.contains(&table.as_str()) {
                let known = TABLES.join(", ");
                return invalid(format!("telemetry_config.table_names: '{table}' is not one of {known}"));
            }
            at_most(&format!("telemetry_config.table_names.{table}"), Some(name), NAME_BYTES_MAX)?;
        }
        at_most("telemetry_config.telemetry_profile_id", self.profile_id.as_deref(), NAME_BYTES_MAX)?;
        let Some(table) = &self.inference_table else { return Ok(()) };
        at_most("telemetry_config.inference_table_config.name", table.name.as_deref(), NAME_BYTES_MAX)?;
        match table.sampling_fraction {
            Some(share) if !(0.0..=1.0).contains(&share) => {
                invalid(format!("telemetry_config: sampling_fraction is {share}; it must be from 0 to 1"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(key: &str, value: &str) -> Tag {
        Tag { key: key.to_owned(), value: Some(value.to_owned()) }
    }

    #[test]
    fn tags_keep_their_order_and_have_limits() {
        let mut settings = EndpointSettings { tags: vec![tag("a", "1"), tag("b", "2")], ..Default::default() };
        settings.patch_tags(vec![tag("c", "3"), tag("b", "4")], &["a".to_owned(), "unknown".to_owned()]);
        assert_eq!(settings.tags, [tag("b", "4"), tag("c", "3")]);
        settings.check().unwrap();
        let long = (0..20).map(|n| tag(&format!("{n}{}", "k".repeat(120)), &"v".repeat(256))).collect();
        let large = EndpointSettings { tags: long, description: Some("d".repeat(2000)), ..Default::default() };
        assert!(large.check().unwrap_err().0.contains("bytes together"));
        settings.patch_tags((0..20).map(|n| tag(&n.to_string(), "")).collect(), &[]);
        assert!(settings.check().unwrap_err().0.contains("22 tags"));
        for bad in [tag("", ""), tag(&"k".repeat(128), ""), tag("k", &"v".repeat(257))] {
            assert!(EndpointSettings { tags: vec![bad], ..Default::default() }.check().is_err());
        }
    }

    #[test]
    fn what_is_only_kept_is_told() {
        let mails = Notifications { on_update_failure: Some(vec!["a@x".to_owned()]), ..Default::default() };
        let mut settings = EndpointSettings { notifications: Some(mails), ..Default::default() };
        settings.check().unwrap();
        assert_eq!(settings.not_enforced(), ["email_notifications"]);
        settings.notifications =
            Some(Notifications { on_update_success: Some(vec!["x".to_owned()]), ..Default::default() });
        assert!(settings.check().is_err());
        settings.notifications = Some(Notifications::default());
        assert!(settings.not_enforced().is_empty());
    }
}
