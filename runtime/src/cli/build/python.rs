//! Python: componentize-py starts an interpreter, imports the project's module and freezes what that leaves.
//!
//! ```toml
//! [build]
//! language = "python"
//! module = "endpoint"        # optional: the module in src/ with the class that is marked as the endpoint
//! ```
//!
//! A `requirements.txt` beside the manifest names libraries to bring along. They must be pure Python: there is no
//! WebAssembly in the wheels of others.

mod sources;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use self::sources::Sources;
use super::{Swappable, tools};
use crate::cli::doctor::Check;
use crate::cli::embedded::PYTHON_SDK;
use crate::cli::project::{Project, unpack};

const COMPONENTIZE_PY: &str = "componentize-py==0.25.1";

const NEED_UV: &str = "install uv (`pip install uv`, or as its documentation says), which installs componentize-py";

/// Name of the module that componentize-py is given; the project's own is imported by it.
const ENTRY: &str = "tessera_entry";

/// Makes a component of the project's module.
///
/// # Errors
/// When componentize-py cannot be had, or the module cannot be imported; Python has said why on stderr.
pub(super) fn build(project: &Project) -> anyhow::Result<PathBuf> {
    componentize(project, "entry", &entry_of(module(project)?))
}

/// The project's modules as they are now, and what else decides [`build_swappable`].
///
/// # Errors
/// When the module is not there, or files cannot be read.
pub(super) fn swappable(project: &Project) -> anyhow::Result<Swappable> {
    let module = module(project)?;
    let folder = sources(project);
    let Sources { modules, others } =
        Sources::read(&folder).with_context(|| format!("failed to read {}", folder.display()))?;
    let made_of = (COMPONENTIZE_PY, PYTHON_SDK, module, requirements(project)?, others);
    Ok(Swappable { code: serde_json::to_string(&modules)?, key: Swappable::key(&made_of)? })
}

/// Makes the component of `tessera dev`: the project with this code, which looks for other code at every start.
///
/// # Errors
/// As [`build`].
pub(super) fn build_swappable(project: &Project, code: &str) -> anyhow::Result<PathBuf> {
    componentize(project, "swappable", &swappable_entry_of(module(project)?, code)?)
}

fn sources(project: &Project) -> PathBuf {
    project.root.join("src")
}

/// The project's module, which is there.
fn module(project: &Project) -> anyhow::Result<&str> {
    let module = project.options.get("module").map_or(Some("endpoint"), toml::Value::as_str).unwrap_or_default();
    let sources = sources(project);
    if !is_name(module) || !(sources.join(format!("{module}.py")).exists() || sources.join(module).is_dir()) {
        bail!("there is no module '{module}' in {}: set module in [build] to one", sources.display());
    }
    Ok(module)
}

/// Makes a component of what an entry imports; `name` tells the two kinds of entry apart.
fn componentize(project: &Project, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let tool = tools::installed("componentize-py", COMPONENTIZE_PY, |folder| {
        tools::run(uv().args(["venv", "--python", ">=3.10"]).arg(folder.join("venv")), NEED_UV)?;
        let python = folder.join("venv/bin/python");
        tools::run(uv().args(["pip", "install", "--python"]).arg(python).arg(COMPONENTIZE_PY), NEED_UV)
    })?;
    unpack(&project.scratch_root(), PYTHON_SDK.iter().copied()).context("failed to unpack the SDK")?;
    let made = project.scratch("build/python")?;
    install_requirements(project, &made)?;
    let entry = made.join(name);
    unpack(&entry, [(format!("{ENTRY}.py").as_str(), text.as_bytes())])?;

    let component = made.join(format!("{name}.wasm"));
    let wit = project.scratch_root().join("wit");
    let mut command = Command::new(tool.join("venv/bin/componentize-py"));
    command.arg("--quiet").arg("--wit-path").arg(wit).args(["--world", "endpoint", "componentize", ENTRY]);
    for path in [&sources(project), &entry, &project.scratch_root().join("sdk/python-guest")] {
        command.arg("--python-path").arg(path);
    }
    // Where componentize-py looks for libraries: here, and not in whatever Python is on the PATH.
    command
        .env("VIRTUAL_ENV", &made)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("RUST_BACKTRACE", "0")
        .arg("--output")
        .arg(&component);
    tools::run(&mut command, "remove the folder of tools in the cache, and build again")
        .context("the component was not built")?;
    Ok(component)
}

/// Whether there is what installs componentize-py, for `tessera doctor`.
pub(super) fn check() -> Check {
    const NAME: &str = "components in Python";
    match tools::output(uv().arg("--version")) {
        // Without the commit and the day of the build.
        Some(found) => Check::ok(NAME, format!("{} for {COMPONENTIZE_PY}", found.split(" (").next().unwrap_or(&found))),
        None => Check::missing(NAME, "uv was not found", format!("to build them: {NEED_UV}")),
    }
}

/// What the interpreter imports: the project's module, then what answers the host.
fn entry_of(module: &str) -> String {
    format!(
        "import {module}\nfrom tessera_guest import component\n\ncomponent.prepare()\nWitWorld = component.WitWorld\n"
    )
}

/// The same, and what swaps the project's modules.
fn swappable_entry_of(module: &str, code: &str) -> anyhow::Result<String> {
    // A string of JSON is one of Python.
    let code = serde_json::to_string(code)?;
    Ok(format!(
        "from tessera_guest import swap\nimport {module}\nfrom tessera_guest import component\n\n\
         component.prepare()\nswap.prepare(\"{module}\", {code})\nWitWorld = swap.WitWorld\n"
    ))
}

fn is_name(module: &str) -> bool {
    let mut chars = module.chars();
    chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && module != ENTRY
}

/// Installs the project's libraries, unless that was done for these very requirements.
fn install_requirements(project: &Project, made: &Path) -> anyhow::Result<()> {
    let (site, stamp) = (made.join("lib/python3.14/site-packages"), made.join("requirements.txt"));
    let (path, wanted) = (requirements_file(project), requirements(project)?);
    if site.exists() && fs::read(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    let _ = fs::remove_dir_all(&site);
    fs::create_dir_all(&site).with_context(|| format!("failed to make {}", site.display()))?;
    if !wanted.is_empty() {
        let mut install = uv();
        install.args(["pip", "install", "--python-version", "3.14", "--only-binary", ":all:", "--target"]);
        tools::run(install.arg(&site).arg("--requirement").arg(&path), NEED_UV)?;
    }
    fs::write(&stamp, wanted).with_context(|| format!("failed to write {}", stamp.display()))
}

fn requirements_file(project: &Project) -> PathBuf {
    project.root.join("requirements.txt")
}

/// What is in it; nothing where there is none.
fn requirements(project: &Project) -> anyhow::Result<Vec<u8>> {
    let path = requirements_file(project);
    match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.with_context(|| format!("failed to read {}", path.display())),
    }
}

fn uv() -> Command {
    Command::new("uv")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_has_a_name_that_python_can_import() {
        assert!(is_name("endpoint") && is_name("_a1"));
        for bad in ["", "1a", "a-b", "a.b", "a;b", "tessera_entry"] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn the_library_and_the_contract_are_on_board() {
        for needed in ["sdk/python-guest/tessera_guest/component.py", "wit/endpoint.wit"] {
            assert!(PYTHON_SDK.iter().any(|(name, _)| *name == needed), "{needed}");
        }
    }
}
