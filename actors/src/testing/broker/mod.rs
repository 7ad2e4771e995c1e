//! A broker in memory, which keeps the whole promise of the port, with faults on demand.
//!
//! Time is tokio's, so that a test can pause and advance it. Clones are the same broker.

mod queues;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};

use self::queues::Queues;
use super::script::Script;
use crate::model::identity::BuildIdentity;
use crate::ports::{
    Acknowledger, Backlog, Broker, BrokerError, Cancellation, Load, Message, Place, Queue,
    Subscription, Taker, Turn,
};

/// A broker in memory.
#[derive(Clone, Default)]
pub struct FakeBroker(Arc<InMemory>);

#[derive(Default)]
struct InMemory {
    node: Mutex<Node>,
    /// Counts the changes: what a test waits for is looked at again after each.
    changes: watch::Sender<u64>,
}

/// What a broker is beside its clock.
#[derive(Default)]
struct Node {
    queues: Queues,
    listeners: Vec<mpsc::Sender<Cancellation>>,
    cancellations: Vec<Cancellation>,
    down: bool,
    publishes: HashMap<Queue, Script<BrokerError>>,
    enqueues: Script<BrokerError>,
    subscriptions: Script<BrokerError>,
    published: Vec<Published>,
}

/// A publish that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub queue: Queue,
    pub message: Message,
    pub delay: Duration,
}

impl FakeBroker {
    // ---- what a test makes happen

    /// Loses every connection: subscriptions end, and what was not settled is delivered again.
    pub fn kill_connection(&self) {
        self.change(|node| node.queues.end_all());
    }

    /// Cannot be reached until [`FakeBroker::up`]: connections are lost, and every call fails.
    pub fn down(&self) {
        self.change(|node| {
            node.down = true;
            node.queues.end_all();
        });
    }

    /// Can be reached again.
    pub fn up(&self) {
        self.change(|node| node.down = false);
    }

    /// Deletes a queue and what is in it: its subscriptions end, and publishing to it is refused.
    pub fn delete_queue(&self, queue: Queue) {
        self.change(|node| node.queues.delete(queue));
    }

    /// Sends a cancellation to all who listen, now or later.
    pub fn send_cancellation(&self, body: &[u8]) {
        self.change(|node| {
            let cancellation = Cancellation { body: body.to_vec(), at: OffsetDateTime::now_utc() };
            node.cancellations.push(cancellation.clone());
            node.listeners.retain(|listener| !listener.is_closed());
            for listener in &node.listeners {
                // One who does not read has missed it.
                let _ = listener.try_send(cancellation.clone());
            }
        });
    }

    /// Puts a message in a queue whose properties cannot be read.
    pub fn store_unreadable(&self, queue: Queue, body: &[u8]) {
        self.change(|node| node.queues.store_unreadable(queue, body.to_vec()));
    }

    /// What the next publishes to a queue do.
    pub fn publishes(&self, queue: Queue) -> Script<BrokerError> {
        self.lock().publishes.entry(queue).or_default().clone()
    }

    /// What the next requests that are put in the backlog do.
    pub fn enqueues(&self) -> Script<BrokerError> {
        self.lock().enqueues.clone()
    }

    /// What the next subscriptions do.
    pub fn subscriptions(&self) -> Script<BrokerError> {
        self.lock().subscriptions.clone()
    }

    // ---- what a test looks at

    /// The messages that wait in a queue, in its order; what is delivered and not settled is not among
    /// them, nor what still waits out a delay.
    pub fn messages(&self, queue: Queue) -> Vec<Message> {
        self.lock().queues.waiting(queue)
    }

    /// The requests that wait in the backlog, by arrival.
    pub fn backlog(&self) -> Vec<Message> {
        self.lock().queues.backlog()
    }

    /// How many requests were taken out of the backlog and are not settled.
    pub fn taken(&self) -> usize {
        self.lock().queues.taken()
    }

    /// How many deliveries of a queue are not settled.
    pub fn unsettled(&self, queue: Queue) -> usize {
        self.lock().queues.unsettled(queue)
    }

    /// Whether anybody takes deliveries of a queue.
    pub fn consumed(&self, queue: Queue) -> bool {
        self.lock().queues.consumed(queue)
    }

    /// How many deliveries were acked.
    pub fn acked(&self) -> u64 {
        self.lock().queues.acked
    }

    /// Every publish that was taken, in order.
    pub fn published(&self) -> Vec<Published> {
        self.lock().published.clone()
    }

    /// The delays that were asked for, in order.
    pub fn delays(&self) -> Vec<Duration> {
        let delays = self.published().into_iter().map(|published| published.delay);
        delays.filter(|delay| !delay.is_zero()).collect()
    }

    /// Waits until at least `count` messages wait in a queue, and returns them.
    pub async fn wait_for(&self, queue: Queue, count: usize) -> Vec<Message> {
        self.wait_until(|broker| broker.messages(queue).len() >= count).await;
        self.messages(queue)
    }

    /// Waits until at least `count` matching publishes were taken, and returns them.
    pub async fn wait_published(
        &self,
        count: usize,
        matches: impl Fn(&Published) -> bool,
    ) -> Vec<Published> {
        let matching = |broker: &Self| {
            let mut published = broker.published();
            published.retain(&matches);
            published
        };
        self.wait_until(|broker| matching(broker).len() >= count).await;
        matching(self)
    }

    /// Waits until `good` says so; it is asked after every change.
    pub async fn wait_until(&self, good: impl Fn(&Self) -> bool) {
        let mut changes = self.0.changes.subscribe();
        while !good(self) {
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    // ---- within

    fn lock(&self) -> MutexGuard<'_, Node> {
        self.0.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, delivers what can be delivered now, and wakes those who wait.
    fn change<T>(&self, change: impl FnOnce(&mut Node) -> T) -> T {
        let result = {
            let mut node = self.lock();
            let result = change(&mut node);
            node.queues.deliver();
            result
        };
        self.0.changes.send_modify(|count| *count += 1);
        result
    }

    /// Stores a message once its delay is over, by the broker's own clock.
    fn store_after(&self, delay: Duration, queue: Queue, message: Message) {
        let broker = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            broker.change(|node| node.queues.store(queue, message));
        });
    }
}

impl Node {
    fn check_up(&self) -> Result<(), BrokerError> {
        match self.down {
            true => Err(BrokerError::Unavailable("the test has taken it down".to_owned())),
            false => Ok(()),
        }
    }
}

impl Broker for FakeBroker {
    fn look(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            if self.lock().down { Err("the broker is down".to_owned()) } else { Ok(()) }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.kill_connection();
        })
    }

    fn consume(
        &self,
        queue: Queue,
        window: u16,
    ) -> BoxFuture<'_, Result<Subscription, BrokerError>> {
        Box::pin(async move {
            if queue == Queue::Result {
                return Err(BrokerError::Refused("nobody consumes results here".to_owned()));
            }
            let script = self.subscriptions();
            script.play().await?;
            self.change(|node| {
                node.check_up()?;
                let (subscriber, deliveries) = node.queues.subscribe(queue, window);
                let acks = Arc::new(Acks { broker: self.clone(), subscriber });
                Ok(Subscription { deliveries, acks })
            })
        })
    }

    fn publish(
        &self,
        queue: Queue,
        message: Message,
        delay: Duration,
    ) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            message.check()?;
            queue.check_delay(delay)?;
            let script = self.publishes(queue);
            script.play().await?;
            self.change(|node| {
                node.check_up()?;
                if node.queues.is_gone(queue) {
                    return Err(BrokerError::Refused(format!("there is no queue for {queue:?}")));
                }
                node.published.push(Published { queue, message: message.clone(), delay });
                match delay.is_zero() {
                    true => node.queues.store(queue, message),
                    false => self.store_after(delay, queue, message),
                }
                Ok(())
            })
        })
    }

    fn enqueue(&self, message: Message, place: Place) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            message.check()?;
            self.enqueues().play().await?;
            self.change(|node| {
                node.check_up()?;
                node.queues.enqueue(message, place);
                Ok(())
            })
        })
    }

    fn backlog(&self) -> BoxFuture<'_, Result<Backlog, BrokerError>> {
        Box::pin(async move {
            self.change(|node| {
                node.check_up()?;
                let subscriber = node.queues.add_taker();
                let acks = Arc::new(Acks { broker: self.clone(), subscriber });
                let taker = InMemoryTaker { broker: self.clone(), subscriber, seen: 0 };
                Ok(Backlog { taker: Box::new(taker), acks })
            })
        })
    }

    fn waiting(&self) -> BoxFuture<'_, Result<u64, BrokerError>> {
        Box::pin(async move {
            let node = self.lock();
            node.check_up()?;
            Ok((node.queues.waiting(Queue::Build).len() + node.queues.backlog().len()) as u64)
        })
    }

    fn workers(&self) -> BoxFuture<'_, Result<u64, BrokerError>> {
        Box::pin(async move {
            let node = self.lock();
            node.check_up()?;
            Ok(node.queues.consumers(Queue::Build) as u64)
        })
    }

    fn cancel<'a>(&'a self, build: &'a BuildIdentity) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            self.lock().check_up()?;
            self.send_cancellation(&Cancellation::body_of(build));
            Ok(())
        })
    }

    fn cancellations(&self) -> mpsc::Receiver<Cancellation> {
        let (listener, heard) = mpsc::channel(64);
        self.change(|node| {
            for cancellation in &node.cancellations {
                // There are no more than a test sends.
                let _ = listener.try_send(cancellation.clone());
            }
            node.listeners.push(listener);
        });
        heard
    }
}

/// Takes requests for one worker.
struct InMemoryTaker {
    broker: FakeBroker,
    subscriber: u64,
    /// How many requests had been put in the backlog when it was last asked.
    seen: u64,
}

impl Taker for InMemoryTaker {
    fn take<'a>(&'a mut self, load: &'a Load) -> BoxFuture<'a, Result<Option<Turn>, BrokerError>> {
        Box::pin(async move {
            self.broker.change(|node| {
                self.seen = node.queues.enqueued;
                node.queues.take(self.subscriber, load)
            })
        })
    }

    fn arrived(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let (seen, subscriber) = (self.seen, self.subscriber);
            let news = |broker: &FakeBroker| {
                let queues = &broker.lock().queues;
                queues.enqueued > seen || !queues.has(subscriber)
            };
            self.broker.wait_until(news).await;
        })
    }
}

/// Settles the deliveries of one subscription, and ends it when dropped.
struct Acks {
    broker: FakeBroker,
    subscriber: u64,
}

impl Acknowledger for Acks {
    fn holds(&self, tag: u64) -> bool {
        self.broker.lock().queues.holds(self.subscriber, tag)
    }

    fn ack(&self, tag: u64) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move { self.broker.change(|node| node.queues.ack(self.subscriber, tag)) })
    }

    fn nack(&self, tag: u64) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move { self.broker.change(|node| node.queues.nack(self.subscriber, tag)) })
    }

    fn cancel(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.broker.change(|node| node.queues.cancel(self.subscriber));
        })
    }

    fn ended(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.broker.wait_until(|broker| !broker.lock().queues.has(self.subscriber)).await;
        })
    }
}

impl Drop for Acks {
    fn drop(&mut self) {
        self.broker.change(|node| node.queues.end(self.subscriber));
    }
}
