//! From the backlog to the listener: takes a request whenever a builder can have it, and gives its
//! delivery a lease.
//!
//! Nothing is taken ahead but for as long as a fetch takes: what this worker cannot begin waits in the backlog, where any
//! other worker may take it, and where nobody's death is counted against it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::delivery::dedup::{Hold, Redeliveries};
use crate::delivery::settlement::Settlement;
use crate::model::shutdown::{Shutdown, ShutdownPhase};
use crate::pipeline::consumer::{Delivered, Incoming, PAUSE, Reception};
use crate::ports::{Backlog, Broker, ImageBuilder, Queue};
use crate::scheduling::admission::{Admission, Room};
use crate::scheduling::capacity::Capacity;
use crate::supervision::Mailbox;

/// Takes requests from the backlog for the listener.
pub(super) struct Dispatcher {
    pub(super) broker: Arc<dyn Broker>,
    /// Settles what a crash leaves behind.
    pub(super) settlement: Settlement,
    /// Claimed for what may take it down.
    pub(super) engine: Arc<dyn ImageBuilder>,
    /// Knows whether there is room for one more job.
    pub(super) admission: Admission,
    /// Most jobs in hand at once, those included that are pushed.
    pub(super) most_in_hand: u16,
    pub(super) shutdown: Shutdown,
    /// Nothing is taken while the worker lacks what every build needs.
    pub(super) capacity: Capacity,
    /// Longest time from taken to settled that is not taken for a hang.
    pub(super) longest: Duration,
    /// What this worker has, or has just had, of the backlog.
    pub(super) redeliveries: Redeliveries,
}

/// Workers that have a builder for it have so long to take what this one has none for.
const OTHERS_FIRST: Duration = Duration::from_millis(500);

/// Why no more is taken.
enum Over {
    Lost,
    Draining,
}

impl Dispatcher {
    /// Works until the worker drains and all that was taken is settled.
    pub(super) async fn run(self, mailbox: Mailbox<Delivered>) {
        let slots = Arc::new(Semaphore::new(self.most_in_hand.into()));
        self.take_in(&slots, &mailbox).await;
        // Every lease holds a slot until it is settled.
        let _ = slots.acquire_many(self.most_in_hand.into()).await;
    }

    async fn take_in(&self, slots: &Arc<Semaphore>, mailbox: &Mailbox<Delivered>) {
        loop {
            let open = async {
                // What was cancelled while nobody listened is not begun.
                self.broker.cancellations_read().await;
                self.broker.backlog().await
            };
            let opened = tokio::select! {
                () = self.draining() => return,
                opened = open => opened,
            };
            match opened {
                Ok(backlog) => match self.dispatch(backlog, slots, mailbox).await {
                    Over::Draining => return,
                    Over::Lost => {
                        self.redeliveries.lost();
                        tracing::warn!(
                            "the backlog was closed by the broker, or its connection was lost: opening it again"
                        );
                    }
                },
                Err(error) => tracing::warn!(%error, "cannot open the backlog: trying again"),
            }
            tokio::select! {
                () = self.draining() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn draining(&self) {
        self.shutdown.reached(ShutdownPhase::Draining).await;
    }

    /// Takes requests until the backlog is closed. Leases stay good.
    async fn dispatch(
        &self,
        mut backlog: Backlog,
        slots: &Arc<Semaphore>,
        mailbox: &Mailbox<Delivered>,
    ) -> Over {
        let reception = Reception::new(
            Queue::Build,
            backlog.acks.clone(),
            self.longest,
            &self.settlement,
            &self.redeliveries,
            mailbox,
        );
        loop {
            let room = async {
                let slot = slots.clone().acquire_owned().await.ok()?;
                let room = self.admission.room().await;
                self.capacity.found().await;
                Some((slot, room))
            };
            let (slot, room) = tokio::select! {
                () = self.draining() => return Over::Draining,
                () = backlog.acks.ended() => return Over::Lost,
                room = room => match room {
                    Some(found) => found,
                    None => return Over::Lost,
                },
            };
            // Before the look, so that no job that ends during it is missed.
            let changed = self.admission.changed();
            if room == Room::Newcomers {
                tokio::select! {
                    () = self.draining() => return Over::Draining,
                    () = backlog.acks.ended() => return Over::Lost,
                    () = self.admission.changed() => continue,
                    () = tokio::time::sleep(OTHERS_FIRST) => {}
                }
            }
            let load = self.admission.load(self.room_of_place(room, slots));
            let turn = match backlog.taker.take(&load).await {
                Ok(Some(turn)) => turn,
                Ok(None) => {
                    tokio::select! {
                        () = self.draining() => return Over::Draining,
                        () = backlog.taker.arrived() => {}
                        // Somebody who had as many in hand as is allowed may have fewer now.
                        () = changed => {}
                    }
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take a request from the backlog");
                    return Over::Lost;
                }
            };
            let ticket = self.admission.taken(&turn.user_id);
            let incoming = Incoming::new(turn.delivery, slot, Some(ticket));
            let Some((incoming, hold)) = reception.take_up(incoming).await else { continue };
            match incoming.is_suspicious() {
                true => self.run_alone(incoming, hold, &reception, slots).await,
                false => reception.deliver(incoming, hold).await,
            }
        }
    }

    /// The last place in hand is for whoever has none: what one user has in hand that is pushed for long keeps nobody
    /// else waiting.
    fn room_of_place(&self, room: Room, slots: &Semaphore) -> Room {
        let is_last = slots.available_permits() == 0;
        if is_last && usize::from(self.most_in_hand) > self.admission.builders() {
            Room::Newcomers
        } else {
            room
        }
    }

    /// Runs a request while nothing else is in hand here. Of those that may take down their engine one at a
    /// time is at work there, whichever worker has it: one that comes second waits in the queue.
    async fn run_alone(
        &self,
        incoming: Incoming,
        hold: Hold,
        reception: &Reception,
        slots: &Semaphore,
    ) {
        let (redeliveries, engine_deaths) = (incoming.redeliveries(), incoming.engine_deaths());
        let delivered = incoming.leased(&reception.settler, hold);
        let mut claim = None;
        if engine_deaths > 0 {
            match self.engine.claim().await {
                Ok(Some(claimed)) => claim = Some(claimed),
                Ok(None) => {
                    tracing::info!("another worker runs such a build alone: this one waits");
                    return self.settlement.wait_unread(delivered.lease).await;
                }
                // Whoever builds there finds out whether the engine is there at all.
                Err(fault) => {
                    tracing::warn!(%fault, "cannot keep other workers from running such a build");
                }
            }
        }
        let _others = tokio::select! {
            // Nobody may have it here any longer; whoever gets it next runs it alone as well.
            () = reception.acks.ended() => return,
            () = self.draining() => {
                return self.settlement.give_back_unread(delivered.lease, Duration::ZERO).await;
            }
            others = slots.acquire_many(u32::from(self.most_in_hand) - 1) => others,
        };
        tracing::warn!(
            redeliveries,
            engine_deaths,
            "a request may have taken down its worker or its engine: it runs alone"
        );
        reception.mailbox.deliver(delivered).await;
        let _settled = slots.acquire().await;
        drop(claim);
    }
}
