//! Keeps from nixpacks what it must not open.
//!
//! nixpacks opens whatever has the right name: a `package.json` that is a link to a file of the
//! worker, or one of several gigabytes. Such entries are moved out of the source while it looks,
//! and back afterwards: in an image they do no harm, and some honest sources have them.

use std::fs::{self, FileType};
use std::io;
use std::path::{Path, PathBuf};

/// What was moved out of the source.
#[derive(Debug, Default)]
pub(super) struct Aside {
    moved: Vec<Moved>,
}

#[derive(Debug)]
struct Moved {
    home: PathBuf,
    refuge: PathBuf,
    /// A word for people on what is wrong with it.
    why: &'static str,
}

impl Aside {
    /// Moves everything below `context`, which must be canonical, that nixpacks must not open into
    /// `refuge`, a directory of the same file system outside of it: links that lead out, files of
    /// more than `longest` bytes, and whatever else is no regular file.
    pub(super) fn set(context: &Path, refuge: &Path, longest: u64) -> io::Result<Self> {
        let mut aside = Self::default();
        let mut directories = vec![context.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    directories.push(entry.path());
                } else if let Some(why) = why_not(context, &entry.path(), kind, longest)? {
                    aside.take(entry.path(), refuge, why)?;
                }
            }
        }
        Ok(aside)
    }

    fn take(&mut self, home: PathBuf, refuge: &Path, why: &'static str) -> io::Result<()> {
        if self.moved.is_empty() {
            fs::create_dir_all(refuge)?;
        }
        let refuge = refuge.join(self.moved.len().to_string());
        fs::rename(&home, &refuge)?;
        self.moved.push(Moved { home, refuge, why });
        Ok(())
    }

    /// Moves everything back, except what was at or below `replaced`, which is new now.
    pub(super) fn put_back(&self, replaced: Option<&Path>) -> io::Result<()> {
        self.moved
            .iter()
            .filter(|moved| replaced.is_none_or(|replaced| !moved.home.starts_with(replaced)))
            .try_for_each(|moved| fs::rename(&moved.refuge, &moved.home))
    }

    /// One sentence on what of the context's own entries nixpacks did not see; empty = nothing.
    pub(super) fn describe(&self, context: &Path) -> String {
        let names: Vec<_> = self
            .moved
            .iter()
            .filter(|moved| moved.home.parent() == Some(context))
            .filter_map(|moved| {
                let name = moved.home.file_name()?.to_string_lossy();
                Some(format!("`{name}` ({})", moved.why))
            })
            .take(5)
            .collect();
        if names.is_empty() {
            return String::new();
        }
        format!("; not looked at: {}", names.join(", "))
    }
}

fn why_not(
    context: &Path,
    path: &Path,
    kind: FileType,
    longest: u64,
) -> io::Result<Option<&'static str>> {
    if kind.is_symlink() {
        // One that leads nowhere goes too: what it names may come to be while nixpacks looks.
        let inside = path.canonicalize().is_ok_and(|target| target.starts_with(context));
        return Ok((!inside).then_some("a link that leads nowhere inside"));
    }
    if !kind.is_file() {
        return Ok(Some("not a regular file"));
    }
    Ok((path.symlink_metadata()?.len() > longest).then_some("too long"))
}
