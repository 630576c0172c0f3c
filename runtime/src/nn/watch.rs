//! Ends runs that hold up an event loop.
//!
//! Which runs are short is learnt, and a model may be made to be quick until it is trusted: a loop whose length is in the
//! input, say. So a run on an event loop is watched; one that goes on for too long is stopped, and its graph runs on
//! threads from then on, where it holds up only its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::{Cancel, NnError};

/// A run on an event loop that takes longer is stopped: a thousand times what such a run is expected to take, so that a
/// thread that was off the processor for a while is not taken for it.
const RUN_MAX: Duration = Duration::from_millis(100);

/// How often the runs are looked at.
const PERIOD: Duration = Duration::from_millis(50);

/// What one event loop runs now.
#[derive(Default)]
pub(super) struct Watch(Mutex<Option<(Instant, Arc<Cancel>)>>);

/// A watched run. Dropping it ends the watch.
pub(super) struct Watched {
    watch: Arc<Watch>,
    cancel: Arc<Cancel>,
}

impl Watch {
    /// Watches a run from now on.
    pub(super) fn begin(self: Arc<Self>) -> Watched {
        let cancel = Arc::new(Cancel::default());
        *self.lock() = Some((Instant::now(), Arc::clone(&cancel)));
        Watched { watch: self, cancel }
    }

    fn check(&self) {
        if let Some((since, cancel)) = &*self.lock()
            && since.elapsed() > RUN_MAX
        {
            cancel.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Instant, Arc<Cancel>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    /// How the run is stopped.
    pub(super) fn cancel(&self) -> &Cancel {
        &self.cancel
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        *self.watch.lock() = None;
    }
}

/// What whoever waits for a stopped run is told.
pub(super) fn stopped() -> NnError {
    NnError::timeout(format!(
        "the computation was stopped after {} ms, which is far more than this model's took before; from now on they may",
        RUN_MAX.as_millis()
    ))
}

/// The watches of all event loops, and the thread that looks at them.
#[derive(Clone)]
pub(super) struct Watches(Arc<Mutex<Vec<Weak<Watch>>>>);

impl Watches {
    /// Starts the thread, which ends when these are gone. Fails when the system refuses it.
    pub(super) fn start() -> std::io::Result<Watches> {
        let watches = Watches(Arc::default());
        let weak = Arc::downgrade(&watches.0);
        Builder::new().name("nn-watch".to_owned()).spawn(move || {
            while let Some(watches) = weak.upgrade() {
                let mut watches = watches.lock().unwrap_or_else(PoisonError::into_inner);
                watches.retain(|watch| watch.upgrade().inspect(|watch| watch.check()).is_some());
                drop(watches);
                std::thread::sleep(PERIOD);
            }
        })?;
        Ok(watches)
    }

    /// A watch for one more event loop.
    pub(super) fn add(&self) -> Arc<Watch> {
        let watch = Arc::new(Watch::default());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&watch));
        watch
    }
}
