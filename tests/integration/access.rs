//! Who may call what: every route that the server itself lists, called by every kind of caller.
//!
//! What is expected follows from what `/openapi.json` says of a route (`x-tessera-access`); [`ROWS`] only says what a
//! request to it looks like. A route without a row fails the test, and so does a row without a route. Every answer must
//! have a status that the document has, and one of its media types.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Package, Server, send, serving};

const MODEL: &str = "main.default.m";
const SCIM: &str = "/api/2.0/preview/scim/v2";

/// A request to a route: its name, its path's parameters and its query, and its body, which is JSON, or text after `=`.
/// What stands in braces is a thing of [`World`]; what begins with `fresh_` is made again after each call that may
/// have used it up.
type Row = (&'static str, &'static str, &'static str);

const ROWS: &[Row] = &[
    ("health", "", ""),
    ("ready", "", ""),
    ("metrics", "", ""),
    ("discovery.databricks_config", "", ""),
    ("v2.server", "", ""),
    ("v2.live", "", ""),
    ("v2.ready", "", ""),
    ("v2.model", "name=e", ""),
    ("v2.model_version", "name=e&version=1", ""),
    ("v2.model_ready", "name=e", ""),
    ("v2.model_version_ready", "name=e&version=1", ""),
    ("v2.model_config", "name=e", ""),
    ("v2.model_version_config", "name=e&version=1", ""),
    ("v2.model_stats", "name=e", ""),
    ("v2.model_version_stats", "name=e&version=1", ""),
    ("v2.stats", "", ""),
    ("v2.index", "", ""),
    ("endpoints.logs", "name=e&entity=m-1", ""),
    ("endpoints.build_logs", "name=e&entity=m-1", ""),
    ("endpoints.metrics", "name=e", ""),
    ("endpoints.openapi", "name=e", ""),
    ("endpoints.patch_tags", "name=e", r#"{"add_tags":[{"key":"a","value":"b"}]}"#),
    ("endpoints.put_rate_limits", "name=e", r#"{"rate_limits":[]}"#),
    ("endpoints.put_ai_gateway", "name=e", "{}"),
    ("endpoints.update_notifications", "name=e", "{}"),
    ("endpoints.patch_telemetry", "name=e", "{}"),
    ("endpoints.patch_description", "name=e", r#"{"description":"x"}"#),
    ("endpoints.patch_budget_policy", "name=e", r#"{"budget_policy_id":"x"}"#),
    ("endpoints.list", "", ""),
    ("endpoints.models", "", ""),
    ("endpoints.v1_models", "", ""),
    ("endpoints.v1_model", "name=e", ""),
    ("endpoints.create", "", r#"{"name":"e","config":{"served_entities":[]}}"#),
    ("endpoints.create_pt", "", r#"{"name":"e","config":{"served_entities":[]}}"#),
    ("endpoints.get", "name=e", ""),
    ("endpoints.delete", "name={fresh_endpoint}", ""),
    ("endpoints.update_config", "name={fresh_endpoint}", r#"{"served_entities":[]}"#),
    ("endpoints.update_pt_config", "name={fresh_endpoint}", r#"{"config":{"served_entities":[]}}"#),
    ("endpoints.stop", "name={fresh_endpoint}", ""),
    ("endpoints.start", "name={fresh_endpoint}", ""),
    ("invocations.invoke", "name=e", r#"{"do":"compute_ok"}"#),
    ("invocations.below", "name=e&path=x", r#"{"do":"compute_ok"}"#),
    ("invocations.invoke_entity", "name=e&entity=m-1", r#"{"do":"compute_ok"}"#),
    ("invocations.v2_infer", "name=e", r#"{"do":"compute_ok"}"#),
    ("invocations.v2_infer_version", "name=e&version=1", r#"{"do":"compute_ok"}"#),
    ("invocations.chat", "", r#"{"model":"e","do":"compute_ok"}"#),
    ("invocations.completions", "", r#"{"model":"e","do":"compute_ok"}"#),
    ("invocations.embeddings", "", r#"{"model":"e","do":"compute_ok"}"#),
    ("invocations.v1_chat", "", r#"{"model":"e","do":"compute_ok"}"#),
    ("invocations.v1_completions", "", r#"{"model":"e","do":"compute_ok"}"#),
    ("invocations.v1_embeddings", "", r#"{"model":"e","do":"compute_ok"}"#),
    ("keys.list", "", ""),
    ("keys.rotate", "", r#"{"no_such_field":1}"#),
    ("oauth.authorization_server", "", ""),
    ("oauth.openid_configuration", "", ""),
    // 401 is OAuth's answer to a wrong secret, so this has none.
    ("oauth.token", "", "=grant_type=password"),
    ("openapi", "", ""),
    ("permissions.endpoint", "id={endpoint_id}", ""),
    ("permissions.set_endpoint", "id={endpoint_id}", r#"{"access_control_list":[{"permission_level":"CAN_VIEW"}]}"#),
    ("permissions.update_endpoint", "id={endpoint_id}", "{}"),
    ("permissions.endpoint_levels", "id={endpoint_id}", ""),
    ("permissions.model", "id={model_id}", ""),
    ("permissions.set_model", "id={model_id}", r#"{"access_control_list":[{"permission_level":"CAN_VIEW"}]}"#),
    ("permissions.update_model", "id={model_id}", "{}"),
    ("permissions.model_levels", "id={model_id}", ""),
    ("files.upload", "path=late.txt", "=late"),
    ("files.download", "path=tessera.toml", ""),
    ("files.stat", "path=tessera.toml", ""),
    ("files.parts", "path=late.txt&action=initiate-upload", ""),
    ("files.upload_url", "", r#"{"path":"/Models/main/default/m/1/late.txt"}"#),
    ("files.download_url", "", r#"{"path":"/Models/main/default/m/1/tessera.toml"}"#),
    (
        "files.part_urls",
        "",
        r#"{"path":"/Models/main/default/m/1/late.txt","session_token":"x","start_part_number":1}"#,
    ),
    ("files.abort_url", "", r#"{"path":"/Models/main/default/m/1/late.txt","session_token":"x"}"#),
    ("files.list", "", ""),
    ("files.stat_list", "", ""),
    ("files.make_list", "", ""),
    ("files.list_folder", "path=folder", ""),
    ("files.stat_folder", "path=folder", ""),
    ("files.make_folder", "path=folder", ""),
    ("uc.create_model", "", r#"{"catalog_name":"main","schema_name":"default","name":"of-{caller}"}"#),
    ("uc.list_models", "", ""),
    ("uc.get_model", "", ""),
    ("uc.update_model", "", r#"{"comment":"x"}"#),
    ("uc.delete_model", "full_name={fresh_model}", ""),
    ("uc.create_version", "", r#"{"catalog_name":"main","schema_name":"default","model_name":"m"}"#),
    ("uc.list_versions", "", ""),
    ("uc.get_version", "", ""),
    ("uc.update_version", "", r#"{"comment":"x"}"#),
    ("uc.delete_version", "version=99", ""),
    ("uc.finalize", "", ""),
    ("uc.set_alias", "alias=champion", r#"{"version_num":1}"#),
    ("uc.get_by_alias", "alias=champion", ""),
    ("uc.delete_alias", "alias=none", ""),
    ("uc.credentials", "", r#"{"catalog_name":"main","schema_name":"default","model_name":"m","version":1}"#),
    ("uc.model_tags", "securable_type=FUNCTION", r#"{"changes":{"add_tags":[{"key":"a","value":"b"}]}}"#),
    ("uc.version_tags", "securable_type=FUNCTION", r#"{"changes":{"add_tags":[{"key":"a","value":"b"}]}}"#),
    ("uc.list_catalogs", "", ""),
    ("uc.get_catalog", "", ""),
    ("uc.list_schemas", "catalog_name=main", ""),
    ("uc.get_schema", "full_name=main.default", ""),
    ("workspace_registry.rename_model", "", r#"{"name":"{fresh_model}","new_name":"main.default.renamed{number}"}"#),
    ("workspace_registry.latest_versions", "name={model}", ""),
    ("workspace_registry.find_latest_versions", "", r#"{"name":"{model}"}"#),
    ("workspace_registry.transition_stage", "", r#"{"name":"{model}","version":"1","stage":"Staging"}"#),
    ("workspace_registry.list_artifacts", "name={model}&version=1", ""),
    ("workspace_registry.signed_download_uri", "name={model}&version=1&path=tessera.toml", ""),
    ("workspace_registry.databricks_model", "name={model}", ""),
    ("workspace_registry.databricks_transition", "", r#"{"name":"{model}","version":"1","stage":"Staging"}"#),
    ("registry.uploads_by_files", "", ""),
    ("registry.finalize_version", "", r#"{"name":"{model}","version":"1"}"#),
    ("registry.credentials", "", r#"{"name":"{model}","version":"1"}"#),
    ("registry.emit_lineage", "", "{}"),
    ("scim.me", "", ""),
    ("users.list", "", ""),
    ("users.create", "", r#"{"userName":"nobody"}"#),
    ("users.get", "id={user}", ""),
    ("users.replace", "id={user}", r#"{"userName":"victim"}"#),
    ("users.patch", "id={user}", r#"{"Operations":[{"op":"replace","path":"displayName","value":"x"}]}"#),
    ("users.delete", "id={fresh_user}", ""),
    ("groups.list", "", ""),
    ("groups.create", "", r#"{"displayName":"team"}"#),
    ("groups.get", "id={group}", ""),
    ("groups.replace", "id={group}", r#"{"displayName":"team"}"#),
    ("groups.patch", "id={group}", r#"{"Operations":[{"op":"add","path":"members","value":[]}]}"#),
    ("groups.delete", "id={fresh_group}", ""),
    ("service_principals.list", "", ""),
    ("service_principals.create", "", r#"{"displayName":"robot"}"#),
    ("service_principals.get", "id={robot}", ""),
    ("service_principals.replace", "id={robot}", r#"{"displayName":"robot"}"#),
    ("service_principals.patch", "id={robot}", r#"{"Operations":[{"op":"replace","path":"displayName","value":"x"}]}"#),
    ("service_principals.delete", "id={fresh_robot}", ""),
    ("account_users.list", "", ""),
    ("account_users.create", "", r#"{"userName":""}"#),
    ("account_users.get", "id={user}", ""),
    ("account_users.replace", "id={user}", r#"{"userName":"victim"}"#),
    ("account_users.patch", "id={user}", r#"{"Operations":[{"op":"replace","path":"displayName","value":"x"}]}"#),
    ("account_users.delete", "id={fresh_user}", ""),
    ("account_service_principals.list", "", ""),
    ("account_service_principals.create", "", r#"{"applicationId":"x"}"#),
    ("account_service_principals.get", "id={robot}", ""),
    ("account_service_principals.replace", "id={robot}", r#"{"displayName":"robot"}"#),
    (
        "account_service_principals.patch",
        "id={robot}",
        r#"{"Operations":[{"op":"replace","path":"displayName","value":"x"}]}"#,
    ),
    ("account_service_principals.delete", "id={fresh_robot}", ""),
    ("secrets.create_scope", "", r#"{"scope":"of-{caller}"}"#),
    ("secrets.delete_scope", "", r#"{"scope":"{fresh_scope}"}"#),
    ("secrets.list_scopes", "", ""),
    ("secrets.put", "", r#"{"scope":"s","key":"another","string_value":"v"}"#),
    ("secrets.delete", "", r#"{"scope":"s","key":"none"}"#),
    ("secrets.get", "scope=s&key=k", ""),
    ("secrets.list", "scope=s", ""),
    ("secrets.put_acl", "", r#"{"scope":"s","principal":"{own_admin}","permission":"READ"}"#),
    ("secrets.delete_acl", "", r#"{"scope":"s","principal":"{own_admin}"}"#),
    ("secrets.get_acl", "scope=s&principal=admin", ""),
    ("secrets.list_acls", "scope=s", ""),
    ("tokens.create", "", r#"{"lifetime_seconds":600}"#),
    ("tokens.list", "", ""),
    ("tokens.update", "id={token}", r#"{"token":{"comment":"x"},"update_mask":"comment"}"#),
    ("tokens.delete", "", r#"{"token_id":"{token}"}"#),
    ("token_management.create_on_behalf", "", r#"{"user_name":"victim"}"#),
    ("token_management.list", "", ""),
    ("token_management.get", "id={token}", ""),
    ("token_management.update", "id={token}", r#"{"token":{"comment":"x"},"update_mask":"comment"}"#),
    ("token_management.delete", "id={fresh_token}", ""),
    ("service_principal_secrets.create", "id={fresh_robot}", "{}"),
    ("service_principal_secrets.list", "id={robot}", ""),
    ("service_principal_secrets.delete", "id={robot}&secret=none", ""),
    ("tracking.server_info", "", ""),
    ("tracking.create_experiment", "", r#"{"name":""}"#),
    ("tracking.get_experiment", "experiment_id={experiment}", ""),
    ("tracking.get_experiment_by_name", "experiment_name=x", ""),
    ("tracking.list_experiments", "", ""),
    ("tracking.search_experiments", "", "{}"),
    ("tracking.tag_experiment", "", r#"{"experiment_id":"{experiment}","key":"a","value":"b"}"#),
    ("tracking.delete_experiment", "", r#"{"experiment_id":"{fresh_experiment}"}"#),
    ("runs.create", "", "{}"),
    ("runs.get", "run_id={run}", ""),
    ("runs.metric_history", "run_id={run}&metric_key=x", ""),
    ("runs.search", "", r#"{"experiment_ids":["{experiment}"]}"#),
    ("runs.update", "", r#"{"run_id":"{run}","run_name":"x"}"#),
    ("runs.delete", "", r#"{"run_id":"{fresh_run}"}"#),
    ("runs.log_metric", "", r#"{"run_id":"{run}","key":"x","value":1,"timestamp":1}"#),
    ("runs.log_parameter", "", r#"{"run_id":"{run}","key":"x","value":"1"}"#),
    ("runs.set_tag", "", r#"{"run_id":"{run}","key":"x","value":"1"}"#),
    ("runs.delete_tag", "", r#"{"run_id":"{run}","key":"x"}"#),
    ("runs.log_batch", "", r#"{"run_id":"{run}"}"#),
    ("runs.log_model", "", r#"{"run_id":"{run}"}"#),
    ("runs.outputs", "", r#"{"run_id":"{run}","models":[]}"#),
    ("logged_models.create", "", "{}"),
    ("logged_models.search", "", r#"{"experiment_ids":["{experiment}"]}"#),
    ("logged_models.get", "model_id={logged}", ""),
    ("logged_models.finalize", "model_id={logged}", r#"{"status":"LOGGED_MODEL_READY"}"#),
    ("logged_models.delete", "model_id={fresh_logged}", ""),
    ("logged_models.set_tags", "model_id={logged}", r#"{"tags":[{"key":"a","value":"b"}]}"#),
    ("logged_models.delete_tag", "model_id={logged}&key=a", "{}"),
    ("logged_models.log_params", "model_id={logged}", r#"{"params":[{"key":"a","value":"b"}]}"#),
    ("artifacts.of_run", "run_id={run}", ""),
    ("artifacts.of_logged_model", "model_id={logged}", ""),
    ("artifacts.list", "path={experiment}/{run}/artifacts", ""),
    ("artifacts.download", "path={experiment}/{run}/artifacts/a.txt", ""),
    ("artifacts.upload", "path={experiment}/{run}/artifacts/b.txt", "=b"),
    ("artifacts.delete", "path={experiment}/{run}/artifacts/none.txt", ""),
    ("usage", "", ""),
    ("workspaces.list", "", ""),
    ("workspaces.create", "", r#"{"workspace_name":""}"#),
    ("workspaces.get", "id={workspace}", ""),
    ("workspaces.update", "id={workspace}", "{}"),
    ("workspaces.delete", "id=99999", ""),
    ("signed.upload", "path=late.txt", "=late"),
    ("signed.download", "path=tessera.toml", ""),
    ("signed.abort", "path=late.txt", ""),
];

/// The registry as MLflow asks for it, under two names with the same routes.
const REGISTRIES: [&str; 2] = ["registry", "workspace_registry"];
const REGISTRY_ROWS: &[Row] = &[
    ("create_model", "", r#"{"name":"main.default.of-{caller}"}"#),
    ("get_model", "name={model}", ""),
    ("search_models", "", ""),
    ("update_model", "", r#"{"name":"{model}","description":"x"}"#),
    ("delete_model", "", r#"{"name":"{fresh_model}"}"#),
    ("set_model_tag", "", r#"{"name":"{model}","key":"a","value":"b"}"#),
    ("delete_model_tag", "", r#"{"name":"{model}","key":"a"}"#),
    ("set_alias", "", r#"{"name":"{model}","alias":"champion","version":"1"}"#),
    ("delete_alias", "", r#"{"name":"{model}","alias":"none"}"#),
    ("version_by_alias", "name={model}&alias=champion", ""),
    ("create_version", "", r#"{"name":"{model}","source":"test"}"#),
    ("get_version", "name={model}&version=1", ""),
    ("search_versions", "", ""),
    ("update_version", "", r#"{"name":"{model}","version":"1","description":"x"}"#),
    ("delete_version", "", r#"{"name":"{model}","version":"99"}"#),
    ("set_version_tag", "", r#"{"name":"{model}","version":"1","key":"a","value":"b"}"#),
    ("delete_version_tag", "", r#"{"name":"{model}","version":"1","key":"a"}"#),
    ("download_uri", "name={model}&version=1", ""),
];

/// What a parameter of a path is where a row does not say.
const USUAL: [(&str, &str); 8] = [
    ("account", "main"),
    ("alias", "champion"),
    ("catalog", "main"),
    ("full_name", MODEL),
    ("model", "m"),
    ("schema", "default"),
    ("version", "1"),
    ("securable_type", "FUNCTION"),
];

/// Routes for every principal whose row names a thing of the administrator's, which decides who may: administrators.
const OWNED: [&str; 32] = [
    "secrets.delete_scope",
    "secrets.put",
    "secrets.delete",
    "secrets.get",
    "secrets.list",
    "secrets.put_acl",
    "secrets.delete_acl",
    "secrets.get_acl",
    "secrets.list_acls",
    "tracking.tag_experiment",
    "tracking.delete_experiment",
    "runs.get",
    "runs.metric_history",
    "runs.update",
    "runs.delete",
    "runs.log_metric",
    "runs.log_parameter",
    "runs.set_tag",
    "runs.delete_tag",
    "runs.log_batch",
    "runs.log_model",
    "runs.outputs",
    "logged_models.get",
    "logged_models.finalize",
    "logged_models.delete",
    "logged_models.set_tags",
    "logged_models.delete_tag",
    "logged_models.log_params",
    "artifacts.of_run",
    "artifacts.of_logged_model",
    "artifacts.list",
    "artifacts.download",
];

/// And those of them that are asked with a body or change files.
const OWNED_FILES: [&str; 2] = ["artifacts.upload", "artifacts.delete"];

/// Who calls. Those who may least come first, so that what they must not touch is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Caller {
    Nobody,
    BadToken,
    /// Administrator of another workspace.
    Stranger,
    /// A user of this workspace whom nothing was permitted.
    Member,
    Viewer,
    Querier,
    Manager,
    /// Administrator of this workspace, not of the server.
    Admin,
    ServerAdmin,
}

use Caller::*;

const CALLERS: [Caller; 9] = [Nobody, BadToken, Stranger, Member, Viewer, Querier, Manager, Admin, ServerAdmin];

/// What a caller must get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Not a refusal of the caller, whatever else.
    Allowed,
    Unauthenticated,
    Forbidden,
    /// As if it were not there.
    Hidden,
}

fn expected(route: &str, access: &str, caller: Caller) -> Expected {
    use Expected::*;
    if access == "anyone" {
        return Allowed;
    }
    if matches!(caller, Nobody | BadToken) {
        return Unauthenticated;
    }
    let least = match access {
        "principal" if OWNED.contains(&route) || OWNED_FILES.contains(&route) => Admin,
        // What others have in their workspace is not there; nobody is refused.
        "principal" => return Allowed,
        "admin" if caller == Stranger => return Allowed,
        "admin" => Admin,
        "server-admin" if caller == Stranger => return Forbidden,
        "server-admin" => ServerAdmin,
        // To others it does not say that it is there.
        "operator" if caller < ServerAdmin => return Hidden,
        "operator" => return Allowed,
        _ => match access.split_once(':') {
            Some(("endpoint" | "model", "CAN_VIEW")) => Viewer,
            Some(("endpoint" | "model", "CAN_QUERY")) => Querier,
            Some(("endpoint" | "model", "CAN_MANAGE")) => Manager,
            _ => panic!("{route} has the unknown access '{access}'"),
        },
    };
    match caller {
        Stranger => Hidden,
        _ if caller >= least => Allowed,
        _ => Forbidden,
    }
}

/// A server with everything that the rows name.
struct World {
    server: Server,
    tokens: BTreeMap<Caller, String>,
    things: BTreeMap<&'static str, String>,
    /// What is made for one call that may use it up.
    fresh: RefCell<BTreeMap<String, String>>,
    number: RefCell<usize>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a text")).to_owned()
}

fn scim(server: &Server, kind: &str, body: &Value) -> String {
    let made = server.post(&format!("{SCIM}/{kind}"), body);
    assert_eq!(made.status, 201, "{}", made.text());
    text(&made.json()["id"])
}

fn token_of(server: &Server, user: &str) -> Value {
    server.post("/api/2.0/token-management/on-behalf-of/tokens", &json!({ "user_name": user })).ok()
}

fn permit(server: &Server, kind: &str, id: &str) {
    let grants = [("viewer", "CAN_VIEW"), ("querier", "CAN_QUERY"), ("manager", "CAN_MANAGE")]
        .map(|(user, level)| json!({ "user_name": user, "permission_level": level }));
    server.put(&format!("/api/2.0/permissions/{kind}/{id}"), &json!({ "access_control_list": grants })).ok();
}

fn id_of_model(server: &Server, name: &str) -> String {
    let found = server.get(&format!("/api/2.0/mlflow/databricks/registered-models/get?name={name}")).ok();
    text(&found["registered_model_databricks"]["id"])
}

fn run_of(server: &Server, experiment: &str) -> String {
    let run = server.post("/api/2.0/mlflow/runs/create", &json!({ "experiment_id": experiment })).ok();
    text(&run["run"]["info"]["run_id"])
}

fn logged_in(server: &Server, experiment: &str) -> String {
    let model = server.post("/api/2.0/mlflow/logged-models", &json!({ "experiment_id": experiment })).ok();
    text(&model["model"]["info"]["model_id"])
}

impl World {
    fn new() -> World {
        let server = Server::start();
        let other = server.post("/api/2.0/accounts/main/workspaces", &json!({ "workspace_name": "other" })).ok();
        let mut tokens = BTreeMap::from([
            (BadToken, "dapi00000000000000000000000000000000".to_owned()),
            (Stranger, text(&other["admin"]["token_value"])),
            (ServerAdmin, server.token.clone()),
        ]);
        for (caller, name) in
            [(Member, "member"), (Viewer, "viewer"), (Querier, "querier"), (Manager, "manager"), (Admin, "chief")]
        {
            scim(&server, "Users", &json!({ "userName": name }));
            tokens.insert(caller, text(&token_of(&server, name)["token_value"]));
        }
        make_admin(&server, "chief");
        let things = things(&server, &other);
        World { server, tokens, things, fresh: RefCell::default(), number: RefCell::default() }
    }

    /// Makes a thing that a call may use up.
    fn make(&self, kind: &str) -> String {
        let server = &self.server;
        let number = *self.number.borrow();
        *self.number.borrow_mut() += 1;
        let name = format!("fresh{number}");
        match kind {
            "fresh_endpoint" => {
                let made = server.create(&name, &serving(MODEL, "1")).ok();
                permit(server, "serving-endpoints", &text(&made["id"]));
                name
            }
            "fresh_model" => {
                let name = format!("main.default.{name}");
                let body = json!({ "name": name });
                server.post("/api/2.0/mlflow/unity-catalog/registered-models/create", &body).ok();
                permit(server, "registered-models", &id_of_model(server, &name));
                name
            }
            "fresh_scope" => {
                server.post("/api/2.0/secrets/scopes/create", &json!({ "scope": name })).ok();
                name
            }
            "fresh_experiment" => {
                let made = server.post("/api/2.0/mlflow/experiments/create", &json!({ "name": name })).ok();
                text(&made["experiment_id"])
            }
            "fresh_user" => scim(server, "Users", &json!({ "userName": name })),
            "fresh_group" => scim(server, "Groups", &json!({ "displayName": name })),
            "fresh_robot" => scim(server, "ServicePrincipals", &json!({ "displayName": name })),
            "fresh_token" => text(&token_of(server, "victim")["token_info"]["token_id"]),
            "fresh_run" => run_of(server, &self.things["experiment"]),
            "fresh_logged" => logged_in(server, &self.things["experiment"]),
            _ => panic!("nothing is called '{kind}'"),
        }
    }

    /// A row's text with the things that it names.
    fn fill(&self, text: &str, caller: Caller) -> String {
        let mut filled = text.to_owned();
        for (name, value) in &self.things {
            filled = filled.replace(&format!("{{{name}}}"), value);
        }
        let own_admin = if caller == Stranger { "admin" } else { "chief" };
        filled = filled.replace("{own_admin}", own_admin).replace("{caller}", &format!("{caller:?}"));
        while let Some(start) = filled.find("{fresh_") {
            let end = start + filled[start..].find('}').unwrap();
            let kind = filled[start + 1..end].to_owned();
            let known = self.fresh.borrow().get(&kind).cloned();
            let value = known.unwrap_or_else(|| self.make(&kind));
            self.fresh.borrow_mut().insert(kind, value.clone());
            filled.replace_range(start..=end, &value);
        }
        filled.replace("{number}", &self.number.borrow().to_string())
    }

    /// Calls a route as its row says.
    fn call(&self, (method, path): (&str, &str), (_, parameters, body): Row, caller: Caller) -> Answer {
        let parameters = self.fill(parameters, caller);
        let mut path = path.to_owned();
        let mut query = Vec::new();
        let sent = parameters.split('&').filter_map(|pair| pair.split_once('='));
        for (name, value) in sent {
            let place = format!("{{{name}}}");
            match path.contains(&place) {
                true => path = path.replace(&place, value),
                false => query.push(format!("{name}={value}")),
            }
        }
        for (name, value) in USUAL {
            path = path.replace(&format!("{{{name}}}"), value);
        }
        assert!(!path.contains('{'), "the row does not say all of {path}");
        path = format!("{path}?{}", query.join("&"));
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let request = match self.tokens.get(&caller) {
            Some(token) => self.server.request_as(token, method, &path),
            None => self.server.anonymous(method, &path),
        };
        // As through a proxy: who is on this machine may see what operators may.
        let request = request.header("x-forwarded-for", "192.0.2.1");
        let body = self.fill(body, caller);
        let request = match body.strip_prefix('=') {
            Some(content) => request.body(content.to_owned()),
            None if body.is_empty() => request,
            None => request.header("content-type", "application/json").body(body),
        };
        send(request)
    }
}

fn make_admin(server: &Server, user: &str) {
    let find = |kind: &str, name: &str, key: &str| {
        let all = server.get(&format!("{SCIM}/{kind}")).ok();
        let found = all["Resources"].as_array().unwrap().iter().find(|it| it[key] == name).unwrap();
        text(&found["id"])
    };
    let (user, admins) = (find("Users", user, "userName"), find("Groups", "admins", "displayName"));
    let join = json!({ "Operations": [{ "op": "add", "path": "members", "value": [{ "value": user }] }] });
    send(server.request(Method::PATCH, &format!("{SCIM}/Groups/{admins}")).json(&join)).ok();
}

/// What the rows name and no call uses up.
fn things(server: &Server, other: &Value) -> BTreeMap<&'static str, String> {
    server.push(MODEL, &Package::hostile("").with("folder/a.txt", "a"));
    server.create("e", &serving(MODEL, "1")).ok();
    let endpoint = text(&server.settled("e")["id"]);
    permit(server, "serving-endpoints", &endpoint);
    let model = id_of_model(server, MODEL);
    permit(server, "registered-models", &model);
    let alias = json!({ "name": MODEL, "alias": "champion", "version": "1" });
    server.post("/api/2.0/mlflow/unity-catalog/registered-models/alias", &alias).ok();
    server.post("/api/2.0/secrets/scopes/create", &json!({ "scope": "s" })).ok();
    server.post("/api/2.0/secrets/put", &json!({ "scope": "s", "key": "k", "string_value": "v" })).ok();
    let experiment = server.post("/api/2.0/mlflow/experiments/create", &json!({ "name": "x" })).ok();
    let experiment = text(&experiment["experiment_id"]);
    let run = run_of(server, &experiment);
    let artifact = format!("/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run}/artifacts/a.txt");
    assert_eq!(send(server.request(Method::PUT, &artifact).body("a")).status, 200);
    BTreeMap::from([
        ("model", MODEL.to_owned()),
        ("endpoint_id", endpoint),
        ("model_id", model),
        ("logged", logged_in(server, &experiment)),
        ("experiment", experiment),
        ("run", run),
        ("user", scim(server, "Users", &json!({ "userName": "victim" }))),
        ("group", scim(server, "Groups", &json!({ "displayName": "team" }))),
        ("robot", scim(server, "ServicePrincipals", &json!({ "displayName": "robot" }))),
        ("token", text(&token_of(server, "victim")["token_info"]["token_id"])),
        ("workspace", other["workspace_id"].to_string()),
    ])
}

/// What is wrong with an answer, if anything. `hidden` is what a stranger is told of what is not there for it.
fn wrong(expected: Expected, answer: &Answer, anyone: bool, hidden: Option<&Value>) -> Option<String> {
    let status = answer.status;
    let right = match expected {
        // Signed addresses refuse by what stands in them, not by who calls.
        Expected::Allowed if anyone => status < 500 && status != 401,
        Expected::Allowed => {
            let as_if_hidden = status == 404 && hidden.is_some_and(|told| message(answer).as_ref() == Some(told));
            !matches!(status, 401 | 403 | 405 | 500..) && !as_if_hidden
        }
        Expected::Unauthenticated => status == 401 && answer.header("www-authenticate").starts_with("Bearer"),
        Expected::Forbidden => status == 403,
        Expected::Hidden => status == 404,
    };
    (!right).then(|| format!("{expected:?}, but it is {status}: {}", answer.text()))
}

/// What the document does not say of an answer, if anything.
fn undocumented(document: &Value, responses: &Value, answer: &Answer) -> Option<String> {
    let Some(mut response) = responses.get(answer.status.to_string()) else {
        return Some(format!("the document has no {}: {}", answer.status, answer.text()));
    };
    if let Some(reference) = response["$ref"].as_str() {
        response = document.pointer(reference.trim_start_matches('#')).unwrap();
    }
    let media_types: Vec<&String> =
        response["content"].as_object().into_iter().flat_map(|content| content.keys()).collect();
    let sent = answer.header("content-type");
    let known = answer.body.is_empty() || media_types.iter().any(|known| *known == sent || *known == "*/*");
    (!known).then(|| format!("the document has {media_types:?} for {}, not {sent}", answer.status))
}

/// What an error says.
fn message(answer: &Answer) -> Option<Value> {
    let body: Value = serde_json::from_slice(&answer.body).ok()?;
    body.get("message").or(body.get("error")).cloned()
}

/// All rows by the name of their route.
fn rows() -> BTreeMap<String, Row> {
    let mut rows: BTreeMap<String, Row> = ROWS.iter().map(|row| (row.0.to_owned(), *row)).collect();
    for registry in REGISTRIES {
        rows.extend(REGISTRY_ROWS.iter().map(|row| (format!("{registry}.{}", row.0), *row)));
    }
    rows
}

#[test]
fn every_route_lets_in_whom_it_says_and_nobody_else() {
    // given the routes that the server says it has, and a row for each
    let world = World::new();
    let document = send(world.server.anonymous(Method::GET, "/openapi.json")).ok();
    let mut routes = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let [name, access] = ["operationId", "x-tessera-access"].map(|key| operation[key].as_str().unwrap());
            routes.push((method.as_str(), path.as_str(), name, access));
        }
    }
    let rows = rows();
    let named: BTreeSet<&str> = routes.iter().map(|route| route.2).collect();
    let known: BTreeSet<&str> = rows.keys().map(String::as_str).collect();
    assert_eq!(named.difference(&known).collect::<Vec<_>>(), Vec::<&&str>::new(), "routes that need a row in ROWS");
    assert_eq!(known.difference(&named).collect::<Vec<_>>(), Vec::<&&str>::new(), "rows of routes that are not there");

    // when everybody calls all of them, then each gets what the route says
    let mut failures = Vec::new();
    for (method, path, name, access) in routes {
        let mut hidden = None;
        for caller in CALLERS {
            let expected = expected(name, access, caller);
            let answer = world.call((method, path), rows[name], caller);
            if expected == Expected::Hidden {
                hidden = message(&answer);
            }
            let undocumented = undocumented(&document, &document["paths"][path][method]["responses"], &answer);
            if let Some(wrong) = wrong(expected, &answer, access == "anyone", hidden.as_ref()).or(undocumented) {
                failures.push(format!("{name} ({method} {path}, {access}) as {caller:?}: {wrong}"));
            }
            if expected == Expected::Allowed {
                world.fresh.borrow_mut().clear();
            }
        }
    }
    assert!(failures.is_empty(), "{} answers are wrong:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn the_document_names_every_route_once_and_declares_the_parameters_of_its_path() {
    let server = Server::start();
    let document = send(server.anonymous(Method::GET, "/openapi.json")).ok();
    assert_eq!(document["openapi"], "3.1.0");
    let mut names = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let in_path: BTreeSet<&str> = path.split(['{', '}']).skip(1).step_by(2).collect();
        for operation in methods.as_object().unwrap().values() {
            assert!(names.insert(operation["operationId"].as_str().unwrap()), "{operation}");
            let parameters = operation["parameters"].as_array().unwrap().iter();
            let in_path_too = parameters.filter(|it| it["in"] == "path" && it["required"] == true);
            let declared: BTreeSet<&str> = in_path_too.map(|it| it["name"].as_str().unwrap()).collect();
            assert_eq!(declared, in_path, "{path}");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.keys().any(|status| status.starts_with('2')), "{path}");
        }
    }
}

#[test]
fn who_may_not_change_a_thing_is_told_so_before_the_body_is_looked_at() {
    // given the routes that change what their path names, by JSON
    let world = World::new();
    let document = send(world.server.anonymous(Method::GET, "/openapi.json")).ok();
    let rows = rows();
    let mut asked = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let text = |key: &str| operation[key].as_str().unwrap();
            let (name, access) = (text("operationId"), text("x-tessera-access"));
            let json = !operation["requestBody"]["content"]["application/json"]["schema"].is_null();
            let named = ["{name}", "{full_name}", "{id}", "{model_id}"].iter().any(|name| path.contains(name));
            let decided = access.ends_with(":CAN_MANAGE") || OWNED.contains(&name);
            if !(json && named && decided) {
                continue;
            }
            // when somebody who may only see it sends what cannot be read
            let (route, parameters, _) = rows[name];
            for (caller, status) in [(Viewer, 403), (Stranger, 404), (Admin, 400)] {
                let answer = world.call((method, path), (route, parameters, "=no JSON"), caller);
                // then it is not told about that
                assert_eq!(answer.status, status, "{name} as {caller:?}: {}", answer.text());
            }
            asked += 1;
        }
    }
    assert!(asked >= 20, "only {asked} routes change what their path names");
}
