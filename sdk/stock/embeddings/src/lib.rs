//! Stock endpoint `stock:embeddings`: text embeddings over the OpenAI API and the Open Inference Protocol, from a sentence
//! encoder in ONNX.
//!
//! Asset: `tokenizer.json`. Settings, all optional:
//!
//! | setting | default | |
//! |---|---|---|
//! | `graph` | `model` | the graph of the package |
//! | `max_tokens` | 256 | longer texts are cut here, as sentence-transformers does |
//!
//! A request is parsed ([`tessera_openai`], [`oip`]), its texts are tokenized, the graph embeds them batch by batch ([`model`]), and the
//! vectors are rendered as the request asked. The tokenizer is built in `init`, and so is part of the frozen image.

mod model;

use tessera_encoder::{oip, tokenizer};
use tessera_openai::embeddings::{EmbeddingsRequest, checked};
use tessera_sdk::{Endpoint, Error, Package, Request, Response};
use tokenizers::{Encoding, Tokenizer};

use crate::model::Model;

tessera_sdk::export!(Embeddings);

/// The output over the Open Inference Protocol.
const OUTPUT: &str = "embedding";

/// What sentence-transformers gives the MiniLM models.
const MAX_TOKENS_DEFAULT: usize = 256;

/// A sentence encoder and its tokenizer.
#[derive(Debug)]
pub struct Embeddings {
    tokenizer: Tokenizer,
    model: Model,
}

impl Endpoint for Embeddings {
    fn init(package: &Package) -> Result<Self, Error> {
        let graph = package.setting("graph").unwrap_or_else(|| "model".to_owned());
        let model = Model::new(&graph, &package.graph(&graph)?)?;
        Ok(Self { tokenizer: tokenizer::read(package, MAX_TOKENS_DEFAULT, &model.encoder)?, model })
    }

    fn handle(&self, request: Request) -> Result<Response, Error> {
        match request.path() {
            "invocations" | "embeddings" => self.embeddings(&request.json()?),
            "v2" => oip::metadata(&request, &[(OUTPUT, "FP32", &[-1, self.model.width().map_or(-1, i64::from)])]),
            "v2/infer" => {
                let asked = oip::Asked::read(&request, &[OUTPUT])?;
                let texts: Vec<&str> = asked.texts.iter().map(String::as_str).collect();
                let vectors = self.model.embed(&self.tokenize(checked(&texts)?)?)?;
                let shape = vec![vectors.len(), vectors.first().map_or(0, Vec::len)];
                asked.respond(&request, vec![oip::Output::fp32(OUTPUT, shape, vectors.concat())])
            }
            other => Err(Error::not_found(format!(
                "this endpoint makes embeddings: call `embeddings`, `invocations` or `v2/infer`, not `{other}`"
            ))),
        }
    }
}

impl Embeddings {
    fn embeddings(&self, request: &EmbeddingsRequest) -> Result<Response, Error> {
        let encodings = self.tokenize(&request.texts()?)?;
        let vectors = self.model.embed(&encodings)?;
        request.respond(self.model.encoder.graph_name(), vectors, token_count(&encodings))
    }

    fn tokenize(&self, texts: &[&str]) -> Result<Vec<Encoding>, Error> {
        let encode = |(index, text): (usize, &&str)| {
            let encoding = self.tokenizer.encode_fast(*text, true);
            encoding.map_err(|error| Error::invalid_input(format!("failed to tokenize input {index}: {error}")))
        };
        texts.iter().enumerate().map(encode).collect()
    }
}

fn token_count(encodings: &[Encoding]) -> usize {
    encodings.iter().map(Encoding::len).sum()
}
