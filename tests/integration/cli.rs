//! The command line: a client of the REST API, and `tessera serve` with its settings.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::harness::{Package, Server, tessera};

/// What a command printed, and its exit code.
struct Printed {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Printed {
    fn from(output: Output) -> Printed {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Printed { code: output.status.code().unwrap(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Printed {
    /// Its output, which must be that of a command that succeeded.
    #[track_caller]
    fn ok(&self) -> &str {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        &self.out
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(self.ok()).unwrap_or_else(|error| panic!("{}: {error}", self.out))
    }

    /// That it failed with this code, nothing on stdout, and a reason with these words.
    #[track_caller]
    fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!((self.code, self.out.as_str()), (code, ""), "{}", self.err);
        for word in words {
            assert!(self.err.contains(word), "'{word}' is not in: {}", self.err);
        }
    }
}

/// `tessera ARGS --home HOME`.
fn run(home: &Path, args: &[&str]) -> Printed {
    tessera().args(args).arg("--home").arg(home).stdin(Stdio::null()).output().unwrap().into()
}

/// A package as a folder.
fn folder(package: &Package) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in &package.files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

#[test]
fn from_a_folder_to_an_answer() {
    // given a server and the folder of a package
    let server = Server::start();
    let home = server.home();
    let package = folder(&Package::hostile(""));
    let dir = package.path().to_str().unwrap();

    // push
    let pushed = run(&home, &["model", "push", dir, "--name", "main.default.cli"]);
    assert!(pushed.ok().starts_with("main.default.cli version 1  (3 files, "), "{}", pushed.out);
    let pushed = run(&home, &["model", "push", dir, "--name", "main.default.cli", "--json"]).json();
    assert_eq!(pushed["model_version"]["version"], "2");
    assert!(run(&home, &["model", "list"]).ok().contains("main.default.cli"));
    assert!(run(&home, &["model", "get", "main.default.cli"]).ok().contains("READY"));

    // create
    let args = ["endpoint", "create", "cli", "--model", "main.default.cli", "--version", "1", "--wait"];
    let created = run(&home, &args);
    assert!(created.ok().contains("READY") && created.out.contains("main.default.cli v1"), "{}", created.out);
    run(&home, &args).fails(1, &["RESOURCE_ALREADY_EXISTS", "'cli' already exists"]);
    let listed = run(&home, &["endpoint", "list"]);
    assert!(listed.ok().contains("cli") && listed.out.contains("100 %"), "{}", listed.out);
    let shown = run(&home, &["endpoint", "get", "cli", "--json"]).json();
    assert_eq!(shown["state"]["ready"], "READY");

    // invoke: from an argument, a file, stdin
    let counter = r#"{"do": "counter"}"#;
    assert_eq!(run(&home, &["invoke", "cli", "--data", counter]).ok(), r#"{"counter":1}"#);
    let file = package.path().join("request.json");
    fs::write(&file, counter).unwrap();
    let from_file = run(&home, &["invoke", "cli", "--data", &format!("@{}", file.display()), "--json"]);
    assert_eq!(from_file.ok(), "{\n  \"counter\": 1\n}\n");
    let mut command = tessera();
    command.args(["invoke", "cli", "--content-type", "text/plain", "--home"]).arg(&home);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"from stdin").unwrap();
    assert_eq!(Printed::from(child.wait_with_output().unwrap()).ok(), "from stdin");

    // fail
    let trap = r#"{"do": "trap", "message": "on purpose"}"#;
    run(&home, &["invoke", "cli", "--data", trap]).fails(1, &["BAD_REQUEST", "trapped", "400"]);
    let failed = run(&home, &["invoke", "cli", "--data", trap, "--json"]);
    failed.fails(1, &["\"error_code\": \"BAD_REQUEST\""]);
    serde_json::from_str::<Value>(&failed.err).unwrap();

    // logs
    assert!(run(&home, &["logs", "cli"]).ok().contains("on purpose"));
    assert!(run(&home, &["logs", "cli", "--build"]).ok().contains("compiling"));
    let logs = run(&home, &["logs", "cli", "--entity", "cli-1", "--json"]).json();
    assert!(logs["logs"].as_str().unwrap().contains("on purpose"));

    // delete
    run(&home, &["model", "delete", "main.default.cli", "--version", "1"]).fails(1, &["RESOURCE_CONFLICT", "cli"]);
    assert_eq!(run(&home, &["endpoint", "delete", "cli"]).ok(), "deleted endpoint cli\n");
    run(&home, &["endpoint", "get", "cli"]).fails(1, &["Endpoint with name 'cli' does not exist."]);
    run(&home, &["model", "delete", "main.default.cli"]).ok();
}

#[test]
fn a_deploy_that_fails_is_a_failed_command() {
    let server = Server::start();
    let home = server.home();
    let package = folder(&Package::hostile("[settings]\ninit = 'error'\n"));
    run(&home, &["model", "push", package.path().to_str().unwrap(), "--name", "main.default.bad"]).ok();

    let args = ["endpoint", "create", "bad", "--model", "main.default.bad", "--version", "1", "--wait"];
    run(&home, &args).fails(1, &["'bad' failed to deploy", "init was told to fail"]);
    assert!(run(&home, &["endpoint", "list"]).ok().contains("update failed"));
}

#[test]
fn wrong_use_and_missing_servers_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("nothing");

    run(&home, &["endpoint", "list"]).fails(1, &["error:"]);
    run(&home, &["endpoint", "list", "--host", "http://127.0.0.1:1", "--token", "x"]).fails(1, &["no server at"]);
    run(&home, &["endpoint", "gte", "x"]).fails(2, &["gte"]);
    run(&home, &["model", "push", ".", "--name", "iris"]).fails(2, &["three parts"]);
    let server = Server::start();
    let url = server.url("");
    run(&home, &["endpoint", "list", "--host", &url, "--token", "wrong"]).fails(1, &["UNAUTHENTICATED"]);
    assert!(run(&home, &["endpoint", "list", "--host", &url, "--token", &server.token]).ok().contains("no endpoints"));
}

#[test]
fn secrets_are_for_their_owner_alone() {
    let server = Server::start();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&server.home()), 0o700);
    for name in ["admin.token", "node.key", "keys.json"] {
        assert_eq!(mode(&server.home().join(name)), 0o600, "{name}");
    }
    assert!(!server.log().contains(&server.token), "the token is not logged");
}

#[test]
fn settings_that_do_not_exist_or_do_not_hold_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let file = folder.path().join("tessera.toml");
    let with_file = |text: &str| {
        fs::write(&file, text).unwrap();
        run(&home, &["serve", "--listen", "127.0.0.1:0", "--config", file.to_str().unwrap()])
    };

    with_file("sandbox_cpu_mss = 5\n").fails(1, &["sandbox_cpu_mss"]);
    with_file("sandbox_cpu_ms = 0\n").fails(1, &["sandbox_cpu_ms", "0"]);
    with_file("tensor_bytes_max = '1MB'\n").fails(1, &["1MB"]);
    let mut command = tessera();
    let misspelt =
        command.env("TESSERA_SANDBOX_CPU_MSS", "5").args(["serve", "--listen", "127.0.0.1:0", "--home"]).arg(&home);
    Printed::from(misspelt.output().unwrap()).fails(1, &["TESSERA_SANDBOX_CPU_MSS"]);
    run(&home, &["serve", "--listen", "0.0.0.0:0"]).fails(1, &["--allow-plain-http"]);
    run(&home, &["serve", "--listen", "127.0.0.1:0", "--onnxruntime", "/nothing.so"]).fails(1, &["/nothing.so"]);
    run(&home, &["serve", "--sandbox-cpu-mss", "5"]).fails(2, &["--sandbox-cpu-mss"]);
}

#[test]
fn settings_of_a_file_hold() {
    // given a file that allows bodies of 2 KiB
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tessera.toml");
    fs::write(&file, "request_body_bytes_max = '2KiB'\n").unwrap();

    // when a server runs with it, then it refuses larger ones
    let server = Server::with(&["--config", file.to_str().unwrap()]);
    server.deploy("e", &Package::hostile(""));
    let answer = server.invoke("e", &serde_json::json!({ "do": "echo", "x": "y".repeat(2048) }));
    answer.is_error(413, "BAD_REQUEST", &["2048 bytes"]);
}

#[test]
fn the_doctor_tells_what_the_machine_can_do_without_a_server() {
    // given a machine, and a home in which there is nothing
    let home = tempfile::tempdir().unwrap();

    // then a person reads what a server would find, and a program gets the same
    let shown = run(home.path(), &["doctor"]);
    for part in ["tessera ", "cores", "kernel", "instance pool", "tract", "gpu", "open files", "A server can start."] {
        assert!(shown.ok().contains(part), "'{part}' is not in: {}", shown.out);
    }
    let report = run(home.path(), &["doctor", "--json"]).json();
    assert!(report["cores"].as_u64() >= Some(1) && report["instances"]["pool"].as_u64() == Some(256), "{report:#}");
    let backends = report["backends"].as_array().unwrap();
    assert!(backends.iter().any(|backend| backend["name"] == "tract" && !backend["version"].is_null()), "{report:#}");
    assert_eq!(report["gpu"]["usable"].as_bool().unwrap(), report["gpu"]["reason"].is_null(), "{report:#}");
    let checks = report["checks"].as_array().unwrap();
    for check in checks {
        assert_eq!(check["status"] == "ok", check["fix"].is_null(), "a way out where one is needed: {check:#}");
    }
    let found = |checks: &[Value], name: &str| checks.iter().find(|check| check["name"] == name).unwrap().clone();
    for language in ["components in Rust", "components in Python", "components in JS"] {
        let check = found(checks, language);
        assert_eq!(check["status"], "ok", "the tests build some: {check:#}");
    }

    // and what no server could start without is a failure, named
    let missing = |flags: &[&str], words: &str| {
        let shown = run(home.path(), &[&["doctor", "--json"], flags].concat());
        let report: Value = serde_json::from_str(&shown.out).unwrap();
        assert_eq!((shown.code, report["can_serve"].as_bool()), (1, Some(false)), "{report:#}");
        let missing = report["checks"].as_array().unwrap().iter().filter(|check| check["status"] == "missing");
        assert!(missing.map(Value::to_string).collect::<String>().contains(words), "{report:#}");
    };
    missing(&["--onnxruntime", "/nowhere/libonnxruntime.so"], "/nowhere/libonnxruntime.so");
    missing(&["--tls-cert", "/nowhere/cert.pem", "--tls-key", "/nowhere/key.pem"], "/nowhere/cert.pem");
    // but a setting that is no setting is refused
    run(home.path(), &["doctor", "--threads", "0"]).fails(1, &["threads"]);
    assert!(fs::read_dir(home.path()).unwrap().next().is_none(), "it leaves nothing");
}

#[test]
fn people_programs_tokens_and_tenants() {
    // given a server
    let server = Server::start();
    let home = server.home();
    let word = |text: &str, after: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(after));
        line.unwrap_or_else(|| panic!("no {after} in {text}")).rsplit(' ').next().unwrap().to_owned()
    };

    // when an administrator makes a group, a user in it, and a token for the user
    run(&home, &["group", "create", "team"]).ok();
    run(&home, &["user", "create", "ada", "--display-name", "Ada Lovelace", "--group", "team"]).ok();
    let made = run(&home, &["token", "create", "--user", "ada", "--lifetime", "1h", "--comment", "laptop"]);
    let token = word(made.ok(), "token  ");
    let as_ada = |args: &[&str]| run(&home, &[args, &["--token", &token]].concat());

    // then the user may look, and not change
    assert!(as_ada(&["user", "list"]).ok().contains("Ada Lovelace"));
    as_ada(&["user", "create", "eve"]).fails(1, &["PERMISSION_DENIED", "administrator"]);
    assert!(as_ada(&["token", "list"]).ok().contains("laptop"));

    // and memberships, activity and tokens change by name
    run(&home, &["group", "add", "admins", "team"]).ok();
    as_ada(&["user", "create", "eve"]).ok();
    run(&home, &["group", "remove", "admins", "team"]).ok();
    as_ada(&["user", "delete", "eve"]).fails(1, &["PERMISSION_DENIED"]);
    run(&home, &["user", "deactivate", "ada"]).ok();
    as_ada(&["user", "list"]).fails(1, &["UNAUTHENTICATED"]);
    run(&home, &["user", "activate", "ada"]).ok();
    let tokens = run(&home, &["token", "list", "--all", "--json"]).json();
    let of_ada =
        tokens["token_infos"].as_array().unwrap().iter().find(|token| token["owner_username"] == "ada").unwrap();
    run(&home, &["token", "revoke", of_ada["token_id"].as_str().unwrap(), "--any"]).ok();
    as_ada(&["user", "list"]).fails(1, &["UNAUTHENTICATED"]);
    assert_eq!(run(&home, &["user", "delete", "ada", "--json"]).json(), serde_json::json!({}));
    run(&home, &["user", "delete", "ada"]).fails(1, &["no user 'ada'"]);

    // and a program gets a secret
    let robot = run(&home, &["service-principal", "create", "nightly", "--json"]).json();
    let id = robot["applicationId"].as_str().unwrap();
    assert!(word(run(&home, &["service-principal", "secret", id]).ok(), "client secret").starts_with("tss_"));
    assert!(run(&home, &["service-principal", "list"]).ok().contains("nightly"));
    run(&home, &["service-principal", "delete", id]).ok();

    // and a tenant has quotas and an administrator of its own
    let made = run(&home, &["workspace", "create", "other", "--admin", "boss"]);
    let boss = word(made.ok(), "token  ");
    let quotas = run(&home, &["workspace", "quota", "other", "--endpoints", "3", "--model-bytes", "1GiB"]);
    assert!(quotas.ok().contains("1073741824"), "{}", quotas.out);
    assert!(run(&home, &["user", "list", "--token", &boss]).ok().contains("boss"));
    run(&home, &["workspace", "list", "--token", &boss]).fails(1, &["PERMISSION_DENIED"]);
    assert!(run(&home, &["workspace", "list"]).ok().contains("other"));
    run(&home, &["workspace", "delete", "other"]).ok();
    run(&home, &["user", "list", "--token", &boss]).fails(1, &["UNAUTHENTICATED"]);
}
