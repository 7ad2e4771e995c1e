//! What was told more than once. That is allowed, under one id; here is counted how it came about.
//!
//! Nobody says why an ack did not arrive. What is known is which worker made an outcome or told it, when
//! it did so, and when its process ended and its connections to the broker were lost: the nearest of these
//! counts as the cause. Where there is none, an earlier try may have become two: then the last of them that
//! befell a worker which had accepted the build counts.

use std::collections::BTreeMap;

use time::{Duration, OffsetDateTime};

use crate::journal::{Journal, What};
use crate::support::managers::Told;

/// A repeated notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeat {
    pub build_id: String,
    pub kind: Kind,
    pub cause: Cause,
    /// Whether it was told under the `webhook-id` of the first.
    pub same_id: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The very same outcome: between the manager's answer and the ack something happened.
    ToldAgain,
    /// An outcome that was made once more: between the first and the build's ack something happened.
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
    /// Nobody did anything wrong.
    Publisher,
    /// The evidence does not tell.
    Unknown,
}

/// The repeats among all that was told of a build that the broker may have taken in so many copies.
pub fn of(build_id: &str, copies: usize, told: &[&Told], journal: &Journal) -> Vec<Repeat> {
    let accepted: Vec<&Told> = told.iter().copied().filter(|told| told.answered < 300).collect();
    let Some(first) = accepted.first() else { return Vec::new() };
    let repeat = |told: &Told, kind, cause| Repeat {
        build_id: build_id.to_owned(),
        kind,
        cause,
        same_id: told.webhook_id == first.webhook_id,
    };
    // An outcome's own time tells it from one that was made again.
    let mut outcomes: BTreeMap<OffsetDateTime, Vec<&Told>> = BTreeMap::new();
    for told in &accepted {
        outcomes.entry(told.made()).or_default().push(told);
    }
    let mut repeats = Vec::new();
    for (made, told) in &outcomes {
        for pair in told.windows(2) {
            let window = (pair[0].moment(), pair[1].moment());
            let told_by = cause(journal, pair[0].teller(), window);
            let cause = told_by.unwrap_or_else(|| made_by(journal, build_id, *made, window.1));
            repeats.push(repeat(pair[1], Kind::ToldAgain, cause));
        }
    }
    let made: Vec<OffsetDateTime> = outcomes.keys().copied().collect();
    for (number, pair) in made.windows(2).enumerate() {
        let again = outcomes[&pair[1]][0];
        repeats.push(if number + 1 < copies {
            repeat(again, Kind::PublishedTwice, Cause::Publisher)
        } else {
            repeat(again, Kind::MadeAgain, made_by(journal, build_id, pair[0], pair[1]))
        });
    }
    repeats
}

/// What happened to the worker that made an outcome, or to those that had the build before.
fn made_by(
    journal: &Journal,
    build_id: &str,
    made: OffsetDateTime,
    again: OffsetDateTime,
) -> Cause {
    let maker = journal.maker(build_id, made);
    let earlier = || match journal.last_setback(build_id, again)?.what {
        What::Ended => Some(Cause::Crash),
        _ => Some(Cause::Connection),
    };
    maker
        .and_then(|maker| cause(journal, maker, (made, again)))
        .or_else(earlier)
        .unwrap_or(Cause::Unknown)
}

/// What happened to a worker between what it did and the repetition of it.
fn cause(
    journal: &Journal,
    worker: &str,
    (done, again): (OffsetDateTime, OffsetDateTime),
) -> Option<Cause> {
    // A lost connection is noticed late by whoever lost it, and may be lost already while the worker
    // still does what it then cannot ack. That a process has ended is noticed a little later.
    let setbacks = journal.entries.iter().filter(|entry| entry.worker == worker);
    let possible = setbacks.filter_map(|entry| {
        let (cause, before, after) = match entry.what {
            What::Ended => (Cause::Crash, Duration::ZERO, Duration::SECOND),
            What::LostBroker => (Cause::Connection, Duration::seconds(5), Duration::seconds(10)),
            What::Accepted(_) | What::Made(_) => return None,
        };
        let near = (done - before..=again + after).contains(&entry.at);
        near.then_some((cause, (entry.at - done).abs()))
    });
    possible.min_by_key(|(_, distance)| *distance).map(|(cause, _)| cause)
}

impl Told {
    /// When it arrived.
    fn moment(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() - self.at.elapsed()
    }
}
