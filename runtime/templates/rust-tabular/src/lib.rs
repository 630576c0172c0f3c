//! Rows of numbers in, a label for each out.
//!
//! ```text
//! {"rows": [[5.1, 3.5, 1.4, 0.2]]}  →  {"predictions": [{"label": "setosa", "probability": 0.98}]}
//! ```

use serde::{Deserialize, Serialize};
use tessera_sdk::{Endpoint, Error, Graph, Package, Request, Response, Tensor};

/// What the model takes: sepal length and width, petal length and width, in centimetres.
const COLUMNS: usize = 4;

tessera_sdk::export!(Classifier);

struct Classifier {
    /// The names of the classes, in the model's order.
    labels: Vec<String>,
}

#[derive(Deserialize)]
struct Rows {
    rows: Vec<[f32; COLUMNS]>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Prediction<'a> {
    label: &'a str,
    probability: f32,
}

#[derive(Serialize)]
struct Answer<'a> {
    predictions: Vec<Prediction<'a>>,
}

impl Endpoint for Classifier {
    /// Runs once, at deploy. The memory it leaves is what every request starts from.
    fn init(package: &Package) -> Result<Self, Error> {
        Ok(Classifier { labels: package.asset_text("labels.txt")?.lines().map(str::to_owned).collect() })
    }

    /// Runs for each request, in an instance that has seen no other.
    fn handle(&self, request: Request) -> Result<Response, Error> {
        let Rows { rows } = request.json()?;
        if rows.is_empty() {
            return Err(Error::invalid_input("`rows` is empty: give at least one row"));
        }
        let input = Tensor::new(&[rows.len() as u32, COLUMNS as u32], rows.as_flattened())?;
        let outputs = Graph::named("model").compute([("X", &input)])?;
        // The model gives the class of each row, then for each class the probabilities of the rows.
        let classes = outputs.get("label")?;
        let mut probabilities = Vec::new();
        for class in 0..self.labels.len() {
            probabilities.push(outputs.at(1 + class)?.as_slice::<f32>()?.into_owned());
        }
        Response::json(&Answer { predictions: self.predictions(&classes.as_slice::<i64>()?, &probabilities)? })
    }
}

impl Classifier {
    /// Names the classes that the model chose.
    fn predictions(&self, classes: &[i64], probabilities: &[Vec<f32>]) -> Result<Vec<Prediction<'_>>, Error> {
        let prediction = |(row, class): (usize, &i64)| {
            let class = usize::try_from(*class).unwrap_or(usize::MAX);
            let label = self.labels.get(class).map(String::as_str);
            let probability = probabilities.get(class).and_then(|rows| rows.get(row)).copied();
            let unknown = || Error::model(format!("the model chose class {class}, which labels.txt does not have"));
            label.zip(probability).map(|(label, probability)| Prediction { label, probability }).ok_or_else(unknown)
        };
        classes.iter().enumerate().map(prediction).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classifier() -> Classifier {
        Classifier { labels: vec!["no".to_owned(), "yes".to_owned()] }
    }

    #[test]
    fn the_golden_request_can_be_read() {
        let Rows { rows } = serde_json::from_str(include_str!("../golden/request.json")).unwrap();
        assert_eq!(rows[0], [5.1, 3.5, 1.4, 0.2]);
    }

    #[test]
    fn the_class_gets_its_name_and_its_probability() {
        let classifier = classifier();
        let predictions = classifier.predictions(&[1, 0], &[vec![0.2, 0.9], vec![0.8, 0.1]]).unwrap();
        let expected = [Prediction { label: "yes", probability: 0.8 }, Prediction { label: "no", probability: 0.9 }];
        assert_eq!(predictions, expected);
    }

    #[test]
    fn a_class_without_a_name_is_an_error() {
        assert!(classifier().predictions(&[2], &[vec![1.0], vec![0.0]]).is_err());
    }
}
