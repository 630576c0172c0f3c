//! The tables that other programs read: written by the library as a server does, read back by PyArrow and by the
//! command line, which know of what wrote them no more than the home's key.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};
use tessera::home::{Home, Keys};
use tessera::seal::keyring::{Found, Keyring};
use tessera::seal::source::MasterKey;
use tessera::usage::rows::Table;
use tessera::usage::{EntityRow, PayloadRow, Recorder, Retention, UsageRow};

const TIME_MS: u64 = 1_790_000_000_123;

/// A home with a row in each table.
fn home(dir: &Path) -> [u8; 32] {
    let home = Home::open(dir).unwrap();
    let master = MasterKey::create(&home.path("node.key")).unwrap();
    let ring = Keyring::open(&home, &master, None, None, Found::Nothing).unwrap();
    let key = Keys::derive(&ring.secret().unwrap()).usage;
    let retention = Retention { days: None, bytes_max: u64::MAX };
    let recorder = Recorder::start(&home.path("usage"), key, retention, Counter::default()).unwrap();
    recorder.record(UsageRow {
        workspace: 1,
        databricks_request_id: "r1".to_owned(),
        requester: "ann".to_owned(),
        status_code: 200,
        request_time_ms: TIME_MS,
        input_token_count: Some(7),
        usage_context: vec![("team".to_owned(), "\u{e9}".to_owned())],
        endpoint_name: "iris".to_owned(),
        execution_duration_us: 1500,
        ..UsageRow::default()
    });
    recorder.record(EntityRow {
        workspace: 1,
        served_entity_id: "e1".to_owned(),
        endpoint_config_version: 3,
        change_time_ms: TIME_MS,
        ..EntityRow::default()
    });
    recorder.record(PayloadRow {
        workspace: 1_234_567_890_123_456,
        endpoint_name: "iris".to_owned(),
        request_time_ms: TIME_MS,
        status_code: 200,
        sampling_fraction: 0.5,
        request: "question".into(),
        response: vec![b'x'; (1 << 20) + 1].into(),
        ..PayloadRow::default()
    });
    key
}

fn python(input: &Value) -> Output {
    let python = std::env::var_os("TESSERA_PYTHON").expect("TESSERA_PYTHON is not set: run `make test`");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/read_tables.py");
    let mut child = Command::new(python)
        .arg(script)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn printed(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn tessera(home: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TESSERA_")) {
        command.env_remove(name);
    }
    command.args(args).arg("--home").arg(home).output().unwrap()
}

#[test]
fn pyarrow_reads_every_table_and_payloads_only_with_their_key() {
    let dir = tempfile::tempdir().unwrap();
    home(dir.path());
    let shown = printed(tessera(dir.path(), &["usage", "payload", "iris", "--show-key"]));
    let payload: Value = serde_json::from_str(&shown).unwrap();
    let folder = |table: Table| dir.path().join("usage").join(table.folder());
    let tables = json!([
        { "folder": folder(Table::Usage(1)), "key": null },
        { "folder": folder(Table::Entities(1)), "key": null },
        payload,
    ]);
    let read: Value = serde_json::from_str(&printed(python(&tables))).unwrap();

    let usage = &read[0]["rows"][0];
    assert_eq!((&usage["workspace_id"], &usage["requester"]), (&"1".into(), &"ann".into()));
    assert_eq!((&usage["input_token_count"], &usage["output_token_count"]), (&7.into(), &Value::Null));
    assert_eq!(usage["usage_context"], json!([["team", "\u{e9}"]]));
    assert_eq!(usage["request_time"], "2026-09-21 14:13:20.123000+00:00");
    assert_eq!(usage["execution_duration_ms"], 1.5);
    assert!(read[0]["types"]["usage_context"].as_str().unwrap().starts_with("map<string, string"));
    assert_eq!(read[1]["rows"][0]["endpoint_config_version"], 3);
    let kept = &read[2]["rows"][0];
    assert_eq!((&kept["request"], &kept["response"]), (&"question".into(), &Value::Null));
    assert_eq!(kept["logging_error_codes"], json!(["MAX_RESPONSE_SIZE_EXCEEDED"]));
    assert_eq!(kept["request_date"], "2026-09-21");
    assert_eq!(read[2]["types"]["execution_duration_ms"], "int64");

    for key in [Value::Null, "00".repeat(32).into()] {
        let output = python(&json!([{ "folder": payload["folder"], "key": key }]));
        assert!(!output.status.success(), "payloads were read with the key {key}");
    }
}

#[test]
fn the_command_line_sums_up_and_decrypts_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    home(dir.path());
    let table = printed(tessera(dir.path(), &["usage", "--by", "principal"]));
    let words: Vec<&str> = table.split_whitespace().collect();
    assert_eq!(&words[words.len() - 7..], ["ann", "1", "0", "7", "0", "1.5", "1.5"], "{table}");
    let summed: Value = serde_json::from_str(&printed(tessera(dir.path(), &["usage", "--json"]))).unwrap();
    assert_eq!((&summed["usage"][0]["key"], &summed["usage"][0]["requests"]), (&"iris".into(), &1.into()));
    let none = printed(tessera(dir.path(), &["usage", "--endpoint", "other"]));
    assert_eq!(none, "no requests were recorded\n");
    let payload = printed(tessera(dir.path(), &["usage", "payload", "iris"]));
    assert_eq!(serde_json::from_str::<Value>(&payload).unwrap()["request"], "question");

    let none = tessera(dir.path(), &["usage", "payload", "other"]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("nothing is kept of requests to 'other'"), "{none:?}");

    // Another home's key opens nothing, and a folder that is no home is not made one.
    fs::write(dir.path().join("node.key"), "ab".repeat(32)).unwrap();
    let refused = tessera(dir.path(), &["usage", "payload", "iris"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is wrapped with the key"), "{refused:?}");
    let nothing = tessera(&dir.path().join("nothing"), &["usage"]);
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("is not the home of a server"), "{nothing:?}");
    assert!(!dir.path().join("nothing").exists());
}
