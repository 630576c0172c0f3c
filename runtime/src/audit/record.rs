//! One line of the audit log: `{…,"prev":"…","hash":"…"}`. The hash is over all that stands before it in the line, keyed
//! with the home's secret; `prev` is the hash of the line before.

use serde::{Deserialize, Serialize};

use super::files::Head;

/// Longest text of one field, in bytes. What is longer is cut: callers choose the names of what they ask for.
const TEXT_BYTES_MAX: usize = 1024;

/// Longest line: eight fields of text, each at worst six bytes a byte when escaped.
pub(super) const LINE_BYTES_MAX: usize = 64 << 10;

/// What happened, as the one who saw it tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The tenant; none before it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<u64>,
    /// Who did it; none before that is known, and for what the server does by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<Who>,
    /// Address of the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// `x-request-id` of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The route's name, like `serving-endpoints.create`.
    pub action: String,
    /// What it was done to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// HTTP status of the outcome; 0 for what the server does by itself.
    pub status: u16,
    /// `error_code` of a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
}

/// A principal, as it was called then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Unique number.
    pub id: u64,
    /// User name or application id.
    pub name: String,
    /// `user` or `service_principal`.
    pub kind: String,
}

/// A line without its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// From 1, without gaps.
    pub seq: u64,
    /// RFC 3339 with milliseconds.
    pub time: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// How often within a second; left out for once.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub count: u64,
    /// Of a record that tells of removed segments: the last record in them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed_to: Option<u64>,
    /// Hash of the record before, 64 hex digits; zeros for the first.
    pub prev: String,
}

fn once() -> u64 {
    1
}

fn is_once(count: &u64) -> bool {
    *count == 1
}

impl Event {
    /// Something that the server does by itself.
    pub fn own(action: &str, object: impl Into<String>) -> Event {
        Event { action: action.to_owned(), object: Some(object.into()), ..Event::default() }
    }

    /// The same with every text short enough for a line.
    pub(super) fn cut(mut self) -> Event {
        let Event { principal, source, request_id, action, object, error_code, .. } = &mut self;
        let who = principal.iter_mut().flat_map(|who| [&mut who.name, &mut who.kind]);
        let texts = [source, request_id, object, error_code].into_iter().flatten();
        for text in texts.chain(who).chain([action]) {
            let end = (0..=TEXT_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or(0));
        }
        self
    }
}

const HASH: &[u8] = b",\"hash\":\"";
/// Hex digits of a hash.
const DIGITS: usize = 64;

/// The line of a record, with its end, and the head of a log that ends with it.
pub(super) fn seal(key: &[u8; 32], record: &Record) -> (Vec<u8>, Head) {
    // A record of strings and numbers always becomes JSON.
    let mut line = serde_json::to_vec(record).unwrap_or_default();
    line.pop();
    let hash = blake3::keyed_hash(key, &line);
    line.extend_from_slice(HASH);
    line.extend_from_slice(hash.to_hex().as_bytes());
    line.extend_from_slice(b"\"}\n");
    (line, Head { seq: record.seq, hash: *hash.as_bytes() })
}

/// The record of a line without its end; none if anything in it is not as it was written.
pub(super) fn open(key: &[u8; 32], line: &[u8]) -> Option<(Record, Head)> {
    let start = line.len().checked_sub(HASH.len() + DIGITS + 2)?;
    let (content, tail) = line.split_at(start);
    let digits = tail.strip_prefix(HASH)?.strip_suffix(b"\"}")?;
    let hash = blake3::keyed_hash(key, content);
    if hash.to_hex().as_bytes() != digits {
        return None;
    }
    let record: Record = serde_json::from_slice(&[content, b"}"].concat()).ok()?;
    let head = Head { seq: record.seq, hash: *hash.as_bytes() };
    Some((record, head))
}
