//! What the inside asks of a broker, kept by RabbitMQ: its queues, its outcome ledger, its dead letters.

mod backlog;
mod rabbitmq;
mod unreadable;

#[path = "../../support/rabbit.rs"]
pub(crate) mod rabbit;
#[path = "../../support/raw_amqp.rs"]
mod raw_amqp;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use image_builder::broker::rabbitmq::dead_letters::DeadQueue;
use image_builder_actors::ports::{Broker, DeadLetterStore, DeadLetters, OutcomeLedger, Queue};
use image_builder_actors::testing::conformance;

use self::rabbit::{Rabbit, plain_channel, uri};
use self::raw_amqp::{Properties, RawPublisher};

/// Runs a test on a broker with queues of its own.
async fn on_rabbitmq(test: impl AsyncFnOnce(&Rabbit)) {
    on(Rabbit::start().await, test).await;
}

/// Runs a test on this broker, and removes its queues whatever comes of it.
async fn on(rabbit: Rabbit, test: impl AsyncFnOnce(&Rabbit)) {
    let outcome = AssertUnwindSafe(test(&rabbit)).catch_unwind().await;
    rabbit.tear_down().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn raw_publisher() -> RawPublisher {
    tokio::task::block_in_place(|| RawPublisher::connect(&uri()))
}

/// A broker whose queues go with it.
struct OnRabbitMq {
    rabbit: Rabbit,
    dead_queue: DeadQueue,
}

impl OnRabbitMq {
    async fn start() -> Self {
        let rabbit = Rabbit::start().await;
        Self { dead_queue: DeadQueue::new(rabbit.settings.clone()), rabbit }
    }
}

impl Drop for OnRabbitMq {
    fn drop(&mut self) {
        let runtime = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| runtime.block_on(self.rabbit.tear_down()));
    }
}

impl conformance::broker::World for OnRabbitMq {
    fn broker(&self) -> &dyn Broker {
        &*self.rabbit.broker
    }

    async fn lose_consumer_connection(&self) {
        self.rabbit.kill("consumer").await;
    }

    async fn delete_queue(&self, queue: Queue) {
        self.rabbit.delete_queue(queue).await;
    }

    async fn publish_unreadable(&self, queue: Queue, body: &[u8]) {
        let latin_1 = Properties::default().text("app_id", b"caf\xe9");
        raw_publisher().publish(self.rabbit.name(queue), &latin_1, body);
    }

    async fn cancel(&self, body: &[u8]) {
        let (connection, channel) = plain_channel().await;
        let exchange = self.rabbit.settings.topology.cancel_exchange().into();
        let (options, none) = Default::default();
        channel.basic_publish(exchange, "".into(), options, body, none).await.expect("sent");
        connection.close(200, "done".into()).await.expect("it can be closed");
    }
}

impl conformance::outcome_ledger::World for OnRabbitMq {
    fn worker(&self) -> Arc<dyn OutcomeLedger> {
        self.rabbit.broker.outcome_ledger()
    }

    async fn lose_connections(&self) {
        self.rabbit.close_connections("ledger").await;
    }
}

impl conformance::dead_letters::World for OnRabbitMq {
    fn letters(&self) -> &dyn DeadLetters {
        &*self.rabbit.broker
    }

    fn store(&self) -> &dyn DeadLetterStore {
        &self.dead_queue
    }

    fn broker(&self) -> &dyn Broker {
        &*self.rabbit.broker
    }

    async fn delete_build_queue(&self) {
        self.rabbit.delete_queue(Queue::Build).await;
    }
}

mod queues {
    image_builder_actors::broker_conformance!(super::OnRabbitMq::start().await);
}

mod outcome_ledger {
    image_builder_actors::outcome_ledger_conformance!(super::OnRabbitMq::start().await);
}

mod dead_letters {
    image_builder_actors::dead_letters_conformance!(super::OnRabbitMq::start().await);
}
