//! The life of an endpoint: create, call, split the traffic, update, fail, delete, restart, scale to zero.

use std::collections::HashMap;
use std::sync::{Barrier, Mutex};
use std::thread;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Package, Server, eventually, guest, send, serving, serving_with};

const MODEL: &str = "main.default.hostile";

/// A server with the hostile guest registered as version 1.
fn with_model() -> Server {
    let server = Server::start();
    server.push(MODEL, &Package::hostile(""));
    server
}

fn count(server: &Server, endpoint: &str) {
    assert_eq!(server.invoke(endpoint, &json!({ "do": "counter" })).ok(), json!({ "counter": 1 }));
}

#[test]
fn an_endpoint_is_made_called_listed_and_deleted() {
    let server = with_model();
    assert_eq!(server.get("/api/2.0/serving-endpoints/").ok(), json!({ "endpoints": [] }));

    // when it is created, then the answer says that it is being deployed
    let body = json!({
        "name": "e",
        "description": "an example",
        "tags": [{ "key": "team", "value": "a" }, { "key": "plain" }],
        "config": { "name": "e", "served_entities": [{ "entity_name": MODEL, "entity_version": 1 }] },
    });
    let made = server.post("/api/2.0/serving-endpoints", &body).ok();
    assert_eq!(made["state"], json!({ "ready": "NOT_READY", "config_update": "IN_PROGRESS" }));
    assert_eq!(made["pending_config"]["config_version"], 1);
    assert!(made["pending_config"]["start_time"].is_u64() && made.get("config").is_none(), "{made:#}");
    assert_eq!(made["pending_config"]["served_entities"][0]["state"]["deployment"], "DEPLOYMENT_CREATING");
    let id = made["id"].as_str().unwrap();
    assert!(id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit()), "{id}");

    // and later it has every field that clients read
    let endpoint = server.settled("e");
    assert_eq!(endpoint["state"], json!({ "ready": "READY", "config_update": "NOT_UPDATING" }));
    assert!(endpoint.get("pending_config").is_none(), "{endpoint:#}");
    for (field, value) in [
        ("name", json!("e")),
        ("id", made["id"].clone()),
        ("description", json!("an example")),
        ("tags", json!([{ "key": "team", "value": "a" }, { "key": "plain" }])),
        ("permission_level", json!("CAN_MANAGE")),
        ("route_optimized", json!(false)),
    ] {
        assert_eq!(endpoint[field], value, "{field}");
    }
    let config = &endpoint["config"];
    let entity = &config["served_entities"][0];
    for (field, value) in [
        ("name", json!("hostile-1")),
        ("entity_name", json!(MODEL)),
        ("entity_version", json!("1")),
        ("workload_size", json!("Small")),
        ("workload_type", json!("CPU")),
        ("scale_to_zero_enabled", json!(true)),
        ("state", json!({ "deployment": "DEPLOYMENT_READY", "deployment_state_message": "" })),
    ] {
        assert_eq!(entity[field], value, "{field}");
    }
    let graph = &entity["graphs"][0];
    assert_eq!((&graph["name"], &graph["target"]), (&json!("model"), &json!("cpu")));
    assert!(graph["backend_version"].is_string(), "which backend serves is visible: {graph}");
    let model = &config["served_models"][0];
    assert_eq!((&model["model_name"], &model["model_version"]), (&json!(MODEL), &json!("1")));
    let route =
        json!({ "served_model_name": "hostile-1", "served_entity_name": "hostile-1", "traffic_percentage": 100 });
    assert_eq!(config["traffic_config"], json!({ "routes": [route] }));

    // and it answers, also under its entity's name and through the Open Inference paths
    count(&server, "e");
    let path = "/serving-endpoints/e/served-models/hostile-1/invocations";
    assert_eq!(server.post(path, &json!({ "do": "counter" })).ok(), json!({ "counter": 1 }));
    assert_eq!(server.get("/v2/models/e/ready").ok(), json!({ "name": "e", "ready": true }));

    // and it is in the list
    let list = server.get("/api/2.0/serving-endpoints").ok();
    assert_eq!(list["endpoints"][0]["name"], "e");
    assert_eq!(list["endpoints"][0]["config"]["served_entities"][0]["entity_version"], "1");

    // when it is deleted, then it is gone, and its name is free
    assert_eq!(server.delete("/api/2.0/serving-endpoints/e", &json!({})).ok(), json!({}));
    server.get("/api/2.0/serving-endpoints/e").is_error(404, "RESOURCE_DOES_NOT_EXIST", &["'e' does not exist"]);
    server.invoke("e", &json!({})).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["'e' does not exist"]);
    server.delete("/api/2.0/serving-endpoints/e", &json!({})).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["'e'"]);
    let made = server.create("e", &serving(MODEL, "1")).ok();
    assert_ne!(made["id"].as_str().unwrap(), id);
}

#[test]
fn configs_that_cannot_be_are_refused_before_they_are_stored() {
    let server = with_model();
    let entity = |name: &str| json!({ "name": name, "entity_name": MODEL, "entity_version": "1" });
    let route = |name: &str, percentage: u8| json!({ "served_entity_name": name, "traffic_percentage": percentage });
    let split = |routes: &[Value]| json!({ "served_entities": [entity("a"), entity("b")], "traffic_config": { "routes": routes } });
    let invalid = "INVALID_PARAMETER_VALUE";

    for (name, config, code, words) in [
        ("bad name", serving(MODEL, "1"), invalid, "bad name"),
        ("chat", serving(MODEL, "1"), invalid, "reserved"),
        ("e", json!({}), invalid, "served_entities is empty"),
        ("e", serving(MODEL, "one"), invalid, "'one'"),
        ("e", json!({ "served_entities": [entity("a"), entity("b")] }), invalid, "traffic_config.routes is required"),
        ("e", split(&[route("a", 60), route("b", 30)]), invalid, "sum to 90"),
        ("e", split(&[route("a", 100), route("c", 0)]), invalid, "'c'"),
        (
            "e",
            json!({ "served_entities": [entity("a"), entity("a")] , "traffic_config": { "routes": [route("a", 100)] } }),
            invalid,
            "two served entities",
        ),
        (
            "e",
            json!({ "served_entities": [{ "entity_name": MODEL, "entity_version": "1", "workload_type": "GPU_TINY" }] }),
            invalid,
            "GPU_SMALL",
        ),
    ] {
        server.create(name, &config).is_error(400, code, &[words]);
    }
    server.create("e", &serving(MODEL, "7")).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["'7'", MODEL]);
    server.create("e", &serving("main.default.nothing", "1")).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["nothing"]);
    server.update("e", &serving(MODEL, "1")).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["'e' does not exist"]);
    assert_eq!(server.get("/api/2.0/serving-endpoints").ok(), json!({ "endpoints": [] }));

    // and a name that is taken
    server.create("e", &serving(MODEL, "1")).ok();
    server.create("e", &serving(MODEL, "1")).is_error(400, "RESOURCE_ALREADY_EXISTS", &["'e' already exists"]);
}

#[test]
fn an_update_runs_alone_and_changes_nothing_until_it_is_ready() {
    // given an endpoint whose update takes long, because its guest's init never ends
    let server = with_model();
    server.create("e", &serving(MODEL, "1")).ok();
    server.settled("e");
    server.update("e", &serving_with(MODEL, "1", ("init", "loop"))).ok();

    // then it is ready all the time, with the old config serving and the new one pending
    let endpoint = server.endpoint("e");
    assert_eq!(endpoint["state"], json!({ "ready": "READY", "config_update": "IN_PROGRESS" }));
    assert_eq!(endpoint["config"]["config_version"], 1);
    assert_eq!(endpoint["pending_config"]["config_version"], 2);
    count(&server, "e");

    // and a second update is refused
    let refused = server.update("e", &serving(MODEL, "1"));
    refused.is_error(
        409,
        "RESOURCE_CONFLICT",
        &["Endpoint 'e' is currently being updated", "another update cannot be made"],
    );

    // and it can be deleted in the middle of its deploy
    server.delete("/api/2.0/serving-endpoints/e", &json!({})).ok();
    server.create("e", &serving(MODEL, "1")).ok();
    assert_eq!(server.settled("e")["state"]["ready"], "READY");
}

#[test]
fn an_update_swaps_the_version_without_a_failed_request() {
    // given an endpoint with version 1 of two
    let server = with_model();
    server.push(MODEL, &Package::hostile("[settings]\nsecond = 'yes'\n"));
    server.create("e", &serving(MODEL, "1")).ok();
    server.settled("e");

    // when it is updated while clients call it
    let done = Mutex::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !*done.lock().unwrap() {
                    count(&server, "e");
                }
            });
        }
        for version in ["2", "1", "2"] {
            server.update("e", &serving(MODEL, version)).ok();
            assert_eq!(server.settled("e")["config"]["served_entities"][0]["entity_version"], version);
        }
        *done.lock().unwrap() = true;
    });

    // then none of them noticed, and the new version answers
    let answer = server.invoke("e", &json!({ "do": "counter" }));
    assert_eq!((answer.status, answer.header("served-model-name")), (200, "hostile-2"));
    assert_eq!(server.endpoint("e")["config"]["config_version"], 4);
}

#[test]
fn endpoints_of_one_version_may_deploy_at_once() {
    // given a component that compiles quickly
    let server = Server::start();
    server.push(MODEL, &Package::new("component = 'c.wasm'\n").with("c.wasm", guest("stdout")));

    // when two endpoints need it at the same time, again and again, each time with settings that it was not compiled for
    for round in 0..16 {
        for name in ["a", "b"] {
            server.create(name, &serving_with(MODEL, "1", ("round", &round.to_string()))).ok();
        }
        // then both get it
        for name in ["a", "b"] {
            let endpoint = server.settled(name);
            assert_eq!(endpoint["state"]["ready"], "READY", "{endpoint:#}");
            server.delete(&format!("/api/2.0/serving-endpoints/{name}"), &json!({})).ok();
        }
    }
}

/// How many of 2000 requests each served entity of the endpoint `split` answers.
fn shares(server: &Server) -> HashMap<String, usize> {
    let shares = Mutex::new(HashMap::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let answer = server.invoke("split", &json!({ "do": "counter" }));
                    assert_eq!(answer.status, 200);
                    let entity = answer.header("served-model-name").to_owned();
                    *shares.lock().unwrap().entry(entity).or_default() += 1;
                }
            });
        }
    });
    shares.into_inner().unwrap()
}

#[test]
fn traffic_is_split_by_percentage() {
    let server = with_model();
    let config = |old: &Value, new: &Value| {
        json!({
            "served_entities": [
                { "name": "old", "entity_name": MODEL, "entity_version": "1" },
                { "name": "new", "entity_name": MODEL, "entity_version": "1" },
            ],
            "traffic_config": { "routes": [
                { "served_entity_name": "new", "traffic_percentage": new },
                { "served_model_name": "old", "traffic_percentage": old },
            ]},
        })
    };

    // when all traffic goes to one of two entities, then the other gets none
    server.create("split", &config(&json!(100), &json!(0))).ok();
    server.settled("split");
    assert_eq!(shares(&server), HashMap::from([("old".to_owned(), 2000)]));
    // but can be asked by name
    let path = "/serving-endpoints/split/served-models/new/invocations";
    assert_eq!(server.post(path, &json!({ "do": "counter" })).header("served-model-name"), "new");

    // when a tenth goes to it, as text as the official documents write it, then about a tenth does: 200 of 2000, with a
    // standard deviation of 13
    server.update("split", &config(&json!("90"), &json!("10"))).ok();
    let endpoint = server.settled("split");
    assert_eq!(endpoint["config"]["traffic_config"]["routes"][0]["traffic_percentage"], 10);
    let shares = shares(&server);
    assert!((100..300).contains(&shares["new"]) && shares["new"] + shares["old"] == 2000, "{shares:?}");
}

#[test]
fn the_old_names_of_the_api_work() {
    let server = with_model();
    let config = json!({
        "served_models": [{ "model_name": MODEL, "model_version": "1", "workload_size": "Medium", "scale_to_zero_enabled": false }],
        "traffic_config": { "routes": [{ "served_model_name": "hostile-1", "traffic_percentage": 100 }] },
    });
    server.create("legacy", &config).ok();
    let endpoint = server.settled("legacy");
    for (list, name) in [("served_models", "model_name"), ("served_entities", "entity_name")] {
        let entity = &endpoint["config"][list][0];
        assert_eq!((&entity[name], &entity["workload_size"]), (&json!(MODEL), &json!("Medium")));
        assert_eq!(entity["scale_to_zero_enabled"], false);
    }
    count(&server, "legacy");
}

#[test]
fn environment_vars_are_settings_of_the_guest() {
    // given a package with the setting `init = ok`, and an endpoint that sets it otherwise
    let server = Server::start();
    server.push(MODEL, &Package::hostile("[settings]\ninit = 'ok'\n"));
    server.create("e", &serving_with(MODEL, "1", ("init", "a word of the endpoint"))).ok();

    // then the guest saw the endpoint's word
    let endpoint = server.settled("e");
    let state = &endpoint["pending_config"]["served_entities"][0]["state"];
    let message = state["deployment_state_message"].as_str().unwrap();
    assert!(message.contains("setting `init` is `a word of the endpoint`"), "{message}");
    assert!(server.build_log("e").contains("a word of the endpoint"));

    // and the package's own where the endpoint says nothing
    server.update("e", &serving(MODEL, "1")).ok();
    assert_eq!(server.settled("e")["state"]["ready"], "READY");
}

#[test]
fn a_version_in_use_cannot_be_deleted() {
    let server = with_model();
    server.create("user", &serving(MODEL, "1")).ok();
    let version = json!({ "name": MODEL, "version": "1" });
    let delete_version = || server.delete("/api/2.0/mlflow/unity-catalog/model-versions/delete", &version);
    let delete_model =
        || server.delete("/api/2.0/mlflow/unity-catalog/registered-models/delete", &json!({ "name": MODEL }));

    delete_version().is_error(409, "RESOURCE_CONFLICT", &["user"]);
    delete_model().is_error(409, "RESOURCE_CONFLICT", &["user"]);
    server.settled("user");
    delete_version().is_error(409, "RESOURCE_CONFLICT", &["user"]);
    count(&server, "user");

    // once nobody uses it, it can
    server.delete("/api/2.0/serving-endpoints/user", &json!({})).ok();
    delete_version().ok();
    server.create("user", &serving(MODEL, "1")).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["'1'"]);
    delete_model().ok();
    // and its number is not used again while the model is there
    assert_eq!(server.push(MODEL, &Package::hostile("")), "1", "a model of the same name begins anew");
    assert_eq!(server.push(MODEL, &Package::hostile("")), "2");
    server
        .delete("/api/2.0/mlflow/unity-catalog/model-versions/delete", &json!({ "name": MODEL, "version": "2" }))
        .ok();
    assert_eq!(server.push(MODEL, &Package::hostile("")), "3");
}

#[test]
fn a_finalized_version_is_immutable_and_can_be_read_back() {
    let server = with_model();
    let path = "/api/2.0/fs/files/Models/main/default/hostile/1/linear.onnx";
    let answer = send(server.request(Method::PUT, path).body("another"));
    assert!((400..500).contains(&answer.status), "{}", answer.text());

    assert_eq!(server.get(path).body, Package::hostile("").files["linear.onnx"]);
    let listed = server.get("/api/2.0/fs/directories/Models/main/default/hostile/1").ok();
    let names: Vec<_> = listed["contents"].as_array().unwrap().iter().map(|entry| entry["name"].clone()).collect();
    assert_eq!(names, ["hostile.wasm", "linear.onnx", "tessera.toml"]);

    // and no file lands outside of its version
    for bad in ["..%2F..%2Fescape", "%2Fetc%2Fpasswd", ".hidden", "a%2F..%2Fb"] {
        let path = format!("/api/2.0/fs/files/Models/main/default/hostile/1/{bad}");
        let answer = send(server.request(Method::PUT, &path).body("x"));
        assert!((400..500).contains(&answer.status), "{bad}: {}", answer.text());
    }
}

#[test]
fn a_restart_brings_every_endpoint_back() {
    // given endpoints in every state
    let mut server = with_model();
    for name in ["a", "b", "c"] {
        server.create(name, &serving(MODEL, "1")).ok();
        server.settled(name);
    }
    server.update("b", &serving_with(MODEL, "1", ("init", "error"))).ok();
    server.settled("b");
    let token = server.token.clone();
    let list = |server: &Server| ["a", "b", "c"].map(|name| server.endpoint(name));
    let before = list(&server);
    let loads = |server: &Server| server.metric("tessera_graph_loads");

    // when the server ends and starts again
    server.terminate();
    assert!(server.wait().success(), "{}", server.log());
    server.start_again();

    // then nothing has changed but what is in memory, and nothing was loaded that nobody asked for
    assert_eq!(server.token, token);
    assert_eq!(loads(&server), 0.0);
    for (before, after) in before.into_iter().zip(list(&server)) {
        for field in ["name", "id", "state", "creation_timestamp", "last_updated_timestamp", "tags"] {
            assert_eq!(before[field], after[field], "{field}");
        }
        assert_eq!(before["config"]["config_version"], after["config"]["config_version"]);
        assert_eq!(before["pending_config"], after["pending_config"]);
        assert_eq!(after["config"]["served_entities"][0]["state"]["deployment_state_message"], "Scaled to zero");
    }
    for name in ["a", "b", "c"] {
        count(&server, name);
    }
}

/// What a request to the endpoint `e` had to bring into memory.
fn rung(server: &Server) -> String {
    let request =
        server.request(Method::POST, "/serving-endpoints/e/invocations").header("x-tessera-want-cold-start", "1");
    let answer = send(request.json(&json!({ "do": "compute_ok" })));
    answer.ok();
    let text = answer.header("x-tessera-cold-start");
    text.strip_prefix("rung=").unwrap_or_else(|| panic!("'{text}'")).split(';').next().unwrap().to_owned()
}

#[test]
fn an_idle_endpoint_leaves_memory_rung_by_rung_and_comes_back() {
    for (graph_idle_ms, gone, paid) in [("3600000", 1.0, "component"), ("200", 0.0, "graph")] {
        // given an endpoint that has answered
        let server = Server::with(&["--component-idle-ms", "200", "--graph-idle-ms", graph_idle_ms]);
        server.deploy("e", &Package::hostile(""));

        // when nobody asks for a while, then it is scaled to zero
        eventually("the endpoint scales to zero", || {
            let entity = &server.endpoint("e")["config"]["served_entities"][0];
            let scaled = entity["state"]["deployment_state_message"] == "Scaled to zero";
            (scaled && server.metric("tessera_graphs_loaded") == gone).then_some(())
        });

        // and the next request says what it had to bring back, and one soon after it nothing
        assert_eq!(rung(&server), paid);
        eventually("a warm request", || (rung(&server) == "warm").then_some(()));
        let metrics = server.get("/metrics").text();
        assert!(metrics.contains(&format!("rung=\"{paid}\"}} 1")), "{metrics}");
        let cold = &server.endpoint("e")["config"]["served_entities"][0]["last_cold_start"];
        assert!(cold["component_us"].as_u64().unwrap() > 0, "{cold}");
    }
}

#[test]
fn an_endpoint_that_does_not_scale_to_zero_stays() {
    let server = Server::with(&["--component-idle-ms", "50", "--graph-idle-ms", "3600000"]);
    server.push(MODEL, &Package::hostile(""));
    for (name, scale_to_zero) in [("stays", false), ("goes", true)] {
        let entity = json!({ "entity_name": MODEL, "entity_version": "1", "scale_to_zero_enabled": scale_to_zero });
        server.create(name, &json!({ "served_entities": [entity] })).ok();
        server.settled(name);
    }
    let message =
        |name: &str| server.endpoint(name)["config"]["served_entities"][0]["state"]["deployment_state_message"].clone();
    eventually("the other scales to zero", || (message("goes") == "Scaled to zero").then_some(()));
    assert_eq!(message("stays"), "");
}

#[test]
fn an_endpoint_may_have_an_idle_time_of_its_own() {
    // given a server that keeps everything for an hour, and an endpoint that wants a second
    let server = Server::with(&["--component-idle-ms", "3600000", "--graph-idle-ms", "3600000"]);
    server.push(MODEL, &Package::hostile(""));
    server.push("main.default.other", &Package::hostile("[settings]\nother = 'yes'\n"));
    let entity = |model: &str, idle_ms: u64| json!({ "entity_name": model, "entity_version": "1", "scale_to_zero_idle_ms": idle_ms });
    let answer = server.create("never", &json!({ "served_entities": [entity(MODEL, 999)] }));
    answer.is_error(400, "INVALID_PARAMETER_VALUE", &["scale_to_zero_idle_ms is 999", "1000 to"]);
    for (name, model, idle_ms) in [("stays", "main.default.other", 3_000_000), ("goes", MODEL, 1000)] {
        server.create(name, &json!({ "served_entities": [entity(model, idle_ms)] })).ok();
        server.settled(name);
    }

    // then it leaves memory, and the other one does not
    let message =
        |name: &str| server.endpoint(name)["config"]["served_entities"][0]["state"]["deployment_state_message"].clone();
    eventually("the one scales to zero", || (message("goes") == "Scaled to zero").then_some(()));
    assert_eq!(message("stays"), "");
    assert_eq!(server.endpoint("goes")["config"]["served_entities"][0]["scale_to_zero_idle_ms"], 1000);
}

#[test]
fn a_damaged_artifact_is_made_again() {
    // given an endpoint, and a server that is not running
    let mut server = with_model();
    server.create("e", &serving(MODEL, "1")).ok();
    server.settled("e");
    server.terminate();
    server.wait();

    // when somebody changes the compiled code, then it is not run: it is compiled again
    let mut changed = 0;
    for entry in std::fs::read_dir(server.home().join("cache/artifacts")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(byte) = bytes.iter_mut().rev().nth(1000) {
            *byte ^= 1;
            std::fs::write(&path, bytes).unwrap();
            changed += 1;
        }
    }
    assert!(changed > 0);
    server.start_again();
    assert_eq!(rung(&server), "compile");
}

#[test]
fn a_split_can_be_changed_alone() {
    // given an endpoint with two entities, all traffic going to one of them
    let server = with_model();
    let entity = |name: &str| json!({ "name": name, "entity_name": MODEL, "entity_version": "1", "workload_size": "Large", "environment_vars": { "name": name } });
    let routes = |old: u8, new: u8| {
        json!({ "routes": [
            { "served_entity_name": "old", "traffic_percentage": old },
            { "served_entity_name": "new", "traffic_percentage": new },
        ]})
    };
    let config = json!({ "served_entities": [entity("old"), entity("new")], "traffic_config": routes(100, 0) });
    server.create("e", &config).ok();
    let before = server.settled("e");
    let asked = || server.invoke("e", &json!({ "do": "counter" })).header("served-model-name").to_owned();
    assert_eq!(asked(), "old");

    // when nothing but the split is updated
    server.update("e", &json!({ "traffic_config": routes(0, 100) })).ok();

    // then the entities are the same, and the traffic goes to the other one
    let after = server.settled("e");
    assert_eq!(after["state"], json!({ "ready": "READY", "config_update": "NOT_UPDATING" }), "{after:#}");
    for key in ["name", "entity_name", "entity_version", "workload_size", "environment_vars", "creation_timestamp"] {
        for index in [0, 1] {
            let of = |endpoint: &Value| endpoint["config"]["served_entities"][index][key].clone();
            assert_eq!(of(&before), of(&after), "{key} of entity {index}");
        }
    }
    assert_eq!(after["config"]["served_entities"].as_array().unwrap().len(), 2);
    let percentages = after["config"]["traffic_config"]["routes"].as_array().unwrap().iter();
    assert_eq!(percentages.map(|route| route["traffic_percentage"].clone()).collect::<Vec<_>>(), [0, 100]);
    for _ in 0..20 {
        assert_eq!(asked(), "new");
    }

    // and a split among entities that are not there is refused
    let route = json!({ "served_entity_name": "other", "traffic_percentage": 100 });
    let refused = server.update("e", &json!({ "traffic_config": { "routes": [route] } }));
    refused.is_error(400, "INVALID_PARAMETER_VALUE", &["'other'"]);
    server.update("e", &json!({})).is_error(400, "INVALID_PARAMETER_VALUE", &["routes"]);
    assert_eq!(asked(), "new");
}

#[test]
fn a_version_is_not_deleted_under_an_endpoint_that_is_being_made() {
    let server = Server::start();
    let package = Package::new("component = 'c.wasm'\n").with("c.wasm", guest("stdout"));
    let registry = "/api/2.0/mlflow/unity-catalog";
    let mut seen = HashMap::<_, usize>::new();
    for round in 0..40 {
        // given a version of a model of its own
        let model = format!("main.default.race{round}");
        server.push(&model, &package);
        let (what, body) = match round % 2 {
            0 => ("model-versions", json!({ "name": model, "version": "1" })),
            _ => ("registered-models", json!({ "name": model })),
        };

        // when an endpoint of it is made while it is deleted, one or the other a little earlier
        let barrier = Barrier::new(2);
        let wait = |turns: usize| {
            barrier.wait();
            (0..turns * 2000).for_each(|_| std::hint::spin_loop());
        };
        let (made, deleted) = thread::scope(|scope| {
            let made = scope.spawn(|| {
                wait(round % 5);
                server.create("race", &serving(&model, "1"))
            });
            wait((round / 5) % 5);
            let deleted = server.delete(&format!("{registry}/{what}/delete"), &body);
            (made.join().unwrap(), deleted)
        });

        // then only one of them succeeds, and what is acknowledged is so
        let version = server.get(&format!("{registry}/model-versions/get?name={model}&version=1"));
        match (made.status, deleted.status) {
            (200, 409) => {
                version.ok();
                assert_eq!(server.settled("race")["state"]["ready"], "READY");
                server.delete("/api/2.0/serving-endpoints/race", &json!({})).ok();
            }
            (400 | 404, 200) => {
                assert_eq!(version.status, 404, "{}", version.text());
                server.get("/api/2.0/serving-endpoints/race").is_error(404, "RESOURCE_DOES_NOT_EXIST", &["race"]);
            }
            _ => panic!(
                "round {round}: made: {} {}, deleted: {} {}",
                made.status,
                made.text(),
                deleted.status,
                deleted.text()
            ),
        }
        *seen.entry(made.status).or_default() += 1;
    }
    println!("the endpoint was made or not, by status: {seen:?}");
}

#[test]
fn what_would_not_be_done_is_refused_and_not_ignored() {
    let server = with_model();
    let create = |field: &str, value: Value| {
        let mut body = json!({ "name": "e", "config": serving(MODEL, "1") });
        body[field] = value;
        server.post("/api/2.0/serving-endpoints", &body)
    };
    let invalid = "INVALID_PARAMETER_VALUE";

    // what the real service would enforce
    let guardrails = json!({ "guardrails": { "input": { "pii": { "behavior": "BLOCK" } } } });
    create("ai_gateway", guardrails).is_error(400, invalid, &["guardrails.input.pii"]);

    // secrets that there are not
    let config = serving_with(MODEL, "1", ("KEY", "{{secrets/a/b}}"));
    server.create("e", &config).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["environment_vars", "KEY"]);
    server.get("/api/2.0/serving-endpoints/e").is_error(404, "RESOURCE_DOES_NOT_EXIST", &[]);

    // and an empty wish is none: clients send it
    create("rate_limits", Value::Null).ok();
    assert_eq!(server.settled("e")["state"]["ready"], "READY");
    server.update("e", &config).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["environment_vars", "KEY"]);
    count(&server, "e");
}
