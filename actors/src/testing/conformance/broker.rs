//! What every broker does, whatever it is made of.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::model::identity::BuildIdentity;
use crate::ports::{
    Backlog, Broker, BrokerError, DELIVERY_LIMIT, Delivery, LONGEST_ENVELOPE, LONGEST_ID,
    LONGEST_TRACEPARENT, Load, Message, Place, Queue, Subscription, Turn,
};

/// A broker with queues that nobody else uses, and what a scenario needs to happen to it.
pub trait World: Sync {
    fn broker(&self) -> &dyn Broker;

    /// Ends the connection that subscriptions live on.
    fn lose_consumer_connection(&self) -> impl Future<Output = ()> + Send;

    /// Deletes a queue behind the worker's back.
    fn delete_queue(&self, queue: Queue) -> impl Future<Output = ()> + Send;

    /// Puts a message in a queue whose properties cannot be read.
    fn publish_unreadable(&self, queue: Queue, body: &[u8]) -> impl Future<Output = ()> + Send;

    /// Asks all workers to cancel something.
    fn cancel(&self, body: &[u8]) -> impl Future<Output = ()> + Send;
}

/// Makes a test of each promise of a broker.
#[macro_export]
macro_rules! broker_conformance {
    ($world:expr) => {
        $crate::conformance! {
            broker, $world,
            a_message_arrives_as_it_was_published,
            a_message_without_properties_arrives_without_them,
            a_message_whose_properties_cannot_be_read_says_so_and_harms_no_other,
            messages_come_in_the_order_of_their_publishing,
            an_acked_message_does_not_come_again,
            a_nacked_message_comes_again_and_says_so,
            what_a_dropped_subscription_had_comes_again,
            no_more_is_delivered_than_the_window_allows,
            after_a_lost_connection_settling_is_stale_and_the_message_comes_again,
            settling_twice_is_stale,
            a_delayed_build_waits_out_its_delay,
            a_delayed_outcome_waits_out_its_delay,
            a_build_that_comes_back_too_often_moves_to_the_fail_queue,
            a_failure_is_never_given_up_by_the_broker,
            a_message_for_a_deleted_queue_is_refused_or_delivered_but_never_lost,
            after_a_cancel_nothing_new_comes_and_what_is_in_hand_can_be_acked,
            what_was_not_handed_out_before_a_cancel_comes_to_the_next_subscription,
            a_hundred_messages_at_once_all_arrive,
            an_envelope_an_id_or_a_trace_context_that_is_too_long_is_refused_and_harms_nothing_else,
            a_delayed_message_lets_those_behind_it_pass,
            only_builds_and_outcomes_are_delayed,
            results_are_taken_and_consumed_by_nobody,
            every_listener_hears_a_cancellation,
            a_worker_cancels_the_build_of_one_user,
            a_cancellation_is_kept_for_those_who_listen_later,
            a_request_is_taken_from_the_backlog_as_it_was_put_in,
            what_is_taken_by_one_is_not_taken_by_another,
            what_a_lost_taker_had_is_taken_again_and_says_so,
            a_single_request_comes_before_the_rest_of_a_flood,
            a_single_request_comes_next_though_the_flood_has_nothing_in_hand,
            more_users_than_anybody_has_lanes_do_not_hide_one_beside_them,
            whoever_has_as_many_in_hand_as_is_allowed_gets_no_more,
            a_request_behind_those_of_a_user_who_may_have_no_more_is_found_at_once,
            what_is_returned_comes_before_what_its_user_asked_for_later,
            a_taker_that_found_nothing_hears_of_what_is_put_in_later,
            a_request_that_comes_back_too_often_moves_to_the_fail_queue,
            what_waits_is_counted,
            workers_are_counted,
        }
    };
}

/// How long anything may take that comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Long enough for what must not come to have come.
const QUIET: Duration = Duration::from_millis(250);

/// How long it may take until a worker that looks finds what is there.
const SOON: Duration = Duration::from_secs(3);

/// The shortest delay that a world's broker has to keep exactly.
const DELAY: Duration = Duration::from_millis(400);

pub fn message(body: &str) -> Message {
    Message { body: body.as_bytes().to_vec(), ..Message::default() }
}

pub fn body(delivery: &Delivery) -> &str {
    std::str::from_utf8(&delivery.message.body).expect("the test's bodies are text")
}

pub async fn publish(broker: &dyn Broker, queue: Queue, message: Message) {
    broker.publish(queue, message, Duration::ZERO).await.expect("the broker takes the message");
}

async fn publish_after(broker: &dyn Broker, queue: Queue, message: Message, delay: Duration) {
    broker.publish(queue, message, delay).await.expect("the broker takes the message");
}

pub async fn consume(broker: &dyn Broker, queue: Queue, window: u16) -> Subscription {
    broker.consume(queue, window).await.expect("the broker takes the subscription")
}

pub async fn next(subscription: &mut Subscription) -> Delivery {
    timeout(PATIENCE, subscription.deliveries.recv())
        .await
        .expect("a delivery comes")
        .expect("the subscription goes on")
}

async fn ack(subscription: &Subscription, delivery: &Delivery) {
    subscription.acks.ack(delivery.tag).await.expect("a delivery in hand can be acked");
}

async fn nack(subscription: &Subscription, delivery: &Delivery) {
    subscription.acks.nack(delivery.tag).await.expect("a delivery in hand can be nacked");
}

/// Publishes builds whose bodies are the numbers from 0.
async fn publish_numbers(world: &impl World, count: usize) {
    for n in 0..count {
        publish(world.broker(), Queue::Build, message(&n.to_string())).await;
    }
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

pub async fn a_message_arrives_as_it_was_published(world: &impl World) {
    let sent = Message {
        body: (0..=255).cycle().take(300_000).collect(),
        message_id: Some("id-ü-1".to_owned()),
        timestamp: Some(OffsetDateTime::from_unix_timestamp(1_700_000_000).expect("a time")),
        traceparent: Some("00-abc-def-01".to_owned()),
        envelope: Some("{\"a\":\"é\"}".repeat(2_000)),
    };
    let mut deliveries = consume(world.broker(), Queue::Outcome, 1).await;
    publish(world.broker(), Queue::Outcome, sent.clone()).await;
    let got = next(&mut deliveries).await;
    assert_eq!(got.message, sent);
    assert_eq!((got.redeliveries, got.given_up, got.publishing), (0, false, 0));
}

pub async fn a_message_without_properties_arrives_without_them(world: &impl World) {
    let sent = Message { message_id: Some(String::new()), ..Message::default() };
    publish(world.broker(), Queue::Build, sent).await;
    let mut deliveries = consume(world.broker(), Queue::Build, 1).await;
    assert_eq!(next(&mut deliveries).await.message, Message::default());
}

pub async fn a_message_whose_properties_cannot_be_read_says_so_and_harms_no_other(
    world: &impl World,
) {
    for queue in [Queue::Build, Queue::Fail, Queue::Outcome] {
        let mut deliveries = consume(world.broker(), queue, 3).await;
        publish(world.broker(), queue, message("before")).await;
        world.publish_unreadable(queue, b"unreadable").await;
        publish(world.broker(), queue, message("behind")).await;
        for (text, is_unreadable) in [("before", false), ("unreadable", true), ("behind", false)] {
            let got = next(&mut deliveries).await;
            assert_eq!((got.message, got.is_unreadable), (message(text), is_unreadable));
            assert_eq!(got.redeliveries, 0);
            deliveries.acks.ack(got.tag).await.expect("it is in hand");
        }
    }
}

pub async fn messages_come_in_the_order_of_their_publishing(world: &impl World) {
    publish_numbers(world, 5).await;
    let mut deliveries = consume(world.broker(), Queue::Build, 2).await;
    for n in 0..5 {
        let delivery = next(&mut deliveries).await;
        assert_eq!(body(&delivery), n.to_string());
        ack(&deliveries, &delivery).await;
    }
}

pub async fn an_acked_message_does_not_come_again(world: &impl World) {
    publish(world.broker(), Queue::Build, message("first")).await;
    let mut deliveries = consume(world.broker(), Queue::Build, 1).await;
    let first = next(&mut deliveries).await;
    ack(&deliveries, &first).await;
    drop(deliveries);
    publish(world.broker(), Queue::Build, message("second")).await;
    let mut deliveries = consume(world.broker(), Queue::Build, 1).await;
    assert_eq!(body(&next(&mut deliveries).await), "second");
}

pub async fn a_nacked_message_comes_again_and_says_so(world: &impl World) {
    publish(world.broker(), Queue::Build, message("job")).await;
    let mut deliveries = consume(world.broker(), Queue::Build, 1).await;
    for redeliveries in 0..3 {
        let delivery = next(&mut deliveries).await;
        assert_eq!((body(&delivery), delivery.redeliveries), ("job", redeliveries));
        nack(&deliveries, &delivery).await;
    }
}

pub async fn what_a_dropped_subscription_had_comes_again(world: &impl World) {
    publish_numbers(world, 3).await;
    let mut first = consume(world.broker(), Queue::Build, 3).await;
    assert_eq!(body(&next(&mut first).await), "0");
    drop(first);
    let mut second = consume(world.broker(), Queue::Build, 3).await;
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

pub async fn no_more_is_delivered_than_the_window_allows(world: &impl World) {
    publish_numbers(world, 4).await;
    let mut deliveries = consume(world.broker(), Queue::Build, 2).await;
    let first = next(&mut deliveries).await;
    next(&mut deliveries).await;
    assert_quiet(&mut deliveries).await;
    ack(&deliveries, &first).await;
    assert_eq!(body(&next(&mut deliveries).await), "2");
    assert_quiet(&mut deliveries).await;
}

pub async fn after_a_lost_connection_settling_is_stale_and_the_message_comes_again(
    world: &impl World,
) {
    publish(world.broker(), Queue::Build, message("job")).await;
    let mut lost = consume(world.broker(), Queue::Build, 1).await;
    let before = next(&mut lost).await;
    assert!(lost.acks.holds(before.tag));
    world.lose_consumer_connection().await;
    assert_ends(&mut lost).await;
    timeout(PATIENCE, lost.acks.ended()).await.expect("it has ended");
    assert!(!lost.acks.holds(before.tag));
    assert_eq!(lost.acks.ack(before.tag).await, Err(BrokerError::Stale));
    assert_eq!(lost.acks.nack(before.tag).await, Err(BrokerError::Stale));

    let mut anew = consume(world.broker(), Queue::Build, 1).await;
    let again = next(&mut anew).await;
    assert_eq!((body(&again), again.redeliveries), ("job", 1));
    // The old subscription's tags mean nothing to the new one.
    assert_eq!(lost.acks.ack(again.tag).await, Err(BrokerError::Stale));
    ack(&anew, &again).await;
}

pub async fn settling_twice_is_stale(world: &impl World) {
    for body in ["first", "second"] {
        publish(world.broker(), Queue::Build, message(body)).await;
    }
    let mut deliveries = consume(world.broker(), Queue::Build, 1).await;
    let first = next(&mut deliveries).await;
    ack(&deliveries, &first).await;
    assert_eq!(deliveries.acks.ack(first.tag).await, Err(BrokerError::Stale));
    assert_eq!(deliveries.acks.nack(first.tag).await, Err(BrokerError::Stale));
    assert_eq!(deliveries.acks.ack(4711).await, Err(BrokerError::Stale));
    // And the subscription is none the worse for it.
    let second = next(&mut deliveries).await;
    ack(&deliveries, &second).await;
}

pub async fn a_delayed_build_waits_out_its_delay(world: &impl World) {
    waits_out_its_delay(world, Queue::Build).await;
}

pub async fn a_delayed_outcome_waits_out_its_delay(world: &impl World) {
    waits_out_its_delay(world, Queue::Outcome).await;
}

async fn waits_out_its_delay(world: &impl World, queue: Queue) {
    let mut deliveries = consume(world.broker(), queue, 1).await;
    let asked = Instant::now();
    let sent = Message {
        message_id: Some("id".to_owned()),
        envelope: Some("{}".to_owned()),
        ..message("later")
    };
    publish_after(world.broker(), queue, sent.clone(), DELAY).await;
    let delivery = next(&mut deliveries).await;
    assert!(asked.elapsed() >= DELAY, "it came after {:?}", asked.elapsed());
    assert_eq!(delivery.message, sent);
    // Its wait is no delivery, and no sign of trouble.
    assert_eq!((delivery.redeliveries, delivery.given_up), (0, false));
}

pub async fn a_build_that_comes_back_too_often_moves_to_the_fail_queue(world: &impl World) {
    let sent = Message { message_id: Some("id".to_owned()), ..message("killer") };
    publish(world.broker(), Queue::Build, sent.clone()).await;
    let mut builds = consume(world.broker(), Queue::Build, 1).await;
    let mut failures = consume(world.broker(), Queue::Fail, 1).await;
    for _ in 0..=DELIVERY_LIMIT {
        let delivery = next(&mut builds).await;
        nack(&builds, &delivery).await;
    }
    let given_up = next(&mut failures).await;
    assert_eq!(given_up.message, sent);
    assert!(given_up.given_up);
    assert_quiet(&mut builds).await;
}

pub async fn a_failure_is_never_given_up_by_the_broker(world: &impl World) {
    publish(world.broker(), Queue::Fail, message("failure")).await;
    let mut failures = consume(world.broker(), Queue::Fail, 1).await;
    for redeliveries in 0..30 {
        let delivery = next(&mut failures).await;
        assert_eq!((delivery.redeliveries, delivery.given_up), (redeliveries, false));
        nack(&failures, &delivery).await;
    }
}

pub async fn a_message_for_a_deleted_queue_is_refused_or_delivered_but_never_lost(
    world: &impl World,
) {
    world.delete_queue(Queue::Outcome).await;
    match world.broker().publish(Queue::Outcome, message("outcome"), Duration::ZERO).await {
        Err(error) => assert!(matches!(error, BrokerError::Refused(_)), "{error}"),
        Ok(()) => {
            let mut deliveries = consume(world.broker(), Queue::Outcome, 1).await;
            assert_eq!(body(&next(&mut deliveries).await), "outcome");
        }
    }
}

pub async fn after_a_cancel_nothing_new_comes_and_what_is_in_hand_can_be_acked(world: &impl World) {
    publish(world.broker(), Queue::Build, message("in hand")).await;
    let mut cancelled = consume(world.broker(), Queue::Build, 5).await;
    let in_hand = next(&mut cancelled).await;
    cancelled.acks.cancel().await;
    publish(world.broker(), Queue::Build, message("later")).await;
    let end = timeout(PATIENCE, cancelled.deliveries.recv()).await.expect("it ends");
    assert!(end.is_none(), "{end:?}");
    assert!(timeout(QUIET, cancelled.acks.ended()).await.is_err(), "one is in hand");
    ack(&cancelled, &in_hand).await;
    // A second cancel changes nothing.
    cancelled.acks.cancel().await;
    drop(cancelled);

    let mut deliveries = consume(world.broker(), Queue::Build, 5).await;
    assert_eq!(body(&next(&mut deliveries).await), "later");
    assert_quiet(&mut deliveries).await;
}

pub async fn what_was_not_handed_out_before_a_cancel_comes_to_the_next_subscription(
    world: &impl World,
) {
    publish_numbers(world, 4).await;
    let mut cancelled = consume(world.broker(), Queue::Build, 4).await;
    let in_hand = next(&mut cancelled).await;
    cancelled.acks.cancel().await;
    // What had been handed to the receiver already is given back by its owner.
    while let Some(delivery) = cancelled.deliveries.recv().await {
        nack(&cancelled, &delivery).await;
    }
    let mut others = consume(world.broker(), Queue::Build, 4).await;
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        seen.insert(body(&next(&mut others).await).to_owned());
    }
    assert_eq!(seen, BTreeSet::from(["1", "2", "3"].map(str::to_owned)));
    ack(&cancelled, &in_hand).await;
}

pub async fn an_envelope_an_id_or_a_trace_context_that_is_too_long_is_refused_and_harms_nothing_else(
    world: &impl World,
) {
    let mut deliveries = consume(world.broker(), Queue::Outcome, 1).await;
    let envelope = |length| Some("e".repeat(length));
    let id = |length| Some("i".repeat(length));
    let trace = |length| Some("t".repeat(length));
    let too_long = [
        Message { envelope: envelope(LONGEST_ENVELOPE + 1), ..message("envelope") },
        Message { message_id: id(LONGEST_ID + 1), ..message("id") },
        Message { traceparent: trace(LONGEST_TRACEPARENT + 1), ..message("trace context") },
    ];
    for message in too_long {
        let refused = world.broker().publish(Queue::Outcome, message, Duration::ZERO).await;
        assert!(matches!(refused, Err(BrokerError::Refused(_))), "{refused:?}");
    }
    let just_fits = Message {
        envelope: envelope(LONGEST_ENVELOPE),
        message_id: id(LONGEST_ID),
        traceparent: trace(LONGEST_TRACEPARENT),
        ..message("fits")
    };
    publish(world.broker(), Queue::Outcome, just_fits.clone()).await;
    assert_eq!(next(&mut deliveries).await.message, just_fits);
}

pub async fn a_delayed_message_lets_those_behind_it_pass(world: &impl World) {
    let mut deliveries = consume(world.broker(), Queue::Build, 1).await;
    publish_after(world.broker(), Queue::Build, message("later"), DELAY).await;
    publish(world.broker(), Queue::Build, message("at once")).await;
    for expected in ["at once", "later"] {
        let delivery = next(&mut deliveries).await;
        assert_eq!(body(&delivery), expected);
        ack(&deliveries, &delivery).await;
    }
}

pub async fn only_builds_and_outcomes_are_delayed(world: &impl World) {
    for queue in [Queue::Fail, Queue::Result] {
        let refused = world.broker().publish(queue, message("later"), DELAY).await;
        assert!(matches!(refused, Err(BrokerError::Refused(_))), "{queue:?}: {refused:?}");
    }
}

pub async fn results_are_taken_and_consumed_by_nobody(world: &impl World) {
    publish(world.broker(), Queue::Result, message("result")).await;
    let refused = world.broker().consume(Queue::Result, 1).await.err();
    assert!(matches!(refused, Some(BrokerError::Refused(_))), "{refused:?}");
}

pub async fn every_listener_hears_a_cancellation(world: &impl World) {
    let mut listeners = [world.broker().cancellations(), world.broker().cancellations()];
    for listener in &mut listeners {
        let heard = async {
            // Nobody says from when on it is heard: said until it is.
            loop {
                world.cancel(b"stop").await;
                if let Ok(heard) = timeout(QUIET, listener.recv()).await {
                    return heard;
                }
            }
        };
        let heard = timeout(PATIENCE, heard).await.expect("it is heard");
        assert_eq!(heard.map(|heard| heard.body).as_deref(), Some(&b"stop"[..]));
    }
}

pub async fn a_worker_cancels_the_build_of_one_user(world: &impl World) {
    let build = BuildIdentity::new(Some("u"), "b");
    let nobodys = BuildIdentity::new(None, "b");
    for build in [&build, &nobodys] {
        world.broker().cancel(build).await.expect("the broker takes it");
    }
    let mut later = world.broker().cancellations();
    for expected in [json!({"buildID": "b", "userID": "u"}), json!({"buildID": "b"})] {
        let heard = timeout(PATIENCE, later.recv()).await.expect("it is kept");
        let body = heard.expect("it listens").body;
        assert_eq!(serde_json::from_slice::<Value>(&body).expect("JSON"), expected);
    }
}

pub async fn a_hundred_messages_at_once_all_arrive(world: &impl World) {
    let broker = world.broker();
    join_all((0..100).map(|n| publish(broker, Queue::Build, message(&n.to_string())))).await;
    let mut deliveries = consume(broker, Queue::Build, 10).await;
    let mut seen = BTreeSet::new();
    for _ in 0..100 {
        let delivery = next(&mut deliveries).await;
        seen.insert(body(&delivery).to_owned());
        ack(&deliveries, &delivery).await;
    }
    assert_eq!(seen.len(), 100);
}

pub async fn a_cancellation_is_kept_for_those_who_listen_later(world: &impl World) {
    world.cancel(b"early").await;
    let mut heard = world.broker().cancellations();
    let early = async { while heard.recv().await.expect("it goes on").body != b"early" {} };
    timeout(PATIENCE, early).await.expect("it is heard");
}

/// Opens the backlog.
pub async fn backlog(broker: &dyn Broker) -> Backlog {
    timeout(PATIENCE, broker.backlog()).await.expect("in time").expect("the backlog is opened")
}

/// Puts a request of this user in the backlog.
pub async fn enqueue(broker: &dyn Broker, user: &str, body: &str) {
    put_in(broker, user, body, false).await;
}

async fn put_in(broker: &dyn Broker, user: &str, body: &str, returned: bool) {
    let place = Place { user_id: user.to_owned(), returned };
    broker.enqueue(message(body), place).await.expect("the broker takes the request");
}

/// A worker's load: so many builds of these users, of any number that are allowed.
pub fn load(builds: &[(&str, usize)]) -> Load {
    let builds = builds.iter().map(|(user, count)| ((*user).to_owned(), *count)).collect();
    Load { builds, most_per_user: usize::MAX, at_hand: false }
}

/// Takes the request whose turn it is, once there is one.
pub async fn take(backlog: &mut Backlog, load: &Load) -> Turn {
    let turn = async {
        loop {
            match backlog.taker.take(load).await.expect("the backlog is open") {
                Some(turn) => return turn,
                None => backlog.taker.arrived().await,
            }
        }
    };
    timeout(PATIENCE, turn).await.expect("there is one in time")
}

async fn settle_turn(backlog: &Backlog, turn: &Turn) {
    backlog.acks.ack(turn.delivery.tag).await.expect("what was taken can be acked");
}

pub async fn a_request_is_taken_from_the_backlog_as_it_was_put_in(world: &impl World) {
    let sent = Message {
        body: b"request".to_vec(),
        message_id: Some("id-\u{fc}-1".to_owned()),
        timestamp: Some(OffsetDateTime::from_unix_timestamp(1_700_000_000).expect("a time")),
        traceparent: Some("00-abc-def-01".to_owned()),
        envelope: Some("{\"a\":\"\u{e9}\"}".repeat(2_000)),
    };
    let user = "user \u{fc} ".repeat(200);
    let place = Place { user_id: user.clone(), returned: false };
    world.broker().enqueue(sent.clone(), place).await.expect("the broker takes it");
    let mut backlog = backlog(world.broker()).await;
    let turn = take(&mut backlog, &load(&[])).await;
    assert_eq!(turn.delivery.message, sent);
    let Delivery { redeliveries, given_up, publishing, .. } = turn.delivery;
    assert_eq!((redeliveries, given_up, publishing), (0, false, 0));
}

pub async fn what_is_taken_by_one_is_not_taken_by_another(world: &impl World) {
    let (mut one, mut other) = (backlog(world.broker()).await, backlog(world.broker()).await);
    for number in 0..10 {
        enqueue(world.broker(), "u", &number.to_string()).await;
    }
    let mut taken = BTreeSet::new();
    for _ in 0..5 {
        for backlog in [&mut one, &mut other] {
            let turn = take(backlog, &load(&[])).await;
            taken.insert(body(&turn.delivery).to_owned());
            settle_turn(backlog, &turn).await;
        }
    }
    assert_eq!(taken.len(), 10);
    assert_eq!(one.taker.take(&load(&[])).await, Ok(None));
}

pub async fn what_a_lost_taker_had_is_taken_again_and_says_so(world: &impl World) {
    let mut lost = backlog(world.broker()).await;
    for number in ["0", "1"] {
        enqueue(world.broker(), "u", number).await;
    }
    let turn = take(&mut lost, &load(&[])).await;
    world.lose_consumer_connection().await;
    timeout(PATIENCE, lost.acks.ended()).await.expect("its end is known");
    assert!(!lost.acks.holds(turn.delivery.tag));
    assert_eq!(lost.acks.ack(turn.delivery.tag).await, Err(BrokerError::Stale));
    timeout(PATIENCE, lost.taker.arrived()).await.expect("whoever waits hears of the end");
    assert!(lost.taker.take(&load(&[])).await.is_err());

    let mut next = backlog(world.broker()).await;
    let mut came = BTreeSet::new();
    for _ in 0..2 {
        let again = take(&mut next, &load(&[])).await;
        came.insert((body(&again.delivery).to_owned(), again.delivery.redeliveries));
    }
    // What only waited is charged with nothing.
    let other = if body(&turn.delivery) == "0" { "1" } else { "0" };
    assert_eq!(came, BTreeSet::from([(body(&turn.delivery).to_owned(), 1), (other.to_owned(), 0)]));
}

pub async fn a_single_request_comes_before_the_rest_of_a_flood(world: &impl World) {
    let mut backlog = backlog(world.broker()).await;
    for number in 0..60 {
        enqueue(world.broker(), "flood", &number.to_string()).await;
    }
    // Two builders work on the flood.
    for _ in 0..2 {
        let turn = take(&mut backlog, &load(&[("flood", 1)])).await;
        assert_eq!(turn.user_id, "flood");
    }
    enqueue(world.broker(), "single", "s").await;
    // One of them comes free.
    let turn = take(&mut backlog, &load(&[("flood", 1)])).await;
    assert_eq!((turn.user_id.as_str(), body(&turn.delivery)), ("single", "s"));
}

pub async fn a_single_request_comes_next_though_the_flood_has_nothing_in_hand(world: &impl World) {
    let mut backlog = backlog(world.broker()).await;
    for number in 0..60 {
        enqueue(world.broker(), "flood", &number.to_string()).await;
    }
    // The one builder comes free after every build.
    for number in 0..3 {
        assert_eq!(take(&mut backlog, &load(&[])).await.user_id, "flood");
        let single = format!("single-{number}");
        enqueue(world.broker(), &single, "s").await;
        assert_eq!(take(&mut backlog, &load(&[])).await.user_id, single);
    }
}

pub async fn more_users_than_anybody_has_lanes_do_not_hide_one_beside_them(world: &impl World) {
    const FLOODS: usize = 24;
    let mut backlog = backlog(world.broker()).await;
    for number in 0..8 {
        join_all((0..FLOODS).map(|flood| async move {
            let user = format!("flood-{flood}");
            enqueue(world.broker(), &user, &format!("{user}/{number}")).await;
        }))
        .await;
    }
    // All that have nothing else in hand have had their turn.
    for _ in 0..FLOODS {
        take(&mut backlog, &load(&[])).await;
    }
    enqueue(world.broker(), "single", "s").await;
    let busy: Vec<String> = (0..FLOODS).map(|flood| format!("flood-{flood}")).collect();
    let busy: Vec<(&str, usize)> = busy.iter().map(|user| (user.as_str(), 1)).collect();
    let turn = take(&mut backlog, &load(&busy)).await;
    assert_eq!(turn.user_id, "single");
}

pub async fn whoever_has_as_many_in_hand_as_is_allowed_gets_no_more(world: &impl World) {
    let mut backlog = backlog(world.broker()).await;
    for number in 0..20 {
        enqueue(world.broker(), "capped", &number.to_string()).await;
    }
    let full = Load { most_per_user: 1, ..load(&[("capped", 1)]) };
    assert_eq!(backlog.taker.take(&full).await, Ok(None));
    enqueue(world.broker(), "other", "o").await;
    assert_eq!(take(&mut backlog, &full).await.user_id, "other");
    let mut came = BTreeSet::new();
    for _ in 0..20 {
        let turn = take(&mut backlog, &Load { most_per_user: 1, ..load(&[]) }).await;
        assert_eq!((turn.user_id.as_str(), turn.delivery.redeliveries), ("capped", 0));
        came.insert(body(&turn.delivery).to_owned());
        settle_turn(&backlog, &turn).await;
    }
    assert_eq!(came.len(), 20, "each of them once");
}

pub async fn a_request_behind_those_of_a_user_who_may_have_no_more_is_found_at_once(
    world: &impl World,
) {
    let mut backlog = backlog(world.broker()).await;
    for number in 0..4 {
        enqueue(world.broker(), "capped", &number.to_string()).await;
    }
    let full = Load { most_per_user: 1, ..load(&[("capped", 1)]) };
    assert_eq!(backlog.taker.take(&full).await, Ok(None));
    // Both, so that the second one stands where the capped user's stand.
    for number in 0..2 {
        enqueue(world.broker(), "other", &number.to_string()).await;
    }
    let began = Instant::now();
    for _ in 0..2 {
        assert_eq!(take(&mut backlog, &full).await.user_id, "other");
    }
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

pub async fn what_is_returned_comes_before_what_its_user_asked_for_later(world: &impl World) {
    let mut backlog = backlog(world.broker()).await;
    for number in 0..40 {
        enqueue(world.broker(), "u", &number.to_string()).await;
    }
    for _ in 0..3 {
        take(&mut backlog, &load(&[("u", 1)])).await;
    }
    put_in(world.broker(), "u", "returned", true).await;
    let mut came = Vec::new();
    for _ in 0..12 {
        let turn = take(&mut backlog, &load(&[("u", 1)])).await;
        came.push(body(&turn.delivery).to_owned());
    }
    assert!(came.contains(&"returned".to_owned()), "not behind 37 others: {came:?}");
}

pub async fn a_taker_that_found_nothing_hears_of_what_is_put_in_later(world: &impl World) {
    let (mut one, mut other) = (backlog(world.broker()).await, backlog(world.broker()).await);
    for backlog in [&mut one, &mut other] {
        assert_eq!(backlog.taker.take(&load(&[])).await, Ok(None));
    }
    enqueue(world.broker(), "u", "1").await;
    for backlog in [&mut one, &mut other] {
        timeout(PATIENCE, backlog.taker.arrived()).await.expect("both hear of it");
    }
    assert_eq!(body(&take(&mut other, &load(&[])).await.delivery), "1");
    assert_eq!(one.taker.take(&load(&[])).await, Ok(None));
}

pub async fn a_request_that_comes_back_too_often_moves_to_the_fail_queue(world: &impl World) {
    let mut failures = consume(world.broker(), Queue::Fail, 1).await;
    let mut backlog = backlog(world.broker()).await;
    enqueue(world.broker(), "u", "killer").await;
    for deliveries in 0..=DELIVERY_LIMIT {
        let turn = take(&mut backlog, &load(&[])).await;
        assert_eq!(turn.delivery.redeliveries, deliveries);
        backlog.acks.nack(turn.delivery.tag).await.expect("what was taken can be nacked");
    }
    let failure = next(&mut failures).await;
    assert_eq!((body(&failure), failure.given_up), ("killer", true));
}

pub async fn what_waits_is_counted(world: &impl World) {
    publish_numbers(world, 3).await;
    for number in 0..4 {
        enqueue(world.broker(), &format!("u{number}"), "r").await;
    }
    assert_eq!(world.broker().waiting().await, Ok(7));
    let mut backlog = backlog(world.broker()).await;
    take(&mut backlog, &load(&[])).await;
    assert_eq!(world.broker().waiting().await, Ok(6), "what is in hand waits no more");
}

pub async fn workers_are_counted(world: &impl World) {
    assert_eq!(world.broker().workers().await, Ok(0));
    let mut one = consume(world.broker(), Queue::Build, 1).await;
    let _other = consume(world.broker(), Queue::Build, 1).await;
    let _none = consume(world.broker(), Queue::Fail, 1).await;
    assert_eq!(world.broker().workers().await, Ok(2));
    one.acks.cancel().await;
    assert_ends(&mut one).await;
    assert_eq!(world.broker().workers().await, Ok(1), "whoever drains takes no more");
}
