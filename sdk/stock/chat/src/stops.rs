//! Stop strings, found wherever the borders of tokens are.

/// Looks for stop strings in text that arrives in pieces, and holds back what may be the beginning of one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stops {
    strings: Vec<String>,
    held: String,
    stopped: bool,
}

impl Stops {
    /// None of the strings is empty.
    pub(crate) fn new(strings: Vec<String>) -> Self {
        Self { strings, held: String::new(), stopped: false }
    }

    /// The text that is certain with the next piece: up to the first stop string, or to what may be one.
    pub(crate) fn hear(&mut self, piece: &str) -> String {
        if self.strings.is_empty() {
            return piece.to_owned();
        }
        self.held.push_str(piece);
        if let Some(at) = self.strings.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begun = self.strings.iter().map(|stop| begun_bytes(&self.held, stop)).max().unwrap_or(0);
        self.held.drain(..self.held.len() - begun).collect()
    }

    /// What was held back, when there is no more to come.
    pub(crate) fn end(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Whether a stop string has come.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }
}

/// How long the end of a text is that a stop string begins with.
fn begun_bytes(text: &str, stop: &str) -> usize {
    let longest = (stop.len() - 1).min(text.len());
    (1..=longest).rev().find(|&bytes| stop.as_bytes().starts_with(&text.as_bytes()[text.len() - bytes..])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut stops = Stops::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut texts = Vec::new();
        for piece in pieces {
            texts.push(stops.hear(piece));
            if stops.stopped() {
                return (texts, true);
            }
        }
        texts.push(stops.end());
        (texts, false)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_not_told() {
        assert_eq!(heard(&["\nUser:"], &["Hi", "\n", "Us", "er", ": x"]).0.concat(), "Hi");
        assert_eq!(heard(&["END", "b"], &["aENDb"]), (vec!["a".to_owned()], true));
        assert_eq!(heard(&["xx", "aaab"], &["aa", "aab", "c"]).0.concat(), "a");
        assert_eq!(heard(&["é"], &["aéb"]), (vec!["a".to_owned()], true));
    }

    #[test]
    fn what_turns_out_to_be_none_is_told_after_all() {
        let (texts, stopped) = heard(&["\nUser:"], &["a\n", "Use", "ful", "\nUs"]);
        assert_eq!((texts, stopped), (["a", "", "\nUseful", "", "\nUs"].map(str::to_owned).to_vec(), false));
        // The end of é is no beginning of ©, although they share a byte.
        assert_eq!(heard(&["©x"], &["aé"]).0.concat(), "aé");
        assert_eq!(heard(&[], &["a", "b"]).0, ["a", "b", ""]);
    }
}
