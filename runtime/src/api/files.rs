//! Files of model versions, on the paths that the Databricks SDK uploads to and downloads from.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Release;

use hyper::Method;
use hyper::header::{CONTENT_LENGTH, HeaderValue};
use serde_json::json;
use tokio::sync::mpsc;

use super::registry::parse_version;
use super::{Answer, Call, json, respond};
use crate::error::{ApiError, ErrorCode};
use crate::http::body::{BodyLimits, ResponseBody};
use crate::registry::VersionRecord;
use crate::seal::stream::Reader;

/// Bytes read from disk at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// Time for one file to arrive.
const UPLOAD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3600);

/// Where a version's files are, as clients name it.
pub(super) fn location(model: &str, version: u64) -> String {
    format!("/Models/{}/{version}", model.replace('.', "/"))
}

/// `fs/files` and `fs/directories` below `/Models/catalog/schema/model/version`.
pub(super) async fn route(call: &mut Call, what: &str, path: &[&str]) -> Result<Answer, ApiError> {
    let [catalog, schema, model, version, inside @ ..] = path else {
        return Err(ApiError::missing(format!("There is no file at /Models/{}.", path.join("/"))));
    };
    let model = format!("{catalog}.{schema}.{model}");
    let version = parse_version(version)?;
    let inside = inside.join("/");
    match (call.head.method.clone(), what) {
        (Method::PUT, "files") => upload(call, &model, version, &inside).await,
        (Method::GET, "files") => download(call, &model, version, &inside, true).await,
        (Method::HEAD, "files") => download(call, &model, version, &inside, false).await,
        (Method::GET | Method::HEAD, "directories") => list(call, &model, version, &inside).await,
        // The SDK makes folders before it fills them; here they exist as soon as they have a file.
        (Method::PUT, "directories") => call.principal().map(|_| respond(204, "application/json", "")),
        // The SDK begins so for large files. The addresses of parts that it asks for next do not exist here, upon which it
        // sends the file with one PUT, as it does for small ones.
        (Method::POST, "files") if call.query("action").as_deref() == Some("initiate-upload") => {
            call.principal()?;
            json(&json!({ "multipart_upload": { "session_token": "one-put" } }))
        }
        (method, _) => Err(ApiError::new(ErrorCode::NotFound, format!("Files do not understand {method}."))),
    }
}

async fn upload(call: &mut Call, model: &str, version: u64, path: &str) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let app = Arc::clone(&call.app);
    let registry = &app.control.registry;
    // Before the body is taken: what is left of a refused one is thrown away, so that the client sees the refusal.
    registry.check_upload(principal.workspace, model, version, path).await?;
    let Ok(_turn) = app.uploads.try_acquire() else {
        return Err(ApiError::new(ErrorCode::ResourceExhausted, "Too many uploads at once. Try again later."));
    };
    let limits = BodyLimits { bytes_max: app.upload_bytes_max, timeout: UPLOAD_TIMEOUT };
    let content = call.body_chunks(limits, |error| error)?;
    registry.put_file(principal.workspace, model, version, path, content).await?;
    Ok(respond(204, "application/json", ""))
}

async fn download(call: &Call, model: &str, version: u64, path: &str, with_body: bool) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let record = call.app.control.registry.version(principal.workspace, model, version).await?;
    let missing = || ApiError::missing(format!("There is no file at {}/{path}.", location(model, version)));
    let file = record.files.get(path).ok_or_else(missing)?;
    let mut response = respond(200, "application/octet-stream", "");
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(file.bytes));
    if with_body {
        let (blobs, digest) = (Arc::clone(&call.app.control.host.blobs), file.digest);
        let opened = tokio::task::spawn_blocking(move || blobs.reader(&digest)).await;
        *response.body_mut() = stream(opened.map_err(|error| ApiError::internal("read a file", &error))??);
    }
    Ok(response)
}

/// A file's content as a body, one chunk ahead of the client.
fn stream(mut file: Reader) -> ResponseBody {
    let (sender, chunks) = mpsc::channel(1);
    let complete = Arc::new(AtomicBool::new(false));
    let whole = Arc::clone(&complete);
    tokio::spawn(async move {
        loop {
            // A thread for the time of a read, not for the time that a slow client takes.
            let read = tokio::task::spawn_blocking(move || read_chunk(&mut file).map(|chunk| (file, chunk))).await;
            let chunk = match read.map_err(std::io::Error::other).flatten() {
                Ok((_, chunk)) if chunk.is_empty() => return whole.store(true, Release),
                Ok((read, chunk)) => {
                    file = read;
                    chunk
                }
                Err(error) => return tracing::error!("failed to read a file that is being downloaded: {error}"),
            };
            if sender.send(chunk.into()).await.is_err() {
                return;
            }
        }
    });
    ResponseBody::Stream { chunks, complete, _maker: None }
}

/// The next bytes; none at the end.
fn read_chunk(file: &mut Reader) -> std::io::Result<Vec<u8>> {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    file.take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}

/// The files and folders directly in a folder.
async fn list(call: &Call, model: &str, version: u64, folder: &str) -> Result<Answer, ApiError> {
    let principal = call.principal()?;
    let record = call.app.control.registry.version(principal.workspace, model, version).await?;
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let mut contents = Vec::new();
    let mut folders = std::collections::BTreeSet::new();
    for (path, file) in &record.files {
        let Some(inside) = path.strip_prefix(&prefix) else { continue };
        match inside.split_once('/') {
            Some((name, _)) => drop(folders.insert(name.to_owned())),
            None => contents.push(entry(&record, &prefix, inside, Some(file.bytes))),
        }
    }
    contents.extend(folders.iter().map(|name| entry(&record, &prefix, name, None)));
    if contents.is_empty() && !folder.is_empty() {
        return Err(ApiError::missing(format!("There is no folder at {}/{folder}.", location(model, version))));
    }
    json(&json!({ "contents": contents }))
}

fn entry(record: &VersionRecord, prefix: &str, name: &str, bytes: Option<u64>) -> serde_json::Value {
    let mut entry = json!({
        "path": format!("{}/{prefix}{name}", location(&record.name, record.version)),
        "name": name,
        "is_directory": bytes.is_none(),
        "last_modified": record.last_updated_timestamp,
    });
    if let Some(bytes) = bytes {
        entry["file_size"] = json!(bytes);
    }
    entry
}
