//! What is kept no longer goes: what is too old, and the oldest that ended where all hold too much.

use std::time::Duration;

use image_builder_actors::ports::build_store::{StoreError, nanos};
use sqlx::{AnyConnection, AnyPool, Row};
use time::OffsetDateTime;

use super::{Dialect, Store, schema, unavailable};

/// How long it is known what was recorded: whoever did not hear that it was says it again long before.
const BATCHES_KEPT: Duration = Duration::from_secs(60 * 60);

/// So many builds are removed in one transaction: others wait for it.
const AT_ONCE: i64 = 200;

/// Pages of a file that are given back at once.
const PAGES: u32 = 1000;

/// What a build holds, in bytes, as it is counted against the budget: its row counts for what it is at least.
const HELD: &str = "log_held + LENGTH(attempts) + LENGTH(COALESCE(outcome, '')) + 512";

pub(super) async fn tidy(store: &Store, now: OffsetDateTime) -> Result<(), StoreError> {
    let oldest = nanos(now - store.ttl);
    while remove_old(store, oldest).await? > 0 {}
    while remove_excess(store).await? > 0 {}
    let known = nanos(OffsetDateTime::now_utc() - BATCHES_KEPT);
    let batches = sqlx::query("DELETE FROM batches WHERE recorded_at < $1").bind(known);
    batches.execute(&store.writers).await.map_err(unavailable)?;
    if store.dialect == Dialect::Sqlite {
        give_back(&store.writers).await.map_err(unavailable)?;
    }
    Ok(())
}

/// Gives the room of what was removed back to the file system, a little at a time: others write meanwhile.
async fn give_back(writers: &AnyPool) -> Result<(), sqlx::Error> {
    let mut before = i64::MAX;
    loop {
        let free = sqlx::query("PRAGMA freelist_count").fetch_one(writers).await?;
        let free: i64 = free.try_get(0)?;
        if free == 0 || free >= before {
            return Ok(());
        }
        before = free;
        let some = format!("PRAGMA incremental_vacuum({PAGES})");
        sqlx::query(&some).execute(writers).await?;
    }
}

/// Removes some of what was not changed since; says how many.
async fn remove_old(store: &Store, oldest: i64) -> Result<usize, StoreError> {
    let mut tx = store.write().await?;
    if store.dialect == Dialect::Postgres {
        schema::lock(&mut tx).await.map_err(unavailable)?;
    }
    let query =
        sqlx::query("SELECT key FROM builds WHERE updated_at < $1 ORDER BY updated_at LIMIT $2");
    let rows = query.bind(oldest).bind(AT_ONCE).fetch_all(&mut *tx).await.map_err(unavailable)?;
    for row in &rows {
        remove(&mut tx, row.try_get("key").map_err(unavailable)?).await?;
    }
    tx.commit().await.map_err(unavailable)?;
    Ok(rows.len())
}

/// Removes some of the oldest that ended while all hold more than they may; says how many.
async fn remove_excess(store: &Store) -> Result<usize, StoreError> {
    let mut tx = store.write().await?;
    if store.dialect == Dialect::Postgres {
        schema::lock(&mut tx).await.map_err(unavailable)?;
    }
    let sum = format!("SELECT CAST(COALESCE(SUM({HELD}), 0) AS BIGINT) AS held FROM builds");
    let sum = sqlx::query(&sum).fetch_one(&mut *tx).await.map_err(unavailable)?;
    let mut held = sum.try_get::<i64, _>("held").map_err(unavailable)?.unsigned_abs();
    if held <= store.budget {
        return Ok(0);
    }
    let query = format!(
        "SELECT key, CAST({HELD} AS BIGINT) AS held FROM builds WHERE ended_at IS NOT NULL \
         ORDER BY ended_at LIMIT $1"
    );
    let rows = sqlx::query(&query).bind(AT_ONCE).fetch_all(&mut *tx).await.map_err(unavailable)?;
    let mut removed = 0;
    for row in &rows {
        if held <= store.budget {
            break;
        }
        remove(&mut tx, row.try_get("key").map_err(unavailable)?).await?;
        let freed = row.try_get::<i64, _>("held").map_err(unavailable)?.unsigned_abs();
        held = held.saturating_sub(freed);
        removed += 1;
    }
    tx.commit().await.map_err(unavailable)?;
    Ok(removed)
}

/// Removes a build and its log.
async fn remove(tx: &mut AnyConnection, key: String) -> Result<(), StoreError> {
    for table in ["builds", "chunks"] {
        let query = format!("DELETE FROM {table} WHERE key = $1");
        sqlx::query(&query).bind(&key).execute(&mut *tx).await.map_err(unavailable)?;
    }
    Ok(())
}
