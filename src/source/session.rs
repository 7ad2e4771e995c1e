//! What all parts of one fetch share: what it may cost, and whether it is still wanted.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::limits::Limits;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::fault;

/// How often a long transfer tells how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// One fetch in progress.
pub(super) struct Session {
    /// How long a server may be silent.
    pub(super) silence: Duration,
    pub(super) limits: Limits,
    pub(super) cancel: CancellationToken,
    pub(super) runtime: Handle,
    progress: BuildLog,
    told: Mutex<Instant>,
    transferred: AtomicU64,
    bytes: AtomicU64,
    entries: AtomicU64,
    submodules: AtomicUsize,
}

impl Session {
    pub(super) fn new(silence: Duration, limits: Limits, progress: BuildLog) -> Self {
        Self {
            silence,
            limits,
            cancel: CancellationToken::new(),
            runtime: Handle::current(),
            progress,
            told: Mutex::new(Instant::now()),
            transferred: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            submodules: AtomicUsize::new(0),
        }
    }

    /// An error once nobody wants the result any more.
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.cancel.is_cancelled() { Err(cancelled()) } else { Ok(()) }
    }

    pub(super) fn note(&self, text: impl Into<String>) {
        self.progress.note(text);
    }

    /// Tells how far a transfer is, unless something was told a moment ago.
    pub(super) fn note_now_and_then(&self, text: impl FnOnce() -> String) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() >= TELL_EVERY {
            *told = Instant::now();
            self.progress.note(text());
        }
    }

    /// Tells what the source tree holds.
    pub(super) fn note_total(&self, commit: &str) {
        let entries = self.entries.load(Ordering::Relaxed);
        let bytes = self.bytes.load(Ordering::Relaxed);
        let transferred = self.transferred.load(Ordering::Relaxed);
        self.progress.note(format!(
            "commit {commit}: {entries} files and directories, {}, of a transfer of {}",
            size(bytes),
            size(transferred)
        ));
    }

    /// Counts bytes that came over the network.
    pub(super) fn count_transferred(&self, bytes: u64) -> Result<(), Fault> {
        let limit = self.limits.transfer_bytes;
        let total = self.transferred.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if total > limit {
            return Err(too_large("The clone transfers more", limit));
        }
        Ok(())
    }

    /// Counts bytes that the source tree will hold.
    pub(super) fn count_bytes(&self, bytes: u64) -> Result<(), Fault> {
        let limit = self.limits.source_bytes;
        let total = self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if total > limit {
            return Err(too_large("The source tree holds more", limit));
        }
        Ok(())
    }

    /// Counts a file or directory that the source tree will hold.
    pub(super) fn count_entry(&self) -> Result<(), Fault> {
        let limit = self.limits.source_entries;
        if self.entries.fetch_add(1, Ordering::Relaxed) >= limit {
            return Err(fault(
                Reason::TooLarge,
                format!("The source tree has more than {limit} files and directories."),
            ));
        }
        Ok(())
    }

    /// Counts a submodule, nested ones included.
    pub(super) fn count_submodule(&self) -> Result<(), Fault> {
        let limit = self.limits.submodules;
        if self.submodules.fetch_add(1, Ordering::Relaxed) >= limit {
            return Err(fault(
                Reason::TooLarge,
                format!("The repository has more than {limit} submodules, nested ones included."),
            ));
        }
        Ok(())
    }
}

/// What a given up fetch ends with; nobody reads it, for the future that would is gone.
pub(super) fn cancelled() -> Fault {
    fault(Reason::Cancelled, "The fetch was cancelled.")
}

fn too_large(what: &str, limit: u64) -> Fault {
    fault(Reason::TooLarge, format!("{what} than {}.", size(limit)))
}

/// A number of bytes for people.
pub(super) fn size(bytes: u64) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    match bytes as f64 {
        bytes if bytes >= 1024.0 * MIB => format!("{:.1} GiB", bytes / (1024.0 * MIB)),
        bytes if bytes >= MIB => format!("{:.1} MiB", bytes / MIB),
        bytes => format!("{bytes} bytes"),
    }
}
