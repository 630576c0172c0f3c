//! Filters and orders of MLflow's search calls: conditions joined by AND, fields with ASC or DESC.

use crate::error::ApiError;

/// A filter: all conditions must hold.
#[derive(Debug, Default)]
pub struct Filter(Vec<Condition>);

#[derive(Debug)]
struct Condition {
    field: String,
    comparison: Comparison,
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Is,
    IsNot,
    Like,
    ILike,
    In,
}

/// What a filter may ask of a thing: its fields, with `tags.` before a tag's key. None where the thing has no such value.
pub trait Searchable {
    /// Names of fields that can be asked for, besides tags.
    const FIELDS: &'static [&'static str];

    /// The value of one.
    fn field(&self, name: &str) -> Option<String>;
}

/// Longest filter.
const FILTER_BYTES_MAX: usize = 4 << 10;

impl Filter {
    /// Reads a filter on things of a kind; an empty one holds for all.
    ///
    /// # Errors
    /// What is not understood, and what would be.
    pub fn parse<T: Searchable>(text: &str) -> Result<Filter, ApiError> {
        let wrong = |what: &str| {
            let fields = T::FIELDS.join(", ");
            ApiError::invalid(format!(
                "filter '{text}': {what}; conditions are like name = 'x' or tags.key LIKE 'a%', joined by AND, on {fields}"
            ))
        };
        if text.len() > FILTER_BYTES_MAX {
            return Err(ApiError::invalid(format!("the filter is longer than {FILTER_BYTES_MAX} bytes")));
        }
        let words = words(text).map_err(|what| wrong(&what))?;
        let mut conditions = Vec::new();
        let mut rest = words.as_slice();
        while !rest.is_empty() {
            let (condition, after) = condition(rest).map_err(|what| wrong(&what))?;
            if !condition.field.starts_with("tags.") && !T::FIELDS.contains(&condition.field.as_str()) {
                return Err(wrong(&format!("there is no field '{}'", condition.field)));
            }
            conditions.push(condition);
            rest = match after {
                [] => after,
                [Word::Plain(and), next @ ..] if and.eq_ignore_ascii_case("and") && !next.is_empty() => next,
                _ => return Err(wrong("there is something after a condition that is not AND")),
            };
        }
        Ok(Filter(conditions))
    }

    /// Whether all conditions hold.
    pub fn holds(&self, thing: &impl Searchable) -> bool {
        self.0.iter().all(|condition| condition.holds(thing.field(&condition.field).as_deref()))
    }

    /// The one value that a field must have, if the filter says so.
    pub fn exact(&self, field: &str) -> Option<&str> {
        let found = self.0.iter().find(|condition| condition.field == field && condition.comparison == Comparison::Is);
        found.and_then(|condition| condition.values.first()).map(String::as_str)
    }
}

impl Condition {
    fn holds(&self, value: Option<&str>) -> bool {
        // What has no such tag has another one: MLflow's client leaves prompts out with `!=`.
        let Some(value) = value else { return self.comparison == Comparison::IsNot };
        let wanted = self.values.first().map_or("", String::as_str);
        match self.comparison {
            Comparison::Is => value == wanted,
            Comparison::IsNot => value != wanted,
            Comparison::In => self.values.iter().any(|wanted| wanted == value),
            Comparison::Like => like(wanted, value),
            Comparison::ILike => like(&wanted.to_lowercase(), &value.to_lowercase()),
        }
    }
}

/// SQL's LIKE: `%` stands for any text, `_` for one character.
fn like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut in_text) = (0, 0);
    // Where the last `%` stands, and how much of the text it has taken: it takes one more when the rest does not fit.
    let mut taken: Option<(usize, usize)> = None;
    while in_text < text.len() {
        match pattern.get(at) {
            Some('%') => {
                taken = Some((at, in_text));
                at += 1;
            }
            Some(c) if *c == '_' || *c == text[in_text] => (at, in_text) = (at + 1, in_text + 1),
            _ => match &mut taken {
                Some((star, from)) => {
                    *from += 1;
                    (at, in_text) = (*star + 1, *from);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|c| *c == '%')
}

#[derive(Debug, PartialEq, Eq)]
enum Word {
    Plain(String),
    Quoted(String),
}

fn words(text: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '\'' | '"' => {
                let mut value = String::new();
                loop {
                    match chars.next() {
                        None => return Err(format!("a {c} is not closed")),
                        Some(next) if next == c => break,
                        Some(next) => value.push(next),
                    }
                }
                words.push(Word::Quoted(value));
            }
            '(' | ')' | ',' | '=' => words.push(Word::Plain(c.to_string())),
            '!' if chars.next_if_eq(&'=').is_some() => words.push(Word::Plain("!=".to_owned())),
            _ => {
                let mut word = String::from(c);
                // A key in backquotes may hold anything.
                let mut quoted = c == '`';
                while let Some(next) =
                    chars.next_if(|next| quoted || !(next.is_whitespace() || "(),=!'\"".contains(*next)))
                {
                    quoted ^= next == '`';
                    word.push(next);
                }
                words.push(Word::Plain(word.replace('`', "")));
            }
        }
    }
    Ok(words)
}

fn condition(words: &[Word]) -> Result<(Condition, &[Word]), String> {
    let [Word::Plain(field), Word::Plain(comparison), rest @ ..] = words else {
        return Err("a condition is not complete".to_owned());
    };
    let comparison = match comparison.to_ascii_lowercase().as_str() {
        "=" => Comparison::Is,
        "!=" => Comparison::IsNot,
        "like" => Comparison::Like,
        "ilike" => Comparison::ILike,
        "in" => Comparison::In,
        other => return Err(format!("'{other}' is not a comparison")),
    };
    let field = match field.strip_prefix("tag.") {
        Some(key) => format!("tags.{key}"),
        None => field.clone(),
    };
    if comparison == Comparison::In {
        let [Word::Plain(open), rest @ ..] = rest else { return Err("IN needs values in parentheses".to_owned()) };
        let close = rest.iter().position(|word| *word == Word::Plain(")".to_owned()));
        let (Some(close), "(") = (close, open.as_str()) else {
            return Err("IN needs values in parentheses".to_owned());
        };
        let values = rest[..close].iter().filter(|word| **word != Word::Plain(",".to_owned())).map(text).collect();
        return Ok((Condition { field, comparison, values }, &rest[close + 1..]));
    }
    let [value, rest @ ..] = rest else { return Err("a condition has no value".to_owned()) };
    Ok((Condition { field, comparison, values: vec![text(value)] }, rest))
}

fn text(word: &Word) -> String {
    match word {
        Word::Plain(text) | Word::Quoted(text) => text.clone(),
    }
}

/// Sorts things by fields like `name ASC` or `last_updated_timestamp DESC`, the first field first.
///
/// # Errors
/// What is not understood, and what would be.
pub fn sort<T: Searchable>(things: &mut [T], order_by: &[String], fields: &[&str]) -> Result<(), ApiError> {
    // The last field first: the sort is stable.
    for order in order_by.iter().rev() {
        let words: Vec<&str> = order.split_whitespace().collect();
        let (field, descending) = match words[..] {
            [field] => (field, false),
            [field, direction] if direction.eq_ignore_ascii_case("asc") => (field, false),
            [field, direction] if direction.eq_ignore_ascii_case("desc") => (field, true),
            _ => ("", false),
        };
        if !fields.contains(&field) {
            let known = fields.join(", ");
            return Err(ApiError::invalid(format!(
                "order_by '{order}' is not a field with ASC or DESC; fields are {known}"
            )));
        }
        // Numbers by value, names by text.
        let key = |thing: &T| thing.field(field).map(|value| (value.parse::<u64>().ok(), value));
        match descending {
            false => things.sort_by_cached_key(key),
            true => things.sort_by_cached_key(|thing| std::cmp::Reverse(key(thing))),
        }
    }
    Ok(())
}

impl Searchable for super::ModelRecord {
    const FIELDS: &'static [&'static str] = &["name"];

    fn field(&self, name: &str) -> Option<String> {
        match name {
            "name" => Some(self.name.clone()),
            "creation_timestamp" => Some(self.creation_timestamp.to_string()),
            "last_updated_timestamp" | "timestamp" => Some(self.last_updated_timestamp.to_string()),
            _ => self.tags.get(name.strip_prefix("tags.")?).cloned(),
        }
    }
}

/// Fields that models can be ordered by.
pub const MODEL_ORDERS: &[&str] = &["name", "creation_timestamp", "last_updated_timestamp", "timestamp"];

impl Searchable for super::VersionRecord {
    const FIELDS: &'static [&'static str] = &["name", "version_number", "run_id", "source_path", "model_id"];

    fn field(&self, name: &str) -> Option<String> {
        match name {
            "name" => Some(self.name.clone()),
            "version_number" => Some(self.version.to_string()),
            "run_id" => self.run_id.clone(),
            "model_id" => self.model_id.clone(),
            "source_path" => Some(self.source.clone()),
            "creation_timestamp" => Some(self.creation_timestamp.to_string()),
            "last_updated_timestamp" => Some(self.last_updated_timestamp.to_string()),
            _ => self.tags.get(name.strip_prefix("tags.")?).cloned(),
        }
    }
}

/// Fields that versions can be ordered by.
pub const VERSION_ORDERS: &[&str] = &["name", "version_number", "creation_timestamp", "last_updated_timestamp"];

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone)]
    struct Thing(&'static str, u64);

    impl Searchable for Thing {
        const FIELDS: &'static [&'static str] = &["name"];

        fn field(&self, name: &str) -> Option<String> {
            match name {
                "name" => Some(self.0.to_owned()),
                "number" => Some(self.1.to_string()),
                "tags.my key" => Some("v".to_owned()),
                _ => None,
            }
        }
    }

    #[test]
    fn filters_of_mlflows_forms_hold() {
        let thing = Thing("main.default.Iris", 1);
        for (filter, holds) in [
            ("", true),
            ("name = 'main.default.Iris'", true),
            ("name='main.default.Iris'", true),
            ("name = \"other\"", false),
            ("name != 'other'", true),
            ("name LIKE 'main.%'", true),
            ("name like 'main.%iris'", false),
            ("name ILIKE '%.IRIS'", true),
            ("name LIKE 'main.default._ris'", true),
            ("name LIKE '%a%a%'", true),
            ("name IN ('x', 'main.default.Iris')", true),
            ("name = 'main.default.Iris' AND tags.`my key` = 'v'", true),
            ("tag.`my key` = 'v' and name = 'x'", false),
            ("tags.other = 'v'", false),
            ("tags.other != 'v'", true),
        ] {
            assert_eq!(Filter::parse::<Thing>(filter).unwrap().holds(&thing), holds, "{filter}");
        }
        assert_eq!(Filter::parse::<Thing>("name = 'x'").unwrap().exact("name"), Some("x"));
    }

    #[test]
    fn what_is_no_filter_is_refused_with_what_would_be_one() {
        for filter in [
            "name",
            "name =",
            "name = 'x",
            "size = 1",
            "name = 'x' OR name = 'y'",
            "name > 'x'",
            "name IN 'x'",
            "name = 'x' AND",
            "name IN ('x'",
            "'name' = 'x'",
        ] {
            let message = Filter::parse::<Thing>(filter).unwrap_err().message;
            assert!(message.contains("joined by AND"), "{filter}: {message}");
        }
        assert!(Filter::parse::<Thing>(&"x".repeat(FILTER_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn orders_are_by_value_and_stable() {
        let mut things = [Thing("b", 2), Thing("a", 10), Thing("c", 2)];
        let names = |things: &[Thing]| things.iter().map(|thing| thing.0).collect::<String>();
        let fields = ["name", "number"];
        sort(&mut things, &["number DESC".to_owned(), "name".to_owned()], &fields).unwrap();
        assert_eq!(names(&things), "abc");
        sort(&mut things, &["name DESC".to_owned()], &fields).unwrap();
        assert_eq!(names(&things), "cba");
        assert!(sort(&mut things, &["size".to_owned()], &fields).unwrap_err().message.contains("name, number"));
        assert!(sort(&mut things, &["name sideways".to_owned()], &fields).is_err());
    }
}
