//! An outcome ledger in memory, with faults on demand. Clones are the same ledger, each of another worker.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use time::OffsetDateTime;

use crate::delivery::claims::Claims;
use crate::ports::{LedgerError, OutcomeCopy, OutcomeLedger, Recorded, Verdict};

/// An outcome ledger in memory.
#[derive(Clone, Default)]
pub struct FakeLedger(Arc<Mutex<Ledger>>);

#[derive(Default)]
struct Ledger {
    claims: Claims,
    recorded: Vec<Recorded>,
    away: bool,
    failing_claims: usize,
    failing_records: usize,
}

impl FakeLedger {
    /// Cannot be had from now on, or can be had again.
    pub fn set_away(&self, away: bool) {
        self.lock().away = away;
    }

    /// The next `times` claims fail.
    pub fn fail_claims(&self, times: usize) {
        self.lock().failing_claims = times;
    }

    /// The next `times` records of what became of a copy fail.
    pub fn fail_records(&self, times: usize) {
        self.lock().failing_records = times;
    }

    /// What became of copies, in order.
    pub fn recorded(&self) -> Vec<Recorded> {
        self.lock().recorded.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fails(away: bool, times: &mut usize) -> Result<(), LedgerError> {
    let fails = away || *times > 0;
    *times = times.saturating_sub(1);
    if fails { Err(LedgerError("the test wants it so".to_owned())) } else { Ok(()) }
}

#[async_trait]
impl OutcomeLedger for FakeLedger {
    async fn claim(&self, copy: &OutcomeCopy) -> Result<Verdict, LedgerError> {
        let ledger = &mut *self.lock();
        fails(ledger.away, &mut ledger.failing_claims)?;
        Ok(ledger.claims.claim(copy, OffsetDateTime::now_utc()))
    }

    async fn record(&self, copy: &OutcomeCopy, became: Recorded) -> Result<(), LedgerError> {
        let ledger = &mut *self.lock();
        fails(ledger.away, &mut ledger.failing_records)?;
        ledger.claims.record(&copy.request, &copy.copy, became);
        ledger.recorded.push(became);
        Ok(())
    }

    fn begin(&self, request: String, since: OffsetDateTime) {
        let ledger = &mut *self.lock();
        if !ledger.away {
            ledger.claims.begin(&request, since);
        }
    }

    async fn begun(&self, request: &str) -> Result<Option<OffsetDateTime>, LedgerError> {
        let ledger = self.lock();
        fails(ledger.away, &mut 0)?;
        Ok(ledger.claims.begun(request))
    }

    async fn is_claimed(&self, request: &str, since: Option<OffsetDateTime>) -> bool {
        self.lock().claims.is_claimed(request, since, OffsetDateTime::now_utc())
    }
}
