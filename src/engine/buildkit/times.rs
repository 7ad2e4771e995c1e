//! Which time each file of a context is sent with.
//!
//! The engine keeps the last context of an application, and takes a file for unchanged that has the size
//! and time that it knows. So a file that is as it was in the application's last build is sent with the
//! time that it had then, and any other with the time of this build: as in a working tree in which one
//! commit is checked out after the other. No time is used by two builds, and none is known to another
//! process ([`FileTimes::shared_key`]), so a time that the engine knows always means the same content.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use image_builder_actors::model::digest::{add_part, hex};
use image_builder_actors::model::reference::ImageReference;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::context::ReadContexts;

/// Files that are remembered, of all applications together: about 32 bytes each.
const MOST_FILES: usize = 500_000;

/// What is remembered of the contexts that this process sent.
#[derive(Debug)]
pub(in crate::engine) struct FileTimes {
    /// Tells this process from all others.
    process: String,
    /// The time of the build that was begun last, in nanoseconds.
    last: AtomicI64,
    sent: Mutex<Sent>,
    /// The contexts that were read and may be sent soon.
    pub(super) read: ReadContexts,
}

#[derive(Debug, Default)]
struct Sent {
    /// By shared key.
    contexts: HashMap<String, Arc<HashMap<u64, i64>>>,
    /// Shared keys, the one that was built last at the end.
    order: VecDeque<String>,
    files: usize,
}

impl Default for FileTimes {
    fn default() -> Self {
        let process = uuid::Uuid::new_v4().simple().to_string();
        Self {
            process,
            last: AtomicI64::new(0),
            sent: Mutex::default(),
            read: ReadContexts::default(),
        }
    }
}

impl FileTimes {
    /// By which the engine finds the last context of an application again. It tells nobody else anything:
    /// only sessions of this process have it.
    pub(in crate::engine) fn shared_key(&self, reference: &ImageReference) -> String {
        let mut hash = Sha256::new();
        add_part(&mut hash, &self.process);
        add_part(&mut hash, &reference.repository);
        hex(&hash.finalize())
    }

    /// The times for one build that begins `now`, by the engine's clock. A `fresh` one has no time of an
    /// earlier build: all of its files are newer than whatever those have left in a cache mount.
    pub(in crate::engine) fn begin(
        &self,
        shared_key: &str,
        now: OffsetDateTime,
        fresh: bool,
    ) -> BuildTimes {
        let now = i64::try_from(now.unix_timestamp_nanos()).unwrap_or(i64::MAX / 2);
        let later = |last: i64| Some(now.max(last + 1));
        let last = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
        let now = last.map_or(now, |last| now.max(last + 1));
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let known = sent.contexts.get(shared_key).filter(|_| !fresh).cloned();
        BuildTimes { now, known: known.unwrap_or_default(), seen: Mutex::default() }
    }

    /// Remembers what a build has sent.
    pub(in crate::engine) fn end(&self, shared_key: &str, times: &BuildTimes) {
        let seen = std::mem::take(&mut *times.seen.lock().unwrap_or_else(PoisonError::into_inner));
        if seen.is_empty() {
            return;
        }
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.files += seen.len();
        if let Some(before) = sent.contexts.insert(shared_key.to_owned(), Arc::new(seen)) {
            sent.files -= before.len();
            sent.order.retain(|key| key != shared_key);
        }
        sent.order.push_back(shared_key.to_owned());
        while sent.files > MOST_FILES {
            let Some(oldest) = sent.order.pop_front() else { break };
            let gone = sent.contexts.remove(&oldest).map_or(0, |files| files.len());
            sent.files -= gone;
        }
    }
}

/// The times of one build's files.
#[derive(Debug)]
pub(in crate::engine) struct BuildTimes {
    /// In nanoseconds since 1970, as all times here.
    now: i64,
    /// Of the last build, by what each entry is: its path, mode and content.
    known: Arc<HashMap<u64, i64>>,
    seen: Mutex<HashMap<u64, i64>>,
}

impl BuildTimes {
    /// The time of this build.
    pub(super) fn now(&self) -> i64 {
        self.now
    }

    /// The time of an entry that is this one.
    pub(super) fn of(&self, identity: u64) -> i64 {
        let time = self.known.get(&identity).copied().unwrap_or(self.now);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(identity, time);
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).expect("a time")
    }

    #[test]
    fn what_is_as_it_was_keeps_its_time_and_no_two_builds_have_the_same() {
        let times = FileTimes::default();
        let first = times.begin("shop", moment(1), false);
        assert_eq!((first.of(1), first.of(2)), (1_000_000_000, 1_000_000_000));
        times.end("shop", &first);
        // The engine's clock may stand still, or go back.
        let second = times.begin("shop", moment(1), false);
        assert_eq!((second.of(1), second.of(3)), (1_000_000_000, 1_000_000_001));
        times.end("shop", &second);
        let third = times.begin("shop", moment(0), false);
        assert_eq!(third.of(2), 1_000_000_002, "it was not in the last one");
        assert_eq!(third.of(3), 1_000_000_001);
        assert_eq!(times.begin("blog", moment(2), false).of(1), 2_000_000_000);
        assert_eq!(times.begin("shop", moment(3), true).of(3), 3_000_000_000, "it is fresh");
    }

    #[test]
    fn a_build_that_sent_nothing_is_no_reason_to_forget() {
        let times = FileTimes::default();
        let first = times.begin("shop", moment(1), false);
        first.of(1);
        times.end("shop", &first);
        times.end("shop", &times.begin("shop", moment(2), false));
        assert_eq!(times.begin("shop", moment(3), false).of(1), 1_000_000_000);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_is_forgotten() {
        let times = FileTimes::default();
        for (key, files) in
            [("a", MOST_FILES / 2), ("b", MOST_FILES / 2), ("a", 3), ("c", MOST_FILES / 2)]
        {
            let build = times.begin(key, moment(1), false);
            for file in 0..files {
                build.of(file as u64);
            }
            times.end(key, &build);
        }
        let sent = times.sent.lock().expect("whole");
        assert_eq!(sent.contexts.keys().count(), 2);
        assert!(!sent.contexts.contains_key("b") && sent.files == MOST_FILES / 2 + 3);
    }

    #[test]
    fn an_engine_never_takes_a_context_for_one_of_somebody_else() {
        let (one, other) = (FileTimes::default(), FileTimes::default());
        let of = |times: &FileTimes, user: &str| {
            times.shared_key(&ImageReference::for_build("r", user, "shop", "c"))
        };
        assert_eq!(of(&one, "alice"), of(&one, "alice"));
        assert_ne!(of(&one, "alice"), of(&one, "bob"));
        assert_ne!(of(&one, "alice"), of(&other, "alice"));
    }
}
