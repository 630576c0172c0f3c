//! The catalog: every endpoint by its name. One that is in use is *awake*: a request finds with one look-up all that it
//! needs to be answered. One that nobody calls is *asleep*: a name here, a record in the store, from which the next
//! request wakes it.
//!
//! Requests keep what they found; a config that was replaced meanwhile lives on until its last request ends.

mod config;
pub mod gateway_config;
pub mod served;
mod settings;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use papaya::{Equivalent, HashMap};
use tokio::sync::Mutex;

pub use self::config::{
    DeployedGraph, ENTITIES_MAX, EndpointConfig, EndpointRecord, EntityConfig, FailedConfig, InvalidConfig,
    Provisioned, Route, Suspend, TrafficConfig, WorkspaceId, check_endpoint_name, check_entity_name,
};
use self::served::{ColdStart, ServedEntity};
pub use self::settings::{EndpointSettings, Notifications, Tag, Telemetry, TelemetryTable};

/// An endpoint that is awake.
pub struct Endpoint {
    /// What is stored of it.
    pub record: EndpointRecord,
    /// What answers requests; none until the first deploy has succeeded.
    pub serving: Option<Arc<Serving>>,
}

/// A config that serves.
pub struct Serving {
    /// In the order of the config.
    pub entities: Vec<Arc<ServedEntity>>,
    /// Indexes into `entities` in the order of the traffic's routes.
    routes: Vec<usize>,
    traffic: TrafficConfig,
}

impl Serving {
    /// Entities with their traffic. `entities` are those of the config that `traffic` was checked against.
    pub fn new(entities: Vec<Arc<ServedEntity>>, traffic: TrafficConfig) -> Serving {
        let position = |name: &str| entities.iter().position(|entity| entity.config.name == name).unwrap_or(0);
        let routes = traffic.routes().iter().map(|route| position(&route.entity)).collect();
        Serving { entities, routes, traffic }
    }

    /// The same entities under another config, if it needs nothing else in memory: then it can serve at once.
    pub fn with(&self, config: &EndpointConfig) -> Option<Serving> {
        let kept =
            |entity: &EntityConfig| self.entity(&entity.name).filter(|served| served.config.serves_as(entity)).cloned();
        let entities = config.entities.iter().map(kept).collect::<Option<_>>()?;
        Some(Serving::new(entities, config.traffic.clone()))
    }

    /// The entity that the next request goes to: weighted, at random.
    pub fn pick(&self) -> &Arc<ServedEntity> {
        match self.entities.as_slice() {
            [only] => only,
            entities => &entities[self.routes[self.traffic.pick(fastrand::u8(0..100))]],
        }
    }

    /// An entity by name.
    pub fn entity(&self, name: &str) -> Option<&Arc<ServedEntity>> {
        self.entities.iter().find(|entity| entity.config.name == name)
    }
}

impl Endpoint {
    fn traces(&self) -> Traces {
        let entities = self.entities();
        entities.filter_map(|entity| Some((entity.config.name.as_str().into(), entity.last_cold_start()?))).collect()
    }

    fn entities(&self) -> impl Iterator<Item = &Arc<ServedEntity>> {
        self.serving.iter().flat_map(|serving| &serving.entities)
    }

    /// Whether nothing of it needs to be in memory: nobody has asked for it for a while, and it is not being deployed.
    fn is_idle(&self, usual: Duration) -> bool {
        self.record.pending.is_none() && self.entities().all(|entity| entity.is_idle(usual))
    }

    /// When somebody asked for it last; none where nobody could. None at all where it must stay in memory.
    fn may_sleep_since(&self) -> Option<Option<Instant>> {
        let stays = self.record.pending.is_some() || self.entities().any(|entity| !entity.config.scale_to_zero_enabled);
        (!stays).then(|| self.entities().map(|entity| entity.last_used()).max())
    }

    /// Whether this is the only reference to it and to all that a request or a deploy would hold of it. By `get_mut`, which
    /// also sees all that others did before they let go.
    fn is_unused(self: &mut Arc<Endpoint>) -> bool {
        let Some(endpoint) = Arc::get_mut(self) else { return false };
        let Some(serving) = &mut endpoint.serving else { return true };
        let entities = Arc::get_mut(serving).map(|serving| &mut serving.entities);
        entities.is_some_and(|entities| entities.iter_mut().all(|entity| Arc::get_mut(entity).is_some()))
    }
}

/// What an endpoint leaves in memory when it goes to sleep: the last cold start of its entities, by name.
pub type Traces = Box<[(Box<str>, ColdStart)]>;

/// An endpoint's place in the catalog.
#[derive(Default)]
struct Slot {
    awake: ArcSwapOption<Endpoint>,
    /// Held while the endpoint wakes, so that it does once however many requests wait, and while it goes to sleep.
    asleep: Mutex<Traces>,
}

#[derive(PartialEq, Eq, Hash)]
struct Key(WorkspaceId, Box<str>);

/// A [`Key`] to look up with, which needs no memory of its own.
#[derive(Hash)]
struct BorrowedKey<'a>(WorkspaceId, &'a str);

impl Equivalent<Key> for BorrowedKey<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.0 == key.0 && self.1 == &*key.1
    }
}

/// All endpoints.
#[derive(Default)]
pub struct Catalog {
    /// Read without a lock, changed without a copy.
    slots: HashMap<Key, Arc<Slot>>,
    /// How many slots have an endpoint that is awake: changed by whoever takes one from nothing to something or back.
    awake: AtomicUsize,
}

impl Catalog {
    /// An endpoint that is awake. This is what the request path looks up.
    pub fn awake(&self, workspace: WorkspaceId, name: &str) -> Option<Arc<Endpoint>> {
        self.slots.pin().get(&BorrowedKey(workspace, name))?.awake.load_full()
    }

    /// Whether there is such an endpoint, awake or asleep.
    pub fn contains(&self, workspace: WorkspaceId, name: &str) -> bool {
        self.slots.pin().contains_key(&BorrowedKey(workspace, name))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How many are awake.
    pub fn awake_count(&self) -> usize {
        self.awake.load(Relaxed)
    }

    /// All endpoints that are awake, for the server's own housekeeping.
    pub fn all_awake(&self) -> Vec<Arc<Endpoint>> {
        self.slots.pin().values().filter_map(|slot| slot.awake.load_full()).collect()
    }

    /// Publishes an endpoint, awake, in place of the one of its name. Called by the control plane alone.
    pub fn put(&self, endpoint: Endpoint) -> Arc<Endpoint> {
        let key = Key(endpoint.record.workspace, endpoint.record.name.as_str().into());
        let endpoint = Arc::new(endpoint);
        if self.slots.pin().get_or_insert_with(key, Arc::default).awake.swap(Some(Arc::clone(&endpoint))).is_none() {
            self.awake.fetch_add(1, Relaxed);
        }
        endpoint
    }

    /// Publishes an endpoint that sleeps until somebody asks for it.
    pub fn put_asleep(&self, workspace: WorkspaceId, name: &str) {
        self.slots.pin().get_or_insert_with(Key(workspace, name.into()), Arc::default);
    }

    /// Takes an endpoint out. Requests that have it already go on.
    pub fn remove(&self, workspace: WorkspaceId, name: &str) {
        let slots = self.slots.pin();
        if let Some(slot) = slots.remove(&BorrowedKey(workspace, name)) {
            self.empty(slot);
        }
    }

    /// An endpoint, which `read` makes of what is stored and of its traces if it sleeps. None if there is none, or if
    /// `read` finds none.
    ///
    /// # Errors
    /// Those of `read`; the endpoint stays asleep.
    pub async fn wake<E>(
        &self,
        workspace: WorkspaceId,
        name: &str,
        read: impl AsyncFnOnce(Traces) -> Result<Option<Endpoint>, E>,
    ) -> Result<Option<Arc<Endpoint>>, E> {
        let Some(slot) = self.slots.pin().get(&BorrowedKey(workspace, name)).cloned() else { return Ok(None) };
        let traces = slot.asleep.lock().await;
        if let Some(awake) = slot.awake.load_full() {
            return Ok(Some(awake));
        }
        let Some(read) = read(traces.clone()).await?.map(Arc::new) else { return Ok(None) };
        // Not a store: what was published while this read is newer.
        if let Some(published) = &*slot.awake.compare_and_swap(&None::<Arc<Endpoint>>, Some(Arc::clone(&read))) {
            return Ok(Some(Arc::clone(published)));
        }
        self.awake.fetch_add(1, Relaxed);
        let is_place = |found: &Arc<Slot>| Arc::ptr_eq(found, &slot);
        if !self.slots.pin().get(&BorrowedKey(workspace, name)).is_some_and(is_place) {
            // Removed while this read: nobody would put it to sleep.
            self.empty(&slot);
        }
        Ok(Some(read))
    }

    /// Sends those endpoints to sleep that have been idle for a while and are not in use. `save` keeps what must not be
    /// lost with one; where it fails, the endpoint stays. The number of those that sleep now. Blocks as long as `save` does.
    pub fn sleep_idle(&self, usual: Duration, save: impl Fn(&Endpoint) -> bool) -> usize {
        let slots: Vec<Arc<Slot>> = self.slots.pin().values().filter(|slot| slot.is_idle(usual)).cloned().collect();
        slots.iter().filter(|slot| self.sleep(slot, &save)).count()
    }

    /// Sends endpoints to sleep until at most `most` are awake, the least recently used first. Those in use stay, those
    /// being deployed and those that do not scale to zero. `save` and the answer are those of [`Catalog::sleep_idle`].
    pub fn sleep_least_used(&self, most: usize, save: impl Fn(&Endpoint) -> bool) -> usize {
        if self.awake_count() <= most {
            return 0;
        }
        let since = |slot: &Arc<Slot>| Some((slot.awake.load().as_ref()?.may_sleep_since()?, Arc::clone(slot)));
        let mut slots: Vec<(Option<Instant>, Arc<Slot>)> = self.slots.pin().values().filter_map(since).collect();
        slots.sort_by_key(|(used, _)| *used);
        let mut asleep = 0;
        for (_, slot) in slots {
            if self.awake_count() <= most {
                break;
            }
            asleep += usize::from(self.sleep(&slot, &save));
        }
        asleep
    }

    /// Whether the endpoint sleeps now.
    fn sleep(&self, slot: &Slot, save: impl Fn(&Endpoint) -> bool) -> bool {
        // Held: the endpoint wakes just now.
        let Ok(mut traces) = slot.asleep.try_lock() else { return false };
        // Out of reach first: from here on who asks for it waits for the lock, so that nobody can begin to use it.
        let Some(mut endpoint) = self.empty(slot) else { return false };
        if endpoint.is_unused() && save(&endpoint) {
            *traces = endpoint.traces();
            return true;
        }
        // Not a store: what was published meanwhile is newer.
        if slot.awake.compare_and_swap(&None::<Arc<Endpoint>>, Some(endpoint)).is_none() {
            self.awake.fetch_add(1, Relaxed);
        }
        false
    }

    /// Takes the endpoint out of a slot that is awake.
    fn empty(&self, slot: &Slot) -> Option<Arc<Endpoint>> {
        let endpoint = slot.awake.swap(None)?;
        self.awake.fetch_sub(1, Relaxed);
        Some(endpoint)
    }
}

impl Slot {
    fn is_idle(&self, usual: Duration) -> bool {
        self.awake.load().as_ref().is_some_and(|endpoint| endpoint.is_idle(usual))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: WorkspaceId = WorkspaceId(1);
    const NOW: Duration = Duration::ZERO;

    fn endpoint(name: &str, id: &str) -> Endpoint {
        let record = EndpointRecord { id: id.to_owned(), ..EndpointRecord::empty(HOME, name) };
        Endpoint { record, serving: None }
    }

    async fn wake(catalog: &Catalog, name: &str, id: &str) -> Option<Arc<Endpoint>> {
        catalog.wake(HOME, name, async |_| Ok::<_, ()>(Some(endpoint(name, id)))).await.unwrap()
    }

    #[tokio::test]
    async fn an_endpoint_sleeps_when_nobody_uses_it_and_wakes_when_somebody_asks() {
        let catalog = Catalog::default();
        let used = catalog.put(endpoint("a", "first"));
        catalog.sleep_idle(NOW, |_| true);
        assert!(catalog.awake(HOME, "a").is_some(), "it is in use");
        drop(used);
        catalog.sleep_idle(NOW, |_| false);
        assert!(catalog.awake(HOME, "a").is_some(), "what would be lost could not be saved");
        catalog.sleep_idle(NOW, |_| true);
        assert!(catalog.awake(HOME, "a").is_none() && catalog.contains(HOME, "a") && catalog.len() == 1);

        assert_eq!(wake(&catalog, "a", "read").await.unwrap().record.id, "read");
        assert_eq!(wake(&catalog, "a", "read again").await.unwrap().record.id, "read", "it is awake");
        assert!(wake(&catalog, "b", "read").await.is_none());
        assert!(catalog.wake(WorkspaceId(2), "a", async |_| Ok::<_, ()>(None)).await.unwrap().is_none());
        catalog.remove(HOME, "a");
        assert!(wake(&catalog, "a", "read").await.is_none() && catalog.is_empty());
    }

    #[tokio::test]
    async fn above_a_number_endpoints_sleep_but_never_one_in_use() {
        let catalog = Catalog::default();
        let used = catalog.put(endpoint("used", "1"));
        for name in ["a", "b", "c"] {
            catalog.put(endpoint(name, name));
        }
        assert_eq!((catalog.awake_count(), catalog.sleep_least_used(4, |_| true)), (4, 0));
        assert_eq!((catalog.sleep_least_used(3, |_| true), catalog.awake_count()), (1, 3));
        assert_eq!(catalog.sleep_least_used(0, |_| false), 0, "what would be lost could not be saved");
        assert_eq!((catalog.sleep_least_used(0, |_| true), catalog.awake_count()), (2, 1));
        assert!(catalog.awake(HOME, "used").is_some());
        drop(used);
        catalog.sleep_least_used(0, |_| true);
        assert!(catalog.awake(HOME, "used").is_none());
    }

    #[tokio::test]
    async fn those_awake_are_counted_whatever_happens_to_them() {
        let catalog = Catalog::default();
        catalog.put(endpoint("a", "1"));
        catalog.put(endpoint("a", "2"));
        assert_eq!(catalog.awake_count(), 1);
        catalog.remove(HOME, "a");
        catalog.remove(HOME, "a");
        assert_eq!(catalog.awake_count(), 0);
        catalog.put_asleep(HOME, "a");
        wake(&catalog, "a", "read").await.unwrap();
        wake(&catalog, "a", "read").await.unwrap();
        assert_eq!(catalog.awake_count(), 1);
        catalog.sleep_idle(NOW, |_| true);
        assert_eq!(catalog.awake_count(), 0);
        // Removed while it wakes, it is not kept.
        let woken = catalog.wake(HOME, "a", async |_| {
            catalog.remove(HOME, "a");
            Ok::<_, ()>(Some(endpoint("a", "read")))
        });
        assert!(woken.await.unwrap().is_some());
        assert_eq!((catalog.awake_count(), catalog.len()), (0, 0));
    }

    #[tokio::test]
    async fn what_is_published_while_an_endpoint_wakes_stays() {
        let catalog = Catalog::default();
        catalog.put_asleep(HOME, "a");
        let woken = catalog.wake(HOME, "a", async |_| {
            catalog.put(endpoint("a", "published"));
            Ok::<_, ()>(Some(endpoint("a", "read before")))
        });
        assert_eq!(woken.await.unwrap().unwrap().record.id, "published");
        assert_eq!(catalog.awake(HOME, "a").unwrap().record.id, "published");
    }

    #[tokio::test]
    async fn many_who_ask_wake_it_once() {
        let catalog = Catalog::default();
        catalog.put_asleep(HOME, "a");
        let reads = std::sync::atomic::AtomicUsize::new(0);
        let ask = || {
            catalog.wake(HOME, "a", async |_| {
                tokio::task::yield_now().await;
                reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok::<_, ()>(Some(endpoint("a", "read")))
            })
        };
        let all = futures_util::future::join_all((0..100).map(|_| ask())).await;
        assert!(all.iter().all(|found| found.as_ref().unwrap().is_some()));
        assert_eq!(reads.into_inner(), 1);
    }

    #[test]
    fn a_sleeping_endpoint_is_small() {
        assert!(size_of::<(Key, Arc<Slot>)>() + size_of::<Slot>() <= 128);
    }
}
