//! A stream, which every worker reads as a whole.
//!
//! Each reading has a connection of its own. Streams fail in ways that queues do not, and some cost the
//! connection; and work can go on without.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use image_builder_actors::ports::{BrokerError, Message};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer, ErrorKind};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::address::Address;
use super::declare::{declare_queue, soft_error};
use super::handshake::{self, Failure};
use super::publish::Publisher;
use super::topology::QueueDeclaration;

/// Messages that the broker sends ahead; a stream has no other way of being read.
const AHEAD: u16 = 200;

/// How often the connection is looked at: its end may come without a word.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How long the broker is given for an ack or a goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// Where a stream is read from.
#[derive(Debug, Clone, Copy)]
pub(super) enum From {
    Beginning,
    /// From what was written so long ago. Some that is older may come as well.
    Ago(Duration),
}

/// A stream of one deployment.
pub(super) struct Stream {
    pub(super) declaration: QueueDeclaration,
    /// An exchange whose messages it keeps; others are written to it alone.
    pub(super) bound_to: Option<String>,
    pub(super) from: From,
    pub(super) publisher: Arc<Publisher>,
    pub(super) address: Address,
    /// The readers' connections' name in the management console.
    pub(super) connection: String,
    /// How long each step of a reader may take.
    pub(super) limit: Duration,
    /// Whether nothing is to be read any more.
    pub(super) stop: watch::Sender<bool>,
}

impl Stream {
    /// Ends every reading, and lets none begin.
    pub(super) fn close(&self) {
        self.stop.send_replace(true);
    }

    /// Waits for that.
    pub(super) async fn closed(&self) {
        // An error means the same.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// Adds a line; returns once it is durable.
    pub(super) async fn append(&self, line: Vec<u8>) -> Result<(), BrokerError> {
        let message = Message { body: line, ..Message::default() };
        self.publisher.append(&self.declaration.name, message).await
    }

    /// Declares the stream, so that it keeps what comes before anybody reads it.
    pub(super) async fn declare(&self) -> Result<(), BrokerError> {
        let connection = self.connect().await?;
        self.in_time(self.channel(&connection)).await?;
        goodbye(&connection).await;
        Ok(())
    }

    /// Declares the stream, and reads it until the receiver is dropped, the connection ends or
    /// [`Stream::close`] is called.
    pub(super) async fn follow<T: Send + 'static>(
        &self,
        line: fn(Delivery) -> T,
    ) -> Result<mpsc::Receiver<T>, BrokerError> {
        let connection = self.connect().await?;
        let consumer = self.in_time(self.begin(&connection)).await?;
        let (lines_in, lines) = mpsc::channel(AHEAD.into());
        tokio::spawn(forward(connection, consumer, line, lines_in, self.stop.subscribe()));
        Ok(lines)
    }

    async fn connect(&self) -> Result<Connection, BrokerError> {
        let connecting = handshake::connect(&self.address, &self.connection, self.limit);
        let connection = tokio::select! {
            connection = connecting => connection,
            () = self.closed() => {
                return Err(BrokerError::Unavailable("this worker has closed it".to_owned()));
            }
        };
        connection.map_err(|failure| match failure {
            Failure::Temporary(reason) => BrokerError::Unavailable(reason),
            Failure::Permanent(error) => BrokerError::Refused(error.to_string()),
        })
    }

    async fn in_time<T>(
        &self,
        done: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BrokerError> {
        let name = &self.declaration.name;
        timeout(self.limit, done)
            .await
            .map_err(|_| BrokerError::Refused(format!("`{name}` cannot be read in time")))?
            .map_err(|error| match error.kind() {
                ErrorKind::ProtocolError(refusal) => {
                    BrokerError::Refused(refusal.get_message().to_string())
                }
                _ => BrokerError::Unavailable(error.to_string()),
            })
    }

    /// A channel, and the stream is there.
    async fn channel(&self, connection: &Connection) -> lapin::Result<Channel> {
        let mut channel = connection.create_channel().await?;
        if let Err(error) = declare_queue(&channel, &self.declaration, false).await {
            match soft_error(&error) {
                // It is kept for another time, or to another size. The refusal has closed the channel.
                Some((AMQPSoftError::PRECONDITIONFAILED, text))
                    if !text.contains("x-queue-type") =>
                {
                    channel = connection.create_channel().await?;
                }
                // Somebody else has declared it, or the subscription says that it is not there.
                Some((AMQPSoftError::ACCESSREFUSED, _)) => {
                    channel = connection.create_channel().await?;
                }
                _ => return Err(error),
            }
        }
        if let Some(exchange) = &self.bound_to {
            let (stream, exchange) = (self.declaration.name.as_str(), exchange.as_str());
            let (options, none) = (QueueBindOptions::default(), FieldTable::default());
            channel.queue_bind(stream.into(), exchange.into(), "".into(), options, none).await?;
        }
        Ok(channel)
    }

    async fn begin(&self, connection: &Connection) -> lapin::Result<Consumer> {
        let channel = self.channel(connection).await?;
        channel.basic_qos(AHEAD, BasicQosOptions::default()).await?;
        let offset = match self.from {
            From::Beginning => AMQPValue::LongString("first".into()),
            From::Ago(time) => {
                let since = SystemTime::now() - time;
                let since = since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                AMQPValue::Timestamp(since)
            }
        };
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), offset);
        let (name, options) = (self.declaration.name.as_str(), BasicConsumeOptions::default());
        channel.basic_consume(name.into(), "".into(), options, arguments).await
    }
}

/// Ends with the connection, which it closes.
async fn forward<T>(
    connection: Connection,
    mut consumer: Consumer,
    line: fn(Delivery) -> T,
    lines: mpsc::Sender<T>,
    mut stop: watch::Receiver<bool>,
) {
    let mut look = tokio::time::interval(WATCH_INTERVAL);
    while connection.status().connected() {
        let delivery = tokio::select! {
            delivery = consumer.next() => delivery,
            () = lines.closed() => break,
            _ = stop.wait_for(|stop| *stop) => break,
            _ = look.tick() => continue,
        };
        let Some(Ok(delivery)) = delivery else { break };
        let acker = delivery.acker.clone();
        if lines.send(line(delivery)).await.is_err() {
            break;
        }
        // It makes room for the next.
        let acked = timeout(GOODBYE, acker.ack(BasicAckOptions::default())).await;
        if !matches!(acked, Ok(Ok(true))) {
            break;
        }
    }
    drop(lines);
    goodbye(&connection).await;
}

async fn goodbye(connection: &Connection) {
    let goodbye = connection.close(200, "the stream is read no further".into());
    let _ = timeout(GOODBYE, goodbye).await;
}
