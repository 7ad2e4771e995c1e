//! One build request on its way through the worker.

use std::time::{Duration, Instant};

use crate::delivery::lease::Lease;
use crate::model::build_log::BuildLog;
use crate::model::fault::{Fault, StageName};
use crate::model::history::History;
use crate::model::request::BuildRequest;
use crate::scheduling::admission::Ticket;

/// How long each stage had the job in hand, over all that this worker did with it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    pub connector: Duration,
    pub builder: Duration,
    pub pusher: Duration,
}

impl Timings {
    /// A stage that is timed has done with the job.
    pub fn add(&mut self, stage: StageName, took: Duration) {
        match stage {
            StageName::Listener => {}
            StageName::Connector => self.connector += took,
            StageName::Builder => self.builder += took,
            StageName::Pusher => self.pusher += took,
        }
    }

    fn sum(&self) -> Duration {
        self.connector + self.builder + self.pusher
    }
}

/// One build request on its way through the worker: whoever holds it is responsible for it.
///
/// Dropping it unsettled hands the delivery back, see [`Lease`].
#[derive(Debug)]
pub struct Job {
    pub request: BuildRequest,
    pub history: History,
    /// Whether a stage of this worker has had it in hand: then a try was begun.
    pub begun: bool,
    pub timings: Timings,
    /// When this worker got the delivery.
    pub received: Instant,
    /// Past this moment the job must be settled.
    pub deadline: Instant,
    /// Where the build's output goes, and where its last lines are kept.
    pub progress: BuildLog,
    /// The job's place among all that this worker has in hand.
    pub ticket: Ticket,
    pub lease: Lease,
}

impl Job {
    /// How long the job may wait for work that may take `limit`: with less than half of that left it
    /// would only be cut short, so it goes back to the queue instead.
    pub fn patience(&self, limit: Duration) -> Instant {
        let all = self.deadline.saturating_duration_since(self.received);
        self.deadline.checked_sub(limit.min(all) / 2).unwrap_or(self.received)
    }

    /// For how long no stage has worked on the job, from when it came until `now`.
    pub fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.received).saturating_sub(self.timings.sum())
    }

    /// The number of the present try, from 1.
    pub fn attempt(&self) -> u32 {
        self.history.counted() + 1
    }
}

/// A job was ended by something else than itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageError {
    /// It failed.
    Fault(Fault),
    /// It has to be handed back, uncounted: the worker stops, or the job only waited for too long.
    HandBack,
}

impl From<Fault> for StageError {
    fn from(fault: Fault) -> Self {
        StageError::Fault(fault)
    }
}
