//! The tools that a request declares: how the model learns of them, and how it is held to calling one.

use minijinja::value::{Value, ValueKind};
use serde::Deserialize;
use serde_json::json;
use tessera_sdk::Error;

use crate::calls::in_tags;
use crate::messages::{Role, Turn};

/// As many as OpenAI takes.
const TOOLS_MAX: usize = 128;

/// As a request declares it. Keys that are not listed, `strict` among them, are ignored: arguments always follow the
/// schema where a call is demanded.
#[derive(Debug, Deserialize)]
pub(crate) struct Tool {
    r#type: String,
    function: Option<Function>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
}

/// `tool_choice` as it is sent.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum ToolChoice {
    Word(String),
    Named { function: NamedFunction },
    Other(serde::de::IgnoredAny),
}

#[derive(Debug, Deserialize)]
pub(crate) struct NamedFunction {
    name: String,
}

/// The tools of a request, and what is to become of them.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    functions: Vec<Function>,
    pub(crate) demand: Demand,
}

/// Whether the model is to call.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) enum Demand {
    /// It may not.
    #[default]
    None,
    /// As it likes.
    Auto,
    /// It must: any function, or the one at this place.
    Required(Option<usize>),
}

impl Tools {
    /// Checks what a request says of tools.
    pub(crate) fn new(tools: Option<Vec<Tool>>, choice: Option<ToolChoice>) -> Result<Self, Error> {
        let tools = tools.unwrap_or_default();
        if tools.len() > TOOLS_MAX {
            let given = tools.len();
            return Err(Error::invalid_input(format!("`tools` has {given} entries; at most {TOOLS_MAX} are allowed")));
        }
        let functions = tools.into_iter().enumerate().map(|(index, tool)| Function::new(index, tool));
        let functions: Vec<Function> = functions.collect::<Result<_, _>>()?;
        let demand = match choice {
            None if functions.is_empty() => Demand::None,
            None => Demand::Auto,
            Some(ToolChoice::Word(word)) => match word.as_str() {
                "none" => Demand::None,
                "auto" if functions.is_empty() => Demand::None,
                "auto" => Demand::Auto,
                "required" | "any" => Demand::Required(None),
                other => return Err(unknown_choice(&format!("'{other}'"))),
            },
            Some(ToolChoice::Named { function }) => {
                let place = functions.iter().position(|known| known.name == function.name);
                let missing = || format!("`tool_choice` names '{}', which is not in `tools`", function.name);
                Demand::Required(Some(place.ok_or_else(|| Error::invalid_input(missing()))?))
            }
            Some(ToolChoice::Other(_)) => return Err(unknown_choice("no such thing")),
        };
        if demand == Demand::Required(None) && functions.is_empty() {
            return Err(Error::invalid_input("`tool_choice` demands a call, but `tools` has no function to call"));
        }
        Ok(Self { functions, demand })
    }

    /// The names of the functions.
    pub(crate) fn names(&self) -> Vec<String> {
        self.functions.iter().map(|function| function.name.clone()).collect()
    }

    /// As templates take them; none where the model may not call.
    pub(crate) fn values(&self) -> Vec<Value> {
        match self.demand {
            Demand::None => Vec::new(),
            _ => self.functions.iter().map(Function::value).collect(),
        }
    }

    /// A schema that only calls follow, where one is demanded.
    pub(crate) fn schema(&self) -> Option<String> {
        let Demand::Required(place) = self.demand else { return None };
        let mut definitions = Vec::new();
        let allowed = self.functions.iter().enumerate().filter(|(index, _)| place.is_none_or(|place| place == *index));
        let calls: Vec<Value> =
            allowed.map(|(index, function)| function.call_schema(index, &mut definitions)).collect();
        let mut root = match calls.as_slice() {
            [call] => pairs(call),
            _ => vec![("anyOf".to_owned(), Value::from(calls))],
        };
        if !definitions.is_empty() {
            root.push(("$defs".to_owned(), definitions.into_iter().collect()));
        }
        serde_json::to_string(&root.into_iter().collect::<Value>()).ok()
    }
}

impl Function {
    fn new(index: usize, tool: Tool) -> Result<Self, Error> {
        let wrong = |what: &str| Err(Error::invalid_input(format!("`tools[{index}]` {what}")));
        match tool.function {
            Some(function) if tool.r#type == "function" => match function.parameters.as_ref().map(Value::kind) {
                _ if function.name.is_empty() => wrong("has an empty name"),
                None | Some(ValueKind::Map | ValueKind::None) => Ok(function),
                Some(_) => wrong("has `parameters` that are no JSON schema: it must be an object"),
            },
            _ => wrong("is no function: it must have the type 'function' and a `function`"),
        }
    }

    fn value(&self) -> Value {
        let mut function = vec![("name", Value::from(self.name.as_str()))];
        function.extend(self.description.as_deref().map(|text| ("description", Value::from(text))));
        function.extend(self.parameters.clone().map(|schema| ("parameters", schema)));
        let function: Value = function.into_iter().collect();
        [("type", Value::from("function")), ("function", function)].into_iter().collect()
    }

    /// The schema of a call of this function. If its own schema refers to parts of itself by `#/…` it becomes a definition,
    /// and what it refers to is looked for there: other functions have definitions of the same names.
    fn call_schema(&self, index: usize, definitions: &mut Vec<(String, Value)>) -> Value {
        let object = || Value::from_serialize(json!({ "type": "object" }));
        let own = self.parameters.clone().filter(|schema| !schema.is_none()).unwrap_or_else(object);
        let (name, mut refers) = (format!("tool_{index}"), false);
        let place = format!("#/$defs/{name}");
        let moved = moved(&own, &place, &mut refers);
        let arguments = match refers {
            false => own,
            true => {
                // What it calls itself would be another beginning for `#`.
                definitions.push((name, pairs(&moved).into_iter().filter(|(key, _)| key != "$id").collect()));
                [("$ref", Value::from(place))].into_iter().collect()
            }
        };
        let name: Value = [("const", Value::from(self.name.as_str()))].into_iter().collect();
        let properties = [("name", name), ("arguments", arguments)];
        let schema = [
            ("type", Value::from("object")),
            ("properties", properties.into_iter().collect()),
            ("required", Value::from(vec!["name", "arguments"])),
            ("additionalProperties", Value::from(false)),
        ];
        schema.into_iter().collect()
    }
}

/// The keys and values of an object.
fn pairs(object: &Value) -> Vec<(String, Value)> {
    let keys = object.try_iter().into_iter().flatten();
    keys.filter_map(|key| Some((key.as_str()?.to_owned(), object.get_item(&key).ok()?))).collect()
}

/// A schema that lies at `place` instead of the top; `refers` if that makes a difference.
fn moved(schema: &Value, place: &str, refers: &mut bool) -> Value {
    match schema.kind() {
        ValueKind::Map => {
            let moved = pairs(schema).into_iter().map(|(key, value)| {
                let reference = value.as_str().filter(|text| key == "$ref" && (*text == "#" || text.starts_with("#/")));
                let value = match reference {
                    Some(reference) => {
                        *refers = true;
                        Value::from(format!("{place}{}", &reference[1..]))
                    }
                    None => moved(&value, place, refers),
                };
                (key, value)
            });
            moved.collect()
        }
        ValueKind::Seq => {
            schema.try_iter().into_iter().flatten().map(|item| moved(&item, place, refers)).collect::<Vec<_>>().into()
        }
        _ => schema.clone(),
    }
}

fn unknown_choice(given: &str) -> Error {
    Error::invalid_input(format!(
        "`tool_choice` is {given}; it must be 'none', 'auto', 'required' or \
         {{\"type\": \"function\", \"function\": {{\"name\": …}}}}"
    ))
}

/// For a template that knows nothing of tools: they are described in the system message, in the words that most models
/// with tools have seen, and calls and results become text.
pub(crate) fn as_text(turns: Vec<Turn>, tools: &[Value]) -> Vec<Turn> {
    let mut turns: Vec<Turn> = turns.into_iter().map(said).collect();
    if tools.is_empty() {
        return turns;
    }
    let described: Vec<String> = tools.iter().map(|tool| serde_json::to_string(tool).unwrap_or_default()).collect();
    let text = format!(
        "You may call functions to help the user. They are described in <tools></tools>, one per line:\n\
         <tools>\n{}\n</tools>\n\
         To call one, answer with its name and arguments as JSON in <tool_call></tool_call>:\n\
         <tool_call>\n{{\"name\": <the function's name>, \"arguments\": <an object>}}\n</tool_call>",
        described.join("\n")
    );
    match turns.first_mut() {
        Some(Turn { role: Role::System, content, .. }) => *content = format!("{content}\n\n{text}"),
        _ => turns.insert(0, Turn::new_text(Role::System, text)),
    }
    turns
}

/// What a turn says, if calls and results are text.
fn said(turn: Turn) -> Turn {
    match turn.role {
        Role::Tool => {
            let text = format!("<tool_response>\n{}\n</tool_response>", turn.content);
            Turn::new_text(Role::User, text)
        }
        Role::Assistant if !turn.calls.is_empty() => {
            let calls = turn.calls.iter().map(|call| in_tags(&call.name, &call.arguments));
            let parts: Vec<String> =
                Some(turn.content.clone()).into_iter().filter(|text| !text.is_empty()).chain(calls).collect();
            Turn::new_text(Role::Assistant, parts.join("\n"))
        }
        _ => turn,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tools(tools: serde_json::Value, choice: serde_json::Value) -> Result<Tools, Error> {
        let choice = serde_json::from_value::<Option<ToolChoice>>(choice).unwrap();
        Tools::new(serde_json::from_value(tools).unwrap(), choice)
    }

    fn two() -> serde_json::Value {
        let place = r##"{"type":"object","$defs":{"p":{"type":"string"}},"properties":{"to":{"$ref":"#/$defs/p"},"at":{"type":"integer"}}}"##;
        let place: serde_json::Value = serde_json::from_str(place).unwrap();
        json!([
            { "type": "function", "function": { "name": "go", "description": "Goes.", "parameters": place, "strict": true } },
            { "type": "function", "function": { "name": "stop" } },
        ])
    }

    #[test]
    fn the_choice_decides_what_the_model_sees() {
        assert_eq!(tools(two(), json!(null)).unwrap().demand, Demand::Auto);
        assert_eq!(tools(json!(null), json!("auto")).unwrap().demand, Demand::None);
        let none = tools(two(), json!("none")).unwrap();
        assert!(none.demand == Demand::None && none.values().is_empty());
        let named = tools(two(), json!({ "type": "function", "function": { "name": "stop" } })).unwrap();
        assert_eq!((named.demand.clone(), named.values().len()), (Demand::Required(Some(1)), 2));
        assert_eq!(named.names(), ["go", "stop"]);
    }

    #[test]
    fn a_demanded_call_has_a_schema() {
        assert_eq!(tools(two(), json!("auto")).unwrap().schema(), None);
        let named = tools(two(), json!({ "function": { "name": "stop" } })).unwrap().schema().unwrap();
        let stop = r#"{"type":"object","properties":{"name":{"const":"stop"},"arguments":{"type":"object"}},"required":["name","arguments"],"additionalProperties":false}"#;
        assert_eq!(named, stop);
        let any: serde_json::Value =
            serde_json::from_str(&tools(two(), json!("required")).unwrap().schema().unwrap()).unwrap();
        assert_eq!(any["anyOf"][1].to_string(), serde_json::from_str::<serde_json::Value>(stop).unwrap().to_string());
        assert_eq!(any["anyOf"][0]["properties"]["arguments"]["$ref"], "#/$defs/tool_0");
        assert_eq!(any["$defs"]["tool_0"]["properties"]["to"]["$ref"], "#/$defs/tool_0/$defs/p");
    }

    #[test]
    fn definitions_of_one_name_stay_apart() {
        let tool = |name: &str, r#type: &str| {
            let parameters = json!({
                "type": "object", "$id": "https://example.com/x",
                "properties": { "p": { "$ref": "#/$defs/p" }, "q": [{ "$ref": "#/properties/p" }], "r": { "$ref": "#" } },
                "$defs": { "p": { "type": r#type } },
            });
            json!({ "type": "function", "function": { "name": name, "parameters": parameters } })
        };
        let list = json!([tool("a", "string"), tool("b", "integer")]);
        let schema = tools(list, json!("required")).unwrap().schema().unwrap();
        let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
        for (index, r#type) in ["string", "integer"].into_iter().enumerate() {
            let arguments = &schema["anyOf"][index]["properties"]["arguments"]["$ref"];
            let at = |reference: &serde_json::Value| schema.pointer(&reference.as_str().unwrap()[1..]).unwrap().clone();
            let own = at(arguments);
            assert_eq!(at(&own["properties"]["p"]["$ref"])["type"], r#type);
            assert_eq!(at(&own["properties"]["q"][0]["$ref"]), own["properties"]["p"]);
            assert!(at(&own["properties"]["r"]["$ref"]) == own && own.get("$id").is_none());
        }
    }

    #[test]
    fn the_order_of_keys_stays() {
        let schema = r#"{"type":"object","properties":{"z":{},"a":{}}}"#;
        let tool = format!(r#"[{{"type":"function","function":{{"name":"f","parameters":{schema}}}}}]"#);
        let tools = Tools::new(serde_json::from_str(&tool).unwrap(), Some(ToolChoice::Word("required".to_owned())));
        assert!(tools.unwrap().schema().unwrap().contains(schema));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (list, choice, reason) in [
            (json!([{ "type": "web_search" }]), json!(null), "`tools[0]` is no function"),
            (json!([{ "type": "function", "function": { "name": "" } }]), json!(null), "empty name"),
            (
                json!([{ "type": "function", "function": { "name": "f", "parameters": [] } }]),
                json!(null),
                "no JSON schema",
            ),
            (two(), json!("always"), "`tool_choice` is 'always'"),
            (two(), json!(7), "`tool_choice` is no such thing"),
            (two(), json!({ "function": { "name": "fly" } }), "names 'fly'"),
            (json!([]), json!("required"), "no function to call"),
            (json!(vec![two()[1].clone(); 129]), json!(null), "129 entries"),
        ] {
            let error = tools(list, choice).unwrap_err();
            assert!(error.message.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_template_without_tools_gets_them_as_text() {
        let messages = json!([
            { "role": "user", "content": "Go!" },
            { "role": "assistant", "tool_calls": [{ "id": "1", "function": { "name": "go", "arguments": "{\"at\":1}" } }] },
            { "role": "tool", "content": "done", "tool_call_id": "1" },
        ]);
        let turns = crate::messages::turns(serde_json::from_value(messages).unwrap()).unwrap();
        let turns = as_text(turns, &tools(two(), json!(null)).unwrap().values());
        let said: Vec<(Role, &str)> = turns.iter().map(|turn| (turn.role, turn.content.as_str())).collect();
        assert!(said[0].0 == Role::System && said[0].1.contains(r#"{"type":"function","function":{"name":"stop"}}"#));
        assert_eq!(said[2], (Role::Assistant, "<tool_call>\n{\"name\":\"go\",\"arguments\":{\"at\":1}}\n</tool_call>"));
        assert_eq!(said[3], (Role::User, "<tool_response>\ndone\n</tool_response>"));
    }
}
