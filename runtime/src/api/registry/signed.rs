//! Signed addresses: whoever has one may do one thing with one file for a short while, without a token. MLflow asks for them
//! where it does not use the Files API, and the Databricks SDK sends the parts of large files to them.
//!
//! The address says what is allowed and until when; a keyed hash over that makes it this server's.

use std::time::Duration;

use hyper::Method;
use hyper::header::{ETAG, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::routes::{Access, Route, handler};
use super::super::{Answer, Call, done};
use super::files::{self, Place};
use crate::catalog::WorkspaceId;
use crate::clock::now_ms;
use crate::deploy::package::PackageFile;
use crate::error::{ApiError, ErrorCode};
use crate::registry::uploads::FilePlace;

/// An address is good for so long, where the client does not ask for less or more.
const USUAL_AGE: Duration = Duration::from_secs(15 * 60);

/// And at most for so long.
const AGE_MAX: Duration = Duration::from_secs(3600);

const PATH: &str = "/api/2.0/fs/signed/Models/{catalog}/{schema}/{model}/{version}/{*path}";

pub(crate) const ROUTES: &[Route] = &[
    Route::change("signed.upload", Method::PUT, PATH, Access::Anyone, "Upload to a signed address", handler!(upload))
        .query::<Signed>()
        .takes_file(),
    Route::get("signed.download", PATH, Access::Anyone, "Download from a signed address", handler!(download))
        .query::<Signed>()
        .gives_file(),
    Route::change("signed.abort", Method::DELETE, PATH, Access::Anyone, "End an upload in parts", handler!(abort))
        .query::<Signed>(),
];

/// Makes and checks signatures.
pub struct Signer {
    key: [u8; 32],
}

/// What an address allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed<'a> {
    Upload,
    Download,
    Part { session: &'a str, number: u32 },
    Abort { session: &'a str },
}

impl Deed<'_> {
    /// As it stands in an address: method, name of the upload, number of the part.
    fn parts(&self) -> (&str, &str, u32) {
        match *self {
            Deed::Upload => ("PUT", "", 0),
            Deed::Download => ("GET", "", 0),
            Deed::Part { session, number } => ("PUT", session, number),
            Deed::Abort { session } => ("DELETE", session, 0),
        }
    }
}

impl Signer {
    /// With a key of the server's own.
    pub fn new(key: [u8; 32]) -> Signer {
        Signer { key }
    }

    fn sign(&self, workspace: WorkspaceId, place: &Place, deed: Deed<'_>, expires_ms: u64) -> blake3::Hash {
        let (method, session, number) = deed.parts();
        // Lines: no part can hold a line break, for paths of packages may not.
        let Place { model, version, path } = place;
        let text = format!("{method}\n{workspace}\n{model}\n{version}\n{path}\n{session}\n{number}\n{expires_ms}");
        blake3::keyed_hash(&self.key, text.as_bytes())
    }
}

/// The answer of those who ask for credentials of an object store: there is none.
#[derive(Serialize, JsonSchema)]
pub(super) struct Storage {
    storage_mode: &'static str,
    /// In ms since 1970.
    expiration_time: u64,
}

pub(super) fn storage() -> Storage {
    Storage { storage_mode: "DEFAULT_STORAGE", expiration_time: now_ms() + USUAL_AGE.as_millis() as u64 }
}

/// An address that allows the caller's workspace one thing, until `asked_end` if that is soon enough.
pub(super) fn address(call: &Call, place: &Place, deed: Deed<'_>, asked_end: Option<&str>) -> Result<String, ApiError> {
    crate::deploy::package::check_path(&place.path)?;
    let workspace = call.principal()?.workspace;
    let now = now_ms();
    let latest = now + AGE_MAX.as_millis() as u64;
    let expires_ms = match asked_end {
        None => now + USUAL_AGE.as_millis() as u64,
        Some(text) => parse_time(text)?.min(latest),
    };
    let signature = call.app.signer.sign(workspace, place, deed, expires_ms);
    let (_, session, number) = deed.parts();
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("workspace", &workspace.to_string())
        .append_pair("session", session)
        .append_pair("part", &number.to_string())
        .append_pair("expires", &expires_ms.to_string())
        .append_pair("signature", &signature.to_hex())
        .finish();
    let path = files::escaped(&files::location(&place.model, place.version), &place.path);
    Ok(format!("{}/api/2.0/fs/signed{path}?{query}", call.origin()))
}

fn parse_time(text: &str) -> Result<u64, ApiError> {
    let wrong = || ApiError::invalid(format!("expire_time '{text}' is not a time like 2027-01-31T12:00:00Z"));
    let time = humantime::parse_rfc3339_weak(text).map_err(|_| wrong())?;
    let since = time.duration_since(std::time::UNIX_EPOCH).map_err(|_| wrong())?;
    Ok(since.as_millis() as u64)
}

/// What an address holds after its question mark: what it allows, until when, and the hash over that.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "SignedAddress")]
struct Signed {
    workspace: u64,
    /// Name of an upload in parts, or empty.
    session: String,
    /// Number of a part, or 0.
    part: u32,
    /// In ms since 1970.
    expires: u64,
    signature: String,
}

/// What an address that was sent allows, if it is one of ours and still good.
struct Allowed {
    workspace: WorkspaceId,
    place: Place,
    session: String,
    part: u32,
}

impl Allowed {
    fn of(call: &Call) -> Result<Allowed, ApiError> {
        let refused =
            |why: &str| ApiError::new(ErrorCode::PermissionDenied, format!("this address {why}: ask for a new one"));
        let bad = || refused("was not signed by this server");
        let Signed { workspace, session, part, expires: expires_ms, signature } = call.query().map_err(|_| bad())?;
        let workspace = WorkspaceId(workspace);
        let place = files::place(call)?;
        let sent = blake3::Hash::from_hex(signature).map_err(|_| bad())?;
        let session = session.as_str();
        let deed = match call.head.method {
            Method::PUT if part == 0 => Deed::Upload,
            Method::PUT => Deed::Part { session, number: part },
            Method::DELETE => Deed::Abort { session },
            _ => Deed::Download,
        };
        // Hashes compare in constant time.
        if call.app.signer.sign(workspace, &place, deed, expires_ms) != sent {
            return Err(bad());
        }
        if now_ms() >= expires_ms {
            return Err(refused("has expired"));
        }
        Ok(Allowed { workspace, place, session: session.to_owned(), part })
    }

    fn file(&self) -> FilePlace<'_> {
        self.place.file(self.workspace)
    }
}

async fn upload(call: &mut Call) -> Result<Answer, ApiError> {
    let allowed = Allowed::of(call)?;
    let kept = match allowed.part {
        0 => files::receive_file(call, allowed.file()).await?,
        number => files::receive_part(call, allowed.file(), &allowed.session, number).await?,
    };
    Ok(with_etag(done()?, &kept))
}

/// Parts are put together by these.
fn with_etag(mut answer: Answer, kept: &PackageFile) -> Answer {
    if let Ok(value) = HeaderValue::from_str(&format!("\"{}\"", kept.digest)) {
        answer.headers_mut().insert(ETAG, value);
    }
    answer
}

async fn download(call: &Call) -> Result<Answer, ApiError> {
    let allowed = Allowed::of(call)?;
    files::send_file(call, allowed.file(), true).await
}

async fn abort(call: &Call) -> Result<Answer, ApiError> {
    let allowed = Allowed::of(call)?;
    call.app.control.registry.abort_upload(allowed.file(), &allowed.session).await?;
    done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_for_one_deed_one_file_one_workspace_and_one_time() {
        let signer = Signer::new([7; 32]);
        let place = |path: &str| Place { model: "a.b.c".to_owned(), version: 1, path: path.to_owned() };
        let sign = |workspace, path: &str, deed, end| signer.sign(WorkspaceId(workspace), &place(path), deed, end);
        let one = sign(1, "x", Deed::Upload, 5);
        assert_eq!(one, sign(1, "x", Deed::Upload, 5));
        for other in [
            sign(2, "x", Deed::Upload, 5),
            sign(1, "y", Deed::Upload, 5),
            sign(1, "x", Deed::Download, 5),
            sign(1, "x", Deed::Part { session: "", number: 1 }, 5),
            sign(1, "x", Deed::Abort { session: "" }, 5),
            sign(1, "x", Deed::Upload, 6),
            Signer::new([8; 32]).sign(WorkspaceId(1), &place("x"), Deed::Upload, 5),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn times_are_those_that_the_sdk_sends() {
        assert_eq!(parse_time("1970-01-01T00:00:01Z").unwrap(), 1000);
        assert!(parse_time("tomorrow").unwrap_err().message.contains("tomorrow"));
    }
}
