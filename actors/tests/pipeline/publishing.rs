//! How an image comes into the registry under its names.

use std::time::Duration;

use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::ports::Registry;
use image_builder_actors::testing::builder::End;
use image_builder_actors::testing::world::{World, request, request_with, settings, with_pipeline};
use serde_json::{Value, json};

/// Asserts that the image of `b1`, which was pushed first, has all three names.
fn assert_named(world: &World, notified: &Value) {
    let tags = world.registry.tags(&world.registry.pushed.all()[0]);
    let commit = notified["data"]["commit"].as_str().expect("it is known");
    for prefix in ["build-", "key-", commit] {
        assert!(tags.iter().any(|tag| tag.starts_with(prefix)), "{prefix} is not in {tags:?}");
    }
}

#[test]
fn an_image_that_the_builder_pushed_by_itself_is_only_tagged() {
    with_pipeline(settings(), async |world| {
        let reference = ImageReference::for_build("registry.test", "alice", "name", "by-itself");
        world.engine.script("b1", "", End::Pushed(reference));
        let (id, body) = world.outcome_of(&request("b1")).await;
        assert_eq!(id, "b1.image.ready");
        assert_eq!(body["data"]["reused"], false);
        assert_eq!(world.registry.pushed.all().len(), 1);
        assert_named(&world, &body);
    });
}

#[test]
fn an_image_that_the_builder_pushed_with_a_secret_in_it_gets_no_tag_and_is_removed() {
    with_pipeline(settings(), async |world| {
        let secret = "hush-hush-hush";
        let reference = ImageReference::for_build("registry.test", "alice", "name", "by-itself");
        let end = End::PushedShowing(reference.clone(), format!("_authToken={secret}"));
        world.engine.script("b1", "", end);
        let plan = json!({"secrets": {"npm": secret}});
        let (id, body) = world.outcome_of(&request_with("b1", "buildPlan", plan)).await;
        assert_eq!(
            (id.as_str(), &body["data"]["reason"]),
            ("b1.build.failed", &json!("secret_in_image"))
        );
        assert!(!body.to_string().contains(secret), "{body}");
        assert_eq!(world.registry.pushed.all().len(), 1, "nothing is pushed a second time");
        assert_eq!(world.registry.tags(&reference), [""; 0]);
        assert_eq!(world.registry.find(&reference).await, Ok(None));
    });
}

#[test]
fn where_the_registry_puts_no_tag_on_what_it_has_the_image_is_pushed_under_it() {
    with_pipeline(settings(), async |world| {
        world.registry.refuse_tags();
        let (id, body) = world.outcome_of(&request("b1")).await;
        assert_eq!(id, "b1.image.ready");
        assert_eq!(world.registry.pushed.all().len(), 5, "three names, and two seals");
        assert_named(&world, &body);
    });
}

#[test]
fn a_push_that_does_not_end_is_given_up_in_time_and_tried_again() {
    let mut settings = settings();
    settings.pusher.timeout = Duration::from_millis(100);
    with_pipeline(settings, async |world| {
        let gate = world.registry.pushes.wait();
        world.request(&request("b1")).await;
        gate.reached().await;
        let (id, body) = world.notified_once().await;
        assert_eq!(id, "b1.image.ready");
        assert_eq!(body["data"]["attempts"], 2);
        assert_eq!(world.engine.built(), 1);
    });
}
