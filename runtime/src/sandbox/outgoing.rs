//! Requests that a guest sends: `wasi:http/outgoing-handler` over what [`crate::outbound`] allows. Every wait has a bound,
//! and all of it ends with the guest. Redirects are answers like any other: the guest sees where it is sent to, and asks
//! again if it may.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::http::uri::{PathAndQuery, Scheme};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, TlsAlertReceivedPayload};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

use super::guest::{GuestState, Phase};
use super::log::RequestLog;
use crate::http::body::AbortOnDrop;
use crate::outbound::{ConnectError, Grant, Target};

/// Requests of one guest under way, until their answers are read.
const REQUESTS_MAX: usize = 16;

/// Body of an answer, and of a request: what goes by without being kept.
const BODY_BYTES_MAX: u64 = 64 << 20;

/// Longest path with its query.
const URI_BYTES_MAX: usize = 8 << 10;

/// Times that a guest may shorten for a request, and not lengthen: to a connection with its TLS, to the head of the answer,
/// and between two pieces of its body. The request's own deadline may come first.
const CONNECT_MAX: Duration = Duration::from_secs(10);
const HEAD_MAX: Duration = Duration::from_secs(60);
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Room for the head of an answer, and the most headers in it.
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 100;

/// Writes of a body that wait to be sent, each of at most [`CHUNK_BYTES_MAX`]. With a few, a guest ends before its answer
/// is sent, and its memory is free.
const CHUNKS_WAITING_MAX: usize = 4;
const CHUNK_BYTES_MAX: usize = 64 << 10;

/// What stands behind `wasi:http` for one guest.
pub(super) struct Outgoing {
    /// None where its package may call nobody.
    grant: Option<Grant>,
    /// None outside of a request.
    deadline: Option<Instant>,
    under_way: Arc<Semaphore>,
    log: RequestLog,
}

impl Outgoing {
    pub(super) fn of(phase: &Phase, log: &RequestLog) -> Outgoing {
        let (grant, deadline) = match phase {
            Phase::Handle(request) => (request.grant.clone(), Some(request.deadline)),
            Phase::Init { .. } => (None, None),
        };
        Outgoing { grant, deadline, under_way: Arc::new(Semaphore::new(REQUESTS_MAX)), log: log.clone() }
    }

    /// Whether a request may be sent, and to whom.
    fn permit(&self, request: &Request<WasiBody>) -> Result<Permitted, Refusal> {
        let uri = request.uri();
        let tls = uri.scheme() == Some(&Scheme::HTTPS);
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let target = Target::of(authority, tls)
            .ok_or_else(|| Refusal(Error::HttpRequestUriInvalid, format!("'{authority}' is not a host")))?;
        let denied = |why: String| Refusal(Error::HttpRequestDenied, why);
        let Some(grant) = &self.grant else {
            let why = match self.deadline {
                Some(_) => "the package is granted no hosts (grants.http of its manifest)".to_owned(),
                None => "nothing can be called before a request".to_owned(),
            };
            return Err(denied(format!("to {target}: {why}")));
        };
        if !grant.hosts.allow(&target) {
            let why = format!("the package is granted {} (grants.http of its manifest)", grant.hosts);
            return Err(denied(format!("to {target}: {why}")));
        }
        if request.method() == Method::CONNECT {
            return Err(Refusal(Error::HttpRequestMethodInvalid, format!("to {target}: CONNECT makes a tunnel")));
        }
        if uri.path_and_query().is_some_and(|path| path.as_str().len() > URI_BYTES_MAX) {
            let why = format!("to {target}: its path has more than {URI_BYTES_MAX} bytes");
            return Err(Refusal(Error::HttpRequestUriTooLong, why));
        }
        let place = Arc::clone(&self.under_way).try_acquire_owned().map_err(|_| {
            let why =
                format!("to {target}: {REQUESTS_MAX} requests of this instance are under way, which is the limit");
            Refusal(Error::ConnectionLimitReached, why)
        })?;
        Ok(Permitted { target, grant: grant.clone(), place })
    }
}

/// A request that may be sent.
struct Permitted {
    target: Target,
    grant: Grant,
    place: OwnedSemaphorePermit,
}

/// Why a request is not sent: for the guest, and for its log.
struct Refusal(Error, String);

type Sent = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let (permitted, log) = (self.permit(&request), self.log.clone());
        let times = Times::of(options.unwrap_or_default(), self.deadline);
        Box::new(async move {
            let sent = match permitted {
                Ok(permitted) => send(permitted, request, times).await,
                Err(refusal) => Err(refusal),
            };
            // The connection is driven by a task of its own, which ends with the answer's body.
            let nothing_left = || Box::new(async { Ok(()) }) as Box<dyn Future<Output = _> + Send>;
            sent.map(|answer| (answer, nothing_left())).map_err(|Refusal(error, why)| {
                log.line("warn", &format!("a request was not sent or not answered: {why}"));
                error
            })
        })
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        CHUNKS_WAITING_MAX
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK_BYTES_MAX
    }

    // The guest's own log has it; the library would write into the server's.
    fn p2_error_from_hyper(&mut self, error: &hyper::Error) -> ErrorCode {
        match error {
            error if error.is_timeout() => ErrorCode::HttpResponseTimeout,
            error if error.is_incomplete_message() => ErrorCode::HttpResponseIncomplete,
            error if error.is_parse_too_large() => ErrorCode::HttpResponseHeaderSectionSize(None),
            _ => ErrorCode::HttpProtocolError,
        }
    }

    fn p2_error_from_connect(&mut self, error: &io::Error) -> ErrorCode {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => ErrorCode::ConnectionRefused,
            io::ErrorKind::TimedOut => ErrorCode::ConnectionTimeout,
            _ => ErrorCode::DestinationUnavailable,
        }
    }

    fn p2_error_from_tls(&mut self, error: &io::Error) -> ErrorCode {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(_)) => ErrorCode::TlsCertificateError,
            Some(rustls::Error::AlertReceived(alert)) => ErrorCode::TlsAlertReceived(TlsAlertReceivedPayload {
                alert_id: Some(u8::from(*alert)),
                alert_message: Some(format!("{alert:?}")),
            }),
            _ => ErrorCode::TlsProtocolError,
        }
    }
}

impl WasiHttpView for GuestState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let GuestState { http, table, http_ctx, phase, log, .. } = self;
        let hooks = http.get_or_insert_with(|| Box::new(Outgoing::of(phase, log)));
        WasiHttpCtxView { hooks: &mut **hooks, table, ctx: http_ctx }
    }
}

/// How long the parts of a request may take.
#[derive(Clone, Copy)]
struct Times {
    connect: Duration,
    head: Duration,
    idle: Duration,
}

impl Times {
    fn of(options: RequestOptions, deadline: Option<Instant>) -> Times {
        let left = deadline.map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(Instant::now()));
        let at_most = |asked: Option<Duration>, most: Duration| asked.unwrap_or(most).min(most).min(left);
        Times {
            connect: at_most(options.connect_timeout, CONNECT_MAX),
            head: at_most(options.first_byte_timeout, HEAD_MAX),
            idle: at_most(options.between_bytes_timeout, IDLE_MAX),
        }
    }
}

async fn send(permitted: Permitted, request: Request<WasiBody>, times: Times) -> Result<Response<WasiBody>, Refusal> {
    let Permitted { target, grant, place } = permitted;
    let refusal = |error: Error, why: &dyn std::fmt::Display| Refusal(error, format!("to {target}: {why}"));
    let connecting = tokio::time::timeout(times.connect, grant.connector.connect(&target)).await;
    let connection = match connecting {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            let why = error.to_string();
            return Err(refusal(in_words_of_wasi(error), &why));
        }
        Err(_) => return Err(refusal(Error::ConnectionTimeout, &"connecting took too long")),
    };
    let broken = |error: hyper::Error| {
        let why = crate::error::chain(&error);
        refusal(Error::Hyper(error), &why)
    };
    let mut http = hyper::client::conn::http1::Builder::new();
    http.max_buf_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX);
    let (mut sender, driver) = http.handshake(TokioIo::new(connection.stream)).await.map_err(broken)?;
    let driver = AbortOnDrop(tokio::spawn(driver).abort_handle());
    let request = in_origin_form(request).map(|body| Metered::new(body, BODY_BYTES_MAX, Error::HttpRequestBodySize));
    let answer = match tokio::time::timeout(times.head, sender.send_request(request)).await {
        Ok(answer) => answer.map_err(broken)?,
        Err(_) => return Err(refusal(Error::ConnectionReadTimeout, &"the answer took too long to begin")),
    };
    let under_way = UnderWay { _driver: driver, _places: [place, connection.place] };
    Ok(answer.map(|body| AnswerBody::new(body, times.idle, under_way).boxed_unsync()))
}

fn in_words_of_wasi(error: ConnectError) -> Error {
    match error {
        ConnectError::TooMany => Error::ConnectionLimitReached,
        ConnectError::Unresolved(error) => Error::DnsError { rcode: Some(error.to_string()), info_code: None },
        ConnectError::Prohibited(_) => Error::DestinationIpProhibited,
        ConnectError::Unreachable(error) => Error::Connect(error),
        ConnectError::Tls(error) => Error::Tls(error),
    }
}

/// Scheme and authority are for proxies alone; the host is in its header.
fn in_origin_form(mut request: Request<WasiBody>) -> Request<WasiBody> {
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    request
}

/// A body of at most some bytes.
struct Metered<B> {
    body: B,
    left_bytes: u64,
    limit_bytes: u64,
    too_large: fn(Option<u64>) -> Error,
}

impl<B> Metered<B> {
    fn new(body: B, limit_bytes: u64, too_large: fn(Option<u64>) -> Error) -> Metered<B> {
        Metered { body, left_bytes: limit_bytes, limit_bytes, too_large }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Metered<B>
where
    Error: From<B::Error>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
            match self.left_bytes.checked_sub(bytes) {
                Some(left) => self.left_bytes = left,
                None => return Poll::Ready(Some(Err((self.too_large)(Some(self.limit_bytes))))),
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a request holds until its answer is read.
struct UnderWay {
    _driver: AbortOnDrop,
    _places: [OwnedSemaphorePermit; 2],
}

/// The body of an answer, on its way to the guest.
struct AnswerBody {
    body: Metered<Incoming>,
    idle: Duration,
    /// Begins anew with each frame.
    patience: Pin<Box<Sleep>>,
    _under_way: UnderWay,
}

impl AnswerBody {
    fn new(body: Incoming, idle: Duration, under_way: UnderWay) -> AnswerBody {
        let body = Metered::new(body, BODY_BYTES_MAX, Error::HttpResponseBodySize);
        AnswerBody { body, idle, patience: Box::pin(tokio::time::sleep(idle)), _under_way: under_way }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            let until = tokio::time::Instant::now() + self.idle;
            self.patience.as_mut().reset(until);
            return Poll::Ready(frame);
        }
        self.patience.as_mut().poll(context).map(|()| Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
