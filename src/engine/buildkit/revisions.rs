//! Which commits were built here, to notice a build that goes back to an earlier one.
//!
//! A layer of the cache holds its files with the time at which it was made. A commit that was built
//! before another one finds its layers there, older than what that other build left in a cache mount;
//! a step that compares the two would keep the other commit's files. So such a build takes no layers
//! from the cache. Cache mounts are a user's own, so what others build of the same repository does not count.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Builds that are remembered, of all repositories together.
const MOST: usize = 10_000;

/// The builds since the worker began whose steps may keep files from build to build.
#[derive(Debug, Default)]
pub(in crate::engine) struct Revisions(Mutex<VecDeque<Built>>);

#[derive(Debug)]
struct Built {
    /// A user's.
    repository: String,
    commit: String,
    /// Whether it goes back, and has not been built to its end since.
    goes_back: bool,
}

impl Revisions {
    /// Notes that a build begins; whether it goes back to a commit that another one has followed.
    pub(super) fn begin(&self, repository: &str, commit: &str) -> bool {
        let mut builds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = builds.iter().rposition(|built| built.repository == repository);
        let before = builds
            .iter()
            .rposition(|built| built.repository == repository && built.commit == commit);
        let goes_back = match before {
            None => false,
            Some(at) => Some(at) != last || builds[at].goes_back,
        };
        if let Some(at) = before {
            builds.remove(at);
        }
        if builds.len() == MOST {
            builds.pop_front();
        }
        let (repository, commit) = (repository.to_owned(), commit.to_owned());
        builds.push_back(Built { repository, commit, goes_back });
        goes_back
    }

    /// Notes that a build has come to its good end: its layers are new now.
    pub(super) fn succeeded(&self, repository: &str, commit: &str) {
        let mut builds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let built = builds
            .iter_mut()
            .rfind(|built| built.repository == repository && built.commit == commit);
        if let Some(built) = built {
            built.goes_back = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_goes_back_when_another_commit_of_its_repository_was_built_since() {
        let revisions = Revisions::default();
        assert!(!revisions.begin("shop", "one"));
        assert!(!revisions.begin("shop", "one"), "a repeated build");
        assert!(!revisions.begin("blog", "two"));
        assert!(!revisions.begin("shop", "one"), "the other is of another repository");
        assert!(!revisions.begin("shop", "two"));
        assert!(revisions.begin("shop", "one"));
        assert!(revisions.begin("shop", "one"), "it has not come to its end yet");
        revisions.succeeded("shop", "one");
        assert!(!revisions.begin("shop", "one"));
        assert!(revisions.begin("shop", "two"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let revisions = Revisions::default();
        for commit in 0..=MOST {
            revisions.begin("shop", &commit.to_string());
        }
        assert_eq!(revisions.0.lock().expect("whole").len(), MOST);
        assert!(!revisions.begin("shop", "0"), "forgotten");
    }
}
