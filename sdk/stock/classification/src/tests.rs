//! The whole endpoint, with a graph that is a closure. That it agrees with the pipelines of transformers is shown by
//! `tests/integration/text.rs`.

use serde_json::{Value, json};
use tessera_sdk::testing::{Deployed, Host};
use tessera_sdk::{ElementType, Error, GraphInfo, Request, Tensor, TensorInfo};

use super::Classification;

const TOKENIZER: &str = r###"{
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [], "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
              "vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "anna": 4, "lives": 5, "in": 6, "zür": 7,
                        "##ich": 8, "new": 9, "york": 10}}
}"###;

/// The head gives each label the number of the token or text that stands for it: see the closures below.
fn endpoint(per_token: bool, config: &str, settings: &[(&str, &str)]) -> Result<Deployed<Classification>, Error> {
    let tensor = |name: &str, element, dimensions: &[Option<u32>]| TensorInfo {
        name: name.to_owned(),
        element,
        dimensions: dimensions.to_vec(),
    };
    let dimensions: &[Option<u32>] = if per_token { &[None, None, Some(3)] } else { &[None, Some(3)] };
    let info = GraphInfo {
        inputs: vec![
            tensor("input_ids", ElementType::I64, &[None, None]),
            tensor("token_type_ids", ElementType::I64, &[None, None]),
        ],
        outputs: vec![tensor("logits", ElementType::Fp32, dimensions)],
    };
    let host = Host::new().asset("tokenizer.json", TOKENIZER).asset("config.json", config).describe("model", info);
    let host = settings.iter().fold(host, |host, (name, value)| host.setting(name, value));
    let host = host.graph("model", move |inputs| {
        let ids = inputs.get("input_ids")?;
        let [rows, columns] = *ids.dims() else { return Err(Error::model("no matrix")) };
        let ids = ids.as_slice::<i64>()?;
        let output = match per_token {
            true => {
                // Names of people and places, as in the labels below.
                let logits = |id: &i64| match id {
                    4 => [2.0, 0.0, 0.0],
                    7 | 9 => [0.0, 2.0, 0.0],
                    8 | 10 => [0.0, 1.0, 0.5],
                    _ => [0.0, 0.0, 2.0],
                };
                Tensor::from_vec(&[rows, columns, 3], ids.iter().flat_map(logits).collect::<Vec<f32>>())?
            }
            false => {
                // The length of each of the two texts, and how many there are in the batch.
                let second = inputs.get("token_type_ids")?;
                let second = second.as_slice::<i64>()?;
                let row = |(ids, second): (&[i64], &[i64])| {
                    let given = ids.iter().filter(|id| **id != 0).count() as f32;
                    let second = second.iter().sum::<i64>() as f32;
                    [given - second, second, rows as f32]
                };
                let columns = columns as usize;
                let values = ids.chunks(columns).zip(second.chunks(columns)).flat_map(row).collect::<Vec<f32>>();
                Tensor::from_vec(&[rows, 3], values)?
            }
        };
        Ok(vec![("logits", output)])
    });
    host.deploy()
}

const TEXTS: &str = r#"{"id2label": {"0": "first", "1": "second", "2": "rows"}}"#;
const TOKENS: &str = r#"{"id2label": {"0": "B-PER", "1": "I-LOC", "2": "O"}}"#;

fn post(endpoint: &Deployed<Classification>, path: &str, body: &Value) -> Result<Value, Error> {
    let response = endpoint.call(Request::new(path, "application/json", body.to_string()))?;
    Ok(serde_json::from_slice(response.parts().unwrap().2).unwrap())
}

#[test]
fn texts_get_their_label_in_the_order_of_the_request() {
    let endpoint = endpoint(false, TEXTS, &[("function_to_apply", "none")]).unwrap();
    let body = json!({"inputs": ["anna lives in york", "new", {"text": "anna", "text_pair": "lives in new york"}]});
    let predictions = post(&endpoint, "invocations", &body).unwrap();
    let labelled = |label: &str, score: f64| json!({"label": label, "score": score});
    assert_eq!(
        predictions,
        json!({"predictions": [labelled("first", 6.0), labelled("first", 3.0), labelled("second", 5.0)]})
    );
    let body = json!({"inputs": ["new"], "params": {"top_k": 2}});
    let predictions = post(&endpoint, "invocations", &body).unwrap();
    assert_eq!(predictions, json!({"predictions": [[labelled("first", 3.0), labelled("rows", 1.0)]]}));
}

#[test]
fn long_texts_are_cut() {
    let endpoint = endpoint(false, TEXTS, &[("function_to_apply", "none"), ("max_tokens", "8")]).unwrap();
    let predictions = post(&endpoint, "invocations", &json!({"inputs": "anna ".repeat(1000)})).unwrap();
    assert_eq!(predictions["predictions"][0]["score"], 8.0);
}

#[test]
fn the_open_inference_protocol_has_labels_and_scores_as_tensors() {
    let input = json!([{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["anna", "anna lives"]}]);
    let one = endpoint(false, TEXTS, &[("function_to_apply", "none")]).unwrap();
    let outputs = post(&one, "v2/infer", &json!({"inputs": input})).unwrap()["outputs"].clone();
    let label = json!({"name": "label", "datatype": "BYTES", "shape": [2], "data": ["first", "first"]});
    assert_eq!(outputs, json!([label, {"name": "score", "datatype": "FP32", "shape": [2], "data": [3.0, 4.0]}]));
    let all = endpoint(false, TEXTS, &[("function_to_apply", "none"), ("top_k", "null")]).unwrap();
    let body = json!({"inputs": input, "outputs": [{"name": "score"}]});
    let outputs = post(&all, "v2/infer", &body).unwrap()["outputs"].clone();
    let data = [3.0, 2.0, 0.0, 4.0, 2.0, 0.0];
    assert_eq!(outputs, json!([{"name": "score", "datatype": "FP32", "shape": [2, 3], "data": data}]));
    assert_eq!(post(&all, "v2", &json!(null)).unwrap()["outputs"][1]["shape"], json!([-1, -1]));
}

/// The entities in `Anna lives in Zürich`, rounded.
fn entities(settings: &[(&str, &str)], params: Value) -> Value {
    let endpoint = endpoint(true, TOKENS, settings).unwrap();
    let body = json!({"inputs": ["Anna lives in Zürich €"], "params": params});
    let mut entities = post(&endpoint, "invocations", &body).unwrap()["predictions"][0].take();
    for entity in entities.as_array_mut().unwrap() {
        entity["score"] = json!((entity["score"].as_f64().unwrap() * 1000.0).round() / 1000.0);
    }
    entities
}

#[test]
fn each_token_is_an_entity_with_its_place_in_characters() {
    let entity = |entity: &str, score: f64, index: usize, word: &str, start: usize, end: usize| json!({"entity": entity, "score": score, "index": index, "word": word, "start": start, "end": end});
    let [anna, zuer, ich] = [
        entity("B-PER", 0.787, 1, "anna", 0, 4),
        entity("I-LOC", 0.787, 4, "zür", 14, 17),
        entity("I-LOC", 0.506, 5, "##ich", 17, 20),
    ];
    assert_eq!(entities(&[], json!({})), json!([anna, zuer, ich]));
    // What the tokenizer does not know is shown as it is written.
    let unknown = entity("O", 0.787, 6, "€", 21, 22);
    let others = json!({"ignore_labels": ["B-PER", "I-LOC"]});
    assert_eq!(entities(&[], others)[2], unknown);
}

#[test]
fn neighbours_are_grouped_as_the_strategy_says() {
    let group = |group: &str, score: f64, word: &str, start: usize, end: usize| json!({"entity_group": group, "score": score, "word": word, "start": start, "end": end});
    let anna = group("PER", 0.787, "anna", 0, 4);
    for (strategy, score) in [("simple", 0.647), ("first", 0.787), ("average", 0.647), ("max", 0.787)] {
        let expected = json!([anna, group("LOC", score, "zürich", 14, 20)]);
        assert_eq!(entities(&[], json!({"aggregation_strategy": strategy})), expected, "{strategy}");
        assert_eq!(entities(&[("aggregation_strategy", strategy)], json!({})), expected, "{strategy}");
    }
    let none = entities(&[("aggregation_strategy", "simple")], json!({"aggregation_strategy": "none"}));
    assert_eq!(none.as_array().unwrap().len(), 3);
}

#[test]
fn entities_are_json_in_the_open_inference_protocol() {
    let endpoint = endpoint(true, TOKENS, &[]).unwrap();
    let input = json!([{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["anna", "in"]}]);
    let outputs = post(&endpoint, "v2/infer", &json!({"inputs": input})).unwrap()["outputs"].clone();
    assert_eq!((&outputs[0]["name"], &outputs[0]["shape"]), (&json!("entities"), &json!([2])));
    let found: Value = serde_json::from_str(outputs[0]["data"][0].as_str().unwrap()).unwrap();
    assert_eq!((&found[0]["entity"], &outputs[0]["data"][1]), (&json!("B-PER"), &json!("[]")));
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    for (settings, reason) in [
        (("top_k", "none"), "`top_k` is \"none\""),
        (("function_to_apply", "tanh"), "`function_to_apply` is \"tanh\""),
        (("max_tokens", "2"), "setting `max_tokens` is `2`"),
    ] {
        let error = endpoint(false, TEXTS, &[settings]).err().unwrap();
        assert!(error.message.contains(reason), "{error}");
    }
    let error = endpoint(true, TOKENS, &[("aggregation_strategy", "some")]).err().unwrap();
    assert!(error.message.contains("one of `none`, `simple`"), "{error}");

    let tokens = endpoint(true, TOKENS, &[]).unwrap();
    let two = json!({"inputs": {"text": "anna", "text_pair": "york"}});
    assert!(post(&tokens, "invocations", &two).unwrap_err().message.contains("takes no pairs"));
    let texts = endpoint(false, r#"{"id2label": {"0": "a", "1": "b"}}"#, &[]).unwrap();
    let error = post(&texts, "invocations", &json!({"inputs": "anna"})).unwrap_err();
    assert_eq!(error.message, "output `logits` came with 3 numbers for each, but `config.json` names 2 labels");
    let error = post(&texts, "chat/completions", &json!({})).unwrap_err();
    assert!(error.message.contains("call `invocations` or `v2/infer`, not `chat/completions`"), "{error}");
}
