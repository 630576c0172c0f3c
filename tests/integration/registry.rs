//! The registry through the clients that people use: MLflow with each of its registries and with this server as its tracking
//! server, and the Databricks SDK; and what uploads do when they break off.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Package, Server, ask_python, model, printed, python, send, serving, tessera};

const UNITY: &str = "/api/2.0/mlflow/unity-catalog";

fn names(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

#[test]
fn mlflow_and_the_databricks_sdk_manage_models_versions_aliases_and_tags() {
    let server = Server::start();
    let mut client = python("registry_unity.py");
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in Package::of(&model("iris")).files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    client.args([&server.url(""), &server.token]).arg(folder.path());

    let seen = ask_python(&mut client, &Value::Null);

    for download in ["signed_download", "by_alias"] {
        assert!(names(&seen[download]).contains(&"model.onnx"), "{download}: {seen:#}");
    }
    assert_eq!(
        seen["model"],
        json!({ "aliases": { "challenger": "2", "champion": "2" }, "tags": { "team": "flowers" }, "description": "irises" })
    );
    assert_eq!(
        seen["version"],
        json!({ "version": "2", "aliases": ["challenger", "champion"], "tags": { "checked": "yes" },
                "description": "the second", "status": "READY" })
    );
    assert!(seen["bad_alias"].as_str().unwrap().contains("'v1' is not an alias"), "{seen:#}");
    assert!(seen["alias_of_nothing"].as_str().unwrap().contains("does not exist"), "{seen:#}");
    assert!(seen["no_alias"].as_str().unwrap().contains("'challenger'"), "{seen:#}");
    assert_eq!(seen["renamed"], json!(["2", "1"]));
    assert!(seen["old_name"].as_str().unwrap().contains("does not exist"), "{seen:#}");
    assert_eq!(seen["aliases_left"], json!({}), "the alias went with its version");
    assert_eq!(seen["pages"], json!([["main.other.renamed", "main.pages.m0"], ["main.pages.m1", "main.pages.m2"]]));
    let native = &seen["native"];
    assert_eq!(native["alias"], json!(["best", 1]));
    assert_eq!(native["comment"], "changed");
    assert_eq!(native["aliases"], json!([["best", 1]]));
    assert_eq!(native["by_alias"], json!([1, "READY", "lab", "iris"]));
    assert_eq!(native["versions"], json!([[1, "one"]]));
    assert_eq!(native["models"], json!(["lab.plants.iris"]));
    assert_eq!(native["all"], 5, "all pages together");
    assert_eq!(native["catalogs"], json!(["lab", "main"]));
    assert_eq!((&native["schemas"], &native["schema"]), (&json!(["lab.plants"]), &json!("main")));
    assert!(native["no_catalog"].as_str().unwrap().contains("'nothing' does not exist"), "{native:#}");
    assert_eq!(native["left"], json!([]));
    assert!(native["deleted"].as_str().unwrap().contains("does not exist"), "{native:#}");
    assert_eq!(seen["mlflow_native"], json!(["1", "READY"]));
}

#[test]
fn mlflow_logs_a_model_here_and_an_endpoint_serves_it_at_once() {
    // given a model that is logged as ONNX and as scikit-learn, with this server as tracking server
    let server = Server::start();
    let mut client = python("registry_tracking.py");
    client.args([&server.url(""), &server.token]);

    let seen = ask_python(&mut client, &Value::Null);

    // then its run can be read again
    let run = &seen["run"];
    assert_eq!((&run["status"], &run["text"], &run["runs"]), (&json!("FINISHED"), &json!("written"), &json!(1)));
    assert_eq!(run["metrics"], json!({ "accuracy": 0.75, "loss": 0.25 }));
    assert_eq!((&run["params"], &run["team"]), (&json!({ "seed": "0" }), &json!("botany")));

    // and both versions are registered, of which one is served
    assert_eq!(seen["onnx"], "READY");
    server.create("logged", &serving("workspace.default.logged_onnx", "1")).ok();
    assert_eq!(server.settled("logged")["state"]["ready"], "READY");
    let rows = json!({ "dataframe_records": [{ "a": 3.0, "b": -3.0 }, { "a": -3.0, "b": 3.0 }] });
    let answer = server.invoke("logged", &rows).ok();
    for (row, expected) in [(0, 6.0), (1, -6.0)] {
        let predicted = answer["predictions"][row]["variable"].as_f64().unwrap();
        assert!((predicted - expected).abs() < 1e-3, "the difference of a and b: {answer}");
    }

    // and the other is refused with the reason and the way out
    assert_eq!(seen["sklearn"][0], "READY");
    assert!(seen["sklearn"][1].as_str().unwrap().contains("[sklearn]"), "{seen:#}");
    assert_eq!(seen["predicted"].as_array().unwrap().len(), 40, "it loads from the registry");
    let refused = server.create("sklearn", &serving("main.default.logged_sklearn", "1"));
    refused.is_error(
        400,
        "INVALID_PARAMETER_VALUE",
        &["is registered, but cannot be served", "[sklearn]", "mlflow.onnx"],
    );
    let refused = server.update("logged", &serving("main.default.logged_sklearn", "1"));
    refused.is_error(400, "INVALID_PARAMETER_VALUE", &["cannot be served", "[sklearn]"]);

    // and stages, aliases, copies and names of the older registry work
    assert_eq!(seen["stages"], json!([["2", "Production"], ["1", "Archived"]]));
    assert_eq!(seen["latest"], json!([["2", "Production"]]));
    for files in ["files_1", "files_Production", "files_latest", "files_alias"] {
        assert!(names(&seen[files]).contains(&"MLmodel"), "{files}: {seen:#}");
    }
    assert_eq!(seen["tags"], json!({ "made": "again" }));
    assert_eq!(seen["searched"], json!(["logged_onnx"]));
    assert_eq!((&seen["copied"], &seen["renamed"]), (&json!("READY"), &json!("renamed_copy")));
    assert!(seen["elsewhere"].as_str().unwrap().contains("'s3://bucket/model' is not on this server"), "{seen:#}");
    assert_eq!(seen["nothing_left"], json!([]));
    assert!(seen["filter"].as_str().unwrap().contains("there is no field 'size'"), "{seen:#}");
}

/// A version that waits for files, and the path of one.
fn pending(server: &Server, model: &str) -> String {
    server.post(&format!("{UNITY}/registered-models/create"), &json!({ "name": model })).ok();
    server.post(&format!("{UNITY}/model-versions/create"), &json!({ "name": model, "source": "x" })).ok();
    format!("/Models/{}/1/large.bin", model.replace('.', "/"))
}

fn files(path: &str) -> String {
    format!("/api/2.0/fs/files{path}")
}

#[test]
fn parts_that_arrived_are_there_after_a_restart() {
    // given an upload in parts, of which one arrived
    let mut server = Server::start();
    let path = pending(&server, "main.default.parts");
    let begin = |server: &Server| {
        let begun = server.post(&format!("{}?action=initiate-upload", files(&path)), &json!({})).ok();
        begun["multipart_upload"]["session_token"].as_str().unwrap().to_owned()
    };
    let send_part = |server: &Server, token: &str, number: u32, content: &[u8]| {
        let asked = json!({ "path": path, "session_token": token, "start_part_number": number, "count": 1,
                            "expire_time": "2099-01-01T00:00:00Z" });
        let urls = server.post("/api/2.0/fs/create-upload-part-urls", &asked).ok();
        let url = urls["upload_part_urls"][0]["url"].as_str().unwrap().to_owned();
        // Without a token: the address is enough.
        let sent = send(reqwest::blocking::Client::new().put(url).body(content.to_vec()));
        assert_eq!(sent.status, 200, "{}", sent.text());
        json!({ "part_number": number, "etag": sent.header("etag") })
    };
    let token = begin(&server);
    let first = send_part(&server, &token, 1, b"first ");
    let complete = |server: &Server, parts: Value| {
        let query = format!("?action=complete-upload&upload_type=multipart&session_token={token}");
        server.post(&format!("{}{query}", files(&path)), &json!({ "parts": parts }))
    };
    let missing = json!({ "part_number": 2, "etag": "x" });
    complete(&server, json!([first, missing])).is_error(409, "RESOURCE_CONFLICT", &["part 2 has not arrived"]);

    // when the server is killed and the client goes on
    server.kill9();
    server.start_again();
    assert_eq!(begin(&server), token, "the upload goes on");
    let second = send_part(&server, &token, 2, b"second");
    let wrong = json!({ "part_number": 1, "etag": second["etag"] });
    complete(&server, json!([wrong, second])).is_error(409, "RESOURCE_CONFLICT", &["part 1 is another one"]);
    complete(&server, json!([second, first])).ok();

    // then the file is whole, and repeating the end changes nothing
    complete(&server, json!([first, second])).ok();
    assert_eq!(server.get(&files(&path)).text(), "first second");

    // and an ended upload takes no part
    let url = server.post(
        "/api/2.0/fs/create-abort-upload-url",
        &json!({ "path": path, "session_token": token, "expire_time": "2099-01-01T00:00:00Z" }),
    );
    let url = url.ok()["abort_upload_url"]["url"].as_str().unwrap().to_owned();
    assert_eq!(send(reqwest::blocking::Client::new().delete(&url)).status, 200);
    complete(&server, json!([first])).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["no upload"]);
}

#[test]
fn parts_and_logged_artifacts_are_within_the_quota_of_bytes() {
    // given a workspace that may have 100 bytes, and an upload in parts
    let mut server = Server::start();
    let workspaces = "/api/2.0/accounts/main/workspaces";
    let workspace = format!("{workspaces}/{}", server.get(workspaces).ok()[0]["workspace_id"]);
    let quota = json!({ "quotas": { "model_bytes": 100 } });
    send(server.request(Method::PATCH, &workspace).json(&quota)).ok();
    let used = |server: &Server| server.get(&workspace).ok()["usage"]["model_bytes"].as_u64().unwrap();
    let path = pending(&server, "main.default.parts");
    let begun = server.post(&format!("{}?action=initiate-upload", files(&path)), &json!({})).ok();
    let token = begun["multipart_upload"]["session_token"].as_str().unwrap().to_owned();
    let send_part = |server: &Server, number: u32, bytes: usize| {
        let asked = json!({ "path": path, "session_token": token, "start_part_number": number, "count": 1,
                            "expire_time": "2099-01-01T00:00:00Z" });
        let urls = server.post("/api/2.0/fs/create-upload-part-urls", &asked).ok();
        let url = urls["upload_part_urls"][0]["url"].as_str().unwrap().to_owned();
        send(reqwest::blocking::Client::new().put(url).body(vec![b'x'; bytes]))
    };

    // when parts come, then they count, and one that there is no room for is refused
    assert_eq!(send_part(&server, 1, 60).status, 200);
    send_part(&server, 2, 41).is_error(400, "BAD_REQUEST", &["'model_bytes'", "60 of 100"]);
    assert_eq!(used(&server), 60);
    // and what takes the place of another gives back its room
    let first = send_part(&server, 1, 30);
    let second = send_part(&server, 2, 60);
    assert_eq!((second.status, used(&server)), (200, 90));
    server.kill9();
    server.start_again();
    assert_eq!(used(&server), 90);

    // and the file takes the place of its parts
    let parts = json!([{ "part_number": 1, "etag": first.header("etag") },
                       { "part_number": 2, "etag": second.header("etag") }]);
    let query = format!("?action=complete-upload&upload_type=multipart&session_token={token}");
    for _ in 0..2 {
        server.post(&format!("{}{query}", files(&path)), &json!({ "parts": parts })).ok();
        assert_eq!(used(&server), 90);
    }
    send_part(&server, 1, 11).is_error(400, "BAD_REQUEST", &["'model_bytes'", "90 of 100"]);

    // and what a run logs counts, until it is deleted
    let run = server.post("/api/2.0/mlflow/runs/create", &json!({ "experiment_id": "0" })).ok();
    let run = run["run"]["info"]["run_id"].as_str().unwrap();
    let artifact = format!("/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/a.txt");
    let log = |bytes: usize| send(server.request(Method::PUT, &artifact).body(vec![b'x'; bytes]));
    log(11).is_error(400, "BAD_REQUEST", &["'model_bytes'", "90 of 100"]);
    log(10).ok();
    assert_eq!(used(&server), 100);
    server.delete(&artifact, &json!({})).ok();
    assert_eq!(used(&server), 90);
    log(10).ok();
    server.post("/api/2.0/mlflow/runs/delete", &json!({ "run_id": run })).ok();

    // and a version that goes takes its file and its parts with it
    let version = json!({ "name": "main.default.parts", "version": "1" });
    server.delete(&format!("{UNITY}/model-versions/delete"), &version).ok();
    assert_eq!(used(&server), 0);
}

#[test]
fn a_signed_address_does_one_thing_only() {
    let server = Server::start();
    let path = pending(&server, "main.default.signed");
    let client = reqwest::blocking::Client::new();
    let url =
        server.post("/api/2.0/fs/create-upload-url", &json!({ "path": path })).ok()["url"].as_str().unwrap().to_owned();
    assert_eq!(send(client.put(&url).body("content")).status, 200);
    assert_eq!(server.get(&files(&path)).text(), "content");

    // Not read, not another file, not another workspace, not for longer, not after its time.
    let expired =
        server.post("/api/2.0/fs/create-upload-url", &json!({ "path": path, "expire_time": "2020-01-01T00:00:00Z" }));
    let expired = expired.ok()["url"].as_str().unwrap().to_owned();
    send(client.put(&expired).body("late")).is_error(403, "PERMISSION_DENIED", &["has expired"]);
    let signed = ["was not signed by this server"];
    send(client.get(&url)).is_error(403, "PERMISSION_DENIED", &signed);
    send(client.put(url.replace("large.bin", "other.bin")).body("x")).is_error(403, "PERMISSION_DENIED", &signed);
    let (start, rest) = url.split_once("workspace=").unwrap();
    send(client.put(format!("{start}workspace=9{rest}")).body("x")).is_error(403, "PERMISSION_DENIED", &signed);
    send(client.put(url.replace("expires=", "expires=9")).body("x")).is_error(403, "PERMISSION_DENIED", &signed);
    send(client.put(url.split('?').next().unwrap()).body("x")).is_error(403, "PERMISSION_DENIED", &signed);
    assert_eq!(server.get(&files(&path)).text(), "content");

    // And none is given for what is no model's file, or not there.
    let asked = |call: &str, path: &str| server.post(&format!("/api/2.0/fs/{call}"), &json!({ "path": path }));
    asked("create-upload-url", "/Volumes/a/b/c/d").is_error(400, "INVALID_PARAMETER_VALUE", &["/Models/"]);
    asked("create-upload-url", "/Models/a/b/c/1/x").is_error(404, "RESOURCE_DOES_NOT_EXIST", &["a.b.c"]);
    asked("create-download-url", &path.replace("large", "no")).is_error(404, "NOT_FOUND", &["no.bin"]);
}

#[test]
fn an_upload_that_breaks_off_or_arrives_wrong_leaves_nothing() {
    let server = Server::start();
    let path = pending(&server, "main.default.broken");
    let put = |header: &str, value: &str| {
        send(server.request(Method::PUT, &files(&path)).header(header, value).body("content"))
    };
    // Checksums of something else.
    let other = "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";
    put("x-content-sha256", &"0".repeat(64)).is_error(400, "INVALID_PARAMETER_VALUE", &["SHA-256"]);
    put("digest", &format!("sha-256={other}")).is_error(400, "INVALID_PARAMETER_VALUE", &["SHA-256"]);
    put("content-md5", "XUFAKrxLKna5cZ2REBfFkg==").is_error(400, "INVALID_PARAMETER_VALUE", &["MD5"]);
    put("content-md5", "?").is_error(400, "INVALID_PARAMETER_VALUE", &["content-md5", "'?'"]);
    // Less than was announced.
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let (target, host, token) = (files(&path), &server.address, &server.token);
    let head = format!(
        "PUT {target} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\ncontent-length: 100\r\n\r\nten bytes."
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    let _ = std::io::Read::read_to_string(&mut stream, &mut answer);

    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    server.get(&files(&path)).is_error(404, "NOT_FOUND", &["large.bin"]);
    // The right one is taken.
    assert_eq!(put("x-content-sha256", "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73").status, 204);
    assert_eq!(server.get(&files(&path)).text(), "content");
}

#[test]
fn what_an_endpoint_serves_is_neither_renamed_nor_deleted() {
    let server = Server::start();
    server.deploy("kept", &Package::of(&model("iris")));
    let (name, version) = ("main.default.kept", "1");
    let change = |method, path: &str, body: Value| send(server.request(method, &format!("{UNITY}/{path}")).json(&body));
    let words = ["is served by endpoint 'kept'"];
    change(Method::DELETE, "model-versions/delete", json!({ "name": name, "version": version })).is_error(
        409,
        "RESOURCE_CONFLICT",
        &words,
    );
    change(Method::PATCH, "registered-models/update", json!({ "name": name, "new_name": "main.default.other" }))
        .is_error(409, "RESOURCE_CONFLICT", &words);
    // A version that is ready does not change either.
    let path = files("/Models/main/default/kept/1/MLmodel");
    send(server.request(Method::PUT, &path).body("x")).is_error(409, "RESOURCE_CONFLICT", &["create a new version"]);
    server.post(&format!("{path}?action=initiate-upload"), &json!({})).is_error(409, "RESOURCE_CONFLICT", &["ready"]);
}

/// MLflow's own tracking server with a registered model. Ends when dropped, for its stdin is closed then.
struct TrackingServer {
    process: Child,
    port: u16,
}

impl TrackingServer {
    fn start(folder: &Path) -> TrackingServer {
        let mut command = python("mlflow_registry.py");
        command.arg(folder).arg(model("iris")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        // Libraries may print before the script does.
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = lines.map_while(Result::ok).find_map(|line| line.trim().parse().ok());
        TrackingServer { process, port: port.expect("MLflow's tracking server did not start") }
    }
}

impl Drop for TrackingServer {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

#[test]
fn the_command_line_pulls_from_mlflow_and_names_versions() {
    // given a model on an MLflow server
    let folder = tempfile::tempdir().unwrap();
    let mlflow = TrackingServer::start(folder.path());
    let from = format!("http://127.0.0.1:{}", mlflow.port);
    let server = Server::start();
    let run = |args: &[&str]| {
        let mut command = tessera();
        command.args(args).args(["--host", &server.url(""), "--token", &server.token]);
        command.output().unwrap()
    };
    let pull = |uri: &str| run(&["model", "pull", uri, "--from", &from, "--as", "main.default.pulled"]);

    // when it is pulled, by number and by alias, then each is a version that serves
    assert!(printed(pull("mlflow:models:/flowers/1")).starts_with("main.default.pulled version 1"));
    assert!(printed(pull("models:/flowers@champion")).starts_with("main.default.pulled version 2"));
    server.create("pulled", &serving("main.default.pulled", "1")).ok();
    assert_eq!(server.settled("pulled")["state"]["ready"], "READY");
    let absent = pull("models:/flowers/7");
    let said = String::from_utf8_lossy(&absent.stderr).into_owned();
    assert!(!absent.status.success() && said.contains("failed to find model flowers"), "{said}");

    // and versions get other names and labels
    let name = "main.default.pulled";
    printed(run(&["model", "alias", "set", name, "champion", "2"]));
    printed(run(&["model", "alias", "set", name, "old", "1"]));
    printed(run(&["model", "alias", "delete", name, "old"]));
    printed(run(&["model", "tag", "set", name, "team", "botany"]));
    printed(run(&["model", "tag", "set", name, "checked", "yes", "--version", "2"]));
    printed(run(&["model", "tag", "delete", name, "checked", "--version", "2"]));
    let shown = printed(run(&["model", "show", name]));
    assert!(shown.contains("champion") && shown.contains("team = botany") && !shown.contains("old"), "{shown}");
    let json = printed(run(&["model", "versions", name, "--json"]));
    assert!(json.contains("\"alias\": \"champion\"") && !json.contains("checked"), "{json}");
}
