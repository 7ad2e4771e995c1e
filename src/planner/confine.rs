//! Paths that a stranger wrote, kept inside a directory.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use image_builder_actors::model::fault::{Fault, Reason, StageName};

use super::{disk_fault, invalid};

/// Why a path cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unusable {
    Missing,
    /// By `..`, or through a symbolic link.
    LeadsOut,
}

/// What `wish` names inside `directory`, with all links resolved. A leading `/` means `directory`.
///
/// `directory` must be canonical.
pub(super) fn resolve(directory: &Path, wish: &str) -> Result<PathBuf, Unusable> {
    let inside = relative(wish).ok_or(Unusable::LeadsOut)?;
    let path = directory.join(inside).canonicalize().map_err(|_| Unusable::Missing)?;
    if path.starts_with(directory) { Ok(path) } else { Err(Unusable::LeadsOut) }
}

/// `wish` by its words alone, where they lead to the `target` that all links lead to; else the place of `target`.
/// Both are relative to `directory`, and `target` is inside. `None` = that is not UTF-8.
pub(super) fn named(directory: &Path, wish: &str, target: &Path) -> Option<String> {
    let mut path = PathBuf::new();
    for component in Path::new(wish).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => drop(path.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    let leads_there = directory.join(&path).canonicalize().is_ok_and(|found| found == target);
    let named = if leads_there { &path } else { target.strip_prefix(directory).ok()? };
    named.to_str().map(str::to_owned)
}

/// `wish` without a leading `/` and without `.`; `None` when its `..` climb above where it starts.
pub(super) fn relative(wish: &str) -> Option<PathBuf> {
    let mut depth = 0_usize;
    let mut path = PathBuf::new();
    for component in Path::new(wish).components() {
        match component {
            Component::Normal(name) => {
                depth += 1;
                path.push(name);
            }
            Component::ParentDir => {
                depth = depth.checked_sub(1)?;
                path.push("..");
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(path)
}

/// The text of the plan file at `path`, which the request or a message calls `shown`.
///
/// # Errors
/// `invalid_plan` when it is not a regular file or not UTF-8, `too_large` above `longest` bytes.
pub(super) fn read_plan_file(path: &Path, shown: &str, longest: u64) -> Result<String, Fault> {
    String::from_utf8(read_plan_bytes(path, shown, longest)?)
        .map_err(|_| invalid(format!("`{shown}` is not UTF-8 text")))
}

/// Like [`read_plan_file`], in whatever encoding it is.
pub(super) fn read_plan_bytes(path: &Path, shown: &str, longest: u64) -> Result<Vec<u8>, Fault> {
    let failed = |error: io::Error| disk_fault(&format!("read `{shown}`"), &error);
    // Checked before it is opened: opening a pipe would wait for somebody to write.
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(invalid(format!("`{shown}` is not a regular file")));
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(longest + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    if bytes.len() as u64 > longest {
        let message = format!("`{shown}` is longer than the {longest} bytes that are allowed");
        return Err(Fault::new(StageName::Builder, Reason::TooLarge, message));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_the_name_that_it_is_asked_for_by() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().canonicalize().expect("it is there");
        std::fs::create_dir_all(root.join("a/b")).expect("a directory");
        std::fs::write(root.join("a/b/file"), "").expect("a file");
        std::os::unix::fs::symlink("a/b/file", root.join("link")).expect("a link");
        std::os::unix::fs::symlink("a/b", root.join("to")).expect("a link");
        let target = root.join("a/b/file");
        for (wish, name) in [
            ("/link", "link"),
            ("a/../link", "link"),
            ("./a//b/file", "a/b/file"),
            ("to/file", "to/file"),
            ("to/../b/file", "a/b/file"),
        ] {
            assert_eq!(named(&root, wish, &target).as_deref(), Some(name), "{wish}");
        }
    }

    #[test]
    fn a_path_is_taken_as_relative_and_may_not_climb_above_its_start() {
        let path = |text: &str| relative(text).map(|path| path.display().to_string());
        assert_eq!(path("").as_deref(), Some(""));
        assert_eq!(path("/").as_deref(), Some(""));
        assert_eq!(path("./a//b/.").as_deref(), Some("a/b"));
        assert_eq!(path("/a/../b").as_deref(), Some("a/../b"));
        assert_eq!(path(".."), None);
        assert_eq!(path("a/../../b"), None);
        assert_eq!(path("/../etc/passwd"), None);
    }
}
