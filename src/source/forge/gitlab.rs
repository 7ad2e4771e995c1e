//! GitLab, its own and others': what is its own beside git, and its REST API.

use async_trait::async_trait;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::request::RepoName;
use image_builder_actors::model::secret::Secret;
use reqwest::Url;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue};

use super::api::{Releases, unusable_token};
use super::{Forge, base};
use crate::net::http::bearer;
use crate::source::GitSetupError;
use crate::source::http::{Http, RateLimitHeaders, below};

pub(super) struct Gitlab {
    url: Url,
}

impl Gitlab {
    /// At its address for people and for git (`GITLAB_URL`).
    pub(super) fn new(url: &str) -> Result<Self, GitSetupError> {
        Ok(Self { url: base("GITLAB_URL", url)? })
    }
}

#[async_trait]
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

    async fn release_tag(
        &self,
        http: &Http,
        token: Option<&Secret>,
        repo: &RepoName,
        release: &str,
    ) -> Result<Option<String>, Fault> {
        let json = HeaderValue::from_static("application/json");
        let mut headers = HeaderMap::from_iter([(ACCEPT, json)]);
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, bearer(token.expose()).ok_or_else(unusable_token)?);
        }
        // A project's id may be its whole path, as one segment.
        let project = repo.to_string();
        let releases = Releases {
            http,
            headers,
            with_token: token.is_some(),
            url: below(&self.url, ["api", "v4", "projects", &project, "releases"]),
            listing: "order_by=released_at&sort=desc&per_page=100",
            label: format!("repository `{repo}`"),
        };
        let found = match release {
            "latest" => releases.newest(|_| true).await?,
            tag => match releases.get(&[tag]).await? {
                Some(found) => Some(found),
                None => releases.named(release).await?,
            },
        };
        Ok(found.map(|release| release.tag_name))
    }
}
