//! OAuth access tokens. They are not stored: each says which credential it was made with and when it ends, under a MAC
//! with a key of this home, so that a restart keeps them valid and none costs memory. The credential is looked up on every
//! use, so that an access token ends with the secret, the token or the principal that it came from.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::clock::now_ms;

/// Begins every access token.
const PREFIX: &str = "tso_";

/// Longest life of an access token, in seconds.
pub const LIFETIME_S: u64 = 3600;

const MAC_BYTES: usize = 32;
const CLAIMS_BYTES: usize = 8 + 8 + 32;

/// What an access token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claims {
    /// Identity that it stands for.
    pub principal: u64,
    /// In ms since 1970.
    pub expiry_timestamp: u64,
    /// The credential that it was made with, by its keyed hash.
    pub credential: blake3::Hash,
}

/// Makes and checks access tokens.
pub struct AccessTokens {
    key: [u8; 32],
}

impl AccessTokens {
    /// With a key that is derived from a secret of the home.
    pub fn new(secret: &[u8; 32]) -> AccessTokens {
        AccessTokens { key: blake3::derive_key("tessera 2026 oauth access tokens", secret) }
    }

    /// The token that says this.
    pub fn sign(&self, claims: &Claims) -> String {
        let mut bytes = Vec::with_capacity(CLAIMS_BYTES + MAC_BYTES);
        bytes.extend_from_slice(&claims.principal.to_le_bytes());
        bytes.extend_from_slice(&claims.expiry_timestamp.to_le_bytes());
        bytes.extend_from_slice(claims.credential.as_bytes());
        let mac = blake3::keyed_hash(&self.key, &bytes);
        bytes.extend_from_slice(mac.as_bytes());
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// What a token says, if it is one of ours and has not ended. None too for tokens of other kinds.
    pub fn verify(&self, token: &str) -> Option<Claims> {
        let bytes = URL_SAFE_NO_PAD.decode(token.strip_prefix(PREFIX)?).ok()?;
        let (claims, mac) = bytes.split_at_checked(CLAIMS_BYTES)?;
        // Hashes compare in a time that tells nothing.
        if blake3::keyed_hash(&self.key, claims) != blake3::Hash::from_slice(mac).ok()? {
            return None;
        }
        let (principal, rest) = claims.split_first_chunk::<8>()?;
        let (expiry, credential) = rest.split_first_chunk::<8>()?;
        let claims = Claims {
            principal: u64::from_le_bytes(*principal),
            expiry_timestamp: u64::from_le_bytes(*expiry),
            credential: blake3::Hash::from_slice(credential).ok()?,
        };
        (now_ms() < claims.expiry_timestamp).then_some(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_was_signed_until_it_ends_and_only_under_its_key() {
        let tokens = AccessTokens::new(&[1; 32]);
        let credential = blake3::hash(b"secret");
        let claims = Claims { principal: 7, expiry_timestamp: now_ms() + 60_000, credential };
        let token = tokens.sign(&claims);
        assert_eq!(tokens.verify(&token), Some(claims));
        assert_eq!(AccessTokens::new(&[2; 32]).verify(&token), None, "another home");
        assert_eq!(tokens.verify(&tokens.sign(&Claims { expiry_timestamp: now_ms(), ..claims })), None, "ended");
        for (index, byte) in token.bytes().enumerate() {
            let other = if byte == b'A' { 'B' } else { 'A' };
            let changed = format!("{}{other}{}", &token[..index], &token[index + 1..]);
            assert_eq!(tokens.verify(&changed), None, "{index}");
        }
        for bad in ["", "tso_", "tso_AAAA", "tso_!", &token[..token.len() - 4], &format!("{token}AAAA")] {
            assert_eq!(tokens.verify(bad), None, "{bad}");
        }
    }
}
