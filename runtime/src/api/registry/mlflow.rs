//! What MLflow's clients of Unity Catalog and of the older registry have in common. They differ in names (three parts, or
//! one that stands for `workspace.default.NAME`), in aliases on a version (objects, or names), and in stages.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::{Answer, Call, done, json};
use super::{Paging, Tag, checked_tags, files, is_below, parse_version, tags_of, version_number, visible_models};
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

    pub(super) fn model(self, record: &ModelRecord) -> DescribedModel {
        DescribedModel {
            name: self.shown(&record.name).to_owned(),
            creation_timestamp: record.creation_timestamp,
            last_updated_timestamp: record.last_updated_timestamp,
            user_id: record.creator.clone(),
            description: record.description.clone().unwrap_or_default(),
            aliases: record.aliases.iter().map(|(alias, version)| Alias::of(alias, *version)).collect(),
            tags: tags_of(&record.tags),
            latest_versions: None,
            id: None,
            permission_level: None,
        }
    }

    pub(super) fn version(self, model: &ModelRecord, record: &VersionRecord) -> DescribedVersion {
        let (status, status_message) = match (&record.status, &record.unservable) {
            (VersionStatus::Pending, _) => ("PENDING_REGISTRATION", String::new()),
            (VersionStatus::Ready, None) => ("READY", String::new()),
            (VersionStatus::Ready, Some(reason)) => ("READY", format!("registered, but cannot be served: {reason}")),
            (VersionStatus::Failed(message), _) => ("FAILED_REGISTRATION", message.clone()),
        };
        let aliases = model.aliases_of(record.version);
        DescribedVersion {
            name: self.shown(&record.name).to_owned(),
            version: record.version.to_string(),
            creation_timestamp: record.creation_timestamp,
            last_updated_timestamp: record.last_updated_timestamp,
            user_id: record.creator.clone(),
            description: record.description.clone().unwrap_or_default(),
            source: record.source.clone(),
            run_id: record.run_id.clone().unwrap_or_default(),
            status,
            status_message,
            aliases: match self {
                Dialect::Unity => Aliases::Whole(aliases.map(|alias| Alias::of(alias, record.version)).collect()),
                Dialect::Oss => Aliases::Names(aliases.map(str::to_owned).collect()),
            },
            tags: tags_of(&record.tags),
            model_id: record.model_id.clone(),
            storage_location: (self == Dialect::Unity).then(|| files::location(&record.name, record.version)),
            current_stage: (self == Dialect::Oss).then(|| record.stage.name()),
        }
    }
}

/// What only one of the two registries, or one of their calls, tells is optional.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RegisteredModel")]
pub(super) struct DescribedModel {
    name: String,
    creation_timestamp: u64,
    last_updated_timestamp: u64,
    user_id: String,
    description: String,
    aliases: Vec<Alias>,
    tags: Vec<Tag>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latest_versions: Option<Vec<DescribedVersion>>,
    /// What permissions are given by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) permission_level: Option<&'static str>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ModelVersion")]
pub(super) struct DescribedVersion {
    name: String,
    version: String,
    creation_timestamp: u64,
    last_updated_timestamp: u64,
    user_id: String,
    description: String,
    source: String,
    run_id: String,
    status: &'static str,
    status_message: String,
    aliases: Aliases,
    tags: Vec<Tag>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_location: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_stage: Option<&'static str>,
}

/// Of a version: whole in Unity Catalog's registry, names in the older one.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "ModelVersionAliases")]
enum Aliases {
    Whole(Vec<Alias>),
    Names(Vec<String>),
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ModelAlias")]
struct Alias {
    alias: String,
    version: String,
}

impl Alias {
    fn of(alias: &str, version: u64) -> Alias {
        Alias { alias: alias.to_owned(), version: version.to_string() }
    }
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OneRegisteredModel")]
pub(super) struct OneModel {
    registered_model: DescribedModel,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RegisteredModels")]
pub(super) struct Models {
    registered_models: Vec<DescribedModel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OneModelVersion")]
pub(super) struct OneVersion {
    pub(super) model_version: DescribedVersion,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ModelVersions")]
pub(super) struct Versions {
    pub(super) model_versions: Vec<DescribedVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_page_token: Option<String>,
}

/// Where the files of a version are.
#[derive(Serialize, JsonSchema)]
pub(super) struct DownloadUri {
    pub(super) artifact_uri: String,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "RegisteredModelInput")]
pub(super) struct ModelInput {
    name: String,
    description: Option<String>,
    new_name: Option<String>,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ModelVersionInput")]
pub(super) struct VersionInput {
    name: String,
    #[serde(default)]
    source: String,
    description: Option<String>,
    run_id: Option<String>,
    model_id: Option<String>,
    #[serde(default)]
    tags: Vec<Tag>,
}

/// A version.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ModelVersionRef")]
pub(super) struct VersionRef {
    pub(super) name: String,
    /// A number is taken too.
    #[schemars(with = "String")]
    version: Value,
}

impl VersionRef {
    pub(super) fn number(&self) -> Result<u64, ApiError> {
        version_number(&self.version)
    }
}

/// A model or a version, and what to do with it.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "RegistryChange")]
pub(super) struct Change {
    name: String,
    /// A number is taken too.
    #[schemars(with = "Option<String>")]
    version: Option<Value>,
    description: Option<String>,
    alias: Option<String>,
    key: Option<String>,
    #[serde(default)]
    value: String,
    stage: Option<String>,
    /// Its text is taken too.
    #[serde(default)]
    #[schemars(with = "Option<bool>")]
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
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "RegisteredModelQuery")]
pub(super) struct ModelQuery {
    pub(super) name: String,
}

/// The version that the query names.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ModelVersionQuery")]
pub(super) struct VersionQuery {
    name: String,
    version: String,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ModelAliasQuery")]
pub(super) struct AliasQuery {
    name: String,
    alias: String,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "RegistrySearch")]
pub(super) struct SearchQuery {
    /// Like `name = 'a' AND tags.b = 'c'`.
    filter: Option<String>,
    /// Like `name ASC`.
    #[serde(default)]
    order_by: Vec<String>,
    #[serde(flatten)]
    paging: Paging,
}

async fn asked_model(call: &Call, name: &str) -> Result<(Dialect, ModelRecord), ApiError> {
    let dialect = Dialect::of(call);
    Ok((dialect, call.model(&dialect.full(name)).await?))
}

pub(super) async fn asked_version(
    call: &Call,
    asked: &VersionQuery,
) -> Result<(Dialect, ModelRecord, VersionRecord), ApiError> {
    let number = parse_version(&asked.version)?;
    let (dialect, model) = asked_model(call, &asked.name).await?;
    let version = call.app.control.registry.version(model.workspace, &model.name, number).await?;
    Ok((dialect, model, version))
}

pub(super) async fn create_model(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<ModelInput>().await?;
    let dialect = Dialect::of(call);
    let (name, tags) = (dialect.full(&input.name), checked_tags(input.tags)?);
    let model = app.control.registry.create_model(&principal, &name, input.description, tags).await?;
    json(&OneModel { registered_model: dialect.model(&model) })
}

pub(super) async fn get_model(call: &Call) -> Result<Answer, ApiError> {
    let (dialect, model) = asked_model(call, &call.query::<ModelQuery>()?.name).await?;
    let mut registered_model = dialect.model(&model);
    if dialect == Dialect::Oss {
        registered_model.latest_versions = Some(latest(call, &model, &[]).await?);
    }
    json(&OneModel { registered_model })
}

pub(super) async fn search_models(call: &Call) -> Result<Answer, ApiError> {
    let dialect = Dialect::of(call);
    let mut models = visible_models(call).await?;
    for model in &mut models {
        model.name = dialect.shown(&model.name).to_owned();
    }
    let asked: SearchQuery = call.query()?;
    let filter = Filter::parse::<ModelRecord>(&asked.filter.unwrap_or_default())?;
    models.retain(|model| filter.holds(model));
    sort(&mut models, &asked.order_by, MODEL_ORDERS)?;
    let (page, next_page_token) = asked.paging.page(&models)?;
    json(&Models { registered_models: page.iter().map(|model| dialect.model(model)).collect(), next_page_token })
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
    json(&OneModel { registered_model: dialect.model(&model) })
}

pub(super) async fn delete_model(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, .. } = named(call).await?;
    call.app.control.delete_model(model.workspace, &model.name).await?;
    done()
}

pub(super) async fn set_model_tag(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, change, .. } = named(call).await?;
    let key = required(&change.key, "key")?;
    let set = |model: &mut ModelRecord| put_tag(&mut model.tags, key, &change.value);
    call.app.control.registry.change_model(model.workspace, &model.name, set).await?;
    done()
}

pub(super) async fn delete_model_tag(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, change, .. } = named(call).await?;
    let key = required(&change.key, "key")?;
    let remove = |model: &mut ModelRecord| {
        model.tags.remove(key);
        Ok(())
    };
    call.app.control.registry.change_model(model.workspace, &model.name, remove).await?;
    done()
}

pub(super) async fn set_alias(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, change, .. } = named(call).await?;
    let (alias, version) = (required(&change.alias, "alias")?, change.version()?);
    call.app.control.registry.set_alias(model.workspace, &model.name, alias, version).await?;
    done()
}

pub(super) async fn delete_alias(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, change, .. } = named(call).await?;
    let alias = required(&change.alias, "alias")?;
    call.app.control.registry.delete_alias(model.workspace, &model.name, alias).await?;
    done()
}

pub(super) async fn version_by_alias(call: &Call) -> Result<Answer, ApiError> {
    let AliasQuery { name, alias } = call.query()?;
    let (dialect, model) = asked_model(call, &name).await?;
    let version = aliased(call, &model, &alias).await?;
    json(&OneVersion { model_version: dialect.version(&model, &version) })
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
    Ok((name, NewVersion { source, description, run_id, model_id, tags: checked_tags(tags)? }))
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
    json(&OneVersion { model_version: dialect.version(&model, &version) })
}

pub(super) async fn finalize_version(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { dialect, model, change } = named(call).await?;
    let version = call.app.control.registry.finalize(model.workspace, &model.name, change.version()?).await?;
    json(&OneVersion { model_version: dialect.version(&model, &version) })
}

pub(super) async fn get_version(call: &Call) -> Result<Answer, ApiError> {
    let (dialect, model, version) = asked_version(call, &call.query()?).await?;
    json(&OneVersion { model_version: dialect.version(&model, &version) })
}

pub(super) async fn search_versions(call: &Call) -> Result<Answer, ApiError> {
    let dialect = Dialect::of(call);
    let asked: SearchQuery = call.query()?;
    let filter = Filter::parse::<VersionRecord>(&asked.filter.unwrap_or_default())?;
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
    sort(&mut found, &asked.order_by, VERSION_ORDERS)?;
    let (page, next_page_token) = asked.paging.page(&found)?;
    let of_model = |version: &VersionRecord| {
        models
            .iter()
            .find(|model| dialect.shown(&model.name) == version.name)
            .map(|model| dialect.version(model, version))
    };
    json(&Versions { model_versions: page.iter().filter_map(of_model).collect(), next_page_token })
}

pub(super) async fn update_version(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { dialect, model, change } = named(call).await?;
    let number = change.version()?;
    let describe = |version: &mut VersionRecord| {
        version.description = change.description;
        Ok(())
    };
    let version = call.app.control.registry.change_version(model.workspace, &model.name, number, describe).await?;
    json(&OneVersion { model_version: dialect.version(&model, &version) })
}

pub(super) async fn delete_version(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, change, .. } = named(call).await?;
    call.app.control.delete_version(model.workspace, &model.name, change.version()?).await?;
    done()
}

pub(super) async fn set_version_tag(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, change, .. } = named(call).await?;
    let key = required(&change.key, "key")?;
    let set = |version: &mut VersionRecord| put_tag(&mut version.tags, key, &change.value);
    call.app.control.registry.change_version(model.workspace, &model.name, change.version()?, set).await?;
    done()
}

pub(super) async fn delete_version_tag(call: &mut Call) -> Result<Answer, ApiError> {
    let Named { model, change, .. } = named(call).await?;
    let key = required(&change.key, "key")?;
    let remove = |version: &mut VersionRecord| {
        version.tags.remove(key);
        Ok(())
    };
    call.app.control.registry.change_version(model.workspace, &model.name, change.version()?, remove).await?;
    done()
}

/// Moves a version to a stage.
pub(super) async fn transition(call: &mut Call) -> Result<DescribedVersion, ApiError> {
    let Named { dialect, model, change } = named(call).await?;
    let stage = Stage::parse(required(&change.stage, "stage")?)?;
    // MLflow's client sends a boolean, other programs its text.
    let archive = [json!(true), json!("true"), json!("True")].contains(&change.archive_existing_versions);
    if archive && !matches!(stage, Stage::Staging | Stage::Production) {
        return Err(ApiError::invalid("archive_existing_versions is allowed with the stages Staging and Production"));
    }
    let registry = &call.app.control.registry;
    let version = registry.transition(model.workspace, &model.name, change.version()?, stage, archive).await?;
    Ok(dialect.version(&model, &version))
}

/// The newest version of each stage, or of those that are named.
pub(super) async fn latest(
    call: &Call,
    model: &ModelRecord,
    stages: &[Stage],
) -> Result<Vec<DescribedVersion>, ApiError> {
    let versions = call.app.control.registry.versions(model.workspace, &model.name).await?;
    let wanted = Stage::ALL.into_iter().filter(|stage| stages.is_empty() || stages.contains(stage));
    let newest = wanted.filter_map(|stage| versions.iter().find(|version| version.stage == stage));
    Ok(newest.map(|version| Dialect::Oss.version(model, version)).collect())
}
