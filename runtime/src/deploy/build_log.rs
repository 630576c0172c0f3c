//! What a deploy did, line by line, for `build-logs`.

use std::time::Instant;

/// Text kept of one deploy.
const BYTES_MAX: usize = 64 << 10;

/// The lines of one deploy, each with the seconds since its start.
#[derive(Debug)]
pub struct BuildLog {
    started: Instant,
    text: String,
}

impl Default for BuildLog {
    fn default() -> BuildLog {
        BuildLog { started: Instant::now(), text: String::new() }
    }
}

impl BuildLog {
    /// Adds a line.
    pub fn step(&mut self, line: &str) {
        if self.text.len() + line.len() < BYTES_MAX {
            self.text.push_str(&format!("[{:8.3}s] {line}\n", self.started.elapsed().as_secs_f64()));
        }
    }

    /// Adds the lines of another log as they are.
    pub fn lines(&mut self, lines: &str) {
        if self.text.len() + lines.len() < BYTES_MAX {
            self.text.push_str(lines);
        }
    }

    /// Adds what the guest wrote.
    pub fn guest(&mut self, text: &str) {
        for line in text.lines() {
            self.step(&format!("guest: {line}"));
        }
    }

    /// All lines.
    pub fn text(&self) -> &str {
        &self.text
    }
}
