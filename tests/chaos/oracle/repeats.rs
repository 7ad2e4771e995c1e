//! What was told more than once. That is allowed, under one id, of an outcome whose worker did not live to
//! note that it was taken, or never heard that it was, and of a request that was published more than once;
//! here is counted how it came about.
//!
//! Nobody says why a note was not made. What is known is which worker told an outcome, when it did so and
//! when it gave up waiting for the answer, and when its process ended and its connections to the broker were
//! lost: the nearest of these counts as the cause.

use std::collections::BTreeMap;

use time::{Duration, OffsetDateTime};

use crate::journal::{Journal, What};
use crate::support::managers::Notification;

/// A repeated notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeat {
    pub build_id: String,
    pub kind: Kind,
    /// Whether it was told under the `webhook-id` of the first.
    pub same_id: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The very same outcome.
    NotifiedAgain(Cause),
    /// An outcome that was made once more: only one of the two may be told.
    MadeAgain,
    /// The request was published twice.
    PublishedTwice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The worker's process ended.
    Crash,
    /// The worker lost a connection to the broker.
    Connection,
    /// The worker did not get the manager's answer.
    Answer,
    /// There is none.
    Unknown,
}

/// The repeats among all that was told of a build that the broker may have taken in so many copies.
pub fn of(build_id: &str, copies: usize, told: &[&Notification], journal: &Journal) -> Vec<Repeat> {
    let accepted: Vec<&Notification> =
        told.iter().copied().filter(|told| told.answered < 300).collect();
    let Some(first) = accepted.first() else { return Vec::new() };
    let repeat = |told: &Notification, kind| Repeat {
        build_id: build_id.to_owned(),
        kind,
        same_id: told.webhook_id == first.webhook_id,
    };
    // An outcome's own time tells it from one that was made again.
    let mut outcomes: BTreeMap<OffsetDateTime, Vec<&Notification>> = BTreeMap::new();
    for told in &accepted {
        outcomes.entry(told.made()).or_default().push(told);
    }
    let mut repeats = Vec::new();
    for told in outcomes.values() {
        for pair in told.windows(2) {
            repeats.push(repeat(pair[1], Kind::NotifiedAgain(cause(journal, build_id, pair))));
        }
    }
    for (number, told) in outcomes.values().skip(1).enumerate() {
        let published = number + 1 < copies;
        let kind = if published { Kind::PublishedTwice } else { Kind::MadeAgain };
        repeats.push(repeat(told[0], kind));
    }
    repeats
}

/// What happened to the worker that told the first of these, before the second was told.
fn cause(journal: &Journal, build_id: &str, pair: &[&Notification]) -> Cause {
    let (worker, done, again) = (pair[0].notified_by(), pair[0].moment(), pair[1].moment());
    // A lost connection is noticed late by whoever lost it, and may be lost already while the worker
    // still does what it then cannot note. That a process has ended is noticed a little later.
    let possible = journal.entries.iter().filter_map(|entry| {
        let (cause, before, after) = match &entry.what {
            What::Ended => (Cause::Crash, Duration::ZERO, Duration::SECOND),
            What::LostBroker => (Cause::Connection, Duration::seconds(5), Duration::seconds(10)),
            What::CannotNotify(id) if id == build_id => {
                (Cause::Answer, Duration::ZERO, Duration::ZERO)
            }
            What::CannotNotify(_) => return None,
        };
        let near = (done - before..=again + after).contains(&entry.at);
        (entry.worker == worker && near).then_some((cause, (entry.at - done).abs()))
    });
    possible.min_by_key(|(_, distance)| *distance).map_or(Cause::Unknown, |(cause, _)| cause)
}

impl Notification {
    /// When it arrived.
    fn moment(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() - self.at.elapsed()
    }
}
