use base64::Engine as _;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

use super::*;
use crate::access::oauth::LIFETIME_S;
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
    let directory = Directory::open(Arc::clone(&store), &home, [1; 32], tallies()).await.unwrap();
    Opened { directory, store, home, _folder: folder }
}

fn tallies() -> Arc<Tallies> {
    Arc::new(Tallies::new(crate::access::quota::tests::PLENTY))
}

fn token(kind: TokenKind, lifetime_ms: Option<u64>) -> NewToken {
    NewToken { kind, created_by: 1, comment: String::new(), lifetime_ms }
}

fn headers(value: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, value.parse().unwrap());
    headers
}

fn new(kind: IdentityKind, name: &str, groups: &[u64]) -> NewIdentity {
    let groups = groups.to_vec();
    NewIdentity {
        kind,
        name: name.into(),
        display_name: name.into(),
        active: true,
        external_id: None,
        groups,
        server_admin: false,
    }
}

#[tokio::test]
async fn the_first_token_opens_the_door_in_both_forms_and_after_a_restart() {
    use std::os::unix::fs::PermissionsExt;
    let opened = open().await;
    let directory = Directory::open(Arc::clone(&opened.store), &opened.home, [1; 32], tallies()).await.unwrap();

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
async fn a_first_start_that_was_cut_off_is_done_again() {
    let opened = open().await;
    // as if it had ended after it made the workspace
    for prefix in ["identity/", "token/"] {
        for (key, record) in scan_documents::<serde_json::Value>(&*opened.store, prefix).unwrap() {
            if record["kind"] != "Group" {
                opened.store.commit(Transaction::new().delete_document(&key)).await.unwrap();
            }
        }
    }
    let tallies = Arc::new(Tallies::new(crate::access::quota::tests::PLENTY));
    let again = Directory::open(Arc::clone(&opened.store), &opened.home, [1; 32], tallies).await.unwrap();
    let token = std::fs::read_to_string(opened.home.path(TOKEN_FILE)).unwrap();
    assert!(again.authenticate(&headers(&format!("Bearer {token}"))).unwrap().server_admin);
    let here = again.workspaces();
    assert_eq!((here.len(), again.identities(here[0].id, IdentityKind::Group).len()), (1, 2));
}

#[tokio::test]
async fn a_token_ends_when_it_is_revoked_expires_or_its_holder_goes() {
    let Opened { directory, .. } = open().await;
    let here = directory.workspaces()[0].id;
    let user = directory.create_identity(here, new(IdentityKind::User, "ada", &[])).await.unwrap();
    let valid = |token: &str| directory.authenticate(&headers(&format!("Bearer {token}"))).is_ok();

    let (first, record) = directory.create_token(&user, token(TokenKind::Personal, None)).await.unwrap();
    assert!(valid(&first));
    assert!(directory.token(WorkspaceId(1), record.kind, &record.token_id).is_err(), "another workspace's");
    directory.revoke(&directory.token(here, record.kind, &record.token_id).unwrap()).await.unwrap();
    assert!(!valid(&first));

    let (expired, _) = directory.create_token(&user, token(TokenKind::Personal, Some(0))).await.unwrap();
    assert!(!valid(&expired));
    assert_eq!(directory.sweep_tokens().await.unwrap(), 1);
    assert_eq!(directory.tokens_of(here, TokenKind::Personal, Some(user.id)).len(), 0);

    let (second, _) = directory.create_token(&user, token(TokenKind::Personal, None)).await.unwrap();
    let set_active = |active| {
        move |user: &mut Identity| -> Result<(), ApiError> {
            user.active = active;
            Ok(())
        }
    };
    directory.change_identities(here, &[user.id], set_active(false)).await.unwrap();
    assert!(!valid(&second), "not active");
    directory.change_identities(here, &[user.id], set_active(true)).await.unwrap();
    assert!(valid(&second));
    directory.delete_identity(here, user.id).await.unwrap();
    assert!(!valid(&second));
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

    let again = Directory::open(Arc::clone(&opened.store), &opened.home, [1; 32], tallies()).await.unwrap();
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

#[tokio::test]
async fn an_access_token_ends_with_its_secret_its_principal_or_its_time_and_outlives_a_restart() {
    let opened = open().await;
    let directory = &opened.directory;
    let here = directory.workspaces()[0].id;
    let robot = directory.create_identity(here, new(IdentityKind::ServicePrincipal, "app", &[])).await.unwrap();
    let valid = |token: &str| directory.authenticate(&headers(&format!("Bearer {token}"))).is_ok();
    let (secret, record) = directory.create_token(&robot, token(TokenKind::ClientSecret, None)).await.unwrap();
    assert!(!valid(&secret), "a secret opens nothing by itself");
    assert!(directory.access_token_for(&secret).is_none(), "and is exchanged only with the client's id");
    assert!(directory.access_token_of_client("other", &secret).is_none());
    assert!(directory.access_token_of_client("app", "tss_0").is_none());

    let access = directory.access_token_of_client("app", &secret).unwrap();
    assert_eq!(access.expires_in_s, LIFETIME_S);
    assert!(valid(&access.value));
    let exchanged = directory.access_token_for(&access.value).unwrap();
    assert!(valid(&exchanged.value) && exchanged.expires_in_s <= access.expires_in_s);
    let again = Directory::open(Arc::clone(&opened.store), &opened.home, [1; 32], tallies()).await.unwrap();
    again.authenticate(&headers(&format!("Bearer {}", access.value))).unwrap();

    directory.revoke(&record).await.unwrap();
    assert!(!valid(&access.value) && !valid(&exchanged.value));
    let (brief, _) = directory.create_token(&robot, token(TokenKind::ClientSecret, Some(5000))).await.unwrap();
    let access = directory.access_token_of_client("app", &brief).unwrap();
    assert!(access.expires_in_s <= 5 && valid(&access.value));
    directory.delete_identity(here, robot.id).await.unwrap();
    assert!(!valid(&access.value));
    assert_eq!(directory.tokens_of(here, TokenKind::ClientSecret, None).len(), 0);
}

#[tokio::test]
async fn an_identity_has_only_so_many_secrets() {
    let Opened { directory, .. } = open().await;
    let here = directory.workspaces()[0].id;
    let robot = directory.create_identity(here, new(IdentityKind::ServicePrincipal, "app", &[])).await.unwrap();
    for _ in 0..5 {
        directory.create_token(&robot, token(TokenKind::ClientSecret, None)).await.unwrap();
    }
    let refused = directory.create_token(&robot, token(TokenKind::ClientSecret, None)).await.unwrap_err();
    assert_eq!((refused.status, refused.message.contains("may have 5")), (400, true));
    directory.create_token(&robot, token(TokenKind::Personal, None)).await.unwrap();
}

#[tokio::test]
async fn a_workspace_keeps_an_administrator() {
    let Opened { directory, .. } = open().await;
    let here = directory.workspaces()[0].id;
    let admins = directory.group(here, ADMINS).unwrap();
    let first = directory.find(here, IdentityKind::User, "admin").unwrap();
    assert!(directory.delete_identity(here, first.id).await.is_err());
    let leave = |identity: &mut Identity| -> Result<(), ApiError> {
        identity.groups.clear();
        Ok(())
    };
    assert!(directory.change_identities(here, &[first.id], leave).await.is_err());
    let inner = directory.create_identity(here, new(IdentityKind::Group, "inner", &[admins.id])).await.unwrap();
    directory.create_identity(here, new(IdentityKind::User, "second", &[inner.id])).await.unwrap();
    directory.change_identities(here, &[first.id], leave).await.unwrap();
    assert!(directory.delete_identity(here, inner.id).await.is_err(), "the last one's group");
    assert!(directory.change_identities(here, &[inner.id], leave).await.is_err());
}

#[tokio::test]
async fn a_workspace_goes_with_everybody_in_it_unless_it_is_not_empty() {
    let Opened { directory, .. } = open().await;
    let here = directory.workspaces()[0].id;
    let there = directory.create_workspace("there", Quotas::default()).await.unwrap().id;
    let user = directory.create_identity(there, new(IdentityKind::User, "ada", &[])).await.unwrap();
    let (token, _) = directory.create_token(&user, token(TokenKind::Personal, None)).await.unwrap();
    let valid = || directory.authenticate(&headers(&format!("Bearer {token}"))).is_ok();
    let full = async || Err(ApiError::invalid("not empty"));
    assert!(directory.delete_workspace(there, full).await.is_err() && valid());
    assert!(directory.delete_workspace(here, async || Ok(())).await.is_err(), "the server's administrator is here");
    directory.delete_workspace(there, async || Ok(())).await.unwrap();
    assert!(!valid() && directory.workspace(there).is_none() && directory.identity(there, user.id).is_none());
}
