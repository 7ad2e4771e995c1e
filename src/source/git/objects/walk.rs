//! Walking a commit's tree: every entry once, names checked, at any depth.

use git2::{Oid, Repository, Tree};
use image_builder_actors::model::fault::{Fault, Reason};

use super::repository::{check_size, git_fault};
use crate::source::fault;

/// Longest path below the tree's root, in bytes: what Linux takes, with room for the workspace.
const LONGEST_PATH: usize = 3_500;
/// Longest name of a file or directory, in bytes.
const LONGEST_NAME: usize = 255;

/// What an entry of a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File { executable: bool },
    Link,
    Submodule,
}

/// One entry of a tree.
pub(super) struct Entry<'a> {
    /// The path below the tree's root. Each part of it is a plain name.
    pub(super) path: &'a [u8],
    pub(super) kind: Kind,
    pub(super) id: Oid,
}

/// Shows `visit` every entry below `root`, a directory before what is in it. Uses no recursion: the
/// depth is a stranger's choice.
pub(super) fn walk(
    repository: &Repository,
    root: Oid,
    mut visit: impl FnMut(Entry<'_>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let tree = |id| {
        check_size(repository, id)?;
        repository.find_tree(id).map_err(|error| git_fault(&error))
    };
    let mut path = Vec::new();
    let mut levels = vec![Level { tree: tree(root)?, next: 0, length: 0 }];
    while let Some(level) = levels.last_mut() {
        path.truncate(level.length);
        let Some(entry) = level.tree.get(level.next) else {
            levels.pop();
            continue;
        };
        level.next += 1;
        push_name(&mut path, entry.name_bytes())?;
        let kind = kind(entry.filemode());
        visit(Entry { path: &path, kind, id: entry.id() })?;
        if kind == Kind::Directory {
            let below = Level { tree: tree(entry.id())?, next: 0, length: path.len() };
            drop(entry);
            levels.push(below);
        }
    }
    Ok(())
}

struct Level<'a> {
    tree: Tree<'a>,
    next: usize,
    /// How long the path of this directory is.
    length: usize,
}

/// Git's modes.
fn kind(mode: i32) -> Kind {
    match mode {
        0o040_000 => Kind::Directory,
        0o120_000 => Kind::Link,
        0o160_000 => Kind::Submodule,
        mode => Kind::File { executable: mode & 0o100 != 0 },
    }
}

fn push_name(path: &mut Vec<u8>, name: &[u8]) -> Result<(), Fault> {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    if !is_plain(name) {
        return Err(fault(
            Reason::ForbiddenSource,
            format!("The repository holds a file with a forbidden name, `{}`.", shown(path)),
        ));
    }
    if name.len() > LONGEST_NAME || path.len() > LONGEST_PATH {
        return Err(fault(
            Reason::TooLarge,
            format!("The repository holds a path that is too long, `{}`.", shown(path)),
        ));
    }
    Ok(())
}

/// A path for people: of a bounded length.
pub(in crate::source::git) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    }
}

/// Whether a name is one that git itself would check out: neither a way out of its directory nor
/// any spelling of `.git` that some file system takes for it.
fn is_plain(name: &[u8]) -> bool {
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) || matches!(name, b"." | b"..")
    {
        return false;
    }
    // Code points that HFS+ leaves out of names.
    let ignorable = |c: &char| matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}');
    let text: String = String::from_utf8_lossy(name).chars().filter(|c| !ignorable(c)).collect();
    // NTFS drops dots and spaces at the end, and takes what follows a colon for a stream.
    let text = text.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    !text.eq_ignore_ascii_case(".git") && !text.eq_ignore_ascii_case("git~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_git_s_own_directory_is_refused() {
        for name in [
            ".git",
            ".GIT",
            ".git.",
            ".git ",
            ".git. .",
            ".git::$INDEX_ALLOCATION",
            "git~1",
            ".g\u{200c}it",
            "..",
            ".",
            "",
            "a/b",
            "a\0",
        ] {
            assert!(!is_plain(name.as_bytes()), "{name:?}");
        }
        for name in [".gitignore", ".gitmodules", ".github", "git", "...", "a:b", "ä", " ", "git~2"]
        {
            assert!(is_plain(name.as_bytes()), "{name:?}");
        }
    }

    #[test]
    fn a_shown_path_is_bounded() {
        assert!(shown("é".repeat(5_000).as_bytes()).chars().count() <= 201);
    }
}
