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

use super::repository::git_fault;
use super::walk::{Entry, Kind, shown, walk};
use super::wire::FoundPointer;
use crate::source::fault;
use crate::source::git::files::{disk_fault, new_directory, new_file};
use crate::source::git::lfs::Pointer;
use crate::source::session::{Room, size};

/// Longest `.gitmodules` or `.lfsconfig` that is read, in bytes.
const LONGEST_CONFIG: usize = 1 << 20;

/// What has still to be put into a tree of files.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    pub(super) submodules: Vec<(Vec<u8>, String)>,
    pub(super) pointers: Vec<FoundPointer>,
}

/// Writes a tree into `directory`, which is empty or does not exist.
pub(super) fn write_tree(
    repository: &Repository,
    root: Oid,
    directory: &Path,
    room: &Room,
) -> Result<Unfinished, Fault> {
    measure(repository, root, room)?;
    match new_directory(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(disk_fault(&error, "the source"));
        }
        _ => {}
    }
    let mut unfinished = Unfinished::default();
    walk(repository, root, |entry| write_entry(repository, directory, &entry, &mut unfinished))?;
    Ok(unfinished)
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

/// Counts what the tree will hold against the limits.
fn measure(repository: &Repository, root: Oid, room: &Room) -> Result<(), Fault> {
    let odb = repository.odb().map_err(|error| git_fault(&error))?;
    let largest = room.largest_file;
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
        room.count_bytes(bytes)
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
            unfinished.submodules.push((entry.path.to_vec(), entry.id.to_string()));
            new_directory(&path)
        }
        Kind::Link => symlink(OsStr::from_bytes(blob()?.content()), &path),
        Kind::File { executable } => {
            let blob = blob()?;
            if let Some(pointer) = Pointer::parse(blob.content()) {
                unfinished.pointers.push(FoundPointer {
                    path: entry.path.to_vec(),
                    executable,
                    oid: pointer.oid,
                    size: pointer.size,
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
