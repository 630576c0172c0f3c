//! What the sandbox itself costs a request: a fresh instance, the guest's work in it, and its end, without HTTP and
//! without the model's compute.
//!
//! Measured, one thread, everything hot, processor time of the thread: microseconds per request, the median of ROUNDS
//! rounds of REQUESTS requests, and the quickest round. `iris` parses MLflow's JSON and prints JSON; `minilm` tokenizes
//! a sentence of 22 tokens and prints 384 numbers. Outputs of the graph are zeros, made beforehand.
//! Left out: the compute, admission, HTTP, metrics, and what other requests do to the caches.
//!
//! Run by `make bench`, or: TESSERA_BIN=… TESSERA_MODELS=… [GUEST=iris [COMPONENT=…]] cargo bench -p tessera --bench
//! sandbox. COMPONENT is another build of the guest than the server carries, to compare without building the server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyper::HeaderMap;
use tessera::deploy::artifact::{ArtifactKey, Artifacts};
use tessera::deploy::manifest::InitTime;
use tessera::deploy::stock;
use tessera::deploy::worker::{GraphFile, Job, Workers};
use tessera::nn::backends::inspect;
use tessera::nn::{
    BackendId, BatchSpec, Cancel, Dim, ElementType, Executor, Graph, GraphInfo, Inputs, NamedGraphs, NnError, Outputs,
    Profile, Schedule, Tenant, Tensor,
};
use tessera::sandbox::{
    Answer, GuestPackage, GuestRequest, Invocation, InvocationBody, LoadedComponent, RequestLimits, RequestLog,
    Sandbox, World, prepare_thread,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Unless the variable of this name says otherwise, which a profile wants.
const ROUNDS: usize = 15;
const REQUESTS: u32 = 1000;

const IRIS_SIGNATURE: &str = r#"[{"type":"double","name":"sepal_length","required":true},
{"type":"double","name":"sepal_width","required":true},{"type":"double","name":"petal_length","required":true},
{"type":"double","name":"petal_width","required":true}]"#;

const LIMITS: RequestLimits = RequestLimits {
    memory_bytes: 128 << 20,
    cpu_ms: 10_000,
    wall_ms: 30_000,
    tensor_bytes: 64 << 20,
    response_bytes: 16 << 20,
    log_bytes: 64 << 10,
};

fn main() -> Result<()> {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from).with_context(|| format!("{name} is not set"));
    let (server, models) = (var("TESSERA_BIN")?, var("TESSERA_MODELS")?);
    let folder = tempfile::tempdir()?;
    let sandbox = Sandbox::new(64)?;
    let host = Host { sandbox: &sandbox, server, folder: folder.path() };
    let iris = r#"{"dataframe_split": {"columns": ["sepal_length", "sepal_width", "petal_length", "petal_width"], "data": [[5.1, 3.5, 1.4, 0.2]]}}"#;
    let sentence = r#"{"input": "The quick brown fox jumps over the lazy dog while seventeen curious penguins watch from a distance."}"#;
    let settings = BTreeMap::from([("mlflow.signature.inputs".to_owned(), IRIS_SIGNATURE.to_owned())]);
    let tokenizer = models.join("minilm/tokenizer.json");
    println!("{:>8} {:>12} {:>12}", "guest", "median_us", "quickest_us");
    host.measure("iris", "scoring", settings, None, &models.join("iris/model.onnx"), iris)?;
    host.measure("minilm", "embeddings", BTreeMap::new(), Some(tokenizer), &models.join("minilm/model.onnx"), sentence)
}

struct Host<'a> {
    sandbox: &'a Sandbox,
    server: PathBuf,
    folder: &'a Path,
}

impl Host<'_> {
    fn measure(
        &self,
        name: &str,
        component: &str,
        settings: BTreeMap<String, String>,
        tokenizer: Option<PathBuf>,
        model: &Path,
        body: &str,
    ) -> Result<()> {
        if std::env::var("GUEST").is_ok_and(|wanted| wanted != name) {
            return Ok(());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let package = GuestPackage { settings: settings.clone(), graphs: BTreeMap::new() };
        let component = Arc::new(runtime.block_on(self.compile(component, settings, tokenizer, model))?);
        let info = inspect(model, &[]).map_err(|error| anyhow::anyhow!("{error}"))?;
        let graphs: NamedGraphs = Arc::new([("model".to_owned(), Arc::new(Zeros::new(info)) as Arc<dyn Graph>)]);
        let executor = Arc::new(Executor::new(1, 8, 1)?);
        executor.serve_on_this_thread();
        prepare_thread();
        let package = Arc::new(package);
        let headers = Arc::new(HeaderMap::new());
        let request = || Invocation {
            id: String::new(),
            package: Arc::clone(&package),
            init_assets: None,
            limits: LIMITS.clone(),
            deadline: Instant::now() + Duration::from_millis(LIMITS.wall_ms),
            graphs: Arc::clone(&graphs),
            executor: Arc::clone(&executor),
            tenant: Tenant(1),
            grant: None,
            request: GuestRequest::Endpoint {
                path: "invocations".to_owned(),
                content_type: "application/json".to_owned(),
                headers: Arc::clone(&headers),
            },
            body: InvocationBody::Full(body.as_bytes().to_vec()),
            log: RequestLog::new(LIMITS.log_bytes),
            transcript: None,
        };
        runtime.block_on(async {
            let (answer, _) = self.sandbox.invoke(&component, request()).await;
            ensure!(matches!(answer?, Answer::Full { status: 200, .. }), "{name} did not answer 200");
            let count = std::env::var("ROUNDS").ok().and_then(|count| count.parse().ok()).unwrap_or(ROUNDS).max(1);
            let mut rounds = Vec::new();
            for _ in 0..count {
                let started = thread_cpu();
                for _ in 0..REQUESTS {
                    let (answer, _) = self.sandbox.invoke(&component, request()).await;
                    answer?;
                }
                rounds.push((thread_cpu() - started).as_secs_f64() * 1e6 / f64::from(REQUESTS));
            }
            rounds.sort_by(f64::total_cmp);
            println!("{name:>8} {:>12.1} {:>12.1}", rounds[count / 2], rounds[0]);
            Ok(())
        })
    }

    async fn compile(
        &self,
        component: &str,
        settings: BTreeMap<String, String>,
        tokenizer: Option<PathBuf>,
        model: &Path,
    ) -> Result<LoadedComponent> {
        let artifacts = Artifacts::open(&self.folder.join("artifacts"), [1; 32])?;
        let key = ArtifactKey::of(&[component.as_bytes()]);
        let file = self.folder.join(component);
        match std::env::var_os("COMPONENT") {
            Some(other) => std::fs::copy(other, &file).map(drop)?,
            None => std::fs::write(&file, stock::component(component).context("no such stock component")?)?,
        }
        let workers = Workers { executable: self.server.clone(), timeout: Duration::from_secs(120) };
        let graph = GraphFile { path: model.to_owned(), external_files: vec![] };
        let job = Job {
            component: file,
            world: World::Endpoint,
            artifact: artifacts.staging_path(key),
            settings,
            assets: tokenizer.into_iter().map(|path| ("tokenizer.json".to_owned(), path)).collect(),
            graphs: BTreeMap::from([("model".to_owned(), graph)]),
            limits: LIMITS.clone(),
            init: InitTime::Deploy,
            init_ms: 10_000,
            memory_bytes: 4 << 30,
            cpu_s: 120,
        };
        workers.run(&job).await?;
        artifacts.insert(key)?;
        let component = artifacts.load(self.sandbox.engine(), key)?.context("the artifact was not made")?;
        Ok(self.sandbox.load(&component)?)
    }
}

/// Answers zeros at once.
struct Zeros {
    info: GraphInfo,
    schedule: Schedule,
}

impl Zeros {
    fn new(info: GraphInfo) -> Zeros {
        let schedule = Schedule::new(BatchSpec::default());
        schedule.adopt(&Profile { row_ns: vec![1], ..Profile::default() });
        Zeros { info, schedule }
    }
}

impl Graph for Zeros {
    fn info(&self) -> &GraphInfo {
        &self.info
    }
    fn backend(&self) -> BackendId {
        BackendId::Tract
    }
    fn memory_bytes(&self) -> u64 {
        0
    }
    fn schedule(&self) -> &Schedule {
        &self.schedule
    }
    fn run(&self, _: Inputs, _: &Cancel) -> Result<Outputs, NnError> {
        let zeros = |info: &tessera::nn::TensorInfo| {
            let size = |dim: &Dim| match dim {
                Dim::Fixed(size) => *size,
                Dim::Free(_) => 1,
            };
            let dims: Vec<u32> = info.dims.iter().flatten().map(size).collect();
            let ty = ElementType::travels_as(info.element);
            let bytes = dims.iter().product::<u32>() as usize * ty.size_bytes();
            Ok((info.name.clone(), Tensor::new(ty, dims, vec![0; bytes])?))
        };
        self.info.outputs.iter().map(zeros).collect()
    }
}

/// Processor time of this thread.
fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
