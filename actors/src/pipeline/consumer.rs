//! From a queue to an actor: subscribes for ever, and gives each delivery its lease.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use actix::Message as ActixMessage;
use futures_util::future::join_all;
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::delivery::dedup::{Hold, Redeliveries, Turn};
use crate::delivery::envelope;
use crate::delivery::envelope::Envelope;
use crate::delivery::lease::{Lease, Leased, Settler};
use crate::delivery::settlement::Settlement;
use crate::model::history::History;
use crate::model::shutdown::{Shutdown, ShutdownPhase};
use crate::ports::{Acknowledger, Broker, Delivery, Queue, Subscription};
use crate::scheduling::admission::Ticket;
use crate::supervision::Mailbox;

/// A message was delivered, or a request taken out of the backlog.
#[derive(Debug, ActixMessage)]
#[rtype(result = "()")]
pub struct Delivered {
    pub lease: Lease,
    /// Its place among the jobs in hand, of a request that was taken to be worked on.
    pub ticket: Option<Ticket>,
    /// When the worker got it.
    pub received: Instant,
}

impl Leased for Delivered {
    fn lease(&self) -> &Lease {
        &self.lease
    }
}

/// Pause before subscribing again.
pub(super) const PAUSE: Duration = Duration::from_millis(500);

/// How long the outcomes of the last builds may take from their publishing to here. The broker does not
/// say when nothing is left; what comes later waits for the next worker.
const LAST_ONES: Duration = Duration::from_millis(300);

/// A message that was delivered more often than this without being settled runs alone: it may have
/// killed its worker, and a killed worker charges all that was delivered to it. One redelivery is
/// what any reconnect does.
const SUSPICIOUS: u64 = 2;

/// Takes deliveries from one queue and hands them to one actor.
pub struct Consumer {
    pub broker: Arc<dyn Broker>,
    /// Settles what a crash leaves behind.
    pub settlement: Settlement,
    pub queue: Queue,
    /// Most unsettled deliveries at once. Kept by a semaphore of our own beside the broker's
    /// window, which some brokers exceed after evicting a message.
    pub prefetch: u16,
    pub shutdown: Shutdown,
    /// The phase at which no more deliveries are taken.
    pub until: ShutdownPhase,
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
    /// We ended it, to let one message run alone.
    RanAlone,
    /// We ended it for good.
    Draining,
}

impl Consumer {
    /// Works until its phase comes and all that was delivered is settled. The end of a subscription
    /// (a lost connection, a channel error, a broker that cancelled the consumer) leads to a new one.
    pub async fn run(self, mailbox: Mailbox<Delivered>) {
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

    async fn take_in(&self, slots: &Arc<Semaphore>, mailbox: &Mailbox<Delivered>) {
        loop {
            let subscribed = tokio::select! {
                () = self.no_more() => return,
                subscribed = self.broker.consume(self.queue, self.prefetch) => subscribed,
            };
            let pause = match subscribed {
                Ok(subscription) => {
                    tracing::debug!(queue = ?self.queue, "subscribed");
                    match self.forward(subscription, slots, mailbox).await {
                        Over::Draining => return,
                        Over::RanAlone => Duration::ZERO,
                        Over::Lost => {
                            self.redeliveries.lost();
                            tracing::debug!(queue = ?self.queue, "subscribing again");
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

    /// Ends a subscription; what has come and nobody has in hand goes back.
    async fn cancel(&self, subscription: &mut Subscription) {
        subscription.acks.cancel().await;
        let mut unread = Vec::new();
        while let Some(delivery) = subscription.deliveries.recv().await {
            unread.push(delivery);
        }
        join_all(unread.into_iter().map(|delivery| self.give_back(subscription, delivery))).await;
    }

    /// Gives back a delivery that nobody has read. Of a build, as a new message: a nack would count as
    /// a delivery, and after some of those the broker takes a message for one that kills its workers.
    async fn give_back(&self, subscription: &Subscription, delivery: Delivery) {
        let Delivery { message, tag, .. } = &delivery;
        if !subscription.acks.holds(*tag) {
            return;
        }
        let mut envelope = Envelope::decode(message);
        let is_first = envelope::is_first(&delivery, &envelope);
        envelope.redeliveries = envelope.redeliveries_of(&delivery);
        let turn = self.redeliveries.turn_of(&delivery, envelope.redeliveries);
        let turn = match (self.queue, turn) {
            (Queue::Build, Turn::Work(hold)) if !delivery.is_unreadable => {
                let mut history = envelope.history(message);
                envelope.fresh = is_first;
                if is_first {
                    history.since = Some(OffsetDateTime::now_utc());
                }
                envelope.history = Some(history);
                let unread = envelope.pass_on(message);
                let published = self.broker.publish(Queue::Build, unread, Duration::ZERO).await;
                published.is_ok().then_some(Some(hold))
            }
            (_, Turn::Ack) => Some(None),
            // Whoever has it in hand is not to get a double; and nothing counts the others.
            _ => None,
        };
        // An error means that the channel is gone: the broker delivers it again.
        let Some(hold) = turn else {
            let _ = subscription.acks.nack(*tag).await;
            return;
        };
        let acked = subscription.acks.ack(*tag).await.is_ok();
        if let Some(hold) = hold {
            hold.settled(acked);
        }
    }

    /// Hands on deliveries until the subscription is over. What nobody has in hand then goes back;
    /// leases stay good.
    async fn forward(
        &self,
        mut subscription: Subscription,
        slots: &Arc<Semaphore>,
        mailbox: &Mailbox<Delivered>,
    ) -> Over {
        let reception = Reception::new(
            self.queue,
            subscription.acks.clone(),
            self.longest,
            &self.settlement,
            &self.redeliveries,
            mailbox,
        );
        loop {
            let slot = slots.clone().acquire_owned();
            let next = async { Some((slot.await.ok()?, subscription.deliveries.recv().await?)) };
            let incoming = tokio::select! {
                () = self.no_more() => {
                    self.cancel(&mut subscription).await;
                    return Over::Draining;
                }
                next = next => match next {
                    Some((slot, delivery)) => Incoming::new(delivery, slot, None),
                    None => return Over::Lost,
                },
            };
            let Some((incoming, hold)) = reception.take_up(incoming).await else { continue };
            let redeliveries = incoming.redeliveries();
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
                match self.redeliveries.after(&incoming.delivery).await {
                    Some(hold) => reception.deliver(incoming, hold).await,
                    None => reception.ack_again(incoming).await,
                }
                let _settled = slots.acquire().await;
                return Over::RanAlone;
            }
            reception.deliver(incoming, hold).await;
        }
    }
}

/// A delivery that nobody has in hand yet.
pub(super) struct Incoming {
    pub(super) delivery: Delivery,
    envelope: Envelope,
    /// When it came.
    received: Instant,
    ticket: Option<Ticket>,
    slot: OwnedSemaphorePermit,
}

impl Incoming {
    pub(super) fn new(
        delivery: Delivery,
        slot: OwnedSemaphorePermit,
        ticket: Option<Ticket>,
    ) -> Self {
        let envelope = Envelope::decode(&delivery.message);
        Self { delivery, envelope, received: Instant::now(), ticket, slot }
    }

    pub(super) fn redeliveries(&self) -> u64 {
        self.envelope.redeliveries_of(&self.delivery)
    }

    /// How often its engine died while it was built.
    pub(super) fn engine_deaths(&self) -> usize {
        self.envelope.history.as_ref().map_or(0, History::engine_deaths)
    }

    /// Whether it may have taken down its worker or its engine, which charges all that was in hand there.
    pub(super) fn is_suspicious(&self) -> bool {
        self.redeliveries() >= SUSPICIOUS || self.engine_deaths() > 0
    }

    pub(super) fn leased(self, settler: &Settler, hold: Hold) -> Delivered {
        let Self { delivery, envelope, received, ticket, slot } = self;
        Delivered { lease: settler.lease(delivery, envelope, hold, slot), ticket, received }
    }
}

/// What receives the deliveries of one subscription, or of the backlog while it is open: each becomes a lease
/// that goes to the actor, unless there is nothing to work on.
#[derive(Clone)]
pub(super) struct Reception {
    /// What this worker has, or has just had.
    redeliveries: Redeliveries,
    settlement: Settlement,
    /// Knows what becomes of leases that are dropped.
    pub(super) settler: Settler,
    pub(super) acks: Arc<dyn Acknowledger>,
    pub(super) mailbox: Mailbox<Delivered>,
}

impl Reception {
    /// Of deliveries of this queue. A lease that stands for longer than `longest` is taken for a hang.
    pub(super) fn new(
        queue: Queue,
        acks: Arc<dyn Acknowledger>,
        longest: Duration,
        settlement: &Settlement,
        redeliveries: &Redeliveries,
        mailbox: &Mailbox<Delivered>,
    ) -> Self {
        let is_build = queue == Queue::Build;
        let crashed = settlement.clone();
        let settler =
            Settler::start(is_build, acks.clone(), longest, move |lease| match is_build {
                true => {
                    let settlement = crashed.clone();
                    tokio::spawn(async move { settlement.crashed(lease).await });
                }
                // Nothing is lost by trying again, and no rebuild comes of it.
                false => lease.release(),
            });
        Self {
            redeliveries: redeliveries.clone(),
            settlement: settlement.clone(),
            settler,
            acks,
            mailbox: mailbox.clone(),
        }
    }

    /// Sees to what is only to be acked, has to wait for its own message, or cannot be read; the answer is
    /// what is to be worked on.
    pub(super) async fn take_up(&self, incoming: Incoming) -> Option<(Incoming, Hold)> {
        match self.redeliveries.turn_of(&incoming.delivery, incoming.redeliveries()) {
            Turn::Ack => self.ack_again(incoming).await,
            Turn::Wait => {
                tokio::spawn(self.clone().deliver_later(incoming));
            }
            Turn::Work(hold) if incoming.delivery.is_unreadable => {
                let lease = incoming.leased(&self.settler, hold).lease;
                let settlement = self.settlement.clone();
                tokio::spawn(async move { settlement.set_aside(lease).await });
            }
            Turn::Work(hold) => return Some((incoming, hold)),
        }
        None
    }

    /// Hands a delivery to the actor.
    pub(super) async fn deliver(&self, incoming: Incoming, hold: Hold) {
        self.mailbox.deliver(incoming.leased(&self.settler, hold)).await;
    }

    /// Hands a redelivery on once this worker no longer has its message in hand.
    async fn deliver_later(self, incoming: Incoming) {
        tracing::info!("a delivery came again while its message is in hand: it waits");
        let turn = tokio::select! {
            turn = self.redeliveries.after(&incoming.delivery) => turn,
            // The broker has taken it back: it comes once more.
            () = self.acks.ended() => return,
        };
        match turn {
            Some(_) if !self.acks.holds(incoming.delivery.tag) => {}
            Some(hold) => self.deliver(incoming, hold).await,
            None => self.ack_again(incoming).await,
        }
    }

    /// Acks what was settled before its ack got lost.
    async fn ack_again(&self, incoming: Incoming) {
        tracing::info!("a delivery came again after it was settled: it is only acked");
        // An error means that the channel is gone: it comes once more.
        let _ = self.acks.ack(incoming.delivery.tag).await;
    }
}
