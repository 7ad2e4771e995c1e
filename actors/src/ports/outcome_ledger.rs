//! The outcome ledger port: which outcome of a request is notified. One, whatever made a second.
//!
//! A broker delivers again what was not acked, so a request whose outcome is on its queue may be worked on
//! once more, by any worker, and end in another outcome. Before a notifier sends one, it claims the request
//! in a ledger that all workers share. The first claim holds: every other copy of an outcome is dropped,
//! for whoever claims has the copy in hand, and a copy in hand stays on its queue until it is notified. So
//! no loss can come of it; and what is notified twice is only what was notified by a worker that did
//! not live to record so.
//!
//! A notifier whose receiver does not take a copy records that it passes it on, and publishes one of the next
//! generation for later. A ledger may lose its last records with its machine; so whatever they said, a later
//! generation takes the place of an earlier one.
//!
//! Where the ledger cannot be had, outcomes are notified without: twice, perhaps, rather than not at all.
//!
//! A publisher may use a build id again, and publish the same request again. Requests are distinguished by
//! their user, id and body, and publications of one by when a worker first had it in hand. That travels in the
//! request's envelope; and since what is delivered again after a crash has none, it is in the ledger as well. A
//! request that came over HTTP has in its envelope from the first when it was accepted, which is what tells its
//! publications apart: of one that was accepted two messages may be made.
//!
//! | a copy is claimed | and is |
//! |---|---|
//! | before any other of its publication | sent |
//! | once more, since its notifier died | sent; dropped if it was notified; passed on if that was begun |
//! | in a later generation than the one that holds the claim | sent, unless that was |
//! | otherwise | dropped |
//!
//! `testing::conformance::outcome_ledger` checks that, and that all workers agree whatever connection is lost.

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::model::identity::BuildIdentity;

/// The ledger's name of a request: whose build it asks for, under which id, and its body, which no worker
/// touches. So it is the same however often the request is published anew.
pub fn request_name(build: &BuildIdentity, body: &[u8]) -> String {
    build.hash("request", [body]).to_string()
}

/// One copy of a request's outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutcomeCopy {
    /// See [`request_name`].
    pub request: String,
    pub outcome: String,
    /// Its own name: that of the outcome, if it is the first.
    pub copy: String,
    /// How often the outcome was passed on before.
    #[serde(default)]
    pub generation: u64,
    /// What tells the publication from others of the request: when it was accepted, or when a worker first had it in
    /// hand; `None` = not known.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub since: Option<OffsetDateTime>,
}

impl OutcomeCopy {
    /// The first copy of a new outcome.
    pub fn first(request: String, since: Option<OffsetDateTime>) -> Self {
        let outcome = Uuid::new_v4().to_string();
        Self { request, copy: outcome.clone(), outcome, generation: 0, since }
    }

    /// The copy that is to be sent later in this one's place.
    pub fn next_generation(&self) -> Self {
        let copy = Uuid::new_v4().to_string();
        Self { copy, generation: self.generation + 1, ..self.clone() }
    }
}

/// What is to be done with a copy that was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the one to be sent.
    Notify,
    /// A copy of the next generation is to be sent in its place; whether there is one is not known.
    PassOn,
    /// Another copy is sent, or this one was.
    Drop,
}

/// What became of a copy that holds its request's claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// The receiver has it.
    Notified,
    /// The receiver has not taken it: a copy of the next generation is sent in its place.
    PassedOn,
}

/// The ledger cannot be asked or written for now; whether it was written is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the outcome ledger is not available: {0}")]
pub struct LedgerError(pub String);

/// What all workers know of the outcomes.
pub trait OutcomeLedger: Send + Sync + 'static {
    /// Claims a request for the copy of its outcome that is in hand; says what is to be done with it.
    fn claim<'a>(&'a self, copy: &'a OutcomeCopy) -> BoxFuture<'a, Result<Verdict, LedgerError>>;

    /// Records what became of a copy. Should that fail, the copy is sent once more if it comes again.
    fn record<'a>(
        &'a self,
        copy: &'a OutcomeCopy,
        became: Recorded,
    ) -> BoxFuture<'a, Result<(), LedgerError>>;

    /// Records that a [request](request_name) is in hand, at `since`, that nobody had before. Nothing waits
    /// for that, and it may fail.
    fn begin(&self, request: String, since: OffsetDateTime);

    /// When a worker first had a request in hand that came again without an envelope; `None` = nobody has
    /// recorded so, or it was claimed since.
    fn begun<'a>(
        &'a self,
        request: &'a str,
    ) -> BoxFuture<'a, Result<Option<OffsetDateTime>, LedgerError>>;

    /// Whether an outcome of a request that was first in hand at `since` is claimed, as far as this
    /// worker knows without asking: then there is nothing left to do for it.
    fn is_claimed<'a>(
        &'a self,
        request: &'a str,
        since: Option<OffsetDateTime>,
    ) -> BoxFuture<'a, bool>;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn requests_of_one_id_are_told_from_each_other_by_their_users_and_their_bodies() {
        let parts =
            [("u", "b", "1"), ("u", "b", "2"), ("v", "b", "1"), ("u", "b1", ""), ("ub", "", "1")];
        let name = |(user, id, body): (&str, &str, &str)| {
            request_name(&BuildIdentity::new(Some(user), id), body.as_bytes())
        };
        let names: BTreeSet<String> = parts.into_iter().map(name).collect();
        assert_eq!(names.len(), parts.len());
        assert!(names.contains(&name(("u", "b", "1"))));
        assert!(!names.contains(&request_name(&BuildIdentity::new(None, "b"), b"1")));
    }
}
