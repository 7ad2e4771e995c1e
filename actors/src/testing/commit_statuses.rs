//! In-memory commit statuses.

use async_trait::async_trait;

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

#[async_trait]
impl CommitStatuses for FakeCommitStatuses {
    async fn show(&self, status: &CommitStatus, _token: &Secret) -> Result<(), StatusError> {
        self.calls.push(status.clone());
        self.script.play().await?;
        self.taken.push(status.clone());
        Ok(())
    }
}
