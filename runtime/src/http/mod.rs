//! Connections: one event loop per core, HTTP/1.1 and HTTP/2 with and without TLS, limits that fire, a graceful end.
//!
//! Knows sockets and HTTP, nothing of endpoints: each request goes to [`crate::api::answer`].

pub mod body;
pub mod compression;
pub mod tls;

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use self::tls::Tls;
use crate::api::{self, App};
use crate::observe::metrics::Metrics;
use crate::{memory, sandbox};

/// Headers of one request.
const HEADERS_MAX: usize = 64;

/// Bytes of a request's line and headers.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Streams of one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 100;

/// Time that sent bytes may stay unacknowledged.
const UNREAD_TIME_MAX: Duration = Duration::from_secs(60);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// What connections are held to.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Event loops, one thread each.
    pub threads: usize,
    /// Open connections over all threads.
    pub connections_max: usize,
    /// From accepting a connection, or the end of a request, to the end of the next request's headers. A TLS handshake
    /// is part of it.
    pub header_timeout: Duration,
    /// How long requests may go on after the signal to end.
    pub drain_timeout: Duration,
}

/// Listening sockets, one per event loop, on one address.
pub struct Listeners {
    sockets: Vec<StdListener>,
    /// Where they listen: the port is known here when port 0 was asked for.
    pub address: SocketAddr,
}

impl Listeners {
    /// Binds `count` sockets to one address; the kernel spreads connections over them.
    ///
    /// # Errors
    /// When the address is in use or not this machine's.
    pub fn bind(address: SocketAddr, count: usize) -> Result<Listeners> {
        // SO_REUSEPORT would let two servers of one user share a port without a word; this socket would not.
        if address.port() != 0 {
            StdListener::bind(address).with_context(|| format!("failed to listen on {address}"))?;
        }
        let first = bind_one(address)?;
        let address = first.local_addr().context("failed to read the listening address")?;
        let mut sockets = vec![first];
        for _ in 1..count.max(1) {
            sockets.push(bind_one(address)?);
        }
        Ok(Listeners { sockets, address })
    }
}

fn bind_one(address: SocketAddr) -> Result<StdListener> {
    let bind = || -> std::io::Result<StdListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    bind().with_context(|| format!("failed to listen on {address}"))
}

/// The running event loops. They end when `shutdown` says so and their requests have ended.
pub struct Servers {
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// Starts one thread per socket.
    ///
    /// # Errors
    /// When a thread or its event loop cannot be made.
    pub fn start(
        app: &Arc<App>,
        listeners: Listeners,
        tls: Option<&Arc<Tls>>,
        limits: &HttpLimits,
        shutdown: &watch::Receiver<bool>,
    ) -> Result<Servers> {
        let connections = Arc::new(Semaphore::new(limits.connections_max));
        let mut threads = Vec::new();
        for (index, socket) in listeners.sockets.into_iter().enumerate() {
            let event_loop = EventLoop {
                app: Arc::clone(app),
                tls: tls.map(Arc::clone),
                limits: limits.clone(),
                connections: Arc::clone(&connections),
                shutdown: shutdown.clone(),
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("failed to make an event loop")?;
            let thread = std::thread::Builder::new().name(format!("http-{index}")).spawn(move || {
                sandbox::prepare_thread();
                event_loop.app.control.host.executor.serve_on_this_thread();
                runtime.spawn(memory::give_back_when_freed());
                runtime.block_on(event_loop.run(socket));
                runtime.shutdown_timeout(Duration::from_secs(1));
            });
            threads.push(thread.context("failed to start an event loop's thread")?);
        }
        Ok(Servers { threads })
    }

    /// Waits for all event loops. Blocks.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("an event loop panicked");
            }
        }
    }
}

struct EventLoop {
    app: Arc<App>,
    /// None speaks plain HTTP.
    tls: Option<Arc<Tls>>,
    limits: HttpLimits,
    connections: Arc<Semaphore>,
    shutdown: watch::Receiver<bool>,
}

impl EventLoop {
    async fn run(self, socket: StdListener) {
        let mut shutdown = self.shutdown.clone();
        let listener = match TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!("failed to listen: {error}"),
        };
        let graceful = GracefulShutdown::new();
        let http = Arc::new(self.builder());
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => match Arc::clone(&self.connections).try_acquire_owned() {
                        Ok(permit) => self.serve(&http, &graceful, stream, peer, permit),
                        // Closed at once: a client that waits for nothing is worse off than one that can try elsewhere.
                        Err(_) => self.app.metrics.count_refusal("connections"),
                    },
                    // Out of file descriptors, most likely: those that close will make room.
                    Err(error) => {
                        tracing::warn!("failed to accept a connection: {error}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                _ = shutdown.wait_for(|stop| *stop) => break,
            }
        }
        drop(listener);
        if tokio::time::timeout(self.limits.drain_timeout, graceful.shutdown()).await.is_err() {
            tracing::warn!("requests were still running at the end of the drain time; they are cut off");
        }
    }

    fn builder(&self) -> auto::Builder<TokioExecutor> {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            // Without a timer the header timeout would be inert.
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_MAX as u32 / 4)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20));
        http
    }

    fn serve(
        &self,
        http: &Arc<auto::Builder<TokioExecutor>>,
        graceful: &GracefulShutdown,
        stream: TcpStream,
        peer: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) {
        // Without this, small responses wait for the client's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        // A client that takes nothing of what was sent to it must not hold its connection for ever.
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_TIME_MAX));
        let connection = Connection {
            app: Arc::clone(&self.app),
            http: Arc::clone(http),
            watcher: graceful.watcher(),
            peer,
            first_request_by: Instant::now() + self.limits.header_timeout,
            _place: Place::new(permit, &self.app.metrics),
        };
        // Two tasks and not one with a branch: a plain connection's would be as large as a handshake.
        match &self.tls {
            None => tokio::spawn(connection.serve(stream, Scheme::Http)),
            Some(tls) => tokio::spawn(connection.serve_tls(stream, Arc::clone(tls), self.shutdown.clone())),
        };
    }
}

/// How a connection is made: what absolute URLs begin with that are handed out over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// In plain text.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// Its name in a URL.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// One of the connections that may be open, for as long as this lives.
struct Place {
    _permit: OwnedSemaphorePermit,
    metrics: Arc<Metrics>,
}

impl Place {
    fn new(permit: OwnedSemaphorePermit, metrics: &Arc<Metrics>) -> Place {
        metrics.connections.inc();
        Place { _permit: permit, metrics: Arc::clone(metrics) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

/// A connection that was accepted.
struct Connection {
    app: Arc<App>,
    http: Arc<auto::Builder<TokioExecutor>>,
    watcher: Watcher,
    peer: SocketAddr,
    first_request_by: Instant,
    _place: Place,
}

impl Connection {
    async fn serve_tls(self, stream: TcpStream, tls: Arc<Tls>, mut shutdown: watch::Receiver<bool>) {
        let handshake = tokio::time::timeout_at(self.first_request_by, tls.handshake(stream));
        let stream = tokio::select! {
            shaken = handshake => shaken.inspect_err(|_| tls.count_timeout()).ok().flatten(),
            // No request has begun.
            _ = shutdown.wait_for(|stop| *stop) => None,
        };
        if let Some(stream) = stream {
            self.serve(stream, Scheme::Https).await;
        }
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, scheme: Scheme) {
        let Connection { app, http, watcher, peer, first_request_by, _place } = self;
        let begun = Arc::new(AtomicBool::new(false));
        let saw_request = Arc::clone(&begun);
        let service = service_fn(move |request| {
            saw_request.store(true, Relaxed);
            let app = Arc::clone(&app);
            async move { Ok::<_, Infallible>(api::answer(app, request, peer, scheme).await) }
        });
        let connection = watcher.watch(http.serve_connection(TokioIo::new(stream), service));
        let mut connection = std::pin::pin!(connection);
        // hyper has no timeout while it tells HTTP/1 from HTTP/2, so a silent connection is ended here.
        tokio::select! {
            _ = &mut connection => {}
            () = tokio::time::sleep_until(first_request_by) => {
                if begun.load(Relaxed) {
                    let _ = connection.await;
                }
            }
        }
    }
}
