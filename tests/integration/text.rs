//! Classes of texts and of tokens: the stock component answers what the pipelines of transformers answered, whose packages
//! and answers are in `tests/fixtures/pipelines` (made by the script of that name beside it).

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Package, Server, ask_python, python_sdk, repository};

/// How far scores may be from the pipeline's.
const TOLERANCE: f64 = 1e-4;

fn fixture(name: &str) -> (Package, Value) {
    let folder = repository("tests/fixtures/pipelines").join(name);
    let asked = fs::read(folder.join("asked.json")).unwrap();
    (Package::of(&folder), serde_json::from_slice(&asked).unwrap())
}

/// Whether two answers are the same, up to the last digits of their scores.
fn same(got: &Value, expected: &Value) -> bool {
    match (got, expected) {
        (Value::Array(got), Value::Array(expected)) => {
            got.len() == expected.len() && got.iter().zip(expected).all(|(got, expected)| same(got, expected))
        }
        (Value::Object(got), Value::Object(expected)) => {
            got.len() == expected.len()
                && expected.iter().all(|(name, expected)| got.get(name).is_some_and(|got| same(got, expected)))
        }
        (Value::Number(got), Value::Number(expected)) => {
            (got.as_f64().unwrap() - expected.as_f64().unwrap()).abs() <= TOLERANCE
        }
        (got, expected) => got == expected,
    }
}

#[track_caller]
fn same_predictions(got: &Value, expected: &Value, texts: &Value, what: &str) {
    let rows = |predictions: &Value| predictions.as_array().unwrap_or_else(|| panic!("{what}: {predictions}")).clone();
    let (got, expected) = (rows(got), rows(expected));
    assert_eq!(got.len(), expected.len(), "{what}");
    for (place, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert!(same(got, expected), "{what}: {got} is not {expected}, of {}", texts[place]);
    }
}

#[test]
fn classes_of_texts_and_tokens_are_those_of_transformers() {
    let server = Server::start();
    for (name, texts_len, cases_len) in [("reviews", 200, 6), ("names", 25, 6), ("names_in_bytes", 25, 5)] {
        // given a package of a pipeline, and what the pipeline answers
        let (package, asked) = fixture(name);
        let cases = asked["cases"].as_array().unwrap();
        assert_eq!((asked["texts"].as_array().unwrap().len(), cases.len()), (texts_len, cases_len), "{name}");
        server.deploy(name, &package);
        for case in cases {
            // when the endpoint is asked the same, then it answers the same
            let inputs = case.get("inputs").unwrap_or(&asked["texts"]);
            let params = &case["params"];
            let answer = server.invoke(name, &json!({ "inputs": inputs, "params": params })).ok();
            same_predictions(&answer["predictions"], &case["predictions"], inputs, &format!("{name}, {params}"));
        }
    }
}

#[test]
fn texts_are_taken_in_every_form_that_mlflow_takes() {
    let server = Server::start();
    let (package, asked) = fixture("reviews");
    server.deploy("reviews", &package);
    let texts = asked["texts"].as_array().unwrap();
    let each = |row: fn(&Value) -> Value| texts.iter().map(row).collect::<Value>();
    for body in [
        json!({ "instances": texts }),
        json!({ "inputs": { "review": texts } }),
        json!({ "dataframe_split": { "columns": ["review"], "data": each(|text| json!([text])) } }),
        json!({ "dataframe_records": each(|text| json!({ "review": text })) }),
    ] {
        let answer = server.invoke("reviews", &body).ok();
        let form = body.as_object().unwrap().keys().next().unwrap();
        same_predictions(&answer["predictions"], &asked["cases"][0]["predictions"], &asked["texts"], form);
    }
    let answer = server.invoke("reviews", &json!({ "inputs": [1] }));
    answer.is_error(400, "BAD_REQUEST", &["row 0 is a number"]);
    let answer = server.invoke("reviews", &json!({ "inputs": "a", "params": { "max_length": 7 } }));
    answer.is_error(400, "BAD_REQUEST", &["`max_length`", "top_k"]);
}

#[test]
fn classes_are_tensors_in_the_open_inference_protocol() {
    let server = Server::start();
    let (package, asked) = fixture("reviews");
    server.deploy("reviews", &package);
    let texts = &asked["texts"];
    let len = texts.as_array().unwrap().len();
    let input = json!({ "name": "text", "datatype": "BYTES", "shape": [len], "data": texts });
    let answer = server.post("/v2/models/reviews/infer", &json!({ "inputs": [input] })).ok();
    assert_eq!(answer["outputs"][0]["shape"], json!([len]));
    let (labels, scores) =
        (answer["outputs"][0]["data"].as_array().unwrap(), answer["outputs"][1]["data"].as_array().unwrap());
    let rows: Value =
        labels.iter().zip(scores).map(|(label, score)| json!({ "label": label, "score": score })).collect();
    same_predictions(&rows, &asked["cases"][0]["predictions"], texts, "tensors");
}

#[test]
#[ignore = "needs torch and transformers, which are 6 GB: sdk/python/setup.sh torch"]
fn packaged_pipelines_answer_as_they_did_in_python() {
    // given a server, and pipelines that were made just now
    let server = Server::start();

    // when they are packaged, pushed, deployed, and asked 200 texts
    let mut script = python_sdk("packaged_pipelines.py");
    let seen = ask_python(script.args([&server.url(""), &server.token]), &Value::Null);

    // then every text is answered as the pipeline answers
    let pipelines = seen.as_object().unwrap();
    assert!(pipelines.len() >= 10, "{seen:#}");
    for (name, pipeline) in pipelines {
        assert_eq!(pipeline, &json!({ "ready": "READY", "texts": 200, "differ": 0 }), "{name}");
    }
}
