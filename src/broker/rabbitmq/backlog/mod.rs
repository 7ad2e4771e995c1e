//! The backlog: requests that were read and wait for their turn, in several queues, the lanes.
//!
//! A broker hands out what is in a queue in one order, so one user's flood would stand before everybody
//! else. Therefore a user's first request, the next few, and all further ones wait in lanes of their own;
//! the further ones are spread, each user's over two numbered lanes. A worker takes one request at a time,
//! when it can begin it, and looks first where it expects users who have little in hand. Nothing is in a
//! worker's hands that only waits.
//!
//! | file | what it does |
//! |---|---|
//! | `recent.rs` | which lane a request belongs in, by what this worker knows of who waits |
//! | `taker.rs` | takes requests out of the lanes |

mod recent;
mod taker;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use image_builder_actors::ports::{Backlog, BrokerError, Load, Message, Place, Queue};
use lapin::Connection;
use lapin::protocol::AMQPSoftError;
use tokio::sync::{Notify, watch};

use self::recent::{Choice, Recent, two_lanes};
use super::connection::ManagedConnection;
use super::declare::{Counts, Declarer, declare_queue, soft_error};
use super::properties::Outgoing;
use super::publish::Publisher;
use super::readiness::ConnectionState;
use super::topology::{Lane, MOST_LANES, QueueDeclaration};
use super::user::User;

/// How old the lengths of the lanes may be that requests are spread by.
const OLD: Duration = Duration::from_millis(100);

/// On so many channels at once lanes are looked for that are filled no more.
const AT_ONCE: usize = 8;

/// Shortest time between two rings of the bell.
const BETWEEN_RINGS: Duration = Duration::from_millis(10);

/// The lanes, as one worker has them.
pub(super) struct Lanes {
    publisher: Arc<Publisher>,
    declarer: Arc<Declarer>,
    recent: Mutex<Recent>,
    lengths: Mutex<Lengths>,
    /// Lanes from when there were more of them: they are emptied, and not filled any more.
    older: Mutex<Vec<Lane>>,
    /// That the bell is to be rung.
    ring: Notify,
    /// Counts the rings that were heard.
    rung: watch::Sender<u64>,
}

/// How long the numbered lanes are.
struct Lengths {
    ready: Vec<u64>,
    /// When the broker was last asked.
    asked: Option<Instant>,
}

impl Lanes {
    pub(super) fn new(publisher: Arc<Publisher>, declarer: Arc<Declarer>) -> Arc<Self> {
        let ready = vec![0; declarer.topology().build_lanes().into()];
        let lanes = Arc::new(Self {
            publisher,
            declarer,
            recent: Mutex::default(),
            lengths: Mutex::new(Lengths { ready, asked: None }),
            older: Mutex::default(),
            ring: Notify::new(),
            rung: watch::Sender::new(0),
        });
        tokio::spawn(ring(Arc::downgrade(&lanes)));
        lanes
    }

    /// Puts a request in the lane where it belongs.
    pub(super) async fn enqueue(
        self: &Arc<Self>,
        message: Message,
        place: Place,
    ) -> Result<(), BrokerError> {
        let user = User::of(&place.user_id);
        let chosen = lock(&self.recent).enter(&user, place.returned, Instant::now());
        let lane = match chosen {
            Choice::Lane(lane) => lane,
            Choice::Spread => self.shorter(&user),
        };
        let put = self.put(lane, message, user.clone()).await;
        if put.is_err() {
            lock(&self.recent).leave(&user, Instant::now());
        }
        put
    }

    /// Puts a request in a lane, and tells all workers.
    async fn put(&self, lane: Lane, message: Message, user: User) -> Result<(), BrokerError> {
        let queue = self.declarer.topology().lane(lane).name;
        let outgoing = Outgoing { message, user: Some(user), ..Outgoing::default() };
        self.publisher.publish(&queue, outgoing).await?;
        self.ring.notify_one();
        Ok(())
    }

    /// The shorter one of a user's two lanes.
    fn shorter(self: &Arc<Self>, user: &User) -> Lane {
        let lengths = &mut *lock(&self.lengths);
        if lengths.asked.is_none_or(|asked| asked.elapsed() >= OLD) {
            lengths.asked = Some(Instant::now());
            let lanes = self.clone();
            tokio::spawn(async move { lanes.measure().await });
        }
        let (one, other) = two_lanes(user, lengths.ready.len());
        let shorter = if lengths.ready[other] < lengths.ready[one] { other } else { one };
        lengths.ready[shorter] += 1;
        Lane::Numbered(shorter as u16 + 1)
    }

    /// Asks the broker how long the numbered lanes are.
    async fn measure(&self) {
        let topology = self.declarer.topology();
        let numbered = topology.lanes().filter(|lane| matches!(lane, Lane::Numbered(_)));
        let queues: Vec<_> = numbered.map(|lane| topology.lane(lane)).collect();
        // An error means that they are as long as they were thought to be.
        if let Ok(ready) = self.ready(&queues).await {
            lock(&self.lengths).ready = ready;
        }
    }

    /// How many requests wait in the build queue and in all lanes.
    pub(super) async fn waiting(&self) -> Result<u64, BrokerError> {
        let queues: Vec<_> = self.build_queue().into_iter().chain(self.queues()).collect();
        Ok(self.ready(&queues).await?.iter().sum())
    }

    /// How many workers consume the build queue.
    pub(super) async fn workers(&self) -> Result<u64, BrokerError> {
        let queues: Vec<_> = self.build_queue().into_iter().collect();
        Ok(self.counts(&queues).await?.iter().map(|counts| u64::from(counts.consumers)).sum())
    }

    fn build_queue(&self) -> Option<QueueDeclaration> {
        let topology = self.declarer.topology();
        let name = topology.queue(Queue::Build);
        topology.queues().iter().find(|queue| Some(queue.name.as_str()) == name).cloned()
    }

    /// How many messages each of these queues has ready.
    async fn ready(&self, queues: &[QueueDeclaration]) -> Result<Vec<u64>, BrokerError> {
        let counts = self.counts(queues).await?;
        Ok(counts.into_iter().map(|counts| u64::from(counts.ready)).collect())
    }

    /// What the broker has counted of each of these queues.
    async fn counts(&self, queues: &[QueueDeclaration]) -> Result<Vec<Counts>, BrokerError> {
        let unavailable = |text: String| BrokerError::Unavailable(text);
        let managed = self.publisher.managed();
        let connection = managed.current().await.ok_or_else(|| unavailable(CLOSED.to_owned()))?;
        let asking = async {
            let channel = connection.create_channel().await?;
            let mut counts = Vec::new();
            for queue in queues {
                counts.push(declare_queue(&channel, queue, true).await?);
            }
            channel.close(200, "asked".into()).await?;
            Ok::<_, lapin::Error>(counts)
        };
        tokio::select! {
            counts = asking => counts.map_err(|error| unavailable(error.to_string())),
            () = managed.lost(&connection) => Err(unavailable("the connection was lost".to_owned())),
        }
    }

    /// The queues of all lanes, those that are not filled any more included.
    fn queues(&self) -> Vec<QueueDeclaration> {
        self.all().into_iter().map(|lane| self.declarer.topology().lane(lane)).collect()
    }

    fn all(&self) -> Vec<Lane> {
        let older = lock(&self.older).clone();
        self.declarer.topology().lanes().chain(older).collect()
    }

    /// Looks for lanes beyond those that are filled. Some may have been deleted, and others not.
    async fn find_older(&self, connection: &Arc<Connection>) -> lapin::Result<()> {
        let beyond = self.declarer.topology().build_lanes() + 1..=MOST_LANES;
        let lanes: Vec<Lane> = beyond.map(Lane::Numbered).collect();
        let mut found = Vec::new();
        for some in lanes.chunks(AT_ONCE) {
            let looks = some.iter().map(|lane| self.count_older(connection, *lane));
            let counts = try_join_all(looks).await?;
            found
                .extend(some.iter().zip(counts).filter_map(|(lane, counts)| counts.map(|_| *lane)));
        }
        *lock(&self.older) = found;
        Ok(())
    }

    /// What a lane has that is not filled any more; `None` = it was deleted. The channel on which that is asked is
    /// closed by the broker where it was: so nothing else is on it. It is asked to the end though nobody waits for
    /// the answer any more: where both sides close a channel, lapin gives up the whole connection.
    async fn count_older(
        &self,
        connection: &Arc<Connection>,
        lane: Lane,
    ) -> lapin::Result<Option<Counts>> {
        let (connection, queue) = (connection.clone(), self.declarer.topology().lane(lane));
        let asked = tokio::spawn(async move {
            let channel = connection.create_channel().await?;
            let counts = declare_queue(&channel, &queue, true).await?;
            channel.close(200, "asked".into()).await?;
            Ok(counts)
        });
        match asked.await.map_err(std::io::Error::from)? {
            Ok(counts) => Ok(Some(counts)),
            Err(error) if matches!(soft_error(&error), Some((AMQPSoftError::NOTFOUND, _))) => {
                lock(&self.older).retain(|older| *older != lane);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a lane is filled no more.
    fn is_older(&self, lane: Lane) -> bool {
        matches!(lane, Lane::Numbered(number) if number > self.declarer.topology().build_lanes())
    }

    /// Opens the backlog.
    pub(super) async fn open(
        self: &Arc<Self>,
        managed: &Arc<ManagedConnection>,
        state: watch::Receiver<ConnectionState>,
    ) -> Result<Backlog, BrokerError> {
        taker::open(self.clone(), managed, state).await
    }

    /// Remembers what this worker has in hand.
    fn know(&self, load: &Load) {
        lock(&self.recent).know(load);
    }
}

/// What calls fail with after the end.
const CLOSED: &str = "the connection was closed by this worker";

/// Rings the bell whenever something was put in a lane since the last ring began.
async fn ring(lanes: std::sync::Weak<Lanes>) {
    loop {
        let Some(here) = lanes.upgrade() else { return };
        // Looked at again and again, so that it ends with the worker's lanes.
        let wanted = tokio::time::timeout(Duration::from_secs(5), here.ring.notified()).await;
        if wanted.is_ok() {
            here.publisher.ring(here.declarer.topology().bell()).await;
        }
        drop(here);
        tokio::time::sleep(BETWEEN_RINGS).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
