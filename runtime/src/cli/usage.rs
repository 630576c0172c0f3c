//! `tessera usage`: who used what, from a running server or from the files of a home.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde::Deserialize;

use super::audit::{check_home, existing_keys, since_ms};
use super::client::{Client, ClientError};
use super::endpoint::endpoint_name;
use super::{ClientOptions, Format, json, print_bytes, table};
use crate::usage::parts::payload_tables;
use crate::usage::rows::Table;
use crate::usage::summary::{By, Filter, Summary, payloads, summarise};

/// Which requests, and how they are summed up.
#[derive(Debug, Args)]
pub struct UsageArgs {
    #[command(flatten)]
    pub(super) options: ClientOptions,
    #[command(subcommand)]
    command: Option<UsageCommand>,
    /// Requests to this endpoint
    #[arg(long, value_name = "NAME")]
    endpoint: Option<String>,
    /// Requests of this user or service principal
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,
    /// Requests of the last time span, like 90m or 7d, or from an RFC 3339 time on
    #[arg(long, value_name = "WHEN", value_parser = since_ms)]
    since: Option<u64>,
    /// What to print a line for
    #[arg(long, value_name = "WHAT", default_value_t = By::Endpoint)]
    by: By,
}

#[derive(Debug, Subcommand)]
enum UsageCommand {
    /// Print the kept requests and answers of an endpoint as JSON lines, decrypted with the home's key
    Payload(PayloadArgs),
}

#[derive(Debug, Args)]
struct PayloadArgs {
    /// Name of the endpoint
    #[arg(value_name = "ENDPOINT", value_parser = endpoint_name)]
    endpoint: String,
    /// Number of the workspace [default: the only one with such an endpoint]
    #[arg(long, value_name = "ID")]
    workspace: Option<u64>,
    /// Requests of the last time span, like 90m or 7d, or from an RFC 3339 time on
    #[arg(long, value_name = "WHEN", value_parser = since_ms)]
    since: Option<u64>,
    /// The newest so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Print the folder and the AES-256 key of the table instead, for other readers of encrypted Parquet
    #[arg(long)]
    show_key: bool,
    /// Key file of the server, if it was given one [default: node.key in the home]
    #[arg(long, value_name = "FILE", env = "TESSERA_KEY_FILE", hide_env_values = true)]
    key_file: Option<PathBuf>,
}

/// What the server answers.
#[derive(Debug, Deserialize)]
struct Answer {
    usage: Vec<Summary>,
}

/// Asks the server that runs on the home, or the one of `--host`; where none runs, reads the files.
pub(super) fn run(args: UsageArgs, format: Format, out: &mut dyn Write) -> anyhow::Result<()> {
    let options = &args.options;
    if let Some(UsageCommand::Payload(args)) = &args.command {
        return payload(&options.home, args, out);
    }
    let running = options.host.is_some() || options.home.join("address").exists();
    let answer = match running.then(|| from_server(&args)) {
        // A server that was killed leaves its address.
        Some(Err(error)) if options.host.is_none() && is_no_server(&error) => from_files(&args)?,
        Some(answer) => answer?,
        None => from_files(&args)?,
    };
    let text = match format {
        Format::Json => json::pretty(&answer),
        Format::Human => table::usage(&serde_json::from_str::<Answer>(&answer)?.usage, args.by),
    };
    print_bytes(out, format!("{}\n", text.trim_end()).as_bytes())
}

fn is_no_server(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ClientError::NoServer { .. }))
}

fn from_server(args: &UsageArgs) -> anyhow::Result<String> {
    let (since, by) = (args.since.unwrap_or(0).to_string(), args.by.to_string());
    let mut query = vec![("since_ms", since.as_str()), ("by", by.as_str())];
    query.extend(args.endpoint.as_deref().map(|name| ("endpoint", name)));
    query.extend(args.principal.as_deref().map(|name| ("principal", name)));
    Ok(Client::new(&args.options)?.get(&["api", "2.0", "tessera", "usage"], &query)?)
}

fn from_files(args: &UsageArgs) -> anyhow::Result<String> {
    let home = &args.options.home;
    check_home(home)?;
    let filter = Filter {
        workspace: None,
        endpoint: args.endpoint.clone(),
        principal: args.principal.clone(),
        since_ms: args.since.unwrap_or(0),
        by: args.by,
    };
    let usage = summarise(&home.join("usage"), &filter).context("failed to read the usage table")?;
    Ok(serde_json::json!({ "usage": usage }).to_string())
}

fn payload_table(dir: &Path, args: &PayloadArgs) -> anyhow::Result<Table> {
    let mut found = payload_tables(dir, &args.endpoint).context("failed to look for inference tables")?;
    if let Some(wanted) = args.workspace {
        found.retain(|table| *table == Table::Payload(wanted, args.endpoint.clone()));
    }
    match found.as_slice() {
        [] => bail!("nothing is kept of requests to '{}' in {}", args.endpoint, dir.display()),
        [table] => Ok(table.clone()),
        [_, ..] => {
            let ids = found.iter().filter_map(|table| if let Table::Payload(id, _) = table { Some(id) } else { None });
            let ids: Vec<String> = ids.map(u64::to_string).collect();
            bail!("'{}' is an endpoint of the workspaces {}: set --workspace", args.endpoint, ids.join(", "))
        }
    }
}

fn payload(home: &Path, args: &PayloadArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let key = existing_keys(home, args.key_file.as_deref())?.usage;
    let dir = home.join("usage");
    let table = payload_table(&dir, args)?;
    if args.show_key {
        let key = table.data_key(&key).map(hex::encode);
        let shown = serde_json::json!({ "folder": dir.join(table.folder()), "key": key });
        return print_bytes(out, (json::pretty(&shown.to_string()) + "\n").as_bytes());
    }
    let rows = payloads(&dir, &key, &table, args.since.unwrap_or(0), args.limit)
        .context("failed to read the inference table")?;
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    print_bytes(out, lines.as_bytes())
}
