//! Workspaces: the part of Databricks' account API that makes and removes tenants, for the server's administrators. There is
//! one account, so the account's id is not looked at; of what a client says about clouds and networks nothing is kept.
//!
//! Ours beside that: `admin_user_name` names the first administrator, `admin` in the answer holds that user's token, once;
//! `quotas` are what differs from the server's, `limits` what holds, `usage` what is used of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::routes::{Access, Route, handler};
use super::scim::check_name;
use super::{Answer, App, Call, json};
use crate::access::directory::{NewIdentity, NewToken};
use crate::access::identity::ADMINS;
use crate::access::tokens::TokenKind;
use crate::access::{IdentityKind, Limits, Quotas, Resource, Workspace};
use crate::catalog::WorkspaceId;
use crate::error::{ApiError, ErrorCode};

const WORKSPACES: &str = "/api/2.0/accounts/{account}/workspaces";
const WORKSPACE: &str = "/api/2.0/accounts/{account}/workspaces/{id}";

const NAME_CHARS_MAX: usize = 128;

pub(super) const ROUTES: &[Route] = &[
    Route::get("workspaces.list", WORKSPACES, Access::ServerAdmin, "List the workspaces", handler!(list))
        .answers::<Vec<DescribedWorkspace>>(),
    Route::change(
        "workspaces.create",
        Method::POST,
        WORKSPACES,
        Access::ServerAdmin,
        "Create a workspace and its first administrator",
        handler!(create),
    )
    .body::<WorkspaceInput>()
    .answers::<DescribedWorkspace>(),
    Route::get("workspaces.get", WORKSPACE, Access::ServerAdmin, "Get a workspace", handler!(get))
        .answers::<DescribedWorkspace>(),
    Route::change(
        "workspaces.update",
        Method::PATCH,
        WORKSPACE,
        Access::ServerAdmin,
        "Rename a workspace or change its quotas",
        handler!(update),
    )
    .body::<WorkspaceInput>()
    .answers::<DescribedWorkspace>(),
    Route::change(
        "workspaces.delete",
        Method::DELETE,
        WORKSPACE,
        Access::ServerAdmin,
        "Delete an empty workspace with its principals",
        handler!(delete),
    )
    .answers::<DescribedWorkspace>(),
];

#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
struct WorkspaceInput {
    workspace_name: Option<String>,
    /// Of the first administrator, whose token is in the answer.
    admin_user_name: Option<String>,
    /// What differs from the server's quotas; null is the server's own number.
    #[schemars(with = "Quotas")]
    quotas: Map<String, Value>,
}

#[derive(Serialize, JsonSchema)]
struct DescribedWorkspace {
    account_id: String,
    workspace_id: u64,
    workspace_name: String,
    workspace_status: &'static str,
    workspace_status_message: &'static str,
    creation_time: u64,
    /// What differs from the server's quotas.
    quotas: Quotas,
    /// What holds.
    limits: Limits,
    /// What is used of it, by the names of the limits.
    usage: BTreeMap<&'static str, u64>,
    /// Only in the answer of create.
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<FirstAdmin>,
}

#[derive(Serialize, JsonSchema)]
struct FirstAdmin {
    id: String,
    user_name: String,
    token_id: String,
    /// Shown once.
    token_value: String,
}

fn check_workspace_name(name: &str) -> Result<(), ApiError> {
    let wrong = name.is_empty()
        || name.trim() != name
        || name.chars().count() > NAME_CHARS_MAX
        || name.contains(char::is_control);
    if wrong {
        return Err(ApiError::invalid(format!(
            "workspace_name must have 1 to {NAME_CHARS_MAX} characters, without control characters or spaces around it"
        )));
    }
    Ok(())
}

/// Quotas with some of them changed; null is the server's own number.
fn merged(quotas: &Quotas, changes: Map<String, Value>) -> Result<Quotas, ApiError> {
    let mut all = match serde_json::to_value(quotas) {
        Ok(Value::Object(all)) => all,
        _ => Map::new(),
    };
    all.extend(changes);
    serde_json::from_value(Value::Object(all)).map_err(|error| ApiError::invalid(format!("quotas: {error}")))
}

async fn create(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<WorkspaceInput>().await?;
    let name = input.workspace_name.ok_or_else(|| ApiError::invalid("workspace_name is required"))?;
    check_workspace_name(&name)?;
    let admin_name = input.admin_user_name.unwrap_or_else(|| "admin".to_owned());
    check_name(IdentityKind::User, &admin_name)?;
    let quotas = merged(&Quotas::default(), input.quotas)?;

    let workspace = app.directory.create_workspace(&name, quotas).await?;
    let admins = app.directory.find(workspace.id, IdentityKind::Group, ADMINS);
    let admin = NewIdentity {
        kind: IdentityKind::User,
        display_name: admin_name.clone(),
        name: admin_name,
        active: true,
        external_id: None,
        groups: admins.iter().map(|admins| admins.id).collect(),
        server_admin: false,
    };
    let admin = app.directory.create_identity(workspace.id, admin).await?;
    let new = NewToken {
        kind: TokenKind::Personal,
        created_by: principal.id,
        comment: "the first administrator's".to_owned(),
        lifetime_ms: None,
    };
    let (token, record) = app.directory.create_token(&admin, new).await?;
    let mut described = describe(call, &workspace);
    described.admin = Some(FirstAdmin {
        id: admin.id.to_string(),
        user_name: admin.name.clone(),
        token_id: record.token_id.clone(),
        token_value: token,
    });
    json(&described)
}

async fn list(call: &Call) -> Result<Answer, ApiError> {
    let all = call.app.directory.workspaces();
    json(&all.iter().map(|workspace| describe(call, workspace)).collect::<Vec<_>>())
}

/// The number in the path.
fn id(call: &Call) -> Result<WorkspaceId, ApiError> {
    let text = call.parameter("id");
    text.parse().map(WorkspaceId).map_err(|_| ApiError::missing(format!("Workspace {text} does not exist.")))
}

/// The workspace in the path.
fn found(call: &Call) -> Result<Arc<Workspace>, ApiError> {
    let id = id(call)?;
    let missing = || ApiError::missing(format!("Workspace {id} does not exist."));
    call.app.directory.workspace(id).ok_or_else(missing)
}

async fn get(call: &Call) -> Result<Answer, ApiError> {
    json(&describe(call, &*found(call)?))
}

async fn update(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, _, input) = call.json::<WorkspaceInput>().await?;
    let changed = app.directory.change_workspace(id(call)?, |workspace| {
        if let Some(name) = input.workspace_name {
            check_workspace_name(&name)?;
            workspace.name = name;
        }
        workspace.quotas = merged(&workspace.quotas, input.quotas)?;
        Ok(())
    });
    json(&describe(call, &*changed.await?))
}

async fn delete(call: &Call) -> Result<Answer, ApiError> {
    let workspace = found(call)?;
    // Described as it was: nothing of it is counted afterwards.
    let described = describe(call, &workspace);
    let (app, id) = (Arc::clone(&call.app), workspace.id);
    call.app.directory.delete_workspace(id, async || check_empty(&app, id).await).await?;
    json(&described)
}

async fn check_empty(app: &App, id: WorkspaceId) -> Result<(), ApiError> {
    let endpoints = app.tallies.of(id).used(Resource::Endpoints);
    let models = app.control.registry.models(id).await?.len();
    let scopes = app.control.secrets.scopes(id).await?.len();
    if endpoints == 0 && models == 0 && scopes == 0 {
        return Ok(());
    }
    let message = format!(
        "Workspace {id} has {endpoints} endpoints, {models} registered models and {scopes} secret scopes: delete them first."
    );
    Err(ApiError::new(ErrorCode::ResourceConflict, message))
}

fn describe(call: &Call, workspace: &Workspace) -> DescribedWorkspace {
    let tally = call.app.tallies.of(workspace.id);
    DescribedWorkspace {
        account_id: call.parameter("account").to_owned(),
        workspace_id: workspace.id.0,
        workspace_name: workspace.name.clone(),
        workspace_status: "RUNNING",
        workspace_status_message: "Workspace is running.",
        creation_time: workspace.creation_timestamp,
        quotas: workspace.quotas,
        limits: tally.limits(),
        usage: Resource::ALL.into_iter().map(|resource| (resource.name(), tally.used(resource))).collect(),
        admin: None,
    }
}
