//! From a queue to an actor: subscribes for ever, and gives each delivery its lease.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use actix::Message as ActixMessage;
use futures_util::future::join_all;
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::delivery::dedup::{Hold, Redeliveries, Turn};
use crate::delivery::envelope;
use crate::delivery::lease::{Lease, Leased, Settler};
use crate::model::shutdown::{Shutdown, ShutdownPhase};
use crate::ports::{Broker, Queue, RawDelivery, Route, Settle, Subscription};
use crate::scheduling::capacity::Capacity;
use crate::supervision::Mailbox;

/// A delivery on its way to an actor.
#[derive(Debug, ActixMessage)]
#[rtype(result = "()")]
pub struct Delivery {
    pub lease: Lease,
    /// When the worker got it.
    pub received: Instant,
    /// How often it was delivered before without being settled.
    pub redeliveries: u64,
    /// Whether the broker itself put it into this queue because it was delivered too often.
    pub over_delivery_limit: bool,
}

impl Leased for Delivery {
    fn lease(&self) -> &Lease {
        &self.lease
    }
}

/// Pause before subscribing again.
const PAUSE: Duration = Duration::from_millis(500);

/// How long what the last builds ended in may take from its publishing to here. The broker does not
/// tell when nothing is left; what comes later waits for the next worker.
const LAST_ONES: Duration = Duration::from_millis(300);

/// A message that was delivered more often than this without being settled runs alone: it may have
/// killed its worker, and a killed worker charges all that was delivered to it. One redelivery is
/// what any reconnect does.
const SUSPICIOUS: u64 = 2;

/// The header that counts the deliveries of a message before it was last given back unread.
const REDELIVERIES: &str = "x-image-builder-redeliveries";

/// Takes deliveries from one queue and hands them to one actor.
pub struct Consumer {
    pub broker: Arc<dyn Broker>,
    pub queue: Queue,
    /// Most unsettled deliveries at once. Kept by a semaphore of our own beside the broker's
    /// prefetch, which some brokers exceed after evicting a message.
    pub prefetch: u16,
    pub shutdown: Shutdown,
    /// The phase at which no more deliveries are taken.
    pub until: ShutdownPhase,
    /// Pauses the consumer; `None` where the work needs no room.
    pub capacity: Option<Capacity>,
    /// Longest time from delivery to settled that is not taken for a hang.
    pub longest: Duration,
    /// When the last deliveries are taken, once the worker closes.
    pub last: OnceLock<Instant>,
    /// What this worker has, or has just had, of the queue.
    pub redeliveries: Redeliveries,
}

/// Why a subscription is over.
enum Over {
    /// The broker or the connection ended it.
    Lost,
    /// We ended it, to begin another one when there is reason to.
    Paused,
    /// We ended it for good.
    Draining,
}

impl Consumer {
    /// Works until its phase comes and all that was delivered is settled. The end of a subscription
    /// (a lost connection, a channel error, a broker that cancelled the consumer) leads to a new one.
    pub async fn run(self, mailbox: Mailbox<Delivery>) {
        let slots = Arc::new(Semaphore::new(self.prefetch.into()));
        self.take_in(&slots, &mailbox).await;
        // Every lease holds a slot until it is settled.
        let _ = slots.acquire_many(self.prefetch.into()).await;
    }

    /// Waits until no more deliveries are to be taken.
    async fn no_more(&self) {
        self.shutdown.reached(self.until).await;
        if self.until == ShutdownPhase::Closing {
            let last = *self.last.get_or_init(|| Instant::now() + LAST_ONES);
            tokio::select! {
                () = self.shutdown.reached(ShutdownPhase::HandingBack) => {}
                () = tokio::time::sleep_until(last.into()) => {}
            }
        }
    }

    async fn take_in(&self, slots: &Arc<Semaphore>, mailbox: &Mailbox<Delivery>) {
        loop {
            let subscribed = async {
                self.room().await;
                self.broker.subscribe(self.queue, self.prefetch).await
            };
            let subscribed = tokio::select! {
                () = self.no_more() => return,
                subscribed = subscribed => subscribed,
            };
            let pause = match subscribed {
                Ok(subscription) => {
                    tracing::info!(queue = ?self.queue, "subscribed");
                    match self.forward(subscription, slots, mailbox).await {
                        Over::Draining => return,
                        Over::Paused => Duration::ZERO,
                        Over::Lost => {
                            self.redeliveries.lost();
                            tracing::warn!(queue = ?self.queue, "the subscription ended: subscribing again");
                            PAUSE
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(queue = ?self.queue, %error, "cannot subscribe: trying again");
                    PAUSE
                }
            };
            tokio::select! {
                () = self.no_more() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Waits until there is room to work.
    async fn room(&self) {
        if let Some(capacity) = &self.capacity {
            capacity.found().await;
        }
    }

    /// Waits until there is no room to work.
    async fn no_room(&self) {
        match &self.capacity {
            Some(capacity) => capacity.lost().await,
            None => std::future::pending().await,
        }
    }

    /// Ends a subscription; what has come and nobody has in hand goes back.
    async fn cancel(&self, subscription: &mut Subscription) {
        subscription.settle.cancel().await;
        let mut unread = Vec::new();
        while let Some(raw) = subscription.deliveries.recv().await {
            unread.push(raw);
        }
        join_all(unread.into_iter().map(|raw| self.give_back(subscription, raw))).await;
    }

    /// Gives back a delivery that nobody has read. Of a build, as a new message: a nack would count as
    /// a delivery, and after some of those the broker takes a message for one that kills its workers.
    async fn give_back(&self, subscription: &Subscription, raw: RawDelivery) {
        if !subscription.settle.holds(raw.tag) {
            return;
        }
        let turn = match (self.queue, self.turn(&raw)) {
            (Queue::Build, Turn::Work(hold)) => {
                let redeliveries = redeliveries(&raw);
                let mut history = envelope::of(&raw.message);
                if envelope::is_first(&raw.message, redeliveries) {
                    history.since = Some(OffsetDateTime::now_utc());
                }
                let mut message = envelope::with(&raw.message, &history);
                message.headers.insert(REDELIVERIES.to_owned(), redeliveries.to_string());
                let published = self.broker.publish(Route::Build, message).await;
                published.is_ok().then_some(Some(hold))
            }
            (_, Turn::Ack) => Some(None),
            // Whoever has it in hand is not to get a double; and nothing counts the others.
            (Queue::Build, Turn::Wait) | (Queue::Fail | Queue::Outcome, _) => None,
        };
        // An error means that the channel is gone: the broker delivers it again.
        let Some(hold) = turn else {
            let _ = subscription.settle.nack(raw.tag).await;
            return;
        };
        let acked = subscription.settle.ack(raw.tag).await.is_ok();
        if let Some(hold) = hold {
            hold.settled(acked);
        }
    }

    /// What is to be done with a delivery that has just come.
    fn turn(&self, raw: &RawDelivery) -> Turn {
        match redeliveries(raw) {
            0 => Turn::Work(self.redeliveries.first(&raw.message)),
            _ => self.redeliveries.again(&raw.message),
        }
    }

    /// Hands on deliveries until the subscription is over. What nobody has in hand then goes back;
    /// leases stay good.
    async fn forward(
        &self,
        mut subscription: Subscription,
        slots: &Arc<Semaphore>,
        mailbox: &Mailbox<Delivery>,
    ) -> Over {
        let settler = Arc::new(Settler::start(
            self.broker.clone(),
            self.queue,
            subscription.settle.clone(),
            self.longest,
        ));
        loop {
            let slot = slots.clone().acquire_owned();
            let next = async { Some((slot.await.ok()?, subscription.deliveries.recv().await?)) };
            let incoming = tokio::select! {
                () = self.no_more() => {
                    self.cancel(&mut subscription).await;
                    return Over::Draining;
                }
                () = self.no_room() => {
                    self.cancel(&mut subscription).await;
                    return Over::Paused;
                }
                next = next => match next {
                    Some((slot, raw)) => Incoming { raw, received: Instant::now(), slot },
                    None => return Over::Lost,
                },
            };
            let redeliveries = redeliveries(&incoming.raw);
            let hold = match self.turn(&incoming.raw) {
                Turn::Work(hold) => hold,
                Turn::Ack => {
                    ack_again(&*subscription.settle, &incoming).await;
                    continue;
                }
                Turn::Wait => {
                    let (settler, settle) = (settler.clone(), subscription.settle.clone());
                    let (all, mailbox) = (self.redeliveries.clone(), mailbox.clone());
                    tokio::spawn(deliver_later(incoming, all, settler, settle, mailbox));
                    continue;
                }
            };
            let suspicious = self.queue == Queue::Build && redeliveries >= SUSPICIOUS;
            if suspicious {
                // Those that wait for their turn at the same message hold slots: they go first.
                drop(hold);
                self.cancel(&mut subscription).await;
                let _others = slots.acquire_many(u32::from(self.prefetch) - 1).await;
                tracing::warn!(
                    redeliveries,
                    "a message was delivered again and again: it runs alone"
                );
                match self.redeliveries.after(&incoming.raw.message).await {
                    Some(hold) => mailbox.deliver(incoming.delivery(&settler, hold)).await,
                    None => {
                        ack_again(&*subscription.settle, &incoming).await;
                        drop(incoming);
                    }
                }
                let _settled = slots.acquire().await;
                return Over::Paused;
            }
            mailbox.deliver(incoming.delivery(&settler, hold)).await;
        }
    }
}

/// A delivery that nobody has in hand yet.
struct Incoming {
    raw: RawDelivery,
    /// When it came.
    received: Instant,
    slot: OwnedSemaphorePermit,
}

impl Incoming {
    fn delivery(mut self, settler: &Settler, hold: Hold) -> Delivery {
        let redeliveries = redeliveries(&self.raw);
        // It was read: what becomes of it now begins anew.
        self.raw.message.headers.remove(REDELIVERIES);
        Delivery {
            lease: settler.lease(self.raw.message, self.raw.tag, redeliveries, hold, self.slot),
            received: self.received,
            redeliveries,
            over_delivery_limit: self.raw.over_delivery_limit,
        }
    }
}

/// Hands a redelivery on once this worker no longer has its message in hand.
async fn deliver_later(
    incoming: Incoming,
    all: Redeliveries,
    settler: Arc<Settler>,
    settle: Arc<dyn Settle>,
    mailbox: Mailbox<Delivery>,
) {
    tracing::info!("a delivery came again while its message is in hand: it waits");
    let turn = tokio::select! {
        turn = all.after(&incoming.raw.message) => turn,
        // The broker has taken it back: it comes once more.
        () = settle.ended() => return,
    };
    match turn {
        Some(_) if !settle.holds(incoming.raw.tag) => {}
        Some(hold) => mailbox.deliver(incoming.delivery(&settler, hold)).await,
        None => ack_again(&*settle, &incoming).await,
    }
}

/// Acks what was settled before its ack got lost.
async fn ack_again(settle: &dyn Settle, incoming: &Incoming) {
    tracing::info!("a delivery came again after it was settled: it is only acked");
    // An error means that the channel is gone: it comes once more.
    let _ = settle.ack(incoming.raw.tag).await;
}

/// How often the message was delivered before, the times included that the broker has forgotten.
fn redeliveries(raw: &RawDelivery) -> u64 {
    let before = raw.message.headers.get(REDELIVERIES).and_then(|count| count.parse().ok());
    raw.redeliveries.saturating_add(before.unwrap_or(0))
}
