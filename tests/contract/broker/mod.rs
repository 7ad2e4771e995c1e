//! The broker port: one suite for the broker in memory and for RabbitMQ.

mod in_memory;
mod rabbitmq;
mod suite;

#[path = "../../support/proxy.rs"]
mod proxy;
#[path = "../../support/rabbit.rs"]
mod rabbit;

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use image_builder_actors::ports::{Broker, Queue};
use image_builder_actors::testing::broker::FakeBroker;

use self::rabbit::{Rabbit, plain_channel};

/// A broker with queues that nobody else uses, and what a scenario needs to happen to it.
trait World {
    fn broker(&self) -> &dyn Broker;
    /// Ends the connection that subscriptions live on.
    fn lose_consumer_connection(&self) -> impl Future<Output = ()>;

    /// Ends the connection that the log is read on.
    fn lose_log_connection(&self) -> impl Future<Output = ()>;
    /// Deletes a queue behind the worker's back.
    fn delete_queue(&self, queue: Queue) -> impl Future<Output = ()>;
}

impl World for FakeBroker {
    fn broker(&self) -> &dyn Broker {
        self
    }

    async fn lose_consumer_connection(&self) {
        self.kill_connection();
    }

    async fn lose_log_connection(&self) {
        self.kill_connection();
    }

    async fn delete_queue(&self, queue: Queue) {
        FakeBroker::delete_queue(self, queue);
    }
}

impl World for Rabbit {
    fn broker(&self) -> &dyn Broker {
        &*self.broker
    }

    async fn lose_consumer_connection(&self) {
        self.kill("consumer").await;
    }

    async fn lose_log_connection(&self) {
        self.close_connections("log").await;
    }

    async fn delete_queue(&self, queue: Queue) {
        let name = self.settings.topology.queue(queue);
        let (connection, channel) = plain_channel().await;
        channel.queue_delete(name.into(), Default::default()).await.expect("it can be deleted");
        connection.close(200, "done".into()).await.expect("it can be closed");
    }
}

async fn on_memory(test: impl AsyncFnOnce(&FakeBroker)) {
    test(&FakeBroker::new()).await;
}

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

macro_rules! on_both {
    ($($test:ident,)*) => {
        mod broker_in_memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::on_memory(super::suite::$test).await;
            })*
        }
        mod broker_rabbitmq {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::on_rabbitmq(super::suite::$test).await;
            })*
        }
    };
}

on_both! {
    a_message_arrives_as_it_was_published,
    a_message_without_properties_arrives_without_them,
    messages_come_in_the_order_of_their_publishing,
    an_acked_message_does_not_come_again,
    a_nacked_message_comes_again_and_says_so,
    what_a_dropped_subscription_had_comes_again,
    no_more_is_delivered_than_the_prefetch_allows,
    after_a_lost_connection_settling_is_stale_and_the_message_comes_again,
    settling_twice_is_stale,
    a_delayed_build_waits_out_its_delay,
    a_delayed_outcome_waits_out_its_delay,
    a_build_that_comes_back_too_often_moves_to_the_fail_queue,
    a_failure_is_never_given_up_by_the_broker,
    an_expired_message_is_not_delivered,
    a_message_for_a_deleted_queue_is_refused_or_delivered_but_never_lost,
    every_follower_reads_the_whole_log_in_one_order,
    after_a_lost_connection_the_log_is_read_from_its_beginning,
    after_a_cancel_nothing_new_comes_and_what_is_in_hand_can_be_acked,
    what_was_not_handed_out_before_a_cancel_comes_to_the_next_subscription,
    headers_that_no_broker_takes_are_refused_and_harm_nothing_else,
    a_hundred_messages_at_once_all_arrive,
}
