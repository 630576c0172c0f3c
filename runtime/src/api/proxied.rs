//! Requests to components of `wasi:http/proxy`, and their answers: what HTTP says beside the body goes through as it is,
//! but for what is between a client and this server alone.

use std::sync::Arc;

use hyper::header::{
    ALT_SVC, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue, SET_COOKIE, STRICT_TRANSPORT_SECURITY, TE,
    TRAILER,
};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Request, Uri};

use super::Call;
use super::invocations::{COLD_START, INVOCATIONS, Prepared};
use crate::catalog::served::ServedEntity;
use crate::error::{ApiError, ErrorCode};
use crate::sandbox::{GuestRequest, InvocationBody, World};

/// What a guest cannot say, for it would speak for the server and all others on it, or of trailers, which are dropped.
const NOT_FOR_GUESTS: [HeaderName; 7] = [
    SET_COOKIE,
    STRICT_TRANSPORT_SECURITY,
    ALT_SVC,
    HeaderName::from_static("clear-site-data"),
    TRAILER,
    TE,
    COLD_START,
];

/// A request in the form of an entity's world.
pub(super) fn guest_request(
    call: &Call,
    entity: &ServedEntity,
    request: Prepared,
) -> Result<(GuestRequest, InvocationBody), ApiError> {
    let Prepared { path, content_type, headers, body } = request;
    if entity.plan.world == World::Endpoint {
        return Ok((GuestRequest::Endpoint { path, content_type, headers }, body));
    }
    let uri = uri(call, &headers, &path)?;
    let mut headers = Arc::unwrap_or_clone(headers);
    if path != INVOCATIONS
        && let InvocationBody::Full(body) = &body
    {
        // It may have been unpacked, or put together of another.
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        let content_type = HeaderValue::try_from(content_type).ok().filter(|value| !value.is_empty());
        headers.extend(content_type.map(|value| (CONTENT_TYPE, value)));
    }
    let (mut head, ()) = Request::new(()).into_parts();
    (head.method, head.uri, head.version, head.headers) = (call.head.method.clone(), uri, call.head.version, headers);
    Ok((GuestRequest::Http(Box::new(head), call.scheme), body))
}

/// The address as the guest sees it: the caller's host, and of the path what comes after the endpoint.
fn uri(call: &Call, headers: &HeaderMap, path: &str) -> Result<Uri, ApiError> {
    let own = &call.head.uri;
    let host = || headers.get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let authority = own.authority().cloned().or_else(host).unwrap_or_else(|| Authority::from_static("localhost"));
    let above = if call.parameter("entity").is_empty() { 3 } else { 5 };
    let path = match path {
        INVOCATIONS => below(own.path(), above).to_owned(),
        path => format!("/{path}"),
    };
    let query = own.query().map(|query| format!("?{query}")).unwrap_or_default();
    let built = Uri::builder().scheme(call.scheme.name()).authority(authority).path_and_query(path + &query).build();
    built.map_err(|_| ApiError::new(ErrorCode::BadRequest, "The request's path cannot be passed on."))
}

/// A path without its first segments.
fn below(path: &str, segments: usize) -> &str {
    let without_first = |path: &'_ str| path.get(1..).and_then(|rest| rest.find('/')).map(|end| end + 1);
    let mut rest = path;
    for _ in 0..segments {
        match without_first(rest) {
            Some(end) => rest = &rest[end..],
            None => return "/",
        }
    }
    rest
}

/// Takes out of a guest's headers what it cannot say.
pub(super) fn restrict(headers: &mut HeaderMap) {
    for name in NOT_FOR_GUESTS {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_below_an_endpoint_is_left_as_it_is() {
        for (path, segments, rest) in [
            ("/serving-endpoints/e/invocations", 3, "/"),
            ("/serving-endpoints/e/invocations/", 3, "/"),
            ("/serving-endpoints/e/invocations/a%2Fb/c/", 3, "/a%2Fb/c/"),
            ("/serving-endpoints/e/invocations//a", 3, "//a"),
            ("/serving-endpoints/e/served-models/m/invocations", 5, "/"),
            ("/serving-endpoints/e/served-models/m/invocations/x", 5, "/x"),
        ] {
            assert_eq!(below(path, segments), rest, "{path}");
        }
    }
}
