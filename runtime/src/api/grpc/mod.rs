//! The Open Inference Protocol over gRPC, and gRPC's own question for a server's health: on the same port as all else,
//! with the same tokens, limits and accounts. [`frame`] is gRPC's form on HTTP/2, [`messages`] what is said in it,
//! [`convert`] what guests make of it, [`stream`] many requests on one stream.

mod convert;
mod frame;
mod messages;
mod stream;

use std::sync::Arc;
use std::time::Instant;

use hyper::Version;
use prost::Message;

use self::frame::{Framed, answer};
pub(super) use self::frame::{failed, is_asked};
use self::messages::*;
use super::accounting::INFER;
use super::discovery::check_ready;
use super::open_inference::models::{self, Duration, TensorMetadata as Tensor};
use super::open_inference::{EXTENSIONS, Whole, binary_content_type, wanted};
use super::routes::{Access, Route, handler};
use super::{Answer, CONTROL_BODY_BYTES_MAX, Call, invocations};
use crate::access::Level;
use crate::admission::BodyRoom;
use crate::error::{ApiError, ErrorCode};
use crate::http::body::BodyLimits;
use crate::sandbox::InvocationBody;

const VIEW: Access = Access::Endpoint(Level::View);
const QUERY: Access = Access::Endpoint(Level::Query);

pub(super) const ROUTES: &[Route] = &[
    Route::grpc("grpc.health", "/grpc.health.v1.Health/Check", Access::Anyone, handler!(health)),
    Route::grpc("grpc.server_live", "/inference.GRPCInferenceService/ServerLive", Access::Anyone, handler!(live)),
    Route::grpc("grpc.server_ready", "/inference.GRPCInferenceService/ServerReady", Access::Anyone, handler!(ready)),
    Route::grpc(
        "grpc.server_metadata",
        "/inference.GRPCInferenceService/ServerMetadata",
        Access::Anyone,
        handler!(server_metadata),
    ),
    Route::grpc("grpc.model_ready", "/inference.GRPCInferenceService/ModelReady", VIEW, handler!(model_ready)),
    Route::grpc(
        "grpc.model_metadata",
        "/inference.GRPCInferenceService/ModelMetadata",
        QUERY,
        handler!(model_metadata),
    ),
    Route::grpc("grpc.model_config", "/inference.GRPCInferenceService/ModelConfig", QUERY, handler!(model_config)),
    Route::grpc("grpc.model_statistics", "/inference.GRPCInferenceService/ModelStatistics", VIEW, handler!(statistics)),
    Route::grpc(
        "grpc.repository_index",
        "/inference.GRPCInferenceService/RepositoryIndex",
        Access::Principal,
        handler!(index),
    ),
    Route::grpc("grpc.model_infer", "/inference.GRPCInferenceService/ModelInfer", QUERY, handler!(infer)),
    Route::grpc(
        "grpc.model_stream_infer",
        "/inference.GRPCInferenceService/ModelStreamInfer",
        QUERY,
        handler!(stream::infer),
    ),
];

/// What a load balancer asks for; services that this server does not have, it does not know.
async fn health(call: &mut Call) -> Result<Answer, ApiError> {
    let asked: HealthCheckRequest = message(call).await?;
    if !matches!(asked.service.as_str(), "" | "inference.GRPCInferenceService" | "grpc.health.v1.Health") {
        return Err(ApiError::missing(format!("There is no service '{}'.", asked.service)));
    }
    let status = if check_ready(call).is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
    Ok(answer(&HealthCheckResponse { status: status.into() }))
}

async fn live(call: &mut Call) -> Result<Answer, ApiError> {
    message::<Empty>(call).await?;
    Ok(answer(&ServerLiveResponse { live: true }))
}

async fn ready(call: &mut Call) -> Result<Answer, ApiError> {
    message::<Empty>(call).await?;
    Ok(answer(&ReadyResponse { ready: check_ready(call).is_ok() }))
}

async fn server_metadata(call: &mut Call) -> Result<Answer, ApiError> {
    message::<Empty>(call).await?;
    Ok(answer(&ServerMetadataResponse {
        name: "tessera".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).to_vec(),
    }))
}

async fn model_ready(call: &mut Call) -> Result<Answer, ApiError> {
    let asked: ModelRequest = message(call).await?;
    Ok(answer(&ReadyResponse { ready: models::ready(call, &asked.name, &asked.version).await? }))
}

async fn model_metadata(call: &mut Call) -> Result<Answer, ApiError> {
    let asked: ModelRequest = message(call).await?;
    let metadata = models::metadata(call, &asked.name, &asked.version).await?;
    let tensor = |Tensor { name, datatype, shape }| TensorMetadata { name, datatype, shape };
    Ok(answer(&ModelMetadataResponse {
        name: metadata.name,
        versions: metadata.versions,
        platform: metadata.platform,
        inputs: metadata.inputs.into_iter().map(tensor).collect(),
        outputs: metadata.outputs.into_iter().map(tensor).collect(),
    }))
}

async fn model_config(call: &mut Call) -> Result<Answer, ApiError> {
    let asked: ModelRequest = message(call).await?;
    let metadata = models::metadata(call, &asked.name, &asked.version).await?;
    let input = |Tensor { name, datatype, shape }| ModelInput { name, data_type: data_type(&datatype), dims: shape };
    let output = |Tensor { name, datatype, shape }| ModelOutput { name, data_type: data_type(&datatype), dims: shape };
    let config = ModelConfig {
        name: metadata.name,
        platform: metadata.platform,
        // The first axis is among the dims.
        max_batch_size: 0,
        input: metadata.inputs.into_iter().map(input).collect(),
        output: metadata.outputs.into_iter().map(output).collect(),
    };
    Ok(answer(&ModelConfigResponse { config: Some(config) }))
}

fn data_type(datatype: &str) -> i32 {
    let data_type = match models::config_datatype(datatype) {
        "BOOL" => DataType::Bool,
        "UINT8" => DataType::Uint8,
        "UINT16" => DataType::Uint16,
        "UINT32" => DataType::Uint32,
        "UINT64" => DataType::Uint64,
        "INT8" => DataType::Int8,
        "INT16" => DataType::Int16,
        "INT32" => DataType::Int32,
        "INT64" => DataType::Int64,
        "FP16" => DataType::Fp16,
        "FP32" => DataType::Fp32,
        "FP64" => DataType::Fp64,
        "STRING" => DataType::String,
        "BF16" => DataType::Bf16,
        _ => DataType::Invalid,
    };
    data_type.into()
}

async fn statistics(call: &mut Call) -> Result<Answer, ApiError> {
    let asked: ModelRequest = message(call).await?;
    let duration = |Duration { count, ns }| Some(StatisticDuration { count, ns });
    let all = models::statistics(call, &asked.name, &asked.version).await?.into_iter().map(|counted| ModelStatistics {
        name: counted.name,
        version: counted.version,
        inference_count: counted.inference_count,
        execution_count: counted.execution_count,
        inference_stats: Some(InferStatistics {
            success: duration(counted.inference_stats.success),
            fail: duration(counted.inference_stats.fail),
            queue: duration(counted.inference_stats.queue),
            compute_infer: duration(counted.inference_stats.compute_infer),
        }),
    });
    Ok(answer(&ModelStatisticsResponse { model_stats: all.collect() }))
}

async fn index(call: &mut Call) -> Result<Answer, ApiError> {
    let asked: RepositoryIndexRequest = message(call).await?;
    let models = models::index(call, asked.ready).await?.into_iter().map(|indexed| ModelIndex {
        name: indexed.name,
        version: indexed.version,
        state: indexed.state.to_owned(),
        reason: indexed.reason,
    });
    Ok(answer(&RepositoryIndexResponse { models: models.collect() }))
}

async fn infer(call: &mut Call) -> Result<Answer, ApiError> {
    begin(call)?;
    let app = Arc::clone(&call.app);
    let mut room = app.admission.body_room(call.principal()?.workspace);
    let body = call.read_body(app.body_limits, |bytes| room.grow(bytes)).await?;
    let framed = Framed::only(body, app.body_limits.bytes_max)?;
    Ok(answer(&infer_once(call, framed, &mut room).await?))
}

/// Answers one request for inference, on its own or on a stream. `room` grows by what is made of the message.
async fn infer_once(call: &Call, framed: Framed, room: &mut BodyRoom<'_>) -> Result<ModelInferResponse, ApiError> {
    if call.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
        return Err(ApiError::new(ErrorCode::DeadlineExceeded, "The time of grpc-timeout was over before it began."));
    }
    let bytes_max = call.app.body_limits.bytes_max;
    let content = framed.unpack(encoding(call), bytes_max, |bytes| room.grow(bytes)).await?;
    room.grow(frame::read_bytes(&content)?)?;
    let request: ModelInferRequest = frame::read(content)?;
    let endpoint = call.endpoint_named(&request.model_name).await?;
    let entity = invocations::choose(&endpoint, wanted(&request.model_version))?;
    let guest = convert::to_guest(&request)?;
    drop(request);
    room.grow(guest.body.len() as u64)?;
    let request = invocations::Prepared {
        path: INFER.to_owned(),
        content_type: binary_content_type(guest.json_bytes),
        headers: Arc::new(call.head.headers.clone()),
        body: InvocationBody::of(guest.body, entity.plan.request_body),
    };
    let answer = Whole::of(invocations::run(call, &endpoint, &entity, request).await?)?;
    match answer.status {
        200 => convert::from_guest(&answer.content_type, &answer.body),
        status => Err(ApiError::new(ErrorCode::BadRequest, convert::error_text(&answer.body)).with_status(status)),
    }
}

/// The message of a small request.
async fn message<M: Message + Default>(call: &mut Call) -> Result<M, ApiError> {
    begin(call)?;
    let limits = BodyLimits { bytes_max: CONTROL_BODY_BYTES_MAX, ..call.app.body_limits };
    // Small, so it is not charged to anybody.
    let body = call.read_body(limits, |_| Ok(())).await?;
    frame::read(Framed::only(body, limits.bytes_max)?.unpack(encoding(call), limits.bytes_max, |_| Ok(())).await?)
}

/// Checks that gRPC is spoken, and notes until when the caller waits.
fn begin(call: &mut Call) -> Result<(), ApiError> {
    if call.head.version != Version::HTTP_2 || !is_asked(&call.head.headers) {
        let message = "This is a method of gRPC: call it over HTTP/2 with the content type application/grpc.";
        return Err(ApiError::new(ErrorCode::BadRequest, message).with_status(415));
    }
    if let Some(timeout) = call.head.headers.get("grpc-timeout") {
        let timeout = frame::timeout(timeout.to_str().unwrap_or_default())?;
        call.deadline = call.started.checked_add(timeout);
    }
    Ok(())
}

/// How compressed messages of a request are compressed.
fn encoding(call: &Call) -> &str {
    call.head.headers.get("grpc-encoding").and_then(|value| value.to_str().ok()).unwrap_or_default()
}
