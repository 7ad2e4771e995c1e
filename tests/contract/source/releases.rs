//! Releases, as GitHub's REST API tells of them; the API is a stand-in.

use std::time::Duration;

use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::Target;
use image_builder_actors::ports::SourceConnector;
use serde_json::json;
use time::OffsetDateTime;

use super::git::{connector, name};
use super::git_server::{GOOD_TOKEN, GitRepo, PRIVATE, server_url};
use super::stand_in::{Answer, StandIn};
use super::{fetched, refused, request};

type Headers<'a> = &'a [(&'a str, &'a str)];

fn release(name: &str) -> Target {
    Target::Release(name.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_asked_as_github_wants_to_be_asked() {
    let repo = GitRepo::create(PRIVATE, "api");
    let commit = repo.commit(&[("a", "1")]);
    repo.annotated_tag("v1/rc.1");
    let api = StandIn::start(|_| Answer::json(&json!({"tag_name": "v1/rc.1"}))).await;
    let connector = connector(&server_url(), &format!("{}/api/v3", api.url()), Limits::default());
    for (wish, path) in [("latest", "latest"), ("v1/rc.1", "tags/v1%2Frc.1")] {
        let request = request(&name(&repo), release(wish), Some(GOOD_TOKEN));
        let got = fetched(&connector, &request).await;
        assert_eq!((&got.source.commit, got.source.version.as_str()), (&commit, "v1/rc.1"));
        let asked = api.asked().pop().expect("the API was asked");
        let expected = format!("/api/v3/repos/{PRIVATE}/{}/releases/{path}", repo.name);
        assert_eq!(asked.path, expected);
        assert_eq!(asked.header("authorization"), format!("Bearer {GOOD_TOKEN}"));
        assert_eq!(asked.header("accept"), "application/vnd.github+json");
        assert_eq!(asked.header("x-github-api-version"), "2022-11-28");
        assert!(asked.header("user-agent").contains("image-builder"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_tags_and_commits_do_not_use_the_api() {
    let repo = GitRepo::create("contract", "noapi");
    let commit = repo.commit(&[("a", "1")]);
    repo.tag("v1");
    let api = StandIn::start(|_| Answer::status(500)).await;
    let connector = connector(&server_url(), &api.url(), Limits::default());
    for target in [
        Target::DefaultBranch,
        super::branch("main"),
        Target::Tag("v1".to_owned()),
        super::commit(&commit),
        super::commit(&commit[..8]),
    ] {
        fetched(&connector, &request(&name(&repo), target, None)).await;
    }
    assert_eq!(api.asked().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_found_by_its_name_on_a_later_page_and_drafts_are_not() {
    let repo = GitRepo::create("contract", "pages");
    let commit = repo.commit(&[("a", "1")]);
    repo.tag("v1");
    let api = StandIn::start(|asked| {
        let path = &asked.path;
        if path.ends_with("/releases?per_page=100") {
            let draft = json!([{"tag_name": "v0", "name": "The First", "draft": true}]);
            let next = format!("<{path}&page=2>; rel=\"next\", <{path}&page=2>; rel=\"last\"");
            return Answer::json(&draft).with("link", &next);
        }
        if path.ends_with("&page=2") {
            return Answer::json(&json!([{"tag_name": "v1", "name": "The First"}]));
        }
        Answer::status(404)
    })
    .await;
    let connector = connector(&server_url(), &api.url(), Limits::default());
    let got = fetched(&connector, &request(&name(&repo), release("The First"), None)).await;
    assert_eq!((&got.source.commit, got.source.version.as_str()), (&commit, "v1"));
    let request = request(&name(&repo), release("The Second"), None);
    refused(&connector, &request, Reason::RefNotFound, "release `The Second`").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_page_on_another_server_is_not_asked_for() {
    let repo = GitRepo::create("contract", "lured");
    repo.commit(&[("a", "1")]);
    let other = StandIn::start(|_| Answer::json(&json!([]))).await;
    let next = format!("<{}/>; rel=\"next\"", other.url());
    let api = StandIn::start(move |asked| {
        if asked.path.contains("/tags/") {
            return Answer::status(404);
        }
        Answer::json(&json!([])).with("link", &next)
    })
    .await;
    let connector = connector(&server_url(), &api.url(), Limits::default());
    let request = request(&name(&repo), release("v1"), Some("a-token"));
    refused(&connector, &request, Reason::RefNotFound, "release `v1`").await;
    assert_eq!(other.asked().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_of_a_tag_that_is_gone_is_not_found() {
    let repo = GitRepo::create("contract", "gone");
    repo.commit(&[("a", "1")]);
    let api = StandIn::start(|_| Answer::json(&json!({"tag_name": "v9"}))).await;
    let connector = connector(&server_url(), &api.url(), Limits::default());
    let request = request(&name(&repo), release("latest"), None);
    refused(&connector, &request, Reason::RefNotFound, "tag `v9`").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_repository_is_told_apart_from_a_missing_release() {
    let api = StandIn::start(|_| Answer::status(404)).await;
    let connector = connector(&server_url(), &api.url(), Limits::default());
    let repo = image_builder_actors::model::request::RepoName {
        owner: "nobody".to_owned(),
        name: "nothing".to_owned(),
    };
    let request = request(&repo, release("latest"), None);
    refused(&connector, &request, Reason::RepositoryNotFound, "nobody/nothing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_refuses_has_its_reason() {
    let repo = GitRepo::create("contract", "refused");
    repo.commit(&[("a", "1")]);
    let reset = (OffsetDateTime::now_utc().unix_timestamp() + 600).to_string();
    let limited: Headers<'_> = &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &reset)];
    let cases: [(u16, Headers<'_>, Reason); 6] = [
        (401, &[], Reason::Unauthorized),
        (403, &[], Reason::Unauthorized),
        (403, limited, Reason::RateLimited),
        (429, limited, Reason::RateLimited),
        (502, &[], Reason::ForgeFailed),
        (200, &[], Reason::ForgeFailed),
    ];
    for (status, headers, reason) in cases {
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let api = StandIn::start(move |_| Answer::Text {
            status,
            headers: headers.clone(),
            body: b"{\"message\": \"as it says\"}".to_vec(),
        })
        .await;
        let connector = connector(&server_url(), &api.url(), Limits::default());
        let request = request(&name(&repo), release("latest"), Some("a-token"));
        let fault = refused(&connector, &request, reason, "").await;
        if reason == Reason::RateLimited {
            let wait = fault.retry_after.expect("the wait is told");
            assert!((Duration::from_secs(590)..=Duration::from_secs(600)).contains(&wait));
        }
        assert_eq!(api.asked().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_the_api_concerns_those_that_it_counts_together() {
    let repo = GitRepo::create("contract", "counted");
    repo.commit(&[("a", "1")]);
    let api = StandIn::start(|_| Answer::status(429)).await;
    let connector = connector(&server_url(), &api.url(), Limits::default());
    let scopes = |target: &Target, token, pinned| {
        connector.scopes(&request(&name(&repo), target.clone(), token), pinned)
    };
    for (token, concerned) in [(None, "anonymous"), (Some("a-token"), "token")] {
        let asked = request(&name(&repo), release("latest"), token);
        let fault = refused(&connector, &asked, Reason::RateLimited, "").await;
        assert_eq!(fault.scope.kind(), concerned);
        if token.is_none() {
            // Neither what shows a token, nor what does not ask the API.
            assert!(!scopes(&release("latest"), Some("a-token"), None).contains(&fault.scope));
            assert!(!scopes(&Target::DefaultBranch, None, None).contains(&fault.scope));
            assert!(!scopes(&release("latest"), None, Some("c0ffee")).contains(&fault.scope));
        }
    }
}
