//! Memory that is free, and still the process's: the allocator keeps it for the next request.

/// Gives free memory back to the system: what this thread has freed, and threads that have ended. For a thread that has
/// just read thousands of records or put endpoints to sleep; takes a millisecond or so.
pub fn give_back() {
    #[allow(unsafe_code)]
    // SAFETY: the function has no preconditions and may be called from any thread at any time; it touches free memory of
    // the allocator only, whichever allocator the process uses.
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}
