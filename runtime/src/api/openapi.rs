//! The OpenAPI document of this server's own API, made from the route table and the types that handlers read and write.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::routes::{self, Access, Content, Effect, Route, Shape, handler};
use super::{Answer, Call, ErrorBody, OpenInferenceError, is_open_inference, json};
use crate::error::ApiError;

pub(super) const ROUTES: &[Route] =
    &[Route::get("openapi", "/openapi.json", Access::Anyone, "This document", handler!(document)).answers::<Value>()];

async fn document(call: &Call) -> Result<Answer, ApiError> {
    json(&of_routes(&call.origin()))
}

/// Subjects: what stands before the dot in a route's name.
const TAGS: [(&str, &str); 28] = [
    ("server", "The server itself"),
    ("discovery", "What clients ask before they ask for anything"),
    ("endpoints", "Serving endpoints and what can be read and set of them"),
    ("invocations", "Requests to endpoints"),
    ("v2", "The Open Inference Protocol"),
    ("permissions", "Who may do what with an endpoint or a model"),
    ("uc", "Unity Catalog's own registry API"),
    ("registry", "MLflow's Unity Catalog registry"),
    ("workspace_registry", "MLflow's older registry"),
    ("files", "Files of model versions"),
    ("signed", "Files at signed addresses, without a token"),
    ("tracking", "MLflow's experiments"),
    ("runs", "MLflow's runs"),
    ("logged_models", "MLflow's logged models"),
    ("artifacts", "Files of runs and logged models"),
    ("secrets", "Values that settings refer to"),
    ("scim", "Who calls"),
    ("users", "Users, in SCIM"),
    ("groups", "Groups, in SCIM"),
    ("service_principals", "Service principals, in SCIM"),
    ("account_users", "Users of all workspaces, in SCIM"),
    ("account_service_principals", "Service principals of all workspaces, in SCIM"),
    ("service_principal_secrets", "OAuth secrets of service principals"),
    ("oauth", "Access tokens for programs"),
    ("tokens", "One's own tokens"),
    ("token_management", "Tokens of all principals"),
    ("workspaces", "Tenants, for the server's administrators"),
    ("keys", "Keys that seal what is kept"),
];

fn tag(route: &Route) -> &'static str {
    route.name.split_once('.').map_or("server", |(subject, _)| subject)
}

fn of_routes(origin: &str) -> Value {
    let mut schemas = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let mut paths = Map::new();
    // OpenAPI has no words for gRPC.
    for route in routes::all().filter(|route| !route.is_grpc()) {
        let path = route.path.replace("{*path}", "{path}");
        let methods = paths.entry(path).or_insert_with(|| json!({}));
        methods[route.method.as_str().to_lowercase()] = operation(route, &mut schemas);
    }
    let responses = json!({
        "Error": error_response::<ErrorBody>(&mut schemas),
        "OpenInferenceError": error_response::<OpenInferenceError>(&mut schemas),
    });
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Tessera", "version": env!("CARGO_PKG_VERSION") },
        "servers": [{ "url": origin }],
        "tags": TAGS.map(|(name, description)| json!({ "name": name, "description": description })),
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "responses": responses,
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer" },
                "oauth": {
                    "type": "oauth2",
                    "flows": {
                        "clientCredentials": {
                            "tokenUrl": format!("{origin}/oidc/v1/token"),
                            "scopes": { "all-apis": "What the service principal may do" },
                        },
                    },
                },
            },
        },
    })
}

fn operation(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    let security = match route.access {
        Access::Anyone => json!([]),
        _ => json!([{ "token": [] }, { "oauth": ["all-apis"] }]),
    };
    let mut operation = json!({
        "operationId": route.name,
        "tags": [tag(route)],
        "summary": route.about,
        "x-tessera-access": route.access.name(),
        "security": security,
        "parameters": path_parameters(route).chain(query_parameters(route)).collect::<Vec<_>>(),
        "responses": responses(route, schemas),
    });
    if route.any_method {
        // OpenAPI has no word for it.
        operation["x-tessera-any-method"] = json!(true);
    }
    if let Some(content) = content(&route.body, schemas) {
        // Handlers take no body for `{}`.
        let required = match route.body {
            Content::Json(shape) => inlined(shape).get("required").is_some(),
            _ => true,
        };
        operation["requestBody"] = json!({ "required": required, "content": content });
    }
    operation
}

/// What is between the braces of a path.
fn names_in(path: &str) -> impl Iterator<Item = &str> {
    path.split(['{', '}']).skip(1).step_by(2)
}

fn path_parameters(route: &Route) -> impl Iterator<Item = Value> {
    names_in(route.path).map(|name| {
        json!({
            "name": name.trim_start_matches('*'),
            "in": "path",
            "required": true,
            "schema": { "type": "string" },
        })
    })
}

/// The fields of the type that the query is read as.
fn query_parameters(route: &Route) -> impl Iterator<Item = Value> {
    let schema = route.query.map(inlined).unwrap_or_default();
    let required = schema.get("required").cloned().unwrap_or_default();
    let properties = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    properties.into_iter().map(move |(name, mut schema)| {
        let required = required.as_array().is_some_and(|names| names.contains(&json!(name)));
        let about = schema.as_object_mut().and_then(|schema| {
            schema.remove("default");
            schema.remove("description")
        });
        // What is not there is left out, not null.
        if let Some(Value::Array(types)) = schema.get_mut("type") {
            types.retain(|name| name != "null");
        }
        let mut parameter = json!({ "name": name, "in": "query", "required": required, "schema": schema });
        if let Some(about) = about {
            parameter["description"] = about;
        }
        parameter
    })
}

/// A type's schema without references.
fn inlined(shape: Shape) -> Schema {
    let mut generator =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true).into_generator();
    (shape.schema)(&mut generator)
}

/// A body by its media types; none where there is no body.
fn content(content: &Content, schemas: &mut SchemaGenerator) -> Option<Value> {
    let bytes = json!({ "schema": { "type": "string", "contentEncoding": "binary" } });
    Some(match content {
        // Methods of gRPC are described by its own files.
        Content::Empty | Content::Grpc => return None,
        Content::Json(shape) => json!({ "application/json": { "schema": (shape.schema)(schemas) } }),
        Content::Form(shape) => json!({ "application/x-www-form-urlencoded": { "schema": (shape.schema)(schemas) } }),
        Content::Bytes(media_type) if media_type.starts_with("text/") => {
            json!({ (*media_type): { "schema": { "type": "string" } } })
        }
        Content::Bytes(media_type) => json!({ (*media_type): bytes }),
        // Each model has a schema of its own, at `…/openapi` of its endpoint.
        Content::Model => json!({ "application/json": {}, "text/event-stream": {}, "*/*": {} }),
    })
}

fn responses(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    let (error, usual): (_, fn(&mut SchemaGenerator) -> Schema) = match is_open_inference(route.path) {
        true => ("OpenInferenceError", SchemaGenerator::subschema_for::<OpenInferenceError>),
        false => ("Error", SchemaGenerator::subschema_for::<ErrorBody>),
    };
    let mut responses = Map::new();
    let mut success = json!({ "description": "Success" });
    // An answer to HEAD has the headers of a body, and none.
    if route.method != hyper::Method::HEAD
        && let Some(content) = content(&route.answer, schemas)
    {
        success["content"] = content;
    }
    responses.insert(route.status.to_string(), success);
    for status in refusals(route) {
        responses.insert(status.to_string(), json!({ "$ref": format!("#/components/responses/{error}") }));
    }
    if let Some((statuses, shape)) = route.other {
        let either = [(shape.schema)(schemas), usual(schemas)];
        for status in statuses {
            let content = json!({ "application/json": { "schema": { "anyOf": either } } });
            responses.insert(status.to_string(), json!({ "description": "Refused", "content": content }));
        }
    }
    Value::Object(responses)
}

/// The statuses of a route's errors, as its kind has them.
fn refusals(route: &Route) -> Vec<u16> {
    let named = names_in(route.path).next().is_some();
    let reads = !matches!(route.body, Content::Empty);
    let asks_model = matches!(route.answer, Content::Model);
    let changes = route.effect == Effect::Change;
    let of_access: &[u16] = match route.access {
        Access::Anyone if named => &[403, 404],
        Access::Anyone => &[],
        Access::Operator => &[401, 404],
        Access::Endpoint(_) | Access::Model(_) => &[401, 403, 404],
        Access::Principal | Access::Admin | Access::ServerAdmin if named || reads || route.query.is_some() => {
            &[401, 403, 404]
        }
        Access::Principal | Access::Admin | Access::ServerAdmin => &[401, 403],
    };
    let mut statuses = of_access.to_vec();
    let mut when = |applies: bool, these: &[u16]| statuses.extend(these.iter().filter(|_| applies));
    when(named || reads || route.query.is_some(), &[400]);
    when(reads, &[408, 409, 413]);
    when(changes, &[409, 429, 503]);
    when(asks_model, &[413, 415, 429, 503, 504]);
    when(true, &[414, 500]);
    statuses.sort_unstable();
    statuses.dedup();
    statuses
}

fn error_response<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
    let header = |about: &str| json!({ "description": about, "schema": { "type": "string" } });
    json!({
        "description": "Refused or failed",
        "headers": {
            "x-request-id": header("Names the request in the server's logs"),
            "retry-after": header("With 429 and 503: seconds after which it is worth trying again"),
        },
        "content": { "application/json": { "schema": schemas.subschema_for::<T>() } },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reference_leads_to_a_schema_and_every_schema_has_a_name_of_its_own() {
        let document = of_routes("http://localhost");
        let create = &document["paths"]["/api/2.0/serving-endpoints"]["post"]["requestBody"];
        assert_eq!(create["content"]["application/json"]["schema"]["$ref"], "#/components/schemas/CreateEndpoint");
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
        for (name, _) in document["components"]["schemas"].as_object().unwrap() {
            assert!(!name.ends_with(|end: char| end.is_ascii_digit()), "{name}: two types have this name");
        }
    }

    #[test]
    fn every_tag_is_described_and_used() {
        let described: HashSet<&str> = TAGS.iter().map(|(name, _)| *name).collect();
        assert_eq!(described, routes::all().filter(|route| !route.is_grpc()).map(tag).collect());
    }

    #[test]
    fn parameters_of_the_query_are_the_fields_of_what_reads_it() {
        let document = of_routes("http://localhost");
        let search = &document["paths"]["/api/2.0/mlflow/registered-models/search"]["get"]["parameters"];
        let names: Vec<&str> =
            search.as_array().unwrap().iter().map(|parameter| parameter["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["filter", "order_by", "max_results", "page_token"]);
        let get = &document["paths"]["/api/2.0/secrets/get"]["get"]["parameters"][0];
        assert_eq!((&get["name"], &get["in"], &get["required"]), (&json!("scope"), &json!("query"), &json!(true)));
    }
}
