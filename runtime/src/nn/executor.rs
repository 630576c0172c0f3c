//! Runs graphs on threads of its own, so that the request threads never block: a bounded queue, first come first served.
//!
//! The batcher will sit between [`Executor::compute`] and the threads: it takes [`Work`] items, which already carry what
//! it needs (graph, rows, deadline, who waits), and hands on several as one.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::error::panic_text;
use super::{Cancel, Graph, Inputs, NnError, Tensor};

/// Threads that run graphs. Dropping it finishes what runs, refuses what queues, and waits for the threads: not on an
/// async thread.
pub struct Executor {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What a compute gives back.
#[derive(Debug)]
pub struct Computed {
    /// All outputs, in the model's order.
    pub outputs: Vec<(String, Tensor)>,
    /// Where the time went.
    pub timing: ComputeTiming,
}

/// Where a compute's time went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ComputeTiming {
    /// From queued to taken by a thread.
    pub queue: Duration,
    /// In the backend.
    pub run: Duration,
}

/// One queued computation: the batcher's unit.
struct Work {
    graph: Arc<dyn Graph>,
    inputs: Inputs,
    /// Rows of axis 0, so far only for whoever looks at the queue.
    rows: u32,
    deadline: Instant,
    queued: Instant,
    cancel: Arc<Cancel>,
    tx: oneshot::Sender<Result<Computed, NnError>>,
}

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    queue_len_max: usize,
}

#[derive(Default)]
struct Queue {
    works: VecDeque<Work>,
    closed: bool,
}

impl Executor {
    /// Starts `threads` threads (at least one). At most `queue_len_max` computations wait for them. Fails when the
    /// system refuses a thread.
    pub fn new(threads: usize, queue_len_max: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), filled: Condvar::new(), queue_len_max });
        let mut executor = Self { shared, threads: Vec::new() };
        for index in 0..threads.max(1) {
            let shared = executor.shared.clone();
            // On failure the executor is dropped, which stops those already started.
            executor.threads.push(Builder::new().name(format!("nn-{index}")).spawn(move || shared.run())?);
        }
        Ok(executor)
    }

    /// Checks the inputs, waits for a thread, runs the graph. `InvalidArgument` before anything is queued, `Overloaded`
    /// when the queue is full, `Timeout` when `deadline` passes first; then, and when this future is dropped, work that
    /// waits never runs, and work that runs is asked to stop. A backend's panic is a `RuntimeError`.
    pub async fn compute(
        &self,
        graph: Arc<dyn Graph>,
        inputs: Vec<(String, Tensor)>,
        deadline: Instant,
    ) -> Result<Computed, NnError> {
        let inputs = graph.info().check(inputs)?;
        let rows = inputs.rows();
        let (tx, rx) = oneshot::channel();
        let waiting = CancelOnDrop(Arc::new(Cancel::default()));
        let cancel = waiting.0.clone();
        self.shared.push(Work { graph, inputs, rows, deadline, queued: Instant::now(), cancel, tx })?;
        match tokio::time::timeout_at(deadline.into(), rx).await {
            Ok(Ok(result)) => result,
            Ok(Err(_dropped)) => Err(NnError::overloaded("the server is shutting down")),
            Err(_elapsed) => Err(expired()),
        }
    }

    /// Computations that wait for a thread now, and their rows.
    pub fn queued(&self) -> (usize, u64) {
        let queue = self.shared.lock();
        (queue.works.len(), queue.works.iter().map(|work| u64::from(work.rows)).sum())
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let refused = {
            let mut queue = self.shared.lock();
            queue.closed = true;
            std::mem::take(&mut queue.works)
        };
        drop(refused);
        self.shared.filled.notify_all();
        for thread in self.threads.drain(..) {
            // Its loop catches every panic of a backend, so there is nothing to report.
            let _ = thread.join();
        }
    }
}

/// Stops the run when whoever waits for it is gone. Harmless after the run.
struct CancelOnDrop(Arc<Cancel>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Shared {
    fn push(&self, work: Work) -> Result<(), NnError> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(NnError::overloaded("the server is shutting down"));
        }
        if queue.works.len() >= self.queue_len_max {
            // Work that nobody waits for any more must not keep out new work.
            queue.works.retain(Work::wanted);
        }
        if queue.works.len() >= self.queue_len_max {
            let text = format!("{} computations are queued, which is the most: try again later", self.queue_len_max);
            return Err(NnError::overloaded(text));
        }
        queue.works.push_back(work);
        drop(queue);
        self.filled.notify_one();
        Ok(())
    }

    /// A thread's life.
    fn run(&self) {
        while let Some(work) = self.pop() {
            match work.wanted() {
                true => work.run(),
                // Whoever waits has its own clock for the deadline, so nobody is left without an answer.
                false => drop(work),
            }
        }
    }

    fn pop(&self) -> Option<Work> {
        let mut queue = self.lock();
        loop {
            if let Some(work) = queue.works.pop_front() {
                return Some(work);
            }
            if queue.closed {
                return None;
            }
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// No panic can happen under this lock; a poisoned one would still hold a good queue.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    fn wanted(&self) -> bool {
        !self.tx.is_closed() && Instant::now() < self.deadline
    }

    fn run(self) {
        let Self { graph, inputs, cancel, tx, queued, .. } = self;
        let started = Instant::now();
        // The graph is shared and immutable, and what a panicking run made is dropped: nothing half-made survives.
        let result = catch_unwind(AssertUnwindSafe(|| graph.run(inputs, &cancel)))
            .unwrap_or_else(|panic| Err(NnError::runtime(format!("the backend panicked: {}", panic_text(&*panic)))));
        let timing = ComputeTiming { queue: started - queued, run: started.elapsed() };
        // The graph first: whoever gets the answer may count on this run not holding it any more.
        drop(graph);
        let _ = tx.send(result.map(|outputs| Computed { outputs, timing }));
    }
}

fn expired() -> NnError {
    NnError::timeout("the deadline passed before the computation was done")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;
    use crate::nn::{BackendId, GraphInfo, NnErrorKind};

    type Body = Box<dyn Fn(&Cancel) -> Result<Vec<(String, Tensor)>, NnError> + Send + Sync>;

    /// A graph of no inputs that does what the test says, and tells when it starts.
    struct Fake {
        info: GraphInfo,
        runs: AtomicUsize,
        body: Body,
    }

    impl Graph for Fake {
        fn info(&self) -> &GraphInfo {
            &self.info
        }
        fn backend(&self) -> BackendId {
            BackendId::Tract
        }
        fn memory_bytes(&self) -> u64 {
            0
        }
        fn run(&self, _: Inputs, cancel: &Cancel) -> Result<Vec<(String, Tensor)>, NnError> {
            self.runs.fetch_add(1, Ordering::SeqCst);
            (self.body)(cancel)
        }
    }

    fn fake(body: impl Fn(&Cancel) -> Result<Vec<(String, Tensor)>, NnError> + Send + Sync + 'static) -> Arc<Fake> {
        let info = GraphInfo { inputs: vec![], outputs: vec![] };
        Arc::new(Fake { info, runs: AtomicUsize::new(0), body: Box::new(body) })
    }

    /// A graph that runs until the sender is dropped, with a receiver that hears of each start.
    fn blocking() -> (Arc<Fake>, mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (started_tx, started) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let (started_tx, released) = (Mutex::new(started_tx), Mutex::new(released));
        let graph = fake(move |_| {
            started_tx.lock().unwrap().send(()).unwrap();
            let _ = released.lock().unwrap().recv();
            Ok(vec![])
        });
        (graph, started, release)
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn a_backends_panic_is_an_error_and_the_thread_lives_on() {
        let executor = Executor::new(1, 8).unwrap();
        let error = executor.compute(fake(|_| panic!("odd model")), vec![], far()).await.unwrap_err();
        assert_eq!(error.kind(), NnErrorKind::RuntimeError);
        assert!(error.to_string().contains("odd model"));
        assert!(executor.compute(fake(|_| Ok(vec![])), vec![], far()).await.is_ok());
    }

    #[tokio::test]
    async fn a_wrong_input_is_refused_before_it_queues() {
        let executor = Executor::new(1, 0).unwrap();
        let tensor = Tensor::new(crate::nn::TensorType::U8, vec![1], vec![0]).unwrap();
        let error = executor.compute(fake(|_| Ok(vec![])), vec![("x".into(), tensor)], far()).await.unwrap_err();
        assert_eq!(error.kind(), NnErrorKind::InvalidArgument);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_abandoned_work_makes_room_and_never_runs() {
        let executor = Arc::new(Executor::new(1, 1).unwrap());
        let (slow, started, release) = blocking();
        let running = tokio::spawn({
            let (executor, slow) = (executor.clone(), slow.clone());
            async move { executor.compute(slow, vec![], far()).await }
        });
        tokio::task::spawn_blocking(move || started.recv().unwrap()).await.unwrap();

        let waiting_graph = fake(|_| Ok(vec![]));
        let mut waiting = Box::pin(executor.compute(waiting_graph.clone(), vec![], far()));
        assert!(poll_once(&mut waiting).await.is_none());
        assert_eq!(executor.queued(), (1, 1));
        let error = executor.compute(fake(|_| Ok(vec![])), vec![], far()).await.unwrap_err();
        assert_eq!(error.kind(), NnErrorKind::Overloaded);

        drop(waiting);
        let next_graph = fake(|_| Ok(vec![]));
        let mut next = Box::pin(executor.compute(next_graph.clone(), vec![], far()));
        assert!(poll_once(&mut next).await.is_none(), "queued in the abandoned one's place");
        drop(release);
        let computed = next.await.unwrap();
        assert!(computed.timing.queue > Duration::ZERO);
        assert!(running.await.unwrap().is_ok());
        assert_eq!(waiting_graph.runs.load(Ordering::SeqCst), 0);
        assert_eq!(next_graph.runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_deadline_ends_the_wait_keeps_queued_work_from_running_and_stops_what_runs() {
        let executor = Arc::new(Executor::new(1, 8).unwrap());
        let (stopped_tx, stopped) = mpsc::channel();
        let stopped_tx = Mutex::new(stopped_tx);
        // Runs until it is cancelled, as a graph with an endless loop would.
        let endless = fake(move |cancel| {
            let (tx, rx) = mpsc::channel();
            let _disarm = cancel.on_cancel(move || tx.send(()).unwrap_or_default())?;
            rx.recv().unwrap();
            stopped_tx.lock().unwrap().send(()).unwrap();
            Err(NnError::timeout("stopped"))
        });
        let soon = Instant::now() + Duration::from_millis(20);
        let queued = fake(|_| Ok(vec![]));
        let (first, second) =
            tokio::join!(executor.compute(endless, vec![], soon), executor.compute(queued.clone(), vec![], soon));
        assert_eq!(first.unwrap_err().kind(), NnErrorKind::Timeout);
        assert_eq!(second.unwrap_err().kind(), NnErrorKind::Timeout);
        tokio::task::spawn_blocking(move || stopped.recv().unwrap()).await.unwrap();
        assert!(executor.compute(fake(|_| Ok(vec![])), vec![], far()).await.is_ok());
        assert_eq!(queued.runs.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn dropping_it_answers_those_who_wait_and_joins_the_threads() {
        let executor = Executor::new(1, 8).unwrap();
        let shared = executor.shared.clone();
        let (slow, started, release) = blocking();
        let push = |graph: Arc<dyn Graph>| {
            let (tx, rx) = oneshot::channel();
            let inputs = graph.info().check(vec![]).unwrap();
            let (cancel, queued) = (Arc::default(), Instant::now());
            shared.push(Work { graph, inputs, rows: 1, deadline: far(), queued, cancel, tx }).unwrap();
            rx
        };
        let running = push(slow);
        started.recv().unwrap();
        let waiting = push(fake(|_| Ok(vec![])));
        let dropped = std::thread::spawn(move || drop(executor));
        assert!(waiting.await.is_err(), "told before the running one is done");
        drop(release);
        assert!(running.await.unwrap().is_ok());
        dropped.join().unwrap();
        assert_eq!(Arc::strong_count(&shared), 1, "no thread is left");
    }

    /// Polls once; `None` when the future is not done.
    async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
