//! One record in the audit log for each change and for each access that was denied.

use super::routes::{Effect, Route};
use super::{Answer, Call};
use crate::access::IdentityKind;
use crate::audit::{Event, Who};
use crate::error::ApiError;

/// Records what came of a call, before its answer is sent. A change whose record is not on disk is not acknowledged.
pub(super) async fn record(call: &Call, route: &Route, outcome: Result<Answer, ApiError>) -> Result<Answer, ApiError> {
    let (status, error_code) = match &outcome {
        Ok(answer) => (answer.status().as_u16(), None),
        Err(error) => (error.status, Some(error.code.name())),
    };
    // An answer is no denial of ours: a model may say what it likes.
    if outcome.is_err() && matches!(status, 401 | 403) {
        call.app.audit.denied(event(call, route, status, error_code));
    } else if route.effect == Effect::Change {
        call.app.audit.append(event(call, route, status, error_code)).await?;
    }
    outcome
}

/// Records that one of the requests on a stream was denied.
pub(super) fn denied(call: &Call, error: &ApiError) {
    if let (401 | 403, Some(route)) = (error.status, call.route) {
        call.app.audit.denied(event(call, route, error.status, Some(error.code.name())));
    }
}

fn event(call: &Call, route: &Route, status: u16, error_code: Option<&str>) -> Event {
    let who = call.principal.as_ref().map(|principal| Who {
        id: principal.id,
        name: principal.name.clone(),
        kind: match principal.kind {
            IdentityKind::ServicePrincipal => "service_principal".to_owned(),
            _ => "user".to_owned(),
        },
    });
    // What the handler found, or else what the path says.
    let named = || {
        let values: Vec<&str> = call.parameters.iter().map(|(_, value)| value.as_str()).collect();
        Some(values.join("/")).filter(|path| !path.is_empty())
    };
    Event {
        workspace: call.principal.as_ref().map(|principal| principal.workspace.0),
        principal: who,
        source: Some(call.peer.ip().to_string()),
        request_id: Some(call.id.clone()),
        action: route.name.to_owned(),
        object: call.object.get().cloned().or_else(named),
        status,
        error_code: error_code.map(str::to_owned),
    }
}
