//! Compiled components on disk. What is loaded here becomes native code of this process, so each file carries a keyed
//! hash that only this home can make, and nothing from outside is ever accepted as an artifact.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::schema::BodySchemas;

/// Everything that decides an artifact's content, hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ArtifactKey(blake3::Hash);

impl ArtifactKey {
    /// Hashes the parts, each with its length, so that no two lists of parts run together.
    pub fn of(parts: &[&[u8]]) -> ArtifactKey {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        ArtifactKey(hasher.finalize())
    }
}

impl fmt::Display for ArtifactKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.to_hex().fmt(f)
    }
}

/// The folder of artifacts, and the key that authenticates them.
pub struct Artifacts {
    dir: PathBuf,
    mac_key: [u8; 32],
}

impl Artifacts {
    /// Opens or makes the folder (mode 0700). `mac_key` is this home's own.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(dir: &Path, mac_key: [u8; 32]) -> io::Result<Artifacts> {
        crate::home::create_private_dir(dir)?;
        Ok(Artifacts { dir: dir.to_owned(), mac_key })
    }

    /// A path in the folder for a worker to write to, before [`Artifacts::insert`].
    pub fn staging_path(&self, key: ArtifactKey) -> PathBuf {
        self.dir.join(format!("{key}.new"))
    }

    /// Whether an artifact is there. It may still turn out to be damaged when it is loaded.
    pub fn contains(&self, key: ArtifactKey) -> bool {
        self.code_path(key).exists() && self.mac_path(key).exists()
    }

    /// Size of an artifact; 0 when it is absent.
    pub fn bytes(&self, key: ArtifactKey) -> u64 {
        fs::metadata(self.code_path(key)).map_or(0, |metadata| metadata.len())
    }

    /// Takes over the file that a worker wrote at [`Artifacts::staging_path`].
    ///
    /// Not synced: an artifact that a crash damages is compiled again.
    ///
    /// # Errors
    /// When the file cannot be read or moved.
    pub fn insert(&self, key: ArtifactKey) -> io::Result<()> {
        let staged = self.staging_path(key);
        let mac = self.mac(key, &fs::File::open(&staged)?)?;
        fs::write(self.mac_path(key), mac.as_bytes())?;
        fs::rename(staged, self.code_path(key))
    }

    /// Keeps what a component says of itself. Before [`Artifacts::insert`], so that an artifact that is there has it; not
    /// authenticated, for it is only shown.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn describe(&self, key: ArtifactKey, schemas: &BodySchemas) -> io::Result<()> {
        let staged = self.schema_path(key).with_extension("schema.new");
        fs::write(&staged, serde_json::to_vec(schemas)?)?;
        fs::rename(staged, self.schema_path(key))
    }

    /// What the component of an artifact says that it takes and answers; none where it says nothing.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged.
    pub fn description(&self, key: ArtifactKey) -> io::Result<Option<BodySchemas>> {
        match fs::read(self.schema_path(key)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Loads an artifact, mapped from disk; none when it is absent, damaged, or not of this home's making.
    ///
    /// # Errors
    /// When an authentic artifact cannot be mapped.
    pub fn load(&self, engine: &Engine, key: ArtifactKey) -> Result<Option<Component>> {
        let (Ok(code), Ok(mac)) = (fs::File::open(self.code_path(key)), fs::read(self.mac_path(key))) else {
            return Ok(None);
        };
        let expected = self.mac(key, &code).context("failed to read an artifact")?;
        // blake3's comparison takes the same time wherever the first difference is.
        if <[u8; 32]>::try_from(mac).map(blake3::Hash::from_bytes).ok() != Some(expected) {
            tracing::warn!(artifact = %key, "the artifact is damaged or was not made here; it will be compiled again");
            let _ = fs::remove_file(self.code_path(key));
            return Ok(None);
        }
        drop(code);
        #[allow(unsafe_code)]
        // SAFETY: `deserialize_file` trusts its input to be what `precompile_component` wrote. The keyed hash shows that
        // this home's compile worker wrote these bytes for this key, and the folder is readable and writable by this
        // user alone, so the file cannot be another one by now.
        let component = unsafe { Component::deserialize_file(engine, self.code_path(key)) }
            .map_err(anyhow::Error::from)
            .with_context(|| format!("failed to map the artifact {key}"))?;
        Ok(Some(component))
    }

    fn mac(&self, key: ArtifactKey, code: &fs::File) -> io::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new_keyed(&self.mac_key);
        hasher.update(key.0.as_bytes());
        Ok(hasher.update_reader(code)?.finalize())
    }

    fn code_path(&self, key: ArtifactKey) -> PathBuf {
        self.dir.join(format!("{key}.cwasm"))
    }

    fn schema_path(&self, key: ArtifactKey) -> PathBuf {
        self.dir.join(format!("{key}.schema"))
    }

    fn mac_path(&self, key: ArtifactKey) -> PathBuf {
        self.dir.join(format!("{key}.mac"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forged_or_damaged_artifact_is_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(dir.path(), [7; 32]).unwrap();
        let engine = crate::sandbox::engine::compiling().unwrap();
        let key = ArtifactKey::of(&[b"a"]);
        let code = engine.precompile_component(b"\0asm\x0d\0\x01\0").unwrap();
        fs::write(artifacts.staging_path(key), &code).unwrap();
        artifacts.insert(key).unwrap();
        assert!(artifacts.load(&engine, key).unwrap().is_some());

        // Under another key, with a byte changed, or made elsewhere: as if it were not there.
        let other = ArtifactKey::of(&[b"b"]);
        fs::copy(artifacts.code_path(key), artifacts.code_path(other)).unwrap();
        fs::copy(artifacts.mac_path(key), artifacts.mac_path(other)).unwrap();
        assert!(artifacts.load(&engine, other).unwrap().is_none());
        let mut damaged = code.clone();
        damaged[100] ^= 1;
        fs::write(artifacts.code_path(key), damaged).unwrap();
        assert!(artifacts.load(&engine, key).unwrap().is_none());
        assert!(!artifacts.contains(key), "it is out of the way of the one to be compiled");
        fs::write(artifacts.code_path(key), code).unwrap();
        assert!(Artifacts::open(dir.path(), [8; 32]).unwrap().load(&engine, key).unwrap().is_none());
    }
}
