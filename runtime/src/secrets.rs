//! Secrets in scopes, and the references to them in an endpoint's environment variables: `{{secrets/scope/key}}`.
//!
//! A value is read from the store where it is asked for and kept nowhere else, apart from the settings of an endpoint that
//! is awake. A guest's `init` never sees one, so none is frozen into an artifact.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::access::{Action, Grant, Level, Object, Principal, authorize};
use crate::catalog::{EndpointConfig, EntityConfig, WorkspaceId};
use crate::clock::now_ms;
use crate::error::{ApiError, ErrorCode};
use crate::store::documents::{document, read_document, scan_documents};
use crate::store::{StateStore, Transaction};
use crate::turns::Turns;

/// Largest value in bytes: with its base64 it fits a record.
pub const SECRET_BYTES_MAX: usize = 40 << 10;

/// Most scopes of a workspace.
const SCOPES_MAX: usize = 1000;

/// Most secrets of a scope.
const SECRETS_MAX: usize = 1000;

/// Most grants of a scope.
const GRANTS_MAX: usize = 200;

/// A scope as it is stored: whose secrets may be read by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Whose it is.
    pub workspace: WorkspaceId,
    /// Unique in the workspace.
    pub name: String,
    /// Identity that made it.
    pub owner: u64,
    /// Who else may read (`View`), write (`Query`) or manage it.
    #[serde(default)]
    pub grants: Vec<Grant>,
}

/// A secret as it is stored.
#[derive(Serialize, Deserialize)]
struct SecretRecord {
    /// In base64.
    value: String,
    last_updated_timestamp: u64,
}

/// What lists show of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SecretName {
    /// Unique in its scope.
    pub key: String,
    /// In ms since 1970.
    pub last_updated_timestamp: u64,
}

/// All secrets of all workspaces.
pub struct Secrets {
    store: Arc<dyn StateStore>,
    turns: Turns,
}

impl Secrets {
    /// The secrets in a store.
    pub fn new(store: Arc<dyn StateStore>) -> Secrets {
        Secrets { store, turns: Turns::default() }
    }

    /// Makes a scope that its maker manages.
    ///
    /// # Errors
    /// `RESOURCE_ALREADY_EXISTS`, or what is wrong with the name.
    pub async fn create_scope(&self, creator: &Principal, name: &str, grants: Vec<Grant>) -> Result<(), ApiError> {
        check_name("scope", name)?;
        let workspace = creator.workspace;
        let _turn = self.turns.of(workspace, "").await;
        let scopes = self.scopes(workspace).await?;
        if scopes.iter().any(|scope| scope.name == name) {
            let message = format!("Scope {name} already exists!");
            return Err(ApiError::new(ErrorCode::ResourceAlreadyExists, message));
        }
        at_most("scopes in a workspace", scopes.len() + 1, SCOPES_MAX)?;
        self.keep(&Scope { workspace, name: name.to_owned(), owner: creator.id, grants }).await
    }

    /// All scopes of a workspace, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn scopes(&self, workspace: WorkspaceId) -> Result<Vec<Scope>, ApiError> {
        let found = self.scan(scope_key(workspace, "")).await?;
        Ok(found.into_iter().map(|(_, scope)| scope).collect())
    }

    /// A scope, if the caller may do this with it.
    ///
    /// # Errors
    /// `RESOURCE_DOES_NOT_EXIST`, `PERMISSION_DENIED`.
    pub async fn scope(&self, caller: &Principal, name: &str, level: Level) -> Result<Scope, ApiError> {
        let scope: Option<Scope> = read_document(&self.store, scope_key(caller.workspace, name)).await?;
        let scope = scope.ok_or_else(|| no_scope(name))?;
        authorize(caller, Action::Use(level), Object::SecretScope(&scope))?;
        Ok(scope)
    }

    /// Changes who may use a scope.
    ///
    /// # Errors
    /// Those of [`Secrets::scope`] and of `change`.
    pub async fn change_grants(
        &self,
        caller: &Principal,
        name: &str,
        change: impl FnOnce(&mut Vec<Grant>) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let _turn = self.turns.of(caller.workspace, name).await;
        let mut scope = self.scope(caller, name, Level::Manage).await?;
        change(&mut scope.grants)?;
        at_most("principals in the permissions of a scope", scope.grants.len(), GRANTS_MAX)?;
        self.keep(&scope).await
    }

    /// Removes a scope with its secrets.
    ///
    /// # Errors
    /// Those of [`Secrets::scope`].
    pub async fn delete_scope(&self, caller: &Principal, name: &str) -> Result<(), ApiError> {
        let _turn = self.turns.of(caller.workspace, name).await;
        self.scope(caller, name, Level::Manage).await?;
        // The secrets first: one without a scope could never be removed.
        for (key, _) in self.scan::<SecretRecord>(secret_key(caller.workspace, name, "")).await? {
            self.store.commit(Transaction::new().delete_document(&key)).await?;
        }
        let key = scope_key(caller.workspace, name);
        self.store.commit(Transaction::new().delete_document(&key)).await?;
        Ok(())
    }

    /// Writes a secret, whether it is there or not.
    ///
    /// # Errors
    /// Those of [`Secrets::scope`], and what is wrong with name or value.
    pub async fn put(&self, caller: &Principal, scope: &str, key: &str, value: &[u8]) -> Result<(), ApiError> {
        check_name("secret", key)?;
        if value.len() > SECRET_BYTES_MAX {
            let message = format!("the secret has {} bytes; at most {SECRET_BYTES_MAX} are allowed", value.len());
            return Err(ApiError::invalid(message));
        }
        let _turn = self.turns.of(caller.workspace, scope).await;
        self.scope(caller, scope, Level::Query).await?;
        let others = self.names(caller.workspace, scope).await?;
        let new = !others.iter().any(|other| other.key == key);
        at_most("secrets in a scope", others.len() + usize::from(new), SECRETS_MAX)?;
        let record = SecretRecord { value: BASE64.encode(value), last_updated_timestamp: now_ms() };
        let key = secret_key(caller.workspace, scope, key);
        self.store.commit(Transaction::new().put_document(&key, &record)?).await?;
        Ok(())
    }

    /// A secret's value, in base64.
    ///
    /// # Errors
    /// Those of [`Secrets::scope`], `RESOURCE_DOES_NOT_EXIST`.
    pub async fn get(&self, caller: &Principal, scope: &str, key: &str) -> Result<String, ApiError> {
        self.scope(caller, scope, Level::View).await?;
        let record: Option<SecretRecord> = read_document(&self.store, secret_key(caller.workspace, scope, key)).await?;
        record.map(|record| record.value).ok_or_else(|| no_secret(scope, key))
    }

    /// The names of a scope's secrets, sorted.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn names(&self, workspace: WorkspaceId, scope: &str) -> Result<Vec<SecretName>, ApiError> {
        let prefix = secret_key(workspace, scope, "");
        let found = self.scan::<SecretRecord>(prefix.clone()).await?;
        let name = |(key, record): (String, SecretRecord)| SecretName {
            key: key[prefix.len()..].to_owned(),
            last_updated_timestamp: record.last_updated_timestamp,
        };
        Ok(found.into_iter().map(name).collect())
    }

    /// Removes a secret.
    ///
    /// # Errors
    /// Those of [`Secrets::scope`], `RESOURCE_DOES_NOT_EXIST`.
    pub async fn delete(&self, caller: &Principal, scope: &str, key: &str) -> Result<(), ApiError> {
        let _turn = self.turns.of(caller.workspace, scope).await;
        self.scope(caller, scope, Level::Query).await?;
        let name = secret_key(caller.workspace, scope, key);
        if read_document::<SecretRecord>(&self.store, name.clone()).await?.is_none() {
            return Err(no_secret(scope, key));
        }
        self.store.commit(Transaction::new().delete_document(&name)).await?;
        Ok(())
    }

    /// Refuses a config that refers to secrets which are not there, or which the caller may not read.
    ///
    /// # Errors
    /// Which reference, and why.
    pub async fn check_references(&self, caller: &Principal, config: &EndpointConfig) -> Result<(), ApiError> {
        for (variable, value) in config.entities.iter().flat_map(|entity| &entity.environment_vars) {
            let Some(reference) = Reference::of(value) else { continue };
            let named = |error: ApiError| ApiError {
                message: format!("environment_vars.{variable} refers to {value}: {}", error.message),
                ..error
            };
            let Reference { scope, key } = reference.map_err(named)?;
            self.get(caller, scope, key).await.map_err(named)?;
        }
        Ok(())
    }

    /// An entity's environment variables that are secrets, with their values now. Blocks.
    ///
    /// # Errors
    /// A sentence for the endpoint's owner: which secret is gone, or is no text.
    pub fn resolve(&self, workspace: WorkspaceId, entity: &EntityConfig) -> Result<BTreeMap<String, String>, String> {
        let mut values = BTreeMap::new();
        for (variable, text) in &entity.environment_vars {
            let Some(Ok(Reference { scope, key })) = Reference::of(text) else { continue };
            let failed = |why: &str| format!("environment_vars.{variable} refers to {text}, {why}");
            let record = document::<SecretRecord>(&*self.store, &secret_key(workspace, scope, key));
            let record = record.map_err(|error| failed(&format!("which cannot be read: {error}")))?;
            let record = record.ok_or_else(|| failed("which does not exist any more"))?;
            let value = BASE64.decode(record.value).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            values.insert(variable.clone(), value.ok_or_else(|| failed("which is not text in UTF-8"))?);
        }
        Ok(values)
    }

    async fn keep(&self, scope: &Scope) -> Result<(), ApiError> {
        let key = scope_key(scope.workspace, &scope.name);
        self.store.commit(Transaction::new().put_document(&key, scope)?).await?;
        Ok(())
    }

    async fn scan<T>(&self, prefix: String) -> Result<Vec<(String, T)>, ApiError>
    where
        T: serde::de::DeserializeOwned + Send + 'static,
    {
        let store = Arc::clone(&self.store);
        let read = tokio::task::spawn_blocking(move || scan_documents(&*store, &prefix)).await;
        Ok(read.map_err(|error| ApiError::internal("read the secrets", &error))??)
    }
}

/// Whether an environment variable's value is a secret's name.
pub fn is_reference(value: &str) -> bool {
    Reference::of(value).is_some()
}

/// `{{secrets/scope/key}}`.
struct Reference<'a> {
    scope: &'a str,
    key: &'a str,
}

impl Reference<'_> {
    /// None where a value is a value.
    fn of(value: &str) -> Option<Result<Reference<'_>, ApiError>> {
        let inside = value.trim().strip_prefix("{{")?.strip_suffix("}}")?.trim().strip_prefix("secrets/")?;
        let parts = inside.split_once('/').filter(|(scope, key)| !scope.is_empty() && !key.is_empty());
        Some(match parts {
            Some((scope, key)) => Ok(Reference { scope, key }),
            None => Err(ApiError::invalid("a reference has the form {{secrets/scope/key}}")),
        })
    }
}

fn check_name(what: &str, name: &str) -> Result<(), ApiError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    if name.is_empty() || name.len() > 128 || !name.chars().all(allowed) {
        let message =
            format!("{what} name '{name}' is not allowed: use 1 to 128 letters, digits, '-', '_', '.' or '@'");
        return Err(ApiError::invalid(message));
    }
    Ok(())
}

fn at_most(what: &str, count: usize, max: usize) -> Result<(), ApiError> {
    if count > max {
        return Err(ApiError::invalid(format!("there can be at most {max} {what}")));
    }
    Ok(())
}

/// The refusal for a scope that does not exist for the caller.
pub fn no_scope(name: &str) -> ApiError {
    ApiError::missing(format!("Scope {name} does not exist!"))
}

fn no_secret(scope: &str, key: &str) -> ApiError {
    ApiError::missing(format!("Secret does not exist with scope: {scope} and key: {key}"))
}

fn scope_key(workspace: WorkspaceId, name: &str) -> String {
    format!("secret-scope/{workspace}/{name}")
}

fn secret_key(workspace: WorkspaceId, scope: &str, key: &str) -> String {
    format!("secret/{workspace}/{scope}/{key}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_told_from_a_value() {
        for (value, expected) in [
            ("plain", None),
            ("{{secrets}}", None),
            ("{{secrets/a}}", Some(false)),
            ("{{secrets//b}}", Some(false)),
            ("{{secrets/a/b}}", Some(true)),
            ("{{ secrets/a/b }}", Some(true)),
            ("x{{secrets/a/b}}", None),
        ] {
            assert_eq!(Reference::of(value).map(|reference| reference.is_ok()), expected, "{value}");
        }
    }
}
