//! From the scores of the model to an answer.

use serde::Serialize;
use tessera_sdk::Error;

use crate::config::{KnowledgeBase, ModelConfig};

/// What the file is.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Verdict {
    pub(crate) label: String,
    pub(crate) score: f32,
    /// What the model thought; `undefined` if it was not asked.
    model_label: String,
    overwrite_reason: OverwriteReason,
}

/// Why the label is not the one of the model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum OverwriteReason {
    None,
    LowConfidence,
    OverwriteMap,
}

impl Verdict {
    pub(crate) fn without_model(label: &str) -> Self {
        let model_label = "undefined".to_owned();
        Self { label: label.to_owned(), score: 1.0, model_label, overwrite_reason: OverwriteReason::None }
    }
}

/// magika's mode `high-confidence`, its default.
pub(crate) fn of(scores: &[f32], config: &ModelConfig, knowledge: &KnowledgeBase) -> Result<Verdict, Error> {
    if scores.len() != config.target_labels_space.len() {
        let (scores, labels) = (scores.len(), config.target_labels_space.len());
        return Err(Error::model(format!(
            "the graph gave {scores} scores for the {labels} labels of the configuration"
        )));
    }
    // The first of equals, as Python's `max` does.
    let best = (0..scores.len()).reduce(|best, index| if scores[index] > scores[best] { index } else { best });
    let best = best.ok_or_else(|| Error::model("the configuration has no labels"))?;
    let (model_label, score) = (&config.target_labels_space[best], scores[best]);
    let (label, overwrite_reason) = trusted(model_label, score, config, knowledge)?;
    Ok(Verdict { label: label.to_owned(), score, model_label: model_label.clone(), overwrite_reason })
}

/// The label to answer. A model that is not sure is believed at least whether the file is text.
fn trusted<'a>(
    model_label: &'a str,
    score: f32,
    config: &'a ModelConfig,
    knowledge: &KnowledgeBase,
) -> Result<(&'a str, OverwriteReason), Error> {
    let label = config.overwrite_map.get(model_label).map_or(model_label, String::as_str);
    let threshold = *config.thresholds.get(model_label).unwrap_or(&config.medium_confidence_threshold);
    if f64::from(score) >= threshold {
        let kept = label == model_label;
        return Ok((label, if kept { OverwriteReason::None } else { OverwriteReason::OverwriteMap }));
    }
    let generic = if knowledge.get(label)?.is_text { "txt" } else { "unknown" };
    let kept = generic == model_label;
    Ok((generic, if kept { OverwriteReason::None } else { OverwriteReason::LowConfidence }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{config, knowledge};

    /// Of scores for markdown, randomtxt, png and txt.
    fn label_and_reason(scores: [f32; 4]) -> (String, OverwriteReason) {
        let verdict = of(&scores, &config(), &knowledge()).unwrap();
        (verdict.label, verdict.overwrite_reason)
    }

    #[test]
    fn a_label_is_believed_from_its_threshold_on() {
        assert_eq!(label_and_reason([0.75, 0.25, 0.0, 0.0]), ("markdown".into(), OverwriteReason::None));
        assert_eq!(label_and_reason([0.0, 0.0, 0.5, 0.5]), ("png".into(), OverwriteReason::None));
    }

    #[test]
    fn below_it_only_text_or_not_is_believed() {
        assert_eq!(label_and_reason([0.7, 0.3, 0.0, 0.0]), ("txt".into(), OverwriteReason::LowConfidence));
        assert_eq!(label_and_reason([0.3, 0.3, 0.4, 0.0]), ("unknown".into(), OverwriteReason::LowConfidence));
        assert_eq!(label_and_reason([0.3, 0.3, 0.0, 0.4]), ("txt".into(), OverwriteReason::None));
    }

    #[test]
    fn labels_of_the_training_only_are_renamed() {
        assert_eq!(label_and_reason([0.1, 0.9, 0.0, 0.0]), ("txt".into(), OverwriteReason::OverwriteMap));
        assert_eq!(label_and_reason([0.3, 0.4, 0.3, 0.0]), ("txt".into(), OverwriteReason::LowConfidence));
    }

    #[test]
    fn scores_that_are_not_one_per_label_are_an_error() {
        assert!(of(&[0.5], &config(), &knowledge()).is_err());
    }
}
