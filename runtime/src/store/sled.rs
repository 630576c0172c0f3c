//! The embedded [`StateStore`]: one sled tree, one writer thread.
//!
//! ```text
//! commit ─ bounded queue ─► writer thread, per group of ≤ 256 transactions:
//!                             decide each in order (conditions see the group's earlier transactions)
//!                             → one atomic sled batch (records + revision) → flush → fdatasync of the db file
//!                             → visible to readers → changes to watchers → answers to all callers
//! ```
//!
//! sled's `flush` ends in `sync_file_range`, which promises nothing on power loss, and sled swallows fsync errors. So
//! the writer syncs the database through a file handle of its own, which gets its own report of write-back errors.
//! Any error ends the writer for good: reads go on with the last durable state, commits fail, and the process restarts.
//!
//! Layout: key `r<key>` holds `[version u8][revision u64 LE][crc32c u32 LE][value]`, the checksum over everything else
//! and the key. Key `m/revision` holds the last revision in the same frame, with no value.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sled::IVec;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::reader::Reader;
use super::{
    Change, CommitFuture, Entry, Failure, MAX_STORED_BYTES, Revision, StateStore, StoreError, Transaction,
    WATCH_CHANGES_MAX, Watch, create_dir_durably, sync,
};

/// Transactions waiting for the writer before the next is refused: four groups, so well under a second of waiting even
/// where one fdatasync takes 50 ms.
pub const QUEUE_LEN_MAX: usize = 1024;

/// Transactions that share one fdatasync.
const GROUP_LEN_MAX: usize = 256;

/// Longest time spent on deciding a group before it is written. The writer never waits for more: what comes during one
/// group's fdatasync forms the next group.
const GROUP_FILL_MAX: Duration = Duration::from_millis(2);

/// How long the directory's lock is waited for. A server that was killed while it spawned a worker leaves the lock with
/// that process until its exec, which on a busy machine is not at once.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long a close waits for sled to let go of its files, which takes about a millisecond, and how often it looks.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(5);
const CLOSE_POLL: Duration = Duration::from_millis(1);

/// sled's page cache, as small as it can be: one leaf in each of its 256 parts, 2 MB. What it lacks is in the kernel's.
const CACHE_BYTES: u64 = 256 << 10;

/// Accesses to a part of its cache after which sled looks whether the part is too large. Without help the cache would grow
/// to all that was ever read, as long as each record is read seldom; thousands of idle endpoints are. See
/// [`Records::settle`]. Read in the source of the very version that Cargo.toml names.
const SLED_ACCESSES: usize = 64;

/// Records of a scan from one access to the next that helps: fewer than a leaf has, of which none is left out.
const SETTLE_EVERY: usize = 8;

/// sled's background thread: what we rely on is garbage collection, not its flushing.
const SLED_FLUSH_EVERY_MS: u64 = 500;

/// The sled-backed store of one directory, which it owns while it is open. Dropping it waits until the queued
/// transactions are durable and answered, then closes sled: it blocks for some milliseconds.
pub struct SledStore {
    // Fields drop in this order: closing the queue ends the writer, then it is joined and the reader, which closes sled, and
    // only then may another store have the directory.
    requests: mpsc::Sender<Request>,
    _writer: WriterThread,
    reader: Reader<Records>,
    changes: broadcast::Sender<Arc<Change>>,
    failure: Arc<OnceLock<Failure>>,
    _lock: DirLock,
}

/// One transaction on its way to the writer.
struct Request {
    transaction: Transaction,
    done: oneshot::Sender<Result<Revision, StoreError>>,
}

/// Makes the database file durable. A parameter, so that a test can delay it and make it fail.
type SyncFile = Box<dyn FnMut() -> io::Result<()> + Send>;

/// Why a store directory did not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another store, of this or another process, has the directory.
    #[error("lock the state directory {}: is another tessera serving from it?", dir.display())]
    Locked {
        /// The directory asked for.
        dir: PathBuf,
    },
    /// The file system refused.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// sled could not recover its files: damaged, or the disk is full.
    #[error("open the state store in {}", dir.display())]
    Sled {
        /// The directory asked for.
        dir: PathBuf,
        /// sled's reason.
        source: sled::Error,
    },
    /// There are records, but no valid revision beside them: damaged, or not a state store.
    #[error("read the revision of the state store in {}: it is damaged or not a tessera store", dir.display())]
    NoRevision {
        /// The directory asked for.
        dir: PathBuf,
    },
    /// The directory was written by a newer tessera.
    #[error("read the state store in {}: it has format {format}, newer than this tessera's {FORMAT}", dir.display())]
    NewerFormat {
        /// The directory asked for.
        dir: PathBuf,
        /// Its format version.
        format: u8,
    },
}

impl SledStore {
    /// Opens the store in `dir`, or creates it (directories with mode 0700). Recovery takes some hundred
    /// milliseconds per 100 MB. Blocks.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::open_with(dir, |sync| sync)
    }

    fn open_with(dir: &Path, wrap_sync: impl FnOnce(SyncFile) -> SyncFile) -> Result<Self, OpenError> {
        let io_error = |action, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { action, path, source }
        };
        create_dir_durably(dir).map_err(io_error("create the state directory", dir))?;
        let lock = DirLock::take(dir)?;
        let db = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(SLED_FLUSH_EVERY_MS))
            .mode(sled::Mode::LowSpace)
            .open()
            .map_err(|source| OpenError::Sled { dir: dir.to_owned(), source })?;

        // sled syncs none of these when it creates them. At every open, because the first may have died before this; and
        // what a killed process left in the page cache becomes durable here, before anyone reads it.
        let db_file = dir.join("db");
        let shadow = File::open(&db_file).map_err(io_error("open", &db_file))?;
        for path in [&db_file, &dir.join("conf"), dir] {
            sync(path).map_err(io_error("sync", path))?;
        }

        let revision = last_revision(&db, dir)?;
        let records = Arc::new(Records { db, in_flight: RwLock::default() });
        let changes = broadcast::Sender::new(WATCH_CHANGES_MAX);
        let failure = Arc::new(OnceLock::new());
        let (requests, queue) = mpsc::channel(QUEUE_LEN_MAX);
        let writer = Writer {
            records: Arc::clone(&records),
            sync: wrap_sync(Box::new(move || shadow.sync_data())),
            revision,
            changes: changes.clone(),
            failure: Arc::clone(&failure),
        };
        let thread = std::thread::Builder::new().name("store-writer".to_owned()).spawn(move || writer.run(queue));
        let thread = thread.map_err(io_error("start the writer thread for", dir))?;
        let writer = WriterThread(Some(thread));
        let reader = Reader::start(records).map_err(io_error("start the reader thread for", dir))?;
        Ok(Self { requests, _writer: writer, reader, changes, failure, _lock: lock })
    }
}

/// The directory is this store's until this is dropped. sled has a lock too, on its `db` file, but its error cannot be
/// told from other input/output errors.
struct DirLock {
    file: File,
    db_file: PathBuf,
}

impl DirLock {
    fn take(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join("lock");
        let deadline = Instant::now() + LOCK_WAIT_MAX;
        let lock = || File::create(&path).map_err(TryLockError::Error).and_then(|file| file.try_lock().map(|()| file));
        let mut locked = lock();
        while matches!(locked, Err(TryLockError::WouldBlock)) && Instant::now() < deadline {
            std::thread::sleep(CLOSE_POLL);
            locked = lock();
        }
        match locked {
            Ok(file) => Ok(Self { file, db_file: dir.join("db") }),
            Err(TryLockError::WouldBlock) => Err(OpenError::Locked { dir: dir.to_owned() }),
            Err(TryLockError::Error(source)) => Err(OpenError::Io { action: "lock", path, source }),
        }
    }
}

impl Drop for DirLock {
    /// Gives the directory back when sled has: its pool threads hold the file for a moment after the last `Db` is gone.
    fn drop(&mut self) {
        let deadline = Instant::now() + CLOSE_WAIT_MAX;
        let held_by_sled = || {
            File::open(&self.db_file).is_ok_and(|db| {
                let held = matches!(db.try_lock(), Err(TryLockError::WouldBlock));
                let _ = db.unlock();
                held
            })
        };
        while held_by_sled() && Instant::now() < deadline {
            std::thread::sleep(CLOSE_POLL);
        }
        // Here and above, not left to the closing of the file: a process that is being spawned has a copy of it until its exec.
        let _ = self.file.unlock();
    }
}

/// The revision that the last batch left, 0 for a new store.
fn last_revision(db: &sled::Db, dir: &Path) -> Result<Revision, OpenError> {
    let dir = dir.to_owned();
    match db.get(REVISION_KEY) {
        Err(source) => Err(OpenError::Sled { dir, source }),
        Ok(None) if db.is_empty() => Ok(0),
        Ok(None) => Err(OpenError::NoRevision { dir }),
        Ok(Some(frame)) => match (frame.first(), decode("", &frame)) {
            (Some(&format), _) if format > FORMAT => Err(OpenError::NewerFormat { dir, format }),
            (_, Ok((revision, _))) => Ok(revision),
            (_, Err(_)) => Err(OpenError::NoRevision { dir }),
        },
    }
}

impl StateStore for SledStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.reader.read(move |records| records.get(key)).ok_or(Problem::Reader)?
    }

    fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.reader.read(move |records| records.scan(&prefix, after.as_deref(), limit)).ok_or(Problem::Reader)?
    }

    fn commit(&self, transaction: Transaction) -> CommitFuture {
        if let Err(error) = transaction.check_limits(MAX_STORED_BYTES) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let (done, outcome) = oneshot::channel();
        if let Err(mpsc::error::TrySendError::Full(_)) = self.requests.try_send(Request { transaction, done }) {
            return Box::pin(std::future::ready(Err(Problem::QueueFull.into())));
        }
        // A stopped writer has dropped `done`, now or later, which ends the wait below. The future holds only the
        // failure: holding the queue or the records would keep the store from closing.
        let failure = Arc::clone(&self.failure);
        Box::pin(async move { outcome.await.unwrap_or_else(|_| Err(why_stopped(&failure))) })
    }

    fn watch(&self, prefix: &str) -> Watch {
        Watch { prefix: prefix.to_owned(), changes: self.changes.subscribe(), keys: None }
    }

    fn health(&self) -> Result<(), StoreError> {
        if self.failure.get().is_some() || self.requests.is_closed() { Err(why_stopped(&self.failure)) } else { Ok(()) }
    }
}

/// sled's tree as readers see it.
struct Records {
    db: sled::Db,
    /// For each key of the group that is being written: its frame before the group. sled shows a batch before it is
    /// durable; readers must not act on what a power loss could take back, so they look here first. After a failure it
    /// stays, and readers stay at the last durable state.
    in_flight: RwLock<InFlight>,
}

type InFlight = BTreeMap<String, Option<IVec>>;

impl Records {
    fn in_flight(&self) -> RwLockReadGuard<'_, InFlight> {
        self.in_flight.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_in_flight(&self, before: InFlight) {
        *self.in_flight.write().unwrap_or_else(PoisonError::into_inner) = before;
    }

    fn get(&self, key: String) -> Result<Option<Entry>, StoreError> {
        let in_flight = self.in_flight();
        let frame = match in_flight.get(&key) {
            Some(before) => before.clone(),
            None => self.read(&key)?,
        };
        self.settle(record_key(&key).as_slice());
        frame.map(|frame| entry(key, &frame)).transpose()
    }

    fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        // Held throughout: no key outside it changes meanwhile, so the scan sees one moment.
        let in_flight = self.in_flight();
        let mut found = Vec::new();
        let stored = (start.map(record_key), Bound::Unbounded);
        for (index, record) in self.db.range::<Vec<u8>, _>(stored).enumerate() {
            let (key, frame) = record.map_err(Problem::Read)?;
            if index % SETTLE_EVERY == 0 {
                self.settle(&key);
            }
            let key = String::from_utf8_lossy(&key[RECORD_PREFIX.len()..]).into_owned();
            if found.len() >= limit || !key.starts_with(prefix) {
                break;
            }
            if !in_flight.contains_key(&key) {
                found.push((key, frame));
            }
        }
        let before = in_flight.range::<str, _>((start, Bound::Unbounded));
        let before = before.take_while(|(key, _)| key.starts_with(prefix));
        found.extend(before.filter_map(|(key, frame)| Some((key.clone(), frame.clone()?))));
        found.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        found.truncate(limit);
        found.into_iter().map(|(key, frame)| entry(key, &frame)).collect()
    }

    fn read(&self, key: &str) -> Result<Option<IVec>, Problem> {
        self.db.get(record_key(key)).map_err(Problem::Read)
    }

    /// Makes sled look at the size of its cache where a record is: 30 µs. After every read and not at the end of many,
    /// because what is left of many would lie scattered, and no memory would be freed as a whole.
    fn settle(&self, record_key: &[u8]) {
        for _ in 0..SLED_ACCESSES {
            // Only the access counts: an error is met by whoever wants the record.
            let _ = self.db.contains_key(record_key);
        }
    }
}

/// Joins the writer when dropped. The queue must be closed before.
struct WriterThread(Option<JoinHandle<()>>);

impl Drop for WriterThread {
    fn drop(&mut self) {
        if self.0.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's writer thread had panicked");
        }
    }
}

/// The writer must stop; the reason is recorded.
struct Failed;

/// The only one who writes.
struct Writer {
    records: Arc<Records>,
    sync: SyncFile,
    revision: Revision,
    changes: broadcast::Sender<Arc<Change>>,
    failure: Arc<OnceLock<Failure>>,
}

impl Writer {
    /// Serves the queue until it is closed and empty, or until the first failure. Returning drops the queue and with it
    /// every request in it, which tells their callers.
    fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            if let Err(Failed) = self.serve_group(first, &mut queue) {
                return;
            }
        }
    }

    fn serve_group(&mut self, first: Request, queue: &mut mpsc::Receiver<Request>) -> Result<(), Failed> {
        let started = Instant::now();
        let mut group = Group::new(&self.records, self.revision);
        let mut answers = Vec::new();
        let mut next = Some(first);
        while let Some(Request { transaction, done }) = next {
            answers.push((done, group.decide(transaction).map_err(|problem| self.fail(problem))?));
            let full = answers.len() >= GROUP_LEN_MAX || started.elapsed() >= GROUP_FILL_MAX;
            next = if full { None } else { queue.try_recv().ok() };
        }

        let Group { revision, keys, changes, .. } = group;
        if revision > self.revision {
            self.write_durably(revision, keys).map_err(|problem| self.fail(problem))?;
            self.revision = revision;
        }
        // Readers first, then watchers: who subscribes in between may see a change twice, but never miss it.
        self.records.set_in_flight(InFlight::new());
        for change in changes {
            let _ = self.changes.send(change); // an error only says that nobody watches
        }
        for (done, answer) in answers {
            let _ = done.send(answer); // the caller may have gone
        }
        Ok(())
    }

    /// Records the reason, before anything of the group is dropped: a caller that loses its answer looks here for it.
    fn fail(&self, problem: Problem) -> Failed {
        tracing::error!(error = &problem as &dyn std::error::Error, "the state store failed and is read-only");
        let _ = self.failure.set(Arc::new(problem)); // the first one stays
        Failed
    }

    /// Returns when the batch survives a power loss. Leaves the state before it in front of the readers.
    fn write_durably(&mut self, revision: Revision, keys: BTreeMap<String, KeyInGroup>) -> Result<(), Problem> {
        let mut batch = sled::Batch::default();
        let mut in_flight = InFlight::new();
        for (key, KeyInGroup { before, after }) in keys {
            match after {
                Some(frame) => batch.insert(record_key(&key), frame),
                None => batch.remove(record_key(&key)),
            }
            in_flight.insert(key, before);
        }
        batch.insert(REVISION_KEY, encode("", revision, &[]));

        self.records.set_in_flight(in_flight);
        self.records.db.apply_batch(batch).map_err(Problem::Write)?;
        self.records.db.flush().map_err(Problem::Write)?;
        (self.sync)().map_err(Problem::Sync)
    }
}

/// Transactions decided together. Each sees what the earlier ones leave.
struct Group<'a> {
    records: &'a Records,
    revision: Revision,
    keys: BTreeMap<String, KeyInGroup>,
    changes: Vec<Arc<Change>>,
}

/// The frames of a key that the group changes.
struct KeyInGroup {
    before: Option<IVec>,
    after: Option<IVec>,
}

impl<'a> Group<'a> {
    fn new(records: &'a Records, revision: Revision) -> Self {
        Self { records, revision, keys: BTreeMap::new(), changes: Vec::new() }
    }

    /// The transaction's own outcome, if the group becomes durable. The outer error is the store's.
    fn decide(&mut self, transaction: Transaction) -> Result<Result<Revision, StoreError>, Problem> {
        for condition in &transaction.conditions {
            let found = match self.frame(&condition.key)? {
                None => Ok(0),
                Some(frame) => decode(&condition.key, &frame).map(|(revision, _)| revision),
            };
            match found {
                Err(corrupt) => return Ok(Err(corrupt)),
                Ok(found) if found != condition.revision => {
                    return Ok(Err(StoreError::Conflict { key: condition.key.clone() }));
                }
                Ok(_) => {}
            }
        }
        let revision = self.revision + 1;
        for (key, value) in transaction.into_effects() {
            let current = self.frame(&key)?;
            if current.is_none() && value.is_none() {
                continue;
            }
            let after = value.as_ref().map(|value| IVec::from(encode(&key, revision, value)));
            match self.keys.get_mut(&key) {
                Some(key_in_group) => key_in_group.after = after,
                None => drop(self.keys.insert(key.clone(), KeyInGroup { before: current, after })),
            }
            self.changes.push(Arc::new(Change { key, value, revision }));
            self.revision = revision;
        }
        Ok(Ok(self.revision))
    }

    /// The key's frame after the transactions decided so far.
    fn frame(&self, key: &str) -> Result<Option<IVec>, Problem> {
        match self.keys.get(key) {
            Some(key_in_group) => Ok(key_in_group.after.clone()),
            None => self.records.read(key),
        }
    }
}

/// The causes behind [`StoreError::Unavailable`].
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("queue the transaction: {QUEUE_LEN_MAX} are waiting already")]
    QueueFull,
    #[error("commit: the store's writer has stopped")]
    Stopped,
    #[error("read: the store's reader panicked")]
    Reader,
    #[error("read from sled")]
    Read(#[source] sled::Error),
    #[error("write to sled")]
    Write(#[source] sled::Error),
    #[error("sync the database file")]
    Sync(#[source] io::Error),
}

impl From<Problem> for StoreError {
    fn from(problem: Problem) -> Self {
        Self::Unavailable(Arc::new(problem))
    }
}

/// The writer's failure; none is recorded if it panicked.
fn why_stopped(failure: &OnceLock<Failure>) -> StoreError {
    failure.get().cloned().map_or_else(|| Problem::Stopped.into(), StoreError::Unavailable)
}

/// The version of the layout above. It grows when an older tessera could not read what this one writes.
const FORMAT: u8 = 1;

const RECORD_PREFIX: &str = "r";
const REVISION_KEY: &str = "m/revision";

const REVISION_AT: usize = 1;
const CHECKSUM_AT: usize = REVISION_AT + size_of::<Revision>();
const VALUE_AT: usize = CHECKSUM_AT + size_of::<u32>();

fn record_key(key: &str) -> Vec<u8> {
    [RECORD_PREFIX, key].concat().into_bytes()
}

fn encode(key: &str, revision: Revision, value: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(VALUE_AT + value.len());
    frame.push(FORMAT);
    frame.extend(revision.to_le_bytes());
    frame.extend(checksum(key, &frame, value).to_le_bytes());
    frame.extend(value);
    frame
}

fn decode<'a>(key: &str, frame: &'a [u8]) -> Result<(Revision, &'a [u8]), StoreError> {
    let parts = || {
        let (head, rest) = frame.split_at_checked(CHECKSUM_AT)?;
        let (stored, value) = rest.split_first_chunk()?;
        let revision = head[REVISION_AT..].first_chunk()?;
        let valid = head[0] == FORMAT && u32::from_le_bytes(*stored) == checksum(key, head, value);
        valid.then_some((Revision::from_le_bytes(*revision), value))
    };
    parts().ok_or_else(|| StoreError::Corrupt { key: key.to_owned() })
}

/// The key is part of it, so that a value under a wrong key is found too.
fn checksum(key: &str, head: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(key.as_bytes()), head), value)
}

fn entry(key: String, frame: &[u8]) -> Result<Entry, StoreError> {
    let (revision, value) = decode(&key, frame)?;
    Ok(Entry { value: value.to_vec(), revision, key })
}

#[cfg(test)]
mod tests {
    //! What the contract test-suite cannot see: groups, failures, damage, and the directory's lock. The database sync is
    //! replaced by one that a test holds back or lets fail.

    use std::sync::mpsc as sync_mpsc;

    use super::super::contract::block_on;
    use super::*;

    fn put(key: &str, value: &str) -> Transaction {
        Transaction::new().put(key, value)
    }

    fn value(store: &SledStore, key: &str) -> Option<Vec<u8>> {
        store.get(key).unwrap().map(|entry| entry.value)
    }

    /// As sled has it.
    fn frame(store: &SledStore, key: &'static str) -> Vec<u8> {
        store.reader.read(|records| records.read(key)).unwrap().unwrap().unwrap().to_vec()
    }

    /// A store whose every sync says that it was reached and waits to be told its outcome.
    struct Gated {
        store: SledStore,
        reached: sync_mpsc::Receiver<()>,
        outcomes: sync_mpsc::Sender<io::Result<()>>,
    }

    fn gated(dir: &Path) -> Gated {
        let (reached_sender, reached) = sync_mpsc::channel();
        let (outcomes, outcome) = sync_mpsc::channel::<io::Result<()>>();
        let store = SledStore::open_with(dir, |mut sync| {
            Box::new(move || {
                reached_sender.send(()).unwrap();
                outcome.recv().unwrap().and_then(|()| sync())
            })
        });
        Gated { store: store.unwrap(), reached, outcomes }
    }

    #[test]
    fn a_reopened_store_has_everything_and_counts_on() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("made/by/open");
        for round in 1..=5 {
            let store = SledStore::open(&dir).unwrap();
            assert_eq!(store.scan("", None, 100).unwrap().len() as u64, round - 1);
            let transaction = Transaction::new().require_absent(format!("{round}")).put(format!("{round}"), "v");
            assert_eq!(block_on(store.commit(transaction)).unwrap(), round);
        }
    }

    #[test]
    fn dropping_the_store_first_finishes_what_is_queued() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        let answers: Vec<_> = (0..100).map(|number| store.commit(put(&number.to_string(), ""))).collect();
        drop(store);
        let store = SledStore::open(dir.path()).unwrap();
        assert_eq!(store.scan("", None, 1000).unwrap().len(), 100);
        for (answer, revision) in answers.into_iter().zip(1..) {
            assert_eq!(block_on(answer).unwrap(), revision);
        }
    }

    #[test]
    fn a_second_opener_is_told_which_directory_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let _first = SledStore::open(dir.path()).unwrap();
        let error = SledStore::open(dir.path()).err().unwrap();
        assert!(matches!(error, OpenError::Locked { .. }));
        let expected =
            format!("lock the state directory {}: is another tessera serving from it?", dir.path().display());
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn transactions_of_one_group_see_each_other_and_fail_alone() {
        let dir = tempfile::tempdir().unwrap();
        let Gated { store, reached, outcomes } = gated(dir.path());
        let first = store.commit(put("first", ""));
        reached.recv().unwrap();
        // While the first group waits for its sync, these queue and form the second.
        let create = |value| store.commit(Transaction::new().require_absent("a").put("a", value));
        let created = create("1");
        let late = create("2");
        let renamed = store.commit(Transaction::new().require("a", 2).delete("a").put("b", "3"));
        let created_again = create("4");
        let stale = store.commit(Transaction::new().require("a", 2).put("c", ""));
        outcomes.send(Ok(())).unwrap();
        assert_eq!(block_on(first).unwrap(), 1);
        reached.recv().unwrap();
        outcomes.send(Ok(())).unwrap();

        assert_eq!(block_on(created).unwrap(), 2);
        assert!(matches!(block_on(late), Err(StoreError::Conflict { key }) if key == "a"));
        assert_eq!(block_on(renamed).unwrap(), 3);
        assert_eq!(block_on(created_again).unwrap(), 4);
        assert!(matches!(block_on(stale), Err(StoreError::Conflict { key }) if key == "a"));
        assert_eq!(value(&store, "a"), Some(b"4".to_vec()));
        assert_eq!(value(&store, "b"), Some(b"3".to_vec()));
        assert_eq!(value(&store, "c"), None);
        assert!(reached.try_recv().is_err(), "five transactions, one sync");
    }

    #[test]
    fn readers_see_a_write_only_when_it_is_durable() {
        let dir = tempfile::tempdir().unwrap();
        let Gated { store, reached, outcomes } = gated(dir.path());
        outcomes.send(Ok(())).unwrap();
        block_on(store.commit(put("b", "old").put("c", "old").put("d", "old"))).unwrap();
        reached.recv().unwrap();
        let before = store.scan("", None, 10).unwrap();

        let answer = store.commit(put("a", "new").put("b", "new").delete("c"));
        reached.recv().unwrap();
        assert_eq!(store.scan("", None, 10).unwrap(), before);
        assert_eq!(store.scan("", Some("b"), 1).unwrap(), before[1..2]);
        assert_eq!([value(&store, "a"), value(&store, "c")], [None, Some(b"old".to_vec())]);

        outcomes.send(Ok(())).unwrap();
        block_on(answer).unwrap();
        let keys: Vec<_> = store.scan("", None, 10).unwrap().into_iter().map(|entry| entry.key).collect();
        assert_eq!(keys, ["a", "b", "d"]);
    }

    #[test]
    fn after_a_failed_sync_the_store_is_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let Gated { store, reached, outcomes } = gated(dir.path());
        outcomes.send(Ok(())).unwrap();
        block_on(store.commit(put("a", "durable"))).unwrap();
        reached.recv().unwrap();

        let mut watch = store.watch("");
        let failed = store.commit(put("a", "not durable"));
        reached.recv().unwrap();
        let queued = store.commit(put("b", ""));
        outcomes.send(Err(io::Error::other("broken disk"))).unwrap();

        for outcome in [block_on(failed), block_on(queued), block_on(store.commit(put("c", "")))] {
            let Err(StoreError::Unavailable(cause)) = outcome else { panic!("{outcome:?}") };
            assert_eq!(cause.to_string(), "sync the database file");
            assert_eq!(cause.source().unwrap().to_string(), "broken disk");
        }
        assert!(matches!(store.health(), Err(StoreError::Unavailable(_))));
        assert_eq!(value(&store, "a"), Some(b"durable".to_vec()), "reads stay at the last durable state");
        assert!(reached.try_recv().is_err(), "a sync is never tried again");
        drop(store);
        assert_eq!(block_on(watch.next()), Err(super::super::WatchError::Closed), "and watchers heard nothing");
    }

    #[test]
    fn a_writer_that_panics_fails_its_callers() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open_with(dir.path(), |_| Box::new(|| panic!("expected in this test"))).unwrap();
        for _ in 0..2 {
            assert!(matches!(block_on(store.commit(put("a", ""))), Err(StoreError::Unavailable(_))));
        }
        assert!(store.health().is_err());
        assert_eq!(value(&store, "a"), None);
    }

    #[test]
    fn a_full_queue_refuses_at_once_and_stays_healthy() {
        let dir = tempfile::tempdir().unwrap();
        let Gated { store, reached, outcomes } = gated(dir.path());
        let mut answers = vec![store.commit(put("0", ""))];
        reached.recv().unwrap();
        answers.extend((1..=QUEUE_LEN_MAX).map(|number| store.commit(put(&number.to_string(), ""))));
        assert!(matches!(block_on(store.commit(put("refused", ""))), Err(StoreError::Unavailable(_))));
        store.health().unwrap();
        (0..answers.len()).for_each(|_| outcomes.send(Ok(())).unwrap());
        for (answer, revision) in answers.into_iter().zip(1..) {
            assert_eq!(block_on(answer).unwrap(), revision);
        }
        assert_eq!(value(&store, "refused"), None);
    }

    #[test]
    fn damage_is_found_named_and_can_be_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        block_on(store.commit(put("a", "1").put("b", "22").put("c", "3"))).unwrap();
        let good = frame(&store, "b");
        let is_damaged = |outcome| matches!(outcome, Err(StoreError::Corrupt { key }) if key == "b");

        let flipped = (0..good.len() * 8).map(|bit| {
            let mut frame = good.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            frame
        });
        let cut = (0..good.len()).map(|len| good[..len].to_vec());
        let moved = frame(&store, "a");
        for bad in flipped.chain(cut).chain([moved]) {
            store.reader.read(|records| records.db.insert(record_key("b"), bad)).unwrap().unwrap();
            assert!(is_damaged(store.get("b").map(drop)));
        }
        assert!(is_damaged(store.scan("", None, 10).map(drop)));
        assert_eq!(store.scan("", Some("b"), 10).unwrap().len(), 1, "the rest is readable");
        assert!(is_damaged(block_on(store.commit(put("d", "").require("b", 1))).map(drop)));
        assert_eq!(value(&store, "d"), None);
        store.health().unwrap();

        block_on(store.commit(put("b", "repaired"))).unwrap();
        assert_eq!(value(&store, "b"), Some(b"repaired".to_vec()));
    }

    #[test]
    fn a_directory_of_another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let rewrite = |change: &dyn Fn(&sled::Db)| {
            let lock = DirLock::take(dir.path()).unwrap();
            let db = sled::open(dir.path()).unwrap();
            change(&db);
            db.flush().unwrap();
            drop((db, lock));
            SledStore::open(dir.path()).err()
        };
        let newer = rewrite(&|db| drop(db.insert(REVISION_KEY, vec![FORMAT + 1, 0]).unwrap()));
        assert!(matches!(newer, Some(OpenError::NewerFormat { format: 2, .. })), "{newer:?}");
        let damaged = rewrite(&|db| drop(db.insert(REVISION_KEY, vec![FORMAT, 0]).unwrap()));
        assert!(matches!(damaged, Some(OpenError::NoRevision { .. })), "{damaged:?}");
        let foreign = rewrite(&|db| {
            db.remove(REVISION_KEY).unwrap();
            db.insert("something", "else").unwrap();
        });
        assert!(matches!(foreign, Some(OpenError::NoRevision { .. })), "{foreign:?}");
    }
}
