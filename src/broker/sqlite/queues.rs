//! What waits where, for the commands.

use std::path::Path;

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row};

use super::file::{QUEUES, open_to_read};
use super::open::OpenError;

/// A queue, as it is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// `build`, `backlog`, `fail`, `outcome`, `result` or `dead`.
    pub queue: &'static str,
    /// Messages that are in nobody's hands.
    pub waiting: u64,
    /// Messages that wait for their time.
    pub delayed: u64,
    /// Messages that a worker has in hand.
    pub in_hand: u64,
}

/// Counts what is in each queue of the file; a worker may be at work on it meanwhile.
///
/// # Errors
/// There is no such file, or it cannot be read.
pub async fn waiting_by_queue(path: &Path) -> Result<Vec<Counted>, OpenError> {
    let failed = |error| OpenError::Sqlite { path: path.display().to_string(), error };
    let mut connection = open_to_read(path).await.map_err(failed)?;
    let counted = count(&mut connection).await.map_err(failed);
    // Nothing was written that could be lost.
    let _ = connection.close().await;
    counted
}

pub(super) async fn count(connection: &mut SqliteConnection) -> sqlx::Result<Vec<Counted>> {
    let rows = sqlx::query(
        "SELECT queue, \
             count(*) FILTER (WHERE lease IS NULL AND due IS NULL) AS waiting, \
             count(*) FILTER (WHERE lease IS NULL AND due IS NOT NULL) AS delayed, \
             count(*) FILTER (WHERE lease IS NOT NULL) AS in_hand \
         FROM messages GROUP BY queue",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut all: Vec<Counted> =
        QUEUES.map(|(_, queue)| Counted { queue, waiting: 0, delayed: 0, in_hand: 0 }).into();
    for row in rows {
        let number: i64 = row.try_get("queue")?;
        let count = |what: &str| row.try_get::<i64, _>(what).map(i64::unsigned_abs);
        if let Some(at) = QUEUES.iter().position(|(known, _)| *known == number) {
            let counted = &mut all[at];
            (counted.waiting, counted.delayed, counted.in_hand) =
                (count("waiting")?, count("delayed")?, count("in_hand")?);
        }
    }
    let letters: i64 =
        sqlx::query_scalar("SELECT count(*) FROM dead_letters").fetch_one(connection).await?;
    all.push(Counted { queue: "dead", waiting: letters.unsigned_abs(), delayed: 0, in_hand: 0 });
    Ok(all)
}

/// The first queue that somebody has deleted.
pub(super) async fn missing(
    connection: &mut SqliteConnection,
) -> sqlx::Result<Option<&'static str>> {
    let there: Vec<i64> = sqlx::query_scalar("SELECT id FROM queues").fetch_all(connection).await?;
    let missing = QUEUES.into_iter().find(|(number, _)| !there.contains(number));
    Ok(missing.map(|(_, queue)| queue))
}
