//! Finds the entry that a question is about: by the words that they share, each of which counts the more, the fewer
//! entries have it (TF-IDF and the cosine between the two).

use std::collections::BTreeMap;

use tessera_sdk::Error;

/// How much a question must have in common with an entry.
const SIMILARITY_MIN: f32 = 0.2;

/// Questions and answers, ready to be searched.
pub(crate) struct Entries {
    entries: Vec<Entry>,
    /// How telling each word is.
    weights: BTreeMap<String, f32>,
}

struct Entry {
    words: Vec<String>,
    answer: String,
}

impl Entries {
    /// Reads blocks of two lines, a question and its answer, with an empty line between blocks.
    pub(crate) fn parse(text: &str) -> Result<Entries, Error> {
        let mut entries = Vec::new();
        for block in text.split("\n\n").map(str::trim).filter(|block| !block.is_empty()) {
            let no_answer = || Error::model(format!("answers.txt: the question '{block}' has no answer below it"));
            let (question, answer) = block.split_once('\n').ok_or_else(no_answer)?;
            entries.push(Entry { words: words(&format!("{question} {answer}")), answer: answer.to_owned() });
        }
        let mut weights = BTreeMap::new();
        for word in entries.iter().flat_map(|entry| &entry.words) {
            let having = entries.iter().filter(|entry| entry.words.contains(word)).count();
            weights.insert(word.clone(), (entries.len() as f32 / having as f32).ln());
        }
        Ok(Entries { entries, weights })
    }

    /// The answer to the entry that is most like the question, if one is.
    pub(crate) fn answer(&self, question: &str) -> Option<&str> {
        let question = words(question);
        let scored = self.entries.iter().map(|entry| (self.similarity(&question, &entry.words), entry));
        let (similarity, entry) = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
        (similarity >= SIMILARITY_MIN).then_some(entry.answer.as_str())
    }

    fn similarity(&self, question: &[String], entry: &[String]) -> f32 {
        let weight = |word: &String| self.weights.get(word).copied().unwrap_or_default().powi(2);
        let length = |words: &[String]| words.iter().map(weight).sum::<f32>().sqrt();
        let shared: f32 = question.iter().filter(|word| entry.contains(word)).map(weight).sum();
        let lengths = length(question) * length(entry);
        if lengths > 0.0 { shared / lengths } else { 0.0 }
    }
}

/// The words of a text, each once, in small letters.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> =
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect();
    words.sort();
    words.dedup();
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Entries {
        Entries::parse(include_str!("../answers.txt")).unwrap()
    }

    #[test]
    fn the_telling_words_decide() {
        assert!(entries().answer("when are you open").unwrap().starts_with("We are open"));
        assert!(entries().answer("Can I pay by card?").unwrap().starts_with("By card"));
    }

    #[test]
    fn what_nothing_is_known_of_has_no_answer() {
        assert_eq!(entries().answer("Elephants, please"), None);
        assert_eq!(entries().answer(""), None);
    }

    #[test]
    fn a_question_without_an_answer_is_named() {
        assert!(Entries::parse("Who?\nMe.\n\nWhy?").err().unwrap().message.contains("'Why?'"));
    }
}
