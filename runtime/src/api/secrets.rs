//! The secrets API of the Databricks SDK: scopes, secrets, and who may use them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::permissions::{member_named, name_of};
use super::routes::{Access, Route, handler};
use super::{Answer, Call, done, json};
use crate::access::{Grant, Level, Object, Principal, level_of};
use crate::error::ApiError;
use crate::secrets::{Scope, SecretName};

const PRINCIPAL: Access = Access::Principal;

pub(super) const ROUTES: &[Route] = &[
    post("secrets.create_scope", "/api/2.0/secrets/scopes/create", "Create a scope", handler!(create_scope))
        .body::<NewScope>(),
    post("secrets.delete_scope", "/api/2.0/secrets/scopes/delete", "Delete a scope", handler!(delete_scope))
        .body::<ScopeRef>(),
    Route::get("secrets.list_scopes", "/api/2.0/secrets/scopes/list", PRINCIPAL, "List the scopes", handler!(scopes))
        .answers::<Scopes>(),
    post("secrets.put", "/api/2.0/secrets/put", "Write a secret", handler!(put)).body::<NewSecret>(),
    post("secrets.delete", "/api/2.0/secrets/delete", "Delete a secret", handler!(delete)).body::<SecretRef>(),
    Route::get("secrets.get", "/api/2.0/secrets/get", PRINCIPAL, "Read a secret", handler!(get))
        .query::<SecretRef>()
        .answers::<Secret>(),
    Route::get("secrets.list", "/api/2.0/secrets/list", PRINCIPAL, "List the secrets of a scope", handler!(list))
        .query::<ScopeRef>()
        .answers::<Secrets>(),
    post("secrets.put_acl", "/api/2.0/secrets/acls/put", "Let a principal use a scope", handler!(put_acl))
        .body::<NewAcl>(),
    post("secrets.delete_acl", "/api/2.0/secrets/acls/delete", "Take a scope from a principal", handler!(delete_acl))
        .body::<AclRef>(),
    Route::get(
        "secrets.get_acl",
        "/api/2.0/secrets/acls/get",
        PRINCIPAL,
        "A principal's permission",
        handler!(get_acl),
    )
    .query::<AclRef>()
    .answers::<AclItem>(),
    Route::get("secrets.list_acls", "/api/2.0/secrets/acls/list", PRINCIPAL, "A scope's permissions", handler!(acls))
        .query::<ScopeRef>()
        .answers::<AclItems>(),
];

const fn post(name: &'static str, path: &'static str, about: &'static str, handler: super::routes::Handler) -> Route {
    Route::change(name, Method::POST, path, PRINCIPAL, about, handler)
}

/// A scope is read, written or managed; [`Level`] has the same order under other names.
const LEVELS: [(Level, &str); 3] = [(Level::View, "READ"), (Level::Query, "WRITE"), (Level::Manage, "MANAGE")];

#[derive(Deserialize, JsonSchema)]
struct NewScope {
    scope: String,
    initial_manage_principal: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
struct ScopeRef {
    scope: String,
}

#[derive(Deserialize, JsonSchema)]
struct SecretRef {
    scope: String,
    key: String,
}

#[derive(Deserialize, JsonSchema)]
struct NewSecret {
    scope: String,
    key: String,
    string_value: Option<String>,
    /// In base64.
    bytes_value: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
struct NewAcl {
    scope: String,
    principal: String,
    permission: String,
}

#[derive(Deserialize, JsonSchema)]
struct AclRef {
    scope: String,
    principal: String,
}

#[derive(Serialize, JsonSchema)]
struct Scopes {
    scopes: Vec<ScopeInfo>,
}

#[derive(Serialize, JsonSchema)]
struct ScopeInfo {
    name: String,
    backend_type: &'static str,
}

#[derive(Serialize, JsonSchema)]
struct Secret {
    key: String,
    /// In base64.
    value: String,
}

#[derive(Serialize, JsonSchema)]
struct Secrets {
    secrets: Vec<SecretName>,
}

/// What a principal may do with a scope.
#[derive(Serialize, JsonSchema)]
struct AclItem {
    principal: String,
    permission: &'static str,
}

#[derive(Serialize, JsonSchema)]
struct AclItems {
    items: Vec<AclItem>,
}

async fn create_scope(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<NewScope>().await?;
    let grants = match &input.initial_manage_principal {
        None => Vec::new(),
        Some(name) => vec![Grant { to: member_named(&app, &principal, name)?, level: Level::Manage }],
    };
    app.control.secrets.create_scope(&principal, &input.scope, grants).await?;
    done()
}

async fn delete_scope(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<ScopeRef>().await?;
    app.control.secrets.delete_scope(&principal, &input.scope).await?;
    done()
}

async fn scopes(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let mut scopes = call.app.control.secrets.scopes(principal.workspace).await?;
    scopes.retain(|scope| level_of(&principal, Object::SecretScope(scope)).is_some());
    let shown = scopes.into_iter().map(|scope| ScopeInfo { name: scope.name, backend_type: "DATABRICKS" });
    json(&Scopes { scopes: shown.collect() })
}

async fn put(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<NewSecret>().await?;
    let value = match (input.string_value, input.bytes_value) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(bytes)) => {
            BASE64.decode(bytes).map_err(|error| ApiError::invalid(format!("bytes_value is not base64: {error}")))?
        }
        _ => return Err(ApiError::invalid("send either string_value or bytes_value")),
    };
    app.control.secrets.put(&principal, &input.scope, &input.key, &value).await?;
    done()
}

async fn delete(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<SecretRef>().await?;
    app.control.secrets.delete(&principal, &input.scope, &input.key).await?;
    done()
}

async fn get(call: &Call) -> Result<Answer, ApiError> {
    let SecretRef { scope, key } = call.query()?;
    let value = call.app.control.secrets.get(&*call.principal()?, &scope, &key).await?;
    json(&Secret { key, value })
}

async fn list(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let secrets = &call.app.control.secrets;
    let scope = secrets.scope(&principal, &call.query::<ScopeRef>()?.scope, Level::View).await?;
    json(&Secrets { secrets: secrets.names(scope.workspace, &scope.name).await? })
}

async fn put_acl(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<NewAcl>().await?;
    let to = member_named(&app, &principal, &input.principal)?;
    let level = LEVELS.iter().find(|(_, name)| *name == input.permission).map(|(level, _)| *level);
    let level = level.ok_or_else(|| {
        ApiError::invalid(format!("permission '{}' is not one of READ, WRITE, MANAGE", input.permission))
    })?;
    let change = |grants: &mut Vec<Grant>| {
        grants.retain(|grant| grant.to != to);
        grants.push(Grant { to, level });
        Ok(())
    };
    app.control.secrets.change_grants(&principal, &input.scope, change).await?;
    done()
}

async fn delete_acl(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<AclRef>().await?;
    let to = member_named(&app, &principal, &input.principal)?;
    let change = |grants: &mut Vec<Grant>| {
        let before = grants.len();
        grants.retain(|grant| grant.to != to);
        if grants.len() == before {
            return Err(no_acl(&input.scope, &input.principal));
        }
        Ok(())
    };
    app.control.secrets.change_grants(&principal, &input.scope, change).await?;
    done()
}

async fn get_acl(call: &Call) -> Result<Answer, ApiError> {
    let (caller, AclRef { scope, principal: name }) = (call.principal()?, call.query()?);
    let scope = call.app.control.secrets.scope(&caller, &scope, Level::Manage).await?;
    let found = acl_items(call, &caller, &scope).into_iter().find(|item| item.principal == name);
    json(&found.ok_or_else(|| no_acl(&scope.name, &name))?)
}

async fn acls(call: &Call) -> Result<Answer, ApiError> {
    let caller = call.principal()?;
    let scope = call.app.control.secrets.scope(&caller, &call.query::<ScopeRef>()?.scope, Level::Manage).await?;
    json(&AclItems { items: acl_items(call, &caller, &scope) })
}

fn acl_items(call: &Call, caller: &Principal, scope: &Scope) -> Vec<AclItem> {
    let owner = Grant { to: scope.owner, level: Level::Manage };
    let others = scope.grants.iter().filter(|grant| grant.to != scope.owner);
    let shown = |grant: &Grant| {
        let permission = LEVELS.iter().find(|(level, _)| *level == grant.level).map(|(_, name)| *name)?;
        Some(AclItem { principal: name_of(&call.app, caller, grant.to)?, permission })
    };
    std::iter::once(&owner).chain(others).filter_map(shown).collect()
}

fn no_acl(scope: &str, principal: &str) -> ApiError {
    ApiError::missing(format!("'{principal}' has no permission on scope {scope}"))
}
