//! Components in memory: mapped from their artifacts, which workers compile where there is none; shared by the endpoints that
//! serve the same.

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use futures_util::future::{FutureExt, Shared};

use super::artifact::ArtifactKey;
use super::build_log::BuildLog;
use super::manifest::ComponentSource;
use super::schema::BodySchemas;
use super::worker::{GraphFile, Job, WorkerError};
use super::{DeployError, ModelHost, Plan, stock};
use crate::catalog::served::{PlannedGraph, Rung};
use crate::sandbox::LoadedComponent;
use crate::sandbox::prepare::PrepareError;

/// Time that `init` may take.
const INIT_MS: u64 = 10_000;

/// An artifact up to this size is loaded where it is called: that takes less than a hop to another thread and back.
const MAP_INLINE_BYTES_MAX: u64 = 2 << 20;

/// The outcome of a compile, for all who wait for it.
pub(super) type Compiling = Shared<Pin<Box<dyn Future<Output = Result<String, FailedCompile>> + Send>>>;

/// Why a component was not compiled.
#[derive(Debug, Clone)]
pub(super) struct FailedCompile {
    pub(super) error: DeployError,
    /// Lines for the build log: what the guest wrote is for who deploys it, and not for who sends it a request.
    pub(super) log: String,
}

impl FailedCompile {
    fn of(error: WorkerError) -> FailedCompile {
        match error {
            WorkerError::Component(PrepareError { message, log: written }) => {
                let mut log = BuildLog::default();
                log.guest(&written);
                FailedCompile { error: DeployError::Model(message), log: log.text().to_owned() }
            }
            // The same may compile in time when there is less to do.
            WorkerError::TimedOut(message) => DeployError::Busy(message).into(),
            WorkerError::Host(message) => DeployError::Host(message).into(),
        }
    }
}

impl From<DeployError> for FailedCompile {
    fn from(error: DeployError) -> FailedCompile {
        FailedCompile { error, log: String::new() }
    }
}

impl From<FailedCompile> for DeployError {
    fn from(failed: FailedCompile) -> DeployError {
        failed.error
    }
}

impl ModelHost {
    /// The component of a plan, and what had to be done for it: nothing where another endpoint has it in memory.
    ///
    /// # Errors
    /// When it can be neither loaded nor compiled.
    pub async fn component(self: &Arc<Self>, plan: &Plan) -> Result<(Arc<LoadedComponent>, Rung), DeployError> {
        if let Some(component) = self.components().get(&plan.artifact).and_then(Weak::upgrade) {
            return Ok((component, Rung::Warm));
        }
        if let Some(component) = self.map_artifact(plan.artifact).await? {
            return Ok((self.share(plan.artifact, component), Rung::Component));
        }
        self.compile(plan).await?;
        let component = self.map_artifact(plan.artifact).await?;
        let component =
            component.ok_or_else(|| DeployError::Host("the artifact vanished after its compile".to_owned()))?;
        Ok((self.share(plan.artifact, component), Rung::Compile))
    }

    /// What the component of a plan says that it takes and answers; none where it says nothing. It is compiled again where its
    /// artifact is gone, as for a request.
    ///
    /// # Errors
    /// When it cannot be compiled, or what was kept cannot be read.
    pub async fn description(self: &Arc<Self>, plan: &Plan) -> Result<Option<BodySchemas>, DeployError> {
        if !plan.describes {
            return Ok(None);
        }
        if !self.artifacts.contains(plan.artifact) {
            self.compile(plan).await?;
        }
        let (host, artifact) = (Arc::clone(self), plan.artifact);
        let read = tokio::task::spawn_blocking(move || host.artifacts.description(artifact)).await;
        let read = read.map_err(|error| DeployError::host("read what a component says of itself", &error))?;
        read.map_err(|error| DeployError::host("read what a component says of itself", &error))
    }

    /// Lets other endpoints find a component. Of two that were loaded at the same time one stays.
    fn share(&self, key: ArtifactKey, component: LoadedComponent) -> Arc<LoadedComponent> {
        let mut components = self.components();
        if let Some(earlier) = components.get(&key).and_then(Weak::upgrade) {
            return earlier;
        }
        let component = Arc::new(component);
        components.insert(key, Arc::downgrade(&component));
        component
    }

    /// How many components are in memory.
    pub fn components_loaded(&self) -> usize {
        self.components().values().filter(|component| component.strong_count() > 0).count()
    }

    /// Forgets components that nobody serves any more: they are gone, but not their names.
    pub fn forget_components(&self) {
        let mut components = self.components();
        components.retain(|_, component| component.strong_count() > 0);
        components.shrink_to_fit();
    }

    fn components(&self) -> MutexGuard<'_, HashMap<ArtifactKey, Weak<LoadedComponent>>> {
        self.components.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn map_artifact(self: &Arc<Self>, key: ArtifactKey) -> Result<Option<LoadedComponent>, DeployError> {
        if self.artifacts.bytes(key) <= MAP_INLINE_BYTES_MAX {
            return self.map_artifact_here(key);
        }
        let host = Arc::clone(self);
        let mapped = tokio::task::spawn_blocking(move || host.map_artifact_here(key)).await;
        mapped.map_err(|error| DeployError::host("load a component", &error))?
    }

    fn map_artifact_here(&self, key: ArtifactKey) -> Result<Option<LoadedComponent>, DeployError> {
        let failed = |error: anyhow::Error| DeployError::Host(format!("failed to load a component: {error:#}"));
        let Some(component) = self.artifacts.load(self.sandbox.engine(), key).map_err(failed)? else { return Ok(None) };
        let component = self.sandbox.load(&component).map_err(|error| failed(error.into()))?;
        Ok(Some(component))
    }

    /// Makes the artifact of a plan: once however many endpoints and requests need it at the same time, all of whom get
    /// the one outcome, and to its end even when none of them waits any more. Gives the lines for the build log.
    pub(super) async fn compile(self: &Arc<Self>, plan: &Plan) -> Result<String, FailedCompile> {
        let running = {
            let mut compiling = self.compiling();
            match compiling.get(&plan.artifact) {
                Some(running) => running.clone(),
                None => {
                    let running = self.start_compile(plan.clone());
                    compiling.insert(plan.artifact, running.clone());
                    running
                }
            }
        };
        running.await
    }

    fn start_compile(self: &Arc<Self>, plan: Plan) -> Compiling {
        let host = Arc::clone(self);
        let task = self.background.spawn(async move {
            // Removed also when the worker's future panics, so that the next request tries again.
            let _running = RemoveOnDrop { host: &host, key: plan.artifact };
            host.run_worker(&plan).await
        });
        let outcome = async { task.await.map_err(|error| DeployError::host("compile a component", &error))? };
        let outcome: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(outcome);
        outcome.shared()
    }

    fn compiling(&self) -> MutexGuard<'_, HashMap<ArtifactKey, Compiling>> {
        self.compiling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run_worker(&self, plan: &Plan) -> Result<String, FailedCompile> {
        let _turn = self.workers_at_once.turn(plan.tenant).await;
        if self.artifacts.contains(plan.artifact) {
            // Somebody was quicker; a damaged one was removed when it was found.
            return Ok(String::new());
        }
        let component = self.artifacts.staging_path(plan.artifact).with_extension("component");
        fs::write(&component, self.component_bytes(plan)?)
            .map_err(|error| DeployError::host("write a component for its worker", &error))?;
        let outcome = self.workers.run(&self.job(plan, &component)).await;
        let _ = fs::remove_file(&component);
        let mut log = BuildLog::default();
        let report = match outcome {
            Ok(report) => report,
            Err(error) => {
                let _ = fs::remove_file(self.artifacts.staging_path(plan.artifact));
                return Err(FailedCompile::of(error));
            }
        };
        log.guest(&report.log);
        let init = report.init_ms.map(|ms| format!("init took {ms:.1} ms, ")).unwrap_or_default();
        log.step(&format!(
            "{init}compiling took {:.0} ms; the component with its memory has {} bytes",
            report.compile_ms, report.snapshot_bytes
        ));
        if let Some(schemas) = &report.schemas {
            let kept = self.artifacts.describe(plan.artifact, schemas);
            kept.map_err(|error| DeployError::host("keep what a component says of itself", &error))?;
            log.step("the component says what it takes and answers");
        }
        self.artifacts.insert(plan.artifact).map_err(|error| DeployError::host("keep a compiled component", &error))?;
        Ok(log.text().to_owned())
    }

    fn job(&self, plan: &Plan, component: &Path) -> Job {
        let graph_file = |graph: &PlannedGraph| GraphFile {
            path: graph.source.path.clone(),
            external_files: graph.source.external_files.clone(),
        };
        Job {
            component: component.to_owned(),
            world: plan.world,
            artifact: self.artifacts.staging_path(plan.artifact),
            settings: plan.init_settings.clone(),
            assets: plan.assets.iter().map(|name| (name.clone(), plan.dir.join(name))).collect(),
            graphs: plan.graphs.iter().map(|graph| (graph.name.clone(), graph_file(graph))).collect(),
            limits: plan.limits.clone(),
            init: plan.init,
            init_ms: INIT_MS,
            memory_bytes: self.worker_memory_bytes,
            cpu_s: self.workers.timeout.as_secs().max(1),
        }
    }

    pub(super) fn component_bytes(&self, plan: &Plan) -> Result<Vec<u8>, DeployError> {
        match &plan.component {
            ComponentSource::Stock(name) => stock::component(name)
                .map(<[u8]>::to_vec)
                .ok_or_else(|| DeployError::model(format!("there is no stock component 'stock:{name}'"))),
            ComponentSource::File(name) => {
                fs::read(plan.dir.join(name)).map_err(|error| DeployError::host("read a component", &error))
            }
        }
    }
}

/// Takes a compile out of the running ones when it has ended, however it did.
struct RemoveOnDrop<'a> {
    host: &'a ModelHost,
    key: ArtifactKey,
}

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        self.host.compiling().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{ApiError, ErrorCode};

    #[test]
    fn a_caller_learns_why_a_compile_failed_and_the_build_log_what_the_guest_wrote() {
        let of = |error| {
            let failed = FailedCompile::of(error);
            (failed.log.clone(), ApiError::from(DeployError::from(failed)))
        };
        let (message, log) = ("the component's init failed: no".to_owned(), "secret\nof the model\n".to_owned());
        let (log, error) = of(WorkerError::Component(PrepareError { message, log }));
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::BadRequest, "the component's init failed: no"));
        assert!(log.contains("] guest: secret\n") && log.contains("] guest: of the model\n"), "{log}");
        let (_, error) = of(WorkerError::TimedOut("too long".to_owned()));
        assert_eq!(error.code, ErrorCode::ResourceExhausted);
        let (_, error) = of(WorkerError::Host("/home/x: no space left".to_owned()));
        assert_eq!(error.code, ErrorCode::InternalError);
        assert!(!error.message.contains("/home/x"), "{error}");
    }
}
