//! `kill -9` at any moment: what was acknowledged is there after the restart, and nothing is half-made.
//!
//! A client changes endpoints and registers models, one change after the other, while the server is killed at a random
//! moment. What the client knows is kept in [`Known`]: one possible state where the answer came, two where it did not.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;
use std::{fmt, thread};

use reqwest::Method;
use reqwest::blocking::RequestBuilder;
use serde_json::{Value, json};

use crate::harness::{Package, Server, client, serving_with};

const CYCLES: u32 = 30;
const ENDPOINTS: [&str; 4] = ["a", "b", "c", "d"];
const MODEL: &str = "main.default.hostile";
const PUSHED: &str = "main.default.pushed";

/// A random number generator whose seed can be told: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// An endpoint as a client sees it: absent, or with the number of its newest config.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    Present(u64),
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Absent => f.write_str("absent"),
            State::Present(version) => write!(f, "config {version}"),
        }
    }
}

/// What a client can know: each endpoint is in one of these states, and these model versions are there.
struct Known {
    endpoints: BTreeMap<&'static str, Vec<State>>,
    versions: Vec<(String, Package)>,
}

/// Changes one thing after the other until the server is gone.
fn change_until_killed(known: &mut Known, random: &mut Random, request: impl Fn(Method, &str) -> RequestBuilder) {
    loop {
        if random.below(8) == 0 {
            if !push(known, random, &request) {
                return;
            }
            continue;
        }
        let name = ENDPOINTS[random.below(ENDPOINTS.len() as u64) as usize];
        let path = format!("/api/2.0/serving-endpoints/{name}");
        // Four kinds of config, so that some deploys compile and some find it done.
        let config = serving_with(MODEL, "1", ("kind", ["0", "1", "2", "3"][random.below(4) as usize]));
        let now = known.endpoints[name][0];
        let (call, then) = match (now, random.below(3)) {
            (State::Absent, _) => {
                let body = json!({ "name": name, "config": config });
                (request(Method::POST, "/api/2.0/serving-endpoints").json(&body), State::Present(1))
            }
            (State::Present(_), 0) => (request(Method::DELETE, &path), State::Absent),
            (State::Present(version), _) => {
                (request(Method::PUT, &format!("{path}/config")).json(&config), State::Present(version + 1))
            }
        };
        let state = match call.send() {
            // Not acknowledged: it may have happened or not.
            Err(_) => {
                known.endpoints.insert(name, vec![now, then]);
                return;
            }
            Ok(response) if response.status() == 200 => then,
            // The one refusal there is: an update while another one runs.
            Ok(response) if response.status() == 409 => now,
            Ok(response) => panic!("{name}, {now:?} to {then:?}: {}", response.text().unwrap_or_default()),
        };
        known.endpoints.insert(name, vec![state]);
    }
}

/// Registers a version of a model; whether the server lived until its end.
fn push(known: &mut Known, random: &mut Random, request: &impl Fn(Method, &str) -> RequestBuilder) -> bool {
    let registry = "/api/2.0/mlflow/unity-catalog/model-versions";
    let package = Package::new("component = 'c.wasm'\n").with("c.wasm", vec![random.below(256) as u8; 200_000]);
    let run = || -> reqwest::Result<String> {
        let made = request(Method::POST, &format!("{registry}/create")).json(&json!({ "name": PUSHED })).send()?;
        let made: Value = made.error_for_status()?.json()?;
        let version = made["model_version"]["version"].as_str().unwrap().to_owned();
        for (name, content) in &package.files {
            let path = format!("/api/2.0/fs/files/Models/main/default/pushed/{version}/{name}");
            request(Method::PUT, &path).body(content.clone()).send()?.error_for_status()?;
        }
        let body = json!({ "name": PUSHED, "version": version });
        request(Method::POST, &format!("{registry}/finalize")).json(&body).send()?.error_for_status()?;
        Ok(version)
    };
    match run() {
        Ok(version) => {
            known.versions.push((version, package.clone()));
            true
        }
        Err(error) if error.is_status() => panic!("{error}"),
        Err(_) => false,
    }
}

/// That every endpoint is in a state that the client can have left it in, and gets ready.
fn check_endpoints(server: &Server, known: &mut Known) {
    for (name, possible) in &mut known.endpoints {
        let answer = server.get(&format!("/api/2.0/serving-endpoints/{name}"));
        let state = match answer.status {
            404 => State::Absent,
            _ => {
                let endpoint = answer.ok();
                let config = endpoint.get("pending_config").or(endpoint.get("config"));
                let config = config.unwrap_or_else(|| panic!("half-made: {endpoint:#}"));
                State::Present(config["config_version"].as_u64().unwrap())
            }
        };
        assert!(possible.contains(&state), "'{name}' is {state:?}, but the client knows {possible:?}");
        *possible = vec![state];
        if let State::Present(version) = state {
            let endpoint = server.settled(name);
            assert_eq!(endpoint["state"], json!({ "ready": "READY", "config_update": "NOT_UPDATING" }), "{endpoint:#}");
            assert_eq!(endpoint["config"]["config_version"], version, "{endpoint:#}");
            assert_eq!(server.invoke(name, &json!({ "do": "counter" })).ok(), json!({ "counter": 1 }));
        }
    }
    let list = server.get("/api/2.0/serving-endpoints").ok();
    let present = known.endpoints.values().filter(|states| states[0] != State::Absent).count();
    assert_eq!(list["endpoints"].as_array().unwrap().len(), present, "{list:#}");
}

/// That every registered version is ready, with its files byte for byte.
fn check_versions(server: &Server, known: &Known) {
    for (version, package) in &known.versions {
        let path = format!("/api/2.0/mlflow/unity-catalog/model-versions/get?name={PUSHED}&version={version}");
        assert_eq!(server.get(&path).ok()["model_version"]["status"], "READY");
        for (name, content) in &package.files {
            let file = server.get(&format!("/api/2.0/fs/files/Models/main/default/pushed/{version}/{name}"));
            assert!(file.status == 200 && file.body == *content, "{name} of version {version} is another");
        }
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9_and_nothing_is_half_made() {
    let seed = RandomState::new().hash_one(0) | 1;
    println!("seed {seed}");
    let mut random = Random(seed);

    // given a server with two models
    let mut server = Server::start();
    server.push(MODEL, &Package::hostile(""));
    let made = server.post("/api/2.0/mlflow/unity-catalog/registered-models/create", &json!({ "name": PUSHED }));
    made.ok();
    let mut known = Known { endpoints: ENDPOINTS.map(|name| (name, vec![State::Absent])).into(), versions: Vec::new() };

    for cycle in 0..CYCLES {
        // when it is killed while a client makes changes
        let moment = Duration::from_micros(random.below(300_000));
        let (address, token) = (server.address.clone(), server.token.clone());
        let mut client_random = Random(random.below(u64::MAX) | 1);
        thread::scope(|scope| {
            let known = &mut known;
            scope.spawn(move || {
                // No pool: a request on a connection that has died meanwhile would be sent again by the client.
                let client = client().pool_max_idle_per_host(0).build().unwrap();
                change_until_killed(known, &mut client_random, |method, path| {
                    client.request(method, format!("http://{address}{path}")).bearer_auth(&token)
                });
            });
            thread::sleep(moment);
            server.kill9();
        });

        // then after the restart all that was acknowledged is there, and every endpoint gets ready
        server.start_again();
        println!("cycle {cycle}: {:?}, {} versions", known.endpoints, known.versions.len());
        check_endpoints(&server, &mut known);
        check_versions(&server, &known);
    }
    assert!(!known.versions.is_empty());
}

#[test]
fn a_deploy_that_was_cut_off_is_taken_up_again() {
    // given an endpoint in the middle of an update that cannot succeed
    let mut server = Server::start();
    server.push(MODEL, &Package::hostile(""));
    server.create("e", &serving_with(MODEL, "1", ("kind", "0"))).ok();
    server.settled("e");
    server.update("e", &serving_with(MODEL, "1", ("init", "loop"))).ok();

    // when the server is killed and started again
    server.kill9();
    server.start_again();

    // then the update goes on, to its end, and the old config serves all the time
    let endpoint = server.endpoint("e");
    assert_eq!(endpoint["state"], json!({ "ready": "READY", "config_update": "IN_PROGRESS" }));
    server.invoke("e", &json!({ "do": "counter" })).ok();
    assert_eq!(server.settled("e")["state"], json!({ "ready": "READY", "config_update": "UPDATE_FAILED" }));
    server.invoke("e", &json!({ "do": "counter" })).ok();
}

#[test]
fn one_home_has_one_server() {
    // given a running server
    let mut server = Server::start();
    let home = server.home();

    // when another one is started on its home, then it refuses, and the first goes on
    let other =
        crate::harness::tessera().args(["serve", "--listen", "127.0.0.1:0", "--home"]).arg(&home).output().unwrap();
    assert!(!other.status.success());
    assert!(String::from_utf8_lossy(&other.stderr).contains("home"), "{}", String::from_utf8_lossy(&other.stderr));
    server.push(MODEL, &Package::hostile(""));
    assert!(home.join("address").exists(), "the address of the first is still there");
    server.kill9();
    server.start_again();
    server.create("e", &serving_with(MODEL, "1", ("kind", "0"))).ok();
}
