//! Graphs that answer step by step: language models. A sequence is one guest's conversation with the model; its backend
//! computes those of all guests together.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Instant;

use futures_util::future::BoxFuture;

use super::{NnError, Outputs, Tenant, Tensor};

/// What a graph offers whose computations are sequences.
pub trait Sequences: Send + Sync {
    /// A sequence that has not begun: it costs nothing until its first computation.
    fn open(&self, tenant: Tenant) -> Box<dyn Sequence>;

    /// What it can do at once, in a line for the build log.
    fn finding(&self) -> String;
}

/// One sequence. Dropping it, or a computation of it, ends it and frees what it holds within one step of the backend.
pub trait Sequence: Send {
    /// With inputs begins, or goes on after an end; without them waits until there is more of the answer, and gives all
    /// there is since the last call.
    ///
    /// `InvalidArgument` and `TooLarge` before anything is queued, `Overloaded` when too many wait, `Timeout` at the
    /// deadline.
    fn compute(&mut self, inputs: Vec<(String, Tensor)>, deadline: Instant) -> BoxFuture<'_, Result<Outputs, NnError>>;
}

/// What a process counts of the sequences of all its graphs.
#[derive(Debug, Default)]
pub struct SequenceCounters {
    /// Sequences that are computed.
    pub live: AtomicI64,
    /// Answers that wait for a sequence.
    pub waiting: AtomicI64,
    /// Steps computed.
    pub steps: AtomicU64,
    /// Tokens of prompts that were computed.
    pub prompt_tokens: AtomicU64,
    /// Tokens of prompts that had been computed for an earlier sequence.
    pub cached_tokens: AtomicU64,
    /// Tokens of answers.
    pub completion_tokens: AtomicU64,
}

/// What a package says about the sequences of one of its graphs; what it leaves open the backend decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SequenceSpec {
    /// Most tokens of one sequence, prompt and answer.
    pub context_tokens: Option<u32>,
    /// Most sequences that are computed together.
    pub sequences: Option<u32>,
    /// Tokens of all sequences together whose keys and values are kept, those of ended ones included.
    pub cache_tokens: Option<u32>,
}

/// Most tokens of one sequence.
const CONTEXT_TOKENS_MAX: u32 = 1 << 20;

/// Most sequences at once: llama.cpp counts to 256, and half of them are kept for prefixes.
const SEQUENCES_MAX: u32 = 128;

/// Most tokens in the cache.
const CACHE_TOKENS_MAX: u32 = 1 << 24;

impl SequenceSpec {
    /// Whether the package says nothing.
    pub fn is_default(&self) -> bool {
        *self == SequenceSpec::default()
    }

    /// Checks what a manifest says; what the model allows is checked when it is loaded.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        let limits = [
            ("context_tokens", self.context_tokens, CONTEXT_TOKENS_MAX),
            ("sequences", self.sequences, SEQUENCES_MAX),
            ("cache_tokens", self.cache_tokens, CACHE_TOKENS_MAX),
        ];
        for (name, value, max) in limits {
            if let Some(value) = value.filter(|value| !(1..=max).contains(value)) {
                return Err(format!("{name} is {value}; 1 to {max} are allowed"));
            }
        }
        match (self.context_tokens, self.cache_tokens) {
            (Some(context), Some(cache)) if cache < context => Err(format!(
                "cache_tokens is {cache}, which is less than one sequence may have ({context}, context_tokens)"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_that_cannot_be_is_refused() {
        let spec = SequenceSpec { context_tokens: Some(64), sequences: Some(4), cache_tokens: Some(128) };
        assert!(spec.check().is_ok());
        assert!(SequenceSpec::default().check().is_ok());
        let error = SequenceSpec { sequences: Some(0), ..spec }.check().unwrap_err();
        assert_eq!(error, "sequences is 0; 1 to 128 are allowed");
        assert!(SequenceSpec { cache_tokens: Some(32), ..spec }.check().unwrap_err().contains("context_tokens"));
        assert!(SequenceSpec { context_tokens: Some(u32::MAX), ..spec }.check().is_err());
    }
}
