//! What is known of a loaded graph's runs: whether rows of different requests may share one, how long a run takes, and
//! how many rows are worth waiting for.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::spec::BatchSpec;
use crate::nn::Inputs;
use crate::nn::threads::MeasuredThreads;

/// Sizes of runs that are told apart: 1, 2, up to 4, up to 8, … up to 512 rows.
const CLASSES: usize = 10;

/// The largest run that is learnt about.
pub(super) const ROWS_MAX: u32 = 1 << (CLASSES - 1);

/// A doubling pays when it takes the cost of a row below this part of what it was, in percent. Less is noise.
const GAIN_PERCENT: u64 = 95;

/// Runs after which the size is learnt anew.
const LEARN_EVERY: u32 = 64;

/// Runs after which a size that did not pay is tried again: the measurement may have met a busy moment.
const RETRY_EVERY: u32 = 1024;

/// A graph's schedule: shared by all who run it, updated by every run.
#[derive(Debug)]
pub struct Schedule {
    spec: BatchSpec,
    threads_only: AtomicBool,
    proved: AtomicBool,
    /// Nanoseconds per row by size of the run; 0 where there was none yet.
    row_ns: [AtomicU64; CLASSES],
    runs: AtomicU32,
    rows_max: AtomicU32,
    /// Whether the next inputs are to be kept in `sample`.
    wants_sample: AtomicBool,
    sample: Mutex<Option<Inputs>>,
}

/// What a deploy found out about a graph, kept for the next time it is loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Whether rows alone were shown to equal rows together.
    pub batchable: bool,
    /// Whether they were equal bit for bit.
    pub exact: bool,
    /// Nanoseconds per row of a run of 1, 2, 4, … rows, as far as measured.
    pub row_ns: Vec<u64>,
    /// Threads of one run.
    pub threads: MeasuredThreads,
    /// Why the graph is not batchable, or how it was shown to be: for the build log.
    pub finding: String,
}

impl Schedule {
    /// A schedule that knows nothing yet: until [`Schedule::adopt`] every request runs alone.
    pub fn new(spec: BatchSpec) -> Schedule {
        Schedule {
            spec,
            threads_only: AtomicBool::new(false),
            proved: AtomicBool::new(false),
            row_ns: Default::default(),
            runs: AtomicU32::new(0),
            rows_max: AtomicU32::new(1),
            wants_sample: AtomicBool::new(false),
            sample: Mutex::default(),
        }
    }

    /// A schedule for a graph whose runs wait for a device, or cannot be stopped: an event loop must not wait with them.
    pub fn threads_only(spec: BatchSpec) -> Schedule {
        let schedule = Schedule::new(spec);
        schedule.keep_to_threads();
        schedule
    }

    /// No event loop runs it from now on.
    pub(super) fn keep_to_threads(&self) {
        self.threads_only.store(true, Relaxed);
    }

    /// Whether an event loop may run it, were it short.
    pub(in crate::nn) fn is_for_event_loops(&self) -> bool {
        !self.threads_only.load(Relaxed)
    }

    /// Takes over what a deploy found out.
    pub fn adopt(&self, profile: &Profile) {
        for (known, &measured) in self.row_ns.iter().zip(&profile.row_ns) {
            known.store(measured, Relaxed);
        }
        self.proved.store(profile.batchable, Relaxed);
        self.learn();
    }

    /// Keeps the inputs of the next computation for [`Schedule::take_sample`].
    pub fn want_sample(&self) {
        self.wants_sample.store(true, Relaxed);
    }

    /// The inputs kept, if there were any since [`Schedule::want_sample`].
    pub fn take_sample(&self) -> Option<Inputs> {
        self.wants_sample.store(false, Relaxed);
        self.sample.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Shows what is about to be computed.
    pub(in crate::nn) fn offer_sample(&self, inputs: &Inputs) {
        if self.wants_sample.load(Relaxed) && self.wants_sample.swap(false, Relaxed) {
            *self.sample.lock().unwrap_or_else(PoisonError::into_inner) = Some(inputs.clone());
        }
    }

    /// What the package says.
    pub(super) fn spec(&self) -> &BatchSpec {
        &self.spec
    }

    /// Whether rows of different requests may share a run.
    pub(super) fn batchable(&self) -> bool {
        self.proved.load(Relaxed) && self.spec.rows_max != Some(1)
    }

    /// Takes back that the graph is batchable: a run showed that it is not.
    pub(super) fn disprove(&self) {
        self.proved.store(false, Relaxed);
    }

    /// Rows of a run beyond which a row becomes no cheaper.
    pub(super) fn rows_max(&self) -> u32 {
        self.rows_max.load(Relaxed).min(self.spec.rows_max.unwrap_or(u32::MAX))
    }

    /// How long a run of this many rows will take; `None` before the first run.
    pub(in crate::nn) fn estimate(&self, rows: u32) -> Option<Duration> {
        // The nearest size below that is known: a larger run costs at most as much per row.
        let row_ns = self.row_ns[..=class(rows)].iter().rev().map(|ns| ns.load(Relaxed)).find(|&ns| ns > 0)?;
        Some(Duration::from_nanos(row_ns.saturating_mul(u64::from(rows.max(1)))))
    }

    /// Learns from a run.
    pub(super) fn record(&self, rows: u32, took: Duration) {
        let measured = (took.as_nanos() as u64 / u64::from(rows.max(1))).max(1);
        let known = &self.row_ns[class(rows)];
        let before = known.load(Relaxed);
        // An average, the same way up as down: one that leans to the quickest runs would compare the lucky ones of each
        // size, of which the size that runs most often has the most. A thread that was taken off the processor counts
        // for little. Two threads may do this at once, and one measurement of many is then lost.
        let now = match before {
            0 => measured,
            before => before - before / 8 + measured.min(before.saturating_mul(4)) / 8,
        };
        known.store(now.max(1), Relaxed);
        let runs = self.runs.fetch_add(1, Relaxed).wrapping_add(1);
        if runs.is_multiple_of(RETRY_EVERY) {
            let beyond = class(self.rows_max.load(Relaxed)) + 1;
            if let Some(row_ns) = self.row_ns.get(beyond) {
                row_ns.store(0, Relaxed);
            }
        }
        if runs.is_multiple_of(LEARN_EVERY) {
            self.learn();
        }
    }

    /// Grows the run as long as each doubling makes a row cheaper. A size that was never run is worth a try.
    fn learn(&self) {
        let mut class = 0;
        while class + 1 < CLASSES {
            let (smaller, larger) = (self.row_ns[class].load(Relaxed), self.row_ns[class + 1].load(Relaxed));
            if larger.saturating_mul(100) > smaller.saturating_mul(GAIN_PERCENT) {
                break;
            }
            class += 1;
            if larger == 0 {
                break;
            }
        }
        self.rows_max.store(1 << class, Relaxed);
    }
}

/// Which size a run counts as: the power of two that holds its rows.
fn class(rows: u32) -> usize {
    (rows.max(1).next_power_of_two().trailing_zeros() as usize).min(CLASSES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(row_ns: &[u64]) -> Profile {
        Profile { batchable: true, row_ns: row_ns.to_vec(), ..Profile::default() }
    }

    fn schedule(row_ns: &[u64]) -> Schedule {
        let schedule = Schedule::new(BatchSpec::default());
        schedule.adopt(&profile(row_ns));
        schedule
    }

    #[test]
    fn a_run_grows_until_a_row_becomes_no_cheaper() {
        assert_eq!(schedule(&[100, 60, 40, 39, 10]).rows_max(), 4);
        assert_eq!(schedule(&[100, 99]).rows_max(), 1);
        assert_eq!(schedule(&[100, 60]).rows_max(), 4, "the next size is unknown and worth a try");
    }

    #[test]
    fn a_size_is_learnt_from_runs_alone() {
        let schedule = schedule(&[100]);
        let cost = |rows: u32| Duration::from_nanos(if rows <= 8 { 100 } else { u64::from(rows) * 15 });
        for _ in 0..2000 {
            let rows = schedule.rows_max();
            schedule.record(rows, cost(rows));
        }
        assert_eq!(schedule.rows_max(), 8);
    }

    #[test]
    fn the_package_may_ask_for_less() {
        let schedule = Schedule::new(BatchSpec { rows_max: Some(2), pad: None });
        schedule.adopt(&profile(&[100, 50, 25]));
        assert_eq!(schedule.rows_max(), 2);
        let alone = Schedule::new(BatchSpec { rows_max: Some(1), pad: None });
        alone.adopt(&profile(&[100, 50]));
        assert!(!alone.batchable());
    }

    #[test]
    fn an_estimate_grows_with_the_rows_and_one_slow_run_changes_little() {
        let schedule = schedule(&[1000]);
        assert_eq!(schedule.estimate(3), Some(Duration::from_nanos(3000)));
        schedule.record(1, Duration::from_millis(1));
        assert!(schedule.estimate(1).unwrap() < Duration::from_micros(2));
        for _ in 0..20 {
            schedule.record(1, Duration::from_micros(1));
        }
        assert!(schedule.estimate(1).unwrap() < Duration::from_micros(2));
        assert_eq!(Schedule::new(BatchSpec::default()).estimate(1), None);
    }
}
