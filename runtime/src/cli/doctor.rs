//! `tessera doctor`: what a server with these settings would find on this machine, without starting one.

use std::io;
use std::process::ExitCode;

use clap::Args;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use super::table;
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

/// What was found. The fields are those of the JSON; an absent thing is `null`, and `warnings` or its `reason` says why.
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
    warnings: Vec<String>,
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

/// Looks and prints. What is missing is a warning, not a failure: the exit code is 0 unless the settings are wrong.
pub fn run(args: DoctorArgs) -> ExitCode {
    let json = args.json;
    let report = match args.serve.resolve() {
        Ok(config) => Report::new(&config),
        Err(error) => return wrong_settings(&error),
    };
    let text = match json {
        true => super::json::pretty(&serde_json::json!(report).to_string()) + "\n",
        false => report.table(),
    };
    // A reader that has gone has all it wanted.
    let _ = super::print_bytes(&mut io::stdout().lock(), text.as_bytes());
    ExitCode::SUCCESS
}

fn wrong_settings(error: &ConfigError) -> ExitCode {
    super::note(&format!("error: {error}"));
    ExitCode::FAILURE
}

impl Report {
    fn new(config: &ServeConfig) -> Report {
        let mut warnings = Vec::new();
        let swap = engine::swap_is_active();
        let instances = Instances::new(config, swap, &mut warnings);
        let backends = Backends::discover(config.onnxruntime.as_deref());
        let (gpu, backends) = match &backends {
            Ok(backends) => (Gpu::new(&backends.gpu()), FoundBackend::all(backends)),
            Err(error) => (Gpu::without(error.to_string()), vec![FoundBackend::absent(&error.to_string())]),
        };
        warnings.extend(backends.iter().filter_map(FoundBackend::warning));
        Report {
            version: env!("CARGO_PKG_VERSION"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_bytes(),
            address_space_bytes: getrlimit(Resource::As).current,
            kernel: read("/proc/sys/kernel/osrelease"),
            swap,
            instances,
            backends,
            gpu,
            warnings,
        }
    }

    fn table(&self) -> String {
        let unknown = || "unknown".to_owned();
        let yes_or_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        let mut rows = vec![
            ("cores", self.cores.to_string()),
            ("memory", self.memory_bytes.map_or_else(unknown, table::size)),
            ("address space", self.address_space_bytes.map_or_else(|| "unlimited".to_owned(), table::size)),
            ("kernel", self.kernel.clone().unwrap_or_else(unknown)),
            ("swap", if self.swap { "in use" } else { "off" }.to_owned()),
            (
                "instance pool",
                self.instances.pool.map_or_else(|| "none".to_owned(), |most| format!("{most} instances")),
            ),
            ("page-map scan", yes_or_no(self.instances.pagemap_scan)),
        ];
        rows.extend(self.backends.iter().map(|backend| (backend.name, backend.text())));
        rows.push(("gpu", self.gpu.reason.as_ref().map_or_else(|| "yes".to_owned(), |why| format!("no: {why}"))));
        rows.extend(self.gpu.provider.iter().map(|path| ("  provider", path.clone())));
        rows.extend(self.gpu.cuda_version.iter().map(|version| ("  driver", format!("for CUDA {version}"))));
        rows.extend(
            self.gpu.devices.iter().map(|it| ("  device", format!("{}, {}", it.name, table::size(it.memory_bytes)))),
        );
        rows.push(("warnings", if self.warnings.is_empty() { "none".to_owned() } else { self.warnings.join("\n") }));
        table::facts(&format!("tessera {}", self.version), &rows)
    }
}

impl Instances {
    /// Reserves what a server would, for a moment.
    fn new(config: &ServeConfig, swap: bool, warnings: &mut Vec<String>) -> Instances {
        let wanted = u32::try_from(config.concurrent_requests_max).unwrap_or(u32::MAX);
        let allocation = match Sandbox::new(wanted) {
            Ok(sandbox) => sandbox.allocation().clone(),
            Err(error) => {
                warnings.push(format!("no server can start: {error:#}"));
                return Instances { pool: None, pagemap_scan: false };
            }
        };
        if swap {
            warnings.push("swap is active, so instances are cleared without the page-map scan, which is slower".into());
        } else if !allocation.pagemap_scan {
            warnings.push("the kernel has no page-map scan (Linux 6.7 or newer has), so instances start slower".into());
        }
        Instances { pool: Some(allocation.instances_max), pagemap_scan: allocation.pagemap_scan }
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

    fn warning(&self) -> Option<String> {
        let reason = self.reason.as_ref()?;
        Some(format!("backend {} is absent, so graphs run slower or not at all: {reason}", self.name))
    }

    fn text(&self) -> String {
        let place = self.path.as_deref().unwrap_or("built in");
        self.version.as_ref().map_or_else(|| "absent".to_owned(), |version| format!("{version}  {place}"))
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
