//! The broker port on RabbitMQ.
//!
//! Two connections, one to consume and one to publish, so that a broker that throttles publishers
//! does not hold up acknowledgements. Each is a [`ManagedConnection`]: made anew for ever, with backoff, and with
//! the whole topology declared before anybody uses it. lapin's own recovery stays off: it does not
//! cover channel errors, and gives up without a word. The outcome ledger is read on a third.
//!
//! | file | what it does |
//! |---|---|
//! | `address.rs` | reads the URI, and prints it without the password |
//! | `connection.rs` | one connection that is kept up |
//! | `handshake.rs` | opens a connection, with a time limit that leaves nothing behind |
//! | `declare.rs` | declares the topology, and lives with queues that exist already |
//! | `publish.rs` | publishes and waits for the broker's confirm |
//! | `consume.rs` | a subscription and its settling |
//! | `outcome_stream/` | the outcome ledger, in a stream |
//! | `dead_letters.rs` | the dead queue, read without taking anything from it |
//! | `cancellations.rs` | the bodies that the cancel exchange hands out |
//! | `properties.rs` | messages to AMQP properties and back |
//!
//! A command that is over soon takes [`connect_once`] instead, and waits for nothing.

mod address;
mod cancellations;
mod connection;
mod consume;
pub mod dead_letters;
mod declare;
mod handshake;
mod outcome_stream;
mod properties;
mod publish;
pub mod topology;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::{
    Broker, BrokerError, DeadLetters, Message, OutcomeLedger, Queue, Subscription,
};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use self::address::Address;
use self::connection::{ManagedConnection, ManagedConnectionSettings, Side};
use self::declare::Declarer;
use self::handshake::Failure;
use self::outcome_stream::Stream;
use self::properties::Outgoing;
use self::publish::Publisher;
use crate::broker::rabbitmq::topology::Topology;

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

/// Whether the broker can be worked with, and since when that is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionState {
    pub consuming: bool,
    pub publishing: bool,
    /// When one of the two last changed.
    pub since: Instant,
}

impl ConnectionState {
    /// Whether both connections are up.
    pub fn connected(&self) -> bool {
        self.consuming && self.publishing
    }
}

/// A RabbitMQ broker: the queues of one [`Topology`].
pub struct RabbitMq {
    consumer: Arc<ManagedConnection>,
    publisher: Arc<Publisher>,
    declarer: Arc<Declarer>,
    state: watch::Receiver<ConnectionState>,
    publish_timeout: Duration,
    dead_ttl: Option<Duration>,
    stream: Arc<Stream>,
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
        let down = ConnectionState { consuming: false, publishing: false, since: Instant::now() };
        let (state_in, state) = watch::channel(down);
        let connect = |side| {
            ManagedConnection::open(ManagedConnectionSettings {
                address: address.clone(),
                name: format!("{} {side}", settings.connection_name),
                connect_timeout: settings.connect_timeout,
                declarer: declarer.clone(),
                state: state_in.clone(),
                side,
            })
        };
        // One after the other: the second finds the queues that the first has declared.
        let publisher = Arc::new(connect(Side::Publisher).await?);
        let consumer = Arc::new(connect(Side::Consumer).await?);
        let publish_timeout = settings.publish_timeout;
        let publisher = Arc::new(Publisher::new(publisher, declarer.clone(), publish_timeout));
        let stream = Arc::new(Stream::new(
            declarer.topology().ledger().clone(),
            publisher.clone(),
            address,
            format!("{} ledger", settings.connection_name),
            settings.connect_timeout,
        ));
        let dead_ttl = settings.dead_ttl;
        Ok(Self { consumer, publisher, declarer, state, publish_timeout, dead_ttl, stream })
    }

    /// The outcome ledger, which is read from now on.
    pub fn outcome_ledger(&self) -> Arc<dyn OutcomeLedger> {
        outcome_stream::ledger(self.stream.clone())
    }

    /// The state of the connections, for readiness.
    pub fn connected(&self) -> watch::Receiver<ConnectionState> {
        self.state.clone()
    }

    /// Closes the connections; what is not settled goes back to its queue. To be called before the
    /// runtime ends. Everything that is asked of the broker afterwards fails.
    pub async fn close(&self) {
        self.stream.close();
        self.consumer.close().await;
        self.publisher.managed().close().await;
    }
}

#[async_trait]
impl Broker for RabbitMq {
    async fn consume(&self, queue: Queue, window: u16) -> Result<Subscription, BrokerError> {
        let name = self.declarer.topology().queue(queue).filter(|_| queue != Queue::Result);
        let name = name.ok_or_else(|| {
            BrokerError::Refused("nobody consumes results in this program".to_owned())
        })?;
        timeout(
            self.publish_timeout,
            consume::consume(&self.consumer, &self.declarer, name, window),
        )
        .await
        .unwrap_or_else(|_| Err(too_slow("subscribe", name, self.publish_timeout)))
    }

    async fn publish(
        &self,
        queue: Queue,
        message: Message,
        delay: Duration,
    ) -> Result<(), BrokerError> {
        message.check()?;
        match self.declarer.topology().routing_key(queue, delay) {
            Some(key) => self.publisher.publish(&key, message).await,
            None if delay.is_zero() => Ok(()),
            None => Err(BrokerError::Refused(format!("{queue:?} knows no delay"))),
        }
    }

    /// From the cancel exchange, which keeps nothing: what is sent while this worker is not connected is
    /// not heard by it.
    fn cancellations(&self) -> mpsc::Receiver<Vec<u8>> {
        cancellations::listen(self.consumer.clone(), self.declarer.clone())
    }
}

#[async_trait]
impl DeadLetters for RabbitMq {
    async fn keep(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        if self.dead_ttl.is_none() {
            return Ok(());
        }
        let message = Message {
            body: letter.to_json(),
            message_id: Some(letter.build_id.clone()),
            timestamp: Some(OffsetDateTime::now_utc()),
            ..Message::default()
        };
        let outgoing = Outgoing { message, expires_after: self.dead_ttl, publishing: 0 };
        let queue = self.declarer.topology().dead_queue();
        self.publisher.publish(&queue.name, outgoing).await
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
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown-host".to_owned())
}
