//! GitHub, and GitHub Enterprise: what is its own beside git, and its REST API.

use image_builder_actors::model::request::RepoName;
use image_builder_actors::ports::CommitStatus;
use reqwest::Url;
use reqwest::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue};

use super::api::ReleaseApi;
use super::{Forge, StatusCall, base, status_as_github};
use crate::source::GitSetupError;
use crate::source::http::below;

const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.github+json");
const API_VERSION: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-github-api-version"), HeaderValue::from_static("2022-11-28"));

/// Where GitHub is.
#[derive(Debug, Clone)]
pub struct GithubSettings {
    /// Its address for people and for git (`GITHUB_URL`), http or https.
    pub url: String,
    /// The address of its REST API (`GITHUB_API_URL`), http or https; used for releases and
    /// commit statuses alone.
    pub api_url: String,
}

impl Default for GithubSettings {
    fn default() -> Self {
        Self { url: "https://github.com".to_owned(), api_url: "https://api.github.com".to_owned() }
    }
}

pub(super) struct Github {
    url: Url,
    api: Url,
}

impl Github {
    pub(super) fn new(settings: &GithubSettings) -> Result<Self, GitSetupError> {
        let GithubSettings { url, api_url } = settings;
        Ok(Self { url: base("GITHUB_URL", url)?, api: base("GITHUB_API_URL", api_url)? })
    }
}

impl Forge for Github {
    fn url(&self) -> &Url {
        &self.url
    }

    fn api(&self) -> Option<&Url> {
        Some(&self.api)
    }

    fn git_user(&self) -> &'static str {
        "x-access-token"
    }

    fn status(&self, status: &CommitStatus) -> Option<StatusCall> {
        let CommitStatus { repo, commit, .. } = status;
        Some(StatusCall {
            url: below(&self.api, ["repos", &repo.owner, &repo.name, "statuses", commit]),
            headers: HeaderMap::from_iter([(ACCEPT, MEDIA_TYPE), API_VERSION]),
            body: status_as_github(status),
        })
    }

    fn releases(&self, repo: &RepoName) -> Option<ReleaseApi> {
        Some(ReleaseApi {
            url: below(&self.api, ["repos", &repo.owner, &repo.name, "releases"]),
            listing: "per_page=100",
            latest: Some("latest"),
            by_tag: Some("tags"),
            headers: HeaderMap::from_iter([(ACCEPT, MEDIA_TYPE), API_VERSION]),
            scheme: "Bearer",
        })
    }
}
