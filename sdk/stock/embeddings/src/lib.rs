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
mod oip;

use tessera_openai::embeddings::{EmbeddingsRequest, checked};
use tessera_sdk::{Endpoint, Error, Package, Request, Response};
use tokenizers::{Encoding, Tokenizer, TruncationParams};

use crate::model::Model;
use crate::oip::Asked;

tessera_sdk::export!(Embeddings);

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
        let wanted =
            package.setting("max_tokens").map_or(Ok(MAX_TOKENS_DEFAULT), |setting| parse_max_tokens(&setting))?;
        let max_tokens = model.sequence_len().map_or(wanted, |fixed| wanted.min(fixed));
        Ok(Self { tokenizer: tokenizer(&package.asset("tokenizer.json")?, max_tokens)?, model })
    }

    fn handle(&self, request: Request) -> Result<Response, Error> {
        match request.path() {
            "invocations" | "embeddings" => self.embeddings(&request.json()?),
            "v2" => oip::metadata(&name_of(&request), self.model.width()),
            "v2/infer" => {
                let asked = Asked::read(&request)?;
                let texts: Vec<&str> = asked.texts.iter().map(String::as_str).collect();
                let vectors = self.model.embed(&self.tokenize(checked(&texts)?)?)?;
                asked.respond(&name_of(&request), &vectors)
            }
            other => Err(Error::not_found(format!(
                "this endpoint makes embeddings: call `embeddings`, `invocations` or `v2/infer`, not `{other}`"
            ))),
        }
    }
}

/// How clients of the Open Inference Protocol know the model: by the endpoint they called.
fn name_of(request: &Request) -> oip::Name {
    oip::Name { model: request.endpoint(), version: request.model_version() }
}

impl Embeddings {
    fn embeddings(&self, request: &EmbeddingsRequest) -> Result<Response, Error> {
        let encodings = self.tokenize(&request.texts()?)?;
        let vectors = self.model.embed(&encodings)?;
        request.respond(self.model.graph_name(), vectors, token_count(&encodings))
    }

    fn tokenize(&self, texts: &[&str]) -> Result<Vec<Encoding>, Error> {
        let encode = |(index, text): (usize, &&str)| {
            let encoding = self.tokenizer.encode_fast(*text, true);
            encoding.map_err(|error| Error::invalid_input(format!("failed to tokenize input {index}: {error}")))
        };
        texts.iter().enumerate().map(encode).collect()
    }
}

fn parse_max_tokens(setting: &str) -> Result<usize, Error> {
    // Below 3 there is no room for a token of the text between the two that begin and end it.
    setting.parse().ok().filter(|&tokens| tokens >= 3).ok_or_else(|| {
        Error::model(format!("setting `max_tokens` is `{setting}`; it must be a whole number of at least 3"))
    })
}

/// The file's own padding and truncation are those of the last training run, not of serving: both are replaced.
fn tokenizer(json: &[u8], max_tokens: usize) -> Result<Tokenizer, Error> {
    let invalid = |error| Error::model(format!("asset `tokenizer.json` is no tokenizer: {error}"));
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(invalid)?;
    let truncation = TruncationParams { max_length: max_tokens, ..Default::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(invalid)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

fn token_count(encodings: &[Encoding]) -> usize {
    encodings.iter().map(Encoding::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pads to 8 and truncates to 4 by itself, as files in the wild do.
    const TOKENIZER: &str = r#"{
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [], "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]}, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "hello": 4, "world": 5},
                  "unk_token": "[UNK]"}
    }"#;

    fn ids(max_tokens: usize, text: &str) -> Vec<u32> {
        let tokenizer = tokenizer(TOKENIZER.as_bytes(), max_tokens).unwrap();
        tokenizer.encode_fast(text, true).unwrap().get_ids().to_vec()
    }

    #[test]
    fn the_padding_and_truncation_of_the_file_do_not_count() {
        assert_eq!(ids(256, "Hello world hello"), [1, 4, 5, 4, 2]);
    }

    #[test]
    fn a_long_text_is_cut_and_keeps_its_end_marker() {
        assert_eq!(ids(4, "hello world hello world"), [1, 4, 5, 2]);
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_named() {
        let error = tokenizer(b"{}", 256).unwrap_err();
        assert!(error.message.starts_with("asset `tokenizer.json` is no tokenizer: "), "{error}");
    }

    #[test]
    fn max_tokens_must_leave_room_for_a_token() {
        assert_eq!(parse_max_tokens("128").unwrap(), 128);
        for wrong in ["2", "-1", "many", ""] {
            assert!(parse_max_tokens(wrong).is_err(), "{wrong}");
        }
    }
}
