//! The model's chat template: Jinja that its author wrote, and that nobody checked. It runs in the sandbox of the one
//! request, with a bound on its steps, and reaches nothing.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use chrono::DateTime;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error as JinjaError, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::Formatter;
use tessera_sdk::Error;

/// Most steps of one rendering: some hundred thousand messages.
const FUEL: u64 = 5_000_000;

/// Macros that call themselves go no deeper: they need stack, of which a guest has little.
const RECURSION_MAX: usize = 100;

const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Debug)]
pub(crate) struct Template {
    environment: Environment<'static>,
    source: &'static str,
    time_ms: Arc<AtomicU64>,
    /// Whether it asks for the tools that a request declares.
    pub(crate) takes_tools: bool,
}

/// What a template makes a prompt from.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Value>,
    pub(crate) tools: Vec<Value>,
    /// Further variables, which the request may set.
    pub(crate) variables: Vec<(String, Value)>,
    pub(crate) time_ms: u64,
}

/// Texts of the special tokens, as templates know them.
#[derive(Debug, Default)]
pub(crate) struct SpecialTokens {
    pub(crate) bos: Option<String>,
    pub(crate) eos: Option<String>,
}

impl Template {
    /// Compiles a template; the error says where it is no Jinja.
    pub(crate) fn new(source: String, special: &SpecialTokens) -> Result<Self, Error> {
        // For the rest of the guest's life, as the compiled template is.
        let source: &'static str = source.leak();
        let time_ms = Arc::new(AtomicU64::new(0));
        let mut environment = Environment::new();
        // As the library for which templates are written sets Jinja up.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_MAX);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        let clock = Arc::clone(&time_ms);
        environment.add_function("strftime_now", move |format: &str| strftime(clock.load(Relaxed), format));
        for (name, token) in [("bos_token", &special.bos), ("eos_token", &special.eos)] {
            environment.add_global(name, token.clone().unwrap_or_default());
        }
        environment
            .add_template(NAME, source)
            .map_err(|error| Error::model(format!("the model's chat template is no Jinja: {error}")))?;
        let asks_for = environment.get_template(NAME).map(|template| template.undeclared_variables(false));
        let takes_tools = asks_for.is_ok_and(|names| names.contains("tools"));
        Ok(Self { environment, source, time_ms, takes_tools })
    }

    /// As it was written.
    pub(crate) fn source(&self) -> &str {
        self.source
    }

    /// The prompt of a conversation, up to where the model's answer begins.
    pub(crate) fn render(&self, conversation: Conversation) -> Result<String, Error> {
        self.time_ms.store(conversation.time_ms, Relaxed);
        let tools = if conversation.tools.is_empty() { Value::from(()) } else { Value::from(conversation.tools) };
        let fixed = [
            ("messages", Value::from(conversation.messages)),
            ("tools", tools),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(true)),
        ];
        let fixed = fixed.map(|(name, value)| (name.to_owned(), value));
        let variables: Value = conversation.variables.into_iter().chain(fixed).collect();
        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(variables));
        rendered.map_err(|error| match error.kind() {
            ErrorKind::OutOfFuel => {
                Error::model(format!("the model's chat template needs more than {FUEL} steps for these messages"))
            }
            _ => Error::invalid_input(format!("the model's chat template does not take these messages: {error}")),
        })
    }
}

fn raise_exception(message: &str) -> Result<Value, JinjaError> {
    Err(JinjaError::new(ErrorKind::InvalidOperation, message.to_owned()))
}

fn strftime(time_ms: u64, format: &str) -> Result<String, JinjaError> {
    let mut text = String::new();
    let time = i64::try_from(time_ms).ok().and_then(DateTime::from_timestamp_millis);
    let written = time.is_some_and(|time| write!(text, "{}", time.format(format)).is_ok());
    let wrong = || JinjaError::new(ErrorKind::InvalidOperation, format!("strftime_now does not know '{format}'"));
    written.then_some(text).ok_or_else(wrong)
}

/// Python's `json.dumps`: what models have seen in training. Unlike Jinja's own filter it escapes nothing for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<String, JinjaError> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    // What they ask for is what happens.
    let _: (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let mut separators = separators.unwrap_or_default().into_iter();
    let between = separators.next().unwrap_or_else(|| if indent.is_some() { "," } else { ", " }.to_owned());
    let after_key = separators.next().unwrap_or_else(|| ": ".to_owned());
    let mut json = Vec::new();
    let formatter = Python { between, after_key, indent, depth: 0, empty: true };
    let written = value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter));
    let failed = |error: &dyn fmt::Display| JinjaError::new(ErrorKind::BadSerialization, error.to_string());
    written.map_err(|error| failed(&error))?;
    String::from_utf8(json).map_err(|error| failed(&error))
}

/// Writes JSON with Python's separators.
struct Python {
    between: String,
    after_key: String,
    indent: Option<usize>,
    depth: usize,
    /// Whether nothing has been written in the innermost list or object.
    empty: bool,
}

impl Python {
    fn open<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        (self.depth, self.empty) = (self.depth + 1, true);
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.break_line(writer)?;
        }
        self.empty = false;
        writer.write_all(bracket)
    }

    fn element<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        self.empty = false;
        if !first {
            writer.write_all(self.between.as_bytes())?;
        }
        self.break_line(writer)
    }

    fn break_line<W: ?Sized + std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
        match self.indent {
            Some(indent) => write!(writer, "\n{:width$}", "", width = indent.saturating_mul(self.depth).min(1 << 10)),
            None => Ok(()),
        }
    }
}

impl Formatter for Python {
    fn begin_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        self.element(writer, first)
    }

    fn begin_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        self.element(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(self.after_key.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(source: &str) -> Template {
        let special = SpecialTokens { bos: Some("<s>".to_owned()), eos: Some("</s>".to_owned()) };
        Template::new(source.to_owned(), &special).unwrap()
    }

    fn render(source: &str, messages: serde_json::Value, tools: &str) -> Result<String, Error> {
        let conversation = Conversation {
            messages: serde_json::from_value(messages).unwrap(),
            tools: serde_json::from_str(tools).unwrap(),
            variables: vec![("enable_thinking".to_owned(), Value::from(false))],
            // 2026-11-23T01:40:00Z
            time_ms: 1_795_398_000_000,
        };
        template(source).render(conversation)
    }

    fn hello() -> serde_json::Value {
        json!([{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "Hi" }])
    }

    /// As text, because serde_json sorts keys.
    const WEATHER: &str = r#"[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object",
        "properties": {"city": {"type": "string"}}}}}]"#;

    #[test]
    fn chat_ml() {
        let source = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
            {{ '<|im_start|>system\nDefault.<|im_end|>\n' }}{% endif %}\
            {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
            {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        let prompt = render(source, hello(), "[]").unwrap();
        let expected =
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(prompt, expected);
        let prompt = render(source, json!([{ "role": "user", "content": "Hi" }]), "[]").unwrap();
        assert!(prompt.starts_with("<|im_start|>system\nDefault.<|im_end|>\n<|im_start|>user\n"), "{prompt}");
        assert!(!template(source).takes_tools);
    }

    #[test]
    fn llama_3() {
        let source = "{{- bos_token }}\n{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n\
            {%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n\
            {%- set date_string = strftime_now('%d %b %Y') %}\n    {%- endif %}\n{%- endif %}\n\
            {%- if messages[0]['role'] == 'system' %}\n    {%- set system = messages[0]['content']|trim %}\n\
            {%- set messages = messages[1:] %}\n{%- else %}{%- set system = '' %}{%- endif %}\n\
            {{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' }}\n\
            {%- if tools is not none %}{%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}{%- endif %}\n\
            {{- system }}{{- '<|eot_id|>' }}\n{%- for message in messages %}\n\
            {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}\n\
            {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}\n\
            {%- elif 'tool_calls' in message %}\n\
            {%- if not message.tool_calls|length == 1 %}{{- raise_exception('This model only supports single tool-calls at once!') }}{%- endif %}\n\
            {%- set tool_call = message.tool_calls[0].function %}\n\
            {{- '{\"name\": \"' + tool_call.name + '\", \"parameters\": ' }}{{- tool_call.arguments | tojson }}{{- '}<|eot_id|>' }}\n\
            {%- endif %}\n{%- endfor %}\n\
            {%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}";
        let prompt = render(source, hello(), WEATHER).unwrap();
        assert!(prompt.starts_with("<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 23 Nov 2026\n\n{\n    \"type\": \"function\",\n    \"function\": {\n        \"name\": \"weather\",\n"), "{prompt}");
        assert!(prompt.ends_with("Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"), "{prompt}");
        assert!(template(source).takes_tools);
        let call = json!({ "function": { "name": "weather", "arguments": { "z": 1, "city": "Ulm" } } });
        let called = json!([{ "role": "assistant", "content": "", "tool_calls": [call] }]);
        let prompt = render(source, called.clone(), "[]").unwrap();
        assert!(prompt.contains(r#"{"name": "weather", "parameters": {"#), "{prompt}");
        let mut twice = called;
        twice[0]["tool_calls"] = json!([call, call]);
        let error = render(source, twice, "[]").unwrap_err();
        assert!(error.message.contains("This model only supports single tool-calls at once!"), "{error}");
    }

    #[test]
    fn qwen() {
        let source = "{%- if tools %}\n    {{- '<|im_start|>system\\n' }}\n    {{- '<tools>' }}\n    {%- for tool in tools %}\n\
            {{- \"\\n\" }}\n        {{- tool | tojson }}\n    {%- endfor %}\n    {{- '\\n</tools><|im_end|>\\n' }}\n{%- endif %}\n\
            {%- set ns = namespace(multi_step_tool=true, last=messages|length - 1) %}\n\
            {%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n\
            {%- if ns.multi_step_tool and message.role == 'user' and message.content is string and not(message.content.startswith('<tool_response>')) %}\n\
            {%- set ns.multi_step_tool = false %}{%- set ns.last = index %}\n    {%- endif %}\n{%- endfor %}\n\
            {%- for message in messages %}\n    {%- if message.role == 'tool' %}\n\
            {%- if loop.first or (messages[loop.index0 - 1].role != 'tool') %}{{- '<|im_start|>user' }}{%- endif %}\n\
            {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}\n\
            {%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}{{- '<|im_end|>\\n' }}{%- endif %}\n\
            {%- else %}\n        {{- '<|im_start|>' + message.role + '\\n' + message.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}\n    {%- endif %}\n{%- endfor %}\n\
            {%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}\n{%- endif %}";
        let messages = json!([{ "role": "user", "content": "Hi" }, { "role": "assistant", "content": "<think>x</think>\nYes" },
            { "role": "tool", "content": "{\"a\":1}" }, { "role": "tool", "content": "2" }]);
        let prompt = render(source, messages, WEATHER).unwrap();
        let tools = "<|im_start|>system\n<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"parameters\": {";
        assert!(prompt.starts_with(tools), "{prompt}");
        let rest = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n\
            <|im_start|>user\n<tool_response>\n{\"a\":1}\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n\
            <|im_start|>assistant\n<think>\n\n</think>\n\n";
        assert!(prompt.ends_with(rest), "{prompt}");
    }

    #[test]
    fn mistral() {
        let source = "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content'] %}\n\
            {%- set loop_messages = messages[1:] %}\n{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n\
            {{- bos_token }}\n{%- for message in loop_messages %}\n\
            {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n\
            {{- raise_exception('After the optional system message, conversation roles must alternate user/assistant') }}\n    {%- endif %}\n\
            {%- if message['role'] == 'user' %}\n        {%- if loop.last and tools is not none %}{{- '[AVAILABLE_TOOLS]' + tools|tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}\n\
            {%- if loop.last and system_message is defined %}\n            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}\n\
            {%- else %}\n            {{- '[INST] ' + message['content'] + '[/INST]' }}\n        {%- endif %}\n\
            {%- elif message['role'] == 'assistant' %}\n        {{- ' ' + message['content'] + eos_token}}\n    {%- endif %}\n{%- endfor %}\n";
        assert_eq!(render(source, hello(), "[]").unwrap(), "<s>[INST] Be brief.\n\nHi[/INST]");
        let error = render(source, json!([{ "role": "assistant", "content": "x" }]), "[]").unwrap_err();
        assert!(error.message.contains("conversation roles must alternate user/assistant"), "{error}");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let messages = json!([{ "b": [1, 2.5, []], "a": "<é>\n", "c": { "d": null } }]);
        let json = |call: &str| render(&format!("{{{{ messages[0] | tojson{call} }}}}"), messages.clone(), "[]");
        // serde_json's own map sorts its keys.
        assert_eq!(json("").unwrap(), r#"{"a": "<é>\n", "b": [1, 2.5, []], "c": {"d": null}}"#);
        assert_eq!(json("(separators=(',', ':'))").unwrap(), r#"{"a":"<é>\n","b":[1,2.5,[]],"c":{"d":null}}"#);
        let indented =
            "{\n  \"a\": \"<é>\\n\",\n  \"b\": [\n    1,\n    2.5,\n    []\n  ],\n  \"c\": {\n    \"d\": null\n  }\n}";
        assert_eq!(json("(indent=2, ensure_ascii=False)").unwrap(), indented);
        assert!(json("(colour=2)").is_err());
    }

    #[test]
    fn a_template_that_does_not_end_is_ended() {
        for source in [
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        ] {
            assert!(render(source, json!([]), "[]").is_err(), "{source}");
        }
    }

    #[test]
    fn a_template_reaches_nothing() {
        for source in [
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{% include '/etc/passwd' %}",
            "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
            "{{ open('/etc/passwd') }}",
        ] {
            let refused = Template::new(source.to_owned(), &SpecialTokens::default()).map(|template| {
                let (messages, tools, variables) = (Vec::new(), Vec::new(), Vec::new());
                template.render(Conversation { messages, tools, variables, time_ms: 0 })
            });
            assert!(!matches!(refused, Ok(Ok(_))), "{source}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let error = Template::new("{% if %}".to_owned(), &SpecialTokens::default()).unwrap_err();
        assert!(error.message.contains("is no Jinja") && error.message.contains(":1"), "{error}");
        let error = render("{{ strftime_now('%Q') }}", json!([]), "[]").unwrap_err();
        assert!(error.message.contains("does not know '%Q'"), "{error}");
    }
}
