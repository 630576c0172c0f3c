//! Metrics of the whole server, in OpenMetrics text at `/metrics`.
//!
//! A served entity holds handles on its own series, so that a request neither builds labels nor looks anything up.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::catalog::served::Rung;

type Labels = Vec<(String, String)>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// Upper bounds of request times, in seconds.
const REQUEST_SECONDS: [f64; 14] = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.3, 1.0, 5.0, 30.0];

/// Upper bounds of processor times, in seconds.
const CPU_SECONDS: [f64; 10] = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2, 0.1, 1.0];

/// All series.
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    duration: Histograms,
    cpu: Histograms,
    rungs: Family<Labels, Counter>,
    cold_start: Histograms,
    /// Requests refused before they reached a guest, by reason.
    pub refused: Family<Labels, Counter>,
    /// Instances that live now.
    pub instances: Gauge,
    /// Requests that wait for an instance.
    pub queued: Gauge,
    /// Open connections.
    pub connections: Gauge,
    graph_count: Gauge,
    graph_bytes: Gauge<u64, AtomicU64>,
    graph_loads: Gauge<u64, AtomicU64>,
    compute_queue: Gauge,
    endpoints: Gauge,
    /// Labels per endpoint, to be forgotten with it.
    entities: std::sync::Mutex<Vec<(String, String)>>,
}

/// The series of one served entity.
pub struct EntityMetrics {
    /// By class of status: 2xx, 4xx, 5xx.
    requests: [Counter; 3],
    duration: Histogram,
    cpu: Histogram,
    rungs: [Counter; Rung::ALL.len()],
    cold_start: Histogram,
}

/// What is read at the moment of a scrape.
pub struct Observed {
    /// Loaded graphs.
    pub graphs: crate::nn::GraphsStats,
    /// Computations that wait.
    pub compute_queue: usize,
    /// Endpoints in the catalog.
    pub endpoints: usize,
}

fn request_histogram() -> Histogram {
    Histogram::new(REQUEST_SECONDS)
}

fn cpu_histogram() -> Histogram {
    Histogram::new(CPU_SECONDS)
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("tessera"),
            requests: Family::default(),
            duration: Family::new_with_constructor(request_histogram),
            cpu: Family::new_with_constructor(cpu_histogram),
            rungs: Family::default(),
            cold_start: Family::new_with_constructor(request_histogram),
            refused: Family::default(),
            instances: Gauge::default(),
            queued: Gauge::default(),
            connections: Gauge::default(),
            graph_count: Gauge::default(),
            graph_bytes: Gauge::default(),
            graph_loads: Gauge::default(),
            compute_queue: Gauge::default(),
            endpoints: Gauge::default(),
            entities: std::sync::Mutex::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let Metrics { registry, .. } = self;
        registry.register("invocations", "Invocations by served entity and class of status", self.requests.clone());
        registry.register_with_unit(
            "invocation_duration",
            "Time of invocations, from the request's head to the response's",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register_with_unit(
            "guest_cpu",
            "Processor time of guest and host calls, without the backend's",
            Unit::Seconds,
            self.cpu.clone(),
        );
        registry.register("rungs", "Invocations by what they had to bring into memory first", self.rungs.clone());
        registry.register_with_unit(
            "cold_start",
            "Time that invocations waited for their component and graphs",
            Unit::Seconds,
            self.cold_start.clone(),
        );
        registry.register("refused", "Requests refused before they reached a guest", self.refused.clone());
        registry.register("instances", "Instances that live now", self.instances.clone());
        registry.register("queued_requests", "Requests that wait for an instance", self.queued.clone());
        registry.register("connections", "Open connections", self.connections.clone());
        registry.register("graphs_loaded", "Graphs in memory", self.graph_count.clone());
        registry.register_with_unit("graph_memory", "Memory of loaded graphs", Unit::Bytes, self.graph_bytes.clone());
        registry.register("graph_loads", "Graph loads since the start", self.graph_loads.clone());
        registry.register("compute_queue", "Computations that wait for a thread", self.compute_queue.clone());
        registry.register("endpoints", "Endpoints in the catalog", self.endpoints.clone());
    }

    /// The series of a served entity.
    pub fn entity(&self, endpoint: &str, entity: &str) -> EntityMetrics {
        let known = (endpoint.to_owned(), entity.to_owned());
        let mut entities = self.entities.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !entities.contains(&known) {
            entities.push(known);
        }
        let base = entity_labels(endpoint, entity);
        let with = |key: &str, value: &str| [base.clone(), vec![(key.to_owned(), value.to_owned())]].concat();
        EntityMetrics {
            requests: CLASSES.map(|class| self.requests.get_or_create(&with("class", class)).clone()),
            duration: self.duration.get_or_create(&base).clone(),
            cpu: self.cpu.get_or_create(&base).clone(),
            rungs: Rung::ALL.map(|rung| self.rungs.get_or_create(&with("rung", rung.name())).clone()),
            cold_start: self.cold_start.get_or_create(&base).clone(),
        }
    }

    /// Drops the series of an endpoint that is gone.
    pub fn forget(&self, endpoint: &str) {
        self.forget_others(endpoint, &[]);
    }

    /// Drops the series of an endpoint's entities but these.
    pub fn forget_others(&self, endpoint: &str, kept: &[&str]) {
        let mut entities = self.entities.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let gone = |known: &mut (String, String)| known.0 == endpoint && !kept.contains(&known.1.as_str());
        for (_, entity) in entities.extract_if(.., gone) {
            let base = entity_labels(endpoint, &entity);
            let with = |key: &str, value: &str| [base.clone(), vec![(key.to_owned(), value.to_owned())]].concat();
            for class in CLASSES {
                self.requests.remove(&with("class", class));
            }
            for rung in Rung::ALL {
                self.rungs.remove(&with("rung", rung.name()));
            }
            self.duration.remove(&base);
            self.cpu.remove(&base);
            self.cold_start.remove(&base);
        }
    }

    /// Counts a request that was refused before it reached a guest.
    pub fn count_refusal(&self, reason: &str) {
        self.refused.get_or_create(&vec![("reason".to_owned(), reason.to_owned())]).inc();
    }

    /// The text of `/metrics`.
    pub fn text(&self, observed: &Observed) -> String {
        self.graph_count.set(observed.graphs.count as i64);
        self.graph_bytes.set(observed.graphs.bytes);
        self.graph_loads.set(observed.graphs.loads);
        self.compute_queue.set(observed.compute_queue as i64);
        self.endpoints.set(observed.endpoints as i64);
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

const CLASSES: [&str; 3] = ["2xx", "4xx", "5xx"];

fn entity_labels(endpoint: &str, entity: &str) -> Labels {
    vec![("endpoint".to_owned(), endpoint.to_owned()), ("served_entity".to_owned(), entity.to_owned())]
}

impl EntityMetrics {
    /// Counts a finished invocation.
    pub fn finished(&self, status: u16, duration: Duration, cpu: Duration) {
        let class = match status {
            500.. => 2,
            400.. => 1,
            _ => 0,
        };
        self.requests[class].inc();
        self.duration.observe(duration.as_secs_f64());
        self.cpu.observe(cpu.as_secs_f64());
    }

    /// Counts what an invocation had to bring into memory, and how long that took.
    pub fn climbed(&self, rung: Rung, waited: Duration) {
        self.rungs[rung as usize].inc();
        if rung != Rung::Warm {
            self.cold_start.observe(waited.as_secs_f64());
        }
    }
}
