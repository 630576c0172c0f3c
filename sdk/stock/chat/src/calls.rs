//! Finds the calls of tools in what a model writes, in the ways that models have been taught.

use minijinja::context;
use minijinja::value::{Value, ValueKind};
use serde::Deserialize;

/// How a model writes a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syntax {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`, anywhere: Hermes, Qwen and most others.
    Tags,
    /// The whole answer is JSON, one object or several, perhaps after `<|python_tag|>`: Llama 3.
    Objects,
    /// A list of such objects after `[TOOL_CALLS]`: Mistral.
    List,
    /// `name[ARGS]{…}`, each after `[TOOL_CALLS]`: newer Mistral.
    Named,
}

const OPENS: &str = "<tool_call>";
const CLOSES: &str = "</tool_call>";
const CALLS_MARK: &str = "[TOOL_CALLS]";
/// Between a call's name and its number, which is not read.
const NUMBER_MARK: &str = "[CALL_ID]";
const ARGUMENTS_MARK: &str = "[ARGS]";

/// A call in tags, as a model reads those of earlier messages that was told of no other form.
pub(crate) fn in_tags(name: &str, arguments: &Value) -> String {
    let json = serde_json::to_string(&context! { name, arguments }).unwrap_or_default();
    format!("{OPENS}\n{json}\n{CLOSES}")
}

impl Syntax {
    /// The syntax in which a template writes the calls of earlier messages.
    pub(crate) fn of_template(source: &str) -> Self {
        if source.contains(CALLS_MARK) && source.contains(ARGUMENTS_MARK) {
            Self::Named
        } else if source.contains(CALLS_MARK) {
            Self::List
        } else if !source.contains(OPENS) && source.contains("<|start_header_id|>") {
            Self::Objects
        } else {
            Self::Tags
        }
    }

    /// What may stand before a call: often a special token, which has no text.
    fn mark(self) -> &'static str {
        match self {
            Self::Tags => OPENS,
            Self::Objects => "<|python_tag|>",
            Self::List | Self::Named => CALLS_MARK,
        }
    }

    /// The calls in a text that is nothing else.
    fn read(self, text: &str) -> Option<Vec<Call>> {
        match self {
            Self::Named => read_named(text),
            _ => read_objects(text),
        }
    }
}

/// A call that a model makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// JSON.
    pub(crate) arguments: String,
}

/// What of a piece of text is for the user, and which calls it completes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) content: String,
    pub(crate) calls: Vec<Call>,
}

/// Reads what a model writes, piece by piece. Text that may be part of a call is held back until it is clear.
#[derive(Debug, Clone)]
pub(crate) enum Listener {
    /// All is text.
    Deaf,
    /// There may be calls, of which these names are known.
    Open { syntax: Syntax, names: Vec<String>, state: State, held: String },
    /// All of it is one call, by a grammar.
    Demanded { held: String },
}

/// Where in the text of an open listener the end of it is.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// Nothing but blanks so far.
    Start,
    /// In text.
    Text,
    /// In what may be a call, behind its mark and the blanks before that: text, too, if it turns out to be none.
    Call { prefix: String },
}

impl Listener {
    /// One for a model that may call these functions.
    pub(crate) fn open(syntax: Syntax, names: Vec<String>) -> Self {
        Self::Open { syntax, names, state: State::Start, held: String::new() }
    }

    /// The next piece.
    pub(crate) fn hear(&mut self, text: String) -> Heard {
        match self {
            Self::Deaf => Heard { content: text, calls: Vec::new() },
            Self::Demanded { held } => {
                held.push_str(&text);
                Heard::default()
            }
            Self::Open { syntax, names, state, held } => {
                held.push_str(&text);
                let mut heard = Heard::default();
                while step(*syntax, names, state, held, &mut heard) {}
                heard
            }
        }
    }

    /// There is no more.
    pub(crate) fn end(&mut self) -> Heard {
        match self {
            Self::Deaf => Heard::default(),
            // What was cut off is no call.
            Self::Demanded { held } => match read_objects(held) {
                Some(calls) => Heard { content: String::new(), calls },
                None => Heard { content: std::mem::take(held), calls: Vec::new() },
            },
            Self::Open { syntax, names, state, held } => {
                let rest = std::mem::take(held);
                let known = |calls: &Vec<Call>| {
                    // Text that happens to be JSON is no call.
                    *syntax == Syntax::Tags || calls.iter().all(|call| names.contains(&call.name))
                };
                match state {
                    // Blanks after a call are its own.
                    State::Start if rest.trim().is_empty() => Heard::default(),
                    State::Start | State::Text => Heard { content: rest, calls: Vec::new() },
                    State::Call { prefix } => match syntax.read(&rest).filter(known) {
                        Some(calls) => Heard { content: String::new(), calls },
                        None => Heard { content: std::mem::take(prefix) + &rest, calls: Vec::new() },
                    },
                }
            }
        }
    }
}

/// Goes on in what is held by one step, and says whether there may be another.
fn step(syntax: Syntax, names: &[String], state: &mut State, held: &mut String, heard: &mut Heard) -> bool {
    let mark = syntax.mark();
    match state {
        State::Start => {
            let text = held.trim_start();
            let may_be_mark = mark.starts_with(text);
            let begins_call = match syntax {
                Syntax::Tags => Some(false),
                Syntax::Objects => Some(text.starts_with('{')),
                Syntax::List => Some(text.starts_with(['[', '{']) && !may_be_mark && !text.starts_with(mark)),
                Syntax::Named => begins_named(text, names),
            };
            if begins_call == Some(true) {
                *state = State::Call { prefix: String::new() };
                return false;
            }
            if may_be_mark || begins_call.is_none() {
                return false;
            }
            *state = State::Text;
            true
        }
        State::Text => match held.find(mark) {
            Some(at) => {
                let text = held[..at].trim_end().len();
                let after = held.split_off(at + mark.len());
                let prefix = held.split_off(text);
                heard.content.push_str(&std::mem::replace(held, after));
                *state = State::Call { prefix };
                true
            }
            None => {
                let sure = sure_bytes(held, mark);
                heard.content.extend(held.drain(..sure));
                false
            }
        },
        State::Call { prefix } => match held.find(CLOSES) {
            Some(at) if syntax == Syntax::Tags => {
                let after = held.split_off(at + CLOSES.len());
                let closed = std::mem::replace(held, after);
                *state = match read_objects(&closed[..at]) {
                    Some(calls) => {
                        heard.calls.extend(calls);
                        State::Start
                    }
                    None => {
                        heard.content.extend([prefix.as_str(), &closed]);
                        State::Text
                    }
                };
                true
            }
            // To the end of the answer, or of the tag.
            _ => false,
        },
    }
}

/// How much of a text is certainly no part of a mark, nor the blanks before one.
fn sure_bytes(text: &str, mark: &str) -> usize {
    let begun = (1..mark.len()).rev().find(|&bytes| text.ends_with(&mark[..bytes])).unwrap_or(0);
    text[..text.len() - begun].trim_end().len()
}

/// Whether a text begins with a call of one of these functions by its name; none while it may yet.
fn begins_named(text: &str, names: &[String]) -> Option<bool> {
    let marks = ["{", ARGUMENTS_MARK, NUMBER_MARK];
    let mut may = false;
    for name in names {
        if let Some(rest) = text.strip_prefix(name.as_str()) {
            if marks.iter().any(|mark| rest.starts_with(mark)) {
                return Some(true);
            }
            may |= marks.iter().any(|mark| mark.starts_with(rest));
        }
        may |= name.starts_with(text);
    }
    (!may).then_some(false)
}

/// Reads calls by name, one after the other. None if anything else is there.
fn read_named(text: &str) -> Option<Vec<Call>> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        rest = rest.strip_prefix(CALLS_MARK).unwrap_or(rest);
        let (name, after) = rest.split_at(rest.find(['[', '{'])?);
        let arguments = &after[after.find('{')?..];
        let between = after[..after.len() - arguments.len()].trim();
        let is_marks = between.is_empty() || between == ARGUMENTS_MARK || between.starts_with(NUMBER_MARK);
        if name.trim().is_empty() || !is_marks {
            return None;
        }
        let mut values = serde_json::Deserializer::from_str(arguments).into_iter::<Value>();
        let value = values.next()?.ok()?;
        calls.push(Call { name: name.trim().to_owned(), arguments: serde_json::to_string(&value).ok()? });
        rest = arguments[values.byte_offset()..].trim_start();
    }
    (!calls.is_empty()).then_some(calls)
}

/// Reads calls: one object, several one after the other, perhaps with `;` between them, or a list of them. None if
/// anything else is there.
fn read_objects(text: &str) -> Option<Vec<Call>> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let value = values.next()?.ok()?;
        let read = values.byte_offset();
        match value.kind() {
            ValueKind::Seq => {
                calls.extend(value.try_iter().ok()?.map(|call| Call::read(&call)).collect::<Option<Vec<_>>>()?)
            }
            _ => calls.push(Call::read(&value)?),
        }
        rest = rest[read..].trim_start_matches(|c: char| c == ';' || c.is_whitespace());
    }
    (!calls.is_empty()).then_some(calls)
}

impl Call {
    fn read(value: &Value) -> Option<Self> {
        #[derive(Deserialize)]
        struct Written {
            name: String,
            #[serde(alias = "parameters")]
            arguments: Option<Value>,
        }
        let Written { name, arguments } = Written::deserialize(value.clone()).ok()?;
        let arguments = match arguments {
            None => "{}".to_owned(),
            // JSON in a string, as in the API.
            Some(arguments) => match arguments.as_str() {
                Some(json) => json.to_owned(),
                None => serde_json::to_string(&arguments).ok()?,
            },
        };
        Some(Self { name, arguments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, arguments: &str) -> Call {
        Call { name: name.to_owned(), arguments: arguments.to_owned() }
    }

    /// What comes of a text, and that it is the same however the text is cut.
    fn heard(make: impl Fn() -> Listener, text: &str) -> Heard {
        let all: Vec<Heard> = (1..=text.len().max(1))
            .map(|piece_chars| {
                let mut listener = make();
                let mut heard = Heard::default();
                let characters: Vec<char> = text.chars().collect();
                let pieces = characters.chunks(piece_chars).map(|piece| piece.iter().collect::<String>());
                let mut add = |more: Heard| {
                    heard.content.push_str(&more.content);
                    heard.calls.extend(more.calls);
                };
                pieces.for_each(|piece| add(listener.hear(piece)));
                add(listener.end());
                heard
            })
            .collect();
        assert!(all.iter().all(|heard| *heard == all[0]), "{all:?}");
        all.into_iter().next().unwrap()
    }

    fn open(syntax: Syntax, text: &str) -> Heard {
        heard(|| Listener::open(syntax, vec!["f".to_owned(), "g".to_owned()]), text)
    }

    fn only(calls: &[Call]) -> Heard {
        Heard { content: String::new(), calls: calls.to_vec() }
    }

    fn text(content: &str) -> Heard {
        Heard { content: content.to_owned(), calls: Vec::new() }
    }

    #[test]
    fn calls_in_tags() {
        let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"z\": 1, \"a\": \"é</b>\"}}\n</tool_call>";
        let called = call("f", r#"{"z":1,"a":"é</b>"}"#);
        assert_eq!(open(Syntax::Tags, one), only(std::slice::from_ref(&called)));
        let several = format!("Let me see.\n{one}\n<tool_call>{{\"name\": \"g\"}}</tool_call>\n");
        let heard = open(Syntax::Tags, &several);
        assert_eq!((heard.content.as_str(), heard.calls), ("Let me see.", vec![called, call("g", "{}")]));
        let after_another =
            open(Syntax::Tags, "a\n<tool_call>b</tool_call>\n<tool_call>{\"name\": \"g\"}</tool_call>\n");
        let told = "a\n<tool_call>b</tool_call>";
        assert_eq!((after_another.content.as_str(), after_another.calls), (told, vec![call("g", "{}")]));
        let unclosed = open(Syntax::Tags, "<tool_call>{\"name\": \"f\", \"arguments\": \"{}\"}");
        assert_eq!(unclosed, only(&[call("f", "{}")]));
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for plain in [
            "2 < 3 <tool",
            " a\n\n b <tool_cal> ",
            "<tool_call>not json</tool_call> after",
            "<tool_call>{\"name\": ",
            "<tool_call>{\"arguments\": {}}</tool_call>",
            "a\n\n<tool_call>not json</tool_call>\n\n",
            "\n<tool_call>not json</tool_call> <tool_call>\n",
            "a\n <tool_call>",
        ] {
            assert_eq!(open(Syntax::Tags, plain), text(plain));
        }
        for plain in ["{\"name\": \"unknown\"}", "{\"a\": 1}", "{ no json", "Well, {\"name\": \"f\"}"] {
            assert_eq!(open(Syntax::Objects, plain), text(plain));
        }
        for plain in ["See\n<|python_tag|>print(1)\n", "<|python_tag|>{\"name\": \"unknown\"}", "<|python_tag|>"] {
            assert_eq!(open(Syntax::Objects, plain), text(plain));
        }
        for plain in ["[1, 2] are numbers", "[TOOL", "So\n[TOOL_CALLS]", "[TOOL_CALLS][{\"name\": \"unknown\"}]"] {
            assert_eq!(open(Syntax::List, plain), text(plain));
        }
        for syntax in [Syntax::List, Syntax::Named] {
            let told = "The token [TOOL_CALLS] starts a call.";
            assert_eq!(open(syntax, told), text(told));
        }
        assert_eq!(heard(|| Listener::Deaf, "<tool_call>"), text("<tool_call>"));
    }

    #[test]
    fn calls_as_objects() {
        let one = "{\"name\": \"f\", \"parameters\": {\"a\": [1]}}";
        assert_eq!(open(Syntax::Objects, one), only(&[call("f", r#"{"a":[1]}"#)]));
        let several = format!("<|python_tag|>{one}; {{\"name\": \"g\", \"parameters\": {{}}}}");
        assert_eq!(open(Syntax::Objects, &several), only(&[call("f", r#"{"a":[1]}"#), call("g", "{}")]));
    }

    #[test]
    fn calls_as_a_list() {
        let list = "[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": {\"b\": null}}]";
        let calls = [call("f", "{}"), call("g", r#"{"b":null}"#)];
        assert_eq!(open(Syntax::List, list), only(&calls));
        assert_eq!(open(Syntax::List, &format!("[TOOL_CALLS] {list}")), only(&calls));
        let after_text = open(Syntax::List, &format!("So: [TOOL_CALLS]{list}"));
        assert_eq!((after_text.content.as_str(), after_text.calls.len()), ("So:", 2));
    }

    #[test]
    fn calls_by_name() {
        let calls = [call("f", r#"{"a":"}[ARGS]"}"#), call("g", "{}")];
        for written in [
            // The marks are tokens without text.
            "f{\"a\": \"}[ARGS]\"}g{}",
            "[TOOL_CALLS]f[ARGS]{\"a\": \"}[ARGS]\"}[TOOL_CALLS]g[ARGS]{}",
            "[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{\"a\": \"}[ARGS]\"}\n[TOOL_CALLS] g[ARGS] {}",
        ] {
            assert_eq!(open(Syntax::Named, written), only(&calls), "{written}");
        }
        let after_text = open(Syntax::Named, "So: [TOOL_CALLS]g[ARGS]{}");
        assert_eq!((after_text.content.as_str(), after_text.calls), ("So:", vec![call("g", "{}")]));
        for plain in [
            "f is a function",
            "f",
            "f{ no json",
            "unknown[ARGS]{}",
            "f[1]",
            "[TOOL_CALLS",
            "",
            "go{}",
            "f{} and g",
            "So: [TOOL_CALLS]unknown[ARGS]{}",
        ] {
            assert_eq!(open(Syntax::Named, plain), text(plain));
        }
    }

    #[test]
    fn a_demanded_call_is_all_of_the_answer() {
        let demanded = |text: &str| heard(|| Listener::Demanded { held: String::new() }, text);
        assert_eq!(demanded(" {\"name\": \"f\", \"arguments\": {\"a\": 1}}"), only(&[call("f", r#"{"a":1}"#)]));
        assert_eq!(demanded("{\"name\": \"f\", \"argu"), text("{\"name\": \"f\", \"argu"));
    }

    #[test]
    fn the_template_tells_the_syntax() {
        assert_eq!(Syntax::of_template("{{ '[TOOL_CALLS]' }}"), Syntax::List);
        assert_eq!(Syntax::of_template("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}"), Syntax::Named);
        assert_eq!(Syntax::of_template("<|start_header_id|>"), Syntax::Objects);
        assert_eq!(Syntax::of_template("<|start_header_id|><tool_call>"), Syntax::Tags);
        assert_eq!(Syntax::of_template("<|im_start|>"), Syntax::Tags);
    }
}
