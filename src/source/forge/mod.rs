//! The forges that requests can name: a file each, and an entry in [`Forges`].

mod api;
mod bitbucket;
mod git;
mod gitea;
mod github;
mod gitlab;

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::request::{BuildRequest, ForgeName, RepoName};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::{CommitStatus, StatusState};
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

use self::api::ReleaseApi;
pub use self::github::GithubSettings;
use super::http::{Address, Http, RateLimitHeaders, below};
use super::{GitSetupError, fault};
use crate::net::http::{authorization, basic};

/// Where repositories are, and all in which their hosts differ. Git itself is the same everywhere.
pub(super) trait Forge: Send + Sync + 'static {
    /// Its address for people and for git. This origin is trusted with the request's token.
    fn url(&self) -> &Url;

    /// The address of its API, which is asked for the tags of releases; `None` = it has no releases.
    fn api(&self) -> Option<&Url> {
        None
    }

    /// What its API says of a repository's releases; `None` = it has none.
    fn releases(&self, _repo: &RepoName) -> Option<ReleaseApi> {
        None
    }

    /// How its API is told what to show on a commit; `None` = it shows nothing.
    fn status(&self, _status: &CommitStatus) -> Option<StatusCall> {
        None
    }

    /// A token as its API wants it; `None` = it has characters that no header holds.
    fn api_authorization(&self, token: &Secret) -> Option<HeaderValue> {
        authorization("Bearer", token.expose())
    }

    /// The user that git names beside a token, which is the password.
    fn git_user(&self) -> &'static str;

    /// Where it states its limit on requests, or what stands before it does.
    fn rate_limit(&self) -> RateLimitHeaders {
        RateLimitHeaders { remaining: "x-ratelimit-remaining", reset: "x-ratelimit-reset" }
    }

    /// The tag of a release, by the forge's API: of the newest full one for `latest`, else of the one
    /// with this tag, else of the newest one with this name. `None` = the API knows none; it does not
    /// say whether it knows the repository.
    fn release_tag<'a>(
        &'a self,
        http: &'a Http,
        token: Option<&'a Secret>,
        repo: &'a RepoName,
        release: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, Fault>> {
        Box::pin(async move {
            match self.releases(repo) {
                Some(api) => api.tag(http, token, repo, release).await,
                None => tag_of_no_release(release),
            }
        })
    }

    /// Where a repository is cloned from.
    fn repository(&self, repo: &RepoName) -> Address {
        Address {
            url: below(self.url(), repo.owner.split('/').chain([&*format!("{}.git", repo.name)])),
            is_trusted: true,
            is_api: false,
            label: format!("repository `{repo}`"),
        }
    }

    /// A repository's address for people.
    fn page(&self, repo: &RepoName) -> Url {
        below(self.url(), repo.owner.split('/').chain([&*repo.name]))
    }

    /// A token as git shows it.
    fn git_authorization(&self, token: &Secret) -> HeaderValue {
        basic(self.git_user(), token.expose())
    }
}

/// A request that has a forge show something on a commit.
pub(super) struct StatusCall {
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
}

/// The body of a status in GitHub's words, which are Gitea's as well.
fn status_as_github(status: &CommitStatus) -> Value {
    let state = match status.state {
        StatusState::Queued | StatusState::Building => "pending",
        StatusState::Success => "success",
        StatusState::Failure => "failure",
        StatusState::Error | StatusState::Cancelled => "error",
    };
    json!({
        "state": state, "context": status.name, "description": status.description, "target_url": status.link,
    })
}

/// Where the other forges are. What has no address is not there.
#[derive(Debug, Clone, Default)]
pub struct ForgeSettings {
    /// `GITLAB_URL`.
    pub gitlab: Option<String>,
    /// `GITEA_URL`.
    pub gitea: Option<String>,
    /// `BITBUCKET_URL`.
    pub bitbucket: Option<String>,
    /// `GIT_SERVERS`: the servers that requests may name by an address, http or https.
    pub git: Vec<String>,
}

/// Every forge that a request can name.
pub(super) struct Forges {
    github: Arc<dyn Forge>,
    others: HashMap<ForgeName, Arc<dyn Forge>>,
    /// Git servers by `host:port`, as the owners of their repositories begin.
    git: HashMap<String, Arc<dyn Forge>>,
}

impl Forges {
    pub(super) fn new(
        github: &GithubSettings,
        settings: &ForgeSettings,
    ) -> Result<Self, GitSetupError> {
        let mut others: HashMap<ForgeName, Arc<dyn Forge>> = HashMap::new();
        if let Some(url) = &settings.gitlab {
            others.insert(ForgeName::Gitlab, Arc::new(gitlab::Gitlab::new(url)?));
        }
        if let Some(url) = &settings.gitea {
            others.insert(ForgeName::Gitea, Arc::new(gitea::Gitea::new(url)?));
        }
        if let Some(url) = &settings.bitbucket {
            others.insert(ForgeName::Bitbucket, Arc::new(bitbucket::Bitbucket::new(url)?));
        }
        let mut git: HashMap<String, Arc<dyn Forge>> = HashMap::new();
        for server in &settings.git {
            let url = base("GIT_SERVERS", server)?;
            git.insert(url.authority().to_owned(), Arc::new(git::GitServer { url }));
        }
        Ok(Self { github: Arc::new(github::Github::new(github)?), others, git })
    }

    /// GitHub, which requests mean that name no forge.
    pub(super) fn usual(&self) -> &dyn Forge {
        &*self.github
    }

    /// The forge of a request. Whoever reads requests knows which there are, so that only one that was read
    /// by other settings names one that is not.
    pub(super) fn of(&self, request: &BuildRequest) -> Result<&Arc<dyn Forge>, Fault> {
        self.find(request.forge, &request.repo).ok_or_else(|| {
            let name = request.forge.as_str();
            let message = format!("The build service has no forge `{name}` for this repository.");
            fault(Reason::Unsupported, message)
        })
    }
}

impl Forges {
    /// The forge of a repository.
    pub(super) fn find(&self, forge: ForgeName, repo: &RepoName) -> Option<&Arc<dyn Forge>> {
        match forge {
            ForgeName::Github => Some(&self.github),
            ForgeName::Git => self.git.get(repo.owner.split('/').next().unwrap_or_default()),
            other => self.others.get(&other),
        }
    }
}

/// The tag of a release at a forge that has none: of the same name, and there is no newest one.
fn tag_of_no_release(release: &str) -> Result<Option<String>, Fault> {
    if release == "latest" {
        let message = "This forge has no releases, so none is the latest: name a tag or a branch.";
        return Err(fault(Reason::Unsupported, message));
    }
    Ok(Some(release.to_owned()))
}

/// A token as git shows it, which may be given with its user: `user:password`.
fn user_and_password(token: &Secret, user: &str) -> HeaderValue {
    let (user, password) = token.expose().split_once(':').unwrap_or((user, token.expose()));
    basic(user, password)
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
