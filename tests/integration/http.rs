//! HTTP at its edges: requests that are wrong, large or slow; streams; the graceful end.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Package, Server, client, eventually, model, read, send};

/// A connection that sends `text` as it is. Reads on it end after a time, so that a test fails and does not hang.
fn connect(server: &Server, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

/// All that the server sends until it closes the connection.
fn read_to_close(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        // A server that closes without having read all resets the connection.
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the connection is still open: {error}"),
    }
    String::from_utf8(bytes).unwrap()
}

/// The head of an invocation with more headers; the body is for the caller to send.
fn head(server: &Server, headers: &str) -> String {
    format!(
        "POST /serving-endpoints/echo/invocations HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\
         content-type: application/octet-stream\r\nconnection: close\r\n{headers}\r\n",
        server.address, server.token
    )
}

/// The JSON after the head of a raw response.
fn body(response: &str) -> Value {
    let (_, body) = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: '{response}'"));
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{response}: {error}"))
}

fn echo(flags: &[&str]) -> Server {
    let server = Server::with(flags);
    server.deploy("echo", &Package::hostile(""));
    server
}

#[test]
fn what_is_not_json_or_not_there_is_told_apart() {
    let server = echo(&[]);
    let post = |path: &str, body: &'static str| {
        send(server.request(Method::POST, path).header("content-type", "application/json").body(body))
    };

    // JSON that is none, for a guest and for the control plane
    post("/serving-endpoints/echo/invocations", "{ not json").is_error(
        400,
        "BAD_REQUEST",
        &["JSON", "line 1 column 3"],
    );
    post("/api/2.0/serving-endpoints", "{ not json").is_error(400, "BAD_REQUEST", &["line 1 column 3"]);
    post("/v1/embeddings", "{ not json").is_error(400, "BAD_REQUEST", &["'model'"]);

    // an endpoint that does not exist, in the words of the real service
    let answer = server.invoke("x", &json!({}));
    answer.is_error(404, "RESOURCE_DOES_NOT_EXIST", &[]);
    let error = answer.json();
    assert_eq!(error["message"], "Endpoint with name 'x' does not exist.");
    let details = json!([{
        "@type": "type.googleapis.com/google.rpc.RequestInfo",
        "request_id": answer.header("x-request-id"),
        "serving_data": "",
    }]);
    assert_eq!(error["details"], details);
    post("/v1/embeddings", r#"{"model": "x", "input": ""}"#).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["'x'"]);
    let answer = post("/v2/models/x/infer", "{}");
    assert_eq!((answer.status, answer.json()), (404, json!({ "error": "Endpoint with name 'x' does not exist." })));

    // a path, a method, a served model that do not exist
    server.get("/nothing/here").is_error(404, "NOT_FOUND", &["GET /nothing/here"]);
    let answer = server.get("/serving-endpoints/echo/invocations");
    answer.is_error(405, "BAD_REQUEST", &["GET", "understands POST"]);
    assert_eq!(answer.header("allow"), "POST");
    let path = "/serving-endpoints/echo/served-models/y/invocations";
    server.post(path, &json!({})).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["'y'"]);
}

#[test]
fn nobody_gets_in_without_a_token() {
    let server = echo(&[]);
    let client = client().build().unwrap();
    let get = |path: &str| client.get(server.url(path));

    // what everybody may ask
    for path in ["/health", "/ready", "/metrics", "/.well-known/databricks-config", "/v2/health/live"] {
        assert_eq!(get(path).send().unwrap().status(), 200, "{path}");
    }
    // what nobody may ask without a token, or with a wrong one
    for path in ["/api/2.0/serving-endpoints", "/api/2.0/preview/scim/v2/Me", "/v2/models/echo"] {
        for request in [get(path), get(path).bearer_auth("wrong"), get(path).bearer_auth("")] {
            let answer = send(request);
            assert_eq!((answer.status, answer.header("www-authenticate")), (401, "Bearer"), "{path}");
        }
    }
    let answer = send(client.post(server.url("/serving-endpoints/echo/invocations")).body("{}"));
    answer.is_error(401, "UNAUTHENTICATED", &["Authorization: Bearer"]);

    // and the token as the password of `token`, as `curl -u` sends it
    let answer = send(get("/api/2.0/preview/scim/v2/Me").basic_auth("token", Some(&server.token)));
    let groups = answer.ok()["groups"].clone();
    assert!(groups.as_array().unwrap().iter().any(|group| group["display"] == "admins"), "{groups}");
}

#[test]
fn every_answer_is_identified_and_counted() {
    let server = echo(&[]);
    let ask = || server.invoke("echo", &json!({ "do": "counter" }));

    let (first, second) = (ask(), ask());
    assert_eq!(first.header("served-model-name"), "echo-1");
    assert_eq!(first.header("x-request-id").len(), 36);
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));

    assert_eq!(server.get("/health").ok(), json!({ "status": "ok" }));
    assert_eq!(server.get("/ready").ok(), json!({ "status": "ready" }));
    let metrics = server.get("/metrics").text();
    let workspace = server.get("/.well-known/databricks-config").ok()["workspace_id"].as_str().unwrap().to_owned();
    let line = format!(
        "tessera_invocations_total{{workspace=\"{workspace}\",endpoint=\"echo\",served_entity=\"echo-1\",class=\"2xx\"}} 2"
    );
    assert!(metrics.contains(&line) && metrics.ends_with("# EOF\n"), "{metrics}");
}

#[test]
fn a_body_over_the_limit_is_refused_declared_or_not() {
    // given a server that takes bodies of 1 KiB
    let server = echo(&["--request-body-bytes-max", "1KiB"]);

    // when more is announced, then it is refused before it is sent
    let response = read_to_close(connect(&server, &head(&server, "content-length: 1025\r\n")));
    assert!(response.starts_with("HTTP/1.1 413 "), "{response}");
    assert!(body(&response)["message"].as_str().unwrap().contains("limit of 1024 bytes"), "{response}");

    // when more comes unannounced, then as soon as it is over
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let request = head(&server, "transfer-encoding: chunked\r\n");
    let response = read_to_close(connect(&server, &format!("{request}{chunk}1\r\nx\r\n")));
    assert!(response.starts_with("HTTP/1.1 413 "), "{response}");

    // and as much as is allowed is taken either way
    let response = read_to_close(connect(&server, &format!("{request}{chunk}0\r\n\r\n")));
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with(&"x".repeat(1024)), "{response}");
    let request = head(&server, "content-length: 1024\r\n");
    let response = read_to_close(connect(&server, &format!("{request}{}", "x".repeat(1024))));
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
}

#[test]
fn slow_clients_are_let_go() {
    let server = echo(&["--header-timeout-ms", "300", "--body-timeout-ms", "300"]);

    // a connection that says nothing, half a head, and nothing more after a request: closed
    assert_eq!(read_to_close(connect(&server, "")), "");
    let response = read_to_close(connect(&server, "GET /health HTTP/1.1\r\nhost: x\r\nx-half"));
    assert!(response.is_empty() || response.starts_with("HTTP/1.1 408 "), "{response}");
    let response = read_to_close(connect(&server, "GET /health HTTP/1.1\r\nhost: x\r\n\r\n"));
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");

    // half a body: told so
    let response = read_to_close(connect(&server, &format!("{}half", head(&server, "content-length: 10\r\n"))));
    assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
    assert!(body(&response)["message"].as_str().unwrap().contains("within 300 ms"), "{response}");

    // and quick clients are served
    server.invoke("echo", &json!({ "do": "counter" })).ok();
}

#[test]
fn a_body_that_breaks_off_harms_nobody() {
    let server = echo(&[]);
    let stream = connect(&server, &format!("{}half", head(&server, "content-length: 10\r\n")));
    stream.shutdown(Shutdown::Write).unwrap();
    let response = read_to_close(stream);
    assert!(response.is_empty() || response.starts_with("HTTP/1.1 400 "), "{response}");
    server.invoke("echo", &json!({ "do": "counter" })).ok();
}

#[test]
fn heads_are_bounded() {
    let server = echo(&[]);
    let get = |path: &str, headers: &str| {
        read_to_close(connect(
            &server,
            &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n"),
        ))
    };

    let response = get(&format!("/health?{}", "x".repeat(9000)), "");
    assert!(response.starts_with("HTTP/1.1 414 "), "{response}");
    assert!(body(&response)["message"].as_str().unwrap().contains("8192 bytes"), "{response}");
    let many: String = (0..70).map(|index| format!("x-{index}: y\r\n")).collect();
    let response = get("/health", &many);
    assert!(response.starts_with("HTTP/1.1 431 "), "{response}");
    let response = get("/health", &format!("x-large: {}\r\n", "y".repeat(100 << 10)));
    assert!(response.is_empty() || response.starts_with("HTTP/1.1 431 "), "{response}");
    let response = read_to_close(connect(&server, "\u{1}\u{2}nonsense\r\n\r\n"));
    assert!(response.is_empty() || response.starts_with("HTTP/1.1 400 "), "{response}");

    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn http2_without_tls_works() {
    let server = echo(&[]);
    let client = client().http2_prior_knowledge().build().unwrap();
    let request = client.post(server.url("/serving-endpoints/echo/invocations")).bearer_auth(&server.token);
    let response = request.json(&json!({ "do": "counter" })).send().unwrap();
    assert_eq!(response.version(), reqwest::Version::HTTP_2);
    assert_eq!(read(response).ok(), json!({ "counter": 1 }));
}

/// Far more than the sockets on both sides hold.
const STREAM: (usize, usize) = (2000, 64 << 10);

/// Begins a streamed answer of [`STREAM`] and reads the first byte of it.
fn begin_stream(server: &Server) -> reqwest::blocking::Response {
    let (chunks, bytes) = STREAM;
    let body = json!({ "do": "stream", "chunks": chunks, "bytes": bytes });
    let request = server.request(Method::POST, "/serving-endpoints/echo/invocations").json(&body);
    let mut response = request.send().unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.content_length(), None, "it is sent as it is made");
    response.read_exact(&mut [0]).unwrap();
    response
}

#[test]
fn a_stream_goes_as_fast_as_its_client_and_ends_with_it() {
    let server = echo(&["--response-bytes-max", "256MiB"]);

    // when a client has read the first byte of a long stream, then the guest still makes the rest
    let mut response = begin_stream(&server);
    assert_eq!(server.metric("tessera_instances"), 1.0, "the guest waits for the client");

    // and all of it comes, and the instance is gone
    let mut rest = Vec::new();
    response.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len() + 1, STREAM.0 * STREAM.1);
    eventually("the instance ends", || (server.metric("tessera_instances") == 0.0).then_some(()));

    // when a client goes away in the middle, then so does the guest
    let response = begin_stream(&server);
    assert_eq!(server.metric("tessera_instances"), 1.0);
    drop(response);
    eventually("the instance ends", || (server.metric("tessera_instances") == 0.0).then_some(()));
}

#[test]
fn a_running_request_outlives_sigterm_and_a_new_one_does_not_begin() {
    // given a client in the middle of its answer
    let mut server = echo(&["--response-bytes-max", "256MiB"]);
    let mut response = begin_stream(&server);

    // when the server is told to end, then it takes no new connections
    server.terminate();
    eventually("the server stops listening", || TcpStream::connect(&server.address).is_err().then_some(()));

    // and the client gets the rest, and then the server ends without a complaint
    let mut rest = Vec::new();
    response.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len() + 1, STREAM.0 * STREAM.1);
    drop(response);
    assert!(server.wait().success(), "{}", server.log());
    assert!(!server.home().join("address").exists(), "nobody is sent to a server that is gone");
}

#[test]
fn what_runs_at_the_end_of_the_drain_time_is_cut_off() {
    let mut server = echo(&["--response-bytes-max", "256MiB", "--drain-timeout-ms", "200"]);
    let mut response = begin_stream(&server);

    server.terminate();

    assert!(server.wait().success(), "{}", server.log());
    response.read_to_end(&mut Vec::new()).unwrap_err();
}

#[test]
fn too_much_at_once_is_refused_at_once() {
    // given a server with one place, and no queue before it
    let server =
        echo(&["--concurrent-requests-max", "1", "--queued-requests-max", "0", "--response-bytes-max", "256MiB"]);

    // when that place is taken, then the next is told to come back
    let response = begin_stream(&server);
    let answer: Answer = server.invoke("echo", &json!({ "do": "counter" }));
    answer.is_error(429, "RESOURCE_EXHAUSTED", &["Too many concurrent requests", "concurrent_requests_max"]);
    assert_eq!(answer.header("retry-after"), "1");

    // and is served once it is free
    drop(response);
    eventually("a place is free", || (server.invoke("echo", &json!({ "do": "counter" })).status == 200).then_some(()));
}

#[test]
fn a_guest_sees_headers_but_no_credentials() {
    let server = echo(&[]);

    // when a guest asks for headers, whatever the case of their names
    let names = ["Authorization", "authorization", "AUTHORIZATION", "COOKIE", "cookie", "x-custom", "x-absent"];
    let request = server.request(Method::POST, "/serving-endpoints/echo/invocations");
    let request = request.header("cookie", "session=secret").header("x-custom", "shown");
    let answer = send(request.json(&json!({ "do": "headers", "names": names }))).ok();

    // then it gets those of its caller's own making, and none that lets it act as its caller
    assert_eq!(answer, json!({ "values": [null, null, null, null, null, "shown", null] }));
}

#[test]
fn metrics_are_not_for_those_behind_a_proxy() {
    let server = echo(&[]);
    let client = client().build().unwrap();

    // when a proxy on this machine passes on somebody's request, then its address does not count as theirs
    for header in ["x-forwarded-for", "X-Forwarded-For"] {
        let answer = send(client.get(server.url("/metrics")).header(header, "203.0.113.7"));
        assert!([401, 404].contains(&answer.status), "{}: {}", answer.status, answer.text());
        assert!(!answer.text().contains("tessera_"), "{}", answer.text());
        let answer = send(client.get(server.url("/metrics")).header(header, "203.0.113.7").bearer_auth("wrong"));
        assert!([401, 404].contains(&answer.status), "{}: {}", answer.status, answer.text());
    }

    // and the administrator's token does
    let answer = send(server.request(Method::GET, "/metrics").header("x-forwarded-for", "203.0.113.7"));
    assert!(answer.status == 200 && answer.text().ends_with("# EOF\n"), "{}", answer.text());
}

#[test]
fn a_body_in_chunks_reaches_its_guest_while_it_arrives() {
    // given a package that wants its bodies in chunks
    let server = Server::with(&["--request-body-bytes-max", "1MiB"]);
    let package = Package::hostile("");
    let manifest = String::from_utf8(package.files["tessera.toml"].clone()).unwrap();
    server.deploy("echo", &package.with("tessera.toml", format!("request_body = 'chunks'\n{manifest}")));
    let post = |body: reqwest::blocking::Body| {
        let request = server.request(Method::POST, "/serving-endpoints/echo/invocations");
        send(request.header("content-type", "application/x-count-chunks").body(body))
    };

    // when a body of the largest size comes, announced or not, then all of it arrives, in more than one piece
    let whole = || vec![b'x'; 1 << 20];
    let unannounced = |body: Vec<u8>| reqwest::blocking::Body::new(std::io::Cursor::new(body));
    for answer in [post(whole().into()), post(unannounced(whole()))] {
        let answer = answer.ok();
        assert_eq!(answer["bytes"], 1 << 20);
        assert!(answer["chunks"].as_u64().unwrap() >= 16, "a chunk has at most 64 KiB: {answer}");
    }
    assert_eq!(post(Vec::new().into()).ok(), json!({ "bytes": 0, "chunks": 0 }));
    // and a guest that wants it whole gets it whole
    assert_eq!(server.invoke("echo", &json!({ "do": "counter" })).ok(), json!({ "counter": 1 }));

    // and one byte more is refused, announced or not
    for body in [vec![b'x'; (1 << 20) + 1], vec![b'x'; 4 << 20]] {
        for answer in [post(body.clone().into()), post(unannounced(body.clone()))] {
            answer.is_error(413, "BAD_REQUEST", &["limit"]);
        }
    }
    assert_eq!(post(whole().into()).ok()["bytes"], 1 << 20);
}

#[test]
fn a_refused_upload_is_told_so_however_long_it_is() {
    // given a version that is finalized
    let server = echo(&[]);
    let path = "/api/2.0/fs/files/Models/main/default/echo/1/linear.onnx?overwrite=true";

    // when somebody uploads to it, then they see the refusal and not a reset connection
    for _ in 0..5 {
        let client = client().build().unwrap();
        let request = client.put(server.url(path)).bearer_auth(&server.token).body(vec![0; 8 << 20]);
        let answer = send(request);
        answer.is_error(409, "RESOURCE_CONFLICT", &[]);
    }
    assert_eq!(server.get(path).body, Package::hostile("").files["linear.onnx"]);
}

#[test]
fn open_inference_knows_which_versions_there_are() {
    let server = Server::start();
    server.deploy("iris", &Package::of(&model("iris")));
    let tensor =
        json!({ "inputs": [{ "name": "X", "datatype": "FP32", "shape": [1, 4], "data": [5.1, 3.5, 1.4, 0.2] }] });

    // the version that serves
    let metadata = server.get("/v2/models/iris/versions/1").ok();
    assert_eq!(metadata, server.get("/v2/models/iris").ok());
    assert_eq!(metadata["versions"], json!(["1"]));
    assert_eq!(server.get("/v2/models/iris/versions/1/ready").ok()["ready"], true);
    let answer = server.post("/v2/models/iris/versions/1/infer", &tensor).ok();
    assert_eq!(answer["outputs"], server.post("/v2/models/iris/infer", &tensor).ok()["outputs"]);

    // and those that do not
    for version in ["2", "0", "latest"] {
        for (method, rest) in [(Method::GET, ""), (Method::GET, "/ready"), (Method::POST, "/infer")] {
            let path = format!("/v2/models/iris/versions/{version}{rest}");
            let answer = send(server.request(method, &path).json(&tensor));
            assert_eq!(answer.status, 404, "{path}: {}", answer.text());
            assert!(answer.json()["error"].as_str().unwrap().contains(version), "{path}: {}", answer.text());
        }
    }
}
