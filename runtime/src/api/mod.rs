//! The HTTP API. [`answer`] wraps every request once (id, error body, log line); [`route`] is the route table.

mod discovery;
mod endpoints;
mod files;
mod invocations;
mod keys;
mod registry;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, mpsc};

use self::invocations::Wanted;
use crate::admission::Admission;
use crate::auth::{Auth, Principal};
use crate::control::ControlPlane;
use crate::error::{ApiError, ErrorCode};
use crate::http::body::{self, BodyLimits, ResponseBody};
use crate::observe::metrics::Metrics;
use crate::seal::rotation::Rotation;

/// Longest path with its query.
const URI_BYTES_MAX: usize = 8 << 10;

/// Largest body of a control-plane request.
const CONTROL_BODY_BYTES_MAX: u64 = 1 << 20;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Everything that a request may need.
pub struct App {
    /// Who calls.
    pub auth: Auth,
    /// Endpoints and models.
    pub control: Arc<ControlPlane>,
    /// Who may run now.
    pub admission: Admission,
    /// Series of the whole server.
    pub metrics: Arc<Metrics>,
    /// Limits of invocations' bodies.
    pub body_limits: BodyLimits,
    /// Largest uploaded file.
    pub upload_bytes_max: u64,
    /// Uploads at one time; each holds a thread that writes.
    pub uploads: Semaphore,
    /// The keys that seal what is kept.
    pub keys: Arc<Rotation>,
    /// Whether new work is taken: false before the start is complete and while draining.
    pub accepting: AtomicBool,
}

/// One request on its way, with who sent it known only where a route asked.
pub(crate) struct Call {
    app: Arc<App>,
    head: Parts,
    /// None once a handler has taken it.
    body: Option<Incoming>,
    peer: SocketAddr,
    id: String,
    started: Instant,
}

type Answer = Response<ResponseBody>;

/// Answers one request. Never fails: what goes wrong becomes an error body.
pub async fn answer(app: Arc<App>, request: Request<Incoming>, peer: SocketAddr) -> Answer {
    let id = request_id();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let (head, body) = request.into_parts();
    let mut call = Call { app, head, body: Some(body), peer, id: id.clone(), started: Instant::now() };
    let started = call.started;
    let open_inference = path.starts_with("/v2/");
    // A panic here is our bug; it costs one request, and the log says where.
    let outcome = futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(route(&mut call))).await;
    if let (Ok(Err(_)), Some(body)) = (&outcome, &mut call.body) {
        body::discard(body).await;
    }
    let mut response = match outcome {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => render_error(&error, &id, open_inference),
        Err(_) => {
            tracing::error!(request_id = id, %method, path, "a handler panicked");
            let error = ApiError::new(ErrorCode::InternalError, "the server failed on this request; its log says why");
            render_error(&error, &id, open_inference)
        }
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    tracing::debug!(
        request_id = id,
        %method,
        path,
        status = response.status().as_u16(),
        duration_us = started.elapsed().as_micros() as u64,
        "request"
    );
    response
}

/// The route table: method and path, and nothing else, decide who answers.
async fn route(call: &mut Call) -> Result<Answer, ApiError> {
    let uri = &call.head.uri;
    if uri.path_and_query().is_some_and(|text| text.as_str().len() > URI_BYTES_MAX) {
        let message = format!("The request's path exceeds {URI_BYTES_MAX} bytes.");
        return Err(ApiError::new(ErrorCode::BadRequest, message).with_status(414));
    }
    let path = uri.path().to_owned();
    let segments = segments(&path)?;
    let segments: Vec<&str> = segments.iter().map(AsRef::as_ref).collect();
    let (get, post) = (Method::GET, Method::POST);
    match (call.head.method.clone(), segments.as_slice()) {
        // The query plane.
        (method, ["serving-endpoints", name, "invocations"]) if method == post => {
            invocations::invoke(call, name, Wanted::Any, "invocations").await
        }
        (method, ["serving-endpoints", name, "served-models", entity, "invocations"]) if method == post => {
            invocations::invoke(call, name, Wanted::Named(entity), "invocations").await
        }
        (method, ["serving-endpoints" | "v1", openai @ ..])
            if method == post && matches!(openai, ["embeddings" | "completions"] | ["chat", "completions"]) =>
        {
            invocations::openai(call, &openai.join("/")).await
        }
        (method, ["v2", rest @ ..]) if method == get => discovery::open_inference(call, rest).await,
        (method, ["v2", "models", name, "infer"]) if method == post => {
            invocations::invoke(call, name, Wanted::Any, "v2/infer").await
        }
        (method, ["v2", "models", name, "versions", version, "infer"]) if method == post => {
            invocations::invoke(call, name, Wanted::Version(version), "v2/infer").await
        }

        // The control plane.
        (method, ["api", "2.0", "serving-endpoints"]) if method == get => endpoints::list(call).await,
        (method, ["api", "2.0", "serving-endpoints"]) if method == post => endpoints::create(call).await,
        (method, ["api", "2.0", "serving-endpoints", name]) if method == get => endpoints::get(call, name).await,
        (Method::DELETE, ["api", "2.0", "serving-endpoints", name]) => endpoints::delete(call, name).await,
        (Method::PUT, ["api", "2.0", "serving-endpoints", name, "config"]) => {
            endpoints::update_config(call, name).await
        }
        (
            method,
            ["api", "2.0", "serving-endpoints", name, "served-models", entity, what @ ("logs" | "build-logs")],
        ) if method == get => endpoints::logs(call, name, entity, what).await,

        // The model registry.
        (_, ["api", "2.0", "mlflow", "unity-catalog", what @ ..]) => registry::route(call, what).await,
        (_, ["api", "2.0", "fs", what @ ("files" | "directories"), "Models", path @ ..]) => {
            files::route(call, what, path).await
        }

        (_, ["api", "2.0", "tessera", "keys", what @ ..]) => keys::route(call, what).await,

        // Discovery, health, metrics.
        (method, ["health"]) if method == get => discovery::health(),
        (method, ["ready"]) if method == get => discovery::ready(call),
        (method, ["metrics"]) if method == get => discovery::metrics(call).await,
        (method, [".well-known", "databricks-config"]) if method == get => discovery::databricks_config(call),
        (method, ["api", "2.0", "preview", "scim", "v2", "Me"]) if method == get => discovery::me(call),
        (method, _) => Err(ApiError::new(
            ErrorCode::NotFound,
            format!("There is nothing at {method} {path}. The paths are in the README under 'API'."),
        )),
    }
}

/// The decoded parts of a path; a trailing slash does not count, because MLflow sends one.
fn segments(path: &str) -> Result<Vec<std::borrow::Cow<'_, str>>, ApiError> {
    let parts = path.trim_start_matches('/').trim_end_matches('/').split('/');
    parts
        .map(|part| percent_decode_str(part).decode_utf8())
        .collect::<Result<_, _>>()
        .map_err(|_| ApiError::new(ErrorCode::BadRequest, "The request's path is not UTF-8."))
}

impl Call {
    /// Who calls.
    fn principal(&self) -> Result<Arc<Principal>, ApiError> {
        self.app
            .auth
            .authenticate(&self.head.headers)
            .inspect_err(|_| self.app.metrics.count_refusal("unauthenticated"))
    }

    /// A value of the query.
    fn query(&self, name: &str) -> Option<String> {
        let query = self.head.uri.query()?;
        form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    /// The whole body; `grow` allows each piece before it is kept. What is left of a refused one stays, to be thrown away.
    async fn read_body(
        &mut self,
        limits: BodyLimits,
        grow: impl FnMut(u64) -> Result<(), ApiError>,
    ) -> Result<Vec<u8>, ApiError> {
        match &mut self.body {
            Some(body) => body::read(body, limits, grow).await,
            None => Ok(Vec::new()),
        }
    }

    /// The body in chunks, as they arrive.
    fn body_chunks<E: Send + 'static>(
        &mut self,
        limits: BodyLimits,
        error: impl Fn(ApiError) -> E + Send + 'static,
    ) -> Result<mpsc::Receiver<Result<Bytes, E>>, ApiError> {
        if let Some(body) = &self.body {
            body::refuse_large(body, limits)?;
        }
        let body =
            self.body.take().ok_or_else(|| ApiError::new(ErrorCode::InternalError, "the body was read before"))?;
        Ok(body::chunks(body, limits, error))
    }

    /// Who calls, and the JSON sent.
    async fn json<T: DeserializeOwned>(&mut self) -> Result<(Arc<App>, Arc<Principal>, T), ApiError> {
        let principal = self.principal()?;
        let limits = BodyLimits { bytes_max: CONTROL_BODY_BYTES_MAX, ..self.app.body_limits };
        // Small, so it is not charged to anybody.
        let bytes = self.read_body(limits, |_| Ok(())).await?;
        // Some clients send no body where every field is optional.
        let bytes = if bytes.is_empty() { b"{}".as_slice() } else { &bytes };
        let value = serde_json::from_slice(bytes).map_err(|error| {
            ApiError::new(ErrorCode::BadRequest, format!("The request body is not as expected: {error}"))
        })?;
        Ok((Arc::clone(&self.app), principal, value))
    }
}

/// A JSON response.
fn json(value: &impl Serialize) -> Result<Answer, ApiError> {
    let text = serde_json::to_vec(value).map_err(|error| ApiError::internal("write a response", &error))?;
    Ok(respond(200, "application/json", text))
}

fn respond(status: u16, content_type: &str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(ResponseBody::from(body.into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    response
}

/// The one place where an error becomes a response.
fn render_error(error: &ApiError, request_id: &str, open_inference: bool) -> Answer {
    let body = if open_inference {
        serde_json::json!({ "error": error.message })
    } else {
        serde_json::json!({
            "error_code": error.code.name(),
            "message": error.message,
            "details": [{
                "@type": "type.googleapis.com/google.rpc.RequestInfo",
                "request_id": request_id,
                "serving_data": "",
            }],
        })
    };
    let mut response = respond(error.status, "application/json", body.to_string());
    let headers = response.headers_mut();
    match error.status {
        401 => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
        429 | 503 => drop(headers.insert(RETRY_AFTER, HeaderValue::from_static("1"))),
        // The OpenAI client repeats every 5xx; a request that ran out of its time would only do so again.
        504 => drop(headers.insert("x-should-retry", HeaderValue::from_static("false"))),
        _ => {}
    }
    response
}

/// 32 hex digits in the form of a UUID. Unique, not secret.
fn request_id() -> String {
    let id = fastrand::u128(..);
    let hex = format!("{id:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
