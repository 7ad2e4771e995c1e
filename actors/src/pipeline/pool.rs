//! One actor's workers: bounded concurrency, and a panic boundary around each job.
//!
//! Jobs run on the worker's runtime, not inside the actor: the death of an actor costs none of the
//! jobs in hand, and the panic of a job costs nobody but that job. Its lease is dropped, which counts
//! a try and makes it known as `crashed`; the panic itself is a line in the log, inside the job's span,
//! written where the program looks at panics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tracing::Instrument;

use crate::delivery::job::StageError;
use crate::model::fault::Reason;
use crate::model::shutdown::{Shutdown, ShutdownPhase};
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

    /// Waits for a slot for something that is nobody's.
    pub async fn slot(&self) -> Result<Slot, StageError> {
        self.slot_for("").await
    }

    /// Waits for a slot for a job of this user.
    pub async fn slot_for(&self, user_id: &str) -> Result<Slot, StageError> {
        let _waiting = self.health.waiting();
        tokio::select! {
            biased;
            () = self.shutdown.reached(ShutdownPhase::HandingBack) => Err(StageError::HandBack),
            permit = self.slots.acquire(user_id) => Ok(Slot {
                shutdown: self.shutdown.clone(),
                in_hand: self.health.in_hand(),
                health: self.health.clone(),
                _permit: permit,
            }),
        }
    }
}

/// The right to work on one job.
pub struct Slot {
    shutdown: Shutdown,
    in_hand: InHand,
    health: Arc<Health>,
    _permit: FairPermit,
}

impl Slot {
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
}
