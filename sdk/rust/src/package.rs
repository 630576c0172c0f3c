//! The package that the endpoint was deployed from.

pub use crate::bindings::tessera::endpoint::graph_info::{Description as GraphInfo, ElementType, TensorInfo};
#[cfg(target_arch = "wasm32")]
use crate::bindings::tessera::endpoint::{
    assets::read, graph_info::describe, graph_info::metadata, settings::get as setting,
};
#[cfg(not(target_arch = "wasm32"))]
use crate::testing::host::{describe, metadata, read, setting};
use crate::{Error, TensorType};

/// What [`Endpoint::init`](crate::Endpoint::init) may read.
///
/// It exists only during `init`: keep what a request needs in the endpoint, where it is frozen ready for use.
#[derive(Debug)]
#[non_exhaustive]
pub struct Package;

impl Package {
    /// The content of a file that the manifest lists under `assets`.
    pub fn asset(&self, name: &str) -> Result<Vec<u8>, Error> {
        read(name).map_err(|reason| Error::model(format!("failed to read asset `{name}`: {reason}")))
    }

    /// The same as text.
    pub fn asset_text(&self, name: &str) -> Result<String, Error> {
        String::from_utf8(self.asset(name)?).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Error::model(format!("asset `{name}` is not UTF-8 text: invalid byte at offset {at}"))
        })
    }

    /// A setting of the manifest, or of the served entity's environment, which wins.
    pub fn setting(&self, name: &str) -> Option<String> {
        setting(name)
    }

    /// What a graph takes and gives, in the order of the model file.
    pub fn graph(&self, name: &str) -> Result<GraphInfo, Error> {
        describe(name).ok_or_else(|| Error::model(format!("the package has no graph `{name}`")))
    }

    /// What a graph's model file says of itself under a key: `general.architecture` or `tokenizer.chat_template` of a GGUF
    /// file, the metadata of an ONNX file; none when it does not say. `wit/endpoint.wit` lists the keys that are added.
    pub fn metadata(&self, graph: &str, key: &str) -> Result<Option<String>, Error> {
        match metadata(graph, key) {
            // No such key, or no such graph.
            None => self.graph(graph).map(|_| None),
            value => Ok(value),
        }
    }
}

impl GraphInfo {
    /// The input of this name, if the graph has it.
    pub fn input(&self, name: &str) -> Option<&TensorInfo> {
        self.inputs.iter().find(|input| input.name == name)
    }

    /// The output of this name, if the graph has it.
    pub fn output(&self, name: &str) -> Option<&TensorInfo> {
        self.outputs.iter().find(|output| output.name == name)
    }
}

impl ElementType {
    /// How `wasi:nn` carries elements of this type: it has no name for the last two, which travel as bytes.
    pub fn tensor_type(self) -> TensorType {
        match self {
            Self::Fp16 => TensorType::Fp16,
            Self::Fp32 => TensorType::Fp32,
            Self::Fp64 => TensorType::Fp64,
            Self::Bf16 => TensorType::Bf16,
            Self::U8 | Self::Bool | Self::Int8 => TensorType::U8,
            Self::I32 => TensorType::I32,
            Self::I64 => TensorType::I64,
        }
    }

    /// The name as the contract spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int8 => "int8",
            other => other.tensor_type().name(),
        }
    }
}
