//! Example guest: what kind of file is this?
//!
//! The body is the file itself (`application/octet-stream`, or any type but JSON), or `{"content_base64": "..."}`. The
//! answer says what it is:
//!
//! ```json
//! {"label": "rust", "score": 1.0, "mime_type": "application/x-rust", "group": "code", "description": "Rust source",
//!  "extensions": ["rs"], "is_text": true, "model_label": "rust", "overwrite_reason": "none"}
//! ```
//!
//! In the order of a request: [`features`] makes the model's input of the file, or finds that it is too small for the
//! model; the graph scores all the kinds of file it knows; [`verdict`] decides whether the best score is good enough. Both
//! follow the Python package magika 1.0.3 to the letter.

mod config;
mod features;
mod verdict;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use tessera_sdk::{Endpoint, Error, Graph, Package, Request, Response, Tensor};

use crate::config::{ContentType, KnowledgeBase, ModelConfig};
use crate::features::Features;
use crate::verdict::Verdict;

tessera_sdk::export!(FileType);

struct FileType {
    config: ModelConfig,
    knowledge: KnowledgeBase,
}

impl Endpoint for FileType {
    fn init(package: &Package) -> Result<Self, Error> {
        let config = ModelConfig::parse(&package.asset("config.min.json")?)?;
        let knowledge = KnowledgeBase::parse(&package.asset("content_types_kb.min.json")?)?;
        Ok(Self { config, knowledge })
    }

    fn handle(&self, request: Request) -> Result<Response, Error> {
        let verdict = match features::of(&file(&request)?, &self.config) {
            Features::Decided(label) => Verdict::without_model(label),
            Features::ForModel(input) => verdict::of(&score(&input)?, &self.config, &self.knowledge)?,
        };
        Response::json(&Answer { content_type: self.knowledge.get(&verdict.label)?, verdict: &verdict })
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    verdict: &'a Verdict,
    #[serde(flatten)]
    content_type: &'a ContentType,
}

fn file(request: &Request) -> Result<Vec<u8>, Error> {
    #[derive(Deserialize)]
    struct Upload<'a> {
        content_base64: &'a str,
    }
    if request.media_type() != "application/json" {
        return Ok(request.bytes()?.to_vec());
    }
    let Upload { content_base64 } = request.json()?;
    let decoded = BASE64.decode(content_base64);
    decoded.map_err(|error| Error::invalid_input(format!("`content_base64` is not base64: {error}")))
}

/// One score for each label of the configuration.
fn score(input: &[i32]) -> Result<Vec<f32>, Error> {
    let bytes = Tensor::new(&[1, input.len() as u32], input)?;
    let outputs = Graph::named("model").compute([("bytes", &bytes)])?;
    Ok(outputs.get("target_label")?.as_slice::<f32>()?.into_owned())
}
