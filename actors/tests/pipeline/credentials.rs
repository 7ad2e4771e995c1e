//! Requests that name a credential in the place of a token.

use image_builder_actors::model::fault::{Reason, StageName};
use image_builder_actors::model::request::RepoName;
use image_builder_actors::testing::source::{FakeCommit, FakeRepository};
use image_builder_actors::testing::world::{fault, settings, with_pipeline};
use serde_json::{Value, json};

/// A request of this repository with the credential of this name.
fn request(repo: &str, reference: &str) -> Value {
    json!({"uuid": "b1", "userID": "alice", "repo": repo, "tokenRef": reference})
}

/// A repository that wants this token.
fn private(token: &str) -> FakeRepository {
    FakeRepository {
        token: Some(token.to_owned()),
        commits: vec![FakeCommit::new("one", &[("Dockerfile", "FROM scratch\n")])],
        branches: [("main".to_owned(), 0)].into(),
        default_branch: "main".to_owned(),
        ..FakeRepository::default()
    }
}

#[test]
fn a_token_is_made_at_each_try() {
    with_pipeline(settings(), async |world| {
        let repo = RepoName { owner: "o".to_owned(), name: "private".to_owned() };
        world.forge.add(repo, private("the-token-of-this-hour"));
        world.forge.script.fail(1, fault(StageName::Connector, Reason::ForgeFailed));
        world.credentials.know("team-7", "the-token-of-this-hour");
        let request = request("o/private", "team-7");
        let (id, body) = world.outcome_of(&request).await;
        assert_eq!((id.as_str(), &body["data"]["attempts"]), ("b1.image.ready", &json!(2)));
        assert_eq!(world.credentials.calls.all(), ["b1", "b1"]);
    });
}

#[test]
fn a_credential_that_is_not_given_is_told_and_nothing_is_fetched() {
    with_pipeline(settings(), async |world| {
        let request = request("owner/name", "of-somebody-else");
        let (id, body) = world.outcome_of(&request).await;
        assert_eq!(id, "b1.build.failed");
        assert_eq!(body["data"]["reason"], "unauthorized");
        assert_eq!(body["data"]["fault"], "user");
        assert!(world.forge.calls.all().is_empty());
        assert!(!body.to_string().contains("of-somebody-else"));
    });
}

#[test]
fn who_makes_the_tokens_may_fail_for_a_while() {
    with_pipeline(settings(), async |world| {
        world.credentials.know("team-7", "a-token");
        world.credentials.script.fail(1, fault(StageName::Connector, Reason::ForgeFailed));
        let request = request("owner/name", "team-7");
        let (id, body) = world.outcome_of(&request).await;
        assert_eq!((id.as_str(), &body["data"]["attempts"]), ("b1.image.ready", &json!(2)));
    });
}
