//! Runs graphs: long ones on threads of its own, so that the threads that answer requests never block; short ones on the
//! event loop that asks ([`super::turn`]), since waking another thread would cost more than the run.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::batcher::queue::{BatchLimit, FairQueue, charge};
use super::batcher::{self, Answer, Counters, Outputs, Stop, Tenant, Work};
use super::watch::Watches;
use super::{BusyThreads, Cancel, Graph, NnError, Tensor, turn};

/// A run expected to be shorter than this is done on the event loop. A hop to a thread and back costs about 20 µs, and the
/// other requests of the loop wait meanwhile.
const SHORT_RUN: Duration = Duration::from_micros(150);

/// Longest batch of short runs on an event loop.
const SHORT_BATCH: Duration = Duration::from_micros(500);

/// How often it is looked whether a computation that waits for several threads is still wanted.
const BLOCKED_CHECK: Duration = Duration::from_millis(20);

/// Threads that run graphs. Dropping it finishes what runs, refuses what queues, and waits for the threads: not on an
/// async thread.
pub struct Executor {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    watches: Watches,
}

/// A computation for the executor.
pub struct Compute {
    /// Who it is for.
    pub tenant: Tenant,
    /// What runs.
    pub graph: Arc<dyn Graph>,
    /// What goes in, by the graph's names.
    pub inputs: Vec<(String, Tensor)>,
    /// When nobody wants the answer any more.
    pub deadline: Instant,
}

/// A computation that has begun.
pub enum Begun {
    /// It was short, and is done.
    Done(Outputs),
    /// A thread does it, or will.
    OnThread(OnThread),
}

/// The wait for a computation that a thread does. When it is dropped, the work never runs, or is asked to stop.
pub struct OnThread {
    rx: oneshot::Receiver<Answer>,
    deadline: Instant,
    waiting: CancelOnDrop,
}

impl OnThread {
    /// Waits for it.
    ///
    /// # Errors
    /// What the run gave, a backend's panic as a `RuntimeError`; `Timeout` when the deadline passes first, `Overloaded` when
    /// no thread takes it.
    pub async fn outputs(self) -> Result<Outputs, NnError> {
        let OnThread { rx, deadline, waiting } = self;
        let answer = tokio::time::timeout_at(deadline.into(), rx).await;
        drop(waiting);
        match answer {
            Ok(Ok(Answer::Done(result))) => result,
            Ok(Ok(Answer::Elsewhere(_)) | Err(_)) => Err(not_run(deadline)),
            Err(_elapsed) => Err(expired()),
        }
    }
}

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    /// Threads of all runs together, those inside of backends included.
    threads: u32,
    busy: Arc<BusyThreads>,
    queue_len_max: usize,
    rows_max: u32,
    counters: Arc<Counters>,
}

struct Queue {
    works: FairQueue,
    /// Threads that no run keeps busy.
    free: u32,
    closed: bool,
}

/// What a run has of the queue until it ends.
struct Lease {
    /// That it keeps busy.
    threads: u32,
    /// What each of its works was charged.
    charged: Vec<(Tenant, u64)>,
}

impl Executor {
    /// Starts `threads` threads (at least one), as many as all runs together keep busy: a run that its backend divides
    /// between k threads takes k of them. At most `queue_len_max` computations wait; a run has at most
    /// `rows_max` rows of several requests. Fails when the system refuses a thread.
    pub fn new(threads: usize, queue_len_max: usize, rows_max: u32) -> std::io::Result<Self> {
        let free = u32::try_from(threads).unwrap_or(u32::MAX).max(1);
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { works: FairQueue::default(), free, closed: false }),
            filled: Condvar::new(),
            threads: free,
            busy: BusyThreads::new(free),
            queue_len_max,
            rows_max: rows_max.max(1),
            counters: Arc::default(),
        });
        let mut executor = Self { shared, threads: Vec::new(), watches: Watches::start()? };
        for index in 0..threads.max(1) {
            let shared = executor.shared.clone();
            // On failure the executor is dropped, which stops those already started.
            executor.threads.push(Builder::new().name(format!("nn-{index}")).spawn(move || shared.run())?);
        }
        Ok(executor)
    }

    /// Threads of all runs together.
    pub fn threads(&self) -> u32 {
        self.shared.threads
    }

    /// How many of them compute, for backends that have threads of their own.
    pub fn busy(&self) -> &Arc<BusyThreads> {
        &self.shared.busy
    }

    /// Lets short runs happen on this thread, which is an event loop.
    pub fn serve_on_this_thread(&self) {
        let limit = BatchLimit { rows: self.shared.rows_max, run_ns: SHORT_BATCH.as_nanos() as u64 };
        let shared = Arc::clone(&self.shared);
        // Where the queue is full, work is dropped, and whoever waits hears of it.
        let elsewhere = Arc::new(move |work| drop(shared.push(work)));
        turn::start(limit, self.shared.counters.clone(), self.watches.add(), elsewhere);
    }

    /// Whether this thread, as an event loop, runs so many rows itself.
    fn runs_here(&self, graph: &dyn Graph, rows: u32) -> bool {
        let schedule = graph.schedule();
        schedule.estimate(rows).is_some_and(|run| run <= SHORT_RUN)
            && schedule.is_for_event_loops()
            // A divided run is counted, which only the threads' queue does.
            && graph.intra_op_threads() == 1
            && turn::is_here()
    }

    /// Checks the inputs, and runs the graph, together with whatever else waits for it: a short run before this returns,
    /// which then is no later than the end of a turn of the event loop; any other on a thread. `alone` says that no other
    /// request has begun its work on this thread.
    ///
    /// # Errors
    /// `InvalidArgument` before anything is queued, `Overloaded` when the queue is full, `Timeout` when the deadline has
    /// passed, and what a short run gave.
    pub async fn begin(&self, compute: Compute, alone: bool) -> Result<Begun, NnError> {
        let Compute { tenant, graph, inputs, deadline } = compute;
        let inputs = graph.info().check(inputs)?;
        self.shared.counters.works.fetch_add(1, Relaxed);
        graph.schedule().offer_sample(&inputs);
        let rows = inputs.rows();
        let here = self.runs_here(&*graph, rows);
        if here
            && alone
            && let Some(watched) = turn::begin_lone()
        {
            let result = batcher::run_watched(&*graph, inputs, rows, watched.cancel(), &self.shared.counters);
            return result.map(Begun::Done);
        }
        let (tx, rx) = oneshot::channel();
        let waiting = CancelOnDrop(Arc::new(Cancel::default()));
        let cancel = waiting.0.clone();
        let work = Work { tenant, graph, inputs, rows, deadline, queued: Instant::now(), cancel, tx };
        if !here {
            self.shared.push(work)?;
            return Ok(Begun::OnThread(OnThread { rx, deadline, waiting }));
        }
        turn::push(work);
        // No timer: the turn comes within microseconds.
        match rx.await {
            Ok(Answer::Done(result)) => result.map(Begun::Done),
            Ok(Answer::Elsewhere(rx)) => Ok(Begun::OnThread(OnThread { rx, deadline, waiting })),
            Err(_dropped) => Err(not_run(deadline)),
        }
    }

    /// Computations that wait for a thread now, and their rows.
    pub fn queued(&self) -> (usize, u64) {
        let queue = self.shared.lock();
        (queue.works.len(), queue.works.rows())
    }

    /// What was computed since the start.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
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
            let unwanted = queue.works.drop_unwanted();
            self.counters.dropped.fetch_add(unwanted as u64, Relaxed);
        }
        if queue.works.len() >= self.queue_len_max {
            let text = format!("{} computations are queued, which is the most: try again later", self.queue_len_max);
            return Err(NnError::overloaded(text));
        }
        queue.works.push(work);
        drop(queue);
        self.filled.notify_one();
        Ok(())
    }

    /// A thread's life.
    fn run(&self) {
        let mut done = None;
        while let Some((batch, lease)) = self.pop(done.take()) {
            let _busy = self.busy.enter(lease.threads);
            let started = Instant::now();
            let left = batcher::run(batch, Stop::WhenUnwanted, &self.counters);
            debug_assert!(left.is_empty(), "only an event loop stops runs for its own sake");
            done = Some((lease, started.elapsed()));
        }
    }

    /// Settles the last run, gives back its threads, and waits for the next batch until there are as many free as it
    /// needs. The batch that is next is waited for, also when another needed fewer: or it would never come, while there are
    /// others.
    fn pop(&self, done: Option<(Lease, Duration)>) -> Option<(Vec<Work>, Lease)> {
        let limit = BatchLimit { rows: self.rows_max, run_ns: u64::MAX };
        // Dropped after the lock: whoever waits for them has its own clock, so nobody is left without an answer.
        let mut unwanted = Vec::new();
        let mut queue = self.lock();
        if let Some((Lease { threads, charged }, took)) = done {
            queue.free += threads;
            queue.works.settle(&charged, (took.as_nanos() as u64).saturating_mul(u64::from(threads)));
        }
        loop {
            let needed = queue.works.lead(&mut unwanted).map(|lead| lead.graph.intra_op_threads().min(self.threads));
            let fits = needed.filter(|&needed| needed <= queue.free);
            let batch = fits.and_then(|threads| Some((queue.works.take(limit, &mut unwanted)?, threads)));
            self.counters.dropped.fetch_add(unwanted.len() as u64, Relaxed);
            if let Some((batch, threads)) = batch {
                queue.free -= threads;
                let charged = batch.iter().map(|work| (work.tenant, charge(work))).collect::<Vec<_>>();
                queue.works.hold(&charged);
                if queue.free > 0 && queue.works.len() > 0 {
                    // Whoever was woken for this one may have found too few threads.
                    self.filled.notify_one();
                }
                return Some((batch, Lease { threads, charged }));
            }
            unwanted.clear();
            if queue.closed {
                return None;
            }
            queue = match needed {
                None => self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner),
                // Nobody tells when the one that needs more is given up, and there may be others behind it.
                Some(_) => self.filled.wait_timeout(queue, BLOCKED_CHECK).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// No panic can happen under this lock; a poisoned one would still hold a good queue.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It was found expired when its turn came, or no thread will take it.
fn not_run(deadline: Instant) -> NnError {
    match Instant::now() >= deadline {
        true => expired(),
        false => NnError::overloaded("too many computations wait, or the server is shutting down"),
    }
}

fn expired() -> NnError {
    NnError::timeout("the deadline passed before the computation was done")
}

#[cfg(test)]
impl Executor {
    /// From begin to end.
    pub(super) async fn compute(&self, compute: Compute, alone: bool) -> Result<Outputs, NnError> {
        match self.begin(compute, alone).await? {
            Begun::Done(outputs) => Ok(outputs),
            Begun::OnThread(wait) => wait.outputs().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;
    use crate::nn::NnErrorKind;
    use crate::nn::fake::FakeGraph;

    /// A graph of no inputs that does what the test says.
    fn fake(body: impl Fn(&Cancel) -> Result<Outputs, NnError> + Send + Sync + 'static) -> Arc<FakeGraph> {
        divided(1, body)
    }

    /// One whose runs take several threads.
    fn divided(
        threads: u32,
        body: impl Fn(&Cancel) -> Result<Outputs, NnError> + Send + Sync + 'static,
    ) -> Arc<FakeGraph> {
        Arc::new(FakeGraph { threads, ..FakeGraph::new(move |_, cancel| body(cancel)) })
    }

    /// A graph that runs until the sender is dropped, with a receiver that hears of each start.
    fn blocking() -> (Arc<FakeGraph>, mpsc::Receiver<()>, mpsc::Sender<()>) {
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

    async fn compute(
        executor: &Executor,
        graph: Arc<dyn Graph>,
        inputs: Vec<(String, Tensor)>,
        deadline: Instant,
    ) -> Result<Outputs, NnError> {
        executor.compute(Compute { tenant: Tenant(1), graph, inputs, deadline }, false).await
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn a_backends_panic_is_an_error_and_the_thread_lives_on() {
        let executor = Executor::new(1, 8, 1).unwrap();
        let error = compute(&executor, fake(|_| panic!("odd model")), vec![], far()).await.unwrap_err();
        assert_eq!(error.kind(), NnErrorKind::RuntimeError);
        assert!(error.to_string().contains("odd model"));
        assert!(compute(&executor, fake(|_| Ok(vec![])), vec![], far()).await.is_ok());
    }

    #[tokio::test]
    async fn a_wrong_input_is_refused_before_it_queues() {
        let executor = Executor::new(1, 0, 1).unwrap();
        let tensor = Tensor::new(crate::nn::TensorType::U8, vec![1], vec![0]).unwrap();
        let error = compute(&executor, fake(|_| Ok(vec![])), vec![("x".into(), tensor)], far()).await.unwrap_err();
        assert_eq!(error.kind(), NnErrorKind::InvalidArgument);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_abandoned_work_makes_room_and_never_runs() {
        let executor = Arc::new(Executor::new(1, 1, 1).unwrap());
        let (slow, started, release) = blocking();
        let running = tokio::spawn({
            let (executor, slow) = (executor.clone(), slow.clone());
            async move { compute(&executor, slow, vec![], far()).await }
        });
        tokio::task::spawn_blocking(move || started.recv().unwrap()).await.unwrap();

        let waiting_graph = fake(|_| Ok(vec![]));
        let mut waiting = Box::pin(compute(&executor, waiting_graph.clone(), vec![], far()));
        assert!(poll_once(&mut waiting).await.is_none());
        assert_eq!(executor.queued(), (1, 1));
        let error = compute(&executor, fake(|_| Ok(vec![])), vec![], far()).await.unwrap_err();
        assert_eq!(error.kind(), NnErrorKind::Overloaded);

        drop(waiting);
        let next_graph = fake(|_| Ok(vec![]));
        let mut next = Box::pin(compute(&executor, next_graph.clone(), vec![], far()));
        assert!(poll_once(&mut next).await.is_none(), "queued in the abandoned one's place");
        drop(release);
        next.await.unwrap();
        assert!(executor.counters().queue_ns.load(Relaxed) > 0);
        assert_eq!(executor.counters().dropped.load(Relaxed), 1);
        assert!(running.await.unwrap().is_ok());
        assert_eq!(waiting_graph.runs(), 0);
        assert_eq!(next_graph.runs(), 1);
    }

    #[tokio::test]
    async fn a_deadline_ends_the_wait_keeps_queued_work_from_running_and_stops_what_runs() {
        let executor = Arc::new(Executor::new(1, 8, 1).unwrap());
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
            tokio::join!(compute(&executor, endless, vec![], soon), compute(&executor, queued.clone(), vec![], soon));
        assert_eq!(first.unwrap_err().kind(), NnErrorKind::Timeout);
        assert_eq!(second.unwrap_err().kind(), NnErrorKind::Timeout);
        tokio::task::spawn_blocking(move || stopped.recv().unwrap()).await.unwrap();
        assert!(compute(&executor, fake(|_| Ok(vec![])), vec![], far()).await.is_ok());
        assert_eq!(queued.runs(), 0);
    }

    #[tokio::test]
    async fn runs_together_keep_no_more_threads_busy_than_there_are_and_all_get_their_turn() {
        const THREADS: u32 = 4;
        let executor = Executor::new(THREADS as usize, 256, 1).unwrap();
        let (busy, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let graph = |threads: u32| {
            let (busy, most) = (busy.clone(), most.clone());
            // A run that wants more than there are gets all.
            let threads_busy = threads.min(THREADS) as usize;
            divided(threads, move |_| {
                most.fetch_max(busy.fetch_add(threads_busy, Ordering::SeqCst) + threads_busy, Ordering::SeqCst);
                std::thread::yield_now();
                busy.fetch_sub(threads_busy, Ordering::SeqCst);
                Ok(vec![])
            })
        };
        let graphs = [1, 2, 4, 9].map(graph);
        let computes = (0..200).map(|index| compute(&executor, graphs[index % 4].clone(), vec![], far()));
        for answer in futures_util::future::join_all(computes).await {
            answer.unwrap();
        }
        assert!(most.load(Ordering::SeqCst) <= THREADS as usize, "{most:?}");
        let shared = executor.shared.clone();
        drop(executor);
        assert_eq!(shared.lock().free, THREADS, "all were given back");
    }

    #[tokio::test]
    async fn a_run_that_is_given_up_while_it_waits_for_threads_does_not_hold_up_those_behind_it() {
        let executor = Arc::new(Executor::new(2, 8, 1).unwrap());
        let (slow, started, release) = blocking();
        let running = tokio::spawn({
            let (executor, slow) = (executor.clone(), slow.clone());
            async move { compute(&executor, slow, vec![], far()).await }
        });
        tokio::task::spawn_blocking(move || started.recv().unwrap()).await.unwrap();

        // One thread is free: the next needs two, and the one behind it waits with it.
        let wide = divided(2, |_| Ok(vec![]));
        let mut waiting = Box::pin(compute(&executor, wide.clone(), vec![], far()));
        assert!(poll_once(&mut waiting).await.is_none());
        let mut behind = Box::pin(compute(&executor, fake(|_| Ok(vec![])), vec![], far()));
        assert!(poll_once(&mut behind).await.is_none());
        drop(waiting);
        behind.await.unwrap();
        assert_eq!(wide.runs(), 0);
        drop(release);
        running.await.unwrap().unwrap();
        compute(&executor, wide.clone(), vec![], far()).await.unwrap();
    }

    #[tokio::test]
    async fn dropping_it_answers_those_who_wait_and_joins_the_threads() {
        let executor = Executor::new(1, 8, 1).unwrap();
        let shared = executor.shared.clone();
        let (slow, started, release) = blocking();
        let push = |graph: Arc<dyn Graph>| {
            let (tx, rx) = oneshot::channel();
            let inputs = graph.info().check(vec![]).unwrap();
            let (tenant, cancel, queued) = (Tenant(1), Arc::default(), Instant::now());
            shared.push(Work { tenant, graph, inputs, rows: 1, deadline: far(), queued, cancel, tx }).unwrap();
            rx
        };
        let running = push(slow);
        started.recv().unwrap();
        let waiting = push(fake(|_| Ok(vec![])));
        let dropped = std::thread::spawn(move || drop(executor));
        assert!(waiting.await.is_err(), "told before the running one is done");
        drop(release);
        assert!(matches!(running.await.unwrap(), Answer::Done(Ok(_))));
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
