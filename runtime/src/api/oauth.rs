//! OAuth 2.0 (RFC 6749): access tokens for programs, and where clients ask for them. Errors are in OAuth's own form, which
//! the Databricks SDK reads here.
//!
//! Grants: `client_credentials` with a service principal's application id and secret; `jwt-bearer` and `token-exchange`
//! with a token that is valid here, for one that lives an hour and ends with it.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use base64::Engine as _;
use hyper::Method;
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde_json::json;

use super::routes::{Access, Route, handler};
use super::{Answer, CONTROL_BODY_BYTES_MAX, Call, json, respond};
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
    ),
    Route::get(
        "oauth.openid_configuration",
        "/oidc/.well-known/openid-configuration",
        Access::Anyone,
        "The same under the name of OpenID Connect",
        handler!(authorization_server),
    ),
    Route::change(
        "oauth.token",
        Method::POST,
        "/oidc/v1/token",
        Access::Anyone,
        "Get an access token",
        handler!(token),
    ),
];

const CLIENT_CREDENTIALS: &str = "client_credentials";
const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

async fn authorization_server(call: &Call) -> Result<Answer, ApiError> {
    let issuer = format!("{}/oidc", call.origin());
    json(&json!({
        "issuer": issuer,
        // Clients read it although nobody can sign in there: people have tokens.
        "authorization_endpoint": format!("{issuer}/v1/authorize"),
        "token_endpoint": format!("{issuer}/v1/token"),
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "grant_types_supported": [CLIENT_CREDENTIALS, JWT_BEARER, TOKEN_EXCHANGE],
        "response_types_supported": [],
        "scopes_supported": [SCOPE],
    }))
}

/// The only scope: what a token may do is what its principal may do.
const SCOPE: &str = "all-apis";

/// Why there is no token: code, status and text of RFC 6749, section 5.2.
struct Refused {
    status: u16,
    error: &'static str,
    description: String,
}

fn bad_request(error: &'static str, description: impl Into<String>) -> Refused {
    Refused { status: 400, error, description: description.into() }
}

async fn token(call: &mut Call) -> Result<Answer, ApiError> {
    let limits = BodyLimits { bytes_max: CONTROL_BODY_BYTES_MAX, ..call.app.body_limits };
    let body = call.read_body(limits, |_| Ok(())).await?;
    let form = Form::read(call, &body);
    let login = call.app.failed_logins.of(call.peer.ip(), &form.client_id);
    let outcome = if login.is_blocked() { Err(too_many()) } else { grant(call, &form) };
    let mut answer = match outcome {
        Ok(token) => json(&json!({
            "access_token": token.value,
            "token_type": "Bearer",
            "expires_in": token.expires_in_s,
            "scope": SCOPE,
        }))?,
        Err(refused) => {
            if matches!(refused.error, INVALID_CLIENT | INVALID_GRANT) {
                login.failed();
                call.app.metrics.count_refusal("unauthenticated");
            }
            let body = json!({ "error": refused.error, "error_description": refused.description }).to_string();
            let mut answer = respond(refused.status, "application/json", body);
            match refused.status {
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
    Refused { status: 429, error: "slow_down", description }
}

fn grant(call: &Call, form: &Form) -> Result<AccessToken, Refused> {
    let directory = &call.app.directory;
    if let Some(name) = form.repeated() {
        return Err(bad_request("invalid_request", format!("{name} is there twice")));
    }
    if let Some(scope) =
        form.get("scope").iter().flat_map(|scopes| scopes.split_whitespace()).find(|scope| *scope != SCOPE)
    {
        return Err(bad_request("invalid_scope", format!("scope '{scope}' is not supported: the only one is {SCOPE}")));
    }
    let exchange = |field: &str| {
        let token = form.get(field).ok_or_else(|| bad_request("invalid_request", format!("{field} is missing")))?;
        let wrong = || bad_request(INVALID_GRANT, format!("{field} is not a valid token"));
        directory.access_token_for(token).ok_or_else(wrong)
    };
    match form.get("grant_type") {
        Some(CLIENT_CREDENTIALS) => {
            let wrong = || Refused {
                status: 401,
                error: INVALID_CLIENT,
                description: "client_id or client_secret is not valid".to_owned(),
            };
            directory.access_token_of_client(&form.client_id, &form.client_secret).ok_or_else(wrong)
        }
        Some(JWT_BEARER) => exchange("assertion"),
        Some(TOKEN_EXCHANGE) => exchange("subject_token"),
        Some(other) => Err(bad_request(
            "unsupported_grant_type",
            format!("grant_type '{other}' is not one of {CLIENT_CREDENTIALS}, {JWT_BEARER} and {TOKEN_EXCHANGE}"),
        )),
        None => Err(bad_request("invalid_request", "grant_type is missing: send a form with it")),
    }
}

/// What a client sent: a form, and credentials in it or in a header.
struct Form {
    fields: Vec<(String, String)>,
    client_id: String,
    client_secret: String,
}

impl Form {
    fn read(call: &Call, body: &[u8]) -> Form {
        let fields: Vec<(String, String)> = form_urlencoded::parse(body).into_owned().collect();
        let mut form = Form { fields, client_id: String::new(), client_secret: String::new() };
        let sent = |name: &str| form.get(name).unwrap_or_default().to_owned();
        let of_form = (sent("client_id"), sent("client_secret"));
        (form.client_id, form.client_secret) = basic(call).unwrap_or(of_form);
        form
    }

    /// A field that is there more than once: RFC 6749 forbids that, for two readers could take different ones.
    fn repeated(&self) -> Option<&str> {
        let mut names: Vec<&str> = self.fields.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
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
