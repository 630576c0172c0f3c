//! How many of the processor's threads compute now, so that what can choose how many it uses does not take what others have.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The threads that this process may keep busy with computing, and how many are.
#[derive(Debug)]
pub struct BusyThreads {
    total: u32,
    busy: AtomicU32,
}

impl BusyThreads {
    /// None of `total` is busy.
    pub fn new(total: u32) -> Arc<BusyThreads> {
        Arc::new(BusyThreads { total: total.max(1), busy: AtomicU32::new(0) })
    }

    /// Counts `threads` as busy until the guard is dropped.
    pub(super) fn enter(self: &Arc<Self>, threads: u32) -> Entered {
        self.busy.fetch_add(threads, Relaxed);
        Entered { busy: Arc::clone(self), threads }
    }

    /// Counts as many as are free, up to `wanted` and at least one. Two who come at once may get the same ones: for one
    /// step of each the processor is shared, and nobody waits.
    #[cfg_attr(not(feature = "llama"), allow(dead_code, reason = "only llama.cpp asks"))]
    pub(super) fn enter_free(self: &Arc<Self>, wanted: u32) -> Entered {
        let free = self.total.saturating_sub(self.busy.load(Relaxed));
        self.enter(free.min(wanted).max(1))
    }
}

/// Threads that count as busy.
pub(super) struct Entered {
    busy: Arc<BusyThreads>,
    threads: u32,
}

impl Entered {
    /// How many.
    #[cfg_attr(not(feature = "llama"), allow(dead_code, reason = "only llama.cpp asks"))]
    pub(super) fn threads(&self) -> u32 {
        self.threads
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.busy.busy.fetch_sub(self.threads, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_can_choose_gets_what_others_leave_and_always_one() {
        let busy = BusyThreads::new(4);
        let first = busy.enter_free(3);
        assert_eq!(first.threads(), 3);
        let second = busy.enter_free(3);
        assert_eq!(second.threads(), 1, "what is left");
        assert_eq!(busy.enter_free(3).threads(), 1, "nobody waits");
        drop(first);
        assert_eq!(busy.enter_free(8).threads(), 3);
        drop(second);
        assert_eq!(busy.enter_free(8).threads(), 4);
    }
}
