//! A served entity: one model version behind an endpoint, and the rungs of memory it can stand on.
//!
//! Between requests nothing of it needs to be in memory. A request climbs what is missing: the plan is made from the
//! store's records, the component is mapped from its artifact (and compiled again if that is gone), the graphs are loaded
//! by their backend. Each rung has its own idle time after which it is left again; the plan goes with the component.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;

use super::EntityConfig;
use crate::deploy::{DeployError, ModelHost, Plan};
use crate::nn::{GraphKey, GraphSource, Graphs, NamedGraphs};
use crate::observe::log_ring::LogRing;
use crate::observe::metrics::EntityMetrics;
use crate::sandbox::LoadedComponent;

/// What a request had to bring into memory before it could run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// Nothing.
    Warm,
    /// The compiled component, from disk.
    Component,
    /// At least one graph.
    Graph,
    /// The component had to be compiled again.
    Compile,
}

impl Rung {
    /// The name in metrics and headers.
    pub fn name(self) -> &'static str {
        match self {
            Rung::Warm => "warm",
            Rung::Component => "component",
            Rung::Graph => "graph",
            Rung::Compile => "compile",
        }
    }

    /// All, for metrics.
    pub const ALL: [Rung; 4] = [Rung::Warm, Rung::Component, Rung::Graph, Rung::Compile];
}

/// A graph as it is to be loaded.
#[derive(Debug, Clone)]
pub struct PlannedGraph {
    /// The guest's name for it.
    pub name: String,
    /// What makes it the same as another endpoint's.
    pub key: GraphKey,
    /// The model file.
    pub source: GraphSource,
    /// Version of the backend that runs it, for the endpoint's state.
    pub backend_version: String,
    /// Threads of one run that its package asks for.
    pub threads_asked: Option<u32>,
}

/// One model version behind an endpoint.
pub struct ServedEntity {
    /// As configured.
    pub config: EntityConfig,
    /// What its guest wrote.
    pub log: LogRing,
    /// Its series.
    pub metrics: EntityMetrics,
    /// How its component and graphs are brought into memory.
    pub plan: Plan,
    component: ArcSwapOption<LoadedComponent>,
    /// Kept so that they count as in use, when the entity does not scale to zero, or has an idle time of its own.
    pinned: std::sync::Mutex<Option<NamedGraphs>>,
    /// Held while the component is loaded, so that it is loaded once however many requests wait.
    loading: Mutex<()>,
    started: Instant,
    /// Microseconds after `started`.
    last_used_us: AtomicU64,
    last_cold_start: std::sync::Mutex<Option<ColdStart>>,
}

/// What the last request that found nothing in memory had to wait for.
#[derive(Debug, Clone, Copy)]
pub struct ColdStart {
    /// Highest rung climbed.
    pub rung: Rung,
    /// Mapping (and compiling) the component.
    pub component: Duration,
    /// Loading graphs.
    pub graphs: Duration,
}

/// A served entity with everything in memory, for one request.
pub struct Ready {
    /// The component.
    pub component: Arc<LoadedComponent>,
    /// The graphs by the guest's names.
    pub graphs: NamedGraphs,
    /// What it took.
    pub cold: ColdStart,
}

impl ServedEntity {
    /// An entity with nothing in memory.
    pub fn new(
        config: EntityConfig,
        plan: Plan,
        log: LogRing,
        metrics: EntityMetrics,
        last_cold_start: Option<ColdStart>,
    ) -> ServedEntity {
        ServedEntity {
            config,
            log,
            metrics,
            plan,
            component: ArcSwapOption::empty(),
            pinned: std::sync::Mutex::default(),
            loading: Mutex::new(()),
            started: Instant::now(),
            last_used_us: AtomicU64::new(0),
            last_cold_start: std::sync::Mutex::new(last_cold_start),
        }
    }

    /// Brings everything into memory that a request needs. Without waiting when it is there.
    ///
    /// # Errors
    /// When the component cannot be loaded or compiled, or a backend refuses a graph.
    pub async fn ready(&self, host: &Arc<ModelHost>) -> Result<Ready, DeployError> {
        self.last_used_us.store(self.started.elapsed().as_micros() as u64, Relaxed);
        let begun = Instant::now();
        let (component, mut rung) = match self.component.load_full() {
            Some(component) => (component, Rung::Warm),
            None => self.load_component(host).await?,
        };
        let component_time = begun.elapsed();
        let mut graphs = Vec::with_capacity(self.plan.graphs.len());
        for planned in &self.plan.graphs {
            let (graph, loaded) = host.graph(planned).await?;
            if loaded {
                rung = rung.max(Rung::Graph);
            }
            graphs.push((planned.name.clone(), graph));
        }
        let cold = ColdStart { rung, component: component_time, graphs: begun.elapsed() - component_time };
        if rung != Rung::Warm {
            *self.last_cold_start.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(cold);
        }
        let graphs: NamedGraphs = graphs.into();
        if !self.config.scale_to_zero_enabled || self.config.scale_to_zero_idle_ms.is_some() {
            self.pin(&graphs);
        }
        Ok(Ready { component, graphs, cold })
    }

    async fn load_component(&self, host: &Arc<ModelHost>) -> Result<(Arc<LoadedComponent>, Rung), DeployError> {
        let _alone = self.loading.lock().await;
        if let Some(component) = self.component.load_full() {
            return Ok((component, Rung::Component));
        }
        let (component, rung) = host.component(&self.plan).await?;
        self.component.store(Some(Arc::clone(&component)));
        Ok((component, rung))
    }

    /// Keeps these graphs loaded, in place of those before: a deploy may have found a better form of one.
    fn pin(&self, graphs: &NamedGraphs) {
        let same = |pinned: &NamedGraphs| pinned.iter().zip(&**graphs).all(|(a, b)| Arc::ptr_eq(&a.1, &b.1));
        let mut pinned = self.pinned();
        if !pinned.as_ref().is_some_and(same) {
            let before = pinned.replace(Arc::clone(graphs));
            drop(pinned);
            // Freed after the lock: releasing a session takes milliseconds.
            drop(before);
        }
    }

    /// Whether nobody has asked for it for a while: `usual`, where it has no idle time of its own. Entities that do not
    /// scale to zero never are.
    pub fn is_idle(&self, usual: Duration) -> bool {
        let idle = self.config.scale_to_zero_idle_ms.map_or(usual, Duration::from_millis);
        self.config.scale_to_zero_enabled && self.last_used().elapsed() >= idle
    }

    /// When somebody asked for it last, or it was made.
    pub fn last_used(&self) -> Instant {
        self.started + Duration::from_micros(self.last_used_us.load(Relaxed))
    }

    /// Gives the component's memory back if the entity is idle, and that of its graphs if it has an idle time of its own:
    /// the others' graphs have theirs.
    pub fn drop_idle(&self, usual: Duration, graphs: &Graphs) {
        if !self.is_idle(usual) {
            return;
        }
        self.component.store(None);
        if self.pinned().take().is_some() {
            self.plan.graphs.iter().for_each(|planned| graphs.forget_unused(&planned.key));
        }
    }

    fn pinned(&self) -> std::sync::MutexGuard<'_, Option<NamedGraphs>> {
        self.pinned.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether the component is in memory.
    pub fn component_loaded(&self) -> bool {
        self.component.load().is_some()
    }

    /// The last cold start, if there was one.
    pub fn last_cold_start(&self) -> Option<ColdStart> {
        *self.last_cold_start.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
