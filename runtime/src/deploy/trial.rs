//! The first load of a language model, in a child process of the same binary: llama.cpp ends the process that reads a
//! model which breaks its assumptions, and that must not be the server.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::worker::Workers;
use crate::nn::backends::{Backends, files_bytes};
use crate::nn::{BatchSpec, ExecutionTarget, GraphSource, LoadHost, NnError, SequenceSpec, Tenant, Tensor, TensorType};

/// Name of the child's command.
pub const COMMAND: &str = "model-worker";

/// Longest report of a child.
const REPORT_BYTES_MAX: u64 = 64 << 10;

/// Address space beside the model: libraries, the allocator, stacks.
const ADDRESS_SPACE_BYTES: u64 = 8 << 30;

/// Processor time, which a load of any size stays below: most of it is spent waiting for the disk.
const PROCESSOR_S: u64 = 600;

/// How long two tokens may take.
const TOKENS_MAX: Duration = Duration::from_secs(120);

#[derive(Debug, Serialize, Deserialize)]
struct Job {
    path: PathBuf,
    gpu: bool,
    context_tokens: Option<u32>,
    sequences: Option<u32>,
    cache_tokens: Option<u32>,
    memory_bytes_max: u64,
}

/// Loads a model in a child, and lets it say two tokens.
///
/// # Errors
/// What is wrong with the model, in a sentence for its author.
pub async fn run(workers: &Workers, source: &GraphSource) -> Result<(), String> {
    let SequenceSpec { context_tokens, sequences, cache_tokens } = source.sequences;
    let job = Job {
        path: source.path.clone(),
        gpu: source.target == ExecutionTarget::Gpu,
        context_tokens,
        sequences,
        cache_tokens,
        memory_bytes_max: source.host.memory_bytes_max,
    };
    match tokio::time::timeout(workers.timeout, talk(workers, &job)).await {
        Err(_) => Err(format!("loading the model took longer than {} ms", workers.timeout.as_millis())),
        Ok(Err(error)) => Err(format!("the model cannot be tried: {error}")),
        Ok(Ok(report)) => serde_json::from_slice(&report).unwrap_or_else(|_| {
            Err("the model brings llama.cpp down: it is damaged, or made for another version of it".to_owned())
        }),
    }
}

async fn talk(workers: &Workers, job: &Job) -> std::io::Result<Vec<u8>> {
    let mut child = tokio::process::Command::new(&workers.executable)
        .arg(COMMAND)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    if let Some(mut stdin) = stdin {
        // A child that died early has closed its end; its silence tells more than this error.
        let _ = stdin.write_all(&serde_json::to_vec(job)?).await;
    }
    let mut report = Vec::new();
    if let Some(stdout) = stdout {
        stdout.take(REPORT_BYTES_MAX).read_to_end(&mut report).await?;
    }
    child.wait().await?;
    Ok(report)
}

/// The child's side: reads a job, limits itself, works, prints the report.
pub fn main() -> ExitCode {
    let mut text = String::new();
    let job: Job = match std::io::stdin().read_to_string(&mut text).map(|_| serde_json::from_str(&text)) {
        Ok(Ok(job)) => job,
        _ => {
            eprintln!("{COMMAND} is run by the server; it reads a job from standard input");
            return ExitCode::from(2);
        }
    };
    let report = work(job).map_err(|error| error.to_string());
    let Ok(report) = serde_json::to_vec(&report) else { return ExitCode::FAILURE };
    match std::io::stdout().write_all(&report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn work(job: Job) -> Result<(), NnError> {
    let target = if job.gpu { ExecutionTarget::Gpu } else { ExecutionTarget::Cpu };
    let source = GraphSource {
        path: job.path,
        external_files: Vec::new(),
        target,
        batch: BatchSpec::default(),
        intra_op_threads: 1,
        converted: None,
        sequences: SequenceSpec {
            context_tokens: job.context_tokens,
            sequences: job.sequences,
            cache_tokens: job.cache_tokens,
        },
        host: LoadHost { memory_bytes_max: job.memory_bytes_max, ..LoadHost::default() },
    };
    // A GPU's driver takes address space by the terabyte.
    let address_space = (!job.gpu)
        .then(|| job.memory_bytes_max.saturating_add(files_bytes(&source)).saturating_add(ADDRESS_SPACE_BYTES));
    let failed = |error: rustix::io::Errno| NnError::runtime(format!("the limits of a process cannot be set: {error}"));
    limit_self(address_space).map_err(failed)?;
    let graph = Backends::llama()?.load(&source)?;
    let Some(sequences) = graph.sequences() else { return Ok(()) };
    let tokens = Tensor::new(TensorType::I32, vec![1], 0i32.to_le_bytes().to_vec())?;
    let options = br#"{"max_tokens": 2, "temperature": 0, "ignore_eos": true}"#;
    let options = Tensor::new(TensorType::U8, vec![options.len() as u32], options.to_vec())?;
    let inputs = vec![("tokens".to_owned(), tokens), ("options".to_owned(), options)];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| NnError::runtime(error.to_string()))?;
    runtime.block_on(async {
        let mut sequence = sequences.open(Tenant(0));
        sequence.compute(inputs, Instant::now() + TOKENS_MAX).await
    })?;
    Ok(())
}

fn limit_self(address_space: Option<u64>) -> rustix::io::Result<()> {
    let lower = |resource, limit: u64| {
        let maximum = getrlimit(resource).maximum.unwrap_or(u64::MAX).min(limit);
        setrlimit(resource, Rlimit { current: Some(maximum), maximum: Some(maximum) })
    };
    if let Some(bytes) = address_space {
        lower(Resource::As, bytes)?;
    }
    lower(Resource::Cpu, PROCESSOR_S)?;
    lower(Resource::Fsize, 0)?;
    lower(Resource::Core, 0)
}
