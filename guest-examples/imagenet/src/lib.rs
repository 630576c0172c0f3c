//! Example guest: what is in this picture?
//!
//! The body is a JPEG or PNG file, or `{"image": "base64 of the file"}`. The answer names the likeliest of ImageNet's
//! thousand classes:
//!
//! ```json
//! {"predictions": [{"label": "traffic light", "probability": 0.32}, {"label": "electrical switch", "probability": 0.03}]}
//! ```
//!
//! The SDK decodes the file and resamples its middle to what the model takes; the graph gives a score for each class; a
//! softmax makes probabilities of them.

use serde::Serialize;
use tessera_sdk::image::{Filter, Image, PixelForm};
use tessera_sdk::{Endpoint, Error, Graph, Package, Request, Response};

/// Width and height that the model takes, in pixels.
const SIZE: u32 = 224;

/// What the model was evaluated on: of each picture the middle, as if resized to 256 and cropped to 224.
const CENTRE: f64 = 0.875;

/// The model's numbers are `(value - 127) / 128`.
const FORM: PixelForm = PixelForm { mean: [127.0 / 255.0; 3], std: [128.0 / 255.0; 3], ..PixelForm::UNIT };

/// Predictions in an answer, unless the setting `top` says otherwise.
const TOP_DEFAULT: usize = 5;

tessera_sdk::export!(ImageNet);

struct ImageNet {
    /// The names of the classes, in the model's order.
    labels: Vec<String>,
    top: usize,
}

#[derive(Serialize)]
struct Answer<'a> {
    predictions: Vec<Prediction<'a>>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Prediction<'a> {
    label: &'a str,
    probability: f32,
}

impl Endpoint for ImageNet {
    fn init(package: &Package) -> Result<Self, Error> {
        let labels = serde_json::from_slice(&package.asset("labels.json")?)
            .map_err(|error| Error::model(format!("asset `labels.json` is no list of names: {error}")))?;
        let top = match package.setting("top") {
            None => TOP_DEFAULT,
            Some(setting) => {
                setting.parse().map_err(|_| Error::model(format!("setting `top` is `{setting}`, no number")))?
            }
        };
        Ok(Self { labels, top })
    }

    fn handle(&self, request: Request) -> Result<Response, Error> {
        let scores = score(&request.image()?)?;
        if scores.len() != self.labels.len() {
            let (scores, labels) = (scores.len(), self.labels.len());
            return Err(Error::model(format!("the model gave {scores} scores for {labels} classes")));
        }
        Response::json(&Answer { predictions: self.best(&scores) })
    }
}

impl ImageNet {
    fn best(&self, scores: &[f32]) -> Vec<Prediction<'_>> {
        let probabilities = softmax(scores);
        let mut predictions: Vec<Prediction<'_>> = (self.labels.iter().zip(probabilities))
            .map(|(label, probability)| Prediction { label, probability })
            .collect();
        predictions.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        predictions.truncate(self.top);
        predictions
    }
}

/// One score for each class.
fn score(image: &Image) -> Result<Vec<f32>, Error> {
    let middle = image.resize_area(image.centre(SIZE, SIZE, CENTRE), SIZE, SIZE, Filter::Bilinear)?;
    let outputs = Graph::named("model").compute([("image", &FORM.tensor(&[middle])?)])?;
    Ok(outputs.get("logits")?.as_slice::<f32>()?.into_owned())
}

fn softmax(scores: &[f32]) -> Vec<f32> {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = scores.iter().map(|score| (score - highest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_sdk::Tensor;
    use tessera_sdk::testing::Host;

    const PICTURE: &[u8] = include_bytes!("../golden/request.jpg");

    fn answer(host: Host, body: &[u8]) -> Result<String, Error> {
        let response = host.deploy::<ImageNet>()?.call(Request::new("invocations", "image/jpeg", body))?;
        Ok(String::from_utf8(response.parts().unwrap().2.to_vec()).unwrap())
    }

    fn host() -> Host {
        Host::new().asset("labels.json", r#"["cat", "dog", "tree"]"#).graph("model", |inputs| {
            let image = inputs.get("image")?;
            assert_eq!(image.dims(), [1, 3, 224, 224]);
            assert!(image.as_slice::<f32>()?.iter().all(|value| (-1.0..=1.0).contains(value)));
            Ok(vec![("logits", Tensor::from_vec(&[1, 3], vec![0f32, 1000.0, 1000.0])?)])
        })
    }

    #[test]
    fn the_likeliest_comes_first() {
        let json = answer(host().setting("top", "2"), PICTURE).unwrap();
        assert_eq!(json, r#"{"predictions":[{"label":"dog","probability":0.5},{"label":"tree","probability":0.5}]}"#);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        assert!(answer(host(), b"no picture").unwrap_err().message.contains("neither PNG nor JPEG"));
        let names = host().asset("labels.json", "{}");
        assert!(answer(names, PICTURE).unwrap_err().message.contains("`labels.json` is no list of names"));
        let short = host().asset("labels.json", "[]");
        assert_eq!(answer(short, PICTURE).unwrap_err().message, "the model gave 3 scores for 0 classes");
        assert!(answer(host().setting("top", "all"), PICTURE).unwrap_err().message.contains("`all`, no number"));
    }
}
