//! The broker port on RabbitMQ.
//!
//! Two connections, one to consume and one to publish, so that a broker that throttles publishers
//! does not hold up acknowledgements. Each is a [`ManagedConnection`]: made anew for ever, with backoff, and with
//! the whole topology declared before anybody uses it. lapin's own recovery stays off: it does not
//! cover channel errors, and gives up without a word. The outcome ledger and the stream of
//! cancellations are read on one each.
//!
//! | file | what it does |
//! |---|---|
//! | `address.rs` | reads the URI, and prints it without the password |
//! | `connection.rs` | one connection that is kept up |
//! | `handshake.rs` | opens a connection, with a time limit that leaves nothing behind |
//! | `transport.rs`, `frames/` | stand between the socket and lapin, and make readable what it cannot decode |
//! | `declare.rs` | declares the topology, and lives with queues that exist already |
//! | `readiness.rs` | finds out whether the broker can be worked with |
//! | `publish.rs` | publishes and waits for the broker's confirm |
//! | `consume.rs` | a subscription and its settling |
//! | `backlog/` | requests that wait for their turn |
//! | `stream.rs` | a stream that is written and read as a whole |
//! | `outcome_stream/` | the outcome ledger, in a stream |
//! | `dead_letters.rs` | the dead queue, read without taking anything from it |
//! | `queues.rs` | what waits where, and lanes that are emptied, for the commands |
//! | `cancellations.rs` | what the cancel exchange hands out |
//! | `user.rs` | whose request it is, as a header carries it |
//! | `properties.rs` | messages to AMQP properties and back |
//!
//! A command that is over soon takes [`connect_once`] instead, and waits for nothing.

mod address;
mod backlog;
mod cancellations;
mod connection;
mod consume;
pub mod dead_letters;
mod declare;
mod frames;
mod handshake;
mod outcome_stream;
mod properties;
mod publish;
pub mod queues;
mod readiness;
mod stream;
pub mod topology;
mod transport;
mod user;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::{
    Backlog, Broker, BrokerError, Cancellation, DeadLetters, Message, OutcomeLedger, Place, Queue,
    Subscription,
};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use self::address::Address;
use self::backlog::Lanes;
use self::connection::{ManagedConnection, ManagedConnectionSettings, Side};
use self::declare::Declarer;
use self::handshake::Failure;
use self::properties::Outgoing;
use self::publish::Publisher;
pub use self::readiness::ConnectionState;
use self::readiness::Look;
use self::stream::{From, Stream};
use crate::broker::rabbitmq::topology::{QueueDeclaration, Topology};

/// The log directive that has to hold whatever else a log filter says. Below `error` lapin writes
/// whole messages (a returned one at `warn`, every frame at `trace`, the password's among them), and
/// builds carry credentials.
pub const LOG_DIRECTIVE: &str = "lapin=off";

/// What the adapter needs to know.
#[derive(Debug, Clone)]
pub struct RabbitSettings {
    /// `amqp://user:password@host:port/vhost`, or `amqps://`; `?heartbeat=` in seconds is honoured.
    pub uri: Secret,
    pub topology: Topology,
    /// How long the dead queue keeps a letter; `None` = no letters are kept.
    pub dead_ttl: Option<Duration>,
    /// How long a publish, or a subscription, waits for the broker: connection and confirm together.
    pub publish_timeout: Duration,
    /// Time for one attempt to connect, up to the negotiated connection.
    pub connect_timeout: Duration,
    /// How often the two sides show that they live, unless the URI says so; whole seconds. Silence of
    /// twice this long ends a connection.
    pub heartbeat: Duration,
    /// The connections' name in the management console; `consumer` or `publisher` is appended.
    pub connection_name: String,
}

impl RabbitSettings {
    /// The defaults: letters for 7 days, 30 s to publish, 15 s to connect, a heartbeat every 10 s,
    /// `image-builder <host>` for a name.
    pub fn new(uri: Secret, topology: Topology) -> Self {
        Self {
            uri,
            topology,
            dead_ttl: Some(Duration::from_secs(7 * 24 * 3600)),
            publish_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(15),
            heartbeat: Duration::from_secs(10),
            connection_name: format!("image-builder {}", host_name()),
        }
    }
}

/// Why the broker cannot be used, however long one waits. Holds no password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    #[error(
        "the broker's address cannot be read: {reason}; it is written \
         amqp://user:password@host:5672/%2f, with special characters percent-encoded"
    )]
    Address { reason: &'static str },
    #[error("the broker at {address} refused the connection for good: {reason}{hint}")]
    Refused { address: String, reason: String, hint: &'static str },
    #[error("{what} cannot be used: {reason}")]
    Topology { what: String, reason: String },
}

/// A RabbitMQ broker: the queues of one [`Topology`].
pub struct RabbitMq {
    consumer: Arc<ManagedConnection>,
    publisher: Arc<Publisher>,
    declarer: Arc<Declarer>,
    state: watch::Sender<ConnectionState>,
    look: Look,
    publish_timeout: Duration,
    dead_ttl: Option<Duration>,
    lanes: Arc<Lanes>,
    ledger: Arc<Stream>,
    cancelled: Arc<Stream>,
    /// Whether those who listen have what was cancelled before.
    cancelled_read: watch::Sender<bool>,
}

impl RabbitMq {
    /// Connects, and declares the topology. Waits for as long as the broker cannot be reached: a
    /// time limit is the caller's.
    ///
    /// # Errors
    /// What no waiting mends: an address that cannot be read, a credential or virtual host that the
    /// broker refuses, a queue that exists and cannot be used.
    pub async fn connect(settings: RabbitSettings) -> Result<Self, ConnectError> {
        let address = Address::parse(settings.uri.expose(), settings.heartbeat)?;
        let declarer = Arc::new(Declarer::new(settings.topology));
        let consumed = [Queue::Build, Queue::Fail, Queue::Outcome];
        let consumed = consumed.into_iter().filter_map(|queue| declarer.topology().queue(queue));
        let state = watch::Sender::new(ConnectionState::down(consumed));
        let connect = |side| {
            ManagedConnection::open(ManagedConnectionSettings {
                address: address.clone(),
                name: format!("{} {side}", settings.connection_name),
                connect_timeout: settings.connect_timeout,
                declarer: declarer.clone(),
                state: state.clone(),
                side,
            })
        };
        // One after the other: the second finds the queues that the first has declared.
        let publisher = Arc::new(connect(Side::Publisher).await?);
        let consumer = Arc::new(connect(Side::Consumer).await?);
        let publish_timeout = settings.publish_timeout;
        let look = Look::new(state.subscribe(), publisher.clone());
        let publisher = Arc::new(Publisher::new(publisher, declarer.clone(), publish_timeout));
        let stream = |declaration: &QueueDeclaration, purpose, from| Stream {
            declaration: declaration.clone(),
            bound_to: None,
            from,
            publisher: publisher.clone(),
            address: address.clone(),
            connection: format!("{} {purpose}", settings.connection_name),
            limit: settings.connect_timeout,
            stop: watch::Sender::new(false),
        };
        let topology = declarer.topology();
        let ledger = Arc::new(stream(topology.ledger(), "ledger", From::Beginning));
        let since = From::Ago(cancellations::MEMORY);
        let cancelled = Arc::new(Stream {
            bound_to: Some(topology.cancel_exchange().to_owned()),
            ..stream(topology.cancellations(), "cancellations", since)
        });
        // From now on it keeps what is cancelled, whether a worker is there or not.
        if let Err(error) = cancelled.declare().await {
            cancellations::warn(&error.to_string());
        }
        let lanes = Lanes::new(publisher.clone(), declarer.clone());
        let dead_ttl = settings.dead_ttl;
        Ok(Self {
            consumer,
            publisher,
            declarer,
            state,
            look,
            publish_timeout,
            dead_ttl,
            lanes,
            ledger,
            cancelled,
            cancelled_read: watch::Sender::new(false),
        })
    }

    /// The outcome ledger, which is read from now on.
    pub fn outcome_ledger(&self) -> Arc<dyn OutcomeLedger> {
        outcome_stream::ledger(self.ledger.clone())
    }

    /// The state of the connections.
    pub fn connected(&self) -> watch::Receiver<ConnectionState> {
        self.state.subscribe()
    }
}

impl Broker for RabbitMq {
    fn look(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.look.look())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.ledger.close();
            self.cancelled.close();
            self.consumer.close().await;
            self.publisher.managed().close().await;
        })
    }

    fn consume(
        &self,
        queue: Queue,
        window: u16,
    ) -> BoxFuture<'_, Result<Subscription, BrokerError>> {
        Box::pin(async move {
            let name = self.declarer.topology().queue(queue).filter(|_| queue != Queue::Result);
            let name = name.ok_or_else(|| {
                BrokerError::Refused("nobody consumes results in this program".to_owned())
            })?;
            let subscribed = timeout(
                self.publish_timeout,
                consume::consume(&self.consumer, &self.state, &self.declarer, name, window),
            )
            .await
            .unwrap_or_else(|_| Err(too_slow("subscribe", name, self.publish_timeout)));
            self.state.send_modify(|state| {
                match &subscribed {
                    Ok(_) => state.not_consumed.remove(name),
                    Err(error) => state.not_consumed.insert(name.to_owned(), error.to_string()),
                };
            });
            subscribed
        })
    }

    fn publish(
        &self,
        queue: Queue,
        message: Message,
        delay: Duration,
    ) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            message.check()?;
            queue.check_delay(delay)?;
            match self.declarer.topology().routing_key(queue, delay) {
                Some(key) => self.publisher.publish(&key, message).await,
                None => Ok(()),
            }
        })
    }

    fn enqueue(&self, message: Message, place: Place) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            message.check()?;
            self.lanes.enqueue(message, place).await
        })
    }

    fn backlog(&self) -> BoxFuture<'_, Result<Backlog, BrokerError>> {
        Box::pin(async move {
            timeout(self.publish_timeout, self.lanes.open(&self.consumer, self.state.subscribe()))
                .await
                .unwrap_or_else(|_| Err(too_slow("open", "the backlog", self.publish_timeout)))
        })
    }

    fn waiting(&self) -> BoxFuture<'_, Result<u64, BrokerError>> {
        Box::pin(async move {
            timeout(self.publish_timeout, self.lanes.waiting())
                .await
                .unwrap_or_else(|_| Err(too_slow("count", "the backlog", self.publish_timeout)))
        })
    }

    fn workers(&self) -> BoxFuture<'_, Result<u64, BrokerError>> {
        Box::pin(async move {
            timeout(self.publish_timeout, self.lanes.workers())
                .await
                .unwrap_or_else(|_| Err(too_slow("count", "the workers", self.publish_timeout)))
        })
    }

    fn cancellations_read(&self) -> BoxFuture<'_, ()> {
        Box::pin(cancellations::until_read(&self.cancelled_read))
    }

    fn cancel<'a>(&'a self, build: &'a BuildIdentity) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            let message = Message { body: Cancellation::body_of(build), ..Message::default() };
            self.publisher.broadcast(self.declarer.topology().cancel_exchange(), message).await
        })
    }

    fn cancellations(&self) -> mpsc::Receiver<Cancellation> {
        let (consumer, declarer) = (self.consumer.clone(), self.declarer.clone());
        cancellations::listen(
            consumer,
            declarer,
            self.cancelled.clone(),
            self.cancelled_read.clone(),
        )
    }
}

impl DeadLetters for RabbitMq {
    fn keep<'a>(&'a self, letter: &'a DeadLetter) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            if self.dead_ttl.is_none() {
                return Ok(());
            }
            let message = Message {
                body: letter.to_json(),
                message_id: Some(letter.build_id.clone()),
                timestamp: Some(OffsetDateTime::now_utc()),
                ..Message::default()
            };
            let outgoing =
                Outgoing { message, expires_after: self.dead_ttl, ..Outgoing::default() };
            let queue = self.declarer.topology().dead_queue();
            self.publisher.publish(&queue.name, outgoing).await
        })
    }
}

/// Why one attempt to connect failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum ConnectOnceError {
    /// Another attempt may do.
    #[error("cannot reach the broker at {address}: {reason}")]
    Unreachable { address: String, reason: String },
    #[error(transparent)]
    Refused(#[from] ConnectError),
}

/// Connects, in one attempt of at most `limit`, and declares nothing. `purpose` is appended to the
/// connection's name.
///
/// # Errors
/// The broker cannot be reached, or will not be used however long one waits.
async fn connect_once(
    settings: &RabbitSettings,
    purpose: &str,
    limit: Duration,
) -> Result<lapin::Connection, ConnectOnceError> {
    let address = Address::parse(settings.uri.expose(), settings.heartbeat)?;
    let name = format!("{} {purpose}", settings.connection_name);
    handshake::connect(&address, &name, limit).await.map_err(|failure| match failure {
        Failure::Temporary(reason) => {
            ConnectOnceError::Unreachable { address: address.to_string(), reason }
        }
        Failure::Permanent(error) => error.into(),
    })
}

fn too_slow(what: &str, queue: &str, limit: Duration) -> BrokerError {
    BrokerError::Unavailable(format!("it did not {what} `{queue}` within {limit:?}"))
}

/// The machine's name, for people who look at the broker's list of connections.
pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown-host".to_owned())
}
