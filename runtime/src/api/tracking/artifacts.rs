//! Files of runs, logged models and model versions, on the paths of MLflow's artifact proxy.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::registry::files::{Artifact, artifacts_in, content, send, upload_turn};
use super::super::{Answer, Call, done, json};
use crate::error::{ApiError, ErrorCode};
use crate::registry::source::{Folder, Root};
use crate::tracking::{LoggedModel, Run, Tracked};

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactsBelow")]
pub(super) struct Below {
    /// `EXPERIMENT/RUN/artifacts/FOLDER`, and the like for logged models.
    #[serde(default)]
    path: String,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactsOfRun")]
pub(super) struct OfRun {
    run_id: String,
    /// A folder.
    #[serde(default)]
    path: String,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactsOfLoggedModel")]
pub(super) struct OfLoggedModel {
    /// A folder.
    #[serde(default)]
    artifact_directory_path: String,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Artifacts")]
pub(super) struct Files {
    files: Vec<Artifact>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RootedArtifacts")]
pub(super) struct RootedFiles {
    root_uri: String,
    files: Vec<Artifact>,
}

/// What the path of a request names.
fn folder(path: &str) -> Result<Folder<'_>, ApiError> {
    Folder::of_path(path).ok_or_else(|| missing(path))
}

fn missing(path: &str) -> ApiError {
    ApiError::missing(format!("There are no files at '{path}'."))
}

/// Files are shown by names below the folder that is asked for.
pub(super) async fn list(call: &Call) -> Result<Answer, ApiError> {
    let Below { path } = call.query()?;
    let folder = folder(&path)?;
    let files = call.app.control.registry.files(&*call.principal()?, &folder.root).await?;
    let mut found = artifacts_in(&files, folder.path);
    for file in &mut found {
        file.path = file.path.rsplit('/').next().unwrap_or_default().to_owned();
    }
    json(&Files { files: found })
}

/// Files are shown by their whole paths in the run.
pub(super) async fn of_run(call: &Call) -> Result<Answer, ApiError> {
    let asked: OfRun = call.query()?;
    let run: Run = call.app.control.registry.tracking.get(&*call.principal()?, &asked.run_id).await?;
    let root_uri = format!("mlflow-artifacts:/{}/{}/artifacts", run.experiment, run.id);
    json(&RootedFiles { root_uri, files: artifacts_in(&run.files, asked.path.trim_matches('/')) })
}

/// The same of a logged model.
pub(super) async fn of_logged_model(call: &Call) -> Result<Answer, ApiError> {
    let tracking = &call.app.control.registry.tracking;
    let model: LoggedModel = tracking.get(&*call.principal()?, call.parameter("model_id")).await?;
    let OfLoggedModel { artifact_directory_path: folder } = call.query()?;
    let root_uri = format!("mlflow-artifacts:/{}/models/{}/artifacts", model.experiment, model.id);
    json(&RootedFiles { root_uri, files: artifacts_in(&model.files, folder.trim_matches('/')) })
}

pub(super) async fn download(call: &Call) -> Result<Answer, ApiError> {
    let path = call.parameter("path");
    let folder = folder(path)?;
    let files = call.app.control.registry.files(&*call.principal()?, &folder.root).await?;
    send(call, files.get(folder.path).ok_or_else(|| missing(path))?, true).await
}

pub(super) async fn upload(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal) = (Arc::clone(&call.app), call.principal()?);
    let path = call.parameter("path").to_owned();
    let Folder { root, path } = folder(&path)?;
    let tracking = &app.control.registry.tracking;
    // Before the body is taken, as with the files of versions.
    crate::deploy::package::check_path(path)?;
    match &root {
        Root::Run(id) => drop(tracking.get::<Run>(&principal, id).await?),
        Root::LoggedModel(id) => drop(tracking.get::<LoggedModel>(&principal, id).await?),
        Root::Version { .. } => return Err(immutable()),
    }
    let _turn = upload_turn(&app)?;
    let content = content(call)?;
    let file = app.control.registry.receive(principal.workspace, content).await?;
    match root {
        Root::Run(id) => tracking.add_file::<Run>(&principal, id, path, file).await?,
        Root::LoggedModel(id) => tracking.add_file::<LoggedModel>(&principal, id, path, file).await?,
        Root::Version { .. } => return Err(immutable()),
    }
    done()
}

pub(super) async fn delete(call: &Call) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let tracking = &call.app.control.registry.tracking;
    let Folder { root, path } = folder(call.parameter("path"))?;
    match root {
        Root::Run(id) => drop(tracking.change(&principal, id, |run: &mut Run| remove(run, path)).await?),
        Root::LoggedModel(id) => {
            drop(tracking.change(&principal, id, |model: &mut LoggedModel| remove(model, path)).await?)
        }
        Root::Version { .. } => return Err(immutable()),
    }
    done()
}

/// Takes a file, or all files of a folder, away.
fn remove(of: &mut impl Tracked, path: &str) -> Result<(), ApiError> {
    let inside = format!("{path}/");
    of.files().retain(|file, _| file != path && !file.starts_with(&inside) && !path.is_empty());
    Ok(())
}

fn immutable() -> ApiError {
    let message = "The files of a model version are changed through /api/2.0/fs/files, until it is ready.";
    ApiError::new(ErrorCode::ResourceConflict, message)
}
