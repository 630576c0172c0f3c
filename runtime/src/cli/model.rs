//! `tessera model …`: push, pull, list, get, versions, delete, alias, tag. The registry is spoken to as MLflow's Unity Catalog client does.

use std::fmt;
use std::io::Write;
use std::str::FromStr;

use clap::Subcommand;
use reqwest::Method;
use serde::de::DeserializeOwned;

use super::client::{self, Client, ClientError};
use super::label::{self, AliasCommand, TagCommand};
use super::pull::{self, PullArgs};
use super::push::{self, PushArgs};
use super::wire::{ModelVersion, Page, RegisteredModel, RegisteredModelAnswer};
use super::{ClientOptions, Format, Session, json, table};

/// Bounds a list against a server whose page tokens never end.
const PAGES_MAX: usize = 1000;

/// What can be done with registered models.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Register a model package as a new version, or send it to an OCI registry
    Push(PushArgs),
    /// Fetch a package from an OCI registry or an MLflow server, to register it or into a folder
    Pull(PullArgs),
    /// List all registered models
    List,
    /// Show one registered model, its aliases, tags and versions
    #[command(alias = "show", alias = "versions")]
    Get {
        /// Name of the model.
        #[arg(value_name = "CATALOG.SCHEMA.MODEL")]
        name: ModelName,
    },
    /// Delete a registered model, or one of its versions
    Delete {
        /// Name of the model.
        #[arg(value_name = "CATALOG.SCHEMA.MODEL")]
        name: ModelName,
        /// Delete only this version
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// Give versions other names, like champion
    Alias {
        /// What to do.
        #[command(subcommand)]
        command: AliasCommand,
    },
    /// Label a model or a version
    Tag {
        /// What to do.
        #[command(subcommand)]
        command: TagCommand,
    },
}

/// Does what needs no server: packages go to registries, and come from elsewhere into folders. None where one is needed.
pub(super) fn run_without_server(
    command: &ModelCommand,
    options: &ClientOptions,
    format: Format,
    out: &mut dyn Write,
) -> Option<anyhow::Result<()>> {
    match command {
        ModelCommand::Push(args) => Some(push::to_registry(args.registry()?, args, options, format, out)),
        ModelCommand::Pull(args) => Some(pull::into_folder(args.folder()?, args, options, format, out)),
        _ => None,
    }
}

pub(super) fn run(session: &mut Session, command: ModelCommand, options: &ClientOptions) -> anyhow::Result<()> {
    match command {
        ModelCommand::Push(args) => push::push(session, &args),
        ModelCommand::Pull(args) => pull::register(session, &args, options),
        ModelCommand::List => list(session),
        ModelCommand::Get { name } => get(session, &name),
        ModelCommand::Delete { name, version } => delete(session, &name, version),
        ModelCommand::Alias { command } => label::alias(session, command),
        ModelCommand::Tag { command } => label::tag(session, command),
    }
}

/// Prints all models; with `--json`, one document for each page of the answer.
fn list(session: &mut Session) -> anyhow::Result<()> {
    let models: Vec<RegisteredModel> = search(session, "registered-models", &[])?;
    if session.format == Format::Human { session.print(&table::models(&models)) } else { Ok(()) }
}

/// Prints a model and its versions; with `--json`, the answers one after the other.
fn get(session: &mut Session, name: &ModelName) -> anyhow::Result<()> {
    let answer = session.client.get(&registry(&["registered-models", "get"]), &[("name", &name.full())])?;
    if session.format == Format::Json {
        session.print(&json::pretty(&answer))?;
    }
    let filter = format!("name='{name}'");
    let versions: Vec<ModelVersion> = search(session, "model-versions", &[("filter", &filter)])?;
    let model: RegisteredModelAnswer = client::parse(&answer)?;
    let print = |session: &mut Session| session.print(&table::model(&model.registered_model, &versions));
    if session.format == Format::Human { print(session) } else { Ok(()) }
}

/// All pages of a search; with `--json`, each is printed as it comes.
fn search<T: DeserializeOwned>(session: &mut Session, of: &str, query: &[(&str, &str)]) -> anyhow::Result<Vec<T>> {
    let mut found = Vec::new();
    let mut token: Option<String> = None;
    for _ in 0..PAGES_MAX {
        let mut query = query.to_vec();
        query.extend(token.as_deref().map(|token| ("page_token", token)));
        let answer = session.client.get(&registry(&[of, "search"]), &query)?;
        if session.format == Format::Json {
            session.print(&json::pretty(&answer))?;
        }
        let page: Page<T> = client::parse(&answer)?;
        found.extend(page.items);
        token = page.next_page_token.filter(|token| !token.is_empty());
        if token.is_none() {
            break;
        }
    }
    Ok(found)
}

fn delete(session: &mut Session, name: &ModelName, version: Option<u64>) -> anyhow::Result<()> {
    let answer = match version {
        Some(version) => delete_version(&session.client, name, &version.to_string())?,
        None => {
            let path = registry(&["registered-models", "delete"]);
            session.client.call(Method::DELETE, &path, &serde_json::json!({"name": name.full()}))?
        }
    };
    let version = version.map_or(String::new(), |version| format!(" version {version}"));
    session.answer(&answer, || Ok(format!("deleted {name}{version}")))
}

pub(super) fn delete_version(client: &Client, name: &ModelName, version: &str) -> Result<String, ClientError> {
    let body = serde_json::json!({"name": name.full(), "version": version});
    client.call(Method::DELETE, &registry(&["model-versions", "delete"]), &body)
}

/// A path of the registry.
pub(super) fn registry<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [&["api", "2.0", "mlflow", "unity-catalog"], rest].concat()
}

/// The three-part name of a registered model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    pub(super) catalog: String,
    pub(super) schema: String,
    pub(super) model: String,
}

impl ModelName {
    pub(super) fn full(&self) -> String {
        self.to_string()
    }
}

impl FromStr for ModelName {
    type Err = &'static str;

    /// Checked here, for the parts become part of a path. The server says the rest.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let sound = |part: &&str| !part.is_empty() && !part.contains(|c: char| c == '/' || c == '\'' || c.is_control());
        match text.split('.').filter(sound).collect::<Vec<_>>()[..] {
            [catalog, schema, model] if text.split('.').count() == 3 => {
                Ok(Self { catalog: catalog.to_owned(), schema: schema.to_owned(), model: model.to_owned() })
            }
            _ => Err("a model's name has three parts, like main.default.iris"),
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.catalog, self.schema, self.model)
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::tests::Script;
    use super::*;

    fn run_command(command: ModelCommand, format: Format, answers: &[(u16, &str)]) -> (String, Vec<String>) {
        let script = Script::start(answers);
        let mut out = Vec::new();
        let client = client::for_tests(&script.address);
        run(&mut Session { client, format, out: &mut out }, command, &client::no_options()).unwrap();
        (String::from_utf8(out).unwrap(), script.lines())
    }

    #[test]
    fn list_follows_the_pages() {
        let pages = [
            (200, r#"{"registered_models":[{"name":"main.default.a"}],"next_page_token":"t&1"}"#),
            (200, r#"{"registered_models":[{"name":"main.default.b","description":"two\u001b[2J"}]}"#),
        ];
        let (printed, asked) = run_command(ModelCommand::List, Format::Human, &pages);
        assert!(printed.contains("main.default.a") && printed.contains("main.default.b"), "{printed}");
        assert!(!printed.contains('\u{1b}'), "control characters reach the terminal: {printed:?}");
        assert_eq!(asked[1], "GET /api/2.0/mlflow/unity-catalog/registered-models/search?page_token=t%261");
        let (printed, _) = run_command(ModelCommand::List, Format::Json, &pages);
        assert!(printed.contains("\"next_page_token\": \"t&1\""), "{printed}");
    }

    #[test]
    fn delete_takes_the_model_or_one_version() {
        for (version, path) in [(None, "registered-models"), (Some(3), "model-versions")] {
            let command = ModelCommand::Delete { name: "a.b.c".parse().unwrap(), version };
            let (_, asked) = run_command(command, Format::Human, &[(200, "{}")]);
            assert_eq!(asked[0], format!("DELETE /api/2.0/mlflow/unity-catalog/{path}/delete"));
        }
    }
}
