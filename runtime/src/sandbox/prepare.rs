//! From a component to an artifact: run `init` once, freeze the memory, compile. Runs in the compile worker only.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wasmtime::component::{Component, Instance, InstancePre};
use wasmtime::{Engine, Store, Trap};
use wasmtime_wasi_http::p2::bindings::ProxyIndices;
use wasmtime_wizer::{ComponentInstanceState, Wizer};

use super::bindings::EndpointIndices;
use super::guest::{GuestPackage, GuestState, Phase};
use super::limits::RequestLimits;
use super::log::RequestLog;
use super::world::World;
use super::{engine, linker};
use crate::deploy::capability;
use crate::deploy::manifest::InitTime;
use crate::deploy::schema::{self, BodySchemas};
use crate::nn::Tenant;

/// What the worker needs to know of a package.
pub struct Preparation {
    /// The component's bytes.
    pub component: Vec<u8>,
    /// The world that it is made for.
    pub world: World,
    /// What the guest may ask for.
    pub package: GuestPackage,
    /// Assets by name, and where they lie.
    pub assets: Arc<BTreeMap<String, PathBuf>>,
    /// When `init` runs.
    pub init: InitTime,
    /// Limits of the later requests; memory counts for `init` too, because every request starts from its image.
    pub limits: RequestLimits,
    /// How long `init` may run, and after it `describe`.
    pub init_ms: u64,
}

/// A compiled component with the memory that `init` left.
pub struct Prepared {
    /// Native code and memory image, for the serving engine.
    pub artifact: Vec<u8>,
    /// Times and sizes, for the build log.
    pub report: PrepareReport,
}

/// What preparing took.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PrepareReport {
    /// Time of the guest's `init`; none in a world that has none.
    pub init_ms: Option<f64>,
    /// Component with its frozen memory.
    pub snapshot_bytes: u64,
    /// Time of both compilations.
    pub compile_ms: f64,
    /// What the guest wrote during `init`.
    pub log: String,
    /// What it says that it takes and answers; none where it says nothing.
    #[serde(default)]
    pub schemas: Option<BodySchemas>,
}

/// Why a component cannot be deployed: a sentence for its author.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct PrepareError {
    /// What went wrong and how to mend it.
    pub message: String,
    /// What the guest wrote before.
    pub log: String,
}

impl PrepareError {
    fn new(message: impl Into<String>) -> PrepareError {
        PrepareError { message: message.into(), log: String::new() }
    }
}

/// Longest reason of a failed `init` that is passed on.
const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// Most of what `init` writes that is kept.
const LOG_BYTES_MAX: u64 = 64 << 10;

/// In how many ticks of the epoch the time of a call passes: it may take so much of it longer.
const TICKS: u64 = 100;

/// Runs `init` once and compiles what it leaves. A guest that has no `init` is compiled as it is, after a try whether it
/// starts; so is one that has its `init` in every request and does not describe itself: the server tries it with a request.
///
/// # Errors
/// When the component is invalid, `init` fails, traps or takes too long, or its state cannot be frozen.
pub async fn prepare(preparation: Preparation) -> Result<Prepared, PrepareError> {
    let component = &preparation.component;
    if preparation.world == World::Proxy {
        let Started { pre, log, .. } = start(component, &preparation).await?;
        ProxyIndices::new(&pre).map_err(|error| unfit(&preparation, &error))?;
        return compile(component, Findings { log: log.take(), ..Findings::default() }, Instant::now());
    }
    if preparation.init == InitTime::Request {
        if !capability::look(component).unwrap_or_default().describes() {
            return compile(component, Findings::default(), Instant::now());
        }
        let Initialized { mut store, instance, init_ms, log } = initialize(component, &preparation).await?;
        let mut findings = Findings { init_ms: Some(init_ms), log, schemas: None };
        describe(&mut store, &instance, &preparation, &mut findings).await?;
        return compile(component, findings, Instant::now());
    }
    let started = Instant::now();
    let mut wizer = Wizer::new();
    // Dropping `init` would leave the component's export of it dangling, so it stays; nothing calls it again.
    wizer.init_func("init").keep_init_func(true);
    let (context, instrumented) = wizer
        .instrument_component(component)
        .map_err(|error| PrepareError::new(format!("the component cannot be frozen after init: {}; init = \"request\" in its manifest runs init in every request instead", root(&error))))?;
    let initialized = initialize(&instrumented, &preparation).await?;
    let init_ms = initialized.init_ms;
    let mut findings = Findings { init_ms: Some(init_ms), log: initialized.log, schemas: None };

    let mut memory = FrozenState { store: initialized.store, instance: initialized.instance, failure: None };
    let snapshot = wizer.snapshot_component(&context, &mut memory).await;
    if let Some(failure) = memory.failure {
        return Err(findings.fail(format!("failed to read the memory after init: {failure}")));
    }
    let snapshot = match snapshot {
        Ok(snapshot) => snapshot,
        Err(error) => return Err(findings.fail(format!("failed to freeze the memory after init: {}", root(&error)))),
    };
    // Now, when what it leaves in memory is in nobody's way.
    describe(&mut memory.store, &memory.instance, &preparation, &mut findings).await?;
    compile(&snapshot, findings, started + Duration::from_secs_f64(init_ms / 1e3))
}

/// What running a guest has shown.
#[derive(Default)]
struct Findings {
    init_ms: Option<f64>,
    log: String,
    schemas: Option<BodySchemas>,
}

impl Findings {
    fn fail(&mut self, mut message: String) -> PrepareError {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        PrepareError { message, log: std::mem::take(&mut self.log) }
    }
}

/// Asks the initialised instance what it takes and answers, if it has words for it.
async fn describe(
    store: &mut Store<GuestState>,
    instance: &Instance,
    preparation: &Preparation,
    findings: &mut Findings,
) -> Result<(), PrepareError> {
    let Some(export) = instance.get_export_index(&mut *store, None, schema::EXPORT) else { return Ok(()) };
    let function = match instance.get_typed_func::<(), (String,)>(&mut *store, export) {
        Ok(function) => function,
        Err(error) => {
            let message = format!("the component does not fit the world tessera:endpoint/described: {}", root(&error));
            return Err(findings.fail(message));
        }
    };
    store.set_epoch_deadline(TICKS);
    let outcome = function.call_async(&mut *store, ()).await;
    findings.log.push_str(&store.data().log.take());
    let failure = match outcome {
        Ok((text,)) => match BodySchemas::parse(&text) {
            Ok(schemas) => {
                findings.schemas = Some(schemas).filter(|schemas| !schemas.is_empty());
                return Ok(());
            }
            Err(reason) => format!("the component's description of what it takes and answers is refused: {reason}"),
        },
        Err(error) => ended(store, preparation, schema::EXPORT, &error),
    };
    Err(findings.fail(failure))
}

/// Why a call of the guest ended without a result.
fn ended(store: &Store<GuestState>, preparation: &Preparation, call: &str, error: &wasmtime::Error) -> String {
    if error.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
        return format!("the component's {call} took longer than {} ms", preparation.init_ms);
    }
    if store.data().memory.exceeded() {
        return format!(
            "the component's {call} needed more than {} bytes of memory (raise limits.memory_bytes in its manifest)",
            preparation.limits.memory_bytes
        );
    }
    format!("the component's {call} trapped: {}", root(error))
}

fn compile(component: &[u8], findings: Findings, started: Instant) -> Result<Prepared, PrepareError> {
    let Findings { init_ms, log, schemas } = findings;
    match engine::compiling().and_then(|engine| engine.precompile_component(component)) {
        Ok(artifact) => {
            let compile_ms = started.elapsed().as_secs_f64() * 1e3;
            let report = PrepareReport { init_ms, snapshot_bytes: component.len() as u64, compile_ms, log, schemas };
            Ok(Prepared { artifact, report })
        }
        Err(error) => Err(PrepareError { message: format!("failed to compile the component: {}", root(&error)), log }),
    }
}

/// A component that was instantiated: its start functions have run.
struct Started {
    pre: InstancePre<GuestState>,
    store: Store<GuestState>,
    instance: Instance,
    log: RequestLog,
}

async fn start(component: &[u8], preparation: &Preparation) -> Result<Started, PrepareError> {
    let engine = engine::initializing().map_err(|error| PrepareError::new(root(&error)))?;
    let component = Component::new(&engine, component)
        .map_err(|error| PrepareError::new(format!("failed to compile the component: {}", root(&error))))?;
    let linker = linker(&engine).map_err(|error| PrepareError::new(root(&error)))?;
    let pre = linker.instantiate_pre(&component).map_err(|error| unfit(preparation, &error))?;

    let log = RequestLog::new(preparation.limits.log_bytes.min(LOG_BYTES_MAX));
    let phase = Phase::Init { tenant: Tenant(0), assets: Arc::clone(&preparation.assets), frozen: true };
    let package = Arc::new(preparation.package.clone());
    let state = GuestState::new(phase, package, &preparation.limits, log.clone());
    let mut store = Store::new(&engine, state);
    store.limiter(|state| &mut state.memory);
    // Reading the whole memory out is one host call.
    store.set_hostcall_fuel(usize::MAX);
    store.set_epoch_deadline(TICKS);
    // From here on, because instantiating runs the guest's start functions.
    tick(&engine, Duration::from_millis(preparation.init_ms) / TICKS as u32);
    let instance = pre
        .instantiate_async(&mut store)
        .await
        .map_err(|error| PrepareError::new(format!("failed to start the component: {}", root(&error))))?;
    Ok(Started { pre, store, instance, log })
}

fn unfit(preparation: &Preparation, error: &wasmtime::Error) -> PrepareError {
    let world = preparation.world.name();
    PrepareError::new(format!("the component does not fit the world {world}: {}", root(error)))
}

struct Initialized {
    store: Store<GuestState>,
    instance: Instance,
    init_ms: f64,
    log: String,
}

/// Instantiates the instrumented component and calls its `init`.
async fn initialize(instrumented: &[u8], preparation: &Preparation) -> Result<Initialized, PrepareError> {
    let Started { pre, mut store, instance, log } = start(instrumented, preparation).await?;
    let exports = EndpointIndices::new(&pre).map_err(|error| unfit(preparation, &error))?;
    let endpoint = exports.load(&mut store, &instance).map_err(|error| unfit(preparation, &error))?;

    let started = Instant::now();
    let outcome = endpoint.call_init(&mut store).await;
    let init_ms = started.elapsed().as_secs_f64() * 1e3;
    let failure = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(message)) => Some(format!("the component's init failed: {message}")),
        Err(error) => Some(ended(&store, preparation, "init", &error)),
    };
    let log = log.take();
    if let Some(message) = failure {
        return Err(Findings { log, ..Findings::default() }.fail(message));
    }
    // The epoch that stops `init` must not stop the reading of its memory.
    store.set_epoch_deadline(u64::MAX / 2);
    Ok(Initialized { store, instance, init_ms, log })
}

/// Counts the time of calls. The thread ends with the engine.
fn tick(engine: &Engine, time: Duration) {
    let engine = engine.weak();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(time);
            match engine.upgrade() {
                Some(engine) => engine.increment_epoch(),
                None => return,
            }
        }
    });
}

fn root(error: &wasmtime::Error) -> String {
    error.root_cause().to_string()
}

/// Reads the memory and globals of the initialised instance through the functions that the instrumentation added.
struct FrozenState {
    store: Store<GuestState>,
    instance: Instance,
    /// The interface has no error result, so the first failure is kept here.
    failure: Option<String>,
}

impl FrozenState {
    async fn read<R>(&mut self, instance: &str, function: &str) -> Option<R>
    where
        R: wasmtime::component::Lift + Send + Sync + 'static,
    {
        let outcome = self.try_read(instance, function).await;
        outcome.map_err(|error| self.failure.get_or_insert(format!("{error:#}")).len()).ok()
    }

    async fn try_read<R>(&mut self, instance: &str, function: &str) -> wasmtime::Result<R>
    where
        R: wasmtime::component::Lift + Send + Sync + 'static,
    {
        let missing = || wasmtime::format_err!("the instrumentation lacks {instance}#{function}");
        let (_, parent) = self.instance.get_export(&mut self.store, None, instance).ok_or_else(missing)?;
        let (_, index) = self.instance.get_export(&mut self.store, Some(&parent), function).ok_or_else(missing)?;
        let function = self.instance.get_typed_func::<(), (R,)>(&mut self.store, index)?;
        Ok(function.call_async(&mut self.store, ()).await?.0)
    }
}

impl ComponentInstanceState for FrozenState {
    async fn call_func_ret_list_u8(&mut self, instance: &str, function: &str, contents: impl FnOnce(&[u8]) + Send) {
        contents(&self.read::<Vec<u8>>(instance, function).await.unwrap_or_default());
    }

    async fn call_func_ret_s32(&mut self, instance: &str, function: &str) -> i32 {
        self.read(instance, function).await.unwrap_or_default()
    }

    async fn call_func_ret_s64(&mut self, instance: &str, function: &str) -> i64 {
        self.read(instance, function).await.unwrap_or_default()
    }

    async fn call_func_ret_f32(&mut self, instance: &str, function: &str) -> u32 {
        self.read::<f32>(instance, function).await.unwrap_or_default().to_bits()
    }

    async fn call_func_ret_f64(&mut self, instance: &str, function: &str) -> u64 {
        self.read::<f64>(instance, function).await.unwrap_or_default().to_bits()
    }
}
