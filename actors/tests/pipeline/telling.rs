//! One outcome of a build is told, whatever made a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use image_builder_actors::delivery::envelope;
use image_builder_actors::delivery::outcome_ledger;
use image_builder_actors::delivery::outcome_ledger::{OutcomeCopy, OutcomeLedger, Verdict};
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::history::History;
use image_builder_actors::ports::{Broker, BrokerError, Message, NotifyError, Queue, Route};
use image_builder_actors::testing::broker::FakeBroker;
use image_builder_actors::testing::world::{World, request, settings, with_pipeline};
use serde_json::{Value, json};
use time::OffsetDateTime;

/// An outcome as a worker publishes it that does not know when the request was first in hand.
fn outcome(build_id: &str, kind: &str) -> Message {
    outcome_of(build_id, kind, request(build_id).to_string().as_bytes())
}

fn outcome_of(build_id: &str, kind: &str, request: &[u8]) -> Message {
    let body = json!({"type": kind, "timestamp": "2026-01-01T00:00:00Z", "data": {}});
    let mut message = Message {
        body: body.to_string().into_bytes(),
        message_id: Some(format!("{build_id}.{kind}")),
        ..Message::default()
    };
    outcome_ledger::stamp(&mut message, outcome_ledger::request(build_id, request), None);
    message
}

async fn publish(world: &World, route: Route, message: Message) {
    world.broker.publish(route, message).await.expect("published");
}

#[test]
fn of_two_outcomes_of_one_build_the_first_is_told() {
    with_pipeline(settings(), async |world| {
        publish(&world, Route::Outcome, outcome("b1", "build.failed")).await;
        publish(&world, Route::Outcome, outcome("b1", "image.ready")).await;
        world.told(1).await;
        publish(&world, Route::Outcome, outcome("b1", "build.failed")).await;
        publish(&world, Route::Outcome, outcome("b2", "image.ready")).await;
        world.broker.wait_until(|broker| broker.acked() == 4).await;
        let mut ids: Vec<_> = world.told(2).await.into_iter().map(|(id, _)| id).collect();
        ids.sort();
        assert_eq!(ids.len(), 2, "{ids:?}");
        assert!(ids[0].starts_with("b1."), "{ids:?}");
        assert_eq!(ids[1], "b2.image.ready");
    });
}

#[test]
fn other_requests_of_one_id_are_told_all() {
    with_pipeline(settings(), async |world| {
        for body in ["1", "2"] {
            let outcome = outcome_of("b1", "image.ready", body.as_bytes());
            publish(&world, Route::Outcome, outcome).await;
        }
        world.told(2).await;
    });
}

#[test]
fn a_request_that_is_published_anew_is_told_anew() {
    with_pipeline(settings(), async |world| {
        world.request(&request("b1")).await;
        world.told_once().await;
        world.request(&request("b1")).await;
        let told = world.told(2).await;
        assert_eq!(told[0].0, told[1].0);
    });
}

/// A request that was delivered before, as after a crash: it comes with a history.
fn again(body: &Value, history: &History) -> Message {
    let body = body.to_string().into_bytes();
    envelope::with(&Message { body, ..Message::default() }, history)
}

#[test]
fn a_build_that_is_told_is_not_worked_on_again_whatever_it_was_told() {
    with_pipeline(settings(), async |world| {
        publish(&world, Route::Outcome, outcome("b1", "build.failed")).await;
        world.told_once().await;
        let mut history = History::new(OffsetDateTime::now_utc());
        publish(&world, Route::Build, again(&request("b1"), &history)).await;
        let failed = Fault::new(StageName::Pusher, Reason::RegistryFailed, "the test wants it so");
        history.record(&failed, true);
        publish(&world, Route::Fail, again(&request("b1"), &history)).await;
        world.broker.wait_until(|broker| broker.acked() == 3).await;
        world.told_once().await;
        assert_eq!(world.engine.built(), 0);
        assert!(world.broker.messages(Route::Dead).is_empty());
        assert!(world.broker.delays().is_empty());
    });
}

#[test]
fn an_image_of_a_build_that_is_told_meanwhile_is_not_pushed() {
    with_pipeline(settings(), async |world| {
        world.engine.hold();
        let history = History::new(OffsetDateTime::now_utc());
        publish(&world, Route::Build, again(&request("b1"), &history)).await;
        world.engine.until_running("b1").await;
        publish(&world, Route::Outcome, outcome("b1", "build.failed")).await;
        world.told(1).await;
        world.engine.release();
        assert_eq!(world.told_once().await.0, "b1.build.failed");
        assert!(world.registry.pushed().is_empty());
    });
}

fn away() -> BrokerError {
    BrokerError::Unavailable("the test wants it so".to_owned())
}

/// The line that follows the first claim.
fn second_line() -> impl Fn(Route) -> bool + Send + 'static {
    let lines = AtomicUsize::new(0);
    move |route| route == Route::Told && lines.fetch_add(1, Ordering::Relaxed) == 1
}

#[test]
fn an_outcome_whose_claim_cannot_be_written_is_told_all_the_same() {
    with_pipeline(settings(), async |world| {
        world.broker.fail_publishes(1, away(), |route| route == Route::Told);
        world.request(&request("b1")).await;
        assert_eq!(world.told_once().await.0, "b1.image.ready");
        assert_eq!(world.engine.built(), 1);
    });
}

#[test]
fn what_was_told_and_could_not_be_noted_is_acked() {
    with_pipeline(settings(), async |world| {
        world.broker.fail_publishes(1, away(), second_line());
        publish(&world, Route::Outcome, outcome("b1", "image.ready")).await;
        world.told_once().await;
        assert_eq!(world.broker.acked(), 1);
        assert_eq!(world.broker.told().len(), 1);
    });
}

#[test]
fn what_cannot_be_noted_as_passed_on_is_told_later_all_the_same() {
    with_pipeline(settings(), async |world| {
        let refusal = NotifyError { message: "not now".to_owned(), retry_after: None };
        world.managers.fail(1, refusal);
        world.broker.fail_publishes(1, away(), second_line());
        publish(&world, Route::Outcome, outcome("b1", "image.ready")).await;
        world.told_once().await;
        assert_eq!(world.broker.delays().len(), 1);
    });
}

/// The name of a request in the log.
fn name(build_id: &str) -> String {
    outcome_ledger::request(build_id, request(build_id).to_string().as_bytes())
}

/// The logs of some workers on one broker, and copies of one build's outcome.
fn workers<const N: usize>(broker: &FakeBroker) -> [OutcomeLedger; N] {
    std::array::from_fn(|_| {
        OutcomeLedger::start(Arc::new(broker.clone()), outcome_ledger::LONGEST_WAIT)
    })
}

fn copies<const N: usize>() -> [OutcomeCopy; N] {
    std::array::from_fn(|_| OutcomeCopy::of("b1", &outcome("b1", "image.ready")))
}

#[tokio::test]
async fn one_of_many_workers_tells() {
    let broker = FakeBroker::new();
    let (workers, copies): ([OutcomeLedger; 8], [OutcomeCopy; 8]) = (workers(&broker), copies());
    let claims = workers.iter().zip(&copies).map(|(worker, copy)| worker.claim(copy));
    let verdicts = futures_util::future::join_all(claims).await;
    let tells = verdicts.iter().filter(|verdict| **verdict == Ok(Verdict::Tell)).count();
    assert_eq!(tells, 1, "{verdicts:?}");
}

#[tokio::test]
async fn a_worker_that_lost_the_broker_or_begins_knows_what_was_told() {
    let broker = FakeBroker::new();
    let [one] = workers(&broker);
    let [first, second] = copies();
    assert_eq!(one.claim(&first).await, Ok(Verdict::Tell));
    one.told(&first).await.expect("written");
    broker.kill_connection();
    assert_eq!(one.claim(&first).await, Ok(Verdict::Drop));
    let [late] = workers(&broker);
    assert_eq!(late.claim(&second).await, Ok(Verdict::Drop));
    assert!(late.knows(&name("b1"), None));
}

#[tokio::test]
async fn when_a_request_was_first_in_hand_is_known_to_all_workers() {
    let broker = FakeBroker::new();
    let [one, two] = workers(&broker);
    assert_eq!(two.begun("b1").await, Ok(None));
    let since = OffsetDateTime::now_utc();
    one.begins("b1".to_owned(), since);
    // Behind the mark of the question before.
    broker.wait_until(|broker| broker.told().len() == 2).await;
    assert_eq!(two.begun("b1").await, Ok(Some(since)));
    assert_eq!(two.begun("b2").await, Ok(None));
}

#[test]
fn a_request_that_comes_again_without_a_history_is_told_if_it_began_after_the_last_was_told() {
    with_pipeline(settings(), async |world| {
        publish(&world, Route::Outcome, outcome("b1", "build.failed")).await;
        world.told_once().await;
        let [other] = workers(&world.broker);
        other.begins(name("b1"), OffsetDateTime::now_utc());
        let (engine, broker) = (&world.engine, &world.broker);
        broker.wait_until(|broker| broker.told().iter().any(is_beginning)).await;
        // Of what the other worker had in hand, this one knows nothing.
        publish(
            &world,
            Route::Build,
            again(&request("b1"), &History::new(OffsetDateTime::now_utc())),
        )
        .await;
        assert_eq!(world.told(2).await[1].0, "b1.image.ready");
        assert_eq!(engine.built(), 1);
    });
}

fn is_beginning(line: &Message) -> bool {
    String::from_utf8_lossy(&line.body).contains("begun")
}

#[tokio::test]
async fn a_claim_that_is_not_read_back_is_given_up() {
    let broker = FakeBroker::new();
    let worker = OutcomeLedger::start(Arc::new(broker.clone()), Duration::from_secs(1));
    let [copy] = copies();
    // Nobody can follow the log any more, and it can still be written.
    worker.claim(&copy).await.expect("written and read");
    broker.refuse_follows(away());
    broker.kill_connection();
    let claim = worker.claim(&copy).await;
    assert!(matches!(claim, Err(BrokerError::Unavailable(_))), "{claim:?}");
}

#[test]
fn while_there_is_no_log_outcomes_are_told_without() {
    with_pipeline(settings(), async |world| {
        world.request(&request("b1")).await;
        world.told(1).await;
        world.broker.refuse_follows(BrokerError::Refused("the test wants it so".to_owned()));
        world.broker.kill_connection();
        world.request(&request("b2")).await;
        world.told(2).await;
    });
}

#[test]
fn lines_that_nobody_can_read_are_left_out() {
    with_pipeline(settings(), async |world| {
        for line in [b"".as_slice(), b"{", b"{\"step\":\"unheard of\"}", b"\xff"] {
            let message = Message { body: line.to_vec(), ..Message::default() };
            publish(&world, Route::Told, message).await;
        }
        world.request(&request("b1")).await;
        world.told_once().await;
        assert_eq!(world.broker.unsettled(Queue::Outcome), 0);
    });
}
