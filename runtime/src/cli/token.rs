//! `tessera token …`: access tokens. A new one is shown once.

use clap::Subcommand;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::client;
use super::{Session, table};

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token: for oneself, or as an administrator for somebody else
    Create {
        /// What it is for
        #[arg(long, value_name = "TEXT", default_value = "")]
        comment: String,
        /// How long it lives, like 90d, 12h or 30m [default: until it is revoked]
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        lifetime: Option<std::time::Duration>,
        /// User that it stands for
        #[arg(long, value_name = "NAME", conflicts_with = "service_principal")]
        user: Option<String>,
        /// Service principal that it stands for
        #[arg(long, value_name = "APPLICATION_ID")]
        service_principal: Option<String>,
    },
    /// List one's own tokens
    List {
        /// Those of all users and service principals
        #[arg(long)]
        all: bool,
    },
    /// End a token, at once
    Revoke {
        /// Id of the token, as in the list
        #[arg(value_name = "ID")]
        id: String,
        /// It may be anybody's
        #[arg(long)]
        any: bool,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tokens {
    token_infos: Vec<Token>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Token {
    token_id: String,
    comment: String,
    creation_time: Option<u64>,
    expiry_time: Option<i64>,
    owner_username: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Made {
    token_value: String,
    token_info: Token,
}

const OWN: [&str; 3] = ["api", "2.0", "token"];
const MANAGED: [&str; 3] = ["api", "2.0", "token-management"];

pub(super) fn run(session: &mut Session, command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create { comment, lifetime, user, service_principal } => {
            let mut body = json!({ "comment": comment });
            if let Some(lifetime) = lifetime {
                body["lifetime_seconds"] = json!(lifetime.as_secs());
            }
            let for_other = user.is_some() || service_principal.is_some();
            for (key, name) in [("user_name", user), ("application_id", service_principal)] {
                if let Some(name) = name {
                    body[key] = json!(name);
                }
            }
            let path = match for_other {
                true => [&MANAGED[..], &["on-behalf-of", "tokens"]].concat(),
                false => [&OWN[..], &["create"]].concat(),
            };
            let answer = session.client.call(Method::POST, &path, &body)?;
            session.answer(&answer, || {
                let made: Made = client::parse(&answer)?;
                let facts = [("token", made.token_value), ("id", made.token_info.token_id)];
                Ok(table::facts("token, shown only now", &facts))
            })
        }
        TokenCommand::List { all } => {
            let path = if all { [&MANAGED[..], &["tokens"]].concat() } else { [&OWN[..], &["list"]].concat() };
            let answer = session.client.get(&path, &[])?;
            session.answer(&answer, || {
                let tokens = client::parse::<Tokens>(&answer)?.token_infos;
                Ok(table::rows(["ID", "OF", "COMMENT", "CREATED", "ENDS"], tokens.into_iter().map(row), "no tokens"))
            })
        }
        TokenCommand::Revoke { id, any } => {
            let answer = match any {
                true => session.client.call(Method::DELETE, &[&MANAGED[..], &["tokens", &id]].concat(), &json!({}))?,
                false => {
                    session.client.call(Method::POST, &[&OWN[..], &["delete"]].concat(), &json!({ "token_id": id }))?
                }
            };
            session.answer(&answer, || Ok(format!("revoked token {id}")))
        }
    }
}

fn row(token: Token) -> [String; 5] {
    let end = token.expiry_time.and_then(|ms| u64::try_from(ms).ok());
    let end = end.map_or_else(|| "never".to_owned(), crate::clock::rfc3339);
    let owner = token.owner_username.unwrap_or_default();
    [token.token_id, owner, token.comment, table::age(token.creation_time), end]
}

#[cfg(test)]
mod tests {
    use super::super::client::tests::Script;
    use super::super::{Cli, ClientCommand, Command, Format};
    use super::*;
    use clap::Parser;

    fn run_line(line: &str, answer: &str) -> (String, String, String) {
        let cli = Cli::try_parse_from(["tessera", "token"].into_iter().chain(line.split(' '))).unwrap();
        let Command::Client(ClientCommand::Token { command, .. }) = cli.command else { panic!("{line}") };
        let script = Script::start(&[(200, answer)]);
        let mut out = Vec::new();
        let client = client::for_tests(&script.address);
        run(&mut Session { client, format: Format::Human, out: &mut out }, command).unwrap();
        let asked = script.asked().remove(0);
        (String::from_utf8(out).unwrap(), asked.line, asked.body)
    }

    #[test]
    fn a_token_is_made_for_oneself_or_for_another() {
        let made = r#"{"token_value":"tsr_1","token_info":{"token_id":"0f"}}"#;
        let (said, line, body) = run_line("create --lifetime 2h --comment ci", made);
        assert!(said.contains("tsr_1") && said.contains("0f"), "{said}");
        assert_eq!(line, "POST /api/2.0/token/create");
        assert_eq!(body, r#"{"comment":"ci","lifetime_seconds":7200}"#);
        let (_, line, body) = run_line("create --user ada", made);
        assert_eq!(line, "POST /api/2.0/token-management/on-behalf-of/tokens");
        assert_eq!(body, r#"{"comment":"","user_name":"ada"}"#);
    }

    #[test]
    fn the_list_says_when_a_token_ends() {
        let tokens =
            r#"{"token_infos":[{"token_id":"0f","expiry_time":-1,"comment":"ci"},{"token_id":"1f","expiry_time":0}]}"#;
        let (said, line, _) = run_line("list", tokens);
        assert!(said.contains("never") && said.contains("1970-01-01T00:00:00"), "{said}");
        assert_eq!(line, "GET /api/2.0/token/list");
        assert_eq!(run_line("revoke 0f --any", "{}").1, "DELETE /api/2.0/token-management/tokens/0f");
    }
}
