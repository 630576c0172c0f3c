//! Sound: a WAV file becomes samples, and samples of any rate become those of the rate that a model takes.
//!
//! ```no_run
//! # fn handle(request: tessera_sdk::Request) -> Result<(), tessera_sdk::Error> {
//! let sound = request.audio()?.resample(16_000)?;
//! # Ok(())
//! # }
//! ```

use std::f64::consts::PI;
use std::io::Cursor;

use hound::{SampleFormat, WavReader};

use crate::{Error, Request};

/// Samples of the longest recording that [`Audio::decode`] accepts, all channels counted: 64 MiB decoded. At 16 kHz they
/// are 17 minutes.
pub const SAMPLES_MAX: usize = 1 << 24;

/// Rates in hertz that there is sound in.
const RATES_HZ: std::ops::RangeInclusive<u32> = 1_000..=384_000;

/// A recording in memory: one channel of samples from -1 to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Audio {
    rate_hz: u32,
    samples: Vec<f32>,
}

impl Audio {
    /// Decodes a WAV file of at most [`SAMPLES_MAX`] samples: whole numbers of 8 to 32 bits, or floats. Of several
    /// channels the mean is taken.
    pub fn decode(file: &[u8]) -> Result<Self, Error> {
        Self::decode_within(file, SAMPLES_MAX)
    }

    /// Decodes a WAV file with a limit of one's own.
    pub fn decode_within(file: &[u8], samples_max: usize) -> Result<Self, Error> {
        let reader = WavReader::new(Cursor::new(file)).map_err(|error| broken(&error))?;
        let (spec, len) = (reader.spec(), reader.len() as usize);
        if spec.channels == 0 || !RATES_HZ.contains(&spec.sample_rate) {
            let (channels, rate) = (spec.channels, spec.sample_rate);
            return Err(broken(&format_args!("it has {channels} channels of {rate} samples per second")));
        }
        if len > samples_max {
            let message = format!("the sound has {len} samples; at most {samples_max} samples are accepted");
            return Err(Error::too_large(message));
        }
        let samples: Result<Vec<f32>, hound::Error> = match spec.sample_format {
            SampleFormat::Float => reader.into_samples::<f32>().collect(),
            SampleFormat::Int => {
                let full_scale = (1_i64 << (spec.bits_per_sample.clamp(1, 32) - 1)) as f32;
                reader.into_samples::<i32>().map(|sample| Ok(sample? as f32 / full_scale)).collect()
            }
        };
        let samples = mono(samples.map_err(|error| broken(&error))?, spec.channels.into());
        if samples.is_empty() {
            return Err(broken(&"it has no samples"));
        }
        Ok(Self { rate_hz: spec.sample_rate, samples })
    }

    /// Samples per second.
    pub fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    /// From -1 to 1; at least one. Files of floats may go beyond.
    pub fn samples(&self) -> &[f32] {
        &self.samples
    }

    /// How long it is, in seconds.
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(self.rate_hz)
    }

    /// The same sound at another rate. What is too high for a lower rate is left out instead of folded back.
    pub fn resample(self, rate_hz: u32) -> Result<Self, Error> {
        if !RATES_HZ.contains(&rate_hz) {
            return Err(Error::invalid_input(format!("sound cannot be resampled to {rate_hz} samples per second")));
        }
        if rate_hz == self.rate_hz {
            return Ok(self);
        }
        let count = (self.samples.len() as u64 * u64::from(rate_hz)).div_ceil(self.rate_hz.into());
        if count > SAMPLES_MAX as u64 {
            return Err(Error::too_large(format!("the sound would have {count} samples at {rate_hz} per second")));
        }
        let step = f64::from(self.rate_hz) / f64::from(rate_hz);
        let kernel = Kernel::new(step);
        let samples = (0..count).map(|index| kernel.at(&self.samples, index as f64 * step)).collect();
        Ok(Self { rate_hz, samples })
    }
}

impl Request {
    /// The sound in the body: the WAV file itself, or in JSON as `{"audio": "base64 of the file"}`.
    pub fn audio(&self) -> Result<Audio, Error> {
        Audio::decode(&self.file("audio")?)
    }
}

fn mono(samples: Vec<f32>, channels: usize) -> Vec<f32> {
    if channels == 1 {
        return samples;
    }
    samples.chunks_exact(channels).map(|frame| frame.iter().sum::<f32>() / channels as f32).collect()
}

fn broken(reason: &dyn std::fmt::Display) -> Error {
    Error::invalid_input(format!("the sound is no WAV file that can be read: {reason}"))
}

/// A low-pass filter that is looked up between the samples: a sinc under a Hann window. It is small enough to be here:
/// libraries of resamplers are made for streams, whose delay would have to be cut off again.
struct Kernel {
    /// The right half, [`RESOLUTION`](Self::RESOLUTION) values for each zero crossing.
    values: Vec<f32>,
    /// Zero crossings per sample of the source: 1, or less where the new rate is lower.
    cutoff: f64,
}

impl Kernel {
    /// On each side of the middle; more would make the edge of the pass band steeper.
    const CROSSINGS: usize = 16;
    const RESOLUTION: usize = 512;

    fn new(step: f64) -> Self {
        let value = |at: usize| {
            let x = at as f64 / Self::RESOLUTION as f64;
            let sinc = if at == 0 { 1.0 } else { (PI * x).sin() / (PI * x) };
            (sinc * 0.5 * (1.0 + (PI * x / Self::CROSSINGS as f64).cos())) as f32
        };
        let values = (0..=Self::CROSSINGS * Self::RESOLUTION).map(value).collect();
        Self { values, cutoff: (1.0 / step).min(1.0) }
    }

    /// The sound between the samples; beyond its ends there is silence.
    fn at(&self, samples: &[f32], position: f64) -> f32 {
        let reach = Self::CROSSINGS as f64 / self.cutoff;
        let first = (position - reach).ceil().max(0.0) as usize;
        let last = ((position + reach).floor() as usize).min(samples.len() - 1);
        let (mut sum, mut weights) = (0.0, 0.0);
        for (index, sample) in samples.iter().enumerate().take(last + 1).skip(first) {
            let at = (index as f64 - position).abs() * self.cutoff * Self::RESOLUTION as f64;
            let weight = self.values.get(at.round() as usize).copied().unwrap_or(0.0);
            sum += sample * weight;
            weights += weight;
        }
        // At the ends a part of the kernel has nothing under it; the rest must not become louder for that.
        sum / weights.max(self.values[0] / self.cutoff as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use hound::{WavSpec, WavWriter};

    fn wav(spec: WavSpec, write: impl Fn(&mut WavWriter<&mut Cursor<Vec<u8>>>)) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        let mut writer = WavWriter::new(&mut file, spec).unwrap();
        write(&mut writer);
        writer.finalize().unwrap();
        file.into_inner()
    }

    fn spec(channels: u16, bits_per_sample: u16, sample_format: SampleFormat) -> WavSpec {
        WavSpec { channels, sample_rate: 8_000, bits_per_sample, sample_format }
    }

    #[test]
    fn every_width_of_sample_has_the_same_range() {
        for bits in [8, 16, 24, 32] {
            let full_scale = 1_i64 << (bits - 1);
            let written = [-full_scale, -full_scale / 2, 0, full_scale / 2];
            let file = wav(spec(1, bits, SampleFormat::Int), |writer| {
                written.iter().for_each(|&sample| writer.write_sample(sample as i32).unwrap());
            });
            let audio = Audio::decode(&file).unwrap();
            assert_eq!((audio.rate_hz(), audio.samples()), (8_000, [-1.0, -0.5, 0.0, 0.5].as_slice()), "{bits} bits");
        }
        let file = wav(spec(1, 32, SampleFormat::Float), |writer| writer.write_sample(0.25f32).unwrap());
        assert_eq!(Audio::decode(&file).unwrap().samples(), [0.25]);
    }

    #[test]
    fn of_several_channels_the_mean_is_taken() {
        let file = wav(spec(2, 16, SampleFormat::Int), |writer| {
            [16384, 0, -16384, -16384].iter().for_each(|&sample| writer.write_sample(sample).unwrap());
        });
        assert_eq!(Audio::decode(&file).unwrap().samples(), [0.25, -0.5]);
    }

    #[test]
    fn what_is_no_sound_is_refused() {
        let file = wav(spec(1, 16, SampleFormat::Int), |writer| (0..9).for_each(|v| writer.write_sample(v).unwrap()));
        let error = Audio::decode_within(&file, 8).unwrap_err();
        assert_eq!((error.kind, error.message.contains("9 samples; at most 8")), (ErrorKind::TooLarge, true));
        assert!(Audio::decode(b"RIFF").unwrap_err().message.contains("no WAV file"));
        let silent = wav(spec(1, 16, SampleFormat::Int), |_| ());
        assert!(Audio::decode(&silent).unwrap_err().message.contains("no samples"));
        for at in 0..file.len() {
            let _ = Audio::decode(&file[..at]);
            let mut flipped = file.clone();
            flipped[at] ^= 0xff;
            let _ = Audio::decode_within(&flipped, 1 << 12);
        }
    }

    fn sine(rate_hz: u32, hz: f64) -> Audio {
        let sample = |index: u32| (2.0 * PI * hz * f64::from(index) / f64::from(rate_hz)).sin() as f32;
        Audio { rate_hz, samples: (0..rate_hz).map(sample).collect() }
    }

    /// The loudest sample, but for the ends, where there is silence under the filter.
    fn loudest(samples: impl Iterator<Item = f32>) -> f32 {
        samples.skip(500).take(6_000).fold(0.0, |loudest, sample| loudest.max(sample.abs()))
    }

    #[test]
    fn a_tone_stays_the_same_tone_at_another_rate() {
        for (from, to) in [(44_100, 16_000), (8_000, 16_000), (48_000, 16_000), (11_025, 16_000)] {
            let (got, want) = (sine(from, 440.0).resample(to).unwrap(), sine(to, 440.0));
            assert_eq!((got.rate_hz(), got.samples().len()), (to, want.samples().len()));
            let error = loudest(got.samples().iter().zip(want.samples()).map(|(got, want)| got - want));
            assert!(error < 2e-3, "{from} to {to}: {error}");
        }
    }

    #[test]
    fn a_tone_too_high_for_the_rate_falls_silent() {
        let silent = sine(48_000, 15_000.0).resample(16_000).unwrap();
        assert!(loudest(silent.samples().iter().copied()) < 2e-3);
    }

    #[test]
    fn a_rate_that_makes_no_sense_is_refused() {
        assert!(sine(8_000, 440.0).resample(0).is_err());
        let same = sine(8_000, 440.0);
        assert_eq!(same.clone().resample(8_000).unwrap(), same);
    }
}
