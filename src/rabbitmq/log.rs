//! The log of told outcomes: a stream that every worker reads from its beginning.
//!
//! It has a connection of its own for each reading. Streams fail in ways that queues do not, and some cost
//! the connection; and work can go on without.

use std::time::Duration;

use futures_util::StreamExt;
use image_builder_actors::ports::BrokerError;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, Consumer, ErrorKind};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::address::Address;
use super::declare::{declare_queue, soft_error};
use super::handshake::{self, Failure};
use crate::topology::QueueDeclaration;

/// Messages that the broker sends ahead; a stream has no other way of being read.
const AHEAD: u16 = 1_000;

/// How often the connection is looked at: its end may come without a word.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Declares the log, and reads it until the receiver is dropped or the connection ends. Each step may take
/// `limit`.
pub(super) async fn follow(
    address: &Address,
    name: &str,
    limit: Duration,
    log: &QueueDeclaration,
) -> Result<mpsc::Receiver<Vec<u8>>, BrokerError> {
    let unavailable = |reason: &str| BrokerError::Unavailable(reason.to_owned());
    let connection =
        handshake::connect(address, name, limit).await.map_err(|failure| match failure {
            Failure::Temporary(reason) => unavailable(&reason),
            Failure::Permanent(error) => unavailable(&error.to_string()),
        })?;
    let consumer = timeout(limit, begin(&connection, log))
        .await
        .map_err(|_| unavailable("it did not let the log of told outcomes be read in time"))?
        .map_err(|error| match error.kind() {
            ErrorKind::ProtocolError(refusal) => {
                BrokerError::Refused(refusal.get_message().to_string())
            }
            _ => unavailable(&error.to_string()),
        })?;
    let (lines_in, lines) = mpsc::channel(AHEAD.into());
    tokio::spawn(forward(connection, consumer, lines_in));
    Ok(lines)
}

async fn begin(connection: &Connection, log: &QueueDeclaration) -> lapin::Result<Consumer> {
    let channel = connection.create_channel().await?;
    let channel = match declare_queue(&channel, log, false).await {
        Ok(_) => channel,
        Err(error) => match soft_error(&error) {
            // It is kept for another time, or to another size. The refusal has closed the channel.
            Some((AMQPSoftError::PRECONDITIONFAILED, _)) => connection.create_channel().await?,
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
async fn forward(connection: Connection, mut consumer: Consumer, lines: mpsc::Sender<Vec<u8>>) {
    let mut watch = tokio::time::interval(WATCH_INTERVAL);
    while connection.status().connected() {
        let delivery = tokio::select! {
            delivery = consumer.next() => delivery,
            () = lines.closed() => break,
            _ = watch.tick() => continue,
        };
        let Some(Ok(Delivery { data, acker, .. })) = delivery else { break };
        // An ack makes room for the next. An error means that the connection ends.
        if lines.send(data).await.is_err() || acker.ack(BasicAckOptions::default()).await.is_err() {
            break;
        }
    }
    drop(lines);
    let goodbye = connection.close(200, "the log is read no further".into());
    let _ = timeout(WATCH_INTERVAL, goodbye).await;
}
