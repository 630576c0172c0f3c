//! The control plane of endpoints beyond create and update: every call of Databricks' own client, changes that need no
//! deploy, stop and start, and what is refused.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Package, Server, ask_python, model, python, send, serving, serving_with};

const MODEL: &str = "main.default.hostile";
const INVALID: &str = "INVALID_PARAMETER_VALUE";

fn with_model() -> Server {
    let server = Server::start();
    server.push(MODEL, &Package::hostile(""));
    server
}

/// Sends JSON to what lies below the endpoint `e`.
fn ask(server: &Server, method: Method, below: &str, body: &Value) -> Answer {
    send(server.request(method, &format!("/api/2.0/serving-endpoints/e/{below}")).json(body))
}

#[test]
fn the_databricks_client_does_all_it_can() {
    // given a model with two versions
    let server = Server::start();
    let iris = Package::of(&model("iris"));
    server.push("main.default.iris", &iris);
    server.push("main.default.iris", &iris);

    // when the client calls everything that it has for endpoints, then every answer is what its types promise
    let mut client = python("databricks_client.py");
    client.args([&server.url(""), &server.token, "main.default.iris"]);
    let seen = ask_python(&mut client, &Value::Null);

    // and what it read is so
    assert_eq!(seen["after_split"], "green");
    assert_eq!(seen["tags"], json!([{ "key": "stage", "value": "x" }, { "key": "plain" }]));
    assert!(seen["guardrail"].as_str().unwrap().contains("guardrails.input.safety is not enforced"), "{seen}");
    assert!(seen["foundation"].as_str().unwrap().contains("has no entity_version"), "{seen}");
    assert_eq!(seen["levels"], json!(["CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"]));
    for (made, level) in [("set", "CAN_VIEW"), ("updated", "CAN_QUERY")] {
        let all = json!({ "admin": "CAN_MANAGE", "users": level, "admins": "CAN_MANAGE" });
        assert_eq!(seen[made], all, "{made}");
    }
    let build_log = seen["build_log"].as_str().unwrap();
    assert!(
        build_log.contains("ready") && build_log.contains("email_notifications of the endpoint is kept"),
        "{build_log}"
    );
    let metrics = seen["metrics"].as_str().unwrap();
    for line in [
        // 4 tables and 3 chats went to the first entity, one table to the second
        "request_count_total{endpoint_name=\"pe\",model=\"blue\"} 7.0",
        "request_4xx_count_total{endpoint_name=\"pe\",model=\"blue\"} 3.0",
        "request_count_total{endpoint_name=\"pe\",model=\"green\"} 1.0",
        "provisioned_concurrent_requests_total{endpoint_name=\"pe\",model=\"green\"} 8.0",
        "request_latency_ms_count{endpoint_name=\"pe\",model=\"blue\"} 7",
    ] {
        assert!(metrics.lines().any(|found| found == line), "'{line}' is not in {metrics}");
    }
    let openapi = &seen["openapi"];
    assert_eq!((&openapi["openapi"], &openapi["info"]["version"]), (&json!("3.1.0"), &json!("2")));
    let post = &openapi["paths"]["/served-models/green/invocations"]["post"];
    let formats = &post["requestBody"]["content"]["application/json"]["schema"]["oneOf"];
    let columns = &formats[0]["properties"]["dataframe_split"]["properties"]["columns"]["items"]["enum"];
    assert_eq!(columns, &json!(["sepal_length", "sepal_width", "petal_length", "petal_width"]));
    assert!(formats.as_array().unwrap().iter().any(|format| format["examples"][0].is_object()), "{formats:#}");
    let answer = &post["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["predictions"];
    assert_eq!(answer["items"]["properties"]["label"], json!({ "type": "integer", "format": "int64" }));
    assert_eq!(seen["left"], json!([]));
}

/// Two entities of the same version with these shares.
fn split(old: u8, new: u8) -> Value {
    let entity = |name: &str| json!({ "name": name, "entity_name": MODEL, "entity_version": "1" });
    let route = |name: &str, share: u8| json!({ "served_entity_name": name, "traffic_percentage": share });
    json!({
        "served_entities": [entity("old"), entity("new")],
        "traffic_config": { "routes": [route("old", old), route("new", new)] },
    })
}

#[test]
fn a_split_is_changed_under_load_at_once_and_without_a_failed_request() {
    let server = with_model();
    server.create("e", &split(100, 0)).ok();
    server.settled("e");

    // when the split is changed 200 times while clients call the endpoint
    let (done, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    assert_eq!(server.invoke("e", &json!({ "do": "counter" })).ok(), json!({ "counter": 1 }));
                    asked.fetch_add(1, Relaxed);
                }
            });
        }
        for round in 1..=200_u64 {
            let share = (round % 101) as u8;
            // then each serves with the answer: nothing is deployed
            let changed = server.update("e", &split(100 - share, share)).ok();
            assert_eq!(changed["state"], json!({ "ready": "READY", "config_update": "NOT_UPDATING" }));
            assert_eq!(changed["config"]["config_version"], round + 1);
            assert_eq!(changed["config"]["traffic_config"]["routes"][1]["traffic_percentage"], share);
            assert!(changed.get("pending_config").is_none(), "{changed:#}");
        }
        done.store(true, Relaxed);
    });

    // and clients were answered all the time, and the entities are the first ones
    assert!(asked.load(Relaxed) > 200, "{asked:?}");
    let entity = &server.endpoint("e")["config"]["served_entities"][0];
    assert_eq!(entity["in_memory"], true);
    assert!(server.build_log("e").contains("config version 1"), "{}", server.build_log("e"));
    let of_version = |version: u64| {
        server.get(&format!("/api/2.0/serving-endpoints/e/served-models/old/build-logs?config_version={version}"))
    };
    assert!(of_version(201).ok()["logs"].as_str().unwrap().contains("config version 1"));
    of_version(999).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["old"]);
}

#[test]
fn ten_thousand_requests_are_shared_as_asked() {
    let server = with_model();
    server.create("e", &split(70, 30)).ok();
    server.settled("e");
    let shares = Mutex::new(HashMap::<String, usize>::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2500 {
                    let answer = server.invoke("e", &json!({ "do": "counter" }));
                    assert_eq!(answer.status, 200);
                    *shares.lock().unwrap().entry(answer.header("served-model-name").to_owned()).or_default() += 1;
                }
            });
        }
    });
    // within 3 percent of the requests: more than six standard deviations
    let shares = shares.into_inner().unwrap();
    assert!(shares["new"].abs_diff(3000) < 300 && shares["new"] + shares["old"] == 10_000, "{shares:?}");
}

#[test]
fn a_stopped_endpoint_serves_nothing_until_it_is_started() {
    // given an endpoint that was stopped
    let mut server = with_model();
    server.create("e", &serving(MODEL, "1")).ok();
    server.settled("e");
    let stop = |server: &Server| ask(server, Method::POST, "config:stop", &json!({}));
    ask(&server, Method::POST, "config:start", &json!({})).is_error(409, "RESOURCE_CONFLICT", &["'e' is not stopped"]);
    let stopped = stop(&server).ok();

    // then it says so, keeps its config, and refuses requests; also after a restart
    let state = json!({ "ready": "NOT_READY", "config_update": "NOT_UPDATING", "suspend": "STOPPED" });
    assert_eq!(stopped["state"], state);
    assert_eq!(stop(&server).ok()["state"], state, "to stop it again changes nothing");
    server.terminate();
    server.wait();
    server.start_again();
    assert_eq!(server.endpoint("e")["state"], state);
    assert_eq!(server.endpoint("e")["config"]["config_version"], 1);
    server.invoke("e", &json!({ "do": "counter" })).is_error(400, "BAD_REQUEST", &["'e'", "stopped", "config:start"]);
    assert_eq!(server.get("/api/2.0/serving-endpoints").ok()["endpoints"][0]["state"], state);
    assert!(server.guest_log("e").is_empty());

    // and when it is started, it deploys its config as a new version, and serves
    let started = ask(&server, Method::POST, "config:start", &json!({})).ok();
    assert_eq!(started["state"]["suspend"], "NOT_SUSPENDED");
    assert_eq!(started["pending_config"]["config_version"], 2);
    let state = json!({ "ready": "READY", "config_update": "NOT_UPDATING", "suspend": "NOT_SUSPENDED" });
    assert_eq!(server.settled("e")["state"], state);
    assert!(server.build_log("e").contains("config version 2"));
    assert_eq!(server.invoke("e", &json!({ "do": "counter" })).ok(), json!({ "counter": 1 }));
}

#[test]
fn a_deploy_that_is_stopped_is_cancelled() {
    // given an endpoint whose update never ends
    let server = with_model();
    server.create("e", &serving(MODEL, "1")).ok();
    server.settled("e");
    server.update("e", &serving_with(MODEL, "1", ("init", "loop"))).ok();

    // when something that needs no deploy is changed meanwhile, then it is
    ask(&server, Method::PATCH, "description", &json!({ "description": "meanwhile" })).ok();
    assert_eq!(server.endpoint("e")["state"]["config_update"], "IN_PROGRESS");

    // when it is stopped, then the update is cancelled
    let stopped = ask(&server, Method::POST, "config:stop", &json!({})).ok();
    assert_eq!(stopped["state"]["config_update"], "UPDATE_CANCELED");
    assert_eq!(stopped["description"], "meanwhile");
    let state = &stopped["pending_config"]["served_entities"][0]["state"];
    assert_eq!(state["deployment"], "DEPLOYMENT_ABORTED");

    // and what starts again is what served
    ask(&server, Method::POST, "config:start", &json!({})).ok();
    let started = server.settled("e");
    assert_eq!((&started["state"]["ready"], &started["config"]["config_version"]), (&json!("READY"), &json!(3)));
    assert!(started["config"]["served_entities"][0].get("environment_vars").is_none());
}

#[test]
fn what_is_kept_comes_back_after_a_restart() {
    let mut server = with_model();
    let gateway = json!({
        "fallback_config": { "enabled": true },
        "guardrails": { "input": { "pii": { "behavior": "NONE" } } },
        "inference_table_config": { "catalog_name": "c", "schema_name": "s", "enabled": false },
        "rate_limits": [{ "calls": 100000, "key": "user", "principal": "a", "renewal_period": "minute" }],
        "usage_tracking_config": { "enabled": true },
    });
    let settings = json!({
        "description": "d", "ai_gateway": gateway, "budget_policy_id": "b", "tags": [{ "key": "z" }, { "key": "a" }],
        "email_notifications": { "on_update_success": ["a@example.com"] },
        "telemetry_config": { "table_names": { "logs_table": "a.b.c" } },
    });
    let mut body = json!({ "name": "e", "config": serving(MODEL, "1") });
    body["config"]["auto_capture_config"] = json!({ "catalog_name": "c", "schema_name": "s", "enabled": true });
    body.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    let made = server.post("/api/2.0/serving-endpoints", &body);
    made.ok();
    let not_enforced = made.header("x-tessera-not-enforced");
    assert!(not_enforced.starts_with("email_notifications, telemetry_config"), "{not_enforced}");
    server.settled("e");
    server.terminate();
    server.wait();
    server.start_again();
    let after = server.endpoint("e");
    for (field, value) in settings.as_object().unwrap() {
        assert_eq!(&after[field], value, "{field}");
    }
    let table = &after["config"]["auto_capture_config"];
    assert_eq!((&table["enabled"], &table["state"]["payload_table"]["name"]), (&json!(true), &json!("e_payload")));
}

#[test]
fn settings_that_cannot_be_are_refused_and_change_nothing() {
    let server = with_model();
    server.create("e", &serving(MODEL, "1")).ok();
    let before = server.settled("e");
    let limits = |limits: Value| json!({ "rate_limits": limits });
    let many: Vec<Value> = (0..21)
        .map(|index| json!({ "calls": 1, "key": "user", "principal": index.to_string(), "renewal_period": "minute" }))
        .collect();
    let table = json!({ "inference_table_config": { "enabled": true } });
    let mail = json!({ "email_notifications": { "on_update_success": ["nobody"] } });
    let feature = json!({ "telemetry_config": { "enabled_telemetry_features": ["TELEMETRY_FEATURE_SMELL"] } });
    let topics = json!({ "guardrails": { "output": { "valid_topics": ["weather"] } } });
    let tags: Vec<Value> = (0..21).map(|index| json!({ "key": index.to_string() })).collect();
    for (method, below, body, words) in [
        (Method::PUT, "ai-gateway", limits(json!(many)), "21 rate_limits"),
        (Method::PUT, "ai-gateway", limits(json!([{ "renewal_period": "minute" }])), "neither calls nor tokens"),
        (Method::PUT, "ai-gateway", table, "catalog_name"),
        (Method::PUT, "ai-gateway", topics, "guardrails.output.valid_topics is not enforced"),
        (Method::PATCH, "notifications", mail, "'nobody'"),
        (Method::PATCH, "telemetry-config", feature, "TELEMETRY_FEATURE_SMELL"),
        (Method::PATCH, "tags", json!({ "add_tags": tags }), "21 tags"),
    ] {
        ask(&server, method, below, &body).is_error(400, INVALID, &[words]);
    }
    let hour = limits(json!([{ "calls": 1, "renewal_period": "hour" }]));
    ask(&server, Method::PUT, "rate-limits", &hour).is_error(400, "BAD_REQUEST", &["hour"]);
    ask(&server, Method::PUT, "ai-gateway", &json!([])).is_error(400, "BAD_REQUEST", &["it is a list"]);

    // and sizes and names of entities
    for (field, value, words) in [
        ("min_provisioned_concurrency", json!(6), "multiple of 4"),
        ("max_provisioned_concurrency", json!(2048), "1024"),
        ("provisioned_model_units", json!(0), "at least 1"),
        ("workload_size", json!("Huge"), "Small, Medium, Large"),
        ("instance_profile_arn", json!("arn:aws:iam::1:x"), "instance_profile_arn"),
        ("external_model", json!({ "provider": "openai" }), "external_model"),
        ("environment_vars", json!({ "A=B": "1" }), "'A=B'"),
    ] {
        let mut config = serving(MODEL, "1");
        config["served_entities"][0][field] = value;
        server.update("e", &config).is_error(400, INVALID, &[words]);
    }
    assert_eq!(server.endpoint("e"), before);

    // and a table that is written does not move
    let table = |catalog: &str| json!({ "inference_table_config": { "enabled": true, "catalog_name": catalog, "schema_name": "s" } });
    ask(&server, Method::PUT, "ai-gateway", &table("a")).ok();
    ask(&server, Method::PUT, "ai-gateway", &table("b")).is_error(400, INVALID, &["disable it"]);
}

#[test]
fn a_model_without_a_signature_is_described_by_its_graph() {
    let server = Server::start();
    let linear = std::fs::read(crate::harness::repository("tests/fixtures/linear.onnx")).unwrap();
    let mlmodel = "flavors:\n  onnx:\n    data: model.onnx\n  python_function:\n    data: model.onnx\n";
    server.deploy("plain", &Package::default().with("MLmodel", mlmodel).with("model.onnx", linear));
    let openapi = server.get("/api/2.0/serving-endpoints/plain/openapi").ok();
    let post = &openapi["paths"]["/served-models/plain-1/invocations"]["post"];
    let formats = &post["requestBody"]["content"]["application/json"]["schema"]["oneOf"];
    let inputs = &formats[0]["properties"]["inputs"]["properties"];
    let (_, tensor) = inputs.as_object().unwrap().iter().next().unwrap();
    assert_eq!(tensor["type"], "array", "{openapi:#}");

    // and what a component of one's own understands is not made up
    server.deploy("own", &Package::hostile(""));
    let openapi = server.get("/api/2.0/serving-endpoints/own/openapi").ok();
    let post = &openapi["paths"]["/served-models/own-1/invocations"]["post"];
    let schema = &post["requestBody"]["content"]["application/json"]["schema"];
    assert!(schema.get("oneOf").is_none() && schema["description"].is_string(), "{schema}");
}
