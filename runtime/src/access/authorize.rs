//! The one place that decides who may do what.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Principal;
use crate::catalog::{EndpointRecord, WorkspaceId};
use crate::error::{ApiError, ErrorCode};
use crate::registry::ModelRecord;
use crate::secrets::{Scope, no_scope};

/// What somebody may do with an endpoint or a model. Each level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Level {
    /// See it in lists, read its description, state and metrics.
    #[serde(rename = "CAN_VIEW")]
    View,
    /// Send requests to an endpoint; read the files of a model and serve it.
    #[serde(rename = "CAN_QUERY")]
    Query,
    /// Change it, delete it, and decide who may do what with it.
    #[serde(rename = "CAN_MANAGE")]
    Manage,
}

impl Level {
    /// All levels, the least first.
    pub const ALL: [Level; 3] = [Level::View, Level::Query, Level::Manage];

    /// The level on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Level::View => "CAN_VIEW",
            Level::Query => "CAN_QUERY",
            Level::Manage => "CAN_MANAGE",
        }
    }
}

/// A level given to a user, a service principal or a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Identity's number.
    pub to: u64,
    /// What it may do.
    pub level: Level,
}

/// What a caller wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// What a [`Level`] allows with an endpoint or a model.
    Use(Level),
    /// Be there: make endpoints and models of one's own, and tokens for oneself.
    Enter,
    /// Change the principals, secrets, quotas and keys.
    Administer,
}

/// What it wants to do it with.
#[derive(Clone, Copy)]
pub enum Object<'a> {
    /// An endpoint.
    Endpoint(&'a EndpointRecord),
    /// A registered model with its versions.
    Model(&'a ModelRecord),
    /// A scope of secrets; to view is to read them, to query is to write them.
    SecretScope(&'a Scope),
    /// Something that MLflow's tracking client made: its maker's alone.
    Tracked {
        /// Whose it is.
        workspace: WorkspaceId,
        /// Number of the identity that made it.
        owner: u64,
        /// What it is.
        kind: &'a str,
        /// What it is called by.
        id: &'a str,
    },
    /// A tenant.
    Workspace(WorkspaceId),
    /// The whole server with all its workspaces.
    Server,
}

impl Object<'_> {
    /// Workspace, owner and grants of what can be shared.
    fn shared(&self) -> Option<(WorkspaceId, u64, &[Grant])> {
        match self {
            Object::Endpoint(endpoint) => Some((endpoint.workspace, endpoint.owner, &endpoint.grants)),
            Object::Model(model) => Some((model.workspace, model.owner, &model.grants)),
            Object::SecretScope(scope) => Some((scope.workspace, scope.owner, &scope.grants)),
            Object::Tracked { workspace, owner, .. } => Some((*workspace, *owner, &[])),
            Object::Workspace(_) | Object::Server => None,
        }
    }

    fn missing(&self) -> ApiError {
        match self {
            Object::Endpoint(endpoint) => no_endpoint(&endpoint.name),
            Object::Model(model) => no_model(&model.name),
            Object::SecretScope(scope) => no_scope(&scope.name),
            Object::Tracked { kind, id, .. } => ApiError::missing(format!("There is no {kind} '{id}'.")),
            Object::Workspace(id) => ApiError::missing(format!("Workspace {id} does not exist.")),
            Object::Server => ApiError::new(ErrorCode::NotFound, "There is no such path."),
        }
    }

    fn describe(&self) -> String {
        match self {
            Object::Endpoint(endpoint) => format!("endpoint '{}'", endpoint.name),
            Object::Model(model) => format!("registered model '{}'", model.name),
            Object::SecretScope(scope) => format!("scope '{}'", scope.name),
            Object::Tracked { kind, id, .. } => format!("{kind} '{id}'"),
            Object::Workspace(id) => format!("workspace {id}"),
            Object::Server => "this server".to_owned(),
        }
    }
}

/// The refusal for an endpoint that does not exist for the caller.
pub fn no_endpoint(name: &str) -> ApiError {
    ApiError::missing(format!("Endpoint with name '{name}' does not exist."))
}

/// The refusal for a model that does not exist for the caller.
pub fn no_model(name: &str) -> ApiError {
    ApiError::missing(format!("Registered model '{name}' does not exist."))
}

/// Whether a principal may do something.
///
/// # Errors
/// `RESOURCE_DOES_NOT_EXIST` for what is another workspace's, in the words for what does not exist; `PERMISSION_DENIED`,
/// with what is missing, for what is the caller's workspace's.
pub fn authorize(principal: &Principal, action: Action, object: Object<'_>) -> Result<(), ApiError> {
    let allowed = match (action, object) {
        (Action::Use(level), object) => match object.shared() {
            Some((workspace, ..)) if workspace != principal.workspace => return Err(object.missing()),
            _ => level_of(principal, object) >= Some(level),
        },
        (_, Object::Workspace(id)) if id != principal.workspace && !principal.server_admin => {
            return Err(object.missing());
        }
        (Action::Enter, _) => true,
        (Action::Administer, Object::Server) => principal.server_admin,
        (Action::Administer, Object::Workspace(id)) => {
            principal.server_admin || (principal.admin && id == principal.workspace)
        }
        (Action::Administer, _) => level_of(principal, object) >= Some(Level::Manage),
    };
    if allowed {
        return Ok(());
    }
    let needed = match action {
        Action::Use(level) => format!("{} on {}", level.name(), object.describe()),
        _ => format!("to be an administrator of {}", object.describe()),
    };
    Err(ApiError::new(ErrorCode::PermissionDenied, format!("'{}' needs {needed}.", principal.name)))
}

/// The highest level that a principal has, if any: as owner, as administrator, by a grant to itself or to one of its
/// groups.
pub fn level_of(principal: &Principal, object: Object<'_>) -> Option<Level> {
    let (workspace, owner, grants) = object.shared()?;
    if workspace != principal.workspace {
        return None;
    }
    if principal.admin || principal.id == owner {
        return Some(Level::Manage);
    }
    let mine = |grant: &&Grant| grant.to == principal.id || principal.is_member(grant.to);
    grants.iter().filter(mine).map(|grant| grant.level).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::IdentityKind;

    const HERE: WorkspaceId = WorkspaceId(1);

    fn principal(id: u64, groups: &[u64]) -> Principal {
        Principal {
            workspace: HERE,
            id,
            kind: IdentityKind::User,
            name: format!("user-{id}"),
            display_name: String::new(),
            admin: false,
            server_admin: false,
            groups: groups.to_vec(),
        }
    }

    fn endpoint(grants: &[(u64, Level)]) -> EndpointRecord {
        let grants = grants.iter().map(|(to, level)| Grant { to: *to, level: *level }).collect();
        EndpointRecord { owner: 7, grants, ..EndpointRecord::empty(HERE, "e") }
    }

    #[test]
    fn a_level_includes_those_before_it_and_comes_from_the_owner_a_grant_or_a_group() {
        let record = endpoint(&[(2, Level::Query), (50, Level::View), (51, Level::Manage)]);
        let may = |principal: &Principal| level_of(principal, Object::Endpoint(&record));
        assert_eq!(may(&principal(7, &[])), Some(Level::Manage));
        assert_eq!(may(&principal(2, &[])), Some(Level::Query));
        assert_eq!(may(&principal(3, &[])), None);
        assert_eq!(may(&principal(3, &[50])), Some(Level::View));
        assert_eq!(may(&principal(2, &[50, 51])), Some(Level::Manage));
        for level in Level::ALL {
            let asked = authorize(&principal(2, &[]), Action::Use(level), Object::Endpoint(&record));
            assert_eq!(asked.is_ok(), level <= Level::Query, "{level:?}");
        }
    }

    #[test]
    fn another_workspaces_things_do_not_exist_not_even_for_an_administrator() {
        let record = endpoint(&[(2, Level::Manage)]);
        let stranger = Principal { workspace: WorkspaceId(2), admin: true, ..principal(2, &[]) };
        let refused = authorize(&stranger, Action::Use(Level::View), Object::Endpoint(&record)).unwrap_err();
        assert_eq!((refused.status, refused.message), (404, no_endpoint("e").message));
        let refused = authorize(&stranger, Action::Administer, Object::Workspace(HERE)).unwrap_err();
        assert_eq!(refused.status, 404);
        assert_eq!(authorize(&stranger, Action::Administer, Object::Server).unwrap_err().status, 403);
        let server_admin = Principal { server_admin: true, ..stranger };
        authorize(&server_admin, Action::Administer, Object::Server).unwrap();
        authorize(&server_admin, Action::Administer, Object::Workspace(HERE)).unwrap();
        // What tenants keep is theirs, whoever runs the server.
        assert_eq!(level_of(&server_admin, Object::Endpoint(&record)), None);
    }
}
