//! Short runs on an event loop, batched by its turns.
//!
//! A request that computes puts its work down and parks its guest. The first one of a turn also asks for the turn's end:
//! a task that lets everything run that is ready now, and then runs once for all that was put down. So at load as many
//! requests share a run as the loop has at hand, and nobody waits for a timer. Doing the same step for many requests in a
//! row also keeps the processor's caches warm for it, which at these sizes is worth more than the shared run.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::oneshot;

use super::batcher::queue::{BatchLimit, FairQueue};
use super::batcher::{self, Answer, Counters, Stop, Work};
use super::watch::{Watch, Watched};

/// Works that run at once after a turn that had only one. What is ready beside it cannot be seen without ending the turn,
/// which costs a system call; so it is looked at now and then.
const LONE_WORKS: u32 = 8;

/// Batches that one turn's end runs before it lets the requests that it answered go on.
const BATCHES_PER_TURN: usize = 4;

thread_local! {
    static TURN: RefCell<Option<Turn>> = const { RefCell::new(None) };
}

struct Turn {
    works: FairQueue,
    limit: BatchLimit,
    counters: Arc<Counters>,
    watch: Arc<Watch>,
    /// Where work goes on that must not run here after all.
    elsewhere: Arc<dyn Fn(Work)>,
    /// Whether the end of this turn is coming.
    ending: bool,
    /// Works that may run without waiting for the end of their turn.
    lone: u32,
}

/// Makes this thread one that runs short work itself, and hands `elsewhere` what turns out not to be short.
pub(super) fn start(limit: BatchLimit, counters: Arc<Counters>, watch: Arc<Watch>, elsewhere: Arc<dyn Fn(Work)>) {
    TURN.set(Some(Turn { works: FairQueue::default(), limit, counters, watch, elsewhere, ending: false, lone: 0 }));
}

/// Whether this thread is one.
pub(super) fn is_here() -> bool {
    TURN.with_borrow(Option::is_some)
}

/// The watch for work that may run at once, because lately there was no other to run it with.
pub(super) fn begin_lone() -> Option<Watched> {
    TURN.with_borrow_mut(|turn| {
        let turn = turn.as_mut().filter(|turn| turn.lone > 0 && !turn.ending)?;
        turn.lone -= 1;
        Some(Arc::clone(&turn.watch).begin())
    })
}

/// Puts work down for the end of this turn. Dropped, so that whoever waits hears of it, where [`start`] was not called.
pub(super) fn push(work: Work) {
    let first = TURN.with_borrow_mut(|turn| {
        let Some(turn) = turn else { return false };
        turn.works.push(work);
        !std::mem::replace(&mut turn.ending, true)
    });
    if first {
        tokio::spawn(end());
    }
}

/// The end of a turn: after everything that is ready now.
async fn end() {
    loop {
        tokio::task::yield_now().await;
        for _ in 0..BATCHES_PER_TURN {
            // Not held during the run, which may log and thereby come here again.
            let Some((batch, watched, counters)) = take() else { return };
            // It may have been found to hold up the loop since it was put down.
            let left = match batch.first().is_some_and(|lead| lead.graph.schedule().is_for_event_loops()) {
                true => batcher::run(batch, Stop::By(watched.cancel()), &counters),
                false => batch,
            };
            left.into_iter().for_each(hand_over);
        }
    }
}

/// Sends work elsewhere, and tells whoever waits for it: that is no wait for the end of a turn any more.
fn hand_over(mut work: Work) {
    let elsewhere = TURN.with_borrow(|turn| turn.as_ref().map(|turn| Arc::clone(&turn.elsewhere)));
    if let Some(elsewhere) = elsewhere {
        let (tx, rx) = oneshot::channel();
        let _ = std::mem::replace(&mut work.tx, tx).send(Answer::Elsewhere(rx));
        elsewhere(work);
    }
}

/// The next batch; none ends the turn.
fn take() -> Option<(Vec<Work>, Watched, Arc<Counters>)> {
    let mut unwanted = Vec::new();
    TURN.with_borrow_mut(|turn| {
        let turn = turn.as_mut()?;
        let batch = turn.works.take(turn.limit, &mut unwanted);
        turn.counters.dropped.fetch_add(unwanted.len() as u64, Relaxed);
        turn.ending = batch.is_some();
        let batch = batch?;
        turn.lone = if batch.len() == 1 && turn.works.len() == 0 { LONE_WORKS } else { 0 };
        Some((batch, Arc::clone(&turn.watch).begin(), turn.counters.clone()))
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::nn::fake::{FakeGraph, run_until_stopped, tensor_info};
    use crate::nn::{
        Begun, Cancel, Compute, ElementType, Executor, Graph, GraphInfo, Inputs, NnError, Outputs, Profile, Tenant,
        Tensor, TensorType,
    };

    /// Gives its input back.
    fn echo(row_ns: &[u64]) -> Arc<FakeGraph> {
        costing(row_ns, |inputs, _| given_back(inputs))
    }

    fn given_back(inputs: &Inputs) -> Result<Outputs, NnError> {
        Ok(vec![("y".to_owned(), inputs.tensors()[0].clone())])
    }

    fn costing(
        row_ns: &[u64],
        body: impl Fn(&Inputs, &Cancel) -> Result<Outputs, NnError> + Send + Sync + 'static,
    ) -> Arc<FakeGraph> {
        let info = |name: &str| vec![tensor_info(name, ElementType::U8, 1)];
        let graph = FakeGraph {
            info: GraphInfo { inputs: info("x"), outputs: info("y"), ..GraphInfo::default() },
            ..FakeGraph::new(body)
        };
        graph.schedule.adopt(&Profile { batchable: true, row_ns: row_ns.to_vec(), ..Profile::default() });
        Arc::new(graph)
    }

    /// Says that it is quick, and runs until it is stopped, unless that is on another thread than this.
    fn endless_here(row_ns: &[u64]) -> Arc<FakeGraph> {
        let here = std::thread::current().id();
        costing(row_ns, move |inputs, cancel| match std::thread::current().id() == here {
            true => run_until_stopped(cancel),
            false => given_back(inputs),
        })
    }

    fn of(graph: &Arc<FakeGraph>, value: u8) -> Compute {
        let x = Tensor::new(TensorType::U8, vec![1], vec![value]).unwrap();
        let graph: Arc<dyn Graph> = graph.clone();
        let deadline = Instant::now() + Duration::from_secs(60);
        Compute { tenant: Tenant(1), graph, inputs: vec![("x".to_owned(), x)], deadline }
    }

    async fn ask(executor: &Executor, graph: &Arc<FakeGraph>, value: u8, alone: bool) -> u8 {
        executor.compute(of(graph, value), alone).await.unwrap()[0].1.data()[0]
    }

    #[tokio::test]
    async fn what_is_asked_in_one_turn_runs_once_on_this_thread() {
        let executor = Executor::new(1, 8, 64).unwrap();
        executor.serve_on_this_thread();
        let graph = echo(&[1000, 500, 250, 125]);
        let (executor, asked) = (&executor, &graph);
        let answers = (0..8).map(|value| async move { ask(executor, asked, value, false).await });
        assert_eq!(futures_util::future::join_all(answers).await, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!((graph.rows(), graph.ran_on()), (vec![8], vec![std::thread::current().id()]));

        assert_eq!(ask(executor, asked, 9, true).await, 9);
        assert_eq!((graph.rows()[1], graph.ran_on()[1]), (1, std::thread::current().id()));
    }

    #[tokio::test]
    async fn a_run_that_holds_up_the_loop_is_stopped_and_the_next_goes_to_a_thread() {
        let executor = Executor::new(1, 8, 64).unwrap();
        executor.serve_on_this_thread();
        let liar = endless_here(&[1000]);
        let error = executor.compute(of(&liar, 7), false).await.unwrap_err();
        assert!(error.to_string().contains("was stopped after 100 ms"), "{error}");
        assert!(executor.compute(of(&liar, 7), false).await.is_ok(), "on a thread");
    }

    #[tokio::test]
    async fn what_waits_behind_a_run_that_held_up_the_loop_goes_to_a_thread() {
        let executor = Executor::new(1, 8, 64).unwrap();
        executor.serve_on_this_thread();
        let held_up = endless_here(&[1000]);
        // Each is a run of its own.
        held_up.schedule.adopt(&Profile { row_ns: vec![1000], ..Profile::default() });
        let answers = futures_util::future::join_all((0..3).map(|value| executor.compute(of(&held_up, value), false)));
        let answers = answers.await;
        assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!(held_up.ran_on().iter().filter(|&&thread| thread == std::thread::current().id()).count(), 1);
    }

    #[tokio::test]
    async fn those_who_shared_a_stopped_run_are_answered_from_a_thread() {
        let executor = Executor::new(1, 8, 64).unwrap();
        executor.serve_on_this_thread();
        let held_up = endless_here(&[1000, 500]);
        let begun = (0..2).map(|value| executor.begin(of(&held_up, value), false));
        for (value, begun) in futures_util::future::join_all(begun).await.into_iter().enumerate() {
            // Whoever waits knows that it is no wait for the end of the turn any more.
            let Begun::OnThread(wait) = begun.unwrap() else { panic!("it was done on the loop") };
            assert_eq!(wait.outputs().await.unwrap()[0].1.data()[0], value as u8);
        }
    }

    #[tokio::test]
    async fn long_runs_go_to_a_thread_also_when_there_is_an_event_loop() {
        let executor = Executor::new(1, 8, 64).unwrap();
        executor.serve_on_this_thread();
        let graph = echo(&[10_000_000]);
        assert_eq!(ask(&executor, &graph, 5, true).await, 5);
        assert_ne!(graph.ran_on()[0], std::thread::current().id());
    }

    #[tokio::test]
    async fn where_there_is_no_event_loop_everything_goes_to_a_thread() {
        let executor = Executor::new(1, 8, 64).unwrap();
        let graph = echo(&[1000]);
        assert_eq!(ask(&executor, &graph, 5, true).await, 5);
        assert_ne!(graph.ran_on()[0], std::thread::current().id());
    }
}
