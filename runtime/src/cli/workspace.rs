//! `tessera workspace …`: tenants and their quotas.

use anyhow::bail;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::{self, Client};
use super::{Session, table};
use crate::config::ByteSize;

/// What can be done with workspaces.
#[derive(Debug, Subcommand)]
pub enum WorkspaceCommand {
    /// Make a workspace and its first administrator, whose token is shown once
    Create {
        /// Name of the workspace
        #[arg(value_name = "NAME")]
        name: String,
        /// Name of its first administrator
        #[arg(long, value_name = "NAME", default_value = "admin")]
        admin: String,
    },
    /// List all workspaces
    List,
    /// Show what a workspace may have and has; with options, change it
    Quota {
        /// Name or id of the workspace
        #[arg(value_name = "WORKSPACE")]
        workspace: String,
        #[command(flatten)]
        quotas: QuotaArgs,
    },
    /// Delete a workspace without endpoints, models and secret scopes, with its users and their tokens
    Delete {
        /// Name or id of the workspace
        #[arg(value_name = "WORKSPACE")]
        workspace: String,
    },
}

/// Quotas to change: a number, or `default` for the server's own.
#[derive(Debug, Default, Args)]
pub struct QuotaArgs {
    /// Endpoints
    #[arg(long, value_name = "N")]
    endpoints: Option<Quota>,
    /// Versions of all models together
    #[arg(long, value_name = "N")]
    model_versions: Option<Quota>,
    /// Files of all model versions, like 100GiB
    #[arg(long, value_name = "SIZE")]
    model_bytes: Option<Quota>,
    /// Requests that run or wait to run
    #[arg(long, value_name = "N")]
    concurrent_requests: Option<Quota>,
    /// Requests per minute
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<Quota>,
    /// Tokens of language models per minute
    #[arg(long, value_name = "N")]
    tokens_per_minute: Option<Quota>,
}

/// A quota as a person writes it.
#[derive(Debug, Clone, Copy)]
struct Quota(Option<u64>);

impl std::str::FromStr for Quota {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Quota, &'static str> {
        match text {
            "default" => Ok(Quota(None)),
            text => text
                .parse::<ByteSize>()
                .map(|size| Quota(Some(size.0)))
                .map_err(|_| "a quota is a number, a size like 100GiB, or 'default'"),
        }
    }
}

impl QuotaArgs {
    fn changes(&self) -> Map<String, Value> {
        let all = [
            ("endpoints", self.endpoints),
            ("model_versions", self.model_versions),
            ("model_bytes", self.model_bytes),
            ("concurrent_requests", self.concurrent_requests),
            ("requests_per_minute", self.requests_per_minute),
            ("tokens_per_minute", self.tokens_per_minute),
        ];
        all.into_iter().filter_map(|(name, quota)| Some((name.to_owned(), json!(quota?.0)))).collect()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Workspace {
    workspace_id: u64,
    workspace_name: String,
    creation_time: Option<u64>,
    limits: Map<String, Value>,
    usage: Map<String, Value>,
    admin: Admin,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Admin {
    user_name: String,
    token_value: String,
}

/// The server has one account and does not look at its name.
fn workspaces<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [&["api", "2.0", "accounts", "default", "workspaces"], rest].concat()
}

pub(super) fn run(session: &mut Session, command: WorkspaceCommand) -> anyhow::Result<()> {
    match command {
        WorkspaceCommand::Create { name, admin } => {
            let body = json!({ "workspace_name": name, "admin_user_name": admin });
            let answer = session.client.call(Method::POST, &workspaces(&[]), &body)?;
            session.answer(&answer, || {
                let made: Workspace = client::parse(&answer)?;
                Ok(table::facts(
                    &format!("created workspace {name}; the token is shown only now"),
                    &[
                        ("id", made.workspace_id.to_string()),
                        ("admin", made.admin.user_name),
                        ("token", made.admin.token_value),
                    ],
                ))
            })
        }
        WorkspaceCommand::List => {
            let answer = session.client.get(&workspaces(&[]), &[])?;
            session.answer(&answer, || {
                let all = client::parse::<Vec<Workspace>>(&answer)?;
                let header = ["NAME", "ID", "ENDPOINTS", "MODEL VERSIONS", "MODEL FILES", "CREATED"];
                Ok(table::rows(header, all.into_iter().map(row), "no workspaces"))
            })
        }
        WorkspaceCommand::Quota { workspace, quotas } => {
            let (id, changes) = (id_of(&session.client, &workspace)?, quotas.changes());
            let path = workspaces(&[&id]);
            let answer = match changes.is_empty() {
                true => session.client.get(&path, &[])?,
                false => session.client.call(Method::PATCH, &path, &json!({ "quotas": changes }))?,
            };
            session.answer(&answer, || Ok(quota_table(&client::parse(&answer)?)))
        }
        WorkspaceCommand::Delete { workspace } => {
            let id = id_of(&session.client, &workspace)?;
            let answer = session.client.call(Method::DELETE, &workspaces(&[&id]), &json!({}))?;
            session.answer(&answer, || Ok(format!("deleted workspace {workspace}")))
        }
    }
}

fn row(workspace: Workspace) -> [String; 6] {
    let used = |name: &str| workspace.usage.get(name).and_then(Value::as_u64).unwrap_or_default();
    [
        workspace.workspace_name.clone(),
        workspace.workspace_id.to_string(),
        used("endpoints").to_string(),
        used("model_versions").to_string(),
        table::size(used("model_bytes")),
        table::age(workspace.creation_time),
    ]
}

fn quota_table(workspace: &Workspace) -> String {
    let row = |(name, limit): (&String, &Value)| {
        let used = workspace.usage.get(name).map_or(String::new(), Value::to_string);
        [name.clone(), used, limit.to_string()]
    };
    table::rows(["QUOTA", "USED", "LIMIT"], workspace.limits.iter().map(row), "no quotas")
}

/// The id of a workspace by its name or its id.
fn id_of(client: &Client, workspace: &str) -> anyhow::Result<String> {
    let all: Vec<Workspace> = client::parse(&client.get(&workspaces(&[]), &[])?)?;
    let called = |one: &&Workspace| one.workspace_name == workspace || one.workspace_id.to_string() == workspace;
    match all.iter().find(called) {
        Some(found) => Ok(found.workspace_id.to_string()),
        None => bail!("there is no workspace '{workspace}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::tests::Script;
    use super::super::{Cli, ClientCommand, Command, Format};
    use super::*;
    use clap::Parser;

    #[test]
    fn quotas_are_changed_by_name_and_shown_with_what_is_used() {
        let line = "tessera workspace quota team --endpoints 5 --model-bytes 1GiB --tokens-per-minute default";
        let Command::Client(ClientCommand::Workspace { command, .. }) =
            Cli::try_parse_from(line.split(' ')).unwrap().command
        else {
            panic!()
        };
        let one = r#"{"workspace_id":7,"workspace_name":"team","limits":{"endpoints":5},"usage":{"endpoints":2}}"#;
        let script = Script::start(&[(200, &format!("[{one}]")), (200, one)]);
        let mut out = Vec::new();
        let client = client::for_tests(&script.address);
        run(&mut Session { client, format: Format::Human, out: &mut out }, command).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "QUOTA       USED   LIMIT\nendpoints   2      5\n");
        let asked = script.asked().remove(1);
        assert_eq!(asked.line, "PATCH /api/2.0/accounts/default/workspaces/7");
        let sent: Value = serde_json::from_str(&asked.body).unwrap();
        let expected = json!({ "quotas": { "endpoints": 5, "model_bytes": 1 << 30, "tokens_per_minute": null } });
        assert_eq!(sent, expected);
    }
}
