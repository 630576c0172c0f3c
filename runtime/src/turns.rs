//! Turns to change what has a name: one at a time for each name, so that what a change read is still true when it is
//! committed. Changes of different names go on together, and share a sync of the disk.

use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::sync::{Mutex, MutexGuard};

use crate::catalog::WorkspaceId;

/// Turns at one time; names share them by their hash. As many changes as this wait for one sync.
const TURNS: usize = 64;

/// The turns of all names.
pub struct Turns([Mutex<()>; TURNS]);

impl Default for Turns {
    fn default() -> Turns {
        Turns(std::array::from_fn(|_| Mutex::new(())))
    }
}

impl Turns {
    /// Waits for the turn of a name, which ends when the guard is dropped. Who has one must not wait for another.
    pub async fn of(&self, workspace: WorkspaceId, name: &str) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        (workspace, name).hash(&mut hasher);
        self.0[hasher.finish() as usize % TURNS].lock().await
    }
}
