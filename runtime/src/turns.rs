//! Turns to change what has a name: one at a time for each name, so that what a change read is still true when it is
//! committed. Changes of different names go on together, and share a sync of the disk.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, OwnedMutexGuard};

use crate::catalog::WorkspaceId;

/// Turns at one time; names share them by their hash. As many changes as this wait for one sync.
const TURNS: usize = 64;

/// The turns of all names.
pub struct Turns([Arc<Mutex<()>>; TURNS]);

impl Default for Turns {
    fn default() -> Turns {
        Turns(std::array::from_fn(|_| Arc::default()))
    }
}

impl Turns {
    /// Waits for the turn of a name, which ends when the guard is dropped. Who has one must not wait for another.
    pub async fn of(&self, workspace: WorkspaceId, name: &str) -> MutexGuard<'_, ()> {
        self.shared(workspace, name).lock().await
    }

    /// The same for work that goes on, and keeps its turn, when whoever asked for it is gone.
    pub async fn owned(&self, workspace: WorkspaceId, name: &str) -> OwnedMutexGuard<()> {
        Arc::clone(self.shared(workspace, name)).lock_owned().await
    }

    fn shared(&self, workspace: WorkspaceId, name: &str) -> &Arc<Mutex<()>> {
        let mut hasher = DefaultHasher::new();
        (workspace, name).hash(&mut hasher);
        &self.0[hasher.finish() as usize % TURNS]
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_name_has_one_turn_at_a_time_however_it_is_held() {
        let turns = Turns::default();
        let here = WorkspaceId(1);
        let owned = turns.owned(here, "a").now_or_never().unwrap();
        assert!(turns.owned(here, "a").now_or_never().is_none());
        assert!(turns.of(here, "a").now_or_never().is_none());
        drop(owned);
        let turn = turns.of(here, "a").now_or_never().unwrap();
        assert!(turns.owned(here, "a").now_or_never().is_none());
        drop(turn);
        drop(turns.owned(here, "a").now_or_never().unwrap());
    }
}
