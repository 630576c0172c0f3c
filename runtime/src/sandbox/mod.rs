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
pub(crate) mod prepare;
mod slots;
mod streaming;

use std::time::Duration;

use wasmtime::Engine;
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};

pub use self::bindings::tessera::endpoint::types::FailureKind;
pub use self::guest::{GuestPackage, GuestState};
pub use self::invoke::{Answer, Finished, Invocation, InvocationBody, InvokeError, Tail};
pub use self::limits::RequestLimits;
pub use self::log::RequestLog;
pub use self::streaming::{StreamError, StreamedResponse};

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
    /// When the component imports what is not offered here or lacks an export of the world.
    pub fn load(&self, component: &Component) -> wasmtime::Result<LoadedComponent> {
        let export = |name| {
            let index = component.get_export_index(None, name);
            index.ok_or_else(|| wasmtime::format_err!("the component has no export `{name}`"))
        };
        let (init, handle) = (export("init")?, export("handle")?);
        Ok(LoadedComponent { pre: self.linker.instantiate_pre(component)?, init, handle })
    }
}

/// Does now what the first instance of a thread would wait hundreds of microseconds for.
pub fn prepare_thread() {
    Engine::tls_eager_initialize();
}

/// A component whose imports are resolved and whose exports are found. The generated bindings would look at the types of
/// all exports in every instance; this way only those that are called are checked.
#[derive(Clone)]
pub struct LoadedComponent {
    pre: InstancePre<GuestState>,
    init: ComponentExportIndex,
    handle: ComponentExportIndex,
}

impl LoadedComponent {
    fn engine(&self) -> &Engine {
        self.pre.engine()
    }
}

/// All host interfaces. WASI is linked for guests whose toolchain needs it, with nothing behind it: no files, no
/// network, no environment.
fn linker(engine: &Engine) -> wasmtime::Result<Linker<GuestState>> {
    let mut linker = Linker::new(engine);
    bindings::Endpoint::add_to_linker::<_, wasmtime::component::HasSelf<_>>(&mut linker, |state| state)?;
    nn_host::link_tensor_data(&mut linker)?;
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
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
