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

/// The rows of the endpoint's payload table, by their requests.
fn payload(server: &Server, of: &harness::Answer) -> Option<Value> {
    let rows = lines(&run(server, &["usage", "payload", "e"]));
    rows.into_iter().find(|row| row["databricks_request_id"] == of.header("x-request-id"))
}

#[test]
fn streamed_answers_are_kept_up_to_a_limit_and_say_what_is_missing() {
    let server = with_endpoint();
    let table = |fraction: f64| {
        let table = json!({
            "enabled": true, "catalog_name": "main", "schema_name": "default", "sampling_fraction": fraction,
        });
        json!({ "inference_table_config": table })
    };
    gateway(&server, &table(1.0));
    let stream = |deed: &str, chunks: usize, bytes: usize| {
        server.invoke("e", &json!({ "do": deed, "chunks": chunks, "bytes": bytes }))
    };
    let short = stream("stream", 3, 5);
    let long = stream("stream", 20, 100_000);
    assert_eq!((short.body.len(), long.body.len()), (15, 2_000_000));
    let request = json!({ "do": "stream_then_trap", "chunks": 2, "bytes": 4 });
    let broken = server.request(reqwest::Method::POST, "/serving-endpoints/e/invocations").json(&request);
    let broken = broken.send().unwrap();
    let broken_id = broken.headers()["x-request-id"].to_str().unwrap().to_owned();
    broken.bytes().expect_err("a body that breaks off is no whole body");

    server.get("/api/2.0/tessera/usage").ok();
    let row = payload(&server, &short).unwrap();
    assert_eq!((&row["response"], &row["logging_error_codes"]), (&json!("x".repeat(15)), &json!([])));
    let row = payload(&server, &long).unwrap();
    assert_eq!(row["response"].as_str().unwrap().len(), 1 << 20);
    assert_eq!(row["logging_error_codes"], json!(["MAX_RESPONSE_SIZE_EXCEEDED"]));
    let rows = lines(&run(&server, &["usage", "payload", "e"]));
    let row = rows.iter().find(|row| row["databricks_request_id"] == broken_id.as_str()).unwrap();
    assert_eq!((&row["response"], &row["logging_error_codes"]), (&json!("xxxxxxxx"), &json!(["RESPONSE_BROKEN_OFF"])));

    // A sample: which requests are in it depends on their ids alone.
    gateway(&server, &table(0.5));
    let sampled: Vec<_> = (0..40).map(|_| stream("stream", 1, 1)).collect();
    gateway(&server, &table(0.0));
    let unsampled = stream("stream", 1, 1);
    server.get("/api/2.0/tessera/usage").ok();
    let kept: Vec<Value> = sampled.iter().filter_map(|answer| payload(&server, answer)).collect();
    assert!((4..37).contains(&kept.len()), "{} of 40 were kept", kept.len());
    assert!(kept.iter().all(|row| row["sampling_fraction"] == 0.5));
    assert!(payload(&server, &unsampled).is_none());
    let refused = server.put("/api/2.0/serving-endpoints/e/ai-gateway", &table(1.5));
    refused.is_error(400, "INVALID_PARAMETER_VALUE", &["sampling_fraction", "0 to 1"]);
}

#[test]
fn tokens_are_counted_as_the_model_says_them() {
    let server = with_endpoint();
    let echo = |content_type: &str, body: String| {
        let request = server.request(reqwest::Method::POST, "/serving-endpoints/e/invocations");
        let answer = send(request.header("content-type", content_type).body(body));
        assert_eq!(answer.status, 200);
    };
    let usage = r#""usage":{"prompt_tokens":30,"completion_tokens":2,"total_tokens":32}"#;
    let text = "a".repeat(5000);
    echo("application/vnd.test+json", format!(r#"{{{usage},"choices":[{{"text":"{text}"}}]}}"#));
    echo("text/event-stream", format!("data: {{\"choices\":[],{usage}}}\n\ndata: [DONE]\n\n"));
    // Not the model's count, but what somebody wrote.
    echo("text/plain", format!("{{{usage}}}"));
    echo("application/vnd.test+json", format!(r#"{{"predictions":[{{{usage}}}]}}"#));
    let row = &server.get("/api/2.0/tessera/usage?by=endpoint&endpoint=e").ok()["usage"][0];
    assert_eq!((&row["requests"], &row["input_tokens"], &row["output_tokens"]), (&json!(4), &json!(60), &json!(4)));

    // A limit of tokens counts them too.
    gateway(&server, &json!({ "rate_limits": [{ "tokens": 200, "renewal_period": "minute", "key": "endpoint" }] }));
    let large = r#"{"usage":{"prompt_tokens":300,"completion_tokens":0,"total_tokens":300}}"#;
    echo("application/vnd.test+json", large.to_owned());
    server.invoke("e", &ECHO()).is_error(429, "REQUEST_LIMIT_EXCEEDED", &["200 tokens per minute"]);
}
