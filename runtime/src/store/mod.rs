//! Durable state: a small key-value store shaped like an etcd transaction, and files by digest beside it.
//!
//! A [`Transaction`] is a list of conditions on revisions and a list of operations; all of it happens or none. What
//! [`StateStore::commit`] acknowledges survives `kill -9` and a power loss. A value holds at most [`MAX_VALUE_BYTES`];
//! anything larger is a file in [`blobs`], written first and then named by its digest in a value.
//!
//! - [`sled`]: the embedded store. One writer, group commit, `fdatasync` before the acknowledgement.
//! - [`sealed`]: over another store, so that it sees no values in plain.
//! - [`memory`]: the same contract without durability: the model in the tests, and a fake for other modules' tests.
//! - `reader`: the thread that reads for it.
//! - [`documents`]: JSON records of any size up to 64 KB, over several values when they must.
//! - [`blobs`]: content-addressed files.
//!
//! Invariants: only [`sled`] knows the sled crate; nothing here is on the path of a request to an endpoint that is awake
//! (invocations read the catalog in memory); no reader ever sees a write that is not durable yet.

pub mod blobs;
pub mod documents;
pub mod memory;
mod reader;
pub mod sealed;
pub mod sled;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod crash;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::broadcast;

use crate::seal::OVERHEAD_BYTES;
use crate::seal::keyring::Keyring;

/// Longest value that a caller writes, in bytes.
pub const MAX_VALUE_BYTES: usize = 4000;

/// Longest value that a store below [`sealed`] takes, in bytes. With its frame it stays below 4 KiB, because sled writes
/// what is larger to files that it never syncs.
pub const MAX_STORED_BYTES: usize = MAX_VALUE_BYTES + OVERHEAD_BYTES;

/// Longest key in bytes.
pub const MAX_KEY_BYTES: usize = 512;

/// Most conditions, and most operations, in one transaction: etcd's default, so that a cluster accepts the same.
pub const MAX_TRANSACTION_LEN: usize = 128;

/// Changes kept for watchers that are behind, over all prefixes; at most about 5 MB. A watcher further behind is told
/// so ([`WatchError::Lagged`]).
pub const WATCH_CHANGES_MAX: usize = 1024;

/// Numbers the transactions that changed something, from 1. All keys that one transaction changed carry its revision.
/// As a condition, 0 stands for "the key is absent".
pub type Revision = u64;

/// The answer to [`StateStore::commit`]: the transaction's revision once it is durable.
pub type CommitFuture = Pin<Box<dyn Future<Output = Result<Revision, StoreError>> + Send>>;

/// A transactional key-value store with etcd's semantics.
///
/// `get` and `scan` block on disk for what is not cached: call them at start and off the event loops.
pub trait StateStore: Send + Sync {
    /// The entry of `key` as of the last durable transaction, or none.
    ///
    /// # Errors
    /// `Corrupt` when the stored bytes fail their checksum; `Unavailable` when they cannot be read.
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// At most `limit` entries whose key starts with `prefix`, in the order of their keys' bytes, from the first key
    /// after `after`. Fewer than `limit` means that there are no more. One call sees one moment; two pages may not.
    ///
    /// # Errors
    /// `Corrupt` with the damaged key, also when it is not the first of the page: nothing is skipped silently. A caller
    /// that wants the rest scans up to that key and then `after` it. `Unavailable` as in [`StateStore::get`].
    fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError>;

    /// Submits the transaction, at once and in call order; the future waits for the outcome. Dropping the future does
    /// not take the transaction back. `Ok` means durable. The revision is new if the transaction changed something,
    /// otherwise (no operations, or deletes of absent keys) the current one.
    ///
    /// # Errors
    /// `Conflict`: a condition does not hold; nothing changed. `TooLarge`, `TooMany`: refused before anything is
    /// written. `Corrupt`: a key in the conditions is damaged; nothing changed. `Unavailable`: the queue is full
    /// (nothing changed and [`StateStore::health`] is `Ok`), or the store has failed (then the outcome is known only
    /// after a restart: the transaction may or may not be there, but never a part of it).
    fn commit(&self, transaction: Transaction) -> CommitFuture;

    /// The changes from now on to keys that start with `prefix`, each after it is durable and readable.
    ///
    /// To follow a prefix: first watch, then scan, then apply each change whose revision is above the entry's.
    fn watch(&self, prefix: &str) -> Watch;

    /// Whether commits are still possible. An error is for good: the store stays readable, and the process must restart
    /// to write again (after a failed fsync the kernel's pages cannot be trusted, so there is no retry).
    ///
    /// # Errors
    /// `Unavailable` with the first failure as its source.
    fn health(&self) -> Result<(), StoreError>;
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key, at most [`MAX_KEY_BYTES`].
    pub key: String,
    /// The value, at most [`MAX_VALUE_BYTES`].
    pub value: Vec<u8>,
    /// The transaction that last wrote this key.
    pub revision: Revision,
}

/// Conditions and operations that happen together or not at all. Operations apply in order; the last one on a key
/// counts. Every condition is checked before any operation applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// What must hold; at most [`MAX_TRANSACTION_LEN`].
    pub conditions: Vec<Condition>,
    /// What then changes; at most [`MAX_TRANSACTION_LEN`].
    pub operations: Vec<Operation>,
}

/// Holds while `key` was last written at `revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The key to look at.
    pub key: String,
    /// The revision it must have; 0: it must be absent.
    pub revision: Revision,
}

/// One change to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes the value, whether the key is there or not.
    Put {
        /// The key, at most [`MAX_KEY_BYTES`].
        key: String,
        /// The value, at most [`MAX_VALUE_BYTES`].
        value: Vec<u8>,
    },
    /// Removes the key; an absent key is no error.
    Delete {
        /// The key.
        key: String,
    },
}

impl Transaction {
    /// A transaction that does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requires that `key` was last written at `revision`.
    #[must_use]
    pub fn require(mut self, key: impl Into<String>, revision: Revision) -> Self {
        self.conditions.push(Condition { key: key.into(), revision });
        self
    }

    /// Requires that `key` is absent.
    #[must_use]
    pub fn require_absent(self, key: impl Into<String>) -> Self {
        self.require(key, 0)
    }

    /// Writes `value` at `key`.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.operations.push(Operation::Put { key: key.into(), value: value.into() });
        self
    }

    /// Removes `key`.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.operations.push(Operation::Delete { key: key.into() });
        self
    }

    /// Refuses a transaction that is over a limit, before any of it is queued.
    fn check_limits(&self, value_bytes_max: usize) -> Result<(), StoreError> {
        let count = self.conditions.len().max(self.operations.len());
        if count > MAX_TRANSACTION_LEN {
            return Err(StoreError::TooMany { count, max: MAX_TRANSACTION_LEN });
        }
        let condition_sizes = self.conditions.iter().map(|condition| (&condition.key, 0));
        let operation_sizes = self.operations.iter().map(|operation| match operation {
            Operation::Put { key, value } => (key, value.len()),
            Operation::Delete { key } => (key, 0),
        });
        for (key, value_bytes) in condition_sizes.chain(operation_sizes) {
            if key.len() > MAX_KEY_BYTES {
                return Err(StoreError::TooLarge { key: key.clone(), bytes: key.len(), max: MAX_KEY_BYTES });
            }
            if value_bytes > value_bytes_max {
                return Err(StoreError::TooLarge { key: key.clone(), bytes: value_bytes, max: value_bytes_max });
            }
        }
        Ok(())
    }

    /// What is left of the operations when the last one on each key counts: the new value, or none for a delete.
    fn into_effects(self) -> BTreeMap<String, Option<Vec<u8>>> {
        let effect = |operation| match operation {
            Operation::Put { key, value } => (key, Some(value)),
            Operation::Delete { key } => (key, None),
        };
        self.operations.into_iter().map(effect).collect()
    }
}

/// Why the store refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A condition does not hold: read again, decide again.
    #[error("{key} was changed by another transaction")]
    Conflict {
        /// The key of the first condition that failed.
        key: String,
    },
    /// A key or a value is over its limit.
    #[error("{key}: {bytes} bytes are more than the allowed {max}")]
    TooLarge {
        /// The key that is too long, or whose value is.
        key: String,
        /// What was given, in bytes.
        bytes: usize,
        /// [`MAX_KEY_BYTES`] or [`MAX_VALUE_BYTES`].
        max: usize,
    },
    /// The transaction has too many conditions or operations.
    #[error("a transaction of {count} parts has more than the allowed {max}")]
    TooMany {
        /// Conditions or operations, whichever are more.
        count: usize,
        /// [`MAX_TRANSACTION_LEN`].
        max: usize,
    },
    /// The store cannot answer: now if [`StateStore::health`] is `Ok`, otherwise until a restart.
    #[error("the state store is unavailable")]
    Unavailable(#[source] Failure),
    /// The stored bytes are not what was written. Putting or deleting the key without a condition repairs it.
    #[error("{key} is damaged in the state store")]
    Corrupt {
        /// The damaged key.
        key: String,
    },
}

/// The cause of [`StoreError::Unavailable`]; shared, because every later commit reports the first failure.
pub type Failure = Arc<dyn Error + Send + Sync>;

/// One key as a transaction left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// The new value; none when the key was deleted.
    pub value: Option<Vec<u8>>,
    /// The transaction that did it.
    pub revision: Revision,
}

/// Changes to one prefix, in the order of their revisions. It holds no entries of its own, and keeps no store alive.
pub struct Watch {
    prefix: String,
    changes: broadcast::Receiver<Arc<Change>>,
    /// Opens the values of a store that seals them.
    keys: Option<Arc<Keyring>>,
}

/// Why there is no next change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// More than [`WATCH_CHANGES_MAX`] changes came while the watcher was away, and some are lost to it. The watch goes
    /// on with those it still has: scan the prefix again, then continue.
    #[error("the watch lagged and lost changes")]
    Lagged,
    /// The store was closed.
    #[error("the state store was closed")]
    Closed,
}

impl Watch {
    /// Waits for the next change. It may be cancelled without losing one. A failed store stays silent: see
    /// [`StateStore::health`].
    ///
    /// # Errors
    /// `Lagged` or `Closed`.
    pub async fn next(&mut self) -> Result<Change, WatchError> {
        loop {
            match self.changes.recv().await {
                Ok(change) if change.key.starts_with(&self.prefix) => return self.open(Change::clone(&change)),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => return Err(WatchError::Lagged),
                Err(broadcast::error::RecvError::Closed) => return Err(WatchError::Closed),
            }
        }
    }
}

impl Watch {
    /// A value that does not open is one that a scan tells more of.
    fn open(&self, change: Change) -> Result<Change, WatchError> {
        let (Some(keys), Some(value)) = (&self.keys, change.value.clone()) else { return Ok(change) };
        let value = sealed::open_value(keys, &change.key, value).map_err(|_| WatchError::Lagged)?;
        Ok(Change { value: Some(value), ..change })
    }
}

/// Creates `dir` and its missing parents, for the owner only, so that its name survives a power loss. Blocks.
fn create_dir_durably(dir: &Path) -> io::Result<()> {
    let parent = parent_of(dir);
    if !dir.is_dir() {
        create_dir_durably(parent)?;
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    // Also when it was there: who created it may be about to do this, or have died before.
    sync(parent)
}

/// Makes a file's content, or the names in a directory, durable. Blocks.
fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The directory that holds `path`; for a bare relative name that is the current one.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}
