//! The settings of `tessera serve`: what each one means, its unit, its default and its allowed range.
//!
//! [`ServeArgs`] is a setting as given: a flag, a `TESSERA_…` variable (clap reads both, the flag wins) or a key of the
//! TOML file, all under one name. [`ServeArgs::resolve`] lowers it once into [`ServeConfig`]: every value present and
//! in range. Nothing further down sees a raw flag.

use std::ffi::OsStr;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::access::Limits;
use crate::admission::WORKSPACE_BODY_BYTES_MAX;
use crate::http::tls::{ClientAuth, ClientCertificates, TlsFiles};
use crate::observe::log::{LogFormat, LogLevel};
use crate::outbound::HostPatterns;
use crate::seal::source::KEY_VARIABLE;

/// Where a server keeps its state, and where the command line looks for one, when nothing else is said.
pub const DEFAULT_HOME: &str = ".tessera";

/// Variables that begin with `TESSERA_` and are no settings of the server: the command line's and the Makefile's.
const OTHER_VARIABLES: [&str; 13] = [
    KEY_VARIABLE,
    "TESSERA_HOST",
    "TESSERA_TOKEN",
    "TESSERA_CA_CERT",
    "TESSERA_CLIENT_CERT",
    "TESSERA_CLIENT_KEY",
    "TESSERA_CACHE",
    "TESSERA_BIN",
    "TESSERA_GUESTS",
    "TESSERA_MODELS",
    "TESSERA_PYTHON",
    "TESSERA_PYTHON_SDK",
    "TESSERA_SIGNING_KEY",
];

const SECOND_MS: u64 = 1000;
const HOUR_MS: u64 = 3600 * SECOND_MS;
/// Longer idle times than a month are a way to say "never"; a bound keeps the arithmetic far from overflow.
const MONTH_MS: u64 = 30 * 24 * HOUR_MS;
/// A hundred years, far from overflow like the other.
const DAYS_MAX: u64 = 36_500;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// The settings of `tessera serve` as given; `None` is "not said here".
///
/// The default in each text is checked by a test against [`ServeArgs::resolve`].
#[derive(Debug, Default, Clone, clap::Args, Deserialize)]
#[command(after_help = "\
Every setting has one name in three places: --drain-timeout-ms, TESSERA_DRAIN_TIMEOUT_MS in the environment, and
drain_timeout_ms in the file given with --config. The flag wins over the environment, that over the file, that over the
default. A key or a TESSERA_ variable that is no setting is refused. SIZE is a number of bytes or 64KiB, 16MiB, 4GiB.")]
#[serde(default, deny_unknown_fields)]
pub struct ServeArgs {
    /// Directory that holds all state; the server writes `address` and `admin.token` into it [default: .tessera]
    #[arg(long, value_name = "DIR", env = "TESSERA_HOME", hide_env = true, help_heading = "Server")]
    pub home: Option<PathBuf>,

    /// Directory for what is made from that state and kept in plain, to be mapped and run; may be deleted while the server
    /// is stopped [default: the folder cache in the home]
    #[arg(long, value_name = "DIR", env = "TESSERA_CACHE_DIR", hide_env = true, help_heading = "Encryption at rest")]
    pub cache_dir: Option<PathBuf>,

    /// File with the key that wraps the keys of the home, 64 hex digits or base64; made if it is absent. TESSERA_KEY holds
    /// such a key itself [default: the file node.key in the home]
    #[arg(long, value_name = "FILE", env = "TESSERA_KEY_FILE", hide_env = true, help_heading = "Encryption at rest")]
    pub key_file: Option<PathBuf>,

    /// File with the key before: opens what the key does not, which is then wrapped with the key [default: none]
    #[arg(
        long,
        value_name = "FILE",
        env = "TESSERA_PREVIOUS_KEY_FILE",
        hide_env = true,
        help_heading = "Encryption at rest"
    )]
    pub previous_key_file: Option<PathBuf>,

    /// TOML file with settings [default: none]
    #[arg(long, value_name = "FILE", env = "TESSERA_CONFIG", hide_env = true, help_heading = "Server")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Address and port to accept requests on; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", env = "TESSERA_LISTEN", hide_env = true, help_heading = "Server")]
    pub listen: Option<SocketAddr>,

    /// Listen beyond this machine without TLS: tokens and data cross the network readable [default: false]
    #[arg(
        long, value_name = "BOOL", env = "TESSERA_ALLOW_PLAIN_HTTP", hide_env = true, help_heading = "Server",
        num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true
    )]
    pub allow_plain_http: Option<bool>,

    /// Certificate in PEM, those between it and its CA after it; with it the port speaks TLS [default: none]
    #[arg(long, value_name = "FILE", env = "TESSERA_TLS_CERT", hide_env = true, help_heading = "TLS")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the certificate, in PEM; both files are read again when they change, and on SIGHUP [default: none]
    #[arg(long, value_name = "FILE", env = "TESSERA_TLS_KEY", hide_env = true, help_heading = "TLS")]
    pub tls_key: Option<PathBuf>,

    /// Certificates in PEM that those of clients must chain to [default: none]
    #[arg(long, value_name = "FILE", env = "TESSERA_TLS_CLIENT_CA", hide_env = true, help_heading = "TLS")]
    pub tls_client_ca: Option<PathBuf>,

    /// With a client CA, whether a client must present a certificate: required or optional [default: required with a CA]
    #[arg(
        long,
        value_name = "HOW",
        env = "TESSERA_TLS_CLIENT_AUTH",
        hide_env = true,
        help_heading = "TLS",
        hide_possible_values = true
    )]
    pub tls_client_auth: Option<ClientAuth>,

    /// Public keys, one a line as `tessera sign new-key` prints them: only packages that one of them signed are registered
    /// and served [default: none, and all are]
    #[arg(long, value_name = "FILE", env = "TESSERA_REQUIRE_SIGNED", hide_env = true, help_heading = "Server")]
    pub require_signed: Option<PathBuf>,

    /// HTTP event loops, one thread each [default: number of cores]
    #[arg(long, value_name = "N", env = "TESSERA_THREADS", hide_env = true, help_heading = "Server")]
    pub threads: Option<usize>,

    /// Open client connections; more are closed at once [default: 4096]
    #[arg(long, value_name = "N", env = "TESSERA_MAX_CONNECTIONS", hide_env = true, help_heading = "Server")]
    pub max_connections: Option<usize>,

    /// Time for a client to send the head of a request, in milliseconds [default: 10000]
    #[arg(long, value_name = "MS", env = "TESSERA_HEADER_TIMEOUT_MS", hide_env = true, help_heading = "Server")]
    pub header_timeout_ms: Option<u64>,

    /// Time for a client to send the body of a request, in milliseconds [default: 30000]
    #[arg(long, value_name = "MS", env = "TESSERA_BODY_TIMEOUT_MS", hide_env = true, help_heading = "Server")]
    pub body_timeout_ms: Option<u64>,

    /// Time for running requests to finish after SIGTERM, in milliseconds [default: 30000]
    #[arg(long, value_name = "MS", env = "TESSERA_DRAIN_TIMEOUT_MS", hide_env = true, help_heading = "Server")]
    pub drain_timeout_ms: Option<u64>,

    /// Body of one request, uploads aside [default: 16MiB]
    #[arg(long, value_name = "SIZE", env = "TESSERA_REQUEST_BODY_BYTES_MAX", hide_env = true, help_heading = "Limits")]
    pub request_body_bytes_max: Option<ByteSize>,

    /// Body of one response [default: 16MiB]
    #[arg(long, value_name = "SIZE", env = "TESSERA_RESPONSE_BYTES_MAX", hide_env = true, help_heading = "Limits")]
    pub response_bytes_max: Option<ByteSize>,

    /// One uploaded file of a model package [default: 4GiB]
    #[arg(long, value_name = "SIZE", env = "TESSERA_UPLOAD_BYTES_MAX", hide_env = true, help_heading = "Limits")]
    pub upload_bytes_max: Option<ByteSize>,

    /// Requests in work at once, each in its own instance [default: 256]
    #[arg(long, value_name = "N", env = "TESSERA_CONCURRENT_REQUESTS_MAX", hide_env = true, help_heading = "Limits")]
    pub concurrent_requests_max: Option<usize>,

    /// Requests that wait for an instance; more are answered 429 [default: 1024]
    #[arg(long, value_name = "N", env = "TESSERA_QUEUED_REQUESTS_MAX", hide_env = true, help_heading = "Limits")]
    pub queued_requests_max: Option<usize>,

    /// Endpoints of one workspace; this and the next five hold unless a workspace has quotas of its own [default: 1000]
    #[arg(
        long,
        value_name = "N",
        env = "TESSERA_WORKSPACE_ENDPOINTS_MAX",
        hide_env = true,
        help_heading = "Workspaces"
    )]
    pub workspace_endpoints_max: Option<u64>,

    /// Versions of all models of one workspace [default: 10000]
    #[arg(
        long,
        value_name = "N",
        env = "TESSERA_WORKSPACE_MODEL_VERSIONS_MAX",
        hide_env = true,
        help_heading = "Workspaces"
    )]
    pub workspace_model_versions_max: Option<u64>,

    /// Files of all model versions of one workspace [default: 1TiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "TESSERA_WORKSPACE_MODEL_BYTES_MAX",
        hide_env = true,
        help_heading = "Workspaces"
    )]
    pub workspace_model_bytes_max: Option<ByteSize>,

    /// Requests of one workspace that run or wait to run; more are answered 429 [default: 4096]
    #[arg(
        long,
        value_name = "N",
        env = "TESSERA_WORKSPACE_CONCURRENT_REQUESTS_MAX",
        hide_env = true,
        help_heading = "Workspaces"
    )]
    pub workspace_concurrent_requests_max: Option<u64>,

    /// Requests of one workspace per minute [default: 18000000]
    #[arg(
        long,
        value_name = "N",
        env = "TESSERA_WORKSPACE_REQUESTS_PER_MINUTE_MAX",
        hide_env = true,
        help_heading = "Workspaces"
    )]
    pub workspace_requests_per_minute_max: Option<u64>,

    /// Tokens of language models, read and written, of one workspace per minute [default: 1000000000]
    #[arg(
        long,
        value_name = "N",
        env = "TESSERA_WORKSPACE_TOKENS_PER_MINUTE_MAX",
        hide_env = true,
        help_heading = "Workspaces"
    )]
    pub workspace_tokens_per_minute_max: Option<u64>,

    /// Memory of one request's instance, at most 512MiB [default: 128MiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "TESSERA_SANDBOX_MEMORY_BYTES_MAX",
        hide_env = true,
        help_heading = "Sandbox"
    )]
    pub sandbox_memory_bytes_max: Option<ByteSize>,

    /// Time one request may compute in its guest unless its manifest says otherwise, in milliseconds [default: 1000]
    #[arg(long, value_name = "MS", env = "TESSERA_SANDBOX_CPU_MS", hide_env = true, help_heading = "Sandbox")]
    pub sandbox_cpu_ms: Option<u64>,

    /// Time one request may take in all, waiting for backends included, in milliseconds [default: 30000]
    #[arg(long, value_name = "MS", env = "TESSERA_SANDBOX_WALL_MS", hide_env = true, help_heading = "Sandbox")]
    pub sandbox_wall_ms: Option<u64>,

    /// Tensors that one request may hold in the host [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "TESSERA_TENSOR_BYTES_MAX", hide_env = true, help_heading = "Sandbox")]
    pub tensor_bytes_max: Option<ByteSize>,

    /// Log, stdout and stderr kept of one request; the rest is dropped [default: 64KiB]
    #[arg(long, value_name = "SIZE", env = "TESSERA_LOG_BYTES_PER_REQUEST", hide_env = true, help_heading = "Sandbox")]
    pub log_bytes_per_request: Option<ByteSize>,

    /// Hosts that packages may ask to call, separated by commas, in the file a list: api.example.com, *.example.org:8443,
    /// * for every name; an IP address by itself, which may be in your own network, as names may not [default: none]
    #[arg(long, value_name = "HOSTS", env = "TESSERA_OUTBOUND_HOSTS", hide_env = true, help_heading = "Sandbox")]
    pub outbound_hosts: Option<HostPatterns>,

    /// Time to compile one component at deploy, on the clock and on the processor, in milliseconds [default: 180000]
    #[arg(long, value_name = "MS", env = "TESSERA_COMPILE_TIMEOUT_MS", hide_env = true, help_heading = "Sandbox")]
    pub compile_timeout_ms: Option<u64>,

    /// Memory of the child process that compiles one component [default: 4GiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "TESSERA_COMPILE_MEMORY_BYTES_MAX",
        hide_env = true,
        help_heading = "Sandbox"
    )]
    pub compile_memory_bytes_max: Option<ByteSize>,

    /// ONNX Runtime library (libonnxruntime.so) [default: the one `make setup` installed, else tract runs ONNX graphs]
    #[arg(long, value_name = "FILE", env = "TESSERA_ONNXRUNTIME", hide_env = true, help_heading = "Backends")]
    pub onnxruntime: Option<PathBuf>,

    /// Threads of all runs of graphs together; a run that is divided takes several [default: number of cores]
    #[arg(long, value_name = "N", env = "TESSERA_EXECUTOR_THREADS", hide_env = true, help_heading = "Backends")]
    pub executor_threads: Option<usize>,

    /// Graph runs that wait for a thread; more are refused [default: 1024]
    #[arg(long, value_name = "N", env = "TESSERA_EXECUTOR_QUEUE_MAX", hide_env = true, help_heading = "Backends")]
    pub executor_queue_max: Option<usize>,

    /// Rows of different requests that one run of a model may have, at most 512; 1 runs every request alone [default: 64]
    #[arg(long, value_name = "N", env = "TESSERA_BATCH_ROWS_MAX", hide_env = true, help_heading = "Backends")]
    pub batch_rows_max: Option<u32>,

    /// Memory of all loaded graphs; the least recently used idle one makes room [default: 2GiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "TESSERA_GRAPH_MEMORY_BYTES_MAX",
        hide_env = true,
        help_heading = "Backends"
    )]
    pub graph_memory_bytes_max: Option<ByteSize>,

    /// Idle time after which an endpoint's component leaves memory, in milliseconds [default: 300000]
    #[arg(long, value_name = "MS", env = "TESSERA_COMPONENT_IDLE_MS", hide_env = true, help_heading = "Scale to zero")]
    pub component_idle_ms: Option<u64>,

    /// Idle time after which an endpoint's graphs leave memory, in milliseconds [default: 600000]
    #[arg(long, value_name = "MS", env = "TESSERA_GRAPH_IDLE_MS", hide_env = true, help_heading = "Scale to zero")]
    pub graph_idle_ms: Option<u64>,

    /// Endpoints in memory at once; the least recently used one that has no request leaves for another. The component of
    /// each takes a few of the mappings of memory that Linux lets a process have, 65530 by default [default: 2000]
    #[arg(
        long,
        value_name = "N",
        env = "TESSERA_AWAKE_ENDPOINTS_MAX",
        hide_env = true,
        help_heading = "Scale to zero"
    )]
    pub awake_endpoints_max: Option<usize>,
    /// Days after which files of the audit log are removed; 0 keeps them [default: 0]
    #[arg(
        long,
        value_name = "DAYS",
        env = "TESSERA_AUDIT_RETENTION_DAYS",
        hide_env = true,
        help_heading = "Audit and usage"
    )]
    pub audit_retention_days: Option<u64>,

    /// Days after which usage and payloads are removed; 0 keeps them [default: 90]
    #[arg(
        long,
        value_name = "DAYS",
        env = "TESSERA_USAGE_RETENTION_DAYS",
        hide_env = true,
        help_heading = "Audit and usage"
    )]
    pub usage_retention_days: Option<u64>,

    /// Usage and payloads on disk; the oldest make room [default: 10GiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "TESSERA_USAGE_BYTES_MAX",
        hide_env = true,
        help_heading = "Audit and usage"
    )]
    pub usage_bytes_max: Option<ByteSize>,

    /// Form of the log on stderr: human, json, or auto (human on a terminal, else json) [default: auto]
    #[arg(
        long,
        value_name = "FORMAT",
        env = "TESSERA_LOG_FORMAT",
        hide_env = true,
        help_heading = "Logs",
        hide_possible_values = true
    )]
    pub log_format: Option<LogFormat>,

    /// Least severe line that is written: error, warn, info, debug or trace [default: info]
    #[arg(
        long,
        value_name = "LEVEL",
        env = "TESSERA_LOG_LEVEL",
        hide_env = true,
        help_heading = "Logs",
        hide_possible_values = true
    )]
    pub log_level: Option<LogLevel>,
}

/// The settings of a server: every value present and within its range. [`ServeArgs`] says what each one means.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "a second description of each setting would drift from the one in `ServeArgs`")]
pub struct ServeConfig {
    pub home: PathBuf,
    pub listen: SocketAddr,
    pub tls: Option<TlsFiles>,
    /// Keys whose packages run here.
    pub require_signed: Option<PathBuf>,
    pub threads: usize,
    pub max_connections: usize,
    pub header_timeout_ms: u64,
    pub body_timeout_ms: u64,
    pub drain_timeout_ms: u64,

    pub request_body_bytes_max: u64,
    pub response_bytes_max: u64,
    pub upload_bytes_max: u64,
    pub concurrent_requests_max: usize,
    pub queued_requests_max: usize,
    pub workspace_limits: Limits,

    pub sandbox_memory_bytes_max: u64,
    pub sandbox_cpu_ms: u64,
    pub sandbox_wall_ms: u64,
    pub tensor_bytes_max: u64,
    pub log_bytes_per_request: u64,
    pub outbound_hosts: HostPatterns,
    pub compile_timeout_ms: u64,
    pub compile_memory_bytes_max: u64,

    pub cache_dir: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub previous_key_file: Option<PathBuf>,

    pub onnxruntime: Option<PathBuf>,
    pub executor_threads: usize,
    pub executor_queue_max: usize,
    /// Rows of different requests in one run.
    pub batch_rows_max: u32,
    pub graph_memory_bytes_max: u64,

    pub component_idle_ms: u64,
    pub graph_idle_ms: u64,
    pub awake_endpoints_max: usize,

    /// None keeps them.
    pub audit_retention_days: Option<u64>,
    /// None keeps them.
    pub usage_retention_days: Option<u64>,
    pub usage_bytes_max: u64,

    pub log_format: LogFormat,
    pub log_level: LogLevel,
}

/// Why the settings do not make a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A variable that looks like a setting and is none: most likely a misspelt one, whose limit would not hold.
    #[error("unknown environment variable {name}: no setting has this name, see `tessera serve --help`")]
    UnknownVariable {
        /// The variable.
        name: String,
    },
    /// The settings file cannot be read.
    #[error("failed to read the settings file {}", path.display())]
    Read {
        /// The settings file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The settings file is no TOML, has an unknown key or a value of the wrong kind.
    #[error("failed to parse the settings file {}", path.display())]
    Parse {
        /// The settings file.
        path: PathBuf,
        /// Line, key and reason.
        source: Box<toml::de::Error>,
    },
    /// A value outside of its range.
    #[error("setting {setting} is {value}: allowed are {min} to {max}")]
    OutOfRange {
        /// The setting's name.
        setting: &'static str,
        /// The value given.
        value: String,
        /// The smallest allowed value.
        min: String,
        /// The largest allowed value.
        max: String,
    },
    /// A network address without TLS and without the operator's consent.
    #[error(
        "setting listen is {listen}: allowed are loopback addresses, for without TLS tokens and data would cross the \
         network readable; give a certificate with --tls-cert and --tls-key, or pass --allow-plain-http to accept that"
    )]
    PlainHttp {
        /// The address given.
        listen: SocketAddr,
    },
    /// A part of TLS without the part that it belongs to.
    #[error("setting {setting} needs {other} beside it")]
    Needs {
        /// The setting given.
        setting: &'static str,
        /// The one missing.
        other: &'static str,
    },
}

impl ServeArgs {
    /// Checks these settings, the file they name and the names in the environment, and fills in the defaults.
    pub fn resolve(self) -> Result<ServeConfig, ConfigError> {
        refuse_unknown_variables(std::env::vars_os().map(|(name, _)| name))?;
        let file = match &self.config {
            Some(path) => read_file(path)?,
            None => ServeArgs::default(),
        };
        self.lower(file)
    }

    /// The table of defaults and ranges. `self` holds flags and environment, which win over `file`.
    fn lower(self, file: ServeArgs) -> Result<ServeConfig, ConfigError> {
        /// A setting's value or its default, checked: `setting!(name, default, allowed)`.
        macro_rules! setting {
            ($name:ident, $default:expr, $allowed:expr) => {
                within(stringify!($name), self.$name.or(file.$name).unwrap_or($default), $allowed)?
            };
        }
        macro_rules! size {
            ($name:ident, $default:expr, $min:expr, $max:expr) => {
                setting!($name, ByteSize($default), ByteSize($min)..=ByteSize($max)).0
            };
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let listen = self.listen.or(file.listen).unwrap_or((Ipv4Addr::LOCALHOST, 8080).into());
        let tls = tls(
            self.tls_cert.or(file.tls_cert),
            self.tls_key.or(file.tls_key),
            self.tls_client_ca.or(file.tls_client_ca),
            self.tls_client_auth.or(file.tls_client_auth),
        )?;
        let plain_http_accepted = self.allow_plain_http.or(file.allow_plain_http).unwrap_or(false);
        if tls.is_none() && !listen.ip().to_canonical().is_loopback() && !plain_http_accepted {
            return Err(ConfigError::PlainHttp { listen });
        }
        Ok(ServeConfig {
            listen,
            tls,
            threads: setting!(threads, cores.min(1024), 1..=1024),
            max_connections: setting!(max_connections, 4096, 1..=1_000_000),
            header_timeout_ms: setting!(header_timeout_ms, 10 * SECOND_MS, 1..=HOUR_MS),
            body_timeout_ms: setting!(body_timeout_ms, 30 * SECOND_MS, 1..=HOUR_MS),
            drain_timeout_ms: setting!(drain_timeout_ms, 30 * SECOND_MS, 0..=HOUR_MS),
            request_body_bytes_max: size!(request_body_bytes_max, 16 * MIB, KIB, WORKSPACE_BODY_BYTES_MAX),
            response_bytes_max: size!(response_bytes_max, 16 * MIB, KIB, GIB),
            upload_bytes_max: size!(upload_bytes_max, 4 * GIB, KIB, TIB),
            // Each one reserves address space in the instance pool: ten thousand still fit into 47 bits.
            concurrent_requests_max: setting!(concurrent_requests_max, 256, 1..=10_000),
            queued_requests_max: setting!(queued_requests_max, 1024, 0..=1_000_000),
            // The limits that Databricks documents, and where it documents none, far above what one machine holds.
            workspace_limits: Limits {
                endpoints: setting!(workspace_endpoints_max, 1000, 0..=10_000_000),
                model_versions: setting!(workspace_model_versions_max, 10_000, 0..=10_000_000),
                model_bytes: size!(workspace_model_bytes_max, TIB, 0, 1024 * TIB),
                concurrent_requests: setting!(workspace_concurrent_requests_max, 4096, 0..=10_000_000),
                // 300,000 a second, as with route optimisation.
                requests_per_minute: setting!(workspace_requests_per_minute_max, 18_000_000, 0..=1_000_000_000_000),
                tokens_per_minute: setting!(workspace_tokens_per_minute_max, 1_000_000_000, 0..=1_000_000_000_000),
            },
            sandbox_memory_bytes_max: size!(sandbox_memory_bytes_max, 128 * MIB, MIB, 512 * MIB),
            sandbox_cpu_ms: setting!(sandbox_cpu_ms, SECOND_MS, 1..=HOUR_MS),
            sandbox_wall_ms: setting!(sandbox_wall_ms, 30 * SECOND_MS, 1..=HOUR_MS),
            tensor_bytes_max: size!(tensor_bytes_max, 64 * MIB, KIB, 2 * GIB),
            log_bytes_per_request: size!(log_bytes_per_request, 64 * KIB, 0, 16 * MIB),
            outbound_hosts: self.outbound_hosts.or(file.outbound_hosts).unwrap_or_default(),
            compile_timeout_ms: setting!(compile_timeout_ms, 180 * SECOND_MS, 1..=HOUR_MS),
            compile_memory_bytes_max: size!(compile_memory_bytes_max, 4 * GIB, 256 * MIB, TIB),
            executor_threads: setting!(executor_threads, cores.min(1024), 1..=1024),
            executor_queue_max: setting!(executor_queue_max, 1024, 1..=1_000_000),
            batch_rows_max: setting!(batch_rows_max, 64, 1..=512),
            graph_memory_bytes_max: size!(graph_memory_bytes_max, 2 * GIB, MIB, 64 * TIB),
            component_idle_ms: setting!(component_idle_ms, 300 * SECOND_MS, 1..=MONTH_MS),
            graph_idle_ms: setting!(graph_idle_ms, 600 * SECOND_MS, 1..=MONTH_MS),
            awake_endpoints_max: setting!(awake_endpoints_max, 2000, 1..=1_000_000),
            audit_retention_days: Some(setting!(audit_retention_days, 0, 0..=DAYS_MAX)).filter(|days| *days > 0),
            usage_retention_days: Some(setting!(usage_retention_days, 90, 0..=DAYS_MAX)).filter(|days| *days > 0),
            usage_bytes_max: size!(usage_bytes_max, 10 * GIB, MIB, 64 * TIB),
            log_format: self.log_format.or(file.log_format).unwrap_or(LogFormat::Auto),
            log_level: self.log_level.or(file.log_level).unwrap_or(LogLevel::Info),
            home: self.home.or(file.home).unwrap_or_else(|| DEFAULT_HOME.into()),
            cache_dir: self.cache_dir.or(file.cache_dir),
            key_file: self.key_file.or(file.key_file),
            previous_key_file: self.previous_key_file.or(file.previous_key_file),
            onnxruntime: self.onnxruntime.or(file.onnxruntime),
            require_signed: self.require_signed.or(file.require_signed),
        })
    }
}

/// A number of bytes, written as `1048576`, `1024KiB` or `1MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A text that is no [`ByteSize`].
#[derive(Debug, thiserror::Error)]
#[error("a size is a number of bytes, or a number with KiB, MiB, GiB or TiB, like 16MiB")]
pub struct ByteSizeError;

const UNITS: [(&str, u64); 4] = [("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)];

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let (digits, unit_bytes) = UNITS
            .iter()
            .find_map(|(name, bytes)| Some((text.strip_suffix(name)?.trim_end(), *bytes)))
            .unwrap_or((text, 1));
        let count: u64 = digits.parse().map_err(|_| ByteSizeError)?;
        count.checked_mul(unit_bytes).map(ByteSize).ok_or(ByteSizeError)
    }
}

impl fmt::Display for ByteSize {
    /// The largest unit that says it exactly, so that the text parses back to the same number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, bytes)| self.0 != 0 && self.0.is_multiple_of(*bytes)) {
            Some((name, bytes)) => write!(f, "{}{name}", self.0 / bytes),
            None => write!(f, "{}", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    /// A TOML integer or string. A visitor, for an untagged enum would lose which of the two was wrong and why.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{ByteSizeError}")
            }
            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes)
                    .map(ByteSize)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(bytes), &self))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The files of TLS, which make sense only together: one that is given and not used would be a false safety.
fn tls(
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    ca: Option<PathBuf>,
    auth: Option<ClientAuth>,
) -> Result<Option<TlsFiles>, ConfigError> {
    let needs = |setting, other| Err(ConfigError::Needs { setting, other });
    match (cert, key, ca, auth) {
        (None, None, None, None) => Ok(None),
        (_, _, None, Some(_)) => needs("tls_client_auth", "tls_client_ca"),
        (None, None, Some(_), _) => needs("tls_client_ca", "tls_cert"),
        (Some(_), None, ..) => needs("tls_cert", "tls_key"),
        (None, Some(_), ..) => needs("tls_key", "tls_cert"),
        (Some(cert), Some(key), ca, auth) => {
            let clients = ca.map(|ca| ClientCertificates { ca, auth: auth.unwrap_or(ClientAuth::Required) });
            Ok(Some(TlsFiles { cert, key, clients }))
        }
    }
}

fn read_file(path: &Path) -> Result<ServeArgs, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
}

/// Refuses variables in our name space that no setting reads: a misspelt limit must not be a silent no limit.
fn refuse_unknown_variables<N: AsRef<OsStr>>(names: impl IntoIterator<Item = N>) -> Result<(), ConfigError> {
    let settings = <ServeArgs as clap::Args>::augment_args(clap::Command::new("serve"));
    let known = |name: &str| {
        OTHER_VARIABLES.contains(&name) || settings.get_arguments().any(|a| a.get_env() == Some(OsStr::new(name)))
    };
    for name in names {
        let name = name.as_ref().to_string_lossy();
        if name.starts_with("TESSERA_") && !known(&name) {
            return Err(ConfigError::UnknownVariable { name: name.into_owned() });
        }
    }
    Ok(())
}

fn within<T: PartialOrd + fmt::Display>(
    setting: &'static str,
    value: T,
    allowed: RangeInclusive<T>,
) -> Result<T, ConfigError> {
    if allowed.contains(&value) {
        return Ok(value);
    }
    let (min, max) = allowed.into_inner();
    Err(ConfigError::OutOfRange { setting, value: value.to_string(), min: min.to_string(), max: max.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, Command, FromArgMatches};

    /// Every setting without its variable, so that the tests do not depend on the environment they run in.
    fn command() -> Command {
        ServeArgs::augment_args(Command::new("serve")).mut_args(|arg| arg.env(None))
    }

    fn parse(command: Command, flags: &[&str]) -> ServeArgs {
        let matches = command.try_get_matches_from([&["serve"], flags].concat()).unwrap();
        ServeArgs::from_arg_matches(&matches).unwrap()
    }

    fn flags(flags: &[&str]) -> ServeArgs {
        parse(command(), flags)
    }

    fn file(text: &str) -> ServeArgs {
        toml::from_str(text).unwrap()
    }

    fn refused(args: ServeArgs) -> String {
        args.lower(ServeArgs::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
        // PATH stands in for TESSERA_ONNXRUNTIME: it is always set, and setting a variable is unsafe in a test process.
        let path = PathBuf::from(std::env::var_os("PATH").unwrap());
        let command = || command().mut_arg("onnxruntime", |arg| arg.env("PATH"));
        let file = || file("onnxruntime = 'file.so'\nthreads = 3");

        let all = parse(command(), &["--onnxruntime", "flag.so", "--threads", "2"]).lower(file()).unwrap();
        assert_eq!((all.onnxruntime, all.threads), (Some("flag.so".into()), 2));
        let no_flag = parse(command(), &[]).lower(file()).unwrap();
        assert_eq!((no_flag.onnxruntime, no_flag.threads), (Some(path), 3));
        let only_file = flags(&[]).lower(file()).unwrap();
        assert_eq!((only_file.onnxruntime, only_file.max_connections), (Some("file.so".into()), 4096));
    }

    #[test]
    fn a_file_sets_every_kind_of_value() {
        let text = "home = '/srv'\nlisten = '0.0.0.0:80'\nallow_plain_http = true\nupload_bytes_max = '1GiB'\n\
                    tensor_bytes_max = 4096\nlog_format = 'json'\nlog_level = 'debug'\noutbound_hosts = ['a.test', '*.b.test:81']";
        let config = ServeArgs::default().lower(file(text)).unwrap();
        assert_eq!(config.home, Path::new("/srv"));
        assert_eq!(config.listen, "0.0.0.0:80".parse().unwrap());
        assert_eq!((config.upload_bytes_max, config.tensor_bytes_max), (GIB, 4096));
        assert_eq!((config.log_format, config.log_level), (LogFormat::Json, LogLevel::Debug));
        assert_eq!(config.outbound_hosts, flags(&["--outbound-hosts", "a.test,*.b.test:81"]).outbound_hosts.unwrap());
    }

    #[test]
    fn an_unknown_or_wrong_key_is_refused_with_key_and_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tessera.toml");
        for (text, part) in [
            ("threads = 2\nmax_conections = 5\n", "max_conections"),
            ("config = 'other.toml'", "config"),
            ("tensor_bytes_max = '16 elephants'", "16 elephants"),
            ("tensor_bytes_max = -1", "-1"),
            ("log_level = 'loud'", "loud"),
            ("outbound_hosts = ['http://a.test']", "http://a.test"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = format!("{:#}", anyhow::Error::from(read_file(&path).unwrap_err()));
            assert!(error.contains(part) && error.contains("tessera.toml"), "{error}");
        }
    }

    #[test]
    fn an_unreadable_file_is_refused_by_name() {
        let error = read_file(Path::new("/no/such.toml")).unwrap_err();
        assert_eq!(error.to_string(), "failed to read the settings file /no/such.toml");
    }

    #[test]
    fn unknown_variables_of_ours_are_refused() {
        refuse_unknown_variables(["PATH", "TESSERA_HOME", "TESSERA_GRAPH_IDLE_MS", "TESSERA_TOKEN"]).unwrap();
        let error = refuse_unknown_variables(["TESSERA_THREAD"]).unwrap_err().to_string();
        assert!(error.starts_with("unknown environment variable TESSERA_THREAD:"), "{error}");
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_name_value_and_range() {
        assert_eq!(
            refused(flags(&["--sandbox-memory-bytes-max", "1GiB"])),
            "setting sandbox_memory_bytes_max is 1GiB: allowed are 1MiB to 512MiB"
        );
        assert_eq!(refused(flags(&["--threads", "0"])), "setting threads is 0: allowed are 1 to 1024");
    }

    #[test]
    fn the_network_without_tls_takes_consent() {
        let error = refused(flags(&["--listen", "0.0.0.0:80"]));
        assert!(error.contains("setting listen is 0.0.0.0:80") && error.contains("--tls-cert"), "{error}");
        for given in [["--listen", "[::1]:0"].as_slice(), &["--listen", "0.0.0.0:80", "--allow-plain-http"]] {
            flags(given).lower(ServeArgs::default()).unwrap();
        }
    }

    #[test]
    fn tls_takes_certificate_and_key_and_lets_a_server_listen_anywhere() {
        let pair = ["--tls-cert", "c.pem", "--tls-key", "k.pem"];
        let tls = |more: &[&str]| flags(&[&pair[..], more].concat()).lower(ServeArgs::default()).unwrap().tls.unwrap();
        assert_eq!(tls(&["--listen", "0.0.0.0:443"]).clients, None);
        let clients = tls(&["--tls-client-ca", "ca.pem"]).clients.unwrap();
        assert_eq!((clients.ca, clients.auth), ("ca.pem".into(), ClientAuth::Required));
        let clients = tls(&["--tls-client-ca", "ca.pem", "--tls-client-auth", "optional"]).clients.unwrap();
        assert_eq!(clients.auth, ClientAuth::Optional);
        let text = "tls_cert = 'c.pem'\ntls_key = 'k.pem'\ntls_client_ca = 'ca.pem'\ntls_client_auth = 'optional'";
        let from_file = ServeArgs::default().lower(file(text)).unwrap().tls.unwrap();
        assert_eq!(from_file.clients.unwrap().auth, ClientAuth::Optional);

        // A part alone is a mistake, and the pair may come from two places.
        for (given, setting, other) in [
            (&pair[..2], "tls_cert", "tls_key"),
            (&pair[2..], "tls_key", "tls_cert"),
            (&["--tls-client-ca", "ca.pem"], "tls_client_ca", "tls_cert"),
            (&["--tls-client-auth", "required"], "tls_client_auth", "tls_client_ca"),
        ] {
            assert_eq!(refused(flags(given)), format!("setting {setting} needs {other} beside it"));
        }
        assert!(flags(&pair[..2]).lower(file("tls_key = 'k.pem'")).unwrap().tls.is_some());
    }

    #[test]
    fn sizes_parse_and_print_the_same() {
        for (text, bytes) in [("0", 0), ("1000", 1000), ("64KiB", 65536), ("16MiB", 16 << 20), ("3TiB", 3 << 40)] {
            assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes);
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        for bad in ["", "MiB", "-1", "1.5GiB", "16MB", "16mib", "99999999TiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    /// The default in a setting's help, given as a flag, changes nothing: so the text is true.
    #[test]
    fn help_tells_each_default() {
        let defaults = ServeArgs::default().lower(ServeArgs::default()).unwrap();
        for arg in command().get_arguments() {
            let (help, name) = (arg.get_help().unwrap().to_string(), arg.get_id().as_str());
            let (_, default) = help.rsplit_once("[default: ").unwrap_or_else(|| panic!("{name} tells no default"));
            let default = default.trim_end_matches(']');
            if default.contains(' ') || default == "none" {
                continue; // "number of cores" and the like: said in words
            }
            let flag = format!("--{}={default}", name.replace('_', "-"));
            assert_eq!(flags(&[&flag]).lower(ServeArgs::default()).unwrap(), defaults, "{flag}");
        }
    }

    #[test]
    fn each_setting_has_one_name_everywhere() {
        for arg in ServeArgs::augment_args(Command::new("serve")).get_arguments() {
            let name = arg.get_id().as_str();
            assert_eq!(arg.get_long(), Some(name.replace('_', "-").as_str()));
            assert_eq!(arg.get_env(), Some(OsStr::new(&format!("TESSERA_{}", name.to_uppercase()))));
            assert!(arg.get_help_heading().is_some(), "{name} has no heading");
        }
    }
}
