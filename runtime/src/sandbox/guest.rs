//! The state behind one instance, and the small host interfaces that read it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use hyper::HeaderMap;
use hyper::header::HeaderName;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::WasiHttpCtx;

use super::bindings::tessera::endpoint::{assets, graph_info, logging, request_headers, settings};
use super::limits::{MemoryLimiter, RequestLimits};
use super::log::RequestLog;
use super::outgoing::Outgoing;
use super::streaming::ResponseStream;
use crate::clock;
use crate::fair::Fair;
use crate::nn::{Dim, ElementType, Executor, GraphInfo, NamedGraphs, Tenant, TensorInfo};
use crate::outbound::Grant;

/// Entries of the guest's handle table; wasmtime's default of a million would let a guest fill the host's memory.
pub(super) const HANDLES_MAX: usize = 1024;

/// Largest random buffer that a WASI guest may ask for at once.
const RANDOM_BYTES_MAX: u64 = 64 << 10;

/// Room for the headers of one request or answer that a guest makes, the host's own bookkeeping included.
const HEADERS_BYTES_MAX: usize = 32 << 10;

/// Assets that are read at one time, by all requests together and by those of one tenant: each may be as large as the memory
/// of its guest.
static ASSET_READS: LazyLock<Arc<Fair>> = LazyLock::new(|| Fair::new(4, 2));

/// Headers that guests do not see: credentials, and what belongs to the connection.
pub(super) const HIDDEN_HEADERS: [&str; 8] =
    ["authorization", "cookie", "proxy-authorization", "connection", "keep-alive", "te", "trailer", "upgrade"];

/// What a package tells its guest, the same for every request.
#[derive(Debug, Clone, Default)]
pub struct GuestPackage {
    /// Settings of the manifest, overridden by the served entity's environment variables.
    pub settings: BTreeMap<String, String>,
    /// The graphs by name, as read from the model files: for `init`, which runs where no backend is.
    pub graphs: BTreeMap<String, GraphInfo>,
}

/// Which of its two calls the guest is in.
pub(super) enum Phase {
    /// `init`: assets can be read, nothing else can be reached. `frozen` says that its memory will be what many requests
    /// start from, as in the compile worker, where there is one tenant.
    Init { tenant: Tenant, assets: Arc<BTreeMap<String, PathBuf>>, frozen: bool },
    /// `handle`, for one request.
    Handle(RequestContext),
}

/// What a request brings along.
pub(super) struct RequestContext {
    pub(super) id: String,
    pub(super) headers: Arc<HeaderMap>,
    pub(super) stream: ResponseStream,
    pub(super) deadline: Instant,
    pub(super) graphs: NamedGraphs,
    pub(super) executor: Arc<Executor>,
    pub(super) tenant: Tenant,
    /// Whom the guest may call; none may call nobody.
    pub(super) grant: Option<Grant>,
}

/// All that the host keeps for one instance. Dropped with it, so nothing can pass to the next request.
pub struct GuestState {
    pub(super) phase: Phase,
    pub(super) package: Arc<GuestPackage>,
    pub(super) limits: RequestLimits,
    pub(super) memory: MemoryLimiter,
    pub(super) table: ResourceTable,
    /// Bytes of tensors alive on the host's side.
    pub(super) tensor_bytes: u64,
    pub(super) log: RequestLog,
    /// Whether a backend refused work because it had too much: then a failure is not the model's.
    pub(super) overloaded: bool,
    /// Made at the first WASI call: native guests make none, and building it costs more than an instance.
    wasi: Option<WasiCtx>,
    pub(super) http_ctx: WasiHttpCtx,
    /// Made at the first call of `wasi:http`, likewise.
    pub(super) http: Option<Box<Outgoing>>,
}

impl GuestState {
    pub(super) fn new(phase: Phase, package: Arc<GuestPackage>, limits: &RequestLimits, log: RequestLog) -> GuestState {
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES_MAX);
        let mut http_ctx = WasiHttpCtx::new();
        http_ctx.set_field_size_limit(HEADERS_BYTES_MAX);
        GuestState {
            phase,
            package,
            memory: MemoryLimiter::new(limits.memory_bytes),
            limits: limits.clone(),
            table,
            tensor_bytes: 0,
            log,
            overloaded: false,
            wasi: None,
            http_ctx,
            http: None,
        }
    }

    fn build_wasi(&self) -> WasiCtx {
        let mut wasi = WasiCtx::builder();
        wasi.stdout(self.log.clone()).stderr(self.log.clone()).max_random_size(RANDOM_BYTES_MAX);
        // Other hosts are reached by `wasi:http` alone, where their names are looked at.
        wasi.allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false);
        if let Phase::Init { frozen: true, .. } = self.phase {
            // What `init` draws is frozen into every instance, so it gets a fixed stream instead of real randomness,
            // and a clock that stands still: a guest that relies on either shows it in its first test.
            wasi.secure_random(wasmtime_wasi::Deterministic::new(vec![0x5a; 32]))
                .insecure_random(wasmtime_wasi::Deterministic::new(vec![0xa5; 32]))
                .insecure_random_seed(0)
                .wall_clock(StoppedClock)
                .monotonic_clock(StoppedClock);
        }
        wasi.build()
    }
}

impl WasiView for GuestState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        if self.wasi.is_none() {
            self.wasi = Some(self.build_wasi());
        }
        let GuestState { wasi, table, .. } = self;
        WasiCtxView { ctx: wasi.get_or_insert_with(|| WasiCtx::builder().build()), table }
    }
}

/// The clock during `init`.
struct StoppedClock;

impl wasmtime_wasi::HostWallClock for StoppedClock {
    fn resolution(&self) -> std::time::Duration {
        std::time::Duration::from_secs(1)
    }

    fn now(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

impl wasmtime_wasi::HostMonotonicClock for StoppedClock {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        0
    }
}

impl super::bindings::tessera::endpoint::types::Host for GuestState {}

impl assets::Host for GuestState {
    async fn read(&mut self, name: String) -> wasmtime::Result<Result<Vec<u8>, String>> {
        let Phase::Init { tenant, assets, .. } = &self.phase else {
            return Ok(Err(format!(
                "asset '{name}' can be read only during init: keep what a request needs in memory"
            )));
        };
        let Some(path) = assets.get(&name) else {
            let known = assets.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Ok(Err(format!("the package has no asset '{name}'; its manifest lists: [{known}]")));
        };
        let (path, memory_bytes) = (path.clone(), self.limits.memory_bytes);
        let turn = ASSET_READS.turn(*tenant).await;
        let read = move || (read_asset(&name, &path, memory_bytes), turn);
        // The turn is given back with what was read, also when nobody waits for it any more.
        let (content, _turn) = tokio::task::spawn_blocking(read).await?;
        Ok(content)
    }
}

/// Reads an asset that the guest's memory can hold: with `init` in every request this happens in the serving process, of
/// which a guest may take no more than its own limit. Blocks.
fn read_asset(name: &str, path: &Path, memory_bytes: u64) -> Result<Vec<u8>, String> {
    let read = || -> std::io::Result<Result<Vec<u8>, u64>> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        if bytes > memory_bytes {
            return Ok(Err(bytes));
        }
        let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
        file.take(bytes).read_to_end(&mut content)?;
        Ok(Ok(content))
    };
    let too_large = |bytes: u64| {
        format!(
            "asset '{name}' has {bytes} bytes, and a request has {memory_bytes} bytes of memory: make the asset smaller, \
             or raise limits.memory_bytes in the manifest or sandbox_memory_bytes_max of the server"
        )
    };
    read().map_err(|error| format!("failed to read asset '{name}': {error}"))?.map_err(too_large)
}

impl settings::Host for GuestState {
    fn get(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        Ok(match (&self.phase, name.as_str()) {
            (Phase::Handle(request), "tessera.request_id") => Some(request.id.clone()),
            (Phase::Handle(_), "tessera.time_ms") => Some(clock::now_ms().to_string()),
            _ => self.package.settings.get(&name).cloned(),
        })
    }
}

impl request_headers::Host for GuestState {
    fn get(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        let Phase::Handle(request) = &self.phase else { return Ok(None) };
        // Parsed first, because a lookup by text would find a header in any spelling of its name.
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { return Ok(None) };
        if HIDDEN_HEADERS.contains(&name.as_str()) {
            return Ok(None);
        }
        Ok(request.headers.get(&name).and_then(|value| value.to_str().ok()).map(str::to_owned))
    }
}

impl logging::Host for GuestState {
    fn log(&mut self, level: logging::Level, message: String) -> wasmtime::Result<()> {
        let level = match level {
            logging::Level::Debug => "debug",
            logging::Level::Info => "info",
            logging::Level::Warn => "warn",
            logging::Level::Error => "error",
        };
        self.log.line(level, &message);
        Ok(())
    }
}

impl GuestState {
    /// What is known of a graph of the package.
    fn graph_info(&self, name: &str) -> Option<&GraphInfo> {
        match &self.phase {
            Phase::Init { .. } => self.package.graphs.get(name),
            Phase::Handle(request) => {
                request.graphs.iter().find(|(known, _)| known == name).map(|(_, graph)| graph.info())
            }
        }
    }
}

impl graph_info::Host for GuestState {
    fn describe(&mut self, name: String) -> wasmtime::Result<Option<graph_info::Description>> {
        Ok(self.graph_info(&name).map(|info| graph_info::Description {
            inputs: info.inputs.iter().map(describe_tensor).collect(),
            outputs: info.outputs.iter().map(describe_tensor).collect(),
        }))
    }

    fn metadata(&mut self, name: String, key: String) -> wasmtime::Result<Option<String>> {
        Ok(self.graph_info(&name).and_then(|info| info.metadata.get(&key).cloned()))
    }
}

fn describe_tensor(tensor: &TensorInfo) -> graph_info::TensorInfo {
    use graph_info::ElementType as Wit;
    graph_info::TensorInfo {
        name: tensor.name.clone(),
        element: match tensor.element {
            ElementType::Fp16 => Wit::Fp16,
            ElementType::Fp32 => Wit::Fp32,
            ElementType::Fp64 => Wit::Fp64,
            ElementType::Bf16 => Wit::Bf16,
            ElementType::U8 => Wit::U8,
            ElementType::I32 => Wit::I32,
            ElementType::I64 => Wit::I64,
            ElementType::Bool => Wit::Bool,
            ElementType::Int8 => Wit::Int8,
        },
        dimensions: tensor
            .dims
            .iter()
            .flatten()
            .map(|dim| match dim {
                Dim::Fixed(size) => Some(*size),
                Dim::Free(_) => None,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asset_that_the_memory_of_a_request_cannot_hold_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.bin");
        // Sparse: it takes no room, but reading it would need all of it.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let refused = read_asset("table.bin", &path, 1 << 20).unwrap_err();
        assert!(refused.contains("asset 'table.bin' has 1099511627776 bytes"), "{refused}");
        assert!(refused.contains("raise limits.memory_bytes"), "{refused}");
        std::fs::write(&path, b"content").unwrap();
        assert_eq!(read_asset("table.bin", &path, 7).unwrap(), b"content");
        assert!(read_asset("table.bin", &path, 6).is_err());
    }
}
