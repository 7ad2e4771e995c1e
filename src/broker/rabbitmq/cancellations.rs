//! What the cancel exchange hands out to every worker, at once and after the fact.
//!
//! A queue of the connection's own hears what is sent while this worker is connected. A stream keeps what is
//! sent, for those who were not. A stream does not tell when a line was written: so whoever hears a
//! cancellation, and whoever begins to read, writes the time into the stream. What stands before such a mark
//! was sent no later than that.

use std::sync::Arc;
use std::time::Duration;

use backoff::backoff::Backoff;
use futures_util::StreamExt;
use image_builder_actors::ports::{BrokerError, Cancellation};
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, Consumer};
use time::OffsetDateTime;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;

use super::connection::{ManagedConnection, pause, pauses};
use super::declare::Declarer;
use super::stream::Stream;

/// How long a cancellation holds, and is read back.
pub(super) const MEMORY: Duration = Duration::from_secs(24 * 3600);

/// Cancellations that may wait to be read; the broker holds back what comes on top.
const WAITING: usize = 64;

/// How long cancellations are collected before their time is written.
const COLLECT: Duration = Duration::from_secs(1);

/// How long a mark behind a cancellation is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Longest wait for what was sent before.
const LONGEST_READING: Duration = Duration::from_secs(10);

/// Pause before a stream that cannot be had is asked for again.
const PAUSE: Duration = Duration::from_secs(30);

/// Cancellations that may wait for a mark.
const MOST_UNMARKED: usize = 10_000;

/// Listens until the receiver is dropped, through every loss of the connection.
pub(super) fn listen(
    managed: Arc<ManagedConnection>,
    declarer: Arc<Declarer>,
    stream: Arc<Stream>,
    read: watch::Sender<bool>,
) -> mpsc::Receiver<Cancellation> {
    let (heard_in, heard) = mpsc::channel(WAITING);
    let unmarked = Arc::new(Notify::new());
    tokio::spawn(read_back(stream.clone(), heard_in.clone(), read));
    tokio::spawn(mark(stream, unmarked.clone(), heard_in.clone()));
    tokio::spawn(hear(managed, declarer, unmarked, heard_in));
    heard
}

/// Hears what is sent from now on.
async fn hear(
    managed: Arc<ManagedConnection>,
    declarer: Arc<Declarer>,
    unmarked: Arc<Notify>,
    heard: mpsc::Sender<Cancellation>,
) {
    let mut pauses = pauses();
    let mut told = String::new();
    loop {
        let connection = tokio::select! {
            () = heard.closed() => return,
            connection = managed.current() => connection,
        };
        let Some(connection) = connection else { return };
        match consumer(&connection, declarer.topology().cancel_exchange()).await {
            Ok(consumer) => {
                told.clear();
                pauses.reset();
                forward(consumer, &unmarked, &heard).await;
            }
            Err(error) => {
                // It may stay so for good: whoever may have no queue of his own works without.
                let error = error.to_string();
                if error != told {
                    tracing::warn!(
                        error,
                        "cannot listen for cancellations: no build is cancelled here"
                    );
                    told = error;
                }
            }
        }
        drop(connection);
        tokio::select! {
            () = heard.closed() => return,
            () = pause(&mut pauses) => {}
        }
    }
}

/// Binds a queue that lives and dies with the connection.
pub(super) async fn consumer(connection: &Connection, exchange: &str) -> lapin::Result<Consumer> {
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
    let name = queue.name().clone();
    let binding = QueueBindOptions::default();
    channel
        .queue_bind(name.clone(), exchange.into(), "".into(), binding, FieldTable::default())
        .await?;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    channel.basic_consume(name, "".into(), options, FieldTable::default()).await
}

async fn forward(mut consumer: Consumer, unmarked: &Notify, heard: &mpsc::Sender<Cancellation>) {
    loop {
        let delivery = tokio::select! {
            () = heard.closed() => return,
            delivery = consumer.next() => delivery,
        };
        let Some(Ok(delivery)) = delivery else { return };
        let cancellation = Cancellation { body: delivery.data, at: OffsetDateTime::now_utc() };
        if heard.send(cancellation).await.is_err() {
            return;
        }
        unmarked.notify_one();
    }
}

/// Writes the time behind what was heard.
async fn mark(stream: Arc<Stream>, unmarked: Arc<Notify>, heard: mpsc::Sender<Cancellation>) {
    loop {
        tokio::select! {
            () = heard.closed() => return,
            () = stream.closed() => return,
            () = unmarked.notified() => {}
        }
        tokio::time::sleep(COLLECT).await;
        write_mark(&stream, now()).await;
    }
}

/// The time, as a mark has it.
fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc().truncate_to_millisecond()
}

async fn write_mark(stream: &Stream, at: OffsetDateTime) {
    let millis = at.unix_timestamp_nanos() / 1_000_000;
    if let Err(error) = stream.append(millis.to_string().into_bytes()).await {
        // The cancellations before it then seem to be newer than they are.
        tracing::debug!(%error, "cannot write the time into the stream of cancellations");
    }
}

/// A line of the stream.
enum Line {
    Body(Vec<u8>),
    /// What stands before it was sent no later than this.
    Mark(OffsetDateTime),
}

/// Only what is written to the stream alone is a mark: the exchange hands out what strangers write.
fn line(delivery: lapin::message::Delivery) -> Line {
    let mark = || {
        let millis: i64 = std::str::from_utf8(&delivery.data).ok()?.parse().ok()?;
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok()
    };
    let mark = if delivery.exchange.as_str().is_empty() { mark() } else { None };
    mark.map_or_else(|| Line::Body(delivery.data.clone()), Line::Mark)
}

/// Waits until what was sent before is read, as far as that can be had.
pub(super) async fn until_read(read: &watch::Sender<bool>) {
    if timeout(LONGEST_READING, read.subscribe().wait_for(|read| *read)).await.is_err() {
        tracing::warn!(
            "what was cancelled while this worker was not connected was not read within \
             {LONGEST_READING:?}: it is heard later"
        );
    }
}

/// Reads what was sent in the last day, anew after every loss of the connection.
async fn read_back(
    stream: Arc<Stream>,
    heard: mpsc::Sender<Cancellation>,
    read: watch::Sender<bool>,
) {
    let mut warned = false;
    loop {
        read.send_replace(false);
        let lines = tokio::select! {
            () = heard.closed() => return,
            lines = stream.follow(line) => lines,
        };
        let wait = match lines {
            Ok(lines) => {
                warned = false;
                // What stands before it was sent before.
                let own = now();
                let mut lines = Unmarked { lines, bodies: Vec::new(), own, read: &read };
                let reading = async { while lines.pass_on(&heard).await {} };
                tokio::join!(reading, write_mark(&stream, own));
                COLLECT
            }
            Err(BrokerError::Refused(error)) => {
                // There is nothing to be read.
                read.send_replace(true);
                if !std::mem::replace(&mut warned, true) {
                    warn(&error);
                }
                PAUSE
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read the stream of cancellations");
                COLLECT
            }
        };
        tokio::select! {
            () = heard.closed() => return,
            () = stream.closed() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

pub(super) fn warn(error: &str) {
    tracing::warn!(
        error,
        "there is no stream of cancellations: what is cancelled while no worker is connected is built \
         nevertheless. It needs a broker with streams, which has not lost that one"
    );
}

/// A reading of the stream, and what it has had since the last mark.
struct Unmarked<'a> {
    lines: mpsc::Receiver<Line>,
    bodies: Vec<Vec<u8>>,
    /// The mark that was written when the reading began.
    own: OffsetDateTime,
    /// Whether that was read.
    read: &'a watch::Sender<bool>,
}

impl Unmarked<'_> {
    /// Reads a line, and hands on what is known to be sent by some time. Says whether there may be more.
    async fn pass_on(&mut self, heard: &mpsc::Sender<Cancellation>) -> bool {
        let next = if self.bodies.is_empty() {
            // Whoever listens no more is noticed here.
            tokio::select! {
                () = heard.closed() => None,
                line = self.lines.recv() => line,
            }
        } else {
            let now = || Line::Mark(OffsetDateTime::now_utc());
            timeout(LONGEST_WAIT, self.lines.recv()).await.unwrap_or_else(|_| Some(now()))
        };
        let is_own = matches!(&next, Some(Line::Mark(at)) if *at == self.own);
        let (at, more) = match next {
            Some(Line::Body(body)) if self.bodies.len() < MOST_UNMARKED => {
                self.bodies.push(body);
                return true;
            }
            Some(Line::Body(body)) => {
                self.bodies.push(body);
                (OffsetDateTime::now_utc(), true)
            }
            Some(Line::Mark(at)) => (at.min(OffsetDateTime::now_utc()), true),
            None => (OffsetDateTime::now_utc(), false),
        };
        for body in self.bodies.drain(..) {
            if at + MEMORY < OffsetDateTime::now_utc() {
                continue;
            }
            if heard.send(Cancellation { body, at }).await.is_err() {
                return false;
            }
        }
        if is_own {
            self.read.send_replace(true);
        }
        more
    }
}
