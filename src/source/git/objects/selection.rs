//! Which Git LFS files of a repository are fetched: `lfs.fetchinclude` and `lfs.fetchexclude` of its `.lfsconfig`,
//! with patterns as `git lfs` has them, which are nearly those of `.gitignore`.

use super::glob::Glob;
use crate::source::git::ini;

/// What `.lfsconfig` says.
#[derive(Debug)]
pub(super) struct Selection {
    /// `None` = all files.
    included: Option<Vec<Paths>>,
    excluded: Vec<Paths>,
}

/// The paths that a pattern matches, and what is below them.
#[derive(Debug)]
struct Paths {
    /// Whether the pattern is for whole paths, not for names.
    whole: bool,
    /// `None` = it matches nothing.
    glob: Option<Glob>,
}

impl Selection {
    pub(super) fn parse(config: &str) -> Self {
        let settings = ini::parse(config);
        let of = |key| {
            let last = settings.iter().rev().find(|setting| {
                setting.section == "lfs" && setting.subsection.is_none() && setting.key == key
            });
            let list = last.map_or("", |setting| setting.value.trim());
            (!list.is_empty()).then(|| list.split(',').map(Paths::new).collect())
        };
        Self { included: of("fetchinclude"), excluded: of("fetchexclude").unwrap_or_default() }
    }

    /// Whether the file at this path is fetched. What is excluded is not, though it be included.
    pub(super) fn allows(&self, path: &[u8]) -> bool {
        let match_path = |all: &[Paths]| all.iter().any(|paths| paths.matches(path));
        self.included.as_deref().is_none_or(match_path) && !match_path(&self.excluded)
    }
}

impl Paths {
    fn new(pattern: &str) -> Self {
        let pattern = with_slashes(pattern.trim());
        let pattern = pattern.strip_suffix(b"/").unwrap_or(&pattern);
        let whole = pattern.contains(&b'/');
        let slashes = pattern.iter().take_while(|&&byte| byte == b'/').count();
        let pattern = &pattern[slashes..];
        Self { whole, glob: if pattern.is_empty() { None } else { Glob::new(pattern) } }
    }

    fn matches(&self, path: &[u8]) -> bool {
        let Some(glob) = &self.glob else { return false };
        if !self.whole {
            return path.split(|&byte| byte == b'/').any(|name| glob.matches(name));
        }
        let ends = (0..=path.len()).filter(|&at| at == path.len() || path[at] == b'/');
        ends.map(|end| &path[..end]).any(|above| glob.matches(above))
    }
}

/// A `\` that makes nothing plain is a `/`.
fn with_slashes(pattern: &str) -> Vec<u8> {
    let mut slashed = Vec::new();
    let mut bytes = pattern.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match (byte, bytes.peek()) {
            (b'\\', Some(&plain)) if b"\\[]*?#".contains(&plain) => {
                slashed.extend([byte, plain]);
                bytes.next();
            }
            (b'\\', _) => slashed.push(b'/'),
            _ => slashed.push(byte),
        }
    }
    slashed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_those_of_git_lfs() {
        for (pattern, path, expected) in [
            ("*", "a/b", true),
            ("*.txt", "sub/a.txt", true),
            ("*.tx", "sub/a.txt", false),
            ("sub", "top/sub/a.txt", true),
            ("sub", "sub", true),
            ("sub", "subway/a.txt", false),
            ("sub/", "top/sub/a.txt", true),
            ("/sub", "sub/a.txt", true),
            ("/sub/", "top/sub/a.txt", false),
            ("sub/*.txt", "sub/a.txt", true),
            ("sub/*.txt", "top/sub/a.txt", false),
            ("sub/*.txt", "sub/deeper/a.txt", false),
            ("sub/**", "sub/deeper/a.txt", true),
            ("**/a.txt", "sub/deeper/a.txt", true),
            ("**/deeper", "sub/deeper/a.txt", true),
            ("big/b", "big/b/b1", true),
            (r"sub\a.txt", "sub/a.txt", true),
            (r"a\*b", "a*b", true),
            (r"a\*b", "axb", false),
            ("a[bc]", "ac", true),
            (" a , b ", "b", true),
            ("/", "a", false),
        ] {
            let selection = Selection::parse(&format!(
                "[lfs]\nfetchexclude = \"{}\"",
                pattern.replace('\\', "\\\\")
            ));
            assert_eq!(!selection.allows(path.as_bytes()), expected, "{pattern:?} and {path:?}");
        }
    }

    #[test]
    fn what_is_excluded_stays_so_and_an_empty_list_says_nothing() {
        let allowed = |config: &str| {
            let selection = Selection::parse(config);
            ["a/x", "a/y", "b/x"].map(|path| selection.allows(path.as_bytes()))
        };
        assert_eq!(allowed(""), [true; 3]);
        assert_eq!(allowed("[lfs]\nfetchinclude =\nfetchexclude = \" \""), [true; 3]);
        assert_eq!(allowed("[lfs]\nFetchInclude = a"), [true, true, false]);
        assert_eq!(allowed("[lfs]\nfetchexclude = x, y"), [false; 3]);
        let both = "[lfs]\nfetchinclude = b\nfetchinclude = a\nfetchexclude = a/y\n";
        assert_eq!(allowed(both), [true, false, false]);
        assert_eq!(allowed("[lfs]\nfetchinclude = /"), [false; 3]);
        assert_eq!(allowed("[lfs \"https://x\"]\nfetchexclude = *"), [true; 3]);
    }
}
