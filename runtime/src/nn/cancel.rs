//! Stopping a run from another thread: the caller went away, or its deadline passed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::NnError;

/// One run's stop switch, shared between the waiting caller and the thread that runs. It belongs to one run: there is no
/// process-wide flag that could stop a neighbour's.
#[derive(Default)]
pub struct Cancel {
    state: Mutex<State>,
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Running(Box<dyn Fn() + Send>),
    Cancelled,
}

impl Cancel {
    /// Asks the run to stop, now or when it starts. Returns at once; a backend may need a while, or not be able to.
    pub fn cancel(&self) {
        let mut state = self.lock();
        if let State::Running(stop) = &*state {
            stop();
        }
        *state = State::Cancelled;
    }

    /// Whether it was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        matches!(*self.lock(), State::Cancelled)
    }

    /// For a backend, at the start of a run: `stop` is called, at most once and under a lock, if cancelled before the
    /// returned guard is dropped, and never after. `Timeout` when already cancelled.
    pub(super) fn on_cancel(&self, stop: impl Fn() + Send + 'static) -> Result<Disarm<'_>, NnError> {
        let mut state = self.lock();
        if matches!(*state, State::Cancelled) {
            return Err(NnError::timeout("the computation was cancelled before it started"));
        }
        *state = State::Running(Box::new(stop));
        Ok(Disarm(self))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Disarm<'a>(&'a Cancel);

impl Drop for Disarm<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if matches!(*state, State::Running(_)) {
            *state = State::Idle;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn stop_is_called_only_while_the_run_lasts() {
        let stops = Arc::new(AtomicU32::new(0));
        let count = |stops: &Arc<AtomicU32>| {
            let stops = stops.clone();
            move || {
                stops.fetch_add(1, Ordering::SeqCst);
            }
        };

        let finished = Cancel::default();
        drop(finished.on_cancel(count(&stops)).unwrap());
        finished.cancel();
        assert_eq!(stops.load(Ordering::SeqCst), 0);
        assert!(finished.on_cancel(count(&stops)).is_err(), "cancelled before it started");

        let running = Cancel::default();
        let guard = running.on_cancel(count(&stops)).unwrap();
        running.cancel();
        running.cancel();
        drop(guard);
        assert!(running.is_cancelled());
        assert_eq!(stops.load(Ordering::SeqCst), 1);
    }
}
