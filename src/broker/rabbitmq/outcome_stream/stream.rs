//! The stream that the ledger is kept in, which every worker reads from its beginning.
//!
//! It has a connection of its own for each reading. Streams fail in ways that queues do not, and some cost
//! the connection; and work can go on without.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use image_builder_actors::ports::{BrokerError, Message};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, Consumer, ErrorKind};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::Log;
use crate::broker::rabbitmq::address::Address;
use crate::broker::rabbitmq::declare::{declare_queue, soft_error};
use crate::broker::rabbitmq::handshake::{self, Failure};
use crate::broker::rabbitmq::publish::Publisher;
use crate::broker::rabbitmq::topology::QueueDeclaration;

/// Messages that the broker sends ahead; a stream has no other way of being read.
const AHEAD: u16 = 200;

/// How often the connection is looked at: its end may come without a word.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How long the broker is given for an ack or a goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// The stream of one deployment.
pub(in crate::broker::rabbitmq) struct Stream {
    declaration: QueueDeclaration,
    publisher: Arc<Publisher>,
    address: Address,
    /// The readers' connections' name in the management console.
    connection: String,
    /// How long each step of a reader may take.
    limit: Duration,
    /// Whether nothing is to be read any more.
    stop: watch::Sender<bool>,
}

impl Stream {
    pub(in crate::broker::rabbitmq) fn new(
        declaration: QueueDeclaration,
        publisher: Arc<Publisher>,
        address: Address,
        connection: String,
        limit: Duration,
    ) -> Self {
        let stop = watch::Sender::new(false);
        Self { declaration, publisher, address, connection, limit, stop }
    }

    /// Ends every reading, and lets none begin.
    pub(in crate::broker::rabbitmq) fn close(&self) {
        self.stop.send_replace(true);
    }
}

#[async_trait]
impl Log for Stream {
    async fn append(&self, line: Vec<u8>) -> Result<(), BrokerError> {
        let message = Message { body: line, ..Message::default() };
        self.publisher.append(&self.declaration.name, message).await
    }

    /// Declares the stream, and reads it until the receiver is dropped, the connection ends or
    /// [`Stream::close`] is called.
    async fn follow(&self) -> Result<mpsc::Receiver<Vec<u8>>, BrokerError> {
        let log = &self.declaration;
        let mut stop = self.stop.subscribe();
        let unavailable = |reason: &str| BrokerError::Unavailable(reason.to_owned());
        let connecting = handshake::connect(&self.address, &self.connection, self.limit);
        let connection = tokio::select! {
            connection = connecting => connection,
            _ = stop.wait_for(|stop| *stop) => return Err(unavailable("this worker has closed it")),
        };
        let connection = connection.map_err(|failure| match failure {
            Failure::Temporary(reason) => unavailable(&reason),
            Failure::Permanent(error) => BrokerError::Refused(error.to_string()),
        })?;
        let consumer = timeout(self.limit, begin(&connection, log))
            .await
            .map_err(|_| BrokerError::Refused(format!("`{}` cannot be read in time", log.name)))?
            .map_err(|error| match error.kind() {
                ErrorKind::ProtocolError(refusal) => {
                    BrokerError::Refused(refusal.get_message().to_string())
                }
                _ => unavailable(&error.to_string()),
            })?;
        let (lines_in, lines) = mpsc::channel(AHEAD.into());
        tokio::spawn(forward(connection, consumer, lines_in, stop));
        Ok(lines)
    }
}

async fn begin(connection: &Connection, log: &QueueDeclaration) -> lapin::Result<Consumer> {
    let channel = connection.create_channel().await?;
    let channel = match declare_queue(&channel, log, false).await {
        Ok(_) => channel,
        Err(error) => match soft_error(&error) {
            // It is kept for another time, or to another size. The refusal has closed the channel.
            Some((AMQPSoftError::PRECONDITIONFAILED, text)) if !text.contains("x-queue-type") => {
                connection.create_channel().await?
            }
            // Somebody else has declared it, or the subscription says that it is not there.
            Some((AMQPSoftError::ACCESSREFUSED, _)) => connection.create_channel().await?,
            _ => return Err(error),
        },
    };
    channel.basic_qos(AHEAD, BasicQosOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    let options = BasicConsumeOptions::default();
    channel.basic_consume(log.name.as_str().into(), "".into(), options, arguments).await
}

/// Ends with the connection, which it closes.
async fn forward(
    connection: Connection,
    mut consumer: Consumer,
    lines: mpsc::Sender<Vec<u8>>,
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
        let Some(Ok(Delivery { data, acker, .. })) = delivery else { break };
        if lines.send(data).await.is_err() {
            break;
        }
        // It makes room for the next.
        let acked = timeout(GOODBYE, acker.ack(BasicAckOptions::default())).await;
        if !matches!(acked, Ok(Ok(true))) {
            break;
        }
    }
    drop(lines);
    let goodbye = connection.close(200, "the stream is read no further".into());
    let _ = timeout(GOODBYE, goodbye).await;
}
