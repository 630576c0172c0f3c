//! The folder that holds all state of one server, and the secrets in it.
//!
//! ```text
//! HOME/admin.token   the first administrator's token (0600)
//! HOME/address       host:port, written once requests are accepted
//! HOME/node.key      keys of this home (0600): artifact authentication, token hashes
//! HOME/store/        records (endpoints, models, principals)
//! HOME/blobs/        files of packages, by digest
//! HOME/packages/     the same files under their names: links to the blobs
//! HOME/artifacts/    compiled components
//! HOME/profiles/     what deploys found out about graphs
//! HOME/graphs/       models in the form that their backend loads fastest
//! HOME/build-logs/   one file per deploy
//! HOME/logs/         what guests wrote, one file per served entity that has left memory
//! ```

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder, made and private.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// Opens or makes the folder (mode 0700).
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(root: &Path) -> Result<Home> {
        create_private_dir(root).with_context(|| format!("failed to make the home folder {}", root.display()))?;
        let root = root.canonicalize().with_context(|| format!("failed to open {}", root.display()))?;
        for name in ["store", "blobs", "packages", "artifacts", "profiles", "graphs", "build-logs", "logs"] {
            create_private_dir(&root.join(name))
                .with_context(|| format!("failed to make {name} in the home folder"))?;
        }
        Ok(Home { root })
    }

    /// A folder or file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes a file as a whole, with mode 0600: readers see the old content or the new.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.path(name);
        let temporary = self.path(&format!("{name}.new"));
        let write = || -> io::Result<()> {
            let _ = fs::remove_file(&temporary);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            fs::File::open(&self.root)?.sync_all()
        };
        write().with_context(|| format!("failed to write {}", path.display()))
    }

    /// The keys of this home, made at the first start.
    ///
    /// # Errors
    /// When the file cannot be read or made, or does not hold a key.
    pub fn keys(&self) -> Result<Keys> {
        let path = self.path("node.key");
        if !path.exists() {
            let mut secret = [0u8; 32];
            getrandom::fill(&mut secret).map_err(|error| anyhow::anyhow!("failed to draw randomness: {error}"))?;
            self.write("node.key", hex::encode(secret).as_bytes())?;
        }
        let mut text = String::new();
        fs::File::open(&path)
            .and_then(|file| file.take(1024).read_to_string(&mut text))
            .with_context(|| format!("failed to read {}", path.display()))?;
        let mut secret = [0u8; 32];
        hex::decode_to_slice(text.trim(), &mut secret)
            .map_err(|_| anyhow::anyhow!("{} does not hold 64 hex digits; restore it from a backup", path.display()))?;
        Ok(Keys {
            artifacts: blake3::derive_key("tessera 2026 artifact authentication", &secret),
            tokens: blake3::derive_key("tessera 2026 token hashes", &secret),
            addresses: blake3::derive_key("tessera 2026 signed addresses", &secret),
        })
    }
}

/// Keys derived from the home's one secret, a key per use.
pub struct Keys {
    /// Authenticates compiled components.
    pub artifacts: [u8; 32],
    /// Keys the hashes under which tokens are stored.
    pub tokens: [u8; 32],
    /// Signs addresses of files.
    pub addresses: [u8; 32],
}

/// Makes a folder that only its owner can enter; fine if it exists.
///
/// # Errors
/// When it cannot be made.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
