//! The permissions API: who may do what with an endpoint or a registered model.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::routes::{Access, Route, handler};
use super::{Answer, App, Call, json};
use crate::access::identity::ADMINS;
use crate::access::{Grant, Identity, IdentityKind, Level, Principal};
use crate::error::ApiError;

/// Most grants of one endpoint or model; its record has a bound.
const GRANTS_MAX: usize = 200;

const ENDPOINT: &str = "/api/2.0/permissions/serving-endpoints/{id}";
const ENDPOINT_LEVELS: &str = "/api/2.0/permissions/serving-endpoints/{id}/permissionLevels";
const MODEL: &str = "/api/2.0/permissions/registered-models/{id}";
const MODEL_LEVELS: &str = "/api/2.0/permissions/registered-models/{id}/permissionLevels";

const MANAGE_ENDPOINT: Access = Access::Endpoint(Level::Manage);
const MANAGE_MODEL: Access = Access::Model(Level::Manage);

pub(super) const ROUTES: &[Route] = &[
    Route::get("permissions.endpoint", ENDPOINT, MANAGE_ENDPOINT, "Permissions of an endpoint", handler!(of_endpoint)),
    Route::change(
        "permissions.set_endpoint",
        Method::PUT,
        ENDPOINT,
        MANAGE_ENDPOINT,
        "Set the permissions of an endpoint",
        handler!(change_endpoint),
    ),
    Route::change(
        "permissions.update_endpoint",
        Method::PATCH,
        ENDPOINT,
        MANAGE_ENDPOINT,
        "Add permissions to an endpoint",
        handler!(change_endpoint),
    ),
    Route::get(
        "permissions.endpoint_levels",
        ENDPOINT_LEVELS,
        Access::Endpoint(Level::View),
        "What may be permitted on an endpoint",
        handler!(endpoint_levels),
    ),
    Route::get("permissions.model", MODEL, MANAGE_MODEL, "Permissions of a registered model", handler!(of_model)),
    Route::change(
        "permissions.set_model",
        Method::PUT,
        MODEL,
        MANAGE_MODEL,
        "Set the permissions of a registered model",
        handler!(change_model),
    ),
    Route::change(
        "permissions.update_model",
        Method::PATCH,
        MODEL,
        MANAGE_MODEL,
        "Add permissions to a registered model",
        handler!(change_model),
    ),
    Route::get(
        "permissions.model_levels",
        MODEL_LEVELS,
        Access::Model(Level::View),
        "What may be permitted on a registered model",
        handler!(model_levels),
    ),
];

#[derive(Deserialize)]
struct Input {
    #[serde(default)]
    access_control_list: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    user_name: Option<String>,
    group_name: Option<String>,
    service_principal_name: Option<String>,
    permission_level: Level,
}

async fn of_endpoint(call: &Call) -> Result<Answer, ApiError> {
    let record = &endpoint_by_id(call).await?.record;
    json(&shown(call, ("serving-endpoints", &record.id), record.owner, &record.grants)?)
}

async fn change_endpoint(call: &mut Call) -> Result<Answer, ApiError> {
    let endpoint = endpoint_by_id(call).await?;
    let (app, principal, input) = call.json::<Input>().await?;
    let new = grants(&app, &principal, input)?;
    let merge = call.head.method == Method::PATCH;
    let change = move |record: &mut crate::catalog::EndpointRecord| {
        record.grants = merged(merge, &record.grants, new)?;
        Ok(())
    };
    let name = &endpoint.record.name;
    let changed = app.control.change_record(principal.workspace, name, &endpoint.record.id, change).await?;
    let record = &changed.record;
    json(&shown(call, ("serving-endpoints", &record.id), record.owner, &record.grants)?)
}

async fn endpoint_levels(call: &Call) -> Result<Answer, ApiError> {
    endpoint_by_id(call).await?;
    json(&levels("endpoint", "send requests to it"))
}

async fn of_model(call: &Call) -> Result<Answer, ApiError> {
    let model = model_by_id(call).await?;
    json(&shown(call, ("registered-models", &model.id), model.owner, &model.grants)?)
}

async fn change_model(call: &mut Call) -> Result<Answer, ApiError> {
    let model = model_by_id(call).await?;
    let (app, principal, input) = call.json::<Input>().await?;
    let new = grants(&app, &principal, input)?;
    let merge = call.head.method == Method::PATCH;
    let change = move |current: &[Grant]| merged(merge, current, new);
    let model = app.control.registry.change_grants(principal.workspace, &model.name, change).await?;
    json(&shown(call, ("registered-models", &model.id), model.owner, &model.grants)?)
}

async fn model_levels(call: &Call) -> Result<Answer, ApiError> {
    model_by_id(call).await?;
    json(&levels("model", "serve it and download its files"))
}

fn levels(what: &str, query: &str) -> Value {
    let level = |level: Level| {
        let description = match level {
            Level::View => format!("Can see the {what}"),
            Level::Query => format!("Can see the {what} and {query}"),
            Level::Manage => format!("Can do everything with the {what}, and permit others"),
        };
        json!({ "permission_level": level.name(), "description": description })
    };
    json!({ "permission_levels": Level::ALL.map(level) })
}

async fn endpoint_by_id(call: &Call) -> Result<Arc<crate::catalog::Endpoint>, ApiError> {
    let id = call.parameter("id");
    let name = call.app.control.endpoint_with_id(call.principal()?.workspace, id).await?;
    let name = name.ok_or_else(|| ApiError::missing(format!("Endpoint with id '{id}' does not exist.")))?;
    call.endpoint_named(&name).await
}

async fn model_by_id(call: &Call) -> Result<crate::registry::ModelRecord, ApiError> {
    let id = call.parameter("id");
    let models = call.app.control.registry.models(call.principal()?.workspace).await?;
    let name = models.into_iter().find(|model| model.id == id).map(|model| model.name);
    call.model(&name.ok_or_else(|| ApiError::missing(format!("Registered model with id '{id}' does not exist.")))?)
        .await
}

/// What a caller permits, by number, the highest level where it names somebody twice.
fn grants(app: &App, caller: &Principal, input: Input) -> Result<BTreeMap<u64, Level>, ApiError> {
    let mut grants = BTreeMap::new();
    for entry in input.access_control_list {
        let (kind, name) = match (entry.user_name, entry.group_name, entry.service_principal_name) {
            (Some(name), None, None) => (IdentityKind::User, name),
            (None, Some(name), None) => (IdentityKind::Group, name),
            (None, None, Some(name)) => (IdentityKind::ServicePrincipal, name),
            _ => {
                return Err(ApiError::invalid(
                    "every entry of access_control_list has one of user_name, group_name, service_principal_name",
                ));
            }
        };
        let found = app.directory.find(caller.workspace, kind, &name);
        let found = found.ok_or_else(|| ApiError::missing(format!("Principal '{name}' does not exist.")))?;
        let level = grants.entry(found.id).or_insert(entry.permission_level);
        *level = entry.permission_level.max(*level);
    }
    Ok(grants)
}

/// The grants after a change: all of the new ones, and where they are added, the old ones of everybody else.
fn merged(merge: bool, current: &[Grant], new: BTreeMap<u64, Level>) -> Result<Vec<Grant>, ApiError> {
    let kept = current.iter().filter(|grant| merge && !new.contains_key(&grant.to)).copied();
    let all: Vec<Grant> = kept.chain(new.iter().map(|(to, level)| Grant { to: *to, level: *level })).collect();
    if all.len() > GRANTS_MAX {
        return Err(ApiError::invalid(format!(
            "{} permissions are more than the allowed {GRANTS_MAX}: permit a group",
            all.len()
        )));
    }
    Ok(all)
}

fn shown(call: &Call, (kind, id): (&str, &str), owner: u64, grants: &[Grant]) -> Result<Value, ApiError> {
    let caller = call.principal()?;
    let mut list = Vec::new();
    let owner = Grant { to: owner, level: Level::Manage };
    for grant in std::iter::once(&owner).chain(grants.iter().filter(|grant| grant.to != owner.to)) {
        // Who is gone has no permission any more.
        if let Some(identity) = call.app.directory.identity(caller.workspace, grant.to) {
            list.push(item(&identity, json!({ "permission_level": grant.level.name(), "inherited": false })));
        }
    }
    if let Some(admins) = call.app.directory.find(caller.workspace, IdentityKind::Group, ADMINS) {
        let inherited = json!({
            "permission_level": Level::Manage.name(),
            "inherited": true,
            "inherited_from_object": [format!("/{kind}/")],
        });
        list.push(item(&admins, inherited));
    }
    let object_type = kind.trim_end_matches('s');
    Ok(json!({ "object_id": format!("/{kind}/{id}"), "object_type": object_type, "access_control_list": list }))
}

fn item(identity: &Identity, permission: Value) -> Value {
    let key = match identity.kind {
        IdentityKind::User => "user_name",
        IdentityKind::Group => "group_name",
        IdentityKind::ServicePrincipal => "service_principal_name",
    };
    json!({ key: identity.name, "display_name": identity.display_name, "all_permissions": [permission] })
}

/// The number of a user, service principal or group of the caller's workspace that goes by this name.
pub(super) fn member_named(app: &App, caller: &Principal, name: &str) -> Result<u64, ApiError> {
    let kinds = [IdentityKind::User, IdentityKind::ServicePrincipal, IdentityKind::Group];
    let found = kinds.into_iter().find_map(|kind| app.directory.find(caller.workspace, kind, name));
    found.map(|identity| identity.id).ok_or_else(|| ApiError::missing(format!("Principal '{name}' does not exist.")))
}

/// The name that [`member_named`] finds, unless its bearer is gone.
pub(super) fn name_of(app: &App, caller: &Principal, id: u64) -> Option<String> {
    app.directory.identity(caller.workspace, id).map(|identity| identity.name.clone())
}
