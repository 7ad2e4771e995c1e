//! What all parts of one fetch share: what it may cost, and whether it is still wanted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::limits::Limits;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::concerns::Concerns;
use super::fault;

/// A long transfer notes at most this often how far it is.
const BETWEEN_NOTES: Duration = Duration::from_secs(5);

/// One fetch in progress.
pub(super) struct Session {
    /// How long a server may be silent.
    pub(super) silence: Duration,
    /// What the source tree may hold.
    pub(super) room: Room,
    pub(super) cancel: CancellationToken,
    /// Whom it concerns when a server has no room for the fetch.
    pub(super) concerns: Concerns,
    pub(super) runtime: Handle,
    progress: BuildLog,
    last_note: Mutex<Instant>,
    transferred: Budget,
    submodules: Budget,
}

impl Session {
    pub(super) fn new(
        silence: Duration,
        limits: &Limits,
        concerns: Concerns,
        progress: BuildLog,
    ) -> Self {
        Self {
            silence,
            room: Room::new(limits.source_file_bytes, limits.source_bytes, limits.source_entries),
            cancel: CancellationToken::new(),
            concerns,
            runtime: Handle::current(),
            progress,
            last_note: Mutex::new(Instant::now()),
            transferred: Budget::new(limits.transfer_bytes),
            submodules: Budget::new(limits.submodules as u64),
        }
    }

    /// An error once nobody wants the result any more.
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.cancel.is_cancelled() { Err(cancelled()) } else { Ok(()) }
    }

    pub(super) fn note(&self, text: impl Into<String>) {
        self.progress.note(text);
    }

    /// Notes how far a transfer is, unless that was noted a moment ago.
    pub(super) fn note_now_and_then(&self, text: impl FnOnce() -> String) {
        let mut last = self.last_note.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= BETWEEN_NOTES {
            *last = Instant::now();
            self.progress.note(text());
        }
    }

    /// Notes what the source tree holds.
    pub(super) fn note_total(&self) {
        let (bytes, transferred) = (size(self.room.bytes.spent()), size(self.transferred.spent()));
        let entries = match self.room.entries.spent() {
            1 => "1 file".to_owned(),
            entries => format!("{entries} files and directories"),
        };
        self.progress.note(format!("{entries}, {bytes}, of a transfer of {transferred}"));
    }

    /// Counts bytes that came over the network.
    pub(super) fn count_transferred(&self, bytes: u64) -> Result<(), Fault> {
        let over = |limit| format!("The clone transfers more than {}.", size(limit));
        self.transferred.spend(bytes, over)
    }

    /// Counts a submodule, nested ones included.
    pub(super) fn count_submodule(&self) -> Result<(), Fault> {
        let over = |limit| {
            format!("The repository has more than {limit} submodules, nested ones included.")
        };
        self.submodules.spend(1, over)
    }
}

/// What a source tree may hold, and holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Room {
    /// Longest file that git itself stores, in bytes.
    pub(super) largest_file: u64,
    bytes: Budget,
    entries: Budget,
}

impl Room {
    pub(super) fn new(largest_file: u64, bytes: u64, entries: u64) -> Self {
        Self { largest_file, bytes: Budget::new(bytes), entries: Budget::new(entries) }
    }

    /// Counts bytes that the source tree will hold.
    pub(super) fn count_bytes(&self, bytes: u64) -> Result<(), Fault> {
        let over = |limit| format!("The source tree holds more than {}.", size(limit));
        self.bytes.spend(bytes, over)
    }

    /// Counts a file or directory that the source tree will hold.
    pub(super) fn count_entry(&self) -> Result<(), Fault> {
        let over = |limit| format!("The source tree has more than {limit} files and directories.");
        self.entries.spend(1, over)
    }

    /// Takes over what was counted elsewhere, in a copy of this.
    pub(super) fn take_over(&self, counted: &Room) {
        self.bytes.spent.store(counted.bytes.spent(), Ordering::Relaxed);
        self.entries.spent.store(counted.entries.spent(), Ordering::Relaxed);
    }
}

/// What a fetch may have of something, and has had.
#[derive(Debug, Serialize, Deserialize)]
struct Budget {
    limit: u64,
    spent: AtomicU64,
}

impl Clone for Budget {
    fn clone(&self) -> Self {
        Self { limit: self.limit, spent: self.spent().into() }
    }
}

impl Budget {
    fn new(limit: u64) -> Self {
        Self { limit, spent: AtomicU64::new(0) }
    }

    fn spent(&self) -> u64 {
        self.spent.load(Ordering::Relaxed)
    }

    /// An error with the words of `over` once that is more than the limit.
    fn spend(&self, amount: u64, over: impl FnOnce(u64) -> String) -> Result<(), Fault> {
        let total = self.spent.fetch_add(amount, Ordering::Relaxed).saturating_add(amount);
        if total > self.limit { Err(fault(Reason::TooLarge, over(self.limit))) } else { Ok(()) }
    }
}

/// What a fetch that was given up ends with. Nobody reads it: the future that would is gone.
pub(super) fn cancelled() -> Fault {
    fault(Reason::Cancelled, "The fetch was cancelled.")
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
