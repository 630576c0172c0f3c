//! Reads a request body in Python's dialect of JSON.
//!
//! Its own parser for three reasons. The clients are Python, whose `json.dumps` writes `NaN` and `Infinity`, which
//! serde_json refuses. `1` and `1.0` are different types to MLflow, and large integers must not lose digits. And bodies
//! are mostly numbers: a list of floats is one flat buffer here, not a tree node per number.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// How deep lists and objects may nest. A recursive parser without a bound is a stack overflow on request; no tensor
/// comes near it (numpy stops at 64 axes).
const DEPTH_MAX: usize = 100;

/// Above this many keys, duplicates are looked for with a map instead of by comparing all pairs.
const KEYS_COMPARED_MAX: usize = 16;

/// Up to so many digits, any number of them is a float exactly (2^53 has 16), and so are these powers of ten.
const EXACT_DIGITS_MAX: usize = 15;
const POWERS_OF_TEN: [f64; 15] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14];

/// A JSON value. Text without escapes is borrowed from the body.
#[derive(Debug, PartialEq)]
pub(crate) enum Json<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits signed, as written.
    Big(&'a str),
    Float(f64),
    Text(Cow<'a, str>),
    List(List<'a>),
    Object(Object<'a>),
}

/// A JSON list; one that holds nothing but floats is kept flat.
#[derive(Debug, PartialEq)]
pub(crate) enum List<'a> {
    Floats(Vec<f64>),
    Values(Vec<Json<'a>>),
}

/// A JSON object in the order of the body, each key once: as in Python, the last value of a repeated key counts.
#[derive(Debug, PartialEq)]
pub(crate) struct Object<'a>(Vec<(Cow<'a, str>, Json<'a>)>);

/// One value as the rest of the crate looks at it: a list of floats has no `Json` for each of its elements to refer to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cell<'j> {
    /// Not in the body: what pandas fills in for a record without this key. Unlike `null` it is a float, `NaN`.
    Missing,
    Null,
    Bool(bool),
    Int(i64),
    Big(&'j str),
    Float(f64),
    Text(&'j str),
    List(&'j List<'j>),
    Object(&'j Object<'j>),
}

impl Json<'_> {
    pub(crate) fn cell(&self) -> Cell<'_> {
        match self {
            Self::Null => Cell::Null,
            Self::Bool(value) => Cell::Bool(*value),
            Self::Int(value) => Cell::Int(*value),
            Self::Big(digits) => Cell::Big(digits),
            Self::Float(value) => Cell::Float(*value),
            Self::Text(text) => Cell::Text(text),
            Self::List(list) => Cell::List(list),
            Self::Object(object) => Cell::Object(object),
        }
    }
}

impl<'a> List<'a> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Floats(floats) => floats.len(),
            Self::Values(values) => values.len(),
        }
    }

    pub(crate) fn get(&self, position: usize) -> Option<Cell<'_>> {
        match self {
            Self::Floats(floats) => floats.get(position).map(|value| Cell::Float(*value)),
            Self::Values(values) => values.get(position).map(Json::cell),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Cell<'_>> + Clone {
        let (floats, values): (&[f64], &[Json<'a>]) = match self {
            Self::Floats(floats) => (floats, &[]),
            Self::Values(values) => (&[], values),
        };
        floats.iter().map(|value| Cell::Float(*value)).chain(values.iter().map(Json::cell))
    }
}

impl<'a> Object<'a> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn get(&self, key: &str) -> Option<Cell<'_>> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.cell())
    }

    /// The value of `key`, looked for first where it was in the objects before: records mostly agree in their order.
    pub(crate) fn get_near(&self, key: &str, position: usize) -> Option<Cell<'_>> {
        match self.0.get(position) {
            Some((name, value)) if name == key => Some(value.cell()),
            _ => self.get(key),
        }
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_ref())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, Cell<'_>)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), value.cell()))
    }

    /// Keeps the last value of a repeated key, at the place of the first.
    fn without_duplicates(mut entries: Vec<(Cow<'a, str>, Json<'a>)>) -> Self {
        let repeated = if entries.len() <= KEYS_COMPARED_MAX {
            entries.iter().enumerate().any(|(i, (key, _))| entries.iter().take(i).any(|(earlier, _)| earlier == key))
        } else {
            entries.iter().map(|(key, _)| (key.as_ref(), ())).collect::<BTreeMap<_, _>>().len() < entries.len()
        };
        if repeated {
            let mut places: BTreeMap<Cow<'a, str>, usize> = BTreeMap::new();
            let mut kept: Vec<(Cow<'a, str>, Json<'a>)> = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                match places.get(&key).and_then(|&place| kept.get_mut(place)) {
                    Some(entry) => entry.1 = value,
                    None => {
                        places.insert(key.clone(), kept.len());
                        kept.push((key, value));
                    }
                }
            }
            entries = kept;
        }
        Self(entries)
    }
}

impl Cell<'_> {
    /// The name of its type in Python, which MLflow's messages use.
    pub(crate) fn python_type(self) -> &'static str {
        match self {
            Self::Null => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::Big(_) => "int",
            Self::Float(_) | Self::Missing => "float",
            Self::Text(_) => "str",
            Self::List(_) => "list",
            Self::Object(_) => "dict",
        }
    }
}

/// Why a body is not JSON, in the words of Python's `json`.
#[derive(Debug, PartialEq)]
pub(crate) struct SyntaxError {
    reason: &'static str,
    line: usize,
    column: usize,
    offset: usize,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, line, column, offset } = self;
        write!(f, "{reason}: line {line} column {column} (char {offset})")
    }
}

/// Parses a whole body.
pub(crate) fn parse(text: &str) -> Result<Json<'_>, SyntaxError> {
    // Python accepts a byte order mark in front.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parser = Parser { text, bytes: text.as_bytes(), at: 0 };
    let value = parser.value(0).and_then(|value| {
        parser.skip_whitespace();
        if parser.at < parser.bytes.len() { Err("Extra data") } else { Ok(value) }
    });
    value.map_err(|reason| parser.error(reason))
}

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

/// How many digits these bytes begin with, and a number with them behind it. It wraps around: only short ones are used.
fn digits_of(bytes: &[u8], mut number: u64) -> (usize, u64) {
    let mut count = 0;
    for byte in bytes.iter().take_while(|byte| byte.is_ascii_digit()) {
        number = number.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
        count += 1;
    }
    (count, number)
}

/// The reason alone; the place is where the parser stopped.
type Parsed<T> = Result<T, &'static str>;

impl<'a> Parser<'a> {
    fn error(&self, reason: &'static str) -> SyntaxError {
        let before = self.bytes.get(..self.at).unwrap_or(self.bytes);
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        SyntaxError { reason, line, column: self.at - line_start + 1, offset: self.at }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_whitespace(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Steps over `token` if it is next.
    fn take(&mut self, token: &str) -> bool {
        let next = self.bytes.get(self.at..).is_some_and(|rest| rest.starts_with(token.as_bytes()));
        if next {
            self.at += token.len();
        }
        next
    }

    fn value(&mut self, depth: usize) -> Parsed<Json<'a>> {
        self.skip_whitespace();
        let constant =
            |parser: &mut Self, token, value| if parser.take(token) { Ok(value) } else { Err("Expecting value") };
        match self.peek() {
            Some(b'"') => Ok(Json::Text(self.string()?)),
            Some(b'[') => self.list(depth),
            Some(b'{') => self.object(depth),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b'n') => constant(self, "null", Json::Null),
            Some(b't') => constant(self, "true", Json::Bool(true)),
            Some(b'f') => constant(self, "false", Json::Bool(false)),
            Some(b'N') => constant(self, "NaN", Json::Float(f64::NAN)),
            Some(b'I') => constant(self, "Infinity", Json::Float(f64::INFINITY)),
            _ => Err("Expecting value"),
        }
    }

    fn list(&mut self, depth: usize) -> Parsed<Json<'a>> {
        self.open(depth)?;
        if self.take("]") {
            return Ok(Json::List(List::Values(Vec::new())));
        }
        let mut floats = Vec::new();
        loop {
            match self.plain_float() {
                Some(value) => floats.push(value),
                None => match self.value(depth + 1)? {
                    Json::Float(value) => floats.push(value),
                    value => return self.rest_of_list(floats, value, depth),
                },
            }
            if !self.next_in_list()? {
                return Ok(Json::List(List::Floats(floats)));
            }
        }
    }

    /// The list turned out to hold more than floats.
    fn rest_of_list(&mut self, floats: Vec<f64>, value: Json<'a>, depth: usize) -> Parsed<Json<'a>> {
        let mut values: Vec<Json<'a>> = floats.into_iter().map(Json::Float).collect();
        values.push(value);
        while self.next_in_list()? {
            values.push(self.value(depth + 1)?);
        }
        Ok(Json::List(List::Values(values)))
    }

    /// Whether another element follows.
    fn next_in_list(&mut self) -> Parsed<bool> {
        self.skip_whitespace();
        match self.peek() {
            Some(b',') => self.at += 1,
            Some(b']') => {
                self.at += 1;
                return Ok(false);
            }
            _ => return Err("Expecting ',' delimiter"),
        }
        Ok(true)
    }

    fn object(&mut self, depth: usize) -> Parsed<Json<'a>> {
        self.open(depth)?;
        let mut entries = Vec::new();
        if self.take("}") {
            return Ok(Json::Object(Object(entries)));
        }
        loop {
            self.skip_whitespace();
            if self.peek() != Some(b'"') {
                return Err("Expecting property name enclosed in double quotes");
            }
            let key = self.string()?;
            self.skip_whitespace();
            if !self.take(":") {
                return Err("Expecting ':' delimiter");
            }
            let value = self.value(depth + 1)?;
            entries.push((key, value));
            self.skip_whitespace();
            if self.take("}") {
                return Ok(Json::Object(Object::without_duplicates(entries)));
            }
            if !self.take(",") {
                return Err("Expecting ',' delimiter");
            }
        }
    }

    fn open(&mut self, depth: usize) -> Parsed<()> {
        if depth >= DEPTH_MAX {
            return Err("Nested too deeply");
        }
        self.at += 1;
        self.skip_whitespace();
        Ok(())
    }

    /// A number like most in lists, ` -12.345`, read in one go. None, and nothing is stepped over, for any other value.
    fn plain_float(&mut self) -> Option<f64> {
        let rest = self.bytes.get(self.at..)?;
        let spaces = usize::from(rest.first() == Some(&b' '));
        let sign = usize::from(rest.get(spaces) == Some(&b'-'));
        let number = rest.get(spaces + sign..)?;
        let (whole_digits, digits) = digits_of(number, 0);
        let (whole, fraction) = number.split_at_checked(whole_digits)?;
        let (decimals, digits) = digits_of(fraction.strip_prefix(b".")?, digits);
        let length = whole_digits + ".".len() + decimals;
        let is_plain = whole_digits > 0
            && decimals > 0
            && length <= EXACT_DIGITS_MAX + ".".len()
            && (whole_digits == 1 || whole.first() != Some(&b'0'))
            && !matches!(number.get(length), Some(b'e' | b'E'));
        if !is_plain {
            return None;
        }
        // As in `number`.
        let value = digits as f64 / POWERS_OF_TEN.get(decimals)?;
        self.at += spaces + sign + length;
        Some(if sign == 1 { -value } else { value })
    }

    fn number(&mut self) -> Parsed<Json<'a>> {
        let start = self.at;
        let is_negative = self.take("-");
        if is_negative && self.take("Infinity") {
            return Ok(Json::Float(f64::NEG_INFINITY));
        }
        let mut digits = match self.peek() {
            Some(b'0') => {
                self.at += 1;
                0
            }
            Some(b'1'..=b'9') => self.digits(0),
            _ => {
                self.at = start;
                return Err("Expecting value");
            }
        };
        let integer_end = self.at;
        let mut decimals = 0;
        if self.peek() == Some(b'.') && matches!(self.bytes.get(self.at + 1), Some(b'0'..=b'9')) {
            self.at += 1;
            digits = self.digits(digits);
            decimals = self.at - integer_end - 1;
        }
        let mantissa_end = self.at;
        self.skip_exponent();
        // Most numbers: all digits fit a float exactly, and so does the power of ten, so that one division rounds right.
        if decimals > 0
            && self.at == mantissa_end
            && mantissa_end - start <= EXACT_DIGITS_MAX + ".".len()
            && let Some(scale) = POWERS_OF_TEN.get(decimals)
        {
            let value = digits as f64 / scale;
            return Ok(Json::Float(if is_negative { -value } else { value }));
        }
        let literal = self.text.get(start..self.at).ok_or("Expecting value")?;
        if self.at > integer_end {
            return literal.parse().map(Json::Float).map_err(|_| "Expecting value");
        }
        Ok(literal.parse().map_or(Json::Big(literal), Json::Int))
    }

    /// Steps over digits, and appends them to a number.
    fn digits(&mut self, number: u64) -> u64 {
        let (count, number) = digits_of(self.bytes.get(self.at..).unwrap_or_default(), number);
        self.at += count;
        number
    }

    /// Steps over `e-5`, if it is one: an `e` without digits is left to be complained about.
    fn skip_exponent(&mut self) {
        let before = self.at;
        if self.take("e") || self.take("E") {
            if !self.take("-") {
                self.take("+");
            }
            let digits = self.at;
            self.digits(0);
            if self.at == digits {
                self.at = before;
            }
        }
    }

    /// A string; the cursor is on its opening quote.
    fn string(&mut self) -> Parsed<Cow<'a, str>> {
        let opening = self.at;
        self.at += 1;
        let plain = self.plain_text()?;
        if self.take("\"") {
            return Ok(Cow::Borrowed(plain));
        }
        let mut unescaped = plain.to_owned();
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Cow::Owned(unescaped));
                }
                Some(b'\\') => unescaped.push(self.escape()?),
                _ => {
                    self.at = opening;
                    return Err("Unterminated string starting at");
                }
            }
            unescaped.push_str(self.plain_text()?);
        }
    }

    /// Up to the next quote, backslash or end.
    fn plain_text(&mut self) -> Parsed<&'a str> {
        let start = self.at;
        let rest = self.bytes.get(start..).unwrap_or_default();
        let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
        self.at += end.unwrap_or(rest.len());
        if let Some(0..0x20) = self.peek() {
            return Err("Invalid control character at");
        }
        // Quotes and backslashes are ASCII, so that this cuts between characters.
        self.text.get(start..self.at).ok_or("Expecting value")
    }

    fn escape(&mut self) -> Parsed<char> {
        let escaped = self.bytes.get(self.at + 1);
        let character = match escaped {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(),
            _ => return Err("Invalid \\escape"),
        };
        self.at += 2;
        Ok(character)
    }

    /// Half a surrogate pair, which Python keeps and Rust text cannot hold, becomes the replacement character.
    fn unicode_escape(&mut self) -> Parsed<char> {
        let first = self.code_unit(self.at).ok_or("Invalid \\uXXXX escape")?;
        self.at += 6;
        if (0xd800..0xdc00).contains(&first)
            && let Some(second @ 0xdc00..0xe000) = self.code_unit(self.at)
        {
            self.at += 6;
            let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
            return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
        Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    /// The number of `\uXXXX` at this place.
    fn code_unit(&self, at: usize) -> Option<u32> {
        let digits = self.text.get(at..at + 6)?.strip_prefix("\\u")?;
        let hexadecimal = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        hexadecimal.then(|| u32::from_str_radix(digits, 16).ok())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn numbers_keep_their_kind() {
        let Json::List(list) = parse("[1, -2.5, 1e3, 0, 99999999999999999999, -0.0]").unwrap() else { panic!() };
        let cells: Vec<_> = list.iter().collect();
        let big = Cell::Big("99999999999999999999");
        assert_eq!(cells, [Cell::Int(1), Cell::Float(-2.5), Cell::Float(1e3), Cell::Int(0), big, Cell::Float(-0.0)]);
    }

    #[test]
    fn floats_are_what_the_standard_library_reads() {
        // A fixed walk through numbers of all lengths, with the point in all places.
        let mut bits = 0x0123_4567_89ab_cdef_u64;
        for round in 0..20_000 {
            bits = bits.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let digits = (bits >> (round % 60)).to_string();
            let (whole, decimals) = digits.split_at(round % digits.len());
            let sign = if round % 3 == 0 { "-" } else { "" };
            let whole = whole.trim_start_matches('0');
            let text = format!("{sign}{}.{decimals}", if whole.is_empty() { "0" } else { whole });
            let expected: f64 = text.parse().unwrap();
            assert!(matches!(parse(&text), Ok(Json::Float(value)) if value.to_bits() == expected.to_bits()), "{text}");
            let Json::List(List::Floats(list)) = parse(&format!("[{text}, {text}]")).unwrap() else { panic!("{text}") };
            assert!(list.len() == 2 && list.iter().all(|value| value.to_bits() == expected.to_bits()), "{text}");
        }
    }

    #[test]
    fn a_number_in_a_list_is_read_as_any_other() {
        for odd in [
            "01.5",
            "00.1",
            "0.10",
            "-0.0",
            "1.",
            ".5",
            "-.5",
            "--1.5",
            "1.5-",
            "1.5.2",
            "1.5e",
            "1.5e3",
            "1.5E-3",
            "1.5,",
            "1.5]",
            "1.5x",
            "7",
            "-7",
            "1.0000000000000001",
            "123456789012345.6",
            "12345678901234.5",
            "-",
            "",
            "NaN",
            "\"1.5\"",
        ] {
            // Behind two spaces it takes the long way.
            let read = |spaces: &str| match parse(&format!("[0.5,{spaces}{odd}]")) {
                Ok(value) => Ok(format!("{value:?}")),
                Err(error) => Err((error.reason, error.offset - spaces.len())),
            };
            assert_eq!(read(""), read("  "), "{odd}");
        }
    }

    #[test]
    fn a_list_of_floats_is_flat() {
        assert_eq!(parse("[1.5,2.5]").unwrap(), Json::List(List::Floats(vec![1.5, 2.5])));
        let Json::List(list) = parse("[NaN, Infinity, -Infinity]").unwrap() else { panic!() };
        assert!(matches!(&list, List::Floats(floats) if floats[0].is_nan() && floats[1] == f64::INFINITY));
    }

    #[test]
    fn text_is_borrowed_until_it_has_escapes() {
        assert!(matches!(parse(r#""plain é""#).unwrap(), Json::Text(Cow::Borrowed("plain é"))));
        assert_eq!(parse(r#""a\n\u00e9\ud83d\ude00\ud83d""#).unwrap(), Json::Text("a\né😀\u{fffd}".into()));
    }

    #[test]
    fn the_last_of_a_repeated_key_counts() {
        let Json::Object(object) = parse(r#"{"a": 1, "b": 2, "a": 3}"#).unwrap() else { panic!() };
        assert_eq!(object.iter().collect::<Vec<_>>(), [("a", Cell::Int(3)), ("b", Cell::Int(2))]);
        let many: String = (0..40).map(|i| format!("\"k{}\": {i},", i % 20)).collect();
        let text = format!("{{{}}}", many.trim_end_matches(','));
        let Json::Object(object) = parse(&text).unwrap() else { panic!() };
        assert_eq!((object.len(), object.get("k3")), (20, Some(Cell::Int(23))));
    }

    #[test]
    fn mistakes_are_told_as_python_does() {
        assert_eq!(failure(""), "Expecting value: line 1 column 1 (char 0)");
        assert_eq!(
            failure("{ not json"),
            "Expecting property name enclosed in double quotes: line 1 column 3 (char 2)"
        );
        assert_eq!(failure("{\"inputs\": [1]} x"), "Extra data: line 1 column 17 (char 16)");
        assert_eq!(failure("{\"inputs\": [01]}"), "Expecting ',' delimiter: line 1 column 14 (char 13)");
        assert_eq!(failure("{\"a\":\n [1,]}"), "Expecting value: line 2 column 5 (char 10)");
        for text in
            ["[1 2]", "{\"a\" 1}", "\"a\tb\"", "\"open", "\"\\x\"", "\"\\u12\"", "-", "nul", "[", "{\"a\"", "1.", "1e"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse(&nested(DEPTH_MAX)).is_ok());
        assert!(failure(&nested(1_000_000)).starts_with("Nested too deeply"));
    }
}
