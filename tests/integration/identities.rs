//! Who may call: users, groups, service principals and their tokens, with the Databricks SDK as it is and over plain HTTP;
//! and tenants: what one has does not exist for another.

use std::thread;

use base64::Engine as _;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Package, Server, ask_python, eventually, printed, python, send, serving, tessera};

const SCIM: &str = "/api/2.0/preview/scim/v2";
const WORKSPACES: &str = "/api/2.0/accounts/main/workspaces";

/// Another workspace, and its administrator.
struct Tenant<'a> {
    server: &'a Server,
    id: u64,
    token: String,
}

impl Tenant<'_> {
    fn call(&self, method: Method, path: &str, body: &Value) -> Answer {
        let request = self.server.request_as(&self.token, method, path);
        send(if body.is_null() { request } else { request.json(body) })
    }

    fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, &Value::Null)
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path, body)
    }
}

fn tenant<'a>(server: &'a Server, name: &str, quotas: &Value) -> Tenant<'a> {
    let made = server.post(WORKSPACES, &json!({ "workspace_name": name, "quotas": quotas })).ok();
    let token = made["admin"]["token_value"].as_str().unwrap().to_owned();
    Tenant { server, id: made["workspace_id"].as_u64().unwrap(), token }
}

/// A user of the first workspace with a token.
fn user(server: &Server, name: &str, lifetime_seconds: Option<u64>) -> (String, Value) {
    let made = send(server.request(Method::POST, &format!("{SCIM}/Users")).json(&json!({ "userName": name })));
    assert_eq!(made.status, 201, "{}", made.text());
    let mut body = json!({ "user_name": name });
    if let Some(seconds) = lifetime_seconds {
        body["lifetime_seconds"] = json!(seconds);
    }
    let token = server.post("/api/2.0/token-management/on-behalf-of/tokens", &body).ok();
    (made.json()["id"].as_str().unwrap().to_owned(), token)
}

#[test]
fn the_databricks_sdk_manages_principals_tokens_and_workspaces() {
    // given a server
    let server = Server::start();

    // when an administrator works with the SDK
    let mut client = python("identities.py");
    client.args([&server.url(""), &server.token]);
    let seen = ask_python(&mut client, &Value::Null);

    // then it saw what it would have seen at Databricks
    let is = |key: &str, expected: Value| assert_eq!(seen[key], expected, "{key} in {seen:#}");
    is("me", json!("admin"));
    assert!(seen["workspace_id"].is_u64(), "{seen}");
    is("bob", json!("Bob Builder"));
    is("found", json!(["ada@example.com"]));
    is("all_users", json!(["ada@example.com", "admin", "bob@example.com"]));
    is("filtered", json!(["ada@example.com", "bob@example.com"]));
    is("renamed", json!(["Ada King", "Bobby"]));
    is("outer", json!(["Bobby", "inner"]));
    is("ada_groups", json!([["inner", "direct"], ["outer", "indirect"], ["users", "direct"]]));
    is("outer_without_bob", json!(["inner"]));
    is("replaced", json!([["renamed", ["Bobby"]]]));
    is("ada", json!("Ada King"));
    is("ada_reads", json!(true));
    is("own", json!(["hers", "mine"]));
    is("managed", json!(["mine"]));
    is("commented_by_sdk", json!("by the SDK"));
    is("commented_by_admin", json!(["by the administrator"]));
    is("with_own", json!("ada@example.com"));
    is("robot", json!(["oauth-m2m", true, ["inner", "users"]]));
    is("robot_token", json!("from OAuth"));
    is("obo", json!("robot"));
    is("secrets", json!([true]));
    is("robots", json!([]));
    is("made", json!(["made", "RUNNING"]));
    is("workspaces", json!(["default", "made"]));
    is("updated", json!("renamed"));
    is("server_admins", json!(["admin", "eve@example.com"]));
    is("role", json!("account_admin"));
    is("eve_sees", json!(["default"]));
    is("operator", json!("account_admin"));
    assert!(seen["members_left"].is_null() || seen["members_left"] == json!([]), "{seen}");

    // and every refusal as the class that stands for it
    for (key, class, words) in [
        ("twice", "ResourceAlreadyExists", "ada@example.com"),
        ("circle", "InvalidParameterValue", "member of itself"),
        ("ada_creates", "PermissionDenied", "administrator"),
        ("revoked", "Unauthenticated", "not valid"),
        ("inactive", "Unauthenticated", "not valid"),
        ("deleted", "ResourceDoesNotExist", "does not exist"),
        ("sixth", "BadRequest", "5"),
        ("wrong_secret", "ValueError", "invalid_client"),
        ("without_secret", "Unauthenticated", "not valid"),
        ("gone", "ResourceDoesNotExist", "does not exist"),
        ("bad_filter", "BadRequest", "invalidFilter"),
        ("bad_mask", "InvalidParameterValue", "expiry_time"),
        ("not_hers", "ResourceDoesNotExist", "does not exist"),
        ("not_here", "InvalidParameterValue", "roles"),
        ("old_token", "Unauthenticated", "not valid"),
        ("demoted", "PermissionDenied", "administrator"),
        ("last", "InvalidParameterValue", "no administrator any more"),
        ("last_off", "InvalidParameterValue", "no administrator any more"),
        ("last_deleted", "InvalidParameterValue", "no administrator any more"),
    ] {
        let refused = seen[key].as_str().unwrap_or_else(|| panic!("{key} was not refused: {seen:#}"));
        assert!(refused.starts_with(&format!("{class}:")) && refused.contains(words), "{key}: {refused}");
    }
}

#[test]
fn administrators_of_the_server_are_made_and_removed_and_the_audit_log_tells() {
    // given a server with one administrator
    let server = Server::start();
    let run = |args: &[&str]| {
        let mut command = tessera();
        command.args(args).args(["--host", &server.url(""), "--token", &server.token]);
        command.output().unwrap()
    };
    let refused = |args: &[&str], word: &str| {
        let output = run(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(word), "{args:?}: {said}");
    };

    // when the command line makes others, and takes the role away again
    refused(&["user", "demote", "admin"], "no administrator any more");
    printed(run(&["user", "create", "ada", "--server-admin"]));
    printed(run(&["user", "create", "bob"]));
    printed(run(&["user", "promote", "bob"]));
    printed(run(&["user", "demote", "bob"]));

    // then ada may do what the first one may, and bob may not
    let token = |name: &str| {
        let made = server.post("/api/2.0/token-management/on-behalf-of/tokens", &json!({ "user_name": name })).ok();
        made["token_value"].as_str().unwrap().to_owned()
    };
    let (ada, bob) = (token("ada"), token("bob"));
    send(server.request_as(&ada, Method::GET, WORKSPACES)).ok();
    send(server.request_as(&bob, Method::GET, WORKSPACES)).is_error(403, "PERMISSION_DENIED", &[]);

    // and the log says who got the role and lost it
    let home = server.home();
    let log = printed(tessera().args(["audit", "list", "--json", "--home"]).arg(home).output().unwrap());
    let told: Vec<(String, u64)> = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|record| record["action"].as_str().unwrap().starts_with("account_users."))
        .map(|record| (record["object"].as_str().unwrap().to_owned(), record["status"].as_u64().unwrap()))
        .collect();
    let expected = [("admin", "taken", 400), ("ada", "given", 201), ("bob", "given", 200), ("bob", "taken", 200)];
    let expected = expected.map(|(name, what, status)| (format!("{name}: account_admin {what}"), status));
    assert_eq!(told, expected);
}

#[test]
fn the_secrets_of_a_servers_administrator_are_not_for_administrators_of_a_workspace() {
    // given a service principal that administrates the server, with a secret, and somebody who administrates its workspace
    let server = Server::start();
    let made = server.post(&format!("{SCIM}/ServicePrincipals"), &json!({ "displayName": "operator" }));
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let role = json!({ "Operations": [{ "op": "add", "path": "roles", "value": [{ "value": "account_admin" }] }] });
    let account = format!("/api/2.0/accounts/any/scim/v2/ServicePrincipals/{id}");
    send(server.request(Method::PATCH, &account).json(&role)).ok();
    let secrets = format!("/api/2.0/accounts/servicePrincipals/{id}/credentials/secrets");
    let secret = server.post(&secrets, &json!({})).ok()["id"].as_str().unwrap().to_owned();
    let (ann, token) = user(&server, "ann", None);
    let groups = server.get(&format!("{SCIM}/Groups?filter=displayName%20eq%20admins")).ok();
    let admins = groups["Resources"][0]["id"].as_str().unwrap();
    let join = json!({ "Operations": [{ "op": "add", "path": "members", "value": [{ "value": ann }] }] });
    assert!(send(server.request(Method::PATCH, &format!("{SCIM}/Groups/{admins}")).json(&join)).status < 300);

    // then the latter neither makes a secret for it nor deletes one
    let token = token["token_value"].as_str().unwrap();
    let made = send(server.request_as(token, Method::POST, &secrets).json(&json!({})));
    made.is_error(403, "PERMISSION_DENIED", &["administrates the server"]);
    let deleted = send(server.request_as(token, Method::DELETE, &format!("{secrets}/{secret}")));
    deleted.is_error(403, "PERMISSION_DENIED", &["administrates the server"]);
}

#[test]
fn a_revoked_token_is_refused_under_constant_requests() {
    // given a user whose token four clients use without a pause
    let server = Server::start();
    let (_, made) = user(&server, "ada", None);
    let token = made["token_value"].as_str().unwrap();
    let me = || send(server.request_as(token, Method::GET, &format!("{SCIM}/Me"))).status;
    assert_eq!(me(), 200);

    thread::scope(|scope| {
        let clients: Vec<_> =
            (0..4).map(|_| scope.spawn(|| eventually("refused", || (me() == 401).then_some(())))).collect();
        // when it is revoked
        let id = made["token_info"]["token_id"].as_str().unwrap();
        server.delete(&format!("/api/2.0/token-management/tokens/{id}"), &json!({})).ok();
        // then from the answer on, no request gets through
        assert_eq!(me(), 401);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
}

#[test]
fn an_expired_token_opens_nothing_and_goes_from_the_list() {
    let server = Server::start();
    let (_, made) = user(&server, "ada", Some(1));
    let token = made["token_value"].as_str().unwrap();
    let me = format!("{SCIM}/Me");
    eventually("it expires", || (send(server.request_as(token, Method::GET, &me)).status == 401).then_some(()));
    let id = made["token_info"]["token_id"].clone();
    let listed = || server.get("/api/2.0/token-management/tokens").ok();
    eventually("it is removed", || {
        let tokens = listed()["token_infos"].as_array().unwrap().clone();
        assert!(!tokens.is_empty(), "the administrator's stays");
        tokens.iter().all(|token| token["token_id"] != id).then_some(())
    });
}

#[test]
fn oauth_tokens_outlive_a_restart_and_end_with_their_principal() {
    // given a service principal with a secret
    let mut server = Server::start();
    let robot =
        send(server.request(Method::POST, &format!("{SCIM}/ServicePrincipals")).json(&json!({ "displayName": "r" })));
    let robot = robot.json();
    let [id, application] = ["id", "applicationId"].map(|key| robot[key].as_str().unwrap().to_owned());
    let secret = server.post(&format!("/api/2.0/accounts/servicePrincipals/{id}/credentials/secrets"), &json!({})).ok();
    let secret = secret["secret"].as_str().unwrap().to_owned();

    // when it asks for tokens where discovery says, with Basic or in the form
    let config = send(server.anonymous(Method::GET, "/.well-known/databricks-config")).ok();
    assert_eq!(config["oidc_endpoint"], server.url("/oidc"));
    let found = send(server.anonymous(Method::GET, "/oidc/.well-known/oauth-authorization-server")).ok();
    assert_eq!(found["token_endpoint"], server.url("/oidc/v1/token"));
    let ask = |server: &Server, basic: Option<&str>, form: &str| {
        let mut request = server.anonymous(Method::POST, "/oidc/v1/token").body(form.to_owned());
        if let Some(basic) = basic {
            request = request.header("authorization", format!("Basic {basic}"));
        }
        send(request.header("content-type", "application/x-www-form-urlencoded"))
    };
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{application}:{secret}"));
    let grant = "grant_type=client_credentials&scope=all-apis";
    let first = ask(&server, Some(&basic), grant);
    assert_eq!(first.header("cache-control"), "no-store");
    let first = first.ok();
    assert_eq!((&first["token_type"], &first["expires_in"]), (&json!("Bearer"), &json!(3600)));
    let in_form = format!("{grant}&client_id={application}&client_secret={secret}");
    let second = ask(&server, None, &in_form).ok();
    let bearer = |token: &Value| token["access_token"].as_str().unwrap().to_owned();
    let exchange =
        format!("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={}", bearer(&second));
    let third = ask(&server, None, &exchange).ok();

    // then all open the door, after a restart too
    let me = |server: &Server, token: &str| send(server.request_as(token, Method::GET, &format!("{SCIM}/Me")));
    server.terminate();
    server.wait();
    server.start_again();
    for token in [&first, &second, &third].map(bearer) {
        assert_eq!(me(&server, &token).ok()["userName"], json!(application));
    }

    // and wrong ones get OAuth's errors
    for (form, status, error) in [
        ("grant_type=client_credentials&client_id=x&client_secret=y".to_owned(), 401, "invalid_client"),
        ("grant_type=password".to_owned(), 400, "unsupported_grant_type"),
        (String::new(), 400, "invalid_request"),
        (in_form.replace("all-apis", "sql"), 400, "invalid_scope"),
        (format!("{in_form}&scope=all-apis"), 400, "invalid_request"),
        ("grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer&assertion=x".to_owned(), 400, "invalid_grant"),
    ] {
        let refused = ask(&server, None, &form);
        assert_eq!((refused.status, &refused.json()["error"]), (status, &json!(error)), "{form}");
        assert!(
            refused.json()["error_description"].is_string() && refused.header("content-type") == "application/json"
        );
    }
    let blocked = eventually("guessing is held up", || {
        let refused = ask(&server, None, "grant_type=client_credentials&client_id=guess&client_secret=y");
        (refused.status == 429).then_some(refused)
    });
    assert!(!blocked.header("retry-after").is_empty());
    ask(&server, Some(&basic), grant).ok();

    // and none opens the door once the principal may not call
    let off = json!({ "Operations": [{ "op": "replace", "path": "active", "value": false }] });
    send(server.request(Method::PATCH, &format!("{SCIM}/ServicePrincipals/{id}")).json(&off)).ok();
    assert_eq!(me(&server, &bearer(&first)).status, 401);
    assert_eq!(ask(&server, Some(&basic), grant).status, 401);
}

#[test]
fn workspaces_with_equal_names_do_not_see_each_other() {
    // given two workspaces with a user, a group, a model and an endpoint of the same names
    let server = Server::start();
    let there = tenant(&server, "there", &json!({}));
    let package = Package::hostile("");
    server.push("main.default.m", &package);
    server.create("e", &serving("main.default.m", "1")).ok();
    server.settled("e");
    let registry = "/api/2.0/mlflow/unity-catalog";
    there.post(&format!("{registry}/registered-models/create"), &json!({ "name": "main.default.m" })).ok();
    there.post(&format!("{registry}/model-versions/create"), &json!({ "name": "main.default.m" })).ok();
    for (name, content) in &package.files {
        let path = format!("/api/2.0/fs/files/Models/main/default/m/1/{name}");
        assert_eq!(send(server.request_as(&there.token, Method::PUT, &path).body(content.clone())).status, 204);
    }
    let version = json!({ "name": "main.default.m", "version": "1" });
    there.post(&format!("{registry}/model-versions/finalize"), &version).ok();
    let endpoint = json!({ "name": "e", "config": serving("main.default.m", "1") });
    there.post("/api/2.0/serving-endpoints", &endpoint).ok();
    eventually("the other endpoint is ready", || {
        (there.get("/api/2.0/serving-endpoints/e").ok()["state"]["ready"] == "READY").then_some(())
    });
    let mut ids = Vec::new();
    for (resource, body) in [
        ("Users", json!({ "userName": "ada" })),
        ("Groups", json!({ "displayName": "team" })),
        ("ServicePrincipals", json!({ "displayName": "robot" })),
    ] {
        let path = format!("{SCIM}/{resource}");
        let [here, other] = [send(server.request(Method::POST, &path).json(&body)), there.post(&path, &body)]
            .map(|made| made.json()["id"].as_str().unwrap().to_owned());
        ids.push((path, here, other));
    }

    // when both call their endpoints, then each counts alone
    for _ in 0..3 {
        server.invoke("e", &json!({ "do": "counter" })).ok();
    }
    there.post("/serving-endpoints/e/invocations", &json!({ "do": "counter" })).ok();
    let metrics = server.get("/metrics").text();
    let counted = |workspace: &str| {
        let start = format!("tessera_invocations_total{{workspace=\"{workspace}\",endpoint=\"e\"");
        let line = metrics.lines().find(|line| line.starts_with(&start) && line.contains("2xx"));
        line.unwrap_or_else(|| panic!("{start} is not in {metrics}")).rsplit(' ').next().unwrap().to_owned()
    };
    let here = server.get("/api/2.0/preview/scim/v2/Me").header("x-databricks-org-id").to_owned();
    assert_eq!((counted(&here), counted(&there.id.to_string())), ("3".to_owned(), "1".to_owned()));

    // and every list has only the caller's own
    let counts = |answer: Answer, key: &str| answer.ok()[key].as_array().map_or(0, Vec::len);
    for (path, key, own) in [
        ("/api/2.0/serving-endpoints".to_owned(), "endpoints", 1),
        (format!("{registry}/registered-models/search"), "registered_models", 1),
        (format!("{SCIM}/Users"), "Resources", 2),
        (format!("{SCIM}/Groups"), "Resources", 3),
        (format!("{SCIM}/ServicePrincipals"), "Resources", 1),
        ("/api/2.0/token/list".to_owned(), "token_infos", 1),
        ("/api/2.0/token-management/tokens".to_owned(), "token_infos", 1),
    ] {
        assert_eq!((counts(server.get(&path), key), counts(there.get(&path), key)), (own, own), "{path}");
    }

    // and a stranger's id is nobody's
    for (path, here, other) in &ids {
        let change = json!({ "displayName": "x" });
        let patch = json!({ "Operations": [{ "op": "replace", "path": "displayName", "value": "x" }] });
        for (method, body) in [
            (Method::GET, &Value::Null),
            (Method::PUT, &change),
            (Method::PATCH, &patch),
            (Method::DELETE, &Value::Null),
        ] {
            let refused = there.call(method, &format!("{path}/{here}"), body);
            refused.is_error(404, "RESOURCE_DOES_NOT_EXIST", &[here]);
        }
        server.get(&format!("{path}/{here}")).ok();
        there.get(&format!("{path}/{other}")).ok();
    }
    let join = json!({ "Operations": [{ "op": "add", "path": "members", "value": [{ "value": ids[0].1 }] }] });
    let joined = there.call(Method::PATCH, &format!("{SCIM}/Groups/{}", ids[1].2), &join);
    joined.is_error(404, "RESOURCE_DOES_NOT_EXIST", &[&ids[0].1]);
    let token = server.get("/api/2.0/token/list").ok()["token_infos"][0]["token_id"].as_str().unwrap().to_owned();
    there.call(Method::DELETE, &format!("/api/2.0/token-management/tokens/{token}"), &Value::Null).is_error(
        404,
        "RESOURCE_DOES_NOT_EXIST",
        &[&token],
    );
    there.post("/api/2.0/token/delete", &json!({ "token_id": token })).is_error(404, "RESOURCE_DOES_NOT_EXIST", &[]);
    let secrets = format!("/api/2.0/accounts/servicePrincipals/{}/credentials/secrets", ids[2].1);
    there.post(&secrets, &json!({})).is_error(404, "RESOURCE_DOES_NOT_EXIST", &[]);

    // and the tenant's administrator is none of the server
    there.get(WORKSPACES).is_error(403, "PERMISSION_DENIED", &[]);
    let header = server.request_as(&there.token, Method::GET, "/api/2.0/preview/scim/v2/Me");
    let answer = send(header.header("x-databricks-workspace-id", &here));
    assert_eq!(answer.header("x-databricks-org-id"), there.id.to_string(), "the header changes nothing");

    // and the workspace stays as long as it has something, then goes with its token
    let path = format!("{WORKSPACES}/{}", there.id);
    there.post("/api/2.0/secrets/scopes/create", &json!({ "scope": "s" })).ok();
    let full = ["1 endpoints", "1 registered models", "1 secret scopes"];
    server.delete(&path, &json!({})).is_error(409, "RESOURCE_CONFLICT", &full);
    there.call(Method::DELETE, "/api/2.0/serving-endpoints/e", &Value::Null).ok();
    let model = json!({ "name": "main.default.m" });
    there.call(Method::DELETE, &format!("{registry}/registered-models/delete"), &model).ok();
    there.post("/api/2.0/secrets/scopes/delete", &json!({ "scope": "s" })).ok();
    server.delete(&path, &json!({})).ok();
    assert_eq!(there.get("/api/2.0/token/list").status, 401);
    server.get(&path).is_error(404, "RESOURCE_DOES_NOT_EXIST", &[]);
    server.invoke("e", &json!({ "do": "counter" })).ok();
    server.delete(&format!("{WORKSPACES}/{here}"), &json!({})).is_error(400, "INVALID_PARAMETER_VALUE", &["admin"]);
}

#[test]
fn quotas_hold_after_a_restart_and_give_back_what_is_deleted() {
    // given a workspace that may have one endpoint, two versions and little more than the bytes of one
    let mut server = Server::start();
    let package = Package::hostile("");
    let bytes: usize = package.files.values().map(Vec::len).sum();
    let workspace = server.get(WORKSPACES).ok()[0]["workspace_id"].as_u64().unwrap();
    let path = format!("{WORKSPACES}/{workspace}");
    let set = |server: &Server, quotas: Value| {
        let answer = send(server.request(Method::PATCH, &path).json(&json!({ "quotas": quotas })));
        answer.ok()["limits"].clone()
    };
    let limits = set(&server, json!({ "endpoints": 1, "model_versions": 2, "model_bytes": bytes + 10 }));
    assert_eq!((&limits["endpoints"], &limits["requests_per_minute"]), (&json!(1), &json!(18_000_000)));
    server.push("main.default.m", &package);
    server.create("e", &serving("main.default.m", "1")).ok();
    server.settled("e");

    // when the server starts again, then it still knows what is used
    server.terminate();
    server.wait();
    server.start_again();
    let usage = |server: &Server| server.get(&path).ok()["usage"].clone();
    let used = json!({ "endpoints": 1, "model_versions": 1, "model_bytes": bytes, "concurrent_requests": 0 });
    assert_eq!(usage(&server), used);

    // and what is over a quota is refused by name, with what is used and the limit, in a way that nobody repeats
    let over = server.create("f", &serving("main.default.m", "1"));
    over.is_error(400, "BAD_REQUEST", &["'endpoints'", "1 of 1"]);
    let registry = "/api/2.0/mlflow/unity-catalog";
    let new_version =
        || server.post(&format!("{registry}/model-versions/create"), &json!({ "name": "main.default.m" }));
    new_version().ok();
    new_version().is_error(400, "BAD_REQUEST", &["'model_versions'", "2 of 2"]);
    let file = "/api/2.0/fs/files/Models/main/default/m/2/f?overwrite=true";
    let upload = |bytes: usize| send(server.request(Method::PUT, file).body(vec![b'x'; bytes]));
    upload(11).is_error(400, "BAD_REQUEST", &["'model_bytes'"]);
    for _ in 0..3 {
        assert_eq!(upload(10).status, 204, "a file that is replaced gives back its bytes");
        assert_eq!(upload(0).status, 204);
    }
    assert_eq!(usage(&server)["model_bytes"], bytes);

    // and what is deleted can be had again
    server.delete("/api/2.0/serving-endpoints/e", &json!({})).ok();
    server.create("f", &serving("main.default.m", "1")).ok();
    server.settled("f");
    let version = json!({ "name": "main.default.m", "version": "2" });
    server.delete(&format!("{registry}/model-versions/delete"), &version).ok();
    assert_eq!(usage(&server), used);

    // and requests over the quota are told to come again
    set(&server, json!({ "concurrent_requests": 0, "endpoints": null }));
    let refused = server.invoke("f", &json!({ "do": "counter" }));
    refused.is_error(429, "RESOURCE_EXHAUSTED", &["'concurrent_requests'"]);
    assert!(!refused.header("retry-after").is_empty());
    set(&server, json!({ "concurrent_requests": null }));
    server.invoke("f", &json!({ "do": "counter" })).ok();
    let wrong = send(server.request(Method::PATCH, &path).json(&json!({ "quotas": { "elephants": 1 } })));
    wrong.is_error(400, "INVALID_PARAMETER_VALUE", &["elephants"]);
}

#[test]
fn an_administrator_of_a_workspace_does_not_become_one_of_the_server() {
    // given a second administrator in the workspace of the server's administrator
    let server = Server::start();
    let (id, made) = user(&server, "second", None);
    let token = made["token_value"].as_str().unwrap();
    let find =
        |path: &str| server.get(&format!("{SCIM}/{path}")).ok()["Resources"][0]["id"].as_str().unwrap().to_owned();
    let admins = find("Groups?filter=displayName%20eq%20%22admins%22");
    let first = find("Users?filter=userName%20eq%20%22admin%22");
    let join = json!({ "Operations": [{ "op": "add", "path": "members", "value": [{ "value": id }] }] });
    send(server.request(Method::PATCH, &format!("{SCIM}/Groups/{admins}")).json(&join)).ok();

    // when it tries to act as the first or to put it away, then it may not
    let call = |method: Method, path: &str, body: Value| send(server.request_as(token, method, path).json(&body));
    let off = json!({ "Operations": [{ "op": "replace", "path": "active", "value": false }] });
    let on_behalf = "/api/2.0/token-management/on-behalf-of/tokens";
    call(Method::POST, on_behalf, json!({ "user_name": "admin" })).is_error(403, "PERMISSION_DENIED", &["admin"]);
    let user = format!("{SCIM}/Users/{first}");
    call(Method::PATCH, &user, off).is_error(403, "PERMISSION_DENIED", &["admin"]);
    call(Method::DELETE, &user, json!({})).is_error(403, "PERMISSION_DENIED", &["admin"]);
    call(Method::GET, WORKSPACES, json!({})).is_error(403, "PERMISSION_DENIED", &[]);
    call(Method::POST, on_behalf, json!({ "user_name": "second" })).ok();
}
