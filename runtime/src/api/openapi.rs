//! The OpenAPI document of this server's own API, made from the route table.

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
    let mut paths = Map::new();
    for route in routes::all() {
        let path = route.path.replace("{*path}", "{path}");
        let methods = paths.entry(path).or_insert_with(|| json!({}));
        methods[route.method.as_str().to_lowercase()] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Tessera", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn operation(route: &Route) -> Value {
    let parameters = route.path.split(['{', '}']).skip(1).step_by(2).map(|name| {
        json!({
            "name": name.trim_start_matches('*'),
            "in": "path",
            "required": true,
            "schema": { "type": "string" },
        })
    });
    json!({
        "operationId": route.name,
        "summary": route.about,
        "x-tessera-access": route.access.name(),
        "security": if route.access == Access::Anyone { json!([]) } else { json!([{ "token": [] }]) },
        "parameters": parameters.collect::<Vec<_>>(),
        "responses": { "200": { "description": "Success" } },
    })
}
