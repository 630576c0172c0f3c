//! The route table's form: what a route is, and how a request finds its own.
//!
//! Each module of the API lists its routes beside their handlers; [`ALL`] names the lists. What a route says of itself
//! is what is enforced: [`super::dispatch`] authenticates and asks for administrators, [`Call::endpoint`] and
//! [`Call::model`] ask for the level that the route declares.

use std::pin::Pin;
use std::sync::LazyLock;

use hyper::Method;
use matchit::Router;
use schemars::{JsonSchema, SchemaGenerator};

use super::{Answer, Call};
use crate::access::Level;
use crate::error::ApiError;

/// All routes, by module.
static ALL: [&[Route]; 22] = [
    super::discovery::ROUTES,
    super::endpoint_reports::ROUTES,
    super::endpoint_settings::ROUTES,
    super::endpoints::ROUTES,
    super::grpc::ROUTES,
    super::invocations::ROUTES,
    super::keys::ROUTES,
    super::oauth::ROUTES,
    super::open_inference::ROUTES,
    super::openapi::ROUTES,
    super::permissions::ROUTES,
    super::registry::files::ROUTES,
    super::registry::native::ROUTES,
    super::registry::oss::ROUTES,
    super::registry::signed::ROUTES,
    super::registry::unity::ROUTES,
    super::scim::ROUTES,
    super::secrets::ROUTES,
    super::tokens::ROUTES,
    super::tracking::ROUTES,
    super::usage::ROUTES,
    super::workspaces::ROUTES,
];

/// One method on one path.
pub(crate) struct Route {
    /// What the audit log and the OpenAPI document call it: `endpoints.create`.
    pub(crate) name: &'static str,
    pub(crate) method: Method,
    /// Parameters in braces; `{*path}` takes the rest.
    pub(crate) path: &'static str,
    pub(crate) access: Access,
    pub(crate) effect: Effect,
    /// For people, in one line.
    pub(crate) about: &'static str,
    /// The JSON that it reads, for the OpenAPI document.
    pub(crate) body: Option<Schema>,
    handler: Handler,
}

/// What methods of gRPC are about.
const GRPC: &str = "A method of gRPC";

/// Makes the schema of a type.
type Schema = fn(&mut SchemaGenerator) -> schemars::Schema;

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody, without credentials.
    Anyone,
    /// Whoever is on this machine, and from elsewhere the server's administrators.
    Operator,
    /// Every principal; what it then sees and changes is its own.
    Principal,
    /// Who has this level on the endpoint that is asked for.
    Endpoint(Level),
    /// Who has this level on the model that is asked for.
    Model(Level),
    /// Administrators of the caller's workspace.
    Admin,
    /// Administrators of the whole server.
    ServerAdmin,
}

impl Access {
    /// As the OpenAPI document says it in `x-tessera-access`.
    pub(crate) fn name(self) -> String {
        match self {
            Access::Anyone => "anyone".to_owned(),
            Access::Operator => "operator".to_owned(),
            Access::Principal => "principal".to_owned(),
            Access::Endpoint(level) => format!("endpoint:{}", level.name()),
            Access::Model(level) => format!("model:{}", level.name()),
            Access::Admin => "admin".to_owned(),
            Access::ServerAdmin => "server-admin".to_owned(),
        }
    }
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It reads.
    Read,
    /// It changes something, and the audit log says so.
    Change,
    /// It asks a model.
    Invoke,
}

pub(super) type Handler =
    for<'a> fn(&'a mut Call) -> Pin<Box<dyn Future<Output = Result<Answer, ApiError>> + Send + 'a>>;

/// An `async fn(&mut Call)` or `async fn(&Call)` as a [`Handler`].
macro_rules! handler {
    ($function:path) => {
        |call| Box::pin($function(call))
    };
}
pub(super) use handler;

impl Route {
    /// A route that reads.
    pub(super) const fn get(
        name: &'static str,
        path: &'static str,
        access: Access,
        about: &'static str,
        handler: Handler,
    ) -> Route {
        Route { name, method: Method::GET, path, access, effect: Effect::Read, about, body: None, handler }
    }

    /// A route that changes something.
    pub(super) const fn change(
        name: &'static str,
        method: Method,
        path: &'static str,
        access: Access,
        about: &'static str,
        handler: Handler,
    ) -> Route {
        Route { name, method, path, access, effect: Effect::Change, about, body: None, handler }
    }

    /// A route that sends a request to an endpoint.
    pub(super) const fn invoke(name: &'static str, path: &'static str, about: &'static str, handler: Handler) -> Route {
        let access = Access::Endpoint(Level::Query);
        Route { name, method: Method::POST, path, access, effect: Effect::Invoke, about, body: None, handler }
    }

    /// The same route, which changes something by this method.
    pub(super) const fn changes(mut self, method: Method) -> Route {
        // As in `reads`.
        std::mem::forget(std::mem::replace(&mut self.method, method));
        self.effect = Effect::Change;
        self
    }

    /// A method of gRPC, which has its path by the protocol.
    pub(super) const fn grpc(name: &'static str, path: &'static str, access: Access, handler: Handler) -> Route {
        let effect = Effect::Invoke;
        Route { name, method: Method::POST, path, access, effect, about: GRPC, body: None, handler }
    }

    /// Whether this is a method of gRPC.
    pub(crate) fn is_grpc(&self) -> bool {
        self.about == GRPC
    }

    /// The same route, which only reads although its method does not say so.
    pub(super) const fn reads(mut self, method: Method) -> Route {
        // The old method is a constant too; forgotten, because a constant function may not drop.
        std::mem::forget(std::mem::replace(&mut self.method, method));
        self.effect = Effect::Read;
        self
    }

    /// The same route, which reads this type as JSON.
    pub(super) const fn body<T: JsonSchema>(mut self) -> Route {
        self.body = Some(SchemaGenerator::subschema_for::<T>);
        self
    }

    /// Answers.
    pub(super) async fn answer(&self, call: &mut Call) -> Result<Answer, ApiError> {
        (self.handler)(call).await
    }
}

/// All routes.
pub(crate) fn all() -> impl Iterator<Item = &'static Route> {
    ALL.iter().copied().flatten()
}

/// What a method and a path lead to.
pub(super) enum Found {
    /// A route, with the path's parameters as they were sent.
    Route(&'static Route, Vec<(&'static str, String)>),
    /// Other methods of this path.
    OtherMethods(Vec<&'static Method>),
    /// Nothing.
    Nothing,
}

/// The routes of each path.
static BY_PATH: LazyLock<Router<Vec<&'static Route>>> = LazyLock::new(|| {
    let mut by_path: std::collections::BTreeMap<&str, Vec<&Route>> = Default::default();
    for route in all() {
        by_path.entry(route.path).or_default().push(route);
    }
    let mut router = Router::new();
    for (path, routes) in by_path {
        // A test goes through all of them; two that collide would be our bug, and cost one path.
        if let Err(error) = router.insert(path, routes) {
            tracing::error!(path, "a route cannot be reached: {error}");
        }
    }
    router
});

/// Looks a request up. A trailing slash does not count, because MLflow sends one.
pub(super) fn find(method: &Method, path: &str) -> Found {
    let trimmed = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    let Ok(matched) = BY_PATH.at(if trimmed.is_empty() { "/" } else { trimmed }) else { return Found::Nothing };
    match matched.value.iter().find(|route| route.method == *method) {
        Some(route) => {
            let parameters = matched.params.iter().map(|(name, value)| (name, value.to_owned()));
            Found::Route(route, parameters.collect())
        }
        None => Found::OtherMethods(matched.value.iter().map(|route| &route.method).collect()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_route_is_reached_by_its_path_and_has_a_name_of_its_own() {
        let mut names = HashSet::new();
        for route in all() {
            assert!(names.insert(route.name), "{} names two routes", route.name);
            let path = route.path.replace("{*path}", "a/b").replace(['{', '}'], "");
            let Found::Route(found, _) = find(&route.method, &path) else { panic!("{} {path}", route.method) };
            assert_eq!(found.name, route.name, "{path}");
        }
    }

    #[test]
    fn exact_paths_come_before_parameters_and_other_methods_are_told() {
        let found = |method: Method, path: &str| match find(&method, path) {
            Found::Route(route, parameters) => (route.name, parameters),
            Found::OtherMethods(_) => ("other methods", vec![]),
            Found::Nothing => ("nothing", vec![]),
        };
        assert_eq!(found(Method::POST, "/serving-endpoints/chat/completions").0, "invocations.chat");
        let (name, parameters) = found(Method::POST, "/serving-endpoints/a%20b/invocations/");
        assert_eq!((name, parameters), ("invocations.invoke", vec![("name", "a%20b".to_owned())]));
        assert_eq!(found(Method::PATCH, "/health").0, "other methods");
        for path in ["/nowhere", "", "/", "//", "//health"] {
            assert_eq!(found(Method::GET, path).0, "nothing", "{path}");
        }
    }
}
