//! The forges other than GitHub: the suite, and how each API is asked. Their APIs are stand-ins that answer as
//! the real ones are documented, before the real git server.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::future::BoxFuture;
use image_builder::source::{ForgeSettings, GitConnector, GitSettings};
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::request::{BuildRequest, ForgeName, RepoName, Target};
use image_builder_actors::model::scope::Scope;
use image_builder_actors::model::workspace::Workspace;
use image_builder_actors::ports::{FetchedSource, SourceConnector};
use image_builder_actors::testing::conformance::source::World;
use image_builder_actors::testing::source::{FakeRelease, FakeRepository};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::git::{Releases, name, publish_known, with};
use super::git_server::{GOOD_TOKEN, GitRepo, PRIVATE, server_url};
use super::stand_in::{Answer, Asked, StandIn};
use super::{fetched, refused, request};

/// A connector that is asked for repositories of one forge, whatever a request says.
struct Of {
    forge: ForgeName,
    connector: GitConnector,
}

impl Of {
    fn request(&self, request: &BuildRequest) -> BuildRequest {
        let mut request = BuildRequest { forge: self.forge, ..request.clone() };
        if self.forge == ForgeName::Git {
            let server = server_url();
            let server = server.trim_start_matches("http://");
            request.repo.owner = format!("{server}/{}", request.repo.owner);
        }
        request
    }
}

impl SourceConnector for Of {
    fn fetch<'a>(
        &'a self,
        request: &'a BuildRequest,
        pinned: Option<&'a str>,
        workspace: Workspace,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<FetchedSource, Fault>> {
        Box::pin(async move {
            self.connector.fetch(&self.request(request), pinned, workspace, progress).await
        })
    }

    fn scopes(&self, request: &BuildRequest, pinned: Option<&str>) -> Vec<Scope> {
        self.connector.scopes(&self.request(request), pinned)
    }
}

/// A connector of this forge alone, which is at this address.
fn connector(forge: ForgeName, url: &str) -> Of {
    let url = || Some(url.to_owned());
    let forges = match forge {
        ForgeName::Gitlab => ForgeSettings { gitlab: url(), ..ForgeSettings::default() },
        ForgeName::Gitea => ForgeSettings { gitea: url(), ..ForgeSettings::default() },
        ForgeName::Bitbucket => ForgeSettings { bitbucket: url(), ..ForgeSettings::default() },
        ForgeName::Git => ForgeSettings { git: vec![server_url()], ..ForgeSettings::default() },
        ForgeName::Github => ForgeSettings::default(),
    };
    Of { forge, connector: with(GitSettings { forges, ..super::git::settings() }) }
}

struct Forge {
    connector: Of,
    releases: Releases,
    /// Kept for as long as the world.
    repos: Mutex<Vec<GitRepo>>,
    _server: StandIn,
}

impl Forge {
    async fn start(forge: ForgeName) -> Self {
        let releases: Releases = Arc::default();
        let known = releases.clone();
        let server = StandIn::start(move |asked| answer(&known, asked)).await;
        let connector = connector(forge, &server.url());
        Self { connector, releases, repos: Mutex::default(), _server: server }
    }
}

impl World for Forge {
    fn connector(&self) -> &dyn SourceConnector {
        &self.connector
    }

    async fn publish(&self, repository: FakeRepository) -> (RepoName, Vec<String>) {
        publish_known(repository, &self.releases, &self.repos)
    }

    fn token(&self) -> &'static str {
        GOOD_TOKEN
    }

    fn has_releases(&self) -> bool {
        !matches!(self.connector.forge, ForgeName::Bitbucket | ForgeName::Git)
    }
}

/// Stands in for what GitLab and Gitea answer about releases; all else is the git server's.
fn answer(known: &Releases, asked: &Asked) -> Answer {
    let path = asked.target().0;
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (repo, rest) = match &parts[..] {
        ["api", "v4", "projects", project, "releases", rest @ ..] => {
            (project.replace("%2F", "/"), rest)
        }
        ["api", "v1", "repos", owner, name, "releases", rest @ ..] => {
            (format!("{owner}/{name}"), rest)
        }
        _ => return Answer::From(server_url()),
    };
    let known = known.lock().expect("no test panics here");
    let Some((_, releases)) = known.iter().find(|(name, _)| name.to_string() == repo) else {
        return Answer::status(404);
    };
    let show = |release: &FakeRelease| json!({"tag_name": release.tag, "name": release.name});
    let found = match rest {
        [] => return Answer::json(&releases.iter().map(show).collect()),
        // Gitea's.
        ["latest"] if parts[1] == "v1" => releases.first(),
        ["tags", tag] | [tag] => releases.iter().find(|release| release.tag == **tag),
        _ => None,
    };
    found.map_or_else(|| Answer::status(404), |release| Answer::json(&show(release)))
}

mod at_gitlab {
    use image_builder_actors::model::request::ForgeName;
    image_builder_actors::source_conformance!(super::Forge::start(ForgeName::Gitlab).await);
}

mod at_gitea {
    use image_builder_actors::model::request::ForgeName;
    image_builder_actors::source_conformance!(super::Forge::start(ForgeName::Gitea).await);
}

mod at_bitbucket {
    use image_builder_actors::model::request::ForgeName;
    image_builder_actors::source_conformance!(super::Forge::start(ForgeName::Bitbucket).await);
}

mod at_any_git_server {
    use image_builder_actors::model::request::ForgeName;
    image_builder_actors::source_conformance!(super::Forge::start(ForgeName::Git).await);
}

fn release(name: &str) -> Target {
    Target::Release(name.to_owned())
}

/// What an API is asked for the release `v1/rc.1`, in the order of asking, where it knows it as `answer`.
async fn asked_for(forge: ForgeName, owner: &str, wish: &str, answer: Value) -> Vec<Asked> {
    let repo = GitRepo::create(PRIVATE, "api");
    repo.commit(&[("a", "1")]);
    repo.annotated_tag("v1/rc.1");
    let server = StandIn::start(move |asked| match asked.path.starts_with("/api/") {
        true => Answer::json(&answer),
        false => Answer::From(server_url()),
    })
    .await;
    let name = RepoName { owner: owner.replace("OWNER", PRIVATE), ..name(&repo) };
    let request = request(&name, release(wish), Some(GOOD_TOKEN));
    let got = fetched(&connector(forge, &server.url()), &request).await;
    assert_eq!(got.source.version, "v1/rc.1");
    let asked = server.asked().into_iter().filter(|asked| asked.path.starts_with("/api/"));
    let asked: Vec<_> = asked.collect();
    let path = |asked: &Asked| asked.path.replace(&name.name, "NAME");
    asked.into_iter().map(|asked| Asked { path: path(&asked), ..asked }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn gitlab_is_asked_as_it_wants_to_be_asked() {
    let one = json!({"tag_name": "v1/rc.1", "name": "The First"});
    let asked = asked_for(ForgeName::Gitlab, "OWNER", "v1/rc.1", one.clone()).await;
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].path, format!("/api/v4/projects/{PRIVATE}%2FNAME/releases/v1%2Frc.1"));
    assert_eq!(asked[0].header("authorization"), format!("Bearer {GOOD_TOKEN}"));
    let upcoming = json!({"tag_name": "v2", "name": "x", "upcoming_release": true});
    let asked = asked_for(ForgeName::Gitlab, "OWNER", "latest", json!([upcoming, one])).await;
    assert_eq!(
        asked[0].path,
        format!(
            "/api/v4/projects/{PRIVATE}%2FNAME/releases?order_by=released_at&sort=desc&per_page=100"
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn gitea_is_asked_as_it_wants_to_be_asked() {
    for (wish, path) in [("latest", "latest"), ("v1/rc.1", "tags/v1%2Frc.1")] {
        let one = json!({"tag_name": "v1/rc.1", "name": "The First"});
        let asked = asked_for(ForgeName::Gitea, "OWNER", wish, one).await;
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].path, format!("/api/v1/repos/{PRIVATE}/NAME/releases/{path}"));
        assert_eq!(asked[0].header("authorization"), format!("token {GOOD_TOKEN}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_read_where_each_forge_states_it() {
    let reset = (OffsetDateTime::now_utc().unix_timestamp() + 600).to_string();
    let repo = RepoName { owner: "some".to_owned(), name: "where".to_owned() };
    for (forge, remaining, until) in [
        (ForgeName::Gitlab, "ratelimit-remaining", "ratelimit-reset"),
        (ForgeName::Gitea, "x-ratelimit-remaining", "x-ratelimit-reset"),
        (ForgeName::Bitbucket, "x-ratelimit-remaining", "x-ratelimit-reset"),
    ] {
        let reset = reset.clone();
        let server =
            StandIn::start(move |_| Answer::status(429).with(remaining, "0").with(until, &reset))
                .await;
        let request = request(&repo, Target::DefaultBranch, Some("a-token"));
        let of = connector(forge, &server.url());
        let fault = refused(&of, &request, Reason::RateLimited, "fewer requests").await;
        let wait = fault.retry_after.expect("the wait is told");
        assert!((Duration::from_secs(590)..=Duration::from_secs(600)).contains(&wait), "{forge:?}");
    }
}

/// How git shows a token to a forge, as a name and a password.
async fn shown(forge: ForgeName, token: &str) -> String {
    let server = StandIn::start(|_| Answer::status(500)).await;
    let mut of = connector(forge, &server.url());
    if forge == ForgeName::Git {
        let git = vec![server.url()];
        let forges = ForgeSettings { git, ..ForgeSettings::default() };
        of.connector = with(GitSettings { forges, ..super::git::settings() });
    }
    let owner = match forge {
        ForgeName::Git => format!("{}/some", server.address),
        _ => "some".to_owned(),
    };
    let repo = RepoName { owner, name: "where".to_owned() };
    let request = request(&repo, Target::DefaultBranch, Some(token));
    let request = BuildRequest { forge, ..request };
    refused(&of.connector, &request, Reason::ForgeFailed, "500").await;
    let asked = server.asked().remove(0);
    let encoded = asked.header("authorization").trim_start_matches("Basic ").to_owned();
    let decoded = BASE64.decode(encoded).expect("a name and a password");
    String::from_utf8(decoded).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_forge_is_shown_a_token_with_the_user_that_it_wants() {
    for (forge, token, expected) in [
        (ForgeName::Gitlab, "a-token", "oauth2:a-token"),
        (ForgeName::Gitea, "a-token", "oauth2:a-token"),
        (ForgeName::Bitbucket, "a-token", "x-token-auth:a-token"),
        (ForgeName::Bitbucket, "joe:canary-4b7d-app-password", "joe:canary-4b7d-app-password"),
        (ForgeName::Git, "a-token", "git:a-token"),
        (ForgeName::Git, "joe:a-password", "joe:a-password"),
    ] {
        assert_eq!(shown(forge, token).await, expected, "{forge:?}");
        let repo = RepoName { owner: "o".to_owned(), name: "n".to_owned() };
        let request = request(&repo, Target::DefaultBranch, Some(token));
        let password = expected.split_once(':').expect("a pair").1;
        assert_eq!(request.redactor().redact(password), "[secret]");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_of_groups_is_cloned_from_its_whole_path() {
    let server = StandIn::start(|_| Answer::status(404)).await;
    let repo = RepoName { owner: "a/b c".to_owned(), name: "name".to_owned() };
    let request = request(&repo, Target::DefaultBranch, None);
    let of = connector(ForgeName::Gitlab, &server.url());
    refused(&of, &request, Reason::RepositoryNotFound, "a/b c/name").await;
    assert_eq!(server.asked()[0].target().0, "/a/b%20c/name.git/info/refs");
}
