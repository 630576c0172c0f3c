//! Memory that is free, and still the process's: the allocator keeps it for the next request.
//!
//! Each thread has a heap of its own. What other threads free of it, it takes back only when it next allocates or is told
//! to; so after a thousand endpoints went to sleep, the event loops that woke them would hold what they were made of.

use std::sync::LazyLock;

use tokio::sync::watch;

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
