//! Control groups for build steps, which an operator made with limits: what a step may use up holds there on engines
//! that have no limits of their own for steps.
//!
//! The group is part of what a step is found by in the build cache, so a user's builds are always in the same one.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::docker::disk::size::Size;

/// Where the kernel shows control groups.
const ROOT: &str = "/sys/fs/cgroup";

/// A control group that steps run in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cgroup {
    /// As the engine takes it: from the root of all groups.
    pub(super) path: String,
    root: PathBuf,
}

/// How often a group ran out of memory, as far as the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// Processes of it that were killed (cgroup v2).
    Killed(u64),
    /// Times that it was at its limit, whatever came of it (cgroup v1).
    Full(u64),
}

impl Cgroup {
    /// The one of these that a user's builds are in; `None` = there are none.
    pub(super) fn of(paths: &[String], user: &str) -> Option<Self> {
        let hash = Sha256::digest(user);
        let number = u64::from_be_bytes(*hash.first_chunk().expect("32 bytes are more than 8"));
        let count = u64::try_from(paths.len()).ok().filter(|count| *count > 0)?;
        let path = paths.get(usize::try_from(number % count).ok()?)?.clone();
        Some(Self { path, root: PathBuf::from(ROOT) })
    }

    /// `None` = it cannot be told from here: the engine is elsewhere, or the group not visible.
    pub(super) fn memory(&self) -> Option<Memory> {
        if let Some(events) = self.read(&["memory.events"]) {
            let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
            return kills.trim().parse().ok().map(Memory::Killed);
        }
        let count = |file| self.read(&["memory", file])?.trim().parse::<u64>().ok();
        // Swap is counted apart, where it is counted at all.
        let with_swap = count("memory.memsw.failcnt").unwrap_or_default();
        Some(Memory::Full(count("memory.failcnt")? + with_swap))
    }

    /// What it may hold; `None` = that cannot be told.
    pub(super) fn limit(&self) -> Option<Size> {
        let found = self
            .read(&["memory.max"])
            .or_else(|| self.read(&["memory", "memory.limit_in_bytes"]))?;
        found.trim().parse().ok().map(Size)
    }

    /// A file of it, in its hierarchy where there are several.
    fn read(&self, place: &[&str]) -> Option<String> {
        let (file, hierarchy) = place.split_last()?;
        let mut path: PathBuf = self.root.join(hierarchy.iter().collect::<PathBuf>());
        path.push(Path::new(self.path.trim_start_matches('/')));
        fs::read_to_string(path.join(file)).ok()
    }
}

/// Whether a build that failed with this exit code ran out of memory, by what its group told before and after.
pub(super) fn ran_out(before: Option<Memory>, after: Option<Memory>, code: u32) -> bool {
    match (before, after) {
        // A compiler whose process was killed fails by a code of its own.
        (Some(Memory::Killed(before)), Some(Memory::Killed(after))) => after > before,
        (Some(Memory::Full(before)), Some(Memory::Full(after))) => after > before && code == 137,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_always_in_the_same_group() {
        let paths: Vec<String> = (0..4).map(|number| format!("/builds/{number}")).collect();
        let of = |user: &str| Cgroup::of(&paths, user).expect("there are some").path;
        assert_eq!(of("alice"), of("alice"));
        let all: std::collections::BTreeSet<String> =
            (0..100).map(|number| of(&format!("user-{number}"))).collect();
        assert_eq!(all.len(), paths.len());
        assert_eq!(Cgroup::of(&[], "alice"), None);
    }

    #[test]
    fn what_the_kernel_tells_of_a_group_is_read_in_both_of_its_forms() {
        let root = tempfile::tempdir().expect("a directory");
        let group = Cgroup { path: "/builds/1".to_owned(), root: root.path().to_owned() };
        assert_eq!((group.memory(), group.limit()), (None, None));
        let write = |directory: &str, files: &[(&str, &str)]| {
            let directory = root.path().join(directory);
            fs::create_dir_all(&directory).expect("made");
            for (name, text) in files {
                fs::write(directory.join(name), text).expect("written");
            }
        };
        let old = [
            ("memory.failcnt", "4\n"),
            ("memory.memsw.failcnt", "3\n"),
            ("memory.limit_in_bytes", "536870912\n"),
        ];
        write("memory/builds/1", &old);
        assert_eq!((group.memory(), group.limit()), (Some(Memory::Full(7)), Some(Size(1 << 29))));
        let events = "low 0\nhigh 0\nmax 40\noom 2\noom_kill 3\noom_group_kill 0\n";
        write("builds/1", &[("memory.events", events), ("memory.max", "268435456\n")]);
        assert_eq!((group.memory(), group.limit()), (Some(Memory::Killed(3)), Some(Size(1 << 28))));
    }

    #[test]
    fn only_what_the_kernel_counted_proves_that_memory_ran_out() {
        let killed = |count| Some(Memory::Killed(count));
        let full = |count| Some(Memory::Full(count));
        assert!(ran_out(killed(1), killed(2), 2));
        assert!(ran_out(full(1), full(2), 137));
        for (before, after, code) in [
            (killed(1), killed(1), 137),
            (full(1), full(1), 137),
            (full(1), full(2), 1),
            (None, killed(1), 137),
            (None, None, 137),
        ] {
            assert!(!ran_out(before, after, code), "{before:?} {after:?} {code}");
        }
    }
}
