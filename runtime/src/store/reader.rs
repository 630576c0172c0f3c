//! One thread for all reads of the store.
//!
//! sled keeps what it has read as hundreds of small blocks, which lie in the heap of the thread that read them. Read by
//! whichever thread asked, the few megabytes of its cache would be strewn over the heaps of all, and hold twice as much.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::memory;

/// Reads that wait; who asks for more waits to be heard.
const READS_MAX: usize = 64;

/// After this time without a read, what reads have left free is given back.
const QUIET: Duration = Duration::from_secs(1);

type Read<S> = Box<dyn FnOnce(&S) + Send>;

/// Reads `S`. Dropping it waits until the thread has let go of it.
pub(super) struct Reader<S> {
    /// None only while it is dropped.
    reads: Option<SyncSender<Read<S>>>,
    thread: Option<JoinHandle<()>>,
}

impl<S: Send + Sync + 'static> Reader<S> {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub(super) fn start(state: Arc<S>) -> std::io::Result<Reader<S>> {
        let (reads, queue) = sync_channel(READS_MAX);
        let thread = std::thread::Builder::new().name("store-reader".to_owned()).spawn(move || run(&*state, &queue))?;
        Ok(Reader { reads: Some(reads), thread: Some(thread) })
    }

    /// What `read` answers; none if it panicked. Blocks.
    pub(super) fn read<T: Send + 'static>(&self, read: impl FnOnce(&S) -> T + Send + 'static) -> Option<T> {
        let (answer, answered) = sync_channel(1);
        // An error says that nobody waits for the answer.
        let read = move |state: &S| drop(answer.send(read(state)));
        self.reads.as_ref()?.send(Box::new(read)).ok()?;
        answered.recv().ok()
    }
}

impl<S> Drop for Reader<S> {
    fn drop(&mut self) {
        self.reads = None;
        // It does not panic: `run` catches what a read does.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn run<S>(state: &S, queue: &Receiver<Read<S>>) {
    loop {
        let next = match queue.recv_timeout(QUIET) {
            Err(RecvTimeoutError::Timeout) => {
                memory::give_back();
                queue.recv().ok()
            }
            next => next.ok(),
        };
        let Some(read) = next else { return };
        // The panic is told on standard error; who asked hears that there is no answer, and others are served.
        let _ = catch_unwind(AssertUnwindSafe(|| read(state)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_read_on_one_thread_which_survives_a_panic() {
        let reader = Reader::start(Arc::new(7)).unwrap();
        let thread = || reader.read(|_| std::thread::current().id());
        let first = thread().unwrap();
        assert!(reader.read(|_: &i32| -> i32 { panic!("expected in this test") }).is_none());
        let answers = std::thread::scope(|scope| {
            let all: Vec<_> = (0..100).map(|add| scope.spawn(move || add)).collect();
            all.into_iter()
                .map(|thread| {
                    reader.read({
                        let add = thread.join().unwrap();
                        move |seven| seven + add
                    })
                })
                .collect::<Vec<_>>()
        });
        assert_eq!(answers, (7..107).map(Some).collect::<Vec<_>>());
        assert_eq!((thread(), first != std::thread::current().id()), (Some(first), true));
    }

    #[test]
    fn a_reader_that_is_dropped_holds_nothing() {
        let state = Arc::new(());
        drop(Reader::start(Arc::clone(&state)).unwrap());
        assert_eq!(Arc::strong_count(&state), 1);
    }
}
