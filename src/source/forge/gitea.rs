//! Gitea and Forgejo: what is their own beside git, and their REST API, which is the same.

use async_trait::async_trait;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::request::RepoName;
use image_builder_actors::model::secret::Secret;
use reqwest::Url;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue};

use super::api::{Releases, unusable_token};
use super::{Forge, base};
use crate::net::http::authorization;
use crate::source::GitSetupError;
use crate::source::http::{Http, RateLimitHeaders, below};

pub(super) struct Gitea {
    url: Url,
}

impl Gitea {
    /// At its address for people and for git (`GITEA_URL`).
    pub(super) fn new(url: &str) -> Result<Self, GitSetupError> {
        Ok(Self { url: base("GITEA_URL", url)? })
    }
}

#[async_trait]
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

    /// It has none of its own; what stands before it may have these.
    fn rate_limit(&self) -> RateLimitHeaders {
        RateLimitHeaders { remaining: "x-ratelimit-remaining", reset: "x-ratelimit-reset" }
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
            let token = authorization("token", token.expose()).ok_or_else(unusable_token)?;
            headers.insert(AUTHORIZATION, token);
        }
        let releases = Releases {
            http,
            headers,
            with_token: token.is_some(),
            url: below(&self.url, ["api", "v1", "repos", &repo.owner, &repo.name, "releases"]),
            listing: "draft=false&limit=50",
            label: format!("repository `{repo}`"),
        };
        let found = match release {
            "latest" => releases.get(&["latest"]).await?,
            tag => match releases.get(&["tags", tag]).await? {
                Some(found) => Some(found),
                None => releases.named(release).await?,
            },
        };
        Ok(found.map(|release| release.tag_name))
    }
}
