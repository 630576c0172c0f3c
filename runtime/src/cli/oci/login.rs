//! As whom a registry is asked: as the options say, else as `docker login` has noted, else as nobody.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use hyper::header::HeaderValue;

use super::RegistryOptions;

/// Longer than any password or token.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

/// A user of a registry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Login {
    user: String,
    password: String,
}

impl Login {
    /// As a header says it.
    pub(super) fn basic(&self) -> anyhow::Result<HeaderValue> {
        secret(&format!("Basic {}", BASE64.encode(format!("{}:{}", self.user, self.password))))
    }
}

/// The value of a header that is never printed.
///
/// # Errors
/// When it has characters that no header may have.
pub(super) fn secret(text: &str) -> anyhow::Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text).context("what proves who asks is no text for a header")?;
    value.set_sensitive(true);
    Ok(value)
}

/// What a registry is told; none: nobody asks.
///
/// # Errors
/// When there is a login that cannot be read: nobody is asked for less than was meant.
pub(super) fn login(host: &str, options: &RegistryOptions) -> anyhow::Result<Option<Login>> {
    if let (Some(user), true) = (&options.username, options.password_stdin) {
        return Ok(Some(Login { user: user.clone(), password: password(&mut io::stdin().lock())? }));
    }
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let folder = folder.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")));
    let Some(path) = folder.map(|folder| folder.join("config.json")) else { return Ok(None) };
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
        Ok(file) => noted(file, host).with_context(|| {
            format!(
                "failed to read the login at {host} that {} notes: give --username and --password-stdin",
                path.display()
            )
        }),
    }
}

fn password(stdin: &mut dyn io::Read) -> anyhow::Result<String> {
    let mut password = String::new();
    stdin.take(PASSWORD_BYTES_MAX).read_to_string(&mut password).context("failed to read the password from stdin")?;
    let password = password.trim_end_matches(['\r', '\n']);
    ensure!(!password.is_empty(), "there is no password on stdin");
    Ok(password.to_owned())
}

/// What Docker's configuration says of a registry; it may name a program to ask.
fn noted(config: impl io::Read, host: &str) -> anyhow::Result<Option<Login>> {
    match docker_credential::get_credential_from_reader(config, host) {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(Some(Login { user, password })),
        Ok(DockerCredential::IdentityToken(_)) => bail!("it is an identity token, which only Docker can use"),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        // What Docker's helpers say when they know nothing of a host.
        Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains("credentials not found") => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_those_of_docker() {
        let config = r#"{"auths": {"a.example": {"auth": "YW5uOnNlY3JldDp4"}, "b.example": {}, "c.example": {"auth": "?"},
                         "d.example": {"identitytoken": "t"}}, "credHelpers": {"e.example": "no-such-helper"}}"#;
        let noted = |host| noted(config.as_bytes(), host);
        assert_eq!(noted("a.example").unwrap(), Some(Login { user: "ann".into(), password: "secret:x".into() }));
        for unknown in ["b.example", "x.example"] {
            assert_eq!(noted(unknown).unwrap(), None);
        }
        for unusable in ["c.example", "d.example", "e.example"] {
            assert!(noted(unusable).is_err(), "{unusable}");
        }
        assert!(super::noted(&b"no json"[..], "a.example").is_err());
    }

    #[test]
    fn a_password_is_what_stands_before_the_end_of_the_line() {
        assert_eq!(password(&mut &b"a b\r\n"[..]).unwrap(), "a b");
        assert!(password(&mut &b"\n"[..]).is_err());
    }
}
