//! Rows that are in no part yet: a file of sealed frames, so that what waits survives `kill -9` and is not readable on the
//! disk. A frame is `length (4 bytes) · nonce (12) · AES-256-GCM of rows as postcard writes them`, bound to the file's number. A
//! frame that a crash tore fails its seal; it is the last one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::rows::Record;

/// A spill that rows are added to.
#[derive(Debug)]
pub(super) struct Spill {
    file: File,
    seal: Seal,
    bytes: u64,
    started: Instant,
}

/// The key of the frames of one file.
#[derive(Debug)]
struct Seal {
    key: LessSafeKey,
    number: u64,
}

impl Spill {
    pub(super) fn create(path: &Path, key: &[u8; 32], number: u64) -> io::Result<Spill> {
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
        Ok(Spill { file, seal: Seal::new(key, number)?, bytes: 0, started: Instant::now() })
    }

    pub(super) fn append(&mut self, records: &[Record]) -> io::Result<()> {
        let frame = self.seal.close(postcard::to_stdvec(records).map_err(io::Error::other)?)?;
        if let Err(error) = self.file.write_all(&frame) {
            // A full disk may have taken a part of it, and what follows must be readable.
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += frame.len() as u64;
        Ok(())
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Since it was begun.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }
}

/// All rows of a spill, and how many bytes at its end are no frame.
pub(super) fn read(path: &Path, key: &[u8; 32], number: u64) -> io::Result<(Vec<Record>, usize)> {
    let seal = Seal::new(key, number)?;
    let content = std::fs::read(path)?;
    let (mut rest, mut records) = (content.as_slice(), Vec::new());
    while let Some((frame, after)) = seal.open(rest) {
        records.extend(frame);
        rest = after;
    }
    Ok((records, rest.len()))
}

impl Seal {
    fn new(key: &[u8; 32], number: u64) -> io::Result<Seal> {
        let key = blake3::derive_key("tessera 2026-11 spilled usage rows, postcard", key);
        let key = UnboundKey::new(&AES_256_GCM, &key).map_err(io::Error::other)?;
        Ok(Seal { key: LessSafeKey::new(key), number })
    }

    fn close(&self, mut rows: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
        let aad = Aad::from(self.number.to_le_bytes());
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut rows)
            .map_err(io::Error::other)?;
        let length = u32::try_from(rows.len()).map_err(io::Error::other)?;
        Ok([length.to_le_bytes().as_slice(), &nonce, &rows].concat())
    }

    /// The first frame of `bytes` and what follows it.
    fn open<'a>(&self, bytes: &'a [u8]) -> Option<(Vec<Record>, &'a [u8])> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>()?;
        let (sealed, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let aad = Aad::from(self.number.to_le_bytes());
        let mut sealed = sealed.to_vec();
        let rows = self.key.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut sealed).ok()?;
        Some((postcard::from_bytes(rows).ok()?, rest))
    }
}
