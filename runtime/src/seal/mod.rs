//! Encryption at rest: what the server keeps on disk is sealed with AES-256-GCM, and opened only by the home's keys.
//!
//! ```text
//! key-encryption key (a key file, or TESSERA_KEY)
//!   └─ wraps HOME/keys.json ([`keyring`]): the data keys, each with its id, and the home's secret
//!        ├─ seals values: records of the store, small files ([`files`])
//!        └─ seals streams: the files of packages ([`stream`])
//! ```
//!
//! [`rotation`] replaces the data key, or the key-encryption key, while the server runs.
//!
//! # Why no nonce can repeat
//!
//! With AES-GCM two messages under one key and nonce give both away, and 96-bit nonces drawn at random bound a key to
//! some 2^32 messages, which somebody would have to count across restarts. Nothing is counted here. Each sealed thing
//! draws 192 random bits and has a key of its own, derived from the data key and these bits with keyed BLAKE3 (the
//! construction of XAES-256-GCM, with another derivation). A value's key seals one message, so its nonce is zero. A
//! stream's key seals the stream's chunks, whose nonces are their numbers, and its header, whose nonce is all ones. After
//! 2^64 sealed things the probability that two share a key is 2^-64; rotation is for keys that leaked, not for keys
//! that wore out.
//!
//! # What a sealed thing is bound to
//!
//! The additional data of a value is its name: a record's key, a file's path in the home. The header of a stream is
//! sealed over its digest and its length, each chunk under its number. So nothing can be swapped, cut, or put under another
//! name without an error. What stays readable: names, sizes and times. That an old copy of a thing was put back over its
//! successor is not noticed.
//!
//! # Values before encryption
//!
//! A sealed thing begins with a mark that nothing unsealed begins with. A home from before is read as it is, written
//! sealed, and sealed as a whole by the first rotation; from then on, and in every other home, what is not sealed is
//! refused.

pub mod files;
pub mod keyring;
pub mod rotation;
pub mod source;
pub mod stream;

use std::fmt;
use std::str::FromStr;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// First byte of a sealed value. Records begin with a number up to 16, the other files with text.
const VALUE_MARK: u8 = 0xE5;

const KEY_ID_BYTES: usize = 4;
const SALT_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

const SALT_AT: usize = 1 + KEY_ID_BYTES;
const SEALED_AT: usize = SALT_AT + SALT_BYTES;

/// By how much a sealed value is longer than what is in it.
pub const OVERHEAD_BYTES: usize = SEALED_AT + TAG_BYTES;

/// Why something sealed cannot be had, or not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Its key is not in the key ring.
    #[error(
        "{what} is sealed with the data key {key_id}, which this home's keys.json does not have: restore the keys.json \
         that belongs to this data"
    )]
    MissingKey {
        /// The sealed thing.
        what: String,
        /// The key.
        key_id: KeyId,
    },
    /// It is not what was sealed under this name.
    #[error("{what} is damaged, or was sealed under another name: restore it from a backup")]
    Damaged {
        /// The sealed thing.
        what: String,
    },
    /// It is not sealed, in a home where everything is.
    #[error("{what} is not sealed, although everything in this home was: restore it from a backup")]
    Unsealed {
        /// The thing.
        what: String,
    },
    /// The system gives no randomness.
    #[error("draw randomness: {0}")]
    Randomness(getrandom::Error),
    /// The cipher refuses: larger than AES-GCM allows, 64 GiB.
    #[error("seal {what}")]
    Cipher {
        /// The thing.
        what: String,
    },
}

/// Names a key; no secret. Eight hex digits, drawn at random, so that keys of two homes are not taken for each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; KEY_ID_BYTES]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl FromStr for KeyId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, hex::FromHexError> {
        let mut id = [0; KEY_ID_BYTES];
        hex::decode_to_slice(text, &mut id)?;
        Ok(Self(id))
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// 256 secret bits with their name.
pub struct Key {
    /// Its name.
    pub id: KeyId,
    secret: [u8; 32],
}

/// What a derived key is for, so that keys for two uses are never the same.
#[derive(Clone, Copy)]
enum Use {
    Value,
    Stream,
}

impl Key {
    fn generate() -> Result<Key, SealError> {
        Ok(Key { id: KeyId(random()?), secret: random()? })
    }

    /// Seals a value under its name, `what`.
    ///
    /// # Errors
    /// `Randomness`, `Cipher`.
    pub fn seal(&self, what: &str, value: &[u8]) -> Result<Vec<u8>, SealError> {
        let salt = random()?;
        let mut sealed = Vec::with_capacity(value.len() + OVERHEAD_BYTES);
        sealed.push(VALUE_MARK);
        sealed.extend(self.id.0);
        sealed.extend(salt);
        sealed.extend(value);
        let refused = |_| SealError::Cipher { what: what.to_owned() };
        let cipher = self.derive(Use::Value, &salt).map_err(refused)?;
        let tag = cipher.seal_in_place_separate_tag(nonce(0), Aad::from(what), &mut sealed[SEALED_AT..]);
        sealed.extend(tag.map_err(refused)?.as_ref());
        Ok(sealed)
    }

    /// Opens what [`Key::seal`] made with this key under this name.
    fn open(&self, what: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let open = || {
            let salt = sealed.get(SALT_AT..SEALED_AT)?.try_into().ok()?;
            let mut value = sealed[SEALED_AT..].to_vec();
            let cipher = self.derive(Use::Value, salt).ok()?;
            let bytes = cipher.open_in_place(nonce(0), Aad::from(what), &mut value).ok()?.len();
            value.truncate(bytes);
            Some(value)
        };
        open().ok_or_else(|| SealError::Damaged { what: what.to_owned() })
    }

    /// The cipher of the one thing that drew this salt.
    fn derive(&self, purpose: Use, salt: &[u8; SALT_BYTES]) -> Result<LessSafeKey, ring::error::Unspecified> {
        let purpose = match purpose {
            Use::Value => b"value ",
            Use::Stream => b"stream",
        };
        let key = blake3::Hasher::new_keyed(&self.secret).update(purpose).update(salt).finalize();
        UnboundKey::new(&AES_256_GCM, key.as_bytes()).map(LessSafeKey::new)
    }
}

/// The key of a sealed value; none when it is not sealed.
pub fn value_key(value: &[u8]) -> Option<KeyId> {
    let (mark, rest) = value.split_first()?;
    let id = rest.first_chunk().filter(|_| *mark == VALUE_MARK)?;
    Some(KeyId(*id))
}

/// The nonce of a stream's chunk; that of a value, whose key seals nothing else, is 0.
fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn random<const BYTES: usize>() -> Result<[u8; BYTES], SealError> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(SealError::Randomness)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_only_unchanged_under_its_name_and_key() {
        let (key, other) = (Key::generate().unwrap(), Key::generate().unwrap());
        for value in [b"".as_slice(), b"x", &[7; 4000]] {
            let sealed = key.seal("a", value).unwrap();
            assert_eq!(sealed.len(), value.len() + OVERHEAD_BYTES);
            assert_eq!(value_key(&sealed), Some(key.id));
            assert_eq!(key.open("a", &sealed).unwrap(), value);
            assert_ne!(key.seal("a", value).unwrap(), sealed, "the same value twice cannot be told");

            assert!(matches!(key.open("b", &sealed), Err(SealError::Damaged { what }) if what == "b"));
            assert!(other.open("a", &sealed).is_err());
            for cut in 0..sealed.len() {
                assert!(key.open("a", &sealed[..cut]).is_err(), "cut to {cut}");
            }
            // Everything after the mark and the key's name, which say how to open it.
            for at in SALT_AT..sealed.len() {
                let mut damaged = sealed.clone();
                damaged[at] ^= 1;
                assert!(key.open("a", &damaged).is_err(), "byte {at}");
            }
            assert!(key.open("a", &[sealed.as_slice(), b"x"].concat()).is_err());
        }
    }

    #[test]
    fn what_is_not_sealed_has_no_key() {
        for plain in [b"".as_slice(), b"\x01{}", b"{}", b"[  0.001s] deploying", &[VALUE_MARK, 1, 2]] {
            assert_eq!(value_key(plain), None);
        }
    }
}
