//! The OpenAPI document of this server's own API, made from the route table.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::routes::{self, Access, Route, handler};
use super::{Answer, Call, json};
use crate::error::ApiError;

pub(super) const ROUTES: &[Route] =
    &[Route::get("openapi", "/openapi.json", Access::Anyone, "This document", handler!(document))];

async fn document(_call: &Call) -> Result<Answer, ApiError> {
    json(&of_routes())
}

fn of_routes() -> Value {
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
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Tessera", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn operation(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    let parameters = route.path.split(['{', '}']).skip(1).step_by(2).map(|name| {
        json!({
            "name": name.trim_start_matches('*'),
            "in": "path",
            "required": true,
            "schema": { "type": "string" },
        })
    });
    let mut operation = json!({
        "operationId": route.name,
        "summary": route.about,
        "x-tessera-access": route.access.name(),
        "security": if route.access == Access::Anyone { json!([]) } else { json!([{ "token": [] }]) },
        "parameters": parameters.collect::<Vec<_>>(),
        "responses": { "200": { "description": "Success" } },
    });
    if let Some(body) = route.body {
        operation["requestBody"] = json!({ "content": { "application/json": { "schema": body(schemas) } } });
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_refer_to_schemas_that_are_there() {
        let document = of_routes();
        let create = &document["paths"]["/api/2.0/serving-endpoints"]["post"]["requestBody"];
        assert_eq!(create["content"]["application/json"]["schema"]["$ref"], "#/components/schemas/CreateEndpoint");
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
        let name = &document["components"]["schemas"]["CreateEndpoint"]["properties"]["name"];
        assert_eq!(name["type"], "string", "{name}");
    }
}
