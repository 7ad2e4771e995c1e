//! The three stages of a job that take time: what each of them does is a [`Stage`], what they have in
//! common is the one actor that runs it.
//!
//! A job waits for a slot, fairly among users and no longer than it has time to; is worked on inside
//! its span, within the stage's and its own time limit, for as long as somebody wants its result and
//! the worker does not hand back what it has; and goes to whoever is next. What ends it in any other
//! way is settled.

use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, Message};

use crate::delivery::job::{Job, StageError};
use crate::delivery::lease::{Lease, Leased, Phase};
use crate::delivery::settlement::Settlement;
use crate::model::fault::{Fault, StageName};
use crate::pipeline::pool::{Pool, Slot};
use crate::ports::StatusState;
use crate::ports::build_store::Change;
use crate::scheduling::admission::withdrawn;

/// How often a job that waits for a builder looks whether another worker may have one.
const LOOK: Duration = Duration::from_secs(2);

/// What is done with a job in one stage. Clones are the same stage.
pub trait Stage: Clone + Send + Sync + Unpin + 'static {
    const NAME: StageName;
    /// Points at which a test can make the program panic, wait or die: when a job comes in, when it
    /// is taken in hand, and when it went well.
    const FAILPOINTS: [&'static str; 3];
    /// What the stage before made of the job.
    type In: Send + 'static;
    type Out: Send;

    /// Works on the job. Dropping the future stops the work.
    fn run(
        &self,
        job: &mut Job,
        slot: &Slot,
        input: Self::In,
    ) -> impl Future<Output = Result<Self::Out, Fault>> + Send;

    /// Gives a job that went well to whoever is next.
    fn hand_over(&self, job: Job, out: Self::Out) -> impl Future<Output = ()> + Send;

    /// What a job failed with that was worked on for so many seconds and then stopped.
    fn out_of_time(&self, seconds: f32) -> Fault;
}

/// A job, and what the stage before made of it. Whoever holds it is responsible for the delivery.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Work<T> {
    pub job: Job,
    pub input: T,
}

impl<T> Leased for Work<T> {
    fn lease(&self) -> &Lease {
        &self.job.lease
    }
}

/// Whether a job that is stopped after `limit` would have had all of its time, `timeout`, had it not waited before.
fn was_cut_short(limit: Duration, timeout: Duration, waited: Duration) -> bool {
    limit < timeout && limit + waited >= timeout
}

/// The actor of a stage.
#[derive(Clone)]
pub struct StageActor<S> {
    pub pool: Pool,
    pub settlement: Settlement,
    /// Longest time that one job is worked on.
    pub timeout: Duration,
    pub stage: S,
}

impl<S: Stage> Actor for StageActor<S> {
    type Context = Context<Self>;
}

impl<S: Stage> Handler<Work<S::In>> for StageActor<S> {
    type Result = ();

    fn handle(&mut self, Work { mut job, input }: Work<S::In>, _: &mut Self::Context) {
        fail::fail_point!(S::FAILPOINTS[0]);
        job.lease.set_phase(Phase::Waiting);
        job.progress.enter(S::NAME, job.attempt());
        job.ticket.enter(S::NAME);
        self.pool.run(job.progress.span(), self.clone().work(job, input));
    }
}

impl<S: Stage> StageActor<S> {
    async fn work(self, mut job: Job, input: S::In) {
        let slot = match self.slot(&job).await {
            Ok(slot) => slot,
            Err(ended) => return self.settlement.end(job, ended).await,
        };
        job.begun = true;
        job.lease.set_phase(Phase::Working(S::NAME));
        fail::fail_point!(S::FAILPOINTS[1]);
        let history = &self.settlement.observer.history;
        let (build, commit) = (job.request.identity(), job.history.checkpoint.commit.clone());
        history.stage(&build, job.attempt(), S::NAME);
        if S::NAME == StageName::Builder {
            let statuses = &self.settlement.observer.statuses;
            statuses.tell(&job.request, commit.as_deref(), StatusState::Building, "Building.");
        }
        let started = Instant::now();
        let out = self.run(&slot, &mut job, input).await;
        job.timings.add(S::NAME, started.elapsed().saturating_sub(slot.was_aside()));
        let resolved = job.history.checkpoint.commit.clone().filter(|_| commit.is_none());
        if let Some(commit) = resolved {
            history.tell(&build, Change::Commit(commit));
        }
        match out {
            Ok(out) => {
                fail::fail_point!(S::FAILPOINTS[2]);
                slot.done();
                self.stage.hand_over(job, out).await;
            }
            Err(ended) => {
                match &ended {
                    StageError::Fault(fault) => slot.failed(fault.reason),
                    StageError::HandBack => drop(slot),
                }
                self.settlement.end(job, ended).await;
            }
        }
    }

    /// Waits for a slot; one that is free is had whatever the time.
    async fn slot(&self, job: &Job) -> Result<Slot, StageError> {
        if !job.lease.stands() || job.lease.is_stale() {
            // Taken away from an actor that was stuck and now goes on, or taken back by the broker.
            return Err(StageError::HandBack);
        }
        tokio::select! {
            biased;
            reason = job.ticket.withdrawn() => Err(withdrawn(S::NAME, reason).into()),
            slot = self.pool.slot_for(&job.request.user_id) => slot,
            () = tokio::time::sleep_until(job.patience(self.timeout).into()) => {
                Err(StageError::HandBack)
            }
            () = self.others_are_idle(), if S::NAME == StageName::Builder => {
                Err(StageError::HandBack)
            }
        }
    }

    /// Waits until other workers may have nothing to do: it is they who have the builder then that the job
    /// waits for. One too many was taken here while the source of another took long to fetch.
    async fn others_are_idle(&self) {
        let broker = &self.settlement.broker;
        loop {
            tokio::time::sleep(LOOK).await;
            if matches!(broker.waiting().await, Ok(0))
                && matches!(broker.workers().await, Ok(workers) if workers > 1)
            {
                return;
            }
        }
    }

    /// Works on the job for as long as it may take.
    async fn run(&self, slot: &Slot, job: &mut Job, input: S::In) -> Result<S::Out, StageError> {
        let started = Instant::now();
        let deadline = job.deadline;
        let waited = job.waited(started);
        let not_wanted = job.ticket.withdrawn();
        tokio::select! {
            biased;
            done = self.stage.run(job, slot, input) => Ok(done?),
            () = slot.handing_back() => Err(StageError::HandBack),
            reason = not_wanted => Err(withdrawn(S::NAME, reason).into()),
            () = slot.worked_for(self.timeout) => {
                Err(self.stage.out_of_time(self.timeout.as_secs_f32()).into())
            }
            () = tokio::time::sleep_until(deadline.into()) => {
                let aside = slot.was_aside();
                let limit = deadline.saturating_duration_since(started).saturating_sub(aside);
                if was_cut_short(limit, self.timeout, waited + aside) {
                    return Err(StageError::HandBack);
                }
                Err(self.stage.out_of_time(limit.as_secs_f32()).into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_job_that_waited_for_what_it_lacks_was_cut_short() {
        let seconds = Duration::from_secs;
        let was = |limit, timeout, waited| {
            was_cut_short(seconds(limit), seconds(timeout), seconds(waited))
        };
        assert!(was(474, 900, 1020), "it waited for most of its time");
        assert!(was(0, 900, 1500), "it never had any");
        assert!(was(890, 900, 10));
        assert!(!was(900, 900, 300), "it had all of it");
        assert!(!was(474, 900, 10), "its other stages took that long");
    }
}
