//! TLS: certificate, key and client CA from files, handshakes, and the swap of a certificate while connections go on.
//!
//! The files are read again every [`CHECK_PERIOD`] and on SIGHUP. What cannot be used is refused with a log line that
//! names file and reason, and what was in use before goes on serving. Open connections keep what they began with.

use std::fmt::Display;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::observe::metrics::Metrics;

/// How often the files are read again. They are small; their times of modification would miss a copy that keeps them.
const CHECK_PERIOD: Duration = Duration::from_secs(2);

/// One PEM file. A bundle of every public CA has a fifth of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// First byte of a TLS connection: the content type of a handshake.
const HANDSHAKE: u8 = 22;

/// What is read of a request that came in plain text, so that closing does not reset the answer away.
const PLAIN_BYTES_MAX: u64 = 64 << 10;

const PLAIN_ANSWER: &str =
    r#"{"error_code":"BAD_REQUEST","message":"This port speaks TLS: begin the address with https://."}"#;

/// The PEM files that TLS is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, then those between it and its CA.
    pub cert: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// What is asked of clients; None asks nothing.
    pub clients: Option<ClientCertificates>,
}

/// How clients are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificates {
    /// Certificates that a client's must chain to.
    pub ca: PathBuf,
    /// Whether a client may have none.
    pub auth: ClientAuth,
}

/// Whether a client must present a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// One without a certificate is refused.
    Required,
    /// One that is presented must be good.
    Optional,
}

/// TLS as it is now. Handshakes read it; a reload swaps it.
pub struct Tls {
    files: TlsFiles,
    metrics: Arc<Metrics>,
    current: ArcSwap<Loaded>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When a file cannot be read or used, or key and certificate do not belong together.
    pub fn load(files: &TlsFiles, metrics: &Arc<Metrics>) -> Result<Tls> {
        let loaded = Loaded::new(files, &Pem::read(files)?)?;
        loaded.announce(files, metrics);
        Ok(Tls { files: files.clone(), metrics: Arc::clone(metrics), current: ArcSwap::from_pointee(loaded) })
    }

    /// Starts to look for new files, on the runtime that this is called in, for as long as that lives.
    ///
    /// # Errors
    /// When SIGHUP cannot be handled.
    pub fn watch(self: Arc<Self>) -> Result<()> {
        let mut hangup = signal(SignalKind::hangup()).context("failed to handle signals")?;
        tokio::spawn(async move {
            // What was logged last: a broken file is one line, not one every two seconds.
            let mut refused = None;
            loop {
                let asked = tokio::select! {
                    _ = hangup.recv() => true,
                    () = tokio::time::sleep(CHECK_PERIOD) => false,
                };
                let tls = Arc::clone(&self);
                let reload = tokio::task::spawn_blocking(move || tls.reload());
                let refusal = reload.await.unwrap_or_else(|panic| Err(panic.into())).err();
                let refusal = refusal.map(|error| format!("{error:#}"));
                if let Some(reason) = &refusal
                    && (asked || refused.as_ref() != Some(reason))
                {
                    tracing::error!("the new TLS files are refused, those before go on serving: {reason}");
                    self.metrics.count_tls_reload("refused");
                }
                refused = refusal;
            }
        });
        Ok(())
    }

    /// Takes what the files hold now, if that is something else.
    fn reload(&self) -> Result<()> {
        let pem = Pem::read(&self.files)?;
        if pem.digest() != self.current.load().digest {
            let loaded = Loaded::new(&self.files, &pem)?;
            loaded.announce(&self.files, &self.metrics);
            self.current.store(Arc::new(loaded));
            self.metrics.count_tls_reload("loaded");
        }
        Ok(())
    }

    /// Makes the connection a TLS one, or counts why not. Takes as long as the client does: the caller sets the limit.
    pub(super) async fn handshake(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let mut first = [0];
        let outcome = match stream.peek(&mut first).await {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if first[0] != HANDSHAKE && first[0].is_ascii_uppercase() => {
                self.metrics.count_tls_failure("plain_http");
                answer_in_plain(stream).await;
                return None;
            }
            Ok(_) => self.acceptor().accept(stream).await,
            Err(error) => Err(error),
        };
        outcome
            .inspect_err(|error| {
                let reason = reason(error);
                self.metrics.count_tls_failure(reason);
                tracing::debug!(reason, "a TLS handshake failed: {error}");
            })
            .ok()
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.current.load().config))
    }

    /// Counts a handshake that its time limit ended.
    pub(super) fn count_timeout(&self) {
        self.metrics.count_tls_failure("timeout");
    }
}

/// Tells a client that speaks HTTP without TLS what is wrong.
async fn answer_in_plain(mut stream: TcpStream) {
    let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close";
    let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{PLAIN_ANSWER}", PLAIN_ANSWER.len());
    if stream.write_all(answer.as_bytes()).await.is_ok() && stream.shutdown().await.is_ok() {
        let _ = tokio::io::copy(&mut stream.take(PLAIN_BYTES_MAX), &mut tokio::io::sink()).await;
    }
}

/// The label of a failed handshake.
fn reason(error: &io::Error) -> &'static str {
    use rustls::Error::{
        AlertReceived, InvalidCertificate, NoApplicationProtocol, NoCertificatesPresented, PeerIncompatible,
    };
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(NoCertificatesPresented | InvalidCertificate(_)) => "client_certificate",
        Some(PeerIncompatible(_) | NoApplicationProtocol) => "incompatible",
        // Most often a client that does not trust the certificate.
        Some(AlertReceived(_)) => "refused_by_client",
        Some(_) => "protocol",
        None => "closed",
    }
}

/// The files' content.
struct Pem {
    cert: Vec<u8>,
    key: Vec<u8>,
    ca: Option<Vec<u8>>,
}

impl Pem {
    fn read(files: &TlsFiles) -> Result<Pem> {
        Ok(Pem {
            cert: read(&files.cert)?,
            key: read(&files.key)?,
            ca: files.clients.as_ref().map(|clients| read(&clients.ca)).transpose()?,
        })
    }

    fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for file in [Some(&self.cert), Some(&self.key), self.ca.as_ref()].into_iter().flatten() {
            hasher.update(blake3::hash(file).as_bytes());
        }
        hasher.finalize()
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content))
        .with_context(|| format!("failed to read {}", path.display()))?;
    if content.len() as u64 > FILE_BYTES_MAX {
        bail!("{} is longer than {FILE_BYTES_MAX} bytes", path.display());
    }
    Ok(content)
}

/// What handshakes are made with.
struct Loaded {
    config: Arc<ServerConfig>,
    /// Of the files that it is made of.
    digest: blake3::Hash,
    /// When the certificate ends, in seconds since 1970.
    not_after: i64,
}

impl Loaded {
    fn new(files: &TlsFiles, pem: &Pem) -> Result<Loaded> {
        let provider = Arc::new(default_provider());
        let chain = certificates(&files.cert, &pem.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|error| {
            anyhow!("{} holds no private key in PEM without a passphrase: {error}", files.key.display())
        })?;
        let not_after = not_after(&files.cert, &chain)?;
        let verifier = match (&files.clients, &pem.ca) {
            (Some(clients), Some(ca)) => client_verifier(clients, ca, &provider)?,
            _ => WebPkiClientVerifier::no_client_auth(),
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("failed to set up TLS")?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| unusable(files, error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Resumption without state: event loops share no lock, and no number of clients fills a cache. The keys are new
        // with each reload, so no ticket outlives the CA that let its client in.
        config.ticketer = Ticketer::new().context("failed to set up TLS")?;
        Ok(Loaded { config: Arc::new(config), digest: pem.digest(), not_after })
    }

    /// Tells what is used from now on, and what a person should know about it.
    fn announce(&self, files: &TlsFiles, metrics: &Metrics) {
        let (cert, key) = (files.cert.display(), files.key.display());
        let ends = std::time::UNIX_EPOCH + Duration::from_secs(self.not_after.max(0).unsigned_abs());
        let not_after = humantime::format_rfc3339_seconds(ends);
        tracing::info!(%cert, %key, %not_after, "TLS certificate loaded");
        if ends < std::time::SystemTime::now() {
            tracing::warn!("the TLS certificate {cert} has expired: clients will refuse it");
        }
        // Also the group: where a secret must be shared, the warning is what it costs.
        if std::fs::metadata(&files.key).is_ok_and(|key| key.permissions().mode() & 0o044 != 0) {
            tracing::warn!("the TLS key {key} can be read by others than its owner: chmod 600 it");
        }
        metrics.tls_certificate(&cert.to_string(), self.not_after);
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| anyhow!("{} is no PEM: {error}", path.display()))?;
    if found.is_empty() {
        bail!("{} holds no certificate in PEM", path.display());
    }
    Ok(found)
}

/// The end of the server's own certificate, in seconds since 1970.
fn not_after(path: &Path, chain: &[CertificateDer<'_>]) -> Result<i64> {
    let own = chain.first().map(AsRef::as_ref).unwrap_or_default();
    let (_, own) = x509_parser::parse_x509_certificate(own)
        .map_err(|error| anyhow!("the first certificate in {} is no X.509: {error}", path.display()))?;
    Ok(own.validity().not_after.timestamp())
}

fn client_verifier(
    clients: &ClientCertificates,
    pem: &[u8],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>> {
    let unusable = |error: &dyn Display| anyhow!("the client CA {} cannot be used: {error}", clients.ca.display());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&clients.ca, pem)? {
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    if clients.auth == ClientAuth::Optional {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|error| unusable(&error))
}

fn unusable(files: &TlsFiles, error: rustls::Error) -> anyhow::Error {
    let (cert, key) = (files.cert.display(), files.key.display());
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            anyhow!("the key {key} does not belong to the first certificate in {cert}")
        }
        error => anyhow!("the certificate {cert} with the key {key} cannot be used: {error}"),
    }
}
