//! Who calls: from a bearer token to a principal, without touching the store.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use base64::Engine as _;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use serde::{Deserialize, Serialize};

use crate::catalog::WorkspaceId;
use crate::clock::now_ms;
use crate::error::{ApiError, ErrorCode};
use crate::home::Home;
use crate::store::documents::scan_documents;
use crate::store::{StateStore, Transaction};

/// File in the home folder that holds the first administrator's token.
const TOKEN_FILE: &str = "admin.token";

/// Who calls, after authentication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// The tenant.
    pub workspace: WorkspaceId,
    /// Unique number.
    pub id: u64,
    /// Name, as in `creator`.
    pub user_name: String,
    /// Whether it may do everything in its workspace.
    pub admin: bool,
}

/// A tenant as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct WorkspaceRecord {
    id: WorkspaceId,
    name: String,
    creation_timestamp: u64,
}

/// A token as it is stored: never itself, only under its keyed hash.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct TokenRecord {
    principal: Principal,
    creation_timestamp: u64,
}

/// All tokens by their keyed hash.
pub struct Auth {
    key: [u8; 32],
    principals: HashMap<blake3::Hash, Arc<Principal>>,
    workspace: WorkspaceId,
}

impl Auth {
    /// Reads the tokens; at the first start makes a workspace, an administrator and a token file with mode 0600.
    ///
    /// # Errors
    /// When records or the token file cannot be read or written.
    pub async fn open(store: &dyn StateStore, home: &Home, key: [u8; 32]) -> Result<Auth> {
        let workspaces = scan_documents::<WorkspaceRecord>(store, "workspace/")?;
        let workspace = match workspaces.first() {
            Some((_, workspace)) => workspace.id,
            None => first_start(store, home, &key).await?,
        };
        let mut principals = HashMap::new();
        for (name, token) in scan_documents::<TokenRecord>(store, "token/")? {
            let hash = blake3::Hash::from_hex(name.trim_start_matches("token/"))
                .with_context(|| format!("the record '{name}' is not named by a hash"))?;
            principals.insert(hash, Arc::new(token.principal));
        }
        Ok(Auth { key, principals, workspace })
    }

    /// The workspace of this home.
    pub fn workspace(&self) -> WorkspaceId {
        self.workspace
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
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => self.principal(token.trim()),
            Some((scheme, credentials)) if scheme.eq_ignore_ascii_case("basic") => {
                basic_token(credentials.trim()).and_then(|token| self.principal(&token))
            }
            _ => None,
        };
        principal.ok_or_else(|| refused("The token is not valid."))
    }

    fn principal(&self, token: &str) -> Option<Arc<Principal>> {
        // Looked up by a keyed hash, so the time tells nothing of how much of a token is right.
        self.principals.get(&hash(&self.key, token)).cloned()
    }
}

fn refused(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Unauthenticated, message)
}

fn basic_token(credentials: &str) -> Option<String> {
    let decoded = base64::engine::general_purpose::STANDARD.decode(credentials).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    text.strip_prefix("token:").map(str::to_owned)
}

fn hash(key: &[u8; 32], token: &str) -> blake3::Hash {
    blake3::keyed_hash(key, token.as_bytes())
}

async fn first_start(store: &dyn StateStore, home: &Home, key: &[u8; 32]) -> Result<WorkspaceId> {
    let mut secret = [0u8; 24];
    let mut id = [0u8; 8];
    getrandom::fill(&mut secret)
        .and_then(|()| getrandom::fill(&mut id))
        .map_err(|error| anyhow::anyhow!("failed to draw randomness for the first token: {error}"))?;
    // A positive i64 in 16 digits at most: clients read it as an integer, some of them through a float.
    let workspace = WorkspaceId(u64::from_le_bytes(id) % 9_000_000_000_000_000 + 1_000_000_000_000_000);
    let token = format!("tsr_{}", hex::encode(secret));
    let principal = Principal { workspace, id: 1, user_name: "admin".to_owned(), admin: true };
    let now = now_ms();
    // The file first: a token without a file would lock everybody out, a file without a token is written again.
    home.write(TOKEN_FILE, token.as_bytes())?;
    let transaction = Transaction::new()
        .put_document(
            &format!("workspace/{workspace}"),
            &WorkspaceRecord { id: workspace, name: "default".to_owned(), creation_timestamp: now },
        )?
        .put_document(&format!("token/{}", hash(key, &token)), &TokenRecord { principal, creation_timestamp: now })?;
    store.commit(transaction).await?;
    tracing::info!(file = %home.path(TOKEN_FILE).display(), "made the first administrator; the token is in this file");
    Ok(workspace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[tokio::test]
    async fn the_first_token_opens_the_door_in_both_forms_and_after_a_restart() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let store = MemoryStore::new();
        Auth::open(&store, &home, [1; 32]).await.unwrap();
        let auth = Auth::open(&store, &home, [1; 32]).await.unwrap();

        let token = std::fs::read_to_string(home.path(TOKEN_FILE)).unwrap();
        let mode = std::fs::metadata(home.path(TOKEN_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(auth.authenticate(&headers(&format!("Bearer {token}"))).unwrap().admin);
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("token:{token}"));
        auth.authenticate(&headers(&format!("Basic {basic}"))).unwrap();
        for bad in ["Bearer", "Bearer x", "Basic !!", "Digest x", &format!("Bearer {token}x")] {
            assert_eq!(auth.authenticate(&headers(bad)).unwrap_err().code, ErrorCode::Unauthenticated);
        }
        assert_eq!(auth.authenticate(&HeaderMap::new()).unwrap_err().status, 401);
    }
}
