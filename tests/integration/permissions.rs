//! The permissions API on endpoints and models.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Package, Server, send, serving};

const MODEL: &str = "main.default.m";

fn path(kind: &str, id: &str) -> String {
    format!("/api/2.0/permissions/{kind}/{id}")
}

fn patch(server: &Server, path: &str, body: &Value) -> Answer {
    send(server.request(Method::PATCH, path).json(body))
}

fn list(entries: &[(&str, &str, &str)]) -> Value {
    let entries = entries.iter().map(|(kind, name, level)| json!({ *kind: name, "permission_level": level }));
    json!({ "access_control_list": entries.collect::<Vec<_>>() })
}

/// Names with their levels, those that come from elsewhere with a star.
fn shown(answer: &Value) -> Vec<String> {
    let entries = answer["access_control_list"].as_array().unwrap();
    let name = |entry: &Value| {
        let names = ["user_name", "group_name", "service_principal_name"];
        names.iter().find_map(|key| entry[*key].as_str()).unwrap().to_owned()
    };
    let line = |entry: &Value| {
        let permission = &entry["all_permissions"][0];
        let star = if permission["inherited"] == true { "*" } else { "" };
        format!("{} {}{star}", name(entry), permission["permission_level"].as_str().unwrap())
    };
    entries.iter().map(line).collect()
}

#[test]
fn permissions_are_set_added_and_shown_with_those_that_are_inherited() {
    let server = Server::start();
    server.push(MODEL, &Package::hostile(""));
    server.create("e", &serving(MODEL, "1")).ok();
    let id = server.settled("e")["id"].as_str().unwrap().to_owned();
    let permissions = path("serving-endpoints", &id);

    let first = server.get(&permissions).ok();
    assert_eq!(first["object_id"], format!("/serving-endpoints/{id}"));
    assert_eq!(first["object_type"], "serving-endpoint");
    assert_eq!(shown(&first), ["admin CAN_MANAGE", "admins CAN_MANAGE*"]);

    let set = server.put(&permissions, &list(&[("group_name", "users", "CAN_QUERY")])).ok();
    assert_eq!(shown(&set), ["admin CAN_MANAGE", "users CAN_QUERY", "admins CAN_MANAGE*"]);
    // added to, and the highest of two counts
    let both = list(&[("group_name", "admins", "CAN_VIEW"), ("group_name", "admins", "CAN_QUERY")]);
    let added = patch(&server, &permissions, &both).ok();
    let lines = shown(&added);
    assert!(
        lines.contains(&"users CAN_QUERY".to_owned()) && lines.contains(&"admins CAN_QUERY".to_owned()),
        "{lines:?}"
    );
    // replaced
    let replaced = server.put(&permissions, &list(&[])).ok();
    assert_eq!(shown(&replaced), ["admin CAN_MANAGE", "admins CAN_MANAGE*"]);
    assert_eq!(server.get(&permissions).ok(), replaced);

    let levels = server.get(&format!("{permissions}/permissionLevels")).ok();
    let levels: Vec<&Value> = levels["permission_levels"].as_array().unwrap().iter().collect();
    let names: Vec<&Value> = levels.iter().map(|level| &level["permission_level"]).collect();
    assert_eq!(names, ["CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"]);
}

#[test]
fn bad_permissions_are_refused_and_change_nothing() {
    let server = Server::start();
    server.push(MODEL, &Package::hostile(""));
    server.create("e", &serving(MODEL, "1")).ok();
    let permissions = path("serving-endpoints", server.settled("e")["id"].as_str().unwrap());
    let before = server.get(&permissions).ok();
    let set = |body: &Value| server.put(&permissions, body);

    set(&list(&[("user_name", "nobody", "CAN_VIEW")])).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["nobody"]);
    set(&list(&[("user_name", "admin", "CAN_FLY")])).is_error(400, "BAD_REQUEST", &["CAN_FLY"]);
    let nameless = json!({ "access_control_list": [{ "permission_level": "CAN_VIEW" }] });
    set(&nameless).is_error(400, "INVALID_PARAMETER_VALUE", &["user_name"]);
    let unknown = path("serving-endpoints", "0123");
    server.get(&unknown).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["0123"]);
    server.put(&unknown, &list(&[])).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["0123"]);
    server.get(&path("registered-models", "0123")).is_error(404, "RESOURCE_DOES_NOT_EXIST", &["0123"]);
    assert_eq!(server.get(&permissions).ok(), before);
}
