//! What a deploy finds out about a graph by running it: how many threads pay, whether requests can share a run, what a run
//! costs.

use std::sync::Arc;
use std::time::Duration;

use super::{DeployError, ModelHost};
use crate::catalog::served::PlannedGraph;
use crate::nn::threads::{self, MeasuredThreads};
use crate::nn::{Cancel, ExecutionTarget, Graph, GraphSource, Inputs, NnError, Profile, Threads, batcher};

/// Time for finding out how many threads a graph's runs have, and whether they can be batched.
const PROBE_MAX: Duration = Duration::from_secs(20);

impl ModelHost {
    /// How a graph's runs are divided, in a line for the build log.
    pub(super) fn threads_line(&self, planned: &PlannedGraph, measured: &MeasuredThreads) -> String {
        let threads = planned.key.threads.number(Some(measured));
        let plural = if threads == 1 { "" } else { "s" };
        let mut line = format!("runs with {threads} thread{plural} each");
        if planned.key.target == ExecutionTarget::Cpu {
            line.push_str(&format!(", {} at once", self.executor.threads() / threads.max(1)));
        }
        match planned.threads_asked {
            Some(asked) if asked == threads => line.push_str(", as its package asks"),
            Some(asked) => line.push_str(&format!("; its package asks for {asked}, which cannot be had here")),
            None if !measured.run_ns.is_empty() => line.push_str(&format!(": {measured}")),
            None => {}
        }
        line
    }

    /// Finds out how many threads a graph's runs have, whether they can be batched and what they cost, unless that is known.
    pub(super) async fn profile(&self, planned: &PlannedGraph, graph: &Arc<dyn Graph>) -> Result<Profile, DeployError> {
        if let Some(known) = self.profiles.load(&planned.key) {
            return Ok(known);
        }
        let _alone = self.measuring.lock().await;
        let until = tokio::time::Instant::now() + PROBE_MAX;
        let sample = Arc::new(graph.schedule().take_sample());
        let (threads, measured) = self.measure_threads(planned, graph, &sample, until).await?;
        let probing = {
            let measured = Arc::clone(&measured);
            move |cancel: &Cancel| batcher::probe(&*measured, (*sample).as_ref(), cancel)
        };
        let probed = within(until, probing).await?;
        // What could not be tried is tried by the next deploy, unless this one found something that is worth keeping.
        let keep = probed.is_some() || threads.intra_op_threads > 1;
        let unknown = || Profile {
            finding: format!("runs alone: it could not be tried within {} s", PROBE_MAX.as_secs()),
            ..Profile::default()
        };
        let profile = Profile { threads, ..probed.unwrap_or_else(unknown) };
        measured.schedule().adopt(&profile);
        // Not fatal: the graph works without, only alone after the next load.
        if keep && let Err(error) = self.profiles.save(&planned.key, &profile) {
            tracing::warn!("failed to keep what was found out about a graph: {error:#}");
        }
        if !Arc::ptr_eq(graph, &measured) {
            self.graphs.forget(&planned.key);
            // Where it does not fit in memory now, a request loads it.
            let _ = self.graphs.get(planned.key.clone(), move || Ok(measured)).await;
        }
        Ok(profile)
    }

    /// The number of threads that pays, and the graph loaded with it: `graph`, or another. What is not measured by `until`
    /// stays at one thread.
    async fn measure_threads(
        &self,
        planned: &PlannedGraph,
        graph: &Arc<dyn Graph>,
        sample: &Arc<Option<Inputs>>,
        until: tokio::time::Instant,
    ) -> Result<(MeasuredThreads, Arc<dyn Graph>), DeployError> {
        let unknown = (MeasuredThreads::default(), Arc::clone(graph));
        let Threads::Measured { max } = planned.key.threads else { return Ok(unknown) };
        let failed = |error: NnError| DeployError::graph(&planned.name, &error);
        let backend = self.backends.by_id(planned.key.backend).map_err(failed)?;
        let (graph, sample, source) = (Arc::clone(graph), Arc::clone(sample), planned.source.clone());
        let measuring = move |cancel: &Cancel| {
            let load = |threads| backend.load(&GraphSource { intra_op_threads: threads, ..source.clone() });
            threads::measure(graph, max, (*sample).as_ref(), load, cancel)
        };
        Ok(within(until, measuring).await?.unwrap_or(unknown))
    }
}

/// Runs something that blocks, on another thread, and stops it at `until`: a model may run for ever on inputs that are made
/// up, and other deploys wait for this one. None when it was stopped.
async fn within<T: Send + 'static>(
    until: tokio::time::Instant,
    measure: impl FnOnce(&Cancel) -> Option<T> + Send + 'static,
) -> Result<Option<T>, DeployError> {
    let cancel = Arc::new(Cancel::default());
    let stop = Arc::clone(&cancel);
    let measuring = tokio::task::spawn_blocking(move || measure(&stop));
    match tokio::time::timeout_at(until, measuring).await {
        Ok(measured) => measured.map_err(|error| DeployError::host("measure a graph", &error)),
        Err(_elapsed) => {
            cancel.cancel();
            Ok(None)
        }
    }
}
