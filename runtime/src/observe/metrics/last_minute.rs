//! A count over the last minute, without a lock: a ring of slots, each for some seconds.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

const SLOTS: usize = 16;

/// 15 full slots are a minute; the sixteenth is the one that fills.
const SLOT_SECONDS: u64 = 4;

/// Seconds since the first call; what [`LastMinute`] is told.
pub(super) fn second() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs()
}

/// How many in the last minute, to within the seconds of a slot.
#[derive(Debug, Default)]
pub(super) struct LastMinute([AtomicU64; SLOTS]);

/// A slot: the number of its time in the upper half, its count in the lower.
fn slot(time: u64, count: u32) -> u64 {
    time << 32 | u64::from(count)
}

impl LastMinute {
    pub(super) fn add(&self, second: u64, count: u32) {
        // From 1, so that a slot of zeros is nobody's.
        let time = second / SLOT_SECONDS + 1;
        let place = &self.0[time as usize % SLOTS];
        let add = |seen: u64| {
            let before = if seen >> 32 == time { seen as u32 } else { 0 };
            Some(slot(time, before.saturating_add(count)))
        };
        // Never fails: `add` always has an answer.
        let _ = place.fetch_update(Relaxed, Relaxed, add);
    }

    pub(super) fn count(&self, second: u64) -> u64 {
        let now = second / SLOT_SECONDS + 1;
        let slots = self.0.iter().map(|slot| slot.load(Relaxed));
        let recent = slots.filter(|slot| slot >> 32 != 0 && now.saturating_sub(slot >> 32) < SLOTS as u64);
        recent.map(|slot| u64::from(slot as u32)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_a_minute_does_not_count() {
        let recent = LastMinute::default();
        assert_eq!(recent.count(0), 0);
        recent.add(0, 3);
        recent.add(30, 1);
        recent.add(59, 1);
        assert_eq!(recent.count(59), 5);
        assert_eq!(recent.count(64), 2, "the first ones are gone");
        recent.add(64, 1);
        assert_eq!((recent.count(64), recent.count(93), recent.count(1000)), (3, 2, 0));
    }

    #[test]
    fn many_threads_lose_nothing() {
        let recent = LastMinute::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|n| recent.add(n / 1000, 1)));
            }
        });
        assert_eq!(recent.count(10), 40_000);
    }
}
