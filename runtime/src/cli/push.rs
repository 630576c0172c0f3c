//! `tessera model push`: a package becomes a model version, by the calls that MLflow's Unity Catalog client makes; or it
//! goes to a registry, see [`oci`].
//!
//! Create the model (it may exist), create a version, upload its files one after the other, finalize. A version that
//! was not finalized is deleted again.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::json;

use super::client::{self, Client, ClientError};
use super::files::PackageFiles;
use super::model::{ModelName, delete_version, registry};
use super::oci::{self, Address, RegistryOptions};
use super::wire::ModelVersionAnswer;
use super::{ClientOptions, Format, Session, json, note, print_bytes, table};

/// What to register, and as what.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// Folder of the package, with MLmodel or tessera.toml in it, or the archive that `tessera package` wrote
    #[arg(value_name = "DIR|FILE")]
    pub(super) package: PathBuf,
    /// Registry that gets it, like oci://HOST/REPOSITORY:TAG; no server is needed
    #[arg(value_name = "ADDRESS", required_unless_present = "name", conflicts_with_all = ["name", "description"])]
    to: Option<Address>,
    /// Registered model that gets the new version; it is created if it does not exist
    #[arg(long, value_name = "CATALOG.SCHEMA.MODEL")]
    name: Option<ModelName>,
    /// Text for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    #[command(flatten)]
    registry: RegistryOptions,
}

impl PushArgs {
    /// The registry that it goes to, for which no server is needed.
    pub(super) fn registry(&self) -> Option<&Address> {
        self.to.as_ref()
    }
}

pub(super) fn push(session: &mut Session, args: &PushArgs) -> anyhow::Result<()> {
    let name = args.name.as_ref().context("--name does not say which model it becomes")?;
    push_package(session, &args.package, name, &origin(&args.package), args.description.as_deref())
}

/// Sends the package to a registry.
pub(super) fn to_registry(
    to: &Address,
    args: &PushArgs,
    options: &ClientOptions,
    format: Format,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let pushed = oci::push(&open(&args.package)?, to, &args.registry, options)?;
    let answer = match format {
        Format::Json => json::pretty(&pushed.json().to_string()),
        Format::Human => pushed.text(),
    };
    print_bytes(out, format!("{answer}\n").as_bytes())
}

/// Registers the package in a folder or an archive, and prints the answer.
pub(super) fn push_package(
    session: &mut Session,
    path: &Path,
    name: &ModelName,
    source: &str,
    description: Option<&str>,
) -> anyhow::Result<()> {
    let package = open(path)?;
    let (_, answer) = register(&session.client, name, &package, source, description)?;
    session.answer(&answer, || {
        let version = client::parse::<ModelVersionAnswer>(&answer)?.model_version.version;
        let files = if package.files.len() == 1 { "file" } else { "files" };
        let (count, size) = (package.files.len(), table::size(package.bytes));
        Ok(format!("{name} version {version}  ({count} {files}, {size})"))
    })
}

fn open(path: &Path) -> anyhow::Result<PackageFiles> {
    let package = PackageFiles::open_to_give(path)?;
    if !package.hidden.is_empty() {
        note(&format!("note: hidden files are not pushed: {}", package.hidden.join(", ")));
    }
    Ok(package)
}

/// Where a package comes from, for the version's description.
pub(super) fn origin(path: &Path) -> String {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy().into_owned()
}

/// Makes a version of a package: its number, and the server's answer.
pub(super) fn register(
    client: &Client,
    name: &ModelName,
    package: &PackageFiles,
    source: &str,
    description: Option<&str>,
) -> anyhow::Result<(String, String)> {
    create_model(client, name, description)?;
    let version = create_version(client, name, source, description)?;
    let pushed = upload(client, name, &version, package).and_then(|()| finalize(client, name, &version));
    let answer = pushed.map_err(|error| withdraw(client, name, &version, error))?;
    Ok((version, answer))
}

fn create_model(client: &Client, name: &ModelName, description: Option<&str>) -> anyhow::Result<()> {
    let body = json!({"name": name.full(), "description": description});
    match client.call(Method::POST, &registry(&["registered-models", "create"]), &body) {
        Err(ClientError::Api { code, .. }) if code == "RESOURCE_ALREADY_EXISTS" => Ok(()),
        created => created.map(drop).with_context(|| format!("failed to register {name}")),
    }
}

fn create_version(
    client: &Client,
    name: &ModelName,
    source: &str,
    description: Option<&str>,
) -> anyhow::Result<String> {
    let body = json!({"name": name.full(), "source": source, "description": description, "feature_deps": ""});
    let answer = client
        .call(Method::POST, &registry(&["model-versions", "create"]), &body)
        .with_context(|| format!("failed to create a version of {name}"))?;
    Ok(client::parse::<ModelVersionAnswer>(&answer)?.model_version.version)
}

/// Sends the files as they are read, under one bar for all bytes.
fn upload(client: &Client, name: &ModelName, version: &str, package: &PackageFiles) -> anyhow::Result<()> {
    let bar = progress_bar(package.bytes);
    for file in &package.files {
        let shown = &file.name;
        bar.set_message(shown.clone());
        let source = file.open()?;
        let mut path = vec!["api", "2.0", "fs", "files", "Models", &name.catalog, &name.schema, &name.model, version];
        path.extend(shown.split('/'));
        client
            .put_file(&path, bar.wrap_read(source), file.bytes)
            .with_context(|| format!("failed to upload {shown}"))?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// Drawn on stderr, and only if that is a terminal.
pub(super) fn progress_bar(bytes: u64) -> ProgressBar {
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
    use super::super::files::tests::iris;
    use super::super::render_error;
    use super::*;

    fn push_to(script: Script, dir: &Path) -> (anyhow::Result<String>, Vec<Asked>) {
        let mut out = Vec::new();
        let client = client::for_tests(&script.address);
        let name = "main.default.iris".parse().unwrap();
        let session = &mut Session { client, format: Format::Human, out: &mut out };
        let result = push_package(session, dir, &name, &origin(dir), None);
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
}
