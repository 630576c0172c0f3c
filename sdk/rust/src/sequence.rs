//! Language models: a sequence of tokens that the model reads, then writes.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bindings::wasi::nn::errors::Error as HostError;
use crate::bindings::wasi::nn::graph::load_by_name;
use crate::bindings::wasi::nn::inference::GraphExecutionContext;
use crate::bindings::wasi::nn::tensor::Tensor as HostTensor;
use crate::graph::kind_of;
use crate::{Error, Graph, Tensor, TensorType};

/// What a model reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Prompt<'p> {
    /// Text, in which the names of special tokens mean these tokens.
    Text(&'p str),
    /// Tokens, as they are.
    Tokens(&'p [i32]),
}

impl<'p> From<&'p str> for Prompt<'p> {
    fn from(text: &'p str) -> Self {
        Self::Text(text)
    }
}

/// How a sequence goes on. What is not set is as the host has it; `wit/endpoint.wit` lists the defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Options {
    /// Most tokens that are generated; without it, as many as fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// 0 always takes the most likely token; the larger, the more varied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Only the most likely tokens that together have this probability, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Only this many of the most likely tokens; 0 for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Only tokens with at least this part of the most likely one's probability, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Divides the logits of tokens that came before; 1 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_penalty: Option<f32>,
    /// Taken from the logits of tokens that came before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// Taken from the logits of tokens for each time that they came before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// How many tokens back the penalties look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub penalty_last_n: Option<u32>,
    /// Makes the choice of tokens repeatable; without it, it is random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
    /// Added to the logits of these tokens.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub logit_bias: BTreeMap<i32, f32>,
    /// Asks for [`Token::logprobs`], and for this many of the most likely tokens beside each, at most 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u32>,
    /// A grammar in GBNF that the text follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grammar: Option<String>,
    /// A JSON schema that the text follows, as JSON. Not beside a grammar. Keys come in the order of the schema.
    #[serde(skip)]
    pub json_schema: Option<String>,
    /// Whether the model may not end before its `max_tokens`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore_eos: bool,
    /// Whether what the model read for earlier requests of the workspace is used, and this kept for later ones. It is,
    /// where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<bool>,
}

impl Options {
    fn json(&self) -> Result<String, Error> {
        let failed = |error| Error::model(format!("failed to write the options as JSON: {error}"));
        let mut json = serde_json::to_string(self).map_err(failed)?;
        // Not parsed and written again, which would sort its keys.
        if let Some(schema) = &self.json_schema {
            json.pop();
            let comma = if json.len() > 1 { "," } else { "" };
            json.push_str(&format!(r#"{comma}"json_schema":{schema}}}"#));
        }
        Ok(json)
    }
}

/// What a model wrote since the last call: at least one token, or the end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chunk {
    /// Set in the first chunk of an answer.
    pub begin: Option<Begin>,
    /// In the order in which they were written.
    pub tokens: Vec<Token>,
    /// Set in the last chunk of an answer.
    pub end: Option<End>,
}

impl Chunk {
    /// The texts of its tokens.
    pub fn text(&self) -> String {
        self.tokens.iter().map(|token| token.text.as_str()).collect()
    }
}

/// A token that a model wrote.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Token {
    /// Its number in the model's vocabulary.
    pub id: i32,
    /// The characters that are complete with this token. A token may hold a part of a character: its bytes come with the
    /// token that completes it. Bytes that are of no character are U+FFFD.
    pub text: String,
    /// Its own bytes.
    pub bytes: Vec<u8>,
    /// How likely it was, where [`Options::logprobs`] asks for it.
    pub logprobs: Option<Logprobs>,
}

/// How likely a token was, and which others were: natural logarithms of probabilities.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Logprobs {
    /// Of the token itself.
    pub chosen: f32,
    /// The most likely tokens in its place, most likely first: their bytes and logarithms.
    pub top: Vec<(Vec<u8>, f32)>,
}

/// What a model read before its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Begin {
    /// Tokens that the model read.
    pub prompt_tokens: u32,
    /// Of `prompt_tokens`, those that it had read before, for another request of the workspace.
    #[serde(default)]
    pub cached_tokens: u32,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct End {
    /// Why.
    pub finish_reason: FinishReason,
    /// Tokens that the model read.
    pub prompt_tokens: u32,
    /// Tokens that it wrote, without the one by which it ended the answer.
    #[serde(default)]
    pub completion_tokens: u32,
    /// Of `prompt_tokens`, those that it had read before, for another request of the workspace.
    #[serde(default)]
    pub cached_tokens: u32,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it.
    Stop,
    /// It has `max_tokens`, or the context is full.
    Length,
}

/// Vectors of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// One per text, each of length 1.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all texts.
    pub prompt_tokens: u32,
}

/// A sequence of a language model, computed together with those of other requests. Dropping it ends it, within one
/// step of the model.
#[derive(Debug)]
pub struct Sequence {
    source: Source,
    text: Text,
}

#[derive(Debug)]
enum Source {
    Host { graph: String, context: GraphExecutionContext },
    Scripted(std::vec::IntoIter<Chunk>),
}

impl Graph<'_> {
    /// A new sequence of this graph, which must be a language model. Only during `handle`.
    pub fn sequence(&self) -> Result<Sequence, Error> {
        let failed = |error| host_error(self.name(), &error);
        let context = load_by_name(self.name()).and_then(|graph| graph.init_execution_context()).map_err(failed)?;
        let source = Source::Host { graph: self.name().to_owned(), context };
        Ok(Sequence { source, text: Text::default() })
    }

    /// The tokens of a text, with those that the model wants in front of it. Only during `handle`.
    pub fn tokenize(&self, text: &str) -> Result<Vec<i32>, Error> {
        let outputs = self.ask(&[("prompt", u8s(text.as_bytes())?), ("options", u8s(br#"{"task":"tokenize"}"#)?)])?;
        Ok(outputs.values::<i32>("tokens")?.unwrap_or_default())
    }

    /// The vectors of texts, by a model that makes them. Only during `handle`.
    pub fn embed(&self, texts: &[&str]) -> Result<Embeddings, Error> {
        let joined = texts.concat();
        let ends: Vec<i32> = texts
            .iter()
            .scan(0, |end, text| {
                *end += text.len() as i32;
                Some(*end)
            })
            .collect();
        let offsets = Tensor::new(&[ends.len() as u32], &ends)?;
        let options = u8s(br#"{"task":"embed"}"#)?;
        let outputs = self.ask(&[("prompt", u8s(joined.as_bytes())?), ("offsets", offsets), ("options", options)])?;
        outputs.embeddings(texts.len())
    }

    /// A task that one call answers.
    fn ask(&self, inputs: &[(&str, Tensor<'_>)]) -> Result<Outputs, Error> {
        match self.sequence()?.source {
            Source::Host { graph, context } => compute(&graph, &context, inputs),
            Source::Scripted(_) => Ok(Outputs(Vec::new())),
        }
    }
}

impl Sequence {
    /// A sequence whose every `start` and `next` gives the next of these chunks, for unit tests of an endpoint.
    pub fn scripted(chunks: Vec<Chunk>) -> Self {
        Self { source: Source::Scripted(chunks.into_iter()), text: Text::default() }
    }

    /// Gives the model a prompt, and waits for the first of its answer. After the end of an answer another prompt goes on
    /// from there: the model need not read again what it has read and written.
    ///
    /// A prompt that does not fit the model's context is [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput), as
    /// are options that it does not take.
    pub fn start<'p>(&mut self, prompt: impl Into<Prompt<'p>>, options: &Options) -> Result<Chunk, Error> {
        let options = options.json()?;
        let prompt = match prompt.into() {
            Prompt::Text(text) => ("prompt", u8s(text.as_bytes())?),
            Prompt::Tokens(tokens) => ("tokens", Tensor::new(&[tokens.len() as u32], tokens)?),
        };
        self.text = Text::default();
        self.compute(&[prompt, ("options", u8s(options.as_bytes())?)])
    }

    /// Waits until there is more of the answer, and gives all of it. To be called until a chunk has its `end`.
    #[expect(clippy::should_implement_trait, reason = "an iterator over results would go on after an error")]
    pub fn next(&mut self) -> Result<Chunk, Error> {
        self.compute(&[])
    }

    fn compute(&mut self, inputs: &[(&str, Tensor<'_>)]) -> Result<Chunk, Error> {
        match &mut self.source {
            Source::Host { graph, context } => compute(graph, context, inputs)?.chunk(&mut self.text),
            Source::Scripted(chunks) => {
                chunks.next().ok_or_else(|| Error::invalid_input("the answer has ended; give another prompt"))
            }
        }
    }
}

fn u8s(bytes: &[u8]) -> Result<Tensor<'_>, Error> {
    Tensor::new(&[bytes.len() as u32], bytes)
}

fn compute(graph: &str, context: &GraphExecutionContext, inputs: &[(&str, Tensor<'_>)]) -> Result<Outputs, Error> {
    let host_tensor = |(name, tensor): &(&str, Tensor<'_>)| {
        ((*name).to_owned(), HostTensor::new(tensor.dims(), tensor.ty(), tensor.bytes()))
    };
    let outputs = context.compute(inputs.iter().map(host_tensor).collect());
    let outputs = outputs.map_err(|error| host_error(graph, &error))?;
    let read = |(name, tensor): (String, HostTensor)| {
        Ok((name, Tensor::from_bytes(&tensor.dimensions(), tensor.ty(), tensor.data())?))
    };
    Ok(Outputs(outputs.into_iter().map(read).collect::<Result<_, Error>>()?))
}

fn host_error(graph: &str, error: &HostError) -> Error {
    Error::new(kind_of(error.code()), format!("failed to compute graph `{graph}`: {}", error.data()))
}

/// What `compute` gave, by name.
struct Outputs(Vec<(String, Tensor<'static>)>);

impl Outputs {
    fn get(&self, name: &str) -> Option<&Tensor<'static>> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor)
    }

    /// The values of an output, if there is such a one.
    fn values<T: crate::Element>(&self, name: &str) -> Result<Option<Vec<T>>, Error> {
        let failed = |error: Error| error.context(format!("the host's output `{name}`"));
        self.get(name)
            .map(|tensor| tensor.as_slice::<T>().map(|values| values.into_owned()).map_err(failed))
            .transpose()
    }

    fn bytes(&self, name: &str) -> &[u8] {
        self.get(name).filter(|tensor| tensor.ty() == TensorType::U8).map_or(&[], |tensor| tensor.bytes())
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let read = |json: &Tensor<'_>| {
            serde_json::from_slice(json.bytes())
                .map_err(|error| Error::model(format!("the host's output `{name}` is not as agreed: {error}")))
        };
        self.get(name).map(read).transpose()
    }

    fn chunk(&self, text: &mut Text) -> Result<Chunk, Error> {
        let ids = self.values::<i32>("tokens")?.unwrap_or_default();
        let pieces = pieces(self.bytes("text"), self.values("offsets")?.unwrap_or_default());
        let mut logprobs = self.logprobs(ids.len())?.into_iter();
        let token = |(id, bytes): (i32, &[u8])| Token {
            id,
            text: text.complete(bytes),
            bytes: bytes.to_vec(),
            logprobs: logprobs.next(),
        };
        let tokens = ids.into_iter().zip(pieces).map(token).collect();
        Ok(Chunk { begin: self.json("begin")?, tokens, end: self.json("end")? })
    }

    /// Of each token, where they were asked for.
    fn logprobs(&self, tokens: usize) -> Result<Vec<Logprobs>, Error> {
        let Some(chosen) = self.values::<f32>("logprobs")? else { return Ok(Vec::new()) };
        let top = self.values::<f32>("top_logprobs")?.unwrap_or_default();
        let ends: Vec<i32> = self.values("top_offsets")?.unwrap_or_default();
        let each = ends.len().checked_div(tokens).unwrap_or(0);
        let mut top = pieces(self.bytes("top_text"), ends).map(<[u8]>::to_vec).zip(top);
        Ok(chosen.into_iter().map(|chosen| Logprobs { chosen, top: top.by_ref().take(each).collect() }).collect())
    }

    fn embeddings(&self, texts: usize) -> Result<Embeddings, Error> {
        let values = self.values::<f32>("embedding")?.unwrap_or_default();
        let width = values.len() / texts.max(1);
        if width == 0 || width * texts != values.len() {
            return Err(Error::model(format!("the host gave {} values for {texts} texts", values.len())));
        }
        #[derive(Deserialize)]
        struct Read {
            prompt_tokens: u32,
        }
        let read: Option<Read> = serde_json::from_slice(self.bytes("end")).ok();
        let vectors = values.chunks_exact(width).map(<[f32]>::to_vec).collect();
        Ok(Embeddings { vectors, prompt_tokens: read.map_or(0, |read| read.prompt_tokens) })
    }
}

/// The parts of bytes that end at these offsets; empty where an offset makes no sense.
fn pieces(bytes: &[u8], ends: Vec<i32>) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    ends.into_iter()
        .map(move |end| bytes.get(std::mem::replace(&mut start, end) as usize..end as usize).unwrap_or_default())
}

/// Holds the bytes of a character that has begun and is not complete.
#[derive(Debug, Default)]
struct Text {
    held: Vec<u8>,
}

impl Text {
    /// The characters that are complete with these bytes.
    fn complete(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let mut begun = 0;
        for part in self.held.utf8_chunks() {
            text.push_str(part.valid());
            // At the very end it may be the beginning of a character; anywhere else it is none.
            let last = part.invalid().as_ptr_range().end == self.held.as_ptr_range().end;
            match part.invalid() {
                [] => {}
                invalid if last && may_be_completed(invalid) => begun = invalid.len(),
                _ => text.push(char::REPLACEMENT_CHARACTER),
            }
        }
        self.held.drain(..self.held.len() - begun);
        text
    }
}

/// Whether more bytes can make a character of these.
fn may_be_completed(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn i32s(values: &[i32]) -> Tensor<'static> {
        Tensor::new(&[values.len() as u32], values).unwrap().into_owned()
    }

    fn f32s(values: &[f32]) -> Tensor<'static> {
        Tensor::new(&[values.len() as u32], values).unwrap().into_owned()
    }

    fn text(bytes: &[u8]) -> Tensor<'static> {
        u8s(bytes).unwrap().into_owned()
    }

    fn outputs(list: Vec<(&str, Tensor<'static>)>) -> Outputs {
        Outputs(list.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect())
    }

    #[test]
    fn characters_come_with_the_token_that_completes_them() {
        let mut held = Text::default();
        let first =
            outputs(vec![("text", text(b"a\xe2\x82")), ("tokens", i32s(&[7, 8, 9])), ("offsets", i32s(&[1, 2, 3]))]);
        let chunk = first.chunk(&mut held).unwrap();
        assert_eq!(chunk.tokens.iter().map(|token| token.text.as_str()).collect::<Vec<_>>(), ["a", "", ""]);
        assert_eq!((chunk.tokens[2].id, chunk.tokens[2].bytes.as_slice(), chunk.end), (9, b"\x82".as_slice(), None));
        let end = br#"{"finish_reason":"length","prompt_tokens":3,"completion_tokens":4,"cached_tokens":1}"#;
        let last = outputs(vec![
            ("text", text(b"\xacb")),
            ("tokens", i32s(&[5])),
            ("offsets", i32s(&[2])),
            ("end", text(end)),
        ]);
        let chunk = last.chunk(&mut held).unwrap();
        assert_eq!(chunk.text(), "€b");
        let end = chunk.end.unwrap();
        assert_eq!((end.finish_reason, end.prompt_tokens, end.cached_tokens), (FinishReason::Length, 3, 1));
    }

    #[test]
    fn bytes_that_are_of_no_character_are_replaced_once_that_is_certain() {
        for pieces in [vec![&b"\xf0\x9f"[..], b"\x98", b"\x80!"], vec![b"\xf0", b"\x9f\x98\x80", b"!"]] {
            let mut held = Text::default();
            let texts: Vec<String> = pieces.iter().map(|piece| held.complete(piece)).collect();
            assert_eq!(texts.concat(), "😀!");
        }
        let mut held = Text::default();
        assert_eq!(held.complete(b"\xe2\x82"), "");
        assert_eq!(held.complete(b"a\xff"), "\u{fffd}a\u{fffd}");
        assert_eq!(held.complete(b"b"), "b");
    }

    #[test]
    fn logprobs_belong_to_their_tokens() {
        let outputs = outputs(vec![
            ("text", text(b"ab")),
            ("tokens", i32s(&[1, 2])),
            ("offsets", i32s(&[1, 2])),
            ("logprobs", f32s(&[-0.5, -1.5])),
            ("top_logprobs", f32s(&[-0.5, -2.0, -1.0, -1.5])),
            ("top_text", text(b"axyb")),
            ("top_offsets", i32s(&[1, 2, 3, 4])),
        ]);
        let chunk = outputs.chunk(&mut Text::default()).unwrap();
        let logprobs = chunk.tokens[1].logprobs.as_ref().unwrap();
        assert_eq!((logprobs.chosen, &logprobs.top), (-1.5, &vec![(b"y".to_vec(), -1.0), (b"b".to_vec(), -1.5)]));
        assert_eq!(chunk.tokens[0].logprobs.as_ref().unwrap().top[1], (b"x".to_vec(), -2.0));
    }

    #[test]
    fn outputs_that_make_no_sense_do_no_harm() {
        let odd = outputs(vec![("text", text(b"ab")), ("tokens", i32s(&[1, 2, 3])), ("offsets", i32s(&[9, -1, 2]))]);
        assert_eq!(odd.chunk(&mut Text::default()).unwrap().tokens.len(), 3);
        let odd = outputs(vec![("tokens", text(b"ab"))]);
        assert!(odd.chunk(&mut Text::default()).unwrap_err().message.contains("`tokens`"));
        let odd = outputs(vec![("end", text(b"{}"))]);
        assert!(odd.chunk(&mut Text::default()).unwrap_err().message.contains("`end`"));
    }

    #[test]
    fn only_options_that_are_set_are_sent_and_a_schema_as_it_is() {
        assert_eq!(Options::default().json().unwrap(), "{}");
        let schema = Some(r#"{"z":1,"a":2}"#.to_owned());
        let options = Options { json_schema: schema.clone(), ..Options::default() };
        assert_eq!(options.json().unwrap(), r#"{"json_schema":{"z":1,"a":2}}"#);
        let options = Options {
            temperature: Some(0.7),
            logit_bias: BTreeMap::from([(5, -100.0)]),
            json_schema: schema,
            ..Options::default()
        };
        let json = r#"{"temperature":0.7,"logit_bias":{"5":-100.0},"json_schema":{"z":1,"a":2}}"#;
        assert_eq!(options.json().unwrap(), json);
    }

    #[test]
    fn embeddings_are_one_vector_per_text() {
        let values = Tensor::new(&[2, 2], &[1.0_f32, 0.0, 0.0, 1.0]).unwrap().into_owned();
        let outputs = outputs(vec![("embedding", values), ("end", text(br#"{"prompt_tokens":5}"#))]);
        let embeddings = outputs.embeddings(2).unwrap();
        assert_eq!((embeddings.vectors[1].as_slice(), embeddings.prompt_tokens), ([0.0, 1.0].as_slice(), 5));
        assert!(outputs.embeddings(3).unwrap_err().message.contains("4 values for 3 texts"));
    }

    #[test]
    fn a_scripted_sequence_ends() {
        let mut sequence = Sequence::scripted(vec![Chunk::default()]);
        sequence.start("x", &Options::default()).unwrap();
        assert!(sequence.next().unwrap_err().message.contains("has ended"));
    }
}
