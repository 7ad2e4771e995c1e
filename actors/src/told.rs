//! Which outcome of a build is told: one, whatever made a second.
//!
//! A broker delivers again what was not acked, so a build whose outcome is on its queue may be worked on
//! once more, by any worker, and end in another outcome. Before a notifier tells one, it claims the build
//! in a log that all workers write to and read in the same order. The first claim holds: every other
//! copy of an outcome is dropped, for whoever claims has the copy in hand, and a copy in hand stays on its
//! queue until it is told. So no loss can come of it; and what is told twice is only what was told by a
//! notifier that did not live to write so.
//!
//! A notifier whose receiver does not take a copy writes that it passes it on, and publishes one that
//! stands in for it, to be told later.
//!
//! Where the log cannot be had, outcomes are told without: twice, perhaps, rather than not at all.
//!
//! A publisher may use a build id again. What tells the new request from a repetition of the old one is when
//! a worker first had it in hand. That travels with the request's history; and since a request that is
//! delivered again after a crash has none, it is in the log as well.
//!
//! | a copy is claimed | and is |
//! |---|---|
//! | before any other of its build | told |
//! | once more, since its notifier died | told; dropped if it was told; passed on if that was begun |
//! | standing in for the holder | told, unless that was |
//! | of a request that was published anew after the build was claimed | told |
//! | otherwise | dropped |

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use crate::ports::{Broker, BrokerError, Message, REPEATED, Route, Subscription};

/// Names this copy of an outcome.
const COPY: &str = "x-image-builder-copy";
/// Names the copy that this one stands in for.
const INSTEAD_OF: &str = "x-image-builder-instead-of";
/// When a worker first had the request in hand, where that is known.
const SINCE: &str = "x-image-builder-since";

/// A request of which nobody knows when it was first in hand is taken for a repetition of one whose outcome
/// was claimed so short a time ago: a crash is noticed sooner than that.
const DOUBT: Duration = Duration::from_secs(3600);

/// How many builds are remembered.
const MOST_REMEMBERED: usize = 100_000;

/// How long a line is to take until it is written and, where that matters, read back.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Pause before the log is read again, and where the broker has refused that.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_WHEN_REFUSED: Duration = Duration::from_secs(30);

/// Records that may come ahead of their being read.
const AHEAD: u16 = 1_000;

/// One copy of a build's outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    build_id: String,
    id: String,
    instead_of: Option<String>,
    since: Option<OffsetDateTime>,
}

/// Makes an outcome's message a copy of its own. `since` is when a worker first had the request in
/// hand; `None` = not known, as after a crash.
pub fn stamp(message: &mut Message, since: Option<OffsetDateTime>) {
    message.headers.insert(COPY.to_owned(), Uuid::new_v4().to_string());
    if let Some(since) = since.and_then(|since| since.format(&Rfc3339).ok()) {
        message.headers.insert(SINCE.to_owned(), since);
    }
}

/// Makes a message that is to be told later a copy that stands in for the one that it was.
pub fn stand_in(message: &mut Message) {
    message.headers.insert(INSTEAD_OF.to_owned(), Copy::id(message));
    message.headers.remove(REPEATED);
    stamp(message, None);
}

impl Copy {
    /// The copy that a message is.
    pub fn of(build_id: &str, message: &Message) -> Self {
        let header = |name| message.headers.get(name).cloned();
        Self {
            build_id: build_id.to_owned(),
            id: Self::id(message),
            instead_of: header(INSTEAD_OF),
            since: header(SINCE).and_then(|at| OffsetDateTime::parse(&at, &Rfc3339).ok()),
        }
    }

    /// A message without a name of its own has that of its notification. One that was published twice,
    /// since the first confirm did not come, is two copies.
    fn id(message: &Message) -> String {
        let named = message.headers.get(COPY).or(message.message_id.as_ref());
        let named = named.map_or("", String::as_str);
        match message.headers.get(REPEATED) {
            Some(times) => format!("{named}#{times}"),
            None => named.to_owned(),
        }
    }
}

/// One line of the log.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "lowercase", rename_all_fields = "camelCase")]
enum Record {
    /// A worker has a request in hand that nobody had before.
    Begun {
        build: String,
        #[serde(with = "time::serde::rfc3339")]
        at: OffsetDateTime,
    },
    /// A worker wants to have read all before.
    Mark {
        /// Names the mark.
        id: String,
    },
    /// A notifier has a copy in hand, to tell it.
    Claim {
        /// Names the claim.
        id: String,
        build: String,
        copy: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instead_of: Option<String>,
        #[serde(with = "time::serde::rfc3339::option", default)]
        since: Option<OffsetDateTime>,
        #[serde(with = "time::serde::rfc3339")]
        at: OffsetDateTime,
    },
    /// The receiver has not taken it: from here on another copy stands in for it.
    PassedOn { build: String, copy: String },
    /// The receiver has taken it.
    Told { build: String, copy: String },
}

impl Record {
    fn message(&self) -> Message {
        let body = serde_json::to_vec(self).expect("a record has only string keys");
        Message { body, ..Message::default() }
    }
}

/// What is known of the builds: the log, read up to some line.
#[derive(Default)]
struct Known {
    builds: HashMap<Hash, Build>,
    /// The builds, oldest first.
    order: VecDeque<Hash>,
}

/// Enough of a SHA-256 to tell names from each other.
type Hash = [u8; 16];

#[derive(Default)]
struct Build {
    /// When a worker last had a request of it in hand that nobody had before.
    begun: Option<OffsetDateTime>,
    holder: Option<Holder>,
}

/// The copy that holds a build's claim.
struct Holder {
    copy: Hash,
    state: Held,
    /// When it was claimed, or first in hand where that was later by another worker's clock.
    at: OffsetDateTime,
}

/// What became of the copy that holds a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    InHand,
    PassedOn,
    Told,
}

/// What is to be done with a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Tell,
    /// Another copy is to stand in for it; whether one does already is not known.
    PassOn,
    /// Another copy is told, or this one was.
    Drop,
}

impl Known {
    /// Reads a claim.
    fn claim(
        &mut self,
        build: &str,
        copy: &str,
        instead_of: Option<&str>,
        since: Option<OffsetDateTime>,
        at: OffsetDateTime,
    ) -> Verdict {
        let (build, copy) = (hash(build), hash(copy));
        let at = since.map_or(at, |since| since.max(at));
        let known = self.build(build);
        let Some(holder) = &mut known.holder else {
            known.holder = Some(Holder { copy, state: Held::InHand, at });
            return Verdict::Tell;
        };
        if holder.copy == copy {
            return match holder.state {
                Held::InHand => Verdict::Tell,
                Held::PassedOn => Verdict::PassOn,
                Held::Told => Verdict::Drop,
            };
        }
        if holder.state != Held::Told && instead_of.map(hash) == Some(holder.copy) {
            (holder.copy, holder.state) = (copy, Held::InHand);
            return Verdict::Tell;
        }
        if holder.covers(since, at) {
            return Verdict::Drop;
        }
        *holder = Holder { copy, state: Held::InHand, at };
        Verdict::Tell
    }

    /// What is known of a build, which is remembered from now on.
    fn build(&mut self, build: Hash) -> &mut Build {
        if !self.builds.contains_key(&build) {
            if self.order.len() >= MOST_REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.builds.remove(&oldest);
            }
            self.order.push_back(build);
        }
        self.builds.entry(build).or_default()
    }

    /// Reads that a request was first in hand.
    fn begun(&mut self, build: &str, at: OffsetDateTime) {
        let begun = &mut self.build(hash(build)).begun;
        *begun = (*begun).max(Some(at));
    }

    /// Reads what became of a copy.
    fn became(&mut self, build: &str, copy: &str, state: Held) {
        if let Some(Build { holder: Some(holder), .. }) = self.builds.get_mut(&hash(build))
            && holder.copy == hash(copy)
            && holder.state != Held::Told
        {
            holder.state = state;
        }
    }

    /// Whether some copy is told, or will be, of a request that a worker first had in hand at `since`.
    fn knows(&self, build: &str, since: Option<OffsetDateTime>, now: OffsetDateTime) -> bool {
        let holder = self.builds.get(&hash(build)).and_then(|build| build.holder.as_ref());
        holder.is_some_and(|holder| holder.covers(since, now))
    }
}

impl Holder {
    /// Whether it is an outcome of the request that a worker first had in hand at `since`.
    fn covers(&self, since: Option<OffsetDateTime>, now: OffsetDateTime) -> bool {
        match since {
            Some(since) => since <= self.at,
            None => now - self.at < DOUBT,
        }
    }
}

fn hash(name: &str) -> Hash {
    let whole = Sha256::digest(name);
    std::array::from_fn(|at| whole[at])
}

/// The log of what is told, as this worker has read it. Clones share it.
#[derive(Clone)]
pub struct Told(Arc<Shared>);

struct Shared {
    broker: Arc<dyn Broker>,
    longest_wait: Duration,
    following: watch::Sender<Following>,
    state: Mutex<State>,
}

/// Whether the log is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Following {
    /// Not yet, or not any more.
    NotNow,
    Yes,
    /// The broker has no such log, or does not let it be read.
    Refused,
}

#[derive(Default)]
struct State {
    known: Known,
    /// Who waits for a claim to be read back.
    claims: HashMap<String, oneshot::Sender<Verdict>>,
    /// Who waits for a mark to be read back.
    marks: HashMap<String, oneshot::Sender<()>>,
}

impl Told {
    /// Begins to read the log, and goes on for as long as somebody has a clone. A line may take
    /// `longest_wait` until it is written and, where that matters, read back.
    pub fn start(broker: Arc<dyn Broker>, longest_wait: Duration) -> Self {
        let shared = Shared {
            broker: broker.clone(),
            longest_wait,
            following: watch::Sender::new(Following::NotNow),
            state: Mutex::default(),
        };
        let told = Self(Arc::new(shared));
        tokio::spawn(follow(broker, Arc::downgrade(&told.0)));
        told
    }

    /// Claims a build for the copy of its outcome that is in hand; says what is to be done with it.
    ///
    /// # Errors
    /// The log cannot be written or read for now. Whether the claim stands is not known.
    pub async fn claim(&self, copy: &Copy) -> Result<Verdict, BrokerError> {
        let Copy { build_id, id, instead_of, since } = copy.clone();
        let claim = Uuid::new_v4().to_string();
        let answer = waits(&mut self.lock().claims, &claim);
        let (build, copy, at) = (build_id, id, OffsetDateTime::now_utc());
        let record = Record::Claim { id: claim, build, copy, instead_of, since, at };
        self.written(&record, answer).await
    }

    /// Writes that a request is in hand that nobody had before, at `since`. Nothing waits for that.
    pub fn begins(&self, build_id: &str, since: OffsetDateTime) {
        let (told, build) = (self.clone(), build_id.to_owned());
        tokio::spawn(async move {
            if let Err(error) = told.written(&Record::Begun { build, at: since }, at_once()).await {
                tracing::debug!(%error, "cannot note that a request is in hand");
            }
        });
    }

    /// When a worker first had the request in hand of which a delivery came again without a history; `None`
    /// = nobody has written so.
    ///
    /// # Errors
    /// The log cannot be written or read for now.
    pub async fn begun(&self, build_id: &str) -> Result<Option<OffsetDateTime>, BrokerError> {
        let mark = Uuid::new_v4().to_string();
        let answer = waits(&mut self.lock().marks, &mark);
        self.written(&Record::Mark { id: mark }, answer).await?;
        Ok(self.lock().known.builds.get(&hash(build_id)).and_then(|build| build.begun))
    }

    /// Says that the receiver has taken a copy.
    ///
    /// # Errors
    /// That cannot be written: should the copy come again, it is told again.
    pub async fn told(&self, copy: &Copy) -> Result<(), BrokerError> {
        let Copy { build_id: build, id: copy, .. } = copy.clone();
        self.written(&Record::Told { build, copy }, at_once()).await
    }

    /// Says that the receiver has not taken a copy. Only then may another [stand in](stand_in) for it.
    ///
    /// # Errors
    /// That cannot be written.
    pub async fn passes_on(&self, copy: &Copy) -> Result<(), BrokerError> {
        let Copy { build_id: build, id: copy, .. } = copy.clone();
        self.written(&Record::PassedOn { build, copy }, at_once()).await
    }

    /// Writes a line, and waits for an answer to it.
    async fn written<T>(
        &self,
        record: &Record,
        answer: impl Future<Output = Result<T, oneshot::error::RecvError>>,
    ) -> Result<T, BrokerError> {
        let limit = self.0.longest_wait;
        let too_slow = || {
            let text = format!("the log of told outcomes did not take a line within {limit:?}");
            BrokerError::Unavailable(text)
        };
        let written = async {
            let mut following = self.0.following.subscribe();
            let now = following.wait_for(|following| *following != Following::NotNow).await;
            if now.is_ok_and(|now| *now == Following::Refused) {
                let text = "there is no log of told outcomes".to_owned();
                return Err(BrokerError::Refused(text));
            }
            self.0.broker.publish(Route::Told, record.message()).await?;
            answer.await.map_err(|_| too_slow())
        };
        tokio::time::timeout(limit, written).await.unwrap_or_else(|_| Err(too_slow()))
    }

    /// Whether an outcome of the request is already told or in a notifier's hands, as far as has been
    /// read here: then there is nothing left to do for it. `since` as in [`stamp`].
    pub fn knows(&self, build_id: &str, since: Option<OffsetDateTime>) -> bool {
        self.lock().known.knows(build_id, since, OffsetDateTime::now_utc())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads one line.
    fn read(&self, line: &[u8]) {
        let record = match serde_json::from_slice(line) {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(%error, "a line of the log of told outcomes cannot be read: it is left out");
                return;
            }
        };
        let state = &mut *self.lock();
        match record {
            Record::Claim { id, build, copy, instead_of, since, at } => {
                let verdict = state.known.claim(&build, &copy, instead_of.as_deref(), since, at);
                if let Some(answer) = state.claims.remove(&id) {
                    // Whoever no longer waits tells nothing.
                    let _ = answer.send(verdict);
                }
            }
            Record::Mark { id } => {
                if let Some(answer) = state.marks.remove(&id) {
                    let _ = answer.send(());
                }
            }
            Record::Begun { build, at } => state.known.begun(&build, at),
            Record::PassedOn { build, copy } => state.known.became(&build, &copy, Held::PassedOn),
            Record::Told { build, copy } => state.known.became(&build, &copy, Held::Told),
        }
    }
}

/// The answer to a line that need not be read back.
fn at_once() -> impl Future<Output = Result<(), oneshot::error::RecvError>> {
    std::future::ready(Ok(()))
}

/// The answer to a line of this name, once it is read back.
fn waits<T>(waiting: &mut HashMap<String, oneshot::Sender<T>>, line: &str) -> oneshot::Receiver<T> {
    waiting.retain(|_, answer| !answer.is_closed());
    let (answer_in, answer) = oneshot::channel();
    waiting.insert(line.to_owned(), answer_in);
    answer
}

/// Reads the log, from its beginning after every loss of the connection.
async fn follow(broker: Arc<dyn Broker>, shared: Weak<Shared>) {
    let tell = |following| match shared.upgrade() {
        Some(shared) => {
            shared.following.send_replace(following);
            true
        }
        None => false,
    };
    loop {
        let (following, pause) = match broker.follow(AHEAD).await {
            Ok(log) => {
                tell(Following::Yes);
                read_all(log, &shared).await;
                (Following::NotNow, PAUSE)
            }
            Err(error @ BrokerError::Refused(_)) => {
                tracing::warn!(
                    %error,
                    "there is no log of told outcomes: what becomes of a build twice may be told twice"
                );
                (Following::Refused, PAUSE_WHEN_REFUSED)
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read the log of told outcomes");
                (Following::NotNow, PAUSE)
            }
        };
        if !tell(following) {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

async fn read_all(mut log: Subscription, shared: &Weak<Shared>) {
    let mut begins = true;
    while let Some(line) = log.deliveries.recv().await {
        let Some(shared) = shared.upgrade() else { return };
        let told = Told(shared);
        if std::mem::take(&mut begins) {
            told.lock().known = Known::default();
        }
        told.read(&line.message.body);
        // It makes room for the next. An error means that the subscription ends.
        let _ = log.settle.ack(line.tag).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: &str = "b";

    fn at(second: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(second).expect("a time")
    }

    /// A claim by a copy of a request whose beginning is not known.
    fn claim(known: &mut Known, copy: &str) -> Verdict {
        known.claim(BUILD, copy, None, None, at(10))
    }

    #[test]
    fn the_first_copy_that_is_claimed_is_told_and_no_other() {
        let mut known = Known::default();
        assert!(!known.knows(BUILD, None, at(11)));
        assert_eq!(claim(&mut known, "one"), Verdict::Tell);
        assert!(known.knows(BUILD, None, at(11)));
        assert_eq!(claim(&mut known, "two"), Verdict::Drop);
        known.became(BUILD, "one", Held::Told);
        assert_eq!(claim(&mut known, "two"), Verdict::Drop);
        assert_eq!(known.claim("another", "two", None, None, at(10)), Verdict::Tell);
    }

    #[test]
    fn a_copy_that_comes_again_is_told_unless_it_was() {
        let mut known = Known::default();
        assert_eq!(claim(&mut known, "one"), Verdict::Tell);
        known.became(BUILD, "another", Held::Told);
        assert_eq!(claim(&mut known, "one"), Verdict::Tell);
        known.became(BUILD, "one", Held::Told);
        assert_eq!(claim(&mut known, "one"), Verdict::Drop);
        known.became(BUILD, "one", Held::PassedOn);
        assert_eq!(claim(&mut known, "one"), Verdict::Drop);
    }

    #[test]
    fn one_copy_stands_in_for_the_one_that_was_passed_on() {
        let mut known = Known::default();
        let instead = |known: &mut Known, copy: &str, of: &str| {
            known.claim(BUILD, copy, Some(of), None, at(11))
        };
        assert_eq!(claim(&mut known, "one"), Verdict::Tell);
        known.became(BUILD, "one", Held::PassedOn);
        assert_eq!(claim(&mut known, "one"), Verdict::PassOn, "nobody knows whether it was");
        assert_eq!(instead(&mut known, "two", "one"), Verdict::Tell);
        assert_eq!(instead(&mut known, "another two", "one"), Verdict::Drop);
        assert_eq!(claim(&mut known, "one"), Verdict::Drop, "it was");
        known.became(BUILD, "one", Held::Told);
        assert_eq!(instead(&mut known, "two", "one"), Verdict::Tell, "it holds the claim");
        known.became(BUILD, "two", Held::Told);
        assert_eq!(instead(&mut known, "three", "two"), Verdict::Drop);
    }

    #[test]
    fn a_request_that_is_published_anew_is_told_anew() {
        let mut known = Known::default();
        let begun = |known: &mut Known, copy: &str, since, now| {
            known.claim(BUILD, copy, None, Some(at(since)), at(now))
        };
        assert_eq!(begun(&mut known, "one", 5, 10), Verdict::Tell);
        known.became(BUILD, "one", Held::Told);
        assert_eq!(begun(&mut known, "repeated", 5, 12), Verdict::Drop);
        assert!(known.knows(BUILD, Some(at(5)), at(30)));
        assert!(!known.knows(BUILD, Some(at(20)), at(30)));
        assert_eq!(begun(&mut known, "anew", 20, 25), Verdict::Tell);
        assert_eq!(begun(&mut known, "repeated", 5, 26), Verdict::Drop);
    }

    #[test]
    fn a_request_whose_beginning_nobody_knows_repeats_what_was_claimed_lately() {
        let mut known = Known::default();
        assert_eq!(claim(&mut known, "one"), Verdict::Tell);
        let hour = DOUBT.as_secs() as i64;
        assert!(known.knows(BUILD, None, at(9 + hour)));
        assert!(!known.knows(BUILD, None, at(10 + hour)));
        assert_eq!(known.claim(BUILD, "two", None, None, at(9 + hour)), Verdict::Drop);
        assert_eq!(known.claim(BUILD, "two", None, None, at(10 + hour)), Verdict::Tell);
    }

    #[test]
    fn the_last_beginning_counts() {
        let mut known = Known::default();
        [5, 20, 15].into_iter().for_each(|second| known.begun(BUILD, at(second)));
        assert_eq!(known.builds[&hash(BUILD)].begun, Some(at(20)));
        assert!(!known.knows(BUILD, None, at(21)), "there is no outcome");
    }

    #[test]
    fn a_clock_that_is_behind_makes_no_new_request_of_a_repetition() {
        let mut known = Known::default();
        // In hand where it is 9 past, claimed where it is only 4 past.
        assert_eq!(known.claim(BUILD, "one", None, Some(at(9)), at(4)), Verdict::Tell);
        assert_eq!(known.claim(BUILD, "repeated", None, Some(at(9)), at(12)), Verdict::Drop);
    }

    #[test]
    fn only_so_many_builds_are_remembered() {
        let mut known = Known::default();
        for number in 0..=MOST_REMEMBERED {
            known.claim(&number.to_string(), "one", None, None, at(1));
        }
        assert_eq!((known.builds.len(), known.order.len()), (MOST_REMEMBERED, MOST_REMEMBERED));
        assert!(!known.knows("0", None, at(1)));
        assert!(known.knows("1", None, at(1)));
    }

    /// Notifiers at work on the copies of one build, any of which may die between any two steps, with a log
    /// that may be away.
    #[derive(Default)]
    struct Notifiers {
        known: Known,
        /// Copies on the queue or its ladder, each with the one that it stands in for.
        queue: Vec<(usize, Option<usize>)>,
        /// Copies in hand, with what comes next.
        hands: Vec<((usize, Option<usize>), Step)>,
        copies: usize,
        posts: usize,
        /// Deaths between a notification and the line that says so.
        untold: usize,
        /// Whether the log may be away.
        log_fails: bool,
    }

    #[derive(Clone, Copy)]
    enum Step {
        Claim,
        Post {
            claimed: bool,
        },
        WriteTold,
        WritePassedOn,
        PassOn,
        /// As it is, since it cannot be noted.
        Republish,
        Ack,
    }

    impl Notifiers {
        fn publish(&mut self, instead_of: Option<usize>) {
            self.copies += 1;
            self.queue.push((self.copies, instead_of));
        }

        /// One step of one notifier; `dice` are some random bits.
        fn step(&mut self, dice: usize) {
            let takes = self.hands.is_empty() || dice.is_multiple_of(3);
            if takes && !self.queue.is_empty() {
                let copy = self.queue.remove(dice / 8 % self.queue.len());
                return self.hands.push((copy, Step::Claim));
            }
            if self.hands.is_empty() {
                return;
            }
            let hand = dice / 8 % self.hands.len();
            let ((copy, instead_of), step) = self.hands[hand];
            let name = copy.to_string();
            if dice / 64 % 8 == 0 {
                self.untold += usize::from(matches!(step, Step::WriteTold));
                self.queue.push(self.hands.swap_remove(hand).0);
                return;
            }
            let refused = dice / 512 % 3 == 0;
            let away = self.log_fails && dice / 2048 % 2 == 0;
            self.hands[hand].1 = match step {
                Step::Claim if away && refused => Step::Post { claimed: false },
                Step::Claim => {
                    let instead_of = instead_of.map(|copy| copy.to_string());
                    match self.known.claim(BUILD, &name, instead_of.as_deref(), None, at(10)) {
                        // It was written, and not read back.
                        _ if away => Step::Post { claimed: false },
                        Verdict::Tell => Step::Post { claimed: true },
                        Verdict::PassOn => Step::PassOn,
                        Verdict::Drop => Step::Ack,
                    }
                }
                Step::Post { claimed } if refused => match claimed {
                    true => Step::WritePassedOn,
                    false => Step::Republish,
                },
                Step::Post { claimed } => {
                    self.posts += 1;
                    if claimed { Step::WriteTold } else { Step::Ack }
                }
                Step::WriteTold => {
                    if !away {
                        self.known.became(BUILD, &name, Held::Told);
                    }
                    Step::Ack
                }
                Step::WritePassedOn => {
                    // Or it was written, and nobody heard of it.
                    if !away || dice / 4096 % 2 == 0 {
                        self.known.became(BUILD, &name, Held::PassedOn);
                    }
                    if away { Step::Republish } else { Step::PassOn }
                }
                Step::Republish => {
                    self.queue.push((copy, instead_of));
                    Step::Ack
                }
                Step::PassOn => {
                    self.publish(Some(copy));
                    Step::Ack
                }
                Step::Ack => {
                    self.hands.swap_remove(hand);
                    return;
                }
            };
        }
    }

    #[test]
    fn whatever_dies_when_one_outcome_is_told_and_none_is_lost() {
        // Numerical Recipes' generator: any will do that is the same each time.
        let mut random = 1u64;
        let mut dice = move || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) as usize & 0xff_ffff
        };
        for run in 0..20_000 {
            let log_fails = run % 2 == 0;
            let mut all = Notifiers { log_fails, ..Notifiers::default() };
            (0..=run % 3).for_each(|_| all.publish(None));
            let mut steps = 0;
            while !(all.queue.is_empty() && all.hands.is_empty()) {
                all.step(dice());
                steps += 1;
                assert!(steps < 100_000, "run {run} does not end");
            }
            assert!(all.posts >= 1, "run {run}: lost");
            assert!(log_fails || all.posts <= 1 + all.untold, "run {run}: {} posts", all.posts);
        }
    }

    #[test]
    fn a_message_is_a_copy_of_its_own_and_so_is_what_is_passed_on() {
        let mut message =
            Message { message_id: Some("b.image.ready".into()), ..Message::default() };
        let unnamed = Copy::of(BUILD, &message);
        assert_eq!((unnamed.id.as_str(), unnamed.since), ("b.image.ready", None));
        stamp(&mut message, Some(at(5)));
        let copy = Copy::of(BUILD, &message);
        assert_eq!(copy.since, Some(at(5)));
        assert_eq!(copy, Copy::of(BUILD, &message.clone()), "whoever reads it");
        let mut twin = message.clone();
        twin.headers.insert(REPEATED.to_owned(), "1".to_owned());
        assert_ne!(Copy::of(BUILD, &twin).id, copy.id);
        let mut later = twin.clone();
        stand_in(&mut later);
        let later = Copy::of(BUILD, &later);
        assert_eq!(later.instead_of, Some(Copy::of(BUILD, &twin).id));
        assert_eq!(later.since, Some(at(5)));
        assert!(later.id != copy.id && !later.id.contains('#'));
    }

    #[test]
    fn a_record_reads_as_it_was_written() {
        let record = Record::Claim {
            id: "c".into(),
            build: BUILD.into(),
            copy: "one".into(),
            instead_of: None,
            since: None,
            at: at(5),
        };
        let text = String::from_utf8(record.message().body).expect("it is JSON");
        assert_eq!(
            text,
            r#"{"step":"claim","id":"c","build":"b","copy":"one","since":null,"at":"1970-01-01T00:00:05Z"}"#
        );
        let read: Record = serde_json::from_str(&text).expect("it is a record");
        assert_eq!(read.message().body, text.as_bytes());
    }
}
