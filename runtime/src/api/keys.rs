//! The keys that seal what the server keeps: for administrators.

use std::sync::Arc;

use hyper::Method;
use schemars::JsonSchema;
use serde::Deserialize;

use super::routes::{Access, Route, handler};
use super::{Answer, Call, json};
use crate::error::ApiError;
use crate::seal::rotation::Status;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RotateKeys {
    /// The key-encryption key instead of the data key.
    #[serde(default)]
    kek: bool,
}

pub(super) const ROUTES: &[Route] = &[
    Route::get("keys.list", "/api/2.0/tessera/keys", Access::ServerAdmin, "The keys of this server", handler!(list))
        .answers::<Status>(),
    Route::change(
        "keys.rotate",
        Method::POST,
        "/api/2.0/tessera/keys/rotate",
        Access::ServerAdmin,
        "Seal everything with a new key",
        handler!(rotate),
    )
    .body::<RotateKeys>()
    .answers::<Status>(),
];

async fn list(call: &Call) -> Result<Answer, ApiError> {
    json(&call.app.keys.status())
}

async fn rotate(call: &mut Call) -> Result<Answer, ApiError> {
    let (app, _, input) = call.json::<RotateKeys>().await?;
    let keys = Arc::clone(&app.keys);
    let rotate = move || if input.kek { keys.replace_key_encryption_key() } else { keys.start() };
    let rotated = tokio::task::spawn_blocking(rotate).await;
    json(&rotated.map_err(|error| ApiError::internal("rotate a key", &error))??)
}
