//! `tessera user …`, `tessera group …`, `tessera service-principal …`: who may call, over the server's SCIM API.
//!
//! A person types names; the API takes ids, which are looked up first.

use anyhow::bail;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{self, Client};
use super::{Session, table};

/// What can be done with users.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Make a user; `tessera token create --user NAME` makes a token for one
    Create {
        /// Name of the user, often an e-mail address
        #[arg(value_name = "NAME")]
        name: String,
        /// Name for people [default: NAME]
        #[arg(long, value_name = "TEXT")]
        display_name: Option<String>,
        #[command(flatten)]
        groups: GroupArgs,
        /// Let the user administrate the whole server, all workspaces
        #[arg(long)]
        server_admin: bool,
    },
    /// List all users
    List,
    /// Let a user administrate the whole server; the user's tokens end, make another
    Promote {
        /// Name of the user
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Let a user administrate the server no more
    Demote {
        /// Name of the user
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Let a user call again
    Activate {
        /// Name of the user
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Refuse a user's calls, at once; nothing of the user's is lost
    Deactivate {
        /// Name of the user
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Delete a user with the user's tokens
    Delete {
        /// Name of the user
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// What can be done with groups.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Make a group
    Create {
        /// Name of the group
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// List all groups
    List,
    /// Put users, service principals (by application id) or other groups into a group
    Add(MembersArgs),
    /// Take them out of it
    Remove(MembersArgs),
    /// Delete a group; its members stay
    Delete {
        /// Name of the group
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// What can be done with service principals.
#[derive(Debug, Subcommand)]
pub enum ServicePrincipalCommand {
    /// Make a service principal
    Create {
        /// Name for people
        #[arg(value_name = "TEXT")]
        display_name: String,
        #[command(flatten)]
        groups: GroupArgs,
    },
    /// List all service principals
    List,
    /// Make an OAuth secret; it is shown once
    Secret {
        /// Application id of the service principal
        #[arg(value_name = "APPLICATION_ID")]
        application_id: String,
    },
    /// Delete a service principal with its tokens and secrets
    Delete {
        /// Application id of the service principal
        #[arg(value_name = "APPLICATION_ID")]
        application_id: String,
    },
}

/// Groups of something new.
#[derive(Debug, Args)]
pub struct GroupArgs {
    /// Group to put it into, `admins` for administrators; may be given several times
    #[arg(long = "group", value_name = "NAME")]
    groups: Vec<String>,
}

/// A group and some of its members.
#[derive(Debug, Args)]
pub struct MembersArgs {
    /// Name of the group
    #[arg(value_name = "GROUP")]
    group: String,
    /// Names of users and groups, application ids of service principals
    #[arg(value_name = "MEMBER", required = true)]
    members: Vec<String>,
}

/// What is read of any of the three.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Identity {
    id: String,
    user_name: String,
    application_id: String,
    display_name: String,
    active: bool,
    groups: Vec<Reference>,
    members: Vec<Reference>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reference {
    display: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Found {
    #[serde(rename = "Resources")]
    resources: Vec<Identity>,
}

/// The three kinds: their part of the path, the attribute that names them, and what a person calls one.
struct Kind {
    path: &'static str,
    attribute: &'static str,
    called: &'static str,
}

const USER: Kind = Kind { path: "Users", attribute: "userName", called: "user" };
const GROUP: Kind = Kind { path: "Groups", attribute: "displayName", called: "group" };
const SERVICE_PRINCIPAL: Kind =
    Kind { path: "ServicePrincipals", attribute: "applicationId", called: "service principal" };

fn scim<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [&["api", "2.0", "preview", "scim", "v2"], rest].concat()
}

/// The role of the server's administrators.
const SERVER_ADMIN: &str = "account_admin";

/// The same for all workspaces, for administrators of the server.
fn account_scim<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [&["api", "2.0", "accounts", "default", "scim", "v2"], rest].concat()
}

pub(super) fn users(session: &mut Session, command: UserCommand) -> anyhow::Result<()> {
    match command {
        UserCommand::Create { name, display_name, groups, server_admin } => {
            let groups = ids(&session.client, &groups.groups)?;
            let mut body = json!({ "userName": name, "groups": groups });
            if let Some(display_name) = display_name {
                body["displayName"] = json!(display_name);
            }
            if server_admin {
                body["roles"] = json!([{ "value": SERVER_ADMIN }]);
            }
            let path = if server_admin { account_scim(&[USER.path]) } else { scim(&[USER.path]) };
            let answer = session.client.call(Method::POST, &path, &body)?;
            let next = format!("created user {name}: `tessera token create --user {name}` makes a token");
            session.answer(&answer, || Ok(next))
        }
        UserCommand::List => {
            let answer = session.client.get(&scim(&[USER.path]), &[])?;
            let row =
                |user: Identity| [user.user_name.clone(), user.display_name.clone(), state(&user), groups_of(&user)];
            session.answer(&answer, || {
                let users = client::parse::<Found>(&answer)?.resources;
                Ok(table::rows(["NAME", "DISPLAY NAME", "STATE", "GROUPS"], users.into_iter().map(row), "no users"))
            })
        }
        UserCommand::Promote { name } => set_server_admin(session, &name, true),
        UserCommand::Demote { name } => set_server_admin(session, &name, false),
        UserCommand::Activate { name } => set_active(session, &name, true),
        UserCommand::Deactivate { name } => set_active(session, &name, false),
        UserCommand::Delete { name } => delete(session, &USER, &name),
    }
}

pub(super) fn groups(session: &mut Session, command: GroupCommand) -> anyhow::Result<()> {
    match command {
        GroupCommand::Create { name } => {
            let answer = session.client.call(Method::POST, &scim(&[GROUP.path]), &json!({ "displayName": name }))?;
            session.answer(&answer, || Ok(format!("created group {name}")))
        }
        GroupCommand::List => {
            let answer = session.client.get(&scim(&[GROUP.path]), &[])?;
            let row = |group: Identity| {
                let members: Vec<String> = group.members.into_iter().map(|member| member.display).collect();
                [group.display_name, members.join(", ")]
            };
            session.answer(&answer, || {
                let groups = client::parse::<Found>(&answer)?.resources;
                Ok(table::rows(["NAME", "MEMBERS"], groups.into_iter().map(row), "no groups"))
            })
        }
        GroupCommand::Add(args) => change_members(session, &args, "add"),
        GroupCommand::Remove(args) => change_members(session, &args, "remove"),
        GroupCommand::Delete { name } => delete(session, &GROUP, &name),
    }
}

pub(super) fn service_principals(session: &mut Session, command: ServicePrincipalCommand) -> anyhow::Result<()> {
    match command {
        ServicePrincipalCommand::Create { display_name, groups } => {
            let groups = ids(&session.client, &groups.groups)?;
            let body = json!({ "displayName": display_name, "groups": groups });
            let answer = session.client.call(Method::POST, &scim(&[SERVICE_PRINCIPAL.path]), &body)?;
            session.answer(&answer, || {
                let made: Identity = client::parse(&answer)?;
                let id = made.application_id;
                Ok(format!("created service principal {id}: `tessera service-principal secret {id}` makes a secret"))
            })
        }
        ServicePrincipalCommand::List => {
            let answer = session.client.get(&scim(&[SERVICE_PRINCIPAL.path]), &[])?;
            let row =
                |one: Identity| [one.application_id.clone(), one.display_name.clone(), state(&one), groups_of(&one)];
            session.answer(&answer, || {
                let all = client::parse::<Found>(&answer)?.resources;
                let header = ["APPLICATION ID", "DISPLAY NAME", "STATE", "GROUPS"];
                Ok(table::rows(header, all.into_iter().map(row), "no service principals"))
            })
        }
        ServicePrincipalCommand::Secret { application_id } => {
            let id = id_of(&session.client, &SERVICE_PRINCIPAL, &application_id)?;
            let path = ["api", "2.0", "accounts", "servicePrincipals", &id, "credentials", "secrets"];
            let answer = session.client.call(Method::POST, &path, &json!({}))?;
            session.answer(&answer, || {
                let secret = client::parse::<Value>(&answer)?["secret"].as_str().unwrap_or_default().to_owned();
                Ok(table::facts(
                    "secret, shown only now",
                    &[("client id", application_id.clone()), ("client secret", secret)],
                ))
            })
        }
        ServicePrincipalCommand::Delete { application_id } => delete(session, &SERVICE_PRINCIPAL, &application_id),
    }
}

fn state(identity: &Identity) -> String {
    if identity.active { "active" } else { "not active" }.to_owned()
}

fn groups_of(identity: &Identity) -> String {
    identity.groups.iter().map(|group| group.display.as_str()).collect::<Vec<_>>().join(", ")
}

/// The id of what a person calls by its name.
fn id_of(client: &Client, kind: &Kind, name: &str) -> anyhow::Result<String> {
    match look_up(client, kind, name)? {
        Some(id) => Ok(id),
        None => bail!("there is no {} '{name}'", kind.called),
    }
}

fn look_up(client: &Client, kind: &Kind, name: &str) -> anyhow::Result<Option<String>> {
    if name.contains('"') {
        return Ok(None);
    }
    let filter = format!("{} eq \"{name}\"", kind.attribute);
    let found: Found = client::parse(&client.get(&scim(&[kind.path]), &[("filter", &filter)])?)?;
    // The filter does not tell upper case from lower; a delete must.
    let called = |identity: &&Identity| {
        [&identity.user_name, &identity.application_id, &identity.display_name].contains(&&name.to_owned())
    };
    Ok(found.resources.iter().find(called).map(|identity| identity.id.clone()))
}

/// References to groups by their names.
fn ids(client: &Client, groups: &[String]) -> anyhow::Result<Vec<Value>> {
    groups.iter().map(|name| Ok(json!({ "value": id_of(client, &GROUP, name)? }))).collect()
}

fn set_active(session: &mut Session, name: &str, active: bool) -> anyhow::Result<()> {
    let id = id_of(&session.client, &USER, name)?;
    let operation = json!({ "op": "replace", "path": "active", "value": active });
    let answer = session.client.call(Method::PATCH, &scim(&[USER.path, &id]), &json!({ "Operations": [operation] }))?;
    let done = if active { "may call again" } else { "may not call any more" };
    session.answer(&answer, || Ok(format!("user {name} {done}")))
}

fn set_server_admin(session: &mut Session, name: &str, is: bool) -> anyhow::Result<()> {
    let id = id_of(&session.client, &USER, name)?;
    let roles = if is { json!([{ "value": SERVER_ADMIN }]) } else { json!([]) };
    let operation = json!({ "op": "replace", "path": "roles", "value": roles });
    let path = account_scim(&[USER.path, &id]);
    let answer = session.client.call(Method::PATCH, &path, &json!({ "Operations": [operation] }))?;
    let done = match is {
        true => format!("administrates the server: `tessera token create --user {name}` makes a token"),
        false => "administrates the server no more".to_owned(),
    };
    session.answer(&answer, || Ok(format!("user {name} {done}")))
}

fn change_members(session: &mut Session, args: &MembersArgs, op: &str) -> anyhow::Result<()> {
    let id = id_of(&session.client, &GROUP, &args.group)?;
    let mut members = Vec::new();
    for name in &args.members {
        let mut found = None;
        for kind in [&USER, &SERVICE_PRINCIPAL, &GROUP] {
            found = found.or(look_up(&session.client, kind, name)?);
        }
        match found {
            Some(id) => members.push(json!({ "value": id })),
            None => bail!("there is no user, service principal or group '{name}'"),
        }
    }
    let body = json!({ "Operations": [{ "op": op, "path": "members", "value": members }] });
    let answer = session.client.call(Method::PATCH, &scim(&[GROUP.path, &id]), &body)?;
    session.answer(&answer, || Ok(format!("changed group {}", args.group)))
}

fn delete(session: &mut Session, kind: &Kind, name: &str) -> anyhow::Result<()> {
    let id = id_of(&session.client, kind, name)?;
    session.client.call(Method::DELETE, &scim(&[kind.path, &id]), &json!({}))?;
    // SCIM answers a delete with nothing.
    session.answer("{}", || Ok(format!("deleted {} {name}", kind.called)))
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::super::client::tests::Script;
    use super::*;

    fn printed(
        answers: &[(u16, &str)],
        act: impl FnOnce(&mut Session) -> anyhow::Result<()>,
    ) -> (Result<String, String>, Vec<(String, String)>) {
        let script = Script::start(answers);
        let mut out = Vec::new();
        let client = client::for_tests(&script.address);
        let result = act(&mut Session { client, format: Format::Human, out: &mut out });
        let result = result.map(|()| String::from_utf8(out).unwrap()).map_err(|error| format!("{error:#}"));
        (result, script.asked().into_iter().map(|asked| (asked.line, asked.body)).collect())
    }

    const ADA: &str = r#"{"Resources":[{"id":"7","userName":"ada","active":true,"groups":[{"display":"users"}]}]}"#;

    #[test]
    fn a_user_is_deleted_by_the_id_that_the_name_has() {
        let delete = |session: &mut Session| users(session, UserCommand::Delete { name: "ada".to_owned() });
        let (said, asked) = printed(&[(200, ADA), (204, "")], delete);
        assert_eq!(said.unwrap(), "deleted user ada\n");
        assert!(asked[0].0.starts_with("GET /api/2.0/preview/scim/v2/Users?filter=userName"), "{}", asked[0].0);
        assert_eq!(asked[1].0, "DELETE /api/2.0/preview/scim/v2/Users/7");

        let delete = |session: &mut Session| users(session, UserCommand::Delete { name: "ADA".to_owned() });
        assert_eq!(printed(&[(200, ADA)], delete).0.unwrap_err(), "there is no user 'ADA'");
    }

    #[test]
    fn a_user_is_made_an_administrator_of_the_server_at_its_own_path() {
        let promote = |session: &mut Session| users(session, UserCommand::Promote { name: "ada".to_owned() });
        let (said, asked) = printed(&[(200, ADA), (200, "{}")], promote);
        assert!(said.unwrap().starts_with("user ada administrates the server"));
        assert_eq!(asked[1].0, "PATCH /api/2.0/accounts/default/scim/v2/Users/7");
        let body = r#"{"Operations":[{"op":"replace","path":"roles","value":[{"value":"account_admin"}]}]}"#;
        assert_eq!(asked[1].1, body);
    }

    #[test]
    fn lists_are_tables() {
        let (said, _) = printed(&[(200, ADA)], |session| users(session, UserCommand::List));
        let expected = "NAME   DISPLAY NAME   STATE    GROUPS\nada    -              active   users\n";
        assert_eq!(said.unwrap(), expected);
        let (said, _) = printed(&[(200, "{}")], |session| groups(session, GroupCommand::List));
        assert_eq!(said.unwrap(), "no groups\n");
    }

    #[test]
    fn members_are_found_whatever_they_are() {
        let group = r#"{"Resources":[{"id":"9","displayName":"team"}]}"#;
        let args = MembersArgs { group: "team".to_owned(), members: vec!["ada".to_owned()] };
        let answers = [(200, group), (200, ADA), (200, "{}"), (200, "{}"), (200, "{}")];
        let (said, asked) = printed(&answers, |session| groups(session, GroupCommand::Add(args)));
        assert_eq!(said.unwrap(), "changed group team\n");
        let (line, body) = asked.last().unwrap();
        assert_eq!(line, "PATCH /api/2.0/preview/scim/v2/Groups/9");
        assert_eq!(body, r#"{"Operations":[{"op":"add","path":"members","value":[{"value":"7"}]}]}"#);
    }
}
