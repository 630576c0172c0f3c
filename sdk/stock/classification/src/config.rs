//! The model's `config.json`, as transformers writes it beside the weights.

use std::collections::BTreeMap;

use serde::Deserialize;
use tessera_sdk::Error;

/// What is read of it.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    id2label: BTreeMap<usize, String>,
    pub(crate) problem_type: Option<ProblemType>,
    #[serde(default, deserialize_with = "zero_for_null")]
    pub(crate) pad_token_id: u32,
}

/// What the numbers of the head mean.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProblemType {
    Regression,
    SingleLabelClassification,
    MultiLabelClassification,
}

impl Config {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Error> {
        let config: Self = serde_json::from_slice(json)
            .map_err(|error| Error::model(format!("asset `config.json` is no config of a model: {error}")))?;
        match config.id2label.keys().enumerate().find(|(place, id)| place != *id) {
            Some((place, _)) => Err(Error::model(format!("asset `config.json`: `id2label` has no label {place}"))),
            None => Ok(config),
        }
    }

    /// The labels by their ids. A config that names none is one whose labels are numbered.
    pub(crate) fn labels(&self, width: Option<u32>) -> Result<Vec<String>, Error> {
        if !self.id2label.is_empty() {
            return Ok(self.id2label.values().cloned().collect());
        }
        match width {
            Some(width) => Ok((0..width).map(|id| format!("LABEL_{id}")).collect()),
            None => Err(Error::model("asset `config.json` names no labels: `id2label` is missing")),
        }
    }

    /// How many labels the config names; without any, transformers takes it for two.
    pub(crate) fn labels_len(&self) -> usize {
        if self.id2label.is_empty() { 2 } else { self.id2label.len() }
    }
}

fn zero_for_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_in_the_order_of_their_ids() {
        let config = Config::parse(
            br#"{"id2label": {"10": "k", "0": "a", "1": "b", "2": "c", "3": "d", "4": "e", "5": "f",
            "6": "g", "7": "h", "8": "i", "9": "j"}, "pad_token_id": null, "problem_type": "regression"}"#,
        )
        .unwrap();
        assert_eq!(config.labels(None).unwrap().concat(), "abcdefghijk");
        assert_eq!((config.pad_token_id, config.problem_type), (0, Some(ProblemType::Regression)));
        let none = Config::parse(b"{}").unwrap();
        assert_eq!(none.labels(Some(2)).unwrap(), ["LABEL_0", "LABEL_1"]);
        assert!(none.labels(None).unwrap_err().message.contains("`id2label` is missing"));
    }

    #[test]
    fn a_config_that_is_none_is_named() {
        for (json, reason) in [
            (r#"{"id2label": {"0": "a", "2": "c"}}"#, "`id2label` has no label 1"),
            (r#"{"problem_type": "guess"}"#, "unknown variant `guess`"),
            ("[", "is no config of a model"),
        ] {
            let error = Config::parse(json.as_bytes()).unwrap_err();
            assert!(error.message.contains(reason), "{error}");
        }
    }
}
