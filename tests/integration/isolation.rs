//! Nothing of one request is there for another: each runs in an instance of its own, in memory that is as `init` left it.

use std::thread;

use serde_json::json;

use crate::harness::{Package, Server};

#[test]
fn a_static_counter_reads_the_same_on_every_request() {
    // given an endpoint whose guest counts its requests in a static
    let server = Server::start();
    server.deploy("counter", &Package::hostile(""));

    // when 16 clients call it at once, then no request finds that another one was there
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..60 {
                    assert_eq!(server.invoke("counter", &json!({ "do": "counter" })).ok(), json!({ "counter": 1 }));
                }
            });
        }
    });
}

#[test]
fn what_a_request_leaves_in_memory_is_not_there_for_the_next() {
    // given two endpoints
    let server = Server::start();
    for name in ["one", "other"] {
        server.deploy(name, &Package::hostile(""));
    }

    // when requests fill their memory with a marker, half of them trap with it, and four clients do so at once
    thread::scope(|scope| {
        for client in 0..4 {
            let server = &server;
            scope.spawn(move || {
                for round in 0..75 {
                    let written = server.invoke("one", &json!({ "do": "marker_write" })).ok();
                    assert!(written["markers"].as_u64().unwrap() > 100_000, "the scan can find them: {written}");
                    if (client + round) % 2 == 0 {
                        let trapped = server.invoke("one", &json!({ "do": "marker_trap" }));
                        trapped.is_error(400, "BAD_REQUEST", &["trapped"]);
                    }
                    // then no later request finds one in its memory, whichever endpoint it calls
                    for name in ["one", "other"] {
                        let found = server.invoke(name, &json!({ "do": "marker_scan" })).ok();
                        assert_eq!(found, json!({ "markers": 0 }), "round {round} of client {client} on {name}");
                    }
                }
            });
        }
    });
}
