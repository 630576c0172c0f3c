//! Tokens: whom they stand for, and how they are made and end.

use std::sync::Arc;

use base64::Engine as _;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

use super::{Directory, RECORDS_PER_TRANSACTION, no_identity};
use crate::access::identity::{Identity, Principal};
use crate::access::oauth::{Claims, LIFETIME_S};
use crate::access::tokens::{self, TokenKind, TokenRecord};
use crate::catalog::WorkspaceId;
use crate::clock::now_ms;
use crate::error::{ApiError, ErrorCode};
use crate::store::Transaction;

/// What a caller says of a new token.
pub struct NewToken {
    /// What it is good for.
    pub kind: TokenKind,
    /// Identity that makes it.
    pub created_by: u64,
    /// Free text.
    pub comment: String,
    /// None: until it is revoked.
    pub lifetime_ms: Option<u64>,
}

/// An access token and its life in seconds.
pub struct AccessToken {
    /// The token.
    pub value: String,
    /// At most [`LIFETIME_S`].
    pub expires_in_s: u64,
}

impl Directory {
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
        let claims = self.access_tokens.verify(token);
        // Looked up by a keyed hash, so the time tells nothing of how much of a token is right.
        let hash = claims.map_or_else(|| self.hash(token), |claims| claims.credential);
        let tokens = self.tokens.pin();
        // A client's secret opens nothing by itself.
        let opens = |record: &&Arc<TokenRecord>| {
            !record.is_expired() && (claims.is_some() || record.kind == TokenKind::Personal)
        };
        let record = tokens.get(&hash).filter(opens)?;
        self.principals.pin().get(&record.principal).cloned()
    }

    /// An access token for the service principal of this application id, if that is its secret.
    pub fn access_token_of_client(&self, application_id: &str, secret: &str) -> Option<AccessToken> {
        let hash = self.hash(secret);
        let record = self.tokens.pin().get(&hash).cloned()?;
        let principal = self.principals.pin().get(&record.principal).cloned()?;
        let right = record.kind == TokenKind::ClientSecret && !record.is_expired() && principal.name == application_id;
        if right { self.access_token(hash, &record, u64::MAX) } else { None }
    }

    /// An access token in exchange for another token, which it does not outlive.
    pub fn access_token_for(&self, token: &str) -> Option<AccessToken> {
        self.holder(token)?;
        let claims = self.access_tokens.verify(token);
        let hash = claims.map_or_else(|| self.hash(token), |claims| claims.credential);
        let record = self.tokens.pin().get(&hash).cloned()?;
        self.access_token(hash, &record, claims.map_or(u64::MAX, |claims| claims.expiry_timestamp))
    }

    /// An access token that ends with its credential and at `end_timestamp`; none when that is less than a second away.
    fn access_token(&self, hash: blake3::Hash, record: &TokenRecord, end_timestamp: u64) -> Option<AccessToken> {
        let now = now_ms();
        let end = end_timestamp.min(record.expiry_timestamp.unwrap_or(u64::MAX)).min(now + LIFETIME_S * 1000);
        let claims = Claims { principal: record.principal, expiry_timestamp: end, credential: hash };
        let expires_in_s = end.saturating_sub(now) / 1000;
        (expires_in_s > 0).then(|| AccessToken { value: self.access_tokens.sign(&claims), expires_in_s })
    }

    fn hash(&self, token: &str) -> blake3::Hash {
        blake3::keyed_hash(&self.key, token.as_bytes())
    }

    /// Makes a token that stands for an identity, by another or itself. The secret is not kept.
    ///
    /// # Errors
    /// When the identity is gone or has as many as it may have.
    pub async fn create_token(&self, owner: &Identity, new: NewToken) -> Result<(String, Arc<TokenRecord>), ApiError> {
        // In a turn, so that an identity that is being removed leaves no token.
        let _turn = self.changing.lock().await;
        let now = self.identity(owner.workspace, owner.id).ok_or_else(|| no_identity(owner.id))?;
        // Whether the caller may make a token for it was asked before the turn.
        if now.server_admin && !owner.server_admin {
            return Err(ApiError::new(
                ErrorCode::ResourceConflict,
                format!("'{}' was changed: try again.", owner.name),
            ));
        }
        let (has, max) =
            (self.tokens_of(owner.workspace, new.kind, Some(owner.id)).len(), new.kind.of_one_identity_max());
        if has >= max {
            let message = format!(
                "'{}' has {has} tokens or secrets of this kind, and may have {max}: delete one first.",
                owner.name
            );
            return Err(ApiError::new(ErrorCode::BadRequest, message));
        }
        let token = tokens::new_token(new.kind)?;
        let record = self.keep_token(Transaction::new(), &token, owner, new).await?;
        Ok((token, record))
    }

    /// Stores a token in one step with whatever else is in the transaction, then shows it.
    pub(super) async fn keep_token(
        &self,
        with: Transaction,
        token: &str,
        owner: &Identity,
        new: NewToken,
    ) -> Result<Arc<TokenRecord>, ApiError> {
        let now = now_ms();
        let record = Arc::new(TokenRecord {
            token_id: tokens::new_id()?,
            kind: new.kind,
            workspace: owner.workspace,
            principal: owner.id,
            created_by: new.created_by,
            comment: new.comment,
            creation_timestamp: now,
            expiry_timestamp: new.lifetime_ms.map(|lifetime| now.saturating_add(lifetime)),
        });
        let hash = self.hash(token);
        self.store.commit(with.put_document(&token_key(&hash), &*record)?).await?;
        self.tokens.pin().insert(hash, Arc::clone(&record));
        Ok(record)
    }

    /// The tokens of one kind of a workspace, or of one identity in it, the oldest first.
    pub fn tokens_of(&self, workspace: WorkspaceId, kind: TokenKind, identity: Option<u64>) -> Vec<Arc<TokenRecord>> {
        let tokens = self.tokens.pin();
        let wanted = |record: &&Arc<TokenRecord>| {
            let owner = identity.is_none_or(|identity| record.principal == identity);
            record.workspace == workspace && record.kind == kind && owner
        };
        let mut all: Vec<_> = tokens.values().filter(wanted).cloned().collect();
        all.sort_by(|a, b| (a.creation_timestamp, &a.token_id).cmp(&(b.creation_timestamp, &b.token_id)));
        all
    }

    /// A token of a workspace.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`.
    pub fn token(&self, workspace: WorkspaceId, kind: TokenKind, token_id: &str) -> Result<Arc<TokenRecord>, ApiError> {
        let tokens = self.tokens.pin();
        let wanted = |record: &&Arc<TokenRecord>| {
            record.workspace == workspace && record.kind == kind && record.token_id == token_id
        };
        let missing = || ApiError::missing(format!("Token with id '{token_id}' does not exist."));
        tokens.values().find(wanted).cloned().ok_or_else(missing)
    }

    /// Gives a token another comment.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST` when it has ended meanwhile.
    pub async fn comment_token(&self, token: &TokenRecord, comment: String) -> Result<Arc<TokenRecord>, ApiError> {
        let _turn = self.changing.lock().await;
        let found = self.tokens.pin().iter().find(|(_, known)| known.token_id == token.token_id).map(|(hash, _)| *hash);
        let hash =
            found.ok_or_else(|| ApiError::missing(format!("Token with id '{}' does not exist.", token.token_id)))?;
        let changed = Arc::new(TokenRecord { comment, ..token.clone() });
        self.store.commit(Transaction::new().put_document(&token_key(&hash), &*changed)?).await?;
        self.tokens.pin().insert(hash, Arc::clone(&changed));
        Ok(changed)
    }

    /// Ends a token, at once.
    ///
    /// # Errors
    /// When the store cannot forget it.
    pub async fn revoke(&self, token: &TokenRecord) -> Result<(), ApiError> {
        // In a turn, so that nobody writes it again.
        let _turn = self.changing.lock().await;
        self.forget_tokens(|record| record.token_id == token.token_id).await.map(drop)
    }

    /// Removes the tokens that have ended; how many these were.
    ///
    /// # Errors
    /// When the store cannot forget them.
    pub async fn sweep_tokens(&self) -> Result<usize, ApiError> {
        let _turn = self.changing.lock().await;
        self.forget_tokens(TokenRecord::is_expired).await
    }

    pub(super) async fn forget_tokens(&self, which: impl Fn(&TokenRecord) -> bool) -> Result<usize, ApiError> {
        let found: Vec<blake3::Hash> =
            self.tokens.pin().iter().filter(|(_, record)| which(record)).map(|(hash, _)| *hash).collect();
        for some in found.chunks(RECORDS_PER_TRANSACTION) {
            let deletes =
                some.iter().fold(Transaction::new(), |deletes, hash| deletes.delete_document(&token_key(hash)));
            self.store.commit(deletes).await?;
            let tokens = self.tokens.pin();
            for hash in some {
                tokens.remove(hash);
            }
        }
        Ok(found.len())
    }
}

pub(super) fn token_key(hash: &blake3::Hash) -> String {
    format!("token/{hash}")
}

fn refused(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Unauthenticated, message)
}

fn basic_token(credentials: &str) -> Option<String> {
    let decoded = base64::engine::general_purpose::STANDARD.decode(credentials).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    text.strip_prefix("token:").map(str::to_owned)
}
