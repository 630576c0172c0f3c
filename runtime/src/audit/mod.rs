//! The audit log: who changed what, and who was denied what. Lines of JSON in `HOME/audit/`, each chained to the one
//! before by a keyed hash, so that no line can be changed, removed or added without the home's secret.
//!
//! - [`record`]: a line, and how it is sealed.
//! - [`files`]: segments, the head that tells where the log ends, and what a crash left.
//! - [`verify`]: walks the whole chain; also while a server writes it.
//!
//! [`Audit::append`] answers when its record is on disk: a change is acknowledged only after. When the disk is full it
//! answers an error, so that nothing changes unseen; reading goes on. [`Audit::denied`] waits for nothing: it counts, and
//! each second one record per caller and action says how often, so that a flood cannot fill the disk.
//!
//! What the chain cannot show: a copy of the whole folder from yesterday, put back by somebody who may write it. Keep the
//! output of `tessera audit verify` elsewhere to be able to tell.

mod files;
mod record;
mod verify;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

pub use self::files::Retention;
pub use self::record::{Event, Record, Who};
pub use self::verify::{Break, Filter, Verified, list, verify};

use self::files::{Disk, Log, RealDisk};
use crate::error::{ApiError, ErrorCode};

/// Changes that wait for the disk; more are refused.
const QUEUE_MAX: usize = 1024;

/// Records that one `fdatasync` covers.
const GROUP_MAX: usize = 256;

/// How often denied accesses become records. What was denied since then is lost in a crash.
const DENIED_PERIOD: Duration = Duration::from_secs(1);

/// Callers and actions that are told apart within one period; all others of an action are counted together.
const DENIED_KEYS_MAX: usize = 128;

/// The log of a running server. Dropping it writes what waits.
pub struct Audit {
    queue: Option<SyncSender<Message>>,
    /// Whether the last record could not be written.
    failing: Arc<AtomicBool>,
    denied: Arc<Mutex<Denied>>,
    writer: Option<JoinHandle<()>>,
}

/// Why a record is not on disk.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the audit log cannot be written: {0}")]
pub struct AuditError(String);

impl From<AuditError> for ApiError {
    fn from(error: AuditError) -> ApiError {
        tracing::error!("{error}");
        ApiError::new(
            ErrorCode::TemporarilyUnavailable,
            "The audit log cannot be written, so nothing can be changed now; the server's log says why.",
        )
    }
}

struct Message {
    event: Event,
    written: oneshot::Sender<Result<(), AuditError>>,
}

impl Audit {
    /// Opens the log below `dir`, repairs what a crash left, and starts its writer.
    ///
    /// # Errors
    /// When the folder or its files cannot be opened or written.
    pub fn start(dir: &Path, key: [u8; 32], retention: Retention) -> io::Result<Audit> {
        Audit::start_on(Arc::new(RealDisk), dir, key, retention)
    }

    fn start_on(disk: Arc<dyn Disk>, dir: &Path, key: [u8; 32], retention: Retention) -> io::Result<Audit> {
        let log = Log::open(disk, dir, key, retention)?;
        let (queue, messages) = sync_channel(QUEUE_MAX);
        let denied = Arc::new(Mutex::new(Denied::default()));
        let writer = thread::Builder::new().name("audit".to_owned()).spawn({
            let denied = Arc::clone(&denied);
            move || write_all(log, &messages, &denied)
        })?;
        Ok(Audit { queue: Some(queue), failing: Arc::default(), denied, writer: Some(writer) })
    }

    /// Queues the record, at once and in call order; the future waits until it is on disk. Dropping the future does not
    /// take it back.
    ///
    /// # Errors
    /// [`AuditError`]: the record may or may not be there, and what it tells of must not happen.
    pub fn append(&self, event: Event) -> impl Future<Output = Result<(), AuditError>> + Send + 'static {
        let (written, outcome) = oneshot::channel();
        let sent = match &self.queue {
            Some(queue) => queue.try_send(Message { event, written }).map_err(|error| match error {
                TrySendError::Full(_) => AuditError(format!("{QUEUE_MAX} records wait for the disk")),
                TrySendError::Disconnected(_) => AuditError("its writer has ended".to_owned()),
            }),
            None => Err(AuditError("it is closed".to_owned())),
        };
        let failing = Arc::clone(&self.failing);
        async move {
            let outcome = match sent {
                Ok(()) => outcome.await.unwrap_or_else(|_| Err(AuditError("its writer has ended".to_owned()))),
                Err(error) => Err(error),
            };
            failing.store(outcome.is_err(), Relaxed);
            outcome
        }
    }

    /// Whether what happens now can be recorded. Costs nothing but after a failure: then a record of its own finds out.
    ///
    /// # Errors
    /// [`AuditError`]: nothing may be changed.
    pub async fn check(&self) -> Result<(), AuditError> {
        if !self.failing.load(Relaxed) {
            return Ok(());
        }
        self.append(Event::own("audit.resumed", "")).await
    }

    /// Counts a denied access. Takes a lock for as long as a look into a small table takes; waits for no disk.
    pub fn denied(&self, event: Event) {
        self.denied.lock().unwrap_or_else(PoisonError::into_inner).count(event);
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Denied accesses of this period: the first of each kind, and how many.
#[derive(Default)]
struct Denied {
    counts: HashMap<(String, String), (Event, u64)>,
}

impl Denied {
    fn count(&mut self, event: Event) {
        let caller = match (&event.principal, &event.source) {
            (Some(principal), _) => format!("principal {}", principal.id),
            (None, source) => source.clone().unwrap_or_default(),
        };
        let mut key = (caller, event.action.clone());
        let known = self.counts.contains_key(&key);
        let event = if !known && self.counts.len() >= DENIED_KEYS_MAX {
            key.0 = String::new();
            let action = key.1.clone();
            Event { action, object: Some("(many callers)".to_owned()), status: event.status, ..Event::default() }
        } else {
            event
        };
        self.counts.entry(key).or_insert((event, 0)).1 += 1;
    }
}

/// The writer: one group after the other, each with one `fdatasync`.
fn write_all(mut log: Log, messages: &Receiver<Message>, denied: &Mutex<Denied>) {
    let mut last_denied = Instant::now();
    let mut open = true;
    while open {
        let mut group = Vec::new();
        match messages.recv_timeout(DENIED_PERIOD.saturating_sub(last_denied.elapsed())) {
            Ok(message) => group.push(message),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => open = false,
        }
        group.extend(messages.try_iter().take(GROUP_MAX - 1));
        let mut events: Vec<(Event, u64)> = group.iter().map(|message| (message.event.clone(), 1)).collect();
        if !open || last_denied.elapsed() >= DENIED_PERIOD {
            last_denied = Instant::now();
            let counts = std::mem::take(&mut denied.lock().unwrap_or_else(PoisonError::into_inner).counts);
            events.extend(counts.into_values());
        }
        if events.is_empty() {
            continue;
        }
        let outcome = log.write(&events).map_err(|error| {
            tracing::error!(records = events.len(), "failed to write the audit log: {error}");
            AuditError(error.to_string())
        });
        for message in group {
            // Who no longer waits needs no answer.
            let _ = message.written.send(outcome.clone());
        }
    }
}

#[cfg(test)]
mod tests;
