//! Takes requests out of the lanes, one at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use image_builder_actors::delivery::envelope::Envelope;
use image_builder_actors::ports::{Acknowledger, Backlog, BrokerError, Load, Taker, Turn};
use lapin::message::{BasicGetMessage, Delivery};
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use lapin::protocol::AMQPSoftError;
use lapin::{Channel, Connection, Consumer};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{CLOSED, Lanes, lock};
use crate::broker::rabbitmq::cancellations;
use crate::broker::rabbitmq::connection::ManagedConnection;
use crate::broker::rabbitmq::consume::{Acks, Course, GOODBYE, InHand, Wish};
use crate::broker::rabbitmq::declare::{declare_queue, soft_error};
use crate::broker::rabbitmq::properties;
use crate::broker::rabbitmq::readiness::ConnectionState;
use crate::broker::rabbitmq::topology::{Lane, QueueDeclaration};
use crate::broker::rabbitmq::user::User;

/// How often a taker that found nothing asks how long the lanes are: what a worker had that was killed comes
/// back without a ring.
const LOOK: Duration = Duration::from_secs(5);
const LOOK_WITHOUT_BELL: Duration = Duration::from_secs(1);

/// How many requests of users who have as many in hand as they may are moved to the end of their lane at
/// once, and the pause before the next of them.
const ROUND: u32 = 32;
const BETWEEN_ROUNDS: Duration = Duration::from_millis(100);

/// So many of such users are remembered of a lane.
const MOST_REMEMBERED: usize = 64;

/// The pause after a lane in which all were of such users.
const BETWEEN_LAPS: Duration = Duration::from_secs(10);

/// How many turns other users may have, whose next one is as good, before one of those of whom only a single
/// request waits no longer goes first; and for so many turns whoever had one lets others of them pass.
const FIRST_AHEAD: u64 = 16;

/// Longest wait for one answer of the broker.
const ANSWER: Duration = Duration::from_secs(30);

/// Opens the backlog as soon as there is a connection; the caller sets the time limit.
pub(super) async fn open(
    lanes: Arc<Lanes>,
    managed: &Arc<ManagedConnection>,
    state: watch::Receiver<ConnectionState>,
) -> Result<Backlog, BrokerError> {
    let unavailable = |text: String| BrokerError::Unavailable(text);
    let connection = managed.current().await.ok_or_else(|| unavailable(CLOSED.to_owned()))?;
    let opening = async {
        lanes.find_older(&connection).await?;
        let channel = connection.create_channel().await?;
        let bell = lanes.declarer.topology().bell();
        let bell = match cancellations::consumer(&connection, bell).await {
            Ok(consumer) => Some(consumer),
            // Whoever may have no queue of his own looks by himself.
            Err(error) if matches!(soft_error(&error), Some((AMQPSoftError::ACCESSREFUSED, _))) => {
                tracing::debug!(%error, "cannot hear the bell");
                None
            }
            Err(error) => return Err(error),
        };
        Ok::<_, lapin::Error>((channel, bell))
    };
    let opened = tokio::select! {
        opened = opening => opened,
        () = managed.lost(&connection) => {
            return Err(unavailable("the connection was lost".to_owned()));
        }
    };
    let (channel, bell) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            if matches!(soft_error(&error), Some((AMQPSoftError::NOTFOUND, _))) {
                // Whoever asks again finds out how that went.
                let _ = lanes.declarer.declare(&connection).await;
            }
            return Err(unavailable(error.to_string()));
        }
    };
    let (wish_in, wish) = watch::channel(Wish::Deliver);
    let (course_in, course) = watch::channel(Course::Open);
    let in_hand = Arc::new(InHand::default());
    let look = if bell.is_some() { LOOK } else { LOOK_WITHOUT_BELL };
    let watched = Watched {
        managed: managed.clone(),
        connection: connection.clone(),
        channel: channel.clone(),
        bell,
        lanes: lanes.clone(),
        in_hand: in_hand.clone(),
    };
    tokio::spawn(watched.run(wish, course_in));
    let taker = LaneTaker {
        rung: lanes.rung.subscribe(),
        state,
        sources: lanes.all().into_iter().map(|lane| Source::new(lane, &lanes)).collect(),
        lanes: lanes.clone(),
        managed: managed.clone(),
        connection,
        channel,
        course: course.clone(),
        in_hand: in_hand.clone(),
        served: VecDeque::new(),
        look,
        turns: 0,
    };
    let acks = Acks { in_hand, wish: wish_in, course };
    Ok(Backlog { taker: Box::new(taker), acks: Arc::new(LaneAcks { acks, lanes }) })
}

/// Settles what was taken. What goes back to its lane is told to all workers.
struct LaneAcks {
    acks: Acks,
    lanes: Arc<Lanes>,
}

impl Acknowledger for LaneAcks {
    fn holds(&self, tag: u64) -> bool {
        self.acks.holds(tag)
    }

    fn ack(&self, tag: u64) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.acks.ack(tag)
    }

    fn nack(&self, tag: u64) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.acks.nack(tag).await?;
            self.lanes.ring.notify_one();
            Ok(())
        })
    }

    fn cancel(&self) -> BoxFuture<'_, ()> {
        self.acks.cancel()
    }

    fn ended(&self) -> BoxFuture<'_, ()> {
        self.acks.ended()
    }
}

/// Hears the bell, and watches over the channel.
struct Watched {
    managed: Arc<ManagedConnection>,
    connection: Arc<Connection>,
    channel: Channel,
    bell: Option<Consumer>,
    lanes: Arc<Lanes>,
    in_hand: Arc<InHand>,
}

impl Watched {
    async fn run(mut self, mut wish: watch::Receiver<Wish>, course: watch::Sender<Course>) {
        if self.owner_wants_no_more(&mut wish).await {
            course.send_replace(Course::Quiet);
            // What is in hand can be settled until the last owner lets go.
            tokio::select! {
                () = async { while wish.changed().await.is_ok() {} } => {}
                () = self.managed.lost(&self.connection) => {}
            }
        }
        self.in_hand.lock().clear();
        course.send_replace(Course::Over);
        let goodbye = self.channel.close(200, "the backlog is closed".into());
        if !matches!(timeout(GOODBYE, goodbye).await, Ok(Ok(()))) {
            tracing::debug!("the channel of the backlog was gone before it was closed");
        }
    }

    /// Passes the bell on until the owner wants no more, or is gone; `false` = the channel or the connection
    /// ended before.
    async fn owner_wants_no_more(&mut self, wish: &mut watch::Receiver<Wish>) -> bool {
        let mut look = tokio::time::interval(Duration::from_secs(1));
        while self.channel.status().connected() {
            tokio::select! {
                // An error means that there is no owner.
                _ = wish.wait_for(|wish| *wish == Wish::NoMore) => return true,
                () = self.managed.lost(&self.connection) => return false,
                rung = next_ring(&mut self.bell) => match rung {
                    Some(Ok(_)) => self.lanes.rung.send_modify(|rings| *rings += 1),
                    Some(Err(_)) | None => return false,
                },
                // A channel may be closed without a word.
                _ = look.tick() => {}
            }
        }
        false
    }
}

async fn next_ring(bell: &mut Option<Consumer>) -> Option<lapin::Result<Delivery>> {
    match bell {
        Some(bell) => bell.next().await,
        None => std::future::pending().await,
    }
}

/// A lane, as one taker knows it.
struct Source {
    lane: Lane,
    queue: QueueDeclaration,
    /// How many it had when it was last taken from.
    ready: u32,
    /// Whose request was the last that was taken.
    last: User,
    /// The number of the turn that it was taken in.
    turn: u64,
    /// That it was full of requests of users who may have no more.
    blocked: Option<Blocked>,
}

struct Blocked {
    /// Whose requests were passed over, of many some.
    by: Vec<User>,
    /// When it is to be looked at again, whatever those may have.
    until: Instant,
    /// How many are still to be looked at until all were.
    left: u32,
    /// How many it had then.
    length: u32,
}

impl Source {
    fn new(lane: Lane, lanes: &Lanes) -> Self {
        let queue = lanes.declarer.topology().lane(lane);
        Self { lane, queue, ready: 0, last: User::default(), turn: 0, blocked: None }
    }

    /// How many builds whoever comes next is thought to have in hand.
    fn expected(&self, load: &Load) -> usize {
        match self.lane {
            Lane::First => 0,
            _ => self.last.in_hand(load),
        }
    }

    /// Whose turn it is among those who have as much in hand: the least goes first.
    fn rank(&self) -> (u64, bool) {
        match self.lane {
            Lane::First => (self.turn.saturating_sub(FIRST_AHEAD), false),
            _ => (self.turn, true),
        }
    }

    fn is_blocked(&self, load: &Load) -> bool {
        self.blocked.as_ref().is_some_and(|blocked| {
            let is_any_admitted = blocked.by.iter().any(|user| user.is_admitted(load));
            !is_any_admitted && Instant::now() < blocked.until
        })
    }
}

struct LaneTaker {
    lanes: Arc<Lanes>,
    managed: Arc<ManagedConnection>,
    connection: Arc<Connection>,
    channel: Channel,
    course: watch::Receiver<Course>,
    in_hand: Arc<InHand>,
    rung: watch::Receiver<u64>,
    /// Whether the broker takes messages.
    state: watch::Receiver<ConnectionState>,
    sources: Vec<Source>,
    /// Whose turns the last ones were.
    served: VecDeque<User>,
    /// How often the lanes are looked at where nothing is heard.
    look: Duration,
    turns: u64,
}

impl Taker for LaneTaker {
    fn take<'a>(&'a mut self, load: &'a Load) -> BoxFuture<'a, Result<Option<Turn>, BrokerError>> {
        Box::pin(async move {
            if *self.course.borrow() != Course::Open {
                return Err(BrokerError::Unavailable("the backlog is closed".to_owned()));
            }
            if self.state.borrow().blocked.is_some() {
                // Nothing could come of it while the broker takes no messages, and giving it back would be counted.
                return Ok(None);
            }
            // What is put in from now on is told.
            self.rung.borrow_and_update();
            self.lanes.know(load);
            self.lift_blocks().await;
            let sources = self.sources.iter().enumerate();
            let mut open: Vec<usize> = sources
                .filter(|(_, source)| !source.is_blocked(load))
                .filter(|(_, source)| !load.at_hand || source.expected(load) < load.most_per_user)
                .map(|(index, _)| index)
                .collect();
            // Users who have little in hand first; among equals those of whom nothing else waits, then the lane
            // that was taken from longest ago.
            open.sort_by_key(|index| {
                let source = &self.sources[*index];
                (source.expected(load), source.rank())
            });
            for (position, index) in open.iter().enumerate() {
                let is_last = position + 1 == open.len();
                if let Some(turn) = self.take_from(*index, load, is_last).await? {
                    return Ok(Some(turn));
                }
            }
            Ok(None)
        })
    }

    fn arrived(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if self.state.borrow().blocked.is_some() {
                tokio::select! {
                    // An error means that the worker is about to end.
                    _ = self.state.wait_for(|state| state.blocked.is_none()) => {}
                    _ = self.course.wait_for(|course| *course == Course::Over) => {}
                }
                return;
            }
            loop {
                let blocked = self.sources.iter().filter_map(|source| source.blocked.as_ref());
                let again = blocked.map(|blocked| blocked.until).min();
                let look = Instant::now() + self.look;
                let next = again.map_or(look, |again| again.min(look));
                tokio::select! {
                    _ = self.rung.changed() => return,
                    _ = self.course.wait_for(|course| *course == Course::Over) => return,
                    () = tokio::time::sleep_until(next.into()) => {}
                }
                if again.is_some_and(|again| again <= Instant::now()) {
                    return;
                }
                let queues = self.lanes.queues();
                let waits = timeout(ANSWER, self.lanes.ready(&queues)).await;
                if !matches!(waits, Ok(Ok(ready)) if ready.iter().all(|ready| *ready == 0)) {
                    return;
                }
            }
        })
    }
}

impl LaneTaker {
    /// A lane in which all were of users who may have no more is looked at again once it is longer.
    async fn lift_blocks(&mut self) {
        let of_such_users = |blocked: &Blocked| blocked.left == 0;
        let full: Vec<usize> = (0..self.sources.len())
            .filter(|index| self.sources[*index].blocked.as_ref().is_some_and(of_such_users))
            .collect();
        if full.is_empty() {
            return;
        }
        let lane = |index: &usize| self.lanes.declarer.topology().lane(self.sources[*index].lane);
        let queues: Vec<_> = full.iter().map(lane).collect();
        let asked = timeout(ANSWER, self.lanes.ready(&queues)).await;
        let Ok(Ok(ready)) = asked else { return };
        for (index, ready) in full.into_iter().zip(ready) {
            let source = &mut self.sources[index];
            source.blocked.take_if(|blocked| ready > u64::from(blocked.length));
        }
    }

    /// Takes the next request of a lane that this worker may have.
    async fn take_from(
        &mut self,
        index: usize,
        load: &Load,
        is_last: bool,
    ) -> Result<Option<Turn>, BrokerError> {
        let mut moved = 0;
        // How many in the lane were not looked at yet.
        let mut others = None;
        loop {
            let Some(got) = self.get(index).await? else {
                self.sources[index].blocked = None;
                return Ok(None);
            };
            let user = properties::user_of(&got.delivery);
            let source = &mut self.sources[index];
            if !user.is_admitted(load) {
                let (lane, ready) = (source.lane, got.message_count);
                if load.at_hand && lane != Lane::First {
                    // Others of theirs are behind it. To pass over all of those would take long, and turn their order.
                    source.last = user.clone();
                    self.move_to(lane, got, user).await?;
                    return Ok(None);
                }
                let before = source.blocked.take().filter(|blocked| blocked.left > 0);
                let (mut by, left) = before.map_or((Vec::new(), ready), |b| (b.by, b.left - 1));
                if by.len() < MOST_REMEMBERED && !by.contains(&user) {
                    by.push(user.clone());
                }
                self.move_to(lane, got, user).await?;
                moved += 1;
                let pause = match left {
                    0 => BETWEEN_LAPS,
                    _ => BETWEEN_ROUNDS,
                };
                let until = Instant::now() + pause;
                self.sources[index].blocked = Some(Blocked { by, until, left, length: ready + 1 });
                if left == 0 || moved >= ROUND {
                    return Ok(None);
                }
                continue;
            }
            if source.lane == Lane::First && user.in_hand(load) > 0 && !is_last {
                // Another worker did not know of them.
                self.move_to(Lane::Few, got, user).await?;
                continue;
            }
            let left: &mut u32 = others.get_or_insert(got.message_count);
            if source.lane == Lane::First && *left > 0 && self.served.contains(&user) {
                // Several workers have each put what they took for the first one of a flood there.
                *left -= 1;
                self.move_to(Lane::First, got, user).await?;
                continue;
            }
            self.turns += 1;
            self.served.push_back(user.clone());
            if self.served.len() as u64 > FIRST_AHEAD {
                self.served.pop_front();
            }
            source.last = user.clone();
            source.turn = self.turns;
            lock(&self.lanes.recent).leave(&user, Instant::now());
            let (tag, acker) = (got.delivery.delivery_tag, got.delivery.acker.clone());
            self.in_hand.lock().insert(tag, acker);
            if *self.course.borrow() == Course::Over {
                // Nobody clears it any more.
                self.in_hand.lock().clear();
                return Err(BrokerError::Unavailable("the backlog is closed".to_owned()));
            }
            let user_id = user.id(load).unwrap_or_default().to_owned();
            return Ok(Some(Turn { user_id, delivery: properties::of_delivery(got.delivery) }));
        }
    }

    async fn get(&mut self, index: usize) -> Result<Option<BasicGetMessage>, BrokerError> {
        let source = &self.sources[index];
        let getting = async {
            // To take from an empty queue costs the broker several times as much as to count it.
            if source.ready == 0 {
                let counts = if self.lanes.is_older(source.lane) {
                    // Whoever finds it empty may delete it.
                    self.lanes.count_older(&self.connection, source.lane).await?
                } else {
                    Some(declare_queue(&self.channel, &source.queue, true).await?)
                };
                if counts.is_none_or(|counts| counts.ready == 0) {
                    return Ok(None);
                }
            }
            let name = source.queue.name.as_str();
            self.channel.basic_get(name.into(), BasicGetOptions::default()).await
        };
        let got: lapin::Result<_> = tokio::select! {
            got = timeout(ANSWER, getting) => match got {
                Ok(got) => got,
                Err(_) => {
                    let why = format!("it did not answer for `{}` in {ANSWER:?}", source.queue.name);
                    return Err(self.give_up(why).await);
                }
            },
            () = self.managed.lost(&self.connection) => {
                return Err(BrokerError::Unavailable("the connection was lost".to_owned()));
            }
        };
        match got {
            Ok(got) => {
                self.sources[index].ready = got.as_ref().map_or(0, |got| got.message_count);
                Ok(got)
            }
            Err(error) => {
                if matches!(soft_error(&error), Some((AMQPSoftError::NOTFOUND, _))) {
                    let queue = &source.queue.name;
                    tracing::warn!(queue, "the queue is gone: declaring all queues again");
                    // Whoever opens the backlog again finds out how that went.
                    let _ = self.lanes.declarer.declare(&self.connection).await;
                }
                Err(self.give_up(error.to_string()).await)
            }
        }
    }

    /// Closes the channel: what it had goes back, and nobody else may wait for it.
    async fn give_up(&self, why: String) -> BrokerError {
        let goodbye = self.channel.close(200, "the backlog is given up".into());
        let _ = timeout(GOODBYE, goodbye).await;
        BrokerError::Unavailable(why)
    }

    /// Puts a request at the end of a lane, with what was counted of it until now.
    async fn move_to(
        &self,
        lane: Lane,
        got: BasicGetMessage,
        user: User,
    ) -> Result<(), BrokerError> {
        let acker = got.delivery.acker.clone();
        let delivery = properties::of_delivery(got.delivery);
        let mut envelope = Envelope::decode(&delivery.message);
        envelope.redeliveries = envelope.redeliveries_of(&delivery);
        let message = envelope.pass_on(&delivery.message);
        if let Err(error) = self.lanes.put(lane, message, user).await {
            // It stays where it is, and the builds in hand stay in hand.
            return match acker.nack(BasicNackOptions { requeue: true, multiple: false }).await {
                Ok(true) => Err(error),
                _ => Err(self.give_up(error.to_string()).await),
            };
        }
        match acker.ack(BasicAckOptions::default()).await {
            Ok(true) => Ok(()),
            _ => Err(BrokerError::Stale),
        }
    }
}
