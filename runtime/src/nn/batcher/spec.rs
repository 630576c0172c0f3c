//! What a package says about batching one of its graphs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most buckets of a [`Padding`].
const BUCKETS_MAX: usize = 32;

/// The manifest's `[graphs.NAME.batch]`. Without it a graph is batched as far as the deploy proves that it can be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchSpec {
    /// Most rows of one run; 1 keeps the rows of different requests apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_max: Option<u32>,
    /// How inputs of different lengths may run together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad: Option<Padding>,
}

/// Padding of axis 1, so that sequences of similar length share a run.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Padding {
    /// Lengths that bound the waste: sequences run together when the same bucket is the smallest that holds them. A
    /// longer one than the last runs with its equals only.
    pub buckets: Vec<u32>,
    /// The inputs to fill up, and with what. A mask among them tells the model which positions are real.
    pub values: BTreeMap<String, i32>,
}

impl BatchSpec {
    /// Checks what a manifest says; the inputs' names are checked when the graph is there.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        if self.rows_max == Some(0) {
            return Err("batch.rows_max is 0; 1 keeps requests apart".to_owned());
        }
        let Some(pad) = &self.pad else { return Ok(()) };
        if pad.values.is_empty() {
            return Err("batch.pad.values names no input".to_owned());
        }
        if pad.buckets.is_empty() || pad.buckets.len() > BUCKETS_MAX {
            return Err(format!("batch.pad.buckets has {} entries; 1 to {BUCKETS_MAX} are allowed", pad.buckets.len()));
        }
        if !pad.buckets.is_sorted_by(|a, b| a < b) {
            return Err("batch.pad.buckets do not grow".to_owned());
        }
        Ok(())
    }
}

impl Padding {
    /// The length up to which a sequence may be filled; its own when it is longer than all buckets.
    pub(super) fn bucket(&self, length: u32) -> u32 {
        self.buckets.iter().copied().find(|&bucket| bucket >= length).unwrap_or(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn padding(buckets: &[u32]) -> Padding {
        Padding { buckets: buckets.to_vec(), values: BTreeMap::from([("x".to_owned(), 0)]) }
    }

    #[test]
    fn a_sequence_is_filled_to_the_smallest_bucket_that_holds_it() {
        let pad = padding(&[16, 32]);
        assert_eq!([1, 16, 17, 32, 33].map(|length| pad.bucket(length)), [16, 16, 32, 32, 33]);
    }

    #[test]
    fn a_spec_that_cannot_be_is_refused() {
        let check = |pad| BatchSpec { rows_max: None, pad: Some(pad) }.check();
        assert!(check(padding(&[16, 32])).is_ok());
        assert!(check(padding(&[])).is_err());
        assert!(check(padding(&[32, 16])).is_err());
        assert!(check(Padding { buckets: vec![16], values: BTreeMap::new() }).is_err());
        assert!(BatchSpec { rows_max: Some(0), pad: None }.check().is_err());
    }
}
