//! Files of a repository that is kept, as they were written for earlier builds, so that the next one links
//! them in place of writing them again.
//!
//! In a directory of the repository there is a file for each content and mode, by the name of its blob.
//! Whoever writes a file of a tree links it there afterwards, and whoever needs the same links it into a tree.
//! So files of several trees may be one: nothing that reads a tree may write into a file of it, only replace it.
//! One that was written into all the same is known by its time, which all that are kept have in common, and is
//! written anew.
//!
//! The directory has the name of the machine's boot: what a loss of power makes of a file's content nobody can
//! tell, so what was written before it is never used.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use git2::Oid;

use crate::source::git::files::{mode, remove_beside};

/// The directory in a repository.
const NAME: &str = "unpacked";
/// Where a directory says what it holds.
const HELD: &str = "held";
/// What a disk gives to a file at least, in bytes.
const BLOCK: u64 = 4 << 10;
/// What is kept beyond twice of what was in use, in bytes, before it is looked through.
const SLACK: u64 = 64 << 20;

/// The files that are kept of one repository.
#[derive(Debug)]
pub(super) struct Unpacked {
    directory: PathBuf,
    /// What was added by this process, in bytes.
    added: AtomicU64,
}

impl Unpacked {
    /// Those of this repository. `None` = none can be kept, which only costs time.
    pub(super) fn open(repository: &Path) -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let all = repository.join(NAME);
        let directory = all.join(boot.trim());
        if !directory.is_dir() {
            remove_beside(&all, repository).ok()?;
            fs::create_dir_all(&directory).ok()?;
        }
        Some(Self { directory, added: AtomicU64::new(0) })
    }

    /// Makes the file of a tree from one that is kept. `false` = there is none.
    ///
    /// # Errors
    /// Something is there already.
    pub(super) fn link(
        &self,
        id: Oid,
        executable: bool,
        size: u64,
        path: &Path,
    ) -> io::Result<bool> {
        let kept = self.place(id, executable);
        match fs::hard_link(&kept, path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(error),
            Err(_) => return Ok(false),
        }
        let is_whole = fs::symlink_metadata(path).is_ok_and(|file| {
            file.is_file()
                && file.len() == size
                && file.permissions().mode() & 0o777 == mode(executable).mode()
                && file.modified().is_ok_and(|time| time == time_of_all())
        });
        if !is_whole {
            fs::remove_file(path)?;
            drop(fs::remove_file(kept));
        }
        Ok(is_whole)
    }

    /// Keeps a file that was written to its end.
    pub(super) fn keep(&self, id: Oid, executable: bool, file: &File, path: &Path) {
        let kept = self.place(id, executable);
        if file.set_modified(time_of_all()).is_ok() && fs::hard_link(path, kept).is_ok() {
            let bytes = file.metadata().map_or(0, |file| on_disk(file.len()));
            self.added.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn place(&self, id: Oid, executable: bool) -> PathBuf {
        self.directory.join(format!("{id}{}", if executable { "x" } else { "" }))
    }
}

impl Drop for Unpacked {
    /// Notes what was added.
    fn drop(&mut self) {
        let added = self.added.load(Ordering::Relaxed);
        if added > 0 {
            let held = File::options().create(true).append(true).open(self.directory.join(HELD));
            drop(held.and_then(|mut held| held.write_all(format!("{added}\n").as_bytes())));
        }
    }
}

/// The time of all files that are kept.
fn time_of_all() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1)
}

fn on_disk(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK).max(BLOCK)
}

/// What a repository's files hold that are kept, in bytes.
pub(in crate::source::git) fn held(repository: &Path) -> u64 {
    let directories = directories(repository);
    directories.iter().map(|directory| noted(directory).iter().sum::<u64>()).sum()
}

/// Removes the files that are kept of a repository.
pub(in crate::source::git) fn remove_all(repository: &Path) -> io::Result<()> {
    remove_beside(&repository.join(NAME), repository)
}

/// Removes files that no tree has any more, once those that are kept have become many more than were in use
/// when it was last looked.
pub(in crate::source::git) fn tidy(repository: &Path) -> io::Result<()> {
    for directory in directories(repository) {
        let noted = noted(&directory);
        let in_use = noted.first().copied().unwrap_or_default();
        if noted.iter().sum::<u64>() <= 2 * in_use + SLACK {
            continue;
        }
        let mut left = 0;
        for file in fs::read_dir(&directory)? {
            let file = file?;
            let found = file.metadata()?;
            if found.nlink() == 1 && file.file_name() != HELD {
                fs::remove_file(file.path())?;
            } else {
                left += on_disk(found.len());
            }
        }
        fs::write(directory.join(HELD), format!("{left}\n"))?;
    }
    Ok(())
}

fn directories(repository: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(repository.join(NAME)).into_iter().flatten().flatten();
    all.map(|directory| directory.path()).collect()
}

/// What was left when it was last looked through, and what was added since, in bytes.
fn noted(directory: &Path) -> Vec<u64> {
    let text = fs::read_to_string(directory.join(HELD)).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::git::files::new_file;

    fn id(number: u8) -> Oid {
        Oid::from_bytes(&[number; 20]).expect("20 bytes")
    }

    /// Writes a file of a tree, and keeps it.
    fn write(kept: &Unpacked, tree: &Path, number: u8, content: &str) {
        let path = tree.join(number.to_string());
        let mut file = new_file(&path, false).expect("made");
        file.write_all(content.as_bytes()).expect("written");
        kept.keep(id(number), false, &file, &path);
    }

    #[test]
    fn what_is_linked_is_what_was_kept_or_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let (repository, tree) = (directory.path().join("r"), directory.path());
        let kept = Unpacked::open(&repository).expect("a directory");
        write(&kept, tree, 1, "one");
        let link = |name: &str, number, executable, size| {
            kept.link(id(number), executable, size, &tree.join(name))
        };
        assert!(link("a", 1, false, 3).expect("linked"));
        assert!(!link("b", 1, true, 3).expect("no error"), "it has another mode");
        assert!(!link("b", 2, false, 3).expect("no error"), "it was never there");
        assert!(link("1", 1, false, 3).is_err(), "something is there already");
        // Somebody writes into the file of a tree.
        fs::write(tree.join("a"), "two").expect("written");
        assert!(!link("b", 1, false, 3).expect("no error") && !tree.join("b").exists());
        write(&kept, &repository, 1, "one");
        assert!(link("b", 1, false, 3).expect("linked"));
        assert_eq!(fs::read_to_string(tree.join("b")).expect("a text"), "one");
        assert!(!link("c", 1, false, 4).expect("no error"), "it has another length");
    }

    #[test]
    fn what_no_tree_has_goes_once_it_is_much_and_what_an_earlier_boot_left_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let (repository, tree) = (directory.path().join("r"), directory.path());
        let kept = Unpacked::open(&repository).expect("a directory");
        for number in 1..=3 {
            write(&kept, tree, number, "content");
        }
        fs::remove_file(tree.join("2")).expect("removed");
        drop(kept);
        assert_eq!(held(&repository), 3 * BLOCK);
        let there = || {
            let kept = Unpacked::open(&repository).expect("a directory");
            [1, 2, 3].map(|number| kept.place(id(number), false).exists())
        };
        tidy(&repository).expect("tidied");
        assert_eq!(there(), [true; 3], "that is little");
        let note = directories(&repository)[0].join(HELD);
        fs::write(&note, format!("{BLOCK}\n{}\n", SLACK + 2 * BLOCK)).expect("written");
        tidy(&repository).expect("tidied");
        assert_eq!(there(), [true, false, true]);
        assert_eq!(noted(&directories(&repository)[0]).len(), 1);

        fs::rename(&directories(&repository)[0], repository.join(NAME).join("an earlier boot"))
            .expect("renamed");
        assert_eq!(there(), [false; 3]);
        assert_eq!((directories(&repository).len(), held(&repository)), (1, 0));
        remove_all(&repository).expect("removed");
        assert!(directories(&repository).is_empty());
    }
}
