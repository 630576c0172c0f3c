//! `tessera key …`: list and rotate the keys that seal what the server keeps.

use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::bail;
use clap::Subcommand;
use indicatif::ProgressBar;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::client::{self, Client};
use super::{Session, table};

const POLL: Duration = Duration::from_millis(200);

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// List the keys, and how far a rotation is
    List,
    /// Make a new data key and seal everything with it; the server goes on serving
    Rotate {
        /// Replace the key-encryption key in the server's key file instead: quick, for only the data keys are wrapped anew
        #[arg(long)]
        kek: bool,
        /// Do not wait until everything is sealed anew
        #[arg(long, conflicts_with = "kek")]
        no_wait: bool,
    },
}

#[derive(Deserialize)]
struct Status {
    keys: Vec<Key>,
    key_encryption_key: Wrapping,
    unsealed_accepted: bool,
    rotation: Rotation,
}

#[derive(Deserialize)]
struct Key {
    key_id: String,
    creation_timestamp: u64,
    current: bool,
}

#[derive(Deserialize)]
struct Wrapping {
    key_id: String,
    place: String,
}

#[derive(Deserialize)]
struct Rotation {
    state: String,
    records: u64,
    blobs: u64,
    files: u64,
    failures: Vec<String>,
}

pub(super) fn run(session: &mut Session, command: KeyCommand) -> anyhow::Result<()> {
    let answer = match command {
        KeyCommand::List => session.client.get(&keys(&[]), &[])?,
        KeyCommand::Rotate { kek, no_wait } => {
            let answer = session.client.call(Method::POST, &keys(&["rotate"]), &json!({ "kek": kek }))?;
            if kek || no_wait { answer } else { wait(&session.client)? }
        }
    };
    session.answer(&answer, || Ok(facts(&client::parse(&answer)?)))
}

fn keys<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [&["api", "2.0", "tessera", "keys"], rest].concat()
}

/// Polls until nothing is sealed with an old key. It may take as long as all that is stored takes to read and write.
fn wait(client: &Client) -> anyhow::Result<String> {
    let spinner = ProgressBar::new_spinner(); // hidden without a terminal
    loop {
        let answer = client.get(&keys(&[]), &[])?;
        let status: Status = client::parse(&answer)?;
        match status.rotation.state.as_str() {
            "RUNNING" => {
                spinner.set_message(status.rotation.text());
                spinner.tick();
                thread::sleep(POLL);
            }
            "FAILED" => bail!("the rotation failed, and the old key stays: {}", status.rotation.failures.join("; ")),
            _ => return Ok(answer),
        }
    }
}

impl Rotation {
    fn text(&self) -> String {
        let (records, blobs, files) = (self.records, self.blobs, self.files);
        format!("{}: {records} records, {blobs} package files, {files} logs", self.state)
    }
}

fn facts(status: &Status) -> String {
    let mut rows: Vec<(&str, String)> = Vec::new();
    for key in &status.keys {
        let made = UNIX_EPOCH + Duration::from_millis(key.creation_timestamp);
        let made = humantime::format_rfc3339_seconds(made);
        let kind = if key.current { "data key" } else { "old data key" };
        rows.push((kind, format!("{}  made {made}", key.key_id)));
    }
    let wrapping = &status.key_encryption_key;
    rows.push(("key-encryption key", format!("{}  from {}", wrapping.key_id, wrapping.place)));
    rows.push(("rotation", status.rotation.text()));
    rows.extend(status.rotation.failures.iter().map(|failure| ("  failed", failure.clone())));
    if status.unsealed_accepted {
        rows.push(("not sealed", "data from before encryption: `tessera key rotate` seals it".to_owned()));
    }
    table::facts("keys", &rows)
}

#[cfg(test)]
mod tests {
    use super::super::client::tests::Script;
    use super::super::{Cli, ClientCommand, Command, Format};
    use super::*;
    use clap::Parser;

    fn status(state: &str, failures: &str) -> String {
        format!(
            r#"{{"keys":[{{"key_id":"0a1b2c3d","creation_timestamp":1700000000000,"current":true}}],
                "key_encryption_key":{{"key_id":"99887766","place":"the key file /k"}},"unsealed_accepted":false,
                "rotation":{{"state":"{state}","records":5,"blobs":2,"files":0,"failures":{failures}}}}}"#
        )
    }

    fn run_line(line: &str, answers: &[(u16, &str)]) -> (Result<String, String>, Vec<String>) {
        let cli = Cli::try_parse_from(["tessera", "key"].into_iter().chain(line.split(' '))).unwrap();
        let Command::Client(ClientCommand::Key { command, .. }) = cli.command else { panic!("{line}") };
        let script = Script::start(answers);
        let mut out = Vec::new();
        let client = client::for_tests(&script.address);
        let result = run(&mut Session { client, format: Format::Human, out: &mut out }, command);
        let result = result.map(|()| String::from_utf8(out).unwrap()).map_err(|error| format!("{error:#}"));
        (result, script.asked().into_iter().map(|asked| format!("{} {}", asked.line, asked.body)).collect())
    }

    #[test]
    fn a_rotation_is_waited_for_and_its_failure_told() {
        let (running, done, failed) =
            (status("RUNNING", "[]"), status("DONE", "[]"), status("FAILED", r#"["blob 12 has changed"]"#));
        let (printed, asked) = run_line("rotate", &[(200, &running), (200, &running), (200, &done)]);
        let printed = printed.unwrap();
        assert!(printed.contains("0a1b2c3d") && printed.contains("DONE") && printed.contains("/k"), "{printed}");
        assert_eq!(asked[0], "POST /api/2.0/tessera/keys/rotate {\"kek\":false}");
        assert_eq!(asked[2].trim(), "GET /api/2.0/tessera/keys");

        let (printed, _) = run_line("rotate", &[(200, &running), (200, &failed)]);
        assert!(printed.unwrap_err().contains("blob 12 has changed"));
        let (printed, asked) = run_line("rotate --kek", &[(200, &done)]);
        assert!(printed.is_ok() && asked[0].ends_with("{\"kek\":true}"));
    }
}
