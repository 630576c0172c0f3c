//! The species of flowers, from a table in any form that Databricks' and MLflow's clients send; the types below are also
//! what the endpoint's OpenAPI document says.
//!
//! ```text
//! {"dataframe_records": [{"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}]}
//!   →  {"predictions": [{"species": "setosa", "probability": 0.98}]}
//! ```

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_sdk::schema::Schema;
use tessera_sdk::{Endpoint, Error, Graph, Outputs, Package, Request, Response, Tensor};

tessera_sdk::export!(Iris, schema = schema());

/// What the endpoint takes and answers.
fn schema() -> Schema {
    Schema::new().takes_rows::<Flower>().answers_predictions::<Prediction>()
}

/// The measures of a flower.
#[derive(Debug, Deserialize, JsonSchema)]
struct Flower {
    #[schemars(range(min = 0.0))]
    sepal_length: f32,
    #[schemars(range(min = 0.0))]
    sepal_width: f32,
    #[schemars(range(min = 0.0))]
    petal_length: f32,
    #[schemars(range(min = 0.0))]
    petal_width: f32,
    /// Of the four lengths; centimetres where it is missing.
    unit: Option<Unit>,
}

/// A unit of length.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Unit {
    Cm,
    In,
}

/// The likeliest species of a flower.
#[derive(Debug, Serialize, JsonSchema)]
struct Prediction<'a> {
    species: &'a str,
    /// Between 0 and 1.
    probability: f32,
}

struct Iris {
    /// The names of the species, in the model's order.
    species: Vec<String>,
}

impl Flower {
    /// In centimetres, in the order that the model takes.
    fn measures(&self) -> Result<[f32; 4], Error> {
        let cm = match self.unit.unwrap_or(Unit::Cm) {
            Unit::Cm => 1.0,
            Unit::In => 2.54,
        };
        let measures =
            [self.sepal_length, self.sepal_width, self.petal_length, self.petal_width].map(|length| length * cm);
        match measures.into_iter().all(|length| length >= 0.0) {
            true => Ok(measures),
            false => Err(Error::invalid_input(format!("no length is below 0: {self:?}"))),
        }
    }
}

impl Endpoint for Iris {
    fn init(package: &Package) -> Result<Self, Error> {
        Ok(Iris { species: package.asset_text("labels.txt")?.lines().map(str::to_owned).collect() })
    }

    fn handle(&self, request: Request) -> Result<Response, Error> {
        let flowers: Vec<Flower> = request.rows()?;
        if flowers.is_empty() {
            return Err(Error::invalid_input("the table has no rows: send at least one"));
        }
        let rows = flowers.iter().map(Flower::measures).collect::<Result<Vec<_>, _>>()?;
        let input = Tensor::new(&[rows.len() as u32, 4], rows.as_flattened())?;
        let outputs = Graph::named("model").compute([("X", &input)])?;
        Response::predictions(&self.predictions(&outputs)?)
    }
}

impl Iris {
    /// The model gives the species of each row, then for each species the probabilities of the rows.
    fn predictions(&self, outputs: &Outputs) -> Result<Vec<Prediction<'_>>, Error> {
        let mut probabilities = Vec::new();
        for place in 0..self.species.len() {
            probabilities.push(outputs.at(1 + place)?.as_slice::<f32>()?.into_owned());
        }
        let prediction = |(row, chosen): (usize, &i64)| {
            let chosen = usize::try_from(*chosen).unwrap_or(usize::MAX);
            let species = self.species.get(chosen).map(String::as_str);
            let probability = probabilities.get(chosen).and_then(|rows| rows.get(row)).copied();
            let unknown = || Error::model(format!("the model chose species {chosen}, which labels.txt does not have"));
            species
                .zip(probability)
                .map(|(species, probability)| Prediction { species, probability })
                .ok_or_else(unknown)
        };
        outputs.get("label")?.as_slice::<i64>()?.iter().enumerate().map(prediction).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tessera_sdk::testing::{Deployed, Host};

    use super::*;

    /// With a model that takes flowers with long petals for the second species.
    fn deployed() -> Deployed<Iris> {
        let host = Host::new().asset("labels.txt", "short\nlong\n").graph("model", |inputs| {
            let values = inputs.get("X")?.as_slice::<f32>()?.into_owned();
            let is_long = |row: &[f32]| i64::from(row[2] > 3.0);
            let label: Vec<i64> = values.chunks(4).map(is_long).collect();
            let rows = label.len() as u32;
            let of = |species: i64| label.iter().map(|label| if *label == species { 0.75 } else { 0.25f32 }).collect();
            let (short, long) = (Tensor::from_vec(&[rows], of(0))?, Tensor::from_vec(&[rows], of(1))?);
            Ok(vec![("label", Tensor::from_vec(&[rows], label)?), ("short", short), ("long", long)])
        });
        host.deploy().unwrap()
    }

    fn answer(body: &str) -> Result<Value, Error> {
        let response = deployed().call(Request::new("invocations", "application/json", body))?;
        Ok(serde_json::from_slice(response.parts().unwrap().2).unwrap())
    }

    #[test]
    fn each_row_gets_its_species_in_either_unit() {
        let flower = |petal: f64, unit: Value| json!({ "sepal_length": 5, "sepal_width": 3.5, "petal_length": petal, "petal_width": 0.2, "unit": unit });
        let body =
            json!({ "instances": [flower(1.4, Value::Null), flower(1.4, json!("in")), flower(3.5, json!("cm"))] });
        let (short, long) =
            (json!({ "species": "short", "probability": 0.75 }), json!({ "species": "long", "probability": 0.75 }));
        assert_eq!(answer(&body.to_string()).unwrap(), json!({ "predictions": [short, long, long] }));
    }

    #[test]
    fn what_is_no_flower_is_told() {
        for (rows, reason) in [
            (json!([]), "the table has no rows"),
            (json!([[5.1, 3.5, 1.4, "wide", null]]), "row 0: invalid type: string \"wide\", expected f32"),
            (json!([[5.1, 3.5, 1.4, -1, null]]), "no length is below 0"),
            (json!([{ "sepal_length": 5.1 }]), "row 0: missing column `sepal_width`"),
        ] {
            let error = answer(&json!({ "instances": rows }).to_string()).unwrap_err();
            assert!(error.message.contains(reason), "{error}");
        }
    }

    #[test]
    fn the_schema_says_what_the_types_say() {
        let schema = schema();
        let flower = schema.request("application/json").unwrap().pointer("/$defs/Flower").unwrap();
        assert_eq!(flower["required"], json!(["sepal_length", "sepal_width", "petal_length", "petal_width"]));
        let answer = schema.response("application/json").unwrap().pointer("/$defs/Prediction").unwrap();
        assert_eq!(answer["properties"]["probability"]["description"], "Between 0 and 1.");
    }
}
