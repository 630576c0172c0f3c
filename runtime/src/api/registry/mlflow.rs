//! What MLflow's clients of Unity Catalog and of the older registry have in common. They differ in names (three parts, or
//! one that stands for `workspace.default.NAME`), in aliases on a version (objects, or names), and in stages.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::{Answer, Call, json};
use super::{Paging, TagInput, files, is_below, parse_version, tags_json, tags_of, version_number, visible_models};
use crate::error::ApiError;
use crate::registry::names::{full_name, put_tag, short_name};
use crate::registry::search::{Filter, MODEL_ORDERS, VERSION_ORDERS, sort};
use crate::registry::{ModelRecord, NewVersion, Stage, VersionRecord, VersionStatus};

pub(super) const UNITY: &str = "/api/2.0/mlflow/unity-catalog/";

/// Which of the two a request speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Unity,
    Oss,
}

impl Dialect {
    pub(super) fn of(call: &Call) -> Dialect {
        if is_below(call, UNITY) { Dialect::Unity } else { Dialect::Oss }
    }

    /// The registry's name for a model that a client names.
    pub(super) fn full(self, name: &str) -> String {
        match self {
            Dialect::Unity => name.to_owned(),
            Dialect::Oss => full_name(name),
        }
    }

    fn shown(self, name: &str) -> &str {
        match self {
            Dialect::Unity => name,
            Dialect::Oss => short_name(name),
        }
    }

    pub(super) fn model(self, record: &ModelRecord) -> Value {
        let aliases = record.aliases.iter().map(|(alias, version)| alias_json(alias, *version));
        json!({
            "name": self.shown(&record.name),
            "creation_timestamp": record.creation_timestamp,
            "last_updated_timestamp": record.last_updated_timestamp,
            "user_id": record.creator,
            "description": record.description.as_deref().unwrap_or_default(),
            "aliases": aliases.collect::<Value>(),
            "tags": tags_json(&record.tags),
        })
    }

    pub(super) fn version(self, model: &ModelRecord, record: &VersionRecord) -> Value {
        let (status, message) = match (&record.status, &record.unservable) {
            (VersionStatus::Pending, _) => ("PENDING_REGISTRATION", String::new()),
            (VersionStatus::Ready, None) => ("READY", String::new()),
            (VersionStatus::Ready, Some(reason)) => ("READY", format!("registered, but cannot be served: {reason}")),
            (VersionStatus::Failed(message), _) => ("FAILED_REGISTRATION", message.clone()),
        };
        let aliases = model.aliases_of(record.version);
        let mut value = json!({
            "name": self.shown(&record.name),
            "version": record.version.to_string(),
            "creation_timestamp": record.creation_timestamp,
            "last_updated_timestamp": record.last_updated_timestamp,
            "user_id": record.creator,
            "description": record.description.as_deref().unwrap_or_default(),
            "source": record.source,
            "run_id": record.run_id.as_deref().unwrap_or_default(),
            "status": status,
            "status_message": message,
            "aliases": match self {
                Dialect::Unity => aliases.map(|alias| alias_json(alias, record.version)).collect::<Value>(),
                Dialect::Oss => aliases.collect(),
            },
            "tags": tags_json(&record.tags),
        });
        if let Some(model_id) = &record.model_id {
            value["model_id"] = json!(model_id);
        }
        match self {
            Dialect::Unity => value["storage_location"] = json!(files::location(&record.name, record.version)),
            Dialect::Oss => value["current_stage"] = json!(record.stage.name()),
        }
        value
    }
}

fn alias_json(alias: &str, version: u64) -> Value {
    json!({ "alias": alias, "version": version.to_string() })
}

#[derive(Deserialize)]
pub(super) struct ModelInput {
    name: String,
    description: Option<String>,
    new_name: Option<String>,
    #[serde(default)]
    tags: Vec<TagInput>,
}

#[derive(Deserialize)]
pub(super) struct VersionInput {
    name: String,
    #[serde(default)]
    source: String,
    description: Option<String>,
    run_id: Option<String>,
    model_id: Option<String>,
    #[serde(default)]
    tags: Vec<TagInput>,
}

/// A version.
#[derive(Deserialize)]
pub(super) struct VersionRef {
    pub(super) name: String,
    version: Value,
}

impl VersionRef {
    pub(super) fn number(&self) -> Result<u64, ApiError> {
        version_number(&self.version)
    }
}

/// A model or a version, and what to do with it.
#[derive(Deserialize)]
pub(super) struct Change {
    name: String,
    version: Option<Value>,
    description: Option<String>,
    alias: Option<String>,
    key: Option<String>,
    #[serde(default)]
    value: String,
    stage: Option<String>,
    #[serde(default)]
    archive_existing_versions: Value,
}

impl Change {
    fn version(&self) -> Result<u64, ApiError> {
        version_number(self.version.as_ref().ok_or_else(|| ApiError::invalid("'version' is missing"))?)
    }
}

fn required<'a>(field: &'a Option<String>, name: &str) -> Result<&'a str, ApiError> {
    field.as_deref().ok_or_else(|| ApiError::invalid(format!("'{name}' is missing")))
}

/// What a body names, of which the caller has the route's level on the model.
struct Named {
    dialect: Dialect,
    model: ModelRecord,
    change: Change,
}

async fn named(call: &mut Call) -> Result<Named, ApiError> {
    let (_, _, change) = call.json::<Change>().await?;
    let dialect = Dialect::of(call);
    let model = call.model(&dialect.full(&change.name)).await?;
    Ok(Named { dialect, model, change })
}

/// The model that the query names.
async fn asked_model(call: &Call) -> Result<(Dialect, ModelRecord), ApiError> {
    let dialect = Dialect::of(call);
    Ok((dialect, call.model(&dialect.full(&call.needed("name")?)).await?))
}

/// The version that the query names.
pub(super) async fn asked_version(call: &Call) -> Result<(Dialect, ModelRecord, VersionRecord), ApiError> {
    let number = parse_version(&call.needed("version")?)?;
    let (dialect, model) = asked_model(call).await?;
    let version = call.app.control.registry.version(model.workspace, &model.name, number).await?;
    Ok((dialect, model, version))
}

pub(super) async fn create_model(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<ModelInput>().await?;
    let dialect = Dialect::of(call);
    let (name, tags) = (dialect.full(&input.name), tags_of(input.tags)?);
    let model = app.control.registry.create_model(&principal, &name, input.description, tags).await?;
    json(&json!({ "registered_model": dialect.model(&model) }))
}

pub(super) async fn get_model(call: &Call) -> Result<Answer, ApiError> {
    let (dialect, model) = asked_model(call).await?;
    let mut answer = dialect.model(&model);
    if dialect == Dialect::Oss {
        answer["latest_versions"] = latest(call, &model, &[]).await?;
    }
    json(&json!({ "registered_model": answer }))
}

pub(super) async fn search_models(call: &Call) -> Result<Answer, ApiError> {
    let dialect = Dialect::of(call);
    let mut models = visible_models(call).await?;
    for model in &mut models {
        model.name = dialect.shown(&model.name).to_owned();
    }
    let filter = Filter::parse::<ModelRecord>(&call.query("filter").unwrap_or_default())?;
    models.retain(|model| filter.holds(model));
    sort(&mut models, &call.queries("order_by"), MODEL_ORDERS)?;
    let mut answer = json!({});
    Paging::of_query(call).fill(&mut answer, "registered_models", &models, |model| dialect.model(model))?;
    json(&answer)
}

/// Changes the description; in Unity Catalog's shape also the name.
pub(super) async fn update_model(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<ModelInput>().await?;
    let dialect = Dialect::of(call);
    let mut model = call.model(&dialect.full(&input.name)).await?;
    if let Some(new_name) = &input.new_name {
        model = app.control.rename_model(principal.workspace, &model.name, &dialect.full(new_name)).await?;
    }
    if input.description.is_some() || input.new_name.is_none() {
        let describe = |model: &mut ModelRecord| {
            model.description = input.description;
            Ok(())
        };
        model = app.control.registry.change_model(principal.workspace, &model.name, describe).await?;
    }
    json(&json!({ "registered_model": dialect.model(&model) }))
}

pub(super) async fn delete_model(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, .. } = named(call).await?;
    call.app.control.delete_model(model.workspace, &model.name).await?;
    json(&Map::new())
}

pub(super) async fn set_model_tag(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, change, .. } = named(call).await?;
    let key = required(&change.key, "key")?;
    let set = |model: &mut ModelRecord| put_tag(&mut model.tags, key, &change.value);
    call.app.control.registry.change_model(model.workspace, &model.name, set).await?;
    json(&Map::new())
}

pub(super) async fn delete_model_tag(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, change, .. } = named(call).await?;
    let key = required(&change.key, "key")?;
    let remove = |model: &mut ModelRecord| {
        model.tags.remove(key);
        Ok(())
    };
    call.app.control.registry.change_model(model.workspace, &model.name, remove).await?;
    json(&Map::new())
}

pub(super) async fn set_alias(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, change, .. } = named(call).await?;
    let (alias, version) = (required(&change.alias, "alias")?, change.version()?);
    call.app.control.registry.set_alias(model.workspace, &model.name, alias, version).await?;
    json(&Map::new())
}

pub(super) async fn delete_alias(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, change, .. } = named(call).await?;
    let alias = required(&change.alias, "alias")?;
    call.app.control.registry.delete_alias(model.workspace, &model.name, alias).await?;
    json(&Map::new())
}

pub(super) async fn version_by_alias(call: &Call) -> Result<Answer, ApiError> {
    let (dialect, model) = asked_model(call).await?;
    let version = aliased(call, &model, &call.needed("alias")?).await?;
    json(&json!({ "model_version": dialect.version(&model, &version) }))
}

/// The version that an alias names.
pub(super) async fn aliased(call: &Call, model: &ModelRecord, alias: &str) -> Result<VersionRecord, ApiError> {
    let number = model.aliases.get(alias).ok_or_else(|| {
        ApiError::missing(format!("Registered model alias '{alias}' of '{}' does not exist.", model.name))
    })?;
    call.app.control.registry.version(model.workspace, &model.name, *number).await
}

pub(super) fn new_version(input: VersionInput) -> Result<(String, NewVersion), ApiError> {
    let VersionInput { name, source, description, run_id, model_id, tags } = input;
    Ok((name, NewVersion { source, description, run_id, model_id, tags: tags_of(tags)? }))
}

/// Unity Catalog's client uploads the files next. The older registry's expects the server to have them.
pub(super) async fn create_version(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<VersionInput>().await?;
    let dialect = Dialect::of(call);
    let (name, new) = new_version(input)?;
    let model = call.model(&dialect.full(&name)).await?;
    let registry = &app.control.registry;
    let version = match dialect {
        Dialect::Unity => registry.create_version(principal.workspace, &model.name, new, &principal.name).await?,
        Dialect::Oss => registry.create_from_source(&principal, &model.name, new).await?,
    };
    json(&json!({ "model_version": dialect.version(&model, &version) }))
}

pub(super) async fn finalize_version(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { dialect, model, change } = named(call).await?;
    let version = call.app.control.registry.finalize(model.workspace, &model.name, change.version()?).await?;
    json(&json!({ "model_version": dialect.version(&model, &version) }))
}

pub(super) async fn get_version(call: &Call) -> Result<Answer, ApiError> {
    let (dialect, model, version) = asked_version(call).await?;
    json(&json!({ "model_version": dialect.version(&model, &version) }))
}

pub(super) async fn search_versions(call: &Call) -> Result<Answer, ApiError> {
    let dialect = Dialect::of(call);
    let filter = Filter::parse::<VersionRecord>(&call.query("filter").unwrap_or_default())?;
    let mut models = visible_models(call).await?;
    if let Some(name) = filter.exact("name") {
        let name = dialect.full(name);
        models.retain(|model| model.name == name);
    }
    let mut found = Vec::new();
    for model in &models {
        for mut version in call.app.control.registry.versions(model.workspace, &model.name).await? {
            version.name = dialect.shown(&version.name).to_owned();
            if filter.holds(&version) {
                found.push(version);
            }
        }
    }
    sort(&mut found, &call.queries("order_by"), VERSION_ORDERS)?;
    let mut answer = json!({});
    let of_model = |version: &VersionRecord| {
        models
            .iter()
            .find(|model| dialect.shown(&model.name) == version.name)
            .map(|model| dialect.version(model, version))
    };
    Paging::of_query(call)
        .fill(&mut answer, "model_versions", &found, |version| of_model(version).unwrap_or_default())?;
    json(&answer)
}

pub(super) async fn update_version(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { dialect, model, change } = named(call).await?;
    let number = change.version()?;
    let describe = |version: &mut VersionRecord| {
        version.description = change.description;
        Ok(())
    };
    let version = call.app.control.registry.change_version(model.workspace, &model.name, number, describe).await?;
    json(&json!({ "model_version": dialect.version(&model, &version) }))
}

pub(super) async fn delete_version(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, change, .. } = named(call).await?;
    call.app.control.delete_version(model.workspace, &model.name, change.version()?).await?;
    json(&Map::new())
}

pub(super) async fn set_version_tag(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, change, .. } = named(call).await?;
    let key = required(&change.key, "key")?;
    let set = |version: &mut VersionRecord| put_tag(&mut version.tags, key, &change.value);
    call.app.control.registry.change_version(model.workspace, &model.name, change.version()?, set).await?;
    json(&Map::new())
}

pub(super) async fn delete_version_tag(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, change, .. } = named(call).await?;
    let key = required(&change.key, "key")?;
    let remove = |version: &mut VersionRecord| {
        version.tags.remove(key);
        Ok(())
    };
    call.app.control.registry.change_version(model.workspace, &model.name, change.version()?, remove).await?;
    json(&Map::new())
}

/// Moves a version to a stage, and answers it under `key`.
pub(super) async fn transition(call: &mut Call, key: &str) -> Result<Answer, ApiError> {
    let Named { dialect, model, change } = named(call).await?;
    let stage = Stage::parse(required(&change.stage, "stage")?)?;
    // MLflow's client sends a boolean, other programs its text.
    let archive = [json!(true), json!("true"), json!("True")].contains(&change.archive_existing_versions);
    if archive && !matches!(stage, Stage::Staging | Stage::Production) {
        return Err(ApiError::invalid("archive_existing_versions is allowed with the stages Staging and Production"));
    }
    let registry = &call.app.control.registry;
    let version = registry.transition(model.workspace, &model.name, change.version()?, stage, archive).await?;
    json(&json!({ key: dialect.version(&model, &version) }))
}

/// The newest version of each stage, or of those that are named.
pub(super) async fn latest(call: &Call, model: &ModelRecord, stages: &[Stage]) -> Result<Value, ApiError> {
    let versions = call.app.control.registry.versions(model.workspace, &model.name).await?;
    let wanted = Stage::ALL.into_iter().filter(|stage| stages.is_empty() || stages.contains(stage));
    let newest = wanted.filter_map(|stage| versions.iter().find(|version| version.stage == stage));
    Ok(newest.map(|version| Dialect::Oss.version(model, version)).collect())
}
