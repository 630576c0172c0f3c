//! Bodies in chunks: requests read while they arrive, responses sent while they are made.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Release;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use tokio::sync::{mpsc, oneshot};
use wasmtime::component::Resource;

pub use super::bindings::tessera::endpoint::streaming::StreamError;
use super::bindings::tessera::endpoint::streaming::{Host, HostRequestBody, HostResponseBody};
use super::guest::{GuestState, Phase};
use crate::usage::transcript::Transcript;

/// Largest chunk handed to a guest at once.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// A request body as the guest reads it: fed by the HTTP side, one chunk ahead.
#[derive(Debug)]
pub struct RequestBody {
    chunks: mpsc::Receiver<Result<Bytes, StreamError>>,
    rest: Bytes,
}

impl RequestBody {
    /// A body fed from a channel; `Err` ends it, and so does closing the channel.
    pub(super) fn new(chunks: mpsc::Receiver<Result<Bytes, StreamError>>) -> RequestBody {
        RequestBody { chunks, rest: Bytes::new() }
    }

    async fn read(&mut self, bytes_max: usize) -> Result<Bytes, StreamError> {
        while self.rest.is_empty() {
            match self.chunks.recv().await {
                Some(chunk) => self.rest = chunk?,
                None => return Ok(Bytes::new()),
            }
        }
        Ok(self.rest.split_to(bytes_max.min(self.rest.len())))
    }
}

/// The head of a streamed response and the channel that its body comes through.
#[derive(Debug)]
pub struct StreamedResponse {
    /// HTTP status.
    pub status: u16,
    /// With the `Content-Type`.
    pub headers: HeaderMap,
    /// The body.
    pub chunks: mpsc::Receiver<Bytes>,
    /// Whether the body is all there once the channel closes: set when the guest has ended well, or the body of its HTTP
    /// response, and by nothing else, so that a body cut short by a trap, a limit or a lost task is never taken for the
    /// whole.
    pub complete: Arc<AtomicBool>,
}

/// What the state of a request holds of its streamed response.
#[derive(Debug)]
pub(super) struct ResponseStream {
    head: Option<oneshot::Sender<StreamedResponse>>,
    sender: Option<mpsc::Sender<Bytes>>,
    complete: Arc<AtomicBool>,
    sent_bytes: u64,
    /// Hears what is sent, where somebody wants to know.
    transcript: Option<Transcript>,
}

impl ResponseStream {
    pub(super) fn new(head: oneshot::Sender<StreamedResponse>, transcript: Option<Transcript>) -> ResponseStream {
        ResponseStream { head: Some(head), sender: None, complete: Arc::default(), sent_bytes: 0, transcript }
    }

    /// For guests that answer otherwise.
    pub(super) fn none() -> ResponseStream {
        ResponseStream { head: None, sender: None, complete: Arc::default(), sent_bytes: 0, transcript: None }
    }

    /// Says that the guest has ended well, before the channel closes.
    pub(super) fn complete(&self) {
        self.complete.store(true, Release);
    }
}

/// The guest's handle on its open response; the channel itself is in the request's state.
#[derive(Debug)]
pub struct ResponseBody;

impl Host for GuestState {
    fn respond(
        &mut self,
        status: u16,
        content_type: String,
    ) -> wasmtime::Result<Result<Resource<ResponseBody>, StreamError>> {
        let Phase::Handle(request) = &mut self.phase else { return Ok(Err(StreamError::Invalid)) };
        let stream = &mut request.stream;
        let Ok(value) = HeaderValue::from_str(&content_type) else { return Ok(Err(StreamError::Invalid)) };
        if !(200..=599).contains(&status) {
            return Ok(Err(StreamError::Invalid));
        }
        let Some(head) = stream.head.take() else { return Ok(Err(StreamError::Invalid)) };
        // One chunk may wait for the client; the guest is parked until it is taken.
        let (sender, chunks) = mpsc::channel(1);
        let complete = Arc::clone(&stream.complete);
        if let Some(transcript) = &stream.transcript {
            transcript.begin(&content_type);
        }
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, value)]);
        if head.send(StreamedResponse { status, headers, chunks, complete }).is_err() {
            return Ok(Err(StreamError::Closed));
        }
        stream.sender = Some(sender);
        Ok(Ok(self.table.push(ResponseBody)?))
    }
}

impl HostRequestBody for GuestState {
    async fn read(
        &mut self,
        body: Resource<RequestBody>,
        bytes_max: u32,
    ) -> wasmtime::Result<Result<Vec<u8>, StreamError>> {
        let bytes_max = (bytes_max as usize).clamp(1, CHUNK_BYTES_MAX);
        Ok(self.table.get_mut(&body)?.read(bytes_max).await.map(Vec::from))
    }

    fn drop(&mut self, body: Resource<RequestBody>) -> wasmtime::Result<()> {
        self.table.delete(body)?;
        Ok(())
    }
}

impl HostResponseBody for GuestState {
    async fn write(
        &mut self,
        body: Resource<ResponseBody>,
        chunk: Vec<u8>,
    ) -> wasmtime::Result<Result<(), StreamError>> {
        self.table.get(&body)?;
        let limit_bytes = self.limits.response_bytes;
        let Phase::Handle(request) = &mut self.phase else { return Ok(Err(StreamError::Invalid)) };
        let stream = &mut request.stream;
        stream.sent_bytes = stream.sent_bytes.saturating_add(chunk.len() as u64);
        if stream.sent_bytes > limit_bytes {
            return Ok(Err(StreamError::TooLarge));
        }
        let Some(sender) = &stream.sender else { return Ok(Err(StreamError::Closed)) };
        if chunk.is_empty() {
            return Ok(Ok(()));
        }
        if let Some(transcript) = &stream.transcript {
            transcript.hear(&chunk);
        }
        Ok(sender.send(chunk.into()).await.map_err(|_| StreamError::Closed))
    }

    fn drop(&mut self, body: Resource<ResponseBody>) -> wasmtime::Result<()> {
        // The response ends with `handle`, whose result says whether it is whole.
        self.table.delete(body)?;
        Ok(())
    }
}
