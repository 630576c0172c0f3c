//! `tessera doctor`: what a server with these settings would find on this machine, without starting one; and what there is
//! to build components with. Each finding is ok, something to know, or missing, and says the way out.

mod checks;

use std::io;
use std::process::ExitCode;

use clap::Args;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use super::{build, table};
use crate::config::{ConfigError, ServeArgs, ServeConfig};
use crate::nn::Backends;
use crate::nn::backends::GpuParts;
use crate::sandbox::{Sandbox, engine};

/// The settings of the server that it would be, since they decide what is looked for.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    serve: ServeArgs,
}

/// What was found. The fields are those of the JSON; an absent thing is `null`, and its check or `reason` says why.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    cores: usize,
    memory_bytes: Option<u64>,
    /// Null when there is no limit.
    address_space_bytes: Option<u64>,
    kernel: Option<String>,
    swap: bool,
    instances: Instances,
    backends: Vec<FoundBackend>,
    gpu: Gpu,
    /// Whether a server with these settings could start.
    can_serve: bool,
    checks: Vec<Check>,
}

/// A finding.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Check {
    /// What was looked at.
    pub(super) name: &'static str,
    pub(super) status: Status,
    /// What was found.
    pub(super) found: String,
    /// What to do about it; null where there is nothing to do.
    pub(super) fix: Option<String>,
}

/// What a finding means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Ok,
    /// It works, but slower or less than it could.
    Warn,
    /// It is not there, and what needs it does not work.
    Missing,
}

impl Check {
    pub(super) fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check { name, status: Status::Ok, found: found.into(), fix: None }
    }

    pub(super) fn warn(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Check {
        Check { name, status: Status::Warn, found: found.into(), fix: Some(fix.into()) }
    }

    pub(super) fn missing(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Check {
        Check { name, status: Status::Missing, found: found.into(), fix: Some(fix.into()) }
    }
}

#[derive(Debug, Serialize)]
struct Instances {
    /// How many fit in the pool; null when it cannot be had.
    pool: Option<u32>,
    pagemap_scan: bool,
}

#[derive(Debug, Serialize)]
struct FoundBackend {
    name: &'static str,
    version: Option<String>,
    path: Option<String>,
    /// Why it is absent.
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
struct Gpu {
    usable: bool,
    provider: Option<String>,
    cuda_version: Option<String>,
    devices: Vec<Device>,
    /// What is missing for graphs on a GPU.
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
struct Device {
    name: String,
    memory_bytes: u64,
}

/// Looks and prints. The exit code is 0 unless the settings are wrong or no server could start.
pub fn run(args: DoctorArgs) -> ExitCode {
    let json = args.json;
    let report = match args.serve.resolve() {
        Ok(config) => Report::new(&config),
        Err(error) => return wrong_settings(&error),
    };
    let text = match json {
        true => super::json::pretty(&serde_json::json!(report).to_string()) + "\n",
        false => report.text(),
    };
    // A reader that has gone has all it wanted.
    let _ = super::print_bytes(&mut io::stdout().lock(), text.as_bytes());
    if report.can_serve { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn wrong_settings(error: &ConfigError) -> ExitCode {
    super::note(&format!("error: {error}"));
    ExitCode::FAILURE
}

impl Report {
    fn new(config: &ServeConfig) -> Report {
        let swap = engine::swap_is_active();
        let wanted = u32::try_from(config.concurrent_requests_max).unwrap_or(u32::MAX);
        let pool = Sandbox::new(wanted).map(|sandbox| sandbox.allocation().clone());
        let found = Backends::discover(config.onnxruntime.as_deref());
        let (gpu, backends) = match &found {
            Ok(backends) => (Gpu::new(&backends.gpu()), FoundBackend::all(backends)),
            Err(error) => (Gpu::without(error.to_string()), vec![FoundBackend::absent(&error.to_string())]),
        };
        // A library that was named is not optional, so without it there is no server.
        let needed = [checks::pool(&pool, wanted), checks::home(config), checks::tls(config)];
        let can_serve = found.is_ok() && needed.iter().all(|check| check.status != Status::Missing);
        let mut checks = Vec::from(needed);
        checks.extend([
            checks::page_map_scan(pool.as_ref().ok(), swap),
            checks::files(config),
            checks::mappings(config),
        ]);
        checks.extend(backends.iter().map(|backend| backend.check(found.is_ok())));
        checks.push(gpu.check());
        checks.extend(build::toolchains());
        Report {
            version: env!("CARGO_PKG_VERSION"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_bytes(),
            address_space_bytes: getrlimit(Resource::As).current,
            kernel: read("/proc/sys/kernel/osrelease"),
            swap,
            instances: Instances {
                pool: pool.as_ref().ok().map(|pool| pool.instances_max),
                pagemap_scan: pool.as_ref().is_ok_and(|pool| pool.pagemap_scan),
            },
            backends,
            gpu,
            can_serve,
            checks,
        }
    }

    fn text(&self) -> String {
        let unknown = || "unknown".to_owned();
        let memory = self.memory_bytes.map_or_else(unknown, table::size);
        let space = self.address_space_bytes.map_or_else(|| "unlimited".to_owned(), table::size);
        let kernel = self.kernel.clone().unwrap_or_else(unknown);
        let mut text = format!(
            "tessera {}: {} cores, {memory} of memory, address space {space}, kernel {kernel}\n",
            self.version, self.cores
        );
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
        for check in &self.checks {
            let status = match check.status {
                Status::Ok => "ok",
                Status::Warn => "warn",
                Status::Missing => "missing",
            };
            text.push_str(&format!("  {status:<7}  {:<width$}  {}\n", check.name, check.found.replace('\n', " ")));
            if let Some(fix) = &check.fix {
                text.push_str(&format!("  {:<7}  {:<width$}  → {fix}\n", "", ""));
            }
        }
        text.push_str(if self.can_serve {
            "A server can start.\n"
        } else {
            "No server can start with these settings.\n"
        });
        table::printable(&text)
    }
}

impl FoundBackend {
    fn all(backends: &Backends) -> Vec<FoundBackend> {
        let found = backends.available().map(|backend| FoundBackend {
            name: backend.id().name(),
            version: Some(backend.version().to_owned()),
            path: backend.library().map(|path| path.display().to_string()),
            reason: None,
        });
        backends.onnxruntime_absent().map(FoundBackend::absent).into_iter().chain(found).collect()
    }

    fn absent(reason: &str) -> FoundBackend {
        FoundBackend { name: "onnxruntime", version: None, path: None, reason: Some(reason.to_owned()) }
    }

    /// Whether it can be done without depends on who asked for it.
    fn check(&self, optional: bool) -> Check {
        let Some(reason) = &self.reason else {
            let version = self.version.as_deref().unwrap_or_default();
            return Check::ok(self.name, format!("{version}  {}", self.path.as_deref().unwrap_or("built in")));
        };
        const FIX: &str = "`pip download onnxruntime` has libonnxruntime.so: give it with --onnxruntime";
        if optional {
            Check::warn(self.name, format!("graphs run on tract, which is slower: {reason}"), FIX)
        } else {
            Check::missing(self.name, reason, FIX)
        }
    }
}

impl Gpu {
    fn new(parts: &GpuParts) -> Gpu {
        let reasons = [parts.provider.as_ref().err().map(String::as_str), parts.driver.err()];
        let reasons: Vec<&str> = reasons.into_iter().flatten().collect();
        let devices = parts.driver.iter().flat_map(|driver| &driver.devices);
        Gpu {
            usable: reasons.is_empty(),
            provider: parts.provider.as_ref().ok().map(|path| path.display().to_string()),
            cuda_version: parts.driver.ok().map(|driver| driver.cuda_version.clone()),
            devices: devices.map(|it| Device { name: it.name.clone(), memory_bytes: it.memory_bytes }).collect(),
            reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
        }
    }

    fn check(&self) -> Check {
        let devices: Vec<String> =
            self.devices.iter().map(|it| format!("{}, {}", it.name, table::size(it.memory_bytes))).collect();
        match &self.reason {
            None => Check::ok("gpu", devices.join("; ")),
            Some(reason) => Check::missing(
                "gpu",
                format!("none for graphs: {reason}"),
                "only for graphs with target = \"gpu\": an NVIDIA driver and the libraries of onnxruntime-gpu",
            ),
        }
    }

    fn without(reason: String) -> Gpu {
        Gpu { usable: false, provider: None, cuda_version: None, devices: vec![], reason: Some(reason) }
    }
}

/// The machine's memory, or what this process's group may have of it.
fn memory_bytes() -> Option<u64> {
    let meminfo = read("/proc/meminfo")?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let total = total?.trim().parse::<u64>().ok()? << 10;
    let limit = read("/sys/fs/cgroup/memory.max").and_then(|limit| limit.parse().ok());
    Some(limit.map_or(total, |limit: u64| limit.min(total)))
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
