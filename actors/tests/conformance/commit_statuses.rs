//! The forge in memory that shows commit statuses.

use std::time::Duration;

use image_builder_actors::model::request::{ForgeName, RepoName};
use image_builder_actors::ports::{CommitStatuses, StatusError, StatusState};
use image_builder_actors::testing::commit_statuses::FakeCommitStatuses;
use image_builder_actors::testing::conformance::commit_statuses::{Shown, World};

struct InMemory(FakeCommitStatuses);

impl World for InMemory {
    fn statuses(&self) -> &dyn CommitStatuses {
        &self.0
    }

    fn forge(&self) -> ForgeName {
        ForgeName::Github
    }

    fn refuse_next(&self, patience: Option<Duration>) {
        let message = "It was refused.".to_owned();
        let error = StatusError { message, passes: patience.is_some(), retry_after: patience };
        self.0.script.fail(1, error);
    }

    fn shown(&self, repo: &RepoName, commit: &str) -> Vec<Shown> {
        let shown = self.0.taken.all().into_iter();
        let of = shown.filter(|status| status.repo == *repo && status.commit == commit);
        of.map(|status| {
            let good = match status.state {
                StatusState::Queued | StatusState::Building => None,
                state => Some(state == StatusState::Success),
            };
            (status.name, good, status.description, status.link.unwrap_or_default())
        })
        .collect()
    }
}

image_builder_actors::commit_statuses_conformance!(InMemory(FakeCommitStatuses::default()));
