//! What an actor is doing: counted where it happens, logged in one line an interval.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::fault::{Reason, StageName};

/// The six actors, in the order of a job's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ActorName {
    Listener,
    Connector,
    Builder,
    Pusher,
    Notifier,
    Retry,
}

impl ActorName {
    pub const ALL: [ActorName; 6] = [
        ActorName::Listener,
        ActorName::Connector,
        ActorName::Builder,
        ActorName::Pusher,
        ActorName::Notifier,
        ActorName::Retry,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            ActorName::Listener => "listener",
            ActorName::Connector => "connector",
            ActorName::Builder => "builder",
            ActorName::Pusher => "pusher",
            ActorName::Notifier => "notifier",
            ActorName::Retry => "retry",
        }
    }

    /// The stage that a job is in while this actor has it.
    pub fn stage(self) -> StageName {
        match self {
            ActorName::Connector => StageName::Connector,
            ActorName::Builder => StageName::Builder,
            ActorName::Pusher => StageName::Pusher,
            ActorName::Listener | ActorName::Notifier | ActorName::Retry => StageName::Listener,
        }
    }
}

impl fmt::Display for ActorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where an actor is in its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ActorState {
    #[default]
    Starting,
    Running,
    /// Dead, and about to be started again.
    Restarting,
    Stopped,
}

impl ActorState {
    pub fn as_str(self) -> &'static str {
        match self {
            ActorState::Starting => "starting",
            ActorState::Running => "running",
            ActorState::Restarting => "restarting",
            ActorState::Stopped => "stopped",
        }
    }
}

/// What an actor died of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Death {
    /// It panicked; with what the panic said.
    Panic(String),
    /// It stopped by itself.
    Stopped,
    /// It did not get to its messages: its thread is blocked.
    Hung,
    /// Its thread ended under it.
    Lost,
}

impl Death {
    /// Every cause, as it stands in the metrics.
    pub const CAUSES: [&'static str; 4] = ["panic", "stopped", "hung", "lost"];

    /// The cause, as it stands in the metrics.
    pub fn cause(&self) -> &'static str {
        match self {
            Death::Panic(_) => "panic",
            Death::Stopped => "stopped",
            Death::Hung => "hung",
            Death::Lost => "lost",
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = match self {
            Death::Panic(message) => message,
            Death::Stopped => "by itself",
            Death::Hung => "it did not get to its messages",
            Death::Lost => "its thread ended",
        };
        write!(f, "{}: {detail}", self.cause())
    }
}

/// An actor's figures at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub state: ActorState,
    /// Jobs being worked on.
    pub in_hand: usize,
    /// Jobs waiting for a slot.
    pub waiting: usize,
    pub done: u64,
    /// Failures by reason.
    pub failed: BTreeMap<&'static str, u64>,
    /// Deaths by cause.
    pub deaths: BTreeMap<&'static str, u64>,
    /// The newest failure or death.
    pub last_fault: Option<String>,
    /// Age of the job that has been in hand for longest.
    pub oldest: Option<Duration>,
}

impl Snapshot {
    /// Deaths, whatever the cause.
    pub fn restarts(&self) -> u64 {
        self.deaths.values().sum()
    }
}

/// One actor's health. Outlives the actor's restarts.
#[derive(Debug)]
pub struct Health {
    name: ActorName,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// All figures but those that `in_hand` gives.
    figures: Snapshot,
    /// When each job was taken in hand.
    in_hand: HashMap<u64, Instant>,
    next: u64,
}

impl Health {
    pub fn new(name: ActorName) -> Arc<Self> {
        Arc::new(Self { name, inner: Mutex::default() })
    }

    pub fn name(&self) -> ActorName {
        self.name
    }

    pub fn snapshot(&self) -> Snapshot {
        let inner = self.lock();
        Snapshot {
            in_hand: inner.in_hand.len(),
            oldest: inner.in_hand.values().min().map(Instant::elapsed),
            ..inner.figures.clone()
        }
    }

    /// Writes the health line.
    pub fn log(&self) {
        let now = self.snapshot();
        let failed: u64 = now.failed.values().sum();
        let by_reason = now.failed.iter().map(|(reason, count)| format!("{reason}={count}"));
        let failed_by = by_reason.collect::<Vec<_>>().join(" ");
        tracing::info!(
            actor = self.name.as_str(),
            state = now.state.as_str(),
            in_hand = now.in_hand,
            waiting = now.waiting,
            done = now.done,
            failed,
            failed_by = (failed > 0).then_some(failed_by),
            restarts = now.restarts(),
            oldest_seconds = now.oldest.map(|age| age.as_secs()),
            last_fault = now.last_fault,
            "health"
        );
    }

    /// Notes a change of state, and writes a line on it.
    pub fn enter(&self, state: ActorState) {
        let before = std::mem::replace(&mut self.lock().figures.state, state);
        if before != state {
            tracing::info!(
                actor = self.name.as_str(),
                state = state.as_str(),
                "actor is {}",
                state.as_str()
            );
        }
    }

    /// Notes the actor's death.
    pub fn died(&self, death: &Death) {
        let figures = &mut self.lock().figures;
        *figures.deaths.entry(death.cause()).or_default() += 1;
        figures.last_fault = Some(death.to_string());
    }

    /// Notes a failed job.
    pub fn failed(&self, reason: Reason) {
        let figures = &mut self.lock().figures;
        *figures.failed.entry(reason.as_str()).or_default() += 1;
        figures.last_fault = Some(reason.to_string());
    }

    /// Notes a job that waits, until the guard is dropped.
    pub fn waiting(self: &Arc<Self>) -> Waiting {
        self.lock().figures.waiting += 1;
        Waiting(self.clone())
    }

    /// Notes a job in hand, until the guard is dropped.
    pub fn in_hand(self: &Arc<Self>) -> InHand {
        let mut inner = self.lock();
        let number = inner.next;
        inner.next += 1;
        inner.in_hand.insert(number, Instant::now());
        InHand { health: self.clone(), number }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Health::waiting`].
#[derive(Debug)]
pub struct Waiting(Arc<Health>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.lock().figures.waiting -= 1;
    }
}

/// See [`Health::in_hand`].
#[derive(Debug)]
pub struct InHand {
    health: Arc<Health>,
    number: u64,
}

impl InHand {
    /// The job went well.
    pub fn done(self) {
        self.health.lock().figures.done += 1;
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.health.lock().in_hand.remove(&self.number);
    }
}
