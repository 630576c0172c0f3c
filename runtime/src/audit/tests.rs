use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use super::files::segments;
use super::*;

const KEY: [u8; 32] = [7; 32];
const FOR_EVER: Retention = Retention { days: None };

fn event(object: &str) -> Event {
    Event {
        workspace: Some(1),
        principal: Some(Who { id: 9, name: "ann\u{e9}".to_owned(), kind: "user".to_owned() }),
        source: Some("10.0.0.1:4711".to_owned()),
        request_id: Some("r".to_owned()),
        action: "serving-endpoints.create".to_owned(),
        object: Some(object.to_owned()),
        status: 200,
        error_code: None,
    }
}

/// Writes these objects with one start of the log.
fn written(dir: &Path, objects: &[&str]) {
    let mut log = Log::open(Arc::new(RealDisk), dir, KEY, FOR_EVER).unwrap();
    for object in objects {
        log.write(&[(event(object), 1)]).unwrap();
    }
}

fn whole(dir: &Path) -> Verified {
    verify(dir, &KEY).unwrap().unwrap_or_else(|found| panic!("{found}"))
}

fn broken(dir: &Path) -> Break {
    verify(dir, &KEY).unwrap().expect_err("no break was found")
}

fn only_segment(dir: &Path) -> PathBuf {
    let mut found = segments(dir).unwrap();
    assert_eq!(found.len(), 1);
    found.remove(0)
}

#[tokio::test]
async fn a_record_is_on_disk_when_it_is_acknowledged_and_restarts_continue_the_chain() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("audit");
    for start in 0..3 {
        let audit = Audit::start(&dir, KEY, FOR_EVER).unwrap();
        audit.append(event(&format!("start {start}"))).await.unwrap();
        let listed = list(&dir, &KEY, &Filter { limit: 1, ..Filter::default() }).unwrap();
        assert_eq!(listed[0].event, event(&format!("start {start}")));
        // It is whole while it is being written, too.
        assert_eq!(whole(&dir).last, start + 2);
    }
    assert_eq!(whole(&dir), Verified { records: 4, files: 1, first: 1, last: 4, unfinished_bytes: 0 });
    for path in [only_segment(&dir), dir.join("head")] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert!(verify(&dir, &[8; 32]).unwrap().is_err(), "another home's key must not fit");
}

#[tokio::test]
async fn many_at_once_are_written_in_call_order() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::start(dir.path(), KEY, FOR_EVER).unwrap();
    let waiting: Vec<_> = (0..500).map(|n| audit.append(event(&n.to_string()))).collect();
    for appended in waiting {
        appended.await.unwrap();
    }
    let listed = list(dir.path(), &KEY, &Filter { limit: 500, action: Some("serving-".into()), ..Filter::default() });
    let objects: Vec<_> = listed.unwrap().into_iter().filter_map(|record| record.event.object).collect();
    assert_eq!(objects, (0..500).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(whole(dir.path()).last, 501);
}

#[test]
fn a_flood_of_denied_accesses_becomes_few_records_with_exact_counts() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::start(dir.path(), KEY, FOR_EVER).unwrap();
    for n in 0..10_000u64 {
        let known = n % 2 == 0;
        audit.denied(Event {
            principal: known.then(|| Who { id: 1, name: "eve".to_owned(), kind: "user".to_owned() }),
            source: Some(format!("10.{}.{}.1", n / 200, n % 200)),
            action: "serving-endpoints.get".to_owned(),
            status: if known { 403 } else { 401 },
            ..Event::default()
        });
    }
    drop(audit);
    let records = list(dir.path(), &KEY, &Filter { limit: 10_000, ..Filter::default() }).unwrap();
    let denied: Vec<_> = records.iter().filter(|record| record.event.action == "serving-endpoints.get").collect();
    let of_eve: u64 = denied.iter().filter(|r| r.event.principal.is_some()).map(|r| r.count).sum();
    assert_eq!(of_eve, 5000);
    assert_eq!(denied.iter().map(|record| record.count).sum::<u64>(), 10_000);
    // The flood is over within a second or, on a slow machine, a few.
    assert!(denied.len() <= 10 * (DENIED_KEYS_MAX + 1), "{}", denied.len());
    assert!(denied.iter().any(|record| record.event.object.as_deref() == Some("(many callers)")));
    whole(dir.path());
}

#[test]
fn every_flipped_byte_is_found() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["a", "b", "c"]);
    let path = only_segment(dir.path());
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        for flip in [0x01, 0x20] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            fs::write(&path, &bad).unwrap();
            let found = broken(dir.path());
            let line = 1 + good[..at].iter().filter(|byte| **byte == b'\n').count() as u64;
            assert!(found.line == line || found.line == 0 && line == 4, "byte {at}: {found}");
        }
    }
    fs::write(&path, &good).unwrap();
    whole(dir.path());
}

#[test]
fn every_flipped_byte_of_the_head_is_found_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["a", "b"]);
    let (path, head) = (dir.path().join("head"), fs::read(dir.path().join("head")).unwrap());
    for at in 0..head.len() {
        let mut bad = head.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        // The other place is at most one group older, which a log may be ahead of.
        whole(dir.path());
        bad.fill(0);
        fs::write(&path, &bad).unwrap();
        assert!(broken(dir.path()).what.contains("head file is missing or damaged"));
    }
}

#[test]
fn removed_swapped_doubled_and_cut_lines_are_found() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["a", "b", "c", "d", "e"]);
    let path = only_segment(dir.path());
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let check = |changed: Vec<&str>, what: &str| {
        fs::write(&path, changed.concat()).unwrap();
        assert!(verify(dir.path(), &KEY).unwrap().is_err(), "not found: {what}");
    };
    for first in 0..lines.len() {
        let mut removed = lines.clone();
        removed.remove(first);
        check(removed, &format!("line {first} removed"));
        for second in 0..=lines.len() {
            let mut doubled = lines.clone();
            doubled.insert(second, lines[first]);
            check(doubled, &format!("line {first} again at {second}"));
            if second < lines.len() && second != first {
                let mut swapped = lines.clone();
                swapped.swap(first, second);
                check(swapped, &format!("lines {first} and {second} swapped"));
            }
        }
    }
    for bytes in (0..text.len()).filter(|bytes| text.is_char_boundary(*bytes)) {
        check(vec![&text[..bytes]], &format!("cut to {bytes} bytes"));
    }
    fs::remove_file(&path).unwrap();
    assert!(broken(dir.path()).what.contains("records 1 to 6 are missing at the end"));
}

#[test]
fn a_break_is_named_exactly_and_no_restart_heals_it() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["a", "b", "c"]);
    let path = only_segment(dir.path());
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    fs::write(&path, lines[..2].concat()).unwrap();
    assert_eq!(broken(dir.path()).what, "records 3 to 4 are missing at the end");
    written(dir.path(), &["d"]);
    let found = broken(dir.path());
    assert_eq!(found.to_string(), format!("{}, line 3: records 3 to 4 are missing before it", files::file_name(&path)));

    // Nor does one that finds no head.
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["a", "b"]);
    fs::remove_file(dir.path().join("head")).unwrap();
    written(dir.path(), &["c"]);
    assert!(broken(dir.path()).what.contains("found the head file missing"));
}

#[test]
fn a_line_torn_by_a_crash_is_removed_and_that_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["a"]);
    let path = only_segment(dir.path());
    let mut torn = fs::read(&path).unwrap();
    torn.extend_from_slice(b"{\"seq\":3,\"time\":\"2026");
    fs::write(&path, &torn).unwrap();
    assert_eq!(whole(dir.path()).unfinished_bytes, 21);
    written(dir.path(), &["b"]);
    let records = list(dir.path(), &KEY, &Filter { limit: 9, ..Filter::default() }).unwrap();
    let actions: Vec<_> = records.iter().map(|record| record.event.action.as_str()).collect();
    let created = "serving-endpoints.create";
    assert_eq!(actions, ["audit.segment", created, "audit.repaired", created]);
    assert!(records[2].event.object.as_deref().unwrap().contains("21 bytes"));
    whole(dir.path());
}

#[test]
fn a_crash_between_log_and_head_is_no_break() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["a"]);
    let head = fs::read(dir.path().join("head")).unwrap();
    written(dir.path(), &["b"]);
    fs::write(dir.path().join("head"), head).unwrap();
    whole(dir.path());
    written(dir.path(), &["c"]);
    assert_eq!(whole(dir.path()).last, 4);
}

#[test]
fn old_segments_go_only_with_a_retention_and_each_with_a_record() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["a", "b"]);
    // The same segment, made on a day long ago.
    let old = dir.path().join("audit-2020-01-01-000001.jsonl");
    let rename_to_old = || {
        let path = only_segment(dir.path());
        fs::rename(&path, &old).unwrap();
    };
    rename_to_old();
    written(dir.path(), &["c"]);
    assert_eq!(segments(dir.path()).unwrap().len(), 2, "a new day starts a new segment, and nothing is removed");
    fs::remove_file(&old).unwrap();
    assert!(broken(dir.path()).what.contains("no record says that they were removed"));

    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["a", "b"]);
    let path = only_segment(dir.path());
    fs::rename(&path, dir.path().join("audit-2020-01-01-000001.jsonl")).unwrap();
    let mut log = Log::open(Arc::new(RealDisk), dir.path(), KEY, Retention { days: Some(30) }).unwrap();
    log.write(&[(event("c"), 1)]).unwrap();
    drop(log);
    assert_eq!(segments(dir.path()).unwrap().len(), 1);
    let verified = whole(dir.path());
    assert_eq!((verified.first, verified.last), (4, 6));
}

/// A disk that fills up (1, after half of what it is given) or whose sync fails (2).
#[derive(Default)]
struct BadDisk(AtomicU8);

impl Disk for BadDisk {
    fn append(&self, file: &fs::File, bytes: &[u8]) -> io::Result<()> {
        if self.0.load(Relaxed) == 1 {
            RealDisk.append(file, &bytes[..bytes.len() / 2])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        RealDisk.append(file, bytes)
    }

    fn sync(&self, file: &fs::File) -> io::Result<()> {
        if self.0.load(Relaxed) == 2 { Err(io::Error::other("bad sector")) } else { RealDisk.sync(file) }
    }
}

#[tokio::test]
async fn a_full_disk_refuses_changes_until_there_is_room_and_a_failed_sync_until_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(BadDisk::default());
    let audit = Audit::start_on(Arc::clone(&disk) as Arc<dyn Disk>, dir.path(), KEY, FOR_EVER).unwrap();
    audit.append(event("a")).await.unwrap();
    disk.0.store(1, Relaxed);
    let error = ApiError::from(audit.append(event("lost")).await.unwrap_err());
    assert_eq!((error.status, error.code), (503, ErrorCode::TemporarilyUnavailable));
    whole(dir.path());
    // What comes next is refused before it begins, and goes on by itself when there is room.
    audit.check().await.unwrap_err();
    disk.0.store(0, Relaxed);
    audit.check().await.unwrap();
    audit.append(event("b")).await.unwrap();
    disk.0.store(2, Relaxed);
    audit.append(event("unknown")).await.unwrap_err();
    disk.0.store(0, Relaxed);
    assert!(audit.append(event("c")).await.unwrap_err().to_string().contains("restart"));
    drop(audit);
    let audit = Audit::start(dir.path(), KEY, FOR_EVER).unwrap();
    audit.append(event("d")).await.unwrap();
    assert_eq!(whole(dir.path()).unfinished_bytes, 0);
}

#[test]
fn texts_of_callers_are_cut_to_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let long = "\u{1}\u{1f600}".repeat(100_000);
    written(dir.path(), &[&long]);
    assert!(fs::metadata(only_segment(dir.path())).unwrap().len() < 20_000);
    whole(dir.path());
}
