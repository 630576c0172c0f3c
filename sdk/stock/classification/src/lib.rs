//! Stock endpoint `stock:classification`: classifies texts, or the tokens in them, and answers as the pipelines
//! `text-classification` and `token-classification` of transformers do.
//!
//! Assets: `tokenizer.json`, and the model's `config.json`, which names the labels. Which of the two tasks it is, the graph
//! says: its output has a row per text, or one per token. Settings, all optional:
//!
//! | setting | default | |
//! |---|---|---|
//! | `graph` | `model` | the graph of the package |
//! | `max_tokens` | 512 | longer texts are cut here |
//! | `top_k` | | of texts: the best labels in a list; `null` for all of them |
//! | `function_to_apply` | what the config says | of texts: `softmax`, `sigmoid` or `none` |
//! | `aggregation_strategy` | `none` | of tokens: `none`, `simple`, `first`, `average` or `max` |
//! | `ignore_labels` | `["O"]` | of tokens: labels that are no entity |
//! | `unk_token` | the tokenizer's | of tokens: the word that stands for unknown ones |
//!
//! A request may choose the middle four for itself, in `params`.
//!
//! A request's texts are read ([`body`], or over the Open Inference Protocol), tokenized, the graph gives their scores
//! batch by batch, and those become labels ([`texts`]) or entities ([`tokens`]). The tokenizer is built in `init`, and so is
//! part of the frozen image.

mod body;
mod config;
mod texts;
mod tokens;

use serde_json::{Map, Value, json};
use tessera_encoder::graph::{Encoder, Output};
use tessera_encoder::{oip, tokenizer};
use tessera_sdk::{Endpoint, Error, Package, Request, Response};
use tokenizers::{EncodeInput, Encoding, Tokenizer};

use crate::body::{Body, Text};
use crate::config::Config;

tessera_sdk::export!(Classification);

/// What most encoders were trained with.
const MAX_TOKENS_DEFAULT: usize = 512;

/// An encoder with a head that classifies.
#[derive(Debug)]
pub struct Classification {
    tokenizer: Tokenizer,
    encoder: Encoder,
    output: Output,
    labels: Vec<String>,
    task: Task,
}

#[derive(Debug)]
enum Task {
    Texts(texts::Choices),
    Tokens(tokens::Words, tokens::Choices),
}

impl Endpoint for Classification {
    fn init(package: &Package) -> Result<Self, Error> {
        let graph = package.setting("graph").unwrap_or_else(|| "model".to_owned());
        let in_graph = |error: Error| error.context(format!("graph `{graph}`"));
        let config = Config::parse(&package.asset("config.json")?)?;
        let info = package.graph(&graph)?;
        let encoder = Encoder::new(&graph, &info, config.pad_token_id)?;
        let first = info.output("logits").or(info.outputs.first());
        let output =
            Output::new(first.ok_or_else(|| in_graph(Error::model("it has no outputs")))?).map_err(in_graph)?;
        let tokenizer = tokenizer::read(package, MAX_TOKENS_DEFAULT, &encoder)?;
        let task = match output.per_token {
            false => Task::Texts(texts::Choices::new(&config).chosen(&settings(package, &texts::CHOICES))?),
            true => {
                let words = tokens::Words::new(&tokenizer, package.setting("unk_token"));
                Task::Tokens(words, tokens::Choices::default().chosen(&settings(package, &tokens::CHOICES))?)
            }
        };
        Ok(Self { labels: config.labels(output.width)?, tokenizer, encoder, output, task })
    }

    fn handle(&self, request: Request) -> Result<Response, Error> {
        match request.path() {
            "invocations" => {
                let Body { texts, params } = Body::read(&request)?;
                Response::json(&json!({ "predictions": self.predictions(&texts, &params)? }))
            }
            "v2" => self.metadata(&request),
            "v2/infer" => self.infer(&request),
            other => Err(Error::not_found(format!(
                "this endpoint classifies texts: call `invocations` or `v2/infer`, not `{other}`"
            ))),
        }
    }
}

impl Classification {
    /// What is answered for each text.
    fn predictions(&self, texts: &[Text], params: &Map<String, Value>) -> Result<Vec<Value>, Error> {
        match &self.task {
            Task::Texts(choices) => {
                let choices = choices.chosen(params)?;
                Ok(self.scores(texts)?.iter().map(|scores| choices.answer(&self.labels, scores)).collect())
            }
            Task::Tokens(words, choices) => {
                let choices = choices.chosen(params)?;
                let found = self.tokens(texts, words)?.into_iter();
                found.map(|tokens| choices.answer(&self.tokenizer, &self.labels, tokens)).collect()
            }
        }
    }

    /// What the model says of each text: a number per label.
    fn scores(&self, texts: &[Text]) -> Result<Vec<Vec<f32>>, Error> {
        let encode = |text: EncodeInput<'_>| self.tokenizer.encode_fast(text, true);
        let scores = self.encoder.run(&encoded(texts, encode)?, &self.output, |_, row, _| row.to_vec())?;
        match scores.iter().find(|scores| scores.len() != self.labels.len()) {
            Some(scores) => Err(self.other_width(scores.len())),
            None => Ok(scores),
        }
    }

    /// The tokens of each text, with the probability of each label.
    fn tokens(&self, texts: &[Text], words: &tokens::Words) -> Result<Vec<Vec<tokens::Token>>, Error> {
        if texts.iter().any(|text| text.pair.is_some()) {
            return Err(Error::invalid_input("this model classifies tokens, and takes no pairs of texts"));
        }
        // Python counts characters.
        let encode = |text: EncodeInput<'_>| self.tokenizer.encode_char_offsets(text, true);
        let encodings = encoded(texts, encode)?;
        let scores = self.encoder.run(&encodings, &self.output, |_, row, width| (row.to_vec(), width))?;
        let all = texts.iter().zip(&encodings).zip(scores);
        all.map(|((text, encoding), (scores, width))| match width == self.labels.len() {
            true => Ok(words.tokens(&text.text, encoding, &scores, width)),
            false => Err(self.other_width(width)),
        })
        .collect()
    }

    fn other_width(&self, width: usize) -> Error {
        let (name, labels) = (&self.output.name, self.labels.len());
        Error::model(format!(
            "output `{name}` came with {width} numbers for each, but `config.json` names {labels} labels"
        ))
    }

    fn metadata(&self, request: &Request) -> Result<Response, Error> {
        match &self.task {
            Task::Texts(choices) => match choices.is_list() {
                false => oip::metadata(request, &[("label", "BYTES", &[-1]), ("score", "FP32", &[-1])]),
                true => oip::metadata(request, &[("label", "BYTES", &[-1, -1]), ("score", "FP32", &[-1, -1])]),
            },
            Task::Tokens(..) => oip::metadata(request, &[("entities", "BYTES", &[-1])]),
        }
    }

    /// Over the Open Inference Protocol, labels and scores are tensors; the entities of a text are a JSON list.
    fn infer(&self, request: &Request) -> Result<Response, Error> {
        let names: &[&str] = if self.output.per_token { &["entities"] } else { &["label", "score"] };
        let mut asked = oip::Asked::read(request, names)?;
        let texts: Vec<Text> = std::mem::take(&mut asked.texts).into_iter().map(Text::from).collect();
        let outputs = match &self.task {
            Task::Texts(choices) => {
                let best: Vec<_> = self.scores(&texts)?.iter().flat_map(|s| choices.best(&self.labels, s)).collect();
                let mut shape = vec![texts.len()];
                if choices.is_list() {
                    shape.push(best.len() / texts.len().max(1));
                }
                let (labels, scores) = best.into_iter().map(|best| (best.label.to_owned(), best.score)).unzip();
                vec![oip::Output::bytes("label", shape.clone(), labels), oip::Output::fp32("score", shape, scores)]
            }
            Task::Tokens(..) => {
                let entities = self.predictions(&texts, &Map::new())?;
                let lists = entities.iter().map(Value::to_string).collect();
                vec![oip::Output::bytes("entities", vec![texts.len()], lists)]
            }
        };
        asked.respond(request, outputs)
    }
}

/// The settings of these names. They are text; those that are JSON mean what the same `params` of a request mean.
fn settings(package: &Package, names: &[&str]) -> Map<String, Value> {
    let value = |text: String| serde_json::from_str(&text).unwrap_or(Value::String(text));
    names.iter().filter_map(|name| Some(((*name).to_owned(), value(package.setting(name)?)))).collect()
}

fn encoded<'t>(
    texts: &'t [Text],
    encode: impl Fn(EncodeInput<'t>) -> tokenizers::Result<Encoding>,
) -> Result<Vec<Encoding>, Error> {
    let encode = |(index, text): (usize, &'t Text)| {
        let input = match &text.pair {
            None => EncodeInput::from(text.text.as_str()),
            Some(pair) => EncodeInput::from((text.text.as_str(), pair.as_str())),
        };
        encode(input).map_err(|error| Error::invalid_input(format!("failed to tokenize text {index}: {error}")))
    };
    texts.iter().enumerate().map(encode).collect()
}

#[cfg(test)]
mod tests;
