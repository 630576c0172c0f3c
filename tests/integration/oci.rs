//! Packages in a registry: Debian's docker-registry, a fresh one for each test, on a port that it chooses.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Answer, Package, Server, cached, client, eventually, model, printed, send, serving, tessera};
use crate::tls::Ca;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// `ann` with the password `secret`, by bcrypt.
const PASSWORDS: &str = "ann:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A registry, ended when dropped.
struct Registry {
    child: Child,
    /// Below it: what is stored, and what clients work with.
    folder: TempDir,
    /// `127.0.0.1:PORT`.
    address: String,
}

impl Registry {
    fn start() -> Registry {
        Registry::with("", "")
    }

    /// A registry with more in its settings: in `http`, and on top.
    fn with(http: &str, top: &str) -> Registry {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {at}/store}}}}\n\
             http: {{addr: '127.0.0.1:0'{}}}\n{}",
            http,
            top.replace("HERE", &at.to_string())
        );
        fs::write(folder.path().join("config.yml"), config).unwrap();
        fs::write(folder.path().join("passwords"), PASSWORDS).unwrap();
        let log = folder.path().join("log");
        let mut child = Command::new(cached("registry/docker-registry"))
            .arg("serve")
            .arg(folder.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let address = eventually("the registry listens", || {
            let said = fs::read_to_string(&log).unwrap();
            assert!(child.try_wait().unwrap().is_none(), "{said}");
            let (_, after) = said.split_once("listening on ")?;
            Some(after.split(['"', ',']).next()?.to_owned()).filter(|_| after.contains('"'))
        });
        Registry { child, folder, address }
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The address of a package, as the command line takes it.
    fn oci(&self, name: &str) -> String {
        format!("oci://{}/{name}", self.address)
    }

    /// `tessera model ARGS`, with `input` on stdin and no login but what the arguments say.
    fn tessera(&self, args: &[&str], input: &str) -> Output {
        let mut command = tessera();
        command.arg("model").args(args).current_dir(self.folder()).env("DOCKER_CONFIG", self.folder());
        // Not even where everything goes through a proxy does what is on this machine.
        command.env("HTTP_PROXY", "http://127.0.0.1:1").env("HTTPS_PROXY", "http://127.0.0.1:1").env_remove("NO_PROXY");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Some end without reading it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// What is printed as JSON.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> Value {
        serde_json::from_str(&printed(self.tessera(&[args, &["--json"]].concat(), ""))).unwrap()
    }

    /// That it is refused with all these words; answers what is said.
    #[track_caller]
    fn refused(&self, args: &[&str], words: &[&str]) -> String {
        said(&self.tessera(args, ""), words)
    }

    fn get(&self, path: &str) -> Answer {
        let request = client().build().unwrap().get(format!("http://{}/v2/{path}", self.address));
        send(request.header("accept", MANIFEST))
    }

    fn put_manifest(&self, at: &str, manifest: &Value) {
        let url = format!("http://{}/v2/{at}", self.address);
        let request = client().build().unwrap().request(Method::PUT, url).header("content-type", MANIFEST);
        let answer = send(request.body(manifest.to_string()));
        assert_eq!(answer.status, 201, "{}", answer.text());
    }

    /// Where it keeps a blob.
    fn blob(&self, digest: &str) -> PathBuf {
        let digits = digest.strip_prefix("sha256:").unwrap();
        self.folder().join(format!("store/docker/registry/v2/blobs/sha256/{}/{digits}/data", &digits[..2]))
    }

    /// Writes a package into a folder.
    fn write(&self, name: &str, package: &Package) {
        for (file, content) in &package.files {
            let path = self.folder().join(name).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    /// The folders and files beside what the test made.
    fn left(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let known = ["config.yml", "passwords", "log", "store", "package"];
        names.filter(|name| !known.contains(&name.as_str())).collect()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

#[track_caller]
fn said(output: &Output, words: &[&str]) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    for word in words {
        assert!(said.contains(word), "'{word}' is not in: {said}");
    }
    said
}

/// The digest of the only layer with this file.
fn layer<'m>(manifest: &'m Value, file: &str) -> &'m str {
    let layers = manifest["layers"].as_array().unwrap();
    let layer = layers.iter().find(|layer| layer["annotations"]["org.opencontainers.image.title"] == file).unwrap();
    layer["digest"].as_str().unwrap()
}

#[test]
fn a_signed_package_goes_to_a_registry_and_comes_back_the_same() {
    // given a signed package with a component, and files in a folder and without content
    let registry = Registry::start();
    let package = Package::hostile("").with("data/a b.txt", "text").with("empty.txt", "");
    registry.write("package", &package);
    let sign =
        |args: &[&str]| printed(tessera().arg("sign").args(args).current_dir(registry.folder()).output().unwrap());
    fs::write(registry.folder().join("trusted"), sign(&["new-key", "key"])).unwrap();
    sign(&["package", "package", "--key", "key"]);

    // when it is pushed, and pushed again, then nothing is sent twice
    let pushed = registry.ok(&["push", "package", &registry.oci("team/hostile:1")]);
    let address = pushed["address"].as_str().unwrap();
    assert!(address.starts_with(&registry.oci("team/hostile@sha256:")), "{pushed}");
    assert_eq!((&pushed["files"], &pushed["files_moved"]), (&json!(6), &json!(6)));
    let again = registry.ok(&["push", "package", &registry.oci("team/hostile:2")]);
    assert_eq!((&again["address"], &again["files_moved"]), (&pushed["address"], &json!(0)));

    // and by tag and by digest it comes back, with the signature
    for (from, to) in [(registry.oci("team/hostile:2"), "by/tag"), (address.to_owned(), "by-digest")] {
        assert_eq!(registry.ok(&["pull", &from, "--to", to])["address"], pushed["address"]);
        let pulled = Package::of(&registry.folder().join(to));
        assert_eq!(pulled.files, Package::of(&registry.folder().join("package")).files);
    }
    registry.refused(&["pull", address, "--to", "by-digest"], &["by-digest is there already"]);
    registry.refused(&["push", "package", address], &["names a digest"]);

    // and a server that wants signatures registers it from there, and serves it
    let server = Server::with(&["--require-signed", registry.folder().join("trusted").to_str().unwrap()]);
    let home = server.home();
    let to_server = ["--as", "main.default.pulled", "--home", home.to_str().unwrap()];
    let version = registry.ok(&[&["pull", address], &to_server[..]].concat());
    assert_eq!(version["model_version"]["source"], address);
    server.create("pulled", &serving("main.default.pulled", "1")).ok();
    assert_eq!(server.settled("pulled")["state"]["ready"], "READY");
    server.invoke("pulled", &json!({ "do": "echo" })).ok();
}

#[test]
fn a_component_is_an_artifact_that_others_understand() {
    let registry = Registry::start();
    let package = Package::hostile("");
    registry.write("package", &package);
    let pushed = registry.ok(&["push", "package", &registry.oci("hostile")]);

    // The layout of the CNCF: one layer with the component as it is, and a configuration that says what it imports.
    let component = registry.get("hostile/manifests/latest").ok();
    assert_eq!((&component["schemaVersion"], &component["mediaType"]), (&json!(2), &json!(MANIFEST)));
    assert_eq!(component["config"]["mediaType"], "application/vnd.wasm.config.v0+json");
    assert_eq!(component["layers"].as_array().unwrap().len(), 1);
    assert_eq!(component["layers"][0]["mediaType"], "application/wasm");
    let digest = layer(&component, "hostile.wasm");
    assert_eq!(registry.get(&format!("hostile/blobs/{digest}")).body, package.files["hostile.wasm"]);
    let config = registry.get(&format!("hostile/blobs/{}", component["config"]["digest"].as_str().unwrap())).ok();
    assert_eq!((&config["architecture"], &config["os"]), (&json!("wasm"), &json!("wasip2")));
    assert_eq!(config["layerDigests"], json!([digest]));
    let imports = config["component"]["imports"].as_array().unwrap();
    assert!(imports.iter().any(|import| import.as_str().unwrap().starts_with("wasi:nn/")), "{config}");
    let exports = config["component"]["exports"].as_array().unwrap();
    assert!(exports.contains(&json!("handle")), "{config}");

    // All else is an artifact of its own, by its digest and by a tag that keeps it.
    let files = component["annotations"]["dev.tessera.package.files"].as_str().unwrap();
    let other = registry.get(&format!("hostile/manifests/{files}"));
    assert_eq!(other.body, registry.get(&format!("hostile/manifests/{}", files.replace("sha256:", "files-"))).body);
    let other = other.ok();
    assert_eq!(other["artifactType"], "application/vnd.tessera.package.v1");
    assert_eq!(other["layers"].as_array().unwrap().len(), 2);
    let weights = registry.get(&format!("hostile/blobs/{}", layer(&other, "linear.onnx")));
    assert_eq!(weights.body, package.files["linear.onnx"]);

    // A component that others have pushed, without a manifest of ours, becomes a package.
    let mut lone = component.clone();
    lone.as_object_mut().unwrap().remove("annotations");
    lone["layers"][0].as_object_mut().unwrap().remove("annotations");
    registry.put_manifest("hostile/manifests/lone", &lone);
    registry.ok(&["pull", &registry.oci("hostile:lone"), "--to", "lone"]);
    let pulled = Package::of(&registry.folder().join("lone"));
    assert_eq!(pulled.files["tessera.toml"], b"component = \"component.wasm\"\n");
    assert_eq!(pulled.files["component.wasm"], package.files["hostile.wasm"]);
    assert_ne!(pushed["address"], json!(null));
}

#[test]
fn weights_are_stored_once_and_a_stock_package_needs_no_component() {
    // given a model that a stock component serves, and the same with a text beside it
    let registry = Registry::start();
    let (iris, other) = (registry.oci("models/iris"), registry.oci("models/iris:other"));
    let package = Package::of(&model("iris"));
    registry.write("package", &package);
    let files = package.files.len();

    // when both are pushed, then only what differs is sent
    assert_eq!(registry.ok(&["push", "package", &iris])["files_moved"], files);
    fs::write(registry.folder().join("package/README.md"), "about flowers").unwrap();
    let pushed = registry.ok(&["push", "package", &other]);
    assert_eq!((&pushed["files"], &pushed["files_moved"]), (&json!(files + 1), &json!(1)));
    let manifests =
        [registry.get("models/iris/manifests/latest").ok(), registry.get("models/iris/manifests/other").ok()];
    assert_eq!(layer(&manifests[0], "model.onnx"), layer(&manifests[1], "model.onnx"));
    assert_eq!(manifests[0]["artifactType"], "application/vnd.tessera.package.v1");

    // and what is pulled is served
    let server = Server::start();
    let home = server.home();
    registry.ok(&["pull", &iris, "--as", "main.default.iris", "--home", home.to_str().unwrap()]);
    server.create("iris", &serving("main.default.iris", "1")).ok();
    assert_eq!(server.settled("iris")["state"]["ready"], "READY");
    let row = json!({ "dataframe_records": [
        { "sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2 }
    ]});
    assert_eq!(server.invoke("iris", &row).ok()["predictions"][0]["label"], 0);
}

#[test]
fn what_was_changed_in_the_registry_is_refused_and_leaves_nothing() {
    let registry = Registry::start();
    registry.write("package", &Package::hostile(""));
    let address = registry.oci("hostile");
    registry.ok(&["push", "package", &address]);
    let component = registry.get("hostile/manifests/latest").ok();
    let files = component["annotations"]["dev.tessera.package.files"].as_str().unwrap().to_owned();
    let files_manifest = registry.get(&format!("hostile/manifests/{files}")).ok();
    let weights = registry.blob(layer(&files_manifest, "linear.onnx"));
    let pull = ["pull", &address, "--to", "pulled"];

    let damaged = |path: &Path, change: &dyn Fn(&mut Vec<u8>), words: &[&str]| {
        let good = fs::read(path).unwrap();
        let mut bad = good.clone();
        change(&mut bad);
        fs::write(path, bad).unwrap();
        registry.refused(&pull, words);
        assert!(registry.left().is_empty(), "{:?}", registry.left());
        fs::write(path, good).unwrap();
    };
    let changed = ["linear.onnx", "was changed or damaged"];
    damaged(&weights, &|bytes| bytes[0] ^= 1, &changed);
    damaged(&weights, &|bytes| bytes.truncate(9), &changed);
    damaged(&weights, &|bytes| bytes.push(0), &["linear.onnx", "its manifest says"]);
    let component = registry.blob(layer(&component, "hostile.wasm"));
    damaged(&component, &|bytes| bytes[100] ^= 1, &["hostile.wasm", "was changed or damaged"]);
    // A manifest that names other weights, as good as the old ones.
    let other = |bytes: &mut Vec<u8>| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        *bytes = text.replace("linear.onnx", "LINEAR.onnx").into_bytes();
    };
    damaged(&registry.blob(&files), &other, &["was changed or damaged"]);
    fs::remove_file(&weights).unwrap();
    registry.refused(&pull, &["linear.onnx", "has nothing of that name"]);
    assert!(registry.left().is_empty(), "{:?}", registry.left());
}

#[test]
fn what_is_no_package_is_named_and_cannot_write_elsewhere() {
    let registry = Registry::start();
    registry.write("package", &Package::hostile(""));
    registry.ok(&["push", "package", &registry.oci("hostile")]);
    let component = registry.get("hostile/manifests/latest").ok();
    let files = component["annotations"]["dev.tessera.package.files"].as_str().unwrap();
    let files = registry.get(&format!("hostile/manifests/{files}")).ok();
    let refused = |manifest: &Value, words: &[&str]| {
        registry.put_manifest("hostile/manifests/bad", manifest);
        registry.refused(&["pull", &registry.oci("hostile:bad"), "--to", "pulled"], words);
        assert!(registry.left().is_empty(), "{:?}", registry.left());
    };
    let with = |manifest: &Value, place: &str, value: Value| {
        let mut manifest = manifest.clone();
        *manifest.pointer_mut(place).unwrap() = value;
        manifest
    };

    let image = with(&component, "/config/mediaType", json!("application/vnd.docker.container.image.v1+json"));
    refused(&image, &["is not a Tessera package", "application/vnd.docker.container.image.v1+json"]);
    let mut layered = component.clone();
    layered["layers"].as_array_mut().unwrap().push(component["layers"][0].clone());
    refused(&layered, &["is not a Tessera package"]);
    refused(&with(&files, "/artifactType", json!("application/x")), &["is not a Tessera package", "application/x"]);
    let annotation = "/annotations/dev.tessera.package.files";
    refused(&with(&component, annotation, json!("latest")), &["'latest' is not a digest"]);
    let own = registry.get("hostile/manifests/latest").header("docker-content-digest").to_owned();
    refused(&with(&component, annotation, json!(own)), &["has no files of one"]);

    let title = "/layers/0/annotations/org.opencontainers.image.title";
    for path in ["../../outside", "/tmp/outside", "a/../../outside", ".hidden"] {
        refused(&with(&files, title, json!(path)), &["is not a path that a package may hold", path]);
    }
    refused(&with(&files, title, json!("tessera.toml")), &["two files 'tessera.toml'"]);
    refused(&with(&files, "/layers/0/size", json!(1i64 << 60)), &["there is room for"]);
    // A package in all but its manifest.
    let only_weights = files["layers"].as_array().unwrap().iter();
    let only_weights =
        only_weights.filter(|layer| layer["annotations"]["org.opencontainers.image.title"] == "linear.onnx");
    let only_weights: Value = only_weights.cloned().collect();
    refused(&with(&files, "/layers", only_weights), &["is not a package", "holds neither MLmodel nor tessera.toml"]);

    // What could not be served is not pushed.
    fs::write(registry.folder().join("package/tessera.toml"), "component = 'none.wasm'").unwrap();
    registry.refused(&["push", "package", &registry.oci("x")], &["no package that could be served", "none.wasm"]);
}

#[test]
fn a_registry_wants_to_know_who_asks() {
    let registry = Registry::with("", "auth: {htpasswd: {realm: registry, path: HERE/passwords}}\n");
    registry.write("package", &Package::hostile(""));
    let address = registry.oci("private/hostile");
    let push = ["push", "package", &address];
    let pull = |to| ["pull", &address, "--to", to];

    // given nobody, or somebody with another password, then both are refused with the way out
    let next = ["(401)", "docker login", "--username"];
    registry.refused(&push, &next);
    registry.refused(&pull("pulled"), &next);
    let login = |args: &[&str], password: &str| {
        registry.tessera(&[args, &["--username", "ann", "--password-stdin"]].concat(), password)
    };
    let wrong = said(&login(&push, "wrong-one\n"), &next);
    assert!(!wrong.contains("wrong-one"), "{wrong}");
    said(&login(&push, ""), &["no password on stdin"]);

    // given the right one, on stdin or as docker login notes it, then it works
    printed(login(&push, "secret\n"));
    printed(login(&pull("once"), "secret\n"));
    let noted = |auth: &str| {
        let config = json!({ "auths": { &registry.address: { "auth": auth } } });
        fs::write(registry.folder().join("config.json"), config.to_string()).unwrap();
    };
    noted("YW5uOnNlY3JldA==");
    registry.ok(&pull("twice"));
    registry.ok(&push);
    noted("YW5uOndyb25n");
    registry.refused(&push, &next);
    noted("?");
    registry.refused(&push, &["failed to read the login", "config.json"]);
}

#[test]
fn tls_is_spoken_unless_nobody_can_listen() {
    // given a registry with a certificate of our own authority
    let ca = Ca::new("registry");
    let pair = ca.sign(2100);
    let keys = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        fs::write(keys.path().join(name), text).unwrap();
        keys.path().join(name).to_str().unwrap().to_owned()
    };
    let (cert, key) = (write("cert", &pair.cert), write("key", &pair.key));
    let (ours, theirs) = (write("ca", &ca.pem), write("other", &Ca::new("other").pem));
    let registry = Registry::with(&format!(", tls: {{certificate: {cert}, key: {key}}}"), "");
    registry.write("package", &Package::hostile(""));
    let address = registry.oci("hostile").replace("127.0.0.1", "localhost");

    // then who trusts that authority can push, and nobody else
    let push = ["push", "package", &address];
    registry.ok(&[&push[..], &["--ca-cert", &ours]].concat());
    registry.ok(&["pull", &address, "--to", "pulled", "--ca-cert", &ours]);
    let words = ["the certificate of localhost", "is refused", "--ca-cert"];
    registry.refused(&[&push[..], &["--ca-cert", &theirs]].concat(), &words);
    registry.refused(&push, &["400"]);
    registry.refused(&[&push[..], &["--ca-cert", "/no/ca.pem"]].concat(), &["failed to read /no/ca.pem"]);

    // and a registry without one is told apart
    let plain = Registry::start();
    let address = plain.oci("hostile");
    plain.write("package", &Package::hostile(""));
    let push = ["push", "package", &address, "--ca-cert", &ours];
    plain.refused(&push, &["does not speak TLS", "--plain-http"]);
    plain.ok(&[&push[..], &["--plain-http"]].concat());
}

#[test]
fn registries_and_packages_that_are_not_there_are_named() {
    let registry = Registry::start();
    registry.write("package", &Package::hostile(""));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // closed again here
    let nobody = format!("oci://{free}/hostile");
    let words = ["no registry answers at 127.0.0.1", "HOST:PORT"];
    registry.refused(&["push", "package", &nobody], &words);
    registry.refused(&["pull", &nobody, "--to", "pulled"], &words);
    registry.refused(&["pull", &registry.oci("none:1"), "--to", "pulled"], &["none:1", "has nothing of that name"]);
    registry.ok(&["push", "package", &registry.oci("hostile")]);
    registry.refused(&["pull", &registry.oci("hostile:none"), "--to", "pulled"], &["hostile:none", "(404)"]);
    assert!(registry.left().is_empty(), "{:?}", registry.left());
    registry.refused(&["pull", "models:/iris/1", "--to", "pulled"], &["--from"]);
}
