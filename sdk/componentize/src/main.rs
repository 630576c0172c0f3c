//! `tessera-componentize IN OUT`: a core module built with `tessera-sdk` becomes a component.
//!
//! The module carries its world in a custom section. Imports that it does not use are left out, so that the component
//! asks for no capability it has no need of. A module built for `wasm32-wasip1` gets the preview 1 adapter; one built
//! for `wasm32-unknown-unknown` needs none. What is a component already (`wasm32-wasip2`) is validated and copied.

mod merge;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wasmparser::{Parser, Payload, Validator};
use wit_component::ComponentEncoder;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [input, output] = arguments.as_slice() else {
        eprintln!("usage: tessera-componentize IN OUT\n\nTurns the core WebAssembly module IN into the component OUT.");
        return ExitCode::from(2);
    };
    match run(input, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tessera-componentize: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(input: &Path, output: &Path) -> Result<()> {
    let wasm = std::fs::read(input).with_context(|| format!("failed to read {}", input.display()))?;
    let component = componentize(wasm).with_context(|| format!("failed to make a component of {}", input.display()))?;
    std::fs::write(output, component).with_context(|| format!("failed to write {}", output.display()))
}

fn componentize(wasm: Vec<u8>) -> Result<Vec<u8>> {
    if Parser::is_component(&wasm) {
        Validator::new().validate_all(&wasm).context("it is a component, but not a valid one")?;
        return Ok(wasm);
    }
    let mut encoder = ComponentEncoder::default().module(&wasm)?;
    if imports_from(&wasm, WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME)? {
        encoder = encoder.adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER)?;
    }
    let component = merge::without_shim(encoder.encode()?)?;
    Validator::new().validate_all(&component).context("the component that was made is not valid")?;
    Ok(component)
}

fn imports_from(wasm: &[u8], module: &str) -> Result<bool> {
    for payload in Parser::new(0).parse_all(wasm) {
        if let Payload::ImportSection(section) = payload? {
            for import in section.into_imports() {
                if import?.module == module {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}
