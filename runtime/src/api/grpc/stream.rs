//! `ModelStreamInfer`: requests on one stream, answered in their order. Each is a request like any other: with an id of its
//! own, counted in limits and accounts, by a caller who is asked again who it is. What is wrong with one is said in its
//! answer; the stream goes on.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Release;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::frame::{Framed, frame, succeeded};
use super::messages::ModelStreamInferResponse;
use super::{QUERY, begin, infer_once};
use crate::admission::BodyRoom;
use crate::api::{Answer, Call, audited, request_id};
use crate::catalog::WorkspaceId;
use crate::error::{ApiError, ErrorCode};
use crate::http::body::{Maker, ResponseBody};

/// Time without a request after which a stream has ended.
const IDLE_TIME_MAX: Duration = Duration::from_secs(300);

pub(super) async fn infer(call: &mut Call) -> Result<Answer, ApiError> {
    begin(call)?;
    let body = call.body.take();
    let body = body.ok_or_else(|| ApiError::new(ErrorCode::InternalError, "the body was read before"))?;
    let (answers, chunks) = mpsc::channel(1);
    let complete = Arc::new(AtomicBool::new(false));
    let workspace = call.principal()?.workspace;
    let mut stream = Stream { call: call.without_body(), workspace, body, arrived: BytesMut::new() };
    let ended = Arc::clone(&complete);
    let task = tokio::spawn(async move {
        stream.answer_all(&answers).await;
        ended.store(true, Release);
    });
    let maker = Some(Maker { task: task.abort_handle(), complete: Arc::clone(&complete) });
    Ok(succeeded(ResponseBody::Stream { chunks, complete, _maker: maker }))
}

struct Stream {
    call: Call,
    /// The caller's.
    workspace: WorkspaceId,
    body: Incoming,
    /// Of the next message.
    arrived: BytesMut,
}

impl Stream {
    async fn answer_all(&mut self, answers: &mpsc::Sender<Bytes>) {
        let app = Arc::clone(&self.call.app);
        loop {
            let mut room = app.admission.body_room(self.workspace);
            let (answer, goes_on) = match self.next(&mut room).await {
                Ok(None) => return,
                Ok(Some(framed)) => (self.answer(framed, &mut room).await, true),
                // Where the next message begins is not known.
                Err(error) => (Err(error), false),
            };
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    audited::denied(&self.call, &error);
                    ModelStreamInferResponse { error_message: error.message, infer_response: None }
                }
            };
            // Whoever does not read answers holds up nobody else.
            drop(room);
            let sent = tokio::time::timeout(IDLE_TIME_MAX, answers.send(frame(&answer))).await;
            if !matches!(sent, Ok(Ok(()))) || !goes_on {
                return;
            }
        }
    }

    /// The next message; none at the end of the stream.
    async fn next(&mut self, room: &mut BodyRoom<'_>) -> Result<Option<Framed>, ApiError> {
        let limits = self.call.app.body_limits;
        // As for a body, the time is that of the whole message.
        let mut begun = (!self.arrived.is_empty()).then(Instant::now);
        loop {
            if let Some(framed) = Framed::take(&mut self.arrived, limits.bytes_max)? {
                return Ok(Some(framed));
            }
            let patience = begun.map_or(IDLE_TIME_MAX, |begun| limits.timeout.saturating_sub(begun.elapsed()));
            let arrived = tokio::time::timeout(patience, self.body.frame()).await.map_err(|_| {
                let message = "The next message did not come in time.";
                ApiError::new(ErrorCode::DeadlineExceeded, message)
            })?;
            let broken = |why: &str| ApiError::new(ErrorCode::BadRequest, format!("The stream broke off: {why}."));
            match arrived {
                None if self.arrived.is_empty() => return Ok(None),
                None => return Err(broken("its last message is cut off")),
                Some(Err(error)) => return Err(broken(&error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        room.grow(data.len() as u64)?;
                        self.arrived.extend_from_slice(&data);
                        begun.get_or_insert_with(Instant::now);
                    }
                }
            }
        }
    }

    async fn answer(&mut self, framed: Framed, room: &mut BodyRoom<'_>) -> Result<ModelStreamInferResponse, ApiError> {
        self.call.id = request_id();
        self.call.started = Instant::now();
        // Its token may have ended since the last one.
        self.call.admit(QUERY)?;
        let response = infer_once(&self.call, framed, room).await?;
        Ok(ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) })
    }
}
