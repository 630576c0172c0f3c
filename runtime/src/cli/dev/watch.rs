//! Tells of changed files of a project: those that a person writes, not those that a build makes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use notify::event::EventKind;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use crate::cli::project::Project;
use crate::deploy::manifest::MANIFEST;

/// Folders in which builds of any language leave their files. Hidden ones are left out as well.
const BUILD_FOLDERS: [&str; 5] = ["target", "node_modules", "__pycache__", "venv", "dist"];

/// How the name of a file ends that nothing is made of, unless the manifest names it: another program may write there what
/// `tessera dev` prints, and to build because of it would print more.
const LOG: &str = "log";

/// A change is over when nothing has happened for this long: an editor writes a file in several steps.
const QUIET: Duration = Duration::from_millis(50);

/// One that goes on is looked at after this time: a program may write a file all the time.
const CHANGE_MAX: Duration = Duration::from_secs(2);

/// Watches the folder of a project.
pub(super) struct Watch {
    root: PathBuf,
    component: PathBuf,
    /// The files that this process prints into, by device and inode.
    outputs: Vec<(u64, u64)>,
    events: Receiver<notify::Result<notify::Event>>,
    /// More folders are watched when they are made.
    watcher: Mutex<RecommendedWatcher>,
}

impl Watch {
    pub(super) fn start(project: &Project) -> anyhow::Result<Watch> {
        // What they are under these names is found by the kernel, also where it has no name any more.
        let outputs = ["/proc/self/fd/1", "/proc/self/fd/2"].into_iter().filter_map(|path| identity(Path::new(path)));
        Watch::apart_from(outputs.collect(), project)
    }

    fn apart_from(outputs: Vec<(u64, u64)>, project: &Project) -> anyhow::Result<Watch> {
        let (send, events) = channel();
        let watcher = notify::recommended_watcher(move |event| {
            // Nobody listens any more: then this process is about to end.
            let _ = send.send(event);
        });
        let watcher = Mutex::new(watcher.context("failed to watch files")?);
        let (root, component) = (project.root.clone(), project.component.clone());
        let watch = Watch { root, component, outputs, events, watcher };
        // Not the folders of builds: they have thousands of folders, and each one watched costs the kernel memory.
        watch.add(&project.root, RecursiveMode::NonRecursive)?;
        for entry in std::fs::read_dir(&project.root).context("failed to list the project")?.flatten() {
            watch.add_folder(&entry.path())?;
        }
        Ok(watch)
    }

    fn add_folder(&self, path: &Path) -> anyhow::Result<()> {
        if path.is_dir() && self.is_written_by_people(path) { self.add(path, RecursiveMode::Recursive) } else { Ok(()) }
    }

    fn add(&self, path: &Path, mode: RecursiveMode) -> anyhow::Result<()> {
        let mut watcher = self.watcher.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        watcher.watch(path, mode).with_context(|| format!("failed to watch {}", path.display()))
    }

    /// Waits for changes, at most for `patience`; when there are some, until they are over. True if there were.
    pub(super) fn has_changed(&self, patience: Duration) -> bool {
        // By path, whether the file was not there before.
        let mut changed: BTreeMap<PathBuf, bool> = BTreeMap::new();
        let mut until = Instant::now() + patience;
        let mut over_at = None;
        // Each end is a time, and no pause that begins anew: what is of no interest may happen all the time.
        while let Some(wait) = until.checked_duration_since(Instant::now())
            && let Ok(event) = self.events.recv_timeout(wait)
        {
            let (paths, made) = self.relevant(event);
            if !paths.is_empty() {
                let now = Instant::now();
                until = (now + QUIET).min(*over_at.get_or_insert(now + CHANGE_MAX));
            }
            for path in paths {
                changed.entry(path).or_insert(made);
            }
        }
        // Editors write a file beside the old one, and put it in its place.
        changed.retain(|path, made| !*made || path.exists());
        if changed.keys().any(|path| is_log(path)) {
            let package = self.package();
            changed.retain(|path, _| !is_log(path) || package.contains(path));
        }
        !changed.is_empty()
    }

    /// The files of interest that an event is about, and whether it made them.
    fn relevant(&self, event: notify::Result<notify::Event>) -> (Vec<PathBuf>, bool) {
        // An event that was lost may have been anything.
        let Ok(event) = event else { return (vec![self.root.join(MANIFEST)], false) };
        if matches!(event.kind, EventKind::Access(_)) {
            return (vec![], false);
        }
        for path in event.paths.iter().filter(|path| path.parent() == Some(&self.root)) {
            // A folder that is gone again need not be watched.
            let _ = self.add_folder(path);
        }
        let made = matches!(event.kind, EventKind::Create(_));
        (event.paths.into_iter().filter(|path| self.is_written_by_people(path)).collect(), made)
    }

    fn is_written_by_people(&self, path: &Path) -> bool {
        let Ok(below) = path.strip_prefix(&self.root) else { return false };
        let is_made = |name: &str| name.starts_with('.') || BUILD_FOLDERS.contains(&name) || name.ends_with('~');
        path != self.component
            && !below.iter().any(|part| is_made(&part.to_string_lossy()))
            && !identity(path).is_some_and(|file| self.outputs.contains(&file))
    }

    /// What the manifest names; nothing while it is wrong.
    fn package(&self) -> BTreeSet<PathBuf> {
        let project = Project::open(&self.root).ok().flatten();
        project.iter().flat_map(Project::package_files).map(|name| self.root.join(name)).collect()
    }
}

fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == LOG)
}

/// Device and inode of a plain file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = path.metadata().ok().filter(Metadata::is_file)?;
    Some((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_people_write_and_what_builds_make_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("tessera.toml", "component = 'c.wasm'\nassets = ['data/labels.txt']\n[build]\nlanguage = 'rust'\n");
        write("src/lib.rs", "");
        write("data/labels.txt", "");
        write("target/debug/x", "");
        let project = Project::open(&dir.path().canonicalize().unwrap()).unwrap().unwrap();
        write("printed", "");
        let outputs = vec![identity(&dir.path().join("printed")).unwrap()];
        let watch = Watch::apart_from(outputs, &project).unwrap();
        let has_changed = || (0..200).any(|_| watch.has_changed(Duration::from_millis(100)));

        // As an editor does: a new file in the place of the old one.
        write("data/labels.new", "a");
        fs::rename(dir.path().join("data/labels.new"), dir.path().join("data/labels.txt")).unwrap();
        assert!(has_changed());
        // What builds make.
        for made in ["target/debug/x", "c.wasm", ".tessera/x", "src/lib.rs~", "printed", "dev.log"] {
            write(made, "x");
        }
        assert!(!watch.has_changed(Duration::from_millis(500)));
        write("src/lib.rs", "fn f() {}");
        assert!(has_changed());
    }

    #[test]
    fn a_program_that_writes_all_the_time_hides_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        fs::write(path.join("tessera.toml"), "component = 'c.wasm'\n[build]\nlanguage = 'rust'\n").unwrap();
        let project = Project::open(&path).unwrap().unwrap();
        for noise in ["c.wasm", "notes.txt"] {
            let watch = Watch::apart_from(vec![], &project).unwrap();
            let is_over = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                        fs::write(path.join(noise), "x").unwrap();
                        std::thread::sleep(QUIET / 10);
                    }
                });
                fs::write(path.join("lib.rs"), noise).unwrap();
                // Before, neither call came back while the other thread wrote.
                let seen = (0..200).any(|_| watch.has_changed(Duration::from_millis(100)));
                is_over.store(true, std::sync::atomic::Ordering::Relaxed);
                assert!(seen, "{noise}");
            });
        }
    }
}
