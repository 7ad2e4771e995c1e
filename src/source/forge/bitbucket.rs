//! Bitbucket Cloud: git alone, since it has no releases.

use async_trait::async_trait;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::request::RepoName;
use image_builder_actors::model::secret::Secret;
use reqwest::Url;
use reqwest::header::HeaderValue;

use super::{Forge, base, tag_of_no_release, user_and_password};
use crate::source::GitSetupError;
use crate::source::http::{Http, RateLimitHeaders};

pub(super) struct Bitbucket {
    url: Url,
}

impl Bitbucket {
    /// At its address for people and for git (`BITBUCKET_URL`).
    pub(super) fn new(url: &str) -> Result<Self, GitSetupError> {
        Ok(Self { url: base("BITBUCKET_URL", url)? })
    }
}

#[async_trait]
impl Forge for Bitbucket {
    fn url(&self) -> &Url {
        &self.url
    }

    fn api(&self) -> Option<&Url> {
        None
    }

    /// That of access tokens; app passwords and API tokens are given with theirs.
    fn git_user(&self) -> &'static str {
        "x-token-auth"
    }

    fn rate_limit(&self) -> RateLimitHeaders {
        RateLimitHeaders { remaining: "x-ratelimit-remaining", reset: "x-ratelimit-reset" }
    }

    async fn release_tag(
        &self,
        _http: &Http,
        _token: Option<&Secret>,
        _repo: &RepoName,
        release: &str,
    ) -> Result<Option<String>, Fault> {
        tag_of_no_release(release)
    }

    fn git_authorization(&self, token: &Secret) -> HeaderValue {
        user_and_password(token, self.git_user())
    }
}
