//! Messages: put in their queues, handed out under a lease, and settled.
//!
//! A lease is what one subscription has in hand. A delivery is named by its lease and its number there, neither
//! of which is ever used again: what is settled under a lease that has ended, or twice, finds nothing.

use image_builder_actors::ports::{DELIVERY_LIMIT, Delivery, Message, Place, Queue};
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use time::OffsetDateTime;

use super::clock::Millis;
use super::file::{BACKLOG, Tx, number};

/// Messages that are put in their queues at once, when their delays are over.
const MOST_DUE: i64 = 200;

/// Puts a message in a queue: in the backlog, if it has a place there; for after a delay, if there is one.
pub(super) async fn put(
    tx: &mut Tx,
    queue: i64,
    message: &Message,
    place: Option<&Place>,
    delay: Millis,
) -> sqlx::Result<()> {
    // One more, since the time of day was cut to its millisecond.
    let due = (delay > 0).then(|| tx.now().saturating_add(delay).saturating_add(1));
    let sent_at = message.timestamp.map(OffsetDateTime::unix_timestamp);
    sqlx::query(
        "INSERT INTO messages \
         (queue, due, delay, user, returned, sent_at, message_id, traceparent, envelope, body) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(queue)
    .bind(due)
    .bind(due.map(|_| delay))
    .bind(place.map(|place| &place.user_id))
    .bind(place.is_some_and(|place| place.returned))
    .bind(sent_at)
    .bind(message.message_id.as_deref().filter(|id| !id.is_empty()))
    .bind(&message.traceparent)
    .bind(&message.envelope)
    .bind(&message.body)
    .execute(&mut tx.connection)
    .await?;
    match due {
        Some(due) => tx.news.due(due),
        None => tx.news.in_queue(queue),
    }
    Ok(())
}

/// Puts those messages in their queues whose delays are over; says when the next is due.
pub(super) async fn put_due(tx: &mut Tx) -> sqlx::Result<Option<Millis>> {
    let due: Vec<(i64, i64)> =
        sqlx::query_as("SELECT id, queue FROM messages WHERE due <= ? ORDER BY due, id LIMIT ?")
            .bind(tx.now())
            .bind(MOST_DUE)
            .fetch_all(&mut tx.connection)
            .await?;
    for (id, queue) in due {
        // Behind what is there: its place is that of one which was published now.
        sqlx::query(
            "UPDATE messages SET id = (SELECT max(id) + 1 FROM messages), due = NULL, delay = NULL \
             WHERE id = ?",
        )
        .bind(id)
        .execute(&mut tx.connection)
        .await?;
        tx.news.in_queue(queue);
    }
    sqlx::query_scalar("SELECT min(due) FROM messages WHERE due IS NOT NULL")
        .fetch_one(&mut tx.connection)
        .await
}

/// Begins to have messages in hand, until then unless it is renewed.
pub(super) async fn begin_lease(tx: &mut Tx, until: Millis) -> sqlx::Result<i64> {
    let begun = sqlx::query("INSERT INTO leases (until) VALUES (?)")
        .bind(until)
        .execute(&mut tx.connection)
        .await?;
    Ok(begun.last_insert_rowid())
}

/// Whether what is in hand under a lease can still be settled.
pub(super) async fn stands(tx: &mut Tx, lease: i64) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM leases WHERE id = ? AND until > ?)")
        .bind(lease)
        .bind(tx.now())
        .fetch_one(&mut tx.connection)
        .await
}

/// Renews all leases that stand, ends those that have run out, and returns those that are left.
pub(super) async fn renew(tx: &mut Tx, until: Millis) -> sqlx::Result<Vec<i64>> {
    let now = tx.now();
    let over: Vec<i64> = sqlx::query_scalar("SELECT id FROM leases WHERE until <= ?")
        .bind(now)
        .fetch_all(&mut tx.connection)
        .await?;
    for lease in over {
        end_lease(tx, lease).await?;
    }
    sqlx::query_scalar("UPDATE leases SET until = ? WHERE until > ? RETURNING id")
        .bind(until)
        .bind(now)
        .fetch_all(&mut tx.connection)
        .await
}

/// Ends a lease: what was in hand comes again, and is charged with a delivery.
pub(super) async fn end_lease(tx: &mut Tx, lease: i64) -> sqlx::Result<()> {
    let tags: Vec<i64> =
        sqlx::query_scalar("SELECT tag FROM messages WHERE lease = ? ORDER BY tag")
            .bind(lease)
            .fetch_all(&mut tx.connection)
            .await?;
    for tag in tags {
        give_back(tx, lease, tag, true).await?;
    }
    sqlx::query("DELETE FROM leases WHERE id = ?").bind(lease).execute(&mut tx.connection).await?;
    Ok(())
}

/// Hands out the first messages of a queue.
pub(super) async fn hand_out(
    tx: &mut Tx,
    lease: i64,
    queue: i64,
    first_tag: i64,
    most: usize,
) -> sqlx::Result<Vec<Delivery>> {
    if !stands(tx, lease).await? {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "UPDATE messages SET lease = ?, tag = next.number + ? \
         FROM (SELECT id AS next_id, row_number() OVER (ORDER BY id) - 1 AS number FROM \
             (SELECT id FROM messages \
              WHERE queue = ? AND lease IS NULL AND due IS NULL AND user IS NULL \
              ORDER BY id LIMIT ?)) AS next \
         WHERE id = next.next_id \
         RETURNING tag, redeliveries, given_up, sent_at, message_id, traceparent, envelope, body",
    )
    .bind(lease)
    .bind(first_tag)
    .bind(queue)
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .fetch_all(&mut tx.connection)
    .await?;
    let mut deliveries = rows.iter().map(delivery).collect::<sqlx::Result<Vec<_>>>()?;
    deliveries.sort_by_key(|delivery| delivery.tag);
    Ok(deliveries)
}

/// Hands out the first request of a user in the backlog: what was worked on before, then the oldest.
pub(super) async fn hand_out_of(
    tx: &mut Tx,
    lease: i64,
    user: &str,
    tag: i64,
) -> sqlx::Result<Option<Delivery>> {
    let row = sqlx::query(
        "UPDATE messages SET lease = ?, tag = ? \
         WHERE id = (SELECT id FROM messages WHERE user = ? AND user IS NOT NULL AND lease IS NULL \
             ORDER BY returned DESC, id LIMIT 1) \
         RETURNING tag, redeliveries, given_up, sent_at, message_id, traceparent, envelope, body",
    )
    .bind(lease)
    .bind(tag)
    .bind(user)
    .fetch_optional(&mut tx.connection)
    .await?;
    row.as_ref().map(delivery).transpose()
}

/// A delivery is done with; `false` = nobody has it in hand under this lease.
pub(super) async fn remove(tx: &mut Tx, lease: i64, tag: i64) -> sqlx::Result<bool> {
    let removed = sqlx::query("DELETE FROM messages WHERE lease = ? AND tag = ?")
        .bind(lease)
        .bind(tag)
        .execute(&mut tx.connection)
        .await?;
    Ok(removed.rows_affected() > 0)
}

/// A delivery goes back where it was, charged with a delivery or not; `false` = nobody has it in hand under this
/// lease. A build that was delivered too often moves to the fail queue.
pub(super) async fn give_back(
    tx: &mut Tx,
    lease: i64,
    tag: i64,
    is_charged: bool,
) -> sqlx::Result<bool> {
    let back: Option<(i64, i64, i64)> = sqlx::query_as(
        "UPDATE messages SET lease = NULL, tag = NULL, redeliveries = redeliveries + ? \
         WHERE lease = ? AND tag = ? RETURNING id, queue, redeliveries",
    )
    .bind(is_charged)
    .bind(lease)
    .bind(tag)
    .fetch_optional(&mut tx.connection)
    .await?;
    let Some((id, queue, redeliveries)) = back else { return Ok(false) };
    let is_build = [number(Queue::Build), BACKLOG].contains(&queue);
    if is_build && redeliveries.unsigned_abs() > DELIVERY_LIMIT {
        let failed = number(Queue::Fail);
        sqlx::query(
            "UPDATE messages SET id = (SELECT max(id) + 1 FROM messages), queue = ?, user = NULL, \
             returned = 0, given_up = 1, redeliveries = 0 WHERE id = ?",
        )
        .bind(failed)
        .bind(id)
        .execute(&mut tx.connection)
        .await?;
        tx.news.in_queue(failed);
    } else {
        tx.news.in_queue(queue);
    }
    Ok(true)
}

/// How many requests wait, in the build queue and in the backlog.
pub(super) async fn waiting(connection: &mut SqliteConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM messages \
                 WHERE queue = ? AND lease IS NULL AND due IS NULL AND user IS NULL) \
              + (SELECT count(*) FROM messages WHERE lease IS NULL AND user IS NOT NULL)",
    )
    .bind(number(Queue::Build))
    .fetch_one(connection)
    .await
}

fn delivery(row: &SqliteRow) -> sqlx::Result<Delivery> {
    let (message, is_unreadable) = message(row)?;
    let (tag, redeliveries): (i64, i64) = (row.try_get("tag")?, row.try_get("redeliveries")?);
    Ok(Delivery {
        message,
        tag: tag.unsigned_abs(),
        redeliveries: redeliveries.unsigned_abs(),
        given_up: row.try_get("given_up")?,
        is_unreadable,
        publishing: 0,
    })
}

/// The message of a row, and whether what it carries beside its body cannot be read.
pub(super) fn message(row: &SqliteRow) -> sqlx::Result<(Message, bool)> {
    let body = row.try_get("body")?;
    let readable = || -> sqlx::Result<Message> {
        let sent_at: Option<i64> = row.try_get("sent_at")?;
        let timestamp = sent_at.map(OffsetDateTime::from_unix_timestamp).transpose();
        Ok(Message {
            body: Vec::new(),
            message_id: row.try_get("message_id")?,
            timestamp: timestamp.map_err(|error| sqlx::Error::Decode(error.into()))?,
            traceparent: row.try_get("traceparent")?,
            envelope: row.try_get("envelope")?,
        })
    };
    Ok(match readable() {
        Ok(message) => (Message { body, ..message }, false),
        Err(_) => (Message { body, ..Message::default() }, true),
    })
}
