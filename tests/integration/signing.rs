//! Servers that run only what is signed.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Package, Server, eventually, serving, tessera};

const MODEL: &str = "main.default.signed";

/// A folder with keys and, below `package`, a package.
struct Workshop(TempDir);

impl Workshop {
    /// With the keys `ours` and `theirs`; servers trust ours.
    fn new() -> Workshop {
        let workshop = Workshop(tempfile::tempdir().unwrap());
        let lines = ["ours", "theirs"].map(|key| ok(workshop.tessera(&["sign", "new-key", key])));
        fs::write(workshop.path().join("trusted"), format!("# keys of the team\n{}", lines[0])).unwrap();
        let package = workshop.path().join("package");
        fs::create_dir(&package).unwrap();
        for (name, content) in &Package::hostile("").files {
            fs::write(package.join(name), content).unwrap();
        }
        workshop
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn tessera(&self, arguments: &[&str]) -> Output {
        tessera().args(arguments).current_dir(self.path()).output().unwrap()
    }

    fn sign(&self, key: &str) {
        ok(self.tessera(&["sign", "package", "package", "--key", key]));
    }

    /// Pushes the package: what is printed, or the error.
    fn push(&self, server: &Server) -> Result<String, String> {
        let output =
            self.tessera(&["model", "push", "package", "--name", MODEL, "--home", server.home().to_str().unwrap()]);
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(String::from_utf8(output.stderr).unwrap()),
        }
    }

    fn trusting_server(&self) -> Server {
        Server::with(&["--require-signed", self.path().join("trusted").to_str().unwrap()])
    }
}

#[track_caller]
fn ok(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn only_what_a_trusted_key_has_signed_is_registered() {
    let workshop = Workshop::new();
    let server = workshop.trusting_server();
    let refused = |words: &[&str]| {
        let error = workshop.push(&server).unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refused(&["has no 'tessera.sig'", "tessera sign package"]);
    workshop.sign("theirs");
    refused(&["is signed by others"]);
    // Beside theirs.
    workshop.sign("ours");
    let signers = ok(workshop.tessera(&["sign", "list", "package"]));
    assert_eq!(signers.matches("valid").count(), 2, "{signers}");
    workshop.push(&server).unwrap();

    let manifest = workshop.path().join("package/tessera.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text + "\n# changed\n").unwrap();
    refused(&["no valid signature", "changed since it was signed"]);
    let signers = ok(workshop.tessera(&["sign", "list", "package"]));
    assert_eq!(signers.matches("INVALID").count(), 2, "{signers}");
}

#[test]
fn what_was_deployed_before_signatures_were_asked_for_does_not_serve_after() {
    let workshop = Workshop::new();
    let mut server = Server::start();
    workshop.push(&server).unwrap();
    let version = |number: &str| serving(MODEL, number);
    server.create("unsigned", &version("1")).ok();
    assert_eq!(server.settled("unsigned")["state"]["ready"], "READY");
    workshop.sign("ours");
    workshop.push(&server).unwrap();
    server.create("signed", &version("2")).ok();
    assert_eq!(server.settled("signed")["state"]["ready"], "READY");

    server.terminate();
    server.wait();
    server.add_flags(&["--require-signed", workshop.path().join("trusted").to_str().unwrap()]);
    server.start_again();
    server.invoke("signed", &json!({ "do": "echo" })).ok();
    let refused: Value = server.invoke("unsigned", &json!({ "do": "echo" })).json();
    assert!(refused["message"].as_str().unwrap().contains("tessera.sig"), "{refused}");
    server.create("again", &version("1")).ok();
    let failed = eventually("the deploy fails", || {
        let endpoint = server.endpoint("again");
        (endpoint["state"]["config_update"] == "UPDATE_FAILED").then_some(endpoint)
    });
    assert!(failed.to_string().contains("tessera.sig"), "{failed:#}");
}

#[test]
fn keys_are_not_overwritten_and_mistakes_are_named() {
    let workshop = Workshop::new();
    let refused = |arguments: &[&str], word: &str| {
        let output = workshop.tessera(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(word), "{error}");
    };
    refused(&["sign", "new-key", "ours"], "ours exists");
    refused(&["sign", "package", "package", "--key", "trusted"], "no private key in PEM");
    refused(&["sign", "list", "package"], "is not signed");
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(fs::metadata(workshop.path().join("ours")).unwrap().permissions().mode() & 0o777, 0o600);

    fs::write(workshop.path().join("trusted"), "ed25519 nonsense\n").unwrap();
    let mut server = Server::start();
    server.terminate();
    server.wait();
    server.add_flags(&["--require-signed", workshop.path().join("trusted").to_str().unwrap()]);
    server.refused_start(&["line 1 of", "is no key"]);
}
