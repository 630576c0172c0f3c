//! What each workspace uses of its quotas, counted in memory: told at the start by who reads the records, and from then on
//! by who changes them, so that no call scans anything.
//!
//! What is over a quota is refused with the quota's name, what is used and the limit. Only where waiting helps, with
//! requests in work, is that 429: clients repeat those, and for endpoints and models they would do so in vain for minutes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;

use super::workspace::Quotas;
use crate::catalog::WorkspaceId;
use crate::error::{ApiError, ErrorCode};

/// What a workspace has a bounded number of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Endpoints.
    Endpoints,
    /// Versions of all models together.
    ModelVersions,
    /// Bytes of the files of all model versions, runs and logged models, and of parts whose file is not complete. A file
    /// that two of them have counts twice.
    ModelBytes,
    /// Requests to endpoints that run or wait to run.
    ConcurrentRequests,
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 4] =
        [Resource::Endpoints, Resource::ModelVersions, Resource::ModelBytes, Resource::ConcurrentRequests];

    /// The quota's name, as in [`Quotas`].
    pub fn name(self) -> &'static str {
        match self {
            Resource::Endpoints => "endpoints",
            Resource::ModelVersions => "model_versions",
            Resource::ModelBytes => "model_bytes",
            Resource::ConcurrentRequests => "concurrent_requests",
        }
    }
}

/// The quotas of a workspace with the server's own numbers where it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[allow(missing_docs, reason = "`Quotas` says what each one means")]
pub struct Limits {
    pub endpoints: u64,
    pub model_versions: u64,
    pub model_bytes: u64,
    pub concurrent_requests: u64,
    pub requests_per_minute: u64,
    pub tokens_per_minute: u64,
}

impl Limits {
    /// These, except where quotas say otherwise.
    #[must_use]
    pub fn with(self, quotas: &Quotas) -> Limits {
        Limits {
            endpoints: quotas.endpoints.unwrap_or(self.endpoints),
            model_versions: quotas.model_versions.unwrap_or(self.model_versions),
            model_bytes: quotas.model_bytes.unwrap_or(self.model_bytes),
            concurrent_requests: quotas.concurrent_requests.unwrap_or(self.concurrent_requests),
            requests_per_minute: quotas.requests_per_minute.unwrap_or(self.requests_per_minute),
            tokens_per_minute: quotas.tokens_per_minute.unwrap_or(self.tokens_per_minute),
        }
    }

    fn of(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Endpoints => self.endpoints,
            Resource::ModelVersions => self.model_versions,
            Resource::ModelBytes => self.model_bytes,
            Resource::ConcurrentRequests => self.concurrent_requests,
        }
    }
}

/// The tallies of all workspaces.
pub struct Tallies {
    defaults: Limits,
    all: papaya::HashMap<WorkspaceId, Arc<Tally>>,
}

impl Tallies {
    /// Tallies of workspaces that may have as much as the server says.
    pub fn new(defaults: Limits) -> Tallies {
        Tallies { defaults, all: papaya::HashMap::new() }
    }

    /// A workspace's tally. Takes no lock.
    pub fn of(&self, workspace: WorkspaceId) -> Arc<Tally> {
        let all = self.all.pin();
        Arc::clone(all.get_or_insert_with(workspace, || Arc::new(Tally::new(workspace, self.defaults))))
    }

    /// Gives a workspace its quotas; what it already has over them stays.
    pub fn set(&self, workspace: WorkspaceId, quotas: &Quotas) {
        self.of(workspace).limits.store(Arc::new(self.defaults.with(quotas)));
    }

    /// Forgets a workspace that is gone.
    pub fn remove(&self, workspace: WorkspaceId) {
        self.all.pin().remove(&workspace);
    }
}

/// What one workspace has, and what it may have.
pub struct Tally {
    workspace: WorkspaceId,
    limits: ArcSwap<Limits>,
    used: [AtomicU64; Resource::ALL.len()],
    /// Bytes of its requests' bodies in memory: no quota, but a share of what the server has. See [`crate::admission`].
    pub(crate) body_bytes: AtomicU64,
}

impl Tally {
    fn new(workspace: WorkspaceId, limits: Limits) -> Tally {
        Tally {
            workspace,
            limits: ArcSwap::from_pointee(limits),
            used: Default::default(),
            body_bytes: AtomicU64::new(0),
        }
    }

    /// What it may have now.
    pub fn limits(&self) -> Limits {
        **self.limits.load()
    }

    /// How much of something it has, what is being made included.
    pub fn used(&self, resource: Resource) -> u64 {
        self.used[resource as usize].load(Relaxed)
    }

    /// Room for something, until it is dropped or kept.
    ///
    /// # Errors
    /// Which quota, what is used of it, and the limit: `RESOURCE_EXHAUSTED` for requests, `BAD_REQUEST` for the rest.
    pub fn reserve(self: &Arc<Tally>, resource: Resource, amount: u64) -> Result<Reserved, ApiError> {
        let mut reserved = Reserved { tally: Arc::clone(self), resource, amount: 0 };
        reserved.grow(amount)?;
        Ok(reserved)
    }

    /// Room for something that grows or shrinks. What it takes more is reserved; what it gives back is given back with
    /// [`Resized::keep`].
    ///
    /// # Errors
    /// As [`Tally::reserve`], for something that grows.
    pub fn resize(self: &Arc<Tally>, resource: Resource, before: u64, after: u64) -> Result<Resized, ApiError> {
        let more = self.reserve(resource, after.saturating_sub(before))?;
        Ok(Resized { more, less: before.saturating_sub(after) })
    }

    /// Counts what is there already, over the quota or not.
    pub fn add(&self, resource: Resource, amount: u64) {
        self.used[resource as usize].fetch_add(amount, Relaxed);
    }

    /// Counts what is gone.
    pub fn subtract(&self, resource: Resource, amount: u64) {
        // Never below nothing, were something counted as gone twice: a wrapped number would refuse everything.
        let _ = self.used[resource as usize].fetch_update(Relaxed, Relaxed, |used| Some(used.saturating_sub(amount)));
    }

    fn refusal(&self, resource: Resource, used: u64, more: u64) -> ApiError {
        let (name, limit, workspace) = (resource.name(), self.limits.load().of(resource), self.workspace);
        if resource == Resource::ConcurrentRequests {
            return ApiError::new(
                ErrorCode::ResourceExhausted,
                format!(
                    "Exceeded max number of parallel requests: workspace {workspace} has {used} in work, and its quota \
                     '{name}' is {limit}. Send fewer at once, or ask the server's administrator for a higher quota."
                ),
            );
        }
        ApiError::new(
            ErrorCode::BadRequest,
            format!(
                "Workspace {workspace} would exceed its quota '{name}': {used} of {limit} are used, and this takes {more} \
                 more. Delete what is not needed, or ask the server's administrator for a higher quota."
            ),
        )
    }
}

/// A change of size that is counted where it takes room. Dropping it leaves the count as it was.
#[must_use = "what is not kept is not counted"]
pub struct Resized {
    more: Reserved,
    less: u64,
}

impl Resized {
    /// The thing has its new size.
    pub fn keep(self) {
        self.more.tally.subtract(self.more.resource, self.less);
        self.more.keep();
    }
}

/// Room that was counted as used. Dropping it gives it back.
pub struct Reserved {
    tally: Arc<Tally>,
    resource: Resource,
    amount: u64,
}

impl Reserved {
    /// More room for the same thing.
    ///
    /// # Errors
    /// As [`Tally::reserve`]; what it has stays.
    pub fn grow(&mut self, more: u64) -> Result<(), ApiError> {
        let counter = &self.tally.used[self.resource as usize];
        let used = counter.fetch_add(more, Relaxed);
        if used.saturating_add(more) > self.tally.limits.load().of(self.resource) {
            counter.fetch_sub(more, Relaxed);
            return Err(self.tally.refusal(self.resource, used, more));
        }
        self.amount += more;
        Ok(())
    }

    /// The thing is there: it stays counted until it is subtracted.
    pub fn keep(mut self) {
        self.amount = 0;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.tally.subtract(self.resource, self.amount);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// So much that no quota is met.
    pub(crate) const PLENTY: Limits = Limits {
        endpoints: 1000,
        model_versions: 1000,
        model_bytes: 1 << 40,
        concurrent_requests: 1000,
        requests_per_minute: u64::MAX,
        tokens_per_minute: u64::MAX,
    };

    #[test]
    fn what_is_over_a_quota_is_refused_and_what_is_given_back_can_be_had_again() {
        let tallies = Tallies::new(Limits { endpoints: 2, concurrent_requests: 1, ..PLENTY });
        let tally = tallies.of(WorkspaceId(1));
        tally.reserve(Resource::Endpoints, 1).unwrap().keep();
        let second = tally.reserve(Resource::Endpoints, 1).unwrap();
        let refused = tally.reserve(Resource::Endpoints, 1).err().unwrap();
        assert_eq!(refused.status, 400, "not to be repeated");
        assert!(refused.message.contains("'endpoints': 2 of 2 are used"), "{}", refused.message);
        drop(second);
        assert_eq!(tally.used(Resource::Endpoints), 1);
        tallies.of(WorkspaceId(2)).reserve(Resource::Endpoints, 2).unwrap().keep();

        let _request = tally.reserve(Resource::ConcurrentRequests, 1).unwrap();
        assert_eq!(tally.reserve(Resource::ConcurrentRequests, 1).err().unwrap().status, 429);

        tallies.set(WorkspaceId(1), &Quotas { endpoints: Some(1), ..Quotas::default() });
        assert!(tally.reserve(Resource::Endpoints, 1).is_err());
        tally.subtract(Resource::Endpoints, 5);
        tally.reserve(Resource::Endpoints, 1).unwrap();
    }

    #[test]
    fn room_that_grows_is_refused_where_it_ends_and_given_back_whole() {
        let tallies = Tallies::new(Limits { model_bytes: 10, ..PLENTY });
        let tally = tallies.of(WorkspaceId(1));
        let mut file = tally.reserve(Resource::ModelBytes, 0).unwrap();
        file.grow(6).unwrap();
        assert!(file.grow(5).is_err());
        file.grow(4).unwrap();
        drop(file);
        assert_eq!(tally.used(Resource::ModelBytes), 0);
        tally.resize(Resource::ModelBytes, 0, 8).unwrap().keep();
        drop(tally.resize(Resource::ModelBytes, 8, 10).unwrap());
        drop(tally.resize(Resource::ModelBytes, 8, 0).unwrap());
        assert!(tally.resize(Resource::ModelBytes, 8, 11).is_err());
        assert_eq!(tally.used(Resource::ModelBytes), 8);
        tally.resize(Resource::ModelBytes, 8, 3).unwrap().keep();
        assert_eq!(tally.used(Resource::ModelBytes), 3);
    }
}
