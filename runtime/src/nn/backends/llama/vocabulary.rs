//! Text to tokens and back.

use std::sync::Arc;
use std::thread::{Builder, scope};

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;

use super::request::Prompt;
use super::splitter::Splitter;
use crate::nn::NnError;

/// A model's vocabulary.
pub(super) struct Vocabulary {
    model: Arc<LlamaModel>,
    splitter: Splitter,
    tokens: i32,
    /// Tokens that end an answer, in order.
    ends: Vec<i32>,
    /// Bytes of the longest token.
    token_bytes_max: usize,
}

impl Vocabulary {
    pub(super) fn new(model: &Arc<LlamaModel>, splitter: Splitter) -> Vocabulary {
        let vocab = model.vocab();
        let tokens = vocab.n_tokens();
        let ends = (0..tokens).filter(|&token| vocab.is_eog(LlamaToken(token))).collect();
        let length = |token| vocab.token_to_piece(LlamaToken(token), true, None).len();
        let token_bytes_max = (0..tokens).map(length).max().unwrap_or(1).max(1);
        Vocabulary { model: Arc::clone(model), splitter, tokens, ends, token_bytes_max }
    }

    /// Whether a text becomes tokens on a thread of its own.
    pub(super) fn takes_stack(&self) -> bool {
        self.splitter != Splitter::Loops
    }

    /// The tokens that end an answer.
    pub(super) fn end_tokens(&self) -> &[i32] {
        &self.ends
    }

    /// Whether a token ends an answer.
    pub(super) fn ends(&self, token: i32) -> bool {
        self.ends.binary_search(&token).is_ok()
    }

    /// A token's text. It may be a part of a character.
    pub(super) fn bytes(&self, token: i32) -> Vec<u8> {
        self.model.vocab().token_to_piece(LlamaToken(token), true, None)
    }

    /// A text's tokens, special ones among them.
    fn tokenize(&self, text: &[u8], add_special: bool) -> Result<Vec<i32>, NnError> {
        let work = |text: &str| {
            let tokens = self.model.vocab().tokenize(text.as_bytes(), add_special, true);
            tokens.into_iter().map(|token| token.0).collect()
        };
        // llama.cpp ends the process for characters behind the last of Unicode.
        let text = String::from_utf8_lossy(text);
        let Some(stack_bytes) = self.splitter.stack_bytes(&text)? else { return Ok(work(&text)) };
        let failed = |error: std::io::Error| NnError::runtime(format!("failed to start a thread: {}", error.kind()));
        scope(|scope| {
            let thread = Builder::new().name("tokenizer".to_owned()).stack_size(stack_bytes);
            let thread = thread.spawn_scoped(scope, || work(&text)).map_err(failed)?;
            thread.join().map_err(|_| NnError::runtime("the prompt could not be made tokens"))
        })
    }

    /// `before` and a prompt's tokens behind them, together at most `context_tokens`. Takes time with the prompt's length.
    ///
    /// `InvalidArgument` when there are more, and for a token that the model does not have.
    pub(super) fn extend(
        &self,
        before: Vec<i32>,
        prompt: &Prompt,
        add_special: bool,
        context_tokens: usize,
    ) -> Result<Vec<i32>, NnError> {
        let mut tokens = before;
        // A text that goes on is not begun anew.
        let add_special = add_special && tokens.is_empty();
        match prompt {
            Prompt::Tokens(given) => {
                if let Some(unknown) = given.iter().find(|token| !(0..self.tokens).contains(*token)) {
                    let text = format!("token {unknown} is none of the model's: it has 0 to {}", self.tokens - 1);
                    return Err(NnError::invalid_argument(text));
                }
                tokens.extend_from_slice(given);
            }
            Prompt::Texts(_) => return Err(NnError::invalid_argument("one prompt is taken at a time")),
            Prompt::Text(text) => {
                // Before the work is done, which nobody could use.
                let least = tokens.len() + text.len() / self.token_bytes_max;
                if least > context_tokens {
                    return Err(too_long(&format!("at least {least}"), context_tokens));
                }
                let own = self.tokenize(text, add_special)?;
                if let Some(unknown) = own.iter().find(|token| !(0..self.tokens).contains(*token)) {
                    let text =
                        format!("the model's tokenizer gave token {unknown}; the model has 0 to {}", self.tokens - 1);
                    return Err(NnError::runtime(text));
                }
                tokens.extend(own);
                let vocab = self.model.vocab();
                // A template that writes the first token itself, and a model that adds it.
                let bos = vocab.bos().0;
                if add_special && vocab.should_add_bos() && tokens.starts_with(&[bos, bos]) {
                    tokens.remove(0);
                }
            }
        }
        match tokens.len() > context_tokens {
            true => Err(too_long(&tokens.len().to_string(), context_tokens)),
            false => Ok(tokens),
        }
    }
}

/// The text is part of the contract: guests tell their callers so.
pub(super) fn too_long(tokens: &str, context_tokens: usize) -> NnError {
    NnError::invalid_argument(format!("the prompt has {tokens} tokens, the context {context_tokens}"))
}
