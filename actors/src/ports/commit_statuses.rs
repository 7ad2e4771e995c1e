//! The commit status port: what a forge shows on a commit of how its build stands.
//!
//! What every forge promises; each line is a behaviour of `testing::conformance::commit_statuses`:
//!
//! - A status is shown on its commit, under its name, with its state, its sentence and its link.
//! - A later one of the same name takes the place of the one before.
//! - One that is refused says whether it is worth another try, and when; no message holds the credential.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::model::request::{ForgeName, RepoName};
use crate::model::secret::Secret;

/// How a build stands, as forges tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusState {
    /// It waits.
    Queued,
    Building,
    Success,
    /// Its user has to do something.
    Failure,
    /// The service failed.
    Error,
    Cancelled,
}

/// What is to be shown on a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitStatus {
    pub forge: ForgeName,
    pub repo: RepoName,
    /// In full.
    pub commit: String,
    /// What it is known by on its commit.
    pub name: String,
    pub state: StatusState,
    /// One line, of at most [`LONGEST_DESCRIPTION`](Self::LONGEST_DESCRIPTION) bytes.
    pub description: String,
    /// Where more is shown.
    pub link: Option<String>,
}

impl CommitStatus {
    /// What all forges take.
    pub const LONGEST_DESCRIPTION: usize = 140;
}

/// A status was not taken. The message holds no credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StatusError {
    pub message: String,
    /// Whether the same may be taken later.
    pub passes: bool,
    /// How long the forge asked to be left alone.
    pub retry_after: Option<Duration>,
}

/// Shows on commits how their builds stand.
pub trait CommitStatuses: Send + Sync + 'static {
    /// Shows a status on its commit, with this credential.
    fn show<'a>(
        &'a self,
        status: &'a CommitStatus,
        token: &'a Secret,
    ) -> BoxFuture<'a, Result<(), StatusError>>;
}
