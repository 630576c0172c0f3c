//! The addresses of packages in registries.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::store::blobs::Digest;

const SCHEME: &str = "oci://";

const FORM: &str = "a package in a registry is named like oci://registry.example.com/team/iris:1.0";

/// What is asked for where nothing is said.
const DEFAULT_TAG: &str = "latest";

/// Longest repository with its host, and longest tag, by the specification.
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// Where a package lies: `oci://HOST[:PORT]/REPOSITORY[:TAG|@sha256:DIGEST]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// With the port, if one is said.
    pub(super) host: String,
    pub(super) repository: String,
    pub(super) which: Which,
}

/// Which package of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Which {
    Tag(String),
    Digest(Digest),
}

impl Address {
    /// Whether a text means a registry.
    pub(in crate::cli) fn is_meant(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Whether the registry is on this machine, which nobody can listen in on the way to.
    pub(super) fn is_loopback(&self) -> bool {
        let name = self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name);
        name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }

    /// Another package of the repository.
    pub(super) fn with(&self, which: Which) -> Address {
        Address { which, ..self.clone() }
    }
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = || {
            let rest = text.strip_prefix(SCHEME)?;
            let (rest, digest) = match rest.split_once('@') {
                Some((rest, digest)) => (rest, Some(digest.strip_prefix("sha256:")?.parse().ok()?)),
                None => (rest, None),
            };
            let (host, path) = rest.split_once('/')?;
            let (repository, tag) = path.split_once(':').unwrap_or((path, DEFAULT_TAG));
            let sound = is_host(host) && is_repository(repository) && is_tag(tag) && rest.len() <= NAME_BYTES_MAX;
            let which = digest.map_or_else(|| Which::Tag(tag.to_owned()), Which::Digest);
            sound.then(|| Address { host: host.to_owned(), repository: repository.to_owned(), which })
        };
        parsed().ok_or(FORM)
    }
}

/// Others leave the host out and mean that of Docker's images; so a name without a dot or a port is none.
fn is_host(host: &str) -> bool {
    let (name, port) = host.rsplit_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let sound = |part: &str| {
        part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') && !part.is_empty() && !part.starts_with('-')
    };
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    is_port && name.split('.').all(sound) && (name == "localhost" || name.contains('.') || port.is_some())
}

/// Parts of small letters and digits, with `.`, `_` or `-` between them.
fn is_repository(path: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let sound = |part: &str| part.starts_with(plain) && part.ends_with(plain);
    path.split('/').all(sound) && path.chars().all(|c| plain(c) || "/._-".contains(c))
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.starts_with(word) && tag.len() <= TAG_BYTES_MAX && tag.chars().all(|c| word(c) || ".-".contains(c))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.host, self.repository)?;
        match &self.which {
            Which::Tag(tag) => write!(f, ":{tag}"),
            Which::Digest(digest) => write!(f, "@sha256:{digest}"),
        }
    }
}

/// As it stands in the path of a manifest.
impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::Tag(tag) => f.write_str(tag),
            Which::Digest(digest) => write!(f, "sha256:{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_a_host_and_a_repository() {
        let digest = "ab".repeat(32);
        for good in [
            "oci://localhost:5000/iris:latest",
            "oci://registry:5000/a/b_c/d.e-f:V1.0",
            "oci://r.example.com/a/b:1",
            "oci://127.0.0.1:5000/x:_",
            &format!("oci://r.example/x@sha256:{digest}"),
        ] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
        assert_eq!("oci://localhost/iris".parse::<Address>().unwrap().to_string(), "oci://localhost/iris:latest");
        let fixed = format!("oci://r.example/x:1@sha256:{digest}").parse::<Address>().unwrap();
        assert!(matches!(fixed.which, Which::Digest(_)), "{fixed}");
        let (other, long) =
            (format!("oci://r.example/x@sha512:{digest}"), format!("oci://r.example/{}", "a".repeat(300)));
        for bad in [
            "localhost:5000/iris",
            "oci://iris",
            "oci://team/iris:1",
            "oci://r.example/",
            "oci://r.example/a//b",
            "oci://r.example/../b",
            "oci://r.example/a?b",
            "oci://r.example/Iris",
            "oci://r.example/iris:",
            "oci://r.example/iris:a/b",
            "oci://user@r.example/iris",
            "oci://r.example:0/iris",
            "oci://r.exa mple/iris",
            &other,
            &long,
        ] {
            assert_eq!(bad.parse::<Address>().unwrap_err(), FORM, "{bad}");
        }
    }

    #[test]
    fn only_this_machine_is_this_machine() {
        let is_loopback = |text: &str| text.parse::<Address>().unwrap().is_loopback();
        for near in ["oci://127.0.0.1:5000/a", "oci://localhost/a", "oci://127.9.9.9/a"] {
            assert!(is_loopback(near), "{near}");
        }
        assert!(!is_loopback("oci://127.0.0.1.example.com/a") && !is_loopback("oci://10.0.0.1:5000/a"));
    }
}
