//! One connection to the broker that is kept up: made anew whenever it ends, for ever.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;
use futures_util::{Stream, StreamExt};
use lapin::{Connection, Event};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use super::address::Address;
use super::declare::Declarer;
use super::handshake::{self, Failure, in_words};
use super::{ConnectError, ConnectionState};

/// How often a connection is looked at besides: a safeguard, for an end that nobody told us of.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// A connection that lived this long is no sign of trouble when it ends.
const STABLE: Duration = Duration::from_secs(30);

/// How long a connection is given to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Consumer,
    Publisher,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Consumer => "consumer",
            Side::Publisher => "publisher",
        })
    }
}

pub(super) struct ManagedConnectionSettings {
    pub(super) address: Address,
    pub(super) name: String,
    pub(super) connect_timeout: Duration,
    pub(super) declarer: Arc<Declarer>,
    pub(super) state: watch::Sender<ConnectionState>,
    pub(super) side: Side,
}

/// A connection that is kept up by a task of its own.
pub(super) struct ManagedConnection {
    current: watch::Receiver<Option<Arc<Connection>>>,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl ManagedConnection {
    /// Connects, waiting for the broker for as long as it takes, and keeps the connection up.
    ///
    /// # Errors
    /// What no waiting mends, as long as no connection was ever made.
    pub(super) async fn open(settings: ManagedConnectionSettings) -> Result<Self, ConnectError> {
        let first = Arc::new(settings.until_connected(&mut pauses(), Err).await?);
        let (current_in, current) = watch::channel(None);
        settings.announce(&first, &current_in);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(settings.keep_up(first, current_in, stopped));
        Ok(Self { current, stop, task: Mutex::new(Some(task)) })
    }

    /// The connection, as soon as there is one; `None` after [`ManagedConnection::close`].
    pub(super) async fn current(&self) -> Option<Arc<Connection>> {
        let mut current = self.current.clone();
        loop {
            let up = current.wait_for(Option::is_some).await.ok()?.clone();
            match up {
                // A connection that has just ended may still stand here for a moment.
                Some(connection) if connection.status().connected() => return Some(connection),
                _ => current.changed().await.ok()?,
            }
        }
    }

    /// Waits until `connection` is no longer the one in use. Whatever waits for an answer on a
    /// connection waits for this as well: an answer may be lost without a word.
    pub(super) async fn lost(&self, connection: &Arc<Connection>) {
        let mut current = self.current.clone();
        let in_use = |now: &Option<Arc<Connection>>| {
            now.as_ref().is_some_and(|now| Arc::ptr_eq(now, connection))
        };
        // An error means that there will be no connection any more.
        let _ = current.wait_for(|now| !in_use(now)).await;
    }

    /// Closes the connection for good, and waits until that is done.
    pub(super) async fn close(&self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.lock().await.take() {
            // It ends by itself; an error would be a panic, which is logged where it happens.
            let _ = task.await;
        }
    }
}

impl ManagedConnectionSettings {
    async fn keep_up(
        self,
        mut connection: Arc<Connection>,
        current: watch::Sender<Option<Arc<Connection>>>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut pauses = pauses();
        loop {
            let since = Instant::now();
            let stopped = tokio::select! {
                reason = self.ended(&connection) => {
                    let (name, broker) = (&self.name, &self.address);
                    tracing::warn!(connection = name, %broker, reason, "lost the broker");
                    false
                }
                _ = stop.wait_for(|stop| *stop) => true,
            };
            current.send_replace(None);
            self.tell(false);
            if stopped {
                return close(&connection).await;
            }
            // One that ended soon may end soon again: something may be killing it.
            if since.elapsed() > STABLE {
                pauses.reset();
            }
            let never_final = |error: ConnectError| {
                tracing::error!(connection = self.name, %error, "trying again nevertheless");
                Ok::<(), Infallible>(())
            };
            connection = tokio::select! {
                next = self.connect_again(&mut pauses, never_final) => match next {
                    Ok(next) => Arc::new(next),
                    Err(never) => match never {},
                },
                _ = stop.wait_for(|stop| *stop) => return,
            };
            self.announce(&connection, &current);
        }
    }

    /// As [`Self::until_connected`], after a pause.
    async fn connect_again<E>(
        &self,
        pauses: &mut ExponentialBackoff,
        on_permanent: impl Fn(ConnectError) -> Result<(), E>,
    ) -> Result<Connection, E> {
        pause(pauses).await;
        self.until_connected(pauses, on_permanent).await
    }

    /// Tries until there is a connection with all queues declared. `on_permanent` decides whether
    /// an error that waiting does not mend ends the trying.
    async fn until_connected<E>(
        &self,
        pauses: &mut ExponentialBackoff,
        on_permanent: impl Fn(ConnectError) -> Result<(), E>,
    ) -> Result<Connection, E> {
        let mut said = None;
        loop {
            match self.try_connect().await {
                Ok(connection) => return Ok(connection),
                Err(Failure::Permanent(error)) => on_permanent(error)?,
                // The same again is worth no line.
                Err(Failure::Temporary(reason)) if said.as_ref() == Some(&reason) => {}
                Err(Failure::Temporary(reason)) => {
                    let (name, broker) = (&self.name, &self.address);
                    tracing::warn!(connection = name, %broker, reason, "cannot reach the broker yet");
                    said = Some(reason);
                }
            }
            pause(pauses).await;
        }
    }

    async fn try_connect(&self) -> Result<Connection, Failure> {
        let limit = self.connect_timeout;
        let connection = handshake::connect(&self.address, &self.name, limit).await?;
        match tokio::time::timeout(limit, self.declarer.declare(&connection)).await {
            Ok(done) => done.map(|()| connection),
            Err(_) => {
                Err(Failure::Temporary(format!("it did not declare the queues in {limit:?}")))
            }
        }
    }

    fn announce(
        &self,
        connection: &Arc<Connection>,
        current: &watch::Sender<Option<Arc<Connection>>>,
    ) {
        current.send_replace(Some(connection.clone()));
        self.tell(true);
        tracing::info!(connection = self.name, broker = %self.address, "connected to the broker");
    }

    fn tell(&self, up: bool) {
        self.state.send_modify(|state| {
            match self.side {
                Side::Consumer => state.consuming = up,
                Side::Publisher => {
                    state.publishing = up;
                    state.blocked = None;
                }
            }
            state.since = Instant::now();
        });
    }

    /// Says why the broker takes no messages, or that it does.
    fn tell_blocked(&self, reason: Option<String>) {
        match &reason {
            Some(reason) => tracing::warn!(reason, "the broker takes no messages for now"),
            None => tracing::info!("the broker takes messages again"),
        }
        if self.side == Side::Publisher {
            self.state.send_modify(|state| state.blocked = reason);
        }
    }

    /// Waits for a connection's end, and says why it came.
    async fn ended(&self, connection: &Connection) -> String {
        let mut events = std::pin::pin!(connection.events_listener());
        let mut reason = None;
        while connection.status().connected() {
            let next = tokio::time::timeout(WATCH_INTERVAL, self.next_error(&mut events));
            if let Ok(event) = next.await {
                // Channels report here as well: only the connection's state tells which it was.
                reason = event;
            }
        }
        reason.unwrap_or_else(|| "the connection ended".to_owned())
    }

    async fn next_error(&self, events: &mut (impl Stream<Item = Event> + Unpin)) -> Option<String> {
        loop {
            match events.next().await {
                Some(Event::Error(error)) => return Some(in_words(&error)),
                Some(Event::ConnectionBlocked(reason)) => self.tell_blocked(Some(reason)),
                Some(Event::ConnectionUnblocked) => self.tell_blocked(None),
                Some(_) => {}
                // The stream ends with the connection; its state is the one to say so.
                None => std::future::pending().await,
            }
        }
    }
}

async fn close(connection: &Connection) {
    let goodbye = connection.close(200, "the worker stops".into());
    if !matches!(tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await, Ok(Ok(()))) {
        tracing::debug!("the broker did not answer the goodbye");
    }
}

/// Pauses between attempts: 0.2 s at first, growing to 10 s, each a little random so that workers
/// do not come back all at once.
pub(super) fn pauses() -> ExponentialBackoff {
    ExponentialBackoff {
        current_interval: Duration::from_millis(200),
        initial_interval: Duration::from_millis(200),
        randomization_factor: 0.3,
        multiplier: 2.0,
        max_interval: Duration::from_secs(10),
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    }
}

/// Waits out the next pause.
pub(super) async fn pause(pauses: &mut ExponentialBackoff) {
    tokio::time::sleep(pauses.next_backoff().unwrap_or(pauses.max_interval)).await;
}
