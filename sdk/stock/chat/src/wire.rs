//! OpenAI's answers, whole and as events of a stream.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;
use tessera_sdk::{Error, ErrorKind, Response, Token};

use crate::calls::Call;
use crate::generate::{Answers, Delta, Finish, Usage};

/// Which API answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    Chat,
    Completions,
}

/// What all parts of an answer have in common.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) api: Api,
    /// Of the request; empty in tests.
    pub(crate) request_id: String,
    pub(crate) created_s: u64,
    /// Name of the endpoint.
    pub(crate) model: String,
}

#[derive(Serialize)]
struct Envelope<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    /// Where usage is asked for, all events but the last say that they have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
}

#[derive(Serialize, Default)]
struct Choice<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<Finish>,
}

#[derive(Serialize, Default)]
struct Message<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    /// Null where a whole message has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall<'a>>,
}

#[derive(Serialize)]
struct ToolCall<'a> {
    /// In streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: String,
    r#type: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    arguments: &'a str,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Logprobs<'a> {
    Chat {
        content: Vec<TokenLogprob<'a>>,
    },
    Completions {
        tokens: Vec<Cow<'a, str>>,
        token_logprobs: Vec<f32>,
        top_logprobs: Vec<BTreeMap<Cow<'a, str>, f32>>,
        text_offset: Vec<usize>,
    },
}

#[derive(Serialize)]
struct TokenLogprob<'a> {
    token: Cow<'a, str>,
    logprob: f32,
    bytes: &'a [u8],
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<TokenLogprob<'a>>>,
}

#[derive(Serialize)]
struct UsageBody {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptTokensDetails,
}

#[derive(Serialize)]
struct PromptTokensDetails {
    cached_tokens: u32,
}

impl From<Usage> for UsageBody {
    fn from(usage: Usage) -> Self {
        let Usage { prompt_tokens, cached_tokens, completion_tokens } = usage;
        let total_tokens = prompt_tokens + completion_tokens;
        let prompt_tokens_details = PromptTokensDetails { cached_tokens };
        Self { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details }
    }
}

/// How far one answer has been told.
#[derive(Debug, Clone, Default)]
struct Told {
    begun: bool,
    calls: usize,
    /// Characters of its text.
    characters: usize,
}

/// The whole answer.
pub(crate) fn whole(head: &Head, mut answers: Answers) -> Result<Response, Error> {
    let mut deltas: Vec<Delta> = (0..answers.len()).map(|index| Delta { index, ..Delta::default() }).collect();
    while let Some(delta) = answers.next()? {
        let whole = &mut deltas[delta.index];
        whole.text.push_str(&delta.text);
        whole.calls.extend(delta.calls);
        whole.tokens.extend(delta.tokens);
        whole.finish = whole.finish.or(delta.finish);
    }
    let choice = |delta| head.choice(delta, &Told::default());
    Response::json(&Envelope {
        id: head.id(),
        object: head.object(false),
        created: head.created_s,
        model: &head.model,
        choices: deltas.iter().map(choice).collect(),
        usage: Some(Some(answers.usage().into())),
    })
}

/// The answer as events, as it is made. An error of the model is told as an event, after which nothing comes, and
/// returned; one of `write` means that nobody listens any longer.
pub(crate) fn stream(
    head: &Head,
    mut answers: Answers,
    include_usage: bool,
    mut write: impl FnMut(&str) -> Result<(), Error>,
) -> Result<Option<Error>, Error> {
    let mut told = vec![Told::default(); answers.len()];
    let mut open = answers.len();
    loop {
        let delta = match answers.next() {
            Ok(Some(delta)) => delta,
            Ok(None) => break,
            Err(error) => return tell_error(error, write),
        };
        let told = &mut told[delta.index];
        let mut events = String::new();
        let nothing_yet = include_usage.then_some(None);
        if !told.begun || !delta.text.is_empty() || !delta.calls.is_empty() || !delta.tokens.is_empty() {
            events.push_str(&head.event(head.delta(&delta, told), nothing_yet)?);
        }
        told.begun = true;
        told.calls += delta.calls.len();
        told.characters += delta.text.chars().count();
        if delta.finish.is_some() {
            open -= 1;
            // Also who does not ask for it is told once: the server counts by it.
            let usage = match (open, include_usage) {
                (0, false) => Some(Some(answers.usage().into())),
                _ => include_usage.then_some(None),
            };
            events.push_str(&head.event(head.last(&delta), usage)?);
        }
        if !events.is_empty() {
            write(&events)?;
        }
    }
    let mut events = String::new();
    if include_usage {
        events = head.event(None, Some(Some(answers.usage().into())))?;
    }
    events.push_str("data: [DONE]\n\n");
    write(&events)?;
    Ok(None)
}

/// As OpenAI tells of an error after the head of the response: clients raise it.
fn tell_error(error: Error, mut write: impl FnMut(&str) -> Result<(), Error>) -> Result<Option<Error>, Error> {
    #[derive(Serialize)]
    struct Event<'a> {
        error: Body<'a>,
    }
    #[derive(Serialize)]
    struct Body<'a> {
        message: &'a str,
        r#type: &'static str,
        param: Option<&'static str>,
        code: Option<&'static str>,
    }
    let r#type = match error.kind {
        ErrorKind::InvalidInput | ErrorKind::TooLarge => "invalid_request_error",
        _ => "server_error",
    };
    let body = Body { message: &error.message, r#type, param: None, code: None };
    write(&event(&Event { error: body })?)?;
    Ok(Some(error))
}

fn event(data: &impl Serialize) -> Result<String, Error> {
    let json = serde_json::to_string(data);
    let json = json.map_err(|error| Error::model(format!("failed to write an event as JSON: {error}")))?;
    Ok(format!("data: {json}\n\n"))
}

impl Head {
    fn id(&self) -> String {
        let prefix = if self.api == Api::Chat { "chatcmpl" } else { "cmpl" };
        format!("{prefix}-{}", self.request_id)
    }

    fn object(&self, streamed: bool) -> &'static str {
        match (self.api, streamed) {
            (Api::Chat, false) => "chat.completion",
            (Api::Chat, true) => "chat.completion.chunk",
            (Api::Completions, _) => "text_completion",
        }
    }

    fn event(&self, choice: Option<Choice<'_>>, usage: Option<Option<UsageBody>>) -> Result<String, Error> {
        event(&Envelope {
            id: self.id(),
            object: self.object(true),
            created: self.created_s,
            model: &self.model,
            choices: choice.into_iter().collect(),
            usage,
        })
    }

    /// A whole answer.
    fn choice<'a>(&self, delta: &'a Delta, told: &Told) -> Choice<'a> {
        let (index, finish_reason) = (delta.index, delta.finish);
        let logprobs = self.logprobs(delta, told);
        match self.api {
            Api::Completions => Choice { index, text: Some(&delta.text), logprobs, finish_reason, ..Choice::default() },
            Api::Chat => {
                let content = (delta.calls.is_empty() || !delta.text.is_empty()).then_some(delta.text.as_str());
                let tool_calls = self.tool_calls(delta, None);
                let message = Message { role: Some("assistant"), content: Some(content), tool_calls };
                Choice { index, message: Some(message), logprobs, finish_reason, ..Choice::default() }
            }
        }
    }

    /// What an answer grows by.
    fn delta<'a>(&self, delta: &'a Delta, told: &Told) -> Option<Choice<'a>> {
        let (index, logprobs) = (delta.index, self.logprobs(delta, told));
        Some(match self.api {
            Api::Completions => Choice { index, text: Some(&delta.text), logprobs, ..Choice::default() },
            Api::Chat => {
                let role = (!told.begun).then_some("assistant");
                let content = (!told.begun || !delta.text.is_empty()).then_some(Some(delta.text.as_str()));
                let message = Message { role, content, tool_calls: self.tool_calls(delta, Some(told.calls)) };
                Choice { index, delta: Some(message), logprobs, ..Choice::default() }
            }
        })
    }

    /// The end of an answer.
    fn last<'a>(&self, delta: &Delta) -> Option<Choice<'a>> {
        let (text, message) = match self.api {
            Api::Completions => (Some(""), None),
            Api::Chat => (None, Some(Message::default())),
        };
        let (index, finish_reason) = (delta.index, delta.finish);
        Some(Choice { index, text, delta: message, finish_reason, ..Choice::default() })
    }

    /// The calls of a delta; in streams, with how many there were before.
    fn tool_calls<'a>(&self, delta: &'a Delta, before: Option<usize>) -> Vec<ToolCall<'a>> {
        let tool_call = |(place, call): (usize, &'a Call)| ToolCall {
            index: before.map(|before| before + place),
            id: self.call_id(delta.index, before.unwrap_or(0) + place),
            r#type: "function",
            function: Function { name: &call.name, arguments: &call.arguments },
        };
        delta.calls.iter().enumerate().map(tool_call).collect()
    }

    /// Nine letters and digits, because some templates refuse anything else.
    fn call_id(&self, choice: usize, call: usize) -> String {
        let random: String = self.request_id.chars().filter(char::is_ascii_alphanumeric).take(6).collect();
        format!("{random:0>6}{choice:x}{call:02x}")
    }

    fn logprobs<'a>(&self, delta: &'a Delta, told: &Told) -> Option<Logprobs<'a>> {
        if delta.tokens.is_empty() {
            return None;
        }
        Some(match self.api {
            Api::Chat => Logprobs::Chat { content: delta.tokens.iter().map(TokenLogprob::of).collect() },
            Api::Completions => {
                let lengths = delta.tokens.iter().map(|token| token.text.chars().count());
                let offset = |offset: &mut usize, length| Some(std::mem::replace(offset, *offset + length));
                let top = |token: &'a Token| top(token).map(|(bytes, logprob)| (text(bytes), logprob)).collect();
                Logprobs::Completions {
                    tokens: delta.tokens.iter().map(|token| text(&token.bytes)).collect(),
                    token_logprobs: delta.tokens.iter().map(chosen).collect(),
                    top_logprobs: delta.tokens.iter().map(top).collect(),
                    text_offset: lengths.scan(told.characters, offset).collect(),
                }
            }
        })
    }
}

impl<'a> TokenLogprob<'a> {
    fn of(token: &'a Token) -> Self {
        let one = |(bytes, logprob): (&'a [u8], f32)| Self { token: text(bytes), logprob, bytes, top_logprobs: None };
        let top_logprobs = Some(top(token).map(one).collect());
        Self { token: text(&token.bytes), logprob: chosen(token), bytes: &token.bytes, top_logprobs }
    }
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// What cannot be is as unlikely as OpenAI writes it: JSON has no infinity.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

fn chosen(token: &Token) -> f32 {
    token.logprobs.as_ref().map_or(-9999.0, |logprobs| finite(logprobs.chosen))
}

fn top(token: &Token) -> impl Iterator<Item = (&[u8], f32)> {
    let top = token.logprobs.iter().flat_map(|logprobs| &logprobs.top);
    top.map(|(bytes, logprob)| (bytes.as_slice(), finite(*logprob)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tessera_sdk::{Options, Sequence};

    use super::*;
    use crate::calls::{Listener, Syntax};
    use crate::generate::tests::Script;
    use crate::generate::{Model, Plan, PromptText};
    use crate::stops::Stops;

    fn head(api: Api) -> Head {
        Head { api, request_id: "0a1b2c3d-4e5f".to_owned(), created_s: 1_795_398_000, model: "smollm2".to_owned() }
    }

    fn plan(n: usize) -> Plan {
        Plan {
            prompts: vec![PromptText::Text("Hi".to_owned())],
            n,
            options: Options::default(),
            stops: Stops::default(),
            listener: Listener::open(Syntax::Tags, Vec::new()),
            calls_max: 9,
        }
    }

    fn whole_of(api: Api, script: &Script, n: usize) -> Value {
        let response = whole(&head(api), Answers::start(script, plan(n)).unwrap()).unwrap();
        let (status, content_type, body) = response.parts().unwrap();
        assert_eq!((status, content_type), (200, "application/json"));
        serde_json::from_slice(body).unwrap()
    }

    fn events(api: Api, script: &Script, n: usize, include_usage: bool) -> Vec<Value> {
        let mut text = String::new();
        let write = |events: &str| {
            text.push_str(events);
            Ok(())
        };
        let told = stream(&head(api), Answers::start(script, plan(n)).unwrap(), include_usage, write).unwrap();
        assert!(told.is_none());
        let mut events: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(events.pop(), Some("data: [DONE]"));
        events.iter().map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }

    const CALL: &str = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>";

    fn usage() -> Value {
        json!({ "prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "prompt_tokens_details": { "cached_tokens": 2 } })
    }

    #[test]
    fn a_whole_chat() {
        let answer = whole_of(Api::Chat, &Script::new(&[&[&["Hello"], &[",", " you"]]]), 1);
        let top = json!([{ "token": "x", "logprob": -9999.0, "bytes": [120] }]);
        let token =
            |text: &str| json!({ "token": text, "logprob": -0.5, "bytes": text.as_bytes(), "top_logprobs": top });
        let choice = json!({
            "index": 0,
            "message": { "role": "assistant", "content": "Hello, you" },
            "logprobs": { "content": [token("Hello"), token(","), token(" you")] },
            "finish_reason": "stop",
        });
        let expected = json!({
            "id": "chatcmpl-0a1b2c3d-4e5f", "object": "chat.completion", "created": 1_795_398_000, "model": "smollm2",
            "choices": [choice], "usage": usage(),
        });
        assert_eq!(answer, expected);
    }

    #[test]
    fn a_whole_call_has_no_content() {
        let answer = whole_of(Api::Chat, &Script::new(&[&[&[CALL]]]), 1);
        let function = json!({ "name": "f", "arguments": "{\"a\":1}" });
        let call = json!({ "id": "0a1b2c000", "type": "function", "function": function });
        let message = json!({ "role": "assistant", "content": null, "tool_calls": [call] });
        assert_eq!(answer["choices"][0]["message"], message);
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    }

    #[test]
    fn a_completion() {
        let answer = whole_of(Api::Completions, &Script::new(&[&[&["é", "b"], &["c"]]]), 1);
        assert_eq!((&answer["object"], &answer["id"]), (&json!("text_completion"), &json!("cmpl-0a1b2c3d-4e5f")));
        let logprobs = json!({
            "tokens": ["é", "b", "c"], "token_logprobs": [-0.5, -0.5, -0.5], "text_offset": [0, 1, 2],
            "top_logprobs": [{ "x": -9999.0 }, { "x": -9999.0 }, { "x": -9999.0 }],
        });
        let choice = json!({ "index": 0, "text": "ébc", "logprobs": logprobs, "finish_reason": "stop" });
        assert_eq!(answer["choices"], json!([choice]));
        let events = events(Api::Completions, &Script::new(&[&[&["é", "b"], &["c"]]]), 1, false);
        let texts: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["text"]).collect();
        assert_eq!(texts, [&json!("éb"), &json!("c"), &json!("")]);
        assert_eq!(events[1]["choices"][0]["logprobs"]["text_offset"], json!([2]));
    }

    #[test]
    fn a_stream_of_a_chat() {
        let events = events(Api::Chat, &Script::new(&[&[&["Hello"], &[",", " you"]]]), 1, false);
        let deltas: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["delta"]).collect();
        let expected = [json!({ "role": "assistant", "content": "Hello" }), json!({ "content": ", you" }), json!({})];
        assert_eq!(deltas, expected.iter().collect::<Vec<_>>());
        let finishes: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["finish_reason"]).collect();
        assert_eq!(finishes, [&Value::Null, &Value::Null, &json!("stop")]);
        assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk" && event["model"] == "smollm2"));
        assert_eq!(events[2]["usage"], usage());
        assert!(events[0].get("usage").is_none());
    }

    #[test]
    fn usage_comes_last_where_it_is_asked_for() {
        let events = events(Api::Chat, &Script::new(&[&[&["a"]], &[&["b", "c"]]]), 2, true);
        let (last, others) = events.split_last().unwrap();
        assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &usage()));
        assert!(others.iter().all(|event| event.get("usage") == Some(&Value::Null)));
        let firsts: Vec<&Value> =
            others.iter().filter(|event| event["choices"][0]["delta"]["role"] == "assistant").collect();
        assert_eq!(firsts.len(), 2);
    }

    #[test]
    fn calls_are_streamed_with_their_place() {
        let events = events(Api::Chat, &Script::new(&[&[&["So ", CALL], &[CALL]]]), 1, false);
        let calls: Vec<&Value> =
            events.iter().flat_map(|event| event["choices"][0]["delta"]["tool_calls"].as_array()).flatten().collect();
        let places: Vec<(&Value, &Value)> = calls.iter().map(|call| (&call["index"], &call["id"])).collect();
        assert_eq!(places, [(&json!(0), &json!("0a1b2c000")), (&json!(1), &json!("0a1b2c001"))]);
        assert_eq!(events[0]["choices"][0]["delta"]["content"], "So");
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }

    /// Ends in the middle.
    struct Broken;

    impl Model for Broken {
        fn sequence(&self) -> Result<Sequence, Error> {
            Ok(Sequence::scripted(vec![Default::default()]))
        }
    }

    #[test]
    fn an_error_in_a_stream_is_its_last_event() {
        let mut text = String::new();
        let write = |events: &str| {
            text.push_str(events);
            Ok(())
        };
        let error = stream(&head(Api::Chat), Answers::start(&Broken, plan(1)).unwrap(), false, write).unwrap().unwrap();
        let last = text.split_terminator("\n\n").last().unwrap();
        let last: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
        let body = json!({ "message": error.message, "type": "invalid_request_error", "param": null, "code": null });
        assert_eq!(last, json!({ "error": body }));
        let gone = |_: &str| Err(Error::unavailable("the client is gone"));
        assert!(stream(&head(Api::Chat), Answers::start(&Broken, plan(1)).unwrap(), false, gone).is_err());
    }
}
