//! The body of a request: what clients may ask for, checked.

use std::collections::BTreeMap;

use minijinja::value::Value;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tessera_sdk::{Error, Options, Request};

use crate::messages::Message;
use crate::tools::{Tool, ToolChoice};

/// Most answers to one request: each is a sequence of its own.
pub(crate) const CHOICES_MAX: usize = 8;

/// As many as OpenAI takes.
const STOPS_MAX: usize = 4;

/// As many as OpenAI takes, and as the host tells.
const TOP_LOGPROBS_MAX: u32 = 20;

/// What a package may set for requests that say nothing of it, by the names that they have in requests.
const DEFAULTS: [&str; 8] =
    ["max_tokens", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"];

/// Reads [`DEFAULTS`] from the package's settings, with the checks of a request.
pub(crate) fn defaults(setting: impl Fn(&str) -> Option<String>) -> Result<Options, Error> {
    let mut body = serde_json::Map::new();
    for name in DEFAULTS {
        if let Some(text) = setting(name) {
            body.insert(name.to_owned(), serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)));
        }
    }
    let body = serde_json::Value::Object(body).to_string();
    let options = Body::parse(body.as_bytes()).and_then(|body| body.options(&Options::default()));
    options.map_err(|error| Error::model(format!("setting {}", error.message)))
}

/// All that a chat or a completion may ask for. Keys that are not listed are ignored: they change nothing here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Body {
    pub(crate) messages: Option<Vec<Message>>,
    pub(crate) prompt: Option<PromptInput>,
    pub(crate) input: Option<IgnoredAny>,

    pub(crate) stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<usize>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    stop: Option<Stop>,
    seed: Option<i64>,

    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    /// As others call it: `repetition_penalty`.
    #[serde(alias = "repetition_penalty")]
    repeat_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<i32, f32>>,
    ignore_eos: Option<bool>,
    cache_prompt: Option<bool>,

    logprobs: Option<Logprobs>,
    top_logprobs: Option<u32>,
    pub(crate) response_format: Option<ResponseFormat>,
    /// GBNF.
    grammar: Option<String>,
    pub(crate) tools: Option<Vec<Tool>>,
    pub(crate) tool_choice: Option<ToolChoice>,
    pub(crate) parallel_tool_calls: Option<bool>,
    /// Variables for the chat template, as other servers take them.
    pub(crate) chat_template_kwargs: Option<BTreeMap<String, Value>>,

    // What would change the answer, and is not done.
    best_of: Option<usize>,
    echo: Option<bool>,
    suffix: Option<String>,
    functions: Option<IgnoredAny>,
    function_call: Option<IgnoredAny>,
    audio: Option<IgnoredAny>,
    modalities: Option<Vec<String>>,
    reasoning_effort: Option<IgnoredAny>,
    thinking: Option<IgnoredAny>,
    web_search_options: Option<IgnoredAny>,
    extra_params: Option<BTreeMap<String, IgnoredAny>>,
    use_raw_prompt: Option<bool>,
    error_behavior: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum PromptInput {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<i32>),
    TokenLists(Vec<Vec<i32>>),
    Other(IgnoredAny),
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
    Other(IgnoredAny),
}

/// Chats say whether, completions how many.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Logprobs {
    Wanted(bool),
    Many(u32),
}

#[derive(Debug, Deserialize)]
pub(crate) struct ResponseFormat {
    r#type: String,
    json_schema: Option<NamedSchema>,
}

#[derive(Debug, Deserialize)]
struct NamedSchema {
    schema: Option<Value>,
}

impl Body {
    /// Reads a body; what is wrong is named.
    pub(crate) fn read(request: &Request) -> Result<Self, Error> {
        let body = Self::parse(request.bytes()?)?;
        body.check_supported()?;
        Ok(body)
    }

    fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.is_empty() {
            return Err(Error::invalid_input("the body is empty; expected JSON"));
        }
        // serde would read a list as the fields in their order.
        if bytes.trim_ascii_start().starts_with(b"[") {
            return Err(Error::invalid_input("the JSON body is a list; it must be an object"));
        }
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let body: Self = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            let parameter = if path == "." { "the JSON body".to_owned() } else { format!("`{path}`") };
            Error::invalid_input(format!("{parameter}: {}", error.inner()))
        })?;
        json.end()?;
        Ok(body)
    }

    fn check_supported(&self) -> Result<(), Error> {
        let text_alone = |kinds: &Vec<String>| kinds.iter().all(|kind| kind == "text");
        let refused = [
            ("functions", self.functions.is_some(), "use `tools`"),
            ("function_call", self.function_call.is_some(), "use `tool_choice`"),
            ("audio", self.audio.is_some(), "this model writes text alone"),
            ("modalities", !self.modalities.as_ref().is_none_or(text_alone), "this model writes text alone"),
            (
                "reasoning_effort",
                self.reasoning_effort.is_some(),
                "use `chat_template_kwargs` if the model's template knows it",
            ),
            ("thinking", self.thinking.is_some(), "use `chat_template_kwargs` if the model's template knows it"),
            ("web_search_options", self.web_search_options.is_some(), "this model searches nothing"),
            (
                "extra_params",
                self.extra_params.as_ref().is_some_and(|more| !more.is_empty()),
                "put its entries beside it",
            ),
            ("best_of", self.best_of.is_some_and(|best| Some(best) != self.n.or(Some(1))), "use `n`"),
            ("echo", self.echo == Some(true), "put the prompt in front of the answer"),
            (
                "suffix",
                self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()),
                "this model writes on, and fills no gaps",
            ),
            (
                "use_raw_prompt",
                self.use_raw_prompt == Some(false),
                "a prompt is taken as it is; use `messages` for the model's template",
            ),
            (
                "error_behavior",
                self.error_behavior.as_ref().is_some_and(|word| word != "error"),
                "cut the prompt yourself",
            ),
        ];
        match refused.into_iter().find(|(_, given, _)| *given) {
            Some((name, _, way_out)) => Err(Error::invalid_input(format!("`{name}` is not supported: {way_out}"))),
            None => Ok(()),
        }
    }

    /// How many answers each prompt gets.
    pub(crate) fn n(&self) -> Result<usize, Error> {
        match self.n.unwrap_or(1) {
            n @ 1..=CHOICES_MAX => Ok(n),
            n => Err(Error::invalid_input(format!("`n` is {n}; 1 to {CHOICES_MAX} are allowed"))),
        }
    }

    /// The stop strings.
    pub(crate) fn stops(&self) -> Result<Vec<String>, Error> {
        let stops = match &self.stop {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop.clone()],
            Some(Stop::Many(stops)) => stops.clone(),
            Some(Stop::Other(_)) => return Err(Error::invalid_input("`stop` must be a string or a list of strings")),
        };
        if stops.len() > STOPS_MAX {
            let given = stops.len();
            return Err(Error::invalid_input(format!("`stop` has {given} strings; at most {STOPS_MAX} are allowed")));
        }
        if stops.iter().any(String::is_empty) {
            return Err(Error::invalid_input("`stop` has an empty string, before which nothing could be said"));
        }
        Ok(stops)
    }

    /// Whether the end of a stream tells what it used.
    pub(crate) fn include_usage(&self) -> bool {
        self.stream_options.and_then(|options| options.include_usage).unwrap_or(false)
    }

    /// Everything that the host chooses tokens by; `defaults` for what the request says nothing of.
    pub(crate) fn options(&self, defaults: &Options) -> Result<Options, Error> {
        let max_tokens = match (self.max_completion_tokens, self.max_tokens) {
            (Some(0), _) => return Err(Error::invalid_input("`max_completion_tokens` is 0; it must be at least 1")),
            (None, Some(0)) => return Err(Error::invalid_input("`max_tokens` is 0; it must be at least 1")),
            (completion, tokens) => completion.or(tokens).or(defaults.max_tokens),
        };
        let repeat_penalty = in_range("repeat_penalty", self.repeat_penalty, 0.0, 10.0)?;
        if repeat_penalty == Some(0.0) {
            return Err(Error::invalid_input("`repeat_penalty` is 0; it must be more"));
        }
        let json_schema = self.schema()?;
        if self.grammar.is_some() && json_schema.is_some() {
            return Err(Error::invalid_input(
                "`grammar` and `response_format` both say what to write; give one of them",
            ));
        }
        Ok(Options {
            max_tokens,
            temperature: in_range("temperature", self.temperature, 0.0, 2.0)?.or(defaults.temperature),
            top_p: in_range("top_p", self.top_p, 0.0, 1.0)?.or(defaults.top_p),
            // Some clients say -1 for all.
            top_k: self.top_k.map(|top_k| u32::try_from(top_k).unwrap_or(0)).or(defaults.top_k),
            min_p: in_range("min_p", self.min_p, 0.0, 1.0)?.or(defaults.min_p),
            repeat_penalty: repeat_penalty.or(defaults.repeat_penalty),
            presence_penalty: in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)?
                .or(defaults.presence_penalty),
            frequency_penalty: in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?
                .or(defaults.frequency_penalty),
            penalty_last_n: None,
            // All 64 bits count.
            seed: self.seed.map(|seed| (seed ^ (seed >> 32)) as u32),
            logit_bias: self.logit_bias()?,
            logprobs: self.logprobs()?,
            grammar: self.grammar.clone(),
            json_schema,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            cache: self.cache_prompt,
        })
    }

    fn logit_bias(&self) -> Result<BTreeMap<i32, f32>, Error> {
        let biases = self.logit_bias.clone().unwrap_or_default();
        match biases.iter().find(|(_, bias)| !(-100.0..=100.0).contains(*bias)) {
            Some((token, bias)) => {
                Err(Error::invalid_input(format!("`logit_bias` of token {token} is {bias}; -100 to 100 are allowed")))
            }
            None => Ok(biases),
        }
    }

    fn logprobs(&self) -> Result<Option<u32>, Error> {
        let top = match (self.logprobs, self.top_logprobs) {
            (Some(Logprobs::Wanted(true)), top) => Some(top.unwrap_or(0)),
            (Some(Logprobs::Many(top)), None) => Some(top),
            (None | Some(Logprobs::Wanted(false)), None | Some(0)) => None,
            _ => return Err(Error::invalid_input("`top_logprobs` needs `logprobs` to be true")),
        };
        match top {
            Some(top) if top > TOP_LOGPROBS_MAX => {
                Err(Error::invalid_input(format!("`top_logprobs` is {top}; at most {TOP_LOGPROBS_MAX} are allowed")))
            }
            top => Ok(top),
        }
    }

    /// The schema that the answer follows, if it must follow one.
    fn schema(&self) -> Result<Option<String>, Error> {
        let Some(format) = &self.response_format else { return Ok(None) };
        let wrong = |what: String| Error::invalid_input(format!("`response_format` {what}"));
        match format.r#type.as_str() {
            "text" => Ok(None),
            "json_object" => Ok(Some(r#"{"type":"object"}"#.to_owned())),
            "json_schema" => {
                let schema = format.json_schema.as_ref().and_then(|named| named.schema.as_ref());
                let schema = schema.ok_or_else(|| wrong("has no `json_schema.schema`".to_owned()))?;
                serde_json::to_string(schema)
                    .map(Some)
                    .map_err(|error| wrong(format!("has a schema that is no JSON: {error}")))
            }
            other => Err(wrong(format!("has the type '{other}'; there are text, json_object and json_schema"))),
        }
    }
}

fn in_range(name: &str, value: Option<f32>, low: f32, high: f32) -> Result<Option<f32>, Error> {
    match value {
        Some(value) if !(low..=high).contains(&value) => {
            Err(Error::invalid_input(format!("`{name}` is {value}; {low} to {high} are allowed")))
        }
        value => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: serde_json::Value) -> Result<Body, Error> {
        Body::read(&Request::new("chat/completions", "application/json", body.to_string()))
    }

    #[test]
    fn all_that_chooses_tokens_reaches_the_host() {
        let body = read(json!({
            "max_tokens": 5, "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.1,
            "presence_penalty": -1, "frequency_penalty": 1, "repetition_penalty": 1.1, "logit_bias": { "42": -100 },
            "seed": 7, "logprobs": true, "top_logprobs": 2, "user": "u", "client_request_id": "x", "temperature_": 9,
        }));
        let defaults = Options { max_tokens: Some(9), temperature: Some(0.2), ..Options::default() };
        let options = body.unwrap().options(&defaults).unwrap();
        let expected = Options {
            max_tokens: Some(7),
            temperature: Some(0.5),
            top_p: Some(0.9),
            top_k: Some(0),
            min_p: Some(0.1),
            repeat_penalty: Some(1.1),
            presence_penalty: Some(-1.0),
            frequency_penalty: Some(1.0),
            seed: Some(7),
            logit_bias: BTreeMap::from([(42, -100.0)]),
            logprobs: Some(2),
            ..Options::default()
        };
        assert_eq!(options, expected);
        let nothing = read(json!({ "temperature": null, "stop": null, "tools": null, "suffix": null })).unwrap();
        assert_eq!(nothing.options(&defaults).unwrap(), defaults);
        assert_eq!(read(json!({ "logprobs": 3 })).unwrap().options(&defaults).unwrap().logprobs, Some(3));
    }

    #[test]
    fn settings_are_defaults_with_the_checks_of_a_request() {
        let set =
            |name: &'static str, text: &'static str| defaults(move |asked| (asked == name).then(|| text.to_owned()));
        assert_eq!(defaults(|_| None).unwrap(), Options::default());
        assert_eq!(set("temperature", "0.2").unwrap().temperature, Some(0.2));
        assert_eq!(set("max_tokens", "100").unwrap().max_tokens, Some(100));
        for (name, text, reason) in [
            ("max_tokens", "0", "setting `max_tokens` is 0"),
            ("max_tokens", "many", "setting `max_tokens`: invalid type"),
            ("temperature", "", "setting `temperature`: invalid type"),
            ("temperature", "3", "setting `temperature` is 3; 0 to 2"),
        ] {
            let error = set(name, text).unwrap_err();
            assert!(error.message.starts_with(reason), "{error}");
        }
    }

    #[test]
    fn formats_become_schemas_with_their_order() {
        let schema = |format: serde_json::Value| read(json!({ "response_format": format })).unwrap().schema();
        assert_eq!(schema(json!({ "type": "text" })).unwrap(), None);
        assert_eq!(schema(json!({ "type": "json_object" })).unwrap().unwrap(), r#"{"type":"object"}"#);
        let given = r#"{"type":"object","properties":{"z":{},"a":{}}}"#;
        let body =
            format!(r#"{{"response_format":{{"type":"json_schema","json_schema":{{"name":"x","schema":{given}}}}}}}"#);
        let body = Body::read(&Request::new("", "", body)).unwrap();
        assert_eq!(body.schema().unwrap().unwrap(), given);
        assert!(schema(json!({ "type": "json_schema" })).unwrap_err().message.contains("no `json_schema.schema`"));
        assert!(schema(json!({ "type": "xml" })).unwrap_err().message.contains("type 'xml'"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, reason) in [
            (json!({ "temperature": "hot" }), "`temperature`: invalid type: string \"hot\""),
            (json!({ "messages": [{ "role": 7 }] }), "`messages[0].role`: invalid type"),
            (json!({ "max_tokens": -1 }), "`max_tokens`: invalid value"),
            (json!([]), "the JSON body is a list"),
            (json!("x"), "the JSON body: invalid type"),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.message.starts_with(reason), "{error}");
        }
        for (body, reason) in [
            (json!({ "temperature": 2.1 }), "`temperature` is 2.1; 0 to 2 are allowed"),
            (json!({ "top_p": -0.1 }), "`top_p`"),
            (json!({ "repeat_penalty": 0 }), "`repeat_penalty` is 0"),
            (json!({ "logit_bias": { "1": 101 } }), "`logit_bias` of token 1 is 101"),
            (json!({ "max_tokens": 0 }), "`max_tokens` is 0"),
            (json!({ "top_logprobs": 2 }), "needs `logprobs`"),
            (json!({ "logprobs": true, "top_logprobs": 21 }), "`top_logprobs` is 21"),
            (json!({ "grammar": "root ::= \"a\"", "response_format": { "type": "json_object" } }), "give one of them"),
        ] {
            let error = read(body).unwrap().options(&Options::default()).unwrap_err();
            assert!(error.message.contains(reason), "{error}");
        }
        for (body, reason) in [
            (json!({ "stop": 7 }), "`stop` must be"),
            (json!({ "stop": [""] }), "an empty string"),
            (json!({ "stop": ["a", "b", "c", "d", "e"] }), "`stop` has 5"),
        ] {
            let error = read(body).unwrap().stops().unwrap_err();
            assert!(error.message.contains(reason), "{error}");
        }
        assert!(read(json!({ "n": 9 })).unwrap().n().unwrap_err().message.contains("`n` is 9; 1 to 8"));
        assert!(Body::read(&Request::new("", "", "")).unwrap_err().message.contains("empty"));
        assert!(Body::read(&Request::new("", "", "{} {}")).unwrap_err().message.contains("trailing"));
    }

    #[test]
    fn what_is_null_is_as_if_left_out() {
        let usage = |options| read(json!({ "stream_options": options })).unwrap().include_usage();
        assert!(usage(json!({ "include_usage": true })));
        for none in [json!(null), json!({}), json!({ "include_usage": null }), json!({ "include_usage": false })] {
            assert!(!usage(none.clone()), "{none}");
        }
    }

    #[test]
    fn what_would_change_the_answer_and_is_not_done_is_refused() {
        for name in ["functions", "function_call", "audio", "reasoning_effort", "thinking", "web_search_options"] {
            let error = read(json!({ name: {} })).unwrap_err();
            assert!(error.message.starts_with(&format!("`{name}` is not supported: ")), "{error}");
        }
        for body in [
            json!({ "modalities": ["text", "audio"] }),
            json!({ "extra_params": { "top_k": "3" } }),
            json!({ "best_of": 3 }),
            json!({ "echo": true }),
            json!({ "suffix": "x" }),
            json!({ "error_behavior": "truncate" }),
        ] {
            assert!(read(body.clone()).unwrap_err().message.contains("is not supported"), "{body}");
        }
        let harmless =
            json!({ "modalities": ["text"], "extra_params": {}, "best_of": 2, "n": 2, "echo": false, "suffix": "" });
        read(harmless).unwrap();
    }
}
