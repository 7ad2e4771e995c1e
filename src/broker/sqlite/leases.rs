//! What this process has in hand: one lease a subscription, which a heartbeat renews.
//!
//! A lease that was not renewed in time has run out, on the file's word: no later heartbeat revives it, nothing
//! that was in hand under it can be settled any more, and all of that comes again. That happens where the disk
//! takes nothing for so long, where this process stood still, or where another one has opened the file.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use image_builder_actors::ports::{Acknowledger, BrokerError, Delivery};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::clock;
use super::dead_letters;
use super::messages;
use super::writer::{PAUSE, Writer};
use super::{cancellations, ledger};

/// The leases of this process. Clones share them.
#[derive(Clone)]
pub(super) struct Leases {
    writer: Writer,
    /// How long a lease stands that is not renewed.
    lasts: Duration,
    held: Arc<Mutex<HashMap<i64, Weak<Held>>>>,
}

/// What one subscription has in hand.
pub(super) struct Held {
    writer: Writer,
    pub(super) lease: i64,
    /// The queue that it takes from.
    queue: i64,
    in_hand: Mutex<InHand>,
    is_over: watch::Sender<bool>,
    /// Rung when something was settled.
    settled: Notify,
}

#[derive(Default)]
struct InHand {
    /// The deliveries that are not settled, and whether that has begun.
    unsettled: HashMap<u64, bool>,
    last_tag: u64,
    /// Where deliveries go; `None` = whoever takes asks for each, or wants no more.
    deliveries: Option<mpsc::Sender<Delivery>>,
}

impl Leases {
    pub(super) fn new(writer: Writer, lasts: Duration) -> Self {
        Self { writer, lasts, held: Arc::default() }
    }

    /// Begins a lease, to take from a queue.
    pub(super) async fn begin(
        &self,
        queue: i64,
        deliveries: Option<mpsc::Sender<Delivery>>,
    ) -> Result<Arc<Held>, BrokerError> {
        let lasts = clock::of_duration(self.lasts);
        let begun = self.writer.write(move |tx| {
            async move {
                let until = tx.now().saturating_add(lasts);
                messages::begin_lease(tx, until).await
            }
            .boxed()
        });
        let held = Arc::new(Held {
            writer: self.writer.clone(),
            lease: begun.await?,
            queue,
            in_hand: Mutex::new(InHand { deliveries, ..InHand::default() }),
            is_over: watch::Sender::new(false),
            settled: Notify::new(),
        });
        self.lock().insert(held.lease, Arc::downgrade(&held));
        Ok(held)
    }

    /// How many subscriptions to a queue want more.
    pub(super) fn consumers(&self, queue: i64) -> usize {
        let held = self.all();
        held.iter().filter(|held| held.queue == queue && held.lock().deliveries.is_some()).count()
    }

    /// Ends all that is in hand, and returns it: in the file it ends soon after.
    pub(super) fn end_all(&self) -> Vec<Arc<Held>> {
        let all = self.all();
        all.iter().for_each(|held| held.end());
        all
    }

    /// Renews the leases again and again, and clears away what the file need not keep, until it is closed.
    pub(super) async fn keep_up(self, every: Duration) {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = self.writer.closed() => return,
                () = tokio::time::sleep(every) => {}
            }
            match self.renew().await {
                Ok(()) => renewed = Instant::now(),
                // Those that have run out by now are ended in the file once it can be written again.
                Err(_) if renewed.elapsed() >= self.lasts => {
                    self.end_all();
                }
                Err(_) => {}
            }
        }
    }

    /// One heartbeat. What it finds to have run out is over here as well.
    pub(super) async fn renew(&self) -> Result<(), BrokerError> {
        let lasts = clock::of_duration(self.lasts);
        // Those that begin meanwhile are not among the renewed, and stand all the same.
        let before = self.all();
        let renewed = self.writer.write(move |tx| {
            async move {
                let until = tx.now().saturating_add(lasts);
                let renewed = messages::renew(tx, until).await?;
                dead_letters::forget(tx).await?;
                cancellations::forget(tx).await?;
                ledger::forget(tx).await?;
                tx.news.is_to_tidy = true;
                Ok(renewed)
            }
            .boxed()
        });
        let renewed = renewed.await?;
        before.iter().filter(|held| !renewed.contains(&held.lease)).for_each(|held| held.end());
        Ok(())
    }

    fn all(&self) -> Vec<Arc<Held>> {
        let mut all = self.lock();
        all.retain(|_, held| held.strong_count() > 0);
        all.values().filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i64, Weak<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Nothing can be settled any more from now on. The lease ends in the file soon after.
    pub(super) fn end(&self) {
        self.lock().deliveries = None;
        self.is_over.send_replace(true);
    }

    pub(super) fn is_over(&self) -> bool {
        *self.is_over.borrow()
    }

    pub(super) async fn over(&self) {
        // The sender lives as long as `self`.
        let _ = self.is_over.subscribe().wait_for(|is_over| *is_over).await;
    }

    /// The number of the next delivery, and as many more as are taken at once.
    pub(super) fn next_tag(&self, count: usize) -> u64 {
        let mut in_hand = self.lock();
        let first = in_hand.last_tag + 1;
        in_hand.last_tag += count as u64;
        first
    }

    /// Something was taken by whoever asked for it.
    pub(super) fn has(&self, tag: u64) {
        self.lock().unsettled.insert(tag, false);
    }

    /// Hands deliveries on to the subscriber, and returns those that it does not want any more.
    fn hand_on(&self, deliveries: Vec<Delivery>) -> Vec<Delivery> {
        let mut in_hand = self.lock();
        let mut left = Vec::new();
        for delivery in deliveries {
            let tag = delivery.tag;
            let sent = match &in_hand.deliveries {
                // There is room for a whole window.
                Some(subscriber) => {
                    subscriber.try_send(delivery).map_err(|error| error.into_inner())
                }
                None => Err(delivery),
            };
            match sent {
                Ok(()) => {
                    in_hand.unsettled.insert(tag, false);
                }
                Err(delivery) => left.push(delivery),
            }
        }
        left
    }

    /// How many more deliveries the subscriber may have.
    fn room(&self, window: usize) -> usize {
        let in_hand = self.lock();
        let wants_more =
            in_hand.deliveries.as_ref().is_some_and(|deliveries| !deliveries.is_closed());
        if wants_more { window.saturating_sub(in_hand.unsettled.len()) } else { 0 }
    }

    /// Hands out what comes into the queue for as long as the lease stands, and then ends that.
    pub(super) async fn deliver(self: Arc<Self>, window: usize) {
        let mut news = self.writer.heard.in_queue(self.queue);
        let mut unseen = Vec::new();
        while !self.is_over() {
            news.mark_unchanged();
            let advanced = self.advance(window, &mut unseen).await;
            let next = async {
                match advanced {
                    Ok(Next::AtOnce) => {}
                    Ok(Next::News) => {
                        // The sender lives as long as the writer.
                        let _ = news.changed().await;
                    }
                    Ok(Next::Room) => std::future::pending().await,
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            };
            tokio::select! {
                () = self.over() => {}
                () = self.settled.notified() => {}
                () = next => {}
            }
        }
        self.give_all_back().await;
    }

    /// Takes the next messages and hands them on. What nobody has seen, since the file failed while it was taken or
    /// the subscriber did not want it any more, is given back first, charged with nothing.
    async fn advance(&self, window: usize, unseen: &mut Vec<u64>) -> Result<Next, BrokerError> {
        let lease = self.lease;
        if !unseen.is_empty() {
            self.give_back_unseen(unseen.clone()).await?;
            unseen.clear();
        }
        let room = self.room(window);
        if room == 0 {
            return Ok(Next::Room);
        }
        let (queue, first) = (self.queue, self.next_tag(room));
        unseen.extend(first..first + room as u64);
        let taken = self.writer.write(move |tx| {
            messages::hand_out(tx, lease, queue, first.cast_signed(), room).boxed()
        });
        let taken = taken.await?;
        let is_all = taken.len() < room;
        *unseen = self.hand_on(taken).iter().map(|delivery| delivery.tag).collect();
        Ok(if is_all && unseen.is_empty() { Next::News } else { Next::AtOnce })
    }

    /// Gives back what was taken and nobody has seen: it is charged with nothing.
    async fn give_back_unseen(&self, tags: Vec<u64>) -> Result<(), BrokerError> {
        let lease = self.lease;
        let given_back = self.writer.write(move |tx| {
            async move {
                for tag in tags {
                    messages::give_back(tx, lease, tag.cast_signed(), false).await?;
                }
                Ok(())
            }
            .boxed()
        });
        given_back.await
    }

    /// The same, for a request of which nobody knows whether it was taken when the file failed; however long it
    /// takes, as long as the lease stands.
    pub(super) async fn untake(self: Arc<Self>, tag: u64) {
        while !self.is_over() && self.give_back_unseen(vec![tag]).await.is_err() {
            tokio::select! {
                () = self.over() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Ends the lease in the file, however long that takes: until then nobody else gets what was in hand.
    pub(super) async fn give_all_back(&self) {
        let lease = self.lease;
        loop {
            let ended = self.writer.write(move |tx| messages::end_lease(tx, lease).boxed());
            match ended.await {
                Ok(()) => return,
                Err(_) => tokio::select! {
                    () = self.writer.closed() => return,
                    () = tokio::time::sleep(PAUSE) => {}
                },
            }
        }
    }

    /// Settles a delivery. A file that cannot be written is waited for, as long as the lease stands: what was not
    /// settled would stay in hand.
    async fn settle(self: Arc<Self>, tag: u64, how: Settled) -> Result<(), BrokerError> {
        match self.lock().unsettled.get_mut(&tag) {
            Some(has_begun) if !*has_begun && !self.is_over() => *has_begun = true,
            _ => return Err(BrokerError::Stale),
        }
        let mut was_tried = false;
        let settled = loop {
            if self.is_over() {
                break Err(BrokerError::Stale);
            }
            match self.write(tag, how).await {
                Ok(Found::InHand) => break Ok(()),
                // The try that failed had done it after all.
                Ok(Found::Gone) if was_tried => break Ok(()),
                Ok(Found::Gone) => break Err(BrokerError::Stale),
                Ok(Found::Over) => {
                    self.end();
                    break Err(BrokerError::Stale);
                }
                Err(_) => tokio::select! {
                    () = self.over() => {}
                    () = tokio::time::sleep(PAUSE) => was_tried = true,
                },
            }
        };
        self.lock().unsettled.remove(&tag);
        self.settled.notify_one();
        settled
    }

    async fn write(&self, tag: u64, how: Settled) -> Result<Found, BrokerError> {
        let (lease, tag) = (self.lease, tag.cast_signed());
        let settled = self.writer.write(move |tx| {
            async move {
                if !messages::stands(tx, lease).await? {
                    return Ok(Found::Over);
                }
                let was_in_hand = match how {
                    Settled::Done => messages::remove(tx, lease, tag).await?,
                    Settled::GivenBack => messages::give_back(tx, lease, tag, true).await?,
                };
                Ok(if was_in_hand { Found::InHand } else { Found::Gone })
            }
            .boxed()
        });
        settled.await
    }

    fn lock(&self) -> MutexGuard<'_, InHand> {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    Done,
    GivenBack,
}

/// What was found of a delivery that is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    InHand,
    Gone,
    /// The lease ran out.
    Over,
}

/// What is waited for before more is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    AtOnce,
    News,
    /// Something that is settled.
    Room,
}

/// Settles what is in hand under a lease, and ends that when dropped.
pub(super) struct Acks(pub(super) Arc<Held>);

impl Acks {
    async fn settle(&self, tag: u64, how: Settled) -> Result<(), BrokerError> {
        // In a task of its own: whoever drops it half-way has it settled all the same.
        let settled = tokio::spawn(self.0.clone().settle(tag, how)).await;
        settled.unwrap_or_else(|_| Err(BrokerError::Unavailable("the program ends".to_owned())))
    }
}

impl Acknowledger for Acks {
    fn holds(&self, tag: u64) -> bool {
        !self.0.is_over() && self.0.lock().unsettled.get(&tag) == Some(&false)
    }

    fn ack(&self, tag: u64) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(self.settle(tag, Settled::Done))
    }

    fn nack(&self, tag: u64) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(self.settle(tag, Settled::GivenBack))
    }

    fn cancel(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.0.lock().deliveries = None;
            // Whoever waits for the deliveries' end waits for the task that hands them out.
            self.0.settled.notify_one();
        })
    }

    fn ended(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.0.over())
    }
}

impl Drop for Acks {
    fn drop(&mut self) {
        self.0.end();
    }
}
