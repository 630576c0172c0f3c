//! A few at a time, fair between tenants: for slow work of which one tenant may ask for hundreds at once.
//!
//! A turn that becomes free goes to the waiting tenant that has the fewest, and there to who came first. So who asks for
//! many keeps others waiting for no more than one of its turns to end. Unlike in [`crate::admission`] nobody is refused: who
//! asks here is bounded where it comes from.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::nn::Tenant;

/// The turns that tenants share.
pub struct Fair {
    state: Mutex<State>,
    each_max: usize,
}

struct State {
    free: usize,
    /// Turns that tenants have; none has 0.
    taken: HashMap<Tenant, usize>,
    /// By the order in which they came.
    waiting: BTreeMap<u64, (Tenant, oneshot::Sender<Turn>)>,
    next_ticket: u64,
}

/// A turn. Dropping it passes it on.
pub struct Turn {
    fair: Arc<Fair>,
    tenant: Tenant,
}

enum Asked {
    Turn(Turn),
    Waiting(Waiting),
}

/// A wait for a turn. Dropping it ends the wait.
struct Waiting {
    fair: Arc<Fair>,
    ticket: u64,
    rx: oneshot::Receiver<Turn>,
}

impl Fair {
    /// So many turns, of which a tenant has at most `each_max`.
    pub fn new(count: usize, each_max: usize) -> Arc<Fair> {
        let state = State { free: count, taken: HashMap::new(), waiting: BTreeMap::new(), next_ticket: 0 };
        Arc::new(Fair { state: Mutex::new(state), each_max })
    }

    /// Waits for a turn. May be cancelled.
    pub async fn turn(self: &Arc<Fair>, tenant: Tenant) -> Turn {
        loop {
            let mut waiting = match self.ask(tenant) {
                Asked::Turn(turn) => return turn,
                Asked::Waiting(waiting) => waiting,
            };
            // Nobody else takes it out of the line; if somebody did, it would ask again.
            if let Ok(turn) = (&mut waiting.rx).await {
                return turn;
            }
        }
    }

    fn ask(self: &Arc<Fair>, tenant: Tenant) -> Asked {
        let mut state = self.lock();
        // Where there is a free one, all who wait have as many as they may.
        if state.take(tenant, self.each_max) {
            return Asked::Turn(Turn { fair: Arc::clone(self), tenant });
        }
        let (ticket, (tx, rx)) = (state.next_ticket, oneshot::channel());
        state.next_ticket += 1;
        state.waiting.insert(ticket, (tenant, tx));
        drop(state);
        Asked::Waiting(Waiting { fair: Arc::clone(self), ticket, rx })
    }

    /// No panic can happen under this lock; a poisoned one would still hold a good state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn taken(&self, tenant: Tenant) -> usize {
        self.taken.get(&tenant).copied().unwrap_or_default()
    }

    /// Counts one more turn of a tenant, if there is one for it.
    fn take(&mut self, tenant: Tenant, each_max: usize) -> bool {
        let taken = self.taken(tenant);
        if self.free == 0 || taken >= each_max {
            return false;
        }
        self.free -= 1;
        self.taken.insert(tenant, taken + 1);
        true
    }

    fn give_back(&mut self, tenant: Tenant) {
        self.free += 1;
        match self.taken(tenant).saturating_sub(1) {
            0 => self.taken.remove(&tenant),
            left => self.taken.insert(tenant, left),
        };
    }

    /// Takes a turn for whose turn it is.
    fn next(&mut self, each_max: usize) -> Option<(Tenant, oneshot::Sender<Turn>)> {
        let rank = |(ticket, (tenant, _)): (&u64, &(Tenant, oneshot::Sender<Turn>))| (self.taken(*tenant), *ticket);
        let (_, ticket) = self.waiting.iter().map(rank).min()?;
        let tenant = self.waiting.get(&ticket)?.0;
        if self.take(tenant, each_max) { self.waiting.remove(&ticket) } else { None }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.fair.lock();
        state.give_back(self.tenant);
        let next = state.next(self.fair.each_max);
        drop(state);
        if let Some((tenant, tx)) = next {
            // Whoever has just stopped waiting passes it on, by this same drop.
            let _ = tx.send(Turn { fair: Arc::clone(&self.fair), tenant });
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let removed = self.fair.lock().waiting.remove(&self.ticket);
        drop(removed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const GREEDY: Tenant = Tenant(1);
    const OTHER: Tenant = Tenant(2);

    fn all_is_free(fair: &Fair, count: usize) {
        let state = fair.lock();
        assert_eq!((state.free, state.taken.len(), state.waiting.len()), (count, 0, 0));
    }

    #[test]
    fn a_free_turn_goes_to_the_tenant_that_has_the_fewest() {
        let fair = Fair::new(2, 2);
        let take = |tenant| fair.turn(tenant).now_or_never().unwrap();
        let mut held = vec![take(GREEDY), take(GREEDY)];
        let mut greedy: Vec<_> = (0..200).map(|_| Box::pin(fair.turn(GREEDY))).collect();
        greedy.iter_mut().for_each(|turn| assert!(turn.now_or_never().is_none()));
        let mut other = Box::pin(fair.turn(OTHER));
        assert!((&mut other).now_or_never().is_none());
        held.pop();
        assert!(greedy.iter_mut().all(|turn| turn.now_or_never().is_none()));
        let other = other.now_or_never().unwrap();
        drop(other);
        let next = (&mut greedy[0]).now_or_never();
        assert!(next.is_some(), "nobody else waits, and it came first");
        drop((next, greedy, held));
        all_is_free(&fair, 2);
    }

    #[test]
    fn a_tenant_has_at_most_its_share_though_there_are_more() {
        let fair = Fair::new(4, 2);
        let take = |tenant| fair.turn(tenant).now_or_never();
        let held = [take(GREEDY), take(GREEDY)];
        let mut third = Box::pin(fair.turn(GREEDY));
        assert!((&mut third).now_or_never().is_none());
        let others = [take(OTHER), take(OTHER)];
        assert!(others.iter().all(Option::is_some));
        drop(others);
        assert!((&mut third).now_or_never().is_none(), "those that became free were not its own");
        drop(held);
        assert!(third.now_or_never().is_some());
        all_is_free(&fair, 4);
    }

    #[tokio::test]
    async fn no_turn_is_lost_whoever_stops_waiting() {
        let fair = Fair::new(3, 2);
        let work = |seed: u64| {
            let fair = Arc::clone(&fair);
            async move {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..200 {
                    let tenant = Tenant(random.u64(0..4));
                    match random.bool() {
                        true => {
                            let _turn = fair.turn(tenant).await;
                            tokio::task::yield_now().await;
                        }
                        false => tokio::select! {
                            biased;
                            _turn = fair.turn(tenant) => {}
                            () = tokio::task::yield_now() => {}
                        },
                    }
                }
            }
        };
        futures_util::future::join_all((0..16).map(work)).await;
        all_is_free(&fair, 3);
    }
}
