//! How much happened in the last minute, counted by many threads without a lock.
//!
//! A minute is cut into slots of [`SLOT_MS`]; `total` is never less than the sum of the slots that still count. An amount
//! counts for at least 60 s and less than 60 s + [`SLOT_MS`], so in no span of 60 s is more admitted than the limit. A
//! token bucket would be smaller, but after a quiet time it admits nearly twice the limit within one minute.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

/// Time that one slot stands for.
pub const SLOT_MS: u64 = 4000;

/// The slot of now, and 60 s of slots before it.
const SLOTS: u64 = 16;

/// Low bits of a slot hold its amount, the others its epoch: 34 years of epochs.
const AMOUNT_BITS: u32 = 36;

/// Largest limit, and largest amount in one slot.
pub const AMOUNT_MAX: u64 = (1 << AMOUNT_BITS) - 1;

/// `total` of a window that was removed because nothing counted in it.
const RETIRED: u64 = u64::MAX;

/// The counter. Times are milliseconds of a clock that never goes back.
#[derive(Debug, Default)]
pub struct Window {
    total: AtomicU64,
    /// The epoch for which slots that are too old were last emptied.
    swept: AtomicU64,
    slots: [AtomicU64; SLOTS as usize],
}

/// Why nothing was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There would be room in so many milliseconds, if nobody else takes it.
    Full {
        /// From now.
        wait_ms: u64,
    },
    /// The window was retired: make another one.
    Retired,
}

impl Window {
    /// Counts `amount` if the last minute then has at most `limit`. The answer is where it was counted, for
    /// [`Window::credit`].
    ///
    /// # Errors
    /// [`Refused`]; then nothing was counted.
    pub fn take(&self, amount: u64, limit: u64, now_ms: u64) -> Result<u64, Refused> {
        let epoch = now_ms / SLOT_MS;
        self.sweep(epoch);
        let room = |total| if total == RETIRED || total + amount > limit { None } else { Some(total + amount) };
        match self.total.fetch_update(AcqRel, Acquire, room) {
            Ok(_) => Ok(self.add(epoch, amount)),
            Err(RETIRED) => Err(Refused::Retired),
            Err(_) => Err(Refused::Full { wait_ms: self.wait_ms(amount, limit, now_ms) }),
        }
    }

    /// Counts `amount` whatever the limit: it was used.
    pub fn charge(&self, amount: u64, now_ms: u64) {
        let counted = |total| if total == RETIRED { None } else { Some(total + amount) };
        if self.total.fetch_update(AcqRel, Acquire, counted).is_ok() {
            self.add(now_ms / SLOT_MS, amount);
        }
    }

    /// Takes back what was counted at `epoch`, unless it no longer counts.
    pub fn credit(&self, epoch: u64, amount: u64) {
        let slot = &self.slots[(epoch % SLOTS) as usize];
        let less = |packed| (epoch_of(packed) == epoch).then(|| packed - amount.min(amount_of(packed)));
        if let Ok(packed) = slot.fetch_update(AcqRel, Acquire, less) {
            self.total.fetch_sub(amount.min(amount_of(packed)), AcqRel);
        }
    }

    /// How long until `amount` fits, if nothing more is counted; 0 if it fits now. For `amount` above `limit` the time
    /// until the window is empty.
    pub fn wait_ms(&self, amount: u64, limit: u64, now_ms: u64) -> u64 {
        let now = now_ms / SLOT_MS;
        self.sweep(now);
        let mut used = self.total.load(Acquire);
        let mut wait_ms = 0;
        for epoch in (now + 1).saturating_sub(SLOTS)..=now {
            if used.saturating_add(amount) <= limit {
                break;
            }
            let packed = self.slots[(epoch % SLOTS) as usize].load(Acquire);
            if epoch_of(packed) == epoch {
                used = used.saturating_sub(amount_of(packed));
            }
            wait_ms = (epoch + SLOTS) * SLOT_MS - now_ms;
        }
        wait_ms
    }

    /// Ends the window if nothing counts in it. Whoever still holds it is told so, so that no amount is lost.
    pub fn retire(&self, now_ms: u64) -> bool {
        self.sweep(now_ms / SLOT_MS);
        self.total.compare_exchange(0, RETIRED, AcqRel, Acquire).is_ok()
    }

    /// Adds to the slot of `epoch`, or to the later one that has taken its place while this thread waited.
    fn add(&self, epoch: u64, amount: u64) -> u64 {
        let slot = &self.slots[(epoch % SLOTS) as usize];
        let mut packed = slot.load(Acquire);
        loop {
            let (old, old_amount) = (epoch_of(packed), amount_of(packed));
            let (kept, expired) = if old >= epoch { (old_amount, 0) } else { (0, old_amount) };
            let new = pack(old.max(epoch), kept + amount);
            match slot.compare_exchange_weak(packed, new, AcqRel, Acquire) {
                Ok(_) => {
                    self.total.fetch_sub(expired, AcqRel);
                    return old.max(epoch);
                }
                Err(now) => packed = now,
            }
        }
    }

    /// Empties the slots that no longer count; once per epoch.
    fn sweep(&self, epoch: u64) {
        let swept = self.swept.load(Relaxed);
        if swept >= epoch || self.swept.compare_exchange(swept, epoch, AcqRel, Relaxed).is_err() {
            return;
        }
        for slot in &self.slots {
            let emptied = |packed| {
                (epoch_of(packed) + SLOTS <= epoch && amount_of(packed) > 0).then(|| pack(epoch_of(packed), 0))
            };
            if let Ok(packed) = slot.fetch_update(AcqRel, Acquire, emptied) {
                self.total.fetch_sub(amount_of(packed), AcqRel);
            }
        }
    }
}

fn pack(epoch: u64, amount: u64) -> u64 {
    epoch << AMOUNT_BITS | amount.min(AMOUNT_MAX)
}

fn epoch_of(packed: u64) -> u64 {
    packed >> AMOUNT_BITS
}

fn amount_of(packed: u64) -> u64 {
    packed & AMOUNT_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_window_says_exactly_when_there_is_room() {
        let window = Window::default();
        window.take(3, 5, 10_000).unwrap();
        window.take(2, 5, 30_000).unwrap();
        let Err(Refused::Full { wait_ms }) = window.take(1, 5, 40_000) else { panic!("there was room") };
        assert!((10_000 + 60_000..10_000 + 60_000 + SLOT_MS).contains(&(40_000 + wait_ms)), "{wait_ms}");
        assert!(window.take(1, 5, 40_000 + wait_ms - 1).is_err());
        assert!(window.take(3, 5, 40_000 + wait_ms).is_ok());
        assert!(window.take(1, 5, 40_000 + wait_ms).is_err());
    }

    #[test]
    fn credit_and_charge_correct_an_estimate() {
        let window = Window::default();
        let epoch = window.take(80, 100, 0).unwrap();
        window.credit(epoch, 70);
        window.charge(85, 1000);
        assert!(matches!(window.take(6, 100, 2000), Err(Refused::Full { .. })));
        window.take(5, 100, 2000).unwrap();
        // What no longer counts cannot be taken back a second time.
        window.take(100, 100, 200_000).unwrap();
        window.credit(epoch, 10);
        assert!(window.take(1, 100, 200_000).is_err());
    }

    #[test]
    fn only_an_empty_window_retires_and_then_counts_nothing() {
        let window = Window::default();
        window.take(1, 1, 0).unwrap();
        assert!(!window.retire(59_999));
        assert!(window.retire(64_000));
        assert_eq!(window.take(1, 1, 64_000), Err(Refused::Retired));
    }
}
