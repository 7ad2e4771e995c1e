//! Declares the topology, and lives with queues that somebody else has declared before.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};

use super::ConnectError;
use super::handshake::Failure;
use crate::broker::rabbitmq::topology::{Argument, QueueDeclaration, Topology};

/// Declares the queues and the exchange of one topology, as often as need be.
pub(super) struct Declarer {
    topology: Topology,
    /// Queues that somebody was already warned of.
    warned: Mutex<BTreeSet<String>>,
    /// One declaration at a time: many publishers may find the same queue missing at once.
    turn: tokio::sync::Mutex<()>,
}

impl Declarer {
    pub(super) fn new(topology: Topology) -> Self {
        Self { topology, warned: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    pub(super) fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Declares everything; what exists already as it should be is left as it is. Whoever may declare nothing
    /// can work with what is there.
    pub(super) async fn declare(&self, connection: &Connection) -> Result<(), Failure> {
        let _turn = self.turn.lock().await;
        let cancel = self.topology.cancel_exchange();
        declare_exchange(connection, cancel, "cancel exchange").await?;
        declare_exchange(connection, self.topology.bell(), "exchange").await?;
        let mut channel = connection.create_channel().await?;
        for queue in self.topology.queues() {
            let Err(error) = declare_queue(&channel, queue, false).await else { continue };
            let (refusal, text) = match soft_error(&error) {
                Some((
                    refusal @ (AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::ACCESSREFUSED),
                    text,
                )) => (refusal, text),
                Some((AMQPSoftError::RESOURCELOCKED, text)) => return Err(unusable(queue, text)),
                // A queue whose node is down is "not found": that passes.
                _ => return Err(error.into()),
            };
            let is_different = *refusal == AMQPSoftError::PRECONDITIONFAILED;
            if is_different && queue.role.if_different().is_none() {
                return Err(unusable(queue, text));
            }
            // The refusal has closed the channel.
            channel = connection.create_channel().await?;
            if let Err(error) = declare_queue(&channel, queue, true).await {
                return Err(match soft_error(&error) {
                    // RabbitMQ 4.3 tells only whoever has some right on it. A publish finds out.
                    Some((AMQPSoftError::ACCESSREFUSED, _)) => {
                        channel = connection.create_channel().await?;
                        continue;
                    }
                    Some((AMQPSoftError::NOTFOUND, missing)) if missing.contains("no queue") => {
                        unusable(queue, &format!("{text}, and it is not there yet"))
                    }
                    Some((_, text)) => unusable(queue, text),
                    None => error.into(),
                });
            }
            match queue.role.if_different().filter(|_| is_different) {
                Some(loss) => self.warn_of_difference(queue, text, loss),
                None => tracing::debug!(queue = queue.name, "used as it is: {text}"),
            }
        }
        Ok(channel.close(200, "declared".into()).await?)
    }

    fn warn_of_difference(&self, queue: &QueueDeclaration, text: &str, loss: &str) {
        let name = &queue.name;
        if !self.warned.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone()) {
            return;
        }
        tracing::warn!(
            queue = name,
            broker_says = text,
            "the {queue} exists with other arguments than this worker declares, and is used as it is: \
             {loss}. To mend it, stop the publishers, wait until the queue is empty and delete it \
             (the worker declares it anew), or set what is missing with a policy"
        );
    }
}

/// Who has no such exchange can work all the same: what comes by it is only heard later, or not at all.
async fn declare_exchange(connection: &Connection, name: &str, what: &str) -> Result<(), Failure> {
    let channel = connection.create_channel().await?;
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let declared = channel
        .exchange_declare(name.into(), ExchangeKind::Fanout, options, FieldTable::default())
        .await;
    match declared {
        Ok(()) => Ok(channel.close(200, "declared".into()).await?),
        Err(error) => match soft_error(&error) {
            // Whether it is there is found out by whoever listens to it.
            Some((AMQPSoftError::ACCESSREFUSED, text)) => {
                tracing::debug!(exchange = name, "not declared: {text}");
                Ok(())
            }
            Some((_, text)) => Err(Failure::Permanent(ConnectError::Topology {
                what: format!("the {what} `{name}`"),
                reason: text.to_owned(),
            })),
            None => Err(error.into()),
        },
    }
}

/// What the broker has counted of a queue.
pub(super) struct Counts {
    /// Messages that are ready.
    pub(super) ready: u32,
    pub(super) consumers: u32,
}

/// Declares a queue, or, if `passive`, only asks whether there is one of this name.
pub(super) async fn declare_queue(
    channel: &Channel,
    queue: &QueueDeclaration,
    passive: bool,
) -> lapin::Result<Counts> {
    let options = QueueDeclareOptions { passive, durable: true, ..Default::default() };
    let mut arguments = FieldTable::default();
    for (key, value) in &queue.arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(LongString::from(text.clone())),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
        };
        arguments.insert((*key).into(), value);
    }
    let queue = channel.queue_declare(queue.name.as_str().into(), options, arguments).await?;
    Ok(Counts { ready: queue.message_count(), consumers: queue.consumer_count() })
}

fn unusable(queue: &QueueDeclaration, reason: &str) -> Failure {
    let what = format!("the queue `{}`", queue.name);
    Failure::Permanent(ConnectError::Topology { what, reason: reason.to_owned() })
}

/// The broker's refusal of one request, which costs a channel, with its words.
pub(super) fn soft_error(error: &lapin::Error) -> Option<(&AMQPSoftError, &str)> {
    match error.kind() {
        ErrorKind::ProtocolError(refusal) => match refusal.kind() {
            AMQPErrorKind::Soft(soft) => Some((soft, refusal.get_message().as_str())),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}
