//! The outcome ledger on RabbitMQ: a stream that all workers write to and read in one order.
//!
//! | file | what it does |
//! |---|---|
//! | `record.rs` | what is written |
//!
//! Each worker reads it all, and knows from there what is claimed. Whether its own claim holds, it knows once
//! it has read that back. The stream may lose its last lines with the broker's machine.

mod record;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use image_builder_actors::delivery::claims::Claims;
use image_builder_actors::ports::{
    BrokerError, LedgerError, OutcomeCopy, OutcomeLedger, Recorded, Verdict,
};
use time::OffsetDateTime;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use uuid::Uuid;

use self::record::Record;
use super::stream::Stream;

/// How long a record is to take until it is written and, where that matters, read back.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Pause before the stream is read again, which grows where that ends soon.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A broker that has refused that for so long is taken to have no such stream, and asked again after as long.
const REFUSES: Duration = Duration::from_secs(30);
/// Pause before a beginning is written again, and how often that is tried.
const PAUSE_TO_WRITE: Duration = Duration::from_secs(5);
const MOST_WRITES: usize = 100;

/// The ledger that is kept in a stream, which is read from now on for as long as somebody has it.
pub(super) fn ledger(stream: Arc<Stream>) -> Arc<dyn OutcomeLedger> {
    Arc::new(StreamLedger::start(stream, LONGEST_WAIT))
}

/// Lines in one order, which are only added to.
trait Log: Send + Sync + 'static {
    /// Adds a line; returns once it is durable.
    fn append(&self, line: Vec<u8>) -> BoxFuture<'_, Result<(), BrokerError>>;

    /// All the lines that there are, and then those that are added. What is older than some days may be
    /// missing.
    ///
    /// # Errors
    /// [`BrokerError::Refused`]: there is no such log for now, though the broker answers.
    fn follow(&self) -> BoxFuture<'_, Result<mpsc::Receiver<Vec<u8>>, BrokerError>>;
}

impl Log for Stream {
    fn append(&self, line: Vec<u8>) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(Stream::append(self, line))
    }

    fn follow(&self) -> BoxFuture<'_, Result<mpsc::Receiver<Vec<u8>>, BrokerError>> {
        Box::pin(Stream::follow(self, |delivery| delivery.data))
    }
}

/// The ledger, as this worker has read it. Clones share it.
#[derive(Clone)]
struct StreamLedger(Arc<Read>);

struct Read {
    log: Arc<dyn Log>,
    longest_wait: Duration,
    following: watch::Sender<Following>,
    /// Rung when a line was written and nothing is read back, and when nobody needs the log any more.
    deaf: Arc<Notify>,
    progress: Mutex<Progress>,
}

impl Drop for Read {
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

/// What was read so far, and who waits for more.
#[derive(Default)]
struct Progress {
    claims: Claims,
    /// When a line was last read, or the log begun.
    last_read: Option<Instant>,
    /// Who waits for a claim to be read back.
    verdicts: HashMap<String, oneshot::Sender<Verdict>>,
    /// Who waits for a mark to be read back.
    marks: HashMap<String, oneshot::Sender<()>>,
}

impl StreamLedger {
    /// Begins to read the log, and goes on for as long as somebody has a clone. A line may take
    /// `longest_wait` until it is written and, where that matters, read back.
    fn start(log: Arc<dyn Log>, longest_wait: Duration) -> Self {
        let read = Read {
            log: log.clone(),
            longest_wait,
            following: watch::Sender::new(Following::NotNow),
            deaf: Arc::default(),
            progress: Mutex::default(),
        };
        let ledger = Self(Arc::new(read));
        tokio::spawn(follow(log, Arc::downgrade(&ledger.0)));
        ledger
    }

    /// Writes a line, and waits for an answer to it.
    async fn written<T>(
        &self,
        record: &Record,
        answer: impl Future<Output = Result<T, oneshot::error::RecvError>>,
    ) -> Result<T, WriteError> {
        let limit = self.0.longest_wait;
        let too_slow = || {
            let text = format!("it did not take a record within {limit:?}");
            WriteError::Again(LedgerError(text))
        };
        let mut is_written = false;
        let written = async {
            let mut following = self.0.following.subscribe();
            let now = following.wait_for(|following| *following != Following::NotNow).await;
            if now.is_ok_and(|now| *now == Following::Refused) {
                let text = "the broker has none".to_owned();
                return Err(WriteError::Never(LedgerError(text)));
            }
            self.0.log.append(record.line()).await?;
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

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads one line.
    fn read(&self, line: &[u8]) {
        let record = match serde_json::from_slice(line) {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(%error, "a record of the outcome ledger cannot be read: it is left out");
                return;
            }
        };
        let progress = &mut *self.lock();
        progress.last_read = Some(Instant::now());
        match record {
            Record::Begun { request, at } => progress.claims.begin(&request, at),
            Record::Mark { id } => {
                if let Some(answer) = progress.marks.remove(&id) {
                    let _ = answer.send(());
                }
            }
            Record::Claim { id, at, copy } => {
                let verdict = progress.claims.claim(&copy, at);
                if let Some(answer) = progress.verdicts.remove(&id) {
                    // Whoever no longer waits has sent it, or left it to the next.
                    let _ = answer.send(verdict);
                }
            }
            Record::PassedOn { request, copy } => {
                progress.claims.record(&request, &copy, Recorded::PassedOn);
            }
            Record::Notified { request, copy } => {
                progress.claims.record(&request, &copy, Recorded::Notified);
            }
        }
    }
}

impl OutcomeLedger for StreamLedger {
    fn claim<'a>(&'a self, copy: &'a OutcomeCopy) -> BoxFuture<'a, Result<Verdict, LedgerError>> {
        Box::pin(async move {
            let id = Uuid::new_v4().to_string();
            let answer = waits(&mut self.lock().verdicts, &id);
            let (at, copy) = (OffsetDateTime::now_utc(), copy.clone());
            Ok(self.written(&Record::Claim { id, at, copy }, answer).await?)
        })
    }

    fn record<'a>(
        &'a self,
        copy: &'a OutcomeCopy,
        became: Recorded,
    ) -> BoxFuture<'a, Result<(), LedgerError>> {
        Box::pin(async move {
            let OutcomeCopy { request, copy, .. } = copy.clone();
            let record = match became {
                Recorded::Notified => Record::Notified { request, copy },
                Recorded::PassedOn => Record::PassedOn { request, copy },
            };
            Ok(self.written(&record, at_once()).await?)
        })
    }

    fn begin(&self, request: String, since: OffsetDateTime) {
        let ledger = self.clone();
        let record = Record::Begun { request, at: since };
        tokio::spawn(async move {
            for _ in 0..MOST_WRITES {
                match ledger.written(&record, at_once()).await {
                    Ok(()) | Err(WriteError::Never(_)) => return,
                    Err(WriteError::Again(_)) => tokio::time::sleep(PAUSE_TO_WRITE).await,
                }
            }
        });
    }

    fn begun<'a>(
        &'a self,
        request: &'a str,
    ) -> BoxFuture<'a, Result<Option<OffsetDateTime>, LedgerError>> {
        Box::pin(async move {
            let id = Uuid::new_v4().to_string();
            let answer = waits(&mut self.lock().marks, &id);
            self.written(&Record::Mark { id }, answer).await?;
            Ok(self.lock().claims.begun(request))
        })
    }

    fn is_claimed<'a>(
        &'a self,
        request: &'a str,
        since: Option<OffsetDateTime>,
    ) -> BoxFuture<'a, bool> {
        Box::pin(
            async move { self.lock().claims.is_claimed(request, since, OffsetDateTime::now_utc()) },
        )
    }
}

/// A record that is not known to be written.
enum WriteError {
    /// Another try may do.
    Again(LedgerError),
    Never(LedgerError),
}

impl From<BrokerError> for WriteError {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::Refused(text) => Self::Never(LedgerError(text)),
            other => Self::Again(LedgerError(other.to_string())),
        }
    }
}

impl From<WriteError> for LedgerError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Again(error) | WriteError::Never(error) => error,
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
async fn follow(log: Arc<dyn Log>, read: Weak<Read>) {
    let mut refused: Option<Instant> = None;
    let mut pause = PAUSE;
    loop {
        let lines = log.follow().await;
        let Some(ledger) = read.upgrade().map(StreamLedger) else { return };
        let (following, wait) = match lines {
            Ok(lines) => {
                refused = None;
                tracing::info!("reading the outcome ledger");
                let begun = Instant::now();
                ledger.lock().last_read = Some(begun);
                ledger.0.following.send_replace(Following::Yes);
                drop(ledger);
                read_all(lines, &read).await;
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
                            "there is no outcome ledger: what a crash makes twice is notified twice. It \
                             needs a broker with streams, which has not lost that one"
                        );
                        (Following::Refused, REFUSES)
                    }
                    false => (Following::NotNow, PAUSE),
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read the outcome ledger");
                refused = None;
                (Following::NotNow, PAUSE)
            }
        };
        let Some(ledger) = read.upgrade() else { return };
        ledger.following.send_replace(following);
        drop(ledger);
        tokio::time::sleep(wait).await;
    }
}

async fn read_all(mut lines: mpsc::Receiver<Vec<u8>>, read: &Weak<Read>) {
    let Some(deaf) = read.upgrade().map(|read| read.deaf.clone()) else { return };
    let mut begins = true;
    loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            () = deaf.notified() => None,
        };
        let Some(ledger) = read.upgrade().map(StreamLedger) else { return };
        let Some(line) = line else {
            return tracing::debug!("the outcome ledger ended, or is not heard any more");
        };
        if std::mem::take(&mut begins) {
            ledger.lock().claims = Claims::default();
        }
        ledger.read(&line);
    }
}
