//! A thin client of the REST API: address and token, one request, and errors a person can act on.
//!
//! To its callers it is blocking. Inside it is reqwest's async client on a runtime of its own, for the blocking one
//! loses the answer of a server that refuses an upload before it has read all of it.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use reqwest::{Certificate, ClientBuilder, Identity, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;

use super::ClientOptions;

/// Servers close connections that are idle for longer, and between two calls nothing here notices that they have.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For everything but uploads and invocations. Finalizing a version hashes its files, so it is not short.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// An invocation ends at the server's own limit; this one only bounds a server that hangs.
const INVOKE_TIMEOUT: Duration = Duration::from_secs(3600);
/// What is slower than this is taken for hung.
const TRANSFER_BYTES_PER_SECOND_MIN: u64 = 64 << 10;
/// Far above any answer of the control plane; logs are the longest.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// A frame of an upload: large enough to make the copying cheap, small enough to make the bar move.
const UPLOAD_FRAME_BYTES: usize = 256 << 10;

/// A server, and who we are there.
pub(super) struct Client {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    base: Url,
    token: String,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nothing listens there.
    #[error("no server at {address}: start one with `tessera serve` or set --host")]
    NoServer { address: String },
    /// The server refused, in the API's own form.
    #[error("{code}: {message} ({})", status.as_u16())]
    Api { status: StatusCode, code: String, message: String, body: String },
    /// Something answered that is not the API, a proxy perhaps.
    #[error("{address} answered {status} without an API error: {start}")]
    NotTheApi { address: String, status: StatusCode, start: String },
    /// The server's certificate does not prove that it is the server.
    #[error(
        "the certificate of {address} is refused ({reason}): trust its CA with --ca-cert, and use a name that it is for"
    )]
    Untrusted { address: String, reason: rustls::CertificateError },
    /// The connection failed.
    #[error("failed to send {method} {path}")]
    Transport { method: Method, path: String, source: reqwest::Error },
    /// The connection failed while the answer came.
    #[error("failed to read the answer of {path}")]
    Read { path: String, source: reqwest::Error },
    /// The answer never ends.
    #[error("the answer of {path} is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong { path: String },
}

impl Client {
    /// Finds the server and the token: options first, then what a server wrote into its home.
    pub(super) fn new(options: &ClientOptions) -> anyhow::Result<Client> {
        let local = fs::read_to_string(options.home.join("address")).ok();
        let base = match (&options.host, &local) {
            (Some(host), _) => parse_address(host)?,
            (None, Some(address)) => parse_address(address)?,
            (None, None) => bail!(
                "no server has its home in {}: start one with `tessera serve --home {0}` or set --host",
                options.home.display()
            ),
        };
        let token = match &options.token {
            Some(token) => token.clone(),
            // A token of this machine's server must not be sent to whatever --host names.
            None if local.and_then(|address| parse_address(&address).ok()).as_ref() == Some(&base) => {
                read_token(&options.home.join("admin.token"))?
            }
            None => bail!("no token for {}: set --token or TESSERA_TOKEN", address(&base)),
        };
        Client::connect(base, token, options)
    }

    /// Another server, at an address, with the same certificates; without a token, if it is empty.
    pub(super) fn at(address: &str, token: String, options: &ClientOptions) -> anyhow::Result<Client> {
        Client::connect(parse_address(address)?, token, options)
    }

    fn connect(base: Url, token: String, options: &ClientOptions) -> anyhow::Result<Client> {
        // Requests set their own timeouts.
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        // HTTP_PROXY often stands without NO_PROXY, and no proxy reaches our loopback.
        if matches!(base.host_str(), Some("localhost" | "127.0.0.1" | "[::1]")) {
            http = http.no_proxy();
        }
        http = tls(http, &base, options)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Client {
            runtime: runtime.context("failed to start the HTTP client")?,
            http: http.build().context("failed to start the HTTP client")?,
            base,
            token,
        })
    }

    /// `GET path?query`, the answer as text.
    pub(super) fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<String, ClientError> {
        let mut url = self.url(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.text(self.send(Method::GET, url, |request| request.timeout(CALL_TIMEOUT))?)
    }

    /// `GET path`; `take` gets each piece of the answer as it comes.
    pub(super) fn get_file(
        &self,
        path: &[&str],
        mut take: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut response = self.send(Method::GET, self.url(path), |request| request.timeout(INVOKE_TIMEOUT))?;
        while let Some(piece) = self.piece(&mut response)? {
            take(&piece)?;
        }
        Ok(())
    }

    /// `method path` with a JSON body, the answer as text.
    pub(super) fn call(&self, method: Method, path: &[&str], body: &Value) -> Result<String, ClientError> {
        self.text(self.send(method, self.url(path), |request| request.timeout(CALL_TIMEOUT).json(body))?)
    }

    /// Uploads `bytes` bytes of `file` as they are read.
    pub(super) fn put_file(
        &self,
        path: &[&str],
        file: impl Read + Send + Sync + Unpin + 'static,
        bytes: u64,
    ) -> Result<(), ClientError> {
        let mut url = self.url(path);
        url.set_query(Some("overwrite=true"));
        self.send(Method::PUT, url, |request| {
            // hyper would leave the length out for an empty file.
            let request = request.header("content-length", bytes).header("content-type", "application/octet-stream");
            request.timeout(transfer_timeout(bytes)).body(reqwest::Body::wrap(Upload { file, bytes }))
        })?;
        Ok(())
    }

    /// `POST path` with any body; `print` gets each piece of the answer as it comes.
    pub(super) fn post(
        &self,
        path: &[&str],
        content_type: &str,
        body: Vec<u8>,
        mut print: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut response = self.send(Method::POST, self.url(path), |request| {
            request.timeout(INVOKE_TIMEOUT).header("content-type", content_type).body(body)
        })?;
        while let Some(piece) = self.piece(&mut response)? {
            print(&piece)?;
        }
        Ok(())
    }

    /// `POST path` with JSON, until the person presses Ctrl-C, which ends the request: false then.
    pub(super) fn post_until_interrupt(
        &self,
        path: &[&str],
        body: &Value,
        mut take: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        let url = self.url(path);
        let path = url.path().to_owned();
        let request = self.request(Method::POST, url).timeout(INVOKE_TIMEOUT).json(body);
        let Some(sent) = self.until_interrupt(async { request.send().await })? else { return Ok(false) };
        let mut response = self.received(Method::POST, path.clone(), sent)?;
        loop {
            let Some(piece) = self.until_interrupt(response.chunk())? else { return Ok(false) };
            let read = |source: reqwest::Error| ClientError::Read { path: path.clone(), source: source.without_url() };
            match piece.map_err(read)? {
                Some(piece) => take(&piece)?,
                None => return Ok(true),
            }
        }
    }

    /// Waits for `work`, or for Ctrl-C: none then. From the first call on, Ctrl-C no longer ends the process.
    pub(super) fn until_interrupt<T>(&self, work: impl Future<Output = T>) -> anyhow::Result<Option<T>> {
        self.runtime.block_on(async {
            tokio::select! {
                done = work => Ok(Some(done)),
                pressed = tokio::signal::ctrl_c() => pressed.map(|()| None).context("failed to listen for Ctrl-C"),
            }
        })
    }

    /// The address with `path` appended, each segment escaped.
    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    fn send(
        &self,
        method: Method,
        url: Url,
        fill: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, ClientError> {
        let path = url.path().to_owned();
        let request = fill(self.request(method.clone(), url));
        // `send` starts its timer at once, so it must be called within the runtime too.
        let sent = self.runtime.block_on(async { request.send().await });
        self.received(method, path, sent)
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.http.request(method, url);
        if self.token.is_empty() { request } else { request.bearer_auth(&self.token) }
    }

    /// What came of a request.
    fn received(
        &self,
        method: Method,
        path: String,
        sent: Result<Response, reqwest::Error>,
    ) -> Result<Response, ClientError> {
        match sent {
            Ok(response) if response.status().is_success() => Ok(response),
            Ok(response) => Err(self.refusal(response)),
            Err(error) if is_refused(&error) => Err(ClientError::NoServer { address: address(&self.base) }),
            Err(error) if let Some(reason) = certificate_error(&error) => {
                Err(ClientError::Untrusted { address: address(&self.base), reason })
            }
            // The address is in our own text.
            Err(error) => Err(ClientError::Transport { method, path, source: error.without_url() }),
        }
    }

    fn piece(&self, response: &mut Response) -> Result<Option<Bytes>, ClientError> {
        self.runtime.block_on(response.chunk()).map_err(|source| ClientError::Read {
            path: response.url().path().to_owned(),
            source: source.without_url(),
        })
    }

    fn text(&self, mut response: Response) -> Result<String, ClientError> {
        let mut text = Vec::new();
        while let Some(piece) = self.piece(&mut response)? {
            text.extend_from_slice(&piece);
            if text.len() > ANSWER_BYTES_MAX {
                return Err(ClientError::TooLong { path: response.url().path().to_owned() });
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The error that a status other than 2xx stands for.
    fn refusal(&self, response: Response) -> ClientError {
        #[derive(Deserialize)]
        struct ApiError {
            error_code: String,
            message: String,
        }
        let (status, address) = (response.status(), response.url().origin().ascii_serialization());
        let body = self.text(response).unwrap_or_default();
        match serde_json::from_str::<ApiError>(&body) {
            Ok(ApiError { error_code: code, message }) => ClientError::Api { status, code, message, body },
            Err(_) => ClientError::NotTheApi { address, status, start: body.trim().chars().take(200).collect() },
        }
    }
}

/// Whom to trust, and as whom to come, when the address asks for TLS.
pub(super) fn tls(http: ClientBuilder, base: &Url, options: &ClientOptions) -> anyhow::Result<ClientBuilder> {
    // The client builds TLS in any case, with the process's provider. It is ours already where two clients are made.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if base.scheme() != "https" {
        // None: reading the system's takes milliseconds, and fails on a machine that has none.
        return Ok(http.tls_certs_only([]));
    }
    let read = |path: &Path| fs::read(path).with_context(|| format!("failed to read {}", path.display()));
    let mut http = http;
    if let Some(path) = &options.ca_cert {
        let trusted = Certificate::from_pem_bundle(&read(path)?).ok().filter(|found| !found.is_empty());
        http = http.tls_certs_only(
            trusted.with_context(|| format!("the CA certificate {} holds no certificate in PEM", path.display()))?,
        );
    }
    if let (Some(cert), Some(key)) = (&options.client_cert, &options.client_key) {
        let identity = Identity::from_pem(&[read(cert)?, b"\n".to_vec(), read(key)?].concat());
        http = http.identity(identity.with_context(|| {
            format!("the client certificate {} with the key {} cannot be used", cert.display(), key.display())
        })?);
    }
    Ok(http)
}

/// A file on its way: exactly `bytes` more of it, read as the connection takes them. The reads block the runtime, which
/// has nothing else to do.
pub(super) struct Upload<R> {
    pub(super) file: R,
    pub(super) bytes: u64,
}

impl<R: Read + Unpin> Body for Upload<R> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.bytes == 0 {
            return Poll::Ready(None);
        }
        let mut frame = vec![0; UPLOAD_FRAME_BYTES.min(usize::try_from(self.bytes).unwrap_or(usize::MAX))];
        Poll::Ready(Some(match self.file.read_exact(&mut frame) {
            Ok(()) => {
                self.bytes -= frame.len() as u64;
                Ok(Frame::data(frame.into()))
            }
            // The file has become shorter since it was listed: what was sent must not pass for all of it.
            Err(error) => Err(error),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes == 0
    }

    /// Said in `Content-Length`, so that the server can refuse before it reads.
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes)
    }
}

/// Reads `127.0.0.1:8080`, `http://host:8080/` and `https://host`.
fn parse_address(text: &str) -> anyhow::Result<Url> {
    let text = text.trim();
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&full).with_context(|| format!("the server address '{text}' is no URL"))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => bail!("the server address '{text}' is no http:// or https:// URL"),
    }
}

fn address(base: &Url) -> String {
    base.as_str().trim_end_matches('/').to_owned()
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let token = fs::read_to_string(path)
        .with_context(|| format!("failed to read the token {}: set --token or TESSERA_TOKEN", path.display()))?;
    Ok(token.trim().to_owned())
}

/// How long a file may take: its bytes at the slowest, and what a call may take besides.
pub(super) fn transfer_timeout(bytes: u64) -> Duration {
    CALL_TIMEOUT + Duration::from_secs(bytes / TRANSFER_BYTES_PER_SECOND_MIN)
}

pub(super) fn is_refused(error: &reqwest::Error) -> bool {
    io_errors(error).any(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Why the server's certificate was not accepted, if that is what failed.
pub(super) fn certificate_error(error: &reqwest::Error) -> Option<rustls::CertificateError> {
    match tls_error(error)? {
        rustls::Error::InvalidCertificate(reason) => Some(reason.clone()),
        _ => None,
    }
}

/// What TLS has failed at, if that is what failed.
pub(super) fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    io_errors(error).find_map(|error| error.get_ref()?.downcast_ref())
}

/// The system's errors among the causes, also those that one of them wraps.
fn io_errors(error: &reqwest::Error) -> impl Iterator<Item = &io::Error> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    })
    .filter_map(|error| error.downcast_ref::<io::Error>())
}

/// The JSON of an answer, as the type that `T` reads of it.
pub(super) fn parse<'de, T: Deserialize<'de>>(answer: &'de str) -> anyhow::Result<T> {
    serde_json::from_str(answer).context("failed to understand the server's answer")
}

#[cfg(test)]
pub(super) fn for_tests(address: &str) -> Client {
    Client::connect(parse_address(address).unwrap(), "secret".into(), &no_options()).unwrap()
}

#[cfg(test)]
pub(super) fn no_options() -> ClientOptions {
    let (host, token, ca_cert, client_cert, client_key) = Default::default();
    ClientOptions { host, token, ca_cert, client_cert, client_key, home: "/nowhere".into(), json: false }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::path::PathBuf;
    use std::thread::JoinHandle;

    /// What a [`Script`] was asked: "METHOD target", headers in lower case, body.
    pub(in crate::cli) struct Asked {
        pub(in crate::cli) line: String,
        pub(in crate::cli) head: String,
        pub(in crate::cli) body: String,
    }

    /// A server that gives one scripted answer to each connection, in order, and then stops listening.
    pub(in crate::cli) struct Script {
        pub(in crate::cli) address: String,
        server: JoinHandle<Vec<Asked>>,
    }

    impl Script {
        pub(in crate::cli) fn start(answers: &[(u16, &str)]) -> Script {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            let answers: Vec<_> = answers.iter().map(|(status, body)| (*status, (*body).to_owned())).collect();
            let serve = move |(status, body): (u16, String)| serve(&listener, status, &body);
            Script { address, server: std::thread::spawn(move || answers.into_iter().map(serve).collect()) }
        }

        pub(in crate::cli) fn asked(self) -> Vec<Asked> {
            self.server.join().unwrap()
        }

        pub(in crate::cli) fn lines(self) -> Vec<String> {
            self.asked().into_iter().map(|asked| asked.line).collect()
        }
    }

    fn serve(listener: &TcpListener, status: u16, answer: &str) -> Asked {
        let mut stream = BufReader::new(listener.accept().unwrap().0);
        let (mut line, mut head) = (String::new(), String::new());
        stream.read_line(&mut line).unwrap();
        while stream.read_line(&mut head).unwrap() > 2 {}
        let head = head.to_lowercase();
        let length = head.lines().find_map(|header| header.strip_prefix("content-length: ")).unwrap_or("0");
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
        let length = answer.len();
        write!(
            stream.get_mut(),
            "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{answer}"
        )
        .unwrap();
        let line = line.strip_suffix(" HTTP/1.1\r\n").unwrap().to_owned();
        Asked { line, head, body: String::from_utf8(body).unwrap() }
    }

    #[test]
    fn an_api_error_reads_code_message_status() {
        let body = r#"{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"Endpoint with name 'x' does not exist."}"#;
        let script = Script::start(&[(404, body)]);
        let error = for_tests(&script.address).get(&["a b", "é"], &[("name", "x&y")]).unwrap_err();
        assert_eq!(error.to_string(), "RESOURCE_DOES_NOT_EXIST: Endpoint with name 'x' does not exist. (404)");
        let asked = script.asked().remove(0);
        assert_eq!(asked.line, "GET /a%20b/%C3%A9?name=x%26y");
        assert!(asked.head.contains("authorization: bearer secret\r\n"), "{}", asked.head);
    }

    #[test]
    fn another_servers_error_is_shown_as_it_is() {
        let script = Script::start(&[(502, "<h1>Bad Gateway</h1>")]);
        let error = for_tests(&script.address).get(&["x"], &[]).unwrap_err().to_string();
        assert!(error.ends_with("answered 502 Bad Gateway without an API error: <h1>Bad Gateway</h1>"), "{error}");
    }

    #[test]
    fn a_missing_server_says_how_to_start_one() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // closed again here
        let error = for_tests(&free.to_string()).get(&["x"], &[]).unwrap_err().to_string();
        assert_eq!(error, format!("no server at http://{free}: start one with `tessera serve` or set --host"));
    }

    #[test]
    fn a_refused_upload_tells_why_although_it_was_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = for_tests(&listener.local_addr().unwrap().to_string());
        let server = std::thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let mut head = String::new();
            while stream.read_line(&mut head).unwrap() > 2 {}
            let body = r#"{"error_code":"BAD_REQUEST","message":"too large"}"#;
            let length = body.len();
            write!(stream.get_mut(), "HTTP/1.1 413 X\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
                .unwrap();
            stream.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
            // Takes what was under way already: closing over unread bytes would send a reset instead of the answer.
            io::copy(&mut stream, &mut io::sink()).ok();
        });
        let error = client.put_file(&["big"], io::repeat(0), 1 << 40).unwrap_err().to_string();
        assert_eq!(error, "BAD_REQUEST: too large (413)");
        // Closes the connection, for whose end the server waits.
        drop(client);
        server.join().unwrap();
    }

    #[test]
    fn a_file_that_shrinks_is_not_sent_as_if_whole() {
        let mut upload = Upload { file: &b"abc"[..], bytes: 4 };
        let mut waker = Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(Some(Err(error))) = Pin::new(&mut upload).poll_frame(&mut waker) else { panic!("it was sent") };
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }

    fn options(host: Option<&str>, home: PathBuf) -> ClientOptions {
        ClientOptions { host: host.map(str::to_owned), home, ..no_options() }
    }

    #[test]
    fn the_home_of_a_server_gives_address_and_token_but_to_no_other_server() {
        let home = tempfile::tempdir().unwrap();
        let open = |host| Client::new(&options(host, home.path().into())).map(|c| (address(&c.base), c.token));
        assert!(open(None).unwrap_err().to_string().starts_with("no server has its home in"));
        fs::write(home.path().join("address"), "127.0.0.1:8080\n").unwrap();
        fs::write(home.path().join("admin.token"), "dapi-1\n").unwrap();
        let expected = ("http://127.0.0.1:8080".to_owned(), "dapi-1".to_owned());
        assert_eq!(open(None).unwrap(), expected);
        assert_eq!(open(Some("http://127.0.0.1:8080/")).unwrap(), expected);
        assert!(open(Some("other:80")).unwrap_err().to_string().starts_with("no token for http://other"));
        assert!(open(Some("https://127.0.0.1:8080")).unwrap_err().to_string().starts_with("no token for https://127"));
        assert!(open(Some("ftp://other")).unwrap_err().to_string().contains("no http:// or https:// URL"));

        // A server with TLS says so in the file.
        fs::write(home.path().join("address"), "https://127.0.0.1:8443").unwrap();
        assert_eq!(open(None).unwrap(), ("https://127.0.0.1:8443".to_owned(), "dapi-1".to_owned()));
        assert!(open(Some("127.0.0.1:8443")).unwrap_err().to_string().starts_with("no token for http://127.0.0.1"));
    }

    #[test]
    fn a_certificate_file_that_is_none_is_refused_by_name() {
        let home = tempfile::tempdir().unwrap();
        let empty = home.path().join("empty.pem");
        fs::write(&empty, "no certificate").unwrap();
        let base =
            ClientOptions { token: Some("t".into()), ..options(Some("https://127.0.0.1:1"), home.path().into()) };
        for (given, words) in [
            (ClientOptions { ca_cert: Some("/no/ca.pem".into()), ..base.clone() }, "failed to read /no/ca.pem"),
            (ClientOptions { ca_cert: Some(empty.clone()), ..base.clone() }, "holds no certificate in PEM"),
            (
                ClientOptions { client_cert: Some(empty.clone()), client_key: Some(empty.clone()), ..base.clone() },
                "cannot be used",
            ),
        ] {
            let error = Client::new(&given).map(drop).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            // They are not even read for an address without TLS.
            Client::new(&ClientOptions { host: Some("http://127.0.0.1:1".into()), ..given }).map(drop).unwrap();
        }
    }
}
