//! What lies between the engine, which makes tokens, and a guest, which fetches them when it likes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::Notify;

use crate::nn::{NnError, Outputs, Tensor, TensorType};

/// Tokens that may wait for a guest. A sequence whose guest is further behind is not computed until it has fetched them.
const WAITING_MAX: usize = 256;

/// A token of an answer.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) id: i32,
    pub(super) bytes: Vec<u8>,
    pub(super) logprobs: Option<Logprobs>,
}

/// How likely a token was, and which were the most likely.
#[derive(Debug, Clone)]
pub(super) struct Logprobs {
    pub(super) chosen: f32,
    pub(super) top: Vec<(i32, f32, Vec<u8>)>,
}

/// The beginning of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Begin {
    /// Tokens of the sequence before the answer.
    pub(super) prompt_tokens: usize,
    /// Tokens of the prompt that were computed for an earlier sequence of the same workspace.
    pub(super) cached_tokens: usize,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FinishReason {
    /// The model ended it.
    Stop,
    /// It has as many tokens as asked for, or as fit.
    Length,
}

/// The end of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct End {
    pub(super) finish_reason: FinishReason,
    /// Tokens of the sequence before the answer.
    pub(super) prompt_tokens: usize,
    /// Tokens of the answer, without the one that ended it.
    pub(super) completion_tokens: usize,
    /// Tokens of the prompt that were computed for an earlier sequence of the same workspace.
    pub(super) cached_tokens: usize,
}

/// Texts as vectors.
#[derive(Debug)]
pub(super) struct Vectors {
    pub(super) rows: usize,
    pub(super) width: usize,
    /// One vector after the other.
    pub(super) values: Vec<f32>,
    pub(super) prompt_tokens: usize,
}

/// What ends a stream.
#[derive(Debug)]
pub(super) enum Ended {
    /// An answer, of which the tokens came before.
    Answer(End),
    /// Vectors, all at once.
    Vectors(Vectors),
}

/// What a guest gets at once.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// With the first tokens.
    pub(super) begin: Option<Begin>,
    pub(super) tokens: Vec<Token>,
    pub(super) end: Option<Ended>,
}

/// One answer on its way.
#[derive(Default)]
pub(super) struct Stream {
    state: Mutex<State>,
    filled: Notify,
}

#[derive(Default)]
struct State {
    begin: Option<Begin>,
    tokens: Vec<Token>,
    end: Option<Result<Ended, NnError>>,
    closed: bool,
}

/// Whether an engine that stopped for this stream is to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    Runs,
    Waits,
}

impl Stream {
    /// For the engine: the answer begins.
    pub(super) fn begin(&self, begin: Begin) {
        self.lock().begin = Some(begin);
    }

    /// For the engine: another token.
    pub(super) fn push(&self, token: Token) {
        self.lock().tokens.push(token);
        self.filled.notify_one();
    }

    /// For the engine: no further token comes.
    pub(super) fn finish(&self, end: Result<Ended, NnError>) {
        self.lock().end = Some(end);
        self.filled.notify_one();
    }

    /// Whether the guest is too far behind.
    pub(super) fn is_full(&self) -> bool {
        self.lock().tokens.len() >= WAITING_MAX
    }

    /// Whether nobody fetches any more.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// For the guest: it wants no more.
    pub(super) fn close(&self) {
        self.lock().closed = true;
    }

    /// Waits until there is something; takes all there is. May be cancelled: nothing is lost.
    pub(super) async fn next(&self) -> Result<(Chunk, Engine), NnError> {
        loop {
            if let Some(taken) = self.take() {
                return taken;
            }
            self.filled.notified().await;
        }
    }

    fn take(&self) -> Option<Result<(Chunk, Engine), NnError>> {
        let mut state = self.lock();
        let engine = if state.tokens.len() >= WAITING_MAX { Engine::Waits } else { Engine::Runs };
        let tokens = std::mem::take(&mut state.tokens);
        let end = match state.end.take() {
            Some(Err(error)) if tokens.is_empty() => return Some(Err(error)),
            // What was made before it failed is told first.
            Some(Err(error)) => {
                state.end = Some(Err(error));
                None
            }
            Some(Ok(end)) => Some(end),
            None if tokens.is_empty() => return None,
            None => None,
        };
        Some(Ok((Chunk { begin: state.begin.take(), tokens, end }, engine)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Chunk {
    /// As tensors for the guest.
    pub(super) fn into_outputs(self) -> Result<Outputs, NnError> {
        let end = match self.end {
            Some(Ended::Vectors(vectors)) => return vectors.into_outputs(),
            Some(Ended::Answer(end)) => Some(end),
            None => None,
        };
        let mut text = Vec::new();
        let mut offsets = Vec::with_capacity(self.tokens.len());
        for token in &self.tokens {
            text.extend_from_slice(&token.bytes);
            offsets.push(text.len() as i32);
        }
        let ids: Vec<i32> = self.tokens.iter().map(|token| token.id).collect();
        let mut outputs = vec![bytes("text", text)?, whole("tokens", &[ids.len()], &ids)?];
        outputs.push(whole("offsets", &[offsets.len()], &offsets)?);
        let logprobs: Vec<&Logprobs> = self.tokens.iter().filter_map(|token| token.logprobs.as_ref()).collect();
        if !logprobs.is_empty() {
            outputs.extend(logprobs_outputs(&logprobs)?);
        }
        if let Some(begin) = self.begin {
            outputs.push(json("begin", &begin)?);
        }
        if let Some(end) = end {
            outputs.push(json("end", &end)?);
        }
        Ok(outputs)
    }
}

impl Vectors {
    fn into_outputs(self) -> Result<Outputs, NnError> {
        let end = End {
            finish_reason: FinishReason::Stop,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: 0,
            cached_tokens: 0,
        };
        Ok(vec![real("embedding", &[self.rows, self.width], &self.values)?, json("end", &end)?])
    }
}

fn logprobs_outputs(logprobs: &[&Logprobs]) -> Result<Outputs, NnError> {
    let top = || logprobs.iter().flat_map(|logprobs| &logprobs.top);
    let width = logprobs.first().map_or(0, |logprobs| logprobs.top.len());
    let shape = [logprobs.len(), width];
    let mut text = Vec::new();
    let mut offsets = Vec::new();
    for (_, _, bytes) in top() {
        text.extend_from_slice(bytes);
        offsets.push(text.len() as i32);
    }
    let chosen: Vec<f32> = logprobs.iter().map(|logprobs| logprobs.chosen).collect();
    Ok(vec![
        real("logprobs", &[chosen.len()], &chosen)?,
        whole("top_tokens", &shape, &top().map(|top| top.0).collect::<Vec<_>>())?,
        real("top_logprobs", &shape, &top().map(|top| top.1).collect::<Vec<_>>())?,
        bytes("top_text", text)?,
        whole("top_offsets", &[offsets.len()], &offsets)?,
    ])
}

fn json(name: &str, value: &impl Serialize) -> Result<(String, Tensor), NnError> {
    bytes(name, serde_json::to_vec(value).map_err(|error| NnError::runtime(error.to_string()))?)
}

fn bytes(name: &str, bytes: Vec<u8>) -> Result<(String, Tensor), NnError> {
    let dims = vec![bytes.len() as u32];
    Ok((name.to_owned(), Tensor::new(TensorType::U8, dims, Bytes::from(bytes))?))
}

pub(super) fn whole(name: &str, shape: &[usize], numbers: &[i32]) -> Result<(String, Tensor), NnError> {
    let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    Ok((name.to_owned(), Tensor::new(TensorType::I32, dims(shape), data)?))
}

fn real(name: &str, shape: &[usize], numbers: &[f32]) -> Result<(String, Tensor), NnError> {
    let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    Ok((name.to_owned(), Tensor::new(TensorType::Fp32, dims(shape), data)?))
}

fn dims(shape: &[usize]) -> Vec<u32> {
    shape.iter().map(|&size| size as u32).collect()
}
