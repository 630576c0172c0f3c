//! The tokenizer of a package, cut to what its model takes.

use tessera_sdk::{Error, Package};
use tokenizers::{Tokenizer, TruncationParams};

use crate::graph::Encoder;

/// Reads the asset `tokenizer.json`. Texts are cut at the setting `max_tokens`, or at `usual` without it, and never reach
/// beyond what the graph takes.
pub fn read(package: &Package, usual: usize, encoder: &Encoder) -> Result<Tokenizer, Error> {
    let wanted = package.setting("max_tokens").map_or(Ok(usual), |setting| parse_max_tokens(&setting))?;
    let max_tokens = encoder.sequence_len().map_or(wanted, |fixed| wanted.min(fixed));
    parse(&package.asset("tokenizer.json")?, max_tokens)
}

fn parse_max_tokens(setting: &str) -> Result<usize, Error> {
    // Below 3 there is no room for a token of the text between the two that begin and end it.
    setting.parse().ok().filter(|&tokens| tokens >= 3).ok_or_else(|| {
        Error::model(format!("setting `max_tokens` is `{setting}`; it must be a whole number of at least 3"))
    })
}

/// The file's own padding and truncation are those of the last training run, not of serving: both are replaced.
fn parse(json: &[u8], max_tokens: usize) -> Result<Tokenizer, Error> {
    let invalid = |error| Error::model(format!("asset `tokenizer.json` is no tokenizer: {error}"));
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(invalid)?;
    let truncation = TruncationParams { max_length: max_tokens, ..Default::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(invalid)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pads to 8 and truncates to 4 by itself, as files in the wild do.
    const TOKENIZER: &str = r#"{
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [], "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]}, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "hello": 4, "world": 5},
                  "unk_token": "[UNK]"}
    }"#;

    fn ids(max_tokens: usize, text: &str) -> Vec<u32> {
        let tokenizer = parse(TOKENIZER.as_bytes(), max_tokens).unwrap();
        tokenizer.encode_fast(text, true).unwrap().get_ids().to_vec()
    }

    #[test]
    fn the_padding_and_truncation_of_the_file_do_not_count() {
        assert_eq!(ids(256, "Hello world hello"), [1, 4, 5, 4, 2]);
    }

    #[test]
    fn a_long_text_is_cut_and_keeps_its_end_marker() {
        assert_eq!(ids(4, "hello world hello world"), [1, 4, 5, 2]);
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_named() {
        let error = parse(b"{}", 256).unwrap_err();
        assert!(error.message.starts_with("asset `tokenizer.json` is no tokenizer: "), "{error}");
    }

    #[test]
    fn max_tokens_must_leave_room_for_a_token() {
        assert_eq!(parse_max_tokens("128").unwrap(), 128);
        for wrong in ["2", "-1", "many", ""] {
            assert!(parse_max_tokens(wrong).is_err(), "{wrong}");
        }
    }
}
