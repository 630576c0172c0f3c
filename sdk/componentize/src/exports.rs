//! Takes the post-return functions away: what the host calls after a result was read, to have its memory freed. Here the
//! instance goes with its answer, and each export and each call has its price (3 % of what the sandbox costs a request).

use std::convert::Infallible;

use anyhow::{Context as _, Result};
use wasm_encoder::reencode::{Error, Reencode};
use wasm_encoder::{ExportSection, Module};
use wasmparser::{ExportSectionReader, Parser};

/// How `wit-component` knows them: `cabi_post_` and the function's name.
const PREFIX: &str = "cabi_post_";

/// The core module without the exports of its post-return functions.
pub(crate) fn without_post_return(module: &[u8]) -> Result<Vec<u8>> {
    let mut kept = Module::new();
    Exports.parse_core_module(&mut kept, Parser::new(0), module).context("failed to read its exports")?;
    Ok(kept.finish())
}

struct Exports;

impl Reencode for Exports {
    type Error = Infallible;

    fn parse_export_section(
        &mut self,
        exports: &mut ExportSection,
        section: ExportSectionReader<'_>,
    ) -> Result<(), Error> {
        for export in section {
            let export = export?;
            if !export.name.starts_with(PREFIX) {
                self.parse_export(exports, export)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use wasm_encoder::{CodeSection, ExportKind, Function, FunctionSection, TypeSection};
    use wasmparser::{Payload, Validator};

    use super::*;

    #[test]
    fn only_post_return_functions_lose_their_export() {
        let (mut types, mut functions, mut exports, mut code) =
            (TypeSection::new(), FunctionSection::new(), ExportSection::new(), CodeSection::new());
        types.ty().function([], []);
        functions.function(0);
        exports.export("handle", ExportKind::Func, 0).export("cabi_post_handle", ExportKind::Func, 0);
        let mut function = Function::new([]);
        function.instructions().end();
        code.function(&function);
        let mut module = Module::new();
        module.section(&types).section(&functions).section(&exports).section(&code);
        let kept = without_post_return(&module.finish()).unwrap();
        Validator::new().validate_all(&kept).unwrap();
        let mut names = Vec::new();
        for payload in Parser::new(0).parse_all(&kept) {
            if let Payload::ExportSection(section) = payload.unwrap() {
                names.extend(section.into_iter().map(|export| export.unwrap().name.to_owned()));
            }
        }
        assert_eq!(names, ["handle"]);
    }
}
