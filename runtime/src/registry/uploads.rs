//! Files on their way into a version: whole in one request, or in parts that may come at the same time, in any order and
//! after a restart. All of it goes to disk as it arrives; what breaks off leaves nothing.
//!
//! Each part is a file by digest of its own, so it survives the server, and the sweep of unused files takes it a day after
//! it came. A file's parts are listed in a record until its version is finalized.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use md5::Md5;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{Registry, VersionRecord, conflict};
use crate::access::{Reserved, Resource, Tallies};
use crate::catalog::WorkspaceId;
use crate::clock::now_ms;
use crate::deploy::package::{FILES_MAX, PackageFile, check_path};
use crate::error::ApiError;
use crate::store::blobs::{Blobs, Digest};
use crate::store::documents::{read_document, visit_documents};
use crate::store::{StateStore, StoreError, Transaction};

/// Most parts of a file. The Databricks SDK makes about 100.
pub const PARTS_MAX: u32 = 400;

/// Parts are kept so long for a client that comes back: as long as the sweep of files leaves them.
pub const PARTS_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Bytes copied at a time when parts are put together.
const CHUNK_BYTES: usize = 256 << 10;

/// A file of a version.
#[derive(Debug, Clone, Copy)]
pub struct FilePlace<'a> {
    /// Whose it is.
    pub workspace: WorkspaceId,
    /// `catalog.schema.model`.
    pub model: &'a str,
    /// Number of the version.
    pub version: u64,
    /// Path in the package.
    pub path: &'a str,
}

/// What arrives, and what the sender says of it.
pub struct Content {
    /// The bytes; an error where they break off.
    pub chunks: mpsc::Receiver<Result<Bytes, ApiError>>,
    /// What they must be.
    pub expected: Expected,
}

/// Checksums that a client sent along.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Of `x-content-sha256`, `Digest` or `Content-Digest`.
    pub sha256: Option<[u8; 32]>,
    /// Of `Content-MD5`.
    pub md5: Option<[u8; 16]>,
}

/// A part, as a client names it when it puts the file together.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[schemars(rename = "UploadedPart")]
pub struct PartRef {
    /// From 1.
    pub part_number: u32,
    /// What the server answered when it came.
    pub etag: String,
}

/// The parts of a file that have arrived.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Upload {
    /// Of the version, to end it with.
    model: String,
    version: u64,
    /// In ms since 1970: the last part.
    last_updated_timestamp: u64,
    parts: BTreeMap<u32, PackageFile>,
    /// Whether they were put together: then the file counts, and they do not.
    #[serde(default)]
    completed: bool,
}

impl Upload {
    /// Bytes that count as used.
    fn counted_bytes(&self) -> u64 {
        if self.completed { 0 } else { self.parts.values().map(|part| part.bytes).sum() }
    }
}

/// Counts the parts that are there. Blocks.
pub(super) fn count(store: &dyn StateStore, tallies: &Tallies) -> Result<(), StoreError> {
    visit_documents(store, "upload/", |key, upload: Upload| {
        if let Some((workspace, _)) = of_key(key) {
            tallies.of(workspace).add(Resource::ModelBytes, upload.counted_bytes());
        }
        Ok::<_, StoreError>(())
    })
}

impl Expected {
    /// Reads the headers `x-content-sha256` (hex), `Digest` and `Content-Digest` (SHA-256), `Content-MD5`.
    ///
    /// # Errors
    /// When one is not what it should look like.
    pub fn read<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Result<Expected, ApiError> {
        let mut expected = Expected::default();
        if let Some(text) = header("x-content-sha256") {
            let digest: Digest = text.trim().parse().map_err(|_| {
                ApiError::invalid(format!("x-content-sha256 '{text}' is not a SHA-256 in 64 hex digits"))
            })?;
            expected.sha256 = Some(digest.0);
        }
        for name in ["digest", "content-digest"] {
            // Other algorithms beside it are for others to check.
            let fields = header(name).into_iter().flat_map(|value| value.split(','));
            for (algorithm, value) in fields.filter_map(|field| field.trim().split_once('=')) {
                if algorithm.eq_ignore_ascii_case("sha-256") {
                    expected.sha256 = Some(decoded(name, value.trim_matches(':'))?);
                }
            }
        }
        if let Some(text) = header("content-md5") {
            expected.md5 = Some(decoded("content-md5", text.trim())?);
        }
        Ok(expected)
    }
}

fn decoded<const BYTES: usize>(header: &str, text: &str) -> Result<[u8; BYTES], ApiError> {
    let bytes = BASE64.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| ApiError::invalid(format!("{header}: '{text}' is not a digest of {BYTES} bytes in base64")))
}

impl Registry {
    /// Whether a version would take a file now.
    ///
    /// # Errors
    /// When the path is not allowed, or the version is finalized or does not exist.
    pub async fn check_upload(&self, place: FilePlace<'_>) -> Result<(), ApiError> {
        check_path(place.path)?;
        self.pending_version(place.workspace, place.model, place.version).await.map(drop)
    }

    /// Keeps content of a workspace as a file by digest, as it arrives.
    ///
    /// # Errors
    /// When it breaks off, is not what was announced, or is more than the workspace has room for: nothing is kept then.
    pub async fn receive(&self, workspace: WorkspaceId, content: Content) -> Result<PackageFile, ApiError> {
        let blobs = Arc::clone(&self.blobs);
        // Given back when it has arrived: from then on it counts where something names it.
        let room = self.tallies.of(workspace).reserve(Resource::ModelBytes, 0)?;
        let written = tokio::task::spawn_blocking(move || receive(&blobs, content, room)).await;
        written.map_err(|error| ApiError::internal("keep a file", &error))?
    }

    /// Stores one file of a version that is not finalized yet, as it arrives.
    ///
    /// # Errors
    /// When the path is not allowed, the version is finalized, or the upload breaks off: nothing is kept then.
    pub async fn put_file(&self, place: FilePlace<'_>, content: Content) -> Result<PackageFile, ApiError> {
        self.check_upload(place).await?;
        let file = self.receive(place.workspace, content).await?;
        let _turn = self.turn(place.workspace, place.model).await;
        self.add_file(place, file.clone()).await?;
        Ok(file)
    }

    /// Names a file of a version, in the turn of its model.
    async fn add_file(&self, place: FilePlace<'_>, file: PackageFile) -> Result<VersionRecord, ApiError> {
        let mut record = self.pending_version(place.workspace, place.model, place.version).await?;
        if record.files.len() >= FILES_MAX && !record.files.contains_key(place.path) {
            return Err(ApiError::invalid(format!("a model version may have at most {FILES_MAX} files")));
        }
        // Until the version is counted with it; what it replaces is counted now.
        let replaced = record.files.get(place.path).map_or(0, |file| file.bytes);
        let more = file.bytes.saturating_sub(replaced);
        let _room = self.tallies.of(place.workspace).reserve(Resource::ModelBytes, more)?;
        record.files.insert(place.path.to_owned(), file);
        self.keep(record).await
    }

    /// Begins a file that comes in parts, or goes on with one whose parts came before; answers what it is called by.
    ///
    /// # Errors
    /// As [`Registry::check_upload`].
    pub async fn begin_upload(&self, place: FilePlace<'_>) -> Result<String, ApiError> {
        self.check_upload(place).await?;
        let token = upload_token(place);
        let _turn = self.upload_turns.of(place.workspace, &token).await;
        let key = upload_key(place, &token);
        if read_document::<Upload>(&self.store, key.clone()).await?.is_none() {
            let upload = Upload {
                model: place.model.to_owned(),
                version: place.version,
                last_updated_timestamp: now_ms(),
                parts: BTreeMap::new(),
                completed: false,
            };
            self.store.commit(Transaction::new().put_document(&key, &upload)?).await?;
        }
        Ok(token)
    }

    /// Whether an upload goes on, and with this part.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_part(&self, place: FilePlace<'_>, token: &str, number: u32) -> Result<(), ApiError> {
        if !(1..=PARTS_MAX).contains(&number) {
            return Err(ApiError::invalid(format!("part {number} is not one of 1 to {PARTS_MAX}: send larger parts")));
        }
        self.check_upload(place).await?;
        self.upload(place, token).await.map(drop)
    }

    /// Stores one part, instead of the one with the same number. `bytes_max` bounds the whole file.
    ///
    /// # Errors
    /// As [`Registry::put_file`], and when the parts are more than the workspace has room for; the other parts stay.
    pub async fn put_part(
        &self,
        place: FilePlace<'_>,
        token: &str,
        number: u32,
        bytes_max: u64,
        content: Content,
    ) -> Result<PackageFile, ApiError> {
        self.check_part(place, token, number).await?;
        let part = self.receive(place.workspace, content).await?;
        let _turn = self.upload_turns.of(place.workspace, token).await;
        let mut upload = self.upload(place, token).await?;
        let before = upload.counted_bytes();
        upload.parts.insert(number, part.clone());
        (upload.last_updated_timestamp, upload.completed) = (now_ms(), false);
        refuse_large(upload.parts.values(), bytes_max)?;
        let tally = self.tallies.of(place.workspace);
        let room = tally.resize(Resource::ModelBytes, before, upload.counted_bytes())?;
        self.store.commit(Transaction::new().put_document(&upload_key(place, token), &upload)?).await?;
        room.keep();
        Ok(part)
    }

    /// Puts parts together to the file. Repeating it is no error: the parts stay until the version is finalized.
    ///
    /// # Errors
    /// When a part is missing or another one than the client means.
    pub async fn complete_upload(
        &self,
        place: FilePlace<'_>,
        token: &str,
        parts: &[PartRef],
        bytes_max: u64,
    ) -> Result<PackageFile, ApiError> {
        self.check_upload(place).await?;
        let upload = self.upload(place, token).await?;
        let parts = ordered(&upload, parts)?;
        refuse_large(parts.iter(), bytes_max)?;
        let blobs = Arc::clone(&self.blobs);
        let joined = tokio::task::spawn_blocking(move || join(&blobs, &parts)).await;
        let file = joined.map_err(|error| ApiError::internal("put parts together", &error))??;
        let _turn = self.turn(place.workspace, place.model).await;
        let _upload_turn = self.upload_turns.of(place.workspace, token).await;
        let upload = self.upload(place, token).await?;
        // The file takes their place: nobody needs room for both.
        let (tally, bytes) = (self.tallies.of(place.workspace), upload.counted_bytes());
        tally.subtract(Resource::ModelBytes, bytes);
        let completed = async {
            self.add_file(place, file.clone()).await?;
            let put =
                Transaction::new().put_document(&upload_key(place, token), &Upload { completed: true, ..upload })?;
            Ok(self.store.commit(put).await?)
        };
        let outcome: Result<_, ApiError> = completed.await;
        outcome.inspect_err(|_| tally.add(Resource::ModelBytes, bytes))?;
        Ok(file)
    }

    /// Ends an upload without a file. One that is not there is no error.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn abort_upload(&self, place: FilePlace<'_>, token: &str) -> Result<(), ApiError> {
        if token != upload_token(place) {
            return Ok(());
        }
        Ok(self.forget_upload(&upload_key(place, token), |_| true).await?)
    }

    /// Forgets an upload with the count of its parts, if it is still one of those meant.
    async fn forget_upload(&self, key: &str, meant: impl Fn(&Upload) -> bool) -> Result<(), StoreError> {
        let Some((workspace, token)) = of_key(key) else { return Ok(()) };
        let _turn = self.upload_turns.of(workspace, token).await;
        let Some(upload) = read_document::<Upload>(&self.store, key.to_owned()).await?.filter(meant) else {
            return Ok(());
        };
        self.store.commit(Transaction::new().delete_document(key)).await?;
        self.tallies.of(workspace).subtract(Resource::ModelBytes, upload.counted_bytes());
        Ok(())
    }

    async fn upload(&self, place: FilePlace<'_>, token: &str) -> Result<Upload, ApiError> {
        let upload = match token == upload_token(place) {
            true => read_document(&self.store, upload_key(place, token)).await?,
            false => None,
        };
        upload.ok_or_else(|| ApiError::missing(format!("There is no upload of '{}' under this token.", place.path)))
    }

    /// Ends the uploads of a version that takes no more files.
    pub(super) async fn end_uploads(&self, workspace: WorkspaceId, model: &str, version: u64) -> Result<(), ApiError> {
        let (store, model) = (Arc::clone(&self.store), model.to_owned());
        let find = move || {
            let mut ended = Vec::new();
            visit_documents(&*store, &format!("upload/{workspace}/"), |key, upload: Upload| {
                if upload.model == model && upload.version == version {
                    ended.push(key.to_owned());
                }
                Ok::<_, StoreError>(())
            })?;
            Ok::<_, StoreError>(ended)
        };
        let ended = tokio::task::spawn_blocking(find).await;
        for key in ended.map_err(|error| ApiError::internal("find uploads", &error))?? {
            self.forget_upload(&key, |_| true).await?;
        }
        Ok(())
    }

    /// Forgets the uploads whose parts the sweep of files takes.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn sweep_uploads(&self) -> Result<(), StoreError> {
        let store = Arc::clone(&self.store);
        let latest = now_ms().saturating_sub(PARTS_AGE_MAX.as_millis() as u64);
        let find = move || {
            let mut old = Vec::new();
            visit_documents(&*store, "upload/", |key, upload: Upload| {
                if upload.last_updated_timestamp < latest {
                    old.push(key.to_owned());
                }
                Ok::<_, StoreError>(())
            })?;
            Ok::<_, StoreError>(old)
        };
        let old = tokio::task::spawn_blocking(find).await;
        for key in old.map_err(|error| StoreError::Unavailable(Arc::new(error)))?? {
            self.forget_upload(&key, |upload| upload.last_updated_timestamp < latest).await?;
        }
        Ok(())
    }
}

/// An upload's name follows from its file, so that a client that begins again finds its parts. Whoever knows it needs the
/// right to fill the version all the same.
fn upload_token(place: FilePlace<'_>) -> String {
    let FilePlace { workspace, model, version, path } = place;
    blake3::hash(format!("{workspace}\n{model}\n{version}\n{path}").as_bytes()).to_hex()[..32].to_owned()
}

fn upload_key(place: FilePlace<'_>, token: &str) -> String {
    format!("upload/{}/{token}", place.workspace)
}

/// Workspace and token of a key that [`upload_key`] made.
fn of_key(key: &str) -> Option<(WorkspaceId, &str)> {
    let (workspace, token) = key.strip_prefix("upload/")?.split_once('/')?;
    Some((WorkspaceId(workspace.parse().ok()?), token))
}

fn refuse_large<'a>(parts: impl Iterator<Item = &'a PackageFile>, bytes_max: u64) -> Result<(), ApiError> {
    let bytes = parts.fold(0_u64, |sum, part| sum.saturating_add(part.bytes));
    if bytes > bytes_max {
        let message = format!("the file's parts have {bytes} bytes together; the limit is {bytes_max}");
        return Err(ApiError::invalid(message).with_status(413));
    }
    Ok(())
}

/// The parts that a client names, in their order.
fn ordered(upload: &Upload, named: &[PartRef]) -> Result<Vec<PackageFile>, ApiError> {
    let named: BTreeMap<u32, &str> = named.iter().map(|part| (part.part_number, part.etag.trim_matches('"'))).collect();
    if named.is_empty() {
        return Err(ApiError::invalid("'parts' is empty: name the parts of the file with their etags"));
    }
    let mut parts = Vec::with_capacity(named.len());
    for (expected, (number, etag)) in (1..).zip(named) {
        if number != expected {
            return Err(ApiError::invalid(format!("part {expected} is not named: a file's parts are numbered from 1")));
        }
        match upload.parts.get(&number) {
            Some(part) if part.digest.to_string() == etag => parts.push(part.clone()),
            Some(_) => return Err(conflict(format!("part {number} is another one than '{etag}': send it again"))),
            None => return Err(conflict(format!("part {number} has not arrived: send it"))),
        }
    }
    Ok(parts)
}

/// Blocks.
fn receive(blobs: &Blobs, content: Content, mut room: Reserved) -> Result<PackageFile, ApiError> {
    let Content { mut chunks, expected } = content;
    let (mut sha256, mut md5) = (expected.sha256.map(|_| Sha256::new()), expected.md5.map(|_| Md5::new()));
    let mut writer = blobs.writer()?;
    while let Some(chunk) = chunks.blocking_recv() {
        let chunk = chunk?;
        room.grow(chunk.len() as u64)?;
        if let Some(hasher) = &mut sha256 {
            hasher.update(&chunk);
        }
        if let Some(hasher) = &mut md5 {
            hasher.update(&chunk);
        }
        writer.write_all(&chunk).map_err(|error| ApiError::internal("keep a file", &error))?;
    }
    let differs = |what: &str| {
        ApiError::invalid(format!("the content that arrived has another {what} than was sent along: send it again"))
    };
    // Before it is published: a file that arrived wrong leaves nothing.
    if sha256.map(|hasher| <[u8; 32]>::from(hasher.finalize())) != expected.sha256 {
        return Err(differs("SHA-256"));
    }
    if md5.map(|hasher| <[u8; 16]>::from(hasher.finalize())) != expected.md5 {
        return Err(differs("MD5"));
    }
    let (digest, bytes) = writer.finish()?;
    Ok(PackageFile { digest, bytes })
}

/// Blocks.
fn join(blobs: &Blobs, parts: &[PackageFile]) -> Result<PackageFile, ApiError> {
    let mut writer = blobs.writer()?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let failed = |error: io::Error| ApiError::internal("put parts together", &error);
    for (number, part) in (1..).zip(parts) {
        let expired = |_| conflict(format!("part {number} is no longer kept, for it came a day ago: send it again"));
        let mut reader = blobs.reader(&part.digest).map_err(expired)?;
        loop {
            match reader.read(&mut chunk) {
                Ok(0) => break,
                Ok(bytes) => writer.write_all(&chunk[..bytes]).map_err(failed)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
    let (digest, bytes) = writer.finish()?;
    Ok(PackageFile { digest, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers<'a>(sent: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<&'a str> {
        move |name| sent.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    const SHA: &str = "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";

    #[test]
    fn checksums_are_read_in_all_their_forms() {
        let hello = Some(<[u8; 32]>::from(Sha256::digest(b"hello")));
        let hex = hex::encode(Sha256::digest(b"hello"));
        let (plain, structured) = (format!("md5=xx, SHA-256={SHA}"), format!("sha-256=:{SHA}:"));
        for sent in [("x-content-sha256", hex.as_str()), ("digest", &plain), ("content-digest", &structured)] {
            assert_eq!(Expected::read(headers(&[sent])).unwrap().sha256, hello, "{sent:?}");
        }
        let md5 = Expected::read(headers(&[("content-md5", "XUFAKrxLKna5cZ2REBfFkg==")])).unwrap().md5;
        assert_eq!(md5, Some(Md5::digest(b"hello").into()));
        assert_eq!(Expected::read(headers(&[])).unwrap(), Expected::default());
        for sent in [("x-content-sha256", "abc"), ("digest", "sha-256=abc"), ("content-md5", "abc")] {
            assert!(Expected::read(headers(&[sent])).unwrap_err().message.contains("abc"), "{sent:?}");
        }
    }

    #[test]
    fn what_arrives_otherwise_than_announced_or_breaks_off_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), crate::seal::keyring::Keyring::for_tests(dir.path())).unwrap();
        let send = |chunks: Vec<Result<Bytes, ApiError>>, expected: Expected| {
            let (sender, chunks_in) = mpsc::channel(8);
            chunks.into_iter().for_each(|chunk| sender.try_send(chunk).unwrap());
            drop(sender);
            let tally = crate::access::Tallies::new(crate::access::quota::tests::PLENTY).of(WorkspaceId(1));
            let room = tally.reserve(Resource::ModelBytes, 0).unwrap();
            receive(&blobs, Content { chunks: chunks_in, expected }, room)
        };
        let hello = || vec![Ok(Bytes::from_static(b"hel")), Ok(Bytes::from_static(b"lo"))];
        let sha = |content: &[u8]| Expected { sha256: Some(Sha256::digest(content).into()), md5: None };
        let md5 = |content: &[u8]| Expected { sha256: None, md5: Some(Md5::digest(content).into()) };
        assert!(send(hello(), sha(b"other")).unwrap_err().message.contains("SHA-256"));
        assert!(send(hello(), md5(b"other")).unwrap_err().message.contains("MD5"));
        let mut broken = hello();
        broken.push(Err(ApiError::invalid("broke off")));
        assert!(send(broken, Expected::default()).is_err());
        assert!(!blobs.contains(&Digest::of(b"hello")));
        assert_eq!(send(hello(), sha(b"hello")).unwrap().bytes, 5);
        assert_eq!(send(hello(), md5(b"hello")).unwrap().digest, Digest::of(b"hello"));
    }

    #[test]
    fn a_file_needs_all_parts_as_they_arrived() {
        let part = |content: &[u8]| PackageFile { digest: Digest::of(content), bytes: content.len() as u64 };
        let parts = BTreeMap::from([(1, part(b"a")), (2, part(b"b")), (9, part(b"left over"))]);
        let upload = Upload { model: String::new(), version: 1, last_updated_timestamp: 0, parts, completed: false };
        let named = |numbers: &[(u32, &[u8])]| -> Vec<PartRef> {
            let name = |(number, content): &(u32, &[u8])| PartRef {
                part_number: *number,
                etag: format!("\"{}\"", Digest::of(content)),
            };
            numbers.iter().map(name).collect()
        };
        let found = ordered(&upload, &named(&[(2, b"b"), (1, b"a")])).unwrap();
        assert_eq!(found, [part(b"a"), part(b"b")]);
        let refusal = |numbers: &[(u32, &[u8])]| ordered(&upload, &named(numbers)).unwrap_err().message;
        assert!(refusal(&[]).contains("'parts' is empty"));
        assert!(refusal(&[(2, b"b")]).contains("part 1 is not named"));
        assert!(refusal(&[(1, b"x")]).contains("part 1 is another one"));
        assert!(refusal(&[(1, b"a"), (2, b"b"), (3, b"c")]).contains("part 3 has not arrived"));
    }
}
