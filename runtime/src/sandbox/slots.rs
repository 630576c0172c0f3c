//! How many guests run at once on one event loop.
//!
//! A loop runs one guest at a time, however many are begun; beyond what fills a batch, more begun ones only spread over
//! more memory, out of the caches (at 256 connections this costs a fifth of the throughput). A guest that waits gives its
//! slot back, so that slow models, guests that sleep and those that use up their time do not hold up quick ones. It keeps
//! the slot only while it waits for the end of a turn of the event loop, where its computation runs with others'.

use std::cell::Cell;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Guests that run, or wait for the end of the turn, on one event loop.
const SLOTS: usize = 32;

thread_local! {
    static FREE: Arc<Semaphore> = Arc::new(Semaphore::new(SLOTS));
    /// Whether the guest that is polled waits for nothing but the end of the turn.
    static IN_TURN: Cell<bool> = const { Cell::new(false) };
}

/// The right to run on this event loop. Dropping it is the release.
pub(super) struct Slot(#[allow(dead_code, reason = "dropping it is the release")] OwnedSemaphorePermit);

/// Waits for a slot; first come, first served. None when the loop ends.
pub(super) async fn acquire() -> Option<Slot> {
    let free = FREE.with(Arc::clone);
    match Arc::clone(&free).try_acquire_owned() {
        Ok(permit) => Some(Slot(permit)),
        Err(_) => free.acquire_owned().await.ok().map(Slot),
    }
}

/// Whether no other guest than the one that asks runs on this event loop.
pub(super) fn is_alone() -> bool {
    FREE.with(|free| free.available_permits() == SLOTS - 1)
}

/// Runs a guest, and gives its slot back when it waits for more than the end of a turn.
pub(super) async fn until_it_waits<F: Future>(mut slot: Option<Slot>, mut guest: Pin<&mut F>) -> F::Output {
    std::future::poll_fn(|context| {
        IN_TURN.set(false);
        let poll = guest.as_mut().poll(context);
        if poll.is_pending() && !IN_TURN.get() {
            slot = None;
        }
        poll
    })
    .await
}

/// A guest's wait that lasts no longer than a turn of the event loop, so that it keeps its slot.
pub(super) async fn within_turn<F: Future>(wait: F) -> F::Output {
    let mut wait = pin!(wait);
    std::future::poll_fn(|context| {
        let poll = wait.as_mut().poll(context);
        IN_TURN.set(matches!(poll, Poll::Pending));
        poll
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn yields(times: usize) {
        for _ in 0..times {
            tokio::task::yield_now().await;
        }
    }

    fn free() -> usize {
        FREE.with(|free| free.available_permits())
    }

    #[tokio::test]
    async fn a_guest_keeps_its_slot_within_a_turn_and_gives_it_back_at_any_other_wait() {
        let slot = acquire().await;
        assert!(is_alone());
        let guest = pin!(async {
            within_turn(yields(2)).await;
            assert_eq!(free(), SLOTS - 1, "it waited for the turn alone");
            yields(1).await;
            assert_eq!(free(), SLOTS, "it waited for something else");
            within_turn(yields(1)).await;
        });
        until_it_waits(slot, guest).await;
        assert_eq!(free(), SLOTS);
    }
}
