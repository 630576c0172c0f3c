//! Memory that is free, and still the process's: the allocator keeps it for the next request.
//!
//! Each thread has a heap of its own. What other threads free of it, it takes back only when it next allocates or is told
//! to; so after a thousand endpoints went to sleep, the event loops that woke them would hold what they were made of.

use std::sync::LazyLock;

use tokio::sync::watch;

/// Blocks above this size are the system's own, not parts of the allocator's. In one of those, memory that is to be zeros is
/// written to unless it is new: after the recovery of its log the store's page table alone would be resident with 4 MB of
/// zeros; and what is freed may stay for long.
const BLOCK_KIB_MAX: std::ffi::c_long = 1024;

/// `mi_option_arena_max_object_size`, in KiB; the bindings have no name for it. Read in mimalloc.h of 3.3.2.
const ARENA_MAX_OBJECT_SIZE: libmimalloc_sys::mi_option_t = 45;

/// To be called first, before anything large is allocated.
pub fn large_blocks_from_the_system() {
    #[allow(unsafe_code)]
    // SAFETY: the function has no preconditions but that no other thread sets options.
    unsafe {
        libmimalloc_sys::mi_option_set(ARENA_MAX_OBJECT_SIZE, BLOCK_KIB_MAX);
    }
}

/// Changes when much has been freed.
static FREED: LazyLock<watch::Sender<()>> = LazyLock::new(|| watch::Sender::new(()));

/// Gives free memory back to the system: what this thread has freed, and threads that have ended. For a thread that has
/// just read thousands of records; takes a millisecond or so.
pub fn give_back() {
    #[allow(unsafe_code)]
    // SAFETY: the function has no preconditions and may be called from any thread at any time; it touches free memory of
    // the allocator only, whichever allocator the process uses.
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}

/// The same for this thread and those that wait in [`give_back_when_freed`]: for one that has put endpoints to sleep.
pub fn give_back_everywhere() {
    FREED.send_replace(());
    give_back();
}

/// Gives back what others have freed of this thread's memory, each time that they have. For a task on an event loop; it
/// never ends, and may be dropped at any time.
pub async fn give_back_when_freed() {
    let mut freed = FREED.subscribe();
    while freed.changed().await.is_ok() {
        give_back();
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "tests call the allocator itself: theirs is another")]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const BYTES: usize = 4 << 20;
    const PAGE: usize = 4096;

    /// Pages of a block that are in memory.
    fn resident(block: *const u8) -> usize {
        let mut entries = vec![0; BYTES / PAGE * 8];
        let map = std::fs::File::open("/proc/self/pagemap").unwrap();
        map.read_exact_at(&mut entries, (block as usize / PAGE * 8) as u64).unwrap();
        // Bit 63 of an entry says that the page is present.
        entries.chunks(8).filter(|entry| entry[7] & 0x80 != 0).count()
    }

    #[test]
    fn a_large_block_of_zeros_takes_no_memory_where_another_was_freed() {
        large_blocks_from_the_system();
        // SAFETY: each block is written to within its size, and freed once.
        unsafe {
            let used = libmimalloc_sys::mi_malloc(BYTES).cast::<u8>();
            used.write_bytes(1, BYTES);
            assert!(resident(used) > BYTES / PAGE / 2);
            libmimalloc_sys::mi_free(used.cast());
            let zeros = libmimalloc_sys::mi_zalloc(BYTES).cast::<u8>();
            assert_eq!(*zeros.add(BYTES / 2), 0);
            assert!(resident(zeros) < BYTES / PAGE / 16, "{} pages", resident(zeros));
            libmimalloc_sys::mi_free(zeros.cast());
        }
    }
}
