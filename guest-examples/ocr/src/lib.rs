//! Example guest: what is written in this picture?
//!
//! The body is a JPEG or PNG file, or `{"image": "base64 of the file"}`. The answer has the lines in the order of reading,
//! each with its corners in pixels of the picture, from the beginning of its upper edge clockwise:
//!
//! ```json
//! {"text": "Hello\nRust", "lines": [{"text": "Hello", "score": 0.99, "box": [[20, 18], [91, 18], [91, 40], [20, 40]]}]}
//! ```
//!
//! Three graphs of PP-OCR, one after the other, in one request:
//!
//! ```text
//! picture → detect → [`boxes`]: islands in a map become rectangles → [`crop`]: lines, cut out and turned level
//!         → turn: which are upside down → read → [`decode`]: scores of characters become text
//! ```

mod boxes;
mod crop;
mod decode;
mod geometry;

use serde::Serialize;
use tessera_sdk::image::{Channels, Filter, Image, PixelForm};
use tessera_sdk::{Endpoint, Error, Graph, Package, Request, Response, Tensor};

use crate::decode::Alphabet;
use crate::geometry::Quad;

/// From -1 to 1, blue first: all three graphs were trained on that.
const FORM: PixelForm = PixelForm { channels: Channels::Bgr, ..PixelForm::SIGNED };

/// Sides of the picture that the detector sees: larger ones are brought down to the upper limit, small ones up to the lower,
/// where the text would be too small for it. Both are multiples of [`DETECT_STEP`].
const DETECT_SIDE_MAX: u32 = 960;
const DETECT_SIDE_MIN: u32 = 320;

/// The detector halves its map five times.
const DETECT_STEP: u32 = 32;

/// What a line is cut out with on every side, as a part of its height: without, `read` does not see the spaces.
const MARGIN: f64 = 0.2;

/// Height of a line for the other two graphs.
const LINE_HEIGHT: u32 = 48;

/// Width that `turn` sees of a line.
const TURN_WIDTH: u32 = 192;

/// A line is turned when the graph is that sure.
const TURN_MIN: f32 = 0.9;

/// The width of a line that `read` was trained on: shorter ones are filled up.
const READ_WIDTH_MIN: u32 = 320;

/// Longer lines are squeezed: of those there are no readable ones.
const READ_WIDTH_MAX: u32 = 3200;

/// Pixels of the widest line times lines of one computation: what `read` gives for each takes 3 KiB.
const READ_WIDTH_SUM_MAX: u32 = 6 * 640;

/// Lines read with less certainty are left out.
const SCORE_MIN: f32 = 0.5;

tessera_sdk::export!(Ocr);

struct Ocr {
    alphabet: Alphabet,
}

#[derive(Serialize)]
struct Answer {
    text: String,
    lines: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    text: String,
    score: f32,
    #[serde(rename = "box")]
    corners: [[i32; 2]; 4],
}

impl Endpoint for Ocr {
    fn init(package: &Package) -> Result<Self, Error> {
        Ok(Self { alphabet: Alphabet::new(&package.asset_text("characters.txt")?) })
    }

    fn handle(&self, request: Request) -> Result<Response, Error> {
        let picture = request.image()?;
        let quads = detect(&picture)?;
        let mut cuts: Vec<Image> =
            quads.iter().map(|quad| crop::level(&picture, &quad.widened(MARGIN))).collect::<Result<_, _>>()?;
        turn(&mut cuts)?;
        let lines: Vec<Line> = (self.read(&cuts)?.into_iter().zip(&quads))
            .filter(|(reading, _)| reading.score >= SCORE_MIN && !reading.text.is_empty())
            .map(|(reading, quad)| Line { text: reading.text, score: reading.score, corners: quad.rounded() })
            .collect();
        let text = lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n");
        Response::json(&Answer { text, lines })
    }
}

/// Where there is text, in the order of reading.
fn detect(picture: &Image) -> Result<Vec<Quad>, Error> {
    let (width, height) = detect_size(picture.width(), picture.height());
    let input = FORM.tensor(&[picture.resize(width, height, Filter::Bilinear)?])?;
    let outputs = Graph::named("detect").compute([("x", &input)])?;
    let map = outputs.at(0)?;
    if map.dims() != [1, 1, height, width] {
        return Err(Error::model(format!("graph `detect` gave a map of shape {:?}", map.dims())));
    }
    let scale = (f64::from(picture.width()) / f64::from(width), f64::from(picture.height()) / f64::from(height));
    let found = boxes::find(&map.as_slice::<f32>()?, width as usize);
    let within = |quad: Quad| quad.scaled(scale).clamped(picture.width(), picture.height());
    Ok(geometry::in_reading_order(found.into_iter().map(within).collect()))
}

/// The size at which the detector sees a picture, with nearly the same proportions.
fn detect_size(width: u32, height: u32) -> (u32, u32) {
    let (longer, shorter) = (f64::from(width.max(height)), f64::from(width.min(height)));
    let up = (f64::from(DETECT_SIDE_MIN) / shorter).max(1.0);
    let scale = up.min(f64::from(DETECT_SIDE_MAX) / longer);
    let side = |side: u32| {
        let steps = (f64::from(side) * scale / f64::from(DETECT_STEP)).round() as u32;
        steps.clamp(1, DETECT_SIDE_MAX / DETECT_STEP) * DETECT_STEP
    };
    (side(width), side(height))
}

/// Turns the lines that are upside down.
fn turn(lines: &mut [Image]) -> Result<(), Error> {
    const BATCH: usize = 16;
    for batch in lines.chunks_mut(BATCH) {
        let input = line_tensor(batch, TURN_WIDTH)?;
        let outputs = Graph::named("turn").compute([("x", &input)])?;
        let scores = outputs.at(0)?;
        let scores = scores.as_slice::<f32>()?;
        for (line, score) in batch.iter_mut().zip(scores.chunks(2)) {
            if score.get(1).is_some_and(|upside_down| *upside_down > TURN_MIN) {
                *line = crop::upside_down(line)?;
            }
        }
    }
    Ok(())
}

/// Lines of one height, one below the other, filled up to the right with grey (zero for the graphs).
fn line_tensor(lines: &[Image], width: u32) -> Result<Tensor<'static>, Error> {
    let rows = lines.iter().map(|line| {
        let own = line_width(line).min(width);
        let pixels = FORM.tensor(&[line.resize(own, LINE_HEIGHT, Filter::Bilinear)?])?;
        let mut padded = vec![0f32; (3 * LINE_HEIGHT * width) as usize];
        for (from, to) in pixels.as_slice::<f32>()?.chunks(own as usize).zip(padded.chunks_mut(width as usize)) {
            to[..own as usize].copy_from_slice(from);
        }
        Ok(padded)
    });
    let rows: Vec<Vec<f32>> = rows.collect::<Result<_, Error>>()?;
    Tensor::from_vec(&[lines.len() as u32, 3, LINE_HEIGHT, width], rows.concat())
}

/// The width of a line at the height that the graphs take.
fn line_width(line: &Image) -> u32 {
    let width = f64::from(line.width()) * f64::from(LINE_HEIGHT) / f64::from(line.height());
    (width.ceil() as u32).clamp(1, READ_WIDTH_MAX)
}

impl Ocr {
    /// What each line says. Lines of like width are read together, so that little of a batch is filling.
    fn read(&self, lines: &[Image]) -> Result<Vec<decode::Reading>, Error> {
        let mut readings = vec![decode::Reading::default(); lines.len()];
        let mut by_width: Vec<usize> = (0..lines.len()).collect();
        by_width.sort_by_key(|&index| line_width(&lines[index]));
        let mut rest = by_width.as_slice();
        while let Some(&first) = rest.first() {
            let mut width = line_width(&lines[first]).max(READ_WIDTH_MIN);
            let mut count = 1;
            while let Some(&next) = rest.get(count) {
                let wider = line_width(&lines[next]).max(width);
                if wider * (count as u32 + 1) > READ_WIDTH_SUM_MAX {
                    break;
                }
                (width, count) = (wider, count + 1);
            }
            let (batch, after) = rest.split_at(count);
            let images: Vec<Image> = batch.iter().map(|&index| lines[index].clone()).collect();
            let outputs = Graph::named("read").compute([("x", &line_tensor(&images, width)?)])?;
            for (&index, reading) in batch.iter().zip(self.alphabet.decode(&outputs.at(0)?)?) {
                readings[index] = reading;
            }
            rest = after;
        }
        Ok(readings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_sdk::testing::{Deployed, Host};

    #[test]
    fn the_detector_sees_multiples_of_its_step_within_its_limits() {
        for (width, height, seen) in [
            (640, 480, (640, 480)),
            (4000, 3000, (960, 736)),
            (100, 60, (544, 320)),
            (1, 1, (320, 320)),
            (8000, 10, (960, 32)),
            (10, 8000, (32, 960)),
        ] {
            assert_eq!(detect_size(width, height), seen, "{width} by {height}");
        }
    }

    /// A stand-in for the models: two bars of text, the right one upside down; `read` says how bright a line begins.
    fn endpoint() -> Deployed<Ocr> {
        let host = Host::new().asset("characters.txt", "d\nl").graph("detect", |inputs| {
            let input = inputs.get("x")?;
            let (height, width) = (input.dims()[2] as usize, input.dims()[3] as usize);
            let mut map = vec![0f32; height * width];
            for (left, right) in [(40, 140), (180, 280)] {
                (100..130).for_each(|row| map[row * width + left..row * width + right].fill(0.9));
            }
            Ok(vec![("map", Tensor::from_vec(&[1, 1, height as u32, width as u32], map)?)])
        });
        let host = host.graph("turn", |inputs| {
            let input = inputs.get("x")?;
            assert_eq!(input.dims(), [2, 3, 48, 192]);
            Ok(vec![("turned", Tensor::from_vec(&[2, 2], vec![0.99f32, 0.01, 0.05, 0.95])?)])
        });
        let host = host.graph("read", |inputs| {
            let input = inputs.get("x")?;
            let (count, width) = (input.dims()[0], input.dims()[3] as usize);
            let values = input.as_slice::<f32>()?;
            let start = |line: usize| values[line * 3 * 48 * width + 24 * width + 8];
            let scores = |line: usize| if start(line) > 0.0 { [0.0, 0.1, 0.9, 0.0] } else { [0.0, 0.8, 0.1, 0.1] };
            let scores: Vec<f32> = (0..count as usize).flat_map(scores).collect();
            Ok(vec![("scores", Tensor::from_vec(&[count, 1, 4], scores)?)])
        });
        host.deploy().unwrap()
    }

    /// 320 by 320 pixels, light where the right bar ends.
    fn picture() -> Vec<u8> {
        let light = |x: usize| u8::from(x >= 230) * 255;
        (0..320 * 320).flat_map(|at| [light(at % 320); 3]).collect()
    }

    #[test]
    fn lines_are_found_turned_and_read() {
        let ocr = endpoint();
        let answer = ocr.call(Request::new("invocations", "image/png", png(320, 320, &picture()))).unwrap();
        let body = String::from_utf8(answer.parts().unwrap().2.to_vec()).unwrap();
        // The first begins dark; the second does too, but has been turned round.
        assert!(body.starts_with(r#"{"text":"d\nl","lines":[{"text":"d","score":0.8,"box":[["#), "{body}");
        assert!(body.contains(r#"{"text":"l","score":0.9,"box":["#), "{body}");
    }

    #[test]
    fn a_picture_without_text_has_no_lines() {
        let host = Host::new().asset("characters.txt", "a").graph("detect", |inputs| {
            let &[_, _, height, width] = inputs.get("x")?.dims() else { panic!("not four axes") };
            Ok(vec![("map", Tensor::from_vec(&[1, 1, height, width], vec![0f32; (height * width) as usize])?)])
        });
        let answer = host.deploy::<Ocr>().unwrap().call(Request::new("", "image/png", png(4, 4, &[0; 48])));
        assert_eq!(answer.unwrap().parts().unwrap().2, br#"{"text":"","lines":[]}"#);
    }

    /// A PNG file of stored, not compressed, pixels.
    fn png(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
        let rows = pixels.chunks(width as usize * 3).flat_map(|row| [&[0], row].concat());
        let raw: Vec<u8> = rows.collect();
        let (mut low, mut high) = (1u32, 0u32);
        for &byte in &raw {
            low = (low + u32::from(byte)) % 65521;
            high = (high + low) % 65521;
        }
        let mut data = vec![0x78, 0x01];
        let blocks: Vec<&[u8]> = raw.chunks(0xffff).collect();
        for (index, block) in blocks.iter().enumerate() {
            let len = block.len() as u16;
            data.push(u8::from(index + 1 == blocks.len()));
            data.extend(len.to_le_bytes().iter().chain(&(!len).to_le_bytes()));
            data.extend_from_slice(block);
        }
        data.extend(((high << 16) | low).to_be_bytes());
        let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
        let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
        for (name, content) in [(b"IHDR", header), (b"IDAT", data), (b"IEND", vec![])] {
            file.extend((content.len() as u32).to_be_bytes());
            let body = [&name[..], &content].concat();
            file.extend_from_slice(&body);
            file.extend(crc(&body).to_be_bytes());
        }
        file
    }

    fn crc(bytes: &[u8]) -> u32 {
        let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        !bytes.iter().fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
    }
}
