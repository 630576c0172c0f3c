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

use super::manifest::InitTime;
use crate::nn::{NnErrorKind, backends};
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
    /// Why there is no artifact, and whose fault that is.
    pub async fn run(&self, job: &Job) -> Result<PrepareReport, WorkerError> {
        match tokio::time::timeout(self.timeout, self.talk(job)).await {
            Err(_) => Err(WorkerError::TimedOut(format!(
                "compiling the component took longer than {} ms (compile_timeout_ms)",
                self.timeout.as_millis()
            ))),
            Ok(Err(error)) => Err(WorkerError::failed("run", &error)),
            Ok(Ok((status, report))) => {
                serde_json::from_slice(&report).unwrap_or_else(|_| Err(explain_death(status, job)))
            }
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

/// Why a worker made no artifact.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum WorkerError {
    /// Something is wrong with the component.
    #[error(transparent)]
    Component(PrepareError),
    /// It took longer than it may: the component's fault, or that of a busy machine.
    #[error("{0}")]
    TimedOut(String),
    /// Our own failure, for the operator.
    #[error("{0}")]
    Host(String),
}

impl WorkerError {
    fn failed(doing: &str, error: &dyn std::fmt::Display) -> WorkerError {
        WorkerError::Host(format!("the compile worker failed to {doing}: {error}"))
    }

    fn component(message: String) -> WorkerError {
        WorkerError::Component(PrepareError { message, log: String::new() })
    }
}

/// A worker that ends without a report was stopped by one of its limits, or by a crash of the compiler.
fn explain_death(status: ExitStatus, job: &Job) -> WorkerError {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(24) => {
            WorkerError::component(format!("compiling the component took more than {} s of processor time", job.cpu_s))
        }
        Some(25) => WorkerError::component(format!(
            "the compiled component with its memory is larger than {ARTIFACT_BYTES_MAX} bytes"
        )),
        Some(6 | 9 | 11) | None => WorkerError::component(format!(
            "compiling the component failed, most likely for want of memory: the worker had {} bytes \
             (compile_memory_bytes_max)",
            job.memory_bytes
        )),
        Some(signal) => WorkerError::Host(format!("the compile worker was ended by signal {signal}")),
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
    let result =
        limit_self(&job).map_err(|error| WorkerError::failed("set its limits", &error)).and_then(|()| work(&job));
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

fn work(job: &Job) -> Result<PrepareReport, WorkerError> {
    let component = std::fs::read(&job.component).map_err(|error| WorkerError::failed("read the component", &error))?;
    let mut graphs = BTreeMap::new();
    for (name, graph) in &job.graphs {
        let info = backends::inspect(&graph.path, &graph.external_files).map_err(|error| match error.kind() {
            // The package was read when it was registered, so its files are there.
            NnErrorKind::NotFound | NnErrorKind::RuntimeError => WorkerError::failed("read a graph", &error),
            _ => WorkerError::component(format!("graph '{name}': {error}")),
        })?;
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(|error| WorkerError::failed("start", &error))?;
    let prepared = runtime.block_on(prepare(preparation)).map_err(WorkerError::Component)?;
    std::fs::write(&job.artifact, &prepared.artifact)
        .map_err(|error| WorkerError::failed("write the artifact", &error))?;
    Ok(prepared.report)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A component without anything in it, which compiles.
    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

    fn job(dir: &Path) -> Job {
        let limits = RequestLimits {
            memory_bytes: 1 << 20,
            cpu_ms: 1000,
            wall_ms: 1000,
            tensor_bytes: 1 << 20,
            response_bytes: 1 << 20,
            log_bytes: 1 << 10,
        };
        std::fs::write(dir.join("component"), EMPTY).unwrap();
        Job {
            component: dir.join("component"),
            world: World::Endpoint,
            artifact: dir.join("artifact"),
            settings: BTreeMap::new(),
            assets: BTreeMap::new(),
            graphs: BTreeMap::new(),
            limits,
            init: InitTime::Request,
            init_ms: 1000,
            memory_bytes: 1 << 30,
            cpu_s: 10,
        }
    }

    #[test]
    fn what_this_machine_lacks_is_not_the_fault_of_the_component() {
        let dir = tempfile::tempdir().unwrap();
        work(&job(dir.path())).unwrap();
        let host_failure = |job: Job| match work(&job) {
            Err(WorkerError::Host(message)) => message,
            other => panic!("{other:?}"),
        };
        let message = host_failure(Job { artifact: dir.path().join("none/artifact"), ..job(dir.path()) });
        assert!(message.contains("failed to write the artifact"), "{message}");
        let message = host_failure(Job { component: dir.path().join("none"), ..job(dir.path()) });
        assert!(message.contains("failed to read the component"), "{message}");
        let gone = GraphFile { path: dir.path().join("none.onnx"), external_files: vec![] };
        let message = host_failure(Job { graphs: BTreeMap::from([("m".to_owned(), gone)]), ..job(dir.path()) });
        assert!(message.contains("failed to read a graph"), "{message}");

        let broken = job(dir.path());
        std::fs::write(&broken.component, "no component").unwrap();
        assert!(matches!(work(&broken), Err(WorkerError::Component(_))));
    }

    #[tokio::test]
    async fn a_worker_that_cannot_be_started_or_ends_late_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let run = async |executable: &Path, timeout| {
            Workers { executable: executable.to_owned(), timeout }.run(&job(dir.path())).await.unwrap_err()
        };
        let none = dir.path().join("none");
        assert!(matches!(run(&none, Duration::from_secs(60)).await, WorkerError::Host(_)));
        // It would talk for ever.
        assert!(matches!(run(Path::new("/usr/bin/yes"), Duration::ZERO).await, WorkerError::TimedOut(_)));
    }
}
