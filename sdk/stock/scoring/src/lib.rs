//! The stock component that serves any plain ONNX model, written with the public guest SDK alone.
//!
//! Two protocols reach the same graph: `invocations` speaks MLflow's scoring protocol (`mlflow`), `v2` and `v2/infer`
//! the Open Inference Protocol (`oip`). Both read the body with `json` and write numbers with `numbers`; what is
//! fed and what comes out is `tensor`. Everything that a request needs of the package is parsed at deploy.
//!
//! Settings: `graph`, the graph's name (`model`); `mlflow.signature.inputs` and `mlflow.signature.params`, the JSON strings
//! of the `MLmodel` file. `mlflow.signature.outputs` is not looked at: MLflow's server does not check outputs either.
//! `predictions`, `labels` and `categories` are for graphs that stand for a model of another flavour than ONNX; see
//! `mlflow::Flavour`.
//!
//! Deliberately absent: strings in tensors (`wasi:nn` has none), parquet.

#[cfg(test)]
mod goldens;
mod json;
mod mlflow;
mod numbers;
mod oip;
mod tensor;

use tessera_sdk::{Endpoint, Error, Graph, GraphInfo, Package, Request, Response, Tensor};

use crate::mlflow::{Flavour, Model, Signature};
use crate::tensor::Feed;

/// Runs the graph: its outputs, in the order of its description. A function, so that tests need no host.
type Compute<'c> = &'c dyn Fn(&[Feed<'_>]) -> Result<Vec<Tensor<'static>>, Error>;

/// The endpoint: what `init` found in the package.
#[derive(Debug)]
pub struct Scoring {
    graph_name: String,
    graph: GraphInfo,
    signature: Signature,
    flavour: Flavour,
}

impl Endpoint for Scoring {
    fn init(package: &Package) -> Result<Self, Error> {
        let graph_name = package.setting("graph").unwrap_or_else(|| "model".to_owned());
        let inputs = package.setting("mlflow.signature.inputs");
        let params = package.setting("mlflow.signature.params");
        Ok(Self {
            graph: package.graph(&graph_name)?,
            flavour: Flavour::parse(|name| package.setting(name)).map_err(Error::invalid_input)?,
            signature: Signature::parse(inputs.as_deref(), params.as_deref()).map_err(Error::invalid_input)?,
            graph_name,
        })
    }

    fn handle(&self, request: Request) -> Result<Response, Error> {
        self.answer(&request, &|feeds| self.compute(feeds))
    }
}

impl Scoring {
    fn answer(&self, request: &Request, compute: Compute<'_>) -> Result<Response, Error> {
        match request.path() {
            "invocations" => {
                let model = Model { signature: &self.signature, flavour: &self.flavour, graph: &self.graph };
                mlflow::invoke(&model, request.content_type(), request.bytes()?, compute)
            }
            "v2/infer" => oip::infer(&model_of(request), &self.graph, request, compute),
            "v2" => Ok(oip::metadata(&model_of(request), &self.graph)),
            other => Err(Error::not_found(format!(
                "this endpoint answers `invocations`, `v2` and `v2/infer`, not `{other}`"
            ))),
        }
    }

    fn compute(&self, feeds: &[Feed<'_>]) -> Result<Vec<Tensor<'static>>, Error> {
        let feeds = feeds.iter().map(|feed| (feed.name, &feed.tensor));
        Graph::named(&self.graph_name).compute(feeds)?.into_tensors()
    }
}

/// How clients of the Open Inference Protocol know the model: by the endpoint they called.
fn model_of(request: &Request) -> oip::Model {
    oip::Model { name: request.endpoint(), version: request.model_version() }
}

tessera_sdk::export!(Scoring);
