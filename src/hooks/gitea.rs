//! What Gitea and Forgejo send, as their documentation and their sources have it.

use serde::Deserialize;

use super::event::{Changes, Commit, Event, Pushed};
use super::github::{Repository, made_or_gone, released};
use super::{Unread, payload, unknown};

#[derive(Deserialize)]
struct Push {
    #[serde(rename = "ref")]
    name: String,
    #[serde(default)]
    before: String,
    after: String,
    commits: Option<Vec<Commit>>,
    /// The list is cut off, after five commits unless the server is told otherwise.
    total_commits: Option<usize>,
    head_commit: Option<Commit>,
    repository: Repository,
}

pub(super) fn read(event: &str, body: &[u8]) -> Result<Event, Unread> {
    match event {
        "push" => payload(event, body).map(|push: Push| push.event()),
        "release" => released(event, body),
        "create" | "delete" => made_or_gone(event, body),
        other => Err(unknown(other, "pushes and releases")),
    }
}

impl Push {
    fn event(self) -> Event {
        let commits = self.commits.unwrap_or_default();
        let is_whole = self.total_commits.is_some_and(|total| total == commits.len());
        let changes = if is_whole { Changes::of(&commits) } else { Changes::Unknown };
        let head = self.head_commit.or_else(|| commits.into_iter().find(|it| it.id == self.after));
        Pushed {
            repo: self.repository.full_name,
            default_branch: &self.repository.default_branch,
            name: &self.name,
            before: &self.before,
            after: &self.after,
            message: head.map(|head| head.message).unwrap_or_default(),
            changes,
        }
        .event()
    }
}
