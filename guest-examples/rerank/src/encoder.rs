//! Texts as vectors: the tokenizer runs here, the encoder in a backend.

use tessera_sdk::{Error, Graph, Tensor};
use tokenizers::{Encoding, Tokenizer, TruncationParams};

/// What the model was trained for; of longer texts the rest is not read.
const TOKENS_MAX: usize = 256;

/// Texts of one computation.
const BATCH: usize = 32;

pub(crate) struct Encoder {
    tokenizer: Tokenizer,
}

impl Encoder {
    /// The file's own padding and truncation are those of the last training run: both are replaced.
    pub(crate) fn new(json: &[u8]) -> Result<Self, Error> {
        let invalid = |error| Error::model(format!("asset `tokenizer.json` is no tokenizer: {error}"));
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(invalid)?;
        let truncation = TruncationParams { max_length: TOKENS_MAX, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(invalid)?.with_padding(None);
        Ok(Self { tokenizer })
    }

    /// A vector of length 1 for each text. Texts of like length share a batch, so that little of it is padding.
    pub(crate) fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, Error> {
        let encode = |text: &&str| self.tokenizer.encode_fast(*text, true);
        let encodings: Result<Vec<Encoding>, _> = texts.iter().map(encode).collect();
        let encodings = encodings.map_err(|error| Error::invalid_input(format!("failed to tokenize: {error}")))?;
        let mut by_length: Vec<usize> = (0..encodings.len()).collect();
        by_length.sort_by_key(|&index| encodings[index].len());
        let mut vectors = vec![Vec::new(); encodings.len()];
        for batch in by_length.chunks(BATCH) {
            let rows: Vec<&Encoding> = batch.iter().map(|&index| &encodings[index]).collect();
            for (&index, vector) in batch.iter().zip(embed(&rows)?) {
                vectors[index] = vector;
            }
        }
        Ok(vectors)
    }
}

fn embed(batch: &[&Encoding]) -> Result<Vec<Vec<f32>>, Error> {
    let longest = batch.iter().map(|encoding| encoding.len()).max().unwrap_or(0);
    let tensor = |part: fn(&Encoding) -> &[u32]| {
        // 0 is the id of padding, which the mask hides.
        let row = |encoding: &&Encoding| {
            let values = part(encoding).iter().map(|&value| i64::from(value));
            values.chain(std::iter::repeat(0)).take(longest).collect::<Vec<i64>>()
        };
        Tensor::from_vec(&[batch.len() as u32, longest as u32], batch.iter().flat_map(row).collect())
    };
    let inputs = [
        ("input_ids", &tensor(Encoding::get_ids)?),
        ("attention_mask", &tensor(Encoding::get_attention_mask)?),
        ("token_type_ids", &tensor(Encoding::get_type_ids)?),
    ];
    let outputs = Graph::named("model").compute(inputs)?;
    let vectors = outputs.get("sentence_embedding")?;
    match *vectors.dims() {
        [rows, width] if rows as usize == batch.len() && width > 0 => {
            Ok(vectors.as_slice::<f32>()?.chunks(width as usize).map(<[f32]>::to_vec).collect())
        }
        ref dims => Err(Error::model(format!("the model gave vectors of shape {dims:?} for {} texts", batch.len()))),
    }
}
