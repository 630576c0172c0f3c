//! The encoder graph: which inputs it takes, and how a sentence vector is made of its output.

use tessera_openai::embeddings::normalize;
use tessera_sdk::{ElementType, Error, Graph, GraphInfo, Outputs, Tensor, TensorInfo};
use tokenizers::Encoding;

/// Texts per call of the graph where it leaves the choice: as sentence-transformers does. More would gain little, and
/// attention over the longest texts takes memory in proportion.
const BATCH_LEN: usize = 32;

/// A graph, read once.
#[derive(Debug)]
pub(crate) struct Model {
    graph: String,
    inputs: Vec<Input>,
    output: Output,
    /// Fixed by the model file, or free.
    batch_len: Option<usize>,
    sequence_len: Option<usize>,
}

#[derive(Debug)]
struct Input {
    name: String,
    role: Role,
    width: Width,
}

/// What an input means, by the name that exporters give it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Role {
    InputIds,
    AttentionMask,
    TokenTypeIds,
}

#[derive(Debug, Clone, Copy)]
enum Width {
    I32,
    I64,
}

#[derive(Debug)]
struct Output {
    name: String,
    /// The length of a vector, where the model file says it.
    width: Option<u32>,
    pooling: Pooling,
}

#[derive(Debug, PartialEq)]
enum Pooling {
    /// `[batch, hidden]`: the graph has pooled, and normalized if its training did.
    Done,
    /// `[batch, sequence, hidden]`: the mean over the tokens of the text, then length 1.
    Mean,
}

impl Model {
    pub(crate) fn new(graph: &str, info: &GraphInfo) -> Result<Self, Error> {
        let inputs: Result<Vec<Input>, Error> = info.inputs.iter().map(Input::new).collect();
        let inputs = inputs.map_err(|error| error.context(format!("graph `{graph}`")))?;
        if !inputs.iter().any(|input| input.role == Role::InputIds) {
            return Err(Error::model(format!("graph `{graph}` has no input `input_ids`: it is no text encoder")));
        }
        let axis =
            |axis: usize| info.inputs.iter().find_map(|input| *input.dimensions.get(axis)?).map(|len| len as usize);
        let output = Output::choose(info).map_err(|error| error.context(format!("graph `{graph}`")))?;
        Ok(Self { graph: graph.to_owned(), inputs, output, batch_len: axis(0), sequence_len: axis(1) })
    }

    /// The name of the graph in the package.
    pub(crate) fn graph_name(&self) -> &str {
        &self.graph
    }

    /// The length of a vector, where the model file says it.
    pub(crate) fn width(&self) -> Option<u32> {
        self.output.width
    }

    /// The sequence length that the graph insists on, if it does.
    pub(crate) fn sequence_len(&self) -> Option<usize> {
        self.sequence_len
    }

    /// One vector per text. Texts of like length share a batch, so that little of it is padding.
    pub(crate) fn embed(&self, encodings: &[Encoding]) -> Result<Vec<Vec<f32>>, Error> {
        let graph = Graph::named(&self.graph);
        let mut by_length: Vec<usize> = (0..encodings.len()).collect();
        by_length.sort_by_key(|&index| encodings[index].len());
        let mut vectors = vec![Vec::new(); encodings.len()];
        for indices in by_length.chunks(self.batch_len.unwrap_or(BATCH_LEN).max(1)) {
            let batch: Vec<&Encoding> = indices.iter().map(|&index| &encodings[index]).collect();
            for (&index, vector) in indices.iter().zip(self.embed_batch(&graph, &batch)?) {
                vectors[index] = vector;
            }
        }
        Ok(vectors)
    }

    fn embed_batch(&self, graph: &Graph<'_>, batch: &[&Encoding]) -> Result<Vec<Vec<f32>>, Error> {
        let longest = batch.iter().map(|encoding| encoding.len()).max().unwrap_or(0);
        let shape =
            Shape { batch: self.batch_len.unwrap_or(batch.len()), sequence: self.sequence_len.unwrap_or(longest) };
        let tensors: Result<Vec<Tensor<'static>>, Error> =
            self.inputs.iter().map(|input| input.tensor(batch, &shape)).collect();
        let tensors = tensors?;
        let outputs = graph.compute(self.inputs.iter().map(|input| input.name.as_str()).zip(&tensors))?;
        let lengths: Vec<usize> = batch.iter().map(|encoding| encoding.len()).collect();
        self.output.vectors(&outputs, &lengths, &shape)
    }
}

/// The shape of the inputs: every text is a row, padded to the same length.
struct Shape {
    batch: usize,
    sequence: usize,
}

impl Input {
    fn new(info: &TensorInfo) -> Result<Self, Error> {
        let name = info.name.clone();
        let role = match name.as_str() {
            "input_ids" => Role::InputIds,
            "attention_mask" => Role::AttentionMask,
            "token_type_ids" => Role::TokenTypeIds,
            _ => return Err(Error::model(format!("nobody knows what to give to its input `{name}`"))),
        };
        let width = match info.element {
            ElementType::I64 => Width::I64,
            ElementType::I32 => Width::I32,
            other => return Err(Error::model(format!("its input `{name}` is {}, not i64 or i32", other.name()))),
        };
        Ok(Self { name, role, width })
    }

    fn tensor(&self, batch: &[&Encoding], shape: &Shape) -> Result<Tensor<'static>, Error> {
        let rows: Vec<&[u32]> = batch
            .iter()
            .map(|encoding| match self.role {
                Role::InputIds => encoding.get_ids(),
                Role::AttentionMask => encoding.get_attention_mask(),
                Role::TokenTypeIds => encoding.get_type_ids(),
            })
            .collect();
        let dims = [shape.batch as u32, shape.sequence as u32];
        Ok(match self.width {
            Width::I64 => Tensor::new(&dims, &padded::<i64>(&rows, shape))?.into_owned(),
            Width::I32 => {
                let values: Vec<i32> = padded::<i64>(&rows, shape).into_iter().map(|value| value as i32).collect();
                Tensor::new(&dims, &values)?.into_owned()
            }
        })
    }
}

impl Output {
    /// `sentence_embedding` if there is one, otherwise the first: exporters that give `last_hidden_state` put it there,
    /// and the `pooler_output` behind it is not what sentence encoders are trained for.
    fn choose(info: &GraphInfo) -> Result<Self, Error> {
        let output = info.output("sentence_embedding").or(info.outputs.first());
        let output = output.ok_or_else(|| Error::model("it has no outputs"))?;
        if output.element != ElementType::Fp32 {
            return Err(Error::model(format!("its output `{}` is {}, not fp32", output.name, output.element.name())));
        }
        let pooling = match output.dimensions.len() {
            2 => Pooling::Done,
            3 => Pooling::Mean,
            rank => return Err(Error::model(format!("its output `{}` has rank {rank}, not 2 or 3", output.name))),
        };
        let width = output.dimensions.last().copied().flatten();
        Ok(Self { name: output.name.clone(), width, pooling })
    }

    fn vectors(&self, outputs: &Outputs, lengths: &[usize], shape: &Shape) -> Result<Vec<Vec<f32>>, Error> {
        let tensor = outputs.get(&self.name)?;
        let hidden = match (&self.pooling, tensor.dims()) {
            (Pooling::Done, &[batch, hidden]) if batch as usize == shape.batch => hidden as usize,
            (Pooling::Mean, &[batch, sequence, hidden])
                if batch as usize == shape.batch && sequence as usize == shape.sequence =>
            {
                hidden as usize
            }
            (_, dims) => return Err(Error::model(format!("output `{}` came with the shape {dims:?}", self.name))),
        };
        let values = tensor.as_slice::<f32>()?;
        if hidden == 0 {
            return Err(Error::model(format!("output `{}` came with vectors of no length", self.name)));
        }
        Ok(match self.pooling {
            Pooling::Done => values.chunks(hidden).take(lengths.len()).map(<[f32]>::to_vec).collect(),
            Pooling::Mean => {
                let rows = values.chunks(hidden * shape.sequence).zip(lengths);
                rows.map(|(row, &length)| mean(&row[..hidden * length], hidden)).collect()
            }
        })
    }
}

/// The rows one after the other, each filled up with zeros, and rows of zeros up to the batch length. Zero is the id of
/// `[PAD]` for nearly every tokenizer; the attention mask makes it irrelevant for the others.
fn padded<T: From<u32> + Default + Clone>(rows: &[&[u32]], shape: &Shape) -> Vec<T> {
    let mut values = vec![T::default(); shape.batch * shape.sequence];
    for (row, to) in rows.iter().zip(values.chunks_mut(shape.sequence.max(1))) {
        for (value, to) in row.iter().zip(to) {
            *to = T::from(*value);
        }
    }
    values
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
    use super::*;

    fn tensor_info(name: &str, element: ElementType, dimensions: &[Option<u32>]) -> TensorInfo {
        TensorInfo { name: name.to_owned(), element, dimensions: dimensions.to_vec() }
    }

    fn encoder(outputs: Vec<TensorInfo>) -> GraphInfo {
        let free = [None, None];
        let inputs = ["input_ids", "attention_mask"].map(|name| tensor_info(name, ElementType::I64, &free));
        GraphInfo { inputs: inputs.to_vec(), outputs }
    }

    #[test]
    fn rank_3_is_pooled_here_and_rank_2_was_pooled_in_the_graph() {
        let hidden = tensor_info("last_hidden_state", ElementType::Fp32, &[None, None, Some(384)]);
        let pooler = tensor_info("pooler_output", ElementType::Fp32, &[None, Some(384)]);
        let sentence = tensor_info("sentence_embedding", ElementType::Fp32, &[None, Some(384)]);
        let choose = |outputs| Model::new("model", &encoder(outputs)).unwrap().output;
        let of_transformers = choose(vec![hidden.clone(), pooler]);
        assert_eq!((of_transformers.name.as_str(), of_transformers.pooling), ("last_hidden_state", Pooling::Mean));
        let of_sentence_transformers = choose(vec![hidden, sentence]);
        assert_eq!(of_sentence_transformers.pooling, Pooling::Done);
    }

    #[test]
    fn a_graph_that_is_no_encoder_is_refused() {
        let fp32 = tensor_info("y", ElementType::Fp32, &[None, Some(3)]);
        let no_ids = GraphInfo { inputs: Vec::new(), outputs: vec![fp32.clone()] };
        let error = Model::new("iris", &no_ids).unwrap_err();
        assert_eq!(error.message, "graph `iris` has no input `input_ids`: it is no text encoder");
        let unknown = GraphInfo { inputs: vec![fp32.clone()], outputs: vec![fp32] };
        assert!(Model::new("iris", &unknown).unwrap_err().message.contains("input `y`"));
    }

    #[test]
    fn the_axes_that_the_graph_fixes_are_kept() {
        let output = tensor_info("y", ElementType::Fp32, &[Some(1), Some(3)]);
        let ids = tensor_info("input_ids", ElementType::I32, &[Some(1), Some(64)]);
        let model = Model::new("model", &GraphInfo { inputs: vec![ids], outputs: vec![output] }).unwrap();
        assert_eq!((model.batch_len, model.sequence_len()), (Some(1), Some(64)));
    }

    #[test]
    fn rows_are_padded_to_the_shape() {
        let shape = Shape { batch: 3, sequence: 3 };
        assert_eq!(padded::<i64>(&[&[7, 8, 9], &[5]], &shape), [7, 8, 9, 5, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_mean_has_length_1_and_zeros_stay() {
        assert_eq!(mean(&[1.0, 0.0, 5.0, 8.0], 2), [0.6, 0.8]);
        assert_eq!(mean(&[0.0, 0.0], 2), [0.0, 0.0]);
    }
}
