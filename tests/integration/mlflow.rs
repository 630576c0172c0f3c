//! MLflow: its client works unmodified, and its scoring server, running beside ours, is the oracle for every input form.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Package, Server, ask_python, model, printed, python, serving};

/// A copy of the iris model's folder, which MLflow may write to.
fn iris() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in Package::of(&model("iris")).files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

#[test]
fn mlflow_and_databricks_clients_register_deploy_and_predict() {
    // given a server, and a model folder that MLflow wrote
    let server = Server::start();
    let folder = iris();

    // when its clients register, deploy and call the model
    let mut client = python("mlflow_client.py");
    client.args([&server.url(""), &server.token]).arg(folder.path());
    let seen = ask_python(&mut client, &Value::Null);

    // then they saw what they would have seen at Databricks
    assert_eq!(seen["versions"], json!(["1", "2"]));
    let downloaded: Vec<String> = serde_json::from_value(seen["downloaded"].clone()).unwrap();
    assert!(downloaded.contains(&"MLmodel".to_owned()) && downloaded.contains(&"model.onnx".to_owned()), "{seen}");
    assert_eq!((&seen["ready"], &seen["entity"]), (&json!("READY"), &json!("registered-1")));
    assert_eq!(seen["predicted"], seen["queried"]);
    assert_eq!(seen["predicted"][0]["label"], 0, "a setosa: {seen}");
    assert_eq!(seen["served_model_name"], "registered-1");
    assert_eq!(seen["listed"], json!(["registered"]));
    assert!(seen["refused"].as_str().unwrap().contains("'no-such-endpoint' does not exist"), "{seen}");
    assert!(seen["user"].as_str().is_some_and(|user| !user.is_empty()), "{seen}");
    assert_eq!(seen["left"], json!([]));
}

#[test]
fn mlflow_registers_a_model_with_a_large_file() {
    // given a model with a file that the Databricks SDK does not send with one plain request (from 50 MiB on)
    let server = Server::start();
    let folder = iris();
    let bytes = 60 << 20;
    let content: Vec<u8> = (0..bytes).map(|index: u32| (index >> 20) as u8).collect();
    fs::write(folder.path().join("large.bin"), &content).unwrap();

    // when MLflow registers it and fetches it again
    let mut client = python("mlflow_large.py");
    client.args([&server.url(""), &server.token]).arg(folder.path());
    let seen = ask_python(&mut client, &Value::Null);

    // then the file came through
    assert_eq!((&seen["status"], &seen["bytes"], &seen["same"]), (&json!("READY"), &json!(bytes), &json!(true)));
    let path = "/api/2.0/fs/files/Models/main/default/large/1/large.bin";
    assert!(server.get(path).body == content, "the file is another one");

    // in parts, each of which was a file of its own until then
    let shards = fs::read_dir(server.home().join("blobs/sha256")).unwrap();
    let kept: usize = shards.map(|shard| fs::read_dir(shard.unwrap().path()).unwrap().count()).sum();
    let files = fs::read_dir(folder.path()).unwrap().count();
    assert!(kept >= files + 6, "{kept} files are kept for the {files} of the model");

    // and the model serves
    server.create("large", &serving("main.default.large", "1")).ok();
    assert_eq!(server.settled("large")["state"]["ready"], "READY");
}

/// MLflow's scoring server for a folder of models. Ends when dropped, for its stdin is closed then.
struct ScoringServer {
    process: Child,
    port: u16,
}

impl ScoringServer {
    fn start(models: &std::path::Path) -> ScoringServer {
        let mut command = python("mlflow_server.py");
        let mut process = command.arg(models).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap_or_else(|_| panic!("MLflow's scoring server did not start: '{line}'"));
        ScoringServer { process, port }
    }
}

impl Drop for ScoringServer {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

#[test]
fn scoring_answers_as_mlflows_own_server_does() {
    // given models for every part of MLflow's signatures, on MLflow's scoring server and on ours
    let models = tempfile::tempdir().unwrap();
    printed(python("mlflow_models.py").arg(models.path()).output().unwrap());
    let mlflow = ScoringServer::start(models.path());
    let server = Server::start();
    let mut names = Vec::new();
    for entry in fs::read_dir(models.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let registered = format!("main.default.{name}");
        let version = server.push(&registered, &Package::of(&path));
        server.create(&name, &serving(&registered, &version)).ok();
        names.push(name);
    }
    for name in &names {
        let endpoint = server.settled(name);
        assert_eq!(endpoint["state"]["ready"], "READY", "{endpoint:#}");
    }

    // when both are sent the same requests, then both answer the same
    let mut oracle = python("mlflow_oracle.py");
    oracle.arg(models.path());
    oracle.args(["--ours", &server.url("/serving-endpoints/{model}/invocations"), "--token", &server.token]);
    oracle.args(["--mlflow", &format!("http://127.0.0.1:{}/{{model}}/invocations", mlflow.port)]);
    let report = printed(oracle.output().unwrap());
    let summary = report.lines().last().unwrap_or_default();
    println!("{summary}");
    assert!(summary.ends_with("cases, 0 differ") && !summary.starts_with("0 cases"), "{report}");
}
