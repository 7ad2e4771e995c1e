//! The forges that requests can name: a file each, and an entry in [`Forges`].

mod github;

use async_trait::async_trait;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::request::{ForgeName, RepoName};
use image_builder_actors::model::secret::Secret;
use reqwest::Url;
use reqwest::header::HeaderValue;

pub use self::github::GithubSettings;
use super::GitSetupError;
use super::http::{Address, Http, RateLimitHeaders, below};
use crate::net::http::basic;

/// Where repositories are, and all in which their hosts differ. Git itself is the same everywhere.
#[async_trait]
pub(super) trait Forge: Send + Sync + 'static {
    /// Its address for people and for git. This origin is trusted with the request's token.
    fn url(&self) -> &Url;

    /// The address of its API, which is asked for the tags of releases.
    fn api(&self) -> &Url;

    /// The user that git names beside a token, which is the password.
    fn git_user(&self) -> &'static str;

    /// Where it states its limit on requests.
    fn rate_limit(&self) -> RateLimitHeaders;

    /// The tag of a release, by the forge's API: of the newest full one for `latest`, else of the one
    /// with this tag, else of the newest one with this name. `None` = the API knows none; it does not
    /// say whether it knows the repository.
    async fn release_tag(
        &self,
        http: &Http,
        token: Option<&Secret>,
        repo: &RepoName,
        release: &str,
    ) -> Result<Option<String>, Fault>;

    /// Where a repository is cloned from.
    fn repository(&self, repo: &RepoName) -> Address {
        Address {
            url: below(self.url(), [repo.owner.as_str(), &format!("{}.git", repo.name)]),
            is_trusted: true,
            is_api: false,
            label: format!("repository `{repo}`"),
        }
    }

    /// A repository's address for people.
    fn page(&self, repo: &RepoName) -> Url {
        below(self.url(), [repo.owner.as_str(), &repo.name])
    }

    /// A token as git shows it.
    fn git_authorization(&self, token: &Secret) -> HeaderValue {
        basic(self.git_user(), token.expose())
    }
}

/// Every forge that a request can name.
pub(super) struct Forges {
    github: Box<dyn Forge>,
}

impl Forges {
    pub(super) fn new(github: &GithubSettings) -> Result<Self, GitSetupError> {
        Ok(Self { github: Box::new(github::Github::new(github)?) })
    }

    pub(super) fn get(&self, name: ForgeName) -> &dyn Forge {
        match name {
            ForgeName::Github => &*self.github,
        }
    }
}

/// A forge's address, as a setting gives it.
fn base(variable: &'static str, text: &str) -> Result<Url, GitSetupError> {
    let bad = |problem: &str| GitSetupError::BadUrl { variable, problem: problem.to_owned() };
    let url = Url::parse(text.trim()).map_err(|error| bad(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(bad("it does not begin with http:// or https:// and a host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("it holds a credential, which belongs into the request"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it has a query or a fragment"));
    }
    Ok(url)
}
