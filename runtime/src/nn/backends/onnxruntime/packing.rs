//! Packs the weights of a graph that is asked often, in the background, and puts the faster session in place.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::converted::{MappedModel, Weights};
use super::session::Loaded;
use super::{Library, caught};

/// Runs after which packing pays. For MiniLM a packed session takes 39 ms to make and saves 4 ms a run, so it has earned
/// its cost after about ten; packing only then costs at most twice what knowing the future would.
const PACK_AFTER_RUNS: u32 = 10;

/// Whether a graph is being packed. One at a time: packing takes a core and the memory of a second session, and requests
/// need both more. A graph that finds it taken asks again with its next run.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// What is needed to pack the weights of one graph, once.
pub(super) struct Packing {
    library: &'static Library,
    model: Arc<MappedModel>,
    /// Threads of one run.
    threads: u32,
    runs: AtomicU32,
    begun: AtomicBool,
}

impl Packing {
    pub(super) fn new(library: &'static Library, model: Arc<MappedModel>, threads: u32) -> Self {
        Self { library, model, threads, runs: AtomicU32::new(0), begun: AtomicBool::new(false) }
    }

    /// Counts a run, and starts packing when that pays. Runs go on meanwhile, on the session they began with.
    pub(super) fn ran(&self, current: &Arc<ArcSwap<Loaded>>) {
        if self.begun.load(Relaxed) || self.runs.fetch_add(1, Relaxed) + 1 < PACK_AFTER_RUNS {
            return;
        }
        let Some(turn) = Turn::take() else { return };
        if self.begun.swap(true, Relaxed) {
            return;
        }
        let (library, model, current) = (self.library, Arc::clone(&self.model), Arc::downgrade(current));
        let threads = self.threads;
        let started = thread::Builder::new().name("pack-graph".to_owned()).spawn(move || {
            let _turn = turn;
            pack(library, &model, threads, &current);
        });
        if let Err(error) = started {
            tracing::warn!("a graph stays slow, since no thread could be started to pack its weights: {error}");
        }
    }
}

/// The graph may be dropped meanwhile; then this was for nothing.
fn pack(library: &'static Library, model: &Arc<MappedModel>, threads: u32, current: &Weak<ArcSwap<Loaded>>) {
    let begun = Instant::now();
    let packed = match caught(|| library.mapped_session(model, Weights::Packed, threads)) {
        Ok(packed) => packed,
        Err(error) => return tracing::warn!("a graph stays slow, since its weights could not be packed: {error}"),
    };
    let Some(current) = current.upgrade() else { return };
    current.store(Arc::new(packed));
    // Most of what the other session read there, this one has in its own memory.
    model.release_pages();
    tracing::debug!(bytes = model.bytes(), elapsed_ms = begun.elapsed().as_millis() as u64, "packed a graph's weights");
}

/// The right to pack; given back on drop.
struct Turn;

impl Turn {
    fn take() -> Option<Self> {
        (!TAKEN.swap(true, Relaxed)).then_some(Self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TAKEN.store(false, Relaxed);
    }
}
