//! Large immutable things as files named by their SHA-256: `<dir>/sha256/<first two digits>/<digest>`.
//!
//! What a put returns is durable, so the order is always: put the blob, then commit its digest to the state store.
//! Nothing here counts references: [`Blobs::sweep`] removes what the state no longer names.
//!
//! Every function blocks on disk, for as long as the file is large: call them from `spawn_blocking` or a deploy thread.
//! Files have mode 0600, directories 0700.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use super::{create_dir_durably, sync};

/// Most bytes that [`Blobs::read`] takes into memory: ONNX files end at protobuf's 2 GiB. Larger ones are mapped.
pub const READ_BYTES_MAX: u64 = 2 << 30;

/// Bytes per read and hash step: large enough that system calls do not count.
const CHUNK_BYTES: usize = 256 << 10;

/// A directory of blobs. One value per directory and process: the lock between put and sweep is inside.
pub struct Blobs {
    /// `<dir>/sha256`.
    published: PathBuf,
    /// `<dir>/tmp`: what is being written. Beside `published`, so that a rename moves a blob there in one step.
    unpublished: PathBuf,
    /// Held for each publication and each removal, so that a put that finds its blob there keeps it.
    publication: Mutex<()>,
}

/// Why a blob could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is no such blob.
    #[error("find blob {digest}")]
    Missing {
        /// Which one.
        digest: Digest,
    },
    /// The file's content has another digest. Putting the right content again repairs it.
    #[error("verify blob {digest}: its content has changed")]
    Corrupt {
        /// Which one.
        digest: Digest,
    },
    /// The blob is too large to read into memory.
    #[error("read blob {digest}: {bytes} bytes are more than the allowed {max}")]
    TooLarge {
        /// Which one.
        digest: Digest,
        /// Its size.
        bytes: u64,
        /// [`READ_BYTES_MAX`].
        max: u64,
    },
    /// The file system refused.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
}

impl BlobError {
    /// For `map_err`: names what was tried on which path.
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// The same for a path that a digest stands for: not found is an answer of its own.
    fn of(action: &'static str, digest: Digest, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { digest },
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }
}

/// What [`Blobs::sweep`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs and abandoned temporary files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Blobs {
    /// Opens the blobs in `dir`, or creates it durably. Blocks.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(dir: &Path) -> Result<Self, BlobError> {
        let (published, unpublished) = (dir.join("sha256"), dir.join("tmp"));
        for dir in [&published, &unpublished] {
            create_dir_durably(dir).map_err(BlobError::io("create", dir))?;
        }
        Ok(Self { published, unpublished, publication: Mutex::new(()) })
    }

    /// Stores the bytes; durable on return. Storing what is there already is no error. Blocks.
    ///
    /// # Errors
    /// `Io`; nothing is published then.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let mut writer = self.writer()?;
        writer.write_all(bytes).map_err(BlobError::io("write", &writer.path))?;
        Ok(writer.finish()?.0)
    }

    /// Stores a copy of the file and returns its digest and its size in bytes; durable on return. Blocks.
    ///
    /// It is a copy, hashed on the way, because whoever has the original could change a linked file after it was hashed.
    /// To store an upload without a copy, write it to a [`Blobs::writer`].
    ///
    /// # Errors
    /// `Io`; nothing is published then.
    pub fn put_file(&self, path: &Path) -> Result<(Digest, u64), BlobError> {
        let mut source = File::open(path).map_err(BlobError::io("open", path))?;
        let mut writer = self.writer()?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match read_some(&mut source, &mut chunk).map_err(BlobError::io("read", path))? {
                [] => return writer.finish(),
                bytes => writer.write_all(bytes).map_err(BlobError::io("write", &writer.path))?,
            }
        }
    }

    /// A blob in the making. Nothing is published before [`BlobWriter::finish`]; dropped without it, nothing is left.
    ///
    /// # Errors
    /// `Io`.
    pub fn writer(&self) -> Result<BlobWriter<'_>, BlobError> {
        let path = self.unpublished.join(format!("{:016x}", fastrand::u64(..)));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(BlobError::io("create", &path))?;
        Ok(BlobWriter { blobs: self, path, file, hasher: Sha256::new(), bytes: 0 })
    }

    /// Where the blob is, if it is there. The file must not be changed; its content is not verified.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.published.join(&name[..2]).join(name)
    }

    /// Whether there is such a blob, by its name alone. Blocks.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// The content, to be read in pieces; it is not verified. Blocks.
    ///
    /// # Errors
    /// `Missing`, `Io`.
    pub fn reader(&self, digest: &Digest) -> Result<File, BlobError> {
        let path = self.path(digest);
        File::open(&path).map_err(BlobError::of("open", *digest, &path))
    }

    /// The verified content; at most [`READ_BYTES_MAX`]. Blocks.
    ///
    /// # Errors
    /// `Missing`, `Corrupt`, `TooLarge`, `Io`.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>, BlobError> {
        let path = self.path(digest);
        let file = File::open(&path).map_err(BlobError::of("open", *digest, &path))?;
        let bytes = file.metadata().map_err(BlobError::io("read", &path))?.len();
        if bytes > READ_BYTES_MAX {
            return Err(BlobError::TooLarge { digest: *digest, bytes, max: READ_BYTES_MAX });
        }
        let mut content = Vec::new();
        file.take(READ_BYTES_MAX).read_to_end(&mut content).map_err(BlobError::io("read", &path))?;
        if Digest::of(&content) == *digest { Ok(content) } else { Err(BlobError::Corrupt { digest: *digest }) }
    }

    /// Reads the blob through, in constant memory, and returns its size in bytes. Blocks.
    ///
    /// # Errors
    /// `Missing`, `Corrupt`, `Io`.
    pub fn verify(&self, digest: &Digest) -> Result<u64, BlobError> {
        let path = self.path(digest);
        let mut file = File::open(&path).map_err(BlobError::of("open", *digest, &path))?;
        let (mut hasher, mut total_bytes) = (Sha256::new(), 0);
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match read_some(&mut file, &mut chunk).map_err(BlobError::io("read", &path))? {
                [] => break,
                bytes => {
                    hasher.update(bytes);
                    total_bytes += bytes.len() as u64;
                }
            }
        }
        let found = Digest(hasher.finalize().into());
        if found == *digest { Ok(total_bytes) } else { Err(BlobError::Corrupt { digest: *digest }) }
    }

    /// Removes the blobs that are not in `keep` and were last put longer than `older_than` ago, and temporary files as
    /// old. `older_than` is the time between a put and the commit of its digest, generously: 24 hours. Blobs in use
    /// stay readable for who has them open. Removals are not synced: what a power loss brings back, the next sweep
    /// removes. Blocks.
    ///
    /// # Errors
    /// `Io`; what was removed before it stays removed.
    pub fn sweep(&self, keep: &HashSet<Digest>, older_than: Duration) -> Result<Swept, BlobError> {
        let mut swept = Swept::default();
        for shard in entries(&self.published)?.into_iter().filter(|path| path.is_dir()) {
            for path in entries(&shard)? {
                // What is not named by a digest is not ours to remove.
                if file_digest(&path).is_some_and(|digest| !keep.contains(&digest)) {
                    self.remove_old(&path, older_than, &mut swept)?;
                }
            }
        }
        for path in entries(&self.unpublished)? {
            self.remove_old(&path, older_than, &mut swept)?;
        }
        Ok(swept)
    }

    fn remove_old(&self, path: &Path, older_than: Duration, swept: &mut Swept) -> Result<(), BlobError> {
        let _publication = self.publication.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = fs::metadata(path).and_then(|metadata| {
            // A time in the future is a clock that was set back; then the file counts as new.
            let age = SystemTime::now().duration_since(metadata.modified()?).unwrap_or_default();
            if age < older_than {
                return Ok(None);
            }
            fs::remove_file(path).map(|()| Some(metadata.len()))
        });
        match removed {
            Ok(Some(bytes)) => {
                swept.files += 1;
                swept.bytes += bytes;
                Ok(())
            }
            Ok(None) => Ok(()),
            // A writer finished or gave up since the directory was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(BlobError::io("remove", path)(error)),
        }
    }
}

/// Takes a blob's bytes as they come, hashing on the way. Writes block on disk.
pub struct BlobWriter<'a> {
    blobs: &'a Blobs,
    path: PathBuf,
    file: File,
    hasher: Sha256,
    bytes: u64,
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobWriter<'_> {
    /// Publishes the blob and returns its digest and its size in bytes; durable on return. Blocks.
    ///
    /// # Errors
    /// `Io`; nothing is published then.
    pub fn finish(mut self) -> Result<(Digest, u64), BlobError> {
        let digest = Digest(self.hasher.finalize_reset().into());
        let path = self.blobs.path(&digest);
        let dir = super::parent_of(&path);
        create_dir_durably(dir).map_err(BlobError::io("create", dir))?;
        // A good copy that is there already stays: graphs may have it mapped. A damaged one is replaced.
        let present = self.blobs.verify(&digest).is_ok();
        if !present {
            // Here, because it may take seconds and other puts need the lock; the sync below then finds nothing to do.
            self.file.sync_all().map_err(BlobError::io("sync", &self.path))?;
        }
        let publication = self.blobs.publication.lock().unwrap_or_else(PoisonError::into_inner);
        // The new time keeps a sweep from taking it before the caller commits the digest. Gone since it was verified,
        // or refused for another reason: the rename does it as well.
        let kept = present && File::open(&path).and_then(|file| file.set_modified(SystemTime::now())).is_ok();
        if !kept {
            self.file.sync_all().map_err(BlobError::io("sync", &self.path))?;
            fs::rename(&self.path, &path).map_err(BlobError::io("publish", &path))?;
        }
        drop(publication);
        // Also when it was there: the put that published it may not have come to this line yet.
        sync(dir).map_err(BlobError::io("sync", dir))?;
        Ok((digest, self.bytes))
    }
}

impl Drop for BlobWriter<'_> {
    fn drop(&mut self) {
        // After a publication by rename there is nothing to remove. What an error leaves, a sweep removes.
        let _ = fs::remove_file(&self.path);
    }
}

/// A SHA-256. Prints as 64 hex digits, parses these with or without `sha256:` before them, and serializes as a string.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of the bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// The text is not 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parse a SHA-256 digest: 64 hex digits expected, optionally after \"sha256:\"")]
pub struct InvalidDigest;

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let mut bytes = [0; 32];
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| InvalidDigest)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Owned, because not every format can lend its text.
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The bytes that one read brought; none at the end of the file.
fn read_some<'a>(file: &mut File, chunk: &'a mut [u8]) -> io::Result<&'a [u8]> {
    loop {
        match file.read(chunk) {
            Ok(bytes) => return Ok(&chunk[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, BlobError> {
    let paths = fs::read_dir(dir).and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    paths.map_err(BlobError::io("list", dir))
}

fn file_digest(path: &Path) -> Option<Digest> {
    path.file_name()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    //! Shown on real files in a temporary directory; durability itself (the fsyncs) cannot be seen from here.

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NO_AGE: Duration = Duration::ZERO;
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&dir.path().join("state/blobs")).unwrap();
        (dir, blobs)
    }

    fn unpublished_len(blobs: &Blobs) -> usize {
        entries(&blobs.unpublished).unwrap().len()
    }

    #[test]
    fn what_is_put_is_read_back_under_its_digest() {
        let (_dir, blobs) = blobs();
        let digest = blobs.put_bytes(b"hello").unwrap();
        assert_eq!(digest.to_string(), "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        assert!(blobs.path(&digest).ends_with(format!("sha256/2c/{digest}")));
        assert!(blobs.contains(&digest));
        assert_eq!(blobs.read(&digest).unwrap(), b"hello");
        assert_eq!(blobs.verify(&digest).unwrap(), 5);
        assert_eq!(blobs.put_bytes(b"hello").unwrap(), digest, "a second put is no error");
        assert_eq!(unpublished_len(&blobs), 0);
    }

    #[test]
    fn a_file_is_copied_and_the_original_stays() {
        let (dir, blobs) = blobs();
        let content: Vec<u8> = (0..3 * CHUNK_BYTES + 17).map(|at| (at % 251) as u8).collect();
        let original = dir.path().join("model.onnx");
        fs::write(&original, &content).unwrap();

        let (digest, bytes) = blobs.put_file(&original).unwrap();
        fs::write(&original, b"changed by its owner").unwrap();

        assert_eq!((digest, bytes), (Digest::of(&content), content.len() as u64));
        assert_eq!(blobs.read(&digest).unwrap(), content);
    }

    #[test]
    fn only_the_owner_may_look() {
        let (_dir, blobs) = blobs();
        let path = blobs.path(&blobs.put_bytes(b"secret").unwrap());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        for dir in path.ancestors().skip(1).take(4) {
            assert_eq!(mode(dir), 0o700, "{}", dir.display());
        }
    }

    #[test]
    fn an_absent_blob_is_missing_and_an_abandoned_one_leaves_nothing() {
        let (dir, blobs) = blobs();
        let digest = Digest::of(b"never put");
        let mut writer = blobs.writer().unwrap();
        writer.write_all(b"never put").unwrap();
        drop(writer);

        assert!(!blobs.contains(&digest));
        assert!(matches!(blobs.read(&digest), Err(BlobError::Missing { digest: named }) if named == digest));
        assert!(matches!(blobs.verify(&digest), Err(BlobError::Missing { .. })));
        assert!(matches!(blobs.put_file(&dir.path().join("absent")), Err(BlobError::Io { .. })));
        assert_eq!(unpublished_len(&blobs), 0);
    }

    #[test]
    fn a_changed_blob_is_found_and_the_next_put_repairs_it() {
        let (_dir, blobs) = blobs();
        let digest = blobs.put_bytes(b"weights").unwrap();
        fs::write(blobs.path(&digest), b"Weights").unwrap();
        assert!(matches!(blobs.read(&digest), Err(BlobError::Corrupt { .. })));
        assert!(matches!(blobs.verify(&digest), Err(BlobError::Corrupt { .. })));

        blobs.put_bytes(b"weights").unwrap();
        assert_eq!(blobs.read(&digest).unwrap(), b"weights");
    }

    #[test]
    fn a_sweep_takes_what_is_old_and_not_kept() {
        let (_dir, blobs) = blobs();
        let kept = blobs.put_bytes(b"kept").unwrap();
        let dropped = blobs.put_bytes(b"dropped").unwrap();
        fs::write(blobs.unpublished.join("abandoned"), b"12").unwrap();
        fs::write(blobs.published.join("note.txt"), b"not ours").unwrap();

        assert_eq!(blobs.sweep(&HashSet::from([kept]), DAY).unwrap(), Swept::default(), "all are too new");
        let swept = blobs.sweep(&HashSet::from([kept]), NO_AGE).unwrap();

        assert_eq!(swept, Swept { files: 2, bytes: 9 });
        assert!(blobs.contains(&kept) && !blobs.contains(&dropped));
        assert!(blobs.published.join("note.txt").exists());
    }

    #[test]
    fn a_second_put_makes_an_old_blob_new_for_the_sweep() {
        let (_dir, blobs) = blobs();
        let digest = blobs.put_bytes(b"again").unwrap();
        let set_old = || File::open(blobs.path(&digest)).unwrap().set_modified(SystemTime::now() - 2 * DAY).unwrap();

        set_old();
        blobs.put_bytes(b"again").unwrap();
        assert_eq!(blobs.sweep(&HashSet::new(), DAY).unwrap().files, 0);

        set_old();
        assert_eq!(blobs.sweep(&HashSet::new(), DAY).unwrap().files, 1);
    }

    #[test]
    fn puts_of_one_content_at_once_all_succeed_while_a_sweep_runs() {
        let (_dir, blobs) = blobs();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for number in 0..20_u8 {
                        let digest = blobs.put_bytes(&[number]).unwrap();
                        assert_eq!(blobs.read(&digest).unwrap(), [number]);
                    }
                });
            }
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(blobs.sweep(&HashSet::new(), DAY).unwrap().files, 0)));
        });
        assert_eq!(unpublished_len(&blobs), 0);
    }

    #[test]
    fn digests_read_and_print() {
        let digest = Digest::of(b"x");
        let text = digest.to_string();
        assert_eq!(text.parse(), Ok(digest));
        assert_eq!(format!("sha256:{text}").parse(), Ok(digest));
        for wrong in ["", "sha256:", &text[1..], &format!("{text}00"), &format!("md5:{text}"), &"g".repeat(64)] {
            assert_eq!(wrong.parse::<Digest>(), Err(InvalidDigest), "{wrong}");
        }
        assert_eq!(serde_json::to_string(&digest).unwrap(), format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Digest>(&format!("\"{text}\"")).unwrap(), digest);
        assert!(serde_json::from_str::<Digest>("\"12\"").is_err());
    }
}
