//! The outcome ledger: one row a request, which a claim reads and writes in one transaction.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use image_builder_actors::delivery::claims::RequestClaims;
use image_builder_actors::ports::{LedgerError, OutcomeCopy, OutcomeLedger, Recorded, Verdict};
use sqlx::sqlite::SqliteConnection;
use time::OffsetDateTime;

use super::clock;
use super::file::{Reader, Tx};
use super::writer::Writer;

/// How long a request is remembered after the last that was written about it.
const MEMORY: Duration = Duration::from_secs(7 * 24 * 3600);

/// Requests that are forgotten at once.
const AT_ONCE: i64 = 256;

pub(super) struct SqliteLedger {
    pub(super) writer: Writer,
    pub(super) reader: Arc<Reader>,
}

/// Forgets requests that nobody speaks of any more.
pub(super) async fn forget(tx: &mut Tx) -> sqlx::Result<()> {
    sqlx::query(
        "DELETE FROM claims WHERE request IN \
         (SELECT request FROM claims WHERE written_at < ? ORDER BY written_at LIMIT ?)",
    )
    .bind(tx.now() - clock::of_duration(MEMORY))
    .bind(AT_ONCE)
    .execute(&mut tx.connection)
    .await?;
    Ok(())
}

async fn read(
    connection: &mut SqliteConnection,
    request: &str,
) -> sqlx::Result<Option<RequestClaims>> {
    let known: Option<String> = sqlx::query_scalar("SELECT known FROM claims WHERE request = ?")
        .bind(request)
        .fetch_optional(connection)
        .await?;
    let known = known.map(|known| serde_json::from_str(&known)).transpose();
    known.map_err(|error| sqlx::Error::Decode(error.into()))
}

async fn write(tx: &mut Tx, request: &str, known: &RequestClaims) -> sqlx::Result<()> {
    let known = serde_json::to_string(known).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query("INSERT OR REPLACE INTO claims (request, written_at, known) VALUES (?, ?, ?)")
        .bind(request)
        .bind(tx.now())
        .bind(known)
        .execute(&mut tx.connection)
        .await?;
    Ok(())
}

impl SqliteLedger {
    /// Reads what is known of a request, changes it, and writes it again.
    async fn change<T: Send + 'static>(
        &self,
        request: String,
        change: impl FnOnce(&mut RequestClaims) -> T + Send + 'static,
    ) -> Result<T, LedgerError> {
        let changed = self.writer.write(move |tx| {
            async move {
                let mut known = read(&mut tx.connection, &request).await?.unwrap_or_default();
                let made = change(&mut known);
                write(tx, &request, &known).await?;
                Ok(made)
            }
            .boxed()
        });
        changed.await.map_err(|error| LedgerError(error.to_string()))
    }

    async fn known(&self, request: &str) -> Result<Option<RequestClaims>, LedgerError> {
        let request = request.to_owned();
        let known = self
            .reader
            .read(move |connection| async move { read(connection, &request).await }.boxed());
        known.await.map_err(|error| LedgerError(error.to_string()))
    }
}

impl OutcomeLedger for SqliteLedger {
    fn claim<'a>(&'a self, copy: &'a OutcomeCopy) -> BoxFuture<'a, Result<Verdict, LedgerError>> {
        Box::pin(async move {
            let copy = copy.clone();
            let request = copy.request.clone();
            self.change(request, move |known| known.claim(&copy, OffsetDateTime::now_utc())).await
        })
    }

    fn record<'a>(
        &'a self,
        copy: &'a OutcomeCopy,
        became: Recorded,
    ) -> BoxFuture<'a, Result<(), LedgerError>> {
        Box::pin(async move {
            let name = copy.copy.clone();
            self.change(copy.request.clone(), move |known| known.record(&name, became)).await
        })
    }

    fn begin(&self, request: String, since: OffsetDateTime) {
        let ledger = Self { writer: self.writer.clone(), reader: self.reader.clone() };
        tokio::spawn(async move {
            if let Err(error) = ledger.change(request, move |known| known.begin(since)).await {
                tracing::debug!(%error, "it was not written down that a request was begun");
            }
        });
    }

    fn begun<'a>(
        &'a self,
        request: &'a str,
    ) -> BoxFuture<'a, Result<Option<OffsetDateTime>, LedgerError>> {
        Box::pin(async move { Ok(self.known(request).await?.and_then(|known| known.begun())) })
    }

    fn is_claimed<'a>(
        &'a self,
        request: &'a str,
        since: Option<OffsetDateTime>,
    ) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let known = self.known(request).await.ok().flatten();
            known.is_some_and(|known| known.is_claimed(since, OffsetDateTime::now_utc()))
        })
    }
}
