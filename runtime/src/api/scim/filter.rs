//! SCIM filters (RFC 7644, section 3.4.2.2): comparisons of attributes, joined by `and`, `or`, `not` and parentheses.
//!
//! Left out are comparisons by order (`gt` and its kin) and conditions within brackets: no client that we know of sends
//! them, and what is listed has nothing to compare so.

use crate::access::{Identity, IdentityKind};
use crate::error::ApiError;

/// Deepest nesting of parentheses: parsing calls itself for each.
const NESTED_MAX: usize = 20;

/// Which users, groups or service principals are asked for.
#[derive(Debug)]
pub(super) enum Filter {
    Compare { attribute: Attribute, operator: Operator, value: String },
    Present(Attribute),
    Not(Box<Filter>),
    All(Vec<Filter>),
    Any(Vec<Filter>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attribute {
    Id,
    UserName,
    ApplicationId,
    DisplayName,
    ExternalId,
    Email,
    Active,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Equals,
    Differs,
    Contains,
    StartsWith,
    EndsWith,
}

impl Filter {
    /// Reads a filter as it is in a query.
    ///
    /// # Errors
    /// `invalidFilter` with what is not understood.
    pub(super) fn parse(text: &str) -> Result<Filter, ApiError> {
        let refused = |why: String| {
            let message = format!("filter '{text}' is not understood: {why}");
            ApiError::invalid(message).with_scim_type("invalidFilter")
        };
        let mut parser = Parser { tokens: tokens(text).map_err(refused)?.into_iter().peekable(), depth: 0 };
        let filter = parser.any().map_err(refused)?;
        match parser.tokens.next() {
            None => Ok(filter),
            Some(token) => Err(refused(format!("nothing is expected at {}", token.show()))),
        }
    }

    /// Whether an identity is asked for.
    pub(super) fn matches(&self, identity: &Identity) -> bool {
        match self {
            Filter::Compare { attribute, operator, value } => {
                attribute.value(identity).map_or(*operator == Operator::Differs, |has| operator.holds(&has, value))
            }
            Filter::Present(attribute) => attribute.value(identity).is_some_and(|value| !value.is_empty()),
            Filter::Not(filter) => !filter.matches(identity),
            Filter::All(filters) => filters.iter().all(|filter| filter.matches(identity)),
            Filter::Any(filters) => filters.iter().any(|filter| filter.matches(identity)),
        }
    }
}

impl Attribute {
    /// By a name of any case, also with the schema before it: `urn:ietf:params:scim:schemas:core:2.0:User:userName`.
    fn named(name: &str) -> Result<Attribute, String> {
        let short = if name.starts_with("urn:") { name.rsplit(':').next().unwrap_or(name) } else { name };
        match short.to_ascii_lowercase().as_str() {
            "id" => Ok(Attribute::Id),
            "username" => Ok(Attribute::UserName),
            "applicationid" => Ok(Attribute::ApplicationId),
            "displayname" => Ok(Attribute::DisplayName),
            "externalid" => Ok(Attribute::ExternalId),
            "emails" | "emails.value" => Ok(Attribute::Email),
            "active" => Ok(Attribute::Active),
            _ => Err(format!(
                "'{name}' is not one of id, userName, applicationId, displayName, externalId, emails and active"
            )),
        }
    }

    /// What an identity has of it, in the case that it is compared in: numbers and what others gave as it is, names in
    /// lower case.
    fn value(self, identity: &Identity) -> Option<String> {
        let of = |kind| (identity.kind == kind).then(|| identity.name.to_lowercase());
        match self {
            Attribute::Id => Some(identity.id.to_string()),
            Attribute::UserName | Attribute::Email => of(IdentityKind::User),
            Attribute::ApplicationId => of(IdentityKind::ServicePrincipal),
            Attribute::DisplayName => Some(identity.display_name.to_lowercase()),
            Attribute::ExternalId => identity.external_id.clone(),
            Attribute::Active => (identity.kind != IdentityKind::Group).then(|| identity.active.to_string()),
        }
    }

    /// A value to compare with, in that case.
    fn folded(self, value: &str) -> String {
        if matches!(self, Attribute::Id | Attribute::ExternalId) { value.to_owned() } else { value.to_lowercase() }
    }
}

impl Operator {
    fn named(name: &str) -> Result<Operator, String> {
        match name.to_ascii_lowercase().as_str() {
            "eq" => Ok(Operator::Equals),
            "ne" => Ok(Operator::Differs),
            "co" => Ok(Operator::Contains),
            "sw" => Ok(Operator::StartsWith),
            "ew" => Ok(Operator::EndsWith),
            _ => Err(format!("'{name}' is not one of eq, ne, co, sw, ew and pr")),
        }
    }

    fn holds(self, has: &str, value: &str) -> bool {
        match self {
            Operator::Equals => has == value,
            Operator::Differs => has != value,
            Operator::Contains => has.contains(value),
            Operator::StartsWith => has.starts_with(value),
            Operator::EndsWith => has.ends_with(value),
        }
    }
}

#[derive(Debug, PartialEq)]
enum Token<'a> {
    Open,
    Close,
    Word(&'a str),
    /// What stood in quotes.
    Text(String),
}

impl Token<'_> {
    fn show(&self) -> String {
        match self {
            Token::Open => "'('".to_owned(),
            Token::Close => "')'".to_owned(),
            Token::Word(word) => format!("'{word}'"),
            Token::Text(text) => format!("\"{text}\""),
        }
    }

    fn is(&self, keyword: &str) -> bool {
        matches!(self, Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }
}

fn tokens(text: &str) -> Result<Vec<Token<'_>>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '"' => {
                // RFC 7644 writes texts as JSON does.
                let mut json = serde_json::Deserializer::from_str(rest).into_iter::<String>();
                match json.next() {
                    Some(Ok(text)) => (Token::Text(text), json.byte_offset()),
                    _ => return Err(format!("the text at {rest} does not end, or is not as JSON writes it")),
                }
            }
            // Not SCIM, but people write it.
            '\'' => match rest[1..].split_once('\'') {
                Some((text, _)) => (Token::Text(text.to_owned()), text.len() + 2),
                None => return Err(format!("the text at {rest} does not end")),
            },
            _ => {
                let length = rest.find(|c: char| c.is_whitespace() || "()\"".contains(c)).unwrap_or(rest.len());
                (Token::Word(&rest[..length]), length)
            }
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

struct Parser<'a> {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token<'a>>>,
    depth: usize,
}

impl<'a> Parser<'a> {
    /// `a or b`, which binds least.
    fn any(&mut self) -> Result<Filter, String> {
        let mut filters = vec![self.all()?];
        while self.tokens.next_if(|token| token.is("or")).is_some() {
            filters.push(self.all()?);
        }
        Ok(Filter::Any(filters))
    }

    fn all(&mut self) -> Result<Filter, String> {
        let mut filters = vec![self.one()?];
        while self.tokens.next_if(|token| token.is("and")).is_some() {
            filters.push(self.one()?);
        }
        Ok(Filter::All(filters))
    }

    /// A comparison, or what stands in parentheses.
    fn one(&mut self) -> Result<Filter, String> {
        match self.next("an attribute")? {
            Token::Open => self.nested(),
            token if token.is("not") => match self.next("'('")? {
                Token::Open => Ok(Filter::Not(Box::new(self.nested()?))),
                other => Err(format!("after 'not' there must be '(', not {}", other.show())),
            },
            Token::Word(name) => self.comparison(Attribute::named(name)?),
            other => Err(format!("there must be an attribute at {}", other.show())),
        }
    }

    /// What follows a `(`, with its `)`.
    fn nested(&mut self) -> Result<Filter, String> {
        self.depth += 1;
        if self.depth > NESTED_MAX {
            return Err(format!("parentheses may be nested {NESTED_MAX} times"));
        }
        let filter = self.any()?;
        self.depth -= 1;
        match self.next("')'")? {
            Token::Close => Ok(filter),
            other => Err(format!("there must be ')' at {}", other.show())),
        }
    }

    fn comparison(&mut self, attribute: Attribute) -> Result<Filter, String> {
        let operator = match self.next("an operator")? {
            token if token.is("pr") => return Ok(Filter::Present(attribute)),
            Token::Word(name) => Operator::named(name)?,
            other => return Err(format!("there must be an operator at {}", other.show())),
        };
        let value = match self.next("a value")? {
            Token::Text(text) => text,
            // Without quotes: a number, true, false, or a text whose quotes were forgotten.
            Token::Word(word) => word.to_owned(),
            other => return Err(format!("there must be a value at {}", other.show())),
        };
        if attribute == Attribute::Active {
            let is_truth = value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false");
            if !is_truth || !matches!(operator, Operator::Equals | Operator::Differs) {
                return Err("active is compared by eq or ne with true or false".to_owned());
            }
        }
        Ok(Filter::Compare { attribute, operator, value: attribute.folded(&value) })
    }

    fn next(&mut self, expected: &str) -> Result<Token<'a>, String> {
        self.tokens.next().ok_or_else(|| format!("it ends where {expected} must be"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::WorkspaceId;

    fn identity(kind: IdentityKind, name: &str, display_name: &str, external_id: Option<&str>) -> Identity {
        Identity {
            id: 7,
            workspace: WorkspaceId(1),
            kind,
            name: name.to_owned(),
            display_name: display_name.to_owned(),
            active: !name.starts_with('b'),
            external_id: external_id.map(str::to_owned),
            groups: Vec::new(),
            server_admin: false,
            creation_timestamp: 0,
        }
    }

    #[test]
    fn filters_mean_what_clients_mean() {
        let ada = identity(IdentityKind::User, "Ada@example.com", "Ada \"the\" Lovelace", Some("X1"));
        for (filter, matches) in [
            ("userName eq \"ada@example.com\"", true),
            ("userName eq 'ada@example.com'", true),
            ("userName eq ada", false),
            ("USERNAME SW \"ADA\"", true),
            ("userName ew \"EXAMPLE.com\"", true),
            ("urn:ietf:params:scim:schemas:core:2.0:User:userName co \"@\"", true),
            ("emails.value eq \"ada@example.com\"", true),
            ("displayName co \"a \\\"THE\\\" l\"", true),
            ("displayName ne \"Ada Lovelace\"", true),
            ("id eq 7", true),
            ("externalId eq \"x1\"", false),
            ("externalId eq \"X1\"", true),
            ("applicationId eq \"ada@example.com\"", false),
            ("applicationId pr", false),
            ("applicationId ne \"x\"", true),
            ("externalId pr and active eq true", true),
            ("active ne False", true),
            ("id eq 8 or userName pr and id eq 7", true),
            ("(id eq 8 or userName pr) and id eq 8", false),
            ("not (id eq 8) and not(active eq false)", true),
            ("userName eq \"a and b\" or displayName co \"(\"", false),
        ] {
            assert_eq!(Filter::parse(filter).unwrap().matches(&ada), matches, "{filter}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused_as_scim_says() {
        let deep = |levels: usize| format!("{}id eq 7{}", "(".repeat(levels), ")".repeat(levels));
        Filter::parse(&deep(NESTED_MAX)).unwrap();
        for (filter, word) in [
            ("", "an attribute"),
            ("userName", "an operator"),
            ("userName eq", "a value"),
            ("userName eq \"a", "does not end"),
            ("userName gt \"a\"", "'gt'"),
            ("nickName eq \"a\"", "'nickName'"),
            ("emails[type eq \"work\"]", "'emails[type'"),
            ("a b c", "'a'"),
            ("id eq 7 8", "'8'"),
            ("id eq 7 or", "an attribute"),
            ("(id eq 7", "')'"),
            ("id eq 7)", "')'"),
            ("not id eq 7", "after 'not'"),
            ("active co true", "active is compared"),
            ("active eq 1", "active is compared"),
            ("\"id\" eq 7", "an attribute at"),
            (&deep(NESTED_MAX + 1), "nested"),
            (&"(".repeat(8000), "nested"),
        ] {
            let refused = Filter::parse(filter).err().unwrap_or_else(|| panic!("{filter}"));
            assert!(refused.message.contains(word), "{}", refused.message);
            assert_eq!(refused.scim_type, Some("invalidFilter"));
        }
    }

    /// A filter as its text, and what it must answer for each of the identities, by another way than the parser's.
    fn random(rng: &mut fastrand::Rng, people: &[Identity], depth: usize) -> (String, Vec<bool>) {
        let space = |rng: &mut fastrand::Rng| " ".repeat(rng.usize(1..3));
        let case = |rng: &mut fastrand::Rng, word: &str| match rng.u8(0..3) {
            0 => word.to_lowercase(),
            1 => word.to_uppercase(),
            _ => word.to_owned(),
        };
        if depth == 0 || rng.u8(0..4) == 0 {
            let value = ["a", "b", "Ab", "ba", "aB b"][rng.usize(0..5)];
            let (attribute, get): (_, fn(&Identity) -> Option<&str>) = match rng.u8(0..3) {
                0 => ("userName", |one| (one.kind == IdentityKind::User).then_some(&one.name)),
                1 => ("displayName", |one| Some(&one.display_name)),
                _ => ("applicationId", |one| (one.kind == IdentityKind::ServicePrincipal).then_some(&one.name)),
            };
            let lower = value.to_lowercase();
            let (operator, holds): (_, Box<dyn Fn(String) -> bool>) = match rng.u8(0..6) {
                0 => ("eq", Box::new(move |has| has == lower)),
                1 => ("ne", Box::new(move |has| has != lower)),
                2 => ("co", Box::new(move |has| has.contains(&lower))),
                3 => ("sw", Box::new(move |has| has.starts_with(&lower))),
                4 => ("ew", Box::new(move |has| has.ends_with(&lower))),
                _ => ("pr", Box::new(|has| !has.is_empty())),
            };
            let answers =
                people.iter().map(|one| get(one).map_or(operator == "ne", |has| holds(has.to_lowercase()))).collect();
            let value = if operator == "pr" { String::new() } else { format!("\"{value}\"") };
            let words = [case(rng, attribute), case(rng, operator), value];
            return (words.join(&space(rng)), answers);
        }
        let (left, left_answers) = random(rng, people, depth - 1);
        let (right, right_answers) = random(rng, people, depth - 1);
        let both = left_answers.iter().zip(&right_answers);
        // In parentheses, so that nothing here says what binds closer: the other tests do.
        match rng.u8(0..3) {
            0 => {
                let text = format!("({left}) {} ({right})", case(rng, "and"));
                (text, both.map(|(left, right)| *left && *right).collect())
            }
            1 => {
                let text = format!("({left}) {} ({right})", case(rng, "or"));
                (text, both.map(|(left, right)| *left || *right).collect())
            }
            _ => {
                (format!("{}{}({left})", case(rng, "not"), space(rng)), left_answers.iter().map(|left| !left).collect())
            }
        }
    }

    #[test]
    fn random_filters_answer_as_a_plain_evaluation_does() {
        let kinds = [IdentityKind::User, IdentityKind::ServicePrincipal, IdentityKind::Group];
        let names = ["a", "B", "ab", "Ba b"];
        let people: Vec<Identity> = kinds
            .into_iter()
            .flat_map(|kind| {
                names.into_iter().zip(names.into_iter().rev()).map(move |(a, b)| identity(kind, a, b, None))
            })
            .collect();
        for seed in 0..3000 {
            let (text, expected) = random(&mut fastrand::Rng::with_seed(seed), &people, 4);
            let filter = Filter::parse(&text).unwrap();
            let answers: Vec<bool> = people.iter().map(|one| filter.matches(one)).collect();
            assert_eq!(answers, expected, "{text}");
        }
    }

    #[test]
    fn random_text_is_refused_and_nothing_worse() {
        let words = ["id", "eq", "7", "(", ")", "not", "and", "or", "\"", "\"a\"", "'", "\\", "é", "pr", " ", "[", "]"];
        for seed in 0..20_000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let text: String = (0..rng.usize(0..12))
                .map(|_| format!("{}{}", words[rng.usize(0..words.len())], [" ", ""][rng.usize(0..2)]))
                .collect();
            let _ = Filter::parse(&text);
        }
    }
}
