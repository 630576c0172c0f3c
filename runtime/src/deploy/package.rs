//! What a model version holds: its manifest `tessera.toml`, or an MLflow model directory as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::capability::{self, COMPONENT_BYTES_MAX};
use super::manifest::{
    ComponentSource, Golden, Grants, GraphSpec, InitTime, LimitOverrides, MANIFEST, Manifest, RequestBodyMode,
};
use crate::nn;
use crate::nn::backends::{ModelFormat, ReadSeek};
use crate::sandbox::World;
use crate::store::blobs::{Blobs, Digest};

/// Name of MLflow's description of a model directory.
pub const MLMODEL: &str = "MLmodel";

/// Largest manifest or `MLmodel`.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// Largest golden request or response.
const GOLDEN_BYTES_MAX: u64 = 16 << 20;

/// Most threads that a package may ask for in one run of a graph; a server gives at most those that it has.
const INTRA_OP_THREADS_MAX: u32 = 64;

/// Most files in a package: their list must fit a record of the store.
pub const FILES_MAX: usize = 300;

/// Most graphs of a package: each model file is read once for each of its graphs.
const GRAPHS_MAX: usize = 32;

/// A validated package: what is stored of it besides the files themselves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Package {
    /// Every file by its path in the package.
    pub files: BTreeMap<String, PackageFile>,
    /// The component that answers requests.
    pub component: ComponentSource,
    /// The world that the component is made for: found when the package was checked.
    #[serde(default)]
    pub world: World,
    /// Whether the component says what it takes and answers: found likewise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub describes: bool,
    /// When the guest's `init` runs.
    #[serde(default)]
    pub init: InitTime,
    /// How the guest wants request bodies.
    #[serde(default)]
    pub request_body: RequestBodyMode,
    /// Files that the guest may read during `init`.
    pub assets: BTreeSet<String>,
    /// Graphs by the name that the guest knows.
    pub graphs: BTreeMap<String, GraphSpec>,
    /// Files beside a graph's own that hold its weights, by the graph's name: found when the package was checked.
    #[serde(default)]
    pub weights: BTreeMap<String, Vec<String>>,
    /// Settings for the guest.
    pub settings: BTreeMap<String, String>,
    /// Limits that differ from the server's.
    #[serde(default)]
    pub limits: LimitOverrides,
    /// What the guest asks for beyond what every guest has.
    #[serde(default, skip_serializing_if = "Grants::is_empty")]
    pub grants: Grants,
    /// A request that must succeed before the package serves.
    pub golden: Option<Golden>,
}

/// A file of a package.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PackageFile {
    /// SHA-256 of the content.
    pub digest: Digest,
    /// Size.
    pub bytes: u64,
}

/// What is wrong with a package: a sentence for its author.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PackageError(pub String);

/// The part of `MLmodel` that serving needs.
#[derive(Debug, Deserialize)]
struct MlModel {
    #[serde(default)]
    flavors: BTreeMap<String, serde_json::Value>,
    signature: Option<Signature>,
    saved_input_example_info: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Signature {
    inputs: Option<String>,
    outputs: Option<String>,
    params: Option<String>,
}

/// Where the content of a package's files is read from.
pub trait PackageSource {
    /// A file by its name and what is known of it, and its length. Blocks.
    ///
    /// # Errors
    /// A sentence: that it is not there, or cannot be read.
    fn open(&self, name: &str, file: &PackageFile) -> Result<(Box<dyn ReadSeek>, u64), String>;
}

impl PackageSource for Blobs {
    fn open(&self, _: &str, file: &PackageFile) -> Result<(Box<dyn ReadSeek>, u64), String> {
        let reader = self.reader(&file.digest).map_err(|error| error.to_string())?;
        let length = reader.length();
        Ok((Box::new(reader), length))
    }
}

/// The path of a package's file, checked: relative, in plain parts, and not hidden.
///
/// # Errors
/// A sentence that names the path.
pub fn check_path(path: &str) -> Result<(), PackageError> {
    // As text, and not by `Path::components`, which passes over `a//b` and `a/./b`: a file has one name.
    let plain = path.split('/').all(|part| {
        !part.is_empty() && !part.starts_with('.') && !part.contains(|c: char| c == '\\' || c.is_control())
    });
    if path.len() > 512 || !plain {
        return Err(PackageError(format!(
            "'{path}' is not a path that a package may hold: use a relative path without empty parts, '.', '..', links, hidden parts or control characters"
        )));
    }
    Ok(())
}

/// A file whose name is also that of a folder, and a file in it: no disk can hold both.
fn file_as_folder(files: &BTreeMap<String, PackageFile>) -> Option<(&str, &str)> {
    files.keys().find_map(|below| {
        let mut above = below.match_indices('/').map(|(end, _)| &below[..end]);
        above.find(|name| files.contains_key(*name)).map(|file| (file, below.as_str()))
    })
}

impl Package {
    /// Reads and checks a package from its uploaded files. Blocks.
    ///
    /// # Errors
    /// What is wrong and how to mend it.
    pub fn read(files: BTreeMap<String, PackageFile>, source: &dyn PackageSource) -> Result<Package, PackageError> {
        if files.len() > FILES_MAX {
            return Err(PackageError(format!("the package has {} files; the limit is {FILES_MAX}", files.len())));
        }
        if let Some((file, below)) = file_as_folder(&files) {
            return Err(PackageError(format!(
                "'{file}' is a file of the package, and the folder of '{below}': rename one"
            )));
        }
        let text = |name: &str| files.get(name).map(|file| read_text(name, file, source)).transpose();
        let manifest = text(MANIFEST)?.map(|text| Manifest::parse(&text)).transpose()?;
        let mlmodel = text(MLMODEL)?.map(|text| parse_mlmodel(&text)).transpose()?;
        let manifest = match (manifest, &mlmodel, only_language_model(&files)) {
            (Some(manifest), ..) => manifest,
            (None, Some(_), _) => Manifest::default(),
            (None, None, Some(file)) => Manifest::of_language_model(file.to_owned()),
            (None, None, None) => {
                return Err(PackageError(format!(
                    "the package has neither a {MANIFEST} nor an {MLMODEL} file at its top: push the model's own folder"
                )));
            }
        };
        let mut package = assemble(manifest, mlmodel, files)?;
        package.check()?;
        package.inspect_component(source)?;
        package.inspect_graphs(source)?;
        Ok(package)
    }

    /// Why a model that MLflow saved is of a kind that is not served, if it is: it may be registered, but not deployed. A
    /// package with a manifest of ours is meant to be served. Blocks.
    ///
    /// # Errors
    /// When its `MLmodel` cannot be read.
    pub fn unserved_flavour(
        files: &BTreeMap<String, PackageFile>,
        source: &dyn PackageSource,
    ) -> Result<Option<String>, PackageError> {
        let (None, Some(file)) = (files.get(MANIFEST), files.get(MLMODEL)) else { return Ok(None) };
        let mlmodel = parse_mlmodel(&read_text(MLMODEL, file, source)?)?;
        Ok(match mlmodel.flavors.contains_key("onnx") {
            true => None,
            false => onnx_file(&mlmodel).err().map(|error| error.0),
        })
    }

    /// Finds out which world the component is made for, and whether it describes itself. One that is none, or of none that is
    /// known, is left to the deploy, whose log says why.
    fn inspect_component(&mut self, source: &dyn PackageSource) -> Result<(), PackageError> {
        let ComponentSource::File(name) = &self.component else { return Ok(()) };
        let Some(file) = self.files.get(name) else { return Ok(()) };
        let failed =
            |error: &dyn std::fmt::Display| PackageError(format!("failed to read component '{name}': {error}"));
        let (reader, _) = source.open(name, file).map_err(|error| failed(&error))?;
        let mut component = Vec::new();
        reader.take(COMPONENT_BYTES_MAX).read_to_end(&mut component).map_err(|error| failed(&error))?;
        let found = capability::look(&component).unwrap_or_default();
        self.world = found.world().unwrap_or_default();
        self.describes = found.describes();
        let of_endpoints = match (self.init, self.request_body) {
            (InitTime::Request, _) => "init",
            (_, RequestBodyMode::Chunks) => "request_body",
            (InitTime::Deploy, RequestBodyMode::Full) => return Ok(()),
        };
        match self.world {
            World::Endpoint => Ok(()),
            World::Proxy => Err(PackageError(format!(
                "'{of_endpoints}' in {MANIFEST} is for components of {}; leave it out, for '{name}' is one of {}, which has \
                 no init and reads its request as it arrives",
                World::Endpoint.name(),
                World::Proxy.name()
            ))),
        }
    }

    /// Reads every graph's signature, so that a model that cannot be served is refused now, and finds where its weights
    /// are.
    fn inspect_graphs(&mut self, source: &dyn PackageSource) -> Result<(), PackageError> {
        let mut graphs = std::mem::take(&mut self.graphs);
        for (name, graph) in &mut graphs {
            self.inspect_graph(name, graph, source)?;
        }
        self.graphs = graphs;
        Ok(())
    }

    fn inspect_graph(
        &mut self,
        name: &str,
        graph: &mut GraphSpec,
        source: &dyn PackageSource,
    ) -> Result<(), PackageError> {
        let Some(file) = self.files.get(&graph.file) else { return Ok(()) };
        let model_file = graph.file.clone();
        let failed = |error: &dyn std::fmt::Display| PackageError(format!("graph '{name}' ('{model_file}'): {error}"));
        let (mut model, end) = source.open(&graph.file, file).map_err(|error| failed(&error))?;
        let format = ModelFormat::of(&mut *model).map_err(|error| failed(&error))?;
        graph.settle(format).map_err(|error| failed(&error))?;
        let beside = self.siblings(&graph.file);
        let inspected = nn::backends::inspect_with_weights(model, end, &beside);
        let (_, weights) = inspected.map_err(|error| failed(&error))?;
        if !weights.is_empty() {
            self.weights.insert(name.to_owned(), weights);
        }
        Ok(())
    }

    /// Names of the other files in a file's folder: where a model may keep its weights.
    fn siblings(&self, file: &str) -> Vec<String> {
        let folder = Path::new(file).parent();
        let beside = |name: &&String| *name != file && Path::new(name).parent() == folder;
        let file_name = |name: &String| Path::new(name).file_name().map(|name| name.to_string_lossy().into_owned());
        self.files.keys().filter(beside).filter_map(file_name).collect()
    }

    /// That every file named exists and is not larger than what is read of it.
    fn check(&self) -> Result<(), PackageError> {
        let at_most = |what: &str, name: &str, bytes_max: u64| match self.files.get(name) {
            None => Err(PackageError(format!("{what} '{name}' is not in the package"))),
            Some(file) if file.bytes > bytes_max => {
                Err(PackageError(format!("{what} '{name}' has {} bytes; the limit is {bytes_max}", file.bytes)))
            }
            Some(_) => Ok(()),
        };
        let need = |what: &str, name: &str| at_most(what, name, u64::MAX);
        match &self.component {
            ComponentSource::File(file) => at_most("component", file, COMPONENT_BYTES_MAX)?,
            ComponentSource::Stock(name) if super::stock::component(name).is_some() => {}
            ComponentSource::Stock(name) => {
                let known = super::stock::NAMES.map(|name| format!("stock:{name}")).join(", ");
                return Err(PackageError(format!("there is no stock component 'stock:{name}'; there are {known}")));
            }
        }
        for asset in &self.assets {
            need("asset", asset)?;
        }
        if self.graphs.len() > GRAPHS_MAX {
            return Err(PackageError(format!(
                "{MANIFEST} names {} graphs; the limit is {GRAPHS_MAX}: serve the others as a model of their own",
                self.graphs.len()
            )));
        }
        for (name, graph) in &self.graphs {
            need(&format!("the file of graph '{name}',"), &graph.file)?;
            graph.batch.check().map_err(|error| PackageError(format!("graph '{name}': {error}")))?;
            if let Some(threads) =
                graph.intra_op_threads.filter(|threads| !(1..=INTRA_OP_THREADS_MAX).contains(threads))
            {
                return Err(PackageError(format!(
                    "graph '{name}': intra_op_threads is {threads}; 1 to {INTRA_OP_THREADS_MAX} are allowed"
                )));
            }
        }
        if let Some(golden) = &self.golden {
            at_most("golden request", &golden.request, GOLDEN_BYTES_MAX)?;
            if let Some(response) = &golden.response {
                at_most("golden response", response, GOLDEN_BYTES_MAX)?;
            }
        }
        Ok(())
    }
}

fn read_text(name: &str, file: &PackageFile, source: &dyn PackageSource) -> Result<String, PackageError> {
    if file.bytes > MANIFEST_BYTES_MAX {
        return Err(PackageError(format!("{name} is larger than {MANIFEST_BYTES_MAX} bytes")));
    }
    let failed = |error: &dyn std::fmt::Display| PackageError(format!("failed to read {name}: {error}"));
    let (reader, _) = source.open(name, file).map_err(|error| failed(&error))?;
    let mut bytes = Vec::new();
    reader.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    String::from_utf8(bytes).map_err(|_| PackageError(format!("{name} is not UTF-8 text")))
}

fn parse_mlmodel(text: &str) -> Result<MlModel, PackageError> {
    serde_saphyr::from_str(text)
        .map_err(|error| PackageError(format!("{MLMODEL} is not the YAML that MLflow writes: {error}")))
}

/// Whether a file is a language model, by its name.
pub fn is_gguf(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// The one model file, where the package is nothing but a language model.
fn only_language_model(files: &BTreeMap<String, PackageFile>) -> Option<&str> {
    let mut models = files.keys().filter(|name| is_gguf(name));
    models.next().filter(|_| models.next().is_none()).map(String::as_str)
}

fn assemble(
    manifest: Manifest,
    mlmodel: Option<MlModel>,
    files: BTreeMap<String, PackageFile>,
) -> Result<Package, PackageError> {
    let mut graphs = manifest.graphs.values();
    let is_language_model = matches!((graphs.next(), graphs.next()), (Some(only), None) if is_gguf(&only.file));
    let stock = if is_language_model { "chat" } else { "scoring" };
    let mut package = Package {
        files,
        component: manifest.component().unwrap_or_else(|| ComponentSource::Stock(stock.to_owned())),
        world: World::default(),
        describes: false,
        init: manifest.init,
        request_body: manifest.request_body,
        assets: manifest.assets,
        graphs: manifest.graphs,
        weights: BTreeMap::new(),
        settings: manifest.settings,
        limits: manifest.limits,
        grants: manifest.grants,
        golden: manifest.golden,
    };
    if let Some(mlmodel) = mlmodel {
        adopt_mlmodel(&mut package, mlmodel)?;
    } else if manifest.component.is_none() && !is_language_model {
        return Err(PackageError(format!(
            "{MANIFEST} names no component: set component to a file of the package or to a stock component"
        )));
    }
    Ok(package)
}

/// Fills in from `MLmodel` what the manifest leaves open.
fn adopt_mlmodel(package: &mut Package, mlmodel: MlModel) -> Result<(), PackageError> {
    if package.graphs.is_empty() && package.component == ComponentSource::Stock("scoring".to_owned()) {
        let file = onnx_file(&mlmodel)?;
        package.graphs.insert("model".to_owned(), GraphSpec::of(file));
    }
    let signature = mlmodel.signature.unwrap_or(Signature { inputs: None, outputs: None, params: None });
    for (part, text) in [("inputs", signature.inputs), ("outputs", signature.outputs), ("params", signature.params)] {
        if let Some(text) = text {
            serde_json::from_str::<serde_json::Value>(&text)
                .map_err(|error| PackageError(format!("{MLMODEL}: signature.{part} is not JSON: {error}")))?;
            package.settings.entry(format!("mlflow.signature.{part}")).or_insert(text);
        }
    }
    let example = mlmodel
        .saved_input_example_info
        .as_ref()
        .and_then(|info| info.get("serving_input_path"))
        .and_then(|path| path.as_str());
    if let Some(example) = example
        && package.golden.is_none()
        && package.files.contains_key(example)
    {
        package.golden = Some(Golden::of(example.to_owned()));
    }
    Ok(())
}

fn onnx_file(mlmodel: &MlModel) -> Result<String, PackageError> {
    let Some(flavor) = mlmodel.flavors.get("onnx") else {
        let flavors =
            mlmodel.flavors.keys().filter(|name| *name != "python_function").cloned().collect::<Vec<_>>().join(", ");
        return Err(PackageError(format!(
            "the model has the flavour [{flavors}], which is not served as it is: make a package of it \
             with `python -m tessera package` (sdk/python), save it with mlflow.onnx, or add a component and a {MANIFEST}"
        )));
    };
    let data = flavor.get("data").and_then(|data| data.as_str());
    data.map(str::to_owned).ok_or_else(|| PackageError(format!("{MLMODEL}: flavors.onnx.data is missing")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[(&str, &[u8])]) -> Result<Package, PackageError> {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), crate::seal::keyring::Keyring::for_tests(dir.path())).unwrap();
        let file =
            |content: &[u8]| PackageFile { digest: blobs.put_bytes(content).unwrap(), bytes: content.len() as u64 };
        Package::read(content.iter().map(|(name, content)| ((*name).to_owned(), file(content))).collect(), &blobs)
    }

    const LINEAR: &[u8] = include_bytes!("../../../tests/fixtures/linear.onnx");

    const ML: &str = "flavors:\n  onnx:\n    data: model.onnx\n  python_function:\n    data: model.onnx\nsignature:\n  inputs: '[{\"type\": \"double\", \"name\": \"a\"}]'\n  outputs: null\n  params: null\nmlflow_version: 3.17.2\n";

    #[test]
    fn an_mlflow_onnx_directory_needs_no_manifest() {
        let package = read(&[("MLmodel", ML.as_bytes()), ("model.onnx", LINEAR)]).unwrap();
        assert_eq!(package.component, ComponentSource::Stock("scoring".to_owned()));
        assert_eq!(package.graphs["model"].file, "model.onnx");
        assert!(package.settings["mlflow.signature.inputs"].contains("double"));
    }

    #[test]
    fn a_language_model_alone_is_a_package_and_the_stock_chat_answers() {
        let file = || PackageFile { digest: Digest([0; 32]), bytes: 1 };
        let files = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), file())).collect::<BTreeMap<_, _>>();
        assert_eq!(only_language_model(&files(&["README.md", "Model.GGUF"])), Some("Model.GGUF"));
        assert_eq!(only_language_model(&files(&["a.gguf", "b.gguf"])), None);
        let chat = ComponentSource::Stock("chat".to_owned());
        let package = assemble(Manifest::of_language_model("a.gguf".to_owned()), None, files(&["a.gguf"])).unwrap();
        assert_eq!((&package.component, package.graphs["model"].file.as_str()), (&chat, "a.gguf"));
        let manifest = |text: &str| assemble(Manifest::parse(text).unwrap(), None, files(&[]));
        assert_eq!(manifest("[graphs.writer]\nfile = 'a.gguf'\n").unwrap().component, chat);
        let two = manifest("[graphs.a]\nfile = 'a.gguf'\n[graphs.b]\nfile = 'b.onnx'\n");
        assert!(two.unwrap_err().0.contains("names no component"));
    }

    #[test]
    fn a_flavour_that_is_not_served_is_told_apart_from_a_broken_package() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), crate::seal::keyring::Keyring::for_tests(dir.path())).unwrap();
        let look = |name: &str, content: &str| {
            let file =
                PackageFile { digest: blobs.put_bytes(content.as_bytes()).unwrap(), bytes: content.len() as u64 };
            Package::unserved_flavour(&BTreeMap::from([(name.to_owned(), file)]), &blobs)
        };
        assert!(look(MLMODEL, "flavors:\n  sklearn: {}\n").unwrap().unwrap().contains("[sklearn]"));
        assert!(look(MLMODEL, ML).unwrap().is_none());
        assert!(look(MANIFEST, "component = 'c.wasm'").unwrap().is_none());
        assert!(look(MLMODEL, "flavors: [").unwrap_err().0.contains("YAML"));
    }

    #[test]
    fn another_flavour_is_refused_with_the_way_out() {
        let error = read(&[("MLmodel", b"flavors:\n  sklearn: {}\n")]).unwrap_err();
        assert!(error.0.contains("sklearn") && error.0.contains("mlflow.onnx"), "{error}");
    }

    #[test]
    fn unknown_keys_and_missing_files_are_named() {
        let error = read(&[(MANIFEST, b"component = 'c.wasm'\nasets = []\n")]).unwrap_err();
        assert!(error.0.contains("asets"), "{error}");
        let error = read(&[(MANIFEST, b"component = 'c.wasm'\n")]).unwrap_err();
        assert!(error.0.contains("component 'c.wasm' is not in the package"), "{error}");
        let error = read(&[(MANIFEST, b"component = 'stock:nothing'\n")]).unwrap_err();
        assert!(error.0.contains("stock:scoring"), "{error}");
    }

    #[test]
    fn a_manifest_of_more_graphs_than_a_package_may_have_is_refused() {
        let with = |graphs: usize| {
            let graphs = (0..graphs).map(|graph| format!("[graphs.g{graph}]\nfile = 'model.onnx'\n"));
            let manifest = format!("component = 'stock:scoring'\n{}", graphs.collect::<String>());
            read(&[("model.onnx", LINEAR), (MANIFEST, manifest.as_bytes())])
        };
        assert_eq!(with(32).unwrap().graphs.len(), 32);
        assert!(with(33).unwrap_err().0.contains("names 33 graphs; the limit is 32"));
    }

    #[test]
    fn the_weights_of_a_graph_are_the_files_that_its_model_names() {
        use crate::nn::test_models as onnx;
        let graph = onnx::graph(
            &[onnx::node("Add", &["x", "w"], &["y"], &[])],
            &[onnx::value("x", onnx::FLOAT, &["2"])],
            &[onnx::value("y", onnx::FLOAT, &["2"])],
            &[onnx::external_tensor("w", &[2], "w.bin")],
        );
        let model = onnx::model(&graph);
        let manifest: &[u8] = b"component = 'stock:scoring'\n[graphs.m]\nfile = 'a/m.onnx'\n";
        let package = read(&[(MANIFEST, manifest), ("a/m.onnx", &model), ("a/w.bin", b"12345678"), ("a/other", b"x")]);
        assert_eq!(package.unwrap().weights, BTreeMap::from([("m".to_owned(), vec!["w.bin".to_owned()])]));
        let error = read(&[(MANIFEST, manifest), ("a/m.onnx", &model), ("w.bin", b"12345678")]).unwrap_err();
        assert!(error.0.contains("which is not part of the package"), "{error}");
        let package = read(&[(MANIFEST, manifest), ("a/m.onnx", LINEAR), ("a/other", b"x")]).unwrap();
        assert!(package.weights.is_empty());
    }

    #[test]
    fn a_number_of_threads_that_cannot_be_is_refused() {
        let with = |threads: &str| {
            let manifest = format!("[graphs.model]\nfile = 'model.onnx'\nintra_op_threads = {threads}\n");
            read(&[("MLmodel", ML.as_bytes()), ("model.onnx", LINEAR), (MANIFEST, manifest.as_bytes())])
        };
        assert_eq!(with("2").unwrap().graphs["model"].intra_op_threads, Some(2));
        for bad in ["0", "65"] {
            let error = with(bad).unwrap_err();
            assert!(error.0.contains(&format!("intra_op_threads is {bad}; 1 to 64 are allowed")), "{error}");
        }
        assert!(with("-1").unwrap_err().0.contains("intra_op_threads"));
    }

    #[test]
    fn what_is_no_model_or_too_large_is_refused_before_anything_is_deployed() {
        let error = read(&[("MLmodel", ML.as_bytes()), ("model.onnx", b"not a model")]).unwrap_err();
        assert!(error.0.contains("graph 'model' ('model.onnx')"), "{error}");
        let mut package = read(&[("MLmodel", ML.as_bytes()), ("model.onnx", LINEAR)]).unwrap();
        package.component = ComponentSource::File("model.onnx".to_owned());
        package.files.get_mut("model.onnx").unwrap().bytes = COMPONENT_BYTES_MAX + 1;
        assert!(package.check().unwrap_err().0.contains("the limit is 67108864"));
    }

    #[test]
    fn paths_stay_inside() {
        for bad in
            ["../x", "/etc/passwd", "a/../../b", "", ".hidden", "a//", "a/./b/..", "a\\b", "a//b", "a/./b", "./a"]
        {
            assert!(check_path(bad).is_err(), "{bad}");
        }
        check_path("data/model.onnx").unwrap();
    }

    #[test]
    fn a_file_is_not_also_a_folder() {
        let files: &[(&str, &[u8])] =
            &[("MLmodel", ML.as_bytes()), ("model.onnx", LINEAR), ("model.onnx/w/a.bin", b"x")];
        let error = read(files).unwrap_err();
        assert!(error.0.contains("'model.onnx' is a file of the package, and the folder of 'model.onnx/w/a.bin'"));
        read(&[("MLmodel", ML.as_bytes()), ("model.onnx", LINEAR), ("model.onnx.d/a.bin", b"x")]).unwrap();
    }
}
