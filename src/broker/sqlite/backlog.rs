//! The backlog: whose turn it is, by query.
//!
//! A request is given to whoever has the fewest builds in hand; among equals to whoever was given a turn longest
//! ago, or never and came first; of one user what was worked on before, then the oldest. What is in hand is known
//! to whoever takes, and that are few users: so one of the first in the order of turns is always the one, and
//! nobody has to look at all who wait.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use image_builder_actors::ports::{BrokerError, Load, Taker, Turn};
use tokio::sync::watch;

use super::file::{BACKLOG, Tx};
use super::leases::Held;
use super::messages;
use super::writer::Writer;

/// A user of whom nothing waits is forgotten so many turns after the last one that was given.
const REMEMBERED: i64 = 10_000;

pub(super) struct BacklogTaker {
    writer: Writer,
    held: Arc<Held>,
    news: watch::Receiver<u64>,
}

impl BacklogTaker {
    pub(super) fn new(writer: Writer, held: Arc<Held>) -> Self {
        let news = writer.heard.in_queue(BACKLOG);
        Self { writer, held, news }
    }
}

impl Taker for BacklogTaker {
    fn take<'a>(&'a mut self, load: &'a Load) -> BoxFuture<'a, Result<Option<Turn>, BrokerError>> {
        Box::pin(async move {
            if self.held.is_over() {
                return Err(BrokerError::Stale);
            }
            self.news.mark_unchanged();
            let (lease, tag, load) = (self.held.lease, self.held.next_tag(1), load.clone());
            let taken =
                self.writer.write(move |tx| take(tx, lease, tag.cast_signed(), load).boxed());
            match taken.await {
                Ok(Taken::Turn(turn)) => {
                    self.held.has(tag);
                    Ok(Some(*turn))
                }
                Ok(Taken::Nothing) => Ok(None),
                Ok(Taken::Over) => {
                    self.held.end();
                    Err(BrokerError::Stale)
                }
                Err(error) => {
                    tokio::spawn(self.held.clone().untake(tag));
                    Err(error)
                }
            }
        })
    }

    fn arrived(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            tokio::select! {
                () = self.held.over() => {}
                // The sender lives as long as the writer.
                _ = self.news.changed() => {}
            }
        })
    }
}

enum Taken {
    Turn(Box<Turn>),
    Nothing,
    /// The lease ran out.
    Over,
}

async fn take(tx: &mut Tx, lease: i64, tag: i64, load: Load) -> sqlx::Result<Taken> {
    if !messages::stands(tx, lease).await? {
        return Ok(Taken::Over);
    }
    // One of these has nothing in hand, unless all who wait have.
    let first = i64::try_from(load.builds.len()).unwrap_or(i64::MAX).saturating_add(1);
    let users: Vec<(String, i64)> = sqlx::query_as(
        "SELECT user, turn FROM turns WHERE waiting > 0 ORDER BY turn, since LIMIT ?",
    )
    .bind(first)
    .fetch_all(&mut tx.connection)
    .await?;
    let admitted = users.into_iter().filter(|(user, _)| load.admits(user));
    // Of equals it is the first, which is the one in the order of turns.
    let Some((user_id, _)) = admitted.min_by_key(|(user, _)| load.of(user)) else {
        return Ok(Taken::Nothing);
    };
    let Some(delivery) = messages::hand_out_of(tx, lease, &user_id, tag).await? else {
        return Ok(Taken::Nothing);
    };
    let last: i64 = sqlx::query_scalar(
        "SELECT max(coalesce((SELECT max(turn) FROM turns WHERE waiting > 0), 0), \
                    coalesce((SELECT max(turn) FROM turns WHERE waiting = 0), 0))",
    )
    .fetch_one(&mut tx.connection)
    .await?;
    sqlx::query("UPDATE turns SET turn = ? WHERE user = ?")
        .bind(last + 1)
        .bind(&user_id)
        .execute(&mut tx.connection)
        .await?;
    sqlx::query("DELETE FROM turns WHERE waiting = 0 AND turn <= ?")
        .bind(last - REMEMBERED)
        .execute(&mut tx.connection)
        .await?;
    Ok(Taken::Turn(Box::new(Turn { user_id, delivery })))
}
