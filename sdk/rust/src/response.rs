//! The answer: whole, or in chunks while it is made.

use serde::Serialize;

use crate::Error;
#[cfg(target_arch = "wasm32")]
use crate::bindings::tessera::endpoint::streaming::{ResponseBody, respond};
use crate::bindings::tessera::endpoint::{streaming::StreamError, types};
#[cfg(not(target_arch = "wasm32"))]
use crate::testing::host::{ResponseBody, respond};

/// What [`Endpoint::handle`](crate::Endpoint::handle) returns.
#[derive(Debug)]
pub struct Response(Kind);

#[derive(Debug)]
enum Kind {
    Full(types::Response),
    /// Held so that the body ends when the response is handed over, not before.
    Streamed {
        #[cfg_attr(target_arch = "wasm32", expect(dead_code, reason = "held for its drop"))]
        body: ResponseBody,
    },
}

impl Response {
    /// `value` as JSON, with status 200.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, Error> {
        let body = serde_json::to_vec(value)
            .map_err(|error| Error::model(format!("failed to write the response as JSON: {error}")))?;
        Ok(Self::bytes("application/json", body))
    }

    /// Plain text, with status 200.
    pub fn text(text: impl Into<String>) -> Self {
        Self::bytes("text/plain; charset=utf-8", text.into())
    }

    /// Any content, with status 200.
    pub fn bytes(content_type: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self(Kind::Full(types::Response { status: 200, content_type: content_type.into(), body: body.into() }))
    }

    /// The same with another status. An answer to a bad request is 4xx: clients retry 5xx. Better still, return an
    /// [`Error`], which the host renders as every other error of the API.
    ///
    /// Of a streamed response the status has been sent already; it does not change.
    pub fn with_status(mut self, status: u16) -> Self {
        if let Kind::Full(response) = &mut self.0 {
            response.status = status;
        }
        self
    }

    /// Sends the head of a response with status 200 and opens its body. For server-sent events the content type is
    /// `text/event-stream`. At most once per request; an error after it can only cut the response off.
    pub fn stream(content_type: &str) -> Result<StreamingResponse, Error> {
        StreamingResponse::open(200, content_type)
    }

    /// Status, content type and body, for unit tests of an endpoint. In a component there are none of a streamed response:
    /// they have been sent.
    pub fn parts(&self) -> Option<(u16, &str, &[u8])> {
        match &self.0 {
            Kind::Full(response) => Some((response.status, &response.content_type, &response.body)),
            #[cfg(target_arch = "wasm32")]
            Kind::Streamed { .. } => None,
            #[cfg(not(target_arch = "wasm32"))]
            Kind::Streamed { body } => Some((body.status, &body.content_type, &body.written)),
        }
    }
}

impl From<Response> for types::Reply {
    fn from(response: Response) -> Self {
        match response.0 {
            Kind::Full(response) => Self::Full(response),
            Kind::Streamed { .. } => Self::Streamed,
        }
    }
}

/// A response whose head is sent and whose body is being written. Finish it with [`finish`](Self::finish), and return
/// that from `handle`.
#[derive(Debug)]
pub struct StreamingResponse {
    body: ResponseBody,
}

impl StreamingResponse {
    /// [`Response::stream`] with a status of choice.
    pub fn open(status: u16, content_type: &str) -> Result<Self, Error> {
        let body = respond(status, content_type).map_err(|error| stream_error("open the response", error))?;
        Ok(Self { body })
    }

    /// Sends one chunk, after the client has taken the ones before it. On an error stop: the client is gone.
    pub fn write(&mut self, chunk: impl AsRef<[u8]>) -> Result<(), Error> {
        self.body.write(chunk.as_ref()).map_err(|error| stream_error("write the response", error))
    }

    /// The response to return from `handle`.
    pub fn finish(self) -> Response {
        Response(Kind::Streamed { body: self.body })
    }
}

pub(crate) fn stream_error(attempted: &str, error: StreamError) -> Error {
    match error {
        StreamError::Closed => Error::unavailable(format!("failed to {attempted}: the client is gone")),
        StreamError::TooLarge => Error::too_large(format!("failed to {attempted}: over its limit in bytes")),
        StreamError::Invalid => {
            Error::model(format!("failed to {attempted}: responded before, or the status is not allowed"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_sets_the_content_type_and_the_status_can_be_chosen() {
        let response = Response::json(&[1, 2]).unwrap().with_status(202);
        assert_eq!(response.parts(), Some((202, "application/json", b"[1,2]".as_slice())));
    }

    #[test]
    fn what_json_cannot_express_is_an_error() {
        let keys_that_are_no_strings = std::collections::BTreeMap::from([(vec![1], 2)]);
        assert!(Response::json(&keys_that_are_no_strings).unwrap_err().message.contains("key must be a string"));
    }
}
