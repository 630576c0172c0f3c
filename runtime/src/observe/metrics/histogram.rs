//! A histogram of durations without a lock. That of `prometheus_client` has one, which a profile of a busy endpoint would
//! show, and cannot be read in another unit.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

/// How many durations fell below each bound.
#[derive(Debug)]
pub(super) struct Histogram {
    /// In seconds, rising; all that is above falls into one more bucket.
    bounds: &'static [f64],
    buckets: Box<[AtomicU64]>,
    sum_ns: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Histogram {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, buckets, sum_ns: AtomicU64::new(0) }
    }

    pub(super) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = self.bounds.iter().position(|bound| seconds <= *bound).unwrap_or(self.bounds.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_ns.fetch_add(duration.as_nanos() as u64, Relaxed);
    }

    /// All durations together, in nanoseconds.
    pub(super) fn sum_ns(&self) -> u64 {
        self.sum_ns.load(Relaxed)
    }

    /// Writes it in a unit of which a second has `per_second`.
    pub(super) fn encode(&self, mut encoder: MetricEncoder<'_>, per_second: f64) -> fmt::Result {
        let bounds = self.bounds.iter().map(|bound| bound * per_second).chain([f64::MAX]);
        let counts: Vec<(f64, u64)> = bounds.zip(self.buckets.iter().map(|bucket| bucket.load(Relaxed))).collect();
        let count = counts.iter().map(|(_, count)| count).sum();
        let sum = self.sum_ns.load(Relaxed) as f64 / 1e9 * per_second;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &counts, None)
    }
}
