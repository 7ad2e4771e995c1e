//! What in a source looks as if it could be built, for whoever asked for a place where nothing can.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

/// How many are named.
const MOST: usize = 5;
/// So deep directories are looked into, and so many entries.
const DEEPEST: usize = 3;
const MOST_ENTRIES: usize = 5_000;

/// Files by which a directory is known to hold an app.
const APPS: [&str; 15] = [
    "package.json",
    "requirements.txt",
    "pyproject.toml",
    "Pipfile",
    "go.mod",
    "Cargo.toml",
    "pom.xml",
    "build.gradle",
    "build.gradle.kts",
    "composer.json",
    "Gemfile",
    "mix.exs",
    "deno.json",
    "Procfile",
    "nixpacks.toml",
];
/// Directories whose content is not the source's own.
const FOREIGN: [&str; 4] = ["node_modules", "vendor", "target", "dist"];

/// What there is, as the end of a sentence, with the field of the build plan that names it; empty = nothing.
pub(super) fn describe(context: &Path) -> String {
    let found = find(context);
    if found.is_empty() {
        return String::new();
    }
    let shown = found.into_iter().map(|found| match found {
        Found::Dockerfile(path) => format!("`{path}` (to be named by `dockerfilePath`)"),
        Found::App { directory, file } => {
            format!("`{directory}/{file}` (with `{directory}` as `rootDirectory`)")
        }
    });
    format!("; what looks buildable: {}", shown.collect::<Vec<_>>().join(", "))
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Dockerfile(String),
    App { directory: String, file: &'static str },
}

/// Those that are nearest to the top first.
fn find(context: &Path) -> Vec<Found> {
    let (mut found, mut left) = (Vec::new(), MOST_ENTRIES);
    let mut directories = VecDeque::from([(PathBuf::new(), 0)]);
    while let Some((directory, depth)) = directories.pop_front() {
        let Ok(entries) = fs::read_dir(context.join(&directory)) else { continue };
        let mut entries: Vec<_> = entries.flatten().take(left).collect();
        left -= entries.len();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && depth < DEEPEST && is_own(&name) {
                directories.push_back((directory.join(&name), depth + 1));
            } else if kind.is_file() {
                found.extend(buildable(&directory, &name));
            }
            if found.len() == MOST {
                return found;
            }
        }
    }
    found
}

fn is_own(directory: &str) -> bool {
    !directory.starts_with('.') && !FOREIGN.contains(&directory)
}

fn buildable(directory: &Path, name: &str) -> Option<Found> {
    let lower = name.to_ascii_lowercase();
    let is_dockerfile = ["dockerfile", "containerfile"].iter().any(|word| {
        lower == *word
            || lower.strip_prefix(word).is_some_and(|rest| rest.starts_with('.'))
            || lower.strip_suffix(word).is_some_and(|rest| rest.ends_with('.'))
    });
    if is_dockerfile && !lower.ends_with(".dockerignore") {
        return Some(Found::Dockerfile(directory.join(name).display().to_string()));
    }
    let file = APPS.into_iter().find(|file| *file == name)?;
    // What is at the top was looked at, and was not enough.
    let directory = directory.display().to_string();
    (!directory.is_empty()).then_some(Found::App { directory, file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_buildable_is_found_near_the_top_and_not_among_what_is_foreign() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a file is in a directory"))
                .and_then(|()| fs::write(path, ""))
                .expect("a file");
        };
        assert_eq!(describe(root.path()), "");
        for path in [
            "package.json",
            "Containerfile",
            "docker/Dockerfile.dockerignore",
            "docker/prod.Dockerfile",
            "a/b/go.mod",
            "a/node_modules/x/package.json",
            ".git/Dockerfile",
            "a/b/c/d/Cargo.toml",
        ] {
            write(path);
        }
        let app = Found::App { directory: "a/b".to_owned(), file: "go.mod" };
        let dockerfile = |path: &str| Found::Dockerfile(path.to_owned());
        assert_eq!(
            find(root.path()),
            [dockerfile("Containerfile"), dockerfile("docker/prod.Dockerfile"), app]
        );
        for number in 0..MOST {
            write(&format!("many/{number}/Dockerfile"));
        }
        assert_eq!(find(root.path()).len(), MOST);
        let told = describe(root.path());
        assert!(
            told.contains("`docker/prod.Dockerfile` (to be named by `dockerfilePath`)"),
            "{told}"
        );
    }
}
