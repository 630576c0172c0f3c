//! Takes one of three core modules out of a component, because every request pays for each of them.
//!
//! A function of the host that reads or writes the guest's memory can be made only once there is a memory, and the module
//! with the memory can be instantiated only once there are its imports. `wit-component` breaks the circle with two
//! modules: a shim, whose functions are imported by the main module and call through a table, and a fixup, which is
//! instantiated last and fills the table. The shim's part can as well be played by the main module: it gets a function of
//! its own in the place of each import, which calls through the main module's table, made longer for the fixup to fill.

use std::collections::HashMap;
use std::convert::Infallible;

use anyhow::{Context as _, Result};
use wasm_encoder::reencode::{Error, Reencode, ReencodeComponent};
use wasm_encoder::{
    Alias, CanonicalFunctionSection, CodeSection, Component, ComponentAliasSection, ConstExpr, ExportKind,
    ExportSection, Function, FunctionSection, ImportSection, InstanceSection, ModuleSection, RefType, TableType,
};
use wasmparser::{
    CanonicalFunction, CodeSectionReader, ComponentAlias, ComponentAliasSectionReader, ComponentCanonicalSectionReader,
    ExportSectionReader, ExternalKind, FunctionSectionReader, ImportSectionReader, Instance, InstanceSectionReader,
    Parser, Payload, TypeRef, TypeSectionReader,
};

/// Where `wit-component` puts its modules, and the shim's instance.
const MAIN_MODULE: u32 = 0;
const SHIM_MODULE: u32 = 1;
const SHIM_INSTANCE: u32 = 0;
const MODULES: u32 = 3;

/// The name under which the fixup finds the table.
const TABLE: &str = "$imports";

/// The same component without a shim; unchanged if it is not built as described above (a preview 1 adapter brings more
/// modules, and a guest that imports nothing has none to spare).
pub(crate) fn without_shim(component: Vec<u8>) -> Result<Vec<u8>> {
    let Some(shim) = Shim::find(&component)? else { return Ok(component) };
    let mut merged = Component::new();
    let mut merger = Merger { shim: &shim, modules: 0, functions: Vec::new() };
    merger.parse_component(&mut merged, Parser::new(0), &component).context("failed to take the shim module out")?;
    Ok(merged.finish())
}

/// What the shim does for the main module.
struct Shim {
    /// The imports of the main module, by module and name, that the shim answers, and their places in its table.
    places: HashMap<(String, String), u32>,
    /// The main module's instance.
    main_instance: u32,
    /// Elements of the main module's own table; those of the shim come after them.
    own_elements: u32,
}

impl Shim {
    fn find(component: &[u8]) -> Result<Option<Self>> {
        let (mut modules, mut own_elements, mut main_instance) = (0, None, None);
        // By index: the place in the table of a core function that is the shim's, and what lies in an instance that is
        // made of functions.
        let mut functions: Vec<Option<u32>> = Vec::new();
        let mut instances: Vec<Vec<(&str, u32)>> = Vec::new();
        let mut places = HashMap::new();
        for payload in Parser::new(0).parse_all(component) {
            match payload? {
                Payload::ModuleSection { .. } => modules += 1,
                Payload::ComponentSection { .. } => return Ok(None),
                Payload::TableSection(section) if modules == MAIN_MODULE + 1 => {
                    let mut tables = section.into_iter();
                    if let (Some(table), None) = (tables.next(), tables.next()) {
                        let ty = table?.ty;
                        own_elements = u32::try_from(ty.initial).ok().filter(|_| ty.element_type.is_func_ref());
                    }
                }
                Payload::ComponentCanonicalSection(section) => {
                    for function in section {
                        if !matches!(function?, CanonicalFunction::Lift { .. }) {
                            functions.push(None);
                        }
                    }
                }
                Payload::ComponentAliasSection(section) => {
                    for alias in section {
                        let ComponentAlias::CoreInstanceExport { kind: ExternalKind::Func, instance_index, name } =
                            alias?
                        else {
                            continue;
                        };
                        functions.push(if instance_index == SHIM_INSTANCE { name.parse().ok() } else { None });
                    }
                }
                Payload::InstanceSection(section) => {
                    for instance in section {
                        let mut exported = Vec::new();
                        match instance? {
                            Instance::FromExports(exports) => {
                                let is_function = |export: &&wasmparser::Export<'_>| export.kind == ExternalKind::Func;
                                exported = exports.iter().filter(is_function).map(|e| (e.name, e.index)).collect();
                            }
                            Instance::Instantiate { module_index: MAIN_MODULE, args } => {
                                main_instance = Some(instances.len() as u32);
                                for arg in &args {
                                    for (name, function) in instances.get(arg.index as usize).into_iter().flatten() {
                                        if let Some(Some(place)) = functions.get(*function as usize) {
                                            places.insert((arg.name.to_owned(), (*name).to_owned()), *place);
                                        }
                                    }
                                }
                            }
                            Instance::Instantiate { .. } => {}
                        }
                        instances.push(exported);
                    }
                }
                _ => {}
            }
        }
        let (Some(main_instance), Some(own_elements)) = (main_instance, own_elements) else { return Ok(None) };
        let shims = functions.iter().flatten().count();
        let is_known = modules == MODULES && shims > 0 && shims == places.len();
        Ok(is_known.then_some(Self { places, main_instance, own_elements }))
    }

    /// The main module's table, with its elements and the shim's.
    fn table(&self) -> TableType {
        let elements = u64::from(self.own_elements) + self.places.len() as u64;
        let element_type = RefType::FUNCREF;
        TableType { element_type, table64: false, minimum: elements, maximum: Some(elements), shared: false }
    }
}

/// Rewrites the component: leaves the shim out, and has everything else find its way.
struct Merger<'s> {
    shim: &'s Shim,
    /// Modules seen so far.
    modules: u32,
    /// The new index of each core function; none for those of the shim.
    functions: Vec<Option<u32>>,
}

impl Merger<'_> {
    fn next_function(&self) -> u32 {
        self.functions.iter().flatten().count() as u32
    }
}

impl Reencode for Merger<'_> {
    type Error = Infallible;

    fn function_index(&mut self, function: u32) -> Result<u32, Error> {
        Ok(self.functions.get(function as usize).copied().flatten().unwrap_or(function))
    }
}

impl ReencodeComponent for Merger<'_> {
    fn parse_component_submodule(
        &mut self,
        component: &mut Component,
        parser: Parser,
        module: &[u8],
    ) -> Result<(), Error> {
        let index = self.modules;
        self.modules += 1;
        match index {
            MAIN_MODULE => {
                let mut main = wasm_encoder::Module::new();
                MainModule::new(self.shim).parse_core_module(&mut main, parser, module)?;
                component.section(&ModuleSection(&main));
                Ok(())
            }
            SHIM_MODULE => Ok(()),
            _ => {
                let mut fixup = wasm_encoder::Module::new();
                FixupModule { shim: self.shim }.parse_core_module(&mut fixup, parser, module)?;
                component.section(&ModuleSection(&fixup));
                Ok(())
            }
        }
    }

    fn module_index(&mut self, module: u32) -> u32 {
        if module > SHIM_MODULE { module - 1 } else { module }
    }

    /// What was asked of the shim's instance is asked of the main one.
    fn instance_index(&mut self, instance: u32) -> u32 {
        (if instance == SHIM_INSTANCE { self.shim.main_instance } else { instance }) - 1
    }

    fn parse_component_alias_section(
        &mut self,
        aliases: &mut ComponentAliasSection,
        section: ComponentAliasSectionReader<'_>,
    ) -> Result<(), Error> {
        for alias in section {
            let alias = alias?;
            if let ComponentAlias::CoreInstanceExport { kind: ExternalKind::Func, instance_index, .. } = alias {
                let kept = (instance_index != SHIM_INSTANCE).then(|| self.next_function());
                self.functions.push(kept);
                if kept.is_none() {
                    continue;
                }
            }
            let alias: Alias<'_> = self.component_alias(alias)?;
            aliases.alias(alias);
        }
        Ok(())
    }

    fn parse_component_canonical_section(
        &mut self,
        canonical: &mut CanonicalFunctionSection,
        section: ComponentCanonicalSectionReader<'_>,
    ) -> Result<(), Error> {
        for function in section {
            let function = function?;
            let is_core = !matches!(function, CanonicalFunction::Lift { .. });
            self.parse_component_canonical(canonical, function)?;
            if is_core {
                self.functions.push(Some(self.next_function()));
            }
        }
        Ok(())
    }

    fn parse_instance_section(
        &mut self,
        instances: &mut InstanceSection,
        section: InstanceSectionReader<'_>,
    ) -> Result<(), Error> {
        for instance in section {
            let instance = match instance? {
                Instance::Instantiate { module_index: SHIM_MODULE, .. } => continue,
                Instance::FromExports(exports) => {
                    let is_shims = |export: &wasmparser::Export<'_>| {
                        export.kind == ExternalKind::Func && self.functions.get(export.index as usize) == Some(&None)
                    };
                    Instance::FromExports(exports.iter().filter(|export| !is_shims(export)).copied().collect())
                }
                instance => instance,
            };
            self.parse_instance(instances, instance)?;
        }
        Ok(())
    }
}

/// Rewrites the fixup module: it fills the end of the main module's table.
struct FixupModule<'s> {
    shim: &'s Shim,
}

impl Reencode for FixupModule<'_> {
    type Error = Infallible;

    /// Of its only table, which it imports.
    fn table_type(&mut self, _: wasmparser::TableType) -> Result<TableType, Error> {
        Ok(self.shim.table())
    }

    /// Of its only constant, where the elements go.
    fn const_expr(&mut self, _: wasmparser::ConstExpr<'_>) -> Result<ConstExpr, Error> {
        Ok(ConstExpr::i32_const(self.shim.own_elements.cast_signed()))
    }
}

/// Rewrites the main module: its table gets longer, and each import of the shim becomes a function that calls through it.
struct MainModule<'s> {
    shim: &'s Shim,
    /// How many parameters each function type has.
    parameters: Vec<u32>,
    /// The new index of each imported function. All others keep theirs: the new functions come right after the imports,
    /// and are as many as there are imports less.
    imported: Vec<u32>,
    /// The type of each new function, and its place among the shim's elements of the table.
    stubs: Vec<(u32, u32)>,
}

impl<'s> MainModule<'s> {
    fn new(shim: &'s Shim) -> Self {
        Self { shim, parameters: Vec::new(), imported: Vec::new(), stubs: Vec::new() }
    }
}

impl Reencode for MainModule<'_> {
    type Error = Infallible;

    fn function_index(&mut self, function: u32) -> Result<u32, Error> {
        Ok(self.imported.get(function as usize).copied().unwrap_or(function))
    }

    fn parse_type_section(
        &mut self,
        types: &mut wasm_encoder::TypeSection,
        section: TypeSectionReader<'_>,
    ) -> Result<(), Error> {
        for group in section.clone() {
            let parameters = |ty: &wasmparser::SubType| match &ty.composite_type.inner {
                wasmparser::CompositeInnerType::Func(function) => function.params().len() as u32,
                _ => 0,
            };
            self.parameters.extend(group?.types().map(parameters));
        }
        wasm_encoder::reencode::utils::parse_type_section(self, types, section)
    }

    fn parse_import_section(
        &mut self,
        imports: &mut ImportSection,
        section: ImportSectionReader<'_>,
    ) -> Result<(), Error> {
        let mut kept = 0;
        // The place of each function import: among the imports, or among the stubs.
        let mut indices = Vec::new();
        for import in section.into_imports() {
            let import = import?;
            let place = self.shim.places.get(&(import.module.to_owned(), import.name.to_owned()));
            match (import.ty, place) {
                (TypeRef::Func(ty), Some(place)) => {
                    indices.push(Err(self.stubs.len() as u32));
                    self.stubs.push((ty, *place));
                    continue;
                }
                (TypeRef::Func(_), None) => {
                    indices.push(Ok(kept));
                    kept += 1;
                }
                _ => {}
            }
            self.parse_import(imports, import)?;
        }
        self.imported = indices.into_iter().map(|index| index.unwrap_or_else(|stub| kept + stub)).collect();
        Ok(())
    }

    fn parse_function_section(
        &mut self,
        functions: &mut FunctionSection,
        section: FunctionSectionReader<'_>,
    ) -> Result<(), Error> {
        for (ty, _) in &self.stubs {
            functions.function(*ty);
        }
        wasm_encoder::reencode::utils::parse_function_section(self, functions, section)
    }

    fn table_type(&mut self, _: wasmparser::TableType) -> Result<TableType, Error> {
        Ok(self.shim.table())
    }

    fn parse_export_section(
        &mut self,
        exports: &mut ExportSection,
        section: ExportSectionReader<'_>,
    ) -> Result<(), Error> {
        wasm_encoder::reencode::utils::parse_export_section(self, exports, section)?;
        exports.export(TABLE, ExportKind::Table, 0);
        Ok(())
    }

    fn parse_code_section(&mut self, code: &mut CodeSection, section: CodeSectionReader<'_>) -> Result<(), Error> {
        for (ty, place) in &self.stubs {
            let mut stub = Function::new([]);
            let mut body = stub.instructions();
            for parameter in 0..self.parameters.get(*ty as usize).copied().unwrap_or_default() {
                body.local_get(parameter);
            }
            body.i32_const((self.shim.own_elements + place).cast_signed()).call_indirect(0, *ty).end();
            code.function(&stub);
        }
        wasm_encoder::reencode::utils::parse_code_section(self, code, section)
    }
}

#[cfg(test)]
mod tests {
    use wasm_encoder::{EntityType, MemorySection, MemoryType, TableSection, TypeSection, ValType};
    use wasmparser::Validator;
    use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

    use super::*;

    /// A module that imports `log: func(message: string)` and exports `run: func()`, which calls it with an empty text.
    fn main_module(with_table: bool) -> Vec<u8> {
        let (mut types, mut imports, mut functions) =
            (TypeSection::new(), ImportSection::new(), FunctionSection::new());
        types.ty().function([ValType::I32, ValType::I32], []);
        types.ty().function([], []);
        imports.import("$root", "log", EntityType::Function(0));
        functions.function(1);
        let (mut tables, mut memories) = (TableSection::new(), MemorySection::new());
        let element_type = RefType::FUNCREF;
        tables.table(TableType { element_type, table64: false, minimum: 5, maximum: Some(5), shared: false });
        memories.memory(MemoryType { minimum: 1, maximum: None, memory64: false, shared: false, page_size_log2: None });
        let mut exports = ExportSection::new();
        exports.export("memory", ExportKind::Memory, 0).export("run", ExportKind::Func, 1);
        let (mut code, mut run) = (CodeSection::new(), Function::new([]));
        run.instructions().i32_const(0).i32_const(0).call(0).end();
        code.function(&run);
        let mut module = wasm_encoder::Module::new();
        module.section(&types).section(&imports).section(&functions);
        if with_table {
            module.section(&tables);
        }
        module.section(&memories).section(&exports).section(&code);
        module.finish()
    }

    fn component_of(mut module: Vec<u8>) -> Vec<u8> {
        let mut resolve = wit_parser::Resolve::default();
        let wit = "package test:test; world guest { import log: func(message: string); export run: func(); }";
        let package = resolve.push_str("test.wit", wit).unwrap();
        let world = resolve.select_world(&[package], None).unwrap();
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
        ComponentEncoder::default().module(&module).unwrap().encode().unwrap()
    }

    fn modules(component: &[u8]) -> usize {
        let is_module = |payload: &Result<Payload<'_>, _>| matches!(payload, Ok(Payload::ModuleSection { .. }));
        Parser::new(0).parse_all(component).filter(is_module).count()
    }

    #[test]
    fn the_shim_goes_and_the_component_stays_valid() {
        let component = component_of(main_module(true));
        let merged = without_shim(component.clone()).unwrap();
        assert_eq!((modules(&component), modules(&merged)), (3, 2));
        Validator::new().validate_all(&merged).unwrap();
    }

    #[test]
    fn a_component_of_another_form_is_left_alone() {
        let component = component_of(main_module(false));
        assert_eq!(without_shim(component.clone()).unwrap(), component);
    }
}
