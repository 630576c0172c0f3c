//! Scores of characters become text: of each column the likeliest, repetitions and blanks left out (CTC).

use tessera_sdk::{Error, Tensor};

/// The score that stands for no character.
const BLANK: usize = 0;

/// The characters that the model knows, in its order.
pub(crate) struct Alphabet {
    characters: Vec<String>,
}

/// What a line says.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Reading {
    pub(crate) text: String,
    /// The mean certainty of its characters, from 0 to 1.
    pub(crate) score: f32,
}

impl Alphabet {
    /// From a file with a character in each line. The space, which would not be seen there, comes last.
    pub(crate) fn new(lines: &str) -> Self {
        let blank = String::new();
        Self {
            characters: [blank].into_iter().chain(lines.lines().map(str::to_owned)).chain([" ".to_owned()]).collect(),
        }
    }

    /// Reads `[lines, columns, characters]`.
    pub(crate) fn decode(&self, scores: &Tensor<'_>) -> Result<Vec<Reading>, Error> {
        let known = self.characters.len();
        let &[_, columns, width] = scores.dims() else {
            return Err(Error::model(format!("graph `read` gave scores of shape {:?}", scores.dims())));
        };
        if width as usize != known {
            return Err(Error::model(format!("graph `read` knows {width} characters, characters.txt {known}")));
        }
        let values = scores.as_slice::<f32>()?;
        Ok(values.chunks((columns as usize * known).max(1)).map(|line| self.line(line)).collect())
    }

    fn line(&self, scores: &[f32]) -> Reading {
        let (mut text, mut sum, mut count, mut before) = (String::new(), 0.0, 0, BLANK);
        for column in scores.chunks(self.characters.len()) {
            let (best, score) = likeliest(column);
            if best != BLANK && best != before {
                text.push_str(&self.characters[best]);
                sum += score;
                count += 1;
            }
            before = best;
        }
        // The margin of a line is read as a space at times.
        Reading { text: text.trim().to_owned(), score: if count == 0 { 0.0 } else { sum / count as f32 } }
    }
}

fn likeliest(scores: &[f32]) -> (usize, f32) {
    let better =
        |best: (usize, f32), (index, &score): (usize, &f32)| if score > best.1 { (index, score) } else { best };
    scores.iter().enumerate().fold((BLANK, f32::NEG_INFINITY), better)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns by their likeliest character, each with this score.
    fn scores(columns: &[usize], score: f32) -> Vec<f32> {
        columns.iter().flat_map(|&best| (0..4).map(move |index| if index == best { score } else { 0.01 })).collect()
    }

    fn alphabet() -> Alphabet {
        Alphabet::new("a\nb")
    }

    #[test]
    fn repetitions_are_one_character_and_a_blank_parts_them() {
        let line = scores(&[0, 1, 1, 0, 1, 3, 2, 2, 0, 0], 0.5);
        assert_eq!(alphabet().line(&line), Reading { text: "aa b".to_owned(), score: 0.5 });
        assert_eq!(alphabet().line(&scores(&[3, 1, 3], 0.5)).text, "a");
        assert_eq!(alphabet().line(&scores(&[0, 0], 0.9)), Reading::default());
    }

    #[test]
    fn every_line_of_a_batch_is_read() {
        let both = [scores(&[1, 2], 0.75), scores(&[2, 0], 0.25)].concat();
        let read = alphabet().decode(&Tensor::new(&[2, 2, 4], &both).unwrap()).unwrap();
        assert_eq!(read.iter().map(|reading| reading.text.as_str()).collect::<Vec<_>>(), ["ab", "b"]);
    }

    #[test]
    fn another_alphabet_is_told() {
        let error = alphabet().decode(&Tensor::new(&[1, 1, 3], &[0f32; 3]).unwrap()).unwrap_err();
        assert_eq!(error.message, "graph `read` knows 3 characters, characters.txt 4");
        assert!(alphabet().decode(&Tensor::new(&[3], &[0f32; 3]).unwrap()).is_err());
    }
}
