//! Many endpoints, most of which nobody calls: what is not in memory is still all there.

use std::thread;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Package, Server, eventually, send, serving, serving_with};

const MODEL: &str = "main.default.hostile";

/// Waits until no more than `awake` endpoints are in memory. Asks for none of them, which would wake it.
fn until_awake(server: &Server, awake: f64) {
    let what = format!("{awake} endpoints are awake");
    eventually(&what, || (server.metric("tessera_endpoints_awake") == awake).then_some(()));
}

#[test]
fn an_endpoint_that_went_idle_answers_again_with_its_log_and_counters() {
    // given an endpoint that has answered, and whose guest has written something
    let mut server = Server::with(&["--component-idle-ms", "100"]);
    server.deploy("e", &Package::hostile(""));
    let trap = |server: &Server, word: &str| {
        server.invoke("e", &json!({ "do": "trap", "message": word })).is_error(400, "BAD_REQUEST", &["trap"]);
    };
    trap(&server, "first-word");
    server.invoke("e", &json!({ "do": "compute_ok" })).ok();
    let last_cold_start =
        |server: &Server| server.endpoint("e")["config"]["served_entities"][0]["last_cold_start"].clone();
    let before = server.metric("tessera_invocations_total");
    assert_eq!(before, 2.0);

    // when it has left memory, then a list still shows it as it was
    until_awake(&server, 0.0);
    let listed = server.get("/api/2.0/serving-endpoints").ok();
    assert_eq!(listed["endpoints"][0]["state"], json!({ "ready": "READY", "config_update": "NOT_UPDATING" }));
    assert_eq!(listed["endpoints"][0]["config"]["served_entities"][0]["graphs"][0]["name"], "model");
    assert_eq!(server.metric("tessera_endpoints_awake"), 0.0, "a list wakes nobody");
    assert_eq!(server.metric("tessera_invocations_total"), before);

    // and it answers again, with its log and its counters
    assert!(server.guest_log("e").contains("first-word"));
    until_awake(&server, 0.0);
    trap(&server, "second-word");
    assert_eq!(server.metric("tessera_invocations_total"), before + 1.0);
    assert!(server.build_log("e").contains("ready"));
    until_awake(&server, 0.0);
    assert!(last_cold_start(&server)["component_us"].is_u64());
    let log = server.guest_log("e");
    assert!(log.find("first-word").unwrap() < log.find("second-word").unwrap(), "{log}");

    // and the log outlives a server that was told to end
    trap(&server, "last-word");
    server.terminate();
    server.wait();
    server.start_again();
    let log = server.guest_log("e");
    assert!(log.contains("first-word") && log.contains("last-word"), "{log}");
}

#[test]
fn above_the_most_that_may_be_awake_the_least_recently_used_endpoint_sleeps() {
    // given room for two, and three endpoints, each with a component of its own
    let server = Server::with(&["--awake-endpoints-max", "2"]);
    server.push(MODEL, &Package::hostile(""));
    for name in ["a", "b", "c"] {
        server.create(name, &serving_with(MODEL, "1", ("name", name))).ok();
        server.settled(name);
    }
    let rung = |name: &str| {
        let request = server.request(Method::POST, &format!("/serving-endpoints/{name}/invocations"));
        let request = request.header("x-tessera-want-cold-start", "1");
        let answer = send(request.json(&json!({ "do": "counter" })));
        assert_eq!(answer.ok(), json!({ "counter": 1 }));
        // Requests one after the other: there is room for the next before it wakes its endpoint.
        assert!(server.metric("tessera_endpoints_awake") <= 2.0);
        answer.header("x-tessera-cold-start").split([';', ' ', ',']).next().unwrap().to_owned()
    };
    // when two are called, then they stay in memory
    rung("a");
    rung("b");
    assert_eq!([rung("a"), rung("b"), rung("a")], ["rung=warm"; 3]);

    // and a third takes the place of the one that was not called for longest
    assert_eq!(rung("c"), "rung=component");
    assert_eq!(rung("a"), "rung=warm");
    assert_eq!(rung("b"), "rung=component", "it had to sleep for c");
    assert_eq!(rung("a"), "rung=warm");
    assert_eq!(rung("c"), "rung=component", "it had to sleep for b");
}

#[test]
fn endpoints_of_one_model_share_its_component() {
    // given two endpoints of one model and one of another
    let server = Server::start();
    server.push(MODEL, &Package::hostile(""));
    server.create("one", &serving(MODEL, "1")).ok();
    server.settled("one");
    assert_eq!(server.metric("tessera_components_loaded"), 1.0);
    server.create("same", &serving(MODEL, "1")).ok();
    server.settled("same");

    // then the two have one component, and each request still has an instance of its own
    assert_eq!(server.metric("tessera_components_loaded"), 1.0);
    for name in ["one", "same", "one", "same"] {
        assert_eq!(server.invoke(name, &json!({ "do": "counter" })).ok(), json!({ "counter": 1 }));
    }
    assert_eq!(server.metric("tessera_components_loaded"), 1.0);

    // and what differs in what init may read is another one
    server.create("other", &serving_with(MODEL, "1", ("word", "another"))).ok();
    server.settled("other");
    assert_eq!(server.metric("tessera_components_loaded"), 2.0);

    // and the shared one stays until the last of them is gone
    let gone = |name: &str| server.delete(&format!("/api/2.0/serving-endpoints/{name}"), &json!({})).ok();
    gone("one");
    assert_eq!(server.metric("tessera_components_loaded"), 2.0);
    gone("same");
    eventually("it is gone", || (server.metric("tessera_components_loaded") == 1.0).then_some(()));
}

#[test]
fn a_thousand_endpoints_are_all_reachable_after_a_restart() {
    const ENDPOINTS: usize = 1000;
    let names: Vec<String> = (0..ENDPOINTS).map(|number| format!("e{number:03}")).collect();
    let for_each = |server: &Server, act: fn(&Server, &str)| {
        thread::scope(|scope| {
            for names in names.chunks(ENDPOINTS / 4) {
                scope.spawn(move || names.iter().for_each(|name| act(server, name)));
            }
        });
    };
    let listed = |server: &Server| -> Vec<Value> {
        server.get("/api/2.0/serving-endpoints").ok()["endpoints"].as_array().unwrap().clone()
    };
    let ready = json!({ "ready": "READY", "config_update": "NOT_UPDATING" });

    // given a thousand endpoints
    let mut server = Server::with(&["--workspace-endpoints-max", "1000"]);
    server.push(MODEL, &Package::hostile(""));
    for_each(&server, |server, name| drop(server.create(name, &serving(MODEL, "1")).ok()));
    eventually("all are ready", || listed(&server).iter().all(|endpoint| endpoint["state"] == ready).then_some(()));

    // when the server starts again, then it has all of them, and none in memory
    server.terminate();
    server.wait();
    server.start_again();
    assert_eq!(server.metric("tessera_endpoints"), ENDPOINTS as f64);
    assert_eq!(server.metric("tessera_endpoints_awake"), 0.0);
    let after = listed(&server);
    assert!(after.iter().all(|endpoint| endpoint["state"] == ready));
    assert!(after.iter().map(|endpoint| endpoint["name"].as_str().unwrap()).eq(names.iter()));

    // and every one answers
    for_each(&server, |server, name| {
        assert_eq!(server.invoke(name, &json!({ "do": "counter" })).ok(), json!({ "counter": 1 }));
    });
    assert_eq!(server.metric("tessera_invocations_total"), ENDPOINTS as f64);
}

#[test]
fn endpoints_that_were_called_and_sleep_give_their_memory_back() {
    const ENDPOINTS: u64 = 300;
    // An endpoint that is awake takes more than 10 KiB; one that was called and sleeps keeps its series, of 2 KiB.
    const KIB_GIVEN_BACK: u64 = 5;
    let call_all = |server: &Server| {
        for number in 0..ENDPOINTS {
            server.invoke(&format!("e{number}"), &json!({ "do": "compute_ok" })).ok();
        }
    };

    // given endpoints that were all called after a start, and are awake
    let mut server = Server::start();
    server.push(MODEL, &Package::hostile(""));
    for number in 0..ENDPOINTS {
        server.create(&format!("e{number}"), &serving(MODEL, "1")).ok();
    }
    for number in 0..ENDPOINTS {
        server.settled(&format!("e{number}"));
    }
    server.terminate();
    server.wait();
    server.start_again();
    call_all(&server);
    assert_eq!(server.metric("tessera_endpoints_awake"), ENDPOINTS as f64);
    let awake = server.memory_kib();

    // when they go to sleep in a server that did the same
    server.terminate();
    server.wait();
    server.add_flags(&["--component-idle-ms", "100", "--graph-idle-ms", "100"]);
    server.start_again();
    call_all(&server);
    until_awake(&server, 0.0);

    // then what was theirs is given back
    let most = awake - ENDPOINTS * KIB_GIVEN_BACK;
    eventually(&format!("memory is below {most} KiB"), || (server.memory_kib() < most).then_some(()));
}

#[test]
fn what_does_not_scale_to_zero_is_back_in_memory_after_a_restart() {
    let mut server = Server::start();
    server.push(MODEL, &Package::hostile(""));
    for (name, scale_to_zero) in [("stays", false), ("sleeps", true)] {
        let entity = json!({ "entity_name": MODEL, "entity_version": "1", "scale_to_zero_enabled": scale_to_zero });
        server.create(name, &json!({ "served_entities": [entity] })).ok();
        server.settled(name);
    }
    server.terminate();
    server.wait();
    server.start_again();
    until_awake(&server, 1.0);
    eventually("its graph is loaded", || (server.metric("tessera_graphs_loaded") == 1.0).then_some(()));
    let request =
        server.request(Method::POST, "/serving-endpoints/stays/invocations").header("x-tessera-want-cold-start", "1");
    let answer = send(request.json(&json!({ "do": "compute_ok" })));
    answer.ok();
    assert!(answer.header("x-tessera-cold-start").starts_with("rung=warm"), "{:?}", answer.headers);
}
