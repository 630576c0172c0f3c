//! The route table's form: what a route is, and how a request finds its own.
//!
//! Each module of the API lists its routes beside their handlers; [`ALL`] names the lists. What a route says of itself
//! is what is enforced: [`super::dispatch`] authenticates and asks for administrators, [`Call::endpoint`] and
//! [`Call::model`] ask for the level that the route declares. What it reads and answers is declared too, for the OpenAPI
//! document; a handler that reads or answers another type fails whenever it is called, so that no test can miss it.

use std::pin::Pin;
use std::sync::LazyLock;

use hyper::Method;
use hyper::header::CONTENT_TYPE;
use matchit::Router;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;

use super::{Answer, Call};
use crate::access::Level;
use crate::error::{ApiError, ErrorCode};

/// All routes, by module.
static ALL: [&[Route]; 23] = [
    super::discovery::ROUTES,
    super::endpoint_reports::ROUTES,
    super::endpoint_settings::ROUTES,
    super::endpoints::ROUTES,
    super::grpc::ROUTES,
    super::invocations::ROUTES,
    super::keys::ROUTES,
    super::oauth::ROUTES,
    super::open_inference::ROUTES,
    super::openai_models::ROUTES,
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
    /// Whether it takes every other method, too, that has no route on this path.
    pub(crate) any_method: bool,
    /// Parameters in braces; `{*path}` takes the rest.
    pub(crate) path: &'static str,
    pub(crate) access: Access,
    pub(crate) effect: Effect,
    /// For people, in one line.
    pub(crate) about: &'static str,
    /// What it reads of the address after the question mark.
    pub(crate) query: Option<Shape>,
    /// The body that it reads.
    pub(crate) body: Content,
    /// The status of its success.
    pub(crate) status: u16,
    /// What it answers then.
    pub(crate) answer: Content,
    /// Statuses at which it may answer this instead of the usual error.
    pub(crate) other: Option<(&'static [u16], Shape)>,
    handler: Handler,
}

/// A body.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    /// None.
    Empty,
    /// JSON of a type.
    Json(Shape),
    /// The fields of a type as an HTML form sends them.
    Form(Shape),
    /// Bytes of this media type.
    Bytes(&'static str),
    /// What the model of an endpoint takes or gives.
    Model,
    /// Messages of gRPC.
    Grpc,
}

/// A type on the wire.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Names it, and makes its schema.
    name: fn() -> &'static str,
    pub(crate) schema: fn(&mut SchemaGenerator) -> schemars::Schema,
}

impl Shape {
    const fn of<T: JsonSchema>() -> Shape {
        Shape { name: std::any::type_name::<T>, schema: SchemaGenerator::subschema_for::<T> }
    }

    /// Whether it is the type of this name.
    fn is(&self, name: &str) -> bool {
        (self.name)() == name
    }
}

/// The answer of a route that has nothing to say: `{}`, because clients parse a body.
#[derive(Default, Serialize, JsonSchema)]
pub(super) struct Done {}

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
        Route {
            name,
            method: Method::GET,
            any_method: false,
            path,
            access,
            effect: Effect::Read,
            about,
            query: None,
            body: Content::Empty,
            status: 200,
            answer: Content::Json(Shape::of::<Done>()),
            other: None,
            handler,
        }
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
        let mut route = Route::get(name, path, access, about, handler).reads(method);
        route.effect = Effect::Change;
        route
    }

    /// A route that sends a request to an endpoint.
    pub(super) const fn invoke(name: &'static str, path: &'static str, about: &'static str, handler: Handler) -> Route {
        let access = Access::Endpoint(Level::Query);
        let mut route = Route::get(name, path, access, about, handler).reads(Method::POST);
        (route.effect, route.body, route.answer) = (Effect::Invoke, Content::Model, Content::Model);
        route
    }

    /// A method of gRPC, which has its path by the protocol.
    pub(super) const fn grpc(name: &'static str, path: &'static str, access: Access, handler: Handler) -> Route {
        let mut route = Route::invoke(name, path, "A method of gRPC", handler);
        (route.access, route.body, route.answer) = (access, Content::Grpc, Content::Grpc);
        route
    }

    /// Whether this is a method of gRPC.
    pub(crate) fn is_grpc(&self) -> bool {
        matches!(self.body, Content::Grpc)
    }

    /// The same route, which only reads although its method does not say so.
    pub(super) const fn reads(mut self, method: Method) -> Route {
        // The old method is a constant too; forgotten, because a constant function may not drop.
        std::mem::forget(std::mem::replace(&mut self.method, method));
        self.effect = Effect::Read;
        self
    }

    /// The same route, which takes every method.
    pub(super) const fn any_method(mut self) -> Route {
        self.any_method = true;
        self
    }

    /// The same route, which reads this type from the query.
    pub(super) const fn query<T: JsonSchema>(mut self) -> Route {
        self.query = Some(Shape::of::<T>());
        self
    }

    /// The same route, which reads this type as JSON.
    pub(super) const fn body<T: JsonSchema>(mut self) -> Route {
        self.body = Content::Json(Shape::of::<T>());
        self
    }

    /// The same route, which reads this type as a form.
    pub(super) const fn form<T: JsonSchema>(mut self) -> Route {
        self.body = Content::Form(Shape::of::<T>());
        self
    }

    /// The same route, which reads a file.
    pub(super) const fn takes_file(mut self) -> Route {
        self.body = Content::Bytes(OCTETS);
        self
    }

    /// The same route, which answers this type as JSON.
    pub(super) const fn answers<T: JsonSchema>(mut self) -> Route {
        self.answer = Content::Json(Shape::of::<T>());
        self
    }

    /// The same route, which answers this type as JSON with status 201.
    pub(super) const fn creates<T: JsonSchema>(mut self) -> Route {
        self.status = 201;
        self.answers::<T>()
    }

    /// The same route, which answers bytes of a media type.
    pub(super) const fn gives(mut self, media_type: &'static str) -> Route {
        self.answer = Content::Bytes(media_type);
        self
    }

    /// The same route, which answers a file.
    pub(super) const fn gives_file(self) -> Route {
        self.gives(OCTETS)
    }

    /// The same route, which answers what a model does.
    pub(super) const fn gives_model_output(mut self) -> Route {
        self.answer = Content::Model;
        self
    }

    /// The same route, which answers no body, with status 204.
    pub(super) const fn gives_nothing(mut self) -> Route {
        (self.status, self.answer) = (204, Content::Empty);
        self
    }

    /// The same route, which answers this type at these statuses, beside the usual error.
    pub(super) const fn or<T: JsonSchema>(mut self, statuses: &'static [u16]) -> Route {
        self.other = Some((statuses, Shape::of::<T>()));
        self
    }

    /// Answers.
    pub(super) async fn answer(&self, call: &mut Call) -> Result<Answer, ApiError> {
        let answer = (self.handler)(call).await?;
        match self.declares(&answer) {
            true => Ok(answer),
            false => {
                Err(self.undeclared(&format!("answers {} {:?}", answer.status(), answer.extensions().get::<Wrote>())))
            }
        }
    }

    fn declares(&self, answer: &Answer) -> bool {
        let status = answer.status().as_u16();
        if let Some((statuses, shape)) = self.other
            && statuses.contains(&status)
        {
            return wrote(answer, &shape);
        }
        let media_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match &self.answer {
            // Also its statuses are the model's.
            Content::Model | Content::Grpc => true,
            _ if status != self.status => false,
            Content::Json(shape) => wrote(answer, shape),
            Content::Bytes(declared) => *declared == media_type,
            Content::Empty | Content::Form(_) => true,
        }
    }

    /// Checks that a handler reads what its route declares.
    pub(super) fn check_reads<T>(&self, what: Reads) -> Result<(), ApiError> {
        let name = std::any::type_name::<T>();
        let declared = match (what, &self.query, &self.body) {
            (Reads::Query, Some(shape), _) => shape.is(name),
            (Reads::Body, _, Content::Json(shape) | Content::Form(shape)) => shape.is(name),
            _ => false,
        };
        if declared { Ok(()) } else { Err(self.undeclared(&format!("reads {name} as {what:?}"))) }
    }

    /// Our own bug, which every call of the route shows.
    fn undeclared(&self, what: &str) -> ApiError {
        tracing::error!(route = self.name, "a handler {what}, which its route does not declare");
        ApiError::new(ErrorCode::InternalError, format!("{} does what its route does not declare", self.name))
    }
}

/// Media type of a file.
pub(super) const OCTETS: &str = "application/octet-stream";

/// Where a handler reads from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reads {
    Query,
    Body,
}

/// On an answer: the name of the type that was written as JSON.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wrote(pub(super) &'static str);

fn wrote(answer: &Answer, shape: &Shape) -> bool {
    answer.extensions().get::<Wrote>().is_some_and(|Wrote(name)| shape.is(name))
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
    let exact = matched.value.iter().find(|route| route.method == *method);
    match exact.or_else(|| matched.value.iter().find(|route| route.any_method)) {
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
