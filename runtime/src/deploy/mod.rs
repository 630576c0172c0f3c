//! Deploy: everything slow that makes a model version ready, so that a request finds it done.
//!
//! In order: [`package`] (what was uploaded, checked at registration) → [`ModelHost::plan`] (backend, limits, the
//! artifact's key) → [`capability`] → [`worker`] (run `init`, freeze, ask for the [`schema`], compile, in a child process)
//! → [`artifact`] (authenticated, on disk) → [`converted`] graphs → [`trial`] of language models → load them → [`golden`]
//! request → the catalog publishes.

pub mod artifact;
pub mod build_log;
pub mod capability;
pub mod converted;
pub mod golden;
pub mod package;
pub mod profiles;
pub mod schema;
pub mod signature;
pub mod stock;
pub mod trial;
pub mod worker;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::{FutureExt, Shared};

use self::artifact::{ArtifactKey, Artifacts};
use self::build_log::BuildLog;
use self::converted::ConvertedGraphs;
use self::package::{ComponentSource, Golden, GraphSpec, InitTime, Package, PackageFile, RequestBodyMode};
use self::profiles::Profiles;
use self::schema::BodySchemas;
use self::signature::Trust;
use self::worker::{GraphFile, Job, Workers};
use crate::catalog::served::{PlannedGraph, Rung, ServedEntity};
use crate::catalog::{EndpointRecord, EntityConfig, WorkspaceId};
use crate::home::Home;
use crate::nn::threads::{self, MeasuredThreads};
use crate::nn::{
    Backend, Backends, Cancel, ExecutionTarget, Executor, Graph, GraphKey, GraphSource, Graphs, Inputs, LoadHost,
    NnError, NnErrorKind, Profile, SequenceCounters, Tenant, Threads, batcher,
};
use crate::outbound::{Grant, Outbound};
use crate::sandbox::{GuestPackage, LoadedComponent, RequestLimits, Sandbox, World};
use crate::seal::files::SealedFiles;
use crate::secrets::is_reference;
use crate::store::blobs::Blobs;

/// Time that `init` may take.
const INIT_MS: u64 = 10_000;

/// An artifact up to this size is loaded where it is called: that takes less than a hop to another thread and back.
const MAP_INLINE_BYTES_MAX: u64 = 2 << 20;

/// Time for finding out how many threads a graph's runs have, and whether they can be batched.
const PROBE_MAX: Duration = Duration::from_secs(20);

/// Most deploys at one time: compiling takes all the processor it gets, which requests need more.
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

/// The outcome of a compile, for all who wait for it.
type Compiling = Shared<Pin<Box<dyn Future<Output = Result<String, DeployError>> + Send>>>;

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
    /// Held while a package is laid out, so that it is laid out once.
    laying_out: Mutex<()>,
    /// Runs compiles, which go on when whoever asked for them is gone.
    background: tokio::runtime::Handle,
    deploying: tokio::sync::Semaphore,
    /// Held while a graph is measured: two at once would measure each other.
    measuring: tokio::sync::Mutex<()>,
    /// Workers at one time: each takes a core and gigabytes.
    workers_at_once: tokio::sync::Semaphore,
    compiling: Mutex<HashMap<ArtifactKey, Compiling>>,
    /// Components in memory, for the other endpoints of a workspace that serve the same. Whoever serves one keeps it.
    components: Mutex<HashMap<ArtifactKey, Weak<LoadedComponent>>>,
}

/// How a served entity gets into memory.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name of the compiled component.
    pub artifact: ArtifactKey,
    /// What the guest may ask for during a request.
    pub guest: Arc<GuestPackage>,
    /// Its graphs.
    pub graphs: Vec<PlannedGraph>,
    /// Limits of one request.
    pub limits: RequestLimits,
    /// Whose computations these are.
    pub tenant: Tenant,
    /// The world that the component is made for.
    pub world: World,
    /// Whether the component says what it takes and answers.
    pub describes: bool,
    /// How the guest wants bodies.
    pub request_body: RequestBodyMode,
    /// Whom the guest may call.
    pub grant: Option<Grant>,
    /// The assets by their paths, where `init` runs in every request.
    pub init_assets: Option<Arc<BTreeMap<String, PathBuf>>>,
    init: InitTime,
    component: ComponentSource,
    golden: Option<Golden>,
    /// What the guest may ask for during `init`.
    init_settings: BTreeMap<String, String>,
    /// Where the package's files lie under their names.
    dir: PathBuf,
    assets: Vec<String>,
}

impl Plan {
    /// Whether answers may tell of tokens: those of tables and tensors never do.
    pub fn may_count_tokens(&self) -> bool {
        self.component != ComponentSource::Stock("scoring".to_owned())
    }
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
            laying_out: Mutex::new(()),
            background: parts.background,
            deploying: tokio::sync::Semaphore::new(DEPLOYS_MAX),
            measuring: tokio::sync::Mutex::default(),
            workers_at_once: tokio::sync::Semaphore::new(DEPLOYS_MAX),
            compiling: Mutex::default(),
            components: Mutex::default(),
        }
    }

    /// Decides how an entity is served, and makes sure that the files of its package lie where it says. `secrets` are
    /// settings for requests alone. Quick enough for an endpoint's first request. Blocks.
    ///
    /// # Errors
    /// When nobody who is trusted has signed the package, a backend or target is not available here, a limit is over the
    /// server's, a host may not be called from here, or the files cannot be laid out.
    pub fn plan(
        &self,
        owner: &EndpointRecord,
        entity: &EntityConfig,
        package: &Package,
        secrets: BTreeMap<String, String>,
    ) -> Result<Plan, DeployError> {
        self.trust.check(&package.files, &self.blobs).map_err(DeployError::Model)?;
        let grant = self.outbound.grant(&package.grants.http).map_err(DeployError::Model)?;
        let dir = self.lay_out(package)?;
        let mut settings = settings(entity, package);
        let graphs = self.plan_graphs(owner.workspace, entity, package, &dir)?;
        let limits = self.limits_of(package)?;
        let artifact = self.artifact_key(owner.workspace, package, &settings, &limits)?;
        let init_settings = settings.clone();
        // Only for requests: endpoints that serve the same package share its artifact.
        settings.extend(secrets);
        settings.insert("tessera.endpoint".to_owned(), owner.name.clone());
        settings.insert("tessera.model_version".to_owned(), entity.entity_version.to_string());
        Ok(Plan {
            artifact,
            init_settings,
            guest: Arc::new(GuestPackage { settings, graphs: BTreeMap::new() }),
            graphs,
            limits,
            tenant: Tenant(owner.workspace.0),
            world: package.world,
            describes: package.describes,
            request_body: package.request_body,
            grant,
            init_assets: (package.init == InitTime::Request)
                .then(|| Arc::new(package.assets.iter().map(|name| (name.clone(), dir.join(name))).collect())),
            init: package.init,
            component: package.component.clone(),
            golden: package.golden.clone(),
            dir,
            assets: package.assets.iter().cloned().collect(),
        })
    }

    fn plan_graphs(
        &self,
        workspace: WorkspaceId,
        entity: &EntityConfig,
        package: &Package,
        dir: &Path,
    ) -> Result<Vec<PlannedGraph>, DeployError> {
        let plan = |(name, spec): (&String, &GraphSpec)| {
            let file = package_file(package, &spec.file)?;
            let target = if entity.wants_gpu() { ExecutionTarget::Gpu } else { spec.target.into() };
            let backend =
                self.backends.select(spec.backend.into(), target).map_err(|error| DeployError::graph(name, &error))?;
            let digest = graph_digest(workspace, package, file, name);
            let form = backend.conversion(target);
            let source = GraphSource {
                path: dir.join(&spec.file),
                external_files: package.weights.get(name).cloned().unwrap_or_default(),
                target,
                batch: spec.batch.clone(),
                intra_op_threads: 1,
                converted: form.map(|form| self.converted.path(&digest, form)),
                sequences: spec.sequence_spec(),
                host: LoadHost {
                    memory_bytes_max: self.graphs.budget_bytes(),
                    busy: Arc::clone(self.executor.busy()),
                    sequences: Arc::clone(&self.sequences),
                },
            };
            let threads = self.threads(&*backend, target, spec.intra_op_threads);
            let key = GraphKey {
                digest,
                backend: backend.id(),
                target,
                batch: spec.batch.clone(),
                sequences: spec.sequence_spec(),
                threads,
            };
            Ok(PlannedGraph {
                name: name.clone(),
                key,
                source,
                backend_version: backend.version().to_owned(),
                threads_asked: spec.intra_op_threads,
            })
        };
        package.graphs.iter().map(plan).collect()
    }

    /// Who decides how many threads the runs of a graph have: a server has no more than those of its executor.
    fn threads(&self, backend: &dyn Backend, target: ExecutionTarget, asked: Option<u32>) -> Threads {
        let max = self.executor.threads();
        match asked {
            _ if max == 1 || !backend.divides_runs(target) => Threads::Fixed(1),
            Some(asked) => Threads::Fixed(asked.min(max)),
            None => backend.threads_unmeasured(max).map_or(Threads::Measured { max }, Threads::Fixed),
        }
    }

    /// Names, without their endings, of what a deploy of an entity leaves on disk: the compiled component, the laid-out
    /// package, what was made of its graphs and found out about them.
    ///
    /// # Errors
    /// When a limit is over the server's or the package does not fit together: then there is nothing.
    pub fn leaves(
        &self,
        workspace: WorkspaceId,
        entity: &EntityConfig,
        package: &Package,
    ) -> Result<Vec<String>, DeployError> {
        let limits = self.limits_of(package)?;
        let artifact = self.artifact_key(workspace, package, &settings(entity, package), &limits)?;
        let mut names = vec![artifact.to_string(), package_name(package)?];
        let dir = self.home.cache("packages").join(&names[1]);
        // Where a backend is missing for now, its files can be made again.
        for graph in self.plan_graphs(workspace, entity, package, &dir).into_iter().flatten() {
            let converted = graph.source.converted.as_ref().and_then(|path| path.file_stem());
            names.extend(converted.map(|name| name.to_string_lossy().into_owned()));
            names.push(profiles::name(&graph.key));
        }
        Ok(names)
    }

    /// Does all the slow work for an entity, so that its first request finds it done.
    ///
    /// # Errors
    /// What is wrong with the model version; the build log has it too.
    pub async fn deploy(self: &Arc<Self>, entity: &ServedEntity, log: &mut BuildLog) -> Result<(), DeployError> {
        let _turn = self.deploying.acquire().await.map_err(|error| DeployError::host("take a turn", &error))?;
        let plan = &entity.plan;
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
            log.lines(&self.compile(plan).await?);
        }
        for graph in &plan.graphs {
            self.convert(graph, log).await;
        }
        for graph in &plan.graphs {
            self.try_model(graph, log).await?;
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
    async fn try_model(&self, planned: &PlannedGraph, log: &mut BuildLog) -> Result<(), DeployError> {
        let failed = |error: NnError| DeployError::graph(&planned.name, &error);
        let backend = self.backends.by_id(planned.key.backend).map_err(failed)?;
        if !backend.loads_at_risk() || self.profiles.load(&planned.key).is_some() {
            return Ok(());
        }
        log.step(&format!("trying graph '{}' in a process of its own", planned.name));
        let _turn = self.workers_at_once.acquire().await.map_err(|error| DeployError::host("take a turn", &error))?;
        let tried = trial::run(&self.workers, &planned.source).await;
        tried.map_err(|error| DeployError::Model(format!("graph '{}': {error}", planned.name)))?;
        let profile = Profile { finding: "was loaded".to_owned(), ..Profile::default() };
        if let Err(error) = self.profiles.save(&planned.key, &profile) {
            tracing::warn!("failed to keep that a model was tried: {error:#}");
        }
        Ok(())
    }

    /// How a graph's runs are divided, in a line for the build log.
    fn threads_line(&self, planned: &PlannedGraph, measured: &MeasuredThreads) -> String {
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
    async fn profile(&self, planned: &PlannedGraph, graph: &Arc<dyn Graph>) -> Result<Profile, DeployError> {
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
    async fn compile(self: &Arc<Self>, plan: &Plan) -> Result<String, DeployError> {
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

    async fn run_worker(&self, plan: &Plan) -> Result<String, DeployError> {
        let _turn = self.workers_at_once.acquire().await.map_err(|error| DeployError::host("take a turn", &error))?;
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
                let said = if error.log.is_empty() { String::new() } else { format!("; it wrote: {}", error.log) };
                return Err(DeployError::Model(error.message + &said));
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

    fn component_bytes(&self, plan: &Plan) -> Result<Vec<u8>, DeployError> {
        match &plan.component {
            ComponentSource::Stock(name) => stock::component(name)
                .map(<[u8]>::to_vec)
                .ok_or_else(|| DeployError::model(format!("there is no stock component 'stock:{name}'"))),
            ComponentSource::File(name) => {
                fs::read(plan.dir.join(name)).map_err(|error| DeployError::host("read a component", &error))
            }
        }
    }

    /// The server's limits, except where the manifest says otherwise. No manifest can ask for more memory or time than the
    /// server's own; a slow guest may ask for more of that time on the processor than is usual.
    fn limits_of(&self, package: &Package) -> Result<RequestLimits, DeployError> {
        let (own, limits) = (&package.limits, &self.limits);
        let at_most = |name: &str, asked: Option<u64>, usual: u64, (setting, maximum): (&str, u64)| match asked {
            Some(0) => Err(DeployError::model(format!("limits.{name} of the manifest is 0"))),
            Some(asked) if asked > maximum => Err(DeployError::model(format!(
                "limits.{name} of the manifest asks for {asked}; this server allows at most {maximum} ({setting})"
            ))),
            asked => Ok(asked.unwrap_or(usual)),
        };
        let memory = ("sandbox_memory_bytes_max", limits.memory_bytes);
        let time = ("sandbox_wall_ms", limits.wall_ms);
        Ok(RequestLimits {
            memory_bytes: at_most("memory_bytes", own.memory_bytes, limits.memory_bytes, memory)?,
            cpu_ms: at_most("cpu_ms", own.cpu_ms, limits.cpu_ms, time)?,
            wall_ms: at_most("wall_ms", own.wall_ms, limits.wall_ms, time)?,
            ..limits.clone()
        })
    }

    /// Everything that decides what the worker makes.
    fn artifact_key(
        &self,
        workspace: WorkspaceId,
        package: &Package,
        settings: &BTreeMap<String, String>,
        limits: &RequestLimits,
    ) -> Result<ArtifactKey, DeployError> {
        let mut compatibility = std::hash::DefaultHasher::new();
        self.sandbox.engine().precompile_compatibility_hash().hash(&mut compatibility);
        let component = match &package.component {
            ComponentSource::Stock(name) => stock::digest(name).to_string(),
            ComponentSource::File(name) => package_file(package, name)?.digest.to_string(),
        };
        let read_by_init: BTreeMap<&String, String> = package
            .assets
            .iter()
            .chain(package.graphs.values().map(|graph| &graph.file))
            .filter_map(|name| Some((name, package.files.get(name)?.digest.to_string())))
            .collect();
        let frozen = (settings, &package.graphs, read_by_init, limits.memory_bytes);
        // Where nothing is frozen and `init` runs before no `describe`, there is the component alone.
        let inits = package.init == InitTime::Deploy || package.describes;
        let inputs = serde_json::to_vec(&(package.init, inits.then_some(frozen)))
            .map_err(|error| DeployError::host("name an artifact", &error))?;
        Ok(ArtifactKey::of(&[
            env!("CARGO_PKG_VERSION").as_bytes(),
            // Not even the time of a deploy tells one tenant what another has.
            &workspace.0.to_le_bytes(),
            &compatibility.finish().to_le_bytes(),
            component.as_bytes(),
            &inputs,
        ]))
    }

    /// Gives a package's files their names, in plain, once: they are mapped, and models that keep weights in a file beside
    /// them need it. What is there was verified when it was made; a sweep removes it when no endpoint needs it.
    fn lay_out(&self, package: &Package) -> Result<PathBuf, DeployError> {
        let failed = |error: std::io::Error| DeployError::host("lay out the files of a package", &error);
        let packages = self.home.cache("packages");
        let dir = packages.join(package_name(package)?);
        if dir.exists() {
            return Ok(dir);
        }
        let _alone = self.laying_out.lock().unwrap_or_else(PoisonError::into_inner);
        if dir.exists() {
            return Ok(dir);
        }
        // Built aside, each file synced, and renamed, so that a folder that exists is complete.
        let building = packages.join(unfinished());
        let built = self.copy_files(package, &building).and_then(|()| fs::rename(&building, &dir).map_err(failed));
        if built.is_err() {
            let _ = fs::remove_dir_all(&building);
        }
        built.map(|()| dir)
    }

    fn copy_files(&self, package: &Package, to: &Path) -> Result<(), DeployError> {
        let create_dir = |dir: &Path| {
            crate::home::create_private_dir(dir)
                .map_err(|error| DeployError::host("make a folder for a package", &error))
        };
        create_dir(to)?;
        for (name, file) in &package.files {
            let path = to.join(name);
            create_dir(path.parent().unwrap_or(to))?;
            let copied = self.blobs.copy_to(&file.digest, &path);
            copied.map_err(|error| DeployError::host("lay out the files of a package", &error))?;
        }
        Ok(())
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

/// The package's settings, overridden by the entity's. Without secrets: these settings end up in artifacts.
fn settings(entity: &EntityConfig, package: &Package) -> BTreeMap<String, String> {
    let mut settings = package.settings.clone();
    let plain = entity.environment_vars.iter().filter(|(_, value)| !is_reference(value));
    settings.extend(plain.map(|(name, value)| (name.clone(), value.clone())));
    settings
}

/// How names in the cache begin of what is not finished.
pub const UNFINISHED: &str = "new-";

fn unfinished() -> String {
    format!("{UNFINISHED}{:016x}", fastrand::u64(..))
}

/// Name of the folder in which a package is laid out: what is in it decides it.
fn package_name(package: &Package) -> Result<String, DeployError> {
    let listing =
        serde_json::to_vec(&package.files).map_err(|error| DeployError::host("name a package's folder", &error))?;
    Ok(blake3::hash(&listing).to_hex().to_string())
}

fn package_file<'a>(package: &'a Package, name: &str) -> Result<&'a PackageFile, DeployError> {
    package.files.get(name).ok_or_else(|| DeployError::model(format!("'{name}' is not in the package")))
}

/// Names a graph's content for its tenant: its file, and the files that hold its weights.
fn graph_digest(workspace: WorkspaceId, package: &Package, file: &PackageFile, name: &str) -> String {
    let folder = Path::new(&package.graphs[name].file).parent().unwrap_or(Path::new(""));
    let mut digest = format!("{workspace}/{}", file.digest);
    for weights in package.weights.get(name).into_iter().flatten() {
        let path = folder.join(weights);
        let weights_digest = path.to_str().and_then(|path| package.files.get(path)).map(|file| file.digest.to_string());
        digest.push_str(&format!("+{weights}={}", weights_digest.unwrap_or_default()));
    }
    digest
}
