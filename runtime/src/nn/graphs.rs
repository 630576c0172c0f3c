//! The loaded graphs, shared by all requests, under a memory budget.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::error::panic_text;
use super::{BackendId, BatchSpec, ExecutionTarget, Graph, NnError, NnErrorKind, SequenceSpec, Threads};

/// What makes two loads the same load.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GraphKey {
    /// Digest of the model's content.
    pub digest: String,
    /// Who runs it.
    pub backend: BackendId,
    /// Where.
    pub target: ExecutionTarget,
    /// What its package says about batching: others may say something else about the same model.
    pub batch: BatchSpec,
    /// What it says about sequences.
    pub sequences: SequenceSpec,
    /// Who decides how many threads a run has.
    pub threads: Threads,
}

/// A snapshot for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GraphsStats {
    /// Memory of the loaded graphs, as they estimate it.
    pub bytes: u64,
    /// How many are loaded.
    pub count: usize,
    /// How many loads were started since the process did.
    pub loads: u64,
}

/// Cache of loaded graphs: one load per key however many ask, the least recently used goes first, none while in use.
/// Clones share it.
#[derive(Clone)]
pub struct Graphs {
    state: Arc<Mutex<State>>,
    budget_bytes: u64,
}

#[derive(Default)]
struct State {
    slots: HashMap<GraphKey, Slot>,
    loads: u64,
}

enum Slot {
    /// Who waits. Each gets a reference of its own, so that the count of references says exactly who uses the graph.
    Loading(Vec<oneshot::Sender<Loaded>>),
    Ready {
        graph: Arc<dyn Graph>,
        used: Instant,
    },
}

type Loaded = Result<Arc<dyn Graph>, NnError>;

impl Graphs {
    /// An empty cache whose graphs may take `budget_bytes` together.
    pub fn new(budget_bytes: u64) -> Self {
        Self { state: Arc::default(), budget_bytes }
    }

    /// The graph for `key`; if it is not there, `load` makes it on a blocking thread, once for all who wait, and goes on
    /// when they are gone. Its error goes to all of them and is not kept: the next call loads again. `TooLarge` when the
    /// graph alone is over the budget, `Overloaded` when it does not fit beside those in use. Needs a tokio runtime.
    pub async fn get(
        &self,
        key: GraphKey,
        load: impl FnOnce() -> Loaded + Send + 'static,
    ) -> Result<Arc<dyn Graph>, NnError> {
        match self.find_or_start(key, load) {
            Found::Ready(graph) => Ok(graph),
            Found::Loading(waiter) => match waiter.await {
                Ok(result) => result,
                Err(_dropped) => Err(NnError::overloaded("the load was abandoned: the server is shutting down")),
            },
        }
    }

    /// Most memory that the graphs may take together.
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// The graph for `key` if it is loaded: for the request path, which need not name a way to load it then.
    pub fn cached(&self, key: &GraphKey) -> Option<Arc<dyn Graph>> {
        match self.lock().slots.get_mut(key)? {
            Slot::Ready { graph, used } => {
                *used = Instant::now();
                Some(graph.clone())
            }
            Slot::Loading(_) => None,
        }
    }

    /// Memory of the graph for `key`, if it is loaded. Does not count as a use.
    pub fn memory_bytes(&self, key: &GraphKey) -> u64 {
        match self.lock().slots.get(key) {
            Some(Slot::Ready { graph, .. }) => graph.memory_bytes(),
            Some(Slot::Loading(_)) | None => 0,
        }
    }

    /// Lets go of a loaded graph, so that the next call loads it anew. Those who have it keep it.
    pub fn forget(&self, key: &GraphKey) {
        let mut state = self.lock();
        let forgotten = match state.slots.get(key) {
            Some(Slot::Ready { .. }) => state.slots.remove(key),
            Some(Slot::Loading(_)) | None => None,
        };
        drop(state);
        // Freed after the lock, as in `land`.
        drop(forgotten);
    }

    /// Drops a graph that nobody uses.
    pub fn forget_unused(&self, key: &GraphKey) {
        let mut state = self.lock();
        let unused = matches!(state.slots.get(key), Some(Slot::Ready { graph, .. }) if !in_use(graph));
        let forgotten = unused.then(|| state.slots.remove(key));
        drop(state);
        // Freed after the lock, as in `land`.
        drop(forgotten);
    }

    /// Drops graphs that are not in use and were not asked for since `older_than`. Gives their memory back, in bytes.
    pub fn drop_idle(&self, older_than: Duration) -> u64 {
        let now = Instant::now();
        let mut idle = Vec::new();
        self.lock().slots.retain(|_, slot| match slot {
            Slot::Ready { graph, used } if in_use(graph) => {
                *used = now;
                true
            }
            Slot::Ready { graph, used } if now.duration_since(*used) >= older_than => {
                idle.push(graph.clone());
                false
            }
            Slot::Ready { .. } | Slot::Loading(_) => true,
        });
        // Freed after the lock, as in `land`.
        idle.iter().map(|graph| graph.memory_bytes()).sum()
    }

    /// What is loaded now.
    pub fn stats(&self) -> GraphsStats {
        let state = self.lock();
        let count = state.slots.values().filter_map(Slot::graph).count();
        GraphsStats { bytes: state.bytes(|_| true), count, loads: state.loads }
    }

    /// One lock from the look to the start of the load, so there is only one load.
    fn find_or_start(&self, key: GraphKey, load: impl FnOnce() -> Loaded + Send + 'static) -> Found {
        let (tx, rx) = oneshot::channel();
        let mut state = self.lock();
        match state.slots.get_mut(&key) {
            Some(Slot::Ready { graph, used }) => {
                *used = Instant::now();
                return Found::Ready(graph.clone());
            }
            Some(Slot::Loading(waiters)) => {
                if waiters.len() == waiters.capacity() {
                    // Before the list grows: those who went away need no place in it.
                    waiters.retain(|waiter| !waiter.is_closed());
                }
                waiters.push(tx);
                return Found::Loading(rx);
            }
            None => {}
        }
        state.slots.insert(key.clone(), Slot::Loading(vec![tx]));
        state.loads += 1;
        drop(state);
        // Dropping the closure unrun, as a runtime does when it shuts down, drops the flight, which clears the slot.
        let flight = Flight { graphs: self.clone(), key, landed: false };
        tokio::task::spawn_blocking(move || {
            let result = catch_unwind(AssertUnwindSafe(load))
                .unwrap_or_else(|panic| Err(NnError::runtime(format!("the load panicked: {}", panic_text(&*panic)))));
            flight.land(result);
        });
        Found::Loading(rx)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Found {
    Ready(Arc<dyn Graph>),
    Loading(oneshot::Receiver<Loaded>),
}

/// A load under way: dropped before it lands, it frees its slot, and whoever waits hears that nothing comes.
struct Flight {
    graphs: Graphs,
    key: GraphKey,
    landed: bool,
}

impl Flight {
    /// Puts the graph in its slot, if it fits, and tells those who wait.
    fn land(mut self, result: Loaded) {
        self.landed = true;
        let mut evicted = Vec::new();
        let mut state = self.graphs.lock();
        let result =
            result.and_then(|graph| state.make_room(&graph, self.graphs.budget_bytes, &mut evicted).map(|()| graph));
        let Some(Slot::Loading(waiters)) = state.slots.remove(&self.key) else { return };
        let answers: Vec<_> = waiters.into_iter().map(|waiter| (waiter, result.clone())).collect();
        if let Ok(graph) = result {
            state.slots.insert(self.key.clone(), Slot::Ready { graph, used: Instant::now() });
        }
        drop(state);
        // Freed after the lock: releasing a session takes milliseconds.
        drop(evicted);
        for (waiter, answer) in answers {
            let _ = waiter.send(answer);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.landed {
            self.graphs.lock().slots.remove(&self.key);
        }
    }
}

impl State {
    /// Moves idle graphs to `evicted` until `graph` fits the budget.
    fn make_room(&mut self, graph: &Arc<dyn Graph>, budget: u64, evicted: &mut Vec<Slot>) -> Result<(), NnError> {
        let bytes = graph.memory_bytes();
        if bytes > budget {
            let text = format!("the graph needs {bytes} bytes of memory, the budget for all graphs is {budget}");
            return Err(NnError::new(NnErrorKind::TooLarge, text));
        }
        // Looked at first: if those in use leave no room, dropping the others would help nobody.
        let held = self.bytes(in_use);
        if held > budget - bytes {
            let text = format!("the graph needs {bytes} bytes of memory, and graphs in use hold {held} of {budget}");
            return Err(NnError::overloaded(text));
        }
        while self.bytes(|_| true) > budget - bytes {
            // There is one: those in use fit. One that was just let go counts as idle from here on.
            let Some(victim) = self.least_recently_used() else { break };
            evicted.extend(self.slots.remove(&victim));
        }
        Ok(())
    }

    fn bytes(&self, counts: impl Fn(&Arc<dyn Graph>) -> bool) -> u64 {
        let counted = self.slots.values().filter_map(Slot::graph).filter(|graph| counts(graph));
        counted.map(|graph| graph.memory_bytes()).sum()
    }

    fn least_recently_used(&self) -> Option<GraphKey> {
        let idle = self.slots.iter().filter_map(|(key, slot)| match slot {
            Slot::Ready { graph, used } if !in_use(graph) => Some((used, key)),
            _ => None,
        });
        idle.min_by_key(|(used, _)| **used).map(|(_, key)| key.clone())
    }
}

impl Slot {
    fn graph(&self) -> Option<&Arc<dyn Graph>> {
        match self {
            Self::Ready { graph, .. } => Some(graph),
            Self::Loading(_) => None,
        }
    }
}

/// Whether anybody but the cache holds it. Exact under the lock: a holder may go at any time, but only the cache, under
/// the lock, makes the first new one.
fn in_use(graph: &Arc<dyn Graph>) -> bool {
    Arc::strong_count(graph) > 1
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;
    use crate::nn::fake::FakeGraph;

    fn graph(memory_bytes: u64) -> Loaded {
        Ok(Arc::new(FakeGraph { memory_bytes, ..FakeGraph::new(|_, _| Ok(vec![])) }))
    }

    fn key(digest: &str) -> GraphKey {
        GraphKey {
            digest: digest.into(),
            backend: BackendId::Tract,
            target: ExecutionTarget::Cpu,
            batch: BatchSpec::default(),
            sequences: SequenceSpec::default(),
            threads: Threads::Fixed(1),
        }
    }

    #[tokio::test]
    async fn many_who_ask_at_once_share_one_load_that_outlives_the_first_of_them() {
        let graphs = Graphs::new(100);
        let (release, released) = mpsc::channel::<()>();
        let first = tokio::spawn({
            let graphs = graphs.clone();
            async move {
                let load = move || {
                    let _ = released.recv();
                    graph(10)
                };
                graphs.get(key("a"), load).await
            }
        });
        while graphs.stats().loads == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..32)
            .map(|_| {
                let graphs = graphs.clone();
                tokio::spawn(async move { graphs.get(key("a"), || panic!("a second load")).await })
            })
            .collect();
        tokio::task::yield_now().await;
        first.abort();
        drop(release);
        let mut found = Vec::new();
        for other in others {
            found.push(other.await.unwrap().unwrap());
        }
        assert!(found.iter().all(|graph| Arc::ptr_eq(graph, &found[0])));
        assert_eq!(graphs.stats(), GraphsStats { bytes: 10, count: 1, loads: 1 });
    }

    #[tokio::test]
    async fn a_failed_or_panicking_load_is_told_and_forgotten() {
        let graphs = Graphs::new(100);
        let error = graphs.get(key("a"), || Err(NnError::invalid_encoding("bad"))).await.err().unwrap();
        assert_eq!(error.kind(), NnErrorKind::InvalidEncoding);
        let error = graphs.get(key("a"), || panic!("odd")).await.err().unwrap();
        assert_eq!(error.kind(), NnErrorKind::RuntimeError);
        assert!(graphs.get(key("a"), || graph(1)).await.is_ok());
        assert_eq!(graphs.stats(), GraphsStats { bytes: 1, count: 1, loads: 3 });
    }

    #[tokio::test]
    async fn the_least_recently_used_goes_first_and_never_one_in_use() {
        let graphs = Graphs::new(100);
        let loads = Arc::new(AtomicUsize::new(0));
        let get = |name: &'static str, bytes| {
            let (graphs, loads) = (graphs.clone(), loads.clone());
            async move {
                let load = move || {
                    loads.fetch_add(1, Ordering::SeqCst);
                    graph(bytes)
                };
                graphs.get(key(name), load).await
            }
        };
        let held = get("held", 40).await.unwrap();
        drop(get("old", 30).await.unwrap());
        drop(get("new", 30).await.unwrap());
        drop(get("old", 30).await.unwrap()); // now "new" is the older one
        drop(get("more", 30).await.unwrap());
        assert_eq!(graphs.stats(), GraphsStats { bytes: 100, count: 3, loads: 4 });
        drop(get("old", 30).await.unwrap());
        assert_eq!(loads.load(Ordering::SeqCst), 4, "old stayed");

        assert_eq!(get("huge", 101).await.err().unwrap().kind(), NnErrorKind::TooLarge);
        assert_eq!(get("beside", 61).await.err().unwrap().kind(), NnErrorKind::Overloaded);
        drop(held);
        drop(get("beside", 61).await.unwrap());
        assert_eq!(graphs.stats().bytes, 91, "held and more went, both older than old");
    }

    #[tokio::test]
    async fn idle_graphs_are_dropped_and_used_ones_are_not() {
        let graphs = Graphs::new(100);
        let held = graphs.get(key("held"), || graph(1)).await.unwrap();
        drop(graphs.get(key("idle"), || graph(2)).await.unwrap());
        assert_eq!(graphs.drop_idle(Duration::from_secs(60)), 0);
        assert_eq!(graphs.drop_idle(Duration::ZERO), 2);
        assert_eq!(graphs.stats().count, 1);
        drop(held);
        assert_eq!(graphs.drop_idle(Duration::ZERO), 1);
    }
}
