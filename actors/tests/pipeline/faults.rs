//! What becomes of jobs when something else is at fault.

use std::time::Duration;

use image_builder_actors::delivery::envelope::Envelope;
use image_builder_actors::model::fault::{Reason, StageName};
use image_builder_actors::model::shutdown::ShutdownPhase;
use image_builder_actors::pipeline::PipelineSettings;
use image_builder_actors::ports::{BrokerError, Queue};
use image_builder_actors::testing::builder::End;
use image_builder_actors::testing::world::{fault, request, request_with, settings, with_pipeline};

#[test]
fn a_failing_build_is_tried_again_and_given_up_when_it_fails_the_same_way() {
    with_pipeline(settings(), async |world| {
        world
            .engine
            .next()
            .fail(9, fault(StageName::Builder, Reason::BuildFailed).at_step("RUN x"));
        let (id, body) = world.outcome_of(&request("b1")).await;
        assert_eq!(id, "b1.build.failed");
        assert_eq!(body["data"]["attempts"], 2);
        assert_eq!(body["data"]["reason"], "build_failed");
        assert_eq!(body["data"]["fault"], "user");
        assert_eq!(body["data"]["log"][0], "=> RUN scripted");
        assert_eq!(world.broker.delays().len(), 1);
        assert_eq!(world.dead_letters.letters().len(), 1);
    });
}

#[test]
fn a_failing_service_is_tried_up_to_the_total_of_tries() {
    with_pipeline(settings(), async |world| {
        world.registry.pushes.fail(9, fault(StageName::Pusher, Reason::RegistryFailed));
        let (_, body) = world.outcome_of(&request("b1")).await;
        assert_eq!(body["data"]["attempts"], 3);
        assert_eq!(body["data"]["fault"], "service");
        assert_eq!(world.engine.built(), 1);
    });
}

#[test]
fn a_registry_that_refuses_is_final() {
    with_pipeline(settings(), async |world| {
        world.registry.pushes.fail(1, fault(StageName::Pusher, Reason::RegistryRefused));
        let (_, body) = world.outcome_of(&request("b1")).await;
        assert_eq!(body["data"]["attempts"], 1);
        assert_eq!(body["data"]["reason"], "registry_refused");
        assert!(world.broker.delays().is_empty());
    });
}

#[test]
fn without_room_the_listener_pauses_and_no_try_is_counted() {
    with_pipeline(settings(), async |world| {
        world.probe.set_room(false);
        world.registry.pushes.fail(1, fault(StageName::Pusher, Reason::RegistryDown));
        world.request(&request("b1")).await;
        world.probe.probes.wait_for(1).await;
        world.request(&request("b2")).await;
        world.probe.probes.wait_for(2).await;
        assert!(world.managers.taken.all().is_empty());
        assert_eq!(world.forge.calls.all().len(), 1);

        world.probe.set_room(true);
        let notified = world.notified(2).await;
        for (_, body) in notified {
            assert_eq!(body["data"]["attempts"], 1, "{body}");
        }
        assert_eq!(world.probe.probes.all()[0], Reason::RegistryDown);
    });
}

#[test]
fn a_build_that_takes_too_long_is_stopped() {
    let mut settings = settings();
    settings.builder.timeout = Duration::from_millis(50);
    with_pipeline(settings, async |world| {
        world.engine.script("b1", "", End::Never);
        let (_, body) = world.outcome_of(&request("b1")).await;
        assert_eq!(body["data"]["reason"], "build_timeout");
        assert_eq!(world.engine.dropped(), 2);
        assert_eq!(world.workspaces_left().await, 0);
    });
}

#[test]
fn a_job_that_only_waited_for_too_long_goes_back_uncounted() {
    let settings = PipelineSettings { job_timeout: Duration::from_millis(300), ..settings() };
    let mut settings = settings;
    settings.builder.concurrency = 1;
    settings.builder.timeout = Duration::from_secs(10);
    with_pipeline(settings, async |world| {
        world.hold_build(&request("b1")).await;
        world.request(&request_with("b2", "userID", "bob")).await;
        // The first times out in hand, the second while it waits: that one is handed back.
        world.broker.wait_published(3, |published| published.queue == Queue::Build).await;
        world.engine.release();
        let notified = world.notified(2).await;
        let second = notified.iter().find(|(id, _)| id.starts_with("b2")).expect("notified");
        assert_eq!(second.0, "b2.image.ready");
        assert_eq!(second.1["data"]["attempts"], 1);
    });
}

#[test]
fn a_lost_connection_is_a_new_subscription_and_every_job_ends() {
    with_pipeline(settings(), async |world| {
        world.hold_build(&request("b1")).await;
        world.broker.kill_connection();
        world.engine.release();
        let (id, _) = world.notified_once().await;
        assert_eq!(id, "b1.image.ready");
        assert_eq!(world.engine.built(), 1);
    });
}

#[test]
fn what_fails_after_its_delivery_was_taken_back_is_decided_on_by_its_next_holder_alone() {
    with_pipeline(settings(), async |world| {
        world.engine.next().fail(1, fault(StageName::Builder, Reason::EngineFailed));
        world.hold_build(&request("b1")).await;
        world.broker.kill_connection();
        world.engine.release();
        let (id, body) = world.notified_once().await;
        assert_eq!(id, "b1.image.ready");
        assert_eq!(body["data"]["attempts"], 1);
        world.quiet().await;
        let failed = world
            .broker
            .published()
            .iter()
            .filter(|published| published.queue == Queue::Fail)
            .count();
        assert_eq!(failed, 0, "two would make two jobs of one");
    });
}

#[test]
fn an_outcome_that_is_not_confirmed_is_not_acked() {
    with_pipeline(settings(), async |world| {
        let error = BrokerError::Refused("unroutable".to_owned());
        world.broker.publishes(Queue::Outcome).fail(1, error);
        let (id, _) = world.outcome_of(&request("b1")).await;
        assert_eq!(id, "b1.image.ready");
        assert_eq!(world.engine.built(), 1);
    });
}

#[test]
fn what_cannot_be_finished_in_the_drain_goes_back_with_its_checkpoint() {
    with_pipeline(settings(), async |mut world| {
        world.hold_build(&request("b1")).await;
        world.shutdown.enter(ShutdownPhase::Draining);
        world.broker.wait_until(|broker| !broker.consumed(Queue::Build)).await;
        world.shutdown.enter(ShutdownPhase::HandingBack);
        world.pipeline.settled().await;
        assert_eq!(world.engine.dropped(), 1);
        let left = world.broker.messages(Queue::Build);
        assert_eq!(left.len(), 1);
        let history = Envelope::decode(&left[0]).history.expect("it was in hand");
        assert_eq!(history.counted(), 0);
        assert!(history.checkpoint.commit.is_some());
        assert_eq!(world.workspaces_left().await, 0);
    });
}

#[test]
fn a_drain_finishes_what_is_in_hand() {
    with_pipeline(settings(), async |mut world| {
        world.hold_build(&request("b1")).await;
        world.shutdown.enter(ShutdownPhase::Draining);
        world.broker.wait_until(|broker| !broker.consumed(Queue::Build)).await;
        world.request(&request("b2")).await;
        world.engine.release();
        world.drain().await;
        assert_eq!(world.broker.messages(Queue::Build).len(), 1, "the second is left for others");
        assert_eq!(world.engine.built(), 1);
    });
}
