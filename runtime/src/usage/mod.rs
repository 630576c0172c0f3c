//! Usage: a row per request, what served it, and (where an endpoint asks for it) what was said. Parquet files below
//! `HOME/usage/`, for any reader:
//!
//! ```text
//! endpoint_usage/workspace=1/date=2026-11-22/part-….parquet
//! served_entities/workspace=1/date=2026-11-22/part-….parquet
//! payload/workspace=1/endpoint=iris/date=2026-11-22/part-….parquet     encrypted, a key per workspace and endpoint
//! spill/….spill                                                       rows that are in no part yet, sealed
//! ```
//!
//! - [`rows`]: the tables and their columns.
//! - [`spill`]: rows on their way, safe from a crash.
//! - [`parts`]: Parquet files: written whole, merged, removed when their time is over.
//! - [`transcript`]: what is heard of a streamed answer while it passes; [`tokens`]: what models say of theirs.
//! - [`summary`]: what was used, by whom, from the files alone.
//!
//! [`Recorder::record`] is for the path of a request: it puts the row into a bounded queue and neither waits nor takes a
//! lock. A row that finds no place is dropped and counted (`tessera_usage_rows_dropped`). One thread writes. What a
//! `kill -9` can lose are the rows of the last [`DRAIN_PERIOD`]; a power cut those since the last sync, at most
//! [`SYNC_PERIOD`] more.

pub mod parts;
pub mod rows;
mod spill;
pub mod summary;
pub mod tokens;
pub mod transcript;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;

pub use self::rows::{EntityRow, PayloadRow, Row, UsageRow};

use self::parts::Tables;
use self::rows::Record;
use self::spill::Spill;

/// Rows that wait for the writer; more are dropped. At 100,000 requests per second this is 0.3 s.
const QUEUE_MAX: usize = 32_768;

/// Payloads that wait for the writer, in bytes; rows beyond are dropped.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// How long a row may wait in memory.
const DRAIN_PERIOD: Duration = Duration::from_millis(100);

/// How long a row may wait until it is synced.
const SYNC_PERIOD: Duration = Duration::from_secs(1);

/// After this time rows become a part.
const PART_PERIOD: Duration = Duration::from_secs(60);

/// After so many bytes rows become a part. A conversion holds them in memory, where small ones take three times as much.
const SPILL_BYTES_MAX: u64 = 8 << 20;

/// Spills that could not be converted yet; beyond it rows are dropped.
const SPILLS_BYTES_MAX: u64 = 8 * SPILL_BYTES_MAX;

/// Rows of one frame in the spill.
const FRAME_ROWS_MAX: usize = 4096;

/// How long, and how many bytes.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Whole days; none is for ever.
    pub days: Option<u64>,
    /// Of all parts; the oldest go first. What served requests ([`EntityRow`]) stays.
    pub bytes_max: u64,
}

/// Takes rows. Dropping it writes what waits.
pub struct Recorder {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    dir: PathBuf,
}

struct Shared {
    queue: ArrayQueue<Row>,
    payload_bytes: AtomicUsize,
    dropped: Counter,
    /// Whether the writer waits without a clock, so that the next row must wake it.
    asleep: AtomicBool,
    ending: AtomicBool,
    flushes: Mutex<Vec<oneshot::Sender<()>>>,
}

impl Recorder {
    /// Opens the tables below `dir`, brings in what a crash left, and starts the writer. `key` is the home's.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn start(dir: &Path, key: [u8; 32], retention: Retention, dropped: Counter) -> io::Result<Recorder> {
        let tables = Tables::open(dir, key, retention)?;
        let shared = Arc::new(Shared {
            queue: ArrayQueue::new(QUEUE_MAX),
            payload_bytes: AtomicUsize::new(0),
            dropped,
            asleep: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            flushes: Mutex::default(),
        });
        let writer = thread::Builder::new().name("usage".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || Writer { shared, tables, spill: None, last_sync: Instant::now() }.run()
        })?;
        Ok(Recorder { shared, writer: Some(writer), dir: dir.to_owned() })
    }

    /// Queues a row, or drops and counts it.
    pub fn record(&self, row: impl Into<Row>) {
        let (row, shared) = (row.into(), &self.shared);
        let bytes = row.payload_bytes();
        if bytes > 0 && shared.payload_bytes.fetch_add(bytes, Relaxed) + bytes > PAYLOAD_BYTES_MAX {
            shared.payload_bytes.fetch_sub(bytes, Relaxed);
            shared.dropped.inc();
            return;
        }
        if shared.queue.push(row).is_err() {
            shared.payload_bytes.fetch_sub(bytes, Relaxed);
            shared.dropped.inc();
            return;
        }
        // Both sides first say and then look (the writer in `sleep`), so one of them sees the other.
        if shared.asleep.load(SeqCst) && shared.asleep.swap(false, SeqCst) {
            self.wake();
        }
    }

    /// Makes parts of all rows recorded so far; the future ends when they can be read.
    pub fn flush(&self) -> impl Future<Output = ()> + Send + 'static {
        let (done, finished) = oneshot::channel();
        self.shared.flushes.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        self.wake();
        async {
            // An error means that the writer has ended, and that flushes too.
            let _ = finished.await;
        }
    }

    /// Where the tables are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn wake(&self) {
        if let Some(writer) = &self.writer {
            writer.thread().unpark();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.ending.store(true, SeqCst);
        self.wake();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// The thread that writes.
struct Writer {
    shared: Arc<Shared>,
    tables: Tables,
    spill: Option<Spill>,
    last_sync: Instant,
}

impl Writer {
    fn run(mut self) {
        self.convert();
        loop {
            let ending = self.shared.ending.load(SeqCst);
            let flushes = std::mem::take(&mut *self.shared.flushes.lock().unwrap_or_else(PoisonError::into_inner));
            let rows = self.drain();
            let due = self.spill.as_ref().is_some_and(|spill| spill.age() >= PART_PERIOD);
            if due || ending || !flushes.is_empty() {
                self.convert();
            }
            for flush in flushes {
                let _ = flush.send(());
            }
            if ending {
                return;
            }
            self.sync(rows == 0);
            self.sleep(rows == 0);
        }
    }

    /// Moves all rows from memory to the spill.
    fn drain(&mut self) -> usize {
        let mut rows = 0;
        loop {
            let mut records = Vec::new();
            let mut payload_bytes = 0;
            while let Some(row) = self.shared.queue.pop() {
                payload_bytes += row.payload_bytes();
                records.push(row.into_record());
                if records.len() == FRAME_ROWS_MAX || payload_bytes as u64 >= SPILL_BYTES_MAX / 4 {
                    break;
                }
            }
            self.shared.payload_bytes.fetch_sub(payload_bytes, Relaxed);
            if records.is_empty() {
                return rows;
            }
            rows += records.len();
            if let Err(error) = self.append(&records) {
                self.shared.dropped.inc_by(records.len() as u64);
                tracing::error!(rows = records.len(), "failed to keep usage rows: {error}");
            }
        }
    }

    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        if self.tables.waiting_bytes() > SPILLS_BYTES_MAX {
            return Err(io::Error::other("too many rows wait to become Parquet files"));
        }
        if self.spill.is_none() {
            self.spill = Some(self.tables.new_spill()?);
        }
        let full = match &mut self.spill {
            Some(spill) => {
                spill.append(records)?;
                spill.bytes() >= SPILL_BYTES_MAX
            }
            None => false,
        };
        if full {
            self.convert();
        }
        Ok(())
    }

    /// Makes parts of the spill, and of those that could not become parts before.
    fn convert(&mut self) {
        self.spill = None;
        if let Err(error) = self.tables.convert_spills() {
            tracing::error!("failed to write usage tables; the rows are kept and tried again: {error}");
        }
    }

    fn sync(&mut self, idle: bool) {
        if let Some(spill) = &mut self.spill
            && (idle || self.last_sync.elapsed() >= SYNC_PERIOD)
        {
            self.last_sync = Instant::now();
            if let Err(error) = spill.sync() {
                tracing::error!("failed to sync usage rows: {error}");
            }
        }
    }

    /// While rows come, looks again soon, so that no row needs to wake this thread. Otherwise until one does.
    fn sleep(&self, idle: bool) {
        if !idle {
            return thread::park_timeout(DRAIN_PERIOD);
        }
        self.shared.asleep.store(true, SeqCst);
        if self.shared.queue.is_empty() {
            match &self.spill {
                Some(spill) => thread::park_timeout(PART_PERIOD.saturating_sub(spill.age())),
                None => thread::park(),
            }
        }
        self.shared.asleep.store(false, SeqCst);
    }
}

#[cfg(test)]
mod tests;
