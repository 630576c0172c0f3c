//! The data keys of a home, kept in `HOME/keys.json`, wrapped with the key-encryption key.
//!
//! The file as a whole is one sealed value inside a readable frame that names the keys. While the key-encryption key is
//! being replaced it holds two of them, one for each key, so that at every moment the key that is in the key file opens
//! it. It is replaced as a whole and synced before anything is sealed with a key that it brings.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::source::{MasterKey, Place};
use super::{Key, KeyId, SealError, random, value_key};
use crate::clock::now_ms;
use crate::home::{Home, write_private};

/// Name of the file in the home, and the name that it is sealed under.
pub const FILE: &str = "keys.json";

/// Version of the file's layout.
const FORMAT: u8 = 1;

/// What the store held when the home was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing: a new home.
    Nothing,
    /// Records from before encryption.
    Unsealed,
    /// Sealed records.
    Sealed,
}

/// The keys of one home.
pub struct Keyring {
    path: PathBuf,
    state: RwLock<State>,
    /// Held while the file changes.
    changing: Mutex<()>,
}

struct State {
    contents: Contents,
    current: Arc<Key>,
    /// Also those that were dropped since the start, for readers that had their hands on a sealed thing before.
    keys: HashMap<KeyId, Arc<Key>>,
    wrapping: Wrapping,
}

/// What wraps the file.
struct Wrapping {
    key: Key,
    place: Place,
}

/// What is wrapped.
#[derive(Clone, Serialize, Deserialize)]
struct Contents {
    /// What token hashes and artifact authentication are derived from, in hex. It outlives every key.
    secret: String,
    /// Whether what is not sealed is read: in a home from before encryption, until all of it is sealed.
    unsealed_accepted: bool,
    current: KeyId,
    keys: Vec<StoredKey>,
}

#[derive(Clone, Serialize, Deserialize)]
struct StoredKey {
    key_id: KeyId,
    secret: String,
    created_ms: u64,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct Frame {
    format: u8,
    /// For people.
    data_keys: Vec<KeyId>,
    /// The contents, once for each key-encryption key, in base64.
    wrapped: Vec<String>,
}

/// The keys as a person may see them.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct KeyList {
    /// Data keys, oldest first.
    pub keys: Vec<ListedKey>,
    /// What wraps them.
    pub key_encryption_key: ListedWrapping,
    /// Whether the home may still hold data from before encryption.
    pub unsealed_accepted: bool,
}

/// A data key.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ListedKey {
    /// Its name.
    #[schemars(with = "String")]
    pub key_id: KeyId,
    /// In ms since 1970.
    pub creation_timestamp: u64,
    /// Whether it seals what is written now; an old one only opens.
    pub current: bool,
}

/// The key-encryption key.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ListedWrapping {
    /// Its name.
    #[schemars(with = "String")]
    pub key_id: KeyId,
    /// Where it was read.
    pub place: String,
}

impl Keyring {
    /// Opens the keys of a home, or makes them at its first start. `previous` opens the file where `master` does not, and
    /// is replaced by it. `old_secret` is what a home from before encryption had.
    ///
    /// # Errors
    /// When the file is missing though there is sealed data, or no given key opens it. Nothing is changed then.
    pub fn open(
        home: &Home,
        master: &MasterKey,
        previous: Option<&MasterKey>,
        old_secret: Option<[u8; 32]>,
        found: Found,
    ) -> Result<Keyring> {
        let path = home.path(FILE);
        let wrapping = Wrapping { key: master.key(), place: master.place.clone() };
        let contents = match fs::read(&path) {
            Ok(bytes) => {
                let (contents, outdated) = unwrap(&path, &bytes, &wrapping, previous)?;
                if outdated {
                    save(&path, &contents, &[&wrapping.key])?;
                }
                contents
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if found == Found::Sealed {
                    bail!(
                        "{} is missing, and without it this home's sealed data cannot be read: restore it from a backup",
                        path.display()
                    );
                }
                let contents = Contents::new(old_secret, found == Found::Unsealed)?;
                save(&path, &contents, &[&wrapping.key])?;
                contents
            }
            Err(error) => return Err(error).with_context(|| format!("failed to read {}", path.display())),
        };
        Keyring::new(path, contents, wrapping)
    }

    fn new(path: PathBuf, contents: Contents, wrapping: Wrapping) -> Result<Keyring> {
        let keys = contents.keys.iter().map(StoredKey::key).collect::<Result<HashMap<_, _>>>()?;
        let current = keys.get(&contents.current).cloned().context("the current data key is missing from keys.json")?;
        let state = RwLock::new(State { contents, current, keys, wrapping });
        Ok(Keyring { path, state, changing: Mutex::new(()) })
    }

    /// What token hashes and artifact authentication are derived from.
    ///
    /// # Errors
    /// When the file holds no such secret.
    pub fn secret(&self) -> Result<[u8; 32]> {
        decode_secret(&self.state().contents.secret)
    }

    /// The key for a stream that begins now. While it is held, a rotation knows that something may still be sealed with
    /// it.
    pub fn current(&self) -> Arc<Key> {
        Arc::clone(&self.state().current)
    }

    /// Uses the key for values that are written now. The current key does not change while `write` runs: when a rotation
    /// has begun, everything sealed with another key has been handed on.
    pub fn with_current<T>(&self, write: impl FnOnce(&Key) -> T) -> T {
        write(&self.state().current)
    }

    /// Opens a value that was sealed under this name; one from before encryption comes as it is, where that is accepted.
    ///
    /// # Errors
    /// `MissingKey`, `Damaged`, `Unsealed`.
    pub fn open_value(&self, what: &str, value: Vec<u8>) -> Result<Vec<u8>, SealError> {
        match value_key(&value) {
            Some(key_id) => self.key(key_id, what)?.open(what, &value),
            None => self.accept_unsealed(what).map(|()| value),
        }
    }

    /// The key with this name, to open `what`.
    pub(super) fn key(&self, key_id: KeyId, what: &str) -> Result<Arc<Key>, SealError> {
        let key = self.state().keys.get(&key_id).cloned();
        key.ok_or_else(|| SealError::MissingKey { what: what.to_owned(), key_id })
    }

    /// Refuses what is not sealed, except in a home from before encryption.
    pub(super) fn accept_unsealed(&self, what: &str) -> Result<(), SealError> {
        match self.state().contents.unsealed_accepted {
            true => Ok(()),
            false => Err(SealError::Unsealed { what: what.to_owned() }),
        }
    }

    /// Whether what was sealed with this key, or not at all, is to be sealed anew.
    pub fn is_stale(&self, key_id: Option<KeyId>) -> bool {
        key_id != Some(self.state().current.id)
    }

    /// Whether a rotation was begun and not finished.
    pub fn is_rotating(&self) -> bool {
        self.state().contents.keys.len() > 1
    }

    /// Whether the key-encryption key is in a file, which can be written.
    pub(super) fn wrapping_is_in_a_file(&self) -> bool {
        matches!(self.state().wrapping.place, Place::File(_))
    }

    /// The keys as a person may see them.
    pub fn list(&self) -> KeyList {
        let state = self.state();
        let listed = |key: &StoredKey| ListedKey {
            key_id: key.key_id,
            creation_timestamp: key.created_ms,
            current: key.key_id == state.contents.current,
        };
        KeyList {
            keys: state.contents.keys.iter().map(listed).collect(),
            key_encryption_key: ListedWrapping {
                key_id: state.wrapping.key.id,
                place: state.wrapping.place.to_string(),
            },
            unsealed_accepted: state.contents.unsealed_accepted,
        }
    }

    /// Makes a data key and seals with it from now on. Blocks.
    ///
    /// # Errors
    /// When the file cannot be written: the key before goes on.
    pub(crate) fn begin_rotation(&self) -> Result<KeyId> {
        let _changing = self.changing();
        let mut contents = self.state().contents.clone();
        let stored = StoredKey::generate()?;
        contents.current = stored.key_id;
        let (key_id, key) = stored.key()?;
        contents.keys.push(stored);
        save(&self.path, &contents, &[&self.state().wrapping.key])?;
        let mut state = self.state_mut();
        state.contents = contents;
        state.current = Arc::clone(&key);
        state.keys.insert(key_id, key);
        Ok(key_id)
    }

    /// Whether somebody still writes a stream with a key that is not the current one.
    pub(super) fn old_keys_in_use(&self) -> bool {
        let state = self.state();
        state.keys.values().any(|key| key.id != state.current.id && Arc::strong_count(key) > 1)
    }

    /// Drops all data keys but the current one. Nothing may be sealed with them any more. Blocks.
    ///
    /// # Errors
    /// When the file cannot be written: the keys stay.
    pub(crate) fn finish_rotation(&self) -> Result<()> {
        let _changing = self.changing();
        let mut contents = self.state().contents.clone();
        contents.keys.retain(|key| key.key_id == contents.current);
        contents.unsealed_accepted = false;
        save(&self.path, &contents, &[&self.state().wrapping.key])?;
        self.state_mut().contents = contents;
        Ok(())
    }

    /// Draws another key-encryption key, wraps the data keys with it and writes it to the key file. A crash at any moment
    /// leaves a key file that opens `keys.json`. Blocks.
    ///
    /// # Errors
    /// When the key is not in a file, or one of the files cannot be written: the key before goes on.
    pub(super) fn rotate_wrapping(&self) -> Result<KeyId> {
        let _changing = self.changing();
        let place = self.state().wrapping.place.clone();
        let master = MasterKey::generate(place.clone())?;
        let new = master.key();
        let contents = self.state().contents.clone();
        save(&self.path, &contents, &[&self.state().wrapping.key, &new])?;
        if let Err(error) = master.save() {
            save(&self.path, &contents, &[&self.state().wrapping.key])?;
            return Err(error.context("failed to write the new key-encryption key; the one before is kept"));
        }
        save(&self.path, &contents, &[&new])?;
        let key_id = new.id;
        self.state_mut().wrapping = Wrapping { key: new, place };
        Ok(key_id)
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn changing(&self) -> std::sync::MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keys that live in a folder of a test.
    #[cfg(test)]
    pub fn for_tests(folder: &Path) -> Arc<Keyring> {
        let home = Home::open(folder).unwrap();
        let key_file = folder.join("test.key");
        let master = MasterKey::read(&key_file, None).or_else(|_| MasterKey::create(&key_file)).unwrap();
        Arc::new(Keyring::open(&home, &master, None, None, Found::Nothing).unwrap())
    }
}

impl Contents {
    fn new(old_secret: Option<[u8; 32]>, unsealed_accepted: bool) -> Result<Contents> {
        let secret = match old_secret {
            Some(secret) => secret,
            None => random()?,
        };
        let key = StoredKey::generate()?;
        Ok(Contents { secret: hex::encode(secret), unsealed_accepted, current: key.key_id, keys: vec![key] })
    }
}

impl StoredKey {
    fn generate() -> Result<StoredKey, SealError> {
        let key = Key::generate()?;
        Ok(StoredKey { key_id: key.id, secret: hex::encode(key.secret), created_ms: now_ms() })
    }

    fn key(&self) -> Result<(KeyId, Arc<Key>)> {
        Ok((self.key_id, Arc::new(Key { id: self.key_id, secret: decode_secret(&self.secret)? })))
    }
}

fn decode_secret(text: &str) -> Result<[u8; 32]> {
    let mut secret = [0; 32];
    hex::decode_to_slice(text, &mut secret).context("a secret in keys.json is not 64 hex digits")?;
    Ok(secret)
}

/// The contents, and whether the file is to be written again with the first key alone.
fn unwrap(path: &Path, file: &[u8], wrapping: &Wrapping, previous: Option<&MasterKey>) -> Result<(Contents, bool)> {
    let damaged = || format!("{} is damaged: restore it from a backup", path.display());
    let frame: Frame = serde_json::from_slice(file).with_context(damaged)?;
    if frame.format > FORMAT {
        bail!("{} has format {}, newer than this tessera's {FORMAT}", path.display(), frame.format);
    }
    let wrapped: Vec<Vec<u8>> =
        frame.wrapped.iter().map(|text| STANDARD.decode(text)).collect::<Result<_, _>>().with_context(damaged)?;
    let previous = previous.map(MasterKey::key);
    for key in [Some(&wrapping.key), previous.as_ref()].into_iter().flatten() {
        let Some(sealed) = wrapped.iter().find(|sealed| value_key(sealed) == Some(key.id)) else { continue };
        let json = key.open(FILE, sealed).with_context(damaged)?;
        let outdated = wrapped.len() > 1 || key.id != wrapping.key.id;
        return Ok((serde_json::from_slice(&json).with_context(damaged)?, outdated));
    }
    let wanted: Vec<String> = wrapped.iter().filter_map(|sealed| value_key(sealed)).map(|id| id.to_string()).collect();
    bail!(
        "{} holds the key {}, but {} is wrapped with the key {}: give the file that holds that one with --key-file, or \
         with --previous-key-file to go on with this one; nothing was changed",
        wrapping.place,
        wrapping.key.id,
        path.display(),
        wanted.join(" or ")
    );
}

/// Writes the file, wrapped once with each key; durable on return.
fn save(path: &Path, contents: &Contents, keys: &[&Key]) -> Result<()> {
    let json = serde_json::to_vec(contents).context("failed to write the keys as JSON")?;
    let wrap = |key: &&Key| Ok::<_, SealError>(STANDARD.encode(key.seal(FILE, &json)?));
    let frame = Frame {
        format: FORMAT,
        data_keys: contents.keys.iter().map(|key| key.key_id).collect(),
        wrapped: keys.iter().map(wrap).collect::<Result<_, _>>().context("failed to wrap the data keys")?,
    };
    write_private(path, &serde_json::to_vec_pretty(&frame).context("failed to write the keys as JSON")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        folder: tempfile::TempDir,
        home: Home,
    }

    impl Fixture {
        fn new() -> Fixture {
            let folder = tempfile::tempdir().unwrap();
            let home = Home::open(&folder.path().join("home")).unwrap();
            Fixture { folder, home }
        }

        fn master(&self, name: &str) -> MasterKey {
            let path = self.folder.path().join(name);
            if path.exists() { MasterKey::read(&path, None).unwrap() } else { MasterKey::create(&path).unwrap() }
        }

        fn open(&self, name: &str) -> Result<Keyring> {
            Keyring::open(&self.home, &self.master(name), None, None, Found::Sealed)
        }

        fn create(&self, name: &str, found: Found) -> Keyring {
            Keyring::open(&self.home, &self.master(name), None, Some([5; 32]), found).unwrap()
        }

        fn file(&self) -> Vec<u8> {
            fs::read(self.home.path(FILE)).unwrap()
        }
    }

    fn seal(ring: &Keyring, value: &[u8]) -> Vec<u8> {
        ring.with_current(|key| key.seal("a", value).unwrap())
    }

    #[test]
    fn a_rotation_reads_the_old_and_writes_the_new_until_it_is_finished_and_after_each_reopen() {
        let fixture = Fixture::new();
        let ring = fixture.create("key", Found::Nothing);
        assert_eq!(ring.secret().unwrap(), [5; 32]);
        let old = seal(&ring, b"old");
        let new_id = ring.begin_rotation().unwrap();
        let new = seal(&ring, b"new");
        assert_eq!(value_key(&new), Some(new_id));
        assert!(ring.is_stale(value_key(&old)) && !ring.is_stale(value_key(&new)));

        let reopened = fixture.open("key").unwrap();
        assert!(reopened.is_rotating());
        assert_eq!(reopened.open_value("a", old.clone()).unwrap(), b"old");
        assert_eq!(reopened.open_value("a", new.clone()).unwrap(), b"new");
        reopened.finish_rotation().unwrap();
        assert_eq!(reopened.open_value("a", old.clone()).unwrap(), b"old", "for who has read it already");

        let reopened = fixture.open("key").unwrap();
        assert!(!reopened.is_rotating());
        assert_eq!(reopened.secret().unwrap(), [5; 32]);
        assert_eq!(reopened.open_value("a", new).unwrap(), b"new");
        let error = reopened.open_value("a", old.clone()).unwrap_err();
        let key_id = value_key(&old).unwrap();
        assert!(matches!(error, SealError::MissingKey { key_id: named, .. } if named == key_id));
        assert!(error.to_string().contains(&key_id.to_string()) && error.to_string().contains("keys.json"));
    }

    #[test]
    fn a_stream_in_the_making_holds_its_key() {
        let fixture = Fixture::new();
        let ring = fixture.create("key", Found::Nothing);
        let lease = ring.current();
        assert!(!ring.old_keys_in_use());
        ring.begin_rotation().unwrap();
        assert!(ring.old_keys_in_use());
        drop(lease);
        assert!(!ring.old_keys_in_use());
    }

    #[test]
    fn what_is_not_sealed_is_read_in_an_old_home_until_its_first_rotation_ends() {
        let fixture = Fixture::new();
        let ring = fixture.create("key", Found::Unsealed);
        assert_eq!(ring.open_value("a", b"{}".to_vec()).unwrap(), b"{}");
        ring.begin_rotation().unwrap();
        assert_eq!(fixture.open("key").unwrap().open_value("a", b"{}".to_vec()).unwrap(), b"{}");
        ring.finish_rotation().unwrap();
        for ring in [ring, fixture.open("key").unwrap()] {
            assert!(matches!(ring.open_value("a", b"{}".to_vec()), Err(SealError::Unsealed { .. })));
        }
        let other = Fixture::new().create("key", Found::Nothing);
        assert!(matches!(other.open_value("a", b"{}".to_vec()), Err(SealError::Unsealed { .. })));
    }

    #[test]
    fn a_wrong_key_is_refused_by_name_and_changes_nothing() {
        let fixture = Fixture::new();
        let ring = fixture.create("key", Found::Nothing);
        let before = fixture.file();
        let error = format!("{:#}", fixture.open("other").err().unwrap());
        for part in ["other", "keys.json", "--key-file", &ring.list().key_encryption_key.key_id.to_string()] {
            assert!(error.contains(part), "'{part}' is not in {error}");
        }
        assert_eq!(fixture.file(), before);

        fs::remove_file(fixture.home.path(FILE)).unwrap();
        let error = format!("{:#}", fixture.open("key").err().unwrap());
        assert!(error.contains("keys.json is missing"), "{error}");
        assert!(!fixture.home.path(FILE).exists());
    }

    #[test]
    fn a_damaged_file_is_refused_wherever_the_damage_is() {
        let fixture = Fixture::new();
        fixture.create("key", Found::Nothing);
        let text = String::from_utf8(fixture.file()).unwrap();
        let start = text.find("\"wrapped\"").unwrap() + "\"wrapped\": [\n    \"".len();
        for at in start..text.len() {
            let mut damaged = text.clone().into_bytes();
            damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
            fs::write(fixture.home.path(FILE), &damaged).unwrap();
            assert!(fixture.open("key").is_err(), "byte {at}");
            fs::write(fixture.home.path(FILE), &damaged[..at]).unwrap();
            assert!(fixture.open("key").is_err(), "cut to {at}");
        }
    }

    #[test]
    fn another_key_encryption_key_opens_the_same_data_keys() {
        let fixture = Fixture::new();
        let ring = fixture.create("key", Found::Nothing);
        let (sealed, before) = (seal(&ring, b"x"), ring.list().key_encryption_key.key_id);

        // Drawn by the server, into the same file.
        let old_file = fs::read(fixture.folder.path().join("key")).unwrap();
        let after = ring.rotate_wrapping().unwrap();
        assert_ne!(after, before);
        let reopened = fixture.open("key").unwrap();
        assert_eq!(reopened.open_value("a", sealed.clone()).unwrap(), b"x");
        assert_eq!(reopened.list().key_encryption_key.key_id, after);
        fs::write(fixture.folder.path().join("stale"), old_file).unwrap();
        assert!(fixture.open("stale").is_err());

        // Brought by a person, in another file.
        let (new, old) = (fixture.master("new"), fixture.master("key"));
        Keyring::open(&fixture.home, &new, Some(&old), None, Found::Sealed).unwrap();
        assert!(fixture.open("key").is_err());
        assert_eq!(fixture.open("new").unwrap().open_value("a", sealed).unwrap(), b"x");
    }

    #[test]
    fn a_crash_between_the_two_files_leaves_a_key_that_opens() {
        let fixture = Fixture::new();
        let ring = fixture.create("key", Found::Nothing);
        let sealed = seal(&ring, b"x");
        let (old, new) = (fixture.master("key").key(), fixture.master("new").key());
        for name in ["new", "key"] {
            save(&ring.path, &ring.state().contents, &[&old, &new]).unwrap();
            assert_eq!(fixture.open(name).unwrap().open_value("a", sealed.clone()).unwrap(), b"x");
        }
        assert!(fixture.open("new").is_err(), "the open before has left the key that it came with");
    }
}
