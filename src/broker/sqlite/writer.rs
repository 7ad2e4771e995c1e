//! The one task that writes: what is asked of it at the same time is committed together.
//!
//! While the disk makes one transaction durable, others queue up, and the next transaction has all of them: a
//! hundred publishes at once cost one wait for the disk. Whoever asked hears of it after the commit. What fails
//! of itself is undone alone; where the disk fails, all that was in the transaction is undone and told so, and
//! the file is opened again for what comes next.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use image_builder_actors::ports::BrokerError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::clock::{Clock, Millis};
use super::file::{News, QUEUES, Tx, told};

/// Most changes of one transaction.
const MOST_AT_ONCE: usize = 256;

/// Changes that may wait; whoever has one more waits to ask.
const MOST_WAITING: usize = 1024;

/// How long a change may take until it is durable; whoever asked hears then that it may be so or not.
const LIMIT: Duration = Duration::from_secs(30);

/// Pause before something is asked again of a file that could not be written.
pub(super) const PAUSE: Duration = Duration::from_millis(250);

/// Free pages that are given back to the disk at a time, a matter of milliseconds, and that are kept for what comes.
const PAGES_AT_A_TIME: i64 = 1024;
const PAGES_KEPT: i64 = 1024;

/// Asks for changes. Clones ask the same task, which ends when it is told to.
#[derive(Clone)]
pub(super) struct Writer {
    asks: mpsc::Sender<Ask>,
    pub(super) clock: Clock,
    pub(super) heard: Arc<Heard>,
}

enum Ask {
    Change(Box<dyn Change>),
    Close(oneshot::Sender<()>),
}

/// What was committed last, for those who wait for it.
pub(super) struct Heard {
    /// How often there was more in a queue, by its number.
    queues: [watch::Sender<u64>; QUEUES.len()],
    pub(super) cancellations: watch::Sender<u64>,
    /// When the first of the messages is due that were delayed since somebody [asked](Heard::take_due).
    pub(super) due: watch::Sender<Option<Millis>>,
    /// Why the last transaction failed, if it did.
    pub(super) failed: watch::Sender<Option<String>>,
}

impl Heard {
    /// Hears whenever there may be more to hand out in a queue.
    pub(super) fn in_queue(&self, queue: i64) -> watch::Receiver<u64> {
        let queue = usize::try_from(queue).expect("queues have small numbers");
        self.queues[queue].subscribe()
    }

    fn tell(&self, news: &News) {
        for (queue, _) in self.queues.iter().zip(news.queues).filter(|(_, is_news)| *is_news) {
            queue.send_modify(|times| *times += 1);
        }
        if news.cancellations {
            self.cancellations.send_modify(|times| *times += 1);
        }
        if let Some(due) = news.due {
            self.due.send_modify(|first| *first = Some(first.map_or(due, |first| first.min(due))));
        }
    }

    /// When the first of the messages is due that were delayed since this was last asked.
    pub(super) fn take_due(&self) -> Option<Millis> {
        let mut due = None;
        self.due.send_if_modified(|first| {
            due = first.take();
            false
        });
        due
    }
}

/// Something that is done in a transaction, and its asker.
trait Change: Send {
    fn make<'a>(&'a mut self, tx: &'a mut Tx) -> BoxFuture<'a, sqlx::Result<()>>;

    /// Tells what came of it.
    fn answer(self: Box<Self>, committed: Result<(), BrokerError>);
}

struct Asked<F, T> {
    change: Option<F>,
    made: Option<T>,
    asker: oneshot::Sender<Result<T, BrokerError>>,
}

impl<F, T> Change for Asked<F, T>
where
    F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, sqlx::Result<T>> + Send,
    T: Send,
{
    fn make<'a>(&'a mut self, tx: &'a mut Tx) -> BoxFuture<'a, sqlx::Result<()>> {
        Box::pin(async move {
            if let Some(change) = self.change.take() {
                self.made = Some(change(tx).await?);
            }
            Ok(())
        })
    }

    fn answer(self: Box<Self>, committed: Result<(), BrokerError>) {
        let Self { made, asker, .. } = *self;
        // Whoever no longer waits does not know whether it was done.
        let _ = asker.send(committed.and_then(|()| made.ok_or_else(ended)));
    }
}

fn ended() -> BrokerError {
    BrokerError::Unavailable("the queue is closed".to_owned())
}

impl Writer {
    /// Starts the task, with a connection that is open.
    pub(super) fn start(path: PathBuf, tx: Tx, clock: Clock) -> Self {
        let (asks, inbox) = mpsc::channel(MOST_WAITING);
        let heard = Arc::new(Heard {
            queues: std::array::from_fn(|_| watch::Sender::new(0)),
            cancellations: watch::Sender::new(0),
            due: watch::Sender::new(None),
            failed: watch::Sender::new(None),
        });
        let writing = Writing { path, tx: Some(tx), clock, heard: heard.clone() };
        tokio::spawn(writing.run(inbox));
        Self { asks, clock, heard }
    }

    /// Makes a change; returns once that is durable.
    ///
    /// # Errors
    /// [`BrokerError::Refused`] if there is no such queue; [`BrokerError::Unavailable`] if the disk failed or is too
    /// slow, which may have it all the same.
    pub(super) async fn write<T, F>(&self, change: F) -> Result<T, BrokerError>
    where
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, sqlx::Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        let (asker, answer) = oneshot::channel();
        let asked = Box::new(Asked { change: Some(change), made: None, asker });
        let written = async {
            self.asks.send(Ask::Change(asked)).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())?
        };
        timeout(LIMIT, written).await.unwrap_or_else(|_| {
            Err(BrokerError::Unavailable(format!("it was not written within {LIMIT:?}")))
        })
    }

    /// Closes the file, after all that was asked before. What is asked later fails.
    pub(super) async fn close(&self) {
        let (closed, answer) = oneshot::channel();
        if self.asks.send(Ask::Close(closed)).await.is_ok() {
            // The task drops it if it ends before.
            let _ = answer.await;
        }
    }

    /// Waits until nothing can be asked any more.
    pub(super) async fn closed(&self) {
        self.asks.closed().await;
    }
}

struct Writing {
    path: PathBuf,
    /// `None` = it failed, and is opened again for the next transaction.
    tx: Option<Tx>,
    clock: Clock,
    heard: Arc<Heard>,
}

impl Writing {
    async fn run(mut self, mut inbox: mpsc::Receiver<Ask>) {
        let mut asks = Vec::with_capacity(MOST_AT_ONCE);
        let mut closed = Vec::new();
        while inbox.recv_many(&mut asks, MOST_AT_ONCE).await > 0 {
            let mut changes = Vec::with_capacity(asks.len());
            for ask in asks.drain(..) {
                match ask {
                    Ask::Change(change) => changes.push(change),
                    Ask::Close(answer) => {
                        inbox.close();
                        closed.push(answer);
                    }
                }
            }
            self.write(changes).await;
        }
        if let Some(mut tx) = self.tx.take() {
            let emptied = tx.execute("PRAGMA wal_checkpoint(TRUNCATE)").await;
            if let Err(error) = emptied.and(tx.close().await) {
                tracing::warn!(%error, "the queue's file was not closed as it should be: nothing is lost");
            }
        }
        for answer in closed {
            let _ = answer.send(());
        }
    }

    /// Makes some changes in one transaction, and answers each.
    async fn write(&mut self, mut changes: Vec<Box<dyn Change>>) {
        if changes.is_empty() {
            return;
        }
        match self.commit(&mut changes).await {
            Ok(refused) => {
                let failed = refused
                    .iter()
                    .flatten()
                    .find(|error| matches!(error, BrokerError::Unavailable(_)));
                self.note(failed);
                if let Some(tx) = &self.tx {
                    // Before those who asked go on: what they then look at is up to date.
                    self.heard.tell(&tx.news);
                }
                for (change, refused) in changes.into_iter().zip(refused) {
                    change.answer(refused.map_or(Ok(()), Err));
                }
                self.tidy().await;
            }
            Err(error) => {
                let error = told(&error);
                self.note(Some(&error));
                if let Some(tx) = self.tx.take() {
                    // A transaction that is still under way is undone by it.
                    let _ = tx.close().await;
                }
                for change in changes {
                    change.answer(Err(error.clone()));
                }
            }
        }
    }

    /// Says whether the last transaction failed, and in the log where that is new.
    fn note(&self, error: Option<&BrokerError>) {
        let before = self.heard.failed.send_replace(error.map(ToString::to_string));
        match (before, error) {
            (None, Some(error)) => tracing::error!(%error, "the queue's file cannot be written"),
            (Some(_), None) => tracing::info!("the queue's file can be written again"),
            _ => {}
        }
    }

    /// Commits all changes but those that failed of themselves; these are answered with why.
    async fn commit(
        &mut self,
        changes: &mut [Box<dyn Change>],
    ) -> sqlx::Result<Vec<Option<BrokerError>>> {
        if self.tx.is_none() {
            self.tx = Some(Tx::connect(&self.path, self.clock).await?);
        }
        let tx = self.tx.as_mut().expect("it was opened just now");
        let mut refused = Vec::with_capacity(changes.len());
        tx.begin().await?;
        for change in changes {
            tx.execute("SAVEPOINT change").await?;
            let made = change.make(tx).await;
            if made.is_err() {
                // This fails where SQLite has undone the whole transaction by itself.
                tx.execute("ROLLBACK TO change").await?;
            }
            tx.execute("RELEASE change").await?;
            refused.push(made.err().map(|error| told(&error)));
        }
        tx.commit().await?;
        Ok(refused)
    }

    /// Gives back to the disk what the file does not need any more, a little at a time, and empties the log,
    /// which still has what was deleted.
    async fn tidy(&mut self) {
        let Some(tx) = self.tx.as_mut().filter(|tx| tx.news.is_to_tidy) else { return };
        let tidied = async {
            let free: i64 =
                sqlx::query_scalar("PRAGMA freelist_count").fetch_one(&mut tx.connection).await?;
            if free > PAGES_KEPT {
                let pages = format!("PRAGMA incremental_vacuum({PAGES_AT_A_TIME})");
                sqlx::query(&pages).execute(&mut tx.connection).await?;
            }
            tx.execute("PRAGMA wal_checkpoint(TRUNCATE)").await
        };
        if let Err(error) = tidied.await {
            tracing::debug!(%error, "the queue's file was not tidied up");
        }
    }
}
