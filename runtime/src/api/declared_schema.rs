//! What components say of their bodies, as parts of an OpenAPI document.

use serde_json::{Map, Value, json};

use crate::deploy::schema::BodySchema;

/// Media types of bodies that are sequences: their schema is that of one item, for which OpenAPI 3.1 has no word (3.2 calls
/// it `itemSchema`).
const SEQUENCES: [&str; 5] = [
    "text/event-stream",
    "application/jsonl",
    "application/x-ndjson",
    "application/x-jsonlines",
    "application/json-seq",
];

/// The `content` of a request body or an answer. The schemas go to `components`, whose names begin with `prefix`; what
/// clients send as an example is shown where it is JSON.
pub(super) fn content(
    bodies: &[BodySchema],
    prefix: &str,
    example: Option<&Value>,
    components: &mut Map<String, Value>,
) -> Value {
    let mut content = Map::new();
    for (number, body) in bodies.iter().enumerate() {
        let mut media_type = json!({});
        if let Some(schema) = &body.schema {
            let name = format!("{prefix}.{number}");
            let place = format!("#/components/schemas/{name}");
            let word = if SEQUENCES.contains(&body.media_type.as_str()) { "x-itemSchema" } else { "schema" };
            media_type[word] = json!({ "$ref": place });
            let mut schema = schema.clone();
            move_references(&mut schema, &place);
            components.insert(name, schema);
        }
        if let Some(example) = example.filter(|_| body.media_type == "application/json") {
            media_type["example"] = example.clone();
        }
        content.insert(body.media_type.clone(), media_type);
    }
    Value::Object(content)
}

/// Makes references into the schema point to where it is now.
fn move_references(part: &mut Value, place: &str) {
    match part {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(reference) if name == "$ref" => {
                        let fragment = reference.strip_prefix('#').unwrap_or_default();
                        *reference = format!("{place}{fragment}");
                    }
                    value => move_references(value, place),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| move_references(item, place)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(media_type: &str, schema: Option<Value>) -> BodySchema {
        BodySchema { media_type: media_type.to_owned(), schema }
    }

    #[test]
    fn references_point_to_where_the_schema_is() {
        let row = json!({ "items": [{ "$ref": "#/$defs/Row" }], "properties": { "$ref": { "$ref": "#" } } });
        let bodies = [
            body("application/json", Some(row)),
            body("text/event-stream", Some(json!(true))),
            body("image/png", None),
        ];
        let mut components = Map::new();
        let content = content(&bodies, "e.request", Some(&json!(1)), &mut components);
        let place = "#/components/schemas/e.request.0";
        assert_eq!(content["application/json"], json!({ "schema": { "$ref": place }, "example": 1 }));
        assert_eq!(content["text/event-stream"]["x-itemSchema"]["$ref"], "#/components/schemas/e.request.1");
        assert_eq!(content["image/png"], json!({}));
        let moved = &components["e.request.0"];
        assert_eq!(moved["items"][0]["$ref"], format!("{place}/$defs/Row"));
        assert_eq!(moved["properties"]["$ref"]["$ref"], place);
    }
}
