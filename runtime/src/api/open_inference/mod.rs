//! The Open Inference Protocol v2 over REST, with binary tensor data. A model is an endpoint, a version of it is what a
//! served entity serves. Over gRPC it is [`super::grpc`]'s; both give guests the same.

pub(super) mod models;

use bytes::Bytes;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::accounting::INFER;
use super::invocations::{self, Wanted};
use super::routes::{Access, Route, handler};
use super::{Answer, Call, OpenInferenceError, json};
use crate::access::Level;
use crate::error::{ApiError, ErrorCode};
use crate::http::body::ResponseBody;
use crate::http::compression::Packing;

/// Where a body's JSON ends and its tensors begin.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Below it, packing a body costs more than sending it.
const PACKED_BYTES_MIN: usize = 1024;

/// What this server has beyond the protocol's required part, by the names that the protocol gives it.
pub(super) const EXTENSIONS: [&str; 4] = ["binary_tensor_data", "model_configuration", "parameters", "statistics"];

const VIEW: Access = Access::Endpoint(Level::View);

/// Metadata is answered by the guest.
const QUERY: Access = Access::Endpoint(Level::Query);

const INDEX: &str = "/v2/repository/index";

pub(super) const ROUTES: &[Route] = &[
    Route::get("v2.server", "/v2", Access::Anyone, "Open Inference: the server", handler!(server))
        .answers::<InferenceServer>(),
    Route::get("v2.live", "/v2/health/live", Access::Anyone, "Open Inference: alive", handler!(live))
        .answers::<InferenceServerLive>(),
    Route::get("v2.ready", "/v2/health/ready", Access::Anyone, "Open Inference: ready", handler!(ready))
        .answers::<InferenceServerReady>()
        .or::<OpenInferenceError>(&[503]),
    Route::get("v2.model", "/v2/models/{name}", QUERY, "Open Inference: a model's metadata", handler!(model))
        .gives_model_output(),
    Route::get(
        "v2.model_version",
        "/v2/models/{name}/versions/{version}",
        QUERY,
        "Open Inference: a version's metadata",
        handler!(model),
    )
    .gives_model_output(),
    readiness("v2.model_ready", "/v2/models/{name}/ready", "Open Inference: model ready"),
    readiness("v2.model_version_ready", "/v2/models/{name}/versions/{version}/ready", "Open Inference: version ready"),
    Route::get(
        "v2.model_config",
        "/v2/models/{name}/config",
        QUERY,
        "Open Inference: a model's inputs and outputs as a configuration",
        handler!(config),
    )
    .answers::<InferenceModelConfig>(),
    Route::get(
        "v2.model_version_config",
        "/v2/models/{name}/versions/{version}/config",
        QUERY,
        "Open Inference: a version's inputs and outputs as a configuration",
        handler!(config),
    )
    .answers::<InferenceModelConfig>(),
    counts("v2.model_stats", "/v2/models/{name}/stats", VIEW),
    counts("v2.model_version_stats", "/v2/models/{name}/versions/{version}/stats", VIEW),
    counts("v2.stats", "/v2/models/stats", Access::Principal),
    Route::get(
        "v2.index",
        INDEX,
        Access::Principal,
        "Open Inference: the models that the caller may see",
        handler!(index),
    )
    .reads(Method::POST)
    .body::<IndexInput>()
    .answers::<Vec<models::Indexed>>(),
    Route::invoke("invocations.v2_infer", "/v2/models/{name}/infer", "Open Inference: infer", handler!(infer)),
    Route::invoke(
        "invocations.v2_infer_version",
        "/v2/models/{name}/versions/{version}/infer",
        "Open Inference: infer with a version",
        handler!(infer),
    ),
];

const fn readiness(name: &'static str, path: &'static str, about: &'static str) -> Route {
    let route = Route::get(name, path, VIEW, about, handler!(model_ready));
    route.answers::<InferenceModelReady>().or::<InferenceModelReady>(&[503])
}

const fn counts(name: &'static str, path: &'static str, access: Access) -> Route {
    let about = "Open Inference: how often a model was asked, and how long it took";
    Route::get(name, path, access, about, handler!(statistics)).answers::<InferenceStatistics>()
}

#[derive(Serialize, JsonSchema)]
struct InferenceServer {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; 4],
}

async fn server(_call: &Call) -> Result<Answer, ApiError> {
    json(&InferenceServer { name: "tessera", version: env!("CARGO_PKG_VERSION"), extensions: EXTENSIONS })
}

#[derive(Serialize, JsonSchema)]
struct InferenceServerLive {
    live: bool,
}

async fn live(_call: &Call) -> Result<Answer, ApiError> {
    json(&InferenceServerLive { live: true })
}

#[derive(Serialize, JsonSchema)]
struct InferenceServerReady {
    ready: bool,
}

async fn ready(call: &Call) -> Result<Answer, ApiError> {
    super::discovery::check_ready(call)?;
    json(&InferenceServerReady { ready: true })
}

async fn model(call: &Call) -> Result<Answer, ApiError> {
    invocations::ask(call, call.parameter("name"), wanted(call.parameter("version")), "v2").await
}

#[derive(Serialize, JsonSchema)]
struct InferenceModelReady {
    name: String,
    ready: bool,
}

async fn model_ready(call: &Call) -> Result<Answer, ApiError> {
    let name = call.parameter("name");
    let ready = models::ready(call, name, call.parameter("version")).await?;
    let mut answer = json(&InferenceModelReady { name: name.to_owned(), ready })?;
    if !ready {
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(answer)
}

/// What a model takes and gives, as Triton's clients read it.
#[derive(Serialize, JsonSchema)]
struct InferenceModelConfig {
    name: String,
    platform: String,
    /// Always 0: the first axis is among the dims.
    max_batch_size: u64,
    input: Vec<ConfiguredTensor>,
    output: Vec<ConfiguredTensor>,
}

#[derive(Serialize, JsonSchema)]
struct ConfiguredTensor {
    name: String,
    /// Like `TYPE_FP32`.
    data_type: String,
    /// -1 for an axis of any size.
    dims: Vec<i64>,
}

impl From<models::TensorMetadata> for ConfiguredTensor {
    fn from(tensor: models::TensorMetadata) -> ConfiguredTensor {
        let data_type = format!("TYPE_{}", models::config_datatype(&tensor.datatype));
        ConfiguredTensor { name: tensor.name, data_type, dims: tensor.shape }
    }
}

async fn config(call: &Call) -> Result<Answer, ApiError> {
    let metadata = models::metadata(call, call.parameter("name"), call.parameter("version")).await?;
    json(&InferenceModelConfig {
        name: metadata.name,
        platform: metadata.platform,
        max_batch_size: 0,
        input: metadata.inputs.into_iter().map(Into::into).collect(),
        output: metadata.outputs.into_iter().map(Into::into).collect(),
    })
}

#[derive(Serialize, JsonSchema)]
struct InferenceStatistics {
    model_stats: Vec<models::Statistics>,
}

async fn statistics(call: &Call) -> Result<Answer, ApiError> {
    let model_stats = models::statistics(call, call.parameter("name"), call.parameter("version")).await?;
    json(&InferenceStatistics { model_stats })
}

#[derive(Deserialize, JsonSchema)]
struct IndexInput {
    /// Only those that serve.
    #[serde(default)]
    ready: bool,
}

async fn index(call: &mut Call) -> Result<Answer, ApiError> {
    let (_, _, asked) = call.json::<IndexInput>().await?;
    json(&models::index(call, asked.ready).await?)
}

async fn infer(call: &mut Call) -> Result<Answer, ApiError> {
    let endpoint = call.endpoint().await?;
    let entity = invocations::choose(&endpoint, wanted(call.parameter("version")))?;
    let headers = &call.head.headers;
    let content_type = match text(headers, &JSON_LENGTH) {
        "" => text(headers, &CONTENT_TYPE).to_owned(),
        length if length.bytes().all(|byte| byte.is_ascii_digit()) => binary_content_type(length),
        length => {
            let message = format!("Inference-Header-Content-Length is '{length}'; it must be a number of bytes.");
            return Err(ApiError::new(ErrorCode::BadRequest, message));
        }
    };
    let packing = Packing::accepted(text(headers, &ACCEPT_ENCODING));
    let answer = invocations::invoke_entity(call, endpoint, entity, INFER, content_type).await?;
    Ok(packed(described(answer), packing).await)
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> &'h str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Which entity serves a version; whichever where none is named.
pub(super) fn wanted(version: &str) -> Wanted<'_> {
    match version {
        "" => Wanted::Any,
        version => Wanted::Version(version),
    }
}

/// Tells a guest where the JSON ends. In the content type, which also a response of a guest has.
pub(super) fn binary_content_type(json_bytes: impl std::fmt::Display) -> String {
    format!("application/octet-stream; {JSON_LENGTH}={json_bytes}")
}

/// Where a guest's response says that its JSON ends; none where it is JSON alone.
pub(super) fn json_length(content_type: &str) -> Option<usize> {
    let parameters = content_type.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let mut lengths = parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case(JSON_LENGTH.as_str()));
    lengths.next()?.1.trim().parse().ok()
}

/// A guest's response as clients of the protocol know it.
fn described(mut answer: Answer) -> Answer {
    let headers = answer.headers_mut();
    if let Some(length) = json_length(text(headers, &CONTENT_TYPE)) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(JSON_LENGTH, HeaderValue::from(length));
    }
    answer
}

/// A response packed as the client asked, where that is worth it.
async fn packed(mut answer: Answer, packing: Option<Packing>) -> Answer {
    let (Some(packing), ResponseBody::Full(Some(body))) = (packing, answer.body()) else { return answer };
    if body.len() < PACKED_BYTES_MIN || answer.headers().contains_key(CONTENT_ENCODING) {
        return answer;
    }
    let packed = packing.pack(body).await;
    answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(packing.name()));
    *answer.body_mut() = ResponseBody::from(Bytes::from(packed));
    answer
}

/// A guest's response that is one piece.
pub(super) struct Whole {
    pub(super) status: u16,
    pub(super) content_type: String,
    pub(super) body: Bytes,
}

impl Whole {
    /// # Errors
    /// 501 when the guest streams it.
    pub(super) fn of(answer: Answer) -> Result<Whole, ApiError> {
        let (status, content_type) = (answer.status().as_u16(), text(answer.headers(), &CONTENT_TYPE).to_owned());
        match answer.into_body() {
            ResponseBody::Full(body) => Ok(Whole { status, content_type, body: body.unwrap_or_default() }),
            _ => {
                let message = "The model's component streams its answer, which this protocol has no form for.";
                Err(ApiError::new(ErrorCode::NotImplemented, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::respond;

    #[test]
    fn guests_and_clients_are_told_where_the_json_ends_in_their_own_ways() {
        let answer = described(respond(200, &binary_content_type(12), "{}"));
        assert_eq!(text(answer.headers(), &CONTENT_TYPE), "application/octet-stream");
        assert_eq!(text(answer.headers(), &JSON_LENGTH), "12");
        let answer = described(respond(200, "application/json", "{}"));
        assert!(!answer.headers().contains_key(JSON_LENGTH));
        assert_eq!(json_length("application/octet-stream; inference-header-content-length=x"), None);
    }

    #[tokio::test]
    async fn only_what_is_worth_it_is_packed() {
        let pack = async |bytes: usize, packing| {
            let answer = packed(respond(200, "application/json", vec![b' '; bytes]), packing).await;
            (text(answer.headers(), &CONTENT_ENCODING).to_owned(), Whole::of(answer).unwrap().body.len())
        };
        assert_eq!(pack(1023, Some(Packing::Gzip)).await, (String::new(), 1023));
        assert_eq!(pack(5000, None).await, (String::new(), 5000));
        let (encoding, bytes) = pack(5000, Some(Packing::Deflate)).await;
        assert!(encoding == "deflate" && bytes < 100, "{encoding} {bytes}");
    }
}
