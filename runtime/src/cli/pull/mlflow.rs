//! Models of MLflow servers.

use std::fs;
use std::io::Write as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::cli::client::{self, Client};

/// Files of a model: as many as a version may have.
const FILES_MAX: usize = 300;

/// Folders of a model that are looked into: a server whose folders never end is noticed.
const FOLDERS_MAX: usize = 300;

/// A model on an MLflow server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelUri {
    pub(super) name: String,
    which: Which,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Which {
    Version(String),
    Stage(String),
    Alias(String),
}

pub(super) fn parse_uri(text: &str) -> Result<ModelUri, &'static str> {
    const FORM: &str = "a model is named like models:/NAME/VERSION, models:/NAME/STAGE or models:/NAME@ALIAS";
    let rest = text.strip_prefix("mlflow:").unwrap_or(text);
    let rest = rest.strip_prefix("models:/").ok_or(FORM)?.trim_start_matches('/');
    let (name, which) = match (rest.split_once('/'), rest.rsplit_once('@')) {
        (Some((name, version)), _) if version.chars().all(|c| c.is_ascii_digit()) => {
            (name, Which::Version(version.into()))
        }
        (Some((name, stage)), _) => (name, Which::Stage(stage.into())),
        (None, Some((name, alias))) => (name, Which::Alias(alias.into())),
        (None, None) => return Err(FORM),
    };
    let (Which::Version(part) | Which::Stage(part) | Which::Alias(part)) = &which;
    if name.is_empty() || part.is_empty() || part.contains('/') {
        return Err(FORM);
    }
    Ok(ModelUri { name: name.to_owned(), which })
}

#[derive(Deserialize)]
struct Found {
    model_version: FoundVersion,
}

#[derive(Deserialize)]
struct FoundList {
    #[serde(default)]
    model_versions: Vec<FoundVersion>,
}

#[derive(Deserialize)]
struct FoundVersion {
    version: String,
}

#[derive(Deserialize)]
struct Location {
    artifact_uri: String,
}

#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    files: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    path: String,
    #[serde(default)]
    is_dir: bool,
}

/// Fetches a model into an empty folder: which version it is, and how many files.
///
/// # Errors
/// When there is none, or its files are elsewhere.
pub(super) fn pull(mlflow: &Client, model: &ModelUri, into: &Path) -> anyhow::Result<(String, usize)> {
    let version = find(mlflow, model).with_context(|| format!("failed to find model {}", model.name))?;
    let root = artifact_root(mlflow, &model.name, &version)?;
    let files = fetch(mlflow, &root, into)
        .with_context(|| format!("failed to fetch model {} version {version}", model.name))?;
    Ok((version, files))
}

fn find(mlflow: &Client, model: &ModelUri) -> anyhow::Result<String> {
    let path = |rest: [&'static str; 2]| ["api", "2.0", "mlflow", rest[0], rest[1]];
    let name = model.name.as_str();
    match &model.which {
        Which::Version(version) => {
            let query = [("name", name), ("version", version.as_str())];
            let answer = mlflow.get(&path(["model-versions", "get"]), &query)?;
            Ok(client::parse::<Found>(&answer)?.model_version.version)
        }
        Which::Alias(alias) => {
            let query = [("name", name), ("alias", alias.as_str())];
            let answer = mlflow.get(&path(["registered-models", "alias"]), &query)?;
            Ok(client::parse::<Found>(&answer)?.model_version.version)
        }
        Which::Stage(stage) => {
            let mut query = vec![("name", name)];
            if stage != "latest" {
                query.push(("stages", stage));
            }
            let answer = mlflow.get(&path(["registered-models", "get-latest-versions"]), &query)?;
            let found = client::parse::<FoundList>(&answer)?.model_versions;
            let newest = found.into_iter().max_by_key(|found| found.version.parse::<u64>().unwrap_or(0));
            Ok(newest.with_context(|| format!("no version is in stage '{stage}'"))?.version)
        }
    }
}

/// The path of a version's files below the server's artifact proxy.
fn artifact_root(mlflow: &Client, name: &str, version: &str) -> anyhow::Result<String> {
    let query = [("name", name), ("version", version)];
    let answer = mlflow.get(&["api", "2.0", "mlflow", "model-versions", "get-download-uri"], &query)?;
    let mut uri = client::parse::<Location>(&answer)?.artifact_uri;
    // MLflow 3 registers a logged model by its id.
    if let Some(id) = uri.strip_prefix("models:/").filter(|id| id.starts_with("m-")) {
        #[derive(Deserialize)]
        struct Answer {
            model: Model,
        }
        #[derive(Deserialize)]
        struct Model {
            info: Location,
        }
        let answer = mlflow.get(&["api", "2.0", "mlflow", "logged-models", id], &[])?;
        uri = client::parse::<Answer>(&answer)?.model.info.artifact_uri;
    }
    match uri.strip_prefix("mlflow-artifacts:") {
        Some(path) if !path.starts_with("//") => Ok(path.trim_matches('/').to_owned()),
        _ => bail!(
            "the files of {name} version {version} are at {uri}, which that server does not pass on: fetch them with \
             `mlflow artifacts download` and register them with `tessera model push`"
        ),
    }
}

/// Fetches all files below `root` into `dir`.
fn fetch(mlflow: &Client, root: &str, dir: &Path) -> anyhow::Result<usize> {
    const ARTIFACTS: [&str; 4] = ["api", "2.0", "mlflow-artifacts", "artifacts"];
    let (mut files, mut folders) = (0, vec![String::new()]);
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        seen += 1;
        ensure!(seen <= FOLDERS_MAX, "it has more than {FOLDERS_MAX} folders");
        let path = if folder.is_empty() { root.to_owned() } else { format!("{root}/{folder}") };
        let listing: Listing = client::parse(&mlflow.get(&ARTIFACTS, &[("path", &path)])?)?;
        for Listed { path: name, is_dir } in listing.files {
            let inside = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if is_dir {
                folders.push(inside);
                continue;
            }
            files += 1;
            ensure!(files <= FILES_MAX, "it has more than {FILES_MAX} files");
            let target = dir.join(plain(&inside)?);
            fs::create_dir_all(target.parent().unwrap_or(dir)).context("failed to make a folder")?;
            let mut file = fs::File::create(&target).with_context(|| format!("failed to write {inside}"))?;
            let path = format!("{root}/{inside}");
            let segments: Vec<&str> = ARTIFACTS.into_iter().chain(path.split('/')).collect();
            mlflow
                .get_file(&segments, |piece| file.write_all(piece).context("failed to write"))
                .with_context(|| format!("failed to fetch {inside}"))?;
        }
    }
    ensure!(files > 0, "there are no files");
    Ok(files)
}

/// A path that stays below a folder: the names come from another server.
fn plain(path: &str) -> anyhow::Result<PathBuf> {
    let sound = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(sound && !path.is_empty(), "'{path}' is not a path below the model's folder");
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::tests::Script;

    #[test]
    fn models_are_named_as_mlflow_names_them() {
        let uri = |name: &str, which| Ok(ModelUri { name: name.to_owned(), which });
        assert_eq!(parse_uri("models:/iris/3"), uri("iris", Which::Version("3".to_owned())));
        assert_eq!(parse_uri("mlflow:models:/iris/Production"), uri("iris", Which::Stage("Production".to_owned())));
        assert_eq!(parse_uri("models:/iris@best"), uri("iris", Which::Alias("best".to_owned())));
        for bad in ["iris/3", "models:/iris", "models:/iris/", "models:/@best", "models:/a/b/c", "runs:/1/x"] {
            assert!(parse_uri(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_server_cannot_write_elsewhere() {
        let list = r#"{"files": [{"path": "../../outside", "is_dir": false, "file_size": 1}]}"#;
        let script = Script::start(&[(200, list)]);
        let dir = tempfile::tempdir().unwrap();
        let error = fetch(&client::for_tests(&script.address), "root", dir.path()).unwrap_err();
        assert_eq!(error.to_string(), "'../../outside' is not a path below the model's folder");
    }

    #[test]
    fn files_elsewhere_are_named_with_the_way_out() {
        let script = Script::start(&[(200, r#"{"artifact_uri": "s3://bucket/x"}"#)]);
        let error = artifact_root(&client::for_tests(&script.address), "iris", "1").unwrap_err().to_string();
        assert!(error.contains("s3://bucket/x") && error.contains("tessera model push"), "{error}");
    }
}
