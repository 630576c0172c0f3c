//! What a component says that it takes and answers: checked in the compile worker, kept beside the artifact, shown in the
//! endpoint's OpenAPI document. The rules are those of `world described` in `wit/endpoint.wit`.

use std::collections::BTreeSet;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The export that tells; a component without it is described by nobody.
pub const EXPORT: &str = "describe";

/// Most media types of requests, and of answers.
const CONTENTS_MAX: usize = 16;

/// Largest description. Reports of workers have room for it.
const DESCRIPTION_BYTES_MAX: usize = 256 << 10;

/// Longest media type: both of its names may have 127 (RFC 6838, 4.2).
const MEDIA_TYPE_BYTES_MAX: usize = 255;

/// The draft that OpenAPI 3.1 is made for.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Keywords that make a `$ref` mean something else where the schema is put into a larger document.
const BASES: [&str; 6] = ["$id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef"];

/// The bodies of an endpoint's `invocations`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BodySchemas {
    /// What may be sent.
    #[serde(default)]
    pub requests: Vec<BodySchema>,
    /// What a call that succeeds gives.
    #[serde(default)]
    pub responses: Vec<BodySchema>,
}

/// A form of body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BodySchema {
    /// Without parameters.
    pub media_type: String,
    /// A JSON Schema; none where the media type says it all.
    pub schema: Option<Value>,
}

impl BodySchemas {
    /// Reads and checks what a component gave.
    ///
    /// # Errors
    /// A sentence for the component's author.
    pub fn parse(text: &str) -> Result<BodySchemas, String> {
        if text.len() > DESCRIPTION_BYTES_MAX {
            return Err(format!("it has {} bytes; it may have {DESCRIPTION_BYTES_MAX}", text.len()));
        }
        let mut schemas: BodySchemas = serde_json::from_str(text)
            .map_err(|error| format!("it is not JSON of the form that wit/endpoint.wit shows: {error}"))?;
        check("request", &mut schemas.requests)?;
        check("response", &mut schemas.responses)?;
        Ok(schemas)
    }

    /// Whether nothing is described.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.responses.is_empty()
    }
}

fn check(what: &str, bodies: &mut [BodySchema]) -> Result<(), String> {
    if bodies.len() > CONTENTS_MAX {
        return Err(format!("it has {} {what}s; it may have {CONTENTS_MAX}", bodies.len()));
    }
    let mut seen = BTreeSet::new();
    for BodySchema { media_type, schema } in bodies {
        if !is_media_type(media_type) {
            let shown: String = media_type.chars().take(80).collect();
            return Err(format!("a {what} has the media type '{shown}'; one is written like application/json"));
        }
        if !seen.insert(media_type.to_ascii_lowercase()) {
            return Err(format!("it has two {what}s of the media type '{media_type}': make one schema of both"));
        }
        if let Some(schema) = schema {
            check_schema(schema).map_err(|reason| format!("the schema of {what} '{media_type}' {reason}"))?;
        }
    }
    Ok(())
}

fn is_media_type(text: &str) -> bool {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+*".contains(&byte))
    };
    text.len() <= MEDIA_TYPE_BYTES_MAX
        && text.split_once('/').is_some_and(|(one, other)| is_name(one) && is_name(other))
}

fn check_schema(schema: &mut Value) -> Result<(), String> {
    if !schema.is_object() && !schema.is_boolean() {
        return Err("is neither an object nor a boolean".to_owned());
    }
    check_references(schema, schema)?;
    // Said by the document that it becomes a part of.
    if let Some(dialect) = schema.as_object_mut().and_then(|schema| schema.remove("$schema"))
        && dialect != DIALECT
    {
        return Err(format!("is of the dialect {dialect}; it must be {DIALECT}, or not say"));
    }
    Ok(())
}

/// Only what is text is looked at: a property may have the name of a keyword.
fn check_references(part: &Value, whole: &Value) -> Result<(), String> {
    match part {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(reference) if name == "$ref" && !resolves(reference, whole) => {
                        return Err(format!(
                            "has a $ref to '{reference}', which is not in it (one is like #/$defs/Row)"
                        ));
                    }
                    Some(_) if BASES.contains(&name.as_str()) => {
                        return Err(format!("has {name}, which cannot be kept in a larger document"));
                    }
                    _ => check_references(value, whole)?,
                }
            }
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(|item| check_references(item, whole)),
        _ => Ok(()),
    }
}

fn resolves(reference: &str, whole: &Value) -> bool {
    let pointer = reference.strip_prefix('#').and_then(|fragment| percent_decode_str(fragment).decode_utf8().ok());
    pointer.is_some_and(|pointer| whole.pointer(&pointer).is_some())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(schema: &str) -> Result<BodySchemas, String> {
        BodySchemas::parse(&format!(
            "{{\"requests\": [{{\"media_type\": \"application/json\", \"schema\": {schema}}}]}}"
        ))
    }

    #[test]
    fn a_schema_is_kept_without_its_dialect() {
        let schema = json!({
            "$schema": DIALECT,
            "$ref": "#/$defs/a~1b%20c",
            "$defs": { "a/b c": { "properties": { "$ref": { "$ref": "#" }, "$id": true } } },
        });
        let kept = checked(&schema.to_string()).unwrap();
        assert_eq!(kept.requests[0].schema.as_ref().unwrap()["$defs"], schema["$defs"]);
        assert!(kept.requests[0].schema.as_ref().unwrap().get("$schema").is_none());
        assert!(checked("true").is_ok());
        let image = BodySchemas::parse(r#"{"responses": [{"media_type": "image/*"}]}"#).unwrap();
        assert!(!image.is_empty() && BodySchemas::default().is_empty());
    }

    #[test]
    fn what_could_not_be_shown_is_refused() {
        let huge = format!("{{\"description\": \"{}\"}}", "x".repeat(DESCRIPTION_BYTES_MAX));
        for (schema, reason) in [
            ("{", "it is not JSON of the form that wit/endpoint.wit shows"),
            ("true, \"shema\": true", "unknown field `shema`"),
            ("[]", "is neither an object nor a boolean"),
            (
                r#"{"items": [{"$ref": "https://example.com/a.json"}]}"#,
                "a $ref to 'https://example.com/a.json', which is",
            ),
            (r##"{"$ref": "#/$defs/Row"}"##, "a $ref to '#/$defs/Row', which is not in it"),
            (r##"{"$ref": "#row", "$defs": {}}"##, "a $ref to '#row'"),
            (r#"{"properties": {"a": {"$id": "b"}}}"#, "has $id, which cannot be kept"),
            (
                r#"{"$schema": "http://json-schema.org/draft-07/schema#"}"#,
                "it must be https://json-schema.org/draft/2020-12",
            ),
            (&"[".repeat(200), "recursion limit exceeded"),
            (&huge, "it may have 262144"),
        ] {
            let error = checked(schema).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let of = |types: &[&str]| {
            let bodies: Vec<Value> = types.iter().map(|name| json!({ "media_type": name })).collect();
            BodySchemas::parse(&json!({ "responses": bodies }).to_string()).unwrap_err()
        };
        assert!(of(&["json"]).contains("a response has the media type 'json'"));
        assert!(of(&["text/plain; charset=utf-8"]).contains("one is written like application/json"));
        assert!(of(&["text/plain", "Text/Plain"]).contains("two responses of the media type 'Text/Plain'"));
        assert!(of(&["a/b"; 17]).contains("it has 17 responses; it may have 16"));
    }
}
