//! A component of `wasi:http/proxy` that knows nothing of Tessera: what it does is the first segment of the path, and what
//! is said of that in [`Guest::handle`]. It imports `wasi:nn`, and its graph is called `model`.

// Elsewhere nothing exports it.
#![cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]

mod fetch;
mod nn;

use std::collections::BTreeMap;
use std::hint::black_box;

use serde_json::{Value, json};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam, Scheme,
};
use wasip2::io::streams::{OutputStream, StreamError};

// Its symbol has a name that linkers of other machines do not take.
#[cfg(target_arch = "wasm32")]
wasip2::http::proxy::export!(Tested);

/// The most that one blocking write takes, by its specification.
const WRITE_BYTES_MAX: usize = 4096;

struct Tested;

impl Guest for Tested {
    fn handle(request: IncomingRequest, answer: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let mut segments = path.trim_start_matches('/').split('/');
        let number = |name: &str| parameter(query, name).and_then(|value| value.parse().ok()).unwrap_or(0usize);
        match segments.next().unwrap_or_default() {
            // What came, as JSON.
            "" | "echo" | "chat" => respond_json(answer, &description(&request)),
            // What comes, as it comes.
            "mirror" => mirror(&request, answer),
            "status" => respond_status(answer, segments.next().and_then(|code| code.parse().ok()).unwrap_or(0)),
            // Headers that a guest may set, and some that it may not.
            "headers" => respond_headers(answer),
            "stream" => stream(answer, number("chunks"), number("bytes")),
            "compute" => respond_json(answer, &nn::compute()),
            // A request to the address in the body.
            "fetch" => respond_json(answer, &fetch::one(&text(&request), query)),
            // As many at once to the address in the body.
            "fetch_many" => respond_json(answer, &fetch::many(&text(&request), number("count"))),
            "environment" => respond_json(answer, &environment()),
            "log" => {
                print(&wasip2::cli::stdout::get_stdout(), "to stdout\n");
                print(&wasip2::cli::stderr::get_stderr(), "to stderr\n");
                respond_json(answer, &json!({}));
            }
            "loop" => spin(),
            "memory" => explode(),
            "trap" => trap("before the head"),
            "trap_after_head" => {
                let (_body, stream) = begin(answer, 200, Fields::new());
                // More than waits to be sent, so that the head is out.
                print(&stream, &"the beginning".repeat(1 << 16));
                trap("after the head");
            }
            "loop_after_head" => {
                let (_body, stream) = begin(answer, 200, Fields::new());
                print(&stream, "the beginning");
                spin();
            }
            // The answer is whole, and the guest goes on.
            "trap_at_the_end" => {
                respond(answer, 200, Fields::new(), b"all of it");
                trap("when all was said");
            }
            "work_after_the_end" => {
                respond(answer, 200, Fields::new(), b"all of it");
                wasip2::clocks::monotonic_clock::subscribe_duration(50_000_000).block();
                print(&wasip2::cli::stderr::get_stderr(), "worked after the end\n");
            }
            // A body that is dropped without an end.
            "unfinished" => {
                let (body, stream) = begin(answer, 200, Fields::new());
                print(&stream, "the beginning");
                drop(stream);
                drop(body);
            }
            "no_answer" => drop(answer),
            "error" => ResponseOutparam::set(answer, Err(ErrorCode::HttpProtocolError)),
            // Says that it is longer than it is.
            "short" => {
                let headers = fields(&[("content-length", b"100")]);
                let (body, stream) = begin(answer, 200, headers);
                print(&stream, "short");
                drop(stream);
                let _ = OutgoingBody::finish(body, None);
            }
            // A long length, and nothing of it.
            "huge" => {
                let length = number("bytes").to_string().into_bytes();
                let headers = fields(&[("content-length", &length)]);
                std::mem::forget(begin(answer, 200, headers));
            }
            // Handles without end.
            "handles" => {
                let all: Vec<Fields> = (0..1 << 20).map(|_| Fields::new()).collect();
                black_box(all);
            }
            // A header without end.
            "fields" => {
                let fields = Fields::new();
                for number in 0..1 << 16 {
                    let _ = fields.append(&format!("x-{number}"), &vec![b'x'; 1000]);
                }
                respond(answer, 200, fields, b"");
            }
            other => respond(answer, 404, Fields::new(), format!("there is no {other}").as_bytes()),
        }
    }
}

fn description(request: &IncomingRequest) -> Value {
    let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in request.headers().entries() {
        headers.entry(name).or_default().push(String::from_utf8_lossy(&value).into_owned());
    }
    let scheme = match request.scheme() {
        Some(Scheme::Http) => "http".to_owned(),
        Some(Scheme::Https) => "https".to_owned(),
        Some(Scheme::Other(other)) => other,
        None => String::new(),
    };
    json!({
        "method": method_name(&request.method()),
        "target": request.path_with_query(),
        "scheme": scheme,
        "authority": request.authority(),
        "headers": headers,
        "body": text(request),
    })
}

fn method_name(method: &Method) -> String {
    match method {
        Method::Other(other) => other.clone(),
        known => format!("{known:?}").trim_start_matches("Method::").to_uppercase(),
    }
}

fn text(request: &IncomingRequest) -> String {
    let Ok(body) = request.consume() else { return String::new() };
    String::from_utf8_lossy(&read_all(&body).unwrap_or_default()).into_owned()
}

/// A body to its end; none when it broke off.
pub(crate) fn read_all(body: &IncomingBody) -> Option<Vec<u8>> {
    let stream = body.stream().ok()?;
    let mut whole = Vec::new();
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(chunk) => whole.extend(chunk),
            Err(StreamError::Closed) => return Some(whole),
            Err(StreamError::LastOperationFailed(_)) => return None,
        }
    }
}

fn mirror(request: &IncomingRequest, answer: ResponseOutparam) {
    let types = request.headers().get("content-type");
    let headers: Vec<_> = types.iter().map(|value| ("content-type", value.as_slice())).collect();
    let (body, out) = begin(answer, 200, fields(&headers));
    let Ok(incoming) = request.consume() else { return };
    let Ok(stream) = incoming.stream() else { return };
    loop {
        match stream.blocking_read(WRITE_BYTES_MAX as u64) {
            Ok(chunk) => print_bytes(&out, &chunk),
            Err(StreamError::Closed) => break,
            // The body is left without an end, as what came was.
            Err(StreamError::LastOperationFailed(_)) => return,
        }
    }
    drop(out);
    let _ = OutgoingBody::finish(body, None);
}

fn respond_status(answer: ResponseOutparam, code: u16) {
    let headers = fields(&[("x-made-by", b"the guest")]);
    let body: &[u8] = if [204, 304].contains(&code) { b"" } else { b"said so" };
    respond(answer, code, headers, body);
}

fn respond_headers(answer: ResponseOutparam) {
    let headers = Fields::new();
    for (name, value) in [
        ("x-several", "one"),
        ("x-several", "two"),
        ("cache-control", "no-store"),
        ("content-type", "text/plain; charset=utf-8"),
        ("set-cookie", "session=1"),
        ("strict-transport-security", "max-age=1"),
        ("x-request-id", "forged"),
        ("served-model-name", "forged"),
    ] {
        let _ = headers.append(name, value.as_bytes());
    }
    // Belong to the connection: a guest is refused them.
    let refused =
        ["connection", "transfer-encoding", "upgrade"].iter().filter(|name| headers.append(name, b"x").is_err());
    let refused = refused.copied().collect::<Vec<_>>().join(",");
    respond(answer, 200, headers, refused.as_bytes());
}

fn stream(answer: ResponseOutparam, chunks: usize, bytes: usize) {
    let (body, out) = begin(answer, 200, Fields::new());
    let chunk = vec![b'x'; bytes];
    for _ in 0..chunks {
        print_bytes(&out, &chunk);
    }
    drop(out);
    let _ = OutgoingBody::finish(body, None);
}

/// What of the machine is there for a guest.
fn environment() -> Value {
    let network = wasip2::sockets::instance_network::instance_network();
    let lookup = wasip2::sockets::ip_name_lookup::resolve_addresses(&network, "localhost");
    let socket = wasip2::sockets::tcp_create_socket::create_tcp_socket(wasip2::sockets::network::IpAddressFamily::Ipv4);
    json!({
        "variables": wasip2::cli::environment::get_environment().len(),
        "arguments": wasip2::cli::environment::get_arguments().len(),
        "folders": wasip2::filesystem::preopens::get_directories().len(),
        "lookup": lookup.map_or_else(|code| code.name().to_owned(), |_| "done".to_owned()),
        "socket": socket.and_then(|socket| connect(&network, &socket)).map_or_else(|code| code.name().to_owned(), |()| "open".to_owned()),
    })
}

fn connect(
    network: &wasip2::sockets::network::Network,
    socket: &wasip2::sockets::tcp::TcpSocket,
) -> Result<(), wasip2::sockets::network::ErrorCode> {
    use wasip2::sockets::network::{IpSocketAddress, Ipv4SocketAddress};
    let address = IpSocketAddress::Ipv4(Ipv4SocketAddress { port: 80, address: (127, 0, 0, 1) });
    socket.start_connect(network, address)?;
    socket.subscribe().block();
    socket.finish_connect().map(drop)
}

fn respond_json(answer: ResponseOutparam, value: &Value) {
    respond(answer, 200, fields(&[("content-type", b"application/json")]), value.to_string().as_bytes());
}

/// Headers; those that a guest may not set are left out.
pub(crate) fn fields(headers: &[(&str, &[u8])]) -> Fields {
    let fields = Fields::new();
    for (name, value) in headers {
        let _ = fields.append(name, value);
    }
    fields
}

fn respond(answer: ResponseOutparam, status: u16, headers: Fields, content: &[u8]) {
    let (body, out) = begin(answer, status, headers);
    print_bytes(&out, content);
    drop(out);
    let _ = OutgoingBody::finish(body, None);
}

/// Sends the head, and opens the body.
fn begin(answer: ResponseOutparam, status: u16, headers: Fields) -> (OutgoingBody, OutputStream) {
    let response = OutgoingResponse::new(headers);
    if response.set_status_code(status).is_err() {
        trap("the status is none");
    }
    let Ok(body) = response.body() else { trap("the response has no body") };
    ResponseOutparam::set(answer, Ok(response));
    let Ok(stream) = body.write() else { trap("the body has no stream") };
    (body, stream)
}

fn print(stream: &OutputStream, text: &str) {
    print_bytes(stream, text.as_bytes());
}

/// What cannot be written is lost: whoever it was for is gone.
fn print_bytes(stream: &OutputStream, bytes: &[u8]) {
    for chunk in bytes.chunks(WRITE_BYTES_MAX) {
        let _ = stream.blocking_write_and_flush(chunk);
    }
}

/// The value of a parameter in a query.
pub(crate) fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn spin() -> ! {
    loop {
        black_box(0);
    }
}

fn explode() -> ! {
    let mut all: Vec<Vec<u8>> = Vec::new();
    loop {
        all.push(black_box(vec![1; 1 << 20]));
    }
}

#[allow(clippy::panic, reason = "a trap is what is wanted")]
fn trap(why: &str) -> ! {
    panic!("{why}")
}
