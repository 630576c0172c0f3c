//! What a guest sends to a sequence, checked: `wit/endpoint.wit` describes it for guests.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::nn::{NnError, Tensor, TensorType};

/// Most bytes of the options. Grammars and schemas are the largest part.
const OPTIONS_BYTES_MAX: usize = 256 << 10;

/// Largest grammar.
const GRAMMAR_BYTES_MAX: usize = 64 << 10;

/// Deepest JSON schema.
const SCHEMA_DEPTH_MAX: usize = 32;

/// Most entries of `logit_bias`: as many as OpenAI's API takes.
const BIASES_MAX: usize = 300;

/// Most texts that are made vectors in a request: as many as OpenAI's API takes.
const TEXTS_MAX: usize = 2048;

/// Work for a text however short it is, in bytes of text.
const TEXT_BYTES: usize = 64;

/// Most likely tokens that are told beside each chosen one.
const LOGPROBS_MAX: u32 = 20;

/// Most tokens that the penalties look back on.
const PENALTY_LAST_N_MAX: u32 = 1 << 16;

/// The first inputs of an answer.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) prompt: Prompt,
    pub(super) options: Options,
}

/// A prompt.
#[derive(Debug)]
pub(super) enum Prompt {
    /// Text, UTF-8 or not; special tokens in it count as such.
    Text(Vec<u8>),
    /// Tokens.
    Tokens(Vec<i32>),
    /// Many texts, for vectors.
    Texts(Vec<Vec<u8>>),
}

/// What is to be done with the prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Task {
    /// An answer, token by token.
    #[default]
    Generate,
    /// A vector for each text.
    Embed,
    /// Its tokens, at once.
    Tokenize,
}

/// How an answer is made. The defaults are those of OpenAI's API and llama.cpp.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Options {
    pub(super) task: Task,
    pub(super) max_tokens: Option<u32>,
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    pub(super) top_k: u32,
    pub(super) min_p: f32,
    pub(super) repeat_penalty: f32,
    pub(super) presence_penalty: f32,
    pub(super) frequency_penalty: f32,
    pub(super) penalty_last_n: u32,
    pub(super) seed: Option<u64>,
    pub(super) logit_bias: BTreeMap<i32, f32>,
    pub(super) logprobs: Option<u32>,
    pub(super) grammar: Option<String>,
    pub(super) json_schema: Option<serde_json::Value>,
    pub(super) add_special: bool,
    pub(super) ignore_eos: bool,
    pub(super) cache: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            task: Task::Generate,
            max_tokens: None,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_last_n: 64,
            seed: None,
            logit_bias: BTreeMap::new(),
            logprobs: None,
            grammar: None,
            json_schema: None,
            add_special: true,
            ignore_eos: false,
            cache: true,
        }
    }
}

impl Request {
    /// Reads a guest's tensors. `InvalidArgument` says which input or option is wrong, and what it may be.
    pub(super) fn read(inputs: Vec<(String, Tensor)>) -> Result<Request, NnError> {
        let (mut prompt, mut options, mut offsets) = (None, None, None);
        for (name, tensor) in inputs {
            let twice = match name.as_str() {
                "prompt" => prompt.replace(Prompt::Text(bytes(&name, &tensor)?)).is_some(),
                "tokens" => prompt.replace(Prompt::Tokens(tokens(&name, &tensor)?)).is_some(),
                "offsets" => offsets.replace(tokens(&name, &tensor)?).is_some(),
                "options" => options.replace(Options::read(&bytes(&name, &tensor)?)?).is_some(),
                _ => {
                    let text = format!(
                        "unknown input {name:?}: a sequence takes 'prompt' or 'tokens', 'options' and 'offsets'"
                    );
                    return Err(NnError::invalid_argument(text));
                }
            };
            if twice {
                return Err(NnError::invalid_argument("one prompt is taken at a time: 'prompt' or 'tokens'"));
            }
        }
        let prompt = prompt.ok_or_else(|| NnError::invalid_argument("the prompt is missing: 'prompt' or 'tokens'"))?;
        let options: Options = options.unwrap_or_default();
        let prompt = match (offsets, prompt, options.task) {
            (None, prompt, _) => prompt,
            (Some(offsets), Prompt::Text(text), Task::Embed) => Prompt::Texts(split(&text, &offsets)?),
            (Some(_), ..) => {
                return Err(NnError::invalid_argument("'offsets' divides a 'prompt' for the task 'embed' only"));
            }
        };
        Ok(Request { prompt, options })
    }

    /// Whether it is more than little work to prepare it.
    pub(super) fn is_longer_than(&self, bytes: usize) -> bool {
        let prompt = match &self.prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Tokens(_) => 0,
            Prompt::Texts(texts) => texts.iter().map(|text| TEXT_BYTES + text.len()).sum(),
        };
        prompt > bytes || self.options.grammar.is_some() || self.options.json_schema.is_some()
    }
}

fn bytes(name: &str, tensor: &Tensor) -> Result<Vec<u8>, NnError> {
    expect(name, tensor, TensorType::U8)?;
    Ok(tensor.data().to_vec())
}

/// The texts that end at some offsets.
fn split(text: &[u8], offsets: &[i32]) -> Result<Vec<Vec<u8>>, NnError> {
    if offsets.len() > TEXTS_MAX {
        let text = format!("'offsets' has {} texts; {TEXTS_MAX} are taken at a time", offsets.len());
        return Err(NnError::invalid_argument(text));
    }
    let mut begin = 0;
    let mut texts = Vec::with_capacity(offsets.len());
    for &end in offsets {
        let end = usize::try_from(end).ok();
        let part = end.and_then(|end| Some((end, text.get(begin..end)?)));
        let (end, part) = part.ok_or_else(|| {
            NnError::invalid_argument("'offsets' are not the ends of texts in 'prompt', one after the other")
        })?;
        texts.push(part.to_vec());
        begin = end;
    }
    match begin == text.len() && !texts.is_empty() {
        true => Ok(texts),
        false => Err(NnError::invalid_argument("the last of 'offsets' is not the end of 'prompt'")),
    }
}

fn tokens(name: &str, tensor: &Tensor) -> Result<Vec<i32>, NnError> {
    expect(name, tensor, TensorType::I32)?;
    let (numbers, _) = tensor.data().as_chunks::<4>();
    Ok(numbers.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect())
}

fn expect(name: &str, tensor: &Tensor, ty: TensorType) -> Result<(), NnError> {
    if tensor.ty() == ty && tensor.dims().len() == 1 {
        return Ok(());
    }
    let (got, dims) = (tensor.ty().name(), tensor.dims());
    Err(NnError::invalid_argument(format!("input {name:?}: expected {} [n], got {got} {dims:?}", ty.name())))
}

impl Options {
    fn read(json: &[u8]) -> Result<Options, NnError> {
        if json.len() > OPTIONS_BYTES_MAX {
            let text = format!("options: they have {} bytes; {OPTIONS_BYTES_MAX} are allowed", json.len());
            return Err(NnError::invalid_argument(text));
        }
        // A list would be read as one, in the order above.
        if !json.trim_ascii_start().starts_with(b"{") {
            return Err(NnError::invalid_argument("options: they are no JSON object"));
        }
        let options: Options =
            serde_json::from_slice(json).map_err(|error| NnError::invalid_argument(format!("options: {error}")))?;
        options.check().map_err(|error| NnError::invalid_argument(format!("options: {error}")))?;
        Ok(options)
    }

    fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: f32, min: f32, max: f32| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(format!("{name} is {value}; {min} to {max} are allowed")),
        };
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repeat_penalty", self.repeat_penalty, 0.01, 100.0)?;
        within("presence_penalty", self.presence_penalty, -100.0, 100.0)?;
        within("frequency_penalty", self.frequency_penalty, -100.0, 100.0)?;
        let at_most = |name: &str, value: u32, max: u32| match value <= max {
            true => Ok(()),
            false => Err(format!("{name} is {value}; 0 to {max} are allowed")),
        };
        at_most("penalty_last_n", self.penalty_last_n, PENALTY_LAST_N_MAX)?;
        at_most("logprobs", self.logprobs.unwrap_or(0), LOGPROBS_MAX)?;
        at_most("top_k", self.top_k, i32::MAX as u32)?;
        if self.logit_bias.len() > BIASES_MAX {
            return Err(format!("logit_bias has {} entries; {BIASES_MAX} are allowed", self.logit_bias.len()));
        }
        for (token, &bias) in &self.logit_bias {
            within(&format!("logit_bias of {token}"), bias, -1e9, 1e9)?;
        }
        if self.grammar.is_some() && self.json_schema.is_some() {
            return Err("grammar and json_schema exclude each other".to_owned());
        }
        if let Some(grammar) = self.grammar.as_ref().filter(|grammar| grammar.len() > GRAMMAR_BYTES_MAX) {
            return Err(format!("the grammar has {} bytes; {GRAMMAR_BYTES_MAX} are allowed", grammar.len()));
        }
        match self.json_schema.as_ref().map(depth) {
            Some(depth) if depth > SCHEMA_DEPTH_MAX => {
                Err(format!("json_schema is nested {depth} deep; {SCHEMA_DEPTH_MAX} are allowed"))
            }
            _ => Ok(()),
        }
    }
}

/// How deep a value is nested. The parser has bounded it.
fn depth(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        serde_json::Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::NnErrorKind;

    fn text(name: &str, text: &str) -> (String, Tensor) {
        let dims = vec![text.len() as u32];
        (name.to_owned(), Tensor::new(TensorType::U8, dims, text.as_bytes().to_vec()).unwrap())
    }

    fn options(json: &str) -> Result<Options, NnError> {
        Request::read(vec![text("prompt", "x"), text("options", json)]).map(|request| request.options)
    }

    #[test]
    fn what_is_left_out_has_the_defaults_of_openais_api() {
        let read = options(r#"{"temperature": 0, "logit_bias": {"5": -100}, "logprobs": 2}"#).unwrap();
        assert_eq!((read.temperature, read.top_p, read.max_tokens), (0.0, 1.0, None));
        assert_eq!((read.logit_bias[&5], read.logprobs), (-100.0, Some(2)));
        let plain = Request::read(vec![text("prompt", "x")]).unwrap().options;
        assert_eq!((plain.temperature, plain.add_special), (1.0, true));
    }

    #[test]
    fn wrong_options_are_refused_by_name() {
        let deep = format!("{{\"json_schema\": {}1{}}}", "[".repeat(40), "]".repeat(40));
        let grammar = format!("{{\"grammar\": \"root ::= {}\"}}", "a".repeat(1 << 16));
        let cases = [
            (r#"{"tempreature": 1}"#, "tempreature"),
            (r#"{"temperature": -1}"#, "temperature is -1; 0 to 100"),
            (r#"{"temperature": 1e39}"#, "temperature"),
            (r#"{"top_p": 1.5}"#, "top_p"),
            (r#"{"repeat_penalty": 0}"#, "repeat_penalty"),
            (r#"{"logprobs": 21}"#, "logprobs is 21; 0 to 20"),
            (r#"{"max_tokens": -1}"#, "`-1`"),
            (r#"{"max_tokens": 1.5}"#, "1.5"),
            (r#"{"logit_bias": {"x": 1}}"#, "number in quotes"),
            (r#"{"logit_bias": {"1": 1e30}}"#, "logit_bias of 1"),
            (r#"{"grammar": "a", "json_schema": {}}"#, "exclude"),
            (r#"{"task": "dream"}"#, "dream"),
            (&deep, "deep"),
            (&grammar, "65545 bytes; 65536"),
            ("[]", "options"),
        ];
        for (json, says) in cases {
            let error = options(json).unwrap_err();
            assert_eq!(error.kind(), NnErrorKind::InvalidArgument);
            assert!(error.to_string().contains(says), "{json}: {error}");
        }
        let many: BTreeMap<String, f32> = (0..301).map(|token| (token.to_string(), 1.0)).collect();
        assert!(options(&serde_json::json!({ "logit_bias": many }).to_string()).is_err());
    }

    #[test]
    fn texts_are_divided_at_their_ends() {
        let ends = |ends: &[i32]| {
            let data: Vec<u8> = ends.iter().flat_map(|end| end.to_le_bytes()).collect();
            ("offsets".to_owned(), Tensor::new(TensorType::I32, vec![ends.len() as u32], data).unwrap())
        };
        let read = |offsets: &[i32]| {
            let inputs = vec![text("prompt", "abcde"), ends(offsets), text("options", r#"{"task": "embed"}"#)];
            Request::read(inputs).map(|request| request.prompt)
        };
        let Prompt::Texts(texts) = read(&[2, 2, 5]).unwrap() else { panic!("texts") };
        assert_eq!(texts, [b"ab".to_vec(), vec![], b"cde".to_vec()]);
        assert!(read(&[&[0; 2047][..], &[5]].concat()).is_ok());
        let error = read(&[&[0; 2048][..], &[5]].concat()).unwrap_err();
        assert!(error.to_string().contains("2049 texts; 2048 are taken"), "{error}");
        for wrong in [&[2][..], &[], &[3, 2, 5], &[-1, 5], &[9]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        assert!(Request::read(vec![text("prompt", "abcde"), ends(&[5])]).is_err(), "only for embeddings");
    }

    #[test]
    fn many_texts_are_much_work_however_short_they_are() {
        let texts = |count| {
            let prompt = Prompt::Texts(vec![Vec::new(); count]);
            Request { prompt, options: Options::default() }.is_longer_than(2048)
        };
        assert!(!texts(1) && texts(2048));
    }

    #[test]
    fn inputs_are_one_prompt_and_options() {
        let numbers = Tensor::new(TensorType::I32, vec![2], vec![1, 0, 0, 0, 2, 0, 0, 0]).unwrap();
        let request = Request::read(vec![("tokens".to_owned(), numbers.clone())]).unwrap();
        assert!(matches!(request.prompt, Prompt::Tokens(tokens) if tokens == [1, 2]));
        let refused = |inputs| Request::read(inputs).unwrap_err().to_string();
        assert!(refused(vec![]).contains("missing"));
        assert!(refused(vec![text("prompt", "a"), ("tokens".to_owned(), numbers.clone())]).contains("one prompt"));
        assert!(refused(vec![("prompt".to_owned(), numbers)]).contains("expected U8 [n], got I32 [2]"));
        assert!(refused(vec![text("promt", "a")]).contains("promt"));
    }
}
