//! In-memory commit statuses.

use futures_util::future::BoxFuture;

use super::script::{Record, Script};
use crate::model::secret::Secret;
use crate::ports::{CommitStatus, CommitStatuses, StatusError};

/// A forge in memory that remembers what it shows. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FakeCommitStatuses {
    pub script: Script<StatusError>,
    /// What it was asked to show.
    pub calls: Record<CommitStatus>,
    /// What it shows.
    pub taken: Record<CommitStatus>,
}

impl CommitStatuses for FakeCommitStatuses {
    fn show<'a>(
        &'a self,
        status: &'a CommitStatus,
        _token: &'a Secret,
    ) -> BoxFuture<'a, Result<(), StatusError>> {
        Box::pin(async move {
            self.calls.push(status.clone());
            self.script.play().await?;
            self.taken.push(status.clone());
            Ok(())
        })
    }
}
