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

    /// Adds the lines of another log as they are, as far as there is room.
    pub fn lines(&mut self, lines: &str) {
        for line in lines.split_inclusive('\n') {
            if self.text.len() + line.len() < BYTES_MAX {
                self.text.push_str(line);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_log_that_is_too_long_the_beginning_stays() {
        let mut log = BuildLog::default();
        log.step("compiling");
        log.lines(&"a line of the guest\n".repeat(BYTES_MAX / 10));
        assert!(log.text().contains("compiling\na line of the guest\n"));
        assert!(log.text().len() < BYTES_MAX && log.text().ends_with("guest\n"));
    }
}
