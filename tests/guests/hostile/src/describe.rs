//! What the guest says that it takes and answers: nothing, unless the setting `describe` asks for something wrong.

use tessera_sdk::bindings::tessera::endpoint::settings;
use tessera_sdk::schema::bindings::Guest;

use crate::{memory, spin, trap};

/// More than a host keeps.
const HUGE_BYTES: usize = 300_000;

/// Past the SDK, which would write no such schemas.
struct Described;

#[allow(unsafe_code, reason = "as for the endpoint itself")]
const _: () = {
    tessera_sdk::schema::bindings::export! { Described with_types_in tessera_sdk::schema::bindings }
};

impl Guest for Described {
    fn describe() -> String {
        match settings::get("describe").as_deref() {
            None => bodies("", ""),
            Some("not_json") => "{".to_owned(),
            Some("remote") => {
                let schema = r#"{"items": {"$ref": "https://example.com/schema.json"}}"#;
                bodies(&format!(r#"{{"media_type": "application/json", "schema": {schema}}}"#), "")
            }
            Some("huge") => " ".repeat(HUGE_BYTES),
            Some("media") => bodies("", r#"{"media_type": "nonsense"}"#),
            Some("many") => {
                let types: Vec<String> = (0..1000).map(|n| format!(r#"{{"media_type": "a/{n}"}}"#)).collect();
                bodies("", &types.join(","))
            }
            Some("loop") => spin(),
            Some("memory") => memory::explode(),
            Some("stream") => bodies(
                r#"{"media_type": "image/png"}, {"media_type": "image/jpeg"}"#,
                r#"{"media_type": "text/event-stream", "schema": {"properties": {"token": {"type": "string"}}}}"#,
            ),
            Some(other) => trap(&format!("describe was told to {other}")),
        }
    }
}

fn bodies(requests: &str, responses: &str) -> String {
    format!(r#"{{"requests": [{requests}], "responses": [{responses}]}}"#)
}
