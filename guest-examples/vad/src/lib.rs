//! Example guest: where in this recording does somebody speak?
//!
//! The body is a WAV file of any rate, or `{"audio": "base64 of the file"}`. The answer has the speech from begin to end, in
//! seconds, and for each 32 ms how likely it is that somebody speaks:
//!
//! ```json
//! {"seconds": 5.2, "speech": [{"start": 0.83, "end": 2.37}], "probabilities": [0.01, 0.98]}
//! ```
//!
//! The model has a memory: it takes a window of 32 ms and the state that the window before has left. So a request computes
//! once for each window, and hands the state on; it ends with the request.

mod speech;

use serde::Serialize;
use tessera_sdk::{Endpoint, Error, Graph, Package, Request, Response, Tensor};

use crate::speech::{Rules, Span, in_ms};

/// What the model takes, in samples per second.
const RATE_HZ: u32 = 16_000;

/// New samples of a window, 32 ms.
const WINDOW: usize = 512;

/// Samples that a window repeats from the one before.
const CONTEXT: usize = 64;

/// The state of the model: two layers of 128 cells.
const STATE: [u32; 3] = [2, 1, 128];

/// Longest recording that is accepted: about 19,000 windows.
const SECONDS_MAX: f64 = 600.0;

tessera_sdk::export!(Vad);

struct Vad {
    rules: Rules,
}

#[derive(Serialize)]
struct Answer {
    seconds: f64,
    speech: Vec<Span>,
    probabilities: Vec<f32>,
}

impl Endpoint for Vad {
    fn init(package: &Package) -> Result<Self, Error> {
        Ok(Self { rules: Rules::read(package)? })
    }

    fn handle(&self, request: Request) -> Result<Response, Error> {
        let audio = request.audio()?;
        let seconds = audio.seconds();
        if seconds > SECONDS_MAX {
            return Err(Error::too_large(format!(
                "the sound is {seconds:.0} s long; at most {SECONDS_MAX} s are accepted"
            )));
        }
        let probabilities = listen(audio.resample(RATE_HZ)?.samples())?;
        let speech = self.rules.spans(&probabilities, seconds);
        Response::json(&Answer { seconds: in_ms(seconds), speech, probabilities })
    }
}

/// How likely somebody speaks, for each window. The last is filled up with silence.
fn listen(samples: &[f32]) -> Result<Vec<f32>, Error> {
    let graph = Graph::named("model");
    let rate = Tensor::new(&[], &[i64::from(RATE_HZ)])?.into_owned();
    let mut state = Tensor::from_vec(&STATE, vec![0f32; STATE.iter().product::<u32>() as usize])?;
    let mut input = [0f32; CONTEXT + WINDOW];
    let mut probabilities = Vec::with_capacity(samples.len().div_ceil(WINDOW));
    for window in samples.chunks(WINDOW) {
        input.copy_within(WINDOW.., 0);
        input[CONTEXT..][..window.len()].copy_from_slice(window);
        input[CONTEXT + window.len()..].fill(0.0);
        let frame = Tensor::new(&[1, input.len() as u32], &input)?;
        let mut outputs = graph.compute([("input", &frame), ("state", &state), ("sr", &rate)])?;
        state = outputs.take("stateN")?;
        let probability = outputs.get("output")?.as_slice::<f32>()?.first().copied();
        probabilities.push(probability.ok_or_else(|| Error::model("the model gave no probability"))?);
    }
    Ok(probabilities)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_sdk::testing::Host;

    /// A stand-in for the model that counts windows in its state and "hears" what is loud.
    fn host() -> Host {
        Host::new().graph("model", |inputs| {
            let (input, state) = (inputs.get("input")?.as_slice::<f32>()?, inputs.get("state")?.as_slice::<f32>()?);
            assert_eq!((inputs.get("sr")?.dims(), input.len(), state.len()), ([].as_slice(), 576, 256));
            let loud = if input[CONTEXT..].iter().any(|sample| sample.abs() > 0.1) { 0.9 } else { 0.1 };
            let counted = state.iter().map(|count| count + 1.0).collect();
            let probability = loud + state[0] / 1e6;
            Ok(vec![
                ("output", Tensor::from_vec(&[1, 1], vec![probability])?),
                ("stateN", Tensor::from_vec(&STATE, counted)?),
            ])
        })
    }

    /// A WAV file of 16-bit samples.
    fn wav(rate_hz: u32, samples: &[i16]) -> Vec<u8> {
        let data: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        let mut file = b"RIFF".to_vec();
        file.extend((36 + data.len() as u32).to_le_bytes());
        file.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
        file.extend(rate_hz.to_le_bytes());
        file.extend((rate_hz * 2).to_le_bytes());
        file.extend(b"\x02\0\x10\0data");
        file.extend((data.len() as u32).to_le_bytes());
        [file, data].concat()
    }

    fn ask(file: &[u8]) -> Result<String, Error> {
        let response = host().deploy::<Vad>()?.call(Request::new("invocations", "audio/wav", file))?;
        Ok(String::from_utf8(response.parts().unwrap().2.to_vec()).unwrap())
    }

    #[test]
    fn each_window_gets_the_state_of_the_one_before() {
        let json = ask(&wav(16_000, &[0; 1_500])).unwrap();
        assert_eq!(json, r#"{"seconds":0.094,"speech":[],"probabilities":[0.1,0.100001,0.100002]}"#);
    }

    #[test]
    fn a_recording_of_another_rate_has_the_same_length() {
        let second: Vec<i16> = (0..48_000).map(|at| if at / 24_000 == 1 { 9_000 } else { 0 }).collect();
        let json = ask(&wav(48_000, &second)).unwrap();
        assert!(json.starts_with(r#"{"seconds":1.0,"speech":[{"start":0.4"#), "{json}");
    }

    #[test]
    fn what_cannot_be_heard_is_told() {
        assert!(ask(b"no sound").unwrap_err().message.contains("no WAV file"));
        let long = wav(1_000, &vec![0; 601_000]);
        assert!(ask(&long).unwrap_err().message.contains("601 s long; at most 600 s"));
    }
}
