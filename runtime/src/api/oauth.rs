//! OAuth 2.0 (RFC 6749): access tokens for programs, and where clients ask for them. Errors are in OAuth's own form, which
//! the Databricks SDK reads here.
//!
//! Grants: `client_credentials` with a service principal's application id and secret; `jwt-bearer` and `token-exchange`
//! with a token that is valid here, for one that lives an hour and ends with it.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use base64::Engine as _;
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::routes::{Access, Reads, Route, handler};
use super::{Answer, CONTROL_BODY_BYTES_MAX, Call, json};
use crate::access::directory::AccessToken;
use crate::clock::now_ms;
use crate::error::ApiError;
use crate::http::body::BodyLimits;

pub(super) const ROUTES: &[Route] = &[
    Route::get(
        "oauth.authorization_server",
        "/oidc/.well-known/oauth-authorization-server",
        Access::Anyone,
        "Where tokens are asked for",
        handler!(authorization_server),
    )
    .answers::<AuthorizationServer>(),
    Route::get(
        "oauth.openid_configuration",
        "/oidc/.well-known/openid-configuration",
        Access::Anyone,
        "The same under the name of OpenID Connect",
        handler!(authorization_server),
    )
    .answers::<AuthorizationServer>(),
    Route::change(
        "oauth.token",
        Method::POST,
        "/oidc/v1/token",
        Access::Anyone,
        "Get an access token",
        handler!(token),
    )
    .form::<TokenRequest>()
    .answers::<AccessTokenAnswer>()
    .or::<OauthError>(&[400, 401, 429]),
];

const CLIENT_CREDENTIALS: &str = "client_credentials";
const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// RFC 8414.
#[derive(Serialize, JsonSchema)]
struct AuthorizationServer {
    issuer: String,
    /// Clients read it although nobody can sign in there: people have tokens.
    authorization_endpoint: String,
    token_endpoint: String,
    token_endpoint_auth_methods_supported: [&'static str; 2],
    grant_types_supported: [&'static str; 3],
    response_types_supported: [&'static str; 0],
    scopes_supported: [&'static str; 1],
}

/// RFC 6749, section 5.1.
#[derive(Serialize, JsonSchema)]
struct AccessTokenAnswer {
    access_token: String,
    token_type: &'static str,
    /// In seconds.
    expires_in: u64,
    scope: &'static str,
}

/// RFC 6749, section 5.2.
#[derive(Serialize, JsonSchema)]
struct OauthError {
    error: &'static str,
    error_description: String,
}

async fn authorization_server(call: &Call) -> Result<Answer, ApiError> {
    let issuer = format!("{}/oidc", call.origin());
    json(&AuthorizationServer {
        authorization_endpoint: format!("{issuer}/v1/authorize"),
        token_endpoint: format!("{issuer}/v1/token"),
        issuer,
        token_endpoint_auth_methods_supported: ["client_secret_basic", "client_secret_post"],
        grant_types_supported: [CLIENT_CREDENTIALS, JWT_BEARER, TOKEN_EXCHANGE],
        response_types_supported: [],
        scopes_supported: [SCOPE],
    })
}

/// The only scope: what a token may do is what its principal may do.
const SCOPE: &str = "all-apis";

/// Why there is no token: code, status and text of RFC 6749, section 5.2.
struct Refused {
    status: StatusCode,
    error: &'static str,
    description: String,
}

fn bad_request(error: &'static str, description: impl Into<String>) -> Refused {
    Refused { status: StatusCode::BAD_REQUEST, error, description: description.into() }
}

async fn token(call: &mut Call) -> Result<Answer, ApiError> {
    let limits = BodyLimits { bytes_max: CONTROL_BODY_BYTES_MAX, ..call.app.body_limits };
    let body = call.read_body(limits, |_| Ok(())).await?;
    call.check_reads::<TokenRequest>(Reads::Body)?;
    let request = TokenRequest::read(call, &body);
    let client_id = request.as_ref().ok().and_then(|request| request.client_id.as_deref()).unwrap_or_default();
    let login = call.app.failed_logins.of(call.peer.ip(), client_id);
    let outcome = if login.is_blocked() { Err(too_many()) } else { request.and_then(|request| grant(call, &request)) };
    let mut answer = match outcome {
        Ok(token) => json(&AccessTokenAnswer {
            access_token: token.value,
            token_type: "Bearer",
            expires_in: token.expires_in_s,
            scope: SCOPE,
        })?,
        Err(refused) => {
            if matches!(refused.error, INVALID_CLIENT | INVALID_GRANT) {
                login.failed();
                call.app.metrics.count_refusal("unauthenticated");
            }
            let mut answer = json(&OauthError { error: refused.error, error_description: refused.description })?;
            *answer.status_mut() = refused.status;
            match refused.status.as_u16() {
                401 => drop(answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic"))),
                429 => drop(answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(WINDOW_S))),
                _ => {}
            }
            answer
        }
    };
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

const INVALID_CLIENT: &str = "invalid_client";
const INVALID_GRANT: &str = "invalid_grant";

fn too_many() -> Refused {
    let description = format!("Too many wrong credentials from here. Try again in {WINDOW_S} seconds.");
    Refused { status: StatusCode::TOO_MANY_REQUESTS, error: "slow_down", description }
}

fn grant(call: &Call, request: &TokenRequest) -> Result<AccessToken, Refused> {
    let directory = &call.app.directory;
    if let Some(scope) = request.scope.iter().flat_map(|scopes| scopes.split_whitespace()).find(|scope| *scope != SCOPE)
    {
        return Err(bad_request("invalid_scope", format!("scope '{scope}' is not supported: the only one is {SCOPE}")));
    }
    let exchange = |field: &str, token: &Option<String>| {
        let token = token.as_deref().ok_or_else(|| bad_request("invalid_request", format!("{field} is missing")))?;
        let wrong = || bad_request(INVALID_GRANT, format!("{field} is not a valid token"));
        directory.access_token_for(token).ok_or_else(wrong)
    };
    match request.grant_type.as_deref() {
        Some(CLIENT_CREDENTIALS) => {
            let wrong = || Refused {
                status: StatusCode::UNAUTHORIZED,
                error: INVALID_CLIENT,
                description: "client_id or client_secret is not valid".to_owned(),
            };
            let [id, secret] =
                [&request.client_id, &request.client_secret].map(|sent| sent.as_deref().unwrap_or_default());
            directory.access_token_of_client(id, secret).ok_or_else(wrong)
        }
        Some(JWT_BEARER) => exchange("assertion", &request.assertion),
        Some(TOKEN_EXCHANGE) => exchange("subject_token", &request.subject_token),
        Some(other) => Err(bad_request(
            "unsupported_grant_type",
            format!("grant_type '{other}' is not one of {CLIENT_CREDENTIALS}, {JWT_BEARER} and {TOKEN_EXCHANGE}"),
        )),
        None => Err(bad_request("invalid_request", "grant_type is missing: send a form with it")),
    }
}

/// What a client sends: RFC 6749, with the grants of RFC 7523 and 8693. A field that is there twice is refused, as these
/// say, for two readers could take different ones.
#[derive(Debug, Default, Deserialize, JsonSchema)]
struct TokenRequest {
    grant_type: Option<String>,
    scope: Option<String>,
    /// With the secret; may be sent by Basic authentication instead.
    client_id: Option<String>,
    client_secret: Option<String>,
    /// A token that is valid here, with `jwt-bearer`.
    assertion: Option<String>,
    /// A token that is valid here, with `token-exchange`.
    subject_token: Option<String>,
}

impl TokenRequest {
    fn read(call: &Call, body: &[u8]) -> Result<TokenRequest, Refused> {
        let wrong = |error: serde_html_form::de::Error| bad_request("invalid_request", error.to_string());
        let mut request: TokenRequest = serde_html_form::from_bytes(body).map_err(wrong)?;
        if let Some((id, secret)) = basic(call) {
            (request.client_id, request.client_secret) = (Some(id), Some(secret));
        }
        Ok(request)
    }
}

/// User and password of Basic authentication.
fn basic(call: &Call) -> Option<(String, String)> {
    let (scheme, credentials) = call.head.headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let decoded = base64::engine::general_purpose::STANDARD.decode(credentials.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    scheme.eq_ignore_ascii_case("basic").then(|| (user.to_owned(), password.to_owned()))
}

/// How long failures count, in seconds.
const WINDOW_S: u64 = 60;

/// Failures within a window that are answered: of one client id from one address, and of one address.
const OF_CLIENT_MAX: u64 = 10;
const OF_ADDRESS_MAX: u64 = 100;

/// Counters of failures. Names share them by their hash, so that memory is bounded whoever asks; two that share one are
/// held up together, for a minute.
const COUNTERS: usize = 4096;

/// Wrong credentials lately. A secret cannot be guessed; this keeps guessing from costing more than a look here.
pub struct FailedLogins {
    /// The window's number in the upper half, the failures within it in the lower.
    counters: Box<[AtomicU64]>,
    /// Drawn at the start, so that nobody can choose whom to share a counter with.
    hashes: RandomState,
}

impl Default for FailedLogins {
    fn default() -> FailedLogins {
        let counters = std::iter::repeat_with(AtomicU64::default).take(COUNTERS).collect();
        FailedLogins { counters, hashes: RandomState::new() }
    }
}

impl FailedLogins {
    fn of(&self, address: IpAddr, client_id: &str) -> Login<'_> {
        let counter = |hash: u64| &self.counters[hash as usize % COUNTERS];
        Login {
            client: counter(self.hashes.hash_one((address, client_id))),
            address: counter(self.hashes.hash_one(address)),
            window: now_ms() / 1000 / WINDOW_S,
        }
    }
}

/// One attempt's counters.
struct Login<'a> {
    client: &'a AtomicU64,
    address: &'a AtomicU64,
    window: u64,
}

impl Login<'_> {
    fn is_blocked(&self) -> bool {
        let failures = |counter: &AtomicU64| match counter.load(Relaxed) {
            value if value >> 32 == self.window & 0xffff_ffff => value & 0xffff_ffff,
            _ => 0,
        };
        failures(self.client) >= OF_CLIENT_MAX || failures(self.address) >= OF_ADDRESS_MAX
    }

    fn failed(&self) {
        let window = (self.window & 0xffff_ffff) << 32;
        for counter in [self.client, self.address] {
            let count = |value: u64| Some(if value & !0xffff_ffff == window { value + 1 } else { window + 1 });
            let _ = counter.fetch_update(Relaxed, Relaxed, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_block_one_client_of_one_address_then_the_address_until_the_window_ends() {
        let logins = FailedLogins::default();
        let here = [127, 0, 0, 1].into();
        // One window throughout, whatever the clock does meanwhile.
        let of = |address, client: &str, window| Login { window, ..logins.of(address, client) };
        for _ in 0..OF_CLIENT_MAX {
            assert!(!of(here, "app", 5).is_blocked());
            of(here, "app", 5).failed();
        }
        assert!(of(here, "app", 5).is_blocked());
        assert!(!of(here, "app", 6).is_blocked(), "the next window");
        for client in 0..OF_ADDRESS_MAX {
            of(here, &client.to_string(), 5).failed();
        }
        assert!(of(here, "another", 5).is_blocked());
    }
}
