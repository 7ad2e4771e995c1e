//! What the forge answers when it does not give out a repository, and what becomes of it.
//!
//! The forge is a stand-in, since the real git server cannot be made to answer so.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::{RepoName, Target};
use image_builder_actors::model::scope::Scope;
use tokio::net::TcpListener;

use super::git::{at, connector, name};
use super::git_server::{GOOD_TOKEN, GitRepo, PRIVATE, server_url};
use super::stand_in::{Answer, StandIn};
use super::{fetched, refused, request};

fn somewhere() -> RepoName {
    RepoName { owner: "some".to_owned(), name: "where".to_owned() }
}

/// Fetches the default branch of [`somewhere`] from this forge, which must fail so.
async fn refused_by(forge: &StandIn, token: Option<&str>, reason: Reason, naming: &str) -> Fault {
    let connector = at(&forge.url());
    let request = request(&somewhere(), Target::DefaultBranch, token);
    refused(&connector, &request, reason, naming).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_status_has_its_reason() {
    for (status, token, reason, naming) in [
        (401, Some("a-token"), Reason::Unauthorized, "The token was refused"),
        (401, None, Reason::Unauthorized, "give a token"),
        (403, Some("a-token"), Reason::Unauthorized, "The token was refused"),
        (404, Some("a-token"), Reason::RepositoryNotFound, "token does not reach it"),
        (404, None, Reason::RepositoryNotFound, "does not exist"),
        (429, None, Reason::RateLimited, "fewer requests"),
        (500, None, Reason::ForgeFailed, "status 500"),
        (503, Some("a-token"), Reason::ForgeFailed, "status 503"),
        (418, None, Reason::ForgeFailed, "status 418"),
    ] {
        let forge = StandIn::start(move |_| Answer::status(status)).await;
        let fault = refused_by(&forge, token, reason, naming).await;
        assert!(fault.message.contains("some/where"), "{}", fault.message);
        assert!(forge.asked().len() <= 2, "a refusal is not asked for again and again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forge_that_asks_for_patience_is_given_it() {
    for (status, header, value) in
        [(429, "retry-after", "17"), (403, "retry-after", "17"), (503, "retry-after", "17")]
    {
        let forge = StandIn::start(move |_| Answer::status(status).with(header, value)).await;
        let reason = if status == 503 { Reason::ForgeFailed } else { Reason::RateLimited };
        let fault = refused_by(&forge, Some("a-token"), reason, "").await;
        assert_eq!(fault.retry_after, Some(Duration::from_secs(17)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patience_is_asked_of_the_token_that_was_shown_else_for_the_repository_or_of_all_without_one()
 {
    let none_left: &[(&str, &str)] = &[("x-ratelimit-remaining", "0")];
    for (token, headers, concerned) in [
        (Some("a-token"), &[][..], "token"),
        (Some("a-token"), none_left, "token"),
        (None, &[], "repository"),
        (None, none_left, "anonymous"),
    ] {
        let answer = headers
            .iter()
            .fold(Answer::status(429), |answer, (name, value)| answer.with(name, value));
        let answer = Mutex::new(Some(answer));
        let again = move || Answer::status(429);
        let forge = StandIn::start(move |_| {
            answer.lock().expect("no answer panics").take().unwrap_or_else(again)
        })
        .await;
        let connector = at(&forge.url());
        let request = request(&somewhere(), Target::DefaultBranch, token);
        let fault = refused(&connector, &request, Reason::RateLimited, "").await;
        assert_eq!(fault.scope.kind(), concerned, "{token:?} {headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_no_repository_is_told_as_such() {
    let forge = StandIn::start(|_| Answer::bytes("<html>")).await;
    refused_by(&forge, None, Reason::RepositoryNotFound, "no git repository").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forge_that_speaks_nonsense_or_breaks_off_has_failed() {
    let kind = "application/x-git-upload-pack-advertisement";
    for body in ["0", "zzzz", "00ff", "0008ERR\n", "0012not a git line"] {
        let answer = move || Answer::bytes(body).with("content-type", kind);
        let forge = StandIn::start(move |_| answer()).await;
        refused_by(&forge, None, Reason::ForgeFailed, "some/where").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_names_its_objects_by_sha_256_is_not_supported() {
    let line = format!("{} HEAD\0shallow object-format=sha256 agent=git/2\n", "1".repeat(64));
    let body = format!("001e# service=git-upload-pack\n0000{:04x}{line}0000", line.len() + 4);
    let kind = "application/x-git-upload-pack-advertisement";
    let forge = StandIn::start(move |_| {
        let (headers, body) = (Vec::new(), body.clone().into_bytes());
        Answer::Text { status: 200, headers, body }.with("content-type", kind)
    })
    .await;
    refused_by(&forge, None, Reason::Unsupported, "SHA-256").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_refs_without_an_end_is_bounded() {
    let kind = "application/x-git-upload-pack-advertisement";
    let endless = move || Answer::Endless {
        headers: Vec::new(),
        first: Vec::new(),
        piece: vec![b'0'; 1 << 16],
    };
    let forge = StandIn::start(move |_| endless().with("content-type", kind)).await;
    let limits = Limits { transfer_bytes: 10 << 20, ..Limits::default() };
    let connector = connector(&forge.url(), &forge.url(), limits);
    let request = request(&somewhere(), Target::DefaultBranch, None);
    refused(&connector, &request, Reason::TooLarge, "10.0 MiB").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_the_forge_hangs_up_on_is_made_once_more() {
    let repo = GitRepo::create("it", "hung-up");
    repo.commit(&[("a", "1")]);
    let seen = Mutex::new(BTreeSet::new());
    let forge = StandIn::start(move |asked| {
        let is_new = seen.lock().expect("no answer panics").insert(asked.path.clone());
        if is_new { Answer::HangUp } else { Answer::From(server_url()) }
    })
    .await;
    let patient = at(&forge.url());
    fetched(&patient, &request(&name(&repo), Target::DefaultBranch, None)).await;
    assert_eq!(forge.asked().len(), 4, "the refs and the pack, each twice");

    let forge = StandIn::start(|_| Answer::HangUp).await;
    refused_by(&forge, None, Reason::ForgeFailed, "broke").await;
    assert_eq!(forge.asked().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forge_that_is_not_there_is_down() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a local port is free");
    let address = listener.local_addr().expect("the port is known");
    drop(listener);
    for url in [format!("http://{address}"), "http://no-such-host.invalid".to_owned()] {
        let connector = at(&url);
        for target in [Target::DefaultBranch, Target::Release("latest".to_owned())] {
            let request = request(&somewhere(), target, Some("a-token"));
            let fault = refused(&connector, &request, Reason::ForgeDown, "cannot be reached").await;
            let host = url.trim_start_matches("http://").to_owned();
            assert_eq!(fault.scope, Scope::Host(host));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_sent_as_git_sends_it_and_stays_out_of_the_address() {
    let repo = GitRepo::create(PRIVATE, "sent");
    let commit = repo.commit(&[("a", "1")]);
    let forge = StandIn::start(|_| Answer::From(server_url())).await;
    let connector = at(&forge.url());
    let request = request(&name(&repo), Target::DefaultBranch, Some(GOOD_TOKEN));
    assert_eq!(fetched(&connector, &request).await.source.commit, commit);
    let expected = format!("Basic {}", BASE64.encode(format!("x-access-token:{GOOD_TOKEN}")));
    let asked = forge.asked();
    assert!(asked.len() >= 2);
    for asked in asked {
        assert_eq!(asked.header("authorization"), expected, "{}", asked.path);
        assert!(!asked.path.contains(GOOD_TOKEN));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_within_the_forge_is_followed() {
    let repo = GitRepo::create(PRIVATE, "renamed");
    let commit = repo.commit(&[("a", "1")]);
    let new = format!("/{PRIVATE}/{}.git/info/refs?service=git-upload-pack", repo.name);
    let forge = StandIn::start(move |asked| {
        if asked.path.starts_with("/some/where.git/") {
            return Answer::status(301).with("location", &new);
        }
        Answer::From(server_url())
    })
    .await;
    let connector = at(&forge.url());
    let request = request(&somewhere(), Target::DefaultBranch, Some(GOOD_TOKEN));
    let got = fetched(&connector, &request).await;
    assert_eq!(got.source.commit, commit);
    assert_eq!(got.source.url, format!("{}/some/where", forge.url()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_another_server_is_refused_and_asks_it_nothing() {
    let other = StandIn::start(|_| Answer::status(500)).await;
    let location = format!("{}/some/where.git/info/refs", other.url());
    for status in [301, 302, 307, 308] {
        let location = location.clone();
        let forge =
            StandIn::start(move |_| Answer::status(status).with("location", &location)).await;
        let connector = at(&forge.url());
        for target in [Target::DefaultBranch, Target::Release("v1".to_owned())] {
            let request = request(&somewhere(), target, Some("a-token"));
            refused(&connector, &request, Reason::ForbiddenSource, "another server").await;
        }
    }
    assert_eq!(other.asked().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_without_an_end_is_given_up() {
    let forge = StandIn::start(|asked| Answer::status(302).with("location", &asked.path)).await;
    refused_by(&forge, None, Reason::ForgeFailed, "again and again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_names_neither_the_token_nor_a_path_of_this_machine() {
    let token = "canary-4b7d-very-secret-token";
    let said = format!("{token} is no good at /var/lib");
    let forge = StandIn::start(move |_| Answer::Text {
        status: 500,
        headers: Vec::new(),
        body: said.clone().into_bytes(),
    })
    .await;
    let fault = refused_by(&forge, Some(token), Reason::ForgeFailed, "[secret] is no good").await;
    assert!(!fault.message.contains(token), "{}", fault.message);
}

#[test]
fn an_address_that_is_none_is_named_by_its_variable() {
    use image_builder::source::{GitConnector, GitSettings, GithubSettings};
    for url in ["github.com", "ftp://x", "https://user:word@x", "https://x/?a=b", ""] {
        let good = GithubSettings::default();
        for (github, variable) in [
            (GithubSettings { url: url.to_owned(), ..good.clone() }, "GITHUB_URL"),
            (GithubSettings { api_url: url.to_owned(), ..good.clone() }, "GITHUB_API_URL"),
        ] {
            let settings = GitSettings { github, ..super::git::settings() };
            let error = GitConnector::new(settings).err().expect("the address is refused");
            assert!(error.to_string().starts_with(&format!("{variable} ")), "{error}");
            assert!(!error.to_string().contains("word"), "{error}");
        }
    }
}
