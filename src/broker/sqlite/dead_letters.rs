//! Dead letters: kept for as long as the deployment wants, and read by one at a time.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::ports::{
    BrokerError, DeadLetterReading, DeadLettersError, KeptLetter, Message, Queue,
};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::clock::{self, Millis};
use super::file::{Reader, Tx, number};
use super::messages;
use super::writer::Writer;

/// How long a reading waits for another to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Letters that a reading gets at once, and that are forgotten at once.
const AT_ONCE: i64 = 256;

/// Keeps a letter for so long.
pub(super) async fn keep(
    writer: &Writer,
    letter: &DeadLetter,
    ttl: Duration,
) -> Result<(), BrokerError> {
    let (message_id, body) = (letter.build_id.clone(), letter.to_json());
    let ttl = clock::of_duration(ttl);
    let kept = writer.write(move |tx| {
        async move {
            let until = tx.now().saturating_add(ttl);
            sqlx::query("INSERT INTO dead_letters (kept_until, message_id, body) VALUES (?, ?, ?)")
                .bind(until)
                .bind(message_id)
                .bind(body)
                .execute(&mut tx.connection)
                .await?;
            Ok(())
        }
        .boxed()
    });
    kept.await
}

/// Forgets letters whose time is up.
pub(super) async fn forget(tx: &mut Tx) -> sqlx::Result<()> {
    sqlx::query(
        "DELETE FROM dead_letters WHERE id IN \
         (SELECT id FROM dead_letters WHERE kept_until <= ? ORDER BY kept_until LIMIT ?)",
    )
    .bind(tx.now())
    .bind(AT_ONCE)
    .execute(&mut tx.connection)
    .await?;
    Ok(())
}

async fn remove(tx: &mut Tx, ids: &[u64]) -> sqlx::Result<()> {
    for id in ids {
        sqlx::query("DELETE FROM dead_letters WHERE id = ?")
            .bind(id.cast_signed())
            .execute(&mut tx.connection)
            .await?;
    }
    Ok(())
}

/// One reading. It has the letters up to the last that there was when it began.
pub(super) struct Reading {
    writer: Writer,
    reader: Arc<Reader>,
    /// The last letter that was read, and the last that is.
    read: i64,
    last: i64,
    _turn: OwnedMutexGuard<()>,
}

impl Reading {
    /// Begins, once no other reading is under way.
    pub(super) async fn begin(
        writer: Writer,
        reader: Arc<Reader>,
        turn: Arc<Mutex<()>>,
    ) -> Result<Self, DeadLettersError> {
        let turn = tokio::time::timeout(PATIENCE, turn.lock_owned()).await.map_err(|_| {
            let text = "somebody else is reading the dead letters: try again when they have ended";
            DeadLettersError::Busy(text.to_owned())
        })?;
        let last = reader.read(|connection| {
            sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM dead_letters")
                .fetch_one(connection)
                .boxed()
        });
        let last = last.await.map_err(unavailable)?;
        Ok(Self { writer, reader, read: 0, last, _turn: turn })
    }
}

fn unavailable(error: impl std::fmt::Display) -> DeadLettersError {
    DeadLettersError::Unavailable(error.to_string())
}

impl DeadLetterReading for Reading {
    fn warning(&self) -> Option<&str> {
        None
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<KeptLetter>>, DeadLettersError>> {
        Box::pin(async move {
            let (read, last, now) = (self.read, self.last, self.writer.clock.now());
            let rows = self.reader.read(move |connection| {
                sqlx::query_as(
                    "SELECT id, kept_until, message_id, body FROM dead_letters \
                 WHERE id > ? AND id <= ? AND kept_until > ? ORDER BY id LIMIT ?",
                )
                .bind(read)
                .bind(last)
                .bind(now)
                .bind(AT_ONCE)
                .fetch_all(connection)
                .boxed()
            });
            let rows: Vec<(i64, Millis, Option<String>, Vec<u8>)> =
                rows.await.map_err(unavailable)?;
            let Some((id, ..)) = rows.last() else { return Ok(None) };
            self.read = *id;
            let letters = rows.into_iter().map(|(id, kept_until, message_id, body)| {
                let (tag, kept_until) = (id.cast_unsigned(), clock::to_time(kept_until));
                KeptLetter { tag, message_id, body, kept_until }
            });
            Ok(Some(letters.collect()))
        })
    }

    fn remove<'a>(&'a mut self, tags: &'a [u64]) -> BoxFuture<'a, Result<(), DeadLettersError>> {
        Box::pin(async move {
            let ids = tags.to_vec();
            let removed =
                self.writer.write(move |tx| async move { remove(tx, &ids).await }.boxed());
            removed.await.map_err(unavailable)
        })
    }

    fn redrive<'a>(
        &'a mut self,
        request: Message,
        tags: &'a [u64],
    ) -> BoxFuture<'a, Result<(), DeadLettersError>> {
        Box::pin(async move {
            request.check().map_err(unavailable)?;
            let ids = tags.to_vec();
            // Both or neither: the request is on the build queue when the letters are gone.
            let redriven = self.writer.write(move |tx| {
                async move {
                    messages::put(tx, number(Queue::Build), &request, None, 0).await?;
                    remove(tx, &ids).await
                }
                .boxed()
            });
            redriven.await.map_err(unavailable)
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), DeadLettersError>> {
        Box::pin(async move { Ok(()) })
    }
}
