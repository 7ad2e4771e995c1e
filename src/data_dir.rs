//! The worker's own directory: locked, so that one process has it at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
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
        let first = DataDir::open(&path).expect("free");
        std::fs::write(first.workspaces().join("left over"), "").expect("written");
        assert!(matches!(DataDir::open(&path), Err(DataDirError::InUse(_))));
        drop(first);
        let second = DataDir::open(&path).expect("free again");
        assert_eq!(std::fs::read_dir(second.workspaces()).expect("there").count(), 0);
    }
}
