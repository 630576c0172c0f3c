//! MLflow's scoring protocol, as much of it as the benches send.

use std::io::Write;
use std::path::Path;

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::session::{Input, Session, Values};

/// A model with one fp32 input `[rows, features]`.
pub(crate) struct Scoring(Session);

/// One of the two. A table's columns are taken in the order of the body.
#[derive(Deserialize)]
struct Request {
    dataframe_split: Option<Table>,
    inputs: Option<Vec<Vec<f32>>>,
}

#[derive(Deserialize)]
struct Table {
    data: Vec<Vec<f32>>,
}

impl Scoring {
    pub(crate) fn load(library: &Path, model: &Path) -> Result<Scoring> {
        Ok(Scoring(Session::load(library, model)?))
    }

    /// A table is answered with a record per row, a tensor with the outputs by name: so does the server.
    pub(crate) fn answer(&self, body: &[u8]) -> Result<Vec<u8>> {
        let request: Request = serde_json::from_slice(body)?;
        match (request.dataframe_split, request.inputs) {
            (Some(Table { data }), None) => records(data.len(), &self.score(&data)?),
            (None, Some(inputs)) => named(inputs.len(), &self.score(&inputs)?),
            _ => bail!("one of dataframe_split and inputs is needed"),
        }
    }

    fn score(&self, rows: &[Vec<f32>]) -> Result<Vec<(&str, Values)>> {
        self.0.run(rows.len(), &[Input::F32(&rows.concat())])
    }
}

/// `[{"label": 0, ...}, ...]` of outputs `[rows]`. Their names are plain words, which JSON takes as they are.
fn records(rows: usize, outputs: &[(&str, Values)]) -> Result<Vec<u8>> {
    let mut json = br#"{"predictions":["#.to_vec();
    for row in 0..rows {
        json.extend(if row == 0 { "{" } else { ",{" }.bytes());
        for (column, (name, values)) in outputs.iter().enumerate() {
            write!(json, "{}\"{name}\":", if column == 0 { "" } else { "," })?;
            match values {
                Values::F32(values) => serde_json::to_writer(&mut json, &values.get(row))?,
                Values::I64(values) => serde_json::to_writer(&mut json, &values.get(row))?,
            }
        }
        json.push(b'}');
    }
    json.extend(b"]}");
    Ok(json)
}

/// `{"Y": [[...], ...]}` of outputs `[rows, width]`.
fn named(rows: usize, outputs: &[(&str, Values)]) -> Result<Vec<u8>> {
    let mut json = br#"{"predictions":{"#.to_vec();
    for (column, (name, values)) in outputs.iter().enumerate() {
        write!(json, "{}\"{name}\":", if column == 0 { "" } else { "," })?;
        match values {
            Values::F32(values) => serde_json::to_writer(&mut json, &cut(values, rows))?,
            Values::I64(values) => serde_json::to_writer(&mut json, &cut(values, rows))?,
        }
    }
    json.extend(b"}}");
    Ok(json)
}

fn cut<T>(values: &[T], rows: usize) -> Vec<&[T]> {
    values.chunks((values.len() / rows).max(1)).collect()
}
