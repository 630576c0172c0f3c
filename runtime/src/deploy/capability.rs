//! Which interfaces a component may import. What is not granted here does not exist for a guest.

use wasmparser::{ComponentTypeRef, Parser, Payload};

use super::schema;
use crate::sandbox::World;

/// Interfaces granted to every component, by package. WASI is there for guests whose toolchain needs it; behind it lie
/// no files, no environment and no network: a guest that asks for a socket is denied one, and one that sends a request of
/// HTTP is denied every host that its package is not granted.
const GRANTED: [&str; 10] = [
    "tessera:endpoint/",
    "wasi:nn/",
    "wasi:io/",
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:random/",
    "wasi:filesystem/",
    "wasi:sockets/",
    "wasi:http/types@0.2.",
    OUTGOING_HANDLER,
];

/// What a component imports that may call other hosts.
const OUTGOING_HANDLER: &str = "wasi:http/outgoing-handler@0.2.";

/// Largest component.
pub const COMPONENT_BYTES_MAX: u64 = 64 << 20;

/// What a component asks of its host, and what it offers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Interfaces {
    /// Names of what it imports, such as `tessera:endpoint/compute@0.1.0`.
    pub imports: Vec<String>,
    /// Names of all that it exports.
    pub exports: Vec<String>,
}

/// Whether every component may import an interface.
pub fn is_granted(import: &str) -> bool {
    GRANTED.iter().any(|granted| import.starts_with(granted))
}

/// Reads what a component imports and exports.
///
/// # Errors
/// A sentence: that it is too large, damaged, or no component.
pub fn look(component: &[u8]) -> Result<Interfaces, String> {
    if component.len() as u64 > COMPONENT_BYTES_MAX {
        return Err(format!("the component has {} bytes; the limit is {COMPONENT_BYTES_MAX}", component.len()));
    }
    if Parser::is_core_wasm(component) {
        return Err("the file is a core module, not a component: build it with `tessera build`".to_owned());
    }
    if !Parser::is_component(component) {
        return Err("the file is not a WebAssembly component".to_owned());
    }
    interfaces(component).map_err(|error| format!("the component is damaged: {error}"))
}

/// Checks that a component imports only what is granted and exports what the world asks for.
///
/// # Errors
/// A sentence that names the interface, for the component's author.
pub fn check(component: &[u8]) -> Result<(), String> {
    look(component)?.check()
}

impl Interfaces {
    /// The world that it is made for; none that is known.
    pub fn world(&self) -> Option<World> {
        World::of(self.exports.iter().map(String::as_str))
    }

    /// Whether it says what it takes and answers.
    pub fn describes(&self) -> bool {
        self.world() == Some(World::Endpoint) && self.exports.iter().any(|export| export == schema::EXPORT)
    }

    /// Whether it may call other hosts, where its package is granted some.
    pub fn calls_hosts(&self) -> bool {
        self.imports.iter().any(|import| import.starts_with(OUTGOING_HANDLER))
    }

    /// Checks that only what is granted is imported, and what the world asks for is exported.
    ///
    /// # Errors
    /// A sentence that names the interface, for the component's author.
    pub fn check(&self) -> Result<(), String> {
        if let Some(import) = self.imports.iter().find(|import| !is_granted(import)) {
            return Err(format!(
                "the component imports '{import}', which is not granted; granted are {}",
                GRANTED.map(|package| package.trim_end_matches(['/', '.'])).join(", ")
            ));
        }
        self.world().map(drop).ok_or_else(|| {
            "the component does not export 'init' and 'handle' of the world tessera:endpoint/endpoint, nor \
             wasi:http/incoming-handler@0.2 of the world wasi:http/proxy"
                .to_owned()
        })
    }
}

/// Those of the outermost component.
fn interfaces(component: &[u8]) -> wasmparser::Result<Interfaces> {
    let mut found = Interfaces::default();
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
                        found.imports.push(import.name.name.to_owned());
                    }
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    found.exports.push(export?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(found)
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
