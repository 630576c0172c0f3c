//! Requests to other hosts, by `wasi:http/outgoing-handler`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wasip2::http::outgoing_handler::handle;
use wasip2::http::types::{
    ErrorCode, FutureIncomingResponse, Method, OutgoingBody, OutgoingRequest, RequestOptions, Scheme,
};

use crate::{fields, parameter, read_all};

/// Fetches an address, `POST`s `body` of the query where there is one; answers status, headers and body, or the error.
pub(crate) fn one(address: &str, query: &str) -> Value {
    let future = match begin(address, query) {
        Ok(future) => future,
        Err(code) => return failed(&code),
    };
    match answer(&future) {
        Ok(answer) => answer,
        Err(code) => failed(&code),
    }
}

/// As many requests at once; answers how many of them have failed with which error, before any answer is read.
pub(crate) fn many(address: &str, count: usize) -> Value {
    let begun: Vec<_> = (0..count).map(|_| begin(address, "")).collect();
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let mut responses = Vec::new();
    for future in begun {
        let outcome = match future {
            Err(code) => format!("{code:?}"),
            Ok(future) => {
                future.subscribe().block();
                match future.get() {
                    Some(Ok(Ok(response))) => {
                        // Held, so that its connection stays open.
                        responses.push(response);
                        "ok".to_owned()
                    }
                    Some(Ok(Err(code))) => format!("{code:?}"),
                    other => format!("{other:?}"),
                }
            }
        };
        *outcomes.entry(outcome).or_default() += 1;
    }
    json!(outcomes)
}

fn begin(address: &str, query: &str) -> Result<FutureIncomingResponse, ErrorCode> {
    let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let sent = parameter(query, "body");
    let headers = fields(&[("authorization", b"Bearer for the upstream")]);
    if let Some(sent) = sent {
        let _ = headers.append("content-length", sent.len().to_string().as_bytes());
    }
    let request = OutgoingRequest::new(headers);
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.to_owned()),
    };
    let set = request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(path)))
        .and_then(|()| request.set_method(if sent.is_some() { &Method::Post } else { &Method::Get }));
    set.map_err(|()| ErrorCode::HttpRequestUriInvalid)?;
    let body = request.body().map_err(|()| ErrorCode::HttpProtocolError)?;
    let options = RequestOptions::new();
    if let Some(ms) = parameter(query, "patience_ms").and_then(|ms| ms.parse::<u64>().ok()) {
        let _ = options.set_first_byte_timeout(Some(ms * 1_000_000));
    }
    let future = handle(request, Some(options))?;
    if let (Some(sent), Ok(stream)) = (sent, body.write()) {
        let _ = stream.blocking_write_and_flush(sent.as_bytes());
    }
    OutgoingBody::finish(body, None)?;
    Ok(future)
}

fn answer(future: &FutureIncomingResponse) -> Result<Value, ErrorCode> {
    future.subscribe().block();
    let response = match future.get() {
        Some(Ok(outcome)) => outcome?,
        _ => return Err(ErrorCode::HttpProtocolError),
    };
    let headers: BTreeMap<String, String> = response
        .headers()
        .entries()
        .into_iter()
        .map(|(name, value)| (name, String::from_utf8_lossy(&value).into_owned()))
        .collect();
    let body = response.consume().map_err(|()| ErrorCode::HttpProtocolError)?;
    let body = read_all(&body).ok_or(ErrorCode::HttpResponseIncomplete)?;
    Ok(json!({ "status": response.status(), "headers": headers, "body": String::from_utf8_lossy(&body) }))
}

fn failed(code: &ErrorCode) -> Value {
    json!({ "error": format!("{code:?}").trim_start_matches("ErrorCode::") })
}
