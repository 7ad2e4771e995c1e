//! Memory that is free goes back to the system.
//!
//! glibc keeps what was freed: in the midst of its heaps in pieces, and at their ends up to a size that
//! it raises with the largest block that was ever freed, such as an engine's list of all its images.
//! Over thousands of jobs a worker would seem to grow, though nothing leaks.

use std::time::Duration;

use crate::blocking::blocking;

/// Between two times that free memory is given back.
const EVERY: Duration = Duration::from_secs(30);

/// Sets the allocator up. To be called before there are other threads.
pub fn set_up() {
    glibc::fix_thresholds();
}

/// Gives back what is free, again and again.
pub(crate) async fn give_back() {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        blocking(glibc::trim).await;
    }
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "the C library's own functions have no safe wrappers")]
mod glibc {
    /// Blocks from this size on, in bytes, have a mapping of their own, which goes with them; and so
    /// much may be free at the end of a heap. It is glibc's own value, which it otherwise raises.
    const THRESHOLD: libc::c_int = 128 * 1024;

    pub(super) fn fix_thresholds() {
        for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
            // SAFETY: it takes two numbers, and no other thread is there yet, see mallopt(3).
            unsafe { libc::mallopt(parameter, THRESHOLD) };
        }
    }

    pub(super) fn trim() {
        // SAFETY: it is given no pointer, and any thread may call it at any time, see malloc_trim(3).
        unsafe { libc::malloc_trim(0) };
    }
}

/// Other C libraries give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
mod glibc {
    pub(super) fn fix_thresholds() {}
    pub(super) fn trim() {}
}
