//! From a commit to files.
//!
//! The tree is first walked and measured, so that one that is over a limit costs no disk, and then written, as
//! `git checkout` on Linux does it where nothing is configured: its `.gitattributes` decide on line ends,
//! encodings and `$Id$`. There is no filter but Git LFS, and no hook.
//!
//! What is written stays inside: every directory is made by this walk, before what is in it, and every file is
//! made anew, so that no link of the tree is ever followed, not even in a tree that names a path twice.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use git2::{Oid, Repository};
use image_builder_actors::model::fault::{Fault, Reason};

use super::attributes::{self, Attributes};
use super::repository::git_fault;
use super::unpacked::Unpacked;
use super::walk::{Entry, Kind, walk};
use super::wire::{CheckOut, FoundPointer};
use super::write::{NewFile, Notes, Place, failed, too_large, write_files};
use crate::source::fault;
use crate::source::git::files::{disk_fault, new_directory};
use crate::source::session::Room;

/// Longest `.gitmodules` or `.lfsconfig` that is read, in bytes.
const LONGEST_CONFIG: usize = 1 << 20;

/// What has still to be put into a tree of files, and what there is to say of it.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    pub(super) submodules: Vec<(Vec<u8>, String)>,
    pub(super) pointers: Vec<FoundPointer>,
    pub(super) notes: Vec<String>,
}

/// Writes a tree into the directory of `wish`, which is empty or does not exist.
pub(super) fn write_tree(
    repository: &Repository,
    root: Oid,
    wish: &CheckOut,
) -> Result<Unfinished, Fault> {
    let Measured { sizes, attributes } = measure(repository, root, &wish.room)?;
    let kept = wish.keeps.then(|| Unpacked::open(repository.path())).flatten();
    let place = Place {
        directory: &wish.directory,
        kept: kept.as_ref(),
        room: &wish.room,
        attributes: Attributes::read(repository, &attributes)?,
        notes: Notes::default(),
    };
    match new_directory(place.directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(disk_fault(&error, "the source"));
        }
        _ => {}
    }
    let mut submodules = Vec::new();
    let mut sizes_of = sizes.iter().copied();
    let pointers = write_files(repository, &place, sizes.len(), |write| {
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
    Ok(Unfinished { submodules, pointers, notes: place.notes.into_all() })
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

/// What a walk finds out before anything is written.
struct Measured {
    /// The sizes of the files, in the order of the walk.
    sizes: Vec<u64>,
    attributes: Vec<attributes::File>,
}

/// Counts what the tree will hold against the limits, as far as that can be told from what is stored.
fn measure(repository: &Repository, root: Oid, room: &Room) -> Result<Measured, Fault> {
    let odb = repository.odb().map_err(|error| git_fault(&error))?;
    let mut measured = Measured { sizes: Vec::new(), attributes: Vec::new() };
    walk(repository, root, |entry| {
        room.count_entry()?;
        if !matches!(entry.kind, Kind::File { .. } | Kind::Link) {
            return Ok(());
        }
        let (bytes, _) = odb.read_header(entry.id).map_err(|error| git_fault(&error))?;
        let bytes = bytes as u64;
        if bytes > room.largest_file {
            return Err(too_large(entry.path, bytes, room));
        }
        if matches!(entry.kind, Kind::File { .. }) {
            measured.sizes.push(bytes);
        }
        // Of a link git reads what it points to as if that were its text.
        measured.attributes.extend(attributes::File::at(entry.path, entry.id, bytes));
        room.count_bytes(bytes)
    })?;
    Ok(measured)
}
