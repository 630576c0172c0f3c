//! Indents JSON without reading it into values, so that key order and every digit stay as the server sent them.

use serde::de::IgnoredAny;

/// `text` indented, if it is JSON, else as it is.
pub(super) fn pretty(text: &str) -> String {
    if serde_json::from_str::<IgnoredAny>(text).is_err() {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0, false, false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if in_string {
            out.push(c);
            (in_string, escaped) = (escaped || c != '"', !escaped && c == '\\');
            continue;
        }
        match c {
            c if c.is_ascii_whitespace() => {}
            '{' | '[' => {
                out.push(c);
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(close) = chars.next_if(|next| matches!(next, '}' | ']')) {
                    out.push(close);
                } else {
                    depth += 1;
                    new_line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth -= 1;
                new_line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ => {
                in_string = c == '"';
                out.push(c);
            }
        }
    }
    out
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_digits_and_strings_stay() {
        let text = r#"{"z":1.10,"a":[18446744073709551616, {} ,[ ]],"s":"a\\\"{b}: ,\u00e9"}"#;
        let expected = "{\n  \"z\": 1.10,\n  \"a\": [\n    18446744073709551616,\n    {},\n    []\n  ],\n  \
                        \"s\": \"a\\\\\\\"{b}: ,\\u00e9\"\n}";
        assert_eq!(pretty(text), expected);
    }

    #[test]
    fn other_text_is_left_alone() {
        assert_eq!(pretty("[NaN]"), "[NaN]");
        assert_eq!(pretty(" plain"), " plain");
    }
}
