//! Guests in Python and JavaScript: the examples, built by `tessera build` and deployed; the same contract as guests in Rust.
//!
//! Each language is built and compiled once, with `tests/guests/LANGUAGE/tested.*` in front of the example, which does on
//! demand what a guest can do wrong. Building needs uv, or Node.js with npm; the tools are installed once into the cache.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{
    Answer, Package, Server, ask_python, model, printed, python, repository, send, serving_with, tessera, within,
};
use crate::projects::Dev;

/// How long a deploy may take here: twenty seconds of compiling, on machines that do much else.
const PATIENCE: Duration = Duration::from_secs(600);

const COLUMNS: [&str; 4] = ["sepal_length", "sepal_width", "petal_length", "petal_width"];

const FLOWERS: [[f64; 4]; 4] = [[5.1, 3.5, 1.4, 0.2], [6.0, 2.9, 4.5, 1.5], [6.5, 3.0, 5.8, 2.2], [0.5, 8.0, 3.0, 0.1]];

const SPECIES: [&str; 3] = ["setosa", "versicolor", "virginica"];

/// Server flags: what a busy machine needs.
const FLAGS: [&str; 2] = ["--compile-timeout-ms", "600000"];

/// Builds a project with the command line, and gives its package.
fn build(project: &Path) -> Package {
    let mut command = tessera();
    if let Some(cache) = std::env::var_os("TESSERA_CACHE") {
        command.env("TESSERA_CACHE", cache);
    }
    printed(command.arg("build").arg(project).output().unwrap());
    let mut package = Package::default();
    for name in
        ["tessera.toml", "component.wasm", "model.onnx", "labels.txt", "golden/request.json", "golden/response.json"]
    {
        package = package.with(name, fs::read(project.join(name)).unwrap());
    }
    package
}

/// Puts the example of a language into a folder.
fn example(language: &str, folder: &Path) {
    for (name, content) in Package::of(&repository(&format!("guest-examples/iris-{language}"))).files {
        if name.starts_with(".tessera") || name == "component.wasm" {
            continue;
        }
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// The example of a language, with the tests' module in front of it.
fn project(language: &str, build_table: &str, tested: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    example(language, folder.path());
    let source = repository(&format!("tests/guests/{language}/{tested}"));
    fs::copy(source, folder.path().join("src").join(tested)).unwrap();
    let manifest = folder.path().join("tessera.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let written =
        text.replace("[build]\n", &format!("[build]\n{build_table}\n")).replace("cpu_ms = 2000", "cpu_ms = 10000");
    assert_ne!(written, text);
    fs::write(manifest, written).unwrap();
    folder
}

/// With code as `tessera dev` has it swapped in: a component that was built has nothing in it that would run it.
fn with_code(package: Package, code: &str) -> Package {
    let manifest = String::from_utf8(package.files["tessera.toml"].clone()).unwrap();
    let listed = manifest.replace("assets = [", "assets = [\"tessera-dev-code\", ");
    assert_ne!(listed, manifest);
    package.with("tessera.toml", listed).with("tessera-dev-code", code)
}

/// An endpoint's state when its deploy has ended.
fn settled(server: &Server, name: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let endpoint = server.endpoint(name);
        if endpoint["state"]["config_update"] != "IN_PROGRESS" {
            return endpoint;
        }
        assert!(Instant::now() < deadline, "{name} is not deployed within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Deploys with a setting that `init` reads: `frozen` is `at deploy`.
fn deploy(server: &Server, name: &str, package: &Package) {
    let model = format!("main.default.{name}");
    let version = server.push(&model, package);
    server.create(name, &serving_with(&model, &version, ("frozen", "at deploy"))).ok();
    let endpoint = settled(server, name);
    assert_eq!(endpoint["state"]["ready"], "READY", "{endpoint:#}\n{}", server.build_log(name));
}

/// What native onnxruntime says: species and probability of each flower.
fn native() -> Vec<(String, f64)> {
    let outputs = ask_python(python("iris_oracle.py").arg(model("iris").join("model.onnx")), &json!(FLOWERS));
    let of_row = |row: usize| {
        let species = SPECIES[outputs["label"][row].as_u64().unwrap() as usize];
        (species.to_owned(), outputs[species][row].as_f64().unwrap())
    };
    (0..FLOWERS.len()).map(of_row).collect()
}

#[track_caller]
fn same_as_native(predictions: impl Iterator<Item = Value>, what: &str) {
    let mut count = 0;
    for (prediction, (species, probability)) in predictions.zip(native()) {
        assert_eq!(prediction["species"], species, "{what}");
        let got = prediction["probability"].as_f64().unwrap();
        assert!((got - probability).abs() <= 2e-6, "{what}: {got} is not {probability}");
        count += 1;
    }
    assert_eq!(count, FLOWERS.len(), "{what}");
}

fn records() -> Value {
    let record =
        |row: &[f64; 4]| COLUMNS.iter().zip(row).map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    Value::Array(FLOWERS.iter().map(record).map(Value::Object).collect())
}

fn post(server: &Server, endpoint: &str, content_type: &str, body: String) -> Answer {
    let path = format!("/serving-endpoints/{endpoint}/invocations");
    send(server.request(Method::POST, &path).header("content-type", content_type).body(body))
}

/// What is the same in every language: limits, isolation, errors, logs.
fn contract(server: &Server, name: &str) {
    let ask = |what: Value| server.invoke(name, &what);

    // what init read is there, and what a request changes is not there for the next, also with many at once
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let counted = ask(json!({ "do": "count" })).ok();
                    assert_eq!(counted, json!({ "requests_seen": 1, "frozen": "at deploy" }));
                }
            });
        }
    });

    // an exception: the caller learns its kind and nothing of what it was about, the log has everything
    let raised = ask(json!({ "do": "raise", "key": "the caller's own" }));
    raised.is_error(400, "BAD_REQUEST", &["the endpoint's code", "its log has the"]);
    assert!(!raised.text().contains("the caller's own"), "{}", raised.text());
    let log = server.guest_log(name);
    for said in ["about to fail", "printed by a request"] {
        assert!(log.contains(said), "{said}: {log}");
    }

    // what the library refuses has its own status
    ask(json!({ "do": "graph" })).is_error(
        400,
        "BAD_REQUEST",
        &["failed to compute graph `other`", "no graph 'other'"],
    );
    post(server, name, "application/json", "{".to_owned()).is_error(
        400,
        "BAD_REQUEST",
        &["failed to parse the JSON body"],
    );

    // a guest that does not end, or takes all the memory, is stopped; recursion without an end harms nobody
    ask(json!({ "do": "loop" })).is_error(400, "BAD_REQUEST", &["limits.cpu_ms"]);
    let grown = ask(json!({ "do": "grow" }));
    assert_eq!(grown.status, 400, "{}", grown.text());
    let deep = ask(json!({ "do": "recurse" }));
    assert_eq!(deep.status, 400, "{}", deep.text());

    // randomness for secrets is fresh in every request
    let secrets = [(); 2].map(|()| ask(json!({ "do": "random" })).ok()["secret"].clone());
    assert_ne!(secrets[0], secrets[1]);

    // a stream, and what is known of a request
    assert_eq!(ask(json!({ "do": "stream" })).text(), "line 0\nline 1\nline 2\n");
    let path = format!("/serving-endpoints/{name}/invocations");
    let info = send(server.request(Method::POST, &path).header("x-asked", "yes").json(&json!({ "do": "info" }))).ok();
    assert_eq!(info, json!({ "path": "invocations", "endpoint": name, "header": "yes" }));

    // and all is well afterwards
    assert_eq!(ask(json!({ "do": "count" })).ok()["requests_seen"], 1);
}

/// A failing `init` fails the deploy with its reason.
fn init_may_refuse(server: &Server, name: &str) {
    let refusing = serving_with(&format!("main.default.{name}"), "1", ("refuse", "yes"));
    server.create(&format!("{name}-refusing"), &refusing).ok();
    let endpoint = settled(server, &format!("{name}-refusing"));
    assert_ne!(endpoint["state"]["ready"], "READY", "{endpoint:#}");
    let log = server.build_log(&format!("{name}-refusing"));
    assert!(log.contains("init failed: init refused, as the setting asks"), "{log}");
}

#[test]
fn a_guest_in_python_keeps_the_contract() {
    // given the example in Python
    let server = Server::with(&FLAGS);
    let project = project("python", "module = \"tested\"", "tested.py");
    deploy(&server, "py", &with_code(build(project.path()), r#"{"tested.py": "raise SystemExit"}"#));
    assert!(server.build_log("py").contains("printed by init"), "{}", server.build_log("py"));

    // when flowers come as records and as CSV, then it answers as the model does natively
    let of = |answer: Answer| answer.ok()["predictions"].as_array().unwrap().clone().into_iter();
    same_as_native(of(server.invoke("py", &records())), "records");
    let rows = FLOWERS.map(|row| row.map(|value| value.to_string()).join(","));
    let csv = format!("{}\n{}\n", COLUMNS.join(","), rows.join("\n"));
    same_as_native(of(post(&server, "py", "text/csv", csv.clone())), "CSV");
    post(&server, "py", "text/csv", csv.replace("5.1", "five")).is_error(
        400,
        "BAD_REQUEST",
        &["row 1: sepal_length is no number: five"],
    );
    post(&server, "py", "text/plain", csv).is_error(415, "BAD_REQUEST", &["send text/csv or application/json"]);

    contract(&server, "py");
    let log = server.guest_log("py");
    assert!(log.contains("Traceback") && log.contains("KeyError: \"the caller's own\""), "{log}");
    assert!(log.contains("return {\"never\": {}[asked[\"key\"]]}"), "the traceback shows the line: {log}");
    // and there is no network
    let denied = server.invoke("py", &json!({ "do": "socket", "port": 9 })).ok();
    assert_eq!(denied, json!({ "denied": "PermissionError" }));
    init_may_refuse(&server, "py");
}

#[test]
fn a_guest_in_javascript_keeps_the_contract() {
    // given the example in JavaScript
    let server = Server::with(&FLAGS);
    let project = project("js", "entry = \"src/tested.js\"", "tested.js");
    deploy(&server, "js", &with_code(build(project.path()), "throw 'code of tessera dev'"));
    assert!(server.build_log("js").contains("printed by init"), "{}", server.build_log("js"));

    // when flowers come as records, then it answers as the model does natively
    let answer = server.invoke("js", &json!({ "records": records() })).ok();
    let first = |all: &Value| all[0].clone();
    same_as_native(answer["predictions"].as_array().unwrap().iter().map(first), "records");
    server.invoke("js", &json!({ "records": [{}] })).is_error(400, "BAD_REQUEST", &["record 1 has no sepal_length"]);

    contract(&server, "js");
    let log = server.guest_log("js");
    assert!(log.contains("TypeError: ") && log.contains("raise@"), "the stack is there: {log}");
}

/// A project whose golden request may be answered in any way, in `tessera dev`; and a way to change a file of it.
fn developed(language: &str, folder: &TempDir) -> (Dev, impl Fn(&str, &str, &str)) {
    let project = folder.path().join("flowers");
    example(language, &project);
    let change = move |file: &str, from: &str, to: &str| {
        let path = project.join(file);
        let text = fs::read_to_string(&path).unwrap_or_default();
        assert!(text.contains(from), "{text}");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    };
    change("tessera.toml", "response = \"golden/response.json\"\n", "");
    (Dev::start(&folder.path().join("flowers")), change)
}

/// How often a component was built.
fn builds(dev: &Dev) -> usize {
    dev.said().matches("building the component").count()
}

#[test]
fn changed_python_is_swapped_in() {
    // given the example, as it is being served
    let folder = tempfile::tempdir().unwrap();
    let (dev, change) = developed("python", &folder);
    let (source, body) = ("src/endpoint.py", records().to_string());
    let first = |key: &str| Some(dev.answer(&body)?["predictions"][0][key].as_str()?.to_owned());
    let answers = |key: &str, expected: &str| {
        within(PATIENCE, expected, || (first(key)? == expected).then_some(()));
    };
    answers("species", "setosa");

    // when code, a module beside it, or an asset changes, then so do answers, and nothing is built
    change("src/words/kinds.py", "", "KIND = 'kind'\n");
    change(source, "import csv\n", "import csv\nfrom words.kinds import KIND\n");
    change(source, "\"species\": self", "KIND: self");
    answers("kind", "setosa");
    change("labels.txt", "setosa", "bristle");
    answers("kind", "bristle");
    change("src/words/kinds.py", "kind", "sort");
    answers("sort", "bristle");
    assert_eq!(builds(&dev), 1);

    // when it is wrong, then the line is told, whether it is read or runs, and the version before serves on
    change(source, "def row_of(", "def row_of(!");
    dev.says("File \"src/endpoint.py\", line 60");
    dev.says("SyntaxError: invalid syntax; the version before serves on");
    change(source, "def row_of(!", "def row_of(");
    change(source, "row = []", "row = [][0]");
    dev.says("    row = [][0]");
    dev.says("raised IndexError");
    assert_eq!(first("sort").as_deref(), Some("bristle"));
    change(source, "row = [][0]", "row = []");

    // when it imports what was not there when the component was built, then that is built anew, and swapping goes on
    change(source, "import csv\n", "import csv\nimport statistics\n");
    change(source, "self.species[chosen]", "self.species[chosen] + str(statistics.mean([3]))");
    answers("sort", "bristle3");
    assert!(dev.said().contains("a whole build is needed: ModuleNotFoundError: No module named 'statistics'"));
    change(source, "mean([3])", "mean([5])");
    answers("sort", "bristle5");
    assert_eq!(builds(&dev), 2);

    // and nothing of this is in the project's package, which is not built
    let output = tessera().arg("package").current_dir(folder.path().join("flowers")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("is not built: run `tessera build"), "{said}");
}

#[test]
fn changed_javascript_is_swapped_in() {
    // given the example, as it is being served
    let folder = tempfile::tempdir().unwrap();
    let (dev, change) = developed("js", &folder);
    let (source, body) = ("src/endpoint.js", json!({ "records": records() }).to_string());
    let answers = |key: &str| {
        let is_there = || (dev.answer(&body)?[key][0][0]["species"] == "setosa").then_some(());
        within(PATIENCE, key, is_there);
    };
    answers("predictions");

    // when code or a module beside it changes, then so do answers
    change("src/words.js", "", "export const key = 'flowers';\n");
    change(source, "import {", "import { key } from './words.js';\nimport {");
    change(source, "{ predictions: rows", "{ [key]: rows");
    answers("flowers");
    change("src/words.js", "flowers", "plants");
    answers("plants");

    // when it is wrong, then that is told
    change(source, "export function predict(request) {", "export function predict(request {");
    dev.says("the module was not bundled");
    change(source, "export function predict(request {", "export function predict(request) {\n  null.wrong;");
    dev.says("TypeError: can't access property \"wrong\" of null\n    at predict@.tessera/build/js/swapped.js:");
    answers("plants");
    assert_eq!(builds(&dev), 1);
}

#[test]
fn the_libraries_of_guests_pass_their_own_tests() {
    let mut python = Command::new("python3");
    python.args(["-m", "unittest", "discover", "-s", "tests"]).current_dir(repository("sdk/python-guest"));
    printed(python.env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap());
    let mut node = Command::new("node");
    printed(node.args(["--test", "tests/"]).current_dir(repository("sdk/js-guest")).output().unwrap());
}

#[test]
fn what_cannot_be_built_is_told_with_the_way_out() {
    for (language, broken, words) in [
        ("python", "module = \"absent\"", "there is no module 'absent' in"),
        ("js", "entry = \"src/absent.js\"", "there is no module to build: make"),
    ] {
        let tested = if language == "js" { "tested.js" } else { "tested.py" };
        let project = project(language, broken, tested);
        let output = tessera().arg("build").arg(project.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{said}");
    }
    // without the tools nothing is there to be found
    for (language, table, tested, hint) in [
        ("python", "module = \"tested\"", "tested.py", "install uv"),
        ("js", "", "tested.js", "install Node.js 20 or newer"),
    ] {
        let project = project(language, table, tested);
        let cache = tempfile::tempdir().unwrap();
        let mut command = tessera();
        command.arg("build").arg(project.path()).env("PATH", "").env("TESSERA_CACHE", cache.path());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(hint), "{said}");
    }
}
