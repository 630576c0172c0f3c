//! Experiments, runs and logged models as they are stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{DEFAULT_EXPERIMENT, Tracked, new_id};
use crate::access::Principal;
use crate::catalog::WorkspaceId;
use crate::clock::now_ms;
use crate::deploy::package::PackageFile;
use crate::error::ApiError;
use crate::registry::names::Tags;

/// Most parameters, tags or metrics of a run.
const ENTRIES_MAX: usize = 200;

/// Bytes of all parameters or tags of a run.
const ENTRIES_BYTES_MAX: usize = 16 << 10;

/// Bytes of a key.
const KEY_BYTES_MAX: usize = 250;

/// A name for runs that belong together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Experiment {
    /// Whose it is.
    pub workspace: WorkspaceId,
    /// A number, as text.
    pub id: String,
    /// Unique in the workspace.
    pub name: String,
    /// Number of the identity that made it.
    pub owner: u64,
    /// In ms since 1970.
    pub creation_timestamp: u64,
    /// Labels.
    #[serde(default)]
    pub tags: Tags,
}

/// One run of a program that made models.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// Whose it is.
    pub workspace: WorkspaceId,
    /// 32 hex digits.
    pub id: String,
    /// For people.
    pub name: String,
    /// Id of the experiment.
    pub experiment: String,
    /// Number of the identity that made it.
    pub owner: u64,
    /// Its name.
    pub creator: String,
    /// As the client says it: `RUNNING`, `FINISHED`, ...
    pub status: String,
    /// In ms since 1970.
    pub start_time: u64,
    /// In ms since 1970.
    pub end_time: Option<u64>,
    /// What the model was trained with.
    #[serde(default)]
    pub params: Tags,
    /// Labels.
    #[serde(default)]
    pub tags: Tags,
    /// The last value of each.
    #[serde(default)]
    pub metrics: BTreeMap<String, Metric>,
    /// Logged models that it made, with the step.
    #[serde(default)]
    pub outputs: BTreeMap<String, i64>,
    /// Files by path.
    #[serde(default)]
    pub files: BTreeMap<String, PackageFile>,
}

/// A measured value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// As JSON has it: a number, or the name of one that is not finite.
    pub value: serde_json::Value,
    /// In ms since 1970.
    pub timestamp: i64,
    /// Of the training.
    pub step: i64,
}

/// A model that a run logged.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoggedModel {
    /// Whose it is.
    pub workspace: WorkspaceId,
    /// `m-` and 32 hex digits.
    pub id: String,
    /// For people.
    pub name: String,
    /// Id of the experiment.
    pub experiment: String,
    /// Id of the run, if it had one.
    pub run: Option<String>,
    /// Number of the identity that made it.
    pub owner: u64,
    /// As the client says it: `LOGGED_MODEL_PENDING`, `LOGGED_MODEL_READY`, ...
    pub status: String,
    /// As the client says it.
    pub model_type: Option<String>,
    /// In ms since 1970.
    pub creation_timestamp: u64,
    /// In ms since 1970.
    pub last_updated_timestamp: u64,
    /// What it was trained with.
    #[serde(default)]
    pub params: Tags,
    /// Labels.
    #[serde(default)]
    pub tags: Tags,
    /// Files by path.
    #[serde(default)]
    pub files: BTreeMap<String, PackageFile>,
}

impl Experiment {
    /// A new one without a name.
    pub fn of(creator: &Principal) -> Experiment {
        Experiment {
            workspace: creator.workspace,
            id: String::new(),
            name: String::new(),
            owner: creator.id,
            creation_timestamp: now_ms(),
            tags: Tags::new(),
        }
    }

    /// The one that every workspace has.
    pub(super) fn default_of(workspace: WorkspaceId) -> Experiment {
        Experiment {
            workspace,
            id: DEFAULT_EXPERIMENT.to_owned(),
            name: "Default".to_owned(),
            owner: 0,
            creation_timestamp: 0,
            tags: Tags::new(),
        }
    }
}

impl Run {
    /// A run that begins now.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new(creator: &Principal, experiment: &str, name: Option<String>) -> Result<Run, ApiError> {
        let id = new_id()?;
        Ok(Run {
            workspace: creator.workspace,
            name: name.unwrap_or_else(|| format!("run-{}", &id[24..])),
            id,
            experiment: experiment.to_owned(),
            owner: creator.id,
            creator: creator.name.clone(),
            status: "RUNNING".to_owned(),
            start_time: now_ms(),
            end_time: None,
            params: Tags::new(),
            tags: Tags::new(),
            metrics: BTreeMap::new(),
            outputs: BTreeMap::new(),
            files: BTreeMap::new(),
        })
    }

    /// Sets the value of a metric.
    ///
    /// # Errors
    /// When there are too many.
    pub fn log_metric(&mut self, key: &str, metric: Metric) -> Result<(), ApiError> {
        check_key(key)?;
        self.metrics.insert(key.to_owned(), metric);
        if self.metrics.len() > ENTRIES_MAX {
            return Err(ApiError::invalid(format!("a run may have at most {ENTRIES_MAX} metrics")));
        }
        Ok(())
    }
}

/// Sets a parameter or tag of a run or logged model.
///
/// # Errors
/// When there are too many, or they are too long.
pub fn put_entry(entries: &mut Tags, key: &str, value: &str) -> Result<(), ApiError> {
    check_key(key)?;
    entries.insert(key.to_owned(), value.to_owned());
    let bytes: usize = entries.iter().map(|(key, value)| key.len() + value.len()).sum();
    if entries.len() > ENTRIES_MAX || bytes > ENTRIES_BYTES_MAX {
        return Err(ApiError::invalid(format!(
            "'{key}' does not fit: there may be {ENTRIES_MAX} with {ENTRIES_BYTES_MAX} bytes together"
        )));
    }
    Ok(())
}

/// Checks a key, or an id that somebody else gave.
///
/// # Errors
/// When it is empty or too long.
pub fn check_key(key: &str) -> Result<(), ApiError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(ApiError::invalid(format!("'{key}' is not a key: use 1 to {KEY_BYTES_MAX} bytes")));
    }
    Ok(())
}

impl Tracked for Run {
    const KIND: &'static str = "run";

    fn place(&self) -> (WorkspaceId, &str, u64) {
        (self.workspace, &self.id, self.owner)
    }

    fn files(&mut self) -> &mut BTreeMap<String, PackageFile> {
        &mut self.files
    }
}

impl Tracked for LoggedModel {
    const KIND: &'static str = "logged-model";

    fn place(&self) -> (WorkspaceId, &str, u64) {
        (self.workspace, &self.id, self.owner)
    }

    fn files(&mut self) -> &mut BTreeMap<String, PackageFile> {
        &mut self.files
    }
}
