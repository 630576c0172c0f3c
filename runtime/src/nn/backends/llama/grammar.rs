//! What an answer has to follow: a JSON schema or a grammar, by llguidance. Its work for a token is bounded, and all of it
//! is Rust: whoever wrote the grammar slows down, and ends, no answer but their own. llama.cpp's own grammars are not:
//! a line of text makes them take hours for a token, which nothing can stop.

use std::sync::{Arc, OnceLock};

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::{Value, json};

use super::gbnf;
use super::request::Options;
use crate::nn::NnError;

/// Work for a token, in llguidance's units: about 10 ms at most.
const TOKEN_FUEL: u64 = 100_000;
const TOKEN_ITEMS_MAX: usize = 20_000;

/// Memory of a grammar: 1 to 2 KB for each state.
const STATES_MAX: usize = 20_000;

/// A model's tokens, as grammars see them. Made when the first grammar comes.
pub(super) struct Grammars {
    model: Arc<LlamaModel>,
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl Grammars {
    pub(super) fn new(model: &Arc<LlamaModel>) -> Grammars {
        Grammars { model: Arc::clone(model), factory: OnceLock::new() }
    }

    /// What the options ask for, if anything. May take long.
    pub(super) fn grammar(&self, options: &Options) -> Result<Option<Grammar>, NnError> {
        let refused = |error: String| NnError::invalid_argument(format!("options: {error}"));
        let (name, grammar) = match (&options.json_schema, &options.grammar) {
            (Some(schema), _) => ("json_schema", from_schema(schema)),
            (None, Some(gbnf)) => ("grammar", gbnf::to_lark(gbnf).map(TopLevelGrammar::from_lark)),
            (None, None) => return Ok(None),
        };
        let grammar = grammar.map_err(|error| refused(format!("{name}: {error}")))?;
        let factory = self.factory.get_or_init(|| factory(&self.model).map_err(|error| error.to_string()));
        let factory = factory.as_ref().map_err(|error| NnError::unsupported(format!("no grammars: {error}")))?;
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        // The first token shows whether there is any text that it allows.
        match matcher.compute_mask() {
            Ok(_) => Ok(Some(Grammar { matcher })),
            Err(error) => Err(refused(format!("{name} cannot be followed: {}", first_line(&error)))),
        }
    }
}

fn from_schema(schema: &Value) -> Result<TopLevelGrammar, String> {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        Value::Object(_) => schema.clone(),
        _ => return Err("a schema is an object".to_owned()),
    };
    // White space only where it ends: small models write line after line of it otherwise.
    let options = JsonCompileOptions {
        item_separator: ", ?".to_owned(),
        key_separator: ": ?".to_owned(),
        whitespace_flexible: false,
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut schema);
    Ok(TopLevelGrammar::from_json_schema(schema))
}

fn factory(model: &LlamaModel) -> Result<ParserFactory, anyhow::Error> {
    let vocab = model.vocab();
    let tokens = (0..vocab.n_tokens()).map(LlamaToken);
    let ends: Vec<u32> =
        tokens.clone().filter(|&token| vocab.is_eog(token)).map(|token| token.0.cast_unsigned()).collect();
    let text = |token| match vocab.token_to_piece(token, false, None) {
        // Marked, so that no text of a grammar is taken for it.
        special if special.is_empty() => [vec![0xff], vocab.token_to_piece(token, true, None)].concat(),
        text => text,
    };
    let words: Vec<Vec<u8>> = tokens.map(text).collect();
    let info = TokRxInfo::new(words.len() as u32, ends.first().copied().unwrap_or(0));
    let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words).with_eos_tokens(&ends)));
    let mut factory =
        ParserFactory::new(&tokens, InferenceCapabilities::default(), &SlicedBiasComputer::json_slices())?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        step_lexer_fuel: TOKEN_FUEL,
        step_max_items: TOKEN_ITEMS_MAX,
        max_lexer_states: STATES_MAX,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    Ok(factory)
}

/// What one answer follows, and how far it is.
pub(super) struct Grammar {
    matcher: Matcher,
}

impl Grammar {
    /// Whether a token may come next. `ends` says that it is one that ends an answer.
    pub(super) fn allows(&mut self, token: i32, ends: bool) -> Result<bool, NnError> {
        let allows = match ends {
            true => self.matcher.is_accepting(),
            false => self.matcher.validate_tokens(&[token.cast_unsigned()]).map(|count| count == 1),
        };
        allows.map_err(stopped)
    }

    /// All tokens that may come next.
    pub(super) fn allowed(&mut self) -> Result<SimpleVob, NnError> {
        self.matcher.compute_mask_or_eos().map_err(stopped)
    }

    /// A token came.
    pub(super) fn accept(&mut self, token: i32) -> Result<(), NnError> {
        self.matcher.consume_token(token.cast_unsigned()).map_err(stopped)
    }
}

fn stopped(error: anyhow::Error) -> NnError {
    NnError::invalid_argument(format!("the grammar cannot be followed further: {}", first_line(&error)))
}

/// The rest is the parser's state.
fn first_line(error: &anyhow::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
