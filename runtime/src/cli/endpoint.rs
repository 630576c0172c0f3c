//! `tessera endpoint …`: create, update, list, get, delete; traffic, tags, stop, start; metrics, openapi.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use indicatif::ProgressBar;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::client::{self, Client};
use super::model::ModelName;
use super::wire::{Endpoint, EndpointList};
use super::{Session, table};

/// Deploys take seconds; the clients of Databricks give up after the same time.
const WAIT_MAX: Duration = Duration::from_secs(20 * 60);
const POLL_MIN: Duration = Duration::from_millis(100);
const POLL_MAX: Duration = Duration::from_secs(1);

/// What can be done with endpoints.
#[derive(Debug, Subcommand)]
pub enum EndpointCommand {
    /// Deploy a model version as a new endpoint
    Create(ConfigArgs),
    /// Replace what an endpoint serves; the old model serves until the new one is ready
    Update(ConfigArgs),
    /// List all endpoints
    List,
    /// Show one endpoint: state, served entities, backends, last error
    Get {
        /// Name of the endpoint.
        #[arg(value_name = "NAME", value_parser = endpoint_name)]
        name: String,
    },
    /// Give each served entity its share of the traffic, at once: traffic NAME blue=90 green=10
    Traffic {
        /// Name of the endpoint.
        #[arg(value_name = "NAME", value_parser = endpoint_name)]
        name: String,
        /// Share of a served entity in percent; all together are 100.
        #[arg(value_name = "ENTITY=PERCENT", required = true, value_parser = share)]
        shares: Vec<(String, u8)>,
    },
    /// Add labels to an endpoint, or take some away
    Tags {
        /// Name of the endpoint.
        #[arg(value_name = "NAME", value_parser = endpoint_name)]
        name: String,
        /// Labels to add, with or without a value.
        #[arg(value_name = "KEY[=VALUE]")]
        add: Vec<String>,
        /// Labels to take away.
        #[arg(long, value_name = "KEY")]
        delete: Vec<String>,
    },
    /// Stop an endpoint: it keeps its config and serves nothing
    Stop {
        /// Name of the endpoint.
        #[arg(value_name = "NAME", value_parser = endpoint_name)]
        name: String,
    },
    /// Start a stopped endpoint: its config is deployed again
    Start {
        /// Name of the endpoint.
        #[arg(value_name = "NAME", value_parser = endpoint_name)]
        name: String,
        /// Wait until it serves, or say why it does not
        #[arg(long)]
        wait: bool,
    },
    /// Print the metrics of an endpoint
    Metrics {
        /// Name of the endpoint.
        #[arg(value_name = "NAME", value_parser = endpoint_name)]
        name: String,
    },
    /// Print what an endpoint's models accept and answer, as an OpenAPI document
    Openapi {
        /// Name of the endpoint.
        #[arg(value_name = "NAME", value_parser = endpoint_name)]
        name: String,
    },
    /// Delete an endpoint
    Delete {
        /// Name of the endpoint.
        #[arg(value_name = "NAME", value_parser = endpoint_name)]
        name: String,
    },
}

/// What an endpoint shall serve.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["model", "file"]))]
pub struct ConfigArgs {
    /// Name of the endpoint
    #[arg(value_name = "NAME", value_parser = endpoint_name)]
    name: String,
    /// Registered model to serve
    #[arg(long, value_name = "CATALOG.SCHEMA.MODEL", requires = "version")]
    model: Option<ModelName>,
    /// Version of the model
    #[arg(long, value_name = "N", requires = "model")]
    version: Option<u64>,
    /// How many requests it may serve at once
    #[arg(long, value_name = "SIZE", default_value = "Small", ignore_case = true)]
    workload_size: WorkloadSize,
    /// Whether it may leave memory while idle
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    scale_to_zero: bool,
    /// JSON file with the config instead, as in the REST API: {"served_entities": […], "traffic_config": {…}}
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Wait until it serves, or say why it does not
    #[arg(long)]
    wait: bool,
}

/// Size classes of the REST API.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum WorkloadSize {
    Small,
    Medium,
    Large,
}

pub(super) fn run(session: &mut Session, command: EndpointCommand) -> anyhow::Result<()> {
    match command {
        EndpointCommand::Create(args) => {
            let answer = session.client.call(Method::POST, &endpoint(&[]), &create_body(&args)?)?;
            finish(session, &args.name, args.wait, answer)
        }
        EndpointCommand::Update(args) => {
            let path = endpoint(&[&args.name, "config"]);
            let answer = session.client.call(Method::PUT, &path, &update_body(&args)?)?;
            finish(session, &args.name, args.wait, answer)
        }
        EndpointCommand::List => {
            let answer = session.client.get(&endpoint(&[]), &[])?;
            session.answer(&answer, || Ok(table::endpoints(&client::parse::<EndpointList>(&answer)?.endpoints)))
        }
        EndpointCommand::Get { name } => {
            let answer = session.client.get(&endpoint(&[&name]), &[])?;
            session.answer(&answer, || Ok(table::endpoint(&client::parse(&answer)?)))
        }
        EndpointCommand::Traffic { name, shares } => {
            let route = |(entity, percentage): &(String, u8)| json!({ "served_entity_name": entity, "traffic_percentage": percentage });
            let routes: Vec<Value> = shares.iter().map(route).collect();
            let body = json!({ "traffic_config": { "routes": routes } });
            let answer = session.client.call(Method::PUT, &endpoint(&[&name, "config"]), &body)?;
            session.answer(&answer, || Ok(table::endpoint(&client::parse(&answer)?)))
        }
        EndpointCommand::Tags { name, add, delete } => {
            let body =
                json!({ "add_tags": add.iter().map(|tag| label(tag)).collect::<Vec<_>>(), "delete_tags": delete });
            let answer = session.client.call(Method::PATCH, &endpoint(&[&name, "tags"]), &body)?;
            session.answer(&answer, || Ok(table::tags(&client::parse(&answer)?)))
        }
        EndpointCommand::Stop { name } => {
            let answer = session.client.call(Method::POST, &endpoint(&[&name, "config:stop"]), &json!({}))?;
            session.answer(&answer, || Ok(format!("stopped endpoint {name}")))
        }
        EndpointCommand::Start { name, wait } => {
            let answer = session.client.call(Method::POST, &endpoint(&[&name, "config:start"]), &json!({}))?;
            finish(session, &name, wait, answer)
        }
        EndpointCommand::Metrics { name } => {
            let answer = session.client.get(&endpoint(&[&name, "metrics"]), &[])?;
            session.answer(&answer, || Ok(answer.clone()))
        }
        EndpointCommand::Openapi { name } => {
            let answer = session.client.get(&endpoint(&[&name, "openapi"]), &[])?;
            session.answer(&answer, || Ok(super::json::pretty(&answer)))
        }
        EndpointCommand::Delete { name } => {
            let answer = session.client.call(Method::DELETE, &endpoint(&[&name]), &json!({}))?;
            session.answer(&answer, || Ok(format!("deleted endpoint {name}")))
        }
    }
}

/// The path of the endpoints, or of what lies below them.
pub(super) fn endpoint<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [&["api", "2.0", "serving-endpoints"], rest].concat()
}

/// Checked here, for a name becomes part of a path. The server says the rest.
pub(super) fn endpoint_name(name: &str) -> Result<String, &'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match name {
        "" => Err("an endpoint's name has at least one character"),
        _ if name.chars().all(allowed) => Ok(name.to_owned()),
        _ => Err("an endpoint's name has only letters, digits, - and _"),
    }
}

/// `blue=90`.
fn share(text: &str) -> Result<(String, u8), String> {
    let (entity, percentage) = text.split_once('=').ok_or("a share is ENTITY=PERCENT, such as blue=90")?;
    match percentage.parse() {
        Ok(percentage) if percentage <= 100 => Ok((entity.to_owned(), percentage)),
        _ => Err(format!("'{percentage}' is not a whole number from 0 to 100")),
    }
}

/// `team=a`, or a key alone.
fn label(text: &str) -> Value {
    match text.split_once('=') {
        Some((key, value)) => json!({ "key": key, "value": value }),
        None => json!({ "key": text }),
    }
}

/// Prints what create or update answered, or with `wait` what has become of it.
fn finish(session: &mut Session, name: &str, wait_for_it: bool, answer: String) -> anyhow::Result<()> {
    if wait_for_it {
        let answer = wait(&session.client, name, POLL_MIN)?;
        return session.answer(&answer, || Ok(table::endpoint(&client::parse(&answer)?)));
    }
    session
        .answer(&answer, || Ok(format!("deploying endpoint {name}: `tessera endpoint get {name}` tells how it goes")))
}

/// Polls until the newest config serves or has failed, at first with this pause between.
pub(super) fn wait(client: &Client, name: &str, mut pause: Duration) -> anyhow::Result<String> {
    let started = Instant::now();
    let spinner = ProgressBar::new_spinner().with_message(format!("deploying {name}")); // hidden without a terminal
    loop {
        let answer = client.get(&endpoint(&[name]), &[])?;
        let now: Endpoint = client::parse(&answer)?;
        match now.state.config_update.as_str() {
            "NOT_UPDATING" => return Ok(answer),
            "IN_PROGRESS" if started.elapsed() < WAIT_MAX => {
                spinner.tick();
                thread::sleep(pause);
                pause = (pause * 3 / 2).min(POLL_MAX);
            }
            "IN_PROGRESS" => bail!("endpoint '{name}' still deploys after {} minutes", WAIT_MAX.as_secs() / 60),
            state => {
                let old = if now.config.is_some() { "; the old config serves on" } else { "" };
                bail!("endpoint '{name}' failed to deploy ({state}{old}): {}", now.failure())
            }
        }
    }
}

/// The whole endpoint; a file may hold that, or only its `config`.
fn create_body(args: &ConfigArgs) -> anyhow::Result<Value> {
    let mut body = config(args)?;
    if !body.contains_key("config") {
        body = Map::from_iter([("config".to_owned(), Value::Object(body))]);
    }
    body.insert("name".to_owned(), args.name.clone().into());
    Ok(Value::Object(body))
}

/// Only the config, flat.
fn update_body(args: &ConfigArgs) -> anyhow::Result<Value> {
    let mut body = config(args)?;
    Ok(body.remove("config").unwrap_or(Value::Object(body)))
}

fn config(args: &ConfigArgs) -> anyhow::Result<Map<String, Value>> {
    if let Some(path) = &args.file {
        return read_config(path);
    }
    let (Some(model), Some(version)) = (&args.model, args.version) else {
        bail!("--model and --version, or --file, say what the endpoint serves") // clap refuses this before
    };
    let entity = json!({
        "entity_name": model.full(),
        "entity_version": version.to_string(),
        "workload_size": format!("{:?}", args.workload_size),
        "scale_to_zero_enabled": args.scale_to_zero,
    });
    Ok(Map::from_iter([("served_entities".to_owned(), json!([entity]))]))
}

fn read_config(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} holds no JSON object", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::client::tests::Script;
    use super::super::{Cli, ClientCommand, Command, Format};
    use super::*;
    use clap::Parser;

    /// Runs `tessera endpoint <line>` against scripted answers: what it printed or its error, and what it asked.
    fn run_line(line: &str, answers: &[(u16, &str)]) -> (Result<String, String>, Vec<(String, String)>) {
        let cli = Cli::try_parse_from(["tessera", "endpoint"].into_iter().chain(line.split(' '))).unwrap();
        let Command::Client(ClientCommand::Endpoint { command, .. }) = cli.command else { panic!("{line}") };
        let script = Script::start(answers);
        let mut out = Vec::new();
        let client = client::for_tests(&script.address);
        let result = run(&mut Session { client, format: Format::Human, out: &mut out }, command);
        let result = result.map(|()| String::from_utf8(out).unwrap()).map_err(|error| format!("{error:#}"));
        (result, script.asked().into_iter().map(|asked| (asked.line, asked.body)).collect())
    }

    const FAILED: &str = r#"{"name":"iris","state":{"ready":"READY","config_update":"UPDATE_FAILED"},
        "config":{"config_version":1},
        "pending_config":{"served_entities":[{"name":"iris-2","state":{"deployment":"DEPLOYMENT_FAILED",
            "deployment_state_message":"graph model: no operator Foo"}}]}}"#;

    #[test]
    fn create_waits_until_the_endpoint_serves() {
        let ready = r#"{"name":"iris","state":{"ready":"READY","config_update":"NOT_UPDATING"}}"#;
        let line = "create iris --model main.default.iris --version 2 --wait --scale-to-zero false";
        let (printed, asked) = run_line(line, &[(200, "{}"), (200, ready)]);
        assert!(printed.unwrap().contains("READY"));
        let body: Value = serde_json::from_str(&asked[0].1).unwrap();
        let entity = json!({"entity_name": "main.default.iris", "entity_version": "2", "workload_size": "Small",
                            "scale_to_zero_enabled": false});
        assert_eq!(body, json!({"name": "iris", "config": {"served_entities": [entity]}}));
        assert_eq!(asked[0].0, "POST /api/2.0/serving-endpoints");
        assert_eq!(asked[1].0, "GET /api/2.0/serving-endpoints/iris");
    }

    #[test]
    fn a_failed_deploy_is_told_with_its_reason() {
        let line = "update iris --model main.default.iris --version 2 --wait";
        let (printed, asked) = run_line(line, &[(200, "{}"), (200, FAILED)]);
        assert_eq!(
            printed.unwrap_err(),
            "endpoint 'iris' failed to deploy (UPDATE_FAILED; the old config serves on): \
             iris-2: graph model: no operator Foo"
        );
        assert_eq!(asked[0].0, "PUT /api/2.0/serving-endpoints/iris/config");
        assert!(asked[0].1.starts_with(r#"{"served_entities":"#), "{}", asked[0].1);
    }

    #[test]
    fn a_file_holds_the_config_or_the_whole_endpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.json");
        for text in [r#"{"served_entities":[]}"#, r#"{"name":"other","config":{"served_entities":[]}}"#] {
            std::fs::write(&path, text).unwrap();
            let line = format!("x --file {}", path.display());
            let (_, created) = run_line(&format!("create {line}"), &[(200, "{}")]);
            let expected = json!({ "name": "x", "config": { "served_entities": [] } });
            assert_eq!(serde_json::from_str::<Value>(&created[0].1).unwrap(), expected);
            let (_, updated) = run_line(&format!("update {line}"), &[(200, "{}")]);
            assert_eq!(updated[0].1, r#"{"served_entities":[]}"#);
        }
        std::fs::write(&path, "[1]").unwrap();
        let (printed, _) = run_line(&format!("create x --file {}", path.display()), &[]);
        assert!(printed.unwrap_err().contains("c.json holds no JSON object"));
    }

    #[test]
    fn traffic_and_tags_are_sent_as_the_api_wants_them() {
        let (_, asked) = run_line("traffic iris blue=90 green=10", &[(200, "{}")]);
        assert_eq!(asked[0].0, "PUT /api/2.0/serving-endpoints/iris/config");
        let route = |entity: &str, share: u8| json!({ "served_entity_name": entity, "traffic_percentage": share });
        let body = json!({ "traffic_config": { "routes": [route("blue", 90), route("green", 10)] } });
        assert_eq!(serde_json::from_str::<Value>(&asked[0].1).unwrap(), body);
        for bad in ["blue", "blue=101", "blue=ten"] {
            assert!(Cli::try_parse_from(["tessera", "endpoint", "traffic", "iris", bad]).is_err(), "{bad}");
        }

        let answer = r#"{"tags":[{"key":"team","value":"a"},{"key":"plain"}]}"#;
        let (printed, asked) = run_line("tags iris team=a plain --delete old", &[(200, answer)]);
        assert_eq!(asked[0].0, "PATCH /api/2.0/serving-endpoints/iris/tags");
        let body = json!({ "add_tags": [{ "key": "team", "value": "a" }, { "key": "plain" }], "delete_tags": ["old"] });
        assert_eq!(serde_json::from_str::<Value>(&asked[0].1).unwrap(), body);
        assert_eq!(printed.unwrap(), "team=a\nplain\n");
    }

    #[test]
    fn stop_and_start_reach_their_paths() {
        let (printed, asked) = run_line("stop iris", &[(200, "{}")]);
        assert_eq!(
            (printed.unwrap().as_str(), asked[0].0.as_str()),
            ("stopped endpoint iris\n", "POST /api/2.0/serving-endpoints/iris/config:stop")
        );
        let (_, asked) = run_line("start iris", &[(200, "{}")]);
        assert_eq!(asked[0].0, "POST /api/2.0/serving-endpoints/iris/config:start");
    }

    #[test]
    fn delete_says_what_is_gone() {
        let (printed, asked) = run_line("delete iris", &[(200, "{}")]);
        assert_eq!(printed.unwrap(), "deleted endpoint iris\n");
        assert_eq!(asked[0].0, "DELETE /api/2.0/serving-endpoints/iris");
    }
}
