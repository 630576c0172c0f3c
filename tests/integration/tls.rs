//! TLS: who speaks it with whom, and how a certificate changes while requests run. Certificates are made by each test.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use reqwest::blocking::{Client, ClientBuilder};
use reqwest::tls::TlsInfo;
use reqwest::{Certificate, Identity, Version};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Package, Server, ask_python, client, eventually, model, printed, python, tessera};

/// A certificate authority of a test.
pub(crate) struct Ca {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
    der: Vec<u8>,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Ca { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for this machine that ends with the year before `year`.
    pub(crate) fn sign(&self, year: i32) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Pair { cert: cert.pem(), key: key.serialize_pem(), der: cert.der().to_vec() }
    }

    /// A client that trusts this one.
    fn client(&self) -> ClientBuilder {
        client().tls_certs_only([Certificate::from_pem(self.pem.as_bytes()).unwrap()]).tls_info(true)
    }
}

impl Pair {
    fn identity(&self) -> Identity {
        Identity::from_pem(format!("{}{}", self.cert, self.key).as_bytes()).unwrap()
    }
}

/// A server with TLS, and the files that it reads.
pub(crate) struct Tls {
    pub(crate) server: Server,
    ca: Ca,
    pair: Pair,
    folder: TempDir,
}

impl Tls {
    pub(crate) fn start(flags: &[&str]) -> Tls {
        Tls::with_client(flags, |client| client)
    }

    fn with_client(flags: &[&str], client: impl FnOnce(ClientBuilder) -> ClientBuilder) -> Tls {
        let (ca, folder) = (Ca::new("the CA"), tempfile::tempdir().unwrap());
        let pair = ca.sign(2050);
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("ca.pem"), &ca.pem).unwrap();
        write_pair(&folder, &pair);
        let (cert, key) = (path("cert.pem"), path("key.pem"));
        let tls = ["--tls-cert", &cert, "--tls-key", &key];
        let server = Server::with_client(&[&tls[..], flags].concat(), client(ca.client()).build().unwrap());
        Tls { server, ca, pair, folder }
    }

    /// Replaces certificate and key.
    fn replace(&self, pair: &Pair) {
        write_pair(&self.folder, pair);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `host:port`.
    pub(crate) fn socket(&self) -> &str {
        self.server.address.strip_prefix("https://").expect("the address says that there is TLS")
    }

    /// A connection that sends these bytes as they are. Reads end after a time, so that a test fails and does not hang.
    fn connect(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    }

    /// The certificate that a client gets to see, as DER.
    fn shown(&self, client: &Client) -> Vec<u8> {
        let response = client.get(self.server.url("/health")).send().unwrap();
        assert_eq!(response.status(), 200);
        response.extensions().get::<TlsInfo>().unwrap().peer_certificate().unwrap().to_vec()
    }

    /// Handshakes that failed for a reason.
    fn failed(&self, reason: &str) -> usize {
        let series = format!("tessera_tls_handshakes_failed_total{{reason=\"{reason}\"}} ");
        let text = self.server.get("/metrics").text();
        text.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
    }

    /// `tessera endpoint list` with more flags: its exit code, stdout and stderr.
    fn command_line(&self, flags: &[&str]) -> (i32, String, String) {
        let mut command = tessera();
        command.args(["endpoint", "list"]).args(flags).arg("--home").arg(self.server.home());
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

/// Each file as a whole, as tools that renew certificates do it.
fn write_pair(folder: &TempDir, pair: &Pair) {
    for (name, content) in [("cert.pem", &pair.cert), ("key.pem", &pair.key)] {
        let new = folder.path().join("new");
        fs::write(&new, content).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&new, folder.path().join(name)).unwrap();
    }
}

/// All that comes until the server closes the connection.
fn read_to_close(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the connection is still open: {error}"),
    }
    bytes
}

#[test]
fn versions_from_1_2_on_are_spoken_and_none_before() {
    let tls = Tls::start(&[]);
    let (host, port) = tls.socket().split_once(':').unwrap();
    let asked = python("tls_versions.py").args([host, port]).arg(tls.path("ca.pem")).output().unwrap();
    let versions: Value = serde_json::from_str(&printed(asked)).unwrap();
    for (name, version) in [("TLSv1_2", "TLSv1.2"), ("TLSv1_3", "TLSv1.3")] {
        assert_eq!(versions[name], serde_json::json!([version, "HTTP/1.1 200"]), "{versions}");
    }
    for name in ["TLSv1", "TLSv1_1"] {
        // An alert is the server's word; what OpenSSL refuses itself has other names.
        assert!(versions[name].as_str().is_some_and(|reason| reason.contains("_ALERT_")), "{versions}");
    }
    assert_eq!(tls.failed("incompatible"), 2);
}

#[test]
fn a_client_that_speaks_http2_gets_it_and_endpoints_answer_as_without_tls() {
    let tls = Tls::start(&[]);
    tls.server.deploy("echo", &Package::hostile(""));
    let counted = tls.server.invoke("echo", &serde_json::json!({ "do": "counter" })).ok();
    assert_eq!(counted, serde_json::json!({ "counter": 1 }));
    let version = |client: ClientBuilder| {
        let response = client.build().unwrap().get(tls.server.url("/health")).send().unwrap();
        assert_eq!(response.status(), 200);
        response.version()
    };
    assert_eq!(version(tls.ca.client()), Version::HTTP_2);
    assert_eq!(version(tls.ca.client().http1_only()), Version::HTTP_11);
}

#[test]
fn a_certificate_changes_under_constant_requests_without_one_failure() {
    // given clients that make a connection for each request, one with a connection that stays, and a running request
    let tls = Tls::start(&[]);
    let stays = tls.ca.client().http1_only().build().unwrap();
    assert_eq!(tls.shown(&stays), tls.pair.der);
    let fresh = || tls.ca.client().pool_max_idle_per_host(0).build().unwrap();
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let next = [tls.ca.sign(2051), tls.ca.sign(2052)];

    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let client = fresh();
                while !stop.load(Relaxed) {
                    let shown = tls.shown(&client);
                    assert!([&tls.pair, &next[0], &next[1]].iter().any(|pair| pair.der == shown));
                    answered.fetch_add(1, Relaxed);
                }
            });
        }
        // Also when a check below fails: the scope waits for the threads.
        let _stop = Stop(&stop);
        let more_answers = || {
            let before = answered.load(Relaxed);
            eventually("requests go on", || (answered.load(Relaxed) > before + 10).then_some(()));
        };

        // when the files are replaced, then the new pair is found, sooner with SIGHUP
        more_answers();
        tls.replace(&next[0]);
        eventually("the new certificate is shown", || (tls.shown(&fresh()) == next[0].der).then_some(()));
        more_answers();
        tls.replace(&next[1]);
        tls.server.hang_up();
        eventually("the next one is shown", || (tls.shown(&fresh()) == next[1].der).then_some(()));
        more_answers();
    });

    // and the connection that stayed is the one of before
    assert_eq!(tls.shown(&stays), tls.pair.der);
    assert_eq!(tls.server.metric("tessera_tls_certificate_not_after_seconds"), 2_587_680_000.0);
    assert!(tls.server.log().contains("2052-01-01T00:00:00Z"), "{}", tls.server.log());
}

/// Ends the threads of a scope.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn files_that_cannot_be_used_are_refused_by_name_and_the_old_ones_go_on_serving() {
    let tls = Tls::start(&[]);
    let other = tls.ca.sign(2060);
    let fresh = || tls.ca.client().build().unwrap();
    for (name, content, words) in [
        ("key.pem", other.key.as_str(), "key.pem does not belong to the first certificate in"),
        ("key.pem", "", "key.pem holds no private key in PEM"),
        ("cert.pem", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", "cert.pem is no PEM"),
        ("cert.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cert.pem is no X.509"),
        ("cert.pem", "nothing", "cert.pem holds no certificate in PEM"),
    ] {
        // when one file goes bad
        tls.replace(&tls.pair);
        fs::write(tls.path(name), content).unwrap();
        // then the log says why
        eventually(&format!("the log says '{words}'"), || tls.server.log().contains(words).then_some(()));
        assert_eq!(tls.shown(&fresh()), tls.pair.der);
    }
    fs::remove_file(tls.path("key.pem")).unwrap();
    let told = || {
        let log = tls.server.log();
        log.lines().filter(|line| line.contains("failed to read") && line.contains("key.pem")).count()
    };
    eventually("the log says what is missing", || (told() == 1).then_some(()));
    // It says so once, and again to a person who asks.
    tls.server.hang_up();
    eventually("the log says it again", || (told() == 2).then_some(()));
    assert_eq!(tls.shown(&fresh()), tls.pair.der);

    // and a good pair is taken
    tls.replace(&other);
    eventually("the good pair is shown", || (tls.shown(&fresh()) == other.der).then_some(()));
    assert!(!tls.server.log().contains("PRIVATE KEY"), "keys are not logged");
}

#[test]
fn a_server_does_not_start_with_files_that_cannot_be_used() {
    let (folder, ca) = (tempfile::tempdir().unwrap(), Ca::new("the CA"));
    let pair = ca.sign(2050);
    let start = |cert: &str, key: &str| {
        let (cert_path, key_path) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        fs::write(&cert_path, cert).unwrap();
        fs::write(&key_path, key).unwrap();
        let mut command = tessera();
        command.args(["serve", "--listen", "127.0.0.1:0", "--home"]).arg(folder.path().join("home"));
        let output = command.arg("--tls-cert").arg(cert_path).arg("--tls-key").arg(key_path).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = start(&pair.cert, &ca.sign(2050).key);
    assert!(said.contains("failed to set up TLS") && said.contains("does not belong"), "{said}");
    let said = start("", &pair.key);
    assert!(said.contains("cert.pem holds no certificate"), "{said}");
}

#[test]
fn a_key_that_others_can_read_is_warned_of() {
    let tls = Tls::start(&[]);
    let warned = || tls.server.log().contains("key.pem can be read by others");
    assert!(!warned(), "{}", tls.server.log());
    // given another pair, whose key the group can read
    tls.replace(&tls.ca.sign(2051));
    fs::set_permissions(tls.path("key.pem"), fs::Permissions::from_mode(0o640)).unwrap();
    eventually("the warning comes", || warned().then_some(()));
}

#[test]
fn with_a_client_ca_a_client_must_have_a_certificate_of_it() {
    let clients = Ca::new("the clients' CA");
    let (known, unknown) = (clients.sign(2050), Ca::new("another CA").sign(2050));
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("clients.pem");
    fs::write(&ca, &clients.pem).unwrap();
    let ca = ca.to_str().unwrap();

    // when it is required
    let tls = Tls::with_client(&["--tls-client-ca", ca], |client| client.identity(known.identity()));
    let ask = |client: ClientBuilder| client.build().unwrap().get(tls.server.url("/health")).send();
    assert_eq!(ask(tls.ca.client().identity(known.identity())).unwrap().status(), 200);
    assert!(ask(tls.ca.client()).is_err(), "a client without a certificate is served");
    assert!(ask(tls.ca.client().identity(unknown.identity())).is_err(), "a client of another CA is served");
    eventually("both are counted", || (tls.failed("client_certificate") >= 2).then_some(()));

    // the command line has one, or is told what is missing
    let (trusted, cert, key) = (tls.path("ca.pem"), tls.path("client.pem"), tls.path("client.key"));
    fs::write(&cert, &known.cert).unwrap();
    fs::write(&key, &known.key).unwrap();
    let [trusted, cert, key] = [&trusted, &cert, &key].map(|path| path.to_str().unwrap());
    let (code, _, err) = tls.command_line(&["--ca-cert", trusted]);
    assert_eq!(code, 1, "{err}");
    let flags = ["--ca-cert", trusted, "--client-cert", cert, "--client-key", key];
    let (code, out, err) = tls.command_line(&flags);
    assert!(code == 0 && out.contains("no endpoints"), "{out}{err}");

    // when the CA is replaced, then its clients are not let in any more, although they could resume a session
    let been_here = tls.ca.client().identity(known.identity()).http1_only().pool_max_idle_per_host(0).build().unwrap();
    assert_eq!(tls.shown(&been_here), tls.pair.der);
    fs::write(folder.path().join("clients.pem"), Ca::new("a new CA").pem).unwrap();
    tls.server.hang_up();
    eventually("the old CA counts no more", || been_here.get(tls.server.url("/health")).send().err().map(drop));

    // when it is optional, then none is fine, and a wrong one is not
    fs::write(folder.path().join("clients.pem"), &clients.pem).unwrap();
    let tls = Tls::start(&["--tls-client-ca", ca, "--tls-client-auth", "optional"]);
    let ask = |client: ClientBuilder| client.build().unwrap().get(tls.server.url("/health")).send();
    assert_eq!(ask(tls.ca.client()).unwrap().status(), 200);
    assert_eq!(ask(tls.ca.client().identity(known.identity())).unwrap().status(), 200);
    assert!(ask(tls.ca.client().identity(unknown.identity())).is_err(), "a client of another CA is served");
}

#[test]
fn plain_http_is_told_that_the_port_speaks_tls() {
    let tls = Tls::start(&[]);
    for request in ["GET /health HTTP/1.1\r\nhost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "P"] {
        let answer = String::from_utf8(read_to_close(tls.connect(request.as_bytes()))).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("https://"), "{request}: {answer}");
    }
    let url = format!("http://{}", tls.socket());
    let (code, _, err) = tls.command_line(&["--host", &url, "--token", "x"]);
    assert!(code == 1 && err.contains("This port speaks TLS"), "{err}");
    // What is neither ends without a word.
    assert!(!read_to_close(tls.connect(b"\0\0\0\0\0\0\0\0")).starts_with(b"HTTP"));
    assert_eq!((tls.failed("plain_http"), tls.failed("protocol")), (4, 1));
}

/// Where a client stops in its handshake: before it, and in the middle of its first message.
const STOPS: [&[u8]; 2] = [b"", b"\x16\x03\x01\x02\x00\x01"];

#[test]
fn a_slow_handshake_is_cut_off_and_nobody_waits_for_it() {
    let tls = Tls::start(&["--header-timeout-ms", "400"]);
    let slow: Vec<TcpStream> = STOPS.iter().cycle().take(40).map(|sent| tls.connect(sent)).collect();
    assert_eq!(tls.shown(&tls.ca.client().build().unwrap()), tls.pair.der);
    for stream in slow {
        read_to_close(stream);
    }
    assert_eq!(tls.failed("timeout"), 40);
}

#[test]
fn handshakes_count_as_connections() {
    let tls = Tls::start(&["--max-connections", "3", "--header-timeout-ms", "600000", "--threads", "1"]);
    // given the harness's own connection, and two that do nothing
    assert_eq!(tls.server.get("/health").status, 200);
    let slow = STOPS.map(|sent| tls.connect(sent));
    eventually("they are counted", || (tls.server.metric("tessera_connections") == 3.0).then_some(()));
    // then the next is closed at once
    assert!(read_to_close(tls.connect(b"")).is_empty());
    // and there is room when they have gone
    drop(slow);
    eventually("there is room", || tls.ca.client().build().unwrap().get(tls.server.url("/health")).send().ok());
}

#[test]
fn a_handshake_does_not_hold_up_the_end() {
    // given limits that are longer than this test waits
    let mut tls = Tls::start(&["--header-timeout-ms", "3000000", "--drain-timeout-ms", "3000000"]);
    let slow = STOPS.map(|sent| tls.connect(sent));
    eventually("they are counted", || (tls.server.metric("tessera_connections") >= 3.0).then_some(()));
    tls.server.terminate();
    assert!(tls.server.wait().success(), "{}", tls.server.log());
    drop(slow);
}

#[test]
fn the_databricks_sdk_works_over_tls() {
    let tls = Tls::start(&[]);
    tls.server.deploy("echo", &Package::hostile(""));
    let mut asked = python("tls_client.py");
    asked.args([&tls.server.address, &tls.server.token]).env("DATABRICKS_CONFIG_FILE", "/dev/null");
    let answer = printed(asked.env("REQUESTS_CA_BUNDLE", tls.path("ca.pem")).output().unwrap());
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["host"], tls.server.address);
    assert_eq!(answer["endpoints"], serde_json::json!(["echo"]));

    // and does not without the CA
    let trusting_others = asked.env_remove("REQUESTS_CA_BUNDLE").output().unwrap();
    assert!(!trusting_others.status.success());
    assert!(String::from_utf8_lossy(&trusting_others.stderr).contains("CERTIFICATE_VERIFY_FAILED"));
}

#[test]
fn the_clients_do_over_tls_all_that_they_do_without() {
    let tls = Tls::start(&[]);
    let iris = Package::of(&model("iris"));
    tls.server.push("main.default.iris", &iris);
    tls.server.push("main.default.iris", &iris);
    let ca = tls.path("ca.pem");
    // Each fails where an answer is not what it promises: the lives of an endpoint, of principals, of OAuth's tokens.
    for (script, more) in [("databricks_client.py", Some("main.default.iris")), ("identities.py", None)] {
        let mut client = python(script);
        client.args([&tls.server.address, &tls.server.token]).args(more);
        ask_python(client.env("REQUESTS_CA_BUNDLE", &ca).env("SSL_CERT_FILE", &ca), &Value::Null);
    }
}

#[test]
fn the_command_line_trusts_the_ca_that_it_is_given() {
    let tls = Tls::start(&[]);
    let ca = tls.path("ca.pem");
    // The address, with its scheme, comes from the home.
    let (code, out, err) = tls.command_line(&["--ca-cert", ca.to_str().unwrap()]);
    assert!(code == 0 && out.contains("no endpoints"), "{out}{err}");

    let other = tls.path("other.pem");
    fs::write(&other, Ca::new("another CA").pem).unwrap();
    for flags in [[].as_slice(), &["--ca-cert", other.to_str().unwrap()]] {
        let (code, _, err) = tls.command_line(flags);
        assert!(code == 1 && err.contains("--ca-cert") && err.contains(tls.socket()), "{err}");
    }
}
