//! The OpenAI embeddings API, as it is on the wire.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use tessera_sdk::{Error, Response};

/// As many as OpenAI takes.
const INPUTS_MAX: usize = 2048;

/// A request for vectors. Keys that are not listed, `user` among them, are ignored, as OpenAI does.
#[derive(Debug, Deserialize)]
pub struct EmbeddingsRequest {
    input: Input,
    model: Option<String>,
    #[serde(default)]
    encoding_format: Option<EncodingFormat>,
    dimensions: Option<usize>,
    /// Of the Databricks API. It changes what is embedded, so it cannot be ignored.
    instruction: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    One(String),
    Many(Vec<String>),
    Other(IgnoredAny),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    Float,
    /// Of the little-endian fp32 values: what the OpenAI clients ask for unless told otherwise.
    Base64,
}

#[derive(Serialize)]
struct EmbeddingsResponse<'a> {
    object: &'static str,
    data: Vec<Datum>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Datum {
    object: &'static str,
    index: usize,
    embedding: Embedding,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Embedding {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl EmbeddingsRequest {
    /// The texts to embed, at least one and none of them empty.
    pub fn texts(&self) -> Result<Vec<&str>, Error> {
        if self.instruction.is_some() {
            return Err(Error::invalid_input(
                "`instruction` is not supported: put it in front of the texts in `input`",
            ));
        }
        let texts: Vec<&str> = match &self.input {
            Input::One(text) => vec![text],
            Input::Many(texts) => texts.iter().map(String::as_str).collect(),
            Input::Other(_) => {
                return Err(Error::invalid_input(
                    "`input` must be a string or a list of strings; token ids are not accepted, \
                     for they mean something only to the tokenizer they come from",
                ));
            }
        };
        checked(&texts)?;
        Ok(texts)
    }

    /// Renders the vectors, in the order of the texts. `graph` stands in for a model that the request does not name.
    pub fn respond(&self, graph: &str, vectors: Vec<Vec<f32>>, tokens: usize) -> Result<Response, Error> {
        let data: Result<Vec<Datum>, Error> =
            vectors.into_iter().enumerate().map(|(index, vector)| self.datum(index, vector)).collect();
        Response::json(&EmbeddingsResponse {
            object: "list",
            data: data?,
            model: self.model.as_deref().unwrap_or(graph),
            usage: Usage { prompt_tokens: tokens, total_tokens: tokens },
        })
    }

    fn datum(&self, index: usize, mut vector: Vec<f32>) -> Result<Datum, Error> {
        if let Some(dimensions) = self.dimensions {
            shorten(&mut vector, dimensions)?;
        }
        let embedding = match self.encoding_format.unwrap_or(EncodingFormat::Float) {
            EncodingFormat::Float => Embedding::Float(vector),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                Embedding::Base64(BASE64.encode(bytes))
            }
        };
        Ok(Datum { object: "embedding", index, embedding })
    }
}

/// Texts as every API takes them: some, not too many, none of them empty.
pub fn checked<'t>(texts: &'t [&'t str]) -> Result<&'t [&'t str], Error> {
    if texts.is_empty() {
        return Err(Error::invalid_input("`input` is an empty list; give at least one string"));
    }
    if texts.len() > INPUTS_MAX {
        let given = texts.len();
        return Err(Error::invalid_input(format!("`input` has {given} strings; at most {INPUTS_MAX} are allowed")));
    }
    if let Some(index) = texts.iter().position(|text| text.is_empty()) {
        return Err(Error::invalid_input(format!("`input` {index} is an empty string")));
    }
    Ok(texts)
}

/// The first `dimensions` values, scaled back to length 1.
fn shorten(vector: &mut Vec<f32>, dimensions: usize) -> Result<(), Error> {
    if dimensions == 0 || dimensions > vector.len() {
        let full = vector.len();
        return Err(Error::invalid_input(format!("`dimensions` is {dimensions}; this model gives 1 to {full}")));
    }
    // All of them is what the model gives without being asked: not to be touched.
    if dimensions < vector.len() {
        vector.truncate(dimensions);
        normalize(vector);
    }
    Ok(())
}

/// Scales to length 1; a vector of zeros stays.
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value /= length);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(body: Value) -> EmbeddingsRequest {
        serde_json::from_value(body).unwrap()
    }

    fn respond(body: Value, vectors: &[&[f32]]) -> Result<Value, Error> {
        let vectors = vectors.iter().map(|vector| vector.to_vec()).collect();
        let response = parse(body).respond("model", vectors, 7)?;
        Ok(serde_json::from_slice(response.parts().unwrap().2).unwrap())
    }

    #[test]
    fn one_text_or_many() {
        assert_eq!(parse(json!({"input": "a", "user": "u"})).texts().unwrap(), ["a"]);
        assert_eq!(parse(json!({"input": ["a", "b"]})).texts().unwrap(), ["a", "b"]);
    }

    #[test]
    fn what_is_no_text_is_refused_with_the_reason() {
        for (input, reason) in [
            (json!([]), "empty list"),
            (json!(""), "`input` 0 is an empty string"),
            (json!(["a", ""]), "`input` 1 is an empty string"),
            (json!([1, 2]), "token ids are not accepted"),
            (json!([[1, 2]]), "token ids are not accepted"),
            (json!(null), "must be a string"),
            (json!(vec!["a"; 2049]), "has 2049 strings"),
        ] {
            let error = parse(json!({"input": input})).texts().unwrap_err();
            assert!(error.message.contains(reason), "{error}");
        }
    }

    #[test]
    fn an_instruction_is_refused_rather_than_ignored() {
        assert!(parse(json!({"input": "a", "instruction": "q: "})).texts().is_err());
    }

    #[test]
    fn the_response_has_the_shape_of_openai() {
        let response = respond(json!({"input": ["a", "b"], "model": "m"}), &[&[0.5, 1.0], &[2.0, 3.0]]).unwrap();
        let data = json!([
            {"object": "embedding", "index": 0, "embedding": [0.5, 1.0]},
            {"object": "embedding", "index": 1, "embedding": [2.0, 3.0]},
        ]);
        let usage = json!({"prompt_tokens": 7, "total_tokens": 7});
        assert_eq!(response, json!({"object": "list", "data": data, "model": "m", "usage": usage}));
    }

    #[test]
    fn base64_is_of_little_endian_fp32() {
        let response = respond(json!({"input": "a", "encoding_format": "base64"}), &[&[1.0, -2.0]]).unwrap();
        assert_eq!(response["data"][0]["embedding"], "AACAPwAAAMA=");
        assert_eq!(response["model"], "model");
    }

    #[test]
    fn fewer_dimensions_are_normalized_again() {
        let vector: &[f32] = &[0.3, 0.4, 0.866_025_4];
        let response = respond(json!({"input": "a", "dimensions": 2}), &[vector]).unwrap();
        let embedding: Vec<f32> = serde_json::from_value(response["data"][0]["embedding"].clone()).unwrap();
        assert!((embedding[0] - 0.6).abs() < 1e-6 && (embedding[1] - 0.8).abs() < 1e-6, "{embedding:?}");
        let all = respond(json!({"input": "a", "dimensions": 3}), &[vector]).unwrap();
        let embedding: Vec<f32> = serde_json::from_value(all["data"][0]["embedding"].clone()).unwrap();
        assert_eq!(embedding, vector, "all dimensions are not touched");
    }

    #[test]
    fn dimensions_the_model_has_not_are_refused() {
        for dimensions in [0, 4] {
            let error = respond(json!({"input": "a", "dimensions": dimensions}), &[&[1.0, 0.0, 0.0]]).unwrap_err();
            assert_eq!(error.message, format!("`dimensions` is {dimensions}; this model gives 1 to 3"));
        }
    }
}
