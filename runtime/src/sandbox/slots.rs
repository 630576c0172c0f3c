//! How many guests run at once on one event loop.
//!
//! A loop runs one guest at a time, however many are begun; beyond what fills a batch, more begun ones only spread over
//! more memory, out of the caches (at 256 connections this costs a fifth of the throughput). A guest that waits for
//! something slow gives its slot back, so that slow models do not hold up quick ones.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Guests that run, or wait for the end of the turn, on one event loop.
const SLOTS: usize = 32;

thread_local! {
    static FREE: Arc<Semaphore> = Arc::new(Semaphore::new(SLOTS));
}

/// The right to run on this event loop. Dropping it is the release.
pub(super) struct Slot(OwnedSemaphorePermit);

/// Waits for a slot; first come, first served. None when the loop ends.
pub(super) async fn acquire() -> Option<Slot> {
    let free = FREE.with(Arc::clone);
    match Arc::clone(&free).try_acquire_owned() {
        Ok(permit) => Some(Slot(permit)),
        Err(_) => free.acquire_owned().await.ok().map(Slot),
    }
}

/// Runs a guest, and gives its slot back when it waits for the first time.
pub(super) async fn until_it_waits<F: Future>(mut slot: Option<Slot>, mut guest: Pin<&mut F>) -> F::Output {
    std::future::poll_fn(|context| {
        let poll = guest.as_mut().poll(context);
        if poll.is_pending() {
            slot = None;
        }
        poll
    })
    .await
}

impl Slot {
    /// Whether no other guest runs on this event loop.
    pub(super) fn is_alone(&self) -> bool {
        self.0.semaphore().available_permits() == SLOTS - 1
    }
}
