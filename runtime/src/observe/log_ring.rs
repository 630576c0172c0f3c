//! The last lines that a served entity's guest wrote: bounded, in memory while the entity is in use, in a file while it is
//! idle. What a server that is killed had not saved is lost.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::seal::files::SealedFiles;

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
    /// Whether no file has all of it.
    unsaved: bool,
}

impl LogRing {
    /// What was saved in a file; empty without it, or when it cannot be read. Blocks.
    pub fn open(files: &SealedFiles, name: &str) -> LogRing {
        let ring = LogRing::default();
        let saved = files.read(name).unwrap_or_else(|error| {
            tracing::warn!("failed to read what a guest wrote: {error}");
            None
        });
        if let Some(text) = saved {
            let text = String::from_utf8_lossy(&text);
            // Line by line, so that the oldest can go first again.
            text.split_inclusive('\n').for_each(|line| ring.lock().push(line.to_owned()));
        }
        ring
    }

    /// Writes to a file what is new since the last time, if anything is. Not synced: it is a log. Blocks.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, files: &SealedFiles, name: &str) -> io::Result<()> {
        let mut ring = self.lock();
        if ring.unsaved {
            files.write(name, ring.text().as_bytes())?;
            ring.unsaved = false;
        }
        Ok(())
    }

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
        let mut ring = self.lock();
        ring.push(block);
        ring.unsaved = true;
    }

    /// All that is kept, oldest first.
    pub fn text(&self) -> String {
        self.lock().text()
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn push(&mut self, block: String) {
        self.bytes += block.len();
        self.blocks.push_back(block);
        while self.bytes > BYTES_MAX && self.blocks.len() > 1 {
            self.bytes -= self.blocks.pop_front().map_or(0, |block| block.len());
        }
    }

    fn text(&self) -> String {
        self.blocks.iter().map(String::as_str).collect()
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

    #[test]
    fn what_is_saved_comes_back_before_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let home = crate::home::Home::open(dir.path()).unwrap();
        let files = SealedFiles::new(home.clone(), crate::seal::keyring::Keyring::for_tests(dir.path()));
        let (name, path) = ("logs/entity.log", home.path("logs/entity.log"));
        let ring = LogRing::open(&files, name);
        ring.save(&files, name).unwrap();
        assert!(!path.exists(), "an empty log needs no file");
        ring.push("t", "1", "first");
        ring.save(&files, name).unwrap();

        let ring = LogRing::open(&files, name);
        ring.push("t", "2", "second");
        ring.save(&files, name).unwrap();
        let ring = LogRing::open(&files, name);
        assert_eq!(ring.text(), "t 1 first\nt 2 second\n");
        std::fs::remove_file(&path).unwrap();
        ring.save(&files, name).unwrap();
        assert!(!path.exists(), "what is not new is not written again");
    }
}
