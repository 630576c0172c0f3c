//! The files of a package on this machine: in a folder, in a project, or in an archive that `tessera package` wrote.
//!
//! Of a folder they are all but the hidden ones. Of a project they are those that its manifest names, for its folder holds
//! the sources too. An archive is a tar file, whose files are read where they lie in it. A language model in GGUF says all
//! of itself: it is a package alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::build::made_of;
use super::project::Project;
use crate::deploy::manifest::{ComponentSource, MANIFEST};
use crate::deploy::package::{FILES_MAX, MLMODEL, Package, PackageFile, PackageSource, check_path, is_gguf};
use crate::deploy::signature::SIGNATURES;
use crate::nn::backends::ReadSeek;
use crate::store::blobs::Digest;

/// A wrong folder (a home, a checkout) is noticed before its files are sent.
const SCANNED_MAX: usize = 10_000;
const DEPTH_MAX: usize = 32;

/// What is read at a time to hash a file.
const CHUNK_BYTES: usize = 256 << 10;

/// The files of a package, in the order of their names.
#[derive(Debug, Default)]
pub(super) struct PackageFiles {
    pub(super) files: Vec<LocalFile>,
    /// Of all files together.
    pub(super) bytes: u64,
    /// What lies there, and is left out.
    pub(super) hidden: Vec<String>,
}

/// A file of a package.
#[derive(Debug, Clone)]
pub(super) struct LocalFile {
    /// The path in the package, with `/` between its parts.
    pub(super) name: String,
    pub(super) bytes: u64,
    /// Where it lies: a file of its own, or a part of an archive.
    source: PathBuf,
    offset: u64,
}

impl PackageFiles {
    /// The package in a folder, a project or an archive. What a server could not hold as it is (a link, a device) is
    /// refused.
    ///
    /// # Errors
    /// When it is no package, or cannot be read.
    pub(super) fn open(path: &Path) -> anyhow::Result<PackageFiles> {
        let kind = fs::metadata(path).with_context(|| format!("failed to open {}", path.display()))?;
        let mut package = PackageFiles::default();
        let file_name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if kind.is_file() && is_gguf(file_name) {
            // What was named itself may be a link: caches of models are full of them.
            package.add_plain(fs::canonicalize(path)?, file_name.to_owned())?;
        } else if kind.is_file() {
            package.add_archive(path)?;
        } else {
            let project = if path.join(MANIFEST).is_file() { Project::open(&fs::canonicalize(path)?)? } else { None };
            match project {
                Some(project) => package.add_project(&project, &BTreeMap::new())?,
                None => package.add_folder(path, &[])?,
            }
        }
        package.finish(path)
    }

    /// The package at a path, for others: of a project only if its component is made of the sources beside it.
    ///
    /// # Errors
    /// As [`PackageFiles::open`], and when the component was built from other sources.
    pub(super) fn open_to_give(path: &Path) -> anyhow::Result<PackageFiles> {
        let package = PackageFiles::open(path)?;
        if path.join(MANIFEST).is_file()
            && let Some(project) = Project::open(&fs::canonicalize(path)?)?
        {
            made_of::check(&project)?;
        }
        Ok(package)
    }

    /// The package of a project, of which some files lie elsewhere: by their names, where.
    ///
    /// # Errors
    /// When one is not there, or cannot be read.
    pub(super) fn of_project(project: &Project, elsewhere: &BTreeMap<String, PathBuf>) -> anyhow::Result<PackageFiles> {
        let mut package = PackageFiles::default();
        package.add_project(project, elsewhere)?;
        package.finish(&project.root)
    }

    fn finish(mut self, path: &Path) -> anyhow::Result<PackageFiles> {
        ensure!(
            self.files.iter().any(|file| [MANIFEST, MLMODEL].contains(&file.name.as_str()) || is_gguf(&file.name)),
            "{} holds neither {MLMODEL} nor {MANIFEST} nor a model in GGUF: give the folder that mlflow's save_model \
             wrote, or describe the package in a {MANIFEST}",
            path.display()
        );
        self.files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(self)
    }

    fn add(&mut self, file: LocalFile) -> anyhow::Result<()> {
        self.bytes += file.bytes;
        self.files.push(file);
        ensure!(self.files.len() <= SCANNED_MAX, "more than {SCANNED_MAX} files: is this a model package?");
        Ok(())
    }

    fn add_folder(&mut self, folder: &Path, above: &[String]) -> anyhow::Result<()> {
        ensure!(above.len() < DEPTH_MAX, "{} lies more than {DEPTH_MAX} directories deep", folder.display());
        for entry in fs::read_dir(folder).with_context(|| format!("failed to list {}", folder.display()))? {
            let path = entry.with_context(|| format!("failed to list {}", folder.display()))?.path();
            let Some(file_name) = path.file_name().and_then(OsStr::to_str) else {
                bail!("the name of {} is no UTF-8", path.display());
            };
            let name = [above, &[file_name.to_owned()]].concat();
            if file_name.starts_with('.') {
                self.hidden.push(name.join("/"));
            } else if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                self.add_folder(&path, &name)?;
            } else {
                self.add_plain(path, name.join("/"))?;
            }
        }
        Ok(())
    }

    fn add_project(&mut self, project: &Project, elsewhere: &BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
        for (name, path) in elsewhere {
            check_path(name)?;
            self.add_plain(path.clone(), name.clone())?;
        }
        for name in project.package_files().into_iter().filter(|name| !elsewhere.contains_key(name)) {
            check_path(&name)?;
            let path = project.root.join(&name);
            ensure!(
                path != project.component || path.exists(),
                "the component {} is not built: run `tessera build --release`",
                path.display()
            );
            ensure!(
                path.symlink_metadata().is_ok(),
                "{} names the file '{name}', which is not there",
                project.root.join(MANIFEST).display()
            );
            let real = fs::canonicalize(&path).with_context(|| format!("failed to open {}", path.display()))?;
            ensure!(
                real.starts_with(&project.root),
                "{} leads out of the project: put the file itself there",
                path.display()
            );
            self.add_plain(path, name)?;
        }
        Ok(())
    }

    fn add_plain(&mut self, path: PathBuf, name: String) -> anyhow::Result<()> {
        // Not `metadata`, which follows links.
        let found = path.symlink_metadata().with_context(|| format!("failed to open {}", path.display()))?;
        if found.is_symlink() {
            bail!("{} is a symbolic link, and may point anywhere: put the file itself there", path.display());
        }
        ensure!(found.is_file(), "{} is no plain file", path.display());
        self.add(LocalFile { name, bytes: found.len(), source: path, offset: 0 })
    }

    fn add_archive(&mut self, path: &Path) -> anyhow::Result<()> {
        let no_archive =
            || format!("{} is no package: give its folder, or what `tessera package` wrote", path.display());
        let file = File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
        let mut archive = tar::Archive::new(file);
        let mut names = BTreeSet::new();
        for entry in archive.entries_with_seek().with_context(no_archive)? {
            let entry = entry.with_context(no_archive)?;
            let kind = entry.header().entry_type();
            if kind.is_dir() {
                continue;
            }
            let name = String::from_utf8(entry.path_bytes().into_owned()).ok().with_context(no_archive)?;
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            check_path(&name)?;
            ensure!(kind.is_file(), "'{name}' in {} is no plain file", path.display());
            ensure!(names.insert(name.clone()), "'{name}' is in {} twice", path.display());
            let (bytes, offset) = (entry.size(), entry.raw_file_position());
            self.add(LocalFile { name, bytes, source: path.to_owned(), offset })?;
        }
        let length = fs::metadata(path).with_context(|| format!("failed to open {}", path.display()))?.len();
        ensure!(
            self.files.iter().all(|file| file.offset.checked_add(file.bytes).is_some_and(|end| end <= length)),
            "{} is cut off",
            path.display()
        );
        Ok(())
    }

    /// Reads the package as a server would, and says what is wrong with it.
    ///
    /// # Errors
    /// What is wrong and how to mend it.
    pub(super) fn check(&self) -> anyhow::Result<Package> {
        ensure!(self.files.len() <= FILES_MAX, "the package has {} files; the limit is {FILES_MAX}", self.files.len());
        let mut listed = BTreeMap::new();
        for file in &self.files {
            check_path(&file.name)?;
            listed.insert(file.name.clone(), PackageFile { digest: file.digest()?, bytes: file.bytes });
        }
        Ok(Package::read(listed, self)?)
    }

    /// The file of this name.
    pub(super) fn get(&self, name: &str) -> Option<&LocalFile> {
        self.files.iter().find(|file| file.name == name)
    }
}

impl PackageSource for PackageFiles {
    fn open(&self, name: &str, _: &PackageFile) -> Result<(Box<dyn ReadSeek>, u64), String> {
        let file = self.get(name).ok_or_else(|| format!("'{name}' is not in the package"))?;
        Ok((Box::new(file.open().map_err(|error| format!("{error:#}"))?), file.bytes))
    }
}

impl LocalFile {
    /// Opens it for reading.
    ///
    /// # Errors
    /// When it is not there any more.
    pub(super) fn open(&self) -> anyhow::Result<Part> {
        let open = || {
            let mut file = File::open(&self.source)?;
            file.seek(SeekFrom::Start(self.offset))?;
            Ok::<_, io::Error>(Part { file, offset: self.offset, bytes: self.bytes, at: 0 })
        };
        open().with_context(|| format!("failed to open {} of {}", self.name, self.source.display()))
    }

    /// Reads all of it: for files that are small by their nature, or that the caller has looked at the size of.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn read(&self) -> anyhow::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.open()?.read_to_end(&mut content).with_context(|| format!("failed to read {}", self.name))?;
        Ok(content)
    }

    /// SHA-256 of its content.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn digest(&self) -> anyhow::Result<Digest> {
        let (mut part, mut hasher, mut chunk) = (self.open()?, Sha256::new(), vec![0; CHUNK_BYTES]);
        loop {
            match part.read(&mut chunk).with_context(|| format!("failed to read {}", self.name))? {
                0 => return Ok(Digest(hasher.finalize().into())),
                read => hasher.update(&chunk[..read]),
            }
        }
    }
}

/// A part of a file, read as if it were all of it. One that has become shorter is an error and not a shorter file.
#[derive(Debug)]
pub(super) struct Part {
    file: File,
    offset: u64,
    bytes: u64,
    at: u64,
}

impl Read for Part {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.bytes.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = left.min(into.len());
        if wanted == 0 {
            return Ok(0);
        }
        match self.file.read(&mut into[..wanted])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.at += read as u64;
                Ok(read)
            }
        }
    }
}

impl Seek for Part {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(place) => Some(place),
            SeekFrom::End(by) => self.bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        let place = place.ok_or(io::ErrorKind::InvalidInput)?;
        let in_file = self.offset.checked_add(place).ok_or(io::ErrorKind::InvalidInput)?;
        self.file.seek(SeekFrom::Start(in_file))?;
        self.at = place;
        Ok(place)
    }
}

impl Project {
    /// What the manifest names, each once.
    pub(super) fn package_files(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::from([MANIFEST.to_owned()]);
        names
            .extend([MLMODEL, SIGNATURES].into_iter().filter(|name| self.root.join(name).is_file()).map(str::to_owned));
        if let Some(ComponentSource::File(component)) = self.manifest.component() {
            names.insert(component);
        }
        names.extend(self.manifest.files());
        names.extend(self.include.iter().cloned());
        names
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use tempfile::TempDir;

    fn folder(files: &[(&str, &str)]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    /// A package in a folder, with a hidden file beside it.
    pub(in crate::cli) fn iris() -> TempDir {
        folder(&[("MLmodel", "flavors: {}"), ("model.onnx", "weights"), ("data/a b.txt", ""), (".git/config", "x")])
    }

    fn refusal(path: &Path) -> String {
        format!("{:#}", PackageFiles::open(path).unwrap_err())
    }

    fn names(package: &PackageFiles) -> Vec<&str> {
        package.files.iter().map(|file| file.name.as_str()).collect()
    }

    #[test]
    fn what_is_no_package_is_refused() {
        let nested = folder(&[("sub/MLmodel", "")]);
        assert!(refusal(nested.path()).contains("holds neither MLmodel nor tessera.toml"));
        assert!(refusal(&nested.path().join("sub/MLmodel")).contains("holds neither"));
        assert!(refusal(&nested.path().join("none")).contains("failed to open"));

        let link = iris();
        std::os::unix::fs::symlink("/etc/passwd", link.path().join("data/weights.bin")).unwrap();
        assert!(refusal(link.path()).contains("data/weights.bin is a symbolic link"));
        let socket = iris();
        let _listener = std::os::unix::net::UnixListener::bind(socket.path().join("s")).unwrap();
        assert!(refusal(socket.path()).contains("is no plain file"));
    }

    #[test]
    fn hidden_files_of_a_folder_are_named_and_left_out() {
        let package = PackageFiles::open(iris().path()).unwrap();
        assert_eq!(names(&package), ["MLmodel", "data/a b.txt", "model.onnx"]);
        assert_eq!((package.bytes, package.hidden), (18, vec![".git".to_owned()]));
    }

    #[test]
    fn of_a_project_there_is_what_its_manifest_names() {
        let manifest = "component = 'c.wasm'\nassets = ['labels.txt']\n[graphs.m]\nfile = 'm.onnx'\n[golden]\n\
                        request = 'in.json'\n[build]\nlanguage = 'rust'\ninclude = ['LICENSE']";
        let project = folder(&[
            ("tessera.toml", manifest),
            ("Cargo.toml", ""),
            ("src/lib.rs", ""),
            ("labels.txt", "a"),
            ("m.onnx", "w"),
            ("in.json", "{}"),
            ("LICENSE", "MIT"),
        ]);
        assert!(refusal(project.path()).contains("is not built: run `tessera build"));
        fs::write(project.path().join("c.wasm"), "wasm").unwrap();
        let package = PackageFiles::open(project.path()).unwrap();
        assert_eq!(names(&package), ["LICENSE", "c.wasm", "in.json", "labels.txt", "m.onnx", "tessera.toml"]);
        fs::remove_file(project.path().join("labels.txt")).unwrap();
        assert!(refusal(project.path()).contains("names the file 'labels.txt', which is not there"));
    }

    #[test]
    fn a_part_ends_where_it_ends_and_can_be_read_at_any_place() {
        let dir = folder(&[("f", "0123456789")]);
        let file = LocalFile { name: "x".into(), bytes: 4, source: dir.path().join("f"), offset: 3 };
        assert_eq!(file.read().unwrap(), b"3456");
        let mut part = file.open().unwrap();
        let mut read_at = |to| {
            part.seek(to).unwrap();
            let mut text = String::new();
            part.read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!((read_at(SeekFrom::Start(2)), read_at(SeekFrom::End(-1))), ("56".into(), "6".into()));
        assert_eq!(read_at(SeekFrom::Start(9)), "");
        let cut = LocalFile { bytes: 9, ..file };
        assert!(cut.read().is_err(), "it is shorter than it was said to be");
    }
}
