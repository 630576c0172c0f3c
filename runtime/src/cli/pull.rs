//! `tessera model pull`: a package from a registry, or a version of a model from an MLflow server, becomes a version of
//! ours, or a folder. The command fetches it and pushes it; the server itself fetches nothing from elsewhere.

mod mlflow;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::json;

use self::mlflow::ModelUri;
use super::client::Client;
use super::files::PackageFiles;
use super::model::ModelName;
use super::oci::{self, Address, RegistryOptions};
use super::{ClientOptions, Format, Session, json, note, print_bytes, push};

/// What to fetch, and as what.
#[derive(Debug, Args)]
pub struct PullArgs {
    #[command(flatten)]
    from: Model,
    #[command(flatten)]
    into: Destination,
}

/// What to fetch.
#[derive(Debug, Args)]
struct Model {
    /// A package in a registry, like oci://HOST/REPOSITORY:TAG or oci://HOST/REPOSITORY@sha256:…, or a model of MLflow:
    /// models:/NAME/VERSION, models:/NAME/STAGE or models:/NAME@ALIAS
    #[arg(value_name = "ADDRESS|MODEL_URI")]
    model: Source,
    /// Address of the MLflow server
    #[arg(long, value_name = "URL", env = "MLFLOW_TRACKING_URI")]
    from: Option<String>,
    /// Access token of the MLflow server, if it wants one
    #[arg(long, value_name = "TOKEN", env = "MLFLOW_TRACKING_TOKEN", hide_env_values = true)]
    from_token: Option<String>,
    #[command(flatten)]
    registry: RegistryOptions,
}

/// Where a model lies.
#[derive(Debug, Clone)]
enum Source {
    Registry(Address),
    Mlflow(ModelUri),
}

impl FromStr for Source {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Address::is_meant(text) {
            true => text.parse().map(Source::Registry),
            false => mlflow::parse_uri(text).map(Source::Mlflow),
        }
    }
}

/// What becomes of it.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Destination {
    /// Registered model that gets the new version; it is created if it does not exist
    #[arg(long = "as", value_name = "CATALOG.SCHEMA.MODEL")]
    name: Option<ModelName>,
    /// Folder to make with the package in it; no server is needed
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

impl PullArgs {
    /// The folder that it goes to, for which no server is needed.
    pub(super) fn folder(&self) -> Option<&Path> {
        self.into.to.as_deref()
    }
}

/// Registers what is fetched.
pub(super) fn register(session: &mut Session, args: &PullArgs, options: &ClientOptions) -> anyhow::Result<()> {
    let name = args.into.name.as_ref().context("--as does not say which model it becomes")?;
    let dir = tempfile::tempdir().context("failed to make a folder for the files")?;
    let Fetched { source, text, .. } = fetch(&args.from, dir.path(), options)?;
    note(&format!("fetched {text}"));
    push::push_package(session, dir.path(), name, &source, None)
}

/// Puts what is fetched into a folder, as a whole: until all is there, the folder is not.
pub(super) fn into_folder(
    folder: &Path,
    args: &PullArgs,
    options: &ClientOptions,
    format: Format,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let is_free = !folder.exists() || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    ensure!(is_free, "{} is there already: give a folder that is not, or is empty", folder.display());
    let parent = folder.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("failed to make {}", parent.display()))?;
    // Beside it, for a file system to rename; a folder below it, for that has the rights which the person wants.
    let beside = tempfile::Builder::new().prefix(".tessera-pull-").tempdir_in(parent);
    let beside = beside.with_context(|| format!("failed to make a folder in {}", parent.display()))?;
    let package = beside.path().join("package");
    fs::create_dir(&package).context("failed to make a folder for the files")?;
    let Fetched { source, text, json } = fetch(&args.from, &package, options)?;
    PackageFiles::open(&package).with_context(|| format!("{source} is not a package"))?;
    fs::rename(&package, folder).with_context(|| format!("failed to make {}", folder.display()))?;
    let answer = match format {
        Format::Json => json::pretty(&json.to_string()),
        Format::Human => format!("{}: {text}", folder.display()),
    };
    print_bytes(out, format!("{answer}\n").as_bytes())
}

/// A package that has come.
struct Fetched {
    /// Where from, as it will be found again.
    source: String,
    /// For people.
    text: String,
    /// For programs.
    json: serde_json::Value,
}

fn fetch(from: &Model, into: &Path, options: &ClientOptions) -> anyhow::Result<Fetched> {
    match &from.model {
        Source::Registry(address) => {
            let found = oci::pull(address, into, &from.registry, options)?;
            Ok(Fetched { source: found.address.to_string(), text: found.text(), json: found.json() })
        }
        Source::Mlflow(model) => {
            let server = from.from.as_deref().context("an MLflow server is needed: give its address with --from")?;
            let mlflow = Client::at(server, from.from_token.clone().unwrap_or_default(), options)?;
            let found = mlflow::pull(&mlflow, model, into).with_context(|| format!("failed to pull from {server}"))?;
            let (version, files) = found;
            let source = format!("{server} models:/{}/{version}", model.name);
            let text = format!("{} version {version} from {server}: {files} files", model.name);
            Ok(Fetched { json: json!({"source": source, "files": files}), source, text })
        }
    }
}
