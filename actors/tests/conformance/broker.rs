//! The broker in memory, and the faults that a test can order from it.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use image_builder_actors::ports::{Broker, BrokerError, Queue};
use image_builder_actors::testing::broker::{FakeBroker, Published};
use image_builder_actors::testing::conformance::broker::{
    World, body, consume, message, next, publish,
};

struct InMemory(FakeBroker);

impl World for InMemory {
    fn broker(&self) -> &dyn Broker {
        &self.0
    }

    async fn lose_consumer_connection(&self) {
        self.0.kill_connection();
    }

    async fn delete_queue(&self, queue: Queue) {
        self.0.delete_queue(queue);
    }

    async fn publish_unreadable(&self, queue: Queue, body: &[u8]) {
        self.0.store_unreadable(queue, body);
    }

    async fn cancel(&self, body: &[u8]) {
        self.0.send_cancellation(body);
    }
}

image_builder_actors::broker_conformance!(InMemory(FakeBroker::default()));

fn no() -> BrokerError {
    BrokerError::Unavailable("the test says so".to_owned())
}

#[tokio::test]
async fn ordered_faults_hit_the_queues_and_the_number_that_were_asked_for() {
    let broker = FakeBroker::default();
    broker.publishes(Queue::Fail).fail(2, no());
    publish(&broker, Queue::Build, message("build")).await;
    for _ in 0..2 {
        assert_eq!(broker.publish(Queue::Fail, message("lost"), Duration::ZERO).await, Err(no()));
    }
    publish(&broker, Queue::Fail, message("kept")).await;
    assert_eq!(broker.messages(Queue::Fail), [message("kept")]);
    assert_eq!(broker.published().len(), 2);

    broker.subscriptions().fail(1, no());
    assert_eq!(broker.consume(Queue::Build, 1).await.err(), Some(no()));
    consume(&broker, Queue::Build, 1).await;
}

#[tokio::test]
async fn an_ordered_panic_happens_once_and_leaves_the_broker_whole() {
    let broker = FakeBroker::default();
    broker.publishes(Queue::Outcome).panic();
    let panics = broker.publish(Queue::Outcome, message("lost"), Duration::ZERO);
    assert!(AssertUnwindSafe(panics).catch_unwind().await.is_err());
    publish(&broker, Queue::Outcome, message("kept")).await;
    assert_eq!(broker.messages(Queue::Outcome), [message("kept")]);
}

#[tokio::test]
async fn a_held_publish_waits_until_it_is_let_go() {
    let broker = FakeBroker::default();
    let gate = broker.publishes(Queue::Build).wait();
    let held = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish(Queue::Build, message("held"), Duration::ZERO).await }
    });
    gate.reached().await;
    assert!(!held.is_finished() && broker.published().is_empty());
    gate.open();
    held.await.expect("no panic").expect("the broker takes it");
    assert_eq!(broker.wait_for(Queue::Build, 1).await, [message("held")]);
}

#[tokio::test]
async fn a_broker_that_is_down_takes_nothing_and_keeps_what_it_has() {
    let broker = FakeBroker::default();
    publish(&broker, Queue::Build, message("job")).await;
    let mut lost = consume(&broker, Queue::Build, 1).await;
    next(&mut lost).await;
    assert_eq!(broker.unsettled(Queue::Build), 1);
    broker.down();
    assert!(lost.deliveries.recv().await.is_none());
    assert!(matches!(
        broker.publish(Queue::Build, message("lost"), Duration::ZERO).await,
        Err(BrokerError::Unavailable(_))
    ));
    assert!(matches!(
        broker.consume(Queue::Build, 1).await.err(),
        Some(BrokerError::Unavailable(_))
    ));
    broker.up();
    let mut anew = consume(&broker, Queue::Build, 1).await;
    let again = next(&mut anew).await;
    assert_eq!((body(&again), again.redeliveries), ("job", 1));
    anew.acks.ack(again.tag).await.expect("it is in hand");
    assert_eq!((broker.acked(), broker.unsettled(Queue::Build)), (1, 0));
}

#[tokio::test]
async fn delays_are_recorded_and_their_messages_come_later() {
    let broker = FakeBroker::default();
    let delay = Duration::from_millis(30);
    for (queue, body, delay) in
        [(Queue::Build, "later", delay), (Queue::Outcome, "later still", 2 * delay)]
    {
        broker.publish(queue, message(body), delay).await.expect("the broker takes it");
    }
    assert_eq!(broker.delays(), [delay, 2 * delay]);
    assert!(broker.messages(Queue::Build).is_empty());
    assert_eq!(broker.wait_for(Queue::Build, 1).await, [message("later")]);
    let outcomes = broker.wait_published(1, |published| published.queue == Queue::Outcome).await;
    let message = message("later still");
    assert_eq!(outcomes, [Published { queue: Queue::Outcome, message, delay: 2 * delay }]);
}
