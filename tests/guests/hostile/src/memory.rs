//! Deeds against the guest's own memory.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Adds one to a static.
pub(crate) fn count() -> u32 {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    COUNTER.fetch_add(1, Relaxed) + 1
}

/// The marker is the xor of these two. Nothing but [`write_markers`] puts it into memory, not even the compiler, which
/// cannot see through `black_box`: so a scan counts only what was written.
const ENCODED: u64 = 0x5a17_9c3e_d1f0_4b86;
const MASK: u64 = 0xc0de_7e55_e12a_1337;

const HEAP_MARKERS: usize = 128 * 1024;
const STATIC_MARKERS: usize = 512;

/// Writes markers to a large heap block, to many small ones and to a static, and answers what a scan finds.
pub(crate) fn write_markers() -> usize {
    static STATIC: [AtomicU64; STATIC_MARKERS] = [const { AtomicU64::new(0) }; STATIC_MARKERS];
    let mask = black_box(MASK);
    STATIC.iter().for_each(|word| word.store(ENCODED ^ mask, Relaxed));
    let large = vec![ENCODED ^ mask; HEAP_MARKERS];
    let small: Vec<Box<u64>> = (0..1000).map(|_| Box::new(ENCODED ^ mask)).collect();
    let found = scan_for_markers();
    black_box((large, small));
    found
}

/// Counts the markers in the whole linear memory.
#[cfg(target_arch = "wasm32")]
#[allow(unsafe_code, reason = "reads memory that Rust knows nothing of: what an attacker would do")]
pub(crate) fn scan_for_markers() -> usize {
    let end = core::arch::wasm32::memory_size(0) * 64 * 1024;
    let mask = black_box(MASK);
    // From 8: the address 0 is valid memory, but not a valid Rust pointer.
    let is_marker = |address: &usize| {
        let word = std::ptr::with_exposed_provenance::<u64>(*address);
        // SAFETY: aligned and below the size of the memory, hence readable; volatile, for others own what is there.
        unsafe { word.read_volatile() ^ mask == ENCODED }
    };
    (8..end).step_by(8).filter(is_marker).count()
}

/// Natively there is no memory of the guest to scan.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn scan_for_markers() -> usize {
    0
}

/// Never returns: every call keeps a frame alive.
pub(crate) fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if black_box(false) {
        return depth;
    }
    recurse(depth + 1) + black_box(frame)[0]
}

/// Allocates and touches 1 MiB after the other.
pub(crate) fn explode() -> ! {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    loop {
        kept.push(black_box(vec![1; 1 << 20]));
    }
}
