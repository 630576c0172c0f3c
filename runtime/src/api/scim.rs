//! Users, groups and service principals in SCIM 2.0 (RFC 7643 and 7644), as the Databricks SDK speaks it. Everybody in a
//! workspace may read them, for things are shared with people and groups; administrators change them.
//!
//! Administrators of the server do the same for all workspaces below `/api/2.0/accounts/`, and there give and take the
//! role `account_admin`, which makes others such administrators.
//!
//! What PATCH may say is in [`patch`], what lists may be filtered by in [`filter`]. Emails and the parts of a person's name are accepted and not kept: what is shown
//! comes from `userName` and `displayName`.

mod filter;
mod patch;

use std::sync::Arc;

use hyper::Method;
use hyper::header::HeaderValue;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::filter::Filter;
use self::patch::{ACCOUNT_ADMIN, Change, Links, PatchInput, check_entitlement, check_role};
use super::routes::{Access, Route, handler};
use super::{Answer, Call, json, respond};
use crate::access::directory::NewIdentity;
use crate::access::identity::USERS as EVERYBODY;
use crate::access::{Directory, Identity, IdentityKind, Principal, tokens};
use crate::catalog::WorkspaceId;
use crate::clock::rfc3339;
use crate::error::{ApiError, ErrorCode};

/// Most results of a list: as many as a workspace can have.
const RESULTS_MAX: usize = 10_000;

const NAME_CHARS_MAX: usize = 255;

const USERS: &str = "/api/2.0/preview/scim/v2/Users";
const USER: &str = "/api/2.0/preview/scim/v2/Users/{id}";
const GROUPS: &str = "/api/2.0/preview/scim/v2/Groups";
const GROUP: &str = "/api/2.0/preview/scim/v2/Groups/{id}";
const SERVICE_PRINCIPALS: &str = "/api/2.0/preview/scim/v2/ServicePrincipals";
const SERVICE_PRINCIPAL: &str = "/api/2.0/preview/scim/v2/ServicePrincipals/{id}";
const ACCOUNT_USERS: &str = "/api/2.0/accounts/{account}/scim/v2/Users";
const ACCOUNT_USER: &str = "/api/2.0/accounts/{account}/scim/v2/Users/{id}";
const ACCOUNT_SERVICE_PRINCIPALS: &str = "/api/2.0/accounts/{account}/scim/v2/ServicePrincipals";
const ACCOUNT_SERVICE_PRINCIPAL: &str = "/api/2.0/accounts/{account}/scim/v2/ServicePrincipals/{id}";

pub(super) const ROUTES: &[Route] = &[
    Route::get("scim.me", "/api/2.0/preview/scim/v2/Me", Access::Principal, "The caller", handler!(me))
        .answers::<Resource>(),
    listing("users.list", USERS, "List the users"),
    creating("users.create", USERS, "Create a user"),
    getting("users.get", USER, "Get a user"),
    replacing("users.replace", USER, "Replace a user"),
    patching("users.patch", USER, "Change a user"),
    deleting("users.delete", USER, "Delete a user with the user's tokens"),
    listing("groups.list", GROUPS, "List the groups"),
    creating("groups.create", GROUPS, "Create a group"),
    getting("groups.get", GROUP, "Get a group"),
    replacing("groups.replace", GROUP, "Replace a group with its members"),
    patching("groups.patch", GROUP, "Change a group"),
    deleting("groups.delete", GROUP, "Delete a group"),
    listing("service_principals.list", SERVICE_PRINCIPALS, "List the service principals"),
    creating("service_principals.create", SERVICE_PRINCIPALS, "Create a service principal"),
    getting("service_principals.get", SERVICE_PRINCIPAL, "Get a service principal"),
    replacing("service_principals.replace", SERVICE_PRINCIPAL, "Replace a service principal"),
    patching("service_principals.patch", SERVICE_PRINCIPAL, "Change a service principal"),
    deleting("service_principals.delete", SERVICE_PRINCIPAL, "Delete a service principal with its tokens and secrets"),
    of_server(listing("account_users.list", ACCOUNT_USERS, "List the users of all workspaces")),
    of_server(creating("account_users.create", ACCOUNT_USERS, "Create a user in the caller's workspace")),
    of_server(getting("account_users.get", ACCOUNT_USER, "Get a user of any workspace")),
    of_server(replacing("account_users.replace", ACCOUNT_USER, "Replace a user of any workspace")),
    of_server(patching("account_users.patch", ACCOUNT_USER, "Change a user of any workspace")),
    of_server(deleting("account_users.delete", ACCOUNT_USER, "Delete a user of any workspace")),
    of_server(listing(
        "account_service_principals.list",
        ACCOUNT_SERVICE_PRINCIPALS,
        "List the service principals of all workspaces",
    )),
    of_server(creating(
        "account_service_principals.create",
        ACCOUNT_SERVICE_PRINCIPALS,
        "Create a service principal in the caller's workspace",
    )),
    of_server(getting(
        "account_service_principals.get",
        ACCOUNT_SERVICE_PRINCIPAL,
        "Get a service principal of any workspace",
    )),
    of_server(replacing(
        "account_service_principals.replace",
        ACCOUNT_SERVICE_PRINCIPAL,
        "Replace a service principal of any workspace",
    )),
    of_server(patching(
        "account_service_principals.patch",
        ACCOUNT_SERVICE_PRINCIPAL,
        "Change a service principal of any workspace",
    )),
    of_server(deleting(
        "account_service_principals.delete",
        ACCOUNT_SERVICE_PRINCIPAL,
        "Delete a service principal of any workspace",
    )),
];

/// The same route, for the server's administrators and all workspaces.
const fn of_server(mut route: Route) -> Route {
    route.access = Access::ServerAdmin;
    route
}

const fn listing(name: &'static str, path: &'static str, about: &'static str) -> Route {
    Route::get(name, path, Access::Principal, about, handler!(list)).query::<ListQuery>().answers::<Page>()
}

const fn getting(name: &'static str, path: &'static str, about: &'static str) -> Route {
    Route::get(name, path, Access::Principal, about, handler!(get)).answers::<Resource>()
}

const fn creating(name: &'static str, path: &'static str, about: &'static str) -> Route {
    Route::change(name, Method::POST, path, Access::Admin, about, handler!(create))
        .body::<Input>()
        .creates::<Resource>()
}

const fn replacing(name: &'static str, path: &'static str, about: &'static str) -> Route {
    Route::change(name, Method::PUT, path, Access::Admin, about, handler!(replace))
        .body::<Input>()
        .answers::<Resource>()
}

const fn patching(name: &'static str, path: &'static str, about: &'static str) -> Route {
    let route = Route::change(name, Method::PATCH, path, Access::Admin, about, handler!(change));
    route.body::<PatchInput>().answers::<Resource>()
}

const fn deleting(name: &'static str, path: &'static str, about: &'static str) -> Route {
    Route::change(name, Method::DELETE, path, Access::Admin, about, handler!(delete)).gives_nothing()
}

/// What the path is about.
fn kind(call: &Call) -> IdentityKind {
    match call.route.map(|route| route.path) {
        Some(GROUPS | GROUP) => IdentityKind::Group,
        Some(SERVICE_PRINCIPALS | SERVICE_PRINCIPAL | ACCOUNT_SERVICE_PRINCIPALS | ACCOUNT_SERVICE_PRINCIPAL) => {
            IdentityKind::ServicePrincipal
        }
        _ => IdentityKind::User,
    }
}

/// Whether the path is about all workspaces.
fn is_of_server(call: &Call) -> bool {
    call.route.is_some_and(|route| route.access == Access::ServerAdmin)
}

/// A user, group or service principal as clients send it.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(rename = "ScimInput")]
struct Input {
    user_name: Option<String>,
    display_name: Option<String>,
    application_id: Option<String>,
    external_id: Option<String>,
    active: Option<bool>,
    name: Option<PersonName>,
    groups: Option<Vec<Reference>>,
    members: Option<Vec<Reference>>,
    entitlements: Vec<Reference>,
    roles: Option<Vec<Reference>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
struct PersonName {
    given_name: Option<String>,
    family_name: Option<String>,
}

/// `{"value": "…"}`: a member, a group or an entitlement.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ScimReference")]
struct Reference {
    /// A number is taken too.
    #[schemars(with = "String")]
    value: Value,
}

/// A user, group or service principal as it is answered. What only some of them have is optional.
#[derive(Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ScimResource")]
struct Resource {
    schemas: [&'static str; 1],
    id: String,
    display_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    active: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<ShownName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    emails: Option<[Email; 1]>,
    groups: Vec<Link>,
    #[serde(skip_serializing_if = "Option::is_none")]
    members: Option<Vec<Link>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entitlements: Option<[Entitlement; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    roles: Option<[Role; 1]>,
    meta: Meta,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ScimRole")]
struct Role {
    value: &'static str,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ScimName")]
struct ShownName {
    given_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    family_name: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ScimEmail")]
struct Email {
    value: String,
    primary: bool,
    r#type: &'static str,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ScimEntitlement")]
struct Entitlement {
    value: &'static str,
}

/// A member, or a group.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ScimLink")]
struct Link {
    value: String,
    display: String,
    /// Of a group: `direct` or `indirect`.
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    #[serde(rename = "$ref")]
    reference: String,
}

#[derive(Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ScimMeta")]
struct Meta {
    resource_type: &'static str,
    created: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ScimQuery")]
struct ListQuery {
    /// `userName sw "ada" and active eq true`: id, userName, applicationId, displayName, externalId, emails and active by
    /// eq, ne, co, sw, ew and pr, joined by `and`, `or`, `not` and parentheses.
    filter: Option<String>,
    /// Number of the first result; the first of all is 1.
    start_index: Option<usize>,
    /// Most results.
    count: Option<usize>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ScimPage")]
struct Page {
    schemas: [&'static str; 1],
    total_results: usize,
    start_index: usize,
    items_per_page: usize,
    #[serde(rename = "Resources")]
    resources: Vec<Resource>,
}

impl Reference {
    fn text(&self) -> String {
        self.value.as_str().map_or_else(|| self.value.to_string(), str::to_owned)
    }

    fn id(&self) -> Result<u64, ApiError> {
        let text = self.text();
        text.parse()
            .map_err(|_| ApiError::invalid(format!("'{text}' is not the id of a user, group or service principal")))
    }
}

fn ids(references: &[Reference]) -> Result<Vec<u64>, ApiError> {
    references.iter().map(Reference::id).collect()
}

impl Input {
    /// Refuses what has no meaning here.
    fn check(&self, kind: IdentityKind) -> Result<(), ApiError> {
        self.roles.iter().flatten().try_for_each(|role| check_role(&role.text()))?;
        self.entitlements.iter().try_for_each(|entitlement| check_entitlement(&entitlement.text()))?;
        match kind {
            IdentityKind::Group if self.groups.as_ref().is_some_and(|groups| !groups.is_empty()) => {
                Err(ApiError::invalid(
                    "groups of a group cannot be given: add it to the members of the other group instead",
                ))
            }
            IdentityKind::Group if self.is_server_admin() => Err(ApiError::invalid("groups have no roles")),
            IdentityKind::User | IdentityKind::ServicePrincipal if self.members.is_some() => {
                Err(ApiError::invalid("only groups have members"))
            }
            _ => Ok(()),
        }
    }

    fn is_server_admin(&self) -> bool {
        self.roles.as_ref().is_some_and(|roles| !roles.is_empty())
    }

    /// What names it among its kind, if that was sent.
    fn sent_name(&self, kind: IdentityKind) -> Option<&String> {
        match kind {
            IdentityKind::User => self.user_name.as_ref(),
            IdentityKind::ServicePrincipal => self.application_id.as_ref(),
            IdentityKind::Group => self.display_name.as_ref(),
        }
    }

    fn sent_display_name(&self) -> Option<String> {
        let of_parts = || {
            let name = self.name.as_ref()?;
            let parts: Vec<&str> =
                [&name.given_name, &name.family_name].into_iter().flatten().map(String::as_str).collect();
            Some(parts.join(" ")).filter(|name| !name.trim().is_empty())
        };
        self.display_name.clone().or_else(of_parts)
    }

    /// A new identity without its members.
    fn into_new(self, kind: IdentityKind) -> Result<NewIdentity, ApiError> {
        let name = match (kind, self.sent_name(kind)) {
            (_, Some(name)) => name.clone(),
            (IdentityKind::ServicePrincipal, None) => tokens::new_uuid()?,
            (IdentityKind::User, None) => return Err(ApiError::invalid("userName is required")),
            (IdentityKind::Group, None) => return Err(ApiError::invalid("displayName is required")),
        };
        check_name(kind, &name)?;
        let display_name = self.sent_display_name().unwrap_or_else(|| name.clone());
        check_text("displayName", &display_name)?;
        let groups = ids(self.groups.as_deref().unwrap_or_default())?;
        let (active, server_admin) = (self.active.unwrap_or(true), self.is_server_admin());
        Ok(NewIdentity { kind, name, display_name, active, external_id: self.external_id, groups, server_admin })
    }

    /// What PUT changes. What the client leaves out stays as it is, but for a group's members: they are replaced.
    fn into_changes(self, kind: IdentityKind) -> Result<Vec<Change>, ApiError> {
        let mut changes = vec![Change::ExternalId(self.external_id.clone())];
        changes.extend(self.sent_name(kind).map(|name| Change::Name(name.clone())));
        if kind != IdentityKind::Group {
            changes.extend(self.sent_display_name().map(Change::DisplayName));
        }
        changes.extend(self.active.map(Change::Active));
        changes.extend(self.roles.as_ref().map(|roles| Change::ServerAdmin(!roles.is_empty())));
        match (kind, self.groups, self.members) {
            (IdentityKind::Group, _, members) => {
                changes.push(Change::Links(Links::Replace(ids(members.as_deref().unwrap_or_default())?)));
            }
            (_, Some(groups), _) => changes.push(Change::Links(Links::Replace(ids(&groups)?))),
            _ => {}
        }
        Ok(changes)
    }
}

/// Checks what names an identity among its kind. Names appear in logs and tables.
pub(super) fn check_name(kind: IdentityKind, name: &str) -> Result<(), ApiError> {
    match kind {
        IdentityKind::User => check_text("userName", name),
        IdentityKind::Group => check_text("displayName", name),
        IdentityKind::ServicePrincipal => {
            let digits = |(index, c): (usize, char)| match index {
                8 | 13 | 18 | 23 => c == '-',
                _ => c.is_ascii_hexdigit(),
            };
            match name.len() == 36 && name.char_indices().all(digits) {
                true => Ok(()),
                false => Err(ApiError::invalid("applicationId must be a UUID; leave it out to have one made")),
            }
        }
    }
}

fn check_text(field: &str, text: &str) -> Result<(), ApiError> {
    if text.is_empty()
        || text.trim() != text
        || text.chars().count() > NAME_CHARS_MAX
        || text.contains(char::is_control)
    {
        return Err(ApiError::invalid(format!(
            "{field} must have 1 to {NAME_CHARS_MAX} characters, without control characters or spaces around it"
        )));
    }
    Ok(())
}

/// Refuses that administrators of a workspace act on, or as, an administrator of the whole server.
pub(super) fn check_rank(caller: &Principal, identity: &Identity) -> Result<(), ApiError> {
    if identity.server_admin && !caller.server_admin {
        let message =
            format!("'{}' administrates the server, and only such administrators may do this.", identity.name);
        return Err(ApiError::new(ErrorCode::PermissionDenied, message));
    }
    Ok(())
}

/// The identity that the path names.
fn found(call: &Call) -> Result<Arc<Identity>, ApiError> {
    let (kind, id) = (kind(call), call.parameter("id"));
    let workspace = call.principal()?.workspace;
    let directory = &call.app.directory;
    let found = id.parse().ok().and_then(|id| match is_of_server(call) {
        true => directory.workspaces().iter().find_map(|workspace| directory.identity(workspace.id, id)),
        false => directory.identity(workspace, id),
    });
    found
        .filter(|identity| identity.kind == kind)
        .ok_or_else(|| ApiError::missing(format!("{} with id '{id}' does not exist.", resource_type(kind))))
}

async fn create(call: &mut Call) -> Result<Answer, ApiError> {
    let kind = kind(call);
    let (app, principal, input) = call.json::<Input>().await?;
    input.check(kind)?;
    let (directory, workspace) = (&app.directory, principal.workspace);
    let members = ids(input.members.as_deref().unwrap_or_default())?;
    // Before the group is made, so that there is none with half of its members.
    if let Some(missing) = members.iter().find(|id| directory.identity(workspace, **id).is_none()) {
        return Err(ApiError::missing(format!("There is no user, group or service principal {missing}.")));
    }
    if input.is_server_admin() {
        let name = input.sent_name(kind).or(input.display_name.as_ref());
        check_role_change(call, name.map_or("a new one", String::as_str), true)?;
    }
    let identity = directory.create_identity(workspace, input.into_new(kind)?).await?;
    link(directory, &identity, &members, &[], &[]).await?;
    let mut answer = json(&shown(call, &identity))?;
    *answer.status_mut() = hyper::StatusCode::CREATED;
    Ok(answer)
}

async fn get(call: &Call) -> Result<Answer, ApiError> {
    json(&shown(call, &*found(call)?))
}

async fn replace(call: &mut Call) -> Result<Answer, ApiError> {
    let (_, _, input) = call.json::<Input>().await?;
    input.check(kind(call))?;
    let changes = input.into_changes(kind(call))?;
    apply(call, changes).await
}

async fn change(call: &mut Call) -> Result<Answer, ApiError> {
    let (_, _, input) = call.json::<PatchInput>().await?;
    let changes = input.into_changes(kind(call))?;
    apply(call, changes).await
}

async fn delete(call: &Call) -> Result<Answer, ApiError> {
    let identity = found(call)?;
    check_rank(&*call.principal()?, &identity)?;
    call.app.directory.delete_identity(identity.workspace, identity.id).await?;
    Ok(respond(204, "application/scim+json", ""))
}

/// Makes all changes or none.
async fn apply(call: &Call, changes: Vec<Change>) -> Result<Answer, ApiError> {
    let identity = found(call)?;
    let principal = call.principal()?;
    check_rank(&principal, &identity)?;
    let directory = &call.app.directory;
    let mut changed = (*identity).clone();
    let before: Vec<u64> = members(directory, &identity).iter().map(|member| member.id).collect();
    let mut after = before.clone();
    for change in &changes {
        match change {
            Change::Links(links) if identity.kind == IdentityKind::Group => links.apply(&mut after),
            change => change.apply(&mut changed)?,
        }
    }
    if changed.server_admin != identity.server_admin {
        check_role_change(call, &identity.name, changed.server_admin)?;
    }
    if identity.is_built_in() && changed.name != identity.name {
        return Err(ApiError::invalid(format!("the group '{}' belongs to the workspace itself", identity.name)));
    }
    // Everybody is in `users` anyway, so a client that sends back what it got changes nothing.
    let everybody = identity.is_built_in() && identity.name == EVERYBODY;
    if everybody && before.iter().any(|id| !after.contains(id)) {
        return Err(ApiError::invalid("everybody is in 'users', as long as they are in the workspace"));
    }
    let only_in =
        |these: &[u64], those: &[u64]| -> Vec<u64> { these.iter().filter(|id| !those.contains(id)).copied().collect() };
    let (added, removed) =
        if everybody { Default::default() } else { (only_in(&after, &before), only_in(&before, &after)) };
    link(directory, &identity, &added, &removed, &changes).await?;
    json(&shown(call, &*found(call)?))
}

/// Refuses to give or take the role among a workspace's own things, and tells the audit log of it.
fn check_role_change(call: &Call, name: &str, gives: bool) -> Result<(), ApiError> {
    call.is_about(&format!("{name}: {ACCOUNT_ADMIN} {}", if gives { "given" } else { "taken" }));
    match is_of_server(call) {
        true => Ok(()),
        false => Err(ApiError::invalid(format!(
            "roles are the whole server's: its administrators change them at {ACCOUNT_USER} and its like"
        ))),
    }
}

/// Puts identities into a group, takes others out, and changes the group or other identity itself, all in one.
async fn link(
    directory: &Directory,
    identity: &Identity,
    added: &[u64],
    removed: &[u64],
    changes: &[Change],
) -> Result<(), ApiError> {
    let touched: Vec<u64> = [&[identity.id], added, removed].concat();
    let change = |touched: &mut Identity| {
        if touched.id == identity.id {
            let of_itself =
                |change: &&Change| !(identity.kind == IdentityKind::Group && matches!(change, Change::Links(_)));
            changes.iter().filter(of_itself).try_for_each(|change| change.apply(touched))?;
        }
        if removed.contains(&touched.id) {
            touched.groups.retain(|group| *group != identity.id);
        }
        if added.contains(&touched.id) {
            touched.groups.push(identity.id);
        }
        Ok(())
    };
    directory.change_identities(identity.workspace, &touched, change).await
}

fn members(directory: &Directory, group: &Identity) -> Vec<Arc<Identity>> {
    match group.kind {
        IdentityKind::Group => directory.members(group.workspace, group.id),
        _ => Vec::new(),
    }
}

async fn list(call: &Call) -> Result<Answer, ApiError> {
    let (kind, workspace) = (kind(call), call.principal()?.workspace);
    let directory = &call.app.directory;
    let asked: ListQuery = call.query()?;
    let filter = asked.filter.filter(|filter| !filter.trim().is_empty());
    let filter = filter.map(|filter| Filter::parse(&filter)).transpose()?;
    let mut all = match is_of_server(call) {
        true => directory.workspaces().iter().flat_map(|one| directory.identities(one.id, kind)).collect(),
        false => directory.identities(workspace, kind),
    };
    all.retain(|identity| filter.as_ref().is_none_or(|filter| filter.matches(identity)));
    let start = asked.start_index.unwrap_or(1).max(1);
    let page: Vec<_> = all.iter().skip(start - 1).take(asked.count.unwrap_or(RESULTS_MAX).min(RESULTS_MAX)).collect();
    let resources: Vec<Resource> = match kind {
        IdentityKind::Group => {
            let members = directory.memberships(workspace);
            let of = |group: &Identity| members.get(&group.id).map(Vec::as_slice).unwrap_or_default();
            let describe = |group: &&Arc<Identity>| match group.name == EVERYBODY {
                true => describe(directory, group),
                false => describe_group(directory, group, of(group)),
            };
            page.iter().map(describe).collect()
        }
        _ => page.iter().map(|identity| shown(call, identity)).collect(),
    };
    json(&Page {
        schemas: ["urn:ietf:params:scim:api:messages:2.0:ListResponse"],
        total_results: all.len(),
        start_index: start,
        items_per_page: resources.len(),
        resources,
    })
}

/// The caller.
async fn me(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let identity = call.app.directory.identity(principal.workspace, principal.id);
    // Gone since it was asked who calls.
    let identity = identity.ok_or_else(|| ApiError::new(ErrorCode::Unauthenticated, "The token is not valid."))?;
    let mut response = json(&describe_user(&call.app.directory, &identity))?;
    if let Ok(workspace) = HeaderValue::from_str(&principal.workspace.to_string()) {
        response.headers_mut().insert("x-databricks-org-id", workspace);
    }
    Ok(response)
}

fn resource_type(kind: IdentityKind) -> &'static str {
    match kind {
        IdentityKind::User => "User",
        IdentityKind::ServicePrincipal => "ServicePrincipal",
        IdentityKind::Group => "Group",
    }
}

fn path_of(identity: &Identity) -> String {
    format!("{}s/{}", resource_type(identity.kind), identity.id)
}

/// As the path shows it: roles are the server's.
fn shown(call: &Call, identity: &Identity) -> Resource {
    let mut described = describe(&call.app.directory, identity);
    if is_of_server(call) && identity.server_admin {
        described.roles = Some([Role { value: ACCOUNT_ADMIN }]);
    }
    described
}

fn describe(directory: &Directory, identity: &Identity) -> Resource {
    match identity.kind {
        IdentityKind::User => describe_user(directory, identity),
        IdentityKind::ServicePrincipal => Resource {
            schemas: ["urn:ietf:params:scim:schemas:core:2.0:ServicePrincipal"],
            application_id: Some(identity.name.clone()),
            ..describe_principal(directory, identity)
        },
        IdentityKind::Group => describe_group(directory, identity, &directory.members(identity.workspace, identity.id)),
    }
}

fn describe_user(directory: &Directory, identity: &Identity) -> Resource {
    let (given, family) = identity.display_name.split_once(' ').unwrap_or((&identity.display_name, ""));
    let family_name = Some(family.to_owned()).filter(|family| !family.is_empty());
    Resource {
        schemas: ["urn:ietf:params:scim:schemas:core:2.0:User"],
        user_name: Some(identity.name.clone()),
        name: Some(ShownName { given_name: given.to_owned(), family_name }),
        emails: Some([Email { value: identity.name.clone(), primary: true, r#type: "work" }]),
        ..describe_principal(directory, identity)
    }
}

fn describe_group(directory: &Directory, group: &Identity, members: &[Arc<Identity>]) -> Resource {
    let member = |member: &Arc<Identity>| Link {
        value: member.id.to_string(),
        display: member.display_name.clone(),
        r#type: None,
        reference: path_of(member),
    };
    let mut described = describe_common(directory, group);
    described.schemas = ["urn:ietf:params:scim:schemas:core:2.0:Group"];
    described.members = Some(members.iter().map(member).collect());
    described.meta.resource_type = "WorkspaceGroup";
    described
}

/// What users and service principals have.
fn describe_principal(directory: &Directory, identity: &Identity) -> Resource {
    Resource {
        active: Some(identity.active),
        entitlements: Some([Entitlement { value: patch::WORKSPACE_ACCESS }]),
        ..describe_common(directory, identity)
    }
}

/// What all kinds have.
fn describe_common(directory: &Directory, identity: &Identity) -> Resource {
    let group = |group: &Arc<Identity>| {
        let direct = identity.groups.contains(&group.id) || group.name == EVERYBODY;
        Link {
            value: group.id.to_string(),
            display: group.name.clone(),
            r#type: Some(if direct { "direct" } else { "indirect" }),
            reference: path_of(group),
        }
    };
    Resource {
        id: identity.id.to_string(),
        display_name: identity.display_name.clone(),
        external_id: identity.external_id.clone(),
        groups: directory.groups_of(identity).iter().map(group).collect(),
        meta: Meta { resource_type: resource_type(identity.kind), created: rfc3339(identity.creation_timestamp) },
        ..Resource::default()
    }
}

/// A user or service principal by the name that tokens are asked for with.
pub(super) fn named(
    directory: &Directory,
    workspace: WorkspaceId,
    kind: IdentityKind,
    name: &str,
) -> Result<Arc<Identity>, ApiError> {
    let missing = || ApiError::missing(format!("{} '{name}' does not exist.", resource_type(kind)));
    directory.find(workspace, kind, name).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for bad in ["", " a", "a\n", &"a".repeat(256)] {
            assert!(check_name(IdentityKind::User, bad).is_err(), "{bad:?}");
        }
        check_name(IdentityKind::User, "Ada Lövelace").unwrap();
        check_name(IdentityKind::ServicePrincipal, &tokens::new_uuid().unwrap()).unwrap();
        for bad in ["app", "00000000-0000-0000-0000-00000000000g", "0000000000000000-0000-0000-00000000000"] {
            assert!(check_name(IdentityKind::ServicePrincipal, bad).is_err(), "{bad}");
        }
    }
}
