//! `tessera inspect`: what a package or a component is, as a server would see it: what the component asks for against what
//! is granted, what the graphs take and give, sizes and limits.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::files::PackageFiles;
use super::{json, print_bytes, table};
use crate::deploy::capability::{self, COMPONENT_BYTES_MAX, Interfaces};
use crate::deploy::manifest::{
    BackendName, ComponentSource, Golden, Grants, GraphSpec, InitTime, LimitOverrides, RequestBodyMode, TargetName,
};
use crate::deploy::package::Package;
use crate::deploy::stock;
use crate::nn::{self, GraphInfo, TensorInfo};
use crate::sandbox::World;

/// What WebAssembly begins with, in modules and components.
const WASM: &[u8] = b"\0asm";

/// What to look at.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Project, folder of a package, archive of one, or component
    #[arg(value_name = "PACKAGE|COMPONENT", default_value = ".")]
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a component is.
#[derive(Debug, Serialize)]
struct ComponentReport {
    /// Null where it is neither: why is in `problem`.
    world: Option<&'static str>,
    bytes: u64,
    imports: Vec<Import>,
    exports: Vec<String>,
    /// Whether it may call other hosts, where its package is granted some.
    calls_hosts: bool,
    /// Whether it says what it takes and answers, for the endpoint's OpenAPI document.
    describes: bool,
    /// Why no server would deploy it; null if it would.
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Import {
    name: String,
    granted: bool,
}

/// What a package is.
#[derive(Debug, Serialize)]
struct PackageReport {
    component: ComponentReport,
    component_source: ComponentSource,
    init: InitTime,
    request_body: RequestBodyMode,
    graphs: Vec<GraphReport>,
    assets: Vec<FileReport>,
    settings: BTreeMap<String, String>,
    limits: LimitOverrides,
    grants: Grants,
    golden: Option<Golden>,
    files: Vec<FileReport>,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct GraphReport {
    name: String,
    file: String,
    bytes: u64,
    backend: BackendName,
    target: TargetName,
    weights: Vec<String>,
    inputs: Vec<TensorReport>,
    outputs: Vec<TensorReport>,
}

#[derive(Debug, Serialize)]
struct TensorReport {
    name: String,
    /// Like `FP32 [batch, 4]`.
    form: String,
}

#[derive(Debug, Serialize)]
struct FileReport {
    name: String,
    bytes: u64,
    sha256: String,
}

pub(super) fn run(args: &InspectArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let text = match read_component(&args.path)? {
        Some(component) => render(args.json, &ComponentReport::new(&component), |report| {
            table::facts(&args.path.display().to_string(), &report.rows())
        }),
        None => {
            let files = PackageFiles::open(&args.path)?;
            let package = files.check().with_context(|| format!("{} cannot be served", args.path.display()))?;
            render(args.json, &PackageReport::new(&files, &package)?, |report| {
                table::facts(&args.path.display().to_string(), &report.rows())
            })
        }
    };
    print_bytes(out, text.as_bytes())
}

fn render<T: Serialize>(json: bool, report: &T, human: impl FnOnce(&T) -> String) -> String {
    if json { json::pretty(&serde_json::json!(report).to_string()) + "\n" } else { human(report) }
}

/// The content of a file that is WebAssembly; none of a folder or another file.
fn read_component(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let file = File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
    if !file.metadata().is_ok_and(|found| found.is_file()) {
        return Ok(None);
    }
    let mut content = Vec::new();
    let mut read = |bytes: u64| (&file).take(bytes).read_to_end(&mut content).map(|_| content.starts_with(WASM));
    let failed = || format!("failed to read {}", path.display());
    if !read(WASM.len() as u64).with_context(failed)? {
        return Ok(None);
    }
    // One byte more than is allowed: that it is too large shows.
    read(COMPONENT_BYTES_MAX).with_context(failed)?;
    Ok(Some(content))
}

impl ComponentReport {
    fn new(component: &[u8]) -> ComponentReport {
        let (interfaces, problem) = match capability::look(component) {
            Ok(interfaces) => {
                let problem = interfaces.check().err();
                (interfaces, problem)
            }
            Err(problem) => (Interfaces::default(), Some(problem)),
        };
        let import = |name: String| Import { granted: capability::is_granted(&name), name };
        ComponentReport {
            world: interfaces.world().map(World::name),
            calls_hosts: interfaces.calls_hosts(),
            describes: interfaces.describes(),
            bytes: component.len() as u64,
            imports: interfaces.imports.into_iter().map(import).collect(),
            exports: interfaces.exports,
            problem,
        }
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let import = |import: &Import| format!("{}{}", import.name, if import.granted { "" } else { "  NOT GRANTED" });
        let imports: Vec<String> = self.imports.iter().map(import).collect();
        let none = |lines: &[String]| if lines.is_empty() { "none".to_owned() } else { lines.join("\n") };
        vec![
            ("world", self.world.unwrap_or("none that is known").to_owned()),
            ("size", table::size(self.bytes)),
            ("imports", none(&imports)),
            ("exports", none(&self.exports)),
            (
                "schema",
                match self.describes {
                    true => "declared: what it takes and answers is in the endpoint's OpenAPI document".to_owned(),
                    false => "not declared".to_owned(),
                },
            ),
            ("deployable", self.problem.as_ref().map_or_else(|| "yes".to_owned(), |problem| format!("no: {problem}"))),
        ]
    }
}

impl PackageReport {
    fn new(files: &PackageFiles, package: &Package) -> anyhow::Result<PackageReport> {
        let component = match &package.component {
            ComponentSource::Stock(name) => stock::component(name).unwrap_or_default().to_vec(),
            // `check` has looked at its size.
            ComponentSource::File(name) => files.get(name).context("the component is not in the package")?.read()?,
        };
        let file = |name: &String| {
            package.files.get(name).map(|file| FileReport {
                name: name.clone(),
                bytes: file.bytes,
                sha256: file.digest.to_string(),
            })
        };
        Ok(PackageReport {
            component: ComponentReport::new(&component),
            component_source: package.component.clone(),
            init: package.init,
            request_body: package.request_body,
            graphs: graphs(files, package)?,
            assets: package.assets.iter().filter_map(file).collect(),
            settings: package.settings.clone(),
            limits: package.limits.clone(),
            grants: package.grants.clone(),
            golden: package.golden.clone(),
            files: package.files.keys().filter_map(file).collect(),
            bytes: files.bytes,
        })
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let source = match &self.component_source {
            ComponentSource::Stock(name) => format!("stock:{name}"),
            ComponentSource::File(name) => name.clone(),
        };
        let mut rows = vec![("component", source)];
        rows.extend(self.component.rows());
        rows.push(("init", word(&self.init)));
        rows.push(("request body", word(&self.request_body)));
        for graph in &self.graphs {
            let weights: Vec<String> = graph.weights.iter().map(|name| format!(", {name}")).collect();
            let tensors = |what: &str, tensors: &[TensorReport]| -> String {
                tensors.iter().map(|tensor| format!("\n{what} {}: {}", tensor.name, tensor.form)).collect()
            };
            let head = format!("{}  {}{}  ({})", graph.name, graph.file, weights.concat(), table::size(graph.bytes));
            let place = format!("\nbackend {}, target {}", word(&graph.backend), word(&graph.target));
            rows.push(("graph", head + &place + &tensors("input", &graph.inputs) + &tensors("output", &graph.outputs)));
        }
        let list = |files: &[FileReport]| {
            files
                .iter()
                .map(|file| format!("{}  ({})", file.name, table::size(file.bytes)))
                .collect::<Vec<_>>()
                .join("\n")
        };
        if !self.assets.is_empty() {
            rows.push(("assets", list(&self.assets)));
        }
        let settings: Vec<String> = self.settings.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        if !settings.is_empty() {
            rows.push(("settings", settings.join("\n")));
        }
        rows.push(("limits", limits(&self.limits)));
        if self.component.calls_hosts || self.grants != Grants::default() {
            let hosts = &self.grants.http;
            let allowed =
                if hosts.is_empty() { "; requests to other hosts are denied" } else { ", where a server allows it" };
            rows.push(("calls", format!("{hosts}{allowed}")));
        }
        if let Some(golden) = &self.golden {
            let answer = golden.response.as_ref().map_or("any answer", String::as_str);
            rows.push(("golden", format!("{} gives {answer}", golden.request)));
        }
        rows.push(("files", format!("{} files, {}", self.files.len(), table::size(self.bytes))));
        rows
    }
}

/// The manifest's own word for a value.
fn word<T: Serialize>(value: &T) -> String {
    serde_json::json!(value).as_str().unwrap_or_default().to_owned()
}

fn limits(limits: &LimitOverrides) -> String {
    let given = [
        limits.memory_bytes.map(|bytes| format!("memory {}", table::size(bytes))),
        limits.cpu_ms.map(|ms| format!("processor {ms} ms")),
        limits.wall_ms.map(|ms| format!("clock {ms} ms")),
    ];
    let given: Vec<String> = given.into_iter().flatten().collect();
    if given.is_empty() { "the server's".to_owned() } else { given.join(", ") + "; else the server's" }
}

fn graphs(files: &PackageFiles, package: &Package) -> anyhow::Result<Vec<GraphReport>> {
    let report = |(name, graph): (&String, &GraphSpec)| {
        let file =
            files.get(&graph.file).with_context(|| format!("the file of graph '{name}' is not in the package"))?;
        let weights = package.weights.get(name).cloned().unwrap_or_default();
        let info = nn::backends::inspect_reader(Box::new(file.open()?), file.bytes, &weights)
            .with_context(|| format!("graph '{name}' ('{}')", graph.file))?;
        let GraphInfo { inputs, outputs, .. } = info;
        let tensor = |tensor: TensorInfo| TensorReport { form: tensor.to_string(), name: tensor.name };
        Ok(GraphReport {
            name: name.clone(),
            file: graph.file.clone(),
            bytes: file.bytes,
            backend: graph.backend,
            target: graph.target,
            weights,
            inputs: inputs.into_iter().map(tensor).collect(),
            outputs: outputs.into_iter().map(tensor).collect(),
        })
    };
    package.graphs.iter().map(report).collect()
}
