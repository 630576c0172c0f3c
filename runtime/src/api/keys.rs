//! The keys that seal what the server keeps: for administrators.

use std::sync::Arc;

use hyper::Method;
use serde::Deserialize;

use super::{Answer, Call, json};
use crate::error::{ApiError, ErrorCode};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RotateInput {
    /// The key-encryption key instead of the data key.
    #[serde(default)]
    kek: bool,
}

/// `GET /api/2.0/tessera/keys` and `POST /api/2.0/tessera/keys/rotate`.
pub(super) async fn route(call: &mut Call, what: &[&str]) -> Result<Answer, ApiError> {
    if !call.principal()?.admin {
        return Err(ApiError::new(ErrorCode::PermissionDenied, "Only an administrator may see or rotate keys."));
    }
    let keys = Arc::clone(&call.app.keys);
    match (call.head.method.clone(), what) {
        (Method::GET, []) => json(&keys.status()),
        (Method::POST, ["rotate"]) => {
            let (_, _, input) = call.json::<RotateInput>().await?;
            let rotate = move || if input.kek { keys.replace_key_encryption_key() } else { keys.start() };
            let rotated = tokio::task::spawn_blocking(rotate).await;
            json(&rotated.map_err(|error| ApiError::internal("rotate a key", &error))??)
        }
        (method, _) => {
            Err(ApiError::new(ErrorCode::NotFound, format!("Keys have nothing at {method} {}.", call.head.uri.path())))
        }
    }
}
