//! Whether the broker can be worked with: messages taken from it, and given to it.
//!
//! A broker that lacks memory or disk says so to a publisher only once that one publishes. So there is a queue
//! of the connection's own, to which a message is published and from which it is taken again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection};
use tokio::sync::{Mutex, watch};

use super::connection::ManagedConnection;
use super::declare::soft_error;

/// How long the broker may take to hand back a message of the worker's own.
const ANSWER: Duration = Duration::from_secs(3);

/// What is known of the broker without asking it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionState {
    pub consuming: bool,
    pub publishing: bool,
    /// When one of the two last changed.
    pub since: Instant,
    /// Why the broker takes no messages for now, in its own words.
    pub blocked: Option<String>,
    /// The queues that were not subscribed to, each with the reason.
    pub not_consumed: BTreeMap<String, String>,
}

impl ConnectionState {
    /// Of a worker that is to consume these queues.
    pub(super) fn down<'a>(queues: impl Iterator<Item = &'a str>) -> Self {
        let not_yet = |name: &str| (name.to_owned(), format!("`{name}` is not subscribed to yet"));
        Self {
            consuming: false,
            publishing: false,
            since: Instant::now(),
            blocked: None,
            not_consumed: queues.map(not_yet).collect(),
        }
    }

    /// Whether both connections are up.
    pub fn connected(&self) -> bool {
        self.consuming && self.publishing
    }

    /// Why it cannot be worked with.
    fn lack(&self) -> Option<String> {
        if !self.connected() {
            return Some("not connected".to_owned());
        }
        if let Some(reason) = &self.blocked {
            return Some(format!("the broker takes no messages for now: {reason}"));
        }
        self.not_consumed.values().next().cloned()
    }
}

/// Looks whether the broker can be worked with.
pub(super) struct Look {
    state: watch::Receiver<ConnectionState>,
    publisher: Arc<ManagedConnection>,
    /// What is used again for as long as the connection lives.
    echo: Mutex<Option<(Arc<Connection>, Option<Echo>)>>,
}

impl Look {
    pub(super) fn new(
        state: watch::Receiver<ConnectionState>,
        publisher: Arc<ManagedConnection>,
    ) -> Self {
        Self { state, publisher, echo: Mutex::default() }
    }

    /// Messages can be taken from the broker and given to it.
    ///
    /// # Errors
    /// Why not.
    pub(super) async fn look(&self) -> Result<(), String> {
        let mut state = self.state.clone();
        let lack = async {
            let lacking = state.wait_for(|state| state.lack().is_some()).await;
            lacking.ok().and_then(|state| state.lack()).unwrap_or_default()
        };
        tokio::select! {
            biased;
            lack = lack => Err(lack),
            echoed = tokio::time::timeout(ANSWER, self.echo()) => {
                echoed.unwrap_or_else(|_| Err("the broker confirms no message".to_owned()))
            }
        }
    }

    async fn echo(&self) -> Result<(), String> {
        let connection = self.publisher.current().await.ok_or("the connection was closed")?;
        let mut kept = self.echo.lock().await;
        let echo = match kept.take() {
            Some((of, echo)) if Arc::ptr_eq(&of, &connection) => echo,
            _ => Echo::open(&connection).await.map_err(|error| words(&error))?,
        };
        if let Some(echo) = &echo {
            echo.sound().await.map_err(|error| words(&error))?;
        }
        *kept = Some((connection, echo));
        Ok(())
    }
}

/// A queue that only its connection has.
struct Echo {
    channel: Channel,
    queue: ShortString,
}

impl Echo {
    /// `None` = who may not have a queue of his own may work all the same.
    async fn open(connection: &Connection) -> lapin::Result<Option<Self>> {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        match channel.queue_declare("".into(), options, FieldTable::default()).await {
            Ok(queue) => Ok(Some(Self { queue: queue.name().clone(), channel })),
            Err(error) => match soft_error(&error) {
                Some((AMQPSoftError::ACCESSREFUSED, _)) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// A message goes there and comes back.
    async fn sound(&self) -> lapin::Result<()> {
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default();
        self.channel
            .basic_publish("".into(), self.queue.clone(), options, b"", properties)
            .await?
            .await?;
        self.channel.basic_get(self.queue.clone(), BasicGetOptions { no_ack: true }).await?;
        Ok(())
    }
}

/// The broker's own words, where it has said anything.
fn words(error: &lapin::Error) -> String {
    match soft_error(error) {
        Some((_, text)) => format!("the broker refuses messages: {text}"),
        None => error.to_string(),
    }
}
