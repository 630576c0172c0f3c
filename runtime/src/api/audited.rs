//! One record in the audit log for each change and for each access that was denied.

use super::routes::{Content, Effect, Route};
use super::{Answer, Call};
use crate::access::{IdentityKind, Principal};
use crate::audit::{Event, Who};
use crate::error::ApiError;

/// What the log keeps of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Nothing,
    /// How often it was denied, counted in memory.
    Denied,
    /// A record of its own.
    Change,
}

impl Kept {
    /// `outcome` is the status of an answer or of an error, `caller` who it was found to be.
    fn of(route: &Route, outcome: Result<u16, u16>, caller: Option<&Principal>) -> Kept {
        let (Ok(status) | Err(status)) = outcome;
        // No denial of ours: a model may say what it likes.
        let said_by_model = outcome.is_ok() && matches!(route.answer, Content::Model | Content::Grpc);
        let changes = route.effect == Effect::Change;
        match status {
            401 | 403 if !said_by_model => Kept::Denied,
            // Anybody can be refused as often as they like: a synced record each would fill the disk for them.
            400..500 if changes && caller.is_none() => Kept::Denied,
            _ if changes => Kept::Change,
            _ => Kept::Nothing,
        }
    }
}

/// Records what came of a call, before its answer is sent. A change whose record is not on disk is not acknowledged.
pub(super) async fn record(call: &Call, route: &Route, outcome: Result<Answer, ApiError>) -> Result<Answer, ApiError> {
    let (status, error_code) = match &outcome {
        Ok(answer) => (Ok(answer.status().as_u16()), None),
        Err(error) => (Err(error.status), Some(error.code.name())),
    };
    let kept = Kept::of(route, status, call.principal.as_deref());
    let (Ok(status) | Err(status)) = status;
    match kept {
        Kept::Nothing => {}
        Kept::Denied => call.app.audit.denied(event(call, route, status, error_code)),
        Kept::Change => call.app.audit.append(event(call, route, status, error_code)).await?,
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

#[cfg(test)]
mod tests {
    use hyper::Method;

    use super::*;
    use crate::api::routes::{Found, find};
    use crate::catalog::WorkspaceId;

    #[test]
    fn who_is_refused_makes_no_record_of_its_own_and_what_a_model_says_makes_none() {
        let route = |method: Method, path: &str| match find(&method, path) {
            Found::Route(route, _) => route,
            _ => panic!("there is no route {method} {path}"),
        };
        let caller = Principal {
            workspace: WorkspaceId(1),
            id: 1,
            kind: IdentityKind::User,
            name: "ann".to_owned(),
            display_name: String::new(),
            admin: false,
            server_admin: false,
            groups: vec![],
        };
        let token = route(Method::POST, "/oidc/v1/token");
        assert_eq!(Kept::of(token, Ok(200), None), Kept::Change, "a token was given");
        for status in [400, 401, 429] {
            assert_eq!(Kept::of(token, Ok(status), None), Kept::Denied, "{status} in OAuth's own form");
        }
        assert_eq!(Kept::of(token, Err(413), None), Kept::Denied);

        let create = route(Method::POST, "/api/2.0/serving-endpoints");
        assert_eq!(Kept::of(create, Err(400), Some(&caller)), Kept::Change);
        assert_eq!(Kept::of(create, Err(403), Some(&caller)), Kept::Denied);
        assert_eq!(Kept::of(create, Err(401), None), Kept::Denied);

        let read = route(Method::GET, "/api/2.0/serving-endpoints/e");
        assert_eq!(Kept::of(read, Err(403), Some(&caller)), Kept::Denied);
        assert_eq!(Kept::of(read, Err(404), Some(&caller)), Kept::Nothing);
        assert_eq!(Kept::of(route(Method::GET, "/ready"), Err(503), None), Kept::Nothing, "nobody was refused");

        let invoke = route(Method::POST, "/serving-endpoints/e/invocations");
        assert_eq!(Kept::of(invoke, Ok(403), Some(&caller)), Kept::Nothing, "the model's own answer");
        assert_eq!(Kept::of(invoke, Err(403), Some(&caller)), Kept::Denied);
        assert_eq!(Kept::of(route(Method::GET, "/v2/models/e"), Ok(401), Some(&caller)), Kept::Nothing);
    }
}
