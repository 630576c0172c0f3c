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
use super::routes::{Access, Route, handler};
use super::{Answer, Call, json, respond};
use crate::access::Level;
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

const FILE: &str = "/api/2.0/fs/files/Models/{catalog}/{schema}/{model}/{version}/{*path}";
const FOLDER: &str = "/api/2.0/fs/directories/Models/{catalog}/{schema}/{model}/{version}";
const INNER_FOLDER: &str = "/api/2.0/fs/directories/Models/{catalog}/{schema}/{model}/{version}/{*path}";

const QUERY: Access = Access::Model(Level::Query);
const MANAGE: Access = Access::Model(Level::Manage);

pub(super) const ROUTES: &[Route] = &[
    Route::change("files.upload", Method::PUT, FILE, MANAGE, "Upload a file of a model version", handler!(upload)),
    Route::get("files.download", FILE, QUERY, "Download a file of a model version", handler!(download)),
    Route::get("files.stat", FILE, QUERY, "Size of a file of a model version", handler!(stat)).reads(Method::HEAD),
    Route::change("files.initiate", Method::POST, FILE, MANAGE, "Begin a large upload", handler!(initiate)),
    Route::get("files.list", FOLDER, QUERY, "List the files of a model version", handler!(list)),
    Route::get("files.list_folder", INNER_FOLDER, QUERY, "List a folder of a model version", handler!(list)),
    Route::get("files.stat_list", FOLDER, QUERY, "Whether a version has files", handler!(list)).reads(Method::HEAD),
    Route::get("files.stat_folder", INNER_FOLDER, QUERY, "Whether a folder is there", handler!(list))
        .reads(Method::HEAD),
    Route::get("files.make_list", FOLDER, MANAGE, "Folders need not be made", handler!(make)).reads(Method::PUT),
    Route::get("files.make_folder", INNER_FOLDER, MANAGE, "Folders need not be made", handler!(make))
        .reads(Method::PUT),
];

/// A place in the files of a model version, as the path names it.
struct Place {
    model: String,
    version: u64,
    path: String,
}

fn place(call: &Call) -> Result<Place, ApiError> {
    let [catalog, schema, model] = ["catalog", "schema", "model"].map(|name| call.parameter(name));
    Ok(Place {
        model: format!("{catalog}.{schema}.{model}"),
        version: parse_version(call.parameter("version"))?,
        path: call.parameter("path").to_owned(),
    })
}

/// The SDK makes folders before it fills them; here they exist as soon as they have a file.
async fn make(call: &Call) -> Result<Answer, ApiError> {
    call.model(&place(call)?.model).await?;
    Ok(respond(204, "application/json", ""))
}

/// The SDK begins so for large files. The addresses of parts that it asks for next do not exist here, upon which it sends
/// the file with one PUT, as it does for small ones.
async fn initiate(call: &Call) -> Result<Answer, ApiError> {
    call.model(&place(call)?.model).await?;
    match call.query("action").as_deref() {
        Some("initiate-upload") => json(&json!({ "multipart_upload": { "session_token": "one-put" } })),
        _ => Err(ApiError::invalid("the query parameter 'action' must be 'initiate-upload'")),
    }
}

async fn upload(call: &mut Call) -> Result<Answer, ApiError> {
    let Place { model, version, path } = place(call)?;
    let workspace = call.model(&model).await?.workspace;
    let app = Arc::clone(&call.app);
    let registry = &app.control.registry;
    // Before the body is taken: what is left of a refused one is thrown away, so that the client sees the refusal.
    registry.check_upload(workspace, &model, version, &path).await?;
    let Ok(_turn) = app.uploads.try_acquire() else {
        return Err(ApiError::new(ErrorCode::ResourceExhausted, "Too many uploads at once. Try again later."));
    };
    let limits = BodyLimits { bytes_max: app.upload_bytes_max, timeout: UPLOAD_TIMEOUT };
    let content = call.body_chunks(limits, |error| error)?;
    registry.put_file(workspace, &model, version, &path, content).await?;
    Ok(respond(204, "application/json", ""))
}

async fn stat(call: &Call) -> Result<Answer, ApiError> {
    read(call, false).await
}

async fn download(call: &Call) -> Result<Answer, ApiError> {
    read(call, true).await
}

async fn read(call: &Call, with_body: bool) -> Result<Answer, ApiError> {
    let Place { model, version, path } = place(call)?;
    let workspace = call.model(&model).await?.workspace;
    let record = call.app.control.registry.version(workspace, &model, version).await?;
    let missing = || ApiError::missing(format!("There is no file at {}/{path}.", location(&model, version)));
    let file = record.files.get(&path).ok_or_else(missing)?;
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
async fn list(call: &Call) -> Result<Answer, ApiError> {
    let Place { model, version, path: folder } = place(call)?;
    let workspace = call.model(&model).await?.workspace;
    let record = call.app.control.registry.version(workspace, &model, version).await?;
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
        return Err(ApiError::missing(format!("There is no folder at {}/{folder}.", location(&model, version))));
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
