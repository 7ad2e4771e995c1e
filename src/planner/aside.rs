//! Keeps from nixpacks what it must not open.
//!
//! nixpacks opens whatever has the right name: a `package.json` that is a link to a file of the
//! worker, or one of several gigabytes. Such entries are moved out of the source while it looks,
//! and back afterwards: in an image they do no harm, and some honest sources have them.
//!
//! Files of JSON that begin with a byte order mark are shown to it without, as their own tools read them.

use std::fs::{self, File, FileType};
use std::io::{self, Read};
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
    /// A word for people on what is wrong with it; `None` = nothing, and it was shown in another form.
    why: Option<&'static str>,
}

impl Aside {
    /// Moves everything below `context`, which must be canonical, that nixpacks must not open into
    /// `refuge`, a directory of the same file system outside of it: links that lead out, files of
    /// more than `longest` bytes, and whatever else is no regular file. What it cannot read as it is is replaced.
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
                    aside.take(entry.path(), refuge, Some(why))?;
                } else if kind.is_file()
                    && let Some(text) = without_mark(&entry.path())?
                {
                    aside.take(entry.path(), refuge, None)?;
                    fs::write(entry.path(), text)?;
                }
            }
        }
        Ok(aside)
    }

    fn take(&mut self, home: PathBuf, refuge: &Path, why: Option<&'static str>) -> io::Result<()> {
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
                let (name, why) = (moved.home.file_name()?.to_string_lossy(), moved.why?);
                Some(format!("`{name}` ({why})"))
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

/// What a file of JSON that begins with a byte order mark holds besides.
fn without_mark(path: &Path) -> io::Result<Option<Vec<u8>>> {
    const MARK: &[u8] = b"\xef\xbb\xbf";
    if path.extension().is_none_or(|extension| extension != "json") {
        return Ok(None);
    }
    let mut file = File::open(path)?;
    let mut start = Vec::new();
    file.by_ref().take(MARK.len() as u64).read_to_end(&mut start)?;
    if start != MARK {
        return Ok(None);
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(Some(text))
}
