//! The HTTP API. [`answer`] wraps every request once (id, error body, log line); [`dispatch`] finds its route, whose
//! table is in [`routes`].

mod accounting;
mod audited;
mod declared_schema;
mod discovery;
mod endpoint_reports;
mod endpoint_settings;
mod endpoints;
mod grpc;
mod invocations;
mod keys;
mod model_schema;
mod oauth;
mod open_inference;
mod openai_models;
mod openapi;
mod permissions;
mod proxied;
mod registry;
mod routes;
mod scim;
mod secrets;
mod tokens;
mod tracking;
mod usage;
mod wire;
mod workspaces;

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, mpsc};

pub use self::oauth::FailedLogins;
pub use self::registry::Signer;
use self::routes::{Access, Content, Done, Effect, Found, Reads, Route, Wrote};
use crate::access::{Action, Directory, Level, Object, Principal, Tallies, authorize};
use crate::admission::Admission;
use crate::audit::Audit;
use crate::catalog::Endpoint;
use crate::control::ControlPlane;
use crate::error::{ApiError, ErrorCode};
use crate::gateway::gate::Gate;
use crate::http::Scheme;
use crate::http::body::{self, BodyLimits, ResponseBody};
use crate::observe::metrics::Metrics;
use crate::registry::ModelRecord;
use crate::seal::rotation::Rotation;
use crate::usage::Recorder;

/// Longest path with its query.
const URI_BYTES_MAX: usize = 8 << 10;

/// Largest body of a control-plane request.
const CONTROL_BODY_BYTES_MAX: u64 = 1 << 20;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Everything that a request may need.
pub struct App {
    /// Who calls.
    pub directory: Arc<Directory>,
    /// Endpoints and models.
    pub control: Arc<ControlPlane>,
    /// Who may run now.
    pub admission: Admission,
    /// Who changed what.
    pub audit: Arc<Audit>,
    /// Who used what.
    pub usage: Arc<Recorder>,
    /// How much may be asked for, by whom.
    pub gate: Arc<Gate>,
    /// What workspaces use of their quotas.
    pub tallies: Arc<Tallies>,
    /// Who sent wrong secrets lately.
    pub failed_logins: FailedLogins,
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
    /// Signs addresses of files.
    pub signer: Signer,
    /// Whether new work is taken: false before the start is complete and while draining.
    pub accepting: AtomicBool,
}

/// One request on its way.
pub(crate) struct Call {
    app: Arc<App>,
    head: Parts,
    /// None until it is found.
    route: Option<&'static Route>,
    /// Of the path, by name.
    parameters: Vec<(&'static str, String)>,
    /// Who sent it; none where the route does not ask.
    principal: Option<Arc<Principal>>,
    /// What it is about, once that is found: for the audit log.
    object: OnceLock<String>,
    /// None once a handler has taken it.
    body: Option<Incoming>,
    peer: SocketAddr,
    scheme: Scheme,
    id: String,
    started: Instant,
    /// Until when the caller waits, where it says so.
    deadline: Option<Instant>,
}

/// How errors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// The Databricks API's, and everywhere that has none of its own.
    Databricks,
    /// The Open Inference Protocol's over REST.
    OpenInference,
    /// In headers.
    Grpc,
}

impl Dialect {
    fn of(head: &Parts) -> Dialect {
        let path = head.uri.path();
        match path {
            _ if grpc::is_asked(&head.headers) => Dialect::Grpc,
            _ if is_open_inference(path) => Dialect::OpenInference,
            _ => Dialect::Databricks,
        }
    }
}

/// Whether errors of this path have the form of the Open Inference Protocol.
fn is_open_inference(path: &str) -> bool {
    path.strip_prefix("/v2").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

type Answer = Response<ResponseBody>;

/// Answers one request. Never fails: what goes wrong becomes an error body.
pub async fn answer(app: Arc<App>, request: Request<Incoming>, peer: SocketAddr, scheme: Scheme) -> Answer {
    let (head, body) = request.into_parts();
    let call = Call {
        app,
        head,
        route: None,
        parameters: Vec::new(),
        principal: None,
        object: OnceLock::new(),
        body: Some(body),
        peer,
        scheme,
        id: request_id(),
        started: Instant::now(),
        deadline: None,
    };
    let found = routes::find(&call.head.method, call.head.uri.path());
    if !matches!(&found, Found::Route(route, _) if route.effect == Effect::Change) {
        return answer_call(call, found).await;
    }
    // A change that has begun goes on when its caller goes: what is on disk must be in memory and in the audit log, too.
    let (id, dialect) = (call.id.clone(), Dialect::of(&call.head));
    let changed = tokio::spawn(answer_call(call, found)).await;
    changed.unwrap_or_else(|error| render_error(&ApiError::internal("finish a change", &error), &id, dialect))
}

async fn answer_call(mut call: Call, found: Found) -> Answer {
    let dialect = Dialect::of(&call.head);
    // A panic here is our bug; it costs one request, and the log says where.
    let outcome = futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(dispatch(&mut call, found))).await;
    if let (Ok(Err(_)), Some(body)) = (&outcome, &mut call.body) {
        body::discard(body).await;
    }
    let (id, method, path) = (call.id.as_str(), &call.head.method, call.head.uri.path());
    let mut response = match outcome {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => render_error(&error, id, dialect),
        Err(_) => {
            tracing::error!(request_id = id, %method, path, "a handler panicked");
            let error = ApiError::new(ErrorCode::InternalError, "the server failed on this request; its log says why");
            render_error(&error, id, dialect)
        }
    };
    if let Ok(value) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    tracing::debug!(
        request_id = id,
        scheme = call.scheme.name(),
        %method,
        path,
        status = response.status().as_u16(),
        duration_us = call.started.elapsed().as_micros() as u64,
        "request"
    );
    response
}

/// Asks who calls, and answers as the route does.
async fn dispatch(call: &mut Call, found: Found) -> Result<Answer, ApiError> {
    let uri = &call.head.uri;
    if uri.path_and_query().is_some_and(|text| text.as_str().len() > URI_BYTES_MAX) {
        let message = format!("The request's path exceeds {URI_BYTES_MAX} bytes.");
        return Err(ApiError::new(ErrorCode::BadRequest, message).with_status(414));
    }
    let (method, path) = (&call.head.method, uri.path());
    match found {
        Found::Route(route, parameters) => {
            call.route = Some(route);
            call.parameters = decoded(parameters)?;
            if let Err(error) = call.admit(route.access) {
                return audited::record(call, route, Err(error)).await;
            }
            if let Err(error) = call.admit_to_named(route).await {
                return audited::record(call, route, Err(error)).await;
            }
            if route.effect == Effect::Change {
                call.app.audit.check().await?;
            }
            let outcome = route.answer(call).await;
            audited::record(call, route, outcome).await
        }
        Found::OtherMethods(methods) => Ok(not_understood(call, &methods)),
        Found::Nothing if grpc::is_asked(&call.head.headers) => {
            Err(ApiError::new(ErrorCode::NotImplemented, format!("There is no method of gRPC at {path}.")))
        }
        Found::Nothing => Err(nothing_at(method, path)),
    }
}

/// 405, with the methods that the path understands.
fn not_understood(call: &Call, methods: &[&Method]) -> Answer {
    let (method, path) = (&call.head.method, call.head.uri.path());
    let allowed = methods.iter().map(|method| method.as_str()).collect::<Vec<_>>().join(", ");
    let message = format!("{path} does not understand {method}; it understands {allowed}.");
    let error = ApiError::new(ErrorCode::BadRequest, message).with_status(405);
    let mut answer = render_error(&error, &call.id, Dialect::of(&call.head));
    if let Ok(allowed) = HeaderValue::from_str(&allowed) {
        answer.headers_mut().insert(ALLOW, allowed);
    }
    answer
}

fn nothing_at(method: &Method, path: &str) -> ApiError {
    let message = format!("There is nothing at {method} {path}. The paths are in the README under 'API'.");
    ApiError::new(ErrorCode::NotFound, message)
}

/// A path's parameters without their percent signs.
fn decoded(parameters: Vec<(&'static str, String)>) -> Result<Vec<(&'static str, String)>, ApiError> {
    let decode = |(name, value): (&'static str, String)| {
        if !value.contains('%') {
            return Ok((name, value));
        }
        let decoded = percent_decode_str(&value).decode_utf8();
        decoded
            .map(|value| (name, value.into_owned()))
            .map_err(|_| ApiError::new(ErrorCode::BadRequest, "The request's path is not UTF-8."))
    };
    parameters.into_iter().map(decode).collect()
}

impl Call {
    /// Asks for what a route's declaration says of its callers; levels on endpoints and models are asked for where these
    /// are found.
    fn admit(&mut self, access: Access) -> Result<(), ApiError> {
        match access {
            Access::Anyone => return Ok(()),
            Access::Operator if self.is_local() => return Ok(()),
            _ => {}
        }
        let principal = self
            .app
            .directory
            .authenticate(&self.head.headers)
            .inspect_err(|_| self.app.metrics.count_refusal("unauthenticated"))?;
        match access {
            Access::Operator if authorize(&principal, Action::Administer, Object::Server).is_err() => {
                return Err(nothing_at(&self.head.method, self.head.uri.path()));
            }
            Access::Admin => authorize(&principal, Action::Administer, Object::Workspace(principal.workspace))?,
            Access::ServerAdmin => authorize(&principal, Action::Administer, Object::Server)?,
            _ => {}
        }
        self.principal = Some(principal);
        Ok(())
    }

    /// Asks for the level on what the path names before a body is read: who may not change a thing is told that, not what
    /// is wrong with the change. Handlers ask again where they find it.
    async fn admit_to_named(&self, route: &Route) -> Result<(), ApiError> {
        let has = |name: &str| self.parameters.iter().any(|(key, _)| *key == name);
        match (route.access, route.body) {
            (Access::Endpoint(_), Content::Json(_)) if has("name") => drop(self.endpoint().await?),
            (Access::Model(_), Content::Json(_)) if has("full_name") => {
                drop(self.model(self.parameter("full_name")).await?);
            }
            _ => {}
        }
        Ok(())
    }

    /// The same call for another request of the same caller, whose body comes from elsewhere.
    fn without_body(&self) -> Call {
        Call {
            app: Arc::clone(&self.app),
            head: self.head.clone(),
            route: self.route,
            parameters: self.parameters.clone(),
            principal: self.principal.clone(),
            object: OnceLock::new(),
            body: None,
            peer: self.peer,
            scheme: self.scheme,
            id: self.id.clone(),
            started: self.started,
            deadline: self.deadline,
        }
    }

    /// The time that its answer may take, of at most `wall_ms`, in ms.
    fn wall_ms(&self, wall_ms: u64) -> u64 {
        let waits = self.deadline.map(|deadline| deadline.saturating_duration_since(self.started));
        waits.map_or(wall_ms, |waits| wall_ms.min(waits.as_millis() as u64))
    }

    /// Whether the caller is on this machine. A proxy on this machine speaks for somebody else.
    fn is_local(&self) -> bool {
        let forwarded = ["forwarded", "x-forwarded-for", "via"];
        self.peer.ip().is_loopback() && !forwarded.iter().any(|name| self.head.headers.contains_key(*name))
    }

    /// Who calls.
    fn principal(&self) -> Result<Arc<Principal>, ApiError> {
        // Missing only where a handler and its route's declaration contradict each other: refused rather than served.
        self.principal.clone().ok_or_else(|| ApiError::new(ErrorCode::Unauthenticated, "Credentials are missing."))
    }

    /// A parameter of the path.
    fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// The endpoint that the path names, if the caller has the route's level on it.
    async fn endpoint(&self) -> Result<Arc<Endpoint>, ApiError> {
        self.endpoint_named(self.parameter("name")).await
    }

    /// An endpoint, if the caller has the route's level on it.
    async fn endpoint_named(&self, name: &str) -> Result<Arc<Endpoint>, ApiError> {
        self.is_about(name);
        let principal = self.principal()?;
        let endpoint = self.app.control.endpoint(principal.workspace, name).await?;
        authorize(&principal, Action::Use(self.level()), Object::Endpoint(&endpoint.record))?;
        Ok(endpoint)
    }

    /// A registered model, if the caller has the route's level on it.
    async fn model(&self, name: &str) -> Result<ModelRecord, ApiError> {
        self.is_about(name);
        let principal = self.principal()?;
        let model = self.app.control.registry.model(principal.workspace, name).await?;
        authorize(&principal, Action::Use(self.level()), Object::Model(&model))?;
        Ok(model)
    }

    /// Tells the audit log what the call is about; the first to say so counts.
    fn is_about(&self, name: &str) {
        if self.route.is_some_and(|route| route.effect == Effect::Change) {
            let _ = self.object.set(name.to_owned());
        }
    }

    /// The level that the route asks for; the highest where it does not say.
    fn level(&self) -> Level {
        match self.route.map(|route| route.access) {
            Some(Access::Endpoint(level) | Access::Model(level)) => level,
            _ => Level::Manage,
        }
    }

    /// Where the caller reached this server: scheme and host as it knows them.
    fn origin(&self) -> String {
        let text = |name: &str| self.head.headers.get(name).and_then(|value| value.to_str().ok());
        // HTTP/2 has the host in its address.
        let authority = self.head.uri.authority().map(|authority| authority.as_str());
        // A proxy that ends TLS says so.
        let https = text("x-forwarded-proto").is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        let scheme = if https { "https" } else { self.scheme.name() };
        format!("{scheme}://{}", authority.or(text("host")).unwrap_or("localhost"))
    }

    /// The query.
    fn query<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        self.check_reads::<T>(Reads::Query)?;
        let query = self.head.uri.query().unwrap_or_default();
        // With the query, because the error names a field only where that is missing or there twice.
        serde_html_form::from_str(query)
            .map_err(|error| ApiError::invalid(format!("the query '{query}' is not as expected: {error}")))
    }

    /// Checks that the route declares what its handler is about to read.
    fn check_reads<T>(&self, what: Reads) -> Result<(), ApiError> {
        self.route.map_or(Ok(()), |route| route.check_reads::<T>(what))
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
        self.check_reads::<T>(Reads::Body)?;
        let principal = self.principal()?;
        let limits = BodyLimits { bytes_max: CONTROL_BODY_BYTES_MAX, ..self.app.body_limits };
        // Small, so it is not charged to anybody.
        let bytes = self.read_body(limits, |_| Ok(())).await?;
        // Some clients send no body where every field is optional.
        let bytes = if bytes.is_empty() { b"{}".as_slice() } else { &bytes };
        let unexpected =
            |what: String| ApiError::new(ErrorCode::BadRequest, format!("The request body is not as expected: {what}"));
        // serde would read a list as the fields in their order.
        if bytes.trim_ascii_start().first() == Some(&b'[') {
            return Err(unexpected("it is a list; it must be a JSON object".to_owned()));
        }
        let value = serde_json::from_slice(bytes).map_err(|error| unexpected(error.to_string()))?;
        Ok((Arc::clone(&self.app), principal, value))
    }
}

/// A JSON response.
fn json<T: Serialize>(value: &T) -> Result<Answer, ApiError> {
    let text = serde_json::to_vec(value).map_err(|error| ApiError::internal("write a response", &error))?;
    Ok(json_text::<T>(text))
}

/// A JSON response that is written already, as `T` would be.
fn json_text<T>(text: impl Into<Bytes>) -> Answer {
    let mut answer = respond(200, "application/json", text);
    answer.extensions_mut().insert(Wrote(std::any::type_name::<T>()));
    answer
}

/// The JSON response of what has nothing to say.
fn done() -> Result<Answer, ApiError> {
    json(&Done {})
}

fn respond(status: u16, content_type: &str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(ResponseBody::from(body.into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    response
}

/// An error as clients of the Databricks API read it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Error")]
struct ErrorBody<'a> {
    error_code: ErrorCode,
    /// For people.
    message: &'a str,
    details: [RequestInfo<'a>; 1],
    #[serde(flatten)]
    scim: Option<ScimError<'a>>,
}

/// The same for clients that read SCIM alone.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ScimError<'a> {
    schemas: [&'static str; 1],
    scim_type: &'static str,
    detail: &'a str,
    status: String,
}

/// `google.rpc.RequestInfo`.
#[derive(Serialize, JsonSchema)]
struct RequestInfo<'a> {
    #[serde(rename = "@type")]
    r#type: &'static str,
    request_id: &'a str,
    serving_data: &'static str,
}

/// An error of the Open Inference Protocol.
#[derive(Serialize, JsonSchema)]
struct OpenInferenceError<'a> {
    error: &'a str,
}

/// The one place where an error becomes a response.
fn render_error(error: &ApiError, request_id: &str, dialect: Dialect) -> Answer {
    let r#type = "type.googleapis.com/google.rpc.RequestInfo";
    let (error_code, message) = (error.code, error.message.as_str());
    let body = match dialect {
        Dialect::Grpc => return grpc::failed(error),
        Dialect::OpenInference => serde_json::to_vec(&OpenInferenceError { error: message }),
        Dialect::Databricks => serde_json::to_vec(&ErrorBody {
            error_code,
            message,
            details: [RequestInfo { r#type, request_id, serving_data: "" }],
            scim: error.scim_type.map(|scim_type| ScimError {
                schemas: ["urn:ietf:params:scim:api:messages:2.0:Error"],
                scim_type,
                detail: message,
                status: error.status.to_string(),
            }),
        }),
    };
    // Text and numbers can always be written.
    let mut response = respond(error.status, "application/json", body.unwrap_or_default());
    let headers = response.headers_mut();
    match error.status {
        401 => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
        429 | 503 => drop(headers.insert(RETRY_AFTER, HeaderValue::from(error.retry_after_s.unwrap_or(1)))),
        // The OpenAI client repeats every 5xx; a request that ran out of its time would only do so again.
        504 => drop(headers.insert("x-should-retry", HeaderValue::from_static("false"))),
        _ => {}
    }
    response
}

/// 32 hex digits in the form of a UUID. Unique, not secret.
fn request_id() -> String {
    let mut hex = [0; 32];
    // Twice the length of what is encoded.
    let _ = hex::encode_to_slice(fastrand::u128(..).to_be_bytes(), &mut hex);
    let mut id = String::with_capacity(36);
    for (at, digit) in hex.into_iter().enumerate() {
        if matches!(at, 8 | 12 | 16 | 20) {
            id.push('-');
        }
        id.push(char::from(digit));
    }
    id
}
