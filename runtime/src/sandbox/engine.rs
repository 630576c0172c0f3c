//! The wasmtime engines: one that serves, one that compiles, one that runs `init`.
//!
//! What is set in [`shared`] is baked into compiled artifacts, so the serving engine and the compiling engine take it
//! from one place. Figures behind the settings: pooling with a resident set and the page-map scan starts an instance in
//! about 5 µs where wasmtime's default takes 30.

use std::num::NonZeroUsize;

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, WasmBacktraceDetails,
};

/// Hard ceiling of one linear memory; the limit of a request lies below it.
pub const MEMORY_BYTES_CEILING: usize = 512 << 20;

/// What one component may bring; a native one has one of each, one made of JavaScript about five instances, one made of
/// Python, which is linked from a dozen libraries, about forty. The pool is sized by the same numbers, so that no component
/// can take its neighbours' places; places for core instances are a count and cost nothing until they are taken.
const CORE_INSTANCES_PER_COMPONENT_MAX: u32 = 64;
const MEMORIES_PER_COMPONENT_MAX: u32 = 2;
const TABLES_PER_COMPONENT_MAX: u32 = 4;

/// Instances beside those of requests: golden requests of deploys.
const GOLDEN_INSTANCES_MAX: u32 = 2;

/// Largest copy-on-write image that is built even when mostly zero. Above it wasmtime would copy the image into every
/// instance instead, silently: milliseconds per request.
const DENSE_IMAGE_BYTES_MAX: u64 = 256 << 20;

/// Pages an instance dirtied are cleared in place up to this size, and given back to the kernel above it.
const KEEP_RESIDENT_BYTES: usize = 1 << 20;

/// Address space by which the memory of a guest's `init` grows at a time.
const INIT_GROWTH_BYTES: u64 = 32 << 20;

/// What decides the form of compiled code: equal in the engine that compiles and the one that serves.
fn shared() -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .wasm_memory64(false)
        .wasm_relaxed_simd(false)
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .memory_init_cow(true)
        .memory_guaranteed_dense_image_size(DENSE_IMAGE_BYTES_MAX)
        .memory_reservation(4 << 30)
        .memory_guard_size(32 << 20)
        .memory_may_move(false)
        .max_wasm_stack(512 << 10)
        .async_stack_size(1 << 20)
        .wasm_backtrace_max_frames(NonZeroUsize::new(20))
        // Never from the environment: a server's behaviour must not depend on a debug variable.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable);
    config
}

/// The engine that only compiles components for [`serving`].
pub fn compiling() -> wasmtime::Result<Engine> {
    Engine::new(shared().parallel_compilation(true))
}

/// The engine that runs `init` once, in the compile worker: quick to compile for, small in address space.
pub fn initializing() -> wasmtime::Result<Engine> {
    let mut config = shared();
    config
        .cranelift_opt_level(OptLevel::None)
        // The worker lives under an address-space limit, so memories are reserved as they grow.
        .memory_reservation(0)
        .memory_reservation_for_growth(INIT_GROWTH_BYTES)
        .memory_guard_size(0)
        .memory_may_move(true)
        .memory_init_cow(false)
        .async_stack_size(4 << 20);
    Engine::new(&config)
}

/// How instances of the serving engine are allocated, as chosen for this machine.
#[derive(Debug, Clone)]
pub struct Allocation {
    /// Live instances that fit in the pool.
    pub instances_max: u32,
    /// Whether dirty pages are found with the kernel's page-map scan (needs Linux 6.7 and no swap).
    pub pagemap_scan: bool,
}

/// The engine that serves requests, with its pool for `instances_max` live instances.
///
/// # Errors
/// When the address space for the pool cannot be reserved: the message says how much was asked for.
pub fn serving(instances_max: u32) -> anyhow::Result<(Engine, Allocation)> {
    let swap = swap_is_active();
    if swap {
        // With swap, a dirty page that was swapped out is invisible to the scan and would survive into the next
        // request's instance.
        tracing::warn!("swap is active: instances are cleared without the page-map scan, which is slower");
    }
    if !swap && let Ok(engine) = pooled(instances_max, true) {
        return Ok((engine, Allocation { instances_max, pagemap_scan: true }));
    }
    let engine = pooled(instances_max, false).map_err(|source| {
        anyhow::anyhow!(source).context(format!(
            "failed to reserve address space for {instances_max} instances of 4 GiB; lower concurrent_requests_max, \
             or raise the limit of this machine (`ulimit -v`)"
        ))
    })?;
    Ok((engine, Allocation { instances_max, pagemap_scan: false }))
}

fn pooled(instances_max: u32, pagemap_scan: bool) -> wasmtime::Result<Engine> {
    let total = instances_max + GOLDEN_INSTANCES_MAX;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(total)
        .total_stacks(total)
        .total_core_instances(CORE_INSTANCES_PER_COMPONENT_MAX * total)
        .total_memories(MEMORIES_PER_COMPONENT_MAX * total)
        .total_tables(TABLES_PER_COMPONENT_MAX * total)
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT_MAX)
        .max_memories_per_component(MEMORIES_PER_COMPONENT_MAX)
        .max_tables_per_component(TABLES_PER_COMPONENT_MAX)
        .max_memories_per_module(2)
        .max_tables_per_module(4)
        .table_elements(100_000)
        .max_component_instance_size(8 << 20)
        .max_core_instance_size(8 << 20)
        .max_memory_size(MEMORY_BYTES_CEILING)
        // Without the scan the whole resident set is cleared by writing zeros, so it must be small.
        .linear_memory_keep_resident(if pagemap_scan { KEEP_RESIDENT_BYTES } else { 64 << 10 })
        .table_keep_resident(16 << 10)
        .max_unused_warm_slots(instances_max / 4)
        .decommit_batch_size(1)
        .pagemap_scan(if pagemap_scan { Enabled::Yes } else { Enabled::No });
    Engine::new(shared().allocation_strategy(InstanceAllocationStrategy::Pooling(pool)))
}

/// Whether the kernel has swap in use; true when it cannot be told, which is the safe answer.
pub(crate) fn swap_is_active() -> bool {
    std::fs::read_to_string("/proc/swaps").map_or(true, |swaps| swaps.lines().count() > 1)
}
