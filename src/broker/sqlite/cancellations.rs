//! What somebody wants to be stopped: kept for a day, and told to all who listen.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use image_builder_actors::ports::{BrokerError, Cancellation};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::clock::{self, Millis};
use super::file::{Reader, Tx};
use super::writer::{PAUSE, Writer};

/// How long a cancellation holds, and is read back.
const MEMORY: Duration = Duration::from_secs(24 * 3600);

/// Cancellations that may wait to be read by one who listens.
const WAITING: usize = 64;

/// Cancellations that are read at once, and forgotten at once.
const AT_ONCE: i64 = 256;

/// Longest wait for what was sent before.
const LONGEST_READING: Duration = Duration::from_secs(10);

pub(super) async fn send(writer: &Writer, body: Vec<u8>) -> Result<(), BrokerError> {
    let sent = writer.write(move |tx| {
        async move {
            sqlx::query("INSERT INTO cancellations (at, body) VALUES (?, ?)")
                .bind(now())
                .bind(body)
                .execute(&mut tx.connection)
                .await?;
            tx.news.cancellations = true;
            Ok(())
        }
        .boxed()
    });
    sent.await
}

/// By the machine's own clock, even where that was set: cancellations are compared with the times of requests.
fn now() -> Millis {
    clock::of_time(OffsetDateTime::now_utc())
}

/// Forgets some of those that hold no more; says how many.
pub(super) async fn forget(tx: &mut Tx) -> sqlx::Result<u64> {
    // They are in the order of their times.
    let forgotten = sqlx::query(
        "DELETE FROM cancellations WHERE id IN (SELECT id FROM cancellations ORDER BY id LIMIT ?) AND at < ?",
    )
    .bind(AT_ONCE)
    .bind(now() - clock::of_duration(MEMORY))
    .execute(&mut tx.connection)
    .await?;
    Ok(forgotten.rows_affected())
}

/// Reads those of the last day, and then whatever comes, until the receiver is dropped. `was_read` learns that
/// those that there were are told.
pub(super) fn listen(
    writer: Writer,
    reader: Arc<Reader>,
    was_read: watch::Sender<bool>,
) -> mpsc::Receiver<Cancellation> {
    let (heard_in, heard) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        tokio::select! {
            () = heard_in.closed() => {}
            () = writer.closed() => {}
            () = tell(&writer, &reader, &heard_in, &was_read) => {}
        }
    });
    heard
}

async fn tell(
    writer: &Writer,
    reader: &Reader,
    heard: &mpsc::Sender<Cancellation>,
    was_read: &watch::Sender<bool>,
) {
    let mut news = writer.heard.cancellations.subscribe();
    let since = now() - clock::of_duration(MEMORY);
    let mut last = 0;
    loop {
        news.mark_unchanged();
        match next(reader, last, since).await {
            Ok(came) if came.is_empty() => {
                was_read.send_replace(true);
                // The sender lives as long as the writer.
                let _ = news.changed().await;
            }
            Ok(came) => {
                for (id, at, body) in came {
                    last = id;
                    let at = clock::to_time(at).unwrap_or_else(OffsetDateTime::now_utc);
                    if heard.send(Cancellation { body, at }).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read what was cancelled");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn next(
    reader: &Reader,
    last: i64,
    since: Millis,
) -> sqlx::Result<Vec<(i64, Millis, Vec<u8>)>> {
    let read = reader.read(move |connection| {
        sqlx::query_as(
            "SELECT id, at, body FROM cancellations WHERE id > ? AND at >= ? ORDER BY id LIMIT ?",
        )
        .bind(last)
        .bind(since)
        .bind(AT_ONCE)
        .fetch_all(connection)
        .boxed()
    });
    read.await
}

/// Waits until those who listen have what was sent before they did; not for long, where nobody listens.
pub(super) async fn until_read(was_read: &watch::Sender<bool>) {
    let mut read = was_read.subscribe();
    // Work goes on without, as it does on any broker.
    let _ = timeout(LONGEST_READING, read.wait_for(|read| *read)).await;
}
