//! `tessera invoke` and `tessera logs`: use an endpoint, and read what its model said.

use std::io::{self, IsTerminal, Read};
use std::path::Path;

use anyhow::{Context as _, bail};
use clap::Args;

use super::client;
use super::endpoint::{endpoint, endpoint_name};
use super::wire::{Endpoint, Logs};
use super::{Format, Session, json, print_bytes, table};

/// One request.
#[derive(Debug, Args)]
pub struct InvokeArgs {
    /// Name of the endpoint
    #[arg(value_name = "NAME", value_parser = endpoint_name)]
    name: String,
    /// Body of the request: JSON, @FILE, or - for stdin [default: stdin, unless that is a terminal]
    #[arg(long, value_name = "JSON|@FILE|-")]
    data: Option<String>,
    /// What the body is
    #[arg(long, value_name = "TYPE", default_value = "application/json")]
    content_type: String,
}

/// Which logs.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Name of the endpoint
    #[arg(value_name = "NAME", value_parser = endpoint_name)]
    name: String,
    /// Served entity, like iris-1 [default: all of the endpoint]
    #[arg(long, value_name = "ENTITY")]
    entity: Option<String>,
    /// The log of its deploy instead of its requests
    #[arg(long)]
    build: bool,
}

/// Prints the answer as it is and as it comes; with `--json` indented, if it is JSON.
pub(super) fn invoke(session: &mut Session, args: InvokeArgs) -> anyhow::Result<()> {
    let body = read_data(args.data.as_deref())?;
    let path = ["serving-endpoints", &args.name, "invocations"];
    let Session { client, format, out } = session;
    if *format == Format::Json {
        let mut answer = Vec::new();
        client.post(&path, &args.content_type, body, |piece| {
            answer.extend_from_slice(piece);
            Ok(())
        })?;
        return match String::from_utf8(answer) {
            Ok(text) => session.print(&json::pretty(&text)),
            Err(bytes) => session.print_bytes(bytes.as_bytes()),
        };
    }
    let mut last = b'\n';
    client.post(&path, &args.content_type, body, |piece| {
        last = piece.last().copied().unwrap_or(last);
        print_bytes(*out, piece)
    })?;
    // A person's next prompt starts on its own line; a file gets the bytes and nothing else.
    if last != b'\n' && io::stdout().is_terminal() { session.print_bytes(b"\n") } else { Ok(()) }
}

fn read_data(data: Option<&str>) -> anyhow::Result<Vec<u8>> {
    let stdin = || {
        let mut body = Vec::new();
        io::stdin().lock().read_to_end(&mut body).context("failed to read stdin")?;
        Ok(body)
    };
    match data {
        None if io::stdin().is_terminal() => bail!("nothing to send: pass --data JSON, --data @FILE or a pipe"),
        None | Some("-") => stdin(),
        Some(data) => match data.strip_prefix('@') {
            Some(path) => std::fs::read(Path::new(path)).with_context(|| format!("failed to read {path}")),
            None => Ok(data.as_bytes().to_vec()),
        },
    }
}

/// Prints one entity's log, or those of all entities under a line with each one's name.
pub(super) fn logs(session: &mut Session, args: LogsArgs) -> anyhow::Result<()> {
    let entities = match args.entity {
        Some(entity) => vec![entity],
        None => entities(session, &args.name)?,
    };
    let kind = if args.build { "build-logs" } else { "logs" };
    for entity in &entities {
        let path = endpoint(&[&args.name, "served-models", entity, kind]);
        let answer = session.client.get(&path, &[])?;
        let heading = if entities.len() > 1 { format!("== {entity} ==\n") } else { String::new() };
        session.answer(&answer, || {
            let logs = client::parse::<Logs>(&answer)?.logs;
            Ok(format!("{heading}{}", table::printable(&logs)))
        })?;
    }
    Ok(())
}

/// The entities that serve and those that shall, each once.
fn entities(session: &Session, name: &str) -> anyhow::Result<Vec<String>> {
    let answer = session.client.get(&endpoint(&[name]), &[])?;
    let found: Endpoint = client::parse(&answer)?;
    let mut names: Vec<String> = Vec::new();
    for entity in found.config.into_iter().chain(found.pending_config).flat_map(|config| config.served_entities) {
        if !names.contains(&entity.name) {
            names.push(entity.name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::super::client::tests::Script;
    use super::*;

    #[test]
    fn an_answer_is_printed_byte_for_byte_or_indented() {
        for (format, expected) in [(Format::Human, "[1.0]"), (Format::Json, "[\n  1.0\n]\n")] {
            let script = Script::start(&[(200, "[1.0]")]);
            let mut out = Vec::new();
            let mut session = Session { client: client::for_tests(&script.address), format, out: &mut out };
            let data = Some("a,b\n1,2".to_owned());
            invoke(&mut session, InvokeArgs { name: "iris".into(), data, content_type: "text/csv".into() }).unwrap();
            assert_eq!(String::from_utf8(out).unwrap().trim_end(), expected.trim_end());
            let asked = script.asked().remove(0);
            assert_eq!(asked.line, "POST /serving-endpoints/iris/invocations");
            assert!(asked.head.contains("content-type: text/csv\r\n"), "{}", asked.head);
            assert_eq!(asked.body, "a,b\n1,2");
        }
    }

    #[test]
    fn data_comes_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(read_data(Some(&format!("@{}", path.display()))).unwrap(), b"{}");
        assert_eq!(read_data(Some("@/no/x")).unwrap_err().to_string(), "failed to read /no/x");
    }

    #[test]
    fn logs_of_all_entities_are_headed_and_cannot_drive_the_terminal() {
        let endpoint = r#"{"config":{"served_entities":[{"name":"a-1"}]},
            "pending_config":{"served_entities":[{"name":"a-1"},{"name":"b-1"}]}}"#;
        let script =
            Script::start(&[(200, endpoint), (200, r#"{"logs":"one\n"}"#), (200, r#"{"logs":"\u001b[2Jtwo"}"#)]);
        let mut out = Vec::new();
        let client = client::for_tests(&script.address);
        let mut session = Session { client, format: Format::Human, out: &mut out };
        logs(&mut session, LogsArgs { name: "a".into(), entity: None, build: true }).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "== a-1 ==\none\n== b-1 ==\n\u{fffd}[2Jtwo\n");
        assert_eq!(script.lines()[2], "GET /api/2.0/serving-endpoints/a/served-models/b-1/build-logs");
    }
}
