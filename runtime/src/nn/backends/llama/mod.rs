//! llama.cpp: language models in GGUF, through the crates `llama-cpp-2` and `llama-cpp-sys-2`.
//!
//! A loaded model has one thread, [`engine`], that computes the sequences of all guests together. A guest's sequence
//! ([`Sequence`]) checks what the guest sends ([`request`]), turns it into tokens ([`vocabulary`], [`splitter`]), hands it to
//! the engine and fetches the answer ([`stream`]). The engine chooses tokens ([`sampling`]), as a grammar may ask
//! ([`grammar`], [`gbnf`]), is fair between workspaces ([`fair`]) and keeps ended sequences for prompts that begin alike
//! ([`prefix`]).

mod context;
mod embedding;
mod engine;
mod fair;
mod gbnf;
mod grammar;
mod log;
mod prefix;
mod request;
mod sampling;
mod splitter;
mod stream;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use llama_cpp_2::llama_backend::{LlamaBackend, load_backends_from_path};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::{LlamaBackendDeviceType, list_llama_ggml_backend_devices};
use tokio::sync::{Semaphore, SemaphorePermit};

use self::context::{Context, ContextSpec, Purpose};
use self::embedding::{Embedder, Texts};
use self::engine::{BATCH_TOKENS, Command, Engine, EngineParts, NewRun, Run, Ticket, Waiting};
use self::grammar::Grammars;
use self::request::{Prompt, Request, Task};
use self::sampling::Sampler;
use self::splitter::Splitter;
use self::stream::{Engine as EngineState, Stream};
use self::vocabulary::Vocabulary;
use super::gguf_file::{self, Gguf};
use super::{BackendId, files_bytes, without_path};
use crate::nn::{
    Backend, BatchSpec, Cancel, ExecutionTarget, Graph, GraphInfo, GraphSource, Inputs, NnError, NnErrorKind, Outputs,
    Schedule, Sequence, SequenceSpec, Sequences, Tenant, Tensor,
};

/// Most tokens of a sequence where neither the package nor the model says less.
const CONTEXT_TOKENS: u32 = 4096;

/// Sequences at once where the package does not say.
const SEQUENCES: u32 = 16;

/// How many whole contexts the cache holds where the package does not say: few sequences are ever full.
const CACHE_CONTEXTS: u32 = 4;

/// Longest text that is made a vector, in tokens, where the model does not say less: a text is computed in one step.
const TEXT_TOKENS_MAX: u32 = 2048;

/// Answers that may wait for each sequence there is. A workspace has half of these places at most.
const WAITING_PER_SEQUENCE: usize = 16;

/// Prompts up to this many bytes become tokens at once, longer ones on another thread: an event loop waits meanwhile.
const SHORT_PROMPT_BYTES: usize = 2 << 10;

/// Texts that become tokens at one time where that takes stack, over all models: each may take 64 MiB.
static STACKS: Semaphore = Semaphore::const_new(8);

/// Folder beside the program with llama.cpp's libraries.
const FOLDER: &str = "llama";

/// llama.cpp, found when the process starts.
pub(super) struct LlamaCpp {
    folder: PathBuf,
}

/// llama.cpp's own state, which a process has once.
static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();

struct Library {
    backend: LlamaBackend,
    folder: PathBuf,
}

/// Loads llama.cpp's libraries for this machine's processor and devices. The error says why it cannot be used.
pub(super) fn open() -> Result<LlamaCpp, String> {
    let library = LIBRARY.get_or_init(|| {
        let folder = folder()?;
        log::install();
        load_backends_from_path(&folder);
        if list_llama_ggml_backend_devices().is_empty() {
            return Err(format!("no library in {} is for this processor", folder.display()));
        }
        let backend = LlamaBackend::init().map_err(|error| error.to_string())?;
        Ok(Library { backend, folder })
    });
    library.as_ref().map(|library| LlamaCpp { folder: library.folder.clone() }).map_err(Clone::clone)
}

/// Where the libraries lie: beside the program, or one above, where tests run.
fn folder() -> Result<PathBuf, String> {
    let program = std::env::current_exe().map_err(|error| format!("the program's own place is unknown: {error}"))?;
    let above = program.ancestors().skip(1).take(2).map(|above| above.join(FOLDER));
    let mut there = above.filter(|folder| folder.is_dir() && folder.to_str().is_some());
    there.next().ok_or_else(|| format!("there is no folder '{FOLDER}' with its libraries beside {}", program.display()))
}

fn library() -> Result<&'static Library, NnError> {
    match LIBRARY.get() {
        Some(Ok(library)) => Ok(library),
        _ => Err(NnError::unsupported("llama.cpp is not loaded")),
    }
}

/// The devices that models can be put on.
fn gpus() -> Vec<usize> {
    let is_gpu = |kind| matches!(kind, LlamaBackendDeviceType::Gpu | LlamaBackendDeviceType::IntegratedGpu);
    let devices = list_llama_ggml_backend_devices().into_iter();
    devices.filter(|device| is_gpu(device.device_type)).map(|device| device.index).collect()
}

impl Backend for LlamaCpp {
    fn id(&self) -> BackendId {
        BackendId::Llama
    }

    fn version(&self) -> &str {
        "0.6 (llama-cpp-2 0.1.160)"
    }

    fn library(&self) -> Option<&Path> {
        Some(&self.folder)
    }

    fn check_target(&self, target: ExecutionTarget) -> Result<(), NnError> {
        match target {
            ExecutionTarget::Cpu => Ok(()),
            ExecutionTarget::Gpu if !gpus().is_empty() => Ok(()),
            ExecutionTarget::Gpu => Err(NnError::unsupported(
                "backend llama has no GPU here: either there is none, or its library for it (libggml-cuda) is not beside \
                 the others",
            )),
            ExecutionTarget::Tpu => Err(target.unsupported_by(self.id())),
        }
    }

    fn divides_runs(&self, target: ExecutionTarget) -> bool {
        target == ExecutionTarget::Cpu
    }

    /// All but one, which is for the event loops: a step is as slow as its slowest thread.
    fn threads_unmeasured(&self, max: u32) -> Option<u32> {
        Some(max.saturating_sub(1).max(1))
    }

    fn loads_at_risk(&self) -> bool {
        true
    }

    fn load(&self, source: &GraphSource) -> Result<Arc<dyn Graph>, NnError> {
        Ok(Arc::new(self.load_graph(source)?))
    }
}

impl LlamaCpp {
    fn load_graph(&self, source: &GraphSource) -> Result<LlamaGraph, NnError> {
        self.check_target(source.target)?;
        let gguf = gguf_file::read(&source.path)?;
        let limits = Limits::of(&gguf, &source.sequences)?;
        let memory_bytes = limits.memory_bytes(&gguf, files_bytes(source));
        if memory_bytes > source.host.memory_bytes_max {
            return Err(NnError::new(
                NnErrorKind::TooLarge,
                format!(
                    "the model would take {memory_bytes} bytes with a cache of {} tokens (cache_tokens); \
                     {} are allowed (graph_memory_bytes_max)",
                    limits.cache_tokens, source.host.memory_bytes_max
                ),
            ));
        }
        log::forget_reason();
        let hide_path = |error: NnError| NnError::new(error.kind(), without_path(&error.to_string(), &source.path));
        let model = Arc::new(load_model(source).map_err(hide_path)?);
        LlamaGraph::start(source, &gguf, &model, limits, memory_bytes).map_err(hide_path)
    }
}

fn load_model(source: &GraphSource) -> Result<LlamaModel, NnError> {
    let gpu = source.target == ExecutionTarget::Gpu;
    let devices = if gpu { gpus() } else { Vec::new() };
    let refused = || NnError::unsupported("llama.cpp does not take the devices that it lists");
    let params = LlamaModelParams::default()
        .with_n_gpu_layers(if gpu { u32::MAX } else { 0 })
        .with_use_mmap(true)
        .with_devices(&devices)
        .map_err(|_| refused())?;
    LlamaModel::load_from_file(&library()?.backend, &source.path, &params)
        .map_err(|error| log::refusal(&format!("llama.cpp refuses the model: {error}")))
}

/// How much a loaded model does at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    context_tokens: u32,
    sequences: u32,
    cache_tokens: u32,
}

impl Limits {
    /// What a package asks for, as far as the model allows it.
    fn of(gguf: &Gguf, spec: &SequenceSpec) -> Result<Limits, NnError> {
        let trained = gguf.number("context_length").map_or(CONTEXT_TOKENS, |n| u32::try_from(n).unwrap_or(u32::MAX));
        let context_tokens = spec.context_tokens.unwrap_or(CONTEXT_TOKENS.min(trained));
        if context_tokens > trained {
            let text = format!("context_tokens is {context_tokens}; the model was trained with {trained}");
            return Err(NnError::new(NnErrorKind::TooLarge, text));
        }
        // Each has a token at least.
        let sequences = spec.sequences.unwrap_or(SEQUENCES).min(spec.cache_tokens.unwrap_or(u32::MAX));
        let contexts = sequences.min(CACHE_CONTEXTS);
        let cache_tokens = spec.cache_tokens.unwrap_or(context_tokens.saturating_mul(contexts));
        if cache_tokens < context_tokens {
            let text = format!("cache_tokens is {cache_tokens}, less than one sequence may have ({context_tokens})");
            return Err(NnError::invalid_encoding(text));
        }
        Ok(Limits { context_tokens, sequences, cache_tokens })
    }

    /// Sequences that llama.cpp tells apart: as many as are computed, and as many that are kept.
    fn ids(&self) -> u32 {
        self.sequences * 2
    }

    /// Most tokens of a text that is made a vector.
    fn text_tokens(&self) -> u32 {
        self.context_tokens.min(TEXT_TOKENS_MAX)
    }

    /// Most tokens of a step: never less than there are sequences, nor more than the cache holds, which llama.cpp refuses.
    fn batch_tokens(&self) -> u32 {
        (BATCH_TOKENS as u32).min(self.cache_tokens)
    }

    /// The weights, the keys and values, and what a step works with: outputs for each sequence, and some rows as wide as
    /// the model for each token. Keys, values and rows also for the vectors of texts, whether or not any are ever wanted.
    fn memory_bytes(&self, gguf: &Gguf, weights_bytes: u64) -> u64 {
        let tokens = u64::from(self.cache_tokens) + u64::from(self.text_tokens());
        let kv = gguf.kv_bytes_per_token().saturating_mul(tokens);
        let widest = gguf.number("feed_forward_length").unwrap_or(0).max(gguf.number("embedding_length").unwrap_or(0));
        let tokens = u64::from(self.batch_tokens()) + u64::from(self.text_tokens());
        let rows = widest.saturating_mul(tokens.saturating_mul(4 * 4));
        let outputs = gguf.number("vocab_size").unwrap_or(1 << 17).saturating_mul(4 * 2 * u64::from(self.ids()));
        [kv, rows, outputs].into_iter().fold(weights_bytes, u64::saturating_add)
    }
}

/// A loaded model. Dropping it ends its thread, after the step that runs; an event loop does not wait for that.
struct LlamaGraph {
    info: GraphInfo,
    schedule: Schedule,
    memory_bytes: u64,
    threads: u32,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What a model's sequences share.
struct Shared {
    model: Arc<LlamaModel>,
    vocabulary: Arc<Vocabulary>,
    grammars: Grammars,
    commands: Sender<Command>,
    limits: Limits,
    kind: Kind,
    waiting: Arc<Waiting>,
}

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Answers, and vectors of texts.
    Answers,
    /// Vectors alone: it remembers nothing, or tells nothing else.
    Vectors,
}

impl LlamaGraph {
    fn start(
        source: &GraphSource,
        gguf: &Gguf,
        model: &Arc<LlamaModel>,
        limits: Limits,
        memory_bytes: u64,
    ) -> Result<LlamaGraph, NnError> {
        let threads = source.intra_op_threads.max(1);
        let spec = ContextSpec {
            cache_tokens: limits.cache_tokens,
            ids: limits.ids(),
            batch_tokens: limits.batch_tokens(),
            threads,
            gpu: source.target == ExecutionTarget::Gpu,
            purpose: Purpose::Answers,
        };
        let context = Context::new(model, &spec)?;
        let kind = if context.remembers() { Kind::Answers } else { Kind::Vectors };
        let pooling = gguf.number("pooling_type").unwrap_or(0);
        let embedder = Embedder::new(model, spec.for_vectors(limits.text_tokens(), pooling != 0));
        let (commands, receiver) = channel();
        let vocabulary = Arc::new(Vocabulary::new(model, Splitter::of(gguf)));
        let engine = Engine::new(EngineParts {
            context,
            embedder,
            vocabulary: Arc::clone(&vocabulary),
            commands: receiver,
            counters: Arc::clone(&source.host.sequences),
            busy: Arc::clone(&source.host.busy),
            threads,
            sequences: limits.sequences as usize,
            ids: limits.ids(),
            batch_tokens: limits.batch_tokens() as usize,
            shares_prefixes: !model.is_recurrent() && !model.is_hybrid(),
        });
        let refused = |error: std::io::Error| NnError::runtime(format!("failed to start a thread: {}", error.kind()));
        let thread = Builder::new().name("llama".to_owned()).spawn(move || engine.run()).map_err(refused)?;
        let waiting = Arc::new(Waiting::new(limits.sequences as usize * WAITING_PER_SEQUENCE));
        let (model, grammars) = (Arc::clone(model), Grammars::new(model));
        let shared = Arc::new(Shared { model, vocabulary, grammars, commands, limits, kind, waiting });
        Ok(LlamaGraph {
            info: gguf.info(),
            schedule: Schedule::threads_only(BatchSpec::default()),
            memory_bytes,
            threads,
            shared,
            thread: Some(thread),
        })
    }
}

impl Drop for LlamaGraph {
    fn drop(&mut self) {
        // Sequences that outlive the graph can still speak to the engine, so that it would not end by itself.
        let _ = self.shared.commands.send(Command::Stop);
        let Some(thread) = self.thread.take() else { return };
        let shared = Arc::clone(&self.shared);
        let end = move || {
            // A panic there was reported when it happened.
            let _ = thread.join();
            // The model with it, unless a sequence still has it.
            drop(shared);
        };
        match tokio::runtime::Handle::try_current() {
            // The runtime waits for it before the process ends: llama.cpp must not compute meanwhile.
            Ok(runtime) => drop(runtime.spawn_blocking(end)),
            Err(_) => end(),
        }
    }
}

impl Graph for LlamaGraph {
    fn info(&self) -> &GraphInfo {
        &self.info
    }

    fn backend(&self) -> BackendId {
        BackendId::Llama
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    fn intra_op_threads(&self) -> u32 {
        self.threads
    }

    fn sequences(&self) -> Option<&dyn Sequences> {
        Some(self)
    }

    fn run(&self, _: Inputs, _: &Cancel) -> Result<Outputs, NnError> {
        Err(NnError::unsupported("a language model answers step by step, in a sequence"))
    }
}

impl Sequences for LlamaGraph {
    fn open(&self, tenant: Tenant) -> Box<dyn Sequence> {
        Box::new(LlamaSequence { shared: Arc::clone(&self.shared), tenant, tokens: Vec::new(), answer: None })
    }

    fn finding(&self) -> String {
        let Limits { context_tokens, sequences, cache_tokens } = self.shared.limits;
        format!(
            "answers up to {sequences} sequences at once, of up to {context_tokens} tokens each and {cache_tokens} together"
        )
    }
}

/// A guest's sequence. It holds nothing of the model between answers but its tokens: their keys and values are found
/// again as a beginning that is kept.
struct LlamaSequence {
    shared: Arc<Shared>,
    tenant: Tenant,
    /// Prompts and answers so far.
    tokens: Vec<i32>,
    answer: Option<Answer>,
}

/// An answer that has not ended. Dropping it ends it.
struct Answer {
    shared: Arc<Shared>,
    stream: Arc<Stream>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.stream.close();
        // An engine that has ended has freed everything.
        let _ = self.shared.commands.send(Command::Look);
    }
}

impl Sequence for LlamaSequence {
    fn compute(&mut self, inputs: Vec<(String, Tensor)>, deadline: Instant) -> BoxFuture<'_, Result<Outputs, NnError>> {
        let step = async move {
            if !inputs.is_empty() {
                let request = Request::read(inputs)?;
                if let Some(at_once) = self.begin(request).await? {
                    return Ok(at_once);
                }
            }
            self.next().await
        };
        let timed = tokio::time::timeout_at(deadline.into(), step);
        let expired = || NnError::timeout("the deadline passed before the answer came");
        async move { timed.await.unwrap_or_else(|_| Err(expired())) }.boxed()
    }
}

impl LlamaSequence {
    /// Begins what is asked for; or gives it, where it takes no sequence.
    async fn begin(&mut self, request: Request) -> Result<Option<Outputs>, NnError> {
        if self.answer.is_some() {
            let text = "the answer has not ended: fetch it without inputs, or begin another sequence";
            return Err(NnError::invalid_argument(text));
        }
        let ticket = Ticket::take(&self.shared.waiting, self.tenant)?;
        let stack = match self.shared.vocabulary.takes_stack() {
            true => STACKS.acquire().await.ok(),
            false => None,
        };
        let long = stack.is_some() || request.is_longer_than(SHORT_PROMPT_BYTES);
        let (shared, tenant, before) = (Arc::clone(&self.shared), self.tenant, self.tokens.clone());
        let stream = Arc::<Stream>::default();
        let command = match request.options.task {
            Task::Tokenize => {
                let tokens = aside(long, stack, move || shared.tokens(before, &request)).await?;
                return Ok(Some(vec![stream::whole("tokens", &[tokens.len()], &tokens)?]));
            }
            Task::Embed => {
                let texts = aside(long, stack, move || shared.texts(&request)).await?;
                Command::Embed(Texts::new(tenant, Arc::clone(&stream), texts, ticket))
            }
            Task::Generate => {
                let of = (tenant, Arc::clone(&stream), ticket);
                let run = aside(long, stack, move || shared.run(before, &request, of)).await?;
                self.tokens.clone_from(&run.tokens);
                Command::Start(Box::new(run))
            }
        };
        let answer = Answer { shared: Arc::clone(&self.shared), stream };
        let sent = self.shared.commands.send(command);
        sent.map_err(|_| NnError::overloaded("the model is being unloaded"))?;
        self.answer = Some(answer);
        Ok(None)
    }

    async fn next(&mut self) -> Result<Outputs, NnError> {
        let Some(answer) = &self.answer else {
            return Err(NnError::invalid_argument("there is no answer to wait for: begin one with a prompt"));
        };
        let taken = answer.stream.next().await;
        if let Ok((_, EngineState::Waits)) = &taken {
            let _ = self.shared.commands.send(Command::Look);
        }
        let ended = taken.as_ref().map_or(true, |(chunk, _)| chunk.end.is_some());
        if ended {
            self.answer = None;
        }
        let (chunk, _) = taken?;
        self.tokens.extend(chunk.tokens.iter().map(|token| token.id));
        chunk.into_outputs()
    }
}

/// Work that takes long is done on another thread. It is done to its end, `stack` held, also when nobody waits any more.
async fn aside<T: Send + 'static>(
    long: bool,
    stack: Option<SemaphorePermit<'static>>,
    work: impl FnOnce() -> Result<T, NnError> + Send + 'static,
) -> Result<T, NnError> {
    match long {
        false => work(),
        true => {
            let work = move || {
                let _stack = stack;
                work()
            };
            let done = tokio::task::spawn_blocking(work).await;
            done.unwrap_or_else(|_| Err(NnError::overloaded("the server is shutting down")))
        }
    }
}

impl Shared {
    /// A prompt's tokens, behind those of the sequence before it.
    fn tokens(&self, before: Vec<i32>, request: &Request) -> Result<Vec<i32>, NnError> {
        let context_tokens = self.limits.context_tokens as usize;
        self.vocabulary.extend(before, &request.prompt, request.options.add_special, context_tokens)
    }

    /// The tokens of each of the texts that are to be vectors.
    fn texts(&self, request: &Request) -> Result<Vec<Vec<i32>>, NnError> {
        let tokens_max = self.limits.text_tokens() as usize;
        let of = |prompt: &Prompt| {
            let tokens = self.vocabulary.extend(Vec::new(), prompt, request.options.add_special, tokens_max)?;
            match tokens.is_empty() {
                true => Err(NnError::invalid_argument("a text is empty")),
                false => Ok(tokens),
            }
        };
        match &request.prompt {
            Prompt::Texts(texts) => texts.iter().map(|text| of(&Prompt::Text(text.clone()))).collect(),
            prompt => Ok(vec![of(prompt)?]),
        }
    }

    /// An answer to a prompt, for the engine.
    fn run(
        &self,
        before: Vec<i32>,
        request: &Request,
        (tenant, stream, ticket): (Tenant, Arc<Stream>, Ticket),
    ) -> Result<Run, NnError> {
        let options = &request.options;
        if self.kind == Kind::Vectors {
            return Err(NnError::unsupported("the model makes vectors of texts (task 'embed') and no answers"));
        }
        let tokens = self.tokens(before, request)?;
        let context_tokens = self.limits.context_tokens as usize;
        if tokens.is_empty() {
            return Err(NnError::invalid_argument("the prompt is empty"));
        }
        if tokens.len() >= context_tokens {
            return Err(vocabulary::too_long(&tokens.len().to_string(), context_tokens));
        }
        let mut sampler = Sampler::new(&self.model, options, self.vocabulary.end_tokens(), &self.grammars)?;
        if options.counts_tokens() {
            sampler.see_prompt(&tokens, options.penalty_last_n);
        }
        let max_tokens = options.max_tokens.map_or(usize::MAX, |max_tokens| max_tokens as usize);
        let tokens_max = tokens.len().saturating_add(max_tokens).min(context_tokens);
        let logprobs = options.logprobs.map(|top| top as usize);
        let cache = options.cache;
        Ok(Run::new(NewRun { tenant, stream, tokens, tokens_max, sampler, logprobs, cache, ticket }))
    }
}
