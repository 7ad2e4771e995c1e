//! Gitea and Forgejo: what is their own beside git, and their REST API, which is the same.

use image_builder_actors::model::request::RepoName;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::CommitStatus;
use reqwest::Url;
use reqwest::header::HeaderValue;

use super::api::{ReleaseApi, accept_json};
use super::{Forge, StatusCall, base, status_as_github};
use crate::net::http::authorization;
use crate::source::GitSetupError;
use crate::source::http::below;

pub(super) struct Gitea {
    url: Url,
}

impl Gitea {
    /// At its address for people and for git (`GITEA_URL`).
    pub(super) fn new(url: &str) -> Result<Self, GitSetupError> {
        Ok(Self { url: base("GITEA_URL", url)? })
    }
}

impl Forge for Gitea {
    fn url(&self) -> &Url {
        &self.url
    }

    fn api(&self) -> Option<&Url> {
        Some(&self.url)
    }

    /// Any will do where the password is a token.
    fn git_user(&self) -> &'static str {
        "oauth2"
    }

    fn status(&self, status: &CommitStatus) -> Option<StatusCall> {
        let CommitStatus { repo, commit, .. } = status;
        let segments = ["api", "v1", "repos", &repo.owner, &repo.name, "statuses", commit];
        Some(StatusCall {
            url: below(&self.url, segments),
            headers: accept_json(),
            body: status_as_github(status),
        })
    }

    fn api_authorization(&self, token: &Secret) -> Option<HeaderValue> {
        authorization("token", token.expose())
    }

    fn releases(&self, repo: &RepoName) -> Option<ReleaseApi> {
        Some(ReleaseApi {
            url: below(&self.url, ["api", "v1", "repos", &repo.owner, &repo.name, "releases"]),
            listing: "draft=false&limit=50",
            latest: Some("latest"),
            by_tag: Some("tags"),
            headers: accept_json(),
            scheme: "token",
        })
    }
}
