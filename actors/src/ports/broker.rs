//! The broker port: durable queues that all workers share.
//!
//! What every broker promises; each line is a behaviour of `testing::conformance::broker`:
//!
//! - A message arrives as it was published: body, id, time (to the second), trace context, envelope.
//!   An envelope, an id or a trace context that is too long for it is refused, and harms no other message.
//! - Of a message that somebody else has published, what is longer than a worker's own may be is left out.
//! - A message whose properties cannot be read is delivered with its body, and says so; it harms no other.
//! - A publish returns once the message is durable. A queue that is gone never swallows a message.
//! - Messages come in the order of their publishing; a delayed one not before its delay is over.
//! - At most `window` deliveries of a subscription are unsettled at once.
//! - What is acked never comes again; what is nacked, or was in hand when the subscription or the
//!   connection ended, comes again and says how often it was delivered before.
//! - A settled delivery cannot be settled again, nor one whose connection was lost.
//! - A build that was delivered [`DELIVERY_LIMIT`] times in vain, from the build queue or from the backlog,
//!   moves to the fail queue, and says so. From no other queue does the broker take anything.
//! - The backlog gives each request to one taker, and never one of a user who has as many in hand as is
//!   allowed. Whoever has few in hand comes before whoever has many, however many of the latter's wait: a
//!   single request behind a flood is given to the next taker.
//! - Nobody waits for long behind those of a user who may have no more.
//! - A taker that found nothing hears of what is put in the backlog afterwards, by whichever worker.
//! - What only waits in the backlog is in nobody's hands: no worker's death is counted against it.
//! - After a cancel nothing new comes. What had come is received and what is in hand can be settled.
//! - Every listener hears a cancellation, whoever sent it.
//! - Workers that take requests are counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::mpsc;

use crate::model::identity::BuildIdentity;

/// How often a build is delivered again, without having been settled, before the broker gives it up.
pub const DELIVERY_LIMIT: u64 = 20;

/// The longest id of a message, in bytes.
pub const LONGEST_ID: usize = 255;

/// The longest envelope of a message, in bytes.
pub const LONGEST_ENVELOPE: usize = 130_000;

/// The longest trace context of a message, in bytes; today's have 55.
pub const LONGEST_TRACEPARENT: usize = 128;

/// A queue of the deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Queue {
    /// Requests, as they are published: to be read, and put in the backlog. A publish to it may be
    /// delayed.
    Build,
    /// Failed tries, and builds that the broker gave up.
    Fail,
    /// Outcomes that wait to be notified. A publish to it may be delayed.
    Outcome,
    /// Outcomes for whoever prefers them here. Nobody consumes it in this program, and a publish is taken
    /// and forgotten where the deployment has no such queue.
    Result,
}

impl Queue {
    /// Whether a publish to it may be delayed for so long.
    ///
    /// # Errors
    /// [`BrokerError::Refused`]: it knows no delay.
    pub fn check_delay(self, delay: Duration) -> Result<(), BrokerError> {
        match self {
            Queue::Build | Queue::Outcome => Ok(()),
            Queue::Fail | Queue::Result if delay.is_zero() => Ok(()),
            Queue::Fail | Queue::Result => {
                Err(BrokerError::Refused(format!("{self:?} knows no delay")))
            }
        }
    }
}

/// A message, as it is published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub body: Vec<u8>,
    /// Empty is none.
    pub message_id: Option<String>,
    pub timestamp: Option<OffsetDateTime>,
    /// The W3C trace context.
    pub traceparent: Option<String>,
    /// What the workers know of the message, opaque to the broker; `None` = no worker has published it.
    pub envelope: Option<String>,
}

impl Message {
    /// Whether every broker can carry it.
    ///
    /// # Errors
    /// [`BrokerError::Refused`], with what is too long.
    pub fn check(&self) -> Result<(), BrokerError> {
        let parts = [
            ("message id", &self.message_id, LONGEST_ID),
            ("envelope", &self.envelope, LONGEST_ENVELOPE),
            ("trace context", &self.traceparent, LONGEST_TRACEPARENT),
        ];
        for (name, part, longest) in parts {
            let length = part.as_ref().map_or(0, String::len);
            if length > longest {
                let text = format!("its {name} is {length} bytes long; the longest is {longest}");
                return Err(BrokerError::Refused(text));
            }
        }
        Ok(())
    }
}

/// A message that was delivered and waits to be settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub message: Message,
    /// Names the delivery within its subscription.
    pub tag: u64,
    /// How often the message was delivered before without being settled.
    pub redeliveries: u64,
    /// Whether the broker itself moved it to this queue, since it was delivered too often.
    pub given_up: bool,
    /// Whether what the message carries beside its body cannot be read; then the message has nothing of it.
    pub is_unreadable: bool,
    /// Which publishing of the message this is: 0 = the first; others were made since the broker's answer to
    /// those before was lost, which may all be in the queue as well.
    pub publishing: u64,
}

/// A subscription: deliveries until the broker or the connection ends it (`None`), and the means to settle
/// them.
pub struct Subscription {
    pub deliveries: mpsc::Receiver<Delivery>,
    pub acks: Arc<dyn Acknowledger>,
}

/// Settles the deliveries of one subscription. After the subscription's end every call fails, and
/// the broker delivers again what was not settled.
pub trait Acknowledger: Send + Sync {
    /// Whether the delivery can still be settled, as far as is known here. One that cannot is
    /// delivered again whatever is done about this one.
    fn holds(&self, tag: u64) -> bool;
    /// The delivery is done with.
    fn ack(&self, tag: u64) -> BoxFuture<'_, Result<(), BrokerError>>;
    /// The delivery goes back to its queue.
    fn nack(&self, tag: u64) -> BoxFuture<'_, Result<(), BrokerError>>;
    /// No further deliveries; those in hand can still be settled. What had come by then is still
    /// received, for its owner to give back, before the deliveries end.
    fn cancel(&self) -> BoxFuture<'_, ()>;
    /// Waits until nothing of the subscription can be settled any more.
    fn ended(&self) -> BoxFuture<'_, ()>;
}

/// Where a request waits in the backlog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Whose turn it waits for.
    pub user_id: String,
    /// Whether it was worked on before: then it comes before what its user asked for later.
    pub returned: bool,
}

/// What a taker's own worker has in hand: how many builds of which user, and how many one user may
/// have there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    pub builds: HashMap<String, usize>,
    pub most_per_user: usize,
    /// Whether a request is wanted only if it is no trouble to find: then none may be found though there is one.
    pub at_hand: bool,
}

impl Load {
    /// How many builds of a user are in hand.
    pub fn of(&self, user_id: &str) -> usize {
        self.builds.get(user_id).copied().unwrap_or(0)
    }

    /// Whether a user may have one more.
    pub fn admits(&self, user_id: &str) -> bool {
        self.of(user_id) < self.most_per_user
    }
}

/// The backlog, opened: requests, one at a time and each when it is asked for, and the means to settle
/// them. It stands until the connection is lost.
pub struct Backlog {
    pub taker: Box<dyn Taker>,
    pub acks: Arc<dyn Acknowledger>,
}

/// A request that was taken out of the backlog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// As it was put in; empty where that is not known any more.
    pub user_id: String,
    pub delivery: Delivery,
}

/// Takes requests out of the backlog.
pub trait Taker: Send {
    /// The request whose turn it is, for a worker with this load; `None` = none waits that it may have. Is
    /// not to be dropped half-way: what it was about to give would stay in hand.
    ///
    /// # Errors
    /// The connection is lost: the backlog is to be opened anew.
    fn take<'a>(&'a mut self, load: &'a Load) -> BoxFuture<'a, Result<Option<Turn>, BrokerError>>;

    /// Waits until something may have been put in the backlog since the last [`Taker::take`] began. Safe to
    /// drop. Returns as well where that cannot be told any more, as on a lost connection.
    fn arrived(&mut self) -> BoxFuture<'_, ()>;
}

/// What somebody wants to be stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancellation {
    pub body: Vec<u8>,
    /// When it was sent, as far as is known: never earlier than it was, and later by seconds at most where a
    /// worker was there to hear it; else it is the time when the next one came.
    pub at: OffsetDateTime,
}

impl Cancellation {
    /// The body that asks to stop a build: of one user, or one whose id a worker gave.
    pub fn body_of(build: &BuildIdentity) -> Vec<u8> {
        let mut body = json!({"buildID": build.build_id});
        if let Some(user_id) = &build.user_id {
            body["userID"] = json!(user_id);
        }
        body.to_string().into_bytes()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The broker cannot be reached, or did not confirm in time: it may or may not have the message.
    #[error("the broker is not available: {0}")]
    Unavailable(String),
    /// The broker refused or returned the message.
    #[error("the broker did not take the message: {0}")]
    Refused(String),
    /// The delivery's connection is gone; the broker will deliver it again.
    #[error("the delivery is stale: its channel is gone")]
    Stale,
}

/// Durable queues.
pub trait Broker: Send + Sync + 'static {
    /// Subscribes to a queue, with at most `window` unsettled deliveries at once.
    fn consume(
        &self,
        queue: Queue,
        window: u16,
    ) -> BoxFuture<'_, Result<Subscription, BrokerError>>;

    /// Publishes durably: returns once the broker has confirmed that the message is in its queue.
    ///
    /// It is delivered after `delay` at the earliest; an adapter may wait a little longer, and no longer
    /// than for the longest delay that the deployment has set. Only builds and outcomes are delayed: for
    /// another queue a delay is refused.
    fn publish(
        &self,
        queue: Queue,
        message: Message,
        delay: Duration,
    ) -> BoxFuture<'_, Result<(), BrokerError>>;

    /// Puts a request in the backlog, durably: returns once the broker has confirmed it.
    fn enqueue(&self, message: Message, place: Place) -> BoxFuture<'_, Result<(), BrokerError>>;

    /// Opens the backlog.
    fn backlog(&self) -> BoxFuture<'_, Result<Backlog, BrokerError>>;

    /// How many requests wait at the moment, in the build queue and in the backlog, for all workers.
    fn waiting(&self) -> BoxFuture<'_, Result<u64, BrokerError>>;

    /// How many workers take requests at the moment, this one included.
    fn workers(&self) -> BoxFuture<'_, Result<u64, BrokerError>>;

    /// Whether messages can be taken from the broker and given to it.
    ///
    /// # Errors
    /// Why not, in words for an operator.
    fn look(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Lets go of the broker: what is not settled goes back to its queue. To be called before the runtime
    /// ends. Everything that is asked of the broker afterwards fails.
    fn close(&self) -> BoxFuture<'_, ()>;

    /// Asks every worker to stop a build: returns once that is kept for all who listen.
    fn cancel<'a>(&'a self, build: &'a BuildIdentity) -> BoxFuture<'a, Result<(), BrokerError>>;

    /// All cancellations of the last day and from now on, until the receiver is dropped: also
    /// of those that were sent while no worker was there. One may come more than once.
    fn cancellations(&self) -> mpsc::Receiver<Cancellation>;

    /// Waits until those who listen for cancellations have what was sent before they listened, or before the
    /// connection was made anew; not for long, where that cannot be had.
    fn cancellations_read(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
