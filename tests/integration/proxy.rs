//! Components of `wasi:http/proxy`: they run as they are, under the limits of all others, and call only hosts that they
//! are granted.
//!
//! The guest is `tests/guests/proxy`, made with the crates that everybody uses. What it answers here is compared with what
//! `wasmtime serve` answers with the same bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use reqwest::Method;
use reqwest::blocking::{Client, RequestBuilder};
use serde_json::{Value, json};

use crate::harness::{
    Answer, Package, Server, client, eventually, guest, installed_beside_models, repository, send, serving,
};

/// The guest with its graph; `manifest` adds tables.
fn package(manifest: &str) -> Package {
    let manifest = format!("component = 'proxy.wasm'\n[graphs.model]\nfile = 'linear.onnx'\n{manifest}");
    Package::new(&manifest)
        .with("proxy.wasm", guest("proxy"))
        .with("linear.onnx", std::fs::read(repository("tests/fixtures/linear.onnx")).unwrap())
}

fn proxy() -> Server {
    let server = Server::start();
    server.deploy("p", &package(""));
    server
}

fn below(endpoint: &str, path: &str) -> String {
    format!("/serving-endpoints/{endpoint}/invocations{path}")
}

fn post(server: &Server, endpoint: &str, path: &str, body: &str) -> Answer {
    send(server.request(Method::POST, &below(endpoint, path)).body(body.to_owned()))
}

fn get(server: &Server, path: &str) -> Answer {
    server.get(&below("p", path))
}

#[test]
fn a_request_reaches_the_guest_as_it_is() {
    let server = proxy();
    let request = server
        .request(Method::PUT, &below("p", "/echo/a%2Fb//c/?x=1&y=%20"))
        .header("host", "model.example:8080")
        .header("x-several", "one")
        .header("x-several", "two")
        .header("cookie", "secret=1")
        .header("connection", "x-hop")
        .header("x-hop", "by hop")
        .header("content-type", "text/plain")
        .body("the body");
    let seen = send(request).ok();
    assert_eq!((&seen["method"], &seen["scheme"]), (&json!("PUT"), &json!("http")), "{seen}");
    assert_eq!(seen["target"], "/echo/a%2Fb//c/?x=1&y=%20");
    assert_eq!((&seen["authority"], &seen["body"]), (&json!("model.example:8080"), &json!("the body")));
    // With what belongs to the caller alone, and to the connection, taken out.
    assert_eq!(
        seen["headers"],
        json!({
            "accept": ["*/*"], "content-length": ["8"], "content-type": ["text/plain"], "x-several": ["one", "two"],
        })
    );

    // The endpoint itself is its root, by every method and every name of it.
    for (method, path) in [
        (Method::GET, "/serving-endpoints/p/invocations"),
        (Method::POST, "/serving-endpoints/p/invocations/"),
        (Method::POST, "/serving-endpoints/p/served-models/p-1/invocations"),
    ] {
        let seen = send(server.request(method.clone(), path)).ok();
        assert_eq!((&seen["method"], &seen["target"]), (&json!(method.as_str()), &json!("/")), "{path}");
    }
    let seen = send(server.request(Method::from_bytes(b"PURGE").unwrap(), &below("p", "/echo"))).ok();
    assert_eq!(seen["method"], "PURGE");
    // Nothing is said of a body that is not there.
    let seen = get(&server, "/echo").ok();
    assert_eq!(seen["headers"], json!({ "accept": ["*/*"] }));

    // And so are the paths of other protocols: a component may speak them.
    let seen = server.post("/v1/chat/completions", &json!({ "model": "p" })).ok();
    assert_eq!((&seen["target"], &seen["body"]), (&json!("/chat/completions"), &json!(r#"{"model":"p"}"#)), "{seen}");
}

#[test]
fn an_answer_goes_out_as_the_guest_makes_it() {
    let server = proxy();
    for code in [200, 201, 302, 404, 418, 500, 503, 599] {
        let answer = get(&server, &format!("/status/{code}"));
        assert_eq!((answer.status, answer.header("x-made-by")), (code, "the guest"));
        assert_eq!(answer.text(), "said so");
        assert_eq!((answer.header("served-model-name"), answer.header("x-request-id").len()), ("p-1", 36));
    }
    for code in [204, 304] {
        let answer = get(&server, &format!("/status/{code}"));
        assert_eq!((answer.status, answer.body.len()), (code, 0));
    }
    for code in [100, 103, 199, 600, 999] {
        let words = [&format!("status {code} is not in 200 to 599")[..]];
        get(&server, &format!("/status/{code}")).is_error(400, "BAD_REQUEST", &words);
    }

    let answer = get(&server, "/headers");
    let several: Vec<_> = answer.headers.get_all("x-several").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!((several, answer.header("cache-control")), (vec!["one", "two"], "no-store"));
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(answer.text(), "connection,transfer-encoding,upgrade");
    // It does not speak for the server.
    assert_eq!((answer.header("set-cookie"), answer.header("strict-transport-security")), ("", ""));
    assert_ne!((answer.header("x-request-id"), answer.header("served-model-name")), ("forged", "forged"));

    let answer = send(server.request(Method::HEAD, &below("p", "/stream?chunks=3&bytes=10")));
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    let chunks = get(&server, "/stream?chunks=100&bytes=70000");
    assert_eq!((chunks.status, chunks.body.len()), (200, 7_000_000));

    // What comes is answered while it comes.
    let mut both = raw(&server, "POST", "/mirror", "transfer-encoding: chunked\r\n");
    for word in ["first", "second", "third"] {
        both.write_all(format!("{:x}\r\n{word}\r\n", word.len()).as_bytes()).unwrap();
        read_until(&mut both, &format!("{word}\r\n"));
    }
    both.write_all(b"0\r\n\r\n").unwrap();
    read_until(&mut both, "0\r\n\r\n");
}

/// The head of a request to the guest, on a connection of its own.
fn raw(server: &Server, method: &str, path: &str, headers: &str) -> TcpStream {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let path = below("p", path);
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n{headers}\r\n",
        server.address, server.token
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

/// Reads up to these words; what comes after them may be read with them.
fn read_until(stream: &mut TcpStream, words: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(words) {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the connection ended after: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    text
}

#[test]
fn a_guest_that_fails_is_told_from_its_answer() {
    let server = proxy();
    server.deploy("brief", &package("[limits]\ncpu_ms = 200\n"));
    server.deploy("hasty", &package("[limits]\nwall_ms = 300\n"));
    server.deploy("small", &package("[limits]\nmemory_bytes = 33554432\n"));

    // before anything is sent: an error as of every guest
    let errors = [
        ("p", "/trap", 400, "BAD_REQUEST", vec!["p-1", "trapped"]),
        ("brief", "/loop", 400, "BAD_REQUEST", vec!["200 ms", "limits.cpu_ms"]),
        ("hasty", "/loop", 504, "DEADLINE_EXCEEDED", vec!["300 ms", "limits.wall_ms"]),
        ("small", "/memory", 400, "BAD_REQUEST", vec!["33554432 bytes of memory", "limits.memory_bytes"]),
        ("p", "/no_answer", 400, "BAD_REQUEST", vec!["ended without an answer"]),
        ("p", "/error", 400, "BAD_REQUEST", vec!["HttpProtocolError"]),
        ("p", "/handles", 400, "BAD_REQUEST", vec!["more than 1024 handles"]),
        ("p", "/fields", 400, "BAD_REQUEST", vec!["trapped"]),
        ("p", "/unfinished", 400, "BAD_REQUEST", vec!["broke its answer off"]),
        ("p", "/short", 400, "BAD_REQUEST", vec!["broke its answer off"]),
        ("p", "/huge?bytes=16777217", 400, "BAD_REQUEST", vec!["16777217 bytes", "limit is 16777216"]),
    ];
    for (endpoint, path, status, code, words) in errors {
        post(&server, endpoint, path, "").is_error(status, code, &words);
        get(&server, "/echo").ok();
    }

    // after the head: the body is cut off, never ended as if it were whole
    for (endpoint, path) in
        [("p", "/trap_after_head"), ("brief", "/loop_after_head"), ("p", "/stream?chunks=17&bytes=1048576")]
    {
        let response = server.request(Method::GET, &below(endpoint, path)).send().unwrap();
        assert_eq!(response.status(), 200, "{path}");
        assert!(response.bytes().is_err(), "{path} was whole");
    }

    // after the end of the body: it is whole, and the guest may go on
    for path in ["/trap_at_the_end", "/work_after_the_end"] {
        assert_eq!(get(&server, path).text(), "all of it");
    }
    eventually("the guest goes on", || server.guest_log("p").contains("worked after the end").then_some(()));
}

#[test]
fn limits_of_requests_hold_for_their_bodies() {
    let server = Server::with(&["--request-body-bytes-max", "1MiB"]);
    server.deploy("p", &package(""));
    // Declared, it is refused; arriving, it breaks off, and so does what the guest makes of it.
    let large = vec![b'x'; (1 << 20) + 1];
    let declared = send(server.request(Method::POST, &below("p", "/mirror")).body(large.clone()));
    declared.is_error(413, "BAD_REQUEST", &["1048576 bytes"]);
    let arriving = reqwest::blocking::Body::new(std::io::Cursor::new(large.clone()));
    let sent = server.request(Method::POST, &below("p", "/mirror")).body(arriving).send();
    assert!(sent.is_err() || sent.unwrap().bytes().is_err(), "it was mirrored as a whole");
    let whole = send(server.request(Method::POST, &below("p", "/mirror")).body(large[1..].to_vec()));
    assert_eq!((whole.status, whole.body.len()), (200, 1 << 20));
}

#[test]
fn each_request_has_an_instance_with_nothing_of_the_machine_and_its_graph() {
    let server = proxy();
    let environment = get(&server, "/environment").ok();
    assert_eq!(
        environment,
        json!({ "variables": 0, "arguments": 0, "folders": 0, "lookup": "permanent-resolver-failure",
            "socket": "access-denied" })
    );
    assert_eq!(get(&server, "/compute").ok(), json!({ "y": [3.0, 3.0, 3.0, 3.0] }), "2 * 1 + 1");

    get(&server, "/log").ok();
    let log = server.guest_log("p");
    assert!(log.contains("to stdout\n") && log.contains("to stderr\n"), "{log}");
    assert!(server.build_log("p").contains("starting it to try it"), "{}", server.build_log("p"));
}

#[test]
fn it_is_governed_as_every_endpoint() {
    let server = proxy();
    // Those who may not, and those for whom it does not exist.
    let path = below("p", "/echo");
    assert_eq!(send(server.anonymous(Method::GET, &path)).status, 401);
    let made = server.post("/api/2.0/accounts/main/workspaces", &json!({ "workspace_name": "other" })).ok();
    let other = made["admin"]["token_value"].as_str().unwrap().to_owned();
    for path in [path.as_str(), "/serving-endpoints/p/invocations"] {
        send(server.request_as(&other, Method::GET, path)).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["'p'"]);
    }

    // Two that succeed, one that fails.
    get(&server, "/echo").ok();
    get(&server, "/stream?chunks=2&bytes=3");
    post(&server, "p", "/trap", "").is_error(400, "BAD_REQUEST", &[]);
    let usage = server.get("/api/2.0/tessera/usage?by=endpoint&endpoint=p").ok();
    let row = &usage["usage"][0];
    assert_eq!((&row["requests"], &row["errors"]), (&json!(3), &json!(1)), "{usage}");
    let metrics = server.get("/api/2.0/serving-endpoints/p/metrics").text();
    assert!(metrics.contains("p-1"), "{metrics}");

    // A client that goes ends its guest.
    let mut gone = raw(&server, "GET", "/loop_after_head", "");
    read_until(&mut gone, "the beginning");
    drop(gone);
    eventually("its guest ends", || (server.metric("tessera_instances") == 0.0).then_some(()));

    // Other endpoints have no paths below theirs, and one method.
    server.deploy("native", &Package::hostile(""));
    server.post(&below("native", "/echo"), &json!({})).is_error(404, "NOT_FOUND", &["invocations/echo"]);
    let answer = server.get(&below("native", ""));
    answer.is_error(405, "BAD_REQUEST", &["understands POST"]);
    assert_eq!(answer.header("allow"), "POST");
}

#[test]
fn a_golden_request_is_answered_before_it_serves() {
    let server = Server::start();
    let manifest = "component = 'proxy.wasm'\n[golden]\nrequest = 'in'\nresponse = 'out'\ncontent_type = 'text/x'\n";
    let expected = json!({
        "method": "POST", "target": "/", "scheme": "http", "authority": "localhost", "body": "golden",
        "headers": { "content-type": ["text/x"] },
    });
    let golden = |expected: Value| {
        Package::new(manifest).with("proxy.wasm", guest("proxy")).with("in", "golden").with("out", expected.to_string())
    };
    server.deploy("good", &golden(expected.clone()));
    let version = server.push("main.default.bad", &golden(json!({ "method": "GET" })));
    server.create("bad", &serving("main.default.bad", &version)).ok();
    let state = server.settled("bad");
    assert_eq!(state["state"]["config_update"], "UPDATE_FAILED", "{state}");
}

/// A host that is called: what it was sent, as text, and its address. It answers by the path.
struct Upstream {
    address: String,
}

impl Upstream {
    fn start() -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || answer(stream));
            }
        });
        Upstream { address }
    }
}

/// One request of a connection, answered.
fn answer(stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let path = head.split(' ').nth(1).unwrap_or_default();
    let mut stream = stream;
    let mut say = |status: &str, headers: &str, body: &str| {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all((head + body).as_bytes()).ok()
    };
    match path {
        "/seen" => say("200 OK", "x-upstream: yes\r\n", &head),
        "/redirect" => say("302 Found", "location: /seen\r\n", ""),
        "/posted" => {
            let mut body = vec![0; 6];
            reader.read_exact(&mut body).ok()?;
            say("200 OK", "", &String::from_utf8_lossy(&body))
        }
        "/broken" => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").ok(),
        // Says nothing until the other side ends it.
        "/silent" => reader.read_to_end(&mut Vec::new()).ok().map(drop),
        // Answers, and keeps the body open until the other side ends it.
        "/endless" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n").ok()?;
            reader.read_to_end(&mut Vec::new()).ok().map(drop)
        }
        _ => say("404 Not Found", "", ""),
    }
}

/// A server that lets packages call these hosts, with an endpoint of a package that asks for them.
fn calling(hosts: &str, manifest: &str) -> Server {
    let server = Server::with(&["--outbound-hosts", hosts]);
    let asked: Vec<String> = hosts.split(',').map(|host| format!("'{host}'")).collect();
    server.deploy("p", &package(&format!("{manifest}[grants]\nhttp = [{}]\n", asked.join(", "))));
    server
}

#[test]
fn a_granted_host_is_called() {
    let upstream = Upstream::start();
    let server = calling(&upstream.address, "");
    let url = |path: &str| format!("http://{}{path}", upstream.address);

    let seen = post(&server, "p", "/fetch", &url("/seen?x=1")).ok();
    assert_eq!((&seen["status"], &seen["headers"]["x-upstream"]), (&json!(404), &Value::Null), "another path: {seen}");
    let seen = post(&server, "p", "/fetch", &url("/seen")).ok();
    assert_eq!((&seen["status"], &seen["headers"]["x-upstream"]), (&json!(200), &json!("yes")), "{seen}");
    let head = seen["body"].as_str().unwrap();
    assert!(head.starts_with("GET /seen HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: {}\r\n", upstream.address)), "{head}");
    assert!(head.contains("authorization: Bearer for the upstream\r\n"), "its own, not the caller's: {head}");
    assert!(!head.contains(&server.token), "{head}");
    assert_eq!(post(&server, "p", "/fetch?body=posted", &url("/posted")).ok()["body"], "posted");

    // A redirect is an answer: nobody follows it.
    let redirect = post(&server, "p", "/fetch", &url("/redirect")).ok();
    assert_eq!((&redirect["status"], &redirect["headers"]["location"]), (&json!(302), &json!("/seen")));

    // What goes wrong there is told in the words of wasi:http.
    assert_eq!(post(&server, "p", "/fetch", &url("/broken")).ok()["error"], "HttpResponseIncomplete");
    let slow = post(&server, "p", "/fetch?patience_ms=50", &url("/silent")).ok();
    assert_eq!(slow["error"], "ConnectionReadTimeout");
    let log = server.guest_log("p");
    assert!(log.contains("the answer took too long to begin"), "{log}");

    // So many at once, and no more.
    let outcomes = post(&server, "p", "/fetch_many?count=20", &url("/endless")).ok();
    assert_eq!(outcomes, json!({ "ok": 16, "ErrorCode::ConnectionLimitReached": 4 }));
    // Their places are free again: they ended with the instance.
    assert_eq!(post(&server, "p", "/fetch", &url("/seen")).ok()["status"], 200);
}

#[test]
fn a_slow_host_meets_the_deadline_of_the_request() {
    let upstream = Upstream::start();
    let server = calling(&upstream.address, "[limits]\nwall_ms = 300\n");
    let answer = post(&server, "p", "/fetch", &format!("http://{}/silent", upstream.address));
    answer.is_error(504, "DEADLINE_EXCEEDED", &["300 ms", "limits.wall_ms"]);
}

#[test]
fn every_other_host_is_refused_and_the_log_says_why() {
    let upstream = Upstream::start();
    let port = upstream.address.rsplit_once(':').unwrap().1;
    let names = format!("localhost:{port},*.internal.test:{port}");
    let server = calling(&format!("{},{names}", upstream.address), "");
    server.deploy("nobody", &package(""));
    let error = |endpoint: &str, url: &str| post(&server, endpoint, "/fetch", url).ok()["error"].clone();

    // granted none, or others
    assert_eq!(error("nobody", &format!("http://{}/seen", upstream.address)), "HttpRequestDenied");
    for url in [
        "http://127.0.0.2:80/".to_owned(),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        format!("https://127.0.0.1:{}/", 1),
        format!("http://[::1]:{port}/"),
        "http://example.com/".to_owned(),
        format!("http://internal.test:{port}/"),
    ] {
        assert_eq!(error("p", &url), "HttpRequestDenied", "{url}");
    }
    // by a name that leads to this machine, though the name is granted
    assert_eq!(error("p", &format!("http://localhost:{port}/seen")), "DestinationIpProhibited");
    assert_eq!(error("p", &format!("http://LOCALHOST.:{port}/seen")), "DestinationIpProhibited");
    // by another way to write an address, and as somebody else
    for url in
        [format!("http://127.1:{port}/"), format!("http://2130706433:{port}/"), format!("http://u@127.0.0.1:{port}/")]
    {
        assert_eq!(error("p", &url), "HttpRequestUriInvalid", "{url}");
    }
    let log = server.guest_log("p");
    for words in [
        "to 169.254.169.254:80: the package is granted 127.0.0.1:",
        &format!("to localhost:{port}: its address "),
        " is not a public one",
    ] {
        assert!(log.contains(words), "'{words}' is not in: {log}");
    }
    assert!(server.guest_log("nobody").contains("the package is granted no hosts"), "{}", server.guest_log("nobody"));
}

#[test]
fn a_package_that_asks_for_more_than_the_server_allows_is_not_deployed() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("tessera.toml");
    std::fs::write(&settings, "outbound_hosts = ['*.example.com']").unwrap();
    let mut server = Server::with(&["--config", settings.to_str().unwrap()]);
    let fails = |server: &Server, name: &str, hosts: &str, words: &[&str]| {
        let version = server.push(&format!("main.default.{name}"), &package(&format!("[grants]\nhttp = [{hosts}]\n")));
        let made = server.create(name, &serving(&format!("main.default.{name}"), &version));
        let text = if made.status == 200 { server.settled(name).to_string() } else { made.text() };
        for word in words {
            assert!(text.contains(word), "'{word}' is not in: {text}");
        }
    };
    fails(&server, "a", "'api.example.org'", &["'api.example.org'", "*.example.com", "outbound_hosts"]);
    fails(&server, "b", "'127.0.0.1'", &["'127.0.0.1'"]);
    fails(&server, "c", "'*'", &["'*'"]);
    let (_, refused) = server.register("main.default.d", &package("[grants]\nhttp = ['http://x']\n"));
    assert!(refused.text().contains("'http://x' is not a host"), "{}", refused.text());

    // And what was deployed before the operator allowed less is not served.
    server.deploy("p", &package("[grants]\nhttp = ['api.example.com']\n"));
    get(&server, "/echo").ok();
    server.terminate();
    server.wait();
    std::fs::write(&settings, "outbound_hosts = ['other.test']").unwrap();
    server.start_again();
    let answer = get(&server, "/echo");
    assert!(answer.status >= 400 && answer.text().contains("api.example.com"), "{}", answer.text());
}

#[test]
fn what_a_manifest_says_of_the_other_world_is_refused() {
    let server = Server::start();
    for (setting, line) in [("init", "init = \"request\"\n"), ("request_body", "request_body = \"chunks\"\n")] {
        let package = Package::new(&format!("component = 'proxy.wasm'\n{line}")).with("proxy.wasm", guest("proxy"));
        let (_, refused) = server.register("main.default.p", &package);
        let words = format!("'{setting}' in tessera.toml is for components of tessera:endpoint/endpoint");
        assert!(refused.text().contains(&words), "{}", refused.text());
    }
}

/// `wasmtime serve` on the same component, ended with this.
struct Wasmtime {
    child: Child,
    address: String,
}

impl Wasmtime {
    fn serve(folder: &Path) -> Wasmtime {
        let component = folder.join("proxy.wasm");
        std::fs::write(&component, guest("proxy")).unwrap();
        let mut child = Command::new(installed_beside_models("wasmtime/wasmtime"))
            .args(["serve", "-S", "cli,nn", "--addr", "127.0.0.1:0"])
            .arg(component)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("http://") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "wasmtime ended");
        }
        // What it says later must not stop it.
        thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        let (_, rest) = line.split_once("http://").unwrap();
        Wasmtime { child, address: rest.trim().trim_end_matches('/').to_owned() }
    }
}

impl Drop for Wasmtime {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request, for either host.
type Asked = (&'static str, &'static str, &'static str);

/// Those whose answers must be the same: method, path, body.
const SAME: &[Asked] = &[
    ("GET", "/", ""),
    ("POST", "/echo?x=1&y=%20", "body"),
    ("PUT", "/echo/a%2Fb//c/", "body"),
    ("DELETE", "/echo", ""),
    ("OPTIONS", "/echo", ""),
    ("PATCH", "/echo", "x"),
    ("PURGE", "/echo", "x"),
    ("HEAD", "/echo", ""),
    ("HEAD", "/status/404", ""),
    ("GET", "/status/200", ""),
    ("GET", "/status/204", ""),
    ("GET", "/status/304", ""),
    ("GET", "/status/418", ""),
    ("GET", "/status/503", ""),
    ("POST", "/mirror", "what comes"),
    ("GET", "/stream?chunks=0&bytes=0", ""),
    ("GET", "/stream?chunks=1&bytes=1", ""),
    ("GET", "/stream?chunks=50&bytes=10000", ""),
    ("GET", "/trap_at_the_end", ""),
    ("GET", "/nothing/here", ""),
];

/// How two hosts may differ: in when and over what they answer, and in what ours says beside the guest.
const OF_THE_HOST: [&str; 5] = ["date", "content-length", "transfer-encoding", "x-request-id", "served-model-name"];

fn ask(client: &Client, address: &str, (method, path, body): Asked, token: Option<&str>) -> Answer {
    let mut request: RequestBuilder = client
        .request(Method::from_bytes(method.as_bytes()).unwrap(), format!("http://{address}{path}"))
        .header("host", "model.example")
        .header("x-several", "one")
        .header("x-several", "two")
        .header("te", "trailers")
        .body(body);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    send(request)
}

#[test]
fn it_answers_what_wasmtime_serve_answers() {
    let server = proxy();
    let folder = tempfile::tempdir().unwrap();
    let wasmtime = Wasmtime::serve(folder.path());
    let client = client().build().unwrap();
    let (ours, prefix) = (server.address.clone(), below("p", ""));
    let headers = |answer: &Answer| {
        let kept = answer.headers.iter().filter(|(name, _)| !OF_THE_HOST.contains(&name.as_str()));
        let mut kept: Vec<_> = kept.map(|(name, value)| format!("{name}: {value:?}")).collect();
        kept.sort();
        kept
    };
    for &asked in SAME {
        let expected = ask(&client, &wasmtime.address, asked, None);
        let found = ask(&client, &format!("{ours}{prefix}"), asked, Some(&server.token));
        assert_eq!(found.status, expected.status, "{asked:?}");
        assert_eq!(headers(&found), headers(&expected), "{asked:?}");
        match serde_json::from_slice::<Value>(&expected.body) {
            // The one header that is hidden here and not there.
            Ok(mut seen) if seen["headers"].is_object() => {
                seen["headers"].as_object_mut().unwrap().remove("te");
                assert_eq!(found.json(), seen, "{asked:?}");
            }
            _ => assert_eq!(found.body, expected.body, "{asked:?}"),
        }
    }
    // Where a guest fails before it answers, both say so with an error.
    for path in ["/trap", "/no_answer", "/error"] {
        let there = client.get(format!("http://{}{path}", wasmtime.address)).send();
        assert!(there.is_err() || there.unwrap().status().is_server_error(), "{path}");
        assert_eq!(get(&server, path).status, 400, "{path}");
    }
}
