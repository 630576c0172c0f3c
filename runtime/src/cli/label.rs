//! `tessera model alias …` and `tessera model tag …`: other names for versions, and labels.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::Session;
use super::model::{ModelName, registry};

/// What can be done with aliases.
#[derive(Debug, Subcommand)]
pub enum AliasCommand {
    /// Let an alias name a version, instead of the one that it named before
    Set {
        /// Name of the model.
        #[arg(value_name = "CATALOG.SCHEMA.MODEL")]
        name: ModelName,
        /// The alias, like champion.
        #[arg(value_name = "ALIAS")]
        alias: String,
        /// The version that it shall name.
        #[arg(value_name = "VERSION")]
        version: u64,
    },
    /// Delete an alias; the version stays
    Delete {
        /// Name of the model.
        #[arg(value_name = "CATALOG.SCHEMA.MODEL")]
        name: ModelName,
        /// The alias.
        #[arg(value_name = "ALIAS")]
        alias: String,
    },
}

/// What can be done with tags.
#[derive(Debug, Subcommand)]
pub enum TagCommand {
    /// Set a tag of a model, or of one of its versions
    Set {
        #[command(flatten)]
        of: Tagged,
        /// Key of the tag.
        #[arg(value_name = "KEY")]
        key: String,
        /// Its value.
        #[arg(value_name = "VALUE", default_value = "")]
        value: String,
    },
    /// Delete a tag
    Delete {
        #[command(flatten)]
        of: Tagged,
        /// Key of the tag.
        #[arg(value_name = "KEY")]
        key: String,
    },
}

/// What has tags.
#[derive(Debug, Args)]
pub struct Tagged {
    /// Name of the model.
    #[arg(value_name = "CATALOG.SCHEMA.MODEL")]
    name: ModelName,
    /// Of this version instead of the model
    #[arg(long, value_name = "N")]
    version: Option<u64>,
}

pub(super) fn alias(session: &mut Session, command: AliasCommand) -> anyhow::Result<()> {
    let path = registry(&["registered-models", "alias"]);
    let (method, body, said) = match command {
        AliasCommand::Set { name, alias, version } => {
            let body = json!({ "name": name.full(), "alias": alias, "version": version.to_string() });
            (Method::POST, body, format!("{name}@{alias} is version {version}"))
        }
        AliasCommand::Delete { name, alias } => {
            let body = json!({ "name": name.full(), "alias": alias });
            (Method::DELETE, body, format!("deleted {name}@{alias}"))
        }
    };
    let answer = session.client.call(method, &path, &body)?;
    session.answer(&answer, || Ok(said))
}

pub(super) fn tag(session: &mut Session, command: TagCommand) -> anyhow::Result<()> {
    let (method, call, of, key, value) = match command {
        TagCommand::Set { of, key, value } => (Method::POST, "set-tag", of, key, Some(value)),
        TagCommand::Delete { of, key } => (Method::DELETE, "delete-tag", of, key, None),
    };
    let kind = if of.version.is_some() { "model-versions" } else { "registered-models" };
    let mut body = json!({ "name": of.name.full(), "key": key });
    if let Some(version) = of.version {
        body["version"] = Value::String(version.to_string());
    }
    let said = match value {
        Some(value) => {
            let said = format!("{}: {key} = {value}", of.name);
            body["value"] = Value::String(value);
            said
        }
        None => format!("{}: deleted tag {key}", of.name),
    };
    let answer = session.client.call(method, &registry(&[kind, call]), &body)?;
    session.answer(&answer, || Ok(said))
}
