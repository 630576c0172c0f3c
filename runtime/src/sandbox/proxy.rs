//! Requests to components of `wasi:http/proxy`. The guest gets the request of HTTP as it came, and its answer goes out as
//! it makes it, both in chunks. Trailers are dropped, in both directions.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Request, Response};
use tokio::sync::{mpsc, oneshot};
use wasmtime::Store;
use wasmtime::component::Resource;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;
use wasmtime_wasi_http::p2::types::{HostIncomingRequest, HostResponseOutparam};
use wasmtime_wasi_http::{Error, WasiHttpView};

use super::guest::{GuestState, HIDDEN_HEADERS};
use super::invoke::{InvocationBody, InvokeError};
use super::streaming::{StreamError, StreamedResponse};
use crate::http;
use crate::usage::transcript::Transcript;

/// What a guest answers, or the error that it names.
type Answered = Result<Response<HyperOutgoingBody>, ErrorCode>;

/// The arguments of the guest's `handle`.
pub(super) type Arguments = (Resource<HostIncomingRequest>, Resource<HostResponseOutparam>);

/// Hands a request to the guest, whose answer comes through the channel.
pub(super) fn begin(
    state: &mut GuestState,
    (mut head, scheme): (Parts, http::Scheme),
    body: InvocationBody,
) -> wasmtime::Result<(Arguments, oneshot::Receiver<Answered>)> {
    hide(&mut head.headers);
    let scheme = match scheme {
        http::Scheme::Http => Scheme::Http,
        http::Scheme::Https => Scheme::Https,
    };
    let request = Request::from_parts(head, RequestBody(body));
    let (sender, answer) = oneshot::channel();
    let request = state.http().new_incoming_request(scheme, request)?;
    let outparam = state.http().new_response_outparam(sender)?;
    Ok(((request, outparam), answer))
}

/// Takes out what guests do not see: credentials, and what belongs to the connection. The library takes out the rest.
fn hide(headers: &mut HeaderMap) {
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|names| names.split(',')).filter_map(|name| name.trim().parse::<HeaderName>().ok());
    let hidden: Vec<HeaderName> = named.chain(HIDDEN_HEADERS.map(HeaderName::from_static)).collect();
    for name in hidden {
        headers.remove(name);
    }
}

/// A request's body on its way to the guest.
struct RequestBody(InvocationBody);

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.0 {
            InvocationBody::Full(body) => {
                let body = std::mem::take(body);
                Poll::Ready((!body.is_empty()).then(|| Ok(Frame::data(body.into()))))
            }
            InvocationBody::Chunks(chunks) => chunks.poll_recv(context).map(|chunk| {
                let failed = |error| match error {
                    StreamError::TooLarge => Error::HttpRequestBodySize(None),
                    StreamError::Closed | StreamError::Invalid => Error::ConnectionTerminated,
                };
                chunk.map(|chunk| chunk.map(Frame::data).map_err(failed))
            }),
        }
    }
}

/// Runs the guest's `handle` beside what sends its answer. `guest` gives back the store, without which nobody could say
/// whether a body has come to its end or to that of its maker.
pub(super) async fn run(
    guest: impl Future<Output = (Result<(), InvokeError>, Store<GuestState>)>,
    sending: Sending,
) -> Result<(), InvokeError> {
    let guest_failed = Arc::clone(&sending.guest_failed);
    let mut guest = std::pin::pin!(guest);
    let mut sending = std::pin::pin!(sending.run());
    let mut sent = None;
    let (outcome, store) = loop {
        // Both may be left at any time: they go on with the next turn, or end with the request.
        tokio::select! {
            biased;
            ended = &mut guest => break ended,
            outcome = &mut sending, if sent.is_none() => {
                // Too large, or no answer at all: the guest has nothing more to do. When all is sent it may go on.
                outcome?;
                sent = Some(());
            }
        }
    };
    match (outcome, sent) {
        (outcome, Some(())) => outcome,
        (Ok(()), None) => {
            drop(store);
            sending.await
        }
        // What it finished before it failed is still sent, and with that the failure is told.
        (Err(error), None) => {
            guest_failed.store(true, Release);
            let _ = sending.await;
            drop(store);
            Err(error)
        }
    }
}

/// An answer on its way out.
pub(super) struct Sending {
    pub(super) answer: oneshot::Receiver<Answered>,
    pub(super) head: oneshot::Sender<StreamedResponse>,
    /// Whether the request asks for a body.
    pub(super) has_body: bool,
    pub(super) limit_bytes: u64,
    /// Hears what is sent, where somebody wants to know.
    pub(super) transcript: Option<Transcript>,
    /// Whether nothing more comes from the guest, though its handles are still there.
    pub(super) guest_failed: Arc<AtomicBool>,
}

impl Sending {
    async fn run(self) -> Result<(), InvokeError> {
        let Sending { answer, head: head_sender, has_body, limit_bytes, transcript, guest_failed } = self;
        let response = match unless_over(answer, &guest_failed).await {
            Some(Ok(Ok(response))) => response,
            Some(Ok(Err(code))) => return Err(bad(format!("it answered the error {code:?}"))),
            Some(Err(_)) | None => return Err(bad("it ended without an answer".to_owned())),
        };
        let (head, mut body) = response.into_parts();
        let status = head.status.as_u16();
        if !(200..=599).contains(&status) {
            return Err(bad(format!("status {status} is not in 200 to 599")));
        }
        let refuse_large = |bytes: u64| match bytes > limit_bytes {
            true => Err(InvokeError::ResponseTooLarge { bytes, limit_bytes }),
            false => Ok(()),
        };
        let has_body = has_body && ![204, 304].contains(&status);
        if has_body {
            refuse_large(declared(&head.headers))?;
        }
        let (sender, chunks) = mpsc::channel(1);
        // Nobody reads a body where there is none; what the guest makes nevertheless is thrown away.
        let complete = Arc::new(AtomicBool::new(!has_body));
        if let Some(transcript) = &transcript {
            let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            transcript.begin(content_type.unwrap_or_default());
        }
        let response = StreamedResponse { status, headers: head.headers, chunks, complete: Arc::clone(&complete) };
        let mut sender = has_body.then_some(sender);
        if head_sender.send(response).is_err() {
            sender = None;
        }
        let mut sent_bytes = 0u64;
        loop {
            let chunk = match unless_over(body.frame(), &guest_failed).await {
                Some(None) => break,
                Some(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Some(Some(Err(_))) | None => return Err(bad("it broke its answer off".to_owned())),
            };
            sent_bytes = sent_bytes.saturating_add(chunk.len() as u64);
            refuse_large(sent_bytes)?;
            if let Some(transcript) = &transcript {
                transcript.hear(&chunk);
            }
            if let Some(open) = &sender
                && !chunk.is_empty()
                && open.send(chunk).await.is_err()
            {
                // The client is gone, and so is soon the guest.
                sender = None;
            }
        }
        complete.store(true, Release);
        Ok(())
    }
}

/// What comes of something that the guest does; none when it must be waited for, and the guest has failed.
async fn unless_over<F: Future + Unpin>(mut something: F, guest_failed: &AtomicBool) -> Option<F::Output> {
    std::future::poll_fn(|context| match Pin::new(&mut something).poll(context) {
        Poll::Pending if guest_failed.load(Acquire) => Poll::Ready(None),
        poll => poll.map(Some),
    })
    .await
}

/// The length that an answer says it has; 0 where it does not.
fn declared(headers: &HeaderMap) -> u64 {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    length.and_then(|length| length.parse().ok()).unwrap_or_default()
}

fn bad(why: String) -> InvokeError {
    InvokeError::BadResponse(why)
}
