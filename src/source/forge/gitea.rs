//! Gitea and Forgejo: what is their own beside git, and their REST API, which is the same.

use image_builder_actors::model::request::RepoName;
use reqwest::Url;

use super::api::{ReleaseApi, accept_json};
use super::{Forge, base};
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
