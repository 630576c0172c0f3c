//! What stands between callers and endpoints, and what they leave behind: rate limits, audit log, usage, payloads.

use std::process::Output;

use reqwest::blocking::Client;
use serde_json::{Value, json};

use crate::harness::{self, Package, Server, eventually, send, serving, tessera};

const MODEL: &str = "main.default.m";
const ECHO: fn() -> Value = || json!({ "do": "echo" });

fn with_endpoint() -> Server {
    let server = Server::start();
    server.push(MODEL, &Package::hostile(""));
    server.create("e", &serving(MODEL, "1")).ok();
    server.settled("e");
    server
}

fn run(server: &Server, args: &[&str]) -> Output {
    tessera().args(args).arg("--home").arg(server.home()).output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The log's records, oldest first.
fn audited(server: &Server) -> Vec<Value> {
    lines(&run(server, &["audit", "list", "--json", "--limit", "1000"]))
}

fn gateway(server: &Server, config: &Value) {
    server.put("/api/2.0/serving-endpoints/e/ai-gateway", config).ok();
}

#[test]
fn rate_limits_refuse_what_is_over_them_and_say_when_to_come_again() {
    let server = with_endpoint();
    let limit =
        |calls: u64| json!({ "rate_limits": [{ "calls": calls, "renewal_period": "minute", "key": "endpoint" }] });
    let refused = || {
        let answer = server.invoke("e", &ECHO());
        answer.is_error(429, "REQUEST_LIMIT_EXCEEDED", &["'e'", "per minute"]);
        let seconds: u64 = answer.header("retry-after").parse().unwrap();
        assert!((1..=64).contains(&seconds), "{seconds}");
    };

    gateway(&server, &limit(3));
    (0..3).for_each(|_| drop(server.invoke("e", &ECHO()).ok()));
    refused();
    // Another limit goes on from what was counted; a refused request was not.
    gateway(&server, &limit(4));
    server.invoke("e", &ECHO()).ok();
    refused();
    // The older form holds beside it, for each caller.
    gateway(&server, &json!({}));
    let older = json!({ "rate_limits": [{ "calls": 1, "renewal_period": "minute", "key": "user" }] });
    server.put("/api/2.0/serving-endpoints/e/rate-limits", &older).ok();
    server.invoke("e", &ECHO()).ok();
    refused();
    // A limit of nothing is no reason to come again.
    let none = json!({ "rate_limits": [{ "calls": 0, "renewal_period": "minute", "key": "endpoint" }] });
    gateway(&server, &none);
    server.invoke("e", &ECHO()).is_error(403, "PERMISSION_DENIED", &["'e'", "0 calls per minute"]);
}

#[test]
fn every_change_and_every_denied_access_is_in_the_audit_log() {
    let server = with_endpoint();
    let client = harness::client().build().unwrap();
    let nobody = |client: &Client| client.get(server.url("/api/2.0/serving-endpoints/e")).send().unwrap().status();
    (0..5).for_each(|_| assert_eq!(nobody(&client), 401));
    server.create("e", &serving(MODEL, "1")).is_error(400, "RESOURCE_ALREADY_EXISTS", &[]);
    server.get("/api/2.0/serving-endpoints/e").ok();
    let deleted = server.delete("/api/2.0/serving-endpoints/e", &json!({}));
    deleted.ok();

    // The changes are there with their answers; reading leaves nothing.
    let records = audited(&server);
    let of = |action: &str| records.iter().filter(|record| record["action"] == action).collect::<Vec<_>>();
    let created: Vec<&Value> = of("endpoints.create").iter().map(|record| &record["status"]).collect();
    assert_eq!(created, [200, 400]);
    let delete = of("endpoints.delete")[0];
    assert_eq!((&delete["object"], &delete["principal"]["name"]), (&json!("e"), &json!("admin")));
    assert_eq!(delete["request_id"], deleted.header("x-request-id"));
    assert_eq!(delete["source"], "127.0.0.1");
    assert!(of("invocations.invoke").is_empty());
    let text = format!("{records:?}");
    let token = std::fs::read_to_string(server.home().join("admin.token")).unwrap();
    assert!(!text.contains(token.trim()), "a token is in the audit log");

    // Denied accesses, counted together, come within a second or so.
    let denied = eventually("denied accesses in the log", || {
        let all = audited(&server);
        let denied = all.iter().filter(|record| record["action"] == "endpoints.get");
        let count: u64 = denied.clone().map(|record| record["count"].as_u64().unwrap_or(1)).sum();
        (count == 5).then(|| denied.cloned().collect::<Vec<_>>())
    });
    assert!(denied.iter().all(|record| record["status"] == 401 && record["principal"].is_null()), "{denied:?}");
    assert!(run(&server, &["audit", "verify"]).status.success());
}

#[test]
fn every_request_leaves_a_row_and_its_payload_where_that_is_asked_for() {
    let server = with_endpoint();
    let table =
        json!({ "inference_table_config": { "enabled": true, "catalog_name": "main", "schema_name": "default" } });
    server.invoke("e", &ECHO()).ok();
    server.invoke("e", &json!({ "do": "trap", "message": "no" })).is_error(400, "BAD_REQUEST", &[]);
    gateway(&server, &table);
    server.invoke("e", &json!({ "do": "fail_long", "bytes": 3 })).is_error(400, "BAD_REQUEST", &[]);
    let body = json!({ "do": "echo" }).to_string();
    let request = server.request(reqwest::Method::POST, "/serving-endpoints/e/invocations");
    let kept = send(request.header("content-type", "text/plain").body(body.clone()));
    assert_eq!((kept.status, kept.text().as_str()), (200, body.as_str()));

    let usage = server.get("/api/2.0/tessera/usage?by=endpoint&endpoint=e").ok();
    let row = &usage["usage"][0];
    assert_eq!((&row["requests"], &row["errors"]), (&json!(4), &json!(2)), "{usage}");
    let by = server.get("/api/2.0/tessera/usage?by=principal").ok();
    assert_eq!(by["usage"][0]["key"], "admin", "{by}");

    // Only those since the table is on.
    let payloads = lines(&run(&server, &["usage", "payload", "e"]));
    assert_eq!(payloads.len(), 2, "{payloads:?}");
    let found = payloads.iter().find(|row| row["databricks_request_id"] == kept.header("x-request-id")).unwrap();
    assert_eq!((&found["request"], &found["response"]), (&json!(body), &json!(body)));
    assert_eq!((&found["status_code"], &found["requester"]), (&json!(200), &json!("admin")));
}
