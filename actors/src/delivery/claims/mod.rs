//! The claims on requests, as a ledger of outcomes knows them: the pure part, for whatever keeps one.
//!
//! What a claim comes to depends on what became of the copy that holds it, and on who claims:
//!
//! | the holder is | the holder itself | a later generation | any other copy |
//! |---|---|---|---|
//! | in hand | notify | notify, and hold it | drop |
//! | passed on | pass on | notify, and hold it | drop |
//! | notified | drop | drop | drop |

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::ports::{OutcomeCopy, Recorded, Verdict};

/// A request of which nobody knows when it was first in hand is taken for a repetition of one whose outcome
/// was claimed so short a time ago: a crash is noticed sooner than that.
const DOUBT: Duration = Duration::from_secs(3600);

/// How many requests are remembered, which is what a week's ledger has room for, and how many publications
/// of each.
const MOST_REMEMBERED: usize = 20_000;
const MOST_PUBLICATIONS: usize = 8;

/// What is known of the requests: the ledger, read up to some record.
#[derive(Debug, Default)]
pub struct Claims {
    requests: HashMap<Hash, RequestClaims>,
    /// The requests, oldest first.
    order: VecDeque<Hash>,
}

/// As much of a SHA-256 as two names never share.
type Hash = [u8; 16];

/// What is known of one request: for a ledger that keeps each by itself.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct RequestClaims {
    /// When workers had it in hand when nobody had it before, of publications that are not claimed, in the
    /// ledger's order.
    #[serde(with = "times")]
    begun: Vec<OffsetDateTime>,
    /// The claims on its publications, oldest first.
    claims: Vec<Claim>,
}

/// The claim on one publication of a request.
#[derive(Debug, Serialize, Deserialize)]
struct Claim {
    #[serde(with = "time::serde::rfc3339::option")]
    since: Option<OffsetDateTime>,
    outcome: Hash,
    /// The copy that holds it.
    copy: Hash,
    generation: u64,
    holder: Holder,
    /// When the publication was claimed.
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
}

/// What became of the copy that holds a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Holder {
    InHand,
    PassedOn,
    Notified,
}

/// Who claims a publication that is claimed already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claimant {
    Holder,
    /// Of the same outcome, in a later generation.
    Later,
    Other,
}

impl Holder {
    /// The table above.
    fn claimed_by(self, claimant: Claimant) -> Verdict {
        match (self, claimant) {
            (Holder::InHand, Claimant::Holder) => Verdict::Notify,
            (Holder::PassedOn, Claimant::Holder) => Verdict::PassOn,
            (Holder::InHand | Holder::PassedOn, Claimant::Later) => Verdict::Notify,
            (Holder::Notified, _) | (_, Claimant::Other) => Verdict::Drop,
        }
    }

    /// What is notified stays so.
    fn became(self, recorded: Recorded) -> Self {
        match (self, recorded) {
            (Holder::Notified, _) | (_, Recorded::Notified) => Holder::Notified,
            (_, Recorded::PassedOn) => Holder::PassedOn,
        }
    }
}

impl Claims {
    /// A copy claims its request, at this moment.
    pub fn claim(&mut self, copy: &OutcomeCopy, at: OffsetDateTime) -> Verdict {
        self.request(hash(&copy.request)).claim(copy, at)
    }

    /// What is known of a request, which is remembered from now on.
    fn request(&mut self, request: Hash) -> &mut RequestClaims {
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

    /// A request was first in hand.
    pub fn begin(&mut self, request: &str, at: OffsetDateTime) {
        self.request(hash(request)).begin(at);
    }

    /// When a request that comes again without an envelope was first in hand: the last that is not claimed.
    pub fn begun(&self, request: &str) -> Option<OffsetDateTime> {
        self.requests.get(&hash(request))?.begun()
    }

    /// Something became of a copy.
    pub fn record(&mut self, request: &str, copy: &str, became: Recorded) {
        if let Some(request) = self.requests.get_mut(&hash(request)) {
            request.record(copy, became);
        }
    }

    /// Whether some outcome is notified, or will be, of a request that a worker first had in hand at `since`.
    pub fn is_claimed(
        &self,
        request: &str,
        since: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> bool {
        let request = self.requests.get(&hash(request));
        request.is_some_and(|request| request.is_claimed(since, now))
    }
}

impl RequestClaims {
    /// A copy claims the request, at this moment.
    pub fn claim(&mut self, copy: &OutcomeCopy, at: OffsetDateTime) -> Verdict {
        let OutcomeCopy { since, generation, .. } = *copy;
        let (outcome, name) = (hash(&copy.outcome), hash(&copy.copy));
        let Some(claim) = self.claims.iter_mut().find(|claim| claim.outcome == outcome) else {
            if self.is_claimed(since, at) {
                return Verdict::Drop;
            }
            self.begun.retain(|begun| Some(*begun) != since);
            self.begun.shrink_to_fit();
            let holder = Holder::InHand;
            let claim = Claim { since, outcome, copy: name, generation, holder, at };
            remember(&mut self.claims, claim);
            return Verdict::Notify;
        };
        let claimant = if claim.copy == name {
            Claimant::Holder
        } else if generation > claim.generation {
            Claimant::Later
        } else {
            Claimant::Other
        };
        let verdict = claim.holder.claimed_by(claimant);
        if (claimant, verdict) == (Claimant::Later, Verdict::Notify) {
            (claim.copy, claim.generation, claim.holder) = (name, generation, Holder::InHand);
        }
        verdict
    }

    /// The request was first in hand.
    pub fn begin(&mut self, at: OffsetDateTime) {
        remember(&mut self.begun, at);
    }

    /// When the request was first in hand, should it come again without an envelope: the last that is not claimed.
    pub fn begun(&self) -> Option<OffsetDateTime> {
        self.begun.last().copied()
    }

    /// Something became of a copy.
    pub fn record(&mut self, copy: &str, became: Recorded) {
        let copy = hash(copy);
        if let Some(claim) = self.claims.iter_mut().find(|claim| claim.copy == copy) {
            claim.holder = claim.holder.became(became);
        }
    }

    /// Whether the publication that a worker first had in hand at `since` is claimed.
    pub fn is_claimed(&self, since: Option<OffsetDateTime>, now: OffsetDateTime) -> bool {
        self.claims.iter().any(|claim| match (claim.since, since) {
            (Some(known), Some(since)) => known == since,
            (None, Some(since)) => since <= claim.at,
            (_, None) => now - claim.at < DOUBT,
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

/// Times in a list, each as RFC 3339 has it.
mod times {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use time::OffsetDateTime;

    #[derive(Serialize, Deserialize)]
    struct Time(#[serde(with = "time::serde::rfc3339")] OffsetDateTime);

    pub(super) fn serialize<S: Serializer>(
        times: &[OffsetDateTime],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(times.iter().map(|time| Time(*time)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<OffsetDateTime>, D::Error> {
        let times = Vec::<Time>::deserialize(deserializer)?;
        Ok(times.into_iter().map(|Time(time)| time).collect())
    }
}

fn hash(name: &str) -> Hash {
    let whole = Sha256::digest(name);
    std::array::from_fn(|at| whole[at])
}

#[cfg(test)]
mod tests;
