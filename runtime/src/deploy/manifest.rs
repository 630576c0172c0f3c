//! The manifest `tessera.toml`: its form, and what its words mean.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::package::PackageError;
use crate::nn::backends::ModelFormat;
use crate::nn::{BackendChoice, BatchSpec, ExecutionTarget, SequenceSpec};
use crate::outbound::HostPatterns;

/// Name of the manifest in a package.
pub const MANIFEST: &str = "tessera.toml";

/// `tessera.toml` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub(super) component: Option<String>,
    /// How `tessera build` makes the component: nothing that a server reads.
    pub build: Option<toml::Table>,
    #[serde(default)]
    pub(super) init: InitTime,
    #[serde(default)]
    pub(super) request_body: RequestBodyMode,
    #[serde(default)]
    pub(super) assets: BTreeSet<String>,
    #[serde(default)]
    pub(super) graphs: BTreeMap<String, GraphSpec>,
    #[serde(default)]
    pub(super) settings: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) limits: LimitOverrides,
    #[serde(default)]
    pub(super) grants: Grants,
    pub(super) golden: Option<Golden>,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// What is wrong, with its line.
    pub fn parse(text: &str) -> Result<Manifest, PackageError> {
        toml::from_str(text).map_err(|error| PackageError(format!("{MANIFEST}: {error}")))
    }

    /// That of a language model without one: the stock chat answers.
    pub(super) fn of_language_model(file: String) -> Manifest {
        Manifest { graphs: BTreeMap::from([("model".to_owned(), GraphSpec::of(file))]), ..Manifest::default() }
    }

    /// The files that it names beside the component, some perhaps twice.
    pub fn files(&self) -> Vec<String> {
        let golden = self.golden.iter().flat_map(|golden| golden.response.iter().chain([&golden.request]));
        let graphs = self.graphs.values().map(|graph| &graph.file);
        self.assets.iter().chain(graphs).chain(golden).cloned().collect()
    }

    /// The file with its golden request.
    pub fn golden_request(&self) -> Option<&str> {
        self.golden.as_ref().map(|golden| golden.request.as_str())
    }

    /// The component that it names.
    pub fn component(&self) -> Option<ComponentSource> {
        self.component.as_deref().map(|name| match name.strip_prefix("stock:") {
            Some(stock) => ComponentSource::Stock(stock.to_owned()),
            None => ComponentSource::File(name.to_owned()),
        })
    }
}

/// Where the component comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComponentSource {
    /// One that ships with the binary.
    Stock(String),
    /// A file of the package.
    File(String),
}

/// How request bodies reach the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestBodyMode {
    /// Read completely, then handed over: the fast path.
    #[default]
    Full,
    /// In chunks, as they arrive.
    Chunks,
}

/// A graph of a package.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphSpec {
    /// The model file.
    pub file: String,
    /// Which backend runs it.
    #[serde(default)]
    pub backend: BackendName,
    /// Where it runs.
    #[serde(default)]
    pub target: TargetName,
    /// How it may be batched.
    #[serde(default)]
    pub batch: BatchSpec,
    /// Threads of one run; without it a deploy measures how many pay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intra_op_threads: Option<u32>,
    /// For a language model: most tokens of one sequence, prompt and answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u32>,
    /// For a language model: most sequences at once; others wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequences: Option<u32>,
    /// For a language model: tokens whose keys and values are in memory, of all sequences together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_tokens: Option<u32>,
}

impl GraphSpec {
    /// What it says about sequences.
    pub fn sequence_spec(&self) -> SequenceSpec {
        SequenceSpec { context_tokens: self.context_tokens, sequences: self.sequences, cache_tokens: self.cache_tokens }
    }

    /// Checks it against what its model file is, and settles who runs it where it leaves that open.
    pub(super) fn settle(&mut self, format: ModelFormat) -> Result<(), String> {
        let spec = self.sequence_spec();
        match (format, self.backend) {
            (ModelFormat::Gguf, BackendName::Auto | BackendName::Llama) if self.batch != BatchSpec::default() => Err(
                "batch is for models that run at once; a GGUF model has sequences, which are always computed together"
                    .to_owned(),
            ),
            (ModelFormat::Gguf, BackendName::Auto | BackendName::Llama) => {
                self.backend = BackendName::Llama;
                spec.check()
            }
            (ModelFormat::Gguf, _) => Err("it is a GGUF model, which only backend 'llama' runs".to_owned()),
            (ModelFormat::Onnx, BackendName::Llama) => {
                Err("it is not a GGUF model, and backend 'llama' runs no other".to_owned())
            }
            (ModelFormat::Onnx, _) if !spec.is_default() => {
                Err("context_tokens, sequences and cache_tokens are for GGUF models, and it is none".to_owned())
            }
            (ModelFormat::Onnx, _) => Ok(()),
        }
    }
}

/// The manifest's word for a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendName {
    /// ONNX Runtime where its library is found, else tract.
    #[default]
    Auto,
    /// ONNX Runtime or a failed deploy.
    Onnxruntime,
    /// The built-in backend.
    Tract,
    /// llama.cpp, for GGUF models: what `auto` becomes for them.
    Llama,
}

impl From<BackendName> for BackendChoice {
    fn from(name: BackendName) -> BackendChoice {
        match name {
            BackendName::Auto => BackendChoice::Auto,
            BackendName::Onnxruntime => BackendChoice::OnnxRuntime,
            BackendName::Tract => BackendChoice::Tract,
            BackendName::Llama => BackendChoice::Llama,
        }
    }
}

/// The manifest's word for an execution target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetName {
    /// The processor.
    #[default]
    Cpu,
    /// A graphics processor, or a failed deploy.
    Gpu,
}

impl From<TargetName> for ExecutionTarget {
    fn from(name: TargetName) -> ExecutionTarget {
        match name {
            TargetName::Cpu => ExecutionTarget::Cpu,
            TargetName::Gpu => ExecutionTarget::Gpu,
        }
    }
}

impl GraphSpec {
    /// A model file with nothing said of it.
    pub(super) fn of(file: String) -> GraphSpec {
        GraphSpec {
            file,
            backend: BackendName::default(),
            target: TargetName::default(),
            batch: BatchSpec::default(),
            intra_op_threads: None,
            context_tokens: None,
            sequences: None,
            cache_tokens: None,
        }
    }
}

/// Limits in a manifest; the server's own hold where one is absent. Memory and time on the clock can only be lowered;
/// processor time may be raised up to the server's time on the clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitOverrides {
    /// Guest memory of one request.
    pub memory_bytes: Option<u64>,
    /// Processor time of one request.
    pub cpu_ms: Option<u64>,
    /// Time of one request on the clock.
    pub wall_ms: Option<u64>,
}

/// What a package asks for, and gets where the server allows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    /// Hosts that the guest may send requests to.
    #[serde(default)]
    pub http: HostPatterns,
}

impl Grants {
    pub(super) fn is_empty(&self) -> bool {
        self.http.is_empty()
    }
}

/// The golden request of a package.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// File with the request body.
    pub request: String,
    /// File with the JSON that must come back; without one, any answer below status 400 will do.
    pub response: Option<String>,
    /// How far numbers may differ.
    #[serde(default = "default_tolerance")]
    pub tolerance: f64,
    /// Content type of the request.
    #[serde(default = "default_content_type")]
    pub content_type: String,
}

impl Golden {
    /// A request of which only the status counts.
    pub(super) fn of(request: String) -> Golden {
        let (tolerance, content_type) = (default_tolerance(), default_content_type());
        Golden { request, response: None, tolerance, content_type }
    }
}

fn default_tolerance() -> f64 {
    1e-5
}

fn default_content_type() -> String {
    "application/json".to_owned()
}

/// When the guest's `init` runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitTime {
    /// Once, at deploy: every request starts from the memory that it left.
    #[default]
    Deploy,
    /// At the start of every request, which waits for it: for guests whose memory cannot be frozen.
    Request,
}
