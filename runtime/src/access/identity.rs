//! Users, groups and service principals: as they are stored, and what a request needs to know of one.

use serde::{Deserialize, Serialize};

use crate::catalog::WorkspaceId;

/// What kind of thing has an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IdentityKind {
    /// A person.
    User,
    /// A program.
    ServicePrincipal,
    /// Several of these, and other groups.
    Group,
}

/// The group whose members administrate the workspace.
pub const ADMINS: &str = "admins";

/// The group that everybody in a workspace is a member of.
pub const USERS: &str = "users";

/// A user, group or service principal as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Unique on this server.
    pub id: u64,
    /// Whose it is.
    pub workspace: WorkspaceId,
    /// What it is.
    pub kind: IdentityKind,
    /// Unique among its kind in the workspace: a user's name, a service principal's application id, a group's name.
    pub name: String,
    /// For people.
    pub display_name: String,
    /// Whether it may call.
    pub active: bool,
    /// Its number in somebody else's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// The groups that it was put into, by number. Kept here, so that a group may have any number of members.
    #[serde(default)]
    pub groups: Vec<u64>,
    /// Whether it administrates the whole server, all workspaces.
    #[serde(default)]
    pub server_admin: bool,
    /// In ms since 1970.
    pub creation_timestamp: u64,
}

impl Identity {
    /// Whether it is one of the two groups that every workspace has.
    pub fn is_built_in(&self) -> bool {
        self.kind == IdentityKind::Group && [ADMINS, USERS].contains(&self.name.as_str())
    }
}

/// Who calls, after authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The tenant.
    pub workspace: WorkspaceId,
    /// Its identity's number.
    pub id: u64,
    /// A user or a service principal.
    pub kind: IdentityKind,
    /// Name of the user, or application id of the service principal, as in `creator`.
    pub name: String,
    /// For people.
    pub display_name: String,
    /// Whether it may do everything in its workspace.
    pub admin: bool,
    /// Whether it may make and remove workspaces.
    pub server_admin: bool,
    /// The groups that it is in, also through other groups, sorted by number.
    pub groups: Vec<u64>,
}

impl Principal {
    /// Whether it is in a group.
    pub fn is_member(&self, group: u64) -> bool {
        self.groups.binary_search(&group).is_ok()
    }
}
