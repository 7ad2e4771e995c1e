//! One actor's workers: bounded concurrency, deadlines and a panic boundary around each job.
//!
//! Jobs run on the worker's runtime, not inside the actor: the death of an actor costs none of the
//! jobs in hand, and the panic of a job costs nobody but that job. Its lease is dropped, which counts
//! a try and makes it known as `crashed`; the panic itself is a line in the log, inside the job's span,
//! written where the program looks at panics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tracing::Instrument;

use crate::delivery::job::{Job, StageError};
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::shutdown::{Shutdown, ShutdownPhase};
use crate::scheduling::admission::withdrawn;
use crate::scheduling::fair_semaphore::{FairPermit, FairSemaphore};
use crate::telemetry::health::{Health, InHand};

/// The workers of one actor. Outlives the actor's restarts; clones share the slots.
#[derive(Clone)]
pub struct Pool {
    slots: FairSemaphore,
    health: Arc<Health>,
    shutdown: Shutdown,
    runtime: Handle,
}

impl Pool {
    /// A pool of these slots. Must be called on the runtime that the jobs are to run on.
    pub fn new(slots: FairSemaphore, health: Arc<Health>, shutdown: Shutdown) -> Self {
        Self { slots, health, shutdown, runtime: Handle::current() }
    }

    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Runs `work` inside the panic boundary.
    pub fn run(&self, span: tracing::Span, work: impl Future<Output = ()> + Send + 'static) {
        let health = self.health.clone();
        self.runtime.spawn(
            async move {
                if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                    health.failed(Reason::Crashed);
                }
            }
            .instrument(span),
        );
    }

    /// Waits for a slot for something that is no job.
    pub async fn slot(&self) -> Result<Slot, StageError> {
        let _waiting = self.health.waiting();
        tokio::select! {
            biased;
            () = self.shutdown.reached(ShutdownPhase::HandingBack) => Err(StageError::HandBack),
            held = self.slots.acquire("") => Ok(self.held(held)),
        }
    }

    /// Waits for a slot for a job whose work may take `limit`; one that is free is had whatever the
    /// time.
    pub async fn slot_for(
        &self,
        job: &Job,
        stage: StageName,
        limit: Duration,
    ) -> Result<Slot, StageError> {
        if !job.lease.stands() || job.lease.is_stale() {
            // Taken away from an actor that was stuck and now goes on, or taken back by the broker.
            return Err(StageError::HandBack);
        }
        let _waiting = self.health.waiting();
        tokio::select! {
            biased;
            () = self.shutdown.reached(ShutdownPhase::HandingBack) => Err(StageError::HandBack),
            reason = job.ticket.withdrawn() => Err(withdrawn(stage, reason).into()),
            held = self.slots.acquire(&job.request.user_id) => Ok(self.held(held)),
            () = tokio::time::sleep_until(job.patience(limit).into()) => Err(StageError::HandBack),
        }
    }

    fn held(&self, held: FairPermit) -> Slot {
        Slot {
            shutdown: self.shutdown.clone(),
            in_hand: self.health.in_hand(),
            health: self.health.clone(),
            _held: held,
        }
    }
}

/// The right to work on one job.
pub struct Slot {
    shutdown: Shutdown,
    in_hand: InHand,
    health: Arc<Health>,
    _held: FairPermit,
}

impl Slot {
    /// Runs `work` for at most `limit`, and not past the job's deadline, its withdrawal or the worker's
    /// end. Then the work is dropped, which stops it.
    pub async fn limit<T>(
        &self,
        job: &Job,
        stage: StageName,
        limit: Duration,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, StageError> {
        let started = Instant::now();
        tokio::select! {
            biased;
            done = work => Ok(done?),
            () = self.shutdown.reached(ShutdownPhase::HandingBack) => Err(StageError::HandBack),
            reason = job.ticket.withdrawn() => Err(withdrawn(stage, reason).into()),
            () = tokio::time::sleep_until(job.deadline.min(started + limit).into()) => {
                let limit = limit.min(job.deadline.saturating_duration_since(started));
                Err(out_of_time(stage, limit).into())
            }
        }
    }

    /// Waits until the worker hands back what it has in hand.
    pub async fn handing_back(&self) {
        self.shutdown.reached(ShutdownPhase::HandingBack).await;
    }

    /// The job went well.
    pub fn done(self) {
        self.in_hand.done();
    }

    /// The job failed.
    pub fn failed(self, reason: Reason) {
        self.health.failed(reason);
    }

    /// The job ended without its result.
    pub fn ended(self, ended: &StageError) {
        if let StageError::Fault(fault) = ended {
            self.failed(fault.reason);
        }
    }
}

fn out_of_time(stage: StageName, limit: Duration) -> Fault {
    let seconds = limit.as_secs_f32();
    let (reason, message) = match stage {
        StageName::Builder => (
            Reason::BuildTimeout,
            format!("The build took longer than {seconds:.0} s and was stopped."),
        ),
        StageName::Connector => {
            (Reason::Timeout, format!("The repository could not be fetched within {seconds:.0} s."))
        }
        StageName::Listener | StageName::Pusher => {
            (Reason::Timeout, format!("The image could not be pushed within {seconds:.0} s."))
        }
    };
    Fault::new(stage, reason, message)
}
