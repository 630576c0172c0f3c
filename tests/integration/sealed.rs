//! Encryption at rest: what was sent cannot be read from the home's files, a home with a wrong key stays as it is, and keys
//! are rotated while the server works or is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Package, Server, eventually, guest, model, repository, send, serving, serving_with, tessera};

const MODEL: &str = "main.default.hostile";
const FILES: &str = "/api/2.0/fs/files/Models/main/default/hostile";
const KEYS: &str = "/api/2.0/tessera/keys";
const ROTATE: &str = "/api/2.0/tessera/keys/rotate";

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// A secret as it may stand in a file: as it is, in hex, and in base64 wherever it begins in a group of three bytes.
fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut spellings = vec![secret.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
    for skip in 0..3 {
        // Only the groups that are the secret's alone.
        let groups = &secret[skip..skip + (secret.len() - skip) / 3 * 3];
        spellings.push(STANDARD.encode(groups).into_bytes());
    }
    spellings
}

/// The files in which a secret stands, in any spelling.
fn readable<'a>(secret: &[u8], contents: &'a [(PathBuf, Vec<u8>)]) -> Vec<&'a Path> {
    let spellings = spellings(secret);
    let stands_in = |content: &[u8]| spellings.iter().any(|it| content.windows(it.len()).any(|window| window == it));
    contents.iter().filter(|(_, content)| stands_in(content)).map(|(path, _)| path.as_path()).collect()
}

fn cli(server: &Server, args: &[&str]) -> Output {
    tessera().args(args).arg("--home").arg(server.home()).output().unwrap()
}

#[track_caller]
fn cli_ok(server: &Server, args: &[&str]) -> Value {
    let output = cli(server, &[args, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn key_ids(server: &Server) -> Vec<String> {
    let keys = server.get(KEYS).ok();
    keys["keys"].as_array().unwrap().iter().map(|key| key["key_id"].as_str().unwrap().to_owned()).collect()
}

/// Waits until a rotation has ended, and answers the one key that is left.
fn rotated(server: &Server) -> String {
    let status = eventually("the rotation ends", || {
        let status = server.get(KEYS).ok();
        (status["rotation"]["state"] != "RUNNING").then_some(status)
    });
    assert_ne!(status["rotation"]["state"], "FAILED", "{status:#}");
    let keys = key_ids(server);
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys[0].clone()
}

/// That each sealed file names this key. (Records are in a log that keeps what was replaced; they are shown by a start
/// without the old key.)
#[track_caller]
fn all_files_are_sealed_with(server: &Server, key_id: &str) {
    let key: Vec<u8> = (0..4).map(|at| u8::from_str_radix(&key_id[2 * at..2 * at + 2], 16).unwrap()).collect();
    let blobs = files(&server.home().join("blobs/sha256"));
    for path in &blobs {
        assert_eq!(fs::read(path).unwrap()[..12], [b"TSRSEAL1", key.as_slice()].concat(), "{}", path.display());
    }
    let small: Vec<PathBuf> =
        ["logs", "build-logs", "profiles"].iter().flat_map(|name| files(&server.home().join(name))).collect();
    for path in &small {
        assert_eq!(fs::read(path).unwrap()[..5], [&[0xe5], key.as_slice()].concat(), "{}", path.display());
    }
    assert!(!blobs.is_empty() && !small.is_empty());
}

/// Ends the server and starts it again when `meanwhile` is over.
fn restart(server: &mut Server, meanwhile: impl FnOnce(&mut Server)) {
    server.terminate();
    server.wait();
    meanwhile(server);
    server.start_again();
}

#[test]
fn nothing_that_was_sent_can_be_read_outside_of_the_cache() {
    // given secrets in every kind of thing that a client sends and a guest writes
    let secrets = ["in-a-file", "in-the-manifest", "in-a-variable", "in-a-description", "in-a-tag", "in-a-log"]
        .map(|place| format!("canary-{place}-8b1f0c6e2d"));
    let [file, manifest, variable, description, tag, log] = &secrets;
    let mut server = Server::start();
    let package = Package::hostile(&format!("[settings]\nother = '{manifest}'\n")).with("notes.txt", file.repeat(3000));
    server.push(MODEL, &package);
    let mut body = json!({ "name": "e", "config": serving_with(MODEL, "1", ("note", variable)) });
    body["description"] = json!(description);
    body["tags"] = json!([{ "key": "k", "value": tag }]);
    server.post("/api/2.0/serving-endpoints", &body).ok();
    server.settled("e");
    server.invoke("e", &json!({ "do": "trap", "message": log }));
    server.invoke("e", &json!({ "do": "compute_ok" })).ok();

    // when the server has ended, which writes all it has, and starts again
    let mut kept = Vec::new();
    restart(&mut server, |server| {
        kept = files(&server.home()).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    });

    // then none of it stands in any file of the home but those of the cache
    let cache = server.home().join("cache");
    let cached: Vec<_> = kept.extract_if(.., |(path, _)| path.starts_with(&cache)).collect();
    let weights = &fs::read(repository("tests/fixtures/linear.onnx")).unwrap()[..48];
    let code = &guest("hostile")[1000..1048];
    for secret in secrets.iter().map(String::as_bytes).chain([weights, code]) {
        let found = readable(secret, &kept);
        assert!(found.is_empty(), "{} stands in {found:?}", String::from_utf8_lossy(secret));
    }
    // and the search would have found it
    for secret in [file.as_bytes(), weights, code] {
        assert!(!readable(secret, &cached).is_empty());
    }

    // and all of it comes back
    let endpoint = server.endpoint("e");
    assert_eq!((&endpoint["description"], &endpoint["tags"][0]["value"]), (&json!(description), &json!(tag)));
    assert!(server.guest_log("e").contains(log.as_str()));
    assert_eq!(server.get(&format!("{FILES}/1/notes.txt")).body, file.repeat(3000).into_bytes());
}

#[test]
fn credentials_and_secrets_are_in_no_file_no_log_no_metric_and_no_error() {
    // given a secret that a guest reads, and credentials of every kind, all of them used
    let mut server = Server::start();
    let secret = "canary-in-a-secret-5f0a9c7e31";
    server.post("/api/2.0/secrets/scopes/create", &json!({ "scope": "s" })).ok();
    server.post("/api/2.0/secrets/put", &json!({ "scope": "s", "key": "k", "string_value": secret })).ok();
    server.push(MODEL, &Package::hostile(""));
    server.create("e", &serving_with(MODEL, "1", ("note", "{{secrets/s/k}}"))).ok();
    server.settled("e");
    let seen = server.invoke("e", &json!({ "do": "setting", "name": "note" })).ok();
    assert_eq!(seen["setting"], secret);
    let token = server.post("/api/2.0/token/create", &json!({})).ok()["token_value"].as_str().unwrap().to_owned();
    let (robot_secret, access_token) = robot(&server);
    let credentials = [secret, &token, &robot_secret, &access_token, &server.token].map(str::to_owned);

    // when they are sent where they do not belong, and where they do with what is wrong there
    let mut told = Vec::new();
    for credential in &credentials {
        told.push(send(server.request_as(&format!("{credential}x"), Method::GET, KEYS)));
        told.push(send(server.request_as(credential, Method::GET, "/api/2.0/serving-endpoints/none")));
        let form = format!("grant_type=client_credentials&client_id=nobody&client_secret={credential}");
        let form = server.anonymous(Method::POST, "/oidc/v1/token").body(form);
        told.push(send(form.header("content-type", "application/x-www-form-urlencoded")));
    }
    let bad_key = json!({ "scope": "s", "key": "a/b", "string_value": secret });
    told.push(server.post("/api/2.0/secrets/put", &bad_key));
    told.push(server.post("/api/2.0/secrets/put", &json!({ "scope": "none", "key": "k", "string_value": secret })));
    told.push(server.invoke("e", &json!({ "do": "trap", "message": "with the secret in memory" })));
    assert!(told.iter().all(|answer| answer.status >= 400), "{told:?}");
    let metrics = server.get("/metrics").text();
    restart(&mut server, |_| {});

    // then none of them stands in any file, the cache included, nor in the log, the metrics and the errors
    let own = server.home().join("admin.token");
    let contents = |path: PathBuf| fs::read(&path).ok().map(|content| (path, content));
    let mut kept: Vec<_> = files(&server.home()).into_iter().filter_map(contents).collect();
    kept.push(("the log".into(), server.log().into_bytes()));
    kept.push(("the metrics".into(), metrics.into_bytes()));
    kept.extend(told.into_iter().map(|answer| ("an error".into(), answer.body)));
    for credential in &credentials {
        let mut found = readable(credential.as_bytes(), &kept);
        if *credential == server.token {
            // Written there for whoever starts the server; and the search would have found the others.
            assert_eq!(found, [own.as_path()]);
            found.clear();
        }
        assert!(found.is_empty(), "{credential} stands in {found:?}");
    }
}

/// A service principal's secret, and an access token that was given for it.
fn robot(server: &Server) -> (String, String) {
    let body = json!({ "displayName": "robot" });
    let robot = server.post("/api/2.0/preview/scim/v2/ServicePrincipals", &body).json();
    let [id, application] = ["id", "applicationId"].map(|key| robot[key].as_str().unwrap().to_owned());
    let path = format!("/api/2.0/accounts/servicePrincipals/{id}/credentials/secrets");
    let secret = server.post(&path, &json!({})).ok()["secret"].as_str().unwrap().to_owned();
    let form = format!("grant_type=client_credentials&client_id={application}&client_secret={secret}");
    let ask = server.anonymous(Method::POST, "/oidc/v1/token").body(form);
    let given = send(ask.header("content-type", "application/x-www-form-urlencoded")).ok();
    (secret, given["access_token"].as_str().unwrap().to_owned())
}

#[test]
fn the_cache_may_be_deleted_while_the_server_is_stopped() {
    // given endpoints with code of their own and with a model that is converted, and a cache elsewhere
    let elsewhere = tempfile::tempdir().unwrap();
    let cache = elsewhere.path().join("cache");
    let mut server = Server::with(&["--cache-dir", cache.to_str().unwrap()]);
    let names = || {
        let names = files(&cache).into_iter().map(|path| path.strip_prefix(&cache).unwrap().to_owned());
        let mut names: Vec<PathBuf> = names.collect();
        names.sort();
        names
    };
    server.deploy("hostile", &Package::hostile(""));
    let of_hostile = names();
    server.deploy("iris", &Package::of(&model("iris")));
    let columns = ["sepal_length", "sepal_width", "petal_length", "petal_width"];
    let flower = json!({ "dataframe_split": { "columns": columns, "data": [[5.1, 3.5, 1.4, 0.2]] } });
    let expected = server.invoke("iris", &flower).ok();
    let before = names();
    for folder in ["packages", "artifacts", "graphs"] {
        assert!(before.iter().any(|name| name.starts_with(folder)), "{folder}");
    }
    assert!(!server.home().join("cache").exists());

    // when the whole folder is gone at the next start
    restart(&mut server, |_| fs::remove_dir_all(&cache).unwrap());

    // then the endpoints answer as before, and the cache is what it was
    assert_eq!(server.invoke("iris", &flower).ok(), expected);
    server.invoke("hostile", &json!({ "do": "compute_ok" })).ok();
    assert_eq!(names(), before);

    // and what no endpoint needs any more is gone after the next start
    server.delete("/api/2.0/serving-endpoints/iris", &json!({})).ok();
    restart(&mut server, |_| {});
    eventually("what was made for the deleted endpoint is removed", || (names() == of_hostile).then_some(()));
    server.invoke("hostile", &json!({ "do": "compute_ok" })).ok();
}

#[test]
fn a_wrong_or_missing_key_is_refused_by_name_and_harms_nothing() {
    // given a home whose key is kept elsewhere
    let elsewhere = tempfile::tempdir().unwrap();
    let path = |name: &str| elsewhere.path().join(name).to_str().unwrap().to_owned();
    let right = path("right.key");
    let mut server = Server::with(&["--key-file", &right]);
    assert!(!server.home().join("node.key").exists());
    server.deploy("e", &Package::hostile(""));
    server.terminate();
    server.wait();
    let keys_file = server.home().join("keys.json");
    let (key, kept) = (fs::read(&right).unwrap(), fs::read(&keys_file).unwrap());

    // when it is started with another key, without one, or without keys.json, then it says what is missing
    fs::write(&right, "7".repeat(64)).unwrap();
    server.refused_start(&[&right, "keys.json", "--key-file", "nothing was changed"]);
    fs::write(&right, "no key").unwrap();
    server.refused_start(&[&right, "64 hex digits"]);
    fs::remove_file(&right).unwrap();
    server.refused_start(&[&right, "restore it"]);
    assert!(!Path::new(&right).exists(), "no key is made for a home that has one");
    fs::write(&right, &key).unwrap();
    fs::rename(&keys_file, path("keys.json")).unwrap();
    server.refused_start(&["keys.json is missing", "backup"]);
    assert!(!keys_file.exists());

    // and with the right ones everything is there
    fs::rename(path("keys.json"), &keys_file).unwrap();
    server.start_again();
    assert_eq!(fs::read(&keys_file).unwrap(), kept);
    server.invoke("e", &json!({ "do": "compute_ok" })).ok();

    // and another key can take its place when the one before is shown
    restart(&mut server, |server| {
        fs::rename(&right, path("old.key")).unwrap();
        fs::write(&right, "8".repeat(64)).unwrap();
        server.refused_start(&["--previous-key-file"]);
        server.add_flags(&["--previous-key-file", &path("old.key")]);
    });
    server.invoke("e", &json!({ "do": "compute_ok" })).ok();
    restart(&mut server, |_| fs::write(path("old.key"), "9".repeat(64)).unwrap());
    server.invoke("e", &json!({ "do": "compute_ok" })).ok();
}

#[test]
fn the_key_encryption_key_is_replaced_and_the_data_keys_stay() {
    let mut server = Server::start();
    server.deploy("e", &Package::hostile(""));
    let file = server.home().join("node.key");
    let (old, data_keys) = (fs::read(&file).unwrap(), key_ids(&server));
    let before = cli_ok(&server, &["key", "list"])["key_encryption_key"]["key_id"].clone();

    // when it is rotated
    let after = cli_ok(&server, &["key", "rotate", "--kek"])["key_encryption_key"]["key_id"].clone();

    // then the file holds another one, the old one opens nothing, and tokens and endpoints are as before
    assert_ne!(after, before);
    assert_eq!(key_ids(&server), data_keys);
    let new = fs::read(&file).unwrap();
    assert_ne!(new, old);
    server.kill9();
    fs::write(&file, &old).unwrap();
    server.refused_start(&["node.key", after.as_str().unwrap()]);
    fs::write(&file, &new).unwrap();
    server.start_again();
    server.invoke("e", &json!({ "do": "compute_ok" })).ok();
    server.post(ROTATE, &json!({ "key": "x" })).is_error(400, "BAD_REQUEST", &["key"]);
}

/// Lets the clients end, also when the test fails before.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn keys_are_rotated_under_load_without_a_failure() {
    // given an endpoint, and clients that invoke, create, register and delete without a pause
    let mut server = Server::start();
    server.deploy("hostile", &Package::hostile(""));
    let (stop, made, invoked) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let first = key_ids(&server);
    let content = |number: usize| vec![number as u8; 300_000];

    // when the key is rotated three times meanwhile
    thread::scope(|scope| {
        let (server, stop, made, invoked) = (&server, &stop, &made, &invoked);
        for _ in 0..2 {
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    server.invoke("hostile", &json!({ "do": "compute_ok" })).ok();
                    invoked.fetch_add(1, Relaxed);
                }
            });
        }
        scope.spawn(move || {
            while !stop.load(Relaxed) {
                let number = made.load(Relaxed);
                let version = server.push(MODEL, &Package::hostile("").with("large.bin", content(number)));
                server.create(&format!("e{number}"), &serving(MODEL, &version)).ok();
                if number % 3 == 2 {
                    server.delete(&format!("/api/2.0/serving-endpoints/e{}", number - 1), &json!({})).ok();
                }
                made.store(number + 1, Relaxed);
            }
        });
        let _stop = StopAtEnd(stop);
        for _ in 0..3 {
            let (made_before, invoked_before) = (made.load(Relaxed), invoked.load(Relaxed));
            cli_ok(server, &["key", "rotate"]);
            eventually("the clients go on", || {
                (made.load(Relaxed) > made_before && invoked.load(Relaxed) > invoked_before).then_some(())
            });
        }
    });
    let last = rotated(&server);
    assert!(!first.contains(&last));

    // then everything is sealed with the last key, and all of it opens after a restart that has no other
    let list = |server: &Server| {
        let list = server.get("/api/2.0/serving-endpoints").ok();
        list["endpoints"].as_array().unwrap().iter().map(|it| it["name"].clone()).collect::<Vec<_>>()
    };
    list(&server).iter().for_each(|name| drop(server.settled(name.as_str().unwrap())));
    let before = list(&server);
    restart(&mut server, |server| all_files_are_sealed_with(server, &last));
    assert_eq!(list(&server), before);
    for number in 0..made.into_inner() {
        let file = server.get(&format!("{FILES}/{}/large.bin", number + 2));
        assert!(file.status == 200 && file.body == content(number), "file {number}");
    }
    server.invoke("hostile", &json!({ "do": "compute_ok" })).ok();
}

#[test]
fn a_rotation_that_is_killed_goes_on_with_the_next_start() {
    // given enough to be busy with for a while
    let mut server = Server::start();
    server.deploy("hostile", &Package::hostile(""));
    let content = |number: u8| vec![number; 400_000];
    let package = (0..40).fold(Package::hostile(""), |all, number| all.with(&format!("{number}.bin"), content(number)));
    let version = server.push(MODEL, &package);
    let mut cut_off = 0;

    for moment_ms in [0, 5, 10, 20, 40, 80, 160] {
        // when the server is killed at some moment of a rotation
        let before = key_ids(&server);
        server.post(ROTATE, &json!({})).ok();
        thread::sleep(Duration::from_millis(moment_ms));
        server.kill9();
        let frame = fs::read(server.home().join("keys.json")).unwrap();
        let frame: Value = serde_json::from_slice(&frame).unwrap();
        cut_off += usize::from(frame["data_keys"].as_array().unwrap().len() == 2);

        // then the next start brings it to its end, and everything is there
        server.start_again();
        let after = rotated(&server);
        assert!(!before.contains(&after));
        all_files_are_sealed_with(&server, &after);
        for number in 0..40 {
            assert_eq!(server.get(&format!("{FILES}/{version}/{number}.bin")).body, content(number));
        }
        server.invoke("hostile", &json!({ "do": "compute_ok" })).ok();
    }
    assert!(cut_off > 0, "no rotation was cut off");
}

#[test]
fn a_damaged_file_stops_a_rotation_by_name_and_keeps_the_key_that_it_needs() {
    let mut server = Server::start();
    server.deploy("e", &Package::hostile("").with("extra.bin", "x".repeat(5000)));
    let before = key_ids(&server);
    let blobs = files(&server.home().join("blobs/sha256"));
    let blob = blobs.iter().find(|path| fs::metadata(path).unwrap().len() / 1000 == 5).unwrap();
    let good = fs::read(blob).unwrap();
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(blob, &damaged).unwrap();

    // when a rotation meets a file that somebody changed, then it says which, and the old key stays
    let output = cli(&server, &["key", "rotate"]);
    let said = String::from_utf8_lossy(&output.stderr);
    let name = blob.file_name().unwrap().to_str().unwrap();
    assert!(!output.status.success() && said.contains(name), "{said}");
    assert!(key_ids(&server).contains(&before[0]));

    // and when the file is back, the next start ends it
    fs::write(blob, good).unwrap();
    restart(&mut server, |_| {});
    let after = rotated(&server);
    assert!(!before.contains(&after));
    all_files_are_sealed_with(&server, &after);
}
