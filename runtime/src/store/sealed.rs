//! A [`StateStore`] whose values are sealed before another store gets them. Keys stay readable: they order the scans.
//!
//! A value is sealed under its key, so one that lies under another key does not open. What a caller may write is
//! [`MAX_VALUE_BYTES`] as before; the store below takes [`MAX_STORED_BYTES`].

use std::sync::Arc;

use tokio::runtime::Handle;

use super::{CommitFuture, Entry, MAX_VALUE_BYTES, Operation, StateStore, StoreError, Transaction, Watch};
use crate::seal::keyring::{Found, Keyring};
use crate::seal::{SealError, value_key};

/// Records that a rotation seals at a time: they share a sync of the disk, and leave room in the queue.
const RESEAL_PAGE: usize = 64;

/// How often a rotation offers a record to a store whose queue is full, and how long it waits before.
const RESEAL_TRIES: u32 = 100;
const RESEAL_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// Another store, sealed.
pub struct SealedStore {
    inner: Arc<dyn StateStore>,
    keys: Arc<Keyring>,
}

/// What a store holds, by its first records: whether they are sealed.
///
/// # Errors
/// As [`StateStore::scan`].
pub fn look(store: &dyn StateStore) -> Result<Found, StoreError> {
    let entries = store.scan("", None, RESEAL_PAGE)?;
    Ok(match entries.iter().any(|entry| value_key(&entry.value).is_some()) {
        true => Found::Sealed,
        false if entries.is_empty() => Found::Nothing,
        false => Found::Unsealed,
    })
}

impl SealedStore {
    /// Seals what `inner` holds with these keys.
    pub fn new(inner: Arc<dyn StateStore>, keys: Arc<Keyring>) -> SealedStore {
        SealedStore { inner, keys }
    }

    fn open(&self, entry: Entry) -> Result<Entry, StoreError> {
        let value = open_value(&self.keys, &entry.key, entry.value)?;
        Ok(Entry { value, ..entry })
    }

    /// Seals each record that is not sealed with the current key, and tells what happened to each. A record that
    /// somebody else writes meanwhile is theirs: it is sealed with the current key then. Blocks; needs `runtime` to wait.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn reseal(&self, runtime: &Handle, mut done: impl FnMut(Result<(), StoreError>)) -> Result<(), StoreError> {
        // Everything that was sealed with the key before is in the queue; behind it, all of it is readable.
        runtime.block_on(self.retry(Transaction::new))?;
        let mut after: Option<String> = None;
        loop {
            let page = self.inner.scan("", after.as_deref(), RESEAL_PAGE)?;
            let last = page.len() < RESEAL_PAGE;
            after = page.last().map(|entry| entry.key.clone());
            let mut stale = Vec::new();
            for entry in page.into_iter().filter(|entry| self.keys.is_stale(value_key(&entry.value))) {
                match self.open(entry) {
                    Ok(entry) => stale.push(entry),
                    Err(error) => done(Err(error)),
                }
            }
            let writes = stale.iter().map(|entry| {
                let rewrite =
                    || Transaction::new().require(&entry.key, entry.revision).put(&entry.key, entry.value.clone());
                self.retry(rewrite)
            });
            for outcome in runtime.block_on(futures_util::future::join_all(writes)) {
                match outcome {
                    Ok(()) | Err(StoreError::Conflict { .. }) => done(Ok(())),
                    Err(error) => return Err(error),
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    /// Commits; while the queue is full, again.
    async fn retry(&self, make: impl Fn() -> Transaction) -> Result<(), StoreError> {
        let mut tries = 0;
        loop {
            match self.commit(make()).await {
                Err(StoreError::Unavailable(_)) if tries < RESEAL_TRIES && self.health().is_ok() => {
                    tries += 1;
                    tokio::time::sleep(RESEAL_PAUSE).await;
                }
                outcome => return outcome.map(drop),
            }
        }
    }
}

impl StateStore for SealedStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.inner.get(key)?.map(|entry| self.open(entry)).transpose()
    }

    fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.inner.scan(prefix, after, limit)?.into_iter().map(|entry| self.open(entry)).collect()
    }

    fn commit(&self, transaction: Transaction) -> CommitFuture {
        if let Err(error) = transaction.check_limits(MAX_VALUE_BYTES) {
            return Box::pin(std::future::ready(Err(error)));
        }
        // Sealed and submitted under one key: see `with_current`.
        self.keys.with_current(|current| {
            let Transaction { conditions, operations } = transaction;
            let seal = |operation| match operation {
                Operation::Put { key, value } => {
                    let value = current.seal(&name(&key), &value)?;
                    Ok(Operation::Put { key, value })
                }
                delete => Ok(delete),
            };
            match operations.into_iter().map(seal).collect::<Result<_, SealError>>() {
                Ok(operations) => self.inner.commit(Transaction { conditions, operations }),
                Err(error) => Box::pin(std::future::ready(Err(StoreError::Unavailable(Arc::new(error))))),
            }
        })
    }

    fn watch(&self, prefix: &str) -> Watch {
        Watch { keys: Some(Arc::clone(&self.keys)), ..self.inner.watch(prefix) }
    }

    fn health(&self) -> Result<(), StoreError> {
        self.inner.health()
    }
}

/// The value that was sealed under a record's key.
pub(super) fn open_value(keys: &Keyring, key: &str, value: Vec<u8>) -> Result<Vec<u8>, StoreError> {
    keys.open_value(&name(key), value).map_err(|error| match error {
        SealError::Damaged { .. } | SealError::Unsealed { .. } => {
            tracing::error!("{error}");
            StoreError::Corrupt { key: key.to_owned() }
        }
        other => StoreError::Unavailable(Arc::new(other)),
    })
}

/// The name that a record's value is sealed under; no file has one like it.
fn name(key: &str) -> String {
    format!("record {key}")
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryStore;
    use super::*;

    struct Fixture {
        raw: Arc<MemoryStore>,
        store: SealedStore,
        keys: Arc<Keyring>,
        runtime: tokio::runtime::Runtime,
        _folder: tempfile::TempDir,
    }

    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keyring::for_tests(folder.path());
        let raw = Arc::new(MemoryStore::new());
        let store = SealedStore::new(raw.clone(), keys.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        Fixture { raw, store, keys, runtime, _folder: folder }
    }

    impl Fixture {
        fn put(&self, store: &dyn StateStore, key: &str, value: &[u8]) {
            self.runtime.block_on(store.commit(Transaction::new().put(key, value))).unwrap();
        }
    }

    #[test]
    fn the_store_below_sees_keys_and_no_values() {
        let it = fixture();
        assert_eq!(look(&*it.raw).unwrap(), Found::Nothing);
        it.put(&it.store, "a", b"a secret");
        let below = it.raw.get("a").unwrap().unwrap();
        assert!(!below.value.windows(6).any(|part| part == b"secret"));
        assert_eq!(look(&*it.raw).unwrap(), Found::Sealed);
        assert_eq!(it.store.get("a").unwrap().unwrap().value, b"a secret");
    }

    #[test]
    fn a_value_that_was_damaged_moved_or_never_sealed_is_corrupt_by_name() {
        let it = fixture();
        it.put(&it.store, "a", b"1");
        it.put(&it.store, "b", b"2");
        let sealed = it.raw.get("a").unwrap().unwrap().value;
        for bad in [sealed.as_slice(), &sealed[..20], b"\x01{}", b""] {
            it.put(&*it.raw, "b", bad);
            assert!(matches!(it.store.get("b"), Err(StoreError::Corrupt { key }) if key == "b"));
            assert!(matches!(it.store.scan("", None, 9), Err(StoreError::Corrupt { key }) if key == "b"));
        }
        it.put(&it.store, "b", b"repaired");
        assert_eq!(it.store.scan("", None, 9).unwrap().len(), 2);
    }

    #[test]
    fn a_rotation_seals_every_record_anew_and_changes_none() {
        let it = fixture();
        let keys: Vec<String> = (0..3 * RESEAL_PAGE).map(|number| format!("k/{number:04}")).collect();
        keys.iter().for_each(|key| it.put(&it.store, key, &vec![7; MAX_VALUE_BYTES]));
        let before = it.store.scan("", None, 1000).unwrap();
        let old = it.keys.current().id;
        it.keys.begin_rotation().unwrap();
        let mut resealed = 0;
        it.store.reseal(it.runtime.handle(), |outcome| resealed += u64::from(outcome.is_ok())).unwrap();
        assert_eq!(resealed, keys.len() as u64);
        assert!(it.raw.scan("", None, 1000).unwrap().iter().all(|entry| value_key(&entry.value) != Some(old)));
        let after = it.store.scan("", None, 1000).unwrap();
        assert!(before.iter().zip(&after).all(|(a, b)| (&a.key, &a.value) == (&b.key, &b.value)));
        it.store.reseal(it.runtime.handle(), |_| panic!("there is nothing left to do")).unwrap();
    }

    #[test]
    fn a_record_whose_key_is_gone_says_which() {
        let (it, other) = (fixture(), fixture());
        it.put(&it.store, "a", b"1");
        let store = SealedStore::new(it.raw.clone(), other.keys);
        let Err(StoreError::Unavailable(cause)) = store.get("a") else { panic!("it opened") };
        assert!(cause.to_string().contains(&it.keys.current().id.to_string()), "{cause}");
    }
}
