//! A core module built with `tessera-sdk` becomes a component: for `tessera build` and, as the program
//! `tessera-componentize`, for `sdk/build-guests.sh`.
//!
//! The module carries its world in a custom section. Imports that it does not use are left out, so that the component
//! asks for no capability it has no need of. A module built for `wasm32-wasip1` gets the preview 1 adapter; one built
//! for `wasm32-unknown-unknown` needs none. What is a component already (`wasm32-wasip2`) is validated and handed back.

mod exports;
mod merge;

use anyhow::{Context as _, Result};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wasmparser::{Parser, Payload, Validator};
use wit_component::ComponentEncoder;

/// Makes a component of a core module; a component is handed back as it is.
///
/// # Errors
/// When the module is damaged, carries no world, or does not fit it.
pub fn componentize(wasm: Vec<u8>) -> Result<Vec<u8>> {
    if Parser::is_component(&wasm) {
        Validator::new().validate_all(&wasm).context("it is a component, but not a valid one")?;
        return Ok(wasm);
    }
    let wasm = exports::without_post_return(&wasm)?;
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
