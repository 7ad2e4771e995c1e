//! The tables, and how older ones become them: each step is numbered and applied once, all in one transaction.

use image_builder_actors::ports::build_store::StoreError;
use sqlx::{AnyConnection, AnyPool, Row};

use super::{Dialect, unavailable};

/// The steps, oldest first; `{bytes}` is the type of bytes. What was released is never changed: a later step is
/// added.
///
/// Times are nanoseconds since 1970. `queued` is 0 for a build that was accepted and is not known to be in a queue.
/// `batches` holds what was recorded lately, so that it is not recorded twice.
const STEPS: [&[&str]; 1] = [&[
    "CREATE TABLE builds (
        key TEXT PRIMARY KEY,
        build_id TEXT NOT NULL,
        user_id TEXT,
        request TEXT NOT NULL,
        application_id TEXT,
        connector TEXT,
        repo TEXT,
        requested_at BIGINT NOT NULL,
        queued BIGINT NOT NULL,
        state TEXT NOT NULL,
        commit_id TEXT,
        updated_at BIGINT NOT NULL,
        ended_at BIGINT,
        attempts TEXT NOT NULL,
        outcome TEXT,
        log_bytes BIGINT NOT NULL,
        log_held BIGINT NOT NULL
    )",
    "CREATE INDEX builds_by_time ON builds (requested_at, key)",
    "CREATE INDEX builds_by_id ON builds (build_id)",
    "CREATE INDEX builds_by_user ON builds (user_id, requested_at, key)",
    "CREATE INDEX builds_by_state ON builds (state, requested_at, key)",
    "CREATE INDEX builds_by_change ON builds (updated_at)",
    "CREATE INDEX builds_by_end ON builds (ended_at)",
    "CREATE TABLE chunks (
        key TEXT NOT NULL,
        start BIGINT NOT NULL,
        length BIGINT NOT NULL,
        data {bytes} NOT NULL,
        PRIMARY KEY (key, start)
    )",
    "CREATE TABLE batches (name TEXT PRIMARY KEY, recorded_at BIGINT NOT NULL)",
    "CREATE INDEX batches_by_time ON batches (recorded_at)",
]];

/// The lock of whoever makes the tables, or tidies: PostgreSQL's locks are numbers that all programs share.
pub(super) const LOCK: i64 = 0x696d_6167_6562_6c64;

/// Makes a new connection ready.
pub(super) async fn prepare(
    connection: &mut AnyConnection,
    dialect: Dialect,
) -> Result<(), sqlx::Error> {
    let settings: &[&str] = match dialect {
        Dialect::Sqlite => &[
            // Only counts before the first table is made: what is removed can be given back.
            "PRAGMA auto_vacuum = INCREMENTAL",
            "PRAGMA journal_mode = WAL",
            // A machine that loses power may lose the last moments: nothing that is done with a build rests on
            // them, and the file stays whole.
            "PRAGMA synchronous = NORMAL",
            "PRAGMA busy_timeout = 10000",
            "PRAGMA journal_size_limit = 16777216",
        ],
        // Whoever was cut off keeps no row locked for longer.
        Dialect::Postgres => {
            &["SET statement_timeout = '60s'", "SET idle_in_transaction_session_timeout = '60s'"]
        }
    };
    for setting in settings {
        sqlx::query(setting).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Makes the tables, or brings older ones up to date. Workers that start together take turns.
pub(super) async fn make(pool: &AnyPool, dialect: Dialect) -> Result<(), StoreError> {
    let steps = migrate(pool, dialect);
    match steps.await.map_err(unavailable)? {
        known if known > STEPS.len() => Err(StoreError::Unavailable(format!(
            "the database is of a newer version: its tables are of step {known}, and {} is known",
            STEPS.len()
        ))),
        _ => Ok(()),
    }
}

/// Applies the steps that are missing; answers how many there are.
async fn migrate(pool: &AnyPool, dialect: Dialect) -> Result<usize, sqlx::Error> {
    let mut tx = pool.begin_with(dialect.begin()).await?;
    if dialect == Dialect::Postgres {
        lock(&mut tx).await?;
    }
    sqlx::query("CREATE TABLE IF NOT EXISTS store_version (step BIGINT NOT NULL)")
        .execute(&mut *tx)
        .await?;
    let row = sqlx::query("SELECT COUNT(*) FROM store_version").fetch_one(&mut *tx).await?;
    let known = usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or(usize::MAX);
    for (number, step) in STEPS.iter().enumerate().skip(known) {
        for statement in *step {
            let statement = statement.replace("{bytes}", dialect.bytes());
            sqlx::query(&statement).execute(&mut *tx).await?;
        }
        let number = number as i64 + 1;
        sqlx::query("INSERT INTO store_version (step) VALUES ($1)")
            .bind(number)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(known.max(STEPS.len()))
}

/// Waits for the lock, and has it until the transaction ends.
pub(super) async fn lock(tx: &mut AnyConnection) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT 1 FROM pg_advisory_xact_lock($1)").bind(LOCK).execute(tx).await.map(drop)
}
