//! Any git server over HTTPS that the operator has named.

use async_trait::async_trait;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::request::RepoName;
use image_builder_actors::model::secret::Secret;
use reqwest::Url;
use reqwest::header::HeaderValue;

use super::{Forge, tag_of_no_release, user_and_password};
use crate::source::http::{Address, Http, RateLimitHeaders, below};

/// One server.
pub(super) struct GitServer {
    pub(super) url: Url,
}

impl GitServer {
    /// The repository's address, exactly as it was given: some servers want `.git` at its end, and some must
    /// not have it. Its owner begins with the server.
    fn address(&self, repo: &RepoName) -> Url {
        let directories = repo.owner.split('/').skip(1);
        below(&self.url, directories.chain([repo.name.as_str()]))
    }
}

#[async_trait]
impl Forge for GitServer {
    fn url(&self) -> &Url {
        &self.url
    }

    fn api(&self) -> Option<&Url> {
        None
    }

    fn git_user(&self) -> &'static str {
        "git"
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

    fn repository(&self, repo: &RepoName) -> Address {
        Address {
            url: self.address(repo),
            is_trusted: true,
            is_api: false,
            label: format!("repository `{repo}`"),
        }
    }

    fn page(&self, repo: &RepoName) -> Url {
        self.address(repo)
    }

    fn git_authorization(&self, token: &Secret) -> HeaderValue {
        user_and_password(token, self.git_user())
    }
}
