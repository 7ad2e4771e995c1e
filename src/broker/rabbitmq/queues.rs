//! What waits where, and lanes that are emptied into the build queue, for the commands.

use std::time::Duration;

use image_builder_actors::delivery::envelope::Envelope;
use image_builder_actors::ports::Queue;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::types::FieldTable;
use lapin::{Channel, Confirmation, Connection};

use super::declare::soft_error;
use super::topology::{Lane, MOST_LANES, QueueDeclaration, Role};
use super::{ConnectError, ConnectOnceError, RabbitSettings, connect_once, properties};

/// Time for the broker to answer anything.
const ANSWER: Duration = Duration::from_secs(15);

/// Requests that are moved at once.
const AT_ONCE: u32 = 64;

/// Why the queues cannot be looked at, or the lanes not be emptied. Holds no password.
#[derive(Debug, thiserror::Error)]
pub enum QueuesError {
    /// However often it is tried.
    #[error(transparent)]
    Refused(ConnectError),
    #[error("{0}")]
    Unavailable(String),
    #[error("the build queue `{queue}` did not take a request: {reason}")]
    NotTaken { queue: String, reason: String },
    #[error("lost the broker: {0}")]
    Lost(#[from] lapin::Error),
    #[error("the broker did not answer within {ANSWER:?}")]
    Silent,
}

impl From<ConnectOnceError> for QueuesError {
    fn from(error: ConnectOnceError) -> Self {
        match error {
            ConnectOnceError::Refused(error) => Self::Refused(error),
            other @ ConnectOnceError::Unreachable { .. } => Self::Unavailable(other.to_string()),
        }
    }
}

/// A queue, as the broker counts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub name: String,
    pub role: Role,
    /// `None` = there is no such queue.
    pub counts: Option<Counts>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Messages that are in nobody's hands.
    pub ready: u32,
    pub consumers: u32,
}

/// The queues of one deployment. Each command has a connection of its own, made in one attempt.
pub struct Queues(RabbitSettings);

impl Queues {
    pub fn new(settings: RabbitSettings) -> Self {
        Self(settings)
    }

    /// Counts what is in each queue, in the lanes that are not filled any more as well.
    ///
    /// # Errors
    /// The broker cannot be reached, or does not let us.
    pub async fn look(&self) -> Result<Vec<Seen>, QueuesError> {
        let mut asking = Asking::open(&self.0).await?;
        let mut seen = Vec::new();
        for queue in self.0.topology.queues() {
            let counts = asking.count(&queue.name).await?;
            let is_last_lane = self.is_last_lane(queue);
            seen.push(Seen { name: queue.name.clone(), role: queue.role, counts });
            if is_last_lane {
                seen.extend(self.older_lanes(&mut asking).await?);
            }
        }
        asking.close().await?;
        Ok(seen)
    }

    fn is_last_lane(&self, queue: &QueueDeclaration) -> bool {
        let topology = &self.0.topology;
        *queue == topology.lane(Lane::Numbered(topology.build_lanes()))
    }

    async fn older_lanes(&self, asking: &mut Asking) -> Result<Vec<Seen>, QueuesError> {
        let mut older = Vec::new();
        for number in self.0.topology.build_lanes() + 1..=MOST_LANES {
            let QueueDeclaration { name, role, .. } = self.0.topology.lane(Lane::Numbered(number));
            // Those between may have been deleted.
            let counts = asking.count(&name).await?;
            if counts.is_some() {
                older.push(Seen { name, role, counts });
            }
        }
        Ok(older)
    }

    /// Moves all that waits in the lanes at the moment into the build queue; returns how many requests that
    /// were. Each is confirmed there before it is acked here: whoever is killed meanwhile leaves some in both.
    ///
    /// # Errors
    /// The broker cannot be reached, or the build queue takes no more. What was not moved is where it was.
    pub async fn empty_lanes(&self) -> Result<u64, QueuesError> {
        let lanes: Vec<_> =
            self.look().await?.into_iter().filter(|queue| queue.role == Role::Lane).collect();
        let asking = Asking::open(&self.0).await?;
        answer(asking.channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let target = self.0.topology.queue(Queue::Build).unwrap_or_default();
        let mut moved = 0;
        for lane in lanes {
            // What comes meanwhile is for whoever puts it there.
            let mut left = lane.counts.map_or(0, |counts| counts.ready);
            while left > 0 {
                let batch = asking.move_some(&lane.name, target, left.min(AT_ONCE)).await?;
                if batch == 0 {
                    break;
                }
                left -= batch;
                moved += u64::from(batch);
            }
        }
        asking.close().await?;
        Ok(moved)
    }
}

/// A connection that questions are asked on.
struct Asking {
    connection: Connection,
    channel: Channel,
}

impl Asking {
    async fn open(settings: &RabbitSettings) -> Result<Self, QueuesError> {
        let connection = connect_once(settings, "queue", ANSWER).await?;
        let channel = answer(connection.create_channel()).await?;
        Ok(Self { connection, channel })
    }

    /// `None` = there is no such queue.
    async fn count(&mut self, name: &str) -> Result<Option<Counts>, QueuesError> {
        let options = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
        let asked = self.channel.queue_declare(name.into(), options, FieldTable::default());
        match answer(asked).await {
            Ok(queue) => {
                Ok(Some(Counts { ready: queue.message_count(), consumers: queue.consumer_count() }))
            }
            Err(QueuesError::Lost(error))
                if matches!(soft_error(&error), Some((AMQPSoftError::NOTFOUND, _))) =>
            {
                // The refusal has closed the channel.
                self.channel = answer(self.connection.create_channel()).await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Moves at most so many requests; returns how many there were.
    async fn move_some(&self, lane: &str, target: &str, most: u32) -> Result<u32, QueuesError> {
        let not_taken = |reason: &str| QueuesError::NotTaken {
            queue: target.to_owned(),
            reason: reason.to_owned(),
        };
        let mut under_way = Vec::new();
        while (under_way.len() as u32) < most {
            let getting = self.channel.basic_get(lane.into(), BasicGetOptions::default());
            let Some(got) = answer(getting).await? else { break };
            let acker = got.delivery.acker.clone();
            let delivery = properties::of_delivery(got.delivery);
            let mut envelope = Envelope::decode(&delivery.message);
            envelope.redeliveries = envelope.redeliveries_of(&delivery);
            let outgoing = envelope.pass_on(&delivery.message).into();
            let frame_max = self.connection.configuration().frame_max();
            let properties = properties::of_message(&outgoing, frame_max)
                .map_err(|reason| not_taken(&reason))?;
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let body = &outgoing.message.body;
            let publishing =
                self.channel.basic_publish("".into(), target.into(), options, body, properties);
            under_way.push((acker, answer(publishing).await?));
        }
        let count = under_way.len() as u32;
        let mut ackers = Vec::new();
        for (acker, confirm) in under_way {
            match answer(confirm).await? {
                Confirmation::Ack(None) => ackers.push(acker),
                // Which of them it was is not told: none of these is acked.
                Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => {
                    return Err(not_taken("there is no such queue; start a worker first"));
                }
                Confirmation::Nack(None) => {
                    return Err(not_taken("it is full or has lost its nodes"));
                }
                Confirmation::NotRequested => return Err(not_taken("it confirms nothing")),
            }
        }
        for acker in ackers {
            answer(acker.ack(BasicAckOptions::default())).await?;
        }
        Ok(count)
    }

    async fn close(self) -> Result<(), QueuesError> {
        answer(self.connection.close(200, "done".into())).await
    }
}

async fn answer<T>(asked: impl Future<Output = lapin::Result<T>>) -> Result<T, QueuesError> {
    Ok(tokio::time::timeout(ANSWER, asked).await.map_err(|_| QueuesError::Silent)??)
}
