//! Texts in, vectors out, over OpenAI's embeddings API.
//!
//! ```text
//! {"input": ["one text", "another"]}  →  {"data": [{"index": 0, "embedding": [0.1, …]}, …], …}
//! ```

use serde::{Deserialize, Serialize};
use tessera_sdk::{Endpoint, Error, Graph, GraphInfo, Package, Request, Response, Tensor};
use tokenizers::{Encoding, Tokenizer, TruncationParams};

/// Texts are cut here. Of an encoder: what it was trained for.
const TOKENS_MAX: usize = 256;

/// Texts of one request.
const TEXTS_MAX: usize = 256;

tessera_sdk::export!(Embeddings);

struct Embeddings {
    tokenizer: Tokenizer,
    graph: GraphInfo,
}

#[derive(Deserialize)]
struct Asked {
    input: Input,
    /// The endpoint, as OpenAI's clients name it; it comes back with the answer.
    #[serde(default)]
    model: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    One(String),
    Many(Vec<String>),
}

#[derive(Serialize)]
struct Answer {
    object: &'static str,
    model: String,
    data: Vec<Datum>,
    usage: Usage,
}

#[derive(Serialize)]
struct Datum {
    object: &'static str,
    index: usize,
    embedding: Vec<f32>,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Endpoint for Embeddings {
    /// Runs once, at deploy. The memory it leaves is what every request starts from: the tokenizer is built only here.
    fn init(package: &Package) -> Result<Self, Error> {
        let invalid = |error| Error::model(format!("tokenizer.json is no tokenizer: {error}"));
        let mut tokenizer = Tokenizer::from_bytes(package.asset("tokenizer.json")?).map_err(invalid)?;
        let truncation = TruncationParams { max_length: TOKENS_MAX, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(invalid)?.with_padding(None);
        Ok(Embeddings { tokenizer, graph: package.graph("model")? })
    }

    /// Runs for each request, in an instance that has seen no other.
    fn handle(&self, request: Request) -> Result<Response, Error> {
        let Asked { input, model } = request.json()?;
        let texts = match input {
            Input::One(text) => vec![text],
            Input::Many(texts) => texts,
        };
        if texts.is_empty() || texts.len() > TEXTS_MAX {
            return Err(Error::invalid_input(format!("`input` has {} texts; give 1 to {TEXTS_MAX}", texts.len())));
        }
        let encodings: Result<Vec<Encoding>, _> =
            texts.iter().map(|text| self.tokenizer.encode_fast(text.as_str(), true)).collect();
        let encodings = encodings.map_err(|error| Error::invalid_input(format!("`input` has no tokens: {error}")))?;
        let vectors = self.embed(&encodings)?.into_iter().enumerate();
        let data = vectors.map(|(index, embedding)| Datum { object: "embedding", index, embedding }).collect();
        let prompt_tokens = encodings.iter().map(Encoding::len).sum();
        let usage = Usage { prompt_tokens, total_tokens: prompt_tokens };
        Response::json(&Answer { object: "list", model, data, usage })
    }
}

impl Embeddings {
    /// One vector for each text, in one computation: shorter texts are filled up with tokens that the mask hides.
    fn embed(&self, texts: &[Encoding]) -> Result<Vec<Vec<f32>>, Error> {
        let longest = texts.iter().map(Encoding::len).max().unwrap_or(0);
        let tensor = |part: fn(&Encoding) -> &[u32]| {
            let row = |text: &Encoding| {
                let mut row: Vec<i64> = part(text).iter().map(|&value| value.into()).collect();
                row.resize(longest, 0);
                row
            };
            Tensor::from_vec(&[texts.len() as u32, longest as u32], texts.iter().flat_map(row).collect())
        };
        // Encoders take two or three of these.
        let known = [
            ("input_ids", tensor(Encoding::get_ids)?),
            ("attention_mask", tensor(Encoding::get_attention_mask)?),
            ("token_type_ids", tensor(Encoding::get_type_ids)?),
        ];
        let inputs = known.iter().filter(|(name, _)| self.graph.input(name).is_some());
        let outputs = Graph::named("model").compute(inputs.map(|(name, tensor)| (*name, tensor)))?;
        let vectors = outputs.at(0)?;
        match *vectors.dims() {
            [rows, width] if rows as usize == texts.len() && width > 0 => {
                Ok(vectors.as_slice::<f32>()?.chunks(width as usize).map(<[f32]>::to_vec).collect())
            }
            ref dims => Err(Error::model(format!("the model gives {dims:?}, not one vector for each text"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_sdk::testing::{Deployed, Host};
    use tessera_sdk::{ElementType, TensorInfo};

    /// A stand-in for the model: a vector has the first and the last token of its text.
    fn endpoint() -> Deployed<Embeddings> {
        let input = |name: &str| TensorInfo { name: name.to_owned(), element: ElementType::I64, dimensions: vec![None; 2] };
        let inputs = vec![input("input_ids"), input("attention_mask")];
        let host = Host::new().asset("tokenizer.json", include_str!("../tokenizer.json"));
        let host = host.describe("model", GraphInfo { inputs, outputs: vec![] }).graph("model", |inputs| {
            assert_eq!(inputs.names(), ["input_ids", "attention_mask"]);
            let (ids, mask) = (inputs.get("input_ids")?, inputs.get("attention_mask")?);
            let width = ids.dims()[1] as usize;
            let (ids, mask) = (ids.as_slice::<i64>()?, mask.as_slice::<i64>()?);
            let rows = ids.chunks(width).zip(mask.chunks(width));
            let ends = rows.flat_map(|(ids, mask)| [ids[0] as f32, ids[mask.iter().sum::<i64>() as usize - 1] as f32]);
            let ends: Vec<f32> = ends.collect();
            Ok(vec![("sentence_embedding", Tensor::from_vec(&[ends.len() as u32 / 2, 2], ends)?)])
        });
        host.deploy().unwrap()
    }

    fn ask(body: &str) -> Result<serde_json::Value, Error> {
        let response = endpoint().call(Request::new("invocations", "application/json", body))?;
        Ok(serde_json::from_slice(response.parts().unwrap().2).unwrap())
    }

    #[test]
    fn every_text_gets_a_vector() {
        let answer = ask(r#"{"model": "e", "input": ["a request", "a request that waits for a place"]}"#).unwrap();
        // The tokens that begin and end a text.
        assert_eq!(answer["data"][1], serde_json::json!({ "object": "embedding", "index": 1, "embedding": [2.0, 3.0] }));
        assert_eq!(answer["data"][0]["embedding"], answer["data"][1]["embedding"]);
        assert_eq!((&answer["model"], &answer["object"]), (&"e".into(), &"list".into()));
        assert!(answer["usage"]["prompt_tokens"].as_u64() > Some(9), "{answer}");
        assert_eq!(ask(r#"{"input": "one"}"#).unwrap()["data"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn no_texts_and_too_many_are_told() {
        assert!(ask(r#"{"input": []}"#).unwrap_err().message.contains("0 texts; give 1 to 256"));
        let many = serde_json::json!({ "input": vec!["a"; 257] }).to_string();
        assert!(ask(&many).unwrap_err().message.contains("257 texts"));
        assert!(ask(r#"{"inputs": "a"}"#).unwrap_err().message.contains("missing field `input`"));
    }
}
