//! The messages of a conversation: as clients send them, checked, and as templates take them.

use minijinja::context;
use minijinja::value::Value;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tessera_sdk::Error;

/// A message as it is sent. Keys that are not listed are ignored.
#[derive(Debug, Deserialize)]
pub(crate) struct Message {
    role: String,
    content: Option<Content>,
    name: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
    tool_call_id: Option<String>,
    function_call: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
    Other(IgnoredAny),
}

#[derive(Debug, Deserialize)]
struct Part {
    r#type: String,
    text: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ToolCall {
    id: Option<String>,
    function: CalledFunction,
}

#[derive(Debug, Deserialize)]
struct CalledFunction {
    name: String,
    /// JSON in a string, or an object.
    #[serde(default)]
    arguments: Value,
}

/// A message that is as it should be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Turn {
    pub(crate) role: Role,
    pub(crate) content: String,
    pub(crate) calls: Vec<Called>,
    name: Option<String>,
    tool_call_id: Option<String>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    System,
    User,
    Assistant,
    Tool,
}

/// A call that the model has made before.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Called {
    id: String,
    pub(crate) name: String,
    /// An object, where they were one.
    pub(crate) arguments: Value,
}

/// Checks all messages of a request.
pub(crate) fn turns(messages: Vec<Message>) -> Result<Vec<Turn>, Error> {
    if messages.is_empty() {
        return Err(Error::invalid_input("`messages` is an empty list; give at least one message"));
    }
    messages.into_iter().enumerate().map(|(index, message)| Turn::new(index, message)).collect()
}

impl Turn {
    /// What a role says.
    pub(crate) fn new_text(role: Role, content: String) -> Self {
        Self { role, content, calls: Vec::new(), name: None, tool_call_id: None }
    }

    fn new(index: usize, message: Message) -> Result<Self, Error> {
        let wrong = |what: String| Err(Error::invalid_input(format!("`messages[{index}]` {what}")));
        let role = match message.role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            other => return wrong(format!("has the role '{other}'; there are system, user, assistant and tool")),
        };
        if message.function_call.is_some() {
            return wrong("has `function_call`, which is of the past: use `tool_calls`".to_owned());
        }
        let given = message.tool_calls.unwrap_or_default();
        if !given.is_empty() && role != Role::Assistant {
            return wrong(format!("has `tool_calls`, which only the assistant makes, not '{}'", message.role));
        }
        if role == Role::Tool && message.tool_call_id.is_none() {
            return wrong("has no `tool_call_id`: of which call is it the result?".to_owned());
        }
        let content = match message.content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => match joined(parts) {
                Ok(text) => text,
                Err(other) => return wrong(format!("has a part of the type '{other}'; this model takes text alone")),
            },
            Some(Content::Other(_)) => {
                return wrong("has a `content` that is neither text nor a list of parts".to_owned());
            }
            None if role == Role::Assistant && !given.is_empty() => String::new(),
            None => return wrong("has no `content`".to_owned()),
        };
        let calls = given.into_iter().map(Called::new).collect();
        Ok(Self { role, content, calls, name: message.name, tool_call_id: message.tool_call_id })
    }

    /// As templates take it: with the keys that it has.
    pub(crate) fn value(&self) -> Value {
        let mut pairs = vec![("role", Value::from(self.role.name())), ("content", Value::from(self.content.as_str()))];
        if !self.calls.is_empty() {
            pairs.push(("tool_calls", self.calls.iter().map(Called::value).collect()));
        }
        pairs.extend(self.name.as_deref().map(|name| ("name", Value::from(name))));
        pairs.extend(self.tool_call_id.as_deref().map(|id| ("tool_call_id", Value::from(id))));
        pairs.into_iter().collect()
    }
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

impl Called {
    fn new(call: ToolCall) -> Self {
        let ToolCall { id, function: CalledFunction { name, arguments } } = call;
        // Templates take an object, because they write it in their own way.
        let parsed = arguments.as_str().and_then(|json| serde_json::from_str(json).ok());
        Self { id: id.unwrap_or_default(), name, arguments: parsed.unwrap_or(arguments) }
    }

    fn value(&self) -> Value {
        let function = context! { name => self.name, arguments => self.arguments };
        context! { id => self.id, type => "function", function }
    }
}

/// The texts of all parts, or the type of one that is no text.
fn joined(parts: Vec<Part>) -> Result<String, String> {
    let text = |part: Part| match part {
        Part { r#type, text: Some(text) } if r#type == "text" => Ok(text),
        part => Err(part.r#type),
    };
    Ok(parts.into_iter().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(messages: serde_json::Value) -> Result<Vec<Turn>, Error> {
        turns(serde_json::from_value(messages).unwrap())
    }

    #[test]
    fn every_role_and_form_of_content_is_read() {
        let parts = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }]);
        let call = json!({ "id": "call_1", "type": "function", "function": { "name": "f", "arguments": "{\"z\":1,\"a\":[]}" } });
        let turns = read(json!([
            { "role": "developer", "content": "Be brief." },
            { "role": "user", "content": parts, "name": "Eva" },
            { "role": "assistant", "content": null, "tool_calls": [call] },
            { "role": "tool", "content": "7", "tool_call_id": "call_1" },
        ]))
        .unwrap();
        let values: Vec<String> = turns.iter().map(|turn| serde_json::to_string(&turn.value()).unwrap()).collect();
        assert_eq!(
            values,
            [
                r#"{"role":"system","content":"Be brief."}"#,
                r#"{"role":"user","content":"a\nb","name":"Eva"}"#,
                r#"{"role":"assistant","content":"","tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":{"z":1,"a":[]}}}]}"#,
                r#"{"role":"tool","content":"7","tool_call_id":"call_1"}"#,
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let image = json!([{ "type": "text", "text": "a" }, { "type": "image_url", "image_url": { "url": "x" } }]);
        let call = json!({ "function": { "name": "f" } });
        for (message, reason) in [
            (json!({ "role": "robot", "content": "a" }), "the role 'robot'"),
            (json!({ "role": "user" }), "has no `content`"),
            (json!({ "role": "user", "content": null }), "has no `content`"),
            (json!({ "role": "assistant", "tool_calls": [] }), "has no `content`"),
            (json!({ "role": "user", "content": 7 }), "neither text nor a list"),
            (json!({ "role": "user", "content": image }), "part of the type 'image_url'"),
            (json!({ "role": "user", "content": "a", "tool_calls": [call] }), "only the assistant makes"),
            (json!({ "role": "assistant", "content": "a", "function_call": {} }), "use `tool_calls`"),
            (json!({ "role": "tool", "content": "a" }), "has no `tool_call_id`"),
        ] {
            let error = read(json!([{ "role": "user", "content": "x" }, message])).unwrap_err();
            assert!(error.message.starts_with("`messages[1]` ") && error.message.contains(reason), "{error}");
        }
        assert!(read(json!([])).unwrap_err().message.contains("empty list"));
    }
}
