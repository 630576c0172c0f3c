//! A project: a folder with the sources of a component and with the package that it belongs to.
//!
//! Its `tessera.toml` is the package's manifest, and a table that servers do not read says how the component is made:
//!
//! ```toml
//! component = "component.wasm"
//!
//! [build]
//! language = "rust"
//! include = ["LICENSE"]      # optional: files of the package that the manifest names nowhere else
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde::Deserialize;

use crate::deploy::manifest::{ComponentSource, MANIFEST, Manifest};
use crate::deploy::package::check_path;

/// The folder in a project for what is made from it, and the home of the server of `tessera dev`.
const SCRATCH: &str = ".tessera";

/// The keys of the table `[build]` that every language knows.
const COMMON_OPTIONS: &[&str] = &["language", "include"];

/// What a component is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// Rust, with the SDK that this program carries
    Rust,
    /// Python, with the library that this program carries; needs uv
    Python,
    /// JavaScript or TypeScript, with the library that this program carries; needs Node.js
    Js,
}

impl Language {
    /// The name in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Language::Rust => "rust",
            Language::Python => "python",
            Language::Js => "js",
        }
    }

    /// The keys of the table `[build]` that only this language knows.
    fn options(self) -> &'static [&'static str] {
        match self {
            Language::Rust => &[],
            Language::Python => &["module"],
            Language::Js => &["entry"],
        }
    }
}

/// The table `[build]` of a manifest. What else is in it belongs to the language.
#[derive(Debug, Deserialize)]
struct BuildTable {
    language: Language,
    #[serde(default)]
    include: Vec<String>,
}

/// A project whose manifest has been read.
#[derive(Debug)]
pub struct Project {
    /// The folder of the manifest, as an absolute path.
    pub root: PathBuf,
    /// The name of the folder.
    pub name: String,
    /// What its component is written in.
    pub language: Language,
    /// The manifest's table `[build]`, for what only one language needs.
    pub options: toml::Table,
    /// Files of the package beside those that the manifest names.
    pub include: Vec<String>,
    /// Where the manifest expects the component.
    pub component: PathBuf,
    /// What the package is.
    pub manifest: Manifest,
}

impl Project {
    /// The project that a folder belongs to: its own, or that of the first folder above it with a manifest.
    ///
    /// # Errors
    /// When there is none, or its manifest does not say how the component is made.
    pub fn find(folder: &Path) -> anyhow::Result<Project> {
        let folder = fs::canonicalize(folder).with_context(|| format!("failed to open {}", folder.display()))?;
        let Some(root) = folder.ancestors().find(|folder| folder.join(MANIFEST).is_file()) else {
            bail!(
                "there is no {MANIFEST} in {} or above it: go to a project, or make one with `tessera new NAME`",
                folder.display()
            );
        };
        Project::open(root)?.with_context(|| {
            format!(
                "{} has no [build] table, so there is nothing to build: add one with language = \"rust\"",
                root.join(MANIFEST).display()
            )
        })
    }

    /// The project in a folder; none where its manifest has no `[build]` table, as in a package that is complete.
    ///
    /// # Errors
    /// When the manifest cannot be read or is wrong.
    pub fn open(root: &Path) -> anyhow::Result<Option<Project>> {
        let path = root.join(MANIFEST);
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let manifest = Manifest::parse(&text).with_context(|| format!("{} is wrong", path.display()))?;
        let Some(options) = manifest.build.clone() else { return Ok(None) };
        let BuildTable { language, include } =
            options.clone().try_into().with_context(|| format!("the [build] table of {} is wrong", path.display()))?;
        let component = match manifest.component() {
            Some(ComponentSource::File(file)) => file,
            _ => bail!("{} has a [build] table, so component must name the file that is built", path.display()),
        };
        check_path(&component)?;
        let name = root.file_name().map(|name| name.to_string_lossy().into_owned());
        let project = Project {
            root: root.to_owned(),
            name: name.unwrap_or_else(|| "model".to_owned()),
            language,
            options,
            include,
            component: root.join(component),
            manifest,
        };
        project.check_options().with_context(|| format!("{} is wrong", path.display()))?;
        Ok(Some(project))
    }

    fn check_options(&self) -> anyhow::Result<()> {
        let known = [COMMON_OPTIONS, self.language.options()].concat();
        match self.options.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => bail!("its [build] table has the key '{key}'; there are {}", known.join(", ")),
        }
    }

    /// A folder below the project's own for what is made from it, made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn scratch(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.scratch_root().join(name);
        crate::home::create_private_dir(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
        Ok(folder)
    }

    /// The folder that holds them all.
    pub fn scratch_root(&self) -> PathBuf {
        self.root.join(SCRATCH)
    }
}

/// Writes files below a folder, and those alone that are not there in the same form: a build that looks at times then
/// sees no change.
///
/// # Errors
/// When one cannot be written.
pub fn unpack<'f>(folder: &Path, files: impl IntoIterator<Item = (&'f str, &'f [u8])>) -> anyhow::Result<()> {
    for (name, content) in files {
        let path = folder.join(name);
        if fs::read(&path).is_ok_and(|found| found == content) {
            continue;
        }
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
            fs::write(&path, content)
        };
        write().with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}
