//! One invocation: a fresh instance, its limits, its answer.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method};
use tokio::sync::{mpsc, oneshot};
use wasmtime::component::{ComponentExportIndex, Instance, ResourceTableError};
use wasmtime::{Store, Trap, UpdateDeadline};

use super::bindings::tessera::endpoint::types::{Body, Failure, FailureKind, Reply, Request, Response};
use super::guest::{GuestPackage, GuestState, HANDLES_MAX, Phase, RequestContext};
use super::limits::{CpuMeter, RequestLimits};
use super::log::RequestLog;
use super::nn_host::GuestMistake;
use super::proxy::{self, Sending};
use super::slots;
use super::streaming::{RequestBody, ResponseStream, StreamError, StreamedResponse};
use super::{Exports, LoadedComponent, Sandbox};
use crate::deploy::manifest::RequestBodyMode;
use crate::http;
use crate::nn::{Executor, NamedGraphs, Tenant};
use crate::outbound::Grant;
use crate::usage::transcript::Transcript;

/// Longest message of a guest that a caller gets to see.
const MESSAGE_BYTES_MAX: usize = 4 << 10;

/// All that one invocation needs.
pub struct Invocation {
    /// The request's id, as its answer tells it.
    pub id: String,
    /// What the package tells its guest.
    pub package: Arc<GuestPackage>,
    /// The assets for `init`, where it runs in every request.
    pub init_assets: Option<Arc<BTreeMap<String, PathBuf>>>,
    /// Limits of this request.
    pub limits: RequestLimits,
    /// When its caller waits no more, or its `wall_ms` are over.
    pub deadline: Instant,
    /// The package's graphs, loaded.
    pub graphs: NamedGraphs,
    /// Where `compute` runs.
    pub executor: Arc<Executor>,
    /// Whose request this is, to the executor.
    pub tenant: Tenant,
    /// Whom the guest may call; none may call nobody.
    pub grant: Option<Grant>,
    /// The request, in the form of the component's world.
    pub request: GuestRequest,
    /// The request body.
    pub body: InvocationBody,
    /// Where the guest's lines go.
    pub log: RequestLog,
    /// Hears a streamed answer.
    pub transcript: Option<Transcript>,
}

/// A request without its body.
pub enum GuestRequest {
    /// To `tessera:endpoint`.
    Endpoint {
        /// The path below the endpoint, as `wit/endpoint.wit` names it.
        path: String,
        /// `Content-Type` as sent, or empty.
        content_type: String,
        /// Headers that the guest may ask for.
        headers: Arc<HeaderMap>,
    },
    /// None, to `tessera:endpoint`: only what comes before a request, which is `init` where it was not frozen. The answer is
    /// empty.
    Nothing,
    /// To `wasi:http/proxy`: its address has an authority, and the path is the one below the endpoint.
    Http(Box<Parts>, http::Scheme),
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
        component: &Arc<LoadedComponent>,
        invocation: Invocation,
    ) -> (Result<Answer, InvokeError>, Duration) {
        let (head_sender, mut head) = oneshot::channel();
        let mut guest = Box::pin(run(Arc::clone(component), invocation, head_sender));
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
    // Nothing has been sent yet: a guest that has failed since is told from one that has answered.
    if let Ok(response) = head.try_recv()
        && (finished.result.is_ok() || response.complete.load(Acquire))
    {
        return Ok(Answer::Streamed { response, tail: Tail::Ended(Box::new(finished)) });
    }
    match finished.result? {
        Some((status, content_type, body)) => Ok(Answer::Full { status, content_type, body }),
        None => Err(InvokeError::BadResponse("it said the response was streamed, but began none".to_owned())),
    }
}

/// Instantiates, calls `handle`, and drops everything.
async fn run(
    component: Arc<LoadedComponent>,
    invocation: Invocation,
    head: oneshot::Sender<StreamedResponse>,
) -> Finished {
    let meter = CpuMeter::new(Duration::from_millis(invocation.limits.cpu_ms));
    let (limit_ms, deadline) = (invocation.limits.wall_ms, invocation.deadline);
    // Pinned where they lie: they have kilobytes, and each hand they pass through would copy them.
    let result = match component.exports {
        Exports::Endpoint { .. } => {
            let guest = std::pin::pin!(call(component, invocation, head, deadline, Arc::clone(&meter)));
            let guest = async { slots::until_it_waits(slots::acquire().await, guest).await };
            tokio::time::timeout_at(deadline.into(), meter.measure(std::pin::pin!(guest))).await
        }
        Exports::Proxy { .. } => {
            let guest = std::pin::pin!(call_proxy(component, invocation, head, deadline, Arc::clone(&meter)));
            tokio::time::timeout_at(deadline.into(), guest).await.map(|result| result.map(|()| None))
        }
    };
    Finished { result: result.unwrap_or(Err(InvokeError::WallLimit { limit_ms })), cpu: meter.used() }
}

async fn call(
    component: Arc<LoadedComponent>,
    invocation: Invocation,
    head: oneshot::Sender<StreamedResponse>,
    deadline: Instant,
    meter: Arc<CpuMeter>,
) -> Result<Option<(u16, String, Vec<u8>)>, InvokeError> {
    let limits = invocation.limits.clone();
    let Exports::Endpoint { init: init_export, handle } = component.exports else { return Err(other_world()) };
    let (asked, headers) = match invocation.request {
        GuestRequest::Endpoint { path, content_type, headers } => (Some((path, content_type)), headers),
        GuestRequest::Nothing => (None, Arc::default()),
        GuestRequest::Http(..) => return Err(other_world()),
    };
    let mut package = invocation.package;
    if invocation.init_assets.is_some() {
        // What the compile worker tells a guest whose `init` it freezes.
        let graphs = invocation.graphs.iter().map(|(name, graph)| (name.clone(), graph.info().clone())).collect();
        package = Arc::new(GuestPackage { graphs, ..GuestPackage::clone(&package) });
    }
    let handling = Phase::Handle(RequestContext {
        id: invocation.id,
        headers,
        stream: ResponseStream::new(head, invocation.transcript),
        deadline,
        graphs: invocation.graphs,
        executor: invocation.executor,
        tenant: invocation.tenant,
        grant: invocation.grant,
    });
    // Where `init` was not frozen, it comes first.
    let (first, then) = match invocation.init_assets {
        None => (handling, None),
        Some(assets) => (Phase::Init { tenant: invocation.tenant, assets, frozen: false }, Some(handling)),
    };
    let mut state = GuestState::new(first, package, &limits, invocation.log);
    let body = match invocation.body {
        InvocationBody::Full(body) => Body::Full(body),
        InvocationBody::Chunks(chunks) => {
            let body = state.table.push(RequestBody::new(chunks)).map_err(|error| InvokeError::Host(error.into()))?;
            Body::Chunks(body)
        }
    };
    let request = asked.map(|(path, content_type)| Request { path, content_type, body });

    let mut store = new_store(&component, state, Arc::clone(&meter));
    let outcome = match instantiate(&component, &mut store, &meter).await {
        Ok(instance) => match init(init_export, &instance, &mut store, then).await {
            Ok(Ok(())) => match &request {
                Some(request) => {
                    let reply = call_handle(handle, &instance, &mut store, request).await;
                    reply.map_err(|error| explain(error, &store, &meter))
                }
                None => Ok(Ok(Reply::Full(Response { status: 200, content_type: String::new(), body: Vec::new() }))),
            },
            Ok(Err(message)) => Err(InvokeError::Init { message }),
            Err(error) => Err(explain(error, &store, &meter)),
        },
        Err(error) => Err(error),
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

/// The same for `wasi:http/proxy`, whose answer is sent while it is made. Only the guest's time is measured.
async fn call_proxy(
    component: Arc<LoadedComponent>,
    invocation: Invocation,
    head: oneshot::Sender<StreamedResponse>,
    deadline: Instant,
    meter: Arc<CpuMeter>,
) -> Result<(), InvokeError> {
    let (Exports::Proxy { handle }, GuestRequest::Http(parts, scheme)) = (component.exports, invocation.request) else {
        return Err(other_world());
    };
    let context = RequestContext {
        id: invocation.id,
        headers: Arc::default(),
        stream: ResponseStream::none(),
        deadline,
        graphs: invocation.graphs,
        executor: invocation.executor,
        tenant: invocation.tenant,
        grant: invocation.grant,
    };
    let has_body = parts.method != Method::HEAD;
    let limit_bytes = invocation.limits.response_bytes;
    let mut state = GuestState::new(Phase::Handle(context), invocation.package, &invocation.limits, invocation.log);
    let begun = proxy::begin(&mut state, (*parts, scheme), invocation.body).map_err(InvokeError::Host);
    let (arguments, answer) = begun?;
    let mut store = new_store(&component, state, Arc::clone(&meter));
    let slot = slots::acquire().await;
    let guest = async {
        let running = async {
            let instance = instantiate(&component, &mut store, &meter).await?;
            let handle = instance.get_typed_func::<proxy::Arguments, ()>(&mut store, handle);
            let handle = handle.map_err(|error| explain(error, &store, &meter))?;
            let called = handle.call_async(&mut store, arguments).await;
            called.map_err(|error| explain(error, &store, &meter))
        };
        let outcome = slots::until_it_waits(slot, std::pin::pin!(running)).await;
        (outcome, store)
    };
    let sending = Sending {
        answer,
        head,
        has_body,
        limit_bytes,
        transcript: invocation.transcript,
        guest_failed: Arc::default(),
    };
    proxy::run(meter.measure(std::pin::pin!(guest)), sending).await
}

fn other_world() -> InvokeError {
    InvokeError::Host(wasmtime::format_err!("the request has the form of another world than the component's"))
}

async fn instantiate(
    component: &LoadedComponent,
    store: &mut Store<GuestState>,
    meter: &CpuMeter,
) -> Result<Instance, InvokeError> {
    component.pre.instantiate_async(&mut *store).await.map_err(|error| {
        // Not the guest's doing, except when its memory's minimum exceeds its limit, or its start function traps.
        match store.data().memory.exceeded() || error.is::<Trap>() {
            true => explain(error, store, meter),
            false => InvokeError::Host(error),
        }
    })
}

/// Runs `init` if it is due, and goes on to the phase after it.
async fn init(
    export: ComponentExportIndex,
    instance: &Instance,
    store: &mut Store<GuestState>,
    then: Option<Phase>,
) -> wasmtime::Result<Result<(), String>> {
    let Some(then) = then else { return Ok(Ok(())) };
    let init = instance.get_typed_func::<(), (Result<(), String>,)>(&mut *store, export)?;
    let (outcome,) = init.call_async(&mut *store, ()).await?;
    let state = store.data_mut();
    // What `init` may call is another question.
    (state.phase, state.http) = (then, None);
    Ok(outcome.map_err(|mut message| {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message
    }))
}

async fn call_handle(
    export: ComponentExportIndex,
    instance: &Instance,
    store: &mut Store<GuestState>,
    request: &Request,
) -> wasmtime::Result<Result<Reply, Failure>> {
    let handle = instance.get_typed_func::<(&Request,), (Result<Reply, Failure>,)>(&mut *store, export)?;
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
            if let Some(byte) = response.content_type.bytes().find(|byte| !matches!(byte, b'\t' | b' '..=b'~')) {
                return Err(InvokeError::BadResponse(format!("its content type has the byte {byte}")));
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
