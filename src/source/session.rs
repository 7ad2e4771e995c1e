//! What all parts of one fetch share: who it is for, what it may cost, and whether it is still wanted.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use git2::{ErrorClass, ObjectType, Oid, Repository, RepositoryInitOptions};
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::secret::Secret;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::address::{Address, Forge};
use super::client::Clients;
use super::fault;

/// How often a long transfer tells how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Largest commit, tag or tree that is read, in bytes: room for half a million files in a directory.
const LARGEST_OBJECT: usize = 64 << 20;

/// One fetch in progress.
pub(super) struct Session {
    pub(super) forge: Arc<Forge>,
    pub(super) clients: Clients,
    /// How long a server may be silent.
    pub(super) silence: Duration,
    pub(super) limits: Limits,
    pub(super) cancel: CancellationToken,
    pub(super) runtime: Handle,
    token: Option<Secret>,
    progress: BuildLog,
    told: Mutex<Instant>,
    transferred: AtomicU64,
    bytes: AtomicU64,
    entries: AtomicU64,
    submodules: AtomicUsize,
}

impl Session {
    pub(super) fn new(
        forge: Arc<Forge>,
        clients: Clients,
        silence: Duration,
        limits: Limits,
        token: Option<Secret>,
        progress: BuildLog,
    ) -> Self {
        Self {
            forge,
            clients,
            silence,
            limits,
            cancel: CancellationToken::new(),
            runtime: Handle::current(),
            token: token.filter(|token| !token.is_empty()),
            progress,
            told: Mutex::new(Instant::now()),
            transferred: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            submodules: AtomicUsize::new(0),
        }
    }

    /// The credential for an address: only the forge's own origin ever gets one.
    pub(super) fn token_for(&self, address: &Address) -> Option<&Secret> {
        if address.is_forge { self.token.as_ref() } else { None }
    }

    /// The request's credential, for the forge's API.
    pub(super) fn token(&self) -> Option<&Secret> {
        self.token.as_ref()
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

/// An empty bare repository that takes nothing over from the machine's git templates.
pub(super) fn new_repository(path: &Path) -> Result<Repository, Fault> {
    let mut options = RepositoryInitOptions::new();
    options.bare(true).external_template(false).no_reinit(true);
    Repository::init_opts(path, &options).map_err(|error| git_fault(&error))
}

pub(super) fn remove_repository(path: &Path) -> Result<(), Fault> {
    std::fs::remove_dir_all(path).map_err(|error| disk_fault(&error, "the clone"))
}

/// An error when a commit, tag or tree is larger than any honest one: libgit2 reads them whole.
pub(super) fn check_size(repository: &Repository, id: Oid, label: &str) -> Result<(), Fault> {
    let odb = repository.odb().map_err(|error| git_fault(&error))?;
    let (bytes, kind) = odb.read_header(id).map_err(|error| git_fault(&error))?;
    if bytes > LARGEST_OBJECT && kind != ObjectType::Blob {
        return Err(fault(
            Reason::TooLarge,
            format!("The {label} holds a {kind} of {}.", size(bytes as u64)),
        ));
    }
    Ok(())
}

/// The fault of a failed write (or read) of ours.
pub(super) fn disk_fault(error: &io::Error, what: &str) -> Fault {
    use io::ErrorKind::{InvalidFilename, QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => {
            fault(Reason::DiskLow, "The worker's disk is full: the source cannot be stored.")
        }
        InvalidFilename => fault(
            Reason::TooLarge,
            format!("The name of {what} is longer than a file system takes."),
        ),
        _ => fault(Reason::Crashed, format!("The worker could not store {what}: {error}.")),
    }
}

/// The fault of libgit2 failing at something that is neither the network's nor the request's doing.
pub(super) fn git_fault(error: &git2::Error) -> Fault {
    let text = error.message();
    if text.contains("No space left") || text.contains("quota exceeded") {
        return fault(Reason::DiskLow, "The worker's disk is full: the source cannot be stored.");
    }
    match error.class() {
        ErrorClass::Os | ErrorClass::Filesystem | ErrorClass::NoMemory => {
            fault(Reason::Crashed, format!("The worker could not store the source: {text}."))
        }
        _ => fault(
            Reason::ForgeFailed,
            format!("What the server sent cannot be read as a git repository: {text}."),
        ),
    }
}
