//! Metrics of the whole server, in OpenMetrics text at `/metrics`.
//!
//! A served entity's series are made when it is first called, and it holds a handle on them, so that a request neither
//! builds labels nor looks anything up. They outlive the handle: an entity that has left memory goes on counting when it
//! is back.
//!
//! The same numbers of one endpoint, under the names that Databricks gives them, are [`endpoint`]'s.

pub mod endpoint;
mod histogram;
mod last_minute;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use self::histogram::Histogram;
use self::last_minute::LastMinute;
use crate::catalog::WorkspaceId;
use crate::catalog::served::Rung;
use crate::nn::batcher::Counters;

/// Served entities with series of their own. Each has about 50, which are 7 KB of text and 3 KB of memory: more than all
/// else that an idle endpoint costs, and a collector asks for all of it every few seconds.
const ENTITIES_MAX: usize = 1000;

/// Stands for the endpoint and the entity of what is counted beyond [`ENTITIES_MAX`]. No endpoint can have this name.
const OTHERS: &str = "(other)";

/// Upper bounds of request times, in seconds.
const REQUEST_SECONDS: [f64; 14] = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.3, 1.0, 5.0, 30.0];

/// Upper bounds of processor times, in seconds.
const CPU_SECONDS: [f64; 10] = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2, 0.1, 1.0];

/// All series.
pub struct Metrics {
    registry: Registry,
    entities: Arc<Entities>,
    /// Requests refused before they reached a guest, by reason.
    pub refused: Family<Vec<(String, String)>, Counter>,
    /// Instances that live now.
    pub instances: Gauge,
    /// Requests that wait for an instance.
    pub queued: Gauge,
    /// Open connections.
    pub connections: Gauge,
    /// Rows of usage and payload tables that found no place.
    pub usage_rows_dropped: Counter,
    tls_certificate: Family<Vec<(String, String)>, Gauge>,
    tls_failures: Family<Vec<(String, String)>, Counter>,
    tls_reloads: Family<Vec<(String, String)>, Counter>,
    graph_count: Gauge,
    graph_bytes: Gauge<u64, AtomicU64>,
    graph_loads: Gauge<u64, AtomicU64>,
    compute_queue: Gauge,
    computes: Gauge<u64, AtomicU64>,
    compute_runs: Gauge<u64, AtomicU64>,
    computes_dropped: Gauge<u64, AtomicU64>,
    compute_run_time: Gauge<f64, AtomicU64>,
    compute_wait_time: Gauge<f64, AtomicU64>,
    sequences: Gauge,
    sequences_waiting: Gauge,
    sequence_steps: Gauge<u64, AtomicU64>,
    sequence_tokens: Family<Vec<(String, String)>, Gauge<u64, AtomicU64>>,
    endpoints: Gauge,
    awake_endpoints: Gauge,
    components: Gauge,
}

/// What is read at the moment of a scrape.
pub struct Observed {
    /// Loaded graphs.
    pub graphs: crate::nn::GraphsStats,
    /// Computations that wait.
    pub compute_queue: usize,
    /// Those that were answered.
    pub computes: Arc<Counters>,
    /// Sequences of language models.
    pub sequences: Arc<crate::nn::SequenceCounters>,
    /// Endpoints in the catalog.
    pub endpoints: usize,
    /// Those of them that do not sleep.
    pub awake_endpoints: usize,
    /// Components in memory, each once however many endpoints serve it.
    pub components: usize,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("tessera"),
            entities: Arc::default(),
            refused: Family::default(),
            instances: Gauge::default(),
            queued: Gauge::default(),
            connections: Gauge::default(),
            usage_rows_dropped: Counter::default(),
            tls_certificate: Family::default(),
            tls_failures: Family::default(),
            tls_reloads: Family::default(),
            graph_count: Gauge::default(),
            graph_bytes: Gauge::default(),
            graph_loads: Gauge::default(),
            compute_queue: Gauge::default(),
            computes: Gauge::default(),
            compute_runs: Gauge::default(),
            computes_dropped: Gauge::default(),
            compute_run_time: Gauge::default(),
            compute_wait_time: Gauge::default(),
            sequences: Gauge::default(),
            sequences_waiting: Gauge::default(),
            sequence_steps: Gauge::default(),
            sequence_tokens: Family::default(),
            endpoints: Gauge::default(),
            awake_endpoints: Gauge::default(),
            components: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let Metrics { registry, entities, .. } = self;
        registry.register_collector(Box::new(Arc::clone(entities)));
        registry.register("refused", "Requests refused before they reached a guest", self.refused.clone());
        registry.register("instances", "Instances that live now", self.instances.clone());
        registry.register("queued_requests", "Requests that wait for an instance", self.queued.clone());
        registry.register("connections", "Open connections", self.connections.clone());
        let dropped = self.usage_rows_dropped.clone();
        registry.register("usage_rows_dropped", "Rows of usage and payload tables that found no place", dropped);
        let (help, gauge) = ("End of the TLS certificate, as Unix time", self.tls_certificate.clone());
        registry.register_with_unit("tls_certificate_not_after", help, Unit::Seconds, gauge);
        let help = "TLS handshakes that failed, by reason";
        registry.register("tls_handshakes_failed", help, self.tls_failures.clone());
        registry.register("tls_reloads", "New TLS files, loaded or refused", self.tls_reloads.clone());
        registry.register("graphs_loaded", "Graphs in memory", self.graph_count.clone());
        registry.register_with_unit("graph_memory", "Memory of loaded graphs", Unit::Bytes, self.graph_bytes.clone());
        registry.register("graph_loads", "Graph loads since the start", self.graph_loads.clone());
        registry.register("compute_queue", "Computations that wait for a thread", self.compute_queue.clone());
        registry.register("computes", "Computations of requests since the start", self.computes.clone());
        registry.register("compute_runs", "Runs of graphs that these shared", self.compute_runs.clone());
        registry.register("computes_dropped", "Computations that nobody waited for", self.computes_dropped.clone());
        let (run, wait) = (self.compute_run_time.clone(), self.compute_wait_time.clone());
        registry.register_with_unit("compute_run", "Time in backends since the start", Unit::Seconds, run);
        registry.register_with_unit("compute_wait", "Time that computations waited, all together", Unit::Seconds, wait);
        registry.register("sequences", "Sequences of language models that are computed", self.sequences.clone());
        let help = "Answers of language models that wait for a sequence";
        registry.register("sequences_waiting", help, self.sequences_waiting.clone());
        let help = "Steps of language models since the start, each for all sequences of one";
        registry.register("sequence_steps", help, self.sequence_steps.clone());
        let help = "Tokens of language models since the start: of prompts, computed or cached, and of answers";
        registry.register("sequence_tokens", help, self.sequence_tokens.clone());
        registry.register("endpoints", "Endpoints in the catalog", self.endpoints.clone());
        registry.register(
            "endpoints_awake",
            "Endpoints that are more in memory than a name",
            self.awake_endpoints.clone(),
        );
        let help = "Components in memory, each once however many endpoints serve it";
        registry.register("components_loaded", help, self.components.clone());
    }

    /// The series of a served entity. There are none before it is first counted.
    pub fn entity(&self, workspace: WorkspaceId, endpoint: &str, entity: &str) -> EntityMetrics {
        EntityMetrics {
            entities: Arc::clone(&self.entities),
            workspace,
            endpoint: endpoint.to_owned(),
            entity: entity.to_owned(),
            series: OnceLock::new(),
        }
    }

    /// Drops the series of an endpoint that is gone.
    pub fn forget(&self, workspace: WorkspaceId, endpoint: &str) {
        self.forget_others(workspace, endpoint, &[]);
    }

    /// Drops the series of an endpoint's entities but these.
    pub fn forget_others(&self, workspace: WorkspaceId, endpoint: &str, kept: &[&str]) {
        let of_endpoint = |series: &Series| series.workspace == workspace && series.endpoint == endpoint;
        self.entities.lock().retain(|series| !of_endpoint(series) || kept.contains(&series.entity.as_str()));
    }

    /// Counts a request that was refused before it reached a guest.
    pub fn count_refusal(&self, reason: &str) {
        self.refused.get_or_create(&vec![("reason".to_owned(), reason.to_owned())]).inc();
    }

    /// Counts a TLS handshake that failed.
    pub fn count_tls_failure(&self, reason: &str) {
        self.tls_failures.get_or_create(&vec![("reason".to_owned(), reason.to_owned())]).inc();
    }

    /// Counts new TLS files, which were `loaded` or `refused`.
    pub fn count_tls_reload(&self, outcome: &str) {
        self.tls_reloads.get_or_create(&vec![("outcome".to_owned(), outcome.to_owned())]).inc();
    }

    /// Sets when the certificate in `file` ends, in seconds since 1970.
    pub fn tls_certificate(&self, file: &str, not_after: i64) {
        self.tls_certificate.get_or_create(&vec![("file".to_owned(), file.to_owned())]).set(not_after);
    }

    /// The text of `/metrics`.
    pub fn text(&self, observed: &Observed) -> String {
        self.graph_count.set(observed.graphs.count as i64);
        self.graph_bytes.set(observed.graphs.bytes);
        self.graph_loads.set(observed.graphs.loads);
        self.compute_queue.set(observed.compute_queue as i64);
        self.computes.set(observed.computes.works.load(Relaxed));
        self.compute_runs.set(observed.computes.runs.load(Relaxed));
        self.computes_dropped.set(observed.computes.dropped.load(Relaxed));
        self.compute_run_time.set(observed.computes.run_ns.load(Relaxed) as f64 / 1e9);
        self.compute_wait_time.set(observed.computes.queue_ns.load(Relaxed) as f64 / 1e9);
        let sequences = &observed.sequences;
        self.sequences.set(sequences.live.load(Relaxed));
        self.sequences_waiting.set(sequences.waiting.load(Relaxed));
        self.sequence_steps.set(sequences.steps.load(Relaxed));
        let kinds = [
            ("prompt", &sequences.prompt_tokens),
            ("cached", &sequences.cached_tokens),
            ("completion", &sequences.completion_tokens),
        ];
        for (kind, tokens) in kinds {
            let labels = vec![("kind".to_owned(), kind.to_owned())];
            self.sequence_tokens.get_or_create(&labels).set(tokens.load(Relaxed));
        }
        self.endpoints.set(observed.endpoints as i64);
        self.awake_endpoints.set(observed.awake_endpoints as i64);
        self.components.set(observed.components as i64);
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// The series of all served entities.
#[derive(Debug, Default)]
struct Entities {
    named: Mutex<Vec<Arc<Series>>>,
    others: OnceLock<Arc<Series>>,
}

impl Entities {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Series>>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The series of an entity: its own as long as there is room. First come, first served: series that went when
    /// others come would count from zero again.
    fn series(&self, workspace: WorkspaceId, endpoint: &str, entity: &str) -> Arc<Series> {
        let mut named = self.lock();
        if let Some(series) = named.iter().find(|series| series.is(workspace, endpoint, entity)) {
            return Arc::clone(series);
        }
        if named.len() >= ENTITIES_MAX {
            return Arc::clone(self.others.get_or_init(|| Arc::new(Series::new(WorkspaceId(0), OTHERS, OTHERS))));
        }
        let series = Arc::new(Series::new(workspace, endpoint, entity));
        named.push(Arc::clone(&series));
        series
    }
}

impl Collector for Entities {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        // A copy, so that no request waits for the text.
        let all: Vec<Arc<Series>> = self.lock().iter().chain(self.others.get()).cloned().collect();
        let counted = Counter::<u64>::TYPE;
        let timed = MetricType::Histogram;

        let help = "Invocations by served entity and class of status";
        let mut family = encoder.encode_descriptor("invocations", help, None, counted)?;
        for series in &all {
            for (class, count) in CLASSES.iter().zip(&series.requests) {
                count.encode(family.encode_family(&series.labels_with("class", class))?)?;
            }
        }
        let help = "Time of invocations, from the request's head to the response's";
        let mut family = encoder.encode_descriptor("invocation_duration", help, Some(&Unit::Seconds), timed)?;
        for series in &all {
            series.duration.encode(family.encode_family(&series.labels())?, 1.0)?;
        }
        let help = "Processor time of guest and host calls, without the backend's";
        let mut family = encoder.encode_descriptor("guest_cpu", help, Some(&Unit::Seconds), timed)?;
        for series in &all {
            series.cpu.encode(family.encode_family(&series.labels())?, 1.0)?;
        }
        let help = "Invocations by what they had to bring into memory first";
        let mut family = encoder.encode_descriptor("rungs", help, None, counted)?;
        for series in &all {
            for (rung, count) in Rung::ALL.iter().zip(&series.rungs) {
                count.encode(family.encode_family(&series.labels_with("rung", rung.name()))?)?;
            }
        }
        let help = "Time that invocations waited for their component and graphs";
        let mut family = encoder.encode_descriptor("cold_start", help, Some(&Unit::Seconds), timed)?;
        for series in &all {
            series.cold_start.encode(family.encode_family(&series.labels())?, 1.0)?;
        }
        Ok(())
    }
}

const CLASSES: [&str; 3] = ["2xx", "4xx", "5xx"];

impl Metrics {
    /// What was counted of an entity: nothing where nobody called it, or where it shares its series with others.
    pub fn totals(&self, workspace: WorkspaceId, endpoint: &str, entity: &str) -> Totals {
        let named = self.entities.lock();
        let Some(series) = named.iter().find(|series| series.is(workspace, endpoint, entity)) else {
            return Totals::default();
        };
        let [answered, client, server] = [0, 1, 2].map(|class| series.requests[class].get());
        let failed_ns = series.failed_ns.load(Relaxed);
        Totals {
            answered,
            failed: client + server,
            answered_ns: series.duration.sum_ns().saturating_sub(failed_ns),
            failed_ns,
            queued_ns: series.queued.sum_ns(),
            predicted_ns: series.predicted.sum_ns(),
        }
    }
}

/// What is counted of one served entity.
#[derive(Debug)]
struct Series {
    workspace: WorkspaceId,
    endpoint: String,
    entity: String,
    /// By class of status.
    requests: [Counter; CLASSES.len()],
    /// The same in the last minute.
    recent: [LastMinute; CLASSES.len()],
    /// Processor time of the last minute, in microseconds.
    recent_cpu_us: LastMinute,
    /// Of `duration`, what requests took that failed.
    failed_ns: AtomicU64,
    duration: Histogram,
    /// Of it, waiting for memory and for a place.
    queued: Histogram,
    /// Of it, in the guest.
    predicted: Histogram,
    cpu: Histogram,
    rungs: [Counter; Rung::ALL.len()],
    cold_start: Histogram,
}

impl Series {
    fn new(workspace: WorkspaceId, endpoint: &str, entity: &str) -> Series {
        Series {
            workspace,
            endpoint: endpoint.to_owned(),
            entity: entity.to_owned(),
            requests: Default::default(),
            recent: Default::default(),
            recent_cpu_us: LastMinute::default(),
            failed_ns: AtomicU64::new(0),
            duration: Histogram::new(&REQUEST_SECONDS),
            queued: Histogram::new(&REQUEST_SECONDS),
            predicted: Histogram::new(&REQUEST_SECONDS),
            cpu: Histogram::new(&CPU_SECONDS),
            rungs: Default::default(),
            cold_start: Histogram::new(&REQUEST_SECONDS),
        }
    }

    fn is(&self, workspace: WorkspaceId, endpoint: &str, entity: &str) -> bool {
        self.workspace == workspace && self.endpoint == endpoint && self.entity == entity
    }

    fn labels(&self) -> [(&str, String); 3] {
        [
            ("workspace", self.workspace.to_string()),
            ("endpoint", self.endpoint.clone()),
            ("served_entity", self.entity.clone()),
        ]
    }

    fn labels_with<'a>(&'a self, key: &'a str, value: &'a str) -> [(&'a str, String); 4] {
        let [workspace, endpoint, entity] = self.labels();
        [workspace, endpoint, entity, (key, value.to_owned())]
    }
}

/// A served entity's handle on its series.
pub struct EntityMetrics {
    entities: Arc<Entities>,
    workspace: WorkspaceId,
    endpoint: String,
    entity: String,
    series: OnceLock<Arc<Series>>,
}

/// What was counted of a served entity since the server's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that failed, for whatever reason.
    pub failed: u64,
    /// Time of those that were answered, in nanoseconds.
    pub answered_ns: u64,
    /// Time of those that failed, in nanoseconds.
    pub failed_ns: u64,
    /// Of both, waiting for memory and for a place.
    pub queued_ns: u64,
    /// Of both, in the guest.
    pub predicted_ns: u64,
}

/// What an invocation took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// From the request's head to the response's end.
    pub total: Duration,
    /// Of it, waiting for memory and for a place.
    pub queued: Duration,
    /// Of it, in the guest.
    pub predicted: Duration,
    /// Processor time of the guest.
    pub cpu: Duration,
}

impl EntityMetrics {
    fn series(&self) -> &Series {
        self.series.get_or_init(|| self.entities.series(self.workspace, &self.endpoint, &self.entity))
    }

    /// Counts a finished invocation.
    pub fn finished(&self, status: u16, times: Times) {
        let class = match status {
            500.. => 2,
            400.. => 1,
            _ => 0,
        };
        let series = self.series();
        series.requests[class].inc();
        let second = last_minute::second();
        series.recent[class].add(second, 1);
        series.recent_cpu_us.add(second, u32::try_from(times.cpu.as_micros()).unwrap_or(u32::MAX));
        if class > 0 {
            series.failed_ns.fetch_add(times.total.as_nanos() as u64, Relaxed);
        }
        series.duration.observe(times.total);
        series.queued.observe(times.queued);
        series.predicted.observe(times.predicted);
        series.cpu.observe(times.cpu);
    }

    /// Counts what an invocation had to bring into memory, and how long that took.
    pub fn climbed(&self, rung: Rung, waited: Duration) {
        let series = self.series();
        series.rungs[rung as usize].inc();
        if rung != Rung::Warm {
            series.cold_start.observe(waited);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: WorkspaceId = WorkspaceId(1);

    fn text(metrics: &Metrics) -> String {
        let graphs = crate::nn::GraphsStats::default();
        metrics.text(&Observed {
            graphs,
            compute_queue: 0,
            computes: Arc::default(),
            sequences: Arc::default(),
            endpoints: 0,
            awake_endpoints: 0,
            components: 0,
        })
    }

    fn count(metrics: &Metrics, endpoint: &str) -> Option<String> {
        let workspace = if endpoint == OTHERS { "0" } else { "1" };
        let line =
            format!("tessera_invocations_total{{workspace=\"{workspace}\",endpoint=\"{endpoint}\",served_entity=");
        let text = text(metrics);
        let line = text.lines().find(|found| found.starts_with(&line) && found.contains("2xx"))?;
        line.rsplit(' ').next().map(str::to_owned)
    }

    fn call(metrics: &Metrics, endpoint: &str) {
        let entity = metrics.entity(HOME, endpoint, "e");
        entity.climbed(Rung::Graph, Duration::from_millis(3));
        let times = Times { total: Duration::from_millis(5), cpu: Duration::from_millis(1), ..Times::default() };
        entity.finished(200, times);
    }

    #[test]
    fn an_entity_that_is_not_called_has_no_series_and_one_that_comes_back_counts_on() {
        let metrics = Metrics::default();
        drop(metrics.entity(HOME, "a", "e"));
        assert_eq!(count(&metrics, "a"), None);
        call(&metrics, "a");
        call(&metrics, "a");
        assert_eq!(count(&metrics, "a").as_deref(), Some("2"));
        metrics.forget(WorkspaceId(2), "a");
        assert_eq!(
            count(&metrics, "a").as_deref(),
            Some("2"),
            "another workspace's endpoint of this name is another one"
        );
        metrics.forget(HOME, "a");
        assert_eq!(count(&metrics, "a"), None);
    }

    #[test]
    fn the_number_of_series_has_a_bound_beyond_which_all_count_together() {
        let metrics = Metrics::default();
        for endpoint in 0..2 * ENTITIES_MAX {
            call(&metrics, &format!("e{endpoint}"));
        }
        assert_eq!(count(&metrics, "e0").as_deref(), Some("1"));
        assert_eq!(count(&metrics, &format!("e{ENTITIES_MAX}")), None);
        assert_eq!(count(&metrics, OTHERS), Some(ENTITIES_MAX.to_string()));
        assert!(text(&metrics).len() < 8_000 * ENTITIES_MAX);

        // One that goes makes room for another.
        metrics.forget(HOME, "e0");
        call(&metrics, "new");
        assert_eq!(count(&metrics, "new").as_deref(), Some("1"));
    }
}
