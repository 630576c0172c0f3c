//! What the tables say: who used what, and what was said. From the files alone, so without a server too.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, TimestampMillisecondType};
use arrow_array::{Array, Int64Array, RecordBatch};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::parts::{day_folders, day_of, parts, read};
use super::rows::Table;
use crate::clock::rfc3339;

/// What a summary has one row for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "UsageBy")]
pub enum By {
    /// Each endpoint.
    #[default]
    Endpoint,
    /// Each requester.
    Principal,
    /// Each day, in UTC.
    Day,
}

/// Which requests are counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this tenant; none is all.
    pub workspace: Option<u64>,
    /// To this endpoint.
    pub endpoint: Option<String>,
    /// Of this requester.
    pub principal: Option<String>,
    /// From this time on, in milliseconds since 1970.
    pub since_ms: u64,
    /// How they are grouped.
    pub by: By,
}

/// The requests of one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "UsageSummary")]
pub struct Summary {
    /// Endpoint, requester or day.
    pub key: String,
    /// All of them.
    pub requests: u64,
    /// Those with a status from 400 on.
    pub errors: u64,
    /// Tokens of all inputs that were counted.
    pub input_tokens: u64,
    /// Tokens of all outputs that were counted.
    pub output_tokens: u64,
    /// Duration that half of the requests do not exceed, at most 2 % too large.
    pub p50_ms: f64,
    /// Duration that 99 % of the requests do not exceed, at most 2 % too large.
    pub p99_ms: f64,
}

/// Summaries of the usage table below `dir`, in the order of their keys. Blocks on the disk.
///
/// # Errors
/// When a part cannot be read; the error names it.
pub fn summarise(dir: &Path, filter: &Filter) -> io::Result<Vec<Summary>> {
    const COLUMNS: [&str; 7] = [
        "requester",
        "status_code",
        "request_time",
        "input_token_count",
        "output_token_count",
        "endpoint_name",
        "execution_duration_ms",
    ];
    let mut groups = BTreeMap::new();
    let workspace = filter.workspace.map(Table::Usage).map_or("endpoint_usage".into(), |table| table.folder());
    for_each_batch(&dir.join(workspace), filter.since_ms, None, Some(&COLUMNS), |rows| {
        count(&mut groups, filter, rows).ok_or_else(|| io::Error::other("a part has other columns than expected"))
    })?;
    Ok(groups.into_iter().map(|(key, group)| group.summary(key)).collect())
}

/// The newest `limit` rows of an endpoint's inference table, oldest first, as JSON objects. `key` is the home's.
///
/// # Errors
/// When a part cannot be read or decrypted; the error names it.
pub fn payloads(dir: &Path, key: &[u8; 32], table: &Table, since_ms: u64, limit: usize) -> io::Result<Vec<Value>> {
    let mut found = std::collections::VecDeque::new();
    for_each_batch(&dir.join(table.folder()), since_ms, table.data_key(key), None, |rows| {
        let rows = payload_rows(rows).ok_or_else(|| io::Error::other("a part has other columns than expected"))?;
        for (time_ms, row) in rows.into_iter().filter(|(time_ms, _)| *time_ms >= since_ms) {
            found.push_back((time_ms, row));
            if found.len() > limit {
                found.pop_front();
            }
        }
        Ok(())
    })?;
    Ok(found.into_iter().map(|(_, row)| row).collect())
}

/// Shows all batches of the days since then. A part that a merge removes meanwhile is read in its new place.
fn for_each_batch(
    folder: &Path,
    since_ms: u64,
    key: Option<[u8; 32]>,
    columns: Option<&[&str]>,
    mut each: impl FnMut(&RecordBatch) -> io::Result<()>,
) -> io::Result<()> {
    let since = rfc3339(since_ms);
    let days = match day_folders(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        days => days?,
    };
    for day in days.iter().filter(|day| day_of(day).is_some_and(|date| date >= &since[..10])) {
        // All files are opened before the first is read: an open file stays readable.
        let mut attempt = 0;
        let readers = loop {
            let open = parts(day)?.iter().map(|part| read(&part.path, key, columns)).collect::<io::Result<Vec<_>>>();
            match open {
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < 3 => attempt += 1,
                readers => break readers?,
            }
        };
        for rows in readers.into_iter().flatten() {
            each(&rows?)?;
        }
    }
    Ok(())
}

fn count(groups: &mut BTreeMap<String, Group>, filter: &Filter, rows: &RecordBatch) -> Option<()> {
    let requester = rows.column_by_name("requester")?.as_string_opt::<i32>()?;
    let endpoint = rows.column_by_name("endpoint_name")?.as_string_opt::<i32>()?;
    let status = rows.column_by_name("status_code")?.as_primitive_opt::<Int32Type>()?;
    let time = rows.column_by_name("request_time")?.as_primitive_opt::<TimestampMillisecondType>()?;
    let input = rows.column_by_name("input_token_count")?.as_primitive_opt::<Int64Type>()?;
    let output = rows.column_by_name("output_token_count")?.as_primitive_opt::<Int64Type>()?;
    let duration = rows.column_by_name("execution_duration_ms")?.as_primitive_opt::<Float64Type>()?;
    let is = |wanted: &Option<String>, value| wanted.as_ref().is_none_or(|wanted| wanted == value);
    for row in 0..rows.num_rows() {
        let time_ms = time.value(row) as u64;
        if time_ms < filter.since_ms
            || !is(&filter.endpoint, endpoint.value(row))
            || !is(&filter.principal, requester.value(row))
        {
            continue;
        }
        let day;
        let key = match filter.by {
            By::Endpoint => endpoint.value(row),
            By::Principal => requester.value(row),
            By::Day => {
                day = rfc3339(time_ms);
                &day[..10]
            }
        };
        if !groups.contains_key(key) {
            groups.insert(key.to_owned(), Group::default());
        }
        let group = groups.get_mut(key)?;
        group.errors += u64::from(status.value(row) >= 400);
        // A guest said how many.
        let add = |sum: &mut u64, tokens: &Int64Array| {
            // A null is 0 in the values.
            *sum = sum.saturating_add(if tokens.is_null(row) { 0 } else { tokens.value(row).max(0) as u64 });
        };
        add(&mut group.input_tokens, input);
        add(&mut group.output_tokens, output);
        group.durations.count((duration.value(row) * 1e3) as u64);
    }
    Some(())
}

fn payload_rows(rows: &RecordBatch) -> Option<Vec<(u64, Value)>> {
    let texts = |name| rows.column_by_name(name)?.as_string_opt::<i32>();
    let text = |name: &'static str, row: usize| {
        let column = texts(name)?;
        Some(if column.is_null(row) { Value::Null } else { Value::from(column.value(row)) })
    };
    let time = rows.column_by_name("request_time")?.as_primitive_opt::<TimestampMillisecondType>()?;
    let status = rows.column_by_name("status_code")?.as_primitive_opt::<Int32Type>()?;
    let fraction = rows.column_by_name("sampling_fraction")?.as_primitive_opt::<Float64Type>()?;
    let duration = rows.column_by_name("execution_duration_ms")?.as_primitive_opt::<Int64Type>()?;
    let codes = rows.column_by_name("logging_error_codes")?.as_list_opt::<i32>()?;
    let json_row = |row: usize| {
        let codes = codes.value(row);
        let codes: Vec<&str> = codes.as_string_opt::<i32>()?.iter().flatten().collect();
        let time_ms = time.value(row) as u64;
        let value = json!({
            "request_time": rfc3339(time_ms),
            "databricks_request_id": text("databricks_request_id", row)?,
            "client_request_id": text("client_request_id", row)?,
            "status_code": status.value(row),
            "sampling_fraction": fraction.value(row),
            "execution_duration_ms": duration.value(row),
            "request": text("request", row)?,
            "response": text("response", row)?,
            "logging_error_codes": codes,
            "served_entity_id": text("served_entity_id", row)?,
            "requester": text("requester", row)?,
        });
        Some((time_ms, value))
    };
    (0..rows.num_rows()).map(json_row).collect()
}

#[derive(Default)]
struct Group {
    errors: u64,
    input_tokens: u64,
    output_tokens: u64,
    durations: Durations,
}

impl Group {
    fn summary(&self, key: String) -> Summary {
        Summary {
            key,
            requests: self.durations.total,
            errors: self.errors,
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            p50_ms: self.durations.quantile_ms(0.5),
            p99_ms: self.durations.quantile_ms(0.99),
        }
    }
}

/// Durations in microseconds by size: exact below 64, then 64 steps for each doubling. Two kilobytes for a group instead
/// of eight bytes for each request.
#[derive(Default)]
struct Durations {
    counts: BTreeMap<u16, u64>,
    total: u64,
}

impl Durations {
    fn count(&mut self, us: u64) {
        let shift = (63 - (us | 1).leading_zeros()).saturating_sub(6);
        let step = shift as u16 * 64 + (us >> shift) as u16;
        *self.counts.entry(step).or_default() += 1;
        self.total += 1;
    }

    fn quantile_ms(&self, part: f64) -> f64 {
        let rank = ((self.total as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        for (step, count) in &self.counts {
            seen += count;
            if seen >= rank {
                // Steps from 64 to 127 are not shifted, then each 64 by one more; the answer is the step's upper end.
                let shift = u32::from((step / 64).saturating_sub(1));
                let low = u64::from(*step) - u64::from(shift) * 64;
                return (((low + 1) << shift) - 1) as f64 / 1e3;
            }
        }
        0.0
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            By::Endpoint => "endpoint",
            By::Principal => "principal",
            By::Day => "day",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_close_from_above() {
        for scale in [1, 7, 1000, 123_456] {
            let mut durations = Durations::default();
            (1..=1000u64).for_each(|n| durations.count(n * scale));
            for (part, exact) in [(0.5, 500 * scale), (0.99, 990 * scale), (1.0, 1000 * scale)] {
                let (found, exact) = (durations.quantile_ms(part), exact as f64 / 1e3);
                assert!(found >= exact && found <= exact * 1.02, "{part} of {scale}: {found}, not {exact}");
            }
        }
        assert_eq!(Durations::default().quantile_ms(0.5), 0.0);
    }
}
