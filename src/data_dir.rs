//! The worker's own directory: locked, so that one process has it at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::exit::{Exit, StartError};

/// The embedded queue, in the data directory.
pub const QUEUE: &str = "queue.db";

/// The data directory, held by this process until the value is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("DATA_DIR: {0} is in use by another process; a replica needs one of its own")]
    InUse(String),
    #[error("DATA_DIR: cannot use {path}: {error}")]
    Io { path: String, error: io::Error },
}

impl From<DataDirError> for StartError {
    fn from(error: DataDirError) -> Self {
        let exit = match error {
            DataDirError::InUse(_) => Exit::Temporary,
            DataDirError::Io { .. } => Exit::Config,
        };
        StartError::new(exit, error)
    }
}

/// What a data directory looks like from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nobody has it.
    Free,
    /// It will be made in this directory, which is there.
    Missing(PathBuf),
    /// Some process has it, this one where that can be seen.
    InUse(Option<u32>),
}

/// Looks at a data directory, and leaves it as it is.
///
/// # Errors
///
/// It cannot be written, or not be made.
pub fn look(path: &Path) -> Result<Seen, DataDirError> {
    let failed = |error| DataDirError::Io { path: path.display().to_string(), error };
    if !path.exists() {
        // A relative path's last ancestor is empty, and means this directory.
        let parents = path
            .ancestors()
            .skip(1)
            .map(|it| if it.as_os_str().is_empty() { Path::new(".") } else { it });
        let parent = parents.into_iter().find(|parent| parent.exists()).unwrap_or(Path::new("/"));
        writable(parent).map_err(failed)?;
        return Ok(Seen::Missing(parent.canonicalize().map_err(failed)?));
    }
    writable(path).map_err(failed)?;
    let lock = match File::open(path.join("lock")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Seen::Free),
        lock => lock.map_err(failed)?,
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(Seen::Free),
        Err(TryLockError::WouldBlock) => Ok(Seen::InUse(holder(&lock))),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn writable(directory: &Path) -> io::Result<()> {
    tempfile::tempfile_in(directory).map(drop)
}

/// The process that holds the lock on a file, as far as the kernel shows it.
fn holder(file: &File) -> Option<u32> {
    let inode = file.metadata().ok()?.ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    // `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, process, place, ..] = fields[..] else { return None };
        let is_it = place.rsplit(':').next() == Some(inode.as_str());
        is_it.then(|| process.parse().ok())?
    })
}

impl DataDir {
    /// Makes the directory where it is missing, locks it, and clears what a dead worker left.
    ///
    /// # Errors
    ///
    /// Another process has it, or it cannot be written.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |error| DataDirError::Io { path: path.display().to_string(), error };
        std::fs::create_dir_all(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DataDirError::InUse(path.display().to_string()));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let dir = Self { path, _lock: lock };
        let workspaces = dir.workspaces();
        match std::fs::remove_dir_all(&workspaces) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        std::fs::create_dir_all(&workspaces).map_err(failed)?;
        Ok(dir)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is written down which names pushes gave to images.
    pub fn pushes(&self) -> PathBuf {
        self.path.join("pushes")
    }

    /// What is known of builds, where no database is set.
    pub fn history(&self) -> PathBuf {
        self.path.join("history.db")
    }

    /// The embedded queue.
    pub fn queue(&self) -> PathBuf {
        self.path.join(QUEUE)
    }

    /// What is kept of repositories.
    pub fn git(&self) -> PathBuf {
        self.path.join("git")
    }

    /// Where jobs have their workspaces.
    pub fn workspaces(&self) -> PathBuf {
        self.path.join("work")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_had_by_one_at_a_time_and_found_empty() {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("data");
        assert_eq!(
            look(&path.join("x")).ok(),
            Some(Seen::Missing(parent.path().canonicalize().expect("it is there")))
        );
        let first = DataDir::open(&path).expect("free");
        std::fs::write(first.workspaces().join("left over"), "").expect("written");
        assert!(matches!(DataDir::open(&path), Err(DataDirError::InUse(_))));
        // Where the kernel shows its locks, it is this process.
        let seen = look(&path).expect("it can be looked at");
        assert!(matches!(seen, Seen::InUse(None)) || seen == Seen::InUse(Some(std::process::id())));
        drop(first);
        let second = DataDir::open(&path).expect("free again");
        assert_eq!(std::fs::read_dir(second.workspaces()).expect("there").count(), 0);
        drop(second);
        assert_eq!(look(&path).ok(), Some(Seen::Free));
    }
}
