//! The query plane: one request to an endpoint, from its token to its answer. No store, no disk when warm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::Body;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Response, StatusCode};
use serde::Deserialize;

use super::accounting::{Account, Asked, CLIENT_CLOSED_REQUEST, Output};
use super::routes::{Route, handler};
use super::{Answer, Call, not_understood, nothing_at, proxied, respond};
use crate::admission::{BodyRoom, Place};
use crate::catalog::served::{ColdStart, Rung, ServedEntity};
use crate::catalog::{Endpoint, Suspend, WorkspaceId};
use crate::clock;
use crate::deploy::manifest::RequestBodyMode;
use crate::error::{ApiError, ErrorCode};
use crate::http::body::{Maker, ResponseBody};
use crate::http::compression::Packing;
use crate::observe::metrics::Times;
use crate::sandbox::{
    self, FailureKind, Finished, Invocation, InvocationBody, InvokeError, RequestLog, StreamError, Tail, World,
};

/// What the path of an endpoint's own API is called, to its guest.
pub(super) const INVOCATIONS: &str = "invocations";

/// Names the served entity that answered.
const SERVED_MODEL_NAME: HeaderName = HeaderName::from_static("served-model-name");

/// Asks for [`COLD_START`] in the response.
const WANT_COLD_START: HeaderName = HeaderName::from_static("x-tessera-want-cold-start");

/// What the request had to bring into memory: `rung=graph;component_us=120;graphs_us=33000`.
pub(super) const COLD_START: HeaderName = HeaderName::from_static("x-tessera-cold-start");

pub(super) const ROUTES: &[Route] = &[
    Route::invoke(
        "invocations.invoke",
        "/serving-endpoints/{name}/invocations",
        "Send a request to an endpoint; components of wasi:http/proxy take every method",
        handler!(invoke),
    )
    .any_method(),
    Route::invoke(
        "invocations.below",
        "/serving-endpoints/{name}/invocations/{*path}",
        "Send a request, of any method, to a path of a component of wasi:http/proxy",
        handler!(invoke_below),
    )
    .any_method(),
    Route::invoke(
        "invocations.invoke_entity",
        "/serving-endpoints/{name}/served-models/{entity}/invocations",
        "Send a request to one served entity, whatever the traffic split",
        handler!(invoke),
    ),
    Route::invoke("invocations.chat", "/serving-endpoints/chat/completions", OPENAI, handler!(openai)),
    Route::invoke("invocations.completions", "/serving-endpoints/completions", OPENAI, handler!(openai)),
    Route::invoke("invocations.embeddings", "/serving-endpoints/embeddings", OPENAI, handler!(openai)),
    Route::invoke("invocations.v1_chat", "/v1/chat/completions", OPENAI, handler!(openai)),
    Route::invoke("invocations.v1_completions", "/v1/completions", OPENAI, handler!(openai)),
    Route::invoke("invocations.v1_embeddings", "/v1/embeddings", OPENAI, handler!(openai)),
];

const OPENAI: &str = "OpenAI: the endpoint is the body's 'model'";

async fn invoke(call: &mut Call) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint().await?;
    let entity = match call.parameter("entity") {
        "" => choose(&endpoint, Wanted::Any)?,
        entity => choose(&endpoint, Wanted::Named(entity))?,
    };
    if entity.plan.world == World::Endpoint && call.head.method != Method::POST {
        return Ok(not_understood(call, &[&Method::POST]));
    }
    let content_type = header(call, &CONTENT_TYPE);
    invoke_entity(call, endpoint, entity, INVOCATIONS, content_type).await
}

/// A path below an endpoint, which only components of `wasi:http/proxy` have.
async fn invoke_below(call: &mut Call) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint().await?;
    let entity = choose(&endpoint, Wanted::Any)?;
    if entity.plan.world == World::Endpoint {
        return Err(nothing_at(&call.head.method, call.head.uri.path()));
    }
    invoke_entity(call, endpoint, entity, INVOCATIONS, String::new()).await
}

/// `path` is the guest's name for the API.
pub(super) async fn invoke_entity(
    call: &mut Call,
    endpoint: Arc<Endpoint>,
    entity: Arc<ServedEntity>,
    path: &str,
    content_type: String,
) -> Result<Answer, ApiError> {
    let app = Arc::clone(&call.app);
    let mut room = app.admission.body_room(call.principal()?.workspace);
    let body = match (entity.plan.world, entity.plan.request_body) {
        (World::Proxy, _) if call.body.as_ref().is_none_or(Body::is_end_stream) => InvocationBody::Full(Vec::new()),
        // Packed or not: its headers say so.
        (World::Proxy, _) => arriving(call)?,
        (World::Endpoint, RequestBodyMode::Full) => {
            let packing = packing(call)?;
            InvocationBody::Full(read_whole(call, packing, &mut room).await?)
        }
        (World::Endpoint, RequestBodyMode::Chunks) => match packing(call)? {
            None => arriving(call)?,
            Some(packing) => {
                let message = format!(
                    "'{}' reads its request as it arrives; send it without {}.",
                    entity.config.name,
                    packing.name()
                );
                return Err(ApiError::new(ErrorCode::BadRequest, message).with_status(415));
            }
        },
    };
    let headers = Arc::new(std::mem::take(&mut call.head.headers));
    let request = Prepared { path: path.to_owned(), content_type, headers, body };
    let result = run(call, &endpoint, &entity, request).await;
    drop(room);
    result
}

/// The body in chunks.
fn arriving(call: &mut Call) -> Result<InvocationBody, ApiError> {
    let closed = |error: ApiError| match error.status {
        413 => StreamError::TooLarge,
        _ => StreamError::Closed,
    };
    Ok(InvocationBody::Chunks(call.body_chunks(call.app.body_limits, closed)?))
}

/// How the request's body is packed.
fn packing(call: &Call) -> Result<Option<Packing>, ApiError> {
    match call.head.headers.get(CONTENT_ENCODING) {
        None => Ok(None),
        Some(encoding) => Packing::of_body(encoding.to_str().unwrap_or("(not text)")),
    }
}

/// The whole body as its sender had it before it was packed. What is unpacked is charged too: both are in memory.
async fn read_whole(call: &mut Call, packing: Option<Packing>, room: &mut BodyRoom<'_>) -> Result<Vec<u8>, ApiError> {
    let limits = call.app.body_limits;
    let body = call.read_body(limits, |bytes| room.grow(bytes)).await?;
    match packing {
        None => Ok(body),
        Some(packing) => {
            call.head.headers.remove(CONTENT_ENCODING);
            packing.unpack(&body, limits.bytes_max, |bytes| room.grow(bytes)).await
        }
    }
}

/// The OpenAI paths: the endpoint's name is the body's `model`.
async fn openai(call: &mut Call) -> Result<Answer, ApiError> {
    /// The one field that routing needs; the guest reads the rest.
    #[derive(Deserialize)]
    struct Model {
        model: String,
    }
    let app = Arc::clone(&call.app);
    let mut room = app.admission.body_room(call.principal()?.workspace);
    let content_type = header(call, &CONTENT_TYPE);
    let packing = packing(call)?;
    let body = read_whole(call, packing, &mut room).await?;
    let headers = Arc::new(std::mem::take(&mut call.head.headers));
    let Model { model } = serde_json::from_slice(&body).map_err(|error| {
        ApiError::new(
            ErrorCode::BadRequest,
            format!("The request body must be JSON with a 'model', the endpoint's name: {error}"),
        )
    })?;
    let endpoint = call.endpoint_named(&model).await?;
    let entity = choose(&endpoint, Wanted::Any)?;
    let body = InvocationBody::of(body, entity.plan.request_body);
    let path = call.head.uri.path().trim_end_matches('/');
    let path = path.trim_start_matches("/serving-endpoints/").trim_start_matches("/v1/").to_owned();
    let request = Prepared { path, content_type, headers, body };
    let result = run(call, &endpoint, &entity, request).await;
    drop(room);
    result
}

/// Runs a request without a body, for metadata that the guest answers.
pub(super) async fn ask(call: &Call, name: &str, wanted: Wanted<'_>, path: &str) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint_named(name).await?;
    let entity = choose(&endpoint, wanted)?;
    let headers = Arc::new(call.head.headers.clone());
    let body = InvocationBody::of(Vec::new(), entity.plan.request_body);
    let request = Prepared { path: path.to_owned(), content_type: String::new(), headers, body };
    run(call, &endpoint, &entity, request).await
}

/// A request as the guest will see it.
pub(super) struct Prepared {
    pub(super) path: String,
    pub(super) content_type: String,
    pub(super) headers: Arc<hyper::HeaderMap>,
    pub(super) body: InvocationBody,
}

pub(super) async fn run(
    call: &Call,
    endpoint: &Arc<Endpoint>,
    entity: &Arc<ServedEntity>,
    request: Prepared,
) -> Result<Answer, ApiError> {
    let app = &call.app;
    let input: &[u8] = match &request.body {
        InvocationBody::Full(body) => body,
        InvocationBody::Chunks(_) => &[],
    };
    let asked = Asked { id: &call.id, path: &request.path, body: input };
    let account = Account::open(app, endpoint, entity, &*call.principal()?, asked)?;
    let mut account = Some(account);
    let outcome = run_admitted(call, entity, request, &mut account).await;
    // Otherwise its guest began, and ended it.
    if let (Err(error), Some(mut account)) = (&outcome, account) {
        account.close(error.status, Duration::ZERO, Output::None);
    }
    outcome
}

async fn run_admitted(
    call: &Call,
    entity: &Arc<ServedEntity>,
    request: Prepared,
    account: &mut Option<Account>,
) -> Result<Answer, ApiError> {
    let (app, started) = (&call.app, call.started);
    let host = &app.control.host;
    let mut limits = entity.plan.limits.clone();
    limits.wall_ms = call.wall_ms(limits.wall_ms);
    let deadline = started + Duration::from_millis(limits.wall_ms);
    let want_cold_start = request.headers.contains_key(WANT_COLD_START);
    let waiting = Instant::now();
    // While a graph loads, the request waits as a body, not as an instance.
    let ready = tokio::time::timeout_at(deadline.into(), entity.ready(host)).await.map_err(|_| {
        let message =
            format!("'{}' was not in memory within {} ms; it goes on loading.", entity.config.name, limits.wall_ms);
        ApiError::new(ErrorCode::DeadlineExceeded, message)
    })??;
    let cold = ready.cold;
    entity.metrics.climbed(cold.rung, cold.component + cold.graphs);
    let workspace = WorkspaceId(entity.plan.tenant.0);
    let place = app.admission.place(workspace, deadline.saturating_duration_since(Instant::now())).await?;

    let (guest_request, body) = proxied::guest_request(call, entity, request)?;
    let log = RequestLog::new(limits.log_bytes);
    let running = Instant::now();
    let queued = running - waiting;
    // The guest has its time from here on, but not beyond what the caller said that it waits.
    let end = running + Duration::from_millis(limits.wall_ms);
    let invocation = Invocation {
        id: call.id.clone(),
        package: Arc::clone(&entity.plan.guest),
        init_assets: entity.plan.init_assets.clone(),
        limits,
        deadline: call.deadline.map_or(end, |deadline| deadline.min(end)),
        graphs: ready.graphs,
        executor: Arc::clone(&host.executor),
        tenant: entity.plan.tenant,
        grant: entity.plan.grant.clone(),
        request: guest_request,
        body,
        log: log.clone(),
        transcript: account.as_ref().and_then(Account::transcript),
    };
    let account = account.take();
    let id = call.id.clone();
    let mut end = End { entity: Arc::clone(entity), account, log, id, started, queued, running, stage: Stage::Running };
    let (result, cpu) = host.sandbox.invoke(&ready.component, invocation).await;
    let mut response = match result {
        Ok(sandbox::Answer::Full { status, content_type, body }) => {
            let body = Bytes::from(body);
            end.record(status, cpu, None, Output::Whole { content_type: &content_type, body: &body });
            respond(status, &content_type, body)
        }
        Ok(sandbox::Answer::Streamed { response, tail }) => stream(response, tail, place, end),
        Err(error) => {
            let refused = explain(&error, entity);
            end.record(refused.status, cpu, Some(&error), Output::None);
            return Err(refused);
        }
    };
    let headers = response.headers_mut();
    if let Ok(name) = HeaderValue::from_str(&entity.config.name) {
        headers.insert(SERVED_MODEL_NAME, name);
    }
    if want_cold_start && let Ok(text) = HeaderValue::from_str(&describe(cold)) {
        headers.insert(COLD_START, text);
    }
    Ok(response)
}

/// A response whose body is still being made. The guest goes on as a task of its own, which ends with the body.
fn stream(response: sandbox::StreamedResponse, tail: Tail, place: Place, mut end: End) -> Answer {
    let status = response.status;
    let maker = match tail {
        Tail::Ended(finished) => {
            end.record_stream(status, &finished);
            None
        }
        Tail::Running(tail) => {
            end.stage = Stage::Streaming;
            let task = tokio::spawn(async move {
                // The instance lives as long as this, and so does its place.
                let _place = place;
                let finished = tail.await;
                end.record_stream(status, &finished);
            });
            Some(Maker { task: task.abort_handle(), complete: Arc::clone(&response.complete) })
        }
    };
    let body = ResponseBody::Stream { chunks: response.chunks, complete: response.complete, _maker: maker };
    let mut streamed = Response::new(body);
    *streamed.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *streamed.headers_mut() = response.headers;
    proxied::restrict(streamed.headers_mut());
    streamed
}

/// What is left to do when an invocation has ended.
struct End {
    entity: Arc<ServedEntity>,
    account: Option<Account>,
    log: RequestLog,
    id: String,
    started: Instant,
    /// Time waited before it ran.
    queued: Duration,
    running: Instant,
    stage: Stage,
}

/// How far an invocation has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    Streaming,
    Recorded,
}

impl Drop for End {
    fn drop(&mut self) {
        let output = match self.stage {
            Stage::Recorded => return,
            Stage::Streaming => Output::Streamed { whole: false },
            Stage::Running => Output::None,
        };
        self.record(CLIENT_CLOSED_REQUEST, Duration::ZERO, None, output);
    }
}

impl End {
    fn record_stream(&mut self, status: u16, finished: &Finished) {
        let error = finished.result.as_ref().err();
        self.record(status, finished.cpu, error, Output::Streamed { whole: error.is_none() });
    }

    fn record(&mut self, status: u16, cpu: Duration, error: Option<&InvokeError>, output: Output<'_>) {
        self.stage = Stage::Recorded;
        let now = Instant::now();
        let (total, predicted) = (now - self.started, now - self.running);
        self.entity.metrics.finished(status, Times { total, queued: self.queued, predicted, cpu });
        if let Some(account) = &mut self.account {
            account.close(status, predicted, output);
        }
        let failure = error.map(|error| match error {
            InvokeError::Trapped { detail, .. } => detail.clone(),
            error => error.to_string(),
        });
        let text = self.log.end(failure.as_deref());
        if !text.is_empty() {
            self.entity.log.push(&clock::rfc3339(clock::now_ms()), &self.id, &text);
        }
    }
}

/// Which entity of an endpoint a caller wants.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// Whichever the traffic split gives.
    Any,
    /// The one of this name.
    Named(&'a str),
    /// The one that serves this version of its model.
    Version(&'a str),
}

pub(super) fn choose(endpoint: &Endpoint, wanted: Wanted<'_>) -> Result<Arc<ServedEntity>, ApiError> {
    let name = &endpoint.record.name;
    let Some(serving) = &endpoint.serving else {
        let why = match (endpoint.record.suspend, &endpoint.record.failed) {
            (Some(Suspend::Stopped), _) => "it is stopped; start it with POST …/config:start".to_owned(),
            (_, Some(failed)) => format!("its deploy failed: {}", failed.message),
            (_, None) => "it is still being deployed".to_owned(),
        };
        return Err(ApiError::new(ErrorCode::BadRequest, format!("Endpoint '{name}' is not ready: {why}")));
    };
    let (found, what) = match wanted {
        Wanted::Any => return Ok(Arc::clone(serving.pick())),
        Wanted::Named(entity) => (serving.entity(entity), format!("served model '{entity}'")),
        Wanted::Version(version) => {
            let serves = |entity: &&Arc<ServedEntity>| entity.config.entity_version.to_string() == version;
            (serving.entities.iter().find(serves), format!("version '{version}'"))
        }
    };
    found.cloned().ok_or_else(|| ApiError::missing(format!("Endpoint '{name}' has no {what}.")))
}

fn header(call: &Call, name: &HeaderName) -> String {
    call.head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn describe(cold: ColdStart) -> String {
    let (component, graphs) = match cold.rung {
        Rung::Warm => (0, 0),
        _ => (cold.component.as_micros(), cold.graphs.as_micros()),
    };
    format!("rung={};component_us={component};graphs_us={graphs}", cold.rung.name())
}

/// The caller's view of a failed invocation. What the model did is 4xx: clients repeat 5xx, and this would only fail again.
fn explain(error: &InvokeError, entity: &ServedEntity) -> ApiError {
    let model = &entity.config.name;
    match error {
        InvokeError::Refused { kind, message } => refused(*kind, message),
        InvokeError::WallLimit { .. } => ApiError::new(ErrorCode::DeadlineExceeded, format!("{model}: {error}")),
        InvokeError::Overloaded => ApiError::new(ErrorCode::ResourceExhausted, format!("{model}: {error}")),
        InvokeError::Host(cause) => {
            tracing::error!(entity = model, "failed to start an instance: {cause:#}");
            ApiError::new(ErrorCode::TemporarilyUnavailable, "the server could not start an instance; its log says why")
        }
        _ => ApiError::new(ErrorCode::BadRequest, format!("{model}: {error}")),
    }
}

fn refused(kind: FailureKind, message: &str) -> ApiError {
    let error = |code| ApiError::new(code, message);
    match kind {
        FailureKind::InvalidInput | FailureKind::Model => error(ErrorCode::BadRequest),
        FailureKind::NotFound => error(ErrorCode::NotFound),
        FailureKind::TooLarge => error(ErrorCode::BadRequest).with_status(413),
        FailureKind::UnsupportedMediaType => error(ErrorCode::BadRequest).with_status(415),
        FailureKind::Timeout => error(ErrorCode::DeadlineExceeded),
        FailureKind::Unavailable => error(ErrorCode::TemporarilyUnavailable),
    }
}
