//! The build store port: what is known of builds, for whoever asks. Nothing that is done with a build rests on
//! it: where it does not answer, builds go on, and what happened meanwhile is missing.
//!
//! What every store promises; each line is a behaviour of `testing::conformance::build_store`:
//!
//! - A build is its user's: two users who chose one id have two builds.
//! - A build that was accepted is listed once it is known to be in a queue, and not before.
//! - What is recorded of a build is applied in order, as [`StoredBuild::apply`] says; the same changes recorded
//!   once more, as by whoever did not hear that they were, change nothing.
//! - A build that has ended stays so. What comes late of its attempts and its log is added, since several workers
//!   record; a request that is made again under its id begins it anew, and its log goes on.
//! - What happens to a build that nobody requested is not recorded.
//! - Builds are listed newest first, a page at a time, and a page is never disturbed by what is recorded
//!   meanwhile.
//! - A tally counts what is listed: the builds in each state, and of each user those that have not ended.
//! - A log is what was appended, byte by byte, and is read from any offset. What was lost is marked in it.
//! - What is older than it may be goes, and so do the oldest builds that ended where all hold too many bytes: a
//!   build that has not ended never goes for its size.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::model::fault::StageName;
use crate::model::history::Attempt;
use crate::model::identity::BuildIdentity;
use crate::model::notification::NotificationType;

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BuildState {
    /// In a queue, and not begun.
    Queued,
    Fetching,
    Building,
    Pushing,
    /// Between two attempts.
    Waiting,
    Ready,
    Failed,
    Cancelled,
}

impl BuildState {
    pub const ALL: [BuildState; 8] = [
        BuildState::Queued,
        BuildState::Fetching,
        BuildState::Building,
        BuildState::Pushing,
        BuildState::Waiting,
        BuildState::Ready,
        BuildState::Failed,
        BuildState::Cancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            BuildState::Queued => "queued",
            BuildState::Fetching => "fetching",
            BuildState::Building => "building",
            BuildState::Pushing => "pushing",
            BuildState::Waiting => "waiting",
            BuildState::Ready => "ready",
            BuildState::Failed => "failed",
            BuildState::Cancelled => "cancelled",
        }
    }

    /// The state of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether nothing more happens to the build.
    pub fn is_ended(self) -> bool {
        matches!(self, BuildState::Ready | BuildState::Failed | BuildState::Cancelled)
    }

    /// The state of a build that a stage has in hand.
    pub fn of_stage(stage: StageName) -> Self {
        match stage {
            StageName::Listener => BuildState::Queued,
            StageName::Connector => BuildState::Fetching,
            StageName::Builder => BuildState::Building,
            StageName::Pusher => BuildState::Pushing,
        }
    }

    /// The state of a build that ended so.
    pub fn of_outcome(kind: NotificationType) -> Self {
        match kind {
            NotificationType::ImageReady => BuildState::Ready,
            NotificationType::BuildFailed => BuildState::Failed,
            NotificationType::BuildCancelled => BuildState::Cancelled,
        }
    }
}

/// A request, as it is known before anything is done for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedBuild {
    pub build: BuildIdentity,
    /// See [`request_name`](super::request_name).
    pub request: String,
    pub application_id: Option<String>,
    pub connector: Option<String>,
    pub repo: Option<String>,
    pub requested_at: OffsetDateTime,
}

/// Nobody is still publishing a request that was accepted so long ago: it is not in any queue if that is not known by
/// then.
pub const PUBLISHED_WITHIN: Duration = Duration::from_secs(5 * 60);

impl RequestedBuild {
    /// Whether it has the id of one that was accepted and never published, as far as is known.
    #[must_use]
    pub fn replaces(&self, accepted: &Self) -> bool {
        self.request != accepted.request
            && self.requested_at - accepted.requested_at > PUBLISHED_WITHIN
    }
}

/// What became of a request that was to be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// It is not known to be in a queue: it is to be published now, as what was accepted then. Somebody may have
    /// published that already, and not have lived to say so.
    New { accepted_at: OffsetDateTime },
    /// This very request is in a queue already, or was.
    Known,
    /// Another request of the same user has this id.
    OtherRequest,
}

/// Something that happened to a build.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    pub build: BuildIdentity,
    pub at: OffsetDateTime,
    pub change: Change,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The request is in a queue, or a worker has it in hand.
    Requested(RequestedBuild),
    /// An attempt (from 1) is in the hands of a stage of this worker.
    Stage { attempt: u32, stage: StageName, worker: String },
    /// What the ref came to.
    Commit(String),
    /// Lines for the log, each with its line feed.
    Output(String),
    /// An attempt failed; the build waits for the next one, or ends.
    Failed(Attempt),
    /// The build waits, uncounted: for its first attempt, or for another one.
    Waiting,
    /// The build has ended: its notification's `data`, as JSON.
    Ended { kind: NotificationType, data: String },
}

/// What is known of a build.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredBuild {
    pub requested: RequestedBuild,
    pub state: BuildState,
    pub commit: Option<String>,
    /// When the last change was.
    pub updated_at: OffsetDateTime,
    pub ended_at: Option<OffsetDateTime>,
    /// In the order of their beginnings.
    pub attempts: Vec<StoredAttempt>,
    /// Its notification's `data`, as JSON; `None` = it has not ended.
    pub outcome: Option<String>,
    /// How long its log is, in bytes.
    pub log_bytes: u64,
}

/// One try of a build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredAttempt {
    /// From 1.
    pub number: u32,
    pub worker: String,
    #[serde(with = "time::serde::rfc3339")]
    pub begun_at: OffsetDateTime,
    /// The stages that had it in hand, and since when.
    pub stages: Vec<(StageName, OffsetDateTime)>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// What it failed of; `None` = it went well, or is under way.
    pub fault: Option<Attempt>,
}

/// A request that is made again is told from a repetition of the same one by its time, which the broker may
/// have cut to whole seconds.
const MADE_AGAIN: Duration = Duration::from_secs(1);

impl StoredBuild {
    /// So many attempts are kept: the oldest ones go. A service that is out of reach for a day makes many.
    pub const MOST_ATTEMPTS: usize = 100;

    /// A build of which nothing is known but its request.
    pub fn of(requested: RequestedBuild, at: OffsetDateTime) -> Self {
        Self {
            requested,
            state: BuildState::Queued,
            commit: None,
            updated_at: at,
            ended_at: None,
            attempts: Vec::new(),
            outcome: None,
            log_bytes: 0,
        }
    }

    /// What the build is after a change. The log is for the store to keep, and `log_bytes` with it.
    pub fn apply(&mut self, at: OffsetDateTime, change: &Change) {
        match change {
            Change::Requested(again) => {
                let known = &self.requested;
                let is_another = again.request != known.request
                    || again.requested_at - known.requested_at >= MADE_AGAIN;
                if !(self.state.is_ended() && is_another) {
                    return;
                }
                *self = Self { log_bytes: self.log_bytes, ..Self::of(again.clone(), at) };
            }
            Change::Stage { attempt, stage, worker } => {
                self.enter(BuildState::of_stage(*stage));
                self.begin(at, *attempt, *stage, worker);
            }
            Change::Commit(commit) => self.commit = Some(commit.clone()),
            Change::Output(_) => {}
            Change::Failed(fault) => {
                self.enter(BuildState::Waiting);
                self.end_attempts(at, Some(fault));
            }
            Change::Waiting => {
                let is_begun = !self.attempts.is_empty();
                self.enter(if is_begun { BuildState::Waiting } else { BuildState::Queued });
                self.end_attempts(at, None);
            }
            Change::Ended { kind, data } => {
                let told = Told::of(data);
                // An outcome of an earlier request of this id may be notified late.
                let is_of_another = told.requested_at.is_some_and(|requested_at| {
                    self.requested.requested_at - requested_at >= MADE_AGAIN
                });
                if self.state.is_ended() || is_of_another {
                    return;
                }
                self.end_attempts(at, None);
                self.state = BuildState::of_outcome(*kind);
                self.ended_at = Some(at);
                self.outcome = Some(data.clone());
                self.commit = self.commit.take().or(told.commit);
            }
        }
        self.updated_at = self.updated_at.max(at);
    }

    fn enter(&mut self, state: BuildState) {
        if !self.state.is_ended() {
            self.state = state;
        }
    }

    /// An attempt is in the hands of one more stage, or a new one has begun.
    fn begin(&mut self, at: OffsetDateTime, number: u32, stage: StageName, worker: &str) {
        if let Some(last) = self.attempts.last_mut()
            && (last.number, last.worker.as_str(), last.ended_at) == (number, worker, None)
        {
            return last.stages.push((stage, at));
        }
        // Whoever had one before has not lived to say how it ended.
        self.end_attempts(at, None);
        if self.attempts.len() >= Self::MOST_ATTEMPTS {
            self.attempts.remove(0);
        }
        self.attempts.push(StoredAttempt {
            number,
            worker: worker.to_owned(),
            begun_at: at,
            stages: vec![(stage, at)],
            ended_at: self.ended_at,
            fault: None,
        });
    }

    fn end_attempts(&mut self, at: OffsetDateTime, fault: Option<&Attempt>) {
        for attempt in self.attempts.iter_mut().filter(|attempt| attempt.ended_at.is_none()) {
            attempt.ended_at = Some(at);
            attempt.fault = fault.cloned();
        }
    }
}

/// What an outcome's `data` says that a store needs to know.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Told {
    commit: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    requested_at: Option<OffsetDateTime>,
}

impl Told {
    fn of(data: &str) -> Self {
        serde_json::from_str(data).unwrap_or_default()
    }
}

/// What the same changes are known by when they are recorded once more: 32 hexadecimal digits.
pub fn batch_name(changes: &[Recorded]) -> String {
    let first = changes.first().map(|change| change.build.clone());
    let build = first.unwrap_or_else(|| BuildIdentity::new(None, ""));
    build.hash("batch", changes.iter().map(|change| format!("{change:?}"))).to_string()
}

/// What a build is known by in a store: 32 hexadecimal digits.
pub fn build_key(build: &BuildIdentity) -> String {
    build.hash("stored", [""; 0]).to_string()
}

/// Where a page of the list ends: at the build of this key that was requested then. The list is ordered by both,
/// so what is recorded meanwhile moves nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// In nanoseconds since 1970.
    pub requested_at: i64,
    /// See [`build_key`].
    pub key: String,
}

impl Cursor {
    pub fn of(build: &RequestedBuild) -> Self {
        Self { requested_at: nanos(build.requested_at), key: build_key(&build.build) }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.requested_at, self.key)
    }
}

impl FromStr for Cursor {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let read = || {
            let (requested_at, key) = text.rsplit_once('-')?;
            let is_key = key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
            let requested_at = requested_at.parse().ok()?;
            is_key.then(|| Self { requested_at, key: key.to_owned() })
        };
        read().ok_or_else(|| StoreError::Refused("the cursor is not one of this list".to_owned()))
    }
}

/// A time in nanoseconds since 1970; what is out of range is as early or late as can be said.
pub fn nanos(time: OffsetDateTime) -> i64 {
    let nanos = time.unix_timestamp_nanos();
    nanos.try_into().unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}

/// Which builds are listed: all for which everything holds that is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub state: Option<BuildState>,
    pub user_id: Option<String>,
    pub application_id: Option<String>,
    pub repo: Option<String>,
    /// A commit, or how it begins.
    pub commit: Option<String>,
    pub build_id: Option<String>,
    /// A user, an application or a repository, or how a build's id or a commit begins: any of them.
    pub search: Option<String>,
}

impl Filter {
    /// Whether a build is listed.
    pub fn takes(&self, build: &StoredBuild) -> bool {
        let requested = &build.requested;
        let same = |wanted: &Option<String>, is: Option<&String>| {
            wanted.is_none() || wanted.as_ref() == is
        };
        let begins =
            |commit: &String| build.commit.as_ref().is_some_and(|known| known.starts_with(commit));
        let is_searched = |text: &String| {
            [&requested.build.user_id, &requested.application_id, &requested.repo]
                .contains(&&Some(text.clone()))
                || requested.build.build_id.starts_with(text)
                || begins(text)
        };
        self.state.is_none_or(|state| state == build.state)
            && same(&self.user_id, requested.build.user_id.as_ref())
            && same(&self.application_id, requested.application_id.as_ref())
            && same(&self.repo, requested.repo.as_ref())
            && same(&self.build_id, Some(&requested.build.build_id))
            && self.commit.as_ref().is_none_or(begins)
            && self.search.as_ref().is_none_or(is_searched)
    }
}

/// Some of the builds that are listed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    pub builds: Vec<StoredBuild>,
    /// Where the next page begins, opaque; `None` = there is none.
    pub next: Option<String>,
}

/// How many builds there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Builds in each state; one that no build is in is missing.
    pub states: Vec<(BuildState, u64)>,
    /// The users who have the most builds that have not ended, those with most first.
    pub users: Vec<UserTally>,
}

/// The builds of one user that have not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserTally {
    /// `None` = the requests do not say clearly whose they are.
    pub user_id: Option<String>,
    /// In a queue, or between two attempts.
    pub waiting: u64,
    /// In the hands of a stage.
    pub in_hand: u64,
}

impl Tally {
    /// So many users are named at the most.
    pub const MOST_USERS: usize = 50;

    /// How many builds are in a state.
    pub fn of(&self, state: BuildState) -> u64 {
        self.states.iter().filter(|(known, _)| *known == state).map(|(_, count)| count).sum()
    }
}

/// A part of a build's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogPart {
    /// From the offset that was asked for; not of more than was asked for.
    pub bytes: Vec<u8>,
    /// How long the whole log is by now, in bytes.
    pub total: u64,
}

/// The store cannot be read or written for now. The message holds no credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("the build store is not available: {0}")]
    Unavailable(String),
    /// What was asked for cannot be: a cursor of nobody's.
    #[error("{0}")]
    Refused(String),
}

/// What is known of builds.
pub trait BuildStore: Send + Sync + 'static {
    /// Makes a request known before it is published. Returns once that is stored, and known to every worker. It takes
    /// the place of another one of its id that is not in any queue and [cannot come into one](PUBLISHED_WITHIN) any more.
    fn accept<'a>(
        &'a self,
        requested: &'a RequestedBuild,
    ) -> BoxFuture<'a, Result<Acceptance, StoreError>>;

    /// Records what happened, in this order: all of it or nothing.
    fn record<'a>(&'a self, changes: &'a [Recorded]) -> BoxFuture<'a, Result<(), StoreError>>;

    /// The builds of this id: one for each user who chose it.
    fn builds_of_id<'a>(
        &'a self,
        build_id: &'a str,
    ) -> BoxFuture<'a, Result<Vec<StoredBuild>, StoreError>>;

    /// At most `most` builds, newest request first, from where `cursor` says.
    fn list<'a>(
        &'a self,
        filter: &'a Filter,
        cursor: Option<&'a str>,
        most: usize,
    ) -> BoxFuture<'a, Result<Page, StoreError>>;

    /// How many builds there are, by state and by user.
    fn tally(&self) -> BoxFuture<'_, Result<Tally, StoreError>>;

    /// At most `most` bytes of a build's log from an offset on; `None` = no such build is known.
    fn log<'a>(
        &'a self,
        build: &'a BuildIdentity,
        offset: u64,
        most: usize,
    ) -> BoxFuture<'a, Result<Option<LogPart>, StoreError>>;

    /// Removes what is kept no longer.
    fn tidy(&self, now: OffsetDateTime) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Whether it can be read and written now.
    fn look(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Waits until something may have been recorded since the future was first polled, by whichever worker. Safe
    /// to drop; may return early.
    fn changed(&self) -> BoxFuture<'_, ()>;
}
