//! Signatures of packages: who vouches for one, and whether this server believes them.
//!
//! A package's digest is the SHA-256 of what `sha256sum` prints of all its files, sorted by their paths, without the file
//! [`SIGNATURES`] itself. That file has one line for each signature: `ed25519`, the public key and the signature of
//! [`message`], both in Base64. A server that requires signatures has a file of the keys that it trusts: one line for each
//! with `ed25519`, the key in Base64 and, if wanted, whose it is; lines that begin with `#` say nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

use super::package::{PackageFile, check_path};
use crate::store::blobs::Blobs;

/// Name of the file with the signatures, at the top of a package.
pub const SIGNATURES: &str = "tessera.sig";

/// Largest file of signatures: hundreds of them.
const SIGNATURES_BYTES_MAX: u64 = 64 << 10;

const ALGORITHM: &str = "ed25519";

/// Bytes of a public key.
const KEY_BYTES: usize = 32;

/// What is signed: the digest of a package, in words that mean nothing else anywhere.
pub fn message(digest: &[u8; 32]) -> String {
    format!("tessera package sha256:{}\n", hex::encode(digest))
}

/// The digest of a package: `files` are the SHA-256 of its files in hex, by their paths.
pub fn digest_of(files: &BTreeMap<&str, String>) -> [u8; 32] {
    let mut list = String::new();
    for (path, digest) in files.iter().filter(|(path, _)| **path != SIGNATURES) {
        let _ = writeln!(list, "{digest}  {path}");
    }
    Sha256::digest(list).into()
}

/// Whose packages a server runs.
#[derive(Debug, Default)]
pub struct Trust {
    /// None: everybody's.
    keys: Option<Vec<Vec<u8>>>,
}

impl Trust {
    /// Trust in the keys of a file.
    ///
    /// # Errors
    /// When the file cannot be read, has a line of another form, or no key.
    pub fn in_keys_of(file: &Path) -> Result<Trust> {
        let shown = file.display();
        let text = fs::read_to_string(file).with_context(|| format!("failed to read the trusted keys in {shown}"))?;
        let mut keys = Vec::new();
        for (line, number) in
            text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty() && !line.starts_with('#'))
        {
            let key = match line.split_whitespace().collect::<Vec<_>>()[..] {
                [ALGORITHM, key, ..] => BASE64.decode(key).ok().filter(|key| key.len() == KEY_BYTES),
                _ => None,
            };
            keys.push(key.with_context(|| {
                format!("line {number} of {shown} is no key: it must be '{ALGORITHM}', the public key in Base64, and whose it is")
            })?);
        }
        ensure!(!keys.is_empty(), "{shown} has no key, so no package could be deployed");
        Ok(Trust { keys: Some(keys) })
    }

    /// Checks that somebody who is trusted has signed these files. Blocks.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn check(&self, files: &BTreeMap<String, PackageFile>, blobs: &Blobs) -> Result<(), String> {
        let Some(keys) = &self.keys else { return Ok(()) };
        // A version of an older server may have names that make the list of files ambiguous.
        files.keys().try_for_each(|path| check_path(path)).map_err(|error| error.to_string())?;
        let unsigned = "this server runs only packages that are signed by a key that it trusts, and this one";
        let file = files.get(SIGNATURES).filter(|file| file.bytes <= SIGNATURES_BYTES_MAX);
        let file =
            file.ok_or_else(|| format!("{unsigned} has no '{SIGNATURES}': make it with `tessera sign package`"))?;
        let content = blobs.read(&file.digest).map_err(|error| format!("failed to read '{SIGNATURES}': {error}"))?;
        let digests = files.iter().map(|(path, file)| (path.as_str(), file.digest.to_string())).collect();
        let message = message(&digest_of(&digests));
        let signatures = String::from_utf8_lossy(&content);
        let valid = signatures.lines().filter_map(Signature::read).filter(|signature| signature.is_of(&message));
        let signers: Vec<Signature> = valid.collect();
        match signers.iter().any(|signer| keys.contains(&signer.key)) {
            true => Ok(()),
            false if signers.is_empty() => Err(format!(
                "{unsigned} has no valid signature: its files have changed since it was signed, or were never"
            )),
            false => {
                let signers: Vec<String> = signers.iter().map(|signer| BASE64.encode(&signer.key)).collect();
                Err(format!("{unsigned} is signed by others: {}", signers.join(", ")))
            }
        }
    }
}

/// A line of the file of signatures.
#[derive(Debug)]
pub struct Signature {
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Signature {
    /// Reads a line; None for one of another form.
    pub fn read(line: &str) -> Option<Signature> {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [ALGORITHM, key, value] => {
                Some(Signature { key: BASE64.decode(key).ok()?, value: BASE64.decode(value).ok()? })
            }
            _ => None,
        }
    }

    /// Whether it was made of this message.
    pub fn is_of(&self, message: &str) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.key).verify(message.as_bytes(), &self.value).is_ok()
    }

    /// The public key, in Base64.
    pub fn key(&self) -> String {
        BASE64.encode(&self.key)
    }
}

/// A key that signs.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// A new key, as PEM (PKCS #8).
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<String> {
        let Ok(document) = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()) else {
            bail!("the system gives no random numbers to make a key of");
        };
        let text = BASE64.encode(document.as_ref());
        let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        Ok(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n")))
    }

    /// Reads a key from PEM, as [`SigningKey::generate`] or `openssl genpkey -algorithm ed25519` makes it.
    ///
    /// # Errors
    /// When it is no such key.
    pub fn from_pem(pem: &[u8]) -> Result<SigningKey> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).ok().context("it is no private key in PEM (PKCS #8)")?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der());
        Ok(SigningKey(pair.ok().context("it is no Ed25519 key; `tessera sign new-key` makes one")?))
    }

    /// The line of a file of trusted keys.
    pub fn public_line(&self) -> String {
        format!("{ALGORITHM} {}", BASE64.encode(self.0.public_key()))
    }

    /// The line of a file of signatures.
    pub fn sign(&self, message: &str) -> String {
        format!("{} {}", self.public_line(), BASE64.encode(self.0.sign(message.as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_files_and_its_key_alone() {
        let key = SigningKey::from_pem(SigningKey::generate().unwrap().as_bytes()).unwrap();
        let mut files = BTreeMap::from([("model.onnx", "aa".to_owned()), ("tessera.toml", "bb".to_owned())]);
        let line = key.sign(&message(&digest_of(&files)));
        let signature = Signature::read(&line).unwrap();
        assert!(signature.is_of(&message(&digest_of(&files))));
        assert_eq!(format!("{ALGORITHM} {}", signature.key()), key.public_line());

        // Signatures do not sign themselves, so that others can be added.
        files.insert(SIGNATURES, "cc".to_owned());
        assert!(signature.is_of(&message(&digest_of(&files))));
        for change in [("model.onnx", "ab"), ("more", "dd")] {
            let mut files = files.clone();
            files.insert(change.0, change.1.to_owned());
            assert!(!signature.is_of(&message(&digest_of(&files))), "{change:?}");
        }
        let other = SigningKey::from_pem(SigningKey::generate().unwrap().as_bytes()).unwrap();
        let forged = line.replace(&signature.key(), &other.public_line()[ALGORITHM.len() + 1..]);
        assert!(!Signature::read(&forged).unwrap().is_of(&message(&digest_of(&files))));
    }

    #[test]
    fn the_digest_is_that_of_what_sha256sum_prints() {
        // printf 'aa  a\nbb  b\n' | sha256sum
        let files = BTreeMap::from([("b", "bb".to_owned()), ("a", "aa".to_owned())]);
        assert_eq!(hex::encode(digest_of(&files)), "b862e08ce447fbc39d7546008cf8c0f7ea41b449df79d6e395abad7626f0d1b2");
    }

    #[test]
    fn a_key_of_openssl_is_read_and_nonsense_is_named() {
        // Test 1 of RFC 8032, in the form of openssl: without the public half.
        let secret = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let der = hex::decode(format!("302e020100300506032b657004220420{secret}")).unwrap();
        let (begin, end) = ("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----");
        let key = SigningKey::from_pem(format!("{begin}\n{}\n{end}\n", BASE64.encode(der)).as_bytes()).unwrap();
        let public = hex::decode("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a").unwrap();
        assert_eq!(key.public_line(), format!("ed25519 {}", BASE64.encode(public)));
        assert!(SigningKey::from_pem(b"no key").is_err());

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("trusted");
        for (text, word) in
            [("", "no key"), ("# none\n", "no key"), ("ed25519 AAAA me\n", "line 1"), ("rsa x\n", "line 1")]
        {
            fs::write(&file, text).unwrap();
            let error = format!("{:#}", Trust::in_keys_of(&file).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
        fs::write(&file, format!("# ours\n\n{} ann\n", key.public_line())).unwrap();
        assert_eq!(Trust::in_keys_of(&file).unwrap().keys.unwrap().len(), 1);
        assert!(
            format!("{:#}", Trust::in_keys_of(&folder.path().join("none")).unwrap_err()).contains("failed to read")
        );
    }
}
