//! Sealed files that are written as they come and read at any place.
//!
//! ```text
//! "TSRSEAL1" │ key id 4 │ salt 24 │ length u64 LE │ tag 16 │ chunk 0 │ tag │ chunk 1 │ tag │ …
//! ```
//!
//! A chunk holds 64 KiB, the last one what is left. The stream's own key is derived from the data key and the salt. A chunk
//! is sealed with its number as nonce. The header's tag covers the header and the stream's name, with a nonce that no
//! chunk has; it is written last, because the name, a digest, and the length are known only then. So a stream that was
//! cut, that has another's chunk, or that lies under another name does not open.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ring::aead::{Aad, LessSafeKey, Tag};

use super::keyring::Keyring;
use super::{KEY_ID_BYTES, Key, KeyId, SALT_BYTES, SealError, TAG_BYTES, Use, nonce, random};

/// First bytes of a sealed file.
const MARK: [u8; 8] = *b"TSRSEAL1";

const SALT_AT: usize = MARK.len() + KEY_ID_BYTES;
const LENGTH_AT: usize = SALT_AT + SALT_BYTES;
const TAG_AT: usize = LENGTH_AT + 8;
const HEADER_BYTES: usize = TAG_AT + TAG_BYTES;

/// What one tag covers. Large enough that cipher and system calls run at full speed, small enough to read a little.
const CHUNK_BYTES: usize = 64 << 10;

/// Nonce of the header: no stream has as many chunks.
const HEADER_NUMBER: u64 = u64::MAX;

/// Seals what is written to it into a file.
pub struct SealedWriter {
    file: File,
    header: [u8; HEADER_BYTES],
    cipher: LessSafeKey,
    /// The chunk that is being filled.
    chunk: Vec<u8>,
    chunks: u64,
    bytes: u64,
    /// Kept so that a rotation knows of this stream.
    _key: Arc<Key>,
}

impl SealedWriter {
    /// Begins to write a stream with a key, at the start of an empty file.
    ///
    /// # Errors
    /// When there is no randomness or the file cannot be written.
    pub fn new(mut file: File, key: Arc<Key>) -> io::Result<SealedWriter> {
        let salt = random().map_err(io::Error::other)?;
        let cipher = key.derive(Use::Stream, &salt).map_err(|_| refused())?;
        // Without a mark until it is finished.
        file.write_all(&[0; HEADER_BYTES])?;
        let mut header = [0; HEADER_BYTES];
        header[..MARK.len()].copy_from_slice(&MARK);
        header[MARK.len()..SALT_AT].copy_from_slice(&key.id.0);
        header[SALT_AT..LENGTH_AT].copy_from_slice(&salt);
        let chunk = Vec::with_capacity(CHUNK_BYTES + TAG_BYTES);
        Ok(SealedWriter { file, header, cipher, chunk, chunks: 0, bytes: 0, _key: key })
    }

    /// Ends the stream and gives it its name. Gives the file, which is not synced.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(mut self, name: &str) -> io::Result<File> {
        self.write_chunk()?;
        self.header[LENGTH_AT..TAG_AT].copy_from_slice(&self.bytes.to_le_bytes());
        let bound = bound_to(&self.header, name);
        let tag = self.cipher.seal_in_place_separate_tag(nonce(HEADER_NUMBER), Aad::from(bound), &mut []);
        self.header[TAG_AT..].copy_from_slice(tag.map_err(|_| refused())?.as_ref());
        self.file.write_all_at(&self.header, 0)?;
        Ok(self.file)
    }

    fn write_chunk(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let tag = self.cipher.seal_in_place_separate_tag(nonce(self.chunks), Aad::empty(), &mut self.chunk);
        self.chunk.extend(tag.map_err(|_| refused())?.as_ref());
        self.file.write_all(&self.chunk)?;
        self.chunk.clear();
        self.chunks += 1;
        Ok(())
    }
}

impl Write for SealedWriter {
    /// After an error the stream is lost: its key must not seal a chunk twice.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend(&bytes[..taken]);
        self.bytes += taken as u64;
        if self.chunk.len() == CHUNK_BYTES {
            self.write_chunk()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The plain content of a file that is sealed, or, in a home from before encryption, of one that is not.
pub enum Reader {
    /// A sealed one.
    Sealed(Box<SealedReader>),
    /// One from before.
    Plain(File, u64),
}

/// Opens a stream. A chunk is verified before any of it is given out.
pub struct SealedReader {
    file: File,
    cipher: LessSafeKey,
    name: String,
    /// Length of the plain content.
    bytes: u64,
    /// Where the next read begins, in the plain content.
    at: u64,
    /// The chunk that was opened last.
    chunk: Vec<u8>,
    chunk_number: Option<u64>,
}

/// Why a stream does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not what it should be, or its key is missing.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The file cannot be read.
    #[error("read the file")]
    Io(#[from] io::Error),
}

impl Reader {
    /// Opens a file under the name that it was sealed with.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(file: File, name: &str, keys: &Keyring) -> Result<Reader, OpenError> {
        let file_bytes = file.metadata()?.len();
        let Some(header) = read_header(&file)? else {
            keys.accept_unsealed(name)?;
            return Ok(Reader::Plain(file, file_bytes));
        };
        let damaged = || SealError::Damaged { what: name.to_owned() };
        let key = keys.key(key_of(&header), name)?;
        let (salt, length) = (header[SALT_AT..LENGTH_AT].try_into(), header[LENGTH_AT..TAG_AT].try_into());
        let (Ok(salt), Ok(length)) = (salt, length) else { return Err(damaged().into()) };
        let cipher = key.derive(Use::Stream, &salt).map_err(|_| damaged())?;
        let tag = Tag::try_from(&header[TAG_AT..]).map_err(|_| damaged())?;
        let bound = bound_to(&header, name);
        cipher
            .open_in_place_separate_tag(nonce(HEADER_NUMBER), Aad::from(bound), tag, &mut [], 0..)
            .map_err(|_| damaged())?;
        let bytes = u64::from_le_bytes(length);
        let tags = bytes.div_ceil(CHUNK_BYTES as u64) * TAG_BYTES as u64;
        if file_bytes != HEADER_BYTES as u64 + bytes + tags {
            return Err(damaged().into());
        }
        let (name, chunk) = (name.to_owned(), Vec::new());
        let sealed = SealedReader { file, cipher, name, bytes, at: 0, chunk, chunk_number: None };
        Ok(Reader::Sealed(Box::new(sealed)))
    }

    /// Length of the plain content, in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Reader::Sealed(sealed) => sealed.bytes,
            Reader::Plain(_, bytes) => *bytes,
        }
    }
}

/// The key that a file names; none when it is not sealed.
///
/// # Errors
/// When the file cannot be read.
pub fn stream_key(file: &File) -> io::Result<Option<KeyId>> {
    Ok(read_header(file)?.map(|header| key_of(&header)))
}

impl SealedReader {
    fn load(&mut self, number: u64) -> io::Result<()> {
        if self.chunk_number == Some(number) {
            return Ok(());
        }
        self.chunk_number = None;
        let start = number * CHUNK_BYTES as u64;
        let length = (self.bytes - start).min(CHUNK_BYTES as u64) as usize;
        self.chunk.resize(length + TAG_BYTES, 0);
        let place = HEADER_BYTES as u64 + number * (CHUNK_BYTES + TAG_BYTES) as u64;
        self.file.read_exact_at(&mut self.chunk, place)?;
        let opened = self.cipher.open_in_place(nonce(number), Aad::empty(), &mut self.chunk);
        opened
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, SealError::Damaged { what: self.name.clone() }))?;
        self.chunk.truncate(length);
        self.chunk_number = Some(number);
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let sealed = match self {
            Reader::Plain(file, _) => return file.read(into),
            Reader::Sealed(sealed) => sealed,
        };
        if sealed.at >= sealed.bytes || into.is_empty() {
            return Ok(0);
        }
        sealed.load(sealed.at / CHUNK_BYTES as u64)?;
        let rest = &sealed.chunk[(sealed.at % CHUNK_BYTES as u64) as usize..];
        let taken = rest.len().min(into.len());
        into[..taken].copy_from_slice(&rest[..taken]);
        sealed.at += taken as u64;
        Ok(taken)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let sealed = match self {
            Reader::Plain(file, _) => return file.seek(to),
            Reader::Sealed(sealed) => sealed,
        };
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(offset) => sealed.bytes.checked_add_signed(offset),
            SeekFrom::Current(offset) => sealed.at.checked_add_signed(offset),
        };
        sealed.at = at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a seek before the start"))?;
        Ok(sealed.at)
    }
}

fn read_header(file: &File) -> io::Result<Option<[u8; HEADER_BYTES]>> {
    let mut header = [0; HEADER_BYTES];
    match file.read_exact_at(&mut header, 0) {
        Ok(()) => Ok(header.starts_with(&MARK).then_some(header)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn key_of(header: &[u8; HEADER_BYTES]) -> KeyId {
    let mut id = [0; KEY_ID_BYTES];
    id.copy_from_slice(&header[MARK.len()..SALT_AT]);
    KeyId(id)
}

/// What the header's tag covers.
fn bound_to(header: &[u8; HEADER_BYTES], name: &str) -> Vec<u8> {
    [&header[..TAG_AT], name.as_bytes()].concat()
}

fn refused() -> io::Error {
    io::Error::other("the cipher refused a chunk")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    struct Fixture {
        folder: tempfile::TempDir,
        keys: Arc<Keyring>,
    }

    impl Fixture {
        fn new() -> Fixture {
            let folder = tempfile::tempdir().unwrap();
            let keys = Keyring::for_tests(folder.path());
            Fixture { folder, keys }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.path(name);
            let mut writer = SealedWriter::new(File::create(&path).unwrap(), self.keys.current()).unwrap();
            // In pieces that fit no chunk.
            content.chunks(10_007).for_each(|piece| writer.write_all(piece).unwrap());
            writer.finish(name).unwrap();
            path
        }

        fn open(&self, path: &Path, name: &str) -> Result<Reader, OpenError> {
            Reader::open(File::open(path).unwrap(), name, &self.keys)
        }

        fn read(&self, path: &Path, name: &str) -> Option<Vec<u8>> {
            let mut content = Vec::new();
            self.open(path, name).ok()?.read_to_end(&mut content).ok().map(|_| content)
        }
    }

    fn content(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn streams_of_every_length_come_back_whole_and_in_parts() {
        let fixture = Fixture::new();
        for bytes in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 100] {
            let content = content(bytes);
            let path = fixture.write("s", &content);
            assert_eq!(fixture.read(&path, "s"), Some(content.clone()), "{bytes}");
            let mut reader = fixture.open(&path, "s").unwrap();
            assert_eq!(reader.length(), bytes as u64);
            for at in [bytes / 2, 0, bytes.saturating_sub(1), bytes, bytes + 5] {
                reader.seek(SeekFrom::Start(at as u64)).unwrap();
                let mut part = vec![0; 100.min(bytes.saturating_sub(at))];
                reader.read_exact(&mut part).unwrap();
                assert_eq!(part, content.get(at..at + part.len()).unwrap_or_default());
            }
            assert!(reader.seek(SeekFrom::Current(i64::MIN)).is_err());
        }
    }

    #[test]
    fn no_byte_can_be_changed_and_nothing_cut_or_added() {
        let fixture = Fixture::new();
        let path = fixture.write("s", &content(CHUNK_BYTES + 300));
        let sealed = fs::read(&path).unwrap();
        let changed = fixture.path("changed");
        let refused = |bytes: &[u8]| {
            fs::write(&changed, bytes).unwrap();
            fixture.read(&changed, "s").is_none()
        };
        // The header byte by byte; of the chunks both ends and tags.
        let first_tag = HEADER_BYTES + CHUNK_BYTES;
        let places = (0..HEADER_BYTES + 2)
            .chain(first_tag - 1..first_tag + TAG_BYTES + 2)
            .chain(sealed.len() - TAG_BYTES - 1..sealed.len());
        for at in places {
            let mut damaged = sealed.clone();
            damaged[at] ^= 0x10;
            assert!(refused(&damaged), "byte {at}");
        }
        for cut in [0, 1, HEADER_BYTES - 1, HEADER_BYTES, first_tag + TAG_BYTES, sealed.len() - 1] {
            assert!(refused(&sealed[..cut]), "cut to {cut}");
        }
        assert!(refused(&[sealed.as_slice(), b"x"].concat()));
    }

    #[test]
    fn streams_and_their_chunks_cannot_be_swapped() {
        let fixture = Fixture::new();
        let (a, b) = (fixture.write("a", &content(2 * CHUNK_BYTES)), fixture.write("b", &content(2 * CHUNK_BYTES)));
        assert!(fixture.open(&a, "b").is_err(), "under another's name");
        let (first, second) = (HEADER_BYTES, HEADER_BYTES + CHUNK_BYTES + TAG_BYTES);
        let (mut bytes, other) = (fs::read(&a).unwrap(), fs::read(&b).unwrap());
        let whole = bytes.clone();
        bytes[first..second].copy_from_slice(&other[first..second]);
        fs::write(&a, &bytes).unwrap();
        assert!(fixture.read(&a, "a").is_none(), "another's chunk");
        bytes[first..second].copy_from_slice(&whole[second..]);
        bytes[second..].copy_from_slice(&whole[first..second]);
        fs::write(&a, &bytes).unwrap();
        assert!(fixture.read(&a, "a").is_none(), "its own chunks in another order");
    }

    #[test]
    fn another_homes_key_is_named_and_what_is_not_sealed_is_refused() {
        let (fixture, other) = (Fixture::new(), Fixture::new());
        let path = fixture.write("s", b"x");
        let key_id = stream_key(&File::open(&path).unwrap()).unwrap().unwrap();
        let error = other.open(&path, "s").err().unwrap();
        assert!(matches!(error, OpenError::Seal(SealError::MissingKey { key_id: named, .. }) if named == key_id));
        let plain = fixture.path("plain");
        for content in [b"".as_slice(), &content(1000)] {
            fs::write(&plain, content).unwrap();
            let error = fixture.open(&plain, "plain").err().unwrap();
            assert!(matches!(error, OpenError::Seal(SealError::Unsealed { .. })));
        }
        // One that was never finished has no mark.
        let mut writer = SealedWriter::new(File::create(&plain).unwrap(), fixture.keys.current()).unwrap();
        writer.write_all(&content(2 * CHUNK_BYTES)).unwrap();
        assert!(fixture.open(&plain, "plain").is_err());
    }
}
