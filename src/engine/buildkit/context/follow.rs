//! What of a context the engine asks for: the paths that the Dockerfile's instructions name.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// More paths than honest Dockerfiles name: each is held against each entry of the context.
const MOST: usize = 200;

/// The part of a context that is asked for. It may hold more than what is needed, never less.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::engine::buildkit) enum Follow {
    All,
    /// These files, or all that is below these directories; relative to the context.
    Paths(Vec<Vec<u8>>),
}

/// Where an entry is, seen from what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Within,
    /// It is a directory above something that is asked for.
    Above,
    Beside,
}

impl Follow {
    /// Reads what the engine asks for. A link on the way asks for all: what it leads to is asked for, too.
    /// Blocks.
    pub(super) fn of(root: &Path, paths: &[String]) -> Self {
        if paths.is_empty() || paths.len() > MOST {
            return Follow::All;
        }
        let mut found = Vec::new();
        for path in paths {
            match literal(root, path) {
                Some(path) => found.push(path),
                None => return Follow::All,
            }
        }
        Follow::Paths(found)
    }

    pub(super) fn place(&self, path: &[u8]) -> Place {
        let Follow::Paths(asked) = self else { return Place::Within };
        let below = |path: &[u8], directory: &[u8]| {
            path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        if asked.iter().any(|asked| below(path, asked)) {
            Place::Within
        } else if asked.iter().any(|asked| below(asked, path)) {
            Place::Above
        } else {
            Place::Beside
        }
    }
}

/// The path up to its first pattern; `None` = that is the whole context, or a link is on the way.
fn literal(root: &Path, path: &str) -> Option<Vec<u8>> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part if part.contains(['*', '?', '[', '\\']) => break,
            part => parts.push(part),
        }
    }
    let mut on_disk = root.to_owned();
    for part in &parts {
        on_disk.push(part);
        if fs::symlink_metadata(&on_disk).is_ok_and(|metadata| metadata.is_symlink()) {
            return None;
        }
    }
    let relative = on_disk.strip_prefix(root).ok()?.as_os_str().as_bytes().to_vec();
    // A pattern may match a link that leads elsewhere.
    let whole = parts.len() == path.split('/').filter(|part| !matches!(*part, "" | ".")).count();
    (!relative.is_empty() && whole).then_some(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_surely_unneeded_is_asked_for() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir(root.path().join("src")).expect("a directory");
        std::os::unix::fs::symlink("src", root.path().join("link")).expect("a link");
        let of = |paths: &[&str]| {
            Follow::of(
                root.path(),
                &paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>(),
            )
        };
        for all in [&[][..], &["/"], &["src", "."], &["*.txt"], &["src/*"], &["link"], &["link/x"]]
        {
            assert_eq!(of(all), Follow::All, "{all:?}");
        }
        let some = of(&["/src/app", "a.txt", "not/there"]);
        for (path, place) in [
            ("src", Place::Above),
            ("src/app", Place::Within),
            ("src/app/x", Place::Within),
            ("src/application", Place::Beside),
            ("a.txt", Place::Within),
            ("a.txt.old", Place::Beside),
            ("b.txt", Place::Beside),
        ] {
            assert_eq!(some.place(path.as_bytes()), place, "{path}");
        }
    }
}
