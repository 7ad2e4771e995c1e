//! The faults that a test can order from the broker in memory.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use image_builder_actors::ports::{Broker, BrokerError, Queue, Route};
use image_builder_actors::testing::broker::FakeBroker;

use super::suite::{body, message, next, publish, subscribe};

fn no() -> BrokerError {
    BrokerError::Unavailable("the test says so".to_owned())
}

#[tokio::test]
async fn ordered_faults_hit_the_routes_and_the_number_that_were_asked_for() {
    let broker = FakeBroker::new();
    broker.fail_publishes(2, no(), |route| route == Route::Fail);
    publish(&broker, Route::Build, message("build")).await;
    for _ in 0..2 {
        assert_eq!(broker.publish(Route::Fail, message("lost")).await, Err(no()));
    }
    publish(&broker, Route::Fail, message("kept")).await;
    assert_eq!(broker.messages(Route::Fail), [message("kept")]);
    assert_eq!(broker.published().len(), 2);

    broker.fail_subscribes(1, no());
    assert_eq!(broker.subscribe(Queue::Build, 1).await.err(), Some(no()));
    subscribe(&broker, Queue::Build, 1).await;
}

#[tokio::test]
async fn an_ordered_panic_happens_once_and_leaves_the_broker_whole() {
    let broker = FakeBroker::new();
    broker.panic_on_publish(|route| route == Route::Outcome);
    let panics = broker.publish(Route::Outcome, message("lost"));
    assert!(AssertUnwindSafe(panics).catch_unwind().await.is_err());
    publish(&broker, Route::Outcome, message("kept")).await;
    assert_eq!(broker.messages(Route::Outcome), [message("kept")]);
}

#[tokio::test]
async fn held_publishes_wait_until_they_are_let_go() {
    let broker = FakeBroker::new();
    broker.hold_publishes();
    let held = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish(Route::Build, message("held")).await }
    });
    tokio::task::yield_now().await;
    assert!(!held.is_finished() && broker.published().is_empty());
    broker.let_publishes_go();
    held.await.expect("no panic").expect("the broker takes it");
    assert_eq!(broker.wait_for(Route::Build, 1).await, [message("held")]);
}

#[tokio::test]
async fn a_broker_that_is_down_takes_nothing_and_keeps_what_it_has() {
    let broker = FakeBroker::new();
    publish(&broker, Route::Build, message("job")).await;
    let mut lost = subscribe(&broker, Queue::Build, 1).await;
    next(&mut lost).await;
    assert_eq!(broker.unsettled(Queue::Build), 1);
    broker.down();
    assert!(lost.deliveries.recv().await.is_none());
    assert!(matches!(
        broker.publish(Route::Build, message("lost")).await,
        Err(BrokerError::Unavailable(_))
    ));
    assert!(matches!(
        broker.subscribe(Queue::Build, 1).await.err(),
        Some(BrokerError::Unavailable(_))
    ));
    broker.up();
    let mut anew = subscribe(&broker, Queue::Build, 1).await;
    let again = next(&mut anew).await;
    assert_eq!((body(&again), again.redeliveries), ("job", 1));
    anew.settle.ack(again.tag).await.expect("it is in hand");
    assert_eq!((broker.acked(), broker.unsettled(Queue::Build)), (1, 0));
}

#[tokio::test]
async fn delays_are_recorded_and_their_messages_come_later() {
    let broker = FakeBroker::new();
    let delay = Duration::from_millis(30);
    publish(&broker, Route::BuildAfter(delay), message("later")).await;
    publish(&broker, Route::OutcomeAfter(2 * delay), message("later still")).await;
    assert_eq!(broker.delays(), [delay, 2 * delay]);
    assert!(broker.messages(Route::Build).is_empty());
    assert_eq!(broker.wait_for(Route::Build, 1).await, [message("later")]);
    let outcomes = broker.wait_published(1, |route| matches!(route, Route::OutcomeAfter(_))).await;
    assert_eq!(outcomes, [(Route::OutcomeAfter(2 * delay), message("later still"))]);
}
