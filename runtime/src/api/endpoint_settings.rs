//! What can be changed of an endpoint without a deploy: labels, limits, gateway, notifications, telemetry, description.

use std::sync::Arc;

use hyper::Method;

use super::endpoints::{managed, with_not_enforced};
use super::routes::{Access, Route, handler};
use super::wire::endpoint::ServingEndpoint;
use super::wire::gateway::{AiGatewayConfig, LegacyRateLimits, RateLimits};
use super::wire::settings::{
    EndpointTags, PatchBudgetPolicy, PatchDescription, PatchTags, PatchTelemetry, UpdateNotifications,
    UpdatedNotifications,
};
use super::{Answer, Call, json};
use crate::access::Level;
use crate::catalog::gateway_config::GatewayConfig;
use crate::catalog::{Endpoint, EndpointRecord, EndpointSettings};
use crate::error::ApiError;

const TAGS: &str = "/api/2.0/serving-endpoints/{name}/tags";
const RATE_LIMITS: &str = "/api/2.0/serving-endpoints/{name}/rate-limits";
const AI_GATEWAY: &str = "/api/2.0/serving-endpoints/{name}/ai-gateway";
const NOTIFICATIONS: &str = "/api/2.0/serving-endpoints/{name}/notifications";
const TELEMETRY: &str = "/api/2.0/serving-endpoints/{name}/telemetry-config";
const DESCRIPTION: &str = "/api/2.0/serving-endpoints/{name}/description";
const BUDGET_POLICY: &str = "/api/2.0/serving-endpoints/{name}/budget-policy";

const MANAGE: Access = Access::Endpoint(Level::Manage);

pub(super) const ROUTES: &[Route] = &[
    Route::change("endpoints.patch_tags", Method::PATCH, TAGS, MANAGE, "Add and remove labels", handler!(patch_tags))
        .answers::<EndpointTags>()
        .body::<PatchTags>(),
    Route::change(
        "endpoints.put_rate_limits",
        Method::PUT,
        RATE_LIMITS,
        MANAGE,
        "Replace the limits of the older form",
        handler!(put_rate_limits),
    )
    .answers::<RateLimits>()
    .body::<LegacyRateLimits>(),
    Route::change(
        "endpoints.put_ai_gateway",
        Method::PUT,
        AI_GATEWAY,
        MANAGE,
        "Replace what stands before the models",
        handler!(put_ai_gateway),
    )
    .answers::<AiGatewayConfig>()
    .body::<AiGatewayConfig>(),
    Route::change(
        "endpoints.update_notifications",
        Method::PATCH,
        NOTIFICATIONS,
        MANAGE,
        "Keep mail addresses; nothing is sent to them",
        handler!(update_notifications),
    )
    .answers::<UpdatedNotifications>()
    .body::<UpdateNotifications>(),
    Route::change(
        "endpoints.patch_telemetry",
        Method::PATCH,
        TELEMETRY,
        MANAGE,
        "Keep where telemetry shall go; nothing goes there",
        handler!(patch_telemetry),
    )
    .answers::<ServingEndpoint>()
    .body::<PatchTelemetry>(),
    Route::change(
        "endpoints.patch_description",
        Method::PATCH,
        DESCRIPTION,
        MANAGE,
        "Describe an endpoint",
        handler!(patch_description),
    )
    .answers::<ServingEndpoint>()
    .body::<PatchDescription>(),
    Route::change(
        "endpoints.patch_budget_policy",
        Method::PATCH,
        BUDGET_POLICY,
        MANAGE,
        "Say who pays",
        handler!(patch_budget_policy),
    )
    .answers::<ServingEndpoint>()
    .body::<PatchBudgetPolicy>(),
];

/// Changes the settings of the endpoint that the path names, for a caller who may.
async fn change(
    call: &Call,
    change: impl FnOnce(&mut EndpointSettings) -> Result<(), ApiError>,
) -> Result<Arc<Endpoint>, ApiError> {
    let endpoint = call.endpoint().await?;
    let record = &endpoint.record;
    let change = |record: &mut EndpointRecord| {
        change(&mut record.settings)?;
        Ok(record.settings.check()?)
    };
    call.app.control.change_record(record.workspace, &record.name, &record.id, change).await
}

async fn patch_tags(call: &mut Call) -> Result<Answer, ApiError> {
    let (_, _, input) = call.json::<PatchTags>().await?;
    let add = input.add_tags.unwrap_or_default().into_iter().map(Into::into).collect();
    let delete = input.delete_tags.unwrap_or_default();
    let changed = change(call, |settings| {
        settings.patch_tags(add, &delete);
        Ok(())
    });
    json(&EndpointTags { tags: changed.await?.record.settings.tags.iter().map(Into::into).collect() })
}

async fn put_rate_limits(call: &mut Call) -> Result<Answer, ApiError> {
    let (_, _, input) = call.json::<LegacyRateLimits>().await?;
    let limits = input.rate_limits.unwrap_or_default().into_iter().map(Into::into).collect();
    let changed = change(call, |settings| {
        settings.rate_limits = limits;
        Ok(())
    });
    let endpoint = changed.await?;
    let rate_limits = endpoint.record.settings.rate_limits.iter().map(Into::into).collect();
    Ok(with_not_enforced(json(&RateLimits { rate_limits })?, &endpoint))
}

async fn put_ai_gateway(call: &mut Call) -> Result<Answer, ApiError> {
    let (_, _, input) = call.json::<AiGatewayConfig>().await?;
    let now = GatewayConfig::from(input);
    let changed = change(call, |settings| {
        let before = settings.gateway.as_ref().and_then(|gateway| gateway.inference_table.as_ref());
        if let (Some(before), Some(now)) = (before, &now.inference_table) {
            before.check_change(now, "inference_table_config")?;
        }
        settings.gateway = Some(now);
        Ok(())
    });
    let endpoint = changed.await?;
    let gateway = endpoint.record.settings.gateway.as_ref().map(AiGatewayConfig::from);
    Ok(with_not_enforced(json(&gateway.unwrap_or_default())?, &endpoint))
}

async fn update_notifications(call: &mut Call) -> Result<Answer, ApiError> {
    let (_, _, input) = call.json::<UpdateNotifications>().await?;
    let changed = change(call, |settings| {
        settings.notifications = input.email_notifications.map(Into::into);
        Ok(())
    });
    let endpoint = changed.await?;
    let email_notifications = endpoint.record.settings.notifications.as_ref().map(Into::into);
    let answer = UpdatedNotifications { name: endpoint.record.name.clone(), email_notifications };
    Ok(with_not_enforced(json(&answer)?, &endpoint))
}

async fn patch_telemetry(call: &mut Call) -> Result<Answer, ApiError> {
    let (_, _, input) = call.json::<PatchTelemetry>().await?;
    let changed = change(call, |settings| {
        settings.telemetry = input.telemetry_config.map(Into::into);
        Ok(())
    });
    managed(call, &*changed.await?)
}

async fn patch_description(call: &mut Call) -> Result<Answer, ApiError> {
    let (_, _, input) = call.json::<PatchDescription>().await?;
    let changed = change(call, |settings| {
        settings.description = Some(input.description).filter(|text| !text.is_empty());
        Ok(())
    });
    managed(call, &*changed.await?)
}

async fn patch_budget_policy(call: &mut Call) -> Result<Answer, ApiError> {
    let (_, _, input) = call.json::<PatchBudgetPolicy>().await?;
    let changed = change(call, |settings| {
        settings.budget_policy_id = Some(input.budget_policy_id).filter(|text| !text.is_empty());
        Ok(())
    });
    managed(call, &*changed.await?)
}
