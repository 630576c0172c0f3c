//! The permissions API: who may do what with an endpoint or a registered model.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    Route::get("permissions.endpoint", ENDPOINT, MANAGE_ENDPOINT, "Permissions of an endpoint", handler!(of_endpoint))
        .answers::<Permissions>(),
    Route::change(
        "permissions.set_endpoint",
        Method::PUT,
        ENDPOINT,
        MANAGE_ENDPOINT,
        "Set the permissions of an endpoint",
        handler!(change_endpoint),
    )
    .body::<PermissionsInput>()
    .answers::<Permissions>(),
    Route::change(
        "permissions.update_endpoint",
        Method::PATCH,
        ENDPOINT,
        MANAGE_ENDPOINT,
        "Add permissions to an endpoint",
        handler!(change_endpoint),
    )
    .body::<PermissionsInput>()
    .answers::<Permissions>(),
    Route::get(
        "permissions.endpoint_levels",
        ENDPOINT_LEVELS,
        Access::Endpoint(Level::View),
        "What may be permitted on an endpoint",
        handler!(endpoint_levels),
    )
    .answers::<PermissionLevels>(),
    Route::get("permissions.model", MODEL, MANAGE_MODEL, "Permissions of a registered model", handler!(of_model))
        .answers::<Permissions>(),
    Route::change(
        "permissions.set_model",
        Method::PUT,
        MODEL,
        MANAGE_MODEL,
        "Set the permissions of a registered model",
        handler!(change_model),
    )
    .body::<PermissionsInput>()
    .answers::<Permissions>(),
    Route::change(
        "permissions.update_model",
        Method::PATCH,
        MODEL,
        MANAGE_MODEL,
        "Add permissions to a registered model",
        handler!(change_model),
    )
    .body::<PermissionsInput>()
    .answers::<Permissions>(),
    Route::get(
        "permissions.model_levels",
        MODEL_LEVELS,
        Access::Model(Level::View),
        "What may be permitted on a registered model",
        handler!(model_levels),
    )
    .answers::<PermissionLevels>(),
];

#[derive(Deserialize, JsonSchema)]
struct PermissionsInput {
    #[serde(default)]
    access_control_list: Vec<PermissionInput>,
}

/// A level for one of a user, a group and a service principal.
#[derive(Deserialize, JsonSchema)]
struct PermissionInput {
    user_name: Option<String>,
    group_name: Option<String>,
    service_principal_name: Option<String>,
    permission_level: Level,
}

#[derive(Serialize, JsonSchema)]
struct Permissions {
    object_id: String,
    object_type: String,
    access_control_list: Vec<PermissionsOf>,
}

/// What one user, group or service principal may do.
#[derive(Default, Serialize, JsonSchema)]
struct PermissionsOf {
    #[serde(skip_serializing_if = "Option::is_none")]
    user_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_principal_name: Option<String>,
    display_name: String,
    all_permissions: Vec<Permission>,
}

#[derive(Serialize, JsonSchema)]
struct Permission {
    permission_level: Level,
    inherited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    inherited_from_object: Option<Vec<String>>,
}

#[derive(Serialize, JsonSchema)]
struct PermissionLevels {
    permission_levels: Vec<PermissionLevel>,
}

#[derive(Serialize, JsonSchema)]
struct PermissionLevel {
    permission_level: Level,
    description: String,
}

async fn of_endpoint(call: &Call) -> Result<Answer, ApiError> {
    let record = &endpoint_by_id(call).await?.record;
    json(&shown(call, ("serving-endpoints", &record.id), record.owner, &record.grants)?)
}

async fn change_endpoint(call: &mut Call) -> Result<Answer, ApiError> {
    let endpoint = endpoint_by_id(call).await?;
    let (app, principal, input) = call.json::<PermissionsInput>().await?;
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
    let (app, principal, input) = call.json::<PermissionsInput>().await?;
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

fn levels(what: &str, query: &str) -> PermissionLevels {
    let level = |level: Level| {
        let description = match level {
            Level::View => format!("Can see the {what}"),
            Level::Query => format!("Can see the {what} and {query}"),
            Level::Manage => format!("Can do everything with the {what}, and permit others"),
        };
        PermissionLevel { permission_level: level, description }
    };
    PermissionLevels { permission_levels: Level::ALL.map(level).into() }
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
fn grants(app: &App, caller: &Principal, input: PermissionsInput) -> Result<BTreeMap<u64, Level>, ApiError> {
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

fn shown(call: &Call, (kind, id): (&str, &str), owner: u64, grants: &[Grant]) -> Result<Permissions, ApiError> {
    let caller = call.principal()?;
    let mut list = Vec::new();
    let owner = Grant { to: owner, level: Level::Manage };
    for grant in std::iter::once(&owner).chain(grants.iter().filter(|grant| grant.to != owner.to)) {
        // Who is gone has no permission any more.
        if let Some(identity) = call.app.directory.identity(caller.workspace, grant.to) {
            list.push(item(
                &identity,
                Permission { permission_level: grant.level, inherited: false, inherited_from_object: None },
            ));
        }
    }
    if let Some(admins) = call.app.directory.find(caller.workspace, IdentityKind::Group, ADMINS) {
        let inherited = Permission {
            permission_level: Level::Manage,
            inherited: true,
            inherited_from_object: Some(vec![format!("/{kind}/")]),
        };
        list.push(item(&admins, inherited));
    }
    let object_type = kind.trim_end_matches('s').to_owned();
    Ok(Permissions { object_id: format!("/{kind}/{id}"), object_type, access_control_list: list })
}

fn item(identity: &Identity, permission: Permission) -> PermissionsOf {
    let mut item = PermissionsOf {
        display_name: identity.display_name.clone(),
        all_permissions: vec![permission],
        ..PermissionsOf::default()
    };
    let name = match identity.kind {
        IdentityKind::User => &mut item.user_name,
        IdentityKind::Group => &mut item.group_name,
        IdentityKind::ServicePrincipal => &mut item.service_principal_name,
    };
    *name = Some(identity.name.clone());
    item
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
