//! All workspaces, identities and tokens, in memory as they are stored. [`credentials`] is how these open the door.

mod credentials;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::Mutex;

pub use self::credentials::{AccessToken, NewToken};
use super::identity::{ADMINS, Identity, IdentityKind, Principal, USERS};
use super::oauth::AccessTokens;
use super::quota::Tallies;
use super::tokens::{self, TokenKind, TokenRecord};
use super::workspace::{Quotas, Workspace};
use crate::catalog::WorkspaceId;
use crate::clock::now_ms;
use crate::error::{ApiError, ErrorCode};
use crate::home::Home;
use crate::store::documents::scan_documents;
use crate::store::{StateStore, Transaction};

/// File in the home folder that holds the first administrator's token.
const TOKEN_FILE: &str = "admin.token";

/// Records changed in one transaction, each of which may be spread over 16 keys of the 128 that one may change.
const RECORDS_PER_TRANSACTION: usize = 7;

/// Users, groups and service principals of one workspace. All are in memory, and a change looks at each.
const IDENTITIES_MAX: usize = 10_000;

type Map<K, V> = papaya::HashMap<K, V>;

/// Everybody who may call. Read without a lock; changed by one at a time.
pub struct Directory {
    store: Arc<dyn StateStore>,
    key: [u8; 32],
    access_tokens: AccessTokens,
    /// Told what each workspace may have.
    tallies: Arc<Tallies>,
    workspaces: Map<WorkspaceId, Arc<Workspace>>,
    identities: Map<u64, Arc<Identity>>,
    /// What requests see of active users and service principals.
    principals: Map<u64, Arc<Principal>>,
    tokens: Map<blake3::Hash, Arc<TokenRecord>>,
    changing: Mutex<()>,
}

/// What a caller says of a new identity.
pub struct NewIdentity {
    /// What it is.
    pub kind: IdentityKind,
    /// Unique among its kind in the workspace.
    pub name: String,
    /// For people.
    pub display_name: String,
    /// Whether it may call.
    pub active: bool,
    /// Its number in somebody else's directory.
    pub external_id: Option<String>,
    /// The groups that it is put into.
    pub groups: Vec<u64>,
    /// Whether it administrates the whole server.
    pub server_admin: bool,
}

impl Directory {
    /// Reads what is stored; at the first start makes a workspace, an administrator and a token file with mode 0600.
    ///
    /// # Errors
    /// When records or the token file cannot be read or written.
    pub async fn open(
        store: Arc<dyn StateStore>,
        home: &Home,
        key: [u8; 32],
        tallies: Arc<Tallies>,
    ) -> Result<Directory> {
        let directory = Directory {
            access_tokens: AccessTokens::new(&key),
            key,
            tallies,
            workspaces: Map::new(),
            identities: Map::new(),
            principals: Map::new(),
            tokens: Map::new(),
            changing: Mutex::new(()),
            store,
        };
        for (_, workspace) in scan_documents::<Workspace>(&*directory.store, "workspace/")? {
            directory.tallies.set(workspace.id, &workspace.quotas);
            directory.workspaces.pin().insert(workspace.id, Arc::new(workspace));
        }
        for (_, identity) in scan_documents::<Identity>(&*directory.store, "identity/")? {
            directory.identities.pin().insert(identity.id, Arc::new(identity));
        }
        // Made in one step with its token, so that a start that was cut off is done again.
        if !directory.identities.pin().values().any(|identity| identity.server_admin) {
            directory.first_start(home).await?;
        }
        for (name, token) in scan_documents::<TokenRecord>(&*directory.store, "token/")? {
            let hash = blake3::Hash::from_hex(name.trim_start_matches("token/"))
                .with_context(|| format!("the record '{name}' is not named by a hash"))?;
            directory.tokens.pin().insert(hash, Arc::new(token));
        }
        for workspace in directory.workspaces() {
            directory.derive_principals(workspace.id);
        }
        Ok(directory)
    }

    async fn first_start(&self, home: &Home) -> Result<()> {
        let workspace = match self.workspaces().into_iter().next() {
            None => self.create_workspace("default", Quotas::default()).await?,
            Some(workspace) => {
                self.forget_old_tokens().await?;
                if self.group(workspace.id, ADMINS).is_none() {
                    self.keep_identities(workspace.id, &built_in_groups(workspace.id)?).await?;
                }
                workspace
            }
        };
        let admins = self.group(workspace.id, ADMINS).context("the workspace has no administrators")?;
        let admin = Identity {
            id: tokens::new_number()?,
            workspace: workspace.id,
            kind: IdentityKind::User,
            name: "admin".to_owned(),
            display_name: "admin".to_owned(),
            active: true,
            external_id: None,
            groups: vec![admins.id],
            server_admin: true,
            creation_timestamp: now_ms(),
        };
        let token = tokens::new_token(TokenKind::Personal)?;
        // The file first: a token without a file would lock everybody out, a file without a token is written again.
        home.write(TOKEN_FILE, token.as_bytes())?;
        let new = NewToken {
            kind: TokenKind::Personal,
            created_by: admin.id,
            comment: "the first administrator's".to_owned(),
            lifetime_ms: None,
        };
        let transaction = Transaction::new().put_document(&identity_key(&admin), &admin)?;
        self.keep_token(transaction, &token, &admin, new).await?;
        self.identities.pin().insert(admin.id, Arc::new(admin));
        tracing::info!(file = %home.path(TOKEN_FILE).display(), "made the first administrator; the token is in this file");
        Ok(())
    }

    /// Removes the one token of a home from before there were users; its administrator gets another.
    async fn forget_old_tokens(&self) -> Result<()> {
        for (key, _) in scan_documents::<serde_json::Value>(&*self.store, "token/")? {
            self.store.commit(Transaction::new().delete_document(&key)).await?;
        }
        Ok(())
    }

    // Workspaces.

    /// All workspaces, by number.
    pub fn workspaces(&self) -> Vec<Arc<Workspace>> {
        let mut all: Vec<_> = self.workspaces.pin().values().cloned().collect();
        all.sort_by_key(|workspace| workspace.id);
        all
    }

    /// A workspace.
    pub fn workspace(&self, id: WorkspaceId) -> Option<Arc<Workspace>> {
        self.workspaces.pin().get(&id).cloned()
    }

    /// Makes a workspace with the groups that each has. It has no principals yet.
    ///
    /// # Errors
    /// `RESOURCE_ALREADY_EXISTS`.
    pub async fn create_workspace(&self, name: &str, quotas: Quotas) -> Result<Arc<Workspace>, ApiError> {
        let _turn = self.changing.lock().await;
        if self.workspaces.pin().values().any(|workspace| workspace.name == name) {
            return Err(exists(format!("Workspace '{name}' already exists.")));
        }
        let id = WorkspaceId(tokens::new_number()?);
        let workspace = Workspace { id, name: name.to_owned(), creation_timestamp: now_ms(), quotas };
        let mut transaction = Transaction::new().put_document(&format!("workspace/{id}"), &workspace)?;
        let groups = built_in_groups(id)?;
        for group in &groups {
            transaction = transaction.put_document(&identity_key(group), group)?;
        }
        self.store.commit(transaction).await?;
        for group in groups {
            self.identities.pin().insert(group.id, Arc::new(group));
        }
        self.tallies.set(id, &quotas);
        let workspace = Arc::new(workspace);
        self.workspaces.pin().insert(id, Arc::clone(&workspace));
        Ok(workspace)
    }

    /// Changes a workspace's name or quotas.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`, a name that is taken, and those of `change`.
    pub async fn change_workspace(
        &self,
        id: WorkspaceId,
        change: impl FnOnce(&mut Workspace) -> Result<(), ApiError>,
    ) -> Result<Arc<Workspace>, ApiError> {
        let _turn = self.changing.lock().await;
        let mut workspace = (*self.workspace(id).ok_or_else(|| no_workspace(id))?).clone();
        change(&mut workspace)?;
        if self.workspaces.pin().values().any(|other| other.name == workspace.name && other.id != id) {
            return Err(exists(format!("Workspace '{}' already exists.", workspace.name)));
        }
        self.store.commit(Transaction::new().put_document(&format!("workspace/{id}"), &workspace)?).await?;
        self.tallies.set(id, &workspace.quotas);
        let workspace = Arc::new(workspace);
        self.workspaces.pin().insert(id, Arc::clone(&workspace));
        Ok(workspace)
    }

    /// Removes a workspace with its principals and their tokens. `check_empty` is asked when nobody can come in any more.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`; that it is the home of an administrator of the server; and those of `check_empty`, upon
    /// which everything is as it was.
    pub async fn delete_workspace(
        &self,
        id: WorkspaceId,
        check_empty: impl AsyncFnOnce() -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let _turn = self.changing.lock().await;
        let workspace = self.workspace(id).ok_or_else(|| no_workspace(id))?;
        let all: Vec<Arc<Identity>> =
            self.identities.pin().values().filter(|identity| identity.workspace == id).cloned().collect();
        if let Some(admin) = all.iter().find(|identity| identity.server_admin) {
            let message =
                format!("workspace '{}' is the home of '{}', who administrates the server", workspace.name, admin.name);
            return Err(ApiError::invalid(message));
        }
        self.principals.pin().retain(|_, principal| principal.workspace != id);
        if let Err(error) = check_empty().await {
            self.derive_principals(id);
            return Err(error);
        }
        self.forget_tokens(|record| record.workspace == id).await?;
        for some in all.chunks(RECORDS_PER_TRANSACTION) {
            let deletes =
                some.iter().fold(Transaction::new(), |deletes, one| deletes.delete_document(&identity_key(one)));
            self.store.commit(deletes).await?;
        }
        self.store.commit(Transaction::new().delete_document(&format!("workspace/{id}"))).await?;
        self.identities.pin().retain(|_, identity| identity.workspace != id);
        self.workspaces.pin().remove(&id);
        self.tallies.remove(id);
        Ok(())
    }

    // Users, groups, service principals.

    /// All identities of a kind, by number.
    pub fn identities(&self, workspace: WorkspaceId, kind: IdentityKind) -> Vec<Arc<Identity>> {
        let identities = self.identities.pin();
        let wanted = |identity: &&Arc<Identity>| identity.workspace == workspace && identity.kind == kind;
        let mut all: Vec<_> = identities.values().filter(wanted).cloned().collect();
        all.sort_by_key(|identity| identity.id);
        all
    }

    /// An identity of a workspace by its number.
    pub fn identity(&self, workspace: WorkspaceId, id: u64) -> Option<Arc<Identity>> {
        self.identities.pin().get(&id).filter(|identity| identity.workspace == workspace).cloned()
    }

    /// An identity of a workspace by its name.
    pub fn find(&self, workspace: WorkspaceId, kind: IdentityKind, name: &str) -> Option<Arc<Identity>> {
        let identities = self.identities.pin();
        let wanted = |identity: &&Arc<Identity>| {
            identity.workspace == workspace && identity.kind == kind && identity.name == name
        };
        identities.values().find(wanted).cloned()
    }

    fn group(&self, workspace: WorkspaceId, name: &str) -> Option<Arc<Identity>> {
        self.find(workspace, IdentityKind::Group, name)
    }

    /// The active user or service principal of this number, as requests see it.
    pub fn principal(&self, workspace: WorkspaceId, id: u64) -> Option<Arc<Principal>> {
        self.principals.pin().get(&id).filter(|principal| principal.workspace == workspace).cloned()
    }

    /// Makes a user, group or service principal.
    ///
    /// # Errors
    /// `RESOURCE_ALREADY_EXISTS`, or a group that there is not.
    pub async fn create_identity(&self, workspace: WorkspaceId, new: NewIdentity) -> Result<Arc<Identity>, ApiError> {
        let _turn = self.changing.lock().await;
        if self.find(workspace, new.kind, &new.name).is_some() {
            return Err(exists(format!("'{}' already exists.", new.name)));
        }
        let here = self.identities.pin().values().filter(|identity| identity.workspace == workspace).count();
        if here >= IDENTITIES_MAX {
            let message =
                format!("The workspace has {here} users, groups and service principals, as many as it may have.");
            return Err(ApiError::new(ErrorCode::BadRequest, message));
        }
        let identity = Identity {
            id: tokens::new_number()?,
            workspace,
            kind: new.kind,
            name: new.name,
            display_name: new.display_name,
            active: new.active,
            external_id: new.external_id,
            groups: new.groups,
            server_admin: new.server_admin,
            creation_timestamp: now_ms(),
        };
        self.check_groups(&identity, &[])?;
        self.keep_identities(workspace, std::slice::from_ref(&identity)).await?;
        Ok(Arc::new(identity))
    }

    /// Changes identities of a workspace, all that `change` gives back as different. `change` sees them one by one.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`, a name that is taken, a group that there is not or that would contain itself, a workspace
    /// that nobody could administrate any more; and those of `change`. Nothing is changed then.
    pub async fn change_identities(
        &self,
        workspace: WorkspaceId,
        ids: &[u64],
        mut change: impl FnMut(&mut Identity) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let _turn = self.changing.lock().await;
        let mut changed = Vec::new();
        for id in ids {
            let current = self.identity(workspace, *id).ok_or_else(|| no_identity(*id))?;
            let mut identity = (*current).clone();
            change(&mut identity)?;
            if identity == *current {
                continue;
            }
            let taken = self.find(workspace, identity.kind, &identity.name).is_some_and(|other| other.id != *id);
            if taken {
                return Err(exists(format!("'{}' already exists.", identity.name)));
            }
            changed.push(identity);
        }
        for identity in &changed {
            self.check_groups(identity, &changed)?;
        }
        self.check_administrated(workspace, &changed)?;
        // Whoever made or holds its tokens so far shall not come to administrate the server with them.
        let becomes_admin = |identity: &&Identity| {
            identity.server_admin && self.identity(workspace, identity.id).is_some_and(|now| !now.server_admin)
        };
        for promoted in changed.iter().filter(becomes_admin) {
            self.forget_tokens(|record| record.principal == promoted.id).await?;
        }
        self.keep_identities(workspace, &changed).await
    }

    /// Removes an identity with its tokens; of a group, the memberships too.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`; a group that every workspace has; the last administrator.
    pub async fn delete_identity(&self, workspace: WorkspaceId, id: u64) -> Result<(), ApiError> {
        let _turn = self.changing.lock().await;
        let identity = self.identity(workspace, id).ok_or_else(|| no_identity(id))?;
        if identity.is_built_in() {
            return Err(ApiError::invalid(format!("the group '{}' belongs to the workspace itself", identity.name)));
        }
        let leave = |member: &Arc<Identity>| {
            let mut member = (**member).clone();
            member.groups.retain(|group| *group != id);
            member
        };
        let gone = Identity { active: false, groups: Vec::new(), ..(*identity).clone() };
        let mut changed: Vec<Identity> = self.members(workspace, id).iter().map(leave).collect();
        changed.push(gone);
        self.check_administrated(workspace, &changed)?;
        changed.pop();
        self.keep_identities(workspace, &changed).await?;
        self.forget_tokens(|record| record.principal == id).await?;
        self.store.commit(Transaction::new().delete_document(&identity_key(&identity))).await?;
        self.identities.pin().remove(&id);
        self.derive_principals(workspace);
        Ok(())
    }

    /// Who was put into a group, by number. Of `users`, everybody.
    pub fn members(&self, workspace: WorkspaceId, group: u64) -> Vec<Arc<Identity>> {
        let everybody = self.group(workspace, USERS).is_some_and(|users| users.id == group);
        let identities = self.identities.pin();
        let is_member = |identity: &&Arc<Identity>| {
            let by_itself = everybody && identity.kind != IdentityKind::Group;
            identity.workspace == workspace && (by_itself || identity.groups.contains(&group))
        };
        let mut members: Vec<_> = identities.values().filter(is_member).cloned().collect();
        members.sort_by_key(|member| member.id);
        members
    }

    /// The members of every group of a workspace that has some, but for `users`, who are everybody.
    pub fn memberships(&self, workspace: WorkspaceId) -> HashMap<u64, Vec<Arc<Identity>>> {
        let mut members: HashMap<u64, Vec<Arc<Identity>>> = HashMap::new();
        for identity in self.identities.pin().values().filter(|identity| identity.workspace == workspace) {
            for group in &identity.groups {
                members.entry(*group).or_default().push(Arc::clone(identity));
            }
        }
        members.values_mut().for_each(|members| members.sort_by_key(|member| member.id));
        members
    }

    /// The groups that an identity is in, also through other groups, by number. Everybody is in `users`.
    pub fn groups_of(&self, identity: &Identity) -> Vec<Arc<Identity>> {
        let mut groups = self.closure(identity, &[]);
        if identity.kind != IdentityKind::Group {
            groups.extend(self.group(identity.workspace, USERS).map(|users| users.id));
        }
        groups.into_iter().filter_map(|group| self.identity(identity.workspace, group)).collect()
    }

    /// Refuses groups that there are not, and a group that would be its own member. `changed` is what will be otherwise than
    /// it is now.
    fn check_groups(&self, identity: &Identity, changed: &[Identity]) -> Result<(), ApiError> {
        for group in &identity.groups {
            let found = self.identity(identity.workspace, *group);
            if found.is_none_or(|found| found.kind != IdentityKind::Group) {
                return Err(ApiError::invalid(format!("there is no group {group}")));
            }
        }
        if identity.kind == IdentityKind::Group && self.closure(identity, changed).contains(&identity.id) {
            return Err(ApiError::invalid(format!("the group '{}' would be a member of itself", identity.name)));
        }
        Ok(())
    }

    /// Refuses a change after which nobody could administrate the server.
    fn check_server_administrated(&self, changed: &[Identity]) -> Result<(), ApiError> {
        let administrates = |identity: &Identity| identity.server_admin && identity.active;
        let identities = self.identities.pin();
        let stays = |identity: &&Arc<Identity>| changed.iter().all(|changed| changed.id != identity.id);
        let mut after = identities.values().filter(stays).map(|identity| &**identity).chain(changed);
        if after.any(administrates) || !identities.values().any(|identity| administrates(identity)) {
            return Ok(());
        }
        Err(ApiError::invalid(
            "the server would have no administrator any more: give another user the role account_admin first",
        ))
    }

    /// Refuses a change after which nobody could administrate the server, or a workspace that somebody can administrate
    /// now.
    fn check_administrated(&self, workspace: WorkspaceId, changed: &[Identity]) -> Result<(), ApiError> {
        self.check_server_administrated(changed)?;
        let Some(admins) = self.group(workspace, ADMINS) else { return Ok(()) };
        let administrates = |identity: &Identity, changed: &[Identity]| {
            let calls = identity.kind != IdentityKind::Group && identity.active;
            calls && self.closure(identity, changed).contains(&admins.id)
        };
        let identities = self.identities.pin();
        let here =
            || identities.values().filter(|identity| identity.workspace == workspace).map(|identity| &**identity);
        let stays = |identity: &Identity| changed.iter().all(|changed| changed.id != identity.id);
        if here().filter(|identity| stays(identity)).chain(changed).any(|identity| administrates(identity, changed))
            || !here().any(|identity| administrates(identity, &[]))
        {
            return Ok(());
        }
        Err(ApiError::invalid(
            "the workspace would have no administrator any more: put another one into 'admins' first",
        ))
    }

    /// The groups that an identity is in, also through other groups, when `changed` has come about.
    fn closure(&self, identity: &Identity, changed: &[Identity]) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        let mut next = identity.groups.clone();
        while let Some(id) = next.pop() {
            if !found.insert(id) {
                continue;
            }
            match changed.iter().find(|changed| changed.id == id) {
                Some(group) => next.extend(&group.groups),
                None => next.extend(self.identity(identity.workspace, id).iter().flat_map(|group| &group.groups)),
            }
        }
        found
    }

    /// Stores identities, then shows them. Called by whoever has the turn.
    async fn keep_identities(&self, workspace: WorkspaceId, changed: &[Identity]) -> Result<(), ApiError> {
        for some in changed.chunks(RECORDS_PER_TRANSACTION) {
            let mut transaction = Transaction::new();
            for identity in some {
                transaction = transaction.put_document(&identity_key(identity), identity)?;
            }
            self.store.commit(transaction).await?;
            for identity in some {
                self.identities.pin().insert(identity.id, Arc::new(identity.clone()));
            }
        }
        self.derive_principals(workspace);
        Ok(())
    }

    /// Makes what requests see of a workspace's identities: all of it, for a change of one group may touch everybody.
    fn derive_principals(&self, workspace: WorkspaceId) {
        let group = |name| self.group(workspace, name).map(|group| group.id);
        let (admins, users) = (group(ADMINS), group(USERS));
        let mut derived = HashMap::new();
        for identity in self.identities.pin().values() {
            if identity.workspace != workspace || identity.kind == IdentityKind::Group || !identity.active {
                continue;
            }
            let mut groups = self.closure(identity, &[]);
            groups.extend(users);
            let principal = Principal {
                workspace,
                id: identity.id,
                kind: identity.kind,
                name: identity.name.clone(),
                display_name: identity.display_name.clone(),
                admin: admins.is_some_and(|admins| groups.contains(&admins)),
                server_admin: identity.server_admin,
                groups: groups.into_iter().collect(),
            };
            derived.insert(identity.id, principal);
        }
        let principals = self.principals.pin();
        principals.retain(|id, principal| principal.workspace != workspace || derived.contains_key(id));
        for (id, principal) in derived {
            principals.insert(id, Arc::new(principal));
        }
    }
}

/// The groups that every workspace has.
fn built_in_groups(workspace: WorkspaceId) -> Result<Vec<Identity>, ApiError> {
    let group = |name: &str| {
        Ok(Identity {
            id: tokens::new_number()?,
            workspace,
            kind: IdentityKind::Group,
            name: name.to_owned(),
            display_name: name.to_owned(),
            active: true,
            external_id: None,
            groups: Vec::new(),
            server_admin: false,
            creation_timestamp: now_ms(),
        })
    };
    [ADMINS, USERS].into_iter().map(group).collect()
}

fn identity_key(identity: &Identity) -> String {
    format!("identity/{}/{}", identity.workspace, identity.id)
}

fn no_identity(id: u64) -> ApiError {
    ApiError::missing(format!("There is no user, group or service principal {id}."))
}

fn no_workspace(id: WorkspaceId) -> ApiError {
    ApiError::missing(format!("Workspace {id} does not exist."))
}

fn exists(message: String) -> ApiError {
    ApiError::new(ErrorCode::ResourceAlreadyExists, message)
}
