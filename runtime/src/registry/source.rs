//! Versions made of files that are on this server already: a logged model's, a run's, another version's. Files are named by
//! digest, so nothing is copied.

use std::collections::BTreeMap;

use super::{NewVersion, Registry, VersionRecord};
use crate::access::{Action, Level, Object, Principal, authorize};
use crate::deploy::package::{FILES_MAX, PackageFile};
use crate::error::ApiError;
use crate::tracking::{LoggedModel, Run};

/// A folder on this server, as an artifact URI or a path of the artifact API names it.
#[derive(Debug, PartialEq, Eq)]
pub struct Folder<'a> {
    /// What has the files.
    pub root: Root<'a>,
    /// Below it, without slashes at the ends.
    pub path: &'a str,
}

/// What has files.
#[derive(Debug, PartialEq, Eq)]
pub enum Root<'a> {
    /// A run, by id.
    Run(&'a str),
    /// A logged model, by id.
    LoggedModel(&'a str),
    /// A model version.
    Version {
        /// `catalog.schema.model`.
        model: String,
        /// Its number.
        version: u64,
    },
}

impl<'a> Folder<'a> {
    /// Reads a path as this server gives them out: `EXPERIMENT/RUN/artifacts/…`, `EXPERIMENT/models/ID/artifacts/…`,
    /// `Models/CATALOG/SCHEMA/MODEL/VERSION/…`.
    pub fn of_path(path: &'a str) -> Option<Folder<'a>> {
        let path = path.trim_matches('/');
        let mut parts = path.splitn(6, '/');
        let mut next = || parts.next();
        match [next()?, next()?, next()?, next().unwrap_or_default(), next().unwrap_or_default()] {
            ["Models", catalog, schema, model, version] => {
                let root =
                    Root::Version { model: format!("{catalog}.{schema}.{model}"), version: version.parse().ok()? };
                Some(Folder { root, path: next().unwrap_or_default() })
            }
            [_, "models", id, "artifacts", _] => Some(Folder { root: Root::LoggedModel(id), path: after(path, 4) }),
            [_, run, "artifacts", ..] => Some(Folder { root: Root::Run(run), path: after(path, 3) }),
            _ => None,
        }
    }

    /// Reads a source: `models:/m-…`, `models:/NAME/VERSION`, `runs:/RUN/…`, `mlflow-artifacts:/…`, `/Models/…`.
    fn of_source(source: &'a str) -> Option<Folder<'a>> {
        if let Some(model) = source.strip_prefix("models:/") {
            let model = model.trim_start_matches('/');
            return match model.split_once('/') {
                None if model.starts_with("m-") => Some(Folder { root: Root::LoggedModel(model), path: "" }),
                Some((name, version)) => {
                    let root = Root::Version { model: super::names::full_name(name), version: version.parse().ok()? };
                    Some(Folder { root, path: "" })
                }
                None => None,
            };
        }
        if let Some(rest) = source.strip_prefix("runs:/") {
            let (run, path) = rest.trim_start_matches('/').split_once('/')?;
            return Some(Folder { root: Root::Run(run), path: path.trim_matches('/') });
        }
        // With or without a host: what is given out here names none.
        let path = source.strip_prefix("mlflow-artifacts:").map(|rest| match rest.strip_prefix("//") {
            Some(rest) if !rest.starts_with('/') => rest.split_once('/').map_or("", |(_, path)| path),
            _ => rest,
        });
        Folder::of_path(path.or_else(|| source.starts_with("/Models/").then_some(source))?)
    }
}

/// What follows the first `parts` parts of a path.
fn after(path: &str, parts: usize) -> &str {
    path.splitn(parts + 1, '/').nth(parts).unwrap_or_default()
}

impl Registry {
    /// The files of what a folder lies in.
    ///
    /// # Errors
    /// When it does not exist, or the caller may not read it.
    pub async fn files(
        &self,
        principal: &Principal,
        root: &Root<'_>,
    ) -> Result<BTreeMap<String, PackageFile>, ApiError> {
        match root {
            Root::Run(id) => Ok(self.tracking.get::<Run>(principal, id).await?.files),
            Root::LoggedModel(id) => Ok(self.tracking.get::<LoggedModel>(principal, id).await?.files),
            Root::Version { model, version } => {
                let record = self.model(principal.workspace, model).await?;
                authorize(principal, Action::Use(Level::Query), Object::Model(&record))?;
                Ok(self.version(principal.workspace, model, *version).await?.files)
            }
        }
    }

    /// Makes a version of files that are on this server, and makes it ready. Without that it leaves no version.
    ///
    /// # Errors
    /// When the source is elsewhere or may not be read, and what is wrong with the package.
    pub async fn create_from_source(
        &self,
        creator: &Principal,
        name: &str,
        new: NewVersion,
    ) -> Result<VersionRecord, ApiError> {
        let files = self.source_files(creator, &new).await?;
        let workspace = creator.workspace;
        let number = self.create_version(workspace, name, new, &creator.name).await?.version;
        let fill = |version: &mut VersionRecord| {
            version.files = files;
            Ok(())
        };
        let made = match self.change_version(workspace, name, number, fill).await {
            Ok(_) => self.finalize(workspace, name, number).await,
            Err(error) => Err(error),
        };
        if made.is_err() {
            self.delete_version(workspace, name, number, None).await?;
        }
        made
    }

    async fn source_files(
        &self,
        creator: &Principal,
        new: &NewVersion,
    ) -> Result<BTreeMap<String, PackageFile>, ApiError> {
        let of_model = new.model_id.as_deref().map(|id| Folder { root: Root::LoggedModel(id), path: "" });
        let folder = Folder::of_source(&new.source).or(of_model).ok_or_else(|| elsewhere(&new.source))?;
        let files = self.files(creator, &folder.root).await?;
        let prefix = if folder.path.is_empty() { String::new() } else { format!("{}/", folder.path) };
        let inside = |(path, file): (String, PackageFile)| Some((path.strip_prefix(&prefix)?.to_owned(), file));
        let files: BTreeMap<String, PackageFile> = files.into_iter().filter_map(inside).collect();
        match files.len() {
            0 => Err(ApiError::missing(format!("There are no files at '{}'.", new.source))),
            1..=FILES_MAX => Ok(files),
            many => Err(ApiError::invalid(format!("'{}' has {many} files; the limit is {FILES_MAX}", new.source))),
        }
    }
}

fn elsewhere(source: &str) -> ApiError {
    ApiError::invalid(format!(
        "source '{source}' is not on this server, which fetches nothing from elsewhere: log the model with this server as \
         MLflow's tracking URI, register it with the registry URI 'databricks-uc', or use `tessera model push` or \
         `tessera model pull`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_on_this_server_are_recognised() {
        let version = |model: &str| Root::Version { model: model.to_owned(), version: 3 };
        for (source, root, path) in [
            ("models:/m-0af", Root::LoggedModel("m-0af"), ""),
            ("models:/main.default.iris/3", version("main.default.iris"), ""),
            ("models:/iris/3", version("workspace.default.iris"), ""),
            ("runs:/abc/model", Root::Run("abc"), "model"),
            ("mlflow-artifacts:/0/abc/artifacts", Root::Run("abc"), ""),
            ("mlflow-artifacts:/0/abc/artifacts/a/b/c/d/e", Root::Run("abc"), "a/b/c/d/e"),
            ("mlflow-artifacts://host:80/0/models/m-1/artifacts/", Root::LoggedModel("m-1"), ""),
            ("/Models/main/default/iris/3/data/x", version("main.default.iris"), "data/x"),
        ] {
            assert_eq!(Folder::of_source(source), Some(Folder { root, path }), "{source}");
        }
        for elsewhere in
            ["/home/me/model", "s3://bucket/model", "models:/", "models:/x/latest", "runs:/", "", "dbfs:/x"]
        {
            assert_eq!(Folder::of_source(elsewhere), None, "{elsewhere}");
        }
    }
}
