//! GitLab, its own and others': what is its own beside git, and its REST API.

use image_builder_actors::model::request::RepoName;
use image_builder_actors::ports::{CommitStatus, StatusState};
use reqwest::Url;
use serde_json::json;

use super::api::{ReleaseApi, accept_json};
use super::{Forge, StatusCall, base};
use crate::source::GitSetupError;
use crate::source::http::{RateLimitHeaders, below};

pub(super) struct Gitlab {
    url: Url,
}

impl Gitlab {
    /// At its address for people and for git (`GITLAB_URL`).
    pub(super) fn new(url: &str) -> Result<Self, GitSetupError> {
        Ok(Self { url: base("GITLAB_URL", url)? })
    }
}

impl Forge for Gitlab {
    fn url(&self) -> &Url {
        &self.url
    }

    fn api(&self) -> Option<&Url> {
        Some(&self.url)
    }

    fn git_user(&self) -> &'static str {
        "oauth2"
    }

    fn rate_limit(&self) -> RateLimitHeaders {
        RateLimitHeaders { remaining: "ratelimit-remaining", reset: "ratelimit-reset" }
    }

    fn status(&self, status: &CommitStatus) -> Option<StatusCall> {
        let CommitStatus { repo, commit, name, state, description, link, .. } = status;
        let state = match state {
            StatusState::Queued => "pending",
            StatusState::Building => "running",
            StatusState::Success => "success",
            StatusState::Failure | StatusState::Error => "failed",
            StatusState::Cancelled => "canceled",
        };
        let project = repo.to_string();
        Some(StatusCall {
            url: below(&self.url, ["api", "v4", "projects", &project, "statuses", commit]),
            headers: accept_json(),
            body: json!({
                "state": state, "name": name, "description": description, "target_url": link,
            }),
        })
    }

    fn releases(&self, repo: &RepoName) -> Option<ReleaseApi> {
        // A project's id may be its whole path, as one segment.
        let project = repo.to_string();
        Some(ReleaseApi {
            url: below(&self.url, ["api", "v4", "projects", &project, "releases"]),
            listing: "order_by=released_at&sort=desc&per_page=100",
            latest: None,
            by_tag: None,
            headers: accept_json(),
            scheme: "Bearer",
        })
    }
}
