//! The guests of `guest-examples` that take more than numbers: pictures, sound, texts. Each is asked about what a script has
//! drawn, spoken or written, so that the right answer is known; where Python's onnxruntime can be asked the same, its numbers
//! must be the guest's.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Package, Server, ask_python, guest, model, python, repository, send};

/// The package of an example: what set-up installed, the manifest and the golden request of the repository, and the
/// component.
fn example(name: &str, installed: &str) -> Package {
    let folder = repository("guest-examples").join(name);
    let mut package = Package::of(&model(installed));
    let golden = Package::of(&folder.join("golden")).files.into_iter();
    package.files.extend(golden.map(|(file, content)| (format!("golden/{file}"), content)));
    let manifest = std::fs::read_to_string(folder.join("tessera.toml")).unwrap();
    package.with("component.wasm", guest(name)).with("tessera.toml", manifest)
}

/// What the script makes of this kind.
fn made(kind: &str) -> BTreeMap<String, Value> {
    serde_json::from_value(ask_python(python("example_inputs.py").arg(kind), &Value::Null)).unwrap()
}

fn bytes(encoded: &Value) -> Vec<u8> {
    BASE64.decode(encoded.as_str().unwrap()).unwrap()
}

fn ask(server: &Server, endpoint: &str, content_type: &str, body: Vec<u8>) -> Answer {
    let path = format!("/serving-endpoints/{endpoint}/invocations");
    send(server.request(Method::POST, &path).header("content-type", content_type).body(body))
}

#[test]
fn pictures_are_classified_as_with_pillow() {
    // given the classifier, drawn pictures, and what Pillow and onnxruntime make of them
    let server = Server::start();
    server.deploy("imagenet", &example("imagenet", "imagenet"));
    let pictures = made("pictures");
    let oracle = ask_python(python("imagenet_oracle.py").arg(model("imagenet")), &json!(pictures));
    assert!(pictures.len() >= 8);

    // when each is sent, as it is and in JSON, then it is what was drawn, with the same certainty
    for (name, file) in &pictures {
        let (label, format) = name.rsplit_once('.').unwrap();
        // Of PNG the pixels are the same; decoders of JPEG differ in the last bits of a colour.
        let tolerance = if format == "png" { 1e-3 } else { 0.03 };
        let answer = ask(&server, "imagenet", &format!("image/{format}"), bytes(file)).ok();
        let predictions = answer["predictions"].as_array().unwrap();
        assert_eq!((predictions.len(), &predictions[0]["label"]), (5, &json!(label)), "{answer}");
        for prediction in predictions {
            let expected = oracle[name][prediction["label"].as_str().unwrap()].as_f64().unwrap();
            let got = prediction["probability"].as_f64().unwrap();
            assert!((got - expected).abs() <= tolerance, "{name}, {}: {got} is not {expected}", prediction["label"]);
        }
        assert_eq!(server.invoke("imagenet", &json!({ "image": file })).ok(), answer);
    }

    // and what is no picture is refused
    let not = ask(&server, "imagenet", "image/gif", b"GIF89a".to_vec());
    not.is_error(400, "BAD_REQUEST", &["neither PNG nor JPEG", "47 49 46"]);
    server.invoke("imagenet", &json!({ "picture": "" })).is_error(400, "BAD_REQUEST", &["no text `image`"]);
}

#[test]
fn speech_is_found_where_it_is() {
    // given the detector, recordings of a voice, and what onnxruntime hears in those of the model's own rate
    let server = Server::start();
    server.deploy("vad", &example("vad", "vad"));
    let sounds = made("sounds");
    let own_rate: BTreeMap<&str, &Value> =
        ["talk", "to its end", "nobody"].map(|name| (name, &sounds[name]["wav"])).into_iter().collect();
    let oracle = ask_python(python("vad_oracle.py").arg(model("vad")), &json!(own_rate));

    for (name, sound) in &sounds {
        // when it is sent, then speech begins and ends where it does, but for the margin and some windows
        let answer = ask(&server, "vad", "audio/wav", bytes(&sound["wav"])).ok();
        let (found, spoken) = (answer["speech"].as_array().unwrap(), sound["speech"].as_array().unwrap());
        assert_eq!(found.len(), spoken.len(), "{name}: {found:?}");
        for (found, spoken) in found.iter().zip(spoken) {
            for (place, edge) in ["start", "end"].iter().enumerate() {
                let (got, expected) = (found[edge].as_f64().unwrap(), spoken[place].as_f64().unwrap());
                assert!((got - expected).abs() < 0.3, "{name}: {edge} {got} is not {expected}");
            }
        }
        // and each window is heard as by onnxruntime, with the state of all those before it
        if let Some(expected) = oracle[name].as_array() {
            let got = answer["probabilities"].as_array().unwrap();
            assert_eq!(got.len(), expected.len());
            for (window, (got, expected)) in got.iter().zip(expected).enumerate() {
                let (got, expected) = (got.as_f64().unwrap(), expected.as_f64().unwrap());
                assert!((got - expected).abs() <= 1e-3, "{name}, window {window}: {got} is not {expected}");
            }
        }
    }
    assert_eq!(oracle.as_object().unwrap().len(), 3);

    // and what is no sound is refused
    ask(&server, "vad", "audio/mpeg", b"ID3".to_vec()).is_error(400, "BAD_REQUEST", &["no WAV file"]);
}

#[test]
fn text_is_read_in_its_order() {
    // given the reader, and pages of known text
    let server = Server::start();
    server.deploy("ocr", &example("ocr", "ocr"));
    let texts = made("texts");
    assert!(texts.len() >= 5);

    for (name, page) in &texts {
        // when a page is sent
        let content_type = if name == "photo" { "image/jpeg" } else { "image/png" };
        let answer = ask(&server, "ocr", content_type, bytes(&page["image"])).ok();

        // then it says what was written, line by line
        let written = page["lines"].as_array().unwrap();
        let text = |lines: &[Value]| lines.iter().map(|line| line["text"].clone()).collect::<Vec<_>>();
        let lines = answer["lines"].as_array().unwrap();
        assert_eq!(text(lines), text(written), "{name}");
        // and where
        for (line, written) in lines.iter().zip(written).filter(|_| name != "tilted") {
            let corners = [&line["box"][0][0], &line["box"][0][1], &line["box"][2][0], &line["box"][2][1]];
            for (got, expected) in corners.iter().zip(written["box"].as_array().unwrap()) {
                let off = got.as_f64().unwrap() - expected.as_f64().unwrap();
                assert!(off.abs() <= 16.0, "{name}: {line} is not at {}", written["box"]);
            }
            assert!(line["score"].as_f64().unwrap() > 0.8, "{line}");
        }
    }
}

#[test]
fn a_model_in_gguf_orders_documents_by_its_own_vectors() {
    // given the ranker around a language model, and the same model's vectors
    let server = Server::start();
    let manifest = "component = 'component.wasm'\n[graphs.model]\nfile = 'model.gguf'\n";
    let weights = std::fs::read(model("smollm2").join("model.gguf")).unwrap();
    let package = Package::default().with("tessera.toml", manifest).with("component.wasm", guest("rerank"));
    server.deploy("rerank", &package.with("model.gguf", weights));
    server.deploy("smollm2", &Package::of(&model("smollm2")));
    let (query, documents) = ("Where do cats sleep?", ["A cat sleeps on the sofa.", "Taxes are due in May.", "Cats"]);
    let input: Vec<&str> = documents.iter().copied().chain([query]).collect();
    let answer = server.post("/v1/embeddings", &json!({ "model": "smollm2", "input": input })).ok();
    let vector = |datum: &Value| serde_json::from_value::<Vec<f64>>(datum["embedding"].clone()).unwrap();
    let vectors: Vec<Vec<f64>> = answer["data"].as_array().unwrap().iter().map(vector).collect();

    // when documents are ranked, then the scores are the cosines
    let answer = server.invoke("rerank", &json!({ "query": query, "documents": documents })).ok();
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), documents.len());
    for result in results {
        let place = result["index"].as_u64().unwrap() as usize;
        let cosine = vectors[place].iter().zip(&vectors[documents.len()]).map(|(a, b)| a * b).sum::<f64>();
        let score = result["relevance_score"].as_f64().unwrap();
        assert!((score - cosine).abs() <= 1e-3, "{place}: {score} is not {cosine}");
    }
}

#[test]
fn documents_are_ordered_by_what_they_mean() {
    // given the ranker, a question, documents, and the vectors that Python makes of them
    let server = Server::start();
    server.deploy("rerank", &example("rerank", "minilm"));
    let query = "How do I reset my password?";
    let documents = [
        "Our office is open from nine to five on weekdays.",
        "I forgot my login credentials and cannot sign in.",
        "To choose a new password, open the settings and click on 'forgotten'.",
        "The weather in Lisbon is mild in November.",
        "Wie setze ich mein Passwort zurück?",
        "Passwords must have twelve characters. ".repeat(60).leak(),
    ];
    let texts: Vec<&str> = documents.iter().copied().chain([query]).collect();
    let vectors = ask_python(python("minilm_oracle.py").arg(model("minilm")), &json!(texts));
    let vectors: Vec<Vec<f64>> = serde_json::from_value(vectors).unwrap();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scores: Vec<f64> =
        vectors[..documents.len()].iter().map(|vector| dot(vector, vectors.last().unwrap())).collect();

    // when they are ranked, then the scores are the cosines, in falling order
    let answer = server.invoke("rerank", &json!({ "query": query, "documents": documents })).ok();
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), documents.len());
    assert_eq!(results[0]["index"], 2, "{answer}");
    for result in results {
        let index = result["index"].as_u64().unwrap() as usize;
        let score = result["relevance_score"].as_f64().unwrap();
        assert!((score - scores[index]).abs() <= 1e-4, "{index}: {score} is not {}", scores[index]);
        assert_eq!(result["document"]["text"], documents[index]);
    }
    let falls = |pair: &[Value]| pair[0]["relevance_score"].as_f64() >= pair[1]["relevance_score"].as_f64();
    assert!(results.windows(2).all(falls), "{answer}");

    // and no more than was asked for
    let body = json!({ "query": query, "documents": documents, "top_n": 2, "return_documents": false });
    let two = server.invoke("rerank", &body).ok();
    let indices: Vec<&Value> = two["results"].as_array().unwrap().iter().map(|result| &result["index"]).collect();
    assert_eq!(indices, results[..2].iter().map(|result| &result["index"]).collect::<Vec<_>>());
    assert!(two["results"][0].get("document").is_none());
    server.invoke("rerank", &json!({ "query": query, "documents": [] })).is_error(400, "BAD_REQUEST", &["`documents`"]);
}
