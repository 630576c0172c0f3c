//! What one request may use: memory, processor time, time on the clock.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Relaxed, Ordering::Release};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use serde::{Deserialize, Serialize};
use wasmtime::ResourceLimiter;

/// Limits of one request in the sandbox. Each is enforced and has a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestLimits {
    /// Sum over the guest's linear memories and tables.
    pub memory_bytes: u64,
    /// Processor time of guest and host calls, without the backend's.
    pub cpu_ms: u64,
    /// Time on the clock from the first guest instruction to the end of the answer.
    pub wall_ms: u64,
    /// Tensors alive at one time, on the host's side.
    pub tensor_bytes: u64,
    /// Body of the response, whole or streamed.
    pub response_bytes: u64,
    /// Log lines kept of one request.
    pub log_bytes: u64,
}

/// Bytes that one table element is counted as: a pointer and its share of bookkeeping.
const TABLE_ELEMENT_BYTES: u64 = 16;

/// Sums what the guest's memories and tables hold; wasmtime's own limiter looks at each memory alone.
#[derive(Debug)]
pub(super) struct MemoryLimiter {
    used_bytes: u64,
    limit_bytes: u64,
    exceeded: bool,
}

impl MemoryLimiter {
    pub(super) fn new(limit_bytes: u64) -> MemoryLimiter {
        MemoryLimiter { used_bytes: 0, limit_bytes, exceeded: false }
    }

    /// Whether a growth was refused: tells a trap for want of memory from any other.
    pub(super) fn exceeded(&self) -> bool {
        self.exceeded
    }

    fn charge(&mut self, bytes: u64) -> bool {
        let fits = self.used_bytes.saturating_add(bytes) <= self.limit_bytes;
        if fits {
            self.used_bytes += bytes;
        } else {
            self.exceeded = true;
        }
        fits
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.charge(desired.saturating_sub(current) as u64))
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.charge((desired.saturating_sub(current) as u64).saturating_mul(TABLE_ELEMENT_BYTES)))
    }
}

/// Counts the processor time of one request, poll by poll, and polls only when its future has been woken: whatever else
/// wakes the task of a request, such as its connection, would resume a parked guest for nothing.
///
/// The guest runs only while its future is polled, on one thread at a time; what it does while parked in `compute` is
/// the backend's time, not its own.
#[derive(Debug)]
pub(super) struct CpuMeter {
    base: Instant,
    used_ns: AtomicU64,
    poll_started_ns: AtomicU64,
    limit: Duration,
    exceeded: AtomicBool,
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for CpuMeter {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Release);
        self.task.wake();
    }
}

impl CpuMeter {
    pub(super) fn new(limit: Duration) -> Arc<CpuMeter> {
        Arc::new(CpuMeter {
            base: Instant::now(),
            used_ns: AtomicU64::new(0),
            poll_started_ns: AtomicU64::new(0),
            limit,
            exceeded: AtomicBool::new(false),
            woken: AtomicBool::new(true),
            task: AtomicWaker::new(),
        })
    }

    /// Runs a future and counts the time of its polls.
    pub(super) async fn measure<F: Future>(self: &Arc<Self>, mut future: Pin<&mut F>) -> F::Output {
        let waker = Waker::from(Arc::clone(self));
        std::future::poll_fn(|context| {
            // Before it is looked whether there was a wake: one that comes later wakes the task.
            self.task.register(context.waker());
            if !self.woken.swap(false, AcqRel) {
                return Poll::Pending;
            }
            let started = self.now_ns();
            self.poll_started_ns.store(started, Relaxed);
            let poll = future.as_mut().poll(&mut Context::from_waker(&waker));
            self.used_ns.fetch_add(self.now_ns() - started, Relaxed);
            poll
        })
        .await
    }

    /// Time used so far. Only meaningful between polls.
    pub(super) fn used(&self) -> Duration {
        Duration::from_nanos(self.used_ns.load(Relaxed))
    }

    /// Called from inside a poll, at an epoch tick: true once the limit is reached.
    pub(super) fn over_limit(&self) -> bool {
        let this_poll = self.now_ns().saturating_sub(self.poll_started_ns.load(Relaxed));
        let over = self.used() + Duration::from_nanos(this_poll) > self.limit;
        if over {
            self.exceeded.store(true, Relaxed);
        }
        over
    }

    /// Whether the request was stopped for its processor time.
    pub(super) fn exceeded(&self) -> bool {
        self.exceeded.load(Relaxed)
    }

    fn now_ns(&self) -> u64 {
        self.base.elapsed().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_guest_is_polled_when_it_is_woken_and_not_with_its_task() {
        let (polls, waker) = (AtomicU64::new(0), AtomicWaker::new());
        let mut guest = std::pin::pin!(std::future::poll_fn(|context| {
            waker.register(context.waker());
            match polls.fetch_add(1, Relaxed) {
                0 => Poll::Pending,
                _ => Poll::Ready(()),
            }
        }));
        let meter = CpuMeter::new(Duration::MAX);
        let mut measured = std::pin::pin!(meter.measure(guest.as_mut()));
        let mut poll = || measured.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(poll().is_pending() && poll().is_pending());
        assert_eq!(polls.load(Relaxed), 1);
        waker.wake();
        assert!(poll().is_ready());
    }

    #[test]
    fn memories_and_tables_are_summed() {
        let mut limiter = MemoryLimiter::new(1000);
        assert!(limiter.memory_growing(0, 600, None).unwrap());
        assert!(!limiter.memory_growing(0, 600, None).unwrap(), "a second memory shares the limit");
        assert!(limiter.exceeded());
        assert!(limiter.table_growing(0, 20, None).unwrap());
        assert!(!limiter.table_growing(20, 40, None).unwrap());
    }
}
