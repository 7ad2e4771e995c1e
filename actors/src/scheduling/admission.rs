//! The jobs that this worker has in hand, seen together: who waits, who builds, who was withdrawn.
//!
//! What acts on waiting work sees only what has been delivered to this worker:
//!
//! - **Fair share**: a user with too many jobs here is throttled: the job waits for the shortest
//!   delay, uncounted, so that those behind it in the queue come into sight.
//! - **Supersede**: a newer request for the same application and ref makes an older one pointless that
//!   has not started building.
//! - **Cancel**: by user and build id, wherever the job is. A cancellation is remembered for a while, since
//!   its request may still be in the queue or on the ladder.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::watch;

use crate::model::fault::{Fault, Reason, StageName};
use crate::model::identity::BuildIdentity;
use crate::model::request::BuildRequest;

/// How long a cancellation is remembered.
const MEMORY: Duration = Duration::from_secs(24 * 3600);
/// How many cancellations are remembered.
const MOST_REMEMBERED: usize = 10_000;

/// The jobs in hand. Clones share them.
#[derive(Clone, Default)]
pub struct Admission {
    rules: AdmissionRules,
    jobs: Arc<Mutex<Jobs>>,
}

/// What admission enforces.
#[derive(Debug, Clone, Default)]
pub struct AdmissionRules {
    /// Jobs of one user in this worker at once; 0 = no limit.
    pub per_user: usize,
    /// Whether newer requests supersede older ones.
    pub supersede: bool,
}

#[derive(Default)]
struct Jobs {
    /// By arrival.
    entries: BTreeMap<u64, Entry>,
    next: u64,
    cancelled: VecDeque<(Instant, Cancellation)>,
}

/// Which build somebody wants to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancellation {
    pub build_id: String,
    /// Whose build it is; `None` = not said, which is enough where a worker gave the build its id: of those
    /// there are no two. An id that a client chose may be that of several users' builds.
    pub user_id: Option<String>,
}

impl Cancellation {
    fn means(&self, build: &BuildIdentity, given_id: bool) -> bool {
        self.build_id == build.build_id
            && match &self.user_id {
                Some(_) => self.user_id == build.user_id,
                None => given_id,
            }
    }
}

struct Entry {
    build: BuildIdentity,
    /// Whether a worker gave it its id.
    given_id: bool,
    lane: String,
    requested_at: OffsetDateTime,
    building: bool,
    withdrawn: watch::Sender<Option<Reason>>,
}

/// What admission says to a job that was just read.
pub enum Admittance {
    Admitted(Ticket),
    /// The user has enough jobs here.
    Throttled,
    /// Nobody wants its result any more.
    Withdrawn(Reason),
}

/// A job's place among those in hand, until it is dropped.
pub struct Ticket {
    admission: Admission,
    number: u64,
    withdrawn: watch::Receiver<Option<Reason>>,
}

impl Admission {
    pub fn new(rules: AdmissionRules) -> Self {
        Self { rules, jobs: Arc::default() }
    }

    /// Asks for a ticket.
    pub fn admit(
        &self,
        request: &BuildRequest,
        given_id: bool,
        requested_at: OffsetDateTime,
    ) -> Admittance {
        let build = request.identity();
        let mut jobs = self.lock();
        jobs.forget_old();
        if jobs.cancelled.iter().any(|(_, cancelled)| cancelled.means(&build, given_id)) {
            return Admittance::Withdrawn(Reason::Cancelled);
        }
        let lane = lane(request);
        if self.rules.supersede
            && let Some(reason) = jobs.supersede(&lane, &build, requested_at)
        {
            return Admittance::Withdrawn(reason);
        }
        let limit = self.rules.per_user;
        let here =
            jobs.entries.values().filter(|entry| entry.build.user_id == build.user_id).count();
        if limit > 0 && here >= limit {
            return Admittance::Throttled;
        }
        let number = jobs.next;
        jobs.next += 1;
        let (sender, withdrawn) = watch::channel(None);
        let entry =
            Entry { build, given_id, lane, requested_at, building: false, withdrawn: sender };
        jobs.entries.insert(number, entry);
        Admittance::Admitted(Ticket { admission: self.clone(), number, withdrawn })
    }

    /// Withdraws a build, now or when it comes into sight.
    pub fn cancel(&self, cancellation: Cancellation) {
        let mut jobs = self.lock();
        jobs.forget_old();
        if jobs.cancelled.len() >= MOST_REMEMBERED {
            jobs.cancelled.pop_front();
        }
        let meant = |entry: &&Entry| cancellation.means(&entry.build, entry.given_id);
        jobs.entries.values().filter(meant).for_each(|entry| entry.withdraw(Reason::Cancelled));
        jobs.cancelled.push_back((Instant::now(), cancellation));
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Jobs {
    /// Withdraws older jobs of the lane that do not build yet, or finds that the new one is the older.
    fn supersede(
        &self,
        lane: &str,
        build: &BuildIdentity,
        requested_at: OffsetDateTime,
    ) -> Option<Reason> {
        let others = self
            .entries
            .values()
            .filter(|entry| entry.lane == lane && entry.build != *build)
            .filter(|entry| entry.withdrawn.borrow().is_none());
        let mut newest = true;
        for entry in others {
            if entry.requested_at > requested_at {
                newest = false;
            } else if !entry.building {
                entry.withdraw(Reason::Superseded);
            }
        }
        (!newest).then_some(Reason::Superseded)
    }

    fn forget_old(&mut self) {
        while self.cancelled.front().is_some_and(|(at, _)| at.elapsed() > MEMORY) {
            self.cancelled.pop_front();
        }
    }
}

impl Entry {
    fn withdraw(&self, reason: Reason) {
        self.withdrawn.send_if_modified(|withdrawn| {
            let first = withdrawn.is_none();
            withdrawn.get_or_insert(reason);
            first
        });
    }
}

impl Ticket {
    /// Says that the job builds now: it is no longer superseded.
    pub fn building(&self) {
        if let Some(entry) = self.admission.lock().entries.get_mut(&self.number) {
            entry.building = true;
        }
    }

    /// Waits until nobody wants the job's result any more.
    pub fn withdrawn(&self) -> impl Future<Output = Reason> + use<> {
        let mut withdrawn = self.withdrawn.clone();
        async move {
            let reason = withdrawn.wait_for(Option::is_some).await.map(|reason| *reason);
            match reason {
                Ok(reason) => reason.unwrap_or(Reason::Cancelled),
                // The job has ended.
                Err(_) => std::future::pending().await,
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission.lock().entries.remove(&self.number);
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket({})", self.number)
    }
}

/// What makes two requests mean the same thing, at different times.
fn lane(request: &BuildRequest) -> String {
    let parts = [
        request.user_id.clone(),
        request.application_id.clone(),
        request.forge.as_str().to_owned(),
        request.repo.to_string(),
        format!("{:?}", request.target),
        request.plan.root_directory.clone(),
    ];
    // A line break is in none of them.
    parts.join("\n")
}

/// The fault of a job that was withdrawn.
pub fn withdrawn(stage: StageName, reason: Reason) -> Fault {
    let message = match reason {
        Reason::Superseded => "A newer request for the same application and ref took its place.",
        _ => "The build was cancelled.",
    };
    Fault::new(stage, reason, message)
}
