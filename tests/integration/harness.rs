//! A server for one test: started on a free port, asked over HTTP, stopped when the test ends.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::blocking::{Client, ClientBuilder, RequestBuilder, Response};
use reqwest::header::HeaderMap;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything may take that a test waits for. Far above what it takes, for machines that do much else.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a guest may compute, where its package does not ask for less. Long, so that on a busy machine it meets the
/// limit that a test is about and not this one.
const CPU_MS: &str = "30000";

/// Asks until there is an answer.
pub(crate) fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, ask)
}

/// The same for what takes its time.
pub(crate) fn within<T>(patience: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A client that trusts nobody yet: whom a test talks to must not depend on the machine's proxies and CAs.
pub(crate) fn client() -> ClientBuilder {
    // Installed by the first; there is one for the process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().tls_certs_only([]).timeout(PATIENCE)
}

/// What `make test` builds or installs, by the variable that says where.
fn installed(variable: &str) -> PathBuf {
    let place = std::env::var_os(variable).map(PathBuf::from);
    let place = place.unwrap_or_else(|| panic!("{variable} is not set: run `make test`"));
    assert!(place.exists(), "{variable} names {}, which is not there: run `make test`", place.display());
    place
}

/// A component of the tests, built by `make guests`.
pub(crate) fn guest(name: &str) -> Vec<u8> {
    let path = installed("TESSERA_GUESTS").join(format!("{name}.wasm"));
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; run `make test`", path.display()))
}

/// Where `make guests` builds for WebAssembly: who builds there finds the standard library built.
pub(crate) fn guest_build_folder() -> PathBuf {
    installed("TESSERA_GUESTS").with_file_name("guests-build")
}

/// A folder with a real model, installed by `make setup`.
pub(crate) fn model(name: &str) -> PathBuf {
    let path = installed("TESSERA_MODELS").join(name);
    assert!(path.exists(), "{} is not there: run `make test`", path.display());
    path
}

/// What is in the cache beside the models.
pub(crate) fn installed_beside_models(name: &str) -> PathBuf {
    let path = installed("TESSERA_MODELS").with_file_name("").join(name);
    assert!(path.exists(), "{} is not there: run `make test`", path.display());
    path
}

/// A folder or file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The binary under test, without the settings of whoever runs the tests.
pub(crate) fn tessera() -> Command {
    let mut command = Command::new(installed("TESSERA_BIN"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TESSERA_") {
            command.env_remove(name);
        }
    }
    command
}

/// A script of `tests/python`, with the clients and oracles that `make setup` installed.
pub(crate) fn python(script: &str) -> Command {
    script_with(installed("TESSERA_PYTHON"), script)
}

/// The same with clients that do not go together with those, from another environment in the cache.
pub(crate) fn python_with(environment: &str, script: &str) -> Command {
    script_with(cached(&format!("{environment}/bin/python")), script)
}

/// What `make setup` has put into the cache.
pub(crate) fn cached(path: &str) -> PathBuf {
    let python = installed("TESSERA_PYTHON");
    let cache = python.ancestors().nth(3).unwrap_or_else(|| panic!("{} is not in a cache", python.display()));
    let found = cache.join(path);
    assert!(found.exists(), "{} is not there: run `make test`", found.display());
    found
}

fn script_with(interpreter: PathBuf, script: &str) -> Command {
    let mut command = Command::new(interpreter);
    command.arg(repository("tests/python").join(script)).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A script of `tests/python`, with the Python package and the frameworks that `sdk/python/setup.sh` installed.
pub(crate) fn python_sdk(script: &str) -> Command {
    script_with(installed("TESSERA_PYTHON_SDK"), script)
}

/// Runs a script that reads JSON and prints JSON.
pub(crate) fn ask_python(command: &mut Command, input: &Value) -> Value {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A script that fails before it has read all says why on stderr.
    let _ = child.stdin.take().unwrap().write_all(input.to_string().as_bytes());
    let printed = printed(child.wait_with_output().unwrap());
    // Libraries may print before the script does.
    let last = printed.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("the script printed {printed}: {error}"))
}

/// What a script printed, which must have succeeded.
pub(crate) fn printed(output: Output) -> String {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "the script failed:\n{out}\n{err}");
    out
}

/// The files of a model version.
#[derive(Debug, Default, Clone)]
pub(crate) struct Package {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Package {
    /// A package with a manifest.
    pub(crate) fn new(manifest: &str) -> Package {
        Package::default().with("tessera.toml", manifest)
    }

    /// The files of a folder, folders in it included.
    pub(crate) fn of(folder: &Path) -> Package {
        let mut package = Package::default();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(&next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                    package.files.insert(name, fs::read(&path).unwrap());
                }
            }
        }
        package
    }

    /// The guest that misbehaves on demand, with a small graph; `manifest` adds tables to its manifest.
    pub(crate) fn hostile(manifest: &str) -> Package {
        let manifest = format!("component = 'hostile.wasm'\n[graphs.model]\nfile = 'linear.onnx'\n{manifest}");
        Package::new(&manifest)
            .with("hostile.wasm", guest("hostile"))
            .with("linear.onnx", fs::read(repository("tests/fixtures/linear.onnx")).unwrap())
    }

    pub(crate) fn with(mut self, name: &str, content: impl Into<Vec<u8>>) -> Package {
        self.files.insert(name.to_owned(), content.into());
        self
    }
}

/// A response, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{}: {error}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The JSON of an answer that must be 200.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// That this is the error `code` with `status`, whose message has all these words.
    #[track_caller]
    pub(crate) fn is_error(&self, status: u16, code: &str, words: &[&str]) {
        assert_eq!(self.status, status, "{}", self.text());
        let error = self.json();
        assert_eq!(error["error_code"], code, "{error}");
        let message = error["message"].as_str().unwrap_or_else(|| panic!("no message in {error}"));
        for word in words {
            assert!(message.contains(word), "'{word}' is not in: {message}");
        }
    }
}

/// A running server. Dropping it sends SIGTERM and waits for the end.
pub(crate) struct Server {
    /// Below it: the server's home, and what it logged.
    folder: TempDir,
    flags: Vec<String>,
    child: Child,
    /// What it wrote into its home: `host:port`, with TLS `https://host:port`.
    pub(crate) address: String,
    pub(crate) token: String,
    client: Client,
}

impl Server {
    /// A server with the standard settings, but for [`CPU_MS`].
    pub(crate) fn start() -> Server {
        Server::with(&[])
    }

    /// A server with flags of `tessera serve`.
    pub(crate) fn with(flags: &[&str]) -> Server {
        Server::with_client(flags, client().build().unwrap())
    }

    /// The same, asked by a client of the test's making.
    pub(crate) fn with_client(flags: &[&str], client: Client) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let child = spawn(&folder, &flags);
        let mut server = Server { folder, flags, child, address: String::new(), token: String::new(), client };
        server.wait_until_up();
        server
    }

    fn wait_until_up(&mut self) {
        let address = self.home().join("address");
        self.address = eventually("the server starts", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server ended with {status}:\n{}", self.log());
            }
            fs::read_to_string(&address).ok()
        });
        self.token = fs::read_to_string(self.home().join("admin.token")).unwrap().trim().to_owned();
    }

    /// Its state.
    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// What it wrote to stderr, over all its starts.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Ends the process at once, as a power cut would.
    pub(crate) fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks the process to end, without waiting for it.
    pub(crate) fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    /// Asks the process to look at its files again.
    pub(crate) fn hang_up(&self) {
        kill_process(Pid::from_child(&self.child), Signal::HUP).unwrap();
    }

    /// Waits for the end of the process.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the server ends", || child.try_wait().unwrap())
    }

    /// Tries to start again on the same home, which must be refused with all these words.
    #[track_caller]
    pub(crate) fn refused_start(&mut self, words: &[&str]) {
        let before = self.log().len();
        self.child = spawn(&self.folder, &self.flags);
        assert!(!self.wait().success(), "it started");
        let said = self.log()[before..].to_owned();
        for word in words {
            assert!(said.contains(word), "'{word}' is not in: {said}");
        }
    }

    /// Gives more flags to the next start.
    pub(crate) fn add_flags(&mut self, flags: &[&str]) {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }

    /// Starts again on the same home; the one before must have ended. The port is another one.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(&self.folder, &self.flags);
        self.wait_until_up();
    }

    pub(crate) fn url(&self, path: &str) -> String {
        let scheme = if self.address.starts_with("https://") { "" } else { "http://" };
        format!("{scheme}{}{path}", self.address)
    }

    /// A request with the administrator's token.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_as(&self.token, method, path)
    }

    /// A request with somebody's token.
    pub(crate) fn request_as(&self, token: &str, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path)).bearer_auth(token)
    }

    /// A request without credentials.
    pub(crate) fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        send(self.request(Method::POST, path).json(body))
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> Answer {
        send(self.request(Method::PUT, path).json(body))
    }

    pub(crate) fn delete(&self, path: &str, body: &Value) -> Answer {
        send(self.request(Method::DELETE, path).json(body))
    }

    /// Calls an endpoint with JSON.
    pub(crate) fn invoke(&self, endpoint: &str, body: &Value) -> Answer {
        self.post(&format!("/serving-endpoints/{endpoint}/invocations"), body)
    }

    /// A value of `/metrics`, summed over all its labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let series = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        let values: Vec<f64> = series.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(!values.is_empty(), "there is no {name} in {text}");
        values.iter().sum()
    }

    /// Registers a package as the next version of a model; the answer to finalizing says whether it is a good one.
    /// Memory of the process that is no file's page, in KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn register(&self, model: &str, package: &Package) -> (String, Answer) {
        let registry = "/api/2.0/mlflow/unity-catalog";
        let made = self.post(&format!("{registry}/registered-models/create"), &json!({ "name": model }));
        assert!(made.status == 200 || made.json()["error_code"] == "RESOURCE_ALREADY_EXISTS", "{}", made.text());
        let made = self.post(&format!("{registry}/model-versions/create"), &json!({ "name": model, "source": "test" }));
        let version = made.ok()["model_version"]["version"].as_str().unwrap().to_owned();
        for (name, content) in &package.files {
            let path = format!("/api/2.0/fs/files/Models/{}/{version}/{name}?overwrite=true", model.replace('.', "/"));
            let sent = send(self.request(Method::PUT, &path).body(content.clone()));
            assert_eq!(sent.status, 204, "{}", sent.text());
        }
        let body = json!({ "name": model, "version": version });
        let finalized = self.post(&format!("{registry}/model-versions/finalize"), &body);
        (version, finalized)
    }

    /// Registers a package that must be a good one, and answers its version.
    pub(crate) fn push(&self, model: &str, package: &Package) -> String {
        let (version, finalized) = self.register(model, package);
        assert_eq!(finalized.ok()["model_version"]["status"], "READY");
        version
    }

    /// Makes an endpoint of a config.
    pub(crate) fn create(&self, name: &str, config: &Value) -> Answer {
        self.post("/api/2.0/serving-endpoints", &json!({ "name": name, "config": config }))
    }

    /// Gives an endpoint another config.
    pub(crate) fn update(&self, name: &str, config: &Value) -> Answer {
        self.put(&format!("/api/2.0/serving-endpoints/{name}/config"), config)
    }

    /// An endpoint's state as it is now.
    pub(crate) fn endpoint(&self, name: &str) -> Value {
        self.get(&format!("/api/2.0/serving-endpoints/{name}")).ok()
    }

    /// An endpoint's state when its deploy has ended, well or not.
    pub(crate) fn settled(&self, name: &str) -> Value {
        eventually(&format!("the deploy of '{name}' ends"), || {
            let endpoint = self.endpoint(name);
            (endpoint["state"]["config_update"] != "IN_PROGRESS").then_some(endpoint)
        })
    }

    /// A package as the endpoint `name`, which must become ready, from the model `main.default.NAME`.
    pub(crate) fn deploy(&self, name: &str, package: &Package) -> Value {
        let model = format!("main.default.{name}");
        let version = self.push(&model, package);
        self.create(name, &serving(&model, &version)).ok();
        let endpoint = self.settled(name);
        assert_eq!(endpoint["state"], json!({ "ready": "READY", "config_update": "NOT_UPDATING" }), "{endpoint:#}");
        endpoint
    }

    /// What the guest of an endpoint's only entity wrote.
    pub(crate) fn guest_log(&self, endpoint: &str) -> String {
        self.logs(endpoint, "logs")
    }

    /// What its last deploy did.
    pub(crate) fn build_log(&self, endpoint: &str) -> String {
        self.logs(endpoint, "build-logs")
    }

    fn logs(&self, endpoint: &str, kind: &str) -> String {
        let state = self.endpoint(endpoint);
        let config = state.get("pending_config").or(state.get("config")).unwrap();
        let entity = config["served_entities"][0]["name"].as_str().unwrap();
        let path = format!("/api/2.0/serving-endpoints/{endpoint}/served-models/{entity}/{kind}");
        self.get(&path).ok()["logs"].as_str().unwrap().to_owned()
    }
}

/// The config with one model version and nothing else said.
pub(crate) fn serving(model: &str, version: &str) -> Value {
    json!({ "served_entities": [{ "entity_name": model, "entity_version": version }] })
}

/// The same with a setting for the guest.
pub(crate) fn serving_with(model: &str, version: &str, setting: (&str, &str)) -> Value {
    let (name, value) = setting;
    let variables = json!({ name: value });
    json!({ "served_entities": [{ "entity_name": model, "entity_version": version, "environment_vars": variables }] })
}

/// Sends a request and reads the answer.
pub(crate) fn send(request: RequestBuilder) -> Answer {
    read(request.send().unwrap())
}

pub(crate) fn read(response: Response) -> Answer {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, body: response.bytes().unwrap().to_vec() }
}

fn spawn(folder: &TempDir, flags: &[String]) -> Child {
    let home = folder.path().join("home");
    // That of a killed server would be taken for the new one's.
    let _ = fs::remove_file(home.join("address"));
    let log = File::options().create(true).append(true).open(folder.path().join("log")).unwrap();
    tessera()
        .args(["serve", "--listen", "127.0.0.1:0", "--sandbox-cpu-ms", CPU_MS, "--home"])
        .arg(home)
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
        if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        self.terminate();
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
