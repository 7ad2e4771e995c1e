//! The queues themselves, and who has what of them in hand. Nothing here waits: time comes from outside.

use std::collections::{BTreeMap, HashMap, VecDeque};

use tokio::sync::mpsc;

use crate::ports::{BrokerError, DELIVERY_LIMIT, Delivery, Load, Message, Place, Queue, Turn};

#[derive(Default)]
pub(super) struct Queues {
    waiting: HashMap<Queue, VecDeque<Stored>>,
    /// Requests, each with its place; by arrival.
    backlog: VecDeque<(Place, Stored)>,
    /// How many requests were ever put in the backlog.
    pub(super) enqueued: u64,
    /// When each user was last given a turn, counted in turns.
    turns: HashMap<String, u64>,
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
    /// `None` = it takes from the backlog.
    queue: Option<Queue>,
    window: usize,
    /// `None` = it wants no more, or takes each one itself.
    deliveries: Option<mpsc::Sender<Delivery>>,
    next_tag: u64,
    unsettled: BTreeMap<u64, Unsettled>,
}

/// A message in a subscriber's hands, with its place if it was taken out of the backlog.
type Unsettled = (Option<Place>, Stored);

impl Queues {
    // ---- looking

    pub(super) fn waiting(&self, queue: Queue) -> Vec<Message> {
        let waiting = self.waiting.get(&queue).into_iter().flatten();
        waiting.map(|stored| stored.message.clone()).collect()
    }

    pub(super) fn unsettled(&self, queue: Queue) -> usize {
        self.of(queue).map(|subscriber| subscriber.unsettled.len()).sum()
    }

    /// The messages that wait in the backlog, by arrival.
    pub(super) fn backlog(&self) -> Vec<Message> {
        self.backlog.iter().map(|(_, stored)| stored.message.clone()).collect()
    }

    /// How many requests were taken out of the backlog and are not settled.
    pub(super) fn taken(&self) -> usize {
        let takers = self.subscribers.values().filter(|taker| taker.queue.is_none());
        takers.map(|taker| taker.unsettled.len()).sum()
    }

    pub(super) fn consumed(&self, queue: Queue) -> bool {
        self.consumers(queue) > 0
    }

    pub(super) fn consumers(&self, queue: Queue) -> usize {
        self.of(queue).filter(|subscriber| subscriber.deliveries.is_some()).count()
    }

    fn of(&self, queue: Queue) -> impl Iterator<Item = &Subscriber> {
        self.subscribers.values().filter(move |subscriber| subscriber.queue == Some(queue))
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

    pub(super) fn store(&mut self, queue: Queue, message: Message) {
        self.waiting.entry(queue).or_default().push_back(Stored::new(message));
    }

    /// Stores a message whose properties cannot be read.
    pub(super) fn store_unreadable(&mut self, queue: Queue, body: Vec<u8>) {
        let message = Message { body, ..Message::default() };
        let stored = Stored { is_unreadable: true, ..Stored::new(message) };
        self.waiting.entry(queue).or_default().push_back(stored);
    }

    pub(super) fn enqueue(&mut self, message: Message, place: Place) {
        self.backlog.push_back((place, Stored::new(message)));
        self.enqueued += 1;
    }

    /// A new subscriber's name and deliveries. A queue that was deleted is there again.
    pub(super) fn subscribe(
        &mut self,
        queue: Queue,
        window: u16,
    ) -> (u64, mpsc::Receiver<Delivery>) {
        let window = usize::from(window.max(1));
        let (deliveries_in, deliveries) = mpsc::channel(window);
        self.gone.retain(|gone| *gone != queue);
        let name = self.add(Some(queue), window, Some(deliveries_in));
        (name, deliveries)
    }

    /// The name of a new taker of the backlog.
    pub(super) fn add_taker(&mut self) -> u64 {
        self.add(None, usize::MAX, None)
    }

    fn add(
        &mut self,
        queue: Option<Queue>,
        window: usize,
        deliveries: Option<mpsc::Sender<Delivery>>,
    ) -> u64 {
        let name = self.next_subscriber;
        self.next_subscriber += 1;
        let subscriber =
            Subscriber { queue, window, deliveries, next_tag: 1, unsettled: BTreeMap::new() };
        self.subscribers.insert(name, subscriber);
        name
    }

    /// Gives a taker the request of whoever has the fewest in hand; among equals of whoever was given a
    /// turn longest ago; of one user what was worked on before, then the oldest.
    pub(super) fn take(&mut self, taker: u64, load: &Load) -> Result<Option<Turn>, BrokerError> {
        let taker = self.subscribers.get_mut(&taker).ok_or(BrokerError::Stale)?;
        let turns = |user: &str| self.turns.get(user).copied().unwrap_or(0);
        let next = (0..self.backlog.len())
            .filter(|index| load.admits(&self.backlog[*index].0.user_id))
            .min_by_key(|index| {
                let Place { user_id, returned } = &self.backlog[*index].0;
                (load.of(user_id), turns(user_id), !returned, *index)
            });
        let Some((place, stored)) = next.and_then(|index| self.backlog.remove(index)) else {
            return Ok(None);
        };
        let user_id = place.user_id.clone();
        let turn = self.turns.values().max().map_or(1, |last| last + 1);
        self.turns.insert(user_id.clone(), turn);
        let delivery = taker.hand_out(Some(place), stored);
        Ok(Some(Turn { user_id, delivery }))
    }

    pub(super) fn ack(&mut self, subscriber: u64, tag: u64) -> Result<(), BrokerError> {
        self.settle(subscriber, tag)?;
        self.acked += 1;
        Ok(())
    }

    pub(super) fn nack(&mut self, subscriber: u64, tag: u64) -> Result<(), BrokerError> {
        let (queue, unsettled) = self.settle(subscriber, tag)?;
        self.give_back(queue, unsettled);
        Ok(())
    }

    fn settle(
        &mut self,
        subscriber: u64,
        tag: u64,
    ) -> Result<(Option<Queue>, Unsettled), BrokerError> {
        let subscriber = self.subscribers.get_mut(&subscriber).ok_or(BrokerError::Stale)?;
        let unsettled = subscriber.unsettled.remove(&tag).ok_or(BrokerError::Stale)?;
        Ok((subscriber.queue, unsettled))
    }

    /// Puts a delivery back at the front of its queue, or moves it on where it came too often.
    fn give_back(&mut self, queue: Option<Queue>, (place, mut stored): Unsettled) {
        stored.redeliveries += 1;
        let is_build = queue.is_none_or(|queue| queue == Queue::Build);
        if is_build && stored.redeliveries > DELIVERY_LIMIT {
            (stored.redeliveries, stored.given_up) = (0, true);
            self.waiting.entry(Queue::Fail).or_default().push_back(stored);
        } else if let Some(place) = place {
            self.backlog.push_front((place, stored));
            self.enqueued += 1;
        } else if let Some(queue) = queue {
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
        self.end_where(|subscriber| subscriber.queue == Some(queue));
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
                let queue = subscriber.queue.and_then(|queue| self.waiting.get_mut(&queue));
                if let Some(waiting) = queue {
                    delivered |= subscriber.take_one(waiting);
                }
            }
        }
    }
}

impl Subscriber {
    /// Takes the queue's first message, if it has room; says whether it did.
    fn take_one(&mut self, waiting: &mut VecDeque<Stored>) -> bool {
        let Some(deliveries) = self.deliveries.clone() else { return false };
        if self.unsettled.len() >= self.window {
            return false;
        }
        // There is room: what waits in the channel is unsettled too. Without a receiver there is not.
        let Ok(room) = deliveries.try_reserve() else { return false };
        let Some(stored) = waiting.pop_front() else { return false };
        room.send(self.hand_out(None, stored));
        true
    }

    fn hand_out(&mut self, place: Option<Place>, stored: Stored) -> Delivery {
        let tag = self.next_tag;
        self.next_tag += 1;
        let delivery = Delivery {
            message: stored.message.clone(),
            tag,
            redeliveries: stored.redeliveries,
            given_up: stored.given_up,
            is_unreadable: stored.is_unreadable,
            publishing: 0,
        };
        self.unsettled.insert(tag, (place, stored));
        delivery
    }
}

impl Stored {
    fn new(mut message: Message) -> Self {
        // What real brokers keep of the time, and an empty id is none.
        message.timestamp = message.timestamp.and_then(|time| time.replace_nanosecond(0).ok());
        message.message_id = message.message_id.filter(|id| !id.is_empty());
        Self { message, redeliveries: 0, given_up: false, is_unreadable: false }
    }
}
