//! Which output of the encoder graph is the sentence's, and how a vector is made of it.

use tessera_encoder::graph::{Encoder, Output};
use tessera_openai::embeddings::normalize;
use tessera_sdk::{Error, GraphInfo};
use tokenizers::Encoding;

/// A graph, read once.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) encoder: Encoder,
    /// With a row per text the graph has pooled, and normalized if its training did; of rows per token the vector is the
    /// mean, with length 1.
    output: Output,
}

impl Model {
    pub(crate) fn new(graph: &str, info: &GraphInfo) -> Result<Self, Error> {
        // Zero is the id of `[PAD]` for nearly every tokenizer, and no sentence encoder looks at it.
        let encoder = Encoder::new(graph, info, 0)?;
        let output = choose(info).map_err(|error| error.context(format!("graph `{graph}`")))?;
        Ok(Self { encoder, output })
    }

    /// The length of a vector, where the model file says it.
    pub(crate) fn width(&self) -> Option<u32> {
        self.output.width
    }

    /// One vector per text.
    pub(crate) fn embed(&self, encodings: &[Encoding]) -> Result<Vec<Vec<f32>>, Error> {
        self.encoder.run(encodings, &self.output, |_, row, width| match self.output.per_token {
            true => mean(row, width),
            false => row.to_vec(),
        })
    }
}

/// `sentence_embedding` if there is one, otherwise the first: exporters that give `last_hidden_state` put it there, and the
/// `pooler_output` behind it is not what sentence encoders are trained for.
fn choose(info: &GraphInfo) -> Result<Output, Error> {
    let output = info.output("sentence_embedding").or(info.outputs.first());
    Output::new(output.ok_or_else(|| Error::model("it has no outputs"))?)
}

/// The mean of the token vectors, with length 1. There is at least one: a text has its begin and end tokens.
fn mean(tokens: &[f32], hidden: usize) -> Vec<f32> {
    let mut sum = vec![0.0; hidden];
    for token in tokens.chunks(hidden) {
        for (sum, value) in sum.iter_mut().zip(token) {
            *sum += value;
        }
    }
    // The count of tokens falls out: the length becomes 1 in any case.
    normalize(&mut sum);
    sum
}

#[cfg(test)]
mod tests {
    use tessera_sdk::{ElementType, TensorInfo};

    use super::*;

    #[test]
    fn rank_3_is_pooled_here_and_rank_2_was_pooled_in_the_graph() {
        let output = |name: &str, dimensions: &[Option<u32>]| TensorInfo {
            name: name.to_owned(),
            element: ElementType::Fp32,
            dimensions: dimensions.to_vec(),
        };
        let hidden = output("last_hidden_state", &[None, None, Some(384)]);
        let pooler = output("pooler_output", &[None, Some(384)]);
        let sentence = output("sentence_embedding", &[None, Some(384)]);
        let choose = |outputs| choose(&GraphInfo { inputs: Vec::new(), outputs }).unwrap();
        let of_transformers = choose(vec![hidden.clone(), pooler]);
        assert_eq!((of_transformers.name.as_str(), of_transformers.per_token), ("last_hidden_state", true));
        assert!(!choose(vec![hidden, sentence]).per_token);
    }

    #[test]
    fn the_mean_has_length_1_and_zeros_stay() {
        assert_eq!(mean(&[1.0, 0.0, 5.0, 8.0], 2), [0.6, 0.8]);
        assert_eq!(mean(&[0.0, 0.0], 2), [0.0, 0.0]);
    }
}
