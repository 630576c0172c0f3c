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
use crate::nn::{
    BatchSpec, ExecutionTarget, GraphSource, LoadHost, NnError, NnErrorKind, SequenceSpec, Sequences, Tenant, Tensor,
    TensorType,
};

/// Name of the child's command.
pub const COMMAND: &str = "model-worker";

/// Longest report of a child.
const REPORT_BYTES_MAX: u64 = 64 << 10;

/// Address space beside the model: libraries, the allocator, stacks.
const ADDRESS_SPACE_BYTES: u64 = 8 << 30;

/// Processor time, which a load of any size stays below: most of it is spent waiting for the disk.
const PROCESSOR_S: u64 = 600;

/// How long each answer of the model may take.
const ANSWER_MAX: Duration = Duration::from_secs(120);

#[derive(Debug, Serialize, Deserialize)]
struct Job {
    path: PathBuf,
    gpu: bool,
    context_tokens: Option<u32>,
    sequences: Option<u32>,
    cache_tokens: Option<u32>,
    memory_bytes_max: u64,
}

/// Characters of the longest words that are tried.
const WORD_CHARS: usize = 2000;

/// Loads a model in a child; lets it read texts of all kinds, say two tokens, and make a vector.
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| NnError::runtime(error.to_string()))?;
    runtime.block_on(try_out(sequences))
}

/// Takes the ways through llama.cpp that requests take: what ends a process ends this one.
async fn try_out(sequences: &dyn Sequences) -> Result<(), NnError> {
    let tensor = |ty, count: usize, data: &[u8]| Tensor::new(ty, vec![count as u32], data.to_vec());
    let compute = async |name: &str, prompt: Tensor, options: &str| {
        let options = tensor(TensorType::U8, options.len(), options.as_bytes())?;
        let inputs = vec![(name.to_owned(), prompt), ("options".to_owned(), options)];
        sequences.open(Tenant(0)).compute(inputs, Instant::now() + ANSWER_MAX).await.map(drop)
    };
    let mut left: Vec<String> = texts().collect();
    while let Some(text) = left.pop() {
        let read = compute("prompt", tensor(TensorType::U8, text.len(), text.as_bytes())?, r#"{"task": "tokenize"}"#);
        match read.await {
            // Longer than the context: the package says how long that is, and must not say what is tried.
            Err(error) if error.kind() == NnErrorKind::InvalidArgument => {
                left.extend(halves(&text).into_iter().flatten().map(str::to_owned));
            }
            read => read?,
        }
    }
    let token = tensor(TensorType::I32, 1, &0i32.to_le_bytes())?;
    let options = r#"{"max_tokens": 2, "temperature": 0, "ignore_eos": true}"#;
    let answer = compute("tokens", token.clone(), options).await;
    let vector = compute("tokens", token, r#"{"task": "embed"}"#).await;
    match answer {
        // A model for vectors alone.
        Err(error) if error.kind() == NnErrorKind::UnsupportedOperation => vector,
        answer => answer,
    }
}

/// Texts with every byte that there is in UTF-8, characters of every length and kind among them, and with long words.
fn texts() -> impl Iterator<Item = String> {
    let all = (0..0x80).chain((0x80..0x800).step_by(0x3f)).chain((0x800..0x11_0000).step_by(0xfc1));
    let all: Vec<char> = all.filter_map(char::from_u32).collect();
    let all = all.chunks(WORD_CHARS / 4).map(String::from_iter).collect::<Vec<_>>();
    let words = ["a", "A", "é", "漢", "7", "-", " ", "\n", "\u{e000}"].map(|char| char.repeat(WORD_CHARS));
    all.into_iter().chain(words).chain(["  a  b\n\n c  ".to_owned()])
}

/// A text's halves, where it has more than one character.
fn halves(text: &str) -> Option<[&str; 2]> {
    let (middle, _) = text.char_indices().nth(text.chars().count() / 2)?;
    let (first, second) = text.split_at(middle);
    (!first.is_empty()).then_some([first, second])
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

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::sync::{Arc, Mutex};

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::nn::{Outputs, Sequence};

    /// A model that refuses texts of more characters than a context has, and remembers the others.
    #[derive(Clone)]
    struct Reader {
        chars_max: usize,
        read: Arc<Mutex<String>>,
    }

    impl Sequences for Reader {
        fn open(&self, _: Tenant) -> Box<dyn Sequence> {
            Box::new(self.clone())
        }

        fn finding(&self) -> String {
            String::new()
        }
    }

    impl Sequence for Reader {
        fn compute(&mut self, inputs: Vec<(String, Tensor)>, _: Instant) -> BoxFuture<'_, Result<Outputs, NnError>> {
            let prompt = inputs.iter().find(|(name, _)| name == "prompt");
            let text = prompt.map(|(_, prompt)| String::from_utf8(prompt.data().to_vec()).unwrap()).unwrap_or_default();
            let answer = match text.chars().count() <= self.chars_max {
                true => Ok(Vec::new()),
                false => Err(NnError::new(NnErrorKind::InvalidArgument, "the prompt is too long")),
            };
            if answer.is_ok() {
                self.read.lock().unwrap().push_str(&text);
            }
            Box::pin(ready(answer))
        }
    }

    #[tokio::test]
    async fn a_short_context_evades_no_text() {
        let sorted = |text: &str| {
            let mut chars: Vec<char> = text.chars().collect();
            chars.sort_unstable();
            chars
        };
        let all = sorted(&texts().collect::<String>());
        for chars_max in [1, 16, 4 * WORD_CHARS] {
            let model = Reader { chars_max, read: Arc::default() };
            try_out(&model).await.unwrap();
            let read = sorted(&model.read.lock().unwrap());
            assert!(read == all, "of {} characters {} were read", all.len(), read.len());
        }
        // Nothing fits: it ends all the same.
        try_out(&Reader { chars_max: 0, read: Arc::default() }).await.unwrap();
    }

    #[test]
    fn a_text_is_halved_between_characters() {
        assert_eq!(halves("aé漢"), Some(["a", "é漢"]));
        assert_eq!(halves("éa"), Some(["é", "a"]));
        assert_eq!((halves("漢"), halves("")), (None, None));
    }

    #[test]
    fn the_texts_have_every_byte_of_utf_8() {
        let mut there = [false; 256];
        texts().flat_map(String::into_bytes).for_each(|byte| there[usize::from(byte)] = true);
        let absent: Vec<usize> = (0..256).filter(|&byte| !there[byte]).collect();
        // No text has these.
        let never: Vec<usize> = (0xc0..=0xc1).chain(0xf5..=0xff).collect();
        assert_eq!(absent, never);
    }
}
