//! From a commit to files.
//!
//! The tree is first walked and measured, so that one that is over a limit costs no disk, and then
//! written, byte for byte as it is stored: no filter, no hook and no conversion of line ends.
//!
//! What is written stays inside: every directory is made by this walk and every file is made anew,
//! so that no link of the tree is ever followed, not even in a tree that names a path twice.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use git2::{Oid, Repository};
use image_builder_actors::model::fault::{Fault, Reason};

use super::files::{disk_fault, new_directory, new_file};
use super::lfs::{Placeholder, Pointer};
use super::repository::git_fault;
use super::walk::{Entry, Kind, shown, walk};
use crate::source::fault;
use crate::source::session::{Session, size};

/// What has still to be put into a tree of files.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// The submodules: their paths and commits. An empty directory stands there.
    pub(super) submodules: Vec<(Vec<u8>, Oid)>,
    /// The Git LFS pointers, which stand where their content belongs.
    pub(super) pointers: Vec<Placeholder>,
}

/// Writes the tree of `commit` into `directory`, which is empty or does not exist.
pub(super) fn write_tree(
    session: &Session,
    repository: &Repository,
    commit: Oid,
    directory: &Path,
) -> Result<Unfinished, Fault> {
    let root = repository.find_commit(commit).map_err(|error| git_fault(&error))?.tree_id();
    measure(session, repository, root)?;

    match new_directory(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(disk_fault(&error, "the source"));
        }
        _ => {}
    }
    let mut unfinished = Unfinished::default();
    walk(session, repository, root, |entry| {
        write_entry(repository, directory, &entry, &mut unfinished)
    })?;
    Ok(unfinished)
}

/// Counts what the tree will hold against the limits.
fn measure(session: &Session, repository: &Repository, root: Oid) -> Result<(), Fault> {
    let odb = repository.odb().map_err(|error| git_fault(&error))?;
    let largest = session.largest_file;
    walk(session, repository, root, |entry| {
        session.count_entry()?;
        if !matches!(entry.kind, Kind::File { .. } | Kind::Link) {
            return Ok(());
        }
        let (bytes, _) = odb.read_header(entry.id).map_err(|error| git_fault(&error))?;
        let bytes = bytes as u64;
        if bytes > largest {
            return Err(fault(
                Reason::TooLarge,
                format!(
                    "The file `{}` has {}, more than {}.",
                    shown(entry.path),
                    size(bytes),
                    size(largest)
                ),
            ));
        }
        session.count_bytes(bytes)
    })
}

fn write_entry(
    repository: &Repository,
    directory: &Path,
    entry: &Entry<'_>,
    unfinished: &mut Unfinished,
) -> Result<(), Fault> {
    let path = directory.join(OsStr::from_bytes(entry.path));
    let blob = || repository.find_blob(entry.id).map_err(|error| git_fault(&error));
    let written = match entry.kind {
        Kind::Directory => new_directory(&path),
        Kind::Submodule => {
            unfinished.submodules.push((entry.path.to_vec(), entry.id));
            new_directory(&path)
        }
        Kind::Link => symlink(OsStr::from_bytes(blob()?.content()), &path),
        Kind::File { executable } => {
            let blob = blob()?;
            if let Some(pointer) = Pointer::parse(blob.content()) {
                unfinished.pointers.push(Placeholder {
                    file: path.clone(),
                    path: shown(entry.path),
                    executable,
                    pointer,
                });
            }
            new_file(&path, executable).and_then(|mut file| file.write_all(blob.content()))
        }
    };
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => fault(
            Reason::ForbiddenSource,
            format!("The commit's tree holds the path `{}` twice.", shown(entry.path)),
        ),
        // A link that points nowhere, or to a text with a zero byte.
        io::ErrorKind::InvalidInput | io::ErrorKind::NotFound => fault(
            Reason::ForbiddenSource,
            format!("The path `{}` cannot be stored: it is malformed.", shown(entry.path)),
        ),
        _ => disk_fault(&error, &format!("`{}`", shown(entry.path))),
    })
}
