//! The request, and the two ways to read its body.

#[cfg(feature = "base64")]
use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt;

use serde::Deserialize;

use crate::Error;
#[cfg(target_arch = "wasm32")]
use crate::bindings::tessera::endpoint::{request_headers::get as header, settings::get as setting};
use crate::bindings::tessera::endpoint::{streaming, types};
use crate::response::stream_error;
#[cfg(not(target_arch = "wasm32"))]
use crate::testing::host::{header, setting};

/// How much a chunked body is asked for at a time: large enough that the cost of the call vanishes, small enough that a
/// guest which works chunk by chunk stays small.
const CHUNK_BYTES: u32 = 64 * 1024;

/// One call of the endpoint.
#[derive(Debug)]
pub struct Request {
    path: String,
    content_type: String,
    body: Body,
}

enum Body {
    Full(Vec<u8>),
    /// `read` is filled by the first reader that wants the whole, and answers the ones after it.
    Chunks {
        source: streaming::RequestBody,
        read: OnceCell<Vec<u8>>,
    },
}

impl Request {
    /// A request made by hand, for unit tests of an endpoint.
    pub fn new(path: impl Into<String>, content_type: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), content_type: content_type.into(), body: Body::Full(body.into()) }
    }

    /// Which API was called: `invocations`, `embeddings`, `v2/infer`, `chat/completions` and so on.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The `Content-Type` header as sent; empty when absent.
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// The content type in lower case and without parameters: `application/json` of `Application/JSON; charset=utf-8`.
    pub fn media_type(&self) -> String {
        let essence = self.content_type.split(';').next().unwrap_or_default();
        essence.trim().to_ascii_lowercase()
    }

    /// A setting of the manifest, or of the served entity's environment, which wins. One that refers to a secret is only
    /// here, never in [`crate::Package::setting`].
    pub fn setting(&self, name: &str) -> Option<String> {
        setting(name)
    }

    /// The name of the endpoint that was called; natively empty, unless [testing](crate#testing) says otherwise.
    pub fn endpoint(&self) -> String {
        setting("tessera.endpoint").unwrap_or_default()
    }

    /// The number of the model version that answers; natively likewise.
    pub fn model_version(&self) -> String {
        setting("tessera.model_version").unwrap_or_default()
    }

    /// The id of the request, which the response tells in `x-request-id`; natively likewise.
    pub fn id(&self) -> String {
        setting("tessera.request_id").unwrap_or_default()
    }

    /// The time now, in milliseconds since 1970, by the host's clock; natively 0, likewise.
    pub fn time_ms(&self) -> u64 {
        setting("tessera.time_ms").and_then(|time| time.parse().ok()).unwrap_or_default()
    }

    /// A header by its name in any case; none when absent, not text, or withheld (credentials).
    pub fn header(&self, name: &str) -> Option<String> {
        header(&name.to_ascii_lowercase())
    }

    /// The whole body; a body that arrives in chunks is read to its end.
    pub fn bytes(&self) -> Result<&[u8], Error> {
        match &self.body {
            Body::Full(bytes) => Ok(bytes),
            Body::Chunks { source, read } => {
                if let Some(bytes) = read.get() {
                    return Ok(bytes);
                }
                let bytes = read_to_end(source)?;
                Ok(read.get_or_init(|| bytes))
            }
        }
    }

    /// The whole body as an owned buffer.
    pub fn into_bytes(self) -> Result<Vec<u8>, Error> {
        match self.body {
            Body::Full(bytes) => Ok(bytes),
            Body::Chunks { source, read } => read.into_inner().map_or_else(|| read_to_end(&source), Ok),
        }
    }

    /// The body as text.
    pub fn text(&self) -> Result<&str, Error> {
        std::str::from_utf8(self.bytes()?).map_err(|error| {
            Error::invalid_input(format!("the body is not UTF-8 text: invalid byte at offset {}", error.valid_up_to()))
        })
    }

    /// The body as JSON. `T` may borrow from the request. A mistake is reported with its line and column.
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Error> {
        let bytes = self.bytes()?;
        if bytes.is_empty() {
            return Err(Error::invalid_input("the body is empty; expected JSON"));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// A file: the body itself, or where the body is JSON, what the text `name` in it is the base64 of.
    #[cfg(feature = "base64")]
    pub fn file(&self, name: &str) -> Result<Cow<'_, [u8]>, Error> {
        use base64::Engine as _;
        if self.media_type() != "application/json" {
            return Ok(Cow::Borrowed(self.bytes()?));
        }
        let fields: std::collections::BTreeMap<String, serde_json::Value> = self.json()?;
        let Some(text) = fields.get(name).and_then(|field| field.as_str()) else {
            let ways = "give the file as base64 there, or as the body with its own content type";
            return Err(Error::invalid_input(format!("the JSON body has no text `{name}`: {ways}")));
        };
        let decoded = base64::engine::general_purpose::STANDARD.decode(text);
        decoded.map(Cow::Owned).map_err(|error| Error::invalid_input(format!("`{name}` is not base64: {error}")))
    }

    /// The body chunk by chunk, while it arrives. A full body is one chunk.
    pub fn chunks(self) -> Chunks {
        Chunks(self.body)
    }
}

impl From<types::Request> for Request {
    fn from(types::Request { path, content_type, body }: types::Request) -> Self {
        let body = match body {
            types::Body::Full(bytes) => Body::Full(bytes),
            types::Body::Chunks(source) => Body::Chunks { source, read: OnceCell::new() },
        };
        Self { path, content_type, body }
    }
}

impl fmt::Debug for Body {
    /// Without the content: a body belongs to the caller and not into a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(bytes) => write!(f, "Full({} bytes)", bytes.len()),
            Self::Chunks { .. } => f.write_str("Chunks"),
        }
    }
}

/// The chunks of a request body, none of them empty. Stop at the first error: the body cannot be continued.
#[derive(Debug)]
pub struct Chunks(Body);

impl Iterator for Chunks {
    type Item = Result<Vec<u8>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let whole = match &mut self.0 {
            Body::Full(bytes) => std::mem::take(bytes),
            Body::Chunks { source, read } => match read.get_mut() {
                Some(bytes) => std::mem::take(bytes),
                None => return read_chunk(source).transpose(),
            },
        };
        (!whole.is_empty()).then_some(Ok(whole))
    }
}

fn read_to_end(source: &streaming::RequestBody) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = read_chunk(source)? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn read_chunk(source: &streaming::RequestBody) -> Result<Option<Vec<u8>>, Error> {
    let chunk = source.read(CHUNK_BYTES).map_err(|error| stream_error("read the request body", error))?;
    Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn json_request(body: &str) -> Request {
        Request::new("invocations", "Application/JSON; charset=utf-8", body)
    }

    #[test]
    fn the_media_type_has_neither_case_nor_parameters() {
        assert_eq!(json_request("{}").media_type(), "application/json");
        assert_eq!(Request::new("", "", "").media_type(), "");
    }

    #[test]
    fn json_may_borrow_from_the_request() {
        let request = json_request(r#"["a", "b"]"#);
        assert_eq!(request.json::<Vec<&str>>().unwrap(), ["a", "b"]);
    }

    #[test]
    fn a_json_mistake_is_reported_with_its_place() {
        let error = json_request("{\"inputs\":\n [1, 2").json::<serde_json::Value>().unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidInput);
        assert!(error.message.contains("line 2 column 6"), "{}", error.message);
    }

    #[test]
    fn an_empty_body_is_named_as_such() {
        let error = json_request("").json::<serde_json::Value>().unwrap_err();
        assert_eq!(error.message, "the body is empty; expected JSON");
    }

    #[test]
    fn text_must_be_utf8() {
        let error = Request::new("", "", vec![b'a', 0xff]).text().unwrap_err();
        assert_eq!(error.message, "the body is not UTF-8 text: invalid byte at offset 1");
    }

    #[test]
    fn a_full_body_is_one_chunk_and_an_empty_one_none() {
        let chunks: Result<Vec<_>, _> = Request::new("", "", "abc").chunks().collect();
        assert_eq!(chunks.unwrap(), [b"abc"]);
        assert_eq!(Request::new("", "", "").chunks().count(), 0);
    }
}
