//! `tessera-componentize IN OUT`: a core module built with `tessera-sdk` becomes a component.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use tessera_componentize::componentize;

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
