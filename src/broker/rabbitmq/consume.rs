//! A subscription: deliveries on a channel of their own, and their settling.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use image_builder_actors::ports::{Acknowledger, BrokerError, Delivery, Subscription};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    BasicRejectOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::types::FieldTable;
use lapin::{Acker, Channel, Connection, Consumer};
use tokio::sync::{mpsc, watch};

use super::connection::{ManagedConnection, pause, pauses};
use super::declare::{Declarer, soft_error};
use super::handshake::{Failure, in_words};
use super::properties;
use super::readiness::ConnectionState;

/// How long the broker is given to answer a cancel or a close before the answer no longer matters.
pub(super) const GOODBYE: Duration = Duration::from_secs(5);

/// Subscribes as soon as there is a connection; the caller sets the time limit.
pub(super) async fn consume(
    managed: &Arc<ManagedConnection>,
    state: &watch::Sender<ConnectionState>,
    declarer: &Declarer,
    queue: &str,
    window: u16,
) -> Result<Subscription, BrokerError> {
    let mut pauses = pauses();
    let mut declared_again = false;
    loop {
        let Some(connection) = managed.current().await else {
            let text = "the connection was closed by this worker".to_owned();
            return Err(BrokerError::Unavailable(text));
        };
        let opened = tokio::select! {
            opened = open(&connection, queue, window) => opened,
            () = managed.lost(&connection) => continue,
        };
        let error = match opened {
            Ok((channel, consumer)) => {
                let state = state.subscribe();
                return Ok(start(managed.clone(), state, connection, channel, consumer, window));
            }
            Err(error) => error,
        };
        match soft_error(&error) {
            Some((AMQPSoftError::NOTFOUND, _)) if !declared_again => {
                tracing::warn!(queue, "the queue is gone: declaring all queues again");
                declared_again = true;
                if let Err(Failure::Permanent(error)) = declarer.declare(&connection).await {
                    return Err(BrokerError::Unavailable(error.to_string()));
                }
            }
            Some((_, text)) => {
                let text = format!("cannot consume `{queue}`: {text}");
                return Err(BrokerError::Unavailable(text));
            }
            None => {}
        }
        tracing::debug!(queue, %error, "subscribing again");
        pause(&mut pauses).await;
    }
}

async fn open(
    connection: &Connection,
    queue: &str,
    window: u16,
) -> lapin::Result<(Channel, Consumer)> {
    let channel = connection.create_channel().await?;
    // Nought would mean "as many as there are".
    channel.basic_qos(window.max(1), BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer =
        channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    Ok((channel, consumer))
}

fn start(
    managed: Arc<ManagedConnection>,
    state: watch::Receiver<ConnectionState>,
    connection: Arc<Connection>,
    channel: Channel,
    consumer: Consumer,
    window: u16,
) -> Subscription {
    // Room for all that the broker sends ahead: after a cancel, its owner finds it there.
    let (deliveries_in, deliveries) = mpsc::channel(usize::from(window.max(1)));
    let (wish_in, wish) = watch::channel(Wish::Deliver);
    let (course_in, course) = watch::channel(Course::Open);
    let in_hand = Arc::new(InHand::default());
    let feed = Feed {
        managed,
        state,
        connection,
        channel,
        consumer,
        deliveries: deliveries_in,
        in_hand: in_hand.clone(),
    };
    tokio::spawn(feed.run(wish, course_in));
    Subscription { deliveries, acks: Arc::new(Acks { in_hand, wish: wish_in, course }) }
}

/// What the subscription's owner wants of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Deliver,
    NoMore,
}

/// What the subscription's owner may still expect of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Course {
    /// Further deliveries.
    Open,
    /// That what is in hand can be settled.
    Quiet,
    /// Nothing.
    Over,
}

/// The deliveries that are not settled, by tag.
#[derive(Default)]
pub(super) struct InHand(Mutex<HashMap<u64, Acker>>);

impl InHand {
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Acker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The owner's end. When the last clone is dropped, the channel closes and the broker takes back
/// what is not settled.
pub(super) struct Acks {
    pub(super) in_hand: Arc<InHand>,
    pub(super) wish: watch::Sender<Wish>,
    pub(super) course: watch::Receiver<Course>,
}

impl Acknowledger for Acks {
    fn holds(&self, tag: u64) -> bool {
        self.in_hand.lock().contains_key(&tag)
    }

    fn ack(&self, tag: u64) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            let acker = self.take(tag)?;
            heard(acker.ack(BasicAckOptions::default()).await)
        })
    }

    fn nack(&self, tag: u64) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            let acker = self.take(tag)?;
            // RabbitMQ 4.3 and later count no `basic.nack`, and so would bring a message that kills workers for ever.
            heard(acker.reject(BasicRejectOptions { requeue: true }).await)
        })
    }

    fn cancel(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.wish.send_replace(Wish::NoMore);
            // An error means that the subscription has ended altogether.
            let _ = self.course.clone().wait_for(|course| *course != Course::Open).await;
        })
    }

    fn ended(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // An error means the same.
            let _ = self.course.clone().wait_for(|course| *course == Course::Over).await;
        })
    }
}

impl Acks {
    fn take(&self, tag: u64) -> Result<Acker, BrokerError> {
        self.in_hand.lock().remove(&tag).ok_or(BrokerError::Stale)
    }
}

/// Whether the broker has heard it: a channel that is gone takes no answers.
fn heard(result: lapin::Result<bool>) -> Result<(), BrokerError> {
    match result {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(BrokerError::Stale),
    }
}

/// The task behind a subscription.
struct Feed {
    managed: Arc<ManagedConnection>,
    state: watch::Receiver<ConnectionState>,
    connection: Arc<Connection>,
    channel: Channel,
    consumer: Consumer,
    deliveries: mpsc::Sender<Delivery>,
    in_hand: Arc<InHand>,
}

impl Feed {
    async fn run(mut self, mut wish: watch::Receiver<Wish>, course: watch::Sender<Course>) {
        let owner_stopped = loop {
            tokio::select! {
                // The owner wants no more, or is gone.
                _ = wish.wait_for(|wish| *wish == Wish::NoMore) => break true,
                () = self.deliveries.closed() => break true,
                () = self.managed.lost(&self.connection) => break false,
                step = deliver(&mut self.state, &mut self.consumer, &self.deliveries, &self.in_hand) => {
                    if step.is_break() {
                        break false;
                    }
                }
            }
        };
        if owner_stopped {
            self.stop().await;
        } else {
            // Before anybody is told of the end: none of it can be settled any more.
            self.in_hand.lock().clear();
        }
        let Self { managed, state: _, connection, channel, consumer, deliveries, in_hand } = self;
        drop(deliveries);
        if owner_stopped {
            course.send_replace(Course::Quiet);
            // What is in hand can be settled until the last owner lets go.
            tokio::select! {
                () = async { while wish.changed().await.is_ok() {} } => {}
                () = managed.lost(&connection) => {}
            }
        }
        drop(connection);
        in_hand.lock().clear();
        course.send_replace(Course::Over);
        drop(consumer);
        let goodbye = channel.close(200, "the subscription ends".into());
        if !matches!(tokio::time::timeout(GOODBYE, goodbye).await, Ok(Ok(()))) {
            tracing::debug!("the channel of a subscription was gone before it was closed");
        }
    }

    /// Tells the broker to send no more, and hands out what has come. To give it back is for the owner,
    /// who can do so without its being counted; what there is no room for goes back at once.
    async fn stop(&mut self) {
        let cancel = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        if !matches!(tokio::time::timeout(GOODBYE, cancel).await, Ok(Ok(()))) {
            return;
        }
        // The broker's answer has ended the stream behind the last delivery.
        while let Some(Ok(delivery)) = self.consumer.next().await {
            let (tag, acker) = (delivery.delivery_tag, delivery.acker.clone());
            self.in_hand.lock().insert(tag, acker.clone());
            if self.deliveries.try_send(properties::of_delivery(delivery)).is_err() {
                self.in_hand.lock().remove(&tag);
                let options = BasicNackOptions { requeue: true, ..Default::default() };
                // An error means that the channel is gone, and with it the delivery.
                let _ = acker.nack(options).await;
            }
        }
    }
}

/// Hands out the next delivery, once there is room for it. Safe to drop: it takes nothing off the
/// stream before it can hand it out. `Break` = the broker or the connection has ended the stream.
async fn deliver(
    state: &mut watch::Receiver<ConnectionState>,
    consumer: &mut Consumer,
    deliveries: &mpsc::Sender<Delivery>,
    in_hand: &InHand,
) -> ControlFlow<()> {
    // Nothing could come of it while the broker takes no messages, and giving it back would be counted.
    // An error means that the worker is about to end.
    let _ = state.wait_for(|state| state.blocked.is_none()).await;
    let Ok(room) = deliveries.reserve().await else { return ControlFlow::Break(()) };
    match consumer.next().await {
        Some(Ok(delivery)) => {
            in_hand.lock().insert(delivery.delivery_tag, delivery.acker.clone());
            room.send(properties::of_delivery(delivery));
            ControlFlow::Continue(())
        }
        Some(Err(error)) => {
            tracing::warn!(error = in_words(&error), "a subscription ended");
            ControlFlow::Break(())
        }
        None => {
            // It gives no reason.
            tracing::warn!(
                "the broker ended a subscription: its queue was deleted, its node stopped, or, with \
                 RabbitMQ 4.3 and later, a delivery was held for longer than the broker's \
                 `consumer_timeout`, which RABBITMQ_CONSUMER_TIMEOUT has to say (JOB_TIMEOUT stays below it)"
            );
            ControlFlow::Break(())
        }
    }
}
