//! Models of other frameworks, by the Python package: what the endpoint answers is what the model itself predicts.

use serde_json::{Value, json};

use crate::harness::{Server, ask_python, python_sdk};

/// Of each framework and each kind of answer one; all others are compared without a server, by the package's own tests.
const MODELS: [&str; 9] = [
    "logistic_text",
    "logistic_proba",
    "forest",
    "histogram",
    "xgboost_classes",
    "lightgbm",
    "lightgbm_named",
    "mixed_logistic",
    "mixed_lightgbm",
];

#[test]
fn packaged_models_answer_as_their_own_libraries_do() {
    // given a server, and models that were trained just now
    let server = Server::start();

    // when they are packaged, pushed, deployed, and asked 1,000 rows in every form
    let mut script = python_sdk("packaged_models.py");
    let seen = ask_python(script.args([&server.url(""), &server.token]).args(MODELS), &Value::Null);

    // then every row is answered with what the model predicts
    for name in MODELS {
        let model = &seen[name];
        assert_eq!((&model["ready"], &model["rows"]), (&json!("READY"), &json!(1000)), "{name}: {seen:#}");
        let differ = model["differ"].as_array().unwrap();
        assert!(differ.len() >= 2 && differ.iter().all(|rows| *rows == 0), "{name}: {model}");
    }
    let unknown = &seen["unknown text"];
    assert!(unknown[0] == 400 && unknown[1].as_str().unwrap().contains("'Atlantis'] in column 'city'"), "{unknown}");
}

#[test]
fn mlflow_deploys_models_of_its_flavours_to_a_server() {
    // given a server that MLflow's command line and client find by the environment
    let server = Server::start();

    // when models that MLflow saved are created, asked, updated, listed and deleted as deployments
    let mut script = python_sdk("mlflow_deployments.py");
    script.arg("tessera").env("TESSERA_HOST", server.url("")).env("TESSERA_TOKEN", &server.token);
    let seen = ask_python(&mut script, &Value::Null);

    // then they answer as MLflow's scoring server does
    let agree = seen["agree"].as_object().unwrap();
    assert!(agree.len() == 6 && agree.values().all(|agree| *agree == true), "{agree:#?}");
    assert_eq!((&seen["updated"], &seen["got"]), (&json!(true), &json!("READY")));
    assert_eq!((seen["listed"].as_array().unwrap().len(), &seen["left"]), (6, &json!([])));
    assert!(seen["missing"].as_str().unwrap().contains("'deployed-0' does not exist"), "{seen}");

    // and so does what the command line deploys
    let done = |step: usize| (seen["cli"][step][0].as_i64().unwrap(), seen["cli"][step][1].as_str().unwrap());
    assert!(done(0).0 == 0 && done(0).1.contains("sklearn deployment flowers is created"), "{}", done(0).1);
    let answer = done(1).1.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
    assert_eq!(answer.unwrap_or_default()["predictions"], seen["cli_expected"], "{}", done(1).1);
    assert!(done(2).0 == 0 && done(2).1.contains("flowers is deleted"), "{}", done(2).1);
    assert!(seen["exists"].as_str().unwrap().contains("'flowers' exists"), "{seen}");
    assert!(seen["help"].as_str().unwrap().contains("TESSERA_HOST"), "{seen}");
}
