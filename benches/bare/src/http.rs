//! hyper on one single-threaded event loop per core, whose sockets share a port: how the server does it, and no more.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Answers every request with what `answer` makes of its body, until the process is killed. A failure is answered 400.
pub(crate) fn serve<A>(answer: A) -> Result<()>
where
    A: Fn(&[u8]) -> Result<Vec<u8>> + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    let mut sockets = vec![listen(SocketAddr::from(([127, 0, 0, 1], 0)))?];
    let address = sockets[0].local_addr().context("failed to read the listening address")?;
    for _ in 1..std::thread::available_parallelism().context("failed to count the cores")?.get() {
        sockets.push(listen(address)?);
    }
    println!("{address}");
    std::thread::scope(|threads| {
        let loops: Vec<_> =
            sockets.into_iter().map(|socket| threads.spawn(|| event_loop(socket, Arc::clone(&answer)))).collect();
        loops.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a loop panicked")))
    })
}

fn listen(address: SocketAddr) -> Result<StdListener> {
    let listen = || -> std::io::Result<StdListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        Ok(socket.into())
    };
    listen().with_context(|| format!("failed to listen on {address}"))
}

fn event_loop<A>(socket: StdListener, answer: Arc<A>) -> Result<()>
where
    A: Fn(&[u8]) -> Result<Vec<u8>> + Send + Sync + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(socket)?;
        loop {
            let (stream, _) = listener.accept().await.context("failed to accept a connection")?;
            stream.set_nodelay(true)?;
            let answer = Arc::clone(&answer);
            let service = service_fn(move |request| {
                let answer = Arc::clone(&answer);
                async move { Ok::<_, Infallible>(respond(&*answer, request).await) }
            });
            // A connection that fails is the client's to count.
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    })
}

async fn respond(answer: &impl Fn(&[u8]) -> Result<Vec<u8>>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let body = request.into_body().collect().await;
    match body.context("failed to read the body").and_then(|body| answer(&body.to_bytes())) {
        Ok(body) => {
            let mut response = Response::new(Full::from(body));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => {
            let mut response = Response::new(Full::from(format!("{error:#}\n")));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        }
    }
}
