//! Tools that builds need and this program does not carry: installed once, in pinned versions, into the cache.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::cli::note;

/// The file in a tool's folder that says what was installed, written last.
const STAMP: &str = "installed";

/// The folder of a tool, installed if it is not there. `key` is what decides its content; another key installs it anew.
///
/// # Errors
/// When it cannot be installed; nothing half-made is used.
pub(super) fn installed(
    name: &str,
    key: &str,
    install: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let tools = cache()?.join("tools");
    let folder = tools.join(name);
    let stamp = folder.join(STAMP);
    fs::create_dir_all(&tools).with_context(|| format!("failed to make {}", tools.display()))?;
    // Two builds may need the same tool: one installs it, the other waits and then finds it.
    let lock = tools.join(format!("{name}.lock"));
    let lock = File::create(&lock).with_context(|| format!("failed to open {}", lock.display()))?;
    lock.lock().context("failed to wait for another build")?;
    if fs::read_to_string(&stamp).is_ok_and(|found| found == key) {
        return Ok(folder);
    }
    note(&format!("installing {name} into {}, once", tools.display()));
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("failed to remove {}", folder.display()))?;
    }
    fs::create_dir(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
    install(&folder).with_context(|| format!("failed to install {name}"))?;
    fs::write(&stamp, key).with_context(|| format!("failed to write {}", stamp.display()))?;
    Ok(folder)
}

/// The folder that setup.sh uses too: $TESSERA_CACHE, or `tessera` in the user's cache.
fn cache() -> anyhow::Result<PathBuf> {
    let folder = |variable: &str| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let of_user = || folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    folder("TESSERA_CACHE")
        .or_else(|| Some(of_user()?.join("tessera")))
        .context("there is no folder for tools: set TESSERA_CACHE to one")
}

/// Runs a tool to its end. What it prints is shown only if it fails; then it is what a person needs to see.
///
/// # Errors
/// When it is not there, for which `hint` is the way out, or fails.
pub(super) fn run(command: &mut Command, hint: &str) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let name = Path::new(&program).file_name().map_or(program.clone(), |name| name.to_string_lossy().into_owned());
    let output = match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!("{name} was not found: {hint}"),
        output => output.with_context(|| format!("failed to run {name}"))?,
    };
    if !output.status.success() {
        for text in [output.stdout, output.stderr] {
            let text = String::from_utf8_lossy(&text);
            if !text.trim().is_empty() {
                note(text.trim_end());
            }
        }
        bail!("{name} failed: see what it says above");
    }
    Ok(())
}

/// What a program printed, without the end of its last line; none if it is not there or fails.
pub(super) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    Some(text.trim_end().to_owned())
}
