//! The dead queue, for the commands: read without taking anything from it but what is removed by name.
//!
//! Letters are read in batches, each with a consumer of its own, and stay unacknowledged until the
//! channel closes: then, or when this process dies, the broker puts them all back where they were.
//! Tried on RabbitMQ 3.10: after a close all letters are back in their old order, which neither
//! `basic.get` (every message has a consumer of its own there) nor a `basic.nack` of many achieves.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use image_builder_actors::ports::{
    DeadLetterReading, DeadLetterStore, DeadLettersError, KeptLetter, Message, Queue,
};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::types::FieldTable;
use lapin::{Channel, Confirmation, Connection};
use time::OffsetDateTime;

use super::declare::{declare_queue, soft_error};
use super::topology::QueueDeclaration;
use super::{ConnectOnceError, RabbitSettings, connect_once, properties};

/// Time for the broker to answer anything.
const ANSWER: Duration = Duration::from_secs(15);

/// Silence after which the broker is asked whether there is more.
const SILENCE: Duration = Duration::from_secs(1);

/// How long to wait for another command to end, and for letters to be back.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pause between two looks at what the broker does not tell by itself.
const LOOK: Duration = Duration::from_millis(100);

/// Batches a reading is divided into: with up to 32 consumers the broker keeps the letters' order
/// even when this process is killed.
const MOST_BATCHES: u32 = 30;

/// Letters of the smallest batch.
const SMALLEST_BATCH: u32 = 50;

/// Why the dead queue cannot be used. Holds no password.
#[derive(Debug, thiserror::Error)]
enum QueueError {
    #[error(transparent)]
    Connect(#[from] ConnectOnceError),
    #[error(
        "there is no queue `{0}` on this broker: no worker has run there, or DEAD_QUEUE or the virtual \
         host in RABBITMQ_URI is another one"
    )]
    Missing(String),
    #[error("another command is at work on the queue `{0}`: try again when it has ended")]
    Busy(String),
    #[error("the broker does not hand out the letters of the queue `{0}`")]
    Withheld(String),
    #[error("the queue `{queue}` did not take the request: {reason}")]
    NotTaken { queue: String, reason: String },
    #[error("lost the broker: {0}")]
    Lost(#[from] lapin::Error),
    #[error("the broker did not answer within {ANSWER:?}")]
    Silent,
}

impl From<QueueError> for DeadLettersError {
    fn from(error: QueueError) -> Self {
        let text = error.to_string();
        match error {
            QueueError::Connect(ConnectOnceError::Refused(_)) => Self::Refused(text),
            QueueError::Busy(_) => Self::Busy(text),
            _ => Self::Unavailable(text),
        }
    }
}

/// The dead letters of one deployment. Each reading has a connection of its own, made in one attempt.
pub struct DeadQueue(RabbitSettings);

impl DeadQueue {
    pub fn new(settings: RabbitSettings) -> Self {
        Self(settings)
    }
}

impl DeadLetterStore for DeadQueue {
    fn read(&self) -> BoxFuture<'_, Result<Box<dyn DeadLetterReading>, DeadLettersError>> {
        Box::pin(async move {
            Ok(Box::new(Reading::open(&self.0).await?) as Box<dyn DeadLetterReading>)
        })
    }
}

impl DeadLetterReading for Reading {
    fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<KeptLetter>>, DeadLettersError>> {
        Box::pin(async move {
            let letters = self.next_batch().await?;
            Ok(letters.map(|letters| letters.into_iter().map(kept).collect()))
        })
    }

    fn remove<'a>(&'a mut self, tags: &'a [u64]) -> BoxFuture<'a, Result<(), DeadLettersError>> {
        Box::pin(async move {
            for tag in tags {
                answer(self.held.basic_ack(*tag, BasicAckOptions::default())).await?;
                self.removed += 1;
            }
            Ok(())
        })
    }

    fn redrive<'a>(
        &'a mut self,
        request: Message,
        tags: &'a [u64],
    ) -> BoxFuture<'a, Result<(), DeadLettersError>> {
        Box::pin(async move {
            self.request(request).await?;
            self.remove(tags).await
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), DeadLettersError>> {
        Box::pin(async move { Ok(self.put_back().await?) })
    }
}

fn kept(delivery: Delivery) -> KeptLetter {
    let Delivery { delivery_tag: tag, data: body, properties, .. } = delivery;
    let message_id = properties.message_id().as_ref().map(ToString::to_string);
    let expires_after = properties.expiration().as_ref().and_then(|e| e.as_str().parse().ok());
    let sent = properties.timestamp().and_then(|seconds| i64::try_from(seconds).ok());
    let kept_until = sent.zip(expires_after).and_then(|(sent, millis): (i64, i64)| {
        let sent = OffsetDateTime::from_unix_timestamp(sent).ok()?;
        sent.checked_add(time::Duration::milliseconds(millis))
    });
    KeptLetter { tag, message_id, body, kept_until }
}

/// One connection's hold on the dead queue. At most one process has it.
struct Reading {
    connection: Connection,
    queue: QueueDeclaration,
    /// What is not as it should be with the queue.
    warning: Option<String>,
    build_queue: String,
    /// Where letters are held.
    held: Channel,
    /// Where questions are asked; holds the lock besides.
    asking: Channel,
    /// Where requests are published.
    publishing: Channel,
    /// Letters that were there in the beginning and were not read yet: what comes later is left for
    /// the next time, so that a reading ends.
    left: u32,
    batch: u32,
    batches: u32,
    read: u32,
    removed: u32,
}

impl Reading {
    /// Connects, and keeps every other command out.
    async fn open(settings: &RabbitSettings) -> Result<Self, QueueError> {
        let topology = &settings.topology;
        let connection = connect_once(settings, "dead", ANSWER).await?;
        let queue = topology.dead_queue();
        let name = queue.name.clone();
        if let Err(error) = count(&answer(connection.create_channel()).await?, &queue).await {
            return Err(match error {
                QueueError::Lost(error) if is(&error, &AMQPSoftError::NOTFOUND) => {
                    QueueError::Missing(name)
                }
                other => other,
            });
        }
        let asking = lock(&connection, &format!("{name}.lock"))
            .await?
            .ok_or_else(|| QueueError::Busy(name.clone()))?;
        let warning = check_arguments(&connection, &queue).await?;
        let publishing = answer(connection.create_channel()).await?;
        answer(publishing.confirm_select(ConfirmSelectOptions::default())).await?;
        let held = answer(connection.create_channel()).await?;
        let left = count(&asking, &queue).await?;
        let batch = (left / MOST_BATCHES + 1).clamp(SMALLEST_BATCH, u16::MAX.into());
        Ok(Self {
            build_queue: topology.queue(Queue::Build).unwrap_or_default().to_owned(),
            connection,
            queue,
            warning,
            held,
            asking,
            publishing,
            left,
            batch,
            batches: 0,
            read: 0,
            removed: 0,
        })
    }

    /// The next letters, oldest first; `None` = there are no more.
    async fn next_batch(&mut self) -> Result<Option<Vec<Delivery>>, QueueError> {
        let size = self.batch.min(self.left);
        if size == 0 {
            return Ok(None);
        }
        let tag = format!("dead-{:05}", self.batches);
        self.batches += 1;
        // The consumer gets as many as it may hold, and is cancelled before any is acknowledged: so
        // none comes that is not asked for.
        let prefetch = u16::try_from(size).unwrap_or(u16::MAX);
        answer(self.held.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let name = self.queue.name.as_str();
        let options = BasicConsumeOptions::default();
        let consuming = self.held.basic_consume(
            name.into(),
            tag.as_str().into(),
            options,
            FieldTable::default(),
        );
        let mut consumer = answer(consuming).await?;
        let mut letters = Vec::new();
        let begun = Instant::now();
        while letters.len() < size as usize {
            match tokio::time::timeout(SILENCE, consumer.next()).await {
                Ok(Some(delivery)) => letters.push(delivery?),
                Ok(None) => return Err(QueueError::Withheld(name.to_owned())),
                // Letters that were counted have expired meanwhile.
                Err(_) if count(&self.asking, &self.queue).await? == 0 => {
                    self.left = letters.len() as u32;
                    break;
                }
                Err(_) if begun.elapsed() > ANSWER => {
                    return Err(QueueError::Withheld(name.to_owned()));
                }
                Err(_) => {}
            }
        }
        answer(self.held.basic_cancel(tag.as_str().into(), BasicCancelOptions::default())).await?;
        self.left -= letters.len() as u32;
        self.read += letters.len() as u32;
        Ok(Some(letters))
    }

    /// Puts a request on the build queue, and returns when it is safe there.
    async fn request(&self, request: Message) -> Result<(), QueueError> {
        let queue = &self.build_queue;
        let not_taken = |reason: String| QueueError::NotTaken { queue: queue.clone(), reason };
        let frame_max = self.connection.configuration().frame_max();
        let outgoing = request.into();
        let properties = properties::of_message(&outgoing, frame_max).map_err(not_taken)?;
        let body = &outgoing.message.body;
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publish = async {
            self.publishing
                .basic_publish("".into(), queue.as_str().into(), options, body, properties)
                .await?
                .await
        };
        match answer(publish).await? {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                let text = returned.reply_text.as_str();
                Err(not_taken(format!("there is no such queue ({text}); start a worker first")))
            }
            Confirmation::Nack(None) => {
                Err(not_taken("it is full or has lost its nodes".to_owned()))
            }
            Confirmation::NotRequested => Err(not_taken("it confirms nothing".to_owned())),
        }
    }

    /// Puts all letters back that were not removed, and returns when they are there.
    async fn put_back(self) -> Result<(), QueueError> {
        answer(self.held.close(200, "read".into())).await?;
        let begun = Instant::now();
        // Those that have expired meanwhile never come back.
        while count(&self.asking, &self.queue).await? < self.read - self.removed
            && begun.elapsed() < PATIENCE
        {
            tokio::time::sleep(LOOK).await;
        }
        answer(self.connection.close(200, "done".into())).await
    }
}

/// Keeps other commands out for as long as the connection lives: only one can have a queue of this
/// name for itself. `None` = another one does not let go of it.
async fn lock(connection: &Connection, name: &str) -> Result<Option<Channel>, QueueError> {
    let begun = Instant::now();
    loop {
        let channel = answer(connection.create_channel()).await?;
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        match answer(channel.queue_declare(name.into(), options, FieldTable::default())).await {
            Ok(_) => return Ok(Some(channel)),
            // Whoever may not declare queues may still read letters.
            Err(QueueError::Lost(error)) if is(&error, &AMQPSoftError::ACCESSREFUSED) => {
                return Ok(Some(answer(connection.create_channel()).await?));
            }
            Err(QueueError::Lost(error)) if is(&error, &AMQPSoftError::RESOURCELOCKED) => {
                if begun.elapsed() > PATIENCE {
                    return Ok(None);
                }
                tokio::time::sleep(LOOK).await;
            }
            Err(other) => return Err(other),
        }
    }
}

/// Each reading counts as a delivery, and RabbitMQ 4 drops what was delivered 20 times from a queue
/// that nobody gave another limit.
async fn check_arguments(
    connection: &Connection,
    queue: &QueueDeclaration,
) -> Result<Option<String>, QueueError> {
    let channel = answer(connection.create_channel()).await?;
    match answer(declare_queue(&channel, queue, false)).await {
        Ok(_) => {
            answer(channel.close(200, "asked".into())).await?;
            Ok(None)
        }
        Err(QueueError::Lost(error)) if is(&error, &AMQPSoftError::PRECONDITIONFAILED) => {
            Ok(Some(format!(
                "the queue `{}` exists with other arguments than image-builder gives it; every look \
                 into it counts as a delivery, and RabbitMQ 4 drops a letter after 20 of them unless \
                 the queue has an x-delivery-limit",
                queue.name
            )))
        }
        Err(QueueError::Lost(error)) if is(&error, &AMQPSoftError::ACCESSREFUSED) => Ok(None),
        Err(other) => Err(other),
    }
}

/// Letters that are ready, as the queue itself counts them.
async fn count(channel: &Channel, queue: &QueueDeclaration) -> Result<u32, QueueError> {
    Ok(answer(declare_queue(channel, queue, true)).await?.ready)
}

fn is(error: &lapin::Error, refusal: &AMQPSoftError) -> bool {
    soft_error(error).is_some_and(|(soft, _)| soft == refusal)
}

async fn answer<T>(asked: impl Future<Output = lapin::Result<T>>) -> Result<T, QueueError> {
    Ok(tokio::time::timeout(ANSWER, asked).await.map_err(|_| QueueError::Silent)??)
}
