//! Reads the audit log back: whether it is whole, and what it says. Needs no server and does not disturb one.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::files::{Head, file_name, segment_day, segments};
use super::record::{LINE_BYTES_MAX, Record, open};

/// A log without a break.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// Records in all segments.
    pub records: u64,
    /// Segments.
    pub files: usize,
    /// The oldest record that is kept; 0 if there is none.
    pub first: u64,
    /// The newest.
    pub last: u64,
    /// Bytes after the last record: one that is being written, or that a crash tore and the next start removes.
    pub unfinished_bytes: u64,
}

/// The first place where the log is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Break {
    /// Segment, or the head file.
    pub file: String,
    /// From 1; 0 when it is about the whole file.
    pub line: u64,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.what),
            line => write!(f, "{}, line {line}: {}", self.file, self.what),
        }
    }
}

/// Which records are listed.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// From this time on, RFC 3339 with milliseconds.
    pub since: Option<String>,
    /// Name or number of the principal.
    pub principal: Option<String>,
    /// The action, or a beginning of it.
    pub action: Option<String>,
    /// The newest so many.
    pub limit: usize,
}

/// Walks all segments. The inner error is the first break.
///
/// # Errors
/// When a file cannot be read.
pub fn verify(dir: &Path, key: &[u8; 32]) -> io::Result<Result<Verified, Break>> {
    // The head first: a server that writes meanwhile leaves the segments at or ahead of it.
    let head = Head::read(dir, key);
    let paths = segments(dir)?;
    let mut walk = Walk { key, head, previous: None, first: None, removed_to: 0, head_seen: false };
    let mut verified = Verified { records: 0, files: paths.len(), first: 0, last: 0, unfinished_bytes: 0 };
    for (index, path) in paths.iter().enumerate() {
        let file = file_name(path);
        let mut lines = Lines::open(path)?;
        while let Some((number, line)) = lines.next()? {
            let broken = |what| Break { file: file.clone(), line: number, what };
            let Some(line) = line.strip_suffix(b"\n") else {
                if index + 1 < paths.len() {
                    return Ok(Err(broken("the line is incomplete, and more segments follow".to_owned())));
                }
                verified.unfinished_bytes = line.len() as u64;
                break;
            };
            if let Err(what) = walk.record(line, &file) {
                return Ok(Err(broken(what)));
            }
            verified.records += 1;
        }
    }
    if let Err(what) = walk.end(paths.is_empty()) {
        let (file, line) = (paths.last().map_or("head".to_owned(), |path| file_name(path)), 0);
        return Ok(Err(Break { file, line, what }));
    }
    verified.first = walk.first.unwrap_or(0);
    verified.last = walk.previous.map_or(0, |previous| previous.seq);
    Ok(Ok(verified))
}

/// The records that a filter lets through, oldest first, as they stand in the files.
///
/// # Errors
/// When a file cannot be read.
pub fn list(dir: &Path, key: &[u8; 32], filter: &Filter) -> io::Result<Vec<Record>> {
    let mut found = VecDeque::new();
    for path in segments(dir)? {
        let too_old = |since: &String| segment_day(&path).is_some_and(|day| day.as_str() < &since[..10]);
        if filter.since.as_ref().is_some_and(too_old) {
            continue;
        }
        let mut lines = Lines::open(&path)?;
        while let Some((_, line)) = lines.next()? {
            let record = open(key, line.strip_suffix(b"\n").unwrap_or(line)).map(|(record, _)| record);
            if let Some(record) = record.filter(|record| filter.lets_through(record)) {
                found.push_back(record);
                if found.len() > filter.limit {
                    found.pop_front();
                }
            }
        }
    }
    Ok(found.into())
}

impl Filter {
    fn lets_through(&self, record: &Record) -> bool {
        let Filter { since, principal, action, limit: _ } = self;
        let named = |wanted: &String| {
            record.event.principal.as_ref().is_some_and(|who| who.name == *wanted || who.id.to_string() == *wanted)
        };
        since.as_ref().is_none_or(|since| record.time >= *since)
            && principal.as_ref().is_none_or(named)
            && action.as_ref().is_none_or(|action| record.event.action.starts_with(action.as_str()))
    }
}

/// What must hold from one record to the next.
struct Walk<'a> {
    key: &'a [u8; 32],
    head: Option<Head>,
    previous: Option<Head>,
    first: Option<u64>,
    /// Up to here records may be absent: a retention setting removed them.
    removed_to: u64,
    head_seen: bool,
}

impl Walk<'_> {
    fn record(&mut self, line: &[u8], file: &str) -> Result<(), String> {
        let (record, this) = open(self.key, line).ok_or("the record is not as it was written")?;
        let previous = self.previous.unwrap_or(Head { seq: this.seq.saturating_sub(1), hash: [0; 32] });
        let next = previous.seq + 1;
        if this.seq > next {
            return Err(format!("records {next} to {} are missing before it", this.seq - 1));
        }
        if this.seq < next {
            return Err(format!("record {} stands after record {}", this.seq, previous.seq));
        }
        // The oldest record that retention has kept continues one that is gone.
        if (self.previous.is_some() || this.seq == 1) && record.prev != hex::encode(previous.hash) {
            return Err(format!("it does not continue record {}", previous.seq));
        }
        match (record.event.action.as_str(), &record.event.object) {
            ("audit.head_lost", _) => {
                return Err("here a server found the head file missing: records before it may have been cut".to_owned());
            }
            ("audit.segment", Some(name)) if name != file => {
                return Err(format!("the segment says that it is {name}"));
            }
            _ => {}
        }
        if self.head.is_some_and(|head| head.seq == this.seq) {
            if self.head != Some(this) {
                return Err("the head file names another record of this number".to_owned());
            }
            self.head_seen = true;
        }
        self.removed_to = self.removed_to.max(record.removed_to.unwrap_or(0));
        self.first.get_or_insert(this.seq);
        self.previous = Some(this);
        Ok(())
    }

    /// What must hold when all is read.
    fn end(&self, no_segments: bool) -> Result<(), String> {
        let last = self.previous.map_or(0, |previous| previous.seq);
        match self.head {
            None if no_segments => return Err("there is no audit log here".to_owned()),
            None => return Err("the head file is missing or damaged, so records at the end may be missing".to_owned()),
            Some(head) if head.seq > last => {
                return Err(format!("records {} to {} are missing at the end", last + 1, head.seq));
            }
            // With seq 0 nothing was acknowledged yet.
            Some(head) if head.seq > 0 && !self.head_seen => {
                return Err(format!("record {}, which the head file names, is missing", head.seq));
            }
            Some(_) => {}
        }
        match self.first {
            Some(first) if first > self.removed_to + 1 => Err(format!(
                "records {} to {} are missing at the beginning, and no record says that they were removed",
                self.removed_to + 1,
                first - 1
            )),
            _ => Ok(()),
        }
    }
}

/// The lines of a segment with their numbers and ends; one that is too long to be ours comes in pieces.
struct Lines {
    file: BufReader<File>,
    line: Vec<u8>,
    number: u64,
}

impl Lines {
    fn open(path: &Path) -> io::Result<Lines> {
        Ok(Lines { file: BufReader::with_capacity(256 << 10, File::open(path)?), line: Vec::new(), number: 0 })
    }

    fn next(&mut self) -> io::Result<Option<(u64, &[u8])>> {
        self.line.clear();
        self.number += 1;
        let read = (&mut self.file).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut self.line)?;
        Ok((read > 0).then_some((self.number, &self.line)))
    }
}
