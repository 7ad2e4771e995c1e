//! The broker port in a file of this machine's: SQLite, for one worker that needs no RabbitMQ.
//!
//! One task writes ([`writer`]), each transaction as `BEGIN IMMEDIATE`, in WAL mode with `synchronous=FULL`: what
//! was answered is on the disk. The file belongs to one process at a time, which holds its directory's lock; others
//! may read it. What a process had in hand when it died comes back when the next one opens the file.
//!
//! | file | what it does |
//! |---|---|
//! | `schema.sql` | the tables |
//! | `file.rs`, `open.rs` | connections; how the file is made and opened |
//! | `writer.rs` | commits together what is asked at the same time |
//! | `messages.rs` | messages, from their publishing to their settling |
//! | `leases.rs` | what this process has in hand, and the heartbeat that keeps it |
//! | `backlog.rs` | whose turn it is |
//! | `cancellations.rs` | what is to be stopped |
//! | `ledger.rs` | the outcome ledger |
//! | `dead_letters.rs` | the dead letters |
//! | `queues.rs` | what waits where, for the commands |
//! | `moving.rs` | all that waits, moved to another broker |
//! | `clock.rs` | the time |

mod backlog;
mod cancellations;
mod clock;
mod dead_letters;
mod file;
mod leases;
mod ledger;
mod messages;
pub mod moving;
mod open;
pub mod queues;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::ports::{
    Backlog, Broker, BrokerError, Cancellation, DeadLetterReading, DeadLetterStore, DeadLetters,
    DeadLettersError, Message, OutcomeLedger, Place, Queue, Subscription,
};
use tokio::sync::{Mutex, mpsc, watch};

use self::backlog::BacklogTaker;
use self::clock::Clock;
use self::file::{BACKLOG, Reader, number, told};
use self::leases::{Acks, Leases};
use self::ledger::SqliteLedger;
pub use self::open::OpenError;
use self::queues::Counted;
use self::writer::{PAUSE, Writer};

/// What the adapter needs to know.
#[derive(Debug, Clone)]
pub struct SqliteSettings {
    /// The file, which is made where it is missing. Nobody else may have it open to write.
    pub path: PathBuf,
    /// How long a dead letter is kept; `None` = none are.
    pub dead_ttl: Option<Duration>,
    /// Whether the deployment has a result queue: without one, results are taken and forgotten.
    pub has_result_queue: bool,
    /// How long what is in hand stays so without a heartbeat.
    pub lease: Duration,
    /// How often the leases are renewed; several times within [`SqliteSettings::lease`].
    pub heartbeat: Duration,
}

impl SqliteSettings {
    /// The defaults: letters for 7 days, no result queue, a lease of 2 minutes, a heartbeat every 30 s.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            dead_ttl: Some(Duration::from_secs(7 * 24 * 3600)),
            has_result_queue: false,
            lease: Duration::from_secs(120),
            heartbeat: Duration::from_secs(30),
        }
    }
}

/// The queues of one file. Clones are the same; [`SqliteBroker::close`] ends them all.
#[derive(Clone)]
pub struct SqliteBroker {
    writer: Writer,
    reader: Arc<Reader>,
    leases: Leases,
    dead_ttl: Option<Duration>,
    has_result_queue: bool,
    /// Held by whoever reads the dead letters.
    reading: Arc<Mutex<()>>,
    /// Whether those who listen have what was cancelled before.
    cancelled_read: watch::Sender<bool>,
}

impl SqliteBroker {
    /// Opens the file, which is to be this process's alone: the lock of its directory is the caller's. What an
    /// earlier process had in hand comes back at once, charged with a delivery.
    ///
    /// # Errors
    /// The file cannot be made, read or written, or is no queue that this version knows.
    pub async fn open(settings: SqliteSettings) -> Result<Self, OpenError> {
        let clock = Clock::start();
        let tx = open::open(&settings.path, clock).await?;
        let reader = Arc::new(Reader::new(settings.path.clone()));
        let writer = Writer::start(settings.path, tx, clock);
        let leases = Leases::new(writer.clone(), settings.lease);
        tokio::spawn(leases.clone().keep_up(settings.heartbeat));
        tokio::spawn(put_due(writer.clone()));
        Ok(Self {
            writer,
            reader,
            leases,
            dead_ttl: settings.dead_ttl,
            has_result_queue: settings.has_result_queue,
            reading: Arc::default(),
            cancelled_read: watch::Sender::new(false),
        })
    }

    /// The outcome ledger, in the same file.
    pub fn outcome_ledger(&self) -> Arc<dyn OutcomeLedger> {
        Arc::new(SqliteLedger { writer: self.writer.clone(), reader: self.reader.clone() })
    }

    /// Asks everybody to stop what this body, of whatever sender, names: returns once that is durable.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn send_cancellation(&self, body: Vec<u8>) -> Result<(), BrokerError> {
        cancellations::send(&self.writer, body).await
    }

    /// Counts what is in each queue.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn waiting_by_queue(&self) -> Result<Vec<Counted>, BrokerError> {
        let counted = self.reader.read(|connection| queues::count(connection).boxed());
        counted.await.map_err(|error| told(&error))
    }

    async fn put(
        &self,
        queue: i64,
        message: Message,
        place: Option<Place>,
        delay: Duration,
    ) -> Result<(), BrokerError> {
        message.check()?;
        let delay = clock::of_duration(delay.saturating_add(Duration::from_micros(999)));
        let put = self.writer.write(move |tx| {
            async move { messages::put(tx, queue, &message, place.as_ref(), delay).await }.boxed()
        });
        put.await
    }
}

/// Puts delayed messages in their queues when their time has come, until the file is closed.
async fn put_due(writer: Writer) {
    let mut delayed = writer.heard.due.subscribe();
    loop {
        let Ok(mut next) = writer.write(|tx| messages::put_due(tx).boxed()).await else {
            tokio::select! {
                () = writer.closed() => return,
                () = tokio::time::sleep(PAUSE) => continue,
            }
        };
        loop {
            let comes = async {
                match next {
                    Some(next) => tokio::time::sleep_until(writer.clock.instant(next)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = writer.closed() => return,
                () = comes => break,
                // The sender lives as long as the writer.
                _ = delayed.changed() => {}
            }
            next = next.into_iter().chain(writer.heard.take_due()).min();
        }
    }
}

impl Broker for SqliteBroker {
    fn look(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let has_failed = self.writer.heard.failed.borrow().is_some();
            if has_failed {
                // Whether that is over shows when something is written.
                self.leases.renew().await.map_err(|error| error.to_string())?;
            }
            let missing = self.reader.read(|connection| queues::missing(connection).boxed());
            match missing.await.map_err(|error| told(&error).to_string())? {
                Some(queue) => {
                    Err(format!("the queue `{queue}` is gone from the file: restart the worker"))
                }
                None => Ok(()),
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            for held in self.leases.end_all() {
                held.give_all_back().await;
            }
            self.writer.close().await;
            self.reader.close().await;
        })
    }

    fn consume(
        &self,
        queue: Queue,
        window: u16,
    ) -> BoxFuture<'_, Result<Subscription, BrokerError>> {
        Box::pin(async move {
            if queue == Queue::Result {
                let text = "nobody consumes results in this program";
                return Err(BrokerError::Refused(text.to_owned()));
            }
            let window = usize::from(window.max(1));
            let (deliveries_in, deliveries) = mpsc::channel(window);
            let held = self.leases.begin(number(queue), Some(deliveries_in)).await?;
            tokio::spawn(held.clone().deliver(window));
            Ok(Subscription { deliveries, acks: Arc::new(Acks(held)) })
        })
    }

    fn publish(
        &self,
        queue: Queue,
        message: Message,
        delay: Duration,
    ) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            queue.check_delay(delay)?;
            if queue == Queue::Result && !self.has_result_queue {
                return message.check();
            }
            self.put(number(queue), message, None, delay).await
        })
    }

    fn enqueue(&self, message: Message, place: Place) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(self.put(BACKLOG, message, Some(place), Duration::ZERO))
    }

    fn backlog(&self) -> BoxFuture<'_, Result<Backlog, BrokerError>> {
        Box::pin(async move {
            let held = self.leases.begin(BACKLOG, None).await?;
            let taker = BacklogTaker::new(self.writer.clone(), held.clone());
            let ending = held.clone();
            tokio::spawn(async move {
                ending.over().await;
                ending.give_all_back().await;
            });
            Ok(Backlog { taker: Box::new(taker), acks: Arc::new(Acks(held)) })
        })
    }

    fn waiting(&self) -> BoxFuture<'_, Result<u64, BrokerError>> {
        Box::pin(async move {
            let waiting = self.reader.read(|connection| messages::waiting(connection).boxed());
            Ok(waiting.await.map_err(|error| told(&error))?.unsigned_abs())
        })
    }

    fn workers(&self) -> BoxFuture<'_, Result<u64, BrokerError>> {
        Box::pin(async move { Ok(self.leases.consumers(number(Queue::Build)) as u64) })
    }

    fn cancel<'a>(&'a self, build: &'a BuildIdentity) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(self.send_cancellation(Cancellation::body_of(build)))
    }

    fn cancellations(&self) -> mpsc::Receiver<Cancellation> {
        cancellations::listen(self.writer.clone(), self.reader.clone(), self.cancelled_read.clone())
    }

    fn cancellations_read(&self) -> BoxFuture<'_, ()> {
        Box::pin(cancellations::until_read(&self.cancelled_read))
    }
}

impl DeadLetters for SqliteBroker {
    fn keep<'a>(&'a self, letter: &'a DeadLetter) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            match self.dead_ttl {
                Some(ttl) => dead_letters::keep(&self.writer, letter, ttl).await,
                None => Ok(()),
            }
        })
    }
}

impl DeadLetterStore for SqliteBroker {
    fn read(&self) -> BoxFuture<'_, Result<Box<dyn DeadLetterReading>, DeadLettersError>> {
        Box::pin(async move {
            let (writer, reader) = (self.writer.clone(), self.reader.clone());
            let reading =
                dead_letters::Reading::begin(writer, reader, self.reading.clone()).await?;
            Ok(Box::new(reading) as Box<dyn DeadLetterReading>)
        })
    }
}
