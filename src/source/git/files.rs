//! Writing files of a source tree: made anew, with git's modes.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use image_builder_actors::model::fault::{Fault, Reason};

use crate::source::fault;

/// A directory that was not there before, with git's mode, whatever the process's umask is.
pub(super) fn new_directory(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// Git's mode of a file.
pub(super) fn mode(executable: bool) -> Permissions {
    Permissions::from_mode(if executable { 0o755 } else { 0o644 })
}

/// A file that was not there before. Its mode is git's, whatever the process's umask is.
pub(super) fn new_file(path: &Path, executable: bool) -> io::Result<fs::File> {
    let mode = mode(executable);
    let file = OpenOptions::new().write(true).create_new(true).mode(mode.mode()).open(path)?;
    if file.metadata()?.permissions().mode() & 0o777 != mode.mode() {
        file.set_permissions(mode)?;
    }
    Ok(file)
}

/// How something is called that is being removed.
pub(super) const GOING: &str = "going";

/// Removes a directory: at once for whoever looks for it, then from disk. Meanwhile it is beside `entry`, which
/// it is or is in.
pub(super) fn remove_beside(directory: &Path, entry: &Path) -> io::Result<()> {
    let going = entry.with_extension(format!("{}.{GOING}", uuid::Uuid::new_v4().simple()));
    match fs::rename(directory, &going) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => fs::remove_dir_all(&going),
    }
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
