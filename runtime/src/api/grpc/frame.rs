//! gRPC's form on HTTP/2: a message is five bytes in front of it, an error is a status in the headers behind the body.

use bytes::{BufMut, Bytes, BytesMut};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use prost::encoding::{DecodeContext, decode_key, skip_field};
use prost::{DecodeError, Message};

use crate::api::{Answer, respond};
use crate::error::{ApiError, ErrorCode};
use crate::http::body::ResponseBody;
use crate::http::compression::Packing;

/// In front of each message: whether it is compressed, and its length in four bytes, most significant first.
pub(super) const PREFIX_BYTES: usize = 5;

/// Bytes of an error's text before it is escaped: clients take only so much in headers.
const TEXT_BYTES_MAX: usize = 1000;

/// What a text in a header must not hold as it is: `%`; all beyond ASCII is escaped anyway.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// Whether a request speaks gRPC. Not its relatives for browsers, `application/grpc-web`.
pub(in crate::api) fn is_asked(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    match content_type.strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    }
}

/// A message as it was sent.
#[derive(Debug, PartialEq)]
pub(super) struct Framed {
    pub(super) compressed: bool,
    pub(super) content: Bytes,
}

impl Framed {
    /// Takes a message off the front of what has arrived; none until it is complete.
    ///
    /// # Errors
    /// 413 when it says that it is longer than `bytes_max`, before it has arrived; 400 when it is no message.
    pub(super) fn take(arrived: &mut BytesMut, bytes_max: u64) -> Result<Option<Framed>, ApiError> {
        let Some(&[flag, a, b, c, d]) = arrived.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]);
        if flag > 1 {
            let message = format!("A gRPC message begins with 0 or 1, not with {flag}.");
            return Err(ApiError::new(ErrorCode::BadRequest, message));
        }
        if u64::from(length) > bytes_max {
            let message = format!("The message has {length} bytes; the limit is {bytes_max}.");
            return Err(ApiError::new(ErrorCode::BadRequest, message).with_status(413));
        }
        if arrived.len() - PREFIX_BYTES < length as usize {
            return Ok(None);
        }
        let mut message = arrived.split_to(PREFIX_BYTES + length as usize);
        let content = message.split_off(PREFIX_BYTES).freeze();
        Ok(Some(Framed { compressed: flag == 1, content }))
    }

    /// The one message of a whole body.
    ///
    /// # Errors
    /// As [`take`](Framed::take), and 400 when there is another number of them.
    pub(super) fn only(body: Vec<u8>, bytes_max: u64) -> Result<Framed, ApiError> {
        let mut body = BytesMut::from(Bytes::from(body));
        let message = Framed::take(&mut body, bytes_max)?;
        let message = message.ok_or_else(|| ApiError::new(ErrorCode::BadRequest, "The gRPC message is cut off."))?;
        match body.is_empty() {
            true => Ok(message),
            false => Err(ApiError::new(ErrorCode::BadRequest, "This method takes one message, and there are more.")),
        }
    }

    /// Reads it; `encoding` is what the request's headers say of compressed messages, `grow` allows what they unpack to.
    ///
    /// # Errors
    /// 400 when it is no such message, 413 when it unpacks to more than `bytes_max`.
    pub(super) async fn unpack(
        self,
        encoding: &str,
        bytes_max: u64,
        grow: impl FnMut(u64) -> Result<(), ApiError>,
    ) -> Result<Bytes, ApiError> {
        match self.compressed {
            false => Ok(self.content),
            true => {
                let packing = Packing::of_body(encoding)?.ok_or_else(|| {
                    let message = "The message is compressed, but grpc-encoding does not say how.";
                    ApiError::new(ErrorCode::BadRequest, message)
                })?;
                Ok(packing.unpack(&self.content, bytes_max, grow).await?.into())
            }
        }
    }
}

/// Reads a message.
///
/// # Errors
/// 400 when it is damaged.
pub(super) fn read<M: Message + Default>(content: Bytes) -> Result<M, ApiError> {
    M::decode(content).map_err(|error| damaged(&error))
}

/// At least what a request for inference takes in memory once it is read: two bytes of a message can be a tensor, which is
/// hundreds. Raw contents, where clients have their bulk, are not copied.
///
/// # Errors
/// 400 when it is damaged.
pub(super) fn read_bytes(mut content: &[u8]) -> Result<u64, ApiError> {
    const RAW_CONTENTS: u32 = 7;
    let mut bytes = 0;
    while !content.is_empty() {
        let (field, wire_type) = decode_key(&mut content).map_err(|error| damaged(&error))?;
        let before = content.len();
        skip_field(wire_type, field, &mut content, DecodeContext::default()).map_err(|error| damaged(&error))?;
        let size = (before - content.len()) as u64;
        bytes += if field == RAW_CONTENTS { 64 } else { 1024 + 16 * size };
    }
    Ok(bytes)
}

fn damaged(error: &DecodeError) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, format!("The gRPC message is damaged: {error}."))
}

/// A message with its length in front of it.
pub(super) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // There is room for all of it, so that this cannot fail.
    let _ = message.encode(&mut framed);
    framed.freeze()
}

/// The answer of a method that has one.
pub(super) fn answer(message: &impl Message) -> Answer {
    succeeded(ResponseBody::from(frame(message)))
}

/// An answer whose body is messages, and which ends well.
pub(super) fn succeeded(body: ResponseBody) -> Answer {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let mut answer = respond(200, "application/grpc", "");
    answer.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static("identity,deflate,gzip"));
    *answer.body_mut() = ResponseBody::Trailed { body: Box::new(body), trailers: Some(Box::new(trailers)) };
    answer
}

/// An error: headers alone.
pub(in crate::api) fn failed(error: &ApiError) -> Answer {
    let mut answer = respond(200, "application/grpc", "");
    let headers = answer.headers_mut();
    headers.insert("grpc-status", HeaderValue::from(status(error)));
    let text = &error.message[..error.message.floor_char_boundary(TEXT_BYTES_MAX)];
    if let Ok(text) = HeaderValue::from_str(&utf8_percent_encode(text, ESCAPED).to_string()) {
        headers.insert("grpc-message", text);
    }
    answer
}

/// gRPC's status of an error: of the HTTP status that it would have, which says more than the code.
fn status(error: &ApiError) -> u16 {
    const CANCELLED: u16 = 1;
    const INVALID_ARGUMENT: u16 = 3;
    const DEADLINE_EXCEEDED: u16 = 4;
    const NOT_FOUND: u16 = 5;
    const ALREADY_EXISTS: u16 = 6;
    const PERMISSION_DENIED: u16 = 7;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const ABORTED: u16 = 10;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    match error.status {
        _ if error.code == ErrorCode::ResourceAlreadyExists => ALREADY_EXISTS,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => NOT_FOUND,
        408 | 504 => DEADLINE_EXCEEDED,
        409 => ABORTED,
        413 | 429 => RESOURCE_EXHAUSTED,
        415 | 501 => UNIMPLEMENTED,
        499 => CANCELLED,
        503 => UNAVAILABLE,
        400..=499 => INVALID_ARGUMENT,
        _ => INTERNAL,
    }
}

/// A time as `grpc-timeout` says it: up to eight digits and a unit.
///
/// # Errors
/// 400.
pub(super) fn timeout(text: &str) -> Result<std::time::Duration, ApiError> {
    let wrong = || {
        let message = format!("grpc-timeout is '{text}'; it must be up to 8 digits and one of H, M, S, m, u, n.");
        ApiError::new(ErrorCode::BadRequest, message)
    };
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let amount: u64 = digits.parse().map_err(|_| wrong())?;
    let unit_ns: u64 = match unit {
        "H" => 3_600_000_000_000,
        "M" => 60_000_000_000,
        "S" => 1_000_000_000,
        "m" => 1_000_000,
        "u" => 1_000,
        "n" => 1,
        _ => return Err(wrong()),
    };
    Ok(std::time::Duration::from_nanos(amount.saturating_mul(unit_ns)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::messages::{ModelIndex, ModelRequest};
    use super::*;

    fn request() -> ModelRequest {
        ModelRequest { name: "iris".to_owned(), version: "1".to_owned() }
    }

    async fn read_packed<M: Message + Default>(framed: Framed, encoding: &str, bytes_max: u64) -> Result<M, ApiError> {
        read(framed.unpack(encoding, bytes_max, |_| Ok(())).await?)
    }

    #[test]
    fn what_is_small_on_the_wire_and_large_in_memory_is_known_before_it_is_read() {
        let tensors = [0x2a, 0].repeat(1000);
        assert!(read_bytes(&tensors).unwrap() >= 1000 * 312);
        let raw = [&[0x3a, 0x80, 0x08][..], &[0; 1024]].concat();
        assert_eq!(read_bytes(&raw).unwrap(), 64);
        assert_eq!(read_bytes(&[0x2a, 5]).unwrap_err().status, 400);
    }

    #[tokio::test]
    async fn a_message_comes_back_whole_however_it_arrives() {
        let sent = frame(&request());
        for cut in 0..sent.len() {
            let mut arrived = BytesMut::from(&sent[..cut]);
            assert_eq!(Framed::take(&mut arrived, 100).unwrap(), None);
            assert_eq!(Framed::only(sent[..cut].to_vec(), 100).unwrap_err().status, 400);
            arrived.extend_from_slice(&sent[cut..]);
            arrived.extend_from_slice(b"more");
            let message = Framed::take(&mut arrived, 100).unwrap().unwrap();
            assert_eq!(
                (read_packed::<ModelRequest>(message, "", 100).await.unwrap(), &arrived[..]),
                (request(), &b"more"[..])
            );
        }
        assert_eq!(Framed::only([&sent[..], b"more"].concat(), 100).unwrap_err().status, 400);
    }

    #[tokio::test]
    async fn compressed_messages_are_unpacked_within_bounds() {
        let content = Packing::Gzip.pack(&request().encode_to_vec()).await;
        let message = || Framed { compressed: true, content: content.clone().into() };
        assert_eq!(read_packed::<ModelRequest>(message(), "gzip", 100).await.unwrap(), request());
        assert_eq!(read_packed::<ModelRequest>(message(), "gzip", 3).await.unwrap_err().status, 413);
        assert_eq!(read_packed::<ModelRequest>(message(), "", 100).await.unwrap_err().status, 400);
        assert_eq!(read_packed::<ModelRequest>(message(), "br", 100).await.unwrap_err().status, 415);
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused() {
        let take = |bytes: &[u8]| Framed::take(&mut BytesMut::from(bytes), 100).unwrap_err().status;
        assert_eq!(take(b"\x02\0\0\0\0"), 400);
        assert_eq!(take(b"\0\xff\xff\xff\xff"), 413);
        let mut random = 7u64;
        for length in 0..2000usize {
            let noise = (0..length % 61).map(|_| {
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                (random >> 40) as u8
            });
            let message = Framed { compressed: false, content: noise.collect() };
            if let Err(error) = read_packed::<ModelIndex>(message, "", 100).await {
                assert_eq!(error.status, 400);
            }
        }
    }

    #[test]
    fn errors_have_a_status_and_a_text() {
        let error = ApiError::missing(format!("100 % of 'é' is\nnot there{}", "x".repeat(2000)));
        let answer = failed(&error);
        assert_eq!((answer.status().as_u16(), &answer.headers()["grpc-status"]), (200, &HeaderValue::from(5)));
        let text = answer.headers()["grpc-message"].to_str().unwrap();
        assert!(text.starts_with("100 %25 of '%C3%A9' is%0Anot therexxx") && text.len() < 1100, "{text}");
        for (code, status, expected) in [
            (ErrorCode::BadRequest, 400, 3),
            (ErrorCode::BadRequest, 413, 8),
            (ErrorCode::ResourceAlreadyExists, 400, 6),
            (ErrorCode::Unauthenticated, 401, 16),
            (ErrorCode::PermissionDenied, 403, 7),
            (ErrorCode::RequestLimitExceeded, 429, 8),
            (ErrorCode::NotImplemented, 501, 12),
            (ErrorCode::TemporarilyUnavailable, 503, 14),
            (ErrorCode::DeadlineExceeded, 504, 4),
            (ErrorCode::InternalError, 500, 13),
        ] {
            assert_eq!(super::status(&ApiError::new(code, "").with_status(status)), expected, "{code:?}");
        }
    }

    #[test]
    fn timeouts_are_read() {
        assert_eq!(timeout("1500m").unwrap(), Duration::from_millis(1500));
        assert_eq!(timeout("99999999H").unwrap(), Duration::from_nanos(u64::MAX));
        for wrong in ["", "1", "m", "123456789m", "+1m", "1x", "1é"] {
            assert_eq!(timeout(wrong).unwrap_err().status, 400, "{wrong}");
        }
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        let asked = |content_type: &'static str| {
            is_asked(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]))
        };
        assert!(["application/grpc", "application/grpc+proto", "application/grpc; x"].into_iter().all(asked));
        assert!(!["application/grpc-web", "application/json", ""].into_iter().any(asked));
    }
}
