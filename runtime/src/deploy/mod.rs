//! Deploy: everything slow that makes a model version ready, so that a request finds it done.
//!
//! In order: [`package`] (what was uploaded, checked at registration) → [`ModelHost::plan`] (backend, limits, the
//! artifact's key) → [`capability`] → [`worker`] (run `init`, freeze, compile, in a child process) → [`artifact`]
//! (authenticated, on disk) → load graphs → [`golden`] request → the catalog publishes.

pub mod artifact;
pub mod build_log;
pub mod capability;
pub mod golden;
pub mod package;
pub mod stock;
pub mod worker;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::artifact::{ArtifactKey, Artifacts};
use self::build_log::BuildLog;
use self::package::{ComponentSource, Golden, Package, PackageFile, RequestBodyMode};
use self::worker::{GraphFile, Job, Workers};
use crate::catalog::EntityConfig;
use crate::catalog::served::{PlannedGraph, ServedEntity};
use crate::home::Home;
use crate::nn::{Backends, Executor, Graph, GraphKey, GraphSource, Graphs, NnError};
use crate::sandbox::engine::MEMORY_BYTES_CEILING;
use crate::sandbox::{GuestPackage, LoadedComponent, RequestLimits, Sandbox};
use crate::store::blobs::Blobs;

/// Time that `init` may take.
const INIT_MS: u64 = 10_000;

/// Most deploys at one time: compiling takes all the processor it gets, which requests need more.
const DEPLOYS_MAX: usize = 2;

/// Why a model version cannot serve: a sentence for whoever deployed it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct DeployError {
    /// For the endpoint's state and the build log.
    pub message: String,
}

impl DeployError {
    fn new(message: impl Into<String>) -> DeployError {
        DeployError { message: message.into() }
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
    /// Threads that compute.
    pub executor: Arc<Executor>,
    /// Files of packages.
    pub blobs: Arc<Blobs>,
    /// Compiled components.
    pub artifacts: Artifacts,
    /// Compile workers.
    pub workers: Workers,
    /// Address space of one worker.
    pub worker_memory_bytes: u64,
    /// Limits of requests where a manifest does not say otherwise.
    pub limits: RequestLimits,
    home: Home,
    deploying: tokio::sync::Semaphore,
    compiling: Mutex<HashMap<ArtifactKey, Arc<tokio::sync::Mutex<()>>>>,
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
    /// How the guest wants bodies.
    pub request_body: RequestBodyMode,
    component: ComponentSource,
    golden: Option<Golden>,
    /// What the guest may ask for during `init`.
    init_settings: BTreeMap<String, String>,
    /// Where the package's files lie under their names.
    dir: PathBuf,
    assets: Vec<String>,
}

impl Plan {
    /// Name of the folder in which the package is laid out.
    pub fn package_name(&self) -> Option<String> {
        Some(self.dir.file_name()?.to_string_lossy().into_owned())
    }
}

impl ModelHost {
    /// Puts the parts together.
    pub fn new(parts: HostParts) -> ModelHost {
        ModelHost {
            sandbox: parts.sandbox,
            backends: parts.backends,
            graphs: parts.graphs,
            executor: Arc::new(parts.executor),
            blobs: parts.blobs,
            artifacts: parts.artifacts,
            workers: parts.workers,
            worker_memory_bytes: parts.worker_memory_bytes,
            limits: parts.limits,
            home: parts.home,
            deploying: tokio::sync::Semaphore::new(DEPLOYS_MAX),
            compiling: Mutex::default(),
        }
    }

    /// Decides how an entity is served, without doing any of it: quick enough for every entity at a restart.
    ///
    /// # Errors
    /// When a backend or target is not available here, a limit is over the server's, or the files cannot be laid out.
    pub fn plan(&self, endpoint: &str, entity: &EntityConfig, package: &Package) -> Result<Plan, DeployError> {
        let dir = self.lay_out(package)?;
        let mut settings = package.settings.clone();
        settings.extend(entity.environment_vars.clone());
        let mut graphs = Vec::new();
        for (name, spec) in &package.graphs {
            let file = package_file(package, &spec.file)?;
            let backend = self
                .backends
                .select(spec.backend.into(), spec.target.into())
                .map_err(|error| DeployError::new(format!("graph '{name}': {error}")))?;
            let source = GraphSource {
                path: dir.join(&spec.file),
                external_files: siblings(package, &spec.file),
                target: spec.target.into(),
            };
            let digest = graph_digest(package, file, &spec.file);
            let key = GraphKey { digest, backend: backend.id(), target: spec.target.into() };
            graphs.push(PlannedGraph {
                name: name.clone(),
                key,
                source,
                backend_version: backend.version().to_owned(),
            });
        }
        let limits = self.limits_of(package)?;
        let artifact = self.artifact_key(package, &settings, &limits)?;
        let init_settings = settings.clone();
        // Only for requests: endpoints that serve the same package share its artifact.
        settings.insert("tessera.endpoint".to_owned(), endpoint.to_owned());
        settings.insert("tessera.model_version".to_owned(), entity.entity_version.to_string());
        Ok(Plan {
            artifact,
            init_settings,
            guest: Arc::new(GuestPackage { settings, graphs: BTreeMap::new() }),
            graphs,
            limits,
            request_body: package.request_body,
            component: package.component.clone(),
            golden: package.golden.clone(),
            dir,
            assets: package.assets.iter().cloned().collect(),
        })
    }

    /// Does all the slow work for an entity, so that its first request finds it done.
    ///
    /// # Errors
    /// What is wrong with the model version; the build log has it too.
    pub async fn deploy(&self, entity: &ServedEntity, log: &mut BuildLog) -> Result<(), DeployError> {
        let _turn = self.deploying.acquire().await.map_err(|_| DeployError::new("the server is shutting down"))?;
        let plan = &entity.plan;
        log.step("checking what the component imports");
        let component = self.component_bytes(plan)?;
        capability::check(&component).map_err(DeployError::new)?;
        if self.artifacts.contains(plan.artifact) {
            log.step("the component is compiled already");
        } else {
            log.step("running init, freezing its memory, compiling");
            self.compile(plan, log).await?;
        }
        log.step("loading");
        let ready = entity.ready(self).await?;
        for (graph, planned) in ready.graphs.iter().zip(&plan.graphs) {
            log.step(&format!(
                "graph '{}' runs on {} {}",
                graph.0,
                planned.key.backend.name(),
                planned.backend_version
            ));
        }
        if let Some(golden) = &plan.golden {
            log.step("sending the golden request");
            golden::check(self, entity, golden, &plan.dir, ready).await?;
        }
        log.step("ready");
        Ok(())
    }

    /// A graph, and whether this call had to wait for it to load.
    ///
    /// # Errors
    /// When the backend refuses it or it does not fit in memory.
    pub async fn graph(&self, planned: &PlannedGraph) -> Result<(Arc<dyn Graph>, bool), DeployError> {
        if let Some(graph) = self.graphs.cached(&planned.key) {
            return Ok((graph, false));
        }
        let failed = |error: NnError| DeployError::new(format!("graph '{}': {error}", planned.name));
        let backend = self.backends.by_id(planned.key.backend).map_err(failed)?;
        let source = planned.source.clone();
        let graph = self.graphs.get(planned.key.clone(), move || backend.load(&source)).await.map_err(failed)?;
        Ok((graph, true))
    }

    /// The component from its artifact, and whether it had to be compiled for that.
    ///
    /// # Errors
    /// When it can be neither loaded nor compiled.
    pub async fn component(self: &ModelHost, plan: &Plan) -> Result<(LoadedComponent, bool), DeployError> {
        if let Some(component) = self.map_artifact(plan.artifact)? {
            return Ok((component, false));
        }
        self.compile(plan, &mut BuildLog::default()).await?;
        let component = self.map_artifact(plan.artifact)?;
        component.map(|component| (component, true)).ok_or_else(|| DeployError::new("the artifact vanished"))
    }

    /// Takes tens to hundreds of microseconds for a component of a usual size, less than a hop to another thread and back
    /// under load, so it runs where it is called.
    fn map_artifact(&self, key: ArtifactKey) -> Result<Option<LoadedComponent>, DeployError> {
        let failed = |error: anyhow::Error| DeployError::new(format!("failed to load the component: {error:#}"));
        let Some(component) = self.artifacts.load(self.sandbox.engine(), key).map_err(failed)? else { return Ok(None) };
        let component = self.sandbox.load(&component).map_err(|error| failed(error.into()))?;
        Ok(Some(component))
    }

    /// Makes the artifact of a plan, once however many endpoints and requests need it at the same time.
    async fn compile(&self, plan: &Plan, log: &mut BuildLog) -> Result<(), DeployError> {
        let lock = Arc::clone(self.compiling().entry(plan.artifact).or_default());
        let outcome = {
            let _alone = lock.lock().await;
            // Whoever held the lock before has made it; a damaged one was removed when it was found.
            if self.artifacts.contains(plan.artifact) { Ok(()) } else { self.run_worker(plan, log).await }
        };
        let mut compiling = self.compiling();
        // The map's and this one: nobody else waits.
        if Arc::strong_count(&lock) <= 2 {
            compiling.remove(&plan.artifact);
        }
        outcome
    }

    fn compiling(&self) -> MutexGuard<'_, HashMap<ArtifactKey, Arc<tokio::sync::Mutex<()>>>> {
        self.compiling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run_worker(&self, plan: &Plan, log: &mut BuildLog) -> Result<(), DeployError> {
        let component = self.home.path("artifacts").join(format!("{}.component", plan.artifact));
        fs::write(&component, self.component_bytes(plan)?)
            .map_err(|error| DeployError::new(format!("failed to write the component for its worker: {error}")))?;
        let graph_file = |graph: &PlannedGraph| GraphFile {
            path: graph.source.path.clone(),
            external_files: graph.source.external_files.clone(),
        };
        let job = Job {
            component: component.clone(),
            artifact: self.artifacts.staging_path(plan.artifact),
            settings: plan.init_settings.clone(),
            assets: plan.assets.iter().map(|name| (name.clone(), plan.dir.join(name))).collect(),
            graphs: plan.graphs.iter().map(|graph| (graph.name.clone(), graph_file(graph))).collect(),
            limits: plan.limits.clone(),
            init_ms: INIT_MS,
            memory_bytes: self.worker_memory_bytes,
            cpu_s: 2 * self.workers.timeout.as_secs().max(1),
        };
        let outcome = self.workers.run(&job).await;
        let _ = fs::remove_file(&component);
        let report = outcome.map_err(|error| {
            log.guest(&error.log);
            DeployError::new(error.message)
        })?;
        log.guest(&report.log);
        log.step(&format!(
            "init took {:.1} ms, compiling {:.0} ms; the component with its memory has {} bytes",
            report.init_ms, report.compile_ms, report.snapshot_bytes
        ));
        self.artifacts
            .insert(plan.artifact)
            .map_err(|error| DeployError::new(format!("failed to keep the compiled component: {error}")))
    }

    fn component_bytes(&self, plan: &Plan) -> Result<Vec<u8>, DeployError> {
        match &plan.component {
            ComponentSource::Stock(name) => stock::component(name)
                .map(<[u8]>::to_vec)
                .ok_or_else(|| DeployError::new(format!("there is no stock component 'stock:{name}'"))),
            ComponentSource::File(name) => fs::read(plan.dir.join(name))
                .map_err(|error| DeployError::new(format!("failed to read the component '{name}': {error}"))),
        }
    }

    fn limits_of(&self, package: &Package) -> Result<RequestLimits, DeployError> {
        let at_most = |name: &str, asked: Option<u64>, standard: u64, maximum: u64| match asked {
            Some(0) => Err(DeployError::new(format!("limits.{name} is 0"))),
            Some(asked) if asked > maximum => {
                Err(DeployError::new(format!("limits.{name} asks for {asked}; this server allows at most {maximum}")))
            }
            Some(asked) => Ok(asked),
            None => Ok(standard),
        };
        let own = &package.limits;
        let limits = &self.limits;
        Ok(RequestLimits {
            memory_bytes: at_most("memory_bytes", own.memory_bytes, limits.memory_bytes, MEMORY_BYTES_CEILING as u64)?,
            cpu_ms: at_most("cpu_ms", own.cpu_ms, limits.cpu_ms, limits.wall_ms)?,
            wall_ms: at_most("wall_ms", own.wall_ms, limits.wall_ms, limits.wall_ms)?,
            ..limits.clone()
        })
    }

    /// Everything that decides what the worker makes.
    fn artifact_key(
        &self,
        package: &Package,
        settings: &BTreeMap<String, String>,
        limits: &RequestLimits,
    ) -> Result<ArtifactKey, DeployError> {
        let mut compatibility = std::hash::DefaultHasher::new();
        self.sandbox.engine().precompile_compatibility_hash().hash(&mut compatibility);
        let component = match &package.component {
            ComponentSource::Stock(name) => {
                blake3::hash(stock::component(name).unwrap_or_default()).to_hex().to_string()
            }
            ComponentSource::File(name) => package_file(package, name)?.digest.to_string(),
        };
        let read_by_init: BTreeMap<&String, String> = package
            .assets
            .iter()
            .chain(package.graphs.values().map(|graph| &graph.file))
            .filter_map(|name| Some((name, package.files.get(name)?.digest.to_string())))
            .collect();
        let inputs = serde_json::to_vec(&(settings, &package.graphs, read_by_init, limits.memory_bytes))
            .map_err(|error| DeployError::new(format!("failed to name the artifact: {error}")))?;
        Ok(ArtifactKey::of(&[
            env!("CARGO_PKG_VERSION").as_bytes(),
            &compatibility.finish().to_le_bytes(),
            component.as_bytes(),
            &inputs,
        ]))
    }

    /// Gives a package's files their names: links to the blobs, made once. Models that keep weights in a file beside
    /// them need it.
    fn lay_out(&self, package: &Package) -> Result<PathBuf, DeployError> {
        let failed =
            |error: std::io::Error| DeployError::new(format!("failed to lay out the package's files: {error}"));
        let listing = serde_json::to_vec(&package.files).map_err(|error| failed(error.into()))?;
        let dir = self.home.path("packages").join(blake3::hash(&listing).to_hex().as_str());
        if dir.exists() {
            return Ok(dir);
        }
        // Built aside and renamed, so that a folder that exists is complete.
        let building = dir.with_extension(format!("{:x}", fastrand::u64(..)));
        for (name, file) in &package.files {
            let path = building.join(name);
            crate::home::create_private_dir(path.parent().unwrap_or(&building)).map_err(failed)?;
            fs::hard_link(self.blobs.path(&file.digest), path).map_err(failed)?;
        }
        match fs::rename(&building, &dir) {
            Err(error) if !dir.exists() => Err(failed(error)),
            Err(_) => fs::remove_dir_all(&building).map(|()| dir).map_err(failed),
            Ok(()) => Ok(dir),
        }
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
    /// Files of packages.
    pub blobs: Arc<Blobs>,
    /// Compiled components.
    pub artifacts: Artifacts,
    /// Compile workers.
    pub workers: Workers,
    /// Address space of one worker.
    pub worker_memory_bytes: u64,
    /// Limits of requests where a manifest does not say otherwise.
    pub limits: RequestLimits,
}

fn package_file<'a>(package: &'a Package, name: &str) -> Result<&'a PackageFile, DeployError> {
    package.files.get(name).ok_or_else(|| DeployError::new(format!("'{name}' is not in the package")))
}

/// Names of the other files in a file's folder: where a model may keep its weights.
fn siblings(package: &Package, file: &str) -> Vec<String> {
    let folder = Path::new(file).parent();
    let beside = |name: &&String| *name != file && Path::new(name).parent() == folder;
    let file_name = |name: &String| Path::new(name).file_name().map(|name| name.to_string_lossy().into_owned());
    package.files.keys().filter(beside).filter_map(file_name).collect()
}

/// Names a graph's content: that of its file, and of the files beside it that may hold weights when there are any.
fn graph_digest(package: &Package, file: &PackageFile, name: &str) -> String {
    let folder = Path::new(name).parent();
    let weights = |other: &&String| *other != name && other.ends_with(".data") && Path::new(other).parent() == folder;
    let mut digest = file.digest.to_string();
    for other in package.files.keys().filter(weights) {
        digest.push_str(&format!("+{}", package.files[other].digest));
    }
    digest
}
