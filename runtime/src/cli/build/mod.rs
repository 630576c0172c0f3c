//! `tessera build`: the sources of a project become the component of its package.
//!
//! There is one module for each language, with one function that makes a component in whatever way that language has.
//! What is the same for all is here: the component is checked as a deploy would, and put where the manifest wants it only
//! when it is good.

mod javascript;
pub(super) mod made_of;
mod python;
mod rust;
mod tools;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;

use self::made_of::Sources;
use super::doctor::Check;
use super::project::{Language, Project};
use super::{note, table};
use crate::deploy::capability;

/// What to build, and how.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Folder of the project, or one below it
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Optimise: slower to build, faster and smaller to run
    #[arg(long)]
    release: bool,
}

pub(super) fn run(args: &BuildArgs) -> anyhow::Result<()> {
    let project = Project::find(&args.dir)?;
    build(&project, args.release)?;
    let bytes = fs::metadata(&project.component).map_or(0, |found| found.len());
    note(&format!("{}  ({})", project.component.display(), table::size(bytes)));
    Ok(())
}

/// What there is on this machine to build components with, for `tessera doctor`.
pub(super) fn toolchains() -> Vec<Check> {
    vec![rust::check(), python::check(), javascript::check()]
}

/// Builds the component, and puts it where the manifest wants it. True if it is another one than before.
pub(super) fn build(project: &Project, release: bool) -> anyhow::Result<bool> {
    let sources = Sources::of(project)?;
    let made = match project.language {
        Language::Rust => rust::build(project, release)?,
        // Their engines are optimised builds in any case.
        Language::Python => python::build(project)?,
        Language::Js => javascript::build(project)?,
    };
    let component = fs::read(&made).with_context(|| format!("failed to read {}", made.display()))?;
    if let Err(reason) = capability::check(&component) {
        bail!("the component that was built cannot be deployed: {reason}");
    }
    let is_another = fs::read(&project.component).map_or(true, |before| before != component);
    if is_another {
        // As a whole, for `tessera dev` may read it at any time.
        let beside = project.scratch("build")?.join("component.new");
        fs::write(&beside, component)
            .and_then(|()| fs::rename(&beside, &project.component))
            .with_context(|| format!("failed to write {}", project.component.display()))?;
    }
    made_of::keep(project, sources, release || project.language != Language::Rust)?;
    Ok(is_another)
}

/// The code of a project whose engine or interpreter takes half a minute to build and to compile: `tessera dev` does that
/// once, for a component that runs code from an asset. None other does.
pub(super) struct Swappable {
    /// The asset's content.
    pub(super) code: String,
    /// Another one, another component.
    pub(super) key: String,
}

impl Swappable {
    /// As the project is now; none where changed code is soon built.
    ///
    /// # Errors
    /// When it cannot be read or bundled.
    pub(super) fn of(project: &Project) -> anyhow::Result<Option<Swappable>> {
        match project.language {
            Language::Rust => Ok(None),
            Language::Python => python::swappable(project).map(Some),
            Language::Js => javascript::swappable(project).map(Some),
        }
    }

    /// Makes the component.
    ///
    /// # Errors
    /// As [`build`].
    pub(super) fn build(&self, project: &Project) -> anyhow::Result<PathBuf> {
        match project.language {
            Language::Js => javascript::build_swappable(project),
            _ => python::build_swappable(project, &self.code),
        }
    }

    fn key(made_of: &impl Serialize) -> anyhow::Result<String> {
        Ok(blake3::hash(&serde_json::to_vec(made_of)?).to_string())
    }
}
