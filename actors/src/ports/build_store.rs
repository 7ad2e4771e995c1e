//! The build store port: what is known of builds, for whoever asks. Nothing that is done with a build rests on
//! it: where it does not answer, builds go on, and what happened meanwhile is missing.
//!
//! What every store promises; each line is a behaviour of `testing::conformance::build_store`:
//!
//! - A build is its user's: two users who chose one id have two builds.
//! - A build that was accepted is listed once it is known to be in a queue, and not before.
//! - What is recorded of a build is applied in order, and a repetition of the last change changes nothing.
//! - A build that has ended takes no change but of the same publication's outcome; a request that is made again
//!   under its id begins it anew.
//! - Builds are listed newest first, a page at a time, and a page is never disturbed by what is recorded
//!   meanwhile.
//! - A log is what was appended, byte by byte, and is read from any offset. What was lost is marked in it.
//! - What is older than it may be goes, and so do the oldest builds that ended where all hold too many bytes: a
//!   build that has not ended never goes for its size.

use async_trait::async_trait;
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

/// What became of a request that was to be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// It is not known to be in a queue: it is to be published now.
    New,
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
    /// The build waits, uncounted.
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
#[derive(Debug, Clone, PartialEq)]
pub struct StoredAttempt {
    /// From 1.
    pub number: u32,
    pub worker: String,
    pub begun_at: OffsetDateTime,
    /// The stages that had it in hand, and since when.
    pub stages: Vec<(StageName, OffsetDateTime)>,
    pub ended_at: Option<OffsetDateTime>,
    /// What it failed of; `None` = it went well, or is under way.
    pub fault: Option<Attempt>,
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
}

/// Some of the builds that are listed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    pub builds: Vec<StoredBuild>,
    /// Where the next page begins, opaque; `None` = there is none.
    pub next: Option<String>,
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
#[async_trait]
pub trait BuildStore: Send + Sync + 'static {
    /// Makes a request known before it is published. Returns once that is durable.
    async fn accept(&self, requested: &RequestedBuild) -> Result<Acceptance, StoreError>;

    /// Records what happened, in this order: all of it or nothing.
    async fn record(&self, changes: &[Recorded]) -> Result<(), StoreError>;

    /// The builds of this id: one for each user who chose it.
    async fn builds_of_id(&self, build_id: &str) -> Result<Vec<StoredBuild>, StoreError>;

    /// At most `most` builds, newest request first, from where `cursor` says.
    async fn list(
        &self,
        filter: &Filter,
        cursor: Option<&str>,
        most: usize,
    ) -> Result<Page, StoreError>;

    /// At most `most` bytes of a build's log from an offset on; `None` = no such build is known.
    async fn log(
        &self,
        build: &BuildIdentity,
        offset: u64,
        most: usize,
    ) -> Result<Option<LogPart>, StoreError>;

    /// Removes what is kept no longer.
    async fn tidy(&self, now: OffsetDateTime) -> Result<(), StoreError>;

    /// Whether it can be read and written now.
    async fn look(&self) -> Result<(), StoreError>;

    /// Waits until something may have been recorded since the call, by whichever worker. Safe to drop; may
    /// return early.
    async fn changed(&self);
}
