//! `tessera model push`: a directory becomes a model version, by the calls that MLflow's Unity Catalog client makes.
//!
//! Create the model (it may exist), create a version, upload its files one after the other, finalize. A version that
//! was not finalized is deleted again.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::json;

use super::client::{self, Client, ClientError};
use super::model::{ModelName, delete_version, registry};
use super::wire::ModelVersionAnswer;
use super::{Session, note, table};

/// One of them says what a directory holds: MLflow's manifest or ours.
const MANIFESTS: [&str; 2] = ["MLmodel", "tessera.toml"];
/// A wrong directory (a home, a checkout) is noticed before its files are sent.
const FILES_MAX: usize = 10_000;
const DEPTH_MAX: usize = 32;

/// What to register, and as what.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// Directory of the package, with MLmodel or tessera.toml in it
    #[arg(value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// Registered model that gets the new version; it is created if it does not exist
    #[arg(long, value_name = "CATALOG.SCHEMA.MODEL")]
    pub(super) name: ModelName,
    /// Text for people
    #[arg(long, value_name = "TEXT")]
    pub(super) description: Option<String>,
    /// Where it comes from, if not from the directory.
    #[arg(skip)]
    pub(super) source: Option<String>,
}

pub(super) fn push(session: &mut Session, args: &PushArgs) -> anyhow::Result<()> {
    let package = Package::scan(&args.dir)?;
    if !package.hidden.is_empty() {
        note(&format!("note: hidden files are not pushed: {}", package.hidden.join(", ")));
    }
    let client = &session.client;
    create_model(client, args)?;
    let version = create_version(client, args)?;
    let pushed = upload(client, &args.name, &version, &package).and_then(|()| finalize(client, &args.name, &version));
    let answer = pushed.map_err(|error| withdraw(client, &args.name, &version, error))?;
    session.answer(&answer, || {
        let files = if package.files.len() == 1 { "file" } else { "files" };
        let (name, count, size) = (&args.name, package.files.len(), table::size(package.bytes));
        Ok(format!("{name} version {version}  ({count} {files}, {size})"))
    })
}

/// The files of a package, as found on disk.
#[derive(Debug, Default)]
struct Package {
    files: Vec<PackageFile>,
    bytes: u64,
    hidden: Vec<String>,
}

#[derive(Debug)]
struct PackageFile {
    path: PathBuf,
    /// The path below the package, segment by segment.
    name: Vec<String>,
    bytes: u64,
}

impl Package {
    /// Lists the files below `dir`. What the server could not hold as it is (a link, a device) is refused here, before
    /// anything is sent.
    fn scan(dir: &Path) -> anyhow::Result<Package> {
        let kind = fs::metadata(dir).with_context(|| format!("failed to open {}", dir.display()))?;
        ensure!(kind.is_dir(), "{} is no directory: push the directory of a model package", dir.display());
        let mut package = Package::default();
        package.scan_below(dir, &[])?;
        let has_manifest = package.files.iter().any(|f| f.name.len() == 1 && MANIFESTS.contains(&f.name[0].as_str()));
        ensure!(
            has_manifest,
            "{} holds neither MLmodel nor tessera.toml: push the directory that mlflow's save_model wrote, or describe \
             the package in a tessera.toml",
            dir.display()
        );
        package.files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(package)
    }

    fn scan_below(&mut self, dir: &Path, above: &[String]) -> anyhow::Result<()> {
        ensure!(above.len() < DEPTH_MAX, "{} lies more than {DEPTH_MAX} directories deep", dir.display());
        for entry in fs::read_dir(dir).with_context(|| format!("failed to list {}", dir.display()))? {
            let path = entry.with_context(|| format!("failed to list {}", dir.display()))?.path();
            let Some(file_name) = path.file_name().and_then(OsStr::to_str) else {
                bail!("the name of {} is no UTF-8", path.display());
            };
            let name = [above, &[file_name.to_owned()]].concat();
            // Not `metadata`, which follows links.
            let found = path.symlink_metadata().with_context(|| format!("failed to open {}", path.display()))?;
            if file_name.starts_with('.') {
                self.hidden.push(name.join("/"));
            } else if found.is_symlink() {
                bail!("{} is a symbolic link, and may point anywhere: put the file itself there", path.display());
            } else if found.is_dir() {
                self.scan_below(&path, &name)?;
            } else if found.is_file() {
                self.bytes += found.len();
                self.files.push(PackageFile { path, name, bytes: found.len() });
                ensure!(self.files.len() <= FILES_MAX, "more than {FILES_MAX} files: is this a model package?");
            } else {
                bail!("{} is no plain file", path.display());
            }
        }
        Ok(())
    }
}

fn create_model(client: &Client, args: &PushArgs) -> anyhow::Result<()> {
    let body = json!({"name": args.name.full(), "description": args.description});
    match client.call(Method::POST, &registry(&["registered-models", "create"]), &body) {
        Err(ClientError::Api { code, .. }) if code == "RESOURCE_ALREADY_EXISTS" => Ok(()),
        created => created.map(drop).with_context(|| format!("failed to register {}", args.name)),
    }
}

fn create_version(client: &Client, args: &PushArgs) -> anyhow::Result<String> {
    let of_dir = || fs::canonicalize(&args.dir).unwrap_or_else(|_| args.dir.clone()).to_string_lossy().into_owned();
    let body = json!({
        "name": args.name.full(),
        "source": args.source.clone().unwrap_or_else(of_dir),
        "description": args.description,
        "feature_deps": "",
    });
    let answer = client
        .call(Method::POST, &registry(&["model-versions", "create"]), &body)
        .with_context(|| format!("failed to create a version of {}", args.name))?;
    Ok(client::parse::<ModelVersionAnswer>(&answer)?.model_version.version)
}

/// Sends the files as they are read, under one bar for all bytes.
fn upload(client: &Client, name: &ModelName, version: &str, package: &Package) -> anyhow::Result<()> {
    let bar = progress_bar(package.bytes);
    for file in &package.files {
        let shown = file.name.join("/");
        bar.set_message(shown.clone());
        let source = File::open(&file.path).with_context(|| format!("failed to open {}", file.path.display()))?;
        let mut path = vec!["api", "2.0", "fs", "files", "Models", &name.catalog, &name.schema, &name.model, version];
        path.extend(file.name.iter().map(String::as_str));
        client
            .put_file(&path, bar.wrap_read(source), file.bytes)
            .with_context(|| format!("failed to upload {shown}"))?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// Drawn on stderr, and only if that is a terminal.
fn progress_bar(bytes: u64) -> ProgressBar {
    const LAYOUT: &str =
        "{bar:32} {decimal_bytes:>9} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left  {wide_msg}";
    let style = ProgressStyle::with_template(LAYOUT).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(bytes).with_style(style)
}

fn finalize(client: &Client, name: &ModelName, version: &str) -> anyhow::Result<String> {
    let body = json!({"name": name.full(), "version": version});
    client
        .call(Method::POST, &registry(&["model-versions", "finalize"]), &body)
        .with_context(|| format!("failed to finalize version {version} of {name}"))
}

/// Deletes the version that `error` left half made, and adds to the error what has become of it.
fn withdraw(client: &Client, name: &ModelName, version: &str, error: anyhow::Error) -> anyhow::Error {
    error.context(match delete_version(client, name, version) {
        Ok(_) => format!("failed to push {name}; its version {version} was deleted again"),
        Err(deletion) => {
            format!("failed to push {name}; its version {version} is incomplete and could not be deleted ({deletion})")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::client::tests::{Asked, Script};
    use super::super::{Format, json, render_error};
    use super::*;
    use tempfile::TempDir;

    fn package(files: &[(&str, &str)]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn iris() -> TempDir {
        package(&[("MLmodel", "flavors: {}"), ("model.onnx", "weights"), ("data/a b.txt", ""), (".git/config", "x")])
    }

    fn push_to(script: Script, dir: &Path) -> (anyhow::Result<String>, Vec<Asked>) {
        let mut out = Vec::new();
        let client = client::for_tests(&script.address);
        let name = "main.default.iris".parse().unwrap();
        let args = PushArgs { dir: dir.to_owned(), name, description: None, source: None };
        let result = push(&mut Session { client, format: Format::Human, out: &mut out }, &args);
        (result.map(|()| String::from_utf8(out).unwrap()), script.asked())
    }

    const EXISTS: (u16, &str) = (400, r#"{"error_code":"RESOURCE_ALREADY_EXISTS","message":"it exists"}"#);
    const VERSION_2: (u16, &str) = (200, r#"{"model_version":{"name":"main.default.iris","version":"2"}}"#);

    #[test]
    fn a_package_is_registered_uploaded_and_finalized() {
        let answers = [EXISTS, VERSION_2, (204, ""), (204, ""), (204, ""), VERSION_2];
        let (printed, asked) = push_to(Script::start(&answers), iris().path());
        assert_eq!(printed.unwrap(), "main.default.iris version 2  (3 files, 18 B)\n");
        let lines: Vec<&str> = asked.iter().map(|asked| asked.line.as_str()).collect();
        assert_eq!(
            lines,
            [
                "POST /api/2.0/mlflow/unity-catalog/registered-models/create",
                "POST /api/2.0/mlflow/unity-catalog/model-versions/create",
                "PUT /api/2.0/fs/files/Models/main/default/iris/2/MLmodel?overwrite=true",
                "PUT /api/2.0/fs/files/Models/main/default/iris/2/data/a%20b.txt?overwrite=true",
                "PUT /api/2.0/fs/files/Models/main/default/iris/2/model.onnx?overwrite=true",
                "POST /api/2.0/mlflow/unity-catalog/model-versions/finalize",
            ]
        );
        assert_eq!(asked[4].body, "weights");
        assert!(asked[4].head.contains("content-length: 7\r\n") && !asked[4].head.contains("chunked"));
        assert!(asked[3].head.contains("content-length: 0\r\n"), "{}", asked[3].head);
    }

    #[test]
    fn a_version_that_could_not_be_filled_is_deleted() {
        let full = (413, r#"{"error_code":"BAD_REQUEST","message":"MLmodel is too large"}"#);
        let (result, asked) = push_to(Script::start(&[(200, "{}"), VERSION_2, full, (200, "{}")]), iris().path());
        let error = result.unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "failed to push main.default.iris; its version 2 was deleted again: failed to upload MLmodel: \
             BAD_REQUEST: MLmodel is too large (413)"
        );
        assert_eq!(render_error(&error, Format::Json), json::pretty(full.1));
        assert_eq!(asked[3].line, "DELETE /api/2.0/mlflow/unity-catalog/model-versions/delete");
        assert_eq!(asked[3].body, r#"{"name":"main.default.iris","version":"2"}"#);
    }

    #[test]
    fn what_is_no_package_is_refused_before_anything_is_sent() {
        let refusal = |dir: &Path| format!("{:#}", Package::scan(dir).unwrap_err());
        let nested = package(&[("sub/MLmodel", "")]);
        assert!(refusal(nested.path()).contains("holds neither MLmodel nor tessera.toml"));
        assert!(refusal(&nested.path().join("sub/MLmodel")).contains("is no directory"));
        assert!(refusal(&nested.path().join("none")).contains("failed to open"));

        let link = iris();
        std::os::unix::fs::symlink("/etc/passwd", link.path().join("data/weights.bin")).unwrap();
        assert!(refusal(link.path()).contains("data/weights.bin is a symbolic link"));
        let socket = iris();
        let _listener = std::os::unix::net::UnixListener::bind(socket.path().join("s")).unwrap();
        assert!(refusal(socket.path()).contains("is no plain file"));
    }

    #[test]
    fn hidden_files_are_named_and_left_out() {
        let package = Package::scan(iris().path()).unwrap();
        assert_eq!((package.files.len(), package.hidden), (3, vec![".git".to_owned()]));
    }
}
