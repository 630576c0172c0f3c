//! What is done beside changes: endpoints come back into memory after a start, sleep when nobody calls them, and what was
//! made for those that are gone is removed.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::{ControlPlane, log_name};
use crate::catalog::served::ServedEntity;
use crate::catalog::{Endpoint, EndpointRecord, WorkspaceId};
use crate::deploy::UNFINISHED;
use crate::memory;
use crate::seal;
use crate::store::StoreError;
use crate::store::documents::visit_documents;

/// Part of the endpoints that may be awake that sleeps when there is room for no other: looking for the least recently used
/// takes a look at all.
const ROOM_PART: usize = 16;

/// How long after endpoints went to sleep, and after the start, memory is given back once more. The threads that read records
/// wait 10 s for more of them before they end, and what they hold can be given back only then.
pub(super) const GIVE_BACK_AGAIN: Duration = Duration::from_secs(12);

/// Age of something unfinished in the cache, in which nothing was written for so long that nobody does any more.
const UNFINISHED_MAX: Duration = Duration::from_secs(3600);

impl ControlPlane {
    /// Brings those entities of an endpoint back into memory that do not scale to zero.
    pub(super) fn warm_up(self: &Arc<ControlPlane>, workspace: WorkspaceId, name: String) {
        let control = Arc::clone(self);
        self.background.spawn(async move {
            let failed = |cause: String| tracing::warn!(endpoint = name, cause, "failed to bring an endpoint back");
            let endpoint = match control.endpoint(workspace, &name).await {
                Ok(endpoint) => endpoint,
                Err(error) => return failed(error.message),
            };
            let entities = endpoint.serving.iter().flat_map(|serving| &serving.entities);
            for entity in entities.filter(|entity| !entity.config.scale_to_zero_enabled) {
                if let Err(error) = entity.ready(&control.host).await {
                    failed(error.to_string());
                }
            }
        });
    }

    /// Gives back the memory of what nobody has asked for in a while: components of served entities, then all else of the
    /// endpoints. Blocks.
    pub fn sleep_idle(&self, idle: Duration) {
        // Those that could not sleep when others woke, since they were in use.
        self.make_room(0);
        for endpoint in self.catalog.all_awake() {
            for entity in endpoint.serving.iter().flat_map(|serving| &serving.entities) {
                entity.drop_idle(idle, &self.host.graphs);
            }
        }
        let asleep = self.catalog.sleep_idle(idle, |endpoint| self.save_logs(endpoint));
        self.host.forget_components();
        self.give_back(asleep > 0);
    }

    /// Gives free memory back when endpoints have just gone to sleep, and once more when it is time.
    fn give_back(&self, just_asleep: bool) {
        let now = Instant::now();
        let mut again = self.give_back_at.lock().unwrap_or_else(PoisonError::into_inner);
        if just_asleep || again.is_some_and(|again| now >= again) {
            *again = just_asleep.then(|| now + GIVE_BACK_AGAIN);
            memory::give_back_everywhere();
        }
    }

    /// Puts the least recently used endpoints to sleep, if with `more` there were too many awake. Those in use stay, so that
    /// there may be more after all. Blocks.
    pub(super) fn make_room(&self, more: usize) {
        let enough = self.awake_max.saturating_sub(more);
        if self.catalog.awake_count() <= enough {
            return;
        }
        let _alone = self.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        if self.catalog.awake_count() > enough {
            self.catalog.sleep_least_used(enough - enough / ROOM_PART, |endpoint| self.save_logs(endpoint));
        }
    }

    /// Saves the logs of all guests that are in memory, before the server ends. Blocks.
    pub fn save_all_logs(&self) {
        for endpoint in self.catalog.all_awake() {
            self.save_logs(&endpoint);
        }
    }

    /// Whether nothing that the guests of an endpoint wrote would be lost with it.
    pub(super) fn save_logs(&self, endpoint: &Endpoint) -> bool {
        let save =
            |entity: &Arc<ServedEntity>| entity.log.save(&self.host.files, &log_name(&endpoint.record, &entity.config));
        let saved = endpoint.serving.iter().flat_map(|serving| &serving.entities).try_for_each(save);
        if let Err(error) = &saved {
            tracing::warn!(endpoint = endpoint.record.name, "failed to save what its guest wrote: {error}");
        }
        saved.is_ok()
    }

    /// Removes what was made for endpoints that are gone: laid-out packages, artifacts, converted graphs, logs. Blocks, and
    /// reads every package that is served: after a start, and from time to time.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn sweep(&self) -> Result<(), StoreError> {
        if self.leftovers()?.is_empty() {
            return Ok(());
        }
        // Looked for again while nothing can be made or changed: a deploy may have found use for one meanwhile.
        let _alone = self.changes.blocking_write();
        for path in self.leftovers()? {
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), "failed to remove a leftover: {error}");
            }
        }
        Ok(())
    }

    fn leftovers(&self) -> Result<Vec<PathBuf>, StoreError> {
        // By a hash, which is small; two names with one hash keep a leftover.
        let hashes = RandomState::new();
        let mut kept: HashSet<u64> = HashSet::new();
        visit_documents(&*self.store, "endpoint/", |_, record: EndpointRecord| {
            kept.insert(hashes.hash_one(record.id.as_str()));
            for entity in record.config.iter().chain(&record.pending).flat_map(|config| &config.entities) {
                // What cannot be read now has nothing that could be told from a leftover.
                let package = self.registry.package(record.workspace, &entity.entity_name, entity.entity_version).ok();
                let leaves = package.and_then(|package| self.host.leaves(record.workspace, entity, &package).ok());
                kept.extend(leaves.iter().flatten().map(|name| hashes.hash_one(name.as_str())));
            }
            Ok::<_, StoreError>(())
        })?;
        let folders = ["packages", "artifacts", "graphs"].map(|name| self.home.cache(name)).into_iter();
        let folders = folders.chain(seal::files::FOLDERS.map(|name| self.home.path(name))).map(std::fs::read_dir);
        let is_leftover = |entry: &std::fs::DirEntry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(UNFINISHED) {
                let modified = entry.metadata().and_then(|metadata| metadata.modified());
                return modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > UNFINISHED_MAX));
            }
            // Names begin with what they belong to: a digest, a key, an endpoint's id.
            !kept.contains(&hashes.hash_one(name.split(['.', '-']).next().unwrap_or(&name)))
        };
        let entries = folders.flatten().flatten().flatten();
        Ok(entries.filter(is_leftover).map(|entry| entry.path()).collect())
    }
}
