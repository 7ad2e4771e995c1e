//! What the log says of the requests: the pure part.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::OutcomeCopy;

/// A request of which nobody knows when it was first in hand is taken for a repetition of one whose outcome
/// was claimed so short a time ago: a crash is noticed sooner than that.
pub(super) const DOUBT: Duration = Duration::from_secs(3600);

/// How many requests are remembered, which is what the log has room for, and how many publications of each.
pub(super) const MOST_REMEMBERED: usize = 20_000;
pub(super) const MOST_PUBLICATIONS: usize = 8;

/// What is known of the requests: the log, read up to some line.
#[derive(Default)]
pub(super) struct Known {
    pub(super) requests: HashMap<Hash, Request>,
    /// The requests, oldest first.
    pub(super) order: VecDeque<Hash>,
}

/// Enough of a SHA-256 to tell names from each other.
pub(super) type Hash = [u8; 16];

#[derive(Default)]
pub(super) struct Request {
    /// When workers had it in hand when nobody had it before, of publications that are not claimed, in the
    /// log's order.
    begun: Vec<OffsetDateTime>,
    /// The claims of its publications, oldest first.
    pub(super) holders: Vec<Holder>,
}

/// The copy that holds a publication's claim.
pub(super) struct Holder {
    since: Option<OffsetDateTime>,
    outcome: Hash,
    copy: Hash,
    generation: u64,
    state: Held,
    /// When the publication was claimed.
    at: OffsetDateTime,
}

/// What became of the copy that holds a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    InHand,
    PassedOn,
    Told,
}

/// What is to be done with a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Tell,
    /// A copy of the next generation is to be told in its place; whether there is one is not known.
    PassOn,
    /// Another copy is told, or this one was.
    Drop,
}

impl Known {
    /// Reads a claim.
    pub(super) fn claim(&mut self, copy: &OutcomeCopy, at: OffsetDateTime) -> Verdict {
        let OutcomeCopy { since, generation, .. } = *copy;
        let (outcome, name) = (hash(&copy.outcome), hash(&copy.copy));
        let request = self.request(hash(&copy.request));
        let Some(holder) = request.holders.iter_mut().find(|holder| holder.outcome == outcome)
        else {
            if request.is_covered(since, at) {
                return Verdict::Drop;
            }
            request.begun.retain(|begun| Some(*begun) != since);
            request.begun.shrink_to_fit();
            let state = Held::InHand;
            let holder = Holder { since, outcome, copy: name, generation, state, at };
            remember(&mut request.holders, holder);
            return Verdict::Tell;
        };
        match (holder.copy == name, holder.state) {
            (_, Held::Told) => Verdict::Drop,
            (true, Held::InHand) => Verdict::Tell,
            (true, Held::PassedOn) => Verdict::PassOn,
            (false, _) if generation > holder.generation => {
                (holder.copy, holder.generation, holder.state) = (name, generation, Held::InHand);
                Verdict::Tell
            }
            (false, _) => Verdict::Drop,
        }
    }

    /// What is known of a request, which is remembered from now on.
    fn request(&mut self, request: Hash) -> &mut Request {
        if !self.requests.contains_key(&request) {
            if self.order.len() >= MOST_REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.requests.remove(&oldest);
            }
            self.order.push_back(request);
        }
        self.requests.entry(request).or_default()
    }

    /// Reads that a request was first in hand.
    pub(super) fn begins(&mut self, request: &str, at: OffsetDateTime) {
        remember(&mut self.request(hash(request)).begun, at);
    }

    /// When a request that comes again without a history was first in hand: the last that is not claimed.
    pub(super) fn begun(&self, request: &str) -> Option<OffsetDateTime> {
        self.requests.get(&hash(request))?.begun.last().copied()
    }

    /// Reads what became of a copy.
    pub(super) fn became(&mut self, request: &str, copy: &str, state: Held) {
        let Some(request) = self.requests.get_mut(&hash(request)) else { return };
        let copy = hash(copy);
        let mut holders = request.holders.iter_mut();
        if let Some(holder) = holders.find(|holder| holder.copy == copy)
            && holder.state != Held::Told
        {
            holder.state = state;
        }
    }

    /// Whether some outcome is told, or will be, of a request that a worker first had in hand at `since`.
    pub(super) fn knows(
        &self,
        request: &str,
        since: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> bool {
        let request = self.requests.get(&hash(request));
        request.is_some_and(|request| request.is_covered(since, now))
    }
}

impl Request {
    /// Whether the publication that a worker first had in hand at `since` is claimed.
    fn is_covered(&self, since: Option<OffsetDateTime>, now: OffsetDateTime) -> bool {
        self.holders.iter().any(|holder| match (holder.since, since) {
            (Some(known), Some(since)) => known == since,
            (None, Some(since)) => since <= holder.at,
            (_, None) => now - holder.at < DOUBT,
        })
    }
}

/// Adds what there is one of as a rule, and no room for more.
fn remember<T>(all: &mut Vec<T>, one: T) {
    if all.len() >= MOST_PUBLICATIONS {
        all.remove(0);
    }
    all.reserve_exact(1);
    all.push(one);
}

pub(super) fn hash(name: &str) -> Hash {
    let whole = Sha256::digest(name);
    std::array::from_fn(|at| whole[at])
}
