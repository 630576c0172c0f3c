//! The files of the audit log.
//!
//! ```text
//! audit-2026-11-22-000001.jsonl   a segment: one day, at most [`SEGMENT_BYTES_MAX`]; its first record names it
//! head                            seq and hash of the last record, with a keyed hash; two places, written in turn
//! ```
//! A group of records is written, synced, then noted in the head, then acknowledged. So the log may be ahead of the head,
//! never behind: a log that ends before its head was cut.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{Event, LINE_BYTES_MAX, Record, open, seal};
use crate::clock::{now_ms, rfc3339};

/// A segment that has reached this is followed by the next.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;

/// The file that tells where the log ends.
pub(super) const HEAD: &str = "head";

/// Bytes between the two places in the head file: a sector each, so that one torn write harms one of them.
const HEAD_PLACE_BYTES: u64 = 512;

/// How long segments are kept.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Whole days; none is for ever.
    pub days: Option<u64>,
}

/// The last record of a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) seq: u64,
    pub(super) hash: [u8; 32],
}

impl Head {
    const BYTES: usize = 8 + 32 + 32;

    /// What the head file in `dir` says; none if it is absent or not ours.
    pub(super) fn read(dir: &Path, key: &[u8; 32]) -> Option<Head> {
        let file = File::open(dir.join(HEAD)).ok()?;
        let place = |index: u64| {
            let mut bytes = [0; Head::BYTES];
            file.read_exact_at(&mut bytes, index * HEAD_PLACE_BYTES).ok()?;
            let (content, mac) = bytes.split_at(40);
            let hash = blake3::keyed_hash(key, content);
            (hash.as_bytes() == mac).then(|| Head {
                seq: u64::from_le_bytes(std::array::from_fn(|i| content[i])),
                hash: std::array::from_fn(|i| content[8 + i]),
            })
        };
        [place(0), place(1)].into_iter().flatten().max_by_key(|head| head.seq)
    }

    fn bytes(&self, key: &[u8; 32]) -> Vec<u8> {
        let mut bytes = self.seq.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.hash);
        let mac = blake3::keyed_hash(key, &bytes);
        bytes.extend_from_slice(mac.as_bytes());
        bytes
    }
}

/// What the writer asks of the file system. The tests' own one fills up and breaks.
pub(super) trait Disk: Send + Sync {
    fn append(&self, file: &File, bytes: &[u8]) -> io::Result<()>;
    fn sync(&self, file: &File) -> io::Result<()>;
}

/// The real one.
pub(super) struct RealDisk;

impl Disk for RealDisk {
    fn append(&self, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

/// The segments in `dir`, oldest first: their paths, named for messages by their file name.
pub(super) fn segments(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if let Some(number) = segment_number(&path) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// `audit-2026-11-22-000001.jsonl` → 1.
fn segment_number(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("audit-")?.strip_suffix(".jsonl")?.get(11..)?.parse().ok()
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The log, open for writing.
pub(super) struct Log {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    key: [u8; 32],
    retention: Retention,
    head: Head,
    head_file: File,
    head_writes: u64,
    segment: Segment,
    /// Why nothing can be written until a restart: after a failed sync only a restart knows what is on disk.
    failed: Option<String>,
}

struct Segment {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Log {
    /// Opens the log and repairs what a crash left.
    pub(super) fn open(disk: Arc<dyn Disk>, dir: &Path, key: [u8; 32], retention: Retention) -> io::Result<Log> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let paths = segments(dir)?;
        let head = Head::read(dir, &key);
        let mut events = Vec::new();
        let mut torn_bytes = 0;
        let mut last = None;
        if let Some(path) = paths.last() {
            torn_bytes = cut_torn_line(path)?;
            if torn_bytes > 0 {
                let object = format!("{}: {torn_bytes} bytes of an unfinished record were removed", file_name(path));
                events.push(Event::own("audit.repaired", object));
            }
            // The newest segment is empty if the server was killed while it made it.
            last = paths.iter().rev().take(2).find_map(|path| last_record(path, &key));
        }
        let start = match (head, last) {
            (Some(head), Some(last)) if last.seq >= head.seq => last,
            // The chain goes on where it was: what is missing stays visible for ever.
            (Some(head), last) => {
                if head.seq > 0 {
                    let found = last.map_or(0, |last| last.seq);
                    tracing::error!(acknowledged = head.seq, found, "records at the end of the audit log are missing");
                }
                head
            }
            (None, last) => {
                if !paths.is_empty() {
                    tracing::error!("the head of the audit log is missing: records at its end may be, too");
                    events.push(Event::own("audit.head_lost", "the server found segments and no valid head"));
                }
                last.unwrap_or_default()
            }
        };
        let head_file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(dir.join(HEAD))?;
        let segment = match paths.last() {
            Some(path) => Segment::open(path)?,
            None => Segment::make(dir, 1)?,
        };
        let fresh = segment.bytes == 0;
        let (dir, head_writes) = (dir.to_owned(), start.seq);
        let mut log = Log { disk, dir, key, retention, head: start, head_file, head_writes, segment, failed: None };
        log.write_head()?;
        log.write_head()?;
        File::open(&log.dir)?.sync_all()?;
        if fresh {
            events.insert(0, log.opening());
        }
        if torn_bytes > 0 {
            tracing::warn!(bytes = torn_bytes, "the audit log ended in an unfinished record, which was removed");
        }
        let events: Vec<_> = events.into_iter().map(|event| (event, 1)).collect();
        log.write(&events)?;
        Ok(log)
    }

    /// Writes the events as one group, on disk when this returns. After an error either all of it can be tried again, or
    /// nothing can be written until a restart.
    pub(super) fn write(&mut self, events: &[(Event, u64)]) -> io::Result<()> {
        if let Some(failed) = &self.failed {
            return Err(io::Error::other(failed.clone()));
        }
        let time = rfc3339(now_ms());
        let other_day = segment_day(&self.segment.path).is_none_or(|day| !time.starts_with(&day));
        if self.segment.bytes >= SEGMENT_BYTES_MAX || other_day {
            self.next_segment()?;
        }
        self.write_records(events.iter().map(|(event, count)| (event.clone(), *count, None)), &time)
    }

    fn next_segment(&mut self) -> io::Result<()> {
        let number = segment_number(&self.segment.path).map_or(1, |number| number + 1);
        self.segment = Segment::make(&self.dir, number)?;
        let opening = self.opening();
        self.write_records([(opening, 1, None)].into_iter(), &rfc3339(now_ms()))?;
        self.remove_old()
    }

    fn opening(&self) -> Event {
        Event::own("audit.segment", file_name(&self.segment.path))
    }

    fn write_records(&mut self, events: impl Iterator<Item = (Event, u64, Option<u64>)>, time: &str) -> io::Result<()> {
        let (mut head, mut lines) = (self.head, Vec::new());
        for (event, count, removed_to) in events {
            let prev = hex::encode(head.hash);
            let (seq, time) = (head.seq + 1, time.to_owned());
            let record = Record { seq, time, event: event.cut(), count, removed_to, prev };
            let (line, next) = seal(&self.key, &record);
            lines.extend_from_slice(&line);
            head = next;
        }
        if lines.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.disk.append(&self.segment.file, &lines) {
            // A full disk may have taken a part. With that removed, the next group can try.
            if let Err(error) = self.segment.file.set_len(self.segment.bytes) {
                self.fail(&error);
            }
            return Err(error);
        }
        self.disk.sync(&self.segment.file).inspect_err(|error| self.fail(error))?;
        self.segment.bytes += lines.len() as u64;
        self.head = head;
        self.write_head().inspect_err(|error| self.fail(error))
    }

    fn write_head(&mut self) -> io::Result<()> {
        let place = self.head_writes % 2;
        self.head_file.write_all_at(&self.head.bytes(&self.key), place * HEAD_PLACE_BYTES)?;
        self.disk.sync(&self.head_file)?;
        self.head_writes += 1;
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) {
        self.failed = Some(format!("{error}; the server must be restarted to write it again"));
    }

    /// Removes the segments whose time is over, each after a record that says so.
    fn remove_old(&mut self) -> io::Result<()> {
        let Some(days) = self.retention.days else { return Ok(()) };
        let oldest = rfc3339(now_ms().saturating_sub(days * 24 * 3600 * 1000));
        for path in segments(&self.dir)? {
            let over = segment_day(&path).is_some_and(|day| day.as_str() < &oldest[..10]);
            if !over || path == self.segment.path {
                break;
            }
            let Some(last) = last_record(&path, &self.key) else {
                tracing::error!(file = %path.display(), "kept, for it does not end in a valid record");
                break;
            };
            let event = Event::own("audit.retention", format!("{} is removed", file_name(&path)));
            self.write_records([(event, 1, Some(last.seq))].into_iter(), &rfc3339(now_ms()))?;
            fs::remove_file(&path)?;
        }
        Ok(())
    }
}

impl Segment {
    fn open(path: &Path) -> io::Result<Segment> {
        let file = OpenOptions::new().append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Segment { file, path: path.to_owned(), bytes })
    }

    fn make(dir: &Path, number: u64) -> io::Result<Segment> {
        let day = &rfc3339(now_ms())[..10];
        let path = dir.join(format!("audit-{day}-{number:06}.jsonl"));
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
        File::open(dir)?.sync_all()?;
        Ok(Segment { file, path, bytes: 0 })
    }
}

/// `audit-2026-11-22-000001.jsonl` → `2026-11-22`.
pub(super) fn segment_day(path: &Path) -> Option<String> {
    file_name(path).get(6..16).map(str::to_owned)
}

/// Removes what follows the last line end: a record that was never acknowledged. How many bytes that were.
fn cut_torn_line(path: &Path) -> io::Result<u64> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let bytes = file.metadata()?.len();
    let (start, tail) = tail(&file, bytes)?;
    let kept = tail.iter().rposition(|byte| *byte == b'\n').map_or(start, |at| start + at as u64 + 1);
    if kept < bytes {
        file.set_len(kept)?;
        file.sync_all()?;
    }
    Ok(bytes - kept)
}

/// The last record of a segment, if it is valid.
fn last_record(path: &Path, key: &[u8; 32]) -> Option<Head> {
    let file = File::open(path).ok()?;
    let (_, tail) = tail(&file, file.metadata().ok()?.len()).ok()?;
    let lines = tail.strip_suffix(b"\n")?;
    let line = lines.rsplit(|byte| *byte == b'\n').next()?;
    open(key, line).map(|(_, head)| head)
}

/// The last bytes of a file, enough for its last line and a torn group, and where they start.
fn tail(file: &File, bytes: u64) -> io::Result<(u64, Vec<u8>)> {
    let length = bytes.min(2 * super::GROUP_MAX as u64 * LINE_BYTES_MAX as u64);
    let mut tail = vec![0; length as usize];
    file.read_exact_at(&mut tail, bytes - length)?;
    Ok((bytes - length, tail))
}
