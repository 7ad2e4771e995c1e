//! The queues themselves, and who has what of them in hand. Nothing here waits: time comes from outside.

use std::collections::{BTreeMap, HashMap, VecDeque};

use tokio::sync::mpsc;

use crate::ports::{BrokerError, DELIVERY_LIMIT, Delivery, Message, Queue};

#[derive(Default)]
pub(super) struct Queues {
    waiting: HashMap<Queue, VecDeque<Stored>>,
    subscribers: BTreeMap<u64, Subscriber>,
    next_subscriber: u64,
    /// Queues that somebody has deleted.
    gone: Vec<Queue>,
    pub(super) acked: u64,
}

/// A message in a queue, or in a subscriber's hands.
struct Stored {
    message: Message,
    redeliveries: u64,
    given_up: bool,
    is_unreadable: bool,
}

struct Subscriber {
    queue: Queue,
    window: usize,
    /// `None` = it wants no more.
    deliveries: Option<mpsc::Sender<Delivery>>,
    next_tag: u64,
    unsettled: BTreeMap<u64, Stored>,
}

impl Queues {
    // ---- looking

    pub(super) fn waiting(&self, queue: Queue) -> Vec<Message> {
        let waiting = self.waiting.get(&queue).into_iter().flatten();
        waiting.map(|stored| stored.message.clone()).collect()
    }

    pub(super) fn unsettled(&self, queue: Queue) -> usize {
        self.of(queue).map(|subscriber| subscriber.unsettled.len()).sum()
    }

    pub(super) fn consumed(&self, queue: Queue) -> bool {
        self.of(queue).any(|subscriber| subscriber.deliveries.is_some())
    }

    fn of(&self, queue: Queue) -> impl Iterator<Item = &Subscriber> {
        self.subscribers.values().filter(move |subscriber| subscriber.queue == queue)
    }

    pub(super) fn holds(&self, subscriber: u64, tag: u64) -> bool {
        let subscriber = self.subscribers.get(&subscriber);
        subscriber.is_some_and(|subscriber| subscriber.unsettled.contains_key(&tag))
    }

    pub(super) fn has(&self, subscriber: u64) -> bool {
        self.subscribers.contains_key(&subscriber)
    }

    pub(super) fn is_gone(&self, queue: Queue) -> bool {
        self.gone.contains(&queue)
    }

    // ---- publishing and consuming

    pub(super) fn store(&mut self, queue: Queue, mut message: Message) {
        // What real brokers keep of the time, and an empty id is none.
        message.timestamp = message.timestamp.and_then(|time| time.replace_nanosecond(0).ok());
        message.message_id = message.message_id.filter(|id| !id.is_empty());
        let stored = Stored { message, redeliveries: 0, given_up: false, is_unreadable: false };
        self.waiting.entry(queue).or_default().push_back(stored);
    }

    /// Stores a message whose properties cannot be read.
    pub(super) fn store_unreadable(&mut self, queue: Queue, body: Vec<u8>) {
        let message = Message { body, ..Message::default() };
        let stored = Stored { message, redeliveries: 0, given_up: false, is_unreadable: true };
        self.waiting.entry(queue).or_default().push_back(stored);
    }

    /// A new subscriber's name and deliveries. A queue that was deleted is there again.
    pub(super) fn subscribe(
        &mut self,
        queue: Queue,
        window: u16,
    ) -> (u64, mpsc::Receiver<Delivery>) {
        let window = usize::from(window.max(1));
        let (deliveries_in, deliveries) = mpsc::channel(window);
        let name = self.next_subscriber;
        self.next_subscriber += 1;
        self.gone.retain(|gone| *gone != queue);
        let subscriber = Subscriber {
            queue,
            window,
            deliveries: Some(deliveries_in),
            next_tag: 1,
            unsettled: BTreeMap::new(),
        };
        self.subscribers.insert(name, subscriber);
        (name, deliveries)
    }

    pub(super) fn ack(&mut self, subscriber: u64, tag: u64) -> Result<(), BrokerError> {
        self.take(subscriber, tag)?;
        self.acked += 1;
        Ok(())
    }

    pub(super) fn nack(&mut self, subscriber: u64, tag: u64) -> Result<(), BrokerError> {
        let (queue, stored) = self.take(subscriber, tag)?;
        self.give_back(queue, stored);
        Ok(())
    }

    fn take(&mut self, subscriber: u64, tag: u64) -> Result<(Queue, Stored), BrokerError> {
        let subscriber = self.subscribers.get_mut(&subscriber).ok_or(BrokerError::Stale)?;
        let stored = subscriber.unsettled.remove(&tag).ok_or(BrokerError::Stale)?;
        Ok((subscriber.queue, stored))
    }

    /// Puts a delivery back at the front of its queue, or moves it on where it came too often.
    fn give_back(&mut self, queue: Queue, mut stored: Stored) {
        stored.redeliveries += 1;
        if queue == Queue::Build && stored.redeliveries > DELIVERY_LIMIT {
            (stored.redeliveries, stored.given_up) = (0, true);
            self.waiting.entry(Queue::Fail).or_default().push_back(stored);
        } else {
            self.waiting.entry(queue).or_default().push_front(stored);
        }
    }

    pub(super) fn cancel(&mut self, subscriber: u64) {
        if let Some(subscriber) = self.subscribers.get_mut(&subscriber) {
            subscriber.deliveries = None;
        }
    }

    // ---- endings

    pub(super) fn end(&mut self, subscriber: u64) {
        let Some(subscriber) = self.subscribers.remove(&subscriber) else { return };
        // Backwards, so that the first one is at the very front in the end.
        for stored in subscriber.unsettled.into_values().rev() {
            self.give_back(subscriber.queue, stored);
        }
    }

    pub(super) fn end_all(&mut self) {
        self.end_where(|_| true);
    }

    pub(super) fn delete(&mut self, queue: Queue) {
        self.gone.push(queue);
        self.end_where(|subscriber| subscriber.queue == queue);
        self.waiting.remove(&queue);
    }

    fn end_where(&mut self, ends: impl Fn(&Subscriber) -> bool) {
        let all = self.subscribers.iter().filter(|(_, subscriber)| ends(subscriber));
        let names: Vec<_> = all.map(|(name, _)| *name).collect();
        // Backwards as well: the oldest subscription holds the oldest messages.
        names.into_iter().rev().for_each(|name| self.end(name));
    }

    /// Hands out all that can be handed out, to each subscriber in turn.
    pub(super) fn deliver(&mut self) {
        let mut delivered = true;
        while delivered {
            delivered = false;
            for subscriber in self.subscribers.values_mut() {
                if let Some(waiting) = self.waiting.get_mut(&subscriber.queue) {
                    delivered |= subscriber.take_one(waiting);
                }
            }
        }
    }
}

impl Subscriber {
    /// Takes the queue's first message, if it has room; says whether it did.
    fn take_one(&mut self, waiting: &mut VecDeque<Stored>) -> bool {
        let Some(deliveries) = &self.deliveries else { return false };
        if self.unsettled.len() >= self.window {
            return false;
        }
        // There is room: what waits in the channel is unsettled too. Without a receiver there is not.
        let Ok(room) = deliveries.try_reserve() else { return false };
        let Some(stored) = waiting.pop_front() else { return false };
        let tag = self.next_tag;
        self.next_tag += 1;
        room.send(Delivery {
            message: stored.message.clone(),
            tag,
            redeliveries: stored.redeliveries,
            given_up: stored.given_up,
            is_unreadable: stored.is_unreadable,
            publishing: 0,
        });
        self.unsettled.insert(tag, stored);
        true
    }
}
