//! The store's contract in its plainest form, in memory: what the sled store is checked against, and a fake for tests.
//! Nothing is durable; nothing ever fails but the caller's own mistakes.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::{
    Change, CommitFuture, Entry, MAX_STORED_BYTES, Revision, StateStore, StoreError, Transaction, WATCH_CHANGES_MAX,
    Watch,
};

/// A [`StateStore`] that forgets everything when it is dropped.
pub struct MemoryStore {
    state: Mutex<State>,
    changes: broadcast::Sender<Arc<Change>>,
}

#[derive(Default)]
struct State {
    revision: Revision,
    entries: BTreeMap<String, Entry>,
}

impl MemoryStore {
    /// An empty store at revision 0.
    pub fn new() -> Self {
        Self { state: Mutex::default(), changes: broadcast::Sender::new(WATCH_CHANGES_MAX) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        transaction.check_limits(MAX_STORED_BYTES)?;
        let mut state = self.state();
        for condition in &transaction.conditions {
            if state.entries.get(&condition.key).map_or(0, |entry| entry.revision) != condition.revision {
                return Err(StoreError::Conflict { key: condition.key.clone() });
            }
        }
        let revision = state.revision + 1;
        for (key, value) in transaction.into_effects() {
            let changed = match value.clone() {
                Some(value) => {
                    state.entries.insert(key.clone(), Entry { key: key.clone(), value, revision });
                    true
                }
                None => state.entries.remove(&key).is_some(),
            };
            if changed {
                state.revision = revision;
                // An error only says that nobody watches. Sent under the lock, so that changes come in order.
                let _ = self.changes.send(Arc::new(Change { key, value, revision }));
            }
        }
        Ok(state.revision)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl StateStore for MemoryStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.state().entries.get(key).cloned())
    }

    fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.state();
        let entries = state.entries.range::<str, _>((after, Bound::Unbounded)).map(|(_, entry)| entry);
        Ok(entries.filter(|entry| entry.key.starts_with(prefix)).take(limit).cloned().collect())
    }

    fn commit(&self, transaction: Transaction) -> CommitFuture {
        Box::pin(std::future::ready(self.apply(transaction)))
    }

    fn watch(&self, prefix: &str) -> Watch {
        Watch { prefix: prefix.to_owned(), changes: self.changes.subscribe(), keys: None }
    }

    fn health(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
