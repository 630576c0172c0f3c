//! `tessera audit`: reads the audit log of a home on this machine, whether a server runs on it or not.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::{Format, json, print_bytes, table};
use crate::audit::{self, Filter, Record};
use crate::clock::{now_ms, rfc3339};
use crate::config::DEFAULT_HOME;
use crate::home::{Home, Keys};
use crate::seal::keyring::{self, Found, Keyring};
use crate::seal::source::{KEY_VARIABLE, MasterKey};

/// Which log, and what of it.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Home of the server whose log it is
    #[arg(
        long, global = true, value_name = "DIR", env = "TESSERA_HOME", hide_env_values = true,
        default_value = DEFAULT_HOME
    )]
    home: PathBuf,
    /// Key file of the server, if it was given one [default: node.key in the home]
    #[arg(long, global = true, value_name = "FILE", env = "TESSERA_KEY_FILE", hide_env_values = true)]
    key_file: Option<PathBuf>,
    /// Print JSON: an object, or a line per record
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Check that no record was changed, removed or added; exit code 1 and the first break if one was
    Verify,
    /// Print records, oldest first
    List(ListArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Records of the last time span, like 90m or 7d, or from an RFC 3339 time on
    #[arg(long, value_name = "WHEN", value_parser = since_ms)]
    since: Option<u64>,
    /// Name or number of who acted
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,
    /// Action, or the beginning of one, like serving-endpoints
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// The newest so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

/// A broken log is an answer, with the exit code of a failure.
pub(super) fn run(args: &AuditArgs, format: Format, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let key = existing_keys(&args.home, args.key_file.as_deref())?.audit;
    let dir = args.home.join("audit");
    let context = || format!("failed to read the audit log in {}", dir.display());
    match &args.command {
        AuditCommand::Verify => verify(audit::verify(&dir, &key).with_context(context)?, format, out),
        AuditCommand::List(list) => {
            let filter = Filter {
                since: list.since.map(rfc3339),
                principal: list.principal.clone(),
                action: list.action.clone(),
                limit: list.limit,
            };
            let records = audit::list(&dir, &key, &filter).with_context(context)?;
            print_bytes(out, listed(&records, format)?.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn verify(
    outcome: Result<audit::Verified, audit::Break>,
    format: Format,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let code = if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let text = match (format, &outcome) {
        (Format::Json, Ok(verified)) => json::pretty(&serde_json::json!({"whole": true, "log": verified}).to_string()),
        (Format::Json, Err(found)) => json::pretty(&serde_json::json!({"whole": false, "break": found}).to_string()),
        (Format::Human, Ok(verified)) => {
            let unfinished = match verified.unfinished_bytes {
                0 => String::new(),
                bytes => format!("; {bytes} bytes at the end are a record that was not finished"),
            };
            format!(
                "the audit log is whole: {} records ({} to {}) in {} files{unfinished}",
                verified.records, verified.first, verified.last, verified.files
            )
        }
        (Format::Human, Err(found)) => format!("the audit log is broken: {}", table::printable(&found.to_string())),
    };
    print_bytes(out, format!("{text}\n").as_bytes())?;
    Ok(code)
}

fn listed(records: &[Record], format: Format) -> anyhow::Result<String> {
    match format {
        Format::Human => Ok(table::audit_records(records)),
        Format::Json => {
            let lines = records.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
            Ok(lines.into_iter().map(|line| line + "\n").collect())
        }
    }
}

/// Refuses a folder that no server has kept anything in.
pub(super) fn check_home(home: &Path) -> anyhow::Result<()> {
    if !home.join(keyring::FILE).exists() {
        bail!("{} is not the home of a server: it has no {}; set --home", home.display(), keyring::FILE);
    }
    Ok(())
}

/// The keys of a home that is there; looking must not make one.
pub(super) fn existing_keys(home: &Path, key_file: Option<&Path>) -> anyhow::Result<Keys> {
    check_home(home)?;
    let home = Home::open(home)?;
    let own_file = home.path("node.key");
    let variable = std::env::var(KEY_VARIABLE).ok();
    let master = MasterKey::read(key_file.unwrap_or(&own_file), variable.as_deref())?;
    let ring = Keyring::open(&home, &master, None, None, Found::Sealed)?;
    Ok(Keys::derive(&ring.secret()?))
}

/// `7d` ago or a point in time, in milliseconds since 1970.
pub(super) fn since_ms(text: &str) -> Result<u64, String> {
    if let Ok(span) = humantime::parse_duration(text) {
        return Ok(now_ms().saturating_sub(span.as_millis() as u64));
    }
    let time = humantime::parse_rfc3339_weak(text)
        .map_err(|_| format!("'{text}' is neither a time span like 90m or 7d nor a time like 2026-11-22T10:00:00Z"))?;
    let since = time.duration_since(std::time::UNIX_EPOCH).map_err(|_| format!("'{text}' is before 1970"))?;
    Ok(since.as_millis() as u64)
}
