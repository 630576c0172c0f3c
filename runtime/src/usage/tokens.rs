//! What language models say of their tokens: the `usage` object of an answer, or of the events of a stream.

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Longest event of a stream that is looked into; the last event of OpenAI's responses repeats the whole answer.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// What a model says. Read in OpenAI's two spellings: `prompt_tokens` and `input_tokens`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of the input.
    pub input: Option<u64>,
    /// Of the output.
    pub output: Option<u64>,
    /// Of both.
    pub total: Option<u64>,
}

/// The object as it is written.
#[derive(Debug, Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    input_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    output_tokens: Option<u64>,
    total_tokens: Option<u64>,
}

impl Tokens {
    /// Reads `usage` at the top of a JSON object, or in its `response`, where events of OpenAI's responses have it. An
    /// answer without that word is not parsed.
    pub fn of_json(body: &[u8]) -> Option<Tokens> {
        #[derive(Deserialize)]
        struct Top {
            usage: Option<Usage>,
        }
        #[derive(Deserialize)]
        struct Event {
            response: Top,
        }
        memchr::memmem::find(body, b"\"usage\"")?;
        let usage = read::<Top>(body).and_then(|top| top.usage);
        let usage = usage.or_else(|| read::<Event>(body).and_then(|event| event.response.usage))?;
        let tokens = Tokens {
            input: usage.prompt_tokens.or(usage.input_tokens),
            output: usage.completion_tokens.or(usage.output_tokens),
            total: usage.total_tokens,
        };
        (tokens != Tokens::default()).then_some(tokens)
    }

    /// Of the output: what is said of it, or what is left of all.
    pub fn of_output(&self) -> Option<u64> {
        let rest = || self.total.zip(self.input).map(|(total, input)| total.saturating_sub(input));
        self.output.or_else(rest)
    }

    /// All that limits count.
    pub fn all(&self) -> u64 {
        let parts = self.input.unwrap_or(0).saturating_add(self.output.unwrap_or(0));
        self.total.unwrap_or(parts)
    }

    /// What a later event says counts; what it does not say stays.
    fn then(self, later: Tokens) -> Tokens {
        Tokens {
            input: later.input.or(self.input),
            output: later.output.or(self.output),
            total: later.total.or(self.total),
        }
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    serde_json::from_slice(body).ok()
}

/// Reads a stream of server-sent events as it passes, in pieces of any size.
#[derive(Debug, Default)]
pub struct Events {
    /// The begun line.
    line: Vec<u8>,
    /// The `data` of the begun event.
    data: Vec<u8>,
    /// Whether the begun event is longer than is looked into.
    too_long: bool,
    tokens: Option<Tokens>,
}

impl Events {
    /// The next piece.
    pub fn hear(&mut self, mut piece: &[u8]) {
        while let Some(end) = memchr::memchr(b'\n', piece) {
            self.add_to_line(&piece[..end]);
            self.end_line();
            piece = &piece[end + 1..];
        }
        self.add_to_line(piece);
    }

    /// What the events said: what a later one says counts. The last one may lack the empty line that ends it.
    pub fn end(mut self) -> Option<Tokens> {
        self.end_line();
        self.end_event();
        self.tokens
    }

    fn add_to_line(&mut self, piece: &[u8]) {
        self.too_long |= self.line.len() + self.data.len() + piece.len() > EVENT_BYTES_MAX;
        match self.too_long {
            false => self.line.extend_from_slice(piece),
            // What is passed over is still not the empty line that ends an event.
            true if self.line.is_empty() => self.line.extend(piece.first()),
            true => {}
        }
    }

    fn end_line(&mut self) {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        if let Some(data) = line.strip_prefix(b"data:") {
            self.data.extend_from_slice(data);
            self.data.push(b'\n');
        } else if line.is_empty() {
            self.end_event();
        }
        self.line.clear();
    }

    fn end_event(&mut self) {
        if !std::mem::take(&mut self.too_long)
            && let Some(tokens) = Tokens::of_json(&self.data)
        {
            self.tokens = Some(self.tokens.unwrap_or_default().then(tokens));
        }
        self.data.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(input: u64, output: u64, total: u64) -> Option<Tokens> {
        Some(Tokens { input: Some(input), output: Some(output), total: Some(total) })
    }

    #[test]
    fn usage_is_read_wherever_an_answer_has_it() {
        let long = "x".repeat(100_000);
        let first = format!(
            r#"{{"usage":{{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}},"choices":[{{"text":"{long}"}}]}}"#
        );
        assert_eq!(Tokens::of_json(first.as_bytes()), tokens(3, 2, 5));
        let details = br#"{"id":1,"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,
            "prompt_tokens_details":{"cached_tokens":0}},"choices":[]}"#;
        assert_eq!(Tokens::of_json(details), tokens(3, 2, 5));
        let responses = br#"{"usage":{"input_tokens":3,"output_tokens":2,"total_tokens":5}}"#;
        assert_eq!(Tokens::of_json(responses), tokens(3, 2, 5));
        let embeddings = Tokens::of_json(br#"{"data":[],"usage": {"prompt_tokens":3,"total_tokens":3}}"#).unwrap();
        assert_eq!((embeddings.of_output(), embeddings.all()), (Some(0), 3));
    }

    #[test]
    fn what_only_looks_like_usage_is_not_taken_for_it() {
        for none in [
            &b""[..],
            b"{}",
            br#"{"usage"}"#,
            br#"{"usage":"much"}"#,
            br#"{"usage":null}"#,
            br#"{"usage":{}}"#,
            br#"{"usage":{"prompt_tokens":-1}}"#,
            br#"{"predictions":[{"usage":{"prompt_tokens":7}}]}"#,
            br#"{"text":"\"usage\":{\"prompt_tokens\":7}"}"#,
            br#"{"usage":{"prompt_tokens":7}"#,
        ] {
            assert_eq!(Tokens::of_json(none), None, "{}", String::from_utf8_lossy(none));
        }
    }

    fn heard(stream: &[u8], piece_bytes: usize) -> Option<Tokens> {
        let mut events = Events::default();
        stream.chunks(piece_bytes).for_each(|piece| events.hear(piece));
        events.end()
    }

    #[test]
    fn the_last_event_with_usage_counts_however_a_stream_is_cut() {
        let chat = b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n: comment\n\n\
            data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1,\"total_tokens\":2}}\r\n\r\n\
            event: x\ndata: {\"choices\":[],\ndata: \"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5}}\n\n\
            data: [DONE]\n\n";
        let responses = b"event: response.completed\n\
            data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":3,\"output_tokens\":2,\"total_tokens\":5}}}";
        for piece_bytes in 1..chat.len() {
            assert_eq!(heard(chat, piece_bytes), tokens(3, 2, 5), "pieces of {piece_bytes}");
            assert_eq!(heard(responses, piece_bytes), tokens(3, 2, 5), "pieces of {piece_bytes}");
        }
        assert_eq!(heard(b"data: {\"choices\":[]}\n\ndata: [DONE]\n\n", 7), None);
    }

    #[test]
    fn what_events_say_one_after_the_other_is_put_together() {
        let stream = b"data: {\"usage\":{\"input_tokens\":3}}\n\ndata: {\"usage\":{\"output_tokens\":2}}\n\n";
        let tokens = heard(stream, 10).unwrap();
        assert_eq!((tokens.input, tokens.of_output(), tokens.all()), (Some(3), Some(2), 5));
    }

    #[test]
    fn an_event_that_is_too_long_is_passed_over_in_bounded_memory() {
        let mut events = Events::default();
        events.hear(b"data: {\"usage\":{\"prompt_tokens\":9}, \"text\":\"");
        for _ in 0..40 {
            events.hear(&[b'x'; 64 << 10]);
            assert!(events.line.capacity() + events.data.capacity() <= 4 * EVENT_BYTES_MAX);
        }
        events.hear(b"\"}\n\ndata: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1,\"total_tokens\":2}}\n\n");
        assert_eq!(events.end(), tokens(1, 1, 2));
    }
}
