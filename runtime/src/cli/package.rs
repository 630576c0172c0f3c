//! `tessera package`: a project or a folder becomes one file. The same content gives the same bytes: files in the order of
//! their names, without times, owners and modes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Args;
use sha2::{Digest as _, Sha256};

use super::files::PackageFiles;
use super::{print_bytes, table};
use crate::store::blobs::Digest;

/// What to pack, and where to.
#[derive(Debug, Args)]
pub struct PackageArgs {
    /// Project, or folder of a package
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// The archive to write [default: the folder's name with .tar, here]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: &PackageArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let dir = fs::canonicalize(&args.dir).with_context(|| format!("failed to open {}", args.dir.display()))?;
    ensure!(dir.is_dir(), "{} is no folder: give that of a project or of a package", args.dir.display());
    let files = PackageFiles::open_to_give(&dir)?;
    files.check().with_context(|| format!("{} is no package that could be served", args.dir.display()))?;
    let name = dir.file_name().map_or_else(|| "package".into(), |name| name.to_string_lossy());
    let output = args.output.clone().unwrap_or_else(|| format!("{name}.tar").into());
    ensure!(
        !files.files.iter().any(|file| dir.join(&file.name) == absolute(&output)),
        "{} is a file of the package itself: choose another with --output, outside of the folder",
        output.display()
    );
    let digest = write(&files, &output).with_context(|| format!("failed to write {}", output.display()))?;
    let (count, bytes) = (files.files.len(), table::size(files.bytes));
    print_bytes(out, format!("{}  sha256:{digest}  ({count} files, {bytes})\n", output.display()).as_bytes())
}

fn absolute(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    path.file_name().map_or(folder.clone(), |name| folder.join(name))
}

/// Writes the archive as a whole: there is the old one, or the new.
fn write(package: &PackageFiles, path: &Path) -> anyhow::Result<Digest> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let written = write_to(package, &beside).and_then(|digest| {
        fs::rename(&beside, path)?;
        Ok(digest)
    });
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn write_to(package: &PackageFiles, path: &Path) -> anyhow::Result<Digest> {
    let mut archive = tar::Builder::new(Hashing { to: BufWriter::new(File::create(path)?), hasher: Sha256::new() });
    for file in &package.files {
        let mut header = tar::Header::new_gnu();
        header.set_size(file.bytes);
        header.set_mode(0o644);
        // No time but that one; owners are 0 as they are.
        header.set_mtime(0);
        archive
            .append_data(&mut header, &file.name, file.open()?)
            .with_context(|| format!("failed to pack {}", file.name))?;
    }
    let mut written = archive.into_inner()?;
    written.flush()?;
    written.to.get_ref().sync_all()?;
    Ok(Digest(written.hasher.finalize().into()))
}

/// Hashes what is written.
struct Hashing<W> {
    to: W,
    hasher: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    /// A package whose files were made in this order.
    fn folder(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(dir.path().join(name), format!("content of {name}")).unwrap();
        }
        fs::write(dir.path().join("MLmodel"), "flavors: {}").unwrap();
        dir
    }

    #[test]
    fn the_same_content_gives_the_same_archive() {
        let (one, other) = (folder(&["a", "b"]), folder(&["b", "a"]));
        let old = SystemTime::now() - Duration::from_secs(1 << 20);
        File::options().write(true).open(one.path().join("a")).unwrap().set_modified(old).unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(one.path().join("b"), fs::Permissions::from_mode(0o755)).unwrap();
        let out = tempfile::tempdir().unwrap();
        let pack = |dir: &tempfile::TempDir, name: &str| {
            let path = out.path().join(name);
            (write(&PackageFiles::open(dir.path()).unwrap(), &path).unwrap(), fs::read(path).unwrap())
        };
        let (digest, bytes) = pack(&one, "one.tar");
        assert_eq!((digest, &bytes), (Digest::of(&bytes), &pack(&other, "other.tar").1));
        fs::write(other.path().join("b"), "changed").unwrap();
        assert_ne!(pack(&other, "other.tar").0, digest);
    }

    #[test]
    fn an_archive_holds_what_was_packed_however_long_its_name() {
        let long = format!("{}.txt", "long".repeat(40));
        let dir = folder(&["a", &long]);
        let path = dir.path().join(".archive.tar");
        write(&PackageFiles::open(dir.path()).unwrap(), &path).unwrap();
        let archive = PackageFiles::open(&path).unwrap();
        assert_eq!(archive.files.len(), 3);
        assert_eq!(archive.get(&long).unwrap().read().unwrap(), format!("content of {long}").as_bytes());
    }

    #[test]
    fn a_damaged_archive_is_refused() {
        let dir = folder(&["a"]);
        let path = dir.path().join(".archive.tar");
        write(&PackageFiles::open(dir.path()).unwrap(), &path).unwrap();
        let bytes = fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            format!("{:#}", PackageFiles::open(&path).unwrap_err())
        };
        assert!(refused(&bytes[..520]).contains(".archive.tar"));
        assert!(refused(b"no archive at all").contains("is no package"));
        let mut hostile = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.as_gnu_mut().unwrap().name[..7].copy_from_slice(b"../evil");
        header.set_cksum();
        hostile.append(&header, io::empty()).unwrap();
        assert!(refused(&hostile.into_inner().unwrap()).contains("'../evil' is not a path"));
    }
}
