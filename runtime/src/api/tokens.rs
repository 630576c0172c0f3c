//! Tokens: everybody's own, and for administrators those of all principals of the workspace; secrets of service principals.

use std::sync::Arc;

use hyper::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::routes::{Access, Route, handler};
use super::scim::{check_rank, named};
use super::{Answer, App, Call, json};
use crate::access::directory::NewToken;
use crate::access::tokens::{TokenKind, TokenRecord};
use crate::access::{Identity, IdentityKind, Principal};
use crate::catalog::WorkspaceId;
use crate::clock::rfc3339;
use crate::error::ApiError;

const MANAGED: &str = "/api/2.0/token-management/tokens";
const MANAGED_ONE: &str = "/api/2.0/token-management/tokens/{id}";
const ON_BEHALF: &str = "/api/2.0/token-management/on-behalf-of/tokens";
const SECRETS: &str = "/api/2.0/accounts/servicePrincipals/{id}/credentials/secrets";
const SECRET: &str = "/api/2.0/accounts/servicePrincipals/{id}/credentials/secrets/{secret}";

/// Life of a client's secret whose maker does not say: two years, as at Databricks.
const SECRET_LIFETIME_S: u64 = 2 * 365 * 24 * 3600;

const COMMENT_CHARS_MAX: usize = 1024;

const OWN: Access = Access::Principal;

pub(super) const ROUTES: &[Route] = &[
    Route::change(
        "tokens.create",
        Method::POST,
        "/api/2.0/token/create",
        OWN,
        "Create a token for oneself",
        handler!(create),
    ),
    Route::get("tokens.list", "/api/2.0/token/list", OWN, "List one's own tokens", handler!(list)),
    Route::change(
        "tokens.delete",
        Method::POST,
        "/api/2.0/token/delete",
        OWN,
        "Revoke a token of one's own",
        handler!(delete),
    ),
    Route::change(
        "tokens.update",
        Method::PATCH,
        "/api/2.0/token/{id}",
        OWN,
        "Change the comment of a token of one's own",
        handler!(update),
    ),
    Route::change(
        "token_management.create_on_behalf",
        Method::POST,
        ON_BEHALF,
        Access::Admin,
        "Create a token for a service principal or a user",
        handler!(create_on_behalf),
    ),
    Route::get(
        "token_management.list",
        MANAGED,
        Access::Admin,
        "List the tokens of all principals",
        handler!(list_all),
    ),
    Route::get("token_management.get", MANAGED_ONE, Access::Admin, "Get a token of any principal", handler!(get_any)),
    Route::change(
        "token_management.update",
        Method::PATCH,
        MANAGED_ONE,
        Access::Admin,
        "Change the comment of a token of any principal",
        handler!(update_any),
    ),
    Route::change(
        "token_management.delete",
        Method::DELETE,
        MANAGED_ONE,
        Access::Admin,
        "Revoke a token of any principal",
        handler!(delete_any),
    ),
    Route::change(
        "service_principal_secrets.create",
        Method::POST,
        SECRETS,
        Access::Admin,
        "Create an OAuth secret of a service principal",
        handler!(create_secret),
    ),
    Route::get(
        "service_principal_secrets.list",
        SECRETS,
        Access::Admin,
        "List the OAuth secrets of a service principal",
        handler!(list_secrets),
    ),
    Route::change(
        "service_principal_secrets.delete",
        Method::DELETE,
        SECRET,
        Access::Admin,
        "Delete an OAuth secret and end its access tokens",
        handler!(delete_secret),
    ),
];

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenInput {
    comment: String,
    lifetime_seconds: Option<i64>,
    scopes: Vec<String>,
    /// On behalf of a service principal.
    application_id: Option<String>,
    /// Ours: on behalf of a user.
    user_name: Option<String>,
}

impl TokenInput {
    fn into_new(self, created_by: u64) -> Result<NewToken, ApiError> {
        // Without this, somebody who asks for less would be given everything.
        refuse_scopes(&self.scopes)?;
        check_comment(&self.comment)?;
        let lifetime_ms = match self.lifetime_seconds {
            None => None,
            Some(seconds @ 1..) => Some(seconds.unsigned_abs().saturating_mul(1000)),
            Some(seconds) => {
                let message = format!(
                    "lifetime_seconds is {seconds}; it must be at least 1, or be left out for a token without an end"
                );
                return Err(ApiError::invalid(message));
            }
        };
        Ok(NewToken { kind: TokenKind::Personal, created_by, comment: self.comment, lifetime_ms })
    }
}

fn check_comment(comment: &str) -> Result<(), ApiError> {
    if comment.chars().count() > COMMENT_CHARS_MAX {
        return Err(ApiError::invalid(format!("comment may have at most {COMMENT_CHARS_MAX} characters")));
    }
    Ok(())
}

fn refuse_scopes(scopes: &[String]) -> Result<(), ApiError> {
    match scopes.iter().find(|scope| *scope != "all-apis") {
        None => Ok(()),
        Some(scope) => Err(ApiError::invalid(format!("scope '{scope}' is not supported: the only one is all-apis"))),
    }
}

async fn create(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<TokenInput>().await?;
    let caller = app.directory.identity(principal.workspace, principal.id);
    let caller = caller.ok_or_else(|| ApiError::missing(format!("'{}' does not exist any more.", principal.name)))?;
    let (value, record) = app.directory.create_token(&caller, input.into_new(principal.id)?).await?;
    json(&json!({ "token_value": value, "token_info": own_info(&record) }))
}

async fn list(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let tokens = call.app.directory.tokens_of(principal.workspace, TokenKind::Personal, Some(principal.id));
    json(&json!({ "token_infos": tokens.iter().map(|token| own_info(token)).collect::<Vec<_>>() }))
}

#[derive(Deserialize)]
struct TokenRef {
    token_id: String,
}

async fn delete(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<TokenRef>().await?;
    app.directory.revoke(&*own(&app, &principal, &input.token_id)?).await?;
    json(&Map::new())
}

/// A token of the caller's own.
fn own(app: &App, principal: &Principal, id: &str) -> Result<Arc<TokenRecord>, ApiError> {
    let token = app.directory.token(principal.workspace, TokenKind::Personal, id);
    let token = token.ok().filter(|token| token.principal == principal.id);
    token.ok_or_else(|| ApiError::missing(format!("Token with id '{id}' does not exist.")))
}

/// A token as it shall be, and the names of the fields that shall be so, joined by commas; `*` for all.
#[derive(Deserialize)]
struct TokenUpdate {
    #[serde(default)]
    token: NewTokenFields,
    update_mask: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NewTokenFields {
    comment: String,
    scopes: Vec<String>,
}

impl TokenUpdate {
    /// The new comment, where there is one. Of the scopes there is only one set, which every token has.
    fn comment(self) -> Result<Option<String>, ApiError> {
        let mut comment = None;
        for field in self.update_mask.split(',').map(str::trim) {
            match field {
                "comment" | "*" => comment = Some(self.token.comment.clone()),
                "scopes" => refuse_scopes(&self.token.scopes)?,
                _ => return Err(ApiError::invalid(format!("update_mask: '{field}' is not one of comment and scopes"))),
            }
        }
        comment.iter().try_for_each(|comment| check_comment(comment))?;
        Ok(comment)
    }
}

async fn update(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<TokenUpdate>().await?;
    let token = own(&app, &principal, call.parameter("id"))?;
    change(&app, token, input).await?;
    json(&Map::new())
}

async fn update_any(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<TokenUpdate>().await?;
    let token = managed(call)?;
    check_owner(&app, &principal, &token)?;
    let changed = change(&app, token, input).await?;
    json(&managed_info(&app, &changed))
}

async fn change(app: &App, token: Arc<TokenRecord>, input: TokenUpdate) -> Result<Arc<TokenRecord>, ApiError> {
    match input.comment()? {
        Some(comment) => app.directory.comment_token(&token, comment).await,
        None => Ok(token),
    }
}

async fn create_on_behalf(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<TokenInput>().await?;
    let (kind, name) = match (&input.application_id, &input.user_name) {
        (Some(id), None) => (IdentityKind::ServicePrincipal, id),
        (None, Some(name)) => (IdentityKind::User, name),
        _ => return Err(ApiError::invalid("give application_id or user_name: whom the token is for")),
    };
    let owner = named(&app.directory, principal.workspace, kind, name)?;
    check_rank(&principal, &owner)?;
    let (value, record) = app.directory.create_token(&owner, input.into_new(principal.id)?).await?;
    json(&json!({ "token_value": value, "token_info": managed_info(&app, &record) }))
}

async fn list_all(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let directory = &call.app.directory;
    let maker = match (call.query("created_by_id"), call.query("created_by_username")) {
        (Some(id), _) => Some(id.parse().map_err(|_| ApiError::invalid(format!("created_by_id '{id}' is not an id")))?),
        (None, Some(name)) => {
            let kinds = [IdentityKind::User, IdentityKind::ServicePrincipal];
            let maker = kinds.into_iter().find_map(|kind| directory.find(principal.workspace, kind, &name));
            // Nobody's: no token has the number 0.
            Some(maker.map_or(0, |maker| maker.id))
        }
        (None, None) => None,
    };
    let mut tokens = directory.tokens_of(principal.workspace, TokenKind::Personal, None);
    tokens.retain(|token| maker.is_none_or(|maker: u64| token.created_by == maker));
    json(&json!({ "token_infos": tokens.iter().map(|token| managed_info(&call.app, token)).collect::<Vec<_>>() }))
}

/// The token that the path names.
fn managed(call: &Call) -> Result<Arc<TokenRecord>, ApiError> {
    call.app.directory.token(call.principal()?.workspace, TokenKind::Personal, call.parameter("id"))
}

async fn get_any(call: &Call) -> Result<Answer, ApiError> {
    json(&json!({ "token_info": managed_info(&call.app, &*managed(call)?) }))
}

async fn delete_any(call: &Call) -> Result<Answer, ApiError> {
    let token = managed(call)?;
    check_owner(&call.app, &*call.principal()?, &token)?;
    call.app.directory.revoke(&token).await?;
    json(&Map::new())
}

/// Refuses to change or revoke the tokens of the server's administrators to those of a workspace.
fn check_owner(app: &App, principal: &Principal, token: &TokenRecord) -> Result<(), ApiError> {
    match app.directory.identity(token.workspace, token.principal) {
        Some(owner) => check_rank(principal, &owner),
        None => Ok(()),
    }
}

fn own_info(token: &TokenRecord) -> Value {
    json!({
        "token_id": token.token_id,
        "creation_time": token.creation_timestamp,
        "expiry_time": token.expiry_timestamp.map_or(json!(-1), |expiry| json!(expiry)),
        "comment": token.comment,
    })
}

fn managed_info(app: &App, token: &TokenRecord) -> Value {
    let name = |id: u64| app.directory.identity(token.workspace, id).map(|identity| identity.name.clone());
    let mut info = own_info(token);
    info["owner_id"] = json!(token.principal);
    info["created_by_id"] = json!(token.created_by);
    info["workspace_id"] = json!(token.workspace.0);
    if let Some(maker) = name(token.created_by) {
        info["created_by_username"] = json!(maker);
    }
    // Ours: Databricks tells the number alone.
    if let Some(owner) = name(token.principal) {
        info["owner_username"] = json!(owner);
    }
    info
}

/// The service principal that the path names.
fn service_principal(call: &Call) -> Result<Arc<Identity>, ApiError> {
    let (workspace, id): (WorkspaceId, _) = (call.principal()?.workspace, call.parameter("id"));
    let found = id.parse().ok().and_then(|id| call.app.directory.identity(workspace, id));
    found
        .filter(|identity| identity.kind == IdentityKind::ServicePrincipal)
        .ok_or_else(|| ApiError::missing(format!("ServicePrincipal with id '{id}' does not exist.")))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SecretInput {
    /// As protobuf writes a duration: `3600s`.
    lifetime: Option<String>,
    scopes: Vec<String>,
}

async fn create_secret(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<SecretInput>().await?;
    refuse_scopes(&input.scopes)?;
    let owner = service_principal(call)?;
    let seconds = match &input.lifetime {
        None => SECRET_LIFETIME_S,
        Some(text) => text
            .strip_suffix('s')
            .and_then(|seconds| seconds.parse().ok())
            .filter(|seconds| (1..=SECRET_LIFETIME_S).contains(seconds))
            .ok_or_else(|| ApiError::invalid(format!("lifetime '{text}' is not 1s to {SECRET_LIFETIME_S}s")))?,
    };
    let new = NewToken {
        kind: TokenKind::ClientSecret,
        created_by: principal.id,
        comment: String::new(),
        lifetime_ms: Some(seconds * 1000),
    };
    let (secret, record) = app.directory.create_token(&owner, new).await?;
    let mut described = describe_secret(&record);
    described["secret"] = json!(secret);
    json(&described)
}

async fn list_secrets(call: &Call) -> Result<Answer, ApiError> {
    let owner = service_principal(call)?;
    let secrets = call.app.directory.tokens_of(owner.workspace, TokenKind::ClientSecret, Some(owner.id));
    json(&json!({ "secrets": secrets.iter().map(|secret| describe_secret(secret)).collect::<Vec<_>>() }))
}

async fn delete_secret(call: &Call) -> Result<Answer, ApiError> {
    let (owner, id) = (service_principal(call)?, call.parameter("secret"));
    let secret = call.app.directory.token(owner.workspace, TokenKind::ClientSecret, id).ok();
    let secret = secret.filter(|secret| secret.principal == owner.id);
    let secret = secret.ok_or_else(|| ApiError::missing(format!("Secret with id '{id}' does not exist.")))?;
    call.app.directory.revoke(&secret).await?;
    json(&Map::new())
}

fn describe_secret(secret: &TokenRecord) -> Value {
    json!({
        "id": secret.token_id,
        "status": if secret.is_expired() { "INACTIVE" } else { "ACTIVE" },
        "create_time": rfc3339(secret.creation_timestamp),
        "update_time": rfc3339(secret.creation_timestamp),
        "expire_time": secret.expiry_timestamp.map(rfc3339),
    })
}
