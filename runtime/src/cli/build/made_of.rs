//! What a component was made of: noted by a build, and looked at before the component is given to others, so that none
//! leaves this machine that was built from other sources than those beside it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::cli::note;
use crate::cli::project::{Language, Project};

/// Where it is noted, in the folder of builds.
const FILE: &str = "made-of.json";

/// What stands for the manifest's table `[build]` among the sources.
const BUILD_TABLE: &str = "the [build] table of tessera.toml";

/// What cargo may write during a build.
const LOCK: &str = "Cargo.lock";

/// The sources of a component, as far as they are known: what a language builds from outside of the project is not. Digests
/// by the path in the project.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Sources(BTreeMap<String, String>);

#[derive(Debug, Serialize, Deserialize)]
struct MadeOf {
    /// Digest of the component.
    component: String,
    /// Whether it was optimised.
    release: bool,
    sources: Sources,
}

impl Sources {
    /// As they are now.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(super) fn of(project: &Project) -> anyhow::Result<Sources> {
        let names: &[&str] = match project.language {
            Language::Rust => &["Cargo.toml", LOCK, "build.rs", "src"],
            Language::Python => &["requirements.txt", "src"],
            Language::Js => &["package.json", "package-lock.json", "tsconfig.json", "src"],
        };
        let mut options = project.options.clone();
        // Of the package, and not of the component.
        options.remove("include");
        let entry = options.get("entry").and_then(toml::Value::as_str);
        let mut sources = Sources(BTreeMap::from([(BUILD_TABLE.to_owned(), digest(&toml::to_string(&options)?))]));
        for name in names.iter().copied().chain(entry) {
            sources
                .add(&project.root, name)
                .with_context(|| format!("failed to read {}", project.root.join(name).display()))?;
        }
        Ok(sources)
    }

    fn add(&mut self, root: &Path, name: &str) -> io::Result<()> {
        let path = root.join(name);
        match fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(found) if found.is_dir() => {
                for entry in fs::read_dir(&path)? {
                    let file_name = entry?.file_name().to_string_lossy().into_owned();
                    if !(file_name.starts_with('.') || file_name.ends_with('~') || file_name == "__pycache__") {
                        self.add(root, &format!("{name}/{file_name}"))?;
                    }
                }
            }
            Ok(_) => drop(self.0.insert(name.to_owned(), digest(&fs::read(&path)?))),
        }
        Ok(())
    }

    /// One that is not the same in both, by its name.
    fn difference<'s>(&'s self, other: &'s Sources) -> Option<&'s str> {
        let mut names = self.0.keys().chain(other.0.keys());
        names.find(|name| self.0.get(*name) != other.0.get(*name)).map(String::as_str)
    }
}

/// Notes that the component was made of these sources, which were read before the build: what has changed since is not in it.
///
/// # Errors
/// When it cannot be written.
pub(super) fn keep(project: &Project, mut sources: Sources, release: bool) -> anyhow::Result<()> {
    if project.language == Language::Rust {
        sources.add(&project.root, LOCK)?;
    }
    let component = component(project)?;
    let path = file(project);
    fs::write(&path, serde_json::to_vec(&MadeOf { component, release, sources })?)
        .with_context(|| format!("failed to write {}", path.display()))
}

/// Looks at the component of a project that is about to be given to others. One that was not built here is theirs to know.
///
/// # Errors
/// When it was built from other sources than those that are there now.
pub(in crate::cli) fn check(project: &Project) -> anyhow::Result<()> {
    let path = file(project);
    // What another version of this program noted in another way says nothing.
    let Some(made_of) = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<MadeOf>(&text).ok()) else {
        return Ok(());
    };
    let shown = project.component.display();
    if component(project)? != made_of.component {
        note(&format!("note: {shown} is not the component that `tessera build` made here last"));
        return Ok(());
    }
    if let Some(changed) = made_of.sources.difference(&Sources::of(project)?) {
        bail!("{shown} was built from other sources: {changed} has changed since; run `tessera build --release`");
    }
    if !made_of.release {
        note(&format!("note: {shown} is not optimised: `tessera build --release` makes it smaller and faster"));
    }
    Ok(())
}

fn file(project: &Project) -> PathBuf {
    project.scratch_root().join("build").join(FILE)
}

fn component(project: &Project) -> anyhow::Result<String> {
    let read = fs::read(&project.component);
    Ok(digest(&read.with_context(|| format!("failed to read {}", project.component.display()))?))
}

fn digest(content: &(impl AsRef<[u8]> + ?Sized)) -> String {
    blake3::hash(content.as_ref()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_that_was_built_from_other_sources_is_not_given_away() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let project = || Project::open(dir.path()).unwrap().unwrap();
        let refused = || format!("{:#}", check(&project()).unwrap_err());
        let manifest = "component = 'c.wasm'\n[build]\nlanguage = 'rust'\n";
        write("tessera.toml", manifest);
        write("src/lib.rs", "fn f() {}");
        write("c.wasm", "component");
        // Not built here.
        check(&project()).unwrap();

        project().scratch("build").unwrap();
        let before = Sources::of(&project()).unwrap();
        // As cargo does.
        write("Cargo.lock", "made by the build");
        keep(&project(), before, true).unwrap();
        check(&project()).unwrap();
        // What no component is made of may change.
        write("README.md", "x");
        write("tessera.toml", &format!("init = 'request'\n{manifest}include = ['README.md']"));
        check(&project()).unwrap();

        for (name, then) in [("src/lib.rs", "fn f() {}"), ("Cargo.lock", "made by the build")] {
            write(name, "changed");
            assert!(refused().contains(&format!("was built from other sources: {name} has changed")), "{}", refused());
            write(name, then);
            check(&project()).unwrap();
        }
        write("src/deep/new.rs", "");
        assert!(refused().contains("src/deep/new.rs has changed since; run `tessera build --release`"));
        fs::remove_file(dir.path().join("src/deep/new.rs")).unwrap();
        write("tessera.toml", &manifest.replace("rust", "js"));
        assert!(refused().contains("was built from other sources"));
        // Another component is somebody's own.
        write("c.wasm", "another");
        check(&project()).unwrap();
    }
}
