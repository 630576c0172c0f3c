//! One invocation: a fresh instance, its limits, its answer.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::HeaderMap;
use tokio::sync::{mpsc, oneshot};
use wasmtime::component::{Instance, ResourceTableError};
use wasmtime::{Store, Trap, UpdateDeadline};

use super::bindings::tessera::endpoint::types::{Body, Failure, FailureKind, Reply, Request};
use super::guest::{GuestPackage, GuestState, HANDLES_MAX, Phase, RequestContext};
use super::limits::{CpuMeter, RequestLimits};
use super::log::RequestLog;
use super::nn_host::GuestMistake;
use super::slots;
use super::streaming::{RequestBody, ResponseStream, StreamError, StreamedResponse};
use super::{LoadedComponent, Sandbox};
use crate::deploy::package::RequestBodyMode;
use crate::nn::{Executor, NamedGraphs, Tenant};
use crate::usage::transcript::Transcript;

/// Longest message of a guest that a caller gets to see.
const MESSAGE_BYTES_MAX: usize = 4 << 10;

/// All that one invocation needs.
pub struct Invocation {
    /// What the package tells its guest.
    pub package: Arc<GuestPackage>,
    /// The assets for `init`, where it runs in every request.
    pub init_assets: Option<Arc<BTreeMap<String, PathBuf>>>,
    /// Limits of this request.
    pub limits: RequestLimits,
    /// The package's graphs, loaded.
    pub graphs: NamedGraphs,
    /// Where `compute` runs.
    pub executor: Arc<Executor>,
    /// Whose request this is, to the executor.
    pub tenant: Tenant,
    /// The path below the endpoint, as `wit/endpoint.wit` names it.
    pub path: String,
    /// `Content-Type` as sent, or empty.
    pub content_type: String,
    /// Headers that the guest may ask for.
    pub headers: Arc<HeaderMap>,
    /// The request body.
    pub body: InvocationBody,
    /// Where the guest's lines go.
    pub log: RequestLog,
    /// Hears a streamed answer.
    pub transcript: Option<Transcript>,
}

/// A request body on its way to the guest.
pub enum InvocationBody {
    /// Read completely.
    Full(Vec<u8>),
    /// Arriving; `Err` says why it ended early.
    Chunks(mpsc::Receiver<Result<Bytes, StreamError>>),
}

impl InvocationBody {
    /// A body that has been read, in the form that the guest expects.
    pub fn of(body: Vec<u8>, mode: RequestBodyMode) -> InvocationBody {
        match mode {
            RequestBodyMode::Full => InvocationBody::Full(body),
            RequestBodyMode::Chunks => {
                let (sender, chunks) = mpsc::channel(1);
                // There is room for one, and the receiver is right here.
                let _ = sender.try_send(Ok(body.into()));
                InvocationBody::Chunks(chunks)
            }
        }
    }
}

/// What a guest answered.
pub enum Answer {
    /// A whole response.
    Full {
        /// HTTP status.
        status: u16,
        /// `Content-Type`.
        content_type: String,
        /// The body.
        body: Vec<u8>,
    },
    /// A response in chunks.
    Streamed {
        /// Head and body.
        response: StreamedResponse,
        /// The rest of the guest's run.
        tail: Tail,
    },
}

/// What is left of the run behind a streamed response.
pub enum Tail {
    /// The guest still runs. This must be driven for the body to go on, and dropping it ends the guest.
    Running(Pin<Box<dyn Future<Output = Finished> + Send>>),
    /// It ended before anybody looked; the body waits in its channel.
    Ended(Box<Finished>),
}

/// The end of an invocation.
pub struct Finished {
    /// The answer, or why there is none.
    pub result: Result<Option<(u16, String, Vec<u8>)>, InvokeError>,
    /// Processor time of guest and host calls.
    pub cpu: Duration,
}

/// Why an invocation gave no answer. All but `Host` are the caller's or the model's doing.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    /// The guest refused the request with a message for the caller.
    #[error("{message}")]
    Refused {
        /// Decides the status.
        kind: FailureKind,
        /// For the caller.
        message: String,
    },
    /// The guest's `init`, which runs in every request, failed.
    #[error("the model's component failed in its init: {message}")]
    Init {
        /// Its reason.
        message: String,
    },
    /// The guest trapped.
    #[error("the model's component trapped: {message}")]
    Trapped {
        /// The trap in a few words.
        message: String,
        /// The whole story with the guest's stack, for the log.
        detail: String,
    },
    /// Processor time ran out.
    #[error("the model's component used more than its {limit_ms} ms of processor time (limits.cpu_ms)")]
    CpuLimit {
        /// The limit.
        limit_ms: u64,
    },
    /// Memory ran out.
    #[error("the model's component needed more than its {limit_bytes} bytes of memory (limits.memory_bytes)")]
    MemoryLimit {
        /// The limit.
        limit_bytes: u64,
    },
    /// Time ran out.
    #[error("the request took longer than {limit_ms} ms (limits.wall_ms)")]
    WallLimit {
        /// The limit.
        limit_ms: u64,
    },
    /// The response exceeds its limit.
    #[error("the response has {bytes} bytes; the limit is {limit_bytes} (response_bytes)")]
    ResponseTooLarge {
        /// Size of the refused body.
        bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The response cannot be sent.
    #[error("the model's component gave an unusable response: {0}")]
    BadResponse(String),
    /// A backend had too much to do; the same request may succeed later.
    #[error("too many computations are waiting; try again later")]
    Overloaded,
    /// Our own failure.
    #[error("failed to start an instance")]
    Host(#[source] wasmtime::Error),
}

impl Sandbox {
    /// Runs one request in a fresh instance, until the answer is complete or its stream has begun.
    ///
    /// Cancel-safe: dropping the future ends the instance.
    ///
    /// # Errors
    /// See [`InvokeError`].
    pub async fn invoke(
        &self,
        component: &LoadedComponent,
        invocation: Invocation,
    ) -> (Result<Answer, InvokeError>, Duration) {
        let (head_sender, mut head) = oneshot::channel();
        let mut guest = Box::pin(run(component.clone(), invocation, head_sender));
        // The guest first: in the common case it ends within one poll and the head never comes.
        tokio::select! {
            biased;
            finished = &mut guest => {
                let cpu = finished.cpu;
                (whole_answer(finished, &mut head), cpu)
            }
            Ok(response) = &mut head => {
                (Ok(Answer::Streamed { response, tail: Tail::Running(guest) }), Duration::ZERO)
            }
        }
    }
}

fn whole_answer(finished: Finished, head: &mut oneshot::Receiver<StreamedResponse>) -> Result<Answer, InvokeError> {
    if let Ok(response) = head.try_recv() {
        return Ok(Answer::Streamed { response, tail: Tail::Ended(Box::new(finished)) });
    }
    match finished.result? {
        Some((status, content_type, body)) => Ok(Answer::Full { status, content_type, body }),
        None => Err(InvokeError::BadResponse("it said the response was streamed, but began none".to_owned())),
    }
}

/// Instantiates, calls `handle`, and drops everything.
async fn run(component: LoadedComponent, invocation: Invocation, head: oneshot::Sender<StreamedResponse>) -> Finished {
    let meter = CpuMeter::new(Duration::from_millis(invocation.limits.cpu_ms));
    let limit_ms = invocation.limits.wall_ms;
    let deadline = Instant::now() + Duration::from_millis(limit_ms);
    // Pinned where it lies: it has kilobytes, and each hand it passes through would copy them.
    let guest = std::pin::pin!(call(component, invocation, head, deadline, Arc::clone(&meter)));
    let result = match tokio::time::timeout_at(deadline.into(), meter.measure(guest)).await {
        Ok(result) => result,
        Err(_) => Err(InvokeError::WallLimit { limit_ms }),
    };
    Finished { result, cpu: meter.used() }
}

async fn call(
    component: LoadedComponent,
    invocation: Invocation,
    head: oneshot::Sender<StreamedResponse>,
    deadline: Instant,
    meter: Arc<CpuMeter>,
) -> Result<Option<(u16, String, Vec<u8>)>, InvokeError> {
    let limits = invocation.limits.clone();
    let mut package = invocation.package;
    if invocation.init_assets.is_some() {
        // What the compile worker tells a guest whose `init` it freezes.
        let graphs = invocation.graphs.iter().map(|(name, graph)| (name.clone(), graph.info().clone())).collect();
        package = Arc::new(GuestPackage { graphs, ..GuestPackage::clone(&package) });
    }
    let handle = Phase::Handle(RequestContext {
        headers: invocation.headers,
        stream: ResponseStream::new(head, invocation.transcript),
        deadline,
        graphs: invocation.graphs,
        executor: invocation.executor,
        tenant: invocation.tenant,
        slot: slots::acquire().await,
    });
    // Where `init` was not frozen, it comes first.
    let (first, then) = match invocation.init_assets {
        None => (handle, None),
        Some(assets) => (Phase::Init { assets, frozen: false }, Some(handle)),
    };
    let mut state = GuestState::new(first, package, &limits, invocation.log);
    let body = match invocation.body {
        InvocationBody::Full(body) => Body::Full(body),
        InvocationBody::Chunks(chunks) => {
            let body = state.table.push(RequestBody::new(chunks)).map_err(|error| InvokeError::Host(error.into()))?;
            Body::Chunks(body)
        }
    };
    let request = Request { path: invocation.path, content_type: invocation.content_type, body };

    let mut store = new_store(&component, state, Arc::clone(&meter));
    let instance = component.pre.instantiate_async(&mut store).await;
    let outcome = match instance {
        Ok(instance) => match init(&component, &instance, &mut store, then).await {
            Ok(Ok(())) => {
                let reply = call_handle(&component, &instance, &mut store, &request).await;
                reply.map_err(|error| explain(error, &store, &meter))
            }
            Ok(Err(message)) => Err(InvokeError::Init { message }),
            Err(error) => Err(explain(error, &store, &meter)),
        },
        // Not the guest's doing, except when its memory's minimum exceeds its limit.
        Err(error) if store.data().memory.exceeded() => Err(explain(error, &store, &meter)),
        Err(error) => Err(InvokeError::Host(error)),
    };
    let overloaded = store.data().overloaded;
    let result = outcome.and_then(|reply| answer(reply, &limits)).map_err(|error| match error {
        InvokeError::Refused { kind: FailureKind::Model, .. } if overloaded => InvokeError::Overloaded,
        error => error,
    });
    if result.is_ok()
        && let Phase::Handle(request) = &store.data().phase
    {
        request.stream.complete();
    }
    result
}

/// Runs `init` if it is due, and goes on to the phase after it.
async fn init(
    component: &LoadedComponent,
    instance: &Instance,
    store: &mut Store<GuestState>,
    then: Option<Phase>,
) -> wasmtime::Result<Result<(), String>> {
    let Some(handle) = then else { return Ok(Ok(())) };
    let init = instance.get_typed_func::<(), (Result<(), String>,)>(&mut *store, component.init)?;
    let (outcome,) = init.call_async(&mut *store, ()).await?;
    store.data_mut().phase = handle;
    Ok(outcome.map_err(|mut message| {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message
    }))
}

async fn call_handle(
    component: &LoadedComponent,
    instance: &Instance,
    store: &mut Store<GuestState>,
    request: &Request,
) -> wasmtime::Result<Result<Reply, Failure>> {
    let handle = instance.get_typed_func::<(&Request,), (Result<Reply, Failure>,)>(&mut *store, component.handle)?;
    Ok(handle.call_async(store, (request,)).await?.0)
}

fn new_store(component: &LoadedComponent, state: GuestState, meter: Arc<CpuMeter>) -> Store<GuestState> {
    // One host call may hand over at most a request's whole tensor budget, and a little for names and lists.
    let hostcall_bytes = state.limits.tensor_bytes.max(state.limits.response_bytes) as usize + (1 << 20);
    let mut store = Store::new(component.engine(), state);
    store.limiter(|state| &mut state.memory);
    store.set_hostcall_fuel(hostcall_bytes);
    store.set_max_component_handles(HANDLES_MAX);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(move |_| {
        if meter.over_limit() {
            return Ok(UpdateDeadline::Interrupt);
        }
        // Fairness: after each tick the other requests of this thread have their turn.
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    });
    store
}

fn answer(
    reply: Result<Reply, Failure>,
    limits: &RequestLimits,
) -> Result<Option<(u16, String, Vec<u8>)>, InvokeError> {
    match reply {
        Ok(Reply::Streamed) => Ok(None),
        Ok(Reply::Full(response)) => {
            let bytes = response.body.len() as u64;
            if bytes > limits.response_bytes {
                return Err(InvokeError::ResponseTooLarge { bytes, limit_bytes: limits.response_bytes });
            }
            if !(200..=599).contains(&response.status) {
                return Err(InvokeError::BadResponse(format!("status {} is not in 200 to 599", response.status)));
            }
            Ok(Some((response.status, response.content_type, response.body)))
        }
        Err(failure) => {
            let mut message = failure.message;
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
            Err(InvokeError::Refused { kind: failure.kind, message })
        }
    }
}

/// Tells apart the reasons that wasmtime reports alike.
fn explain(error: wasmtime::Error, store: &Store<GuestState>, meter: &CpuMeter) -> InvokeError {
    let limits = &store.data().limits;
    if meter.exceeded() && error.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
        return InvokeError::CpuLimit { limit_ms: limits.cpu_ms };
    }
    if store.data().memory.exceeded() {
        return InvokeError::MemoryLimit { limit_bytes: limits.memory_bytes };
    }
    if let Some(ResourceTableError::Full) = error.downcast_ref::<ResourceTableError>() {
        let message = format!("more than {HANDLES_MAX} handles (tensors, graphs, errors) are alive at once: drop some");
        return InvokeError::Trapped { message, detail: format!("{error:#}") };
    }
    if let Some(mistake) = error.downcast_ref::<GuestMistake>() {
        return InvokeError::Trapped { message: mistake.0.clone(), detail: format!("{error:#}") };
    }
    InvokeError::Trapped { message: error.root_cause().to_string(), detail: format!("{error:#}") }
}
