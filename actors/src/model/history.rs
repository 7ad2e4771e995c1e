//! What earlier tries of a request left behind.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::model::build_log::cut;
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::image::{BuildKey, BuiltImage};
use crate::model::request::BuilderKind;

/// What is known of a job and saves work when it is tried again. Holds no credential.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Checkpoint {
    /// The full commit that the first try resolved: later tries build the same one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// What the image is known by, once the build was planned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub planned: Option<Planned>,
    /// An image that an engine has built and that only needs to be pushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<BuiltImage>,
}

/// What a plan came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    pub key: BuildKey,
    pub builder: BuilderKind,
}

/// One failed try, as it is kept in the history. Holds no credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub stage: StageName,
    pub reason: Reason,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Whether it counts against the total of tries.
    pub counted: bool,
    /// How long the failing service asked to be left alone, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// Whether the container engine died with the job in hand.
    #[serde(default, skip_serializing_if = "is_default")]
    pub engine_died: bool,
}

/// What earlier tries left behind: travels in the request's envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// When the request was made: the message's timestamp, else when a worker first saw it.
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    /// When a worker first had the request in hand; `None` = not known, as after a crash of that worker.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub since: Option<OffsetDateTime>,
    #[serde(default)]
    pub attempts: Vec<Attempt>,
    /// Counted tries that are no longer in `attempts`, since there were too many.
    #[serde(default, skip_serializing_if = "is_default")]
    forgotten: u32,
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// The last lines of the last failed build.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

impl History {
    /// The history keeps this many tries at the most: the oldest uncounted ones go first, but never one in
    /// which the engine died.
    const LONGEST: usize = 40;
    /// And this many bytes of a message or a step: an envelope has its limit.
    const LONGEST_TEXT: usize = 500;

    pub fn new(requested_at: OffsetDateTime) -> Self {
        Self {
            requested_at,
            since: None,
            attempts: Vec::new(),
            forgotten: 0,
            checkpoint: Checkpoint::default(),
            log: Vec::new(),
        }
    }

    /// Tries that were begun and counted.
    pub fn counted(&self) -> u32 {
        let kept = self.attempts.iter().filter(|attempt| attempt.counted).count() as u32;
        self.forgotten.saturating_add(kept)
    }

    /// How many tries the container engine died in.
    pub fn engine_deaths(&self) -> usize {
        self.attempts.iter().filter(|attempt| attempt.engine_died).count()
    }

    /// How long ago a worker first had the request in hand, as far as that is known.
    pub fn age(&self) -> Duration {
        let since = self.since.map(|since| OffsetDateTime::now_utc() - since);
        since.and_then(|age| age.try_into().ok()).unwrap_or_default()
    }

    /// Keeps of all tries but the last only what they ended in.
    pub fn forget_words(&mut self) {
        let last = self.attempts.len().saturating_sub(1);
        for attempt in &mut self.attempts[..last] {
            attempt.message.clear();
            attempt.step = None;
        }
    }

    /// The same, and the lines of the last failed build.
    pub fn forget_log(&mut self) {
        self.forget_words();
        self.log.clear();
    }

    /// Adds a failed try.
    pub fn record(&mut self, fault: &Fault, counted: bool) {
        if self.attempts.len() >= Self::LONGEST {
            let uncounted = |attempt: &Attempt| !attempt.counted && !attempt.engine_died;
            let counted = |attempt: &Attempt| !attempt.engine_died;
            let oldest = self.attempts.iter().position(uncounted);
            let oldest = oldest.or_else(|| self.attempts.iter().position(counted)).unwrap_or(0);
            self.forgotten += u32::from(self.attempts.remove(oldest).counted);
        }
        if fault.engine_died && counted {
            // So it was of this job that the engine died before.
            for attempt in self.attempts.iter_mut().filter(|attempt| attempt.engine_died) {
                attempt.counted = true;
            }
        }
        self.attempts.push(Attempt {
            at: OffsetDateTime::now_utc(),
            stage: fault.stage,
            reason: fault.reason,
            message: cut(fault.message.clone(), Self::LONGEST_TEXT),
            step: fault.step.clone().map(|step| cut(step, Self::LONGEST_TEXT)),
            counted,
            retry_after: fault.retry_after.map(|delay| delay.as_secs()),
            engine_died: fault.engine_died,
        });
    }
}

/// For fields that are only written where they say something.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_counted_beyond_those_that_are_kept() {
        let mut history = History::new(OffsetDateTime::UNIX_EPOCH);
        let fault = Fault::new(StageName::Pusher, Reason::RegistryFailed, "");
        for tries in 1..=100 {
            history.record(&fault, false);
            history.record(&fault, true);
            let json = serde_json::to_string(&history).expect("a history has only string keys");
            history = serde_json::from_str(&json).expect("it reads what it wrote");
            assert_eq!(history.counted(), tries);
        }
        assert_eq!(history.attempts.len(), History::LONGEST);
    }

    #[test]
    fn an_engine_that_died_is_remembered_and_counted_once_it_died_of_the_job() {
        let mut history = History::new(OffsetDateTime::UNIX_EPOCH);
        let died = Fault::of_dead_engine(StageName::Builder, "");
        history.record(&died, false);
        for _ in 0..100 {
            history.record(&Fault::new(StageName::Builder, Reason::EngineDown, ""), false);
        }
        let json = serde_json::to_string(&history).expect("a history has only string keys");
        history = serde_json::from_str(&json).expect("it reads what it wrote");
        assert_eq!((history.engine_deaths(), history.counted()), (1, 0));
        history.record(&Fault { reason: Reason::EngineFailed, ..died }, true);
        assert_eq!((history.engine_deaths(), history.counted()), (2, 2));
        assert_eq!(history.attempts.len(), History::LONGEST);
    }
}
