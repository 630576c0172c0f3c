//! `tessera sign`: keys, signatures of packages, and who has signed one.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Subcommand;

use super::files::PackageFiles;
use super::print_bytes;
use crate::deploy::signature::{self, SIGNATURES, Signature, SigningKey};
use crate::home;

/// What can be done with signatures.
#[derive(Debug, Subcommand)]
pub enum SignCommand {
    /// Make a key: the private half is written to a file, the public half printed as servers take it
    NewKey {
        /// File to write; it must not exist
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Sign a package; the signature goes into its tessera.sig, beside those of others
    Package {
        /// Project, or folder of a package
        #[arg(value_name = "DIR", default_value = ".")]
        dir: PathBuf,
        /// The private key, in PEM
        #[arg(long, value_name = "FILE", env = "TESSERA_SIGNING_KEY")]
        key: PathBuf,
    },
    /// Tell who has signed a package
    List {
        /// Project, folder of a package, or archive of one
        #[arg(value_name = "PACKAGE", default_value = ".")]
        package: PathBuf,
    },
}

pub(super) fn run(command: &SignCommand, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        SignCommand::NewKey { file } => new_key(file, out),
        SignCommand::Package { dir, key } => sign(dir, key, out),
        SignCommand::List { package } => list(package, out),
    }
}

fn new_key(file: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    ensure!(!file.exists(), "{} exists: a key that others trust is not overwritten", file.display());
    let pem = SigningKey::generate()?;
    let line = SigningKey::from_pem(pem.as_bytes())?.public_line();
    home::write_private(file, pem.as_bytes()).with_context(|| format!("failed to write {}", file.display()))?;
    print_bytes(out, format!("{line}\n").as_bytes())
}

fn sign(dir: &Path, key: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let pem = fs::read(key).with_context(|| format!("failed to read the key {}", key.display()))?;
    let key = SigningKey::from_pem(&pem).with_context(|| format!("failed to read the key {}", key.display()))?;
    let kind = fs::metadata(dir).with_context(|| format!("failed to open {}", dir.display()))?;
    ensure!(kind.is_dir(), "{} is no folder: sign the folder of a package, and pack it then", dir.display());
    let package = PackageFiles::open_to_give(dir)?;
    let message = message(&package)?;
    let line = key.sign(&message);
    // Those of others stay, if they still hold.
    let others = signatures(&package)?
        .into_iter()
        .filter(|(_, other)| other.is_of(&message) && format!("ed25519 {}", other.key()) != key.public_line());
    let lines: Vec<String> = others.map(|(line, _)| line).chain([line]).collect();
    let file = dir.join(SIGNATURES);
    fs::write(&file, lines.join("\n") + "\n").with_context(|| format!("failed to write {}", file.display()))?;
    print_bytes(out, format!("{}  {message}", file.display()).as_bytes())
}

fn list(path: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let package = PackageFiles::open(path)?;
    let message = message(&package)?;
    let found = signatures(&package)?;
    ensure!(!found.is_empty(), "{} is not signed: `tessera sign package` does it", path.display());
    let text: String = found
        .iter()
        .map(|(_, signature)| {
            let state = if signature.is_of(&message) { "valid" } else { "INVALID: the files are not those signed" };
            format!("ed25519 {}  {state}\n", signature.key())
        })
        .collect();
    print_bytes(out, text.as_bytes())
}

fn message(package: &PackageFiles) -> anyhow::Result<String> {
    let mut digests = BTreeMap::new();
    for file in &package.files {
        digests.insert(file.name.as_str(), file.digest()?.to_string());
    }
    Ok(signature::message(&signature::digest_of(&digests)))
}

/// The lines of the package's file of signatures.
fn signatures(package: &PackageFiles) -> anyhow::Result<Vec<(String, Signature)>> {
    let Some(file) = package.get(SIGNATURES) else { return Ok(Vec::new()) };
    let text = String::from_utf8_lossy(&file.read()?).into_owned();
    Ok(text.lines().filter_map(|line| Some((line.to_owned(), Signature::read(line)?))).collect())
}
