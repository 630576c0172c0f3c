//! Packages in OCI registries.
//!
//! A package is at most two artifacts of one repository:
//!
//! - its component, as the CNCF's Wasm artifact: a configuration of the type `application/vnd.wasm.config.v0+json` and one
//!   layer of `application/wasm`. Whatever runs components from registries can run it;
//! - all other files (manifest, graphs, assets, signatures), each a layer that is named as the file, in an artifact of the
//!   type [`PACKAGE_TYPE`]. An annotation of the first names it by its digest. It has a tag too, `files-DIGEST`, for
//!   registries remove what has none.
//!
//! A package with a stock component is the second alone. A registry keeps each file once for a repository, so weights that
//! it has are not sent again. The same package gives the same artifacts, whenever it is pushed.

mod address;
mod login;
mod manifest;
mod registry;

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Value, json};

pub use self::address::Address;
use self::address::Which;
use self::manifest::{Descriptor, Manifest, sha256};
use self::registry::{Operation, Registry};
use super::ClientOptions;
use super::files::{LocalFile, PackageFiles};
use super::push::progress_bar;
use super::table;
use crate::deploy::capability;
use crate::deploy::manifest::{ComponentSource, MANIFEST};
use crate::deploy::package::{FILES_MAX, Package, check_path};
use crate::store::blobs::Digest;

const WASM_CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
const WASM_TYPE: &str = "application/wasm";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const PACKAGE_TYPE: &str = "application/vnd.tessera.package.v1";
const FILE_TYPE: &str = "application/vnd.tessera.package.file.v1";

/// Annotation of a component: the digest of the artifact with the other files.
const FILES: &str = "dev.tessera.package.files";

/// What an artifact without a configuration has as one.
const EMPTY: &[u8] = b"{}";

/// The file that a component without a name becomes.
const COMPONENT: &str = "component.wasm";

const NOT_OURS: &str = "is not a Tessera package";

/// How a registry is reached.
#[derive(Debug, Clone, Args)]
pub struct RegistryOptions {
    /// User of the OCI registry [default: what `docker login` left]
    #[arg(long, value_name = "NAME", requires = "password_stdin", help_heading = "OCI registry")]
    pub(super) username: Option<String>,
    /// Read that user's password, or an access token, from stdin
    #[arg(long, requires = "username", help_heading = "OCI registry")]
    pub(super) password_stdin: bool,
    /// Speak to it without TLS, as to one on this machine unless there is a --ca-cert
    #[arg(long, help_heading = "OCI registry")]
    pub(super) plain_http: bool,
}

/// A package as a registry has it.
pub(super) struct InRegistry {
    /// By its digest, which stands for the whole package.
    pub(super) address: Address,
    pub(super) files: usize,
    pub(super) bytes: u64,
    /// Files that were sent or fetched: those that are there are not sent again.
    moved: usize,
}

impl InRegistry {
    /// For people.
    pub(super) fn text(&self) -> String {
        let files = if self.files == 1 { "file" } else { "files" };
        let there = match self.files - self.moved {
            0 => String::new(),
            there => format!(", {there} of them there already"),
        };
        format!("{}  ({} {files}, {}{there})", self.address, self.files, table::size(self.bytes))
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!({"address": self.address.to_string(), "files": self.files, "bytes": self.bytes, "files_moved": self.moved})
    }
}

/// Sends a package.
///
/// # Errors
/// When it is none that could be served, or the registry does not take it.
pub(super) fn push(
    package: &PackageFiles,
    to: &Address,
    registry: &RegistryOptions,
    options: &ClientOptions,
) -> anyhow::Result<InRegistry> {
    ensure!(
        matches!(to.which, Which::Tag(_)),
        "{to} names a digest, which follows from the package: give a tag, or nothing"
    );
    let checked = package.check().context("it is no package that could be served")?;
    let registry = Registry::new(to, Operation::Push, registry, options)?;
    let mut sender = Sender { registry: &registry, package, checked: &checked, moved: 0 };
    let digest = block_on(sender.send(&to.which)).with_context(|| format!("failed to push to {to}"))?;
    let (files, bytes) = (package.files.len(), package.bytes);
    Ok(InRegistry { address: to.with(Which::Digest(digest)), files, bytes, moved: sender.moved })
}

/// A package on its way to a registry.
struct Sender<'p> {
    registry: &'p Registry,
    package: &'p PackageFiles,
    checked: &'p Package,
    moved: usize,
}

impl Sender<'_> {
    /// Answers the digest of what is tagged.
    async fn send(&mut self, to: &Which) -> anyhow::Result<Digest> {
        let bar = progress_bar(self.package.bytes);
        let (mut files, mut component) = (Vec::new(), None);
        for file in &self.package.files {
            let layer = self.layer(file, &bar).await.with_context(|| format!("failed to send {}", file.name))?;
            if layer.media_type == WASM_TYPE { component = Some((file, layer)) } else { files.push(layer) }
        }
        bar.finish_and_clear();
        let files = Manifest {
            artifact_type: Some(PACKAGE_TYPE.to_owned()),
            ..Manifest::new(self.config(EMPTY_TYPE, EMPTY).await?, files)
        };
        let Some((file, layer)) = component else { return self.manifest(&files, |_| to.clone()).await };
        let files = self.manifest(&files, |digest| Which::Tag(format!("files-{digest}"))).await?;
        let config = wasm_config(file, &layer)?;
        let component = Manifest {
            annotations: BTreeMap::from([(FILES.to_owned(), format!("sha256:{files}"))]),
            ..Manifest::new(self.config(WASM_CONFIG_TYPE, &config).await?, vec![layer])
        };
        self.manifest(&component, |_| to.clone()).await
    }

    async fn layer(&mut self, file: &LocalFile, bar: &ProgressBar) -> anyhow::Result<Descriptor> {
        bar.set_message(file.name.clone());
        let digest = self.checked.files.get(&file.name).context("it has come while the package was read")?.digest;
        match self.registry.put_blob(bar.wrap_read(file.open()?), digest, file.bytes).await? {
            true => self.moved += 1,
            false => bar.inc(file.bytes),
        }
        let is_component = self.checked.component == ComponentSource::File(file.name.clone());
        let kind = if is_component { WASM_TYPE } else { FILE_TYPE };
        Ok(Descriptor::new(kind, digest, file.bytes).named(&file.name))
    }

    async fn config(&self, kind: &str, content: &[u8]) -> anyhow::Result<Descriptor> {
        let (digest, bytes) = (Digest::of(content), content.len() as u64);
        let sent = self.registry.put_blob(Cursor::new(content.to_vec()), digest, bytes).await;
        sent.context("failed to send a configuration")?;
        Ok(Descriptor::new(kind, digest, bytes))
    }

    /// Answers the manifest's digest, which its place may depend on.
    async fn manifest(&self, manifest: &Manifest, to: impl Fn(Digest) -> Which) -> anyhow::Result<Digest> {
        let bytes = serde_json::to_vec(manifest)?;
        let digest = Digest::of(&bytes);
        self.registry.put_manifest(&to(digest), bytes).await.context("failed to send a manifest")?;
        Ok(digest)
    }
}

/// What a registry can tell of a component without its bytes. The time is none: it would make two artifacts of one
/// component.
fn wasm_config(file: &LocalFile, layer: &Descriptor) -> anyhow::Result<Vec<u8>> {
    let found = capability::look(&file.read()?).map_err(anyhow::Error::msg)?;
    Ok(serde_json::to_vec(&json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [format!("sha256:{}", layer.digest)],
        "component": { "exports": found.exports, "imports": found.imports, "target": null },
    }))?)
}

/// Fetches a package into an empty folder.
///
/// # Errors
/// When there is none, or what comes is not what its digest says; then the folder holds a part of it.
pub(super) fn pull(
    from: &Address,
    into: &Path,
    registry: &RegistryOptions,
    options: &ClientOptions,
) -> anyhow::Result<InRegistry> {
    let registry = Registry::new(from, Operation::Pull, registry, options)?;
    block_on(fetch(&registry, from, into)).with_context(|| format!("failed to pull {from}"))
}

async fn fetch(registry: &Registry, from: &Address, into: &Path) -> anyhow::Result<InRegistry> {
    let (first, digest) = registry.manifest(&from.which).await?;
    let (layers, is_lone) = layers(registry, first).await?;
    let files = named(&layers).with_context(|| format!("it {NOT_OURS}"))?;
    let bytes = check_room(&layers, into)?;
    let bar = progress_bar(bytes);
    for (name, layer) in &files {
        bar.set_message(name.clone());
        let path = into.join(name);
        fs::create_dir_all(path.parent().unwrap_or(into)).context("failed to make a folder")?;
        registry.get_blob(layer, &path, &bar).await.with_context(|| format!("failed to fetch {name}"))?;
    }
    bar.finish_and_clear();
    if is_lone && let Some(name) = files.keys().next() {
        fs::write(into.join(MANIFEST), format!("component = {}\n", json!(name))).context("failed to write")?;
    }
    let address = from.with(Which::Digest(digest));
    Ok(InRegistry { address, files: files.len(), bytes, moved: files.len() })
}

/// The layers of a package, and whether they are somebody else's component alone.
async fn layers(registry: &Registry, first: Manifest) -> anyhow::Result<(Vec<Descriptor>, bool)> {
    let is_files = |manifest: &Manifest| {
        manifest.artifact_type.as_deref() == Some(PACKAGE_TYPE)
            && manifest.layers.iter().all(|layer| layer.media_type == FILE_TYPE)
    };
    if is_files(&first) {
        return Ok((first.layers, false));
    }
    let is_component = first.config.media_type == WASM_CONFIG_TYPE
        && matches!(&first.layers[..], [layer] if layer.media_type == WASM_TYPE);
    ensure!(is_component, "it {NOT_OURS}, but of the type {}", first.kind());
    let Some(named) = first.annotations.get(FILES) else { return Ok((first.layers, true)) };
    let digest = sha256(named).with_context(|| format!("it {NOT_OURS}: '{named}' is not a digest of its files"))?;
    let files = registry.manifest(&Which::Digest(digest)).await;
    let (files, _) = files.with_context(|| format!("failed to find its files, {named}"))?;
    ensure!(is_files(&files), "it {NOT_OURS}: {named}, which it names, has no files of one");
    Ok(([first.layers, files.layers].concat(), false))
}

/// The layers by the paths of their files: they come from elsewhere, and must stay in their folder.
fn named(layers: &[Descriptor]) -> anyhow::Result<BTreeMap<String, &Descriptor>> {
    ensure!((1..=FILES_MAX).contains(&layers.len()), "it has {} files; a package has 1 to {FILES_MAX}", layers.len());
    let mut files = BTreeMap::new();
    for layer in layers {
        let name = match layer.title() {
            Some(title) => title.to_owned(),
            None if layer.media_type == WASM_TYPE => COMPONENT.to_owned(),
            None => bail!("the layer {} has no name", layer.digest),
        };
        check_path(&name)?;
        ensure!(files.insert(name.clone(), layer).is_none(), "it has two files '{name}'");
    }
    Ok(files)
}

/// The bytes of all layers together, which the folder must have room for.
fn check_room(layers: &[Descriptor], into: &Path) -> anyhow::Result<u64> {
    let bytes = layers.iter().try_fold(0u64, |sum, layer| sum.checked_add(layer.bytes));
    let bytes = bytes.context("the sizes in its manifest cannot be")?;
    let disk = rustix::fs::statvfs(into).context("failed to ask how full the disk is")?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    ensure!(bytes <= free, "it has {}, and there is room for {}", table::size(bytes), table::size(free));
    Ok(bytes)
}

/// Runs what talks to a registry.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("failed to start the HTTP client")?.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: Option<&str>, kind: &str) -> Descriptor {
        let layer = Descriptor::new(kind, Digest([1; 32]), 1);
        match name {
            Some(name) => layer.named(name),
            None => layer,
        }
    }

    #[test]
    fn files_stay_in_their_folder_and_have_names_of_their_own() {
        let names = |layers: &[Descriptor]| named(layers).map(|files| files.into_keys().collect::<Vec<_>>());
        let file = |name: &str| layer(Some(name), FILE_TYPE);
        assert_eq!(
            names(&[file("data/model.onnx"), layer(None, WASM_TYPE)]).unwrap(),
            ["component.wasm", "data/model.onnx"]
        );
        for bad in ["../x", "/etc/passwd", "", "a/../../b", ".ssh/config", "a\\b"] {
            assert!(names(&[file(bad)]).is_err(), "{bad}");
        }
        let refused = |layers: &[Descriptor], words: &str| {
            let error = names(layers).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        refused(&[layer(None, FILE_TYPE)], "has no name");
        refused(&[file("a"), file("a")], "two files 'a'");
        refused(&[], "0 files");
        refused(&vec![file("a"); FILES_MAX + 1], "301 files");
    }

    #[test]
    fn what_cannot_be_stored_is_not_begun() {
        let sized = |bytes| Descriptor { bytes, ..layer(Some("a"), FILE_TYPE) };
        let room = |sizes: &[u64]| check_room(&sizes.iter().copied().map(sized).collect::<Vec<_>>(), Path::new("."));
        assert_eq!(room(&[1, 2]).unwrap(), 3);
        assert!(room(&[1 << 60]).unwrap_err().to_string().contains("there is room for"));
        assert!(room(&[u64::MAX, 1]).unwrap_err().to_string().contains("cannot be"));
    }
}
