//! Bodies: requests read within limits, responses whole or in chunks.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Acquire;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::error::{ApiError, ErrorCode};

/// The body of a response.
pub enum ResponseBody {
    /// All of it; none once sent.
    Full(Option<Bytes>),
    /// As it is made.
    Stream {
        /// The chunks.
        chunks: mpsc::Receiver<Bytes>,
        /// Whether the body is whole once the channel has closed; if not, the connection is broken off.
        complete: Arc<AtomicBool>,
        /// Ends whoever makes them when the client is gone.
        _maker: Option<Maker>,
    },
    /// With headers behind it, which is how gRPC ends.
    Trailed {
        /// What comes first.
        body: Box<ResponseBody>,
        /// None once sent.
        trailers: Option<Box<HeaderMap>>,
    },
}

/// The body ended before it was whole, so the connection is cut instead of ending the body as if all was well.
#[derive(Debug, thiserror::Error)]
#[error("the response broke off in the middle")]
pub struct StreamBroken;

/// Ends a task when dropped.
pub struct AbortOnDrop(pub AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Who makes a body: ended when that is dropped before it is whole, for nobody waits for the rest.
pub struct Maker {
    /// The maker.
    pub task: AbortHandle,
    /// Whether the body is whole: then its maker may go on with other things.
    pub complete: Arc<AtomicBool>,
}

impl Drop for Maker {
    fn drop(&mut self) {
        if !self.complete.load(Acquire) {
            self.task.abort();
        }
    }
}

impl From<Bytes> for ResponseBody {
    fn from(bytes: Bytes) -> ResponseBody {
        ResponseBody::Full(Some(bytes))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = StreamBroken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamBroken>>> {
        match &mut *self {
            ResponseBody::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            ResponseBody::Stream { chunks, complete, .. } => chunks.poll_recv(context).map(|chunk| match chunk {
                Some(chunk) => Some(Ok(Frame::data(chunk))),
                None if complete.load(Acquire) => None,
                None => Some(Err(StreamBroken)),
            }),
            ResponseBody::Trailed { body, trailers } => {
                let frame = std::task::ready!(Pin::new(&mut **body).poll_frame(context));
                Poll::Ready(frame.or_else(|| trailers.take().map(|trailers| Ok(Frame::trailers(*trailers)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, ResponseBody::Full(None)) || matches!(self, ResponseBody::Full(Some(bytes)) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            ResponseBody::Stream { .. } | ResponseBody::Trailed { .. } => SizeHint::default(),
        }
    }
}

/// Limits of a request's body.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// Size.
    pub bytes_max: u64,
    /// Time for all of it.
    pub timeout: Duration,
}

/// Bytes of a refused body that are read and thrown away.
const DISCARD_BYTES_MAX: usize = 64 << 20;

/// Time for that.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// Reads what is left of a body that nobody wants, within bounds. A client that is still sending when the connection
/// closes would see a reset instead of the response that says why.
pub async fn discard(body: &mut Incoming) {
    let reading = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > DISCARD_BYTES_MAX {
                break;
            }
        }
    };
    // Whether all was read or not, the response is due now.
    let _ = tokio::time::timeout(DISCARD_TIME_MAX, reading).await;
}

/// Memory set aside for a body before its first byte: a declared length costs its sender nothing.
const CAPACITY_BYTES_MAX: u64 = 64 << 10;

/// Time without a byte after which a body that is passed on in chunks has ended.
const IDLE_TIME_MAX: Duration = Duration::from_secs(30);

/// Reads a whole body; `grow` allows each piece before it is kept. What is left of one that is refused stays in `body`.
///
/// # Errors
/// 413 when it is too large, 408 when it takes too long, 400 when it breaks off.
pub async fn read(
    body: &mut Incoming,
    limits: BodyLimits,
    mut grow: impl FnMut(u64) -> Result<(), ApiError>,
) -> Result<Vec<u8>, ApiError> {
    refuse_large(body, limits)?;
    let expected = body.size_hint().exact().unwrap_or(0).min(CAPACITY_BYTES_MAX);
    let mut whole = Vec::with_capacity(expected as usize);
    let reading = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken_off(&error))?;
            let Ok(data) = frame.into_data() else { continue };
            if (whole.len() + data.len()) as u64 > limits.bytes_max {
                return Err(too_large(limits));
            }
            grow(data.len() as u64)?;
            whole.extend_from_slice(&data);
        }
        Ok(())
    };
    match tokio::time::timeout(limits.timeout, reading).await {
        Ok(result) => result?,
        Err(_) => return Err(too_slow(limits)),
    }
    Ok(whole)
}

/// Passes a body on in chunks, within the same limits; what goes wrong comes through the channel. The task ends with the
/// receiver.
pub fn chunks<E: Send + 'static>(
    body: Incoming,
    limits: BodyLimits,
    error: impl Fn(ApiError) -> E + Send + 'static,
) -> mpsc::Receiver<Result<Bytes, E>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let pass_on = pass_on(body, limits, &sender);
        let outcome = match tokio::time::timeout(limits.timeout, pass_on).await {
            Ok(outcome) => outcome,
            Err(_) => Err(too_slow(limits)),
        };
        if let Err(reason) = outcome {
            // Nobody is left to tell when the receiver is gone.
            let _ = sender.send(Err(error(reason))).await;
        }
    });
    receiver
}

async fn pass_on<E>(
    mut body: Incoming,
    limits: BodyLimits,
    sender: &mpsc::Sender<Result<Bytes, E>>,
) -> Result<(), ApiError> {
    let mut bytes = 0u64;
    loop {
        let frame = tokio::select! {
            frame = tokio::time::timeout(IDLE_TIME_MAX, body.frame()) => frame.map_err(|_| idle())?,
            () = sender.closed() => return Ok(()),
        };
        let Some(frame) = frame else { return Ok(()) };
        let Ok(data) = frame.map_err(|error| broken_off(&error))?.into_data() else { continue };
        bytes += data.len() as u64;
        if bytes > limits.bytes_max {
            discard(&mut body).await;
            return Err(too_large(limits));
        }
        if sender.send(Ok(data)).await.is_err() {
            return Ok(());
        }
    }
}

/// Refuses a body by its declared size.
///
/// # Errors
/// 413.
pub fn refuse_large(body: &Incoming, limits: BodyLimits) -> Result<(), ApiError> {
    if body.size_hint().lower() > limits.bytes_max { Err(too_large(limits)) } else { Ok(()) }
}

fn too_large(limits: BodyLimits) -> ApiError {
    let message = format!("The request body exceeds the limit of {} bytes.", limits.bytes_max);
    ApiError::new(ErrorCode::BadRequest, message).with_status(413)
}

fn too_slow(limits: BodyLimits) -> ApiError {
    let message = format!("The request body did not arrive within {} ms.", limits.timeout.as_millis());
    ApiError::new(ErrorCode::BadRequest, message).with_status(408)
}

fn idle() -> ApiError {
    let message = format!("No byte of the request body came within {} s.", IDLE_TIME_MAX.as_secs());
    ApiError::new(ErrorCode::BadRequest, message).with_status(408)
}

fn broken_off(error: &hyper::Error) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, format!("The request body broke off: {error}"))
}
