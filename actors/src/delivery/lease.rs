//! The right, and the duty, to settle one delivery.
//!
//! A [`Lease`] travels inside the message that an actor works on. Whoever holds it must end it: by
//! [`Lease::ack`] after the next durable fact exists, or by [`Lease::release`] where none can be made.
//! A lease that is dropped unsettled (a panic, a mailbox that died) comes back from the subscription's
//! settler, for a durable fact to be made of the crash before it is acked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::delivery::dedup::Hold;
use crate::delivery::envelope;
use crate::delivery::envelope::Envelope;
use crate::model::fault::StageName;
use crate::ports::{Acknowledger, BrokerError, Delivery, Message};
use crate::telemetry::delivery_span::DeliverySpan;

/// What the holder of a lease does with it.
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
    received: Arc<Received>,
    unsettled: LeaseCell,
}

/// A delivery, and what its message carries.
struct Received {
    delivery: Delivery,
    envelope: Envelope,
    first: bool,
}

/// Empty once the lease has ended.
type LeaseCell = Arc<Mutex<Option<Unsettled>>>;

/// A delivery that waits to be settled.
struct Unsettled {
    received: Arc<Received>,
    /// When a worker first had the request in hand, as far as is known.
    since: Option<OffsetDateTime>,
    phase: Phase,
    span: DeliverySpan,
    acks: Arc<dyn Acknowledger>,
    dropped: mpsc::UnboundedSender<Unsettled>,
    /// Whether it was dropped before.
    was_dropped: bool,
    hold: Hold,
    /// The subscription's own bound on unsettled deliveries.
    _slot: OwnedSemaphorePermit,
}

impl Unsettled {
    fn tag(&self) -> u64 {
        self.received.delivery.tag
    }

    fn is_stale(&self) -> bool {
        !self.acks.holds(self.tag())
    }

    fn into_lease(self) -> Lease {
        Lease { received: self.received.clone(), unsettled: Arc::new(Mutex::new(Some(self))) }
    }

    /// The next durable fact exists: should the ack get lost, the redelivery is only acked.
    async fn ack(self) -> Result<(), BrokerError> {
        let acked = self.acks.ack(self.tag()).await;
        self.hold.settled(acked.is_ok());
        acked
    }

    /// Settling may take a while yet, in which nobody works on the delivery.
    fn end_span(&mut self, why: &str) {
        let mut span = std::mem::take(&mut self.span);
        span.broke_off(why);
    }
}

/// A message that holds a lease.
pub trait Leased {
    fn lease(&self) -> &Lease;
}

impl Lease {
    pub fn delivery(&self) -> &Delivery {
        &self.received.delivery
    }

    /// The message that was delivered.
    pub fn message(&self) -> &Message {
        &self.received.delivery.message
    }

    /// What the message carries.
    pub fn envelope(&self) -> &Envelope {
        &self.received.envelope
    }

    /// Whether nobody can have had the request in hand before.
    pub fn is_first(&self) -> bool {
        self.received.first
    }

    /// What its holder does with it; `None` = it has ended.
    pub fn phase(&self) -> Option<Phase> {
        lock(&self.unsettled).as_ref().map(|unsettled| unsettled.phase)
    }

    /// When a worker first had the request in hand, as far as is known.
    pub fn since(&self) -> Option<OffsetDateTime> {
        lock(&self.unsettled).as_ref().and_then(|held| held.since)
    }

    /// Says when a worker first had the request in hand, should the lease be dropped.
    pub fn is_since(&self, since: Option<OffsetDateTime>) {
        if let Some(held) = &mut *lock(&self.unsettled) {
            held.since = since;
        }
    }

    /// Says what becomes of the delivery now: a crash while it is worked on counts as a try, any other
    /// crash as nothing.
    pub fn set_phase(&self, phase: Phase) {
        if let Some(held) = &mut *lock(&self.unsettled) {
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
        lock(&self.unsettled).is_some()
    }

    /// Whether the broker is known to have taken the delivery back: somebody gets it again, and what is
    /// published on its account here would make two jobs of one. Where that is true it stays true.
    pub fn is_stale(&self) -> bool {
        lock(&self.unsettled).as_ref().is_some_and(Unsettled::is_stale)
    }

    /// A way to end the lease for those who find its holder stuck.
    pub fn revocable(&self) -> Revocable {
        Revocable(Arc::downgrade(&self.unsettled))
    }

    /// Says how the delivery is seen from here on, until it is settled.
    pub fn observe(&self, mut span: DeliverySpan) {
        if let Some(held) = &mut *lock(&self.unsettled) {
            if let Phase::Working(stage) = held.phase {
                span.enter(stage);
            }
            held.span = span;
        }
    }

    /// Adds something to how the delivery is seen.
    pub fn span(&self, add: impl FnOnce(&mut DeliverySpan) -> &mut DeliverySpan) {
        if let Some(held) = &mut *lock(&self.unsettled) {
            add(&mut held.span);
        }
    }

    /// The trace context for what comes of this delivery: the worker's own where it traces, else
    /// the one that the message brought.
    pub fn traceparent(&self) -> Option<String> {
        let own = lock(&self.unsettled).as_ref().and_then(|held| held.span.traceparent());
        own.or_else(|| self.message().traceparent.clone())
    }

    /// Ends the lease: the next durable fact exists. An error means that the delivery was already
    /// back with the broker, which will deliver it again.
    pub async fn ack(self) -> Result<(), BrokerError> {
        let held = lock(&self.unsettled).take();
        match held {
            Some(held) => held.ack().await,
            None => Err(BrokerError::Stale),
        }
    }

    /// Ends the lease without a durable fact: the broker delivers the message again, after a pause
    /// that grows with the number of deliveries. For when publishing is impossible.
    pub fn release(self) {
        let held = lock(&self.unsettled).take();
        if let Some(mut held) = held {
            held.end_span("given back to its queue");
            tokio::spawn(nack_later(held));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        hand_over(lock(&self.unsettled).take());
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*lock(&self.unsettled) {
            Some(held) => write!(f, "Lease({}, {:?})", held.tag(), held.phase),
            None => f.write_str("Lease(ended)"),
        }
    }
}

/// A way to end a lease from outside.
#[derive(Clone)]
pub struct Revocable(Weak<Mutex<Option<Unsettled>>>);

impl Revocable {
    /// What the lease's holder does with it; `None` = the lease has ended.
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

fn lock(held: &Mutex<Option<Unsettled>>) -> MutexGuard<'_, Option<Unsettled>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hand_over(held: Option<Unsettled>) {
    let Some(mut held) = held else { return };
    if held.is_stale() {
        return held.end_span("taken back by the broker");
    }
    held.end_span("crashed");
    // A closed channel means that the runtime ends: the broker delivers again.
    let _ = held.dropped.clone().send(held);
}

/// Makes the leases of one subscription, and gives back those that were dropped.
#[derive(Clone)]
pub struct Settler {
    /// Whether nobody can have had in hand what comes: what comes to most queues was.
    may_be_first: bool,
    acks: Arc<dyn Acknowledger>,
    dropped: mpsc::UnboundedSender<Unsettled>,
    /// Leases that stand, to find those that are overdue.
    given: mpsc::UnboundedSender<(Instant, Revocable)>,
}

impl Settler {
    /// Starts the settling task; it ends when the settler and all its leases are gone. A lease that
    /// stands for longer than `longest` is revoked: whatever has it is stuck.
    ///
    /// `when_dropped` gets a lease that was dropped. One that it drops itself goes back to its queue.
    pub fn start(
        may_be_first: bool,
        acks: Arc<dyn Acknowledger>,
        longest: Duration,
        when_dropped: impl Fn(Lease) + Send + 'static,
    ) -> Self {
        let (dropped, mut inbox) = mpsc::unbounded_channel::<Unsettled>();
        tokio::spawn(async move {
            while let Some(mut unsettled) = inbox.recv().await {
                match std::mem::replace(&mut unsettled.was_dropped, true) {
                    false => when_dropped(unsettled.into_lease()),
                    true => unsettled.into_lease().release(),
                }
            }
        });
        let (given, leases) = mpsc::unbounded_channel();
        tokio::spawn(revoke_overdue(leases, longest));
        Self { may_be_first, acks, dropped, given }
    }

    /// The lease of one delivery, with the envelope of its message, which holds `slot` until it is settled.
    pub fn lease(
        &self,
        delivery: Delivery,
        envelope: Envelope,
        hold: Hold,
        slot: OwnedSemaphorePermit,
    ) -> Lease {
        let first = self.may_be_first && envelope::is_first(&delivery, &envelope);
        let unsettled = Unsettled {
            received: Arc::new(Received { delivery, envelope, first }),
            since: first.then(OffsetDateTime::now_utc),
            phase: Phase::InMailbox,
            span: DeliverySpan::default(),
            acks: self.acks.clone(),
            dropped: self.dropped.clone(),
            was_dropped: false,
            hold,
            _slot: slot,
        };
        let lease = unsettled.into_lease();
        // The task ends only with the runtime.
        let _ = self.given.send((Instant::now(), lease.revocable()));
        lease
    }
}

/// Of fewer leases than this those that have ended are not forgotten.
const MANY: usize = 64;

/// Revokes the leases that stand for too long. They come in the order in which they were given; at least
/// half of those that are remembered still stand, once there are many.
async fn revoke_overdue(
    mut leases: mpsc::UnboundedReceiver<(Instant, Revocable)>,
    longest: Duration,
) {
    let mut standing: VecDeque<(Instant, Revocable)> = VecDeque::new();
    // How many there are when those that have ended are next forgotten: not with each delivery.
    let mut many = MANY;
    let mut more = true;
    while more || !standing.is_empty() {
        let overdue = standing.front().map(|(given, _)| *given + longest);
        tokio::select! {
            next = leases.recv(), if more => {
                more = next.is_some();
                standing.extend(next);
                if standing.len() >= many || !more {
                    standing.retain(|(_, lease)| lease.phase().is_some());
                    many = MANY.max(2 * standing.len());
                }
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

/// Gives a delivery back to its queue. The pause keeps a message that fails every time from going
/// round hot; the delivery stays unsettled meanwhile, so nothing is lost if the process ends.
async fn nack_later(held: Unsettled) {
    if held.is_stale() {
        return;
    }
    let Received { delivery, envelope, .. } = &*held.received;
    let redeliveries = envelope.redeliveries_of(delivery).min(5) as u32;
    let pause = Duration::from_secs(2u64.saturating_pow(redeliveries).min(30));
    tokio::time::sleep_until((Instant::now() + pause).into()).await;
    let _ = held.acks.nack(held.tag()).await;
}
