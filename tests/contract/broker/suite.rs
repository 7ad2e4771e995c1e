//! What every broker does, whatever it is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use image_builder_actors::ports::{
    Broker, BrokerError, Message, Queue, RawDelivery, Route, Subscription,
};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::World;
use super::rabbit::PATIENCE;

/// Long enough for what must not come to have come.
const QUIET: Duration = Duration::from_millis(250);

/// The delay of the first rung of the real broker's ladders.
const DELAY: Duration = Duration::from_millis(400);

pub(super) fn message(body: &str) -> Message {
    Message { body: body.as_bytes().to_vec(), ..Message::default() }
}

pub(super) fn body(delivery: &RawDelivery) -> &str {
    std::str::from_utf8(&delivery.message.body).expect("the test's bodies are text")
}

pub(super) async fn publish(broker: &dyn Broker, route: Route, message: Message) {
    broker.publish(route, message).await.expect("the broker takes the message");
}

pub(super) async fn subscribe(broker: &dyn Broker, queue: Queue, prefetch: u16) -> Subscription {
    broker.subscribe(queue, prefetch).await.expect("the broker takes the subscription")
}

pub(super) async fn next(subscription: &mut Subscription) -> RawDelivery {
    timeout(PATIENCE, subscription.deliveries.recv())
        .await
        .expect("a delivery comes")
        .expect("the subscription goes on")
}

async fn ack(subscription: &Subscription, delivery: &RawDelivery) {
    subscription.settle.ack(delivery.tag).await.expect("a delivery in hand can be acked");
}

async fn assert_quiet(subscription: &mut Subscription) {
    let came = timeout(QUIET, subscription.deliveries.recv()).await;
    assert!(came.is_err(), "nothing was to come, and it was to go on: {came:?}");
}

async fn assert_ends(subscription: &mut Subscription) {
    // One delivery may have been on its way.
    let end = async { while subscription.deliveries.recv().await.is_some() {} };
    timeout(PATIENCE, end).await.expect("the subscription ends");
}

pub(super) async fn a_message_arrives_as_it_was_published(world: &impl World) {
    let sent = Message {
        body: (0..=255).cycle().take(300_000).collect(),
        message_id: Some("id-ü-1".to_owned()),
        timestamp: Some(OffsetDateTime::from_unix_timestamp(1_700_000_000).expect("a time")),
        headers: BTreeMap::from([
            ("x-image-builder-history".to_owned(), "{\"a\":\"é\"}".repeat(2_000)),
            ("traceparent".to_owned(), "00-abc-def-01".to_owned()),
            ("empty".to_owned(), String::new()),
        ]),
        expires_after: None,
    };
    let mut deliveries = subscribe(world.broker(), Queue::Outcome, 1).await;
    publish(world.broker(), Route::Outcome, sent.clone()).await;
    let got = next(&mut deliveries).await;
    assert_eq!(got.message, sent);
    assert_eq!((got.redeliveries, got.over_delivery_limit), (0, false));
}

pub(super) async fn a_message_without_properties_arrives_without_them(world: &impl World) {
    let sent = Message { message_id: Some(String::new()), ..Message::default() };
    publish(world.broker(), Route::Build, sent).await;
    let mut deliveries = subscribe(world.broker(), Queue::Build, 1).await;
    assert_eq!(next(&mut deliveries).await.message, Message::default());
}

pub(super) async fn messages_come_in_the_order_of_their_publishing(world: &impl World) {
    for n in 0..5 {
        publish(world.broker(), Route::Build, message(&n.to_string())).await;
    }
    let mut deliveries = subscribe(world.broker(), Queue::Build, 2).await;
    for n in 0..5 {
        let delivery = next(&mut deliveries).await;
        assert_eq!(body(&delivery), n.to_string());
        ack(&deliveries, &delivery).await;
    }
}

pub(super) async fn an_acked_message_does_not_come_again(world: &impl World) {
    publish(world.broker(), Route::Build, message("first")).await;
    let mut deliveries = subscribe(world.broker(), Queue::Build, 1).await;
    let first = next(&mut deliveries).await;
    ack(&deliveries, &first).await;
    drop(deliveries);
    publish(world.broker(), Route::Build, message("second")).await;
    let mut deliveries = subscribe(world.broker(), Queue::Build, 1).await;
    assert_eq!(body(&next(&mut deliveries).await), "second");
}

pub(super) async fn a_nacked_message_comes_again_and_says_so(world: &impl World) {
    publish(world.broker(), Route::Build, message("job")).await;
    let mut deliveries = subscribe(world.broker(), Queue::Build, 1).await;
    for redeliveries in 0..3 {
        let delivery = next(&mut deliveries).await;
        assert_eq!((body(&delivery), delivery.redeliveries), ("job", redeliveries));
        deliveries.settle.nack(delivery.tag).await.expect("a delivery in hand can be nacked");
    }
}

pub(super) async fn what_a_dropped_subscription_had_comes_again(world: &impl World) {
    for n in 0..3 {
        publish(world.broker(), Route::Build, message(&n.to_string())).await;
    }
    let mut first = subscribe(world.broker(), Queue::Build, 3).await;
    assert_eq!(body(&next(&mut first).await), "0");
    drop(first);
    let mut second = subscribe(world.broker(), Queue::Build, 3).await;
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let delivery = next(&mut second).await;
        seen.insert(body(&delivery).to_owned());
        if body(&delivery) == "0" {
            assert_eq!(delivery.redeliveries, 1);
        }
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

pub(super) async fn no_more_is_delivered_than_the_prefetch_allows(world: &impl World) {
    for n in 0..4 {
        publish(world.broker(), Route::Build, message(&n.to_string())).await;
    }
    let mut deliveries = subscribe(world.broker(), Queue::Build, 2).await;
    let first = next(&mut deliveries).await;
    next(&mut deliveries).await;
    assert_quiet(&mut deliveries).await;
    ack(&deliveries, &first).await;
    assert_eq!(body(&next(&mut deliveries).await), "2");
    assert_quiet(&mut deliveries).await;
}

pub(super) async fn after_a_lost_connection_settling_is_stale_and_the_message_comes_again(
    world: &impl World,
) {
    publish(world.broker(), Route::Build, message("job")).await;
    let mut lost = subscribe(world.broker(), Queue::Build, 1).await;
    let before = next(&mut lost).await;
    assert!(lost.settle.holds(before.tag));
    world.lose_consumer_connection().await;
    assert_ends(&mut lost).await;
    timeout(PATIENCE, lost.settle.ended()).await.expect("it has ended");
    assert!(!lost.settle.holds(before.tag));
    assert_eq!(lost.settle.ack(before.tag).await, Err(BrokerError::Stale));
    assert_eq!(lost.settle.nack(before.tag).await, Err(BrokerError::Stale));

    let mut anew = subscribe(world.broker(), Queue::Build, 1).await;
    let again = next(&mut anew).await;
    assert_eq!((body(&again), again.redeliveries), ("job", 1));
    // The old subscription's tags mean nothing to the new one.
    assert_eq!(lost.settle.ack(again.tag).await, Err(BrokerError::Stale));
    ack(&anew, &again).await;
}

pub(super) async fn settling_twice_is_stale(world: &impl World) {
    for body in ["first", "second"] {
        publish(world.broker(), Route::Build, message(body)).await;
    }
    let mut deliveries = subscribe(world.broker(), Queue::Build, 1).await;
    let first = next(&mut deliveries).await;
    ack(&deliveries, &first).await;
    assert_eq!(deliveries.settle.ack(first.tag).await, Err(BrokerError::Stale));
    assert_eq!(deliveries.settle.nack(first.tag).await, Err(BrokerError::Stale));
    assert_eq!(deliveries.settle.ack(4711).await, Err(BrokerError::Stale));
    // And the subscription is none the worse for it.
    let second = next(&mut deliveries).await;
    ack(&deliveries, &second).await;
}

pub(super) async fn a_delayed_build_waits_out_its_delay(world: &impl World) {
    waits_out_its_delay(world, Route::BuildAfter(DELAY), Queue::Build).await;
}

pub(super) async fn a_delayed_outcome_waits_out_its_delay(world: &impl World) {
    waits_out_its_delay(world, Route::OutcomeAfter(DELAY), Queue::Outcome).await;
}

async fn waits_out_its_delay(world: &impl World, route: Route, queue: Queue) {
    let mut deliveries = subscribe(world.broker(), queue, 1).await;
    let asked = Instant::now();
    let sent = Message {
        message_id: Some("id".to_owned()),
        headers: BTreeMap::from([("x-image-builder-history".to_owned(), "{}".to_owned())]),
        ..message("later")
    };
    publish(world.broker(), route, sent.clone()).await;
    let delivery = next(&mut deliveries).await;
    assert!(asked.elapsed() >= DELAY, "it came after {:?}", asked.elapsed());
    assert_eq!(delivery.message, sent);
    // The way through the ladder is no delivery, and no sign of trouble.
    assert_eq!((delivery.redeliveries, delivery.over_delivery_limit), (0, false));
}

pub(super) async fn a_build_that_comes_back_too_often_moves_to_the_fail_queue(world: &impl World) {
    let sent = Message { message_id: Some("id".to_owned()), ..message("killer") };
    publish(world.broker(), Route::Build, sent.clone()).await;
    let mut builds = subscribe(world.broker(), Queue::Build, 1).await;
    let mut failures = subscribe(world.broker(), Queue::Fail, 1).await;
    for _ in 0..=20 {
        let delivery = next(&mut builds).await;
        builds.settle.nack(delivery.tag).await.expect("a delivery in hand can be nacked");
    }
    let given_up = next(&mut failures).await;
    assert_eq!(given_up.message, sent);
    assert!(given_up.over_delivery_limit);
    assert_quiet(&mut builds).await;
}

pub(super) async fn a_failure_is_never_given_up_by_the_broker(world: &impl World) {
    publish(world.broker(), Route::Fail, message("failure")).await;
    let mut failures = subscribe(world.broker(), Queue::Fail, 1).await;
    for redeliveries in 0..30 {
        let delivery = next(&mut failures).await;
        assert_eq!((delivery.redeliveries, delivery.over_delivery_limit), (redeliveries, false));
        failures.settle.nack(delivery.tag).await.expect("a delivery in hand can be nacked");
    }
}

pub(super) async fn an_expired_message_is_not_delivered(world: &impl World) {
    let short = Message { expires_after: Some(Duration::from_millis(100)), ..message("short") };
    let long = Message { expires_after: Some(Duration::from_secs(600)), ..message("long") };
    publish(world.broker(), Route::Outcome, short).await;
    publish(world.broker(), Route::Outcome, long).await;
    tokio::time::sleep(QUIET).await;
    let mut deliveries = subscribe(world.broker(), Queue::Outcome, 2).await;
    assert_eq!(body(&next(&mut deliveries).await), "long");
}

pub(super) async fn a_message_for_a_deleted_queue_is_refused_or_delivered_but_never_lost(
    world: &impl World,
) {
    world.delete_queue(Queue::Outcome).await;
    match world.broker().publish(Route::Outcome, message("outcome")).await {
        Err(error) => assert!(matches!(error, BrokerError::Refused(_)), "{error}"),
        Ok(()) => {
            let mut deliveries = subscribe(world.broker(), Queue::Outcome, 1).await;
            assert_eq!(body(&next(&mut deliveries).await), "outcome");
        }
    }
}

pub(super) async fn after_a_cancel_nothing_new_comes_and_what_is_in_hand_can_be_acked(
    world: &impl World,
) {
    publish(world.broker(), Route::Build, message("in hand")).await;
    let mut cancelled = subscribe(world.broker(), Queue::Build, 5).await;
    let in_hand = next(&mut cancelled).await;
    cancelled.settle.cancel().await;
    publish(world.broker(), Route::Build, message("later")).await;
    let end = timeout(PATIENCE, cancelled.deliveries.recv()).await.expect("it ends");
    assert!(end.is_none(), "{end:?}");
    assert!(timeout(QUIET, cancelled.settle.ended()).await.is_err(), "one is in hand");
    ack(&cancelled, &in_hand).await;
    // A second cancel changes nothing.
    cancelled.settle.cancel().await;
    drop(cancelled);

    let mut deliveries = subscribe(world.broker(), Queue::Build, 5).await;
    assert_eq!(body(&next(&mut deliveries).await), "later");
    assert_quiet(&mut deliveries).await;
}

pub(super) async fn what_was_not_handed_out_before_a_cancel_comes_to_the_next_subscription(
    world: &impl World,
) {
    for n in 0..4 {
        publish(world.broker(), Route::Build, message(&n.to_string())).await;
    }
    let mut cancelled = subscribe(world.broker(), Queue::Build, 4).await;
    let in_hand = next(&mut cancelled).await;
    cancelled.settle.cancel().await;
    // What had been handed to the receiver already is given back by its owner.
    while let Some(delivery) = cancelled.deliveries.recv().await {
        cancelled.settle.nack(delivery.tag).await.expect("a delivery in hand can be nacked");
    }
    let mut others = subscribe(world.broker(), Queue::Build, 4).await;
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        seen.insert(body(&next(&mut others).await).to_owned());
    }
    assert_eq!(seen, BTreeSet::from(["1", "2", "3"].map(str::to_owned)));
    ack(&cancelled, &in_hand).await;
}

pub(super) async fn headers_that_no_broker_takes_are_refused_and_harm_nothing_else(
    world: &impl World,
) {
    let mut deliveries = subscribe(world.broker(), Queue::Outcome, 1).await;
    let header = |length| BTreeMap::from([("history".to_owned(), "h".repeat(length))]);
    let too_long = [
        Message { headers: header(140_000), ..message("headers") },
        Message { message_id: Some("i".repeat(256)), ..message("id") },
    ];
    for message in too_long {
        let refused = world.broker().publish(Route::Outcome, message).await;
        assert!(matches!(refused, Err(BrokerError::Refused(_))), "{refused:?}");
    }
    let just_fits = Message { headers: header(130_000), ..message("fits") };
    publish(world.broker(), Route::Outcome, just_fits.clone()).await;
    assert_eq!(next(&mut deliveries).await.message, just_fits);
}

pub(super) async fn a_hundred_messages_at_once_all_arrive(world: &impl World) {
    let broker = world.broker();
    join_all((0..100).map(|n| publish(broker, Route::Build, message(&n.to_string())))).await;
    let mut deliveries = subscribe(broker, Queue::Build, 10).await;
    let mut seen = BTreeSet::new();
    for _ in 0..100 {
        let delivery = next(&mut deliveries).await;
        seen.insert(body(&delivery).to_owned());
        ack(&deliveries, &delivery).await;
    }
    assert_eq!(seen.len(), 100);
}

async fn follow(broker: &dyn Broker) -> mpsc::Receiver<Vec<u8>> {
    broker.follow().await.expect("the log can be read")
}

async fn read(log: &mut mpsc::Receiver<Vec<u8>>, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    while lines.len() < count {
        let line = timeout(PATIENCE, log.recv()).await.expect("a line comes");
        lines.push(String::from_utf8(line.expect("the log goes on")).expect("it is text"));
    }
    lines
}

pub(super) async fn every_follower_reads_the_whole_log_in_one_order(world: &impl World) {
    let broker = world.broker();
    let mut early = follow(broker).await;
    let write = |line: usize| publish(broker, Route::Told, message(&line.to_string()));
    // More than is sent ahead.
    join_all((0..1_500).map(write)).await;
    let mut late = follow(broker).await;
    join_all((1_500..1_600).map(write)).await;
    let lines = read(&mut early, 1_600).await;
    assert_eq!(read(&mut late, 1_600).await, lines);
    let all: BTreeSet<usize> = lines.iter().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(all, (0..1_600).collect());
    assert!(timeout(QUIET, early.recv()).await.is_err(), "there is no more");
}

pub(super) async fn after_a_lost_connection_the_log_is_read_from_its_beginning(world: &impl World) {
    let broker = world.broker();
    let mut log = follow(broker).await;
    publish(broker, Route::Told, message("one")).await;
    assert_eq!(read(&mut log, 1).await, ["one"]);
    world.lose_log_connection().await;
    let end = timeout(PATIENCE, log.recv()).await.expect("it ends");
    assert!(end.is_none(), "{end:?}");
    publish(broker, Route::Told, message("two")).await;
    let mut log = follow(broker).await;
    assert_eq!(read(&mut log, 2).await, ["one", "two"]);
}
