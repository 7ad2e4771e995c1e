//! What GitHub sends, as its documentation of webhook events has it.

use serde::Deserialize;

use super::event::{Changes, Commit, Event, Happened, Pushed};
use super::{Unread, payload, unknown};

/// A push with so many commits may have more that are not listed: 20 by the documentation of older versions, 2048
/// by today's. Building once too often is the smaller harm.
const MOST_COMMITS: usize = 20;

#[derive(Deserialize)]
pub(super) struct Repository {
    pub full_name: String,
    #[serde(default)]
    pub default_branch: String,
}

/// All of a payload that says which repository it is of.
#[derive(Deserialize)]
struct Whose {
    repository: Repository,
}

#[derive(Deserialize)]
struct Push {
    #[serde(rename = "ref")]
    name: String,
    #[serde(default)]
    before: String,
    after: String,
    #[serde(default)]
    deleted: bool,
    #[serde(default)]
    forced: bool,
    /// How many commits there are, where that is said.
    size: Option<usize>,
    commits: Option<Vec<Commit>>,
    head_commit: Option<Commit>,
    repository: Repository,
}

#[derive(Deserialize)]
struct Released {
    action: String,
    release: Release,
    repository: Repository,
}

#[derive(Deserialize)]
struct Release {
    tag_name: String,
    #[serde(default)]
    draft: bool,
}

pub(super) fn repository(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<Whose>(body).ok().map(|whose| whose.repository.full_name)
}

pub(super) fn read(event: &str, body: &[u8]) -> Result<Event, Unread> {
    match event {
        "push" => payload(event, body).map(|push: Push| push.event()),
        "release" => released(event, body),
        // Of an organisation it names no repository.
        "ping" => {
            payload::<serde::de::IgnoredAny>(event, body)?;
            let nothing = "The hook is set up: what follows a push will be built.".to_owned();
            Ok(Event { repo: String::new(), happened: Happened::Nothing(nothing) })
        }
        "create" | "delete" => made_or_gone(event, body),
        other => Err(unknown(other, "pushes and releases")),
    }
}

/// A branch or tag was made or deleted: that is told by a push as well.
pub(super) fn made_or_gone(event: &str, body: &[u8]) -> Result<Event, Unread> {
    let Whose { repository } = payload(event, body)?;
    let nothing = format!("What `{event}` tells comes as a push as well.");
    Ok(Event { repo: repository.full_name, happened: Happened::Nothing(nothing) })
}

/// A release; Gitea and Forgejo tell it in the same words.
pub(super) fn released(event: &str, body: &[u8]) -> Result<Event, Unread> {
    let Released { action, release, repository } = payload(event, body)?;
    let happened = match &*action {
        "published" if !release.draft => Happened::Release { tag: release.tag_name },
        _ => Happened::Nothing("A release is built when it is published.".to_owned()),
    };
    Ok(Event { repo: repository.full_name, happened })
}

impl Push {
    fn event(self) -> Event {
        let commits = self.commits.unwrap_or_default();
        let is_cut_off =
            commits.len() >= MOST_COMMITS || self.size.is_some_and(|size| size != commits.len());
        // What a forced push took away is in no list.
        let changes =
            if self.forced || is_cut_off { Changes::Unknown } else { Changes::of(&commits) };
        let head = self.head_commit.or_else(|| commits.into_iter().find(|it| it.id == self.after));
        let none = String::new();
        Pushed {
            repo: self.repository.full_name,
            default_branch: &self.repository.default_branch,
            name: &self.name,
            before: &self.before,
            after: if self.deleted { &none } else { &self.after },
            message: head.map(|head| head.message).unwrap_or_default(),
            changes,
        }
        .event()
    }
}
