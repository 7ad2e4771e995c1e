//! A retry goes on where the last try got to.

use std::time::Duration;

use image_builder_actors::delivery::envelope::Envelope;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::history::History;
use image_builder_actors::pipeline::PipelineSettings;
use image_builder_actors::ports::{Broker, Message, NotifyError, Queue};
use image_builder_actors::scheduling::admission::Cancellation;
use image_builder_actors::testing::world::{
    World, fault, request, request_with, settings, with_pipeline,
};
use serde_json::Value;
use time::OffsetDateTime;

fn push_failed() -> Fault {
    fault(StageName::Pusher, Reason::RegistryFailed)
}

#[test]
fn a_built_image_is_only_pushed() {
    with_pipeline(settings(), async |world| {
        world.registry.pushes.fail(1, push_failed());
        let (_, body) = world.outcome_of(&request("b1")).await;
        assert_eq!(body["data"]["attempts"], 2);
        assert_eq!(world.engine.built(), 1);
        assert_eq!(world.forge.calls.all().len(), 1);
    });
}

#[test]
fn a_forced_build_is_not_built_again_for_a_failed_push() {
    with_pipeline(settings(), async |world| {
        world.registry.pushes.fail(1, push_failed());
        world.outcome_of(&request_with("b1", "force", true)).await;
        assert_eq!(world.engine.built(), 1);
    });
}

#[test]
fn an_image_that_the_engine_lost_is_built_again_from_the_same_commit() {
    with_pipeline(settings(), async |world| {
        let gate = world.registry.pushes.wait();
        world.registry.pushes.fail(1, push_failed());
        world.request(&request("b1")).await;
        gate.reached().await;
        world.engine.forget_images();
        // The first push waits and goes well; what comes of it is left to the next delivery.
        world.broker.kill_connection();
        gate.open();
        world.notified_once().await;
        let calls = world.forge.calls.all();
        assert!(calls.len() <= 2, "{calls:?}");
    });
}

#[test]
fn the_commit_is_pinned_at_the_first_try() {
    with_pipeline(settings(), async |world| {
        world.engine.next().fail(1, fault(StageName::Builder, Reason::EngineFailed));
        let (_, body) = world.outcome_of(&request("b1")).await;
        let calls = world.forge.calls.all();
        assert_eq!(calls[0].pinned, None);
        assert_eq!(calls[1].pinned.as_deref(), body["data"]["commit"].as_str());
    });
}

/// The message of a build that has ended, as it comes back where its ack was lost or where a worker was
/// killed: without anything that its worker knew.
async fn comes_back(world: &World, request: &Value, queue: Queue, failures: u32) {
    let mut history = History::new(OffsetDateTime::now_utc());
    for _ in 0..failures {
        history.record(&push_failed(), true);
    }
    comes_back_with(world, request, queue, history).await;
}

/// The same, with what was noted of its tries.
async fn comes_back_with(world: &World, request: &Value, queue: Queue, mut history: History) {
    let body = request.to_string().into_bytes();
    let message = Message { body, ..Message::default() };
    // What was notified before was of another publication.
    history.since = Some(OffsetDateTime::now_utc());
    let message = Envelope::default().pass_on_with(&message, &history);
    world.broker.publish(queue, message, Duration::ZERO).await.expect("published");
}

#[test]
fn an_image_of_another_commit_that_the_same_id_had_before_is_not_told_again() {
    with_pipeline(settings(), async |world| {
        let (_, first) = world.outcome_of(&request("b1")).await;
        let mut history = History::new(OffsetDateTime::now_utc());
        history.record(&fault(StageName::Builder, Reason::EngineFailed), true);
        let commit = "0123456789".repeat(4);
        history.checkpoint.commit = Some(commit.clone());
        comes_back_with(&world, &request("b1"), Queue::Build, history).await;
        let (_, second) = &world.notified(2).await[1];
        assert_eq!(second["data"]["commit"], commit.as_str());
        assert_ne!(second["data"]["commit"], first["data"]["commit"]);
        assert_eq!(second["data"]["attempts"], 2);
    });
}

/// Waits for the second notification, and checks that it names the image that the first named.
async fn notified_again(world: &World) -> Value {
    let notified = world.notified(2).await;
    world.quiet().await;
    assert_eq!(world.managers.taken.all().len(), 2, "{notified:?}");
    let [(_, first), (id, second)] = &notified[..] else { panic!("two: {notified:?}") };
    assert_eq!(id, "b1.image.ready");
    assert_eq!(second["data"]["image"], first["data"]["image"]);
    for field in ["commit", "builder", "reused"] {
        assert_eq!(second["data"][field], first["data"][field], "{field}");
    }
    second.clone()
}

#[test]
fn a_build_whose_image_was_pushed_is_never_notified_as_failed() {
    with_pipeline(settings(), async |world| {
        world.outcome_of(&request("b1")).await;
        comes_back(&world, &request("b1"), Queue::Fail, 3).await;
        let notified = notified_again(&world).await;
        assert_eq!(notified["data"]["attempts"], 3);
    });
}

#[test]
fn a_build_whose_image_was_pushed_is_not_touched_again() {
    with_pipeline(settings(), async |world| {
        let forced = request_with("b1", "force", true);
        world.outcome_of(&forced).await;
        comes_back(&world, &forced, Queue::Build, 0).await;
        notified_again(&world).await;
        assert_eq!(world.forge.calls.all().len(), 1);
        assert_eq!(world.engine.built(), 1);
        assert_eq!(world.registry.pushed.all().len(), 1);
    });
}

#[test]
fn an_image_that_an_earlier_try_pushed_is_told_with_the_tries_that_were_begun() {
    for failures in [0, 1, 2] {
        with_pipeline(settings(), async |world| {
            world.outcome_of(&request("b1")).await;
            comes_back(&world, &request("b1"), Queue::Build, failures).await;
            let notified = notified_again(&world).await;
            assert_eq!(notified["data"]["attempts"], failures.max(1));
        });
    }
}

#[test]
fn a_build_that_is_cancelled_after_some_tries_is_told_with_these() {
    for tries in [0, 1, 2] {
        with_pipeline(settings(), async |world| {
            let user_id = Some("alice".to_owned());
            let at = OffsetDateTime::now_utc();
            world.pipeline.admission.cancel(Cancellation {
                build_id: "b1".to_owned(),
                user_id,
                at,
            });
            comes_back(&world, &request("b1"), Queue::Build, tries).await;
            let (id, body) = world.notified_once().await;
            assert_eq!(id, "b1.build.cancelled");
            assert_eq!(body["data"]["attempts"], tries);
        });
    }
}

#[test]
fn a_final_failure_of_a_build_that_was_delivered_before_is_notified_only_after_a_look() {
    with_pipeline(settings(), async |world| {
        world.outcome_of(&request("b1")).await;
        // The repository has gone meanwhile, and the first look fails.
        let gone = fault(StageName::Connector, Reason::RepositoryNotFound);
        let gate = world.forge.script.wait_and_fail(gone);
        world.registry.set_down(Some(push_failed()));
        comes_back(&world, &request("b1"), Queue::Build, 0).await;
        gate.reached().await;
        world.registry.set_down(None);
        gate.open();
        notified_again(&world).await;
        assert!(world.dead_letters.letters().is_empty());
    });
}

#[test]
fn a_registry_that_is_down_holds_up_what_may_have_been_notified_until_it_is_back() {
    with_pipeline(settings(), async |world| {
        world.outcome_of(&request("b1")).await;
        world.registry.set_down(Some(fault(StageName::Pusher, Reason::RegistryDown)));
        let looks = world.registry.finds();
        comes_back(&world, &request("b1"), Queue::Fail, 3).await;
        world.until(|world| world.registry.finds() > looks).await;
        world.registry.set_down(None);
        notified_again(&world).await;
    });
}

#[test]
fn a_build_of_another_id_is_notified_as_it_ends() {
    with_pipeline(settings(), async |world| {
        world.outcome_of(&request("b1")).await;
        comes_back(&world, &request("b2"), Queue::Fail, 3).await;
        let notified = world.notified(2).await;
        assert_eq!(notified[1].0, "b2.build.failed");
    });
}

#[test]
fn a_first_delivery_is_not_looked_for() {
    with_pipeline(settings(), async |world| {
        world.forge.script.fail(1, fault(StageName::Connector, Reason::RepositoryNotFound));
        let (id, _) = world.outcome_of(&request("b1")).await;
        assert_eq!(id, "b1.build.failed");
        assert_eq!(world.registry.finds(), 0);
    });
}

// ---- redeliveries to the worker that has the message ---------------------------------------------

#[test]
fn a_job_whose_delivery_was_taken_back_ends_first_and_its_redelivery_notifies() {
    with_pipeline(settings(), async |world| {
        let gate = world.registry.pushes.wait();
        world.request(&request_with("b1", "force", true)).await;
        gate.reached().await;
        world.broker.kill_connection();
        world.broker.wait_until(|broker| broker.taken() == 1).await;
        gate.open();
        world.notified_once().await;
        assert_eq!(world.forge.calls.all().len(), 1);
        assert_eq!(world.engine.built(), 1);
        assert_eq!(world.registry.pushed.all().len(), 1);
    });
}

#[test]
fn a_notification_whose_delivery_was_taken_back_is_not_notified_again() {
    with_pipeline(settings(), async |world| {
        let gate = world.managers.script.wait();
        world.request(&request("b1")).await;
        gate.reached().await;
        world.broker.kill_connection();
        world.broker.wait_until(|broker| broker.unsettled(Queue::Outcome) == 1).await;
        gate.open();
        world.notified_once().await;
        assert_eq!(world.managers.calls.all().len(), 1);
    });
}

#[test]
fn a_notification_that_failed_after_its_delivery_was_taken_back_is_notified_by_the_redelivery() {
    with_pipeline(settings(), async |world| {
        let gate = world.managers.script.wait();
        world.managers.script.fail(1, NotifyError { message: "no".to_owned(), retry_after: None });
        world.request(&request("b1")).await;
        gate.reached().await;
        world.broker.kill_connection();
        gate.open();
        world.notified_once().await;
    });
}

#[test]
fn connections_that_are_lost_twice_leave_room_to_work() {
    with_pipeline(PipelineSettings { most_in_hand: 4, ..settings() }, async |world| {
        for (build_id, user) in [("b1", "alice"), ("b2", "bob")] {
            world.hold_build(&request_with(build_id, "userID", user)).await;
        }
        world.broker.kill_connection();
        world.broker.wait_until(|broker| broker.taken() == 2).await;
        world.broker.kill_connection();
        world.engine.release();
        world.notified(2).await;
        world.request(&request("b3")).await;
        let notified = world.notified(3).await;
        world.quiet().await;
        assert_eq!(world.managers.taken.all().len(), 3, "{notified:?}");
        assert_eq!(world.engine.built(), 2, "the last is of the same inputs as the first");
    });
}

/// Publishes a request as whoever accepted it at this second does.
async fn accepted_at(world: &World, request: &Value, second: i64) {
    let accepted_at = OffsetDateTime::from_unix_timestamp(second).expect("a time");
    let envelope = Envelope::of_request(false, Some(accepted_at)).encode();
    let message = Message {
        body: request.to_string().into_bytes(),
        envelope: Some(envelope),
        ..Message::default()
    };
    world.broker.publish(Queue::Build, message, Duration::ZERO).await.expect("published");
}

#[test]
fn a_request_that_was_accepted_once_and_published_twice_has_one_outcome() {
    with_pipeline(settings(), async |world| {
        // Before the first is in hand, and when its outcome was notified long ago.
        for _ in 0..2 {
            accepted_at(&world, &request("b1"), 7).await;
        }
        world.notified_once().await;
        let pushed = world.registry.pushed.all().len();
        accepted_at(&world, &request("b1"), 7).await;
        world.notified_once().await;
        assert_eq!(world.registry.pushed.all().len(), pushed, "nothing was worked on");
        // One that is accepted anew is another publication.
        accepted_at(&world, &request("b1"), 8).await;
        world.notified(2).await;
    });
}
