//! The broker port: a durable queueing system.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use time::OffsetDateTime;
use tokio::sync::mpsc;

/// A queue that an actor consumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Queue {
    Build,
    Fail,
    Outcome,
}

/// Where a message is published to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    Build,
    /// Back to the build queue, after a delay that is one of the ladder's rungs.
    BuildAfter(Duration),
    Fail,
    Outcome,
    /// Back to the outcome queue, after a delay that is one of the ladder's rungs.
    OutcomeAfter(Duration),
    Dead,
    Result,
    /// The log of told outcomes, see [`Broker::follow`].
    Told,
}

/// The header that an adapter adds to a message that it publishes once more, since the broker's answer
/// to the first time was lost: the number of times before. Both may be in the queue.
pub const REPEATED: &str = "x-image-builder-repeated";

/// A message as the inside sees it: a body and a few properties.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub body: Vec<u8>,
    pub message_id: Option<String>,
    pub timestamp: Option<OffsetDateTime>,
    /// Headers with a text for a value. The broker's own (`x-death`, `x-delivery-count`) are not here.
    pub headers: BTreeMap<String, String>,
    /// How long a queue keeps it at the most; `None` = for ever.
    pub expires_after: Option<Duration>,
}

/// A message that was delivered and waits to be settled.
#[derive(Debug)]
pub struct RawDelivery {
    pub message: Message,
    /// The broker's name for this delivery on its channel.
    pub tag: u64,
    /// How often it was delivered before without being settled.
    pub redeliveries: u64,
    /// Whether the broker itself put it here because it was delivered too often.
    pub over_delivery_limit: bool,
}

/// A subscription: deliveries until the broker or the connection ends it (`None`), and their settling.
pub struct Subscription {
    pub deliveries: mpsc::Receiver<RawDelivery>,
    pub settle: Arc<dyn Settle>,
}

/// Settles the deliveries of one subscription. After the subscription's end every call fails, and
/// the broker delivers again what was not settled.
#[async_trait]
pub trait Settle: Send + Sync {
    /// Whether the delivery can still be settled, as far as is known here. One that cannot is
    /// delivered again whatever is done about this one.
    fn holds(&self, tag: u64) -> bool;
    /// The delivery is done with.
    async fn ack(&self, tag: u64) -> Result<(), BrokerError>;
    /// The delivery goes back to its queue.
    async fn nack(&self, tag: u64) -> Result<(), BrokerError>;
    /// No further deliveries; those in hand can still be settled. What had come by then is still
    /// received, for its owner to give back, before the deliveries end.
    async fn cancel(&self);
    /// Waits until nothing of the subscription can be settled any more.
    async fn ended(&self);
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The broker cannot be reached, or did not confirm in time: it may or may not have the message.
    #[error("the broker is not available: {0}")]
    Unavailable(String),
    /// The broker refused or returned the message.
    #[error("the broker did not take the message: {0}")]
    Refused(String),
    /// The delivery's channel is gone; the broker will deliver it again.
    #[error("the delivery is stale: its channel is gone")]
    Stale,
}

/// A durable queueing system.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Subscribes to a queue, with at most `prefetch` unsettled deliveries at once.
    async fn subscribe(&self, queue: Queue, prefetch: u16) -> Result<Subscription, BrokerError>;

    /// Publishes durably: returns once the broker has confirmed that the message is in its queue.
    async fn publish(&self, route: Route, message: Message) -> Result<(), BrokerError>;

    /// Reads the log of told outcomes: the bodies of all that it has, and then of what is added. Every
    /// follower gets them in the same order. What is older than some days may be missing.
    ///
    /// # Errors
    /// [`BrokerError::Refused`]: there is no such log for now, though the broker answers.
    async fn follow(&self) -> Result<mpsc::Receiver<Vec<u8>>, BrokerError>;
}
