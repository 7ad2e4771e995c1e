//! One actor's workers: bounded concurrency, deadlines and a panic boundary around each job.
//!
//! Jobs run on the worker's runtime, not inside the actor: the death of an actor costs none of the
//! jobs in hand, and the panic of a job costs none of its siblings. A job's panic is told to the
//! supervisor, which restarts the actor.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::Instrument;

use crate::fault::{Fault, Reason, Stage};
use crate::health::{Health, InHand};
use crate::lifecycle::{Lifecycle, Phase};
use crate::supervisor::panic_text;

/// The workers of one actor. Outlives the actor's restarts; clones share the slots.
#[derive(Clone)]
pub struct Pool {
    slots: Arc<Semaphore>,
    health: Arc<Health>,
    lifecycle: Lifecycle,
    panics: mpsc::UnboundedSender<String>,
    runtime: Handle,
}

/// A job was ended by something else than itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It failed.
    Fault(Fault),
    /// It has to be handed back, uncounted: the worker stops, or the job only waited for too long.
    HandBack,
}

impl From<Fault> for Ended {
    fn from(fault: Fault) -> Self {
        Ended::Fault(fault)
    }
}

impl Pool {
    /// A pool of `concurrency` slots, and the panics of its jobs, for the supervisor. Must be called
    /// on the runtime that the jobs are to run on.
    pub fn new(
        concurrency: usize,
        health: Arc<Health>,
        lifecycle: Lifecycle,
    ) -> (Self, mpsc::UnboundedReceiver<String>) {
        let (panics, told) = mpsc::unbounded_channel();
        let slots = Arc::new(Semaphore::new(concurrency));
        (Self { slots, health, lifecycle, panics, runtime: Handle::current() }, told)
    }

    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Runs `work` inside the panic boundary.
    pub fn run(&self, span: tracing::Span, work: impl Future<Output = ()> + Send + 'static) {
        let panics = self.panics.clone();
        self.runtime.spawn(
            async move {
                if let Err(panic) = AssertUnwindSafe(work).catch_unwind().await {
                    let _ = panics.send(panic_text(&*panic));
                }
            }
            .instrument(span),
        );
    }

    /// Waits for a slot; one that is free is had whatever the time.
    pub async fn slot(&self, patience: Option<Instant>) -> Result<Slot, Ended> {
        let _waiting = self.health.waiting();
        let permit = tokio::select! {
            biased;
            () = self.lifecycle.reached(Phase::HandingBack) => return Err(Ended::HandBack),
            permit = self.slots.clone().acquire_owned() => permit.map_err(|_| Ended::HandBack)?,
            () = at(patience) => return Err(Ended::HandBack),
        };
        Ok(Slot {
            lifecycle: self.lifecycle.clone(),
            in_hand: self.health.in_hand(),
            health: self.health.clone(),
            _permit: permit,
        })
    }
}

/// The right to work on one job.
pub struct Slot {
    lifecycle: Lifecycle,
    in_hand: InHand,
    health: Arc<Health>,
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    /// Runs `work` for at most `limit`, and not past `deadline` or the worker's end. When the time
    /// is up the work is dropped, which stops it.
    pub async fn limit<T>(
        &self,
        stage: Stage,
        limit: Duration,
        deadline: Instant,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Ended> {
        let started = Instant::now();
        tokio::select! {
            biased;
            done = work => Ok(done?),
            () = self.lifecycle.reached(Phase::HandingBack) => Err(Ended::HandBack),
            () = at(Some(deadline.min(started + limit))) => {
                let limit = limit.min(deadline.saturating_duration_since(started));
                Err(Ended::Fault(out_of_time(stage, limit)))
            }
        }
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

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn out_of_time(stage: Stage, limit: Duration) -> Fault {
    let seconds = limit.as_secs_f32();
    let (reason, message) = match stage {
        Stage::Builder => (
            Reason::BuildTimeout,
            format!("The build took longer than {seconds:.0} s and was stopped."),
        ),
        Stage::Connector => {
            (Reason::Timeout, format!("The repository could not be fetched within {seconds:.0} s."))
        }
        Stage::Listener | Stage::Pusher => {
            (Reason::Timeout, format!("The image could not be pushed within {seconds:.0} s."))
        }
    };
    Fault::new(stage, reason, message)
}
