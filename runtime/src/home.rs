//! The folder that holds all state of one server, and the secrets in it.
//!
//! ```text
//! HOME/admin.token   the first administrator's token (0600)
//! HOME/address       host:port, with TLS https://host:port; written once requests are accepted
//! HOME/node.key      the key-encryption key (0600), unless it is kept elsewhere
//! HOME/keys.json     the data keys, wrapped with it
//! HOME/store/        records (endpoints, models, principals), sealed
//! HOME/blobs/        files of packages, by digest, sealed
//! HOME/profiles/     what deploys found out about graphs, sealed
//! HOME/build-logs/   one file per deploy, sealed
//! HOME/logs/         what guests wrote, one file per served entity that has left memory, sealed
//! HOME/audit/        who changed what: lines of JSON, chained by keyed hashes
//! HOME/usage/        requests and payloads, as Parquet; payloads encrypted
//! HOME/cache/        in plain, for it is mapped and run; may lie elsewhere, and can be made again from the rest:
//!   packages/        files of packages under their names
//!   artifacts/       compiled components, with the memory that `init` left
//!   graphs/          models in the form that their backend loads fastest
//! ```

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder, made and private.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
    cache: PathBuf,
}

/// Folders of the cache.
const CACHE_FOLDERS: [&str; 3] = ["packages", "artifacts", "graphs"];

impl Home {
    /// Opens or makes the folder (mode 0700), with the cache in it.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(root: &Path) -> Result<Home> {
        Home::open_with_cache(root, None)
    }

    /// The same with the cache elsewhere. One cache serves one home.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn open_with_cache(root: &Path, cache: Option<&Path>) -> Result<Home> {
        create_private_dir(root).with_context(|| format!("failed to make the home folder {}", root.display()))?;
        let root = root.canonicalize().with_context(|| format!("failed to open {}", root.display()))?;
        for name in ["store", "blobs", "profiles", "build-logs", "logs", "audit", "usage"] {
            create_private_dir(&root.join(name))
                .with_context(|| format!("failed to make {name} in the home folder"))?;
        }
        let cache = cache.map_or_else(|| root.join("cache"), Path::to_owned);
        create_private_dir(&cache).with_context(|| format!("failed to make the cache {}", cache.display()))?;
        let cache = cache.canonicalize().with_context(|| format!("failed to open {}", cache.display()))?;
        for name in CACHE_FOLDERS {
            let (before, now) = (root.join(name), cache.join(name));
            // Where a home from before there was a cache has it; what cannot be moved is made again.
            if before.exists() && fs::rename(&before, &now).is_err() {
                fs::remove_dir_all(&before).with_context(|| format!("failed to remove {}", before.display()))?;
            }
            create_private_dir(&now).with_context(|| format!("failed to make {name} in the cache"))?;
        }
        Ok(Home { root, cache })
    }

    /// A folder of the cache: in plain, and gone when a person deletes it.
    pub fn cache(&self, name: &str) -> PathBuf {
        self.cache.join(name)
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
        write_private(&self.path(name), content)
    }
}

/// Keys derived from the home's one secret, a key per use.
pub struct Keys {
    /// Authenticates compiled components.
    pub artifacts: [u8; 32],
    /// Keys the hashes under which tokens are stored.
    pub tokens: [u8; 32],
    /// Keys the hashes that chain the audit log.
    pub audit: [u8; 32],
    /// Seals what is kept of payloads.
    pub usage: [u8; 32],
    /// Signs addresses of files.
    pub addresses: [u8; 32],
}

impl Keys {
    /// The keys of a home with this secret.
    pub fn derive(secret: &[u8; 32]) -> Keys {
        Keys {
            artifacts: blake3::derive_key("tessera 2026 artifact authentication", secret),
            tokens: blake3::derive_key("tessera 2026 token hashes", secret),
            audit: blake3::derive_key("tessera 2026 audit chain", secret),
            usage: blake3::derive_key("tessera 2026 usage and payload log", secret),
            addresses: blake3::derive_key("tessera 2026 signed addresses", secret),
        }
    }
}

/// Writes a file as a whole, with mode 0600: readers see the old content or the new. Durable on return.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("failed to write {}", path.display()))
}

/// Makes a folder that only its owner can enter; fine if it exists.
///
/// # Errors
/// When it cannot be made.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
