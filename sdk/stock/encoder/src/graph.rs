//! The encoder graph: which inputs it takes, how texts share a run of it, and what it gives for each.

use tessera_sdk::{ElementType, Error, Graph, GraphInfo, Outputs, Tensor, TensorInfo};
use tokenizers::Encoding;

/// Texts per call of the graph where it leaves the choice: as sentence-transformers does. More would gain little, and
/// attention over the longest texts takes memory in proportion.
const BATCH_LEN: usize = 32;

/// A graph, read once.
#[derive(Debug)]
pub struct Encoder {
    graph: String,
    inputs: Vec<Input>,
    /// Fixed by the model file, or free.
    batch_len: Option<usize>,
    sequence_len: Option<usize>,
    pad_id: u32,
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

/// What the graph gives: a row of numbers per text, or one per token.
#[derive(Debug)]
pub struct Output {
    /// Its name in the graph.
    pub name: String,
    /// The length of a row, where the model file says it.
    pub width: Option<u32>,
    /// Whether its shape is `[batch, sequence, width]` and not `[batch, width]`.
    pub per_token: bool,
}

/// Texts of one run: of like length, each a row, padded to the same length.
#[derive(Debug)]
struct Batch<'e> {
    encodings: Vec<&'e Encoding>,
    batch: usize,
    sequence: usize,
}

impl Encoder {
    /// Finds out what the graph takes. `pad_id` is the token that rows are filled up with: the attention mask makes it
    /// irrelevant to most models, but not to those that look for the last token by it.
    pub fn new(graph: &str, info: &GraphInfo, pad_id: u32) -> Result<Self, Error> {
        let inputs: Result<Vec<Input>, Error> = info.inputs.iter().map(Input::new).collect();
        let inputs = inputs.map_err(|error| error.context(format!("graph `{graph}`")))?;
        if !inputs.iter().any(|input| input.role == Role::InputIds) {
            return Err(Error::model(format!("graph `{graph}` has no input `input_ids`: it is no text encoder")));
        }
        let axis =
            |axis: usize| info.inputs.iter().find_map(|input| *input.dimensions.get(axis)?).map(|len| len as usize);
        Ok(Self { graph: graph.to_owned(), inputs, batch_len: axis(0), sequence_len: axis(1), pad_id })
    }

    /// The name of the graph in the package.
    pub fn graph_name(&self) -> &str {
        &self.graph
    }

    /// The sequence length that the graph insists on, if it does.
    pub fn sequence_len(&self) -> Option<usize> {
        self.sequence_len
    }

    /// Runs the graph for texts, and gives what `read` makes of each one's row of the output: of the rows of its tokens,
    /// one after the other and without padding, where the output has one per token. Texts of like length share a run, so
    /// that little of it is padding.
    pub fn run<T>(
        &self,
        encodings: &[Encoding],
        output: &Output,
        read: impl Fn(&Encoding, &[f32], usize) -> T,
    ) -> Result<Vec<T>, Error> {
        let mut by_length: Vec<usize> = (0..encodings.len()).collect();
        by_length.sort_by_key(|&index| encodings[index].len());
        let mut made = Vec::with_capacity(encodings.len());
        for indices in by_length.chunks(self.batch_len.unwrap_or(BATCH_LEN).max(1)) {
            let batch = self.batch(indices.iter().map(|&index| &encodings[index]).collect());
            let outputs = self.compute(&batch)?;
            let tensor = outputs.get(&output.name)?;
            let width = output.width_of(tensor.dims(), &batch)?;
            let values = tensor.as_slice::<f32>()?;
            let rows = values.chunks(if output.per_token { width * batch.sequence } else { width });
            for ((&index, encoding), row) in indices.iter().zip(&batch.encodings).zip(rows) {
                let own = if output.per_token { width * encoding.len() } else { width };
                let row = row.get(..own).unwrap_or(row);
                made.push((index, read(encoding, row, width)));
            }
        }
        made.sort_by_key(|(index, _)| *index);
        Ok(made.into_iter().map(|(_, made)| made).collect())
    }

    fn batch<'e>(&self, encodings: Vec<&'e Encoding>) -> Batch<'e> {
        let longest = encodings.iter().map(|encoding| encoding.len()).max().unwrap_or(0);
        let (batch, sequence) = (self.batch_len.unwrap_or(encodings.len()), self.sequence_len.unwrap_or(longest));
        Batch { encodings, batch, sequence }
    }

    fn compute(&self, batch: &Batch<'_>) -> Result<Outputs, Error> {
        let tensors: Result<Vec<Tensor<'static>>, Error> =
            self.inputs.iter().map(|input| input.tensor(batch, self.pad_id)).collect();
        let tensors = tensors?;
        Graph::named(&self.graph).compute(self.inputs.iter().map(|input| input.name.as_str()).zip(&tensors))
    }
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

    fn tensor(&self, batch: &Batch<'_>, pad_id: u32) -> Result<Tensor<'static>, Error> {
        let (row, padding): (fn(&Encoding) -> &[u32], u32) = match self.role {
            Role::InputIds => (Encoding::get_ids, pad_id),
            Role::AttentionMask => (Encoding::get_attention_mask, 0),
            Role::TokenTypeIds => (Encoding::get_type_ids, 0),
        };
        let rows: Vec<&[u32]> = batch.encodings.iter().map(|encoding| row(encoding)).collect();
        let dims = [batch.batch as u32, batch.sequence as u32];
        let values = padded(&rows, batch.batch, batch.sequence, padding);
        match self.width {
            Width::I64 => Tensor::from_vec(&dims, values),
            Width::I32 => Tensor::from_vec(&dims, values.into_iter().map(|value| value as i32).collect()),
        }
    }
}

impl Output {
    /// An output of floating-point numbers, of rank 2 or 3.
    pub fn new(info: &TensorInfo) -> Result<Self, Error> {
        if info.element != ElementType::Fp32 {
            return Err(Error::model(format!("its output `{}` is {}, not fp32", info.name, info.element.name())));
        }
        let per_token = match info.dimensions.len() {
            2 => false,
            3 => true,
            rank => return Err(Error::model(format!("its output `{}` has rank {rank}, not 2 or 3", info.name))),
        };
        Ok(Self { name: info.name.clone(), width: info.dimensions.last().copied().flatten(), per_token })
    }

    fn width_of(&self, dims: &[u32], asked: &Batch<'_>) -> Result<usize, Error> {
        let width = match (self.per_token, dims) {
            (false, &[batch, width]) if batch as usize == asked.batch => width,
            (true, &[batch, sequence, width])
                if batch as usize == asked.batch && sequence as usize == asked.sequence =>
            {
                width
            }
            _ => return Err(Error::model(format!("output `{}` came with the shape {dims:?}", self.name))),
        };
        if width == 0 {
            return Err(Error::model(format!("output `{}` came with vectors of no length", self.name)));
        }
        Ok(width as usize)
    }
}

/// The rows one after the other, each filled up to `sequence` with `padding`, and rows of it up to `batch`.
fn padded(rows: &[&[u32]], batch: usize, sequence: usize, padding: u32) -> Vec<i64> {
    let mut values = vec![i64::from(padding); batch * sequence];
    for (row, to) in rows.iter().zip(values.chunks_mut(sequence.max(1))) {
        for (value, to) in row.iter().zip(to) {
            *to = i64::from(*value);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor_info(name: &str, element: ElementType, dimensions: &[Option<u32>]) -> TensorInfo {
        TensorInfo { name: name.to_owned(), element, dimensions: dimensions.to_vec() }
    }

    #[test]
    fn a_graph_that_is_no_encoder_is_refused() {
        let fp32 = tensor_info("y", ElementType::Fp32, &[None, Some(3)]);
        let no_ids = GraphInfo { inputs: Vec::new(), outputs: vec![fp32.clone()] };
        let error = Encoder::new("iris", &no_ids, 0).unwrap_err();
        assert_eq!(error.message, "graph `iris` has no input `input_ids`: it is no text encoder");
        let unknown = GraphInfo { inputs: vec![fp32.clone()], outputs: vec![fp32] };
        assert!(Encoder::new("iris", &unknown, 0).unwrap_err().message.contains("input `y`"));
    }

    #[test]
    fn the_axes_that_the_graph_fixes_are_kept() {
        let ids = tensor_info("input_ids", ElementType::I32, &[Some(1), Some(64)]);
        let encoder = Encoder::new("model", &GraphInfo { inputs: vec![ids], outputs: vec![] }, 0).unwrap();
        assert_eq!((encoder.batch_len, encoder.sequence_len()), (Some(1), Some(64)));
    }

    #[test]
    fn rows_are_padded_to_the_shape() {
        assert_eq!(padded(&[&[7, 8, 9], &[5]], 3, 3, 0), [7, 8, 9, 5, 0, 0, 0, 0, 0]);
        assert_eq!(padded(&[&[7, 8], &[5]], 2, 2, 1), [7, 8, 5, 1]);
    }

    #[test]
    fn an_output_says_whether_it_is_of_texts_or_of_tokens() {
        let output = |element, dimensions: &[Option<u32>]| Output::new(&tensor_info("y", element, dimensions));
        let of_texts = output(ElementType::Fp32, &[None, Some(3)]).unwrap();
        assert_eq!((of_texts.per_token, of_texts.width), (false, Some(3)));
        assert!(output(ElementType::Fp32, &[None, None, None]).unwrap().per_token);
        assert_eq!(output(ElementType::Fp32, &[None]).unwrap_err().message, "its output `y` has rank 1, not 2 or 3");
        assert_eq!(output(ElementType::I64, &[None, None]).unwrap_err().message, "its output `y` is i64, not fp32");
    }
}
