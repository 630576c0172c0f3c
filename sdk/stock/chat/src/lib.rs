//! Stock endpoint `stock:chat`: chat, completions and embeddings over the OpenAI API, from a language model in GGUF.
//!
//! The chat template is the asset `chat_template.jinja`, or else the one in the model file. Settings, all optional:
//!
//! | setting | default | |
//! |---|---|---|
//! | `graph` | `model` | the graph of the package |
//! | `max_tokens` | what fits | most tokens of an answer to a request that says nothing of it; 16 for completions |
//! | `temperature`, `top_p`, `top_k`, `min_p`, `repeat_penalty`, `presence_penalty`, `frequency_penalty` | the host's | the same, for these |
//!
//! A request's body is checked ([`body`], [`messages`], [`tools`]); the model's template makes a prompt of it
//! ([`template`]); the host computes its sequences ([`generate`]); what they write is searched for stop strings and calls
//! ([`stops`], [`calls`]) and told as it comes, or as a whole ([`wire`]). The template is compiled in `init`, and so is
//! part of the frozen image.

mod body;
mod calls;
mod generate;
mod messages;
mod stops;
mod template;
mod tools;
mod wire;

use serde::Serialize;
use tessera_openai::embeddings::EmbeddingsRequest;
use tessera_sdk::{Endpoint, Error, Graph, Options, Package, Request, Response, log};

use crate::body::{Body, CHOICES_MAX, PromptInput};
use crate::calls::{Listener, Syntax};
use crate::generate::{Answers, Plan, PromptText};
use crate::stops::Stops;
use crate::template::{Conversation, SpecialTokens, Template};
use crate::tools::{Demand, Tools};
use crate::wire::{Api, Head};

tessera_sdk::export!(Chat);

/// The author's own template, instead of the model's.
const TEMPLATE_ASSET: &str = "chat_template.jinja";

/// What a completion gets that says nothing of it, as from OpenAI.
const COMPLETION_TOKENS_DEFAULT: u32 = 16;

/// A language model.
#[derive(Debug)]
pub struct Chat {
    graph: String,
    /// Or why it has none.
    template: Result<Template, String>,
    syntax: Syntax,
    defaults: Options,
}

impl Endpoint for Chat {
    fn init(package: &Package) -> Result<Self, Error> {
        let graph = package.setting("graph").unwrap_or_else(|| "model".to_owned());
        let token = |key: &str| package.metadata(&graph, key);
        let special = SpecialTokens { bos: token("tokenizer.bos_token")?, eos: token("tokenizer.eos_token")? };
        let template = match package.asset(TEMPLATE_ASSET) {
            Ok(_) => Ok(Template::new(package.asset_text(TEMPLATE_ASSET)?, &special)?),
            Err(_) => match package.metadata(&graph, "tokenizer.chat_template")? {
                // A model can do without: it still completes.
                Some(source) => Template::new(source, &special).map_err(|error| error.message),
                None => Err(format!("the model has no chat template; add one to the package as {TEMPLATE_ASSET}")),
            },
        };
        if let Err(reason) = &template {
            log::warn(reason);
        }
        Ok(Self::new(graph, template, body::defaults(|name| package.setting(name))?))
    }

    fn handle(&self, request: Request) -> Result<Response, Error> {
        let (param, answer) = self.answer(&request);
        answer.or_else(|error| match Overflow::of(&error) {
            Some(overflow) => overflow.respond(&request.id(), param),
            None => Err(error),
        })
    }
}

impl Chat {
    fn new(graph: String, template: Result<Template, String>, defaults: Options) -> Self {
        let syntax = match &template {
            Ok(template) if template.takes_tools => Syntax::of_template(template.source()),
            // The one that it is told of.
            _ => Syntax::Tags,
        };
        Self { graph, template, syntax, defaults }
    }

    /// The answer, and the parameter that gives the model what it reads.
    fn answer(&self, request: &Request) -> (&'static str, Result<Response, Error>) {
        let generate = |api| Body::read(request).and_then(|body| self.generate(api, body, request));
        match request.path() {
            "chat/completions" => ("messages", generate(Api::Chat)),
            "completions" => ("prompt", generate(Api::Completions)),
            "embeddings" => ("input", self.embed(request)),
            "invocations" => match Body::read(request) {
                Err(error) => ("", Err(error)),
                Ok(body) => match (&body.messages, &body.prompt, &body.input) {
                    (Some(_), None, None) => ("messages", self.generate(Api::Chat, body, request)),
                    (None, Some(_), None) => ("prompt", self.generate(Api::Completions, body, request)),
                    (None, None, Some(_)) => ("input", self.embed(request)),
                    _ => {
                        let text = "the body must have exactly one of `messages`, `prompt` and `input`";
                        ("", Err(Error::invalid_input(text)))
                    }
                },
            },
            other => {
                let text = format!(
                    "this endpoint is a language model: call `chat/completions`, `completions`, `embeddings` or \
                     `invocations`, not `{other}`"
                );
                ("", Err(Error::not_found(text)))
            }
        }
    }

    fn embed(&self, request: &Request) -> Result<Response, Error> {
        let asked: EmbeddingsRequest = request.json()?;
        let embeddings = Graph::named(&self.graph).embed(&asked.texts()?)?;
        asked.respond(&request.endpoint(), embeddings.vectors, embeddings.prompt_tokens as usize)
    }

    fn generate(&self, api: Api, body: Body, request: &Request) -> Result<Response, Error> {
        let time_ms = request.time_ms();
        let streamed = body.stream == Some(true);
        let include_usage = body.include_usage();
        let plan = match api {
            Api::Chat => self.plan_chat(body, time_ms)?,
            Api::Completions => self.plan_completions(body)?,
        };
        let head = Head { api, request_id: request.id(), created_s: time_ms / 1000, model: request.endpoint() };
        let graph = Graph::named(&self.graph);
        let answers = Answers::start(&graph, plan)?;
        if !streamed {
            return wire::whole(&head, answers);
        }
        let mut response = Response::stream("text/event-stream")?;
        if let Some(error) = wire::stream(&head, answers, include_usage, |events| response.write(events))? {
            log::error(format!("the answer was broken off: {error}"));
        }
        Ok(response.finish())
    }

    fn plan_chat(&self, mut body: Body, time_ms: u64) -> Result<Plan, Error> {
        let template = self.template.as_ref().map_err(Error::invalid_input)?;
        let messages = body.messages.take().ok_or_else(|| missing("messages"))?;
        let turns = messages::turns(messages)?;
        let tools = Tools::new(body.tools.take(), body.tool_choice.take())?;
        let mut options = body.options(&self.defaults)?;
        if tools.demand != Demand::None && (options.grammar.is_some() || options.json_schema.is_some()) {
            return Err(Error::invalid_input(
                "`response_format` and `tools` cannot both say what to write; set `tool_choice` to 'none', or leave one out",
            ));
        }
        let listener = match &tools.demand {
            Demand::None => Listener::Deaf,
            Demand::Auto => Listener::open(self.syntax, tools.names()),
            Demand::Required(_) => {
                options.json_schema = tools.schema();
                Listener::Demanded { held: String::new() }
            }
        };
        let described = tools.values();
        let turns = if template.takes_tools { turns } else { tools::as_text(turns, &described) };
        let prompt = template.render(Conversation {
            messages: turns.iter().map(messages::Turn::value).collect(),
            tools: described,
            variables: body.chat_template_kwargs.take().unwrap_or_default().into_iter().collect(),
            time_ms,
        })?;
        Ok(Plan {
            prompts: vec![PromptText::Text(prompt)],
            n: body.n()?,
            options,
            stops: Stops::new(body.stops()?),
            listener,
            calls_max: if body.parallel_tool_calls == Some(false) { 1 } else { usize::MAX },
        })
    }

    fn plan_completions(&self, mut body: Body) -> Result<Plan, Error> {
        let prompts = prompts(body.prompt.take().ok_or_else(|| missing("prompt"))?)?;
        let n = body.n()?;
        if prompts.len() * n > CHOICES_MAX {
            return Err(Error::invalid_input(format!(
                "`prompt` has {} texts, with `n` that makes {} answers; at most {CHOICES_MAX} are allowed",
                prompts.len(),
                prompts.len() * n
            )));
        }
        let max_tokens = self.defaults.max_tokens.or(Some(COMPLETION_TOKENS_DEFAULT));
        Ok(Plan {
            prompts,
            n,
            options: body.options(&Options { max_tokens, ..self.defaults.clone() })?,
            stops: Stops::new(body.stops()?),
            listener: Listener::Deaf,
            calls_max: 0,
        })
    }
}

fn prompts(input: PromptInput) -> Result<Vec<PromptText>, Error> {
    let prompts: Vec<PromptText> = match input {
        PromptInput::Text(text) => vec![PromptText::Text(text)],
        PromptInput::Texts(texts) => texts.into_iter().map(PromptText::Text).collect(),
        PromptInput::Tokens(tokens) => vec![PromptText::Tokens(tokens)],
        PromptInput::TokenLists(lists) => lists.into_iter().map(PromptText::Tokens).collect(),
        PromptInput::Other(_) => {
            return Err(Error::invalid_input("`prompt` must be text, a list of texts, or token numbers"));
        }
    };
    if prompts.is_empty() {
        return Err(Error::invalid_input("`prompt` is an empty list; give at least one text"));
    }
    Ok(prompts)
}

fn missing(name: &str) -> Error {
    Error::invalid_input(format!("`{name}` is missing"))
}

/// A prompt that is longer than the model's context. Clients know this error by its code.
#[derive(Debug, PartialEq, Eq)]
struct Overflow<'e> {
    /// As the host says it: a number, or `at least` one.
    prompt_tokens: &'e str,
    context_tokens: &'e str,
}

impl<'e> Overflow<'e> {
    /// Reads the host's words, as `wit/endpoint.wit` has them.
    fn of(error: &'e Error) -> Option<Self> {
        let (_, rest) = error.message.split_once("the prompt has ")?;
        let (prompt_tokens, rest) = rest.split_once(" tokens, the context ")?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        Some(Self { prompt_tokens, context_tokens: &rest[..digits] }).filter(|_| digits > 0)
    }

    /// Like every other error of the API, and with what OpenAI's clients look for. `param` is what is too long.
    fn respond(&self, request_id: &str, param: &'static str) -> Result<Response, Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            error_code: &'static str,
            message: String,
            details: [RequestInfo<'a>; 1],
            r#type: &'static str,
            param: &'static str,
            code: &'static str,
        }
        #[derive(Serialize)]
        struct RequestInfo<'a> {
            #[serde(rename = "@type")]
            r#type: &'static str,
            request_id: &'a str,
            serving_data: &'static str,
        }
        let Self { prompt_tokens, context_tokens } = self;
        let r#type = "type.googleapis.com/google.rpc.RequestInfo";
        let body = Body {
            error_code: "BAD_REQUEST",
            message: format!(
                "This model's maximum context length is {context_tokens} tokens; the prompt has {prompt_tokens}. \
                 Shorten it."
            ),
            details: [RequestInfo { r#type, request_id, serving_data: "" }],
            r#type: "invalid_request_error",
            param,
            code: "context_length_exceeded",
        };
        Ok(Response::json(&body)?.with_status(400))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CHAT_ML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn chat(template: &str) -> Chat {
        let template = Template::new(template.to_owned(), &SpecialTokens::default());
        Chat::new("model".to_owned(), template.map_err(|error| error.message), Options::default())
    }

    fn body(body: serde_json::Value) -> Body {
        Body::read(&Request::new("invocations", "application/json", body.to_string())).unwrap()
    }

    fn prompt(plan: &Plan) -> &str {
        let PromptText::Text(text) = &plan.prompts[0] else { panic!("{plan:?}") };
        text
    }

    #[test]
    fn a_chat_becomes_a_prompt_and_options() {
        let asked = body(json!({
            "messages": [{ "role": "user", "content": "Hi" }], "stop": "END", "n": 3, "max_tokens": 7,
        }));
        let plan = chat(CHAT_ML).plan_chat(asked, 0).unwrap();
        assert_eq!(prompt(&plan), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
        assert_eq!((plan.n, plan.options.max_tokens), (3, Some(7)));
    }

    #[test]
    fn a_demanded_call_follows_a_schema_and_a_possible_one_does_not() {
        let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
        let asked = |choice: &str| {
            body(json!({ "messages": [{ "role": "user", "content": "Hi" }], "tools": tools, "tool_choice": choice }))
        };
        let auto = chat(CHAT_ML).plan_chat(asked("auto"), 0).unwrap();
        assert!(
            auto.options.json_schema.is_none() && matches!(auto.listener, Listener::Open { syntax: Syntax::Tags, .. })
        );
        assert!(prompt(&auto).starts_with("<|im_start|>system\nYou may call functions"), "{}", prompt(&auto));
        let required = chat(CHAT_ML).plan_chat(asked("required"), 0).unwrap();
        assert!(required.options.json_schema.unwrap().contains(r#""const":"f""#));
        let none = chat(CHAT_ML).plan_chat(asked("none"), 0).unwrap();
        assert!(!prompt(&none).contains("functions") && matches!(none.listener, Listener::Deaf));
        let mut both = asked("auto");
        both.response_format = body(json!({ "response_format": { "type": "json_object" } })).response_format;
        assert!(chat(CHAT_ML).plan_chat(both, 0).unwrap_err().message.contains("cannot both"));
    }

    #[test]
    fn prompts_of_completions_are_texts_or_tokens() {
        let plan = |prompt: serde_json::Value| chat("").plan_completions(body(json!({ "prompt": prompt, "n": 2 })));
        let texts = plan(json!(["a", "b"])).unwrap();
        assert_eq!((texts.prompts.len(), texts.options.max_tokens), (2, Some(16)));
        assert_eq!(plan(json!([1, 2])).unwrap().prompts, [PromptText::Tokens(vec![1, 2])]);
        assert_eq!(plan(json!([[1], [2, 3]])).unwrap().prompts.len(), 2);
        for (prompt, reason) in [
            (json!([]), "empty list"),
            (json!({}), "must be text"),
            (json!(["a", "b", "c", "d", "e"]), "makes 10 answers; at most 8"),
        ] {
            let error = plan(prompt).unwrap_err();
            assert!(error.message.contains(reason), "{error}");
        }
    }

    #[test]
    fn without_a_template_there_is_no_chat_but_the_reason() {
        let chat = Chat::new("model".to_owned(), Err("the model has no chat template".to_owned()), Options::default());
        let asked = body(json!({ "messages": [{ "role": "user", "content": "Hi" }] }));
        assert_eq!(chat.plan_chat(asked, 0).unwrap_err().message, "the model has no chat template");
    }

    #[test]
    fn a_body_has_one_kind_of_input_and_a_path_that_exists() {
        let answer = |path: &str, body: serde_json::Value| {
            chat(CHAT_ML).answer(&Request::new(path, "application/json", body.to_string())).1.unwrap_err().message
        };
        assert!(answer("invocations", json!({})).contains("exactly one of"));
        assert!(answer("invocations", json!({ "prompt": "a", "input": "b" })).contains("exactly one of"));
        assert_eq!(answer("chat/completions", json!({ "prompt": "a" })), "`messages` is missing");
        assert_eq!(answer("completions", json!({ "messages": [] })), "`prompt` is missing");
        assert!(answer("v2/infer", json!({})).contains("not `v2/infer`"));
    }

    #[test]
    fn what_is_too_long_is_named_as_the_api_does() {
        let param = |path: &str, body: serde_json::Value| {
            chat(CHAT_ML).answer(&Request::new(path, "application/json", body.to_string())).0
        };
        for (path, name) in [("chat/completions", "messages"), ("completions", "prompt"), ("embeddings", "input")] {
            // They fail before the model is asked.
            assert_eq!(param(path, json!([])), name);
            assert_eq!(param("invocations", json!({ name: [] })), name);
        }
    }

    #[test]
    fn a_prompt_that_is_too_long_is_known_by_its_code() {
        let words = "failed to compute graph `model`: the prompt has at least 3000 tokens, the context 2048";
        let error = Error::invalid_input(words);
        let overflow = Overflow::of(&error).unwrap();
        assert_eq!(overflow, Overflow { prompt_tokens: "at least 3000", context_tokens: "2048" });
        let response = overflow.respond("id", "prompt").unwrap();
        let (status, _, bytes) = response.parts().unwrap();
        let body: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        assert_eq!(
            (status, &body["code"], &body["error_code"], &body["param"]),
            (400, &json!("context_length_exceeded"), &json!("BAD_REQUEST"), &json!("prompt"))
        );
        assert_eq!(Overflow::of(&Error::invalid_input("the prompt has no tokens")), None);
    }
}
