//! The golden request: a package's own example must work before the package serves.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Uri};
use serde_json::Value;

use super::build_log::BuildLog;
use super::manifest::Golden;
use super::{DeployError, ModelHost};
use crate::catalog::served::{Ready, ServedEntity};
use crate::http::Scheme;
use crate::sandbox::{
    Answer, GuestRequest, Invocation, InvocationBody, InvokeError, RequestLog, StreamedResponse, Tail, World,
};

/// Text of a value that a message shows.
const VALUE_BYTES_MAX: usize = 200;

/// Sends the golden request through the sandbox and compares the answer. What the guest writes goes to the build log.
///
/// # Errors
/// What came instead of what was expected.
pub async fn check(
    host: &Arc<ModelHost>,
    entity: &ServedEntity,
    golden: &Golden,
    ready: Ready,
    build_log: &mut BuildLog,
) -> Result<(), DeployError> {
    let dir = &entity.plan.dir;
    let read = |name: &str| fs::read(dir.join(name)).map_err(|error| DeployError::host("read a golden file", &error));
    let request = read(&golden.request)?;
    let expected = golden.response.as_deref().map(read).transpose()?;
    let body = match entity.plan.world {
        World::Endpoint => InvocationBody::of(request, entity.plan.request_body),
        World::Proxy => InvocationBody::Full(request),
    };
    let failed = |what: String| DeployError::Model(format!("the golden request '{}' failed: {what}", golden.request));
    let answer = invoke(host, entity, ready, head(entity.plan.world, golden), body, build_log).await;
    let (status, body) = match answer {
        Err(error @ InvokeError::Init { .. }) => return Err(DeployError::Model(error.to_string())),
        Ok(Answer::Full { status, body, .. }) => (status, body),
        Ok(Answer::Streamed { response, tail }) => {
            (response.status, whole(response, tail).await.map_err(|error| failed(error.to_string()))?)
        }
        Err(error) => return Err(failed(error.to_string())),
    };
    let text = String::from_utf8_lossy(&body);
    if status >= 400 {
        return Err(failed(format!("status {status}: {}", &text[..text.floor_char_boundary(500)])));
    }
    let Some(expected) = expected else { return Ok(()) };
    let parse = |what: &str, bytes: &[u8]| {
        serde_json::from_slice::<Value>(bytes).map_err(|error| failed(format!("{what} is not JSON: {error}")))
    };
    differs(&parse("the expected response", &expected)?, &parse("the response", &body)?, golden.tolerance, "$")
        .map_or(Ok(()), |difference| Err(failed(difference)))
}

/// Runs the `init` that comes before every request, and nothing after it.
///
/// # Errors
/// Why it fails.
pub async fn check_init(
    host: &Arc<ModelHost>,
    entity: &ServedEntity,
    ready: Ready,
    build_log: &mut BuildLog,
) -> Result<(), DeployError> {
    let body = InvocationBody::Full(Vec::new());
    let answer = invoke(host, entity, ready, GuestRequest::Nothing, body, build_log).await;
    answer.map(drop).map_err(|error| DeployError::Model(error.to_string()))
}

async fn invoke(
    host: &Arc<ModelHost>,
    entity: &ServedEntity,
    ready: Ready,
    request: GuestRequest,
    body: InvocationBody,
    build_log: &mut BuildLog,
) -> Result<Answer, InvokeError> {
    let log = RequestLog::new(entity.plan.limits.log_bytes);
    let invocation = Invocation {
        id: "golden".to_owned(),
        package: Arc::clone(&entity.plan.guest),
        init_assets: entity.plan.init_assets.clone(),
        limits: entity.plan.limits.clone(),
        deadline: Instant::now() + Duration::from_millis(entity.plan.limits.wall_ms),
        graphs: ready.graphs,
        executor: Arc::clone(&host.executor),
        tenant: entity.plan.tenant,
        grant: entity.plan.grant.clone(),
        request,
        body,
        log: log.clone(),
        transcript: None,
    };
    let (answer, _) = host.sandbox.invoke(&ready.component, invocation).await;
    build_log.guest(&log.take());
    answer
}

/// The request as the guest gets it: a `POST` to the endpoint itself.
fn head(world: World, golden: &Golden) -> GuestRequest {
    let content_type = golden.content_type.clone();
    if world == World::Endpoint {
        return GuestRequest::Endpoint { path: "invocations".to_owned(), content_type, headers: Arc::default() };
    }
    let (mut head, ()) = Request::new(()).into_parts();
    (head.method, head.uri) = (Method::POST, Uri::from_static("http://localhost/"));
    head.headers.extend(HeaderValue::try_from(content_type).map(|value| (CONTENT_TYPE, value)));
    GuestRequest::Http(Box::new(head), Scheme::Http)
}

/// A streamed answer to its end, which is that of its guest.
async fn whole(response: StreamedResponse, tail: Tail) -> Result<Vec<u8>, InvokeError> {
    let mut chunks = response.chunks;
    let reading = async {
        let mut body = Vec::new();
        // As many bytes as the limit of answers allows.
        while let Some(chunk) = chunks.recv().await {
            body.extend_from_slice(&chunk);
        }
        body
    };
    let (body, finished) = match tail {
        Tail::Running(tail) => tokio::join!(reading, tail),
        Tail::Ended(finished) => (reading.await, *finished),
    };
    finished.result.map(|_| body)
}

/// The first place where two values differ, numbers by more than the tolerance (relative to the larger, above 1).
fn differs(expected: &Value, got: &Value, tolerance: f64, place: &str) -> Option<String> {
    let short = |value: &Value| {
        let text = value.to_string();
        text[..text.floor_char_boundary(VALUE_BYTES_MAX)].to_owned()
    };
    let different = || Some(format!("at {place} expected {}, got {}", short(expected), short(got)));
    match (expected, got) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap_or(f64::NAN), b.as_f64().unwrap_or(f64::NAN));
            let close = (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1.0);
            if close { None } else { different() }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .find_map(|(index, (a, b))| differs(a, b, tolerance, &format!("{place}[{index}]"))),
        (Value::Object(a), Value::Object(b)) if a.len() == b.len() => a.iter().find_map(|(key, a)| match b.get(key) {
            Some(b) => differs(a, b, tolerance, &format!("{place}.{key}")),
            None => different(),
        }),
        _ if expected == got => None,
        _ => different(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_may_differ_a_little_and_structure_not() {
        let expected = json!({"a": [1.0, 2.0], "b": "x"});
        assert!(differs(&expected, &json!({"a": [1.000001, 2.0], "b": "x"}), 1e-5, "$").is_none());
        let place = differs(&expected, &json!({"a": [1.0, 2.1], "b": "x"}), 1e-5, "$").unwrap();
        assert!(place.contains("$.a[1]"), "{place}");
        assert!(differs(&expected, &json!({"a": [1.0], "b": "x"}), 1e-5, "$").is_some());
        assert!(differs(&json!(1), &json!(1.0), 0.0, "$").is_none());
    }
}
