//! What a guest writes: `logging`, standard output, standard error. Bounded per request.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};

/// Longest account of a failure.
const FAILURE_BYTES_MAX: usize = 8 << 10;

/// The log of one request: text up to a limit, then only a count of what was dropped.
#[derive(Debug, Clone)]
pub struct RequestLog(Arc<Mutex<Lines>>);

#[derive(Debug)]
struct Lines {
    text: String,
    dropped_bytes: u64,
    limit_bytes: usize,
}

impl RequestLog {
    /// An empty log that keeps at most `limit_bytes`.
    pub fn new(limit_bytes: u64) -> RequestLog {
        RequestLog(Arc::new(Mutex::new(Lines {
            text: String::new(),
            dropped_bytes: 0,
            limit_bytes: limit_bytes as usize,
        })))
    }

    /// Adds one line.
    pub(super) fn line(&self, level: &str, message: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(level);
        lines.push(" ");
        lines.push(message);
        lines.push("\n");
    }

    fn output(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(&String::from_utf8_lossy(bytes));
    }

    /// All that was kept, and the host's own account of a failure after it: in one line, and whatever the guest wrote.
    pub(crate) fn end(&self, failure: Option<&str>) -> String {
        let mut text = self.take();
        if let Some(failure) = failure {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            let kept = &failure[..failure.floor_char_boundary(FAILURE_BYTES_MAX)];
            text.push_str("error ");
            text.push_str(&defuse(&kept.replace('\n', "; ")));
            text.push('\n');
        }
        text
    }

    /// All that was kept, with a last line for what was not. Control characters other than line ends and tabs are
    /// replaced, so that a log cannot play tricks on the terminal of whoever reads it.
    pub(crate) fn take(&self) -> String {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = defuse(&std::mem::take(&mut lines.text)).into_owned();
        if lines.dropped_bytes > 0 {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            let limit = lines.limit_bytes;
            text.push_str(&format!("warn {} more bytes dropped: the limit is {limit}\n", lines.dropped_bytes));
            lines.dropped_bytes = 0;
        }
        text
    }
}

/// Replaces what would play tricks on a terminal.
fn defuse(text: &str) -> Cow<'_, str> {
    let tricky = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(tricky) { Cow::Owned(text.replace(tricky, "\u{fffd}")) } else { Cow::Borrowed(text) }
}

impl Lines {
    fn push(&mut self, text: &str) {
        let room = self.limit_bytes.saturating_sub(self.text.len());
        let kept = text.floor_char_boundary(room);
        self.text.push_str(&text[..kept]);
        self.dropped_bytes += (text.len() - kept) as u64;
    }
}

impl IsTerminal for RequestLog {
    fn is_terminal(&self) -> bool {
        false
    }
}

/// Standard output and error of guests built for WASI. Writes always succeed: a full log must not trap the guest.
impl StdoutStream for RequestLog {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for RequestLog {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.output(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_the_limit_is_counted_not_kept() {
        let log = RequestLog::new(10);
        log.line("info", "äääääääää");
        let text = log.take();
        assert!(text.starts_with("info ää"), "{text}");
        assert!(text.contains("more bytes dropped: the limit is 10"), "{text}");
        assert_eq!(log.take(), "");
    }

    #[test]
    fn a_failure_is_told_even_when_the_log_is_full() {
        let log = RequestLog::new(10);
        log.line("info", &"x".repeat(100));
        assert!(log.end(Some("trapped\nat a")).ends_with("\nerror trapped; at a\n"));
    }

    #[test]
    fn terminal_escapes_are_defused() {
        let log = RequestLog::new(100);
        log.line("info", "\x1b[2Jgone");
        assert_eq!(log.take(), "info \u{fffd}[2Jgone\n");
    }
}
