//! The right, and the duty, to settle one delivery.
//!
//! A [`Lease`] travels inside the message that an actor works on. Whoever holds it must end it: by
//! [`Lease::ack`] after the next durable fact exists, or by [`Lease::release`] where none can be made.
//! A lease that is dropped unsettled (a panic, a mailbox that died) tells the subscription's
//! settler, which makes a durable fact of the crash and only then acks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::delivery::dedup::Hold;
use crate::delivery::envelope;
use crate::model::build_log;
use crate::model::fault::{Fault, Reason, StageName};
use crate::ports::{Broker, BrokerError, Message, Queue, Route, Settle};
use crate::telemetry::delivery_span::DeliverySpan;
use crate::telemetry::trace::TRACEPARENT;

/// What the holder of a lease was phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// On its way to an actor that has not looked at it.
    InMailbox,
    /// Waiting for a slot.
    Waiting,
    /// Working, in this stage.
    Working(StageName),
}

/// The owned right to settle one delivery.
pub struct Lease {
    message: Arc<Message>,
    first: bool,
    held: Shared,
}

type Shared = Arc<Mutex<Option<Held>>>;

struct Held {
    message: Arc<Message>,
    tag: u64,
    redeliveries: u64,
    /// When a worker first had the request in hand, as far as is known.
    since: Option<OffsetDateTime>,
    phase: Phase,
    span: DeliverySpan,
    settle: Arc<dyn Settle>,
    dropped: mpsc::UnboundedSender<Dropped>,
    hold: Hold,
    /// The subscription's own bound on unsettled deliveries.
    _slot: OwnedSemaphorePermit,
}

impl Held {
    fn is_stale(&self) -> bool {
        !self.settle.holds(self.tag)
    }

    /// The next durable fact exists: should the ack get lost, the redelivery is only acked.
    async fn ack(self) -> Result<(), BrokerError> {
        let acked = self.settle.ack(self.tag).await;
        self.hold.settled(acked.is_ok());
        acked
    }

    /// Settling may take a while yet, in which nobody works on the delivery.
    fn end_span(&mut self, why: &str) {
        let mut span = std::mem::take(&mut self.span);
        span.broke_off(why);
    }
}

/// A lease that ended without being settled.
struct Dropped(Held);

/// A message that holds a lease.
pub trait Leased {
    fn lease(&self) -> &Lease;
}

impl Lease {
    /// The message that was delivered.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// Whether nobody can have had the request in hand before.
    pub fn is_first(&self) -> bool {
        self.first
    }

    /// When a worker first had the request in hand, as far as is known.
    pub fn since(&self) -> Option<OffsetDateTime> {
        lock(&self.held).as_ref().and_then(|held| held.since)
    }

    /// Says when a worker first had the request in hand, should the lease be dropped.
    pub fn is_since(&self, since: Option<OffsetDateTime>) {
        if let Some(held) = &mut *lock(&self.held) {
            held.since = since;
        }
    }

    /// Says what becomes of the delivery now: a crash while it is worked on counts as a try, any other
    /// crash as nothing.
    pub fn set_phase(&self, phase: Phase) {
        if let Some(held) = &mut *lock(&self.held) {
            held.phase = phase;
            match phase {
                Phase::Working(stage) => held.span.enter(stage),
                Phase::InMailbox | Phase::Waiting => {
                    held.span.leave();
                }
            }
        }
    }

    /// Whether the lease still stands; one that was [revoked](Revocable::revoke) does not.
    pub fn stands(&self) -> bool {
        lock(&self.held).is_some()
    }

    /// Whether the broker is known to have taken the delivery back: somebody gets it again, and what is
    /// published on its account here would make two jobs of one. Where that is true it stays true.
    pub fn is_stale(&self) -> bool {
        lock(&self.held).as_ref().is_some_and(Held::is_stale)
    }

    /// A way to end the lease for those who find its holder stuck.
    pub fn revocable(&self) -> Revocable {
        Revocable(Arc::downgrade(&self.held))
    }

    /// Says how the delivery is seen from here on, until it is settled.
    pub fn observe(&self, mut span: DeliverySpan) {
        if let Some(held) = &mut *lock(&self.held) {
            if let Phase::Working(stage) = held.phase {
                span.enter(stage);
            }
            held.span = span;
        }
    }

    /// Adds something to how the delivery is seen.
    pub fn span(&self, add: impl FnOnce(&mut DeliverySpan) -> &mut DeliverySpan) {
        if let Some(held) = &mut *lock(&self.held) {
            add(&mut held.span);
        }
    }

    /// The trace context for what comes of this delivery: the worker's own where it traces, else
    /// the one that the message brought.
    pub fn traceparent(&self) -> Option<String> {
        let own = lock(&self.held).as_ref().and_then(|held| held.span.traceparent());
        own.or_else(|| self.message.headers.get(TRACEPARENT).cloned())
    }

    /// Ends the lease: the next durable fact exists. An error means that the delivery was already
    /// back with the broker, which will deliver it again.
    pub async fn ack(self) -> Result<(), BrokerError> {
        let held = lock(&self.held).take();
        match held {
            Some(held) => held.ack().await,
            None => Err(BrokerError::Stale),
        }
    }

    /// Ends the lease without a durable fact: the broker delivers the message again, after a pause
    /// that grows with the number of deliveries. For when publishing is impossible.
    pub fn release(self) {
        let held = lock(&self.held).take();
        if let Some(mut held) = held {
            held.end_span("given back to its queue");
            tokio::spawn(nack_later(held));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        hand_over(lock(&self.held).take());
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*lock(&self.held) {
            Some(held) => write!(f, "Lease({}, {:?})", held.tag, held.phase),
            None => f.write_str("Lease(ended)"),
        }
    }
}

/// A way to end a lease from outside.
#[derive(Clone)]
pub struct Revocable(Weak<Mutex<Option<Held>>>);

impl Revocable {
    /// What the lease's holder is phase; `None` = the lease has ended.
    pub fn phase(&self) -> Option<Phase> {
        lock(&*self.0.upgrade()?).as_ref().map(|held| held.phase)
    }

    /// Ends the lease as a drop does. Its holder, should it ever come back, finds that it no longer
    /// stands.
    pub fn revoke(&self) {
        if let Some(held) = self.0.upgrade() {
            hand_over(lock(&held).take());
        }
    }

    /// The same, for a lease whose holder got stuck in this stage.
    pub fn revoke_from(&self, stage: StageName) {
        if let Some(held) = self.0.upgrade() {
            let mut held = lock(&held).take();
            if let Some(held) = &mut held {
                held.phase = Phase::Working(stage);
            }
            hand_over(held);
        }
    }
}

fn lock(held: &Mutex<Option<Held>>) -> MutexGuard<'_, Option<Held>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hand_over(held: Option<Held>) {
    if let Some(mut held) = held {
        held.end_span(if held.is_stale() { "taken back by the broker" } else { "crashed" });
        // A closed channel means that the runtime ends: the broker delivers again.
        let _ = held.dropped.clone().send(Dropped(held));
    }
}

/// Makes the leases of one subscription, and settles those that were dropped.
pub struct Settler {
    queue: Queue,
    settle: Arc<dyn Settle>,
    dropped: mpsc::UnboundedSender<Dropped>,
    /// Leases that stand, to find those that are overdue.
    given: mpsc::UnboundedSender<(Instant, Revocable)>,
}

impl Settler {
    /// Starts the settling task; it ends when the settler and all its leases are gone. A lease that
    /// stands for longer than `longest` is revoked: whatever has it is stuck.
    pub fn start(
        broker: Arc<dyn Broker>,
        queue: Queue,
        settle: Arc<dyn Settle>,
        longest: Duration,
    ) -> Self {
        let (dropped, mut inbox) = mpsc::unbounded_channel::<Dropped>();
        tokio::spawn(async move {
            while let Some(Dropped(held)) = inbox.recv().await {
                match queue {
                    Queue::Build => drop(tokio::spawn(hand_back_crashed(broker.clone(), held))),
                    // Nothing is lost by trying again, and no rebuild comes of it.
                    Queue::Fail | Queue::Outcome => drop(tokio::spawn(nack_later(held))),
                }
            }
        });
        let (given, leases) = mpsc::unbounded_channel();
        tokio::spawn(revoke_overdue(leases, longest));
        Self { queue, settle, dropped, given }
    }

    /// The lease of one delivery, which holds `slot` until it is settled.
    pub fn lease(
        &self,
        message: Message,
        tag: u64,
        redeliveries: u64,
        hold: Hold,
        slot: OwnedSemaphorePermit,
    ) -> Lease {
        let message = Arc::new(message);
        // What comes to the other queues was in somebody's hands.
        let first = self.queue == Queue::Build && envelope::is_first(&message, redeliveries);
        let held = Held {
            message: message.clone(),
            tag,
            redeliveries,
            since: first.then(OffsetDateTime::now_utc),
            phase: Phase::InMailbox,
            span: DeliverySpan::default(),
            settle: self.settle.clone(),
            dropped: self.dropped.clone(),
            hold,
            _slot: slot,
        };
        let lease = Lease { message, first, held: Arc::new(Mutex::new(Some(held))) };
        // The task ends only with the runtime.
        let _ = self.given.send((Instant::now(), lease.revocable()));
        lease
    }
}

/// Revokes the leases that stand for too long. They come in the order in which they were given; only
/// those that still stand are remembered.
async fn revoke_overdue(
    mut leases: mpsc::UnboundedReceiver<(Instant, Revocable)>,
    longest: Duration,
) {
    let mut standing: VecDeque<(Instant, Revocable)> = VecDeque::new();
    let mut more = true;
    while more || !standing.is_empty() {
        let overdue = standing.front().map(|(given, _)| *given + longest);
        tokio::select! {
            next = leases.recv(), if more => {
                standing.retain(|(_, lease)| lease.phase().is_some());
                more = next.is_some();
                standing.extend(next);
            }
            () = tokio::time::sleep_until(overdue.unwrap_or_else(Instant::now).into()), if overdue.is_some() => {
                let Some((_, lease)) = standing.pop_front() else { continue };
                if let Some(phase) = lease.phase() {
                    tracing::error!(
                        ?phase,
                        "a delivery was in hand for too long: it is taken from whoever has it"
                    );
                    lease.revoke();
                }
            }
        }
    }
}

/// Publishes a dropped build delivery to the fail queue as `crashed`, then acks it.
async fn hand_back_crashed(broker: Arc<dyn Broker>, held: Held) {
    if held.is_stale() {
        return;
    }
    let (stage, counted) = match held.phase {
        Phase::Working(stage) => (stage, true),
        Phase::InMailbox | Phase::Waiting => (StageName::Listener, false),
    };
    let fault = Fault::new(stage, Reason::Crashed, CRASH_MESSAGE);
    let mut history = envelope::of(&held.message);
    history.since = history.since.or(held.since);
    let attempt = history.counted() + 1;
    let build_id = envelope::build_id(&held.message).unwrap_or_default();
    build_log::span(&build_id, stage.as_str(), attempt).in_scope(|| {
        tracing::warn!(counted, "a job was dropped by a crash: it goes to the fail queue");
    });
    history.record(&fault, counted);
    let message = envelope::with(&held.message, &history);
    match broker.publish(Route::Fail, message).await {
        Ok(()) => drop(held.ack().await),
        Err(error) => {
            tracing::warn!(%error, "cannot publish a crashed job: it goes back to its queue");
            nack_later(held).await;
        }
    }
}

/// What the user reads of a crash.
pub const CRASH_MESSAGE: &str = "The build service crashed while it worked on this build.";

/// Gives a delivery back to its queue. The pause keeps a message that fails every time from going
/// round hot; the delivery stays unsettled meanwhile, so nothing is lost if the process ends.
async fn nack_later(held: Held) {
    if held.is_stale() {
        return;
    }
    let pause = Duration::from_secs(2u64.saturating_pow(held.redeliveries.min(5) as u32).min(30));
    tokio::time::sleep_until((Instant::now() + pause).into()).await;
    let _ = held.settle.nack(held.tag).await;
}
