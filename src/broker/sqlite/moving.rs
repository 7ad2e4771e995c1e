//! All that waits in the file, moved to another broker, for the command.
//!
//! One message at a time: it is on the other broker, and confirmed there, before it is removed here. Whoever is
//! killed in between leaves one message in both; moved again, it is the same message with the same id, so that
//! its outcome is told once. Nobody else may have the file open to write meanwhile.

use std::path::Path;
use std::time::Duration;

use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::delivery::envelope::{self, Envelope};
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::ports::{Broker, BrokerError, DeadLetters, Message, Place, Queue};
use serde::Deserialize;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::cancellations;
use super::clock::Clock;
use super::file::{BACKLOG, Tx, number};
use super::messages;
use super::open::{OpenError, open};

/// Why not all was moved. What was not is where it was.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the queue's file cannot be read or written: {0}")]
    File(#[from] sqlx::Error),
    #[error("the other broker did not take what was to be moved: {0}")]
    NotTaken(#[from] BrokerError),
}

/// What was moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    pub messages: u64,
    pub dead_letters: u64,
    pub cancellations: u64,
    /// Messages, letters and cancellations that cannot be read: they are left in the file.
    pub unreadable: u64,
}

#[derive(Deserialize)]
struct Cancelled {
    #[serde(rename = "buildID")]
    build_id: String,
    #[serde(rename = "userID", default)]
    user_id: Option<String>,
}

/// Moves the messages of all queues, those that wait for their time among them, the dead letters, and what was
/// cancelled in the last day. The outcome ledger stays. `tell` hears of the progress.
///
/// A delay goes on with what is left of it, as near as the other broker has delays. A dead letter is kept from now
/// on for as long as the other broker keeps them. A build that the broker had given up goes on as one that crashed.
///
/// # Errors
/// The file cannot be used, or the other broker does not take something.
pub async fn move_all(
    path: &Path,
    to: &dyn Broker,
    letters: &dyn DeadLetters,
    tell: impl FnMut(&Moved) + Send,
) -> Result<Moved, MoveError> {
    let tx = open(path, Clock::start()).await?;
    let mut moving = Moving { tx, moved: Moved::default(), tell };
    let done = moving.all(to, letters).await;
    moving.tx.close().await?;
    done.map(|()| moving.moved)
}

struct Moving<F> {
    tx: Tx,
    moved: Moved,
    tell: F,
}

impl<F: FnMut(&Moved) + Send> Moving<F> {
    async fn all(&mut self, to: &dyn Broker, letters: &dyn DeadLetters) -> Result<(), MoveError> {
        // First, so that nothing is begun there that was cancelled here.
        self.cancellations(to).await?;
        self.messages(to).await?;
        self.dead_letters(letters).await
    }

    async fn cancellations(&mut self, to: &dyn Broker) -> Result<(), MoveError> {
        const NEXT: &str = "SELECT id, body FROM cancellations WHERE id > ? ORDER BY id LIMIT 1";
        // Those that hold no more keep nothing else here that the other broker does not take.
        while cancellations::forget(&mut self.tx).await? > 0 {}
        let mut last = 0;
        while let Some(row) = self.next(NEXT, &mut last).await? {
            let body: Vec<u8> = row.try_get("body")?;
            match serde_json::from_slice::<Cancelled>(&body) {
                Ok(Cancelled { build_id, user_id }) => {
                    let user_id = user_id.as_deref().filter(|id| !id.is_empty());
                    to.cancel(&BuildIdentity::new(user_id, &build_id)).await?;
                    self.remove("DELETE FROM cancellations WHERE id = ?", last).await?;
                    self.moved.cancellations += 1;
                }
                Err(_) => self.moved.unreadable += 1,
            }
            (self.tell)(&self.moved);
        }
        Ok(())
    }

    async fn messages(&mut self, to: &dyn Broker) -> Result<(), MoveError> {
        const NEXT: &str = "SELECT * FROM messages WHERE id > ? ORDER BY id LIMIT 1";
        let mut last = 0;
        while let Some(row) = self.next(NEXT, &mut last).await? {
            match messages::message(&row)? {
                (message, false) => {
                    self.publish(last, &row, message, to).await?;
                    self.remove("DELETE FROM messages WHERE id = ?", last).await?;
                    self.moved.messages += 1;
                }
                (_, true) => self.moved.unreadable += 1,
            }
            (self.tell)(&self.moved);
        }
        Ok(())
    }

    async fn dead_letters(&mut self, to: &dyn DeadLetters) -> Result<(), MoveError> {
        const NEXT: &str = "SELECT id, body FROM dead_letters WHERE id > ? ORDER BY id LIMIT 1";
        let mut last = 0;
        while let Some(row) = self.next(NEXT, &mut last).await? {
            let body: Vec<u8> = row.try_get("body")?;
            match serde_json::from_slice::<DeadLetter>(&body) {
                Ok(letter) => {
                    to.keep(&letter).await?;
                    self.remove("DELETE FROM dead_letters WHERE id = ?", last).await?;
                    self.moved.dead_letters += 1;
                }
                Err(_) => self.moved.unreadable += 1,
            }
            (self.tell)(&self.moved);
        }
        Ok(())
    }

    /// The row after the last one, which it becomes.
    async fn next(&mut self, query: &str, last: &mut i64) -> sqlx::Result<Option<SqliteRow>> {
        let row = sqlx::query(query).bind(*last).fetch_optional(&mut self.tx.connection).await?;
        if let Some(row) = &row {
            *last = row.try_get("id")?;
        }
        Ok(row)
    }

    async fn remove(&mut self, statement: &str, id: i64) -> sqlx::Result<()> {
        self.tx.begin().await?;
        sqlx::query(statement).bind(id).execute(&mut self.tx.connection).await?;
        self.tx.commit().await
    }

    async fn publish(
        &mut self,
        id: i64,
        row: &SqliteRow,
        message: Message,
        to: &dyn Broker,
    ) -> Result<(), MoveError> {
        let queue: i64 = row.try_get("queue")?;
        let redeliveries = row.try_get::<i64, _>("redeliveries")?.unsigned_abs();
        if queue == BACKLOG {
            let place = Place { user_id: row.try_get("user")?, returned: row.try_get("returned")? };
            return Ok(to.enqueue(charged(message, redeliveries), place).await?);
        }
        let queues = [Queue::Build, Queue::Fail, Queue::Outcome, Queue::Result];
        // The tables know no other queue.
        let Some(queue) = queues.into_iter().find(|known| number(*known) == queue) else {
            return Ok(());
        };
        let message = match queue {
            Queue::Build => charged(self.named(id, message).await?, redeliveries),
            Queue::Fail if row.try_get("given_up")? => crashed(&message),
            _ => message,
        };
        let due: Option<i64> = row.try_get("due")?;
        let left = due.map_or(0, |due| due.saturating_sub(self.tx.now())).max(0);
        let delay = Duration::from_millis(left.unsigned_abs());
        Ok(to.publish(queue, message, delay).await?)
    }

    /// A request that has no id gets one, which is written down before anybody else sees it: were it moved twice, it
    /// would be two builds otherwise.
    async fn named(&mut self, id: i64, message: Message) -> sqlx::Result<Message> {
        if envelope::identity(&message).is_some() {
            return Ok(message);
        }
        let envelope = Envelope { given_id: true, ..Envelope::decode(&message) };
        let message = Message {
            message_id: Some(Uuid::new_v4().to_string()),
            envelope: Some(envelope.encode()),
            ..message
        };
        self.tx.begin().await?;
        sqlx::query("UPDATE messages SET message_id = ?, envelope = ? WHERE id = ?")
            .bind(&message.message_id)
            .bind(&message.envelope)
            .bind(id)
            .execute(&mut self.tx.connection)
            .await?;
        self.tx.commit().await?;
        Ok(message)
    }
}

/// A request with the deliveries that the other broker does not know of.
fn charged(message: Message, redeliveries: u64) -> Message {
    if redeliveries == 0 {
        return message;
    }
    let mut envelope = Envelope::decode(&message);
    envelope.redeliveries = envelope.redeliveries.saturating_add(redeliveries);
    envelope.pass_on(&message)
}

/// A build that was given up, with the crash that the other broker does not know of.
fn crashed(message: &Message) -> Message {
    let envelope = Envelope::decode(message);
    let mut history = envelope.history(message);
    let text = "The build service crashed while it worked on this build.";
    history.record(&Fault::new(StageName::Listener, Reason::Crashed, text), true);
    Envelope { history: Some(history), ..envelope }.pass_on(message)
}
