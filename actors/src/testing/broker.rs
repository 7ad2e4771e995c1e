//! A broker in memory, with the semantics of the real one and faults on demand.
//!
//! Time is tokio's, so that a test can pause and advance it. Clones are the same broker.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::ports::{Broker, BrokerError, Message, Queue, RawDelivery, Route, Settle, Subscription};

/// How often a build is delivered again before it is moved to the fail queue.
const DELIVERY_LIMIT: u64 = 20;

/// What AMQP has room for: all properties in one frame, and an id of one short string, in bytes.
const LONGEST_HEADERS: usize = 128 * 1024 - 512;
const LONGEST_ID: usize = 255;

/// A broker in memory.
#[derive(Clone)]
pub struct FakeBroker(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Counts the changes of the state: what a test waits for is looked at again after each.
    changes: watch::Sender<u64>,
    /// Whether publishes have to wait.
    held: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    queues: HashMap<Place, VecDeque<Stored>>,
    subscriptions: BTreeMap<u64, Subscriber>,
    /// The log of told outcomes.
    told: Vec<Message>,
    /// Counts the losses of all connections.
    losses: u64,
    follow_fault: Option<BrokerError>,
    next_id: u64,
    down: bool,
    gone: Vec<Place>,
    publish_faults: Vec<PublishFault>,
    subscribe_faults: VecDeque<BrokerError>,
    published: Vec<(Route, Message)>,
    acked: u64,
}

/// A queue that messages come to rest in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Build,
    Fail,
    Outcome,
    Dead,
    Result,
    Told,
}

struct Stored {
    message: Message,
    redeliveries: u64,
    over_delivery_limit: bool,
    expires: Option<Instant>,
}

struct Subscriber {
    place: Place,
    prefetch: usize,
    deliveries: Option<mpsc::Sender<RawDelivery>>,
    next_tag: u64,
    unsettled: BTreeMap<u64, Stored>,
}

type RouteFilter = Box<dyn Fn(Route) -> bool + Send>;

struct PublishFault {
    times: usize,
    matches: RouteFilter,
    action: Action,
}

enum Action {
    Fail(BrokerError),
    Panic,
}

impl Default for FakeBroker {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeBroker {
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            changes: watch::Sender::new(0),
            held: watch::Sender::new(false),
        }))
    }

    // ---- what a test makes happen

    /// Loses every connection: subscriptions end, and what was not settled is delivered again.
    pub fn kill_connection(&self) {
        self.change(State::end_all);
    }

    /// Cannot be reached until [`FakeBroker::up`]: connections are lost, and every call fails.
    pub fn down(&self) {
        self.change(|state| {
            state.down = true;
            state.end_all();
        });
    }

    /// Can be reached again.
    pub fn up(&self) {
        self.change(|state| state.down = false);
    }

    /// Deletes a queue and what is in it: its subscriptions end, and publishing to it is refused.
    pub fn delete_queue(&self, queue: Queue) {
        self.change(|state| {
            let place = Place::from(queue);
            state.gone.push(place);
            state.end_where(|subscriber| subscriber.place == place);
            state.queues.remove(&place);
        });
    }

    /// The next `times` publishes to a matching route fail, and the message is not taken.
    pub fn fail_publishes(
        &self,
        times: usize,
        error: BrokerError,
        matches: impl Fn(Route) -> bool + Send + 'static,
    ) {
        self.add_fault(times, Action::Fail(error), Box::new(matches));
    }

    /// The next publish to a matching route panics.
    pub fn panic_on_publish(&self, matches: impl Fn(Route) -> bool + Send + 'static) {
        self.add_fault(1, Action::Panic, Box::new(matches));
    }

    /// From now on nobody can follow the log.
    pub fn refuse_follows(&self, error: BrokerError) {
        self.change(|state| state.follow_fault = Some(error));
    }

    /// The next `times` subscriptions fail.
    pub fn fail_subscribes(&self, times: usize, error: BrokerError) {
        self.change(|state| state.subscribe_faults.extend(vec![error; times]));
    }

    /// Publishes wait from now on, until [`FakeBroker::let_publishes_go`].
    pub fn hold_publishes(&self) {
        self.0.held.send_replace(true);
    }

    /// Lets the publishes go that wait, and those to come.
    pub fn let_publishes_go(&self) {
        self.0.held.send_replace(false);
    }

    // ---- what a test looks at

    /// The messages that wait in the queue behind a route, in its order; what is delivered and not
    /// settled is not among them, nor what still waits out a delay.
    pub fn messages(&self, route: Route) -> Vec<Message> {
        let mut state = self.lock();
        state.drop_expired();
        let queue = state.queues.get(&Place::from(route));
        queue.map_or_else(Vec::new, |queue| {
            queue.iter().map(|stored| stored.message.clone()).collect()
        })
    }

    /// How many deliveries of a queue are not settled.
    pub fn unsettled(&self, queue: Queue) -> usize {
        let place = Place::from(queue);
        let state = self.lock();
        let of_queue = state.subscriptions.values().filter(|subscriber| subscriber.place == place);
        of_queue.map(|subscriber| subscriber.unsettled.len()).sum()
    }

    /// Whether anybody takes deliveries of a queue.
    pub fn subscribed(&self, queue: Queue) -> bool {
        let place = Place::from(queue);
        let state = self.lock();
        let mut of_queue =
            state.subscriptions.values().filter(|subscriber| subscriber.place == place);
        of_queue.any(|subscriber| subscriber.deliveries.is_some())
    }

    /// How many deliveries were acked.
    pub fn acked(&self) -> u64 {
        self.lock().acked
    }

    /// Every message that was taken, in order, with the route that it was published to; those of the log
    /// of told outcomes apart.
    pub fn published(&self) -> Vec<(Route, Message)> {
        self.lock().published.clone()
    }

    /// The log of told outcomes.
    pub fn told(&self) -> Vec<Message> {
        self.lock().told.clone()
    }

    /// The delays that were asked for, in order.
    pub fn delays(&self) -> Vec<Duration> {
        let delays = |(route, _): &(Route, Message)| match route {
            Route::BuildAfter(delay) | Route::OutcomeAfter(delay) => Some(*delay),
            _ => None,
        };
        self.lock().published.iter().filter_map(delays).collect()
    }

    /// Waits until at least `count` messages wait in the queue behind a route, and returns them.
    pub async fn wait_for(&self, route: Route, count: usize) -> Vec<Message> {
        self.wait_until(|broker| broker.messages(route).len() >= count).await;
        self.messages(route)
    }

    /// Waits until at least `count` messages were published to matching routes, and returns them.
    pub async fn wait_published(
        &self,
        count: usize,
        matches: impl Fn(Route) -> bool,
    ) -> Vec<(Route, Message)> {
        let matching = |broker: &Self| {
            let mut published = broker.published();
            published.retain(|(route, _)| matches(*route));
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, delivers what can be delivered now, and wakes those who wait.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = {
            let mut state = self.lock();
            let result = change(&mut state);
            state.deliver();
            result
        };
        self.0.changes.send_modify(|count| *count += 1);
        result
    }

    fn add_fault(&self, times: usize, action: Action, matches: RouteFilter) {
        self.change(|state| state.publish_faults.push(PublishFault { times, matches, action }));
    }

    /// Runs `change` after a while, as the broker's own clock would.
    fn change_after(&self, delay: Duration, change: impl FnOnce(&mut State) + Send + 'static) {
        let broker = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            broker.change(change);
        });
    }
}

#[async_trait]
impl Broker for FakeBroker {
    async fn subscribe(&self, queue: Queue, prefetch: u16) -> Result<Subscription, BrokerError> {
        self.change(|state| {
            if let Some(error) = state.subscribe_faults.pop_front() {
                return Err(error);
            }
            state.check_up()?;
            let prefetch = usize::from(prefetch.max(1));
            let (deliveries_in, deliveries) = mpsc::channel(prefetch);
            let id = state.next_id;
            state.next_id += 1;
            let subscriber = Subscriber {
                place: queue.into(),
                prefetch,
                deliveries: Some(deliveries_in),
                next_tag: 1,
                unsettled: BTreeMap::new(),
            };
            // The real broker's adapter declares a missing queue again.
            state.gone.retain(|place| *place != Place::from(queue));
            state.subscriptions.insert(id, subscriber);
            let settle = Arc::new(FakeSettle { broker: self.clone(), id });
            Ok(Subscription { deliveries, settle })
        })
    }

    async fn follow(&self) -> Result<mpsc::Receiver<Vec<u8>>, BrokerError> {
        let losses = self.change(|state| {
            if let Some(error) = &state.follow_fault {
                return Err(error.clone());
            }
            state.check_up().map(|()| state.losses)
        })?;
        let (lines_in, lines) = mpsc::channel(16);
        let broker = self.clone();
        tokio::spawn(async move {
            for given in 0.. {
                let more = broker.wait_until(|broker| {
                    let state = broker.lock();
                    state.losses != losses || state.told.len() > given
                });
                tokio::select! {
                    () = more => {}
                    () = lines_in.closed() => return,
                }
                let line = {
                    let state = broker.lock();
                    (state.losses == losses).then(|| state.told[given].body.clone())
                };
                let Some(line) = line else { return };
                if lines_in.send(line).await.is_err() {
                    return;
                }
            }
        });
        Ok(lines)
    }

    async fn publish(&self, route: Route, message: Message) -> Result<(), BrokerError> {
        // The sender lives as long as `self`.
        let _ = self.0.held.subscribe().wait_for(|held| !held).await;
        check_size(&message)?;
        let place = Place::from(route);
        let time_to_live = message.expires_after;
        self.change(|state| {
            if let Some(fault) = state.take_fault(route) {
                match fault {
                    Action::Fail(error) => return Err(error),
                    Action::Panic => panic!("the test wants this publish to panic"),
                }
            }
            state.check_up()?;
            if state.gone.contains(&place) {
                return Err(BrokerError::Refused(format!("there is no queue for {route:?}")));
            }
            if route == Route::Told {
                state.told.push(message);
                return Ok(());
            }
            state.published.push((route, message.clone()));
            match route {
                Route::BuildAfter(delay) | Route::OutcomeAfter(delay) => {
                    self.change_after(delay, move |state| state.store(place, message));
                }
                _ => state.store(place, message),
            }
            Ok(())
        })?;
        if let Some(time_to_live) = time_to_live {
            // Nothing changes but what has expired by then.
            self.change_after(time_to_live, |_| {});
        }
        Ok(())
    }
}

/// Settles the deliveries of one subscription, and ends it when dropped.
struct FakeSettle {
    broker: FakeBroker,
    id: u64,
}

impl FakeSettle {
    fn settle(
        &self,
        tag: u64,
        then: impl FnOnce(&mut State, Place, Stored),
    ) -> Result<(), BrokerError> {
        self.broker.change(|state| {
            let subscriber = state.subscriptions.get_mut(&self.id).ok_or(BrokerError::Stale)?;
            let place = subscriber.place;
            let stored = subscriber.unsettled.remove(&tag).ok_or(BrokerError::Stale)?;
            then(state, place, stored);
            Ok(())
        })
    }
}

#[async_trait]
impl Settle for FakeSettle {
    fn holds(&self, tag: u64) -> bool {
        let state = self.broker.lock();
        let subscriber = state.subscriptions.get(&self.id);
        subscriber.is_some_and(|subscriber| subscriber.unsettled.contains_key(&tag))
    }

    async fn ack(&self, tag: u64) -> Result<(), BrokerError> {
        self.settle(tag, |state, _, _| state.acked += 1)
    }

    async fn nack(&self, tag: u64) -> Result<(), BrokerError> {
        self.settle(tag, State::give_back)
    }

    async fn cancel(&self) {
        self.broker.change(|state| {
            if let Some(subscriber) = state.subscriptions.get_mut(&self.id) {
                subscriber.deliveries = None;
            }
        });
    }

    async fn ended(&self) {
        self.broker.wait_until(|broker| !broker.lock().subscriptions.contains_key(&self.id)).await;
    }
}

impl Drop for FakeSettle {
    fn drop(&mut self) {
        self.broker.change(|state| state.end(self.id));
    }
}

impl State {
    fn check_up(&self) -> Result<(), BrokerError> {
        match self.down {
            true => Err(BrokerError::Unavailable("the test has taken it down".to_owned())),
            false => Ok(()),
        }
    }

    fn take_fault(&mut self, route: Route) -> Option<Action> {
        let at = self.publish_faults.iter().position(|fault| (fault.matches)(route))?;
        let fault = &mut self.publish_faults[at];
        if fault.times > 1 {
            fault.times -= 1;
            return Some(match &fault.action {
                Action::Fail(error) => Action::Fail(error.clone()),
                Action::Panic => Action::Panic,
            });
        }
        Some(self.publish_faults.remove(at).action)
    }

    fn store(&mut self, place: Place, mut message: Message) {
        // AMQP knows whole seconds only, and an empty id is none.
        message.timestamp = message.timestamp.and_then(|time| time.replace_nanosecond(0).ok());
        message.message_id = message.message_id.filter(|id| !id.is_empty());
        let expires = message.expires_after.map(|after| Instant::now() + after);
        let stored = Stored { message, redeliveries: 0, over_delivery_limit: false, expires };
        self.queues.entry(place).or_default().push_back(stored);
    }

    /// Puts a delivery back at the front of its queue, or moves it on where it came too often.
    fn give_back(&mut self, place: Place, mut stored: Stored) {
        stored.redeliveries += 1;
        if place == Place::Build && stored.redeliveries > DELIVERY_LIMIT {
            stored.redeliveries = 0;
            stored.over_delivery_limit = true;
            self.queues.entry(Place::Fail).or_default().push_back(stored);
        } else {
            self.queues.entry(place).or_default().push_front(stored);
        }
    }

    fn end(&mut self, id: u64) {
        let Some(subscriber) = self.subscriptions.remove(&id) else { return };
        // Backwards, so that the first one is at the very front in the end.
        for stored in subscriber.unsettled.into_values().rev() {
            self.give_back(subscriber.place, stored);
        }
    }

    fn end_where(&mut self, ends: impl Fn(&Subscriber) -> bool) {
        let ids: Vec<_> =
            self.subscriptions.iter().filter(|(_, s)| ends(s)).map(|(id, _)| *id).collect();
        // Backwards as well: the oldest subscription holds the oldest messages.
        ids.into_iter().rev().for_each(|id| self.end(id));
    }

    fn end_all(&mut self) {
        self.losses += 1;
        self.end_where(|_| true);
    }

    /// Only the head of a queue expires, as in the real broker.
    fn drop_expired(&mut self) {
        let now = Instant::now();
        let expired = |stored: &Stored| stored.expires.is_some_and(|at| at <= now);
        for queue in self.queues.values_mut() {
            while queue.front().is_some_and(expired) {
                queue.pop_front();
            }
        }
    }

    /// Hands out all that can be handed out, to each subscriber in turn.
    fn deliver(&mut self) {
        self.drop_expired();
        let mut delivered = true;
        while delivered {
            delivered = false;
            for subscriber in self.subscriptions.values_mut() {
                if let Some(queue) = self.queues.get_mut(&subscriber.place) {
                    delivered |= subscriber.take_one(queue);
                }
            }
        }
    }
}

impl Subscriber {
    /// Takes the queue's first message, if it has room; says whether it did.
    fn take_one(&mut self, queue: &mut VecDeque<Stored>) -> bool {
        let Some(deliveries) = &self.deliveries else { return false };
        if self.unsettled.len() >= self.prefetch {
            return false;
        }
        // There is room: what waits in the channel is unsettled too. Without a receiver there is not.
        let Ok(room) = deliveries.try_reserve() else { return false };
        let Some(stored) = queue.pop_front() else { return false };
        let tag = self.next_tag;
        self.next_tag += 1;
        room.send(RawDelivery {
            // How long a message may be kept is told to the broker, and not by it.
            message: Message { expires_after: None, ..stored.message.clone() },
            tag,
            redeliveries: stored.redeliveries,
            over_delivery_limit: stored.over_delivery_limit,
        });
        self.unsettled.insert(tag, stored);
        true
    }
}

fn check_size(message: &Message) -> Result<(), BrokerError> {
    let headers: usize =
        message.headers.iter().map(|(key, value)| key.len() + value.len() + 6).sum();
    let id = message.message_id.as_ref().map_or(0, String::len);
    if headers + id > LONGEST_HEADERS || id > LONGEST_ID {
        return Err(BrokerError::Refused("its headers or its id are too long".to_owned()));
    }
    Ok(())
}

impl From<Queue> for Place {
    fn from(queue: Queue) -> Self {
        match queue {
            Queue::Build => Place::Build,
            Queue::Fail => Place::Fail,
            Queue::Outcome => Place::Outcome,
        }
    }
}

impl From<Route> for Place {
    fn from(route: Route) -> Self {
        match route {
            Route::Build | Route::BuildAfter(_) => Place::Build,
            Route::Fail => Place::Fail,
            Route::Outcome | Route::OutcomeAfter(_) => Place::Outcome,
            Route::Dead => Place::Dead,
            Route::Result => Place::Result,
            Route::Told => Place::Told,
        }
    }
}
