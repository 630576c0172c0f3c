//! Text to tokens and back.

use std::sync::Arc;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;

use super::request::Prompt;
use crate::nn::NnError;

/// A model's vocabulary.
pub(super) struct Vocabulary {
    model: Arc<LlamaModel>,
    tokens: i32,
    /// Tokens that end an answer, in order.
    ends: Vec<i32>,
    /// Bytes of the longest token.
    token_bytes_max: usize,
}

impl Vocabulary {
    pub(super) fn new(model: &Arc<LlamaModel>) -> Vocabulary {
        let vocab = model.vocab();
        let tokens = vocab.n_tokens();
        let ends = (0..tokens).filter(|&token| vocab.is_eog(LlamaToken(token))).collect();
        let length = |token| vocab.token_to_piece(LlamaToken(token), true, None).len();
        let token_bytes_max = (0..tokens).map(length).max().unwrap_or(1).max(1);
        Vocabulary { model: Arc::clone(model), tokens, ends, token_bytes_max }
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
                let vocab = self.model.vocab();
                // llama.cpp ends the process for characters behind the last of Unicode.
                let text = String::from_utf8_lossy(text);
                tokens.extend(vocab.tokenize(text.as_bytes(), add_special, true).into_iter().map(|token| token.0));
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
