//! Requests of isolated instances, run together: a graph computes many rows for little more than the price of one.
//!
//! A *lane* is the work that can share a run: one graph, one shape behind the batch axis. Nothing ever waits for a batch
//! to fill. What is there when a backend is free runs, up to the number of rows at which a row becomes no cheaper
//! ([`schedule`] learns it); what comes meanwhile is the next batch. Only graphs batch whose rows were shown at deploy to
//! be independent of each other ([`probe`]).

pub(super) mod probe;
pub(super) mod queue;
mod rows;
pub(super) mod schedule;
mod spec;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

pub use self::probe::probe;
pub use self::schedule::{Profile, Schedule};
pub use self::spec::{BatchSpec, Padding};
use super::error::panic_text;
use super::{Cancel, Graph, Inputs, NnError, Tensor};

/// Who a computation is for: fairness is between these. A workspace, for whoever knows workspaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tenant(pub u64);

/// All outputs of a computation, in the model's order.
pub type Outputs = Vec<(String, Tensor)>;

/// One computation that waits.
pub(super) struct Work {
    pub(super) tenant: Tenant,
    pub(super) graph: Arc<dyn Graph>,
    pub(super) inputs: Inputs,
    /// Rows of axis 0; 1 where there is no such thing.
    pub(super) rows: u32,
    pub(super) deadline: Instant,
    pub(super) queued: Instant,
    pub(super) cancel: Arc<Cancel>,
    pub(super) tx: oneshot::Sender<Answer>,
}

/// What whoever waits for a work hears.
#[derive(Debug)]
pub(super) enum Answer {
    /// What it computed.
    Done(Result<Outputs, NnError>),
    /// A thread does it, and not this event loop; the answer comes from there.
    Elsewhere(oneshot::Receiver<Answer>),
}

/// What has been computed since the start, for metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Runs of a backend.
    pub runs: AtomicU64,
    /// Computations that were asked for.
    pub works: AtomicU64,
    /// Requests that were dropped before they ran: nobody waited any more, or the deadline had passed.
    pub dropped: AtomicU64,
    /// Time that requests waited, in nanoseconds.
    pub queue_ns: AtomicU64,
    /// Time in backends, in nanoseconds.
    pub run_ns: AtomicU64,
}

impl Work {
    pub(super) fn wanted(&self, now: Instant) -> bool {
        !self.tx.is_closed() && now < self.deadline
    }

    /// Whether one run can answer both.
    fn shares_a_run_with(&self, other: &Work) -> bool {
        let schedule = self.graph.schedule();
        std::ptr::addr_eq(Arc::as_ptr(&self.graph), Arc::as_ptr(&other.graph))
            && schedule.batchable()
            && rows::rows(&self.inputs).is_some()
            && rows::rows(&other.inputs).is_some()
            && rows::fit(&self.inputs, &other.inputs, schedule.spec().pad.as_ref(), self.graph.info())
    }
}

/// Whether a running batch can be stopped before its end.
#[derive(Clone, Copy)]
pub(super) enum Stop<'a> {
    /// It stops once nobody waits for any of its answers.
    WhenUnwanted,
    /// It runs on the event loop of those who wait, who cannot leave meanwhile: the loop's watch stops it.
    By(&'a Cancel),
}

impl Stop<'_> {
    fn has_come(self) -> bool {
        matches!(self, Stop::By(cancel) if cancel.is_cancelled())
    }
}

/// Runs a batch and answers everybody in it, but those whose run was stopped for the sake of the event loop when it was not
/// their own alone: they are given back, to run elsewhere.
#[must_use]
pub(super) fn run(batch: Vec<Work>, stop: Stop<'_>, counters: &Counters) -> Vec<Work> {
    let started = Instant::now();
    let waited: Duration = batch.iter().map(|work| started.saturating_duration_since(work.queued)).sum();
    counters.queue_ns.fetch_add(waited.as_nanos() as u64, Relaxed);
    match <[Work; 1]>::try_from(batch) {
        Ok([work]) => {
            run_alone(work, stop, counters);
            Vec::new()
        }
        Err(batch) => run_together(batch, stop, counters),
    }
}

fn run_alone(work: Work, stop: Stop<'_>, counters: &Counters) {
    let Work { graph, inputs, rows, cancel, tx, .. } = work;
    let result = match stop {
        Stop::By(watch) => run_watched(&*graph, inputs, rows, watch, counters),
        Stop::WhenUnwanted => run_until(&*graph, inputs, rows, &cancel, counters),
    };
    // The graph first: whoever gets the answer may count on this run not holding it any more.
    drop(graph);
    let _ = tx.send(Answer::Done(result));
}

fn run_together(batch: Vec<Work>, stop: Stop<'_>, counters: &Counters) -> Vec<Work> {
    let graph = Arc::clone(&batch[0].graph);
    match try_together(&graph, &batch, stop, counters) {
        Some(answers) => {
            drop(graph);
            for (work, outputs) in batch.into_iter().zip(answers) {
                let Work { graph, tx, .. } = work;
                drop(graph);
                let _ = tx.send(Answer::Done(Ok(outputs)));
            }
            Vec::new()
        }
        // One request's values can fail a run, and must not fail its neighbours'.
        None => {
            let mut batch = batch.into_iter();
            while !stop.has_come()
                && let Some(work) = batch.next()
            {
                run_alone(work, stop, counters);
            }
            batch.collect()
        }
    }
}

/// The answers of a batch; `None` when it could not run as one.
fn try_together(graph: &Arc<dyn Graph>, batch: &[Work], stop: Stop<'_>, counters: &Counters) -> Option<Vec<Outputs>> {
    let (schedule, info) = (graph.schedule(), graph.info());
    let inputs: Vec<&Inputs> = batch.iter().map(|work| &work.inputs).collect();
    let (joined, layout) = rows::gather(&inputs, schedule.spec().pad.as_ref(), info).ok()?;
    let rows = batch.iter().map(|work| work.rows).sum();
    let outputs = match stop {
        Stop::By(watch) => run_watched(&**graph, joined, rows, watch, counters),
        Stop::WhenUnwanted => {
            let all = Arc::new(Cancel::default());
            let waiting = Arc::new(AtomicUsize::new(batch.len()));
            let _watched: Vec<_> = batch.iter().filter_map(|work| watch(work, &all, &waiting)).collect();
            run_until(&**graph, joined, rows, &all, counters)
        }
    };
    let answers = rows::scatter(outputs.ok()?, &layout, info);
    if answers.is_none() {
        tracing::warn!("a graph's outputs are not made of its rows after all: its requests run alone from now on");
        schedule.disprove();
    }
    answers
}

/// Stops the batch when this one, as the last of it, is not wanted any more.
fn watch<'a>(work: &'a Work, all: &Arc<Cancel>, waiting: &Arc<AtomicUsize>) -> Option<super::cancel::Disarm<'a>> {
    let gone = {
        let (all, waiting) = (Arc::clone(all), Arc::clone(waiting));
        move || {
            if waiting.fetch_sub(1, Relaxed) == 1 {
                all.cancel();
            }
        }
    };
    let watched = work.cancel.on_cancel(gone.clone());
    watched.map_err(|_| gone()).ok()
}

/// Runs a graph on an event loop. One that had to be stopped there does not run there again.
pub(super) fn run_watched(
    graph: &dyn Graph,
    inputs: Inputs,
    rows: u32,
    cancel: &Cancel,
    counters: &Counters,
) -> Result<Outputs, NnError> {
    let result = run_until(graph, inputs, rows, cancel, counters);
    if cancel.is_cancelled() {
        tracing::warn!("a graph held up an event loop and was stopped: it runs on threads from now on");
        graph.schedule().keep_to_threads();
        return result.map_err(|_| super::watch::stopped());
    }
    result
}

/// Runs a graph, learns from it, and survives its panics.
fn run_until(
    graph: &dyn Graph,
    inputs: Inputs,
    rows: u32,
    cancel: &Cancel,
    counters: &Counters,
) -> Result<Outputs, NnError> {
    let started = Instant::now();
    // The graph is shared and immutable, and what a panicking run made is dropped: nothing half-made survives.
    let result = catch_unwind(AssertUnwindSafe(|| graph.run(inputs, cancel)))
        .unwrap_or_else(|panic| Err(NnError::runtime(format!("the backend panicked: {}", panic_text(&*panic)))));
    let took = started.elapsed();
    counters.runs.fetch_add(1, Relaxed);
    counters.run_ns.fetch_add(took.as_nanos() as u64, Relaxed);
    let schedule = graph.schedule();
    // One that fails early says nothing of the others; one that fails late is as long as any.
    if result.is_ok() || schedule.estimate(rows).is_some_and(|expected| took > expected) {
        schedule.record(rows, took);
    }
    result
}
