//! Guests that misbehave: the caller gets a JSON error that names the reason, with a status that clients do not repeat;
//! the server and the endpoint's neighbours go on as if nothing had happened.
//!
//! The guest is `tests/guests/hostile`, which does what the request says. Every deed of it is asked for here or in
//! `isolation` and `http`.

use std::io::Write;
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::harness::{Answer, Package, Server, eventually, guest, send, serving, serving_with};

/// A server with two endpoints of the hostile guest.
fn hostile_and_neighbour() -> Server {
    let server = Server::start();
    server.deploy("hostile", &Package::hostile(""));
    server.deploy("neighbour", &Package::hostile(""));
    server
}

/// That the server, the endpoint and its neighbour answer as ever.
#[track_caller]
fn all_is_well(server: &Server) {
    assert_eq!(server.get("/ready").status, 200);
    for endpoint in ["hostile", "neighbour"] {
        assert_eq!(server.invoke(endpoint, &json!({ "do": "counter" })).ok(), json!({ "counter": 1 }));
        let outputs = &server.invoke(endpoint, &json!({ "do": "compute_ok" })).ok()["outputs"];
        assert_eq!(outputs[0]["values"], json!([1.0, 1.0, 1.0, 1.0]), "2 * 0 + 1 of zeros");
    }
}

/// Asks for a deed, and checks that nothing else was harmed by it.
#[track_caller]
fn deed(server: &Server, body: &Value) -> Answer {
    let answer = server.invoke("hostile", body);
    all_is_well(server);
    answer
}

#[test]
fn time_and_memory_without_end_are_stopped_at_the_limit() {
    // given an endpoint with 200 ms of processor time, and one with 32 MiB of memory
    let server = hostile_and_neighbour();
    server.deploy("brief", &Package::hostile("[limits]\ncpu_ms = 200\n"));
    server.deploy("small", &Package::hostile("[limits]\nmemory_bytes = 33554432\n"));

    // when their guests take all they can get, then each is told which limit it met
    let answer = server.invoke("brief", &json!({ "do": "loop" }));
    answer.is_error(400, "BAD_REQUEST", &["brief-1", "200 ms", "limits.cpu_ms"]);
    let answer = server.invoke("small", &json!({ "do": "memory_bomb" }));
    answer.is_error(400, "BAD_REQUEST", &["small-1", "33554432 bytes of memory", "limits.memory_bytes"]);
    let answer = server.invoke("hostile", &json!({ "do": "memory_bomb" }));
    answer.is_error(400, "BAD_REQUEST", &["134217728 bytes of memory"]);

    // and recursion without end is a trap, whichever of the two stacks ends first
    let answer = deed(&server, &json!({ "do": "recurse" }));
    answer.is_error(400, "BAD_REQUEST", &["trapped"]);
}

#[test]
fn a_request_that_waits_too_long_is_ended_by_the_clock() {
    // given an endpoint whose requests may take 300 ms in all, and compute for as long
    let server = hostile_and_neighbour();
    server.deploy("hasty", &Package::hostile("[limits]\nwall_ms = 300\n"));

    // when a guest computes on, then the clock ends it: 504, and no client shall try again
    let answer = server.invoke("hasty", &json!({ "do": "loop" }));
    answer.is_error(504, "DEADLINE_EXCEEDED", &["hasty-1", "300 ms", "limits.wall_ms"]);
    assert_eq!(answer.header("x-should-retry"), "false");
    all_is_well(&server);
}

#[test]
fn guests_that_compute_without_end_keep_nobody_else_from_the_processor() {
    // given more guests that compute on than an event loop begins at once
    const BUSY: usize = 80;
    let server = hostile_and_neighbour();
    server.deploy("busy", &Package::hostile("[limits]\ncpu_ms = 30000\n"));
    let request = format!(
        "POST /serving-endpoints/busy/invocations HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 13\r\n\r\n{{\"do\":\"loop\"}}",
        server.token
    );
    let begin = |_| {
        let mut connection = TcpStream::connect(&server.address).unwrap();
        connection.write_all(request.as_bytes()).unwrap();
        connection
    };
    let busy: Vec<TcpStream> = (0..BUSY).map(begin).collect();
    eventually("all of them run", || (server.metric("tessera_instances") >= BUSY as f64).then_some(()));

    // when others call, then they are answered while those go on
    server.invoke("neighbour", &json!({ "do": "compute_ok" })).ok();
    assert!(server.metric("tessera_instances") >= BUSY as f64);
    drop(busy);
}

#[test]
fn answers_that_cannot_be_sent_are_refused() {
    let server = hostile_and_neighbour();

    let answer = deed(&server, &json!({ "do": "huge_output", "bytes": (16 << 20) + 1 }));
    answer.is_error(400, "BAD_REQUEST", &["16777217 bytes", "limit is 16777216"]);
    let whole = deed(&server, &json!({ "do": "huge_output", "bytes": 16 << 20 }));
    assert_eq!((whole.status, whole.body.len()), (200, 16 << 20), "the limit itself is allowed");
    let answer = deed(&server, &json!({ "do": "huge_output", "bytes": 1 << 30 }));
    answer.is_error(400, "BAD_REQUEST", &["bytes of memory"]);
    let answer = deed(&server, &json!({ "do": "status", "status": 99 }));
    answer.is_error(400, "BAD_REQUEST", &["status 99 is not in 200 to 599"]);
    let answer = deed(&server, &json!({ "do": "bad_content_type" }));
    answer.is_error(400, "BAD_REQUEST", &["its content type has the byte 13"]);
}

#[test]
fn wrong_tensors_are_errors_that_name_the_input() {
    let server = hostile_and_neighbour();

    let answer = deed(&server, &json!({ "do": "wrong_dtype" }));
    answer.is_error(400, "BAD_REQUEST", &["\"x\"", "expected FP32", "got FP64 [1, 4]"]);
    let answer = deed(&server, &json!({ "do": "wrong_shape" }));
    answer.is_error(400, "BAD_REQUEST", &["\"x\"", "expected FP32", "got FP32 [1, 4, 3, 5]"]);
    let answer = deed(&server, &json!({ "do": "wrong_name" }));
    answer.is_error(400, "BAD_REQUEST", &["no-such-input", "the graph has [\"x\"]"]);
    let answer = deed(&server, &json!({ "do": "length_mismatch" }));
    answer.is_error(400, "BAD_REQUEST", &["FP32 [2147483648, 2147483648]", "larger than"]);
}

#[test]
fn a_guest_may_have_its_init_in_every_request_and_the_build_log_says_so() {
    // given a package that asks for it
    let server = hostile_and_neighbour();
    let manifest = "init = 'request'\ncomponent = 'hostile.wasm'\n[graphs.model]\nfile = 'linear.onnx'\n";
    let package = Package::hostile("").with("tessera.toml", manifest);
    server.deploy("thorough", &package);

    // then it computes like any other, in a fresh instance each time, with nothing of `init` left open
    let computed = server.invoke("thorough", &json!({ "do": "compute_ok" })).ok();
    assert_eq!(computed, deed(&server, &json!({ "do": "compute_ok" })).ok());
    for _ in 0..2 {
        assert_eq!(server.invoke("thorough", &json!({ "do": "counter" })).ok(), json!({ "counter": 1 }));
    }
    let refusal = server.invoke("thorough", &json!({ "do": "asset_late" })).ok()["refusal"].to_string();
    assert!(refusal.contains("only during init"), "{refusal}");
    let build_log = server.build_log("thorough");
    assert!(build_log.contains("every request will run init"), "{build_log}");

    // and one whose init fails is not served
    for (init, reason) in [("error", "init was told to fail"), ("trap", "trapped")] {
        server.update("thorough", &serving_with("main.default.thorough", "1", ("init", init))).ok();
        let endpoint = server.settled("thorough");
        assert_eq!(endpoint["state"], json!({ "ready": "READY", "config_update": "UPDATE_FAILED" }), "{endpoint:#}");
        let build_log = server.build_log("thorough");
        assert!(build_log.contains(reason), "{build_log}");
    }
}

#[test]
fn one_call_computes_what_wasi_nn_computes_in_many() {
    let server = hostile_and_neighbour();

    let by_one = deed(&server, &json!({ "do": "compute_ok" })).ok();
    assert!(by_one["outputs"][0]["values"].is_array(), "{by_one}");
    assert_eq!(deed(&server, &json!({ "do": "compute_by_wasi_nn" })).ok(), by_one);
}

#[test]
fn a_large_output_lies_in_the_guest_once() {
    // given a guest with 80 MiB of memory, and a computation of 32 MiB in, 32 MiB out
    let server = Server::start();
    server.deploy("tight", &Package::hostile("[limits]\nmemory_bytes = 83886080\n"));

    // when it takes the output out, then there is room for it: no second copy is made on the way
    let computed = server.invoke("tight", &json!({ "do": "compute_rows", "rows": 2 << 20 })).ok();
    assert_eq!(computed["outputs"], json!([{ "dims": [2 << 20, 4], "bytes": 32 << 20 }]));

    // and one that is too large for it meets the limit by its name
    let answer = server.invoke("tight", &json!({ "do": "compute_rows", "rows": 3 << 20 }));
    answer.is_error(400, "BAD_REQUEST", &["83886080 bytes of memory", "limits.memory_bytes"]);
}

#[test]
fn graphs_come_from_the_package_and_nowhere_else() {
    let server = hostile_and_neighbour();

    let answer = deed(&server, &json!({ "do": "missing_graph" }));
    answer.is_error(400, "BAD_REQUEST", &["no graph 'no-such-graph'", "[model]"]);
    let answer = deed(&server, &json!({ "do": "missing_graph_by_wasi_nn" }));
    answer.is_error(400, "BAD_REQUEST", &["NotFound", "no graph 'no-such-graph'", "[model]"]);
    let refusal = deed(&server, &json!({ "do": "load_from_bytes" })).ok()["refusal"].to_string();
    assert!(refusal.contains("Security") && refusal.contains("not accepted"), "{refusal}");
    let refusal = deed(&server, &json!({ "do": "asset_late" })).ok()["refusal"].to_string();
    assert!(refusal.contains("tokenizer.json") && refusal.contains("only during init"), "{refusal}");
}

#[test]
fn what_the_host_keeps_for_a_guest_is_bounded() {
    let server = hostile_and_neighbour();

    let answer = deed(&server, &json!({ "do": "tensor_bomb" }));
    answer.is_error(400, "BAD_REQUEST", &["tensors hold", "limit is 67108864 (tensor_bytes)"]);
    let answer = deed(&server, &json!({ "do": "handle_bomb" }));
    answer.is_error(400, "BAD_REQUEST", &["handles", "1024"]);
}

#[test]
fn a_trap_costs_one_request_and_its_story_is_in_the_log() {
    // given an endpoint
    let server = hostile_and_neighbour();

    // when its guest panics
    let answer = deed(&server, &json!({ "do": "trap", "message": "the flux capacitor is empty" }));

    // then the caller learns that it trapped, and the log has what the guest said and where it was
    answer.is_error(400, "BAD_REQUEST", &["hostile-1", "trapped", "unreachable"]);
    let log = server.guest_log("hostile");
    assert!(log.contains("the flux capacitor is empty"), "{log}");
    assert!(log.contains(answer.header("x-request-id")), "the log names the request: {log}");

    // and where it was also when the guest had filled its log before
    let answer = deed(&server, &json!({ "do": "trap", "message": "x".repeat(100 << 10) }));
    let log = server.guest_log("hostile");
    let told = |line: &str| line.contains(answer.header("x-request-id")) && line.contains("unreachable");
    assert!(log.lines().any(told), "the last of it: {:?}", log.lines().last());
}

#[test]
fn failures_get_the_status_of_their_kind() {
    let server = hostile_and_neighbour();
    for (kind, status, code) in [
        ("invalid-input", 400, "BAD_REQUEST"),
        ("not-found", 404, "NOT_FOUND"),
        ("too-large", 413, "BAD_REQUEST"),
        ("unsupported-media-type", 415, "BAD_REQUEST"),
        ("model", 400, "BAD_REQUEST"),
        ("timeout", 504, "DEADLINE_EXCEEDED"),
        ("unavailable", 503, "TEMPORARILY_UNAVAILABLE"),
    ] {
        let answer = server.invoke("hostile", &json!({ "do": "fail", "kind": kind }));
        answer.is_error(status, code, &[&format!("told to fail with {kind}")]);
    }
    all_is_well(&server);
}

#[test]
fn logs_are_bounded_and_say_what_is_missing() {
    let server = hostile_and_neighbour();

    // when a guest logs a hundred thousand lines in one request
    assert_eq!(deed(&server, &json!({ "do": "log_flood", "lines": 100_000 })).ok(), json!({ "lines": 100_000 }));

    // then the first are kept, the rest is counted
    let log = server.guest_log("hostile");
    assert!(log.contains("line 0 of 100000") && log.contains("more bytes dropped: the limit is 65536"), "{log}");
    assert!(log.len() < 1 << 20, "{} bytes", log.len());
}

#[test]
fn what_a_guest_prints_is_in_its_log() {
    // given a guest that prints through WASI, in init and with every request
    let server = Server::start();
    let manifest = "component = 'stdout.wasm'\n";
    server.deploy("printer", &Package::new(manifest).with("stdout.wasm", guest("stdout")));
    let build_log = server.build_log("printer");
    assert!(build_log.contains("stdout of init"), "{build_log}");

    // when a request makes it print, an escape sequence of the terminal among it
    let request = server.request(reqwest::Method::POST, "/serving-endpoints/printer/invocations");
    let answer = send(request.header("content-type", "text/plain").body("hello \u{1b}[2J there\n"));

    // then both its streams are in the log, and the escape is not
    assert_eq!((answer.status, answer.text().as_str()), (200, "printed 17 bytes"));
    let log = server.guest_log("printer");
    assert_eq!(log.matches("hello \u{fffd}[2J there").count(), 2, "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");

    // and printing without end does not end the guest
    let request = server.request(reqwest::Method::POST, "/serving-endpoints/printer/invocations");
    let answer = send(request.header("content-type", "text/plain").body("x".repeat(1 << 20)));
    assert_eq!((answer.status, answer.text().as_str()), (200, "printed 1048576 bytes"));
}

#[test]
fn an_init_that_fails_fails_the_deploy_and_the_old_config_serves_on() {
    // given a working endpoint
    let server = hostile_and_neighbour();
    let (model, version) = ("main.default.hostile", "1");

    for (init, reasons) in [
        ("trap", ["init trapped", "unreachable"]),
        ("error", ["init failed", "init was told to fail"]),
        ("asset_missing", ["init failed", "no asset 'no-such-asset'"]),
        ("loop", ["init took longer than", "10000 ms"]),
    ] {
        // when it is updated to a config whose init fails
        server.update("hostile", &serving_with(model, version, ("init", init))).ok();
        let endpoint = server.settled("hostile");

        // then the state says why, and so does the build log
        assert_eq!(endpoint["state"], json!({ "ready": "READY", "config_update": "UPDATE_FAILED" }), "{endpoint:#}");
        let state = &endpoint["pending_config"]["served_entities"][0]["state"];
        assert_eq!(state["deployment"], "DEPLOYMENT_FAILED");
        let message = state["deployment_state_message"].as_str().unwrap();
        let build_log = server.build_log("hostile");
        for reason in reasons {
            assert!(message.contains(reason), "'{reason}' is not in: {message}");
            assert!(build_log.contains(reason), "'{reason}' is not in: {build_log}");
        }

        // and the old config serves on
        assert_eq!(endpoint["config"]["config_version"], 1);
        all_is_well(&server);
    }
    assert!(server.build_log("hostile").contains("failed"));

    // and a new endpoint whose init fails is not ready, and says why to whoever calls it
    server.create("stillborn", &serving_with(model, version, ("init", "trap"))).ok();
    assert_eq!(server.settled("stillborn")["state"], json!({ "ready": "NOT_READY", "config_update": "UPDATE_FAILED" }));
    server.invoke("stillborn", &json!({ "do": "counter" })).is_error(
        400,
        "BAD_REQUEST",
        &["not ready", "init trapped"],
    );

    // until it is mended
    server.update("stillborn", &serving(model, version)).ok();
    assert_eq!(server.settled("stillborn")["state"]["ready"], "READY");
    server.invoke("stillborn", &json!({ "do": "counter" })).ok();
}

#[test]
fn packages_that_cannot_serve_are_refused_with_the_reason() {
    let server = Server::start();
    let deploy_fails = |name: &str, package: Package, reason: &str| {
        let model = format!("main.default.{name}");
        let version = server.push(&model, &package);
        server.create(name, &serving(&model, &version)).ok();
        let endpoint = server.settled(name);
        let entity = &endpoint["pending_config"]["served_entities"][0];
        let message = entity["state"]["deployment_state_message"].as_str().unwrap_or_default();
        assert!(message.contains(reason), "'{reason}' is not in: {endpoint:#}");
    };

    // a component that is none, a golden request that fails, a limit above the server's
    let garbage = Package::new("component = 'c.wasm'\n").with("c.wasm", "not wasm");
    deploy_fails("garbage", garbage, "not a WebAssembly component");
    let golden = "[golden]\nrequest = 'golden.json'\n";
    let golden = Package::hostile(golden).with("golden.json", "{\"do\": \"trap\", \"message\": \"\"}");
    deploy_fails("golden", golden, "the golden request 'golden.json' failed");
    deploy_fails("greedy", Package::hostile("[limits]\nmemory_bytes = 1099511627776\n"), "limits.memory_bytes");
    let gpu = Package::hostile("")
        .with("tessera.toml", "component = 'hostile.wasm'\n[graphs.model]\nfile = 'linear.onnx'\ntarget = 'gpu'\n");
    deploy_fails("gpu", gpu, "gpu");

    // a manifest with an unknown key, a file that is missing or a graph that is none is refused when it is registered
    let (_, answer) = server.register("main.default.typo", &Package::new("component = 'c.wasm'\nasets = []\n"));
    answer.is_error(400, "INVALID_PARAMETER_VALUE", &["asets"]);
    let (_, answer) = server.register("main.default.hole", &Package::new("component = 'c.wasm'\n"));
    answer.is_error(400, "INVALID_PARAMETER_VALUE", &["component 'c.wasm' is not in the package"]);
    let (_, answer) = server.register("main.default.weights", &Package::hostile("").with("linear.onnx", "not onnx"));
    answer.is_error(400, "INVALID_PARAMETER_VALUE", &["graph 'model'", "linear.onnx"]);
}

#[test]
fn a_stream_that_ends_in_a_trap_is_not_taken_for_the_whole() {
    let server = hostile_and_neighbour();

    // when a guest traps after it has sent a part of its answer
    let body = json!({ "do": "stream_then_trap", "chunks": 3, "bytes": 1000 });
    let response = server.request(reqwest::Method::POST, "/serving-endpoints/hostile/invocations").json(&body).send();

    // then the client got a head, and an error instead of an end
    let response = response.unwrap();
    assert_eq!(response.status(), 200);
    response.bytes().map(|body| body.len()).unwrap_err();
    let log = eventually("the trap is logged", || Some(server.guest_log("hostile")).filter(|log| !log.is_empty()));
    assert!(log.contains("after the stream"), "{log}");
    all_is_well(&server);
}

#[test]
fn a_stream_that_runs_out_of_time_or_room_is_not_taken_for_the_whole() {
    // given endpoints whose answers may take half a second, and have 1 MiB
    let server = Server::with(&["--response-bytes-max", "1MiB"]);
    server.deploy("hasty", &Package::hostile("[limits]\nwall_ms = 500\n"));
    server.deploy("hostile", &Package::hostile(""));
    server.deploy("neighbour", &Package::hostile(""));
    let begin = |endpoint: &str, body: Value| {
        let path = format!("/serving-endpoints/{endpoint}/invocations");
        let response = server.request(reqwest::Method::POST, &path).json(&body).send().unwrap();
        assert_eq!(response.status(), 200);
        response
    };

    // when a guest computes on after a part of its answer, then the client gets an error instead of an end
    let response = begin("hasty", json!({ "do": "stream_then_loop", "chunks": 3, "bytes": 1000 }));
    response.bytes().map(|body| body.len()).unwrap_err();
    eventually("the log says why", || server.guest_log("hasty").contains("limits.wall_ms").then_some(()));

    // and so it does when its guest has more to say than is allowed
    let response = begin("hostile", json!({ "do": "stream", "chunks": 1025, "bytes": 1024 }));
    response.bytes().map(|body| body.len()).unwrap_err();
    let response = begin("hostile", json!({ "do": "stream", "chunks": 1024, "bytes": 1024 }));
    assert_eq!(response.bytes().unwrap().len(), 1 << 20, "the limit itself is allowed");
    all_is_well(&server);
}

#[test]
fn a_stream_that_waits_too_long_for_its_client_is_not_taken_for_the_whole() {
    // given an endpoint whose answers may take half a second
    let server = Server::with(&["--response-bytes-max", "256MiB"]);
    server.deploy("hasty", &Package::hostile("[limits]\nwall_ms = 500\n"));

    // when its guest has more to say than the sockets hold, and its client reads nothing until the time is up
    let body = json!({ "do": "stream", "chunks": 2000, "bytes": 64 << 10 });
    let response = server.request(reqwest::Method::POST, "/serving-endpoints/hasty/invocations").json(&body).send();
    let response = response.unwrap();
    assert_eq!(response.status(), 200);
    eventually("the guest is ended", || server.guest_log("hasty").contains("limits.wall_ms").then_some(()));

    // then the client gets what was sent, and an error instead of an end
    response.bytes().map(|body| body.len()).unwrap_err();
    eventually("the instance ends", || (server.metric("tessera_instances") == 0.0).then_some(()));
    server.invoke("hasty", &json!({ "do": "counter" })).ok();
}

#[test]
fn long_messages_are_cut() {
    let server = hostile_and_neighbour();

    // when a guest fails with a message of 1 MiB, then its beginning is told
    let answer = deed(&server, &json!({ "do": "fail_long", "bytes": 1 << 20 }));
    answer.is_error(400, "BAD_REQUEST", &["told to fail with 1048576 bytes: xxx"]);
    assert!(answer.body.len() <= 8 << 10, "{} bytes", answer.body.len());
    let answer = deed(&server, &json!({ "do": "fail_long", "bytes": 100 }));
    answer.is_error(400, "BAD_REQUEST", &["told to fail with 100 bytes: xxx"]);
    for _ in 0..3 {
        server.invoke("hostile", &json!({ "do": "fail_long", "bytes": 1 << 20 }));
        server.invoke("hostile", &json!({ "do": "trap", "message": "y".repeat(1 << 20) }));
    }
    let log = server.guest_log("hostile");
    assert!(log.contains("told to fail with 1048576 bytes"), "{:.1000}", log);
    assert!(log.len() < 300_000, "{} bytes", log.len());
    assert!(server.log().len() < 300_000, "the server's log is not for guests: {} bytes", server.log().len());

    // when a guest logs nothing but ends of lines, of which each would be stamped, then few of them are kept
    deed(&server, &json!({ "do": "log_newlines", "bytes": 64 << 10 })).ok();
    let log = server.guest_log("hostile");
    assert!(log.len() < 300_000, "{} bytes", log.len());

    // and the log goes on after it
    deed(&server, &json!({ "do": "trap", "message": "the last word" }));
    assert!(server.guest_log("hostile").contains("the last word"));
}

#[test]
fn an_init_that_fails_at_length_fails_the_deploy_all_the_same() {
    // given a working endpoint
    let mut server = hostile_and_neighbour();
    let (model, version) = ("main.default.hostile", "1");

    // when it is updated to a config whose init fails with 200 KiB
    server.update("hostile", &serving_with(model, version, ("init", "long_error"))).ok();
    let endpoint = server.settled("hostile");

    // then the deploy has failed, and the beginning of the reason is kept
    assert_eq!(endpoint["state"], json!({ "ready": "READY", "config_update": "UPDATE_FAILED" }));
    let message = endpoint["pending_config"]["served_entities"][0]["state"]["deployment_state_message"].clone();
    let message = message.as_str().unwrap();
    assert!(message.contains("told to fail with 204800 bytes: xxx"), "{:.1000}", message);
    assert!(message.len() <= 8 << 10, "{} bytes", message.len());
    assert!(server.build_log("hostile").len() < 300_000);
    all_is_well(&server);

    // and a new endpoint says as much to whoever calls it
    server.create("stillborn", &serving_with(model, version, ("init", "long_error"))).ok();
    assert_eq!(server.settled("stillborn")["state"], json!({ "ready": "NOT_READY", "config_update": "UPDATE_FAILED" }));
    let answer = server.invoke("stillborn", &json!({ "do": "counter" }));
    answer.is_error(400, "BAD_REQUEST", &["not ready", "told to fail with"]);
    assert!(answer.body.len() <= 16 << 10, "{} bytes", answer.body.len());

    // and so it is after a restart
    server.terminate();
    assert!(server.wait().success(), "{}", server.log());
    server.start_again();
    assert_eq!(server.endpoint("stillborn")["state"]["config_update"], "UPDATE_FAILED");

    // until both are mended
    for name in ["hostile", "stillborn"] {
        server.update(name, &serving(model, version)).ok();
        let endpoint = server.settled(name);
        assert_eq!(endpoint["state"], json!({ "ready": "READY", "config_update": "NOT_UPDATING" }), "{name}");
        server.invoke(name, &json!({ "do": "counter" })).ok();
    }
}

#[test]
fn packages_that_are_too_large_are_refused_when_they_are_registered() {
    let server = Server::start();

    let package = Package::new("component = 'component.wasm'\n").with("component.wasm", vec![0; 65 << 20]);
    let (_, answer) = server.register("main.default.component", &package);
    answer.is_error(400, "INVALID_PARAMETER_VALUE", &["'component.wasm'", "68157440"]);

    let package = Package::hostile("[golden]\nrequest = 'golden.json'\n");
    let (_, answer) = server.register("main.default.golden", &package.with("golden.json", vec![b' '; (16 << 20) + 1]));
    answer.is_error(400, "INVALID_PARAMETER_VALUE", &["'golden.json'", "16777217"]);
}

#[test]
fn a_limit_above_the_servers_names_both() {
    // given a server that gives a request 64 MiB of memory
    let server = Server::with(&["--sandbox-memory-bytes-max", "64MiB"]);

    // when a package asks for more, then its deploy fails, and says what to change on which side
    let version = server.push("main.default.greedy", &Package::hostile("[limits]\nmemory_bytes = 67108865\n"));
    server.create("greedy", &serving("main.default.greedy", &version)).ok();
    let endpoint = server.settled("greedy");
    assert_eq!(endpoint["state"], json!({ "ready": "NOT_READY", "config_update": "UPDATE_FAILED" }));
    let message = endpoint["pending_config"]["served_entities"][0]["state"]["deployment_state_message"].to_string();
    for word in ["limits.memory_bytes", "67108865", "sandbox_memory_bytes_max", "67108864"] {
        assert!(message.contains(word), "'{word}' is not in: {message}");
    }

    // and as much as the server has is given
    server.deploy("modest", &Package::hostile("[limits]\nmemory_bytes = 67108864\n"));
    server.invoke("modest", &json!({ "do": "memory_bomb" })).is_error(
        400,
        "BAD_REQUEST",
        &["67108864 bytes of memory"],
    );
}
