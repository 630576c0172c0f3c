//! Baselines for the benches: what the machine can do without Tessera, over the same HTTP, JSON and ONNX Runtime.
//!
//! ```text
//! tessera-bare hyper                      a fixed answer to any request
//! tessera-bare onnx LIBRARY MODEL         scores rows: `dataframe_split` or `inputs` in, `predictions` out
//! tessera-bare embeddings LIBRARY DIR     OpenAI embeddings of DIR/model.onnx and DIR/tokenizer.json
//! ```
//!
//! LIBRARY is `libonnxruntime.so`. Each prints the address that it listens on (loopback, a free port) and serves until it
//! is killed. All compute happens on the event loop, one request after the other: nothing is queued, batched or handed
//! to another thread.
//!
//! Absent on purpose: tokens, limits, logs, metrics, more than one model, and all checks that do not keep a wrong answer
//! from being measured. The paths of requests are not looked at.

mod embeddings;
mod http;
mod onnx;
mod session;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

// As in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tessera-bare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["hyper"] => http::serve(|_body| Ok(br#"{"predictions":[0]}"#.to_vec())),
        ["onnx", library, model] => {
            let scoring = onnx::Scoring::load(Path::new(library), Path::new(model))?;
            http::serve(move |body| scoring.answer(body))
        }
        ["embeddings", library, dir] => {
            let embeddings = embeddings::Embeddings::load(Path::new(library), Path::new(dir))?;
            http::serve(move |body| embeddings.answer(body))
        }
        _ => bail!("usage: tessera-bare hyper | onnx LIBRARY MODEL | embeddings LIBRARY DIR"),
    }
}
