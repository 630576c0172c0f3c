//! All workspaces, identities and tokens, in memory as they are stored.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use anyhow::{Context, Result};
use base64::Engine as _;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use tokio::sync::Mutex;

use super::identity::{ADMINS, Identity, IdentityKind, Principal, USERS};
use super::tokens::{self, TokenRecord};
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

type Map<K, V> = papaya::HashMap<K, V>;

/// Everybody who may call. Read without a lock; changed by one at a time.
pub struct Directory {
    store: Arc<dyn StateStore>,
    key: [u8; 32],
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
}

impl Directory {
    /// Reads what is stored; at the first start makes a workspace, an administrator and a token file with mode 0600.
    ///
    /// # Errors
    /// When records or the token file cannot be read or written.
    pub async fn open(store: Arc<dyn StateStore>, home: &Home, key: [u8; 32]) -> Result<Directory> {
        let directory = Directory {
            key,
            workspaces: Map::new(),
            identities: Map::new(),
            principals: Map::new(),
            tokens: Map::new(),
            changing: Mutex::new(()),
            store,
        };
        for (_, workspace) in scan_documents::<Workspace>(&*directory.store, "workspace/")? {
            directory.workspaces.pin().insert(workspace.id, Arc::new(workspace));
        }
        for (_, identity) in scan_documents::<Identity>(&*directory.store, "identity/")? {
            directory.identities.pin().insert(identity.id, Arc::new(identity));
        }
        if directory.identities.is_empty() {
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
                self.keep_identities(workspace.id, &built_in_groups(workspace.id)?).await?;
                workspace
            }
        };
        let admins = self.group(workspace.id, ADMINS).context("the workspace has no administrators")?;
        let admin = NewIdentity {
            kind: IdentityKind::User,
            name: "admin".to_owned(),
            display_name: "admin".to_owned(),
            active: true,
            external_id: None,
            groups: vec![admins.id],
        };
        let mut admin = (*self.create_identity(workspace.id, admin).await?).clone();
        admin.server_admin = true;
        self.keep_identities(workspace.id, &[admin.clone()]).await?;
        let token = tokens::new_token()?;
        // The file first: a token without a file would lock everybody out, a file without a token is written again.
        home.write(TOKEN_FILE, token.as_bytes())?;
        self.keep_token(&token, &admin, admin.id, "the first administrator's".to_owned(), None).await?;
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

    /// Who sent these headers: `Authorization: Bearer TOKEN`, or Basic with the user `token` and the token as password.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, in the same words whatever is wrong with a token.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<Principal>, ApiError> {
        let Some(header) = headers.get(AUTHORIZATION) else {
            return Err(refused("Credentials are missing: send 'Authorization: Bearer <token>'."));
        };
        let header = header.to_str().unwrap_or_default();
        let principal = match header.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => self.holder(token.trim()),
            Some((scheme, credentials)) if scheme.eq_ignore_ascii_case("basic") => {
                basic_token(credentials.trim()).and_then(|token| self.holder(&token))
            }
            _ => None,
        };
        principal.ok_or_else(|| refused("The token is not valid."))
    }

    /// Whom a token stands for, if it is valid now.
    fn holder(&self, token: &str) -> Option<Arc<Principal>> {
        // Looked up by a keyed hash, so the time tells nothing of how much of a token is right.
        let tokens = self.tokens.pin();
        let record = tokens.get(&self.hash(token)).filter(|record| !record.is_expired())?;
        self.principals.pin().get(&record.principal).cloned()
    }

    fn hash(&self, token: &str) -> blake3::Hash {
        blake3::keyed_hash(&self.key, token.as_bytes())
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
        let workspace = Arc::new(workspace);
        self.workspaces.pin().insert(id, Arc::clone(&workspace));
        Ok(workspace)
    }

    /// Changes a workspace's quotas.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`.
    pub async fn set_quotas(&self, id: WorkspaceId, quotas: Quotas) -> Result<Arc<Workspace>, ApiError> {
        let _turn = self.changing.lock().await;
        let current = self.workspace(id).ok_or_else(|| ApiError::missing(format!("Workspace {id} does not exist.")))?;
        let changed = Arc::new(Workspace { quotas, ..(*current).clone() });
        self.store.commit(Transaction::new().put_document(&format!("workspace/{id}"), &*changed)?).await?;
        self.workspaces.pin().insert(id, Arc::clone(&changed));
        Ok(changed)
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
        let identity = Identity {
            id: tokens::new_number()?,
            workspace,
            kind: new.kind,
            name: new.name,
            display_name: new.display_name,
            active: new.active,
            external_id: new.external_id,
            groups: new.groups,
            server_admin: false,
            creation_timestamp: now_ms(),
        };
        self.check_groups(&identity)?;
        self.keep_identities(workspace, std::slice::from_ref(&identity)).await?;
        Ok(Arc::new(identity))
    }

    /// Changes identities of a workspace, all that `change` gives back as different. `change` sees them one by one.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`, a name that is taken, a group that there is not or that would contain itself; and
    /// those of `change`.
    pub async fn change_identities(
        &self,
        workspace: WorkspaceId,
        ids: &[u64],
        mut change: impl FnMut(&mut Identity) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let _turn = self.changing.lock().await;
        let mut changed = Vec::new();
        for id in ids {
            let current = self
                .identity(workspace, *id)
                .ok_or_else(|| ApiError::missing(format!("There is no user, group or service principal {id}.")))?;
            let mut identity = (*current).clone();
            change(&mut identity)?;
            if identity == *current {
                continue;
            }
            let taken = self.find(workspace, identity.kind, &identity.name).is_some_and(|other| other.id != *id);
            if taken {
                return Err(exists(format!("'{}' already exists.", identity.name)));
            }
            self.check_groups(&identity)?;
            changed.push(identity);
        }
        self.keep_identities(workspace, &changed).await
    }

    /// Removes an identity with its tokens; of a group, the memberships too.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`; a group that every workspace has.
    pub async fn delete_identity(&self, workspace: WorkspaceId, id: u64) -> Result<(), ApiError> {
        let identity = self
            .identity(workspace, id)
            .ok_or_else(|| ApiError::missing(format!("There is no user, group or service principal {id}.")))?;
        if identity.is_built_in() {
            return Err(ApiError::invalid(format!("the group '{}' belongs to the workspace itself", identity.name)));
        }
        for token in self.tokens_of(workspace, Some(id)) {
            self.revoke(workspace, &token.token_id).await?;
        }
        if identity.kind == IdentityKind::Group {
            let members: Vec<u64> = self.members(workspace, id).iter().map(|member| member.id).collect();
            let leave = |member: &mut Identity| {
                member.groups.retain(|group| *group != id);
                Ok(())
            };
            self.change_identities(workspace, &members, leave).await?;
        }
        let _turn = self.changing.lock().await;
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

    /// Refuses groups that there are not, and a group that would be its own member.
    fn check_groups(&self, identity: &Identity) -> Result<(), ApiError> {
        for group in &identity.groups {
            let found = self.identity(identity.workspace, *group);
            if found.is_none_or(|found| found.kind != IdentityKind::Group) {
                return Err(ApiError::invalid(format!("there is no group {group}")));
            }
        }
        if identity.kind == IdentityKind::Group && self.closure(identity).contains(&identity.id) {
            return Err(ApiError::invalid(format!("the group '{}' would be a member of itself", identity.name)));
        }
        Ok(())
    }

    /// The groups that an identity is in, also through other groups.
    fn closure(&self, identity: &Identity) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        let mut next = identity.groups.clone();
        while let Some(id) = next.pop() {
            if found.insert(id)
                && let Some(group) = self.identity(identity.workspace, id)
            {
                next.extend(&group.groups);
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
            let mut groups = self.closure(identity);
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

    // Tokens.

    /// Makes a token that stands for an identity, by another or itself. The secret is not kept.
    ///
    /// # Errors
    /// When the store cannot keep it.
    pub async fn create_token(
        &self,
        owner: &Identity,
        created_by: u64,
        comment: String,
        lifetime_ms: Option<u64>,
    ) -> Result<(String, Arc<TokenRecord>), ApiError> {
        let token = tokens::new_token()?;
        let record = self.keep_token(&token, owner, created_by, comment, lifetime_ms).await?;
        Ok((token, record))
    }

    async fn keep_token(
        &self,
        token: &str,
        owner: &Identity,
        created_by: u64,
        comment: String,
        lifetime_ms: Option<u64>,
    ) -> Result<Arc<TokenRecord>, ApiError> {
        let now = now_ms();
        let record = Arc::new(TokenRecord {
            token_id: tokens::new_id()?,
            workspace: owner.workspace,
            principal: owner.id,
            created_by,
            comment,
            creation_timestamp: now,
            expiry_timestamp: lifetime_ms.map(|lifetime| now.saturating_add(lifetime)),
        });
        let hash = self.hash(token);
        self.store.commit(Transaction::new().put_document(&format!("token/{hash}"), &*record)?).await?;
        self.tokens.pin().insert(hash, Arc::clone(&record));
        Ok(record)
    }

    /// The tokens of a workspace, or of one identity in it, the oldest first.
    pub fn tokens_of(&self, workspace: WorkspaceId, identity: Option<u64>) -> Vec<Arc<TokenRecord>> {
        let tokens = self.tokens.pin();
        let wanted = |record: &&Arc<TokenRecord>| {
            record.workspace == workspace && identity.is_none_or(|identity| record.principal == identity)
        };
        let mut all: Vec<_> = tokens.values().filter(wanted).cloned().collect();
        all.sort_by(|a, b| (a.creation_timestamp, &a.token_id).cmp(&(b.creation_timestamp, &b.token_id)));
        all
    }

    /// Ends a token of a workspace, at once.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`.
    pub async fn revoke(&self, workspace: WorkspaceId, token_id: &str) -> Result<(), ApiError> {
        let found = |(_, record): &(&blake3::Hash, &Arc<TokenRecord>)| {
            record.workspace == workspace && record.token_id == token_id
        };
        let hash = self.tokens.pin().iter().find(found).map(|(hash, _)| *hash);
        let hash = hash.ok_or_else(|| ApiError::missing(format!("Token with id '{token_id}' does not exist.")))?;
        self.store.commit(Transaction::new().delete_document(&format!("token/{hash}"))).await?;
        self.tokens.pin().remove(&hash);
        Ok(())
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

fn exists(message: String) -> ApiError {
    ApiError::new(ErrorCode::ResourceAlreadyExists, message)
}

fn refused(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Unauthenticated, message)
}

fn basic_token(credentials: &str) -> Option<String> {
    let decoded = base64::engine::general_purpose::STANDARD.decode(credentials).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    text.strip_prefix("token:").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    struct Opened {
        directory: Directory,
        store: Arc<dyn StateStore>,
        home: Home,
        _folder: tempfile::TempDir,
    }

    async fn open() -> Opened {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        let store: Arc<dyn StateStore> = Arc::new(MemoryStore::new());
        let directory = Directory::open(Arc::clone(&store), &home, [1; 32]).await.unwrap();
        Opened { directory, store, home, _folder: folder }
    }

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        headers
    }

    fn new(kind: IdentityKind, name: &str, groups: &[u64]) -> NewIdentity {
        let groups = groups.to_vec();
        NewIdentity { kind, name: name.into(), display_name: name.into(), active: true, external_id: None, groups }
    }

    #[tokio::test]
    async fn the_first_token_opens_the_door_in_both_forms_and_after_a_restart() {
        use std::os::unix::fs::PermissionsExt;
        let opened = open().await;
        let directory = Directory::open(Arc::clone(&opened.store), &opened.home, [1; 32]).await.unwrap();

        let token = std::fs::read_to_string(opened.home.path(TOKEN_FILE)).unwrap();
        let mode = std::fs::metadata(opened.home.path(TOKEN_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let principal = directory.authenticate(&headers(&format!("Bearer {token}"))).unwrap();
        assert!(principal.admin && principal.server_admin);
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("token:{token}"));
        directory.authenticate(&headers(&format!("Basic {basic}"))).unwrap();
        for bad in ["Bearer", "Bearer x", "Basic !!", "Digest x", &format!("Bearer {token}x")] {
            assert_eq!(directory.authenticate(&headers(bad)).unwrap_err().code, ErrorCode::Unauthenticated);
        }
        assert_eq!(directory.authenticate(&HeaderMap::new()).unwrap_err().status, 401);
    }

    #[tokio::test]
    async fn a_token_ends_when_it_is_revoked_expires_or_its_holder_goes() {
        let Opened { directory, .. } = open().await;
        let here = directory.workspaces()[0].id;
        let user = directory.create_identity(here, new(IdentityKind::User, "ada", &[])).await.unwrap();
        let valid = |token: &str| directory.authenticate(&headers(&format!("Bearer {token}"))).is_ok();

        let (token, record) = directory.create_token(&user, user.id, String::new(), None).await.unwrap();
        assert!(valid(&token));
        assert!(directory.revoke(WorkspaceId(1), &record.token_id).await.is_err(), "another workspace's");
        directory.revoke(here, &record.token_id).await.unwrap();
        assert!(!valid(&token));

        let (expired, _) = directory.create_token(&user, user.id, String::new(), Some(0)).await.unwrap();
        assert!(!valid(&expired));

        let (token, _) = directory.create_token(&user, user.id, String::new(), None).await.unwrap();
        let set_active = |active| {
            move |user: &mut Identity| -> Result<(), ApiError> {
                user.active = active;
                Ok(())
            }
        };
        directory.change_identities(here, &[user.id], set_active(false)).await.unwrap();
        assert!(!valid(&token), "not active");
        directory.change_identities(here, &[user.id], set_active(true)).await.unwrap();
        assert!(valid(&token));
        directory.delete_identity(here, user.id).await.unwrap();
        assert!(!valid(&token));
    }

    #[tokio::test]
    async fn membership_reaches_through_groups_and_never_in_circles() {
        let opened = open().await;
        let directory = &opened.directory;
        let here = directory.workspaces()[0].id;
        let outer = directory.create_identity(here, new(IdentityKind::Group, "outer", &[])).await.unwrap();
        let inner = directory.create_identity(here, new(IdentityKind::Group, "inner", &[outer.id])).await.unwrap();
        let user = directory.create_identity(here, new(IdentityKind::User, "ada", &[inner.id])).await.unwrap();
        let groups = |id| directory.principal(here, id).unwrap();
        assert!(groups(user.id).is_member(outer.id) && !groups(user.id).admin);

        let join = |group: u64| {
            move |identity: &mut Identity| -> Result<(), ApiError> {
                identity.groups.push(group);
                Ok(())
            }
        };
        assert!(directory.change_identities(here, &[outer.id], join(inner.id)).await.is_err(), "a circle");
        assert!(directory.change_identities(here, &[user.id], join(user.id)).await.is_err(), "no group");
        let admins = directory.group(here, ADMINS).unwrap();
        directory.change_identities(here, &[outer.id], join(admins.id)).await.unwrap();
        assert!(groups(user.id).admin, "through two groups");
        directory.delete_identity(here, inner.id).await.unwrap();
        assert!(!groups(user.id).admin && !groups(user.id).is_member(outer.id));
        assert!(directory.delete_identity(here, admins.id).await.is_err());

        let again = Directory::open(Arc::clone(&opened.store), &opened.home, [1; 32]).await.unwrap();
        assert_eq!(again.principal(here, user.id), directory.principal(here, user.id));
    }

    #[tokio::test]
    async fn workspaces_do_not_see_each_others_identities() {
        let Opened { directory, .. } = open().await;
        let here = directory.workspaces()[0].id;
        let there = directory.create_workspace("there", Quotas::default()).await.unwrap().id;
        assert!(directory.create_workspace("there", Quotas::default()).await.is_err());
        let user = directory.create_identity(there, new(IdentityKind::User, "admin", &[])).await.unwrap();
        assert!(directory.identity(here, user.id).is_none() && directory.principal(here, user.id).is_none());
        assert!(directory.delete_identity(here, user.id).await.is_err());
        let group = directory.group(here, USERS).unwrap();
        assert!(directory.create_identity(there, new(IdentityKind::User, "b", &[group.id])).await.is_err());
        assert_eq!(directory.members(here, group.id).len(), 1);
    }
}
