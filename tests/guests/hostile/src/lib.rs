//! A guest that does what a guest should not: `{"do": "loop"}` and so on. [`Deed`] is the list.
//!
//! Uses no WASI. The graph of its package is called `model`; it may be absent. What `init` does is the setting `init`:
//! `ok` (default), `trap`, `error`, `long_error`, `loop` or `asset_missing`. A body of the type [`COUNT_CHUNKS`] is read
//! in chunks, which are counted; any other body that is not JSON is echoed. The setting `describe` is for [`describe`].

#[cfg(target_arch = "wasm32")]
mod describe;
mod memory;
mod nn;

use std::hint::black_box;

use serde::Deserialize;
use serde_json::json;
use tessera_sdk::bindings::tessera::endpoint::{assets, request_headers};
use tessera_sdk::{Endpoint, Error, ErrorKind, GraphInfo, Package, Request, Response, StreamingResponse, log};

tessera_sdk::export!(Hostile);

/// Content type of a body that is not looked at, only counted.
const COUNT_CHUNKS: &str = "application/x-count-chunks";

/// Size of the message of an `init` that fails with a long one.
const LONG_ERROR_BYTES: usize = 200 << 10;

/// What a request asks for. Sizes without a bound in them are meant to meet one of the host's.
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
enum Deed {
    /// Answers the body as it came.
    Echo,
    /// Adds one to a static and answers it: 1, in whatever order, if no instance is used twice.
    Counter,
    /// Fills heap and static with a marker; answers how many a scan of the whole memory then finds.
    MarkerWrite,
    /// Fills heap and static with a marker and traps, so that nothing cleans up.
    MarkerTrap,
    /// Answers how many markers an earlier request left behind: 0, or the sandbox leaks.
    MarkerScan,
    Loop,
    Recurse,
    /// Allocates and touches memory until something stops it.
    MemoryBomb,
    HugeOutput {
        bytes: usize,
    },
    Stream {
        chunks: usize,
        bytes: usize,
    },
    StreamThenTrap {
        chunks: usize,
        bytes: usize,
    },
    /// Computes without end after a part of the answer.
    StreamThenLoop {
        chunks: usize,
        bytes: usize,
    },
    WrongDtype,
    WrongShape,
    /// Data whose length does not fit the dimensions, past the SDK's own check.
    LengthMismatch,
    WrongName,
    MissingGraph,
    /// The same through `wasi:nn`.
    MissingGraphByWasiNn,
    /// `wasi:nn` graph.load, which must be refused; answers the error code.
    LoadFromBytes,
    /// Keeps making tensors of 64 MiB, in the host's memory.
    TensorBomb,
    /// Keeps making handles.
    HandleBomb,
    /// Panics; the message is in the log.
    Trap {
        message: String,
    },
    LogFlood {
        lines: usize,
    },
    /// Logs nothing but ends of lines, in one call.
    LogNewlines {
        bytes: usize,
    },
    /// Runs the graph on zeros; answers the shape and the first values of each output.
    ComputeOk,
    /// The same through `wasi:nn`.
    ComputeByWasiNn,
    /// Runs the graph on zeros with this many rows, and keeps all outputs; answers their sizes.
    ComputeRows {
        rows: u32,
    },
    /// Answers with this status.
    Status {
        status: u16,
    },
    /// Answers with a content type that no header can hold.
    BadContentType,
    /// Reads an asset although `init` is over; answers the refusal.
    AssetLate,
    /// Answers a setting, as a request sees it.
    Setting {
        name: String,
    },
    /// Fails in the way that is asked for, by the WIT name of the kind.
    Fail {
        kind: String,
    },
    /// Fails with a message of this size.
    FailLong {
        bytes: usize,
    },
    /// Asks for headers by exactly these names; answers their values.
    Headers {
        names: Vec<String>,
    },
}

struct Hostile {
    model: Option<GraphInfo>,
}

impl Endpoint for Hostile {
    fn init(package: &Package) -> Result<Self, Error> {
        match package.setting("init").as_deref().unwrap_or("ok") {
            "ok" => Ok(Self { model: package.graph("model").ok() }),
            "trap" => trap("init was told to trap"),
            "error" => Err(Error::model("init was told to fail")),
            "long_error" => Err(Error::model(long(LONG_ERROR_BYTES))),
            "loop" => spin(),
            "asset_missing" => package.asset("no-such-asset").map(|_| Self { model: None }),
            other => Err(Error::model(format!("setting `init` is `{other}`, which means nothing"))),
        }
    }

    fn handle(&self, request: Request) -> Result<Response, Error> {
        match request.media_type().as_str() {
            "application/json" => {}
            COUNT_CHUNKS => return count_chunks(request),
            _ => return echo(request),
        }
        match request.json()? {
            Deed::Echo => echo(request),
            Deed::Counter => Response::json(&json!({ "counter": memory::count() })),
            Deed::MarkerWrite => Response::json(&json!({ "markers": memory::write_markers() })),
            Deed::MarkerTrap => trap(&format!("with {} markers in memory", memory::write_markers())),
            Deed::MarkerScan => Response::json(&json!({ "markers": memory::scan_for_markers() })),
            Deed::Loop => spin(),
            Deed::Recurse => Response::json(&memory::recurse(0)),
            Deed::MemoryBomb => memory::explode(),
            Deed::HugeOutput { bytes } => Ok(Response::bytes("application/octet-stream", vec![b'x'; bytes])),
            Deed::Stream { chunks, bytes } => Ok(stream(chunks, bytes)?.finish()),
            Deed::StreamThenTrap { chunks, bytes } => {
                let _unfinished = stream(chunks, bytes)?;
                trap("after the stream")
            }
            Deed::StreamThenLoop { chunks, bytes } => {
                let _unfinished = stream(chunks, bytes)?;
                spin()
            }
            Deed::WrongDtype => nn::wrong_dtype(self.model()?),
            Deed::WrongShape => nn::wrong_shape(self.model()?),
            Deed::LengthMismatch => nn::length_mismatch(self.model()?),
            Deed::WrongName => nn::wrong_name(self.model()?),
            Deed::MissingGraph => nn::missing_graph(),
            Deed::MissingGraphByWasiNn => nn::missing_graph_by_wasi_nn(),
            Deed::LoadFromBytes => nn::load_from_bytes(),
            Deed::TensorBomb => nn::tensor_bomb(),
            Deed::HandleBomb => nn::handle_bomb(),
            Deed::Trap { message } => trap(&message),
            Deed::LogFlood { lines } => {
                (0..lines).for_each(|line| log::info(format!("line {line} of {lines}")));
                Response::json(&json!({ "lines": lines }))
            }
            Deed::LogNewlines { bytes } => {
                log::info("\n".repeat(bytes));
                Response::json(&json!({ "bytes": bytes }))
            }
            Deed::ComputeOk => nn::compute(self.model()?),
            Deed::ComputeByWasiNn => nn::compute_by_wasi_nn(self.model()?),
            Deed::ComputeRows { rows } => nn::compute_rows(self.model()?, rows),
            Deed::Status { status } => Ok(Response::text(format!("status {status}")).with_status(status)),
            Deed::BadContentType => Ok(Response::bytes("text/plain\r\nx-y: z", "two headers")),
            Deed::AssetLate => Response::json(&json!({ "refusal": assets::read("tokenizer.json").err() })),
            Deed::Setting { name } => Response::json(&json!({ "setting": request.setting(&name) })),
            Deed::Fail { kind } => Err(Error::new(failure_kind(&kind)?, format!("told to fail with {kind}"))),
            Deed::FailLong { bytes } => Err(Error::invalid_input(long(bytes))),
            // Not through the SDK, which asks in lower case.
            Deed::Headers { names } => {
                let values: Vec<_> = names.iter().map(|name| request_headers::get(name)).collect();
                Response::json(&json!({ "values": values }))
            }
        }
    }
}

impl Hostile {
    fn model(&self) -> Result<&GraphInfo, Error> {
        self.model.as_ref().ok_or_else(|| Error::model("the package has no graph `model`"))
    }
}

fn echo(request: Request) -> Result<Response, Error> {
    let content_type = request.content_type().to_owned();
    Ok(Response::bytes(content_type, request.into_bytes()?))
}

fn count_chunks(request: Request) -> Result<Response, Error> {
    let (mut bytes, mut chunks) = (0, 0);
    for chunk in request.chunks() {
        bytes += chunk?.len();
        chunks += 1;
    }
    Response::json(&json!({ "bytes": bytes, "chunks": chunks }))
}

/// A message of this size that says so at its beginning.
fn long(bytes: usize) -> String {
    let mut text = format!("told to fail with {bytes} bytes: ");
    text.push_str(&"x".repeat(bytes.saturating_sub(text.len())));
    text
}

fn spin() -> ! {
    loop {
        black_box(());
    }
}

#[allow(clippy::panic, reason = "this is the deed")]
fn trap(message: &str) -> ! {
    panic!("{message}");
}

fn stream(chunks: usize, bytes: usize) -> Result<StreamingResponse, Error> {
    let mut response = Response::stream("application/octet-stream")?;
    let chunk = vec![b'x'; bytes];
    for _ in 0..chunks {
        response.write(&chunk)?;
    }
    Ok(response)
}

fn failure_kind(name: &str) -> Result<ErrorKind, Error> {
    Ok(match name {
        "invalid-input" => ErrorKind::InvalidInput,
        "not-found" => ErrorKind::NotFound,
        "too-large" => ErrorKind::TooLarge,
        "unsupported-media-type" => ErrorKind::UnsupportedMediaType,
        "model" => ErrorKind::Model,
        "timeout" => ErrorKind::Timeout,
        "unavailable" => ErrorKind::Unavailable,
        other => return Err(Error::invalid_input(format!("no failure kind is called `{other}`"))),
    })
}
