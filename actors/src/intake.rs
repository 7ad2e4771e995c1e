//! From a queue to an actor: subscribes for ever, and gives each delivery its lease.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, Message as ActixMessage};
use tokio::sync::Semaphore;

use crate::lease::{Lease, Settler};
use crate::lifecycle::{Lifecycle, Phase};
use crate::ports::{Broker, Queue, Subscription};
use crate::supervisor::Mailbox;

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

/// Pause before subscribing again.
const PAUSE: Duration = Duration::from_millis(500);

/// Takes deliveries from one queue and hands them to one actor.
pub struct Intake {
    pub broker: Arc<dyn Broker>,
    pub queue: Queue,
    /// Most unsettled deliveries at once. Kept by a semaphore of our own beside the broker's
    /// prefetch, which some brokers exceed after evicting a message.
    pub prefetch: u16,
    pub lifecycle: Lifecycle,
}

impl Intake {
    /// Works until the worker drains and all that was delivered is settled. The end of a subscription (a lost connection, a channel error,
    /// a broker that cancelled the consumer) leads to a new one.
    pub async fn run<A>(self, mailbox: Mailbox<A>)
    where
        A: Actor<Context = Context<A>> + Handler<Delivery>,
    {
        let slots = Arc::new(Semaphore::new(self.prefetch.into()));
        self.take_in(&slots, &mailbox).await;
        // Every lease holds a slot until it is settled.
        let _ = slots.acquire_many(self.prefetch.into()).await;
    }

    async fn take_in<A>(&self, slots: &Arc<Semaphore>, mailbox: &Mailbox<A>)
    where
        A: Actor<Context = Context<A>> + Handler<Delivery>,
    {
        loop {
            let subscription = tokio::select! {
                () = self.lifecycle.reached(Phase::Draining) => return,
                subscription = self.broker.subscribe(self.queue, self.prefetch) => subscription,
            };
            match subscription {
                Ok(subscription) => {
                    tracing::info!(queue = ?self.queue, "subscribed");
                    self.forward(subscription, slots, mailbox).await;
                    if self.lifecycle.phase() >= Phase::Draining {
                        return;
                    }
                    tracing::warn!(queue = ?self.queue, "the subscription ended: subscribing again");
                }
                Err(error) => {
                    tracing::warn!(queue = ?self.queue, %error, "cannot subscribe: trying again");
                }
            }
            tokio::select! {
                () = self.lifecycle.reached(Phase::Draining) => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn forward<A>(
        &self,
        mut subscription: Subscription,
        slots: &Arc<Semaphore>,
        mailbox: &Mailbox<A>,
    ) where
        A: Actor<Context = Context<A>> + Handler<Delivery>,
    {
        let settler = Settler::start(self.broker.clone(), self.queue, subscription.settle.clone());
        loop {
            let (slot, delivery) = tokio::select! {
                () = self.lifecycle.reached(Phase::Draining) => {
                    subscription.settle.cancel().await;
                    return;
                }
                next = async {
                    let slot = slots.clone().acquire_owned().await.ok()?;
                    Some((slot, subscription.deliveries.recv().await?))
                } => match next {
                    Some(next) => next,
                    None => return,
                },
            };
            let lease = settler.lease(delivery.message, delivery.tag, delivery.redeliveries, slot);
            mailbox
                .deliver(Delivery {
                    lease,
                    received: Instant::now(),
                    redeliveries: delivery.redeliveries,
                    over_delivery_limit: delivery.over_delivery_limit,
                })
                .await;
        }
    }
}
