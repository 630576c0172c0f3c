//! Connections to other hosts: a name is resolved once, its addresses are looked at, and one of them is connected to.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsConnector;

use super::addresses::is_public;
use super::hosts::{Target, TargetHost};

/// Connections of all guests at one time: each takes a file descriptor, and while its name is resolved a thread of those
/// for blocking work, of which tokio has 512: a resolver that does not answer must not take them all.
const CONNECTIONS_MAX: usize = 256;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Makes connections, for all packages.
pub struct Connector {
    /// None where no certificate is trusted.
    tls: Option<TlsConnector>,
    places: Arc<Semaphore>,
}

/// A connection, for as long as this lives.
pub struct Connection {
    /// Plain, or TLS with whom the name says.
    pub stream: Box<dyn Stream>,
    /// One of those that may be open.
    pub place: OwnedSemaphorePermit,
}

/// What bytes go over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// All guests together have too many.
    #[error("the server's guests have {CONNECTIONS_MAX} connections open, which is the limit")]
    TooMany,
    /// The name has no address, or the resolver fails.
    #[error("the name cannot be resolved: {0}")]
    Unresolved(io::Error),
    /// The name leads to this machine, or into a network that is not the public Internet.
    #[error("its address {0} is not a public one, or this machine's own")]
    Prohibited(IpAddr),
    /// Nobody answers there.
    #[error("it cannot be connected to: {0}")]
    Unreachable(io::Error),
    /// TLS fails.
    #[error("TLS failed: {0}")]
    Tls(io::Error),
}

impl Connector {
    /// With the certificates that the system trusts.
    pub fn of_system() -> Connector {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!("failed to read certificates that this system trusts: {error}");
        }
        let mut roots = RootCertStore::empty();
        let (trusted, _) = roots.add_parsable_certificates(found.certs);
        if trusted == 0 {
            tracing::warn!("this system trusts no certificates, so guests cannot call hosts by https");
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map(|config| config.with_root_certificates(roots).with_no_client_auth());
        let tls = tls.inspect_err(|error| tracing::error!("failed to set up TLS for guests: {error}")).ok();
        Connector { tls: tls.map(|config| TlsConnector::from(Arc::new(config))), ..Connector::without_tls() }
    }

    /// Where nothing may be called.
    pub fn without_tls() -> Connector {
        Connector { tls: None, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }

    /// Connects to where a request may go. Without a bound in time; dropping the future ends the attempt.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(&self, target: &Target) -> Result<Connection, ConnectError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| ConnectError::TooMany)?;
        let (addresses, place) = resolve(target, place).await?;
        let stream = connect_any(&addresses).await?;
        if let TargetHost::Name(_) = target.host
            && let Some(own) = own_address(&stream).map_err(ConnectError::Unreachable)?
        {
            return Err(ConnectError::Prohibited(own));
        }
        // Small requests do not wait for the acknowledgement of those before.
        let _ = stream.set_nodelay(true);
        let stream: Box<dyn Stream> = match target.tls {
            true => Box::new(self.shake_hands(target, stream).await.map_err(ConnectError::Tls)?),
            false => Box::new(stream),
        };
        Ok(Connection { stream, place })
    }

    async fn shake_hands(&self, target: &Target, stream: TcpStream) -> io::Result<impl Stream + use<>> {
        let name = match &target.host {
            TargetHost::Name(name) => ServerName::try_from(name.clone()).map_err(io::Error::other)?,
            TargetHost::Address(address) => ServerName::from(*address),
        };
        let tls = self.tls.as_ref().ok_or_else(|| io::Error::other("this system trusts no certificates"))?;
        tls.connect(name, stream).await
    }
}

/// The addresses of a host, of which every one may be connected to: a name with one in this network is somebody's attempt
/// to get there. Resolving cannot be broken off, so the place goes along, and is taken until it ends.
async fn resolve(
    target: &Target,
    place: OwnedSemaphorePermit,
) -> Result<(Vec<SocketAddr>, OwnedSemaphorePermit), ConnectError> {
    let name = match &target.host {
        // Named by the operator, exactly.
        TargetHost::Address(address) => return Ok((vec![SocketAddr::new(*address, target.port)], place)),
        TargetHost::Name(name) => (name.clone(), target.port),
    };
    let resolving = tokio::task::spawn_blocking(move || (name.to_socket_addrs().map(Vec::from_iter), place)).await;
    let (found, place) = resolving.map_err(|error| ConnectError::Unresolved(io::Error::other(error)))?;
    let addresses = found.map_err(ConnectError::Unresolved)?;
    if let Some(prohibited) = addresses.iter().find(|address| !is_public(address.ip())) {
        return Err(ConnectError::Prohibited(prohibited.ip()));
    }
    Ok((addresses, place))
}

/// Connects to the first of the addresses that answers.
async fn connect_any(addresses: &[SocketAddr]) -> Result<TcpStream, ConnectError> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for address in addresses.iter().take(ADDRESSES_MAX) {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(ConnectError::Unreachable(failure))
}

/// The address of both ends, if it is one: then this machine talks to itself. That it has a public address makes what listens
/// there no part of the Internet: firewalls let a machine reach itself.
fn own_address(stream: &TcpStream) -> io::Result<Option<IpAddr>> {
    let (here, there) = (stream.local_addr()?.ip().to_canonical(), stream.peer_addr()?.ip().to_canonical());
    Ok((here == there).then_some(there))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(authority: &str) -> ConnectError {
        let target = Target::of(authority, false).unwrap();
        Connector::without_tls().connect(&target).await.err().unwrap()
    }

    #[tokio::test]
    async fn a_name_that_leads_to_this_machine_is_refused() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = refused(&format!("localhost:{port}")).await;
        assert!(matches!(error, ConnectError::Prohibited(address) if address.is_loopback()), "{error}");
        // The address itself was named by somebody who may.
        let target = Target::of(&format!("127.0.0.1:{port}"), false).unwrap();
        let (connected, accepted) =
            tokio::join!(async { Connector::without_tls().connect(&target).await.map(drop) }, listener.accept());
        connected.unwrap();
        accepted.unwrap();
    }

    #[tokio::test]
    async fn a_machine_that_talks_to_itself_is_known_by_its_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        let stream = TcpStream::connect(there).await.unwrap();
        assert_eq!(own_address(&stream).unwrap(), Some(there.ip()));
        // On Linux all of 127.0.0.0/8 is there: two addresses, as of two machines.
        if cfg!(target_os = "linux") {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            assert_eq!(own_address(&socket.connect(there).await.unwrap()).unwrap(), None);
        }
    }

    #[tokio::test]
    async fn a_host_where_nobody_listens_is_told_apart() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(refused(&closed.to_string()).await, ConnectError::Unreachable(_)));
    }

    #[tokio::test]
    async fn connections_are_counted() {
        let connector = Connector::without_tls();
        let all = Arc::clone(&connector.places).try_acquire_many_owned(CONNECTIONS_MAX as u32).unwrap();
        let target = Target::of("127.0.0.1:9", false).unwrap();
        assert!(matches!(connector.connect(&target).await, Err(ConnectError::TooMany)));
        drop(all);
    }
}
