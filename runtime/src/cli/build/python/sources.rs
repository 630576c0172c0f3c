//! What lies in the `src` of a project in Python.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

/// The files by their paths in it.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// The text of modules.
    pub(super) modules: BTreeMap<String, String>,
    /// Digests of everything else, which a module may read while it is imported, and where there are files: in a build.
    pub(super) others: BTreeMap<String, String>,
}

impl Sources {
    pub(super) fn read(folder: &Path) -> io::Result<Sources> {
        let mut sources = Sources::default();
        sources.add(folder, "")?;
        Ok(sources)
    }

    fn add(&mut self, folder: &Path, above: &str) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let (path, file_name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if file_name.starts_with('.') || file_name.ends_with('~') || file_name == "__pycache__" {
                continue;
            }
            let name = format!("{above}{file_name}");
            if path.is_dir() {
                self.add(&path, &format!("{name}/"))?;
                continue;
            }
            let content = fs::read(&path)?;
            match std::str::from_utf8(&content) {
                Ok(text) if name.ends_with(".py") => self.modules.insert(name, text.to_owned()),
                // A module in another encoding, too: it is for the interpreter to know.
                _ => self.others.insert(name, blake3::hash(&content).to_string()),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_told_from_what_only_a_build_can_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("shop/__pycache__")).unwrap();
        for (name, content) in [
            ("endpoint.py", b"x = 1".as_slice()),
            ("shop/prices.py", b""),
            ("shop/prices.csv", b"1"),
            ("shop/old.py", b"# coding: latin-1\n# \xe9"),
            ("shop/__pycache__/prices.pyc", b""),
            (".endpoint.py.swp", b""),
            ("endpoint.py~", b""),
        ] {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let Sources { modules, others } = Sources::read(dir.path()).unwrap();
        assert_eq!(modules.keys().collect::<Vec<_>>(), ["endpoint.py", "shop/prices.py"]);
        assert_eq!(others.keys().collect::<Vec<_>>(), ["shop/old.py", "shop/prices.csv"]);
    }
}
