//! One repository of a registry, by the Distribution Specification of the OCI: blobs and manifests go there and come from
//! there. All that comes is bounded, and compared with its digest.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write as _};
use std::path::Path;

use anyhow::{Context as _, anyhow, bail, ensure};
use http_auth::parser::ChallengeParser;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use indicatif::ProgressBar;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::address::{Address, Which};
use super::login::{Login, login, secret};
use super::manifest::{Descriptor, MANIFEST_TYPE, Manifest, sha256};
use super::{NOT_OURS, RegistryOptions};
use crate::cli::ClientOptions;
use crate::cli::client::{self, CONNECT_TIMEOUT, Upload, certificate_error, is_refused, tls_error, transfer_timeout};
use crate::store::blobs::Digest;

/// A manifest with the most files and the longest names is half of this.
const MANIFEST_BYTES_MAX: usize = 1 << 20;

/// Largest answer that is not a blob: a token, or an error.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What may be in the place of a manifest, so that a registry says what is there.
const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                        application/vnd.docker.distribution.manifest.v2+json, \
                        application/vnd.docker.distribution.manifest.list.v2+json";

/// A registry, and the repository in it.
pub(super) struct Registry {
    http: reqwest::Client,
    host: String,
    /// Of the repository, with a slash at its end.
    base: Url,
    repository: String,
    login: Option<Login>,
    may: &'static str,
    /// What requests prove who asks with, once the registry has wanted to know.
    authorization: RefCell<Option<HeaderValue>>,
}

/// What is going to be done.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operation {
    Push,
    Pull,
}

impl Registry {
    /// Makes ready to ask. Nothing is sent yet.
    ///
    /// # Errors
    /// When there is a login, or a certificate, that cannot be read.
    pub(super) fn new(
        address: &Address,
        operation: Operation,
        registry: &RegistryOptions,
        options: &ClientOptions,
    ) -> anyhow::Result<Registry> {
        let loopback = address.is_loopback();
        let plain = registry.plain_http || (loopback && options.ca_cert.is_none());
        let scheme = if plain { "http" } else { "https" };
        let base = format!("{scheme}://{}/v2/{}/", address.host, address.repository);
        let base = Url::parse(&base).with_context(|| format!("{base} is no URL"))?;
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("tessera/", env!("CARGO_PKG_VERSION")))
            // Neither a blob that lies elsewhere nor a password to a token's server goes over the network readable.
            .https_only(!plain);
        // HTTP_PROXY often stands without NO_PROXY, and no proxy reaches our loopback.
        if loopback {
            http = http.no_proxy();
        }
        let http = client::tls(http, &base, options)?.build().context("failed to start the HTTP client")?;
        Ok(Registry {
            http,
            host: address.host.clone(),
            base,
            repository: address.repository.clone(),
            login: login(&address.host, registry)?,
            may: match operation {
                Operation::Push => "pull,push",
                Operation::Pull => "pull",
            },
            authorization: RefCell::new(None),
        })
    }

    /// Sends a blob, unless it is there; answers whether it was sent.
    ///
    /// # Errors
    /// When the registry does not take it, or `content` is not what `digest` says.
    pub(super) async fn put_blob(
        &self,
        content: impl Read + Send + Sync + Unpin + 'static,
        digest: Digest,
        bytes: u64,
    ) -> anyhow::Result<bool> {
        let there = self.send(Method::HEAD, self.url(&format!("blobs/sha256:{digest}"))?, |request| request).await?;
        if there.status() != StatusCode::NOT_FOUND {
            return self.checked(there).await.map(|_| false);
        }
        let uploads = self.url("blobs/uploads/")?;
        let begun = self.send(Method::POST, uploads, |request| request.header(CONTENT_LENGTH, 0)).await?;
        let begun = self.checked(begun).await?;
        let place = begun.headers().get(LOCATION).and_then(|place| place.to_str().ok());
        let place = place.and_then(|place| begun.url().join(place).ok());
        let mut place = place.with_context(|| format!("{} does not say where to send it", self.host))?;
        place.query_pairs_mut().append_pair("digest", &format!("sha256:{digest}"));
        let request = self.http.request(Method::PUT, place).timeout(transfer_timeout(bytes));
        // hyper would leave the length out for an empty file.
        let request = request.header(CONTENT_LENGTH, bytes).header(CONTENT_TYPE, "application/octet-stream");
        let sent = self.send_once(request.body(reqwest::Body::wrap(Upload { file: content, bytes }))).await?;
        self.checked(sent).await.map(|_| true)
    }

    /// Gives the repository a manifest.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub(super) async fn put_manifest(&self, which: &Which, manifest: Vec<u8>) -> anyhow::Result<()> {
        let fill = |request: RequestBuilder| request.header(CONTENT_TYPE, MANIFEST_TYPE).body(manifest.clone());
        let sent = self.send(Method::PUT, self.url(&format!("manifests/{which}"))?, fill).await?;
        self.checked(sent).await.map(drop)
    }

    /// A manifest, and its digest.
    ///
    /// # Errors
    /// When there is none, it is not what its digest says, or of another kind.
    pub(super) async fn manifest(&self, which: &Which) -> anyhow::Result<(Manifest, Digest)> {
        let url = self.url(&format!("manifests/{which}"))?;
        let found = self.send(Method::GET, url, |request| request.header(ACCEPT, ACCEPTED)).await?;
        let mut found = self.checked(found).await?;
        let said = found.headers().get("docker-content-digest").and_then(|said| sha256(said.to_str().ok()?));
        let text = self.read(&mut found, MANIFEST_BYTES_MAX).await?;
        let digest = Digest::of(&text);
        // A tag stands for whatever the registry says, and that must be what it sends.
        let expected = match which {
            Which::Digest(digest) => Some(*digest),
            Which::Tag(_) => said,
        };
        check(digest, expected.unwrap_or(digest))?;
        let manifest = serde_json::from_slice(&text).with_context(|| format!("what is there {NOT_OURS}"))?;
        Ok((manifest, digest))
    }

    /// Writes a blob into a new file.
    ///
    /// # Errors
    /// When what comes is not what the manifest says; the file is incomplete then.
    pub(super) async fn get_blob(&self, blob: &Descriptor, to: &Path, bar: &ProgressBar) -> anyhow::Result<()> {
        let url = self.url(&format!("blobs/sha256:{}", blob.digest))?;
        let found = self.send(Method::GET, url, |request| request.timeout(transfer_timeout(blob.bytes))).await?;
        let mut found = self.checked(found).await?;
        let mut file = File::create_new(to).context("failed to make the file")?;
        let (mut hasher, mut written) = (Sha256::new(), 0);
        while let Some(piece) = found.chunk().await.map_err(|error| self.explain(error))? {
            written += piece.len() as u64;
            ensure!(written <= blob.bytes, "it is longer than the {} bytes that its manifest says", blob.bytes);
            hasher.update(&piece);
            file.write_all(&piece).context("failed to write the file")?;
            bar.inc(piece.len() as u64);
        }
        check(Digest(hasher.finalize().into()), blob.digest)?;
        ensure!(written == blob.bytes, "it has {written} bytes, and {} by its manifest", blob.bytes);
        file.sync_all().context("failed to write the file")
    }

    fn url(&self, path: &str) -> anyhow::Result<Url> {
        // A path with a colon would be taken for an address with a scheme.
        self.base.join(&format!("./{path}")).with_context(|| format!("{path} is no path"))
    }

    /// Asks, and if the registry wants to know who does, says it and asks again.
    async fn send(
        &self,
        method: Method,
        url: Url,
        fill: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> anyhow::Result<Response> {
        let request = || fill(self.http.request(method.clone(), url.clone()).timeout(transfer_timeout(0)));
        let response = self.send_once(request()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|it| it.to_str().ok());
        let authorization = self.authorize(&challenges.collect::<Vec<_>>().join(", ")).await?;
        if authorization.is_none() {
            return Ok(response);
        }
        self.authorization.replace(authorization);
        self.send_once(request()).await
    }

    async fn send_once(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let mut request = request.build().map_err(|error| self.explain(error))?;
        // Uploads may go to another host, which is to learn no password.
        if request.url().origin() == self.base.origin()
            && let Some(authorization) = &*self.authorization.borrow()
        {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        self.http.execute(request).await.map_err(|error| self.explain(error))
    }

    /// What proves who asks, in one of the ways that the registry takes; none if there is none.
    async fn authorize(&self, challenges: &str) -> anyhow::Result<Option<HeaderValue>> {
        for challenge in ChallengeParser::new(challenges).map_while(Result::ok) {
            let param = |name: &str| {
                let found = challenge.params.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = param("realm")
            {
                return self.token(&realm, param("service")).await.map(Some);
            }
            if challenge.scheme.eq_ignore_ascii_case("basic")
                && let Some(login) = &self.login
            {
                return login.basic().map(Some);
            }
        }
        Ok(None)
    }

    /// A token of the server that the registry believes. Without a login it may give one to everybody.
    async fn token(&self, realm: &str, service: Option<String>) -> anyhow::Result<HeaderValue> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(alias = "access_token")]
            token: String,
        }
        let mut url = Url::parse(realm).with_context(|| format!("the server of tokens '{realm}' is no URL"))?;
        let scope = format!("repository:{}:{}", self.repository, self.may);
        url.query_pairs_mut().append_pair("scope", &scope).extend_pairs(service.map(|service| ("service", service)));
        let mut request = self.http.get(url).timeout(transfer_timeout(0));
        if let Some(login) = &self.login {
            request = request.header(AUTHORIZATION, login.basic()?);
        }
        let answer = self.http.execute(request.build().map_err(|error| self.explain(error))?).await;
        let mut answer = self.checked(answer.map_err(|error| self.explain(error))?).await?;
        let text = self.read(&mut answer, ANSWER_BYTES_MAX).await?;
        let answer: Answer = serde_json::from_slice(&text).with_context(|| format!("{realm} gives no token"))?;
        secret(&format!("Bearer {}", answer.token))
    }

    /// A body of this length at most.
    async fn read(&self, response: &mut Response, bytes_max: usize) -> anyhow::Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.explain(error))? {
            body.extend_from_slice(&piece);
            ensure!(body.len() <= bytes_max, "{} sends more than {bytes_max} bytes", self.host);
        }
        Ok(body)
    }

    /// The answer, if it is none of those that say no.
    async fn checked(&self, mut response: Response) -> anyhow::Result<Response> {
        let (status, host) = (response.status(), &self.host);
        match status.as_u16() {
            200..300 => Ok(response),
            401 => {
                bail!("{host} wants another login (401): use `docker login {host}`, or --username and --password-stdin")
            }
            403 => bail!("{host} does not allow that (403): log in as somebody who may"),
            404 => bail!("{host} has nothing of that name (404)"),
            _ => {
                let said = self.read(&mut response, ANSWER_BYTES_MAX).await.unwrap_or_default();
                let said: String = String::from_utf8_lossy(&said).trim().chars().take(300).collect();
                bail!("{host} answered {status}: {said}")
            }
        }
    }

    /// Why there is no answer, with the way out where there is one.
    fn explain(&self, error: reqwest::Error) -> anyhow::Error {
        let host = &self.host;
        if is_refused(&error) {
            return anyhow!("no registry answers at {host}: give its host and port as in oci://HOST:PORT/REPOSITORY");
        }
        if let Some(reason) = certificate_error(&error) {
            return anyhow!("the certificate of {host} is refused ({reason}): trust its CA with --ca-cert");
        }
        let what = match tls_error(&error) {
            Some(_) => format!("{host} does not speak TLS: --plain-http does without"),
            None => format!("failed to ask {host}"),
        };
        // An address in a registry may hold secrets.
        anyhow!(error.without_url()).context(what)
    }
}

/// That content is what its digest says.
fn check(found: Digest, expected: Digest) -> anyhow::Result<()> {
    ensure!(
        found == expected,
        "its content has the digest {found} and not {expected}: it was changed or damaged in the registry or on the way; \
         push the package again"
    );
    Ok(())
}
