//! What a model says in a stream, heard while it passes: the beginning of it for the inference table, and how many
//! tokens it tells of. Nothing waits for this, and it holds at most [`PAYLOAD_BYTES_MAX`] and one event.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::rows::PAYLOAD_BYTES_MAX;
use super::tokens::{Events, Tokens};

/// The ear of one request, shared by the guest's side, which speaks, and the account, which reads it at the end.
#[derive(Debug, Clone)]
pub struct Transcript(Arc<Mutex<Heard>>);

/// What a transcript is for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The text.
    pub payload: bool,
    /// What it says of tokens.
    pub tokens: bool,
}

#[derive(Debug)]
struct Heard {
    wanted: Wanted,
    shape: Shape,
    kept: Vec<u8>,
    kept_bytes_max: usize,
    characters: u64,
    cut: bool,
    events: Events,
}

/// All that was heard.
#[derive(Debug, Default)]
pub struct Said {
    /// The text, or its beginning.
    pub payload: Bytes,
    /// Whether there was more of it.
    pub cut: bool,
    /// Length of all of it.
    pub characters: u64,
    /// What it said of tokens.
    pub tokens: Option<Tokens>,
}

/// How an answer tells of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Json,
    Events,
    Other,
}

impl Shape {
    fn of(content_type: &str) -> Shape {
        let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match media_type.as_str() {
            "text/event-stream" => Shape::Events,
            json if json == "application/json" || json.ends_with("+json") => Shape::Json,
            _ => Shape::Other,
        }
    }
}

/// What an answer in one piece says of its tokens.
pub fn tokens_of(content_type: &str, body: &[u8]) -> Option<Tokens> {
    match Shape::of(content_type) {
        Shape::Json => Tokens::of_json(body),
        Shape::Events => {
            let mut events = Events::default();
            events.hear(body);
            events.end()
        }
        Shape::Other => None,
    }
}

/// Characters of UTF-8: the first byte of each is counted.
pub fn characters(text: &[u8]) -> u64 {
    text.iter().filter(|byte| (**byte as i8) >= -0x40).count() as u64
}

impl Transcript {
    /// One that has heard nothing.
    pub fn new(wanted: Wanted) -> Transcript {
        Transcript(Arc::new(Mutex::new(Heard {
            wanted,
            shape: Shape::Other,
            kept: Vec::new(),
            kept_bytes_max: 0,
            characters: 0,
            cut: false,
            events: Events::default(),
        })))
    }

    /// A stream of this type begins.
    pub fn begin(&self, content_type: &str) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.shape = Shape::of(content_type);
        // JSON is looked into when it is whole.
        let keep = heard.wanted.payload || (heard.wanted.tokens && heard.shape == Shape::Json);
        heard.kept_bytes_max = if keep { PAYLOAD_BYTES_MAX } else { 0 };
    }

    /// The next piece of it.
    pub fn hear(&self, piece: &[u8]) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = heard.kept_bytes_max - heard.kept.len();
        heard.kept.extend_from_slice(&piece[..piece.len().min(room)]);
        heard.cut |= piece.len() > room;
        heard.characters += characters(piece);
        if heard.wanted.tokens && heard.shape == Shape::Events {
            heard.events.hear(piece);
        }
    }

    /// All that was heard so far; afterwards nothing is.
    pub fn take(&self) -> Said {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut kept, events) = (std::mem::take(&mut heard.kept), std::mem::take(&mut heard.events));
        heard.kept_bytes_max = 0;
        let tokens = match heard.shape {
            Shape::Json if heard.wanted.tokens && !heard.cut => Tokens::of_json(&kept),
            Shape::Events => events.end(),
            _ => None,
        };
        if heard.cut {
            trim_to_character(&mut kept);
        }
        let payload = if heard.wanted.payload { kept.into() } else { Bytes::new() };
        Said { payload, cut: heard.cut, characters: heard.characters, tokens }
    }
}

/// Takes away the beginning of a character whose end was cut off.
fn trim_to_character(text: &mut Vec<u8>) {
    if let Err(error) = std::str::from_utf8(text)
        && error.error_len().is_none()
    {
        text.truncate(error.valid_up_to());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Wanted = Wanted { payload: true, tokens: true };

    fn said(wanted: Wanted, content_type: &str, pieces: &[&str]) -> Said {
        let transcript = Transcript::new(wanted);
        transcript.begin(content_type);
        pieces.iter().for_each(|piece| transcript.hear(piece.as_bytes()));
        transcript.take()
    }

    #[test]
    fn a_stream_is_heard_whole_and_its_tokens_with_it() {
        let events = ["data: {\"usage\":{\"prompt", "_tokens\":3,\"total_tokens\":5}}\n", "\ndata: [DONE]\n\n"];
        let heard = said(ALL, "text/event-stream; charset=utf-8", &events);
        assert_eq!((heard.payload, heard.cut), (events.concat().into(), false));
        assert_eq!(heard.characters, events.concat().len() as u64);
        assert_eq!(heard.tokens.unwrap().of_output(), Some(2));
        let json = ["{\"usage\":{\"prompt_tokens\"", ":3}}"];
        let tokens_alone = said(Wanted { payload: false, tokens: true }, "application/json", &json);
        assert_eq!((tokens_alone.tokens.unwrap().input, tokens_alone.payload.len()), (Some(3), 0));
        let payload_alone = said(Wanted { payload: true, tokens: false }, "application/json", &json);
        assert_eq!((payload_alone.tokens, payload_alone.payload), (None, json.concat().into()));
        assert!(said(ALL, "text/plain", &json).tokens.is_none());
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters_and_says_so() {
        let piece = "\u{20ac}".repeat(1000);
        let pieces = vec![piece.as_str(); 500];
        let heard = said(ALL, "text/plain", &pieces);
        assert!(heard.cut && heard.payload.len() <= PAYLOAD_BYTES_MAX && heard.payload.len() + 4 > PAYLOAD_BYTES_MAX);
        assert!(std::str::from_utf8(&heard.payload).is_ok());
        assert_eq!(heard.characters, 500_000);
        let exact = said(ALL, "text/plain", &["x".repeat(PAYLOAD_BYTES_MAX).as_str()]);
        assert_eq!((exact.cut, exact.payload.len()), (false, PAYLOAD_BYTES_MAX));
    }

    #[test]
    fn tokens_of_whole_answers_are_read_by_their_type() {
        assert_eq!(tokens_of("application/vnd.x+json", br#"{"usage":{"total_tokens":5}}"#).unwrap().all(), 5);
        assert_eq!(tokens_of("text/event-stream", b"data: {\"usage\":{\"total_tokens\":5}}\n\n").unwrap().all(), 5);
        assert_eq!(tokens_of("application/octet-stream", br#"{"usage":{"total_tokens":5}}"#), None);
        assert_eq!(characters("a\u{e4}b\u{20ac}".as_bytes()), 4);
    }
}
