//! Python and JavaScript in `tessera dev`. To build and compile an interpreter or an engine takes half a minute, so that is
//! done once: its component runs the code that goes along as an asset, in every request. The package of both is for the
//! server of `tessera dev` alone. Its parts lie where no package can have files, in a hidden folder.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Context as _;

use crate::cli::build::Swappable;
use crate::cli::files::PackageFiles;
use crate::cli::note;
use crate::cli::project::Project;
use crate::deploy::manifest::MANIFEST;

/// The asset with the code, as the guest libraries know it.
const CODE: &str = "tessera-dev-code";

/// How the reason begins for which code cannot be swapped in, as `tessera_guest/swap.py` says it: the code imports what was
/// not there when the component was built, or reads a file meanwhile.
const NEEDS_BUILD: &str = "this change needs a whole build: ";

/// Processor time that `init` has at a deploy, here added to that of each request, up to the most that there may be; in ms.
const INIT_CPU_MS: i64 = 10_000;
const CPU_MS_MAX: i64 = 30_000;
const CPU_MS_USUAL: i64 = 1_000;

/// Why a deploy failed, in one line, if to build the component anew may help. Only when it is needed, and not after every
/// change: it takes all the processor for half a minute, and answers are the same without.
pub(super) fn needs_build(error: &anyhow::Error) -> Option<String> {
    let text = format!("{error:#}");
    let reason = text.split_once(NEEDS_BUILD)?.1;
    Some(reason.lines().last().unwrap_or_default().to_owned())
}

/// Makes the component unless it is there.
pub(super) fn build(project: &Project, swappable: &Swappable, anew: bool) -> anyhow::Result<()> {
    let folder = project.scratch("build/dev")?;
    let (component, key) = (folder.join("component.wasm"), folder.join("key"));
    if !anew && component.exists() && fs::read_to_string(&key).is_ok_and(|key| key == swappable.key) {
        return Ok(());
    }
    note("building the component, half a minute or more; changes after that are swapped in");
    let built = swappable.build(project)?;
    fs::rename(&built, &component)
        .and_then(|()| fs::write(&key, &swappable.key))
        .with_context(|| format!("failed to write {}", component.display()))
}

/// The package of the project as it is now, with that component.
pub(super) fn package(project: &Project, swappable: &Swappable) -> anyhow::Result<PackageFiles> {
    let folder = project.scratch("build/dev")?;
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display())).map(|()| path)
    };
    let manifest = manifest(&fs::read_to_string(project.root.join(MANIFEST))?)?;
    let component = project.component.strip_prefix(&project.root).unwrap_or(&project.component);
    PackageFiles::of_project(
        project,
        &BTreeMap::from([
            (MANIFEST.to_owned(), write("manifest", &manifest)?),
            (CODE.to_owned(), write("code", &swappable.code)?),
            (component.to_string_lossy().into_owned(), folder.join("component.wasm")),
        ]),
    )
}

/// The project's own manifest, with the modules among the assets. Nothing is frozen, for then it would be compiled.
fn manifest(text: &str) -> anyhow::Result<String> {
    let mut manifest: toml::Table = text.parse()?;
    manifest.insert("init".to_owned(), "request".into());
    let assets = manifest.entry("assets").or_insert_with(|| toml::Value::Array(Vec::new()));
    assets.as_array_mut().context("assets is no list")?.push(CODE.into());
    let limits = manifest.entry("limits").or_insert_with(|| toml::Value::Table(toml::Table::new()));
    let limits = limits.as_table_mut().context("limits is no table")?;
    let cpu_ms = limits.get("cpu_ms").and_then(toml::Value::as_integer).unwrap_or(CPU_MS_USUAL);
    limits.insert("cpu_ms".to_owned(), cpu_ms.saturating_add(INIT_CPU_MS).min(CPU_MS_MAX.max(cpu_ms)).into());
    Ok(toml::to_string(&manifest)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::embedded::{JS_SDK, PYTHON_SDK};

    #[test]
    fn the_manifest_is_the_projects_own_but_for_what_swapping_needs() {
        let text = "component = 'c.wasm'\nassets = ['a.txt']\n[limits]\ncpu_ms = 2000\nmemory_bytes = 99\n";
        let made: toml::Table = manifest(text).unwrap().parse().unwrap();
        let expected = "component = 'c.wasm'\ninit = 'request'\nassets = ['a.txt', 'tessera-dev-code']\n\
                        [limits]\ncpu_ms = 12000\nmemory_bytes = 99\n";
        assert_eq!(made, expected.parse().unwrap());
        let least: toml::Table = manifest("component = 'c.wasm'").unwrap().parse().unwrap();
        assert_eq!(least["limits"]["cpu_ms"].as_integer(), Some(11_000));
        let most: toml::Table = manifest("[limits]\ncpu_ms = 29000").unwrap().parse().unwrap();
        assert_eq!(most["limits"]["cpu_ms"].as_integer(), Some(30_000));
    }

    #[test]
    fn the_guest_libraries_use_the_same_words() {
        let of = |files: &[(&str, &[u8])], name: &str| {
            let (_, content) = files.iter().find(|(path, _)| path.ends_with(name)).unwrap();
            String::from_utf8(content.to_vec()).unwrap()
        };
        let (python, js) = (of(PYTHON_SDK, "swap.py"), of(JS_SDK, "swap.js"));
        assert!(python.contains(&format!("{CODE:?}")) && python.contains(&format!("{NEEDS_BUILD:?}")));
        assert!(js.contains(&format!("'{CODE}'")));
        let failed = anyhow::anyhow!("py-2: {NEEDS_BUILD}Traceback\nImportError: no x").context("failed");
        assert_eq!(needs_build(&failed).as_deref(), Some("ImportError: no x"));
        assert_eq!(needs_build(&anyhow::anyhow!("SyntaxError")), None);
    }
}
