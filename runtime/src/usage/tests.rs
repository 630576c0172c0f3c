use std::collections::BTreeSet;
use std::fs;

use super::summary::{By, Filter, payloads, summarise};
use super::*;
use crate::clock::now_ms;
use crate::usage::rows::{PAYLOAD_BYTES_MAX, Table, sampled};

const KEY: [u8; 32] = [3; 32];
const FOR_EVER: Retention = Retention { days: None, bytes_max: u64::MAX };
const DAY_MS: u64 = 24 * 3600 * 1000;

fn start(dir: &Path) -> Recorder {
    Recorder::start(dir, KEY, FOR_EVER, Counter::default()).unwrap()
}

fn row(id: u64) -> UsageRow {
    UsageRow {
        workspace: 1,
        databricks_request_id: id.to_string(),
        requester: format!("user{}", id % 2),
        status_code: if id.is_multiple_of(10) { 429 } else { 200 },
        request_time_ms: now_ms(),
        input_token_count: Some(3),
        usage_context: vec![("app".to_owned(), "t\u{e9}st".to_owned())],
        endpoint_name: "iris".to_owned(),
        execution_duration_us: 1500,
        ..UsageRow::default()
    }
}

fn requests(dir: &Path) -> u64 {
    summarise(dir, &Filter::default()).unwrap().iter().map(|summary| summary.requests).sum()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let days = parts::day_folders(dir).unwrap();
    days.iter().flat_map(|day| fs::read_dir(day).unwrap().map(|entry| entry.unwrap().path())).collect()
}

#[tokio::test]
async fn rows_are_summarised_as_they_were_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = start(dir.path());
    (0..100).for_each(|id| recorder.record(row(id)));
    recorder.record(UsageRow { workspace: 2, endpoint_name: "other".to_owned(), ..row(1) });
    recorder.record(UsageRow { request_time_ms: now_ms() - 3 * DAY_MS, ..row(1) });
    recorder.flush().await;
    let all = Filter { workspace: Some(1), ..Filter::default() };
    let summaries = summarise(dir.path(), &all).unwrap();
    assert_eq!(summaries.len(), 1);
    let iris = &summaries[0];
    assert_eq!((iris.key.as_str(), iris.requests, iris.errors, iris.input_tokens), ("iris", 101, 10, 303));
    assert!((1.5..1.54).contains(&iris.p99_ms), "{}", iris.p99_ms);
    let by = |filter: &Filter| -> Vec<(String, u64)> {
        summarise(dir.path(), filter).unwrap().into_iter().map(|summary| (summary.key, summary.requests)).collect()
    };
    assert_eq!(by(&Filter { by: By::Principal, ..all.clone() }), [("user0".to_owned(), 50), ("user1".to_owned(), 51)]);
    assert_eq!(by(&Filter { by: By::Day, ..all.clone() }).len(), 2);
    assert_eq!(by(&Filter { since_ms: now_ms() - DAY_MS, ..all.clone() }), [("iris".to_owned(), 100)]);
    assert_eq!(by(&Filter { principal: Some("user1".to_owned()), ..all.clone() }), [("iris".to_owned(), 51)]);
    assert_eq!(by(&Filter { endpoint: Some("nothing".to_owned()), ..all }), []);
    assert_eq!(by(&Filter::default()).len(), 2);
}

/// The spill as it is after a kill: a copy, for the recorder's own is converted at its end.
fn spilled(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let spills = fs::read_dir(dir.join("spill")).unwrap().map(|entry| entry.unwrap());
    spills.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

#[tokio::test]
async fn a_crash_at_any_byte_loses_only_the_last_frame_and_doubles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut tables = Tables::open(dir.path(), KEY, FOR_EVER).unwrap();
    let mut spill = tables.new_spill().unwrap();
    let mut ends = vec![0];
    for id in 0..5 {
        spill.append(&[Row::from(row(id)).into_record()]).unwrap();
        ends.push(spill.bytes());
    }
    let (name, content) = spilled(dir.path()).remove(0);
    assert!(!content.windows(4).any(|bytes| bytes == b"iris"), "the spill is readable");
    for cut in (0..=content.len()).step_by(41).chain([content.len()]) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("spill")).unwrap();
        fs::write(dir.path().join("spill").join(&name), &content[..cut]).unwrap();
        drop(start(dir.path()));
        let whole = ends.iter().filter(|end| **end <= cut as u64).count() as u64 - 1;
        assert_eq!(requests(dir.path()), whole, "cut to {cut} of {}", content.len());
        // A crash between the last part and the end of its spill.
        fs::write(dir.path().join("spill").join(&name), &content[..cut]).unwrap();
        drop(start(dir.path()));
        assert_eq!(requests(dir.path()), whole);
        assert!(spilled(dir.path()).is_empty());
    }
}

#[test]
fn small_parts_are_merged_and_a_crash_within_a_merge_doubles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let merges = 60;
    let mut before_merge = Vec::new();
    for id in 0..merges {
        drop(start(dir.path()));
        let recorder = start(dir.path());
        recorder.record(row(id));
        before_merge = files(dir.path()).iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        drop(recorder);
        assert_eq!(requests(dir.path()), id + 1);
        if files(dir.path()).len() < before_merge.len() {
            break;
        }
    }
    let merged = files(dir.path());
    assert_eq!(merged.len(), 1, "{merged:?}");
    // The parts are back, as if the server had been killed before it removed them, and a part is unfinished.
    before_merge.iter().for_each(|(path, content)| fs::write(path, content).unwrap());
    fs::write(merged[0].with_extension("new"), b"PAR1").unwrap();
    assert_eq!(requests(dir.path()), before_merge.len() as u64 + 1);
    drop(start(dir.path()));
    assert_eq!(files(dir.path()), merged);
    assert_eq!(requests(dir.path()), before_merge.len() as u64 + 1);
}

#[test]
fn a_day_that_is_over_becomes_one_part_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    for id in 0..3 {
        let mut tables = Tables::open(dir.path(), KEY, FOR_EVER).unwrap();
        let mut spill = tables.new_spill().unwrap();
        let old = UsageRow { request_time_ms: now_ms() - 2 * DAY_MS, ..row(id) };
        spill.append(&[Row::from(old).into_record()]).unwrap();
        // Without the merge that the first conversion of a day brings.
        tables.merged_for_tests();
        tables.convert_spills().unwrap();
    }
    assert_eq!(files(dir.path()).len(), 3);
    drop(start(dir.path()));
    assert_eq!((files(dir.path()).len(), requests(dir.path())), (1, 3));
}

#[test]
fn rows_are_kept_when_the_clock_was_set_back_before_a_start() {
    let dir = tempfile::tempdir().unwrap();
    for id in 0..2 {
        let mut tables = Tables::open(dir.path(), KEY, FOR_EVER).unwrap();
        let mut spill = tables.new_spill().unwrap();
        spill.append(&[Row::from(row(id)).into_record()]).unwrap();
        tables.convert_spills().unwrap();
        if let [part] = &files(dir.path())[..] {
            // As if it had been merged a day later.
            std::fs::rename(part, part.with_file_name(format!("part-1-{}.parquet", now_ms() + DAY_MS))).unwrap();
        }
    }
    assert_eq!(requests(dir.path()), 2);
}

#[test]
fn retention_removes_by_age_and_by_size_oldest_first() {
    let dir = tempfile::tempdir().unwrap();
    let record = |days: u64, retention| {
        let recorder = Recorder::start(dir.path(), KEY, retention, Counter::default()).unwrap();
        recorder.record(UsageRow { request_time_ms: now_ms() - days * DAY_MS, ..row(1) });
    };
    [20, 10, 5, 0].into_iter().for_each(|days| record(days, FOR_EVER));
    assert_eq!(requests(dir.path()), 4);
    record(0, Retention { days: Some(15), bytes_max: u64::MAX });
    assert_eq!(requests(dir.path()), 4);
    let largest = files(dir.path()).iter().map(|path| path.metadata().unwrap().len()).max().unwrap();
    record(0, Retention { days: None, bytes_max: 3 * largest });
    let days = parts::day_folders(dir.path()).unwrap();
    assert_eq!(days.len(), 1, "only today is left: {days:?}");
    assert_eq!(requests(dir.path()), 3);
}

#[tokio::test]
async fn payloads_are_encrypted_and_read_back_with_the_key_alone() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = start(dir.path());
    let payload = |id: u64, request: Vec<u8>| PayloadRow {
        workspace: 1,
        endpoint_name: "iris/../x".to_owned(),
        databricks_request_id: id.to_string(),
        request_time_ms: now_ms() + id,
        sampling_fraction: 1.0,
        request: request.into(),
        response: "the secret answer".into(),
        ..PayloadRow::default()
    };
    recorder.record(payload(0, b"the secret question".to_vec()));
    recorder.record(payload(1, vec![b'x'; PAYLOAD_BYTES_MAX + 1]));
    recorder.record(payload(2, vec![0xff; 8]));
    recorder.record(payload(3, vec![b'x'; PAYLOAD_BYTES_MAX]));
    recorder.flush().await;
    for path in files(dir.path()) {
        let content = fs::read(&path).unwrap();
        assert!(content.starts_with(b"PARE"), "{}", path.display());
        for word in ["secret", "requester", "iris"] {
            assert!(!content.windows(word.len()).any(|bytes| bytes == word.as_bytes()), "'{word}' is readable");
        }
    }
    let table = Table::Payload(1, "iris/../x".to_owned());
    let read = |table: &Table, limit| payloads(dir.path(), &KEY, table, 0, limit).unwrap();
    let rows = read(&table, 100);
    assert_eq!(
        (&rows[0]["request"], &rows[0]["response"]),
        (&"the secret question".into(), &"the secret answer".into())
    );
    assert!(rows[1]["request"].is_null() && rows[2]["request"].is_null());
    assert_eq!(rows[1]["logging_error_codes"], serde_json::json!(["MAX_REQUEST_SIZE_EXCEEDED"]));
    assert_eq!(rows[2]["logging_error_codes"], serde_json::json!(["REQUEST_NOT_TEXT"]));
    assert_eq!(rows[3]["request"].as_str().unwrap().len(), PAYLOAD_BYTES_MAX);
    assert_eq!(read(&table, 1)[0]["databricks_request_id"], "3");
    assert!(read(&Table::Payload(2, "iris/../x".to_owned()), 9).is_empty());
    let error = payloads(dir.path(), &[4; 32], &table, 0, 9).unwrap_err().to_string();
    assert!(error.contains("part-"), "{error}");
    assert!(files(dir.path()).iter().all(|path| path.starts_with(dir.path().join("payload/workspace=1"))));
}

#[test]
fn what_finds_no_place_is_dropped_and_counted_and_nobody_waits() {
    let dir = tempfile::tempdir().unwrap();
    let dropped = Counter::default();
    let recorder = Recorder::start(dir.path(), KEY, FOR_EVER, dropped.clone()).unwrap();
    let sent = 90_000;
    thread::scope(|scope| {
        for thread in 0..3 {
            let recorder = &recorder;
            scope.spawn(move || (0..sent / 3).for_each(|id| recorder.record(row(thread + 3 * id))));
        }
    });
    drop(recorder);
    assert_eq!(requests(dir.path()) + dropped.get(), sent);

    let recorder = Recorder::start(dir.path(), KEY, FOR_EVER, dropped.clone()).unwrap();
    let before = dropped.get();
    let body: bytes::Bytes = vec![b'x'; super::PAYLOAD_BYTES_MAX + 1].into();
    recorder.record(PayloadRow { request: body, ..PayloadRow::default() });
    assert_eq!(dropped.get(), before + 1);
}

#[test]
fn a_sample_is_of_the_size_asked_for_and_always_the_same() {
    let ids: Vec<String> = (0..20_000).map(|n| n.to_string()).collect();
    let sample = |fraction| ids.iter().filter(|id| sampled(id, fraction)).collect::<BTreeSet<_>>();
    let tenth = sample(0.1);
    assert!((1800..2200).contains(&tenth.len()), "{}", tenth.len());
    assert_eq!(tenth, sample(0.1));
    assert!(tenth.is_subset(&sample(0.5)));
    assert_eq!((sample(0.0).len(), sample(1.0).len()), (0, 20_000));
}
