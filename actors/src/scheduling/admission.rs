//! The jobs that this worker has in hand, seen together: who waits, who builds, who was withdrawn.
//!
//! - **Room**: a request is taken from the backlog when a builder is free for it, and no earlier than it takes to fetch.
//!   A job has its builder from the moment it is taken until the steps of its build are done: while its image is
//!   stored, the next one is taken. Where a source takes long to fetch, its builder may be another user's who has
//!   nothing in hand; and such a user is let in while somebody else's further job waits for a builder here, which is
//!   theirs before it.
//! - **Supersede**: a newer request for the same application and ref makes an older one pointless that
//!   has not started building. Newer is what was requested later, whenever it came.
//!   What this worker put in the backlog counts before it is taken. A setting makes all requests do so, and a
//!   request can ask for it itself: then commits of one branch are one ref.
//! - **Cancel**: by user and build id, wherever the job is. A cancellation is remembered for a while, since
//!   its request may still be in the backlog or on the ladder.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

use crate::model::fault::{Fault, Reason, StageName};
use crate::model::identity::BuildIdentity;
use crate::model::request::{BuildRequest, Target};
use crate::ports::Load;

/// How long a cancellation is remembered, and what was put in the backlog.
const MEMORY: Duration = Duration::from_secs(24 * 3600);
/// A request of the same id that was made so long after a cancellation is another one. Until then the clocks of
/// publishers and workers may differ.
const LATER: Duration = Duration::from_secs(5 * 60);
/// How many of each are remembered.
const MOST_REMEMBERED: usize = 10_000;
/// A source that takes longer to fetch than this keeps no builder waiting for it that another user can have.
const SLOW_FETCH: Duration = Duration::from_secs(2);

/// An image that takes longer to store than this is counted as being built again: whoever took the next job has
/// waited long enough.
const SLOW_STORE: Duration = Duration::from_secs(2);

/// Whom there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// A builder is free for one more job.
    Anybody,
    /// None is, but a user who has nothing in hand would have the next one.
    Newcomers,
}

/// The jobs in hand. Clones share them.
#[derive(Clone, Default)]
pub struct Admission {
    rules: AdmissionRules,
    jobs: Arc<Mutex<Jobs>>,
    /// Notified whenever a job moves on or ends.
    moved: Arc<Notify>,
}

/// What admission enforces.
#[derive(Debug, Clone, Default)]
pub struct AdmissionRules {
    /// Builds at once.
    pub builders: usize,
    /// Of those, one user's.
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
    /// Of each subject the newest request that was put in the backlog, and when it was requested.
    expected: HashMap<String, Expected>,
    /// The subjects of those, by when they were put in first.
    subjects: VecDeque<(Instant, String)>,
}

/// A request that was put in the backlog.
struct Expected {
    requested_at: OffsetDateTime,
    build: BuildIdentity,
    given_id: bool,
}

/// Which build somebody wants to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancellation {
    pub build_id: String,
    /// Whose build it is; `None` = not said, which is enough where a worker gave the build its id: of those
    /// there are no two. An id that a client chose may be that of several users' builds.
    pub user_id: Option<String>,
    /// When it was sent, at the latest.
    pub at: OffsetDateTime,
}

impl Cancellation {
    fn means(&self, build: &BuildIdentity, given_id: bool, requested_at: OffsetDateTime) -> bool {
        // Nobody has requested it in the future, whatever the publisher's clock says.
        let requested_at = requested_at.min(OffsetDateTime::now_utc());
        self.build_id == build.build_id
            && requested_at <= self.at + LATER
            && match &self.user_id {
                Some(_) => self.user_id == build.user_id,
                None => given_id,
            }
    }
}

struct Entry {
    user_id: String,
    taken: Instant,
    stage: StageName,
    /// Since when only its image is left to be stored.
    storing: Option<Instant>,
    /// Whether it waits for something else than a builder, and has none.
    aside: bool,
    /// `None` = its request was not read yet.
    read: Option<ReadEntry>,
    withdrawn: watch::Sender<Option<Reason>>,
}

/// Where a job is on its way through a builder.
enum Place {
    /// Its source is fetched; until then a builder is kept for it, `None` = that takes long.
    Fetched {
        until: Option<Instant>,
    },
    /// It waits for a builder.
    Waiting,
    Building,
    /// Its builder is free as soon as its image is stored.
    Storing,
}

/// What is known of a job whose request was read.
struct ReadEntry {
    build: BuildIdentity,
    /// Whether a worker gave it its id.
    given_id: bool,
    subject: String,
    requested_at: OffsetDateTime,
    /// Whether somebody wants it again, whatever came after it: it neither supersedes nor is superseded.
    redriven: bool,
    building: bool,
}

/// A job's place among those in hand, until it is dropped.
pub struct Ticket {
    admission: Admission,
    number: u64,
    withdrawn: watch::Receiver<Option<Reason>>,
}

impl Admission {
    pub fn new(rules: AdmissionRules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// How many builds there are at once.
    pub fn builders(&self) -> usize {
        self.rules.builders
    }

    /// Gives a place to a request that was taken from the backlog.
    pub fn taken(&self, user_id: &str) -> Ticket {
        let mut jobs = self.lock();
        let number = jobs.next;
        jobs.next += 1;
        let (sender, withdrawn) = watch::channel(None);
        let entry = Entry {
            user_id: user_id.to_owned(),
            taken: Instant::now(),
            stage: StageName::Listener,
            storing: None,
            aside: false,
            read: None,
            withdrawn: sender,
        };
        jobs.entries.insert(number, entry);
        drop(jobs);
        Ticket { admission: self.clone(), number, withdrawn }
    }

    /// Waits until there is room for one more job.
    pub async fn room(&self) -> Room {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            // Before the look, so that no move after it is missed.
            moved.as_mut().enable();
            let later = match self.lock().room(self.rules.builders) {
                Ok(room) => return room,
                Err(later) => later,
            };
            tokio::select! {
                () = moved => {}
                () = tokio::time::sleep_until(later.into()) => {}
            }
        }
    }

    /// Waits until a job moves on or ends, from this call on.
    pub fn changed(&self) -> impl Future<Output = ()> + use<> {
        self.moved.clone().notified_owned()
    }

    /// How many builds of each user are in hand, and how many there may be; what is only pushed is built, but whoever
    /// has that is no newcomer.
    pub fn load(&self, room: Room) -> Load {
        let counts = |entry: &&Entry| match room {
            Room::Anybody => entry.stage != StageName::Pusher && !entry.aside,
            Room::Newcomers => true,
        };
        let mut builds = HashMap::new();
        for entry in self.lock().entries.values().filter(counts) {
            *builds.entry(entry.user_id.clone()).or_default() += 1;
        }
        match room {
            Room::Anybody => Load { builds, most_per_user: self.rules.per_user, at_hand: false },
            Room::Newcomers => Load { builds, most_per_user: 1, at_hand: true },
        }
    }

    /// Whether nobody wants a build any more.
    pub fn is_cancelled(
        &self,
        build: &BuildIdentity,
        given_id: bool,
        requested_at: OffsetDateTime,
    ) -> bool {
        let mut jobs = self.lock();
        jobs.forget_old();
        jobs.is_cancelled(build, given_id, requested_at)
    }

    /// Says that a request is put in the backlog: what was requested before it is out of date.
    pub fn expect(&self, request: &BuildRequest, given_id: bool, requested_at: OffsetDateTime) {
        if !self.supersedes(request) || request.redrive_of.is_some() {
            return;
        }
        let subject = subject(request);
        let mut jobs = self.lock();
        jobs.forget_old();
        let known = jobs.expected.get(&subject);
        if known.is_some_and(|known| known.requested_at > requested_at) {
            return;
        }
        let expected = Expected { requested_at, build: request.identity(), given_id };
        if jobs.expected.insert(subject.clone(), expected).is_none() {
            jobs.subjects.push_back((Instant::now(), subject));
        }
    }

    /// Whether a request takes the place of older ones.
    fn supersedes(&self, request: &BuildRequest) -> bool {
        self.rules.supersede || request.supersede
    }

    /// Withdraws a build, now or when it comes into sight.
    pub fn cancel(&self, cancellation: Cancellation) {
        let mut jobs = self.lock();
        jobs.forget_old();
        if jobs.cancelled.len() >= MOST_REMEMBERED {
            jobs.cancelled.pop_front();
        }
        for entry in jobs.entries.values() {
            let means = |read: &ReadEntry| {
                cancellation.means(&read.build, read.given_id, read.requested_at)
            };
            if entry.read.as_ref().is_some_and(means) {
                entry.withdraw(Reason::Cancelled);
            }
        }
        jobs.cancelled.push_back((Instant::now(), cancellation));
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Jobs {
    /// Whom there is room for; the error is when to look again, should no job move on.
    fn room(&self, builders: usize) -> Result<Room, Instant> {
        let now = Instant::now();
        let places = || self.entries.values().filter_map(|entry| entry.place(now));
        let count = |wanted: fn(&Place) -> bool| places().filter(wanted).count();
        let waiting = count(|place| matches!(place, Place::Waiting));
        let stored = count(|place| matches!(place, Place::Storing));
        let slow = count(|place| matches!(place, Place::Fetched { until: None }));
        // To each of all these a builder will belong.
        let all = places().count() - stored;
        let has_idle = slow > 0 && all - slow + stored < builders;
        if all < builders {
            Ok(Room::Anybody)
        } else if has_idle || waiting > 0 && all > builders {
            Ok(Room::Newcomers)
        } else {
            let until = places().filter_map(|place| match place {
                Place::Fetched { until } => until,
                _ => None,
            });
            Err(until.min().unwrap_or(now + Duration::from_secs(3600)))
        }
    }

    /// Withdraws older jobs of the same subject that do not build yet, or finds that the new one is the older.
    fn supersede(&self, new: &ReadEntry) -> Option<Reason> {
        let others = self
            .entries
            .values()
            .filter(|entry| entry.withdrawn.borrow().is_none())
            .filter_map(|entry| Some((entry, entry.read.as_ref()?)))
            .filter(|(_, read)| !read.redriven)
            .filter(|(_, read)| read.subject == new.subject && read.build != new.build);
        let expected = self.expected.get(&new.subject).is_some_and(|known| {
            let Expected { requested_at, build, given_id } = known;
            // A second copy of a request is no newer one.
            *build != new.build
                && *requested_at > new.requested_at
                && !self.is_cancelled(build, *given_id, *requested_at)
        });
        let mut newest = !expected;
        for (entry, read) in others {
            if read.requested_at > new.requested_at {
                newest = false;
            } else if !read.building {
                entry.withdraw(Reason::Superseded);
            }
        }
        (!newest).then_some(Reason::Superseded)
    }

    fn is_cancelled(
        &self,
        build: &BuildIdentity,
        given_id: bool,
        requested_at: OffsetDateTime,
    ) -> bool {
        self.cancelled.iter().any(|(_, cancelled)| cancelled.means(build, given_id, requested_at))
    }

    fn forget_old(&mut self) {
        while self.cancelled.front().is_some_and(|(at, _)| at.elapsed() > MEMORY) {
            self.cancelled.pop_front();
        }
        let too_many = |jobs: &Self| jobs.subjects.len() > MOST_REMEMBERED;
        while too_many(self) || self.subjects.front().is_some_and(|(at, _)| at.elapsed() > MEMORY) {
            let Some((_, subject)) = self.subjects.pop_front() else { return };
            self.expected.remove(&subject);
        }
    }
}

impl Entry {
    /// Where it is on its way through a builder; `None` = it needs none.
    fn place(&self, now: Instant) -> Option<Place> {
        match self.stage {
            StageName::Listener | StageName::Connector => {
                let until = Some(self.taken + SLOW_FETCH).filter(|until| *until > now);
                Some(Place::Fetched { until })
            }
            StageName::Builder if self.aside => None,
            StageName::Builder if self.storing.is_some_and(|since| since + SLOW_STORE > now) => {
                Some(Place::Storing)
            }
            StageName::Builder => match &self.read {
                Some(read) if read.building => Some(Place::Building),
                _ => Some(Place::Waiting),
            },
            StageName::Pusher => None,
        }
    }

    fn withdraw(&self, reason: Reason) {
        self.withdrawn.send_if_modified(|withdrawn| {
            let first = withdrawn.is_none();
            withdrawn.get_or_insert(reason);
            first
        });
    }
}

impl Ticket {
    /// Says what was read: the job takes part in supersede and cancel from here on.
    ///
    /// # Errors
    /// Nobody wants its result any more.
    pub fn read(
        &self,
        request: &BuildRequest,
        given_id: bool,
        requested_at: OffsetDateTime,
    ) -> Result<(), Reason> {
        let build = request.identity();
        let mut jobs = self.admission.lock();
        jobs.forget_old();
        if jobs.is_cancelled(&build, given_id, requested_at) {
            return Err(Reason::Cancelled);
        }
        let read = ReadEntry {
            build,
            given_id,
            subject: subject(request),
            requested_at,
            redriven: request.redrive_of.is_some(),
            building: false,
        };
        if self.admission.supersedes(request)
            && !read.redriven
            && let Some(reason) = jobs.supersede(&read)
        {
            return Err(reason);
        }
        if let Some(entry) = jobs.entries.get_mut(&self.number) {
            entry.user_id.clone_from(&request.user_id);
            entry.read = Some(read);
        }
        Ok(())
    }

    /// Says that the job is in this stage now.
    pub fn enter(&self, stage: StageName) {
        self.change(|entry| {
            entry.stage = stage;
            entry.aside = false;
        });
    }

    /// Says that the job waits for something else than a builder until it [enters](Self::enter) its stage again, and
    /// has none: it does not build yet.
    pub fn aside(&self) {
        self.change(|entry| {
            entry.aside = true;
            if let Some(read) = &mut entry.read {
                read.building = false;
            }
        });
    }

    /// Says that the steps of the job's build are done.
    pub fn storing(&self) {
        self.change(|entry| entry.storing = Some(Instant::now()));
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        self.admission.lock().entries.get_mut(&self.number).map(change);
        self.admission.moved.notify_waiters();
    }

    /// Says that the job builds now: it is no longer superseded.
    pub fn building(&self) {
        let mut jobs = self.admission.lock();
        if let Some(read) = jobs.entries.get_mut(&self.number).and_then(|entry| entry.read.as_mut())
        {
            read.building = true;
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
        self.admission.moved.notify_waiters();
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket({})", self.number)
    }
}

/// What makes two requests mean the same thing, at different times.
fn subject(request: &BuildRequest) -> String {
    // One that says so means its branch as it was at some time.
    let target = match &request.target {
        Target::Commit { branch: Some(branch), .. } if request.supersede => {
            Target::Branch(branch.clone())
        }
        target => target.clone(),
    };
    let parts = [
        request.user_id.clone(),
        request.application_id.clone(),
        request.forge.as_str().to_owned(),
        request.repo.to_string(),
        format!("{target:?}"),
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
