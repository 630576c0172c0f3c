//! Bodies in chunks: requests read while they arrive, responses sent while they are made.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use wasmtime::component::Resource;

pub use super::bindings::tessera::endpoint::streaming::StreamError;
use super::bindings::tessera::endpoint::streaming::{Host, HostRequestBody, HostResponseBody};
use super::guest::{GuestState, Phase};

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
    /// `Content-Type`.
    pub content_type: String,
    /// The body. `Err` breaks the response off; closing ends it.
    pub chunks: mpsc::Receiver<Result<Bytes, StreamBroken>>,
}

/// The guest failed after it had begun to answer, so the connection is cut instead of ending the body as if all was well.
#[derive(Debug, thiserror::Error)]
#[error("the guest failed in the middle of its response")]
pub struct StreamBroken;

/// What the state of a request holds of its streamed response.
#[derive(Debug)]
pub(super) struct ResponseStream {
    head: Option<oneshot::Sender<StreamedResponse>>,
    /// Kept so that a trap after `respond` can break the body off.
    pub(super) sender: Option<mpsc::Sender<Result<Bytes, StreamBroken>>>,
    sent_bytes: u64,
}

impl ResponseStream {
    pub(super) fn new(head: oneshot::Sender<StreamedResponse>) -> ResponseStream {
        ResponseStream { head: Some(head), sender: None, sent_bytes: 0 }
    }

    /// Whether the guest has begun a streamed response.
    pub(super) fn begun(&self) -> bool {
        self.sender.is_some()
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
        if !(200..=599).contains(&status) || hyper::header::HeaderValue::from_str(&content_type).is_err() {
            return Ok(Err(StreamError::Invalid));
        }
        let Some(head) = stream.head.take() else { return Ok(Err(StreamError::Invalid)) };
        // One chunk may wait for the client; the guest is parked until it is taken.
        let (sender, chunks) = mpsc::channel(1);
        if head.send(StreamedResponse { status, content_type, chunks }).is_err() {
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
        Ok(sender.send(Ok(chunk.into())).await.map_err(|_| StreamError::Closed))
    }

    fn drop(&mut self, body: Resource<ResponseBody>) -> wasmtime::Result<()> {
        // A response that its guest cut short for size or a failure is not ended here: `handle`'s result decides.
        self.table.delete(body)?;
        Ok(())
    }
}
