//! Entities in texts, as the pipeline `token-classification` gives them.

use serde::Serialize;
use serde_json::{Map, Value};
use tessera_sdk::Error;
use tokenizers::{Decoder as _, Encoding, ModelWrapper, Tokenizer};

use crate::texts::{softmax, unknown};

/// What a package's settings and a request's `params` may choose.
pub(crate) const CHOICES: [&str; 2] = ["aggregation_strategy", "ignore_labels"];

#[derive(Debug, Clone)]
pub(crate) struct Choices {
    strategy: Strategy,
    ignore_labels: Vec<String>,
}

/// How tokens become entities.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Strategy {
    /// Each token is one.
    None,
    /// Neighbours of one label are one.
    Simple,
    /// The same of words, whose label is that of their first token, of the mean of all, or of the surest.
    First,
    Average,
    Max,
}

/// How the tokenizer writes tokens: what is needed to find the words that they are parts of.
#[derive(Debug)]
pub(crate) struct Words {
    unknown_id: Option<u32>,
    /// Whether parts of a word are marked, as `##ing` is.
    marked: bool,
}

/// A token of a text.
#[derive(Debug)]
pub(crate) struct Token {
    word: String,
    /// The probability of each label.
    scores: Vec<f32>,
    /// In characters.
    start: usize,
    end: usize,
    /// Among all tokens, those that begin and end a text included.
    index: usize,
    /// Whether it goes on with the word of the token before.
    is_subword: bool,
}

/// A token or a word with its label, before they are grouped.
#[derive(Debug)]
struct Labelled<'l> {
    label: &'l str,
    score: f32,
    word: String,
    start: usize,
    end: usize,
    index: usize,
}

#[derive(Debug, Serialize)]
struct Entity<'l> {
    #[serde(skip_serializing_if = "Option::is_none")]
    entity: Option<&'l str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entity_group: Option<&'l str>,
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    word: String,
    start: usize,
    end: usize,
}

impl Default for Choices {
    fn default() -> Self {
        Self { strategy: Strategy::None, ignore_labels: vec!["O".to_owned()] }
    }
}

impl Choices {
    /// The same with what was chosen otherwise.
    pub(crate) fn chosen(&self, choices: &Map<String, Value>) -> Result<Self, Error> {
        let mut chosen = self.clone();
        for (name, value) in choices {
            match name.as_str() {
                "aggregation_strategy" => chosen.strategy = strategy(value)?,
                "ignore_labels" => {
                    chosen.ignore_labels = serde_json::from_value(value.clone()).map_err(|_| {
                        Error::invalid_input(format!("`ignore_labels` is {value}; it must be a list of labels"))
                    })?;
                }
                _ => return Err(unknown(name, &CHOICES)),
            }
        }
        Ok(chosen)
    }

    /// The entities of a text.
    pub(crate) fn answer(&self, tokenizer: &Tokenizer, labels: &[String], tokens: Vec<Token>) -> Result<Value, Error> {
        let labelled: Vec<Labelled<'_>> = match self.strategy {
            Strategy::None | Strategy::Simple => tokens.into_iter().map(|token| token.labelled(labels)).collect(),
            _ => self.words(tokenizer, labels, &tokens)?,
        };
        let mut entities: Vec<Entity<'_>> = match self.strategy {
            Strategy::None => labelled.into_iter().map(Labelled::entity).collect(),
            _ => groups(tokenizer, &labelled)?,
        };
        entities.retain(|entity| {
            let label = entity.entity.or(entity.entity_group).unwrap_or_default();
            !self.ignore_labels.iter().any(|ignored| ignored == label)
        });
        serde_json::to_value(entities).map_err(|error| Error::model(format!("failed to write the entities: {error}")))
    }

    /// Words, each with one label for all of its tokens.
    fn words<'l>(
        &self,
        tokenizer: &Tokenizer,
        labels: &'l [String],
        tokens: &[Token],
    ) -> Result<Vec<Labelled<'l>>, Error> {
        let word = |tokens: &[Token]| {
            let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else { return Ok(None) };
            let scores = match self.strategy {
                Strategy::Average => mean(tokens),
                Strategy::Max => surest(tokens).scores.clone(),
                _ => first.scores.clone(),
            };
            let (label, score) = best(labels, &scores);
            let word = joined(tokenizer, tokens.iter().map(|token| token.word.clone()).collect())?;
            Ok(Some(Labelled { label, score, word, start: first.start, end: last.end, index: first.index }))
        };
        let words = tokens.chunk_by(|_, next| next.is_subword);
        words.map(word).filter_map(Result::transpose).collect()
    }
}

impl Words {
    /// `unknown` is the word for what the tokenizer does not know, where its own model does not say.
    pub(crate) fn new(tokenizer: &Tokenizer, unknown: Option<String>) -> Self {
        let (prefix, of_model) = match tokenizer.get_model() {
            ModelWrapper::WordPiece(model) => (Some(&model.continuing_subword_prefix), Some(model.unk_token.as_str())),
            ModelWrapper::BPE(model) => (model.continuing_subword_prefix.as_ref(), model.unk_token.as_deref()),
            ModelWrapper::WordLevel(model) => (None, Some(model.unk_token.as_str())),
            ModelWrapper::Unigram(_) => (None, None),
        };
        let unknown_id = unknown.as_deref().or(of_model).and_then(|unknown| tokenizer.token_to_id(unknown));
        Self { unknown_id, marked: prefix.is_some_and(|prefix| !prefix.is_empty()) }
    }

    /// The tokens of a text without those that the tokenizer adds. `scores` has `width` numbers for each, those included;
    /// the offsets of `encoding` are in characters.
    pub(crate) fn tokens(&self, text: &str, encoding: &Encoding, scores: &[f32], width: usize) -> Vec<Token> {
        let starts: Vec<usize> = text.char_indices().map(|(start, _)| start).collect();
        let byte = |place: usize| starts.get(place).copied().unwrap_or(text.len());
        let special = encoding.get_special_tokens_mask();
        let all = scores.chunks(width.max(1)).zip(encoding.get_tokens()).enumerate();
        all.filter(|(index, _)| special.get(*index) == Some(&0))
            .map(|(index, (scores, word))| {
                let (start, end) = encoding.get_offsets().get(index).copied().unwrap_or_default();
                let written = text.get(byte(start)..byte(end)).unwrap_or_default();
                let unknown = self.unknown_id.is_some() && encoding.get_ids().get(index).copied() == self.unknown_id;
                let is_subword = if unknown {
                    false
                } else if self.marked {
                    word.chars().count() != written.chars().count()
                } else {
                    // As the pipeline guesses: a word begins where there is a space at the seam.
                    let seam = text.get(byte(start.saturating_sub(1))..byte(start + 1)).unwrap_or_default();
                    start > 0 && !seam.contains(' ')
                };
                let word = if unknown { written.to_owned() } else { word.clone() };
                Token { word, scores: softmax(scores), start, end, index, is_subword }
            })
            .collect()
    }
}

impl Token {
    fn labelled(self, labels: &[String]) -> Labelled<'_> {
        let (label, score) = best(labels, &self.scores);
        Labelled { label, score, word: self.word, start: self.start, end: self.end, index: self.index }
    }
}

impl<'l> Labelled<'l> {
    fn entity(self) -> Entity<'l> {
        let Self { label, score, word, start, end, index } = self;
        Entity { entity: Some(label), entity_group: None, score, index: Some(index), word, start, end }
    }

    /// Whether it goes on with the entity of the one before: has the same tag, and does not begin one.
    fn continues(&self, before: &Labelled<'_>) -> bool {
        tag(self.label) == tag(before.label) && !self.label.starts_with("B-")
    }
}

/// Neighbours that are of one entity, together.
fn groups<'l>(tokenizer: &Tokenizer, labelled: &[Labelled<'l>]) -> Result<Vec<Entity<'l>>, Error> {
    let group = |group: &[Labelled<'l>]| {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return Ok(None) };
        let sum: f32 = group.iter().map(|one| one.score).sum();
        Ok(Some(Entity {
            entity: None,
            entity_group: Some(first.label.split_once('-').map_or(first.label, |(_, name)| name)),
            score: sum / group.len() as f32,
            index: None,
            word: joined(tokenizer, group.iter().map(|one| one.word.clone()).collect())?,
            start: first.start,
            end: last.end,
        }))
    };
    labelled.chunk_by(|before, next| next.continues(before)).map(group).filter_map(Result::transpose).collect()
}

/// A label without what says whether it begins an entity or goes on with it.
fn tag(label: &str) -> &str {
    label.strip_prefix("B-").or(label.strip_prefix("I-")).unwrap_or(label)
}

/// The label with the highest score; of equals the first.
fn best<'l>(labels: &'l [String], scores: &[f32]) -> (&'l str, f32) {
    let mut best = ("", f32::NEG_INFINITY);
    for (label, score) in labels.iter().zip(scores) {
        if *score > best.1 {
            best = (label, *score);
        }
    }
    best
}

fn surest(tokens: &[Token]) -> &Token {
    let highest = |token: &Token| token.scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut surest = &tokens[0];
    for token in tokens {
        if highest(token) > highest(surest) {
            surest = token;
        }
    }
    surest
}

fn mean(tokens: &[Token]) -> Vec<f32> {
    let mut sum = vec![0.0; tokens.first().map_or(0, |token| token.scores.len())];
    for token in tokens {
        sum.iter_mut().zip(&token.scores).for_each(|(sum, score)| *sum += score);
    }
    sum.iter_mut().for_each(|sum| *sum /= tokens.len() as f32);
    sum
}

/// Tokens as the text that they stand for.
fn joined(tokenizer: &Tokenizer, tokens: Vec<String>) -> Result<String, Error> {
    match tokenizer.get_decoder() {
        Some(decoder) => {
            decoder.decode(tokens).map_err(|error| Error::model(format!("failed to join tokens to a word: {error}")))
        }
        None => Ok(tokens.join(" ")),
    }
}

fn strategy(value: &Value) -> Result<Strategy, Error> {
    match value.as_str().unwrap_or_default() {
        "none" => Ok(Strategy::None),
        "simple" => Ok(Strategy::Simple),
        "first" => Ok(Strategy::First),
        "average" => Ok(Strategy::Average),
        "max" => Ok(Strategy::Max),
        _ => Err(Error::invalid_input(format!(
            "`aggregation_strategy` is {value}; it must be one of `none`, `simple`, `first`, `average`, `max`"
        ))),
    }
}
