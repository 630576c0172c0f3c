//! Who may run now: a bounded number of instances, and a bounded queue before them.

mod places;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use self::places::{Asked, Places, Taken, Waiting};
use crate::access::quota::Reserved;
use crate::access::{Resource, Tallies, Tally};
use crate::catalog::WorkspaceId;
use crate::error::{ApiError, ErrorCode};
use crate::observe::metrics::Metrics;

/// Request bodies held in memory at one time, over all requests. A workspace may have as much as it leaves to those that
/// come later, so at most half of what the others do not have.
const BODY_BYTES_MAX: u64 = 1 << 30;

/// Most that one workspace can ever have of them, and so the most that one body can be with what is made of it.
pub const WORKSPACE_BODY_BYTES_MAX: u64 = BODY_BYTES_MAX / 2;

/// Hands out places for instances.
pub struct Admission {
    places: Arc<Places>,
    body_bytes: AtomicU64,
    tallies: Arc<Tallies>,
    metrics: Arc<Metrics>,
}

/// The right to one instance. Dropping it is the release.
pub struct Place {
    /// One of the workspace's own. Before the place, which goes to the workspace that has the fewest.
    _quota: Reserved,
    _taken: Taken,
    metrics: Arc<Metrics>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.instances.dec();
    }
}

/// Room for a request's body. Dropping it is the release.
pub struct BodyRoom<'a> {
    admission: &'a Admission,
    workspace: WorkspaceId,
    /// The workspace's, once there are bytes.
    tally: Option<Arc<Tally>>,
    bytes: u64,
}

impl BodyRoom<'_> {
    /// Room for more bytes of the same body.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` when bodies in memory would be too much, or the workspace's share of them; status 413 when this
    /// body alone would be.
    pub fn grow(&mut self, bytes: u64) -> Result<(), ApiError> {
        let (admission, workspace) = (self.admission, self.workspace);
        if self.bytes.saturating_add(bytes) > WORKSPACE_BODY_BYTES_MAX {
            let text = format!(
                "The request takes more than {} MiB of memory with what is made of its body. Divide it, or send its \
                 tensors as raw bytes.",
                WORKSPACE_BODY_BYTES_MAX >> 20
            );
            return Err(ApiError::new(ErrorCode::BadRequest, text).with_status(413));
        }
        let tally = self.tally.get_or_insert_with(|| admission.tallies.of(workspace));
        let own = tally.body_bytes.fetch_add(bytes, Relaxed).saturating_add(bytes);
        let all = admission.body_bytes.fetch_add(bytes, Relaxed).saturating_add(bytes);
        // As much again as it has must be free: `own <= (BODY_BYTES_MAX - others) / 2`.
        if own.saturating_add(all) > BODY_BYTES_MAX {
            tally.body_bytes.fetch_sub(bytes, Relaxed);
            admission.body_bytes.fetch_sub(bytes, Relaxed);
            return Err(admission.busy());
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for BodyRoom<'_> {
    fn drop(&mut self) {
        self.admission.body_bytes.fetch_sub(self.bytes, Relaxed);
        if let Some(tally) = &self.tally {
            tally.body_bytes.fetch_sub(self.bytes, Relaxed);
        }
    }
}

/// Counts one that waits.
struct Queued<'a>(&'a Metrics);

impl<'a> Queued<'a> {
    fn new(metrics: &'a Metrics) -> Queued<'a> {
        metrics.queued.inc();
        Queued(metrics)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued.dec();
    }
}

impl Admission {
    /// Room for `instances_max` instances and `waiting_max` requests before them.
    pub fn new(instances_max: usize, waiting_max: usize, tallies: Arc<Tallies>, metrics: Arc<Metrics>) -> Admission {
        Admission { places: Places::new(instances_max, waiting_max), body_bytes: AtomicU64::new(0), tallies, metrics }
    }

    /// A place for an instance; waits in the queue for at most `patience`, where workspaces have their turns.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` when the workspace has as many requests in work as it may have, the queue is full, or the wait
    /// too long.
    pub async fn place(&self, workspace: WorkspaceId, patience: Duration) -> Result<Place, ApiError> {
        let tally = self.tallies.of(workspace);
        let quota = tally.reserve(Resource::ConcurrentRequests, 1);
        let quota = quota.inspect_err(|_| self.metrics.count_refusal("quota"))?;
        let taken = match self.places.ask(workspace, &tally) {
            Asked::Taken(taken) => Some(taken),
            Asked::Waiting(waiting) => self.wait(waiting, patience).await,
            Asked::Refused => None,
        };
        let taken = taken.ok_or_else(|| self.busy())?;
        self.metrics.instances.inc();
        Ok(Place { _quota: quota, _taken: taken, metrics: Arc::clone(&self.metrics) })
    }

    async fn wait(&self, mut waiting: Waiting, patience: Duration) -> Option<Taken> {
        let _queued = Queued::new(&self.metrics);
        tokio::time::timeout(patience, waiting.place()).await.ok().flatten()
    }

    /// Room for a body of a workspace's request, which grows as its bytes arrive: a length that is only declared takes none.
    pub fn body_room(&self, workspace: WorkspaceId) -> BodyRoom<'_> {
        BodyRoom { admission: self, workspace, tally: None, bytes: 0 }
    }

    fn busy(&self) -> ApiError {
        self.metrics.count_refusal("busy");
        ApiError::new(
            ErrorCode::ResourceExhausted,
            "Too many concurrent requests. Send fewer at once, or raise concurrent_requests_max of the server.",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Limits;
    use crate::access::quota::tests::PLENTY;

    const HERE: WorkspaceId = WorkspaceId(1);

    fn admission(concurrent_requests: u64) -> Admission {
        let tallies = Tallies::new(Limits { concurrent_requests, ..PLENTY });
        Admission::new(1, 1, Arc::new(tallies), Arc::default())
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_patient_only_so_long() {
        let patience = Duration::from_millis(20);
        let admission = admission(1000);
        let place = admission.place(HERE, patience).await.unwrap();
        let (second, third) = tokio::join!(admission.place(HERE, patience), admission.place(HERE, patience));
        assert_eq!(second.err().unwrap().status, 429, "waited for nothing");
        assert_eq!(third.err().unwrap().status, 429, "found the queue full");
        drop(place);
        admission.place(HERE, Duration::ZERO).await.unwrap();
    }

    #[tokio::test]
    async fn a_workspace_over_its_quota_takes_no_place_in_the_queue() {
        let admission = admission(1);
        let place = admission.place(HERE, Duration::ZERO).await.unwrap();
        let refused = admission.place(HERE, Duration::MAX).await.err().unwrap();
        assert_eq!((refused.status, refused.message.contains("parallel requests")), (429, true));
        drop(place);
        let _other = admission.place(WorkspaceId(2), Duration::ZERO).await.unwrap();
        assert!(admission.place(HERE, Duration::ZERO).await.is_err(), "the server's only place is taken");
        drop(_other);
        admission.place(HERE, Duration::ZERO).await.unwrap();
    }

    #[test]
    fn a_workspace_has_room_for_bodies_as_long_as_it_leaves_as_much_to_others() {
        let admission = admission(1);
        let mut rooms: Vec<_> = (0..64).map(|_| admission.body_room(HERE)).collect();
        rooms.iter_mut().for_each(|room| room.grow(BODY_BYTES_MAX / 128).unwrap());
        assert_eq!(rooms[0].grow(1).unwrap_err().status, 429, "half of all");
        assert_eq!(admission.body_room(HERE).grow(WORKSPACE_BODY_BYTES_MAX + 1).unwrap_err().status, 413, "never");
        let mut other = admission.body_room(WorkspaceId(2));
        other.grow(BODY_BYTES_MAX / 4).unwrap();
        assert!(other.grow(1).is_err(), "half of what is left");
        admission.body_room(WorkspaceId(3)).grow(BODY_BYTES_MAX / 8).unwrap();
        drop(rooms);
        other.grow(BODY_BYTES_MAX / 4).unwrap();
        drop(other);
        admission.body_room(HERE).grow(WORKSPACE_BODY_BYTES_MAX).unwrap();
        assert_eq!(admission.body_bytes.load(Relaxed), 0);
        assert_eq!(admission.tallies.of(HERE).body_bytes.load(Relaxed), 0);
    }
}
