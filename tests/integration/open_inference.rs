//! The Open Inference Protocol, over REST and gRPC: with the clients that people use for it, unmodified, and by hand
//! where these do only what is right.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::Method;
use reqwest::blocking::{Client, RequestBuilder};
use serde_json::{Value, json};

use crate::harness::{
    Answer, Package, Server, client, eventually, model, printed, python_with, read, repository, send, tessera,
};
use crate::tls::Tls;

const SERVICE: &str = "/inference.GRPCInferenceService";

/// A graph of the fixtures behind the stock component.
fn tensors(graph: &str) -> Package {
    let manifest = format!("component = 'stock:scoring'\n[graphs.model]\nfile = '{graph}'\n");
    Package::new(&manifest).with(graph, std::fs::read(repository("tests/fixtures").join(graph)).unwrap())
}

fn with_linear() -> Server {
    let server = Server::start();
    server.deploy("linear", &tensors("linear.onnx"));
    server
}

/// What asks over HTTP/2 without TLS, as clients of gRPC do.
fn http2() -> Client {
    client().http2_prior_knowledge().build().unwrap()
}

fn grpc(server: &Server, client: &Client, token: Option<&str>, method: &str) -> RequestBuilder {
    let request = client.post(server.url(method)).header("content-type", "application/grpc");
    match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&[0], &(message.len() as u32).to_be_bytes()[..], message].concat()
}

/// A field of a message: text, or another message.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(value.len()).unwrap()], value].concat()
}

/// A request for `linear` with one row, whose bytes lie apart.
fn linear_request() -> Vec<u8> {
    let tensor = [field(1, b"x"), field(2, b"FP32"), field(3, &[1, 4])].concat();
    let row: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    framed(&[field(1, b"linear"), field(5, &tensor), field(7, &row)].concat())
}

/// gRPC's status, where an error is all of the answer; of others it comes behind the body, which reqwest does not show.
fn status(answer: &Answer) -> &str {
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/grpc"), "{}", answer.text());
    answer.header("grpc-status")
}

/// Python prints them as wide as they become there.
fn floats(values: &Value) -> Vec<f32> {
    values.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

#[test]
fn tritonclient_works_over_http_and_grpc() {
    let server = with_linear();
    server.deploy("types", &tensors("types.onnx"));
    server.deploy("text", &Package::of(&model("minilm")));

    let mut script = python_with("open-inference", "open_inference_triton.py");
    let output = printed(script.args([&server.address, &server.token]).output().unwrap());

    // What it got for the texts is what OpenAI's clients get.
    let embedded: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    let asked = json!({ "input": ["a text", "ein Text in Köln", "€"] });
    let answer = server.invoke("text", &asked).ok();
    for (row, expected) in embedded.as_array().unwrap().iter().zip(answer["data"].as_array().unwrap()) {
        assert_eq!(floats(row), floats(&expected["embedding"]));
    }
    let usage = server.get("/api/2.0/tessera/usage?by=endpoint&endpoint=linear").ok();
    assert!(usage["usage"][0]["requests"].as_u64().unwrap() > 50, "{usage}");
}

#[test]
fn kserve_works_over_rest_and_grpc() {
    let server = with_linear();
    let mut script = python_with("open-inference", "open_inference_kserve.py");
    printed(script.args([&server.address, &server.token]).output().unwrap());
}

#[test]
fn tritonclient_works_over_tls_on_the_same_port() {
    let tls = Tls::start(&[]);
    tls.server.deploy("linear", &tensors("linear.onnx"));
    // By its name, which is in the certificate.
    let port = tls.socket().rsplit(':').next().unwrap();
    let mut script = python_with("open-inference", "open_inference_triton.py");
    script.args([&format!("localhost:{port}"), &tls.server.token]).arg(tls.path("ca.pem"));
    printed(script.output().unwrap());
}

#[test]
fn every_method_of_grpc_lets_in_whom_it_should_and_nobody_else() {
    // given somebody of another workspace, and users with different permissions
    let server = with_linear();
    let other = server.post("/api/2.0/accounts/main/workspaces", &json!({ "workspace_name": "other" })).ok();
    let stranger = other["admin"]["token_value"].as_str().unwrap().to_owned();
    let user = |name: &str| {
        let made = server.post("/api/2.0/preview/scim/v2/Users", &json!({ "userName": name }));
        assert_eq!(made.status, 201, "{}", made.text());
        let body = json!({ "user_name": name });
        let token = server.post("/api/2.0/token-management/on-behalf-of/tokens", &body).ok();
        token["token_value"].as_str().unwrap().to_owned()
    };
    let [member, viewer, querier] = ["member", "viewer", "querier"].map(user);
    let id = server.endpoint("linear")["id"].as_str().unwrap().to_owned();
    let grants = [("viewer", "CAN_VIEW"), ("querier", "CAN_QUERY")]
        .map(|(user, level)| json!({ "user_name": user, "permission_level": level }));
    server.put(&format!("/api/2.0/permissions/serving-endpoints/{id}"), &json!({ "access_control_list": grants })).ok();

    // when each asks for each, then it gets an answer, or the status of its refusal
    let callers = [None, Some("dapi00000000000000000000000000000000"), Some(&*stranger), Some(&*member)];
    let callers = callers.into_iter().chain([Some(&*viewer), Some(&*querier), Some(&*server.token)]);
    let anyone = ["", "", "", "", "", "", ""];
    let principals = ["16", "16", "", "", "", "", ""];
    let views = ["16", "16", "5", "7", "", "", ""];
    let queries = ["16", "16", "5", "7", "7", "", ""];
    let client = http2();
    let callers: Vec<Option<&str>> = callers.collect();
    for (method, expected) in [
        ("ServerLive", anyone),
        ("ServerReady", anyone),
        ("ServerMetadata", anyone),
        ("RepositoryIndex", principals),
        ("ModelReady", views),
        ("ModelStatistics", views),
        ("ModelMetadata", queries),
        ("ModelConfig", queries),
        ("ModelInfer", queries),
    ] {
        let message = match method {
            "ModelInfer" => linear_request(),
            "RepositoryIndex" => framed(b""),
            _ => framed(&field(1, b"linear")),
        };
        for (token, expected) in callers.iter().zip(expected) {
            let request = grpc(&server, &client, *token, &format!("{SERVICE}/{method}"));
            let answer = send(request.body(message.clone()));
            assert_eq!(status(&answer), expected, "{method} as {token:?}: {}", answer.header("grpc-message"));
            let sees = answer.body.windows(6).any(|text| text == b"linear");
            let may_see =
                !matches!(method, "RepositoryIndex") || [&*stranger, &*member].iter().all(|it| *token != Some(it));
            assert!(may_see || !sees, "{method} shows what is hidden to {token:?}");
        }
    }
    // and on a stream each request is asked for by itself
    for (token, words) in [(&stranger, "does not exist"), (&member, "CAN_QUERY"), (&viewer, "CAN_QUERY")] {
        let request = grpc(&server, &client, Some(token), &format!("{SERVICE}/ModelStreamInfer"));
        let answer = send(request.body(linear_request()));
        assert_eq!((status(&answer), answer.text().contains(words)), ("", true), "{}", answer.text());
    }
    let request = grpc(&server, &client, None, &format!("{SERVICE}/ModelStreamInfer"));
    assert_eq!(status(&send(request.body(linear_request()))), "16");

    // and who was denied is in the audit log
    eventually("denied accesses in the audit log", || {
        let output = tessera().args(["audit", "list", "--json", "--home"]).arg(server.home()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ["grpc.model_infer", "grpc.model_stream_infer"].iter().all(|action| text.contains(action)).then_some(())
    });
}

#[test]
fn what_is_no_request_of_grpc_is_refused() {
    let server = with_linear();
    let (client, infer) = (http2(), format!("{SERVICE}/ModelInfer"));
    let ask = |method: &str, body: Vec<u8>| send(grpc(&server, &client, Some(&server.token), method).body(body));
    let good = linear_request();
    let too_long = [&[0], &u32::MAX.to_be_bytes()[..], b"x"].concat();
    let short = [&field(1, b"linear")[..], &field(7, b"1234")].concat();
    for (body, code, words) in [
        (vec![], "3", "cut off"),
        (good[..good.len() - 1].to_vec(), "3", "cut off"),
        ([&good[..], &good].concat(), "3", "there are more"),
        (vec![7, 0, 0, 0, 0], "3", "begins with 0 or 1"),
        (too_long, "8", "the limit is"),
        (framed(b"\xff\xff\xff"), "3", "damaged"),
        (vec![1, 0, 0, 0, 1, b'x'], "3", "grpc-encoding does not say how"),
        (framed(&short), "3", "there are 0 inputs, but 1"),
        (framed(b""), "5", "''"),
    ] {
        let answer = ask(&infer, body.clone());
        assert_eq!(status(&answer), code, "{body:?}: {}", answer.header("grpc-message"));
        assert!(answer.header("grpc-message").contains(words), "{}", answer.header("grpc-message"));
    }
    assert_eq!(status(&ask(&format!("{SERVICE}/Nothing"), good.clone())), "12");
    assert_eq!(status(&ask("/nowhere", good.clone())), "12");
    // By another protocol.
    let answer = send(server.request(Method::POST, &infer).body(good.clone()));
    answer.is_error(415, "BAD_REQUEST", &["HTTP/2"]);
    // What a caller cannot wait for ends as it should, and one that says nonsense is told.
    let timed = |timeout: &str| {
        let request = grpc(&server, &client, Some(&server.token), &infer).header("grpc-timeout", timeout);
        send(request.body(good.clone()))
    };
    assert_eq!(status(&timed("1n")), "4");
    assert_eq!(status(&timed("soon")), "3");
    assert_eq!(status(&timed("60S")), "");

    // Limits hold as they do elsewhere.
    let limit = json!({ "rate_limits": [{ "calls": 0, "renewal_period": "minute", "key": "endpoint" }] });
    server.put("/api/2.0/serving-endpoints/linear/ai-gateway", &limit).ok();
    assert_eq!(status(&ask(&infer, good)), "7");
}

/// A request with binary tensors, whose header says `length`.
fn binary(server: &Server, length: &str, body: Vec<u8>) -> Answer {
    let request = server.request(Method::POST, "/v2/models/linear/infer");
    send(request.header("inference-header-content-length", length).body(body))
}

#[test]
fn binary_requests_that_do_not_fit_are_refused_with_the_reason() {
    let server = with_linear();
    let json = |size: &str, shape: &str| {
        format!(
            r#"{{"inputs": [{{"name": "x", "datatype": "FP32", "shape": {shape},
            "parameters": {{"binary_data_size": {size}}}}}], "parameters": {{"binary_data_output": true}}}}"#
        )
    };
    let right = json("16", "[1, 4]");
    let row: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let body = |json: &str, tensors: &[u8]| [json.as_bytes(), tensors].concat();

    let answer = binary(&server, &right.len().to_string(), body(&right, &row));
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/octet-stream"), "{}", answer.text());
    let length: usize = answer.header("inference-header-content-length").parse().unwrap();
    let head: Value = serde_json::from_slice(&answer.body[..length]).unwrap();
    assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], 16, "{head}");
    let doubled: Vec<u8> = [3f32, 5.0, 7.0, 9.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(answer.body[length..], doubled);

    let huge = json("16", "[1152921504606846977, 4]");
    let overflowing = json("16", "[4294967295, 4]");
    for (json, length, tensors, words) in [
        (&right, "9999".to_owned(), &row[..], "Inference-Header-Content-Length is 9999, but the body has"),
        (&right, "-1".to_owned(), &row[..], "Inference-Header-Content-Length is '-1'"),
        (&right, "99999999999999999999999".to_owned(), &row[..], "must be a number of bytes"),
        (&right, "20".to_owned(), &row[..], "failed to parse the request JSON buffer"),
        (&right, right.len().to_string(), &row[..15], "15 bytes are left in the request"),
        (&right, right.len().to_string(), &[&row[..], b"more"].concat()[..], "4 bytes are left behind"),
        (&huge, huge.len().to_string(), &row[..], "must be a list of sizes"),
        (&overflowing, overflowing.len().to_string(), &row[..], "its shape takes"),
    ] {
        let answer = binary(&server, &length, body(json, tensors));
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(answer.status == 400 && error.contains(words), "{} {error}", answer.status);
    }
}

#[test]
fn errors_have_the_protocols_form_on_all_its_paths() {
    let server = with_linear();
    let error = |answer: Answer| (answer.status, answer.json()["error"].as_str().unwrap().to_owned());
    let (status, text) = error(server.get("/v2/models/nowhere"));
    assert!(status == 404 && text.contains("nowhere"), "{status} {text}");
    assert_eq!(error(send(server.request(Method::DELETE, "/v2"))).0, 405);
    assert_eq!(error(send(server.request(Method::POST, "/v2/repository/index").body("[]"))).0, 400);
    assert_eq!(error(send(server.anonymous(Method::GET, "/v2/models/linear"))).0, 401);
    assert_eq!(error(server.get("/v2/models/linear/versions/7/stats")).0, 404);

    // What is not ready is in the index, and not among those that are.
    server.post("/api/2.0/serving-endpoints/linear/config:stop", &json!({})).ok();
    let index = |body: &Value| server.post("/v2/repository/index", body).ok();
    let stopped = json!([{ "name": "linear", "version": "1", "state": "UNAVAILABLE", "reason": "stopped" }]);
    assert_eq!(index(&json!({})), stopped);
    assert_eq!(index(&json!({ "ready": true })), json!([]));
    assert_eq!(server.get("/v2/models/linear/ready").status, 503);
}

#[test]
fn compressed_bodies_are_understood_within_bounds() {
    // given a server that takes a megabyte, and zeros of more that pack to little
    let server = Server::with(&["--request-body-bytes-max", "1MiB"]);
    server.deploy("linear", &tensors("linear.onnx"));
    let send = |encoding: &str, body: &[u8]| {
        let request = server.request(Method::POST, "/v2/models/linear/infer").header("content-encoding", encoding);
        read(request.body(body.to_vec()).send().unwrap())
    };
    let bomb = gzip_of_zeros(4 << 20);
    assert!(bomb.len() < 100_000, "{}", bomb.len());

    // when it is sent, then it is refused as any body that is too large
    let answer = send("gzip", &bomb);
    assert!(answer.status == 413 && answer.text().contains("unpacks to more than"), "{}", answer.text());
    // and what is not what it says, or is not understood, is named
    let answer = send("gzip", b"{}");
    assert!(answer.status == 400 && answer.text().contains("not gzip"), "{}", answer.text());
    let answer = send("br", b"{}");
    assert!(answer.status == 415 && answer.text().contains("'br'"), "{}", answer.text());
    assert_eq!(server.get("/health").status, 200);
}

fn gzip_of_zeros(bytes: usize) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(&vec![0; bytes]).unwrap();
    packed.finish().unwrap()
}

#[test]
fn a_split_serves_each_version_by_its_number() {
    let server = with_linear();
    let version = server.push("main.default.linear", &tensors("linear.onnx"));
    assert_eq!(version, "2");
    let both = json!({
        "served_entities": [
            { "name": "one", "entity_name": "main.default.linear", "entity_version": "1", "scale_to_zero_enabled": true, "workload_size": "Small" },
            { "name": "two", "entity_name": "main.default.linear", "entity_version": "2", "scale_to_zero_enabled": true, "workload_size": "Small" },
        ],
        "traffic_config": { "routes": [
            { "served_model_name": "one", "traffic_percentage": 50 },
            { "served_model_name": "two", "traffic_percentage": 50 },
        ] },
    });
    server.update("linear", &both).ok();
    server.settled("linear");
    let tensor = json!({ "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4] }] });
    for version in ["1", "2"] {
        let answer = server.post(&format!("/v2/models/linear/versions/{version}/infer"), &tensor).ok();
        assert_eq!(answer["model_version"], version);
    }
    let listed = server.post("/v2/repository/index", &json!({})).ok();
    let versions: Vec<&Value> = listed.as_array().unwrap().iter().map(|model| &model["version"]).collect();
    assert_eq!(versions, ["1", "2"]);
    let stats = server.get("/v2/models/linear/versions/2/stats").ok();
    assert_eq!(stats["model_stats"][0]["inference_count"], 1, "{stats}");
}
