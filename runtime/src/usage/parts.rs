//! The Parquet files of the tables. A part is written under another name and renamed when it is complete, so a reader
//! sees whole files only.
//!
//! `part-7.parquet` holds the rows of spill 7, `part-3-7.parquet` those of parts 3 to 7 merged; a part whose numbers lie in
//! another's is a leftover of a crash between the two steps of a merge, and is removed at the next start. A spill is
//! removed when all its parts are there, and at a restart those that are there are not written again. So no row is lost
//! or doubled.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::Compression;
use parquet::encryption::decrypt::FileDecryptionProperties;
use parquet::encryption::encrypt::FileEncryptionProperties;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::rows::{Record, Table, batch};
use super::spill::{self, Spill};
use super::{Retention, SPILL_BYTES_MAX};
use crate::clock::{now_ms, rfc3339};
use crate::home::create_private_dir;

/// Parts of one day that are merged when there are so many. Of a day that is over, all are.
const MERGE_COUNT: usize = 24;

/// Larger parts stay as they are.
const MERGE_BYTES_MAX: u64 = 32 << 20;

/// Rows that are read at once.
const READ_ROWS: usize = 8192;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Encoded in a folder's name: all that a file system or a reader of `key=value` folders could take for something else.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

impl Table {
    /// Its folder below `HOME/usage`.
    pub fn folder(&self) -> PathBuf {
        match self {
            Table::Usage(workspace) => format!("endpoint_usage/workspace={workspace}").into(),
            Table::Entities(workspace) => format!("served_entities/workspace={workspace}").into(),
            Table::Payload(workspace, endpoint) => {
                format!("payload/workspace={workspace}/endpoint={}", utf8_percent_encode(endpoint, ENCODED)).into()
            }
        }
    }

    /// What encrypts its files, if they are encrypted: AES-256, the same for footer and columns. `key` is the home's.
    pub fn data_key(&self, key: &[u8; 32]) -> Option<[u8; 32]> {
        match self {
            Table::Usage(_) | Table::Entities(_) => None,
            Table::Payload(..) => Some(*blake3::keyed_hash(key, self.folder().to_string_lossy().as_bytes()).as_bytes()),
        }
    }
}

/// All tables, for the one thread that writes them.
pub(super) struct Tables {
    dir: PathBuf,
    key: [u8; 32],
    account: String,
    retention: Retention,
    last_number: u64,
    /// Until this day all days before are merged.
    merged_day: u64,
}

impl Tables {
    pub(super) fn open(dir: &Path, key: [u8; 32], retention: Retention) -> io::Result<Tables> {
        create_private_dir(&dir.join("spill"))?;
        // A spill whose number lies in a part counts as written, so none may get one again, even if the clock was set back.
        let mut last_number = 0;
        for day in day_folders(dir)? {
            remove_leftovers(&day)?;
            last_number = parts(&day)?.iter().map(|part| part.last).fold(last_number, u64::max);
        }
        let account = blake3::derive_key("tessera 2026 account id", &key);
        Ok(Tables {
            dir: dir.to_owned(),
            key,
            account: hex::encode(&account[..16]),
            retention,
            last_number,
            merged_day: 0,
        })
    }

    /// A spill with a number that none had before.
    pub(super) fn new_spill(&mut self) -> io::Result<Spill> {
        let last = self.spills()?.last().map_or(self.last_number, |(number, _)| *number.max(&self.last_number));
        self.last_number = now_ms().max(last + 1);
        Spill::create(&self.dir.join(format!("spill/{}.spill", self.last_number)), &self.key, self.last_number)
    }

    /// The spills, oldest first.
    fn spills(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.dir.join("spill"))? {
            let path = entry?.path();
            let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            found.extend(number.map(|number| (number, path)));
        }
        found.sort();
        Ok(found)
    }

    /// As if the days before today were merged already.
    #[cfg(test)]
    pub(super) fn merged_for_tests(&mut self) {
        self.merged_day = u64::MAX;
    }

    /// What is in spills.
    pub(super) fn waiting_bytes(&self) -> u64 {
        let spills = self.spills().unwrap_or_default();
        spills.iter().filter_map(|(_, path)| Some(path.metadata().ok()?.len())).sum()
    }

    /// Makes parts of all spills; then merges, and removes what is too old.
    pub(super) fn convert_spills(&mut self) -> io::Result<()> {
        let spills = self.spills()?;
        let mut days = Vec::new();
        for (number, path) in &spills {
            let (records, torn_bytes) = spill::read(path, &self.key, *number)?;
            if torn_bytes > 0 {
                tracing::warn!(bytes = torn_bytes, "usage rows that were being written in a crash are lost");
            }
            days.extend(self.write_parts(*number, records)?);
            fs::remove_file(path)?;
        }
        // Only with no spill left: one that became parts later could lie within the numbers of a merged part.
        days.sort();
        days.dedup();
        for day in days {
            self.merge(&day, MERGE_COUNT)?;
        }
        let today = now_ms() / DAY_MS;
        if self.merged_day < today {
            for day in day_folders(&self.dir)?.iter().filter(|day| day_of(day) < Some(&rfc3339(now_ms())[..10])) {
                self.merge(day, 2)?;
            }
            self.merged_day = today;
        }
        if spills.is_empty() { Ok(()) } else { self.remove_old() }
    }

    /// Writes the rows of one spill; the folders that got a part.
    fn write_parts(&self, number: u64, records: Vec<Record>) -> io::Result<Vec<PathBuf>> {
        let mut groups: BTreeMap<(Table, u64), Vec<Record>> = BTreeMap::new();
        for record in records {
            groups.entry((record.table(), record.time_ms() / DAY_MS)).or_default().push(record);
        }
        let mut days = Vec::new();
        for ((table, day), records) in groups {
            // A time beyond the year 9999 has no RFC 3339 form.
            let day = &rfc3339((day * DAY_MS).min(200_000_000_000_000))[..10];
            let folder = self.dir.join(table.folder()).join(format!("date={day}"));
            create_private_dir(&folder)?;
            if !parts(&folder)?.iter().any(|part| part.first <= number && number <= part.last) {
                let rows = batch(&table, &records, &self.account).map_err(io::Error::other)?;
                let path = folder.join(format!("part-{number}.parquet"));
                write(&path, table.data_key(&self.key), std::iter::once(Ok(rows)))?;
            }
            days.push(folder);
        }
        Ok(days)
    }

    /// Merges small parts that follow each other, if there are at least `count`.
    fn merge(&self, day: &Path, count: usize) -> io::Result<()> {
        let all = parts(day)?;
        let small = |part: &Part| part.bytes < MERGE_BYTES_MAX;
        let Some(run) = all.chunk_by(|a, b| small(a) == small(b)).filter(|run| small(&run[0])).max_by_key(|r| r.len())
        else {
            return Ok(());
        };
        if run.len() < count {
            return Ok(());
        }
        let (first, last) = (run[0].first, run[run.len() - 1].last);
        let key = table_of(&self.dir, day).and_then(|table| table.data_key(&self.key));
        let batches = run.iter().flat_map(|part| match read(&part.path, key, None) {
            Ok(batches) => Box::new(batches) as Box<dyn Iterator<Item = io::Result<RecordBatch>>>,
            Err(error) => Box::new(std::iter::once(Err(error))),
        });
        write(&day.join(format!("part-{first}-{last}.parquet")), key, batches)?;
        run.iter().try_for_each(|part| fs::remove_file(&part.path))
    }

    /// Removes parts whose time is over, and the oldest as long as all together are too large.
    fn remove_old(&self) -> io::Result<()> {
        let mut found = Vec::new();
        for day in day_folders(&self.dir)? {
            if !day.starts_with(self.dir.join("served_entities")) {
                let date = day_of(&day).unwrap_or_default().to_owned();
                found.extend(parts(&day)?.into_iter().map(|part| (date.clone(), part)));
            }
        }
        found.sort_by(|(a, first), (b, second)| (a, first.first).cmp(&(b, second.first)));
        let oldest = self.retention.days.map(|days| rfc3339(now_ms().saturating_sub(days * DAY_MS)));
        let mut bytes: u64 = found.iter().map(|(_, part)| part.bytes).sum();
        for (date, part) in found {
            let over = oldest.as_ref().is_some_and(|oldest| date.as_str() < &oldest[..10]);
            if !over && bytes <= self.retention.bytes_max {
                break;
            }
            bytes -= part.bytes;
            fs::remove_file(&part.path)?;
            // The folder goes with its last part.
            let _ = part.path.parent().map(fs::remove_dir);
        }
        Ok(())
    }
}

/// A part, by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part {
    first: u64,
    last: u64,
    pub(super) path: PathBuf,
    bytes: u64,
}

/// The parts of one day in order, without leftovers.
pub(super) fn parts(day: &Path) -> io::Result<Vec<Part>> {
    let all = all_parts(day)?;
    Ok(all.iter().filter(|part| !all.iter().any(|other| other.covers(part))).cloned().collect())
}

impl Part {
    fn covers(&self, other: &Part) -> bool {
        self.first <= other.first && other.last <= self.last && (self.first, self.last) != (other.first, other.last)
    }
}

fn all_parts(day: &Path) -> io::Result<Vec<Part>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(day)? {
        let path = entry?.path();
        let numbers = path.file_name().and_then(|name| name.to_str()?.strip_prefix("part-")?.strip_suffix(".parquet"));
        let Some(numbers) = numbers else { continue };
        let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
        if let (Ok(first), Ok(last)) = (first.parse(), last.parse()) {
            // One that a merge has just removed is no part any more.
            if let Ok(metadata) = path.metadata() {
                found.push(Part { first, last, bytes: metadata.len(), path });
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Removes what a crash left: unfinished files, and parts that are in a merged one.
fn remove_leftovers(day: &Path) -> io::Result<()> {
    let kept = parts(day)?;
    for entry in fs::read_dir(day)? {
        let path = entry?.path();
        if !kept.iter().any(|part| part.path == path) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// All folders `date=…` below `dir`.
pub(super) fn day_folders(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut days = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            match day_of(&entry.path()) {
                Some(_) => days.push(entry.path()),
                None => folders.push(entry.path()),
            }
        }
    }
    days.sort();
    Ok(days)
}

pub(super) fn day_of(folder: &Path) -> Option<&str> {
    folder.file_name()?.to_str()?.strip_prefix("date=")
}

/// Whose folder this is: `payload/workspace=1/endpoint=iris/date=…`.
fn table_of(dir: &Path, day: &Path) -> Option<Table> {
    let mut names = day.strip_prefix(dir).ok()?.iter().map(|name| name.to_str().unwrap_or_default());
    let (table, workspace) = (names.next()?, names.next()?.strip_prefix("workspace=")?.parse().ok()?);
    match table {
        "endpoint_usage" => Some(Table::Usage(workspace)),
        "served_entities" => Some(Table::Entities(workspace)),
        _ => {
            let endpoint = names.next()?.strip_prefix("endpoint=")?;
            let endpoint = percent_encoding::percent_decode_str(endpoint).decode_utf8().ok()?;
            Some(Table::Payload(workspace, endpoint.into_owned()))
        }
    }
}

/// The inference tables of endpoints with this name, one a workspace.
///
/// # Errors
/// When the folder cannot be read.
pub fn payload_tables(dir: &Path, endpoint: &str) -> io::Result<Vec<Table>> {
    let mut tables = match day_folders(&dir.join("payload")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        days => days?.iter().filter_map(|day| table_of(dir, day)).collect(),
    };
    tables.retain(|table| matches!(table, Table::Payload(_, name) if name == endpoint));
    tables.dedup();
    Ok(tables)
}

/// Writes a part as a whole.
fn write(path: &Path, key: Option<[u8; 32]>, batches: impl Iterator<Item = io::Result<RecordBatch>>) -> io::Result<()> {
    let temporary = path.with_extension("new");
    // No two are the same: a dictionary would be built and thrown away, and the least and the largest tell nothing.
    let id = ColumnPath::from("databricks_request_id");
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_column_dictionary_enabled(id.clone(), false)
        .set_column_statistics_enabled(id, EnabledStatistics::None);
    if let Some(key) = key {
        let encryption = FileEncryptionProperties::builder(key.to_vec()).build().map_err(io::Error::other)?;
        properties = properties.with_file_encryption_properties(encryption);
    }
    let properties = properties.build();
    let mut writer: Option<ArrowWriter<File>> = None;
    for rows in batches {
        let rows = rows?;
        let writer = match &mut writer {
            Some(writer) => writer,
            None => {
                let mut options = OpenOptions::new();
                let file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
                let new = ArrowWriter::try_new(file, rows.schema(), Some(properties.clone()));
                writer.insert(new.map_err(io::Error::other)?)
            }
        };
        writer.write(&rows).map_err(io::Error::other)?;
        if writer.in_progress_size() as u64 > SPILL_BYTES_MAX {
            writer.flush().map_err(io::Error::other)?;
        }
    }
    let Some(writer) = writer else { return Ok(()) };
    writer.into_inner().map_err(io::Error::other)?.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Reads a part, all columns or these.
pub(super) fn read(
    path: &Path,
    key: Option<[u8; 32]>,
    columns: Option<&[&str]>,
) -> io::Result<impl Iterator<Item = io::Result<RecordBatch>> + use<>> {
    let context = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
    let mut options = ArrowReaderOptions::new();
    if let Some(key) = key {
        let decryption = FileDecryptionProperties::builder(key.to_vec()).build().map_err(|e| context(&e))?;
        options = options.with_file_decryption_properties(decryption);
    }
    let file = File::open(path)?;
    let mut builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options).map_err(|e| context(&e))?;
    if let Some(columns) = columns {
        let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
        builder = builder.with_projection(mask);
    }
    let reader = builder.with_batch_size(READ_ROWS).build().map_err(|e| context(&e))?;
    let path: Arc<Path> = path.into();
    Ok(reader.map(move |rows| rows.map_err(|error| io::Error::other(format!("{}: {error}", path.display())))))
}
