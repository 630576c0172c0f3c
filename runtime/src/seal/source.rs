//! Where the key-encryption key comes from: a file, or `TESSERA_KEY` in the environment. Whoever has it can open the
//! home's keys, so it is what a backup of the home must not hold.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{KEY_ID_BYTES, Key, KeyId, SealError, random};
use crate::home::write_private;

/// The environment variable that holds the key itself.
pub const KEY_VARIABLE: &str = "TESSERA_KEY";

/// Where a key was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// [`KEY_VARIABLE`].
    Environment,
    /// This file.
    File(PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Environment => write!(f, "the variable {KEY_VARIABLE}"),
            Place::File(path) => write!(f, "the key file {}", path.display()),
        }
    }
}

/// The secret that a person keeps, and where they keep it.
pub struct MasterKey {
    /// Where.
    pub place: Place,
    /// What.
    pub secret: [u8; 32],
}

impl MasterKey {
    /// The key of the environment or else of the file.
    ///
    /// # Errors
    /// When there is none, or it is no key: names the place.
    pub fn read(file: &Path, environment: Option<&str>) -> Result<MasterKey> {
        let (place, text) = match environment {
            Some(text) => (Place::Environment, text.to_owned()),
            None => (Place::File(file.to_owned()), read_text(file)?),
        };
        let Some(secret) = parse(text.trim()) else {
            bail!("{place} does not hold a key: 64 hex digits or the base64 of 32 bytes are one");
        };
        Ok(MasterKey { place, secret })
    }

    /// Draws a key and writes it to the file (0600).
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(file: &Path) -> Result<MasterKey> {
        let key = MasterKey::generate(Place::File(file.to_owned()))?;
        key.save()?;
        Ok(key)
    }

    /// Draws a key that is to be kept in a place.
    pub(super) fn generate(place: Place) -> Result<MasterKey, SealError> {
        Ok(MasterKey { place, secret: random()? })
    }

    /// Writes the key to its file as a whole; a link is followed.
    pub(super) fn save(&self) -> Result<()> {
        let Place::File(path) = &self.place else { bail!("{} cannot be written", self.place) };
        let path = path.canonicalize().unwrap_or_else(|_| path.clone());
        write_private(&path, hex::encode(self.secret).as_bytes())
    }

    /// The key that wraps the data keys. Its name follows from it, so that the right one can be asked for.
    pub(super) fn key(&self) -> Key {
        let name = blake3::derive_key("tessera 2026 name of a key-encryption key", &self.secret);
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&name[..KEY_ID_BYTES]);
        Key { id: KeyId(id), secret: blake3::derive_key("tessera 2026 key encryption", &self.secret) }
    }
}

/// The secret of a home from before encryption, if there is one: from then on it lives in the key ring.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn old_secret(file: &Path) -> Result<Option<[u8; 32]>> {
    if file.exists() { MasterKey::read(file, None).map(|key| Some(key.secret)) } else { Ok(None) }
}

fn read_text(path: &Path) -> Result<String> {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(1024).read_to_string(&mut text)) {
        Ok(_) => Ok(text),
        // The bytes are not text, so they are no key: the caller says so.
        Err(error) if error.kind() == ErrorKind::InvalidData => Ok(String::new()),
        Err(error) => Err(error).with_context(|| {
            format!("failed to read the key file {}: restore it, or name another with --key-file", path.display())
        }),
    }
}

fn parse(text: &str) -> Option<[u8; 32]> {
    let mut secret = [0; 32];
    match hex::decode_to_slice(text, &mut secret) {
        Ok(()) => Some(secret),
        Err(_) => STANDARD.decode(text).ok()?.try_into().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_hex_or_base64_and_anything_else_names_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let made = MasterKey::create(&file).unwrap();
        assert_eq!(MasterKey::read(&file, None).unwrap().secret, made.secret);
        let base64 = format!(" {}\n", STANDARD.encode(made.secret));
        let read = MasterKey::read(&file, Some(&base64)).unwrap();
        assert_eq!((read.secret, read.place), (made.secret, Place::Environment));

        for bad in ["", "abc", &"g".repeat(64), &"0".repeat(63), &"0".repeat(66)] {
            std::fs::write(&file, bad).unwrap();
            let error = MasterKey::read(&file, None).err().unwrap().to_string();
            assert!(error.contains(file.to_str().unwrap()) && error.contains("64 hex digits"), "{error}");
            assert!(MasterKey::read(&file, Some(bad)).err().unwrap().to_string().contains(KEY_VARIABLE));
        }
        std::fs::write(&file, [0xff; 32]).unwrap();
        assert!(MasterKey::read(&file, None).is_err());
    }
}
