//! SCIM PatchOp (RFC 7644, section 3.5.2): what clients send becomes a list of [`Change`]s.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Reference, check_name, check_text, ids};
use crate::access::{Identity, IdentityKind};
use crate::error::ApiError;

/// The one entitlement that is shown, for everybody has it.
pub(super) const WORKSPACE_ACCESS: &str = "workspace-access";

/// Entitlements of Databricks to things that are not here: accepted, because scripts send them, and without effect.
const ENTITLEMENTS: [&str; 5] = [
    WORKSPACE_ACCESS,
    "workspace-consume",
    "databricks-sql-access",
    "allow-cluster-create",
    "allow-instance-pool-create",
];

/// The one role: to administrate the whole server. Databricks calls it so.
pub(super) const ACCOUNT_ADMIN: &str = "account_admin";

/// Attributes that are accepted and not kept.
const NOT_KEPT: [&str; 5] = ["schemas", "id", "meta", "emails", "name"];

/// RFC 7644, section 3.5.2.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ScimPatch")]
pub(super) struct PatchInput {
    #[serde(rename = "Operations", alias = "operations")]
    operations: Vec<Operation>,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ScimOperation")]
struct Operation {
    /// `add`, `remove` or `replace`.
    op: String,
    path: Option<String>,
    value: Option<Value>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Add,
    Remove,
    Replace,
}

/// One change of a user, group or service principal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Active(bool),
    /// The name among its kind; a group has no other.
    Name(String),
    DisplayName(String),
    ExternalId(Option<String>),
    /// The groups of a user or service principal, or the members of a group.
    Links(Links),
    /// Whether it has [`ACCOUNT_ADMIN`].
    ServerAdmin(bool),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Links {
    Add(Vec<u64>),
    Remove(Vec<u64>),
    Replace(Vec<u64>),
}

impl Links {
    pub(super) fn apply(&self, linked: &mut Vec<u64>) {
        match self {
            Links::Add(ids) => linked.extend(ids),
            Links::Remove(ids) => linked.retain(|id| !ids.contains(id)),
            Links::Replace(ids) => *linked = ids.clone(),
        }
        linked.sort_unstable();
        linked.dedup();
    }
}

impl Change {
    /// Makes the change; members of a group are kept with the members.
    pub(super) fn apply(&self, identity: &mut Identity) -> Result<(), ApiError> {
        match self {
            Change::Active(active) => identity.active = *active,
            Change::Name(name) => {
                check_name(identity.kind, name)?;
                identity.name.clone_from(name);
                if identity.kind == IdentityKind::Group {
                    identity.display_name.clone_from(name);
                }
            }
            Change::DisplayName(name) => {
                check_text("displayName", name)?;
                identity.display_name.clone_from(name);
            }
            Change::ExternalId(id) => identity.external_id.clone_from(id),
            Change::Links(links) => links.apply(&mut identity.groups),
            Change::ServerAdmin(is) => identity.server_admin = *is,
        }
        Ok(())
    }
}

/// Refuses entitlements that nobody knows.
pub(super) fn check_entitlement(name: &str) -> Result<(), ApiError> {
    match ENTITLEMENTS.contains(&name) {
        true => Ok(()),
        false => Err(ApiError::invalid(format!(
            "there is no entitlement '{name}': permissions are given on endpoints and models"
        ))),
    }
}

/// Refuses roles that nobody knows.
pub(super) fn check_role(name: &str) -> Result<(), ApiError> {
    match name {
        ACCOUNT_ADMIN => Ok(()),
        _ => Err(ApiError::invalid(format!("roles: there is no role '{name}', only '{ACCOUNT_ADMIN}'"))),
    }
}

impl PatchInput {
    pub(super) fn into_changes(self, kind: IdentityKind) -> Result<Vec<Change>, ApiError> {
        let mut changes = Vec::new();
        for Operation { op, path, value } in self.operations {
            let op = match op.to_ascii_lowercase().as_str() {
                "add" => Op::Add,
                "remove" => Op::Remove,
                "replace" => Op::Replace,
                _ => return Err(ApiError::invalid(format!("op '{op}' is not one of add, remove and replace"))),
            };
            match (path.filter(|path| !path.is_empty()), value) {
                (Some(path), value) => changes.extend(change(kind, op, &path, value)?),
                // Without a path the value holds attributes; some clients send a list of such values.
                (None, Some(Value::Array(values))) => {
                    for value in values {
                        changes.extend(all_of(kind, op, value)?);
                    }
                }
                (None, Some(value)) => changes.extend(all_of(kind, op, value)?),
                (None, None) => return Err(ApiError::invalid("an operation needs a path or a value")),
            }
        }
        Ok(changes)
    }
}

fn all_of(kind: IdentityKind, op: Op, value: Value) -> Result<Vec<Change>, ApiError> {
    let Value::Object(attributes) = value else {
        return Err(ApiError::invalid("without a path, the value of an operation must be an object"));
    };
    let changes = attributes.into_iter().map(|(path, value)| change(kind, op, &path, Some(value)));
    Ok(changes.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// The change of one attribute; none for what is not kept.
fn change(kind: IdentityKind, op: Op, path: &str, value: Option<Value>) -> Result<Option<Change>, ApiError> {
    // `urn:ietf:params:scim:schemas:core:2.0:User:active`
    let path = if path.starts_with("urn:") { path.rsplit(':').next().unwrap_or(path) } else { path };
    let attribute = path.split(['[', '.']).next().unwrap_or(path);
    let unsupported = || ApiError::invalid(format!("'{path}' of a {} cannot be changed", super::resource_type(kind)));
    let change = match (attribute, kind) {
        ("active", IdentityKind::User | IdentityKind::ServicePrincipal) if op != Op::Remove => {
            Change::Active(truth(value)?)
        }
        ("displayName", IdentityKind::Group) | ("userName", IdentityKind::User) => Change::Name(text(path, value)?),
        ("displayName", _) => Change::DisplayName(text(path, value)?),
        ("externalId", _) => Change::ExternalId(match op {
            Op::Remove => None,
            _ => Some(text(path, value)?),
        }),
        ("members", IdentityKind::Group) | ("groups", IdentityKind::User | IdentityKind::ServicePrincipal) => {
            Change::Links(links(op, path, value)?)
        }
        ("roles", IdentityKind::User | IdentityKind::ServicePrincipal) => match role(op, path, value)? {
            Some(change) => change,
            None => return Ok(None),
        },
        ("entitlements", _) => {
            entitlements(op, value)?;
            return Ok(None);
        }
        (attribute, _) if NOT_KEPT.contains(&attribute) => return Ok(None),
        _ => return Err(unsupported()),
    };
    Ok(Some(change))
}

fn truth(value: Option<Value>) -> Result<bool, ApiError> {
    match value {
        Some(Value::Bool(value)) => Ok(value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        // The Python SDK leaves out a value that is false.
        None => Ok(false),
        Some(other) => Err(ApiError::invalid(format!("active must be true or false, not {other}"))),
    }
}

fn text(path: &str, value: Option<Value>) -> Result<String, ApiError> {
    match value {
        Some(Value::String(text)) => Ok(text),
        _ => Err(ApiError::invalid(format!("{path} needs a text as its value"))),
    }
}

/// `members` with a value, or `members[value eq "7"]` without one.
fn links(op: Op, path: &str, value: Option<Value>) -> Result<Links, ApiError> {
    let filtered =
        path.split_once('[').map(|(_, filter)| filter_value(path, filter)?.parse().map_err(|_| not_understood(path)));
    let filtered: Option<u64> = filtered.transpose()?;
    let has_value = value.is_some();
    let ids = match (filtered, value) {
        (Some(id), _) => vec![id],
        (None, None) => Vec::new(),
        (None, Some(value)) => ids(&references(path, value)?)?,
    };
    match op {
        Op::Add => Ok(Links::Add(ids)),
        Op::Remove if filtered.is_some() || has_value => Ok(Links::Remove(ids)),
        // RFC 7644: without a filter, all of them.
        Op::Remove => Ok(Links::Replace(Vec::new())),
        Op::Replace => Ok(Links::Replace(ids)),
    }
}

/// `roles` with a value, or `roles[value eq "account_admin"]` without one.
fn role(op: Op, path: &str, value: Option<Value>) -> Result<Option<Change>, ApiError> {
    let names: Vec<String> = match (path.split_once('['), value) {
        (Some((_, filter)), _) => vec![filter_value(path, filter)?.to_owned()],
        (None, Some(value)) => references(path, value)?.iter().map(Reference::text).collect(),
        // RFC 7644: without a filter, all of them.
        (None, None) => vec![ACCOUNT_ADMIN.to_owned()],
    };
    names.iter().try_for_each(|name| check_role(name))?;
    Ok(match (op, names.is_empty()) {
        (Op::Replace, none) => Some(Change::ServerAdmin(!none)),
        (_, true) => None,
        (op, false) => Some(Change::ServerAdmin(op == Op::Add)),
    })
}

/// The text in `value eq "7"]`.
fn filter_value<'a>(path: &str, filter: &'a str) -> Result<&'a str, ApiError> {
    let value = || {
        let words = filter.strip_suffix(']')?.trim().strip_prefix("value")?.trim_start();
        Some(words.strip_prefix("eq")?.trim().trim_matches(['"', '\'']))
    };
    value().ok_or_else(|| not_understood(path))
}

fn not_understood(path: &str) -> ApiError {
    ApiError::invalid(format!("path '{path}' is not understood: write members[value eq \"ID\"]"))
}

/// One reference, a list of them, or ids alone.
fn references(path: &str, value: Value) -> Result<Vec<Reference>, ApiError> {
    let values = match value {
        Value::Array(values) => values,
        value => vec![value],
    };
    let reference = |value: Value| match value {
        Value::String(_) | Value::Number(_) => Ok(Reference { value }),
        value => serde_json::from_value(value)
            .map_err(|_| ApiError::invalid(format!("{path} needs values like {{\"value\": \"ID\"}}"))),
    };
    values.into_iter().map(reference).collect()
}

fn entitlements(op: Op, value: Option<Value>) -> Result<(), ApiError> {
    let names = references("entitlements", value.unwrap_or(Value::Array(Vec::new())))?;
    for name in names.iter().map(Reference::text) {
        check_entitlement(&name)?;
        if op == Op::Remove && name == WORKSPACE_ACCESS {
            return Err(ApiError::invalid(
                "everybody in a workspace has access to it: replace active with false instead",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changes(kind: IdentityKind, operations: Value) -> Result<Vec<Change>, String> {
        let input: PatchInput = serde_json::from_value(json!({ "Operations": operations })).unwrap();
        input.into_changes(kind).map_err(|error| error.message)
    }

    #[test]
    fn the_forms_that_clients_send_mean_the_same() {
        let user = |operation: Value| changes(IdentityKind::User, json!([operation])).unwrap();
        for operation in [
            json!({ "op": "replace", "path": "active", "value": "false" }),
            json!({ "op": "Replace", "path": "active", "value": false }),
            json!({ "op": "replace", "path": "active" }),
            json!({ "op": "replace", "value": { "active": false } }),
            json!({ "op": "replace", "value": [{ "active": false }] }),
            json!({ "op": "add", "path": "urn:ietf:params:scim:schemas:core:2.0:User:active", "value": "False" }),
        ] {
            assert_eq!(user(operation.clone()), [Change::Active(false)], "{operation}");
        }
        let group = |operation: Value| changes(IdentityKind::Group, json!([operation])).unwrap();
        for value in
            [json!([{ "value": "7" }]), json!({ "value": "7" }), json!(["7"]), json!("7"), json!([{ "value": 7 }])]
        {
            let operation = json!({ "op": "add", "path": "members", "value": value });
            assert_eq!(group(operation), [Change::Links(Links::Add(vec![7]))], "{value}");
        }
        let inside = json!({ "op": "add", "value": { "members": [{ "value": "7" }] } });
        assert_eq!(group(inside), [Change::Links(Links::Add(vec![7]))]);
        let one = json!({ "op": "remove", "path": "members[value eq \"7\"]" });
        assert_eq!(group(one), [Change::Links(Links::Remove(vec![7]))]);
        assert_eq!(group(json!({ "op": "remove", "path": "members" })), [Change::Links(Links::Replace(vec![]))]);
        assert_eq!(group(json!({ "op": "replace", "path": "displayName", "value": "b" })), [Change::Name("b".into())]);
        let nothing = json!({ "op": "add", "path": "entitlements", "value": [{ "value": "workspace-access" }] });
        assert_eq!(user(nothing), []);
        let admin = json!([{ "value": "account_admin" }]);
        for (operation, is) in [
            (json!({ "op": "add", "path": "roles", "value": admin }), true),
            (json!({ "op": "add", "value": { "roles": admin } }), true),
            (json!({ "op": "replace", "path": "roles", "value": admin }), true),
            (json!({ "op": "replace", "path": "roles", "value": [] }), false),
            (json!({ "op": "remove", "path": "roles[value eq \"account_admin\"]" }), false),
            (json!({ "op": "remove", "path": "roles", "value": admin }), false),
            (json!({ "op": "remove", "path": "roles" }), false),
        ] {
            assert_eq!(user(operation.clone()), [Change::ServerAdmin(is)], "{operation}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (kind, operation, word) in [
            (IdentityKind::User, json!({ "op": "move", "path": "active" }), "move"),
            (IdentityKind::User, json!({ "op": "replace" }), "path"),
            (IdentityKind::User, json!({ "op": "replace", "value": "x" }), "object"),
            (IdentityKind::User, json!({ "op": "add", "path": "members", "value": "7" }), "members"),
            (IdentityKind::User, json!({ "op": "add", "path": "roles", "value": "7" }), "roles"),
            (IdentityKind::User, json!({ "op": "add", "path": "entitlements", "value": "fly" }), "fly"),
            (
                IdentityKind::User,
                json!({ "op": "remove", "path": "entitlements", "value": "workspace-access" }),
                "active",
            ),
            (IdentityKind::User, json!({ "op": "replace", "path": "active", "value": 1 }), "true or false"),
            (IdentityKind::Group, json!({ "op": "replace", "path": "displayName" }), "displayName"),
            (IdentityKind::Group, json!({ "op": "remove", "path": "members[display eq \"x\"]" }), "members[value eq"),
            (IdentityKind::Group, json!({ "op": "add", "path": "members", "value": [{ "id": "7" }] }), "value"),
            (IdentityKind::Group, json!({ "op": "add", "path": "members", "value": "ada" }), "ada"),
            (
                IdentityKind::ServicePrincipal,
                json!({ "op": "replace", "path": "applicationId", "value": "x" }),
                "applicationId",
            ),
        ] {
            let refused = changes(kind, json!([operation])).unwrap_err();
            assert!(refused.contains(word), "{operation}: {refused}");
        }
    }
}
