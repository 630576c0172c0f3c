//! Real models, compared with the Python libraries that they come from, on the same files and the same input.

use std::collections::BTreeMap;
use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Package, Server, ask_python, guest, model, python, repository, send, tessera};

const COLUMNS: [&str; 4] = ["sepal_length", "sepal_width", "petal_length", "petal_width"];

/// Flowers of all sizes, and some that are none; the same in every run.
fn flowers() -> Vec<[f64; 4]> {
    let mut state = 42u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Two digits, as a person would measure.
        ((state >> 33) % 900) as f64 / 100.0 - 0.5
    };
    (0..50).map(|_| [(); 4].map(|()| random())).collect()
}

/// That predictions, one object per row, are the oracle's columns within 1e-5.
#[track_caller]
fn same(predictions: &Value, oracle: &Value, what: &str) {
    let rows = predictions.as_array().unwrap_or_else(|| panic!("{what}: {predictions}"));
    for (name, column) in oracle.as_object().unwrap() {
        let column = column.as_array().unwrap();
        assert_eq!(rows.len(), column.len(), "{what}");
        for (row, expected) in rows.iter().zip(column) {
            let (got, expected) = (row[name].as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((got - expected).abs() <= 1e-5, "{what}, {name}: {got} is not {expected}");
        }
    }
}

#[test]
fn a_deploy_says_how_many_threads_runs_have_and_the_answers_do_not_depend_on_it() {
    // given a small model for which nothing is said, and the same with more and more threads asked for
    let server = Server::with(&["--executor-threads", "2"]);
    let package = Package::of(&model("iris"));
    let asking = |threads: u32| {
        let manifest = format!("[graphs.model]\nfile = 'model.onnx'\nintra_op_threads = {threads}\n");
        package.clone().with("tessera.toml", manifest)
    };
    let cases = [
        ("measured", package.clone(), 1, "graph 'model' runs with 1 thread each, 2 at once: a run takes "),
        ("one", asking(1), 1, "graph 'model' runs with 1 thread each, 2 at once, as its package asks\n"),
        ("two", asking(2), 2, "graph 'model' runs with 2 threads each, 1 at once, as its package asks\n"),
        ("nine", asking(9), 2, "2 threads each, 1 at once; its package asks for 9, which cannot be had here\n"),
    ];
    let request = json!({ "dataframe_split": { "columns": COLUMNS, "data": flowers() } });
    let mut answers = Vec::new();
    for (name, package, threads, line) in cases {
        // when it is deployed, then its build log and its state say what was chosen
        let endpoint = server.deploy(name, &package);
        assert_eq!(endpoint["config"]["served_entities"][0]["graphs"][0]["intra_op_threads"], threads);
        let log = server.build_log(name);
        assert!(log.contains(line), "{name}: {log}");
        answers.push(server.invoke(name, &request).ok());
    }
    // and all answer the same
    assert!(answers[0]["predictions"].as_array().is_some_and(|rows| rows.len() == flowers().len()));
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");

    // and a number that makes no sense is refused when it is registered
    let (_, finalized) = server.register("main.default.none", &asking(0));
    assert!(finalized.status >= 400 || finalized.json()["model_version"]["status"] != "READY", "{}", finalized.text());
}

#[test]
fn the_iris_model_answers_as_in_python_whatever_the_input_form_and_the_backend() {
    // given the model on both backends, and what Python's onnxruntime makes of random flowers
    let server = Server::start();
    let package = Package::of(&model("iris"));
    for backend in ["tract", "onnxruntime"] {
        let manifest = format!("[graphs.model]\nfile = 'model.onnx'\nbackend = '{backend}'\n");
        let endpoint = server.deploy(backend, &package.clone().with("tessera.toml", manifest));
        assert_eq!(endpoint["config"]["served_entities"][0]["graphs"][0]["backend"], backend);
    }
    let endpoint = server.deploy("iris", &package);
    assert_eq!(endpoint["config"]["served_entities"][0]["graphs"][0]["backend"], "onnxruntime");
    let flowers = flowers();
    let oracle = ask_python(python("iris_oracle.py").arg(model("iris").join("model.onnx")), &json!(flowers));

    // when they are sent in each form
    let records: Vec<Value> = flowers
        .iter()
        .map(|row| COLUMNS.iter().zip(row).map(|(name, value)| ((*name).to_owned(), json!(value))).collect())
        .collect();
    let columns: Value = COLUMNS
        .iter()
        .enumerate()
        .map(|(index, name)| ((*name).to_owned(), json!(flowers.iter().map(|row| row[index]).collect::<Vec<_>>())))
        .collect();
    let rows: Vec<String> = flowers.iter().map(|row| row.map(|value| value.to_string()).join(",")).collect();
    let csv = format!("{}\n{}\n", COLUMNS.join(","), rows.join("\n"));
    let tensor = json!({ "inputs": [{
        "name": "X", "datatype": "FP32", "shape": [flowers.len(), 4], "data": flowers.concat(),
    }] });

    // then each form gives the same
    for endpoint in ["iris", "tract", "onnxruntime"] {
        for (form, body) in [
            ("dataframe_split", json!({ "dataframe_split": { "columns": COLUMNS, "data": flowers } })),
            ("dataframe_records", json!({ "dataframe_records": records })),
            ("instances", json!({ "instances": records })),
            ("inputs", json!({ "inputs": columns })),
        ] {
            let answer = server.invoke(endpoint, &body).ok();
            same(&answer["predictions"], &oracle, &format!("{form} on {endpoint}"));
        }
        let path = format!("/serving-endpoints/{endpoint}/invocations");
        let answer = send(server.request(Method::POST, &path).header("content-type", "text/csv").body(csv.clone()));
        same(&answer.ok()["predictions"], &oracle, &format!("csv on {endpoint}"));

        let answer = server.post(&format!("/v2/models/{endpoint}/infer"), &tensor).ok();
        let outputs = answer["outputs"].as_array().unwrap();
        assert_eq!(outputs.len(), oracle.as_object().unwrap().len());
        for output in outputs {
            let expected = oracle[output["name"].as_str().unwrap()].as_array().unwrap();
            let got = output["data"].as_array().unwrap();
            assert_eq!(got.len(), expected.len());
            for (got, expected) in got.iter().zip(expected) {
                assert!((got.as_f64().unwrap() - expected.as_f64().unwrap()).abs() <= 1e-5, "{output}");
            }
        }
    }

    // and the model describes itself
    let metadata = server.get("/v2/models/iris").ok();
    assert_eq!(metadata["inputs"], json!([{ "name": "X", "datatype": "FP32", "shape": [-1, 4] }]));

    // and says what is wrong with a request
    let short = json!({ "dataframe_split": { "columns": COLUMNS[..3], "data": [[1.0, 2.0, 3.0]] } });
    server.invoke("iris", &short).is_error(400, "INVALID_PARAMETER_VALUE", &["petal_width"]);
    let wrong = json!({ "inputs": [{ "name": "X", "datatype": "FP64", "shape": [1, 4], "data": [1, 2, 3, 4] }] });
    let answer = server.post("/v2/models/iris/infer", &wrong);
    assert_eq!(answer.status, 400);
    assert!(answer.json()["error"].as_str().unwrap().contains("FP32"), "{}", answer.text());
}

/// Sentences of many kinds: short, long, not ASCII, without a word, longer than the model reads.
fn sentences() -> Vec<String> {
    let mut sentences: Vec<String> = [
        "How do I reset my password?",
        "I forgot my login credentials.",
        "The quick brown fox jumps over the lazy dog.",
        "a",
        "!",
        "   spaces   and\ttabs\nand lines   ",
        "Où est la bibliothèque de l'université ?",
        "naïve café, Ångström, Ünïcödé, ﬁligree",
        "e\u{301}quipe de\u{0301}compose\u{0301}e",
        "今日はいい天気ですね。",
        "Привет, как дела?",
        "مرحبا بالعالم",
        "नमस्ते दुनिया",
        "안녕하세요 세계",
        "emoji: 🦀🚀 and a family 👨‍👩‍👧‍👦",
        "3.14159, -42, 1e10, 0xff and 1,000,000",
        "fn main() { println!(\"{:?}\", args); }",
        "https://example.com/path?query=1#fragment",
        "supercalifragilisticexpialidocious antidisestablishmentarianism",
        "MIXED Case TEXT with ALLCAPS",
        "zero\u{200b}width and soft\u{ad}hyphen and \u{feff}mark",
        "[CLS] special [SEP] tokens [MASK] in text [PAD]",
        "unknownchar \u{10ffff} \u{fffd} \u{0} end",
        "x=y²+√z ≠ ∞",
    ]
    .map(str::to_owned)
    .into();
    sentences.push("All happy families are alike; each unhappy family is unhappy in its own way. ".repeat(8));
    sentences.push("word ".repeat(2000));
    sentences.push("長い文章です。".repeat(300));
    sentences
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert_eq!(a.len(), b.len());
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn vector(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// That these are the reference's vectors.
#[track_caller]
fn same_vectors(got: &[Vec<f64>], reference: &[Vec<f64>], sentences: &[String], how: &str) {
    assert_eq!(got.len(), reference.len(), "{how}");
    for ((got, reference), sentence) in got.iter().zip(reference).zip(sentences) {
        let cosine = cosine(got, reference);
        assert!(cosine >= 0.9999, "{how}: cosine {cosine} for {:.60}", sentence);
    }
}

fn embeddings(answer: &Answer) -> Vec<Vec<f64>> {
    answer.ok()["data"].as_array().unwrap().iter().map(|datum| vector(&datum["embedding"])).collect()
}

#[test]
fn the_embeddings_are_those_of_python() {
    // given the model, and what Python's tokenizers and onnxruntime make of sentences, one by one
    let server = Server::start();
    let package = Package::of(&model("minilm"));
    server.deploy("minilm", &package);
    let sentences = sentences();
    let reference = ask_python(python("minilm_oracle.py").arg(model("minilm")), &json!(sentences));
    let reference: Vec<Vec<f64>> = reference.as_array().unwrap().iter().map(vector).collect();

    // when they are sent one by one, in one batch, and as base64, then the vectors are the same
    let each: Vec<Vec<f64>> = sentences
        .iter()
        .map(|sentence| embeddings(&server.invoke("minilm", &json!({ "input": sentence }))).remove(0))
        .collect();
    same_vectors(&each, &reference, &sentences, "one by one");
    let batch = server.invoke("minilm", &json!({ "input": sentences }));
    same_vectors(&embeddings(&batch), &reference, &sentences, "in a batch");
    let answer = server
        .post("/v1/embeddings", &json!({ "model": "minilm", "input": sentences, "encoding_format": "base64" }))
        .ok();
    let decoded: Vec<Vec<f64>> = answer["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|datum| {
            let bytes = BASE64.decode(datum["embedding"].as_str().unwrap()).unwrap();
            bytes.chunks_exact(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))).collect()
        })
        .collect();
    same_vectors(&decoded, &reference, &sentences, "as base64");

    // and so they are through the OpenAI client, at both of its addresses
    for base in ["/serving-endpoints", "/v1"] {
        let mut client = python("openai_client.py");
        client.args([&server.url(base), &server.token, "minilm"]);
        let seen = ask_python(&mut client, &json!(sentences));
        let vectors: Vec<Vec<f64>> = seen["vectors"].as_array().unwrap().iter().map(vector).collect();
        same_vectors(&vectors, &reference, &sentences, base);
        assert!(cosine(&vector(&seen["float"]), &reference[0]) >= 0.9999);
        assert_eq!(seen["indices"], json!((0..sentences.len()).collect::<Vec<_>>()));
        assert_eq!(seen["model"], "minilm");
        assert!(seen["prompt_tokens"].as_u64().unwrap() > 500, "{}", seen["prompt_tokens"]);
        assert!(seen["refused"].as_str().unwrap().contains("'no-such-endpoint' does not exist"), "{}", seen["refused"]);
    }

    // and so they are where every request reads the tokenizer anew
    let manifest = std::fs::read_to_string(model("minilm").join("tessera.toml")).unwrap();
    let manifest = format!("init = 'request'\n{manifest}");
    server.deploy("anew", &package.with("tessera.toml", manifest));
    let few = &sentences[..2];
    let anew = server.invoke("anew", &json!({ "input": few }));
    same_vectors(&embeddings(&anew), &reference[..2], few, "with init in the request");

    // and what makes no sense is refused
    server.invoke("minilm", &json!({ "input": [] })).is_error(400, "BAD_REQUEST", &["empty"]);
    server.invoke("minilm", &json!({ "input": [[1, 2]] })).is_error(400, "BAD_REQUEST", &["token ids"]);
    server.invoke("minilm", &json!({ "inputs": "x" })).is_error(400, "BAD_REQUEST", &["input"]);
}

#[test]
fn file_types_are_those_of_the_magika_package() {
    // given the example with its own code around a real model, and real files of many kinds
    let server = Server::start();
    let example = repository("guest-examples/filetype");
    let mut package = Package::of(&model("filetype"));
    package.files.extend(
        Package::of(&example.join("golden"))
            .files
            .into_iter()
            .map(|(name, content)| (format!("golden/{name}"), content)),
    );
    let manifest = fs::read_to_string(example.join("tessera.toml")).unwrap();
    let component = manifest.lines().find_map(|line| line.strip_prefix("component = ")).unwrap().trim_matches('"');
    server.deploy("filetype", &package.with(component, guest("filetype")).with("tessera.toml", manifest.as_str()));
    let samples = ask_python(&mut python("file_samples.py"), &Value::Null);
    let samples: BTreeMap<String, String> = serde_json::from_value(samples).unwrap();
    let oracle = ask_python(&mut python("magika_oracle.py"), &json!(samples));
    assert!(samples.len() >= 10);

    // when each is sent, as it is and in JSON, then the answer is what it is, and what the Python package says
    for (label, content) in &samples {
        let request = server.request(Method::POST, "/serving-endpoints/filetype/invocations");
        let request = request.header("content-type", "application/octet-stream").body(BASE64.decode(content).unwrap());
        let answer = send(request).ok();
        assert_eq!(answer["label"], label.as_str(), "{answer}");
        assert_eq!(answer["label"], oracle[label]["label"]);
        let (score, expected) = (answer["score"].as_f64().unwrap(), oracle[label]["score"].as_f64().unwrap());
        assert!((score - expected).abs() <= 1e-4, "{label}: {score} is not {expected}");
        assert_eq!(server.invoke("filetype", &json!({ "content_base64": content })).ok(), answer);
    }
}

#[test]
fn models_with_their_weights_in_another_file_keep_them_apart() {
    // given two versions of a model that differ only in the file with the weights
    let server = Server::start();
    let graph = fs::read(repository("tests/fixtures/external.onnx")).unwrap();
    let manifest = "component = 'hostile.wasm'\n[graphs.model]\nfile = 'model.onnx'\nbackend = 'onnxruntime'\n";
    let weights = [[1.0, 2.0, 3.0, 4.0], [50.0, 60.0, 70.0, 80.0]];
    let package = |weights: [f32; 4]| {
        Package::new(manifest)
            .with("hostile.wasm", guest("hostile"))
            .with("model.onnx", graph.clone())
            .with("weights.bin", weights.map(f32::to_le_bytes).concat())
    };
    let versions = weights.map(|weights| server.push("main.default.external", &package(weights)));

    // when both are served at once
    let entity = |version: &String| {
        let name = format!("v{version}");
        json!({ "name": name, "entity_name": "main.default.external", "entity_version": version })
    };
    let route = |version: &String| json!({ "served_entity_name": format!("v{version}"), "traffic_percentage": 50 });
    let config = json!({
        "served_entities": versions.each_ref().map(entity),
        "traffic_config": { "routes": versions.each_ref().map(route) },
    });
    server.create("external", &config).ok();
    assert_eq!(server.settled("external")["state"]["ready"], "READY");

    // then each computes with its own: of zeros, the answer is the weights
    for _ in 0..3 {
        for (version, weights) in versions.iter().zip(weights) {
            let path = format!("/serving-endpoints/external/served-models/v{version}/invocations");
            let answer = server.post(&path, &json!({ "do": "compute_ok" })).ok();
            assert_eq!(answer["outputs"][0]["values"], json!(weights), "version {version}");
        }
    }

    // and a version without the file is refused with the reason
    let mut bare = package(weights[0]);
    bare.files.remove("weights.bin");
    let (_, answer) = server.register("main.default.bare", &bare);
    answer.is_error(400, "INVALID_PARAMETER_VALUE", &["weights.bin"]);
}

#[test]
fn a_gpu_that_is_asked_for_and_absent_fails_the_deploy_and_says_what_is_missing() {
    // given a machine whose doctor says why it has no GPU for graphs
    let doctor = tessera().args(["doctor", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let Some(missing) = report["gpu"]["reason"].as_str().and_then(|reasons| reasons.split("; ").next()) else {
        return eprintln!("SKIPPED: this machine has a GPU");
    };
    let server = Server::start();
    let iris = Package::of(&model("iris"));
    let on_gpu = iris.clone().with("tessera.toml", "[graphs.model]\nfile = 'model.onnx'\ntarget = 'gpu'\n");
    let version = server.push("main.default.iris", &iris);
    let gpu_version = server.push("main.default.iris", &on_gpu);

    // when a package or an endpoint asks for one, then the deploy fails and says the same
    let entity = |version: &str, workload: &str| {
        json!({ "served_entities": [{
            "entity_name": "main.default.iris", "entity_version": version, "workload_type": workload,
        }] })
    };
    for (name, config) in [("by-package", entity(&gpu_version, "CPU")), ("by-type", entity(&version, "GPU_SMALL"))] {
        server.create(name, &config).ok();
        let endpoint = server.settled(name);
        assert_eq!(
            endpoint["state"],
            json!({ "ready": "NOT_READY", "config_update": "UPDATE_FAILED" }),
            "{endpoint:#}"
        );
        let state = &endpoint["pending_config"]["served_entities"][0]["state"];
        let message = state["deployment_state_message"].as_str().unwrap();
        assert!(message.contains("gpu") && message.contains(missing), "'{missing}' is not in: {message}");
    }
}

#[test]
fn a_damaged_converted_graph_is_told_in_the_log_and_made_again_by_the_next_deploy() {
    // given an endpoint, whose deploy left one converted graph
    let mut server = Server::start();
    let package = Package::of(&model("iris"));
    server.deploy("iris", &package);
    let folder = server.home().join("cache/graphs");
    let graphs = || fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let before = graphs();
    assert_eq!(before.len(), 1, "{before:?}");
    let good = fs::read(&before[0]).unwrap();
    let flower = json!({ "dataframe_split": { "columns": COLUMNS, "data": [[5.1, 3.5, 1.4, 0.2]] } });
    let expected = server.invoke("iris", &flower).ok();

    // when it is damaged while the server is down
    server.kill9();
    fs::write(&before[0], &good[..good.len() / 2]).unwrap();
    server.start_again();

    // then the endpoint answers as before, and the log says what happened
    assert_eq!(server.invoke("iris", &flower).ok(), expected);
    assert!(server.log().contains("loads slowly this time"), "{}", server.log());
    assert!(graphs().is_empty());

    // and the next deploy makes it again
    let config = json!({ "served_entities": [{ "entity_name": "main.default.iris", "entity_version": "1" }] });
    server.create("again", &config).ok();
    server.settled("again");
    assert_eq!(graphs(), before);
    assert_eq!(server.invoke("again", &flower).ok(), expected);
}

#[test]
fn concurrent_requests_share_runs_and_each_gets_its_own_answer() {
    // given an endpoint, and what it answers to each of some flowers alone
    let server = Server::start();
    server.deploy("iris", &Package::of(&model("iris")));
    let flower = |n: u32| {
        let x = f64::from(n);
        let columns = ["sepal_length", "sepal_width", "petal_length", "petal_width"];
        let data = [[4.0 + x * 0.05, 2.0 + x * 0.04, 1.0 + x * 0.1, x * 0.04]];
        json!({ "dataframe_split": { "columns": columns, "data": data } })
    };
    let flowers: Vec<_> = (0..48).map(flower).collect();
    let alone: Vec<_> = flowers.iter().map(|flower| server.invoke("iris", flower).ok()).collect();
    let before = (server.metric("tessera_computes"), server.metric("tessera_compute_runs"));

    // when many clients ask at once
    std::thread::scope(|scope| {
        for client in 0..16 {
            let (server, flowers, alone) = (&server, &flowers, &alone);
            scope.spawn(move || {
                for n in (0..40).map(|round| (client * 7 + round * 5) % flowers.len()) {
                    assert_eq!(server.invoke("iris", &flowers[n]).ok(), alone[n]);
                }
            });
        }
    });

    // then everybody got what it would have got alone, in fewer runs than there were requests
    let (computes, runs) = (server.metric("tessera_computes"), server.metric("tessera_compute_runs"));
    assert_eq!(computes - before.0, 640.0);
    assert!(runs - before.1 < 640.0, "{runs} runs");
}
