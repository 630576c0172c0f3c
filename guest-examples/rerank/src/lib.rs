//! Example guest: which of these documents answer the question?
//!
//! The request and the answer have the form of Cohere's and Jina's rerank APIs; a document is a text, or an object with a
//! `text`:
//!
//! ```json
//! {"query": "How do I reset my password?", "documents": ["Opening hours", "I forgot my login"], "top_n": 1}
//! ```
//! ```json
//! {"results": [{"index": 1, "relevance_score": 0.67, "document": {"text": "I forgot my login"}}]}
//! ```
//!
//! The question and the documents become vectors, by an encoder in ONNX ([`encoder`]) or a model in GGUF, which brings its
//! tokenizer; the score is the cosine of the angle between them.

mod encoder;

use serde::{Deserialize, Serialize};
use tessera_sdk::{Endpoint, Error, Graph, Package, Request, Response};

use crate::encoder::Encoder;

/// Documents of one request.
const DOCUMENTS_MAX: usize = 1000;

tessera_sdk::export!(Rerank);

struct Rerank {
    /// None where the graph takes texts itself, as a model in GGUF does.
    encoder: Option<Encoder>,
}

#[derive(Deserialize)]
struct Question {
    query: String,
    documents: Vec<Document>,
    top_n: Option<usize>,
    #[serde(default = "yes")]
    return_documents: bool,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Text(String),
    Object { text: String },
}

impl Document {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { text } => text,
        }
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    results: Vec<Ranked<'a>>,
}

#[derive(Serialize)]
struct Ranked<'a> {
    /// Of the document in the request.
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Text<'a>>,
}

#[derive(Serialize)]
struct Text<'a> {
    text: &'a str,
}

impl Endpoint for Rerank {
    fn init(package: &Package) -> Result<Self, Error> {
        let encoder = match package.metadata("model", "general.architecture")? {
            Some(_) => None,
            None => Some(Encoder::new(&package.asset("tokenizer.json")?)?),
        };
        Ok(Self { encoder })
    }

    fn handle(&self, request: Request) -> Result<Response, Error> {
        let question: Question = request.json()?;
        question.check()?;
        // In one call, so that the question shares a batch with documents of its length.
        let texts: Vec<&str> = question.documents.iter().map(Document::text).chain([question.query.as_str()]).collect();
        let mut vectors = match &self.encoder {
            Some(encoder) => encoder.encode(&texts)?,
            None => Graph::named("model").embed(&texts)?.vectors,
        };
        let query = vectors.pop().unwrap_or_default();
        let mut results: Vec<Ranked<'_>> = (vectors.iter().zip(&question.documents).enumerate())
            .map(|(index, (vector, document))| Ranked {
                index,
                relevance_score: dot(&query, vector),
                document: question.return_documents.then(|| Text { text: document.text() }),
            })
            .collect();
        // Stable: of equals the one that was named first comes first.
        results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
        results.truncate(question.top_n.unwrap_or(usize::MAX));
        Response::json(&Answer { results })
    }
}

impl Question {
    fn check(&self) -> Result<(), Error> {
        let count = self.documents.len();
        if self.query.is_empty() {
            return Err(Error::invalid_input("`query` is empty"));
        }
        if count == 0 {
            return Err(Error::invalid_input("`documents` is empty: give at least one"));
        }
        if count > DOCUMENTS_MAX {
            return Err(Error::too_large(format!(
                "`documents` has {count} entries; at most {DOCUMENTS_MAX} are accepted"
            )));
        }
        if self.top_n == Some(0) {
            return Err(Error::invalid_input("`top_n` is 0: ask for at least one result, or leave it out for all"));
        }
        Ok(())
    }
}

/// The cosine, for the vectors have length 1.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_sdk::testing::{Deployed, Host};
    use tessera_sdk::{ErrorKind, GraphInfo, Tensor};

    const TOKENIZER: &str = r#"{
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "model": {"type": "WordLevel", "vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "cat": 4, "dog": 5},
                  "unk_token": "[UNK]"}
    }"#;

    /// A stand-in for the model: a text of cats lies along one axis, a text of dogs along the other.
    fn endpoint() -> Deployed<Rerank> {
        let info = GraphInfo { inputs: vec![], outputs: vec![] };
        let host = Host::new().asset("tokenizer.json", TOKENIZER).describe("model", info).graph("model", |inputs| {
            let ids = inputs.get("input_ids")?;
            let width = ids.dims()[1] as usize;
            let vector = |row: &[i64]| {
                let count = |id| row.iter().filter(|&&other| other == id).count() as f32;
                let length = count(4).hypot(count(5)).max(1.0);
                [count(4) / length, count(5) / length]
            };
            let vectors: Vec<f32> = ids.as_slice::<i64>()?.chunks(width).flat_map(vector).collect();
            Ok(vec![("sentence_embedding", Tensor::from_vec(&[ids.dims()[0], 2], vectors)?)])
        });
        host.deploy().unwrap()
    }

    fn ask(body: &str) -> Result<String, Error> {
        let response = endpoint().call(Request::new("invocations", "application/json", body))?;
        Ok(String::from_utf8(response.parts().unwrap().2.to_vec()).unwrap())
    }

    #[test]
    fn documents_come_in_the_order_of_their_scores() {
        let body = r#"{"query": "cat", "documents": ["dog", "cat dog", {"text": "Cat"}], "return_documents": false}"#;
        let expected = r#"{"results":[{"index":2,"relevance_score":1.0},{"index":1,"relevance_score":0.70710677},"#;
        assert_eq!(ask(body).unwrap(), format!(r#"{expected}{{"index":0,"relevance_score":0.0}}]}}"#));
    }

    #[test]
    fn top_n_cuts_and_documents_come_back() {
        let answer = ask(r#"{"query": "dog", "documents": ["cat", "dog dog"], "top_n": 1}"#).unwrap();
        assert_eq!(answer, r#"{"results":[{"index":1,"relevance_score":1.0,"document":{"text":"dog dog"}}]}"#);
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let refused = |body: &str, words: &str| {
            let error = ask(body).unwrap_err();
            assert!(error.message.contains(words), "{error}");
            error.kind
        };
        refused(r#"{"query": "", "documents": ["a"]}"#, "`query` is empty");
        refused(r#"{"query": "a", "documents": []}"#, "`documents` is empty");
        refused(r#"{"query": "a", "documents": ["a"], "top_n": 0}"#, "`top_n` is 0");
        refused(r#"{"documents": ["a"]}"#, "missing field `query`");
        let many = format!(r#"{{"query": "a", "documents": [{}]}}"#, ["\"a\""; 1001].join(","));
        assert_eq!(refused(&many, "1001 entries"), ErrorKind::TooLarge);
    }
}
