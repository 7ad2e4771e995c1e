//! What happened in a repository, in the words of no forge.

use serde::Deserialize;

/// What a hook tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The repository, with its owner.
    pub repo: String,
    pub happened: Happened,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// A branch has a new head.
    Branch {
        name: String,
        commit: String,
        is_default: bool,
        /// The head's message.
        message: String,
        changes: Changes,
    },
    /// A tag was made or moved.
    Tag { name: String, commit: String },
    /// A release is out.
    Release { tag: String },
    /// Nothing that is built, for this reason.
    Nothing(String),
}

/// Which files a push changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// These: added, modified and removed ones.
    Files(Vec<String>),
    /// The forge does not say all of them, or not surely.
    Unknown,
}

/// A commit, as all forges describe it.
#[derive(Debug, Deserialize)]
pub(super) struct Commit {
    pub id: String,
    #[serde(default)]
    pub message: String,
    added: Option<Vec<String>>,
    modified: Option<Vec<String>>,
    removed: Option<Vec<String>>,
}

/// A commit with more files of one kind may have a list that is cut off.
const MOST_FILES: usize = 1000;

impl Changes {
    /// What these commits changed; `None` where a list is missing or may be cut off, or there is no commit: a ref
    /// that moved without one went back, or is new.
    pub(super) fn of(commits: &[Commit]) -> Self {
        let mut files = Vec::new();
        for commit in commits {
            for list in [&commit.added, &commit.modified, &commit.removed] {
                match list {
                    Some(list) if list.len() < MOST_FILES => files.extend_from_slice(list),
                    _ => return Changes::Unknown,
                }
            }
        }
        if commits.is_empty() { Changes::Unknown } else { Changes::Files(files) }
    }
}

/// A ref as a payload names it.
pub(super) enum Ref<'a> {
    Branch(&'a str),
    Tag(&'a str),
    Other,
}

impl<'a> Ref<'a> {
    pub(super) fn of(name: &'a str) -> Self {
        let below = |prefix| name.strip_prefix(prefix).filter(|name: &&str| !name.is_empty());
        if let Some(branch) = below("refs/heads/") {
            Ref::Branch(branch)
        } else if let Some(tag) = below("refs/tags/") {
            Ref::Tag(tag)
        } else {
            Ref::Other
        }
    }
}

/// Whether a commit's id stands for none: the ref is gone.
pub(super) fn is_none(commit: &str) -> bool {
    commit.bytes().all(|byte| byte == b'0')
}

/// Whether this is a commit's id: anything else would mean something else in a request.
fn is_commit(id: &str) -> bool {
    matches!(id.len(), 40 | 64) && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A push in the words of its forge.
pub(super) struct Pushed<'a> {
    pub repo: String,
    pub default_branch: &'a str,
    pub name: &'a str,
    /// The head before.
    pub before: &'a str,
    /// The new head.
    pub after: &'a str,
    pub message: String,
    pub changes: Changes,
}

impl Pushed<'_> {
    pub(super) fn event(self) -> Event {
        let commit = self.after.to_owned();
        let happened = match Ref::of(self.name) {
            Ref::Branch(_) | Ref::Tag(_) if is_none(self.after) => {
                Happened::Nothing(format!("`{}` was deleted.", self.name))
            }
            Ref::Branch(_) | Ref::Tag(_) if !is_commit(self.after) => {
                Happened::Nothing(format!("The head of `{}` is no commit.", self.name))
            }
            Ref::Branch(name) => Happened::Branch {
                name: name.to_owned(),
                commit,
                is_default: name == self.default_branch,
                message: self.message,
                // All of a new branch is new.
                changes: if is_none(self.before) { Changes::Unknown } else { self.changes },
            },
            Ref::Tag(name) => Happened::Tag { name: name.to_owned(), commit },
            Ref::Other => Happened::Nothing(format!("`{}` is no branch and no tag.", self.name)),
        };
        Event { repo: self.repo, happened }
    }
}
