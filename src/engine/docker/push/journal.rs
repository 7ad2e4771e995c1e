//! The names that pushes give to images, written down: a worker that is killed in a push leaves its
//! name behind, and the next one with the same data directory removes it.
//!
//! Files are written and read where a task runs: they are few, small, and local.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bollard::Docker;
use bollard::errors::Error as EngineError;
use serde::{Deserialize, Serialize};

use crate::engine::docker::{inspect_image, remove_image};

/// Extension of the file of an entry that nobody works on any longer.
const LEFT: &str = "left";

/// A directory with a file for each name that is being pushed.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
}

/// A name that a push gave to an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PushedName {
    pub(super) name: String,
    pub(super) image_id: String,
}

/// A name that is being pushed. Dropped before it is [gone](Entry::gone), it is left to be cleared.
#[derive(Debug)]
pub(super) struct Entry(Option<PathBuf>);

impl Journal {
    /// Makes the directory where it is missing. What is in it a dead worker left.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        for entry in fs::read_dir(dir)? {
            leave(&entry?.path());
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Writes down a name that is about to be given.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write(&self, pushed: &PushedName) -> io::Result<Entry> {
        let path = self.dir.join(uuid::Uuid::new_v4().simple().to_string());
        let entry = Entry(Some(path.clone()));
        fs::write(path, serde_json::to_vec(pushed)?)?;
        Ok(entry)
    }

    /// The names that were left.
    pub(super) fn left(&self) -> Vec<Left> {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        files
            .map(|file| file.path())
            .filter(|path| path.extension().is_some_and(|it| it == LEFT))
            .filter_map(read)
            .collect()
    }

    /// Whether `name` was left. From now on it is no longer: the caller is about to give it again.
    pub(super) fn take_over(&self, name: &str) -> bool {
        let mut was_left = false;
        for left in self.left().into_iter().filter(|left| left.name() == name) {
            left.done();
            was_left = true;
        }
        was_left
    }
}

/// A name that was left on an image, with the file of the entry that says so.
#[derive(Debug)]
pub(super) struct Left {
    pushed: PushedName,
    path: PathBuf,
}

impl Left {
    pub(super) fn name(&self) -> &str {
        &self.pushed.name
    }

    /// Removes the name from its image, which goes with it where that is its last one. What the
    /// engine cannot be asked about now stays for the next time.
    pub(super) async fn clear(self, docker: &Docker) {
        if !self.path.exists() {
            return;
        }
        match self.pushed.remove(docker, LastName::Goes).await {
            Ok(_) => {
                tracing::info!(
                    name = self.name(),
                    "the name of a push that was cut off is cleared"
                );
                self.done();
            }
            Err(error) => {
                tracing::debug!(%error, name = self.name(), "cannot clear a name that was left");
            }
        }
    }

    fn done(self) {
        remove(&self.path);
    }
}

/// An entry that was only half written names nothing: the name would have been given after it.
fn read(path: PathBuf) -> Option<Left> {
    let pushed = fs::read(&path).ok().and_then(|content| serde_json::from_slice(&content).ok());
    if pushed.is_none() {
        remove(&path);
    }
    Some(Left { pushed: pushed?, path })
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(%error, path = %path.display(), "cannot remove an entry of the push journal");
    }
}

impl Entry {
    /// The name is gone from the engine.
    pub(super) fn gone(mut self) {
        if let Some(path) = self.0.take() {
            remove(&path);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            leave(&path);
        }
    }
}

/// Marks an entry as one that nobody works on. Should that fail, the next worker does it.
fn leave(path: &Path) {
    if path.extension().is_none() {
        let _ = fs::rename(path, path.with_extension(LEFT));
    }
}

/// What is to happen to an image's last name: the image goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastName {
    Stays,
    Goes,
}

impl PushedName {
    /// Removes the name, and answers whether the image no longer has it. One that stands for another
    /// image by now is not ours.
    pub(super) async fn remove(
        &self,
        docker: &Docker,
        last_name: LastName,
    ) -> Result<bool, EngineError> {
        let Some(image) = inspect_image(docker, &self.name).await? else { return Ok(true) };
        if image.id.as_ref() != Some(&self.image_id) {
            return Ok(true);
        }
        let is_last = image.repo_tags.is_none_or(|names| names.len() < 2);
        if is_last && last_name == LastName::Stays {
            return Ok(false);
        }
        // It is done for us even where the engine refuses, because a container is made of the image.
        remove_image(docker, &self.name).await.map(|_| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each entry was left.
    fn entries(dir: &Path) -> Vec<bool> {
        let files = fs::read_dir(dir).expect("there").flatten();
        files.map(|file| file.path().extension().is_some()).collect()
    }

    fn pushed(name: &str, image_id: &str) -> PushedName {
        PushedName { name: name.to_owned(), image_id: image_id.to_owned() }
    }

    #[test]
    fn an_entry_lasts_as_long_as_its_name_and_is_left_by_whoever_dies() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pushing");
        let journal = Journal::open(&path).expect("opened");
        let done = journal.write(&pushed("r/a:1", "sha256:1")).expect("written");
        let dropped = journal.write(&pushed("r/a:2", "sha256:2")).expect("written");
        let killed = journal.write(&pushed("r/a:3", "sha256:3")).expect("written");
        done.gone();
        drop(dropped);
        std::mem::forget(killed);
        assert_eq!(entries(&path).len(), 2);
        assert_eq!(entries(&path).iter().filter(|left| **left).count(), 1);
        let _next = Journal::open(&path).expect("opened again");
        assert_eq!(entries(&path), [true, true]);
    }

    #[test]
    fn a_name_that_was_left_and_is_given_again_is_no_longer_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let journal = Journal::open(dir.path()).expect("opened");
        drop(journal.write(&pushed("r/a:1", "sha256:1")).expect("written"));
        drop(journal.write(&pushed("r/a:2", "sha256:2")).expect("written"));
        let held = journal.write(&pushed("r/a:3", "sha256:3")).expect("written");
        fs::write(dir.path().join("torn.left"), "{").expect("written");
        assert!(journal.take_over("r/a:1"));
        assert!(!journal.take_over("r/a:1") && !journal.take_over("r/a:3"));
        let left = journal.left();
        assert_eq!(left.iter().map(Left::name).collect::<Vec<_>>(), ["r/a:2"]);
        held.gone();
        assert_eq!(entries(dir.path()).len(), 1);
    }
}
