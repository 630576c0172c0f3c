//! What models, aliases and tags may be called, and how much of them a record holds: records are small, because lists
//! read all of them.

use std::collections::BTreeMap;

use crate::error::ApiError;

/// Most aliases of a model.
const ALIASES_MAX: usize = 64;

/// Most tags of one thing.
const TAGS_MAX: usize = 64;

/// Bytes of an alias, and of a tag's key.
const NAME_BYTES_MAX: usize = 255;

/// Bytes of all tags of one thing.
const TAGS_BYTES_MAX: usize = 16 << 10;

/// Bytes of a description.
const DESCRIPTION_BYTES_MAX: usize = 8 << 10;

/// Bytes of a text that a client attaches for itself: where a version came from, the run that made it.
const REFERENCE_BYTES_MAX: usize = 2 << 10;

/// Labels by key.
pub type Tags = BTreeMap<String, String>;

/// `catalog.schema.model`, checked.
///
/// # Errors
/// What a name looks like.
pub fn check_model_name(name: &str) -> Result<(), ApiError> {
    let parts: Vec<&str> = name.split('.').collect();
    let good = |part: &&str| {
        !part.is_empty()
            && part.len() <= 255
            && !part.starts_with('.')
            && part.chars().all(|c| !c.is_control() && !c.is_whitespace() && !"/\\.".contains(c))
    };
    if parts.len() == 3 && parts.iter().all(good) && name.len() <= 300 {
        return Ok(());
    }
    Err(ApiError::invalid(format!("'{name}' is not a model name: it has three parts, like main.default.iris")))
}

/// Catalog and schema of names without dots, as MLflow's older registry has them.
pub const DEFAULT_SCHEMA: &str = "workspace.default";

/// The full name of a model whose name may be a short one.
pub fn full_name(name: &str) -> String {
    if name.contains('.') { name.to_owned() } else { format!("{DEFAULT_SCHEMA}.{name}") }
}

/// The name that MLflow's older registry has for a model.
pub fn short_name(name: &str) -> &str {
    name.strip_prefix(DEFAULT_SCHEMA).and_then(|rest| rest.strip_prefix('.')).unwrap_or(name)
}

/// The parts of a checked name.
pub fn parts(name: &str) -> [&str; 3] {
    let mut parts = name.splitn(3, '.');
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// Names an alias for a version.
///
/// # Errors
/// What an alias looks like, and how many there may be.
pub fn put_alias(aliases: &mut BTreeMap<String, u64>, alias: &str, version: u64) -> Result<(), ApiError> {
    check_alias(alias)?;
    if aliases.len() >= ALIASES_MAX && !aliases.contains_key(alias) {
        return Err(ApiError::invalid(format!("a model may have at most {ALIASES_MAX} aliases: delete one first")));
    }
    aliases.insert(alias.to_owned(), version);
    Ok(())
}

fn check_alias(alias: &str) -> Result<(), ApiError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    // MLflow reads these as a version's number, and as the newest version.
    let is_version = alias.strip_prefix(['v', 'V']).unwrap_or(alias).chars().all(|c| c.is_ascii_digit());
    if alias.len() > NAME_BYTES_MAX || !alias.chars().all(allowed) || is_version || alias.eq_ignore_ascii_case("latest")
    {
        return Err(ApiError::invalid(format!(
            "'{alias}' is not an alias: use letters, digits, '_' and '-', and neither a number nor 'latest'"
        )));
    }
    Ok(())
}

/// Sets a tag.
///
/// # Errors
/// What a tag looks like, and how many there may be.
pub fn put_tag(tags: &mut Tags, key: &str, value: &str) -> Result<(), ApiError> {
    if key.is_empty() || key.len() > NAME_BYTES_MAX || key.chars().any(char::is_control) {
        return Err(ApiError::invalid(format!("'{key}' is not a tag's key: use 1 to {NAME_BYTES_MAX} bytes of text")));
    }
    tags.insert(key.to_owned(), value.to_owned());
    let bytes: usize = tags.iter().map(|(key, value)| key.len() + value.len()).sum();
    if tags.len() > TAGS_MAX || bytes > TAGS_BYTES_MAX {
        return Err(ApiError::invalid(format!(
            "tag '{key}' does not fit: there may be {TAGS_MAX} tags with {TAGS_BYTES_MAX} bytes together"
        )));
    }
    Ok(())
}

/// Checks a description.
///
/// # Errors
/// When it is too long.
pub fn check_description(description: Option<&str>) -> Result<(), ApiError> {
    at_most("description", description.unwrap_or_default(), DESCRIPTION_BYTES_MAX)
}

/// Checks a text that refers to something of the client's.
///
/// # Errors
/// When it is too long.
pub fn check_reference(what: &str, text: &str) -> Result<(), ApiError> {
    at_most(what, text, REFERENCE_BYTES_MAX)
}

fn at_most(what: &str, text: &str, bytes_max: usize) -> Result<(), ApiError> {
    if text.len() > bytes_max {
        return Err(ApiError::invalid(format!("{what} has {} bytes; the limit is {bytes_max}", text.len())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_no_version_and_there_are_not_too_many() {
        let mut aliases = BTreeMap::new();
        for bad in ["", "1", "v2", "V3", "latest", "Latest", "a b", "a/b", "a.b", &"x".repeat(256)] {
            assert!(put_alias(&mut aliases, bad, 1).is_err(), "{bad}");
        }
        for number in 0..ALIASES_MAX {
            put_alias(&mut aliases, &format!("alias-{number}"), 1).unwrap();
        }
        assert!(put_alias(&mut aliases, "one-more", 1).unwrap_err().message.contains("at most 64"));
        put_alias(&mut aliases, "alias-0", 2).unwrap();
        assert_eq!(aliases["alias-0"], 2);
    }

    #[test]
    fn tags_are_bounded_in_number_and_size() {
        let mut tags = Tags::new();
        put_tag(&mut tags, "stage", "ready").unwrap();
        assert!(put_tag(&mut tags, "", "x").is_err() && put_tag(&mut tags, "a\n", "x").is_err());
        assert!(put_tag(&mut tags.clone(), "long", &"x".repeat(TAGS_BYTES_MAX)).is_err());
        for number in 1..TAGS_MAX {
            put_tag(&mut tags, &format!("k{number}"), "").unwrap();
        }
        assert!(put_tag(&mut tags.clone(), "one more", "").is_err());
        put_tag(&mut tags, "stage", "changed").unwrap();
    }
}
