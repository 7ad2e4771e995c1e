//! What GitLab sends, as its documentation of webhook events has it.

use serde::Deserialize;

use super::event::{Changes, Commit, Event, Happened, Pushed};
use super::{Unread, payload, unknown};

#[derive(Deserialize)]
struct Project {
    path_with_namespace: String,
    default_branch: Option<String>,
}

#[derive(Deserialize)]
struct Whose {
    project: Project,
}

#[derive(Deserialize)]
struct Push {
    #[serde(rename = "ref")]
    name: String,
    #[serde(default)]
    before: String,
    after: String,
    /// The commit, where `after` is a tag that has a message.
    checkout_sha: Option<String>,
    commits: Option<Vec<Commit>>,
    /// The list has the newest 20 alone.
    total_commits_count: Option<usize>,
    project: Project,
}

#[derive(Deserialize)]
struct Released {
    action: String,
    tag: String,
    project: Project,
}

pub(super) fn repository(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<Whose>(body).ok().map(|whose| whose.project.path_with_namespace)
}

pub(super) fn read(event: &str, body: &[u8]) -> Result<Event, Unread> {
    match event {
        "Push Hook" | "Tag Push Hook" => payload(event, body).map(|push: Push| push.event()),
        "Release Hook" => {
            let Released { action, tag, project } = payload(event, body)?;
            let happened = match &*action {
                "create" => Happened::Release { tag },
                _ => Happened::Nothing("A release is built when it is made.".to_owned()),
            };
            Ok(Event { repo: project.path_with_namespace, happened })
        }
        other => Err(unknown(other, "pushes, tags and releases")),
    }
}

impl Push {
    fn event(self) -> Event {
        let commits = self.commits.unwrap_or_default();
        let is_whole = self.total_commits_count.is_none_or(|total| total == commits.len());
        let changes = if is_whole { Changes::of(&commits) } else { Changes::Unknown };
        let is_gone = super::event::is_none(&self.after);
        let commit = self.checkout_sha.filter(|_| !is_gone).unwrap_or(self.after);
        let head = commits.into_iter().find(|it| it.id == commit);
        Pushed {
            repo: self.project.path_with_namespace,
            default_branch: self.project.default_branch.as_deref().unwrap_or_default(),
            name: &self.name,
            before: &self.before,
            after: &commit,
            message: head.map(|head| head.message).unwrap_or_default(),
            changes,
        }
        .event()
    }
}
