//! Classes of whole texts, as the pipeline `text-classification` gives them.

use serde::Serialize;
use serde_json::{Map, Value, json};
use tessera_sdk::Error;

use crate::config::{Config, ProblemType};

/// What a package's settings and a request's `params` may choose.
pub(crate) const CHOICES: [&str; 2] = ["top_k", "function_to_apply"];

#[derive(Debug, Clone)]
pub(crate) struct Choices {
    function: Function,
    /// How many labels, in a list. Without it, the best label and no list.
    top_k: Option<usize>,
}

/// What makes scores of the numbers that the graph gives.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Function {
    Softmax,
    Sigmoid,
    None,
}

/// A label and how sure the model is of it.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Labelled<'l> {
    pub(crate) label: &'l str,
    pub(crate) score: f32,
}

impl Choices {
    /// What the model's config says.
    pub(crate) fn new(config: &Config) -> Self {
        let function = match config.problem_type {
            Some(ProblemType::Regression) => Function::None,
            Some(ProblemType::MultiLabelClassification) => Function::Sigmoid,
            _ if config.labels_len() == 1 => Function::Sigmoid,
            _ => Function::Softmax,
        };
        Self { function, top_k: None }
    }

    /// The same with what was chosen otherwise.
    pub(crate) fn chosen(&self, choices: &Map<String, Value>) -> Result<Self, Error> {
        let mut chosen = self.clone();
        for (name, value) in choices {
            match name.as_str() {
                "top_k" => chosen.top_k = Some(top_k(value)?),
                "function_to_apply" => chosen.function = function(value)?,
                _ => return Err(unknown(name, &CHOICES)),
            }
        }
        Ok(chosen)
    }

    /// Whether a text is answered with a list.
    pub(crate) fn is_list(&self) -> bool {
        self.top_k.is_some()
    }

    pub(crate) fn answer(&self, labels: &[String], numbers: &[f32]) -> Value {
        let best = self.best(labels, numbers);
        match best.as_slice() {
            [only] if !self.is_list() => json!(only),
            list => json!(list),
        }
    }

    /// The labels with the highest scores, best first; of equals the first.
    pub(crate) fn best<'l>(&self, labels: &'l [String], numbers: &[f32]) -> Vec<Labelled<'l>> {
        let scores = self.function.scores(numbers);
        let mut all: Vec<Labelled<'l>> =
            labels.iter().zip(scores).map(|(label, score)| Labelled { label, score }).collect();
        all.sort_by(|one, other| other.score.total_cmp(&one.score));
        all.truncate(self.top_k.unwrap_or(1));
        all
    }
}

impl Function {
    fn scores(self, numbers: &[f32]) -> Vec<f32> {
        match self {
            Self::Softmax => softmax(numbers),
            Self::Sigmoid => numbers.iter().map(|number| 1.0 / (1.0 + (-number).exp())).collect(),
            Self::None => numbers.to_vec(),
        }
    }
}

/// Numbers as probabilities, which add up to 1.
pub(crate) fn softmax(numbers: &[f32]) -> Vec<f32> {
    let highest = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = numbers.iter().map(|number| (number - highest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

fn top_k(value: &Value) -> Result<usize, Error> {
    match value {
        Value::Null => Ok(usize::MAX),
        value => value.as_u64().filter(|&top_k| top_k > 0).map(|top_k| top_k as usize).ok_or_else(|| {
            Error::invalid_input(format!(
                "`top_k` is {value}; it must be a whole number of at least 1, or null for all"
            ))
        }),
    }
}

fn function(value: &Value) -> Result<Function, Error> {
    match value.as_str().unwrap_or_default() {
        "softmax" => Ok(Function::Softmax),
        "sigmoid" => Ok(Function::Sigmoid),
        "none" => Ok(Function::None),
        _ => Err(Error::invalid_input(format!(
            "`function_to_apply` is {value}; it must be one of `softmax`, `sigmoid`, `none`"
        ))),
    }
}

/// A choice that there is not: ignored, it would be taken for made.
pub(crate) fn unknown(name: &str, known: &[&str]) -> Error {
    Error::invalid_input(format!("nothing is known of the parameter `{name}`; there are: {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(config: &str, params: Value) -> Result<Choices, Error> {
        let params = params.as_object().unwrap().clone();
        Choices::new(&Config::parse(config.as_bytes()).unwrap()).chosen(&params)
    }

    fn answer(config: &str, params: Value, numbers: &[f32]) -> Value {
        let labels: Vec<String> = ["a", "b", "c"][..numbers.len()].iter().map(|&label| label.to_owned()).collect();
        let answer = choices(config, params).unwrap().answer(&labels, numbers);
        serde_json::from_str(&answer.to_string()).unwrap()
    }

    const THREE: &str = r#"{"id2label": {"0": "a", "1": "b", "2": "c"}}"#;
    const MANY: &str = r#"{"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"}"#;

    #[test]
    fn the_config_decides_what_the_numbers_mean() {
        let numbers = [0.0, 2f32.ln(), 0.0];
        assert_eq!(answer(THREE, json!({}), &numbers), json!({"label": "b", "score": 0.5}));
        assert_eq!(answer(MANY, json!({}), &[0.0, -1.0]), json!({"label": "a", "score": 0.5}));
        assert_eq!(answer(r#"{"id2label": {"0": "a"}}"#, json!({}), &[0.0]), json!({"label": "a", "score": 0.5}));
        let regression = r#"{"id2label": {"0": "a"}, "problem_type": "regression"}"#;
        assert_eq!(answer(regression, json!({}), &[-3.25]), json!({"label": "a", "score": -3.25}));
        assert_eq!(answer("{}", json!({}), &[0.0, 0.0]), json!({"label": "a", "score": 0.5}), "of equals the first");
    }

    #[test]
    fn a_request_chooses_how_many_and_what_they_mean() {
        let list = |pairs: &[(&str, f64)]| -> Value {
            pairs.iter().map(|(label, score)| json!({"label": label, "score": score})).collect()
        };
        let none = |top_k: Value| json!({"top_k": top_k, "function_to_apply": "none"});
        let numbers = [1.0, 3.0, 2.0];
        assert_eq!(answer(THREE, none(json!(1)), &numbers), list(&[("b", 3.0)]));
        assert_eq!(answer(THREE, none(json!(2)), &numbers), list(&[("b", 3.0), ("c", 2.0)]));
        assert_eq!(answer(THREE, none(Value::Null), &numbers), list(&[("b", 3.0), ("c", 2.0), ("a", 1.0)]));
        assert_eq!(answer(THREE, json!({"function_to_apply": "sigmoid"}), &[0.0, -1.0, -1.0])["score"], 0.5);
    }

    #[test]
    fn a_choice_that_is_none_is_refused() {
        for (params, reason) in [
            (json!({"top_k": 0}), "`top_k` is 0; it must be"),
            (json!({"top_k": "2"}), "`top_k` is \"2\""),
            (json!({"function_to_apply": "tanh"}), "one of `softmax`"),
            (json!({"aggregation_strategy": "simple"}), "nothing is known of the parameter `aggregation_strategy`"),
        ] {
            let error = choices(THREE, params).unwrap_err();
            assert!(error.message.contains(reason), "{error}");
        }
    }

    #[test]
    fn large_numbers_stay_finite() {
        assert_eq!(softmax(&[1000.0, 1000.0]), [0.5, 0.5]);
        assert_eq!(softmax(&[-1000.0, 0.0]), [0.0, 1.0]);
    }
}
