//! What the guest says that it takes and answers: nothing, unless the setting `describe` asks for something wrong.

use tessera_sdk::bindings::tessera::endpoint::settings;
use tessera_sdk::schema::bindings::Guest;
use tessera_sdk::schema::bindings::tessera::endpoint::schema::{Content, Description};

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
    fn describe() -> Description {
        match settings::get("describe").as_deref() {
            None => Description { requests: vec![], responses: vec![] },
            Some("not_json") => request("{"),
            Some("remote") => request(r#"{"items": {"$ref": "https://example.com/schema.json"}}"#),
            Some("huge") => request(&" ".repeat(HUGE_BYTES)),
            Some("media") => Description { requests: vec![], responses: vec![content("nonsense", None)] },
            Some("many") => Description {
                requests: vec![],
                responses: (0..1000).map(|n| content(&format!("a/{n}"), None)).collect(),
            },
            Some("loop") => spin(),
            Some("memory") => memory::explode(),
            Some("stream") => Description {
                requests: vec![content("image/png", None), content("image/jpeg", None)],
                responses: vec![content("text/event-stream", Some(r#"{"properties": {"token": {"type": "string"}}}"#))],
            },
            Some(other) => trap(&format!("describe was told to {other}")),
        }
    }
}

fn request(schema: &str) -> Description {
    Description { requests: vec![content("application/json", Some(schema))], responses: vec![] }
}

fn content(media_type: &str, schema: Option<&str>) -> Content {
    Content { media_type: media_type.to_owned(), schema: schema.map(str::to_owned) }
}
