//! The adapter in its world: the real git server, and a stand-in for GitHub's API beside it.

use std::sync::{Arc, Mutex};

use image_builder::source::{GitConnector, GitSettings, GithubSettings};
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::RepoName;
use image_builder_actors::ports::SourceConnector;
use image_builder_actors::testing::conformance::source::World;
use image_builder_actors::testing::source::{FakeRelease, FakeRepository};
use serde_json::json;

use super::git_server::{GOOD_TOKEN, GitRepo, PRIVATE, server_url};
use super::stand_in::{Answer, Asked, StandIn};

/// A connector for a forge at these addresses.
pub(crate) fn connector(url: &str, api_url: &str, limits: Limits) -> GitConnector {
    with(GitSettings {
        github: GithubSettings { url: url.to_owned(), api_url: api_url.to_owned() },
        limits,
        ..settings()
    })
}

/// The settings that all have in common.
pub(crate) fn settings() -> GitSettings {
    GitSettings { program: env!("CARGO_BIN_EXE_image-builder").into(), ..GitSettings::default() }
}

/// A connector for a forge at this address, which has its API there too.
pub(crate) fn at(url: &str) -> GitConnector {
    connector(url, url, Limits::default())
}

/// A connector for the git server itself, with these limits.
pub(crate) fn limited(limits: Limits) -> GitConnector {
    connector(&server_url(), &server_url(), limits)
}

/// A connector with these settings.
pub(crate) fn with(settings: GitSettings) -> GitConnector {
    rustls::crypto::ring::default_provider().install_default().ok();
    GitConnector::new(settings).expect("the settings are good")
}

/// A connector for the git server itself; it has no API.
pub(crate) fn plain() -> GitConnector {
    at(&server_url())
}

pub(crate) fn name(repo: &GitRepo) -> RepoName {
    RepoName { owner: repo.owner.clone(), name: repo.name.clone() }
}

pub(crate) type Releases = Arc<Mutex<Vec<(RepoName, Vec<FakeRelease>)>>>;

pub(crate) struct GitServer {
    connector: GitConnector,
    releases: Releases,
    /// Kept for as long as the world.
    repos: Mutex<Vec<GitRepo>>,
    _api: StandIn,
}

impl GitServer {
    pub(crate) async fn start() -> Self {
        let releases: Releases = Arc::default();
        let known = releases.clone();
        let api = StandIn::start(move |asked| github_api(&known, asked)).await;
        let connector = connector(&server_url(), &api.url(), Limits::default());
        Self { connector, releases, repos: Mutex::default(), _api: api }
    }
}

impl World for GitServer {
    fn connector(&self) -> &dyn SourceConnector {
        &self.connector
    }

    async fn publish(&self, repository: FakeRepository) -> (RepoName, Vec<String>) {
        publish_known(repository, &self.releases, &self.repos)
    }

    fn token(&self) -> &'static str {
        GOOD_TOKEN
    }
}

/// Makes a repository real that a stand-in's API is to know, for as long as `repos` has it.
pub(crate) fn publish_known(
    repository: FakeRepository,
    releases: &Releases,
    repos: &Mutex<Vec<GitRepo>>,
) -> (RepoName, Vec<String>) {
    let (repo, ids) = publish(&repository);
    let name = name(&repo);
    let mut releases = releases.lock().expect("no test panics here");
    releases.push((name.clone(), repository.releases));
    repos.lock().expect("no test panics here").push(repo);
    (name, ids)
}

/// Makes a repository real on the git server; its commits have these ids.
pub(crate) fn publish(repository: &FakeRepository) -> (GitRepo, Vec<String>) {
    let owner = if repository.token.is_some() { PRIVATE } else { "contract" };
    let repo = GitRepo::create(owner, "suite");
    let mut ids = Vec::new();
    for commit in &repository.commits {
        let files: Vec<_> =
            commit.files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        ids.push(repo.commit(&files));
    }
    for (branch, place) in &repository.branches {
        repo.git_on_server(&["branch", "-f", branch, &ids[*place]]);
    }
    for (tag, place) in &repository.tags {
        repo.git_on_server(&["tag", "-a", "-m", "a tag", tag, &ids[*place]]);
    }
    repo.set_default_branch(&repository.default_branch);
    if !repository.branches.contains_key("main") {
        repo.git_on_server(&["branch", "-D", "main"]);
    }
    (repo, ids)
}

/// Stands in for the part of GitHub's REST API that is about releases.
fn github_api(known: &Releases, asked: &Asked) -> Answer {
    let parts: Vec<&str> = asked.target().0.trim_start_matches('/').split('/').collect();
    let known = known.lock().expect("no test panics here");
    let ["repos", owner, name, "releases", rest @ ..] = &parts[..] else {
        return Answer::status(404);
    };
    let Some((_, releases)) = known.iter().find(|(r, _)| r.owner == *owner && r.name == *name)
    else {
        return Answer::status(404);
    };
    let show = |release: &FakeRelease| json!({"tag_name": release.tag, "name": release.name});
    let found = match rest {
        [] => return Answer::json(&releases.iter().map(show).collect()),
        ["latest"] => releases.first(),
        ["tags", tag] => releases.iter().find(|release| release.tag == **tag),
        _ => None,
    };
    found.map_or_else(|| Answer::status(404), |release| Answer::json(&show(release)))
}
