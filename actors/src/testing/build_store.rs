//! A build store in memory, with faults on demand. Clones are the same store.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::model::identity::BuildIdentity;
use crate::ports::build_store::{
    Acceptance, BuildState, BuildStore, Change, Cursor, Filter, LogPart, Page, Recorded,
    RequestedBuild, StoreError, StoredBuild, Tally, UserTally, batch_name,
};

/// A build store in memory.
#[derive(Clone)]
pub struct FakeBuildStore {
    inner: Arc<Mutex<Inner>>,
    /// How often something was recorded.
    changes: watch::Sender<u64>,
    /// What was not changed for longer goes.
    pub ttl: Duration,
    /// How many bytes all logs may hold.
    pub budget: u64,
}

#[derive(Default)]
struct Inner {
    away: bool,
    builds: BTreeMap<BuildIdentity, Known>,
    batches: HashSet<String>,
}

struct Known {
    build: StoredBuild,
    /// Whether it is known to be in a queue, or to have been.
    is_queued: bool,
    log: Vec<u8>,
}

impl Default for FakeBuildStore {
    fn default() -> Self {
        Self {
            inner: Arc::default(),
            changes: watch::Sender::new(0),
            ttl: Duration::from_secs(30 * 24 * 60 * 60),
            budget: 1 << 20,
        }
    }
}

impl FakeBuildStore {
    /// Cannot be had from now on, or can be had again.
    pub fn set_away(&self, away: bool) {
        self.lock().away = away;
    }

    /// The one build of this id, if it is listed.
    pub fn build(&self, build_id: &str) -> Option<StoredBuild> {
        let inner = self.lock();
        let mut queued = inner.builds.values().filter(|known| known.is_queued);
        let found = queued.find(|known| known.build.requested.build.build_id == build_id);
        found.map(|known| known.build.clone())
    }

    /// Waits until the build of this id is as `good` wants it.
    pub async fn until(&self, build_id: &str, good: impl Fn(&StoredBuild) -> bool) -> StoredBuild {
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(build) = self.build(build_id).filter(&good) {
                return build;
            }
            // The sender is `self`, so it cannot be gone.
            let _ = changes.changed().await;
        }
    }

    /// The log of the one build of this id.
    pub fn whole_log(&self, build_id: &str) -> String {
        let inner = self.lock();
        let found = inner.builds.iter().find(|(build, _)| build.build_id == build_id);
        found
            .map_or_else(String::new, |(_, known)| String::from_utf8_lossy(&known.log).into_owned())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known, unless the store cannot be had.
    fn there(&self) -> Result<MutexGuard<'_, Inner>, StoreError> {
        let inner = self.lock();
        match inner.away {
            true => Err(StoreError::Unavailable("the test wants it so".to_owned())),
            false => Ok(inner),
        }
    }
}

impl Inner {
    fn apply(&mut self, Recorded { build, at, change }: &Recorded) {
        if let Change::Requested(requested) = change {
            let new = || Known {
                build: StoredBuild::of(requested.clone(), *at),
                is_queued: true,
                log: Vec::new(),
            };
            let known = self.builds.entry(build.clone()).or_insert_with(new);
            if !known.is_queued && known.build.requested.request != requested.request {
                *known = new();
            }
            known.is_queued = true;
        }
        let Some(known) = self.builds.get_mut(build) else { return };
        known.build.apply(*at, change);
        if let Change::Output(text) = change {
            known.log.extend_from_slice(text.as_bytes());
            known.build.log_bytes = known.log.len() as u64;
        }
    }
}

impl BuildStore for FakeBuildStore {
    fn accept<'a>(
        &'a self,
        requested: &'a RequestedBuild,
    ) -> BoxFuture<'a, Result<Acceptance, StoreError>> {
        Box::pin(async move {
            let mut inner = self.there()?;
            let known = inner.builds.entry(requested.build.clone()).or_insert_with(|| Known {
                build: StoredBuild::of(requested.clone(), requested.requested_at),
                is_queued: false,
                log: Vec::new(),
            });
            if !known.is_queued && requested.replaces(&known.build.requested) {
                known.build = StoredBuild::of(requested.clone(), requested.requested_at);
            }
            Ok(match known.build.requested.request == requested.request {
                false => Acceptance::OtherRequest,
                true if known.is_queued => Acceptance::Known,
                true => Acceptance::New { accepted_at: known.build.requested.requested_at },
            })
        })
    }

    fn record<'a>(&'a self, changes: &'a [Recorded]) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let mut inner = self.there()?;
            if inner.batches.insert(batch_name(changes)) {
                changes.iter().for_each(|change| inner.apply(change));
            }
            drop(inner);
            self.changes.send_modify(|count| *count += 1);
            Ok(())
        })
    }

    fn builds_of_id<'a>(
        &'a self,
        build_id: &'a str,
    ) -> BoxFuture<'a, Result<Vec<StoredBuild>, StoreError>> {
        Box::pin(async move {
            let inner = self.there()?;
            let queued = inner.builds.values().filter(|known| known.is_queued);
            let of_id = queued.filter(|known| known.build.requested.build.build_id == build_id);
            Ok(of_id.map(|known| known.build.clone()).collect())
        })
    }

    fn list<'a>(
        &'a self,
        filter: &'a Filter,
        cursor: Option<&'a str>,
        most: usize,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        Box::pin(async move {
            let after = cursor.map(str::parse::<Cursor>).transpose()?;
            let inner = self.there()?;
            let queued = inner.builds.values().filter(|known| known.is_queued);
            let mut found: Vec<_> = queued
                .filter(|known| filter.takes(&known.build))
                .map(|known| (Cursor::of(&known.build.requested), known.build.clone()))
                .filter(|(at, _)| after.as_ref().is_none_or(|after| at < after))
                .collect();
            found.sort_by(|(one, _), (other, _)| other.cmp(one));
            let is_last = found.len() <= most;
            found.truncate(most);
            let next = found.last().filter(|_| !is_last).map(|(at, _)| at.to_string());
            Ok(Page { builds: found.into_iter().map(|(_, build)| build).collect(), next })
        })
    }

    fn tally(&self) -> BoxFuture<'_, Result<Tally, StoreError>> {
        Box::pin(async move {
            let inner = self.there()?;
            let (mut states, mut users) = (HashMap::new(), HashMap::<_, (u64, u64)>::new());
            for known in inner.builds.values().filter(|known| known.is_queued) {
                let state = known.build.state;
                *states.entry(state).or_default() += 1;
                if state.is_ended() {
                    continue;
                }
                let (waiting, in_hand) =
                    users.entry(known.build.requested.build.user_id.clone()).or_default();
                match state {
                    BuildState::Queued | BuildState::Waiting => *waiting += 1,
                    _ => *in_hand += 1,
                }
            }
            let tally = |(user_id, (waiting, in_hand))| UserTally { user_id, waiting, in_hand };
            let mut users: Vec<_> = users.into_iter().map(tally).collect();
            users.sort_by_key(|user| (Reverse(user.waiting + user.in_hand), user.user_id.clone()));
            users.truncate(Tally::MOST_USERS);
            Ok(Tally { states: states.into_iter().collect(), users })
        })
    }

    fn log<'a>(
        &'a self,
        build: &'a BuildIdentity,
        offset: u64,
        most: usize,
    ) -> BoxFuture<'a, Result<Option<LogPart>, StoreError>> {
        Box::pin(async move {
            let inner = self.there()?;
            let known = inner.builds.get(build).filter(|known| known.is_queued);
            Ok(known.map(|known| {
                let offset = usize::try_from(offset).unwrap_or(usize::MAX);
                LogPart {
                    bytes: known.log.iter().skip(offset).take(most).copied().collect(),
                    total: known.log.len() as u64,
                }
            }))
        })
    }

    fn tidy(&self, now: OffsetDateTime) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let mut inner = self.there()?;
            inner.builds.retain(|_, known| known.build.updated_at >= now - self.ttl);
            let held = |inner: &Inner| -> u64 {
                inner.builds.values().map(|known| known.log.len() as u64).sum()
            };
            while held(&inner) > self.budget {
                let ended = inner.builds.iter().filter_map(|(build, known)| {
                    known.build.ended_at.map(|ended_at| (ended_at, build))
                });
                let Some((_, oldest)) = ended.min() else { break };
                let oldest = oldest.clone();
                inner.builds.remove(&oldest);
            }
            Ok(())
        })
    }

    fn look(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.there().map(drop) })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // The sender is `self`, so it cannot be gone.
            let _ = self.changes.subscribe().changed().await;
        })
    }
}
