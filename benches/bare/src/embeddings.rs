//! The OpenAI embeddings API over a sentence encoder that pools in its graph, as MiniLM's does here.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use tokenizers::{Tokenizer, TruncationParams};

use crate::session::{Input, Session, Values};

/// As the server's stock component.
const MAX_TOKENS: usize = 256;

/// A tokenizer and its encoder.
pub(crate) struct Embeddings {
    tokenizer: Tokenizer,
    session: Session,
}

/// One text: the benches send no lists.
#[derive(Deserialize)]
struct Request {
    input: String,
    model: String,
}

#[derive(Serialize)]
struct Response {
    object: &'static str,
    data: [Datum; 1],
    model: String,
    usage: Usage,
}

#[derive(Serialize)]
struct Datum {
    object: &'static str,
    index: usize,
    embedding: Vec<f32>,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Embeddings {
    pub(crate) fn load(library: &Path, dir: &Path) -> Result<Embeddings> {
        let session = Session::load(library, &dir.join("model.onnx"))?;
        if !session.inputs().eq(["input_ids", "attention_mask", "token_type_ids"]) {
            bail!("the inputs are {}", session.inputs().collect::<Vec<_>>().join(", "));
        }
        let failed = |error| anyhow!("failed to make the tokenizer: {error}");
        let mut tokenizer = Tokenizer::from_file(dir.join("tokenizer.json")).map_err(failed)?;
        let truncation = TruncationParams { max_length: MAX_TOKENS, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(failed)?;
        tokenizer.with_padding(None);
        Ok(Embeddings { tokenizer, session })
    }

    pub(crate) fn answer(&self, body: &[u8]) -> Result<Vec<u8>> {
        let request: Request = serde_json::from_slice(body)?;
        let (embedding, tokens) = self.embed(&request.input)?;
        let data = [Datum { object: "embedding", index: 0, embedding }];
        let usage = Usage { prompt_tokens: tokens, total_tokens: tokens };
        Ok(serde_json::to_vec(&Response { object: "list", data, model: request.model, usage })?)
    }

    /// The vector of a text, and the text's length in tokens.
    fn embed(&self, text: &str) -> Result<(Vec<f32>, usize)> {
        let encoding =
            self.tokenizer.encode_fast(text, true).map_err(|error| anyhow!("failed to tokenize: {error}"))?;
        let wide = |values: &[u32]| values.iter().map(|&value| i64::from(value)).collect::<Vec<_>>();
        let (ids, mask) = (wide(encoding.get_ids()), wide(encoding.get_attention_mask()));
        let types = wide(encoding.get_type_ids());
        let outputs = self.session.run(1, &[Input::I64(&ids), Input::I64(&mask), Input::I64(&types)])?;
        let vector = outputs.into_iter().find(|(name, _)| *name == "sentence_embedding");
        match vector.context("the model has no output sentence_embedding")?.1 {
            Values::F32(vector) => Ok((vector, ids.len())),
            Values::I64(_) => bail!("the embedding is not fp32"),
        }
    }
}
