//! Deploy: everything slow that makes a model version ready, so that a request finds it done.
//!
//! In order: [`package`] (what was uploaded, checked at registration) → [`ModelHost::plan`] (backend, limits, the
//! artifact's key) → [`capability`] → [`worker`] (run `init`, freeze, ask for the [`schema`], compile, in a child process)
//! → [`artifact`] (authenticated, on disk) → [`converted`] graphs → [`trial`] of language models → load them → [`golden`]
//! request → `measure` graphs → the catalog publishes. A request that finds something missing enters at `components`.

pub mod artifact;
pub mod build_log;
pub mod capability;
mod components;
pub mod converted;
pub mod golden;
pub mod manifest;
mod measure;
pub mod package;
mod plan;
pub mod profiles;
pub mod schema;
pub mod signature;
pub mod stock;
pub mod trial;
pub mod worker;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use self::artifact::{ArtifactKey, Artifacts};
use self::build_log::BuildLog;
use self::components::Compiling;
use self::converted::ConvertedGraphs;
use self::manifest::InitTime;
pub use self::plan::Plan;
use self::profiles::Profiles;
use self::signature::Trust;
use self::worker::Workers;
use crate::catalog::served::{PlannedGraph, ServedEntity};
use crate::fair::Fair;
use crate::home::Home;
use crate::nn::threads::MeasuredThreads;
use crate::nn::{Backends, Executor, Graph, Graphs, NnError, NnErrorKind, Profile, SequenceCounters, Tenant};
use crate::outbound::Outbound;
use crate::sandbox::{LoadedComponent, RequestLimits, Sandbox, World};
use crate::seal::files::SealedFiles;
use crate::store::blobs::Blobs;

/// Most deploys at one time: compiling takes all the processor it gets, which requests need more. All may be one
/// workspace's; whose turn it is next is fair.
const DEPLOYS_MAX: usize = 2;

/// Why a model version cannot serve.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DeployError {
    /// Something is wrong with the model version: a sentence for whoever deployed it.
    #[error("{0}")]
    Model(String),
    /// The server is at a limit; the same may succeed later.
    #[error("{0}")]
    Busy(String),
    /// Our own failure. The text is for the operator: it may name files of this machine.
    #[error("{0}")]
    Host(String),
}

impl DeployError {
    fn model(message: impl Into<String>) -> DeployError {
        DeployError::Model(message.into())
    }

    fn host(doing: &str, error: &dyn std::error::Error) -> DeployError {
        DeployError::Host(format!("failed to {doing}: {}", crate::error::chain(error)))
    }

    fn graph(name: &str, error: &NnError) -> DeployError {
        let message = format!("graph '{name}': {error}");
        match error.kind() {
            NnErrorKind::Overloaded => DeployError::Busy(message),
            _ => DeployError::Model(message),
        }
    }
}

/// All that serves models on this machine: shared by deploys and requests.
pub struct ModelHost {
    /// Instances.
    pub sandbox: Sandbox,
    /// Libraries that run graphs.
    pub backends: Backends,
    /// Loaded graphs.
    pub graphs: Graphs,
    /// Sequences of language models among them.
    pub sequences: Arc<SequenceCounters>,
    /// Threads that compute.
    pub executor: Arc<Executor>,
    /// Files of packages.
    pub blobs: Arc<Blobs>,
    /// Compiled components.
    pub artifacts: Artifacts,
    /// What deploys found out about graphs.
    pub profiles: Profiles,
    /// Compile workers.
    pub workers: Workers,
    /// Address space of one worker.
    pub worker_memory_bytes: u64,
    /// Limits of requests where a manifest does not say otherwise.
    pub limits: RequestLimits,
    /// Small files, sealed.
    pub files: Arc<SealedFiles>,
    /// Whose packages run here.
    pub trust: Arc<Trust>,
    /// Whom guests may call.
    pub outbound: Outbound,
    converted: Arc<ConvertedGraphs>,
    home: Home,
    /// Runs compiles, which go on when whoever asked for them is gone.
    background: tokio::runtime::Handle,
    deploying: Arc<Fair>,
    /// Held while a graph is measured: two at once would measure each other.
    measuring: tokio::sync::Mutex<()>,
    /// Workers at one time: each takes a core and gigabytes.
    workers_at_once: Arc<Fair>,
    compiling: Mutex<HashMap<ArtifactKey, Compiling>>,
    /// Components in memory, for the other endpoints of a workspace that serve the same. Whoever serves one keeps it.
    components: Mutex<HashMap<ArtifactKey, Weak<LoadedComponent>>>,
}

impl ModelHost {
    /// Puts the parts together.
    pub fn new(parts: HostParts) -> ModelHost {
        ModelHost {
            sandbox: parts.sandbox,
            backends: parts.backends,
            graphs: parts.graphs,
            sequences: Arc::default(),
            executor: Arc::new(parts.executor),
            blobs: parts.blobs,
            artifacts: parts.artifacts,
            profiles: Profiles::new(Arc::clone(&parts.files)),
            workers: parts.workers,
            worker_memory_bytes: parts.worker_memory_bytes,
            limits: parts.limits,
            files: parts.files,
            trust: parts.trust,
            outbound: parts.outbound,
            converted: Arc::new(ConvertedGraphs::new(&parts.home)),
            home: parts.home,
            background: parts.background,
            deploying: Fair::new(DEPLOYS_MAX, DEPLOYS_MAX),
            measuring: tokio::sync::Mutex::default(),
            workers_at_once: Fair::new(DEPLOYS_MAX, DEPLOYS_MAX),
            compiling: Mutex::default(),
            components: Mutex::default(),
        }
    }

    /// Does all the slow work for an entity, so that its first request finds it done.
    ///
    /// # Errors
    /// What is wrong with the model version; the build log has it too.
    pub async fn deploy(self: &Arc<Self>, entity: &ServedEntity, log: &mut BuildLog) -> Result<(), DeployError> {
        let plan = &entity.plan;
        let _turn = self.deploying.turn(plan.tenant).await;
        if self.artifacts.contains(plan.artifact) {
            // By this version of the server, so what it imports was granted.
            log.step("the component is compiled already");
        } else {
            log.step("checking what the component imports");
            capability::check(&self.component_bytes(plan)?).map_err(DeployError::Model)?;
            log.step(match (plan.world, plan.init) {
                (World::Proxy, _) => "starting it to try it, compiling",
                (World::Endpoint, InitTime::Deploy) => "running init, freezing its memory, compiling",
                (World::Endpoint, InitTime::Request) => "compiling",
            });
            let compiled = self.compile(plan).await;
            log.lines(compiled.as_ref().unwrap_or_else(|failed| &failed.log));
            compiled?;
        }
        for graph in &plan.graphs {
            self.convert(graph, log).await;
        }
        for graph in &plan.graphs {
            self.try_model(plan.tenant, graph, log).await?;
        }
        log.step("loading");
        let ready = entity.ready(self).await?;
        let graphs = Arc::clone(&ready.graphs);
        for (graph, planned) in ready.graphs.iter().zip(&plan.graphs) {
            log.step(&format!(
                "graph '{}' runs on {} {}",
                graph.0,
                planned.key.backend.name(),
                planned.backend_version
            ));
        }
        let inits_each = (plan.world, plan.init) == (World::Endpoint, InitTime::Request);
        if inits_each {
            log.step("every request will run init, as the package asks");
        }
        if let Some(golden) = &plan.golden {
            log.step("sending the golden request");
            graphs.iter().for_each(|(_, graph)| graph.schedule().want_sample());
            golden::check(self, entity, golden, ready, log).await?;
        } else if inits_each {
            log.step("running init to try it");
            golden::check_init(self, entity, ready, log).await?;
        }
        for ((name, graph), planned) in graphs.iter().zip(&plan.graphs) {
            if let Some(sequences) = graph.sequences() {
                log.step(&format!("graph '{name}' {}", self.threads_line(planned, &MeasuredThreads::default())));
                log.step(&format!("graph '{name}' {}", sequences.finding()));
                continue;
            }
            let profile = self.profile(planned, graph).await?;
            log.step(&format!("graph '{name}' {}", self.threads_line(planned, &profile.threads)));
            log.step(&format!("graph '{name}' {}", profile.finding));
        }
        drop(graphs);
        // Those that are loaded in another form since the golden request.
        entity.ready(self).await?;
        log.step("ready");
        Ok(())
    }

    /// Loads a model whose file may bring a process down in another one, unless that went well before.
    async fn try_model(&self, tenant: Tenant, planned: &PlannedGraph, log: &mut BuildLog) -> Result<(), DeployError> {
        let failed = |error: NnError| DeployError::graph(&planned.name, &error);
        let backend = self.backends.by_id(planned.key.backend).map_err(failed)?;
        if !backend.loads_at_risk() || self.profiles.load(&planned.key).is_some() {
            return Ok(());
        }
        log.step(&format!("trying graph '{}' in a process of its own", planned.name));
        let _turn = self.workers_at_once.turn(tenant).await;
        let tried = trial::run(&self.workers, &planned.source).await;
        tried.map_err(|error| DeployError::Model(format!("graph '{}': {error}", planned.name)))?;
        let profile = Profile { finding: "was loaded".to_owned(), ..Profile::default() };
        if let Err(error) = self.profiles.save(&planned.key, &profile) {
            tracing::warn!("failed to keep that a model was tried: {error:#}");
        }
        Ok(())
    }

    /// Brings a graph into the form that loads fastest, if that is not done. A graph for which this fails is served all the
    /// same, from its model file.
    async fn convert(self: &Arc<Self>, planned: &PlannedGraph, log: &mut BuildLog) {
        let Ok(backend) = self.backends.by_id(planned.key.backend) else { return };
        let (host, source) = (Arc::clone(self), planned.source.clone());
        let made = tokio::task::spawn_blocking(move || host.converted.make(&*backend, &source)).await;
        match made.unwrap_or_else(|error| Err(error.into())) {
            Ok(None) => {}
            Ok(Some(bytes)) => {
                // One that was loaded before, from the model file, is not what this deploy is to try.
                self.graphs.forget(&planned.key);
                log.step(&format!(
                    "graph '{}' is converted to the form that loads fastest: {bytes} bytes",
                    planned.name
                ));
            }
            Err(error) => {
                tracing::warn!(graph = planned.name, "failed to convert a graph, which loads slowly now: {error:#}");
                log.step(&format!(
                    "graph '{}' is not converted and loads slowly: the server's log says why",
                    planned.name
                ));
            }
        }
    }

    /// A graph, and whether this call had to wait for it to load.
    ///
    /// # Errors
    /// When the backend refuses it or it does not fit in memory.
    pub async fn graph(&self, planned: &PlannedGraph) -> Result<(Arc<dyn Graph>, bool), DeployError> {
        if let Some(graph) = self.graphs.cached(&planned.key) {
            return Ok((graph, false));
        }
        let failed = |error: NnError| DeployError::graph(&planned.name, &error);
        let backend = self.backends.by_id(planned.key.backend).map_err(failed)?;
        let mut source = planned.source.clone();
        let (profiles, key) = (self.profiles.clone(), planned.key.clone());
        let converted = Arc::clone(&self.converted);
        let load = move || {
            let profile = profiles.load(&key);
            source.intra_op_threads = key.threads.number(profile.as_ref().map(|profile| &profile.threads));
            converted.make_again(&*backend, &source);
            let graph = backend.load(&source)?;
            if let Some(profile) = &profile {
                graph.schedule().adopt(profile);
            }
            Ok(graph)
        };
        let graph = self.graphs.get(planned.key.clone(), load).await.map_err(failed)?;
        Ok((graph, true))
    }
}

/// What a [`ModelHost`] is made of.
pub struct HostParts {
    /// Where everything lies.
    pub home: Home,
    /// Instances.
    pub sandbox: Sandbox,
    /// Libraries that run graphs.
    pub backends: Backends,
    /// Loaded graphs.
    pub graphs: Graphs,
    /// Threads that compute.
    pub executor: Executor,
    /// Whose packages run here.
    pub trust: Arc<Trust>,
    /// Whom guests may call.
    pub outbound: Outbound,
    /// Files of packages.
    pub blobs: Arc<Blobs>,
    /// Small files, sealed.
    pub files: Arc<SealedFiles>,
    /// Compiled components.
    pub artifacts: Artifacts,
    /// Compile workers.
    pub workers: Workers,
    /// Address space of one worker.
    pub worker_memory_bytes: u64,
    /// Limits of requests; a manifest may ask for less.
    pub limits: RequestLimits,
    /// Where compiles run.
    pub background: tokio::runtime::Handle,
}

/// How names in the cache begin of what is not finished.
pub const UNFINISHED: &str = "new-";

fn unfinished() -> String {
    format!("{UNFINISHED}{:016x}", fastrand::u64(..))
}
