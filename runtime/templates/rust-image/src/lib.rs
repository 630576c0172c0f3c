//! A picture in, its likeliest classes out.
//!
//! ```text
//! PNG or JPEG file, or {"image": "base64 of it"}  →  {"predictions": [{"label": "5", "probability": 0.99}]}
//! ```

use serde::Serialize;
use tessera_sdk::image::{Channels, Filter, PixelForm};
use tessera_sdk::{Endpoint, Error, Graph, Package, Request, Response};

/// The numbers that the model wants for its pixels: here brightness from 0 to 1. Models of torchvision want
/// `PixelForm::IMAGENET`; for others there are `layout`, `channels`, `mean` and `std`.
const FORM: PixelForm = PixelForm { channels: Channels::Grey, ..PixelForm::UNIT };

/// Classes in an answer.
const TOP: usize = 3;

tessera_sdk::export!(Classifier);

struct Classifier {
    /// The names of the classes, in the model's order.
    labels: Vec<String>,
    /// What the model calls its input, and the size it takes.
    input: String,
    width: u32,
    height: u32,
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

impl Endpoint for Classifier {
    /// Runs once, at deploy. The memory it leaves is what every request starts from.
    fn init(package: &Package) -> Result<Self, Error> {
        let labels = package.asset_text("labels.txt")?.lines().map(str::to_owned).collect();
        let graph = package.graph("model")?;
        let input = graph.inputs.first().ok_or_else(|| Error::model("model.onnx has no input"))?;
        let [_, _, Some(height), Some(width)] = input.dimensions[..] else {
            return Err(Error::model("model.onnx takes no images of one size: [N, channels, height, width]"));
        };
        Ok(Classifier { labels, input: input.name.clone(), width, height })
    }

    /// Runs for each request, in an instance that has seen no other.
    fn handle(&self, request: Request) -> Result<Response, Error> {
        let image = request.image()?.fit(self.width, self.height, Filter::Bilinear)?;
        let outputs = Graph::named("model").compute([(self.input.as_str(), &FORM.tensor(&[image])?)])?;
        let probabilities = outputs.at(0)?;
        Response::json(&Answer { predictions: self.best(&probabilities.as_slice()?)? })
    }
}

impl Classifier {
    /// The likeliest classes, by their names.
    fn best(&self, probabilities: &[f32]) -> Result<Vec<Prediction<'_>>, Error> {
        if probabilities.len() != self.labels.len() {
            let (scores, labels) = (probabilities.len(), self.labels.len());
            return Err(Error::model(format!("the model knows {scores} classes, labels.txt has {labels}")));
        }
        let named = self.labels.iter().zip(probabilities);
        let mut predictions: Vec<_> = named.map(|(label, &probability)| Prediction { label, probability }).collect();
        predictions.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        predictions.truncate(TOP);
        Ok(predictions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_sdk::testing::Host;
    use tessera_sdk::{ElementType, GraphInfo, Tensor, TensorInfo};

    /// A stand-in for the model, which says 5.
    fn host() -> Host {
        let input = TensorInfo {
            name: "image".to_owned(),
            element: ElementType::Fp32,
            dimensions: vec![None, Some(1), Some(8), Some(8)],
        };
        let host = Host::new().asset("labels.txt", include_str!("../labels.txt"));
        host.describe("model", GraphInfo { inputs: vec![input], outputs: vec![] }).graph("model", |inputs| {
            assert_eq!(inputs.get("image")?.dims(), [1, 1, 8, 8]);
            let probabilities = (0..10).map(|digit| if digit == 5 { 0.91 } else { 0.01 }).collect();
            Ok(vec![("probabilities", Tensor::from_vec(&[1, 10], probabilities)?)])
        })
    }

    #[test]
    fn a_picture_gets_the_names_of_its_classes() {
        let picture = include_bytes!("../golden/request.png");
        let answer = host().deploy::<Classifier>().unwrap().call(Request::new("invocations", "image/png", *picture));
        let (status, _, body) = answer.as_ref().unwrap().parts().unwrap();
        let expected = r#"{"predictions":[{"label":"5","probability":0.91},{"label":"0","probability":0.01},"#;
        assert!(status == 200 && body.starts_with(expected.as_bytes()), "{}", String::from_utf8_lossy(body));
    }

    #[test]
    fn what_is_no_picture_is_told() {
        let answer = host().deploy::<Classifier>().unwrap().call(Request::new("invocations", "text/plain", "five"));
        assert!(answer.unwrap_err().message.contains("neither PNG nor JPEG"));
    }

    #[test]
    fn labels_that_do_not_fit_the_model_are_told() {
        let picture = include_bytes!("../golden/request.png");
        let endpoint = host().asset("labels.txt", "one\n").deploy::<Classifier>().unwrap();
        let error = endpoint.call(Request::new("invocations", "image/png", *picture)).unwrap_err();
        assert_eq!(error.message, "the model knows 10 classes, labels.txt has 1");
    }
}
