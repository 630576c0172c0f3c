//! Rust: cargo builds a core module, which becomes a component in this process.
//!
//! The SDK is not in a registry. This program carries its source, and unpacks it into the project's `.tessera`, where the
//! project's Cargo.toml finds it by its path; so a project fits the program that it is built with.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::tools::output;
use crate::cli::doctor::Check;
use crate::cli::embedded::RUST_SDK;
use crate::cli::project::{Project, unpack};

/// The workspace that the SDK takes its versions from.
const WORKSPACE: &str = include_str!("../../../../Cargo.toml");

/// Targets that a component can be made from, the best first: without WASI there is nothing to link that is not used.
const TARGETS: [&str; 3] = ["wasm32-unknown-unknown", "wasm32-wasip1", "wasm32-wasip2"];

/// The project's profile for builds that are optimised: that of `sdk/build-guests.sh`, apart from the one for its tests.
const PROFILE: &str = "guest";

/// How to get a compiler.
const WAYS_OUT: &str = "run `rustup target add wasm32-unknown-unknown`, or on Debian `apt-get install rustc-web \
                        cargo-web rust-web-src lld`";

/// What `sdk/build-guests.sh` says of each.
const FLAGS: [&str; 5] = [
    "-Ctarget-feature=+simd128",
    "-Clink-arg=-zstack-size=524288",
    "-Clink-arg=--stack-first",
    "--cfg",
    "getrandom_backend=\"custom\"",
];

/// Builds the project's library for WebAssembly and makes a component of it.
///
/// # Errors
/// When there is no compiler for it, or the build fails; the compiler has said why on stderr.
pub(super) fn build(project: &Project, release: bool) -> anyhow::Result<PathBuf> {
    unpack_sdk(project)?;
    let module = compile(project, &Toolchain::find(&project.root)?, release)?;
    let wasm = std::fs::read(&module).with_context(|| format!("failed to read {}", module.display()))?;
    let component = tessera_componentize::componentize(wasm)
        .with_context(|| format!("failed to make a component of {}", module.display()))?;
    let path = project.scratch("build")?.join("rust.wasm");
    std::fs::write(&path, component).with_context(|| format!("failed to write {}", path.display()))?;
    Ok(path)
}

/// Whether there is a compiler, for `tessera doctor`.
pub(super) fn check() -> Check {
    const NAME: &str = "components in Rust";
    match Toolchain::find(Path::new(".")) {
        Ok(found) => Check::ok(NAME, format!("{} for {}", found.cargo, found.target)),
        Err(error) => {
            let (found, fix) = (error.to_string(), WAYS_OUT.to_owned());
            Check::missing(NAME, found.trim_end_matches(&format!(": {WAYS_OUT}")), format!("to build them: {fix}"))
        }
    }
}

/// Puts the SDK where the project's Cargo.toml looks for it: `.tessera/sdk/rust`, in a workspace like that of this
/// repository.
pub(in crate::cli) fn unpack_sdk(project: &Project) -> anyhow::Result<()> {
    let workspace = sdk_workspace();
    let files = RUST_SDK.iter().copied().chain([("Cargo.toml", workspace.as_bytes())]);
    unpack(&project.scratch("sdk")?.join(".."), files).context("failed to unpack the SDK")
}

/// The workspace's Cargo.toml with the SDK as its only member.
fn sdk_workspace() -> String {
    let (before, rest) = WORKSPACE.split_once("members = [").unwrap_or((WORKSPACE, "]"));
    let after = rest.split_once(']').map_or("", |(_, after)| after);
    format!("{before}members = [\"sdk/rust\"]{after}")
}

/// A compiler for WebAssembly.
#[derive(Debug)]
struct Toolchain {
    cargo: &'static str,
    target: &'static str,
    variables: Vec<(&'static str, String)>,
    arguments: &'static [&'static str],
}

impl Toolchain {
    /// rustup's, if it has a target for WebAssembly; else Debian's, which builds the standard library itself.
    fn find(folder: &Path) -> anyhow::Result<Toolchain> {
        let installed = output(Command::new("rustup").args(["target", "list", "--installed"]).current_dir(folder));
        let installed = installed.unwrap_or_default();
        if let Some(target) = TARGETS.into_iter().find(|target| installed.lines().any(|line| line == *target)) {
            return Ok(Toolchain { cargo: "cargo", target, variables: vec![], arguments: &[] });
        }
        Toolchain::debian(folder)?.with_context(|| format!("there is no Rust compiler for WebAssembly: {WAYS_OUT}"))
    }

    fn debian(folder: &Path) -> anyhow::Result<Option<Toolchain>> {
        let sysroot = output(Command::new("/usr/bin/rustc").args(["--print", "sysroot"]));
        let has_source =
            |sysroot: &String| Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/std/Cargo.toml").exists();
        if !sysroot.as_ref().is_some_and(has_source) || !Path::new("/usr/bin/cargo").exists() {
            return Ok(None);
        }
        let variables = vec![
            ("RUSTC", "/usr/bin/rustc".to_owned()),
            // Lets a stable compiler build the standard library, which Debian ships no build of for WebAssembly.
            ("RUSTC_BOOTSTRAP", "1".to_owned()),
            ("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker(folder)?),
        ];
        let arguments = &["-Zbuild-std=std,panic_abort"];
        Ok(Some(Toolchain { cargo: "/usr/bin/cargo", target: TARGETS[0], variables, arguments }))
    }
}

/// Debian's compiler comes without the linker for WebAssembly; rustup's brings it along, and LLVM has one.
fn linker(folder: &Path) -> anyhow::Result<String> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(folder)).unwrap_or_default();
    let rustlib = Path::new(sysroot.trim()).join("lib/rustlib");
    let hosts = std::fs::read_dir(rustlib).into_iter().flatten().flatten();
    let brought = hosts.map(|host| host.path().join("bin/rust-lld")).find(|path| path.exists());
    let on_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join("wasm-ld")).find(|path| path.exists())
    };
    let found = brought.or_else(on_path).context(
        "there is no linker for WebAssembly (rust-lld or wasm-ld): install Rust with rustup, or the package lld",
    )?;
    Ok(found.to_string_lossy().into_owned())
}

/// A line of cargo's, of which there are many kinds.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    filenames: Vec<PathBuf>,
    #[serde(default)]
    manifest_path: PathBuf,
}

/// Runs cargo, whose own lines go to stderr, and returns the module that it built.
fn compile(project: &Project, toolchain: &Toolchain, release: bool) -> anyhow::Result<PathBuf> {
    let manifest = project.root.join("Cargo.toml");
    let mut command = Command::new(toolchain.cargo);
    command.args(["build", "--lib", "--quiet", "--message-format=json-render-diagnostics", "--target"]);
    command.arg(toolchain.target).args(toolchain.arguments).arg("--manifest-path").arg(&manifest);
    if release {
        command.args(["--profile", PROFILE]);
    }
    command.envs(toolchain.variables.iter().map(|(name, value)| (name, value)));
    command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")).current_dir(&project.root);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to run {}", toolchain.cargo))?;
    let lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines()).into_iter().flatten();
    let built = lines.map_while(Result::ok).filter_map(|line| serde_json::from_str::<Message>(&line).ok());
    let is_ours = |message: &Message| message.reason == "compiler-artifact" && message.manifest_path == manifest;
    let modules = built.filter(is_ours).flat_map(|message| message.filenames);
    let module = modules.filter(|file| file.extension().is_some_and(|ending| ending == "wasm")).last();
    let status = child.wait().context("failed to wait for cargo")?;
    if !status.success() {
        bail!("the component was not built: see what cargo says above");
    }
    module.with_context(|| {
        format!(
            "cargo built no WebAssembly module: {} needs `crate-type = [\"cdylib\"]` under [lib]",
            manifest.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sdk_finds_in_its_workspace_what_it_takes_from_it() {
        let workspace: toml::Table = sdk_workspace().parse().unwrap();
        let sdk = RUST_SDK.iter().find(|(name, _)| *name == "sdk/rust/Cargo.toml").unwrap().1;
        let sdk: toml::Table = std::str::from_utf8(sdk).unwrap().parse().unwrap();
        assert_eq!(workspace["workspace"]["members"].as_array().unwrap().len(), 1);
        let inherits = |value: &toml::Value| value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
        for (table, of) in [("package", "package"), ("dependencies", "dependencies")] {
            for (key, _) in sdk[table].as_table().unwrap().iter().filter(|(_, value)| inherits(value)) {
                assert!(workspace["workspace"][of].get(key).is_some(), "{table}.{key}");
            }
        }
        assert!(RUST_SDK.iter().any(|(name, _)| *name == "wit/endpoint.wit"));
    }
}
