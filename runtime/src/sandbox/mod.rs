//! The sandbox: instances of components, one per request. The only module besides `deploy` that knows wasmtime.
//!
//! [`Sandbox`] holds the engine and the linked host interfaces; [`LoadedComponent`] is a component ready to be
//! instantiated; [`Sandbox::invoke`] runs one request.

mod bindings;
pub(crate) mod engine;
mod guest;
mod invoke;
mod limits;
mod log;
mod nn_host;
mod outgoing;
pub(crate) mod prepare;
mod proxy;
mod slots;
mod streaming;
mod world;

use std::time::Duration;

use wasmtime::Engine;
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};

pub use self::bindings::tessera::endpoint::types::FailureKind;
pub use self::guest::{GuestPackage, GuestState};
pub use self::invoke::{Answer, Finished, GuestRequest, Invocation, InvocationBody, InvokeError, Tail};
pub use self::limits::RequestLimits;
pub use self::log::RequestLog;
pub use self::streaming::{StreamError, StreamedResponse};
pub use self::world::World;

/// Time between epoch ticks: how late a processor limit may be noticed, and how long one guest may hold a thread.
const EPOCH_TICK: Duration = Duration::from_millis(5);

/// The engine with its pool, and the host interfaces that guests may import.
pub struct Sandbox {
    engine: Engine,
    linker: Linker<GuestState>,
    allocation: engine::Allocation,
}

impl Sandbox {
    /// A sandbox with room for `instances_max` live instances.
    ///
    /// # Errors
    /// When the pool's address space cannot be had or the epoch thread cannot start.
    pub fn new(instances_max: u32) -> anyhow::Result<Sandbox> {
        let (engine, allocation) = engine::serving(instances_max)?;
        let linker = linker(&engine)?;
        start_epoch_ticker(&engine)?;
        Ok(Sandbox { engine, linker, allocation })
    }

    /// The engine, for loading artifacts made for it.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// How instances are allocated on this machine.
    pub fn allocation(&self) -> &engine::Allocation {
        &self.allocation
    }

    /// Resolves a component's imports and exports once, so that a request only instantiates.
    ///
    /// # Errors
    /// When the component imports what is not offered here or lacks an export of its world.
    pub fn load(&self, component: &Component) -> wasmtime::Result<LoadedComponent> {
        Ok(LoadedComponent { pre: self.linker.instantiate_pre(component)?, exports: Exports::of(component)? })
    }
}

/// Does now what the first instance of a thread would wait hundreds of microseconds for.
pub fn prepare_thread() {
    Engine::tls_eager_initialize();
}

/// A component whose imports are resolved and whose exports are found. The generated bindings would look at the types of
/// all exports in every instance; this way only those that are called are checked.
pub struct LoadedComponent {
    pre: InstancePre<GuestState>,
    exports: Exports,
}

/// What a component is called by.
#[derive(Clone, Copy)]
enum Exports {
    /// Of the world `tessera:endpoint`.
    Endpoint { init: ComponentExportIndex, handle: ComponentExportIndex },
    /// Of the world `wasi:http/proxy`.
    Proxy { handle: ComponentExportIndex },
}

impl Exports {
    fn of(component: &Component) -> wasmtime::Result<Exports> {
        let export = |name| component.get_export_index(None, name);
        if let (Some(init), Some(handle)) = (export("init"), export("handle")) {
            return Ok(Exports::Endpoint { init, handle });
        }
        // Finds every version 0.2.
        let interface = export("wasi:http/incoming-handler@0.2.12");
        let handle = interface.and_then(|interface| component.get_export_index(Some(&interface), "handle"));
        handle
            .map(|handle| Exports::Proxy { handle })
            .ok_or_else(|| wasmtime::format_err!("the component has no `handle`"))
    }
}

impl LoadedComponent {
    fn engine(&self) -> &Engine {
        self.pre.engine()
    }
}

/// All host interfaces. WASI is linked for guests whose toolchain needs it, with nothing behind it: no files, no
/// sockets, no environment. `wasi:http` reaches the hosts that a package is granted.
fn linker(engine: &Engine) -> wasmtime::Result<Linker<GuestState>> {
    let mut linker = Linker::new(engine);
    bindings::Endpoint::add_to_linker::<_, wasmtime::component::HasSelf<_>>(&mut linker, |state| state)?;
    nn_host::link_tensor_data(&mut linker)?;
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    Ok(linker)
}

/// One thread for the engine. It ends by itself when the engine is gone.
fn start_epoch_ticker(engine: &Engine) -> std::io::Result<()> {
    let engine = engine.weak();
    std::thread::Builder::new().name("epoch".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(EPOCH_TICK);
            match engine.upgrade() {
                Some(engine) => engine.increment_epoch(),
                None => return,
            }
        }
    })?;
    Ok(())
}
