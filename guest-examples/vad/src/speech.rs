//! From probabilities to speech: how long somebody must speak, and be silent, to count.

use serde::Serialize;
use tessera_sdk::{Error, Package};

use crate::{RATE_HZ, WINDOW};

/// When speech begins and ends. The defaults are those of the Python package silero-vad.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rules {
    /// From this probability on somebody speaks, until it falls below [`Rules::low`].
    threshold: f32,
    min_speech_ms: f64,
    min_silence_ms: f64,
    pad_ms: f64,
}

/// A piece of speech, in seconds from the start of the recording.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Span {
    pub(crate) start: f64,
    pub(crate) end: f64,
}

impl Rules {
    pub(crate) fn read(package: &Package) -> Result<Self, Error> {
        let number = |name: &str, default: f64, max: f64| {
            let Some(setting) = package.setting(name) else { return Ok(default) };
            let number = setting.parse().ok().filter(|number| (0.0..=max).contains(number));
            number.ok_or_else(|| {
                Error::model(format!("setting `{name}` is `{setting}`; it must be a number from 0 to {max}"))
            })
        };
        Ok(Self {
            threshold: number("threshold", 0.5, 1.0)? as f32,
            min_speech_ms: number("min_speech_ms", 250.0, 60e3)?,
            min_silence_ms: number("min_silence_ms", 100.0, 60e3)?,
            pad_ms: number("pad_ms", 30.0, 10e3)?,
        })
    }

    /// Lower than the threshold, so that a voice that trembles around it is not cut to pieces.
    fn low(&self) -> f32 {
        (self.threshold - 0.15).max(0.01)
    }

    /// The speech in a recording of this length.
    pub(crate) fn spans(&self, probabilities: &[f32], seconds: f64) -> Vec<Span> {
        let mut spans = self.raw(probabilities, seconds);
        let pad = self.pad_ms / 1e3;
        for index in 0..spans.len() {
            // Where two are closer than their margins, they meet in the middle.
            let gap_after = spans.get(index + 1).map_or(f64::INFINITY, |next| next.start - spans[index].end);
            let margin = pad.min(gap_after / 2.0);
            spans[index].end = (spans[index].end + margin).min(seconds);
            if let Some(next) = spans.get_mut(index + 1) {
                next.start -= margin;
            }
        }
        if let Some(first) = spans.first_mut() {
            first.start = (first.start - pad).max(0.0);
        }
        spans.into_iter().map(|span| Span { start: in_ms(span.start), end: in_ms(span.end) }).collect()
    }

    /// Without the margins.
    fn raw(&self, probabilities: &[f32], seconds: f64) -> Vec<Span> {
        let time = |window: usize| (window * WINDOW) as f64 / f64::from(RATE_HZ);
        let is_long = |span: &Span| (span.end - span.start) * 1e3 > self.min_speech_ms;
        let mut spans = Vec::new();
        // Since when somebody speaks, and since when he is silent but may go on.
        let (mut speaking, mut silent): (Option<f64>, Option<f64>) = (None, None);
        for (window, &probability) in probabilities.iter().enumerate() {
            let now = time(window);
            if probability >= self.threshold {
                silent = None;
                speaking.get_or_insert(now);
            } else if let (Some(start), true) = (speaking, probability < self.low()) {
                let end = *silent.get_or_insert(now);
                if (now - end) * 1e3 >= self.min_silence_ms {
                    spans.extend(Some(Span { start, end }).filter(is_long));
                    (speaking, silent) = (None, None);
                }
            }
        }
        spans.extend(speaking.map(|start| Span { start, end: seconds }).filter(is_long));
        spans
    }
}

/// To the millisecond: what is behind it is the noise of the arithmetic.
pub(crate) fn in_ms(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_sdk::testing::Host;
    use tessera_sdk::{Endpoint, Request, Response};

    const RULES: Rules = Rules { threshold: 0.5, min_speech_ms: 250.0, min_silence_ms: 100.0, pad_ms: 30.0 };

    /// Windows of probabilities as `(how many, probability)`.
    fn spans(rules: &Rules, runs: &[(usize, f32)]) -> Vec<Span> {
        let probabilities: Vec<f32> = runs.iter().flat_map(|&(count, value)| vec![value; count]).collect();
        rules.spans(&probabilities, probabilities.len() as f64 * 0.032)
    }

    #[test]
    fn speech_has_a_margin_and_short_noise_is_none() {
        let found = spans(&RULES, &[(10, 0.0), (20, 0.9), (10, 0.1), (7, 0.9), (10, 0.0)]);
        assert_eq!(found, [Span { start: 0.29, end: 0.99 }]);
    }

    #[test]
    fn a_short_pause_and_a_trembling_voice_are_speech() {
        let found = spans(&RULES, &[(10, 0.9), (3, 0.1), (10, 0.9), (20, 0.4), (5, 0.9), (10, 0.0)]);
        assert_eq!(found, [Span { start: 0.0, end: 1.566 }]);
    }

    #[test]
    fn margins_that_would_overlap_meet() {
        let rules = Rules { pad_ms: 200.0, ..RULES };
        let found = spans(&rules, &[(10, 0.9), (5, 0.0), (10, 0.9)]);
        assert_eq!(found.len(), 2);
        assert!((found[0].end - found[1].start).abs() < 1e-9 && (found[0].end - 0.4).abs() < 1e-9, "{found:?}");
        assert!((found[1].end - 0.8).abs() < 1e-9, "not beyond the end: {found:?}");
    }

    struct Probe(Rules);

    impl Endpoint for Probe {
        fn init(package: &Package) -> Result<Self, Error> {
            Rules::read(package).map(Self)
        }

        fn handle(&self, _: Request) -> Result<Response, Error> {
            Response::json(&(self.0 == RULES))
        }
    }

    #[test]
    fn settings_are_numbers_within_their_range() {
        let response = Host::new().deploy::<Probe>().unwrap().call(Request::new("", "", "")).unwrap();
        assert_eq!(response.parts().unwrap().2, b"true");
        for (name, wrong) in [("threshold", "1.5"), ("pad_ms", "-1"), ("min_speech_ms", "long"), ("threshold", "NaN")] {
            let error = Host::new().setting(name, wrong).deploy::<Probe>().err().unwrap();
            assert!(error.message.contains(name) && error.message.contains(wrong), "{error}");
        }
    }
}
