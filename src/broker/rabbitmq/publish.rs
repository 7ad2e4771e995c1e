//! Publishing: persistent, mandatory, and done only when the broker has confirmed it.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use image_builder_actors::ports::BrokerError;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::AMQPSoftError;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::Semaphore;

use super::connection::{ManagedConnection, pause, pauses};
use super::declare::{Declarer, soft_error};
use super::handshake::{Failure, in_words};
use super::properties::Outgoing;
use super::{properties, too_slow};

/// Publishes under way at once, each on a channel of its own; further ones wait for a turn. More are no
/// faster.
const MOST_AT_ONCE: usize = 128;

/// A channel that no publish needed for so long is closed: a burst leaves nothing behind.
const IDLE: Duration = Duration::from_secs(20);

/// Publishes over one connection, each message on a channel that it has to itself.
///
/// A channel of its own, for the time of one message, is what makes the answer certain: the broker's
/// return of an unroutable message carries no number, and lapin gives it to whichever confirm comes
/// next on that channel. It also lets no slow confirm hold back another publish.
pub(super) struct Publisher {
    managed: Arc<ManagedConnection>,
    declarer: Arc<Declarer>,
    limit: Duration,
    idle: Arc<IdleChannels>,
    turns: Semaphore,
}

/// Channels in confirm mode for the next publishes. The one that was used last is used next.
#[derive(Default)]
struct IdleChannels(Mutex<Vec<IdleChannel>>);

struct IdleChannel {
    connection: Arc<Connection>,
    channel: Channel,
    since: Instant,
}

impl IdleChannels {
    fn push(&self, connection: Arc<Connection>, channel: Channel) {
        let idle = IdleChannel { connection, channel, since: Instant::now() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(idle);
    }

    /// A channel of this connection that still stands; what does not is let go of.
    fn pop(&self, connection: &Arc<Connection>) -> Option<Channel> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(IdleChannel { connection: of, channel, .. }) = idle.pop() {
            if Arc::ptr_eq(&of, connection) && channel.status().connected() {
                return Some(channel);
            }
        }
        None
    }

    /// Closes what nobody needed for a while, again and again, until the publisher is gone.
    async fn close_unused(this: Weak<Self>) {
        let mut ticks = tokio::time::interval(IDLE / 2);
        loop {
            ticks.tick().await;
            let Some(idle) = this.upgrade() else { return };
            // A channel that is dropped closes itself.
            let mut idle = idle.0.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|channel| channel.since.elapsed() < IDLE);
        }
    }
}

/// Where a message goes.
#[derive(Debug, Clone, Copy)]
enum Destination<'a> {
    Queue(&'a str),
    /// One that hands out to all who are bound to it.
    Exchange(&'a str),
}

impl<'a> Destination<'a> {
    fn name(self) -> &'a str {
        let (Self::Queue(name) | Self::Exchange(name)) = self;
        name
    }

    /// The exchange, and the routing key there.
    fn address(self) -> (&'a str, &'a str) {
        match self {
            Self::Queue(name) => ("", name),
            Self::Exchange(name) => (name, ""),
        }
    }
}

/// What the broker said to one message.
enum Answer {
    Confirmed,
    /// There is no such queue.
    Returned(String),
    /// The queue could not take it.
    Refused,
}

impl Publisher {
    pub(super) fn new(
        managed: Arc<ManagedConnection>,
        declarer: Arc<Declarer>,
        limit: Duration,
    ) -> Self {
        let idle = Arc::<IdleChannels>::default();
        tokio::spawn(IdleChannels::close_unused(Arc::downgrade(&idle)));
        Self { managed, declarer, limit, idle, turns: Semaphore::new(MOST_AT_ONCE) }
    }

    pub(super) fn managed(&self) -> &ManagedConnection {
        &self.managed
    }

    /// Publishes, and returns when the message is safe in its queue. One that is gone is declared again.
    pub(super) async fn publish(
        &self,
        queue: &str,
        outgoing: impl Into<Outgoing>,
    ) -> Result<(), BrokerError> {
        self.within_limit(Destination::Queue(queue), outgoing.into(), true).await
    }

    /// The same, to a queue that its readers declare.
    pub(super) async fn append(
        &self,
        queue: &str,
        outgoing: impl Into<Outgoing>,
    ) -> Result<(), BrokerError> {
        self.within_limit(Destination::Queue(queue), outgoing.into(), false).await
    }

    /// Publishes to all who are bound to an exchange, and returns when the message is safe in their queues.
    pub(super) async fn broadcast(
        &self,
        exchange: &str,
        outgoing: impl Into<Outgoing>,
    ) -> Result<(), BrokerError> {
        self.within_limit(Destination::Exchange(exchange), outgoing.into(), true).await
    }

    /// Tells all that listen to an exchange, however long that takes; returns once the broker has heard it, or
    /// is not to be spoken to any more.
    pub(super) async fn ring(&self, exchange: &str) {
        let (mut pauses, mut declares) = (pauses(), true);
        loop {
            let Some(connection) = self.managed.current().await else { return };
            let rung = tokio::select! {
                rung = self.ring_once(&connection, exchange) => rung,
                () = self.managed.lost(&connection) => continue,
            };
            let Err(error) = rung else { return };
            tracing::debug!(exchange, %error, "cannot ring");
            match soft_error(&error) {
                Some((AMQPSoftError::NOTFOUND, _)) if declares => {
                    let _ = self.declare_again(exchange).await;
                    declares = false;
                }
                // There is no bell for this worker: others look by themselves, a little later.
                Some(_) => return,
                None => {}
            }
            pause(&mut pauses).await;
        }
    }

    async fn ring_once(&self, connection: &Arc<Connection>, exchange: &str) -> lapin::Result<()> {
        let channel = self.channel(connection).await?;
        let (options, none) = (BasicPublishOptions::default(), BasicProperties::default());
        channel.basic_publish(exchange.into(), "".into(), options, &[], none).await?.await?;
        self.idle.push(connection.clone(), channel);
        Ok(())
    }

    async fn within_limit(
        &self,
        to: Destination<'_>,
        outgoing: Outgoing,
        declares: bool,
    ) -> Result<(), BrokerError> {
        let confirmed = self.until_confirmed(to, outgoing, declares);
        tokio::time::timeout(self.limit, confirmed)
            .await
            .unwrap_or_else(|_| Err(too_slow("confirm a message for", to.name(), self.limit)))
    }

    /// Tries until the broker has said something about the message. A try whose answer was lost is
    /// made again: a duplicate is repaired, a loss is not.
    async fn until_confirmed(
        &self,
        to: Destination<'_>,
        mut outgoing: Outgoing,
        mut declares: bool,
    ) -> Result<(), BrokerError> {
        let queue = to.name();
        let _turn = self.turns.acquire().await.map_err(closed)?;
        let mut pauses = pauses();
        loop {
            let answer = self.attempt(to, &outgoing).await.or_else(|attempt| match attempt {
                Attempt::Gone(reason) => Ok(Answer::Returned(reason)),
                other => Err(other),
            });
            match answer {
                Ok(Answer::Confirmed) => return Ok(()),
                // The queue of one that listens there has just gone, with its worker: all others have the message.
                Ok(Answer::Refused) if matches!(to, Destination::Exchange(_)) => {
                    outgoing.publishing += 1;
                    pause(&mut pauses).await;
                }
                Ok(Answer::Refused) => {
                    let text = format!("the queue `{queue}` is full or has lost its nodes");
                    return Err(BrokerError::Unavailable(text));
                }
                Ok(Answer::Returned(reason)) if !declares => {
                    return Err(match to {
                        Destination::Queue(_) => {
                            BrokerError::Refused(format!("there is no queue `{queue}` ({reason})"))
                        }
                        Destination::Exchange(_) => BrokerError::Unavailable(format!(
                            "nobody listens at `{queue}` at the moment ({reason})"
                        )),
                    });
                }
                Ok(Answer::Returned(_)) => {
                    tracing::warn!(queue, "the queue is gone: declaring all queues again");
                    self.declare_again(queue).await?;
                    declares = false;
                }
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Again(error) | Attempt::Gone(error)) => {
                    tracing::debug!(queue, %error, "publishing again on a new channel");
                    outgoing.publishing += 1;
                    pause(&mut pauses).await;
                }
            }
        }
    }

    async fn attempt(&self, to: Destination<'_>, outgoing: &Outgoing) -> Result<Answer, Attempt> {
        let connection = self.managed.current().await.ok_or_else(|| Attempt::Final(closed(())))?;
        tokio::select! {
            answer = self.send(&connection, to, outgoing) => answer,
            () = self.managed.lost(&connection) => {
                Err(Attempt::Again("the connection was lost".to_owned()))
            }
        }
    }

    async fn send(
        &self,
        connection: &Arc<Connection>,
        to: Destination<'_>,
        outgoing: &Outgoing,
    ) -> Result<Answer, Attempt> {
        let properties = properties::of_message(outgoing, connection.configuration().frame_max())
            .map_err(|reason| Attempt::Final(BrokerError::Refused(reason)))?;
        let channel = self.channel(connection).await?;
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let (exchange, key) = to.address();
        let confirm = channel
            .basic_publish(exchange.into(), key.into(), options, &outgoing.message.body, properties)
            .await?;
        let answer = match confirm.await? {
            Confirmation::Ack(None) => Answer::Confirmed,
            Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                Answer::Returned(returned.reply_text.to_string())
            }
            Confirmation::Nack(None) => Answer::Refused,
            Confirmation::NotRequested => {
                return Err(Attempt::Again("the channel is not in confirm mode".to_owned()));
            }
        };
        // Only a channel without a message under way may be used again. A future that is dropped
        // before this drops its channel, which closes it.
        self.idle.push(connection.clone(), channel);
        Ok(answer)
    }

    /// A channel in confirm mode that nobody else uses.
    async fn channel(&self, connection: &Arc<Connection>) -> lapin::Result<Channel> {
        if let Some(channel) = self.idle.pop(connection) {
            return Ok(channel);
        }
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    async fn declare_again(&self, queue: &str) -> Result<(), BrokerError> {
        let connection = self.managed.current().await.ok_or_else(|| closed(()))?;
        self.declarer.declare(&connection).await.or_else(|failure| match failure {
            // The next attempt finds out how the broker does.
            Failure::Temporary(_) => Ok(()),
            Failure::Permanent(error) => Err(BrokerError::Refused(format!(
                "there is no queue `{queue}`, and it cannot be declared: {error}"
            ))),
        })
    }
}

/// A try without an answer from the broker.
enum Attempt {
    /// Another try may do.
    Again(String),
    /// There is no such exchange.
    Gone(String),
    Final(BrokerError),
}

impl From<lapin::Error> for Attempt {
    fn from(error: lapin::Error) -> Self {
        match soft_error(&error) {
            // The message itself is at fault: too large, or not allowed. It would cost a channel
            // again and again.
            Some((AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::ACCESSREFUSED, text)) => {
                Attempt::Final(BrokerError::Refused(text.to_owned()))
            }
            Some((AMQPSoftError::NOTFOUND, text)) => Attempt::Gone(text.to_owned()),
            _ => Attempt::Again(in_words(&error)),
        }
    }
}

fn closed<T>(_: T) -> BrokerError {
    BrokerError::Unavailable("the connection was closed by this worker".to_owned())
}
