//! One actor's workers: bounded concurrency, and a panic boundary around each job.
//!
//! Jobs run on the worker's runtime, not inside the actor: the death of an actor costs none of the
//! jobs in hand, and the panic of a job costs nobody but that job. Its lease is dropped, which counts
//! a try and makes it known as `crashed`; the panic itself is a line in the log, inside the job's span,
//! written where the program looks at panics.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::watch;
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
                pool: self.clone(),
                user_id: user_id.to_owned(),
                begun: Instant::now(),
                aside: watch::Sender::default(),
                held: Mutex::new(Some((permit, self.health.in_hand()))),
            }),
        }
    }
}

/// The right to work on one job.
pub struct Slot {
    pool: Pool,
    user_id: String,
    begun: Instant,
    aside: watch::Sender<Aside>,
    /// `None` while the job is [aside](Slot::aside).
    held: Mutex<Option<(FairPermit, InHand)>>,
}

/// For how long a job was aside, and since when it is.
#[derive(Debug, Default, Clone, Copy)]
struct Aside {
    before: Duration,
    since: Option<Instant>,
}

impl Aside {
    fn total(self) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Slot {
    /// Waits for something that is no work: others have the slot meanwhile, and then the job waits for one again. It
    /// is not worked on for as long as all that takes.
    pub async fn aside<T>(&self, what: impl Future<Output = T>) -> T {
        self.aside.send_modify(|aside| aside.since = Some(Instant::now()));
        let waiting = self.pool.health.waiting();
        drop(self.held().take());
        let done = what.await;
        let permit = self.pool.slots.acquire(&self.user_id).await;
        *self.held() = Some((permit, self.pool.health.in_hand()));
        drop(waiting);
        self.aside.send_modify(|aside| *aside = Aside { before: aside.total(), since: None });
        done
    }

    /// For how long the job was aside.
    pub fn was_aside(&self) -> Duration {
        self.aside.borrow().total()
    }

    /// Waits until the job was worked on for so long.
    pub async fn worked_for(&self, limit: Duration) {
        let mut aside = self.aside.subscribe();
        loop {
            let Aside { before, since } = *aside.borrow_and_update();
            let is_used_up = async {
                match since {
                    None => tokio::time::sleep_until((self.begun + before + limit).into()).await,
                    Some(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                () = is_used_up => return,
                // The sender lives in `self`.
                _ = aside.changed() => {}
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<(FairPermit, InHand)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the worker hands back what it has in hand.
    pub async fn handing_back(&self) {
        self.pool.shutdown.reached(ShutdownPhase::HandingBack).await;
    }

    /// The job went well.
    pub fn done(self) {
        if let Some((_permit, in_hand)) = self.held().take() {
            in_hand.done();
        }
    }

    /// The job failed.
    pub fn failed(self, reason: Reason) {
        self.pool.health.failed(reason);
    }
}
