//! The repository that a fetch is kept in, as libgit2 has it.

use std::path::Path;

use git2::{ErrorClass, ObjectType, Oid, Repository, RepositoryInitOptions};
use image_builder_actors::model::fault::{Fault, Reason};

use super::files::disk_fault;
use crate::source::fault;
use crate::source::session::size;

/// Largest commit, tag or tree that is read, in bytes: room for half a million files in a directory.
const LARGEST_OBJECT: usize = 64 << 20;

/// An empty bare repository that takes nothing over from the machine's git templates.
pub(super) fn create(path: &Path) -> Result<Repository, Fault> {
    let mut options = RepositoryInitOptions::new();
    options.bare(true).external_template(false).no_reinit(true);
    Repository::init_opts(path, &options).map_err(|error| git_fault(&error))
}

pub(super) fn remove(path: &Path) -> Result<(), Fault> {
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
