//! One outcome of a build is notified, whatever made a second.

use std::time::Duration;

use image_builder_actors::delivery::envelope::Envelope;
use image_builder_actors::model::fault::{Reason, StageName};
use image_builder_actors::model::history::History;
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::ports::{
    Broker, LedgerError, Message, NotifyError, OutcomeCopy, OutcomeLedger, Queue, Recorded,
    request_name,
};
use image_builder_actors::testing::world::{World, fault, request, settings, with_pipeline};
use serde_json::{Value, json};
use time::OffsetDateTime;

fn of_alice(build_id: &str) -> BuildIdentity {
    BuildIdentity::new(Some("alice"), build_id)
}

/// An outcome as a worker publishes it that does not know when the request was first in hand.
fn outcome(build_id: &str, kind: &str) -> Message {
    outcome_of(build_id, kind, request(build_id).to_string().as_bytes())
}

fn outcome_of(build_id: &str, kind: &str, request: &[u8]) -> Message {
    let data = json!({"buildID": build_id, "userID": "alice"});
    let body = json!({"type": kind, "timestamp": "2026-01-01T00:00:00Z", "data": data});
    let outcome = Some(OutcomeCopy::first(request_name(&of_alice(build_id), request), None));
    Message {
        body: body.to_string().into_bytes(),
        message_id: Some(format!("{build_id}.{kind}")),
        envelope: Some(Envelope { outcome, ..Envelope::default() }.encode()),
        ..Message::default()
    }
}

fn no_ledger() -> LedgerError {
    LedgerError("the test wants it so".to_owned())
}

async fn publish(world: &World, queue: Queue, message: Message) {
    world.broker.publish(queue, message, Duration::ZERO).await.expect("published");
}

#[test]
fn of_two_outcomes_of_one_build_the_first_is_notified() {
    with_pipeline(settings(), async |world| {
        publish(&world, Queue::Outcome, outcome("b1", "build.failed")).await;
        publish(&world, Queue::Outcome, outcome("b1", "image.ready")).await;
        world.notified(1).await;
        publish(&world, Queue::Outcome, outcome("b1", "build.failed")).await;
        publish(&world, Queue::Outcome, outcome("b2", "image.ready")).await;
        world.broker.wait_until(|broker| broker.acked() == 4).await;
        let mut ids: Vec<_> = world.notified(2).await.into_iter().map(|(id, _)| id).collect();
        ids.sort();
        assert_eq!(ids.len(), 2, "{ids:?}");
        assert!(ids[0].starts_with("b1."), "{ids:?}");
        assert_eq!(ids[1], "b2.image.ready");
    });
}

#[test]
fn other_requests_of_one_id_are_notified_all() {
    with_pipeline(settings(), async |world| {
        for body in ["1", "2"] {
            let outcome = outcome_of("b1", "image.ready", body.as_bytes());
            publish(&world, Queue::Outcome, outcome).await;
        }
        world.notified(2).await;
    });
}

#[test]
fn a_request_that_is_published_anew_is_notified_anew() {
    with_pipeline(settings(), async |world| {
        world.outcome_of(&request("b1")).await;
        world.request(&request("b1")).await;
        let notified = world.notified(2).await;
        assert_eq!(notified[0].0, notified[1].0);
    });
}

/// A request that was delivered before, as after a crash: it comes with a history.
fn again(body: &Value, history: &History) -> Message {
    let body = body.to_string().into_bytes();
    let message = Message { body, ..Message::default() };
    Envelope::default().pass_on_with(&message, history)
}

#[test]
fn a_build_that_is_notified_is_not_worked_on_again_whatever_the_outcome() {
    with_pipeline(settings(), async |world| {
        publish(&world, Queue::Outcome, outcome("b1", "build.failed")).await;
        world.notified_once().await;
        let mut history = History::new(OffsetDateTime::now_utc());
        publish(&world, Queue::Build, again(&request("b1"), &history)).await;
        let failed = fault(StageName::Pusher, Reason::RegistryFailed);
        history.record(&failed, true);
        publish(&world, Queue::Fail, again(&request("b1"), &history)).await;
        world.broker.wait_until(|broker| broker.acked() == 3).await;
        world.notified_once().await;
        assert_eq!(world.engine.built(), 0);
        assert!(world.dead_letters.letters().is_empty());
        assert!(world.broker.delays().is_empty());
    });
}

#[test]
fn an_image_of_a_build_that_is_notified_meanwhile_is_not_pushed() {
    with_pipeline(settings(), async |world| {
        world.engine.hold();
        let history = History::new(OffsetDateTime::now_utc());
        publish(&world, Queue::Build, again(&request("b1"), &history)).await;
        world.engine.until_running("b1").await;
        publish(&world, Queue::Outcome, outcome("b1", "build.failed")).await;
        world.notified(1).await;
        world.engine.release();
        assert_eq!(world.notified_once().await.0, "b1.build.failed");
        assert!(world.registry.pushed.all().is_empty());
    });
}

#[test]
fn an_outcome_whose_claim_cannot_be_written_is_notified_all_the_same() {
    with_pipeline(settings(), async |world| {
        world.ledger.claims.fail(1, no_ledger());
        world.request(&request("b1")).await;
        assert_eq!(world.notified_once().await.0, "b1.image.ready");
        assert_eq!(world.engine.built(), 1);
    });
}

#[test]
fn what_was_notified_and_could_not_be_recorded_is_acked() {
    with_pipeline(settings(), async |world| {
        world.ledger.records.fail(1, no_ledger());
        publish(&world, Queue::Outcome, outcome("b1", "image.ready")).await;
        world.notified_once().await;
        assert_eq!(world.broker.acked(), 1);
        assert_eq!(world.ledger.recorded.all(), []);
    });
}

#[test]
fn what_cannot_be_recorded_as_passed_on_is_notified_later_all_the_same() {
    with_pipeline(settings(), async |world| {
        let refusal = NotifyError { message: "not now".to_owned(), retry_after: None };
        world.managers.script.fail(1, refusal);
        world.ledger.records.fail(1, no_ledger());
        publish(&world, Queue::Outcome, outcome("b1", "image.ready")).await;
        world.notified_once().await;
        assert_eq!(world.broker.delays().len(), 1);
        assert_eq!(world.ledger.recorded.all(), [Recorded::Notified]);
    });
}

#[test]
fn a_request_that_comes_again_and_began_after_the_last_outcome_is_notified() {
    with_pipeline(settings(), async |world| {
        publish(&world, Queue::Outcome, outcome("b1", "build.failed")).await;
        world.notified_once().await;
        // As another worker does.
        let name = request_name(&of_alice("b1"), request("b1").to_string().as_bytes());
        world.ledger.begin(name, OffsetDateTime::now_utc());
        // Of what the other worker had in hand, this one knows nothing.
        let history = History::new(OffsetDateTime::now_utc());
        publish(&world, Queue::Build, again(&request("b1"), &history)).await;
        assert_eq!(world.notified(2).await[1].0, "b1.image.ready");
        assert_eq!(world.engine.built(), 1);
    });
}

#[test]
fn while_there_is_no_ledger_outcomes_are_notified_without() {
    with_pipeline(settings(), async |world| {
        world.request(&request("b1")).await;
        world.notified(1).await;
        world.ledger.set_away(true);
        world.request(&request("b2")).await;
        world.notified(2).await;
    });
}
