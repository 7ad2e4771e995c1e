//! Memory that is free goes back to the system.
//!
//! glibc keeps what was freed in the midst of its heaps, in pieces: over thousands of jobs a worker
//! would seem to grow, though nothing leaks.

use std::time::Duration;

use crate::blocking::blocking;

/// Between two times that free memory is given back.
const EVERY: Duration = Duration::from_secs(30);

/// Gives back what is free, again and again.
pub(crate) async fn give_back() {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        blocking(trim).await;
    }
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "the C library's own function has no safe wrapper")]
fn trim() {
    // SAFETY: it is given no pointer, and any thread may call it at any time, see malloc_trim(3).
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
