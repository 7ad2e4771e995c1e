//! A retry goes on where the last try got to.

use image_builder_actors::fault::{Fault, Reason, Stage};
use image_builder_actors::ports::{Broker, Message, Route};
use serde_json::json;

use image_builder_actors::fakes::world::{request, settings, with_crew};

fn push_failed() -> Fault {
    Fault::new(Stage::Pusher, Reason::RegistryFailed, "the test wants it so")
}

#[test]
fn a_built_image_is_only_pushed() {
    with_crew(settings(), async |world| {
        world.registry.fail_pushes(1, push_failed());
        world.request(&request("b1")).await;
        let (_, body) = world.told_once().await;
        assert_eq!(body["data"]["attempts"], 2);
        assert_eq!(world.engine.built(), 1);
        assert_eq!(world.forge.calls().len(), 1);
    });
}

#[test]
fn a_forced_build_is_not_built_again_for_a_failed_push() {
    with_crew(settings(), async |world| {
        let mut forced = request("b1");
        forced["force"] = json!(true);
        world.registry.fail_pushes(1, push_failed());
        world.request(&forced).await;
        world.told_once().await;
        assert_eq!(world.engine.built(), 1);
    });
}

#[test]
fn an_image_that_the_engine_lost_is_built_again_from_the_same_commit() {
    with_crew(settings(), async |world| {
        let gate = world.registry.hold_push();
        world.registry.fail_pushes(1, push_failed());
        world.request(&request("b1")).await;
        gate.reached().await;
        world.engine.forget_images();
        // The first push waits and goes well; its outcome is lost with the connection.
        world.broker.kill_connection();
        gate.open();
        world.told(1).await;
        world.quiet().await;
        let calls = world.forge.calls();
        assert!(calls.len() <= 2, "{calls:?}");
    });
}

#[test]
fn the_commit_is_pinned_at_the_first_try() {
    with_crew(settings(), async |world| {
        let failed = Fault::new(Stage::Builder, Reason::EngineFailed, "the test wants it so");
        world.engine.fail_next(1, failed);
        world.request(&request("b1")).await;
        let (_, body) = world.told_once().await;
        let calls = world.forge.calls();
        assert_eq!(calls[0].pinned, None);
        assert_eq!(calls[1].pinned.as_deref(), body["data"]["commit"].as_str());
    });
}

#[test]
fn a_build_whose_image_is_in_the_registry_is_never_told_as_failed() {
    with_crew(settings(), async |world| {
        // Pushed by a try that nobody heard of.
        let gate = world.registry.hold_push();
        world.request(&request("b1")).await;
        gate.reached().await;
        let mut history = image_builder_actors::history::of(&Message::default());
        let key = world.engine.orders()[0].key.clone();
        let commit = world.planner.calls()[0].commit.clone();
        gate.open();
        world.told(1).await;

        history.checkpoint.commit = Some(commit);
        history.checkpoint.planned = Some(image_builder_actors::job::Planned {
            key,
            builder: image_builder_actors::job::BuilderKind::Dockerfile,
        });
        for _ in 0..3 {
            history.record(&push_failed(), true);
        }
        let body = request("b2").to_string().into_bytes();
        let failed = Message { body, ..Message::default() };
        let failed = image_builder_actors::history::with(&failed, &history);
        world.broker.publish(Route::Fail, failed).await.expect("published");
        let told = world.told(2).await;
        assert_eq!(told[1].0, "b2.image.ready");
        assert_eq!(told[1].1["data"]["attempts"], 3);
    });
}
