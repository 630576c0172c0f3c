//! Unity Catalog's own REST API: models and versions as the Databricks SDK's `registered_models` and `model_versions` see
//! them. Catalogs and schemas are derived: they are there as soon as a model is in them, and `main.default` always is.

use std::collections::BTreeSet;

use hyper::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::routes::{Access, Route, handler};
use super::super::{Answer, Call, done, json};
use super::{Paging, Tag, checked_tags, files, mlflow, parse_version, signed, tags_of, visible_models};
use crate::access::Level;
use crate::error::ApiError;
use crate::registry::names::{Tags, parts, put_tag};
use crate::registry::{ModelRecord, NewVersion, VersionRecord, VersionStatus};

const VIEW: Access = Access::Model(Level::View);
const QUERY: Access = Access::Model(Level::Query);
const MANAGE: Access = Access::Model(Level::Manage);

const MODELS: &str = "/api/2.1/unity-catalog/models";
const MODEL: &str = "/api/2.1/unity-catalog/models/{full_name}";
const NEW_VERSION: &str = "/api/2.1/unity-catalog/models/versions";
const VERSIONS: &str = "/api/2.1/unity-catalog/models/{full_name}/versions";
const VERSION: &str = "/api/2.1/unity-catalog/models/{full_name}/versions/{version}";
const FINALIZE: &str = "/api/2.1/unity-catalog/models/{full_name}/versions/{version}/finalize";
const ALIAS: &str = "/api/2.1/unity-catalog/models/{full_name}/aliases/{alias}";
const CREDENTIALS: &str = "/api/2.1/unity-catalog/temporary-model-version-credentials";
const MODEL_TAGS: &str = "/api/2.1/unity-catalog/securable-tags/{securable_type}/{full_name}";
const VERSION_TAGS: &str = "/api/2.1/unity-catalog/subentity-tags/{securable_type}/{full_name}/{version}";
const CATALOGS: &str = "/api/2.1/unity-catalog/catalogs";
const CATALOG: &str = "/api/2.1/unity-catalog/catalogs/{catalog}";
const SCHEMAS: &str = "/api/2.1/unity-catalog/schemas";
const SCHEMA: &str = "/api/2.1/unity-catalog/schemas/{full_name}";

/// There is always one schema to register a model in.
const DEFAULT: (&str, &str) = ("main", "default");

pub(crate) const ROUTES: &[Route] = &[
    Route::change("uc.create_model", Method::POST, MODELS, Access::Principal, "Register a model", handler!(create))
        .body::<ModelInput>()
        .answers::<UcModel>(),
    Route::get("uc.list_models", MODELS, Access::Principal, "List the registered models", handler!(list))
        .query::<ModelsQuery>()
        .answers::<UcModels>(),
    Route::get("uc.get_model", MODEL, VIEW, "Get a registered model", handler!(get)).answers::<UcModel>(),
    Route::change("uc.update_model", Method::PATCH, MODEL, MANAGE, "Change a registered model", handler!(update))
        .body::<ModelChange>()
        .answers::<UcModel>(),
    Route::change("uc.delete_model", Method::DELETE, MODEL, MANAGE, "Delete a registered model", handler!(delete)),
    Route::change(
        "uc.create_version",
        Method::POST,
        NEW_VERSION,
        MANAGE,
        "Create a model version",
        handler!(create_version),
    )
    .body::<VersionInput>()
    .answers::<UcVersion>(),
    Route::get("uc.list_versions", VERSIONS, VIEW, "List the versions of a model", handler!(list_versions))
        .query::<Paging>()
        .answers::<UcVersions>(),
    Route::get("uc.get_version", VERSION, VIEW, "Get a model version", handler!(get_version)).answers::<UcVersion>(),
    Route::change("uc.update_version", Method::PATCH, VERSION, MANAGE, "Change a version", handler!(update_version))
        .body::<ModelChange>()
        .answers::<UcVersion>(),
    Route::change("uc.delete_version", Method::DELETE, VERSION, MANAGE, "Delete a version", handler!(delete_version)),
    Route::change(
        "uc.finalize",
        Method::PATCH,
        FINALIZE,
        MANAGE,
        "Check a version and make it ready",
        handler!(finalize),
    )
    .answers::<UcVersion>(),
    Route::change("uc.set_alias", Method::PUT, ALIAS, MANAGE, "Let an alias name a version", handler!(set_alias))
        .body::<AliasInput>()
        .answers::<UcAlias>(),
    Route::get("uc.get_by_alias", ALIAS, VIEW, "The version that an alias names", handler!(get_by_alias))
        .answers::<UcVersion>(),
    Route::change("uc.delete_alias", Method::DELETE, ALIAS, MANAGE, "Delete an alias", handler!(delete_alias)),
    Route::get("uc.credentials", CREDENTIALS, QUERY, "How a version's files are reached", handler!(credentials))
        .body::<VersionRef>()
        .answers::<signed::Storage>()
        .reads(Method::POST),
    Route::change("uc.model_tags", Method::PATCH, MODEL_TAGS, MANAGE, "Change a model's tags", handler!(model_tags))
        .body::<TagsInput>()
        .answers::<TagAssignments>(),
    Route::change(
        "uc.version_tags",
        Method::PATCH,
        VERSION_TAGS,
        MANAGE,
        "Change a version's tags",
        handler!(version_tags),
    )
    .body::<TagsInput>()
    .answers::<TagAssignments>(),
    Route::get("uc.list_catalogs", CATALOGS, Access::Principal, "List the catalogs", handler!(list_catalogs))
        .query::<Paging>()
        .answers::<Catalogs>(),
    Route::get("uc.get_catalog", CATALOG, Access::Principal, "Get a catalog", handler!(get_catalog))
        .answers::<Catalog>(),
    Route::get("uc.list_schemas", SCHEMAS, Access::Principal, "List the schemas of a catalog", handler!(list_schemas))
        .query::<SchemasQuery>()
        .answers::<Schemas>(),
    Route::get("uc.get_schema", SCHEMA, Access::Principal, "Get a schema", handler!(get_schema)).answers::<Schema>(),
];

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "UcModelInput")]
struct ModelInput {
    name: String,
    catalog_name: String,
    schema_name: String,
    comment: Option<String>,
    storage_location: Option<String>,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "UcChange")]
struct ModelChange {
    comment: Option<String>,
    new_name: Option<String>,
    owner: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "UcVersionInput")]
struct VersionInput {
    model_name: String,
    catalog_name: String,
    schema_name: String,
    #[serde(default)]
    source: String,
    run_id: Option<String>,
    model_id: Option<String>,
    comment: Option<String>,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "UcVersionRef")]
struct VersionRef {
    model_name: String,
    catalog_name: String,
    schema_name: String,
    /// Its text is taken too.
    #[schemars(with = "u64")]
    version: Value,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "UcAliasInput")]
struct AliasInput {
    /// Its text is taken too.
    #[schemars(with = "u64")]
    version_num: Value,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "UcTagsInput")]
struct TagsInput {
    #[serde(default)]
    changes: TagChanges,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "UcTagChanges")]
struct TagChanges {
    add_tags: Vec<Tag>,
    remove: Vec<String>,
}

impl TagChanges {
    fn apply(self, tags: &mut Tags) -> Result<(), ApiError> {
        for key in &self.remove {
            tags.remove(key);
        }
        self.add_tags.iter().try_for_each(|tag| put_tag(tags, &tag.key, &tag.value))
    }
}

#[derive(Serialize, JsonSchema)]
struct UcModel {
    name: String,
    catalog_name: String,
    schema_name: String,
    full_name: String,
    id: String,
    owner: String,
    comment: String,
    storage_location: String,
    created_at: u64,
    created_by: String,
    updated_at: u64,
    updated_by: String,
    aliases: Vec<UcAlias>,
    tags: Vec<Tag>,
}

#[derive(Serialize, JsonSchema)]
struct UcAlias {
    alias_name: String,
    version_num: u64,
    catalog_name: String,
    schema_name: String,
    model_name: String,
}

#[derive(Serialize, JsonSchema)]
struct UcVersion {
    model_name: String,
    catalog_name: String,
    schema_name: String,
    version: u64,
    status: &'static str,
    source: String,
    storage_location: String,
    run_id: String,
    model_id: String,
    comment: String,
    created_at: u64,
    created_by: String,
    updated_at: u64,
    updated_by: String,
    aliases: Vec<UcAlias>,
    tags: Vec<Tag>,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "UcModelsQuery")]
struct ModelsQuery {
    catalog_name: Option<String>,
    schema_name: Option<String>,
    #[serde(flatten)]
    paging: Paging,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "UcSchemasQuery")]
struct SchemasQuery {
    catalog_name: String,
    #[serde(flatten)]
    paging: Paging,
}

#[derive(Serialize, JsonSchema)]
struct UcModels {
    registered_models: Vec<UcModel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct UcVersions {
    model_versions: Vec<UcVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "UcTagAssignments")]
struct TagAssignments {
    tag_assignments: Vec<Tag>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "UcCatalog")]
struct Catalog {
    name: String,
    full_name: String,
    catalog_type: &'static str,
    securable_type: &'static str,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "UcCatalogs")]
struct Catalogs {
    catalogs: Vec<Catalog>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "UcSchema")]
struct Schema {
    name: String,
    catalog_name: String,
    full_name: String,
    catalog_type: &'static str,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "UcSchemas")]
struct Schemas {
    schemas: Vec<Schema>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

impl UcModel {
    fn of(record: &ModelRecord) -> UcModel {
        let [catalog_name, schema_name, name] = parts(&record.name).map(str::to_owned);
        UcModel {
            name,
            catalog_name,
            schema_name,
            full_name: record.name.clone(),
            id: record.id.clone(),
            owner: record.creator.clone(),
            comment: record.description.clone().unwrap_or_default(),
            storage_location: format!("/Models/{}", record.name.replace('.', "/")),
            created_at: record.creation_timestamp,
            created_by: record.creator.clone(),
            updated_at: record.last_updated_timestamp,
            updated_by: record.creator.clone(),
            aliases: record.aliases.iter().map(|(alias, version)| UcAlias::of(record, alias, *version)).collect(),
            tags: tags_of(&record.tags),
        }
    }
}

impl UcAlias {
    fn of(model: &ModelRecord, alias: &str, version: u64) -> UcAlias {
        let [catalog_name, schema_name, model_name] = parts(&model.name).map(str::to_owned);
        UcAlias { alias_name: alias.to_owned(), version_num: version, catalog_name, schema_name, model_name }
    }
}

impl UcVersion {
    fn of(model: &ModelRecord, record: &VersionRecord) -> UcVersion {
        let [catalog_name, schema_name, model_name] = parts(&record.name).map(str::to_owned);
        let aliases = model.aliases_of(record.version).map(|alias| UcAlias::of(model, alias, record.version));
        UcVersion {
            model_name,
            catalog_name,
            schema_name,
            version: record.version,
            status: match record.status {
                VersionStatus::Pending => "PENDING_REGISTRATION",
                VersionStatus::Ready => "READY",
                VersionStatus::Failed(_) => "FAILED_REGISTRATION",
            },
            source: record.source.clone(),
            storage_location: files::location(&record.name, record.version),
            run_id: record.run_id.clone().unwrap_or_default(),
            model_id: record.model_id.clone().unwrap_or_default(),
            comment: record.description.clone().unwrap_or_default(),
            created_at: record.creation_timestamp,
            created_by: record.creator.clone(),
            updated_at: record.last_updated_timestamp,
            updated_by: record.creator.clone(),
            aliases: aliases.collect(),
            tags: tags_of(&record.tags),
        }
    }
}

/// The model that the path names.
async fn model(call: &Call) -> Result<ModelRecord, ApiError> {
    call.model(call.parameter("full_name")).await
}

/// The model and the number of the version that the path names.
async fn numbered(call: &Call) -> Result<(ModelRecord, u64), ApiError> {
    Ok((model(call).await?, parse_version(call.parameter("version"))?))
}

async fn create(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<ModelInput>().await?;
    if input.storage_location.is_some_and(|location| !location.is_empty()) {
        return Err(ApiError::invalid(
            "storage_location cannot be chosen: this server keeps the files of models itself",
        ));
    }
    let name = format!("{}.{}.{}", input.catalog_name, input.schema_name, input.name);
    let tags = checked_tags(input.tags)?;
    let model = app.control.registry.create_model(&principal, &name, input.comment, tags).await?;
    json(&UcModel::of(&model))
}

async fn list(call: &Call) -> Result<Answer, ApiError> {
    let mut models = visible_models(call).await?;
    let ModelsQuery { catalog_name: catalog, schema_name: schema, paging } = call.query()?;
    models.retain(|model| {
        let [in_catalog, in_schema, _] = parts(&model.name);
        catalog.as_deref().is_none_or(|name| name == in_catalog)
            && schema.as_deref().is_none_or(|name| name == in_schema)
    });
    let (page, next_page_token) = paging.page(&models)?;
    json(&UcModels { registered_models: page.iter().map(UcModel::of).collect(), next_page_token })
}

async fn get(call: &Call) -> Result<Answer, ApiError> {
    json(&UcModel::of(&model(call).await?))
}

async fn update(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, _, input) = call.json::<ModelChange>().await?;
    let mut model = model(call).await?;
    if input.owner.is_some_and(|owner| owner != model.creator) {
        return Err(ApiError::invalid("the owner of a model cannot be changed: give permissions on it instead"));
    }
    if let Some(new_name) = &input.new_name {
        let [catalog, schema, _] = parts(&model.name);
        let new_name = format!("{catalog}.{schema}.{new_name}");
        model = app.control.rename_model(model.workspace, &model.name, &new_name).await?;
    }
    if input.comment.is_some() {
        let describe = |model: &mut ModelRecord| {
            model.description = input.comment;
            Ok(())
        };
        model = app.control.registry.change_model(model.workspace, &model.name, describe).await?;
    }
    json(&UcModel::of(&model))
}

async fn delete(call: &Call) -> Result<Answer, ApiError> {
    let model = model(call).await?;
    call.app.control.delete_model(model.workspace, &model.name).await?;
    done()
}

async fn create_version(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, principal, input) = call.json::<VersionInput>().await?;
    let model = call.model(&format!("{}.{}.{}", input.catalog_name, input.schema_name, input.model_name)).await?;
    let new = NewVersion {
        source: input.source,
        description: input.comment,
        run_id: input.run_id,
        model_id: input.model_id,
        tags: checked_tags(input.tags)?,
    };
    let registry = &app.control.registry;
    let version = registry.create_version(model.workspace, &model.name, new, &principal.name).await?;
    json(&UcVersion::of(&model, &version))
}

async fn list_versions(call: &Call) -> Result<Answer, ApiError> {
    let model = model(call).await?;
    let versions = call.app.control.registry.versions(model.workspace, &model.name).await?;
    let (page, next_page_token) = call.query::<Paging>()?.page(&versions)?;
    let model_versions = page.iter().map(|version| UcVersion::of(&model, version)).collect();
    json(&UcVersions { model_versions, next_page_token })
}

async fn get_version(call: &Call) -> Result<Answer, ApiError> {
    let (model, number) = numbered(call).await?;
    let version = call.app.control.registry.version(model.workspace, &model.name, number).await?;
    json(&UcVersion::of(&model, &version))
}

async fn update_version(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, _, input) = call.json::<ModelChange>().await?;
    let (model, number) = numbered(call).await?;
    let describe = |version: &mut VersionRecord| {
        version.description = input.comment.or(version.description.take());
        Ok(())
    };
    let version = app.control.registry.change_version(model.workspace, &model.name, number, describe).await?;
    json(&UcVersion::of(&model, &version))
}

async fn delete_version(call: &Call) -> Result<Answer, ApiError> {
    let (model, number) = numbered(call).await?;
    call.app.control.delete_version(model.workspace, &model.name, number).await?;
    done()
}

async fn finalize(call: &Call) -> Result<Answer, ApiError> {
    let (model, number) = numbered(call).await?;
    let version = call.app.control.registry.finalize(model.workspace, &model.name, number).await?;
    json(&UcVersion::of(&model, &version))
}

async fn set_alias(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, _, input) = call.json::<AliasInput>().await?;
    let (model, number) = (model(call).await?, super::version_number(&input.version_num)?);
    let alias = call.parameter("alias");
    app.control.registry.set_alias(model.workspace, &model.name, alias, number).await?;
    json(&UcAlias::of(&model, alias, number))
}

async fn get_by_alias(call: &Call) -> Result<Answer, ApiError> {
    let model = model(call).await?;
    let version = mlflow::aliased(call, &model, call.parameter("alias")).await?;
    json(&UcVersion::of(&model, &version))
}

async fn delete_alias(call: &Call) -> Result<Answer, ApiError> {
    let model = model(call).await?;
    call.app.control.registry.delete_alias(model.workspace, &model.name, call.parameter("alias")).await?;
    done()
}

/// See [`signed::storage`].
async fn credentials(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, _, input) = call.json::<VersionRef>().await?;
    let model = call.model(&format!("{}.{}.{}", input.catalog_name, input.schema_name, input.model_name)).await?;
    app.control.registry.version(model.workspace, &model.name, super::version_number(&input.version)?).await?;
    json(&signed::storage())
}

async fn model_tags(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, _, input) = call.json::<TagsInput>().await?;
    let model = model(call).await?;
    let change = |model: &mut ModelRecord| input.changes.apply(&mut model.tags);
    let model = app.control.registry.change_model(model.workspace, &model.name, change).await?;
    json(&TagAssignments { tag_assignments: tags_of(&model.tags) })
}

async fn version_tags(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, _, input) = call.json::<TagsInput>().await?;
    let (model, number) = numbered(call).await?;
    let change = |version: &mut VersionRecord| input.changes.apply(&mut version.tags);
    let version = app.control.registry.change_version(model.workspace, &model.name, number, change).await?;
    json(&TagAssignments { tag_assignments: tags_of(&version.tags) })
}

/// The schemas that the caller sees a model in.
async fn schemas(call: &Call) -> Result<BTreeSet<(String, String)>, ApiError> {
    let mut found = BTreeSet::from([(DEFAULT.0.to_owned(), DEFAULT.1.to_owned())]);
    for model in visible_models(call).await? {
        let [catalog, schema, _] = parts(&model.name);
        found.insert((catalog.to_owned(), schema.to_owned()));
    }
    Ok(found)
}

fn catalog_named(name: &str) -> Catalog {
    Catalog {
        name: name.to_owned(),
        full_name: name.to_owned(),
        catalog_type: "MANAGED_CATALOG",
        securable_type: "CATALOG",
    }
}

fn schema_named((catalog, schema): &(String, String)) -> Schema {
    Schema {
        name: schema.clone(),
        catalog_name: catalog.clone(),
        full_name: format!("{catalog}.{schema}"),
        catalog_type: "MANAGED_CATALOG",
    }
}

async fn list_catalogs(call: &Call) -> Result<Answer, ApiError> {
    let names: BTreeSet<String> = schemas(call).await?.into_iter().map(|(catalog, _)| catalog).collect();
    let names: Vec<String> = names.into_iter().collect();
    let (page, next_page_token) = call.query::<Paging>()?.page(&names)?;
    json(&Catalogs { catalogs: page.iter().map(|name| catalog_named(name)).collect(), next_page_token })
}

async fn get_catalog(call: &Call) -> Result<Answer, ApiError> {
    let name = call.parameter("catalog");
    if !schemas(call).await?.iter().any(|(catalog, _)| catalog == name) {
        return Err(ApiError::missing(format!("Catalog '{name}' does not exist: it is there once a model is in it.")));
    }
    json(&catalog_named(name))
}

async fn list_schemas(call: &Call) -> Result<Answer, ApiError> {
    let SchemasQuery { catalog_name: catalog, paging } = call.query()?;
    let found: Vec<_> = schemas(call).await?.into_iter().filter(|(of, _)| *of == catalog).collect();
    let (page, next_page_token) = paging.page(&found)?;
    json(&Schemas { schemas: page.iter().map(schema_named).collect(), next_page_token })
}

async fn get_schema(call: &Call) -> Result<Answer, ApiError> {
    let name = call.parameter("full_name");
    let found = schemas(call).await?.into_iter().find(|(catalog, schema)| format!("{catalog}.{schema}") == name);
    let missing = || ApiError::missing(format!("Schema '{name}' does not exist: it is there once a model is in it."));
    json(&schema_named(&found.ok_or_else(missing)?))
}
