//! The series of one endpoint, under the names and in the units of Databricks' `…/metrics`, for collectors that know
//! these. Counts are of the last minute, which is why they are gauges despite their names.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::histogram::Histogram;
use super::{Metrics, Series, last_minute};
use crate::catalog::WorkspaceId;

/// What else is known of a served entity at the moment of a scrape.
pub struct EntityNow {
    /// Its name.
    pub name: String,
    /// Requests at one time that it is sized for; 0 while it is scaled to zero.
    pub concurrency: u32,
    /// Memory of its loaded graphs, as a share of the machine's, in percent.
    pub memory_percent: f64,
}

#[derive(Debug)]
struct Scraped {
    series: Arc<Series>,
    concurrency: u32,
    memory_percent: f64,
}

/// For one text.
#[derive(Debug)]
struct OfEndpoint {
    endpoint: String,
    entities: Vec<Scraped>,
    cores: f64,
    second: u64,
}

impl Metrics {
    /// The text of an endpoint's metrics. An entity that nobody called counts nothing; of one beyond the number of
    /// entities that have series of their own there is nothing to tell.
    pub fn endpoint_text(&self, workspace: WorkspaceId, endpoint: &str, entities: Vec<EntityNow>) -> String {
        let named = self.entities.lock();
        let is_full = named.len() >= super::ENTITIES_MAX;
        let scraped = entities.into_iter().filter_map(|now| {
            let known = named.iter().find(|series| series.is(workspace, endpoint, &now.name)).cloned();
            let none = || Arc::new(Series::new(workspace, endpoint, &now.name));
            let series = if is_full { known? } else { known.unwrap_or_else(none) };
            Some(Scraped { series, concurrency: now.concurrency, memory_percent: now.memory_percent })
        });
        let of_endpoint = OfEndpoint {
            endpoint: endpoint.to_owned(),
            entities: scraped.collect(),
            cores: std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64),
            second: last_minute::second(),
        };
        drop(named);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(of_endpoint));
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

impl OfEndpoint {
    fn labels<'a>(&'a self, entity: &'a Scraped) -> [(&'a str, &'a str); 2] {
        [("endpoint_name", &self.endpoint), ("model", &entity.series.entity)]
    }

    fn gauge(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: impl Fn(&Scraped) -> f64,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for entity in &self.entities {
            ConstGauge::new(value(entity)).encode(family.encode_family(&self.labels(entity))?)?;
        }
        Ok(())
    }

    fn milliseconds(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        histogram: impl Fn(&Series) -> &Histogram,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for entity in &self.entities {
            histogram(&entity.series).encode(family.encode_family(&self.labels(entity))?, 1e3)?;
        }
        Ok(())
    }
}

impl Collector for OfEndpoint {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let recent = |entity: &Scraped, class: usize| entity.series.recent[class].count(self.second) as f64;
        self.gauge(
            encoder,
            "cpu_usage_percentage",
            "Processor time of the guest in the last minute, of all cores",
            |entity| entity.series.recent_cpu_us.count(self.second) as f64 / 60e6 / self.cores * 100.0,
        )?;
        let help = "Memory of the loaded graphs, of the machine's";
        self.gauge(encoder, "mem_usage_percentage", help, |entity| entity.memory_percent)?;
        let help = "Requests at one time that the served model is sized for; 0 while it is scaled to zero";
        self.gauge(encoder, "provisioned_concurrent_requests_total", help, |entity| f64::from(entity.concurrency))?;
        self.gauge(encoder, "request_count_total", "Requests of the last minute", |entity| {
            (0..super::CLASSES.len()).map(|class| recent(entity, class)).sum()
        })?;
        let help = "Requests of the last minute that were answered with 4xx";
        self.gauge(encoder, "request_4xx_count_total", help, |entity| recent(entity, 1))?;
        let help = "Requests of the last minute that were answered with 5xx";
        self.gauge(encoder, "request_5xx_count_total", help, |entity| recent(entity, 2))?;
        self.milliseconds(encoder, "request_latency_ms", "Time of requests", |series| &series.duration)?;
        let help = "Time that requests waited for the model to be in memory and for a place";
        self.milliseconds(encoder, "model_queue_time_ms", help, |series| &series.queued)?;
        self.milliseconds(encoder, "model_prediction_latency_ms", "Time in the guest", |series| &series.predicted)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Times, Totals};
    use super::*;

    #[test]
    fn an_endpoint_has_its_own_counts_and_no_other_workspaces() {
        let metrics = Metrics::default();
        let (ours, theirs) = (WorkspaceId(1), WorkspaceId(2));
        let times = Times { total: Duration::from_millis(150), ..Times::default() };
        metrics.entity(ours, "e", "m").finished(200, times);
        metrics.entity(ours, "e", "m").finished(404, times);
        metrics.entity(theirs, "e", "m").finished(500, times);
        let totals = metrics.totals(ours, "e", "m");
        assert_eq!((totals.answered, totals.failed, totals.answered_ns), (1, 1, 150_000_000));
        assert_eq!((totals.failed_ns, metrics.totals(ours, "e", "other")), (150_000_000, Totals::default()));
        let now = || vec![EntityNow { name: "m".to_owned(), concurrency: 4, memory_percent: 1.5 }];
        let text = metrics.endpoint_text(ours, "e", now());
        for line in [
            "# TYPE request_count_total gauge",
            "request_count_total{endpoint_name=\"e\",model=\"m\"} 2.0",
            "request_4xx_count_total{endpoint_name=\"e\",model=\"m\"} 1.0",
            "request_5xx_count_total{endpoint_name=\"e\",model=\"m\"} 0.0",
            "provisioned_concurrent_requests_total{endpoint_name=\"e\",model=\"m\"} 4.0",
            "request_latency_ms_bucket{le=\"100.0\",endpoint_name=\"e\",model=\"m\"} 0",
            "request_latency_ms_bucket{le=\"300.0\",endpoint_name=\"e\",model=\"m\"} 2",
            "request_latency_ms_sum{endpoint_name=\"e\",model=\"m\"} 300.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(
            metrics
                .endpoint_text(theirs, "none", now())
                .contains("request_count_total{endpoint_name=\"none\",model=\"m\"} 0.0")
        );
    }
}
