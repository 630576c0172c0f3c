//! The two files of the magika package, read once at deploy: how the model wants its input and what its scores mean
//! (`config.min.json`), and what is known of each kind of file (`content_types_kb.min.json`).

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tessera_sdk::Error;

/// What the model was trained with.
#[derive(Debug, Deserialize)]
pub(crate) struct ModelConfig {
    /// Tokens from the beginning of the file, and from its end.
    pub(crate) beg_size: usize,
    pub(crate) end_size: usize,
    mid_size: usize,
    use_inputs_at_offsets: bool,
    /// Bytes read at either end, of which whitespace is stripped before the tokens are taken.
    pub(crate) block_size: usize,
    /// Stands where the file is too short: a value that no byte has.
    pub(crate) padding_token: i32,
    /// Below it the model is not asked.
    pub(crate) min_file_size_for_dl: usize,
    /// The label of each score.
    pub(crate) target_labels_space: Vec<String>,
    /// The score from which a label is believed: in fp64, for in fp32 a score just below 0.9 would pass for 0.9...
    pub(crate) medium_confidence_threshold: f64,
    /// ...unless the label is in here, with a score of its own.
    pub(crate) thresholds: HashMap<String, f64>,
    /// Labels of the training that are called something else in an answer.
    pub(crate) overwrite_map: HashMap<String, String>,
}

impl ModelConfig {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Error> {
        let config: Self = serde_json::from_slice(json)
            .map_err(|error| Error::model(format!("failed to parse asset `config.min.json`: {error}")))?;
        // Two things older models did, and two sizes that would not fit the code below.
        let as_expected = config.mid_size == 0
            && !config.use_inputs_at_offsets
            && config.beg_size.max(config.end_size) < config.block_size
            && (1..=config.beg_size).contains(&config.min_file_size_for_dl);
        if !as_expected {
            return Err(Error::model("asset `config.min.json` asks for features that this example does not extract"));
        }
        Ok(config)
    }
}

/// What is known of each kind of file, by label.
#[derive(Debug)]
pub(crate) struct KnowledgeBase(HashMap<String, ContentType>);

/// A kind of file.
#[derive(Debug, Serialize)]
pub(crate) struct ContentType {
    pub(crate) mime_type: String,
    pub(crate) group: String,
    pub(crate) description: String,
    pub(crate) extensions: Vec<String>,
    pub(crate) is_text: bool,
}

impl KnowledgeBase {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Entry {
            mime_type: Option<String>,
            group: Option<String>,
            description: Option<String>,
            extensions: Vec<String>,
            is_text: bool,
        }
        let entries: HashMap<String, Entry> = serde_json::from_slice(json)
            .map_err(|error| Error::model(format!("failed to parse asset `content_types_kb.min.json`: {error}")))?;
        let complete = |(label, entry): (String, Entry)| {
            let mime_type = if entry.is_text { "text/plain" } else { "application/octet-stream" };
            let content_type = ContentType {
                mime_type: entry.mime_type.unwrap_or_else(|| mime_type.to_owned()),
                group: entry.group.unwrap_or_else(|| "unknown".to_owned()),
                description: entry.description.unwrap_or_else(|| label.clone()),
                extensions: entry.extensions,
                is_text: entry.is_text,
            };
            (label, content_type)
        };
        Ok(Self(entries.into_iter().map(complete).collect()))
    }

    pub(crate) fn get(&self, label: &str) -> Result<&ContentType, Error> {
        let unknown = || Error::model(format!("asset `content_types_kb.min.json` does not know the label `{label}`"));
        self.0.get(label).ok_or_else(unknown)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The sizes of the real model, and few labels.
    pub(crate) fn config() -> ModelConfig {
        let json = br#"{
            "beg_size": 1024, "mid_size": 0, "end_size": 1024, "use_inputs_at_offsets": false,
            "medium_confidence_threshold": 0.5, "min_file_size_for_dl": 8, "padding_token": 256, "block_size": 4096,
            "target_labels_space": ["markdown", "randomtxt", "png", "txt"], "thresholds": {"markdown": 0.75},
            "overwrite_map": {"randomtxt": "txt"}, "protection": "none", "version_major": 3
        }"#;
        ModelConfig::parse(json).unwrap()
    }

    pub(crate) fn knowledge() -> KnowledgeBase {
        let json = br#"{
            "markdown": {"mime_type": "text/markdown", "group": "text", "description": "Markdown document",
                         "extensions": ["md"], "is_text": true},
            "png": {"mime_type": "image/png", "group": "image", "description": "PNG image",
                    "extensions": ["png"], "is_text": false},
            "randomtxt": {"mime_type": null, "group": null, "description": null, "extensions": [], "is_text": true},
            "txt": {"mime_type": null, "group": "text", "description": "Generic text", "extensions": ["txt"],
                    "is_text": true},
            "unknown": {"mime_type": null, "group": null, "description": null, "extensions": [], "is_text": false}
        }"#;
        KnowledgeBase::parse(json).unwrap()
    }

    #[test]
    fn what_the_knowledge_base_leaves_out_has_a_default() {
        let knowledge = knowledge();
        let (txt, unknown) = (knowledge.get("txt").unwrap(), knowledge.get("unknown").unwrap());
        assert_eq!((txt.mime_type.as_str(), unknown.mime_type.as_str()), ("text/plain", "application/octet-stream"));
        assert_eq!((unknown.group.as_str(), unknown.description.as_str()), ("unknown", "unknown"));
    }
}
