//! Files of model versions, on the paths that the Databricks SDK uploads to and downloads from: the Files API, with large
//! files in parts, and the calls that ask for signed addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Release;

use hyper::Method;
use hyper::header::{CONTENT_LENGTH, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{SemaphorePermit, mpsc};

use super::super::routes::{self, Access, Route, handler};
use super::super::{Answer, App, Call, json, respond};
use super::parse_version;
use super::signed::{self, Deed};
use crate::access::Level;
use crate::catalog::WorkspaceId;
use crate::deploy::package::PackageFile;
use crate::error::{ApiError, ErrorCode};
use crate::http::body::{BodyLimits, ResponseBody};
use crate::registry::uploads::{Content, Expected, FilePlace, PARTS_MAX, PartRef};
use crate::seal::stream::Reader;

/// Bytes read from disk at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// Time for one file to arrive.
const UPLOAD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3600);

/// Where a version's files are, as clients name it.
pub(crate) fn location(model: &str, version: u64) -> String {
    format!("/Models/{}/{version}", model.replace('.', "/"))
}

const FILE: &str = "/api/2.0/fs/files/Models/{catalog}/{schema}/{model}/{version}/{*path}";
const FOLDER: &str = "/api/2.0/fs/directories/Models/{catalog}/{schema}/{model}/{version}";
const INNER_FOLDER: &str = "/api/2.0/fs/directories/Models/{catalog}/{schema}/{model}/{version}/{*path}";

const QUERY: Access = Access::Model(Level::Query);
const MANAGE: Access = Access::Model(Level::Manage);

pub(crate) const ROUTES: &[Route] = &[
    Route::change("files.upload", Method::PUT, FILE, MANAGE, "Upload a file of a model version", handler!(upload))
        .takes_file()
        .gives_nothing(),
    Route::get("files.download", FILE, QUERY, "Download a file of a model version", handler!(download)).gives_file(),
    Route::get("files.stat", FILE, QUERY, "Size of a file of a model version", handler!(stat))
        .gives_file()
        .reads(Method::HEAD),
    Route::change(
        "files.parts",
        Method::POST,
        FILE,
        MANAGE,
        "Begin or complete an upload in parts",
        handler!(in_parts),
    )
    .query::<PartsQuery>()
    .body::<PartsInput>()
    .answers::<PartsAnswer>(),
    Route::get(
        "files.upload_url",
        "/api/2.0/fs/create-upload-url",
        MANAGE,
        "A signed address to upload a file to",
        handler!(upload_url),
    )
    .query::<UrlQuery>()
    .body::<UrlInput>()
    .answers::<SignedUrl>()
    .reads(Method::POST),
    Route::get(
        "files.download_url",
        "/api/2.0/fs/create-download-url",
        QUERY,
        "A signed address to download a file from",
        handler!(download_url),
    )
    .query::<UrlQuery>()
    .body::<UrlInput>()
    .answers::<SignedUrl>()
    .reads(Method::POST),
    Route::get(
        "files.part_urls",
        "/api/2.0/fs/create-upload-part-urls",
        MANAGE,
        "Signed addresses to upload parts of a file to",
        handler!(part_urls),
    )
    .query::<UrlQuery>()
    .body::<UrlInput>()
    .answers::<PartUrls>()
    .reads(Method::POST),
    Route::get(
        "files.abort_url",
        "/api/2.0/fs/create-abort-upload-url",
        MANAGE,
        "A signed address to end an upload in parts with",
        handler!(abort_url),
    )
    .query::<UrlQuery>()
    .body::<UrlInput>()
    .answers::<AbortUrl>()
    .reads(Method::POST),
    Route::get("files.list", FOLDER, QUERY, "List the files of a model version", handler!(list)).answers::<Listing>(),
    Route::get("files.list_folder", INNER_FOLDER, QUERY, "List a folder of a model version", handler!(list))
        .answers::<Listing>(),
    Route::get("files.stat_list", FOLDER, QUERY, "Whether a version has files", handler!(list))
        .answers::<Listing>()
        .reads(Method::HEAD),
    Route::get("files.stat_folder", INNER_FOLDER, QUERY, "Whether a folder is there", handler!(list))
        .answers::<Listing>()
        .reads(Method::HEAD),
    Route::get("files.make_list", FOLDER, MANAGE, "Folders need not be made", handler!(make))
        .gives_nothing()
        .reads(Method::PUT),
    Route::get("files.make_folder", INNER_FOLDER, MANAGE, "Folders need not be made", handler!(make))
        .gives_nothing()
        .reads(Method::PUT),
];

/// What an address leaves as it is: slashes, and what needs no escape.
const UNSAFE: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?').add(b'`').add(b'{').add(b'}');

/// A path of an address.
pub(super) fn escaped(folder: &str, path: &str) -> String {
    utf8_percent_encode(&format!("{folder}/{path}"), UNSAFE).to_string()
}

/// A place in the files of a model version.
pub(super) struct Place {
    pub(super) model: String,
    pub(super) version: u64,
    pub(super) path: String,
}

impl Place {
    /// Reads `/Models/CATALOG/SCHEMA/MODEL/VERSION/PATH`, as clients name a file in a body.
    fn parse(text: &str) -> Result<Place, ApiError> {
        let parts: Vec<&str> = text.trim_start_matches('/').splitn(6, '/').collect();
        match parts[..] {
            ["Models", catalog, schema, model, version, path] => Ok(Place {
                model: format!("{catalog}.{schema}.{model}"),
                version: parse_version(version)?,
                path: path.to_owned(),
            }),
            _ => Err(ApiError::invalid(format!(
                "'{text}' is not the path of a model's file: there is only /Models/CATALOG/SCHEMA/MODEL/VERSION/FILE"
            ))),
        }
    }

    /// In a workspace.
    pub(super) fn file(&self, workspace: WorkspaceId) -> FilePlace<'_> {
        FilePlace { workspace, model: &self.model, version: self.version, path: &self.path }
    }
}

/// The place that the path of a request names.
pub(super) fn place(call: &Call) -> Result<Place, ApiError> {
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

#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "UploadPartsQuery")]
struct PartsQuery {
    action: PartsAction,
    /// As it was answered when the upload began.
    session_token: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "UploadPartsAction")]
enum PartsAction {
    InitiateUpload,
    CompleteUpload,
}

/// Empty when the upload is complete.
#[derive(Default, Serialize, JsonSchema)]
#[schemars(rename = "UploadInParts")]
struct PartsAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    multipart_upload: Option<UploadSession>,
}

#[derive(Serialize, JsonSchema)]
struct UploadSession {
    session_token: String,
}

/// All parts, once they have come.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "UploadedParts")]
struct PartsInput {
    #[serde(default)]
    parts: Vec<PartRef>,
}

/// An upload in parts begins, and ends when all have come.
async fn in_parts(call: &mut Call) -> Result<Answer, ApiError> {
    let place = place(call)?;
    let workspace = call.model(&place.model).await?.workspace;
    let asked: PartsQuery = call.query()?;
    match asked.action {
        PartsAction::InitiateUpload => {
            let session_token = call.app.control.registry.begin_upload(place.file(workspace)).await?;
            json(&PartsAnswer { multipart_upload: Some(UploadSession { session_token }) })
        }
        PartsAction::CompleteUpload => {
            let missing = || ApiError::invalid("the query parameter 'session_token' is missing");
            let token = asked.session_token.ok_or_else(missing)?;
            let (app, _, input) = call.json::<PartsInput>().await?;
            let _turn = upload_turn(&app)?;
            let registry = &app.control.registry;
            registry.complete_upload(place.file(workspace), &token, &input.parts, app.upload_bytes_max).await?;
            json(&PartsAnswer::default())
        }
    }
}

/// What is asked for signed addresses with.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "SignedUrlInput")]
struct UrlInput {
    /// `/Models/CATALOG/SCHEMA/MODEL/VERSION/FILE`.
    path: Option<String>,
    #[serde(default)]
    session_token: String,
    #[serde(default)]
    start_part_number: u32,
    count: Option<u32>,
    /// Like 2027-01-31T12:00:00Z.
    expire_time: Option<String>,
}

/// The same, where the SDK puts it for downloads.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "SignedUrlQuery")]
struct UrlQuery {
    path: Option<String>,
    expire_time: Option<String>,
}

/// An address that needs no token.
#[derive(Serialize, JsonSchema)]
struct SignedUrl {
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    part_number: Option<u32>,
    /// None: the address is enough.
    headers: [(); 0],
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SignedPartUrls")]
struct PartUrls {
    upload_part_urls: Vec<SignedUrl>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SignedAbortUrl")]
struct AbortUrl {
    abort_upload_url: SignedUrl,
}

/// Also from the query, where the SDK puts it for downloads.
async fn url_input(call: &mut Call) -> Result<(Place, UrlInput), ApiError> {
    let (_, _, mut input) = call.json::<UrlInput>().await?;
    let query: UrlQuery = call.query()?;
    input.expire_time = input.expire_time.or(query.expire_time);
    let path = input.path.take().or(query.path);
    let place = Place::parse(&path.ok_or_else(|| ApiError::invalid("'path' is missing"))?)?;
    call.model(&place.model).await?;
    Ok((place, input))
}

async fn upload_url(call: &mut Call) -> Result<Answer, ApiError> {
    let (place, input) = url_input(call).await?;
    let url = signed::address(call, &place, Deed::Upload, input.expire_time.as_deref())?;
    json(&SignedUrl { url, part_number: None, headers: [] })
}

async fn download_url(call: &mut Call) -> Result<Answer, ApiError> {
    let (place, input) = url_input(call).await?;
    let workspace = call.principal()?.workspace;
    let record = call.app.control.registry.version(workspace, &place.model, place.version).await?;
    if !record.files.contains_key(&place.path) {
        return Err(no_file(&place.model, place.version, &place.path));
    }
    let url = signed::address(call, &place, Deed::Download, input.expire_time.as_deref())?;
    json(&SignedUrl { url, part_number: None, headers: [] })
}

async fn part_urls(call: &mut Call) -> Result<Answer, ApiError> {
    let (place, input) = url_input(call).await?;
    let (session, first) = (input.session_token.as_str(), input.start_part_number);
    let last = first.saturating_add(input.count.unwrap_or(1).max(1) - 1);
    let file = place.file(call.principal()?.workspace);
    for number in [first, last] {
        call.app.control.registry.check_part(file, session, number).await?;
    }
    let mut urls = Vec::new();
    for number in first..=last.min(PARTS_MAX) {
        let url = signed::address(call, &place, Deed::Part { session, number }, input.expire_time.as_deref())?;
        urls.push(SignedUrl { url, part_number: Some(number), headers: [] });
    }
    json(&PartUrls { upload_part_urls: urls })
}

async fn abort_url(call: &mut Call) -> Result<Answer, ApiError> {
    let (place, input) = url_input(call).await?;
    let deed = Deed::Abort { session: &input.session_token };
    let url = signed::address(call, &place, deed, input.expire_time.as_deref())?;
    json(&AbortUrl { abort_upload_url: SignedUrl { url, part_number: None, headers: [] } })
}

async fn upload(call: &mut Call) -> Result<Answer, ApiError> {
    let place = place(call)?;
    let workspace = call.model(&place.model).await?.workspace;
    receive_file(call, place.file(workspace)).await?;
    Ok(respond(204, "application/json", ""))
}

/// Takes the body as a file of a version.
pub(super) async fn receive_file(call: &mut Call, place: FilePlace<'_>) -> Result<PackageFile, ApiError> {
    let app = Arc::clone(&call.app);
    // Before the body is taken: what is left of a refused one is thrown away, so that the client sees the refusal.
    app.control.registry.check_upload(place).await?;
    let _turn = upload_turn(&app)?;
    let content = content(call)?;
    app.control.registry.put_file(place, content).await
}

/// Takes the body as a part of a file.
pub(super) async fn receive_part(
    call: &mut Call,
    place: FilePlace<'_>,
    session: &str,
    number: u32,
) -> Result<PackageFile, ApiError> {
    let app = Arc::clone(&call.app);
    app.control.registry.check_part(place, session, number).await?;
    let _turn = upload_turn(&app)?;
    let content = content(call)?;
    app.control.registry.put_part(place, session, number, app.upload_bytes_max, content).await
}

/// A place among the uploads at one time.
pub(crate) fn upload_turn(app: &App) -> Result<SemaphorePermit<'_>, ApiError> {
    let full = |_| ApiError::new(ErrorCode::ResourceExhausted, "Too many uploads at once. Try again later.");
    app.uploads.try_acquire().map_err(full)
}

/// The body, with what its headers say of it.
pub(crate) fn content(call: &mut Call) -> Result<Content, ApiError> {
    let expected = Expected::read(|name| call.head.headers.get(name).and_then(|value| value.to_str().ok()))?;
    let limits = BodyLimits { bytes_max: call.app.upload_bytes_max, timeout: UPLOAD_TIMEOUT };
    Ok(Content { chunks: call.body_chunks(limits, |error| error)?, expected })
}

async fn stat(call: &Call) -> Result<Answer, ApiError> {
    let place = place(call)?;
    let workspace = call.model(&place.model).await?.workspace;
    send_file(call, place.file(workspace), false).await
}

async fn download(call: &Call) -> Result<Answer, ApiError> {
    let place = place(call)?;
    let workspace = call.model(&place.model).await?.workspace;
    send_file(call, place.file(workspace), true).await
}

/// Answers a file of a version.
pub(super) async fn send_file(call: &Call, place: FilePlace<'_>, with_body: bool) -> Result<Answer, ApiError> {
    let FilePlace { workspace, model, version, path } = place;
    let record = call.app.control.registry.version(workspace, model, version).await?;
    let file = record.files.get(path).ok_or_else(|| no_file(model, version, path))?;
    send(call, file, with_body).await
}

pub(super) fn no_file(model: &str, version: u64, path: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("There is no file at {}/{path}.", location(model, version)))
}

/// Answers a file, or only its size.
pub(crate) async fn send(call: &Call, file: &PackageFile, with_body: bool) -> Result<Answer, ApiError> {
    let mut response = respond(200, routes::OCTETS, "");
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

/// What lies directly in a folder: names, with sizes where they are files.
fn entries<'a>(files: &'a BTreeMap<String, PackageFile>, prefix: &str) -> Vec<(&'a str, Option<u64>)> {
    let (mut found, mut folders) = (Vec::new(), BTreeSet::new());
    for (path, file) in files {
        let Some(inside) = path.strip_prefix(prefix) else { continue };
        match inside.split_once('/') {
            Some((name, _)) => drop(folders.insert(name)),
            None => found.push((inside, Some(file.bytes))),
        }
    }
    found.extend(folders.into_iter().map(|name| (name, None)));
    found
}

fn prefix_of(folder: &str) -> String {
    if folder.is_empty() { String::new() } else { format!("{folder}/") }
}

/// A file or folder, as MLflow's artifact calls show it.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Artifact {
    pub(crate) path: String,
    is_dir: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_size: Option<u64>,
}

/// What lies directly in a folder, with whole paths.
pub(crate) fn artifacts_in(files: &BTreeMap<String, PackageFile>, folder: &str) -> Vec<Artifact> {
    let prefix = prefix_of(folder);
    let show = |(name, bytes): (&str, Option<u64>)| Artifact {
        path: format!("{prefix}{name}"),
        is_dir: bytes.is_none(),
        file_size: bytes,
    };
    entries(files, &prefix).into_iter().map(show).collect()
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "FolderListing")]
struct Listing {
    contents: Vec<Entry>,
}

/// A file or folder, as the Files API shows it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "FolderEntry")]
struct Entry {
    path: String,
    name: String,
    is_directory: bool,
    last_modified: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_size: Option<u64>,
}

/// The files and folders directly in a folder.
async fn list(call: &Call) -> Result<Answer, ApiError> {
    let Place { model, version, path: folder } = place(call)?;
    let workspace = call.model(&model).await?.workspace;
    let record = call.app.control.registry.version(workspace, &model, version).await?;
    let prefix = prefix_of(&folder);
    let found = entries(&record.files, &prefix);
    if found.is_empty() && !folder.is_empty() {
        let message = format!("There is no folder at {}/{folder}.", location(&model, version));
        // MLflow takes this code, and no other, for "it is not a folder".
        return Err(ApiError::new(ErrorCode::NotFound, message));
    }
    let show = |(name, bytes): (&str, Option<u64>)| Entry {
        path: format!("{}/{prefix}{name}", location(&model, version)),
        name: name.to_owned(),
        is_directory: bytes.is_none(),
        last_modified: record.last_updated_timestamp,
        file_size: bytes,
    };
    json(&Listing { contents: found.into_iter().map(show).collect() })
}
