//! The right, and the duty, to settle one delivery.
//!
//! A [`Lease`] travels inside the message that an actor works on. Whoever holds it must end it: by
//! [`Lease::ack`] after the next durable fact exists, or by [`Lease::release`] where none can be made.
//! A lease that is dropped unsettled (a panic, a mailbox that died) tells the subscription's
//! settler, which makes a durable fact of the crash and only then acks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::fault::{Fault, Reason, Stage};
use crate::history;
use crate::journey::Journey;
use crate::ports::{Broker, BrokerError, Message, Queue, Route, Settle};
use crate::progress;
use crate::request;
use crate::trace::TRACEPARENT;

/// What the holder of a lease was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Waiting in a mailbox or for a slot.
    Waiting,
    /// Working, in this stage.
    Working(Stage),
}

/// The owned right to settle one delivery.
pub struct Lease {
    held: Option<Held>,
}

struct Held {
    message: Arc<Message>,
    tag: u64,
    redeliveries: u64,
    doing: Doing,
    journey: Journey,
    settle: Arc<dyn Settle>,
    dropped: mpsc::UnboundedSender<Dropped>,
    /// The subscription's own bound on unsettled deliveries.
    _slot: OwnedSemaphorePermit,
}

impl Held {
    /// Settling may take a while yet, in which nobody works on the delivery.
    fn end_journey(&mut self, why: &str) {
        let mut journey = std::mem::take(&mut self.journey);
        journey.broke_off(why);
    }
}

/// A lease that ended without being settled.
struct Dropped(Held);

impl Lease {
    /// The message that was delivered.
    pub fn message(&self) -> &Message {
        // A lease is only ever empty inside its own consuming methods.
        &self.held.as_ref().expect("a lease in somebody's hands is held").message
    }

    /// Says that the job is now being worked on: a crash from here on counts as a try.
    pub fn working(&mut self, stage: Stage) {
        if let Some(held) = &mut self.held {
            held.doing = Doing::Working(stage);
            held.journey.enter(stage);
        }
    }

    /// Says that the job only waits: a crash from here on counts as nothing.
    pub fn waiting(&mut self) {
        if let Some(held) = &mut self.held {
            held.doing = Doing::Waiting;
            held.journey.leave();
        }
    }

    /// Says how the delivery is seen from here on, until it is settled.
    pub fn observe(&mut self, mut journey: Journey) {
        if let Some(held) = &mut self.held {
            if let Doing::Working(stage) = held.doing {
                journey.enter(stage);
            }
            held.journey = journey;
        }
    }

    /// How the delivery is seen.
    pub fn journey(&mut self) -> &mut Journey {
        &mut self.held.as_mut().expect("a lease in somebody's hands is held").journey
    }

    /// The trace context for what comes of this delivery: the worker's own where it traces, else
    /// the one that the message brought.
    pub fn traceparent(&self) -> Option<String> {
        let held = self.held.as_ref()?;
        let own = held.journey.context().map(|context| context.to_string());
        own.or_else(|| held.message.headers.get(TRACEPARENT).cloned())
    }

    /// Ends the lease: the next durable fact exists. An error means that the delivery was already
    /// back with the broker, which will deliver it again.
    pub async fn ack(mut self) -> Result<(), BrokerError> {
        match self.held.take() {
            Some(held) => held.settle.ack(held.tag).await,
            None => Ok(()),
        }
    }

    /// Ends the lease without a durable fact: the broker delivers the message again, after a pause
    /// that grows with the number of deliveries. For when publishing is impossible.
    pub fn release(mut self) {
        if let Some(mut held) = self.held.take() {
            held.end_journey("given back to its queue");
            tokio::spawn(nack_later(held));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(mut held) = self.held.take() {
            held.end_journey("crashed");
            // A closed channel means that the subscription is gone: the broker delivers again.
            let _ = held.dropped.clone().send(Dropped(held));
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.held {
            Some(held) => write!(f, "Lease({}, {:?})", held.tag, held.doing),
            None => f.write_str("Lease(settled)"),
        }
    }
}

/// Makes the leases of one subscription, and settles those that were dropped.
pub struct Settler {
    settle: Arc<dyn Settle>,
    dropped: mpsc::UnboundedSender<Dropped>,
}

impl Settler {
    /// Starts the settling task; it ends when the settler and all its leases are gone.
    pub fn start(broker: Arc<dyn Broker>, queue: Queue, settle: Arc<dyn Settle>) -> Self {
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
        Self { settle, dropped }
    }

    /// The lease of one delivery, which holds `slot` until it is settled.
    pub fn lease(
        &self,
        message: Message,
        tag: u64,
        redeliveries: u64,
        slot: OwnedSemaphorePermit,
    ) -> Lease {
        Lease {
            held: Some(Held {
                message: Arc::new(message),
                tag,
                redeliveries,
                doing: Doing::Waiting,
                journey: Journey::default(),
                settle: self.settle.clone(),
                dropped: self.dropped.clone(),
                _slot: slot,
            }),
        }
    }
}

/// Publishes a dropped build delivery to the fail queue as `crashed`, then acks it.
async fn hand_back_crashed(broker: Arc<dyn Broker>, held: Held) {
    let (stage, counted) = match held.doing {
        Doing::Working(stage) => (stage, true),
        Doing::Waiting => (Stage::Listener, false),
    };
    let fault = Fault::new(stage, Reason::Crashed, CRASH_MESSAGE);
    let attempt = history::of(&held.message).counted() + 1;
    let build_id = request::build_id(&held.message).unwrap_or_default();
    progress::span(&build_id, stage.as_str(), attempt).in_scope(|| {
        tracing::warn!(counted, "a job was dropped by a crash: it goes to the fail queue");
    });
    let message = history::with_fault(&held.message, &fault, counted);
    match broker.publish(Route::Fail, message).await {
        Ok(()) => drop(held.settle.ack(held.tag).await),
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
    let pause = Duration::from_secs(2u64.saturating_pow(held.redeliveries.min(5) as u32).min(30));
    tokio::time::sleep_until((Instant::now() + pause).into()).await;
    let _ = held.settle.nack(held.tag).await;
}
