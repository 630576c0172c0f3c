//! A body of any length in, a stream of events out, while the body still arrives: what is long is never held as a whole.
//!
//! ```text
//! POST one two⏎three  →  data: {"line":1,"words":2}
//!                        data: {"line":2,"words":1}
//!                        data: {"lines":2,"words":3}
//! ```

use serde::Serialize;
use tessera_sdk::{Endpoint, Error, Package, Request, Response, log};

tessera_sdk::export!(Words);

struct Words;

impl Endpoint for Words {
    /// Runs once, at deploy. The memory it leaves is what every request starts from.
    fn init(_: &Package) -> Result<Self, Error> {
        Ok(Words)
    }

    /// Runs for each request, in an instance that has seen no other.
    fn handle(&self, request: Request) -> Result<Response, Error> {
        let media_type = request.media_type();
        if !media_type.starts_with("text/") {
            return Err(Error::unsupported_media_type(format!("send text/plain, not '{media_type}'")));
        }
        let mut counter = Counter::default();
        let mut response = Response::stream("text/event-stream")?;
        for chunk in request.chunks() {
            for line in counter.add(&chunk?) {
                response.write(event(&line)?)?;
            }
        }
        if let Some(last) = counter.end() {
            response.write(event(&last)?)?;
        }
        log::info(format!("{} lines", counter.total.lines));
        response.write(event(&counter.total)?)?;
        Ok(response.finish())
    }
}

/// A server-sent event.
fn event(data: &impl Serialize) -> Result<String, Error> {
    let json = serde_json::to_string(data).map_err(|error| Error::model(error.to_string()))?;
    Ok(format!("data: {json}\n\n"))
}

#[derive(Debug, PartialEq, Serialize)]
struct Line {
    line: usize,
    words: usize,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Total {
    lines: usize,
    words: usize,
}

/// Counts words line by line. A chunk may end anywhere, so what is of no whole line waits for the next.
#[derive(Default)]
struct Counter {
    rest: Vec<u8>,
    total: Total,
}

impl Counter {
    /// The lines that a chunk completes.
    fn add(&mut self, chunk: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(part);
            if part.ends_with(b"\n") {
                lines.extend(self.end());
            }
        }
        lines
    }

    /// The line that has begun, if one has.
    fn end(&mut self) -> Option<Line> {
        let text = String::from_utf8_lossy(&self.rest);
        let words = text.split_whitespace().count();
        if self.rest.is_empty() {
            return None;
        }
        self.rest.clear();
        self.total.lines += 1;
        self.total.words += words;
        Some(Line { line: self.total.lines, words })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_characters_may_be_cut_anywhere() {
        let text = "one two\nthrée\n\nfour".as_bytes();
        for cut in 0..text.len() {
            let mut counter = Counter::default();
            let mut lines = counter.add(&text[..cut]);
            lines.extend(counter.add(&text[cut..]));
            lines.extend(counter.end());
            let words: Vec<usize> = lines.iter().map(|line| line.words).collect();
            assert_eq!((words, &counter.total), (vec![2, 1, 0, 1], &Total { lines: 4, words: 4 }), "cut at {cut}");
        }
    }

    #[test]
    fn an_event_is_a_line_of_json() {
        assert_eq!(event(&Line { line: 1, words: 2 }).unwrap(), "data: {\"line\":1,\"words\":2}\n\n");
    }
}
