//! `tessera new`: a project to begin with.
//!
//! A template is made of up to four layers of files: those of all templates and those of one template for every language
//! (the model and its example), then those of a language and those of the template in this language. `NAME` stands for
//! the project's name wherever a text says `{{name}}`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum};

use super::embedded::TEMPLATES;
use super::note;
use super::project::{Language, unpack};
use crate::catalog::check_endpoint_name;

/// Longest name of a project: that of an endpoint.
const NAME_BYTES_MAX: usize = 63;

/// What to make.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// Folder to make; its last part is the project's name
    #[arg(value_name = "NAME")]
    path: PathBuf,
    /// What the component is written in
    #[arg(long, value_name = "LANGUAGE")]
    lang: Language,
    /// What to begin with
    #[arg(long, value_name = "TEMPLATE", default_value = "tabular")]
    template: Template,
}

/// What a project begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Template {
    /// Rows of numbers in, a label for each out
    Tabular,
    /// Texts in, a vector for each out, over OpenAI's API
    Embeddings,
    /// A PNG or JPEG file in, its likeliest classes out
    Image,
    /// OpenAI's chat API in front of code of your own
    Chat,
    /// Bodies of any form and length, in and out in chunks
    Http,
}

impl Template {
    fn name(self) -> &'static str {
        match self {
            Template::Tabular => "tabular",
            Template::Embeddings => "embeddings",
            Template::Image => "image",
            Template::Chat => "chat",
            Template::Http => "http",
        }
    }
}

pub(super) fn run(args: &NewArgs) -> anyhow::Result<()> {
    let name = args.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    check_name(name)?;
    let is_free = match fs::read_dir(&args.path) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => !args.path.exists(),
    };
    ensure!(is_free, "{} is there already: choose another name, or remove it", args.path.display());
    let files = files(args.lang, args.template, name)?;
    unpack(&args.path, files.iter().map(|(name, content)| (name.as_str(), content.as_slice())))?;
    let path = args.path.display();
    note(&format!("made {path} ({} files); next:\n  cd {path}\n  tessera dev", files.len()));
    Ok(())
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let sound = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
        && name.len() <= NAME_BYTES_MAX;
    ensure!(
        sound,
        "'{name}' is no name for a project: it begins with a small letter, and has small letters, digits, - and _, at \
         most {NAME_BYTES_MAX} of them"
    );
    // The endpoint of `tessera dev` has the project's name.
    Ok(check_endpoint_name(name)?)
}

/// The files of a project by their paths.
fn files(language: Language, template: Template, name: &str) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let (language, template) = (language.name(), template.name());
    let own = format!("{language}-{template}/");
    if !TEMPLATES.iter().any(|(path, _)| path.starts_with(&own)) {
        let prefix = format!("{language}-");
        let mut known: Vec<&str> =
            TEMPLATES.iter().filter_map(|(path, _)| path.strip_prefix(&prefix)?.split('/').next()).collect();
        known.dedup();
        bail!("there is no template {template} in {language}; there are {}", known.join(", "));
    }
    let mut files = BTreeMap::new();
    for layer in ["shared/".to_owned(), format!("shared-{template}/"), format!("{language}/"), own] {
        for (path, content) in
            TEMPLATES.iter().filter_map(|(path, content)| Some((path.strip_prefix(&layer)?, content)))
        {
            // Under its own name it would hold for the files of the templates.
            let path = if path == "gitignore" { ".gitignore" } else { path };
            let content = match std::str::from_utf8(content) {
                Ok(text) => text.replace("{{name}}", name).into_bytes(),
                Err(_) => content.to_vec(),
            };
            files.insert(path.to_owned(), content);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_makes_a_package_that_names_its_files() {
        for language in Language::value_variants() {
            let known = TEMPLATES.iter().filter_map(|(path, _)| path.split('/').next()?.split_once('-'));
            let known: std::collections::BTreeSet<&str> =
                known.filter(|(of, _)| *of == language.name()).map(|(_, template)| template).collect();
            for template in Template::value_variants().iter().filter(|template| known.contains(template.name())) {
                let files = files(*language, *template, "a-name").unwrap();
                let text = |name: &str| String::from_utf8(files[name].clone()).unwrap();
                let manifest = crate::deploy::manifest::Manifest::parse(&text("tessera.toml")).unwrap();
                for name in manifest.files() {
                    assert!(files.contains_key(&name), "{}-{}: {name}", language.name(), template.name());
                }
                assert!(text("README.md").contains("a-name") && files.contains_key(".gitignore"));
                assert!(!files.values().any(|content| String::from_utf8_lossy(content).contains("{{name}}")));
            }
            assert!(!known.is_empty());
        }
    }

    #[test]
    fn a_name_is_good_for_a_crate_and_an_endpoint() {
        check_name("iris-2").unwrap();
        for bad in ["", "Iris", "2iris", "a b", "..", "chat", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
