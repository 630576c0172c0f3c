//! Which interfaces a component may import. What is not granted here does not exist for a guest.

use wasmparser::{ComponentExternalKind, ComponentTypeRef, Parser, Payload};

/// Interfaces granted to every component, by package. WASI is there for guests whose toolchain needs it; behind it lie
/// no files, no environment and no network.
const GRANTED: [&str; 7] =
    ["tessera:endpoint/", "wasi:nn/", "wasi:io/", "wasi:cli/", "wasi:clocks/", "wasi:random/", "wasi:filesystem/"];

/// Largest component.
pub const COMPONENT_BYTES_MAX: u64 = 64 << 20;

/// Checks that a component imports only what is granted and exports what the world asks for.
///
/// # Errors
/// A sentence that names the interface, for the component's author.
pub fn check(component: &[u8]) -> Result<(), String> {
    if component.len() as u64 > COMPONENT_BYTES_MAX {
        return Err(format!("the component has {} bytes; the limit is {COMPONENT_BYTES_MAX}", component.len()));
    }
    if Parser::is_core_wasm(component) {
        return Err("the file is a core module, not a component: build it with sdk/build-guests.sh".to_owned());
    }
    if !Parser::is_component(component) {
        return Err("the file is not a WebAssembly component".to_owned());
    }
    let mut exports = Vec::new();
    for import in imports(component, &mut exports).map_err(|error| format!("the component is damaged: {error}"))? {
        if !GRANTED.iter().any(|granted| import.starts_with(granted)) {
            return Err(format!(
                "the component imports '{import}', which is not granted; granted are {}",
                GRANTED.map(|package| package.trim_end_matches('/')).join(", ")
            ));
        }
    }
    for needed in ["init", "handle"] {
        if !exports.iter().any(|export| export == needed) {
            return Err(format!("the component does not export '{needed}' of the world tessera:endpoint/endpoint"));
        }
    }
    Ok(())
}

/// Imports of the outermost component; its exported functions are added to `exports`.
fn imports(component: &[u8], exports: &mut Vec<String>) -> wasmparser::Result<Vec<String>> {
    let mut imports = Vec::new();
    let mut depth = 0u32;
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    let import = import?;
                    // A world's own type names appear as imports too; they give a guest nothing to call.
                    if !matches!(import.ty, ComponentTypeRef::Type(_)) {
                        imports.push(import.name.name.to_owned());
                    }
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    let export = export?;
                    if export.kind == ComponentExternalKind::Func {
                        exports.push(export.name.name.to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    Ok(imports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_component_is_told_apart() {
        assert!(check(b"hello").unwrap_err().contains("not a WebAssembly component"));
        assert!(check(b"\0asm\x01\0\0\0").unwrap_err().contains("core module"));
        assert!(check(b"\0asm\x0d\0\x01\0").unwrap_err().contains("does not export 'init'"));
    }
}
