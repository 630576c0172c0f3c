//! How many threads one run of a graph has.
//!
//! One is right for most models: requests run beside each other, and nothing is lost to handing parts of a run over. A long
//! run may be divided, if that shortens it by nearly as much as it takes away from the runs beside it. A deploy measures
//! which; the executor counts threads, not runs, so that the processor is never promised twice.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::batcher::probe::working_inputs;
use super::{Cancel, Graph, Inputs, NnError};

/// A shorter run stays on one thread. The others sleep between the operators of a run, and waking them costs tens of
/// microseconds for each operator; nobody feels what could be won.
const LONG_RUN: Duration = Duration::from_millis(2);

/// Least part of each thread's time that a divided run must put to use, in percent: k threads pay when a run takes at most
/// `100 / (k * EFFICIENCY_PERCENT)` of its time on one. At full load it is the throughput that is left.
const EFFICIENCY_PERCENT: u64 = 70;

/// Timed runs of each number of threads, after one that warms up; the quickest counts.
const TIMED_RUNS: usize = 4;

/// Time after which no further run of one number of threads is begun.
const TIMED_RUNS_MAX: Duration = Duration::from_millis(500);

/// Who decides how many threads a run of a graph has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Threads {
    /// The package, or the backend, which has one way.
    Fixed(u32),
    /// A measurement at deploy.
    Measured {
        /// Most threads it may choose.
        max: u32,
    },
}

impl Threads {
    /// The number for a graph that is loaded now, by what is known of it.
    pub fn number(self, measured: Option<&MeasuredThreads>) -> u32 {
        match self {
            Threads::Fixed(threads) => threads,
            Threads::Measured { max } => measured.map_or(1, |measured| measured.intra_op_threads.clamp(1, max)),
        }
    }
}

impl fmt::Display for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Threads::Fixed(threads) => write!(f, "{threads}"),
            Threads::Measured { max } => write!(f, "up to {max}"),
        }
    }
}

/// What a deploy found out about the threads of a graph's runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredThreads {
    /// Threads of one run.
    pub intra_op_threads: u32,
    /// Nanoseconds of a run with 1, 2, 4, … threads, as far as measured.
    pub run_ns: Vec<u64>,
}

impl Default for MeasuredThreads {
    fn default() -> MeasuredThreads {
        MeasuredThreads { intra_op_threads: 1, run_ns: Vec::new() }
    }
}

impl MeasuredThreads {
    fn of(run_ns: Vec<u64>) -> MeasuredThreads {
        MeasuredThreads { intra_op_threads: best(&run_ns), run_ns }
    }
}

impl fmt::Display for MeasuredThreads {
    /// The times: `a run takes 20.1 ms with 1 thread, 11.4 ms with 2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, &ns) in self.run_ns.iter().enumerate() {
            let ms = ns as f64 / 1e6;
            match index {
                0 => write!(f, "a run takes {ms:.2} ms with 1 thread")?,
                _ => write!(f, ", {ms:.2} ms with {}", 1 << index)?,
            }
        }
        Ok(())
    }
}

/// Tries a graph with 1, 2, 4, … up to `max` threads a run, as far as more may pay. Gives the graph that is loaded with the
/// number that pays: `graph`, which has one, or another that `load` made. Blocks for some loads and runs. `sample` holds
/// inputs that the graph is known to take, if there are any. None when `cancel` stopped it.
pub fn measure(
    graph: Arc<dyn Graph>,
    max: u32,
    sample: Option<&Inputs>,
    load: impl Fn(u32) -> Result<Arc<dyn Graph>, NnError>,
    cancel: &Cancel,
) -> Option<(MeasuredThreads, Arc<dyn Graph>)> {
    let measured = try_all(graph, max, sample, load, cancel);
    (!cancel.is_cancelled()).then_some(measured)
}

fn try_all(
    graph: Arc<dyn Graph>,
    max: u32,
    sample: Option<&Inputs>,
    load: impl Fn(u32) -> Result<Arc<dyn Graph>, NnError>,
    cancel: &Cancel,
) -> (MeasuredThreads, Arc<dyn Graph>) {
    let nothing_known = (MeasuredThreads::default(), Arc::clone(&graph));
    let Some(inputs) = working_inputs(&*graph, sample, cancel) else { return nothing_known };
    let Some(run) = quickest(&*graph, &inputs, cancel) else { return nothing_known };
    if run < LONG_RUN {
        return (MeasuredThreads::of(vec![run.as_nanos() as u64]), graph);
    }
    let mut chosen = graph;
    let mut run_ns = Vec::new();
    let mut threads = 1;
    while threads <= max {
        // One thread is tried anew as well: a graph that has run often may be in a faster form than one just loaded.
        let Ok(candidate) = load(threads) else { break };
        let Some(run) = quickest(&*candidate, &inputs, cancel) else { break };
        run_ns.push(run.as_nanos() as u64);
        if best(&run_ns) != threads {
            break;
        }
        if threads > 1 {
            chosen = candidate;
        }
        threads *= 2;
    }
    (MeasuredThreads::of(run_ns), chosen)
}

/// The quickest of a few runs; none when the graph does not take the inputs.
fn quickest(graph: &dyn Graph, inputs: &Inputs, cancel: &Cancel) -> Option<Duration> {
    let begun = Instant::now();
    let mut best: Option<Duration> = None;
    for index in 0..=TIMED_RUNS {
        let started = Instant::now();
        graph.run(inputs.clone(), cancel).ok()?;
        let took = started.elapsed();
        let warm = index > 0 || begun.elapsed() > TIMED_RUNS_MAX;
        if warm {
            best = Some(best.map_or(took, |best| best.min(took)));
        }
        if begun.elapsed() > TIMED_RUNS_MAX {
            break;
        }
    }
    best
}

/// The most threads that pay, by the times of a run with 1, 2, 4, … of them.
fn best(run_ns: &[u64]) -> u32 {
    let Some(&alone) = run_ns.first() else { return 1 };
    let pays =
        |(index, ns): &(usize, &u64)| (**ns << *index).saturating_mul(EFFICIENCY_PERCENT) <= alone.saturating_mul(100);
    let last = run_ns.iter().enumerate().take_while(pays).last();
    last.map_or(1, |(index, _)| 1 << index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::fake::{FakeGraph, tensor_info};
    use crate::nn::{ElementType, GraphInfo};

    const MS: u64 = 1_000_000;

    #[test]
    fn the_most_threads_that_are_put_to_use_are_chosen() {
        assert_eq!(best(&[]), 1);
        assert_eq!(best(&[100 * MS]), 1);
        assert_eq!(best(&[100 * MS, 71 * MS]), 2, "70 % of two threads");
        assert_eq!(best(&[100 * MS, 72 * MS]), 1, "less");
        assert_eq!(best(&[100 * MS, 52 * MS, 30 * MS, 25 * MS]), 4);
        assert_eq!(best(&[100 * MS, 90 * MS, 10 * MS]), 1, "not beyond one that did not pay");
    }

    #[test]
    fn a_number_that_was_measured_holds_within_what_is_allowed_now() {
        let measured = MeasuredThreads { intra_op_threads: 4, run_ns: vec![] };
        assert_eq!(Threads::Measured { max: 8 }.number(Some(&measured)), 4);
        assert_eq!(Threads::Measured { max: 2 }.number(Some(&measured)), 2);
        assert_eq!(Threads::Measured { max: 8 }.number(None), 1);
        assert_eq!(Threads::Fixed(3).number(Some(&measured)), 3);
    }

    /// A graph that runs in no time.
    fn quick(threads: u32) -> Arc<FakeGraph> {
        let run = |_: &Inputs, cancel: &Cancel| match cancel.is_cancelled() {
            true => Err(NnError::timeout("stopped")),
            false => Ok(vec![]),
        };
        let info = GraphInfo { inputs: vec![tensor_info("x", ElementType::U8, 1)], ..GraphInfo::default() };
        Arc::new(FakeGraph { info, threads, ..FakeGraph::new(run) })
    }

    #[test]
    fn a_short_run_stays_on_one_thread_and_is_not_loaded_again() {
        let graph = quick(1);
        let load = |_| -> Result<Arc<dyn Graph>, NnError> { panic!("nothing is to be loaded") };
        let (measured, chosen) = measure(graph.clone(), 64, None, load, &Cancel::default()).unwrap();
        assert_eq!((measured.intra_op_threads, measured.run_ns.len(), chosen.intra_op_threads()), (1, 1, 1));
        assert!(graph.runs() <= 2 + TIMED_RUNS, "a handful");
    }

    #[test]
    fn a_measurement_that_was_stopped_tells_nothing() {
        let cancel = Cancel::default();
        cancel.cancel();
        assert!(measure(quick(1), 4, None, |threads| Ok(quick(threads)), &cancel).is_none());
    }

    #[test]
    fn the_times_are_told_in_one_line() {
        let measured = MeasuredThreads::of(vec![20_100_000, 11_440_000]);
        assert_eq!(measured.to_string(), "a run takes 20.10 ms with 1 thread, 11.44 ms with 2");
        assert_eq!(measured.intra_op_threads, 2);
    }
}
