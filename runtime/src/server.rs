//! The server: opens the home, puts the parts together, serves until it is told to end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

use crate::access::{Directory, Tallies};
use crate::admission::Admission;
use crate::api::{App, FailedLogins, Signer};
use crate::audit::{self, Audit, Event};
use crate::config::ServeConfig;
use crate::control::{ControlParts, ControlPlane};
use crate::deploy::artifact::Artifacts;
use crate::deploy::signature::Trust;
use crate::deploy::worker::Workers;
use crate::deploy::{HostParts, ModelHost};
use crate::error::chain;
use crate::gateway::gate::Gate;
use crate::home::{Home, Keys};
use crate::http::body::BodyLimits;
use crate::http::tls::Tls;
use crate::http::{HttpLimits, Listeners, Servers};
use crate::memory;
use crate::nn::{Backends, Executor, Graphs};
use crate::observe::metrics::Metrics;
use crate::outbound::Outbound;
use crate::registry::Registry;
use crate::sandbox::{RequestLimits, Sandbox};
use crate::seal::files::SealedFiles;
use crate::seal::keyring::{self, Found, Keyring};
use crate::seal::rotation::Rotation;
use crate::seal::source::{self, KEY_VARIABLE, MasterKey};
use crate::store::blobs::Blobs;
use crate::store::sealed::{self, SealedStore};
use crate::store::sled::SledStore;
use crate::store::{StateStore, StoreError};
use crate::usage::{self, Recorder};

/// How often idle components and graphs are looked for, at most.
const IDLE_CHECK_MAX: Duration = Duration::from_secs(5);

/// Uploads at one time.
const UPLOADS_MAX: usize = 16;

/// How often files are looked for that nothing refers to any more.
const SWEEP_PERIOD: Duration = Duration::from_secs(3600);

/// How often tokens are looked for that have ended: a look through what is in memory.
const TOKEN_SWEEP_PERIOD: Duration = Duration::from_secs(10);

/// Time that the background threads get to end; what they do then can be done again.
const BACKGROUND_END: Duration = Duration::from_secs(1);

/// How often the store is asked whether it still works.
const STORE_CHECK: Duration = Duration::from_millis(500);

/// How long a file that nothing refers to is kept: an upload's files are named by a record only at its end.
const BLOB_GRACE: Duration = Duration::from_secs(24 * 3600);

/// Runs the server until SIGTERM or SIGINT, and drains it. `ready` is told the address as soon as requests are accepted.
///
/// # Errors
/// When the home, the store, the backends or the address cannot be had.
pub fn serve(config: &ServeConfig, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let home = Home::open_with_cache(&config.home, config.cache_dir.as_deref())?;
    let records: Arc<dyn StateStore> =
        Arc::new(SledStore::open(&home.path("store")).context("failed to open the state store")?);
    let ring = Arc::new(open_keys(config, &home, &*records)?);
    let keys = Keys::derive(&ring.secret()?);
    let sealed = Arc::new(SealedStore::new(records, Arc::clone(&ring)));
    let store: Arc<dyn StateStore> = sealed.clone();
    // A leftover of a server that was killed: nobody must take it for this one's. Only now that the store is locked, for
    // before that it may be the address of a server that runs on this home.
    let _ = std::fs::remove_file(home.path("address"));
    let blobs = Blobs::open(&home.path("blobs"), Arc::clone(&ring)).context("failed to open the files of packages")?;
    let blobs = Arc::new(blobs);
    let files = Arc::new(SealedFiles::new(home.clone(), Arc::clone(&ring)));
    let background = background_runtime()?;
    let metrics = Arc::new(Metrics::default());

    let tallies = Arc::new(Tallies::new(config.workspace_limits));
    let directory = Directory::open(Arc::clone(&store), &home, keys.tokens, Arc::clone(&tallies));
    let directory = Arc::new(background.block_on(directory).context("failed to read the principals")?);
    let (audit, usage) = start_records(config, &home, &keys, &metrics)?;
    background.block_on(audit.append(Event::own("server.start", env!("CARGO_PKG_VERSION"))))?;

    let trust = Arc::new(config.require_signed.as_deref().map_or(Ok(Trust::default()), Trust::in_keys_of)?);
    let registry = Registry::open(Arc::clone(&store), Arc::clone(&blobs), Arc::clone(&trust), Arc::clone(&tallies));
    let registry = Arc::new(registry.context("failed to read the models")?);
    let host = Arc::new(model_host(config, &home, &keys, (&blobs, &files), trust, &background)?);
    let control = Arc::new(ControlPlane::new(ControlParts {
        store,
        registry: Arc::clone(&registry),
        host,
        tallies: Arc::clone(&tallies),
        metrics: Arc::clone(&metrics),
        usage: Arc::clone(&usage),
        home: home.clone(),
        background: background.handle().clone(),
        awake_max: config.awake_endpoints_max,
    }));
    let rotation = Arc::new(Rotation {
        home: home.clone(),
        keys: ring,
        store: sealed,
        blobs: Arc::clone(&blobs),
        files,
        background: background.handle().clone(),
        progress: Mutex::default(),
    });
    let gate = Arc::new(Gate::new(Arc::clone(&directory), Arc::clone(&tallies)));
    let app = Arc::new(App {
        audit: Arc::clone(&audit),
        usage: Arc::clone(&usage),
        gate: Arc::clone(&gate),
        directory: Arc::clone(&directory),
        admission: Admission::new(
            config.concurrent_requests_max,
            config.queued_requests_max,
            Arc::clone(&tallies),
            Arc::clone(&metrics),
        ),
        tallies,
        failed_logins: FailedLogins::default(),
        metrics,
        control: Arc::clone(&control),
        body_limits: BodyLimits {
            bytes_max: config.request_body_bytes_max,
            timeout: Duration::from_millis(config.body_timeout_ms),
        },
        upload_bytes_max: config.upload_bytes_max,
        uploads: Semaphore::new(UPLOADS_MAX),
        keys: Arc::clone(&rotation),
        signer: Signer::new(keys.addresses),
        accepting: AtomicBool::new(false),
    });
    let endpoints = control.restore().context("failed to bring the endpoints back")?;
    rotation.resume();
    start_sweeps(&background, &control, blobs);
    start_token_sweep(&background, directory);
    start_idle_checks(&background, &control, gate, config);
    let outcome = run(config, &home, &app, &background, |address| {
        tracing::info!(%address, home = %home.path("").display(), endpoints, "serving");
        ready(address);
    });
    control.save_all_logs();
    // Not left to the end of the two: a request that outlives the drain would hold them.
    background.block_on(usage.flush());
    if let Err(error) = background.block_on(audit.append(Event::own("server.stop", env!("CARGO_PKG_VERSION")))) {
        tracing::error!("{error}");
    }
    // Without a bound this would wait for a model that is being loaded.
    background.shutdown_timeout(BACKGROUND_END);
    outcome
}

/// Accepts requests until a signal comes, then drains.
fn run(
    config: &ServeConfig,
    home: &Home,
    app: &Arc<App>,
    background: &Runtime,
    ready: impl FnOnce(SocketAddr),
) -> Result<()> {
    let limits = HttpLimits {
        threads: config.threads,
        connections_max: config.max_connections,
        header_timeout: Duration::from_millis(config.header_timeout_ms),
        drain_timeout: Duration::from_millis(config.drain_timeout_ms),
    };
    let tls = config.tls.as_ref().map(|files| Tls::load(files, &app.metrics)).transpose();
    let tls = tls.context("failed to set up TLS")?.map(Arc::new);
    let listeners = Listeners::bind(config.listen, limits.threads)?;
    let address = listeners.address;
    let (stop, stopped) = watch::channel(false);
    // The handlers first: a signal that comes as soon as the address is known must drain, not kill.
    let ended = background.block_on(async {
        if let Some(tls) = &tls {
            Arc::clone(tls).watch()?;
        }
        end_signals()
    })?;
    let written = if tls.is_some() { format!("https://{address}") } else { address.to_string() };
    let servers = Servers::start(app, listeners, tls.as_ref(), &limits, &stopped)?;
    app.accepting.store(true, Relaxed);
    home.write("address", written.as_bytes())?;
    ready(address);

    let failure = background.block_on(async {
        tokio::select! {
            () = ended.wait() => None,
            failure = store_failure(&app.control) => Some(failure),
        }
    });
    match &failure {
        None => tracing::info!("draining: no new requests are accepted"),
        Some(failure) => {
            tracing::error!(cause = %chain(failure), "the state store failed; ending, to be started again")
        }
    }
    app.accepting.store(false, Relaxed);
    let _ = stop.send(true);
    // A second signal means now.
    background.spawn(async {
        if let Ok(again) = end_signals() {
            again.wait().await;
            std::process::exit(130);
        }
    });
    servers.join();
    let _ = std::fs::remove_file(home.path("address"));
    tracing::info!("stopped");
    failure.map_or(Ok(()), |failure| Err(anyhow::Error::from(failure).context("the state store failed")))
}

/// Waits until the store has failed for good: after a failed fsync only a restart knows what is on disk.
async fn store_failure(control: &ControlPlane) -> StoreError {
    loop {
        tokio::time::sleep(STORE_CHECK).await;
        if let Err(failure) = control.store_health() {
            return failure;
        }
    }
}

/// The keys of the home, made at the first start. Before anything is written to a home whose keys do not fit.
fn open_keys(config: &ServeConfig, home: &Home, records: &dyn StateStore) -> Result<Keyring> {
    let own_file = home.path("node.key");
    let found = sealed::look(records).context("failed to read the records")?;
    let old_secret = if home.path(keyring::FILE).exists() { None } else { source::old_secret(&own_file)? };
    let file = config.key_file.as_ref().unwrap_or(&own_file);
    let variable = std::env::var(KEY_VARIABLE).ok();
    if variable.is_some() && config.key_file.is_some() {
        bail!("both {KEY_VARIABLE} and key_file are set: leave one of them out");
    }
    let first_start = !home.path(keyring::FILE).exists() && found != Found::Sealed;
    let master = match variable.is_none() && first_start && !file.exists() {
        true => MasterKey::create(file)?,
        false => MasterKey::read(file, variable.as_deref())?,
    };
    let previous = config.previous_key_file.as_deref().map(|file| MasterKey::read(file, None)).transpose()?;
    let ring = Keyring::open(home, &master, previous.as_ref(), old_secret, found)?;
    if ring.list().unsealed_accepted {
        tracing::warn!(
            "this home holds data from before encryption, which is not sealed: `tessera key rotate` seals it"
        );
    }
    Ok(ring)
}

fn model_host(
    config: &ServeConfig,
    home: &Home,
    keys: &Keys,
    (blobs, files): (&Arc<Blobs>, &Arc<SealedFiles>),
    trust: Arc<Trust>,
    background: &Runtime,
) -> Result<ModelHost> {
    let instances_max = u32::try_from(config.concurrent_requests_max).unwrap_or(u32::MAX);
    let sandbox = Sandbox::new(instances_max)?;
    let allocation = sandbox.allocation();
    tracing::info!(instances_max, pagemap_scan = allocation.pagemap_scan, "instances are allocated from a pool");
    let backends = Backends::discover(config.onnxruntime.as_deref()).context("failed to open ONNX Runtime")?;
    for backend in backends.available() {
        tracing::info!(backend = backend.id().name(), version = backend.version(), "backend found");
    }
    if let Some(reason) = backends.llama_absent() {
        tracing::info!("llama.cpp is absent, so that language models in GGUF cannot be served: {reason}");
    }
    if let Some(reason) = backends.onnxruntime_absent() {
        tracing::warn!("ONNX Runtime is absent, so graphs run on tract, which is slower: {reason}");
    }
    Ok(ModelHost::new(HostParts {
        home: home.clone(),
        sandbox,
        backends,
        graphs: Graphs::new(config.graph_memory_bytes_max),
        executor: Executor::new(config.executor_threads, config.executor_queue_max, config.batch_rows_max)
            .context("failed to start executors")?,
        blobs: Arc::clone(blobs),
        files: Arc::clone(files),
        trust,
        outbound: Outbound::new(config.outbound_hosts.clone()),
        artifacts: Artifacts::open(&home.cache("artifacts"), keys.artifacts).context("failed to open the artifacts")?,
        workers: Workers {
            // This very program, also after its file was replaced by another version.
            executable: PathBuf::from("/proc/self/exe"),
            timeout: Duration::from_millis(config.compile_timeout_ms),
        },
        worker_memory_bytes: config.compile_memory_bytes_max,
        background: background.handle().clone(),
        limits: RequestLimits {
            memory_bytes: config.sandbox_memory_bytes_max,
            cpu_ms: config.sandbox_cpu_ms,
            wall_ms: config.sandbox_wall_ms,
            tensor_bytes: config.tensor_bytes_max,
            response_bytes: config.response_bytes_max,
            log_bytes: config.log_bytes_per_request,
        },
    }))
}

/// The audit log, and the tables of usage and payloads.
fn start_records(
    config: &ServeConfig,
    home: &Home,
    keys: &Keys,
    metrics: &Metrics,
) -> Result<(Arc<Audit>, Arc<Recorder>)> {
    let retention = audit::Retention { days: config.audit_retention_days };
    let audit = Audit::start(&home.path("audit"), keys.audit, retention).context("failed to open the audit log")?;
    let retention = usage::Retention { days: config.usage_retention_days, bytes_max: config.usage_bytes_max };
    let usage = Recorder::start(&home.path("usage"), keys.usage, retention, metrics.usage_rows_dropped.clone())
        .context("failed to open the usage tables")?;
    Ok((Arc::new(audit), Arc::new(usage)))
}

/// Deploys, idle checks and signals run here, apart from the event loops that answer requests.
fn background_runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("background")
        .enable_all()
        .build()
        .context("failed to start the background threads")
}

/// The signals that end the server.
struct EndSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

fn end_signals() -> Result<EndSignals> {
    use tokio::signal::unix::{SignalKind, signal};
    let handle = |kind| signal(kind).context("failed to handle signals");
    Ok(EndSignals { terminate: handle(SignalKind::terminate())?, interrupt: handle(SignalKind::interrupt())? })
}

impl EndSignals {
    async fn wait(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Gives memory back that nothing has asked for in a while: endpoints with their components, and graphs, each after its
/// own time.
fn start_idle_checks(background: &Runtime, control: &Arc<ControlPlane>, gate: Arc<Gate>, config: &ServeConfig) {
    let control = Arc::clone(control);
    let component_idle = Duration::from_millis(config.component_idle_ms);
    let graph_idle = Duration::from_millis(config.graph_idle_ms);
    let period = (component_idle.min(graph_idle) / 4).clamp(Duration::from_millis(50), IDLE_CHECK_MAX);
    background.spawn(async move {
        loop {
            tokio::time::sleep(period).await;
            let sleeping = Arc::clone(&control);
            let _ = tokio::task::spawn_blocking(move || sleeping.sleep_idle(component_idle)).await;
            control.host.graphs.drop_idle(graph_idle);
            gate.remove_idle();
        }
    });
}

/// Looks for what endpoints left that are gone, and for files of packages that nothing refers to: at the start and from
/// time to time.
fn start_sweeps(background: &Runtime, control: &Arc<ControlPlane>, blobs: Arc<Blobs>) {
    let control = Arc::clone(control);
    background.spawn(async move {
        loop {
            let (registry, control, blobs) = (Arc::clone(&control.registry), Arc::clone(&control), Arc::clone(&blobs));
            let swept = tokio::task::spawn_blocking(move || {
                if let Err(error) = control.sweep() {
                    tracing::warn!("failed to look for leftovers: {}", chain(&error));
                }
                sweep_blobs(&control.registry, &blobs);
                memory::give_back();
            });
            let _ = swept.await;
            if let Err(error) = registry.sweep_uploads().await {
                tracing::warn!("failed to forget old uploads: {}", chain(&error));
            }
            tokio::time::sleep(SWEEP_PERIOD).await;
        }
    });
}

/// Removes tokens that have ended. They open nothing before either.
fn start_token_sweep(background: &Runtime, directory: Arc<Directory>) {
    background.spawn(async move {
        loop {
            tokio::time::sleep(TOKEN_SWEEP_PERIOD).await;
            match directory.sweep_tokens().await {
                Ok(0) => {}
                Ok(tokens) => tracing::info!(tokens, "removed expired tokens"),
                Err(error) => tracing::warn!("failed to remove expired tokens: {error}"),
            }
        }
    });
}

/// Removes files that no model version refers to.
fn sweep_blobs(registry: &Registry, blobs: &Blobs) {
    let kept = match registry.digests() {
        Ok(kept) => kept,
        Err(error) => return tracing::warn!("failed to look for unused files: {}", chain(&error)),
    };
    match blobs.sweep(&kept, BLOB_GRACE) {
        Ok(swept) if swept.files > 0 => {
            tracing::info!(files = swept.files, bytes = swept.bytes, "removed unused files")
        }
        Ok(_) => {}
        Err(error) => tracing::warn!("failed to remove unused files: {error}"),
    }
}
