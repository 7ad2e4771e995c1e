//! A build store as small as these tests need it.

use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::ports::build_store::{
    Acceptance, BuildState, BuildStore, Change, Filter, LogPart, Page, Recorded, RequestedBuild,
    StoreError, StoredAttempt, StoredBuild,
};
use time::OffsetDateTime;
use tokio::sync::watch;

#[derive(Default)]
pub(super) struct Store {
    node: Mutex<Node>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Node {
    down: bool,
    accepted: Vec<RequestedBuild>,
    builds: Vec<StoredBuild>,
    logs: Vec<(BuildIdentity, Vec<u8>)>,
}

impl Store {
    pub(super) fn set_down(&self, down: bool) {
        self.node.lock().expect("nobody panics with it").down = down;
    }

    fn up(&self) -> Result<MutexGuard<'_, Node>, StoreError> {
        let node = self.node.lock().expect("nobody panics with it");
        match node.down {
            true => Err(StoreError::Unavailable("the test has taken it down".to_owned())),
            false => Ok(node),
        }
    }
}

impl Node {
    fn apply(&mut self, recorded: &Recorded) {
        let Recorded { build, at, change } = recorded;
        if let Change::Requested(requested) = change {
            if self.builds.iter().all(|known| known.requested.build != *build) {
                self.builds.insert(
                    0,
                    StoredBuild {
                        requested: requested.clone(),
                        state: BuildState::Queued,
                        commit: None,
                        updated_at: *at,
                        ended_at: None,
                        attempts: Vec::new(),
                        outcome: None,
                        log_bytes: 0,
                    },
                );
                self.logs.push((build.clone(), Vec::new()));
            }
            return;
        }
        let known = self.builds.iter_mut().find(|known| known.requested.build == *build);
        let known = known.expect("it was requested");
        match change {
            Change::Stage { attempt, stage, worker } => {
                known.state = BuildState::of_stage(*stage);
                known.attempts.push(StoredAttempt {
                    number: *attempt,
                    worker: worker.clone(),
                    begun_at: *at,
                    stages: vec![(*stage, *at)],
                    ended_at: None,
                    fault: None,
                });
            }
            Change::Output(text) => {
                let log = self.logs.iter_mut().find(|(of, _)| of == build);
                let (_, log) = log.expect("it was requested");
                log.extend_from_slice(text.as_bytes());
                known.log_bytes = log.len() as u64;
            }
            Change::Ended { kind, data } => {
                known.state = BuildState::of_outcome(*kind);
                known.ended_at = Some(*at);
                known.outcome = Some(data.clone());
            }
            _ => {}
        }
    }
}

#[async_trait]
impl BuildStore for Store {
    async fn accept(&self, requested: &RequestedBuild) -> Result<Acceptance, StoreError> {
        let mut node = self.up()?;
        let same = |known: &&RequestedBuild| known.build == requested.build;
        if let Some(known) = node.builds.iter().map(|known| &known.requested).find(same) {
            let is_same = known.request == requested.request;
            return Ok(if is_same { Acceptance::Known } else { Acceptance::OtherRequest });
        }
        node.accepted.push(requested.clone());
        Ok(Acceptance::New)
    }

    async fn record(&self, changes: &[Recorded]) -> Result<(), StoreError> {
        let mut node = self.up()?;
        changes.iter().for_each(|change| node.apply(change));
        drop(node);
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn builds_of_id(&self, build_id: &str) -> Result<Vec<StoredBuild>, StoreError> {
        let mut builds = self.up()?.builds.clone();
        builds.retain(|known| known.requested.build.build_id == build_id);
        Ok(builds)
    }

    async fn list(
        &self,
        filter: &Filter,
        cursor: Option<&str>,
        most: usize,
    ) -> Result<Page, StoreError> {
        let skipped = cursor.map_or(Ok(0), str::parse::<usize>);
        let skipped =
            skipped.map_err(|_| StoreError::Refused("the cursor is nobody's".to_owned()))?;
        let mut builds = self.up()?.builds.clone();
        builds.retain(|known| {
            filter.state.is_none_or(|state| known.state == state)
                && (filter.user_id.is_none() || known.requested.build.user_id == filter.user_id)
        });
        let next = (builds.len() > skipped + most).then(|| (skipped + most).to_string());
        Ok(Page { builds: builds.into_iter().skip(skipped).take(most).collect(), next })
    }

    async fn log(
        &self,
        build: &BuildIdentity,
        offset: u64,
        most: usize,
    ) -> Result<Option<LogPart>, StoreError> {
        let node = self.up()?;
        let log = node.logs.iter().find(|(of, _)| of == build);
        Ok(log.map(|(_, log)| LogPart {
            bytes: log.iter().skip(offset as usize).take(most).copied().collect(),
            total: log.len() as u64,
        }))
    }

    async fn tidy(&self, _: OffsetDateTime) -> Result<(), StoreError> {
        Ok(())
    }

    async fn look(&self) -> Result<(), StoreError> {
        self.up().map(drop)
    }

    async fn changed(&self) {
        // The sender lives as long as `self`.
        let _ = self.changes.subscribe().changed().await;
    }
}
