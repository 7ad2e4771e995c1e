//! An outcome ledger in memory, with faults on demand. Clones are the same ledger, each of another worker.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
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

#[async_trait]
impl OutcomeLedger for FakeLedger {
    async fn claim(&self, copy: &OutcomeCopy) -> Result<Verdict, LedgerError> {
        self.claims.play().await?;
        Ok(self.there()?.claims.claim(copy, OffsetDateTime::now_utc()))
    }

    async fn record(&self, copy: &OutcomeCopy, became: Recorded) -> Result<(), LedgerError> {
        self.records.play().await?;
        self.there()?.claims.record(&copy.request, &copy.copy, became);
        self.recorded.push(became);
        Ok(())
    }

    fn begin(&self, request: String, since: OffsetDateTime) {
        if let Ok(mut ledger) = self.there() {
            ledger.claims.begin(&request, since);
        }
    }

    async fn begun(&self, request: &str) -> Result<Option<OffsetDateTime>, LedgerError> {
        Ok(self.there()?.claims.begun(request))
    }

    async fn is_claimed(&self, request: &str, since: Option<OffsetDateTime>) -> bool {
        self.lock().claims.is_claimed(request, since, OffsetDateTime::now_utc())
    }
}
