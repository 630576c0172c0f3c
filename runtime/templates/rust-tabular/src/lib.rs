//! A table of measures in, a label for each row out.
//!
//! ```text
//! {"dataframe_records": [{"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}]}
//!   →  {"predictions": [{"label": "setosa", "probability": 0.98}]}
//! ```
//!
//! Clients may send the table in any of the forms of Databricks' and MLflow's clients; `tessera endpoint openapi {{name}}`
//! prints them, with what the types below say.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_sdk::schema::Schema;
use tessera_sdk::{Endpoint, Error, Graph, Outputs, Package, Request, Response, Tensor};

tessera_sdk::export!(Classifier, schema = schema());

/// What the endpoint takes and answers.
fn schema() -> Schema {
    Schema::new().takes_rows::<Flower>().answers_predictions::<Prediction>()
}

/// The measures of a flower, in centimetres.
#[derive(Deserialize, JsonSchema)]
struct Flower {
    sepal_length: f32,
    sepal_width: f32,
    petal_length: f32,
    petal_width: f32,
}

/// The likeliest class of a row.
#[derive(Serialize, JsonSchema)]
struct Prediction<'a> {
    label: &'a str,
    /// Between 0 and 1.
    probability: f32,
}

struct Classifier {
    /// The names of the classes, in the model's order.
    labels: Vec<String>,
}

impl Endpoint for Classifier {
    /// Runs once, at deploy. The memory it leaves is what every request starts from.
    fn init(package: &Package) -> Result<Self, Error> {
        Ok(Classifier { labels: package.asset_text("labels.txt")?.lines().map(str::to_owned).collect() })
    }

    /// Runs for each request, in an instance that has seen no other.
    fn handle(&self, request: Request) -> Result<Response, Error> {
        let flowers: Vec<Flower> = request.rows()?;
        if flowers.is_empty() {
            return Err(Error::invalid_input("the table has no rows: send at least one"));
        }
        let rows: Vec<[f32; 4]> = flowers.iter().map(Flower::measures).collect();
        let input = Tensor::new(&[rows.len() as u32, 4], rows.as_flattened())?;
        let outputs = Graph::named("model").compute([("X", &input)])?;
        Response::predictions(&self.predictions(&outputs)?)
    }
}

impl Flower {
    /// In the order that the model takes.
    fn measures(&self) -> [f32; 4] {
        [self.sepal_length, self.sepal_width, self.petal_length, self.petal_width]
    }
}

impl Classifier {
    /// The model gives the class of each row, then for each class the probabilities of the rows.
    fn predictions(&self, outputs: &Outputs) -> Result<Vec<Prediction<'_>>, Error> {
        let mut probabilities = Vec::new();
        for class in 0..self.labels.len() {
            probabilities.push(outputs.at(1 + class)?.as_slice::<f32>()?.into_owned());
        }
        let prediction = |(row, class): (usize, &i64)| {
            let class = usize::try_from(*class).unwrap_or(usize::MAX);
            let label = self.labels.get(class).map(String::as_str);
            let probability = probabilities.get(class).and_then(|rows| rows.get(row)).copied();
            let unknown = || Error::model(format!("the model chose class {class}, which labels.txt does not have"));
            label.zip(probability).map(|(label, probability)| Prediction { label, probability }).ok_or_else(unknown)
        };
        outputs.get("label")?.as_slice::<i64>()?.iter().enumerate().map(prediction).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_sdk::testing::Host;

    /// A stand-in for the model, which takes each row for this class with a probability of 0.75.
    fn answer(class: i64, body: &str) -> Result<String, Error> {
        let host = Host::new().asset("labels.txt", "no\nyes\n").graph("model", move |inputs| {
            let rows = inputs.get("X")?.dims()[0];
            let of_class = |probability: f32| Tensor::from_vec(&[rows], vec![probability; rows as usize]);
            let label = Tensor::from_vec(&[rows], vec![class; rows as usize])?;
            Ok(vec![("label", label), ("no", of_class(0.25)?), ("yes", of_class(0.75)?)])
        });
        let response = host.deploy::<Classifier>()?.call(Request::new("invocations", "application/json", body))?;
        Ok(String::from_utf8_lossy(response.parts().unwrap().2).into_owned())
    }

    #[test]
    fn each_row_gets_its_label() {
        let expected = r#"{"predictions":[{"label":"yes","probability":0.75},{"label":"yes","probability":0.75}]}"#;
        assert_eq!(answer(1, include_str!("../golden/request.json")).unwrap(), expected);
    }

    #[test]
    fn a_value_that_is_no_number_is_told() {
        let error = answer(0, r#"{"instances": [[5.1, "wide", 1.4, 0.2]]}"#).unwrap_err();
        assert_eq!(error.message, "row 0: invalid type: string \"wide\", expected f32");
    }

    #[test]
    fn a_class_without_a_name_is_an_error() {
        assert!(answer(2, include_str!("../golden/request.json")).unwrap_err().message.contains("class 2"));
    }
}
