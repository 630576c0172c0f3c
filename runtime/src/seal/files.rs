//! Small files of the home, sealed as a whole under their names: logs, and what deploys found out.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::keyring::Keyring;
use super::{SealError, value_key};
use crate::home::Home;

/// The folders of these files.
pub const FOLDERS: [&str; 3] = ["profiles", "build-logs", "logs"];

/// Ending of a file that is being written.
const UNFINISHED: &str = ".new";

/// The small files of a home.
pub struct SealedFiles {
    home: Home,
    keys: Arc<Keyring>,
    /// Held while a file is sealed and written, so that a rotation neither undoes a write nor misses one.
    writing: Mutex<()>,
}

impl SealedFiles {
    /// Those of a home.
    pub fn new(home: Home, keys: Arc<Keyring>) -> SealedFiles {
        SealedFiles { home, keys, writing: Mutex::new(()) }
    }

    /// Replaces a file as a whole: a kill leaves the old content or the new. Not synced. Blocks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let _writing = self.writing();
        self.replace(name, content)
    }

    /// The content; none when there is no such file. Blocks.
    ///
    /// # Errors
    /// When it cannot be read or opened.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.home.path(name)) {
            Ok(sealed) => self.keys.open_value(name, sealed).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Seals what is not sealed with the current key. Tells what happened to each such file. Blocks.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub(super) fn reseal(&self, mut done: impl FnMut(Result<(), SealError>)) -> io::Result<()> {
        for folder in FOLDERS {
            // Listed while nothing is being written: what is written later is sealed with the current key.
            let writing = self.writing();
            let entries = fs::read_dir(self.home.path(folder))?;
            let names: Vec<String> =
                entries.flatten().map(|entry| format!("{folder}/{}", entry.file_name().to_string_lossy())).collect();
            drop(writing);
            for name in names {
                if let Some(outcome) = self.reseal_one(&name).transpose() {
                    done(outcome);
                }
            }
        }
        Ok(())
    }

    /// Seals one file if that is to be done.
    fn reseal_one(&self, name: &str) -> Result<Option<()>, SealError> {
        let _writing = self.writing();
        let path = self.home.path(name);
        if name.ends_with(UNFINISHED) {
            // Left by a crash, for nobody is writing now.
            let _ = fs::remove_file(path);
            return Ok(None);
        }
        let unusable = |_| SealError::Damaged { what: name.to_owned() };
        let sealed = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(unusable)?,
        };
        if !self.keys.is_stale(value_key(&sealed)) {
            return Ok(None);
        }
        let content = self.keys.open_value(name, sealed)?;
        self.replace(name, &content).map(Some).map_err(unusable)
    }

    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let sealed = self.keys.with_current(|key| key.seal(name, content)).map_err(io::Error::other)?;
        let building = self.home.path(&format!("{name}{UNFINISHED}"));
        let _ = fs::remove_file(&building);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&building)?;
        io::Write::write_all(&mut file, &sealed)?;
        fs::rename(building, self.home.path(name))
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_back_under_their_names_and_a_rotation_seals_them_anew() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        let keys = Keyring::for_tests(folder.path());
        let files = SealedFiles::new(home.clone(), Arc::clone(&keys));
        assert_eq!(files.read("logs/a").unwrap(), None);
        files.write("logs/a", b"first").unwrap();
        files.write("logs/a", b"second").unwrap();
        files.write("build-logs/b", b"built").unwrap();
        assert_eq!(files.read("logs/a").unwrap().unwrap(), b"second");
        assert!(!fs::read(home.path("logs/a")).unwrap().windows(6).any(|part| part == b"second"));
        fs::copy(home.path("logs/a"), home.path("logs/c")).unwrap();
        assert!(files.read("logs/c").is_err(), "it was another file");
        fs::write(home.path("logs/d.new"), b"half").unwrap();

        let old = keys.current().id;
        keys.begin_rotation().unwrap();
        let mut outcomes = Vec::new();
        files.reseal(|outcome| outcomes.push(outcome.is_ok())).unwrap();
        outcomes.sort_unstable();
        assert_eq!(outcomes, [false, true, true], "the one that is another file cannot be sealed anew");
        assert_eq!(files.read("logs/a").unwrap().unwrap(), b"second");
        assert_ne!(value_key(&fs::read(home.path("logs/a")).unwrap()), Some(old));
        assert!(!home.path("logs/d.new").exists());
    }
}
