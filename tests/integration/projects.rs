//! Models with code of their own: made, built, packed, served while they are written. The component of a project in Rust
//! is built once, by the first test that needs it, with the compiler that `make guests` uses.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock};

use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Server, client, eventually, guest_build_folder, read, tessera};

/// What a command printed on both, and whether it succeeded.
#[track_caller]
fn ok(output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    format!("{out}{err}")
}

/// What a command said that must fail.
#[track_caller]
fn refused(output: Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `tessera ARGS` in a folder. Builds share what others have built for WebAssembly.
fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = tessera();
    command.args(args).current_dir(folder).stdin(Stdio::null()).env("CARGO_TARGET_DIR", guest_build_folder());
    command
}

fn run(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().unwrap()
}

/// The project that `tessera new` makes of another template in Rust, built.
fn built(template: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    ok(run(folder.path(), &["new", "mine", "--lang", "rust", "--template", template]));
    let project = folder.path().join("mine");
    ok(run(&project, &["build", "--release"]));
    (folder, project)
}

/// A project in Rust as `tessera new` makes it, and its component, which is the same for all of them.
fn project() -> (TempDir, PathBuf) {
    static COMPONENT: OnceLock<Vec<u8>> = OnceLock::new();
    let folder = tempfile::tempdir().unwrap();
    ok(run(folder.path(), &["new", "flowers", "--lang", "rust", "--template", "tabular"]));
    let project = folder.path().join("flowers");
    let component = COMPONENT.get_or_init(|| {
        ok(run(&project, &["build", "--release"]));
        fs::read(project.join("component.wasm")).unwrap()
    });
    fs::write(project.join("component.wasm"), component).unwrap();
    (folder, project)
}

const ROW: &str = r#"{"instances": [[5.1, 3.5, 1.4, 0.2]]}"#;

#[test]
fn from_nothing_to_an_answer() {
    // given a new project, built from a folder in it
    let (folder, project) = project();
    let said = ok(run(&project.join("src"), &["build", "--release"]));
    assert!(said.contains("flowers/component.wasm"), "{said}");

    // when it is packed twice, with other times in between, then the archives are the same
    let pack = |name: &str| ok(run(&project, &["package", "--output", &format!("../{name}")]));
    let digest = |said: String| said.split_whitespace().find(|word| word.starts_with("sha256:")).unwrap().to_owned();
    let first = digest(pack("first.tar"));
    fs::write(project.join("labels.txt"), fs::read(project.join("labels.txt")).unwrap()).unwrap();
    assert_eq!(digest(pack("second.tar")), first);
    let archive = folder.path().join("first.tar");
    assert_eq!(fs::read(&archive).unwrap(), fs::read(folder.path().join("second.tar")).unwrap());

    // and the archive and the folder are the same package
    let inspect = |path: &Path| -> Value {
        let output = run(folder.path(), &["inspect", "--json", path.to_str().unwrap()]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    };
    let report = inspect(&archive);
    assert_eq!(report, inspect(&project));
    assert_eq!(report["component"]["world"], "tessera:endpoint/endpoint");
    assert!(report["component"]["imports"].as_array().unwrap().iter().all(|import| import["granted"] == true));
    assert_eq!(report["graphs"][0]["inputs"][0], json!({ "name": "X", "form": "FP32 [N, 4]" }));

    // and a server serves both, and answers
    let server = Server::start();
    let home = server.home();
    let home = home.to_str().unwrap();
    for (package, version) in [(archive.to_str().unwrap(), "1"), (".", "2")] {
        let said = ok(run(&project, &["model", "push", package, "--name", "main.default.flowers", "--home", home]));
        assert!(said.contains(&format!("version {version}  (6 files")), "{said}");
        let verb = if version == "1" { "create" } else { "update" };
        let of = ["--model", "main.default.flowers", "--version", version, "--wait", "--home", home];
        ok(run(&project, &[&["endpoint", verb, "flowers"], &of[..]].concat()));
        let answer = ok(run(&project, &["invoke", "flowers", "--data", ROW, "--home", home]));
        assert!(answer.contains(r#""label":"setosa","probability":0.98"#), "{answer}");
    }

    // and a component that was built from other sources is neither packed nor pushed
    let source = project.join("src/lib.rs");
    let text = fs::read_to_string(&source).unwrap();
    fs::write(&source, format!("{text}\n// changed\n")).unwrap();
    let push = ["model", "push", ".", "--name", "main.default.flowers", "--home", home];
    for give in [&["package"][..], &push] {
        let said = refused(run(&project, give));
        assert!(said.contains("was built from other sources: src/lib.rs has changed since"), "{said}");
    }
}

/// A deploy sends the project's golden request and compares the answer, so a project that serves answers right.
fn served(project: &Path, home: &str) {
    ok(run(project, &["model", "push", ".", "--name", "main.default.mine", "--home", home]));
    let of = ["--model", "main.default.mine", "--version", "1", "--wait", "--home", home];
    ok(run(project, &[&["endpoint", "create", "mine"], &of[..]].concat()));
}

#[test]
fn a_project_for_pictures_reads_a_digit() {
    let (_folder, project) = built("image");
    let server = Server::start();
    let home = server.home();
    let home = home.to_str().unwrap();
    served(&project, home);
    let picture = ["--content-type", "image/png", "--data", "@golden/request.png", "--home", home];
    let answer = ok(run(&project, &[&["invoke", "mine"], &picture[..]].concat()));
    assert!(answer.contains(r#"{"predictions":[{"label":"5","probability":0.9"#), "{answer}");
}

#[test]
fn a_project_for_embeddings_puts_texts_that_share_words_close() {
    let (_folder, project) = built("embeddings");
    let server = Server::start();
    let home = server.home();
    served(&project, home.to_str().unwrap());
    let texts =
        ["How do I reset my password?", "Reset a forgotten password in the settings.", "The weather is mild today."];
    let answer = server.post("/v1/embeddings", &json!({ "model": "mine", "input": texts })).ok();
    let vectors: Vec<Vec<f64>> = answer["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|datum| serde_json::from_value(datum["embedding"].clone()).unwrap())
        .collect();
    let closeness = |other: usize| vectors[0].iter().zip(&vectors[other]).map(|(a, b)| a * b).sum::<f64>();
    assert!(closeness(1) > closeness(2) + 0.2, "{} and {}", closeness(1), closeness(2));
    assert_eq!(answer["model"], "mine");
}

/// `tessera dev` on a project, ended when dropped.
pub(crate) struct Dev {
    child: Child,
    said: Arc<Mutex<String>>,
    url: String,
    token: String,
}

impl Dev {
    pub(crate) fn start(project: &Path) -> Dev {
        let mut command = command(project, &["dev", "--release"]);
        if let Some(cache) = std::env::var_os("TESSERA_CACHE") {
            command.env("TESSERA_CACHE", cache);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let collect = |lines: Box<dyn BufRead + Send>| {
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                for line in lines.lines().map_while(Result::ok) {
                    *said.lock().unwrap() += &(line + "\n");
                }
            })
        };
        collect(Box::new(BufReader::new(out)));
        collect(Box::new(BufReader::new(err)));
        let address = eventually("dev serves", || {
            let said = said.lock().unwrap();
            let after = said.split_once("http://")?.1;
            assert!(!after.is_empty());
            Some(after.split(';').next()?.to_owned())
        });
        let token = fs::read_to_string(project.join(".tessera/admin.token")).unwrap();
        let name = project.file_name().unwrap().to_str().unwrap();
        let url = format!("http://{address}/serving-endpoints/{name}/invocations");
        Dev { child, said, url, token: token.trim().to_owned() }
    }

    /// The answer to a JSON body; none while nothing serves.
    pub(crate) fn answer(&self, body: &str) -> Option<Value> {
        let request = client().build().unwrap().request(Method::POST, &self.url).bearer_auth(&self.token);
        let answer = read(request.body(body.to_owned()).header("content-type", "application/json").send().ok()?);
        (answer.status == 200).then(|| answer.json())
    }

    /// What the API of its server answers to a GET.
    fn get(&self, path: &str) -> Value {
        let (server, _) = self.url.split_once("/serving-endpoints/").unwrap();
        let request = client().build().unwrap().request(Method::GET, format!("{server}{path}"));
        read(request.bearer_auth(&self.token).send().unwrap()).ok()
    }

    /// How many versions of the project there are.
    fn versions(&self) -> usize {
        let listed = self.get("/api/2.1/unity-catalog/models/main.default.flowers/versions");
        listed["model_versions"].as_array().unwrap().len()
    }

    fn label(&self) -> Option<String> {
        Some(self.answer(ROW)?["predictions"][0]["label"].as_str()?.to_owned())
    }

    /// All that it has printed.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits for a line with these words.
    pub(crate) fn says(&self, words: &str) {
        eventually(words, || self.said().contains(words).then_some(()));
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("tessera dev said:\n{}", self.said.lock().unwrap_or_else(|broken| broken.into_inner()));
        }
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

#[test]
fn what_is_changed_is_served() {
    // given a project that is being served
    let (_folder, project) = project();
    let dev = Dev::start(&project);
    eventually("an answer", || (dev.label()? == "setosa").then_some(()));

    // when an asset changes, then so does the answer
    let golden = fs::read_to_string(project.join("golden/response.json")).unwrap();
    let rename = |name: &str| {
        fs::write(project.join("golden/response.json"), golden.replace("setosa", name)).unwrap();
        fs::write(project.join("labels.txt"), format!("{name}\nversicolor\nvirginica\n")).unwrap();
    };
    rename("bristle");
    eventually("the new label", || (dev.label()? == "bristle").then_some(()));

    // when a deploy fails, then its version is gone, as are those that served before
    fs::write(project.join("labels.txt"), "thistle\nversicolor\nvirginica\n").unwrap();
    dev.says("the golden request");
    eventually("one version", || (dev.versions() == 1).then_some(()));
    rename("bristle");

    // when the source is broken, then the compiler says where, and what was built last serves on
    let source = project.join("src/lib.rs");
    let text = fs::read_to_string(&source).unwrap();
    fs::write(&source, text.replace("fn handle(", "fn handle(broken")).unwrap();
    dev.says("the version before serves on");
    dev.says("src/lib.rs:");
    assert_eq!(dev.label().as_deref(), Some("bristle"));

    // when it is whole again and says something, then that is shown
    let speaks = "let flowers: Vec<Flower> = request.rows()?;\n        tessera_sdk::log::info(\"heard of\");";
    fs::write(&source, text.replace("let flowers: Vec<Flower> = request.rows()?;", speaks)).unwrap();
    eventually("what the guest says", || {
        dev.label()?;
        dev.said().contains("heard of").then_some(())
    });
}

#[test]
fn a_change_is_served_also_when_an_end_has_interrupted_a_deploy() {
    // given a project whose init goes on until it is stopped, and an end in the middle of its deploy
    let (_folder, project) = project();
    let source = project.join("src/lib.rs");
    let text = fs::read_to_string(&source).unwrap();
    let init = "fn init(package: &Package) -> Result<Self, Error> {";
    let endless = "let mut left = package.asset_text(\"labels.txt\")?.starts_with(\"setosa\");\n        \
                   while std::hint::black_box(left) {\n            left = true;\n        }";
    fs::write(&source, text.replace(init, &format!("{init}\n        {endless}"))).unwrap();
    let dev = Dev::start(&project);
    dev.says("serving");
    eventually("a deploy", || {
        let listed = dev.get("/api/2.0/serving-endpoints");
        (listed["endpoints"][0]["state"]["config_update"] == "IN_PROGRESS").then_some(())
    });
    drop(dev);

    // when it is started again with a change, then that is served, and nothing else is left
    let golden = fs::read_to_string(project.join("golden/response.json")).unwrap();
    fs::write(project.join("golden/response.json"), golden.replace("setosa", "bristle")).unwrap();
    fs::write(project.join("labels.txt"), "bristle\nversicolor\nvirginica\n").unwrap();
    let dev = Dev::start(&project);
    eventually("the new label", || (dev.label()? == "bristle").then_some(()));
    eventually("one version", || (dev.versions() == 1).then_some(()));
}

#[test]
fn mistakes_are_told_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let fails = |args: &[&str], words: &str| {
        let said = refused(run(folder.path(), args));
        assert!(said.contains(words), "'{words}' is not in: {said}");
    };
    fails(&["build"], "make one with `tessera new NAME`");
    fails(&["new", "Flowers", "--lang", "rust"], "'Flowers' is no name for a project");
    fails(&["new", "chat", "--lang", "rust"], "'chat' is reserved");
    fails(&["new", "flowers", "--lang", "cobol"], "possible values");
    let in_python = ["new", "flowers", "--lang", "python", "--template", "image"];
    fails(&in_python, "there is no template image in python; there are tabular");
    ok(run(folder.path(), &["new", "flowers", "--lang", "rust"]));
    fails(&["new", "flowers", "--lang", "rust"], "is there already");
    fails(&["package", "flowers"], "is not built: run `tessera build --release`");
    fs::rename(folder.path().join("flowers"), folder.path().join("chat")).unwrap();
    fails(&["dev", "chat"], "give the folder another name");
    fs::rename(folder.path().join("chat"), folder.path().join("flowers")).unwrap();
    fails(&["inspect", "nothing"], "failed to open nothing");

    fs::write(folder.path().join("flowers/component.wasm"), "no component").unwrap();
    fs::write(folder.path().join("flowers/model.onnx"), "no model").unwrap();
    fails(&["package", "flowers"], "graph 'model' ('model.onnx')");
    fs::remove_file(folder.path().join("flowers/labels.txt")).unwrap();
    fails(&["inspect", "flowers"], "names the file 'labels.txt', which is not there");
}

#[test]
fn what_a_component_may_not_have_is_shown() {
    // given a component that asks for what nobody gives
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("c.wasm"), WANTS_SECRETS).unwrap();

    // then it is told what is not granted
    let said = ok(run(folder.path(), &["inspect", "c.wasm"]));
    assert!(
        said.contains("acme:secrets/get@0.2.0  NOT GRANTED") && said.contains("no: the component imports"),
        "{said}"
    );
}

/// `(component (import "acme:secrets/get@0.2.0" (instance)))`.
const WANTS_SECRETS: &[u8] = b"\0asm\x0d\0\x01\0\x07\x03\x01\x42\0\x0a\x1b\x01\0\x16acme:secrets/get@0.2.0\x05\0";

#[test]
fn shells_complete_the_commands() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = ok(run(folder.path(), &["completions", shell]));
        assert!(script.contains("tessera") && script.contains("inspect"), "{shell}");
    }
    fs::write(folder.path().join("script"), ok(run(folder.path(), &["completions", "bash"]))).unwrap();
    ok(Command::new("bash").arg("-n").arg(folder.path().join("script")).output().unwrap());
}
