//! The last lines that a served entity's guest wrote. In memory and bounded; gone with the process.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Text kept per served entity.
const BYTES_MAX: usize = 256 << 10;

/// Text kept of one request, with its prefixes: short lines grow by them.
const BLOCK_BYTES_MAX: usize = 128 << 10;

/// A bounded log; clones share it.
#[derive(Debug, Clone, Default)]
pub struct LogRing(Arc<Mutex<Ring>>);

#[derive(Debug, Default)]
struct Ring {
    blocks: VecDeque<String>,
    bytes: usize,
}

impl LogRing {
    /// Adds what one request wrote, each line with its time and request. Nothing for an empty text.
    pub fn push(&self, time: &str, request_id: &str, text: &str) {
        if text.is_empty() {
            return;
        }
        let mut block = String::new();
        let mut add = |line: &str| {
            block.push_str(&format!("{time} {request_id} {line}\n"));
            block.len()
        };
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if add(line) > BLOCK_BYTES_MAX {
                // The last line may say what was dropped before.
                let last = lines.next_back();
                add(&format!("warn {} more lines dropped", lines.count()));
                last.map(&mut add);
                break;
            }
        }
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.bytes += block.len();
        ring.blocks.push_back(block);
        while ring.bytes > BYTES_MAX && ring.blocks.len() > 1 {
            ring.bytes -= ring.blocks.pop_front().map_or(0, |block| block.len());
        }
    }

    /// All that is kept, oldest first.
    pub fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).blocks.iter().map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first() {
        let ring = LogRing::default();
        ring.push("t", "r", "");
        for index in 0..100 {
            ring.push("t", &index.to_string(), &"x".repeat(10_000));
        }
        let text = ring.text();
        assert!(text.len() <= BYTES_MAX && text.contains("t 99 x") && !text.contains("t 0 x"));
    }
}
