//! Which outcome of a request is told: one, whatever made a second.
//!
//! A broker delivers again what was not acked, so a request whose outcome is on its queue may be worked on
//! once more, by any worker, and end in another outcome. Before a notifier tells one, it claims the request
//! in a log that all workers write to and read in the same order. The first claim holds: every other
//! copy of an outcome is dropped, for whoever claims has the copy in hand, and a copy in hand stays on its
//! queue until it is told. So no loss can come of it; and what is told twice is only what was told by a
//! notifier that did not live to write so.
//!
//! A notifier whose receiver does not take a copy writes that it passes it on, and publishes one of the next
//! generation, to be told later. The log may lose its last lines with the broker's machine; so whatever they
//! said, a later generation takes the place of an earlier one.
//!
//! Where the log cannot be had, outcomes are told without: twice, perhaps, rather than not at all.
//!
//! A publisher may use a build id again, and publish the same request again. Requests are told from each other
//! by their id and body, and publications of one by when a worker first had it in hand. That travels with the
//! request's history; and since what is delivered again after a crash has none, it is in the log as well.
//!
//! | a copy is claimed | and is |
//! |---|---|
//! | before any other of its publication | told |
//! | once more, since its notifier died | told; dropped if it was told; passed on if that was begun |
//! | in a later generation than the one that holds the claim | told, unless that was |
//! | otherwise | dropped |

mod known;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use uuid::Uuid;

pub use self::known::Verdict;
use self::known::{Held, Known};
use crate::model::digest::{add_part, hex};
use crate::ports::{Broker, BrokerError, Message, REPEATED, Route};

/// Names the request that an outcome is of, see [`request`].
const REQUEST: &str = "x-image-builder-request";
/// Names an outcome.
const OUTCOME: &str = "x-image-builder-outcome";
/// Names this copy of it, where it is not the first.
const COPY: &str = "x-image-builder-copy";
/// How often it was passed on.
const GENERATION: &str = "x-image-builder-generation";
/// When a worker first had the request in hand, where that is known.
const SINCE: &str = "x-image-builder-since";

/// How long a line is to take until it is written and, where that matters, read back.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Pause before the log is read again, which grows where that ends soon.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A broker that has refused that for so long is taken to have no log, and asked again after as long.
const REFUSES: Duration = Duration::from_secs(30);
/// Pause before a beginning is written again, and how often that is tried.
const PAUSE_TO_WRITE: Duration = Duration::from_secs(5);
const MOST_WRITES: usize = 100;

/// The name of a request in the log: its build's id and its body, which no worker touches.
pub fn request(build_id: &str, body: &[u8]) -> String {
    let mut hash = Sha256::new();
    add_part(&mut hash, build_id);
    hash.update(body);
    hex(&hash.finalize()[..16])
}

/// One copy of a request's outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutcomeCopy {
    request: String,
    outcome: String,
    /// Its own name: that of the outcome, if it is the first.
    copy: String,
    #[serde(default)]
    generation: u64,
    #[serde(default, with = "time::serde::rfc3339::option")]
    since: Option<OffsetDateTime>,
}

/// Makes a message the first copy of an outcome of this [`request`]. `since` is when a worker first had it
/// in hand; `None` = not known.
pub fn stamp(message: &mut Message, request: String, since: Option<OffsetDateTime>) {
    message.headers.insert(REQUEST.to_owned(), request);
    message.headers.insert(OUTCOME.to_owned(), Uuid::new_v4().to_string());
    if let Some(since) = since.and_then(|since| since.format(&Rfc3339).ok()) {
        message.headers.insert(SINCE.to_owned(), since);
    }
}

/// Makes a message that is to be told later a copy of the next generation.
pub fn stand_in(message: &mut Message) {
    let generation = generation(message) + 1;
    message.headers.insert(GENERATION.to_owned(), generation.to_string());
    message.headers.insert(COPY.to_owned(), Uuid::new_v4().to_string());
    message.headers.remove(REPEATED);
}

fn generation(message: &Message) -> u64 {
    message.headers.get(GENERATION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl OutcomeCopy {
    /// The copy that a message is. One without names of its own is known by its notification alone.
    pub fn of(build_id: &str, message: &Message) -> Self {
        let header = |name| message.headers.get(name).cloned();
        let outcome = header(OUTCOME).or(message.message_id.clone()).unwrap_or_default();
        let named = header(COPY).unwrap_or_else(|| outcome.clone());
        Self {
            request: header(REQUEST).unwrap_or_else(|| request(build_id, &message.body)),
            outcome,
            // One that was published twice, since the first confirm did not come, is two copies.
            copy: header(REPEATED).map_or(named.clone(), |times| format!("{named}#{times}")),
            generation: generation(message),
            since: header(SINCE).and_then(|at| OffsetDateTime::parse(&at, &Rfc3339).ok()),
        }
    }
}

/// One line of the log.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
enum Record {
    /// A worker has a request in hand that nobody had before.
    Begun {
        request: String,
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
        #[serde(with = "time::serde::rfc3339")]
        at: OffsetDateTime,
        #[serde(flatten)]
        copy: OutcomeCopy,
    },
    /// The receiver has not taken it: a copy of the next generation is told in its place.
    PassedOn { request: String, copy: String },
    /// The receiver has taken it.
    Told { request: String, copy: String },
}

impl Record {
    fn message(&self) -> Message {
        let body = serde_json::to_vec(self).expect("a record has only string keys");
        Message { body, ..Message::default() }
    }
}

/// The log of what is told, as this worker has read it. Clones share it.
#[derive(Clone)]
pub struct OutcomeLedger(Arc<Shared>);

struct Shared {
    broker: Arc<dyn Broker>,
    longest_wait: Duration,
    following: watch::Sender<Following>,
    /// Rung when a line was written and nothing is read back, and when nobody needs the log any more.
    deaf: Arc<Notify>,
    state: Mutex<State>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.deaf.notify_waiters();
    }
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
    /// When a line was last read, or the log begun.
    last_read: Option<Instant>,
    /// Who waits for a claim to be read back.
    claims: HashMap<String, oneshot::Sender<Verdict>>,
    /// Who waits for a mark to be read back.
    marks: HashMap<String, oneshot::Sender<()>>,
}

impl OutcomeLedger {
    /// Begins to read the log, and goes on for as long as somebody has a clone. A line may take
    /// `longest_wait` until it is written and, where that matters, read back.
    pub fn start(broker: Arc<dyn Broker>, longest_wait: Duration) -> Self {
        let shared = Shared {
            broker: broker.clone(),
            longest_wait,
            following: watch::Sender::new(Following::NotNow),
            deaf: Arc::default(),
            state: Mutex::default(),
        };
        let told = Self(Arc::new(shared));
        tokio::spawn(follow(broker, Arc::downgrade(&told.0)));
        told
    }

    /// Claims a request for the copy of its outcome that is in hand; says what is to be done with it.
    ///
    /// # Errors
    /// The log cannot be written or read for now. Whether the claim stands is not known.
    pub async fn claim(&self, copy: &OutcomeCopy) -> Result<Verdict, BrokerError> {
        let id = Uuid::new_v4().to_string();
        let answer = waits(&mut self.lock().claims, &id);
        let (at, copy) = (OffsetDateTime::now_utc(), copy.clone());
        self.written(&Record::Claim { id, at, copy }, answer).await
    }

    /// Writes that a [`request`] is in hand that nobody had before, at `since`. Nothing waits for that.
    pub fn begins(&self, request: String, since: OffsetDateTime) {
        let told = self.clone();
        let record = Record::Begun { request, at: since };
        tokio::spawn(async move {
            for _ in 0..MOST_WRITES {
                match told.written(&record, at_once()).await {
                    Ok(()) | Err(BrokerError::Refused(_)) => return,
                    Err(_) => tokio::time::sleep(PAUSE_TO_WRITE).await,
                }
            }
        });
    }

    /// When a worker first had the [`request`] in hand of which a delivery came again without a history;
    /// `None` = nobody has written so, or it was claimed since.
    ///
    /// # Errors
    /// The log cannot be written or read for now.
    pub async fn begun(&self, request: &str) -> Result<Option<OffsetDateTime>, BrokerError> {
        let id = Uuid::new_v4().to_string();
        let answer = waits(&mut self.lock().marks, &id);
        self.written(&Record::Mark { id }, answer).await?;
        Ok(self.lock().known.begun(request))
    }

    /// Says that the receiver has taken a copy.
    ///
    /// # Errors
    /// That cannot be written: should the copy come again, it is told again.
    pub async fn told(&self, copy: &OutcomeCopy) -> Result<(), BrokerError> {
        let OutcomeCopy { request, copy, .. } = copy.clone();
        self.written(&Record::Told { request, copy }, at_once()).await
    }

    /// Says that the receiver has not taken a copy, and that another is to [stand in](stand_in) for it.
    ///
    /// # Errors
    /// That cannot be written: should the copy come again before the other, it is told.
    pub async fn passes_on(&self, copy: &OutcomeCopy) -> Result<(), BrokerError> {
        let OutcomeCopy { request, copy, .. } = copy.clone();
        self.written(&Record::PassedOn { request, copy }, at_once()).await
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
        let mut is_written = false;
        let written = async {
            let mut following = self.0.following.subscribe();
            let now = following.wait_for(|following| *following != Following::NotNow).await;
            if now.is_ok_and(|now| *now == Following::Refused) {
                let text = "there is no log of told outcomes".to_owned();
                return Err(BrokerError::Refused(text));
            }
            self.0.broker.publish(Route::Told, record.message()).await?;
            is_written = true;
            answer.await.map_err(|_| too_slow())
        };
        let written = tokio::time::timeout(limit, written).await;
        written.unwrap_or_else(|_| {
            let quiet = self.lock().last_read.is_none_or(|at| at.elapsed() >= limit);
            if is_written && quiet {
                self.0.deaf.notify_waiters();
            }
            Err(too_slow())
        })
    }

    /// Whether an outcome of the [`request`] is already told or in a notifier's hands, as far as has been
    /// read here: then there is nothing left to do for it. `since` as in [`stamp`].
    pub fn knows(&self, request: &str, since: Option<OffsetDateTime>) -> bool {
        self.lock().known.knows(request, since, OffsetDateTime::now_utc())
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
        state.last_read = Some(Instant::now());
        match record {
            Record::Begun { request, at } => state.known.begins(&request, at),
            Record::Mark { id } => {
                if let Some(answer) = state.marks.remove(&id) {
                    let _ = answer.send(());
                }
            }
            Record::Claim { id, at, copy } => {
                let verdict = state.known.claim(&copy, at);
                if let Some(answer) = state.claims.remove(&id) {
                    // Whoever no longer waits has told it, or left it to the next.
                    let _ = answer.send(verdict);
                }
            }
            Record::PassedOn { request, copy } => {
                state.known.became(&request, &copy, Held::PassedOn);
            }
            Record::Told { request, copy } => state.known.became(&request, &copy, Held::Told),
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
    let mut refused: Option<Instant> = None;
    let mut pause = PAUSE;
    loop {
        let log = broker.follow().await;
        let Some(told) = shared.upgrade().map(OutcomeLedger) else { return };
        let (following, wait) = match log {
            Ok(log) => {
                refused = None;
                tracing::info!("reading the log of told outcomes");
                let begun = Instant::now();
                told.lock().last_read = Some(begun);
                told.0.following.send_replace(Following::Yes);
                drop(told);
                read_all(log, &shared).await;
                // One that ended soon may end soon again.
                pause =
                    if begun.elapsed() >= REFUSES { PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
                (Following::NotNow, pause)
            }
            // A broker that has just begun refuses what it has a little later.
            Err(error @ BrokerError::Refused(_)) => {
                let for_good = refused.get_or_insert_with(Instant::now).elapsed() >= REFUSES;
                match for_good {
                    true => {
                        tracing::warn!(
                            %error,
                            "there is no log of told outcomes: what a crash makes twice is told twice. \
                             It needs a broker with streams, which has not lost that one"
                        );
                        (Following::Refused, REFUSES)
                    }
                    false => (Following::NotNow, PAUSE),
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read the log of told outcomes");
                refused = None;
                (Following::NotNow, PAUSE)
            }
        };
        let Some(shared) = shared.upgrade() else { return };
        shared.following.send_replace(following);
        drop(shared);
        tokio::time::sleep(wait).await;
    }
}

async fn read_all(mut log: mpsc::Receiver<Vec<u8>>, shared: &Weak<Shared>) {
    let Some(deaf) = shared.upgrade().map(|shared| shared.deaf.clone()) else { return };
    let mut begins = true;
    loop {
        let line = tokio::select! {
            line = log.recv() => line,
            () = deaf.notified() => None,
        };
        let Some(told) = shared.upgrade().map(OutcomeLedger) else { return };
        let Some(line) = line else {
            return tracing::info!("the log of told outcomes ended, or is not heard any more");
        };
        if std::mem::take(&mut begins) {
            told.lock().known = Known::default();
        }
        told.read(&line);
    }
}
