//! Writing the files of a tree, on several threads: making a file takes a file system longer than it takes to
//! unpack most of them.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::num::NonZero;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use git2::{Oid, Repository};
use image_builder_actors::model::fault::{Fault, Reason};

use super::attributes::{Attributes, Treatment};
use super::conversion::Conversion;
use super::repository::git_fault;
use super::unpacked::Unpacked;
use super::walk::shown;
use super::wire::FoundPointer;
use crate::net::http::excerpt;
use crate::source::fault;
use crate::source::git::files::{disk_fault, new_file};
use crate::source::git::lfs::Pointer;
use crate::source::session::{Room, size};

/// More threads than this wait for one another in the file system.
const MOST_THREADS: usize = 4;
/// Fewer files than these are written before a thread has begun.
const FEW: usize = 64;
/// Files that a thread takes at once.
const BATCH: usize = 32;
/// Batches that wait for a thread.
const WAITING: usize = 16;
/// Larger files are unpacked one at a time, since each is in memory as a whole.
const LARGE: u64 = 1 << 20;
/// How many notes are made of one tree.
const MOST_NOTES: usize = 20;

/// Where a tree is written.
pub(super) struct Place<'a> {
    /// The root of the tree.
    pub(super) directory: &'a Path,
    /// Where files are kept for the next one.
    pub(super) kept: Option<&'a Unpacked>,
    pub(super) room: &'a Room,
    pub(super) attributes: Attributes,
    pub(super) notes: Notes,
}

/// What whoever reads the log of the build should know of how a tree was written.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn add(&self, note: impl FnOnce() -> String) {
        let mut notes = lock(&self.0);
        if notes.len() < MOST_NOTES {
            notes.push(note());
        }
    }

    /// All of them, in an order that is always the same.
    pub(super) fn into_all(self) -> Vec<String> {
        let mut notes = self.0.into_inner().unwrap_or_default();
        notes.sort_unstable();
        notes
    }
}

/// A file that is to be written.
pub(super) struct NewFile {
    /// Below the root of the tree.
    pub(super) path: Vec<u8>,
    pub(super) executable: bool,
    pub(super) id: Oid,
    /// In bytes.
    pub(super) size: u64,
}

impl Place<'_> {
    pub(super) fn path(&self, below: &[u8]) -> PathBuf {
        self.directory.join(OsStr::from_bytes(below))
    }

    /// Makes a file, and returns the Git LFS pointer that it is, if it is one. What is kept are files as they are
    /// stored: neither pointers, which are not what is built, nor what is converted.
    fn write(&self, repository: &Repository, new: &NewFile) -> Result<Option<FoundPointer>, Fault> {
        let NewFile { executable, id, size, .. } = *new;
        let path = self.path(&new.path);
        let failed = |error: io::Error| failed(&new.path, &error);
        let Treatment { conversion, is_lfs } = self.attributes.of(&new.path);
        let may_be_pointer = is_lfs && size < Pointer::LONGEST;
        let kept = self.kept.filter(|_| conversion.is_none() && !may_be_pointer);
        if let Some(kept) = kept
            && kept.link(id, executable, size, &path).map_err(failed)?
        {
            return Ok(None);
        }
        let blob = repository.find_blob(id).map_err(|error| git_fault(&error))?;
        let stored = blob.content();
        let pointer = if may_be_pointer { Pointer::parse(stored) } else { None };
        let content = match conversion.filter(|_| pointer.is_none()) {
            Some(conversion) => self.converted(new, &conversion, stored)?,
            None => Cow::Borrowed(stored),
        };
        let mut file = new_file(&path, executable).map_err(failed)?;
        file.write_all(&content).map_err(failed)?;
        if let Some(kept) = kept {
            kept.keep(id, executable, &file, &path);
        }
        let found = |Pointer { oid, size }| {
            let path = new.path.clone();
            FoundPointer { path, executable, oid, size }
        };
        Ok(pointer.map(found))
    }

    /// What is written of a file; what it grows by counts against the limits.
    fn converted<'b>(
        &self,
        new: &NewFile,
        conversion: &Conversion,
        stored: &'b [u8],
    ) -> Result<Cow<'b, [u8]>, Fault> {
        let (content, not_encoded) = conversion.apply(new.id, stored);
        if let Some(encoding) = not_encoded {
            self.notes.add(|| {
                let (path, encoding) = (shown(&new.path), excerpt(encoding));
                format!("`{path}` stays in UTF-8: it cannot be encoded as `{encoding}`")
            });
        }
        let bytes = content.len() as u64;
        if bytes > self.room.largest_file {
            return Err(too_large(&new.path, bytes, self.room));
        }
        self.room.count_bytes(bytes.saturating_sub(new.size))?;
        Ok(content)
    }
}

/// What the threads of one tree share.
struct Shared<'a> {
    place: &'a Place<'a>,
    batches: Mutex<Receiver<Vec<NewFile>>>,
    /// The first failure; nothing is written after it.
    failed: Mutex<Option<Fault>>,
    pointers: Mutex<Vec<FoundPointer>>,
}

/// Writes the `count` files that `walk` hands over, each after the directory that it is in; returns the Git LFS
/// pointers among them, by their paths.
pub(super) fn write_files(
    repository: &Repository,
    place: &Place<'_>,
    count: usize,
    walk: impl FnOnce(&mut dyn FnMut(NewFile) -> Result<(), Fault>) -> Result<(), Fault>,
) -> Result<Vec<FoundPointer>, Fault> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let wanted = if count < FEW || cores == 1 { 0 } else { cores.min(MOST_THREADS) };
    let (send, receive) = sync_channel(WAITING);
    let shared = Shared {
        place,
        batches: Mutex::new(receive),
        failed: Mutex::default(),
        pointers: Mutex::default(),
    };
    let bare = repository.path();
    let walked = thread::scope(|scope| -> Result<(), Fault> {
        let work = || shared.work(bare);
        // As many as there is memory for.
        let threads = (0..wanted)
            .filter(|_| thread::Builder::new().spawn_scoped(scope, work).is_ok())
            .count();
        let mut batch = Vec::new();
        // Dropped at the end, so that the threads end.
        let send = send;
        walk(&mut |new| {
            if threads == 0 || new.size > LARGE {
                let pointer = place.write(repository, &new)?;
                lock(&shared.pointers).extend(pointer);
                return Ok(());
            }
            batch.push(new);
            if batch.len() < BATCH {
                return Ok(());
            }
            drop(send.send(std::mem::take(&mut batch)));
            lock(&shared.failed).clone().map_or(Ok(()), Err)
        })?;
        drop(send.send(batch));
        Ok(())
    });
    walked.and(shared.failed.into_inner().unwrap_or_default().map_or(Ok(()), Err))?;
    let mut pointers = shared.pointers.into_inner().unwrap_or_default();
    pointers.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    Ok(pointers)
}

impl Shared<'_> {
    /// Writes what comes, until nothing comes any more.
    fn work(&self, repository: &Path) {
        // The objects alone: where a history ends is nothing to them.
        let repository = Repository::open_bare(repository).map_err(|error| git_fault(&error));
        loop {
            let received = lock(&self.batches).recv();
            let Ok(batch) = received else { return };
            if lock(&self.failed).is_some() {
                continue;
            }
            let written = repository.as_ref().map_err(Fault::clone).and_then(|repository| {
                let written = batch.iter().map(|new| self.place.write(repository, new));
                written.collect::<Result<Vec<_>, _>>()
            });
            match written {
                Ok(pointers) => lock(&self.pointers).extend(pointers.into_iter().flatten()),
                Err(fault) => {
                    lock(&self.failed).get_or_insert(fault);
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The fault of a file of so many bytes, which are too many.
pub(super) fn too_large(path: &[u8], bytes: u64, room: &Room) -> Fault {
    let (path, bytes, largest) = (shown(path), size(bytes), size(room.largest_file));
    fault(Reason::TooLarge, format!("The file `{path}` has {bytes}, more than {largest}."))
}

/// The fault of an entry that cannot be made.
pub(super) fn failed(path: &[u8], error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::AlreadyExists => fault(
            Reason::ForbiddenSource,
            format!("The commit's tree holds the path `{}` twice.", shown(path)),
        ),
        // A link that points nowhere, or to a text with a zero byte.
        io::ErrorKind::InvalidInput | io::ErrorKind::NotFound => fault(
            Reason::ForbiddenSource,
            format!("The path `{}` cannot be stored: it is malformed.", shown(path)),
        ),
        _ => disk_fault(error, &format!("`{}`", shown(path))),
    }
}
