//! Secrets: kept, shared, and seen by guests during requests alone.

use serde_json::{Value, json};

use crate::harness::{Package, Server, serving_with};

const MODEL: &str = "main.default.m";
const VALUE: &str = "canary-5b1e7c";

fn post(server: &Server, what: &str, body: &Value) -> Value {
    server.post(&format!("/api/2.0/secrets/{what}"), body).ok()
}

fn scope_with_secret(server: &Server) {
    post(server, "scopes/create", &json!({ "scope": "s" }));
    post(server, "put", &json!({ "scope": "s", "key": "k", "string_value": VALUE }));
}

#[test]
fn scopes_and_secrets_are_made_listed_read_and_deleted() {
    let server = Server::start();
    scope_with_secret(&server);
    let read = || server.get("/api/2.0/secrets/get?scope=s&key=k");

    // made twice, named badly, too large
    let again = server.post("/api/2.0/secrets/scopes/create", &json!({ "scope": "s" }));
    again.is_error(400, "RESOURCE_ALREADY_EXISTS", &["s"]);
    let bad = server.post("/api/2.0/secrets/scopes/create", &json!({ "scope": "a/b" }));
    bad.is_error(400, "INVALID_PARAMETER_VALUE", &["a/b"]);
    let large = json!({ "scope": "s", "key": "large", "string_value": "x".repeat(41 << 10) });
    server.post("/api/2.0/secrets/put", &large).is_error(400, "INVALID_PARAMETER_VALUE", &["41984", "40960"]);

    // read as base64, written again, from bytes
    assert_eq!(read().ok(), json!({ "key": "k", "value": "Y2FuYXJ5LTViMWU3Yw==" }));
    post(&server, "put", &json!({ "scope": "s", "key": "k", "bytes_value": "AP8=" }));
    assert_eq!(read().ok()["value"], "AP8=");
    let listed = server.get("/api/2.0/secrets/list?scope=s").ok();
    assert_eq!(listed["secrets"][0]["key"], "k");
    assert!(listed["secrets"][0]["last_updated_timestamp"].as_u64().unwrap() > 1_000_000_000_000);
    let scopes = server.get("/api/2.0/secrets/scopes/list").ok();
    assert_eq!(scopes["scopes"], json!([{ "name": "s", "backend_type": "DATABRICKS" }]));

    // who may do what with it
    post(&server, "acls/put", &json!({ "scope": "s", "principal": "users", "permission": "READ" }));
    let acls = server.get("/api/2.0/secrets/acls/list?scope=s").ok();
    let expected = json!([
        { "principal": "admin", "permission": "MANAGE" },
        { "principal": "users", "permission": "READ" },
    ]);
    assert_eq!(acls["items"], expected);
    assert_eq!(server.get("/api/2.0/secrets/acls/get?scope=s&principal=users").ok(), expected[1]);
    let nobody = json!({ "scope": "s", "principal": "nobody", "permission": "READ" });
    server.post("/api/2.0/secrets/acls/put", &nobody).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["nobody"]);
    post(&server, "acls/delete", &json!({ "scope": "s", "principal": "users" }));
    let gone = server.get("/api/2.0/secrets/acls/get?scope=s&principal=users");
    gone.is_error(404, "RESOURCE_DOES_NOT_EXIST", &["users"]);

    // gone, with the scope too
    post(&server, "delete", &json!({ "scope": "s", "key": "k" }));
    read().is_error(404, "RESOURCE_DOES_NOT_EXIST", &["key: k"]);
    post(&server, "put", &json!({ "scope": "s", "key": "k", "string_value": VALUE }));
    post(&server, "scopes/delete", &json!({ "scope": "s" }));
    read().is_error(404, "RESOURCE_DOES_NOT_EXIST", &["Scope s"]);
    post(&server, "scopes/create", &json!({ "scope": "s" }));
    assert_eq!(server.get("/api/2.0/secrets/list?scope=s").ok(), json!({ "secrets": [] }));
}

#[test]
fn a_guest_sees_a_secret_during_requests_and_never_during_init() {
    let mut server = Server::start();
    scope_with_secret(&server);
    let seen =
        |server: &Server| server.invoke("e", &json!({ "do": "setting", "name": "init" })).ok()["setting"].clone();

    // `init` fails if it finds this setting, whatever it is
    server.push(MODEL, &Package::hostile(""));
    let config = serving_with(MODEL, "1", ("init", "{{secrets/s/k}}"));
    server.create("e", &config).ok();
    assert_eq!(server.settled("e")["state"]["ready"], "READY");
    assert_eq!(seen(&server), VALUE);

    // the endpoint shows the reference, not the value
    let shown = server.endpoint("e").to_string();
    assert!(shown.contains("{{secrets/s/k}}") && !shown.contains(VALUE), "{shown}");

    // another value reaches the guest with the next update, and at a restart
    post(&server, "put", &json!({ "scope": "s", "key": "k", "string_value": "second" }));
    server.update("e", &config).ok();
    server.settled("e");
    assert_eq!(seen(&server), "second");
    post(&server, "put", &json!({ "scope": "s", "key": "k", "string_value": "third" }));
    server.terminate();
    server.wait();
    server.start_again();
    assert_eq!(seen(&server), "third");

    // one that is gone by then is named
    post(&server, "delete", &json!({ "scope": "s", "key": "k" }));
    server.terminate();
    server.wait();
    server.start_again();
    let gone = server.invoke("e", &json!({ "do": "setting", "name": "init" }));
    gone.is_error(400, "BAD_REQUEST", &["environment_vars.init", "{{secrets/s/k}}"]);
}
