//! Places for instances, and who waits for one.
//!
//! Fair between workspaces: a place that becomes free goes to the waiting workspace that has the fewest in work, and there
//! to who came first. Where the waiting room is full, the workspace with the most in it gives up its last for one that has
//! less. So who fills either keeps others waiting for no more than one of its requests to end.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::access::{Resource, Tally};
use crate::catalog::WorkspaceId;

/// The places of a server.
pub(super) struct Places {
    state: Mutex<State>,
    waiting_max: usize,
}

struct State {
    free: usize,
    waiting: usize,
    /// None of them is empty.
    queues: BTreeMap<WorkspaceId, Queue>,
    next_ticket: u64,
}

/// Who waits of one workspace.
struct Queue {
    tally: Arc<Tally>,
    waiters: VecDeque<Waiter>,
}

struct Waiter {
    ticket: u64,
    tx: oneshot::Sender<Taken>,
}

/// A place that is taken. Dropping it is the release.
pub(super) struct Taken(Arc<Places>);

/// What came of asking for a place.
pub(super) enum Asked {
    Taken(Taken),
    Waiting(Waiting),
    /// Neither a place nor room to wait.
    Refused,
}

/// A wait for a place. Dropping it ends the wait.
pub(super) struct Waiting {
    places: Arc<Places>,
    workspace: WorkspaceId,
    ticket: u64,
    rx: oneshot::Receiver<Taken>,
}

impl Places {
    pub(super) fn new(count: usize, waiting_max: usize) -> Arc<Places> {
        let state = State { free: count, waiting: 0, queues: BTreeMap::new(), next_ticket: 0 };
        Arc::new(Places { state: Mutex::new(state), waiting_max })
    }

    /// A place, or a place in the queue for one. The tally counts what the workspace has in work, this request included.
    pub(super) fn ask(self: &Arc<Places>, workspace: WorkspaceId, tally: &Arc<Tally>) -> Asked {
        let mut state = self.lock();
        if state.free > 0 {
            state.free -= 1;
            return Asked::Taken(Taken(Arc::clone(self)));
        }
        // Told after the lock that nothing will come.
        let given_up = match state.waiting < self.waiting_max {
            true => None,
            false => match state.give_up_for(workspace) {
                Some(waiter) => Some(waiter),
                None => return Asked::Refused,
            },
        };
        let (ticket, (tx, rx)) = (state.next_ticket, oneshot::channel());
        state.next_ticket += 1;
        state.waiting += 1;
        let queue = state.queues.entry(workspace);
        let queue = queue.or_insert_with(|| Queue { tally: Arc::clone(tally), waiters: VecDeque::new() });
        queue.waiters.push_back(Waiter { ticket, tx });
        drop(state);
        drop(given_up);
        Asked::Waiting(Waiting { places: Arc::clone(self), workspace, ticket, rx })
    }

    /// No panic can happen under this lock; a poisoned one would still hold a good state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whose turn it is.
    fn next(&mut self) -> Option<Waiter> {
        let in_work = |queue: &Queue| {
            let all = queue.tally.used(Resource::ConcurrentRequests);
            all.saturating_sub(queue.waiters.len() as u64)
        };
        // The first to come, of those that have as few.
        let rank = |queue: &Queue| (in_work(queue), queue.waiters.front().map(|waiter| waiter.ticket));
        let workspace = *self.queues.iter().min_by_key(|(_, queue)| rank(queue))?.0;
        self.remove(workspace, VecDeque::pop_front)
    }

    /// The last of the longest queue, if this workspace's is still shorter with one more.
    fn give_up_for(&mut self, workspace: WorkspaceId) -> Option<Waiter> {
        let own_len = self.queues.get(&workspace).map_or(0, |queue| queue.waiters.len());
        let (longest, queue) = self.queues.iter().max_by_key(|(_, queue)| queue.waiters.len())?;
        let (longest, longest_len) = (*longest, queue.waiters.len());
        (longest_len > own_len + 1).then(|| self.remove(longest, VecDeque::pop_back)).flatten()
    }

    fn remove(
        &mut self,
        workspace: WorkspaceId,
        take: impl FnOnce(&mut VecDeque<Waiter>) -> Option<Waiter>,
    ) -> Option<Waiter> {
        let queue = self.queues.get_mut(&workspace)?;
        let waiter = take(&mut queue.waiters)?;
        if queue.waiters.is_empty() {
            self.queues.remove(&workspace);
        }
        self.waiting -= 1;
        Some(waiter)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        let next = state.next();
        if next.is_none() {
            state.free += 1;
        }
        drop(state);
        if let Some(Waiter { tx, .. }) = next {
            // Whoever has just stopped waiting passes it on, by this same drop.
            let _ = tx.send(Taken(Arc::clone(&self.0)));
        }
    }
}

impl Waiting {
    /// The place, when its turn comes; none when others get the room to wait.
    pub(super) async fn place(&mut self) -> Option<Taken> {
        (&mut self.rx).await.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let ticket = self.ticket;
        let own = |waiters: &mut VecDeque<Waiter>| {
            let at = waiters.iter().position(|waiter| waiter.ticket == ticket)?;
            waiters.remove(at)
        };
        let removed = self.places.lock().remove(self.workspace, own);
        drop(removed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Tallies;
    use crate::access::quota::Reserved;
    use crate::access::quota::tests::PLENTY;

    /// Requests of workspaces, by their number.
    struct Requests {
        tallies: Tallies,
        places: Arc<Places>,
    }

    impl Requests {
        fn new(count: usize, waiting_max: usize) -> Requests {
            Requests { tallies: Tallies::new(PLENTY), places: Places::new(count, waiting_max) }
        }

        fn ask(&self, workspace: u64) -> (Asked, Reserved) {
            let tally = self.tallies.of(WorkspaceId(workspace));
            let reserved = tally.reserve(Resource::ConcurrentRequests, 1).unwrap();
            (self.places.ask(WorkspaceId(workspace), &tally), reserved)
        }

        fn waits(&self, workspace: u64) -> (Waiting, Reserved) {
            match self.ask(workspace) {
                (Asked::Waiting(waiting), reserved) => (waiting, reserved),
                _ => panic!("it does not wait"),
            }
        }

        /// To be dropped in this order.
        fn takes(&self, workspace: u64) -> (Reserved, Taken) {
            match self.ask(workspace) {
                (Asked::Taken(taken), reserved) => (reserved, taken),
                _ => panic!("there is no place"),
            }
        }

        fn all_is_free(&self, count: usize) {
            let state = self.places.lock();
            assert_eq!((state.free, state.waiting, state.queues.len()), (count, 0, 0));
        }
    }

    #[tokio::test]
    async fn a_free_place_goes_to_the_workspace_that_has_the_fewest() {
        let requests = Requests::new(3, 100);
        let mut held: Vec<_> = (0..3).map(|_| requests.takes(1)).collect();
        let mut greedy: Vec<_> = (0..5).map(|_| requests.waits(1)).collect();
        let (mut first, mut second) = (requests.waits(2), requests.waits(2));
        drop(held.pop());
        let place = first.0.place().await.unwrap();
        drop(held.pop());
        // One each now, and the other came first.
        let own = greedy[0].0.place().await.unwrap();
        drop(place);
        drop(first.1);
        assert!(second.0.place().await.is_some());
        drop((own, held, greedy, second));
        requests.all_is_free(3);
    }

    #[tokio::test]
    async fn a_full_waiting_room_takes_in_whoever_has_less_in_it() {
        let requests = Requests::new(1, 4);
        let held = requests.takes(1);
        let mut greedy: Vec<_> = (0..4).map(|_| requests.waits(1)).collect();
        assert!(matches!(requests.ask(1).0, Asked::Refused));
        let mut others = vec![requests.waits(2), requests.waits(2)];
        assert!(matches!(requests.ask(2).0, Asked::Refused), "as many as the other");
        assert!(greedy[3].0.place().await.is_none() && greedy[2].0.place().await.is_none(), "the last gave way");
        drop(held);
        assert!(others[0].0.place().await.is_some());
        drop((greedy, others));
        requests.all_is_free(1);
    }

    #[tokio::test]
    async fn no_place_is_lost_whoever_stops_waiting() {
        let requests = Arc::new(Requests::new(3, 8));
        let work = |seed: u64| {
            let requests = Arc::clone(&requests);
            async move {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..200 {
                    let (asked, _reserved) = requests.ask(random.u64(0..4));
                    match asked {
                        Asked::Taken(_taken) => tokio::task::yield_now().await,
                        Asked::Waiting(mut waiting) if random.bool() => drop(waiting.place().await),
                        Asked::Waiting(_given_up) => tokio::task::yield_now().await,
                        Asked::Refused => tokio::task::yield_now().await,
                    }
                }
            }
        };
        futures_util::future::join_all((0..16).map(work)).await;
        requests.all_is_free(3);
    }
}
