//! What the cancel exchange hands out to every worker.

use std::sync::Arc;

use backoff::backoff::Backoff;
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, Consumer};
use tokio::sync::mpsc;

use super::connection::{ManagedConnection, pause, pauses};
use super::declare::Declarer;

/// Bodies that may wait to be read; the broker holds back what comes on top.
const WAITING: usize = 64;

/// Listens until the receiver is dropped, through every loss of the connection.
pub(super) fn listen(
    managed: Arc<ManagedConnection>,
    declarer: Arc<Declarer>,
) -> mpsc::Receiver<Vec<u8>> {
    let (bodies_in, bodies) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let mut pauses = pauses();
        let mut told = String::new();
        loop {
            let connection = tokio::select! {
                () = bodies_in.closed() => return,
                connection = managed.current() => connection,
            };
            let Some(connection) = connection else { return };
            match consumer(&connection, declarer.topology().cancel_exchange()).await {
                Ok(consumer) => {
                    told.clear();
                    pauses.reset();
                    forward(consumer, &bodies_in).await;
                }
                Err(error) => {
                    // It may stay so for good: whoever may have no queue of his own works without.
                    let error = error.to_string();
                    if error != told {
                        tracing::warn!(
                            error,
                            "cannot listen for cancellations: no build is cancelled here"
                        );
                        told = error;
                    }
                }
            }
            drop(connection);
            tokio::select! {
                () = bodies_in.closed() => return,
                () = pause(&mut pauses) => {}
            }
        }
    });
    bodies
}

/// Binds a queue that lives and dies with the connection.
async fn consumer(connection: &Connection, exchange: &str) -> lapin::Result<Consumer> {
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
    let name = queue.name().clone();
    let binding = QueueBindOptions::default();
    channel
        .queue_bind(name.clone(), exchange.into(), "".into(), binding, FieldTable::default())
        .await?;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    channel.basic_consume(name, "".into(), options, FieldTable::default()).await
}

async fn forward(mut consumer: Consumer, bodies: &mpsc::Sender<Vec<u8>>) {
    loop {
        tokio::select! {
            () = bodies.closed() => return,
            delivery = consumer.next() => match delivery {
                Some(Ok(delivery)) => {
                    if bodies.send(delivery.data).await.is_err() {
                        return;
                    }
                }
                Some(Err(_)) | None => return,
            }
        }
    }
}
