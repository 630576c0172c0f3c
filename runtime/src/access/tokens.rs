//! Personal access tokens, and the secrets of service principals' OAuth clients: shown once, when they are made, and kept
//! as a keyed hash.

use serde::{Deserialize, Serialize};

use crate::catalog::WorkspaceId;
use crate::clock::now_ms;
use crate::error::ApiError;

/// What a secret is good for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenKind {
    /// It is sent with every request.
    #[default]
    Personal,
    /// It is exchanged for access tokens: the `client_secret` of a service principal.
    ClientSecret,
}

impl TokenKind {
    /// Begins every secret, so that scanners of source code can find one that was committed.
    fn prefix(self) -> &'static str {
        match self {
            TokenKind::Personal => "tsr_",
            TokenKind::ClientSecret => "tss_",
        }
    }

    /// Most of them that one identity may have; the numbers of Databricks.
    pub fn of_one_identity_max(self) -> usize {
        match self {
            TokenKind::Personal => 600,
            TokenKind::ClientSecret => 5,
        }
    }
}

/// A token as it is stored, under its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// What it is called by: 32 hex digits, not secret.
    pub token_id: String,
    /// What it is good for.
    #[serde(default)]
    pub kind: TokenKind,
    /// Whose workspace.
    pub workspace: WorkspaceId,
    /// Identity that it stands for.
    pub principal: u64,
    /// Identity that made it.
    pub created_by: u64,
    /// Free text.
    #[serde(default)]
    pub comment: String,
    /// In ms since 1970.
    pub creation_timestamp: u64,
    /// In ms since 1970; none: never.
    #[serde(default)]
    pub expiry_timestamp: Option<u64>,
}

impl TokenRecord {
    /// Whether it has ended.
    pub fn is_expired(&self) -> bool {
        self.expiry_timestamp.is_some_and(|expiry| now_ms() >= expiry)
    }
}

/// A new secret token.
///
/// # Errors
/// When there is no randomness.
pub fn new_token(kind: TokenKind) -> Result<String, ApiError> {
    Ok(format!("{}{}", kind.prefix(), hex::encode(random::<24>()?)))
}

/// 32 hex digits that name something.
///
/// # Errors
/// When there is no randomness.
pub fn new_id() -> Result<String, ApiError> {
    Ok(hex::encode(random::<16>()?))
}

/// A random UUID.
///
/// # Errors
/// When there is no randomness.
pub fn new_uuid() -> Result<String, ApiError> {
    let mut bytes = random::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

/// A positive number in 16 decimal digits at most: clients read it as an integer, some of them through a float.
///
/// # Errors
/// When there is no randomness.
pub fn new_number() -> Result<u64, ApiError> {
    Ok(u64::from_le_bytes(random::<8>()?) % 8_000_000_000_000_000 + 1_000_000_000_000_000)
}

fn random<const BYTES: usize>() -> Result<[u8; BYTES], ApiError> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| ApiError::internal("draw randomness", &std::io::Error::other(error.to_string())))?;
    Ok(bytes)
}
