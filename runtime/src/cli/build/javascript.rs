//! JavaScript and TypeScript: esbuild makes one module of the project, componentize-js starts an engine, runs the module
//! and freezes what that leaves.
//!
//! ```toml
//! [build]
//! language = "js"
//! entry = "src/endpoint.js"  # optional: the module that exports `predict`; src/endpoint.ts works as well
//! ```
//!
//! Libraries are those that npm has installed in the project's node_modules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use super::{Swappable, tools};
use crate::cli::doctor::Check;
use crate::cli::embedded::JS_SDK;
use crate::cli::project::{Project, unpack};

/// The tools in their versions. The lock file has digests, and leaves to npm where things come from.
const TOOLS: [(&str, &str); 2] = [
    ("package.json", include_str!("../../../../sdk/js-guest/tools/package.json")),
    ("package-lock.json", include_str!("../../../../sdk/js-guest/tools/package-lock.json")),
];

/// The oldest Node.js that componentize-js runs on.
const NODE_MIN: u32 = 20;

const NEED_NODE: &str = "install Node.js 20 or newer, with npm";

/// Where a project's module lies if its manifest does not say.
const ENTRIES: [&str; 2] = ["src/endpoint.js", "src/endpoint.ts"];

/// What the engine is built without: it would import what is behind nothing. `console` writes to the endpoint's log.
const WITHOUT: [&str; 3] = ["stdio", "http", "fetch-event"];

/// Makes a component of the project's module.
///
/// # Errors
/// When the tools cannot be had, or the module cannot be bundled or run; they have said why on stderr.
pub(super) fn build(project: &Project) -> anyhow::Result<PathBuf> {
    let bundle = bundle(project, "entry", &["--format=esm"])?;
    componentize(project, &bundle)
}

/// The project as one script, and what decides [`build_swappable`], which is the same for all projects.
///
/// # Errors
/// As [`build`].
pub(super) fn swappable(project: &Project) -> anyhow::Result<Swappable> {
    // The script's value is the function that `swap.js` calls.
    let script = ["--format=iife", "--global-name=tesseraProject", "--footer:js=tesseraProject.exportsOf"];
    let bundle = bundle(project, "swapped", &script)?;
    let code = fs::read_to_string(&bundle).with_context(|| format!("failed to read {}", bundle.display()))?;
    // The name that stacks have for it: where a person finds the line.
    let name = bundle.strip_prefix(&project.root).unwrap_or(&bundle).display();
    Ok(Swappable { code: format!("{code}//# sourceURL={name}\n"), key: Swappable::key(&(TOOLS, JS_SDK))? })
}

/// Makes the component of `tessera dev`: an engine that runs what it is given at every start.
///
/// # Errors
/// As [`build`].
pub(super) fn build_swappable(project: &Project) -> anyhow::Result<PathBuf> {
    let bundle = bundle(project, "swap", &["--format=esm"])?;
    componentize(project, &bundle)
}

/// The folder with the tools.
fn installed() -> anyhow::Result<PathBuf> {
    let [(_, package), (_, lock)] = TOOLS;
    tools::installed("componentize-js", &format!("{package}{lock}"), |folder| {
        unpack(folder, TOOLS.map(|(name, text)| (name, text.as_bytes())))?;
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]).current_dir(folder);
        tools::run(&mut npm, NEED_NODE)
    })
}

/// Makes one file of a module of the guest library and all that it imports, the project's own among it.
fn bundle(project: &Project, module: &str, form: &[&str]) -> anyhow::Result<PathBuf> {
    let entry = entry(project)?;
    let (folder, root) = (installed()?, project.scratch_root());
    unpack(&root, JS_SDK.iter().copied()).context("failed to unpack the SDK")?;
    let bundle = project.scratch("build/js")?.join(format!("{module}.js"));

    let mut esbuild = Command::new(folder.join("node_modules/.bin/esbuild"));
    esbuild.args(["--bundle", "--platform=neutral", "--main-fields=module,main", "--target=es2023"]).args(form);
    esbuild.args(["--external:tessera:*", "--external:wasi:*", "--log-level=warning"]);
    esbuild.arg(format!("--alias:tessera-endpoint={}", entry.display()));
    esbuild.arg(format!("--alias:tessera-guest={}", root.join("sdk/js-guest/src/index.js").display()));
    esbuild.arg(format!("--outfile={}", bundle.display()));
    esbuild.arg(root.join(format!("sdk/js-guest/src/{module}.js")));
    tools::run(esbuild.current_dir(&project.root), NEED_NODE).context("the module was not bundled")?;
    Ok(bundle)
}

fn componentize(project: &Project, bundle: &Path) -> anyhow::Result<PathBuf> {
    let component = bundle.with_extension("wasm");
    let mut node = Command::new("node");
    node.arg(installed()?.join("node_modules/@bytecodealliance/componentize-js/src/cli.js")).arg(bundle);
    node.arg("--wit").arg(project.scratch_root().join("wit")).args(["--world-name", "endpoint", "--disable"]);
    node.args(WITHOUT).arg("--out").arg(&component).current_dir(bundle.parent().unwrap_or(bundle));
    tools::run(&mut node, NEED_NODE).context("the component was not built")?;
    Ok(component)
}

/// Whether there is what runs and installs componentize-js, for `tessera doctor`.
pub(super) fn check() -> Check {
    const NAME: &str = "components in JS";
    let version = |program| tools::output(Command::new(program).arg("--version"));
    let missing = |found: String| Check::missing(NAME, found, format!("to build them: {NEED_NODE}"));
    let (Some(node), npm) = (version("node"), version("npm")) else { return missing("node was not found".to_owned()) };
    let major = node.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    match npm {
        None => missing(format!("node {node} without npm")),
        Some(_) if major.is_none_or(|major| major < NODE_MIN) => missing(format!("node {node}, which is too old")),
        Some(npm) => Check::ok(NAME, format!("node {node}, npm {npm} for componentize-js")),
    }
}

fn entry(project: &Project) -> anyhow::Result<PathBuf> {
    let found = match project.options.get("entry") {
        Some(entry) => entry.as_str().map(|entry| project.root.join(entry)).filter(|path| path.is_file()),
        None => ENTRIES.iter().map(|entry| project.root.join(entry)).find(|path| path.is_file()),
    };
    let Some(path) = found else {
        let root = project.root.display();
        bail!("there is no module to build: make {root}/{}, or set entry in [build] to one", ENTRIES[0]);
    };
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tools_are_pinned_by_digest_and_name_no_host() {
        let lock: serde_json::Value = serde_json::from_str(TOOLS[1].1).unwrap();
        let packages = lock["packages"].as_object().unwrap();
        for (name, package) in packages.iter().filter(|(name, _)| !name.is_empty()) {
            assert!(package["integrity"].is_string(), "{name}");
            assert!(package.get("resolved").is_none(), "{name}");
        }
        let engine = &packages["node_modules/@bytecodealliance/componentize-js"]["version"];
        assert_eq!(engine, "0.23.0");
    }

    #[test]
    fn the_library_and_the_contract_are_on_board() {
        for needed in ["sdk/js-guest/src/entry.js", "sdk/js-guest/types/index.d.ts", "wit/endpoint.wit"] {
            assert!(JS_SDK.iter().any(|(name, _)| *name == needed), "{needed}");
        }
    }
}
