//! From a commit to files.
//!
//! The tree is first walked and measured, so that one that is over a limit costs no disk, and then
//! written, byte for byte as it is stored: no filter, no hook and no conversion of line ends.
//!
//! What is written stays inside: every directory is made by this walk, before what is in it, and every file is
//! made anew, so that no link of the tree is ever followed, not even in a tree that names a path twice.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use git2::{Oid, Repository};
use image_builder_actors::model::fault::{Fault, Reason};

use super::repository::git_fault;
use super::walk::{Entry, Kind, shown, walk};
use super::wire::FoundPointer;
use super::write::{NewFile, Place, failed, write_files};
use crate::source::fault;
use crate::source::git::files::{disk_fault, new_directory};
use crate::source::session::{Room, size};

/// Longest `.gitmodules` or `.lfsconfig` that is read, in bytes.
const LONGEST_CONFIG: usize = 1 << 20;

/// What has still to be put into a tree of files.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    pub(super) submodules: Vec<(Vec<u8>, String)>,
    pub(super) pointers: Vec<FoundPointer>,
}

/// Writes a tree into a directory that is empty or does not exist.
pub(super) fn write_tree(
    repository: &Repository,
    root: Oid,
    place: &Place<'_>,
    room: &Room,
) -> Result<Unfinished, Fault> {
    let sizes = measure(repository, root, room)?;
    match new_directory(place.directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(disk_fault(&error, "the source"));
        }
        _ => {}
    }
    let mut submodules = Vec::new();
    let mut sizes_of = sizes.iter().copied();
    let pointers = write_files(repository, place, sizes.len(), |write| {
        walk(repository, root, |entry| {
            let Entry { path, kind, id } = entry;
            let on_disk = || place.path(path);
            let made = match kind {
                Kind::File { executable } => {
                    let size = sizes_of.next().unwrap_or_default();
                    return write(NewFile { path: path.to_vec(), executable, id, size });
                }
                Kind::Directory => new_directory(&on_disk()),
                Kind::Submodule => {
                    submodules.push((path.to_vec(), id.to_string()));
                    new_directory(&on_disk())
                }
                Kind::Link => {
                    let target = repository.find_blob(id).map_err(|error| git_fault(&error))?;
                    symlink(OsStr::from_bytes(target.content()), on_disk())
                }
            };
            made.map_err(|error| failed(path, &error))
        })
    })?;
    Ok(Unfinished { submodules, pointers })
}

/// The text of a plain file in the root of a tree.
pub(super) fn text(
    repository: &Repository,
    root: Oid,
    name: &str,
) -> Result<Option<String>, Fault> {
    let tree = repository.find_tree(root).map_err(|error| git_fault(&error))?;
    let Some(entry) = tree.get_name(name) else { return Ok(None) };
    let Ok(blob) = repository.find_blob(entry.id()) else { return Ok(None) };
    if blob.content().len() > LONGEST_CONFIG {
        return Err(fault(Reason::TooLarge, format!("The file `{name}` has more than 1 MiB.")));
    }
    Ok(Some(String::from_utf8_lossy(blob.content()).into_owned()))
}

/// Counts what the tree will hold against the limits; returns the sizes of its files, in the order of the walk.
fn measure(repository: &Repository, root: Oid, room: &Room) -> Result<Vec<u64>, Fault> {
    let odb = repository.odb().map_err(|error| git_fault(&error))?;
    let largest = room.largest_file;
    let mut sizes = Vec::new();
    walk(repository, root, |entry| {
        room.count_entry()?;
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
        if matches!(entry.kind, Kind::File { .. }) {
            sizes.push(bytes);
        }
        room.count_bytes(bytes)
    })?;
    Ok(sizes)
}
