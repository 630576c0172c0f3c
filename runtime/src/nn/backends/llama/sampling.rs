//! How the next token of a sequence is chosen from what the model gave.

use std::sync::Arc;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;
use llama_cpp_2::token::logit_bias::LlamaLogitBias;

use super::grammar::{Grammar, Grammars};
use super::request::Options;
use crate::nn::NnError;

/// Lower temperatures choose the most likely token, as they mean to: llama.cpp divides by them, which gives infinities that
/// it cannot compare, and then chooses the last token of the vocabulary.
const TEMPERATURE_MIN: f32 = 1e-6;

/// A sequence's way of choosing, with what it remembers.
pub(super) struct Sampler {
    /// None where the most likely token is chosen, whatever came before.
    chain: Option<LlamaSampler>,
    grammar: Option<Grammar>,
    // Samplers read its vocabulary: freed after them.
    _model: Arc<LlamaModel>,
}

impl Sampler {
    /// The one that the options ask for. `ends` are the tokens that end an answer. Parses the grammar: may take long.
    pub(super) fn new(
        model: &Arc<LlamaModel>,
        options: &Options,
        ends: &[i32],
        grammars: &Grammars,
    ) -> Result<Sampler, NnError> {
        let chain = chain(model.n_vocab(), options, ends)?;
        let grammar = grammars.grammar(options)?;
        Ok(Sampler { chain, grammar, _model: Arc::clone(model) })
    }

    /// Shows it the tokens before the answer, which penalties count.
    pub(super) fn see_prompt(&mut self, tokens: &[i32], penalty_last_n: u32) {
        let Some(chain) = &mut self.chain else { return };
        let from = tokens.len().saturating_sub(penalty_last_n as usize);
        chain.accept_many(tokens[from..].iter().map(|&token| LlamaToken(token)));
    }

    /// Chooses a token, and remembers it. `InvalidArgument` when the grammar allows none, or takes too long to tell;
    /// `RuntimeError` when the model gave no numbers to choose by.
    pub(super) fn choose(&mut self, logits: &[f32], is_end: impl Fn(i32) -> bool) -> Result<i32, NnError> {
        if !are_usable(logits) {
            return Err(NnError::runtime(
                "the model computed no likelihoods (not a number, or infinite): is it damaged?",
            ));
        }
        let mut chosen = match &mut self.chain {
            None => most_likely(logits),
            Some(chain) => pick(candidates(logits), chain),
        };
        if let Some(grammar) = &mut self.grammar {
            // Most tokens that a model likes are allowed: all are checked only when this one is not.
            if !chosen.map_or(Ok(false), |token| grammar.allows(token, is_end(token)))? {
                let allowed = grammar.allowed()?;
                let mut candidates = candidates(logits);
                candidates.data.retain(|candidate| allowed.is_allowed(candidate.id().0.cast_unsigned()));
                chosen = match (candidates.data.first().map(|candidate| candidate.id().0), &mut self.chain) {
                    (None, _) => return Err(NnError::invalid_argument("the grammar allows no further token")),
                    // Only the end is left: also where options forbid it.
                    (Some(end), _) if candidates.data.iter().all(|candidate| is_end(candidate.id().0)) => Some(end),
                    (_, Some(chain)) => pick(candidates, chain),
                    (_, None) => pick(candidates, &mut LlamaSampler::greedy()),
                };
            }
            if let Some(token) = chosen.filter(|&token| !is_end(token)) {
                grammar.accept(token)?;
            }
        }
        let chosen = chosen.ok_or_else(|| NnError::runtime("llama.cpp chose no token"))?;
        if let Some(chain) = &mut self.chain
            && !is_end(chosen)
        {
            chain.accept(LlamaToken(chosen));
        }
        Ok(chosen)
    }
}

/// Whether there is a most likely token among them: llama.cpp's samplers are undefined for others. Tokens that a model
/// rules out are at minus infinity.
fn are_usable(logits: &[f32]) -> bool {
    logits.iter().all(|&logit| logit < f32::INFINITY) && logits.iter().any(|logit| logit.is_finite())
}

fn pick(mut candidates: LlamaTokenDataArray, chain: &mut LlamaSampler) -> Option<i32> {
    chain.apply(&mut candidates);
    candidates.selected_token().map(|token| token.0)
}

fn candidates(logits: &[f32]) -> LlamaTokenDataArray {
    let candidate = |(id, &logit): (i32, &f32)| LlamaTokenData::new(LlamaToken(id), logit, 0.0);
    LlamaTokenDataArray::new((0..).zip(logits).map(candidate).collect(), false)
}

/// The first of the most likely, as llama.cpp chooses.
pub(super) fn most_likely(logits: &[f32]) -> Option<i32> {
    let mut best = (0, *logits.first()?);
    for (id, &logit) in (0..).zip(logits) {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    Some(best.0)
}

/// llama.cpp's samplers, in the order of its server.
fn chain(vocabulary: i32, options: &Options, eog: &[i32]) -> Result<Option<LlamaSampler>, NnError> {
    let mut chain = Vec::new();
    let mut biases = Vec::with_capacity(options.logit_bias.len());
    for (&token, &bias) in &options.logit_bias {
        if !(0..vocabulary).contains(&token) {
            let text = format!("options: logit_bias names token {token}; the model has 0 to {}", vocabulary - 1);
            return Err(NnError::invalid_argument(text));
        }
        biases.push(LlamaLogitBias::new(LlamaToken(token), bias));
    }
    if options.ignore_eos {
        biases.extend(eog.iter().map(|&token| LlamaLogitBias::new(LlamaToken(token), f32::NEG_INFINITY)));
    }
    if !biases.is_empty() {
        chain.push(LlamaSampler::logit_bias(vocabulary, &biases));
    }
    if options.counts_tokens() {
        let last_n = i32::try_from(options.penalty_last_n).unwrap_or(i32::MAX);
        let (repeat, frequency, presence) =
            (options.repeat_penalty, options.frequency_penalty, options.presence_penalty);
        chain.push(LlamaSampler::penalties(vocabulary, last_n, repeat, frequency, presence));
    }
    if options.temperature < TEMPERATURE_MIN {
        if chain.is_empty() {
            return Ok(None);
        }
        chain.push(LlamaSampler::greedy());
        return Ok(Some(LlamaSampler::chain(chain, true)));
    }
    if options.top_k > 0 {
        chain.push(LlamaSampler::top_k(i32::try_from(options.top_k).unwrap_or(i32::MAX)));
    }
    if options.top_p < 1.0 {
        chain.push(LlamaSampler::top_p(options.top_p, 1));
    }
    if options.min_p > 0.0 {
        chain.push(LlamaSampler::min_p(options.min_p, 1));
    }
    if options.temperature != 1.0 {
        chain.push(LlamaSampler::temp(options.temperature));
    }
    chain.push(LlamaSampler::dist(options.seed.map_or_else(|| fastrand::u32(..u32::MAX), llama_seed)));
    Ok(Some(LlamaSampler::chain(chain, true)))
}

/// A seed's low half, as far as OpenAI's and llama.cpp's seeds are alike: both are 32 bits in the end. The last of them
/// means a random one to llama.cpp.
fn llama_seed(seed: u64) -> u32 {
    (seed as u32).min(u32::MAX - 1)
}

impl Options {
    /// Whether tokens that were there change how likely they are.
    pub(super) fn counts_tokens(&self) -> bool {
        self.penalty_last_n > 0
            && (self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0)
    }
}

/// The logarithms of how likely the chosen token and the `top` most likely ones were.
pub(super) fn logprobs(logits: &[f32], chosen: i32, top: usize) -> (f32, Vec<(i32, f32)>) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - most).exp()).sum();
    let base = most + sum.ln() as f32;
    let logprob =
        |id: i32| usize::try_from(id).ok().and_then(|id| logits.get(id)).map_or(f32::MIN, |logit| logit - base);
    let mut ids: Vec<i32> = (0..logits.len() as i32).collect();
    let by_logit = |a: &i32, b: &i32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let top = top.min(ids.len());
    if top > 0 && top < ids.len() {
        ids.select_nth_unstable_by(top - 1, by_logit);
    }
    ids.truncate(top);
    ids.sort_unstable_by(by_logit);
    (logprob(chosen), ids.into_iter().map(|id| (id, logprob(id))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_is_chosen() {
        assert_eq!(most_likely(&[0.0, 2.0, 1.0, 2.0]), Some(1));
        assert_eq!(most_likely(&[]), None);
    }

    #[test]
    fn a_token_is_chosen_by_numbers_only() {
        let none = f32::NEG_INFINITY;
        assert!(are_usable(&[0.0, none, -1e30]));
        for unusable in [&[0.0, f32::NAN][..], &[f32::NAN, 0.0], &[0.0, f32::INFINITY], &[none, none], &[]] {
            assert!(!are_usable(unusable), "{unusable:?}");
        }
    }

    #[test]
    fn a_temperature_close_to_zero_is_zero() {
        let is_greedy = |temperature| {
            let options = Options { temperature, ..Options::default() };
            chain(10, &options, &[]).unwrap().is_none()
        };
        assert!([0.0, f32::from_bits(1), 1e-38, 1e-7].into_iter().all(is_greedy));
        assert!(!is_greedy(TEMPERATURE_MIN) && !is_greedy(1.0));
    }

    #[test]
    fn every_seed_is_one() {
        assert_eq!((llama_seed(7), llama_seed((1 << 32) + 7)), (7, 7));
        assert_eq!([u64::from(u32::MAX), u64::MAX].map(llama_seed), [u32::MAX - 1; 2]);
    }

    #[test]
    fn logprobs_are_those_of_the_whole_vocabulary() {
        let logits = [1f32.ln(), 2f32.ln(), 5f32.ln(), 2f32.ln()];
        let (chosen, top) = logprobs(&logits, 0, 2);
        assert!((chosen - 0.1f32.ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|top| top.0).collect::<Vec<_>>(), [2, 1]);
        assert!((top[0].1 - 0.5f32.ln()).abs() < 1e-6);
        assert_eq!(logprobs(&logits, 2, 0).1, []);
        assert_eq!(logprobs(&logits, 2, 9).1.len(), 4);
    }
}
