//! Unit tests of a whole endpoint, natively: a stand-in for the host, whose graphs are closures.
//!
//! ```
//! # use tessera_sdk::{Endpoint, Error, Graph, Package, Request, Response, Tensor};
//! use tessera_sdk::testing::Host;
//! # struct Doubler { label: String }
//! # impl Endpoint for Doubler {
//! #     fn init(package: &Package) -> Result<Self, Error> { Ok(Self { label: package.asset_text("label.txt")? }) }
//! #     fn handle(&self, request: Request) -> Result<Response, Error> {
//! #         let values: Vec<f32> = request.json()?;
//! #         let input = Tensor::new(&[1, values.len() as u32], &values)?;
//! #         let outputs = Graph::named("model").compute([("x", &input)])?;
//! #         Response::json(&(&self.label, outputs.get("y")?.as_slice::<f32>()?))
//! #     }
//! # }
//! # fn main() -> Result<(), Error> {
//! let host = Host::new().asset("label.txt", "doubled").graph("model", |inputs| {
//!     let doubled = inputs.get("x")?.as_slice::<f32>()?.iter().map(|x| x * 2.0).collect();
//!     Ok(vec![("y", Tensor::from_vec(&[1, 2], doubled)?)])
//! });
//! let endpoint = host.deploy::<Doubler>()?;
//! let response = endpoint.call(Request::new("invocations", "application/json", "[1, 2.5]"))?;
//! assert_eq!(response.parts(), Some((200, "application/json", br#"["doubled",[2.0,5.0]]"#.as_slice())));
//! # Ok(())
//! # }
//! ```
//!
//! As on a server, assets can be read in `init` alone and graphs computed in `handle` alone. What differs: one instance
//! answers all requests, so that a `RefCell` in the endpoint would keep what one of them wrote; and there are no limits.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use crate::bindings::tessera::endpoint::compute::Input;
use crate::{Endpoint, Error, GraphInfo, Package, Request, Response, Tensor};

/// Outputs of a graph, by name, in the order of its model file.
pub type NamedTensors = Vec<(&'static str, Tensor<'static>)>;

type Compute = dyn Fn(&Inputs<'_>) -> Result<NamedTensors, Error>;

/// What a package holds and its graphs compute.
#[derive(Default)]
pub struct Host {
    assets: BTreeMap<String, Vec<u8>>,
    settings: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    graphs: BTreeMap<String, Box<Compute>>,
    infos: BTreeMap<String, GraphInfo>,
    metadata: BTreeMap<(String, String), String>,
    log: RefCell<Vec<String>>,
    phase: Cell<Phase>,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
enum Phase {
    #[default]
    Init,
    Handle,
}

impl Host {
    /// A host with nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file that the manifest would list under `assets`.
    pub fn asset(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.assets.insert(name.to_owned(), content.into());
        self
    }

    /// Adds a setting. Those of the host itself are `tessera.endpoint`, `tessera.model_version`, `tessera.request_id` and
    /// `tessera.time_ms`.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds a header to every request.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.to_ascii_lowercase(), value.to_owned());
        self
    }

    /// Adds a graph. An error that the closure returns is the computation's.
    pub fn graph(mut self, name: &str, compute: impl Fn(&Inputs<'_>) -> Result<NamedTensors, Error> + 'static) -> Self {
        self.graphs.insert(name.to_owned(), Box::new(compute));
        self
    }

    /// Says what a graph takes and gives, for endpoints that ask with [`Package::graph`].
    pub fn describe(mut self, name: &str, info: GraphInfo) -> Self {
        self.infos.insert(name.to_owned(), info);
        self
    }

    /// Says what a graph's model file says of itself, for endpoints that ask with [`Package::metadata`].
    pub fn metadata(mut self, graph: &str, key: &str, value: &str) -> Self {
        self.metadata.insert((graph.to_owned(), key.to_owned()), value.to_owned());
        self
    }

    /// Runs `init`, as a deploy does.
    pub fn deploy<E: Endpoint>(self) -> Result<Deployed<E>, Error> {
        let host = Rc::new(self);
        let endpoint = within(&host, Phase::Init, || E::init(&Package))?;
        Ok(Deployed { host, endpoint })
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (assets, graphs): (Vec<_>, Vec<_>) = (self.assets.keys().collect(), self.graphs.keys().collect());
        f.debug_struct("Host").field("assets", &assets).field("graphs", &graphs).finish_non_exhaustive()
    }
}

/// An endpoint whose `init` has run.
#[derive(Debug)]
pub struct Deployed<E> {
    host: Rc<Host>,
    endpoint: E,
}

impl<E: Endpoint> Deployed<E> {
    /// Answers a request.
    pub fn call(&self, request: Request) -> Result<Response, Error> {
        within(&self.host, Phase::Handle, || self.endpoint.handle(request))
    }

    /// What the endpoint has logged so far, a line each, with its level in front: `warn: 2 rows have no label`.
    pub fn log(&self) -> Vec<String> {
        self.host.log.borrow().clone()
    }
}

/// The inputs that a graph was given.
#[derive(Debug)]
pub struct Inputs<'a>(Vec<(&'a str, Tensor<'a>)>);

impl<'a> Inputs<'a> {
    /// The input of this name.
    pub fn get(&self, name: &str) -> Result<&Tensor<'a>, Error> {
        let found = self.0.iter().find(|(known, _)| *known == name).map(|(_, tensor)| tensor);
        found.ok_or_else(|| {
            Error::invalid_input(format!("input `{name}` is missing; given: {}", self.names().join(", ")))
        })
    }

    /// The names of the inputs, as they were given.
    pub fn names(&self) -> Vec<&'a str> {
        self.0.iter().map(|(name, _)| *name).collect()
    }

    fn read(inputs: &[Input<'a>]) -> Result<Self, Error> {
        let read = |input: &Input<'a>| Ok((input.name, Tensor::from_bytes(input.dimensions, input.ty, input.data)?));
        inputs.iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Host>>> = const { RefCell::new(None) };
}

fn within<T>(host: &Rc<Host>, phase: Phase, run: impl FnOnce() -> T) -> T {
    /// Also after a panic, so that the next test of the thread finds nothing.
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            CURRENT.set(None);
        }
    }
    host.phase.set(phase);
    CURRENT.set(Some(Rc::clone(host)));
    let _leave = Leave;
    run()
}

/// The host's functions as the bindings have them, answered by the stand-in of this thread.
pub(crate) mod host {
    use super::{CURRENT, Host, Inputs, NamedTensors, Phase};
    use crate::bindings::tessera::endpoint::compute::{ComputeError, Input, Outputs};
    use crate::bindings::tessera::endpoint::logging::Level;
    use crate::bindings::tessera::endpoint::streaming::StreamError;
    use crate::bindings::wasi::nn::errors::ErrorCode;
    use crate::graph::ALIGN;
    use crate::{Error, ErrorKind, GraphInfo};

    const NO_HOST: &str = "natively there is no host: stand in for it with tessera_sdk::testing";

    fn current() -> Option<std::rc::Rc<Host>> {
        CURRENT.with_borrow(Clone::clone)
    }

    pub(crate) fn read(name: &str) -> Result<Vec<u8>, String> {
        let host = current().ok_or(NO_HOST)?;
        if host.phase.get() != Phase::Init {
            return Err("assets can be read only during init: keep in the endpoint what a request needs".to_owned());
        }
        let names = || host.assets.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        host.assets.get(name).cloned().ok_or_else(|| format!("there is no such asset; there are: {}", names()))
    }

    pub(crate) fn setting(name: &str) -> Option<String> {
        current()?.settings.get(name).cloned()
    }

    pub(crate) fn header(name: &str) -> Option<String> {
        current()?.headers.get(name).cloned()
    }

    pub(crate) fn describe(name: &str) -> Option<GraphInfo> {
        current()?.infos.get(name).cloned()
    }

    pub(crate) fn metadata(graph: &str, key: &str) -> Option<String> {
        current()?.metadata.get(&(graph.to_owned(), key.to_owned())).cloned()
    }

    /// Without a stand-in to the standard error, where the output of a failing test is.
    pub(crate) fn log(level: Level, message: &str) {
        let level = match level {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        match current() {
            Some(host) => host.log.borrow_mut().push(format!("{level}: {message}")),
            None => eprintln!("{level}: {message}"),
        }
    }

    pub(crate) fn run(graph: &str, inputs: &[Input<'_>]) -> Result<Outputs, ComputeError> {
        let host = current().ok_or_else(|| refusal(ErrorCode::UnsupportedOperation, NO_HOST))?;
        if host.phase.get() != Phase::Handle {
            return Err(refusal(ErrorCode::UnsupportedOperation, "graphs can be used only during handle"));
        }
        let compute = host.graphs.get(graph).ok_or_else(|| refusal(ErrorCode::NotFound, "there is no such graph"))?;
        let outputs = Inputs::read(inputs).and_then(|inputs| compute(&inputs));
        outputs.map(|outputs| packed(&outputs)).map_err(failure)
    }

    fn refusal(code: ErrorCode, message: &str) -> ComputeError {
        ComputeError { code, message: message.to_owned() }
    }

    fn failure(error: Error) -> ComputeError {
        let code = match error.kind {
            ErrorKind::InvalidInput => ErrorCode::InvalidArgument,
            ErrorKind::Timeout => ErrorCode::Timeout,
            ErrorKind::TooLarge => ErrorCode::TooLarge,
            _ => ErrorCode::RuntimeError,
        };
        ComputeError { code, message: error.message }
    }

    /// As `wit/endpoint.wit` packs them.
    pub(crate) fn packed(outputs: &NamedTensors) -> Outputs {
        let (mut heads, mut data) = (Vec::new(), Vec::new());
        for (name, tensor) in outputs {
            heads.extend([tensor.ty() as u32, tensor.bytes().len() as u32, tensor.dims().len() as u32]);
            heads.extend_from_slice(tensor.dims());
            heads.push(name.len() as u32);
            let byte = |bytes: &[u8], at: usize| bytes.get(at).copied().unwrap_or_default();
            let number = |bytes: &[u8]| u32::from_le_bytes(std::array::from_fn(|at| byte(bytes, at)));
            heads.extend(name.as_bytes().chunks(4).map(number));
            data.resize(data.len().next_multiple_of(ALIGN), 0);
            data.extend_from_slice(tensor.bytes());
        }
        Outputs { heads, data }
    }

    /// A streamed response, kept for the test that asked.
    #[derive(Debug)]
    pub(crate) struct ResponseBody {
        pub(crate) status: u16,
        pub(crate) content_type: String,
        pub(crate) written: Vec<u8>,
    }

    pub(crate) fn respond(status: u16, content_type: &str) -> Result<ResponseBody, StreamError> {
        Ok(ResponseBody { status, content_type: content_type.to_owned(), written: Vec::new() })
    }

    impl ResponseBody {
        pub(crate) fn write(&mut self, chunk: &[u8]) -> Result<(), StreamError> {
            self.written.extend_from_slice(chunk);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, Graph, Outputs, log};

    /// Answers with what it was asked to try.
    struct Probe {
        label: String,
        computed: ErrorKind,
    }

    impl Endpoint for Probe {
        fn init(package: &Package) -> Result<Self, Error> {
            let label = package.asset_text("label.txt")?;
            let computed = compute().err().map_or(ErrorKind::NotFound, |error| error.kind);
            Ok(Self { label, computed })
        }

        fn handle(&self, request: Request) -> Result<Response, Error> {
            log::warn(format!("asked for {}", request.path()));
            match request.path() {
                "compute" => Response::json(&compute()?.get("y")?.as_slice::<f32>()?),
                "asset" => Ok(Response::text(Package.asset_text("label.txt")?)),
                "stream" => {
                    let mut stream = Response::stream("text/plain")?;
                    stream.write("one ")?;
                    stream.write("two")?;
                    Ok(stream.finish())
                }
                _ => Ok(Response::text(format!(
                    "{} {:?} {:?} {:?}",
                    self.label,
                    self.computed,
                    request.header("X-Who"),
                    request.endpoint()
                ))),
            }
        }
    }

    fn compute() -> Result<Outputs, Error> {
        Graph::named("model").compute([("x", &Tensor::new(&[2], &[1.0f32, 2.0])?)])
    }

    fn probe(host: Host) -> Deployed<Probe> {
        host.asset("label.txt", "a label").deploy().unwrap()
    }

    fn get(path: &str) -> Request {
        Request::new(path, "", "")
    }

    fn text(response: &Response) -> String {
        String::from_utf8(response.parts().unwrap().2.to_vec()).unwrap()
    }

    #[test]
    fn the_host_stands_in_for_all_that_an_endpoint_asks() {
        let host = Host::new().header("x-who", "me").setting("tessera.endpoint", "e");
        let endpoint = probe(host.graph("model", |inputs| {
            let sum: f32 = inputs.get("x")?.as_slice::<f32>()?.iter().sum();
            Ok(vec![("n", Tensor::from_vec(&[1], vec![7i64])?), ("y", Tensor::from_vec(&[1], vec![sum])?)])
        }));
        assert_eq!(text(&endpoint.call(get("")).unwrap()), "a label FailureKind::Model Some(\"me\") \"e\"");
        assert_eq!(text(&endpoint.call(get("compute")).unwrap()), "[3.0]");
        assert_eq!(endpoint.call(get("stream")).unwrap().parts(), Some((200, "text/plain", b"one two".as_slice())));
        assert_eq!(endpoint.log(), ["warn: asked for ", "warn: asked for compute", "warn: asked for stream"]);
    }

    #[test]
    fn what_a_server_refuses_is_refused() {
        let endpoint = probe(Host::new());
        assert!(endpoint.call(get("asset")).unwrap_err().message.contains("only during init"));
        assert!(endpoint.call(get("compute")).unwrap_err().message.contains("there is no such graph"));
        let error = Host::new().asset("other", "").deploy::<Probe>().err().unwrap();
        assert_eq!(error.message, "failed to read asset `label.txt`: there is no such asset; there are: other");
        assert!(compute().unwrap_err().message.contains("natively there is no host"));
    }

    #[test]
    fn an_error_of_a_graph_keeps_its_kind() {
        let endpoint = probe(Host::new().graph("model", |inputs| Err(inputs.get("z").unwrap_err())));
        let error = endpoint.call(get("compute")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidInput);
        assert_eq!(error.message, "failed to compute graph `model`: input `z` is missing; given: x");
    }
}
