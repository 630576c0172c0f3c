//! Tokens: everybody's own, and for administrators those of all principals of the workspace; secrets of service principals.

use std::sync::Arc;

use hyper::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::routes::{Access, Route, handler};
use super::scim::{check_rank, named};
use super::{Answer, App, Call, done, json};
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
    )
    .body::<NewTokenInput>()
    .answers::<CreatedToken>(),
    Route::get("tokens.list", "/api/2.0/token/list", OWN, "List one's own tokens", handler!(list))
        .answers::<TokenInfos>(),
    Route::change(
        "tokens.delete",
        Method::POST,
        "/api/2.0/token/delete",
        OWN,
        "Revoke a token of one's own",
        handler!(delete),
    )
    .body::<TokenRef>(),
    Route::change(
        "tokens.update",
        Method::PATCH,
        "/api/2.0/token/{id}",
        OWN,
        "Change the comment of a token of one's own",
        handler!(update),
    )
    .body::<TokenUpdate>(),
    Route::change(
        "token_management.create_on_behalf",
        Method::POST,
        ON_BEHALF,
        Access::Admin,
        "Create a token for a service principal or a user",
        handler!(create_on_behalf),
    )
    .body::<NewTokenInput>()
    .answers::<CreatedToken>(),
    Route::get(
        "token_management.list",
        MANAGED,
        Access::Admin,
        "List the tokens of all principals",
        handler!(list_all),
    )
    .query::<TokensQuery>()
    .answers::<TokenInfos>(),
    Route::get("token_management.get", MANAGED_ONE, Access::Admin, "Get a token of any principal", handler!(get_any))
        .answers::<OneToken>(),
    Route::change(
        "token_management.update",
        Method::PATCH,
        MANAGED_ONE,
        Access::Admin,
        "Change the comment of a token of any principal",
        handler!(update_any),
    )
    .body::<TokenUpdate>()
    .answers::<TokenInfo>(),
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
    )
    .body::<NewSecretInput>()
    .answers::<ServicePrincipalSecret>(),
    Route::get(
        "service_principal_secrets.list",
        SECRETS,
        Access::Admin,
        "List the OAuth secrets of a service principal",
        handler!(list_secrets),
    )
    .answers::<ServicePrincipalSecrets>(),
    Route::change(
        "service_principal_secrets.delete",
        Method::DELETE,
        SECRET,
        Access::Admin,
        "Delete an OAuth secret and end its access tokens",
        handler!(delete_secret),
    ),
];

#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
struct NewTokenInput {
    comment: String,
    lifetime_seconds: Option<i64>,
    scopes: Vec<String>,
    /// On behalf of a service principal.
    application_id: Option<String>,
    /// Ours: on behalf of a user.
    user_name: Option<String>,
}

impl NewTokenInput {
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

#[derive(Serialize, JsonSchema)]
struct CreatedToken {
    /// Shown once.
    token_value: String,
    token_info: TokenInfo,
}

#[derive(Serialize, JsonSchema)]
struct OneToken {
    token_info: TokenInfo,
}

#[derive(Serialize, JsonSchema)]
struct TokenInfos {
    token_infos: Vec<TokenInfo>,
}

/// A token without its value.
#[derive(Serialize, JsonSchema)]
struct TokenInfo {
    token_id: String,
    /// In milliseconds since 1970.
    creation_time: u64,
    /// In milliseconds since 1970; -1 where it has no end.
    expiry_time: i64,
    comment: String,
    #[serde(flatten)]
    managed: Option<ManagedTokenInfo>,
}

/// What administrators see besides.
#[derive(Serialize, JsonSchema)]
struct ManagedTokenInfo {
    owner_id: u64,
    created_by_id: u64,
    workspace_id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by_username: Option<String>,
    /// Ours: Databricks tells the number alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner_username: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
struct TokensQuery {
    /// Made by the identity of this number.
    created_by_id: Option<u64>,
    /// Made by the user or service principal of this name.
    created_by_username: Option<String>,
}

async fn create(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<NewTokenInput>().await?;
    let caller = app.directory.identity(principal.workspace, principal.id);
    let caller = caller.ok_or_else(|| ApiError::missing(format!("'{}' does not exist any more.", principal.name)))?;
    let (value, record) = app.directory.create_token(&caller, input.into_new(principal.id)?).await?;
    json(&CreatedToken { token_value: value, token_info: own_info(&record) })
}

async fn list(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let tokens = call.app.directory.tokens_of(principal.workspace, TokenKind::Personal, Some(principal.id));
    json(&TokenInfos { token_infos: tokens.iter().map(|token| own_info(token)).collect() })
}

#[derive(Deserialize, JsonSchema)]
struct TokenRef {
    token_id: String,
}

async fn delete(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<TokenRef>().await?;
    app.directory.revoke(&*own(&app, &principal, &input.token_id)?).await?;
    done()
}

/// A token of the caller's own.
fn own(app: &App, principal: &Principal, id: &str) -> Result<Arc<TokenRecord>, ApiError> {
    let token = app.directory.token(principal.workspace, TokenKind::Personal, id);
    let token = token.ok().filter(|token| token.principal == principal.id);
    token.ok_or_else(|| ApiError::missing(format!("Token with id '{id}' does not exist.")))
}

/// A token as it shall be, and the names of the fields that shall be so, joined by commas; `*` for all.
#[derive(Deserialize, JsonSchema)]
struct TokenUpdate {
    #[serde(default)]
    token: NewTokenFields,
    update_mask: String,
}

#[derive(Default, Deserialize, JsonSchema)]
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
    done()
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
    let (app, principal, input) = call.json::<NewTokenInput>().await?;
    let (kind, name) = match (&input.application_id, &input.user_name) {
        (Some(id), None) => (IdentityKind::ServicePrincipal, id),
        (None, Some(name)) => (IdentityKind::User, name),
        _ => return Err(ApiError::invalid("give application_id or user_name: whom the token is for")),
    };
    let owner = named(&app.directory, principal.workspace, kind, name)?;
    check_rank(&principal, &owner)?;
    let (value, record) = app.directory.create_token(&owner, input.into_new(principal.id)?).await?;
    json(&CreatedToken { token_value: value, token_info: managed_info(&app, &record) })
}

async fn list_all(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let directory = &call.app.directory;
    let asked: TokensQuery = call.query()?;
    let maker = match (asked.created_by_id, asked.created_by_username) {
        (Some(id), _) => Some(id),
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
    json(&TokenInfos { token_infos: tokens.iter().map(|token| managed_info(&call.app, token)).collect() })
}

/// The token that the path names.
fn managed(call: &Call) -> Result<Arc<TokenRecord>, ApiError> {
    call.app.directory.token(call.principal()?.workspace, TokenKind::Personal, call.parameter("id"))
}

async fn get_any(call: &Call) -> Result<Answer, ApiError> {
    json(&OneToken { token_info: managed_info(&call.app, &*managed(call)?) })
}

async fn delete_any(call: &Call) -> Result<Answer, ApiError> {
    let token = managed(call)?;
    check_owner(&call.app, &*call.principal()?, &token)?;
    call.app.directory.revoke(&token).await?;
    done()
}

/// Refuses to change or revoke the tokens of the server's administrators to those of a workspace.
fn check_owner(app: &App, principal: &Principal, token: &TokenRecord) -> Result<(), ApiError> {
    match app.directory.identity(token.workspace, token.principal) {
        Some(owner) => check_rank(principal, &owner),
        None => Ok(()),
    }
}

fn own_info(token: &TokenRecord) -> TokenInfo {
    TokenInfo {
        token_id: token.token_id.clone(),
        creation_time: token.creation_timestamp,
        expiry_time: token.expiry_timestamp.map_or(-1, u64::cast_signed),
        comment: token.comment.clone(),
        managed: None,
    }
}

fn managed_info(app: &App, token: &TokenRecord) -> TokenInfo {
    let name = |id: u64| app.directory.identity(token.workspace, id).map(|identity| identity.name.clone());
    let managed = ManagedTokenInfo {
        owner_id: token.principal,
        created_by_id: token.created_by,
        workspace_id: token.workspace.0,
        created_by_username: name(token.created_by),
        owner_username: name(token.principal),
    };
    TokenInfo { managed: Some(managed), ..own_info(token) }
}

/// The service principal that the path names.
fn service_principal(call: &Call) -> Result<Arc<Identity>, ApiError> {
    let (workspace, id): (WorkspaceId, _) = (call.principal()?.workspace, call.parameter("id"));
    let found = id.parse().ok().and_then(|id| call.app.directory.identity(workspace, id));
    found
        .filter(|identity| identity.kind == IdentityKind::ServicePrincipal)
        .ok_or_else(|| ApiError::missing(format!("ServicePrincipal with id '{id}' does not exist.")))
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
struct NewSecretInput {
    /// As protobuf writes a duration: `3600s`.
    lifetime: Option<String>,
    scopes: Vec<String>,
}

#[derive(Serialize, JsonSchema)]
struct ServicePrincipalSecret {
    id: String,
    status: &'static str,
    create_time: String,
    update_time: String,
    expire_time: Option<String>,
    /// Only in the answer of create.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct ServicePrincipalSecrets {
    secrets: Vec<ServicePrincipalSecret>,
}

async fn create_secret(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<NewSecretInput>().await?;
    refuse_scopes(&input.scopes)?;
    let owner = service_principal(call)?;
    // Its secret is as good as its role.
    check_rank(&principal, &owner)?;
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
    described.secret = Some(secret);
    json(&described)
}

async fn list_secrets(call: &Call) -> Result<Answer, ApiError> {
    let owner = service_principal(call)?;
    let secrets = call.app.directory.tokens_of(owner.workspace, TokenKind::ClientSecret, Some(owner.id));
    json(&ServicePrincipalSecrets { secrets: secrets.iter().map(|secret| describe_secret(secret)).collect() })
}

async fn delete_secret(call: &Call) -> Result<Answer, ApiError> {
    let (owner, id) = (service_principal(call)?, call.parameter("secret"));
    check_rank(&*call.principal()?, &owner)?;
    let secret = call.app.directory.token(owner.workspace, TokenKind::ClientSecret, id).ok();
    let secret = secret.filter(|secret| secret.principal == owner.id);
    let secret = secret.ok_or_else(|| ApiError::missing(format!("Secret with id '{id}' does not exist.")))?;
    call.app.directory.revoke(&secret).await?;
    done()
}

fn describe_secret(secret: &TokenRecord) -> ServicePrincipalSecret {
    ServicePrincipalSecret {
        id: secret.token_id.clone(),
        status: if secret.is_expired() { "INACTIVE" } else { "ACTIVE" },
        create_time: rfc3339(secret.creation_timestamp),
        update_time: rfc3339(secret.creation_timestamp),
        expire_time: secret.expiry_timestamp.map(rfc3339),
        secret: None,
    }
}
