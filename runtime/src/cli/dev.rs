//! `tessera dev`: a project is served while it is written. Each change is built, registered and deployed as a new version
//! of one endpoint of a server in this process, whose home is the project's `.tessera`; what cannot be built or deployed is
//! told, and the version before serves on.

mod swap;
mod watch;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use reqwest::Method;
use serde_json::json;

use self::watch::Watch;
use super::build::Swappable;
use super::client::{self, Client, ClientError};
use super::endpoint::{self, endpoint};
use super::files::PackageFiles;
use super::model::{ModelName, delete_version};
use super::project::Project;
use super::wire::{Endpoint, Logs};
use super::{ClientOptions, build, note, print_bytes, push, table};
use crate::catalog::check_endpoint_name;
use crate::config::{ServeArgs, ServeConfig};
use crate::deploy::package::Package;
use crate::observe::log::{self, LogFormat, LogLevel};
use crate::server;

/// How often logs are looked for.
const TICK: Duration = Duration::from_millis(200);

/// How often a deploy is asked whether it has ended: most take a fraction of a second.
const DEPLOY_POLL: Duration = Duration::from_millis(10);

/// What to serve while it is written.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Folder of the project, or one below it
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Port of the loopback interface [default: a free one]
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// Optimise: slower to build, faster to run
    #[arg(long)]
    release: bool,
    /// ONNX Runtime library, as for `tessera serve`
    #[arg(long, value_name = "FILE", env = "TESSERA_ONNXRUNTIME", hide_env = true)]
    onnxruntime: Option<PathBuf>,
}

pub(super) fn run(args: &DevArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let project = Project::find(&args.dir)?;
    endpoint_name(&project)?;
    // Before the first build, so that no change is missed.
    let watch = Watch::start(&project)?;
    let mut server = DevServer::start(&project, args)?;
    let mut dev = Dev::new(&project, args.release, &server)?;
    dev.introduce(&server)?;
    dev.swap();
    while server.is_up() {
        if watch.has_changed(TICK) {
            // The last lines of the version that goes.
            dev.print_logs(out)?;
            dev.swap();
        }
        dev.print_logs(out)?;
    }
    server.join()
}

/// The folder's name, as far as an endpoint may have it.
fn endpoint_name(project: &Project) -> anyhow::Result<String> {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    let name: String = project.name.chars().map(plain).collect();
    check_endpoint_name(&name).with_context(|| {
        format!("the endpoint has the name of its folder, {}: give the folder another name", project.root.display())
    })?;
    Ok(name)
}

/// The server, which ends this process when a signal has ended it.
struct DevServer {
    address: SocketAddr,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl DevServer {
    fn start(project: &Project, args: &DevArgs) -> anyhow::Result<DevServer> {
        let config = ServeArgs {
            home: Some(project.scratch_root()),
            listen: Some(([127, 0, 0, 1], args.port).into()),
            onnxruntime: args.onnxruntime.clone(),
            log_format: Some(LogFormat::Human),
            log_level: Some(LogLevel::Warn),
            ..ServeArgs::default()
        };
        let config: ServeConfig = config.resolve()?;
        log::init(config.log_format, config.log_level)?;
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::Builder::new().name("server".to_owned()).spawn(move || {
            server::serve(&config, |address| {
                // Nobody waits any more: then this process is about to end.
                let _ = ready.send(address);
            })
        })?;
        match is_ready.recv() {
            Ok(address) => Ok(DevServer { address, thread: Some(thread) }),
            // It has ended without an address.
            Err(_) => Err(join(thread).err().unwrap_or_else(|| anyhow!("the server ended before it was ready"))),
        }
    }

    fn is_up(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn join(&mut self) -> anyhow::Result<()> {
        self.thread.take().map_or(Ok(()), join)
    }
}

fn join(thread: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    thread.join().unwrap_or_else(|_| bail!("the server panicked"))
}

/// One project on its way through versions.
struct Dev {
    root: PathBuf,
    release: bool,
    name: String,
    model: ModelName,
    client: Client,
    /// What was deployed last, in this process.
    deployed: Option<Package>,
    logs: Tail,
}

impl Dev {
    fn new(project: &Project, release: bool, server: &DevServer) -> anyhow::Result<Dev> {
        let options = ClientOptions {
            host: Some(format!("http://{}", server.address)),
            home: project.scratch_root(),
            token: None,
            ca_cert: None,
            client_cert: None,
            client_key: None,
            json: false,
        };
        let name = endpoint_name(project)?;
        let model = format!("main.default.{name}").parse().map_err(|error: &str| anyhow!(error))?;
        let client = Client::new(&options)?;
        Ok(Dev { root: project.root.clone(), release, name, model, client, deployed: None, logs: Tail::default() })
    }

    /// Says where the endpoint is, and how it is called.
    fn introduce(&self, server: &DevServer) -> anyhow::Result<()> {
        let project = self.project()?;
        let token = project.scratch_root().join("admin.token");
        let data = project
            .manifest
            .golden_request()
            .map_or_else(|| "'{}'".to_owned(), |golden| format!("@{}", self.root.join(golden).display()));
        note(&format!(
            "serving {} at http://{}; Ctrl-C ends it\n  curl -sS -H \"Authorization: Bearer $(cat {})\" \
             -H 'Content-Type: application/json' \\\n    http://{}/serving-endpoints/{}/invocations --data {data}",
            self.root.display(),
            server.address,
            token.display(),
            server.address,
            self.name,
        ));
        Ok(())
    }

    /// Read anew each time: the manifest may be what has changed.
    fn project(&self) -> anyhow::Result<Project> {
        Project::open(&self.root)?.context("the manifest has no [build] table any more")
    }

    /// Serves the project as it is now, or says why not.
    fn swap(&mut self) {
        let started = Instant::now();
        match self.try_swap() {
            Ok(Some(version)) => {
                note(&format!("version {version} serves, after {:.2} s", started.elapsed().as_secs_f64()));
            }
            Ok(None) => {}
            Err(error) => {
                let before = if self.deployed.is_some() { "; the version before serves on" } else { "" };
                note(&format!("error: {}{before}", table::printable(&format!("{error:#}"))));
            }
        }
    }

    /// The new version; none if the package is the same as before.
    fn try_swap(&mut self) -> anyhow::Result<Option<String>> {
        let project = self.project()?;
        let Some(swappable) = Swappable::of(&project)? else {
            // Whatever has changed: an asset may be a source as well, and cargo knows.
            build::build(&project, self.release)?;
            return self.deploy(&PackageFiles::open(&self.root)?);
        };
        swap::build(&project, &swappable, false)?;
        let swapped = self.deploy(&swap::package(&project, &swappable)?);
        let Some(reason) = swapped.as_ref().err().and_then(swap::needs_build) else { return swapped };
        note(&format!("a whole build is needed: {}", table::printable(&reason)));
        swap::build(&project, &swappable, true)?;
        self.deploy(&swap::package(&project, &swappable)?)
    }

    fn deploy(&mut self, files: &PackageFiles) -> anyhow::Result<Option<String>> {
        let package = files.check()?;
        if self.deployed.as_ref() == Some(&package) {
            return Ok(None);
        }
        let (version, _) = push::register(&self.client, &self.model, files, &push::origin(&self.root), None)?;
        let before = self.settled_endpoint()?;
        let name = format!("{}-{version}", self.model.model);
        let entity = json!({
            "name": name,
            "entity_name": self.model.full(),
            "entity_version": version,
            "workload_size": "Small",
            "scale_to_zero_enabled": false,
        });
        let config = json!({ "served_entities": [entity] });
        let accepted = match before {
            None => self.client.call(Method::POST, &endpoint(&[]), &json!({ "name": self.name, "config": config })),
            Some(_) => self.client.call(Method::PUT, &endpoint(&[&self.name, "config"]), &config),
        };
        let deployed =
            accepted.map_err(anyhow::Error::from).and_then(|_| endpoint::wait(&self.client, &self.name, DEPLOY_POLL));
        // What serves no more, or never did, is of no use to anybody; where it is still needed, the server refuses.
        for old in before.iter().flat_map(versions).chain(deployed.is_err().then_some(version.as_str())) {
            let _ = delete_version(&self.client, &self.model, old);
        }
        if let Err(error) = deployed {
            // There is no log of a deploy that was not begun.
            let _ = self.print_failure(&name);
            return Err(error);
        }
        self.deployed = Some(package);
        self.logs = Tail::default();
        Ok(Some(version))
    }

    /// The endpoint when nothing is being deployed: a server takes up again what its end has interrupted, and refuses another
    /// config meanwhile.
    fn settled_endpoint(&self) -> anyhow::Result<Option<Endpoint>> {
        let found = self.endpoint()?;
        if !found.as_ref().is_some_and(Endpoint::is_updating) {
            return Ok(found);
        }
        note("waiting for the deploy that the last end has interrupted");
        // Whether it succeeds: the next follows in any case.
        let _ = endpoint::wait(&self.client, &self.name, DEPLOY_POLL);
        self.endpoint()
    }

    fn endpoint(&self) -> anyhow::Result<Option<Endpoint>> {
        match self.client.get(&endpoint(&[&self.name]), &[]) {
            Ok(answer) => Ok(Some(client::parse(&answer)?)),
            Err(ClientError::Api { code, .. }) if code == "RESOURCE_DOES_NOT_EXIST" => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Prints what the guest wrote while its deploy failed: a traceback is there, and not in the reason.
    fn print_failure(&self, entity: &str) -> anyhow::Result<()> {
        let answer = self.client.get(&endpoint(&[&self.name, "served-models", entity, "build-logs"]), &[])?;
        let log = client::parse::<Logs>(&answer)?.logs;
        let of_guest = log.lines().filter_map(|line| Some(line.split_once("] guest: ")?.1));
        of_guest.for_each(|line| note(&table::printable(line)));
        Ok(())
    }

    /// Prints what the guest has written since the last time.
    fn print_logs(&mut self, out: &mut dyn Write) -> anyhow::Result<()> {
        // The server may be at its end, which the caller sees.
        let Ok(Some(Endpoint { config: Some(config), .. })) = self.endpoint() else { return Ok(()) };
        for entity in &config.served_entities {
            let path = endpoint(&[&self.name, "served-models", &entity.name, "logs"]);
            let Ok(answer) = self.client.get(&path, &[]) else { continue };
            let text = client::parse::<Logs>(&answer)?.logs;
            print_bytes(out, table::printable(self.logs.new_part(&entity.name, &text)).as_bytes())?;
        }
        Ok(())
    }
}

/// The versions of an endpoint's configs: of that which serves, and of that which failed.
fn versions(endpoint: &Endpoint) -> impl Iterator<Item = &str> {
    let entities = endpoint.config.iter().chain(&endpoint.pending_config).flat_map(|config| &config.served_entities);
    entities.filter_map(|entity| entity.entity_version.as_deref())
}

/// How far a log has been printed.
#[derive(Debug, Default)]
struct Tail {
    entity: String,
    printed: String,
}

impl Tail {
    /// What has been added to a log; all of it, where its beginning is gone and nothing in it is known.
    fn new_part<'t>(&mut self, entity: &str, text: &'t str) -> &'t str {
        if self.entity != entity {
            *self = Tail { entity: entity.to_owned(), printed: String::new() };
        }
        let new = text.strip_prefix(self.printed.as_str()).unwrap_or_else(|| {
            let last = self.printed.lines().last().unwrap_or_default();
            text.rfind(last).map_or(text, |at| text[at + last.len()..].trim_start_matches('\n'))
        });
        self.printed = text.to_owned();
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_a_log_is_printed_once() {
        let mut tail = Tail::default();
        assert_eq!(tail.new_part("e-1", "1 a\n"), "1 a\n");
        assert_eq!(tail.new_part("e-1", "1 a\n2 b\n"), "2 b\n");
        assert_eq!(tail.new_part("e-1", "1 a\n2 b\n"), "");
        // The oldest line is gone.
        assert_eq!(tail.new_part("e-1", "2 b\n3 c\n"), "3 c\n");
        assert_eq!(tail.new_part("e-1", "7 x\n8 y\n"), "7 x\n8 y\n");
        assert_eq!(tail.new_part("e-2", "7 x\n"), "7 x\n");
    }
}
