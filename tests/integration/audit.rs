//! The audit log and the usage table of a running server, through its command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Package, Server, send, tessera};

fn run(home: &Path, args: &[&str]) -> Output {
    tessera().args(args).arg("--home").arg(home).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The actions in the log, oldest first, and that it is whole.
fn actions(home: &Path) -> Vec<String> {
    let verified = run(home, &["audit", "verify"]);
    assert_eq!(verified.status.code(), Some(0), "{}", out(&verified));
    let lines = out(&run(home, &["audit", "list", "--json"]));
    let action = |line: &str| serde_json::from_str::<Value>(line).unwrap()["action"].as_str().unwrap().to_owned();
    lines.lines().map(action).collect()
}

fn segment(home: &Path) -> PathBuf {
    let files = fs::read_dir(home.join("audit")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl")).max().unwrap()
}

#[test]
fn the_audit_log_is_whole_through_restarts_and_kills_and_tells_what_was_touched() {
    let mut server = Server::start();
    let home = server.home();
    assert_eq!(actions(&home), ["audit.segment", "server.start"]);
    server.kill9();
    server.start_again();
    server.terminate();
    server.wait();
    assert_eq!(actions(&home)[1..], ["server.start", "server.start", "server.stop"]);
    let since_tomorrow = run(&home, &["audit", "list", "--since", "2999-01-01T00:00:00Z"]);
    assert_eq!(out(&since_tomorrow), "no records\n");

    // Half of a record, as a kill leaves it, goes at the next start; a changed one never does.
    let mut content = fs::read(segment(&home)).unwrap();
    content.extend_from_slice(br#"{"seq":5"#);
    fs::write(segment(&home), content).unwrap();
    server.start_again();
    assert!(actions(&home).contains(&"audit.repaired".to_owned()));
    server.terminate();
    server.wait();
    let text = fs::read_to_string(segment(&home)).unwrap();
    fs::write(segment(&home), text.replacen("server.start", "server.stort", 1)).unwrap();
    let broken = run(&home, &["audit", "verify", "--json"]);
    assert_eq!(broken.status.code(), Some(1));
    let found: Value = serde_json::from_str(&out(&broken)).unwrap();
    assert_eq!(found["break"]["line"], 2, "{found}");
    assert_eq!(found["break"]["what"], "the record is not as it was written");
}

#[test]
fn a_model_that_answers_403_denies_nobody_access() {
    let mut server = Server::start();
    server.deploy("strict", &Package::hostile(""));
    let invocations = "/serving-endpoints/strict/invocations";
    assert_eq!(server.post(invocations, &json!({ "do": "status", "status": 403 })).status, 403);
    assert_eq!(send(server.anonymous(Method::POST, invocations)).status, 401);
    server.terminate();
    server.wait();
    let denied = actions(&server.home()).into_iter().filter(|action| action == "invocations.invoke").count();
    assert_eq!(denied, 1, "the caller without a token");
}

#[test]
fn usage_is_asked_of_the_server_with_a_token_and_read_from_files_without_one() {
    let mut server = Server::start();
    let home = server.home();
    assert_eq!(server.get("/api/2.0/tessera/usage?by=day").ok()["usage"], Value::Array(vec![]));
    server.get("/api/2.0/tessera/usage?by=week").is_error(400, "INVALID_PARAMETER_VALUE", &["week", "principal"]);
    server.get("/api/2.0/tessera/usage?since_ms=x").is_error(400, "INVALID_PARAMETER_VALUE", &["since_ms"]);
    assert_eq!(out(&run(&home, &["usage"])), "no requests were recorded\n");
    server.kill9();
    assert_eq!(out(&run(&home, &["usage"])), "no requests were recorded\n");
}
