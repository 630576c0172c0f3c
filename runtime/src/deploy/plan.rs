//! How a served entity gets into memory: decided from its package and the server's limits, before anything slow is done.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::artifact::ArtifactKey;
use super::manifest::{ComponentSource, Golden, GraphSpec, InitTime, RequestBodyMode};
use super::package::{Package, PackageFile};
use super::{DeployError, ModelHost, profiles, stock, unfinished};
use crate::catalog::served::PlannedGraph;
use crate::catalog::{EndpointRecord, EntityConfig, WorkspaceId};
use crate::nn::{Backend, ExecutionTarget, GraphKey, GraphSource, LoadHost, Tenant, Threads};
use crate::outbound::Grant;
use crate::sandbox::{GuestPackage, RequestLimits, World};
use crate::secrets::is_reference;

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
    pub(super) init: InitTime,
    pub(super) component: ComponentSource,
    pub(super) golden: Option<Golden>,
    /// What the guest may ask for during `init`.
    pub(super) init_settings: BTreeMap<String, String>,
    /// Where the package's files lie under their names.
    pub(super) dir: PathBuf,
    pub(super) assets: Vec<String>,
}

impl Plan {
    /// Whether the files of the package lie where it says.
    pub fn is_laid_out(&self) -> bool {
        self.dir.exists()
    }

    /// Whether answers may tell of tokens: those of tables and tensors never do.
    pub fn may_count_tokens(&self) -> bool {
        self.component != ComponentSource::Stock("scoring".to_owned())
    }
}

impl ModelHost {
    /// Decides how an entity is served, once the files of its package are laid out. `secrets` are settings for requests
    /// alone. Quick enough for an endpoint's first request. Blocks.
    ///
    /// # Errors
    /// When nobody who is trusted has signed the package, a backend or target is not available here, a limit is over the
    /// server's, or a host may not be called from here.
    pub fn plan(
        &self,
        owner: &EndpointRecord,
        entity: &EntityConfig,
        package: &Package,
        secrets: BTreeMap<String, String>,
    ) -> Result<Plan, DeployError> {
        self.trust.check(&package.files, &self.blobs).map_err(DeployError::Model)?;
        let grant = self.outbound.grant(&package.grants.http).map_err(DeployError::Model)?;
        let dir = self.package_dir(package)?;
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
            let digest = graph_digest(workspace, package, file, name)?;
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

    fn package_dir(&self, package: &Package) -> Result<PathBuf, DeployError> {
        Ok(self.home.cache("packages").join(package_name(package)?))
    }

    /// Gives a package's files their names, in plain, once: they are mapped, and models that keep weights in a file beside
    /// them need it. What is there was verified when it was made; a sweep removes it when no endpoint needs it. Blocks, for
    /// as long as it takes to copy what may be gigabytes.
    ///
    /// # Errors
    /// When the files cannot be read or written.
    pub fn lay_out(&self, package: &Package) -> Result<(), DeployError> {
        complete_dir(&self.package_dir(package)?, |building| self.copy_files(package, building))
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

/// The package's settings, overridden by the entity's. Without secrets: these settings end up in artifacts.
fn settings(entity: &EntityConfig, package: &Package) -> BTreeMap<String, String> {
    let mut settings = package.settings.clone();
    let plain = entity.environment_vars.iter().filter(|(_, value)| !is_reference(value));
    settings.extend(plain.map(|(name, value)| (name.clone(), value.clone())));
    settings
}

/// Makes a folder that is complete once it exists: built aside, each file synced, and renamed. Of two that make the same at
/// one time the first stays: nobody waits for another's gigabytes.
fn complete_dir(dir: &Path, build: impl FnOnce(&Path) -> Result<(), DeployError>) -> Result<(), DeployError> {
    if dir.exists() {
        return Ok(());
    }
    let building = dir.with_file_name(unfinished());
    let built = build(&building).and_then(|()| match fs::rename(&building, dir) {
        Ok(()) => Ok(()),
        Err(error) => Err(DeployError::host("lay out the files of a package", &error)),
    });
    if built.is_err() {
        let _ = fs::remove_dir_all(&building);
    }
    if dir.exists() { Ok(()) } else { built }
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
fn graph_digest(
    workspace: WorkspaceId,
    package: &Package,
    file: &PackageFile,
    name: &str,
) -> Result<String, DeployError> {
    let folder = Path::new(&package.graphs[name].file).parent().unwrap_or(Path::new(""));
    let mut digest = format!("{workspace}/{}", file.digest);
    for weights in package.weights.get(name).into_iter().flatten() {
        // Without them two versions whose weights alone differ would be taken for one.
        let weights_file = package_file(package, &folder.join(weights).to_string_lossy())?;
        digest.push_str(&format!("+{weights}={}", weights_file.digest));
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::blobs::Digest;

    #[test]
    fn two_that_lay_out_the_same_package_do_not_wait_for_each_other() {
        let packages = tempfile::tempdir().unwrap();
        let dir = packages.path().join("package");
        let both_build = std::sync::Barrier::new(2);
        let lay_out = || {
            complete_dir(&dir, |building| {
                fs::create_dir(building).unwrap();
                fs::write(building.join("model.onnx"), "weights").unwrap();
                both_build.wait();
                Ok(())
            })
        };
        std::thread::scope(|threads| {
            let other = threads.spawn(lay_out);
            lay_out().unwrap();
            other.join().unwrap().unwrap();
        });
        assert_eq!(fs::read(dir.join("model.onnx")).unwrap(), b"weights");
        assert_eq!(fs::read_dir(packages.path()).unwrap().count(), 1, "the copy that came second is gone");
        // What fails leaves nothing behind.
        let refused = complete_dir(&packages.path().join("other"), |building| {
            fs::create_dir(building).unwrap();
            Err(DeployError::Host("the disk is full".to_owned()))
        });
        assert!(refused.is_err());
        assert_eq!(fs::read_dir(packages.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_graph_without_the_digest_of_its_weights_has_no_name() {
        let file = PackageFile { digest: Digest([1; 32]), bytes: 1 };
        let package = |folder: &str| -> Package {
            let files = [format!("{folder}m.onnx"), "data/w.bin".to_owned()].map(|name| (name, file.clone()));
            let mut package: Package = serde_json::from_value(serde_json::json!({
                "files": {}, "component": { "stock": "scoring" }, "assets": [], "settings": {}, "limits": {},
                "graphs": { "m": { "file": format!("{folder}m.onnx") } }, "weights": { "m": ["w.bin"] },
            }))
            .unwrap();
            package.files = files.into_iter().collect();
            package
        };
        let digest = |package: Package| graph_digest(WorkspaceId(7), &package, &file, "m");
        assert!(digest(package("data/")).unwrap().contains("+w.bin=0101"));
        assert!(digest(package("other/")).unwrap_err().to_string().contains("'other/w.bin' is not in the package"));
    }
}
