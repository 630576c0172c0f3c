//! GBNF, llama.cpp's notation for grammars, in Lark's, which llguidance reads.
//!
//! Rules that never lead back to themselves become regular expressions, which are matched exactly, however they are
//! written. Others become rules over those: where one of their parts could end early or go on, it goes on, as in a lexer.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;

/// Deepest nesting of brackets, which are read by a function that calls itself.
const DEPTH_MAX: usize = 128;

/// Most times that something can be asked for again.
const TIMES_MAX: u32 = 10_000;

/// Writes a grammar in Lark.
///
/// # Errors
/// Which line is no GBNF, and why.
pub(super) fn to_lark(text: &str) -> Result<String, String> {
    let mut reader = Reader { text, at: 0, rules: Vec::new(), names: HashMap::new() };
    reader.grammar().map_err(|error| {
        let line = text[..reader.at].bytes().filter(|&byte| byte == b'\n').count() + 1;
        format!("line {line}: {error}")
    })?;
    let root = *reader.names.get("root").ok_or("there is no rule 'root'")?;
    Ok(Writer::new(&reader.rules).write(root))
}

/// A rule, or a bracket.
#[derive(Default)]
struct Rule {
    name: String,
    /// None while it was only named.
    alternatives: Option<Vec<Vec<Item>>>,
}

struct Item {
    what: What,
    times_min: u32,
    times_max: Option<u32>,
}

enum What {
    /// A regular expression, which matches one character at least.
    Text(String),
    /// Index of a rule.
    Rule(usize),
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
    rules: Vec<Rule>,
    names: HashMap<String, usize>,
}

impl<'t> Reader<'t> {
    fn grammar(&mut self) -> Result<(), String> {
        self.skip(true);
        while self.peek().is_some() {
            let name = self.name().ok_or("expected the name of a rule")?;
            self.skip(false);
            if !self.eat("::=") {
                return Err(format!("expected '::=' after '{name}'"));
            }
            self.skip(true);
            let alternatives = self.alternatives(0)?;
            let rule = self.rule(name);
            if self.rules[rule].alternatives.replace(alternatives).is_some() {
                return Err(format!("the rule '{name}' is there twice"));
            }
            match self.peek() {
                None | Some('\n' | '\r') => self.skip(true),
                Some(other) => return Err(format!("unexpected '{other}'")),
            }
        }
        match self.rules.iter().find(|rule| rule.alternatives.is_none()) {
            Some(missing) => Err(format!("there is no rule '{}'", missing.name)),
            None => Ok(()),
        }
    }

    fn rule(&mut self, name: &str) -> usize {
        if let Some(&index) = self.names.get(name) {
            return index;
        }
        self.rules.push(Rule { name: name.to_owned(), alternatives: None });
        self.names.insert(name.to_owned(), self.rules.len() - 1);
        self.rules.len() - 1
    }

    fn alternatives(&mut self, depth: usize) -> Result<Vec<Vec<Item>>, String> {
        if depth > DEPTH_MAX {
            return Err(format!("brackets are nested more than {DEPTH_MAX} deep"));
        }
        let mut alternatives = vec![self.sequence(depth)?];
        loop {
            // A rule may go on in a line that begins with a bar.
            let before = self.at;
            self.skip(true);
            if !self.eat("|") {
                self.at = if depth == 0 { before } else { self.at };
                return Ok(alternatives);
            }
            self.skip(true);
            alternatives.push(self.sequence(depth)?);
        }
    }

    fn sequence(&mut self, depth: usize) -> Result<Vec<Item>, String> {
        let mut items = Vec::new();
        loop {
            self.skip(depth > 0);
            let what = match self.peek() {
                Some('"') => self.literal()?,
                Some('[') => Some(What::Text(self.class()?)),
                Some('(') => Some(self.bracket(depth)?),
                Some('.') => {
                    self.at += 1;
                    Some(What::Text("(?s:.)".to_owned()))
                }
                Some('<' | '!') => return Err("tokens (<…>) are not supported: write their text".to_owned()),
                _ => match self.name() {
                    Some(name) => Some(What::Rule(self.rule(name))),
                    None => return Ok(items),
                },
            };
            self.skip(depth > 0);
            let (times_min, times_max) = self.times()?;
            if let Some(what) = what.filter(|_| times_max != Some(0)) {
                items.push(Item { what, times_min, times_max });
            }
        }
    }

    fn bracket(&mut self, depth: usize) -> Result<What, String> {
        self.at += 1;
        let alternatives = self.alternatives(depth + 1)?;
        if !self.eat(")") {
            return Err("expected ')'".to_owned());
        }
        self.rules.push(Rule { name: String::new(), alternatives: Some(alternatives) });
        Ok(What::Rule(self.rules.len() - 1))
    }

    fn times(&mut self) -> Result<(u32, Option<u32>), String> {
        let times = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => {
                self.at += 1;
                let min = self.number()?;
                let max = match self.eat(",") {
                    false => Some(min),
                    true if self.peek() == Some('}') => None,
                    true => Some(self.number()?),
                };
                if self.peek() != Some('}') || max.is_some_and(|max| max < min) {
                    return Err("expected {n}, {n,} or {n,m}".to_owned());
                }
                (min, max)
            }
            _ => return Ok((1, Some(1))),
        };
        self.at += 1;
        Ok(times)
    }

    fn number(&mut self) -> Result<u32, String> {
        let digits = self.while_in(|c| c.is_ascii_digit());
        match digits.parse() {
            Ok(number) if number <= TIMES_MAX => Ok(number),
            _ => Err(format!("expected a number from 0 to {TIMES_MAX}, found '{digits}'")),
        }
    }

    fn name(&mut self) -> Option<&'t str> {
        let name = self.while_in(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        (!name.is_empty()).then_some(name)
    }

    /// A text in quotes; none if it is empty.
    fn literal(&mut self) -> Result<Option<What>, String> {
        self.at += 1;
        let mut regex = String::new();
        while self.peek() != Some('"') {
            push_char(&mut regex, self.char()?);
        }
        self.at += 1;
        Ok((!regex.is_empty()).then_some(What::Text(regex)))
    }

    fn class(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut regex = String::from(if self.eat("^") { "[^" } else { "[" });
        let begin = regex.len();
        while self.peek() != Some(']') {
            let first = self.char()?;
            let range = self.peek() == Some('-') && !self.text[self.at..].starts_with("-]");
            push_char(&mut regex, first);
            if range {
                self.at += 1;
                let last = self.char()?;
                if last < first {
                    return Err(format!("a range ends before it begins: {first:?} to {last:?}"));
                }
                regex.push('-');
                push_char(&mut regex, last);
            }
        }
        self.at += 1;
        if regex.len() == begin {
            return Err("no character is in []".to_owned());
        }
        regex.push(']');
        Ok(regex)
    }

    /// A character, or what is written for one.
    fn char(&mut self) -> Result<char, String> {
        let c = self.peek().ok_or("a text or a class has no end")?;
        self.at += c.len_utf8();
        if c != '\\' {
            return Ok(c);
        }
        let escaped = self.peek().ok_or("a text or a class has no end")?;
        self.at += escaped.len_utf8();
        let digits = match escaped {
            't' => return Ok('\t'),
            'r' => return Ok('\r'),
            'n' => return Ok('\n'),
            '\\' | '"' | '[' | ']' | '-' | '^' => return Ok(escaped),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => return Err(format!("'\\{escaped}' stands for nothing")),
        };
        let code = self.text.get(self.at..self.at + digits).and_then(|code| u32::from_str_radix(code, 16).ok());
        self.at += if code.is_some() { digits } else { 0 };
        code.and_then(char::from_u32)
            .ok_or_else(|| format!("'\\{escaped}' is not followed by a character's {digits} digits"))
    }

    /// Spaces and comments.
    fn skip(&mut self, lines: bool) {
        loop {
            self.while_in(|c| matches!(c, ' ' | '\t') || lines && matches!(c, '\r' | '\n'));
            if self.peek() != Some('#') {
                return;
            }
            self.while_in(|c| !matches!(c, '\r' | '\n'));
        }
    }

    fn while_in(&mut self, is_in: impl Fn(char) -> bool) -> &'t str {
        let rest = &self.text[self.at..];
        let end = rest.find(|c| !is_in(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn eat(&mut self, wanted: &str) -> bool {
        let found = self.text[self.at..].starts_with(wanted);
        self.at += if found { wanted.len() } else { 0 };
        found
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }
}

/// By its number: so nothing that means something in a regular expression, or in Lark, is ever written.
fn push_char(regex: &mut String, c: char) {
    let _ = write!(regex, "\\x{{{:x}}}", u32::from(c));
}

struct Writer<'r> {
    rules: &'r [Rule],
    /// Of rules that are regular expressions: whether no text at all matches, too.
    regular: Vec<Option<bool>>,
    lark: String,
    parts: usize,
}

impl<'r> Writer<'r> {
    /// Finds the rules that are regular expressions: those that name only such.
    fn new(rules: &'r [Rule]) -> Writer<'r> {
        let mut named_by = vec![Vec::new(); rules.len()];
        let mut unknown = vec![0; rules.len()];
        for (index, rule) in rules.iter().enumerate() {
            for item in rule.alternatives.iter().flatten().flatten() {
                if let What::Rule(named) = item.what {
                    named_by[named].push(index);
                    unknown[index] += 1;
                }
            }
        }
        let mut writer = Writer { rules, regular: vec![None; rules.len()], lark: String::new(), parts: 0 };
        let mut known: VecDeque<usize> = (0..rules.len()).filter(|&index| unknown[index] == 0).collect();
        while let Some(index) = known.pop_front() {
            let mut alternatives = rules[index].alternatives.iter().flatten();
            writer.regular[index] = Some(alternatives.any(|items| writer.may_be_empty(items)));
            for &user in &named_by[index] {
                unknown[user] -= 1;
                if unknown[user] == 0 {
                    known.push_back(user);
                }
            }
        }
        writer
    }

    fn may_be_empty(&self, items: &[Item]) -> bool {
        items.iter().all(|item| {
            item.times_min == 0 || matches!(item.what, What::Rule(rule) if self.regular[rule] == Some(true))
        })
    }

    fn write(mut self, root: usize) -> String {
        let start = self.rule(&[Item { what: What::Rule(root), times_min: 1, times_max: Some(1) }]);
        self.line("start", &start);
        for (index, rule) in self.rules.iter().enumerate() {
            let alternatives = rule.alternatives.iter().flatten();
            let alternatives: Vec<String> = match self.regular[index] {
                Some(_) => alternatives.map(|items| self.text(items)).collect(),
                None => alternatives.map(|items| self.rule(items)).collect(),
            };
            self.line(&self.name(index), &alternatives.join(" | "));
        }
        self.lark
    }

    fn line(&mut self, name: &str, text: &str) {
        let _ = writeln!(self.lark, "{name}: {text}");
    }

    /// Lark tells regular expressions from rules by their capitals.
    fn name(&self, rule: usize) -> String {
        format!("{}{rule}", if self.regular[rule].is_some() { 'R' } else { 'r' })
    }

    /// An alternative of a rule that is no regular expression: neighbours in it that are some become one.
    fn rule(&mut self, items: &[Item]) -> String {
        let is_regular = |item: &Item| !matches!(item.what, What::Rule(rule) if self.regular[rule].is_none());
        let chunks = items.chunk_by(|a, b| is_regular(a) && is_regular(b)).map(|chunk| (is_regular(&chunk[0]), chunk));
        let chunks: Vec<(bool, &[Item])> = chunks.collect();
        let part = |(regular, chunk)| if regular { self.part(chunk) } else { self.text(chunk) };
        let parts: Vec<String> = chunks.into_iter().map(part).collect();
        if parts.is_empty() { EMPTY.to_owned() } else { parts.join(" ") }
    }

    /// A regular expression within a rule. One that matches no text, too, may be absent instead.
    fn part(&mut self, items: &[Item]) -> String {
        let name = format!("P{}", self.parts);
        self.parts += 1;
        let text = self.text(items);
        match self.may_be_empty(items) {
            true => {
                self.line(&name, &format!("{text} & /(?s:.)+/"));
                format!("{name}?")
            }
            false => {
                self.line(&name, &text);
                name
            }
        }
    }

    /// One after the other.
    fn text(&self, items: &[Item]) -> String {
        let mut texts = Vec::with_capacity(items.len());
        for Item { what, times_min, times_max } in items {
            let what = match what {
                What::Text(regex) => format!("/{regex}/"),
                What::Rule(rule) => self.name(*rule),
            };
            texts.push(match (times_min, times_max) {
                (1, Some(1)) => what,
                (0, Some(1)) => format!("{what}?"),
                (0, None) => format!("{what}*"),
                (1, None) => format!("{what}+"),
                (min, None) => format!("{what}{{{min},}}"),
                (min, Some(max)) => format!("{what}{{{min},{max}}}"),
            });
        }
        if texts.is_empty() { EMPTY.to_owned() } else { texts.join(" ") }
    }
}

const EMPTY: &str = "\"\"";

#[cfg(test)]
mod tests {
    use llguidance::api::TopLevelGrammar;
    use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv};
    use llguidance::{Matcher, ParserFactory};

    use super::*;

    /// Whether a text, one token a byte, is what a grammar describes.
    fn matches(grammar: &str, text: &str) -> bool {
        let lark = to_lark(grammar).unwrap();
        let tokens: TokEnv = ApproximateTokEnv::single_byte_env();
        let factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &[]).unwrap();
        let mut matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_lark(lark.clone())));
        assert!(!matcher.is_error(), "{:?} of {lark}", matcher.get_error());
        let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
        matcher.try_consume_tokens(&bytes).unwrap() == bytes.len() && matcher.is_accepting().unwrap_or(true)
    }

    #[test]
    fn texts_are_those_of_the_grammar() {
        let json = r##"
            root   ::= object   # as llama.cpp's own example has it
            value  ::= object | array | string | number | ("true" | "false" | "null") ws
            object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
            array  ::= "[" ws (
                value
                ("," ws value)*
            )? "]" ws
            string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
            number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
            ws ::= | " " | "\n" [ \t]{0,20}
        "##;
        let lists = "root ::= item+\nitem ::= \"- \" [^\\r\\n\\u2028]+ \"\\n\"";
        let early = "root ::= \"a\" \"bc\" | \"ab\" \"d\" | [x-z]* \"z!\"";
        let nested = "root ::= \"(\" root \")\" | [0-9]{2,3}\n  | \"\"";
        let tail = "root ::= word | word \", \" root\nword ::= [a-zé]+ \"?\"?";
        for (grammar, yes, no) in [
            (
                json,
                &[r#"{"a": [1, -2.5, {"b": "ü\u00e9"}], "c": null}"#, "{}"][..],
                &["{", "[1]", r#"{"a" 1}"#, r#"{"a":01}"#][..],
            ),
            (lists, &["- one\n", "- one\n- zwei ü\n"], &["", "- \n", "one\n", "- one"]),
            (early, &["abc", "abd", "z!", "xyzz!"], &["ab", "x!", "xy"]),
            (nested, &["((12))", "123", "", "()"], &["((12)", "1", "1234"]),
            (tail, &["a", "né?, b"], &["a,b", "a?, ", "?"]),
            ("root ::= \"a\"{0} \"b\"{2,} .", &["bbx", "bbbü"], &["abb", "b"]),
        ] {
            for text in yes {
                assert!(matches(grammar, text), "{text} and {grammar}");
            }
            for text in no {
                assert!(!matches(grammar, text), "{text} and {grammar}");
            }
        }
    }

    #[test]
    fn what_is_no_grammar_is_refused_by_line() {
        let deep = format!("root ::= {}", "(".repeat(1000));
        for (grammar, says) in [
            ("", "there is no rule 'root'"),
            ("rule ::= \"a\"", "there is no rule 'root'"),
            ("root ::= other", "there is no rule 'other'"),
            ("root ::= \"a\"\nroot ::= \"b\"", "the rule 'root' is there twice"),
            ("root ::= \"a\"\n\nroot \"b\"", "line 3: expected '::='"),
            ("root ::= \"a", "has no end"),
            ("root ::= [", "has no end"),
            ("root ::= []", "no character"),
            ("root ::= [z-a]", "ends before it begins"),
            ("root ::= \"\\q\"", "stands for nothing"),
            ("root ::= \"\\x4\"", "2 digits"),
            ("root ::= \"\\uD800\"", "4 digits"),
            ("root ::= (\"a\"", "expected ')'"),
            ("root ::= \"a\" )", "unexpected ')'"),
            ("root ::= \"a\"{3,2}", "expected {n}"),
            ("root ::= \"a\"{10001}", "0 to 10000"),
            ("root ::= <think>", "not supported"),
            ("ü", "expected the name of a rule"),
            (&deep, "nested more than 128 deep"),
        ] {
            let error = to_lark(grammar).unwrap_err();
            assert!(error.contains(says), "{grammar}: {error}");
        }
    }
}
