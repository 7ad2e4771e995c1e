//! An outcome ledger in memory, with faults on demand. Clones are the same ledger, each of another worker.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use time::OffsetDateTime;

use super::script::{Record, Script};
use crate::delivery::claims::Claims;
use crate::ports::{LedgerError, OutcomeCopy, OutcomeLedger, Recorded, Verdict};

/// An outcome ledger in memory.
#[derive(Clone, Default)]
pub struct FakeLedger {
    ledger: Arc<Mutex<Ledger>>,
    pub claims: Script<LedgerError>,
    pub records: Script<LedgerError>,
    /// What became of copies.
    pub recorded: Record<Recorded>,
}

#[derive(Default)]
struct Ledger {
    claims: Claims,
    away: bool,
}

impl FakeLedger {
    /// Cannot be had from now on, or can be had again.
    pub fn set_away(&self, away: bool) {
        self.lock().away = away;
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The claims, unless the ledger cannot be had.
    fn there(&self) -> Result<MutexGuard<'_, Ledger>, LedgerError> {
        let ledger = self.lock();
        if ledger.away { Err(LedgerError("the test wants it so".to_owned())) } else { Ok(ledger) }
    }
}

impl OutcomeLedger for FakeLedger {
    fn claim<'a>(&'a self, copy: &'a OutcomeCopy) -> BoxFuture<'a, Result<Verdict, LedgerError>> {
        Box::pin(async move {
            self.claims.play().await?;
            Ok(self.there()?.claims.claim(copy, OffsetDateTime::now_utc()))
        })
    }

    fn record<'a>(
        &'a self,
        copy: &'a OutcomeCopy,
        became: Recorded,
    ) -> BoxFuture<'a, Result<(), LedgerError>> {
        Box::pin(async move {
            self.records.play().await?;
            self.there()?.claims.record(&copy.request, &copy.copy, became);
            self.recorded.push(became);
            Ok(())
        })
    }

    fn begin(&self, request: String, since: OffsetDateTime) {
        if let Ok(mut ledger) = self.there() {
            ledger.claims.begin(&request, since);
        }
    }

    fn begun<'a>(
        &'a self,
        request: &'a str,
    ) -> BoxFuture<'a, Result<Option<OffsetDateTime>, LedgerError>> {
        Box::pin(async move { Ok(self.there()?.claims.begun(request)) })
    }

    fn is_claimed<'a>(
        &'a self,
        request: &'a str,
        since: Option<OffsetDateTime>,
    ) -> BoxFuture<'a, bool> {
        Box::pin(
            async move { self.lock().claims.is_claimed(request, since, OffsetDateTime::now_utc()) },
        )
    }
}
