//! The compile worker: a child process of the same binary that runs `init`, freezes and compiles, under limits.
//!
//! Compiling untrusted code can take any amount of time and memory (a few hundred kilobytes of crafted functions take
//! minutes and gigabytes), so it never happens in the serving process.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::package::InitTime;
use crate::nn::backends;
use crate::sandbox::prepare::{Preparation, PrepareError, PrepareReport, prepare};
use crate::sandbox::{GuestPackage, RequestLimits, World};

/// Largest report a worker may print.
const REPORT_BYTES_MAX: u64 = 1 << 20;

/// Largest artifact a worker may write.
const ARTIFACT_BYTES_MAX: u64 = 1 << 30;

/// One component to prepare, as the worker reads it from its standard input.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// The component's file.
    pub component: PathBuf,
    /// The world that it is made for.
    pub world: World,
    /// Where the artifact goes.
    pub artifact: PathBuf,
    /// Settings of the guest.
    pub settings: BTreeMap<String, String>,
    /// Assets by name.
    pub assets: BTreeMap<String, PathBuf>,
    /// Model files by the graph's name.
    pub graphs: BTreeMap<String, GraphFile>,
    /// Limits of requests.
    pub limits: RequestLimits,
    /// When `init` runs.
    pub init: InitTime,
    /// How long `init` may run.
    pub init_ms: u64,
    /// Address space of the worker.
    pub memory_bytes: u64,
    /// Processor time of the worker.
    pub cpu_s: u64,
}

/// A model file and the files beside it that may hold its weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GraphFile {
    /// The model file.
    pub path: PathBuf,
    /// Names of files in its folder.
    pub external_files: Vec<String>,
}

/// Starts worker processes.
#[derive(Debug, Clone)]
pub struct Workers {
    /// The `tessera` binary.
    pub executable: PathBuf,
    /// How long one may run.
    pub timeout: Duration,
}

impl Workers {
    /// Runs one job in a process of its own. Dropping the future kills the process.
    ///
    /// # Errors
    /// What is wrong with the component, in a sentence for its author.
    pub async fn run(&self, job: &Job) -> Result<PrepareReport, PrepareError> {
        let broken = |message: String| PrepareError { message, log: String::new() };
        match tokio::time::timeout(self.timeout, self.talk(job)).await {
            Err(_) => Err(broken(format!(
                "compiling the component took longer than {} ms (compile_timeout_ms)",
                self.timeout.as_millis()
            ))),
            Ok(Err(error)) => Err(broken(format!("the compile worker could not be run: {error}"))),
            Ok(Ok((status, report))) => match serde_json::from_slice(&report) {
                Ok(result) => result,
                Err(_) => Err(broken(explain_death(status, job))),
            },
        }
    }

    async fn talk(&self, job: &Job) -> std::io::Result<(ExitStatus, Vec<u8>)> {
        let mut child = tokio::process::Command::new(&self.executable)
            .arg("compile-worker")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        if let Some(mut stdin) = stdin {
            // A worker that died early has closed its end; its status tells more than this error.
            let _ = stdin.write_all(&serde_json::to_vec(job)?).await;
        }
        let mut report = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(REPORT_BYTES_MAX).read_to_end(&mut report).await?;
        }
        Ok((child.wait().await?, report))
    }
}

/// A worker that ends without a report was stopped by one of its limits, or by a crash of the compiler.
fn explain_death(status: ExitStatus, job: &Job) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(24) => format!("compiling the component took more than {} s of processor time", job.cpu_s),
        Some(6 | 9 | 11) | None => format!(
            "compiling the component failed, most likely for want of memory: the worker had {} bytes \
             (compile_memory_bytes_max)",
            job.memory_bytes
        ),
        Some(signal) => format!("the compile worker was ended by signal {signal}"),
    }
}

/// The worker's side: reads a job, limits itself, works, prints the report.
pub fn main() -> ExitCode {
    let mut text = String::new();
    let job: Job = match std::io::stdin().read_to_string(&mut text).map(|_| serde_json::from_str(&text)) {
        Ok(Ok(job)) => job,
        _ => {
            eprintln!("compile-worker is run by the server; it reads a job from standard input");
            return ExitCode::from(2);
        }
    };
    let result = limit_self(&job)
        .map_err(|error| PrepareError {
            message: format!("the worker's limits cannot be set: {error}"),
            log: String::new(),
        })
        .and_then(|()| work(&job));
    let Ok(report) = serde_json::to_vec(&result) else { return ExitCode::FAILURE };
    match std::io::stdout().write_all(&report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn limit_self(job: &Job) -> rustix::io::Result<()> {
    let lower = |resource, limit: u64, above: u64| {
        let most = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let maximum = most.min(limit.saturating_add(above));
        setrlimit(resource, Rlimit { current: Some(limit.min(maximum)), maximum: Some(maximum) })
    };
    lower(Resource::As, job.memory_bytes, 0)?;
    // At the lower limit comes SIGXCPU, which tells this end from others; only the upper one kills.
    lower(Resource::Cpu, job.cpu_s, 1)?;
    lower(Resource::Fsize, ARTIFACT_BYTES_MAX, 0)?;
    lower(Resource::Core, 0, 0)
}

fn work(job: &Job) -> Result<PrepareReport, PrepareError> {
    // The path is this machine's business.
    let failed = |what: &str, error: &dyn std::fmt::Display| PrepareError {
        message: format!("the compile worker failed to {what}: {error}"),
        log: String::new(),
    };
    let component = std::fs::read(&job.component).map_err(|error| failed("read the component", &error))?;
    let mut graphs = BTreeMap::new();
    for (name, graph) in &job.graphs {
        let info = backends::inspect(&graph.path, &graph.external_files)
            .map_err(|error| PrepareError { message: format!("graph '{name}': {error}"), log: String::new() })?;
        graphs.insert(name.clone(), info);
    }
    let preparation = Preparation {
        component,
        world: job.world,
        package: GuestPackage { settings: job.settings.clone(), graphs },
        assets: Arc::new(job.assets.clone()),
        limits: job.limits.clone(),
        init: job.init,
        init_ms: job.init_ms,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|error| failed("start", &error))?;
    let prepared = runtime.block_on(prepare(preparation))?;
    std::fs::write(&job.artifact, &prepared.artifact).map_err(|error| failed("write the artifact", &error))?;
    Ok(prepared.report)
}
