//! The repository that objects are kept in, as libgit2 has it.

use std::fs;
use std::io;
use std::path::Path;

use git2::{
    ErrorClass, ErrorCode, ObjectType, Oid, Repository, RepositoryInitOptions, RepositoryOpenFlags,
};
use image_builder_actors::model::fault::{Fault, Reason};

use crate::source::fault;
use crate::source::git::files::disk_fault;
use crate::source::session::size;

/// Largest commit, tag or tree that is read, in bytes: room for half a million files in a directory.
const LARGEST_OBJECT: usize = 64 << 20;

/// The bare repository at `path`; where there is none, or only the beginning of one, an empty one that
/// takes nothing over from the machine's git templates.
pub(super) fn open(path: &Path) -> Result<Repository, Fault> {
    // Not `open_bare`, which knows nothing of where a history ends.
    let flags = RepositoryOpenFlags::BARE | RepositoryOpenFlags::NO_SEARCH;
    if let Ok(repository) = Repository::open_ext(path, flags, [] as [&str; 0]) {
        return Ok(repository);
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(disk_fault(&error, "the clone"));
        }
        _ => {}
    }
    let mut options = RepositoryInitOptions::new();
    options.bare(true).external_template(false).no_reinit(true).mkpath(true);
    Repository::init_opts(path, &options).map_err(|error| git_fault(&error))
}

/// The name of an object, as the worker sends it.
pub(super) fn object(id: &str) -> Result<Oid, Fault> {
    Oid::from_str(id).map_err(|_| fault(Reason::Crashed, format!("`{id}` names no object.")))
}

/// An error when a commit, tag or tree is larger than any honest one: libgit2 reads them whole.
pub(super) fn check_size(repository: &Repository, id: Oid) -> Result<(), Fault> {
    let odb = repository.odb().map_err(|error| git_fault(&error))?;
    let (bytes, kind) = odb.read_header(id).map_err(|error| git_fault(&error))?;
    if bytes > LARGEST_OBJECT && kind != ObjectType::Blob {
        return Err(fault(
            Reason::TooLarge,
            format!("The repository holds a {kind} of {}.", size(bytes as u64)),
        ));
    }
    Ok(())
}

/// The fault of libgit2 failing. `forge_failed` stands for all that cannot be read of what was sent, or is
/// missing in it.
pub(super) fn git_fault(error: &git2::Error) -> Fault {
    let text = error.message();
    if text.contains("No space left") || text.contains("quota exceeded") {
        return fault(Reason::DiskLow, "The worker's disk is full: the source cannot be stored.");
    }
    let unreadable = || {
        let message = format!("What the server sent cannot be read as a git repository: {text}.");
        fault(Reason::ForgeFailed, message)
    };
    match error.class() {
        ErrorClass::NoMemory => out_of_memory(),
        ErrorClass::Os if text.contains("Cannot allocate memory") => out_of_memory(),
        // Only for want of memory. A delta that makes an object which is there already is looked at again and again,
        // and each time costs some.
        ErrorClass::Zlib if text.contains("failed to init zlib stream") => out_of_memory(),
        ErrorClass::Os | ErrorClass::Filesystem => {
            fault(Reason::Crashed, format!("The worker could not store the source: {text}."))
        }
        // The server sent what was pushed to it, and that is what is wrong.
        ErrorClass::Object | ErrorClass::Tree | ErrorClass::Tag
            if error.code() != ErrorCode::NotFound =>
        {
            fault(
                Reason::ForbiddenSource,
                format!("The repository holds an object that is malformed: {text}."),
            )
        }
        _ => unreadable(),
    }
}

/// The fault of objects that do not fit into the child's memory.
fn out_of_memory() -> Fault {
    fault(Reason::TooLarge, super::TOO_MUCH_MEMORY)
}
